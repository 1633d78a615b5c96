/* SPDX-License-Identifier: Apache-2.0 */
/*
 * syncer/export and syncer/verify, on the fake store, which fails and damages on demand, and on a local one.
 *
 * What an export writes is compared byte by byte with what was put into the store. What verify finds is compared with
 * what a plain loop over both contents finds. Devices are loop devices; those tests need root and say so when they
 * skip.
 *
 * WHERRY_TEST_SEED repeats a run.
 */
#include "unit_test.h"
#include "reap_one.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/loop.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"
#include "store/store.h"
#include "store/store_fake.h"
#include "syncer/export.h"
#include "syncer/source_internal.h"
#include "syncer/source_view.h"
#include "syncer/verify.h"

enum { KIB = 1024, MIB = 1024 * 1024 };

/* Much longer than it takes, for machines that are busy; much less than what is stopped would take. */
#define STOPS_WITHIN_SECONDS 10

static char folder[] = "/tmp/wherry-test-export-XXXXXX";
static unsigned seed;

/* -------------------------------------------------------------------- tools */

/* The same pointer for the same name, good until the end. */
static const char *in_folder(const char *name)
{
	static char paths[64][256];
	char path[256];

	(void)snprintf(path, sizeof(path), "%s/%s", folder, name);
	for (size_t i = 0; i < 64; i++) {
		if (paths[i][0] == '\0')
			(void)snprintf(paths[i], sizeof(paths[i]), "%s", path);
		if (strcmp(paths[i], path) == 0)
			return paths[i];
	}
	fail_msg("too many names of files");
	return NULL;
}

__attribute__((format(printf, 1, 2))) static void run(const char *format, ...)
{
	char command[2048];
	va_list arguments;
	int len;

	va_start(arguments, format);
	len = vsnprintf(command, sizeof(command), format, arguments);
	va_end(arguments);
	assert_true(len > 0 && (size_t)len < sizeof(command));
	if (system(command) != 0)
		fail_msg("a command failed: %s", command);
}

static uint64_t random_below(uint64_t limit)
{
	uint64_t high = (uint64_t)rand_r(&seed);

	return (high << 31 | (uint64_t)rand_r(&seed)) % limit;
}

static void fill_random(uint8_t *at, size_t len_bytes)
{
	for (size_t i = 0; i < len_bytes; i++)
		at[i] = (uint8_t)(rand_r(&seed) >> 7);
}

static uint8_t *new_zeros(size_t len_bytes)
{
	uint8_t *bytes = calloc(1, len_bytes);

	assert_non_null(bytes);
	return bytes;
}

/* Runs of random bytes, of text that compresses, and of zeros, from a few bytes to a megabyte long. */
static uint8_t *new_mixed(size_t len_bytes)
{
	uint8_t *bytes = new_zeros(len_bytes);
	size_t at = 0;

	while (at < len_bytes) {
		size_t run_bytes = 1 + (size_t)random_below((uint64_t)1 << (4 + random_below(17)));

		if (run_bytes > len_bytes - at)
			run_bytes = len_bytes - at;
		switch (random_below(3)) {
		case 0:
			fill_random(bytes + at, run_bytes);
			break;
		case 1:
			memset(bytes + at, 'a' + (int)random_below(26), run_bytes);
			break;
		default:
			break;
		}
		at += run_bytes;
	}
	return bytes;
}

static void write_file(const char *path, const uint8_t *bytes, size_t len_bytes)
{
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	size_t done_bytes = 0;

	assert_true(fd >= 0);
	while (done_bytes < len_bytes) {
		ssize_t written = write(fd, bytes + done_bytes, len_bytes - done_bytes);

		assert_true(written > 0);
		done_bytes += (size_t)written;
	}
}

static uint8_t *read_file(const char *path, size_t *ret_len_bytes)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;
	uint8_t *bytes;
	size_t done_bytes = 0;

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &status), 0);
	*ret_len_bytes = (size_t)status.st_size;
	bytes = new_zeros(*ret_len_bytes + 1);
	while (done_bytes < *ret_len_bytes) {
		ssize_t got = read(fd, bytes + done_bytes, *ret_len_bytes - done_bytes);

		assert_true(got > 0);
		done_bytes += (size_t)got;
	}
	return bytes;
}

static void assert_file_holds(const char *path, const uint8_t *bytes, size_t len_bytes)
{
	size_t file_bytes;
	AUTO_FREE uint8_t *found = read_file(path, &file_bytes);

	assert_int_equal(file_bytes, len_bytes);
	assert_memory_equal(found, bytes, len_bytes);
}

static bool is_there(const char *path)
{
	return access(path, F_OK) == 0;
}

static void assert_contains(const char *text, const char *part)
{
	if (strstr(text, part) == NULL)
		fail_msg("\"%s\" doesn't contain \"%s\"", text, part);
}

static void sleep_ms(long wait_ms)
{
	struct timespec wait = {.tv_sec = wait_ms / 1000, .tv_nsec = wait_ms % 1000 * 1000000};

	while (nanosleep(&wait, &wait) < 0)
		;
}

/* Any test that needs root and loop devices. */
static void need_loop_devices(void)
{
	if (geteuid() != 0 || !is_there("/dev/loop-control")) {
		print_message("skipped: needs root and loop devices\n");
		skip();
	}
}

/* ------------------------------------------------------------------- stores */

static struct store *new_fake(uint32_t chunk_bytes)
{
	struct store_fake_options options = {.chunk_bytes = chunk_bytes};
	struct store *store = NULL;

	assert_int_equal(store_fake_new(&options, &store), 0);
	return store;
}

static struct store *new_local(const char *name, uint32_t chunk_bytes)
{
	struct store_options options = {.read_only = false};
	struct failure failure = {.code = 0};
	struct store *store = NULL;

	run("rm -rf '%s'", in_folder(name));
	if (store_create_local(in_folder(name), chunk_bytes, &failure) != 0 ||
	    store_open_local(in_folder(name), &options, &store, &failure) != 0)
		fail_msg("%s", failure.message);
	return store;
}

static void put_chunk(struct store_view *view, struct store_scratch *scratch, const uint8_t *plain,
		      uint32_t plain_bytes, struct store_change *change)
{
	struct hasher *hasher = store_scratch_hasher(scratch);
	struct store_encoded encoded;
	uint64_t new_bytes;

	assert_int_equal(hasher_digest(hasher, plain, plain_bytes, change->digest, NULL), 0);
	assert_int_equal(hasher_fingerprint(hasher, store_view_fingerprint_key(view), plain, plain_bytes,
					    change->fingerprint, NULL),
			 0);
	assert_int_equal(store_encode_chunk(scratch, 1, change->digest, plain, plain_bytes, &encoded, NULL), 0);
	assert_int_equal(store_put_chunk(view, &encoded, &change->chunk, &new_bytes, NULL), 0);
}

/* A disk with this content, live and as image 1. */
static void put_disk(struct store *store, const char *name, const uint8_t *bytes, uint64_t size_bytes)
{
	struct store_disk_params params = {.name = name, .size_bytes = size_bytes, .sector_bytes = 512};
	struct store_reference reference = {.which = STORE_LIVE};
	struct store_image_params image = {.consistency = STORE_CLEAN};
	uint32_t chunk_bytes = store_chunk_bytes(store);
	uint64_t chunk_count = (size_bytes + chunk_bytes - 1) / chunk_bytes;
	AUTO_FREE struct store_change *changes = calloc(chunk_count, sizeof(*changes));
	struct failure failure = {.code = 0};
	struct store_scratch *scratch;
	struct store_view *view;
	size_t count = 0;
	uint32_t number = 0;

	assert_non_null(changes);
	(void)snprintf(reference.disk, sizeof(reference.disk), "%s", name);
	assert_int_equal(store_scratch_new(&scratch, NULL), 0);
	if (store_create_disk(store, &params, &failure) != 0 ||
	    store_view_open(store, &reference, VIEW_WRITE, "test", &view, &failure) != 0)
		fail_msg("%s", failure.message);
	for (uint64_t i = 0; i < chunk_count; i++) {
		uint64_t left_bytes = size_bytes - i * chunk_bytes;
		uint32_t plain_bytes = left_bytes < chunk_bytes ? (uint32_t)left_bytes : chunk_bytes;

		if (bytes_are_zero(bytes + i * chunk_bytes, plain_bytes))
			continue;
		changes[count] = (struct store_change){.first_chunk = i, .chunk_count = 1, .kind = STORE_MAP_CHUNK};
		put_chunk(view, scratch, bytes + i * chunk_bytes, plain_bytes, &changes[count++]);
	}
	if (store_commit(view, changes, count, NULL, &failure) != 0 ||
	    store_create_image(view, &image, &number, &failure) != 0)
		fail_msg("%s", failure.message);
	assert_int_equal(number, 1);
	store_view_close(view);
	store_scratch_free(scratch);
}

/* --------------------------------------------------------------- operations */

/* An operation that is stopped `stop_after_ms` after it was set up, and remembers what it was told. */
struct watched {
	bool salvage;
	struct operation operation;
	struct notices notices;
	atomic_bool stop;
	long stop_after_ms;
	bool has_stopper;
	pthread_t stopper;
	double stopped_at_seconds; /* look at it after unwatch() */
	pthread_mutex_t lock;
	unsigned notice_count;
	char notices_text[2048];
	unsigned progress_count;
	struct progress last;
};

static void hear(void *opaque, enum notice_level level, const char *text)
{
	struct watched *watched = opaque;
	size_t used;

	(void)level;
	WITH_LOCK(&watched->lock);
	used = strlen(watched->notices_text);
	(void)snprintf(watched->notices_text + used, sizeof(watched->notices_text) - used, "%s\n", text);
	watched->notice_count++;
}

static void see(void *opaque, const struct progress *progress)
{
	struct watched *watched = opaque;

	WITH_LOCK(&watched->lock);
	watched->progress_count++;
	watched->last = *progress;
}

static void *stop_later(void *opaque)
{
	struct watched *watched = opaque;

	sleep_ms(watched->stop_after_ms);
	watched->stopped_at_seconds = units_monotonic_seconds();
	atomic_store(&watched->stop, true);
	return NULL;
}

static void watch(struct watched *watched, long stop_after_ms)
{
	memset(watched, 0, sizeof(*watched));
	(void)pthread_mutex_init(&watched->lock, NULL);
	watched->notices = (struct notices){.say = hear, .opaque = watched};
	watched->operation = (struct operation){.doing = "test",
						.notices = &watched->notices,
						.progress = see,
						.progress_opaque = watched,
						.stop = &watched->stop};
	watched->stop_after_ms = stop_after_ms;
	watched->has_stopper = stop_after_ms >= 0;
	if (watched->has_stopper)
		assert_int_equal(pthread_create(&watched->stopper, NULL, stop_later, watched), 0);
}

static void unwatch(struct watched *watched)
{
	if (watched->has_stopper)
		assert_int_equal(pthread_join(watched->stopper, NULL), 0);
	watched->has_stopper = false;
}

/* Right after what was stopped has returned. */
static void assert_stopped_soon(struct watched *watched)
{
	double now_seconds = units_monotonic_seconds();

	unwatch(watched);
	assert_true(now_seconds - watched->stopped_at_seconds < STOPS_WITHIN_SECONDS);
}

static struct store_reference reference_to(const char *text)
{
	struct store_reference reference;

	assert_int_equal(store_parse_reference(text, &reference, NULL), 0);
	return reference;
}

static int export_to(struct store *store, const char *what, const char *target, int fd, struct watched *watched,
		     struct export_report *ret_report, struct failure *failure)
{
	struct store_reference reference = reference_to(what);

	failure_clear(failure);
	return export_run(store, &reference, target, fd, watched->salvage, &watched->operation, ret_report, failure);
}

/* One that has to work. */
static struct export_report do_export(struct store *store, const char *what, const char *target)
{
	struct watched watched;
	struct export_report report;
	struct failure failure;

	watch(&watched, -1);
	if (export_to(store, what, target, STDOUT_FILENO, &watched, &report, &failure) != 0)
		fail_msg("%s: %s", target, failure.message);
	assert_int_equal(watched.last.done_bytes, watched.last.total_bytes);
	assert_true(watched.progress_count > 0);
	assert_string_equal(watched.last.phase, "export");
	return report;
}

/* One that has to fail. */
static void refuse_export(struct store *store, const char *what, const char *target, int error, const char *message)
{
	struct watched watched;
	struct export_report report;
	struct failure failure;

	watch(&watched, -1);
	assert_int_equal(export_to(store, what, target, STDOUT_FILENO, &watched, &report, &failure), error);
	assert_int_equal(failure.code, error);
	assert_contains(failure.message, message);
	assert_int_equal(watched.progress_count, 0);
}

/* -------------------------------------------------------------------- files */

static void round_trip(struct store *store, const char *disk, const uint8_t *bytes, uint64_t size_bytes)
{
	const char *path = in_folder("out.img");
	struct export_report report;

	put_disk(store, disk, bytes, size_bytes);
	(void)unlink(path);
	report = do_export(store, disk, path);
	assert_int_equal(report.size_bytes, size_bytes);
	assert_int_equal(report.target_bytes, size_bytes);
	assert_true(report.data_bytes <= size_bytes);
	assert_file_holds(path, bytes, size_bytes);
	/* the image, over what is there now */
	(void)do_export(store, disk, path);
	assert_file_holds(path, bytes, size_bytes);
}

static void files_of_all_sizes(struct store *store)
{
	static const uint64_t sizes[] = {1,	      511,	     512,	   4095,	4097,
					 65536,	      65537,	     MIB - 1,	   2 * MIB,	2 * MIB + 1,
					 3 * MIB + 7, 9 * MIB + 513, 16 * MIB + 1, 21 * MIB - 5};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		AUTO_FREE uint8_t *bytes = new_mixed(sizes[i]);
		char name[32];

		bytes[sizes[i] - 1] = (uint8_t)(i % 2); /* ends in data, ends in a hole */
		(void)snprintf(name, sizeof(name), "disk%zu", i);
		round_trip(store, name, bytes, sizes[i]);
	}
}

static void a_file_holds_what_the_disk_does(void **state)
{
	static const uint32_t chunk_sizes[] = {16 * KIB, 64 * KIB, MIB};

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		struct store *store = new_fake(chunk_sizes[i]);

		files_of_all_sizes(store);
		store_close(store);
	}
}

static void a_local_store_exports_the_same(void **state)
{
	struct store *store = new_local("store", 64 * KIB);

	(void)state;
	files_of_all_sizes(store);
	store_close(store);
}

static uint64_t allocated_bytes(const char *path)
{
	struct stat status;

	assert_int_equal(stat(path, &status), 0);
	return (uint64_t)status.st_blocks * 512;
}

static void zeros_are_holes_also_inside_of_chunks(void **state)
{
	struct store *store = new_fake(MIB);
	const uint64_t size_bytes = 64 * MIB;
	AUTO_FREE uint8_t *bytes = new_zeros(size_bytes);
	const char *path = in_folder("sparse.img");
	struct export_report report;

	(void)state;
	for (uint64_t at = 0; at < size_bytes; at += MIB / 2)
		bytes[at + 5000] = 1; /* one block in half a megabyte */
	put_disk(store, "d", bytes, size_bytes);
	report = do_export(store, "d@1", path);
	assert_file_holds(path, bytes, size_bytes);
	assert_int_equal(report.data_bytes, size_bytes);
	assert_true(allocated_bytes(path) <= 128 * 4096 + 65536);
	store_close(store);
}

static void an_empty_disk_is_a_file_of_its_size(void **state)
{
	struct store *store = new_fake(64 * KIB);
	const uint64_t size_bytes = (uint64_t)1 << 40;
	struct store_disk_params params = {.name = "empty", .size_bytes = size_bytes, .sector_bytes = 512};
	const char *path = in_folder("empty.img");
	struct stat status;
	struct export_report report;

	(void)state;
	assert_int_equal(store_create_disk(store, &params, NULL), 0);
	report = do_export(store, "empty", path);
	assert_int_equal(report.data_bytes, 0);
	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_size, size_bytes);
	assert_int_equal(status.st_blocks, 0);
	store_close(store);
}

static void an_existing_file_is_replaced_whole(void **state)
{
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(3 * MIB);
	AUTO_FREE uint8_t *before = new_zeros(9 * MIB);
	const char *path = in_folder("old.img");

	(void)state;
	memset(before, 0xff, 9 * MIB);
	write_file(path, before, 9 * MIB);
	put_disk(store, "d", bytes, 3 * MIB);
	(void)do_export(store, "d@1", path);
	assert_file_holds(path, bytes, 3 * MIB);
	store_close(store);
}

/* ------------------------------------------------------------------ streams */

struct reading {
	int fd;
	size_t expected_bytes;
	uint8_t *bytes;
	size_t got_bytes;
	bool is_slow;
	bool closes; /* its end, when it has got as much as expected */
	pthread_t thread;
};

static void *read_all_of_it(void *opaque)
{
	struct reading *reading = opaque;

	while (reading->got_bytes <= reading->expected_bytes) {
		size_t most_bytes = reading->is_slow ? 30000 : MIB;
		ssize_t got;

		if (most_bytes > reading->expected_bytes + 1 - reading->got_bytes)
			most_bytes = reading->expected_bytes + 1 - reading->got_bytes;
		got = read(reading->fd, reading->bytes + reading->got_bytes, most_bytes);
		if (got <= 0)
			break;
		reading->got_bytes += (size_t)got;
		if (reading->is_slow && reading->got_bytes % 7 == 0)
			sleep_ms(1);
	}
	if (reading->closes)
		(void)close(reading->fd);
	return NULL;
}

enum reader { READS_FAST, READS_SLOWLY, READS_AND_GOES };

static void start_reading(struct reading *reading, int fd, size_t expected_bytes, enum reader how)
{
	*reading = (struct reading){.fd = fd,
				    .expected_bytes = expected_bytes,
				    .is_slow = how == READS_SLOWLY,
				    .closes = how == READS_AND_GOES};
	reading->bytes = new_zeros(expected_bytes + 1);
	assert_int_equal(pthread_create(&reading->thread, NULL, read_all_of_it, reading), 0);
}

static void check_reading(struct reading *reading, const uint8_t *bytes)
{
	assert_int_equal(pthread_join(reading->thread, NULL), 0);
	assert_int_equal(reading->got_bytes, reading->expected_bytes);
	assert_memory_equal(reading->bytes, bytes, reading->expected_bytes);
	free(reading->bytes);
}

static void export_into_descriptor(struct store *store, int ends[2], const uint8_t *bytes, size_t size_bytes,
				   bool is_slow)
{
	struct watched watched;
	struct export_report report;
	struct failure failure;
	struct reading reading;

	watch(&watched, -1);
	start_reading(&reading, ends[0], size_bytes, is_slow ? READS_SLOWLY : READS_FAST);
	if (export_to(store, "d@1", "-", ends[1], &watched, &report, &failure) != 0)
		fail_msg("%s", failure.message);
	assert_int_equal(watched.last.done_bytes, size_bytes);
	assert_int_equal(watched.last.total_bytes, size_bytes);
	assert_int_equal(fcntl(ends[1], F_GETFL) & O_NONBLOCK, 0);
	assert_int_equal(close(ends[1]), 0);
	check_reading(&reading, bytes);
	assert_int_equal(close(ends[0]), 0);
}

static void a_pipe_gets_all_of_it_in_order(void **state)
{
	static const uint32_t chunk_sizes[] = {16 * KIB, 64 * KIB, MIB};
	const size_t size_bytes = 40 * MIB + 777;

	(void)state;
	for (int i = 0; i < 6; i++) {
		struct store *store = new_fake(chunk_sizes[i % 3]);
		AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
		int ends[2];

		put_disk(store, "d", bytes, size_bytes);
		assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
		export_into_descriptor(store, ends, bytes, size_bytes, i >= 3);
		store_close(store);
	}
}

static void a_socket_and_a_fifo_do_too(void **state)
{
	const size_t size_bytes = 5 * MIB + 1;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
	const char *path = in_folder("fifo");
	struct reading reading;
	int ends[2];

	(void)state;
	put_disk(store, "d", bytes, size_bytes);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	export_into_descriptor(store, ends, bytes, size_bytes, true);

	assert_int_equal(mkfifo(path, 0600), 0);
	ends[0] = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	assert_true(ends[0] >= 0);
	assert_int_equal(fcntl(ends[0], F_SETFL, 0), 0);
	start_reading(&reading, ends[0], size_bytes, READS_FAST);
	/* read() before there is a writer gives the end of the file at once */
	assert_int_equal(pthread_join(reading.thread, NULL), 0);
	free(reading.bytes);
	ends[1] = open(path, O_WRONLY | O_CLOEXEC);
	start_reading(&reading, ends[0], size_bytes, READS_FAST);
	(void)do_export(store, "d@1", path);
	assert_int_equal(close(ends[1]), 0);
	check_reading(&reading, bytes);
	assert_int_equal(close(ends[0]), 0);
	store_close(store);
}

static void standard_output_may_be_a_file_or_null(void **state)
{
	const size_t size_bytes = 3 * MIB + 5;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
	const char *path = in_folder("redirected.img");
	struct watched watched;
	struct export_report report;
	struct failure failure;
	int fd;

	(void)state;
	put_disk(store, "d", bytes, size_bytes);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	watch(&watched, -1);
	assert_int_equal(export_to(store, "d@1", "-", fd, &watched, &report, &failure), 0);
	assert_int_equal(close(fd), 0);
	assert_file_holds(path, bytes, size_bytes);
	(void)do_export(store, "d@1", "/dev/null");
	store_close(store);
}

static void a_pipe_without_reader_ends_it(void **state)
{
	const size_t size_bytes = 9 * MIB;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
	struct watched watched;
	struct export_report report = {.size_bytes = 4711};
	struct failure failure;
	struct reading reading;
	int ends[2];

	(void)state;
	put_disk(store, "d", bytes, size_bytes);
	watch(&watched, -1);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_int_equal(close(ends[0]), 0);
	assert_int_equal(export_to(store, "d@1", "-", ends[1], &watched, &report, &failure), -EPIPE);
	assert_contains(failure.message, "standard output: whoever was reading it has gone");
	assert_int_equal(report.size_bytes, 4711);
	assert_int_equal(close(ends[1]), 0);

	/* and one that goes away in the middle: this one reads a megabyte and a byte */
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	start_reading(&reading, ends[0], MIB, READS_AND_GOES);
	watch(&watched, -1);
	assert_int_equal(export_to(store, "d@1", "-", ends[1], &watched, &report, &failure), -EPIPE);
	assert_int_equal(pthread_join(reading.thread, NULL), 0);
	assert_memory_equal(reading.bytes, bytes, MIB + 1);
	assert_contains(failure.message, "; standard output holds only a part of it");
	free(reading.bytes);
	assert_int_equal(close(ends[1]), 0);
	store_close(store);
}

/* ------------------------------------------------------------------ stopping */

static void a_stop_is_obeyed_soon(void **state)
{
	const size_t size_bytes = 20 * MIB;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_zeros(size_bytes);
	const char *path = in_folder("stopped.img");
	struct watched watched;
	struct export_report report;
	struct failure failure;
	int ends[2];

	(void)state;
	fill_random(bytes, size_bytes);
	put_disk(store, "d", bytes, size_bytes);

	/* nobody reads the pipe */
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	watch(&watched, 300);
	assert_int_equal(export_to(store, "d@1", "-", ends[1], &watched, &report, &failure), -EINTR);
	assert_stopped_soon(&watched);
	assert_contains(failure.message, "standard output: export stopped");
	assert_contains(failure.message, "holds only a part");
	assert_int_equal(failure.code, -EINTR);
	assert_int_equal(close(ends[0]), 0);
	assert_int_equal(close(ends[1]), 0);

	/* nobody opens the FIFO */
	assert_int_equal(mkfifo(in_folder("lonely"), 0600), 0);
	watch(&watched, 200);
	assert_int_equal(export_to(store, "d@1", in_folder("lonely"), -1, &watched, &report, &failure), -EINTR);
	assert_stopped_soon(&watched);

	/* a slow store: a new file is gone afterwards, one that was there is not */
	store_fake_delay(store, STORE_FAKE_READ_CHUNK, 20);
	watch(&watched, 300);
	assert_int_equal(export_to(store, "d@1", path, -1, &watched, &report, &failure), -EINTR);
	assert_stopped_soon(&watched);
	assert_false(is_there(path));
	write_file(path, bytes, 100);
	watch(&watched, 300);
	assert_int_equal(export_to(store, "d@1", path, -1, &watched, &report, &failure), -EINTR);
	assert_true(is_there(path));
	assert_contains(failure.message, "stopped.img: export stopped; ");
	assert_contains(failure.message, "stopped.img holds only a part of it");
	unwatch(&watched);
	assert_int_equal(unlink(path), 0);
	store_close(store);
}

/* -------------------------------------------------------------- what goes wrong */

static void damage_chunk(struct store *store, const uint8_t *plain, uint32_t plain_bytes, bool is_damaged)
{
	struct hasher *hasher;
	uint8_t digest[DIGEST_BYTES];

	assert_int_equal(hasher_new(&hasher, NULL), 0);
	assert_int_equal(hasher_digest(hasher, plain, plain_bytes, digest, NULL), 0);
	hasher_free(hasher);
	assert_int_equal(store_fake_damage(store, digest, is_damaged), 0);
}

static void damage_is_named_and_never_written(void **state)
{
	const size_t size_bytes = 12 * MIB;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_zeros(size_bytes);
	const char *path = in_folder("damaged.img");
	const size_t bad_bytes = 100 * 65536;
	struct watched watched;
	struct export_report report;
	struct failure failure;
	struct reading reading;
	int ends[2];

	(void)state;
	fill_random(bytes, size_bytes);
	put_disk(store, "d", bytes, size_bytes);
	damage_chunk(store, bytes + bad_bytes, 65536, true);
	watch(&watched, -1);
	assert_int_equal(export_to(store, "d@1", path, -1, &watched, &report, &failure), -EBADMSG);
	assert_contains(failure.message, "d@1: 65536 bytes at 6553600 are damaged: ");
	assert_false(is_there(path));

	/* what a pipe got is a part of the beginning, never more than to the damage */
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	start_reading(&reading, ends[0], size_bytes, READS_FAST);
	assert_int_equal(export_to(store, "d@1", "-", ends[1], &watched, &report, &failure), -EBADMSG);
	assert_int_equal(close(ends[1]), 0);
	assert_int_equal(pthread_join(reading.thread, NULL), 0);
	assert_true(reading.got_bytes <= bad_bytes);
	assert_memory_equal(reading.bytes, bytes, reading.got_bytes);
	free(reading.bytes);
	assert_int_equal(close(ends[0]), 0);

	/* salvaged: all but the damage, which is listed */
	watched.salvage = true;
	assert_int_equal(export_to(store, "d@1", path, -1, &watched, &report, &failure), 0);
	assert_int_equal(report.hole_count, 1);
	assert_int_equal(report.holes[0].off_bytes, bad_bytes);
	assert_int_equal(report.holes[0].len_bytes, 65536);
	assert_int_equal(report.data_bytes, size_bytes - 65536);
	export_report_free(&report);
	AUTO_FREE uint8_t *with_hole = memcpy(new_zeros(size_bytes), bytes, size_bytes);
	memset(with_hole + bad_bytes, 0, 65536);
	assert_file_holds(path, with_hole, size_bytes);
	assert_int_equal(unlink(path), 0);

	damage_chunk(store, bytes + bad_bytes, 65536, false);
	(void)do_export(store, "d@1", path);
	assert_file_holds(path, bytes, size_bytes);
	assert_int_equal(unlink(path), 0);
	store_close(store);
}

static void failures_of_the_store_are_passed_on(void **state)
{
	static const enum store_fake_op ops[] = {STORE_FAKE_VIEW_OPEN, STORE_FAKE_VIEW_MAP, STORE_FAKE_VIEW_NEXT_PAGE,
						 STORE_FAKE_READ_CHUNK, STORE_FAKE_CONTAINS_PATH};
	const size_t size_bytes = 40 * MIB;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
	const char *path = in_folder("failed.img");
	struct watched watched;
	struct export_report report;
	struct failure failure;

	(void)state;
	put_disk(store, "d", bytes, size_bytes);
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		for (uint64_t n = 1; n <= 3; n++) {
			uint64_t calls = store_fake_calls(store, ops[i]);
			int error;

			store_fake_fail(store, ops[i], n, -EIO, n == 2 ? STORE_FAKE_AFTER : STORE_FAKE_BEFORE);
			watch(&watched, -1);
			error = export_to(store, "d@1", path, -1, &watched, &report, &failure);
			if (store_fake_calls(store, ops[i]) - calls >= n) {
				assert_int_equal(error, -EIO);
				assert_int_equal(failure.code, -EIO);
				assert_false(is_there(path));
			} else {
				assert_int_equal(error, 0);
				assert_int_equal(unlink(path), 0);
			}
			store_fake_fail(store, ops[i], 0, -EIO, STORE_FAKE_BEFORE);
		}
	}
	/* no lease was left behind */
	assert_int_equal(store_delete_image(store, "d", 1, true, &(uint64_t){0}, NULL), 0);
	store_close(store);
}

static void targets_that_are_refused(void **state)
{
	struct store *store = new_local("refusing", 64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(MIB);
	char path[300];

	(void)state;
	put_disk(store, "d", bytes, MIB);
	refuse_export(store, "d@1", folder, -EISDIR, "is a directory; name a file in it");
	refuse_export(store, "d@1", in_folder("refusing/new.img"), -EINVAL, "lies inside the store");
	refuse_export(store, "d@1", in_folder("refusing/catalog.db"), -EINVAL, "lies inside the store");
	assert_int_equal(symlink(in_folder("refusing/catalog.db"), in_folder("link")), 0);
	refuse_export(store, "d@1", in_folder("link"), -EINVAL, "lies inside the store");
	(void)snprintf(path, sizeof(path), "%s/no/such/folder.img", folder);
	refuse_export(store, "d@1", path, -ENOENT, path);
	refuse_export(store, "d@1", "", -EINVAL, "its name is empty");
	refuse_export(store, "d@7", in_folder("x.img"), -ENOENT, "d@7");
	refuse_export(store, "nix@1", in_folder("x.img"), -ENOENT, "nix");
	refuse_export(store, "d@1/3", in_folder("x.img"), -ENOENT, "has no partition 3, nor any other");
	assert_false(is_there(in_folder("x.img")));
	store_close(store);
}

static void a_full_target_is_named(void **state)
{
	const size_t size_bytes = 8 * MIB;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_zeros(size_bytes);
	const char *mount_point = in_folder("small");
	const char *path = in_folder("small/x.img");
	struct watched watched;
	struct export_report report;
	struct failure failure;
	int error;

	(void)state;
	fill_random(bytes, size_bytes);
	put_disk(store, "d", bytes, size_bytes);
	watch(&watched, -1);
	assert_int_equal(export_to(store, "d@1", "/dev/full", -1, &watched, &report, &failure), -ENOSPC);
	assert_contains(failure.message, "/dev/full: can't write at 0: No space left on device");
	if (geteuid() == 0) {
		assert_int_equal(mkdir(mount_point, 0700), 0);
		assert_int_equal(mount("test", mount_point, "tmpfs", 0, "size=3m"), 0);
		watch(&watched, -1);
		error = export_to(store, "d@1", path, -1, &watched, &report, &failure);
		bool is_left = is_there(path);
		assert_int_equal(umount2(mount_point, MNT_DETACH), 0);
		assert_int_equal(error, -ENOSPC);
		assert_contains(failure.message, "small/x.img: can't write ");
		assert_contains(failure.message, " at ");
		assert_contains(failure.message, "No space left on device");
		assert_contains(watched.notices_text, "8.0 MiB will be written, and 3.0 MiB are free");
		assert_false(is_left);
	}
	store_close(store);
}

/* --------------------------------------------------------------- partitions */

/* GPT with two partitions of known content. Returns the disk's content. */
static uint8_t *new_partitioned(size_t size_bytes)
{
	const char *path = in_folder("table.img");
	size_t len_bytes;
	uint8_t *bytes;

	run("rm -f '%s' && truncate -s %zu '%s'", path, size_bytes, path);
	run("printf '%%s\\n' 'label: gpt' 'start=2048,size=4096' 'start=8227,size=6001' |"
	    " sfdisk --quiet --no-reread --no-tell-kernel '%s' >/dev/null",
	    path);
	bytes = read_file(path, &len_bytes);
	assert_int_equal(len_bytes, size_bytes);
	fill_random(bytes + (size_t)2048 * 512, (size_t)4096 * 512);
	fill_random(bytes + (size_t)8227 * 512, (size_t)6001 * 512 - 70000); /* ends in zeros */
	return bytes;
}

static void a_partition_is_found_and_exported(void **state)
{
	static const uint32_t chunk_sizes[] = {16 * KIB, 64 * KIB, MIB};
	const size_t size_bytes = 16 * MIB;
	const char *path = in_folder("part.img");

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		struct store *store = new_fake(chunk_sizes[i]);
		AUTO_FREE uint8_t *bytes = new_partitioned(size_bytes);
		struct export_report report;

		put_disk(store, "d", bytes, size_bytes);
		report = do_export(store, "d@1/1", path);
		assert_int_equal(report.size_bytes, 4096 * 512);
		assert_file_holds(path, bytes + (size_t)2048 * 512, (size_t)4096 * 512);
		(void)do_export(store, "d/2", path); /* not aligned to anything */
		assert_file_holds(path, bytes + (size_t)8227 * 512, (size_t)6001 * 512);
		refuse_export(store, "d@1/3", in_folder("p3.img"), -ENOENT, "has no partition 3; there is 1, 2");
		assert_false(is_there(in_folder("p3.img")));

		/* where the table is damaged, the message speaks of that, and not of a disk without partitions */
		damage_chunk(store, bytes, chunk_sizes[i], true);
		struct watched watched;
		struct failure failure;
		watch(&watched, -1);
		(void)export_to(store, "d@1/9", in_folder("p3.img"), -1, &watched, &report, &failure);
		assert_int_equal(failure.code, -EBADMSG);
		assert_contains(failure.message, "d@1: ");
		assert_contains(failure.message, "are damaged");
		store_close(store);
	}
}

static void a_view_is_a_source(void **state)
{
	const size_t size_bytes = 5 * MIB + 333;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
	AUTO_FREE uint8_t *buffer = new_zeros(size_bytes);
	struct store_reference reference = reference_to("d@1");
	struct source_request request;
	struct store_view *view;
	struct source *source;
	uint64_t at_bytes = 0;
	bool is_mounted = true;

	(void)state;
	put_disk(store, "d", bytes, size_bytes);
	assert_int_equal(store_view_open(store, &reference, VIEW_READ, "test", &view, NULL), 0);
	assert_int_equal(source_view_open(view, &source, NULL), 0);
	assert_int_equal(source_get_info(source)->size_bytes, size_bytes);
	for (int i = 0; i < 300; i++) {
		uint64_t off_bytes = random_below(size_bytes);
		size_t len_bytes = 1 + (size_t)random_below(200000);

		if (len_bytes > size_bytes - off_bytes)
			len_bytes = size_bytes - off_bytes;
		assert_int_equal(source_read(source, buffer, len_bytes, off_bytes, NULL), 0);
		assert_memory_equal(buffer, bytes + off_bytes, len_bytes);
	}
	request = (struct source_request){.off_bytes = 0, .len_bytes = (uint32_t)size_bytes, .buffer = buffer};
	assert_int_equal(source_submit(source, &request, NULL), 0);
	assert_ptr_equal(reap_one(source), &request);
	assert_int_equal(request.result, 0);
	assert_memory_equal(buffer, bytes, size_bytes);
	while (at_bytes < size_bytes) {
		enum source_extent extent;
		uint64_t len_bytes;

		assert_int_equal(source_extent_at(source, at_bytes, size_bytes - at_bytes, &extent, &len_bytes, NULL),
				 0);
		assert_in_range(len_bytes, 1, size_bytes - at_bytes);
		assert_int_equal(extent == SOURCE_HOLE, bytes_are_zero(bytes + at_bytes, len_bytes));
		at_bytes += len_bytes;
	}
	assert_int_equal(source_range_mounted(source, 0, 512, &is_mounted, NULL), 0);
	assert_false(is_mounted);
	source_close(source);
	store_view_close(view);
	store_close(store);
}

/* ------------------------------------------------------------------ devices */

struct loop {
	int fd;
	char device[64];
	const char *file;
};

/* A loop device over a file full of ones. */
static void attach_loop(struct loop *loop, const char *file, size_t size_bytes)
{
	AUTO_CLOSE int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	AUTO_CLOSE int backing = -1;
	int number;

	assert_true(control >= 0);
	run("rm -f '%s'; head -c %zu /dev/zero | tr '\\0' '\\377' >'%s'", file, size_bytes, file);
	backing = open(file, O_RDWR | O_CLOEXEC);
	assert_true(backing >= 0);
	loop->file = file;
	for (int tries = 0; tries < 50; tries++) {
		number = ioctl(control, LOOP_CTL_GET_FREE);
		assert_true(number >= 0);
		(void)snprintf(loop->device, sizeof(loop->device), "/dev/loop%d", number);
		loop->fd = open(loop->device, O_RDWR | O_CLOEXEC);
		if (loop->fd >= 0 && ioctl(loop->fd, LOOP_SET_FD, backing) == 0)
			return;
		if (loop->fd >= 0)
			(void)close(loop->fd); /* somebody else was faster */
		sleep_ms(20);
	}
	fail_msg("no loop device to be had");
}

static void detach_loop(struct loop *loop)
{
	(void)ioctl(loop->fd, LOOP_CLR_FD);
	(void)close(loop->fd);
}

static void a_device_gets_all_of_it_zeros_too(void **state)
{
	const size_t size_bytes = 24 * MIB, device_bytes = 26 * MIB;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
	AUTO_FREE uint8_t *found = NULL;
	struct watched watched;
	struct export_report report;
	struct failure failure;
	struct loop loop;
	size_t file_bytes;
	int error;

	(void)state;
	need_loop_devices();
	memset(bytes + 8 * MIB, 0, 5 * MIB);
	put_disk(store, "d", bytes, size_bytes);
	attach_loop(&loop, in_folder("device"), device_bytes);
	watch(&watched, -1);
	error = export_to(store, "d@1", loop.device, -1, &watched, &report, &failure);
	detach_loop(&loop);
	if (error != 0)
		fail_msg("%s", failure.message);
	assert_int_equal(report.target_bytes, device_bytes);
	assert_int_equal(watched.last.done_bytes, size_bytes);
	found = read_file(loop.file, &file_bytes);
	assert_int_equal(file_bytes, device_bytes);
	assert_memory_equal(found, bytes, size_bytes);
	for (size_t i = size_bytes; i < device_bytes; i++)
		assert_int_equal(found[i], 0xff);
	assert_contains(watched.notices_text, "is larger than what was written, its last 2.0 MiB are as they were");
	store_close(store);
}

static void a_partition_on_a_device_keeps_its_neighbours(void **state)
{
	const size_t size_bytes = 16 * MIB;
	const size_t part_bytes = (size_t)6001 * 512;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_partitioned(size_bytes);
	AUTO_FREE uint8_t *found = NULL;
	struct watched watched;
	struct export_report report;
	struct failure failure;
	struct loop loop;
	size_t file_bytes;
	int error;

	(void)state;
	need_loop_devices();
	put_disk(store, "d", bytes, size_bytes);
	attach_loop(&loop, in_folder("device"), 4 * MIB);
	watch(&watched, -1);
	error = export_to(store, "d@1/2", loop.device, -1, &watched, &report, &failure);
	detach_loop(&loop);
	if (error != 0)
		fail_msg("%s", failure.message);
	found = read_file(loop.file, &file_bytes);
	assert_memory_equal(found, bytes + (size_t)8227 * 512, part_bytes);
	for (size_t i = part_bytes; i < file_bytes; i++)
		assert_int_equal(found[i], 0xff);
	store_close(store);
}

static void a_larger_device_needs_its_table_moved(void **state)
{
	const size_t size_bytes = 16 * MIB;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_partitioned(size_bytes);
	struct watched watched;
	struct export_report report;
	struct failure failure;
	struct loop loop;
	int error;

	(void)state;
	need_loop_devices();
	put_disk(store, "d", bytes, size_bytes);
	attach_loop(&loop, in_folder("device"), 17 * MIB);
	watch(&watched, -1);
	error = export_to(store, "d@1", loop.device, -1, &watched, &report, &failure);
	detach_loop(&loop);
	if (error != 0)
		fail_msg("%s", failure.message);
	assert_contains(watched.notices_text, "sgdisk -e /dev/loop");
	store_close(store);
}

static void devices_that_are_refused(void **state)
{
	const size_t size_bytes = 8 * MIB;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
	const char *mount_point = in_folder("mounted");
	struct watched watched;
	struct export_report report;
	struct failure too_small, busy, loop_file;
	struct loop loop;
	int too_small_error, busy_error, file_error;

	(void)state;
	need_loop_devices();
	put_disk(store, "d", bytes, size_bytes);
	attach_loop(&loop, in_folder("device"), size_bytes - 512);
	watch(&watched, -1);
	too_small_error = export_to(store, "d@1", loop.device, -1, &watched, &report, &too_small);
	/* the file below a loop device is in use as well */
	file_error = export_to(store, "d@1", loop.file, -1, &watched, &report, &loop_file);
	detach_loop(&loop);

	attach_loop(&loop, in_folder("device"), size_bytes);
	run("mke2fs -q '%s' 2>/dev/null", loop.device);
	assert_true(mkdir(mount_point, 0700) == 0 || errno == EEXIST);
	assert_int_equal(mount(loop.device, mount_point, "ext2", 0, ""), 0);
	busy_error = export_to(store, "d@1", loop.device, -1, &watched, &report, &busy);
	assert_int_equal(umount2(mount_point, 0), 0);
	detach_loop(&loop);

	assert_int_equal(too_small_error, -ENOSPC);
	assert_contains(too_small.message,
			"is too small: it has 8388096 bytes (8.0 MiB), and d@1 has 8388608 (8.0 MiB)");
	assert_int_equal(file_error, -EBUSY);
	assert_contains(loop_file.message, "would be overwritten while it is in use");
	assert_int_equal(busy_error, -EBUSY);
	assert_contains(busy.message, "mounted");
	store_close(store);
}

/* ------------------------------------------------------------------- verify */

static int verify_with(struct store *store, const char *what, const char *source, bool read_all,
		       struct watched *watched, struct verify_report *ret_report, struct failure *failure)
{
	struct store_reference reference = reference_to(what);

	failure_clear(failure);
	return verify_run(store, &reference, source, read_all, &watched->operation, ret_report, failure);
}

static void do_verify(struct store *store, const char *what, const char *source, struct verify_report *ret_report)
{
	struct watched watched;
	struct failure failure;

	watch(&watched, -1);
	if (verify_with(store, what, source, true, &watched, ret_report, &failure) != 0)
		fail_msg("%s", failure.message);
	assert_int_equal(watched.last.done_bytes, watched.last.total_bytes);
	assert_string_equal(watched.last.phase, "verify");
}

/* The differences that a plain loop finds. */
static void assert_differences(const struct verify_report *report, const uint8_t *ours, size_t our_bytes,
			       const uint8_t *theirs, size_t their_bytes)
{
	size_t common_bytes = our_bytes < their_bytes ? our_bytes : their_bytes;
	size_t longer_bytes = our_bytes < their_bytes ? their_bytes : our_bytes;
	size_t next = 0;
	uint64_t reached = 0;

	for (size_t at = 0; at < longer_bytes;) {
		size_t sector_end = at < common_bytes ? (at / 512 + 1) * 512 : longer_bytes;
		size_t end = at < common_bytes && sector_end > common_bytes ? common_bytes : sector_end;
		bool is_different = at >= common_bytes || memcmp(ours + at, theirs + at, end - at) != 0;
		const struct range *range = next < report->difference_count ? &report->differences[next] : NULL;

		if (is_different) {
			assert_non_null(range);
			assert_true(range->off_bytes <= at && end <= range->off_bytes + range->len_bytes);
			reached = end;
		} else if (range != NULL) {
			assert_true(range->off_bytes >= end);
		}
		if (range != NULL && reached == range->off_bytes + range->len_bytes)
			next++;
		at = end;
	}
	assert_int_equal(next, report->difference_count);
	assert_int_equal(report->equal, report->difference_count == 0);
}

static void equal_is_equal(struct store *store)
{
	static const size_t sizes[] = {1, 512, 65536, 65537, 3 * MIB + 100, 20 * MIB + 4095};
	const char *path = in_folder("source.img");

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		AUTO_FREE uint8_t *bytes = new_mixed(sizes[i]);
		struct verify_report report;
		char name[32], image[40];

		(void)snprintf(name, sizeof(name), "disk%zu", i);
		(void)snprintf(image, sizeof(image), "disk%zu@1", i);
		put_disk(store, name, bytes, sizes[i]);
		write_file(path, bytes, sizes[i]);
		do_verify(store, image, path, &report);
		assert_true(report.equal);
		assert_int_equal(report.compared_bytes, sizes[i]);
		assert_int_equal(report.left_out_bytes, 0);
		assert_null(report.differences);
		verify_report_free(&report);
		/* the same with holes in the file, and the live disk */
		run("fallocate --dig-holes '%s'", path);
		do_verify(store, name, path, &report);
		assert_true(report.equal);
		assert_int_equal(report.compared_bytes, sizes[i]);
		verify_report_free(&report);
	}
}

static void an_image_equals_its_source(void **state)
{
	static const uint32_t chunk_sizes[] = {16 * KIB, 64 * KIB, MIB};
	struct store *store;

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		store = new_fake(chunk_sizes[i]);
		equal_is_equal(store);
		store_close(store);
	}
	store = new_local("verified", 64 * KIB);
	equal_is_equal(store);
	store_close(store);
}

static void one_byte_anywhere_is_found(void **state)
{
	const size_t size_bytes = 6 * MIB + 77;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
	const char *path = in_folder("source.img");

	(void)state;
	put_disk(store, "d", bytes, size_bytes);
	for (int i = 0; i < 40; i++) {
		size_t at = i == 0 ? 0 : i == 1 ? size_bytes - 1 : (size_t)random_below(size_bytes);
		size_t sector_end = at / 512 * 512 + 512 < size_bytes ? at / 512 * 512 + 512 : size_bytes;
		uint8_t bit = (uint8_t)(1 << random_below(8));
		struct verify_report report;

		bytes[at] ^= bit;
		write_file(path, bytes, size_bytes);
		bytes[at] ^= bit;
		if (i % 2 == 0)
			run("fallocate --dig-holes '%s'", path);
		do_verify(store, "d@1", path, &report);
		assert_false(report.equal);
		assert_int_equal(report.difference_count, 1);
		assert_int_equal(report.differences[0].off_bytes, at / 512 * 512);
		assert_int_equal(report.differences[0].len_bytes, sector_end - at / 512 * 512);
		verify_report_free(&report);
	}
	store_close(store);
}

static void change_some(uint8_t *bytes, size_t len_bytes)
{
	uint64_t count = random_below(30);

	for (uint64_t i = 0; i < count; i++) {
		size_t at = (size_t)random_below(len_bytes);
		size_t run_bytes = 1 + (size_t)random_below((uint64_t)1 << random_below(20));

		if (run_bytes > len_bytes - at)
			run_bytes = len_bytes - at;
		if (random_below(2) == 0)
			memset(bytes + at, 0, run_bytes);
		else
			fill_random(bytes + at, run_bytes);
	}
}

static void differences_are_what_a_plain_loop_finds(void **state)
{
	static const uint32_t chunk_sizes[] = {16 * KIB, 64 * KIB, 256 * KIB, MIB};
	const char *path = in_folder("source.img");

	(void)state;
	for (int i = 0; i < 24; i++) {
		struct store *store = new_fake(chunk_sizes[i % 4]);
		size_t our_bytes = 1 + (size_t)random_below(9 * MIB), their_bytes = our_bytes;
		AUTO_FREE uint8_t *ours = new_mixed(10 * MIB);
		AUTO_FREE uint8_t *theirs = new_zeros(10 * MIB);
		struct verify_report report;

		memcpy(theirs, ours, 10 * MIB);
		change_some(ours, our_bytes);
		if (i % 3 == 0)
			their_bytes = 1 + (size_t)random_below(9 * MIB);
		put_disk(store, "d", theirs, their_bytes);
		write_file(path, ours, our_bytes);
		if (i % 2 == 0)
			run("fallocate --dig-holes '%s'", path);
		do_verify(store, "d@1", path, &report);
		assert_differences(&report, ours, our_bytes, theirs, their_bytes);
		assert_int_equal(report.compared_bytes, our_bytes < their_bytes ? our_bytes : their_bytes);
		verify_report_free(&report);
		store_close(store);
	}
}

static void a_partition_is_compared_with_a_whole_source(void **state)
{
	const size_t size_bytes = 16 * MIB, part_bytes = (size_t)6001 * 512;
	const char *path = in_folder("source.img");
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_partitioned(size_bytes);
	uint8_t *part = bytes + (size_t)8227 * 512;
	struct watched watched;
	struct verify_report report;
	struct failure failure;

	(void)state;
	put_disk(store, "d", bytes, size_bytes);
	write_file(path, part, part_bytes);
	do_verify(store, "d@1/2", path, &report);
	assert_true(report.equal);
	assert_int_equal(report.compared_bytes, part_bytes);
	verify_report_free(&report);

	part[1000] ^= 1;
	part[part_bytes - 1] ^= 1;
	write_file(path, part, part_bytes);
	do_verify(store, "d@1/2", path, &report);
	assert_int_equal(report.difference_count, 2);
	assert_int_equal(report.differences[0].off_bytes, 512);
	assert_int_equal(report.differences[0].len_bytes, 512);
	assert_int_equal(report.differences[1].off_bytes, part_bytes - 512);
	verify_report_free(&report);

	watch(&watched, -1);
	assert_int_equal(verify_with(store, "d@1/5", path, false, &watched, &report, &failure), -ENOENT);
	assert_contains(failure.message, "has no partition 5; there is 1, 2");
	store_close(store);
}

static void what_a_round_leaves_out_is_not_compared(void **state)
{
	const size_t size_bytes = 32 * MIB;
	const char *path = in_folder("swap.img");
	struct store *store = new_fake(64 * KIB);
	struct watched watched;
	struct verify_report report;
	struct failure failure;
	size_t len_bytes;
	uint8_t *bytes;

	(void)state;
	run("rm -f '%s' && truncate -s %zu '%s' && mkswap -q '%s' 2>/dev/null", path, size_bytes, path, path);
	bytes = read_file(path, &len_bytes);
	put_disk(store, "d", bytes, size_bytes);
	fill_random(bytes + 20 * MIB, 3 * MIB);
	write_file(path, bytes, size_bytes);
	free(bytes);

	watch(&watched, -1);
	assert_int_equal(verify_with(store, "d@1", path, false, &watched, &report, &failure), 0);
	assert_true(report.left_out_bytes > 0);
	assert_true(report.equal);
	assert_int_equal(report.compared_bytes + report.left_out_bytes, size_bytes);
	assert_int_equal(watched.last.done_bytes, watched.last.total_bytes);
	assert_int_equal(watched.last.total_bytes, report.compared_bytes);
	verify_report_free(&report);

	watch(&watched, -1);
	assert_int_equal(verify_with(store, "d@1", path, true, &watched, &report, &failure), 0);
	assert_false(report.equal);
	assert_int_equal(report.left_out_bytes, 0);
	assert_int_equal(report.difference_count, 1);
	assert_int_equal(report.differences[0].off_bytes, 20 * MIB);
	assert_int_equal(report.differences[0].len_bytes, 3 * MIB);
	verify_report_free(&report);
	store_close(store);
}

static void damage_is_no_difference_but_a_failure(void **state)
{
	const size_t size_bytes = 8 * MIB;
	const char *path = in_folder("source.img");
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_zeros(size_bytes);
	struct watched watched;
	struct verify_report report = {.compared_bytes = 4711};
	struct failure failure;

	(void)state;
	fill_random(bytes, size_bytes);
	put_disk(store, "d", bytes, size_bytes);
	write_file(path, bytes, size_bytes);
	damage_chunk(store, bytes + 50 * 65536, 65536, true);
	watch(&watched, -1);
	assert_int_equal(verify_with(store, "d@1", path, false, &watched, &report, &failure), -EBADMSG);
	assert_contains(failure.message, "d@1: 65536 bytes at 3276800 are damaged: ");
	assert_int_equal(report.compared_bytes, 4711);
	/* no lease was left behind */
	assert_int_equal(store_delete_image(store, "d", 1, true, &(uint64_t){0}, NULL), 0);
	store_close(store);
}

static void failures_while_verifying_are_passed_on(void **state)
{
	static const enum store_fake_op ops[] = {STORE_FAKE_VIEW_OPEN, STORE_FAKE_VIEW_MAP, STORE_FAKE_VIEW_NEXT_PAGE,
						 STORE_FAKE_READ_CHUNK};
	const size_t size_bytes = 40 * MIB;
	const char *path = in_folder("source.img");
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_mixed(size_bytes);
	struct watched watched;
	struct verify_report report;
	struct failure failure;

	(void)state;
	put_disk(store, "d", bytes, size_bytes);
	write_file(path, bytes, size_bytes);
	run("fallocate --dig-holes '%s'", path);
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		for (uint64_t n = 1; n <= 3; n++) {
			uint64_t calls = store_fake_calls(store, ops[i]);
			int error;

			store_fake_fail(store, ops[i], n, -EIO, STORE_FAKE_BEFORE);
			watch(&watched, -1);
			error = verify_with(store, "d@1", path, false, &watched, &report, &failure);
			if (store_fake_calls(store, ops[i]) - calls >= n) {
				assert_int_equal(error, -EIO);
				assert_int_equal(failure.code, -EIO);
			} else {
				assert_int_equal(error, 0);
				verify_report_free(&report);
			}
			store_fake_fail(store, ops[i], 0, -EIO, STORE_FAKE_BEFORE);
		}
	}
	watch(&watched, -1);
	assert_int_equal(verify_with(store, "d@1", in_folder("nix.img"), false, &watched, &report, &failure), -ENOENT);
	assert_contains(failure.message, "nix.img");
	assert_int_equal(store_delete_image(store, "d", 1, true, &(uint64_t){0}, NULL), 0);
	store_close(store);
}

static void a_source_that_cant_be_read_is_never_equal(void **state)
{
	const size_t size_bytes = 8 * MIB;
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_zeros(size_bytes);
	struct watched watched;
	struct verify_report report;
	struct failure failure;
	struct loop loop;
	int error;

	(void)state;
	need_loop_devices();
	memset(bytes, 0xff, size_bytes);
	put_disk(store, "d", bytes, size_bytes);
	attach_loop(&loop, in_folder("device"), size_bytes);
	/* beyond the end of its file a loop device gives errors */
	assert_int_equal(truncate(loop.file, 5 * MIB), 0);
	watch(&watched, -1);
	error = verify_with(store, "d@1", loop.device, true, &watched, &report, &failure);
	detach_loop(&loop);
	assert_int_equal(error, -EIO);
	assert_contains(failure.message, "can't be read: ");
	store_close(store);
}

static void verifying_stops_soon(void **state)
{
	const size_t size_bytes = 20 * MIB;
	const char *path = in_folder("source.img");
	struct store *store = new_fake(64 * KIB);
	AUTO_FREE uint8_t *bytes = new_zeros(size_bytes);
	struct watched watched;
	struct verify_report report;
	struct failure failure;

	(void)state;
	fill_random(bytes, size_bytes);
	put_disk(store, "d", bytes, size_bytes);
	write_file(path, bytes, size_bytes);
	store_fake_delay(store, STORE_FAKE_READ_CHUNK, 10);
	watch(&watched, 300);
	assert_int_equal(verify_with(store, "d@1", path, false, &watched, &report, &failure), -EINTR);
	assert_stopped_soon(&watched);
	assert_int_equal(failure.code, 0);
	store_close(store);
}

static void ten_thousand_differences_are_all_listed(void **state)
{
	const size_t size_bytes = 20 * MIB;
	const char *path = in_folder("source.img");
	struct store *store = new_fake(MIB);
	AUTO_FREE uint8_t *bytes = new_zeros(size_bytes);
	struct verify_report report;

	(void)state;
	put_disk(store, "d", bytes, size_bytes);
	for (size_t at = 0; at < size_bytes; at += 2048)
		bytes[at + 600] = 1;
	write_file(path, bytes, size_bytes);
	do_verify(store, "d@1", path, &report);
	assert_int_equal(report.difference_count, size_bytes / 2048);
	for (size_t i = 0; i < report.difference_count; i++) {
		assert_int_equal(report.differences[i].off_bytes, i * 2048 + 512);
		assert_int_equal(report.differences[i].len_bytes, 512);
	}
	verify_report_free(&report);
	store_close(store);
}

/* --------------------------------------------------------------------- main */

static int set_up(void **state)
{
	const char *text = getenv("WHERRY_TEST_SEED");

	(void)state;
	seed = text != NULL ? (unsigned)strtoul(text, NULL, 10) : (unsigned)time(NULL);
	print_message("WHERRY_TEST_SEED=%u\n", seed);
	return mkdtemp(folder) == NULL ? -1 : 0;
}

static int tear_down(void **state)
{
	(void)state;
	run("rm -rf --one-file-system '%s'", folder);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_holds_what_the_disk_does),
		cmocka_unit_test(a_local_store_exports_the_same),
		cmocka_unit_test(zeros_are_holes_also_inside_of_chunks),
		cmocka_unit_test(an_empty_disk_is_a_file_of_its_size),
		cmocka_unit_test(an_existing_file_is_replaced_whole),
		cmocka_unit_test(a_pipe_gets_all_of_it_in_order),
		cmocka_unit_test(a_socket_and_a_fifo_do_too),
		cmocka_unit_test(standard_output_may_be_a_file_or_null),
		cmocka_unit_test(a_pipe_without_reader_ends_it),
		cmocka_unit_test(a_stop_is_obeyed_soon),
		cmocka_unit_test(damage_is_named_and_never_written),
		cmocka_unit_test(failures_of_the_store_are_passed_on),
		cmocka_unit_test(targets_that_are_refused),
		cmocka_unit_test(a_full_target_is_named),
		cmocka_unit_test(a_partition_is_found_and_exported),
		cmocka_unit_test(a_view_is_a_source),
		cmocka_unit_test(a_device_gets_all_of_it_zeros_too),
		cmocka_unit_test(a_partition_on_a_device_keeps_its_neighbours),
		cmocka_unit_test(a_larger_device_needs_its_table_moved),
		cmocka_unit_test(devices_that_are_refused),
		cmocka_unit_test(an_image_equals_its_source),
		cmocka_unit_test(one_byte_anywhere_is_found),
		cmocka_unit_test(differences_are_what_a_plain_loop_finds),
		cmocka_unit_test(a_partition_is_compared_with_a_whole_source),
		cmocka_unit_test(what_a_round_leaves_out_is_not_compared),
		cmocka_unit_test(damage_is_no_difference_but_a_failure),
		cmocka_unit_test(failures_while_verifying_are_passed_on),
		cmocka_unit_test(a_source_that_cant_be_read_is_never_equal),
		cmocka_unit_test(verifying_stops_soon),
		cmocka_unit_test(ten_thousand_differences_are_all_listed),
	};

	return cmocka_run_group_tests_name("export, verify", tests, set_up, tear_down);
}
