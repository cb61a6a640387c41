/**
 * @file
 * @brief Compares this board with numpy's results in golden.c, and measures. Prints a fact a line, then PASS or FAIL.
 */
#include "board.h"
#include "golden.h"
#include "model_data.h"
#include "pfedrec/pfedrec.h"
#include "print.h"

#include <math.h>
#include <string.h>

#define TABLE (&pfedrec_model.table)

PFR_PASS_STORAGE(room, GOLDEN_SAMPLES, GOLDEN_BATCHES, MODEL_DIM);
static uint8_t seen[PFR_MASK_BYTES(MODEL_ROWS)];
static pfr_candidate items[10];
static float w[MODEL_DIM], vector[MODEL_DIM], scratch[MODEL_DIM];
static pfr_random source;
static int failed;

static void judge(const char *what, int well)
{
    board_write(what);
    board_write(well ? ": as numpy\n" : ": NOT AS NUMPY\n");
    failed = failed || !well;
}

/* The largest difference, in billionths. */
static void tell_difference(const char *what, float difference)
{
    print_fact(what, (uint64_t)(difference * 1e9F));
}

static void draw_vector(void)
{
    for (uint32_t k = 0U; k < MODEL_DIM; k++) {
        const double uniform = (double)(pfr_random_u64(&source) >> 11) * (1.0 / 9007199254740992.0);
        w[k] = (float)((2.0 * uniform) - 1.0);
    }
}

static void check_scores(void)
{
    float worst = 0.0F;
    int exact = 1;
    pfr_random_begin(&source, golden_vector_words);
    for (uint32_t nth = 0U; nth < GOLDEN_SCORED; nth++) {
        draw_vector();
        for (uint32_t i = 0U; i < GOLDEN_SCORED_ROWS; i++) {
            const float score = pfr_sigmoid(pfr_logit(TABLE, golden_scored_rows[i], w, pfedrec_model.b));
            worst = fmaxf(worst, fabsf(score - golden_scores[(nth * GOLDEN_SCORED_ROWS) + i]));
        }
#if MODEL_INT8
        int16_t integers[MODEL_DIM];
        float scale;
        uint32_t crc = 0U;
        (void)pfr_quantise_vector(w, MODEL_DIM, integers, &scale);
        for (uint32_t row = 0U; row < MODEL_ROWS; row++) {
            const int32_t score = pfr_integer_score(TABLE, row, integers);
            uint8_t bytes[4];
            memcpy(bytes, &score, sizeof bytes);
            crc = pfr_crc32(crc, bytes, sizeof bytes);
        }
        exact = exact && (crc == golden_integer_crcs[nth]);
#endif
    }
    tell_difference("score_difference_e9", worst);
    judge("scores to 1e-6", worst <= 1e-6F);
    judge("integer scores", exact);
}

static uint32_t ten_best(void)
{
    pfr_best best;
    pfr_best_begin(&best, items, 10U);
#if MODEL_INT8
    int16_t integers[MODEL_DIM];
    float scale;
    (void)pfr_quantise_vector(w, MODEL_DIM, integers, &scale);
    (void)pfr_recommend_integer(TABLE, integers, seen, &best);
#else
    (void)pfr_recommend(TABLE, w, pfedrec_model.b, seen, &best);
#endif
    return best.count;
}

static void check_ranking(void)
{
    uint32_t same = 0U;
    for (uint32_t i = 0U; i < GOLDEN_POSITIVES; i++) {
        pfr_mask_set(seen, golden_positives[i]);
    }
    pfr_random_begin(&source, golden_vector_words);
    for (uint32_t nth = 0U; nth < GOLDEN_RANKED; nth++) {
        draw_vector();
        const uint32_t count = ten_best();
        same += (pfr_crc32(0U, (const uint8_t *)items, count * sizeof items[0]) == golden_ranking_crcs[nth]) ? 1U : 0U;
    }
    print_fact("ranked_vectors", GOLDEN_RANKED);
    print_fact("ranked_alike", same);
    judge("ten best", same == GOLDEN_RANKED);
    board_stack_begin();
    board_count_begin();
    (void)ten_best();
    print_fact("instructions_ranking", board_count());
    print_fact("stack_ranking", board_stack());
    board_count_begin();
    scratch[0] = pfr_logit(TABLE, 0U, w, 0.0F);
    print_fact("instructions_logit", board_count());
}

static void check_taste(void)
{
    float worst = 0.0F;
    const pfr_status status = pfr_taste(TABLE, pfedrec_model.mean, pfedrec_model.w, golden_positives,
                                        GOLDEN_POSITIVES, 2.0F, 1.0F, vector, scratch);
    for (uint32_t k = 0U; k < MODEL_DIM; k++) {
        worst = fmaxf(worst, fabsf(vector[k] - golden_taste[k]));
    }
    judge("taste to 1e-5", (status == PFR_OK) && (worst <= 1e-5F));
}

static void check_training(void)
{
    const pfr_hyperparameters settings = {GOLDEN_LR, GOLDEN_ITEM_LR, GOLDEN_DECAY, GOLDEN_NEGATIVES, GOLDEN_BATCH_SIZE};
    float b = pfedrec_model.b;
    float worst = 0.0F, worst_change = 0.0F;
    int well = 1;
    memcpy(w, pfedrec_model.w, sizeof w);
    pfr_random_begin(&source, golden_training_words);
    board_stack_begin();
    for (uint32_t nth = 0U; nth < GOLDEN_PASSES; nth++) {
        board_count_begin();
        well = well && (pfr_pass_run(&room, TABLE, w, &b, golden_positives, GOLDEN_POSITIVES, golden_excluded,
                                     GOLDEN_POSITIVES, &settings, &source) == PFR_OK);
        if (nth == 0U) {
            print_fact("instructions_pass", board_count());
        }
    }
    print_fact("stack_pass", board_stack());
    for (uint32_t k = 0U; k < MODEL_DIM; k++) {
        worst = fmaxf(worst, fabsf(w[k] - golden_w[k]));
    }
    worst = fmaxf(worst, fabsf(b - GOLDEN_B));
    uint32_t row, probe = 0U;
    pfr_pass_rewind(&room);
    while (pfr_pass_next(&room, &row) != 0) {
        if ((probe < GOLDEN_PROBES) && (row == golden_probe_rows[probe])) {
            const float *change = pfr_pass_change(&room);
            for (uint32_t k = 0U; k < MODEL_DIM; k++) {
                worst_change = fmaxf(worst_change, fabsf(change[k] - golden_changes[(probe * MODEL_DIM) + k]));
            }
            probe++;
        }
    }
    print_fact("rows_in_pass", room.n_rows);
    tell_difference("training_difference_e9", worst);
    tell_difference("change_difference_e9", worst_change);
    judge("w and b to 1e-5 after ten passes", well && (worst <= 1e-5F));
    judge("changes of rows to 1e-5 after ten passes", (probe == GOLDEN_PROBES) && (worst_change <= 1e-5F));
}

static uint32_t in_line;

static int send_hex(void *context, const uint8_t *bytes, size_t size)
{
    static const char digits[] = "0123456789abcdef";
    (void)context;
    for (size_t i = 0U; i < size; i++) {
        const char text[3] = {digits[bytes[i] >> 4], digits[bytes[i] & 15U], '\0'};
        board_write((in_line == 0U) ? "update " : "");
        board_write(text);
        in_line = (in_line + 1U) % 64U;
        board_write((in_line == 0U) ? "\n" : "");
    }
    return 0;
}

static int swallow(void *context, const uint8_t *bytes, size_t size)
{
    (void)context;
    (void)bytes;
    (void)size;
    return 0;
}

static void tell_update(void)
{
    pfr_update update = {GOLDEN_INSTANCE, GOLDEN_INCARNATION, 1U, GOLDEN_VERSION, PFR_AS_INT8};
    board_count_begin();
    pfr_status status = pfr_update_encode(&update, &room, swallow, NULL);
    print_fact("instructions_rows", board_count());
    print_fact("bytes_rows", pfr_update_bytes(&update, &room));
    judge("update by rows", status == PFR_OK);
    update.encoding = PFR_AS_FACTORED_INT8;
    board_stack_begin();
    board_count_begin();
    status = pfr_update_encode(&update, &room, swallow, NULL);
    print_fact("instructions_update", board_count());
    print_fact("stack_update", board_stack());
    print_fact("bytes_update", pfr_update_bytes(&update, &room));
    judge("update in factors", status == PFR_OK);
    (void)pfr_update_encode(&update, &room, send_hex, NULL);
    board_write((in_line == 0U) ? "" : "\n");
}

static void check_decoding(void)
{
    pfr_head head;
    int well = (pfr_head_decode(golden_head, GOLDEN_HEAD_BYTES, &head) == PFR_OK) && (head.rows == MODEL_ROWS) &&
               (head.dim == MODEL_DIM);
    if (well) {
        pfr_read_floats(head.w.at, MODEL_DIM, scratch);
        well = memcmp(scratch, pfedrec_model.w, sizeof scratch) == 0;
    }
    for (size_t size = 0U; size < GOLDEN_HEAD_BYTES; size++) {
        well = well && (pfr_head_decode(golden_head, size, &head) != PFR_OK);
    }
    judge("head", well);
}

int main(void)
{
    check_scores();
    check_ranking();
    check_taste();
    check_training();
    check_decoding();
    tell_update();
    board_write(failed ? "\nFAIL\n" : "\nPASS\n");
    return failed;
}
