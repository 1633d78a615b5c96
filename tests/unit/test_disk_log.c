/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries of a disk's log. What was encoded comes back; what breaks a rule is refused, with the word for it; and what
 * chance makes of good entries is either refused or decodes to something that encodes to the very same bytes.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/disk_log.h"

enum { CHUNK_BYTES = 65536, AT_OP = 1, AT_SEQUENCE = 2, AT_PREDECESSOR = 26, AT_TIME = 58, HEAD_BYTES = 66 };

static uint8_t digests[LOG_ENTRY_MOST_CHUNKS][DIGEST_BYTES];

static struct log_entry entry_of(enum log_op op)
{
	struct log_entry entry = {.op = op, .sequence = 7, .time_seconds = 1700000000, .level = -1};

	memset(entry.disk_uuid, 0x44, sizeof(entry.disk_uuid));
	memset(entry.predecessor, 0x55, sizeof(entry.predecessor));
	return entry;
}

static struct log_entry create_entry(char *name)
{
	struct log_entry entry = entry_of(LOG_CREATE);

	entry.sequence = 1;
	memset(entry.predecessor, 0, sizeof(entry.predecessor));
	entry.name = name;
	entry.size_bytes = 8ULL << 30;
	entry.sector_bytes = 512;
	entry.chunk_bytes = CHUNK_BYTES;
	return entry;
}

static struct byte_writer encode(const struct log_entry *entry)
{
	struct byte_writer writer = BYTE_WRITER_EMPTY;

	assert_int_equal(log_entry_encode(entry, &writer, NULL), 0);
	return writer;
}

static void assert_same_text(const char *a, const char *b)
{
	assert_string_equal(a == NULL ? "" : a, b == NULL ? "" : b);
}

static void assert_same_entry(const struct log_entry *a, const struct log_entry *b)
{
	assert_int_equal(a->op, b->op);
	assert_int_equal(a->sequence, b->sequence);
	assert_memory_equal(a->disk_uuid, b->disk_uuid, DISK_UUID_BYTES);
	assert_memory_equal(a->predecessor, b->predecessor, DIGEST_BYTES);
	assert_int_equal(a->time_seconds, b->time_seconds);
	assert_same_text(a->name, b->name);
	assert_int_equal(a->size_bytes, b->size_bytes);
	assert_int_equal(a->sector_bytes, b->sector_bytes);
	assert_int_equal(a->chunk_bytes, b->chunk_bytes);
	assert_int_equal(a->generation, b->generation);
	assert_int_equal(a->image_number, b->image_number);
	assert_int_equal(a->changed_bytes, b->changed_bytes);
	assert_same_text(a->label, b->label);
	assert_int_equal(a->consistency, b->consistency);
	assert_int_equal(a->round_number, b->round_number);
	assert_same_text(a->details, b->details);
	assert_int_equal(a->pinned, b->pinned);
	assert_int_equal(a->keep, b->keep);
	assert_int_equal(a->level, b->level);
	assert_int_equal(a->limit_bytes_per_second, b->limit_bytes_per_second);
	assert_same_text(a->mirror_of, b->mirror_of);
	assert_int_equal(a->run_count, b->run_count);
	for (size_t i = 0; i < a->run_count; i++) {
		assert_int_equal(a->runs[i].first_chunk, b->runs[i].first_chunk);
		assert_int_equal(a->runs[i].chunk_count, b->runs[i].chunk_count);
		assert_int_equal(a->runs[i].kind, b->runs[i].kind);
		if (a->runs[i].kind == LOG_RUN_CHUNKS)
			assert_memory_equal(a->runs[i].digests, b->runs[i].digests,
					    a->runs[i].chunk_count * DIGEST_BYTES);
	}
	assert_int_equal(a->piece_count, b->piece_count);
	for (size_t i = 0; i < a->piece_count; i++) {
		assert_int_equal(a->pieces[i].off_bytes, b->pieces[i].off_bytes);
		assert_int_equal(a->pieces[i].len_bytes, b->pieces[i].len_bytes);
		assert_memory_equal(a->pieces[i].image_uuid, b->pieces[i].image_uuid, DISK_UUID_BYTES);
		assert_int_equal(a->pieces[i].image_number, b->pieces[i].image_number);
		assert_int_equal(a->pieces[i].image_off_bytes, b->pieces[i].image_off_bytes);
	}
}

static void assert_round_trip(const struct log_entry *entry)
{
	AUTO(byte_writer_free) struct byte_writer writer = encode(entry);
	AUTO(log_entry_free) struct log_entry back = {.op = 0};

	assert_int_equal(log_entry_decode(writer.data, writer.len_bytes, CHUNK_BYTES, &back, NULL), 0);
	assert_same_entry(entry, &back);
}

static int decode_status(const uint8_t *bytes, size_t len_bytes, struct failure *failure)
{
	AUTO(log_entry_free) struct log_entry back = {.op = 0};

	return log_entry_decode(bytes, len_bytes, CHUNK_BYTES, &back, failure);
}

static void assert_refused(const uint8_t *bytes, size_t len_bytes, const char *why)
{
	struct failure failure = {.code = 0};

	assert_int_equal(decode_status(bytes, len_bytes, &failure), -EBADMSG);
	if (strstr(failure.message, why) == NULL)
		fail_msg("\"%s\" doesn't say \"%s\"", failure.message, why);
}

/* The head of a valid entry of that op, with `body` behind it. */
static void assert_body_refused(enum log_op op, const void *body, size_t body_bytes, const char *why)
{
	char name[] = "web01";
	const struct log_entry remove = entry_of(LOG_REMOVE);
	const struct log_entry create = create_entry(name);
	AUTO(byte_writer_free) struct byte_writer writer = encode(op == LOG_CREATE ? &create : &remove);

	writer.data[AT_OP] = (uint8_t)op;
	writer.len_bytes = HEAD_BYTES;
	byte_writer_bytes(&writer, body, body_bytes);
	assert_refused(writer.data, writer.len_bytes, why);
}

#define UUID "0123456789abcdef"
#define BODY_REFUSED(op, body, why) assert_body_refused(op, body, sizeof(body) - 1, why)

/* ---- what comes back ---- */

static void entry_is_written_as_documented(void **state)
{
	static const uint8_t expected[] = {1, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44,
					   0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44, 0x55, 0x55, 0x55, 0x55, 0x55,
					   0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55,
					   0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55,
					   0x55, 0x00, 0xf1, 0x53, 0x65, 0, 0, 0, 0,
					   /* generation 300, three runs */
					   0xac, 0x02, 3,
					   /* 5 zeros at 2; 200 of nothing at 7; 1 chunk at 1000 */
					   2, 5, 1, 0, 0xc8, 0x01, 0, 0x99, 0x06, 1, 2};
	struct log_run runs[] = {
		{.first_chunk = 2, .chunk_count = 5, .kind = LOG_RUN_ZERO},
		{.first_chunk = 7, .chunk_count = 200, .kind = LOG_RUN_NOTHING},
		{.first_chunk = 1000, .chunk_count = 1, .kind = LOG_RUN_CHUNKS, .digests = &digests[9]},
	};
	struct log_entry entry = entry_of(LOG_EXTENTS);

	(void)state;
	memset(digests[9], 0x66, DIGEST_BYTES);
	entry.generation = 300;
	entry.runs = runs;
	entry.run_count = 3;
	AUTO(byte_writer_free) struct byte_writer writer = encode(&entry);
	assert_int_equal(writer.len_bytes, sizeof(expected) + DIGEST_BYTES);
	assert_memory_equal(writer.data, expected, sizeof(expected));
	assert_memory_equal(writer.data + sizeof(expected), digests[9], DIGEST_BYTES);
	assert_round_trip(&entry);
}

static void every_operation_comes_back(void **state)
{
	struct log_piece pieces[] = {{.len_bytes = 512, .image_uuid = {1, 2, 3}, .image_number = 1},
				     {.off_bytes = 512, .len_bytes = 7, .image_number = UINT32_MAX, .image_off_bytes = 512},
				     {.off_bytes = 1ULL << 50, .len_bytes = 1ULL << 60, .image_number = 9}};
	char name[] = "web01.example-net_2";
	char label[] = "before the upgrade";
	char details[] = "{\"read_errors\":[]}";
	char source[] = "/dev/sda";
	struct log_entry entry = create_entry(name);

	(void)state;
	assert_round_trip(&entry);
	entry = entry_of(LOG_RESIZE);
	entry.size_bytes = INT64_MAX;
	assert_round_trip(&entry);
	entry = entry_of(LOG_IMAGE);
	entry.image_number = UINT32_MAX;
	entry.generation = UINT32_MAX;
	entry.size_bytes = 12345678901;
	entry.changed_bytes = 17;
	entry.consistency = 2;
	entry.round_number = 300;
	assert_round_trip(&entry);
	entry.label = label;
	entry.details = details;
	assert_round_trip(&entry);
	entry = entry_of(LOG_IMAGE_DELETE);
	entry.image_number = 1;
	assert_round_trip(&entry);
	entry.op = LOG_IMAGE_PIN;
	assert_round_trip(&entry);
	entry.pinned = true;
	assert_round_trip(&entry);
	entry = entry_of(LOG_IMAGE_LABEL);
	entry.image_number = 128;
	entry.label = label;
	assert_round_trip(&entry);
	entry = entry_of(LOG_POLICY);
	assert_round_trip(&entry);
	entry.keep = 1000000;
	entry.level = 10;
	entry.limit_bytes_per_second = 12500000;
	entry.mirror_of = source;
	assert_round_trip(&entry);
	entry = entry_of(LOG_REMOVE);
	assert_round_trip(&entry);
	entry = entry_of(LOG_EXTENTS);
	assert_round_trip(&entry);
	entry = entry_of(LOG_BASE);
	assert_round_trip(&entry);
	entry.generation = 3;
	entry.pieces = pieces;
	entry.piece_count = 3;
	assert_round_trip(&entry);
}

static void the_largest_entries_come_back(void **state)
{
	static struct log_run runs[LOG_ENTRY_MOST_RUNS];
	AUTO_FREE char *details = malloc(LOG_DETAILS_MOST_BYTES + 1);
	struct log_entry entry = entry_of(LOG_EXTENTS);

	(void)state;
	for (size_t i = 0; i < LOG_ENTRY_MOST_RUNS; i++)
		runs[i] = (struct log_run){.first_chunk = 3 * i + (1ULL << 46),
					   .chunk_count = 1,
					   .kind = LOG_RUN_CHUNKS,
					   .digests = &digests[i]};
	entry.runs = runs;
	entry.run_count = LOG_ENTRY_MOST_RUNS;
	assert_round_trip(&entry);
	runs[0] = (struct log_run){.chunk_count = (1ULL << 63) / CHUNK_BYTES, .kind = LOG_RUN_ZERO};
	entry.run_count = 1;
	assert_round_trip(&entry);
	entry = entry_of(LOG_IMAGE);
	entry.image_number = 1;
	assert_non_null(details);
	memset(details, 'x', LOG_DETAILS_MOST_BYTES);
	details[LOG_DETAILS_MOST_BYTES] = '\0';
	entry.details = details;
	assert_round_trip(&entry);
}

static void too_much_for_one_entry_is_said(void **state)
{
	static struct log_run runs[LOG_ENTRY_MOST_RUNS + 1];
	AUTO_FREE char *details = malloc(LOG_DETAILS_MOST_BYTES + 2);
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	struct log_entry entry = entry_of(LOG_EXTENTS);
	struct failure failure = {.code = 0};

	(void)state;
	for (size_t i = 0; i <= LOG_ENTRY_MOST_RUNS; i++)
		runs[i] = (struct log_run){.first_chunk = i, .chunk_count = 1, .kind = LOG_RUN_ZERO};
	entry.runs = runs;
	entry.run_count = LOG_ENTRY_MOST_RUNS + 1;
	assert_int_equal(log_entry_encode(&entry, &writer, &failure), -E2BIG);
	assert_non_null(strstr(failure.message, "4096 runs"));
	runs[0] = (struct log_run){
		.chunk_count = LOG_ENTRY_MOST_CHUNKS + 1, .kind = LOG_RUN_CHUNKS, .digests = &digests[0]};
	entry.run_count = 1;
	assert_int_equal(log_entry_encode(&entry, &writer, NULL), -E2BIG);
	entry = entry_of(LOG_IMAGE);
	entry.image_number = 1;
	assert_non_null(details);
	memset(details, 'x', LOG_DETAILS_MOST_BYTES + 1);
	details[LOG_DETAILS_MOST_BYTES + 1] = '\0';
	entry.details = details;
	assert_int_equal(log_entry_encode(&entry, &writer, NULL), -E2BIG);
	assert_int_equal(writer.len_bytes, 0);
}

/* ---- what is refused ---- */

static void heads_that_break_rules_are_refused(void **state)
{
	const struct log_entry entry = entry_of(LOG_REMOVE);
	AUTO(byte_writer_free) struct byte_writer good = encode(&entry);
	uint8_t bytes[HEAD_BYTES];

	(void)state;
	assert_int_equal(good.len_bytes, HEAD_BYTES);
	memcpy(bytes, good.data, HEAD_BYTES);
	bytes[0] = 2;
	assert_refused(bytes, HEAD_BYTES, "unknown format");
	memcpy(bytes, good.data, HEAD_BYTES);
	bytes[AT_OP] = 0;
	assert_refused(bytes, HEAD_BYTES, "unknown operation");
	bytes[AT_OP] = LOG_BASE + 1;
	assert_refused(bytes, HEAD_BYTES, "out of range");
	memcpy(bytes, good.data, HEAD_BYTES);
	bytes_put_le64(bytes + AT_SEQUENCE, 0);
	assert_refused(bytes, HEAD_BYTES, "sequence");
	bytes_put_le64(bytes + AT_SEQUENCE, 1ULL << 63);
	assert_refused(bytes, HEAD_BYTES, "sequence");
	bytes_put_le64(bytes + AT_SEQUENCE, 1);
	assert_refused(bytes, HEAD_BYTES, "the first entry has a predecessor");
	memset(bytes + AT_PREDECESSOR, 0, DIGEST_BYTES);
	assert_refused(bytes, HEAD_BYTES, "creates nothing");
	bytes_put_le64(bytes + AT_SEQUENCE, 2);
	assert_refused(bytes, HEAD_BYTES, "no predecessor");
	memcpy(bytes, good.data, HEAD_BYTES);
	bytes_put_le64(bytes + AT_TIME, 1ULL << 63);
	assert_refused(bytes, HEAD_BYTES, "time");
	assert_refused(good.data, 0, "cut short");
	byte_writer_u8(&good, 0);
	assert_refused(good.data, good.len_bytes, "bytes behind the end");
}

static void creation_comes_first_and_once(void **state)
{
	char name[] = "web01";
	struct log_entry entry = create_entry(name);
	AUTO(byte_writer_free) struct byte_writer writer = encode(&entry);

	(void)state;
	bytes_put_le64(writer.data + AT_SEQUENCE, 2);
	memset(writer.data + AT_PREDECESSOR, 1, DIGEST_BYTES);
	assert_refused(writer.data, writer.len_bytes, "there already");
}

static void bad_creations_are_refused(void **state)
{
	(void)state;
	BODY_REFUSED(LOG_CREATE, "\0\1\x80\x04\x80\x80\x04", "no name");
	BODY_REFUSED(LOG_CREATE, "\1-\1\x80\x04\x80\x80\x04", "no name");
	BODY_REFUSED(LOG_CREATE, "\2aB\1\x80\x04\x80\x80\x04", "no name");
	BODY_REFUSED(LOG_CREATE, "\2a/\1\x80\x04\x80\x80\x04", "no name");
	BODY_REFUSED(LOG_CREATE, "\x40", "out of range");
	BODY_REFUSED(LOG_CREATE, "\2a\0\1\x80\x04\x80\x80\x04", "NUL");
	BODY_REFUSED(LOG_CREATE, "\1a\1\x81\x04\x80\x80\x04", "no sector size");
	BODY_REFUSED(LOG_CREATE, "\1a\1\x80\x02\x80\x80\x04", "no sector size");
	BODY_REFUSED(LOG_CREATE, "\1a\1\x80\x80\x08\x80\x80\x04", "no sector size");
	BODY_REFUSED(LOG_CREATE, "\1a\1\x80\x04\x80\x80\x08", "not the chunk size");
	BODY_REFUSED(LOG_CREATE, "\1a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x80\x04\x80\x80\x04", "out of range");
	BODY_REFUSED(LOG_CREATE, "\1a\1\x80\x04\x80\x80", "cut short");
}

static void bad_runs_are_refused(void **state)
{
	(void)state;
	BODY_REFUSED(LOG_EXTENTS, "\1\1\0\0\1", "an empty run");
	BODY_REFUSED(LOG_EXTENTS, "\1\1\0\1\3", "out of range");
	BODY_REFUSED(LOG_EXTENTS, "\1\2\0\1\1", "cut short");
	BODY_REFUSED(LOG_EXTENTS, "\1\x81\x20\0\1\1", "out of range");
	BODY_REFUSED(LOG_EXTENTS, "\1\1\0\1\2", "cut short");
	BODY_REFUSED(LOG_EXTENTS, "\1\1\0\x81\x20\2", "too many chunks");
	/* 2^63 / 65536 chunks are all that there can be */
	BODY_REFUSED(LOG_EXTENTS, "\1\1\1\x80\x80\x80\x80\x80\x80\x20\1", "beyond the end");
	BODY_REFUSED(LOG_EXTENTS, "\1\1\xff\xff\xff\xff\xff\xff\xff\xff\x7f\1\1", "beyond the end");
	BODY_REFUSED(LOG_EXTENTS,
		     "\1\2\xff\xff\xff\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff\xff\x7f\1"
		     "\xff\xff\xff\xff\xff\xff\xff\xff\x7f\1\1",
		     "beyond the end");
	BODY_REFUSED(LOG_EXTENTS, "\x80\x80\x80\x80\x10\0", "out of range");
}

static void bad_images_and_policies_are_refused(void **state)
{
	static uint8_t label[2 + LOG_LABEL_MOST_BYTES + 2] = {1, 0x80, 0x02};

	(void)state;
	BODY_REFUSED(LOG_IMAGE, "\0\1\1\1\0\0\1\0", "image number is 0");
	BODY_REFUSED(LOG_IMAGE, "\1\1\1\1\0\3\1\0", "out of range");
	BODY_REFUSED(LOG_IMAGE, "\1\1\1\1\0\0\1", "cut short");
	BODY_REFUSED(LOG_IMAGE, "\1\1\1\1\0\0\1\x81\x80\x04", "out of range");
	BODY_REFUSED(LOG_IMAGE_DELETE, "\0", "image number is 0");
	BODY_REFUSED(LOG_IMAGE_PIN, "\1\2", "out of range");
	BODY_REFUSED(LOG_IMAGE_LABEL, "\0\1a", "image number is 0");
	assert_body_refused(LOG_IMAGE_LABEL, label, sizeof(label), "out of range");
	BODY_REFUSED(LOG_POLICY, "\1\x0c\0\0", "out of range");
	BODY_REFUSED(LOG_POLICY, "\1\0\0\x81\x20", "out of range");
	BODY_REFUSED(LOG_BASE, "\1\1\0\1" UUID "\0\0", "image number is 0");
	BODY_REFUSED(LOG_BASE, "\1\1\0\0" UUID "\1\0", "an empty piece");
	BODY_REFUSED(LOG_BASE, "\1\1\0\1" UUID "\1", "cut short");
	BODY_REFUSED(LOG_BASE, "\1\2\0\1" UUID "\1\0", "cut short");
	BODY_REFUSED(LOG_BASE, "\1\1\0\1" UUID "\1\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "beyond the end");
	BODY_REFUSED(LOG_BASE, "\1\1\1\xff\xff\xff\xff\xff\xff\xff\xff\x7f" UUID "\1\0", "beyond the end");
	BODY_REFUSED(LOG_BASE, "\1\x81\x20", "out of range");
	BODY_REFUSED(LOG_RESIZE, "", "cut short");
	BODY_REFUSED(LOG_RESIZE, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\1", "no number");
}

static void numbers_in_a_longer_form_are_refused(void **state)
{
	(void)state;
	BODY_REFUSED(LOG_RESIZE, "\x81\0", "shortest form");
	BODY_REFUSED(LOG_RESIZE, "\x80\0", "shortest form");
	BODY_REFUSED(LOG_IMAGE_LABEL, "\1\x81\0a", "shortest form");
}

/* ---- chance ---- */

static uint64_t random_state;

static uint64_t next_random(void)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * 0x2545f4914f6cdd1dULL;
}

static struct byte_writer random_good_entry(void)
{
	static struct log_run runs[40];
	static struct log_piece pieces[40];
	char name[] = "disk-7";
	char text[] = "a text of some length";
	struct log_entry entry = entry_of((enum log_op)(1 + next_random() % LOG_BASE));
	uint64_t end_chunk = 0;

	if (entry.op == LOG_CREATE)
		entry = create_entry(name);
	entry.size_bytes = next_random() >> (1 + next_random() % 60);
	entry.generation = (uint32_t)(next_random() >> 40);
	entry.image_number = 1 + (uint32_t)(next_random() >> 50);
	entry.changed_bytes = next_random() >> 20;
	entry.label = text;
	entry.details = next_random() % 2 == 0 ? text : NULL;
	entry.mirror_of = text;
	entry.keep = next_random() % 1000;
	entry.run_count = next_random() % 40;
	for (size_t i = 0; i < entry.run_count; i++) {
		runs[i] = (struct log_run){.first_chunk = end_chunk + next_random() % 300,
					   .chunk_count = 1 + next_random() % 5,
					   .kind = (enum log_run_kind)(next_random() % 3),
					   .digests = &digests[next_random() % 4000]};
		end_chunk = runs[i].first_chunk + runs[i].chunk_count;
	}
	entry.runs = runs;
	entry.piece_count = next_random() % 40;
	end_chunk = 0;
	for (size_t i = 0; i < entry.piece_count; i++) {
		pieces[i] = (struct log_piece){.off_bytes = end_chunk + next_random() % 3000000,
					       .len_bytes = 1 + next_random() % 5000000,
					       .image_number = 1 + (uint32_t)(next_random() >> 40),
					       .image_off_bytes = next_random() >> 20};
		end_chunk = pieces[i].off_bytes + pieces[i].len_bytes;
	}
	entry.pieces = pieces;
	return encode(&entry);
}

static void mutate(struct byte_writer *writer)
{
	uint64_t changes = 1 + next_random() % 4;

	switch (next_random() % 4) {
	case 0:
		writer->len_bytes = next_random() % (writer->len_bytes + 1);
		break;
	case 1:
		for (uint64_t i = 0; i < changes; i++)
			byte_writer_u8(writer, (uint8_t)(next_random() >> 56));
		break;
	default:
		for (uint64_t i = 0; i < changes; i++)
			writer->data[next_random() % writer->len_bytes] ^= (uint8_t)(1 << next_random() % 8);
	}
}

/* Decoded from a buffer of just its length, so that a byte read too far is seen. True if it is valid. */
static bool check_mutant(const struct byte_writer *mutant)
{
	AUTO_FREE uint8_t *exact = malloc(mutant->len_bytes == 0 ? 1 : mutant->len_bytes);
	AUTO(log_entry_free) struct log_entry back = {.op = 0};
	AUTO(byte_writer_free) struct byte_writer again = BYTE_WRITER_EMPTY;
	struct failure failure = {.code = 0};

	assert_non_null(exact);
	if (mutant->len_bytes > 0)
		memcpy(exact, mutant->data, mutant->len_bytes);
	if (log_entry_decode(exact, mutant->len_bytes, CHUNK_BYTES, &back, &failure) < 0) {
		assert_int_equal(failure.code, -EBADMSG);
		assert_true(strlen(failure.message) > strlen("entry of a disk's log: "));
		return false;
	}
	assert_int_equal(log_entry_encode(&back, &again, NULL), 0);
	assert_int_equal(again.len_bytes, mutant->len_bytes);
	assert_memory_equal(again.data, exact, mutant->len_bytes);
	return true;
}

static void mutants_are_refused_or_canonical(void **state)
{
	enum { TURNS = 20000 };
	const char *given = getenv("WHERRY_SEED");
	uint64_t seed = given == NULL ? (uint64_t)time(NULL) : strtoull(given, NULL, 10);
	unsigned int valid = 0;

	(void)state;
	random_state = seed * 2 + 1; /* never 0 */
	print_message("seed %llu (WHERRY_SEED repeats it)\n", (unsigned long long)seed);
	for (size_t i = 0; i < LOG_ENTRY_MOST_CHUNKS; i++)
		for (size_t n = 0; n < DIGEST_BYTES; n++)
			digests[i][n] = (uint8_t)(next_random() >> 56);
	for (unsigned int turn = 0; turn < TURNS; turn++) {
		AUTO(byte_writer_free) struct byte_writer writer = random_good_entry();

		assert_true(check_mutant(&writer));
		mutate(&writer);
		if (check_mutant(&writer))
			valid++;
	}
	print_message("%u of %d mutants are valid entries\n", valid, TURNS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(entry_is_written_as_documented),
		cmocka_unit_test(every_operation_comes_back),
		cmocka_unit_test(the_largest_entries_come_back),
		cmocka_unit_test(too_much_for_one_entry_is_said),
		cmocka_unit_test(heads_that_break_rules_are_refused),
		cmocka_unit_test(creation_comes_first_and_once),
		cmocka_unit_test(bad_creations_are_refused),
		cmocka_unit_test(bad_runs_are_refused),
		cmocka_unit_test(bad_images_and_policies_are_refused),
		cmocka_unit_test(numbers_in_a_longer_form_are_refused),
		cmocka_unit_test(mutants_are_refused_or_canonical),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
