/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A catalog that is made anew beside the one in use, and how it takes that one's place.
 *
 *     1  catalog.db.new is whole and durable, its write-ahead log moved into it; closed
 *     2  catalog.db -> catalog.db.old          from here on there is no catalog, and whoever opens the store is told to rebuild; a last
 *                                              look whether anybody uses the old one, which is put back if so
 *     3  catalog.db-wal, catalog.db-shm removed
 *     4  catalog.db.new -> catalog.db
 *     5  catalog.db.old removed
 *
 * The folder is fsynced after each. The old database goes before its write-ahead log does, because a database without the newest part of its log would pass for one,
 * and whoever used it would cut off what it doesn't know of. The log goes before the new database comes, because SQLite would take it for the new one's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

static const char new_name[] = "catalog.db.new";
static const char old_name[] = "catalog.db.old";

static int remove_files(int folder_fd, const char *name, bool with_database, struct failure *failure)
{
	static const char *const suffixes[] = {"-wal", "-shm", "-journal", ""};

	for (size_t i = 0; i < (with_database ? 4 : 3); i++) {
		AUTO_FREE char *file = NULL;

		if (asprintf(&file, "%s%s", name, suffixes[i]) < 0)
			return fail_errno(failure, -ENOMEM, "catalog");
		if (unlinkat(folder_fd, file, 0) < 0 && errno != ENOENT)
			return fail_errno(failure, -errno, "file %s of the store", file);
	}
	return 0;
}

static int open_folder(const char *store_path, int *ret_fd, struct failure *failure)
{
	int fd = open(store_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return fail_errno(failure, -errno, "store %s", store_path);
	*ret_fd = fd;
	return 0;
}

int catalog_create_beside(const char *store_path, uint32_t chunk_bytes, int locks_fd, struct catalog **ret_catalog,
			  struct failure *failure)
{
	AUTO_CLOSE int folder_fd = -1;
	int result = open_folder(store_path, &folder_fd, failure);

	if (result == 0)
		result = remove_files(folder_fd, new_name, true, failure);
	if (result == 0)
		result = catalog_create_named(store_path, new_name, chunk_bytes, failure);
	if (result == 0)
		result = catalog_open_named(store_path, new_name, locks_fd, "catalog.new", false, ret_catalog, failure);
	return result;
}

void catalog_drop_beside(const char *store_path, struct catalog *catalog)
{
	AUTO_CLOSE int folder_fd = -1;

	catalog_close(catalog);
	if (open_folder(store_path, &folder_fd, NULL) == 0)
		(void)remove_files(folder_fd, new_name, true, NULL); /* the next attempt does it otherwise */
}

static int rename_durably(int folder_fd, const char *from, const char *to, struct failure *failure)
{
	if (renameat(folder_fd, from, folder_fd, to) < 0)
		return fail_errno(failure, -errno, "file %s of the store", from);
	return fsync(folder_fd) < 0 ? fail_errno(failure, -errno, "folder of the store") : 0;
}

static int finish_database(struct catalog *catalog, struct failure *failure)
{
	int moved = 0, logged = 0;

	if (sqlite3_wal_checkpoint_v2(catalog->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, &logged, &moved) != SQLITE_OK)
		return catalog_sqlite_error(catalog, "writing the new catalog", failure);
	return logged == moved ? 0 : fail(failure, -EBUSY, "catalog %s: somebody else has it open", catalog->path);
}

/* Who had opened the old one before takes leases by what it says: either he holds one by now, or he is told when he does. */
static int take_old_away(int folder_fd, int (*check)(void *opaque, struct failure *failure), void *opaque,
			 struct failure *failure)
{
	bool is_there = faccessat(folder_fd, CATALOG_NAME, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
	int result = is_there ? rename_durably(folder_fd, CATALOG_NAME, old_name, failure) : 0;

	if (result < 0)
		return result;
	result = check(opaque, failure);
	if (result < 0 && is_there)
		(void)rename_durably(folder_fd, old_name, CATALOG_NAME, NULL); /* failed: none, as after a power cut here */
	return result;
}

static int swap(int folder_fd, int (*check)(void *opaque, struct failure *failure), void *opaque,
		struct failure *failure)
{
	int result = take_old_away(folder_fd, check, opaque, failure);

	if (result == 0)
		result = remove_files(folder_fd, CATALOG_NAME, false, failure);
	if (result == 0 && fsync(folder_fd) < 0)
		result = fail_errno(failure, -errno, "folder of the store");
	if (result == 0)
		result = rename_durably(folder_fd, new_name, CATALOG_NAME, failure);
	return result == 0 ? remove_files(folder_fd, old_name, true, failure) : result;
}

int catalog_put_in_place(const char *store_path, struct catalog *catalog,
			 int (*check)(void *opaque, struct failure *failure), void *opaque, struct failure *failure)
{
	AUTO_CLOSE int folder_fd = -1;
	int result = finish_database(catalog, failure);

	catalog_close(catalog);
	if (result == 0)
		result = open_folder(store_path, &folder_fd, failure);
	if (result == 0)
		result = remove_files(folder_fd, new_name, false, failure);
	if (result == 0)
		result = swap(folder_fd, check, opaque, failure);
	if (result < 0)
		catalog_drop_beside(store_path, NULL);
	return result;
}

int catalog_segment_put(struct catalog *catalog, const struct catalog_segment *segment, struct failure *failure)
{
	STATEMENT *put = catalog_statement(catalog, ST_SEGMENT_PUT, failure);

	assert(catalog->in_transaction);
	if (put == NULL)
		return catalog->statement_error;
	bind_u64(put, 1, segment->number);
	bind_u64(put, 2, segment->sealed);
	bind_u64(put, 3, segment->length_bytes);
	return catalog_run(catalog, put, failure);
}

/* ---- log entries that were found ---- */

static int execute(struct catalog *catalog, const char *sql, struct failure *failure)
{
	return sqlite3_exec(catalog->db, sql, NULL, NULL, NULL) == SQLITE_OK ?
		       0 :
		       catalog_sqlite_error(catalog, "rebuilding", failure);
}

int catalog_found_begin(struct catalog *catalog, struct failure *failure)
{
	return execute(catalog,
		       "CREATE TABLE found(uuid BLOB NOT NULL, sequence INTEGER NOT NULL, digest BLOB NOT NULL,"
		       " predecessor BLOB NOT NULL, time INTEGER NOT NULL, segment INTEGER NOT NULL, off_bytes INTEGER NOT NULL,"
		       " stored_bytes INTEGER NOT NULL, chosen INTEGER NOT NULL DEFAULT 0,"
		       " PRIMARY KEY(uuid, sequence, digest)) STRICT, WITHOUT ROWID",
		       failure);
}

int catalog_found_end(struct catalog *catalog, struct failure *failure)
{
	for (int i = ST_FOUND_PUT; i <= ST_FOUND_LAST; i++) {
		(void)sqlite3_finalize(catalog->statements[i]);
		catalog->statements[i] = NULL;
	}
	return execute(catalog, "DROP TABLE found", failure);
}

static void bind_uuid(sqlite3_stmt *statement, const uint8_t uuid[CATALOG_UUID_BYTES])
{
	(void)sqlite3_bind_blob(statement, 1, uuid, CATALOG_UUID_BYTES, SQLITE_STATIC);
}

int catalog_found_add(struct catalog *catalog, const struct catalog_found *found, struct failure *failure)
{
	STATEMENT *put = catalog_statement(catalog, ST_FOUND_PUT, failure);

	if (put == NULL)
		return catalog->statement_error;
	bind_uuid(put, found->uuid);
	bind_u64(put, 2, found->sequence);
	(void)sqlite3_bind_blob(put, 3, found->digest, CATALOG_DIGEST_BYTES, SQLITE_STATIC);
	(void)sqlite3_bind_blob(put, 4, found->predecessor, CATALOG_DIGEST_BYTES, SQLITE_STATIC);
	(void)sqlite3_bind_int64(put, 5, found->time_seconds);
	bind_u64(put, 6, found->segment);
	bind_u64(put, 7, found->off_bytes);
	bind_u64(put, 8, found->stored_bytes);
	return catalog_run(catalog, put, failure);
}

int catalog_found_next_disk(struct catalog *catalog, const uint8_t after[CATALOG_UUID_BYTES],
			    uint8_t ret_uuid[CATALOG_UUID_BYTES], bool *ret_any, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_FOUND_NEXT_DISK, failure);
	bool bad = false;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	bind_uuid(query, after);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	*ret_any = result == 1;
	if (result == 1)
		column_bytes(query, 0, ret_uuid, CATALOG_UUID_BYTES, &bad);
	return bad ? catalog_bad_row(catalog, "found", failure) : 0;
}

static int read_found(struct catalog *catalog, sqlite3_stmt *row, const uint8_t uuid[CATALOG_UUID_BYTES],
		      uint64_t sequence, struct catalog_found *ret_found, struct failure *failure)
{
	bool bad = false;
	struct catalog_found found = {.sequence = sequence};

	memcpy(found.uuid, uuid, CATALOG_UUID_BYTES);
	column_bytes(row, 0, found.digest, CATALOG_DIGEST_BYTES, &bad);
	column_bytes(row, 1, found.predecessor, CATALOG_DIGEST_BYTES, &bad);
	found.time_seconds = column_i64(row, 2, 0, INT64_MAX, &bad);
	found.segment = (uint32_t)column_u64(row, 3, UINT32_MAX, &bad);
	found.off_bytes = (uint32_t)column_u64(row, 4, UINT32_MAX, &bad);
	found.stored_bytes = (uint32_t)column_u64(row, 5, UINT32_MAX, &bad);
	if (bad)
		return catalog_bad_row(catalog, "found", failure);
	*ret_found = found;
	return 0;
}

int catalog_found_list(struct catalog *catalog, const uint8_t uuid[CATALOG_UUID_BYTES], uint64_t sequence,
		       struct catalog_found *ret_list, size_t most, size_t *ret_count, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_FOUND_LIST, failure);
	size_t count = 0;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	bind_uuid(query, uuid);
	bind_u64(query, 2, sequence);
	bind_u64(query, 3, most);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		result = read_found(catalog, query, uuid, sequence, &ret_list[count++], failure);
		if (result < 0)
			return result;
	}
	if (result == 0)
		*ret_count = count;
	return result;
}

int catalog_found_last(struct catalog *catalog, const uint8_t uuid[CATALOG_UUID_BYTES], uint64_t *ret_sequence,
		       struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_FOUND_LAST, failure);
	int result;

	if (query == NULL)
		return catalog->statement_error;
	bind_uuid(query, uuid);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	*ret_sequence = (uint64_t)sqlite3_column_int64(query, 0);
	return 0;
}

int catalog_found_choose(struct catalog *catalog, const struct catalog_found *found, struct failure *failure)
{
	STATEMENT *update = catalog_statement(catalog, ST_FOUND_CHOOSE, failure);

	assert(catalog->in_transaction);
	if (update == NULL)
		return catalog->statement_error;
	bind_uuid(update, found->uuid);
	bind_u64(update, 2, found->sequence);
	(void)sqlite3_bind_blob(update, 3, found->digest, CATALOG_DIGEST_BYTES, SQLITE_STATIC);
	return catalog_run_one(catalog, update, "found", failure);
}

int catalog_found_chosen(struct catalog *catalog, const uint8_t uuid[CATALOG_UUID_BYTES], uint64_t sequence,
			 struct catalog_found *ret_found, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_FOUND_CHOSEN, failure);
	int result;

	if (query == NULL)
		return catalog->statement_error;
	bind_uuid(query, uuid);
	bind_u64(query, 2, sequence);
	result = catalog_step(catalog, query, failure);
	if (result <= 0)
		return result == 0 ? -ENOENT : result;
	return read_found(catalog, query, uuid, sequence, ret_found, failure);
}
