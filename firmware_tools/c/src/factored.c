#include "pfedrec_cbor.h"
#include "pfedrec_rounding.h"
#include "pfedrec_writer.h"

#include <float.h>

/* broker/protocol/encodings/factored.py: a batch's rows as distances, how far it moved each, and the vector that it
 * moved them along, divided by the largest of its values. It is how the pass keeps them, so nothing is computed for
 * a row. */

#define ROW 0x7FFFFFFFU
#define MAX_ABS_CHANGE 1e30F

static const pfr_array_form COUNTS = {"counts", PFR_CBOR_TAG_UINT32};
static const pfr_array_form GAPS = {"gaps", PFR_CBOR_TAG_SINT8};
static const pfr_array_form SCALES = {"scales", PFR_CBOR_TAG_FLOAT32};
static const pfr_array_form VALUES[] = {{"values", PFR_CBOR_TAG_FLOAT32}, {"values", PFR_CBOR_TAG_SINT8}};
static const pfr_array_form DIRECTIONS[] = {{"directions", PFR_CBOR_TAG_FLOAT32}, {"directions", PFR_CBOR_TAG_SINT8}};

static float or_zero(float scale)
{
    return (scale < FLT_MIN) ? 0.0F : scale;
}

/* The first value of the largest magnitude, with its sign; 0 for a vector that is zero in effect. */
static float longest_of(const pfr_pass *pass, uint32_t batch)
{
    const float *vector = &pass->vectors[batch * pass->dim];
    float longest = 0.0F;
    for (uint32_t k = 0U; k < pass->dim; k++) {
        longest = (fabsf(vector[k]) > fabsf(longest)) ? vector[k] : longest;
    }
    return (fabsf(longest) < FLT_MIN) ? 0.0F : longest;
}

/* How far a batch moves a row at most. */
static float reach_of(const pfr_pass *pass, uint32_t batch)
{
    float largest = 0.0F;
    for (uint32_t cell = pass->starts[batch]; cell < pass->starts[batch + 1U]; cell++) {
        largest = pfr_larger(largest, pass->cells[cell].coefficient);
    }
    return largest * fabsf(longest_of(pass, batch)); /* rounding keeps the order */
}

int pfr_factored_bounded(pfr_pass *pass)
{
    float reach = 0.0F;
    for (uint32_t batch = 0U; batch < pass->n_batches; batch++) {
        reach += reach_of(pass, batch);
    }
    return reach <= MAX_ABS_CHANGE; /* false for NaN */
}

static void put_integer_of(pfr_writer *out, float value, float step)
{
    const int32_t steps = (step > 0.0F) ? (int32_t)pfr_steps(value, step, 127.0F) : 0;
    const uint8_t byte = (uint8_t)((uint32_t)steps & 0xFFU);
    pfr_put(out, &byte, 1U);
}

/* Unsigned LEB128: seven bits a byte, the lowest first. */
static void put_gap(pfr_writer *out, uint32_t number)
{
    uint32_t left = number;
    while (left >= 128U) {
        const uint8_t byte = (uint8_t)((left & 127U) | 128U);
        pfr_put(out, &byte, 1U);
        left >>= 7;
    }
    const uint8_t last = (uint8_t)left;
    pfr_put(out, &last, 1U);
}

static void put_gaps(pfr_writer *out, const pfr_pass *pass)
{
    for (uint32_t batch = 0U; batch < pass->n_batches; batch++) {
        uint32_t expected = 0U;
        for (uint32_t cell = pass->starts[batch]; cell < pass->starts[batch + 1U]; cell++) {
            const uint32_t row = pass->rows[cell] & ROW;
            put_gap(out, row - expected);
            expected = row + 1U;
        }
    }
}

static void put_values(pfr_writer *out, const pfr_pass *pass, uint32_t batch, int as_int8)
{
    const float longest = longest_of(pass, batch);
    const float step = or_zero(reach_of(pass, batch) / 127.0F);
    for (uint32_t cell = pass->starts[batch]; cell < pass->starts[batch + 1U]; cell++) {
        const float value = pass->cells[cell].coefficient * longest;
        if (as_int8) {
            put_integer_of(out, value, step);
        } else {
            pfr_put_float(out, value);
        }
    }
}

static void put_direction(pfr_writer *out, const pfr_pass *pass, uint32_t batch, int as_int8)
{
    const float *vector = &pass->vectors[batch * pass->dim];
    const float longest = longest_of(pass, batch);
    for (uint32_t k = 0U; k < pass->dim; k++) {
        const float value = (longest != 0.0F) ? (vector[k] / longest) : 0.0F;
        if (as_int8) {
            put_integer_of(out, value, 1.0F / 127.0F);
        } else {
            pfr_put_float(out, value);
        }
    }
}

void pfr_put_factored(pfr_writer *out, pfr_pass *pass, int as_int8)
{
    const size_t n_batches = pass->n_batches;
    const size_t value_bytes = as_int8 ? sizeof(int8_t) : sizeof(float);
    pfr_writer counting = {NULL, NULL, 0U, 0};
    put_gaps(&counting, pass);
    pfr_put_array_head(out, &COUNTS, 4U * n_batches);
    for (uint32_t batch = 0U; batch < n_batches; batch++) {
        pfr_put_u32(out, pass->starts[batch + 1U] - pass->starts[batch]);
    }
    pfr_put_array_head(out, &GAPS, counting.used);
    put_gaps(out, pass);
    if (as_int8) {
        pfr_put_array_head(out, &SCALES, 4U * n_batches);
        for (uint32_t batch = 0U; batch < n_batches; batch++) {
            const float unit = (longest_of(pass, batch) != 0.0F) ? (1.0F / 127.0F) : 0.0F;
            pfr_put_float(out, or_zero(or_zero(reach_of(pass, batch) / 127.0F) * unit));
        }
    }
    pfr_put_array_head(out, &VALUES[as_int8 ? 1 : 0], value_bytes * pass->starts[n_batches]);
    for (uint32_t batch = 0U; batch < n_batches; batch++) {
        put_values(out, pass, batch, as_int8);
    }
    pfr_put_array_head(out, &DIRECTIONS[as_int8 ? 1 : 0], value_bytes * n_batches * pass->dim);
    for (uint32_t batch = 0U; batch < n_batches; batch++) {
        put_direction(out, pass, batch, as_int8);
    }
}
