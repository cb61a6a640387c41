/**
 * @file
 * @brief What an aggregator sends, decoded as if every byte came from an enemy.
 *
 * A decoder accepts exactly what broker/protocol/messages.py accepts: the same fields, ranges and relations
 * between fields; nothing unknown, missing or repeated. What it gives points into the payload, which must live
 * as long.
 */
#ifndef PFEDREC_MESSAGES_H
#define PFEDREC_MESSAGES_H

#include "pass.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PFR_PROTOCOL_VERSION 1U       /**< Of all messages here. */
#define PFR_MAX_MESSAGE_BYTES 131072U /**< Of any message. */
#define PFR_CHUNK_BYTES 122880U       /**< Data in one chunk. */
#define PFR_MAX_DELTAS 8U             /**< In a head. */
#define PFR_MAX_GROUPS 16U            /**< In an offer. */

/** @brief Some bytes of a payload. */
typedef struct pfr_bytes {
    const uint8_t *at;
    uint32_t size;
} pfr_bytes;

/** @brief How devices take part. */
typedef struct pfr_plan {
    pfr_hyperparameters hyperparameters; /**< A batch size of 65536 is one that `pfr_pass_run` refuses. */
    pfr_bytes encoding;                  /**< A name, ASCII. */
    double check_in_s;
    uint32_t max_idle_passes;
    double taste_recency, taste_strength;
    double guard; /**< The share of devices to report a version's quality; this core reports none. */
} pfr_plan;

/** @brief A step between two versions that is on offer. */
typedef struct pfr_delta {
    uint64_t version;
    uint32_t size;
    const uint8_t *digest; /**< 8 bytes. */
} pfr_delta;

/** @brief A release for devices; this core takes none. */
typedef struct pfr_offer {
    uint64_t release; /**< Its number; 0: nothing is on offer. */
    uint32_t size;
    const uint8_t *sha256; /**< 32 bytes. */
    uint32_t percent, n_groups;
} pfr_offer;

/** @brief The manifest of the newest version. */
typedef struct pfr_head {
    uint64_t instance, session, version;
    uint32_t rows, dim;
    const uint8_t *sha256; /**< 32 bytes. */
    uint32_t slot, chunks;
    uint32_t catalogue_rows, catalogue_chunks, catalogue_bytes;
    const uint8_t *catalogue_sha256; /**< 32 bytes. */
    pfr_plan plan;
    pfr_bytes w; /**< dim float32, little endian, not aligned: see `pfr_read_floats`. */
    double b;
    uint32_t n_deltas;
    pfr_delta deltas[PFR_MAX_DELTAS];
    const uint8_t *signature; /**< 64 bytes, or null. */
    pfr_offer offer;
} pfr_head;

/** @brief What became of an update. */
typedef enum pfr_verdict { PFR_ACCEPTED = 0, PFR_DUPLICATE, PFR_STALE, PFR_REJECTED } pfr_verdict;

/** @brief The aggregator's answer to an update. */
typedef struct pfr_receipt {
    uint64_t incarnation, seq;
    pfr_verdict verdict;
    pfr_bytes reason; /**< UTF-8. */
    uint64_t version, staleness;
    double check_in_s;
} pfr_receipt;

/** @brief A part of a table, a catalogue, or a step. */
typedef struct pfr_chunk {
    const uint8_t *digest; /**< 8 bytes. */
    uint32_t index, count, size;
    pfr_bytes data;
} pfr_chunk;

/** @brief Read a head. */
pfr_status pfr_head_decode(const uint8_t *payload, size_t size, pfr_head *head);

/** @brief Read a receipt. */
pfr_status pfr_receipt_decode(const uint8_t *payload, size_t size, pfr_receipt *receipt);

/** @brief Read a chunk. */
pfr_status pfr_chunk_decode(const uint8_t *payload, size_t size, pfr_chunk *chunk);

/**
 * @brief Check a step between versions (broker/protocol/deltas.py) and give the number of its rows.
 *
 * The rows come first, ascending, 4 bytes each, then their new values; see `pfr_delta_row`.
 *
 * @param rows  Of the table that the step leads to.
 */
pfr_status pfr_step_check(const uint8_t *bytes, size_t size, uint32_t rows, uint32_t dim, uint32_t *n_rows);

/** @brief Give the number of the n-th row of a step that was checked. */
uint32_t pfr_step_row(const uint8_t *bytes, uint32_t nth);

/** @brief Give the new values of the n-th row of a step that was checked; dim values. */
void pfr_step_values(const uint8_t *bytes, uint32_t n_rows, uint32_t nth, uint32_t dim, float *values);

/** @brief Read little-endian float32 that need not be aligned. */
void pfr_read_floats(const uint8_t *bytes, uint32_t count, float *values);

#ifdef __cplusplus
}
#endif

#endif
