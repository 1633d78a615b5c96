/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NBD sources, against a server that says what it is told to: content through every block size, errors on a spot and
 * lost connections, which must never be taken for one another, and replies that no decent server sends.
 */
#include "unit_test.h"

#include <stdatomic.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_nbd_server.h"
#include "reap_one.h"
#include "scratch_folder.h"
#include "syncer/source.h"
#include "syncer/source_nbd_uri.h"

enum { MIB = 1 << 20, REQUESTS = 32 };

static struct scratch_folder folder;

static int make_folder(void **state)
{
	(void)state;
	scratch_folder_make(&folder);
	return 0;
}

static int remove_folder(void **state)
{
	(void)state;
	scratch_folder_remove(&folder);
	return 0;
}

static struct source *open_disk(const struct fake_nbd_server *server, const char *bitmap)
{
	struct source_options options = {.dirty_bitmap = bitmap};
	struct failure failure = {.code = 0};
	struct source *source = NULL;

	if (source_open(server->uri, &options, &source, &failure) < 0)
		fail_msg("%s", failure.message);
	return source;
}

static void assert_open_fails(const char *uri, const char *bitmap, int code, const char *part_of_message)
{
	struct source_options options = {.dirty_bitmap = bitmap};
	struct failure failure = {.code = 0};
	struct source *source = NULL;

	assert_int_equal(source_open(uri, &options, &source, &failure), code);
	assert_null(source);
	if (strstr(failure.message, part_of_message) == NULL)
		fail_msg("\"%s\" isn't in \"%s\"", part_of_message, failure.message);
}

static void assert_server_refused(struct fake_nbd_server *server, const char *bitmap, int code, const char *part)
{
	fake_nbd_server_start(server, folder.path);
	assert_open_fails(server->uri, bitmap, code, part);
	fake_nbd_server_stop(server);
}

static void assert_content(const uint8_t *buffer, size_t len_bytes, uint64_t off_bytes)
{
	for (size_t i = 0; i < len_bytes; i++) {
		if (buffer[i] != fake_nbd_server_byte(off_bytes + i))
			fail_msg("wrong byte at %llu", (unsigned long long)(off_bytes + i));
	}
}

/* Reads everything with many requests in flight. Returns how many failed; *ret_error is the last one's. */
static unsigned read_all(struct source *source, uint32_t len_bytes, int *ret_error)
{
	static struct source_request requests[REQUESTS];
	const uint64_t size_bytes = source_get_info(source)->size_bytes;
	uint64_t off_bytes = 0;
	unsigned next = 0;
	unsigned failed = 0;
	struct source_request *request;

	for (unsigned i = 0; i < REQUESTS; i++) {
		requests[i] = (struct source_request){.buffer = malloc(len_bytes)};
		assert_non_null(requests[i].buffer);
	}
	request = &requests[next++];
	while (request != NULL) {
		if (off_bytes < size_bytes) {
			uint64_t left_bytes = size_bytes - off_bytes;

			request->off_bytes = off_bytes;
			request->len_bytes = left_bytes < len_bytes ? (uint32_t)left_bytes : len_bytes;
			if (source_submit(source, request, NULL) == 0)
				off_bytes += request->len_bytes;
			else
				off_bytes = size_bytes; /* gone: collect what is in flight */
		}
		if (next < REQUESTS && off_bytes < size_bytes) {
			request = &requests[next++];
			continue;
		}
		request = reap_one(source);
		if (request != NULL && request->result < 0) {
			failed++;
			*ret_error = request->result;
		} else if (request != NULL) {
			assert_content(request->buffer, request->len_bytes, request->off_bytes);
		}
	}
	for (unsigned i = 0; i < REQUESTS; i++)
		free(requests[i].buffer);
	return failed;
}

/* ----------------------------------------------------------------- reading */

static void content_arrives_whatever_the_block_size(void **state)
{
	static const uint32_t block_bytes[][3] = {
		{0, 0, 0},	   {1, 4096, 32 * MIB},	  {512, 512, 512},
		{4096, 4096, MIB}, {65536, 65536, 65536}, {65536, 65536, 131072},
	};
	static const uint32_t request_bytes[] = {4096, 33333, MIB};

	(void)state;
	for (size_t i = 0; i < sizeof(block_bytes) / sizeof(block_bytes[0]); i++) {
		struct fake_nbd_server server = {.size_bytes = 3 * MIB};
		struct source *source;

		memcpy(server.block_bytes, block_bytes[i], sizeof(server.block_bytes));
		fake_nbd_server_start(&server, folder.path);
		source = open_disk(&server, NULL);
		assert_int_equal(source_get_info(source)->size_bytes, 3 * MIB);
		for (size_t j = 0; j < sizeof(request_bytes) / sizeof(request_bytes[0]); j++) {
			int error = 0;

			assert_int_equal(read_all(source, request_bytes[j], &error), 0);
		}
		source_close(source);
		fake_nbd_server_stop(&server);
		assert_false(server.saw_unaligned_read);
		if (block_bytes[i][2] != 0)
			assert_in_range(server.largest_read_bytes, 1, block_bytes[i][2]);
	}
}

static void content_arrives_without_structured_replies(void **state)
{
	struct fake_nbd_server server = {.size_bytes = 5 * MIB + 17, .has_no_structured_replies = true};
	struct source *source;
	enum source_extent extent;
	uint64_t len_bytes;
	int error = 0;

	(void)state;
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_int_equal(read_all(source, 70000, &error), 0);
	assert_int_equal(source_extent_at(source, 0, 5 * MIB, &extent, &len_bytes, NULL), 0);
	assert_int_equal(extent, SOURCE_DATA);
	assert_int_equal(len_bytes, 5 * MIB);
	assert_string_equal(source_dirty_bitmaps(source), "");
	source_close(source);
	fake_nbd_server_stop(&server);
}

static void sector_size_follows_the_minimum_block(void **state)
{
	static const struct {
		uint32_t minimum_bytes, sector_bytes, align_bytes;
	} cases[] = {{1, 512, 512}, {512, 512, 512}, {4096, 4096, 4096}, {65536, 512, 4096}};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct fake_nbd_server server = {.size_bytes = MIB,
						 .block_bytes = {cases[i].minimum_bytes, 65536, MIB}};
		struct source *source;

		fake_nbd_server_start(&server, folder.path);
		source = open_disk(&server, NULL);
		assert_int_equal(source_get_info(source)->sector_bytes, cases[i].sector_bytes);
		assert_int_equal(source_get_info(source)->align_bytes, cases[i].align_bytes);
		source_close(source);
		fake_nbd_server_stop(&server);
	}
}

static void blocking_read_works_next_to_requests_in_flight(void **state)
{
	struct fake_nbd_server server = {.size_bytes = 8 * MIB};
	struct source_request requests[4] = {{.off_bytes = 0}};
	struct source *source;
	uint8_t *buffer = malloc(MIB);

	(void)state;
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	for (unsigned i = 0; i < 4; i++) {
		requests[i] = (struct source_request){.off_bytes = i * MIB, .len_bytes = MIB, .buffer = malloc(MIB)};
		assert_int_equal(source_submit(source, &requests[i], NULL), 0);
	}
	assert_int_equal(source_read(source, buffer, MIB, 5 * MIB + 1, NULL), 0);
	assert_content(buffer, MIB, 5 * MIB + 1);
	for (unsigned i = 0; i < 4; i++) {
		struct source_request *request = reap_one(source);

		assert_non_null(request);
		assert_int_equal(request->result, 0);
		assert_content(request->buffer, MIB, request->off_bytes);
	}
	assert_null(source_reap(source, true));
	source_close(source);
	fake_nbd_server_stop(&server);
	for (unsigned i = 0; i < 4; i++)
		free(requests[i].buffer);
	free(buffer);
}

static void closing_leaves_no_request_behind(void **state)
{
	struct fake_nbd_server server = {.size_bytes = 8 * MIB};
	struct source_request request = {.len_bytes = 8 * MIB, .buffer = malloc(8 * MIB)};
	struct source *source;

	(void)state;
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_int_equal(source_submit(source, &request, NULL), 0);
	source_close(source);
	free(request.buffer); /* AddressSanitizer watches who writes here now */
	fake_nbd_server_stop(&server);
}

/* ------------------------------------------------- bad sectors, lost servers */

static unsigned fail_two_spots(uint64_t off_bytes, uint32_t len_bytes)
{
	static const uint64_t bad[] = {MIB, MIB + 512, 3 * MIB - 512};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (off_bytes <= bad[i] && bad[i] < off_bytes + len_bytes)
			return EIO;
	}
	return 0;
}

static unsigned fail_second_half(uint64_t off_bytes, uint32_t len_bytes)
{
	return off_bytes + len_bytes > MIB / 2 ? EIO : 0;
}

struct bad_ranges {
	uint64_t off_bytes[8];
	uint64_t len_bytes[8];
	unsigned count;
};

static void note_bad(void *opaque, uint64_t off_bytes, uint64_t len_bytes)
{
	struct bad_ranges *ranges = opaque;

	assert_in_range(ranges->count, 0, 7);
	ranges->off_bytes[ranges->count] = off_bytes;
	ranges->len_bytes[ranges->count++] = len_bytes;
}

static void bad_spot_fails_just_its_request(void **state)
{
	struct fake_nbd_server server = {.size_bytes = 4 * MIB, .fail_read = fail_two_spots};
	struct source *source;
	int error = 0;

	(void)state;
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_int_equal(read_all(source, 65536, &error), 2);
	assert_int_equal(error, -EIO);
	source_close(source);
	fake_nbd_server_stop(&server);
}

static void bad_spots_are_narrowed_down_to_sectors(void **state)
{
	struct fake_nbd_server server = {.size_bytes = 4 * MIB, .fail_read = fail_two_spots};
	struct bad_ranges bad = {.count = 0};
	struct source *source;
	uint8_t *buffer = malloc(3 * MIB);

	(void)state;
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	memset(buffer, 0xee, 3 * MIB);
	assert_int_equal(source_read_salvaging(source, buffer, 3 * MIB - 100, 100, NULL, note_bad, &bad, NULL), 0);
	assert_int_equal(bad.count, 2);
	assert_int_equal(bad.off_bytes[0], MIB);
	assert_int_equal(bad.len_bytes[0], 1024);
	assert_int_equal(bad.off_bytes[1], 3 * MIB - 512);
	assert_int_equal(bad.len_bytes[1], 512);
	assert_content(buffer, MIB - 100, 100);
	for (size_t i = 0; i < 1024; i++)
		assert_int_equal(buffer[MIB - 100 + i], 0);
	assert_content(buffer + MIB + 1024 - 100, 2 * MIB - 1024 - 512, MIB + 1024);
	source_close(source);
	fake_nbd_server_stop(&server);
	free(buffer);
}

static void dead_region_costs_one_read_for_each_sector(void **state)
{
	struct fake_nbd_server server = {.size_bytes = MIB, .fail_read = fail_second_half};
	struct bad_ranges bad = {.count = 0};
	struct source *source;
	uint8_t *buffer = malloc(MIB);

	(void)state;
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_int_equal(source_read_salvaging(source, buffer, MIB, 0, NULL, note_bad, &bad, NULL), 0);
	assert_int_equal(bad.count, 1);
	assert_int_equal(bad.off_bytes[0], MIB / 2);
	assert_int_equal(bad.len_bytes[0], MIB / 2);
	source_close(source);
	fake_nbd_server_stop(&server);
	assert_in_range(server.reads, MIB / 2 / 512, MIB / 2 / 512 + 60);
	free(buffer);
}

static void large_minimum_block_is_the_smallest_bad_spot(void **state)
{
	struct fake_nbd_server server = {
		.size_bytes = 4 * MIB, .block_bytes = {65536, 65536, MIB}, .fail_read = fail_two_spots};
	struct bad_ranges bad = {.count = 0};
	struct source *source;
	uint8_t *buffer = malloc(2 * MIB);

	(void)state;
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_int_equal(source_read_salvaging(source, buffer, 2 * MIB, 0, NULL, note_bad, &bad, NULL), 0);
	assert_int_equal(bad.count, 1);
	assert_int_equal(bad.off_bytes[0], MIB);
	assert_int_equal(bad.len_bytes[0], 65536);
	source_close(source);
	fake_nbd_server_stop(&server);
	free(buffer);
}

static void salvaging_stops_when_told(void **state)
{
	struct fake_nbd_server server = {.size_bytes = MIB, .fail_read = fail_second_half};
	const atomic_bool stop = true;
	struct source *source;
	uint8_t buffer[4096];

	(void)state;
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_int_equal(source_read_salvaging(source, buffer, 4096, MIB - 4096, &stop, note_bad, NULL, NULL),
			 -ECANCELED);
	source_close(source);
	fake_nbd_server_stop(&server);
}

static void lost_server_fails_all_requests_and_is_no_bad_sector(void **state)
{
	struct fake_nbd_server server = {.size_bytes = 64 * MIB, .most_reads = 10};
	struct bad_ranges bad = {.count = 0};
	struct failure failure = {.code = 0};
	struct source_request request = {.len_bytes = 4096, .buffer = malloc(4096)};
	struct source *source;
	uint64_t len_bytes;
	enum source_extent extent;
	int error = 0;

	(void)state;
	server.contexts[0] = "base:allocation";
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_true(read_all(source, MIB, &error) > 0);
	assert_int_equal(error, -ENOTCONN);
	assert_int_equal(source_submit(source, &request, &failure), -ENOTCONN);
	assert_non_null(strstr(failure.message, "the connection to the server was lost: "));
	assert_int_equal(source_read(source, request.buffer, 4096, 0, NULL), -ENOTCONN);
	assert_int_equal(source_read_salvaging(source, request.buffer, 4096, 0, NULL, note_bad, &bad, NULL), -ENOTCONN);
	assert_int_equal(bad.count, 0);
	assert_int_equal(source_extent_at(source, 0, MIB, &extent, &len_bytes, NULL), -ENOTCONN);
	source_close(source);
	fake_nbd_server_stop(&server);
	free(request.buffer);
}

static void server_lost_while_telling_extents_is_an_error(void **state)
{
	struct fake_nbd_server server = {.size_bytes = 64 * MIB, .most_statuses = 0};
	struct source *source;
	enum source_extent extent;
	uint64_t len_bytes;

	(void)state;
	server.contexts[0] = "base:allocation";
	server.most_statuses = 1;
	server.size_bytes = UINT64_C(4) << 30;
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_int_equal(source_extent_at(source, 0, MIB, &extent, &len_bytes, NULL), 0);
	assert_int_equal(source_extent_at(source, UINT64_C(3) << 30, MIB, &extent, &len_bytes, NULL), -ENOTCONN);
	source_close(source);
	fake_nbd_server_stop(&server);
}

/* --------------------------------------------------------- what a server says */

static void size_that_cannot_be_is_refused(void **state)
{
	struct fake_nbd_server empty = {.size_bytes = 0};
	struct fake_nbd_server huge = {.size_bytes = UINT64_C(1) << 63};
	struct fake_nbd_server all = {.size_bytes = UINT64_MAX};

	(void)state;
	assert_server_refused(&empty, NULL, -EINVAL, "empty");
	assert_server_refused(&huge, NULL, -EFBIG, "8 EiB");
	assert_server_refused(&all, NULL, -EFBIG, "8 EiB");
}

/* libnbd refuses some of them itself, by other words; what matters is that none gets through unharmed. */
static void block_sizes_that_cannot_be_do_no_harm(void **state)
{
	static const uint32_t block_bytes[][3] = {
		{3, 4096, MIB}, {131072, 131072, MIB}, {65536, 65536, 4096}, {512, 1000, 700}, {UINT32_MAX, 1, 1},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(block_bytes) / sizeof(block_bytes[0]); i++) {
		struct fake_nbd_server server = {.size_bytes = MIB};
		struct failure failure = {.code = 0};
		struct source *source = NULL;
		int error = 0;

		memcpy(server.block_bytes, block_bytes[i], sizeof(server.block_bytes));
		fake_nbd_server_start(&server, folder.path);
		if (source_open(server.uri, NULL, &source, &failure) == 0)
			assert_int_equal(read_all(source, 65536, &error), 0);
		else
			assert_string_not_equal(failure.message, "");
		source_close(source);
		fake_nbd_server_stop(&server);
	}
}

static void unknown_export_is_answered_with_those_there_are(void **state)
{
	struct fake_nbd_server server = {.size_bytes = MIB, .export_name = "other"};

	(void)state;
	assert_server_refused(&server, NULL, -ENOENT, "no export \"disk\"; it has: other");
}

/* ------------------------------------------------------------------- extents */

static uint32_t all_flags[4]; /* of four quarters of what is asked about */

static size_t tell_quarters(unsigned context, uint64_t off_bytes, uint32_t len_bytes, uint32_t *ret_words)
{
	(void)context;
	(void)off_bytes;
	for (unsigned i = 0; i < 4; i++) {
		ret_words[2 * i] = len_bytes / 4;
		ret_words[2 * i + 1] = all_flags[i];
	}
	return 8;
}

static void only_what_reads_as_zeros_is_a_hole(void **state)
{
	struct fake_nbd_server server = {.size_bytes = 4 * MIB, .tell_status = tell_quarters};
	static const enum source_extent expected[4] = {SOURCE_DATA, SOURCE_DATA, SOURCE_HOLE, SOURCE_HOLE};
	static const uint64_t expected_len_bytes[4] = {2 * MIB, MIB, MIB, MIB};
	static const uint32_t flags[4] = {0, 1, 2, 3}; /* hole is 1, zero is 2 */
	struct source *source;
	enum source_extent extent;
	uint64_t len_bytes;

	(void)state;
	memcpy(all_flags, flags, sizeof(flags));
	server.contexts[1] = "base:allocation";
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(source_extent_at(source, i * MIB, (4 - i) * MIB, &extent, &len_bytes, NULL), 0);
		assert_int_equal(extent, expected[i]);
		assert_in_range(len_bytes, 1, expected_len_bytes[i]);
	}
	source_close(source);
	fake_nbd_server_stop(&server);
}

static size_t tell_too_much(unsigned context, uint64_t off_bytes, uint32_t len_bytes, uint32_t *ret_words)
{
	(void)context;
	(void)off_bytes;
	(void)len_bytes;
	ret_words[0] = 4096;
	ret_words[1] = 0;
	ret_words[2] = UINT32_MAX;
	ret_words[3] = 3;
	return 4;
}

static void answer_is_cut_where_the_question_ends(void **state)
{
	struct fake_nbd_server server = {.size_bytes = MIB + 12345, .tell_status = tell_too_much};
	struct source *source;
	enum source_extent extent;
	uint64_t len_bytes;

	(void)state;
	server.contexts[0] = "base:allocation";
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_int_equal(source_extent_at(source, 0, MIB + 12345, &extent, &len_bytes, NULL), 0);
	assert_int_equal(extent, SOURCE_DATA);
	assert_int_equal(len_bytes, 4096);
	assert_int_equal(source_extent_at(source, 8192, MIB + 12345 - 8192, &extent, &len_bytes, NULL), 0);
	assert_int_equal(extent, SOURCE_HOLE);
	assert_int_equal(len_bytes, MIB + 12345 - 8192);
	assert_int_equal(source_extent_at(source, 8192, 100, &extent, &len_bytes, NULL), 0);
	assert_int_equal(len_bytes, 100);
	source_close(source);
	fake_nbd_server_stop(&server);
}

static void small_steps_are_no_round_trips(void **state)
{
	struct fake_nbd_server server = {.size_bytes = UINT64_C(5) << 30};
	struct source *source;
	enum source_extent extent;
	uint64_t len_bytes;

	(void)state;
	server.contexts[0] = "base:allocation";
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	for (uint64_t at_bytes = 0; at_bytes < server.size_bytes; at_bytes += MIB) {
		assert_int_equal(source_extent_at(source, at_bytes, MIB, &extent, &len_bytes, NULL), 0);
		assert_int_equal(len_bytes, MIB);
	}
	source_close(source);
	fake_nbd_server_stop(&server);
	assert_int_equal(server.statuses, 5);
	assert_int_equal(server.largest_status_bytes, UINT32_C(1) << 30);
}

static unsigned lie; /* which one */

static size_t tell_lies(unsigned context, uint64_t off_bytes, uint32_t len_bytes, uint32_t *ret_words)
{
	(void)context;
	(void)off_bytes;
	ret_words[0] = len_bytes / 2;
	ret_words[1] = 3;
	ret_words[2] = 0; /* an entry of no length */
	ret_words[3] = 3;
	switch (lie) {
	case 0:
		return 0;
	case 1:
		return 1;
	case 2:
		return 3;
	default:
		return 4;
	}
}

static void extents_that_break_the_protocol_are_an_error(void **state)
{
	(void)state;
	for (lie = 0; lie < 4; lie++) {
		struct fake_nbd_server server = {.size_bytes = 4 * MIB, .tell_status = tell_lies};
		struct failure failure = {.code = 0};
		struct source *source;
		enum source_extent extent;
		uint64_t len_bytes;

		server.contexts[0] = "base:allocation";
		fake_nbd_server_start(&server, folder.path);
		source = open_disk(&server, NULL);
		assert_true(source_extent_at(source, 0, 4 * MIB, &extent, &len_bytes, &failure) < 0);
		assert_string_not_equal(failure.message, "");
		source_close(source);
		fake_nbd_server_stop(&server);
	}
}

static size_t tell_one_short_extent(unsigned context, uint64_t off_bytes, uint32_t len_bytes, uint32_t *ret_words)
{
	(void)context;
	ret_words[0] = len_bytes < 4096 ? len_bytes : 4096;
	ret_words[1] = off_bytes / 4096 % 2 == 0 ? 2 : 0;
	return 2;
}

/* A server may say less than it was asked about. */
static void short_answer_is_asked_on(void **state)
{
	struct fake_nbd_server server = {.size_bytes = MIB, .tell_status = tell_one_short_extent};
	struct source *source;
	enum source_extent extent;
	uint64_t len_bytes;

	(void)state;
	server.contexts[0] = "base:allocation";
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	for (uint64_t at_bytes = 0; at_bytes < MIB; at_bytes += 4096) {
		assert_int_equal(source_extent_at(source, at_bytes, MIB - at_bytes, &extent, &len_bytes, NULL), 0);
		assert_int_equal(extent, at_bytes / 4096 % 2 == 0 ? SOURCE_HOLE : SOURCE_DATA);
		assert_int_equal(len_bytes, 4096);
	}
	source_close(source);
	fake_nbd_server_stop(&server);
}

/* -------------------------------------------------------------- dirty bitmaps */

static size_t tell_dirty(unsigned context, uint64_t off_bytes, uint32_t len_bytes, uint32_t *ret_words)
{
	(void)off_bytes;
	ret_words[0] = 65536;
	ret_words[1] = context == 2 ? 1 : 0;
	ret_words[2] = len_bytes - 65536;
	ret_words[3] = context == 2 ? 0 : 3;
	return 4;
}

static void dirty_bitmap_is_read_in_one_go_with_extents(void **state)
{
	struct fake_nbd_server server = {.size_bytes = MIB, .tell_status = tell_dirty};
	struct source *source;
	enum source_extent extent;
	uint64_t len_bytes;
	bool is_dirty;

	(void)state;
	server.contexts[0] = "base:allocation";
	server.contexts[1] = "qemu:dirty-bitmap:zwei";
	server.contexts[2] = "qemu:dirty-bitmap:eins";
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, "eins");
	assert_string_equal(source_dirty_bitmaps(source), "eins\nzwei");
	assert_int_equal(source_dirty_at(source, 0, MIB, &is_dirty, &len_bytes, NULL), 0);
	assert_true(is_dirty);
	assert_int_equal(len_bytes, 65536);
	assert_int_equal(source_dirty_at(source, 65536, 1000, &is_dirty, &len_bytes, NULL), 0);
	assert_false(is_dirty);
	assert_int_equal(len_bytes, 1000);
	assert_int_equal(source_extent_at(source, 65536, MIB - 65536, &extent, &len_bytes, NULL), 0);
	assert_int_equal(extent, SOURCE_HOLE);
	source_close(source);
	fake_nbd_server_stop(&server);
	assert_int_equal(server.statuses, 1);
}

static void unknown_bitmap_is_answered_with_those_there_are(void **state)
{
	struct fake_nbd_server server = {.size_bytes = MIB};
	struct fake_nbd_server bare = {.size_bytes = MIB};

	(void)state;
	server.contexts[0] = "qemu:dirty-bitmap:b";
	server.contexts[1] = "qemu:dirty-bitmap:a";
	assert_server_refused(&server, "c", -ENODATA, "no dirty bitmap \"c\"; it has: a, b");
	assert_server_refused(&bare, "c", -ENODATA, "nor any other");
}

static void bitmap_not_asked_for_is_not_there(void **state)
{
	struct fake_nbd_server server = {.size_bytes = MIB};
	struct source *source;
	uint64_t len_bytes;
	bool is_dirty;

	(void)state;
	server.contexts[0] = "qemu:dirty-bitmap:a";
	fake_nbd_server_start(&server, folder.path);
	source = open_disk(&server, NULL);
	assert_int_equal(source_dirty_at(source, 0, MIB, &is_dirty, &len_bytes, NULL), -ENODATA);
	source_close(source);
	fake_nbd_server_stop(&server);
}

/* ----------------------------------------------------------------------- URIs */

static void secrets_are_not_shown(void **state)
{
	static const struct {
		const char *uri, *name;
	} cases[] = {
		{"nbd://host", "nbd://host"},
		{"nbds://me:secret@host:99/x?tls-psk-file=/k", "nbds://host:99/x"},
		{"nbds://a@b@host/x", "nbds://host/x"},
		{"nbd+unix:///x?tls-certificates=/c&socket=/s", "nbd+unix:///x?socket=/s"},
		{"nbd+unix:///?socket=/s&tls-psk-file=/k#f", "nbd+unix:///?socket=/s"},
		{"nbd://host?xsocket=/s", "nbd://host"},
		{"nbd://[::1]:10809/a@b", "nbd://[::1]:10809/a@b"},
		{"nbd://", "nbd://"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *name = source_nbd_public_name(cases[i].uri);

		assert_string_equal(name, cases[i].name);
		free(name);
	}
}

static void what_would_not_be_verified_is_refused(void **state)
{
	(void)state;
	assert_open_fails("nbds+unix:///x?socket=/s", NULL, -EINVAL, "would not be verified");
	assert_open_fails("nbds:///x", NULL, -EINVAL, "would not be verified");
	assert_open_fails("nbds://user@/x", NULL, -EINVAL, "would not be verified");
	assert_open_fails("nbds://:10809", NULL, -EINVAL, "would not be verified");
}

static void other_schemes_are_refused_by_name(void **state)
{
	(void)state;
	assert_open_fails("ssh://me:secret@host/x", NULL, -EINVAL, "ssh://host/x: ssh:// is not");
	assert_open_fails("nbd+vsock://1", NULL, -EINVAL, "nbd+vsock:// is not");
	assert_open_fails("NBD://host", NULL, -EINVAL, "NBD:// is not");
	assert_open_fails("", NULL, -EINVAL, "empty");
}

static void nobody_listening_is_said_plainly(void **state)
{
	char uri[400];

	(void)state;
	(void)snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s/none.sock", folder.path);
	assert_open_fails(uri, NULL, -ENOENT, "is an NBD server listening there?");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(content_arrives_whatever_the_block_size),
		cmocka_unit_test(content_arrives_without_structured_replies),
		cmocka_unit_test(sector_size_follows_the_minimum_block),
		cmocka_unit_test(blocking_read_works_next_to_requests_in_flight),
		cmocka_unit_test(closing_leaves_no_request_behind),
		cmocka_unit_test(bad_spot_fails_just_its_request),
		cmocka_unit_test(bad_spots_are_narrowed_down_to_sectors),
		cmocka_unit_test(dead_region_costs_one_read_for_each_sector),
		cmocka_unit_test(large_minimum_block_is_the_smallest_bad_spot),
		cmocka_unit_test(salvaging_stops_when_told),
		cmocka_unit_test(lost_server_fails_all_requests_and_is_no_bad_sector),
		cmocka_unit_test(server_lost_while_telling_extents_is_an_error),
		cmocka_unit_test(size_that_cannot_be_is_refused),
		cmocka_unit_test(block_sizes_that_cannot_be_do_no_harm),
		cmocka_unit_test(unknown_export_is_answered_with_those_there_are),
		cmocka_unit_test(only_what_reads_as_zeros_is_a_hole),
		cmocka_unit_test(answer_is_cut_where_the_question_ends),
		cmocka_unit_test(small_steps_are_no_round_trips),
		cmocka_unit_test(extents_that_break_the_protocol_are_an_error),
		cmocka_unit_test(short_answer_is_asked_on),
		cmocka_unit_test(dirty_bitmap_is_read_in_one_go_with_extents),
		cmocka_unit_test(unknown_bitmap_is_answered_with_those_there_are),
		cmocka_unit_test(bitmap_not_asked_for_is_not_there),
		cmocka_unit_test(secrets_are_not_shown),
		cmocka_unit_test(what_would_not_be_verified_is_refused),
		cmocka_unit_test(other_schemes_are_refused_by_name),
		cmocka_unit_test(nobody_listening_is_said_plainly),
	};

	return cmocka_run_group_tests_name("source_nbd", tests, make_folder, remove_folder);
}
