/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading records by their place, on many threads, through a bounded table of open descriptors.
 *
 * A store of 100 TiB has more than a million segments, a process some thousand descriptors. Opening a file for each
 * record would cost about as much as reading it. So the last `most_open` segments used stay open.
 *
 * An open segment is counted: one for the table, one for each thread that is reading from it. Whoever takes the count
 * to zero closes the descriptor. So a segment that is put out of the table while somebody reads from it stays open for
 * that reader and no longer, and no read can ever meet a descriptor that was closed, and opened again as something
 * else. There are at most most_open + (threads reading) descriptors.
 *
 * The lock is held for a search of the table, never for a system call, but for the close of what was put out, and an
 * fstat() where a file was opened anyway. Two
 * threads that miss the same segment at once both open it; the second one to come back uses the first one's and closes
 * its own. The search is a plain scan: a few hundred numbers side by side take less than a tenth of the time of a read.
 *
 * One preadv() fetches header and payload: what the catalog says about the length is believed just far enough to size
 * the read, and compared with what the record says.
 */
#include "store/segment.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "store/segment_file.h"

struct open_segment {
	int fd;
	uint32_t number;
	unsigned int users; /* under the lock: the table's and every reader's */
};

struct slot {
	uint32_t number;
	uint64_t last_used;	      /* value of the reader's clock */
	struct open_segment *segment; /* NULL: free */
};

struct segment_reader {
	int segments_fd; /* our own duplicate */
	uint8_t store_id[STORE_ID_BYTES];
	pthread_mutex_t lock; /* all below */
	uint64_t clock;	      /* counts uses */
	unsigned int most_open;
	struct slot *slots; /* most_open of them */
};

int segment_reader_new(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], unsigned most_open,
		       struct segment_reader **ret_reader, struct failure *failure)
{
	AUTO_FREE struct segment_reader *reader = calloc(1, sizeof(*reader));
	AUTO_FREE struct slot *slots = calloc(most_open, sizeof(*slots));
	int error;

	assert(most_open > 0);
	if (reader == NULL || slots == NULL)
		return fail_errno(failure, -ENOMEM, "reading of segments");
	reader->segments_fd = fcntl(segments_fd, F_DUPFD_CLOEXEC, 0);
	if (reader->segments_fd < 0)
		return fail_errno(failure, -errno, "folder of segments");
	error = pthread_mutex_init(&reader->lock, NULL);
	if (error != 0) {
		(void)close(reader->segments_fd); /* a folder: nothing to lose */
		return fail_errno(failure, -error, "reading of segments");
	}
	memcpy(reader->store_id, store_id, STORE_ID_BYTES);
	reader->most_open = most_open;
	reader->slots = take_ptr(slots);
	*ret_reader = take_ptr(reader);
	return 0;
}

/* ---- the table ---- */

static void drop_user_locked(struct open_segment *segment)
{
	assert(segment->users > 0);
	if (--segment->users > 0)
		return;
	(void)close(segment->fd); /* only ever read from */
	free(segment);
}

void segment_reader_free(struct segment_reader *reader)
{
	if (reader == NULL)
		return;
	for (unsigned int i = 0; i < reader->most_open; i++)
		if (reader->slots[i].segment != NULL)
			drop_user_locked(reader->slots[i].segment);
	(void)pthread_mutex_destroy(&reader->lock); /* nobody uses the reader any more */
	(void)close(reader->segments_fd);
	free(reader->slots);
	free(reader);
}

static struct open_segment *find_locked(struct segment_reader *reader, uint32_t number)
{
	for (unsigned int i = 0; i < reader->most_open; i++) {
		struct slot *slot = &reader->slots[i];

		if (slot->number != number || slot->segment == NULL)
			continue;
		slot->last_used = ++reader->clock;
		slot->segment->users++;
		return slot->segment;
	}
	return NULL;
}

/* Takes the caller's segment into the table, in place of what was not used for longest. */
static void insert_locked(struct segment_reader *reader, struct open_segment *segment)
{
	struct slot *chosen = &reader->slots[0];

	for (unsigned int i = 0; i < reader->most_open && chosen->segment != NULL; i++) {
		struct slot *slot = &reader->slots[i];

		if (slot->segment == NULL || slot->last_used < chosen->last_used)
			chosen = slot;
	}
	if (chosen->segment != NULL)
		drop_user_locked(chosen->segment);
	segment->users++;
	*chosen = (struct slot){.number = segment->number, .last_used = ++reader->clock, .segment = segment};
}

void segment_reader_forget(struct segment_reader *reader, uint32_t number)
{
	WITH_LOCK(&reader->lock);

	for (unsigned int i = 0; i < reader->most_open; i++) {
		struct slot *slot = &reader->slots[i];

		if (slot->segment != NULL && slot->number == number) {
			drop_user_locked(slot->segment);
			*slot = (struct slot){.segment = NULL};
		}
	}
}

/*
 * Another process may have removed segments that are open here, and their room isn't free before they're closed. One
 * slot is looked at for each segment that is opened, so that all are in turn.
 */
static void close_one_if_removed_locked(struct segment_reader *reader)
{
	struct slot *slot = &reader->slots[reader->clock % reader->most_open];
	struct stat status;

	if (slot->segment == NULL || fstat(slot->segment->fd, &status) != 0 || status.st_nlink > 0)
		return;
	drop_user_locked(slot->segment);
	*slot = (struct slot){.segment = NULL};
}

static int open_segment_file(struct segment_reader *reader, uint32_t number, struct open_segment **ret_segment,
			     struct failure *failure)
{
	AUTO_FREE struct open_segment *segment = calloc(1, sizeof(*segment));
	AUTO_CLOSE int fd = -1;
	int result;

	if (segment == NULL)
		return fail_errno(failure, -ENOMEM, "segment %08" PRIx32, number);
	result = segment_file_open(reader->segments_fd, number, O_RDONLY, &fd, failure);
	if (result == 0)
		result = segment_file_check_header(fd, reader->store_id, number, failure);
	if (result < 0)
		return result;
	segment->number = number;
	segment->users = 1;
	segment->fd = take_fd(&fd);
	*ret_segment = take_ptr(segment);
	return 0;
}

/* The caller gives it back with release_segment(). */
static int acquire_segment(struct segment_reader *reader, uint32_t number, struct open_segment **ret_segment,
			   struct failure *failure)
{
	struct open_segment *opened = NULL;
	int result;

	{
		WITH_LOCK(&reader->lock);
		*ret_segment = find_locked(reader, number);
	}
	if (*ret_segment != NULL)
		return 0;
	result = open_segment_file(reader, number, &opened, failure);
	if (result < 0)
		return result;
	{
		WITH_LOCK(&reader->lock);
		*ret_segment = find_locked(reader, number);
		if (*ret_segment != NULL) {
			drop_user_locked(opened); /* somebody else was faster */
		} else {
			close_one_if_removed_locked(reader);
			insert_locked(reader, opened);
			*ret_segment = opened;
		}
	}
	return 0;
}

static void release_segment(struct segment_reader *reader, struct open_segment *segment)
{
	WITH_LOCK(&reader->lock);
	drop_user_locked(segment);
}

/* ---- reading ---- */

/* What the catalog says about a record's place, before anything is done with it. */
static int check_place(uint32_t number, uint64_t off_bytes, uint32_t stored_bytes, struct failure *failure)
{
	if (off_bytes < SEGMENT_HEADER_BYTES || off_bytes % RECORD_ALIGN_BYTES != 0 ||
	    off_bytes > INT64_MAX - RECORD_HEADER_BYTES - RECORD_STORED_MOST_BYTES)
		return fail(failure, -EBADMSG, "segment %08" PRIx32 " at %" PRIu64 ": no record can be there", number,
			    off_bytes);
	if (stored_bytes == 0 || stored_bytes > RECORD_STORED_MOST_BYTES)
		return fail(failure, -EBADMSG,
			    "segment %08" PRIx32 " at %" PRIu64 ": no record has a payload of %" PRIu32 " bytes",
			    number, off_bytes, stored_bytes);
	return 0;
}

/* How many bytes there were: less than asked for at the end of the file only. Or a negative errno. */
static ssize_t read_two(int fd, uint8_t header[RECORD_HEADER_BYTES], void *stored, size_t stored_bytes,
			uint64_t off_bytes)
{
	struct iovec parts[2] = {
		{.iov_base = header, .iov_len = RECORD_HEADER_BYTES},
		{.iov_base = stored, .iov_len = stored_bytes},
	};
	ssize_t got_bytes;
	ssize_t payload_bytes;

	do
		got_bytes = preadv(fd, parts, stored_bytes > 0 ? 2 : 1, (off_t)off_bytes);
	while (got_bytes < 0 && errno == EINTR);
	if (got_bytes < 0)
		return -errno;
	if (got_bytes == 0 || (size_t)got_bytes == RECORD_HEADER_BYTES + stored_bytes)
		return got_bytes;
	/* Cut short by the end of the file or, rarely, by a signal: once more, until it is certain which. */
	got_bytes = segment_file_read(fd, header, RECORD_HEADER_BYTES, off_bytes);
	if (got_bytes < RECORD_HEADER_BYTES)
		return got_bytes;
	payload_bytes = segment_file_read(fd, stored, stored_bytes, off_bytes + RECORD_HEADER_BYTES);
	return payload_bytes < 0 ? payload_bytes : got_bytes + payload_bytes;
}

static int fetch(struct segment_reader *reader, uint32_t number, uint64_t off_bytes, uint32_t stored_bytes,
		 uint8_t header[RECORD_HEADER_BYTES], void *stored, struct failure *failure)
{
	struct open_segment *segment = NULL;
	ssize_t got_bytes;
	int result = acquire_segment(reader, number, &segment, failure);

	if (result < 0)
		return result;
	got_bytes = read_two(segment->fd, header, stored, stored_bytes, off_bytes);
	release_segment(reader, segment);
	if (got_bytes < 0)
		return fail_errno(failure, (int)got_bytes, "segment %08" PRIx32 " at %" PRIu64 ": read", number,
				  off_bytes);
	if ((uint64_t)got_bytes < (uint64_t)RECORD_HEADER_BYTES + stored_bytes)
		return fail(failure, -EBADMSG,
			    "segment %08" PRIx32 " at %" PRIu64 ": the file ends %s, it was truncated", number,
			    off_bytes, got_bytes == 0 ? "before the record" : "inside the record");
	return 0;
}

static int decode_header(uint32_t number, uint64_t off_bytes, const uint8_t bytes[RECORD_HEADER_BYTES],
			 struct record_header *ret_header, struct failure *failure)
{
	struct failure flaw = {.code = 0};

	if (record_header_decode(bytes, ret_header, &flaw) < 0)
		return fail(failure, flaw.code, "segment %08" PRIx32 " at %" PRIu64 ": damaged record: %s", number,
			    off_bytes, flaw.message);
	return 0;
}

int segment_reader_read(struct segment_reader *reader, uint32_t number, uint64_t off_bytes, uint32_t stored_bytes,
			struct record_header *ret_header, void *stored, struct failure *failure)
{
	uint8_t bytes[RECORD_HEADER_BYTES];
	struct record_header header;
	int result = check_place(number, off_bytes, stored_bytes, failure);

	if (result == 0)
		result = fetch(reader, number, off_bytes, stored_bytes, bytes, stored, failure);
	if (result == 0)
		result = decode_header(number, off_bytes, bytes, &header, failure);
	if (result < 0)
		return result;
	if (header.stored_bytes != stored_bytes)
		return fail(failure, -EBADMSG,
			    "segment %08" PRIx32 " at %" PRIu64 ": another record than the catalog says: "
			    "%" PRIu32 " bytes stored instead of %" PRIu32,
			    number, off_bytes, header.stored_bytes, stored_bytes);
	if (record_payload_checksum(stored, stored_bytes) != header.payload_checksum)
		return fail(failure, -EBADMSG, "segment %08" PRIx32 " at %" PRIu64 ": damaged record: payload checksum",
			    number, off_bytes);
	*ret_header = header;
	return 0;
}

int segment_reader_header(struct segment_reader *reader, uint32_t number, uint64_t off_bytes,
			  struct record_header *ret_header, struct failure *failure)
{
	enum { ANY_STORED_BYTES = 1 };
	uint8_t bytes[RECORD_HEADER_BYTES];
	int result = check_place(number, off_bytes, ANY_STORED_BYTES, failure);

	if (result == 0)
		result = fetch(reader, number, off_bytes, 0, bytes, NULL, failure);
	if (result == 0)
		result = decode_header(number, off_bytes, bytes, ret_header, failure);
	return result;
}

void segment_reader_prefetch(struct segment_reader *reader, uint32_t number, uint64_t off_bytes, uint64_t len_bytes)
{
	struct open_segment *segment = NULL;

	if (len_bytes == 0 || off_bytes > INT64_MAX || len_bytes > INT64_MAX - off_bytes)
		return;
	if (acquire_segment(reader, number, &segment, NULL) < 0)
		return; /* the read to come will say why */
	(void)posix_fadvise(segment->fd, (off_t)off_bytes, (off_t)len_bytes, POSIX_FADV_WILLNEED); /* a hint */
	release_segment(reader, segment);
}
