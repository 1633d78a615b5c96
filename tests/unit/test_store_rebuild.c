/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rebuilds at bad moments (what they bring back: tests/integration/test-rebuild.sh).
 *
 * What a writer leaves behind that is killed, or fails, when entries of a disk's log are durable and their transaction
 * is not: nothing of that may ever count, whoever writes next, and into which segment. And somebody who has had the
 * store open since before a rebuild must not go on by the catalog that is gone: leases have its numbers of disks in
 * their names.
 */
#include "unit_test.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "scratch_folder.h"
#include "store/disk.h"
#include "store/local.h"

#define CHUNK ((size_t)STORE_CHUNK_LEAST_BYTES)
enum { CHUNKS = 64 };

struct one {
	struct scratch_folder folder;
	char *path; /* of the store */
};

static struct failure failure;

static struct failure *why(void)
{
	failure_clear(&failure);
	return &failure;
}

static void assert_done(int result, const char *what, int line)
{
	if (result != 0)
		fail_msg("line %d: %s: %d: %s", line, what, result, failure.message);
}
#define must(call) assert_done((call), #call, __LINE__)

static struct store *open_store(const struct one *one)
{
	struct store *store;

	must(store_open_local(one->path, &(struct store_options){.read_only = false}, &store, why()));
	return store;
}

static void create_disk(struct store *store, const char *name)
{
	const struct store_disk_params params = {.name = name, .size_bytes = CHUNKS * CHUNK, .sector_bytes = 512};

	must(store_create_disk(store, &params, why()));
}

static struct store_view *open_live(struct store *store, const char *name)
{
	struct store_reference reference = {.which = STORE_LIVE};
	struct store_view *view;

	(void)strcpy(reference.disk, name);
	must(store_view_open(store, &reference, VIEW_WRITE, "test", &view, why()));
	return view;
}

static uint32_t make_image(struct store_view *view)
{
	uint32_t number;

	must(store_create_image(view, &(struct store_image_params){.label = NULL}, &number, why()));
	return number;
}

static void make_image_of(struct store *store, const char *name, uint32_t expected)
{
	struct store_view *view = open_live(store, name);

	assert_int_equal(make_image(view), expected);
	store_view_close(view);
}

/* The first half of a commit that is too large for one entry of the log: its entries are durable, and that is all. */
static void write_entries(struct store *store, const char *name, unsigned entries)
{
	struct local_store *local = local_of(store);
	AUTO(catalog_disk_release) struct catalog_disk disk = {.id = 0};

	must(local_begin_locked(local, why()));
	must(local_find_disk(local->writer, name, &disk, why()));
	for (unsigned i = 0; i < entries; i++) {
		struct log_run run = {.first_chunk = i, .chunk_count = 1, .kind = LOG_RUN_ZERO};
		struct log_entry entry = {
			.op = LOG_EXTENTS, .generation = disk.generation, .runs = &run, .run_count = 1};

		must(local_log_locked(local, &disk, &entry, why()));
	}
	must(segment_writer_sync(local->segment, why()));
}

static void rebuild(const struct one *one)
{
	struct store_rebuild_report report;

	must(store_rebuild_local(one->path, &(struct store_rebuild_params){.doing = "test"}, &report, why()));
	for (size_t i = 0; i < report.found.flaw_count; i++)
		print_message("%s: %s\n", report.found.flaws[i].what, report.found.flaws[i].why);
	assert_int_equal(report.found.flaw_count, 0);
	store_rebuild_report_free(&report);
}

static size_t count_images(const struct one *one, const char *name)
{
	struct store *store = open_store(one);
	struct store_image *images;
	size_t count;

	must(store_list_images(store, name, &images, &count, why()));
	store_images_free(images, count);
	store_close(store);
	return count;
}

static int make_one(void **state)
{
	struct one *one = calloc(1, sizeof(*one));

	assert_non_null(one);
	scratch_folder_make(&one->folder);
	assert_true(asprintf(&one->path, "%s/store", one->folder.path) > 0);
	must(store_create_local(one->path, CHUNK, why()));
	*state = one;
	return 0;
}

static int remove_one(void **state)
{
	struct one *one = *state;

	scratch_folder_remove(&one->folder);
	free(one->path);
	free(one);
	return 0;
}

/* Two write at the same time, so each has a segment of its own; the one with the second is killed. Who comes next takes
 * the first. */
static void entries_left_in_another_segment_do_not_count(void **state)
{
	struct one *one = *state;
	struct store *busy = open_store(one), *killed;

	create_disk(busy, "one");
	create_disk(busy, "two");
	make_image_of(busy, "one", 1);
	killed = open_store(one);
	write_entries(killed, "one", 5);
	store_close(killed);
	store_close(busy);
	busy = open_store(one);
	make_image_of(busy, "one", 2);
	store_close(busy);
	rebuild(one);
	assert_int_equal(count_images(one, "one"), 2);
}

/* The next one to write to the disk has a segment already. */
static void entries_left_behind_do_not_count_for_who_writes_already(void **state)
{
	struct one *one = *state;
	struct store *busy = open_store(one), *killed;

	create_disk(busy, "one");
	create_disk(busy, "two");
	make_image_of(busy, "two", 1);
	killed = open_store(one);
	write_entries(killed, "one", 5);
	store_close(killed);
	make_image_of(busy, "one", 1);
	store_close(busy);
	rebuild(one);
	assert_int_equal(count_images(one, "one"), 1);
}

/* A transaction that fails at its end, in a process that goes on. */
static void entries_of_a_failed_transaction_do_not_count(void **state)
{
	struct one *one = *state;
	struct store *store = open_store(one);
	struct store_view *view;

	create_disk(store, "one");
	view = open_live(store, "one");
	write_entries(store, "one", 5);
	local_abandon_locked(local_of(store));
	assert_int_equal(make_image(view), 1);
	store_view_close(view);
	store_close(store);
	rebuild(one);
	assert_int_equal(count_images(one, "one"), 1);
}

static struct store_change put_chunk(struct store_view *view, uint8_t content)
{
	struct store_change change = {.first_chunk = content, .chunk_count = 1, .kind = STORE_MAP_CHUNK};
	struct store_scratch *scratch;
	struct store_encoded encoded;
	uint8_t plain[CHUNK];
	uint64_t new_bytes;

	must(store_scratch_new(&scratch, why()));
	memset(plain, content, sizeof(plain));
	must(hasher_digest(scratch->hasher, plain, CHUNK, change.digest, why()));
	must(store_encode_chunk(scratch, 3, change.digest, plain, CHUNK, &encoded, why()));
	must(store_put_chunk(view, &encoded, &change.chunk, &new_bytes, why()));
	store_scratch_free(scratch);
	return change;
}

static void assert_clean(struct store *store)
{
	struct store_check_report report;

	must(store_check(store, &(struct store_check_params){.deep = true}, &report, why()));
	for (size_t i = 0; i < report.flaw_count; i++)
		print_message("%s: %s\n", report.flaws[i].what, report.flaws[i].why);
	assert_true(report.is_clean);
	store_check_report_free(&report);
}

/* Chunks in front of entries that were taken back are committed by the next try, and no length ends within a block. */
static void what_is_pending_outlives_a_failed_transaction(void **state)
{
	struct one *one = *state;
	struct store *store = open_store(one);
	struct local_store *local = local_of(store);
	struct catalog_segment segment;
	struct store_change change;
	struct store_view *view;

	create_disk(store, "one");
	view = open_live(store, "one");
	for (unsigned i = 1; i < 4; i++) {
		change = put_chunk(view, (uint8_t)i);
		write_entries(store, "one", i);
		local_abandon_locked(local);
		if (i == 2)
			(void)put_chunk(view, 40);
		must(store_set_policy(store, "one", &(struct store_policy){.set_keep = true, .keep = i}, why()));
		must(local_begin_locked(local, why()));
		must(catalog_segment_get(local->writer, segment_writer_number(local->segment), &segment, why()));
		local_abandon_locked(local);
		assert_int_equal(segment.length_bytes % SEGMENT_BLOCK_BYTES, 0);
		must(store_commit(view, &change, 1, NULL, why()));
	}
	assert_int_equal(make_image(view), 1);
	store_view_close(view);
	assert_clean(store);
	store_close(store);
	rebuild(one);
	store = open_store(one);
	assert_clean(store);
	store_close(store);
}

static void a_removal_counts_whatever_was_left(void **state)
{
	struct one *one = *state;
	struct store *busy = open_store(one), *killed;
	struct store_disk *disks;
	size_t count;

	create_disk(busy, "one");
	create_disk(busy, "two");
	killed = open_store(one);
	write_entries(killed, "one", 5);
	store_close(killed);
	must(store_remove_disk(busy, "one", false, why()));
	store_close(busy);
	rebuild(one);
	busy = open_store(one);
	must(store_list_disks(busy, NULL, &disks, &count, why()));
	assert_int_equal(count, 1);
	assert_string_equal(disks[0].name, "two");
	store_disks_free(disks, count);
	store_close(busy);
}

/* In a process that is killed when the write was flushed. */
static void write_and_be_killed(const struct one *one, const char *name)
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		struct store_reference reference = {.which = STORE_LIVE};
		struct disk_options options = {.doing = "test", .write = true};
		struct store *store;
		struct disk *disk;

		(void)strcpy(reference.disk, name);
		if (store_open_local(one->path, &(struct store_options){.read_only = false}, &store, NULL) == 0 &&
		    chunk_cache_new((uint64_t)CHUNK_CACHE_LEAST_BYTES, &options.cache, NULL) == 0 &&
		    disk_open(store, &reference, &options, &disk, NULL) == 0 &&
		    disk_write(disk, "flushed", 8, 1000, 0, NULL) == 0 && disk_flush(disk, NULL) == 0)
			(void)raise(SIGKILL);
		_exit(1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
}

/* Its socket is left among the leases, and its writes in the journal. */
static void a_server_that_was_killed_is_in_nobodys_way(void **state)
{
	struct one *one = *state;
	struct store *store = open_store(one);
	struct store_reference live = {.disk = "one", .which = STORE_LIVE};
	AUTO_FREE char *socket_path = NULL;
	struct disk_options options = {.doing = "test"};
	struct store_view *view;
	struct stat status;
	struct disk *disk;
	char text[8];

	create_disk(store, "one");
	store_close(store);
	write_and_be_killed(one, "one");
	assert_true(asprintf(&socket_path, "%s/locks/disk-1.socket", one->path) > 0);
	assert_int_equal(stat(socket_path, &status), 0);
	rebuild(one);
	must(store_open_local(one->path, &(struct store_options){.read_only = true}, &store, why()));
	assert_int_equal(store_view_open(store, &live, VIEW_WRITE, "test", &view, why()), -EROFS);
	assert_int_equal(store_view_open(store, &live, VIEW_READ, "test", &view, why()), -EROFS);
	assert_non_null(strstr(failure.message, "still in its journal"));
	store_close(store);
	store = open_store(one);
	must(chunk_cache_new((uint64_t)CHUNK_CACHE_LEAST_BYTES, &options.cache, why()));
	must(disk_open(store, &live, &options, &disk, why()));
	must(disk_read(disk, text, sizeof(text), 1000, why()));
	assert_string_equal(text, "flushed");
	must(disk_close(disk, why()));
	chunk_cache_free(options.cache);
	must(store_remove_disk(store, "one", false, why()));
	assert_int_equal(stat(socket_path, &status), -1);
	store_close(store);
}

static void who_had_the_store_open_is_told_of_the_rebuild(void **state)
{
	struct one *one = *state;
	struct store *store = open_store(one);
	struct store_reference live = {.disk = "one", .which = STORE_LIVE};
	struct store_reference image = {.disk = "one", .which = STORE_LATEST};
	struct store_view *view;

	create_disk(store, "one");
	make_image_of(store, "one", 1);
	rebuild(one);
	assert_int_equal(store_view_open(store, &live, VIEW_WRITE, "test", &view, why()), -ESTALE);
	assert_int_equal(store_view_open(store, &image, VIEW_READ, "test", &view, why()), -ESTALE);
	store_close(store);
	store = open_store(one); /* neither has kept its lease */
	view = open_live(store, "one");
	store_view_close(view);
	store_close(store);
}

struct last_look {
	struct store *store;
	int current;
};

static int somebody_has_come(void *opaque, struct failure *because)
{
	struct last_look *look = opaque;

	look->current = catalog_check_current(local_of(look->store)->writer, because);
	return -EBUSY;
}

/* Somebody takes a lease when the new catalog is finished already: the old one stays. */
static void who_comes_at_the_last_moment_keeps_the_old_catalog(void **state)
{
	struct one *one = *state;
	struct last_look look = {.store = open_store(one)};
	struct local_store *local = local_of(look.store);
	struct catalog *beside;

	create_disk(look.store, "one");
	make_image_of(look.store, "one", 1);
	must(catalog_create_beside(one->path, CHUNK, local->locks_fd, &beside, why()));
	assert_int_equal(catalog_put_in_place(one->path, beside, somebody_has_come, &look, why()), -EBUSY);
	assert_int_equal(look.current, -ESTALE);
	must(catalog_check_current(local->writer, why()));
	make_image_of(look.store, "one", 2);
	store_close(look.store);
	assert_int_equal(count_images(one, "one"), 2);
	rebuild(one); /* nothing is in its way */
	assert_int_equal(count_images(one, "one"), 2);
}

static void open_journal(struct store *store, const char *name)
{
	struct store_disk_files files;

	must(store_disk_files(store, name, true, &files, why()));
	assert_int_equal(close(files.journal_fd), 0);
	free(files.socket_path);
}

static unsigned count_journals(const struct one *one)
{
	AUTO_FREE char *path = NULL;
	struct stat status;

	assert_true(asprintf(&path, "%s/journal", one->path) > 0);
	assert_int_equal(stat(path, &status), 0);
	return (unsigned)status.st_nlink - 2;
}

/* Two clones of an image whose segment is gone: nothing was ever written to the one, and what was to the other is in
 * its journal. */
static void a_clone_with_a_journal_is_not_left_out(void **state)
{
	struct one *one = *state;
	struct store *store = open_store(one), *other;
	const struct store_reference image = {.disk = "one", .which = STORE_NUMBER, .number = 1};
	struct store_rebuild_report report;
	AUTO_FREE char *segment = NULL;
	struct store_change change;
	struct store_disk *disks;
	struct store_view *view;
	size_t count;

	create_disk(store, "one");
	view = open_live(store, "one");
	change = put_chunk(view, 1);
	must(store_commit(view, &change, 1, NULL, why()));
	assert_int_equal(make_image(view), 1);
	store_view_close(view);
	other = open_store(one); /* into another segment */
	must(store_clone_disk(other, &image, "plain", why()));
	must(store_clone_disk(other, &image, "written", why()));
	open_journal(other, "written");
	store_close(other);
	store_close(store);
	assert_true(asprintf(&segment, "%s/segments/01/00000001.seg", one->path) > 0);
	assert_int_equal(unlink(segment), 0);
	must(store_rebuild_local(one->path, &(struct store_rebuild_params){.doing = "test"}, &report, why()));
	store_rebuild_report_free(&report);
	store = open_store(one);
	must(store_list_disks(store, NULL, &disks, &count, why()));
	assert_int_equal(count, 1);
	assert_string_equal(disks[0].name, "written");
	store_disks_free(disks, count);
	store_close(store);
}

/* Killed when the removal was durable, and nothing had been cleared away yet; then a rebuild. */
static void the_journal_of_a_removed_disk_goes_with_the_next_deletion(void **state)
{
	struct one *one = *state;
	struct store *store = open_store(one);
	struct local_store *local = local_of(store);
	struct catalog_disk disk = {.id = 0};

	create_disk(store, "one");
	open_journal(store, "one");
	must(local_begin_locked(local, why()));
	must(local_find_disk(local->writer, "one", &disk, why()));
	disk.state = CATALOG_GOING;
	must(local_log_locked(local, &disk, &(struct log_entry){.op = LOG_REMOVE}, why()));
	must(catalog_disk_update(local->writer, &disk, why()));
	must(local_end_locked(local, why()));
	catalog_disk_release(&disk);
	store_close(store);
	rebuild(one);
	assert_int_equal(count_journals(one), 1);
	store = open_store(one);
	must(local_finish_deletions(local_of(store), why()));
	assert_int_equal(count_journals(one), 0);
	assert_clean(store);
	store_close(store);
	rebuild(one);
}

#define test(name) cmocka_unit_test_setup_teardown(name, make_one, remove_one)

int main(void)
{
	const struct CMUnitTest tests[] = {
		test(entries_left_in_another_segment_do_not_count),
		test(entries_left_behind_do_not_count_for_who_writes_already),
		test(entries_of_a_failed_transaction_do_not_count),
		test(what_is_pending_outlives_a_failed_transaction),
		test(a_removal_counts_whatever_was_left),
		test(a_clone_with_a_journal_is_not_left_out),
		test(the_journal_of_a_removed_disk_goes_with_the_next_deletion),
		test(a_server_that_was_killed_is_in_nobodys_way),
		test(who_had_the_store_open_is_told_of_the_rebuild),
		test(who_comes_at_the_last_moment_keeps_the_old_catalog),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
