/**
 * @file
 * @brief What a board and its gateway tell each other in frames (frame.h): docs/serial.md; edge/gateway/messages.py.
 *
 * The board asks, the gateway answers. Numbers are little endian; nothing here allocates or keeps anything.
 */
#ifndef PFEDREC_SERIAL_H
#define PFEDREC_SERIAL_H

#include "messages.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PFR_SERIAL_VERSION 1U
#define PFR_SERIAL_ID_BYTES 64U      /**< Of a device's id, at most. */
#define PFR_SERIAL_STATE_BYTES 133U  /**< Of a state, at most. */
#define PFR_SERIAL_WANT_BYTES 11U
#define PFR_SERIAL_PART_BYTES 29U    /**< Before the part's data. */
#define PFR_SERIAL_PASSED_BYTES 10U
#define PFR_SERIAL_PIECE_BYTES 9U    /**< Before a piece's data. */
#define PFR_SERIAL_MOST_BYTES 1100U  /**< Of a message to the gateway. */
#define PFR_SERIAL_LEAST_ROOM 128U   /**< Of a board for a message. */

/** @brief Who the board is and what it holds. */
typedef struct pfr_serial_state {
    pfr_format table_format; /**< What it scores from. */
    uint16_t room;           /**< Bytes of the longest message that it takes. */
    uint32_t package_room;   /**< Bytes of the largest package that it can hold. */
    uint64_t incarnation;    /**< 1 to 2^53, drawn when the board's state was made. */
    uint64_t seq;            /**< Of the newest update, 0 before the first. */
    uint64_t pending;        /**< The update that waits for its receipt: seq, or 0. */
    uint64_t instance, version;
    uint32_t crc, size; /**< Of the package that it holds; size 0: none. */
    uint64_t revision;  /**< Grows with each interaction, and when the user forgets some. */
    uint32_t known;     /**< Different items of the table that the user has interacted with. */
} pfr_serial_state;

/** @brief Kinds of answers. */
typedef enum pfr_serial_kind {
    PFR_SERIAL_IDLE = 0x81,       /**< time, online. */
    PFR_SERIAL_OFFER = 0x82,      /**< instance, version, crc; model, mask, head: bytes of each. */
    PFR_SERIAL_PIECE = 0x83,      /**< crc, offset, data. */
    PFR_SERIAL_CONTRIBUTE = 0x84, /**< instance, version, seq. */
    PFR_SERIAL_SEND = 0x85,       /**< incarnation, seq, offset. */
    PFR_SERIAL_ANSWERED = 0x86,   /**< incarnation, seq, verdict. */
    PFR_SERIAL_RENUMBER = 0x87,   /**< incarnation. */
    PFR_SERIAL_REFUSED = 0x88     /**< reason. */
} pfr_serial_kind;

/** @brief An answer; what its kind does not have is 0. */
typedef struct pfr_serial_answer {
    pfr_serial_kind kind;
    uint64_t time; /**< Seconds since 1970. */
    uint64_t instance, version, incarnation, seq;
    uint32_t crc, offset, model, mask, head;
    uint32_t online, verdict, reason;
    pfr_bytes data; /**< Points into the message. */
} pfr_serial_answer;

/** @brief Write a state; give its bytes, 0 where the id is empty or too long. */
size_t pfr_serial_state_write(const pfr_serial_state *state, const char *device,
                              uint8_t message[PFR_SERIAL_STATE_BYTES]);

/** @brief Write what asks for a piece of a package. */
size_t pfr_serial_want_write(uint32_t crc, uint32_t offset, uint16_t size, uint8_t message[PFR_SERIAL_WANT_BYTES]);

/** @brief Write what stands before a part of an update; the whole has so many bytes and this CRC-32. */
size_t pfr_serial_part_write(uint64_t incarnation, uint64_t seq, uint32_t size, uint32_t crc, uint32_t offset,
                             uint8_t message[PFR_SERIAL_PART_BYTES]);

/** @brief Write that the pass asked for came to no update. */
size_t pfr_serial_passed_write(uint64_t seq, pfr_status status, uint8_t message[PFR_SERIAL_PASSED_BYTES]);

/**
 * @brief Read an answer.
 * @retval PFR_E_MALFORMED  When it has another length than its kind.
 * @retval PFR_E_SCHEMA     When it is of no kind that is known here.
 */
pfr_status pfr_serial_read(const uint8_t *message, size_t size, pfr_serial_answer *answer);

#ifdef __cplusplus
}
#endif

#endif
