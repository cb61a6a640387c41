/* The core behind flat functions, for ctypes. Memory is allocated here, each piece of exactly the size that the
 * core may use, so that a sanitizer sees the first byte too far. */
#include "pfedrec/pfedrec.h"

#include <stdlib.h>
#include <string.h>

typedef struct room {
    pfr_pass pass;
    pfr_random random;
} room;

static void *exactly(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1U, size);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

static pfr_table table_of(const float *values, const int8_t *quantised, const uint16_t *multipliers, float unit,
                          uint32_t rows, uint32_t dim)
{
    const pfr_table table = {quantised ? PFR_INT8 : PFR_FLOAT32, rows, dim, values, quantised, multipliers, unit};
    return table;
}

#define TABLE                                                                                                   \
    const float *values, const int8_t *quantised, const uint16_t *multipliers, float unit, uint32_t rows,       \
        uint32_t dim
#define THE_TABLE const pfr_table table = table_of(values, quantised, multipliers, unit, rows, dim)

int shim_logits(TABLE, const float *w, float b, float *out)
{
    THE_TABLE;
    return (int)pfr_logits(&table, w, b, out);
}

int shim_mean(TABLE, float *out)
{
    THE_TABLE;
    return (int)pfr_table_mean(&table, out);
}

int shim_quantise_vector(const float *w, uint32_t dim, int16_t *vector, float *scale)
{
    return (int)pfr_quantise_vector(w, dim, vector, scale);
}

void shim_integer_scores(TABLE, const int16_t *vector, float scale, float b, int32_t *scores, float *logits)
{
    THE_TABLE;
    for (uint32_t row = 0; row < rows; row++) {
        scores[row] = pfr_integer_score(&table, row, vector);
        logits[row] = pfr_integer_logit(&table, scores[row], scale, b);
    }
}

/* Give the number of rows found, or minus the status. `vector` chooses integer scores, `pass` the own view. */
int shim_recommend(TABLE, const float *w, float b, const int16_t *vector, room *own, const uint32_t *masked,
                   uint32_t n_masked, uint32_t k, uint32_t *found, int32_t *keys)
{
    THE_TABLE;
    uint8_t *mask = exactly(PFR_MASK_BYTES(rows), 1);
    pfr_candidate *items = exactly(k, sizeof *items);
    pfr_best best;
    for (uint32_t i = 0; i < n_masked; i++) {
        pfr_mask_set(mask, masked[i]);
    }
    pfr_best_begin(&best, items, k);
    const pfr_status status = vector ? pfr_recommend_integer(&table, vector, n_masked ? mask : NULL, &best)
                              : own  ? pfr_recommend_own(&table, &own->pass, w, b, n_masked ? mask : NULL, &best)
                                     : pfr_recommend(&table, w, b, n_masked ? mask : NULL, &best);
    for (uint32_t i = 0; i < best.count; i++) {
        found[i] = items[i].row;
        keys[i] = items[i].key;
    }
    free(mask);
    free(items);
    return status == PFR_OK ? (int)best.count : -(int)status;
}

void shim_keys(const float *logits, uint32_t count, int32_t *keys, float *back)
{
    for (uint32_t i = 0; i < count; i++) {
        keys[i] = pfr_key_of_logit(logits[i]);
        back[i] = pfr_logit_of_key(keys[i]);
    }
}

int shim_taste(TABLE, const float *mean, const float *w, const uint32_t *items, uint32_t n_items, float recency,
               float strength, float *vector)
{
    THE_TABLE;
    float *scratch = exactly(dim, sizeof *scratch);
    const pfr_status status = pfr_taste(&table, mean, w, items, n_items, recency, strength, vector, scratch);
    free(scratch);
    return (int)status;
}

room *shim_room(uint32_t max_samples, uint32_t max_batches, uint32_t dim, const uint64_t *words)
{
    room *made = exactly(1, sizeof *made);
    pfr_pass *pass = &made->pass;
    pass->max_samples = max_samples;
    pass->max_batches = max_batches;
    pass->dim = dim;
    pass->rows = exactly(max_samples, sizeof *pass->rows);
    pass->counts = exactly(max_samples, sizeof *pass->counts);
    pass->cells = exactly(max_samples, sizeof *pass->cells);
    pass->starts = exactly(max_batches + 1U, sizeof *pass->starts);
    pass->cursors = exactly(max_batches, sizeof *pass->cursors);
    pass->vectors = exactly((size_t)max_batches * dim, sizeof *pass->vectors);
    pass->scratch = exactly(2U * ((size_t)dim + max_batches), sizeof *pass->scratch);
    pfr_random_begin(&made->random, words);
    return made;
}

void shim_free(room *made)
{
    free(made->pass.rows);
    free(made->pass.counts);
    free(made->pass.cells);
    free(made->pass.starts);
    free(made->pass.cursors);
    free(made->pass.vectors);
    free(made->pass.scratch);
    free(made);
}

int shim_pass(room *in, TABLE, float *w, float *b, const uint32_t *positives, uint32_t n_positives,
              const uint32_t *excluded, uint32_t n_excluded, double lr, double item_lr, double decay,
              uint32_t negatives, uint32_t batch_size)
{
    THE_TABLE;
    const pfr_hyperparameters settings = {lr, item_lr, decay, negatives, batch_size};
    return (int)pfr_pass_run(&in->pass, &table, w, b, positives, n_positives, excluded, n_excluded, &settings,
                             &in->random);
}

uint32_t shim_pass_rows(const room *in)
{
    return in->pass.n_rows;
}

/* Copy the rows and their changes; give how many there were. */
uint32_t shim_changes(room *in, uint32_t *rows, float *changes)
{
    uint32_t count = 0, row = 0;
    pfr_pass_rewind(&in->pass);
    while (pfr_pass_next(&in->pass, &row)) {
        rows[count] = row;
        memcpy(&changes[(size_t)count * in->pass.dim], pfr_pass_change(&in->pass), in->pass.dim * sizeof(float));
        count++;
    }
    return count;
}

/* Copy the pass's factors: each cell's row and coefficient, each batch's cells and vector. */
void shim_factors(const room *in, uint32_t *rows, float *coefficients, uint32_t *starts, float *vectors)
{
    const pfr_pass *pass = &in->pass;
    for (uint32_t cell = 0; cell < pass->starts[pass->n_batches]; cell++) {
        rows[cell] = pass->rows[cell] & 0x7FFFFFFFU;
        coefficients[cell] = pass->cells[cell].coefficient;
    }
    memcpy(starts, pass->starts, (pass->n_batches + 1U) * sizeof *starts);
    memcpy(vectors, pass->vectors, (size_t)pass->n_batches * pass->dim * sizeof *vectors);
}

size_t shim_update_bytes(room *in, uint64_t instance, uint64_t incarnation, uint64_t seq,
                         uint64_t base_version, const char *encoding)
{
    const pfr_update update = {instance, incarnation, seq, base_version,
                               pfr_encoding_named(encoding, strlen(encoding))};
    return pfr_update_bytes(&update, &in->pass);
}

int shim_update(room *in, uint64_t instance, uint64_t incarnation, uint64_t seq, uint64_t base_version,
                const char *encoding, uint8_t *bytes, size_t size, size_t *used)
{
    const pfr_update update = {instance, incarnation, seq, base_version,
                               pfr_encoding_named(encoding, strlen(encoding))};
    pfr_buffer buffer = {bytes, size, 0};
    const pfr_status status = pfr_update_encode(&update, &in->pass, pfr_buffer_append, &buffer);
    *used = buffer.used;
    return (int)status;
}

void shim_random(const uint64_t *words, uint32_t count, const uint32_t *bounds, uint32_t *scaled, uint64_t *whole)
{
    pfr_random random;
    pfr_random_begin(&random, words);
    for (uint32_t i = 0; i < count; i++) {
        whole[i] = pfr_random_u64(&random);
        scaled[i] = pfr_random_scaled(&random, bounds[i]);
    }
}

void shim_shuffle(const uint64_t *words, uint32_t count, uint32_t *out)
{
    pfr_random random;
    pfr_random_begin(&random, words);
    for (uint32_t i = 0; i < count; i++) {
        out[i] = i;
    }
    for (uint32_t i = count - 1U; i > 0U; i--) {
        const uint32_t j = pfr_random_upto(&random, i);
        const uint32_t moved = out[i];
        out[i] = out[j];
        out[j] = moved;
    }
}

/* Decoders: a copy of exactly the payload's size, so that reading past its end is seen. */

int shim_head(const uint8_t *payload, size_t size, pfr_head *head, float *w)
{
    uint8_t *copy = exactly(size, 1);
    memcpy(copy, payload, size);
    const pfr_status status = pfr_head_decode(copy, size, head);
    if (status == PFR_OK && w != NULL) {
        pfr_read_floats(head->w.at, head->dim, w);
    }
    free(copy);
    return (int)status;
}

int shim_receipt(const uint8_t *payload, size_t size, pfr_receipt *receipt)
{
    uint8_t *copy = exactly(size, 1);
    memcpy(copy, payload, size);
    const pfr_status status = pfr_receipt_decode(copy, size, receipt);
    free(copy);
    return (int)status;
}

int shim_chunk(const uint8_t *payload, size_t size, pfr_chunk *chunk)
{
    uint8_t *copy = exactly(size, 1);
    memcpy(copy, payload, size);
    const pfr_status status = pfr_chunk_decode(copy, size, chunk);
    free(copy);
    return (int)status;
}

/* Apply a step to a float table; give its rows, or minus the status. */
int shim_step(const uint8_t *bytes, size_t size, uint32_t rows, uint32_t dim, float *table)
{
    uint8_t *copy = exactly(size, 1);
    uint32_t n_rows = 0;
    memcpy(copy, bytes, size);
    const pfr_status status = pfr_step_check(copy, size, rows, dim, &n_rows);
    for (uint32_t i = 0; status == PFR_OK && i < n_rows; i++) {
        pfr_step_values(copy, n_rows, i, dim, &table[(size_t)pfr_step_row(copy, i) * dim]);
    }
    free(copy);
    return status == PFR_OK ? (int)n_rows : -(int)status;
}

/* Decode a model and score with it as a reader of its parts would; give the status. */
int shim_model(const uint8_t *bytes, size_t size, uint32_t *rows, uint32_t *dim, float *logits, size_t n_logits)
{
    uint8_t *copy = exactly(size, 1);
    pfr_model model;
    memcpy(copy, bytes, size);
    const pfr_status status = pfr_model_decode(copy, size, &model);
    if (status == PFR_OK) {
        *rows = model.table.rows;
        *dim = model.table.dim;
        if (n_logits >= model.table.rows) {
            (void)pfr_logits(&model.table, model.w, model.b, logits);
        }
    }
    free(copy);
    return (int)status;
}

int shim_model_misaligned(const uint8_t *bytes, size_t size)
{
    uint8_t *copy = exactly(size + 1U, 1);
    pfr_model model;
    memcpy(copy + 1, bytes, size);
    const pfr_status status = pfr_model_decode(copy + 1, size, &model);
    free(copy);
    return (int)status;
}

/* Frame a message into a buffer of so many bytes; give the status. */
int shim_frame_write(const uint8_t *message, size_t size, uint8_t *bytes, size_t most, size_t *used)
{
    uint8_t *copy = exactly(size, 1);
    pfr_buffer buffer = {bytes, most, 0};
    memcpy(copy, message, size);
    const pfr_status status = pfr_frame_write(copy, size, pfr_buffer_append, &buffer);
    free(copy);
    *used = buffer.used;
    return (int)status;
}

/* Read a line's bytes; give how many messages came, and write them one behind the other, each with its size. */
uint32_t shim_frames(const uint8_t *line, size_t size, size_t most, uint8_t *out, uint32_t *dropped)
{
    uint8_t *bytes = exactly(most, 1);
    pfr_frame_reader reader;
    uint32_t count = 0;
    pfr_frame_begin(&reader, bytes, most);
    for (size_t i = 0; i < size; i++) {
        if (pfr_frame_take(&reader, line[i])) {
            const uint32_t length = (uint32_t)reader.size;
            memcpy(out, &length, sizeof length);
            memcpy(out + sizeof length, bytes, reader.size);
            out += sizeof length + reader.size;
            count++;
        }
    }
    *dropped = reader.dropped;
    free(bytes);
    return count;
}

size_t shim_serial_state(const pfr_serial_state *state, const char *device, uint8_t *message)
{
    return pfr_serial_state_write(state, device, message);
}

size_t shim_serial_want(uint32_t crc, uint32_t offset, uint16_t size, uint8_t *message)
{
    return pfr_serial_want_write(crc, offset, size, message);
}

size_t shim_serial_part(uint64_t incarnation, uint64_t seq, uint32_t size, uint32_t crc, uint32_t offset,
                        uint8_t *message)
{
    return pfr_serial_part_write(incarnation, seq, size, crc, offset, message);
}

size_t shim_serial_passed(uint64_t seq, int status, uint8_t *message)
{
    return pfr_serial_passed_write(seq, (pfr_status)status, message);
}

/* The data's offset in the message stands for its address. */
int shim_serial_read(const uint8_t *message, size_t size, pfr_serial_answer *answer, size_t *data)
{
    uint8_t *copy = exactly(size, 1);
    memcpy(copy, message, size);
    const pfr_status status = pfr_serial_read(copy, size, answer);
    *data = (status == PFR_OK && answer->data.at != NULL) ? (size_t)(answer->data.at - copy) : 0;
    free(copy);
    return (int)status;
}

const char *shim_status_text(int status)
{
    return pfr_status_text((pfr_status)status);
}
