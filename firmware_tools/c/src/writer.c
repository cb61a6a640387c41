#include "pfedrec_cbor.h"
#include "pfedrec_writer.h"

#include <string.h>

void pfr_put(pfr_writer *out, const uint8_t *bytes, size_t size)
{
    out->used += size;
    if ((out->sink != NULL) && !out->refused && (size > 0U)) {
        out->refused = out->sink(out->context, bytes, size);
    }
}

void pfr_put_head(pfr_writer *out, uint32_t major, uint64_t argument)
{
    uint8_t bytes[PFR_CBOR_MAX_HEAD_BYTES];
    pfr_put(out, bytes, pfr_cbor_write_head(bytes, major, argument));
}

void pfr_put_text(pfr_writer *out, const char *text)
{
    uint8_t bytes[16];
    const size_t size = strlen(text); /* of our own words, all shorter */
    memcpy(bytes, text, size);
    pfr_put_head(out, PFR_CBOR_TEXT, size);
    pfr_put(out, bytes, size);
}

void pfr_put_integer(pfr_writer *out, const char *name, uint64_t value)
{
    pfr_put_text(out, name);
    pfr_put_head(out, PFR_CBOR_UNSIGNED, value);
}

void pfr_put_u32(pfr_writer *out, uint32_t value)
{
    const uint8_t bytes[4] = {(uint8_t)(value & 0xFFU), (uint8_t)((value >> 8) & 0xFFU),
                              (uint8_t)((value >> 16) & 0xFFU), (uint8_t)(value >> 24)};
    pfr_put(out, bytes, sizeof bytes);
}

void pfr_put_float(pfr_writer *out, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    pfr_put_u32(out, bits);
}

void pfr_put_array_head(pfr_writer *out, const pfr_array_form *form, size_t size)
{
    pfr_put_text(out, form->name);
    pfr_put_head(out, PFR_CBOR_TAG, form->tag);
    pfr_put_head(out, PFR_CBOR_BYTES, size);
}
