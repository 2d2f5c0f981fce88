// Unpacks records on a GPU, a batch at a time. record.h describes their bytes.
//
// 1. Two kernels on one stream: `unpack_rows` adds up each row's residuals, a thread a
//    row. Then `sum_columns` adds up the columns, a thread a column, or two columns
//    where their number is even.
// 2. No shared memory, barriers or atomics, so the kernels can run as C++, thread by
//    thread. Tests compare them so with the reference.
// 3. A record is not read beyond its size, even if it is damaged. If it is none that
//    the reference unpacks, errors[slice] becomes 1 and all pixels of the slice 0. The
//    host compares checksums before it uploads records.
//
// at[slice] is where a slice's record begins in `records`, a multiple of 64; sizes[slice]
// are its bytes. `out` holds `batch` slices of rows * columns pixels, and begins at a
// multiple of 4; `errors` is 0 before.
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;

#define HEADER_BYTES 32u
#define ROWS_PER_START 16u
#define BLOCK 16u
#define PADDING 16u
#define MAGIC 0x31504349u  // "ICP1"
#define NO_WIDTHS 0x6800u  // a bit for each nibble that no encoder writes: 11, 13, 14

static inline __device__ long long thread_number()
{
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

static inline __device__ uint32 round_up(uint32 size, uint32 step)
{
    return (size + step - 1u) / step * step;
}

// All nibbles but 15 are the width themselves.
static inline __device__ uint32 width_of(uint32 nibble)
{
    return nibble + (nibble == 15u);
}

// Bytes of the payload of whole rows. `bad` becomes 1 at a width that no encoder writes.
static inline __device__ uint32 payload_bytes(const uint8* widths, uint32 count,
                                              uint32* bad)
{
    uint32 bits = 0;
    for (uint32 i = 0; i < count; ++i) {
        const uint32 low = widths[i] & 15u, high = widths[i] >> 4;
        bits += BLOCK * (width_of(low) + width_of(high));
        *bad |= (NO_WIDTHS >> low | NO_WIDTHS >> high) & 1u;
    }
    return bits / 8u;
}

struct Row {
    const uint8* widths;
    const uint16* payload;  // a block is as many of these as its width
};

// Find row y of a record. False: the record is damaged.
static inline __device__ bool find_row(const uint8* record, uint32 size, uint32 y,
                                       uint32 rows, uint32 columns, Row* row)
{
    const uint32* header = (const uint32*)record;
    const uint32* starts = header + HEADER_BYTES / 4u;
    const uint32 blocks = (columns + BLOCK - 1u) / BLOCK;
    const uint32 width_bytes = (blocks + 1u) / 2u;
    const uint32 num_starts = (rows + ROWS_PER_START - 1u) / ROWS_PER_START;
    const uint32 widths_at = round_up(HEADER_BYTES + 4u * num_starts, 16u);
    const uint32 payload_at = round_up(widths_at + rows * width_bytes, 16u);
    if (size < payload_at + PADDING || header[0] != MAGIC || header[2] != size ||
        header[3] > size - payload_at - PADDING || header[4] != rows ||
        header[5] != columns)
        return false;

    // The payload begins at the start of the row's group, behind the rows between.
    const uint32 group = y / ROWS_PER_START, between = y % ROWS_PER_START;
    const uint8* widths = record + widths_at + y * width_bytes;
    uint32 bad = 0;
    const uint32 before =
        payload_bytes(widths - between * width_bytes, between * width_bytes, &bad);
    const uint32 own = payload_bytes(widths, width_bytes, &bad);
    const uint32 total = header[3], start = starts[group];
    if (bad || start % 2u || start > total || before + own > total - start) return false;
    if (y == 0u && start != 0u) return false;
    if (blocks % 2u && widths[width_bytes - 1u] >> 4) return false;  // not a block
    const uint32 end = start + before + own;
    if (y + 1u == rows ? end != total
                       : between == ROWS_PER_START - 1u && end != starts[group + 1u])
        return false;
    row->widths = widths;
    row->payload = (const uint16*)(record + payload_at + start + before);
    return true;
}

// Unpack a row, and add up its residuals from the left.
static inline __device__ void unpack_row(const Row& row, uint32 columns, uint16* out)
{
    const uint16* payload = row.payload;
    uint32 sum = 0;
    for (uint32 x = 0; x < columns; x += BLOCK) {
        const uint32 nibble = row.widths[x / BLOCK / 2u] >> x / BLOCK % 2u * 4u & 15u;
        const uint32 width = width_of(nibble), mask = (1u << width) - 1u;
        const uint32 count = columns - x < BLOCK ? columns - x : BLOCK;
        const uint16* word = payload;
        uint32 held = 0, bits = 0;
        for (uint32 i = 0; i < count; ++i) {
            if (bits < width) {
                held |= (uint32)*word++ << bits;
                bits += 16u;
            }
            const uint32 value = held & mask;
            held >>= width;
            bits -= width;
            sum += value >> 1 ^ (0u - (value & 1u));
            out[x + i] = (uint16)sum;
        }
        payload += width;
    }
}

extern "C" __global__ void unpack_rows(
    const uint8* __restrict__ records, const long long* __restrict__ at,
    const uint32* __restrict__ sizes, uint16* __restrict__ out,
    uint32* __restrict__ errors, const uint32 rows, const uint32 columns,
    const uint32 batch)
{
    const long long thread = thread_number();
    if (thread >= (long long)rows * batch) return;
    const uint32 slice = (uint32)(thread / rows), y = (uint32)(thread % rows);
    Row row;
    if (find_row(records + at[slice], sizes[slice], y, rows, columns, &row))
        unpack_row(row, columns, out + thread * columns);
    else
        errors[slice] = 1u;  // by any of its threads
}

extern "C" __global__ void sum_columns(
    uint16* __restrict__ out, const uint32* __restrict__ errors, const uint32 rows,
    const uint32 columns, const uint32 batch)
{
    const uint32 step = columns % 2u ? 1u : 2u, threads = columns / step;
    const long long thread = thread_number();
    if (thread >= (long long)threads * batch) return;
    const long long slice = thread / threads;
    uint16* column = out + slice * rows * columns + thread % threads * step;
    if (errors[slice]) {
        for (uint32 y = 0; y < rows; ++y, column += columns)
            for (uint32 x = 0; x < step; ++x) column[x] = 0;
    } else if (step == 2u) {
        uint32 left = 0, right = 0;
        for (uint32 y = 0; y < rows; ++y, column += columns) {
            uint32* both = (uint32*)column;
            left += *both;
            right += *both >> 16;
            *both = (left & 0xffffu) | right << 16;
        }
    } else {
        uint32 sum = 0;
        for (uint32 y = 0; y < rows; ++y, column += columns)
            *column = (uint16)(sum += *column);
    }
}
