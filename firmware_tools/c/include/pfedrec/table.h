/**
 * @file
 * @brief The shared item table, in float32 or in 8-bit integers; read where it lies, usually in flash.
 *
 * A row of an 8-bit table means `multipliers[row] * unit * quantised[row * dim + k]`. So a row costs
 * `dim + 2` bytes, and scores of different rows compare in integers: see score.h.
 *
 * Sums over a row are made in four lanes, k modulo 4, and added as (0 + 1) + (2 + 3). The order is part of the
 * contract: the numpy reference, firmware_tools/arithmetic.py, follows it, so that results are the same to the
 * last bit wherever floats are IEEE 754 and multiplications are not fused (-ffp-contract=off).
 */
#ifndef PFEDREC_TABLE_H
#define PFEDREC_TABLE_H

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PFR_MAX_ROWS 4000000UL /**< Of a table; the protocol's limit. */
#define PFR_MAX_DIM 1024UL     /**< Values in a row; the protocol's limit. */

/** @brief How a table keeps its values. */
typedef enum pfr_format { PFR_FLOAT32 = 0, PFR_INT8 = 1 } pfr_format;

/** @brief An item table. The arrays are the caller's and are never written. */
typedef struct pfr_table {
    pfr_format format;
    uint32_t rows;               /**< 1 to PFR_MAX_ROWS. */
    uint32_t dim;                /**< 1 to PFR_MAX_DIM. */
    const float *values;         /**< rows * dim, row by row; of PFR_FLOAT32. */
    const int8_t *quantised;     /**< rows * dim, row by row, -127 to 127; of PFR_INT8. */
    const uint16_t *multipliers; /**< One a row; of PFR_INT8. */
    float unit;                  /**< What a multiplier counts; of PFR_INT8. */
} pfr_table;

/** @brief Tell whether a table can be used: bounds, and the arrays that its format needs. */
pfr_status pfr_table_check(const pfr_table *table);

/** @brief Give `row . vector`; the row must exist. */
float pfr_table_dot(const pfr_table *table, uint32_t row, const float *vector);

/** @brief Add `weight * row` to `sum`, dim values; the row must exist. */
void pfr_table_add(const pfr_table *table, uint32_t row, float weight, float *sum);

/** @brief Give the mean row, dim values: what taste is measured from. Once for each version of a table. */
pfr_status pfr_table_mean(const pfr_table *table, float *mean);

/** @brief Give `a . b`, dim values each, in four lanes. */
float pfr_dot(const float *a, const float *b, uint32_t dim);

#ifdef __cplusplus
}
#endif

#endif
