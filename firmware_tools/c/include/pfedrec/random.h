/**
 * @file
 * @brief The random stream of numpy's `default_rng`: PCG64 (XSL-RR, 128 bits of state), to the last bit.
 *
 * Begun with the four words of `numpy.random.SeedSequence(seed).generate_state(4, numpy.uint64)` it gives what
 * `numpy.random.default_rng(seed)` gives. A board takes the words from its hardware's source of randomness.
 */
#ifndef PFEDREC_RANDOM_H
#define PFEDREC_RANDOM_H

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

/** @brief A stream; begin it with `pfr_random_begin`. */
typedef struct pfr_random {
    uint64_t state_high, state_low;
    uint64_t increment_high, increment_low;
    uint32_t kept;      /**< The upper half of a 64-bit draw, for the next 32-bit one. */
    uint32_t has_kept;
} pfr_random;

/** @brief Begin a stream from four words of which any bit may be random. */
void pfr_random_begin(pfr_random *random, const uint64_t words[4]);

/** @brief Draw 64 bits. */
uint64_t pfr_random_u64(pfr_random *random);

/** @brief Draw 32 bits; two in turn share one 64-bit draw. */
uint32_t pfr_random_u32(pfr_random *random);

/** @brief Draw an integer below `count`, which is 1 to 4294967295, as numpy's `random(...) * count` is cut off. */
uint32_t pfr_random_scaled(pfr_random *random, uint32_t count);

/** @brief Draw an integer from 0 to `most`, without bias, as numpy's `shuffle` and `permutation` do. */
uint32_t pfr_random_upto(pfr_random *random, uint32_t most);

#ifdef __cplusplus
}
#endif

#endif
