/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the machine could do at best with a disk's content: the measure for rounds and exports (docs/benchmarks.md).
 *
 *     bench_limits store|compare|read|export SOURCE SIZE <RANGES
 *
 * RANGES: lines "OFFSET LENGTH", in bytes, multiples of 64 KiB: what of SOURCE is in use. SIZE: that of the whole disk.
 *
 *   store    SHA-256 and zstd's level 1 of each chunk, in memory: reading isn't counted
 *   compare  reading SOURCE, and the fingerprint of each chunk
 *   read     reading SOURCE alone
 *   export   decompressing each chunk, with its checksum, and writing it to standard output, and zeros for what is not
 * in use: reading and compressing isn't counted
 *
 * The functions are wherry's own; what is left out is all that makes a program of them: order, catalog, files, syncs.
 * The content goes through in rounds of 64 MiB, so that memory is bounded. In each round the threads first prepare what
 * is not counted, meet, and then share the units of 1 MiB among them while the clock runs. Last on standard error, as
 * JSON: the bytes, seconds that the clock ran, CPU seconds of the process meanwhile.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/failure.h"
#include "store/hash.h"
#include "store/record.h"

enum {
	CHUNK_BYTES = 65536,
	UNIT_BYTES = 1 << 20,
	UNIT_CHUNKS = UNIT_BYTES / CHUNK_BYTES,
	ROUND_UNITS = 64,
	ROUND_CHUNKS = ROUND_UNITS * UNIT_CHUNKS,
	STORED_MOST_BYTES = CHUNK_BYTES + 4096, /* what zstd may need for a chunk that doesn't shrink */
	THREADS_MOST = 64,
};

enum operation { STORE, COMPARE, READ, EXPORT };

struct bench {
	enum operation operation;
	int fd;
	uint64_t *chunks; /* offsets of those in use */
	size_t chunk_count;
	size_t first, last; /* of this round: chunks[first .. last-1] */
	uint8_t *plain, *stored;
	struct record_header headers[ROUND_CHUNKS];
	atomic_size_t next_unit;
	pthread_barrier_t meet;
	pthread_mutex_t output;
	double seconds, cpu_seconds;
};

struct worker {
	struct bench *bench;
	bool is_first;
	struct hasher *hasher;
	struct codec *codec;
	uint8_t *stored;
	uint8_t *plain;
	pthread_t thread;
};

static double clock_of(clockid_t clock)
{
	struct timespec at;

	(void)clock_gettime(clock, &at);
	return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static _Noreturn void stop(const char *what, const char *why)
{
	(void)fprintf(stderr, "bench_limits: %s: %s\n", what, why);
	exit(1);
}

static void must(int result, const struct failure *failure)
{
	if (result < 0)
		stop("failed", failure->message);
}

static void write_all(const uint8_t *bytes, size_t len_bytes)
{
	while (len_bytes > 0) {
		ssize_t written = write(STDOUT_FILENO, bytes, len_bytes);

		if (written < 0)
			stop("standard output", strerror(errno));
		bytes += written;
		len_bytes -= (size_t)written;
	}
}

/* Chunks that lie next to each other in the source are read in one go, as any good reader does. */
static void read_chunks(const struct bench *bench, size_t first, size_t last)
{
	while (first < last) {
		size_t next = first + 1;
		uint8_t *to = bench->plain + (first - bench->first) * CHUNK_BYTES;

		while (next < last && bench->chunks[next] == bench->chunks[next - 1] + CHUNK_BYTES)
			next++;
		if (pread(bench->fd, to, (next - first) * CHUNK_BYTES, (off_t)bench->chunks[first]) !=
		    (ssize_t)((next - first) * CHUNK_BYTES))
			stop("source", "can't be read");
		first = next;
	}
}

/* What is not counted. */
static void prepare_unit(struct worker *worker, size_t first, size_t last)
{
	struct bench *bench = worker->bench;
	struct failure failure = {0};

	if (bench->operation == STORE || bench->operation == EXPORT)
		read_chunks(bench, first, last);
	for (size_t i = first; bench->operation == EXPORT && i < last; i++) {
		size_t slot = i - bench->first;

		must(codec_encode(worker->codec, CODEC_LEVEL_DEFAULT, bench->plain + slot * CHUNK_BYTES, CHUNK_BYTES,
				  worker->stored, &bench->headers[slot], &failure),
		     &failure);
		if (bench->headers[slot].stored_bytes > STORED_MOST_BYTES)
			stop("chunk", "compressed to more than it may");
		memcpy(bench->stored + slot * STORED_MOST_BYTES, worker->stored, bench->headers[slot].stored_bytes);
	}
}

/* What is. */
static void work_on_unit(struct worker *worker, size_t first, size_t last)
{
	static const uint8_t key[FINGERPRINT_KEY_BYTES] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
	struct bench *bench = worker->bench;
	struct failure failure = {0};
	struct record_header header;
	uint8_t name[DIGEST_BYTES];

	if (bench->operation == COMPARE || bench->operation == READ)
		read_chunks(bench, first, last);
	for (size_t i = first; i < last; i++) {
		size_t slot = i - bench->first;
		const uint8_t *plain = bench->plain + slot * CHUNK_BYTES;

		if (bench->operation == COMPARE && !bytes_are_zero(plain, CHUNK_BYTES))
			must(hasher_fingerprint(worker->hasher, key, plain, CHUNK_BYTES, name, &failure), &failure);
		if (bench->operation == STORE && !bytes_are_zero(plain, CHUNK_BYTES)) {
			must(hasher_digest(worker->hasher, plain, CHUNK_BYTES, name, &failure), &failure);
			must(codec_encode(worker->codec, CODEC_LEVEL_DEFAULT, plain, CHUNK_BYTES, worker->stored,
					  &header, &failure),
			     &failure);
		}
		if (bench->operation == EXPORT)
			must(codec_decode(worker->codec, &bench->headers[slot],
					  bench->stored + slot * STORED_MOST_BYTES,
					  worker->plain + (i - first) * CHUNK_BYTES, &failure),
			     &failure);
	}
	if (bench->operation == EXPORT) {
		(void)pthread_mutex_lock(&bench->output);
		write_all(worker->plain, (last - first) * CHUNK_BYTES);
		(void)pthread_mutex_unlock(&bench->output);
	}
}

static void share_units(struct worker *worker, void (*work)(struct worker *worker, size_t first, size_t last))
{
	struct bench *bench = worker->bench;

	for (;;) {
		size_t first = bench->first + atomic_fetch_add(&bench->next_unit, 1) * UNIT_CHUNKS;

		if (first >= bench->last)
			break;
		work(worker, first, first + UNIT_CHUNKS < bench->last ? first + UNIT_CHUNKS : bench->last);
	}
}

/* All wait for each other; one of them does what is between two phases, while the others wait once more. */
static void start_phase(struct worker *worker, size_t first, double sign)
{
	struct bench *bench = worker->bench;

	(void)pthread_barrier_wait(&bench->meet);
	if (worker->is_first) {
		bench->first = first;
		bench->last = first + ROUND_CHUNKS < bench->chunk_count ? first + ROUND_CHUNKS : bench->chunk_count;
		atomic_store(&bench->next_unit, 0);
		bench->seconds += sign * clock_of(CLOCK_MONOTONIC);
		bench->cpu_seconds += sign * clock_of(CLOCK_PROCESS_CPUTIME_ID);
	}
	(void)pthread_barrier_wait(&bench->meet);
}

static void *run_worker(void *opaque)
{
	struct worker *worker = opaque;
	size_t count = worker->bench->chunk_count;

	for (size_t first = 0; first < count; first += ROUND_CHUNKS) {
		start_phase(worker, first, 0);
		share_units(worker, prepare_unit);
		start_phase(worker, first, -1);
		share_units(worker, work_on_unit);
		start_phase(worker, first, 1);
	}
	return NULL;
}

static void run_workers(struct bench *bench, unsigned count)
{
	static struct worker workers[THREADS_MOST];
	struct failure failure = {0};

	(void)pthread_barrier_init(&bench->meet, NULL, count);
	(void)pthread_mutex_init(&bench->output, NULL);
	for (unsigned i = 0; i < count; i++) {
		struct worker *worker = &workers[i];

		worker->bench = bench;
		worker->is_first = i == 0;
		worker->stored = malloc(RECORD_STORED_MOST_BYTES);
		worker->plain = malloc(UNIT_BYTES);
		if (worker->stored == NULL || worker->plain == NULL)
			stop("memory", strerror(ENOMEM));
		must(hasher_new(&worker->hasher, &failure), &failure);
		must(codec_new(&worker->codec, &failure), &failure);
		if (i > 0 && pthread_create(&worker->thread, NULL, run_worker, worker) != 0)
			stop("thread", "can't be started");
	}
	(void)run_worker(&workers[0]);
	for (unsigned i = 0; i < count; i++) {
		if (i > 0)
			(void)pthread_join(workers[i].thread, NULL);
		codec_free(workers[i].codec);
		hasher_free(workers[i].hasher);
		free(workers[i].plain);
		free(workers[i].stored);
	}
	(void)pthread_mutex_destroy(&bench->output);
	(void)pthread_barrier_destroy(&bench->meet);
}

static void write_zeros(struct bench *bench, uint64_t len_bytes)
{
	memset(bench->plain, 0, UNIT_BYTES);
	bench->seconds -= clock_of(CLOCK_MONOTONIC);
	bench->cpu_seconds -= clock_of(CLOCK_PROCESS_CPUTIME_ID);
	while (len_bytes > 0) {
		size_t piece = len_bytes < UNIT_BYTES ? (size_t)len_bytes : UNIT_BYTES;

		write_all(bench->plain, piece);
		len_bytes -= piece;
	}
	bench->seconds += clock_of(CLOCK_MONOTONIC);
	bench->cpu_seconds += clock_of(CLOCK_PROCESS_CPUTIME_ID);
}

static void read_ranges(struct bench *bench, uint64_t size_bytes)
{
	uint64_t off_bytes, len_bytes;

	bench->chunks = calloc(size_bytes / CHUNK_BYTES + 1, sizeof(*bench->chunks));
	if (bench->chunks == NULL)
		stop("memory", strerror(ENOMEM));
	while (scanf("%" SCNu64 " %" SCNu64, &off_bytes, &len_bytes) == 2)
		for (; len_bytes >= CHUNK_BYTES; len_bytes -= CHUNK_BYTES, off_bytes += CHUNK_BYTES) {
			if (bench->chunk_count >= size_bytes / CHUNK_BYTES || off_bytes > size_bytes - CHUNK_BYTES)
				stop("ranges", "more than the disk has");
			bench->chunks[bench->chunk_count++] = off_bytes;
		}
}

static enum operation operation_of(const char *name)
{
	static const char *const names[] = {
		[STORE] = "store", [COMPARE] = "compare", [READ] = "read", [EXPORT] = "export"};

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(name, names[i]) == 0)
			return (enum operation)i;
	stop(name, "no such operation");
}

int main(int argc, char **argv)
{
	static struct bench bench;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint64_t size_bytes;

	if (argc != 4)
		stop("usage", "bench_limits store|compare|read|export SOURCE SIZE <RANGES");
	bench.operation = operation_of(argv[1]);
	bench.fd = open(argv[2], O_RDONLY | O_CLOEXEC);
	if (bench.fd < 0)
		stop(argv[2], strerror(errno));
	size_bytes = strtoull(argv[3], NULL, 10);
	read_ranges(&bench, size_bytes);
	bench.plain = malloc((size_t)ROUND_UNITS * UNIT_BYTES);
	bench.stored = bench.operation == EXPORT ? malloc((size_t)ROUND_CHUNKS * STORED_MOST_BYTES) : NULL;
	if (bench.plain == NULL || (bench.stored == NULL && bench.operation == EXPORT))
		stop("memory", strerror(ENOMEM));
	memset(bench.plain, 1, (size_t)ROUND_UNITS * UNIT_BYTES); /* fresh memory is not what is measured */
	run_workers(&bench, cpus < 1 ? 1 : cpus > THREADS_MOST ? THREADS_MOST : (unsigned)cpus);
	if (bench.operation == EXPORT)
		write_zeros(&bench, size_bytes - (uint64_t)bench.chunk_count * CHUNK_BYTES);
	(void)fprintf(stderr, "{\"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"cpu_seconds\": %.6f}\n",
		      (uint64_t)bench.chunk_count * CHUNK_BYTES, bench.seconds, bench.cpu_seconds);
	free(bench.stored);
	free(bench.plain);
	free(bench.chunks);
	(void)close(bench.fd);
	return 0;
}
