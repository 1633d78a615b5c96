/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SQLite's own way to files, but for one thing: the index of the write-ahead log (catalog.db-shm) has all of its blocks before
 * anybody writes to it.
 *
 * It is a file that is mapped, so a block that it lacks when the file system is full is a SIGBUS in the middle of SQLite, also for one
 * who only lists images. SQLite writes a byte to each 4 KiB of it for that reason. That is not enough where blocks are smaller, as on an ext4
 * of less than 512 MiB. So each region is populated for writing when it is mapped: the kernel then makes the blocks, or says that it
 * can't. The file stays from one process to the next (NO_CKPT_ON_CLOSE), so mostly that was done when the store was made.
 *
 * Kernels before 5.14 can't populate (EINVAL), nor can a map that is for reading only: all is as SQLite has it then.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "catalog/internal.h"

/* Lies behind what SQLite's file is. */
struct tail {
	const sqlite3_io_methods *original;
	sqlite3_io_methods methods; /* the original ones, with our xShmMap */
};

enum { TAIL_ALIGNMENT = 16 };

static sqlite3_vfs *base;
static sqlite3_vfs ours;
static pthread_once_t is_set_up = PTHREAD_ONCE_INIT;

static size_t tail_offset(void)
{
	return ((size_t)base->szOsFile + TAIL_ALIGNMENT - 1) / TAIL_ALIGNMENT * TAIL_ALIGNMENT;
}

static struct tail *tail_of(sqlite3_file *file)
{
	return (struct tail *)(void *)((char *)file + tail_offset());
}

static int map_shared_memory(sqlite3_file *file, int region, int region_bytes, int extend, void volatile **ret_address)
{
	int result = tail_of(file)->original->xShmMap(file, region, region_bytes, extend, ret_address);

	if (result != SQLITE_OK || *ret_address == NULL)
		return result;
	if (madvise((void *)(uintptr_t)*ret_address, (size_t)region_bytes, MADV_POPULATE_WRITE) < 0 && errno == EFAULT)
		return SQLITE_FULL;
	return SQLITE_OK;
}

static int open_file(sqlite3_vfs *vfs, const char *path, sqlite3_file *file, int flags, int *ret_flags)
{
	int result = base->xOpen(base, path, file, flags, ret_flags);
	struct tail *tail = tail_of(file);

	(void)vfs; /* there is one */
	if (result != SQLITE_OK || (flags & SQLITE_OPEN_MAIN_DB) == 0 || file->pMethods->iVersion < 2 ||
	    file->pMethods->xShmMap == NULL)
		return result;
	tail->original = file->pMethods;
	tail->methods = *file->pMethods;
	tail->methods.xShmMap = map_shared_memory;
	file->pMethods = &tail->methods;
	return SQLITE_OK;
}

static void set_up(void)
{
	base = sqlite3_vfs_find("unix");
	if (base == NULL)
		return;
	ours = *base; /* all else is done by its functions, which find in here what they need */
	ours.pNext = NULL;
	ours.zName = "wherry";
	ours.szOsFile = (int)(tail_offset() + sizeof(struct tail));
	ours.xOpen = open_file;
	(void)sqlite3_vfs_register(&ours, 0); /* without it opening says that there is no such VFS */
}

const char *catalog_vfs(void)
{
	(void)pthread_once(&is_set_up, set_up);
	return "wherry";
}
