/**
 * @file
 * @brief The own view by taste (trainer/taste.py): every item moved along what the newest interactions show.
 *
 * It needs no memory of its own: scored by w, the view is the shared table scored by another vector.
 */
#ifndef PFEDREC_TASTE_H
#define PFEDREC_TASTE_H

#include "table.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * @brief Give the vector that serves the own view on the shared table.
 *
 * @param mean      The table's mean row; see `pfr_table_mean`.
 * @param items     The user's items, oldest first, of which those that have faded out are not looked at.
 * @param recency   Newer interactions after which an item counts 1/e of the newest; 0: all alike.
 * @param strength  Length of the taste beside w; 0: the vector is w.
 * @param vector    Receives dim values; not w itself.
 * @param scratch   dim values.
 */
pfr_status pfr_taste(const pfr_table *table, const float *mean, const float *w, const uint32_t *items,
                     uint32_t n_items, float recency, float strength, float *vector, float *scratch);

#ifdef __cplusplus
}
#endif

#endif
