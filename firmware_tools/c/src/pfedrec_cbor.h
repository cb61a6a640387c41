/**
 * @file
 * @brief CBOR (RFC 8949) as the protocol uses it; private to the core.
 *
 * Reading follows broker/protocol/wire.py: definite lengths only, no simple value but false, true and null, no
 * half-precision float, no tag but those of typed arrays.
 */
#ifndef PFEDREC_CBOR_H
#define PFEDREC_CBOR_H

#include "../include/pfedrec/messages.h"

#define PFR_CBOR_MAX_HEAD_BYTES 9U

/* Major types. */
enum {
    PFR_CBOR_UNSIGNED = 0,
    PFR_CBOR_NEGATIVE,
    PFR_CBOR_BYTES,
    PFR_CBOR_TEXT,
    PFR_CBOR_ARRAY,
    PFR_CBOR_MAP,
    PFR_CBOR_TAG,
    PFR_CBOR_SIMPLE
};

#define PFR_CBOR_TAG_UINT32 70U /* RFC 8746, little endian */
#define PFR_CBOR_TAG_SINT8 72U
#define PFR_CBOR_TAG_FLOAT32 85U

/* ---- reading. Once something was wrong, `status` says so, and all that is read afterwards is empty. ---- */

typedef struct pfr_cbor_reader {
    const uint8_t *bytes;
    size_t size, at;
    pfr_status status;
} pfr_cbor_reader;

void pfr_cbor_begin(pfr_cbor_reader *reader, const uint8_t *bytes, size_t size);

/* Whether there was no error and nothing is left. */
pfr_status pfr_cbor_end(const pfr_cbor_reader *reader);

/* An item of another kind is PFR_E_SCHEMA, one that runs past the end PFR_E_MALFORMED. */
uint32_t pfr_cbor_map(pfr_cbor_reader *reader);
uint32_t pfr_cbor_array(pfr_cbor_reader *reader);
pfr_bytes pfr_cbor_text(pfr_cbor_reader *reader);
pfr_bytes pfr_cbor_bytes(pfr_cbor_reader *reader, uint32_t low, uint32_t high);
uint64_t pfr_cbor_integer(pfr_cbor_reader *reader, uint64_t low, uint64_t high);
double pfr_cbor_real(pfr_cbor_reader *reader, double low, double high);
pfr_bytes pfr_cbor_floats(pfr_cbor_reader *reader);
int pfr_cbor_take_null(pfr_cbor_reader *reader);

/* Fail, unless something has failed before. */
void pfr_cbor_refuse(pfr_cbor_reader *reader, pfr_status status);

/* Tell whether a text is this one. */
int pfr_cbor_is(pfr_bytes text, const char *expected);

/* Read a map's next key; give its place among `names`. Any other key, or one that `seen` has, is refused: -1. */
int pfr_cbor_key(pfr_cbor_reader *reader, const char *const *names, uint32_t n_names, uint32_t *seen);

/* ---- writing ---- */

/* Write an item's head in its shortest form; give its size. */
uint32_t pfr_cbor_write_head(uint8_t bytes[PFR_CBOR_MAX_HEAD_BYTES], uint32_t major, uint64_t argument);

#endif
