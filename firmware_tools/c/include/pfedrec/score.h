/**
 * @file
 * @brief Scores of items: `z = w . e + b` in floats, or its order in integers alone.
 *
 * Integer scores are for boards without a floating-point unit. w becomes 16-bit integers with one scale, and
 *
 *     score(row) = round(multiplier(row) * sum_k quantised(row, k) * vector(k) / 65536)
 *
 * (halves upwards) orders items as z does, but for rounding. `z = score * 65536 * unit * scale + b`.
 */
#ifndef PFEDREC_SCORE_H
#define PFEDREC_SCORE_H

#include "table.h"

#ifdef __cplusplus
extern "C" {
#endif

/** @brief Give one item's logit; the row must exist. */
float pfr_logit(const pfr_table *table, uint32_t row, const float *w, float b);

/** @brief Give every item's logit, `table->rows` values. */
pfr_status pfr_logits(const pfr_table *table, const float *w, float b, float *logits);

/** @brief Give the probability that a logit means. */
float pfr_sigmoid(float logit);

/**
 * @brief Turn a score vector into 16-bit integers: `w = scale * vector`, to half a scale.
 *
 * The largest magnitude becomes 32767, from 513 values on 16383, so that no sum leaves 32 bits.
 *
 * @param w       dim finite values.
 * @param vector  Receives dim values.
 * @param scale   Receives the scale; 0 for a vector of zeros.
 * @retval PFR_E_NOT_FINITE  When a value of w is not finite.
 */
pfr_status pfr_quantise_vector(const float *w, uint32_t dim, int16_t *vector, float *scale);

/** @brief Give one item's integer score in a PFR_INT8 table; the row must exist. */
int32_t pfr_integer_score(const pfr_table *table, uint32_t row, const int16_t *vector);

/** @brief Give the logit that an integer score stands for. */
float pfr_integer_logit(const pfr_table *table, int32_t score, float scale, float b);

#ifdef __cplusplus
}
#endif

#endif
