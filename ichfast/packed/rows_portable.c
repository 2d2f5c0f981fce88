/* Rows in plain C, for every machine. */
#include "rows.h"

static uint16_t zigzag(uint16_t residual)
{
    return (uint16_t)(residual << 1 ^ -(residual >> 15));
}

static uint16_t residual_of(uint16_t value)
{
    return (uint16_t)(value >> 1 ^ -(value & 1));
}

static size_t payload_bytes(const uint8_t *widths, size_t blocks)
{
    return payload_bytes_from(0, widths, blocks);
}

/* A value of any width lies in two neighbouring bytes. */
static void unpack_half(const uint8_t *payload, unsigned width, uint16_t *values)
{
    unsigned mask = (1u << width) - 1;
    for (unsigned i = 0, bit = 0; i < HALF; i++, bit += width) {
        const uint8_t *p = payload + bit / 8;
        values[i] = (uint16_t)((p[0] | (unsigned)p[1] << 8) >> bit % 8 & mask);
    }
}

static void unpack(const uint8_t *widths, const uint8_t *payload, uint32_t columns,
                   const uint16_t *above, uint16_t *row)
{
    uint16_t values[BLOCK], sum = 0;
    for (uint32_t x = 0; x < columns; x += BLOCK) {
        unsigned width = WIDTH_OF_NIBBLE[nibble_of_block(widths, x / BLOCK)];
        unsigned count = columns - x < BLOCK ? columns - x : BLOCK;
        unpack_half(payload, width, values);
        unpack_half(payload + width, width, values + HALF);
        payload += 2 * width;
        for (unsigned i = 0; i < count; i++) {
            sum = (uint16_t)(sum + residual_of(values[i]));
            row[x + i] = (uint16_t)(sum + pixel_above(above, x + i));
        }
    }
}

static uint8_t *pack_values(const uint16_t *values, unsigned width, uint8_t *payload)
{
    unsigned held = 0, bits = 0;
    for (unsigned i = 0; i < BLOCK; i++) {
        held |= (unsigned)values[i] << bits;
        for (bits += width; bits >= 8; bits -= 8, held >>= 8)
            *payload++ = (uint8_t)held;
    }
    return payload;
}

static uint8_t *pack(const uint16_t *row, const uint16_t *above, uint32_t columns,
                     uint8_t *widths, uint8_t *payload)
{
    uint16_t left = 0; /* the last pixel, less the one above it */
    for (uint32_t x = 0; x < columns; x += BLOCK) {
        uint16_t values[BLOCK] = {0};
        unsigned count = columns - x < BLOCK ? columns - x : BLOCK, all = 0;
        for (unsigned i = 0; i < count; i++) {
            uint16_t down = (uint16_t)(row[x + i] - pixel_above(above, x + i));
            values[i] = zigzag((uint16_t)(down - left));
            left = down;
            all |= values[i];
        }
        unsigned nibble = NIBBLE_OF_BITS[count_bits(all)];
        set_nibble(widths, x / BLOCK, nibble);
        payload = pack_values(values, WIDTH_OF_NIBBLE[nibble], payload);
    }
    return payload;
}

void ichfast_halve_from(uint32_t first, const uint16_t *row, const uint16_t *below,
                        uint32_t columns, uint16_t *halved)
{
    for (uint32_t x = first; x < columns; x += 2) {
        uint32_t sum = row[x] + (uint32_t)pixel_above(below, x);
        if (x + 1 < columns)
            sum += row[x + 1] + (uint32_t)pixel_above(below, x + 1);
        halved[x / 2] = (uint16_t)((sum + 1 + (sum >> 2 & 1)) >> 2);
    }
}

static void halve(const uint16_t *row, const uint16_t *below, uint32_t columns,
                  uint16_t *halved)
{
    ichfast_halve_from(0, row, below, columns, halved);
}

const struct row_code ichfast_portable_rows = {"", payload_bytes, unpack, pack, halve};
