/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handle: opening, transactions, checkpoints, statements.
 *
 * Durability. WAL mode with synchronous=FULL: every commit fdatasyncs the write-ahead log, so a commit that returned survives a power cut
 * (with NORMAL it would not: 50 acknowledged inserts were seen to vanish). catalog_create() fsyncs the folder once the
 * database is complete; SQLite itself syncs the folder when it makes the log.
 *
 * Locking. flock(locks/catalog) is held from before BEGIN until after COMMIT, and checkpoints run under it only, because of SQLite's WAL-reset
 * bug (3.7 to 3.51.2: a checkpoint next to a commit of another connection can corrupt). That is why wal_autocheckpoint is 0, and why checkpoint-on-close
 * is off (it would run without our lock). Readers need no lock: a passive checkpoint never overtakes them.
 *
 * Order of locks: flock, then SQLite's. Nothing else is taken while they're held but segment files, by the caller.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#include "catalog/internal.h"
#include "common/cleanup.h"
#include "common/own_file.h"

enum {
	APPLICATION_ID = 0x77685279,	     /* "whRy" */
	LOCK_WAIT_MS = 120000,
	CHECKPOINT_PAGES = 4096,	     /* 16 MiB of log */
	CHECKPOINT_PAGES_WAIT = 32768,	     /* 128 MiB: wait for readers and start the log over */
	SQLITE_PATH_MOST_BYTES = 512,	     /* MAX_PATHNAME of SQLite's os_unix.c, for the path from the root */
};

static const char schema[] =
	"PRAGMA application_id=0x77685279;"
	"PRAGMA user_version=3;"
	"CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;"
	"CREATE TABLE counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
	"INSERT INTO counter VALUES('next_chunk', 1);"
	"CREATE TABLE disk(id INTEGER PRIMARY KEY AUTOINCREMENT, uuid BLOB NOT NULL, name TEXT NOT NULL, size_bytes INTEGER NOT NULL,"
	" sector_bytes INTEGER NOT NULL, generation INTEGER NOT NULL, state INTEGER NOT NULL, keep INTEGER NOT NULL,"
	" level INTEGER NOT NULL, limit_rate INTEGER NOT NULL, mirror_of TEXT, fingerprint_key BLOB NOT NULL,"
	" log_sequence INTEGER NOT NULL, log_head BLOB NOT NULL, created_at INTEGER NOT NULL, next_image INTEGER NOT NULL,"
	" next_round INTEGER NOT NULL, changed_bytes INTEGER NOT NULL, content_round INTEGER NOT NULL) STRICT;"
	"CREATE UNIQUE INDEX disk_name ON disk(name) WHERE state = 0;"
	"CREATE TABLE image(disk INTEGER NOT NULL, number INTEGER NOT NULL, generation INTEGER NOT NULL, state INTEGER NOT NULL,"
	" created_at INTEGER NOT NULL, size_bytes INTEGER NOT NULL, changed_bytes INTEGER NOT NULL, label TEXT,"
	" pinned INTEGER NOT NULL, consistency INTEGER NOT NULL, round INTEGER NOT NULL, details TEXT,"
	" PRIMARY KEY(disk, number)) STRICT, WITHOUT ROWID;"
	"CREATE TABLE map(key INTEGER PRIMARY KEY, entries BLOB NOT NULL) STRICT;"
	"CREATE TABLE past(disk INTEGER NOT NULL, page INTEGER NOT NULL, until INTEGER NOT NULL, entries BLOB NOT NULL,"
	" PRIMARY KEY(disk, page, until)) STRICT, WITHOUT ROWID;"
	"CREATE INDEX past_until ON past(disk, until, page);"
	"CREATE TABLE chunk(page INTEGER PRIMARY KEY, entries BLOB NOT NULL) STRICT;"
	"CREATE TABLE digest(tag INTEGER NOT NULL, chunk INTEGER NOT NULL, PRIMARY KEY(tag, chunk)) STRICT, WITHOUT ROWID;"
	"CREATE TABLE lost(digest BLOB PRIMARY KEY, chunk INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
	"CREATE INDEX lost_chunk ON lost(chunk);"
	"CREATE TABLE segment(number INTEGER PRIMARY KEY AUTOINCREMENT, sealed INTEGER NOT NULL, length_bytes INTEGER NOT NULL,"
	" live_bytes INTEGER NOT NULL) STRICT;"
	"CREATE INDEX segment_open ON segment(number) WHERE sealed = 0;"
	"CREATE INDEX segment_sparse ON segment(live_bytes) WHERE length_bytes > live_bytes * 2;"
	"CREATE TABLE log(disk INTEGER NOT NULL, sequence INTEGER NOT NULL, segment INTEGER NOT NULL, off_bytes INTEGER NOT NULL,"
	" stored_bytes INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY(disk, sequence)) STRICT, WITHOUT ROWID;"
	"CREATE INDEX log_place ON log(segment, off_bytes);"
	"CREATE TABLE round(disk INTEGER NOT NULL, number INTEGER NOT NULL, state INTEGER NOT NULL, source TEXT NOT NULL,"
	" identity TEXT NOT NULL, how TEXT NOT NULL, start_stamp TEXT NOT NULL, dirty_bitmaps TEXT NOT NULL,"
	" dirty_bytes INTEGER NOT NULL, details TEXT, started_at INTEGER NOT NULL, finished_at INTEGER NOT NULL,"
	" cursor_bytes INTEGER NOT NULL, total INTEGER NOT NULL, done INTEGER NOT NULL, read INTEGER NOT NULL,"
	" left_out INTEGER NOT NULL, zero INTEGER NOT NULL, changed INTEGER NOT NULL, stored INTEGER NOT NULL,"
	" sent INTEGER NOT NULL, own_limit INTEGER, own_level INTEGER, error TEXT,"
	" PRIMARY KEY(disk, number)) STRICT, WITHOUT ROWID;"
	"CREATE TABLE base(disk INTEGER NOT NULL, until INTEGER NOT NULL, off_bytes INTEGER NOT NULL,"
	" len_bytes INTEGER NOT NULL, since INTEGER NOT NULL, image_uuid BLOB NOT NULL, image_disk INTEGER NOT NULL,"
	" image_number INTEGER NOT NULL, image_generation INTEGER NOT NULL, image_off_bytes INTEGER NOT NULL,"
	" PRIMARY KEY(disk, until, off_bytes)) STRICT, WITHOUT ROWID;"
	"CREATE INDEX base_image ON base(image_disk, image_number);";

#define DISK_COLUMNS                                                                                                   \
	"id,uuid,name,size_bytes,sector_bytes,generation,state,keep,level,limit_rate,mirror_of,fingerprint_key,"       \
	"log_sequence,log_head,created_at,next_image,next_round,changed_bytes,content_round"
#define IMAGE_COLUMNS                                                                                                  \
	"disk,number,generation,state,created_at,size_bytes,changed_bytes,label,pinned,consistency,round,details"
#define ROUND_COLUMNS                                                                                                  \
	"disk,number,state,source,identity,how,start_stamp,dirty_bitmaps,dirty_bytes,details,started_at,finished_at,"  \
	"cursor_bytes,total,done,read,left_out,zero,changed,stored,sent,own_limit,own_level,error"

static const char *const statement_text[STATEMENT_COUNT] = {
	[ST_BEGIN] = "BEGIN IMMEDIATE",
	[ST_COMMIT] = "COMMIT",
	[ST_ROLLBACK] = "ROLLBACK",
	[ST_READ_BEGIN] = "BEGIN",
	[ST_SCHEMA] = "SELECT name, sql FROM sqlite_schema",
	[ST_META_GET] = "SELECT value FROM meta WHERE key='chunk_bytes'",
	[ST_DATA_VERSION] = "PRAGMA data_version",
	[ST_DISK_INSERT] = "INSERT INTO disk(" DISK_COLUMNS ") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,"
			   "?15,?16,?17,?18,?19)",
	[ST_DISK_UPDATE] = "UPDATE disk SET uuid=?2,name=?3,size_bytes=?4,sector_bytes=?5,generation=?6,state=?7,keep=?8,"
			   "level=?9,limit_rate=?10,mirror_of=?11,fingerprint_key=?12,log_sequence=?13,log_head=?14,"
			   "created_at=?15,next_image=?16,next_round=?17,changed_bytes=?18,content_round=?19 WHERE id=?1",
	[ST_DISK_FIND] = "SELECT " DISK_COLUMNS " FROM disk WHERE name=?1 AND state=0",
	[ST_DISK_GET] = "SELECT " DISK_COLUMNS " FROM disk WHERE id=?1",
	[ST_DISK_LIST] = "SELECT " DISK_COLUMNS " FROM disk WHERE state=?1 ORDER BY name, id",
	[ST_DISK_DELETE] = "DELETE FROM disk WHERE id=?1",
	[ST_IMAGE_INSERT] = "INSERT INTO image(" IMAGE_COLUMNS ") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)",
	[ST_IMAGE_UPDATE] = "UPDATE image SET generation=?3,state=?4,created_at=?5,size_bytes=?6,changed_bytes=?7,label=?8,"
			    "pinned=?9,consistency=?10,round=?11,details=?12 WHERE disk=?1 AND number=?2",
	[ST_IMAGE_GET] = "SELECT " IMAGE_COLUMNS " FROM image WHERE disk=?1 AND number=?2 AND state=0",
	[ST_IMAGE_LIST] = "SELECT " IMAGE_COLUMNS " FROM image WHERE disk=?1 AND state=?2 ORDER BY number",
	[ST_IMAGE_LIST_ALL] = "SELECT i.disk,i.number,i.generation,i.state,i.created_at,i.size_bytes,i.changed_bytes,i.label,"
			      "i.pinned,i.consistency,i.round,i.details FROM image i JOIN disk d ON d.id=i.disk "
			      "WHERE d.state=0 AND i.state=?1 ORDER BY d.name, i.number",
	[ST_IMAGE_DELETE] = "DELETE FROM image WHERE disk=?1 AND number=?2",
	[ST_IMAGE_DELETE_ALL] = "DELETE FROM image WHERE disk=?1",
	/* generations of the nearest alive images on both sides; NULL where there is none */
	[ST_IMAGE_NEIGHBOURS] = "SELECT (SELECT max(generation) FROM image WHERE disk=?1 AND state=0 AND generation<?2),"
				"(SELECT min(generation) FROM image WHERE disk=?1 AND state=0 AND generation>?2)",
	[ST_IMAGE_NEWEST] = "SELECT generation FROM image WHERE disk=?1 AND state=0 ORDER BY number DESC LIMIT 1",
	[ST_IMAGE_LAST] = "SELECT " IMAGE_COLUMNS " FROM image WHERE disk=?1 AND state=0 ORDER BY number DESC LIMIT 1",
	[ST_IMAGE_COUNT] = "SELECT count(*) FROM image WHERE disk=?1 AND state=0",
	[ST_MAP_GET] = "SELECT entries FROM map WHERE key=?1",
	[ST_MAP_PUT] = "INSERT OR REPLACE INTO map(key,entries) VALUES(?1,?2)",
	[ST_MAP_DELETE] = "DELETE FROM map WHERE key=?1",
	[ST_MAP_NEXT] = "SELECT key FROM map WHERE key>=?1 AND key<=?2 ORDER BY key LIMIT 1",
	[ST_PAST_GET] = "SELECT entries FROM past WHERE disk=?1 AND page=?2 AND until=?3",
	[ST_PAST_PUT] = "INSERT OR REPLACE INTO past(disk,page,until,entries) VALUES(?1,?2,?3,?4)",
	[ST_PAST_DELETE] = "DELETE FROM past WHERE disk=?1 AND page=?2 AND until=?3",
	[ST_PAST_SINCE] = "SELECT entries,until FROM past WHERE disk=?1 AND page=?2 AND until>?3 ORDER BY until",
	[ST_PAST_NEXT] = "SELECT page FROM past WHERE disk=?1 AND page>=?2 AND page<?4 AND until>?3 ORDER BY page LIMIT 1",
	/* rows after (until ?2, page ?3), up to until ?4 */
	[ST_PAST_RANGE] = "SELECT until,page,entries FROM past WHERE disk=?1 AND (until,page)>(?2,?3) AND until<=?4 "
			  "ORDER BY until,page LIMIT ?5",
	[ST_CHUNK_GET] = "SELECT entries FROM chunk WHERE page=?1",
	[ST_CHUNK_PUT] = "INSERT OR REPLACE INTO chunk(page,entries) VALUES(?1,?2)",
	[ST_NEXT_CHUNK_GET] = "SELECT value FROM counter WHERE name='next_chunk'",
	[ST_NEXT_CHUNK_PUT] = "UPDATE counter SET value=?1 WHERE name='next_chunk'",
	[ST_DIGEST_PUT] = "INSERT INTO digest(tag,chunk) VALUES(?1,?2)",
	[ST_DIGEST_FIND] = "SELECT chunk FROM digest WHERE tag=?1 ORDER BY chunk LIMIT ?2",
	[ST_SEGMENT_INSERT] = "INSERT INTO segment(sealed,length_bytes,live_bytes) VALUES(0,0,0)",
	[ST_SEGMENT_UPDATE] = "UPDATE segment SET length_bytes=?2, sealed=?3 WHERE number=?1",
	[ST_SEGMENT_LIVE] = "UPDATE segment SET live_bytes=live_bytes+?2 WHERE number=?1",
	[ST_SEGMENT_GET] = "SELECT number,sealed,length_bytes,live_bytes FROM segment WHERE number=?1",
	[ST_SEGMENT_OPEN] = "SELECT number,sealed,length_bytes,live_bytes FROM segment WHERE sealed=0 ORDER BY number",
	[ST_LOG_INSERT] = "INSERT INTO log(disk,sequence,segment,off_bytes,stored_bytes,digest) VALUES(?1,?2,?3,?4,?5,?6)",
	[ST_LOG_LIST] = "SELECT disk,sequence,segment,off_bytes,stored_bytes,digest FROM log WHERE disk=?1 AND sequence>=?2 "
			"ORDER BY sequence LIMIT ?3",
	[ST_LOG_DELETE] = "DELETE FROM log WHERE disk=?1 AND sequence=?2",
	[ST_ROUND_INSERT] = "INSERT INTO round(" ROUND_COLUMNS ") VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,"
			    "?15,?16,?17,?18,?19,?20,?21,?22,?23,?24)",
	[ST_ROUND_UPDATE] = "UPDATE round SET state=?3,source=?4,identity=?5,how=?6,start_stamp=?7,dirty_bitmaps=?8,"
			    "dirty_bytes=?9,details=?10,started_at=?11,finished_at=?12,cursor_bytes=?13,total=?14,done=?15,"
			    "read=?16,left_out=?17,zero=?18,changed=?19,stored=?20,sent=?21,own_limit=?22,own_level=?23,"
			    "error=?24 WHERE disk=?1 AND number=?2",
	[ST_ROUND_GET] = "SELECT " ROUND_COLUMNS " FROM round WHERE disk=?1 AND number=?2",
	[ST_ROUND_NEXT] = "SELECT number FROM round WHERE disk=?1 AND number>?2 ORDER BY number LIMIT 1",
	[ST_ROUND_LIST] = "SELECT " ROUND_COLUMNS " FROM round WHERE disk=?1 ORDER BY number",
	[ST_ROUND_LIST_ALL] = "SELECT r.disk,r.number,r.state,r.source,r.identity,r.how,r.start_stamp,r.dirty_bitmaps,"
			      "r.dirty_bytes,r.details,r.started_at,r.finished_at,r.cursor_bytes,r.total,r.done,r.read,"
			      "r.left_out,r.zero,r.changed,r.stored,r.sent,r.own_limit,r.own_level,r.error "
			      "FROM round r JOIN disk d ON d.id=r.disk WHERE d.state=0 ORDER BY d.name, r.number",
	[ST_ROUND_DELETE_ALL] = "DELETE FROM round WHERE disk=?1",
	[ST_SEGMENT_LIST] = "SELECT number,sealed,length_bytes,live_bytes FROM segment WHERE number>?1 "
			    "ORDER BY number LIMIT ?2",
	[ST_CHUNK_WALK] = "SELECT page,entries FROM chunk WHERE page>=?1 AND page<=?2 ORDER BY page",
	[ST_LOG_SIZES] = "SELECT stored_bytes FROM log WHERE disk=?1",
	[ST_LOG_WALK] = "SELECT disk,sequence,segment,off_bytes,stored_bytes,digest FROM log",
	[ST_LOG_NEXT_DISK] = "SELECT disk FROM log WHERE disk>?1 ORDER BY disk LIMIT 1",
	[ST_MAP_WALK] = "SELECT key,entries FROM map WHERE key>=?1 AND key<?2 ORDER BY key",
	[ST_PAST_WALK] = "SELECT disk,page,until,entries FROM past WHERE (disk,page)>=(?1,?2) AND (disk,page)<(?3,?4) "
			 "ORDER BY disk,page,until",
	[ST_SEGMENT_LAST] = "SELECT max(number) FROM segment",
	[ST_DIGEST_WALK] = "SELECT tag,chunk FROM digest",
	[ST_CHECK_IMAGES] = "SELECT i.disk,i.number FROM image i LEFT JOIN disk d ON d.id=i.disk "
			    "WHERE d.id IS NULL OR i.generation>=d.generation OR i.number>=d.next_image",
	[ST_CHECK_IMAGE_ORDER] = "SELECT disk,number FROM (SELECT disk,number,generation,"
				 "lag(generation) OVER (PARTITION BY disk ORDER BY number) AS before FROM image) "
				 "WHERE before>=generation",
	[ST_CHECK_ROUNDS] = "SELECT r.disk,r.number FROM round r LEFT JOIN disk d ON d.id=r.disk "
			    "WHERE d.id IS NULL OR r.number>=d.next_round",
	/* length_bytes on the left, here as in the index: SQLite turns a comparison around to have a column there, and finds a partial
	 * index only by the same words */
	[ST_SEGMENT_SPARSE] = "SELECT number,sealed,length_bytes,live_bytes FROM segment INDEXED BY segment_sparse "
			      "WHERE length_bytes > live_bytes * 2 AND length_bytes-live_bytes>=?1 "
			      "AND (live_bytes,number)>(?2,?3) ORDER BY live_bytes,number LIMIT ?4",
	[ST_SEGMENT_DELETE] = "DELETE FROM segment WHERE number=?1 AND live_bytes=0",
	[ST_CHUNK_DELETE] = "DELETE FROM chunk WHERE page=?1",
	[ST_DIGEST_DELETE] = "DELETE FROM digest WHERE tag=?1 AND chunk=?2",
	[ST_LOG_AT] = "SELECT disk,sequence,segment,off_bytes,stored_bytes,digest FROM log WHERE segment=?1 AND off_bytes=?2",
	[ST_LOG_RELOCATE] = "UPDATE log SET segment=?3,off_bytes=?4 WHERE disk=?1 AND sequence=?2",
	[ST_LOST_PUT] = "INSERT INTO lost(digest,chunk) VALUES(?1,?2)",
	[ST_LOST_FIND] = "SELECT chunk FROM lost WHERE digest=?1",
	[ST_LOST_DELETE] = "DELETE FROM lost WHERE digest=?1",
	[ST_LOST_HAS] = "SELECT digest FROM lost WHERE chunk=?1",
	[ST_LOST_FORGET] = "DELETE FROM lost WHERE chunk=?1",
	[ST_LOST_LIST] = "SELECT digest,chunk FROM lost WHERE digest>?1 ORDER BY digest LIMIT ?2",
	[ST_SEGMENT_PUT] = "INSERT INTO segment(number,sealed,length_bytes,live_bytes) VALUES(?1,?2,?3,0)",
	[ST_FOUND_PUT] = "INSERT OR REPLACE INTO found(uuid,sequence,digest,predecessor,time,segment,off_bytes,stored_bytes) "
			 "VALUES(?1,?2,?3,?4,?5,?6,?7,?8)",
	[ST_FOUND_NEXT_DISK] = "SELECT uuid FROM found WHERE uuid>?1 ORDER BY uuid LIMIT 1",
	[ST_FOUND_LIST] = "SELECT digest,predecessor,time,segment,off_bytes,stored_bytes FROM found "
			  "WHERE uuid=?1 AND sequence=?2 ORDER BY time,segment,off_bytes LIMIT ?3",
	[ST_FOUND_CHOOSE] = "UPDATE found SET chosen=1 WHERE uuid=?1 AND sequence=?2 AND digest=?3",
	[ST_FOUND_CHOSEN] = "SELECT digest,predecessor,time,segment,off_bytes,stored_bytes FROM found "
			    "WHERE uuid=?1 AND sequence=?2 AND chosen=1",
	[ST_FOUND_LAST] = "SELECT max(sequence) FROM found WHERE uuid=?1",
	[ST_BASE_PUT] = "INSERT INTO base(disk,until," BASE_COLUMNS ") VALUES(?1,0,?2,?3,?4,?5,?6,?7,?8,?9)",
	/* of the generation ?2; for live content one that no piece has ended before or in */
	[ST_BASE_LIST] = "SELECT " BASE_COLUMNS " FROM base WHERE disk=?1 AND since<=?2 AND (until=0 OR until>?2) "
			 "ORDER BY off_bytes",
	[ST_BASE_RANGE] = "SELECT " BASE_COLUMNS " FROM base WHERE disk=?1 AND since<=?2 AND (until=0 OR until>?2) "
			  "AND off_bytes<?4 AND off_bytes+len_bytes>?3 ORDER BY off_bytes",
	[ST_BASE_ANY] = "SELECT 1 FROM base WHERE disk=?1 AND since<=?2 AND (until=0 OR until>?2) LIMIT 1",
	[ST_BASE_END] = "UPDATE base SET until=?3 WHERE disk=?1 AND until=0 AND off_bytes=?2",
	[ST_BASE_DELETE] = "DELETE FROM base WHERE disk=?1 AND until=0 AND off_bytes=?2",
	[ST_BASE_FORGET] = "DELETE FROM base WHERE disk=?1 AND until<>0 AND NOT EXISTS (SELECT 1 FROM image i "
			   "WHERE i.disk=?1 AND i.state=0 AND i.generation>=base.since AND i.generation<base.until)",
	[ST_BASE_DROP] = "DELETE FROM base WHERE disk=?1",
	[ST_BASE_USERS] = "SELECT DISTINCT b.image_number,d.name FROM base b JOIN disk d ON d.id=b.disk "
			  "WHERE b.image_disk=?1 AND d.state=0 AND (b.image_number=?2 OR (?2=0 AND b.disk<>?1)) "
			  "ORDER BY b.image_number,d.name",
	[ST_BASE_PARENT] = "SELECT d.name,b.image_number FROM base b JOIN disk d ON d.id=b.image_disk "
			   "WHERE b.disk=?1 AND b.until=0 GROUP BY b.image_disk,b.image_number "
			   "ORDER BY sum(b.len_bytes) DESC,min(b.off_bytes) LIMIT 1",
	[ST_BASE_LEVELS] = "WITH RECURSIVE level(disk,generation,depth) AS (SELECT ?1,?2,1 UNION "
			   "SELECT b.image_disk,b.image_generation,l.depth+1 FROM level l JOIN base b ON b.disk=l.disk "
			   "AND b.since<=l.generation AND (b.until=0 OR b.until>l.generation) WHERE l.depth<=?3) "
			   "SELECT max(depth) FROM level",
	[ST_BASE_RESOLVE] = "UPDATE base SET (image_disk,image_generation)=(SELECT coalesce(max(d.id),0),"
			    "coalesce(max(i.generation),0) FROM disk d JOIN image i ON i.disk=d.id AND i.state=0 "
			    "WHERE d.uuid=base.image_uuid AND d.state=0 AND i.number=base.image_number)",
	[ST_BASE_MISSING] = "SELECT d.name," BASE_COLUMNS " FROM base b JOIN disk d ON d.id=b.disk "
			    "WHERE image_generation=0 ORDER BY d.name,off_bytes",
	[ST_BASE_WALK] = "SELECT disk,until," BASE_COLUMNS " FROM base ORDER BY disk,until,off_bytes",
};

static int code_of_sqlite(int sqlite_code)
{
	switch (sqlite_code & 0xff) {
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_READONLY:
		return -EROFS;
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
	case SQLITE_ERROR: /* our statements are right: a table or column that they name isn't there */
		return -EBADMSG;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return -EBUSY;
	case SQLITE_PERM:
	case SQLITE_AUTH:
		return -EACCES;
	case SQLITE_CONSTRAINT:
		return -EEXIST;
	default:
		return -EIO;
	}
}

int catalog_sqlite_error(struct catalog *catalog, const char *doing, struct failure *failure)
{
	int code = code_of_sqlite(sqlite3_extended_errcode(catalog->db));
	int system_errno = sqlite3_system_errno(catalog->db);

	if ((sqlite3_errcode(catalog->db) & 0xff) == SQLITE_IOERR && (system_errno == ENOSPC || system_errno == EDQUOT))
		code = -ENOSPC;
	if ((sqlite3_errcode(catalog->db) & 0xff) == SQLITE_CANTOPEN && system_errno > 0)
		code = -system_errno;
	if (code == -ENOSPC)
		return fail(failure, code, "catalog %s: %s: no space left on the store's file system; make room and run it again",
			    catalog->path, doing);
	if (code == -EBADMSG)
		return fail(failure, code, "catalog %s: %s: %s; the catalog is damaged, its content can be rebuilt from the segments",
			    catalog->path, doing, sqlite3_errmsg(catalog->db));
	return fail(failure, code, "catalog %s: %s: %s%s%s", catalog->path, doing, sqlite3_errmsg(catalog->db),
		    system_errno != 0 ? ": " : "", system_errno != 0 ? strerror(system_errno) : "");
}

int catalog_bad_row(struct catalog *catalog, const char *table, struct failure *failure)
{
	return fail(failure, -EBADMSG, "catalog %s: a row of table %s holds impossible values; the catalog is damaged",
		    catalog->path, table);
}

sqlite3_stmt *catalog_statement(struct catalog *catalog, enum statement which, struct failure *failure)
{
	if (catalog->statements[which] == NULL &&
	    sqlite3_prepare_v3(catalog->db, statement_text[which], -1, SQLITE_PREPARE_PERSISTENT,
			       &catalog->statements[which], NULL) != SQLITE_OK) {
		/* the texts are right: a plain error is a table or column that isn't there */
		if (sqlite3_errcode(catalog->db) == SQLITE_ERROR)
			catalog->statement_error = fail(failure, -EBADMSG, "catalog %s: %s; the catalog is damaged",
							catalog->path, sqlite3_errmsg(catalog->db));
		else
			catalog->statement_error = catalog_sqlite_error(catalog, "preparing a query", failure);
		return NULL;
	}
	return catalog->statements[which];
}

void statement_done(sqlite3_stmt **statement)
{
	if (*statement == NULL)
		return;
	(void)sqlite3_reset(*statement); /* repeats the error that step already gave */
	(void)sqlite3_clear_bindings(*statement);
}

int catalog_step(struct catalog *catalog, sqlite3_stmt *statement, struct failure *failure)
{
	switch (sqlite3_step(statement)) {
	case SQLITE_ROW:
		return 1;
	case SQLITE_DONE:
		return 0;
	default:
		return catalog_sqlite_error(catalog, "reading or writing", failure);
	}
}

int catalog_run(struct catalog *catalog, sqlite3_stmt *statement, struct failure *failure)
{
	int result = catalog_step(catalog, statement, failure);

	assert(result <= 0);
	return result;
}

int catalog_run_one(struct catalog *catalog, sqlite3_stmt *statement, const char *table, struct failure *failure)
{
	int result = catalog_run(catalog, statement, failure);

	if (result == 0 && sqlite3_changes(catalog->db) != 1)
		return fail(failure, -EBADMSG, "catalog %s: a row of table %s is missing; the catalog is damaged", catalog->path,
			    table);
	return result;
}

/* ---- columns and parameters ---- */

uint64_t column_u64(sqlite3_stmt *statement, int column, uint64_t most, bool *bad)
{
	int64_t value = sqlite3_column_int64(statement, column);

	if (sqlite3_column_type(statement, column) != SQLITE_INTEGER || value < 0 || (uint64_t)value > most) {
		*bad = true;
		return 0;
	}
	return (uint64_t)value;
}

int64_t column_i64(sqlite3_stmt *statement, int column, int64_t least, int64_t most, bool *bad)
{
	int64_t value = sqlite3_column_int64(statement, column);

	if (sqlite3_column_type(statement, column) != SQLITE_INTEGER || value < least || value > most) {
		*bad = true;
		return least;
	}
	return value;
}

char *column_text(sqlite3_stmt *statement, int column, size_t most_bytes, bool *bad)
{
	const unsigned char *text;
	size_t len_bytes;

	if (sqlite3_column_type(statement, column) == SQLITE_NULL)
		return NULL;
	text = sqlite3_column_text(statement, column);
	len_bytes = (size_t)sqlite3_column_bytes(statement, column);
	if (text == NULL || len_bytes > most_bytes || memchr(text, 0, len_bytes) != NULL) {
		*bad = true;
		return NULL;
	}
	char *copy = strndup((const char *)text, len_bytes);
	if (copy == NULL)
		*bad = true;
	return copy;
}

void column_bytes(sqlite3_stmt *statement, int column, void *ret_bytes, size_t len_bytes, bool *bad)
{
	bool is_blob = sqlite3_column_type(statement, column) == SQLITE_BLOB; /* asked first: reading may convert */
	const void *blob = sqlite3_column_blob(statement, column);

	if (!is_blob || blob == NULL || (size_t)sqlite3_column_bytes(statement, column) != len_bytes) {
		*bad = true;
		memset(ret_bytes, 0, len_bytes);
		return;
	}
	memcpy(ret_bytes, blob, len_bytes);
}

void bind_text(sqlite3_stmt *statement, int parameter, const char *text)
{
	if (text == NULL)
		(void)sqlite3_bind_null(statement, parameter);
	else
		(void)sqlite3_bind_text(statement, parameter, text, -1, SQLITE_STATIC); /* no copy, so it can't fail */
}

void bind_u64(sqlite3_stmt *statement, int parameter, uint64_t value)
{
	assert(value <= INT64_MAX);
	(void)sqlite3_bind_int64(statement, parameter, (int64_t)value);
}

/* ---- making and opening ---- */

static char *database_path(const char *store_path, const char *name)
{
	char *path = NULL;

	return asprintf(&path, "%s/%s", store_path, name) < 0 ? NULL : path;
}

static int catalog_execute(struct catalog *catalog, const char *sql, const char *doing, struct failure *failure)
{
	if (sqlite3_exec(catalog->db, sql, NULL, NULL, NULL) != SQLITE_OK)
		return catalog_sqlite_error(catalog, doing, failure);
	return 0;
}

static int catalog_configure(struct catalog *catalog, struct failure *failure)
{
	(void)sqlite3_extended_result_codes(catalog->db, 1);
	(void)sqlite3_busy_timeout(catalog->db, 30000);
	(void)sqlite3_db_config(catalog->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	(void)sqlite3_db_config(catalog->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
	(void)sqlite3_db_config(catalog->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	return catalog_execute(catalog,
			       "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-8192;"
			       "PRAGMA cell_size_check=ON; PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0;",
			       "opening", failure);
}

static int note_wal_pages(void *opaque, sqlite3 *db, const char *name, int pages)
{
	struct catalog *catalog = opaque;

	(void)db;
	(void)name;
	catalog->wal_pages = pages;
	return SQLITE_OK;
}

static void catalog_free(struct catalog *catalog)
{
	if (catalog == NULL)
		return;
	for (int i = 0; i < STATEMENT_COUNT; i++)
		(void)sqlite3_finalize(catalog->statements[i]);
	if (catalog->db != NULL) {
		int code = sqlite3_close(catalog->db);
		assert(code == SQLITE_OK);
		(void)code;
	}
	if (catalog->lock_fd >= 0)
		(void)close(catalog->lock_fd); /* a lock file, nothing was written */
	free(catalog->chunk_cache);
	free(catalog->live_changes);
	free(catalog->new_digests);
	free(catalog->path);
	free(catalog);
}

static void catalog_free_at(struct catalog **catalog)
{
	catalog_free(*catalog);
}

static struct catalog *catalog_allocate(const char *store_path, const char *name)
{
	struct catalog *catalog = calloc(1, sizeof(*catalog));

	if (catalog == NULL)
		return NULL;
	catalog->lock_fd = -1;
	catalog->cache_version = -1;
	catalog->path = database_path(store_path, name);
	catalog->chunk_cache = calloc(CHUNK_CACHE_SLOTS, sizeof(*catalog->chunk_cache));
	if (catalog->path == NULL || catalog->chunk_cache == NULL) {
		catalog_free(catalog);
		return NULL;
	}
	return catalog;
}

/* SQLite just says "unable to open database file". */
static int check_path_length(const char *path, struct failure *failure)
{
	AUTO_FREE char *folder = *path == '/' ? strdup("") : getcwd(NULL, 0);
	size_t path_bytes;

	if (folder == NULL)
		return fail_errno(failure, -errno, "catalog %s: the current folder", path);
	path_bytes = strlen(folder) + 1 + strlen(path) + strlen("-journal");
	if (path_bytes > SQLITE_PATH_MOST_BYTES)
		return fail(failure, -ENAMETOOLONG,
			    "catalog: the path of the store is %zu bytes too long for SQLite; give it a shorter one, by a bind mount for example",
			    path_bytes - SQLITE_PATH_MOST_BYTES);
	return 0;
}

static int fsync_folder(const char *path, struct failure *failure)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return fail_errno(failure, -errno, "folder %s", path);
	return 0;
}

static int catalog_fill(struct catalog *catalog, uint32_t chunk_bytes, struct failure *failure)
{
	char sql[128];
	int result;

	if (sqlite3_open_v2(catalog->path, &catalog->db,
			    SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, catalog_vfs()) != SQLITE_OK)
		return catalog_sqlite_error(catalog, "creating", failure);
	result = catalog_configure(catalog, failure);
	if (result == 0)
		result = catalog_execute(catalog, "PRAGMA page_size=4096; PRAGMA journal_mode=WAL; BEGIN IMMEDIATE;",
					 "creating", failure);
	if (result == 0)
		result = catalog_execute(catalog, schema, "creating tables", failure);
	(void)snprintf(sql, sizeof(sql), "INSERT INTO meta VALUES('chunk_bytes','%u'); COMMIT;", chunk_bytes);
	if (result == 0)
		result = catalog_execute(catalog, sql, "creating tables", failure);
	/* nobody else knows of it yet: no lock needed */
	if (result == 0 && sqlite3_wal_checkpoint_v2(catalog->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) != SQLITE_OK)
		result = catalog_sqlite_error(catalog, "writing tables", failure);
	return result;
}

/* What was begun and not finished would keep a second attempt from succeeding. */
static void remove_unfinished(const char *path)
{
	static const char *const suffixes[] = { "", "-wal", "-shm" };

	for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
		AUTO_FREE char *name = NULL;

		if (asprintf(&name, "%s%s", path, suffixes[i]) >= 0)
			(void)unlink(name); /* it may not have come that far */
	}
}

int catalog_create_named(const char *store_path, const char *name, uint32_t chunk_bytes, struct failure *failure)
{
	struct catalog *catalog = catalog_allocate(store_path, name);
	AUTO_FREE char *path = NULL;
	struct stat status;
	int result;

	if (catalog == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	if (lstat(catalog->path, &status) == 0) { /* a link that leads nowhere, too: SQLite would make what it names */
		result = fail(failure, -EEXIST, "catalog %s: it exists already", catalog->path);
		catalog_free(catalog);
		return result;
	}
	result = check_path_length(catalog->path, failure);
	if (result == 0)
		result = catalog_fill(catalog, chunk_bytes, failure);
	path = take_ptr(catalog->path);
	catalog_free(catalog);
	if (result == 0)
		result = fsync_folder(store_path, failure);
	if (result < 0)
		remove_unfinished(path);
	return result;
}

int catalog_create(const char *store_path, uint32_t chunk_bytes, struct failure *failure)
{
	return catalog_create_named(store_path, CATALOG_NAME, chunk_bytes, failure);
}

static int catalog_check_format(struct catalog *catalog, struct failure *failure)
{
	sqlite3_stmt *statement = NULL;
	int application = 0, format = 0, result;

	result = sqlite3_prepare_v2(catalog->db,
				    "SELECT a.application_id, u.user_version FROM pragma_application_id a, pragma_user_version u",
				    -1, &statement, NULL);
	if (result == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW) {
		application = sqlite3_column_int(statement, 0);
		format = sqlite3_column_int(statement, 1);
	} else {
		result = catalog_sqlite_error(catalog, "opening", failure);
		(void)sqlite3_finalize(statement);
		return result;
	}
	(void)sqlite3_finalize(statement);
	if (application != APPLICATION_ID)
		return fail(failure, -EBADMSG, "catalog %s: not a wherry catalog", catalog->path);
	if (format > CATALOG_FORMAT)
		return fail(failure, -EPROTONOSUPPORT, "catalog %s: format %d is newer than this program knows (%d); use a newer wherry",
			    catalog->path, format, CATALOG_FORMAT);
	if (format < 1)
		return fail(failure, -EBADMSG, "catalog %s: format %d was never used", catalog->path, format);
	if (format < CATALOG_FORMAT)
		return fail(failure, -EPROTONOSUPPORT,
			    "catalog %s: format %d, of an earlier version; 'wherry rebuild' makes it anew from the segments",
			    catalog->path, format);
	return 0;
}

/* On a read-only file system SQLite can't make its shared memory file: the database is opened as immutable, which
 * ignores the write-ahead log and is therefore right only while that is empty. */
static int catalog_open_immutable(struct catalog *catalog, struct failure *failure)
{
	AUTO_FREE char *wal = NULL;
	AUTO_FREE char *uri = NULL;
	struct stat status;

	if (asprintf(&wal, "%s-wal", catalog->path) < 0)
		return fail_errno(failure, -ENOMEM, "catalog");
	if (stat(wal, &status) == 0 && status.st_size > 0)
		return fail(failure, -EROFS,
			    "catalog %s: its write-ahead log isn't empty and the file system is read-only; open the store once where it can be written",
			    catalog->path);
	/* in a file: URI these have a meaning of their own: %, ?, # */
	size_t length = strlen(catalog->path);
	char *at = uri = malloc(length * 3 + 32);
	if (uri == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	/* an absolute path follows an empty host name, or a path that begins with // would have its first folder taken for one */
	at = stpcpy(at, catalog->path[0] == '/' ? "file://" : "file:");
	for (size_t i = 0; i < length; i++) {
		char c = catalog->path[i];
		if (c == '%' || c == '?' || c == '#')
			at += sprintf(at, "%%%02X", c);
		else
			*at++ = c;
	}
	(void)stpcpy(at, "?immutable=1");
	if (sqlite3_open_v2(uri, &catalog->db, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_URI, NULL) != SQLITE_OK)
		return catalog_sqlite_error(catalog, "opening", failure);
	return 0;
}

static int catalog_open_database(struct catalog *catalog, struct failure *failure)
{
	struct statvfs file_system;

	if (catalog->read_only && statvfs(catalog->path, &file_system) == 0 && (file_system.f_flag & ST_RDONLY) != 0)
		return catalog_open_immutable(catalog, failure);
	/* also for reading: recovery of the log after a crash needs to write */
	if (sqlite3_open_v2(catalog->path, &catalog->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, catalog_vfs()) != SQLITE_OK)
		return catalog_sqlite_error(catalog, "opening", failure);
	/* SQLite falls back to reading where it can't write */
	if (!catalog->read_only && sqlite3_db_readonly(catalog->db, "main") == 1)
		return fail(failure, -EROFS, "catalog %s: can't be written", catalog->path);
	return 0;
}

static int catalog_inode(const struct catalog *catalog, uint64_t *ret_inode, struct failure *failure)
{
	struct stat status;

	if (stat(catalog->path, &status) < 0)
		return fail_errno(failure, -errno, "catalog %s", catalog->path);
	*ret_inode = status.st_ino;
	return 0;
}

/* In transactions it is under the lock: a rebuild holds that while it puts another database in this one's place. */
int catalog_check_current(const struct catalog *catalog, struct failure *failure)
{
	struct stat status = {.st_ino = 0};

	if (stat(catalog->path, &status) < 0 && errno != ENOENT)
		return fail_errno(failure, -errno, "catalog %s", catalog->path);
	if (status.st_ino != catalog->inode)
		return fail(failure, -ESTALE, "catalog %s: it was made anew meanwhile; run this again", catalog->path);
	return 0;
}

int catalog_check_chunk_bytes(struct catalog *catalog, uint32_t chunk_bytes, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_META_GET, failure);
	AUTO_FREE char *value = NULL;
	char expected[16];
	bool bad = false;
	int result = query == NULL ? catalog->statement_error : catalog_step(catalog, query, failure);

	if (result < 0)
		return result;
	if (result == 1)
		value = column_text(query, 0, sizeof(expected), &bad);
	(void)snprintf(expected, sizeof(expected), "%" PRIu32, chunk_bytes);
	if (bad || value == NULL)
		return catalog_bad_row(catalog, "meta", failure);
	if (strcmp(value, expected) != 0)
		return fail(failure, -EBADMSG,
			    "catalog %s: it is of chunks of %s bytes, wherry.json says %s; one of them is damaged", catalog->path,
			    value, expected);
	return 0;
}

/* The same text as in `schema`, as a whole statement. */
static bool is_our_statement(const char *sql)
{
	const char *found = strstr(schema, sql);

	return found != NULL && strncmp(sql, "CREATE ", 7) == 0 && found[strlen(sql)] == ';';
}

static bool is_own_object(const char *name, const char *sql)
{
	if (name == NULL || sql == NULL)
		return name != NULL && strncmp(name, "sqlite_autoindex_", 17) == 0;
	return strcmp(sql, "CREATE TABLE sqlite_sequence(name,seq)") == 0 || is_our_statement(sql);
}

static unsigned count_statements(const char *statements)
{
	unsigned count = 0;

	for (const char *at = statements; (at = strstr(at, "CREATE ")) != NULL; at++)
		count++;
	return count;
}

/*
 * Tables and indexes are ours, all of them, and there is nothing else: a view in place of a table could go on for ever, a trigger change what it
 * likes, and a table without its types hold anything.
 */
static int catalog_check_schema(struct catalog *catalog, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_SCHEMA, failure);
	unsigned expected = 1; /* sqlite_sequence */
	unsigned count = 0;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	expected += count_statements(schema);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		const char *sql = (const char *)sqlite3_column_text(query, 1);

		if (!is_own_object((const char *)sqlite3_column_text(query, 0), sql))
			return fail(failure, -EBADMSG,
				    "catalog %s: its tables are not those of a catalog; 'wherry rebuild' makes it anew", catalog->path);
		count += sql != NULL;
	}
	if (result == 0 && count != expected)
		return fail(failure, -EBADMSG, "catalog %s: tables or indexes are missing; 'wherry rebuild' makes it anew",
			    catalog->path);
	return result;
}

/*
 * What SQLite will open, looked at beforehand, since it opens by path: it follows a link in the place of the database.
 * And there must be no rollback journal: our database never has one, and playing one back that somebody else has put there
 * can end with the removal of a file that the journal names, anywhere.
 */
static int check_files(const struct catalog *catalog, struct failure *failure)
{
	static const char *const suffixes[] = { "", "-wal", "-shm", "-journal" };

	for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
		AUTO_FREE char *name = NULL;
		struct stat status;

		if (asprintf(&name, "%s%s", catalog->path, suffixes[i]) < 0)
			return fail_errno(failure, -ENOMEM, "catalog");
		if (lstat(name, &status) < 0 && errno == ENOENT)
			continue;
		if (lstat(name, &status) < 0)
			return fail_errno(failure, -errno, "catalog %s", name);
		if (!S_ISREG(status.st_mode))
			return fail(failure, -EBADMSG, "catalog %s: " OWN_FILE_FLAW, name);
		if (strcmp(suffixes[i], "-journal") == 0)
			return fail(failure, -EBADMSG, "catalog %s: a catalog never has such a file, it comes from somewhere else; remove it",
				    name);
	}
	return 0;
}

static int catalog_lock(struct catalog *catalog, int wait_ms, struct failure *failure)
{
	for (int waited_ms = 0;; waited_ms += 5) {
		if (flock(catalog->lock_fd, LOCK_EX | LOCK_NB) == 0)
			return 0;
		if (errno != EWOULDBLOCK && errno != EINTR)
			return fail_errno(failure, -errno, "lock file locks/catalog");
		if (waited_ms >= wait_ms)
			return fail(failure, -EBUSY, "catalog %s: another process has been writing for %d s; see who has locks/catalog open",
				    catalog->path, wait_ms / 1000);
		(void)nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL); /* woken early: asks again */
	}
}

static void catalog_unlock(struct catalog *catalog)
{
	(void)flock(catalog->lock_fd, LOCK_UN); /* can't fail for a lock that is held */
}

int catalog_open_named(const char *store_path, const char *name, int locks_fd, const char *lock_name, bool read_only,
		       struct catalog **ret_catalog, struct failure *failure)
{
	AUTO(catalog_free_at) struct catalog *catalog = catalog_allocate(store_path, name);
	int result;

	if (catalog == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	catalog->read_only = read_only;
	if (access(catalog->path, R_OK) < 0 && errno == ENOENT)
		return fail(failure, -ENOENT, "catalog %s: it is missing; 'wherry rebuild' makes it from the segments", catalog->path);
	if (access(catalog->path, R_OK) < 0)
		return fail_errno(failure, -errno, "catalog %s", catalog->path);
	if (!read_only) {
		catalog->lock_fd = own_file_open(locks_fd, lock_name, O_RDWR | O_CREAT, 0644);
		if (catalog->lock_fd == -EBADMSG)
			return fail(failure, -EBADMSG, "lock file locks/%s: " OWN_FILE_FLAW, lock_name);
		if (catalog->lock_fd < 0)
			return fail_errno(failure, catalog->lock_fd, "lock file locks/%s", lock_name);
	}
	result = check_path_length(catalog->path, failure);
	if (result == 0)
		result = check_files(catalog, failure);
	if (result == 0)
		result = catalog_inode(catalog, &catalog->inode, failure);
	if (result == 0)
		result = catalog_open_database(catalog, failure);
	if (result == 0)
		result = catalog_check_current(catalog, failure); /* it was opened by name after the look at its inode */
	if (result == 0)
		result = catalog_configure(catalog, failure);
	if (result == 0)
		result = catalog_check_format(catalog, failure);
	if (result == 0)
		result = catalog_check_schema(catalog, failure);
	if (result < 0)
		return result;
	(void)sqlite3_wal_hook(catalog->db, note_wal_pages, catalog);
	*ret_catalog = take_ptr(catalog);
	return 0;
}

int catalog_open(const char *store_path, int locks_fd, bool read_only, struct catalog **ret_catalog,
		 struct failure *failure)
{
	return catalog_open_named(store_path, CATALOG_NAME, locks_fd, CATALOG_LOCK_NAME, read_only, ret_catalog, failure);
}

/* ---- transactions ---- */

uint64_t catalog_database(const struct catalog *catalog)
{
	return catalog->inode;
}

int catalog_begin(struct catalog *catalog, struct failure *failure)
{
	STATEMENT *begin = NULL;
	int result;

	assert(!catalog->in_transaction && !catalog->in_snapshot);
	if (catalog->read_only)
		return fail(failure, -EROFS, "catalog %s: opened for reading only", catalog->path);
	result = catalog_lock(catalog, LOCK_WAIT_MS, failure);
	if (result < 0)
		return result;
	result = catalog_check_current(catalog, failure);
	if (result == 0) {
		begin = catalog_statement(catalog, ST_BEGIN, failure);
		result = begin == NULL ? catalog->statement_error : catalog_run(catalog, begin, failure);
	}
	if (result < 0) {
		catalog_unlock(catalog);
		return result;
	}
	catalog->in_transaction = true;
	catalog->next_chunk = 0;
	catalog->live_count = 0;
	catalog->new_digest_count = 0;
	result = chunk_cache_refresh(catalog, failure);
	if (result < 0)
		catalog_rollback(catalog);
	return result;
}

static void catalog_checkpoint(struct catalog *catalog)
{
	int mode = catalog->wal_pages >= CHECKPOINT_PAGES_WAIT ? SQLITE_CHECKPOINT_RESTART : SQLITE_CHECKPOINT_PASSIVE;

	if (catalog->wal_pages < CHECKPOINT_PAGES)
		return;
	/* Only housekeeping: if it fails or readers hold it up, the log stays longer and the next commit tries again. */
	(void)sqlite3_busy_timeout(catalog->db, 1000);
	(void)sqlite3_wal_checkpoint_v2(catalog->db, NULL, mode, NULL, NULL);
	(void)sqlite3_busy_timeout(catalog->db, 30000);
}

int catalog_commit(struct catalog *catalog, struct failure *failure)
{
	STATEMENT *commit = NULL;
	int result;

	assert(catalog->in_transaction);
	result = chunk_cache_flush(catalog, failure);
	if (result == 0)
		result = segment_live_flush(catalog, failure);
	if (result == 0)
		result = new_digests_flush(catalog, failure);
	if (result == 0)
		result = chunk_next_store(catalog, failure);
	if (result == 0) {
		commit = catalog_statement(catalog, ST_COMMIT, failure);
		result = commit == NULL ? catalog->statement_error : catalog_run(catalog, commit, failure);
	}
	if (result < 0) {
		catalog_rollback(catalog);
		return result;
	}
	catalog->in_transaction = false;
	catalog_checkpoint(catalog);
	catalog_unlock(catalog);
	return 0;
}

void catalog_rollback(struct catalog *catalog)
{
	if (!catalog->in_transaction)
		return;
	chunk_cache_drop(catalog);
	catalog->live_count = 0;
	catalog->new_digest_count = 0;
	/* after some errors SQLite has rolled back by itself: then this fails, and is not needed */
	if (sqlite3_get_autocommit(catalog->db) == 0) {
		STATEMENT *rollback = catalog_statement(catalog, ST_ROLLBACK, NULL);
		if (rollback != NULL)
			(void)sqlite3_step(rollback); /* a failed rollback is done by the next opener, from the log */
	}
	catalog->in_transaction = false;
	catalog_unlock(catalog);
}

void catalog_close(struct catalog *catalog)
{
	if (catalog == NULL)
		return;
	catalog_rollback(catalog);
	/* A short log is quick to open and survives being copied without its database's neighbours. */
	if (!catalog->read_only && flock(catalog->lock_fd, LOCK_EX | LOCK_NB) == 0) {
		/* of a database that a rebuild has replaced this moves nothing into the new one: SQLite goes by the open file */
		(void)sqlite3_busy_timeout(catalog->db, 0);
		(void)sqlite3_wal_checkpoint_v2(catalog->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
		catalog_unlock(catalog);
	}
	catalog_free(catalog);
}

int catalog_snapshot_begin(struct catalog *catalog, bool *ret_ours, struct failure *failure)
{
	STATEMENT *begin = NULL;
	int result;

	*ret_ours = false;
	if (catalog->in_transaction || catalog->in_snapshot)
		return 0;
	begin = catalog_statement(catalog, ST_READ_BEGIN, failure);
	result = begin == NULL ? catalog->statement_error : catalog_run(catalog, begin, failure);
	if (result < 0)
		return result;
	catalog->in_snapshot = true;
	catalog->snapshot_has_cache = false;
	*ret_ours = true;
	return 0;
}

void catalog_snapshot_end(struct catalog *catalog, bool ours)
{
	STATEMENT *commit = NULL;

	if (!ours)
		return;
	catalog->in_snapshot = false;
	/* of reads only, nothing to lose; after some errors SQLite has ended it by itself */
	if (sqlite3_get_autocommit(catalog->db) == 0)
		commit = catalog_statement(catalog, ST_COMMIT, NULL);
	if (commit != NULL)
		(void)sqlite3_step(commit);
}

int catalog_data_version(struct catalog *catalog, int64_t *ret_version, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_DATA_VERSION, failure);
	int result = query == NULL ? catalog->statement_error : catalog_step(catalog, query, failure);

	if (result < 0)
		return result;
	*ret_version = sqlite3_column_int64(query, 0);
	return 0;
}

int catalog_size(struct catalog *catalog, uint64_t *ret_bytes, struct failure *failure)
{
	AUTO_FREE char *wal = NULL;
	struct stat status;
	uint64_t bytes;

	if (asprintf(&wal, "%s-wal", catalog->path) < 0)
		return fail_errno(failure, -ENOMEM, "catalog");
	if (stat(catalog->path, &status) < 0)
		return fail_errno(failure, -errno, "catalog %s", catalog->path);
	bytes = (uint64_t)status.st_size;
	if (stat(wal, &status) == 0)
		bytes += (uint64_t)status.st_size;
	*ret_bytes = bytes;
	return 0;
}
