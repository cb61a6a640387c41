#include "pfedrec_cbor.h"

#include "pfedrec_rounding.h"
#include "pfedrec_writer.h"

#include <float.h>
#include <string.h>

#define MAX_ABS_CHANGE 1e30F
#define N_FIELDS 8U
#define N_ENCODINGS 5U
#define MOST_BATCHES_OF_A_ROW 64U

static const char *const ENCODING_NAMES[] = {"float32", "int8", "int4", "factored", "factored-int8"};
static const pfr_array_form ROWS = {"rows", PFR_CBOR_TAG_UINT32};
static const pfr_array_form SCALES = {"scales", PFR_CBOR_TAG_FLOAT32};
static const pfr_array_form VALUES[] = {
    {"values", PFR_CBOR_TAG_FLOAT32}, {"values", PFR_CBOR_TAG_SINT8}, {"pairs", PFR_CBOR_TAG_SINT8}};

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
    for (uint32_t nth = 0U; nth < N_ENCODINGS; nth++) {
        if ((strlen(ENCODING_NAMES[nth]) == size) && (memcmp(ENCODING_NAMES[nth], name, size) == 0)) {
            return (pfr_encoding)nth;
        }
    }
    return PFR_AS_FLOAT32;
}

static int is_factored(pfr_encoding encoding)
{
    return (encoding == PFR_AS_FACTORED) || (encoding == PFR_AS_FACTORED_INT8);
}

/* The encoding that is asked for, or of a pass with too many batches for its factors the one by rows. */
static pfr_encoding fitting(const pfr_update *update, const pfr_pass *pass)
{
    if (!is_factored(update->encoding) || (pass->n_batches <= MOST_BATCHES_OF_A_ROW)) {
        return update->encoding;
    }
    return (update->encoding == PFR_AS_FACTORED) ? PFR_AS_FLOAT32 : PFR_AS_INT8;
}

static void put_envelope(pfr_writer *out, const pfr_update *update, pfr_encoding encoding)
{
    static const uint8_t ARRAYS[N_ENCODINGS] = {2U, 3U, 3U, 4U, 5U};
    pfr_put_head(out, PFR_CBOR_MAP, N_FIELDS);
    pfr_put_integer(out, "v", PFR_PROTOCOL_VERSION);
    pfr_put_text(out, "type");
    pfr_put_text(out, "update");
    pfr_put_integer(out, "instance", update->instance);
    pfr_put_integer(out, "incarnation", update->incarnation);
    pfr_put_integer(out, "seq", update->seq);
    pfr_put_integer(out, "base_version", update->base_version);
    pfr_put_text(out, "encoding");
    pfr_put_text(out, ENCODING_NAMES[encoding]);
    pfr_put_text(out, "body");
    pfr_put_head(out, PFR_CBOR_MAP, ARRAYS[encoding]);
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

static void put_row_values(pfr_writer *out, pfr_encoding encoding, pfr_pass *pass)
{
    const uint32_t dim = pass->dim;
    const float scale = (encoding == PFR_AS_FLOAT32) ? 0.0F : scale_of(pass, levels_of(encoding));
    const float *change = pfr_pass_change(pass);
    if (encoding == PFR_AS_FLOAT32) {
        for (uint32_t k = 0U; k < dim; k++) {
            pfr_put_float(out, change[k]);
        }
    } else if (encoding == PFR_AS_INT8) {
        for (uint32_t k = 0U; k < dim; k++) {
            const uint8_t byte = (uint8_t)((uint32_t)steps_of(change[k], scale, 127.0F) & 0xFFU);
            pfr_put(out, &byte, 1U);
        }
    } else {
        for (uint32_t k = 0U; k < dim; k += 2U) {
            const uint32_t lower = (uint32_t)steps_of(change[k], scale, 7.0F) & 0x0FU;
            const uint32_t upper =
                ((k + 1U) < dim) ? ((uint32_t)steps_of(change[k + 1U], scale, 7.0F) & 0x0FU) : 0U;
            const uint8_t byte = (uint8_t)(lower | (upper << 4));
            pfr_put(out, &byte, 1U);
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

/* Without a sink rows are counted, not computed. */
static void put_rows(pfr_writer *out, pfr_encoding encoding, pfr_pass *pass)
{
    const size_t n_rows = pass->n_rows;
    const size_t value_bytes = n_rows * row_value_bytes(encoding, pass->dim);
    const int computed = out->sink != NULL;
    uint32_t row;
    pfr_put_array_head(out, &ROWS, 4U * n_rows);
    pfr_pass_rewind(pass);
    while (computed && !out->refused && (pfr_pass_next(pass, &row) != 0)) {
        pfr_put_u32(out, row);
    }
    if (encoding != PFR_AS_FLOAT32) {
        pfr_put_array_head(out, &SCALES, 4U * n_rows);
        pfr_pass_rewind(pass);
        while (computed && !out->refused && (pfr_pass_next(pass, &row) != 0)) {
            pfr_put_float(out, scale_of(pass, levels_of(encoding)));
        }
    }
    pfr_put_array_head(out, &VALUES[encoding], value_bytes);
    pfr_pass_rewind(pass);
    while (computed && !out->refused && (pfr_pass_next(pass, &row) != 0)) {
        put_row_values(out, encoding, pass);
    }
    if (!computed) {
        out->used += (4U * n_rows) + value_bytes + ((encoding != PFR_AS_FLOAT32) ? (4U * n_rows) : 0U);
    }
}

static void put_update(pfr_writer *out, const pfr_update *update, pfr_pass *pass)
{
    const pfr_encoding encoding = fitting(update, pass);
    put_envelope(out, update, encoding);
    if (is_factored(encoding)) {
        pfr_put_factored(out, pass, encoding == PFR_AS_FACTORED_INT8);
    } else {
        put_rows(out, encoding, pass);
    }
}

size_t pfr_update_bytes(const pfr_update *update, pfr_pass *pass)
{
    pfr_writer counting = {NULL, NULL, 0U, 0};
    if ((update == NULL) || (pass == NULL) || (pass->n_batches == 0U) || ((uint32_t)update->encoding >= N_ENCODINGS)) {
        return 0U;
    }
    put_update(&counting, update, pass);
    return counting.used;
}

pfr_status pfr_update_encode(const pfr_update *update, pfr_pass *pass, pfr_sink sink, void *context)
{
    const uint64_t max_seq = UINT64_C(9007199254740992);
    if ((update == NULL) || (pass == NULL) || (sink == NULL) || ((uint32_t)update->encoding >= N_ENCODINGS) ||
        (update->seq < 1U) || (update->seq > max_seq) || (update->base_version > max_seq)) {
        return PFR_E_ARGUMENT;
    }
    if (pass->n_batches == 0U) {
        return PFR_E_NOTHING;
    }
    const int bounded = is_factored(fitting(update, pass)) ? pfr_factored_bounded(pass) : changes_bounded(pass);
    if (!bounded) {
        return PFR_E_NOT_FINITE;
    }
    pfr_writer out = {sink, context, 0U, 0};
    put_update(&out, update, pass);
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
