/* Unpacks damaged records by both kinds of instructions, and compares what they do.
 *
 *     damaged_records COUNT
 *
 * Every buffer is a heap block of exactly its size, so that AddressSanitizer notices any
 * access outside it. Prints how many records gave each error; fails if a sound record is
 * not unpacked to its slice, or if the two kinds differ. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "record.h"

enum { COPIES = 50, NUM_ERRORS = 6 };

struct slice {
    uint32_t rows, columns;
    uint16_t *pixels;
    size_t bytes;
};

struct record {
    uint8_t *content;
    size_t bytes;
};

static uint64_t state = 88172645463325252u; /* of xorshift64 */

static uint32_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 11) % below);
}

static void *allocate(size_t bytes)
{
    void *block = malloc(bytes ? bytes : 1);
    if (!block)
        exit(2);
    return block;
}

static void require(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static struct slice draw_slice(void)
{
    struct slice slice;
    slice.rows = 1 + draw(40);
    slice.columns = 1 + (draw(4) ? draw(140) : draw(700));
    size_t count = (size_t)slice.rows * slice.columns;
    uint32_t bits = 1 + draw(16);
    slice.bytes = count * sizeof *slice.pixels;
    slice.pixels = allocate(slice.bytes);
    for (size_t i = 0; i < count; i++)
        slice.pixels[i] = (uint16_t)(draw(9) ? draw(1u << bits) : draw(65536));
    return slice;
}

static struct record pack(struct slice slice)
{
    struct record records[2];
    size_t max_bytes = ichfast_max_record_bytes(slice.rows, slice.columns);
    for (int kind = RECORD_PORTABLE; kind <= RECORD_VECTOR; kind++) {
        uint8_t *content = allocate(max_bytes);
        int error = ichfast_pack(slice.pixels, slice.rows, slice.columns, content, kind);
        require(!error, "a slice is not packed");
        records[kind].bytes = (size_t)content[8] | (size_t)content[9] << 8 |
                              (size_t)content[10] << 16;
        records[kind].content = content;
    }
    require(records[0].bytes == records[1].bytes &&
                !memcmp(records[0].content, records[1].content, records[0].bytes),
            "the packed bytes differ");
    free(records[0].content);
    return records[1];
}

static void write_number(struct record record, size_t at, uint32_t value)
{
    for (size_t i = 0; i < 4 && at + i < record.bytes; i++)
        record.content[at + i] = (uint8_t)(value >> 8 * i);
}

/* In a block of its own: a whole or truncated copy with some of its bytes changed. */
static struct record damage(struct record sound)
{
    struct record copy = {NULL, sound.bytes};
    uint32_t kind = draw(10);
    if (kind == 0)
        copy.bytes = draw(sound.bytes + 1);
    copy.content = allocate(copy.bytes);
    memcpy(copy.content, sound.content, copy.bytes);
    if (kind == 0 && draw(4)) { /* a header that agrees */
        write_number(copy, 8, (uint32_t)copy.bytes);
        if (draw(2))
            write_number(copy, 12, draw(copy.bytes + 20));
    }
    for (uint32_t i = draw(4); i > 0 && copy.bytes; i--) {
        size_t near = copy.bytes < 160 ? copy.bytes : 160;
        size_t at = draw(draw(2) ? copy.bytes : near);
        copy.content[at] = (uint8_t)draw(256);
    }
    if (kind == 1) { /* one byte, repeated */
        size_t first = 32 + draw(copy.bytes - 32), count = draw(64);
        int value = (int)draw(256);
        memset(copy.content + first, value,
               count < copy.bytes - first ? count : copy.bytes - first);
    }
    return copy;
}

/* Unpack by both kinds; return the error. */
static int unpack(struct record record, struct slice slice, int is_sound)
{
    size_t halved_bytes = (size_t)((slice.rows + 1) / 2) * ((slice.columns + 1) / 2) * 2;
    uint16_t *pixels[2], *halved[2];
    int errors[2];
    for (int kind = RECORD_PORTABLE; kind <= RECORD_VECTOR; kind++) {
        uint16_t *two_rows = allocate(4 * (size_t)slice.columns);
        pixels[kind] = allocate(slice.bytes);
        halved[kind] = allocate(halved_bytes);
        errors[kind] = ichfast_unpack(record.content, record.bytes, slice.rows,
                                      slice.columns, pixels[kind], kind);
        int error = ichfast_unpack_halved(record.content, record.bytes, slice.rows,
                                          slice.columns, two_rows, halved[kind], kind);
        require(error == errors[kind], "halving changes the error");
        free(two_rows);
    }
    require(errors[0] == errors[1], "the errors differ");
    require(errors[0] || !memcmp(pixels[0], pixels[1], slice.bytes), "pixels differ");
    require(errors[0] || !memcmp(halved[0], halved[1], halved_bytes), "halves differ");
    if (is_sound)
        require(!errors[0] && !memcmp(pixels[0], slice.pixels, slice.bytes),
                "a sound record is not unpacked to its slice");
    for (int kind = 0; kind < 2; kind++) {
        free(pixels[kind]);
        free(halved[kind]);
    }
    return errors[0];
}

int main(int argc, char **argv)
{
    long count = argc == 2 ? atol(argv[1]) : 0, errors[NUM_ERRORS] = {0};
    for (long done = 0; done < count; done += COPIES) {
        struct slice slice = draw_slice();
        struct record record = pack(slice);
        uint8_t *exact = allocate(record.bytes);
        memcpy(exact, record.content, record.bytes);
        unpack((struct record){exact, record.bytes}, slice, 1);
        free(exact);
        for (int i = 0; i < COPIES; i++) {
            struct record damaged = damage(record);
            errors[unpack(damaged, slice, 0)]++;
            free(damaged.content);
        }
        free(record.content);
        free(slice.pixels);
    }
    printf("%s", ichfast_vector_instructions());
    for (int i = 0; i < NUM_ERRORS; i++)
        printf(" %ld", errors[i]);
    printf("\n");
    return 0;
}
