/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block devices and regular files.
 *
 * A few threads do plain pread() calls into the callers' buffers; requests wait
 * for them in one queue and come back in another. The kernel has nothing better
 * that serves page cache, direct reads and every file system alike.
 *
 * The host's page cache is to be left as it is: nothing added, nothing driven
 * out. What is in it already is still worth taking, at the speed of memory. So
 * a request is read in windows of 1 MiB (page_residency.h knows what was there):
 *
 *   all of it resident     an ordinary read
 *   else                   O_DIRECT on a second descriptor, which goes past the cache. The kernel writes dirty
 *                          pages in the range out first, so what somebody has just written is seen. Unaligned
 *                          buffers, offsets and ends of files go by way of a buffer of the thread's own
 *   O_DIRECT refused       an ordinary read, after which the pages that were absent are dropped again. The same is done
 *                          where a file system makes an ordinary read of a direct one without a word (compressed
 *                          btrfs, ext4 with journalled data) and leaves pages behind
 *
 * mincore() answers "resident" for everything to those who may not write a file (a measure against spying on others).
 * Such a file is read directly, and when that is refused, nothing is dropped: it would drive out what was there before.
 *
 * Block devices are always read directly. What a mounted file system keeps in the device's cache is metadata that runs
 * ahead of what it has committed to its journal; mixed with the device's own content for the rest, it makes an image
 * that no power cut would have left. Read directly, a device shows what is on it.
 *
 * Threads: `lock` guards the queues and `is_stopping`. A reader belongs to one thread. All else is set at opening.
 */
#include "syncer/source_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/device_use.h"
#include "syncer/page_residency.h"

enum {
	READER_THREADS = 4,
	FILE_MOST_IN_FLIGHT = 2 * READER_THREADS, /* one being read, one waiting, for each */
	WINDOW_BYTES = RESIDENCY_WINDOW_BYTES,
	REAP_NANOSECONDS = 250000000,
	BUFFER_ALIGN_BYTES = 4096, /* enough for every device's DMA */
	FILE_GRAIN_BYTES = 4096,   /* what file systems take for O_DIRECT, and how they lose data */
	BOUNCE_BYTES = WINDOW_BYTES + 65536
};

/* What a thread needs for itself to read. */
struct reader {
	uint8_t *bounce; /* BOUNCE_BYTES, aligned; NULL until needed */
};

struct file_source {
	struct source base;
	int buffered_fd;
	int direct_fd;			  /* -1: O_DIRECT refused at open */
	uint32_t direct_align_bytes;	  /* of offsets and lengths, a power of two */
	struct page_residency *residency; /* NULL: doesn't matter, or mincore() wouldn't tell us the truth */
	struct reader read_reader;	  /* for read() in the submitting thread */

	/* The last range of data that SEEK_HOLE found: walking a file in small steps must not walk its extents anew. */
	uint64_t data_off_bytes;
	uint64_t data_end_bytes;

	pthread_mutex_t lock;
	pthread_cond_t work_came;
	pthread_cond_t work_done;
	struct request_ring waiting;
	struct request_ring finished;
	bool is_stopping;
	unsigned thread_count;
	pthread_t threads[READER_THREADS];
};

static struct file_source *file_of(struct source *source)
{
	return (struct file_source *)source; /* base is the first member */
}

static bool is_device(const struct file_source *file)
{
	return file->base.info.kind == SOURCE_BLOCK_DEVICE;
}

static uint64_t align_down(uint64_t bytes, uint64_t align_bytes)
{
	return bytes & ~(align_bytes - 1);
}

static uint64_t align_up(uint64_t bytes, uint64_t align_bytes)
{
	return align_down(bytes + align_bytes - 1, align_bytes);
}

static size_t smaller(uint64_t a, uint64_t b)
{
	return (size_t)(a < b ? a : b);
}

static int get_size(const struct file_source *file, uint64_t *ret_size_bytes)
{
	struct stat status;

	if (is_device(file))
		return ioctl(file->buffered_fd, BLKGETSIZE64, ret_size_bytes) < 0 ? -errno : 0;
	if (fstat(file->buffered_fd, &status) < 0)
		return -errno;
	*ret_size_bytes = (uint64_t)status.st_size; /* the kernel has no negative ones */
	return 0;
}

/* ------------------------------------------------------------------ reading */

/* The end came too early. A file that is as long as ever and doesn't give its content has lost it. */
static int explain_early_end(const struct file_source *file)
{
	uint64_t size_bytes;
	int error = get_size(file, &size_bytes);

	if (error < 0)
		return error;
	return size_bytes < file->base.info.size_bytes ? -ESTALE : -EIO;
}

static int read_buffered(const struct file_source *file, uint8_t *buffer, size_t len_bytes, uint64_t off_bytes)
{
	while (len_bytes > 0) {
		ssize_t got = pread(file->buffered_fd, buffer, len_bytes, (off_t)off_bytes);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			return explain_early_end(file);
		buffer += got;
		off_bytes += (uint64_t)got;
		len_bytes -= (size_t)got;
	}
	return 0;
}

static ssize_t pread_direct(const struct file_source *file, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	ssize_t got;

	do {
		got = pread(file->direct_fd, buffer, len_bytes, (off_t)off_bytes);
	} while (got < 0 && errno == EINTR);
	return got < 0 ? -errno : got;
}

/* By way of the thread's own buffer, as far as that reaches. Bytes of the caller's range, or a negative errno. */
static ssize_t read_bounced(const struct file_source *file, struct reader *reader, uint8_t *buffer, size_t len_bytes,
			    uint64_t off_bytes)
{
	uint64_t first_bytes = align_down(off_bytes, file->direct_align_bytes);
	uint64_t end_bytes = align_up(off_bytes + len_bytes, file->direct_align_bytes);
	size_t lead_bytes = (size_t)(off_bytes - first_bytes);
	ssize_t got;
	size_t usable_bytes;

	if (reader->bounce == NULL)
		reader->bounce = aligned_alloc(BUFFER_ALIGN_BYTES, BOUNCE_BYTES);
	if (reader->bounce == NULL)
		return -ENOMEM;
	got = pread_direct(file, reader->bounce, smaller(end_bytes - first_bytes, BOUNCE_BYTES), first_bytes);
	if (got < 0)
		return got;
	if ((size_t)got <= lead_bytes)
		return 0;
	usable_bytes = smaller((size_t)got - lead_bytes, len_bytes);
	memcpy(buffer, reader->bounce + lead_bytes, usable_bytes);
	return (ssize_t)usable_bytes;
}

/* -EINVAL: O_DIRECT doesn't serve here, though an ordinary read may. */
static int read_direct(const struct file_source *file, struct reader *reader, uint8_t *buffer, size_t len_bytes,
		       uint64_t off_bytes)
{
	const uint32_t align_bytes = file->direct_align_bytes;

	while (len_bytes > 0) {
		bool is_aligned = (uintptr_t)buffer % BUFFER_ALIGN_BYTES == 0 && off_bytes % align_bytes == 0;
		size_t whole_bytes = (size_t)align_down(len_bytes, align_bytes);
		ssize_t got;

		if (is_aligned && whole_bytes > 0)
			got = pread_direct(file, buffer, whole_bytes, off_bytes);
		else
			got = read_bounced(file, reader, buffer, len_bytes, off_bytes);
		if (got < 0)
			return (int)got;
		if (got == 0)
			return explain_early_end(file) == -ESTALE ? -ESTALE : -EINVAL;
		buffer += got;
		off_bytes += (uint64_t)got;
		len_bytes -= (size_t)got;
	}
	return 0;
}

static int read_window(const struct file_source *file, struct reader *reader, uint8_t *buffer, size_t len_bytes,
		       uint64_t off_bytes)
{
	struct residency known = {.is_known = false};
	int error;

	if (file->residency != NULL)
		page_residency_look(file->residency, off_bytes, len_bytes, &known);
	if (file->direct_fd >= 0 && !known.is_resident) {
		error = read_direct(file, reader, buffer, len_bytes, off_bytes);
		if (error != -EINVAL) {
			if (file->residency != NULL)
				page_residency_restore_if_changed(file->residency, &known);
			return error;
		}
	}
	error = read_buffered(file, buffer, len_bytes, off_bytes);
	if (file->residency != NULL)
		page_residency_restore(file->residency, &known);
	return error;
}

static int read_range(const struct file_source *file, struct reader *reader, uint8_t *buffer, size_t len_bytes,
		      uint64_t off_bytes)
{
	while (len_bytes > 0) {
		/* Windows lie on borders of their size. */
		uint64_t window_end_bytes = align_down(off_bytes, WINDOW_BYTES) + WINDOW_BYTES;
		size_t piece_bytes = smaller(window_end_bytes - off_bytes, len_bytes);
		int error = read_window(file, reader, buffer, piece_bytes, off_bytes);

		if (error < 0)
			return error;
		buffer += piece_bytes;
		off_bytes += piece_bytes;
		len_bytes -= piece_bytes;
	}
	return 0;
}

/* ------------------------------------------------------------------ threads */

static void *run_reader(void *opaque)
{
	struct file_source *file = opaque;
	struct reader reader = {.bounce = NULL};

	(void)pthread_mutex_lock(&file->lock);
	for (;;) {
		struct source_request *request;

		while (file->waiting.count == 0 && !file->is_stopping)
			(void)pthread_cond_wait(&file->work_came, &file->lock);
		if (file->is_stopping)
			break;
		request = request_ring_take(&file->waiting);
		(void)pthread_mutex_unlock(&file->lock);
		request->result = read_range(file, &reader, request->buffer, request->len_bytes, request->off_bytes);
		(void)pthread_mutex_lock(&file->lock);
		request_ring_put(&file->finished, request);
		(void)pthread_cond_signal(&file->work_done);
	}
	(void)pthread_mutex_unlock(&file->lock);
	free(reader.bounce);
	return NULL;
}

/* Signals are for the threads of the program that wait for them. */
static int start_readers(struct file_source *file, struct failure *failure)
{
	sigset_t all;
	sigset_t before;
	int error = 0;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	while (file->thread_count < READER_THREADS && error == 0) {
		error = pthread_create(&file->threads[file->thread_count], NULL, run_reader, file);
		if (error == 0)
			(void)pthread_setname_np(file->threads[file->thread_count++], "wherry-read");
	}
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (file->thread_count == 0)
		return fail_errno(failure, -error, "%s: can't start a thread to read it", file->base.info.name);
	return 0; /* fewer than wanted do as well */
}

static int file_submit(struct source *source, struct source_request *request, struct failure *failure)
{
	struct file_source *file = file_of(source);
	WITH_LOCK(&file->lock);

	(void)failure;
	request_ring_put(&file->waiting, request);
	(void)pthread_cond_signal(&file->work_came);
	return 0;
}

static struct source_request *file_reap(struct source *source, bool wait)
{
	struct file_source *file = file_of(source);
	/* a clock that is set makes one wait longer or shorter, no more */
	struct timespec until = units_time_from_now(CLOCK_REALTIME, REAP_NANOSECONDS);
	WITH_LOCK(&file->lock);

	while (wait && file->finished.count == 0)
		if (pthread_cond_timedwait(&file->work_done, &file->lock, &until) == ETIMEDOUT)
			break;
	return request_ring_take(&file->finished);
}

static bool file_is_at_hand(struct source *source, size_t len_bytes, uint64_t off_bytes)
{
	const struct file_source *file = file_of(source);

	return file->residency != NULL && page_residency_is_resident(file->residency, off_bytes, len_bytes);
}

static bool file_read_at_hand(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	return file_is_at_hand(source, len_bytes, off_bytes) &&
	       read_buffered(file_of(source), buffer, len_bytes, off_bytes) == 0;
}

static int fail_shorter(const struct source *source, struct failure *failure)
{
	return fail(failure, -ESTALE, "%s: became shorter while it was read", source->info.name);
}

static int file_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	struct file_source *file = file_of(source);
	int error = read_range(file, &file->read_reader, buffer, len_bytes, off_bytes);

	if (error == -ESTALE)
		return fail_shorter(source, failure);
	if (error < 0)
		return fail_errno(failure, error, "%s: can't read %zu bytes at %" PRIu64, source->info.name, len_bytes,
				  off_bytes);
	return 0;
}

/* ------------------------------------------------------------ what is known */

/* From `off_bytes` on, to the next border between data and hole; *ret_end_bytes may lie past the source's end. */
static int seek_extent(struct file_source *file, uint64_t off_bytes, enum source_extent *ret_extent,
		       uint64_t *ret_end_bytes)
{
	off_t data = lseek(file->buffered_fd, (off_t)off_bytes, SEEK_DATA);
	uint64_t size_bytes;
	off_t hole;

	if (data < 0 && errno == ENXIO) {
		/* Nothing but a hole to the end, or the end came nearer: what was cut off is no hole. */
		if (get_size(file, &size_bytes) < 0 || size_bytes < file->base.info.size_bytes)
			return -ESTALE;
		*ret_extent = SOURCE_HOLE;
		*ret_end_bytes = UINT64_MAX;
		return 0;
	}
	if (data > (off_t)off_bytes) {
		*ret_extent = SOURCE_HOLE;
		*ret_end_bytes = (uint64_t)data;
		return 0;
	}
	hole = data < 0 ? -1 : lseek(file->buffered_fd, (off_t)off_bytes, SEEK_HOLE);
	*ret_extent = SOURCE_DATA; /* also when the file system can't tell: EINVAL */
	*ret_end_bytes = hole > (off_t)off_bytes ? (uint64_t)hole : UINT64_MAX;
	file->data_off_bytes = off_bytes;
	file->data_end_bytes = *ret_end_bytes;
	return 0;
}

static int file_extent_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, enum source_extent *ret_extent,
			  uint64_t *ret_len_bytes, struct failure *failure)
{
	struct file_source *file = file_of(source);
	enum source_extent extent = SOURCE_DATA;
	uint64_t end_bytes = UINT64_MAX;

	if (off_bytes >= file->data_off_bytes && off_bytes < file->data_end_bytes)
		end_bytes = file->data_end_bytes;
	else if (!is_device(file) && seek_extent(file, off_bytes, &extent, &end_bytes) < 0)
		return fail_shorter(source, failure);
	*ret_extent = extent;
	*ret_len_bytes = end_bytes - off_bytes < len_bytes ? end_bytes - off_bytes : len_bytes;
	return 0;
}

static int file_dirty_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_is_dirty,
			 uint64_t *ret_len_bytes, struct failure *failure)
{
	(void)off_bytes;
	(void)len_bytes;
	(void)ret_is_dirty;
	(void)ret_len_bytes;
	return fail(failure, -ENODATA, "%s: has no dirty bitmap; only NBD servers offer them", source->info.name);
}

static int file_in_use(struct source *source, bool *ret_in_use, char **ret_why, struct failure *failure)
{
	return device_use_find(file_of(source)->buffered_fd, source->info.name, DEVICE_USE_CHANGES, 0, UINT64_MAX,
			       ret_in_use, ret_why, failure);
}

static int file_range_mounted(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_mounted,
			      struct failure *failure)
{
	return device_use_find(file_of(source)->buffered_fd, source->info.name, DEVICE_USE_MOUNTED, off_bytes,
			       len_bytes, ret_mounted, NULL, failure);
}

static int file_current_size(struct source *source, uint64_t *ret_size_bytes, struct failure *failure)
{
	uint64_t size_bytes;
	int error = get_size(file_of(source), &size_bytes);

	if (error < 0)
		return fail_errno(failure, error, "%s: can't find out its size", source->info.name);
	*ret_size_bytes = size_bytes;
	return 0;
}

static int file_change_stamp(struct source *source, char **ret_stamp, struct failure *failure)
{
	uint64_t size_bytes = 0;
	int error = file_current_size(source, &size_bytes, failure);

	if (error < 0)
		return error;
	return device_use_change_stamp(file_of(source)->buffered_fd, source->info.name, size_bytes, ret_stamp, failure);
}

/* -------------------------------------------------------- opening and closing */

static void file_close(struct source *source)
{
	struct file_source *file = file_of(source);

	(void)pthread_mutex_lock(&file->lock);
	file->is_stopping = true;
	(void)pthread_cond_broadcast(&file->work_came);
	(void)pthread_mutex_unlock(&file->lock);
	for (unsigned i = 0; i < file->thread_count; i++)
		(void)pthread_join(file->threads[i], NULL); /* ours, joined once: can't fail */
	(void)pthread_cond_destroy(&file->work_came);
	(void)pthread_cond_destroy(&file->work_done);
	(void)pthread_mutex_destroy(&file->lock);
	free(file->read_reader.bounce);
	page_residency_free(file->residency);
	if (file->direct_fd >= 0)
		(void)close(file->direct_fd); /* read only */
	if (file->buffered_fd >= 0)
		(void)close(file->buffered_fd);
	free(file);
}

static const struct source_ops file_ops = {
	.close = file_close,
	.submit = file_submit,
	.reap = file_reap,
	.read = file_read,
	.is_at_hand = file_is_at_hand,
	.read_at_hand = file_read_at_hand,
	.extent_at = file_extent_at,
	.dirty_at = file_dirty_at,
	.in_use = file_in_use,
	.range_mounted = file_range_mounted,
	.change_stamp = file_change_stamp,
	.current_size = file_current_size,
};

static const char *name_of_type(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "a directory";
	case S_IFCHR:
		return "a character device";
	case S_IFIFO:
		return "a pipe";
	case S_IFSOCK:
		return "a socket";
	default:
		return "neither a file nor a device";
	}
}

static int fail_open(const char *path, int error, struct failure *failure)
{
	switch (-error) {
	case ENOENT:
	case ENOTDIR:
		return fail(failure, error, "%s: no such file or device; check the path", path);
	case EACCES:
	case EPERM:
		if (geteuid() == 0)
			return fail(failure, error,
				    "%s: permission denied even to root; is it kept from this container?", path);
		return fail(failure, error, "%s: permission denied; run as root, or as a user who may read it", path);
	case ENOMEDIUM:
	case ENXIO:
		return fail(failure, error, "%s: there is no device or no medium behind it", path);
	default:
		return fail_errno(failure, error, "%s: can't be opened for reading", path);
	}
}

/* A source is only ever read, and that includes the time of last access where we may leave it (owner or root). */
static int open_quietly(const char *path, int flags)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NOATIME | flags);

	if (fd < 0 && errno == EPERM)
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | flags);
	return fd < 0 ? -errno : fd;
}

/* Looks before it opens, because opening a pipe waits and opening a tape winds. */
static int open_buffered(const char *path, struct stat *ret_status, struct failure *failure)
{
	AUTO_CLOSE int fd = -1;

	if (stat(path, ret_status) < 0)
		return fail_open(path, -errno, failure);
	if (S_ISREG(ret_status->st_mode) || S_ISBLK(ret_status->st_mode)) {
		fd = open_quietly(path, 0);
		if (fd < 0)
			return fail_open(path, fd, failure);
		if (fstat(fd, ret_status) < 0)
			return fail_open(path, -errno, failure);
	}
	if (!S_ISREG(ret_status->st_mode) && !S_ISBLK(ret_status->st_mode))
		return fail(failure, S_ISDIR(ret_status->st_mode) ? -EISDIR : -EINVAL,
			    "%s: is %s; give a block device, an image file or an NBD URI", path,
			    name_of_type(ret_status->st_mode));
	return take_fd(&fd);
}

/* The second descriptor; -1 when there can't be one, or the path means something else by now. */
static int open_direct(const char *path, const struct stat *expected)
{
	AUTO_CLOSE int fd = open_quietly(path, O_DIRECT);
	struct stat status;

	if (fd < 0)
		return -1;
	if (fstat(fd, &status) < 0 || status.st_dev != expected->st_dev || status.st_ino != expected->st_ino ||
	    status.st_rdev != expected->st_rdev)
		return -1;
	/* For the case that the file system makes ordinary reads of them. Advice only. */
	(void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	return take_fd(&fd);
}

/*
 * A drive with 4096 byte sectors that are shown as eight of 512 loses the eight together. Trying each of them would
 * only take its time eight times.
 */
static uint32_t find_grain(const struct file_source *file)
{
	unsigned physical_bytes = 0;

	if (is_device(file) && ioctl(file->buffered_fd, BLKPBSZGET, &physical_bytes) == 0 &&
	    physical_bytes > file->direct_align_bytes && physical_bytes <= FILE_GRAIN_BYTES &&
	    (physical_bytes & (physical_bytes - 1)) == 0)
		return physical_bytes;
	return file->direct_align_bytes;
}

/* Size and sizes of blocks. */
static int measure(struct file_source *file, const char *path, struct failure *failure)
{
	struct source_info *info = &file->base.info;
	int sector_bytes = 512;
	int error = get_size(file, &info->size_bytes);

	if (error < 0)
		return fail_errno(failure, error, "%s: can't find out its size", path);
	if (info->size_bytes == 0 && is_device(file))
		return fail(failure, -EINVAL, "%s: has size 0; is there a medium, is the device set up?", path);
	if (info->size_bytes == 0)
		return fail(failure, -EINVAL, "%s: is empty; there is nothing to read", path);
	if (info->size_bytes > INT64_MAX)
		return fail(failure, -EFBIG, "%s: is larger than 8 EiB", path);
	if (is_device(file) && ioctl(file->buffered_fd, BLKSSZGET, &sector_bytes) < 0)
		return fail_errno(failure, -errno, "%s: can't find out its sector size", path);
	if (sector_bytes < 512 || sector_bytes > 65536 || (sector_bytes & (sector_bytes - 1)) != 0)
		return fail(failure, -EINVAL, "%s: has a sector size of %d, which can't be", path, sector_bytes);

	info->sector_bytes = (uint32_t)sector_bytes;
	info->align_bytes = BUFFER_ALIGN_BYTES;
	info->most_in_flight = FILE_MOST_IN_FLIGHT;
	file->direct_align_bytes = is_device(file) ? info->sector_bytes : FILE_GRAIN_BYTES;
	file->base.grain_bytes = find_grain(file);
	return 0;
}

/* mincore(2): the truth is for those who may write the file or own it. */
static bool may_know_residency(const char *path, const struct stat *status)
{
	return geteuid() == 0 || geteuid() == status->st_uid || faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0;
}

/* A device that is read directly leaves nothing behind. */
static int prepare_residency(struct file_source *file, const char *path, const struct stat *status,
			     struct failure *failure)
{
	if ((is_device(file) && file->direct_fd >= 0) || !may_know_residency(path, status))
		return 0;
	file->residency = page_residency_new(file->buffered_fd, file->base.info.size_bytes);
	return file->residency != NULL ? 0 : fail(failure, -ENOMEM, "%s: out of memory", path);
}

static struct file_source *make_file_source(void)
{
	struct file_source *file = calloc(1, sizeof(*file));

	if (file == NULL)
		return NULL;
	file->base.ops = &file_ops;
	file->buffered_fd = -1;
	file->direct_fd = -1;
	(void)pthread_mutex_init(&file->lock, NULL); /* with default attributes none of the three can fail on Linux */
	(void)pthread_cond_init(&file->work_came, NULL);
	(void)pthread_cond_init(&file->work_done, NULL);
	return file;
}

static int open_file(struct file_source *file, const char *path, struct failure *failure)
{
	struct source_info *info = &file->base.info;
	struct stat status;
	int error;

	file->buffered_fd = open_buffered(path, &status, failure);
	if (file->buffered_fd < 0)
		return file->buffered_fd;
	info->kind = S_ISBLK(status.st_mode) ? SOURCE_BLOCK_DEVICE : SOURCE_FILE;
	error = measure(file, path, failure);
	if (error < 0)
		return error;
	/* Ordinary reads are for what is resident: readahead would only bring in what is not. Advice. */
	(void)posix_fadvise(file->buffered_fd, 0, 0, POSIX_FADV_RANDOM);
	file->direct_fd = open_direct(path, &status);
	error = prepare_residency(file, path, &status, failure);
	if (error < 0)
		return error;
	info->name = strdup(path);
	info->identity = device_use_identity(file->buffered_fd, path);
	if (info->name == NULL || info->identity == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", path);
	return start_readers(file, failure);
}

int source_file_open(const char *path, const struct source_options *options, struct source **ret_source,
		     struct failure *failure)
{
	struct file_source *file;
	int error;

	if (options->dirty_bitmap != NULL)
		return fail(failure, -ENODATA, "%s: has no dirty bitmap \"%s\"; only NBD servers offer them", path,
			    options->dirty_bitmap);
	file = make_file_source();
	if (file == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", path);
	file->base.notices = options->notices;
	error = open_file(file, path, failure);
	if (error < 0) {
		source_close(&file->base);
		return error;
	}
	*ret_source = &file->base;
	return 0;
}

int source_path_busy(const char *path, bool *ret_busy, char **ret_why, struct failure *failure)
{
	AUTO_CLOSE int fd = -1;
	struct stat status;

	if (stat(path, &status) < 0 && errno == ENOENT) {
		*ret_busy = false;
		if (ret_why != NULL)
			*ret_why = NULL;
		return 0;
	}
	fd = open_buffered(path, &status, failure);
	if (fd < 0)
		return fd;
	return device_use_find(fd, path, DEVICE_USE_BUSY, 0, UINT64_MAX, ret_busy, ret_why, failure);
}
