/**
 * @file
 * @brief Quantising without the library's rounding, which boards compute slowly; private to the core.
 */
#ifndef PFEDREC_ROUNDING_H
#define PFEDREC_ROUNDING_H

#include <math.h>

/* The nearest whole number, of two the even one; of magnitudes below 2^22. Beyond 1.5 * 2^23 a float has no fraction,
 * so that the addition rounds. */
static inline float pfr_nearest(float value)
{
    const float beyond = 12582912.0F;
    const float rounded = value + beyond;
    return rounded - beyond;
}

/* `value / scale` as a whole number within the levels. */
static inline float pfr_steps(float value, float scale, float levels)
{
    const float quotient = value / scale;
    if (quotient >= levels) {
        return levels;
    }
    return (quotient <= -levels) ? -levels : pfr_nearest(quotient);
}

/* The larger of two magnitudes; NaN where one is, so that a bound refuses it. */
static inline float pfr_larger(float largest, float value)
{
    const float magnitude = fabsf(value);
    return ((magnitude > largest) || isnan(magnitude)) ? magnitude : largest;
}

#endif
