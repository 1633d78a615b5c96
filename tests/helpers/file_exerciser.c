/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file_exerciser FILE SEED SECONDS [OPERATIONS]: does at random what programs do with a file of a fixed size, as long
 * as there is time (or so many operations), and compares it with a copy in memory: reads and writes of all sizes and at
 * all places, with and without O_DIRECT, through mapped memory, up to the end and beyond; holes that are punched,
 * zeros, searches for data; syncs; caches that are dropped; opening it anew; truncating it, which must be refused. The
 * file may hold anything at first.
 *
 * What went wrong is said with the number of the operation, and the operations before it; status 1. With
 * EXERCISER_FORGETS in the environment it forgets a write now and then: the control, which must fail.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MOST_BYTES = 1 << 20, HISTORY = 40, LINE_BYTES = 128 };

static const char *path;
static int fd = -1, direct_fd = -1;
static uint8_t *model, *buffer;
static uint64_t size_bytes;
static uint64_t random_state;
static uint64_t operation;
static bool forgets;
static char history[HISTORY][LINE_BYTES];

static uint64_t random_below(uint64_t below)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return below == 0 ? 0 : (random_state >> 20) % below;
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	(void)vsnprintf(history[operation % HISTORY], LINE_BYTES, format, values);
	va_end(values);
}

__attribute__((format(printf, 1, 2), noreturn)) static void complain(const char *format, ...)
{
	int code = errno;
	va_list values;

	for (uint64_t i = operation < HISTORY ? 0 : operation - HISTORY + 1; i <= operation; i++)
		(void)fprintf(stderr, "%8" PRIu64 "  %s\n", i, history[i % HISTORY]);
	(void)fprintf(stderr, "file_exerciser: operation %" PRIu64 ": ", operation);
	va_start(values, format);
	(void)vfprintf(stderr, format, values);
	va_end(values);
	(void)fprintf(stderr, " (%s)\n", strerror(code));
	exit(1);
}

static void compare(const char *what, const uint8_t *found, uint64_t off, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (found[i] != model[off + i])
			complain("%s: byte %" PRIu64 " is 0x%02x, not 0x%02x", what, off + i, found[i], model[off + i]);
}

/* A range, mostly small, sometimes large, sometimes of whole pages or chunks, sometimes up to the end. */
static void choose_range(bool is_aligned, uint64_t *ret_off, size_t *ret_len)
{
	uint64_t most = random_below(8) == 0 ? MOST_BYTES : random_below(3) == 0 ? 70000 : 5000;
	uint64_t len = 1 + random_below(most), off = random_below(size_bytes);

	if (is_aligned || random_below(5) == 0) {
		uint64_t unit = random_below(4) == 0 && size_bytes > 65536 ? 65536 : PAGE;

		off = off / unit * unit;
		len = (len + unit - 1) / unit * unit;
	}
	if (random_below(20) == 0)
		off = len < size_bytes ? size_bytes - len : 0;
	if (len > size_bytes - off)
		len = size_bytes - off;
	*ret_off = off;
	*ret_len = (size_t)len;
}

static void fill(size_t len)
{
	uint64_t kind = random_below(4);

	for (size_t i = 0; i < len; i++)
		buffer[i] = kind == 0 ? 0 : kind == 1 ? (uint8_t)(operation + i / 512) : (uint8_t)random_below(256);
}

/* ---- operations ---- */

static void do_read(int from, const char *how)
{
	uint64_t off;
	size_t len;
	ssize_t got;

	choose_range(from == direct_fd, &off, &len);
	note("read %s %" PRIu64 " %zu", how, off, len);
	got = pread(from, buffer, len, (off_t)off);
	if (got != (ssize_t)len)
		complain("%zd bytes were read of %zu", got, len);
	compare("read", buffer, off, len);
}

static void do_write(int to, const char *how)
{
	uint64_t off;
	size_t len;
	ssize_t put;

	choose_range(to == direct_fd, &off, &len);
	fill(len);
	note("write %s %" PRIu64 " %zu", how, off, len);
	put = pwrite(to, buffer, len, (off_t)off);
	if (put != (ssize_t)len)
		complain("%zd bytes were written of %zu", put, len);
	if (!forgets || random_below(20) != 0)
		memcpy(model + off, buffer, len);
}

static void do_end(void)
{
	size_t len = 1 + random_below(10000), fits = random_below(len < size_bytes ? len : size_bytes);
	uint64_t off = size_bytes - fits;
	ssize_t done;

	fill(len);
	note("write and read at the end, %zu of %zu fit", fits, len);
	done = pwrite(fd, buffer, len, (off_t)off);
	if (fits == 0 ? done >= 0 || errno != ENOSPC : done != (ssize_t)fits)
		complain("%zd bytes were written of %zu, of which %zu fit", done, len, fits);
	memcpy(model + off, buffer, fits);
	done = pread(fd, buffer, len, (off_t)off);
	if (done != (ssize_t)fits)
		complain("%zd bytes were read of %zu, of which there are %zu", done, len, fits);
	compare("at the end", buffer, off, fits);
}

static void do_map(void)
{
	uint64_t off;
	size_t len, slack;
	uint8_t *map;

	choose_range(false, &off, &len);
	slack = off % PAGE;
	map = mmap(NULL, len + slack, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(off - slack));
	note("mapped %" PRIu64 " %zu", off, len);
	if (map == MAP_FAILED)
		complain("mmap");
	compare("mapped", map + slack, off, len);
	if (random_below(2) == 0) {
		fill(len);
		note("mapped and written %" PRIu64 " %zu", off, len);
		memcpy(map + slack, buffer, len);
		memcpy(model + off, buffer, len);
		/* O_DIRECT and holes go past pages that weren't written back */
		if (msync(map, len + slack, MS_SYNC) < 0)
			complain("msync");
	}
	if (munmap(map, len + slack) < 0)
		complain("munmap");
}

static void do_zero(int mode, const char *how)
{
	uint64_t off;
	size_t len;

	choose_range(false, &off, &len);
	note("%s %" PRIu64 " %zu", how, off, len);
	if (fallocate(fd, mode, (off_t)off, (off_t)len) < 0)
		complain("fallocate");
	memset(model + off, 0, len);
}

static bool is_zero(uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		if (model[off + i] != 0)
			return false;
	return true;
}

static void do_seek(void)
{
	uint64_t off = random_below(size_bytes);
	off_t data = lseek(fd, (off_t)off, SEEK_DATA), hole = lseek(fd, (off_t)off, SEEK_HOLE);

	note("seek %" PRIu64 ": data %lld, hole %lld", off, (long long)data, (long long)hole);
	if (data < 0 && errno == ENXIO)
		data = (off_t)size_bytes;
	if (data < (off_t)off || hole < (off_t)off || (data == (off_t)off) == (hole == (off_t)off) ||
	    (uint64_t)data > size_bytes || (uint64_t)hole > size_bytes)
		complain("data at %lld, a hole at %lld", (long long)data, (long long)hole);
	if (!is_zero(off, (uint64_t)data - off))
		complain("what is said to be a hole is none");
}

static void do_truncate(void)
{
	uint64_t other = random_below(2 * size_bytes);

	note("truncate to %" PRIu64, other);
	if (other != size_bytes && (ftruncate(fd, (off_t)other) == 0 || errno != EPERM))
		complain("truncating was not refused");
	if (ftruncate(fd, (off_t)size_bytes) < 0)
		complain("truncating to its size");
}

static void open_file(void)
{
	struct stat status;

	fd = open(path, O_RDWR | O_CLOEXEC);
	direct_fd = open(path, O_RDWR | O_CLOEXEC | O_DIRECT);
	if (fd < 0 || direct_fd < 0 || fstat(fd, &status) < 0)
		complain("opening");
	if (size_bytes != 0 && (uint64_t)status.st_size != size_bytes)
		complain("it has %lld bytes", (long long)status.st_size);
	size_bytes = (uint64_t)status.st_size;
}

static void do_reopen(void)
{
	note("reopen");
	if (close(fd) < 0 || close(direct_fd) < 0)
		complain("close");
	open_file();
}

static void do_sync(void)
{
	note("sync");
	if ((random_below(2) == 0 ? fsync(fd) : fdatasync(fd)) < 0)
		complain("sync");
}

static void do_drop(void)
{
	note("drop caches");
	if (posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
		complain("posix_fadvise");
}

static void do_something(void)
{
	uint64_t kind = random_below(100);

	if (kind < 25)
		do_read(fd, "");
	else if (kind < 50)
		do_write(fd, "");
	else if (kind < 57)
		do_read(direct_fd, "direct");
	else if (kind < 64)
		do_write(direct_fd, "direct");
	else if (kind < 72)
		do_map();
	else if (kind < 77)
		do_zero(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, "punch");
	else if (kind < 81)
		do_zero(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, "zero");
	else if (kind < 86)
		do_seek();
	else if (kind < 90)
		do_end();
	else if (kind < 93)
		do_sync();
	else if (kind < 95)
		do_drop();
	else if (kind < 98)
		do_truncate();
	else
		do_reopen();
}

/* All of it, in pieces. */
static void check_all(void)
{
	note("all of it");
	for (uint64_t off = 0; off < size_bytes; off += MOST_BYTES) {
		size_t len = size_bytes - off < MOST_BYTES ? (size_t)(size_bytes - off) : MOST_BYTES;

		if (pread(fd, buffer, len, (off_t)off) != (ssize_t)len)
			complain("reading");
		compare("all of it", buffer, off, len);
	}
}

static double seconds(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	double end;
	uint64_t most;

	if (argc != 4 && argc != 5)
		errx(2, "usage: file_exerciser FILE SEED SECONDS [OPERATIONS]");
	path = argv[1];
	forgets = getenv("EXERCISER_FORGETS") != NULL;
	random_state = strtoull(argv[2], NULL, 10) * 2654435761u + 1;
	end = seconds() + strtod(argv[3], NULL);
	most = argc == 5 ? strtoull(argv[4], NULL, 10) : UINT64_MAX;
	open_file();
	model = malloc(size_bytes);
	buffer = aligned_alloc(PAGE, MOST_BYTES + PAGE);
	if (model == NULL || buffer == NULL || pread(fd, model, size_bytes, 0) != (ssize_t)size_bytes)
		err(1, "%s", path);
	for (operation = 0; operation < most && seconds() < end; operation++)
		do_something();
	do_sync();
	do_reopen();
	check_all();
	(void)printf("%" PRIu64 " operations\n", operation);
	return 0;
}
