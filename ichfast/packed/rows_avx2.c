/* Rows with AVX2, for x86-64; chosen when the machine has it. */
#include "rows.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include "halves.h"

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE __attribute__((target("avx2"), always_inline)) static inline

AVX2_INLINE __m256i load16(const uint16_t *pixels)
{
    return _mm256_loadu_si256((const __m256i *)pixels);
}

AVX2_INLINE void store16(uint16_t *pixels, __m256i v)
{
    _mm256_storeu_si256((__m256i *)pixels, v);
}

/* The same 16 bytes in both halves. */
AVX2_INLINE __m256i load_twice(const void *p)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
}

AVX2 static size_t payload_bytes(const uint8_t *widths, size_t blocks)
{
    const __m128i table = _mm_loadu_si128((const __m128i *)WIDTH_OF_NIBBLE);
    const __m128i low = _mm_set1_epi8(15), zero = _mm_setzero_si128();
    __m128i sum = zero, all = zero;
    size_t i = 0;
    for (; i + 8 <= blocks / 2; i += 8) {
        __m128i v = _mm_loadl_epi64((const __m128i *)(widths + i));
        v = _mm_unpacklo_epi64(v, _mm_srli_epi16(v, 4));
        v = _mm_shuffle_epi8(table, _mm_and_si128(v, low));
        all = _mm_or_si128(all, v);
        sum = _mm_add_epi64(sum, _mm_sad_epu8(v, zero));
    }
    size_t rest = payload_bytes_from(2 * i, widths, blocks);
    sum = _mm_add_epi64(sum, _mm_unpackhi_epi64(sum, sum));
    /* Only NO_WIDTH has the bit of 64, which this moves to the sign. */
    int has_no_width = _mm_movemask_epi8(_mm_slli_epi16(all, 1));
    if (has_no_width || rest == SIZE_MAX)
        return SIZE_MAX;
    return rest + BLOCK / 8 * (size_t)_mm_cvtsi128_si64(sum);
}

/* The residuals of a block. */
AVX2_INLINE __m256i unpack_block(const uint8_t *payload, unsigned nibble, unsigned width)
{
    __m256i v = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)payload)),
        _mm_loadu_si128((const __m128i *)(payload + width)), 1);
    v = _mm256_shuffle_epi8(v, load_twice(BYTES_OF_VALUES[nibble]));
    v = _mm256_mullo_epi16(v, load_twice(LIFT_OF_VALUES[nibble]));
    v = _mm256_srl_epi16(v, _mm_cvtsi32_si128((int)(MAX_WIDTH - width)));
    __m256i sign = _mm256_and_si256(v, _mm256_set1_epi16(1));
    sign = _mm256_sub_epi16(_mm256_setzero_si256(), sign);
    return _mm256_xor_si256(_mm256_srli_epi16(v, 1), sign);
}

/* Running sums of a block, from the sum of the blocks before it (in every lane) on. */
AVX2_INLINE __m256i sum_block(__m256i v, __m256i *before)
{
    const __m256i last = _mm256_set1_epi16(0x0f0e);
    v = _mm256_add_epi16(v, _mm256_slli_si256(v, 2));
    v = _mm256_add_epi16(v, _mm256_slli_si256(v, 4));
    v = _mm256_add_epi16(v, _mm256_slli_si256(v, 8));
    /* So far of each half alone: add the total of the first half to the second. */
    __m256i totals = _mm256_shuffle_epi8(v, last);
    v = _mm256_add_epi16(v, _mm256_permute2x128_si256(totals, totals, 0x08));
    v = _mm256_add_epi16(v, *before);
    totals = _mm256_add_epi16(totals, _mm256_permute2x128_si256(totals, totals, 0x01));
    *before = _mm256_add_epi16(*before, totals);
    return v;
}

AVX2 static void unpack(const uint8_t *widths, const uint8_t *payload, uint32_t columns,
                        const uint16_t *above, uint16_t *row)
{
    __m256i before = _mm256_setzero_si256();
    for (uint32_t x = 0; x < columns; x += BLOCK) {
        unsigned nibble = nibble_of_block(widths, x / BLOCK);
        unsigned width = WIDTH_OF_NIBBLE[nibble];
        __m256i v = sum_block(unpack_block(payload, nibble, width), &before);
        payload += 2 * width;
        if (columns - x >= BLOCK) {
            if (above)
                v = _mm256_add_epi16(v, load16(above + x));
            store16(row + x, v);
        } else {
            uint16_t end[BLOCK];
            store16(end, v);
            for (uint32_t i = 0; i < columns - x; i++)
                row[x + i] = (uint16_t)(end[i] + pixel_above(above, x + i));
        }
    }
}

/* Pixels less those above; 0 beyond the row. */
AVX2_INLINE __m256i subtract_above(const uint16_t *row, const uint16_t *above,
                                   uint32_t x, uint32_t count)
{
    if (count == BLOCK) {
        __m256i v = load16(row + x);
        return above ? _mm256_sub_epi16(v, load16(above + x)) : v;
    }
    uint16_t end[BLOCK] = {0};
    for (uint32_t i = 0; i < count; i++)
        end[i] = (uint16_t)(row[x + i] - pixel_above(above, x + i));
    return load16(end);
}

/* The values of a block; 0 beyond the row. */
AVX2_INLINE __m256i zigzag(__m256i residual, uint32_t count)
{
    __m256i v = _mm256_xor_si256(_mm256_slli_epi16(residual, 1),
                                 _mm256_srai_epi16(residual, 15));
    if (count < BLOCK) {
        uint16_t end[BLOCK];
        store16(end, v);
        memset(end + count, 0, (BLOCK - count) * sizeof *end);
        v = load16(end);
    }
    return v;
}

/* The nibble of the narrowest sufficient width. */
AVX2_INLINE unsigned choose_nibble(__m256i values)
{
    __m128i all = _mm_or_si128(_mm256_castsi256_si128(values),
                               _mm256_extracti128_si256(values, 1));
    all = _mm_or_si128(all, _mm_srli_si128(all, 8));
    uint64_t four = (uint64_t)_mm_cvtsi128_si64(all);
    four |= four >> 32;
    unsigned one = (unsigned)((four | four >> 16) & 0xffff);
    return NIBBLE_OF_BITS[one ? 32 - (unsigned)__builtin_clz(one) : 0];
}

AVX2_INLINE uint8_t *pack_values(__m256i values, unsigned width, uint8_t *payload)
{
    if (width == MAX_WIDTH) {
        _mm256_storeu_si256((__m256i *)payload, values);
        return payload + 2 * MAX_WIDTH;
    }
    /* Two values to 2 * width bits, then four to 4 * width. */
    const __m256i factors = _mm256_set1_epi32((int)(1u | 1u << (16 + width)));
    __m256i two = _mm256_madd_epi16(values, factors);
    __m256i four = _mm256_or_si256(
        _mm256_and_si256(two, _mm256_set1_epi64x(0xffffffff)),
        _mm256_sll_epi64(_mm256_srli_epi64(two, 32), _mm_cvtsi32_si128((int)(2 * width))));
    uint64_t fours[4];
    _mm256_storeu_si256((__m256i *)fours, four);
    payload = store_half(payload, fours[0], fours[1], width);
    return store_half(payload, fours[2], fours[3], width);
}

AVX2 static uint8_t *pack(const uint16_t *row, const uint16_t *above, uint32_t columns,
                          uint8_t *widths, uint8_t *payload)
{
    __m256i before = _mm256_setzero_si256();
    for (uint32_t x = 0; x < columns; x += BLOCK) {
        uint32_t count = columns - x < BLOCK ? columns - x : BLOCK;
        __m256i down = subtract_above(row, above, x, count);
        __m256i left = _mm256_alignr_epi8(
            down, _mm256_permute2x128_si256(before, down, 0x21), 14);
        __m256i values = zigzag(_mm256_sub_epi16(down, left), count);
        before = down;
        unsigned nibble = choose_nibble(values);
        set_nibble(widths, x / BLOCK, nibble);
        payload = pack_values(values, WIDTH_OF_NIBBLE[nibble], payload);
    }
    return payload;
}

AVX2_INLINE __m256i sum_pairs(__m256i v)
{
    return _mm256_add_epi32(_mm256_and_si256(v, _mm256_set1_epi32(0xffff)),
                            _mm256_srli_epi32(v, 16));
}

/* The means of 16 pixels and the 16 below, 32 bits each. */
AVX2_INLINE __m256i halve16(const uint16_t *row, const uint16_t *below)
{
    const __m256i one = _mm256_set1_epi32(1);
    __m256i sum = _mm256_add_epi32(sum_pairs(load16(row)), sum_pairs(load16(below)));
    __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(sum, 2), one);
    sum = _mm256_add_epi32(sum, _mm256_add_epi32(one, is_odd));
    return _mm256_srli_epi32(sum, 2);
}

AVX2 static void halve(const uint16_t *row, const uint16_t *below, uint32_t columns,
                       uint16_t *halved)
{
    uint32_t x = 0;
    for (; below && columns - x >= 2 * BLOCK; x += 2 * BLOCK) {
        __m256i both = _mm256_packus_epi32(halve16(row + x, below + x),
                                           halve16(row + x + BLOCK, below + x + BLOCK));
        store16(halved + x / 2, _mm256_permute4x64_epi64(both, 0xd8));
    }
    ichfast_halve_from(x, row, below, columns, halved);
}

static const struct row_code AVX2_ROWS = {"AVX2", payload_bytes, unpack, pack, halve};

const struct row_code *ichfast_avx2_rows(void)
{
    return __builtin_cpu_supports("avx2") ? &AVX2_ROWS : NULL;
}

#else

const struct row_code *ichfast_avx2_rows(void)
{
    return NULL;
}

#endif
