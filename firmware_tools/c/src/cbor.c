#include "pfedrec_cbor.h"

#include <math.h>
#include <string.h>

void pfr_cbor_begin(pfr_cbor_reader *reader, const uint8_t *bytes, size_t size)
{
    reader->bytes = bytes;
    reader->size = size;
    reader->at = 0U;
    reader->status = ((bytes == NULL) || (size > PFR_MAX_MESSAGE_BYTES)) ? PFR_E_MALFORMED : PFR_OK;
}

pfr_status pfr_cbor_end(const pfr_cbor_reader *reader)
{
    if (reader->status != PFR_OK) {
        return reader->status;
    }
    return (reader->at == reader->size) ? PFR_OK : PFR_E_MALFORMED;
}

void pfr_cbor_refuse(pfr_cbor_reader *reader, pfr_status status)
{
    if (reader->status == PFR_OK) {
        reader->status = status;
    }
}

/* Take so many bytes; null where they run past the end. */
static const uint8_t *take(pfr_cbor_reader *reader, uint64_t count)
{
    if (reader->status != PFR_OK) {
        return NULL;
    }
    if (count > (uint64_t)(reader->size - reader->at)) {
        pfr_cbor_refuse(reader, PFR_E_MALFORMED);
        return NULL;
    }
    const uint8_t *bytes = &reader->bytes[reader->at];
    reader->at += (size_t)count;
    return bytes;
}

/* Read an item's head; give its major type, -1 after an error. */
static int item_head(pfr_cbor_reader *reader, uint32_t *additional, uint64_t *argument)
{
    const uint8_t *initial = take(reader, 1U);
    if (initial == NULL) {
        return -1;
    }
    const int major = (int)(*initial >> 5);
    *additional = *initial & 31U;
    *argument = *additional;
    if (*additional < 24U) {
        return major;
    }
    if (*additional > 27U) {
        pfr_cbor_refuse(reader, PFR_E_MALFORMED);
        return -1;
    }
    const uint32_t size = 1U << (*additional - 24U);
    const uint8_t *bytes = take(reader, size);
    if (bytes == NULL) {
        return -1;
    }
    *argument = 0U;
    for (uint32_t i = 0U; i < size; i++) {
        *argument = (*argument << 8) | bytes[i];
    }
    return major;
}

/* Read the head of an item that must be of one kind; give its argument. */
static uint64_t expect(pfr_cbor_reader *reader, int major)
{
    uint32_t additional = 0U;
    uint64_t argument = 0U;
    const int found = item_head(reader, &additional, &argument);
    if ((found >= 0) && (found != major)) {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    }
    return (reader->status == PFR_OK) ? argument : 0U;
}

static uint32_t count_of(pfr_cbor_reader *reader, int major)
{
    const uint64_t count = expect(reader, major);
    if (count > 512U) {
        pfr_cbor_refuse(reader, PFR_E_MALFORMED);
        return 0U;
    }
    return (uint32_t)count;
}

uint32_t pfr_cbor_map(pfr_cbor_reader *reader)
{
    return count_of(reader, PFR_CBOR_MAP);
}

uint32_t pfr_cbor_array(pfr_cbor_reader *reader)
{
    return count_of(reader, PFR_CBOR_ARRAY);
}

static pfr_bytes string(pfr_cbor_reader *reader, int major)
{
    pfr_bytes found = {NULL, 0U};
    const uint64_t size = expect(reader, major);
    const uint8_t *bytes = take(reader, size);
    if (bytes != NULL) {
        found.at = bytes;
        found.size = (uint32_t)size; /* no longer than the message */
    }
    return found;
}

/* The bytes of the UTF-8 sequence that begins with `first`; 0 if none does. `low` and `high` bound its second byte. */
static uint32_t sequence(uint8_t first, uint8_t *low, uint8_t *high)
{
    *low = 0x80U;
    *high = 0xBFU;
    if (first < 0x80U) {
        return 1U;
    }
    if ((first >= 0xC2U) && (first <= 0xDFU)) {
        return 2U;
    }
    if ((first & 0xF0U) == 0xE0U) {
        if (first == 0xE0U) {
            *low = 0xA0U; /* no overlong form */
        } else if (first == 0xEDU) {
            *high = 0x9FU; /* no surrogate */
        } else {
            /* any second byte */
        }
        return 3U;
    }
    if ((first >= 0xF0U) && (first <= 0xF4U)) {
        if (first == 0xF0U) {
            *low = 0x90U;
        } else if (first == 0xF4U) {
            *high = 0x8FU; /* nothing beyond U+10FFFF */
        } else {
            /* any second byte */
        }
        return 4U;
    }
    return 0U;
}

static int is_utf8(pfr_bytes text)
{
    uint32_t at = 0U;
    while (at < text.size) {
        uint8_t low, high;
        const uint32_t length = sequence(text.at[at], &low, &high);
        if ((length == 0U) || (length > (text.size - at))) {
            return 0;
        }
        for (uint32_t i = 1U; i < length; i++) {
            const uint8_t byte = text.at[at + i];
            if ((byte < low) || (byte > high)) {
                return 0;
            }
            low = 0x80U;
            high = 0xBFU;
        }
        at += length;
    }
    return 1;
}

pfr_bytes pfr_cbor_text(pfr_cbor_reader *reader)
{
    pfr_bytes text = string(reader, PFR_CBOR_TEXT);
    if (!is_utf8(text)) {
        pfr_cbor_refuse(reader, PFR_E_MALFORMED);
        text.size = 0U;
    }
    return text;
}

pfr_bytes pfr_cbor_bytes(pfr_cbor_reader *reader, uint32_t low, uint32_t high)
{
    const pfr_bytes found = string(reader, PFR_CBOR_BYTES);
    if ((found.size < low) || (found.size > high)) {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    }
    return found;
}

uint64_t pfr_cbor_integer(pfr_cbor_reader *reader, uint64_t low, uint64_t high)
{
    const uint64_t value = expect(reader, PFR_CBOR_UNSIGNED);
    if ((value < low) || (value > high)) {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    }
    return value;
}

double pfr_cbor_real(pfr_cbor_reader *reader, double low, double high)
{
    uint32_t additional = 0U;
    uint64_t argument = 0U;
    double value = 0.0;
    const int major = item_head(reader, &additional, &argument);
    if (major < 0) {
        return low;
    }
    if ((major == PFR_CBOR_SIMPLE) && (additional == 26U)) {
        const uint32_t bits = (uint32_t)argument;
        float single;
        memcpy(&single, &bits, sizeof single);
        value = (double)single;
    } else if ((major == PFR_CBOR_SIMPLE) && (additional == 27U)) {
        memcpy(&value, &argument, sizeof value);
    } else {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
        return low;
    }
    if (!((value >= low) && (value <= high))) { /* true for NaN */
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
        return low;
    }
    return value;
}

pfr_bytes pfr_cbor_floats(pfr_cbor_reader *reader)
{
    if (expect(reader, PFR_CBOR_TAG) != PFR_CBOR_TAG_FLOAT32) {
        pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    }
    const pfr_bytes values = string(reader, PFR_CBOR_BYTES);
    if ((values.size % 4U) != 0U) {
        pfr_cbor_refuse(reader, PFR_E_MALFORMED);
    }
    return values;
}

int pfr_cbor_take_null(pfr_cbor_reader *reader)
{
    if ((reader->status != PFR_OK) || (reader->at >= reader->size) || (reader->bytes[reader->at] != 0xF6U)) {
        return 0;
    }
    reader->at++;
    return 1;
}

int pfr_cbor_is(pfr_bytes text, const char *expected)
{
    const size_t size = strlen(expected);
    return (text.size == size) && (size > 0U) && (memcmp(text.at, expected, size) == 0);
}

int pfr_cbor_key(pfr_cbor_reader *reader, const char *const *names, uint32_t n_names, uint32_t *seen)
{
    const pfr_bytes key = pfr_cbor_text(reader);
    for (uint32_t nth = 0U; (reader->status == PFR_OK) && (nth < n_names); nth++) {
        if (pfr_cbor_is(key, names[nth])) {
            const uint32_t bit = (uint32_t)1U << nth;
            if ((*seen & bit) != 0U) {
                break;
            }
            *seen |= bit;
            return (int)nth;
        }
    }
    pfr_cbor_refuse(reader, PFR_E_SCHEMA);
    return -1;
}

uint32_t pfr_cbor_write_head(uint8_t bytes[PFR_CBOR_MAX_HEAD_BYTES], uint32_t major, uint64_t argument)
{
    uint32_t size = 0U, additional = (uint32_t)(argument & 31U);
    if (argument >= 24U) {
        additional = 24U;
        size = 1U;
        while ((size < 8U) && ((argument >> (8U * size)) != 0U)) {
            additional++;
            size *= 2U;
        }
    }
    bytes[0] = (uint8_t)((major << 5) | additional);
    for (uint32_t i = 0U; i < size; i++) {
        bytes[1U + i] = (uint8_t)((argument >> (8U * (size - 1U - i))) & 0xFFU);
    }
    return 1U + size;
}
