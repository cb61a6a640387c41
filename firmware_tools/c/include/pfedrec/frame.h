/**
 * @file
 * @brief Frames on a serial line: messages told apart and checked; the twin of edge/gateway/frames.py.
 *
 * A frame is a zero, the message and its CRC-32 in COBS, and a zero. Within a frame there is no zero, so that whatever
 * the line has lost or changed, the next zero begins anew.
 */
#ifndef PFEDREC_FRAME_H
#define PFEDREC_FRAME_H

#include "update.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PFR_FRAME_CRC_BYTES 4U /**< Behind each message. */

/** @brief Most bytes on the line for a message of so many. */
#define PFR_FRAME_BYTES(size) ((size) + PFR_FRAME_CRC_BYTES + (((size) + PFR_FRAME_CRC_BYTES) / 254U) + 3U)

/** @brief Takes a line's bytes one by one. Begin it with `pfr_frame_begin`. */
typedef struct pfr_frame_reader {
    uint8_t *bytes;   /**< The caller's; begins with the message when one is complete. */
    size_t room;      /**< Bytes there; the longest message is PFR_FRAME_CRC_BYTES shorter. */
    size_t size;      /**< Of the message, when one is complete. */
    uint32_t dropped; /**< Frames that were damaged, cut off or too long. */
    size_t used;      /**< Private, as all below. */
    uint8_t left;     /**< Bytes to come in this run. */
    int zero_due;     /**< Whether a zero follows if the frame goes on. */
    int spoiled;      /**< Whether the frame is damaged or too long. */
    int begun;        /**< Whether a byte of the frame has come. */
} pfr_frame_reader;

/** @brief Begin to read, into memory for a message and its CRC. */
void pfr_frame_begin(pfr_frame_reader *reader, uint8_t *bytes, size_t room);

/** @brief Take a byte; give 1 when it completes a message, which stays in `bytes` until the next byte is taken. */
int pfr_frame_take(pfr_frame_reader *reader, uint8_t byte);

/**
 * @brief Give a message's frame to a sink, in small pieces.
 * @retval PFR_E_ARGUMENT  When the message is empty.
 * @retval PFR_E_SINK      When the sink refused bytes.
 */
pfr_status pfr_frame_write(const uint8_t *message, size_t size, pfr_sink sink, void *context);

#ifdef __cplusplus
}
#endif

#endif
