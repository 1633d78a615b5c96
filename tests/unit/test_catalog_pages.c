/* SPDX-License-Identifier: Apache-2.0 */
/*
 * catalog/pages.c: pages as they stand in blobs. What is written is read back, byte by byte as docs/store-format.md
 * says; and whatever a blob holds, reading it ends in a page or in -EBADMSG. Blobs are handed over in buffers of
 * exactly their length, so that the address sanitizer sees the first byte read beyond.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

enum { MUTATIONS = 100000, ROUND_TRIPS = 2000 };

static uint64_t random_state = 0x243f6a8885a308d3;

static uint64_t random_below(uint64_t end)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state * 0x2545f4914f6cdd1d >> 11) % end;
}

/* Small, and now and then extreme. */
static uint64_t random_chunk(void)
{
	uint64_t most = ((uint64_t)1 << 62) - CATALOG_PAGE_ENTRIES;

	return random_below(8) == 0 ? most - random_below(3)
				    : 1 + random_below(random_below(2) == 0 ? 1000 : (uint64_t)1 << 40);
}

static uint32_t random_since(void)
{
	return random_below(8) == 0 ? UINT32_MAX : (uint32_t)random_below(5);
}

static void random_bytes(void *bytes, size_t len_bytes)
{
	for (size_t i = 0; i < len_bytes; i++)
		((uint8_t *)bytes)[i] = (uint8_t)random_below(256);
}

/* Fills a page with runs of all kinds, from one that spans it to single entries. */
static void fill_map_page(struct catalog_page *page)
{
	uint64_t longest = 1 + random_below(CATALOG_PAGE_ENTRIES);

	memset(page, 0, sizeof(*page));
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES;) {
		struct catalog_entry entry = {.kind = (uint8_t)random_below(3), .since = random_since()};
		uint64_t count = 1 + random_below(longest);

		if (entry.kind == CATALOG_CHUNK) {
			entry.chunk = random_chunk();
			entry.has_fingerprint = random_below(3) != 0;
		}
		for (; count > 0 && i < CATALOG_PAGE_ENTRIES; count--, i++) {
			page->entries[i] = entry;
			if (entry.has_fingerprint)
				random_bytes(page->entries[i].fingerprint, CATALOG_FINGERPRINT_BYTES);
			entry.chunk += entry.kind == CATALOG_CHUNK;
		}
	}
}

static void fill_past_page(struct past_page *past)
{
	struct catalog_page *page = malloc(sizeof(*page));

	assert_non_null(page);
	fill_map_page(page);
	memset(past, 0, sizeof(*past));
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES;) {
		uint64_t count = 1 + random_below(random_below(2) == 0 ? 3 : CATALOG_PAGE_ENTRIES);
		bool present = random_below(2) == 0;

		for (; count > 0 && i < CATALOG_PAGE_ENTRIES; count--, i++) {
			if (!present)
				continue;
			past->present[i] = true;
			past->entries[i] = page->entries[i];
			past->entries[i].has_fingerprint = false;
			memset(past->entries[i].fingerprint, 0, CATALOG_FINGERPRINT_BYTES);
		}
	}
	if (past_page_is_empty(past))
		past->present[random_below(CATALOG_PAGE_ENTRIES)] = true;
	free(page);
}

static void fill_chunk_page(struct chunk_page *page)
{
	uint32_t segment = 1, off_bytes = 0;

	memset(page, 0, sizeof(*page));
	for (unsigned i = 0; i < CATALOG_CHUNK_PAGE_ENTRIES; i++) {
		struct catalog_location *at = &page->chunks[i];

		if (random_below(8) == 0)
			continue;
		if (random_below(16) == 0) {
			segment = random_below(2) == 0 ? UINT32_MAX : 1 + (uint32_t)random_below(1000);
			off_bytes = random_below(2) == 0 ? UINT32_MAX - 7 : (uint32_t)random_below(1 << 20) * 8;
		}
		*at = (struct catalog_location){
			.tag = random_below((uint64_t)1 << 48),
			.segment = segment,
			.off_bytes = off_bytes,
			.stored_bytes = random_below(16) == 0 ? STORED_MOST_BYTES : 1 + (uint32_t)random_below(65536),
			.references = random_below(16) == 0 ? UINT32_MAX : (uint32_t)random_below(3)};
		off_bytes = (uint32_t)(off_bytes + catalog_record_bytes(at->stored_bytes));
	}
}

static void assert_same_entries(const struct catalog_entry *a, const struct catalog_entry *b)
{
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
		assert_int_equal(a[i].kind, b[i].kind);
		assert_true(a[i].chunk == b[i].chunk);
		assert_true(a[i].since == b[i].since);
		assert_int_equal(a[i].has_fingerprint, b[i].has_fingerprint);
		assert_memory_equal(a[i].fingerprint, b[i].fingerprint, CATALOG_FINGERPRINT_BYTES);
	}
}

static void assert_same_chunks(const struct chunk_page *a, const struct chunk_page *b)
{
	for (unsigned i = 0; i < CATALOG_CHUNK_PAGE_ENTRIES; i++) {
		assert_true(a->chunks[i].tag == b->chunks[i].tag);
		assert_true(a->chunks[i].segment == b->chunks[i].segment);
		assert_true(a->chunks[i].off_bytes == b->chunks[i].off_bytes);
		assert_true(a->chunks[i].stored_bytes == b->chunks[i].stored_bytes);
		assert_true(a->chunks[i].references == b->chunks[i].references);
	}
}

/* The three formats behind one face. `pages` is room for two pages of any kind. */
union any_page {
	struct catalog_page map;
	struct past_page past;
	struct chunk_page chunk;
};

struct format {
	const char *name;
	void (*fill)(union any_page *page);
	void (*encode)(const union any_page *page, struct byte_writer *writer);
	int (*decode)(const void *blob, size_t len_bytes, union any_page *ret_page);
	void (*assert_same)(const union any_page *a, const union any_page *b);
};

static void map_fill(union any_page *page)
{
	fill_map_page(&page->map);
}
static void map_encode(const union any_page *page, struct byte_writer *writer)
{
	map_page_encode(&page->map, writer);
}
static int map_decode(const void *blob, size_t len_bytes, union any_page *ret_page)
{
	return map_page_decode(blob, len_bytes, &ret_page->map);
}
static void map_assert_same(const union any_page *a, const union any_page *b)
{
	assert_same_entries(a->map.entries, b->map.entries);
}

static void past_fill(union any_page *page)
{
	fill_past_page(&page->past);
}
static void past_encode(const union any_page *page, struct byte_writer *writer)
{
	past_page_encode(&page->past, writer);
}
static int past_decode(const void *blob, size_t len_bytes, union any_page *ret_page)
{
	return past_page_decode(blob, len_bytes, &ret_page->past);
}
static void past_assert_same(const union any_page *a, const union any_page *b)
{
	assert_memory_equal(a->past.present, b->past.present, sizeof(a->past.present));
	assert_same_entries(a->past.entries, b->past.entries);
}

static void chunk_fill(union any_page *page)
{
	fill_chunk_page(&page->chunk);
}
static void chunk_encode(const union any_page *page, struct byte_writer *writer)
{
	chunk_page_encode(&page->chunk, writer);
}
static int chunk_decode(const void *blob, size_t len_bytes, union any_page *ret_page)
{
	return chunk_page_decode(blob, len_bytes, &ret_page->chunk);
}
static void chunk_assert_same(const union any_page *a, const union any_page *b)
{
	assert_same_chunks(&a->chunk, &b->chunk);
}

static const struct format formats[] = {
	{"map", map_fill, map_encode, map_decode, map_assert_same},
	{"past", past_fill, past_encode, past_decode, past_assert_same},
	{"chunk", chunk_fill, chunk_encode, chunk_decode, chunk_assert_same},
};
enum { FORMATS = sizeof(formats) / sizeof(formats[0]) };

/* Decodes from a copy of exactly that length. */
static int decode_exactly(const struct format *format, const void *blob, size_t len_bytes, union any_page *ret_page)
{
	AUTO_FREE void *copy = malloc(len_bytes == 0 ? 1 : len_bytes);

	assert_non_null(copy);
	if (len_bytes > 0)
		memcpy(copy, blob, len_bytes);
	return format->decode(len_bytes == 0 ? NULL : copy, len_bytes, ret_page);
}

static void pages_survive_a_round_trip(void **state)
{
	AUTO_FREE union any_page *pages = calloc(2, sizeof(*pages));

	(void)state;
	for (unsigned n = 0; n < ROUND_TRIPS * FORMATS; n++) {
		const struct format *format = &formats[n % FORMATS];
		AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

		format->fill(&pages[0]);
		format->encode(&pages[0], &writer);
		assert_false(writer.failed);
		assert_int_equal(decode_exactly(format, writer.data, writer.len_bytes, &pages[1]), 0);
		format->assert_same(&pages[0], &pages[1]);
	}
}

static void page_that_is_cut_short_is_bad(void **state)
{
	AUTO_FREE union any_page *pages = calloc(2, sizeof(*pages));

	(void)state;
	for (unsigned n = 0; n < 20 * FORMATS; n++) {
		const struct format *format = &formats[n % FORMATS];
		AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

		format->fill(&pages[0]);
		format->encode(&pages[0], &writer);
		for (size_t len_bytes = 0; len_bytes < writer.len_bytes; len_bytes++)
			assert_int_equal(decode_exactly(format, writer.data, len_bytes, &pages[1]), -EBADMSG);
	}
}

static void page_with_something_behind_it_is_bad(void **state)
{
	AUTO_FREE union any_page *pages = calloc(2, sizeof(*pages));

	(void)state;
	for (unsigned n = 0; n < 100 * FORMATS; n++) {
		const struct format *format = &formats[n % FORMATS];
		AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

		format->fill(&pages[0]);
		format->encode(&pages[0], &writer);
		byte_writer_u8(&writer, (uint8_t)random_below(256));
		assert_int_equal(decode_exactly(format, writer.data, writer.len_bytes, &pages[1]), -EBADMSG);
	}
}

/* Some bytes overwritten, a bit flipped, a piece cut out, a piece repeated. */
static size_t mutate(uint8_t *blob, size_t len_bytes, size_t capacity_bytes)
{
	size_t at = random_below(len_bytes), piece_bytes;

	if (random_below(2) == 0)
		at %= 32; /* heads of runs are where the structure is */
	if (at >= len_bytes)
		at = 0;
	switch (random_below(4)) {
	case 0:
		blob[at] ^= (uint8_t)(1u << random_below(8));
		return len_bytes;
	case 1:
		for (uint64_t n = 1 + random_below(10); n > 0 && at < len_bytes; n--)
			blob[at++] = random_below(2) == 0 ? 0xff : (uint8_t)random_below(256);
		return len_bytes;
	case 2:
		piece_bytes = 1 + random_below(len_bytes - at);
		memmove(blob + at, blob + at + piece_bytes, len_bytes - at - piece_bytes);
		return len_bytes - piece_bytes;
	default:
		piece_bytes = 1 + random_below(16);
		if (piece_bytes > len_bytes - at)
			piece_bytes = len_bytes - at;
		if (len_bytes + piece_bytes > capacity_bytes)
			return len_bytes;
		memmove(blob + at + piece_bytes, blob + at, len_bytes - at);
		return len_bytes + piece_bytes;
	}
}

/* A page decoded from anything encodes to a blob that decodes to the same page. */
static void assert_stable(const struct format *format, const union any_page *page, union any_page *again)
{
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

	format->encode(page, &writer);
	assert_int_equal(decode_exactly(format, writer.data, writer.len_bytes, again), 0);
	format->assert_same(page, again);
}

static void mutated_pages_decode_or_are_bad(void **state)
{
	AUTO_FREE union any_page *pages = calloc(2, sizeof(*pages));
	unsigned good[FORMATS] = {0}, bad[FORMATS] = {0};

	(void)state;
	for (unsigned n = 0; n < MUTATIONS;) {
		unsigned which = n / 50 % FORMATS;
		const struct format *format = &formats[which];
		AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
		static uint8_t blob[1 << 15];

		format->fill(&pages[0]);
		format->encode(&pages[0], &writer);
		assert_true(writer.len_bytes < sizeof(blob) - 64);
		for (unsigned i = 0; i < 50; i++, n++) {
			size_t len_bytes = writer.len_bytes;
			int result;

			memcpy(blob, writer.data, len_bytes);
			for (uint64_t m = 1 + random_below(3); m > 0 && len_bytes > 0; m--)
				len_bytes = mutate(blob, len_bytes, sizeof(blob));
			result = decode_exactly(format, blob, len_bytes, &pages[0]);
			assert_true(result == 0 || result == -EBADMSG);
			if (result == 0)
				assert_stable(format, &pages[0], &pages[1]);
			++*(result == 0 ? &good[which] : &bad[which]);
		}
	}
	for (unsigned which = 0; which < FORMATS;
	     which++) { /* a test that only ever sees one of the two sees nothing */
		print_message("%s: %u mutations decode, %u are bad\n", formats[which].name, good[which], bad[which]);
		assert_true(good[which] > 100 && bad[which] > 100);
	}
}

static void noise_decodes_or_is_bad(void **state)
{
	AUTO_FREE union any_page *page = calloc(1, sizeof(*page));

	(void)state;
	for (unsigned n = 0; n < MUTATIONS; n++) {
		uint8_t blob[64];
		size_t len_bytes = random_below(sizeof(blob) + 1);
		int result;

		random_bytes(blob, len_bytes);
		result = decode_exactly(&formats[n % FORMATS], blob, len_bytes, page);
		assert_true(result == 0 || result == -EBADMSG);
	}
}

/* ---- the format itself, byte by byte ---- */

static void assert_blob(const struct byte_writer *writer, const uint8_t *expected, size_t len_bytes)
{
	assert_int_equal(writer->len_bytes, len_bytes);
	assert_memory_equal(writer->data, expected, len_bytes);
}

static void map_page_bytes_are_as_documented(void **state)
{
	AUTO_FREE struct catalog_page *page = calloc(1, sizeof(*page));
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	unsigned rest = CATALOG_PAGE_ENTRIES - 4;
	uint8_t expected[16 + 2 * CATALOG_FINGERPRINT_BYTES] = {
		2 << 3 | 4 | CATALOG_CHUNK,
		3,
		2 * 10, /* chunks 10 and 11, since 3, with fingerprints: zigzag (10 - 0) */
		1 << 3 | CATALOG_CHUNK,
		4,
		2 * 4 - 1, /* chunk 8, since 4, none: zigzag (8 - 12) */
		1 << 3 | CATALOG_ZERO,
		5,
	};
	size_t at = 8;

	(void)state;
	page->entries[0] =
		(struct catalog_entry){.kind = CATALOG_CHUNK, .chunk = 10, .since = 3, .has_fingerprint = true};
	page->entries[1] =
		(struct catalog_entry){.kind = CATALOG_CHUNK, .chunk = 11, .since = 3, .has_fingerprint = true};
	page->entries[2] = (struct catalog_entry){.kind = CATALOG_CHUNK, .chunk = 8, .since = 4};
	page->entries[3] = (struct catalog_entry){.kind = CATALOG_ZERO, .since = 5};
	memset(page->entries[0].fingerprint, 0xaa, CATALOG_FINGERPRINT_BYTES);
	memset(page->entries[1].fingerprint, 0xbb, CATALOG_FINGERPRINT_BYTES);
	expected[at++] = (uint8_t)((rest << 3 | CATALOG_NOTHING) | 0x80);
	expected[at++] = (uint8_t)(rest << 3 >> 7);
	expected[at++] = 0;
	memset(expected + at, 0xaa, CATALOG_FINGERPRINT_BYTES);
	memset(expected + at + CATALOG_FINGERPRINT_BYTES, 0xbb, CATALOG_FINGERPRINT_BYTES);
	map_page_encode(page, &writer);
	assert_blob(&writer, expected, at + 2 * CATALOG_FINGERPRINT_BYTES);
}

static void past_page_bytes_are_as_documented(void **state)
{
	AUTO_FREE struct past_page *past = calloc(1, sizeof(*past));
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	unsigned rest = CATALOG_PAGE_ENTRIES - 8;
	const uint8_t expected[] = {
		5,
		2 << 2 | CATALOG_CHUNK,
		1,
		2 * 50, /* behind 5 that aren't mentioned: chunks 50 and 51, since 1 */
		0,
		1 << 2 | CATALOG_NOTHING,
		0,
		(uint8_t)(rest | 0x80),
		(uint8_t)(rest >> 7),
	};

	(void)state;
	for (unsigned i = 5; i < 8; i++)
		past->present[i] = true;
	past->entries[5] = (struct catalog_entry){.kind = CATALOG_CHUNK, .chunk = 50, .since = 1};
	past->entries[6] = (struct catalog_entry){.kind = CATALOG_CHUNK, .chunk = 51, .since = 1};
	past_page_encode(past, &writer);
	assert_blob(&writer, expected, sizeof(expected));
}

static void chunk_page_bytes_are_as_documented(void **state)
{
	AUTO_FREE struct chunk_page *page = calloc(1, sizeof(*page));
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	uint8_t expected[24 + CATALOG_CHUNK_PAGE_ENTRIES - 3] = {
		0, /* no chunk of that id */
		100,  2,    2 * 7, 2 * 8, 0xf1,
		0xde, 0xbc, 0x9a,  0x78,  0x56, /* segment 7, at 64 */
		50,   1,    0,	   0,	  1,
		0,    0,    0,	   0,	  0, /* the same segment, right behind: 64 + align8(64 + 100) */
	};

	(void)state;
	page->chunks[1] = (struct catalog_location){
		.stored_bytes = 100, .references = 2, .segment = 7, .off_bytes = 64, .tag = 0x56789abcdef1};
	page->chunks[2] = (struct catalog_location){
		.stored_bytes = 50, .references = 1, .segment = 7, .off_bytes = 232, .tag = 1};
	chunk_page_encode(page, &writer);
	assert_blob(&writer, expected, 21 + CATALOG_CHUNK_PAGE_ENTRIES - 3);
}

static void first_round_takes_little_more_than_fingerprints(void **state)
{
	AUTO_FREE struct catalog_page *page = calloc(1, sizeof(*page));
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

	(void)state;
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		page->entries[i] = (struct catalog_entry){
			.kind = CATALOG_CHUNK, .chunk = 160000000 + i, .since = 1, .has_fingerprint = true};
	map_page_encode(page, &writer);
	assert_true(writer.len_bytes <= CATALOG_PAGE_ENTRIES * CATALOG_FINGERPRINT_BYTES + 8);
}

static void impossible_values_are_bad(void **state)
{
	static const struct {
		unsigned format;
		const char *why;
		uint8_t blob[24];
		size_t len_bytes;
	} cases[] = {
		{0, "kind 3", {0x83, 0x10, 0}, 3},
		{0, "a run of none", {CATALOG_NOTHING, 0}, 2},
		{0, "a fingerprint of zeros", {0x85, 0x10, 0}, 3},
		{0, "a run of 2^60", {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40, 0}, 10},
		{0, "chunk 0", {0x82, 0x10, 1, 0}, 4},
		{0, "chunk -1", {0x82, 0x10, 1, 1}, 4},
		{0, "generation 2^32", {0x80, 0x10, 0x80, 0x80, 0x80, 0x80, 0x10}, 7},
		{1, "nothing mentioned", {0x80, 0x02}, 2},
		{1, "kind 3", {0, 7, 0, 0xff, 0x01}, 5},
		{1, "beyond the page", {0x81, 0x02, 4, 0}, 4},
		{1, "no bytes", {0}, 0},
		{2, "segment 0 with a record", {2, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 10},
		{2, "segment 0 with a place", {1, 0, 0, 2, 0, 0, 0, 0, 0, 0}, 10},
		{2, "offset -8", {1, 0, 2, 1, 0, 0, 0, 0, 0, 0}, 10},
	};
	AUTO_FREE union any_page *page = calloc(1, sizeof(*page));

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint8_t blob[24 + CATALOG_CHUNK_PAGE_ENTRIES] = {0};
		/* a page of chunks goes on with the others, which aren't there */
		size_t len_bytes = cases[i].len_bytes + (cases[i].format == 2 ? CATALOG_CHUNK_PAGE_ENTRIES - 1 : 0);

		memcpy(blob, cases[i].blob, cases[i].len_bytes);
		if (decode_exactly(&formats[cases[i].format], blob, len_bytes, page) != -EBADMSG)
			fail_msg("%s: %s was taken", formats[cases[i].format].name, cases[i].why);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(map_page_bytes_are_as_documented),
		cmocka_unit_test(past_page_bytes_are_as_documented),
		cmocka_unit_test(chunk_page_bytes_are_as_documented),
		cmocka_unit_test(first_round_takes_little_more_than_fingerprints),
		cmocka_unit_test(pages_survive_a_round_trip),
		cmocka_unit_test(page_that_is_cut_short_is_bad),
		cmocka_unit_test(page_with_something_behind_it_is_bad),
		cmocka_unit_test(impossible_values_are_bad),
		cmocka_unit_test(mutated_pages_decode_or_are_bad),
		cmocka_unit_test(noise_decodes_or_is_bad),
	};

	print_message("seed %llx\n", (unsigned long long)random_state);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
