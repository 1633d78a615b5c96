/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of catalog/ share: the handle, prepared statements by name, and pages as they stand in blobs.
 */
#ifndef WHERRY_CATALOG_INTERNAL_H
#define WHERRY_CATALOG_INTERNAL_H

#include <sqlite3.h>

#include "catalog/catalog.h"
#include "common/bytes.h"

/* Every statement there is, prepared when first used and kept. */
enum statement {
	ST_BEGIN,
	ST_COMMIT,
	ST_ROLLBACK,
	ST_READ_BEGIN,
	ST_SCHEMA,
	ST_META_GET,
	ST_DATA_VERSION,
	ST_DISK_INSERT,
	ST_DISK_UPDATE,
	ST_DISK_FIND,
	ST_DISK_GET,
	ST_DISK_LIST,
	ST_DISK_DELETE,
	ST_IMAGE_INSERT,
	ST_IMAGE_UPDATE,
	ST_IMAGE_GET,
	ST_IMAGE_LIST,
	ST_IMAGE_LIST_ALL,
	ST_IMAGE_DELETE,
	ST_IMAGE_DELETE_ALL,
	ST_IMAGE_NEIGHBOURS,
	ST_IMAGE_NEWEST,
	ST_IMAGE_LAST,
	ST_IMAGE_COUNT,
	ST_MAP_GET,
	ST_MAP_PUT,
	ST_MAP_DELETE,
	ST_MAP_NEXT,
	ST_PAST_GET,
	ST_PAST_PUT,
	ST_PAST_DELETE,
	ST_PAST_SINCE,
	ST_PAST_NEXT,
	ST_PAST_RANGE,
	ST_CHUNK_GET,
	ST_CHUNK_PUT,
	ST_NEXT_CHUNK_GET,
	ST_NEXT_CHUNK_PUT,
	ST_DIGEST_PUT,
	ST_DIGEST_FIND,
	ST_SEGMENT_INSERT,
	ST_SEGMENT_UPDATE,
	ST_SEGMENT_LIVE,
	ST_SEGMENT_GET,
	ST_SEGMENT_OPEN,
	ST_LOG_INSERT,
	ST_LOG_LIST,
	ST_LOG_DELETE,
	ST_ROUND_INSERT,
	ST_ROUND_UPDATE,
	ST_ROUND_GET,
	ST_ROUND_NEXT,
	ST_ROUND_LIST,
	ST_ROUND_LIST_ALL,
	ST_ROUND_DELETE_ALL,
	ST_SEGMENT_LIST,
	ST_CHUNK_WALK,
	ST_LOG_SIZES,
	ST_LOG_WALK,
	ST_LOG_NEXT_DISK,
	ST_MAP_WALK,
	ST_PAST_WALK,
	ST_DIGEST_WALK,
	ST_SEGMENT_LAST,
	ST_CHECK_IMAGES,
	ST_CHECK_IMAGE_ORDER,
	ST_CHECK_ROUNDS,
	ST_SEGMENT_SPARSE,
	ST_SEGMENT_DELETE,
	ST_CHUNK_DELETE,
	ST_DIGEST_DELETE,
	ST_LOG_AT,
	ST_LOG_RELOCATE,
	ST_LOST_PUT,
	ST_LOST_FIND,
	ST_LOST_DELETE,
	ST_LOST_LIST,
	ST_LOST_HAS,
	ST_LOST_FORGET,
	ST_SEGMENT_PUT,
	ST_FOUND_PUT,
	ST_FOUND_NEXT_DISK,
	ST_FOUND_LIST,
	ST_FOUND_CHOOSE,
	ST_FOUND_CHOSEN,
	ST_FOUND_LAST,
	ST_BASE_PUT,
	ST_BASE_LIST,
	ST_BASE_RANGE,
	ST_BASE_ANY,
	ST_BASE_END,
	ST_BASE_DELETE,
	ST_BASE_FORGET,
	ST_BASE_DROP,
	ST_BASE_USERS,
	ST_BASE_PARENT,
	ST_BASE_LEVELS,
	ST_BASE_RESOLVE,
	ST_BASE_MISSING,
	ST_BASE_WALK,
	STATEMENT_COUNT,
};

enum { STORED_MOST_BYTES = INT32_MAX };
struct chunk_page {
	uint64_t number; /* chunk ids number * CATALOG_CHUNK_PAGE_ENTRIES … */
	bool is_dirty;
	bool is_loaded;
	struct catalog_location chunks[CATALOG_CHUNK_PAGE_ENTRIES]; /* stored_bytes 0: no such chunk */
};
/* Chunk pages being worked on, by page number; direct-mapped. Dirty ones are written when they're displaced and at commit. */
enum { CHUNK_CACHE_SLOTS = 32768 / CATALOG_CHUNK_PAGE_ENTRIES };

/* What a transaction did to live_bytes of segments, summed up until commit. */
struct live_change {
	uint32_t segment;
	int64_t bytes;
};

/* Rows of the index by digest wait for each other, to go into the tree in its order. */
struct new_digest {
	uint64_t tag, chunk;
};
enum { NEW_DIGESTS_MOST = 8192 };

struct catalog {
	sqlite3 *db;
	sqlite3_stmt *statements[STATEMENT_COUNT];
	char *path; /* of the database, for messages */
	int lock_fd;
	uint64_t inode; /* of the database when it was opened: a rebuild puts another one in its place */
	bool read_only;
	bool in_transaction;
	bool in_snapshot;	  /* a read of several rows that belong to one moment */
	bool snapshot_has_cache;  /* clean chunk pages were compared with this snapshot already */
	int statement_error;	  /* why catalog_statement() returned NULL */
	int wal_pages; /* in the write-ahead log after the last commit of this handle */
	uint64_t next_chunk; /* in a transaction; 0: not looked up yet */
	int64_t cache_version; /* data_version that clean chunk pages belong to */
	struct chunk_page *chunk_cache; /* CHUNK_CACHE_SLOTS */
	struct live_change *live_changes;
	size_t live_count, live_capacity;
	struct new_digest *new_digests; /* of chunks added in this transaction and not in the index yet */
	size_t new_digest_count;
	bool knows_lost, has_lost; /* whether anything is lost, in the state that clean chunk pages belong to */
};

/* NULL with a failure and catalog->statement_error when it can't be prepared. The statement is reset and unbound: use with AUTO(statement_done). */
sqlite3_stmt *catalog_statement(struct catalog *catalog, enum statement which, struct failure *failure);
void statement_done(sqlite3_stmt **statement);
#define STATEMENT AUTO(statement_done) sqlite3_stmt

#define CATALOG_NAME "catalog.db"
#define CATALOG_LOCK_NAME "catalog"
int catalog_create_named(const char *store_path, const char *name, uint32_t chunk_bytes, struct failure *failure);
int catalog_open_named(const char *store_path, const char *name, int locks_fd, const char *lock_name, bool read_only,
		       struct catalog **ret_catalog, struct failure *failure);

/* 1: a row, 0: no more rows, negative errno. */
int catalog_step(struct catalog *catalog, sqlite3_stmt *statement, struct failure *failure);
/* For statements that return no rows. */
int catalog_run(struct catalog *catalog, sqlite3_stmt *statement, struct failure *failure);
/* The same, and -EBADMSG unless it changed exactly one row: for rows that the caller knows to be there. */
int catalog_run_one(struct catalog *catalog, sqlite3_stmt *statement, const char *table, struct failure *failure);

int catalog_sqlite_error(struct catalog *catalog, const char *doing, struct failure *failure);

/* The name of the way to files that databases are opened with (shared_memory.c). Any thread. */
const char *catalog_vfs(void);

/* Columns that come from outside, checked: value in [least, most], else *bad. NULL counts as bad. */
uint64_t column_u64(sqlite3_stmt *statement, int column, uint64_t most, bool *bad);
int64_t column_i64(sqlite3_stmt *statement, int column, int64_t least, int64_t most, bool *bad);
/* NULL stays NULL; no NUL inside; at most TEXT_MOST_BYTES or less. Caller frees. */
enum { TEXT_MOST_BYTES = 1 << 20 };
char *column_text(sqlite3_stmt *statement, int column, size_t most_bytes, bool *bad);
void column_bytes(sqlite3_stmt *statement, int column, void *ret_bytes, size_t len_bytes, bool *bad);
void bind_text(sqlite3_stmt *statement, int parameter, const char *text); /* NULL: NULL; borrowed until statement_done */
void bind_u64(sqlite3_stmt *statement, int parameter, uint64_t value);
int catalog_bad_row(struct catalog *catalog, const char *table, struct failure *failure);

/* ---- pages in blobs (pages.c): formats in docs/store-format.md ---- */

/*
 * What stands in a row: the page's bytes, and a checksum (XXH3-64) of them and of the row's key, so that neither a flipped bit nor
 * another row's page is ever taken for it.
 */
struct page_key {
	uint64_t table; /* enum page_table */
	uint64_t words[3]; /* the row's key, filled up with zeros */
};
enum page_table { PAGE_OF_MAP = 1, PAGE_OF_PAST = 2, PAGE_OF_CHUNKS = 3 };
enum { PAGE_SEAL_BYTES = 8 };
#define MAP_PAGE_KEY(key) (&(struct page_key){ PAGE_OF_MAP, { (uint64_t)(key) } })
#define PAST_PAGE_KEY(disk, page, until) (&(struct page_key){ PAGE_OF_PAST, { (uint64_t)(disk), (page), (until) } })
#define CHUNK_PAGE_KEY(number) (&(struct page_key){ PAGE_OF_CHUNKS, { (number) } })
void page_seal(const struct page_key *key, struct byte_writer *writer); /* of all that is in the writer */
/* The page's bytes in this column, borrowed from the row; -EBADMSG without a message: they are not what was sealed. */
int page_unseal(sqlite3_stmt *row, int column, const struct page_key *key, const void **ret_blob, size_t *ret_len_bytes);

bool map_page_is_empty(const struct catalog_page *page);
void map_page_encode(const struct catalog_page *page, struct byte_writer *writer);
int map_page_decode(const void *blob, size_t len_bytes, struct catalog_page *ret_page); /* -EBADMSG, no message */

/* A row of `past`: former states of some chunks of a page. */
struct past_page {
	bool present[CATALOG_PAGE_ENTRIES];
	struct catalog_entry entries[CATALOG_PAGE_ENTRIES]; /* fingerprints aren't kept */
};
bool past_page_is_empty(const struct past_page *past);
void past_page_encode(const struct past_page *past, struct byte_writer *writer);
int past_page_decode(const void *blob, size_t len_bytes, struct past_page *ret_past);

void chunk_page_encode(const struct chunk_page *page, struct byte_writer *writer);
int chunk_page_decode(const void *blob, size_t len_bytes, struct chunk_page *ret_page);

/* ---- shared between map.c, sweep.c and chunks.c ---- */

/* Adds `delta` to the chunk's references; *freed_bytes (may be NULL) grows by its record when they reach 0. */
int chunk_refer(struct catalog *catalog, uint64_t chunk, int delta, uint64_t *freed_bytes, struct failure *failure);
/* The cached page of a chunk and its place there, to be changed: the caller sets is_dirty. */
int chunk_at(struct catalog *catalog, uint64_t chunk, struct chunk_page **ret_page,
	     struct catalog_location **ret_location, struct failure *failure);
int chunk_cache_refresh(struct catalog *catalog, struct failure *failure); /* forgets pages that others may have changed */
int chunk_cache_prepare(struct catalog *catalog, struct failure *failure); /* the same where that is needed */
int chunk_cache_flush(struct catalog *catalog, struct failure *failure);   /* at commit */
int chunk_next_store(struct catalog *catalog, struct failure *failure);	   /* at commit */
void chunk_cache_drop(struct catalog *catalog);				 /* at rollback */
int segment_live_add(struct catalog *catalog, uint32_t segment, int64_t bytes, struct failure *failure);
int segment_live_flush(struct catalog *catalog, struct failure *failure);
int digest_forget(struct catalog *catalog, uint64_t tag, uint64_t chunk, struct failure *failure);
int digest_remember(struct catalog *catalog, uint64_t tag, uint64_t chunk, struct failure *failure); /* by the commit at the latest */
/* Takes away the row that says that the chunk is lost, if there is one. */
int lost_forget(struct catalog *catalog, uint64_t chunk, bool *ret_was, struct failure *failure);
/* Room that its record takes: nothing for a chunk without one. */
static inline uint64_t chunk_record_bytes(const struct catalog_location *location)
{
	return location->segment == CATALOG_NO_SEGMENT ? 0 : catalog_record_bytes(location->stored_bytes);
}
int new_digests_flush(struct catalog *catalog, struct failure *failure); /* at commit, and before the index is asked */

int read_segment(struct catalog *catalog, sqlite3_stmt *row, struct catalog_segment *ret_segment,
		 struct failure *failure);
int read_log_entry(struct catalog *catalog, sqlite3_stmt *row, struct catalog_log_entry *ret_entry,
		   struct failure *failure);
/* catalog_states_walk() over many disks: from (first_disk, first_page) up to, not with, (end_disk, end_page). */
enum { CATALOG_DISKS_END = 1 << 22 };
int states_walk_between(struct catalog *catalog, int64_t first_disk, uint64_t first_page, int64_t end_disk,
			uint64_t end_page, catalog_states_visit_fn visit, void *opaque, struct failure *failure);
int chunk_next_id(struct catalog *catalog, uint64_t *ret_next, struct failure *failure);

/* A row of `base` from the columns BASE_COLUMNS, of which the first is `first_column`. False: impossible values. */
#define BASE_COLUMNS "off_bytes,len_bytes,since,image_uuid,image_disk,image_number,image_generation,image_off_bytes"
bool base_read_piece(sqlite3_stmt *row, int first_column, struct catalog_piece *ret_piece);

/* Generation of the newest alive image of a disk, 0 when there is none. */
int image_newest_generation(struct catalog *catalog, int64_t disk, uint32_t *ret_generation, struct failure *failure);

#endif
