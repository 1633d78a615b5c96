/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mounting. What each way leaves behind it that only we know how to take away is noted before it is made; most of it goes by itself:
 *
 *     loop    the loop device belongs to who has it open, and in the end that is the mount; wherryfs is mounted on a private directory just until its
 *             file is open, so in the end its only user is the loop device. So 'umount DIR' by hand frees the device, which closes the file, which is
 *             the end of wherryfs; and so does the end of ourselves, at any moment before.
 *     nbd     nbdkit goes with its client, the device. That has to be disconnected: by 'wherry umount', or 'wherry detach'.
 *     files   wherryfs ends when it is unmounted.
 *
 * Of a partition nothing but the partition is made a device: nobody on this host is to find out that there are others, and activate a volume group of them.
 */
#include "tools/mount_ways.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fsreader/fsreader.h"
#include "tools/fs_server.h"
#include "tools/loop_device.h"
#include "tools/mount_table.h"
#include "tools/nbd_device.h"
#include "tools/programs.h"

enum { ALIVE_STEP_MS = 20, ALIVE_TELL_MS = 3000, ALIVE_WAIT_MS = 600000, PRUNE_WAIT_MS = 2000 };

static int fail_memory(struct failure *failure)
{
	return fail(failure, -ENOMEM, "mount: out of memory");
}

static bool is_image(const struct mount_job *job)
{
	return job->reference.which != STORE_LIVE;
}

static bool is_volume(const struct mount_job *job)
{
	return job->choice.volume[0] != '\0';
}

/* A volume of several pieces: there is a file of it, that can be read. */
static bool is_scattered(const struct mount_job *job)
{
	return is_volume(job) && job->choice.len_bytes == 0;
}

static int check_stop(const struct mount_job *job)
{
	return atomic_load(job->stop) ? -EINTR : 0;
}

/* ---- a file system of the kernel's ---- */

/* What the kernel calls it. */
static const char *kernel_type(const char *type)
{
	return strcmp(type, "ntfs") == 0 ? "ntfs3" : type;
}

static int check_kernel_type(const struct mount_job *job, struct failure *failure)
{
	if (mount_table_kernel_knows(kernel_type(job->choice.type)))
		return 0;
	return fail(failure, -ENODEV, "this kernel has no code for %s", job->choice.type);
}

/* Caller frees; NULL: out of memory. */
static char *kernel_options(const struct mount_job *job)
{
	const char *own = job->options->mount_options;
	char *text = NULL;

	/* Somebody else's disk says who may do what on it: its devices and set-user-ID programs are not to mean anything here. A clone of an XFS that
	 * is mounted here has the same UUID. */
	if (asprintf(&text, "%s,nosuid,nodev%s%s%s", job->writes ? "rw" : "ro", strcmp(job->choice.type, "xfs") == 0 ? ",nouuid" : "",
		     own == NULL ? "" : ",", own == NULL ? "" : own) < 0)
		return NULL;
	return text;
}

static bool btrfs_is_mounted_already(const struct mount_job *job)
{
	char path[128];

	(void)snprintf(path, sizeof(path), "/sys/fs/btrfs/%s", job->choice.uuid);
	return strcmp(job->choice.type, "btrfs") == 0 && job->choice.uuid[0] != '\0' && access(path, F_OK) == 0;
}

static int run_mount(const struct mount_job *job, const char *node, struct failure *failure)
{
	AUTO_FREE char *options = kernel_options(job);
	AUTO_FREE char *said = malloc(PROGRAM_WORDS_BYTES);
	const char *hint = "";
	const char *const words[] = {"mount", "-t", kernel_type(job->choice.type), "-o", options, node, job->record->directory, NULL};
	int status;

	if (options == NULL || said == NULL)
		return fail_memory(failure);
	status = programs_run(&(struct program_run){.words = words, .kept_fd = -1, .ret_words = said});
	if (status == 0)
		return 0;
	if (status == PROGRAM_MISSING)
		return fail(failure, -ENOENT, "mount(8): is not installed");
	if (btrfs_is_mounted_already(job))
		hint = "; a Btrfs of the same UUID is mounted on this host, and the kernel takes the two for one: --via files reads it without the "
		       "kernel";
	else if (!is_image(job) && !job->writes)
		hint = "; if its journal has to be replayed, that writes to it: mount it with --rw, or an image of it";
	return fail(failure, -EIO, "%s: %s%s", job->name, programs_first_line(said, "mount"), hint);
}

/*
 * A read-only mount of an image is tried on a device that can't be written to, and if that fails once more on one that can, over the overlay. (The device is
 * made anew for that: BLKROSET would stick to its number, and whoever had that next could not write.)
 */
static bool may_be_replayed(const struct mount_job *job)
{
	return is_image(job) && !job->writes && !is_scattered(job);
}

static int note_device(struct mount_job *job, const char *node, struct failure *failure)
{
	free(job->record->device);
	job->record->device = strdup(node);
	return job->record->device == NULL ? fail_memory(failure) : mount_record_write(job->record, failure);
}

/* ---- nbd ---- */

static int check_nbd(const struct mount_job *job, struct failure *failure)
{
	int error = nbd_device_check_kernel(failure);

	if (error == 0 && is_volume(job))
		error = fail(failure, -ENOTSUP, "logical volumes are not served over NBD");
	if (error == 0)
		error = nbd_server_check(failure);
	if (error == 0 && programs_run_quietly((const char *const[]){"nbd-client", "-V", NULL}) == PROGRAM_MISSING)
		error = fail(failure, -ENOENT, "nbd-client is not installed; apt install nbd-client");
	return error < 0 ? error : check_kernel_type(job, failure);
}

static int try_nbd(struct mount_job *job, bool over_overlay, struct failure *failure)
{
	const struct options options = {.store = job->record->store,
					.scratch = over_overlay,
					.read_only = !over_overlay && !job->writes,
					.cache_bytes = job->options->cache_bytes};
	const struct nbd_server server = {.reference = job->name, .options = &options, .ends_with_last_client = true, .ready_fd = -1};
	char node[NBD_NODE_BYTES];
	unsigned device;
	int error = nbd_device_attach(job->runtime, server, NBD_ANY_DEVICE, job->record->folder, &device, failure);

	if (error == 0)
		error = note_device(job, nbd_device_node(device, node), failure);
	if (error == 0)
		error = check_stop(job);
	return error < 0 ? error : run_mount(job, node, failure);
}

static int mount_by_nbd(struct mount_job *job, struct failure *failure)
{
	int error;

	if (!may_be_replayed(job))
		return try_nbd(job, is_image(job), failure);
	if (try_nbd(job, false, NULL) == 0)
		return 0;
	error = check_stop(job);
	if (error == 0)
		error = nbd_device_detach_purpose(job->runtime, job->record->folder, failure);
	if (error == 0)
		error = try_nbd(job, true, failure);
	job->is_replayed = error == 0;
	return error;
}

/* ---- wherryfs, for the two that follow ---- */

/* Its -o: caller frees; NULL: out of memory. `below` is the part of its tree that is shown. */
static char *fs_options(const struct mount_job *job, const char *flags, const char *below, const char *own)
{
	char cache[48] = "";
	char image[64] = "";
	char *text = NULL;

	if (job->options->cache_bytes != 0)
		(void)snprintf(cache, sizeof(cache), ",cache=%" PRIu64, job->options->cache_bytes);
	if (is_image(job))
		(void)snprintf(image, sizeof(image), "/images/%" PRIu32, job->reference.number);
	if (asprintf(&text, "disk=%s,root=%s%s%s,fsname=%s%s%s%s%s", job->reference.disk, job->reference.disk, image, below, job->name, flags, cache,
		     own == NULL ? "" : ",", own == NULL ? "" : own) < 0)
		return NULL;
	return text;
}

static int start_fs(const struct mount_job *job, const char *directory, char *options, struct failure *failure)
{
	const struct fs_server server = {.store = job->record->store, .directory = directory, .options = options, .alive_fd = job->record->alive_fd};

	return options == NULL ? fail_memory(failure) : fs_server_start(&server, failure);
}

/* ---- loop ---- */

static int check_loop(const struct mount_job *job, struct failure *failure)
{
	int error = loop_device_check(failure);

	if (error == 0 && is_scattered(job) && (job->writes || !is_image(job)))
		error = fail(failure, -ENOTSUP, "a logical volume of several pieces can be read only, and of an image");
	if (error == 0)
		error = fs_server_check(failure);
	return error < 0 ? error : check_kernel_type(job, failure);
}

/* Caller frees; NULL: out of memory. */
static char *private_directory(const struct mount_record *record)
{
	char *path = NULL;

	return asprintf(&path, "%s/fs", record->folder) < 0 ? NULL : path;
}

/* The file below the directory of the disk or image that the file system is in. Caller frees; NULL: out of memory. */
static char *file_path(const struct mount_job *job, const char *directory)
{
	char *path = NULL;
	int length;

	if (is_scattered(job))
		length = asprintf(&path, "%s/lv/%s.raw", directory, job->choice.volume);
	else if (job->choice.partition == 0)
		length = asprintf(&path, "%s/disk.raw", directory);
	else
		length = asprintf(&path, "%s/part/%" PRIu32 ".raw", directory, job->choice.partition);
	return length < 0 ? NULL : path;
}

static int open_file(const struct mount_job *job, const char *directory, int *ret_fd, struct failure *failure)
{
	AUTO_FREE char *path = file_path(job, directory);

	if (path == NULL)
		return fail_memory(failure);
	*ret_fd = open(path, (job->writes ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	return *ret_fd >= 0 ? 0 : fail_errno(failure, -errno, "%s: opening it", job->name);
}

/* The file, in a wherryfs that nobody else can see any more, and that ends when the file is closed. */
static int open_in_private(struct mount_job *job, int *ret_fd, struct failure *failure)
{
	AUTO_FREE char *directory = private_directory(job->record);
	AUTO_FREE char *options = fs_options(job, is_image(job) ? ",scratch" : job->writes ? "" : ",ro", "", NULL);
	AUTO_CLOSE int fd = -1;
	int error;

	if (directory == NULL || options == NULL)
		return fail_memory(failure);
	if (mkdir(directory, 0700) < 0 && errno != EEXIST)
		return fail_errno(failure, -errno, "%s", directory);
	error = start_fs(job, directory, options, failure);
	if (error == 0)
		error = open_file(job, directory, &fd, failure);
	if (error < 0)
		return error;
	if (umount2(directory, MNT_DETACH) < 0)
		return fail_errno(failure, -errno, "%s: unmounting", directory);
	*ret_fd = take_fd(&fd);
	return 0;
}

static int try_loop(struct mount_job *job, int file_fd, struct failure *failure)
{
	bool is_range = is_volume(job) && !is_scattered(job);
	const struct loop_file file = {.fd = file_fd,
				       .name = job->name,
				       .off_bytes = is_range ? job->choice.off_bytes : 0,
				       .len_bytes = is_range ? job->choice.len_bytes : 0};
	char node[LOOP_NODE_BYTES];
	AUTO_CLOSE int fd = -1;
	int error = loop_device_attach(&file, &fd, node, failure);

	if (error == 0)
		error = note_device(job, node, failure);
	if (error == 0)
		error = check_stop(job);
	return error < 0 ? error : run_mount(job, node, failure);
}

/* The same file, to be written to: by a link of the kernel's, for it is in a file system that is not mounted anywhere any more. */
static int reopen_to_write(int fd, int *ret_fd, struct failure *failure)
{
	char path[48];

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	*ret_fd = open(path, O_RDWR | O_CLOEXEC);
	return *ret_fd >= 0 ? 0 : fail_errno(failure, -errno, "opening an overlay");
}

static int mount_by_loop(struct mount_job *job, struct failure *failure)
{
	AUTO_CLOSE int file_fd = -1;
	AUTO_CLOSE int overlay_fd = -1;
	int error = open_in_private(job, &file_fd, failure);

	if (error == 0)
		error = check_stop(job);
	if (error < 0 || !may_be_replayed(job))
		return error < 0 ? error : try_loop(job, file_fd, failure);
	if (try_loop(job, file_fd, NULL) == 0)
		return 0;
	error = check_stop(job);
	if (error == 0)
		error = reopen_to_write(file_fd, &overlay_fd, failure);
	if (error == 0)
		error = try_loop(job, overlay_fd, failure);
	job->is_replayed = error == 0;
	return error;
}

/* ---- files ---- */

static int check_files(const struct mount_job *job, struct failure *failure)
{
	int error;

	if (!is_image(job))
		return fail(failure, -ENOTSUP,
			    "only images, which don't change meanwhile, can be read without a file system of the kernel's; "
			    "'wherry image %s' makes one",
			    job->reference.disk);
	if (job->writes)
		return fail(failure, -EROFS, "without a file system of the kernel's files can be read only");
	error = fsreader_check_type(job->choice.type, failure);
	return error < 0 ? error : fs_server_check(failure);
}

static int mount_by_files(struct mount_job *job, struct failure *failure)
{
	AUTO_FREE char *options = NULL;
	char below[MOUNT_VOLUME_BYTES + 16];

	if (is_volume(job))
		(void)snprintf(below, sizeof(below), "/files/%s", job->choice.volume);
	else if (job->choice.partition == 0)
		(void)snprintf(below, sizeof(below), "/files/disk");
	else
		(void)snprintf(below, sizeof(below), "/files/%" PRIu32, job->choice.partition);
	options = fs_options(job, ",ro", below, job->options->mount_options);
	return start_fs(job, job->record->directory, options, failure);
}

const struct mount_way mount_ways[] = {
	{VIA_NBD, check_nbd, mount_by_nbd},
	{VIA_LOOP, check_loop, mount_by_loop},
	{VIA_FILES, check_files, mount_by_files},
	{VIA_BEST, NULL, NULL},
};

/* ---- the way back ---- */

/* -ENOENT, without a message: nothing is mounted there. */
static int find_target(const struct mount_record *record, struct mounted *ret_mounted, bool *ret_is_ours, struct failure *failure)
{
	int error = mount_table_find(record->directory, ret_mounted, failure);

	if (error < 0)
		return error;
	/* what a mount is of is known by its source: for some types the number of the device is not that of the mount */
	*ret_is_ours = strcmp(ret_mounted->source, record->device != NULL ? record->device : record->reference) == 0;
	/* a loop device that was unmounted by hand is free, and may have been given to another's file, mounted here as well */
	if (*ret_is_ours && record->via == VIA_LOOP && record->device != NULL && loop_device_is_of_another(record->device, record->reference))
		*ret_is_ours = false;
	return 0;
}

bool mount_is_dead(const struct mount_record *record)
{
	return record->via != VIA_NBD && !mount_record_is_alive(record);
}

bool mount_is_there(const struct mount_record *record)
{
	AUTO(mounted_free) struct mounted mounted = {.directory = NULL};
	bool is_ours = false;

	return find_target(record, &mounted, &is_ours, NULL) == 0 && is_ours;
}

static int fail_busy(const char *directory, struct failure *failure)
{
	return fail(failure, -EBUSY, "%s: is in use: a process has its current directory or an open file there; nothing was undone", directory);
}

/* Who isn't root has FUSE's own program do it. */
static int detach_as_user(const char *directory, struct failure *failure)
{
	AUTO_FREE char *said = malloc(PROGRAM_WORDS_BYTES);
	const char *const words[] = {"fusermount3", "-u", directory, NULL};
	int status = said == NULL ? -1 : programs_run(&(struct program_run){.words = words, .kept_fd = -1, .ret_words = said});

	if (said == NULL)
		return fail_memory(failure);
	if (status == 0)
		return 0;
	if (status == PROGRAM_MISSING)
		return fail(failure, -ENOENT, "fusermount3 is not installed; apt install fuse3");
	if (strstr(said, strerror(EBUSY)) != NULL)
		return fail_busy(directory, failure);
	return fail(failure, -EIO, "%s: %s", directory, programs_first_line(said, "fusermount3"));
}

int mount_detach(const char *directory, struct failure *failure)
{
	if (geteuid() != 0)
		return detach_as_user(directory, failure);
	if (umount2(directory, UMOUNT_NOFOLLOW) == 0)
		return 0;
	return errno == EBUSY ? fail_busy(directory, failure) : fail_errno(failure, -errno, "%s: unmounting", directory);
}

static int detach_target(const struct mount_record *record, struct failure *failure)
{
	AUTO(mounted_free) struct mounted mounted = {.directory = NULL};
	bool is_ours = false;
	int error = find_target(record, &mounted, &is_ours, failure);

	if (error == -ENOENT)
		return 0; /* by hand, or it never came to that */
	if (error < 0 || is_ours)
		return error < 0 ? error : mount_detach(record->directory, failure);
	if (!mount_record_is_alive(record))
		return 0; /* ours is gone, and somebody has mounted something else */
	return fail(failure, -EBUSY, "%s: %s is mounted over it; 'umount %s' first", record->directory, mounted.source, record->directory);
}

/* Where a maker was killed in the middle. *ret_was_there: it was. */
static int detach_private(const struct mount_record *record, bool *ret_was_there, struct failure *failure)
{
	AUTO_FREE char *directory = private_directory(record);

	*ret_was_there = false;
	if (directory == NULL)
		return fail_memory(failure);
	for (;;) {
		AUTO(mounted_free) struct mounted mounted = {.directory = NULL};
		int error = mount_table_find(directory, &mounted, failure);

		if (error < 0)
			return error == -ENOENT ? 0 : error;
		if (umount2(directory, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
			return fail_errno(failure, -errno, "%s: unmounting", directory);
		*ret_was_there = true;
	}
}

/* What was written is folded into its place meanwhile. */
static int wait_for_end(const struct mount_record *record, unsigned most_ms, struct failure *failure)
{
	for (unsigned waited_ms = 0; mount_record_is_alive(record); waited_ms += ALIVE_STEP_MS) {
		if (waited_ms == ALIVE_TELL_MS)
			report_line("wherry: %s: unmounted; waiting until what was written is in its place", record->directory);
		if (waited_ms >= most_ms)
			return fail(failure, -ETIMEDOUT, "%s: unmounted, but wherryfs has not ended; does a process still use it?",
				    record->directory);
		(void)nanosleep(&(struct timespec){.tv_nsec = ALIVE_STEP_MS * 1000000L}, NULL); /* woken early: asks again */
	}
	return 0;
}

int mount_undo(const char *runtime, struct mount_record *record, struct failure *failure)
{
	int error = detach_target(record, failure);
	bool was_private;

	if (error == 0)
		error = detach_private(record, &was_private, failure);
	if (error == 0 && record->via == VIA_NBD)
		error = nbd_device_detach_purpose(runtime, record->folder, failure);
	if (record->alive_fd >= 0)
		(void)close(take_fd(&record->alive_fd)); /* our own hold of it, if we are who made it */
	if (error == 0)
		error = wait_for_end(record, ALIVE_WAIT_MS, failure);
	if (error == 0)
		mount_record_remove(runtime, record);
	return error;
}

/* Of one that is not mounted any more: what doesn't go by itself. A wherryfs that is still in use ends when it no longer is. */
static void prune_record(const char *runtime, struct mount_record *record)
{
	bool was_private;

	if (detach_private(record, &was_private, NULL) < 0) /* it stays for the next one */
		return;
	if (record->via == VIA_NBD && nbd_device_detach_purpose(runtime, record->folder, NULL) < 0)
		return;
	if (was_private)
		(void)wait_for_end(record, PRUNE_WAIT_MS, NULL); /* whose disk may be wanted next */
	mount_record_remove(runtime, record);
}

void mount_prune(const char *runtime)
{
	struct mount_record *list;
	size_t count;

	if (mount_records_list(runtime, &list, &count, NULL) < 0)
		return;
	/* looked at twice: one that is there isn't to be kept from others, and one that is being made may be there by now */
	for (size_t i = 0; i < count; i++)
		if (!mount_is_there(&list[i]) && mount_record_claim(&list[i], 0, NULL) == 0 && !mount_is_there(&list[i]))
			prune_record(runtime, &list[i]);
	mount_records_free(list, count);
}
