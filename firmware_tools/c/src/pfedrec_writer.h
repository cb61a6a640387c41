/**
 * @file
 * @brief Pieces of a message on their way to a sink; private to the core.
 */
#ifndef PFEDREC_WRITER_H
#define PFEDREC_WRITER_H

#include "../include/pfedrec/update.h"

/* Where bytes go. Without a sink they are only counted. */
typedef struct pfr_writer {
    pfr_sink sink;
    void *context;
    size_t used;
    int refused;
} pfr_writer;

/* An array of a body: its name and its CBOR tag. */
typedef struct pfr_array_form {
    const char *name;
    uint32_t tag;
} pfr_array_form;

void pfr_put(pfr_writer *out, const uint8_t *bytes, size_t size);
void pfr_put_head(pfr_writer *out, uint32_t major, uint64_t argument);
void pfr_put_text(pfr_writer *out, const char *text); /* of at most 16 bytes */
void pfr_put_integer(pfr_writer *out, const char *name, uint64_t value);
void pfr_put_u32(pfr_writer *out, uint32_t value);
void pfr_put_float(pfr_writer *out, float value);
void pfr_put_array_head(pfr_writer *out, const pfr_array_form *form, size_t size);

/* The body of the two factored encodings, of a pass that has cells; see factored.c. */
void pfr_put_factored(pfr_writer *out, pfr_pass *pass, int as_int8);
int pfr_factored_bounded(pfr_pass *pass);

#endif
