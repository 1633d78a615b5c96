/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the catalog was measured against: a row for each chunk of a disk, one for each chunk of the store, one for each
 * former state.
 *
 *     bench_rows FOLDER GIB
 *
 * The same simulated disk as bench_catalog makes, the same settings of SQLite, the same measures, and none of the
 * catalog's code.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <sqlite3.h>

enum { CHUNK_BYTES = 65536, COMMIT_CHUNKS = 4096, FINGERPRINT_BYTES = 16, PAGE_CHUNKS = 256, CHECKPOINT_PAGES = 4096 };

struct bench {
	sqlite3 *db;
	sqlite3_stmt *put_map, *get_map, *get_range, *put_past, *put_chunk, *put_digest;
	uint64_t chunks, next_chunk, random;
	uint64_t wal_pages, last_pages;
};

static double now(void)
{
	struct timespec at;

	(void)clock_gettime(CLOCK_MONOTONIC, &at);
	return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static double cpu_now(void)
{
	struct timespec at;

	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
	return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void must(struct bench *bench, bool is_done)
{
	if (is_done)
		return;
	(void)fprintf(stderr, "bench_rows: %s\n", sqlite3_errmsg(bench->db));
	exit(1);
}

static void execute(struct bench *bench, const char *sql)
{
	must(bench, sqlite3_exec(bench->db, sql, NULL, NULL, NULL) == SQLITE_OK);
}

static uint64_t next_random(struct bench *bench)
{
	bench->random ^= bench->random << 13;
	bench->random ^= bench->random >> 7;
	bench->random ^= bench->random << 17;
	return bench->random * 0x2545f4914f6cdd1du;
}

static int note_wal_pages(void *opaque, sqlite3 *db, const char *name, int pages)
{
	struct bench *bench = opaque;

	(void)db;
	(void)name;
	bench->wal_pages += (uint64_t)pages > bench->last_pages ? (uint64_t)pages - bench->last_pages : (uint64_t)pages;
	bench->last_pages = (uint64_t)pages;
	return SQLITE_OK;
}

static sqlite3_stmt *prepare(struct bench *bench, const char *sql)
{
	sqlite3_stmt *statement = NULL;

	must(bench, sqlite3_prepare_v2(bench->db, sql, -1, &statement, NULL) == SQLITE_OK);
	return statement;
}

static void open_database(struct bench *bench, const char *folder)
{
	char path[4096];

	(void)snprintf(path, sizeof(path), "%s/rows.db", folder);
	must(bench, sqlite3_open(path, &bench->db) == SQLITE_OK);
	execute(bench,
		"PRAGMA page_size=4096; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
		"PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-8192;"
		"CREATE TABLE map(key INTEGER PRIMARY KEY, chunk INTEGER, since INTEGER, fingerprint BLOB);"
		"CREATE TABLE past(at INTEGER, until INTEGER, chunk INTEGER, since INTEGER,"
		" PRIMARY KEY(at, until)) WITHOUT ROWID; CREATE INDEX past_until ON past(until, at);"
		"CREATE TABLE chunk(id INTEGER PRIMARY KEY, segment INTEGER, off_bytes INTEGER, stored_bytes INTEGER,"
		" refs INTEGER, tag INTEGER);"
		"CREATE TABLE digest(tag INTEGER, chunk INTEGER, PRIMARY KEY(tag, chunk)) WITHOUT ROWID;");
	(void)sqlite3_wal_hook(bench->db, note_wal_pages, bench);
	bench->put_map = prepare(bench, "INSERT OR REPLACE INTO map VALUES(?1,?2,?3,?4)");
	bench->get_map = prepare(bench, "SELECT chunk,since FROM map WHERE key=?1");
	bench->get_range =
		prepare(bench, "SELECT chunk,since,fingerprint FROM map WHERE key>=?1 AND key<?2 ORDER BY key");
	bench->put_past = prepare(bench, "INSERT INTO past VALUES(?1,?2,?3,?4)");
	bench->put_chunk = prepare(bench, "INSERT INTO chunk VALUES(?1,?2,?3,?4,1,?5)");
	bench->put_digest = prepare(bench, "INSERT INTO digest VALUES(?1,?2)");
}

static void run(struct bench *bench, sqlite3_stmt *statement, int count, const int64_t *values)
{
	for (int i = 0; i < count; i++)
		(void)sqlite3_bind_int64(statement, i + 1, values[i]);
	must(bench, sqlite3_step(statement) == SQLITE_DONE);
	(void)sqlite3_reset(statement);
}

/* The former state goes to `past` when there is one. */
static void change(struct bench *bench, uint64_t at, int64_t generation)
{
	int64_t id = (int64_t)bench->next_chunk++, tag = (int64_t)(next_random(bench) >> 16);
	uint64_t fingerprint[2] = {next_random(bench), next_random(bench)};

	if (generation > 1) {
		(void)sqlite3_bind_int64(bench->get_map, 1, (int64_t)at);
		must(bench, sqlite3_step(bench->get_map) == SQLITE_ROW);
		run(bench, bench->put_past, 4,
		    (int64_t[]){(int64_t)at, generation, sqlite3_column_int64(bench->get_map, 0),
				sqlite3_column_int64(bench->get_map, 1)});
		(void)sqlite3_reset(bench->get_map);
	}
	run(bench, bench->put_chunk, 5,
	    (int64_t[]){id, id / 2000 + 1, id % 2000 * 32768, 20480 + (int64_t)(next_random(bench) % 25600), tag});
	run(bench, bench->put_digest, 2, (int64_t[]){tag, id});
	(void)sqlite3_bind_blob(bench->put_map, 4, fingerprint, FINGERPRINT_BYTES, SQLITE_STATIC);
	run(bench, bench->put_map, 3, (int64_t[]){(int64_t)at, id, generation});
}

static void commit_changes(struct bench *bench, uint64_t first, uint64_t step, uint64_t count, int64_t generation)
{
	execute(bench, "BEGIN IMMEDIATE");
	for (uint64_t i = 0; i < count; i++)
		change(bench, first + i * step, generation);
	execute(bench, "COMMIT");
	if (bench->last_pages >= CHECKPOINT_PAGES)
		(void)sqlite3_wal_checkpoint_v2(bench->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
}

static void change_all(struct bench *bench, uint64_t step, int64_t generation)
{
	uint64_t changes = bench->chunks / step;

	for (uint64_t done = 0; done < changes; done += COMMIT_CHUNKS)
		commit_changes(bench, done * step, step,
			       changes - done < COMMIT_CHUNKS ? changes - done : COMMIT_CHUNKS, generation);
}

static int64_t value(struct bench *bench, const char *sql)
{
	sqlite3_stmt *query = prepare(bench, sql);
	int64_t result;

	must(bench, sqlite3_step(query) == SQLITE_ROW);
	result = sqlite3_column_int64(query, 0);
	(void)sqlite3_finalize(query);
	return result;
}

static uint64_t database_bytes(struct bench *bench)
{
	(void)sqlite3_wal_checkpoint_v2(bench->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
	bench->last_pages = 0;
	return (uint64_t)value(bench, "PRAGMA page_count") * 4096;
}

static uint64_t read_range(struct bench *bench, uint64_t first, uint64_t end)
{
	uint64_t rows = 0;

	(void)sqlite3_bind_int64(bench->get_range, 1, (int64_t)first);
	(void)sqlite3_bind_int64(bench->get_range, 2, (int64_t)end);
	while (sqlite3_step(bench->get_range) == SQLITE_ROW)
		rows += sqlite3_column_int64(bench->get_range, 0) > 0 &&
			sqlite3_column_blob(bench->get_range, 2) != NULL;
	(void)sqlite3_reset(bench->get_range);
	return rows;
}

static void read_and_walk(struct bench *bench)
{
	enum { TIMES = 200 };
	double started = now(), cpu_started = cpu_now();
	uint64_t rows = 0;

	for (int i = 0; i < TIMES; i++) {
		uint64_t first = next_random(bench) % (bench->chunks / PAGE_CHUNKS) * PAGE_CHUNKS;

		rows += read_range(bench, first, first + PAGE_CHUNKS);
	}
	(void)printf("read_live_us %.0f\nread_live_cpu_us %.0f\n", (now() - started) / TIMES * 1e6,
		     (cpu_now() - cpu_started) / TIMES * 1e6);
	must(bench, rows == TIMES * PAGE_CHUNKS);
	started = now();
	cpu_started = cpu_now();
	rows = read_range(bench, 0, bench->chunks);
	(void)printf("walk_live_seconds %.2f\nwalk_live_cpu_ns_per_chunk %.0f\n", now() - started,
		     (cpu_now() - cpu_started) * 1e9 / (double)rows);
}

static void measure(struct bench *bench)
{
	double started = now(), cpu_started = cpu_now();
	uint64_t bytes, changes = bench->chunks / 50;

	change_all(bench, 1, 1);
	(void)printf("fill_seconds %.1f\nfill_cpu_us_per_chunk %.2f\n", now() - started,
		     (cpu_now() - cpu_started) * 1e6 / (double)bench->chunks);
	bytes = database_bytes(bench);
	(void)printf("catalog_mib %.1f\nbytes_per_chunk %.1f\npercent_of_data %.4f\n", (double)bytes / 1048576,
		     (double)bytes / (double)bench->chunks,
		     (double)bytes * 100 / ((double)bench->chunks * CHUNK_BYTES));
	read_and_walk(bench);
	bench->wal_pages = 0;
	started = now();
	cpu_started = cpu_now();
	change_all(bench, 50, 2);
	(void)printf("round_of_2_percent_seconds %.2f\nround_of_2_percent_cpu_us_per_change %.1f\n", now() - started,
		     (cpu_now() - cpu_started) * 1e6 / (double)changes);
	(void)printf("round_of_2_percent_log_bytes_per_change %.0f\n",
		     (double)bench->wal_pages * 4096 / (double)changes);
	(void)printf("round_of_2_percent_growth_bytes_per_change %.1f\n",
		     ((double)database_bytes(bench) - (double)bytes) / (double)changes);
}

int main(int argument_count, char **arguments)
{
	struct bench bench = {.random = 88172645463325252u, .next_chunk = 1};

	if (argument_count != 3 || (mkdir(arguments[1], 0700) < 0 && errno != EEXIST)) {
		(void)fprintf(stderr, "usage: bench_rows FOLDER GIB\n");
		return 2;
	}
	bench.chunks = strtoull(arguments[2], NULL, 10) * ((1024 * 1024 * 1024) / CHUNK_BYTES);
	if (bench.chunks == 0)
		return 2;
	open_database(&bench, arguments[1]);
	(void)printf("chunks %" PRIu64 "\n", bench.chunks);
	measure(&bench);
	sqlite3_stmt *const statements[] = {bench.put_map,  bench.get_map,   bench.get_range,
					    bench.put_past, bench.put_chunk, bench.put_digest};
	for (size_t i = 0; i < sizeof(statements) / sizeof(statements[0]); i++)
		(void)sqlite3_finalize(statements[i]);
	(void)sqlite3_close(bench.db);
	return 0;
}
