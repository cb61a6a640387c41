/**
 * @file
 * @brief A pass's change as the update message that an aggregator takes (docs/protocol.cddl), byte by byte.
 *
 * By rows the message is several times larger than the pass that it tells of, so it is made while it is sent:
 * bytes go to the caller's function in small pieces, and no buffer holds them all.
 */
#ifndef PFEDREC_UPDATE_H
#define PFEDREC_UPDATE_H

#include "pass.h"

#ifdef __cplusplus
extern "C" {
#endif

/** @brief How the changes are encoded; the head's plan names one. */
typedef enum pfr_encoding {
    PFR_AS_FLOAT32 = 0,      /**< Rows, exact. */
    PFR_AS_INT8 = 1,         /**< Rows in 8 bits a value. */
    PFR_AS_INT4 = 2,         /**< Rows in 4 bits a value. */
    PFR_AS_FACTORED = 3,     /**< The pass's own factors, exact: many times smaller, and the least work. */
    PFR_AS_FACTORED_INT8 = 4 /**< The factors in 8 bits a value: smaller still. */
} pfr_encoding;

/** @brief What names an update for ever, and the table that the pass started from. */
typedef struct pfr_update {
    uint64_t instance;     /**< From the head. */
    uint64_t incarnation;  /**< Drawn once, when the board's state was made. */
    uint64_t seq;          /**< 1 for the first update, then counting up; at most 2^53. */
    uint64_t base_version; /**< From the head; at most 2^53. */
    pfr_encoding encoding;
} pfr_update;

/** @brief Takes some bytes of the message; gives 0 when it has. */
typedef int (*pfr_sink)(void *context, const uint8_t *bytes, size_t size);

/** @brief Find an encoding by the name in a plan; PFR_AS_FLOAT32, which is exact, for one that is unknown here. */
pfr_encoding pfr_encoding_named(const char *name, size_t size);

/** @brief Give the size of the message without making it. 0 for an empty pass. */
size_t pfr_update_bytes(const pfr_update *update, pfr_pass *pass);

/**
 * @brief Make the message. A pass of more than 64 batches is sent by rows where its factors were asked for.
 * @retval PFR_E_NOTHING     When the pass is empty.
 * @retval PFR_E_NOT_FINITE  When a change is not finite or beyond 1e30; no byte was given to the sink.
 * @retval PFR_E_SINK        When the sink refused bytes.
 */
pfr_status pfr_update_encode(const pfr_update *update, pfr_pass *pass, pfr_sink sink, void *context);

/** @brief A sink into memory. */
typedef struct pfr_buffer {
    uint8_t *bytes;
    size_t size, used;
} pfr_buffer;

/** @brief Append to a `pfr_buffer`; gives 1, and appends nothing, where there is too little room. */
int pfr_buffer_append(void *context, const uint8_t *bytes, size_t size);

#ifdef __cplusplus
}
#endif

#endif
