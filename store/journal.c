/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A journal is a row of files, 0000000000000001.wj and so on, each
 *
 *     0     file header   FILE_HEADER_BYTES, and zeros: a block of its own
 *     4096  records, one behind the other, each padded with zeros to a multiple of 8
 *           what is behind the last one is zeros, written ahead (see below), or nothing
 *
 *     file header                            record header
 *     0   8  "wherryJ1"                      0   4  "WJr1"
 *     8   16 owner: the disk's id            4   1  kind: 1 write, 2 zero
 *     24  8  number of the file              5   3  zero
 *     32  8  salt, random                    8   8  sequence number
 *     40  8  sequence of its first record    16  8  offset on the disk
 *     48  8  zero                            24  8  length on the disk
 *     56  8  checksum of what is before      32  4  length of the payload: that, or 0
 *                                            36  4  zero
 *                                            40  8  everything up to this sequence number was durable when this was
 * made 48  8  checksum of the header up to here and of the payload
 *
 * All integers are little-endian; checksums are XXH3-64. That of a record's header has the file's salt as its seed, so
 * that no record of another file is taken for one of this; if there is a payload, the result is the seed for its
 * checksum.
 *
 * Replay takes the longest prefix of valid records: sequence numbers without a gap, over all files. Writers append side
 * by side, each into the room it was given, so a crash may leave a gap with whole records behind it. Nothing behind a
 * gap was ever flushed: journal_sync() waits until everything before its point is written. The field at 40 proves it: a
 * record behind a gap that says that the missing one was durable makes it damage, which is an error, and not the end of
 * the journal. What is behind the prefix is cut off before anything is appended.
 *
 * Why it is durable: journal_sync() is one fdatasync() of the newest file. A file is synced when its successor is
 * begun, before a record goes into that, and the folder with it. Growing a file would have each fdatasync() write
 * metadata as well, so zeros are written ahead, AHEAD_BYTES at a time; they also take the room, so that a write that
 * was given its place can't run out of it. Where syncs are rare, metadata costs less than writing everything twice:
 * then room is allocated only, and reads as zeros.
 *
 * Write-back is begun as the file grows, and one writer syncs it when it is nearly full, so that the sync at its end,
 * for which all writers wait, has little left to do. SYNC_FILE_RANGE_WRITE alone takes no write error away from the
 * sync to come (fs/sync.c of the kernel); one that it meets itself counts as one of a write.
 *
 * A durable block is never written again: a power cut in the middle of that can take all of it. So the first record
 * after a call of journal_sync() begins at the next multiple of BLOCK_BYTES, where replay looks for it when none
 * follows the last one at once.
 *
 * Files go oldest first, and the folder is synced after each, so that after a power cut the row has no gap. To replay a
 * file whose content is in chunks already is harmless as long as nothing was written past the journal since: who drops
 * files sees to that (disk.c).
 *
 * Locking: `lock` guards everything but the contents of files. Nothing is written or synced under it, but for what
 * begins a file or writes ahead.
 */
#include "store/journal.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/hash.h"

enum {
	FILE_HEADER_BYTES = 64,
	RECORD_HEADER_BYTES = 56,
	ROLL_BYTES = 64 << 20, /* a new file is begun when one is longer */
	AHEAD_BYTES = 1 << 20,
	ALLOCATED_BYTES = 4 << 20, /* the same where it costs next to nothing */
	SYNCS_MANY = 16,	   /* for one AHEAD_BYTES */
	WRITEBACK_BYTES = 4 << 20, /* write-back is begun at each */
	NEARLY_FULL_BYTES = ROLL_BYTES - (12 << 20),
	IN_FLIGHT_MOST = 256, /* appends at once; more wait */
	NAME_BYTES = 16 + 3 + 1,
	SCAN_BYTES = 4 << 20,
	BLOCK_BYTES = 4096, /* what a power cut may spoil of a block that is being written: all of it */
};
#define FILE_NUMBER_MOST ((uint64_t)1 << 60)

static const char file_magic[8] = "wherryJ1";
static const char record_magic[4] = "WJr1";

struct journal_file {
	uint64_t number;
	int fd;
	uint64_t salt;
	uint32_t tail_bytes;  /* where the next record goes; the end of the last one */
	uint32_t ahead_bytes; /* up to here there are bytes */
};

struct journal {
	int folder_fd; /* borrowed */
	char *name;
	uint8_t owner[JOURNAL_OWNER_BYTES];

	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct journal_file *files; /* oldest first; records go to the last one */
	size_t file_count;
	bool wants_roll;
	uint64_t next_number;
	uint64_t next_sequence;
	uint64_t synced_sequence; /* all below or equal are durable */
	uint64_t wanted_sequence; /* the latest that anybody has called journal_sync() for: its block ends there */
	uint64_t in_flight[IN_FLIGHT_MOST]; /* sequence numbers that are being written; 0: free */
	unsigned in_flight_count;
	bool is_syncing;
	unsigned syncs;		/* since bytes were last written ahead */
	bool cant_allocate;	/* the file system has no fallocate() */
	_Atomic int error;	/* once something has failed for good */
	_Atomic uint64_t bytes; /* in files, for who only looks */
};

/* ------------------------------------------------------------------ names and headers */

static void format_name(char text[NAME_BYTES], uint64_t number)
{
	(void)snprintf(text, NAME_BYTES, "%016" PRIx64 ".wj", number & 0xffffffffffffffffu);
}

static bool parse_name(const char *text, uint64_t *ret_number)
{
	uint64_t number = 0;

	if (strlen(text) != NAME_BYTES - 1 || strcmp(text + 16, ".wj") != 0)
		return false;
	for (int i = 0; i < 16; i++) {
		const char *digits = "0123456789abcdef";
		const char *digit = strchr(digits, text[i]);

		if (digit == NULL)
			return false;
		number = number << 4 | (uint64_t)(digit - digits);
	}
	if (number == 0 || number >= FILE_NUMBER_MOST)
		return false;
	*ret_number = number;
	return true;
}

static int compare_numbers(const void *a, const void *b)
{
	const uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;

	return first < second ? -1 : first > second;
}

/* Ascending. Files of other names are left alone. */
static int list_files(int folder_fd, const char *name, uint64_t **ret_numbers, size_t *ret_count,
		      struct failure *failure)
{
	AUTO_FREE uint64_t *numbers = NULL;
	size_t count = 0;
	int fd = openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *folder = fd < 0 ? NULL : fdopendir(fd);
	int error = 0;

	if (folder == NULL) {
		error = -errno;
		if (fd >= 0)
			(void)close(fd);
		return fail_errno(failure, error, "disk %s: its journal", name);
	}
	while (error == 0) {
		struct dirent *entry;
		uint64_t number;

		errno = 0;
		entry = readdir(folder);
		if (entry == NULL) {
			error = -errno;
			break;
		}
		if (!parse_name(entry->d_name, &number))
			continue;
		uint64_t *grown = reallocarray(numbers, count + 1, sizeof(*grown));
		if (grown == NULL) {
			error = -ENOMEM;
			break;
		}
		numbers = grown;
		numbers[count++] = number;
	}
	(void)closedir(folder);
	if (error < 0)
		return fail_errno(failure, error, "disk %s: its journal", name);
	if (count > 1)
		qsort(numbers, count, sizeof(*numbers), compare_numbers);
	*ret_numbers = take_ptr(numbers);
	*ret_count = count;
	return 0;
}

int journal_is_empty(int folder_fd, bool *ret_is_empty, struct failure *failure)
{
	AUTO_FREE uint64_t *numbers = NULL;
	size_t count = 0;
	int result = list_files(folder_fd, "?", &numbers, &count, failure);

	if (result == 0)
		*ret_is_empty = count == 0;
	return result;
}

/* That of the header, which is under the salt, is the seed for the payload. */
static uint64_t checksum(uint64_t salt, const uint8_t *header, const void *payload, size_t len_bytes)
{
	uint64_t of_header = XXH3_64bits_withSeed(header, RECORD_HEADER_BYTES - 8, salt);

	return len_bytes == 0 ? of_header : XXH3_64bits_withSeed(payload, len_bytes, of_header);
}

struct record {
	enum journal_kind kind;
	uint64_t sequence;
	uint64_t off_bytes;
	uint64_t len_bytes;
	uint32_t payload_bytes;
	uint64_t synced_sequence;
};

static void encode_header(uint8_t header[RECORD_HEADER_BYTES], uint64_t salt, const struct record *record,
			  const void *payload)
{
	memset(header, 0, RECORD_HEADER_BYTES);
	memcpy(header, record_magic, sizeof(record_magic));
	header[4] = (uint8_t)record->kind;
	bytes_put_le64(header + 8, record->sequence);
	bytes_put_le64(header + 16, record->off_bytes);
	bytes_put_le64(header + 24, record->len_bytes);
	bytes_put_le32(header + 32, record->payload_bytes);
	bytes_put_le64(header + 40, record->synced_sequence);
	bytes_put_le64(header + 48, checksum(salt, header, payload, record->payload_bytes));
}

static uint32_t padded(uint32_t bytes)
{
	return (bytes + 7) & ~(uint32_t)7;
}

static uint32_t next_block(uint32_t bytes)
{
	return (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
}

/* True if a whole and valid record begins here; `left_bytes` are there. */
static bool decode_record(const uint8_t *at, size_t left_bytes, uint64_t salt, struct record *ret_record)
{
	struct record record;
	uint64_t end;

	if (left_bytes < RECORD_HEADER_BYTES || memcmp(at, record_magic, sizeof(record_magic)) != 0)
		return false;
	record = (struct record){.kind = (enum journal_kind)at[4],
				 .sequence = bytes_get_le64(at + 8),
				 .off_bytes = bytes_get_le64(at + 16),
				 .len_bytes = bytes_get_le64(at + 24),
				 .payload_bytes = bytes_get_le32(at + 32),
				 .synced_sequence = bytes_get_le64(at + 40)};
	if (record.payload_bytes > JOURNAL_PAYLOAD_MOST_BYTES ||
	    record.payload_bytes > left_bytes - RECORD_HEADER_BYTES ||
	    checksum(salt, at, at + RECORD_HEADER_BYTES, record.payload_bytes) != bytes_get_le64(at + 48))
		return false;
	if (record.kind == JOURNAL_WRITE ? record.payload_bytes != record.len_bytes
					 : record.kind != JOURNAL_ZERO || record.payload_bytes != 0)
		return false;
	if (record.len_bytes == 0 || __builtin_add_overflow(record.off_bytes, record.len_bytes, &end))
		return false;
	*ret_record = record;
	return true;
}

/* ------------------------------------------------------------------ files */

static int fail_file(const struct journal *journal, uint64_t number, int error, const char *what,
		     struct failure *failure)
{
	return fail_errno(failure, error, "disk %s: file %016" PRIx64 ".wj of its journal: %s", journal->name, number,
			  what);
}

static int write_all(int fd, const void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	const uint8_t *at = buffer;

	while (len_bytes > 0) {
		ssize_t written = pwrite(fd, at, len_bytes, (off_t)off_bytes);

		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
			return written < 0 ? -errno : -EIO;
		at += written;
		off_bytes += (uint64_t)written;
		len_bytes -= (size_t)written;
	}
	return 0;
}

static int read_all(int fd, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	uint8_t *at = buffer;

	while (len_bytes > 0) {
		ssize_t got = pread(fd, at, len_bytes, (off_t)off_bytes);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? -errno : -ENODATA;
		at += got;
		off_bytes += (uint64_t)got;
		len_bytes -= (size_t)got;
	}
	return 0;
}

static int reserve_file(struct journal *journal)
{
	struct journal_file *grown = reallocarray(journal->files, journal->file_count + 1, sizeof(*grown));

	if (grown == NULL)
		return -ENOMEM;
	journal->files = grown;
	return 0;
}

static int add_file(struct journal *journal, const struct journal_file *file)
{
	if (reserve_file(journal) < 0)
		return -ENOMEM;
	journal->files[journal->file_count++] = *file;
	return 0;
}

static void count_bytes_locked(struct journal *journal)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < journal->file_count; i++)
		bytes += journal->files[i].tail_bytes;
	journal->bytes = bytes;
}

/* A file of this number, empty but for its header, durable with its name. */
static int make_file(struct journal *journal, uint64_t number, uint64_t first_sequence, struct journal_file *ret_file,
		     struct failure *failure)
{
	uint8_t header[BLOCK_BYTES] = {0}; /* a block of its own: it is not written again when records come */
	uint64_t salt;
	char name[NAME_BYTES];
	int error = hash_random(&salt, sizeof(salt), failure);

	if (error < 0)
		return error;
	memcpy(header, file_magic, sizeof(file_magic));
	memcpy(header + 8, journal->owner, JOURNAL_OWNER_BYTES);
	bytes_put_le64(header + 24, number);
	bytes_put_le64(header + 32, salt);
	bytes_put_le64(header + 40, first_sequence);
	bytes_put_le64(header + 56, XXH3_64bits(header, FILE_HEADER_BYTES - 8));
	format_name(name, number);
	AUTO_CLOSE int fd = openat(journal->folder_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return fail_file(journal, number, -errno, "can't be made", failure);
	error = write_all(fd, header, sizeof(header), 0);
	if (error == 0 && (fdatasync(fd) < 0 || fsync(journal->folder_fd) < 0))
		error = -errno;
	if (error < 0) {
		(void)unlinkat(journal->folder_fd, name, 0); /* it holds nothing */
		return fail_file(journal, number, error, "can't be made", failure);
	}
	*ret_file = (struct journal_file){.number = number,
					  .fd = take_fd(&fd),
					  .salt = salt,
					  .tail_bytes = BLOCK_BYTES,
					  .ahead_bytes = BLOCK_BYTES};
	return 0;
}

/* ------------------------------------------------------------------ opening: replay */

struct replaying {
	struct journal *journal;
	journal_replay *replay;
	void *opaque;
	uint8_t *window; /* SCAN_BYTES */
	bool has_ended;	 /* a gap: what comes later is not of the prefix */
	bool is_only_looking; /* somebody else may have it open */
	struct journal_place damage; /* where it was found */
};

static int open_file(const struct replaying *replaying, uint64_t number, struct journal_file *ret_file, uint64_t *ret_first,
		     bool *ret_is_whole, struct failure *failure)
{
	const struct journal *journal = replaying->journal;
	int flags = replaying->is_only_looking ? O_RDONLY : O_RDWR;
	uint8_t header[FILE_HEADER_BYTES];
	char name[NAME_BYTES];
	struct stat status;
	int error;

	format_name(name, number);
	AUTO_CLOSE int fd = openat(journal->folder_fd, name, flags | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &status) < 0)
		return fail_file(journal, number, -errno, "can't be opened", failure);
	if (!S_ISREG(status.st_mode) || status.st_size > UINT32_MAX)
		return fail_file(journal, number, -EBADMSG, "not a file of a journal", failure);
	error = read_all(fd, header, sizeof(header), 0);
	if (error < 0 && error != -ENODATA)
		return fail_file(journal, number, error, "can't be read", failure);
	*ret_is_whole = error == 0 && memcmp(header, file_magic, sizeof(file_magic)) == 0 &&
			XXH3_64bits(header, FILE_HEADER_BYTES - 8) == bytes_get_le64(header + 56) &&
			bytes_get_le64(header + 24) == number;
	if (*ret_is_whole && memcmp(header + 8, journal->owner, JOURNAL_OWNER_BYTES) != 0)
		return fail(failure, -EBADMSG, "disk %s: file %016" PRIx64 ".wj of its journal belongs to another disk",
			    journal->name, number);
	*ret_first = bytes_get_le64(header + 40);
	*ret_file = (struct journal_file){.number = number,
					  .fd = take_fd(&fd),
					  .salt = bytes_get_le64(header + 32),
					  .tail_bytes = FILE_HEADER_BYTES,
					  .ahead_bytes = (uint32_t)status.st_size};
	return 0;
}

/* Fills the window from `off_bytes` on; how much there is. */
static int fill_window(const struct replaying *replaying, const struct journal_file *file, uint32_t off_bytes,
		       size_t *ret_bytes, struct failure *failure)
{
	size_t bytes = file->ahead_bytes - off_bytes < SCAN_BYTES ? file->ahead_bytes - off_bytes : SCAN_BYTES;
	int error = read_all(file->fd, replaying->window, bytes, off_bytes);

	if (error < 0)
		return fail_file(replaying->journal, file->number, error, "can't be read", failure);
	*ret_bytes = bytes;
	return 0;
}

static int fail_damaged(struct replaying *replaying, uint64_t number, uint32_t off_bytes, struct failure *failure)
{
	const struct journal *journal = replaying->journal;
	char folder[JOURNAL_OWNER_BYTES * 2 + 1];

	replaying->damage = (struct journal_place){.file = number, .off_bytes = off_bytes};
	bytes_to_hex(journal->owner, JOURNAL_OWNER_BYTES, folder);
	return fail(failure, -EBADMSG,
		    "disk %s: its journal is damaged at %u of file %016" PRIx64
		    ".wj, and flushed writes stand behind that; put the file back from a copy, or remove the store's "
		    "folder journal/%s to go on without what is in it",
		    journal->name, off_bytes, number, folder);
}

/* The window, and where in the file it begins. */
struct window_place {
	uint32_t start_bytes;
	size_t len_bytes;
};

/* The record at this offset of the file is in the window, whole if it is whole. */
static int move_window(const struct replaying *replaying, const struct journal_file *file, struct window_place *window,
		       uint32_t at_bytes, struct failure *failure)
{
	uint64_t end = (uint64_t)at_bytes + RECORD_HEADER_BYTES + JOURNAL_PAYLOAD_MOST_BYTES;
	int result;

	if (window->len_bytes > 0 && at_bytes >= window->start_bytes &&
	    (end <= window->start_bytes + window->len_bytes ||
	     window->start_bytes + window->len_bytes == file->ahead_bytes))
		return 0;
	result = fill_window(replaying, file, at_bytes, &window->len_bytes, failure);
	if (result == 0)
		window->start_bytes = at_bytes;
	return result;
}

/* 1: the record that is next in the sequence begins here; 0: it doesn't. */
static int look_at(const struct replaying *replaying, const struct journal_file *file, struct window_place *window,
		   uint32_t at_bytes, struct record *ret_record, struct failure *failure)
{
	int result;

	if (at_bytes >= file->ahead_bytes)
		return 0;
	result = move_window(replaying, file, window, at_bytes, failure);
	if (result < 0)
		return result;
	return decode_record(replaying->window + (at_bytes - window->start_bytes),
			     window->len_bytes - (at_bytes - window->start_bytes), file->salt, ret_record) &&
	       ret_record->sequence == replaying->journal->next_sequence;
}

/* The valid records from the file's start on; sets its tail to the end of the last one. */
static int replay_prefix(const struct replaying *replaying, struct journal_file *file, struct failure *failure)
{
	struct window_place window = {.len_bytes = 0};
	struct record record = {.sequence = 0};
	uint32_t at_bytes = file->tail_bytes;

	for (;;) {
		int result = look_at(replaying, file, &window, at_bytes, &record, failure);

		if (result == 0) { /* it may have been begun behind a sync */
			at_bytes = next_block(at_bytes);
			result = look_at(replaying, file, &window, at_bytes, &record, failure);
		}
		if (result == 1)
			result = replaying->replay(
				replaying->opaque, record.kind, record.off_bytes, record.len_bytes,
				(struct journal_place){.file = file->number,
						       .off_bytes = at_bytes + RECORD_HEADER_BYTES},
				replaying->window + (at_bytes - window.start_bytes) + RECORD_HEADER_BYTES, failure);
		else
			return result;
		if (result < 0)
			return result;
		replaying->journal->next_sequence++;
		at_bytes += padded(RECORD_HEADER_BYTES + record.payload_bytes);
		file->tail_bytes = at_bytes;
	}
}

/* Behind the prefix nothing may say that what is missing was durable. */
static int look_for_flushed(struct replaying *replaying, const struct journal_file *file, struct failure *failure)
{
	const struct journal *journal = replaying->journal;
	uint32_t start = file->tail_bytes;

	while (start < file->ahead_bytes) {
		size_t bytes = 0, whole;
		int result = fill_window(replaying, file, start, &bytes, failure);

		if (result < 0)
			return result;
		whole = start + bytes == file->ahead_bytes ? bytes
							   : bytes - RECORD_HEADER_BYTES - JOURNAL_PAYLOAD_MOST_BYTES;
		for (size_t at = 0; at < whole; at += 8) {
			struct record record;

			if (decode_record(replaying->window + at, bytes - at, file->salt, &record) &&
			    record.synced_sequence >= journal->next_sequence)
				return fail_damaged(replaying, file->number, file->tail_bytes, failure);
		}
		start += (uint32_t)((whole + 7) & ~(size_t)7);
	}
	return 0;
}

static int replay_file(struct replaying *replaying, uint64_t number, bool is_first, struct failure *failure)
{
	struct journal *journal = replaying->journal;
	struct journal_file file = {.fd = -1};
	uint64_t first_sequence = 0;
	bool is_whole = false;
	int result = open_file(replaying, number, &file, &first_sequence, &is_whole, failure);

	if (result < 0)
		return result;
	if (is_whole && is_first)
		journal->next_sequence = first_sequence;
	/* A successor is begun when everything before is durable: a gap in front of it is damage. */
	if (is_whole && (replaying->has_ended || first_sequence != journal->next_sequence))
		result = fail_damaged(replaying, number, 0, failure);
	else if (!is_whole && file.ahead_bytes > BLOCK_BYTES)
		result = fail_damaged(replaying, number, 0,
				      failure); /* nothing goes into a file before its header is durable */
	else if (!is_whole)
		replaying->has_ended = true; /* it was being made */
	if (result == 0 && is_whole)
		result = replay_prefix(replaying, &file, failure);
	if (result == 0 && is_whole)
		result = look_for_flushed(replaying, &file, failure);
	if (result == 0 && is_whole)
		result = add_file(journal, &file) < 0 ? fail_errno(failure, -ENOMEM, "journal") : 0;
	if (result < 0 || !is_whole)
		(void)close(file.fd); /* nothing was written through it */
	return result;
}

/* What is behind the prefix must not be found there by another replay, after records of ours. */
static int cut_off_rest(struct journal *journal, struct failure *failure)
{
	struct journal_file *last;

	if (journal->file_count == 0)
		return 0;
	last = &journal->files[journal->file_count - 1];
	/*
	 * Not within the last block: that would write it again. What is left there is no record, or not the next in the
	 * sequence. What was replayed may be in the page cache only: from here on it counts as durable.
	 */
	if (next_block(last->tail_bytes) < last->ahead_bytes) {
		if (ftruncate(last->fd, next_block(last->tail_bytes)) < 0)
			return fail_file(journal, last->number, -errno, "what a crash left unfinished can't be cut off",
					 failure);
		last->ahead_bytes = next_block(last->tail_bytes);
	}
	for (size_t i = 0; i < journal->file_count; i++)
		if (fdatasync(journal->files[i].fd) < 0)
			return fail_file(journal, journal->files[i].number, -errno, "can't be made durable", failure);
	return 0;
}

/* Files without a valid header are of a crash while they were made. */
static int remove_unfinished(struct journal *journal, uint64_t number, struct failure *failure)
{
	char name[NAME_BYTES];

	format_name(name, number);
	if (unlinkat(journal->folder_fd, name, 0) < 0 || fsync(journal->folder_fd) < 0)
		return fail_file(journal, number, -errno, "can't be removed", failure);
	return 0;
}

static int replay_all(struct journal *journal, journal_replay *replay, void *opaque, struct failure *failure)
{
	AUTO_FREE uint64_t *numbers = NULL;
	AUTO_FREE uint8_t *window = malloc(SCAN_BYTES);
	struct replaying replaying = {.journal = journal, .replay = replay, .opaque = opaque, .window = window};
	size_t count = 0;
	int result = list_files(journal->folder_fd, journal->name, &numbers, &count, failure);

	if (window == NULL)
		return fail_errno(failure, -ENOMEM, "journal");
	for (size_t i = 0; result == 0 && i < count; i++)
		result = replay_file(&replaying, numbers[i], i == 0, failure);
	if (result == 0)
		result = cut_off_rest(journal, failure);
	for (size_t i = journal->file_count; result == 0 && i < count; i++)
		result = remove_unfinished(journal, numbers[i], failure);
	if (result == 0 && count > 0)
		journal->next_number = numbers[count - 1] + 1;
	return result;
}

static int look_only(void *opaque, enum journal_kind kind, uint64_t off_bytes, uint64_t len_bytes, struct journal_place place,
		     const void *payload, struct failure *failure)
{
	(void)opaque, (void)kind, (void)off_bytes, (void)len_bytes, (void)place, (void)payload, (void)failure;
	return 0;
}

/* Once over all files. One that has gone since they were listed was dropped, and with it all before it. */
static int examine_once(struct replaying *replaying, struct failure *failure)
{
	struct journal *journal = replaying->journal;
	AUTO_FREE uint64_t *numbers = NULL;
	size_t count = 0;
	bool is_first = true;
	int result = list_files(journal->folder_fd, journal->name, &numbers, &count, failure);

	for (size_t i = 0; result == 0 && i < count; i++) {
		struct failure cause = {.code = 0};

		result = replay_file(replaying, numbers[i], is_first, &cause);
		is_first = result == -ENOENT;
		if (is_first)
			result = 0;
		else if (result < 0)
			(void)fail_from(failure, &cause);
	}
	return result;
}

static struct journal *new_journal(int folder_fd, const char *name, const uint8_t owner[JOURNAL_OWNER_BYTES])
{
	struct journal *journal = calloc(1, sizeof(*journal));

	if (journal == NULL)
		return NULL;
	(void)pthread_mutex_init(&journal->lock, NULL); /* these don't fail on Linux with default attributes */
	(void)pthread_cond_init(&journal->changed, NULL);
	journal->folder_fd = folder_fd;
	journal->next_number = 1;
	journal->next_sequence = 1;
	journal->wants_roll = true;  /* what was found is never appended to */
	journal->syncs = SYNCS_MANY; /* as long as nothing is known: who writes little syncs often */
	memcpy(journal->owner, owner, JOURNAL_OWNER_BYTES);
	journal->name = strdup(name);
	if (journal->name == NULL) {
		journal_close(journal);
		return NULL;
	}
	return journal;
}

/*
 * Whoever appends goes on meanwhile, and a record that says that an earlier one was durable may have been made after that place was looked
 * at. But then the earlier one is there when it is looked at the next time: what is missing in the same place twice is damaged.
 */
int journal_examine(int folder_fd, const char *name, const uint8_t owner[JOURNAL_OWNER_BYTES], struct failure *failure)
{
	AUTO_FREE uint8_t *window = malloc(SCAN_BYTES);
	struct journal_place before = {.file = 0};

	if (window == NULL)
		return fail_errno(failure, -ENOMEM, "journal");
	for (;;) {
		struct failure cause = {.code = 0};
		struct journal *journal = new_journal(folder_fd, name, owner);
		struct replaying replaying = {
			.journal = journal, .replay = look_only, .window = window, .is_only_looking = true};
		int result = journal == NULL ? fail_errno(&cause, -ENOMEM, "journal") :
					       examine_once(&replaying, &cause);

		journal_close(journal);
		if (result == 0)
			return 0;
		if (result != -EBADMSG || replaying.damage.file == 0 ||
		    (replaying.damage.file == before.file && replaying.damage.off_bytes == before.off_bytes))
			return fail_from(failure, &cause);
		before = replaying.damage;
	}
}

int journal_open(int folder_fd, const char *name, const uint8_t owner[JOURNAL_OWNER_BYTES], journal_replay *replay,
		 void *opaque, struct journal **ret_journal, struct failure *failure)
{
	struct journal *journal = new_journal(folder_fd, name, owner);
	int result = journal == NULL ? fail_errno(failure, -ENOMEM, "journal") :
				       replay_all(journal, replay, opaque, failure);

	if (result < 0) {
		journal_close(journal);
		return result;
	}
	journal->synced_sequence = journal->next_sequence - 1;
	count_bytes_locked(journal);
	*ret_journal = journal;
	return 0;
}

void journal_close(struct journal *journal)
{
	if (journal == NULL)
		return;
	for (size_t i = 0; i < journal->file_count; i++)
		(void)close(journal->files[i].fd); /* what must be durable was synced */
	free(journal->files);
	free(journal->name);
	(void)pthread_cond_destroy(&journal->changed);
	(void)pthread_mutex_destroy(&journal->lock);
	free(journal);
}

/* ------------------------------------------------------------------ appending */

/* -EIO from now on, whatever it was: nobody knows any more what is on the disk. */
static int fail_for_good_locked(struct journal *journal)
{
	if (journal->error == 0)
		journal->error = -EIO;
	(void)pthread_cond_broadcast(&journal->changed);
	return journal->error;
}

static int check_error_locked(const struct journal *journal, struct failure *failure)
{
	if (journal->error == 0)
		return 0;
	return fail(failure, journal->error,
		    "disk %s: an earlier write or flush of its journal failed; detach it and attach it again: "
		    "everything flushed before is there",
		    journal->name);
}

static struct journal_file *newest_locked(struct journal *journal)
{
	return journal->file_count == 0 ? NULL : &journal->files[journal->file_count - 1];
}

static int begin_file_locked(struct journal *journal, struct failure *failure)
{
	struct journal_file *newest = newest_locked(journal);
	struct journal_file file;
	int result;

	/* everything before is written; it must be durable, so that no gap is in front of the new one */
	assert(journal->in_flight_count == 0);
	if (newest != NULL && fdatasync(newest->fd) < 0) {
		(void)fail_file(journal, newest->number, -errno, "can't be made durable", failure);
		return fail_for_good_locked(journal);
	}
	journal->synced_sequence = journal->next_sequence - 1;
	if (reserve_file(journal) < 0)
		return fail_errno(failure, -ENOMEM, "journal");
	result = make_file(journal, journal->next_number, journal->next_sequence, &file, failure);
	if (result < 0)
		return result;
	journal->next_number++;
	journal->files[journal->file_count++] = file;
	count_bytes_locked(journal);
	journal->wants_roll = false;
	return 0;
}

/* False where zeros are better, or there is no room for so much: writing them finds out. */
static bool allocate_ahead_locked(struct journal *journal, struct journal_file *file)
{
	bool are_syncs_rare = journal->syncs < SYNCS_MANY;

	journal->syncs = 0;
	if (!are_syncs_rare || journal->cant_allocate)
		return false;
	if (fallocate(file->fd, 0, file->ahead_bytes, ALLOCATED_BYTES) < 0) {
		journal->cant_allocate = errno == EOPNOTSUPP || errno == ENOSYS;
		return false;
	}
	file->ahead_bytes += ALLOCATED_BYTES;
	return true;
}

static int write_ahead_locked(struct journal *journal, struct journal_file *file, uint32_t end_bytes,
			      struct failure *failure)
{
	static const uint8_t zeros[64 << 10];

	while (file->ahead_bytes < end_bytes && allocate_ahead_locked(journal, file))
		;
	while (file->ahead_bytes < end_bytes) {
		uint32_t until = file->ahead_bytes + AHEAD_BYTES;

		while (file->ahead_bytes < until) {
			uint32_t piece = until - file->ahead_bytes < sizeof(zeros) ? until - file->ahead_bytes
										   : (uint32_t)sizeof(zeros);
			int error = write_all(file->fd, zeros, piece, file->ahead_bytes);

			if (error < 0)
				return fail_file(journal, file->number, error, "can't grow", failure);
			file->ahead_bytes += piece;
		}
	}
	return 0;
}

/* A place for the record, which the caller must then fill. */
static int reserve_locked(struct journal *journal, uint32_t bytes, struct journal_file *ret_file,
			  uint64_t *ret_sequence, uint64_t *ret_synced, unsigned *ret_slot, struct failure *failure)
{
	struct journal_file *file;
	int result = 0;

	for (;;) {
		result = check_error_locked(journal, failure);
		if (result < 0)
			return result;
		file = newest_locked(journal);
		if (file != NULL && !journal->wants_roll && file->tail_bytes < ROLL_BYTES) {
			if (journal->in_flight_count < IN_FLIGHT_MOST)
				break;
		} else if (journal->in_flight_count == 0 &&
			   !journal->is_syncing) { /* the kernel tells an error to one sync only */
			result = begin_file_locked(journal, failure);
			if (result < 0)
				return result;
			continue;
		}
		(void)pthread_cond_wait(&journal->changed,
					&journal->lock); /* it may be another's file afterwards: look again */
	}
	result = write_ahead_locked(journal, file, file->tail_bytes + bytes, failure);
	if (result < 0)
		return result;
	*ret_file = *file;
	*ret_sequence = journal->next_sequence++;
	*ret_synced = journal->synced_sequence;
	file->tail_bytes += bytes;
	journal->bytes += bytes;
	for (*ret_slot = 0; journal->in_flight[*ret_slot] != 0;)
		++*ret_slot;
	journal->in_flight[*ret_slot] = *ret_sequence;
	journal->in_flight_count++;
	return 0;
}

/* `file` is as it was before this record of so many bytes, which may have others in front of it that aren't written
 * yet. */
static int begin_write_back(const struct journal_file *file, uint32_t bytes)
{
	uint32_t end_bytes = (file->tail_bytes + bytes) / WRITEBACK_BYTES * WRITEBACK_BYTES;

	if (end_bytes <= file->tail_bytes)
		return 0;
	if (sync_file_range(file->fd, end_bytes - WRITEBACK_BYTES, WRITEBACK_BYTES, SYNC_FILE_RANGE_WRITE) < 0 &&
	    errno != ENOSYS && errno != EINVAL && errno != EOPNOTSUPP)
		return -errno;
	return 0;
}

int journal_append(struct journal *journal, enum journal_kind kind, uint64_t off_bytes, uint64_t len_bytes,
		   const void *payload, struct journal_place *ret_place, struct failure *failure)
{
	static const uint8_t padding[8];
	uint8_t header[RECORD_HEADER_BYTES];
	struct record record = {.kind = kind, .off_bytes = off_bytes, .len_bytes = len_bytes};
	struct journal_file file = {.fd = -1};
	uint32_t bytes;
	unsigned slot = 0;
	int error;

	assert(len_bytes > 0 && (kind == JOURNAL_ZERO || len_bytes <= JOURNAL_PAYLOAD_MOST_BYTES));
	record.payload_bytes = kind == JOURNAL_WRITE ? (uint32_t)len_bytes : 0;
	bytes = padded(RECORD_HEADER_BYTES + record.payload_bytes);
	{
		WITH_LOCK(&journal->lock);
		error = reserve_locked(journal, bytes, &file, &record.sequence, &record.synced_sequence, &slot,
				       failure);
	}
	if (error < 0)
		return error;
	encode_header(header, file.salt, &record, payload);
	{
		struct iovec parts[] = {{.iov_base = header, .iov_len = RECORD_HEADER_BYTES},
					{.iov_base = (void *)(uintptr_t)payload, .iov_len = record.payload_bytes},
					{.iov_base = (void *)(uintptr_t)padding,
					 .iov_len = bytes - RECORD_HEADER_BYTES - record.payload_bytes}};
		ssize_t written = pwritev(file.fd, parts, 3, file.tail_bytes);

		if (written != (ssize_t)bytes) { /* a signal, or an error: piece by piece says which */
			error = write_all(file.fd, header, RECORD_HEADER_BYTES, file.tail_bytes);
			if (error == 0)
				error = write_all(file.fd, payload, record.payload_bytes,
						  file.tail_bytes + RECORD_HEADER_BYTES);
		}
	}
	if (error == 0)
		error = begin_write_back(&file, bytes);
	{
		WITH_LOCK(&journal->lock);
		journal->in_flight[slot] = 0;
		journal->in_flight_count--;
		if (error < 0) {
			(void)fail_file(journal, file.number, error, "can't be written", failure);
			return fail_for_good_locked(journal);
		}
		(void)pthread_cond_broadcast(&journal->changed);
	}
	if (file.tail_bytes < NEARLY_FULL_BYTES && file.tail_bytes + bytes >= NEARLY_FULL_BYTES)
		error = journal_sync(journal, failure);
	if (error < 0)
		return error;
	*ret_place = (struct journal_place){.file = file.number, .off_bytes = file.tail_bytes + RECORD_HEADER_BYTES};
	return 0;
}

/* ------------------------------------------------------------------ making durable */

static uint64_t first_in_flight_locked(const struct journal *journal)
{
	uint64_t first = UINT64_MAX;

	for (unsigned i = 0; journal->in_flight_count > 0 && i < IN_FLIGHT_MOST; i++)
		if (journal->in_flight[i] != 0 && journal->in_flight[i] < first)
			first = journal->in_flight[i];
	return first;
}

int journal_sync(struct journal *journal, struct failure *failure)
{
	uint64_t target, covered;
	int fd, result;

	(void)pthread_mutex_lock(&journal->lock);
	target = journal->next_sequence - 1;
	if (journal->wanted_sequence < target && newest_locked(journal) != NULL) {
		/* what is appended from here on goes to a block of its own */
		newest_locked(journal)->tail_bytes = next_block(newest_locked(journal)->tail_bytes);
		count_bytes_locked(journal);
		journal->wanted_sequence = target;
	}
	for (;;) {
		result = check_error_locked(journal, failure);
		if (result < 0 || journal->synced_sequence >= target) {
			(void)pthread_mutex_unlock(&journal->lock);
			return result;
		}
		if (!journal->is_syncing && first_in_flight_locked(journal) > target)
			break;
		(void)pthread_cond_wait(&journal->changed, &journal->lock);
	}
	journal->is_syncing = true;
	journal->syncs++;
	/* what others wait for meanwhile too, if it is written by now */
	covered = first_in_flight_locked(journal) > journal->wanted_sequence ? journal->wanted_sequence : target;
	/* earlier files were synced when this one was begun; it can't be dropped: drop waits for us */
	fd = newest_locked(journal)->fd;
	(void)pthread_mutex_unlock(&journal->lock);

	result = fdatasync(fd) < 0 ? -errno : 0;

	(void)pthread_mutex_lock(&journal->lock);
	journal->is_syncing = false;
	if (result < 0) {
		(void)fail_errno(failure, result, "disk %s: its journal can't be made durable", journal->name);
		result = fail_for_good_locked(journal);
	} else if (journal->error != 0) {
		result = check_error_locked(journal, failure);
	} else if (journal->synced_sequence < covered) {
		journal->synced_sequence = covered;
	}
	(void)pthread_cond_broadcast(&journal->changed);
	(void)pthread_mutex_unlock(&journal->lock);
	return result;
}

/* ------------------------------------------------------------------ reading, rolling, dropping */

/* Of a record all or nothing is right, so all of it is read. */
static int read_checked(int fd, uint64_t salt, uint32_t off_bytes, uint32_t into_bytes, void *buffer, size_t len_bytes)
{
	AUTO_FREE uint8_t *whole = NULL;
	uint8_t header[RECORD_HEADER_BYTES] = {0};
	uint8_t *payload = buffer;
	uint32_t payload_bytes;
	int error = read_all(fd, header, sizeof(header), off_bytes - RECORD_HEADER_BYTES);

	payload_bytes = bytes_get_le32(header + 32);
	if (error == 0 && (payload_bytes > JOURNAL_PAYLOAD_MOST_BYTES || into_bytes > payload_bytes ||
			   len_bytes > payload_bytes - into_bytes))
		error = -EBADMSG;
	if (error == 0 && len_bytes != payload_bytes)
		payload = whole = malloc(payload_bytes);
	if (error == 0 && payload == NULL)
		error = -ENOMEM;
	if (error == 0)
		error = read_all(fd, payload, payload_bytes, off_bytes);
	if (error == 0 && checksum(salt, header, payload, payload_bytes) != bytes_get_le64(header + 48))
		error = -EBADMSG;
	if (error == 0 && whole != NULL)
		memcpy(buffer, whole + into_bytes, len_bytes);
	return error == -ENODATA ? -EBADMSG : error;
}

int journal_read(struct journal *journal, struct journal_place place, uint32_t into_bytes, void *buffer,
		 size_t len_bytes, struct failure *failure)
{
	uint64_t salt = 0;
	int fd = -1;
	int error;

	{
		WITH_LOCK(&journal->lock);
		for (size_t i = journal->file_count; i > 0 && fd < 0; i--)
			if (journal->files[i - 1].number == place.file) {
				fd = journal->files[i - 1].fd;
				salt = journal->files[i - 1].salt;
			}
	}
	assert(fd >= 0); /* the caller keeps it from being dropped */
	error = read_checked(fd, salt, place.off_bytes, into_bytes, buffer, len_bytes);
	if (error == -EBADMSG)
		return fail(failure, error, "disk %s: its journal is damaged, file %016" PRIx64 ".wj at %" PRIu32,
			    journal->name, place.file, place.off_bytes);
	return error < 0 ? fail_file(journal, place.file, error, "can't be read", failure) : 0;
}

uint64_t journal_roll(struct journal *journal)
{
	WITH_LOCK(&journal->lock);
	struct journal_file *newest = newest_locked(journal);

	journal->wants_roll = true; /* also when nothing is in it: nobody may append to what will be dropped */
	return newest == NULL ? 0 : newest->number;
}

int journal_drop(struct journal *journal, uint64_t file, struct failure *failure)
{
	WITH_LOCK(&journal->lock);

	while (journal->is_syncing)
		(void)pthread_cond_wait(&journal->changed, &journal->lock);
	while (journal->file_count > 0 && journal->files[0].number <= file) {
		char name[NAME_BYTES];

		format_name(name, journal->files[0].number);
		if (unlinkat(journal->folder_fd, name, 0) < 0 && errno != ENOENT)
			return fail_file(journal, journal->files[0].number, -errno, "can't be removed", failure);
		if (fsync(journal->folder_fd) < 0) { /* another one might succeed, and prove nothing */
			(void)fail_file(journal, journal->files[0].number, -errno, "its removal can't be made durable",
					failure);
			return fail_for_good_locked(journal);
		}
		(void)close(journal->files[0].fd);
		memmove(journal->files, journal->files + 1, --journal->file_count * sizeof(*journal->files));
		count_bytes_locked(journal);
	}
	return 0;
}

uint64_t journal_bytes(struct journal *journal)
{
	return journal->bytes;
}

uint64_t journal_oldest_file(struct journal *journal)
{
	WITH_LOCK(&journal->lock);

	return journal->file_count == 0 ? 0 : journal->files[0].number;
}

uint64_t journal_newest_file(struct journal *journal)
{
	WITH_LOCK(&journal->lock);

	return journal->file_count == 0 ? 0 : journal->files[journal->file_count - 1].number;
}

int journal_check(struct journal *journal, struct failure *failure)
{
	if (journal->error == 0)
		return 0;
	WITH_LOCK(&journal->lock);
	return check_error_locked(journal, failure);
}
