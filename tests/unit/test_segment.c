/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments: what comes back, what is noticed, and what is left after a crash.
 *
 * The system calls of the store go through this program first (the linker takes ours for the archive's references): so
 * writes and reads can be cut short or interrupted, syncs counted or made to fail.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "scratch_folder.h"
#include "store/segment.h"

enum { NUMBER = 0x1ab, FIRST_BYTES = SEGMENT_BLOCK_BYTES };
#define SEGMENT_PATH "ab/000001ab.seg"

static const uint8_t store_id[STORE_ID_BYTES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* ---- system calls that misbehave ---- */

static struct {
	atomic_bool short_transfers; /* reads and writes do a part, every third is interrupted */
	atomic_uint calls;
	int write_error; /* of the next write */
	int sync_error;	 /* of the next fdatasync */
	ino_t synced[16];
	unsigned int synced_count;
	unsigned int fdatasync_count;
} faults;

static size_t cut_short(size_t len_bytes, bool *ret_interrupted)
{
	unsigned int call = atomic_fetch_add(&faults.calls, 1);

	*ret_interrupted = call % 3 == 2;
	return len_bytes > 1 ? len_bytes / 2 + call % 2 : len_bytes;
}

ssize_t pwrite(int fd, const void *bytes, size_t len_bytes, off_t off_bytes)
{
	bool interrupted = false;

	if (faults.write_error != 0) {
		errno = faults.write_error;
		faults.write_error = 0;
		return -1;
	}
	if (atomic_load(&faults.short_transfers))
		len_bytes = cut_short(len_bytes, &interrupted);
	if (interrupted) {
		errno = EINTR;
		return -1;
	}
	return syscall(SYS_pwrite64, fd, bytes, len_bytes, off_bytes);
}

ssize_t pread(int fd, void *bytes, size_t len_bytes, off_t off_bytes)
{
	bool interrupted = false;

	if (atomic_load(&faults.short_transfers))
		len_bytes = cut_short(len_bytes, &interrupted);
	if (interrupted) {
		errno = EINTR;
		return -1;
	}
	return syscall(SYS_pread64, fd, bytes, len_bytes, off_bytes);
}

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t off_bytes)
{
	bool interrupted = false;
	struct iovec first = parts[0];

	if (!atomic_load(&faults.short_transfers))
		return syscall(SYS_preadv, fd, parts, count, off_bytes, 0);
	first.iov_len = cut_short(first.iov_len, &interrupted);
	if (interrupted) {
		errno = EINTR;
		return -1;
	}
	return syscall(SYS_preadv, fd, &first, 1, off_bytes, 0);
}

static void note_sync(int fd)
{
	struct stat status;

	if (fstat(fd, &status) == 0 && faults.synced_count < 16)
		faults.synced[faults.synced_count++] = status.st_ino;
}

int fsync(int fd)
{
	note_sync(fd);
	return 0; /* counted, not done: no power fails here, and hundreds of them take a minute */
}

int fdatasync(int fd)
{
	note_sync(fd);
	faults.fdatasync_count++;
	if (faults.sync_error != 0) {
		errno = faults.sync_error;
		faults.sync_error = 0;
		return -1;
	}
	return 0;
}

static bool was_synced(int folder_fd, const char *path)
{
	struct stat status;

	assert_int_equal(fstatat(folder_fd, path, &status, 0), 0);
	for (unsigned int i = 0; i < faults.synced_count; i++)
		if (faults.synced[i] == status.st_ino)
			return true;
	return false;
}

/* ---- a segment of known content ---- */

static int make_folder(void **state)
{
	struct scratch_folder *folder = malloc(sizeof(*folder));

	if (folder == NULL)
		return -1;
	memset(&faults, 0, sizeof(faults));
	scratch_folder_make(folder);
	*state = folder;
	return 0;
}

static int remove_folder(void **state)
{
	scratch_folder_remove(*state);
	free(*state);
	return 0;
}

static int folder_fd(void **state)
{
	return ((struct scratch_folder *)*state)->fd;
}

static uint64_t mix(uint64_t value)
{
	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ULL;
	value = (value ^ value >> 27) * 0x94d049bb133111ebULL;
	return value ^ value >> 31;
}

/* Record `index` of a segment: any length from 1 to the largest, most of them around a compressed chunk. */
static uint32_t payload_bytes_of(uint32_t index)
{
	uint64_t any = mix(index + 1);

	if (index % 50 == 49)
		return RECORD_PLAIN_MOST_BYTES;
	return (uint32_t)(1 + any % (index % 5 == 0 ? 300 : 60000));
}

static void make_payload(uint32_t number, uint32_t index, uint8_t *ret_payload, uint32_t len_bytes)
{
	for (uint32_t i = 0; i < len_bytes; i++)
		ret_payload[i] =
			(uint8_t)(mix(((uint64_t)number << 32 | index) + 0x9e37 * (uint64_t)(i / 8)) >> i % 8 * 8);
}

static struct record_header header_of(uint32_t index, uint32_t len_bytes)
{
	struct record_header header = {.type = index % 7 == 3 ? RECORD_LOG : RECORD_CHUNK,
				       .codec = CODEC_PLAIN,
				       .stored_bytes = len_bytes,
				       .plain_bytes = len_bytes};

	memset(header.digest, (int)(index & 0xff), sizeof(header.digest));
	return header;
}

static struct segment_writer *create(int segments_fd, uint32_t number)
{
	struct segment_writer *writer = NULL;
	struct failure failure = {.code = 0};

	if (segment_writer_create(segments_fd, store_id, number, &writer, &failure) != 0)
		fail_msg("%s", failure.message);
	assert_int_equal(segment_writer_number(writer), number);
	return writer;
}

static struct segment_writer *reopen(int segments_fd, uint64_t committed_bytes)
{
	struct segment_writer *writer = NULL;
	struct failure failure = {.code = 0};

	if (segment_writer_open(segments_fd, store_id, NUMBER, committed_bytes, &writer, &failure) != 0)
		fail_msg("%s", failure.message);
	return writer;
}

static uint64_t append_bytes(struct segment_writer *writer, uint32_t index, uint32_t len_bytes)
{
	AUTO_FREE uint8_t *payload = malloc(len_bytes);
	const struct record_header header = header_of(index, len_bytes);
	uint64_t off_bytes = 0;
	struct failure failure = {.code = 0};

	assert_non_null(payload);
	make_payload(segment_writer_number(writer), index, payload, len_bytes);
	if (segment_writer_append(writer, &header, payload, &off_bytes, &failure) != 0)
		fail_msg("%s", failure.message);
	assert_int_equal(off_bytes % RECORD_ALIGN_BYTES, 0);
	assert_int_equal(segment_writer_bytes(writer), off_bytes + record_total_bytes(len_bytes));
	return off_bytes;
}

static uint64_t append(struct segment_writer *writer, uint32_t index)
{
	return append_bytes(writer, index, payload_bytes_of(index));
}

static void sync_it(struct segment_writer *writer)
{
	uint64_t before_bytes = segment_writer_bytes(writer);

	assert_int_equal(segment_writer_sync(writer, NULL), 0);
	assert_int_equal(segment_writer_bytes(writer) % SEGMENT_BLOCK_BYTES, 0);
	assert_true(segment_writer_bytes(writer) - before_bytes < SEGMENT_BLOCK_BYTES);
}

static struct segment_reader *make_reader(int segments_fd, unsigned int most_open)
{
	struct segment_reader *reader = NULL;

	assert_int_equal(segment_reader_new(segments_fd, store_id, most_open, &reader, NULL), 0);
	return reader;
}

/* 0 if record `index` is there and right, else what the reader said. */
static int check_record(struct segment_reader *reader, uint32_t number, uint64_t off_bytes, uint32_t index,
			uint32_t len_bytes, struct failure *failure)
{
	AUTO_FREE uint8_t *expected = malloc(len_bytes);
	AUTO_FREE uint8_t *stored = malloc(len_bytes);
	const struct record_header wanted = header_of(index, len_bytes);
	struct record_header header;
	int result;

	assert_true(expected != NULL && stored != NULL);
	result = segment_reader_read(reader, number, off_bytes, len_bytes, &header, stored, failure);
	if (result < 0)
		return result;
	make_payload(number, index, expected, len_bytes);
	if (memcmp(stored, expected, len_bytes) != 0 || header.type != wanted.type || header.plain_bytes != len_bytes ||
	    memcmp(header.digest, wanted.digest, DIGEST_BYTES) != 0)
		return -ENOTRECOVERABLE; /* bytes that the reader said were right */
	return 0;
}

static void assert_record(struct segment_reader *reader, uint64_t off_bytes, uint32_t index, uint32_t len_bytes)
{
	struct failure failure = {.code = 0};
	int result = check_record(reader, NUMBER, off_bytes, index, len_bytes, &failure);

	if (result != 0)
		fail_msg("record %u: %d, %s", (unsigned int)index, result, failure.message);
}

enum { MOST_VISITED = 1000 };

struct visited {
	uint64_t off_bytes[MOST_VISITED];
	uint32_t stored_bytes[MOST_VISITED];
	size_t count;
	size_t stop_after; /* 0: never */
};

static int visit(void *opaque, uint64_t off_bytes, const struct record_header *header)
{
	struct visited *visited = opaque;

	assert_true(visited->count < MOST_VISITED);
	visited->off_bytes[visited->count] = off_bytes;
	visited->stored_bytes[visited->count++] = header->stored_bytes;
	return visited->count == visited->stop_after ? 42 : 0;
}

static uint64_t walk(int segments_fd, struct visited *ret_visited)
{
	uint64_t valid_bytes = 0;
	struct failure failure = {.code = 0};

	ret_visited->count = 0;
	if (segment_walk(segments_fd, store_id, NUMBER, visit, ret_visited, &valid_bytes, &failure) != 0)
		fail_msg("%s", failure.message);
	return valid_bytes;
}

/* The whole file, to be put back in other shapes. */
struct file_content {
	uint8_t *bytes;
	size_t len_bytes;
};

static struct file_content slurp(int segments_fd)
{
	AUTO_CLOSE int fd = openat(segments_fd, SEGMENT_PATH, O_RDONLY | O_CLOEXEC);
	struct file_content content = {.bytes = NULL};
	struct stat status;

	assert_int_equal(fstat(fd, &status), 0);
	content.len_bytes = (size_t)status.st_size;
	content.bytes = malloc(content.len_bytes);
	assert_non_null(content.bytes);
	assert_int_equal(syscall(SYS_pread64, fd, content.bytes, content.len_bytes, 0), content.len_bytes);
	return content;
}

static void spew(int segments_fd, const uint8_t *bytes, size_t len_bytes)
{
	AUTO_CLOSE int fd = openat(segments_fd, SEGMENT_PATH, O_WRONLY | O_CREAT | O_CLOEXEC, 0640);

	/* Not O_TRUNC: ext4 takes that for an attempt to replace the file, and writes it out at once. */
	assert_true(fd >= 0);
	assert_int_equal(syscall(SYS_pwrite64, fd, bytes, len_bytes, 0), len_bytes);
	assert_int_equal(ftruncate(fd, (off_t)len_bytes), 0);
}

static uint64_t file_bytes(int segments_fd)
{
	struct stat status;

	assert_int_equal(fstatat(segments_fd, SEGMENT_PATH, &status, 0), 0);
	return (uint64_t)status.st_size;
}

/* ---- making and opening ---- */

static void a_new_one_is_as_documented_and_durable_with_its_name(void **state)
{
	/* all but the time and what depends on it; xxhsum is the oracle of the record's checksums in test_record.c */
	static const uint8_t expected[32] = {'w', 'h', 'e', 'r', 'r', 'y', 'S', 'G', 1, 0, 0,  0,  0xab, 1,  0,	 0,
					     0,	  1,   2,   3,	 4,   5,   6,	7,   8, 9, 10, 11, 12,	 13, 14, 15};
	AUTO_FREE uint8_t *bytes = NULL;
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	struct file_content content = slurp(folder_fd(state));

	bytes = content.bytes;
	assert_int_equal(segment_writer_bytes(writer), FIRST_BYTES);
	assert_int_equal(content.len_bytes, FIRST_BYTES);
	assert_memory_equal(bytes, expected, sizeof(expected));
	assert_true(bytes_get_le64(bytes + 32) > 1700000000);
	assert_true(bytes_are_zero(bytes + 40, 16));
	assert_int_equal(bytes_get_le64(bytes + 56), record_payload_checksum(bytes, 56));
	assert_true(bytes_are_zero(bytes + 64, FIRST_BYTES - 64));
	assert_true(was_synced(folder_fd(state), SEGMENT_PATH));
	assert_true(was_synced(folder_fd(state), "ab"));
	assert_true(was_synced(folder_fd(state), "."));
	segment_writer_close(writer);
	segment_writer_close(NULL);
}

static void leftovers_without_records_are_taken_over(void **state)
{
	static const uint8_t garbage[SEGMENT_BLOCK_BYTES] = {1, 2, 3};
	struct segment_writer *writer = NULL;
	struct failure failure = {.code = 0};

	assert_int_equal(mkdirat(folder_fd(state), "ab", 0750), 0);
	spew(folder_fd(state), garbage, 0);
	segment_writer_close(create(folder_fd(state), NUMBER));
	segment_writer_close(create(folder_fd(state), NUMBER));
	spew(folder_fd(state), garbage, sizeof(garbage));
	writer = create(folder_fd(state), NUMBER);
	(void)append(writer, 0);
	sync_it(writer);
	segment_writer_close(writer);
	assert_int_equal(segment_writer_create(folder_fd(state), store_id, NUMBER, &writer, &failure), -EEXIST);
	assert_non_null(strstr(failure.message, "segment 000001ab"));
	segment_writer_close(reopen(folder_fd(state), 2 * SEGMENT_BLOCK_BYTES));
}

static void one_appends_at_a_time(void **state)
{
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	struct segment_writer *other = NULL;
	struct failure failure = {.code = 0};

	assert_int_equal(segment_writer_open(folder_fd(state), store_id, NUMBER, FIRST_BYTES, &other, &failure),
			 -EWOULDBLOCK);
	assert_int_equal(segment_writer_create(folder_fd(state), store_id, NUMBER, &other, &failure), -EWOULDBLOCK);
	assert_int_equal(failure.code, 0);
	assert_null(other);
	segment_writer_close(writer);
	segment_writer_close(reopen(folder_fd(state), FIRST_BYTES));
}

static void opening_refuses_what_it_should(void **state)
{
	static const uint8_t other_store[STORE_ID_BYTES] = {9};
	struct segment_writer *writer = NULL;
	struct failure failure = {.code = 0};

	assert_int_equal(segment_writer_open(folder_fd(state), store_id, NUMBER, FIRST_BYTES, &writer, &failure),
			 -ENOENT);
	assert_non_null(strstr(failure.message, "segments/" SEGMENT_PATH " is missing"));
	segment_writer_close(create(folder_fd(state), NUMBER));
	failure_clear(&failure);
	assert_int_equal(segment_writer_open(folder_fd(state), store_id, NUMBER, FIRST_BYTES + 8, &writer, &failure),
			 -EBADMSG);
	assert_non_null(strstr(failure.message, "has 4096 bytes, the catalog knows of 4104"));
	failure_clear(&failure);
	assert_int_equal(segment_writer_open(folder_fd(state), other_store, NUMBER, FIRST_BYTES, &writer, &failure),
			 -EBADMSG);
	assert_non_null(strstr(failure.message, "another store"));
	assert_int_equal(mkdirat(folder_fd(state), "ac", 0750), 0);
	assert_int_equal(renameat(folder_fd(state), SEGMENT_PATH, folder_fd(state), "ac/000001ac.seg"), 0);
	failure_clear(&failure);
	assert_int_equal(segment_writer_open(folder_fd(state), store_id, NUMBER + 1, FIRST_BYTES, &writer, &failure),
			 -EBADMSG);
	assert_non_null(strstr(failure.message, "another segment"));
	assert_null(writer);
}

static void every_flipped_bit_of_the_segments_header_is_noticed(void **state)
{
	AUTO_FREE uint8_t *bytes = NULL;
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	struct file_content content;

	(void)append(writer, 0);
	sync_it(writer);
	segment_writer_close(writer);
	content = slurp(folder_fd(state));
	bytes = content.bytes;
	for (size_t bit = 0; bit < (size_t)8 * SEGMENT_HEADER_BYTES; bit++) {
		struct segment_reader *reader = make_reader(folder_fd(state), 4);
		struct visited visited = {.count = 0};
		uint64_t valid_bytes = 0;

		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		spew(folder_fd(state), bytes, content.len_bytes);
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(check_record(reader, NUMBER, FIRST_BYTES, 0, payload_bytes_of(0), NULL), -EBADMSG);
		assert_int_equal(segment_writer_open(folder_fd(state), store_id, NUMBER, FIRST_BYTES, &writer, NULL),
				 -EBADMSG);
		assert_int_equal(segment_walk(folder_fd(state), store_id, NUMBER, visit, &visited, &valid_bytes, NULL),
				 -EBADMSG);
		segment_reader_free(reader);
	}
}

/* ---- writing and reading ---- */

/* 200 records, a sync now and then, and whatever else is wrong with the system calls. */
static void write_and_read_many(int segments_fd)
{
	enum { RECORDS = 200 };
	static struct visited visited;
	static uint64_t off_bytes[RECORDS];
	struct segment_writer *writer = create(segments_fd, NUMBER);
	struct segment_reader *reader;
	uint64_t end_bytes;

	for (uint32_t i = 0; i < RECORDS; i++) {
		off_bytes[i] = append(writer, i);
		if (i % 37 == 36)
			sync_it(writer);
	}
	sync_it(writer);
	end_bytes = segment_writer_bytes(writer);
	segment_writer_close(writer);
	assert_true(end_bytes > 8 << 20); /* past the first write-back, past many buffers */
	assert_int_equal(file_bytes(segments_fd), end_bytes);
	assert_int_equal(walk(segments_fd, &visited), end_bytes);
	assert_int_equal(visited.count, RECORDS);
	reader = make_reader(segments_fd, 1);
	segment_reader_prefetch(reader, NUMBER, off_bytes[0], end_bytes);
	segment_reader_prefetch(reader, NUMBER + 1, 0, UINT64_MAX);
	segment_reader_prefetch(reader, NUMBER + 1, 0, 1);
	for (uint32_t i = 0; i < RECORDS; i++) {
		struct record_header header;

		assert_int_equal(visited.off_bytes[i], off_bytes[i]);
		assert_int_equal(visited.stored_bytes[i], payload_bytes_of(i));
		assert_record(reader, off_bytes[i], i, payload_bytes_of(i));
		assert_int_equal(segment_reader_header(reader, NUMBER, off_bytes[i], &header, NULL), 0);
		assert_int_equal(header.stored_bytes, payload_bytes_of(i));
	}
	segment_reader_free(reader);
	segment_reader_free(NULL);
}

static void what_is_appended_comes_back(void **state)
{
	write_and_read_many(folder_fd(state));
}

static void short_and_interrupted_transfers_are_no_trouble(void **state)
{
	atomic_store(&faults.short_transfers, true);
	write_and_read_many(folder_fd(state));
	assert_true(atomic_load(&faults.calls) > 1000);
}

static void a_sync_starts_a_new_block_and_needs_something_new(void **state)
{
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	unsigned int syncs = faults.fdatasync_count;

	sync_it(writer);
	assert_int_equal(faults.fdatasync_count, syncs);
	assert_int_equal(segment_writer_bytes(writer), FIRST_BYTES);
	assert_int_equal(append_bytes(writer, 0, 100), FIRST_BYTES);
	assert_int_equal(file_bytes(folder_fd(state)), FIRST_BYTES); /* buffered */
	sync_it(writer);
	assert_int_equal(faults.fdatasync_count, syncs + 1);
	assert_int_equal(file_bytes(folder_fd(state)), 2 * SEGMENT_BLOCK_BYTES);
	sync_it(writer);
	assert_int_equal(faults.fdatasync_count, syncs + 1);
	assert_int_equal(append_bytes(writer, 1, 100), 2 * SEGMENT_BLOCK_BYTES);
	assert_int_equal(append_bytes(writer, 2, 100), 2 * SEGMENT_BLOCK_BYTES + 168);
	segment_writer_close(writer);
}

/* Every byte of the file that was durable once is still what it was after everything that came later. */
static void durable_blocks_are_never_written_again(void **state)
{
	struct segment_writer *writer = create(folder_fd(state), NUMBER);

	for (uint32_t i = 0; i < 20; i++) {
		AUTO_FREE uint8_t *zeros = NULL;
		struct file_content before;
		struct file_content after;
		int fd;

		(void)append_bytes(writer, i, 1000 + 777 * i);
		sync_it(writer);
		if (i % 4 == 3) {
			uint64_t committed_bytes = segment_writer_bytes(writer);

			(void)append(writer, i);
			segment_writer_close(writer);
			writer = reopen(folder_fd(state), committed_bytes);
		}
		/* What is overwritten behind the writer's back would come back if it wrote the block again. */
		before = slurp(folder_fd(state));
		zeros = calloc(1, before.len_bytes);
		assert_non_null(zeros);
		fd = openat(folder_fd(state), SEGMENT_PATH, O_WRONLY | O_CLOEXEC);
		assert_int_equal(syscall(SYS_pwrite64, fd, zeros, before.len_bytes, 0), before.len_bytes);
		(void)append_bytes(writer, i, 50);
		sync_it(writer);
		after = slurp(folder_fd(state));
		assert_true(bytes_are_zero(after.bytes, before.len_bytes));
		assert_int_equal(syscall(SYS_pwrite64, fd, before.bytes, before.len_bytes, 0), before.len_bytes);
		(void)close(fd);
		free(before.bytes);
		free(after.bytes);
	}
	segment_writer_close(writer);
}

/* ---- errors stick ---- */

static void assert_failed_for_good(struct segment_writer *writer, int code)
{
	static const uint8_t payload[8];
	const struct record_header header = header_of(0, sizeof(payload));

	for (unsigned int turn = 0; turn < 3; turn++) {
		struct failure failure = {.code = 0};
		uint64_t off_bytes = 77;

		assert_int_equal(segment_writer_append(writer, &header, payload, &off_bytes, &failure), code);
		assert_int_equal(off_bytes, 77);
		assert_non_null(strstr(failure.message, "segment 000001ab"));
		failure_clear(&failure);
		assert_int_equal(segment_writer_sync(writer, &failure), code);
		assert_non_null(strstr(failure.message, "segment 000001ab"));
	}
}

static void a_failed_sync_is_not_tried_again(void **state)
{
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	struct segment_reader *reader = make_reader(folder_fd(state), 1);
	uint64_t off_bytes = append(writer, 0);
	unsigned int syncs;
	struct failure failure = {.code = 0};

	sync_it(writer);
	(void)append(writer, 1);
	faults.sync_error = EIO;
	assert_int_equal(segment_writer_sync(writer, &failure), -EIO);
	assert_non_null(strstr(failure.message, "sync segments/" SEGMENT_PATH));
	syncs = faults.fdatasync_count;
	assert_failed_for_good(writer, -EIO);
	assert_int_equal(faults.fdatasync_count, syncs);
	assert_record(reader, off_bytes, 0, payload_bytes_of(0)); /* what was acknowledged is still good */
	segment_reader_free(reader);
	segment_writer_close(writer);
}

static void a_full_disk_is_said_and_sticks(void **state)
{
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	struct failure failure = {.code = 0};

	(void)append(writer, 1);
	faults.write_error = ENOSPC;
	assert_int_equal(segment_writer_sync(writer, &failure), -ENOSPC);
	assert_string_equal(failure.message,
			    "segment 000001ab: write: No space left on device; make room where the store lies");
	assert_failed_for_good(writer, -ENOSPC);
	segment_writer_close(writer);
	writer = reopen(folder_fd(state), FIRST_BYTES);
	assert_int_equal(append(writer, 2), FIRST_BYTES);
	sync_it(writer);
	segment_writer_close(writer);
}

static void a_failed_write_in_the_middle_sticks(void **state)
{
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	AUTO_FREE uint8_t *payload = calloc(1, RECORD_PLAIN_MOST_BYTES);
	const struct record_header header = header_of(0, RECORD_PLAIN_MOST_BYTES);
	uint64_t off_bytes = 77;

	assert_non_null(payload);
	faults.write_error = EIO;
	assert_int_equal(segment_writer_append(writer, &header, payload, &off_bytes, NULL), -EIO);
	assert_int_equal(off_bytes, 77);
	assert_failed_for_good(writer, -EIO);
	segment_writer_close(writer);
}

/* ---- after a crash ---- */

enum { TORN_BYTES = 150 }; /* payload of the record that is torn: 216 bytes in all */

/* Two records that were committed, and one behind them that was written, but not. */
static struct file_content make_torn(int segments_fd, uint64_t *ret_committed_bytes, uint64_t *ret_torn_off_bytes)
{
	struct segment_writer *writer = create(segments_fd, NUMBER);

	(void)append_bytes(writer, 0, 333);
	(void)append_bytes(writer, 1, 5000);
	sync_it(writer);
	*ret_committed_bytes = segment_writer_bytes(writer);
	*ret_torn_off_bytes = append_bytes(writer, 2, TORN_BYTES);
	sync_it(writer);
	segment_writer_close(writer);
	return slurp(segments_fd);
}

static void assert_recovered(int segments_fd, uint64_t committed_bytes)
{
	struct visited visited;
	struct segment_writer *writer = reopen(segments_fd, committed_bytes);
	struct segment_reader *reader = make_reader(segments_fd, 1);
	uint64_t off_bytes;

	assert_int_equal(file_bytes(segments_fd), committed_bytes);
	off_bytes = append_bytes(writer, 3, 40);
	assert_int_equal(off_bytes, committed_bytes);
	sync_it(writer);
	assert_int_equal(walk(segments_fd, &visited), segment_writer_bytes(writer));
	assert_int_equal(visited.count, 3);
	assert_record(reader, visited.off_bytes[0], 0, 333);
	assert_record(reader, visited.off_bytes[1], 1, 5000);
	assert_record(reader, off_bytes, 3, 40);
	segment_reader_free(reader);
	segment_writer_close(writer);
}

static void a_tail_torn_at_any_byte_is_cut_off(void **state)
{
	AUTO_FREE uint8_t *bytes = NULL;
	uint64_t committed_bytes;
	uint64_t torn_off_bytes;
	struct file_content content = make_torn(folder_fd(state), &committed_bytes, &torn_off_bytes);
	uint64_t torn_end_bytes = torn_off_bytes + record_total_bytes(TORN_BYTES);

	bytes = content.bytes;
	assert_int_equal(torn_off_bytes, committed_bytes);
	for (uint64_t len_bytes = committed_bytes; len_bytes <= torn_end_bytes + 8; len_bytes++) {
		struct visited visited;
		uint64_t valid_bytes;

		spew(folder_fd(state), bytes, (size_t)len_bytes);
		valid_bytes = walk(folder_fd(state), &visited);
		assert_int_equal(valid_bytes, len_bytes < torn_end_bytes ? committed_bytes : torn_end_bytes);
		assert_int_equal(visited.count, len_bytes < torn_end_bytes ? 2 : 3);
		assert_recovered(folder_fd(state), committed_bytes);
	}
}

/* The length is there, the content isn't: zeros or anything else from some byte on. */
static void a_tail_of_garbage_is_cut_off(void **state)
{
	AUTO_FREE uint8_t *bytes = NULL;
	AUTO_FREE uint8_t *torn = NULL;
	uint64_t committed_bytes;
	uint64_t torn_off_bytes;
	struct file_content content = make_torn(folder_fd(state), &committed_bytes, &torn_off_bytes);

	bytes = content.bytes;
	torn = malloc(content.len_bytes);
	assert_non_null(torn);
	for (size_t from = 0; from < RECORD_HEADER_BYTES; from += 3) {
		struct visited visited;

		memcpy(torn, bytes, content.len_bytes);
		for (size_t i = (size_t)torn_off_bytes + from; i < content.len_bytes; i++)
			torn[i] = from % 2 == 0 ? 0 : (uint8_t)mix(i);
		spew(folder_fd(state), torn, content.len_bytes);
		assert_int_equal(walk(folder_fd(state), &visited), committed_bytes);
		assert_int_equal(visited.count, 2);
		assert_recovered(folder_fd(state), committed_bytes);
	}
}

static void a_cut_is_made_durable_before_anything_is_appended(void **state)
{
	AUTO_FREE uint8_t *bytes = NULL;
	uint64_t committed_bytes;
	uint64_t torn_off_bytes;
	struct file_content content = make_torn(folder_fd(state), &committed_bytes, &torn_off_bytes);
	unsigned int syncs = faults.fdatasync_count;

	bytes = content.bytes;
	segment_writer_close(reopen(folder_fd(state), committed_bytes));
	assert_int_equal(faults.fdatasync_count, syncs + 1);
	segment_writer_close(reopen(folder_fd(state), committed_bytes));
	assert_int_equal(faults.fdatasync_count, syncs + 1); /* nothing to cut */
	assert_non_null(bytes);
}

static void a_catalog_without_a_record_leaves_the_header_alone(void **state)
{
	struct segment_writer *writer = create(folder_fd(state), NUMBER);

	(void)append(writer, 0);
	sync_it(writer);
	segment_writer_close(writer);
	writer = reopen(folder_fd(state), SEGMENT_HEADER_BYTES);
	assert_int_equal(file_bytes(folder_fd(state)), FIRST_BYTES);
	assert_int_equal(append(writer, 1), FIRST_BYTES);
	segment_writer_close(writer);
}

/* ---- damage ---- */

static void every_flipped_byte_of_a_record_is_noticed(void **state)
{
	enum { LEN_BYTES = 331, HARMLESS_BYTES = 5 };
	AUTO_FREE uint8_t *bytes = NULL;
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	uint64_t off_bytes = append_bytes(writer, 0, LEN_BYTES);
	uint64_t next_off_bytes = append_bytes(writer, 1, 100);
	struct segment_reader *reader = make_reader(folder_fd(state), 1);
	struct file_content content;

	assert_int_equal(record_total_bytes(LEN_BYTES), RECORD_HEADER_BYTES + LEN_BYTES + HARMLESS_BYTES);
	sync_it(writer);
	segment_writer_close(writer);
	content = slurp(folder_fd(state));
	bytes = content.bytes;
	for (uint64_t at = off_bytes; at < next_off_bytes; at++) {
		bool is_padding = at >= off_bytes + RECORD_HEADER_BYTES + LEN_BYTES;
		struct failure failure = {.code = 0};
		char place[64];
		int result;

		bytes[at] ^= (uint8_t)(1 << at % 8);
		spew(folder_fd(state), bytes, content.len_bytes);
		result = check_record(reader, NUMBER, off_bytes, 0, LEN_BYTES, &failure);
		assert_int_equal(result, is_padding ? 0 : -EBADMSG);
		(void)snprintf(place, sizeof(place), "segment 000001ab at %u: ", (unsigned int)off_bytes);
		if (!is_padding)
			assert_memory_equal(failure.message, place, strlen(place));
		assert_record(reader, next_off_bytes, 1, 100); /* its neighbour is not its keeper */
		bytes[at] ^= (uint8_t)(1 << at % 8);
	}
	segment_reader_free(reader);
}

static void a_truncated_file_is_said_to_be(void **state)
{
	AUTO_FREE uint8_t *bytes = NULL;
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	uint64_t off_bytes = append_bytes(writer, 0, 100);
	struct segment_reader *reader = make_reader(folder_fd(state), 1);
	struct file_content content;

	sync_it(writer);
	segment_writer_close(writer);
	content = slurp(folder_fd(state));
	bytes = content.bytes;
	for (uint64_t len_bytes = off_bytes; len_bytes < off_bytes + RECORD_HEADER_BYTES + 100; len_bytes++) {
		struct failure failure = {.code = 0};

		spew(folder_fd(state), bytes, (size_t)len_bytes);
		assert_int_equal(check_record(reader, NUMBER, off_bytes, 0, 100, &failure), -EBADMSG);
		assert_non_null(strstr(failure.message, len_bytes == off_bytes
								? "the file ends before the record, it was truncated"
								: "the file ends inside the record, it was truncated"));
	}
	segment_reader_free(reader);
}

static void places_that_no_record_can_have_are_refused(void **state)
{
	static uint8_t stored[RECORD_STORED_MOST_BYTES];
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	struct segment_reader *reader = make_reader(folder_fd(state), 1);
	struct record_header header;
	struct failure failure = {.code = 0};
	uint64_t off_bytes = append_bytes(writer, 0, 100);

	sync_it(writer);
	segment_writer_close(writer);
	assert_int_equal(segment_reader_read(reader, NUMBER, off_bytes, 99, &header, stored, &failure), -EBADMSG);
	assert_non_null(strstr(failure.message, "another record"));
	assert_int_equal(segment_reader_read(reader, NUMBER, off_bytes + 1, 100, &header, stored, NULL), -EBADMSG);
	assert_int_equal(segment_reader_read(reader, NUMBER, 0, 100, &header, stored, NULL), -EBADMSG);
	assert_int_equal(segment_reader_read(reader, NUMBER, UINT64_MAX - 7, 100, &header, stored, NULL), -EBADMSG);
	assert_int_equal(segment_reader_read(reader, NUMBER, 1ULL << 62, 100, &header, stored, NULL), -EBADMSG);
	assert_int_equal(segment_reader_read(reader, NUMBER, off_bytes, 0, &header, stored, NULL), -EBADMSG);
	assert_int_equal(segment_reader_read(reader, NUMBER, off_bytes, UINT32_MAX, &header, stored, NULL), -EBADMSG);
	assert_int_equal(segment_reader_header(reader, NUMBER, off_bytes + 8, &header, NULL), -EBADMSG);
	failure_clear(&failure);
	assert_int_equal(segment_reader_read(reader, NUMBER + 1, off_bytes, 100, &header, stored, &failure), -ENOENT);
	assert_non_null(strstr(failure.message, "segment 000001ac: its file segments/ac/000001ac.seg is missing"));
	segment_reader_free(reader);
}

/* ---- walking ---- */

/* A chunk that is full of valid records, behind a header that chance has damaged. */
static void a_walk_never_looks_into_a_payload(void **state)
{
	enum { FORGED_BYTES = 40000, FORGED_TOTAL_BYTES = 128 };
	AUTO_FREE uint8_t *payload = calloc(1, FORGED_BYTES);
	AUTO_FREE uint8_t *bytes = NULL;
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	struct record_header forged = header_of(3, FORGED_TOTAL_BYTES - RECORD_HEADER_BYTES);
	struct record_header header = header_of(1, FORGED_BYTES);
	struct file_content content;
	struct visited visited;
	uint64_t off_bytes;
	uint64_t damaged_off_bytes;

	assert_non_null(payload);
	for (size_t at = 0; at + FORGED_TOTAL_BYTES <= FORGED_BYTES; at += FORGED_TOTAL_BYTES) {
		forged.payload_checksum =
			record_payload_checksum(payload + at + RECORD_HEADER_BYTES, forged.stored_bytes);
		record_header_encode(&forged, payload + at);
	}
	(void)append_bytes(writer, 0, 50);
	assert_int_equal(segment_writer_append(writer, &header, payload, &damaged_off_bytes, NULL), 0);
	off_bytes = append_bytes(writer, 2, 50);
	sync_it(writer);
	segment_writer_close(writer);
	assert_true(off_bytes - damaged_off_bytes > FORGED_BYTES);
	(void)walk(folder_fd(state), &visited);
	assert_int_equal(visited.count, 3);
	content = slurp(folder_fd(state));
	bytes = content.bytes;
	for (size_t at = 0; at < RECORD_HEADER_BYTES; at++) {
		bytes[damaged_off_bytes + at] ^= 0x40;
		spew(folder_fd(state), bytes, content.len_bytes);
		assert_int_equal(walk(folder_fd(state), &visited), damaged_off_bytes);
		assert_int_equal(visited.count, 1);
		bytes[damaged_off_bytes + at] ^= 0x40;
	}
}

static void a_walk_stops_where_zeros_should_be(void **state)
{
	AUTO_FREE uint8_t *bytes = NULL;
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	struct file_content content;
	struct visited visited;
	uint64_t end_bytes;

	end_bytes = append_bytes(writer, 0, 50) + record_total_bytes(50);
	sync_it(writer);
	(void)append_bytes(writer, 1, 50);
	sync_it(writer);
	segment_writer_close(writer);
	content = slurp(folder_fd(state));
	bytes = content.bytes;
	bytes[2 * SEGMENT_BLOCK_BYTES - 1] = 1;
	spew(folder_fd(state), bytes, content.len_bytes);
	assert_int_equal(walk(folder_fd(state), &visited), end_bytes);
	assert_int_equal(visited.count, 1);
	bytes[2 * SEGMENT_BLOCK_BYTES - 1] = 0;
	bytes[SEGMENT_HEADER_BYTES] = 1; /* behind the header nobody looks */
	spew(folder_fd(state), bytes, content.len_bytes);
	assert_int_equal(walk(folder_fd(state), &visited), content.len_bytes);
	assert_int_equal(visited.count, 2);
}

static void a_walk_ends_when_its_visitor_says_so(void **state)
{
	struct segment_writer *writer = create(folder_fd(state), NUMBER);
	struct visited visited = {.stop_after = 2};
	uint64_t valid_bytes = 77;

	for (uint32_t i = 0; i < 3; i++)
		(void)append_bytes(writer, i, 50);
	sync_it(writer);
	segment_writer_close(writer);
	assert_int_equal(segment_walk(folder_fd(state), store_id, NUMBER, visit, &visited, &valid_bytes, NULL), 42);
	assert_int_equal(visited.count, 2);
	assert_int_equal(valid_bytes, 77);
	assert_int_equal(segment_walk(folder_fd(state), store_id, NUMBER + 1, visit, &visited, &valid_bytes, NULL),
			 -ENOENT);
}

/* ---- many threads ---- */

enum { SEGMENTS = 12, RECORDS_EACH = 20, THREADS = 8, READS_EACH = 1500, MOST_OPEN = 3 };

struct crowd {
	struct segment_reader *reader;
	uint64_t off_bytes[SEGMENTS][RECORDS_EACH];
	atomic_uint wrong;
	atomic_uint most_descriptors;
};

static uint32_t crowd_payload_bytes(uint32_t index)
{
	return 1 + (uint32_t)(mix(index) % 3000);
}

static unsigned int count_descriptors(void)
{
	unsigned int count = 0;

	for (int fd = 0; fd < 256; fd++)
		count += fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
	return count;
}

static void *read_at_random(void *opaque)
{
	struct crowd *crowd = opaque;
	uint64_t any = mix((uintptr_t)&any);

	for (unsigned int i = 0; i < READS_EACH; i++) {
		uint32_t number;
		uint32_t index;
		unsigned int descriptors;

		any = mix(any + i);
		number = (uint32_t)(any % SEGMENTS);
		index = (uint32_t)(any >> 32) % RECORDS_EACH;
		if (any >> 60 == 0)
			segment_reader_prefetch(crowd->reader, number, 0, 1 << 20);
		if (check_record(crowd->reader, number, crowd->off_bytes[number][index], index,
				 crowd_payload_bytes(index), NULL) != 0)
			atomic_fetch_add(&crowd->wrong, 1);
		if (i % 64 != 0)
			continue;
		descriptors = count_descriptors();
		if (descriptors > atomic_load(&crowd->most_descriptors))
			atomic_store(&crowd->most_descriptors, descriptors);
	}
	return NULL;
}

static void many_threads_share_a_few_descriptors(void **state)
{
	static struct crowd crowd;
	pthread_t threads[THREADS];
	unsigned int before;

	for (uint32_t number = 0; number < SEGMENTS; number++) {
		struct segment_writer *writer = create(folder_fd(state), number);

		for (uint32_t i = 0; i < RECORDS_EACH; i++)
			crowd.off_bytes[number][i] = append_bytes(writer, i, crowd_payload_bytes(i));
		sync_it(writer);
		segment_writer_close(writer);
	}
	before = count_descriptors();
	crowd.reader = make_reader(folder_fd(state), MOST_OPEN);
	for (size_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_at_random, &crowd), 0);
	for (size_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(atomic_load(&crowd.wrong), 0);
	/* the table's, one for each thread that reads from what was put out, one for each that opens, the folder */
	assert_true(atomic_load(&crowd.most_descriptors) <= before + MOST_OPEN + 2 * THREADS + 1);
	assert_true(count_descriptors() <= before + MOST_OPEN + 1);
	segment_reader_free(crowd.reader);
	assert_int_equal(count_descriptors(), before);
}

static void *create_one(void *opaque)
{
	int segments_fd = *(int *)opaque;
	static atomic_uint next;
	uint32_t number = (atomic_fetch_add(&next, 1) << 8) + 0xcd; /* all in one folder */
	struct segment_writer *writer = NULL;

	if (segment_writer_create(segments_fd, store_id, number, &writer, NULL) != 0)
		return opaque;
	segment_writer_close(writer);
	return NULL;
}

static void a_folder_made_by_two_at_once_is_fine(void **state)
{
	int segments_fd = folder_fd(state);
	pthread_t threads[THREADS];

	faults.synced_count = 16; /* not watched: these threads share nothing */
	for (size_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, create_one, &segments_fd), 0);
	for (size_t i = 0; i < THREADS; i++) {
		void *failed;

		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
	}
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_FOLDER(a_new_one_is_as_documented_and_durable_with_its_name),
		IN_FOLDER(leftovers_without_records_are_taken_over),
		IN_FOLDER(one_appends_at_a_time),
		IN_FOLDER(opening_refuses_what_it_should),
		IN_FOLDER(every_flipped_bit_of_the_segments_header_is_noticed),
		IN_FOLDER(what_is_appended_comes_back),
		IN_FOLDER(short_and_interrupted_transfers_are_no_trouble),
		IN_FOLDER(a_sync_starts_a_new_block_and_needs_something_new),
		IN_FOLDER(durable_blocks_are_never_written_again),
		IN_FOLDER(a_failed_sync_is_not_tried_again),
		IN_FOLDER(a_full_disk_is_said_and_sticks),
		IN_FOLDER(a_failed_write_in_the_middle_sticks),
		IN_FOLDER(a_tail_torn_at_any_byte_is_cut_off),
		IN_FOLDER(a_tail_of_garbage_is_cut_off),
		IN_FOLDER(a_cut_is_made_durable_before_anything_is_appended),
		IN_FOLDER(a_catalog_without_a_record_leaves_the_header_alone),
		IN_FOLDER(every_flipped_byte_of_a_record_is_noticed),
		IN_FOLDER(a_truncated_file_is_said_to_be),
		IN_FOLDER(places_that_no_record_can_have_are_refused),
		IN_FOLDER(a_walk_never_looks_into_a_payload),
		IN_FOLDER(a_walk_stops_where_zeros_should_be),
		IN_FOLDER(a_walk_ends_when_its_visitor_says_so),
		IN_FOLDER(many_threads_share_a_few_descriptors),
		IN_FOLDER(a_folder_made_by_two_at_once_is_fine),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
