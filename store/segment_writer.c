/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Appending to a segment, and what may be believed after a crash.
 *
 *                 0        4096                 synced             written             end
 *                 | header  | records … zeros     | records           | buffer           |
 *
 *     synced   durable: the last fdatasync covered it. Always the end of a block.
 *     written  handed to the kernel; may be on disk, in part, in any order
 *     end      written and what is buffered
 *     synced <= written <= end
 *
 * Nothing below `synced` is ever written again. That is why a sync fills up its last block with zeros instead of
 * letting the next record follow closely: the next write would go to the same block, and a write that the power fails
 * under may leave neither the old nor the new content of the sectors that it was about. With whole blocks, such a write
 * damages only what nobody was promised. It costs half a block a sync.
 *
 * What lies behind the length in the catalog was never acknowledged, whatever it looks like: all of it, some blocks of
 * it, or zeros. The next writer cuts it off before it appends. The cut is made durable first. Nothing that
 * is acknowledged depends on that: the next fdatasync covers the length of the file too, and so the cut. But
 * until then, a crash could leave new records followed by old ones of the same tail, both valid by
 * their checksums, and a walk without the catalog would take a mixture for a history. One more
 * fdatasync, only when there is a tail, rules that out.
 *
 * So does whoever writes an entry of a log, to all segments that nobody appends to: entries that were left there by a
 * writer who was killed before its transaction are otherwise as good as those that follow on the same predecessor, and
 * there may be more of them. A writer whose transaction fails takes its entries back for the same reason.
 *
 * Creating one: the file is fsynced, then the folder that names it, then `segments/`, which names the folder, also when
 * the folder was there already: the process that made it may not have got to its fsync. Only then may a record be
 * acknowledged, for a file without a name is as lost as one without content.
 *
 * Errors stick. After a failed write the file has a gap or a torn record somewhere; after a failed fdatasync the
 * kernel may have marked the pages clean, and the next one would report success. The first error is kept and given
 * to every caller that comes later; what was synced before stays good. sync_file_range() can be the one who
 * is told of a write error, and fdatasync then isn't told again, so its errors stick as well.
 *
 * Writes go past the page cache where the file system lets them (O_DIRECT): nobody will read them soon, copying them, and dropping them again, was a tenth of
 * what a first round costs, and a round of terabytes doesn't push the server's own files out of memory. Everything that is written is whole blocks at borders of
 * blocks, from a buffer that is one. A direct write is not durable either before the fdatasync, which sees to the drive's cache and to the file's length.
 *
 * Where they can't be direct, write-back is started every WRITEBACK_BYTES, and what was started the time before is dropped from the page cache
 * if it is clean by now, to the same end. So a sync has little left to write. Both are hints to the kernel: where it doesn't take them, nothing but time is lost.
 */
#include "store/segment.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/own_file.h"
#include "store/segment_file.h"

enum { BUFFER_BYTES = 1 << 20, WRITEBACK_BYTES = 8 << 20 };
_Static_assert(BUFFER_BYTES % SEGMENT_BLOCK_BYTES == 0, "a full buffer ends with a block");
_Static_assert(SEGMENT_BLOCK_BYTES % RECORD_ALIGN_BYTES == 0, "what starts a block is aligned");

struct segment_writer {
	int fd;
	bool is_direct; /* `fd` has O_DIRECT */
	uint32_t number;
	uint8_t *buffer; /* BUFFER_BYTES, aligned to blocks; its first byte belongs at written_bytes */
	size_t buffered_bytes;
	uint64_t written_bytes;
	uint64_t synced_bytes;
	uint64_t writeback_bytes; /* write-back was started up to here */
	uint64_t dropped_bytes;	  /* dropped from the page cache up to here, where clean */
	struct failure failed;	  /* code 0: all is well */
};

static uint64_t round_up_to_block(uint64_t off_bytes)
{
	return (off_bytes + SEGMENT_BLOCK_BYTES - 1) / SEGMENT_BLOCK_BYTES * SEGMENT_BLOCK_BYTES;
}

/* ---- errors that stick ---- */

static int writer_fail(struct segment_writer *writer, int code, const char *doing, struct failure *failure)
{
	char path[SEGMENT_PATH_BYTES];

	segment_path(writer->number, path);
	if (code == -ENOSPC || code == -EDQUOT)
		(void)fail(&writer->failed, code, "segment %08" PRIx32 ": %s: %s; make room where the store lies",
			   writer->number, doing, strerrordesc_np(-code));
	else
		(void)fail_errno(&writer->failed, code, "segment %08" PRIx32 ": %s segments/%s", writer->number, doing,
				 path);
	return fail_from(failure, &writer->failed);
}

static int writer_check(const struct segment_writer *writer, struct failure *failure)
{
	return writer->failed.code == 0 ? 0 : fail_from(failure, &writer->failed);
}

/* ---- to the file ---- */

/* The page cache in [first, end) has served; a hint only, which dirty pages ignore. */
static void drop_cached(struct segment_writer *writer, uint64_t end_bytes)
{
	(void)posix_fadvise(writer->fd, (off_t)writer->dropped_bytes, (off_t)(end_bytes - writer->dropped_bytes),
			    POSIX_FADV_DONTNEED);
	writer->dropped_bytes = end_bytes;
}

/* Refused by many a file system at once, by some only when it comes to writing. */
static void set_direct(struct segment_writer *writer, bool is_direct)
{
	int flags = fcntl(writer->fd, F_GETFL);

	writer->is_direct = flags >= 0 && fcntl(writer->fd, F_SETFL, is_direct ? flags | O_DIRECT : flags & ~O_DIRECT) == 0 &&
			    is_direct;
}

static int start_writeback(struct segment_writer *writer, struct failure *failure)
{
	uint64_t started_before_bytes = writer->writeback_bytes;

	if (writer->is_direct || writer->written_bytes - started_before_bytes < WRITEBACK_BYTES)
		return 0;
	if (sync_file_range(writer->fd, (off_t)started_before_bytes,
			    (off_t)(writer->written_bytes - started_before_bytes), SYNC_FILE_RANGE_WRITE) != 0 &&
	    errno != ENOSYS && errno != EINVAL && errno != EOPNOTSUPP)
		return writer_fail(writer, -errno, "write", failure);
	writer->writeback_bytes = writer->written_bytes;
	drop_cached(writer, started_before_bytes);
	return 0;
}

static int write_buffer(struct segment_writer *writer, struct failure *failure)
{
	size_t done_bytes = 0;

	while (done_bytes < writer->buffered_bytes) {
		ssize_t put_bytes = pwrite(writer->fd, writer->buffer + done_bytes, writer->buffered_bytes - done_bytes,
					   (off_t)(writer->written_bytes + done_bytes));

		if (put_bytes < 0 && errno == EINTR)
			continue;
		if (put_bytes < 0 && errno == EINVAL && writer->is_direct) {
			set_direct(writer, false);
			continue;
		}
		if (put_bytes <= 0) /* 0 is not to be expected, and must not make this loop endless */
			return writer_fail(writer, put_bytes < 0 ? -errno : -EIO, "write", failure);
		done_bytes += (size_t)put_bytes;
	}
	writer->written_bytes += writer->buffered_bytes;
	writer->buffered_bytes = 0;
	return start_writeback(writer, failure);
}

/* Through the buffer, which is written where it ends at a multiple of its size: the file's writes are aligned. */
static int put_bytes(struct segment_writer *writer, const void *bytes, size_t len_bytes, struct failure *failure)
{
	const uint8_t *at = bytes;

	while (len_bytes > 0) {
		size_t until_full_bytes = BUFFER_BYTES - writer->written_bytes % BUFFER_BYTES - writer->buffered_bytes;
		size_t part_bytes = len_bytes < until_full_bytes ? len_bytes : until_full_bytes;

		memcpy(writer->buffer + writer->buffered_bytes, at, part_bytes);
		writer->buffered_bytes += part_bytes;
		at += part_bytes;
		len_bytes -= part_bytes;
		if (part_bytes == until_full_bytes) {
			int result = write_buffer(writer, failure);
			if (result < 0)
				return result;
		}
	}
	return 0;
}

static int put_zeros(struct segment_writer *writer, uint64_t end_bytes, struct failure *failure)
{
	static const uint8_t zeros[SEGMENT_BLOCK_BYTES];

	assert(end_bytes - segment_writer_bytes(writer) < sizeof(zeros));
	return put_bytes(writer, zeros, (size_t)(end_bytes - segment_writer_bytes(writer)), failure);
}

/* ---- opening ---- */

static void writer_release(struct segment_writer **writer)
{
	segment_writer_close(*writer);
}

/* Opened, and nobody else's: without a message -EWOULDBLOCK when it is. */
static int open_locked(int segments_fd, uint32_t number, int flags, struct segment_writer **ret_writer,
		       struct failure *failure)
{
	AUTO(writer_release) struct segment_writer *writer = calloc(1, sizeof(*writer));
	int result;

	if (writer == NULL)
		return fail_errno(failure, -ENOMEM, "segment %08" PRIx32, number);
	writer->fd = -1;
	writer->number = number;
	writer->buffer = aligned_alloc(SEGMENT_BLOCK_BYTES, BUFFER_BYTES);
	if (writer->buffer == NULL)
		return fail_errno(failure, -ENOMEM, "segment %08" PRIx32, number);
	result = segment_file_open(segments_fd, number, flags, &writer->fd, failure);
	if (result < 0)
		return result;
	while (flock(writer->fd, LOCK_EX | LOCK_NB) != 0) {
		if (errno == EWOULDBLOCK)
			return -EWOULDBLOCK;
		if (errno != EINTR)
			return writer_fail(writer, -errno, "lock", failure);
	}
	*ret_writer = take_ptr(writer);
	return 0;
}

static int file_length(struct segment_writer *writer, uint64_t *ret_bytes, struct failure *failure)
{
	struct stat status;

	if (fstat(writer->fd, &status) != 0)
		return writer_fail(writer, -errno, "stat", failure);
	*ret_bytes = (uint64_t)status.st_size;
	return 0;
}

static int truncate_file(struct segment_writer *writer, uint64_t len_bytes, struct failure *failure)
{
	while (ftruncate(writer->fd, (off_t)len_bytes) != 0)
		if (errno != EINTR)
			return writer_fail(writer, -errno, "truncate", failure);
	return 0;
}

static void start_at(struct segment_writer *writer, uint64_t off_bytes)
{
	writer->written_bytes = off_bytes;
	writer->synced_bytes = off_bytes;
	writer->writeback_bytes = off_bytes;
	writer->dropped_bytes = off_bytes;
}

static int open_folder(int segments_fd, uint32_t number, int *ret_fd, struct failure *failure)
{
	char folder[SEGMENT_FOLDER_BYTES];
	int fd;

	segment_folder(number, folder);
	if (mkdirat(segments_fd, folder, 0750) != 0 &&
	    errno != EEXIST) /* there already, or by another process just now */
		return fail_errno(failure, -errno, "segment %08" PRIx32 ": make folder segments/%s", number, folder);
	fd = own_folder_open(segments_fd, folder);
	if (fd == -EBADMSG)
		return fail(failure, fd, "segment %08" PRIx32 ": segments/%s: " OWN_FILE_FLAW, number, folder);
	if (fd < 0)
		return fail_errno(failure, fd, "segment %08" PRIx32 ": open folder segments/%s", number, folder);
	*ret_fd = fd;
	return 0;
}

/* A file without a record is nobody's: begun by someone who was killed before its first record was durable. */
static int write_first_block(struct segment_writer *writer, const uint8_t store_id[STORE_ID_BYTES],
			     struct failure *failure)
{
	uint8_t block[SEGMENT_BLOCK_BYTES];
	uint64_t len_bytes = 0;
	int result = file_length(writer, &len_bytes, failure);

	if (result < 0)
		return result;
	if (len_bytes > SEGMENT_BLOCK_BYTES)
		return fail(failure, -EEXIST, "segment %08" PRIx32 ": there is one already, with records",
			    writer->number);
	result = truncate_file(writer, 0, failure);
	if (result < 0)
		return result;
	segment_block_encode(store_id, writer->number, (uint64_t)time(NULL), block);
	result = put_bytes(writer, block, sizeof(block), failure);
	if (result == 0)
		result = write_buffer(writer, failure);
	return result;
}

int segment_writer_create(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number,
			  struct segment_writer **ret_writer, struct failure *failure)
{
	AUTO(writer_release) struct segment_writer *writer = NULL;
	AUTO_CLOSE int folder_fd = -1;
	int result = open_folder(segments_fd, number, &folder_fd, failure);

	if (result == 0)
		result = open_locked(segments_fd, number, O_RDWR | O_CREAT, &writer, failure);
	if (result == 0)
		result = write_first_block(writer, store_id, failure);
	if (result < 0)
		return result;
	if (fsync(writer->fd) != 0 || fsync(folder_fd) != 0 || fsync(segments_fd) != 0)
		return writer_fail(writer, -errno, "sync of file or folders", failure);
	start_at(writer, SEGMENT_BLOCK_BYTES);
	set_direct(writer, true);
	*ret_writer = take_ptr(writer);
	return 0;
}

/* What is behind the last acknowledged byte goes away, durably; the head of this file says why. */
static int cut_tail(struct segment_writer *writer, uint64_t committed_bytes, struct failure *failure)
{
	uint64_t kept_bytes = committed_bytes < SEGMENT_BLOCK_BYTES ? SEGMENT_BLOCK_BYTES : committed_bytes;
	uint64_t len_bytes = 0;
	int result = file_length(writer, &len_bytes, failure);

	if (result < 0)
		return result;
	if (len_bytes < committed_bytes)
		return fail(failure, -EBADMSG,
			    "segment %08" PRIx32 ": the file has %" PRIu64 " bytes, the catalog knows of %" PRIu64,
			    writer->number, len_bytes, committed_bytes);
	if (len_bytes > kept_bytes) {
		result = truncate_file(writer, kept_bytes, failure);
		if (result < 0)
			return result;
		if (fdatasync(writer->fd) != 0)
			return writer_fail(writer, -errno, "sync", failure);
	}
	start_at(writer, round_up_to_block(kept_bytes));
	return 0;
}

int segment_writer_open(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number,
			uint64_t committed_bytes, struct segment_writer **ret_writer, struct failure *failure)
{
	AUTO(writer_release) struct segment_writer *writer = NULL;
	int result = open_locked(segments_fd, number, O_RDWR, &writer, failure);

	if (result == 0)
		result = segment_file_check_header(writer->fd, store_id, number, failure);
	if (result == 0)
		result = cut_tail(writer, committed_bytes, failure);
	if (result < 0)
		return result;
	set_direct(writer, true);
	*ret_writer = take_ptr(writer);
	return 0;
}

/* In every transaction that writes to a log, so it looks before it opens anything. */
int segment_cut_leftovers(int segments_fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number,
			  uint64_t committed_bytes, struct failure *failure)
{
	AUTO(writer_release) struct segment_writer *writer = NULL;
	struct failure why = {.code = 0};
	char path[SEGMENT_PATH_BYTES];
	struct stat status;
	int result;

	segment_path(number, path);
	if (fstatat(segments_fd, path, &status, AT_SYMLINK_NOFOLLOW) != 0)
		return errno == ENOENT ? 0 : fail_errno(failure, -errno, "segment %08" PRIx32 ": stat", number);
	if (status.st_size <= SEGMENT_BLOCK_BYTES || (uint64_t)status.st_size <= committed_bytes)
		return 0;
	result = segment_writer_open(segments_fd, store_id, number, committed_bytes, &writer, &why);
	if (result == 0 || result == -EWOULDBLOCK || result == -EBADMSG || result == -ENOENT)
		return 0;
	return fail_from(failure, &why);
}

int segment_writer_error(const struct segment_writer *writer)
{
	return writer->failed.code;
}

void segment_writer_close(struct segment_writer *writer)
{
	if (writer == NULL)
		return;
	if (writer->fd >= 0) {
		(void)flock(writer->fd, LOCK_UN); /* also if a child that hasn't exec'ed yet shares the descriptor */
		(void)close(writer->fd);	  /* what was not synced is nobody's */
	}
	free(writer->buffer);
	free(writer);
}

int segment_remove(int segments_fd, uint32_t number, struct failure *failure)
{
	AUTO_CLOSE int folder_fd = -1;
	char path[SEGMENT_PATH_BYTES];
	int result = open_folder(segments_fd, number, &folder_fd, failure);

	if (result < 0)
		return result;
	segment_path(number, path);
	if (unlinkat(folder_fd, path + SEGMENT_FOLDER_BYTES, 0) != 0 && errno != ENOENT)
		return fail_errno(failure, -errno, "segment %08" PRIx32 ": remove its file segments/%s", number, path);
	if (fsync(folder_fd) != 0)
		return fail_errno(failure, -errno, "segment %08" PRIx32 ": sync of its folder", number);
	return 0;
}

/* ---- appending ---- */

uint32_t segment_writer_number(const struct segment_writer *writer)
{
	return writer->number;
}

uint64_t segment_writer_bytes(const struct segment_writer *writer)
{
	return writer->written_bytes + writer->buffered_bytes;
}

int segment_writer_append(struct segment_writer *writer, const struct record_header *header, const void *stored,
			  uint64_t *ret_off_bytes, struct failure *failure)
{
	struct record_header checked = *header;
	uint8_t header_bytes[RECORD_HEADER_BYTES];
	uint64_t off_bytes = segment_writer_bytes(writer);
	int result = writer_check(writer, failure);

	if (result < 0)
		return result;
	assert(record_header_validate(header, NULL) == 0);
	assert(header->type == RECORD_CHUNK || header->type == RECORD_LOG);
	checked.payload_checksum = record_payload_checksum(stored, header->stored_bytes);
	record_header_encode(&checked, header_bytes);
	result = put_bytes(writer, header_bytes, sizeof(header_bytes), failure);
	if (result == 0)
		result = put_bytes(writer, stored, header->stored_bytes, failure);
	if (result == 0)
		result = put_zeros(writer, off_bytes + record_total_bytes(header->stored_bytes), failure);
	if (result < 0)
		return result;
	*ret_off_bytes = off_bytes;
	return 0;
}

/*
 * The block that off_bytes is in may have been synced, and is written again: what is in it in front of off_bytes was not
 * acknowledged either, for that ends with a block.
 */
int segment_writer_rewind(struct segment_writer *writer, uint64_t off_bytes, struct failure *failure)
{
	uint64_t block_bytes = off_bytes / SEGMENT_BLOCK_BYTES * SEGMENT_BLOCK_BYTES;
	int result = writer_check(writer, failure);

	assert(off_bytes >= SEGMENT_BLOCK_BYTES && off_bytes <= segment_writer_bytes(writer));
	if (result < 0)
		return result;
	if (off_bytes >= writer->written_bytes) {
		writer->buffered_bytes = (size_t)(off_bytes - writer->written_bytes);
		return 0;
	}
	result = truncate_file(writer, off_bytes, failure);
	if (result < 0)
		return result;
	if (fdatasync(writer->fd) != 0)
		return writer_fail(writer, -errno, "sync", failure);
	start_at(writer, block_bytes);
	set_direct(writer, false); /* the next write begins in the middle of a block */
	writer->written_bytes = off_bytes;
	writer->buffered_bytes = 0;
	return 0;
}

uint64_t segment_writer_synced_bytes(const struct segment_writer *writer)
{
	return writer->synced_bytes;
}

int segment_writer_sync_begin(struct segment_writer *writer, uint64_t *ret_target_bytes, struct failure *failure)
{
	int result = writer_check(writer, failure);

	if (result == 0 && segment_writer_bytes(writer) != writer->synced_bytes)
		result = put_zeros(writer, round_up_to_block(segment_writer_bytes(writer)), failure);
	if (result == 0)
		result = write_buffer(writer, failure);
	if (result == 0)
		*ret_target_bytes = writer->written_bytes;
	return result;
}

int segment_writer_sync_wait(const struct segment_writer *writer)
{
	return fdatasync(writer->fd) != 0 ? -errno : 0;
}

int segment_writer_sync_end(struct segment_writer *writer, uint64_t target_bytes, int waited, struct failure *failure)
{
	/* an append may have been the one who was told of a write error, and the sync then wasn't */
	int result = writer_check(writer, failure);

	if (result < 0)
		return result;
	if (waited < 0)
		return writer_fail(writer, waited, "sync", failure);
	if (!writer->is_direct) {
		writer->dropped_bytes = writer->synced_bytes; /* what was dirty the first time is clean now */
		drop_cached(writer, target_bytes);
	}
	writer->synced_bytes = target_bytes;
	if (writer->writeback_bytes < target_bytes)
		writer->writeback_bytes = target_bytes;
	return 0;
}

int segment_writer_sync(struct segment_writer *writer, struct failure *failure)
{
	uint64_t target_bytes;
	int result = writer_check(writer, failure);

	if (result < 0 || segment_writer_bytes(writer) == writer->synced_bytes)
		return result;
	result = segment_writer_sync_begin(writer, &target_bytes, failure);
	return result < 0 ? result
			  : segment_writer_sync_end(writer, target_bytes, segment_writer_sync_wait(writer), failure);
}
