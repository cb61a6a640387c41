/**
 * @file
 * @brief The best k of a catalogue as its scores go by, without those that a mask leaves out.
 *
 * Order is by integer keys: an integer score is one, a logit becomes one that orders alike. Of equal keys the
 * smaller row wins, as in the other scorers of this project.
 */
#ifndef PFEDREC_BEST_H
#define PFEDREC_BEST_H

#include "score.h"

#ifdef __cplusplus
extern "C" {
#endif

/** @brief Bytes of a mask over so many rows. */
#define PFR_MASK_BYTES(rows) (((rows) + 7U) / 8U)

/** @brief A row and the key that it is ordered by. */
typedef struct pfr_candidate {
    uint32_t row;
    int32_t key;
} pfr_candidate;

/** @brief The best rows so far, best first. */
typedef struct pfr_best {
    pfr_candidate *items; /**< Room for `capacity`; the caller's. */
    uint32_t capacity;
    uint32_t count;
} pfr_best;

/** @brief Begin with no rows. A new one in every place costs `capacity` moves: it is meant for some dozens. */
void pfr_best_begin(pfr_best *best, pfr_candidate *items, uint32_t capacity);

/** @brief Offer a row; rows must come in ascending order, so that the smaller one of equals is kept. */
void pfr_best_offer(pfr_best *best, uint32_t row, int32_t key);

/** @brief Give a key that orders as the logit does. A NaN has none: it must not be offered. */
int32_t pfr_key_of_logit(float logit);

/** @brief Give the logit that a key was made of. */
float pfr_logit_of_key(int32_t key);

/** @brief Leave a row out from now on. */
void pfr_mask_set(uint8_t *mask, uint32_t row);

/** @brief Tell whether a mask leaves a row out; a null mask leaves out none. */
int pfr_mask_has(const uint8_t *mask, uint32_t row);

/**
 * @brief Find the best rows by logit.
 * @param mask  PFR_MASK_BYTES(rows) bytes, or null: the items that are not to be recommended.
 * @param best  Begun by the caller; receives the rows with `pfr_key_of_logit` keys.
 */
pfr_status pfr_recommend(const pfr_table *table, const float *w, float b, const uint8_t *mask, pfr_best *best);

/** @brief Find the best rows of a PFR_INT8 table by integer score alone; see `pfr_quantise_vector`. */
pfr_status pfr_recommend_integer(const pfr_table *table, const int16_t *vector, const uint8_t *mask,
                                 pfr_best *best);

#ifdef __cplusplus
}
#endif

#endif
