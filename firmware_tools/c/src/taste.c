#include "../include/pfedrec/taste.h"

#include <math.h>

pfr_status pfr_taste(const pfr_table *table, const float *mean, const float *w, const uint32_t *items,
                     uint32_t n_items, float recency, float strength, float *vector, float *scratch)
{
    const pfr_status status = pfr_table_check(table);
    if (status != PFR_OK) {
        return status;
    }
    if ((mean == NULL) || (w == NULL) || (vector == NULL) || (vector == w) || (scratch == NULL) ||
        ((items == NULL) && (n_items > 0U)) || !(recency >= 0.0F) || !(recency <= 1e6F) || !(strength >= 0.0F) ||
        !(strength <= 100.0F)) {
        return PFR_E_ARGUMENT;
    }
    const uint32_t dim = table->dim;
    uint32_t n_counting = n_items;
    if (recency > 0.0F) {
        /* Items older than that are below the resolution of the sum. */
        const uint32_t newest = (uint32_t)((16.0F * recency) + 1.0F);
        n_counting = (newest < n_items) ? newest : n_items;
    }
    for (uint32_t k = 0U; k < dim; k++) {
        vector[k] = 0.0F;
    }
    for (uint32_t nth = n_items - n_counting; nth < n_items; nth++) {
        if (items[nth] >= table->rows) {
            return PFR_E_ARGUMENT;
        }
        for (uint32_t k = 0U; k < dim; k++) {
            scratch[k] = -mean[k];
        }
        pfr_table_add(table, items[nth], 1.0F, scratch);
        const float length = sqrtf(pfr_dot(scratch, scratch, dim));
        if (length > 0.0F) {
            const float age = (float)(n_items - 1U - nth);
            const float weight = ((recency > 0.0F) ? expf(-age / recency) : 1.0F) / length;
            for (uint32_t k = 0U; k < dim; k++) {
                vector[k] += weight * scratch[k];
            }
        }
    }
    const float length = sqrtf(pfr_dot(vector, vector, dim));
    const float scale = (length > 0.0F) ? ((strength * sqrtf(pfr_dot(w, w, dim))) / length) : 0.0F;
    for (uint32_t k = 0U; k < dim; k++) {
        vector[k] = w[k] + (scale * vector[k]);
    }
    return PFR_OK;
}
