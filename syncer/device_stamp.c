/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Did it change in between, and is it the same as last time?
 *
 * A stamp errs on one side only: it may differ although nothing was written, never
 * the other way round.
 *
 *   file    size, inode, mtime and ctime. Kernels before 6.13 move those in steps of a clock tick, some
 *           file systems in steps of seconds: a write in the same step as the last one leaves no trace. So a
 *           stamp waits until the last change lies a step behind, and when it can't (the file is being
 *           written, clocks disagree) it gets something unique. A program that writes through
 *           mmap() shows itself at its next page fault, not at each store.
 *   device  how many writes and discards the kernel has completed on the whole disk since boot, which includes those
 *           to a partition and those by way of the disk to the partition's place. Direct reads push
 *           dirty pages of the device out before they read, so those are counted too. A device that doesn't count
 *           (statistics off, some drivers) is found by our own reads not being there.
 */
#include "syncer/device_use.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/cleanup.h"
#include "syncer/device_survey.h"

enum {
	TICK_NS = 20 * 1000 * 1000,	/* two ticks of the slowest clock, HZ=100 */
	COARSE_NS = 2100 * 1000 * 1000, /* FAT and its two seconds */
	MOST_WAITS = 5,
	DEVICE_PROBE_BYTES = 4096
};

static int64_t to_ns(struct timespec time)
{
	return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec now;

	(void)clock_gettime(clock, &now); /* can't fail for the clocks used here */
	return to_ns(now);
}

/* True if a write from now on gives the file another ctime than it has. */
static bool has_settled(const struct stat *status)
{
	int64_t age_ns = now_ns(CLOCK_REALTIME_COARSE) - to_ns(status->st_ctim);

	return age_ns > (status->st_ctim.tv_nsec != 0 ? TICK_NS : COARSE_NS);
}

static int stamp_file(int fd, const char *name, char **ret_stamp, struct failure *failure)
{
	const struct timespec tick = {.tv_nsec = TICK_NS};
	struct stat status;
	char unique[40] = "";

	for (unsigned waits = 0;; waits++) {
		if (fstat(fd, &status) < 0)
			return fail_errno(failure, -errno, "%s: can't be examined", name);
		if (has_settled(&status))
			break;
		if (waits == MOST_WAITS) {
			(void)snprintf(unique, sizeof(unique), ":%" PRId64, now_ns(CLOCK_MONOTONIC));
			break;
		}
		(void)nanosleep(&tick, NULL); /* cut short by a signal: one wait less */
	}
	if (asprintf(ret_stamp, "file:%ju:%ju:%jd:%" PRId64 ":%" PRId64 "%s", (uintmax_t)status.st_dev,
		     (uintmax_t)status.st_ino, (intmax_t)status.st_size, to_ns(status.st_mtim), to_ns(status.st_ctim),
		     unique) < 0)
		return fail(failure, -ENOMEM, "%s: out of memory", name);
	return 0;
}

struct device_counts {
	uint64_t reads;
	uint64_t writes, written_sectors;
	uint64_t discards, discarded_sectors;
};

/* Documentation/block/stat.rst; kernels before 4.18 don't count discards. False: can't be read. */
static bool read_counts(dev_t disk, struct device_counts *ret_counts)
{
	char text[512];
	struct device_counts counts = {.reads = 0};
	int fields;

	if (device_read_attribute(disk, "stat", text, sizeof(text)) < 0)
		return false;
	fields = sscanf(
		text, "%" SCNu64 " %*u %*u %*u %" SCNu64 " %*u %" SCNu64 " %*u %*u %*u %*u %" SCNu64 " %*u %" SCNu64,
		&counts.reads, &counts.writes, &counts.written_sectors, &counts.discards, &counts.discarded_sectors);
	*ret_counts = counts;
	return fields >= 3;
}

/* Reads a little past all caches, for the counters to show it. */
static void read_a_little(int fd)
{
	AUTO_FREE char *path = NULL;
	AUTO_FREE void *buffer = NULL;
	AUTO_CLOSE int direct_fd = -1;

	if (asprintf(&path, "/proc/self/fd/%d", fd) < 0) {
		path = NULL;
		return;
	}
	direct_fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (direct_fd < 0 || posix_memalign(&buffer, DEVICE_PROBE_BYTES, DEVICE_PROBE_BYTES) != 0)
		return;
	if (pread(direct_fd, buffer, DEVICE_PROBE_BYTES, 0) < 0)
		return; /* counted or not is all that matters, and the counters say so */
}

static bool read_counts_if_it_counts(int fd, dev_t disk, struct device_counts *ret_counts)
{
	uint64_t keeps_statistics = 1;

	(void)device_read_number(disk, "queue/iostats", &keeps_statistics); /* absent: see below */
	if (keeps_statistics == 0 || !read_counts(disk, ret_counts))
		return false;
	if (ret_counts->reads > 0)
		return true;
	read_a_little(fd);
	return read_counts(disk, ret_counts) && ret_counts->reads > 0;
}

/* A loop device's backing file can be written past it. "" for every other device. */
static void describe_backing_file(dev_t disk, char text[64])
{
	char path[PATH_MAX];
	struct stat status;

	text[0] = '\0';
	if (device_read_attribute(disk, "loop/backing_file", path, sizeof(path)) == 0 && stat(path, &status) == 0)
		(void)snprintf(text, 64, ":%" PRId64, to_ns(status.st_ctim));
}

static void read_boot_id(char text[64])
{
	AUTO_FREE char *path = device_survey_path("/proc/sys/kernel/random/boot_id");
	AUTO_FCLOSE FILE *file = path != NULL ? fopen(path, "re") : NULL;

	if (file == NULL || fgets(text, 64, file) == NULL)
		text[0] = '\0';
	text[strcspn(text, "\n")] = '\0';
}

static int stamp_device(int fd, const char *name, dev_t device, uint64_t size_bytes, char **ret_stamp,
			struct failure *failure)
{
	struct device_counts counts;
	char boot_id[64];
	char sequence[32] = "";
	char backing[64];
	dev_t disk = device;
	int len;

	(void)device_get_whole_disk(device, &disk); /* stays the device itself */
	read_boot_id(boot_id);
	if (boot_id[0] == '\0' || !read_counts_if_it_counts(fd, disk, &counts)) {
		*ret_stamp = strdup("");
		return *ret_stamp != NULL ? 0 : fail(failure, -ENOMEM, "%s: out of memory", name);
	}
	(void)device_read_attribute(disk, "diskseq", sequence, sizeof(sequence)); /* since Linux 5.15; stays "" */
	describe_backing_file(disk, backing);
	len = asprintf(ret_stamp, "block:%s:%s:%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRIu64 "%s", boot_id,
		       sequence, size_bytes, counts.writes, counts.written_sectors, counts.discards,
		       counts.discarded_sectors, backing);
	return len >= 0 ? 0 : fail(failure, -ENOMEM, "%s: out of memory", name);
}

int device_use_change_stamp(int fd, const char *name, uint64_t size_bytes, char **ret_stamp, struct failure *failure)
{
	struct stat status;
	char *stamp = NULL;
	int error;

	if (fstat(fd, &status) < 0)
		return fail_errno(failure, -errno, "%s: can't be examined", name);
	if (S_ISBLK(status.st_mode))
		error = stamp_device(fd, name, status.st_rdev, size_bytes, &stamp, failure);
	else
		error = stamp_file(fd, name, &stamp, failure);
	if (error == 0)
		*ret_stamp = stamp;
	return error;
}

/* --------------------------------------------------------------- identity */

/* What names the medium itself, best first. */
static void find_serial(dev_t disk, char *ret_text, size_t text_bytes)
{
	static const char *const leaves[] = {"dm/uuid",	     "md/uuid", "loop/backing_file", "wwid",
					     "device/wwid",  "serial",	"device/serial",     "device/cid",
					     "device/nguid", NULL};

	for (size_t i = 0; leaves[i] != NULL; i++) {
		if (device_read_attribute(disk, leaves[i], ret_text, text_bytes) == 0 && ret_text[0] != '\0')
			return;
	}
	ret_text[0] = '\0';
}

/* "block:/dev/sda2:naa.5000c500a1b2c3d4:2": a kernel's name alone may be another disk's after a reboot. */
static char *identify_device(dev_t device)
{
	char name[DEVICE_NAME_BYTES];
	char serial[PATH_MAX];
	uint64_t partition = 0;
	uint64_t loop_off_bytes = 0;
	dev_t disk = device;
	char *identity = NULL;
	int len;

	if (device_get_whole_disk(device, &disk))
		(void)device_read_number(device, "partition", &partition); /* was there a moment ago, else 0 */
	(void)device_read_number(disk, "loop/offset", &loop_off_bytes);	   /* no loop device: 0 */
	find_serial(disk, serial, sizeof(serial));
	(void)device_get_name(device, name);
	if (partition != 0 || loop_off_bytes != 0)
		len = asprintf(&identity, "block:%s:%s:%" PRIu64 ":%" PRIu64, name, serial, partition, loop_off_bytes);
	else
		len = asprintf(&identity, "block:%s:%s", name, serial);
	return len < 0 ? NULL : identity;
}

char *device_use_identity(int fd, const char *path)
{
	AUTO_FREE char *real_path = NULL;
	char *identity = NULL;
	struct stat status;

	if (fstat(fd, &status) < 0)
		return NULL;
	if (S_ISBLK(status.st_mode))
		return identify_device(status.st_rdev);
	real_path = realpath(path, NULL);
	/* another file that has taken its place is another source */
	if (asprintf(&identity, "file:%ju:%s", (uintmax_t)status.st_ino, real_path != NULL ? real_path : path) < 0)
		return NULL;
	return identity;
}
