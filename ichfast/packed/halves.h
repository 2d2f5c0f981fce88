/* Halves of a block, 8 values of one width, in 128-bit vectors.
 *
 * A value lies in two neighbouring bytes. To unpack, a shuffle brings these to the
 * value's lane; the value is lifted to the top of the lane, which removes the bits
 * above it; a shift by 16 - width brings it down, which removes those below it.
 *
 * For little-endian machines. */
#ifndef ICHFAST_HALVES_H
#define ICHFAST_HALVES_H

#include "rows.h"

#define EIGHT(of, w) \
    {of(0, w), of(1, w), of(2, w), of(3, w), of(4, w), of(5, w), of(6, w), of(7, w)}
#define BY_NIBBLE(of) \
    {EIGHT(of, 0), EIGHT(of, 1), EIGHT(of, 2), EIGHT(of, 3), \
     EIGHT(of, 4), EIGHT(of, 5), EIGHT(of, 6), EIGHT(of, 7), \
     EIGHT(of, 8), EIGHT(of, 9), EIGHT(of, 10), {0}, \
     EIGHT(of, 12), {0}, {0}, EIGHT(of, 16)}

/* For each value: the first of its two bytes, and the one after it. */
#define BYTES(i, w) (((i) * (w) / 8) | ((i) * (w) / 8 + 1) << 8)

/* For each value: the factor that lifts it. */
#define LIFT(i, w) (uint16_t)(1u << (16 - (w) - (i) * (w) % 8))

static const uint16_t BYTES_OF_VALUES[16][HALF] = BY_NIBBLE(BYTES);
static const uint16_t LIFT_OF_VALUES[16][HALF] = BY_NIBBLE(LIFT);

/* Store 8 values: the low and the high four, each already packed to 4 * width bits.
 * width: at most 12. Writes 16 bytes and returns the end of `width`. */
static inline uint8_t *store_half(uint8_t *payload, uint64_t low, uint64_t high,
                                  unsigned width)
{
    uint64_t words[2] = {low, 0};
    if (width) {
        words[0] |= high << 4 * width;
        words[1] = high >> (64 - 4 * width);
    }
    memcpy(payload, words, sizeof words);
    return payload + width;
}

#endif
