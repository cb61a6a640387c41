#include "../include/pfedrec/frame.h"

#include "../include/pfedrec/model.h"

#define LONGEST_RUN 254U

void pfr_frame_begin(pfr_frame_reader *reader, uint8_t *bytes, size_t room)
{
    reader->bytes = bytes;
    reader->room = room;
    reader->size = 0U;
    reader->dropped = 0U;
    reader->used = 0U;
    reader->left = 0U;
    reader->zero_due = 0;
    reader->spoiled = 0;
    reader->begun = 0;
}

static void put(pfr_frame_reader *reader, uint8_t byte)
{
    if (reader->used < reader->room) {
        reader->bytes[reader->used] = byte;
        reader->used++;
    } else {
        reader->spoiled = 1;
    }
}

static int is_sound(const pfr_frame_reader *reader)
{
    if (reader->spoiled || (reader->left > 0U) || (reader->used <= PFR_FRAME_CRC_BYTES)) {
        return 0;
    }
    const size_t size = reader->used - PFR_FRAME_CRC_BYTES;
    const uint8_t *crc = &reader->bytes[size];
    const uint32_t told = (uint32_t)crc[0] | ((uint32_t)crc[1] << 8) | ((uint32_t)crc[2] << 16) | ((uint32_t)crc[3] << 24);
    return told == pfr_crc32(0U, reader->bytes, size);
}

/* The frame has ended. */
static int end(pfr_frame_reader *reader)
{
    const int sound = is_sound(reader);
    if (sound) {
        reader->size = reader->used - PFR_FRAME_CRC_BYTES;
    }
    if (!sound && reader->begun) {
        reader->dropped++;
    }
    reader->used = 0U;
    reader->left = 0U;
    reader->zero_due = 0;
    reader->spoiled = 0;
    reader->begun = 0;
    return sound;
}

int pfr_frame_take(pfr_frame_reader *reader, uint8_t byte)
{
    if (byte == 0U) {
        return end(reader);
    }
    reader->begun = 1;
    if (reader->left > 0U) {
        put(reader, byte);
        reader->left--;
    } else {
        if (reader->zero_due) {
            put(reader, 0U);
        }
        reader->left = (uint8_t)(byte - 1U);
        reader->zero_due = (byte <= LONGEST_RUN);
    }
    return 0;
}

/* The n-th byte of a message with its CRC. */
static uint8_t content_at(const uint8_t *message, size_t size, const uint8_t crc[PFR_FRAME_CRC_BYTES], size_t nth)
{
    return (nth < size) ? message[nth] : crc[nth - size];
}

pfr_status pfr_frame_write(const uint8_t *message, size_t size, pfr_sink sink, void *context)
{
    static const uint8_t zero = 0U;
    if ((message == NULL) || (size == 0U) || (sink == NULL)) {
        return PFR_E_ARGUMENT;
    }
    const uint32_t sum = pfr_crc32(0U, message, size);
    const uint8_t crc[PFR_FRAME_CRC_BYTES] = {(uint8_t)(sum & 0xFFU), (uint8_t)((sum >> 8) & 0xFFU),
                                              (uint8_t)((sum >> 16) & 0xFFU), (uint8_t)(sum >> 24)};
    const size_t total = size + PFR_FRAME_CRC_BYTES;
    int refused = sink(context, &zero, 1U);
    size_t at = 0U;
    int more = 1;
    while (more && !refused) {
        /* One run: up to the next zero, the end, or as long as a run can be. */
        uint8_t run[LONGEST_RUN + 1U];
        size_t length = 0U;
        int at_zero = 0;
        while ((length < LONGEST_RUN) && ((at + length) < total) && !at_zero) {
            const uint8_t byte = content_at(message, size, crc, at + length);
            at_zero = (byte == 0U);
            if (!at_zero) {
                length++;
                run[length] = byte;
            }
        }
        run[0] = (uint8_t)(length + 1U);
        refused = sink(context, run, length + 1U);
        at += length;
        /* A full run stands for no zero: one that comes next, or the end, has a run of its own. */
        more = (length == LONGEST_RUN) || at_zero;
        if (at_zero) {
            at++;
        }
    }
    if (!refused) {
        refused = sink(context, &zero, 1U);
    }
    return refused ? PFR_E_SINK : PFR_OK;
}
