#include "../include/pfedrec/score.h"

#include "pfedrec_rounding.h"

float pfr_logit(const pfr_table *table, uint32_t row, const float *w, float b)
{
    return pfr_table_dot(table, row, w) + b;
}

pfr_status pfr_logits(const pfr_table *table, const float *w, float b, float *logits)
{
    const pfr_status status = pfr_table_check(table);
    if (status != PFR_OK) {
        return status;
    }
    if ((w == NULL) || (logits == NULL)) {
        return PFR_E_ARGUMENT;
    }
    for (uint32_t row = 0U; row < table->rows; row++) {
        logits[row] = pfr_logit(table, row, w, b);
    }
    return PFR_OK;
}

float pfr_sigmoid(float logit)
{
    return (tanhf(logit * 0.5F) * 0.5F) + 0.5F;
}

pfr_status pfr_quantise_vector(const float *w, uint32_t dim, int16_t *vector, float *scale)
{
    if ((w == NULL) || (vector == NULL) || (scale == NULL) || (dim < 1U) || (dim > PFR_MAX_DIM)) {
        return PFR_E_ARGUMENT;
    }
    const float levels = (dim <= 512U) ? 32767.0F : 16383.0F;
    float largest = 0.0F;
    for (uint32_t k = 0U; k < dim; k++) {
        if (!isfinite(w[k])) {
            return PFR_E_NOT_FINITE;
        }
        largest = pfr_larger(largest, w[k]);
    }
    *scale = largest / levels;
    /* Quotients by a scale that is no normal number are not to be trusted: such a vector is zero in effect. */
    if (!isnormal(*scale)) {
        *scale = 0.0F;
    }
    for (uint32_t k = 0U; k < dim; k++) {
        vector[k] = (*scale > 0.0F) ? (int16_t)pfr_steps(w[k], *scale, levels) : (int16_t)0;
    }
    return PFR_OK;
}

int32_t pfr_integer_score(const pfr_table *table, uint32_t row, const int16_t *vector)
{
    const int8_t *quantised = &table->quantised[(size_t)row * table->dim];
    const uint32_t dim = table->dim;
    int32_t sum = 0;
    uint32_t k = 0U;
    /* Most of what a ranking costs is here: the fewer turns, the better. */
    for (; (k + 8U) <= dim; k += 8U) {
        const int8_t *q = &quantised[k];
        const int16_t *v = &vector[k];
        sum += ((int32_t)q[0] * v[0]) + ((int32_t)q[1] * v[1]) + ((int32_t)q[2] * v[2]) + ((int32_t)q[3] * v[3]);
        sum += ((int32_t)q[4] * v[4]) + ((int32_t)q[5] * v[5]) + ((int32_t)q[6] * v[6]) + ((int32_t)q[7] * v[7]);
    }
    for (; k < dim; k++) {
        sum += (int32_t)quantised[k] * (int32_t)vector[k];
    }
    /* The product is within 2^47. Lifted above zero, as shifting a negative number is not defined in C. */
    const int64_t product = (int64_t)sum * (int64_t)table->multipliers[row];
    const uint64_t lifted = (uint64_t)(product + INT64_C(32768) + (INT64_C(1) << 48));
    return (int32_t)((int64_t)(lifted >> 16) - (INT64_C(1) << 32));
}

float pfr_integer_logit(const pfr_table *table, int32_t score, float scale, float b)
{
    return ((float)score * ((65536.0F * table->unit) * scale)) + b;
}
