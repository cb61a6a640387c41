#include "pfedrec_cbor.h"

#include "../include/pfedrec/update.h"
#include "pfedrec_rounding.h"

#include <float.h>
#include <string.h>

#define MAX_ABS_CHANGE 1e30F
#define N_FIELDS 8U

/* What an encoding's body is made of: the arrays' names, CBOR tags, and bytes for n rows. */
typedef struct array_form {
    const char *name;
    uint32_t tag;
} array_form;

static const char *const ENCODING_NAMES[] = {"float32", "int8", "int4"};
static const array_form ROWS = {"rows", PFR_CBOR_TAG_UINT32};
static const array_form SCALES = {"scales", PFR_CBOR_TAG_FLOAT32};
static const array_form VALUES[] = {{"values", PFR_CBOR_TAG_FLOAT32}, {"values", PFR_CBOR_TAG_SINT8}, {"pairs", PFR_CBOR_TAG_SINT8}};

static size_t row_value_bytes(pfr_encoding encoding, uint32_t dim)
{
    switch (encoding) {
    case PFR_AS_INT8:
        return dim;
    case PFR_AS_INT4:
        return (dim + 1U) / 2U;
    default:
        return 4U * (size_t)dim;
    }
}

pfr_encoding pfr_encoding_named(const char *name, size_t size)
{
    for (uint32_t nth = 0U; nth < 3U; nth++) {
        if ((strlen(ENCODING_NAMES[nth]) == size) && (memcmp(ENCODING_NAMES[nth], name, size) == 0)) {
            return (pfr_encoding)nth;
        }
    }
    return PFR_AS_FLOAT32;
}

/* ---- writing: counts bytes where there is no sink ---- */

typedef struct writer {
    pfr_sink sink;
    void *context;
    size_t used;
    int refused;
} writer;

static void put(writer *out, const uint8_t *bytes, size_t size)
{
    out->used += size;
    if ((out->sink != NULL) && !out->refused && (size > 0U)) {
        out->refused = out->sink(out->context, bytes, size);
    }
}

static void put_head(writer *out, uint32_t major, uint64_t argument)
{
    uint8_t bytes[PFR_CBOR_MAX_HEAD_BYTES];
    put(out, bytes, pfr_cbor_write_head(bytes, major, argument));
}

static void put_text(writer *out, const char *text)
{
    uint8_t bytes[16];
    const size_t size = strlen(text); /* of our own words, all shorter */
    memcpy(bytes, text, size);
    put_head(out, PFR_CBOR_TEXT, size);
    put(out, bytes, size);
}

static void put_integer(writer *out, const char *name, uint64_t value)
{
    put_text(out, name);
    put_head(out, PFR_CBOR_UNSIGNED, value);
}

static void put_u32(writer *out, uint32_t value)
{
    const uint8_t bytes[4] = {(uint8_t)(value & 0xFFU), (uint8_t)((value >> 8) & 0xFFU),
                              (uint8_t)((value >> 16) & 0xFFU), (uint8_t)(value >> 24)};
    put(out, bytes, sizeof bytes);
}

static void put_float(writer *out, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_u32(out, bits);
}

static void put_array_head(writer *out, const array_form *form, size_t size)
{
    put_text(out, form->name);
    put_head(out, PFR_CBOR_TAG, form->tag);
    put_head(out, PFR_CBOR_BYTES, size);
}

static void put_envelope(writer *out, const pfr_update *update)
{
    put_head(out, PFR_CBOR_MAP, N_FIELDS);
    put_integer(out, "v", PFR_PROTOCOL_VERSION);
    put_text(out, "type");
    put_text(out, "update");
    put_integer(out, "instance", update->instance);
    put_integer(out, "incarnation", update->incarnation);
    put_integer(out, "seq", update->seq);
    put_integer(out, "base_version", update->base_version);
    put_text(out, "encoding");
    put_text(out, ENCODING_NAMES[update->encoding]);
    put_text(out, "body");
    put_head(out, PFR_CBOR_MAP, (update->encoding == PFR_AS_FLOAT32) ? 2U : 3U);
}

size_t pfr_update_bytes(const pfr_update *update, const pfr_pass *pass)
{
    writer counting = {NULL, NULL, 0U, 0};
    if ((update == NULL) || (pass == NULL) || (pass->n_batches == 0U) || ((uint32_t)update->encoding > 2U)) {
        return 0U;
    }
    const size_t n_rows = pass->n_rows;
    const size_t value_bytes = n_rows * row_value_bytes(update->encoding, pass->dim);
    put_envelope(&counting, update);
    put_array_head(&counting, &ROWS, 4U * n_rows);
    counting.used += 4U * n_rows;
    if (update->encoding != PFR_AS_FLOAT32) {
        put_array_head(&counting, &SCALES, 4U * n_rows);
        counting.used += 4U * n_rows;
    }
    put_array_head(&counting, &VALUES[update->encoding], value_bytes);
    return counting.used + value_bytes;
}

/* ---- rows ---- */

static float levels_of(pfr_encoding encoding)
{
    return (encoding == PFR_AS_INT8) ? 127.0F : 7.0F;
}

static float scale_of(pfr_pass *pass, float levels)
{
    const float scale = pfr_pass_largest(pass) / levels;
    return (scale < FLT_MIN) ? 0.0F : scale;
}

static int32_t steps_of(float value, float scale, float levels)
{
    return (scale > 0.0F) ? (int32_t)pfr_steps(value, scale, levels) : 0;
}

static void put_row_values(writer *out, pfr_encoding encoding, pfr_pass *pass)
{
    const uint32_t dim = pass->dim;
    const float scale = (encoding == PFR_AS_FLOAT32) ? 0.0F : scale_of(pass, levels_of(encoding));
    const float *change = pfr_pass_change(pass);
    if (encoding == PFR_AS_FLOAT32) {
        for (uint32_t k = 0U; k < dim; k++) {
            put_float(out, change[k]);
        }
    } else if (encoding == PFR_AS_INT8) {
        for (uint32_t k = 0U; k < dim; k++) {
            const uint8_t byte = (uint8_t)((uint32_t)steps_of(change[k], scale, 127.0F) & 0xFFU);
            put(out, &byte, 1U);
        }
    } else {
        for (uint32_t k = 0U; k < dim; k += 2U) {
            const uint32_t lower = (uint32_t)steps_of(change[k], scale, 7.0F) & 0x0FU;
            const uint32_t upper =
                ((k + 1U) < dim) ? ((uint32_t)steps_of(change[k + 1U], scale, 7.0F) & 0x0FU) : 0U;
            const uint8_t byte = (uint8_t)(lower | (upper << 4));
            put(out, &byte, 1U);
        }
    }
}

static int changes_bounded(pfr_pass *pass)
{
    uint32_t row;
    pfr_pass_rewind(pass);
    while (pfr_pass_next(pass, &row) != 0) {
        if (!(pfr_pass_largest(pass) <= MAX_ABS_CHANGE)) { /* true for NaN */
            return 0;
        }
    }
    return 1;
}

pfr_status pfr_update_encode(const pfr_update *update, pfr_pass *pass, pfr_sink sink, void *context)
{
    const uint64_t max_seq = UINT64_C(9007199254740992);
    if ((update == NULL) || (pass == NULL) || (sink == NULL) || ((uint32_t)update->encoding > 2U) ||
        (update->seq < 1U) || (update->seq > max_seq) || (update->base_version > max_seq)) {
        return PFR_E_ARGUMENT;
    }
    if (pass->n_batches == 0U) {
        return PFR_E_NOTHING;
    }
    if (!changes_bounded(pass)) {
        return PFR_E_NOT_FINITE;
    }
    writer out = {sink, context, 0U, 0};
    const size_t n_rows = pass->n_rows;
    uint32_t row;
    put_envelope(&out, update);
    put_array_head(&out, &ROWS, 4U * n_rows);
    pfr_pass_rewind(pass);
    while (!out.refused && (pfr_pass_next(pass, &row) != 0)) {
        put_u32(&out, row);
    }
    if (update->encoding != PFR_AS_FLOAT32) {
        put_array_head(&out, &SCALES, 4U * n_rows);
        pfr_pass_rewind(pass);
        while (!out.refused && (pfr_pass_next(pass, &row) != 0)) {
            put_float(&out, scale_of(pass, levels_of(update->encoding)));
        }
    }
    put_array_head(&out, &VALUES[update->encoding], n_rows * row_value_bytes(update->encoding, pass->dim));
    pfr_pass_rewind(pass);
    while (!out.refused && (pfr_pass_next(pass, &row) != 0)) {
        put_row_values(&out, update->encoding, pass);
    }
    return out.refused ? PFR_E_SINK : PFR_OK;
}

int pfr_buffer_append(void *context, const uint8_t *bytes, size_t size)
{
    pfr_buffer *buffer = context;
    if (size > (buffer->size - buffer->used)) {
        return 1;
    }
    memcpy(&buffer->bytes[buffer->used], bytes, size);
    buffer->used += size;
    return 0;
}
