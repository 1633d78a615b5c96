/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room that is kept for giving room back.
 *
 * On a full file system nothing can be deleted: the deletion is a log entry and a transaction, and clean-up has to copy what lives in a segment before it can remove it.
 * So a store keeps a file `reserve` that holds nothing, large enough for one segment's worth of copying (less than half of one is alive) and the
 * transactions around it. Deletions and clean-up remove it when they find less than that free; clean-up and rounds make it again when there is room. Rounds never use it: they stop, and
 * say what they lack.
 *
 * On a small file system it is a sixteenth of that, and then clean-up may need help: a file removed by hand.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "store/local.h"

enum { RESERVE_MOST_BYTES = 40 << 20, RESERVE_SHARE = 16, PLENTY = 4, STAT_BLOCK_BYTES = 512 };

static const char name[] = "reserve";
static const char unfinished_name[] = "reserve.new";

/* 0: unknown. */
static uint64_t wanted_bytes(const struct statvfs *file_system)
{
	uint64_t share_bytes = (uint64_t)file_system->f_blocks * file_system->f_frsize / RESERVE_SHARE;

	return share_bytes < RESERVE_MOST_BYTES ? share_bytes : RESERVE_MOST_BYTES;
}

/* What this process may still use. */
static uint64_t free_bytes(const struct statvfs *file_system)
{
	return (uint64_t)(geteuid() == 0 ? file_system->f_bfree : file_system->f_bavail) * file_system->f_frsize;
}

uint64_t local_free_bytes(const struct local_store *local)
{
	struct statvfs file_system;

	return fstatvfs(local->folder_fd, &file_system) < 0 ? UINT64_MAX : free_bytes(&file_system);
}

void local_reserve_keep(int folder_fd)
{
	struct statvfs file_system;
	struct stat status;
	uint64_t len_bytes;

	if (fstatvfs(folder_fd, &file_system) < 0)
		return;
	len_bytes = wanted_bytes(&file_system);
	/* By its blocks: a power cut may have left the name without them, and a copy of a store a hole. */
	if (fstatat(folder_fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0 && (uint64_t)status.st_blocks * STAT_BLOCK_BYTES >= len_bytes)
		return;
	if (len_bytes == 0 || free_bytes(&file_system) < len_bytes * PLENTY)
		return;
	/* made by us, now: not what somebody's link of that name points to */
	(void)unlinkat(folder_fd, unfinished_name, 0); /* mostly there is none */
	AUTO_CLOSE int fd = openat(folder_fd, unfinished_name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	/* blocks, not a hole; where a file system can't promise them there is no reserve. A name that a power cut takes away is made again */
	if (fd < 0 || fallocate(fd, 0, 0, (off_t)len_bytes) < 0 || renameat(folder_fd, unfinished_name, folder_fd, name) < 0)
		(void)unlinkat(folder_fd, unfinished_name, 0); /* it may not have come that far */
}

void local_reserve_use(struct local_store *local)
{
	struct statvfs file_system;

	if (fstatvfs(local->folder_fd, &file_system) == 0 && free_bytes(&file_system) < wanted_bytes(&file_system))
		(void)unlinkat(local->folder_fd, name, 0); /* used already: then there is none */
}
