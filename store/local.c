/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store in a folder: making one, opening one, and the handles that its other files share.
 *
 * Making: the folders and the catalog first, wherry.json last, by rename: a folder with a wherry.json is a whole store. An attempt that was
 * cut short leaves no wherry.json; the next one clears away what it left, if there is nothing else.
 *
 * The folder is for root's eyes (mode 0700): it holds the disks of other people's servers.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/json_release.h"
#include "common/own_file.h"
#include "store/local.h"

enum { FORMAT = 1, JSON_MOST_BYTES = 65536, READER_MOST_OPEN = 64 };

/* ---- making ---- */

static const char *const own_names[] = { "segments", "journal", "locks", "catalog.db", "catalog.db-wal",
					 "catalog.db-shm", "catalog.db-journal", "wherry.json.new", "reserve", "reserve.new",
					 "catalog.db.new", "catalog.db.new-wal", "catalog.db.new-shm", "catalog.db.old",
					 "lost+found" };

static bool is_own_name(const char *name)
{
	for (size_t i = 0; i < sizeof(own_names) / sizeof(own_names[0]); i++)
		if (strcmp(name, own_names[i]) == 0)
			return true;
	return false;
}

/* Only what a fresh file system or an attempt that was cut short has. */
static int check_folder_is_free(const char *path, struct failure *failure)
{
	AUTO_CLOSEDIR DIR *folder = opendir(path);
	const struct dirent *entry;

	if (folder == NULL)
		return fail_errno(failure, -errno, "folder %s", path);
	while (errno = 0, (entry = readdir(folder)) != NULL) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (strcmp(entry->d_name, "wherry.json") == 0)
			return fail(failure, -EEXIST, "folder %s: there is a store already", path);
		if (!is_own_name(entry->d_name))
			return fail(failure, -ENOTEMPTY, "folder %s: not empty (%s is there); give a new or an empty folder", path,
				    entry->d_name);
	}
	return errno == 0 ? 0 : fail_errno(failure, -errno, "folder %s", path);
}

static int make_folder(int folder_fd, const char *path, const char *name, struct failure *failure)
{
	if (mkdirat(folder_fd, name, 0700) < 0 && errno != EEXIST)
		return fail_errno(failure, -errno, "folder %s/%s", path, name);
	return 0;
}

static int write_whole_file(int folder_fd, const char *path, const char *name, const char *text, struct failure *failure)
{
	AUTO_CLOSE int fd = -1;
	size_t length = strlen(text);

	(void)unlinkat(folder_fd, name, 0); /* of an attempt that was cut short; mostly there is none */
	fd = openat(folder_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0)
		return fail_errno(failure, -errno, "file %s/%s", path, name);
	for (size_t done = 0; done < length;) {
		ssize_t written = write(fd, text + done, length - done);

		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return fail_errno(failure, -errno, "file %s/%s", path, name);
		done += (size_t)written;
	}
	if (fsync(fd) < 0)
		return fail_errno(failure, -errno, "file %s/%s", path, name);
	return 0;
}

static int write_description(int folder_fd, const char *path, uint32_t chunk_bytes, struct failure *failure)
{
	AUTO_FREE char *text = NULL;
	uint8_t id[STORE_ID_BYTES];
	char id_text[STORE_ID_BYTES * 2 + 1];
	json_t *json;
	int result = hash_random(id, sizeof(id), failure);

	if (result < 0)
		return result;
	bytes_to_hex(id, sizeof(id), id_text);
	json = json_pack("{s:i, s:s, s:I, s:I}", "format", FORMAT, "store_id", id_text, "chunk_bytes",
			 (json_int_t)chunk_bytes, "created_at_unix", (json_int_t)time(NULL));
	text = json == NULL ? NULL : json_dumps(json, JSON_INDENT(2));
	json_decref(json);
	if (text == NULL)
		return fail_errno(failure, -ENOMEM, "store %s", path);
	result = write_whole_file(folder_fd, path, "wherry.json.new", text, failure);
	if (result < 0)
		return result;
	if (renameat(folder_fd, "wherry.json.new", folder_fd, "wherry.json") < 0 || fsync(folder_fd) < 0)
		return fail_errno(failure, -errno, "file %s/wherry.json", path);
	return 0;
}

/* The name of a folder that was just made is durable when its parent is. */
static int sync_parent(const char *path, struct failure *failure)
{
	AUTO_FREE char *parent = NULL;

	if (asprintf(&parent, "%s/..", path) < 0)
		return fail_errno(failure, -ENOMEM, "store %s", path);
	AUTO_CLOSE int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) < 0)
		return fail_errno(failure, -errno, "folder %s", parent);
	return 0;
}

static int fill_folder(int folder_fd, const char *path, uint32_t chunk_bytes, struct failure *failure)
{
	static const char *const folders[] = { "segments", "journal", "locks" };
	static const char *const leftovers[] = { "catalog.db", "catalog.db-wal", "catalog.db-shm", "catalog.db-journal" };
	int result = 0;

	for (size_t i = 0; result == 0 && i < 3; i++)
		result = make_folder(folder_fd, path, folders[i], failure);
	for (size_t i = 0; result == 0 && i < sizeof(leftovers) / sizeof(leftovers[0]); i++)
		if (unlinkat(folder_fd, leftovers[i], 0) < 0 && errno != ENOENT)
			result = fail_errno(failure, -errno, "file %s/%s", path, leftovers[i]);
	if (result == 0)
		result = catalog_create(path, chunk_bytes, failure);
	if (result == 0)
		result = write_description(folder_fd, path, chunk_bytes, failure);
	if (result == 0)
		local_reserve_keep(folder_fd);
	return result == 0 ? sync_parent(path, failure) : result;
}

int store_create_local(const char *path, uint32_t chunk_bytes, struct failure *failure)
{
	int result;

	if (chunk_bytes < STORE_CHUNK_LEAST_BYTES || chunk_bytes > STORE_CHUNK_MOST_BYTES ||
	    (chunk_bytes & (chunk_bytes - 1)) != 0)
		return fail(failure, -EINVAL, "chunk size %u: must be a power of two from 16K to 1M", chunk_bytes);
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return fail_errno(failure, -errno, "folder %s", path);
	AUTO_CLOSE int folder_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (folder_fd < 0)
		return fail_errno(failure, -errno, "folder %s", path);
	/* two at once would clear away each other's files, and the slower one a store in use */
	if (flock(folder_fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? fail(failure, -EBUSY, "folder %s: another process makes a store of it", path) :
					      fail_errno(failure, -errno, "folder %s", path);
	result = check_folder_is_free(path, failure);
	if (result < 0)
		return result;
	/* an attempt that was cut short has no segments yet: these are a store's whose description is lost */
	if (faccessat(folder_fd, "segments/01", F_OK, 0) == 0)
		return fail(failure, -ENOTEMPTY, "folder %s: it holds the segments of a store whose wherry.json is missing; bring that back",
			    path);
	return fill_folder(folder_fd, path, chunk_bytes, failure);
}

/* ---- opening ---- */

static int read_description_text(int folder_fd, const char *path, char *ret_text, struct failure *failure)
{
	AUTO_CLOSE int fd = own_file_open(folder_fd, "wherry.json", O_RDONLY, 0);
	ssize_t length;

	if (fd == -ENOENT && faccessat(folder_fd, "segments/01", F_OK, 0) == 0)
		return fail(failure, -EINVAL, "store %s: its wherry.json is missing, and its segments are there; bring it back from a copy", path);
	if (fd == -ENOENT)
		return fail(failure, -EINVAL, "store %s: not a store (no wherry.json there); 'wherry init' makes one in a new or empty folder",
			    path);
	if (fd == -EBADMSG)
		return fail(failure, fd, "file %s/wherry.json: " OWN_FILE_FLAW, path);
	if (fd < 0)
		return fail_errno(failure, fd, "file %s/wherry.json", path);
	length = read(fd, ret_text, JSON_MOST_BYTES - 1);
	if (length < 0)
		return fail_errno(failure, -errno, "file %s/wherry.json", path);
	ret_text[length] = '\0';
	return 0;
}

static bool parse_id(const char *text, uint8_t ret_id[STORE_ID_BYTES])
{
	if (strlen(text) != (size_t)STORE_ID_BYTES * 2 || strspn(text, "0123456789abcdef") != (size_t)STORE_ID_BYTES * 2)
		return false;
	for (int i = 0; i < STORE_ID_BYTES; i++) {
		char pair[3] = { text[i * 2], text[i * 2 + 1], '\0' };

		ret_id[i] = (uint8_t)strtoul(pair, NULL, 16);
	}
	return true;
}

static int read_description(struct local_store *local, const char *path, struct failure *failure)
{
	AUTO_FREE char *text = malloc(JSON_MOST_BYTES);
	AUTO(json_release) json_t *json = NULL;
	json_int_t format = 0, chunk_bytes = 0;
	const char *id = NULL;
	json_error_t error;
	int result;

	if (text == NULL)
		return fail_errno(failure, -ENOMEM, "store %s", path);
	result = read_description_text(local->folder_fd, path, text, failure);
	if (result < 0)
		return result;
	json = json_loads(text, 0, &error);
	if (json == NULL || json_unpack(json, "{s:I}", "format", &format) < 0)
		return fail(failure, -EBADMSG, "file %s/wherry.json: damaged: not a store's description", path);
	if (format > FORMAT)
		return fail(failure, -EPROTONOSUPPORT, "store %s: format %lld is newer than this program knows (%d); use a newer wherry",
			    path, (long long)format, FORMAT);
	if (json_unpack(json, "{s:I, s:s}", "chunk_bytes", &chunk_bytes, "store_id", &id) < 0 || format < 1 ||
	    chunk_bytes < STORE_CHUNK_LEAST_BYTES || chunk_bytes > STORE_CHUNK_MOST_BYTES ||
	    (chunk_bytes & (chunk_bytes - 1)) != 0 || !parse_id(id, local->id))
		return fail(failure, -EBADMSG, "file %s/wherry.json: damaged: impossible values", path);
	local->base.chunk_bytes = (uint32_t)chunk_bytes;
	return 0;
}

static int open_folder(int folder_fd, const char *path, const char *name, int *ret_fd, struct failure *failure)
{
	int fd = own_folder_open(folder_fd, name);

	if (fd == -EBADMSG)
		return fail(failure, fd, "folder %s/%s: " OWN_FILE_FLAW, path, name);
	if (fd < 0)
		return fail_errno(failure, fd, "folder %s/%s", path, name);
	*ret_fd = fd;
	return 0;
}

static int open_folders(struct local_store *local, const char *path, struct failure *failure)
{
	local->folder_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (local->folder_fd < 0 && errno == ENOENT)
		return fail(failure, -ENOENT, "store %s: there is no such folder; make one with 'wherry -s %s init'", path, path);
	if (local->folder_fd < 0 && errno == ENOTDIR)
		return fail(failure, -ENOENT, "store %s: not a folder; a store is the folder that 'wherry init' made", path);
	if (local->folder_fd < 0)
		return fail_errno(failure, -errno, "store %s", path);
	int result = read_description(local, path, failure);
	if (result < 0)
		return result;
	result = open_folder(local->folder_fd, path, "segments", &local->segments_fd, failure);
	return result == 0 ? open_folder(local->folder_fd, path, "locks", &local->locks_fd, failure) : result;
}

static int check_can_write(struct local_store *local, const char *path, struct failure *failure)
{
	struct statvfs file_system;

	if (fstatvfs(local->folder_fd, &file_system) == 0 && (file_system.f_flag & ST_RDONLY) != 0)
		return fail(failure, -EROFS, "store %s: its file system is read-only; mount it read-write to change the store", path);
	if ((faccessat(local->folder_fd, "segments", W_OK, AT_EACCESS) < 0 ||
	     faccessat(local->folder_fd, "catalog.db", W_OK, AT_EACCESS) < 0) &&
	    errno != ENOENT) /* whoever opens what is missing says so */
		return fail_errno(failure, -errno, "store %s: may not be written by this user", path);
	return 0;
}

static void local_close(struct store *store)
{
	struct local_store *local = local_of(store);

	segment_writer_close(local->segment);
	local_close_full_locked(local);
	for (size_t i = 0; i < local->pool_count; i++)
		catalog_close(local->pool[i]);
	catalog_close(local->writer);
	segment_reader_free(local->reader);
	store_scratch_free(local->log_scratch);
	pending_destroy(&local->pending);
	(void)pthread_mutex_destroy(&local->write_lock);
	(void)pthread_mutex_destroy(&local->append_lock);
	(void)pthread_mutex_destroy(&local->pool_lock);
	if (local->segments_fd >= 0)
		(void)close(local->segments_fd);
	if (local->locks_fd >= 0)
		(void)close(local->locks_fd);
	if (local->folder_fd >= 0)
		(void)close(local->folder_fd);
	free(local); /* not the location: store_close() does */
}

static int local_contains_path(struct store *store, const char *path, bool *ret_contains, struct failure *failure)
{
	AUTO_FREE char *store_path = realpath(store->location, NULL);
	AUTO_FREE char *resolved = realpath(path, NULL);
	size_t length;

	if (store_path == NULL)
		return fail_errno(failure, -errno, "store %s", store->location);
	if (resolved == NULL && errno == ENOENT) {
		/* a file that is to be made: its folder counts */
		AUTO_FREE char *folder = strdup(path);
		char *slash = folder == NULL ? NULL : strrchr(folder, '/');

		if (folder == NULL)
			return fail_errno(failure, -ENOMEM, "file %s", path);
		if (slash != NULL)
			slash[slash == folder ? 1 : 0] = '\0';
		resolved = realpath(slash == NULL ? "." : folder, NULL);
	}
	if (resolved == NULL && (errno == ENOENT || errno == ENOTDIR)) {
		*ret_contains = false; /* nothing can be there: whoever opens it says so */
		return 0;
	}
	if (resolved == NULL)
		return fail_errno(failure, -errno, "file %s", path);
	length = strlen(store_path);
	*ret_contains = strncmp(resolved, store_path, length) == 0 && (resolved[length] == '\0' || resolved[length] == '/');
	return 0;
}

static int local_room(struct store *store, struct store_room *ret_room, struct failure *failure)
{
	struct statvfs status;

	if (fstatvfs(local_of(store)->folder_fd, &status) < 0)
		return fail_errno(failure, -errno, "store %s", store->location);
	*ret_room = (struct store_room){ .total_bytes = (uint64_t)status.f_blocks * status.f_frsize,
					 .free_bytes = (uint64_t)status.f_bfree * status.f_frsize,
					 .available_bytes = (uint64_t)status.f_bavail * status.f_frsize };
	return 0;
}

static const struct store_ops local_ops = {
	.close = local_close,
	.contains_path = local_contains_path,
	.list_disks = local_list_disks,
	.list_images = local_list_images,
	.describe_image = local_describe_image,
	.brief_images = local_brief_images,
	.brief_image = local_brief_image,
	.list_rounds = local_list_rounds,
	.usage = local_usage,
	.room = local_room,
	.check = local_check,
	.clean = local_clean,
	.create_disk = local_create_disk,
	.clone_disk = local_clone_disk,
	.remove_disk = local_remove_disk,
	.set_policy = local_set_policy,
	.delete_image = local_delete_image,
	.pin_image = local_pin_image,
	.retain = local_retain,
	.disk_files = local_disk_files,
	.view_open = local_view_open,
	.view_close = local_view_close,
	.view_map = local_view_map,
	.view_next_page = local_view_next_page,
	.view_read_chunk = local_view_read_chunk,
	.view_prefetch = local_view_prefetch,
	.find_chunks = local_find_chunks,
	.put_chunk = local_put_chunk,
	.commit = local_commit,
	.resize_disk = local_resize_disk,
	.create_image = local_create_image,
	.begin_round = local_begin_round,
	.note_round = local_note_round,
	.finish_round = local_finish_round,
	.round_throttle = local_round_throttle,
};

static struct local_store *local_allocate(const char *path)
{
	struct local_store *local = calloc(1, sizeof(*local));

	if (local == NULL)
		return NULL;
	local->base.serial = store_next_serial();
	local->folder_fd = local->segments_fd = local->locks_fd = -1;
	local->base.ops = &local_ops;
	local->base.location = strdup(path);
	if (local->base.location == NULL || pending_init(&local->pending) < 0) {
		free(local->base.location);
		free(local);
		return NULL;
	}
	(void)pthread_mutex_init(&local->write_lock, NULL); /* never fails on Linux with default attributes */
	(void)pthread_mutex_init(&local->append_lock, NULL);
	(void)pthread_mutex_init(&local->pool_lock, NULL);
	return local;
}

static int open_catalog(struct local_store *local, bool read_only, struct catalog **ret_catalog, struct failure *failure)
{
	struct catalog *catalog = NULL;
	int result = catalog_open(local->base.location, local->locks_fd, read_only, &catalog, failure);

	if (result == 0)
		result = catalog_check_chunk_bytes(catalog, local->base.chunk_bytes, failure);
	if (result < 0) {
		catalog_close(catalog);
		return result;
	}
	*ret_catalog = catalog;
	return 0;
}

int local_open_bare(const char *path, struct local_store **ret_local, struct failure *failure)
{
	struct local_store *local = local_allocate(path);
	int result;

	if (local == NULL)
		return fail_errno(failure, -ENOMEM, "store %s", path);
	result = open_folders(local, path, failure);
	if (result == 0)
		result = check_can_write(local, path, failure);
	if (result == 0)
		result = segment_reader_new(local->segments_fd, local->id, READER_MOST_OPEN, &local->reader, failure);
	if (result == 0)
		result = store_scratch_new(&local->log_scratch, failure);
	if (result < 0) {
		store_close(&local->base);
		return result;
	}
	*ret_local = local;
	return 0;
}

int store_open_local(const char *path, const struct store_options *options, struct store **ret_store,
		     struct failure *failure)
{
	struct local_store *local = local_allocate(path);
	struct catalog *catalog = NULL;
	int result;

	if (local == NULL)
		return fail_errno(failure, -ENOMEM, "store %s", path);
	local->read_only = options->read_only;
	if (options->notices != NULL)
		local->notices = *options->notices;
	result = open_folders(local, path, failure);
	if (result == 0 && !local->read_only)
		result = check_can_write(local, path, failure);
	if (result == 0)
		result = segment_reader_new(local->segments_fd, local->id, READER_MOST_OPEN, &local->reader, failure);
	if (result == 0 && !local->read_only)
		result = open_catalog(local, false, &local->writer, failure);
	if (result == 0)
		result = store_scratch_new(&local->log_scratch, failure);
	/* a first reader at once: what is wrong with the catalog is said here */
	if (result == 0)
		result = local_reader_take(local, &catalog, failure);
	local_reader_give(local, catalog);
	if (result < 0) {
		store_close(&local->base);
		return result;
	}
	*ret_store = &local->base;
	return 0;
}

int store_open_local_or_read_only(const char *path, const struct notices *notices, struct store **ret_store, bool *ret_is_read_only,
				  struct failure *failure)
{
	struct store_options options = { .notices = notices };
	struct failure cause = { .code = 0 };
	int result = store_open_local(path, &options, ret_store, &cause);

	if (result == -EROFS || result == -EACCES) {
		options.read_only = true;
		result = store_open_local(path, &options, ret_store, failure);
	} else if (result < 0) {
		(void)fail_from(failure, &cause);
	}
	if (result == 0)
		*ret_is_read_only = options.read_only;
	return result;
}

/* ---- handles for reading ---- */

static void catalog_close_at(struct catalog **catalog)
{
	catalog_close(*catalog);
}

/* All of a store's handles must be of one database: ids of chunks from one mean nothing in another. */
static int open_reader(struct local_store *local, struct catalog **ret_catalog, struct failure *failure)
{
	AUTO(catalog_close_at) struct catalog *catalog = NULL;
	uint64_t expected = 0;
	int result = open_catalog(local, true, &catalog, failure);

	if (result < 0)
		return result;
	if (!atomic_compare_exchange_strong(&local->database, &expected, catalog_database(catalog)) &&
	    expected != catalog_database(catalog))
		return fail(failure, -ESTALE, "store %s: its catalog was made anew meanwhile; run this again",
			    local->base.location);
	*ret_catalog = take_ptr(catalog);
	return 0;
}

int local_reader_take(struct local_store *local, struct catalog **ret_catalog, struct failure *failure)
{
	{
		WITH_LOCK(&local->pool_lock);
		if (local->pool_count > 0) {
			*ret_catalog = local->pool[--local->pool_count];
			return 0;
		}
	}
	return open_reader(local, ret_catalog, failure);
}

void local_reader_give(struct local_store *local, struct catalog *catalog)
{
	if (catalog == NULL)
		return;
	{
		WITH_LOCK(&local->pool_lock);
		if (local->pool_count < POOL_MOST) {
			local->pool[local->pool_count++] = catalog;
			return;
		}
	}
	catalog_close(catalog);
}

int pooled_reader_open(struct pooled_reader *reader, struct failure *failure)
{
	return local_reader_take(reader->local, &reader->catalog, failure);
}

void pooled_reader_done(struct pooled_reader *reader)
{
	local_reader_give(reader->local, reader->catalog);
}

/* ---- looking up ---- */

static int say_no_such_disk(struct catalog *catalog, const char *name, struct failure *failure)
{
	AUTO_FREE struct catalog_disk *list = NULL;
	size_t count = 0;
	const char *nearest = NULL;
	int result = catalog_disk_list(catalog, CATALOG_ALIVE, &list, &count, failure);

	if (result < 0)
		return result;
	AUTO_FREE const char **names = calloc(count + 1, sizeof(*names));
	for (size_t i = 0; names != NULL && i < count; i++)
		names[i] = list[i].name;
	if (names != NULL)
		nearest = store_nearest_name(name, names, count);
	if (nearest != NULL)
		result = fail(failure, -ENOENT, "disk %s: there is none of that name; did you mean %s?", name, nearest);
	else
		result = fail(failure, -ENOENT, "disk %s: there is none of that name; 'wherry disks' lists them", name);
	for (size_t i = 0; i < count; i++)
		catalog_disk_release(&list[i]);
	return result;
}

int local_find_disk(struct catalog *catalog, const char *name, struct catalog_disk *ret_disk, struct failure *failure)
{
	int result = catalog_disk_find(catalog, name, ret_disk, failure);

	return result == -ENOENT ? say_no_such_disk(catalog, name, failure) : result;
}

char *local_image_numbers(struct catalog *catalog, int64_t disk)
{
	AUTO_FREE struct catalog_image *list = NULL;
	size_t count = 0;
	char *text = NULL;
	size_t text_bytes = 0;
	FILE *out;

	if (catalog_image_list(catalog, disk, CATALOG_ALIVE, &list, &count, NULL) < 0)
		return NULL;
	out = open_memstream(&text, &text_bytes);
	for (size_t i = 0, end; out != NULL && i < count; i = end) {
		for (end = i + 1; end < count && list[end].number == list[end - 1].number + 1; end++)
			;
		(void)fprintf(out, "%s%u", i == 0 ? "" : ", ", list[i].number);
		if (end - i > 1)
			(void)fprintf(out, "%s%u", end - i == 2 ? ", " : "-", list[end - 1].number);
	}
	for (size_t i = 0; i < count; i++)
		catalog_image_release(&list[i]);
	if (out == NULL || fclose(out) != 0) {
		free(text);
		return NULL;
	}
	return text;
}

int local_find_image(struct catalog *catalog, const struct catalog_disk *disk, uint32_t number,
		     struct catalog_image *ret_image, struct failure *failure)
{
	int result = catalog_image_get(catalog, disk->id, number, ret_image, failure);

	if (result == -ENOENT) {
		AUTO_FREE char *numbers = local_image_numbers(catalog, disk->id);

		if (numbers != NULL && numbers[0] != '\0')
			return fail(failure, -ENOENT, "image %s@%u: there is none of that number; there %s %s", disk->name, number,
				    strpbrk(numbers, ",-") == NULL ? "is only" : "are", numbers);
		return fail(failure, -ENOENT, "image %s@%u: disk %s has no images; 'wherry sync' makes them", disk->name, number,
			    disk->name);
	}
	return result;
}
