/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is somebody using this device?
 *
 * Use happens on top of a device in ways that its own name doesn't show: a disk's
 * partition is part of a mirror that carries a volume group one of whose volumes
 * is mounted. So the search climbs:
 *
 *     device -> its partitions -> devices that hold it (/sys/…/holders: device
 *               mapper, md, bcache) -> loop devices set up on it -> …
 *
 * and looks at each for mounts and swap. A range of bytes follows partitions and
 * loop devices, whose offsets are known; what a holder does with its parts isn't,
 * so a holder counts wherever the range lies. A partition is in use as well when
 * the whole disk is (multipath holds disks, not partitions).
 *
 * Last, what nothing explains: the kernel lets one owner at a time claim a
 * device, so opening it O_EXCL fails when a file system in another mount
 * namespace, a ZFS pool, or a journal on a device of its own has it. The claim of
 * such a probe lasts microseconds, and only devices are probed that
 * are not known to be claimed.
 *
 * Files: loop devices on them, swap files, and locks. QEMU marks each image it has
 * open by read locks on single bytes from 100 on, one for each permission it holds
 * (its block/file-posix.c defines them); byte 101 says "writes".
 */
#include "syncer/device_use.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "syncer/device_survey.h"

enum {
	MOST_LEVELS = 24,	/* of devices on devices; more is taken for use */
	MOST_DEVICES = 20000,	/* looked at in one search; the same */
	QEMU_LOCKS_FIRST = 100, /* the bytes of a file that QEMU's image locks lie on */
	QEMU_LOCKS_END = 300,
	QEMU_LOCK_WRITES = 101,
};

struct search {
	const struct device_survey *survey;
	enum device_use_kind kind;
	const char *name; /* of what was asked about */
	dev_t asked;	  /* 0: a file */
	unsigned devices_left;
	char *why; /* owned, NULL: nothing found yet */
};

/* What a device was found to be. A claimed one has an owner who is known and doesn't count. */
enum { USE_NONE, USE_CLAIMED, USE_FOUND };

struct range {
	uint64_t off_bytes;
	uint64_t end_bytes; /* UINT64_MAX: as far as it goes */
};

static const struct range whole_range = {.off_bytes = 0, .end_bytes = UINT64_MAX};

static uint64_t add_up_to_max(uint64_t a, uint64_t b)
{
	uint64_t sum;

	return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

/* The part of `range` that lies in [off, off + len), counted from `off`. False: none does. */
static bool cut_range(struct range range, uint64_t off_bytes, uint64_t len_bytes, struct range *ret_range)
{
	uint64_t end_bytes = add_up_to_max(off_bytes, len_bytes);
	uint64_t first = range.off_bytes > off_bytes ? range.off_bytes : off_bytes;
	uint64_t last = range.end_bytes < end_bytes ? range.end_bytes : end_bytes;

	if (first >= last)
		return false;
	ret_range->off_bytes = first - off_bytes;
	ret_range->end_bytes = last == UINT64_MAX ? UINT64_MAX : last - off_bytes;
	return true;
}

/* USE_FOUND, or -ENOMEM. */
__attribute__((format(printf, 2, 3))) static int found(struct search *search, const char *format, ...)
{
	va_list arguments;
	int len;

	va_start(arguments, format);
	len = vasprintf(&search->why, format, arguments);
	va_end(arguments);
	if (len >= 0)
		return USE_FOUND;
	search->why = NULL;
	return -ENOMEM;
}

/* "/dev/sda2", or "/dev/mapper/root on /dev/sda" for what lies somewhere on top of it. */
static const char *describe(const struct search *search, dev_t device, char text[2 * DEVICE_NAME_BYTES])
{
	char name[DEVICE_NAME_BYTES];

	if (device == search->asked)
		(void)snprintf(text, 2 * DEVICE_NAME_BYTES, "%.500s", search->name);
	else
		(void)snprintf(text, 2 * DEVICE_NAME_BYTES, "%s (on %.300s)", device_get_name(device, name),
			       search->name);
	return text;
}

/* ------------------------------------------------------------ one device */

static int look_for_mounts(struct search *search, dev_t device)
{
	const struct device_survey *survey = search->survey;
	char text[2 * DEVICE_NAME_BYTES];
	int result = USE_NONE;

	for (size_t i = 0; i < survey->mount_count; i++) {
		const struct device_mount *mount = &survey->mounts[i];

		if (mount->device != device)
			continue;
		if (mount->is_writable || search->kind != DEVICE_USE_CHANGES)
			return found(search, "%s is mounted on %s", describe(search, device, text), mount->where);
		result = USE_CLAIMED;
	}
	return result;
}

static int look_for_swap(struct search *search, dev_t device)
{
	const struct device_survey *survey = search->survey;
	char text[2 * DEVICE_NAME_BYTES];

	for (size_t i = 0; i < survey->swap_count; i++) {
		if (survey->swaps[i].device != device)
			continue;
		if (search->kind == DEVICE_USE_MOUNTED)
			return USE_CLAIMED;
		return found(search, "%s is active swap", describe(search, device, text));
	}
	return USE_NONE;
}

/* Has anybody claimed the device for himself? An answer that can't be had (no right to open it) is no. */
static bool is_claimed(dev_t device)
{
	char name[DEVICE_NAME_BYTES];
	AUTO_CLOSE int fd = -1;

	if (!device_survey_is_real() || device_get_name(device, name)[0] != '/')
		return false;
	fd = open(name, O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC);
	return fd < 0 && errno == EBUSY;
}

static int look_at_device(struct search *search, dev_t device, struct range range, unsigned level, bool claimed_below);

static int look_at_holders(struct search *search, dev_t device, unsigned level)
{
	AUTO(device_list_free) struct device_list holders = {.devices = NULL};
	char text[2 * DEVICE_NAME_BYTES];
	char name[DEVICE_NAME_BYTES];
	int result = device_list_holders(device, &holders);

	if (result < 0)
		return result;
	for (size_t i = 0; i < holders.count; i++) {
		if (search->kind == DEVICE_USE_BUSY)
			return found(search, "%s is part of %s", describe(search, device, text),
				     device_get_name(holders.devices[i], name));
		result = look_at_device(search, holders.devices[i], whole_range, level + 1, false);
		if (result < 0 || result == USE_FOUND)
			return result;
	}
	return holders.count > 0 ? USE_CLAIMED : USE_NONE;
}

/* The loop devices that lie on a device, or, with `device` 0, on a file. */
static int look_at_loops(struct search *search, dev_t device, const struct stat *file, struct range range,
			 unsigned level)
{
	const struct device_survey *survey = search->survey;
	char text[2 * DEVICE_NAME_BYTES];
	char name[DEVICE_NAME_BYTES];

	for (size_t i = 0; i < survey->loop_count; i++) {
		const struct device_loop *loop = &survey->loops[i];
		struct range part;
		int result;

		if (loop->on_device != device)
			continue;
		if (device == 0 && (loop->file_device != file->st_dev || loop->file_inode != file->st_ino))
			continue;
		if (!cut_range(range, loop->off_bytes, loop->len_bytes, &part))
			continue;
		if (search->kind == DEVICE_USE_BUSY)
			return found(search, "%s is what %s lies on", describe(search, device, text),
				     device_get_name(loop->device, name));
		result = look_at_device(search, loop->device, part, level + 1, false);
		if (result < 0 || result == USE_FOUND)
			return result;
	}
	return USE_NONE;
}

static int look_at_partition(struct search *search, dev_t partition, struct range range, unsigned level,
			     bool claimed_below)
{
	uint64_t first_sector;
	uint64_t sectors;
	struct range part = whole_range;

	/* /sys counts in units of 512 whatever the sector size; disks end before 2^63. */
	if (device_read_number(partition, "start", &first_sector) == 0 &&
	    device_read_number(partition, "size", &sectors) == 0 && first_sector < UINT64_MAX / 512 &&
	    sectors < UINT64_MAX / 512 && !cut_range(range, first_sector * 512, sectors * 512, &part))
		return USE_NONE;
	return look_at_device(search, partition, part, level + 1, claimed_below);
}

static int look_at_partitions(struct search *search, dev_t device, struct range range, unsigned level,
			      bool claimed_below, bool *ret_has_partitions)
{
	AUTO(device_list_free) struct device_list partitions = {.devices = NULL};
	int result = device_list_partitions(device, &partitions);

	if (result < 0)
		return result;
	*ret_has_partitions = partitions.count > 0;
	for (size_t i = 0; i < partitions.count; i++) {
		result = look_at_partition(search, partitions.devices[i], range, level, claimed_below);
		if (result < 0 || result == USE_FOUND)
			return result;
	}
	return USE_NONE;
}

/* Mounts, swap and holders of the device itself. */
static int look_at_owners(struct search *search, dev_t device, unsigned level)
{
	int mounts = look_for_mounts(search, device);
	int swap = mounts < 0 || mounts == USE_FOUND ? mounts : look_for_swap(search, device);
	int holders = swap < 0 || swap == USE_FOUND ? swap : look_at_holders(search, device, level);

	if (holders < 0 || holders == USE_FOUND)
		return holders;
	return mounts == USE_CLAIMED || swap == USE_CLAIMED ? USE_CLAIMED : holders;
}

/*
 * `claimed_below`: the disk under this partition has an owner, so the partition can't be claimed by itself.
 * A disk with partitions isn't probed: that fails as soon as one of them is claimed, and they are probed one by one.
 */
static int look_at_device(struct search *search, dev_t device, struct range range, unsigned level, bool claimed_below)
{
	char text[2 * DEVICE_NAME_BYTES];
	bool has_partitions = false;
	bool has_owner;
	int result;

	if (level > MOST_LEVELS || search->devices_left == 0)
		return found(search, "too many devices lie on %s to tell", search->name);
	search->devices_left--;

	result = look_at_owners(search, device, level);
	if (result < 0 || result == USE_FOUND)
		return result;
	has_owner = result == USE_CLAIMED || claimed_below;
	result = look_at_partitions(search, device, range, level, has_owner, &has_partitions);
	if (result < 0 || result == USE_FOUND)
		return result;
	result = look_at_loops(search, device, NULL, range, level);
	if (result < 0 || result == USE_FOUND)
		return result;
	if (!has_owner && !has_partitions && is_claimed(device))
		return found(search, "%s is held by something that can't be seen from here",
			     describe(search, device, text));
	return has_owner ? USE_CLAIMED : USE_NONE;
}

/* ----------------------------------------------------------------- locks */

/* True if a lock of this type on the range would not be granted; `ret_lock` is what stands in the way. */
static bool lock_would_conflict(int fd, short type, off_t start, off_t len, struct flock *ret_lock)
{
	*ret_lock = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
	return fcntl(fd, F_OFD_GETLK, ret_lock) == 0 && ret_lock->l_type != F_UNLCK;
}

static int describe_lock(struct search *search, const struct flock *lock, const char *what)
{
	if (lock->l_pid > 0)
		return found(search, "%s is %s by process %d", search->name, what, (int)lock->l_pid);
	return found(search, "%s is %s by another process", search->name, what);
}

static int look_for_locks(struct search *search, int fd)
{
	struct flock lock;

	if (lock_would_conflict(fd, F_RDLCK, 0, 0, &lock))
		return describe_lock(search, &lock, "locked for writing");
	if (search->kind == DEVICE_USE_BUSY && lock_would_conflict(fd, F_WRLCK, 0, 0, &lock))
		return describe_lock(search, &lock, "locked");
	/* A read lock on the whole file is no sign of a writer, so the one found must be QEMU's by its place. */
	if (lock_would_conflict(fd, F_WRLCK, QEMU_LOCK_WRITES, 1, &lock) && lock.l_len > 0 &&
	    lock.l_start >= QEMU_LOCKS_FIRST && lock.l_start + lock.l_len <= QEMU_LOCKS_END)
		return describe_lock(search, &lock, "open for writing in a virtual machine, or otherwise in QEMU,");
	return USE_NONE;
}

/* ------------------------------------------------------------ from outside */

/* What the disk under a partition is used for as a whole, and loop devices on the disk that cover part of the
 * partition. */
static int look_below_partition(struct search *search, dev_t partition, dev_t disk, struct range range)
{
	uint64_t first_sector;
	int owners = look_at_owners(search, disk, 0);
	int result;

	if (owners < 0 || owners == USE_FOUND)
		return owners;
	if (device_read_number(partition, "start", &first_sector) < 0 || first_sector > UINT64_MAX / 512)
		return owners;
	range.off_bytes = add_up_to_max(range.off_bytes, first_sector * 512);
	range.end_bytes = add_up_to_max(range.end_bytes, first_sector * 512);
	result = look_at_loops(search, disk, NULL, range, 0);
	return result < 0 || result == USE_FOUND ? result : owners;
}

static int look_at_block_device(struct search *search, int fd, dev_t device, struct range range)
{
	bool disk_has_owner = false;
	uint64_t sectors;
	dev_t disk;
	int result;

	search->asked = device;
	if (device_read_number(device, "size", &sectors) == 0 && sectors > 0 && sectors <= UINT64_MAX / 512 &&
	    range.end_bytes > sectors * 512)
		range.end_bytes = sectors * 512;
	if (device_get_whole_disk(device, &disk)) {
		result = look_below_partition(search, device, disk, range);
		if (result < 0 || result == USE_FOUND)
			return result;
		disk_has_owner = result == USE_CLAIMED;
	}
	result = look_at_device(search, device, range, 0, disk_has_owner);
	if (result < 0 || result == USE_FOUND)
		return result;
	return look_for_locks(search, fd);
}

static int look_at_file(struct search *search, int fd, const struct stat *status, struct range range)
{
	const struct device_survey *survey = search->survey;
	int result;

	for (size_t i = 0; i < survey->swap_count && search->kind != DEVICE_USE_MOUNTED; i++) {
		const struct device_swap *swap = &survey->swaps[i];

		if (swap->device == 0 && swap->file_device == status->st_dev && swap->file_inode == status->st_ino)
			return found(search, "%s is active swap", search->name);
	}
	result = look_at_loops(search, 0, status, range, 0);
	if (result < 0 || result == USE_FOUND)
		return result;
	return look_for_locks(search, fd);
}

static int look_at_descriptor(struct search *search, int fd, struct range range)
{
	AUTO(device_survey_free) struct device_survey survey = {.mounts = NULL};
	struct stat status;
	int error;

	if (fstat(fd, &status) < 0)
		return found(search, "%s can't be examined: %s", search->name, strerrordesc_np(errno));
	error = device_survey_make(&survey);
	if (error == -ENOMEM)
		return error;
	if (error < 0)
		return found(search, "what uses %s can't be told: /proc/self/mountinfo: %s", search->name,
			     strerrordesc_np(-error));
	search->survey = &survey;
	if (S_ISBLK(status.st_mode))
		return look_at_block_device(search, fd, status.st_rdev, range);
	return look_at_file(search, fd, &status, range);
}

int device_use_find(int fd, const char *name, enum device_use_kind kind, uint64_t off_bytes, uint64_t len_bytes,
		    bool *ret_found, char **ret_why, struct failure *failure)
{
	struct search search = {.kind = kind, .name = name, .devices_left = MOST_DEVICES};
	struct range range = {.off_bytes = off_bytes, .end_bytes = add_up_to_max(off_bytes, len_bytes)};
	int result = look_at_descriptor(&search, fd, range);

	if (result < 0)
		return fail_errno(failure, result, "%s: can't find out who uses it", name);
	*ret_found = result == USE_FOUND;
	if (ret_why != NULL)
		*ret_why = take_ptr(search.why);
	free(search.why);
	return 0;
}
