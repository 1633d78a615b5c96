/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments as somebody else might make them: records and entries of logs whose checksums are right, and whose fields
 * say anything.
 *
 *     forge list FILE                          a line for each record: OFFSET TYPE CODEC STORED PLAIN OPERATION
 *     forge flip FILE OFFSET BIT               turns one bit over
 *     forge put FILE OFFSET FIELD=VALUE…       changes a record where it stands, and makes its checksums right again
 *     forge append FILE FIELD=VALUE…           a record behind the last one; what comes after is cut off
 *     forge log FILE UUID PREDECESSOR SEQUENCE TIME OPERATION:ITEMS…
 *                                              entries of one disk's log, each the successor of the one before;
 *                                              prints the digest of the last
 *
 * Fields of a record: type, codec, cipher, reserved, stored, plain (numbers), digest (hexadecimal), payload (items),
 * content (items: what the digest is of, where that is not the payload). What isn't given is what it was, or follows
 * from the payload.
 *
 * Items, with commas between them: xHEX bytes; vN a varint; qN a u64; sTEXT a string with its length; zN zeros; fFILE
 * what is in a file.
 *
 * It knows the format from docs/store-format.md, and shares no code with what is tested.
 */
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <openssl/sha.h>
#include <xxhash.h>

enum {
	FIRST_RECORD = 4096,
	BLOCK_BYTES = 4096,
	HEADER_BYTES = 64,
	CHECKED_BYTES = 56,
	DIGEST_BYTES = 32,
	LOG_HEAD_BYTES = 66,
	FILE_MOST_BYTES = 128 << 20,
	PAYLOAD_MOST_BYTES = 4 << 20,
};

/* ---- bytes ---- */

struct bytes {
	uint8_t *data;
	size_t count;
};

static void add(struct bytes *to, const void *data, size_t count)
{
	if (count > FILE_MOST_BYTES - to->count)
		errx(2, "more than %d bytes", FILE_MOST_BYTES);
	to->data = realloc(to->data, to->count + count + 1);
	if (to->data == NULL)
		err(2, "memory");
	if (count > 0)
		memcpy(to->data + to->count, data, count);
	to->count += count;
}

static void put_number(uint8_t *at, uint64_t value, int count)
{
	for (int i = 0; i < count; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_number(const uint8_t *at, int count)
{
	uint64_t value = 0;

	for (int i = 0; i < count; i++)
		value |= (uint64_t)at[i] << (8 * i);
	return value;
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 0);

	if (*text == '\0' || *end != '\0')
		errx(2, "%s: not a number", text);
	return value;
}

static void add_hex(struct bytes *to, const char *text)
{
	for (; *text != '\0'; text += 2) {
		char pair[3] = {text[0], text[1], '\0'};
		char *end;
		uint8_t byte = (uint8_t)strtoul(pair, &end, 16);

		if (end != pair + 2)
			errx(2, "%s: not pairs of hexadecimal digits", text);
		add(to, &byte, 1);
	}
}

static void add_varint(struct bytes *to, uint64_t value)
{
	uint8_t byte;

	do {
		byte = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
		add(to, &byte, 1);
		value >>= 7;
	} while (value > 0);
}

static void add_file(struct bytes *to, const char *path)
{
	uint8_t buffer[65536];
	size_t got_bytes;
	FILE *file = fopen(path, "re");

	if (file == NULL)
		err(2, "%s", path);
	while ((got_bytes = fread(buffer, 1, sizeof(buffer), file)) > 0)
		add(to, buffer, got_bytes);
	if (ferror(file) != 0)
		err(2, "%s", path);
	(void)fclose(file); /* only read */
}

static void add_item(struct bytes *to, const char *item)
{
	uint8_t eight[8];

	switch (item[0]) {
	case 'x':
		add_hex(to, item + 1);
		break;
	case 'v':
		add_varint(to, number(item + 1));
		break;
	case 'q':
		put_number(eight, number(item + 1), 8);
		add(to, eight, sizeof(eight));
		break;
	case 's':
		add_varint(to, strlen(item + 1));
		add(to, item + 1, strlen(item + 1));
		break;
	case 'f':
		add_file(to, item + 1);
		break;
	case 'z':
		for (uint64_t left = number(item + 1); left > 0; left--)
			add(to, "", 1);
		break;
	default:
		errx(2, "%s: no such item", item);
	}
}

static struct bytes items(char *text)
{
	struct bytes result = {.count = 0};
	char *item;

	add(&result, "", 0);
	while ((item = strsep(&text, ",")) != NULL)
		if (*item != '\0')
			add_item(&result, item);
	return result;
}

/* ---- a segment ---- */

static uint64_t record_bytes(const uint8_t *header)
{
	return (HEADER_BYTES + get_number(header + 8, 4) + 7) / 8 * 8;
}

static bool is_record(const struct bytes *segment, uint64_t at)
{
	const uint8_t *header = segment->data + at;

	return at + HEADER_BYTES <= segment->count && memcmp(header, "wRC1", 4) == 0 &&
	       get_number(header + CHECKED_BYTES, 8) == XXH3_64bits(header, CHECKED_BYTES) &&
	       at + record_bytes(header) <= segment->count;
}

/* Where the next record is, from the end of one on; the same place if there is none. */
static uint64_t next_record(const struct bytes *segment, uint64_t at)
{
	uint64_t block = (at + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;

	if (is_record(segment, at))
		return at;
	return is_record(segment, block) ? block : at;
}

static void print_record(const struct bytes *segment, uint64_t at)
{
	const uint8_t *header = segment->data + at;
	bool is_log = header[4] == 2 && header[5] == 0;

	printf("%" PRIu64 " %u %u %" PRIu64 " %" PRIu64 " %u\n", at, header[4], header[5], get_number(header + 8, 4),
	       get_number(header + 12, 4), is_log ? header[HEADER_BYTES + 1] : 0u);
}

static uint64_t walk(const struct bytes *segment, bool prints)
{
	uint64_t at = next_record(segment, FIRST_RECORD);

	while (is_record(segment, at)) {
		if (prints)
			print_record(segment, at);
		at = next_record(segment, at + record_bytes(segment->data + at));
	}
	return at;
}

static void write_file(const char *path, const struct bytes *content)
{
	FILE *file = fopen(path, "r+e");

	if (file == NULL || fwrite(content->data, 1, content->count, file) != content->count || fclose(file) != 0 ||
	    truncate(path, (off_t)content->count) != 0)
		err(2, "%s", path);
}

/* ---- records ---- */

struct record {
	uint8_t header[HEADER_BYTES];
	struct bytes payload;
	bool has_stored, has_plain, has_digest;
};

static void set_digest(struct record *record, const struct bytes *content)
{
	(void)SHA256(content->data, content->count, record->header + 16);
	record->has_digest = true;
}

static void set_field(struct record *record, char *field)
{
	static const struct {
		const char *name;
		int at, count;
	} numbers[] = {{"type", 4, 1},	   {"codec", 5, 1},  {"cipher", 6, 1},
		       {"reserved", 7, 1}, {"stored", 8, 4}, {"plain", 12, 4}};
	char *value = strchr(field, '=');
	struct bytes bytes = {.count = 0};

	if (value == NULL)
		errx(2, "%s: FIELD=VALUE", field);
	*value++ = '\0';
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		if (strcmp(field, numbers[i].name) == 0) {
			put_number(record->header + numbers[i].at, number(value), numbers[i].count);
			record->has_stored |= numbers[i].at == 8;
			record->has_plain |= numbers[i].at == 12;
			return;
		}
	if (strcmp(field, "digest") == 0) {
		add_hex(&bytes, value);
		if (bytes.count != DIGEST_BYTES)
			errx(2, "%s: no digest", value);
		memcpy(record->header + 16, bytes.data, DIGEST_BYTES);
		record->has_digest = true;
	} else if (strcmp(field, "payload") == 0) {
		record->payload = items(value);
	} else if (strcmp(field, "content") == 0) {
		bytes = items(value);
		set_digest(record, &bytes);
		put_number(record->header + 12, bytes.count, 4);
		record->has_plain = true;
	} else {
		errx(2, "%s: no such field", field);
	}
	free(bytes.data);
}

static void seal(struct record *record)
{
	if (!record->has_stored)
		put_number(record->header + 8, record->payload.count, 4);
	if (!record->has_plain)
		put_number(record->header + 12, record->payload.count, 4);
	if (!record->has_digest)
		set_digest(record, &record->payload);
	put_number(record->header + 48, XXH3_64bits(record->payload.data, record->payload.count), 8);
	put_number(record->header + CHECKED_BYTES, XXH3_64bits(record->header, CHECKED_BYTES), 8);
}

static void append_record(struct bytes *segment, struct record *record)
{
	static const uint8_t zeros[BLOCK_BYTES];
	uint64_t end = walk(segment, false);

	seal(record);
	segment->count = end;
	add(segment, record->header, HEADER_BYTES);
	add(segment, record->payload.data, record->payload.count);
	add(segment, zeros, (BLOCK_BYTES - segment->count % BLOCK_BYTES) % BLOCK_BYTES);
}

static void append_fields(struct bytes *segment, char **fields)
{
	struct record record = {.header = "wRC1\1"};

	record.payload = items((char[]){""});
	for (; *fields != NULL; fields++)
		set_field(&record, *fields);
	append_record(segment, &record);
	free(record.payload.data);
}

static void put_fields(struct bytes *segment, uint64_t at, char **fields)
{
	struct record record = {.has_stored = true, .has_plain = true, .has_digest = true};

	if (!is_record(segment, at))
		errx(2, "there is no record at %" PRIu64, at);
	memcpy(record.header, segment->data + at, HEADER_BYTES);
	add(&record.payload, segment->data + at + HEADER_BYTES, get_number(record.header + 8, 4));
	for (; *fields != NULL; fields++)
		set_field(&record, *fields);
	if (record.payload.count > segment->count - at - HEADER_BYTES)
		errx(2, "a payload that long has no room");
	seal(&record);
	memcpy(segment->data + at, record.header, HEADER_BYTES);
	memcpy(segment->data + at + HEADER_BYTES, record.payload.data, record.payload.count);
	free(record.payload.data);
}

/* ---- logs ---- */

static void append_entries(struct bytes *segment, char **arguments)
{
	struct bytes uuid = {.count = 0}, predecessor = {.count = 0};
	uint64_t sequence, seconds;

	add_hex(&uuid, arguments[0]);
	add_hex(&predecessor, arguments[1]);
	sequence = number(arguments[2]);
	seconds = number(arguments[3]);
	if (uuid.count != 16 || predecessor.count != DIGEST_BYTES)
		errx(2, "a uuid has 16 bytes, a predecessor 32");
	for (char **entry = arguments + 4; *entry != NULL; entry++, sequence++) {
		char *body = strchr(*entry, ':');
		uint8_t head[LOG_HEAD_BYTES] = {1};
		struct record record = {.header = "wRC1\2"};
		struct bytes rest;

		if (body == NULL)
			errx(2, "%s: OPERATION:ITEMS", *entry);
		*body++ = '\0';
		head[1] = (uint8_t)number(*entry);
		put_number(head + 2, sequence, 8);
		memcpy(head + 10, uuid.data, 16);
		memcpy(head + 26, predecessor.data, DIGEST_BYTES);
		put_number(head + 58, seconds, 8);
		rest = items(body);
		add(&record.payload, head, sizeof(head));
		add(&record.payload, rest.data, rest.count);
		append_record(segment, &record);
		memcpy(predecessor.data, record.header + 16, DIGEST_BYTES);
		free(rest.data);
		free(record.payload.data);
	}
	for (int i = 0; i < DIGEST_BYTES; i++)
		printf("%02x", predecessor.data[i]);
	printf("\n");
	free(uuid.data);
	free(predecessor.data);
}

int main(int argc, char **argv)
{
	struct bytes segment = {.count = 0};
	const char *verb = argc >= 3 ? argv[1] : "";
	bool changes = true;

	if (argc >= 3)
		add_file(&segment, argv[2]);
	if (strcmp(verb, "list") == 0 && argc == 3) {
		(void)walk(&segment, true);
		changes = false;
	} else if (strcmp(verb, "flip") == 0 && argc == 5 && number(argv[3]) < segment.count) {
		segment.data[number(argv[3])] ^= (uint8_t)(1u << (number(argv[4]) & 7));
	} else if (strcmp(verb, "put") == 0 && argc >= 5) {
		put_fields(&segment, number(argv[3]), argv + 4);
	} else if (strcmp(verb, "append") == 0 && argc >= 4) {
		append_fields(&segment, argv + 3);
	} else if (strcmp(verb, "log") == 0 && argc >= 8) {
		append_entries(&segment, argv + 3);
	} else {
		errx(2, "usage: see the head of tests/helpers/forge.c");
	}
	if (changes)
		write_file(argv[2], &segment);
	free(segment.data);
	return 0;
}
