/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Record headers and payloads. The format's promises are held against bytes that other tools made (xxhsum, sha256sum);
 * what comes back is held against damage and against lies that carry the right checksum.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>
#include <zstd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/record.h"

static uint64_t random_state;

static uint64_t next_random(void) /* xorshift64*: repeatable, whatever the C library */
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * 0x2545f4914f6cdd1dULL;
}

static void seed_random(uint64_t seed)
{
	random_state = seed;
	print_message("seed %llu\n", (unsigned long long)seed);
}

static void fill_random(uint8_t *bytes, size_t len_bytes)
{
	for (size_t i = 0; i < len_bytes; i++)
		bytes[i] = (uint8_t)(next_random() >> 32);
}

static void fill_words(uint8_t *bytes, size_t len_bytes)
{
	static const char *const words[] = {"ferry ", "wherry ", "disk ", "image ", "chunk ", "the ", "of ", "a "};

	for (size_t i = 0; i < len_bytes;) {
		const char *word = words[next_random() >> 61];

		for (; *word != '\0' && i < len_bytes; word++)
			bytes[i++] = (uint8_t)*word;
	}
}

/* ---- headers ---- */

/* A plain chunk "wherry". */
static const char golden_header[] = "77524331010000000600000006000000febd2d8c0373809d09bbda5b381eb6d2"
				    "a1bd385c3d51809123f8066ba43124fd45ca9df312e1dca44c6cbc8652664eef";

static struct record_header golden(void)
{
	static const uint8_t digest[DIGEST_BYTES] = {0xfe, 0xbd, 0x2d, 0x8c, 0x03, 0x73, 0x80, 0x9d, 0x09, 0xbb, 0xda,
						     0x5b, 0x38, 0x1e, 0xb6, 0xd2, 0xa1, 0xbd, 0x38, 0x5c, 0x3d, 0x51,
						     0x80, 0x91, 0x23, 0xf8, 0x06, 0x6b, 0xa4, 0x31, 0x24, 0xfd};
	struct record_header header = {.type = RECORD_CHUNK, .stored_bytes = 6, .plain_bytes = 6};

	header.payload_checksum = record_payload_checksum("wherry", 6);
	memcpy(header.digest, digest, sizeof(digest));
	return header;
}

static void header_is_written_as_documented(void **state)
{
	const struct record_header header = golden();
	uint8_t bytes[RECORD_HEADER_BYTES];
	char text[2 * RECORD_HEADER_BYTES + 1];

	(void)state;
	record_header_encode(&header, bytes);
	bytes_to_hex(bytes, sizeof(bytes), text);
	assert_string_equal(text, golden_header);
}

static void header_comes_back(void **state)
{
	struct record_header header = golden();
	struct record_header back;
	uint8_t bytes[RECORD_HEADER_BYTES];

	(void)state;
	header.type = RECORD_LOG;
	header.codec = CODEC_ZSTD;
	header.stored_bytes = 0x12345;
	header.plain_bytes = 0x6789a;
	record_header_encode(&header, bytes);
	assert_int_equal(record_header_decode(bytes, &back, NULL), 0);
	assert_int_equal(back.type, header.type);
	assert_int_equal(back.codec, header.codec);
	assert_int_equal(back.cipher, header.cipher);
	assert_int_equal(back.stored_bytes, header.stored_bytes);
	assert_int_equal(back.plain_bytes, header.plain_bytes);
	assert_int_equal(back.payload_checksum, header.payload_checksum);
	assert_memory_equal(back.digest, header.digest, DIGEST_BYTES);
}

static void every_flipped_bit_of_a_header_is_noticed(void **state)
{
	const struct record_header header = golden();
	uint8_t bytes[RECORD_HEADER_BYTES];

	(void)state;
	record_header_encode(&header, bytes);
	for (size_t bit = 0; bit < 8 * sizeof(bytes); bit++) {
		struct record_header back = {.type = 77};
		struct failure failure = {.code = 0};

		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(record_header_decode(bytes, &back, &failure), -EBADMSG);
		assert_string_equal(failure.message, bit < 32 ? "bad magic" : "header checksum");
		assert_int_equal(back.type, 77);
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(record_header_decode(bytes, &(struct record_header){.type = 0}, NULL), 0);
}

static void assert_header_refused(struct record_header header, const char *why)
{
	struct record_header back;
	struct failure failure = {.code = 0};
	uint8_t bytes[RECORD_HEADER_BYTES];

	record_header_encode(&header, bytes);
	assert_int_equal(record_header_decode(bytes, &back, &failure), -EBADMSG);
	if (strstr(failure.message, why) == NULL)
		fail_msg("\"%s\" doesn't say \"%s\"", failure.message, why);
}

#define REFUSED(why, ...)                           \
	do {                                        \
		header = golden();                  \
		__VA_ARGS__;                        \
		assert_header_refused(header, why); \
	} while (0)

static void headers_that_lie_are_refused(void **state)
{
	struct record_header header;

	(void)state;
	REFUSED("type 0", header.type = 0);
	REFUSED("type 3", header.type = 3);
	REFUSED("codec 2", header.codec = 2);
	REFUSED("cipher 1", header.cipher = 1);
	REFUSED("no bytes", header.stored_bytes = 0);
	REFUSED("no bytes", header.plain_bytes = 0);
	REFUSED("stored length 4294967295 is over the limit", header.stored_bytes = UINT32_MAX);
	REFUSED("stored length", header.codec = CODEC_ZSTD, header.stored_bytes = RECORD_STORED_MOST_BYTES + 1);
	REFUSED("plain length", header.codec = CODEC_ZSTD, header.plain_bytes = RECORD_PLAIN_MOST_BYTES + 1);
	REFUSED("of a plain record", header.plain_bytes = 7);
}

static void a_reserved_byte_in_use_is_refused(void **state)
{
	struct record_header header = golden();
	struct failure failure = {.code = 0};
	uint8_t bytes[RECORD_HEADER_BYTES];

	(void)state;
	record_header_encode(&header, bytes);
	bytes[7] = 1;
	bytes_put_le64(bytes + 56, XXH3_64bits(bytes, 56));
	assert_int_equal(record_header_decode(bytes, &header, &failure), -EBADMSG);
	assert_string_equal(failure.message, "reserved byte is 1");
}

static void records_are_padded_to_eight(void **state)
{
	(void)state;
	assert_int_equal(record_total_bytes(1), 72);
	assert_int_equal(record_total_bytes(8), 72);
	assert_int_equal(record_total_bytes(9), 80);
	assert_int_equal(record_total_bytes(UINT32_MAX), 64 + 0x100000000);
}

/* ---- payloads ---- */

static uint8_t plain[RECORD_PLAIN_MOST_BYTES];
static uint8_t stored[RECORD_STORED_MOST_BYTES];

/* Encodes plain[0..plain_bytes), decodes into a buffer without a byte to spare, compares. */
static struct record_header round_trip(struct codec *codec, int level, uint32_t plain_bytes)
{
	struct record_header header = {.type = RECORD_CHUNK};
	AUTO_FREE uint8_t *packed = NULL;
	AUTO_FREE uint8_t *back = malloc(plain_bytes);

	assert_int_equal(codec_encode(codec, level, plain, plain_bytes, stored, &header, NULL), 0);
	assert_int_equal(header.plain_bytes, plain_bytes);
	assert_int_equal(header.cipher, CIPHER_NONE);
	packed = malloc(header.stored_bytes);
	assert_non_null(packed);
	memcpy(packed, stored, header.stored_bytes);
	assert_int_equal(codec_decode(codec, &header, packed, back, NULL), 0);
	assert_memory_equal(back, plain, plain_bytes);
	return header;
}

static int make_codec(void **state)
{
	struct codec *codec = NULL;

	if (codec_new(&codec, NULL) != 0)
		return -1;
	*state = codec;
	return 0;
}

static int free_codec(void **state)
{
	codec_free(*state);
	return 0;
}

static void all_levels_and_lengths_come_back(void **state)
{
	static const uint32_t lengths_bytes[] = {1,	2,     3,     31,    32,     33,     63,      4095,
						 16383, 16384, 65535, 65536, 131072, 262143, 1048575, 1048576};

	seed_random(20260101);
	for (int level = CODEC_LEVEL_LEAST; level <= CODEC_LEVEL_MOST; level++)
		for (size_t i = 0; i < sizeof(lengths_bytes) / sizeof(lengths_bytes[0]); i++) {
			if (level > 7 && lengths_bytes[i] > 262143)
				continue; /* seconds each under a sanitizer, and nothing in them that 256 KiB lack */
			fill_words(plain, lengths_bytes[i]);
			(void)round_trip(*state, level, lengths_bytes[i]);
		}
	fill_words(plain, 1 << 20);
	(void)round_trip(*state, CODEC_LEVEL_MOST, 1 << 20);
}

static void level_zero_is_plain(void **state)
{
	struct record_header header;

	memset(plain, 'x', 65536);
	header = round_trip(*state, 0, 65536);
	assert_int_equal(header.codec, CODEC_PLAIN);
	assert_int_equal(header.stored_bytes, 65536);
	assert_memory_equal(stored, plain, 65536);
}

static void what_compresses_is_compressed_at_every_level(void **state)
{
	seed_random(20260102);
	for (int level = 1; level <= CODEC_LEVEL_MOST; level++) {
		struct record_header header;

		fill_words(plain, 65536);
		header = round_trip(*state, level, 65536);
		assert_int_equal(header.codec, CODEC_ZSTD);
		assert_true(header.stored_bytes < 65536 / 3);
	}
}

static void what_does_not_compress_is_plain_at_every_level(void **state)
{
	seed_random(20260103);
	for (int level = 1; level <= CODEC_LEVEL_MOST; level++) {
		fill_random(plain, 65536);
		assert_int_equal(round_trip(*state, level, 65536).codec, CODEC_PLAIN);
		assert_int_equal(round_trip(*state, level, 1).codec, CODEC_PLAIN);
	}
}

/* Some words anywhere in random bytes: the samples miss them, the second look must not. */
static void a_compressible_part_is_found_wherever_it_is(void **state)
{
	enum { CHUNK_BYTES = 65536, PART_BYTES = 12000, STEP_BYTES = 1777 };

	seed_random(20260104);
	for (int level = 1; level <= 8; level += level < 3 ? 1 : 2)
		for (size_t off = 0; off + PART_BYTES <= CHUNK_BYTES; off += STEP_BYTES) {
			fill_random(plain, CHUNK_BYTES);
			fill_words(plain + off, PART_BYTES);
			assert_int_equal(round_trip(*state, level, CHUNK_BYTES).codec, CODEC_ZSTD);
		}
}

static void a_saving_below_a_32nd_is_not_worth_it(void **state)
{
	seed_random(20260105);
	fill_random(plain, 65536);
	memset(plain + 10000, 0, 1900);
	assert_int_equal(round_trip(*state, CODEC_LEVEL_DEFAULT, 65536).codec, CODEC_PLAIN);
	memset(plain + 10000, 0, 2200);
	assert_int_equal(round_trip(*state, CODEC_LEVEL_DEFAULT, 65536).codec, CODEC_ZSTD);
}

static void levels_ascend(void **state)
{
	(void)state;
	for (int level = 2; level <= CODEC_LEVEL_MOST; level++)
		assert_true(codec_zstd_level(level) > codec_zstd_level(level - 1));
	assert_int_equal(codec_zstd_level(CODEC_LEVEL_DEFAULT), 1);
}

static void frames_carry_their_size_and_nothing_else(void **state)
{
	enum { CHECKSUM_BIT = 4, DICTIONARY_BITS = 3 };

	seed_random(20260106);
	fill_words(plain, 65536);
	(void)round_trip(*state, CODEC_LEVEL_DEFAULT, 65536);
	assert_int_equal(ZSTD_getFrameContentSize(stored, sizeof(stored)), 65536);
	assert_int_equal(stored[4] & (CHECKSUM_BIT | DICTIONARY_BITS), 0);
}

/* ---- payloads that lie: each with the right checksum ---- */

static int decode_lie(struct codec *codec, size_t stored_bytes, uint32_t plain_bytes, struct failure *failure)
{
	struct record_header header = {
		.type = RECORD_CHUNK,
		.codec = CODEC_ZSTD,
		.stored_bytes = (uint32_t)stored_bytes,
		.plain_bytes = plain_bytes,
		.payload_checksum = record_payload_checksum(stored, (uint32_t)stored_bytes),
	};
	AUTO_FREE uint8_t *packed = malloc(stored_bytes);
	AUTO_FREE uint8_t *back = malloc(plain_bytes);

	assert_true(packed != NULL && back != NULL);
	memcpy(packed, stored, stored_bytes);
	return codec_decode(codec, &header, packed, back, failure);
}

static void assert_lie(struct codec *codec, size_t stored_bytes, uint32_t plain_bytes, const char *why)
{
	struct failure failure = {.code = 0};

	assert_int_equal(decode_lie(codec, stored_bytes, plain_bytes, &failure), -EBADMSG);
	if (strstr(failure.message, why) == NULL)
		fail_msg("\"%s\" doesn't say \"%s\"", failure.message, why);
}

static size_t compress(size_t plain_bytes)
{
	size_t stored_bytes = ZSTD_compress(stored, sizeof(stored), plain, plain_bytes, 1);

	assert_false(ZSTD_isError(stored_bytes));
	return stored_bytes;
}

/* As a stream of unknown length: no content size in the frame, and a window of that size. */
static size_t compress_stream(size_t plain_bytes, int window_log, bool with_size)
{
	ZSTD_CCtx *context = ZSTD_createCCtx();
	ZSTD_inBuffer input = {.src = plain, .size = plain_bytes};
	ZSTD_outBuffer output = {.dst = stored, .size = sizeof(stored)};

	(void)ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
	if (with_size)
		(void)ZSTD_CCtx_setPledgedSrcSize(context, plain_bytes);
	assert_int_equal(ZSTD_compressStream2(context, &output, &input, ZSTD_e_continue), 0);
	while (ZSTD_compressStream2(context, &output, &input, ZSTD_e_end) != 0)
		;
	(void)ZSTD_freeCCtx(context);
	return output.pos;
}

static void a_wrong_length_is_refused_before_decompressing(void **state)
{
	size_t stored_bytes;

	seed_random(20260107);
	fill_words(plain, 65536);
	stored_bytes = compress(65536);
	assert_int_equal(decode_lie(*state, stored_bytes, 65536, NULL), 0);
	assert_lie(*state, stored_bytes, 65535, "content of 65536 bytes");
	assert_lie(*state, stored_bytes, 65537, "content of 65536 bytes");
	/* 2^60 bytes: the eight-byte content size of a frame whose window is 1 KiB */
	memcpy(stored, "\x28\xb5\x2f\xfd\xc0\x00\0\0\0\0\0\0\0\x10\x01\0\0", 17);
	assert_lie(*state, 17, 65536, "content of 1152921504606846976 bytes");
	assert_lie(*state, compress_stream(65536, 17, false), 65536, "doesn't say");
}

static void a_wide_window_is_refused(void **state)
{
	size_t stored_bytes;

	seed_random(20260108);
	fill_words(plain, 1 << 20);
	assert_lie(*state, compress_stream(1 << 20, 21, false), 1 << 20, "window");
	stored_bytes = compress_stream(1 << 20, 19, true);
	assert_int_equal(stored[4] & 0x20, 0);
	assert_int_equal(decode_lie(*state, stored_bytes, 1 << 20, NULL), 0);
}

static void anything_but_one_frame_is_refused(void **state)
{
	static const uint8_t skippable[] = {0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 'a', 'b', 'c', 'd'};
	static const uint8_t legacy_magic[] = {0x27, 0xb5, 0x2f, 0xfd};
	size_t stored_bytes;

	seed_random(20260109);
	fill_words(plain, 4096);
	stored_bytes = compress(4096);
	assert_lie(*state, stored_bytes - 1, 4096, "broken");
	assert_lie(*state, 5, 4096, "no zstd frame");
	stored[stored_bytes] = 0;
	assert_lie(*state, stored_bytes + 1, 4096, "1 bytes behind");
	memcpy(stored + stored_bytes, stored, stored_bytes);
	assert_lie(*state, 2 * stored_bytes, 4096, "behind");
	memcpy(stored + stored_bytes, skippable, sizeof(skippable));
	assert_lie(*state, stored_bytes + sizeof(skippable), 4096, "12 bytes behind");
	memmove(stored + sizeof(skippable), stored, stored_bytes);
	memcpy(stored, skippable, sizeof(skippable));
	assert_lie(*state, stored_bytes + sizeof(skippable), 4096, "no zstd frame");
	assert_lie(*state, sizeof(skippable), 4096, "no zstd frame");
	(void)compress(4096);
	memcpy(stored, legacy_magic, sizeof(legacy_magic));
	assert_lie(*state, stored_bytes, 4096, "no zstd frame");
}

static void a_dictionary_is_refused(void **state)
{
	size_t stored_bytes;

	seed_random(20260110);
	fill_words(plain, 4096);
	stored_bytes = compress(4096);
	stored[4] |= 1;
	assert_lie(*state, stored_bytes, 4096, "dictionary");
}

static void lengths_over_the_caps_are_refused_by_decode_too(void **state)
{
	struct record_header header = {
		.type = RECORD_CHUNK, .codec = CODEC_ZSTD, .stored_bytes = UINT32_MAX, .plain_bytes = 1};

	assert_int_equal(codec_decode(*state, &header, stored, plain, NULL), -EBADMSG);
	header.stored_bytes = 100;
	header.plain_bytes = UINT32_MAX;
	assert_int_equal(codec_decode(*state, &header, stored, plain, NULL), -EBADMSG);
}

static void every_flipped_bit_of_a_payload_is_noticed(void **state)
{
	struct record_header header = {.type = RECORD_CHUNK};

	seed_random(20260111);
	fill_words(plain, 4096);
	for (int level = 0; level <= 3; level += 3) {
		assert_int_equal(codec_encode(*state, level, plain, 4096, stored, &header, NULL), 0);
		for (size_t bit = 0; bit < (size_t)8 * header.stored_bytes; bit++) {
			static uint8_t back[4096];
			struct failure failure = {.code = 0};

			stored[bit / 8] ^= (uint8_t)(1 << bit % 8);
			assert_int_equal(codec_decode(*state, &header, stored, back, &failure), -EBADMSG);
			assert_string_equal(failure.message, "payload checksum");
			stored[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
	}
}

/* Frames changed at random, with a checksum that fits: the sanitizers are the judges. */
static void mutated_frames_do_no_harm(void **state)
{
	enum { TURNS = 5000, CHUNK_BYTES = 16384 };
	static uint8_t original[CHUNK_BYTES];
	size_t original_bytes;
	unsigned int accepted = 0;

	seed_random(20260112);
	fill_words(plain, CHUNK_BYTES / 2);
	fill_random(plain + CHUNK_BYTES / 2, 64);
	fill_words(plain + CHUNK_BYTES / 2 + 64, CHUNK_BYTES / 2 - 64);
	original_bytes = compress(CHUNK_BYTES);
	assert_true(original_bytes <= sizeof(original));
	memcpy(original, stored, original_bytes);
	for (unsigned int turn = 0; turn < TURNS; turn++) {
		size_t len_bytes = original_bytes;

		memcpy(stored, original, original_bytes);
		for (uint64_t n = 1 + next_random() % 3; n > 0; n--)
			stored[next_random() % original_bytes] ^= (uint8_t)(1 << next_random() % 8);
		if (next_random() % 4 == 0)
			len_bytes = 1 + next_random() % original_bytes;
		if (decode_lie(*state, len_bytes, CHUNK_BYTES, NULL) == 0)
			accepted++; /* other literals: a valid frame of other content, which the digest tells apart */
	}
	print_message("%u of %d mutated frames decode\n", accepted, TURNS);
}

#define WITH_CODEC(test) cmocka_unit_test_setup_teardown(test, make_codec, free_codec)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(header_is_written_as_documented),
		cmocka_unit_test(header_comes_back),
		cmocka_unit_test(every_flipped_bit_of_a_header_is_noticed),
		cmocka_unit_test(headers_that_lie_are_refused),
		cmocka_unit_test(a_reserved_byte_in_use_is_refused),
		cmocka_unit_test(records_are_padded_to_eight),
		WITH_CODEC(all_levels_and_lengths_come_back),
		WITH_CODEC(level_zero_is_plain),
		WITH_CODEC(what_compresses_is_compressed_at_every_level),
		WITH_CODEC(what_does_not_compress_is_plain_at_every_level),
		WITH_CODEC(a_compressible_part_is_found_wherever_it_is),
		WITH_CODEC(a_saving_below_a_32nd_is_not_worth_it),
		WITH_CODEC(levels_ascend),
		WITH_CODEC(frames_carry_their_size_and_nothing_else),
		WITH_CODEC(a_wrong_length_is_refused_before_decompressing),
		WITH_CODEC(a_wide_window_is_refused),
		WITH_CODEC(anything_but_one_frame_is_refused),
		WITH_CODEC(a_dictionary_is_refused),
		WITH_CODEC(lengths_over_the_caps_are_refused_by_decode_too),
		WITH_CODEC(every_flipped_bit_of_a_payload_is_noticed),
		WITH_CODEC(mutated_frames_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
