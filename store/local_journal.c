/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the journals of a local store's disks are: journal/<uuid of the disk>/. By uuid, for a rebuild may give a disk another number, and
 * never another uuid. A folder is made when a disk is first opened for writing, stays, and goes with the disk: before its rows do, so that whoever finishes a deletion
 * that was cut short finds it. Several may finish the same one at once: what another has removed meanwhile is removed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/journal.h"
#include "store/local.h"

_Static_assert((int)CATALOG_UUID_BYTES == (int)sizeof(((struct store_disk_files *)NULL)->owner), "the uuid owns the journal");

enum { NAME_BYTES = CATALOG_UUID_BYTES * 2 + 1 };

/* -1 with errno. */
static int open_journals(const struct local_store *local)
{
	return openat(local->folder_fd, "journal", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* *ret_fd is -1 when there is none and `make` is not set. */
static int open_folder(struct local_store *local, const struct catalog_disk *disk, bool make, int *ret_fd,
		       struct failure *failure)
{
	char name[NAME_BYTES];
	int fd;
	AUTO_CLOSE int journals_fd = open_journals(local);

	if (journals_fd < 0)
		return fail_errno(failure, -errno, "folder %s/journal", local->base.location);
	bytes_to_hex(disk->uuid, sizeof(disk->uuid), name);
	if (make && mkdirat(journals_fd, name, 0700) < 0 && errno != EEXIST)
		return fail_errno(failure, -errno, "folder %s/journal/%s", local->base.location, name);
	if (make && fsync(journals_fd) < 0)
		return fail_errno(failure, -errno, "folder %s/journal", local->base.location);
	fd = openat(journals_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && (make || errno != ENOENT))
		return fail_errno(failure, -errno, "folder %s/journal/%s", local->base.location, name);
	*ret_fd = fd;
	return 0;
}

int local_disk_files(struct store *store, const char *name, bool make, struct store_disk_files *ret_files,
		     struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	struct store_disk_files files = { .journal_fd = -1 };
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	if (result == 0)
		result = local_find_disk(reader.catalog, name, &disk, failure);
	if (result < 0)
		return result;
	/* by way of the folder's descriptor: the path of a store may be longer than a socket's may */
	if (asprintf(&files.socket_path, "/proc/self/fd/%d/disk-%lld.socket", local->locks_fd, (long long)disk.id) < 0)
		return fail_errno(failure, -ENOMEM, "disk %s", name);
	result = open_folder(local, &disk, make, &files.journal_fd, failure);
	if (result < 0) {
		free(files.socket_path);
		return result;
	}
	memcpy(files.owner, disk.uuid, sizeof(files.owner));
	*ret_files = files;
	return 0;
}

int local_has_journal(struct local_store *local, const struct catalog_disk *disk, bool *ret_has, struct failure *failure)
{
	AUTO_CLOSE int fd = -1;
	int result = open_folder(local, disk, false, &fd, failure);

	if (result == 0)
		*ret_has = fd >= 0;
	return result;
}

int local_examine_journal(struct local_store *local, const struct catalog_disk *disk, struct failure *failure)
{
	AUTO_CLOSE int fd = -1;
	struct failure cause = {.code = 0};
	int result = open_folder(local, disk, false, &fd, failure);

	if (result < 0 || fd < 0)
		return result;
	result = journal_examine(fd, disk->name, disk->uuid, &cause);
	return result == 0 || result == -ENOENT /* removed meanwhile */ ? 0 : fail_from(failure, &cause);
}

static int remove_files(int folder_fd, const char *path, struct failure *failure)
{
	int fd = openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *folder = fd < 0 ? NULL : fdopendir(fd);
	int result = 0;

	if (folder == NULL) {
		result = fail_errno(failure, -errno, "folder %s", path);
		if (fd >= 0)
			(void)close(fd);
		return result;
	}
	for (struct dirent *entry; result == 0 && (errno = 0, entry = readdir(folder)) != NULL;)
		if (entry->d_name[0] != '.' && unlinkat(folder_fd, entry->d_name, 0) < 0 && errno != ENOENT)
			result = fail_errno(failure, -errno, "file %s/%s", path, entry->d_name);
	if (result == 0 && errno != 0)
		result = fail_errno(failure, -errno, "folder %s", path);
	(void)closedir(folder);
	return result;
}

int local_remove_journal(struct local_store *local, const struct catalog_disk *disk, struct failure *failure)
{
	char name[NAME_BYTES];
	AUTO_FREE char *path = NULL;
	AUTO_CLOSE int journals_fd = open_journals(local);
	AUTO_CLOSE int fd = -1;
	int result = open_folder(local, disk, false, &fd, failure);

	if (result < 0 || fd < 0)
		return result;
	bytes_to_hex(disk->uuid, sizeof(disk->uuid), name);
	if (asprintf(&path, "%s/journal/%s", local->base.location, name) < 0)
		return fail_errno(failure, -ENOMEM, "disk %s", disk->name);
	result = remove_files(fd, path, failure);
	if (result == 0 && unlinkat(journals_fd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		result = fail_errno(failure, -errno, "folder %s", path);
	return result;
}
