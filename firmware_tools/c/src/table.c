#include "../include/pfedrec/table.h"

/* A row's four lanes together. */
static float lanes_total(const float lanes[4])
{
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

pfr_status pfr_table_check(const pfr_table *table)
{
    if ((table == NULL) || (table->rows < 1U) || (table->rows > PFR_MAX_ROWS) || (table->dim < 1U) ||
        (table->dim > PFR_MAX_DIM)) {
        return PFR_E_ARGUMENT;
    }
    if (table->format == PFR_FLOAT32) {
        return (table->values != NULL) ? PFR_OK : PFR_E_ARGUMENT;
    }
    if (table->format == PFR_INT8) {
        return ((table->quantised != NULL) && (table->multipliers != NULL)) ? PFR_OK : PFR_E_ARGUMENT;
    }
    return PFR_E_ARGUMENT;
}

float pfr_dot(const float *a, const float *b, uint32_t dim)
{
    float lanes[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    uint32_t k = 0U;
    for (; (k + 4U) <= dim; k += 4U) {
        lanes[0] += a[k] * b[k];
        lanes[1] += a[k + 1U] * b[k + 1U];
        lanes[2] += a[k + 2U] * b[k + 2U];
        lanes[3] += a[k + 3U] * b[k + 3U];
    }
    for (uint32_t lane = 0U; k < dim; k++, lane++) {
        lanes[lane] += a[k] * b[k];
    }
    return lanes_total(lanes);
}

/* What an integer of the row counts. */
static float row_scale(const pfr_table *table, uint32_t row)
{
    return (float)table->multipliers[row] * table->unit;
}

float pfr_table_dot(const pfr_table *table, uint32_t row, const float *vector)
{
    const size_t start = (size_t)row * table->dim;
    if (table->format == PFR_FLOAT32) {
        return pfr_dot(&table->values[start], vector, table->dim);
    }
    const int8_t *quantised = &table->quantised[start];
    float lanes[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    for (uint32_t k = 0U; k < table->dim; k++) {
        lanes[k & 3U] += (float)quantised[k] * vector[k];
    }
    return lanes_total(lanes) * row_scale(table, row);
}

void pfr_table_add(const pfr_table *table, uint32_t row, float weight, float *sum)
{
    const size_t start = (size_t)row * table->dim;
    if (table->format == PFR_FLOAT32) {
        for (uint32_t k = 0U; k < table->dim; k++) {
            sum[k] += weight * table->values[start + k];
        }
        return;
    }
    const float scaled = weight * row_scale(table, row);
    for (uint32_t k = 0U; k < table->dim; k++) {
        sum[k] += scaled * (float)table->quantised[start + k];
    }
}

pfr_status pfr_table_mean(const pfr_table *table, float *mean)
{
    const pfr_status status = pfr_table_check(table);
    if (status != PFR_OK) {
        return status;
    }
    if (mean == NULL) {
        return PFR_E_ARGUMENT;
    }
    for (uint32_t k = 0U; k < table->dim; k++) {
        mean[k] = 0.0F;
    }
    for (uint32_t row = 0U; row < table->rows; row++) {
        pfr_table_add(table, row, 1.0F, mean);
    }
    for (uint32_t k = 0U; k < table->dim; k++) {
        mean[k] /= (float)table->rows;
    }
    return PFR_OK;
}
