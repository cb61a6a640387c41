/**
 * @file
 * @brief One local pass: trainer/local.py's alternating pass, in a memory that a small board has.
 *
 * The pass draws negatives for the user's items, shuffles all into mini-batches, and for each batch steps w and
 * b, then the rows. A batch moves each of its rows along the one vector w of that moment. So what the pass does
 * to the table is kept as it is made: a vector for each batch, and a coefficient for each row of each batch, a
 * *cell*. No row is ever copied, and the table may stay in flash:
 *
 *     row after the pass = row of the table + sum over the batches of (its coefficient * the batch's vector)
 *
 * That is the user's own view of the rows, and the update that is sent. Memory: 10 bytes for each sample, 4 * dim
 * for each batch.
 */
#ifndef PFEDREC_PASS_H
#define PFEDREC_PASS_H

#include "best.h"
#include "random.h"

#ifdef __cplusplus
extern "C" {
#endif

/** @brief How a pass trains; from the head's plan. */
typedef struct pfr_hyperparameters {
    double lr;           /**< Step of w and b, 0 to 1e9. */
    double item_lr;      /**< Step of the rows, 0 to 1e9. */
    double decay;        /**< L2 decay of w; lr * decay is at most 1. */
    uint32_t negatives;  /**< Drawn for each positive, 1 to 1000. */
    uint32_t batch_size; /**< Samples in a mini-batch, 1 to 65535. */
} pfr_hyperparameters;

/** @brief A coefficient; while the pass is being set up, the place that a sample was shuffled to. */
typedef union pfr_cell {
    float coefficient;
    uint32_t place;
} pfr_cell;

/** @brief Room for a pass, and what the newest one has left in it. See `PFR_PASS_STORAGE`. */
typedef struct pfr_pass {
    uint32_t max_samples, max_batches, dim;
    uint32_t *rows;   /**< max_samples; the row of each cell, ascending within a batch. */
    uint16_t *counts; /**< max_samples; the samples of each cell. */
    pfr_cell *cells;  /**< max_samples. */
    uint32_t *starts; /**< max_batches + 1; where each batch's cells begin. */
    uint32_t *cursors; /**< max_batches; scratch. */
    float *vectors;   /**< max_batches * dim. */
    float *scratch;   /**< 2 * dim + 2 * max_batches. */
    uint32_t n_batches; /**< 0: there is nothing. */
    uint32_t n_rows;    /**< Different rows in the pass. */
} pfr_pass;

/** @brief Samples of a pass over so many positives. */
#define PFR_SAMPLES(positives, negatives) ((positives) * (1U + (negatives)))
/** @brief Batches of so many samples. */
#define PFR_BATCHES(samples, batch_size) (((samples) + (batch_size) - 1U) / (batch_size))

/**
 * @brief Define a `static pfr_pass name` with room for so many samples, batches and values in a row.
 *
 * In RAM: 10 bytes a sample, 16 + 4 * dim a batch, 8 * dim + 52 once.
 */
#define PFR_PASS_STORAGE(name, samples, batches, width)                                                         \
    static uint32_t name##_rows[samples];                                                                       \
    static uint16_t name##_counts[samples];                                                                     \
    static pfr_cell name##_cells[samples];                                                                      \
    static uint32_t name##_starts[(batches) + 1U];                                                              \
    static uint32_t name##_cursors[batches];                                                                    \
    static float name##_vectors[(batches) * (width)];                                                           \
    static float name##_scratch[2U * ((width) + (batches))];                                                      \
    static pfr_pass name = {(samples),     (batches),      (width),        name##_rows,    name##_counts,       \
                            name##_cells,  name##_starts,  name##_cursors, name##_vectors, name##_scratch,      \
                            0U,            0U}

/**
 * @brief Train one pass and step the user's w and b.
 *
 * @param w           dim values; stepped when the pass succeeds.
 * @param b           Stepped likewise.
 * @param positives   The user's items, each once; their order is part of the random stream.
 * @param excluded    Ascending, each once: items that are no negatives; the user's, and retired ones.
 * @retval PFR_E_ROOM        When the pass needs more samples or batches than there is room for.
 * @retval PFR_E_NOTHING     When there is no positive, or every item is excluded.
 * @retval PFR_E_NOT_FINITE  When the pass diverged.
 *
 * After a failure w and b are as they were, and the pass is the one before or, once drawing had begun, empty.
 */
pfr_status pfr_pass_run(pfr_pass *pass, const pfr_table *table, float *w, float *b, const uint32_t *positives,
                        uint32_t n_positives, const uint32_t *excluded, uint32_t n_excluded,
                        const pfr_hyperparameters *hyperparameters, pfr_random *random);

/** @brief Go to before the first row of the pass. */
void pfr_pass_rewind(pfr_pass *pass);

/** @brief Go to the next row of the pass, ascending; give 0 at the end. */
int pfr_pass_next(pfr_pass *pass, uint32_t *row);

/** @brief Give the change of the row that `pfr_pass_next` went to; dim values, in `pass->scratch`. */
const float *pfr_pass_change(pfr_pass *pass);

/** @brief Give the largest magnitude in that change; without computing it where the row is in one batch only. */
float pfr_pass_largest(pfr_pass *pass);

/**
 * @brief Find the best rows by logit in the user's own view: the table with the pass's changes laid over it.
 *
 * `pass` may be one of an older version of the table. See `pfr_recommend`.
 */
pfr_status pfr_recommend_own(const pfr_table *table, pfr_pass *pass, const float *w, float b, const uint8_t *mask,
                             pfr_best *best);

#ifdef __cplusplus
}
#endif

#endif
