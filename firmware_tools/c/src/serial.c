#include "../include/pfedrec/serial.h"

#include <string.h>

enum { STATE = 0x01, WANT = 0x02, PART = 0x03, PASSED = 0x04 };

/* ---- writing ---- */

static size_t put(uint8_t *message, size_t at, uint64_t value, uint32_t bytes)
{
    for (uint32_t i = 0U; i < bytes; i++) {
        message[at + i] = (uint8_t)((value >> (8U * i)) & 0xFFU);
    }
    return at + bytes;
}

size_t pfr_serial_state_write(const pfr_serial_state *state, const char *device,
                              uint8_t message[PFR_SERIAL_STATE_BYTES])
{
    const size_t id = (device == NULL) ? 0U : strlen(device);
    if ((state == NULL) || (message == NULL) || (id < 1U) || (id > PFR_SERIAL_ID_BYTES)) {
        return 0U;
    }
    size_t at = put(message, 0U, STATE, 1U);
    at = put(message, at, PFR_SERIAL_VERSION, 1U);
    at = put(message, at, (uint64_t)state->table_format, 1U);
    at = put(message, at, state->room, 2U);
    at = put(message, at, state->package_room, 4U);
    at = put(message, at, state->incarnation, 8U);
    at = put(message, at, state->seq, 8U);
    at = put(message, at, state->pending, 8U);
    at = put(message, at, state->instance, 8U);
    at = put(message, at, state->version, 8U);
    at = put(message, at, state->crc, 4U);
    at = put(message, at, state->size, 4U);
    at = put(message, at, state->revision, 8U);
    at = put(message, at, state->known, 4U);
    memcpy(&message[at], device, id);
    return at + id;
}

size_t pfr_serial_want_write(uint32_t crc, uint32_t offset, uint16_t size, uint8_t message[PFR_SERIAL_WANT_BYTES])
{
    size_t at = put(message, 0U, WANT, 1U);
    at = put(message, at, crc, 4U);
    at = put(message, at, offset, 4U);
    return put(message, at, size, 2U);
}

size_t pfr_serial_part_write(uint64_t incarnation, uint64_t seq, uint32_t size, uint32_t crc, uint32_t offset,
                             uint8_t message[PFR_SERIAL_PART_BYTES])
{
    size_t at = put(message, 0U, PART, 1U);
    at = put(message, at, incarnation, 8U);
    at = put(message, at, seq, 8U);
    at = put(message, at, size, 4U);
    at = put(message, at, crc, 4U);
    return put(message, at, offset, 4U);
}

size_t pfr_serial_passed_write(uint64_t seq, pfr_status status, uint8_t message[PFR_SERIAL_PASSED_BYTES])
{
    size_t at = put(message, 0U, PASSED, 1U);
    at = put(message, at, seq, 8U);
    return put(message, at, (uint64_t)status, 1U);
}

/* ---- reading. Lengths are checked first, once for each kind. ---- */

typedef struct reader {
    const uint8_t *bytes;
    size_t at;
} reader;

static uint64_t take(reader *from, uint32_t bytes)
{
    uint64_t value = 0U;
    for (uint32_t i = 0U; i < bytes; i++) {
        value |= (uint64_t)from->bytes[from->at + i] << (8U * i);
    }
    from->at += bytes;
    return value;
}

static uint32_t take_u32(reader *from)
{
    return (uint32_t)take(from, 4U);
}

static pfr_status read_offer(reader *from, pfr_serial_answer *answer)
{
    answer->instance = take(from, 8U);
    answer->version = take(from, 8U);
    answer->crc = take_u32(from);
    answer->model = take_u32(from);
    answer->mask = take_u32(from);
    answer->head = take_u32(from);
    return PFR_OK;
}

pfr_status pfr_serial_read(const uint8_t *message, size_t size, pfr_serial_answer *answer)
{
    /* Bytes of each kind, from 0x81 on. */
    static const uint8_t SIZES[] = {10U, 33U, PFR_SERIAL_PIECE_BYTES, 25U, 21U, 18U, 9U, 2U};
    if ((message == NULL) || (answer == NULL)) {
        return PFR_E_ARGUMENT;
    }
    if (size < 1U) {
        return PFR_E_MALFORMED;
    }
    const uint32_t kind = message[0];
    if ((kind < (uint32_t)PFR_SERIAL_IDLE) || (kind > (uint32_t)PFR_SERIAL_REFUSED)) {
        return PFR_E_SCHEMA;
    }
    const size_t expected = SIZES[kind - (uint32_t)PFR_SERIAL_IDLE];
    if ((size < expected) || ((size > expected) && (kind != (uint32_t)PFR_SERIAL_PIECE))) {
        return PFR_E_MALFORMED;
    }
    reader from = {message, 1U};
    memset(answer, 0, sizeof *answer);
    answer->kind = (pfr_serial_kind)kind;
    switch (answer->kind) {
    case PFR_SERIAL_IDLE:
        answer->time = take(&from, 8U);
        answer->online = (uint32_t)take(&from, 1U);
        break;
    case PFR_SERIAL_OFFER:
        return read_offer(&from, answer);
    case PFR_SERIAL_PIECE:
        answer->crc = take_u32(&from);
        answer->offset = take_u32(&from);
        answer->data.at = &message[PFR_SERIAL_PIECE_BYTES];
        answer->data.size = (uint32_t)(size - PFR_SERIAL_PIECE_BYTES);
        break;
    case PFR_SERIAL_CONTRIBUTE:
        answer->instance = take(&from, 8U);
        answer->version = take(&from, 8U);
        answer->seq = take(&from, 8U);
        break;
    case PFR_SERIAL_SEND:
    case PFR_SERIAL_ANSWERED:
        answer->incarnation = take(&from, 8U);
        answer->seq = take(&from, 8U);
        if (answer->kind == PFR_SERIAL_SEND) {
            answer->offset = take_u32(&from);
        } else {
            answer->verdict = (uint32_t)take(&from, 1U);
        }
        break;
    case PFR_SERIAL_RENUMBER:
        answer->incarnation = take(&from, 8U);
        break;
    case PFR_SERIAL_REFUSED:
    default:
        answer->reason = (uint32_t)take(&from, 1U);
        break;
    }
    return PFR_OK;
}
