/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes as they stand on disk: little-endian integers, variable-length integers
 * (LEB128: seven bits a byte, least significant first, at most ten bytes), a
 * reader that can't run past its end and a writer that grows.
 *
 * The reader is made for data that may lie. Its first short or malformed read
 * sets `bad`, from then on every read returns 0 or NULL, and the caller asks
 * once, at the end. Counts that come out of it are still the caller's to cap.
 */
#ifndef WHERRY_COMMON_BYTES_H
#define WHERRY_COMMON_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint16_t bytes_get_le16(const void *at);
uint32_t bytes_get_le32(const void *at);
uint64_t bytes_get_le64(const void *at);
void bytes_put_le16(void *at, uint16_t value);
void bytes_put_le32(void *at, uint32_t value);
void bytes_put_le64(void *at, uint64_t value);

/* True if all `len_bytes` are zero; 10 GiB/s or better, any alignment. */
bool bytes_are_zero(const void *at, size_t len_bytes);

/* Lower-case hex of `len_bytes` bytes, with a final NUL: `ret_text` holds 2 * len_bytes + 1. */
void bytes_to_hex(const void *at, size_t len_bytes, char *ret_text);

struct byte_reader {
	const uint8_t *at;
	const uint8_t *end;
	bool bad;
};

struct byte_reader byte_reader_over(const void *at, size_t len_bytes);
size_t byte_reader_left(const struct byte_reader *reader);
uint8_t byte_reader_u8(struct byte_reader *reader);
uint32_t byte_reader_le32(struct byte_reader *reader);
uint64_t byte_reader_le64(struct byte_reader *reader);
uint64_t byte_reader_varint(struct byte_reader *reader); /* ten bytes at most, no bits above 64, else bad */
const uint8_t *byte_reader_bytes(struct byte_reader *reader, size_t len_bytes); /* borrowed from the input */
/* A varint length of at most `max_bytes`, then that many bytes, copied with a final NUL; NULL when bad
 * (too long, cut short, a NUL inside, no memory). Caller frees. */
char *byte_reader_string(struct byte_reader *reader, size_t max_bytes);

struct byte_writer {
	uint8_t *data; /* owned; byte_writer_free() or take it */
	size_t len_bytes;
	size_t capacity_bytes;
	bool failed; /* out of memory; everything written since is missing */
};

#define BYTE_WRITER_EMPTY ((struct byte_writer){ .data = NULL })
void byte_writer_free(struct byte_writer *writer); /* leaves it empty */
void byte_writer_u8(struct byte_writer *writer, uint8_t value);
void byte_writer_le32(struct byte_writer *writer, uint32_t value);
void byte_writer_le64(struct byte_writer *writer, uint64_t value);
void byte_writer_varint(struct byte_writer *writer, uint64_t value);
void byte_writer_bytes(struct byte_writer *writer, const void *at, size_t len_bytes);
void byte_writer_string(struct byte_writer *writer, const char *text); /* varint length, bytes; NULL as "" */

#endif
