/* A record: one slice, packed without loss, for every uint16 value and every shape.
 *
 * 1. Numbers are little-endian on every machine.
 * 2. A decoder reads no byte outside the record and writes none outside its output,
 *    even if the record is damaged: it returns an error, or other pixels. So the
 *    caller compares the record's checksum first. After an error the output is not
 *    valid.
 * 3. Nothing is kept between calls; several threads may call at once.
 *
 * Bytes of a record:
 *
 *      0  "ICP1"
 *      4  CRC-32C of bytes 8 to the end; written by the caller, 0 before
 *      8  bytes of the record, a multiple of 64
 *     12  bytes of the payload
 *     16  rows
 *     20  columns
 *     24  CRC-32C of the pixels, row by row, little-endian; written by the caller
 *     28  0
 *     32  starts: where the payload of rows 0, 16, 32, ... begins, a uint32 each
 *      A  widths: a nibble per block, low nibble first; each row begins on a whole
 *         byte. A = 32 + bytes of the starts, rounded up to 16
 *      B  payload: for each block 16 values of `width` bits, lowest bit first.
 *         B = A + bytes of the widths, rounded up to 16
 *      C  16 to 79 zeros. C = B + bytes of the payload
 *
 * A block is 16 neighbouring pixels of a row; the last one is filled up with values 0.
 * A value is the residual v - N - W + NW modulo 2**16 (N is the pixel above, W the one
 * to the left; 0 outside the slice), zigzag coded: 0, -1, 1, -2 become 0, 1, 2, 3. The
 * width is the number of bits of the block's largest value, rounded up to 0 to 10, 12
 * or 16. Its nibble is the width itself; 15 means 16.
 */
#ifndef ICHFAST_RECORD_H
#define ICHFAST_RECORD_H

#include <stddef.h>
#include <stdint.h>

enum record_error {
    RECORD_OK = 0,
    RECORD_BAD_HEADER = 1,  /* it is no record, or of another shape or size */
    RECORD_BAD_WIDTH = 2,   /* a width that no encoder writes */
    RECORD_BAD_START = 3,   /* a start that is not where the rows before it end */
    RECORD_BAD_PAYLOAD = 4, /* the widths do not add up to the bytes of the payload */
    RECORD_BAD_SHAPE = 5    /* no pixels, or more than 2**24 */
};

/* Which instructions are used. The output is the same. */
enum record_instructions {
    RECORD_PORTABLE = 0, /* plain C */
    RECORD_VECTOR = 1    /* AVX2 or NEON if this machine has them, else plain C */
};

/* The vector instructions of this machine: "AVX2", "NEON", or "" for none. */
const char *ichfast_vector_instructions(void);

/* Size of the buffer that `ichfast_pack` needs, bytes; 0 for a bad shape. */
size_t ichfast_max_record_bytes(uint32_t rows, uint32_t columns);

/* Pack rows * columns pixels into a buffer of ichfast_max_record_bytes. The bytes of
 * the record are in its header; both checksums are left 0. */
int ichfast_pack(const uint16_t *pixels, uint32_t rows, uint32_t columns,
                 uint8_t *record, int instructions);

/* Unpack a record of record_bytes into rows * columns pixels. */
int ichfast_unpack(const uint8_t *record, size_t record_bytes, uint32_t rows,
                   uint32_t columns, uint16_t *pixels, int instructions);

/* Unpack a record and halve its rows and columns: means of 2x2 pixels, ties to the even
 * number; an odd side is padded with zeros.
 *
 * two_rows: scratch memory of 2 * columns pixels.
 * halved: (rows + 1) / 2 * ((columns + 1) / 2) pixels. */
int ichfast_unpack_halved(const uint8_t *record, size_t record_bytes, uint32_t rows,
                          uint32_t columns, uint16_t *two_rows, uint16_t *halved,
                          int instructions);

/* Halve the rows and columns of a slice as `ichfast_unpack_halved` does. */
void ichfast_halve(const uint16_t *pixels, uint32_t rows, uint32_t columns,
                   uint16_t *halved, int instructions);

#endif
