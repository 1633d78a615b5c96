/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes as they stand on disk; see bytes.h for what each function promises.
 *
 * Integers are put together byte by byte: compilers make one load or store of
 * it on little-endian machines, and it is right on all others and at any
 * alignment.
 *
 * A reader that has met its first bad byte jumps to its end. So a loop "while
 * something is left" over hostile input ends too, and not only a caller who
 * asks for `bad` in every step.
 *
 * A writer that has run out of memory stays failed and takes nothing more:
 * what it holds is then a prefix, never a sequence with a hole in it.
 */
#include "common/bytes.h"

#include <stdlib.h>
#include <string.h>

enum {
	VARINT_MAX_BYTES = 10, /* 64 bits in sevens */
	WRITER_FIRST_BYTES = 64,
};

uint16_t bytes_get_le16(const void *at)
{
	const uint8_t *bytes = at;

	return (uint16_t)(bytes[0] | bytes[1] << 8);
}

uint32_t bytes_get_le32(const void *at)
{
	const uint8_t *bytes = at;

	return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

uint64_t bytes_get_le64(const void *at)
{
	const uint8_t *bytes = at;

	return (uint64_t)bytes[0] | (uint64_t)bytes[1] << 8 | (uint64_t)bytes[2] << 16 | (uint64_t)bytes[3] << 24 |
	       (uint64_t)bytes[4] << 32 | (uint64_t)bytes[5] << 40 | (uint64_t)bytes[6] << 48 |
	       (uint64_t)bytes[7] << 56;
}

void bytes_put_le16(void *at, uint16_t value)
{
	uint8_t *bytes = at;

	bytes[0] = (uint8_t)value;
	bytes[1] = (uint8_t)(value >> 8);
}

void bytes_put_le32(void *at, uint32_t value)
{
	uint8_t *bytes = at;

	bytes[0] = (uint8_t)value;
	bytes[1] = (uint8_t)(value >> 8);
	bytes[2] = (uint8_t)(value >> 16);
	bytes[3] = (uint8_t)(value >> 24);
}

void bytes_put_le64(void *at, uint64_t value)
{
	uint8_t *bytes = at;

	bytes[0] = (uint8_t)value;
	bytes[1] = (uint8_t)(value >> 8);
	bytes[2] = (uint8_t)(value >> 16);
	bytes[3] = (uint8_t)(value >> 24);
	bytes[4] = (uint8_t)(value >> 32);
	bytes[5] = (uint8_t)(value >> 40);
	bytes[6] = (uint8_t)(value >> 48);
	bytes[7] = (uint8_t)(value >> 56);
}

/*
 * If the first sixteen bytes are zero, and every byte equals the one sixteen
 * further on, then all are zero. The C library's memcmp() uses the widest
 * registers the processor has, which a loop compiled for the oldest one cannot.
 */
bool bytes_are_zero(const void *at, size_t len_bytes)
{
	const uint8_t *bytes = at;
	uint8_t any_bit = 0;
	size_t head_bytes = len_bytes < 16 ? len_bytes : 16;

	for (size_t i = 0; i < head_bytes; i++)
		any_bit |= bytes[i];
	if (any_bit != 0)
		return false;
	return len_bytes == head_bytes || memcmp(bytes, bytes + 16, len_bytes - 16) == 0;
}

void bytes_to_hex(const void *at, size_t len_bytes, char *ret_text)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *bytes = at;

	for (size_t i = 0; i < len_bytes; i++) {
		ret_text[2 * i] = digits[bytes[i] >> 4];
		ret_text[2 * i + 1] = digits[bytes[i] & 15];
	}
	ret_text[2 * len_bytes] = '\0';
}

struct byte_reader byte_reader_over(const void *at, size_t len_bytes)
{
	const uint8_t *bytes = at;

	return (struct byte_reader){.at = bytes, .end = len_bytes == 0 ? bytes : bytes + len_bytes};
}

size_t byte_reader_left(const struct byte_reader *reader)
{
	return (size_t)(reader->end - reader->at);
}

static void reader_spoil(struct byte_reader *reader)
{
	reader->bad = true;
	reader->at = reader->end;
}

const uint8_t *byte_reader_bytes(struct byte_reader *reader, size_t len_bytes)
{
	const uint8_t *bytes = reader->at;

	if (reader->bad)
		return NULL;
	if (len_bytes > byte_reader_left(reader)) {
		reader_spoil(reader);
		return NULL;
	}
	if (len_bytes > 0)
		reader->at += len_bytes;
	return bytes;
}

uint8_t byte_reader_u8(struct byte_reader *reader)
{
	const uint8_t *bytes = byte_reader_bytes(reader, 1);

	return bytes == NULL ? 0 : bytes[0];
}

uint32_t byte_reader_le32(struct byte_reader *reader)
{
	const uint8_t *bytes = byte_reader_bytes(reader, 4);

	return bytes == NULL ? 0 : bytes_get_le32(bytes);
}

uint64_t byte_reader_le64(struct byte_reader *reader)
{
	const uint8_t *bytes = byte_reader_bytes(reader, 8);

	return bytes == NULL ? 0 : bytes_get_le64(bytes);
}

uint64_t byte_reader_varint(struct byte_reader *reader)
{
	uint64_t value = 0;

	for (unsigned int i = 0; i < VARINT_MAX_BYTES; i++) {
		uint8_t byte = byte_reader_u8(reader);

		if (reader->bad)
			return 0;
		if (i == VARINT_MAX_BYTES - 1 && byte > 1)
			break; /* an eleventh byte, or a bit above the 64th */
		value |= (uint64_t)(byte & 0x7f) << (7 * i);
		if (byte < 0x80)
			return value;
	}
	reader_spoil(reader);
	return 0;
}

char *byte_reader_string(struct byte_reader *reader, size_t max_bytes)
{
	uint64_t len_bytes = byte_reader_varint(reader);
	const uint8_t *bytes;
	char *text;

	if (reader->bad || len_bytes > max_bytes || len_bytes > byte_reader_left(reader)) {
		reader_spoil(reader);
		return NULL;
	}
	bytes = byte_reader_bytes(reader, (size_t)len_bytes);
	text = calloc(1, (size_t)len_bytes + 1);
	if (text == NULL || (len_bytes > 0 && memchr(bytes, '\0', (size_t)len_bytes) != NULL)) {
		free(text);
		reader_spoil(reader);
		return NULL;
	}
	if (len_bytes > 0)
		memcpy(text, bytes, (size_t)len_bytes);
	return text;
}

void byte_writer_free(struct byte_writer *writer)
{
	free(writer->data);
	*writer = BYTE_WRITER_EMPTY;
}

/* Room for `len_bytes` more, counted as written; NULL when there is none. */
static uint8_t *writer_extend(struct byte_writer *writer, size_t len_bytes)
{
	size_t needed_bytes;
	uint8_t *at;

	if (writer->failed)
		return NULL;
	if (__builtin_add_overflow(writer->len_bytes, len_bytes, &needed_bytes)) {
		writer->failed = true;
		return NULL;
	}
	if (needed_bytes > writer->capacity_bytes) {
		size_t capacity_bytes = writer->capacity_bytes == 0 ? WRITER_FIRST_BYTES : writer->capacity_bytes;
		uint8_t *data;

		while (capacity_bytes < needed_bytes)
			if (__builtin_mul_overflow(capacity_bytes, (size_t)2, &capacity_bytes))
				capacity_bytes = needed_bytes;
		data = realloc(writer->data, capacity_bytes);
		if (data == NULL) {
			writer->failed = true;
			return NULL;
		}
		writer->data = data;
		writer->capacity_bytes = capacity_bytes;
	}
	at = writer->data + writer->len_bytes;
	writer->len_bytes = needed_bytes;
	return at;
}

void byte_writer_bytes(struct byte_writer *writer, const void *at, size_t len_bytes)
{
	uint8_t *room;

	if (len_bytes == 0)
		return;
	room = writer_extend(writer, len_bytes);
	if (room != NULL)
		memcpy(room, at, len_bytes);
}

void byte_writer_u8(struct byte_writer *writer, uint8_t value)
{
	byte_writer_bytes(writer, &value, 1);
}

void byte_writer_le32(struct byte_writer *writer, uint32_t value)
{
	uint8_t *room = writer_extend(writer, 4);

	if (room != NULL)
		bytes_put_le32(room, value);
}

void byte_writer_le64(struct byte_writer *writer, uint64_t value)
{
	uint8_t *room = writer_extend(writer, 8);

	if (room != NULL)
		bytes_put_le64(room, value);
}

void byte_writer_varint(struct byte_writer *writer, uint64_t value)
{
	uint8_t bytes[VARINT_MAX_BYTES];
	size_t len_bytes = 0;

	for (; value >= 0x80; value >>= 7)
		bytes[len_bytes++] = (uint8_t)(value | 0x80);
	bytes[len_bytes++] = (uint8_t)value;
	byte_writer_bytes(writer, bytes, len_bytes);
}

void byte_writer_string(struct byte_writer *writer, const char *text)
{
	size_t len_bytes = text == NULL ? 0 : strlen(text);

	byte_writer_varint(writer, len_bytes);
	byte_writer_bytes(writer, text, len_bytes);
}
