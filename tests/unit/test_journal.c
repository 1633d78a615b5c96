/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal by itself: what was appended comes back, and of a torn end, at every byte of it, all that was before.
 */
#include "unit_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "scratch_folder.h"
#include "store/journal.h"

enum { RECORDS = 40, MOST_BYTES = 900 };

static struct scratch_folder scratch;
static const uint8_t owner[JOURNAL_OWNER_BYTES] = "0123456789abcde";

struct expected {
	uint64_t off_bytes, len_bytes;
	bool is_zero;
};
static struct expected records[RECORDS];

struct seen {
	struct journal **journal;
	unsigned count;
};

static uint8_t byte_of(unsigned record, uint64_t at)
{
	return (uint8_t)(record * 31 + at * 7 + 1);
}

static int see(void *opaque, enum journal_kind kind, uint64_t off_bytes, uint64_t len_bytes, struct journal_place place,
	       const void *payload, struct failure *failure)
{
	struct seen *seen = opaque;
	const struct expected *record = &records[seen->count];

	(void)failure;
	assert_true(place.file > 0);
	assert_int_equal(off_bytes, record->off_bytes);
	assert_int_equal(len_bytes, record->len_bytes);
	assert_int_equal(kind, record->is_zero ? JOURNAL_ZERO : JOURNAL_WRITE);
	for (uint64_t i = 0; !record->is_zero && i < len_bytes; i++)
		assert_int_equal(((const uint8_t *)payload)[i], byte_of(seen->count, i));
	seen->count++;
	return 0;
}

static int open_fd(void)
{
	int fd = open(scratch.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static int try_open(int fd, unsigned *ret_count, struct journal **ret_journal, struct failure *failure)
{
	struct seen seen = {.count = 0};
	int result = journal_open(fd, "d", owner, see, &seen, ret_journal, failure);

	*ret_count = seen.count;
	return result;
}

static void append(struct journal *journal, unsigned number)
{
	uint8_t data[MOST_BYTES];
	struct expected *record = &records[number];
	struct journal_place place;
	struct failure failure = {.code = 0};

	*record = (struct expected){.off_bytes = (uint64_t)number * 1000003,
				    .len_bytes = 1 + number * 37u % MOST_BYTES,
				    .is_zero = number % 5 == 3};
	for (uint64_t i = 0; i < record->len_bytes; i++)
		data[i] = byte_of(number, i);
	if (journal_append(journal, record->is_zero ? JOURNAL_ZERO : JOURNAL_WRITE, record->off_bytes,
			   record->len_bytes, record->is_zero ? NULL : data, &place, &failure) != 0)
		fail_msg("%s", failure.message);
	if (!record->is_zero) {
		uint8_t read[MOST_BYTES];

		assert_int_equal(journal_read(journal, place, 0, read, record->len_bytes, NULL), 0);
		assert_memory_equal(read, data, record->len_bytes);
	}
}

static void clear_folder(void)
{
	DIR *folder = opendir(scratch.path);
	struct dirent *entry;

	assert_non_null(folder);
	while ((entry = readdir(folder)) != NULL)
		if (entry->d_name[0] != '.')
			assert_int_equal(unlinkat(dirfd(folder), entry->d_name, 0), 0);
	(void)closedir(folder);
}

/* The newest file, as it is; or as it shall be. */
static char *newest_path(uint64_t number)
{
	char *path = NULL;

	assert_true(asprintf(&path, "%s/%016llx.wj", scratch.path, (unsigned long long)number) > 0);
	return path;
}

static size_t load(const char *path, uint8_t **ret_bytes)
{
	struct stat status;
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0 && fstat(fd, &status) == 0);
	*ret_bytes = malloc((size_t)status.st_size);
	assert_int_equal(read(fd, *ret_bytes, (size_t)status.st_size), status.st_size);
	return (size_t)status.st_size;
}

static void save(const char *path, const uint8_t *bytes, size_t len_bytes)
{
	AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len_bytes), len_bytes);
}

static void records_come_back_in_order_over_several_files(void **state)
{
	AUTO_CLOSE int fd = open_fd();
	struct failure failure = {.code = 0};
	struct journal *journal = NULL;
	unsigned count = 0, done = 0;

	(void)state;
	clear_folder();
	for (int opened = 0; opened < 4; opened++) {
		assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
		assert_int_equal(count, done);
		for (int i = 0; i < 10; i++) {
			append(journal, done++);
			if (i == 5)
				assert_true(journal_roll(journal) > 0);
			if (i % 4 == 0)
				assert_int_equal(journal_sync(journal, &failure), 0);
		}
		journal_close(journal); /* as a kill would leave it */
	}
	assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
	assert_int_equal(count, done);
	assert_int_equal(journal_drop(journal, journal_newest_file(journal), &failure), 0);
	assert_int_equal(journal_bytes(journal), 0);
	journal_close(journal);
	assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
	assert_int_equal(count, 0);
	journal_close(journal);
}

/*
 * Record `last`, the last one, is cut off, or overwritten with zeros, from each of its bytes on, or has a bit changed there; and
 * behind it nothing is replayed later. With `is_synced` all before it is flushed, so that it stands in a block of its own.
 */
static void tear_last_record(unsigned last, bool is_synced)
{
	AUTO_CLOSE int fd = open_fd();
	struct journal *journal = NULL;
	struct failure failure = {.code = 0};
	AUTO_FREE uint8_t *whole = NULL;
	AUTO_FREE char *path = NULL;
	unsigned count = 0;
	size_t len_bytes, end, last_start, payload_bytes;

	clear_folder();
	assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
	for (unsigned i = 0; i < last; i++)
		append(journal, i);
	if (is_synced)
		assert_int_equal(journal_sync(journal, &failure), 0);
	path = newest_path(journal_newest_file(journal));
	last_start = (size_t)journal_bytes(journal);
	assert_true(!is_synced || last_start % 4096 == 0);
	append(journal, last);
	payload_bytes = records[last].is_zero ? 0 : (size_t)records[last].len_bytes;
	end = (size_t)journal_bytes(journal);
	assert_true(end >= last_start + 56 + payload_bytes);
	journal_close(journal);
	len_bytes = load(path, &whole);
	for (size_t cut = last_start; cut <= end; cut += HAS_SANITIZER && cut + 7 <= end ? 7 : 1)
		for (int way = 0; way < 3; way++) {
			AUTO_FREE uint8_t *torn = malloc(len_bytes);
			bool is_whole = cut == end;

			memcpy(torn, whole, len_bytes);
			if (way == 1)
				memset(torn + cut, 0, len_bytes - cut);
			else if (way == 2 && !is_whole)
				torn[cut] ^= 1;
			/* what fills a record up to a multiple of eight means nothing */
			is_whole = is_whole || cut >= last_start + 56 + payload_bytes ||
				   (way == 1 && memcmp(torn, whole, len_bytes) == 0);
			clear_folder();
			save(path, torn, way == 0 ? cut : len_bytes);
			assert_int_equal(journal_examine(fd, "d", owner, &failure), 0);
			assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
			assert_int_equal(count, last + is_whole);
			/* another record in its place, in a file of its own */
			append(journal, count);
			journal_close(journal);
			assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
			assert_int_equal(count, last + is_whole + 1);
			journal_close(journal);
		}
}

static void a_torn_write_loses_nothing_before_it(void **state)
{
	(void)state;
	tear_last_record(5, false);
	tear_last_record(5, true);
}

static void a_torn_zero_loses_nothing_before_it(void **state)
{
	(void)state;
	tear_last_record(8, false);
	tear_last_record(8, true);
}

/* A byte of its file changes, whichever: what is read is what was written, or an error. */
static void what_changes_in_a_file_is_not_read(void **state)
{
	AUTO_CLOSE int fd = open_fd();
	struct journal *journal = NULL;
	struct failure failure = {.code = 0};
	AUTO_FREE char *path = NULL;
	const unsigned number = 9;
	struct journal_place place = {.file = 0};
	unsigned count = 0, refused = 0;

	(void)state;
	clear_folder();
	assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
	for (unsigned i = 0; i < number; i++)
		append(journal, i);
	place = (struct journal_place){.off_bytes = (uint32_t)journal_bytes(journal) + 56};
	append(journal, number);
	place.file = journal_newest_file(journal);
	path = newest_path(place.file);
	AUTO_CLOSE int file = open(path, O_RDWR | O_CLOEXEC);
	for (uint32_t at = place.off_bytes - 56; at < place.off_bytes + records[number].len_bytes; at++) {
		uint8_t byte, changed, read[MOST_BYTES];

		assert_int_equal(pread(file, &byte, 1, at), 1);
		changed = byte ^ 64;
		assert_int_equal(pwrite(file, &changed, 1, at), 1);
		for (uint32_t into = 0; into < 60; into += 59) {
			size_t want = records[number].len_bytes - into * 2;
			int result = journal_read(journal, place, into, read, want, NULL);

			assert_true(result == 0 || result == -EBADMSG);
			refused += result != 0;
			for (size_t i = 0; result == 0 && i < want; i++)
				assert_int_equal(read[i], byte_of(number, into + i));
		}
		assert_int_equal(pwrite(file, &byte, 1, at), 1);
	}
	assert_int_equal(refused, 2 * (56 + records[number].len_bytes));
	journal_close(journal);
}

/* Whatever bit of a flushed record changes, with flushed ones behind it: who examines it says what who opens it does, and changes nothing. */
static void who_examines_says_what_who_opens_does(void **state)
{
	AUTO_CLOSE int fd = open_fd();
	struct journal *journal = NULL;
	struct failure failure = {.code = 0};
	AUTO_FREE uint8_t *whole = NULL;
	AUTO_FREE char *path = NULL;
	unsigned count = 0, damaged = 0;
	size_t len_bytes, first, end;

	(void)state;
	clear_folder();
	assert_int_equal(journal_examine(fd, "d", owner, &failure), 0);
	assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
	first = end = 0;
	for (unsigned i = 0; i < 6; i++) {
		if (i == 2)
			first = (size_t)journal_bytes(journal);
		append(journal, i);
		if (i == 2)
			end = (size_t)journal_bytes(journal);
		assert_int_equal(journal_sync(journal, &failure), 0);
	}
	path = newest_path(journal_newest_file(journal));
	assert_int_equal(journal_examine(fd, "d", owner, &failure), 0); /* while it is open */
	journal_close(journal);
	len_bytes = load(path, &whole);
	for (size_t at = first; at < end; at++) {
		AUTO_FREE uint8_t *after = NULL;
		struct failure examined = {.code = 0}, opened = {.code = 0};
		int result;

		whole[at] ^= 16;
		save(path, whole, len_bytes);
		result = journal_examine(fd, "d", owner, &examined);
		assert_int_equal(load(path, &after), len_bytes);
		assert_memory_equal(after, whole, len_bytes);
		assert_int_equal(try_open(fd, &count, &journal, &opened), result);
		if (result == 0) {
			journal_close(journal); /* what fills the record up means nothing */
		} else {
			assert_int_equal(result, -EBADMSG);
			assert_string_equal(examined.message, opened.message);
			assert_non_null(strstr(examined.message, "journal/30313233343536373839616263646500"));
			damaged++;
		}
		failure_clear(&examined);
		failure_clear(&opened);
		whole[at] ^= 16;
	}
	assert_int_equal(damaged, 56 + records[2].len_bytes);
}

struct appender {
	struct journal *journal;
	_Atomic bool stop;
	_Atomic unsigned appended;
};

static void *keep_appending(void *opaque)
{
	struct appender *appender = opaque;
	struct journal_place place;
	uint8_t data[MOST_BYTES] = {1, 2, 3};
	uint64_t rolled = 0;

	for (unsigned i = 0; !atomic_load(&appender->stop); i++) {
		int result = journal_append(appender->journal, JOURNAL_WRITE, i, 1 + i % MOST_BYTES, data, &place, NULL);

		if (result == 0 && i % 3 == 0)
			result = journal_sync(appender->journal, NULL);
		if (result == 0 && i % 50 == 49) {
			if (rolled != 0)
				result = journal_drop(appender->journal, rolled, NULL);
			rolled = journal_roll(appender->journal);
		}
		if (result < 0)
			return opaque;
		atomic_fetch_add(&appender->appended, 1);
	}
	return NULL;
}

static void a_journal_that_is_appended_to_is_examined(void **state)
{
	AUTO_CLOSE int fd = open_fd();
	struct appender appender = {.stop = false};
	struct failure failure = {.code = 0};
	unsigned count = 0;
	pthread_t thread;
	void *failed;

	(void)state;
	clear_folder();
	assert_int_equal(try_open(fd, &count, &appender.journal, &failure), 0);
	assert_int_equal(pthread_create(&thread, NULL, keep_appending, &appender), 0);
	for (unsigned i = 0; i < 300 || atomic_load(&appender.appended) < 500; i++)
		if (journal_examine(fd, "d", owner, &failure) != 0)
			fail_msg("time %u: %s", i, failure.message);
	atomic_store(&appender.stop, true);
	assert_int_equal(pthread_join(thread, &failed), 0);
	assert_null(failed);
	journal_close(appender.journal);
}

static void files_of_another_disk_or_in_pieces_are_refused(void **state)
{
	AUTO_CLOSE int fd = open_fd();
	struct journal *journal = NULL;
	struct failure failure = {.code = 0};
	AUTO_FREE uint8_t *whole = NULL;
	AUTO_FREE char *path = NULL;
	AUTO_FREE char *second = NULL;
	struct seen seen = {.count = 0};
	const uint8_t other[JOURNAL_OWNER_BYTES] = "another";
	unsigned count = 0;
	size_t len_bytes;

	(void)state;
	clear_folder();
	assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
	for (unsigned i = 0; i < 5; i++)
		append(journal, i);
	path = newest_path(journal_newest_file(journal));
	(void)journal_roll(journal);
	append(journal, 5);
	second = newest_path(journal_newest_file(journal));
	journal_close(journal);

	assert_int_equal(journal_open(fd, "d", other, see, &seen, &journal, &failure), -EBADMSG);
	len_bytes = load(path, &whole);
	whole[4096 + 20] ^= 4; /* the first record: the second file was begun when it was durable */
	save(path, whole, len_bytes);
	assert_int_equal(try_open(fd, &count, &journal, &failure), -EBADMSG);
	whole[4096 + 20] ^= 4;
	whole[30] ^= 1; /* the header */
	save(path, whole, len_bytes);
	assert_int_equal(try_open(fd, &count, &journal, &failure), -EBADMSG);
	whole[30] ^= 1;
	save(path, whole, len_bytes);
	assert_int_equal(truncate(second, 10), 0); /* was being made when the crash came */
	assert_int_equal(try_open(fd, &count, &journal, &failure), 0);
	assert_int_equal(count, 5);
	journal_close(journal);
}

static int make_folder(void **state)
{
	(void)state;
	/* thousands of syncs, none of which is the point here */
	if (access("/dev/shm", W_OK) == 0)
		(void)setenv("TMPDIR", "/dev/shm", 1);
	scratch_folder_make(&scratch);
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
		cmocka_unit_test(records_come_back_in_order_over_several_files),
		cmocka_unit_test(a_torn_write_loses_nothing_before_it),
		cmocka_unit_test(a_torn_zero_loses_nothing_before_it),
		cmocka_unit_test(what_changes_in_a_file_is_not_read),
		cmocka_unit_test(who_examines_says_what_who_opens_does),
		cmocka_unit_test(a_journal_that_is_appended_to_is_examined),
		cmocka_unit_test(files_of_another_disk_or_in_pieces_are_refused),
	};

	return cmocka_run_group_tests_name("journal", tests, make_folder, remove_folder);
}
