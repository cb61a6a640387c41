#include "pfedrec_cbor.h"

#include <math.h>
#include <string.h>

#define MAX_SEQ UINT64_C(9007199254740992) /* 2^53 */
#define MAX_TRANSFER_BYTES (UINT64_C(1) << 30)
#define MAX_CHUNKS 65536U
#define MAX_REASON_BYTES 400U
#define DIGEST_PREFIX_BYTES 8U
#define A_WEEK_S 604800.0

#define COUNT_OF(array) ((uint32_t)(sizeof(array) / sizeof((array)[0])))

static uint32_t little_endian(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | ((uint32_t)bytes[1] << 8) | ((uint32_t)bytes[2] << 16) | ((uint32_t)bytes[3] << 24);
}

void pfr_read_floats(const uint8_t *bytes, uint32_t count, float *values)
{
    for (uint32_t i = 0U; i < count; i++) {
        const uint32_t bits = little_endian(&bytes[4U * (size_t)i]);
        memcpy(&values[i], &bits, sizeof bits);
    }
}

/* Infinities and NaNs have all bits of the exponent set. */
static int floats_finite(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0U; i < count; i++) {
        if ((little_endian(&bytes[4U * i]) & 0x7F800000U) == 0x7F800000U) {
            return 0;
        }
    }
    return 1;
}

static uint32_t integer(pfr_cbor_reader *reader, uint32_t low, uint32_t high)
{
    return (uint32_t)pfr_cbor_integer(reader, low, high);
}

/* Read a map's size and its keys, each by its place among `names`, with a function that reads its value. */
typedef void (*read_field)(pfr_cbor_reader *reader, int field, void *into);

/* The first `n_needed` of the names must be there, the others may. */
static void read_map_of(pfr_cbor_reader *reader, const char *const *names, uint32_t n_names, uint32_t n_needed,
                        read_field field, void *into)
{
    const uint32_t needed = (UINT32_C(1) << n_needed) - 1U;
    const uint32_t size = pfr_cbor_map(reader);
    uint32_t seen = 0U;
    if ((size < n_needed) || (size > n_names)) {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    }
    for (uint32_t i = 0U; (i < size) && (reader->status == PFR_OK); i++) {
        const int nth = pfr_cbor_key(reader, names, n_names, &seen);
        if (nth >= 0) {
            field(reader, nth, into);
        }
    }
    if ((seen & needed) != needed) {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    }
}

static void read_map(pfr_cbor_reader *reader, const char *const *names, uint32_t n_names, read_field field, void *into)
{
    read_map_of(reader, names, n_names, n_names, field, into);
}

/* The two fields that every message has. */
static void read_version(pfr_cbor_reader *reader)
{
    (void)pfr_cbor_integer(reader, PFR_PROTOCOL_VERSION, PFR_PROTOCOL_VERSION);
}

static void read_type(pfr_cbor_reader *reader, const char *expected)
{
    if (!pfr_cbor_is(pfr_cbor_text(reader), expected)) {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    }
}

/* ---- head ---- */

static int is_letter_or_digit(uint8_t c)
{
    return ((c >= (uint8_t)'0') && (c <= (uint8_t)'9')) || ((c >= (uint8_t)'A') && (c <= (uint8_t)'Z')) ||
           ((c >= (uint8_t)'a') && (c <= (uint8_t)'z'));
}

static pfr_bytes identifier(pfr_cbor_reader *reader)
{
    const pfr_bytes text = pfr_cbor_text(reader);
    int fits = (text.size >= 1U) && (text.size <= 64U) && is_letter_or_digit(text.at[0]);
    for (uint32_t i = 1U; fits && (i < text.size); i++) {
        const uint8_t c = text.at[i];
        fits = is_letter_or_digit(c) || (c == (uint8_t)'.') || (c == (uint8_t)'_') || (c == (uint8_t)'-');
    }
    if (!fits) {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    }
    return text;
}

static const char *const PLAN_FIELDS[] = {"lr",          "item_lr",    "negatives",       "batch_size",
                                          "encoding",    "check_in_s", "max_idle_passes", "decay",
                                          "taste_recency", "taste_strength", "guard"};

static void read_plan_field(pfr_cbor_reader *reader, int field, void *into)
{
    pfr_plan *plan = into;
    switch (field) {
    case 0:
        plan->hyperparameters.lr = pfr_cbor_real(reader, 0.0, 1e9);
        break;
    case 1:
        plan->hyperparameters.item_lr = pfr_cbor_real(reader, 0.0, 1e9);
        break;
    case 2:
        plan->hyperparameters.negatives = integer(reader, 1U, 1000U);
        break;
    case 3:
        plan->hyperparameters.batch_size = integer(reader, 1U, 65536U);
        break;
    case 4:
        plan->encoding = identifier(reader);
        break;
    case 5:
        plan->check_in_s = pfr_cbor_real(reader, 0.0, A_WEEK_S);
        break;
    case 6:
        plan->max_idle_passes = integer(reader, 1U, 1000000U);
        break;
    case 7:
        plan->hyperparameters.decay = pfr_cbor_real(reader, 0.0, 1e9);
        break;
    case 8:
        plan->taste_recency = pfr_cbor_real(reader, 0.0, 1e6);
        break;
    case 9:
        plan->taste_strength = pfr_cbor_real(reader, 0.0, 100.0);
        break;
    default:
        plan->guard = pfr_cbor_real(reader, 0.0, 1.0);
        break;
    }
}

static const char *const DELTA_FIELDS[] = {"version", "size", "digest"};

static void read_delta_field(pfr_cbor_reader *reader, int field, void *into)
{
    pfr_delta *delta = into;
    switch (field) {
    case 0:
        delta->version = pfr_cbor_integer(reader, 1U, MAX_SEQ);
        break;
    case 1:
        delta->size = (uint32_t)pfr_cbor_integer(reader, 1U, MAX_TRANSFER_BYTES);
        break;
    default:
        delta->digest = pfr_cbor_bytes(reader, DIGEST_PREFIX_BYTES, DIGEST_PREFIX_BYTES).at;
        break;
    }
}

static void read_deltas(pfr_cbor_reader *reader, pfr_head *head)
{
    head->n_deltas = pfr_cbor_array(reader);
    if (head->n_deltas > PFR_MAX_DELTAS) {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
        head->n_deltas = 0U;
    }
    for (uint32_t i = 0U; i < head->n_deltas; i++) {
        read_map(reader, DELTA_FIELDS, COUNT_OF(DELTA_FIELDS), read_delta_field, &head->deltas[i]);
    }
}

static const char *const OFFER_FIELDS[] = {"release", "size", "sha256", "percent", "groups"};

static void read_offer_field(pfr_cbor_reader *reader, int field, void *into)
{
    pfr_offer *offer = into;
    switch (field) {
    case 0:
        offer->release = pfr_cbor_integer(reader, 1U, MAX_SEQ);
        break;
    case 1:
        offer->size = (uint32_t)pfr_cbor_integer(reader, 1U, MAX_TRANSFER_BYTES);
        break;
    case 2:
        offer->sha256 = pfr_cbor_bytes(reader, 32U, 32U).at;
        break;
    case 3:
        offer->percent = integer(reader, 0U, 100U);
        break;
    default:
        offer->n_groups = pfr_cbor_array(reader);
        if (offer->n_groups > PFR_MAX_GROUPS) {
            pfr_cbor_refuse(reader, PFR_E_SCHEMA);
            offer->n_groups = 0U;
        }
        for (uint32_t i = 0U; i < offer->n_groups; i++) {
            (void)identifier(reader);
        }
        break;
    }
}

static const char *const HEAD_FIELDS[] = {
    "v",      "type",           "instance",         "session",         "version",          "rows", "dim",
    "sha256", "slot",           "chunks",           "catalogue_rows",  "catalogue_chunks", "catalogue_bytes",
    "catalogue_sha256", "plan", "w",                "b",               "deltas",           "signature",
    "offer"};

static void read_head_field(pfr_cbor_reader *reader, int field, void *into)
{
    pfr_head *head = into;
    switch (field) {
    case 0:
        read_version(reader);
        break;
    case 1:
        read_type(reader, "head");
        break;
    case 2:
        head->instance = pfr_cbor_integer(reader, 0U, UINT64_MAX);
        break;
    case 3:
        head->session = pfr_cbor_integer(reader, 0U, MAX_SEQ);
        break;
    case 4:
        head->version = pfr_cbor_integer(reader, 0U, MAX_SEQ);
        break;
    case 5:
        head->rows = integer(reader, 1U, PFR_MAX_ROWS);
        break;
    case 6:
        head->dim = integer(reader, 1U, PFR_MAX_DIM);
        break;
    case 7:
        head->sha256 = pfr_cbor_bytes(reader, 32U, 32U).at;
        break;
    case 8:
        head->slot = integer(reader, 0U, 1U);
        break;
    case 9:
        head->chunks = integer(reader, 1U, MAX_CHUNKS);
        break;
    case 10:
        head->catalogue_rows = integer(reader, 1U, PFR_MAX_ROWS);
        break;
    case 11:
        head->catalogue_chunks = integer(reader, 1U, MAX_CHUNKS);
        break;
    case 12:
        head->catalogue_bytes = (uint32_t)pfr_cbor_integer(reader, 1U, MAX_TRANSFER_BYTES);
        break;
    case 13:
        head->catalogue_sha256 = pfr_cbor_bytes(reader, 32U, 32U).at;
        break;
    case 14:
        head->plan.guard = 0.0; /* which is left out where it is 0 */
        read_map_of(reader, PLAN_FIELDS, COUNT_OF(PLAN_FIELDS), COUNT_OF(PLAN_FIELDS) - 1U, read_plan_field,
                    &head->plan);
        break;
    case 15:
        head->w = pfr_cbor_floats(reader);
        break;
    case 16:
        head->b = pfr_cbor_real(reader, -1e30, 1e30);
        break;
    case 17:
        read_deltas(reader, head);
        break;
    case 18:
        head->signature = (pfr_cbor_take_null(reader) != 0) ? NULL : pfr_cbor_bytes(reader, 64U, 64U).at;
        break;
    default:
        read_map(reader, OFFER_FIELDS, COUNT_OF(OFFER_FIELDS), read_offer_field, &head->offer);
        break;
    }
}

static uint32_t chunk_count(uint64_t size)
{
    return (uint32_t)((size + PFR_CHUNK_BYTES - 1U) / PFR_CHUNK_BYTES);
}

/* What fields say about each other. */
static int head_agrees(const pfr_head *head)
{
    const uint64_t table_bytes = UINT64_C(4) * head->rows * head->dim;
    int agrees = (table_bytes <= MAX_TRANSFER_BYTES) && (head->catalogue_rows >= head->rows) &&
                 (head->chunks == chunk_count(table_bytes)) &&
                 (head->catalogue_chunks == chunk_count(head->catalogue_bytes)) &&
                 (head->w.size == (4U * head->dim)) && floats_finite(head->w.at, head->dim) &&
                 ((head->plan.hyperparameters.lr * head->plan.hyperparameters.decay) <= 1.0);
    for (uint32_t i = 0U; agrees && (i < head->n_deltas); i++) {
        /* Each leads to the version before the next one's; the last to the head's own. */
        agrees = (head->deltas[i].version + (head->n_deltas - 1U - i)) == head->version;
    }
    return agrees;
}

pfr_status pfr_head_decode(const uint8_t *payload, size_t size, pfr_head *head)
{
    pfr_cbor_reader reader;
    if (head == NULL) {
        return PFR_E_ARGUMENT;
    }
    memset(head, 0, sizeof *head);
    pfr_cbor_begin(&reader, payload, size);
    /* The offer is left out where there is none. */
    read_map_of(&reader, HEAD_FIELDS, COUNT_OF(HEAD_FIELDS), COUNT_OF(HEAD_FIELDS) - 1U, read_head_field, head);
    const pfr_status status = pfr_cbor_end(&reader);
    if (status != PFR_OK) {
        return status;
    }
    return head_agrees(head) ? PFR_OK : PFR_E_SCHEMA;
}

/* ---- receipt ---- */

static const char *const RECEIPT_FIELDS[] = {"v",      "type",    "incarnation", "seq",       "verdict",
                                             "reason", "version", "staleness",   "check_in_s"};
static const char *const VERDICTS[] = {"accepted", "duplicate", "stale", "rejected"};

static pfr_verdict read_verdict(pfr_cbor_reader *reader)
{
    const pfr_bytes text = pfr_cbor_text(reader);
    for (uint32_t nth = 0U; nth < COUNT_OF(VERDICTS); nth++) {
        if (pfr_cbor_is(text, VERDICTS[nth])) {
            return (pfr_verdict)nth;
        }
    }
    pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    return PFR_REJECTED;
}

static void read_receipt_field(pfr_cbor_reader *reader, int field, void *into)
{
    pfr_receipt *receipt = into;
    switch (field) {
    case 0:
        read_version(reader);
        break;
    case 1:
        read_type(reader, "receipt");
        break;
    case 2:
        receipt->incarnation = pfr_cbor_integer(reader, 0U, UINT64_MAX);
        break;
    case 3:
        receipt->seq = pfr_cbor_integer(reader, 0U, MAX_SEQ);
        break;
    case 4:
        receipt->verdict = read_verdict(reader);
        break;
    case 5:
        receipt->reason = pfr_cbor_text(reader);
        if (receipt->reason.size > MAX_REASON_BYTES) {
            pfr_cbor_refuse(reader, PFR_E_SCHEMA);
        }
        break;
    case 6:
        receipt->version = pfr_cbor_integer(reader, 0U, MAX_SEQ);
        break;
    case 7:
        receipt->staleness = pfr_cbor_integer(reader, 0U, MAX_SEQ);
        break;
    default:
        receipt->check_in_s = pfr_cbor_real(reader, 0.0, A_WEEK_S);
        break;
    }
}

pfr_status pfr_receipt_decode(const uint8_t *payload, size_t size, pfr_receipt *receipt)
{
    pfr_cbor_reader reader;
    if (receipt == NULL) {
        return PFR_E_ARGUMENT;
    }
    memset(receipt, 0, sizeof *receipt);
    pfr_cbor_begin(&reader, payload, size);
    read_map(&reader, RECEIPT_FIELDS, COUNT_OF(RECEIPT_FIELDS), read_receipt_field, receipt);
    return pfr_cbor_end(&reader);
}

/* ---- chunk ---- */

static const char *const CHUNK_FIELDS[] = {"v", "type", "digest", "index", "count", "size", "data"};

static void read_chunk_field(pfr_cbor_reader *reader, int field, void *into)
{
    pfr_chunk *chunk = into;
    switch (field) {
    case 0:
        read_version(reader);
        break;
    case 1:
        read_type(reader, "chunk");
        break;
    case 2:
        chunk->digest = pfr_cbor_bytes(reader, DIGEST_PREFIX_BYTES, DIGEST_PREFIX_BYTES).at;
        break;
    case 3:
        chunk->index = integer(reader, 0U, MAX_CHUNKS - 1U);
        break;
    case 4:
        chunk->count = integer(reader, 1U, MAX_CHUNKS);
        break;
    case 5:
        chunk->size = (uint32_t)pfr_cbor_integer(reader, 1U, MAX_TRANSFER_BYTES);
        break;
    default:
        chunk->data = pfr_cbor_bytes(reader, 1U, PFR_CHUNK_BYTES);
        break;
    }
}

pfr_status pfr_chunk_decode(const uint8_t *payload, size_t size, pfr_chunk *chunk)
{
    pfr_cbor_reader reader;
    if (chunk == NULL) {
        return PFR_E_ARGUMENT;
    }
    memset(chunk, 0, sizeof *chunk);
    pfr_cbor_begin(&reader, payload, size);
    read_map(&reader, CHUNK_FIELDS, COUNT_OF(CHUNK_FIELDS), read_chunk_field, chunk);
    const pfr_status status = pfr_cbor_end(&reader);
    if (status != PFR_OK) {
        return status;
    }
    return (chunk->index < chunk->count) ? PFR_OK : PFR_E_SCHEMA;
}

/* ---- a step between versions ---- */

pfr_status pfr_step_check(const uint8_t *bytes, size_t size, uint32_t rows, uint32_t dim, uint32_t *n_rows)
{
    if ((bytes == NULL) || (n_rows == NULL) || (rows < 1U) || (rows > PFR_MAX_ROWS) || (dim < 1U) ||
        (dim > PFR_MAX_DIM)) {
        return PFR_E_ARGUMENT;
    }
    const size_t row_bytes = 4U + (4U * (size_t)dim);
    const size_t count = size / row_bytes;
    if ((count < 1U) || ((size % row_bytes) != 0U) || (count > rows)) {
        return PFR_E_SCHEMA;
    }
    for (uint32_t i = 0U; i < (uint32_t)count; i++) {
        const uint32_t row = pfr_step_row(bytes, i);
        if ((row >= rows) || ((i > 0U) && (row <= pfr_step_row(bytes, i - 1U)))) {
            return PFR_E_SCHEMA;
        }
    }
    if (!floats_finite(&bytes[4U * count], count * dim)) {
        return PFR_E_NOT_FINITE;
    }
    *n_rows = (uint32_t)count;
    return PFR_OK;
}

uint32_t pfr_step_row(const uint8_t *bytes, uint32_t nth)
{
    return little_endian(&bytes[4U * (size_t)nth]);
}

void pfr_step_values(const uint8_t *bytes, uint32_t n_rows, uint32_t nth, uint32_t dim, float *values)
{
    pfr_read_floats(&bytes[4U * ((size_t)n_rows + ((size_t)nth * dim))], dim, values);
}
