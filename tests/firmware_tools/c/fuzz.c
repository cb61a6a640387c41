/* One decoder of the core, given bytes by libFuzzer, or by the main function below where there is none.
 * The environment's TARGET chooses: 0 head, 1 receipt, 2 chunk, 3 step, 4 model, 5 a serial line's bytes,
 * 6 a gateway's answer. */
#include "pfedrec/pfedrec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a reader of the message would look at; so that a wrong pointer or length is found out. */
static volatile uint32_t looked_at;

static void look(const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        looked_at += bytes[i];
    }
}

static void try_head(const uint8_t *data, size_t size)
{
    pfr_head head;
    static float w[PFR_MAX_DIM];
    if (pfr_head_decode(data, size, &head) == PFR_OK) {
        look(head.sha256, 32);
        look(head.catalogue_sha256, 32);
        look(head.plan.encoding.at, head.plan.encoding.size);
        pfr_read_floats(head.w.at, head.dim, w);
        for (uint32_t i = 0; i < head.n_deltas; i++) {
            look(head.deltas[i].digest, 8);
        }
        if (head.signature != NULL) {
            look(head.signature, 64);
        }
    }
}

static void try_receipt(const uint8_t *data, size_t size)
{
    pfr_receipt receipt;
    if (pfr_receipt_decode(data, size, &receipt) == PFR_OK) {
        look(receipt.reason.at, receipt.reason.size);
    }
}

static void try_chunk(const uint8_t *data, size_t size)
{
    pfr_chunk chunk;
    if (pfr_chunk_decode(data, size, &chunk) == PFR_OK) {
        look(chunk.digest, 8);
        look(chunk.data.at, chunk.data.size);
    }
}

/* The first two bytes choose the table's shape. */
static void try_step(const uint8_t *data, size_t size)
{
    uint32_t n_rows = 0;
    static float values[64];
    if (size < 2) {
        return;
    }
    const uint32_t rows = 1U + data[0], dim = 1U + (data[1] & 63U);
    if (pfr_step_check(data + 2, size - 2, rows, dim, &n_rows) == PFR_OK) {
        for (uint32_t i = 0; i < n_rows; i++) {
            pfr_step_values(data + 2, n_rows, i, dim, values);
            if (pfr_step_row(data + 2, i) >= rows) {
                abort();
            }
        }
    }
}

/* Of every other input the checksum is made right: what comes after it must hold by itself. */
static void try_model(const uint8_t *data, size_t size)
{
    pfr_model model;
    uint8_t *copy = malloc(size ? size : 1);
    if (copy == NULL) {
        abort();
    }
    memcpy(copy, data, size);
    if (size >= PFR_MODEL_HEADER_BYTES && (data[size - 1] & 1U) != 0U) {
        const uint32_t crc = pfr_crc32(0, copy + 24, size - 24);
        memcpy(copy + 20, &crc, sizeof crc);
    }
    if (pfr_model_decode(copy, size, &model) == PFR_OK) {
        float total = 0.0F;
        for (uint32_t row = 0; row < model.table.rows; row++) {
            total += pfr_logit(&model.table, row, model.w, model.b) + pfr_dot(model.mean, model.w, model.table.dim);
        }
        looked_at += total > 0.0F;
    }
    free(copy);
}

/* The first byte is the room. What was read is written again, and must be read as the same. */
static void try_frames(const uint8_t *data, size_t size)
{
    static uint8_t line[PFR_FRAME_BYTES(256U)], again[256U + PFR_FRAME_CRC_BYTES];
    pfr_frame_reader reader, second;
    if (size < 1U) {
        return;
    }
    uint8_t *bytes = malloc(data[0] + PFR_FRAME_CRC_BYTES);
    if (bytes == NULL) {
        abort();
    }
    pfr_frame_begin(&reader, bytes, data[0] + PFR_FRAME_CRC_BYTES);
    for (size_t i = 1; i < size; i++) {
        if (pfr_frame_take(&reader, data[i])) {
            pfr_buffer buffer = {line, sizeof line, 0};
            int complete = 0;
            look(bytes, reader.size);
            if (reader.size > data[0] || pfr_frame_write(bytes, reader.size, pfr_buffer_append, &buffer) != PFR_OK) {
                abort();
            }
            pfr_frame_begin(&second, again, sizeof again);
            for (size_t k = 0; k < buffer.used; k++) {
                complete += pfr_frame_take(&second, line[k]);
            }
            if (complete != 1 || second.size != reader.size || memcmp(again, bytes, reader.size) != 0) {
                abort();
            }
        }
    }
    free(bytes);
}

static void try_answer(const uint8_t *data, size_t size)
{
    pfr_serial_answer answer;
    if (pfr_serial_read(data, size, &answer) == PFR_OK) {
        look(answer.data.at, answer.data.size);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const targets[])(const uint8_t *, size_t) = {try_head, try_receipt, try_chunk,
                                                               try_step, try_model,   try_frames, try_answer};
    static void (*target)(const uint8_t *, size_t);
    if (target == NULL) {
        const char *chosen = getenv("TARGET");
        if (chosen == NULL || chosen[0] < '0' || chosen[0] > '6') {
            abort();
        }
        target = targets[chosen[0] - '0'];
    }
    target(data, size);
    return 0;
}

#ifdef OWN_MAIN
/* fuzz RUNS SEED FILE...: mutations of the files, each in memory of exactly its size. */

static uint64_t state;

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33) % below;
}

int main(int argc, char **argv)
{
    enum { MOST = 1 << 16, FILES = 64 };
    static uint8_t contents[FILES][MOST];
    static uint8_t input[2 * MOST];
    size_t sizes[FILES];
    int n_files = 0;
    if (argc < 4) {
        return 2;
    }
    state = strtoull(argv[2], NULL, 10) * 2654435769U + 1U;
    for (int i = 3; i < argc && n_files < FILES; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) {
            return 2;
        }
        sizes[n_files] = fread(contents[n_files], 1, MOST, file);
        (void)fclose(file);
        n_files++;
    }
    for (unsigned long long run = strtoull(argv[1], NULL, 10); run > 0; run--) {
        const uint32_t file = draw((uint32_t)n_files);
        size_t size = sizes[file];
        memcpy(input, contents[file], size);
        for (uint32_t changes = 1 + draw(4); changes > 0 && size > 0; changes--) {
            const uint32_t at = draw((uint32_t)size);
            switch (draw(6)) {
            case 0:
                input[at] ^= (uint8_t)(1U << draw(8));
                break;
            case 1:
                input[at] = (uint8_t)draw(256);
                break;
            case 2:
                input[at] = (uint8_t)("\x00\x18\x1b\x3b\x5b\x7b\x9f\xbf\xf6\xfb\xff\x7f"[draw(12)]);
                break;
            case 3:
                size = at;
                break;
            case 4: {
                const size_t gone = 1 + draw((uint32_t)(size - at < 30 ? size - at : 30));
                const size_t length = gone > size - at ? size - at : gone;
                memmove(input + at, input + at + length, size - at - length);
                size -= length;
                break;
            }
            default: {
                const size_t more = 1 + draw(30);
                if (size + more <= MOST) {
                    memmove(input + at + more, input + at, size - at);
                    for (size_t i = 0; i < more; i++) {
                        input[at + i] = (uint8_t)draw(256);
                    }
                    size += more;
                }
                break;
            }
            }
        }
        uint8_t *exact = malloc(size ? size : 1);
        if (exact == NULL) {
            return 2;
        }
        memcpy(exact, input, size);
        (void)LLVMFuzzerTestOneInput(exact, size);
        free(exact);
    }
    return 0;
}
#endif
