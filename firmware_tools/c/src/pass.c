#include "../include/pfedrec/pass.h"

#include "pfedrec_rounding.h"

/* While rows are being sorted, the lowest bit says that a sample is a positive; then it moves to the highest. */
#define POSITIVE 0x80000000U
#define ROW 0x7FFFFFFFU

static uint32_t row_of(const pfr_pass *pass, uint32_t cell)
{
    return pass->rows[cell] & ROW;
}

/* ---- drawing: in the order and with the arithmetic of trainer/batches.py ---- */

/* Item number `nth` among those that are not excluded: by how many excluded ones come before it. */
static uint32_t allowed_item(const uint32_t *excluded, uint32_t n_excluded, uint32_t nth)
{
    uint32_t low = 0U, high = n_excluded;
    while (low < high) {
        const uint32_t middle = low + ((high - low) / 2U);
        if ((excluded[middle] - middle) <= nth) {
            low = middle + 1U;
        } else {
            high = middle;
        }
    }
    return nth + low;
}

/* Give each sample its place, and put it there. */
static void shuffle(pfr_pass *pass, uint32_t n_samples, pfr_random *random)
{
    pfr_cell *cells = pass->cells;
    uint32_t *rows = pass->rows;
    for (uint32_t i = 0U; i < n_samples; i++) {
        cells[i].place = i;
    }
    for (uint32_t i = n_samples - 1U; i > 0U; i--) {
        const uint32_t j = pfr_random_upto(random, i);
        const uint32_t moved = cells[i].place;
        cells[i].place = cells[j].place;
        cells[j].place = moved;
    }
    for (uint32_t i = 0U; i < n_samples; i++) {
        while (cells[i].place != i) {
            const uint32_t to = cells[i].place;
            const uint32_t row = rows[to], place = cells[to].place;
            rows[to] = rows[i];
            cells[to].place = to;
            rows[i] = row;
            cells[i].place = place;
        }
    }
}

static void sift(uint32_t *values, uint32_t root, uint32_t count)
{
    const uint32_t value = values[root];
    uint32_t parent = root;
    for (;;) {
        uint32_t child = (2U * parent) + 1U;
        if (child >= count) {
            break;
        }
        if (((child + 1U) < count) && (values[child + 1U] > values[child])) {
            child++;
        }
        if (values[child] <= value) {
            break;
        }
        values[parent] = values[child];
        parent = child;
    }
    values[parent] = value;
}

/* Heapsort: no recursion, no memory, no bad case. */
static void sort(uint32_t *values, uint32_t count)
{
    for (uint32_t root = count / 2U; root > 0U; root--) {
        sift(values, root - 1U, count);
    }
    for (uint32_t end = count; end > 1U; end--) {
        const uint32_t largest = values[0];
        values[0] = values[end - 1U];
        values[end - 1U] = largest;
        sift(values, 0U, end - 1U);
    }
}

/* Make a batch's sorted samples into cells, the first at `to`; give where the next batch's begin, 0 for a positive
 * that is there twice. */
static uint32_t merge(pfr_pass *pass, uint32_t from, uint32_t end, uint32_t to)
{
    uint32_t cell = to;
    for (uint32_t at = from; at < end; cell++) {
        const uint32_t row = pass->rows[at] >> 1;
        uint32_t count = 0U, positives = 0U;
        for (; (at < end) && ((pass->rows[at] >> 1) == row); at++) {
            count++;
            positives += pass->rows[at] & 1U;
        }
        if (positives > 1U) {
            return 0U;
        }
        pass->rows[cell] = row | ((positives == 1U) ? POSITIVE : 0U);
        pass->counts[cell] = (uint16_t)count;
    }
    return cell;
}

static pfr_status draw(pfr_pass *pass, uint32_t n_items, const uint32_t *positives, uint32_t n_positives,
                       const uint32_t *excluded, uint32_t n_excluded, const pfr_hyperparameters *hyperparameters,
                       uint32_t n_samples, uint32_t n_batches, pfr_random *random)
{
    for (uint32_t i = 0U; i < n_positives; i++) {
        pass->rows[i] = (positives[i] << 1) | 1U;
    }
    for (uint32_t i = n_positives; i < n_samples; i++) {
        const uint32_t nth = pfr_random_scaled(random, n_items - n_excluded);
        pass->rows[i] = allowed_item(excluded, n_excluded, nth) << 1;
    }
    if (n_batches > 1U) {
        shuffle(pass, n_samples, random);
    }
    pass->starts[0] = 0U;
    for (uint32_t batch = 0U; batch < n_batches; batch++) {
        const uint32_t from = batch * hyperparameters->batch_size;
        const uint32_t left = n_samples - from;
        const uint32_t size = (left < hyperparameters->batch_size) ? left : hyperparameters->batch_size;
        sort(&pass->rows[from], size);
        const uint32_t end = merge(pass, from, from + size, pass->starts[batch]);
        if (end == 0U) {
            return PFR_E_ARGUMENT;
        }
        pass->starts[batch + 1U] = end;
    }
    return PFR_OK;
}

/* ---- stepping: trainer/local.py's alternating steps, cell by cell; w, b and logits are halved throughout ---- */

typedef struct stepping {
    pfr_pass *pass;
    const pfr_table *table;
    float *half_w;   /* dim */
    float *gradient; /* dim */
    float *factors;  /* n_batches */
    float half_b;
} stepping;

static void rewind_to(pfr_pass *pass, uint32_t n_batches)
{
    for (uint32_t batch = 0U; batch < n_batches; batch++) {
        pass->cursors[batch] = pass->starts[batch];
    }
}

/* The coefficient of a row in an earlier batch, 0 where it has none; rows must be asked for in ascending order. */
static float coefficient_in(pfr_pass *pass, uint32_t batch, uint32_t row)
{
    uint32_t at = pass->cursors[batch];
    const uint32_t end = pass->starts[batch + 1U];
    while ((at < end) && (row_of(pass, at) < row)) {
        at++;
    }
    pass->cursors[batch] = at;
    return ((at < end) && (row_of(pass, at) == row)) ? pass->cells[at].coefficient : 0.0F;
}

/* Put the earlier batches' `vector . w` into the factors. */
static void project(stepping *steps, uint32_t n_earlier)
{
    const uint32_t dim = steps->table->dim;
    for (uint32_t batch = 0U; batch < n_earlier; batch++) {
        steps->factors[batch] = pfr_dot(&steps->pass->vectors[batch * dim], steps->half_w, dim);
    }
    rewind_to(steps->pass, n_earlier);
}

/* Twice the sum of the cell's gradients, from half its logit as the earlier batches have left it. */
static float two_g(stepping *steps, uint32_t n_earlier, uint32_t cell)
{
    pfr_pass *pass = steps->pass;
    const uint32_t row = row_of(pass, cell);
    float half_z = pfr_table_dot(steps->table, row, steps->half_w);
    for (uint32_t batch = 0U; batch < n_earlier; batch++) {
        half_z += coefficient_in(pass, batch, row) * steps->factors[batch];
    }
    half_z += steps->half_b;
    const float count = (float)pass->counts[cell];
    const float bias = ((pass->rows[cell] & POSITIVE) != 0U) ? (count - 2.0F) : count;
    return (tanhf(half_z) * count) + bias;
}

static void step_user(stepping *steps, uint32_t batch, float half_step, float shrink)
{
    pfr_pass *pass = steps->pass;
    const pfr_table *table = steps->table;
    const uint32_t dim = table->dim;
    float total = 0.0F;
    project(steps, batch);
    for (uint32_t k = 0U; k < dim; k++) {
        steps->gradient[k] = 0.0F;
    }
    for (uint32_t cell = pass->starts[batch]; cell < pass->starts[batch + 1U]; cell++) {
        const float g = two_g(steps, batch, cell);
        total += g;
        pass->cells[cell].coefficient = g;
        pfr_table_add(table, row_of(pass, cell), g, steps->gradient);
    }
    /* The part of the gradient that lies along the earlier batches' vectors. */
    rewind_to(pass, batch);
    for (uint32_t earlier = 0U; earlier < batch; earlier++) {
        float along = 0.0F;
        for (uint32_t cell = pass->starts[batch]; cell < pass->starts[batch + 1U]; cell++) {
            along += pass->cells[cell].coefficient * coefficient_in(pass, earlier, row_of(pass, cell));
        }
        for (uint32_t k = 0U; k < dim; k++) {
            steps->gradient[k] += along * pass->vectors[(earlier * dim) + k];
        }
    }
    for (uint32_t k = 0U; k < dim; k++) {
        steps->half_w[k] -= (steps->gradient[k] * half_step) + (steps->half_w[k] * shrink);
    }
    steps->half_b -= half_step * total;
}

static void step_rows(stepping *steps, uint32_t batch, float row_step)
{
    pfr_pass *pass = steps->pass;
    const uint32_t dim = steps->table->dim;
    project(steps, batch);
    for (uint32_t cell = pass->starts[batch]; cell < pass->starts[batch + 1U]; cell++) {
        pass->cells[cell].coefficient = two_g(steps, batch, cell) * row_step;
    }
    for (uint32_t k = 0U; k < dim; k++) {
        pass->vectors[(batch * dim) + k] = steps->half_w[k];
    }
}

static int all_finite(const stepping *steps, uint32_t n_batches)
{
    const pfr_pass *pass = steps->pass;
    int finite = isfinite(steps->half_b);
    for (uint32_t i = 0U; i < (n_batches * pass->dim); i++) {
        finite = finite && isfinite(pass->vectors[i]);
    }
    for (uint32_t cell = 0U; cell < pass->starts[n_batches]; cell++) {
        finite = finite && isfinite(pass->cells[cell].coefficient);
    }
    return finite;
}

/* ---- checking ---- */

static int within(double value, double high)
{
    return (value >= 0.0) && (value <= high); /* false for NaN */
}

static int settings_fit(const pfr_hyperparameters *settings)
{
    return within(settings->lr, 1e9) && within(settings->item_lr, 1e9) && within(settings->decay, 1e9) &&
           within(settings->lr * settings->decay, 1.0) && (settings->negatives >= 1U) &&
           (settings->negatives <= 1000U) && (settings->batch_size >= 1U) && (settings->batch_size <= 65535U);
}

static int rows_fit(const uint32_t *rows, uint32_t count, uint32_t n_items, int ascending)
{
    for (uint32_t i = 0U; i < count; i++) {
        if ((rows[i] >= n_items) || (ascending && (i > 0U) && (rows[i] <= rows[i - 1U]))) {
            return 0;
        }
    }
    return 1;
}

static pfr_status check(const pfr_pass *pass, const pfr_table *table, const float *w, const float *b,
                        const uint32_t *positives, uint32_t n_positives, const uint32_t *excluded,
                        uint32_t n_excluded, const pfr_hyperparameters *hyperparameters, const pfr_random *random)
{
    const pfr_status status = pfr_table_check(table);
    if (status != PFR_OK) {
        return status;
    }
    if ((pass == NULL) || (pass->dim != table->dim) || (w == NULL) || (b == NULL) || (hyperparameters == NULL) ||
        (random == NULL) || !settings_fit(hyperparameters)) {
        return PFR_E_ARGUMENT;
    }
    if ((n_positives == 0U) || (n_excluded >= table->rows)) {
        return PFR_E_NOTHING;
    }
    if ((positives == NULL) || ((excluded == NULL) && (n_excluded > 0U)) ||
        !rows_fit(positives, n_positives, table->rows, 0) || !rows_fit(excluded, n_excluded, table->rows, 1)) {
        return PFR_E_ARGUMENT;
    }
    /* At most 4,000,000 positives times 1,001. */
    const uint64_t n_samples = (uint64_t)n_positives * (1U + hyperparameters->negatives);
    if ((n_samples > pass->max_samples) || (n_samples > (uint64_t)pass->max_batches * hyperparameters->batch_size)) {
        return PFR_E_ROOM;
    }
    return PFR_OK;
}

pfr_status pfr_pass_run(pfr_pass *pass, const pfr_table *table, float *w, float *b, const uint32_t *positives,
                        uint32_t n_positives, const uint32_t *excluded, uint32_t n_excluded,
                        const pfr_hyperparameters *hyperparameters, pfr_random *random)
{
    pfr_status status = check(pass, table, w, b, positives, n_positives, excluded, n_excluded, hyperparameters, random);
    if (status != PFR_OK) {
        return status;
    }
    const uint32_t dim = table->dim;
    const uint32_t n_samples = PFR_SAMPLES(n_positives, hyperparameters->negatives);
    const uint32_t n_batches = PFR_BATCHES(n_samples, hyperparameters->batch_size);
    pass->n_batches = 0U;
    pass->n_rows = 0U;
    status = draw(pass, table->rows, positives, n_positives, excluded, n_excluded, hyperparameters, n_samples,
                  n_batches, random);
    if (status != PFR_OK) {
        return status;
    }
    stepping steps = {pass, table, pass->scratch, &pass->scratch[dim], &pass->scratch[2U * dim], *b * 0.5F};
    for (uint32_t k = 0U; k < dim; k++) {
        steps.half_w[k] = w[k] * 0.5F;
    }
    const float user_step = (float)(0.5 * hyperparameters->lr);
    const float item_step = (float)(-2.0 * hyperparameters->item_lr);
    const float shrink = (float)(hyperparameters->lr * hyperparameters->decay);
    for (uint32_t batch = 0U; batch < n_batches; batch++) {
        const uint32_t left = n_samples - (batch * hyperparameters->batch_size);
        const uint32_t size = (left < hyperparameters->batch_size) ? left : hyperparameters->batch_size;
        const float half_mean = (float)(0.5 / (double)size);
        step_user(&steps, batch, half_mean * user_step, shrink);
        step_rows(&steps, batch, half_mean * item_step);
    }
    if (!all_finite(&steps, n_batches)) {
        return PFR_E_NOT_FINITE;
    }
    for (uint32_t k = 0U; k < dim; k++) {
        w[k] = steps.half_w[k] + steps.half_w[k];
    }
    *b = steps.half_b + steps.half_b;
    pass->n_batches = n_batches;
    uint32_t row;
    pfr_pass_rewind(pass);
    while (pfr_pass_next(pass, &row) != 0) {
        pass->n_rows++;
    }
    return PFR_OK;
}

/* ---- reading what a pass has left: the batches' cells, merged by row ---- */

/* The scratch is then: a change, another, each batch's coefficient, each vector's largest magnitude. */
static float *coefficients_of(pfr_pass *pass)
{
    return &pass->scratch[2U * pass->dim];
}

static float *lengths_of(pfr_pass *pass)
{
    return &pass->scratch[(2U * pass->dim) + pass->max_batches];
}

static float largest_of(const float *values, uint32_t count)
{
    float largest = 0.0F;
    for (uint32_t k = 0U; k < count; k++) {
        largest = pfr_larger(largest, values[k]);
    }
    return largest;
}

void pfr_pass_rewind(pfr_pass *pass)
{
    rewind_to(pass, pass->n_batches);
    for (uint32_t batch = 0U; batch < pass->n_batches; batch++) {
        lengths_of(pass)[batch] = largest_of(&pass->vectors[batch * pass->dim], pass->dim);
    }
}

/* A cursor stands behind the cell of the current row, if its batch has one. */
int pfr_pass_next(pfr_pass *pass, uint32_t *row)
{
    uint32_t next = UINT32_MAX;
    for (uint32_t batch = 0U; batch < pass->n_batches; batch++) {
        const uint32_t at = pass->cursors[batch];
        if ((at < pass->starts[batch + 1U]) && (row_of(pass, at) < next)) {
            next = row_of(pass, at);
        }
    }
    if (next == UINT32_MAX) {
        return 0;
    }
    for (uint32_t batch = 0U; batch < pass->n_batches; batch++) {
        const uint32_t at = pass->cursors[batch];
        if ((at < pass->starts[batch + 1U]) && (row_of(pass, at) == next)) {
            pass->cursors[batch]++;
            coefficients_of(pass)[batch] = pass->cells[at].coefficient;
        } else {
            coefficients_of(pass)[batch] = 0.0F;
        }
    }
    *row = next;
    return 1;
}

const float *pfr_pass_change(pfr_pass *pass)
{
    const float *coefficients = coefficients_of(pass);
    float *change = pass->scratch;
    for (uint32_t k = 0U; k < pass->dim; k++) {
        change[k] = 0.0F;
    }
    for (uint32_t batch = 0U; batch < pass->n_batches; batch++) {
        /* Most rows are in one batch only. */
        if (coefficients[batch] != 0.0F) {
            for (uint32_t k = 0U; k < pass->dim; k++) {
                change[k] += coefficients[batch] * pass->vectors[(batch * pass->dim) + k];
            }
        }
    }
    return change;
}

float pfr_pass_largest(pfr_pass *pass)
{
    const float *coefficients = coefficients_of(pass);
    uint32_t n_batches = 0U;
    float largest = 0.0F;
    for (uint32_t batch = 0U; batch < pass->n_batches; batch++) {
        if (coefficients[batch] != 0.0F) {
            n_batches++;
            largest = fabsf(coefficients[batch]) * lengths_of(pass)[batch]; /* rounding keeps the order */
        }
    }
    return (n_batches <= 1U) ? largest : largest_of(pfr_pass_change(pass), pass->dim);
}

pfr_status pfr_recommend_own(const pfr_table *table, pfr_pass *pass, const float *w, float b, const uint8_t *mask,
                             pfr_best *best)
{
    const pfr_status status = pfr_table_check(table);
    if (status != PFR_OK) {
        return status;
    }
    if ((pass == NULL) || (pass->dim != table->dim) || (w == NULL) || (best == NULL)) {
        return PFR_E_ARGUMENT;
    }
    /* Each batch's `vector . w`, in the place of the lengths, which are not needed here. */
    float *along = lengths_of(pass);
    pfr_pass_rewind(pass);
    for (uint32_t batch = 0U; batch < pass->n_batches; batch++) {
        along[batch] = pfr_dot(&pass->vectors[batch * pass->dim], w, pass->dim);
    }
    const float *coefficients = coefficients_of(pass);
    uint32_t own = 0U;
    int has_own = pfr_pass_next(pass, &own);
    for (uint32_t row = 0U; row < table->rows; row++) {
        const int is_own = (has_own != 0) && (own == row);
        if (pfr_mask_has(mask, row) == 0) {
            float logit = pfr_table_dot(table, row, w);
            if (is_own) {
                for (uint32_t batch = 0U; batch < pass->n_batches; batch++) {
                    logit += coefficients[batch] * along[batch];
                }
            }
            logit += b;
            if (!isnan(logit)) {
                pfr_best_offer(best, row, pfr_key_of_logit(logit));
            }
        }
        if (is_own) {
            has_own = pfr_pass_next(pass, &own);
        }
    }
    return PFR_OK;
}
