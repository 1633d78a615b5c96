/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files and devices as sources: every byte whatever the alignment, the host's page cache as it was, holes, a file that
 * is cut or written meanwhile, and what is refused.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "reap_one.h"
#include "scratch_folder.h"
#include "syncer/source.h"

enum { MIB = 1 << 20, PAGE_BYTES = 4096 };

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

static const char *path_of(const char *name)
{
	static char path[400];

	(void)snprintf(path, sizeof(path), "%s/%s", folder.path, name);
	return path;
}

/* No period that any alignment could hide. */
static uint8_t byte_at(uint64_t off_bytes)
{
	return (uint8_t)((off_bytes * UINT64_C(0x9e3779b97f4a7c15)) >> 56);
}

static void make_file(const char *name, size_t size_bytes)
{
	int fd = open(path_of(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	uint8_t *content = malloc(size_bytes);

	assert_true(fd >= 0);
	assert_non_null(content);
	for (size_t i = 0; i < size_bytes; i++)
		content[i] = byte_at(i);
	assert_int_equal(write(fd, content, size_bytes), size_bytes);
	assert_int_equal(fsync(fd), 0); /* dirty pages can't be dropped */
	assert_int_equal(close(fd), 0);
	free(content);
}

static struct source *open_path(const char *path)
{
	struct failure failure = {.code = 0};
	struct source *source = NULL;

	if (source_open(path, NULL, &source, &failure) < 0)
		fail_msg("%s", failure.message);
	return source;
}

static void assert_content(const uint8_t *buffer, size_t len_bytes, uint64_t off_bytes)
{
	for (size_t i = 0; i < len_bytes; i++) {
		if (buffer[i] != byte_at(off_bytes + i))
			fail_msg("wrong byte at %llu", (unsigned long long)(off_bytes + i));
	}
}

static void assert_refused(const char *path, int code, const char *part_of_message)
{
	struct failure failure = {.code = 0};
	struct source *source = NULL;

	assert_int_equal(source_open(path, NULL, &source, &failure), code);
	assert_null(source);
	if (strstr(failure.message, part_of_message) == NULL)
		fail_msg("\"%s\" isn't in \"%s\"", part_of_message, failure.message);
}

/* Reads all of it with as many requests in flight as the source likes; buffers begin `skew_bytes` past a page's border.
 */
static void assert_reads_whole(struct source *source, uint32_t len_bytes, size_t skew_bytes)
{
	const struct source_info *info = source_get_info(source);
	struct source_request *requests = calloc(info->most_in_flight, sizeof(*requests));
	uint8_t *memory = NULL;
	size_t stride_bytes = ((size_t)len_bytes + skew_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	struct source_request *request;
	uint64_t next_bytes = 0;
	uint64_t seen_bytes = 0;
	unsigned used = 0;

	assert_int_equal(posix_memalign((void **)&memory, PAGE_BYTES, stride_bytes * info->most_in_flight), 0);
	request = &requests[used++];
	while (request != NULL) {
		if (next_bytes < info->size_bytes) {
			uint64_t left_bytes = info->size_bytes - next_bytes;

			request->buffer = memory + (size_t)(request - requests) * stride_bytes + skew_bytes;
			request->off_bytes = next_bytes;
			request->len_bytes = left_bytes < len_bytes ? (uint32_t)left_bytes : len_bytes;
			assert_int_equal(source_submit(source, request, NULL), 0);
			next_bytes += request->len_bytes;
		}
		if (used < info->most_in_flight && next_bytes < info->size_bytes) {
			request = &requests[used++];
			continue;
		}
		request = reap_one(source);
		if (request == NULL)
			break;
		assert_int_equal(request->result, 0);
		assert_content(request->buffer, request->len_bytes, request->off_bytes);
		seen_bytes += request->len_bytes;
	}
	assert_int_equal(seen_bytes, info->size_bytes);
	free(memory);
	free(requests);
}

/* ------------------------------------------------------------------ reading */

static void content_arrives_whatever_size_and_alignment(void **state)
{
	static const size_t size_bytes[] = {1, 511, 4097, 3 * MIB, 5 * MIB + 12345};

	(void)state;
	for (size_t i = 0; i < sizeof(size_bytes) / sizeof(size_bytes[0]); i++) {
		struct source *source;

		make_file("any", size_bytes[i]);
		source = open_path(path_of("any"));
		assert_int_equal(source_get_info(source)->kind, SOURCE_FILE);
		assert_int_equal(source_get_info(source)->size_bytes, size_bytes[i]);
		assert_reads_whole(source, MIB, 0);
		assert_reads_whole(source, 65536, 1);
		assert_reads_whole(source, 3 * MIB + 1, 0);
		assert_reads_whole(source, 33333, 17);
		source_close(source);
	}
}

static void blocking_read_works_next_to_requests_in_flight(void **state)
{
	struct source_request request = {.off_bytes = 4096, .len_bytes = 2 * MIB, .buffer = malloc(2 * MIB)};
	uint8_t *buffer = malloc(MIB);
	struct source *source;

	(void)state;
	make_file("both", 4 * MIB);
	source = open_path(path_of("both"));
	assert_null(source_reap(source, true));
	assert_int_equal(source_submit(source, &request, NULL), 0);
	assert_int_equal(source_read(source, buffer, MIB, 3 * MIB - 1, NULL), 0);
	assert_content(buffer, MIB, 3 * MIB - 1);
	assert_ptr_equal(reap_one(source), &request);
	assert_int_equal(request.result, 0);
	assert_content(request.buffer, 2 * MIB, 4096);
	assert_null(source_reap(source, false));
	source_close(source);
	free(request.buffer);
	free(buffer);
}

static void closing_leaves_no_request_behind(void **state)
{
	struct source_request requests[16];
	uint8_t *buffer = malloc(16 * MIB);
	struct source *source;

	(void)state;
	make_file("left", 16 * MIB);
	source = open_path(path_of("left"));
	for (unsigned i = 0; i < 16; i++) {
		requests[i] =
			(struct source_request){.off_bytes = i * MIB, .len_bytes = MIB, .buffer = buffer + i * MIB};
		assert_int_equal(source_submit(source, &requests[i], NULL), 0);
	}
	source_close(source);
	free(buffer); /* AddressSanitizer watches who writes here now */
}

/* What was written last is read, although it isn't on the disk yet and reads go past the page cache. */
static void fresh_writes_are_seen(void **state)
{
	uint8_t *buffer = malloc(4 * MIB);
	struct source *source;
	int fd;

	(void)state;
	make_file("fresh", 4 * MIB);
	source = open_path(path_of("fresh"));
	fd = open(path_of("fresh"), O_WRONLY | O_CLOEXEC);
	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	assert_int_equal(pwrite(fd, "fresh", 5, MIB + 4096 + 100), 5);
	assert_int_equal(source_read(source, buffer, 4 * MIB, 0, NULL), 0);
	assert_memory_equal(buffer + MIB + 4096 + 100, "fresh", 5);
	assert_int_equal(close(fd), 0);
	source_close(source);
	free(buffer);
}

static void file_cut_meanwhile_is_stale(void **state)
{
	struct source_request request = {.off_bytes = 2 * MIB, .len_bytes = MIB, .buffer = malloc(MIB)};
	struct failure failure = {.code = 0};
	struct source *source;
	enum source_extent extent;
	uint64_t len_bytes;

	(void)state;
	make_file("cut", 4 * MIB);
	source = open_path(path_of("cut"));
	assert_int_equal(truncate(path_of("cut"), 2 * MIB + 5000), 0);
	assert_int_equal(source_submit(source, &request, NULL), 0);
	assert_ptr_equal(reap_one(source), &request);
	assert_int_equal(request.result, -ESTALE);
	assert_int_equal(source_read(source, request.buffer, MIB, 3 * MIB, &failure), -ESTALE);
	assert_non_null(strstr(failure.message, "became shorter while it was read"));
	/* What was cut off must not pass for a hole. */
	assert_int_equal(source_extent_at(source, 3 * MIB, MIB, &extent, &len_bytes, NULL), -ESTALE);
	assert_int_equal(source_read_salvaging(source, request.buffer, MIB, 3 * MIB, NULL, NULL, NULL, NULL), -ESTALE);
	assert_int_equal(source_current_size(source, &len_bytes, NULL), 0);
	assert_int_equal(len_bytes, 2 * MIB + 5000);
	source_close(source);
	free(request.buffer);
}

/* --------------------------------------------------------------- page cache */

static size_t count_resident(const char *name, size_t size_bytes)
{
	int fd = open(path_of(name), O_RDONLY | O_CLOEXEC);
	size_t pages = (size_bytes + PAGE_BYTES - 1) / PAGE_BYTES;
	unsigned char *vector = malloc(pages);
	void *view = mmap(NULL, size_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	size_t count = 0;

	assert_true(fd >= 0 && vector != NULL && view != MAP_FAILED);
	assert_int_equal(mincore(view, size_bytes, vector), 0);
	for (size_t i = 0; i < pages; i++)
		count += vector[i] & 1;
	assert_int_equal(munmap(view, size_bytes), 0);
	assert_int_equal(close(fd), 0);
	free(vector);
	return count;
}

/* False: this file system keeps its files in memory. */
static bool make_cold(const char *name, size_t size_bytes)
{
	int fd = open(path_of(name), O_RDONLY | O_CLOEXEC);

	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	assert_int_equal(close(fd), 0);
	return count_resident(name, size_bytes) == 0;
}

static void read_plainly(const char *name, size_t len_bytes)
{
	int fd = open(path_of(name), O_RDONLY | O_CLOEXEC);
	char *buffer = malloc(len_bytes);

	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM), 0); /* no readahead */
	assert_int_equal(pread(fd, buffer, len_bytes, 0), len_bytes);
	assert_int_equal(close(fd), 0);
	free(buffer);
}

static void cold_file_stays_cold(void **state)
{
	enum { SIZE = 24 * MIB + 777 };
	struct source *source;

	(void)state;
	make_file("cold", SIZE);
	if (!make_cold("cold", SIZE)) {
		print_message("skipped: the file system of %s keeps files in memory\n", folder.path);
		skip();
	}
	source = open_path(path_of("cold"));
	assert_reads_whole(source, MIB, 0);
	assert_int_equal(count_resident("cold", SIZE), 0);
	assert_reads_whole(source, 70001, 3);
	assert_int_equal(count_resident("cold", SIZE), 0);
	source_close(source);
}

static void warm_file_stays_warm(void **state)
{
	enum { SIZE = 8 * MIB + 777, PAGES = (SIZE + PAGE_BYTES - 1) / PAGE_BYTES };
	struct source *source;

	(void)state;
	make_file("warm", SIZE);
	read_plainly("warm", SIZE);
	source = open_path(path_of("warm"));
	assert_reads_whole(source, MIB, 0);
	source_close(source);
	assert_in_range(count_resident("warm", SIZE), PAGES - PAGES / 8, PAGES);
}

/* The kernel itself takes a page away now and then, so a few may be missing. More than there were must not be. */
static void partly_resident_file_stays_so(void **state)
{
	enum { SIZE = 40 * MIB, WARM = 16 * MIB };
	struct source *source;
	size_t before;

	(void)state;
	make_file("part", SIZE);
	if (!make_cold("part", SIZE)) {
		print_message("skipped: the file system of %s keeps files in memory\n", folder.path);
		skip();
	}
	read_plainly("part", WARM);
	before = count_resident("part", SIZE);
	assert_in_range(before, WARM / PAGE_BYTES - WARM / PAGE_BYTES / 8, WARM / PAGE_BYTES);
	source = open_path(path_of("part"));
	assert_reads_whole(source, MIB, 0);
	assert_reads_whole(source, 100000, 0);
	source_close(source);
	assert_in_range(count_resident("part", SIZE), before - before / 8, before);
}

/* -------------------------------------------------------------------- holes */

static void holes_are_found(void **state)
{
	enum { SIZE = 64 * MIB };
	struct source *source;
	enum source_extent extent;
	uint64_t len_bytes;
	int fd;

	(void)state;
	fd = open(path_of("holes"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	assert_int_equal(pwrite(fd, "x", 1, 8 * MIB), 1);
	assert_int_equal(pwrite(fd, "x", 1, 32 * MIB), 1);
	if (lseek(fd, 0, SEEK_DATA) == 0) {
		print_message("skipped: the file system of %s tells nothing of holes\n", folder.path);
		(void)close(fd);
		skip();
	}
	source = open_path(path_of("holes"));
	assert_int_equal(source_extent_at(source, 0, SIZE, &extent, &len_bytes, NULL), 0);
	assert_int_equal(extent, SOURCE_HOLE);
	assert_int_equal(len_bytes, 8 * MIB);
	assert_int_equal(source_extent_at(source, 4096, 512, &extent, &len_bytes, NULL), 0);
	assert_int_equal(extent, SOURCE_HOLE);
	assert_int_equal(len_bytes, 512);
	assert_int_equal(source_extent_at(source, 8 * MIB + 1, SIZE / 2, &extent, &len_bytes, NULL), 0);
	assert_int_equal(extent, SOURCE_DATA);
	assert_in_range(len_bytes, 1, MIB);
	assert_int_equal(source_extent_at(source, 33 * MIB, SIZE - 33 * MIB, &extent, &len_bytes, NULL), 0);
	assert_int_equal(extent, SOURCE_HOLE);
	assert_int_equal(len_bytes, SIZE - 33 * MIB);
	/* One that was filled meanwhile is none any more. */
	assert_int_equal(pwrite(fd, "x", 1, 40 * MIB), 1);
	assert_int_equal(source_extent_at(source, 40 * MIB, MIB, &extent, &len_bytes, NULL), 0);
	assert_int_equal(extent, SOURCE_DATA);
	source_close(source);
	assert_int_equal(close(fd), 0);
}

static void walking_meets_every_byte_once(void **state)
{
	enum { SIZE = 6 * MIB + 4321, STEP = 100000 };
	struct source *source;
	uint64_t at_bytes = 0;

	(void)state;
	make_file("walk", SIZE);
	source = open_path(path_of("walk"));
	while (at_bytes < SIZE) {
		uint64_t asked_bytes = SIZE - at_bytes < STEP ? SIZE - at_bytes : STEP;
		enum source_extent extent;
		uint64_t len_bytes = 0;

		assert_int_equal(source_extent_at(source, at_bytes, asked_bytes, &extent, &len_bytes, NULL), 0);
		assert_int_equal(extent, SOURCE_DATA);
		assert_in_range(len_bytes, 1, asked_bytes);
		at_bytes += len_bytes;
	}
	assert_int_equal(at_bytes, SIZE);
	source_close(source);
}

/* ------------------------------------------------------------------- stamps */

static char *get_stamp(struct source *source)
{
	char *stamp = NULL;

	assert_int_equal(source_change_stamp(source, &stamp, NULL), 0);
	assert_non_null(stamp);
	return stamp;
}

static void stamp_changes_with_each_write_and_only_then(void **state)
{
	struct source *source;
	char *first;
	char *second;
	char buffer[512];
	int fd;

	(void)state;
	make_file("stamped", MIB);
	source = open_path(path_of("stamped"));
	fd = open(path_of("stamped"), O_WRONLY | O_CLOEXEC);
	first = get_stamp(source);
	assert_int_equal(source_read(source, buffer, sizeof(buffer), 0, NULL), 0);
	second = get_stamp(source);
	assert_string_equal(first, second);
	/* Many times, as a write in the clock's tick of the one before is the one to be missed. */
	for (unsigned i = 0; i < 50; i++) {
		free(first);
		first = second;
		assert_int_equal(pwrite(fd, "y", 1, i), 1);
		second = get_stamp(source);
		assert_string_not_equal(first, second);
	}
	free(first);
	free(second);
	assert_int_equal(close(fd), 0);
	source_close(source);
}

/* ------------------------------------------------------------------ refusals */

static void what_is_no_source_is_refused(void **state)
{
	(void)state;
	assert_refused(path_of("missing"), -ENOENT, "no such file or device");
	assert_refused(folder.path, -EISDIR, "is a directory; give a block device");
	assert_refused("/dev/null", -EINVAL, "is a character device");
	assert_int_equal(mkfifo(path_of("pipe"), 0600), 0);
	assert_refused(path_of("pipe"), -EINVAL, "is a pipe"); /* and isn't waited for */
	make_file("empty", 0);
	assert_refused(path_of("empty"), -EINVAL, "is empty");
	assert_refused(path_of("empty/x"), -ENOTDIR, "no such file or device");
}

static void unreadable_file_is_refused(void **state)
{
	(void)state;
	make_file("private", 100);
	assert_int_equal(chmod(path_of("private"), 0), 0);
	if (access(path_of("private"), R_OK) == 0) {
		uid_t nobody = 65534;

		assert_int_equal(chmod(folder.path, 0755), 0);
		assert_int_equal(seteuid(nobody), 0);
		assert_refused(path_of("private"), -EACCES, "permission denied; run as root");
		assert_int_equal(seteuid(0), 0);
	} else {
		assert_refused(path_of("private"), -EACCES, "permission denied; run as root");
	}
}

static void file_has_no_dirty_bitmap(void **state)
{
	struct source_options options = {.dirty_bitmap = "b"};
	struct source *source = NULL;
	uint64_t len_bytes;
	bool is_dirty;

	(void)state;
	make_file("plain", 512);
	assert_int_equal(source_open(path_of("plain"), &options, &source, NULL), -ENODATA);
	source = open_path(path_of("plain"));
	assert_int_equal(source_dirty_at(source, 0, 512, &is_dirty, &len_bytes, NULL), -ENODATA);
	assert_string_equal(source_dirty_bitmaps(source), "");
	source_close(source);
}

static void identity_is_the_inode_and_the_real_path(void **state)
{
	char expected[500];
	struct source *source;
	struct stat status;

	(void)state;
	make_file("real", 512);
	assert_int_equal(symlink("real", path_of("link")), 0);
	source = open_path(path_of("link"));
	assert_int_equal(stat(path_of("real"), &status), 0);
	(void)snprintf(expected, sizeof(expected), "file:%ju:%s", (uintmax_t)status.st_ino, path_of("real"));
	assert_string_equal(source_get_info(source)->identity, expected);
	assert_string_equal(source_get_info(source)->name, path_of("link"));
	source_close(source);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(content_arrives_whatever_size_and_alignment),
		cmocka_unit_test(blocking_read_works_next_to_requests_in_flight),
		cmocka_unit_test(closing_leaves_no_request_behind),
		cmocka_unit_test(fresh_writes_are_seen),
		cmocka_unit_test(file_cut_meanwhile_is_stale),
		cmocka_unit_test(cold_file_stays_cold),
		cmocka_unit_test(warm_file_stays_warm),
		cmocka_unit_test(partly_resident_file_stays_so),
		cmocka_unit_test(holes_are_found),
		cmocka_unit_test(walking_meets_every_byte_once),
		cmocka_unit_test(stamp_changes_with_each_write_and_only_then),
		cmocka_unit_test(what_is_no_source_is_refused),
		cmocka_unit_test(unreadable_file_is_refused),
		cmocka_unit_test(file_has_no_dirty_bitmap),
		cmocka_unit_test(identity_is_the_inode_and_the_real_path),
	};

	return cmocka_run_group_tests_name("source", tests, make_folder, remove_folder);
}
