#include "../include/pfedrec/best.h"

#include <math.h>
#include <string.h>

void pfr_best_begin(pfr_best *best, pfr_candidate *items, uint32_t capacity)
{
    best->items = items;
    best->capacity = capacity;
    best->count = 0U;
}

void pfr_best_offer(pfr_best *best, uint32_t row, int32_t key)
{
    uint32_t place = best->count;
    if (place == best->capacity) {
        if ((place == 0U) || (key <= best->items[place - 1U].key)) {
            return;
        }
        place--;
    } else {
        best->count++;
    }
    while ((place > 0U) && (best->items[place - 1U].key < key)) {
        best->items[place] = best->items[place - 1U];
        place--;
    }
    best->items[place].row = row;
    best->items[place].key = key;
}

/* The bits of positive floats order as integers do; those of negative ones the other way round. */
static uint32_t reordered(uint32_t bits)
{
    return ((bits & 0x80000000U) != 0U) ? (bits ^ 0x7FFFFFFFU) : bits;
}

static int32_t as_signed(uint32_t bits)
{
    int32_t value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

int32_t pfr_key_of_logit(float logit)
{
    const float canonical = logit + 0.0F; /* -0 and 0 are equal */
    uint32_t bits;
    memcpy(&bits, &canonical, sizeof bits);
    return as_signed(reordered(bits));
}

float pfr_logit_of_key(int32_t key)
{
    const uint32_t bits = reordered((uint32_t)key);
    float logit;
    memcpy(&logit, &bits, sizeof logit);
    return logit;
}

void pfr_mask_set(uint8_t *mask, uint32_t row)
{
    mask[row >> 3] = (uint8_t)(mask[row >> 3] | (1U << (row & 7U)));
}

int pfr_mask_has(const uint8_t *mask, uint32_t row)
{
    return (mask != NULL) && ((((uint32_t)mask[row >> 3] >> (row & 7U)) & 1U) != 0U);
}

pfr_status pfr_recommend(const pfr_table *table, const float *w, float b, const uint8_t *mask, pfr_best *best)
{
    const pfr_status status = pfr_table_check(table);
    if (status != PFR_OK) {
        return status;
    }
    if ((w == NULL) || (best == NULL)) {
        return PFR_E_ARGUMENT;
    }
    for (uint32_t row = 0U; row < table->rows; row++) {
        if (pfr_mask_has(mask, row) == 0) {
            const float logit = pfr_logit(table, row, w, b);
            if (!isnan(logit)) {
                pfr_best_offer(best, row, pfr_key_of_logit(logit));
            }
        }
    }
    return PFR_OK;
}

pfr_status pfr_recommend_integer(const pfr_table *table, const int16_t *vector, const uint8_t *mask, pfr_best *best)
{
    const pfr_status status = pfr_table_check(table);
    if (status != PFR_OK) {
        return status;
    }
    if ((table->format != PFR_INT8) || (vector == NULL) || (best == NULL)) {
        return PFR_E_ARGUMENT;
    }
    for (uint32_t row = 0U; row < table->rows; row++) {
        if (pfr_mask_has(mask, row) == 0) {
            pfr_best_offer(best, row, pfr_integer_score(table, row, vector));
        }
    }
    return PFR_OK;
}
