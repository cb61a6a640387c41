#include "../include/pfedrec/random.h"

/* PCG64 (O'Neill, "PCG: A family of simple fast space-efficient statistically good algorithms for random number
 * generation", 2014): state = state * MULTIPLIER + increment modulo 2^128; output XSL-RR. */
static const uint64_t MULTIPLIER_HIGH = UINT64_C(2549297995355413924);
static const uint64_t MULTIPLIER_LOW = UINT64_C(4865540595714422341);

/* The upper half of a product of 64-bit numbers, from 32-bit ones: a board has no larger multiplication. */
static uint64_t high_product(uint64_t a, uint64_t b)
{
    const uint64_t a_low = a & 0xFFFFFFFFU, a_high = a >> 32;
    const uint64_t b_low = b & 0xFFFFFFFFU, b_high = b >> 32;
    const uint64_t low = a_low * b_low;
    const uint64_t cross = (a_high * b_low) + (low >> 32);
    const uint64_t other = (a_low * b_high) + (cross & 0xFFFFFFFFU);
    return (a_high * b_high) + (cross >> 32) + (other >> 32);
}

static void step(pfr_random *random)
{
    const uint64_t low = random->state_low, high = random->state_high;
    const uint64_t product_high = high_product(low, MULTIPLIER_LOW) + (high * MULTIPLIER_LOW) + (low * MULTIPLIER_HIGH);
    const uint64_t sum = (low * MULTIPLIER_LOW) + random->increment_low;
    random->state_low = sum;
    random->state_high = product_high + random->increment_high + ((sum < random->increment_low) ? 1U : 0U);
}

void pfr_random_begin(pfr_random *random, const uint64_t words[4])
{
    random->increment_high = (words[2] << 1) | (words[3] >> 63);
    random->increment_low = (words[3] << 1) | 1U;
    random->state_high = 0U;
    random->state_low = 0U;
    random->kept = 0U;
    random->has_kept = 0U;
    step(random);
    const uint64_t sum = random->state_low + words[1];
    random->state_high += words[0] + ((sum < words[1]) ? 1U : 0U);
    random->state_low = sum;
    step(random);
}

uint64_t pfr_random_u64(pfr_random *random)
{
    step(random);
    const uint64_t mixed = random->state_high ^ random->state_low;
    const uint32_t rotation = (uint32_t)(random->state_high >> 58);
    return (mixed >> rotation) | (mixed << ((64U - rotation) & 63U));
}

uint32_t pfr_random_u32(pfr_random *random)
{
    if (random->has_kept != 0U) {
        random->has_kept = 0U;
        return random->kept;
    }
    const uint64_t both = pfr_random_u64(random);
    random->kept = (uint32_t)(both >> 32);
    random->has_kept = 1U;
    return (uint32_t)(both & 0xFFFFFFFFU);
}

uint32_t pfr_random_scaled(pfr_random *random, uint32_t count)
{
    /* In double precision, although a board computes it in software: rounding is part of the stream. */
    const double uniform = (double)(pfr_random_u64(random) >> 11) * (1.0 / 9007199254740992.0);
    return (uint32_t)(uniform * (double)count);
}

uint32_t pfr_random_upto(pfr_random *random, uint32_t most)
{
    if (most == 0U) {
        return 0U;
    }
    /* Draws of as many bits as needed, until one is not too large. */
    uint32_t mask = most;
    for (uint32_t shift = 1U; shift < 32U; shift *= 2U) {
        mask |= mask >> shift;
    }
    uint32_t drawn = pfr_random_u32(random) & mask;
    while (drawn > most) {
        drawn = pfr_random_u32(random) & mask;
    }
    return drawn;
}
