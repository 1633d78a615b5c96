/* SPDX-License-Identifier: Apache-2.0 */
/*
 * syncer/round, on the fake store, which fails, loses its power and forgets on demand.
 *
 * The pattern of nearly all of it: a disk has image 1, the source changes, a round is hit by something; then nothing that was promised may be
 * gone, and the next round, unhindered, must make the disk equal to the source. What a disk holds is read chunk by chunk
 * through the view and compared with the file.
 *
 * WHERRY_TEST_SEED repeats a run.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"
#include "store/store.h"
#include "store/store_fake.h"
#include "syncer/round.h"
#include "syncer/source.h"
#include "scratch_folder.h"

enum { KIB = 1024, MIB = 1024 * 1024, CHUNK = 16 * KIB, SMALL_BYTES = 9 * MIB + 1000 };

static struct scratch_folder scratch;
static char source_path[300], kept_path[300];
static uint64_t random_state;

/* ------------------------------------------------------------------ sources */

static uint64_t random_number(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return below == 0 ? random_state : random_state % below;
}

static void write_random(const char *path, uint64_t off_bytes, size_t len_bytes)
{
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	AUTO_FREE uint64_t *words = malloc(len_bytes + sizeof(*words));

	assert_true(fd >= 0 && words != NULL);
	for (size_t i = 0; i <= len_bytes / sizeof(*words); i++)
		words[i] = random_number(0);
	assert_int_equal(pwrite(fd, words, len_bytes, (off_t)off_bytes), (ssize_t)len_bytes);
}

static void punch(const char *path, uint64_t off_bytes, uint64_t len_bytes)
{
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off_bytes, (off_t)len_bytes), 0);
}

/* A file of this size that is all hole. */
static void make_source(uint64_t size_bytes)
{
	AUTO_CLOSE int fd = open(source_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size_bytes), 0);
}

static void keep_source(void)
{
	char command[1024];

	(void)snprintf(command, sizeof(command), "cp --sparse=always %s %s", source_path, kept_path);
	assert_int_equal(system(command), 0);
}

/* Data on three pages of the map, a hole between, an end within a chunk. */
static void make_small_source(void)
{
	make_source(SMALL_BYTES);
	write_random(source_path, 0, 2 * MIB);
	write_random(source_path, 3 * MIB + 100, 2 * MIB);
	write_random(source_path, SMALL_BYTES - MIB, MIB);
}

/* Something new, something zero, something that was a hole, something moved to where it was not. */
static void change_small_source(void)
{
	write_random(source_path, 512 * KIB, 400 * KIB);
	punch(source_path, MIB, 512 * KIB);
	write_random(source_path, 6 * MIB, MIB);
	write_random(source_path, SMALL_BYTES - 10, 10);
}

/* -------------------------------------------------------------------- store */

static struct store *new_store(bool forgets_commits)
{
	const struct store_fake_options options = {.chunk_bytes = CHUNK, .forgets_commits = forgets_commits};
	struct store *store = NULL;

	assert_int_equal(store_fake_new(&options, &store), 0);
	return store;
}

static bool chunk_equals(struct store_view *view, struct store_scratch *scratch_of, const struct store_map_entry *entry,
			 int fd, uint64_t off_bytes, uint32_t len_bytes)
{
	static uint8_t expected[CHUNK], actual[CHUNK];

	assert_int_equal(pread(fd, expected, len_bytes, (off_t)off_bytes), len_bytes);
	if (entry->kind != STORE_MAP_CHUNK)
		return bytes_are_zero(expected, len_bytes);
	assert_int_equal(store_view_read_chunk(view, scratch_of, entry->chunk, actual, len_bytes, false, NULL), 0);
	return memcmp(expected, actual, len_bytes) == 0;
}

static bool view_equals(struct store_view *view, const char *path)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t size_bytes = store_view_size(view);
	uint64_t page = UINT64_MAX;
	struct store_scratch *scratch_of = NULL;
	struct store_map_page map;
	bool equal = true;

	assert_true(fd >= 0);
	assert_int_equal(store_scratch_new(&scratch_of, NULL), 0);
	equal = lseek(fd, 0, SEEK_END) == (off_t)size_bytes;
	for (uint64_t at = 0, i = 0; equal && at < size_bytes; at += CHUNK, i++) {
		uint64_t left = size_bytes - at;

		if (i / STORE_MAP_PAGE_ENTRIES != page) {
			page = i / STORE_MAP_PAGE_ENTRIES;
			assert_int_equal(store_view_map(view, page, &map, NULL), 0);
		}
		equal = chunk_equals(view, scratch_of, &map.entries[i % STORE_MAP_PAGE_ENTRIES], fd, at,
				     left < CHUNK ? (uint32_t)left : CHUNK);
	}
	store_scratch_free(scratch_of);
	return equal;
}

/* number 0: the live content */
static bool content_equals(struct store *store, uint32_t number, const char *path)
{
	const struct store_reference reference = {
		.disk = "web01", .which = number == 0 ? STORE_LIVE : STORE_NUMBER, .number = number};
	struct store_view *view = NULL;
	bool equal;

	assert_int_equal(store_view_open(store, &reference, VIEW_READ, "the test", &view, NULL), 0);
	equal = view_equals(view, path);
	store_view_close(view);
	return equal;
}

static struct store_round last_round(struct store *store)
{
	struct store_round *rounds = NULL, last;
	size_t count = 0;

	assert_int_equal(store_list_rounds(store, "web01", &rounds, &count, NULL), 0);
	assert_true(count > 0);
	last = rounds[count - 1];
	last.source = last.error = NULL;
	store_rounds_free(rounds, count);
	return last;
}

/* Image 1 is what was kept, all others are what the source has; no round has two. Returns how many there are. */
static size_t check_images(struct store *store)
{
	struct store_image *images = NULL;
	size_t count = 0;

	assert_int_equal(store_list_images(store, "web01", &images, &count, NULL), 0);
	for (size_t i = 0; i < count; i++) {
		assert_true(content_equals(store, images[i].number, images[i].number == 1 ? kept_path : source_path));
		for (size_t j = 0; j < i; j++)
			assert_int_not_equal(images[i].round, images[j].round);
	}
	store_images_free(images, count);
	return count;
}

/* -------------------------------------------------------------------- rounds */

struct outcome {
	int result;
	struct failure failure;
	uint32_t image;
	bool resumed;
	struct store_round_counts counts;
	double seconds;
};

static struct outcome run_round_with(struct store *store, const struct round_options *how, const atomic_bool *stop)
{
	struct round_options options = *how;
	const struct operation operation = {.doing = "a round of the test", .stop = stop};
	struct round_report report;
	struct outcome outcome = {.result = 0};
	double began = units_monotonic_seconds();

	options.source = source_path;
	if (options.disk == NULL)
		options.disk = "web01";
	outcome.result = round_run(store, &options, &operation, &report, &outcome.failure);
	outcome.seconds = units_monotonic_seconds() - began;
	outcome.image = report.image;
	outcome.resumed = report.resumed;
	outcome.counts = report.counts;
	round_report_free(&report);
	assert_int_equal(outcome.result, outcome.result < 0 ? outcome.failure.code : 0);
	assert_true(outcome.result == 0 || outcome.failure.message[0] != '\0');
	return outcome;
}

static struct outcome run_round(struct store *store)
{
	return run_round_with(store, &(struct round_options){.keep = 50}, NULL);
}

static struct outcome run_good_round(struct store *store)
{
	struct outcome outcome = run_round(store);

	if (outcome.result != 0)
		fail_msg("a round failed that nothing hindered: %s", outcome.failure.message);
	assert_true(outcome.image > 0);
	assert_true(content_equals(store, outcome.image, source_path));
	assert_true(content_equals(store, 0, source_path));
	return outcome;
}

/* A store whose disk has one image, of the file at kept_path; the source has changed since. */
static struct store *store_with_image(bool forgets_commits)
{
	struct store *store = new_store(forgets_commits);

	make_small_source();
	run_good_round(store);
	keep_source();
	change_small_source();
	return store;
}

/* ----------------------------------------------------------------- failures */

static const enum store_fake_op round_ops[] = {
	STORE_FAKE_CONTAINS_PATH, STORE_FAKE_LIST_DISKS,     STORE_FAKE_SET_POLICY,	STORE_FAKE_VIEW_OPEN,
	STORE_FAKE_VIEW_MAP,	  STORE_FAKE_VIEW_NEXT_PAGE, STORE_FAKE_FIND_CHUNKS,	STORE_FAKE_PUT_CHUNK,
	STORE_FAKE_COMMIT,	  STORE_FAKE_CREATE_IMAGE,   STORE_FAKE_BEGIN_ROUND,	STORE_FAKE_FINISH_ROUND,
	STORE_FAKE_RETAIN,	  STORE_FAKE_ROUND_THROTTLE,
};

struct blow {
	enum store_fake_op op;
	enum store_fake_when when;
	uint64_t n;
	bool power;
	int code;
};

/* True if the blow fell. */
static bool survives(const struct blow *blow)
{
	struct store *store = store_with_image(false);
	uint64_t calls_before = store_fake_calls(store, blow->op);
	struct outcome outcome;
	bool fell;

	if (blow->power)
		store_fake_cut_power_at(store, blow->op, blow->n, blow->when);
	else
		store_fake_fail(store, blow->op, blow->n, blow->code, blow->when);
	outcome = run_round(store);
	fell = store_fake_calls(store, blow->op) >= calls_before + blow->n;
	store_fake_fail(store, blow->op, 0, -EIO, STORE_FAKE_BEFORE);
	if (outcome.result < 0 && !blow->power)
		assert_int_equal(outcome.result, blow->code);
	assert_true(fell || outcome.result == 0);
	assert_true(content_equals(store, 1, kept_path));
	outcome = run_round(store);
	assert_int_equal(outcome.result, 0);
	assert_true(content_equals(store, 0, source_path));
	assert_true(check_images(store) >= 2);
	assert_int_equal(last_round(store).state, ROUND_DONE);
	store_close(store);
	return fell;
}

static void hit_everywhere(bool power)
{
	static const uint64_t ns[] = {1, 4};

	for (size_t op = 0; op < sizeof(round_ops) / sizeof(round_ops[0]); op++)
		for (int when = STORE_FAKE_BEFORE; when <= STORE_FAKE_AFTER; when++)
			for (size_t i = 0; i < sizeof(ns) / sizeof(ns[0]); i++) {
				const struct blow blow = {.op = round_ops[op],
							  .when = (enum store_fake_when)when,
							  .n = ns[i],
							  .power = power,
							  .code = i % 2 == 0 ? -EIO : -ENOSPC};

				/* each takes seconds with sanitizers, and they find the same in a few */
				if (HAS_SANITIZER && (i > 0 || (op + (size_t)when + 4 * power) % 8 != 0))
					break;
				print_message("call %" PRIu64 " of op %d, %s\n", blow.n, (int)blow.op,
					      when == STORE_FAKE_BEFORE ? "before" : "after");
				if (!survives(&blow)) {
					assert_true(i > 0); /* else the op is none of a round's */
					break;
				}
			}
}

static void each_call_may_fail(void **state)
{
	(void)state;
	hit_everywhere(false);
}

static void the_power_may_go_at_each_call(void **state)
{
	(void)state;
	hit_everywhere(true);
}

static void a_first_round_may_fail_anywhere(void **state)
{
	static const enum store_fake_op ops[] = {STORE_FAKE_CREATE_DISK, STORE_FAKE_VIEW_OPEN,	  STORE_FAKE_BEGIN_ROUND,
						 STORE_FAKE_PUT_CHUNK,	 STORE_FAKE_COMMIT,	  STORE_FAKE_CREATE_IMAGE,
						 STORE_FAKE_FINISH_ROUND};

	(void)state;
	make_small_source();
	for (size_t i = 0; i < 2 * sizeof(ops) / sizeof(ops[0]); i++) {
		struct store *store = new_store(false);

		store_fake_fail(store, ops[i / 2], 1, -EIO, i % 2 == 0 ? STORE_FAKE_BEFORE : STORE_FAKE_AFTER);
		assert_int_equal(run_round(store).result, -EIO);
		run_good_round(store);
		store_close(store);
	}
}

static void a_source_that_grew_may_fail_to_grow_the_disk(void **state)
{
	(void)state;
	for (int when = STORE_FAKE_BEFORE; when <= STORE_FAKE_AFTER; when++) {
		struct store *store = store_with_image(false);

		write_random(source_path, SMALL_BYTES, 100 * KIB);
		store_fake_fail(store, STORE_FAKE_RESIZE_DISK, 1, -ENOSPC, (enum store_fake_when)when);
		assert_int_equal(run_round(store).result, -ENOSPC);
		assert_true(content_equals(store, 1, kept_path));
		run_good_round(store);
		assert_int_equal(check_images(store), 2);
		store_close(store);
	}
}

/* -------------------------------------------------------------- found, and gone */

struct cleaner {
	struct store *store;
	uint64_t commits;
	size_t cleaned;
};

/* Cleans when the first commit has been called and sleeps. */
static void *clean_at_commit(void *opaque)
{
	struct cleaner *cleaner = opaque;

	for (int i = 0; i < 10000 && store_fake_calls(cleaner->store, STORE_FAKE_COMMIT) == cleaner->commits; i++)
		(void)usleep(1000);
	cleaner->cleaned = store_fake_clean(cleaner->store);
	return NULL;
}

static void chunks_cleaned_away_are_stored_again(void **state)
{
	struct store *store = new_store(false);
	struct cleaner cleaner = {.store = store};
	pthread_t thread;

	(void)state;
	make_small_source();
	assert_int_equal(run_round_with(store, &(struct round_options){.disk = "gone"}, NULL).result, 0);
	assert_int_equal(store_remove_disk(store, "gone", false, NULL), 0);
	cleaner.commits = store_fake_calls(store, STORE_FAKE_COMMIT);
	store_fake_delay(store, STORE_FAKE_COMMIT, 300);
	assert_int_equal(pthread_create(&thread, NULL, clean_at_commit, &cleaner), 0);
	run_good_round(store);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_true(cleaner.cleaned > 0);
	assert_true(store_fake_calls(store, STORE_FAKE_COMMIT) >= cleaner.commits + 2);
	store_close(store);
}

/* ---------------------------------------------------------------- checkpoints */

/* So many changes that there are several checkpoints, of blocks that repeat: quick, and takes little memory. */
static void make_large_source(void)
{
	AUTO_FREE uint8_t *block = malloc(MIB);
	AUTO_CLOSE int fd = -1;

	make_source(0);
	write_random(source_path, 0, MIB);
	fd = open(source_path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0 && block != NULL);
	assert_int_equal(pread(fd, block, MIB, 0), MIB);
	for (uint64_t i = 1; i < 600; i++)
		assert_int_equal(pwrite(fd, block, MIB, (off_t)(i * MIB)), MIB);
}

__attribute__((unused)) static void what_a_checkpoint_had_is_not_read_again(void **state)
{
	(void)state;
	make_large_source();
	for (int when = STORE_FAKE_BEFORE; when <= STORE_FAKE_AFTER; when++) {
		struct store *store = new_store(false);
		struct outcome outcome;

		store_fake_cut_power_at(store, STORE_FAKE_COMMIT, 2, (enum store_fake_when)when);
		assert_int_equal(run_round(store).result, -EIO);
		assert_true(last_round(store).counts.done >= (when == STORE_FAKE_BEFORE ? 400 : 600) * (uint64_t)MIB);
		outcome = run_good_round(store);
		assert_true(outcome.resumed);
		/* all that was read, in both runs: what was lost is read twice and counted once */
		assert_true(outcome.counts.read <= 601 * (uint64_t)MIB);
		store_close(store);
	}
}

/* A round that loses the power when it wants to say that it was stopped. True if what its last checkpoint said is still there. */
static bool keeps_checkpoints(bool forgets_commits)
{
	struct store *store = new_store(forgets_commits);
	struct outcome outcome;
	bool kept;

	make_small_source();
	store_fake_cut_power_at(store, STORE_FAKE_FINISH_ROUND, 1, STORE_FAKE_BEFORE);
	outcome = run_round_with(store, &(struct round_options){.no_image = true}, NULL);
	assert_int_equal(outcome.result, -EIO);
	assert_true(outcome.counts.done > 0);
	kept = last_round(store).counts.done == outcome.counts.done && content_equals(store, 0, source_path);
	run_good_round(store);
	store_close(store);
	return kept;
}

static void a_store_that_forgets_is_noticed(void **state)
{
	(void)state;
	assert_true(keeps_checkpoints(false));
	assert_false(keeps_checkpoints(true));
}

/* A round that was cut short when its image was made already is not the one that copies what has changed since. */
static void an_image_is_not_handed_out_twice(void **state)
{
	(void)state;
	for (int with_image = 0; with_image <= 1; with_image++) {
		struct store *store = store_with_image(false);
		enum store_fake_op op = with_image ? STORE_FAKE_FINISH_ROUND : STORE_FAKE_CREATE_IMAGE;
		struct outcome outcome;

		store_fake_cut_power_at(store, op, 1, STORE_FAKE_BEFORE);
		assert_int_equal(run_round(store).result, -EIO);
		assert_int_equal(check_images(store), 1 + with_image);
		keep_source();
		write_random(source_path, 4 * MIB, 100 * KIB);
		outcome = run_good_round(store); /* looks whether the image has what the source has now */
		assert_false(outcome.resumed);
		assert_int_equal(outcome.image, 2 + with_image);
		if (with_image)
			assert_true(content_equals(store, 2, kept_path));
		store_close(store);
	}
}

/* ----------------------------------------------------------------------- stop */

struct stopper {
	atomic_bool stop;
	unsigned after_us;
};

static void *stop_later(void *opaque)
{
	struct stopper *stopper = opaque;

	(void)usleep(stopper->after_us);
	stopper->stop = true;
	return NULL;
}

static struct outcome run_stopped(struct store *store, unsigned after_us)
{
	struct stopper stopper = {.after_us = after_us};
	struct outcome outcome;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, stop_later, &stopper), 0);
	outcome = run_round_with(store, &(struct round_options){.keep = 50}, &stopper.stop);
	assert_int_equal(pthread_join(thread, NULL), 0);
	return outcome;
}

static void stopped_at_random_it_goes_on(void **state)
{
	unsigned stopped = 0;
	double whole_seconds;

	(void)state;
	{
		/* how long it takes here and today, without a stop */
		struct store *store = store_with_image(false);

		store_fake_delay(store, STORE_FAKE_PUT_CHUNK, 4);
		whole_seconds = run_good_round(store).seconds;
		store_close(store);
	}
	for (int i = 0; i < (HAS_SANITIZER ? 2 : 10); i++) {
		struct store *store = store_with_image(false);
		uint64_t done = 0;
		struct outcome outcome;

		store_fake_delay(store, STORE_FAKE_PUT_CHUNK, 4);
		do {
			outcome = run_stopped(store, (unsigned)random_number((uint64_t)(whole_seconds * 1e6) + 1));
			assert_true(outcome.result == 0 || outcome.result == -EINTR || outcome.result == -ECANCELED);
			if (outcome.result < 0) {
				stopped++;
				assert_true(outcome.seconds < 5);
				assert_true(content_equals(store, 1, kept_path));
				assert_true(outcome.counts.done == 0 || outcome.counts.done >= done);
				done = outcome.counts.done;
			}
		} while (outcome.result < 0);
		assert_true(content_equals(store, outcome.image, source_path));
		assert_int_equal(check_images(store), 2);
		store_close(store);
	}
	print_message("stopped %u times; a whole round takes %.3f s\n", stopped, whole_seconds);
	assert_true(stopped > (HAS_SANITIZER ? 0 : 3));
}

/* ------------------------------------------------------------------ content that is in memory, or was */

static _Atomic unsigned lost_of_ten; /* so many reads of content at hand find it gone; 0: the truth */
static _Atomic unsigned lost_count;

bool __real_source_is_at_hand(struct source *source, size_t len_bytes, uint64_t off_bytes);
bool __wrap_source_is_at_hand(struct source *source, size_t len_bytes, uint64_t off_bytes);
bool __real_source_read_at_hand(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes);
bool __wrap_source_read_at_hand(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes);

bool __wrap_source_is_at_hand(struct source *source, size_t len_bytes, uint64_t off_bytes)
{
	return lost_of_ten > 0 || __real_source_is_at_hand(source, len_bytes, off_bytes);
}

bool __wrap_source_read_at_hand(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	uint64_t draw = off_bytes / 4096 * 0x9e3779b97f4a7c15u >> 32; /* threads meet here: no common state */

	if (lost_of_ten == 0 || draw % 10 >= lost_of_ten)
		return __real_source_read_at_hand(source, buffer, len_bytes, off_bytes);
	memset(buffer, 0xee, len_bytes);
	lost_count++;
	return false;
}

static void what_is_at_hand_no_more_is_read_as_ever(void **state)
{
	(void)state;
	for (unsigned i = 1; i <= 10; i++) {
		struct store *store;

		make_source(40 * (uint64_t)MIB + 12345);
		for (unsigned n = 0; n < 20; n++)
			write_random(source_path, random_number(40) * MIB, (size_t)(1 + random_number(2 * MIB)));
		store = new_store(false);
		lost_of_ten = i;
		lost_count = 0;
		for (unsigned round = 0; round < 3; round++) {
			(void)run_good_round(store);
			write_random(source_path, random_number(40 * (uint64_t)MIB), 100000);
		}
		assert_true(lost_count > 0);
		lost_of_ten = 0;
		(void)run_good_round(store);
		store_close(store);
	}
}

/* ------------------------------------------------------------------ memory, limits */

static uint64_t status_field_kib(const char *name)
{
	AUTO_FCLOSE FILE *file = fopen("/proc/self/status", "re");
	char line[256];

	assert_non_null(file);
	while (fgets(line, sizeof(line), file) != NULL)
		if (strncmp(line, name, strlen(name)) == 0)
			return strtoull(line + strlen(name), NULL, 10);
	fail_msg("no %s in /proc/self/status", name);
	return 0;
}

__attribute__((unused)) static void memory_does_not_follow_the_disk(void **state)
{
	const uint64_t size_bytes = (uint64_t)100 << 30;
	AUTO_FCLOSE FILE *reset = fopen("/proc/self/clear_refs", "we");
	struct store *store;
	uint64_t before_kib;
	struct outcome outcome;

	(void)state;
	if (reset == NULL)
		skip();
	make_source(size_bytes);
	for (uint64_t i = 0; i < 20; i++)
		write_random(source_path, i * (size_bytes / 20) + 12345, 256 * KIB);
	store = new_store(false);
	assert_true(fputs("5", reset) >= 0 && fflush(reset) == 0);
	before_kib = status_field_kib("VmRSS:");
	outcome = run_round(store);
	assert_int_equal(outcome.result, 0);
	assert_true(outcome.counts.read < 20 * (uint64_t)MIB);
	print_message("peak grew by %" PRIu64 " KiB\n", status_field_kib("VmHWM:") - before_kib);
	assert_true(status_field_kib("VmHWM:") < before_kib + 128 * KIB);
	write_random(source_path, size_bytes / 2, 100);
	outcome = run_round(store);
	assert_int_equal(outcome.result, 0);
	assert_true(outcome.counts.changed <= 2 * CHUNK);
	assert_true(status_field_kib("VmHWM:") < before_kib + 128 * KIB);
	store_close(store);
}

static void the_limit_of_the_round_is_kept(void **state)
{
	const struct round_options options = {
		.has_limit = true, .limit_bytes_per_second = 2 * MIB, .has_level = true, .level = 0};
	struct store *store = new_store(false);
	struct outcome outcome;

	(void)state;
	make_source(4 * MIB);
	write_random(source_path, 0, 4 * MIB);
	outcome = run_round_with(store, &options, NULL);
	assert_int_equal(outcome.result, 0);
	assert_true(outcome.seconds >= 1.6 && outcome.seconds < 10);
	assert_true(content_equals(store, 0, source_path));
	store_close(store);
}

static void *lift_limit(void *opaque)
{
	const struct store_policy policy = {.set_limit = true, .limit_bytes_per_second = 0};

	(void)usleep(700000);
	assert_int_equal(store_set_policy(opaque, "web01", &policy, NULL), 0);
	return NULL;
}

static void a_limit_lifted_meanwhile_is_obeyed(void **state)
{
	const struct store_policy slow = {.set_limit = true, .limit_bytes_per_second = 256 * KIB};
	const struct store_disk_params disk = {.name = "web01", .size_bytes = 16 * MIB, .sector_bytes = 512};
	struct store *store = new_store(false);
	struct outcome outcome;
	pthread_t thread;

	(void)state;
	make_source(16 * MIB);
	write_random(source_path, 0, 16 * MIB); /* a minute's worth */
	assert_int_equal(store_create_disk(store, &disk, NULL), 0);
	assert_int_equal(store_set_policy(store, "web01", &slow, NULL), 0);
	assert_int_equal(pthread_create(&thread, NULL, lift_limit, store), 0);
	outcome = run_round_with(store, &(struct round_options){.disk = "web01"}, NULL);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(outcome.result, 0);
	assert_true(outcome.seconds >= 0.7 && outcome.seconds < 0.7 + 2 + 3 * (1 + HAS_SANITIZER));
	assert_true(content_equals(store, 0, source_path));
	store_close(store);
}

static void the_level_is_that_of_the_round(void **state)
{
	uint64_t stored[3];

	(void)state;
	make_source(2 * MIB);
	{
		AUTO_FCLOSE FILE *file = fopen(source_path, "r+e");

		assert_non_null(file);
		for (int i = 0; i < 60000; i++)
			assert_true(fprintf(file, "line %d says %" PRIu64 "\n", i, random_number(1000)) > 0);
	}
	for (int i = 0; i < 3; i++) {
		struct store *store = new_store(false);
		const struct round_options options = {.has_level = true, .level = (int[]){0, 1, 9}[i]};
		struct outcome outcome = run_round_with(store, &options, NULL);

		assert_int_equal(outcome.result, 0);
		stored[i] = outcome.counts.stored;
		assert_true(content_equals(store, outcome.image, source_path));
		store_close(store);
	}
	assert_true(stored[0] > 60000 * 15);
	assert_true(stored[1] < stored[0] * 3 / 4);
	assert_true(stored[2] < stored[1]);
}

/* ------------------------------------------------------------------------ all */

static int make_folder(void **state)
{
	(void)state;
	scratch_folder_make(&scratch);
	(void)snprintf(source_path, sizeof(source_path), "%s/source", scratch.path);
	(void)snprintf(kept_path, sizeof(kept_path), "%s/kept", scratch.path);
	return 0;
}

static int remove_folder(void **state)
{
	(void)state;
	scratch_folder_remove(&scratch);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#if !HAS_SANITIZER /* they measure memory, and have hundreds of MiB go through */
		cmocka_unit_test(memory_does_not_follow_the_disk), /* first: nothing has been allocated and freed yet */
		cmocka_unit_test(what_a_checkpoint_had_is_not_read_again),
#endif
		cmocka_unit_test(each_call_may_fail),
		cmocka_unit_test(the_power_may_go_at_each_call),
		cmocka_unit_test(a_first_round_may_fail_anywhere),
		cmocka_unit_test(a_source_that_grew_may_fail_to_grow_the_disk),
		cmocka_unit_test(chunks_cleaned_away_are_stored_again),
		cmocka_unit_test(a_store_that_forgets_is_noticed),
		cmocka_unit_test(an_image_is_not_handed_out_twice),
		cmocka_unit_test(stopped_at_random_it_goes_on),
		cmocka_unit_test(what_is_at_hand_no_more_is_read_as_ever),
		cmocka_unit_test(the_limit_of_the_round_is_kept),
		cmocka_unit_test(a_limit_lifted_meanwhile_is_obeyed),
		cmocka_unit_test(the_level_is_that_of_the_round),
	};
	const char *given = getenv("WHERRY_TEST_SEED");

	random_state = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
	print_message("WHERRY_TEST_SEED=%" PRIu64 "\n", random_state);
	random_state = random_state * 2 + 0x9e3779b97f4a7c15;
	return cmocka_run_group_tests_name("round", tests, make_folder, remove_folder);
}
