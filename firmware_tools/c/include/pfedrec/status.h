/**
 * @file
 * @brief What a call came to, and the attributes that headers need.
 */
#ifndef PFEDREC_STATUS_H
#define PFEDREC_STATUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** @brief What a call came to. Unless a function says otherwise, a failed call has changed nothing but scratch. */
typedef enum pfr_status {
    PFR_OK = 0,         /**< Done. */
    PFR_E_ARGUMENT,     /**< An argument is null, out of its range, or contradicts another. */
    PFR_E_ROOM,         /**< A buffer of the caller is too small. */
    PFR_E_MALFORMED,    /**< Bytes that are not the subset of CBOR that the protocol uses. */
    PFR_E_SCHEMA,       /**< Well formed, but not the message that it should be. */
    PFR_E_FORMAT,       /**< Bytes that are no model, or one of another format. */
    PFR_E_CHECKSUM,     /**< A model whose bytes have changed. */
    PFR_E_NOT_FINITE,   /**< A pass that diverged: NaN, infinity, or a change beyond 1e30. */
    PFR_E_NOTHING,      /**< No interaction to learn from, or no item left to draw as a negative. */
    PFR_E_SINK          /**< What takes the encoded bytes refused them. */
} pfr_status;

/** @brief Give a status as a few English words, for a log. */
const char *pfr_status_text(pfr_status status);

#ifdef __cplusplus
}
#endif

#endif
