/* Rows with NEON, which every aarch64 machine has. */
#include "rows.h"

#if defined(__aarch64__) && !defined(__AARCH64EB__)

#include <arm_neon.h>

#include "halves.h"

static size_t payload_bytes(const uint8_t *widths, size_t blocks)
{
    const uint8x16_t table = vld1q_u8(WIDTH_OF_NIBBLE);
    size_t sum = 0, i = 0;
    uint8x16_t largest = vdupq_n_u8(0);
    for (; i + 16 <= blocks / 2; i += 16) {
        uint8x16_t both = vld1q_u8(widths + i);
        uint8x16_t even = vqtbl1q_u8(table, vandq_u8(both, vdupq_n_u8(15)));
        uint8x16_t odd = vqtbl1q_u8(table, vshrq_n_u8(both, 4));
        largest = vmaxq_u8(largest, vmaxq_u8(even, odd));
        sum += vaddlvq_u8(vaddq_u8(even, odd)); /* at most 198 a lane */
    }
    size_t rest = payload_bytes_from(2 * i, widths, blocks);
    if (vmaxvq_u8(largest) == NO_WIDTH || rest == SIZE_MAX)
        return SIZE_MAX;
    return rest + BLOCK / 8 * sum;
}

/* The residuals of half a block. */
static inline uint16x8_t unpack_half(const uint8_t *payload, unsigned nibble,
                                     unsigned width)
{
    uint8x16_t bytes = vreinterpretq_u8_u16(vld1q_u16(BYTES_OF_VALUES[nibble]));
    uint16x8_t v = vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(payload), bytes));
    v = vmulq_u16(v, vld1q_u16(LIFT_OF_VALUES[nibble]));
    v = vshlq_u16(v, vdupq_n_s16((int16_t)((int)width - MAX_WIDTH)));
    uint16x8_t sign = vsubq_u16(vdupq_n_u16(0), vandq_u16(v, vdupq_n_u16(1)));
    return veorq_u16(vshrq_n_u16(v, 1), sign);
}

/* Running sums, from the sum of the pixels before (in every lane) on. */
static inline uint16x8_t sum_half(uint16x8_t v, uint16x8_t *before)
{
    const uint16x8_t zero = vdupq_n_u16(0);
    v = vaddq_u16(v, vextq_u16(zero, v, 7));
    v = vaddq_u16(v, vextq_u16(zero, v, 6));
    v = vaddq_u16(v, vextq_u16(zero, v, 4));
    v = vaddq_u16(v, *before);
    *before = vdupq_laneq_u16(v, 7);
    return v;
}

static inline void store_pixels(uint16x8_t v, uint32_t x, uint32_t columns,
                                const uint16_t *above, uint16_t *row)
{
    if (x + HALF <= columns) {
        if (above)
            v = vaddq_u16(v, vld1q_u16(above + x));
        vst1q_u16(row + x, v);
        return;
    }
    uint16_t end[HALF];
    vst1q_u16(end, v);
    for (uint32_t i = 0; x + i < columns; i++)
        row[x + i] = (uint16_t)(end[i] + pixel_above(above, x + i));
}

static void unpack(const uint8_t *widths, const uint8_t *payload, uint32_t columns,
                   const uint16_t *above, uint16_t *row)
{
    uint16x8_t before = vdupq_n_u16(0);
    for (uint32_t x = 0; x < columns; x += BLOCK) {
        unsigned nibble = nibble_of_block(widths, x / BLOCK);
        unsigned width = WIDTH_OF_NIBBLE[nibble];
        uint16x8_t v = sum_half(unpack_half(payload, nibble, width), &before);
        store_pixels(v, x, columns, above, row);
        v = sum_half(unpack_half(payload + width, nibble, width), &before);
        store_pixels(v, x + HALF, columns, above, row);
        payload += 2 * width;
    }
}

/* Pixels less those above; 0 beyond the row. */
static inline uint16x8_t subtract_above(const uint16_t *row, const uint16_t *above,
                                        uint32_t x, uint32_t columns)
{
    if (x + HALF <= columns) {
        uint16x8_t v = vld1q_u16(row + x);
        return above ? vsubq_u16(v, vld1q_u16(above + x)) : v;
    }
    uint16_t end[HALF] = {0};
    for (uint32_t i = 0; x + i < columns; i++)
        end[i] = (uint16_t)(row[x + i] - pixel_above(above, x + i));
    return vld1q_u16(end);
}

/* The values of half a block; 0 beyond the row. */
static inline uint16x8_t zigzag(uint16x8_t down, uint16x8_t before, uint32_t x,
                                uint32_t columns)
{
    int16x8_t residual =
        vreinterpretq_s16_u16(vsubq_u16(down, vextq_u16(before, down, 7)));
    uint16x8_t v = vreinterpretq_u16_s16(
        veorq_s16(vshlq_n_s16(residual, 1), vshrq_n_s16(residual, 15)));
    if (x + HALF > columns) {
        uint16_t end[HALF] = {0};
        vst1q_u16(end, v);
        for (uint32_t i = columns > x ? columns - x : 0; i < HALF; i++)
            end[i] = 0;
        v = vld1q_u16(end);
    }
    return v;
}

static inline uint8_t *pack_half(uint16x8_t values, unsigned width, uint8_t *payload)
{
    if (width == MAX_WIDTH) {
        vst1q_u8(payload, vreinterpretq_u8_u16(values));
        return payload + MAX_WIDTH;
    }
    /* Two values to 2 * width bits, then four to 4 * width. */
    uint32x4_t v = vreinterpretq_u32_u16(values);
    uint32x4_t two = vorrq_u32(
        vandq_u32(v, vdupq_n_u32(0xffff)),
        vshlq_u32(vshrq_n_u32(v, 16), vdupq_n_s32((int32_t)width)));
    uint64x2_t w = vreinterpretq_u64_u32(two);
    uint64x2_t four = vorrq_u64(
        vandq_u64(w, vdupq_n_u64(0xffffffff)),
        vshlq_u64(vshrq_n_u64(w, 32), vdupq_n_s64((int64_t)(2 * width))));
    return store_half(payload, vgetq_lane_u64(four, 0), vgetq_lane_u64(four, 1), width);
}

static uint8_t *pack(const uint16_t *row, const uint16_t *above, uint32_t columns,
                     uint8_t *widths, uint8_t *payload)
{
    uint16x8_t before = vdupq_n_u16(0);
    for (uint32_t x = 0; x < columns; x += BLOCK) {
        uint16x8_t down = subtract_above(row, above, x, columns);
        uint16x8_t first = zigzag(down, before, x, columns);
        before = down;
        down = subtract_above(row, above, x + HALF, columns);
        uint16x8_t second = zigzag(down, before, x + HALF, columns);
        before = down;
        unsigned all = vmaxvq_u16(vorrq_u16(first, second));
        unsigned nibble = NIBBLE_OF_BITS[all ? 32 - (unsigned)__builtin_clz(all) : 0];
        set_nibble(widths, x / BLOCK, nibble);
        payload = pack_half(first, WIDTH_OF_NIBBLE[nibble], payload);
        payload = pack_half(second, WIDTH_OF_NIBBLE[nibble], payload);
    }
    return payload;
}

/* The means of 8 pixels and the 8 below. */
static inline uint16x4_t halve8(const uint16_t *row, const uint16_t *below)
{
    const uint32x4_t one = vdupq_n_u32(1);
    uint32x4_t sum = vpadalq_u16(vpaddlq_u16(vld1q_u16(row)), vld1q_u16(below));
    uint32x4_t is_odd = vandq_u32(vshrq_n_u32(sum, 2), one);
    return vshrn_n_u32(vaddq_u32(sum, vaddq_u32(one, is_odd)), 2);
}

static void halve(const uint16_t *row, const uint16_t *below, uint32_t columns,
                  uint16_t *halved)
{
    uint32_t x = 0;
    for (; below && columns - x >= HALF; x += HALF)
        vst1_u16(halved + x / 2, halve8(row + x, below + x));
    ichfast_halve_from(x, row, below, columns, halved);
}

static const struct row_code NEON_ROWS = {"NEON", payload_bytes, unpack, pack, halve};

const struct row_code *ichfast_neon_rows(void)
{
    return &NEON_ROWS;
}

#else

const struct row_code *ichfast_neon_rows(void)
{
    return NULL;
}

#endif
