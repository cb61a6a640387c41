/**
 * @file
 * @brief The least that an application does: the ten best items for its user; with -DTRAIN also learning, and an
 * update. Its size is what the report tells.
 */
#include "model_data.h"
#include "pfedrec/pfedrec.h"

#define BEST 10U

static uint8_t seen[PFR_MASK_BYTES(MODEL_ROWS)];
static pfr_candidate items[BEST];
static float w[MODEL_DIM];

#ifdef TRAIN
#define INTERACTIONS APP_INTERACTIONS
#define SAMPLES PFR_SAMPLES(INTERACTIONS, APP_NEGATIVES)
PFR_PASS_STORAGE(room, SAMPLES, PFR_BATCHES(SAMPLES, APP_BATCH_SIZE), MODEL_DIM);
static uint32_t history[INTERACTIONS];
static pfr_random source;
static float b;
static uint32_t sent;

/* A real one gives the bytes to its link. */
static int send(void *context, const uint8_t *bytes, size_t size)
{
    (void)context;
    for (size_t i = 0U; i < size; i++) {
        sent = (sent << 1) ^ bytes[i];
    }
    return 0;
}

static pfr_status learn(void)
{
    const pfr_hyperparameters settings = {0.1, APP_ITEM_LR, 0.1, APP_NEGATIVES, APP_BATCH_SIZE};
    const uint64_t words[4] = {1U, 2U, 3U, 4U}; /* a real one asks its source of randomness */
    const pfr_update update = {1U, 2U, 1U, 1U, PFR_AS_FACTORED_INT8};
    for (uint32_t i = 0U; i < INTERACTIONS; i++) {
        history[i] = i * (MODEL_ROWS / INTERACTIONS);
        pfr_mask_set(seen, history[i]);
    }
    pfr_random_begin(&source, words);
    pfr_status status = pfr_pass_run(&room, &pfedrec_model.table, w, &b, history, INTERACTIONS, history,
                                     INTERACTIONS, &settings, &source);
    if (status == PFR_OK) {
        status = pfr_update_encode(&update, &room, send, NULL);
    }
    return status;
}
#endif

static pfr_status recommend(pfr_best *best)
{
    pfr_best_begin(best, items, BEST);
#if MODEL_INT8
    int16_t vector[MODEL_DIM];
    float scale;
    const pfr_status status = pfr_quantise_vector(w, MODEL_DIM, vector, &scale);
    return (status == PFR_OK) ? pfr_recommend_integer(&pfedrec_model.table, vector, seen, best) : status;
#else
    return pfr_recommend(&pfedrec_model.table, w, pfedrec_model.b, seen, best);
#endif
}

int main(void)
{
    pfr_best best;
    for (uint32_t k = 0U; k < MODEL_DIM; k++) {
        w[k] = pfedrec_model.w[k];
    }
    pfr_status status = PFR_OK;
#ifdef TRAIN
    b = pfedrec_model.b;
    status = learn();
#endif
    if (status == PFR_OK) {
        status = recommend(&best);
    }
    return (status == PFR_OK) ? 0 : 1;
}
