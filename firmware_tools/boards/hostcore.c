/* The core for verify: whole catalogues at once, called from Python. */
#include "pfedrec/pfedrec.h"

void host_logits(const float *table, uint32_t rows, uint32_t dim, const float *w, float b, float *logits);
void host_integer_scores(const int8_t *values, const uint16_t *multipliers, float unit, uint32_t rows, uint32_t dim,
                         const float *w, int32_t *scores);

void host_ten_best(const int8_t *values, const uint16_t *multipliers, float unit, uint32_t rows, uint32_t dim,
                   const float *w, uint32_t *found);

void host_logits(const float *table, uint32_t rows, uint32_t dim, const float *w, float b, float *logits)
{
    const pfr_table whole = {PFR_FLOAT32, rows, dim, table, NULL, NULL, 0.0F};
    (void)pfr_logits(&whole, w, b, logits);
}

void host_integer_scores(const int8_t *values, const uint16_t *multipliers, float unit, uint32_t rows, uint32_t dim,
                         const float *w, int32_t *scores)
{
    const pfr_table whole = {PFR_INT8, rows, dim, NULL, values, multipliers, unit};
    int16_t vector[PFR_MAX_DIM];
    float scale;
    (void)pfr_quantise_vector(w, dim, vector, &scale);
    for (uint32_t row = 0U; row < rows; row++) {
        scores[row] = pfr_integer_score(&whole, row, vector);
    }
}

void host_ten_best(const int8_t *values, const uint16_t *multipliers, float unit, uint32_t rows, uint32_t dim,
                   const float *w, uint32_t *found)
{
    const pfr_table whole = {PFR_INT8, rows, dim, NULL, values, multipliers, unit};
    int16_t vector[PFR_MAX_DIM];
    float scale;
    pfr_candidate items[10];
    pfr_best best;
    (void)pfr_quantise_vector(w, dim, vector, &scale);
    pfr_best_begin(&best, items, 10U);
    (void)pfr_recommend_integer(&whole, vector, NULL, &best);
    for (uint32_t i = 0U; i < 10U; i++) {
        found[i] = (i < best.count) ? items[i].row : UINT32_MAX;
    }
}
