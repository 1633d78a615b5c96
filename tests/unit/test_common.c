/* SPDX-License-Identifier: Apache-2.0 */
/*
 * common/: messages, bytes, sizes. The inputs that matter are the hostile and
 * the extreme ones: cut short, too long, the last bit, the last digit.
 */
#include "unit_test.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/failure.h"
#include "common/units.h"
#include "common/utf8.h"

/* ------------------------------------------------------------- failure.h */

static void first_message_stays(void **state)
{
	struct failure failure = {.code = 0};

	(void)state;
	assert_int_equal(fail(&failure, -ENOENT, "disk %s: not there", "web01"), -ENOENT);
	assert_int_equal(fail(&failure, -EIO, "something else"), -EIO);
	assert_int_equal(failure.code, -ENOENT);
	assert_string_equal(failure.message, "disk web01: not there");
	failure_clear(&failure);
	assert_int_equal(failure.code, 0);
	assert_string_equal(failure.message, "");
}

static void failing_needs_no_message(void **state)
{
	(void)state;
	assert_int_equal(fail(NULL, -EINVAL, "unheard"), -EINVAL);
	assert_int_equal(fail_errno(NULL, -EIO, "unheard"), -EIO);
}

static void errno_survives_failing(void **state)
{
	struct failure failure = {.code = 0};

	(void)state;
	errno = EPROTO;
	(void)fail_errno(&failure, -EIO, "read");
	assert_int_equal(errno, EPROTO);
	assert_string_equal(failure.message, "read: Input/output error");
}

static void message_is_one_safe_line(void **state)
{
	struct failure failure = {.code = 0};

	(void)state;
	(void)fail(&failure, -EINVAL,
		   "file a\nb\t\x1b[2J\x7f\xc2\x9b"
		   "31m\xc3\xa9: odd");
	assert_string_equal(failure.message, "file a?b??[2J???31m\xc3\xa9: odd");
}

static void utf8_is_told_from_what_is_not(void **state)
{
	static const char *const valid[] = {"", "plain", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x9a\xa2", "\xed\x9f\xbf",
					    "\xf4\x8f\xbf\xbf"};
	/* Latin-1; cut short; too long a form; a surrogate; beyond U+10FFFF; a byte that never occurs */
	static const char *const invalid[] = {"img-\xe9.raw", "\xe2\x82", "\xc0\xaf", "\xed\xa0\x80",
					      "\xf4\x90\x80\x80", "\xff"};

	(void)state;
	for (size_t i = 0; i < sizeof(valid) / sizeof(valid[0]); i++) {
		AUTO_FREE char *repaired = utf8_repair(valid[i]);

		assert_true(utf8_is_valid(valid[i]));
		assert_string_equal(repaired, valid[i]);
	}
	for (size_t i = 0; i < sizeof(invalid) / sizeof(invalid[0]); i++) {
		AUTO_FREE char *repaired = utf8_repair(invalid[i]);

		assert_false(utf8_is_valid(invalid[i]));
		assert_true(utf8_is_valid(repaired));
	}
	AUTO_FREE char *name = utf8_repair("img-\xe9.raw");
	assert_string_equal(name, "img-\xef\xbf\xbd.raw");
}

static void long_message_is_cut_with_a_mark(void **state)
{
	struct failure failure = {.code = 0};
	char name[3 * FAILURE_MESSAGE_BYTES];

	(void)state;
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	(void)fail(&failure, -EINVAL, "%s", name);
	assert_int_equal(strlen(failure.message), FAILURE_MESSAGE_BYTES - 1);
	assert_string_equal(failure.message + FAILURE_MESSAGE_BYTES - 5, "x...");
}

static void message_that_just_fits_is_whole(void **state)
{
	struct failure failure = {.code = 0};
	char name[FAILURE_MESSAGE_BYTES];

	(void)state;
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	(void)fail(&failure, -EINVAL, "%s", name);
	assert_string_equal(failure.message, name);
}

static void cut_message_keeps_the_reason(void **state)
{
	static const char reason[] = "...: No space left on device";
	char name[2 * FAILURE_MESSAGE_BYTES];

	(void)state;
	memset(name, 'x', sizeof(name) - 1);
	/* From well below the limit to well above: the reason is whole at every length. */
	for (size_t len_bytes = FAILURE_MESSAGE_BYTES - 64; len_bytes < FAILURE_MESSAGE_BYTES + 64; len_bytes++) {
		struct failure failure = {.code = 0};
		const char *expected = reason + (len_bytes + strlen(reason) - 3 < FAILURE_MESSAGE_BYTES ? 3 : 0);

		name[len_bytes] = '\0';
		(void)fail_errno(&failure, -ENOSPC, "%s", name);
		assert_true(strlen(failure.message) < FAILURE_MESSAGE_BYTES);
		assert_string_equal(failure.message + strlen(failure.message) - strlen(expected), expected);
		name[len_bytes] = 'x';
	}
}

static void cut_falls_between_characters(void **state)
{
	struct failure failure = {.code = 0};
	char name[2 * FAILURE_MESSAGE_BYTES];
	size_t end;

	(void)state;
	for (size_t i = 0; i + 1 < sizeof(name); i += 2)
		memcpy(name + i, "\xc3\xa9", 2);
	name[sizeof(name) - 2] = '\0';
	(void)fail(&failure, -EINVAL, "x%s", name);
	end = strlen(failure.message) - 3;
	assert_string_equal(failure.message + end, "...");
	assert_int_equal((unsigned char)failure.message[end - 1], 0xa9);
	failure_clear(&failure);
	(void)fail(&failure, -EINVAL, "%s", name);
	end = strlen(failure.message) - 3;
	assert_int_equal((unsigned char)failure.message[end - 1], 0xa9);
}

static void failure_is_handed_on_once(void **state)
{
	struct failure from = {.code = 0};
	struct failure to = {.code = 0};

	(void)state;
	assert_int_equal(fail_from(&to, &from), 0);
	(void)fail(&from, -EIO, "first");
	assert_int_equal(fail_from(NULL, &from), -EIO);
	assert_int_equal(fail_from(&to, &from), -EIO);
	assert_string_equal(to.message, "first");
	failure_clear(&from);
	(void)fail(&from, -EPERM, "second");
	assert_int_equal(fail_from(&to, &from), -EPERM);
	assert_string_equal(to.message, "first");
	assert_int_equal(to.code, -EIO);
}

struct heard {
	unsigned int count;
	enum notice_level level;
	char text[FAILURE_MESSAGE_BYTES];
};

static void hear(void *opaque, enum notice_level level, const char *text)
{
	struct heard *heard = opaque;

	heard->count++;
	heard->level = level;
	(void)snprintf(heard->text, sizeof(heard->text), "%s", text);
}

static void notices_reach_who_listens(void **state)
{
	struct heard heard = {.count = 0};
	struct notices notices = {.say = hear, .opaque = &heard};
	struct notices silence = {.say = NULL};

	(void)state;
	notice(NULL, NOTICE_INFO, "unheard");
	notice(&silence, NOTICE_INFO, "unheard");
	notice(&notices, NOTICE_WARNING, "%s is mounted\non %s", "/dev/sda1", "/");
	assert_int_equal(heard.count, 1);
	assert_int_equal(heard.level, NOTICE_WARNING);
	assert_string_equal(heard.text, "/dev/sda1 is mounted?on /");
}

/* ------------------------------------------------------------- cleanup.h */

static void taken_resources_are_left_alone(void **state)
{
	int taken_fd;
	char *taken_text;

	(void)state;
	{
		AUTO_CLOSE int fd = dup(0);
		AUTO_FREE char *text = strdup("kept");

		taken_fd = take_fd(&fd);
		taken_text = take_ptr(text);
		assert_int_equal(fd, -1);
		assert_null(text);
	}
	assert_int_equal(close(taken_fd), 0);
	assert_string_equal(taken_text, "kept");
	free(taken_text);
}

static void lock_is_held_until_the_scope_ends(void **state)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

	(void)state;
	{
		WITH_LOCK(&mutex);
		assert_int_equal(pthread_mutex_trylock(&mutex), EBUSY);
	}
	assert_int_equal(pthread_mutex_trylock(&mutex), 0);
	(void)pthread_mutex_unlock(&mutex);
}

/* --------------------------------------------------------------- bytes.h */

static void integers_are_little_endian(void **state)
{
	uint8_t bytes[9] = {0xee};

	(void)state;
	bytes_put_le64(bytes + 1, 0x0123456789abcdef);
	assert_memory_equal(bytes + 1, "\xef\xcd\xab\x89\x67\x45\x23\x01", 8);
	assert_int_equal(bytes_get_le64(bytes + 1), 0x0123456789abcdef);
	assert_int_equal(bytes_get_le32(bytes + 1), 0x89abcdef);
	assert_int_equal(bytes_get_le16(bytes + 1), 0xcdef);
	bytes_put_le32(bytes + 1, 0xfedcba98);
	assert_memory_equal(bytes + 1, "\x98\xba\xdc\xfe\x67", 5);
	bytes_put_le16(bytes + 1, 0x8001);
	assert_memory_equal(bytes + 1, "\x01\x80\xdc", 3);
}

static void one_bit_anywhere_is_not_zero(void **state)
{
	enum { SIZE_BYTES = 600 };
	static uint8_t bytes[SIZE_BYTES + 2];

	(void)state;
	assert_true(bytes_are_zero(NULL, 0));
	for (size_t len_bytes = 1; len_bytes <= SIZE_BYTES;
	     len_bytes = len_bytes < 70 ? len_bytes + 1 : len_bytes + 37) {
		uint8_t *at = bytes + 1; /* on no boundary */

		/* What lies next to the range does not matter. */
		memset(bytes, 0, sizeof(bytes));
		at[-1] = 0xff;
		at[len_bytes] = 0xff;
		assert_true(bytes_are_zero(at, len_bytes));
		for (size_t i = 0; i < len_bytes; i++) {
			at[i] = 0x80;
			assert_false(bytes_are_zero(at, len_bytes));
			at[i] = 0;
		}
	}
}

static void hex_is_lower_case(void **state)
{
	char text[9];

	(void)state;
	bytes_to_hex("\x00\x9f\xab\xff", 4, text);
	assert_string_equal(text, "009fabff");
	bytes_to_hex(NULL, 0, text);
	assert_string_equal(text, "");
}

static void what_was_written_is_read(void **state)
{
	static const uint64_t numbers[] = {0, 1, 127, 128, 16383, 16384, UINT32_MAX, INT64_MAX, UINT64_MAX};
	enum { NUMBERS = sizeof(numbers) / sizeof(numbers[0]) };
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	struct byte_reader reader;
	AUTO_FREE char *text = NULL;
	AUTO_FREE char *empty = NULL;

	(void)state;
	byte_writer_u8(&writer, 7);
	byte_writer_le32(&writer, 0xdeadbeef);
	byte_writer_le64(&writer, UINT64_MAX - 1);
	for (size_t i = 0; i < NUMBERS; i++)
		byte_writer_varint(&writer, numbers[i]);
	byte_writer_string(&writer, "wherry");
	byte_writer_string(&writer, NULL);
	byte_writer_bytes(&writer, "tail", 4);
	byte_writer_bytes(&writer, NULL, 0);
	assert_false(writer.failed);

	reader = byte_reader_over(writer.data, writer.len_bytes);
	assert_int_equal(byte_reader_u8(&reader), 7);
	assert_int_equal(byte_reader_le32(&reader), 0xdeadbeef);
	assert_true(byte_reader_le64(&reader) == UINT64_MAX - 1);
	for (size_t i = 0; i < NUMBERS; i++)
		assert_true(byte_reader_varint(&reader) == numbers[i]);
	text = byte_reader_string(&reader, 6);
	empty = byte_reader_string(&reader, 0);
	assert_string_equal(text, "wherry");
	assert_string_equal(empty, "");
	assert_memory_equal(byte_reader_bytes(&reader, 4), "tail", 4);
	assert_int_equal(byte_reader_left(&reader), 0);
	assert_false(reader.bad);
}

static void varint_has_the_fewest_bytes(void **state)
{
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

	(void)state;
	byte_writer_varint(&writer, 127);
	assert_int_equal(writer.len_bytes, 1);
	byte_writer_varint(&writer, 128);
	assert_int_equal(writer.len_bytes, 3);
	assert_memory_equal(writer.data, "\x7f\x80\x01", 3);
	byte_writer_varint(&writer, UINT64_MAX);
	assert_int_equal(writer.len_bytes, 13);
}

static void writer_grows_far(void **state)
{
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

	(void)state;
	for (uint32_t i = 0; i < 100000; i++)
		byte_writer_le32(&writer, i);
	assert_false(writer.failed);
	assert_int_equal(writer.len_bytes, 400000);
	for (uint32_t i = 0; i < 100000; i += 999)
		assert_int_equal(bytes_get_le32(writer.data + 4 * (size_t)i), i);
	byte_writer_free(&writer);
	assert_null(writer.data);
	assert_int_equal(writer.len_bytes, 0);
}

static void failed_writer_takes_nothing_more(void **state)
{
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;

	(void)state;
	byte_writer_u8(&writer, 1);
	byte_writer_bytes(&writer, "never looked at", SIZE_MAX); /* the sum overflows before anything is copied */
	assert_true(writer.failed);
	byte_writer_u8(&writer, 2);
	assert_int_equal(writer.len_bytes, 1);
}

/* Each byte short of what a reader asks for makes it bad, and it stays bad. */
static void short_input_is_bad(void **state)
{
	uint8_t bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
	struct byte_reader reader;

	(void)state;
	reader = byte_reader_over(NULL, 0);
	assert_int_equal(byte_reader_u8(&reader), 0);
	assert_true(reader.bad);
	reader = byte_reader_over(bytes, 3);
	assert_int_equal(byte_reader_le32(&reader), 0);
	assert_true(reader.bad);
	assert_int_equal(byte_reader_u8(&reader), 0);
	reader = byte_reader_over(bytes, 7);
	assert_int_equal(byte_reader_le64(&reader), 0);
	assert_true(reader.bad);
	assert_int_equal(byte_reader_left(&reader), 0);
	reader = byte_reader_over(bytes, 8);
	assert_null(byte_reader_bytes(&reader, SIZE_MAX));
	assert_true(reader.bad);
	assert_null(byte_reader_bytes(&reader, 0));
}

static void malformed_varint_is_bad(void **state)
{
	static const struct {
		const char *bytes;
		size_t len_bytes;
		bool bad;
	} cases[] = {
		{"\x80", 1, true},					    /* cut short */
		{"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 10, false},    /* UINT64_MAX */
		{"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 10, true},	    /* bit 64 */
		{"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 11, true}, /* eleven bytes */
		{"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 10, false},    /* ten, all padding */
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct byte_reader reader = byte_reader_over(cases[i].bytes, cases[i].len_bytes);
		uint64_t value = byte_reader_varint(&reader);

		assert_int_equal(reader.bad, cases[i].bad);
		assert_int_equal(byte_reader_left(&reader), 0);
		if (cases[i].bad)
			assert_int_equal(value, 0);
	}
}

static void malformed_string_is_bad(void **state)
{
	static const struct {
		const char *bytes;
		size_t len_bytes;
		size_t max_bytes;
	} cases[] = {
		{"", 0, 10}, /* no length */
		{"\x05"
		 "abcd",
		 5, 10}, /* cut short */
		{"\x05"
		 "abcde",
		 6, 4}, /* longer than allowed */
		{"\x03"
		 "a\0b",
		 4, 10}, /* a NUL inside */
		{"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
		 "a",
		 11, SIZE_MAX}, /* 2^64 - 1 bytes */
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct byte_reader reader = byte_reader_over(cases[i].bytes, cases[i].len_bytes);

		assert_null(byte_reader_string(&reader, cases[i].max_bytes));
		assert_true(reader.bad);
	}
}

/* --------------------------------------------------------------- units.h */

static void sizes_are_read(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} cases[] = {
		{"0", 0},
		{"1", 1},
		{"512B", 512},
		{"4096", 4096},
		{"64K", 65536},
		{"64k", 65536},
		{"64KiB", 65536},
		{"64kib", 65536},
		{"64KB", 65536},
		{"0.5K", 512},
		{"1.5T", 1649267441664},
		{"8G", 8589934592},
		{"1P", 1125899906842624},
		{"7E", 8070450532247928832},
		{"9223372036854775807", INT64_MAX},
		{"007", 7},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t bytes = 42;

		assert_int_equal(units_parse_size(cases[i].text, &bytes), 0);
		assert_true(bytes == cases[i].bytes);
	}
}

static void what_is_no_size_is_refused(void **state)
{
	static const char *const texts[] = {
		"",
		" ",
		"K",
		"-1",
		"+1",
		" 1",
		"1 ",
		"1 K",
		"1.",
		".5",
		"1.5",
		"1.0",
		"1..5K",
		"1.5.5K",
		"0x10",
		"1e3",
		"inf",
		"nan",
		"64iB",
		"64KiBB",
		"64KK",
		"64Kx",
		"0.1K",
		"1.0000000000000000001K",
		"99999999999999999999.0K",
		"99999999999999999999X",
		"1,5K",
		"64\xe2\x80\x8bK",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		uint64_t bytes = 42;

		if (units_parse_size(texts[i], &bytes) != -EINVAL)
			fail_msg("\"%s\" was taken for a size", texts[i]);
		assert_int_equal(bytes, 42);
	}
}

static void sizes_that_are_too_large_are_told_apart(void **state)
{
	static const char *const texts[] = {"8E",   "8192P",	 "16777216T",		 "9223372036854775808",
					    "16E",  "8589934592G", "18446744073709551616", "99999999999999999999",
					    "9999999999999999999E", "100000000000000000000000000000000000000000E"};

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		uint64_t bytes = 42;

		if (units_parse_size(texts[i], &bytes) != -ERANGE)
			fail_msg("\"%s\" was not too large", texts[i]);
		assert_int_equal(bytes, 42);
	}
}

static void rates_are_read(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} cases[] = {
		{"0", 0},
		{"0M", 0},
		{"unlimited", 0},
		{"Unlimited", 0},
		{"10M", 10485760},
		{"10M/s", 10485760},
		{"10MiB/s", 10485760},
		{"512K/S", 524288},
		{"4096", 4096},
		{"100Mbit", 12500000},
		{"100mbit/s", 12500000},
		{"1Gbit", 125000000},
		{"1.5Gbit", 187500000},
		{"8bit", 1},
		{"1.3M", 1363148},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t bytes = 42;

		assert_int_equal(units_parse_rate(cases[i].text, &bytes), 0);
		assert_true(bytes == cases[i].bytes);
	}
}

static void what_is_no_rate_is_refused(void **state)
{
	static const char *const texts[] = {
		"",	"M",	"-1",	  "none", "unlimitedx", "10M/", "10M/m",	   "10Mbits",
		"10 M", "1bit", "0.0001", "Mbit", "10bits",	"8E",	"99999999999Gbit", "10M/s/s",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		uint64_t bytes = 42;

		if (units_parse_rate(texts[i], &bytes) != -EINVAL)
			fail_msg("\"%s\" was taken for a rate", texts[i]);
		assert_int_equal(bytes, 42);
	}
}

static void sizes_are_written(void **state)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} cases[] = {
		{0, "0 B"},
		{512, "512 B"},
		{1023, "1023 B"},
		{1024, "1.0 KiB"},
		{1536, "1.5 KiB"},
		{102348, "99.9 KiB"},
		{102400, "100 KiB"},
		{102399, "100 KiB"},
		{1048063, "1023 KiB"},
		{1048064, "1.0 MiB"},
		{1048575, "1.0 MiB"},
		{8589934592, "8.0 GiB"},
		{INT64_MAX, "8.0 EiB"},
		{UINT64_MAX, "16.0 EiB"},
	};
	char text[UNITS_TEXT_BYTES];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_string_equal(units_format_size(cases[i].bytes, text), cases[i].text);
}

static void durations_are_written(void **state)
{
	static const struct {
		double seconds;
		const char *text;
	} cases[] = {
		{0, "0s"},
		{-3, "0s"},
		{12, "12s"},
		{59.4, "59s"},
		{59.6, "1m00s"},
		{185, "3m05s"},
		{7620, "2h07m"},
		{356400, "4d03h"},
		{DBL_MAX, "11574074074d01h"},
		{(double)INFINITY, "11574074074d01h"},
		{(double)NAN, "0s"},
	};
	char text[UNITS_TEXT_BYTES];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_string_equal(units_format_duration(cases[i].seconds, text), cases[i].text);
}

static void times_are_written(void **state)
{
	static const struct {
		int64_t seconds;
		const char *text;
	} cases[] = {
		{0, "1970-01-01T00:00:00Z"},	      {-1, "1969-12-31T23:59:59Z"},
		{1795615567, "2026-11-25T14:06:07Z"}, {4107542399, "2100-02-28T23:59:59Z"},
		{INT64_MAX, "9999-12-31T23:59:59Z"},  {INT64_MIN, "0000-01-01T00:00:00Z"},
	};
	char text[UNITS_TEXT_BYTES];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_string_equal(units_format_time(cases[i].seconds, text), cases[i].text);
}

static void clock_goes_forward(void **state)
{
	double first = units_monotonic_seconds();

	(void)state;
	assert_true(first > 0);
	assert_true(units_monotonic_seconds() >= first);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(first_message_stays),
		cmocka_unit_test(failing_needs_no_message),
		cmocka_unit_test(errno_survives_failing),
		cmocka_unit_test(message_is_one_safe_line),
		cmocka_unit_test(long_message_is_cut_with_a_mark),
		cmocka_unit_test(message_that_just_fits_is_whole),
		cmocka_unit_test(cut_message_keeps_the_reason),
		cmocka_unit_test(cut_falls_between_characters),
		cmocka_unit_test(failure_is_handed_on_once),
		cmocka_unit_test(notices_reach_who_listens),
		cmocka_unit_test(taken_resources_are_left_alone),
		cmocka_unit_test(lock_is_held_until_the_scope_ends),
		cmocka_unit_test(integers_are_little_endian),
		cmocka_unit_test(one_bit_anywhere_is_not_zero),
		cmocka_unit_test(hex_is_lower_case),
		cmocka_unit_test(what_was_written_is_read),
		cmocka_unit_test(varint_has_the_fewest_bytes),
		cmocka_unit_test(writer_grows_far),
		cmocka_unit_test(failed_writer_takes_nothing_more),
		cmocka_unit_test(short_input_is_bad),
		cmocka_unit_test(malformed_varint_is_bad),
		cmocka_unit_test(malformed_string_is_bad),
		cmocka_unit_test(sizes_are_read),
		cmocka_unit_test(what_is_no_size_is_refused),
		cmocka_unit_test(sizes_that_are_too_large_are_told_apart),
		cmocka_unit_test(rates_are_read),
		cmocka_unit_test(what_is_no_rate_is_refused),
		cmocka_unit_test(sizes_are_written),
		cmocka_unit_test(utf8_is_told_from_what_is_not),
		cmocka_unit_test(durations_are_written),
		cmocka_unit_test(times_are_written),
		cmocka_unit_test(clock_goes_forward),
	};

	return cmocka_run_group_tests_name("common", tests, NULL, NULL);
}
