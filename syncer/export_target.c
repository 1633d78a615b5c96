/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files and devices to export to, and the decision what may be overwritten.
 *
 * Everything that could be refused is looked at before anything is changed, and a device is opened with O_EXCL, which
 * fails for one that the kernel itself uses (mounted, swap, below device mapper), also when it became so since we
 * looked.
 *
 * What is long and lies as the kernel wants it is written directly, past the page cache; that leaves the host's cache
 * alone, and is several times as fast on machines where fresh pages are dear. The rest (ends of files, partitions that
 * begin off the grid, what stands between holes, where a direct write would wait for the disk over and over for
 * little), and all of it where the file system doesn't do direct writes, goes through the cache. Both never touch the
 * same block.
 *
 * The page cache of the host is kept small even so, and the disk busy from the beginning: each thread, after every few
 * megabytes, starts the write-out of what it wrote, waits for what it started the time before, and drops that from the
 * cache. So an fsync at the end has little left to do, a stop doesn't wait for gigabytes, and nothing that others have
 * cached is driven out. sync_file_range() reports errors of write-out, and an error is reported once for a descriptor:
 * so one that comes from there is the export's failure, since fsync() would not tell it again. A failed write-out is
 * never tried again (the kernel may have dropped the pages).
 *
 * Zeros. A file was emptied, so it reads as zeros where nothing is written; blocks of zeros inside of chunks are left
 * as holes too. A device has to be told: by punching a hole, which block devices only accept when it reads as zeros for
 * certain (and then gives space back to thin storage and SSDs), else by BLKZEROOUT, with which the kernel writes zeros
 * in the cheapest way that the device has, else by plain writes. None of these calls can be interrupted, so they come
 * in pieces which are made smaller while they take long.
 */
#include "syncer/export_target.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/export_stream.h"
#include "syncer/meter.h"
#include "syncer/source.h"

enum {
	HOLE_BYTES = 4096,		/* the smallest hole, and what file systems can leave out */
	DIRECT_LEAST_BYTES = 256 << 10, /* a run that is worth a direct write */
	TRAIL_BYTES = 4 << 20,		/* between two starts of write-out by a thread */
	WAIT_BYTES = 1 << 20,		/* of write-out waited for between two looks at whether to stop */
	ZERO_BYTES = 64 << 10,		/* one plain write of zeros */
	LEAST_PIECE_BYTES = 4 << 20,	/* of zeros, in one call */
	MOST_PIECE_BYTES = 1 << 30,
};

_Static_assert((int)HOLE_BYTES == (int)EXPORT_ALIGN_BYTES, "what stands between holes lies on the grid");

static uint8_t zeros[ZERO_BYTES]; /* never written; const would put it into the program's file */

enum target_kind { TARGET_FILE, TARGET_DEVICE, TARGET_STREAM };

/* Ways to make a device read as zeros, best first. */
enum zero_way { ZERO_BY_HOLE, ZERO_BY_IOCTL, ZERO_BY_WRITING };

struct export_target {
	enum target_kind kind;
	char *path; /* for messages too: "standard output" for a stream to it */
	struct export_content content;
	const struct operation *operation;
	struct stream stream; /* TARGET_STREAM */
	int fd;
	int direct_fd;		   /* the same for direct writes; -1: none */
	struct stat status;	   /* of what is open */
	uint64_t device_bytes;	   /* TARGET_DEVICE: its size */
	uint32_t zero_align_bytes; /* TARGET_DEVICE */
	bool is_new;		   /* TARGET_FILE: made by us */
	bool is_finished;
	atomic_bool is_changed;
	atomic_bool is_abandoned;
	atomic_bool can_start_writing_out; /* sync_file_range() works here */
	atomic_bool can_write_directly;
	atomic_int zero_way;
	_Atomic uint64_t zero_piece_bytes;
};

static bool is_over(const struct export_target *target)
{
	return atomic_load_explicit(&target->is_abandoned, memory_order_relaxed) ||
	       operation_is_stopped(target->operation);
}

bool export_target_is_stream(const struct export_target *target)
{
	return target->kind == TARGET_STREAM;
}

bool export_target_is_fresh(const struct export_target *target)
{
	return target->kind == TARGET_FILE;
}

void export_target_abandon(struct export_target *target)
{
	atomic_store(&target->is_abandoned, true);
}

uint64_t export_target_room(const struct export_target *target)
{
	struct statvfs status;

	if (target->kind != TARGET_FILE || fstatvfs(target->fd, &status) < 0 || status.f_blocks == 0)
		return UINT64_MAX;
	return (uint64_t)status.f_bavail * status.f_frsize; /* can't overflow: a file system's size in bytes */
}

/* ------------------------------------------------------------ page cache */

/* An error of write-out; that it can't be started here is none. */
static int write_out(struct export_target *target, uint64_t off_bytes, uint64_t end_bytes, unsigned how,
		     struct failure *failure)
{
	if (sync_file_range(target->fd, (off64_t)off_bytes, (off64_t)(end_bytes - off_bytes), how) == 0)
		return 0;
	if (errno == EINVAL || errno == ESPIPE || errno == ENOSYS || errno == EOPNOTSUPP) {
		atomic_store(&target->can_start_writing_out, false);
		return 0;
	}
	return fail_errno(failure, -errno, "%s: can't write %" PRIu64 " bytes at %" PRIu64, target->path,
			  end_bytes - off_bytes, off_bytes);
}

static int wait_and_drop(struct export_target *target, uint64_t off_bytes, uint64_t end_bytes, struct failure *failure)
{
	const unsigned how = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;

	while (off_bytes < end_bytes) {
		uint64_t piece_end_bytes = end_bytes - off_bytes < WAIT_BYTES ? end_bytes : off_bytes + WAIT_BYTES;
		int error;

		if (is_over(target))
			return -EINTR;
		error = write_out(target, off_bytes, piece_end_bytes, how, failure);
		if (error < 0)
			return error;
		/* advice: what it doesn't drop, memory pressure will */
		(void)posix_fadvise(target->fd, (off_t)off_bytes, (off_t)(piece_end_bytes - off_bytes),
				    POSIX_FADV_DONTNEED);
		off_bytes = piece_end_bytes;
	}
	return 0;
}

/* Takes note of a write, and keeps what is dirty bounded. */
static int follow_trail(struct export_target *target, struct export_trail *trail, uint64_t off_bytes,
			uint64_t len_bytes, struct failure *failure)
{
	int error;

	if (trail->len_bytes == 0)
		trail->off_bytes = off_bytes;
	trail->end_bytes = off_bytes + len_bytes; /* a thread goes forward only */
	trail->len_bytes += len_bytes;
	if (trail->len_bytes < TRAIL_BYTES || !atomic_load(&target->can_start_writing_out))
		return 0;
	error = write_out(target, trail->off_bytes, trail->end_bytes, SYNC_FILE_RANGE_WRITE, failure);
	if (error == 0)
		error = wait_and_drop(target, trail->started_off_bytes, trail->started_end_bytes, failure);
	trail->started_off_bytes = trail->off_bytes;
	trail->started_end_bytes = trail->end_bytes;
	trail->len_bytes = 0;
	return error;
}

/* ------------------------------------------------------------------ writing */

static int write_cached(struct export_target *target, const uint8_t *at, size_t len_bytes, uint64_t off_bytes,
			struct failure *failure)
{
	while (len_bytes > 0) {
		ssize_t written = pwrite(target->fd, at, len_bytes, (off_t)off_bytes);

		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
			return fail_errno(failure, written == 0 ? -EIO : -errno,
					  "%s: can't write %zu bytes at %" PRIu64, target->path, len_bytes, off_bytes);
		at += written;
		len_bytes -= (size_t)written;
		off_bytes += (uint64_t)written;
	}
	return 0;
}

/*
 * How much from the start on was written directly. Stops at the first write that isn't whole; the cached write that
 * follows finishes the job, or fails again and tells why. -EIO is final: the kernel may have lost something.
 */
static int write_directly(struct export_target *target, const uint8_t *at, size_t len_bytes, uint64_t off_bytes,
			  size_t *ret_done_bytes, struct failure *failure)
{
	ssize_t written = pwrite(target->direct_fd, at, len_bytes, (off_t)off_bytes);

	if (written < 0 && errno == EIO)
		return fail_errno(failure, -EIO, "%s: can't write %zu bytes at %" PRIu64, target->path, len_bytes,
				  off_bytes);
	if (written < 0 && (errno == EINVAL || errno == EOPNOTSUPP))
		atomic_store(&target->can_write_directly, false);
	*ret_done_bytes = written < 0 ? 0 : (size_t)written;
	return 0;
}

/* Its head and tail that don't lie on the grid go through the cache, and the middle past it if it is worth it. */
static int write_all(struct export_target *target, const uint8_t *at, size_t len_bytes, uint64_t off_bytes,
		     struct failure *failure)
{
	size_t head_bytes = (size_t)(-off_bytes % EXPORT_ALIGN_BYTES);
	size_t middle_bytes =
		len_bytes > head_bytes ? (len_bytes - head_bytes) / EXPORT_ALIGN_BYTES * EXPORT_ALIGN_BYTES : 0;
	size_t done_bytes = 0;
	int error;

	if (middle_bytes < DIRECT_LEAST_BYTES || (uintptr_t)(at + head_bytes) % EXPORT_ALIGN_BYTES != 0 ||
	    !atomic_load_explicit(&target->can_write_directly, memory_order_relaxed))
		return write_cached(target, at, len_bytes, off_bytes, failure);
	error = write_cached(target, at, head_bytes, off_bytes, failure);
	if (error == 0)
		error = write_directly(target, at + head_bytes, middle_bytes, off_bytes + head_bytes, &done_bytes,
				       failure);
	done_bytes += head_bytes;
	if (error < 0)
		return error;
	return write_cached(target, at + done_bytes, len_bytes - done_bytes, off_bytes + done_bytes, failure);
}

/* Length of the run of blocks from the start on that are zero, or are not. Blocks are those of the file. */
static size_t run_length(const uint8_t *at, size_t len_bytes, uint64_t off_bytes, bool is_zero)
{
	size_t run_bytes = 0;

	while (run_bytes < len_bytes) {
		size_t block_bytes = HOLE_BYTES - (size_t)((off_bytes + run_bytes) % HOLE_BYTES);

		if (block_bytes > len_bytes - run_bytes)
			block_bytes = len_bytes - run_bytes;
		if (bytes_are_zero(at + run_bytes, block_bytes) != is_zero)
			break;
		run_bytes += block_bytes;
	}
	return run_bytes;
}

static int write_sparsely(struct export_target *target, const uint8_t *at, size_t len_bytes, uint64_t off_bytes,
			  struct failure *failure)
{
	size_t done_bytes = 0;

	while (done_bytes < len_bytes) {
		size_t run_bytes;
		int error;

		done_bytes += run_length(at + done_bytes, len_bytes - done_bytes, off_bytes + done_bytes, true);
		run_bytes = run_length(at + done_bytes, len_bytes - done_bytes, off_bytes + done_bytes, false);
		error = write_all(target, at + done_bytes, run_bytes, off_bytes + done_bytes, failure);
		if (error < 0)
			return error;
		done_bytes += run_bytes;
	}
	return 0;
}

int export_target_write(struct export_target *target, struct export_trail *trail, const void *buffer, size_t len_bytes,
			uint64_t off_bytes, struct failure *failure)
{
	int error;

	if (is_over(target))
		return -EINTR;
	atomic_store_explicit(&target->is_changed, true, memory_order_relaxed);
	if (target->kind == TARGET_STREAM)
		return stream_write(&target->stream, buffer, len_bytes, failure);
	if (target->kind == TARGET_FILE)
		error = write_sparsely(target, buffer, len_bytes, off_bytes, failure);
	else
		error = write_all(target, buffer, len_bytes, off_bytes, failure);
	return error < 0 ? error : follow_trail(target, trail, off_bytes, len_bytes, failure);
}

/* -------------------------------------------------------------------- zeros */

static int zero_by_writing(struct export_target *target, uint64_t off_bytes, uint64_t end_bytes,
			   struct failure *failure)
{
	struct export_trail trail = {.len_bytes = 0};

	while (off_bytes < end_bytes) {
		size_t len_bytes = end_bytes - off_bytes < ZERO_BYTES ? (size_t)(end_bytes - off_bytes) : ZERO_BYTES;
		int error = is_over(target) ? -EINTR : write_all(target, zeros, len_bytes, off_bytes, failure);

		if (error == 0)
			error = follow_trail(target, &trail, off_bytes, len_bytes, failure);
		if (error < 0)
			return error;
		off_bytes += len_bytes;
	}
	return 0;
}

/* 0 or a negative errno, and what it means depends on which. */
static int zero_at_once(struct export_target *target, enum zero_way way, uint64_t off_bytes, uint64_t len_bytes)
{
	uint64_t range[2] = {off_bytes, len_bytes};
	int result;

	if (way == ZERO_BY_HOLE)
		result = fallocate(target->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off_bytes,
				   (off_t)len_bytes);
	else
		result = ioctl(target->fd, BLKZEROOUT, range);
	return result < 0 ? -errno : 0;
}

/* Zeros one piece, in the best way that works. Ways that the device doesn't know are not tried again. */
static int zero_piece(struct export_target *target, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure)
{
	for (;;) {
		enum zero_way way = (enum zero_way)atomic_load(&target->zero_way);
		int error;

		if (way == ZERO_BY_WRITING)
			return zero_by_writing(target, off_bytes, off_bytes + len_bytes, failure);
		error = zero_at_once(target, way, off_bytes, len_bytes);
		if (error == 0)
			return 0;
		if (error == -EINTR && is_over(target))
			return -EINTR;
		/* what else may be wrong, plain writes tell best */
		if (error != -EINTR)
			atomic_store(&target->zero_way, (int)way + 1);
	}
}

/* Pieces that take a twentieth of a second or so, whatever the device. */
static void adjust_piece(struct export_target *target, uint64_t len_bytes, double took_seconds)
{
	uint64_t piece_bytes = atomic_load(&target->zero_piece_bytes);

	if (len_bytes != piece_bytes)
		return;
	if (took_seconds < 0.02 && piece_bytes < MOST_PIECE_BYTES)
		piece_bytes *= 2;
	else if (took_seconds > 0.1 && piece_bytes > LEAST_PIECE_BYTES)
		piece_bytes /= 2;
	atomic_store(&target->zero_piece_bytes, piece_bytes);
}

static int zero_device(struct export_target *target, uint64_t off_bytes, uint64_t end_bytes, struct failure *failure)
{
	uint64_t align_bytes = target->zero_align_bytes;
	uint64_t first_bytes = (off_bytes + align_bytes - 1) / align_bytes * align_bytes;
	uint64_t last_bytes = end_bytes / align_bytes * align_bytes;
	int error;

	if (first_bytes >= last_bytes)
		return zero_by_writing(target, off_bytes, end_bytes, failure);
	error = zero_by_writing(target, off_bytes, first_bytes, failure);
	while (first_bytes < last_bytes && error == 0) {
		uint64_t piece_bytes = atomic_load(&target->zero_piece_bytes);
		double started_at = units_monotonic_seconds();

		if (is_over(target))
			return -EINTR;
		if (piece_bytes > last_bytes - first_bytes)
			piece_bytes = last_bytes - first_bytes;
		error = zero_piece(target, first_bytes, piece_bytes, failure);
		adjust_piece(target, piece_bytes, units_monotonic_seconds() - started_at);
		first_bytes += piece_bytes;
	}
	return error < 0 ? error : zero_by_writing(target, last_bytes, end_bytes, failure);
}

int export_target_zero(struct export_target *target, uint64_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	if (is_over(target))
		return -EINTR;
	if (target->kind == TARGET_FILE)
		return 0;
	atomic_store_explicit(&target->is_changed, true, memory_order_relaxed);
	if (target->kind == TARGET_STREAM)
		return stream_zero(&target->stream, len_bytes, failure);
	return zero_device(target, off_bytes, off_bytes + len_bytes, failure);
}

/* ---------------------------------------------------------------- finishing */

/* The name of a new file is durable once its folder is. Who may write in a folder but not read it can't ask for that.
 */
static int sync_folder(const struct export_target *target, struct failure *failure)
{
	AUTO_FREE char *folder = strdup(target->path);
	AUTO_CLOSE int fd = -1;
	char *slash;

	if (folder == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", target->path);
	slash = strrchr(folder, '/');
	if (slash != NULL)
		slash[slash == folder ? 1 : 0] = '\0';
	fd = open(slash != NULL ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0 && fsync(fd) < 0 && errno != EINVAL) /* EINVAL: a file system whose folders need none */
		return fail_errno(failure, -errno, "%s: its folder can't be made durable", target->path);
	return 0;
}

static bool has_gpt(const struct export_target *target)
{
	char signature[8] = "";

	for (unsigned sector_bytes = 512; sector_bytes <= 4096; sector_bytes *= 8)
		if (pread(target->fd, signature, sizeof(signature), sector_bytes) == sizeof(signature) &&
		    memcmp(signature, "EFI PART", sizeof(signature)) == 0)
			return true;
	return false;
}

static void tell_larger(const struct export_target *target)
{
	const struct notices *notices = target->operation->notices;
	char rest[UNITS_TEXT_BYTES];

	if (target->device_bytes == target->content.size_bytes)
		return;
	(void)units_format_size(target->device_bytes - target->content.size_bytes, rest);
	if (target->content.is_whole_disk && has_gpt(target))
		notice(notices, NOTICE_INFO,
		       "%s: is larger than the disk, its last %s are as they were; the partition table's backup is not "
		       "at its end: sgdisk -e %s, or sfdisk --relocate gpt-bak-std %s, moves it there",
		       target->path, rest, target->path, target->path);
	else
		notice(notices, NOTICE_INFO, "%s: is larger than what was written, its last %s are as they were",
		       target->path, rest);
}

/* The kernel's idea of the partitions. Partitions and devices that have none say EINVAL or ENOTTY. */
static void reread_partitions(const struct export_target *target)
{
	if (!target->content.is_whole_disk || ioctl(target->fd, BLKRRPART) == 0 || errno != EBUSY)
		return;
	notice(target->operation->notices, NOTICE_WARNING,
	       "%s: the kernel still goes by its former partition table; partprobe %s, or a reboot, makes it look "
	       "again",
	       target->path, target->path);
}

int export_target_finish(struct export_target *target, uint64_t *ret_target_bytes, struct failure *failure)
{
	int error = 0;

	if (target->kind == TARGET_STREAM)
		error = stream_finish(&target->stream, failure);
	else if (fsync(target->fd) < 0)
		error = fail_errno(failure, -errno, "%s: what was written to it did not reach the disk", target->path);
	if (error == 0 && target->is_new)
		error = sync_folder(target, failure);
	if (error < 0)
		return error;
	target->is_finished = true;
	*ret_target_bytes = target->content.size_bytes;
	if (target->kind == TARGET_STREAM)
		return 0;
	(void)posix_fadvise(target->fd, 0, 0, POSIX_FADV_DONTNEED); /* advice */
	if (target->kind == TARGET_DEVICE) {
		reread_partitions(target);
		tell_larger(target);
		*ret_target_bytes = target->device_bytes;
	}
	return 0;
}

/* ------------------------------------------------------------------ opening */

static int refuse_store(struct store *store, const char *path, struct failure *failure)
{
	bool is_inside = false;
	int error = store_contains_path(store, path, &is_inside, failure);

	if (error == 0 && is_inside)
		error = fail(failure, -EINVAL, "%s: lies inside the store %s; choose another place", path,
			     store_location(store));
	return error;
}

static int refuse_busy(const char *path, struct failure *failure)
{
	AUTO_FREE char *why = NULL;
	bool is_busy = true;
	int error = source_path_busy(path, &is_busy, &why, failure);

	if (error == 0 && is_busy)
		error = fail(failure, -EBUSY, "%s: would be overwritten while it is in use: %s", path,
			     why != NULL ? why : "by whom can't be told");
	return error;
}

static int fail_open(const char *path, int error, struct failure *failure)
{
	switch (-error) {
	case ENOENT:
	case ENOTDIR:
		return fail(failure, error, "%s: there is no such folder to make it in", path);
	case EBUSY:
		return fail(failure, error,
			    "%s: would be overwritten while it is in use by the kernel; unmount it first", path);
	case EACCES:
	case EPERM:
		return fail(failure, error, "%s: permission denied; run as root, or as a user who may write it", path);
	case EEXIST:
		return fail(failure, error, "%s: is a link to something that isn't there, or was made just now", path);
	default:
		return fail_errno(failure, error, "%s: can't be opened for writing", path);
	}
}

/* What is open now must be what was looked at before. */
static int check_same(struct export_target *target, const struct stat *expected, struct failure *failure)
{
	if (fstat(target->fd, &target->status) < 0)
		return fail_errno(failure, -errno, "%s: can't be examined", target->path);
	if (target->status.st_dev != expected->st_dev || target->status.st_ino != expected->st_ino ||
	    target->status.st_rdev != expected->st_rdev)
		return fail(failure, -ESTALE, "%s: was replaced by something else just now; try again", target->path);
	return 0;
}

/* The second descriptor. What can't be had isn't needed. */
static void open_directly(struct export_target *target)
{
	AUTO_CLOSE int fd = open(target->path, O_WRONLY | O_DIRECT | O_CLOEXEC | O_NOCTTY);
	struct stat status;

	if (fd < 0 || fstat(fd, &status) < 0 || status.st_dev != target->status.st_dev ||
	    status.st_ino != target->status.st_ino || status.st_rdev != target->status.st_rdev)
		return;
	target->direct_fd = take_fd(&fd);
	atomic_store(&target->can_write_directly, true);
}

static int set_size(struct export_target *target, struct failure *failure)
{
	uint64_t size_bytes = target->content.size_bytes;

	if (size_bytes > INT64_MAX)
		return fail(failure, -EFBIG, "%s: no file can have %" PRIu64 " bytes", target->path, size_bytes);
	if (!target->is_new && ftruncate(target->fd, 0) < 0)
		return fail_errno(failure, -errno, "%s: can't be emptied", target->path);
	atomic_store(&target->is_changed, true);
	if (ftruncate(target->fd, (off_t)size_bytes) < 0)
		return fail_errno(failure, -errno,
				  "%s: can't be made %" PRIu64 " bytes long; is that too large for this "
				  "file system?",
				  target->path, size_bytes);
	return 0;
}

static int open_new_file(struct export_target *target, struct failure *failure)
{
	target->kind = TARGET_FILE;
	target->fd = open(target->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (target->fd < 0)
		return fail_open(target->path, -errno, failure);
	target->is_new = true;
	if (fstat(target->fd, &target->status) < 0)
		return fail_errno(failure, -errno, "%s: can't be examined", target->path);
	open_directly(target);
	return set_size(target, failure);
}

static int open_file(struct export_target *target, const struct stat *status, struct failure *failure)
{
	int error = refuse_busy(target->path, failure);

	if (error < 0)
		return error;
	target->kind = TARGET_FILE;
	target->fd = open(target->path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
	if (target->fd < 0)
		return fail_open(target->path, -errno, failure);
	error = check_same(target, status, failure);
	if (error < 0)
		return error;
	open_directly(target);
	return set_size(target, failure);
}

/* Size and sectors of the device. */
static int measure_device(struct export_target *target, struct failure *failure)
{
	const struct export_content *content = &target->content;
	char device_text[UNITS_TEXT_BYTES], content_text[UNITS_TEXT_BYTES];
	int sector_bytes = 512;
	long page_bytes = sysconf(_SC_PAGESIZE);

	if (ioctl(target->fd, BLKGETSIZE64, &target->device_bytes) < 0)
		return fail_errno(failure, -errno, "%s: can't find out its size", target->path);
	if (target->device_bytes < content->size_bytes)
		return fail(failure, -ENOSPC,
			    "%s: is too small: it has %" PRIu64 " bytes (%s), and %s has %" PRIu64 " (%s)",
			    target->path, target->device_bytes, units_format_size(target->device_bytes, device_text),
			    content->name, content->size_bytes, units_format_size(content->size_bytes, content_text));
	if (ioctl(target->fd, BLKSSZGET, &sector_bytes) < 0 || sector_bytes < 512)
		sector_bytes = 512;
	if (sector_bytes <= EXPORT_ALIGN_BYTES)
		open_directly(target);
	target->zero_align_bytes = (uint32_t)(sector_bytes > page_bytes ? sector_bytes : page_bytes);
	if (content->is_whole_disk && (uint32_t)sector_bytes != content->sector_bytes)
		notice(target->operation->notices, NOTICE_WARNING,
		       "%s: has sectors of %d bytes, and %s has %" PRIu32
		       ": its partition table means other places there",
		       target->path, sector_bytes, content->name, content->sector_bytes);
	return 0;
}

static int open_device(struct export_target *target, const struct stat *status, struct failure *failure)
{
	int error = refuse_busy(target->path, failure);

	if (error < 0)
		return error;
	target->kind = TARGET_DEVICE;
	target->fd = open(target->path, O_RDWR | O_EXCL | O_CLOEXEC);
	if (target->fd < 0)
		return fail_open(target->path, -errno, failure);
	error = check_same(target, status, failure);
	return error < 0 ? error : measure_device(target, failure);
}

static int open_standard_output(struct export_target *target, int output_fd, struct failure *failure)
{
	char path[64];
	struct stat status;

	target->kind = TARGET_STREAM;
	/* "- > /dev/sdb" destroys as much as "/dev/sdb" would */
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", output_fd);
	if (fstat(output_fd, &status) == 0 && S_ISBLK(status.st_mode) && access(path, F_OK) == 0) {
		int error = refuse_busy(path, failure);

		if (error < 0)
			return error;
	}
	return stream_open_shared(&target->stream, output_fd, failure);
}

static int open_path(struct export_target *target, struct store *store, struct failure *failure)
{
	struct stat status;
	bool is_there = stat(target->path, &status) == 0;
	int error;

	if (!is_there && errno != ENOENT)
		return fail_open(target->path, -errno, failure);
	if (is_there && S_ISDIR(status.st_mode))
		return fail(failure, -EISDIR, "%s: is a directory; name a file in it", target->path);
	if (is_there && S_ISSOCK(status.st_mode))
		return fail(failure, -EINVAL, "%s: is a socket; give a file, a device, or - for standard output",
			    target->path);
	error = refuse_store(store, target->path, failure);
	if (error < 0)
		return error;
	if (!is_there)
		return open_new_file(target, failure);
	if (S_ISREG(status.st_mode))
		return open_file(target, &status, failure);
	if (S_ISBLK(status.st_mode))
		return open_device(target, &status, failure);
	target->kind = TARGET_STREAM;
	return stream_open_path(&target->stream, target->path, S_ISFIFO(status.st_mode), failure);
}

int export_target_open(struct store *store, const char *path, int output_fd, const struct export_content *content,
		       const struct operation *operation, struct export_target **ret_target, struct failure *failure)
{
	bool is_stdout = strcmp(path, "-") == 0;
	struct export_target *target = calloc(1, sizeof(*target));

	*ret_target = NULL;
	if (target == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", path);
	*ret_target = target;
	target->fd = -1;
	target->direct_fd = -1;
	target->content = *content;
	target->operation = operation;
	atomic_init(&target->can_start_writing_out, true);
	atomic_init(&target->zero_piece_bytes, LEAST_PIECE_BYTES);
	target->path = strdup(is_stdout ? "standard output" : path);
	if (target->path == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", path);
	target->stream = (struct stream){
		.name = target->path, .operation = operation, .is_abandoned = &target->is_abandoned, .fd = -1};
	if (is_stdout)
		return open_standard_output(target, output_fd, failure);
	if (path[0] == '\0')
		return fail(failure, -EINVAL, "target: its name is empty; give a path, or - for standard output");
	return open_path(target, store, failure);
}

/* True unless the new file is still there. By name, and only if the name still means our file. */
static bool remove_new_file(const struct export_target *target)
{
	struct stat status;

	if (lstat(target->path, &status) < 0)
		return errno == ENOENT;
	if (status.st_dev != target->status.st_dev || status.st_ino != target->status.st_ino)
		return true;
	return unlink(target->path) == 0;
}

enum export_leftover export_target_close(struct export_target *target)
{
	enum export_leftover leftover = EXPORT_LEFT_NOTHING;

	if (target == NULL)
		return leftover;
	if (!target->is_finished && target->is_new)
		leftover = remove_new_file(target) ? EXPORT_LEFT_NOTHING : EXPORT_LEFT_FILE;
	else if (!target->is_finished && atomic_load(&target->is_changed))
		leftover = EXPORT_LEFT_PART;
	stream_close(&target->stream);
	if (target->direct_fd >= 0)
		(void)close(target->direct_fd);
	if (target->fd >= 0)
		(void)close(target->fd); /* what mattered was synced */
	free(target->path);
	free(target);
	return leftover;
}
