/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a catalog costs: a simulated disk, all of it mapped, through the code that real disks go through.
 *
 *     bench_catalog FOLDER GIB [images=N] [ascending] [page=BYTES]
 *
 * Makes FOLDER/catalog.db with one disk of so many GiB at 64 KiB a chunk: chunks with random tags, stored lengths as
 * compressed files have them, random fingerprints, in commits of 4,096 as a round makes them, a log entry each. Then
 * images, each after a thousandth of the disk has changed, half of it in the same scattered places every time; then a
 * round that changes every fiftieth chunk; opening and one random place, live and in an old image; walks over all of
 * it; the deletion of an image in the middle.
 *
 * "ascending": tags that ascend instead of random ones. Then the index by digest is filled from one end, which takes a
 * tenth of the time and, at ten TiB, makes the difference between minutes and hours. Its pages are full then, while
 * random ones are filled to two thirds: its size is to be taken from a smaller run with random tags. Everything else is
 * the same.
 *
 * "page": the page size of the database, 4096 in real catalogs.
 *
 * The commits are not durable here (synchronous is off): what is measured is work and size, not the disk. What is
 * measured after the rounds runs in processes of its own, so that each has its own peak of memory. Prints a line for
 * each measure.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "catalog/internal.h"

enum { CHUNK_BYTES = 65536, COMMIT_CHUNKS = 4096, SEGMENT_BYTES = 64 << 20, IMAGES_AT_ONCE = 21 };

struct bench {
	struct catalog *catalog;
	struct catalog_disk disk;
	int locks_fd;
	const char *folder;
	uint64_t chunks;
	uint32_t segment;
	uint32_t segment_at;
	uint64_t random;
	uint64_t ascending_tag; /* 0: random ones */
	uint64_t wal_pages;	/* written to the write-ahead log */
	unsigned page_bytes;
	unsigned images;
};

static double now(void)
{
	struct timespec at;

	(void)clock_gettime(CLOCK_MONOTONIC, &at);
	return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

/* Of work: on a machine that others use as well, their share isn't in it. */
static double cpu_now(void)
{
	struct timespec at;

	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
	return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void must(int result, const struct failure *failure)
{
	if (result < 0) {
		(void)fprintf(stderr, "bench_catalog: %s\n", failure->message);
		exit(1);
	}
}

static uint64_t next_random(struct bench *bench)
{
	bench->random ^= bench->random << 13;
	bench->random ^= bench->random >> 7;
	bench->random ^= bench->random << 17;
	return bench->random * 0x2545f4914f6cdd1du;
}

static double peak_mib(void)
{
	struct rusage usage;

	(void)getrusage(RUSAGE_SELF, &usage);
	return (double)usage.ru_maxrss / 1024;
}

static void open_catalog(struct bench *bench)
{
	struct failure failure = {.code = 0};

	must(catalog_open(bench->folder, bench->locks_fd, false, &bench->catalog, &failure), &failure);
	if (sqlite3_exec(bench->catalog->db, "PRAGMA synchronous=OFF", NULL, NULL, NULL) != SQLITE_OK)
		exit(1);
}

static void make_disk(struct bench *bench)
{
	struct failure failure = {.code = 0};

	must(catalog_begin(bench->catalog, &failure), &failure);
	bench->disk = (struct catalog_disk){.name = "big",
					    .size_bytes = bench->chunks * CHUNK_BYTES,
					    .sector_bytes = 512,
					    .generation = 1,
					    .level = -1,
					    .next_image = 1,
					    .next_round = 1};
	must(catalog_disk_insert(bench->catalog, &bench->disk, &failure), &failure);
	must(catalog_segment_insert(bench->catalog, &bench->segment, &failure), &failure);
	must(catalog_commit(bench->catalog, &failure), &failure);
}

/* A chunk that is new, where the segment ends. */
static uint64_t add_chunk(struct bench *bench)
{
	struct failure failure = {.code = 0};
	struct catalog_location location = {.tag = next_random(bench) >> 16,
					    .stored_bytes = 20480 + (uint32_t)(next_random(bench) % 25600)};
	uint64_t chunk;

	if (bench->ascending_tag != 0)
		location.tag = bench->ascending_tag++;
	if (bench->segment_at > SEGMENT_BYTES) {
		must(catalog_segment_update(bench->catalog, bench->segment, bench->segment_at, true, &failure),
		     &failure);
		must(catalog_segment_insert(bench->catalog, &bench->segment, &failure), &failure);
		bench->segment_at = 0;
	}
	location.segment = bench->segment;
	location.off_bytes = 4096 + bench->segment_at;
	bench->segment_at += (uint32_t)catalog_record_bytes(location.stored_bytes);
	must(catalog_chunk_add(bench->catalog, &location, &chunk, &failure), &failure);
	return chunk;
}

/* One commit: count chunks, `step` apart, become new ones. */
static void commit_changes(struct bench *bench, uint64_t first, uint64_t step, size_t count)
{
	static struct catalog_change changes[COMMIT_CHUNKS];
	struct catalog_log_entry entry = {.disk = bench->disk.id, .stored_bytes = (uint32_t)(count * 33)};
	struct failure failure = {.code = 0};
	uint64_t changed = 0;
	uint64_t newly_changed = 0;

	must(catalog_begin(bench->catalog, &failure), &failure);
	for (size_t i = 0; i < count; i++) {
		changes[i] = (struct catalog_change){.first = first + i * step,
						     .count = 1,
						     .kind = CATALOG_CHUNK,
						     .has_fingerprint = true,
						     .chunk = add_chunk(bench)};
		for (size_t n = 0; n < CATALOG_FINGERPRINT_BYTES; n += 8)
			bytes_put_le64(changes[i].fingerprint + n, next_random(bench));
	}
	must(catalog_map_update(bench->catalog, &bench->disk, changes, count, &changed, &newly_changed, &failure),
	     &failure);
	entry.sequence = ++bench->disk.log_sequence;
	entry.segment = bench->segment;
	must(catalog_log_insert(bench->catalog, &entry, &failure), &failure);
	must(catalog_disk_update(bench->catalog, &bench->disk, &failure), &failure);
	int before = bench->catalog->wal_pages;
	must(catalog_commit(bench->catalog, &failure), &failure);
	int after = bench->catalog->wal_pages; /* it starts over when all of it was moved into the database */
	bench->wal_pages += (uint64_t)(after > before ? after - before : after);
}

static uint64_t database_bytes(struct bench *bench)
{
	struct failure failure = {.code = 0};
	uint64_t bytes = 0;

	if (sqlite3_wal_checkpoint_v2(bench->catalog->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) != SQLITE_OK)
		exit(1);
	bench->catalog->wal_pages = 0;
	must(catalog_size(bench->catalog, &bytes, &failure), &failure);
	return bytes;
}

static double make_image(struct bench *bench)
{
	struct catalog_image image = {.disk = bench->disk.id,
				      .number = bench->disk.next_image,
				      .generation = bench->disk.generation,
				      .size_bytes = bench->disk.size_bytes};
	struct failure failure = {.code = 0};
	double started = now();

	must(catalog_begin(bench->catalog, &failure), &failure);
	must(catalog_image_insert(bench->catalog, &image, &failure), &failure);
	bench->disk.next_image++;
	bench->disk.generation++;
	must(catalog_disk_update(bench->catalog, &bench->disk, &failure), &failure);
	must(catalog_commit(bench->catalog, &failure), &failure);
	return now() - started;
}

static void fill(struct bench *bench)
{
	double started = now(), cpu_started = cpu_now();

	for (uint64_t at = 0; at < bench->chunks; at += COMMIT_CHUNKS) {
		uint64_t left = bench->chunks - at;

		commit_changes(bench, at, 1, left < COMMIT_CHUNKS ? left : COMMIT_CHUNKS);
	}
	(void)printf("fill_seconds %.1f\nfill_cpu_us_per_chunk %.2f\n", now() - started,
		     (cpu_now() - cpu_started) * 1e6 / (double)bench->chunks);
	(void)fflush(stdout);
}

/* A thousandth of the disk, in ascending order, spread over all of it; every other place is the same in every round. */
static void change_a_thousandth(struct bench *bench, unsigned round)
{
	uint64_t changes = bench->chunks / 1000;

	for (uint64_t done = 0; done < changes; done += COMMIT_CHUNKS) {
		uint64_t count = changes - done < COMMIT_CHUNKS ? changes - done : COMMIT_CHUNKS;
		bool is_hot = done / COMMIT_CHUNKS % 2 == 0;

		commit_changes(bench, (done * 1000 + (is_hot ? 0 : round * 7)) % (bench->chunks - count * 999), 997,
			       count);
	}
}

static void make_images(struct bench *bench)
{
	double change_seconds = 0;

	for (unsigned i = 0; i < bench->images; i++) {
		(void)make_image(bench);
		double started = now();
		change_a_thousandth(bench, i);
		change_seconds += now() - started;
	}
	(void)printf("round_of_0.1_percent_seconds %.2f\n", change_seconds / bench->images);
}

static int compare_doubles(const void *a, const void *b)
{
	double difference = *(const double *)a - *(const double *)b;

	return difference < 0 ? -1 : difference > 0;
}

static void time_images(struct bench *bench)
{
	double seconds[IMAGES_AT_ONCE];

	for (unsigned i = 0; i < IMAGES_AT_ONCE; i++)
		seconds[i] = make_image(bench);
	qsort(seconds, IMAGES_AT_ONCE, sizeof(seconds[0]), compare_doubles);
	(void)printf("image_median_ms %.2f\nimage_most_ms %.2f\n", seconds[IMAGES_AT_ONCE / 2] * 1e3,
		     seconds[IMAGES_AT_ONCE - 1] * 1e3);
}

static void change_every_fiftieth(struct bench *bench)
{
	uint64_t bytes = database_bytes(bench), changes = bench->chunks / 50;
	double started = now(), cpu_started = cpu_now();

	bench->wal_pages = 0;
	for (uint64_t done = 0; done < changes; done += COMMIT_CHUNKS)
		commit_changes(bench, done * 50, 50, changes - done < COMMIT_CHUNKS ? changes - done : COMMIT_CHUNKS);
	(void)printf("round_of_2_percent_seconds %.2f\nround_of_2_percent_cpu_us_per_change %.1f\n", now() - started,
		     (cpu_now() - cpu_started) * 1e6 / (double)changes);
	(void)printf("round_of_2_percent_log_bytes_per_change %.0f\n",
		     (double)bench->wal_pages * bench->page_bytes / (double)changes);
	(void)printf("round_of_2_percent_growth_bytes_per_change %.1f\n",
		     ((double)database_bytes(bench) - (double)bytes) / (double)changes);
}

static void delete_image(struct bench *bench, uint32_t number)
{
	struct catalog_position position = {.until = 0};
	struct catalog_image image;
	struct failure failure = {.code = 0};
	uint64_t unique = 0;
	uint64_t freed = 0;
	bool is_done = false;
	double started = now(), cpu_started;

	must(catalog_image_get(bench->catalog, bench->disk.id, number, &image, &failure), &failure);
	must(catalog_image_unique(bench->catalog, &image, &unique, &failure), &failure);
	(void)printf("unique_ms %.1f\n", (now() - started) * 1e3);
	started = now();
	cpu_started = cpu_now();
	must(catalog_begin(bench->catalog, &failure), &failure);
	image.state = CATALOG_GOING;
	must(catalog_image_update(bench->catalog, &image, &failure), &failure);
	must(catalog_commit(bench->catalog, &failure), &failure);
	(void)printf("delete_mark_ms %.2f\n", (now() - started) * 1e3);
	while (!is_done) {
		must(catalog_begin(bench->catalog, &failure), &failure);
		must(catalog_image_sweep(bench->catalog, &image, &position, 512, &freed, &is_done, &failure), &failure);
		must(catalog_commit(bench->catalog, &failure), &failure);
	}
	(void)printf("delete_ms %.1f\ndelete_cpu_ms %.1f\ndelete_freed_mib %.1f\n", (now() - started) * 1e3,
		     (cpu_now() - cpu_started) * 1e3, (double)freed / 1048576);
	if (freed != unique)
		(void)printf("delete_unique_mib_said %.1f\n", (double)unique / 1048576);
	catalog_image_release(&image);
}

static void read_random(struct bench *bench, uint32_t generation, const char *name)
{
	static struct catalog_page page;
	struct failure failure = {.code = 0};
	struct catalog_location location;
	enum { TIMES = 200 };
	double started = now(), cpu_started = cpu_now();

	for (int i = 0; i < TIMES; i++) {
		uint64_t number = next_random(bench) % (bench->chunks / CATALOG_PAGE_ENTRIES);

		if (generation == 0)
			must(catalog_map_read(bench->catalog, bench->disk.id, number, &page, &failure), &failure);
		else
			must(catalog_map_read_at(bench->catalog, bench->disk.id, generation, number, &page, &failure),
			     &failure);
		must(catalog_chunk_get(bench->catalog, page.entries[next_random(bench) % CATALOG_PAGE_ENTRIES].chunk,
				       &location, &failure),
		     &failure);
	}
	(void)printf("%s_us %.0f\n%s_cpu_us %.0f\n", name, (now() - started) / TIMES * 1e6, name,
		     (cpu_now() - cpu_started) / TIMES * 1e6);
}

static void read_live(struct bench *bench)
{
	read_random(bench, 0, "read_live");
}

static void read_oldest_image(struct bench *bench)
{
	read_random(bench, 1, "read_oldest_image");
}

static void read_one_place(struct bench *bench)
{
	static struct catalog_page page;
	struct failure failure = {.code = 0};

	must(catalog_map_read(bench->catalog, bench->disk.id,
			      next_random(bench) % (bench->chunks / CATALOG_PAGE_ENTRIES), &page, &failure),
	     &failure);
}

static void walk(struct bench *bench, uint32_t generation, const char *name)
{
	static struct catalog_page page;
	struct failure failure = {.code = 0};
	uint64_t mapped = 0;
	double started = now(), cpu_started = cpu_now();

	for (uint64_t at = 0;; at++) {
		must(catalog_map_next(bench->catalog, bench->disk.id, generation, at, &at, &failure), &failure);
		if (at == UINT64_MAX)
			break;
		must(generation == 0
			     ? catalog_map_read(bench->catalog, bench->disk.id, at, &page, &failure)
			     : catalog_map_read_at(bench->catalog, bench->disk.id, generation, at, &page, &failure),
		     &failure);
		for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
			mapped += page.entries[i].kind == CATALOG_CHUNK;
	}
	(void)printf("%s_seconds %.2f\n%s_cpu_ns_per_chunk %.0f\n", name, now() - started, name,
		     (cpu_now() - cpu_started) * 1e9 / (double)bench->chunks);
	if (mapped != bench->chunks)
		(void)printf("%s_chunks_MISSING %" PRIu64 "\n", name, bench->chunks - mapped);
}

static void walk_live(struct bench *bench)
{
	walk(bench, 0, "walk_live");
}

static void walk_oldest_image(struct bench *bench)
{
	walk(bench, 1, "walk_oldest_image");
}

static void delete_middle_image(struct bench *bench)
{
	delete_image(bench, bench->images / 2 + 1);
}

/* A database handle must not cross a fork: it is closed before. */
static void in_a_process(struct bench *bench, void (*run)(struct bench *), const char *name)
{
	int status = 0;
	pid_t pid;

	(void)fflush(stdout);
	pid = fork();
	if (pid == 0) {
		double started = now();

		open_catalog(bench);
		if (run == read_one_place) {
			run(bench);
			(void)printf("open_and_read_ms %.2f\n", (now() - started) * 1e3);
		} else {
			run(bench);
		}
		(void)printf("%s_peak_mib %.1f\n", name, peak_mib());
		catalog_close(bench->catalog);
		(void)fflush(stdout);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		exit(1);
}

static void sizes(struct bench *bench)
{
	uint64_t bytes = database_bytes(bench);
	sqlite3_stmt *query = NULL;

	(void)printf("catalog_mib %.1f\nbytes_per_chunk %.1f\npercent_of_data %.4f\n", (double)bytes / 1048576,
		     (double)bytes / (double)bench->chunks,
		     (double)bytes * 100 / ((double)bench->chunks * CHUNK_BYTES));
	if (sqlite3_prepare_v2(
		    bench->catalog->db,
		    "SELECT name, pageno * ?1, unused * 100.0 / (pageno * ?1) FROM dbstat WHERE aggregate = TRUE "
		    "ORDER BY 2 DESC LIMIT 6",
		    -1, &query, NULL) != SQLITE_OK)
		return;					       /* an SQLite without dbstat */
	(void)sqlite3_bind_int64(query, 1, bench->page_bytes); /* pgsize itself overflows from 2 GiB on */
	while (sqlite3_step(query) == SQLITE_ROW) {
		const char *name = (const char *)sqlite3_column_text(query, 0);

		(void)printf("table_%s_bytes_per_chunk %.1f\ntable_%s_unused_percent %.0f\n", name,
			     (double)sqlite3_column_int64(query, 1) / (double)bench->chunks, name,
			     sqlite3_column_double(query, 2));
	}
	(void)sqlite3_finalize(query);
}

/* Real catalogs have the page size that catalog_create() gives them. */
static void change_page_size(const char *folder, unsigned page_bytes)
{
	char path[4096], sql[200];
	sqlite3 *db = NULL;

	(void)snprintf(path, sizeof(path), "%s/catalog.db", folder);
	(void)snprintf(sql, sizeof(sql),
		       "PRAGMA journal_mode=DELETE; PRAGMA page_size=%u; VACUUM; PRAGMA journal_mode=WAL", page_bytes);
	if (sqlite3_open(path, &db) != SQLITE_OK || sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
		exit(1);
	(void)sqlite3_close(db);
}

static bool take_arguments(struct bench *bench, int count, char **arguments)
{
	if (count < 3)
		return false;
	bench->folder = arguments[1];
	bench->chunks = strtoull(arguments[2], NULL, 10) * ((1024 * 1024 * 1024) / CHUNK_BYTES);
	for (int i = 3; i < count; i++) {
		if (strncmp(arguments[i], "images=", 7) == 0)
			bench->images = (unsigned)strtoul(arguments[i] + 7, NULL, 10);
		else if (strncmp(arguments[i], "page=", 5) == 0)
			bench->page_bytes = (unsigned)strtoul(arguments[i] + 5, NULL, 10);
		else if (strcmp(arguments[i], "ascending") == 0)
			bench->ascending_tag = 1;
		else
			return false;
	}
	return bench->chunks != 0 && bench->images >= 2;
}

int main(int argument_count, char **arguments)
{
	struct bench bench = {.random = 88172645463325252u, .images = 4, .page_bytes = 4096};
	struct failure failure = {.code = 0};

	if (!take_arguments(&bench, argument_count, arguments)) {
		(void)fprintf(stderr, "usage: bench_catalog FOLDER GIB [images=N] [ascending] [page=BYTES]\n");
		return 2;
	}
	if (mkdir(bench.folder, 0700) < 0 && errno != EEXIST)
		return 2;
	bench.locks_fd = open(bench.folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	must(catalog_create(bench.folder, CHUNK_BYTES, &failure), &failure);
	if (bench.page_bytes != 4096)
		change_page_size(bench.folder, bench.page_bytes);
	open_catalog(&bench);
	make_disk(&bench);
	(void)printf("chunks %" PRIu64 "\nentries_per_page %d\npage_bytes %u\n", bench.chunks, CATALOG_PAGE_ENTRIES,
		     bench.page_bytes);
	fill(&bench);
	make_images(&bench);
	time_images(&bench);
	(void)printf("writer_peak_mib %.1f\n", peak_mib());
	catalog_close(bench.catalog);
	in_a_process(&bench, sizes, "sizes");
	in_a_process(&bench, read_one_place, "open_and_read");
	in_a_process(&bench, read_live, "read_live");
	in_a_process(&bench, read_oldest_image, "read_oldest_image");
	in_a_process(&bench, walk_live, "walk_live");
	in_a_process(&bench, walk_oldest_image, "walk_oldest_image");
	in_a_process(&bench, delete_middle_image, "delete");
	in_a_process(&bench, change_every_fiftieth, "round_of_2_percent");
	(void)close(bench.locks_fd);
	return 0;
}
