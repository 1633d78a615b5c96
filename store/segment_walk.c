/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A segment without the catalog: which records are in it?
 *
 * Each record says where the next one is. Where there is none, a sync has ended: the next one starts the next block,
 * and all up to there are zeros. That they must be zeros is not pedantry. Behind a damaged header lies a payload, and a
 * payload is bytes from somebody's disk: if a walk went on looking for headers in it, whoever filled that disk could
 * have put forged records there. So a walk never looks at a place that a valid record or zeros did not lead to.
 *
 * Where it stops is either the end of what was written, or damage. It can't know which; the catalog does, and a scrub
 * that has lost it reports the rest of the file.
 */
#include "store/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/segment_file.h"

struct walk {
	int fd;
	uint32_t number;
	uint64_t file_bytes;
};

/* 1 if all of it is there, 0 if the file ends before, or a negative errno. */
static int walk_read(const struct walk *walk, void *buffer, size_t len_bytes, uint64_t off_bytes,
		     struct failure *failure)
{
	ssize_t got_bytes = segment_file_read(walk->fd, buffer, len_bytes, off_bytes);

	if (got_bytes < 0)
		return fail_errno(failure, (int)got_bytes, "segment %08" PRIx32 " at %" PRIu64 ": read", walk->number,
				  off_bytes);
	return (size_t)got_bytes == len_bytes ? 1 : 0;
}

/* 1 and the record that starts here, 0 if there is none, or a negative errno. */
static int find_record(const struct walk *walk, uint64_t off_bytes, struct record_header *ret_header,
		       struct failure *failure)
{
	uint8_t bytes[RECORD_HEADER_BYTES];
	struct record_header header;
	int result = walk_read(walk, bytes, sizeof(bytes), off_bytes, failure);

	if (result <= 0)
		return result;
	if (record_header_decode(bytes, &header, NULL) < 0)
		return 0;
	if (record_total_bytes(header.stored_bytes) > walk->file_bytes - off_bytes)
		return 0; /* its payload was never written */
	*ret_header = header;
	return 1;
}

/* 1 and the start of the next block, if nothing but zeros leads there; 0 if not, or if this is the start of one. */
static int skip_zeros(const struct walk *walk, uint64_t off_bytes, uint64_t *ret_off_bytes, struct failure *failure)
{
	uint8_t bytes[SEGMENT_BLOCK_BYTES];
	size_t len_bytes = SEGMENT_BLOCK_BYTES - off_bytes % SEGMENT_BLOCK_BYTES;
	int result;

	if (len_bytes == SEGMENT_BLOCK_BYTES)
		return 0;
	result = walk_read(walk, bytes, len_bytes, off_bytes, failure);
	if (result <= 0)
		return result;
	if (!bytes_are_zero(bytes, len_bytes))
		return 0;
	*ret_off_bytes = off_bytes + len_bytes;
	return 1;
}

static int walk_records(const struct walk *walk, segment_visit_fn visit, void *opaque, uint64_t *ret_valid_bytes,
			struct failure *failure)
{
	uint64_t off_bytes = SEGMENT_BLOCK_BYTES;

	for (;;) {
		struct record_header header;
		int result = find_record(walk, off_bytes, &header, failure);

		if (result == 0) {
			result = skip_zeros(walk, off_bytes, &off_bytes, failure);
			if (result == 1)
				continue;
		}
		if (result < 0)
			return result;
		if (result == 0)
			break;
		result = visit(opaque, off_bytes, &header);
		if (result != 0)
			return result;
		off_bytes += record_total_bytes(header.stored_bytes);
	}
	*ret_valid_bytes = off_bytes < walk->file_bytes ? off_bytes : walk->file_bytes;
	return 0;
}

static int open_and_measure(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number, int *ret_fd,
			    uint64_t *ret_file_bytes, struct failure *failure)
{
	AUTO_CLOSE int fd = -1;
	struct stat status;
	int result = segment_file_open(segments_fd, number, O_RDONLY, &fd, failure);

	if (result == 0)
		result = segment_file_check_header(fd, store_id, number, failure);
	if (result < 0)
		return result;
	if (fstat(fd, &status) != 0)
		return fail_errno(failure, -errno, "segment %08" PRIx32 ": stat", number);
	*ret_file_bytes = (uint64_t)status.st_size;
	*ret_fd = take_fd(&fd);
	return 0;
}

int segment_examine(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number, uint64_t *ret_file_bytes,
		    struct failure *failure)
{
	AUTO_CLOSE int fd = -1;

	return open_and_measure(segments_fd, store_id, number, &fd, ret_file_bytes, failure);
}

int segment_walk(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number, segment_visit_fn visit,
		 void *opaque, uint64_t *ret_valid_bytes, struct failure *failure)
{
	AUTO_CLOSE int fd = -1;
	struct walk walk = {.number = number};
	int result = open_and_measure(segments_fd, store_id, number, &fd, &walk.file_bytes, failure);

	if (result < 0)
		return result;
	walk.fd = fd;
	return walk_records(&walk, visit, opaque, ret_valid_bytes, failure);
}

/* A record that the file ends inside of is what a writer leaves that was killed. */
static bool is_cut_record(const uint8_t *bytes, size_t len_bytes)
{
	struct record_header header;

	return len_bytes < RECORD_HEADER_BYTES || record_header_decode(bytes, &header, NULL) == 0;
}

int segment_rest_is_damaged(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number,
			    uint64_t valid_bytes, bool *ret_is_damaged, struct failure *failure)
{
	enum { LOOK_MOST_BYTES = 128 << 20 }; /* more than any segment: a file of nothing can be of any length */
	AUTO_CLOSE int fd = -1;
	uint8_t bytes[SEGMENT_BLOCK_BYTES];
	uint64_t file_bytes = 0;
	int result = open_and_measure(segments_fd, store_id, number, &fd, &file_bytes, failure);

	if (result < 0)
		return result;
	for (uint64_t off_bytes = valid_bytes; off_bytes - valid_bytes < LOOK_MOST_BYTES;) {
		ssize_t got_bytes = segment_file_read(fd, bytes, sizeof(bytes), off_bytes);

		if (got_bytes < 0)
			return fail_errno(failure, (int)got_bytes, "segment %08" PRIx32 " at %" PRIu64 ": read", number,
					  off_bytes);
		if (got_bytes == 0 || (off_bytes == valid_bytes && is_cut_record(bytes, (size_t)got_bytes)))
			break;
		if (!bytes_are_zero(bytes, (size_t)got_bytes)) {
			*ret_is_damaged = true;
			return 0;
		}
		off_bytes += (uint64_t)got_bytes;
	}
	*ret_is_damaged = false;
	return 0;
}
