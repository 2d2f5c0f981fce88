/* What is done to one row of pixels, and its forms for different instructions. */
#ifndef ICHFAST_ROWS_H
#define ICHFAST_ROWS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    BLOCK = 16,    /* pixels whose values have one width */
    HALF = 8,      /* values are packed in two halves, of `width` bytes each */
    PADDING = 16,  /* bytes beyond the payload that may be read and overwritten */
    MAX_WIDTH = 16,
    NO_WIDTH = 99  /* of a nibble that no encoder writes */
};

/* Bits per value, by nibble. */
static const uint8_t WIDTH_OF_NIBBLE[16] = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, NO_WIDTH, 12, NO_WIDTH, NO_WIDTH, 16};

/* The narrowest sufficient width, by the bits of the largest value. */
static const uint8_t NIBBLE_OF_BITS[17] = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 12, 15, 15, 15, 15};

/* `above` is the row above in the slice, NULL for the first. */
struct row_code {
    const char *instructions;

    /* Bytes that the payload of a row has; SIZE_MAX for widths that no encoder writes.
     * All other functions need valid widths. */
    size_t (*payload_bytes)(const uint8_t *widths, size_t blocks);

    void (*unpack)(const uint8_t *widths, const uint8_t *payload, uint32_t columns,
                   const uint16_t *above, uint16_t *row);

    /* Adds to widths, which are 0 before; returns the end of the payload. */
    uint8_t *(*pack)(const uint16_t *row, const uint16_t *above, uint32_t columns,
                     uint8_t *widths, uint8_t *payload);

    /* Halve a row and the one below it, NULL beyond an odd edge. */
    void (*halve)(const uint16_t *row, const uint16_t *below, uint32_t columns,
                  uint16_t *halved);
};

extern const struct row_code ichfast_portable_rows;

/* These are NULL where the machine lacks the instructions. */
const struct row_code *ichfast_avx2_rows(void);
const struct row_code *ichfast_neon_rows(void);

/* Halve the columns from `first` on, an even number. */
void ichfast_halve_from(uint32_t first, const uint16_t *row, const uint16_t *below,
                        uint32_t columns, uint16_t *halved);

static inline unsigned nibble_of_block(const uint8_t *widths, size_t block)
{
    return widths[block / 2] >> block % 2 * 4 & 15;
}

/* Bytes of a row's payload from block `first` on, or SIZE_MAX. */
static inline size_t payload_bytes_from(size_t first, const uint8_t *widths,
                                        size_t blocks)
{
    size_t bits = 0;
    for (size_t block = first; block < blocks; block++) {
        unsigned width = WIDTH_OF_NIBBLE[nibble_of_block(widths, block)];
        if (width == NO_WIDTH)
            return SIZE_MAX;
        bits += BLOCK * width;
    }
    if (blocks % 2 && nibble_of_block(widths, blocks) != 0)
        return SIZE_MAX;
    return bits / 8;
}

static inline void set_nibble(uint8_t *widths, size_t block, unsigned nibble)
{
    widths[block / 2] |= (uint8_t)(nibble << block % 2 * 4);
}

static inline unsigned count_bits(unsigned value)
{
    unsigned bits = 0;
    while (value >> bits)
        bits++;
    return bits;
}

static inline uint16_t pixel_above(const uint16_t *above, uint32_t x)
{
    return above ? above[x] : 0;
}

#endif
