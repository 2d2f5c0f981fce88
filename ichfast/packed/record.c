/* Records of whole slices; record.h describes them. */
#include "record.h"

#include "rows.h"

enum { HEADER_BYTES = 32, ROWS_PER_START = 16, RECORD_ALIGNMENT = 64 };

static const uint8_t MAGIC[4] = {'I', 'C', 'P', '1'};
static const uint64_t MAX_PIXELS = (uint64_t)1 << 24;

static uint32_t read_uint32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void write_uint32(uint8_t *p, size_t value)
{
    for (unsigned i = 0; i < 4; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

/* step: a power of two. */
static size_t round_up(size_t bytes, size_t step)
{
    return (bytes + step - 1) & ~(step - 1);
}

/* Where the parts of a record begin. */
struct layout {
    size_t blocks;      /* in a row */
    size_t width_bytes; /* in a row */
    size_t widths, payload;
};

static int find_layout(uint32_t rows, uint32_t columns, struct layout *layout)
{
    if (!rows || !columns || (uint64_t)rows * columns > MAX_PIXELS)
        return 0;
    size_t starts = round_up(rows, ROWS_PER_START) / ROWS_PER_START;
    layout->blocks = round_up(columns, BLOCK) / BLOCK;
    layout->width_bytes = (layout->blocks + 1) / 2;
    layout->widths = round_up(HEADER_BYTES + 4 * starts, 16);
    layout->payload = round_up(layout->widths + rows * layout->width_bytes, 16);
    return 1;
}

static const struct row_code *choose_rows(int instructions)
{
    const struct row_code *vector = NULL;
    if (instructions == RECORD_VECTOR) {
        vector = ichfast_avx2_rows();
        if (!vector)
            vector = ichfast_neon_rows();
    }
    return vector ? vector : &ichfast_portable_rows;
}

const char *ichfast_vector_instructions(void)
{
    return choose_rows(RECORD_VECTOR)->instructions;
}

size_t ichfast_max_record_bytes(uint32_t rows, uint32_t columns)
{
    struct layout layout;
    if (!find_layout(rows, columns, &layout))
        return 0;
    size_t payload_bytes = rows * layout.blocks * BLOCK * sizeof(uint16_t);
    return round_up(layout.payload + payload_bytes + PADDING, RECORD_ALIGNMENT);
}

int ichfast_pack(const uint16_t *pixels, uint32_t rows, uint32_t columns,
                 uint8_t *record, int instructions)
{
    const struct row_code *code = choose_rows(instructions);
    struct layout layout;
    if (!find_layout(rows, columns, &layout))
        return RECORD_BAD_SHAPE;
    memset(record, 0, layout.payload);
    uint8_t *const payload = record + layout.payload, *end = payload;
    const uint16_t *above = NULL;
    for (uint32_t y = 0; y < rows; y++) {
        const uint16_t *row = pixels + (size_t)y * columns;
        if (y % ROWS_PER_START == 0)
            write_uint32(record + HEADER_BYTES + y / ROWS_PER_START * 4,
                         (size_t)(end - payload));
        uint8_t *widths = record + layout.widths + y * layout.width_bytes;
        end = code->pack(row, above, columns, widths, end);
        above = row;
    }
    size_t used = (size_t)(end - record);
    size_t record_bytes = round_up(used + PADDING, RECORD_ALIGNMENT);
    memset(end, 0, record_bytes - used);
    memcpy(record, MAGIC, sizeof MAGIC);
    write_uint32(record + 8, record_bytes);
    write_uint32(record + 12, used - layout.payload);
    write_uint32(record + 16, rows);
    write_uint32(record + 20, columns);
    return RECORD_OK;
}

static int has_header(const uint8_t *record, size_t record_bytes, uint32_t rows,
                      uint32_t columns, struct layout *layout)
{
    return find_layout(rows, columns, layout)
           && record_bytes >= layout->payload + PADDING
           && !memcmp(record, MAGIC, sizeof MAGIC)
           && read_uint32(record + 8) == record_bytes
           && read_uint32(record + 12) <= record_bytes - layout->payload - PADDING
           && read_uint32(record + 16) == rows && read_uint32(record + 20) == columns;
}

/* Reads the rows of a record one after another. */
struct row_reader {
    const struct row_code *code;
    const uint8_t *record;
    struct layout layout;
    uint32_t columns, y;
    size_t at, payload_bytes; /* read so far, and in all */
};

static int begin_reading(struct row_reader *reader, const uint8_t *record,
                         size_t record_bytes, uint32_t rows, uint32_t columns,
                         int instructions)
{
    if (!has_header(record, record_bytes, rows, columns, &reader->layout))
        return RECORD_BAD_HEADER;
    reader->code = choose_rows(instructions);
    reader->record = record;
    reader->columns = columns;
    reader->y = 0;
    reader->at = 0;
    reader->payload_bytes = read_uint32(record + 12);
    return RECORD_OK;
}

/* The widths of a row are added up before it is read: this bounds all reading. */
static int read_row(struct row_reader *reader, const uint16_t *above, uint16_t *row)
{
    const struct layout *layout = &reader->layout;
    uint32_t y = reader->y++;
    const uint8_t *widths = reader->record + layout->widths + y * layout->width_bytes;
    const uint8_t *start = reader->record + HEADER_BYTES + y / ROWS_PER_START * 4;
    size_t bytes = reader->code->payload_bytes(widths, layout->blocks);
    if (bytes == SIZE_MAX)
        return RECORD_BAD_WIDTH;
    if (y % ROWS_PER_START == 0 && read_uint32(start) != reader->at)
        return RECORD_BAD_START;
    if (bytes > reader->payload_bytes - reader->at)
        return RECORD_BAD_PAYLOAD;
    reader->code->unpack(widths, reader->record + layout->payload + reader->at,
                         reader->columns, above, row);
    reader->at += bytes;
    return RECORD_OK;
}

static int end_reading(const struct row_reader *reader)
{
    return reader->at == reader->payload_bytes ? RECORD_OK : RECORD_BAD_PAYLOAD;
}

int ichfast_unpack(const uint8_t *record, size_t record_bytes, uint32_t rows,
                   uint32_t columns, uint16_t *pixels, int instructions)
{
    struct row_reader reader;
    int error = begin_reading(&reader, record, record_bytes, rows, columns, instructions);
    const uint16_t *above = NULL;
    for (uint32_t y = 0; !error && y < rows; y++) {
        uint16_t *row = pixels + (size_t)y * columns;
        error = read_row(&reader, above, row);
        above = row;
    }
    return error ? error : end_reading(&reader);
}

int ichfast_unpack_halved(const uint8_t *record, size_t record_bytes, uint32_t rows,
                          uint32_t columns, uint16_t *two_rows, uint16_t *halved,
                          int instructions)
{
    struct row_reader reader;
    int error = begin_reading(&reader, record, record_bytes, rows, columns, instructions);
    uint16_t *const even = two_rows, *const odd = two_rows + columns;
    for (uint32_t y = 0; !error && y < rows; y += 2) {
        error = read_row(&reader, y ? odd : NULL, even);
        if (!error && y + 1 < rows)
            error = read_row(&reader, even, odd);
        if (!error)
            reader.code->halve(even, y + 1 < rows ? odd : NULL, columns, halved);
        halved += columns / 2 + columns % 2;
    }
    return error ? error : end_reading(&reader);
}

void ichfast_halve(const uint16_t *pixels, uint32_t rows, uint32_t columns,
                   uint16_t *halved, int instructions)
{
    const struct row_code *code = choose_rows(instructions);
    for (uint32_t y = 0; y < rows; y += 2) {
        const uint16_t *row = pixels + (size_t)y * columns;
        code->halve(row, y + 1 < rows ? row + columns : NULL, columns, halved);
        halved += columns / 2 + columns % 2;
    }
}
