/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records of mounts. mount_record.h says what is kept where.
 *
 * A number may be used again by a new record at any time, so whoever looks at one opens its folder first and names everything from there: what is found
 * is then of that record, or is not there any more.
 */
#include "tools/mount_record.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/json_release.h"
#include "tools/runtime_folder.h"

#define RECORDS_FOLDER "mounts"
#define RECORDS_LOCK ".mounts"

enum { RECORDS_MOST = 10000, NUMBER_BYTES = 16, CLAIM_STEP_MS = 20 };

static const char *const via_names[] = {[VIA_BEST] = "", [VIA_NBD] = "nbd", [VIA_LOOP] = "loop", [VIA_FILES] = "files"};

const char *mount_via_name(enum mount_via via)
{
	return via_names[via];
}

static int fail_memory(struct failure *failure)
{
	return fail(failure, -ENOMEM, "mount: out of memory");
}

static char *copy_or_null(const char *text)
{
	return text == NULL ? NULL : strdup(text);
}

void mount_record_free(struct mount_record *record)
{
	free(record->folder);
	free(record->reference);
	free(record->store);
	free(record->directory);
	free(record->device);
	if (record->folder_fd >= 0)
		(void)close(record->folder_fd);
	if (record->alive_fd >= 0)
		(void)close(record->alive_fd);
	*record = (struct mount_record){.folder_fd = -1, .alive_fd = -1};
}

void mount_records_free(struct mount_record *list, size_t count)
{
	for (size_t i = 0; i < count; i++)
		mount_record_free(&list[i]);
	free(list);
}

/* ---- as text ---- */

static json_t *compose(const struct mount_record *record)
{
	return json_pack("{s:s, s:s, s:s, s:s?, s:s, s:b, s:b, s:I}", "reference", record->reference, "store", record->store, "directory",
			 record->directory, "device", record->device, "via", mount_via_name(record->via), "read_only", record->read_only, "scratch",
			 record->scratch, "since", (json_int_t)record->since);
}

int mount_record_write(const struct mount_record *record, struct failure *failure)
{
	AUTO(json_release) json_t *json = compose(record);
	AUTO_FREE char *text = json == NULL ? NULL : json_dumps(json, JSON_INDENT(2));
	AUTO_CLOSE int fd = -1;
	size_t length;

	if (text == NULL) /* a path that is no UTF-8 can't be noted, so it can't be undone */
		return fail(failure, -EILSEQ, "%s: can't be noted in %s; are all names UTF-8?", record->directory, record->folder);
	length = strlen(text);
	fd = openat(record->folder_fd, "record.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, text, length) != (ssize_t)length || renameat(record->folder_fd, "record.new", record->folder_fd, "record") < 0)
		return fail_errno(failure, errno == 0 ? -ENOSPC : -errno, "%s: noting a mount", record->folder);
	return 0;
}

static enum mount_via via_of(const char *name)
{
	for (unsigned via = VIA_NBD; via <= VIA_FILES; via++)
		if (strcmp(via_names[via], name) == 0)
			return (enum mount_via)via;
	return VIA_BEST;
}

/* -ENOENT, without a message: there is none, or not yet, or it makes no sense. */
static int read_record(int folder_fd, struct mount_record *ret_record, struct failure *failure)
{
	AUTO_CLOSE int fd = openat(folder_fd, "record", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	AUTO(json_release) json_t *json = fd < 0 ? NULL : json_loadfd(fd, 0, NULL);
	const char *reference, *store, *directory, *device, *via;
	int read_only, scratch;
	json_int_t since;
	struct mount_record record = {.folder_fd = -1, .alive_fd = -1};

	if (json == NULL || json_unpack(json, "{s:s, s:s, s:s, s:s, s:b, s:b, s:I}", "reference", &reference, "store", &store, "directory",
					&directory, "via", &via, "read_only", &read_only, "scratch", &scratch, "since", &since) != 0)
		return -ENOENT;
	device = json_string_value(json_object_get(json, "device")); /* null: NULL */
	record.reference = strdup(reference);
	record.store = strdup(store);
	record.directory = strdup(directory);
	record.device = copy_or_null(device);
	record.via = via_of(via);
	record.read_only = read_only != 0;
	record.scratch = scratch != 0;
	record.since = since;
	if (record.reference == NULL || record.store == NULL || record.directory == NULL || (device != NULL && record.device == NULL)) {
		mount_record_free(&record);
		return fail_memory(failure);
	}
	*ret_record = record;
	return 0;
}

/* ---- all of them ---- */

/* -ENOENT, without a message: it is none. */
static int open_record(int records_fd, const char *records, const char *name, struct mount_record *ret_record, struct failure *failure)
{
	AUTO_CLOSE int fd = openat(records_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	struct mount_record record;
	int error = fd < 0 ? -ENOENT : read_record(fd, &record, failure);

	if (error < 0)
		return error;
	record.folder_fd = take_fd(&fd);
	if (asprintf(&record.folder, "%s/%s", records, name) < 0) {
		record.folder = NULL;
		mount_record_free(&record);
		return fail_memory(failure);
	}
	*ret_record = record;
	return 0;
}

static int list_folder(DIR *folder, const char *records, struct mount_record **list, size_t *count, struct failure *failure)
{
	const struct dirent *entry;

	while ((entry = readdir(folder)) != NULL && *count < RECORDS_MOST) {
		struct mount_record record;
		struct mount_record *more;
		int error = entry->d_name[0] == '.' ? -ENOENT : open_record(dirfd(folder), records, entry->d_name, &record, failure);

		if (error == -ENOENT)
			continue;
		if (error < 0)
			return error;
		more = reallocarray(*list, *count + 1, sizeof(*more));
		if (more == NULL) {
			mount_record_free(&record);
			return fail_memory(failure);
		}
		*list = more;
		more[(*count)++] = record;
	}
	return 0;
}

static int compare_records(const void *a, const void *b)
{
	const struct mount_record *first = a, *second = b;

	return first->since != second->since ? (first->since < second->since ? -1 : 1) : strcmp(first->directory, second->directory);
}

int mount_records_list(const char *runtime, struct mount_record **ret_list, size_t *ret_count, struct failure *failure)
{
	AUTO_FREE char *records = NULL;
	AUTO_CLOSEDIR DIR *folder = NULL;
	struct mount_record *list = NULL;
	size_t count = 0;
	int error;

	if (asprintf(&records, "%s/" RECORDS_FOLDER, runtime) < 0) {
		records = NULL;
		return fail_memory(failure);
	}
	folder = opendir(records);
	if (folder == NULL && errno != ENOENT)
		return fail_errno(failure, -errno, "%s", records);
	error = folder == NULL ? 0 : list_folder(folder, records, &list, &count, failure);
	if (error < 0) {
		mount_records_free(list, count);
		return error;
	}
	if (count > 0)
		qsort(list, count, sizeof(*list), compare_records);
	*ret_list = list;
	*ret_count = count;
	return 0;
}

/* ---- locks ---- */

int mount_record_claim(struct mount_record *record, unsigned wait_ms, struct failure *failure)
{
	for (unsigned waited_ms = 0; flock(record->folder_fd, LOCK_EX | LOCK_NB) < 0; waited_ms += CLAIM_STEP_MS) {
		if (waited_ms >= wait_ms)
			return fail(failure, -EBUSY, "%s: another wherry is mounting or unmounting it at this moment", record->directory);
		(void)nanosleep(&(struct timespec){.tv_nsec = CLAIM_STEP_MS * 1000000L}, NULL); /* woken early: asks again */
	}
	if (faccessat(record->folder_fd, "record", F_OK, 0) < 0)
		return fail(failure, -ENOENT, "%s: somebody else has just unmounted it", record->directory);
	return 0;
}

bool mount_record_is_alive(const struct mount_record *record)
{
	AUTO_CLOSE int fd = openat(record->folder_fd, "alive", O_RDWR | O_CLOEXEC | O_NOFOLLOW);

	return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;
}

/* ---- making and removing ---- */

static int check_directory_is_free(const char *runtime, const char *directory, struct failure *failure)
{
	struct mount_record *list;
	size_t count;
	int error = mount_records_list(runtime, &list, &count, failure);

	if (error < 0)
		return error;
	for (size_t i = 0; i < count && error == 0; i++)
		if (strcmp(list[i].directory, directory) == 0)
			error = fail(failure, -EBUSY, "%s: %s is mounted there, or is just being; 'wherry umount' frees it", directory,
				     list[i].reference);
	mount_records_free(list, count);
	return error;
}

static void empty_folder(int folder_fd)
{
	static const char *const names[] = {"record", "record.new", "alive"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		(void)unlinkat(folder_fd, names[i], 0);
	(void)unlinkat(folder_fd, "fs", AT_REMOVEDIR);
}

/* A folder that never got its record, for who made it was killed. With the lock of all of them, so nobody is making it now. */
static bool remove_unfinished(const char *folder)
{
	AUTO_CLOSE int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0 || faccessat(fd, "record", F_OK, 0) == 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
		return false;
	empty_folder(fd);
	return rmdir(folder) == 0;
}

/* -EEXIST, without a message: it is another's. */
static int make_one_folder(const char *folder, struct failure *failure)
{
	int error = mkdir(folder, 0700) < 0 ? -errno : 0;

	if (error == -EEXIST && remove_unfinished(folder))
		error = mkdir(folder, 0700) < 0 ? -errno : 0;
	return error == 0 || error == -EEXIST ? error : fail_errno(failure, error, "%s", folder);
}

/* The first number that is free. */
static int make_folder(const char *records, struct mount_record *record, struct failure *failure)
{
	int error = -EEXIST;

	if (mkdir(records, 0700) < 0 && errno != EEXIST)
		return fail_errno(failure, -errno, "%s", records);
	for (unsigned number = 1; number <= RECORDS_MOST && error == -EEXIST; number++) {
		free(record->folder);
		if (asprintf(&record->folder, "%s/%u", records, number) < 0) {
			record->folder = NULL;
			return fail_memory(failure);
		}
		error = make_one_folder(record->folder, failure);
	}
	if (error < 0)
		return fail(failure, error, "%s: too many mounts", records);
	record->folder_fd = open(record->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (record->folder_fd < 0 || flock(record->folder_fd, LOCK_EX | LOCK_NB) < 0)
		return fail_errno(failure, -errno, "%s", record->folder);
	return 0;
}

static int make_alive(struct mount_record *record, struct failure *failure)
{
	record->alive_fd = openat(record->folder_fd, "alive", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (record->alive_fd < 0 || flock(record->alive_fd, LOCK_EX | LOCK_NB) < 0)
		return fail_errno(failure, -errno, "%s/alive", record->folder);
	return 0;
}

static int fill_record(struct mount_record *record, const struct mount_record *what, struct failure *failure)
{
	*record = *what;
	record->folder = NULL;
	record->folder_fd = record->alive_fd = -1;
	record->reference = strdup(what->reference);
	record->store = strdup(what->store);
	record->directory = strdup(what->directory);
	record->device = copy_or_null(what->device);
	return record->reference == NULL || record->store == NULL || record->directory == NULL ? fail_memory(failure) : 0;
}

int mount_record_create(const char *runtime, const struct mount_record *what, struct mount_record *ret_record, struct failure *failure)
{
	struct mount_record record = {.folder_fd = -1, .alive_fd = -1};
	AUTO_FREE char *records = NULL;
	AUTO_CLOSE int lock_fd = -1;
	int error = runtime_lock(runtime, RECORDS_LOCK, &lock_fd, failure);

	if (error == 0 && asprintf(&records, "%s/" RECORDS_FOLDER, runtime) < 0) {
		records = NULL;
		error = fail_memory(failure);
	}
	if (error == 0)
		error = check_directory_is_free(runtime, what->directory, failure);
	if (error == 0)
		error = fill_record(&record, what, failure);
	if (error == 0)
		error = make_folder(records, &record, failure);
	if (error == 0)
		error = make_alive(&record, failure);
	if (error == 0)
		error = mount_record_write(&record, failure);
	if (error < 0) {
		(void)close(take_fd(&lock_fd)); /* which the next takes too */
		mount_record_remove(runtime, &record);
		mount_record_free(&record);
		return error;
	}
	*ret_record = record;
	return 0;
}

void mount_record_remove(const char *runtime, struct mount_record *record)
{
	AUTO_FREE char *records = NULL;
	AUTO_CLOSE int lock_fd = -1;

	if (record->folder_fd < 0)
		return;
	empty_folder(record->folder_fd);
	/* the folder of all of them goes with the last one, but not between another's look for it and its use */
	if (runtime_lock(runtime, RECORDS_LOCK, &lock_fd, NULL) < 0 || rmdir(record->folder) < 0)
		return;
	if (asprintf(&records, "%s/" RECORDS_FOLDER, runtime) < 0)
		records = NULL;
	else
		(void)rmdir(records);
}
