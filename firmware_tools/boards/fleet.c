/**
 * @file
 * @brief A board that takes part in a fleet through a gateway (docs/serial.md): it records, recommends, learns, and
 * gives updates. Its user's interactions leave it by the user's line alone, never by the gateway's.
 *
 * What must outlast a reset is one record, in two places in turn: the newer one with the right CRC counts, so that
 * a reset at any moment finds the state before or after a change, never between. An update is in the record, with
 * its number, before its first byte leaves, and until the gateway tells that the fleet has answered it.
 */
#include "fleet.h"
#include "pfedrec/pfedrec.h"

#include <string.h>

#ifndef MOST_DIM
#define MOST_DIM 32U
#endif
#ifndef PACKAGE_ROOM
#define PACKAGE_ROOM 65536U /* bytes of a model, its mask and its head */
#endif
#define INTERACTIONS 64U
#define SAMPLES 1024U
#define BATCHES 64U
#define EXCLUDED 512U
#define UPDATE_ROOM 8192U
#define LINE_ROOM 600U
#define PIECE_BYTES 512U
#define BEST 10U

#ifndef TELL_MS
#define TELL_MS 1000U /* between states while nothing happens */
#endif
#ifndef TELL_PENDING_MS
#define TELL_PENDING_MS 250U
#endif
#define ANSWER_MS 1000U     /* for an answer */
#define REFUSED_MS 5000U
#define UNANSWERED 3U       /* questions before the state is told again */

/* ---- what outlasts a reset ---- */

typedef struct fleet_record {
    uint32_t crc, generation; /* the CRC is of all that follows it */
    uint64_t incarnation, seq;
    uint64_t instance; /* that w and b belong to */
    uint64_t revision;
    uint64_t words[4]; /* the next pass' random stream begins with */
    uint32_t package_slot, package_crc, model, mask, head; /* model 0: there is none */
    uint32_t dim;                                          /* of w; 0: there is none */
    uint32_t count;
    uint32_t pending_size;
    float w[MOST_DIM];
    float b;
    uint32_t history[INTERACTIONS]; /* distinct rows, the newest last */
    uint8_t pending[UPDATE_ROOM];
} fleet_record;

#define RECORD_ROOM 16384U
#define RECORD_PLACE(nth) ((nth)*RECORD_ROOM)
#define PACKAGE_PLACE(slot) ((2U * RECORD_ROOM) + ((slot)*PACKAGE_ROOM))

static fleet_record now, other;
static union {
    uint8_t bytes[2][PACKAGE_ROOM];
    uint32_t aligned;
} packages;
static pfr_model model;
static pfr_head head;
static int has_package;

static uint32_t crc_of(const fleet_record *record)
{
    const uint8_t *bytes = (const uint8_t *)record;
    return pfr_crc32(0U, &bytes[sizeof record->crc], sizeof *record - sizeof record->crc);
}

/* Make what `now` says outlast a reset. */
static void keep(void)
{
    now.generation++;
    now.crc = crc_of(&now);
    if (board_keep(RECORD_PLACE(now.generation & 1U), &now, sizeof now) != 0) {
        board_write("the record cannot be kept\n");
        board_exit(4);
    }
}

static void draw_incarnation(void)
{
    uint64_t word = 0U;
    if (board_chance(&word, 1U) != 0) {
        board_write("there is no source of randomness\n");
        board_exit(5);
    }
    now.incarnation = (word >> 11) + 1U; /* 1 to 2^53 */
    now.seq = 0U;
}

static int load_package(uint32_t slot, uint32_t n_model, uint32_t n_mask, uint32_t n_head)
{
    const uint8_t *bytes = packages.bytes[slot];
    pfr_model new_model;
    pfr_head new_head;
    if ((pfr_model_decode(bytes, n_model, &new_model) != PFR_OK) ||
        (pfr_head_decode(&bytes[n_model + n_mask], n_head, &new_head) != PFR_OK) ||
        (new_model.table.rows != new_head.rows) || (new_model.table.dim != new_head.dim) ||
        (new_head.dim > MOST_DIM) || (n_mask != PFR_MASK_BYTES(new_head.rows))) {
        return 0;
    }
    model = new_model;
    head = new_head;
    has_package = 1;
    if ((now.instance != head.instance) || (now.dim != head.dim)) {
        /* What was learnt means nothing for other tables. */
        memcpy(now.w, model.w, head.dim * sizeof(float));
        now.b = model.b;
        now.instance = head.instance;
        now.dim = head.dim;
    }
    return 1;
}

static void remember(void)
{
    board_recall(RECORD_PLACE(0U), &now, sizeof now);
    board_recall(RECORD_PLACE(1U), &other, sizeof other);
    const int first = (now.crc == crc_of(&now)), second = (other.crc == crc_of(&other));
    if (second && (!first || (other.generation > now.generation))) {
        now = other;
    } else if (!first) {
        memset(&now, 0, sizeof now);
    }
    if (now.incarnation == 0U) {
        draw_incarnation();
        (void)board_chance(now.words, 4U);
        keep();
    }
    const uint32_t size = now.model + now.mask + now.head;
    if ((now.model > 0U) && (now.package_slot < 2U) && (size <= PACKAGE_ROOM)) {
        uint8_t *bytes = packages.bytes[now.package_slot];
        board_recall(PACKAGE_PLACE(now.package_slot), bytes, size);
        if (pfr_crc32(0U, bytes, size) == now.package_crc) {
            (void)load_package(now.package_slot, now.model, now.mask, now.head);
        }
    }
}

/* ---- learning and recommending ---- */

PFR_PASS_STORAGE(room, SAMPLES, BATCHES, MOST_DIM);
static uint64_t room_instance; /* whose table the newest pass was over; 0: there is none since the reset */
static uint32_t positives[INTERACTIONS], excluded[EXCLUDED];
static uint8_t seen[PFR_MASK_BYTES(PACKAGE_ROOM)];
static float vector[MOST_DIM], scratch[MOST_DIM];

static const uint8_t *retired(void)
{
    return &packages.bytes[now.package_slot][now.model];
}

/* The user's items that the table has, oldest first; at most the newest `most`. */
static uint32_t find_positives(uint32_t most)
{
    uint32_t count = 0U;
    for (uint32_t i = now.count; (i > 0U) && (count < most); i--) {
        if (now.history[i - 1U] < model.table.rows) {
            count++;
            positives[INTERACTIONS - count] = now.history[i - 1U];
        }
    }
    memmove(positives, &positives[INTERACTIONS - count], count * sizeof positives[0]);
    return count;
}

static void find_seen(void)
{
    memcpy(seen, retired(), PFR_MASK_BYTES(model.table.rows));
    for (uint32_t i = 0U; i < now.count; i++) {
        if (now.history[i] < model.table.rows) {
            pfr_mask_set(seen, now.history[i]);
        }
    }
}

/* As many of the user's newest items as a pass has room for. */
static uint32_t most_positives(const pfr_hyperparameters *settings)
{
    uint32_t most = INTERACTIONS;
    while ((most > 0U) && ((PFR_SAMPLES(most, settings->negatives) > SAMPLES) ||
                           (PFR_BATCHES(PFR_SAMPLES(most, settings->negatives), settings->batch_size) > BATCHES))) {
        most--;
    }
    return most;
}

static pfr_status learn(void)
{
    pfr_hyperparameters settings = head.plan.hyperparameters;
    pfr_random source;
    if (settings.batch_size > 65535U) {
        settings.batch_size = 65535U;
    }
    const uint32_t count = find_positives(most_positives(&settings));
    uint32_t n_excluded = 0U;
    find_seen();
    for (uint32_t row = 0U; row < model.table.rows; row++) {
        if (pfr_mask_has(seen, row)) {
            if (n_excluded == EXCLUDED) {
                return PFR_E_ROOM;
            }
            excluded[n_excluded] = row;
            n_excluded++;
        }
    }
    room.dim = head.dim;
    pfr_random_begin(&source, now.words);
    const pfr_status status = pfr_pass_run(&room, &model.table, now.w, &now.b, positives, count, excluded, n_excluded,
                                           &settings, &source);
    for (uint32_t i = 0U; i < 4U; i++) {
        now.words[i] = pfr_random_u64(&source);
    }
    if (status == PFR_E_NOT_FINITE) { /* it diverged: begin again where the fleet does */
        memcpy(now.w, model.w, head.dim * sizeof(float));
        now.b = model.b;
    }
    room_instance = (status == PFR_OK) ? head.instance : 0U;
    return status;
}

/* Make a pass and its update, and keep both; nothing has left the board yet. */
static pfr_status contribute(void)
{
    pfr_buffer buffer = {now.pending, UPDATE_ROOM, 0U};
    pfr_status status = learn();
    if (status == PFR_OK) {
        const pfr_update update = {head.instance, now.incarnation, now.seq + 1U, head.version,
                                   pfr_encoding_named((const char *)head.plan.encoding.at, head.plan.encoding.size)};
        status = pfr_update_encode(&update, &room, pfr_buffer_append, &buffer);
    }
    if (status == PFR_OK) {
        now.seq++;
        now.pending_size = (uint32_t)buffer.used;
    }
    keep();
    return status;
}

static void record(uint32_t row)
{
    uint32_t kept = 0U;
    for (uint32_t i = 0U; i < now.count; i++) {
        if (now.history[i] != row) {
            now.history[kept] = now.history[i];
            kept++;
        }
    }
    if (kept == INTERACTIONS) {
        memmove(now.history, &now.history[1], (INTERACTIONS - 1U) * sizeof now.history[0]);
        kept--;
    }
    now.history[kept] = row;
    now.count = kept + 1U;
    now.revision++;
    if (has_package) {
        (void)learn();
    }
    keep();
}

static uint32_t recommend(pfr_candidate items[BEST])
{
    pfr_best best;
    pfr_status status = PFR_OK;
    pfr_best_begin(&best, items, BEST);
    if (!has_package) {
        return 0U;
    }
    find_seen();
    const float strength = (float)head.plan.taste_strength;
    if ((strength == 0.0F) && (room_instance == head.instance) && (room.dim == head.dim)) {
        status = pfr_recommend_own(&model.table, &room, now.w, now.b, seen, &best);
    } else {
        const uint32_t count = find_positives(INTERACTIONS);
        memcpy(vector, now.w, head.dim * sizeof(float));
        if ((strength > 0.0F) && (count > 0U)) {
            status = pfr_taste(&model.table, model.mean, now.w, positives, count, (float)head.plan.taste_recency,
                               strength, vector, scratch);
        }
        if (status == PFR_OK) {
            int16_t integers[MOST_DIM];
            float scale;
            status = pfr_quantise_vector(vector, head.dim, integers, &scale);
            if (status == PFR_OK) {
                status = pfr_recommend_integer(&model.table, integers, seen, &best);
            }
        }
    }
    return (status == PFR_OK) ? best.count : 0U;
}

/* ---- the user's line: `record ROW`, `best`, `status`, `off`; an answer a line ---- */

static char command[32];
static uint32_t command_size;
static int state_due;

static void say(const char *text)
{
    board_put(BOARD_USER, (const uint8_t *)text, strlen(text));
}

static void say_number(uint64_t value)
{
    char text[24];
    size_t at = sizeof text - 1U;
    text[at] = '\0';
    do {
        at--;
        text[at] = (char)('0' + (int)(value % 10U));
        value /= 10U;
    } while (value > 0U);
    say(" ");
    say(&text[at]);
}

static void say_best(void)
{
    pfr_candidate items[BEST];
    const uint32_t count = recommend(items);
    say("best");
    for (uint32_t i = 0U; i < count; i++) {
        say_number(items[i].row);
    }
    say("\n");
}

static void say_status(void)
{
    say("status");
    say_number(now.incarnation);
    say_number(now.seq);
    say_number(now.pending_size);
    say_number(now.revision);
    if (has_package) {
        say_number(head.version);
    }
    say("\n");
}

static void obey(void)
{
    command[command_size] = '\0';
    if (strncmp(command, "record ", 7U) == 0) {
        uint32_t row = 0U;
        for (const char *digit = &command[7]; (*digit >= '0') && (*digit <= '9') && (row < PFR_MAX_ROWS); digit++) {
            row = (row * 10U) + (uint32_t)(*digit - '0');
        }
        if (row < PFR_MAX_ROWS) {
            record(row);
            state_due = 1;
            say("recorded");
            say_number(now.revision);
            say("\n");
        } else {
            say("no such row\n");
        }
    } else if (strcmp(command, "best") == 0) {
        say_best();
    } else if (strcmp(command, "status") == 0) {
        say_status();
    } else if (strcmp(command, "off") == 0) {
        board_exit(0);
    } else {
        say("record ROW, best, status or off\n");
    }
    command_size = 0U;
}

static void listen(uint8_t byte)
{
    if ((byte == (uint8_t)'\n') || (byte == (uint8_t)'\r')) {
        if (command_size > 0U) {
            obey();
        }
    } else if (command_size < (sizeof command - 1U)) {
        command[command_size] = (char)byte;
        command_size++;
    } else {
        command_size = 0U;
    }
}

/* ---- the gateway's line ---- */

typedef enum fleet_question { ASK_STATE, ASK_PIECE, ASK_PART, ASK_PASSED } fleet_question;

static fleet_question question = ASK_STATE;
static int waiting; /* for an answer */
static uint32_t asked_at, pause_ms, unanswered;
static uint32_t fetch_crc, fetch_offset, fetch_model, fetch_mask, fetch_head;
static uint32_t part_offset;
static pfr_status passed;
static uint64_t passed_seq;

static int send(void *context, const uint8_t *bytes, size_t size)
{
    (void)context;
    board_put(BOARD_GATEWAY, bytes, size);
    return 0;
}

static uint32_t count_known(void)
{
    return has_package ? find_positives(INTERACTIONS) : 0U;
}

static size_t write_state(uint8_t *message)
{
    pfr_serial_state state;
    memset(&state, 0, sizeof state);
    state.table_format = PFR_INT8;
    state.room = LINE_ROOM;
    state.package_room = PACKAGE_ROOM;
    state.incarnation = now.incarnation;
    state.seq = now.seq;
    state.pending = (now.pending_size > 0U) ? now.seq : 0U;
    state.revision = now.revision;
    state.known = count_known();
    if (has_package) {
        state.instance = head.instance;
        state.version = head.version;
        state.crc = now.package_crc;
        state.size = now.model + now.mask + now.head;
    }
    return pfr_serial_state_write(&state, board_id(), message);
}

static size_t write_part(uint8_t *message)
{
    const uint32_t left = now.pending_size - part_offset;
    const uint32_t size = (left < PIECE_BYTES) ? left : PIECE_BYTES;
    const uint32_t crc = pfr_crc32(0U, now.pending, now.pending_size);
    const size_t at = pfr_serial_part_write(now.incarnation, now.seq, now.pending_size, crc, part_offset, message);
    memcpy(&message[at], &now.pending[part_offset], size);
    return at + size;
}

static void ask(uint32_t time)
{
    static uint8_t message[PFR_SERIAL_PART_BYTES + PIECE_BYTES];
    size_t size;
    if (question == ASK_PIECE) {
        size = pfr_serial_want_write(fetch_crc, fetch_offset, PIECE_BYTES, message);
    } else if ((question == ASK_PART) && (part_offset < now.pending_size)) {
        size = write_part(message);
    } else if (question == ASK_PASSED) {
        size = pfr_serial_passed_write(passed_seq, passed, message);
    } else {
        size = write_state(message);
    }
    state_due = 0;
    waiting = 1;
    asked_at = time;
    (void)pfr_frame_write(message, size, send, NULL);
}

/* Tell the state, `pause` milliseconds after what was asked last. */
static void tell_state(uint32_t pause)
{
    question = ASK_STATE;
    pause_ms = pause;
}

static void begin_fetch(const pfr_serial_answer *offer)
{
    const uint64_t total = (uint64_t)offer->model + offer->mask + offer->head;
    if ((offer->model == 0U) || (total > PACKAGE_ROOM)) {
        tell_state(REFUSED_MS);
        return;
    }
    fetch_crc = offer->crc;
    fetch_model = offer->model;
    fetch_mask = offer->mask;
    fetch_head = offer->head;
    fetch_offset = 0U;
    question = ASK_PIECE;
    pause_ms = 0U;
}

static void end_fetch(uint32_t slot, uint32_t total)
{
    if ((pfr_crc32(0U, packages.bytes[slot], total) == fetch_crc) &&
        load_package(slot, fetch_model, fetch_mask, fetch_head)) {
        now.package_slot = slot;
        now.package_crc = fetch_crc;
        now.model = fetch_model;
        now.mask = fetch_mask;
        now.head = fetch_head;
        keep();
        tell_state(0U);
    } else {
        tell_state(TELL_MS);
    }
}

static void take_piece(const pfr_serial_answer *piece)
{
    const uint32_t slot = 1U - now.package_slot; /* the other one, which nothing points into */
    const uint32_t total = fetch_model + fetch_mask + fetch_head;
    if ((question != ASK_PIECE) || (piece->crc != fetch_crc) || (piece->offset != fetch_offset)) {
        return; /* a late one */
    }
    if ((piece->data.size == 0U) || (piece->data.size > (total - fetch_offset)) ||
        (board_keep(PACKAGE_PLACE(slot) + fetch_offset, piece->data.at, piece->data.size) != 0)) {
        tell_state(TELL_MS);
        return;
    }
    memcpy(&packages.bytes[slot][fetch_offset], piece->data.at, piece->data.size);
    fetch_offset += piece->data.size;
    if (fetch_offset == total) {
        end_fetch(slot, total);
    }
}

static void take_order(const pfr_serial_answer *order)
{
    tell_state(TELL_MS);
    if (has_package && (now.pending_size == 0U) && (order->seq == (now.seq + 1U)) &&
        (order->instance == head.instance) && (order->version == head.version)) {
        pause_ms = 0U;
        passed = contribute();
        if (passed != PFR_OK) {
            passed_seq = order->seq;
            question = ASK_PASSED;
        }
    }
}

static void take(const uint8_t *message, size_t size)
{
    pfr_serial_answer answer;
    if (pfr_serial_read(message, size, &answer) != PFR_OK) {
        return;
    }
    const int ours = (answer.incarnation == now.incarnation);
    const int pends = ours && (now.pending_size > 0U) && (answer.seq == now.seq);
    waiting = 0;
    unanswered = 0U;
    switch (answer.kind) {
    case PFR_SERIAL_OFFER:
        begin_fetch(&answer);
        break;
    case PFR_SERIAL_PIECE:
        take_piece(&answer);
        break;
    case PFR_SERIAL_CONTRIBUTE:
        take_order(&answer);
        break;
    case PFR_SERIAL_SEND:
        tell_state(TELL_MS);
        if (pends && (answer.offset < now.pending_size)) {
            part_offset = answer.offset;
            question = ASK_PART;
            pause_ms = 0U;
        }
        break;
    case PFR_SERIAL_ANSWERED:
        tell_state(TELL_MS);
        if (pends) {
            now.pending_size = 0U;
            keep();
            pause_ms = 0U;
        }
        break;
    case PFR_SERIAL_RENUMBER:
        tell_state(TELL_MS);
        if (ours && (now.pending_size == 0U)) {
            draw_incarnation();
            keep();
            pause_ms = 0U;
        }
        break;
    case PFR_SERIAL_REFUSED:
        tell_state(REFUSED_MS);
        break;
    case PFR_SERIAL_IDLE:
    default:
        tell_state((now.pending_size > 0U) ? TELL_PENDING_MS : TELL_MS);
        break;
    }
}

static void go_on(uint32_t time)
{
    const uint32_t passed_ms = time - asked_at;
    if (waiting) {
        if (passed_ms < ANSWER_MS) {
            return;
        }
        unanswered++;
        if (unanswered >= UNANSWERED) {
            tell_state(0U);
        }
        ask(time);
    } else if ((passed_ms >= pause_ms) || (state_due && (question == ASK_STATE))) {
        ask(time);
    }
}

int main(void)
{
    static uint8_t line[LINE_ROOM + PFR_FRAME_CRC_BYTES];
    pfr_frame_reader reader;
    if (board_open() != 0) {
        board_write("the board's file cannot be opened\n");
        return 2;
    }
    remember();
    pfr_frame_begin(&reader, line, sizeof line);
    for (;;) {
        uint8_t byte;
        int idle = 1;
        while (board_take(BOARD_GATEWAY, &byte)) {
            idle = 0;
            if (pfr_frame_take(&reader, byte)) {
                take(line, reader.size);
            }
        }
        if (board_take(BOARD_USER, &byte)) {
            idle = 0;
            listen(byte);
        }
        go_on(board_milliseconds());
        if (idle) {
            board_wait();
        }
    }
}
