/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fs_crash KILLS SEED BYTES FILE COMMAND…: starts COMMAND, which mounts a file system in which FILE of BYTES bytes is,
 * has four clients write to it and sync, kills COMMAND with SIGKILL, and starts over; after each kill it looks at every
 * sector of 512 bytes.
 *
 * Each write carries its number in every sector. A client has a part of the file for itself and does one thing at a
 * time, so that of each sector it is known which write was the last before the last sync that was acknowledged, and
 * which came later: one of these must be there. Two clients write by pwrite(), one of them with O_DIRECT, one with
 * O_DSYNC, and one through memory that is mapped, which is durable after msync().
 *
 * With CRASH_BELIEVES_WRITES in the environment a write counts as synced when it is acknowledged: the control, which
 * must fail.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "live_model.h"

enum { SECTOR = LIVE_SECTOR, PAGE = 4096, CLIENTS = 4, WRITE_MOST = 256 << 10, CHUNK = 64 << 10 };
enum way { BY_WRITE, BY_DIRECT, BY_DSYNC, BY_MAP };

static uint32_t *synced, *acknowledged, *begun; /* by sector: numbers of writes; 0: zeros */
static atomic_uint write_count = 1;
static uint64_t sectors;
static bool believes_writes;
static atomic_bool stop;
static const char *path;

static uint64_t random_number(uint64_t *state, uint64_t below)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (*state >> 33) % below;
}

static void sleep_ms(uint64_t ms)
{
	const struct timespec time = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};

	(void)nanosleep(&time, NULL);
}

/* ------------------------------------------------------------------ clients */

struct client {
	enum way way;
	uint64_t first, end; /* sectors that are its own */
	uint64_t random;
	pthread_t thread;
	int fd;
	uint8_t *map; /* BY_MAP: of all of the file */
	uint8_t *data;
};

static void set_all(uint32_t *table, uint64_t first, uint64_t end, uint32_t number)
{
	for (uint64_t sector = first; sector < end; sector++)
		table[sector] = number;
}

/* What is written next. With O_DIRECT and in memory by pages; by the control in whole chunks, for what is smaller is in
 * a journal, and survives a kill unsynced. */
static void choose_range(struct client *client, uint64_t *ret_first, uint64_t *ret_end)
{
	uint64_t unit = believes_writes					    ? CHUNK / SECTOR
			: client->way == BY_DIRECT || client->way == BY_MAP ? PAGE / SECTOR
									    : 1;
	uint64_t first_unit = (client->first + unit - 1) / unit, end_unit = client->end / unit;
	uint64_t most = random_number(&client->random, 6) == 0 ? WRITE_MOST / SECTOR / unit : 16 / unit + 1;
	uint64_t first = first_unit + random_number(&client->random, end_unit - first_unit);
	uint64_t len = 1 + random_number(&client->random, most < end_unit - first ? most : end_unit - first);

	*ret_first = first * unit;
	*ret_end = (first + len) * unit;
}

/* A mapped page of a server that is gone is a SIGBUS: the end of that client. */
static __thread sigjmp_buf bus_escape;
static __thread volatile sig_atomic_t in_map;

static void on_bus(int number)
{
	(void)number;
	if (in_map)
		siglongjmp(bus_escape, 1);
	_exit(3);
}

static bool store_mapped(struct client *client, uint64_t first, size_t len_bytes)
{
	bool stored = false;

	if (sigsetjmp(bus_escape, 1) == 0) {
		in_map = 1;
		memcpy(client->map + first * SECTOR, client->data, len_bytes);
		stored = true;
	}
	in_map = 0;
	return stored && msync(client->map + first * SECTOR / PAGE * PAGE, len_bytes, MS_SYNC) == 0;
}

static bool write_something(struct client *client)
{
	uint64_t first, end;
	uint32_t number = write_count++;
	bool is_durable = believes_writes || client->way == BY_DSYNC || client->way == BY_MAP;
	size_t len_bytes;

	choose_range(client, &first, &end);
	len_bytes = (end - first) * SECTOR;
	for (uint64_t sector = first; sector < end; sector++)
		live_stamp_sector(client->data + (sector - first) * SECTOR, number, sector);
	set_all(begun, first, end, number);
	if (client->way == BY_MAP
		    ? !store_mapped(client, first, len_bytes)
		    : pwrite(client->fd, client->data, len_bytes, (off_t)(first * SECTOR)) != (ssize_t)len_bytes)
		return false;
	set_all(acknowledged, first, end, number);
	if (is_durable)
		set_all(synced, first, end, number);
	return true;
}

static void *run_client(void *opaque)
{
	struct client *client = opaque;

	while (!stop && write_something(client)) {
		if (random_number(&client->random, 20) != 0)
			continue;
		if (fsync(client->fd) < 0)
			break;
		memcpy(synced + client->first, acknowledged + client->first,
		       (client->end - client->first) * sizeof(*synced));
	}
	return NULL;
}

static void open_client(struct client *client)
{
	int flags = client->way == BY_DIRECT ? O_DIRECT : client->way == BY_DSYNC && !believes_writes ? O_DSYNC : 0;

	client->fd = open(path, O_RDWR | O_CLOEXEC | flags);
	client->data = aligned_alloc(PAGE, WRITE_MOST + CHUNK);
	if (client->fd < 0 || client->data == NULL)
		err(1, "%s", path);
	if (client->way != BY_MAP)
		return;
	client->map = mmap(NULL, sectors * SECTOR, PROT_READ | PROT_WRITE, MAP_SHARED, client->fd, 0);
	if (client->map == MAP_FAILED)
		err(1, "mmap");
}

static void close_client(struct client *client)
{
	if (client->map != NULL)
		(void)munmap(client->map, sectors * SECTOR);
	(void)close(client->fd);
	free(client->data);
}

/* ------------------------------------------------------------------ the server */

static pid_t start_server(char **command)
{
	pid_t pid = fork();
	struct stat status;

	if (pid == 0) {
		(void)execvp(command[0], command);
		_exit(127);
	}
	for (int i = 0; pid > 0 && i < 3000; i++) {
		if (stat(path, &status) == 0 && (uint64_t)status.st_size == sectors * SECTOR)
			return pid;
		if (waitpid(pid, NULL, WNOHANG) == pid)
			errx(1, "the server ended before it served");
		sleep_ms(10);
	}
	errx(1, "the server doesn't serve");
}

static unsigned check_file(void)
{
	uint8_t *content = malloc(sectors * SECTOR);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	unsigned wrong = 0;

	if (fd < 0 || content == NULL || pread(fd, content, sectors * SECTOR, 0) != (ssize_t)(sectors * SECTOR))
		err(1, "reading %s", path);
	for (uint64_t sector = 0; sector < sectors && wrong < 10; sector++) {
		uint32_t number = live_read_stamp(content + sector * SECTOR, sector);

		if (number != UINT32_MAX && number >= synced[sector] && number <= begun[sector]) {
			synced[sector] = acknowledged[sector] = begun[sector] =
				number; /* what is there now has to stay */
			continue;
		}
		wrong++;
		(void)fprintf(stderr,
			      "after a kill, sector %" PRIu64 ": write %" PRIu32 " is there, expected %" PRIu32
			      " to %" PRIu32 "\n",
			      sector, number, synced[sector], begun[sector]);
	}
	(void)close(fd);
	free(content);
	return wrong;
}

static unsigned one_kill(char **command, uint64_t *random)
{
	struct client clients[CLIENTS];
	pid_t server = start_server(command);
	unsigned wrong = check_file();

	stop = false;
	for (unsigned i = 0; i < CLIENTS; i++) {
		uint64_t part = sectors / CLIENTS / (CHUNK / SECTOR) * (CHUNK / SECTOR);

		clients[i] = (struct client){
			.way = (enum way)i, .first = part * i, .end = part * (i + 1), .random = *random + i * 7919};
		open_client(&clients[i]);
	}
	for (unsigned i = 0; i < CLIENTS; i++)
		if (pthread_create(&clients[i].thread, NULL, run_client, &clients[i]) != 0)
			errx(1, "a thread");
	sleep_ms(50 + random_number(random, 500));
	(void)kill(server, SIGKILL);
	(void)waitpid(server, NULL, 0);
	stop = true;
	for (unsigned i = 0; i < CLIENTS; i++) {
		(void)pthread_join(clients[i].thread, NULL);
		close_client(&clients[i]);
	}
	return wrong;
}

int main(int argc, char **argv)
{
	const struct sigaction bus = {.sa_handler = on_bus};
	unsigned kills, wrong = 0;
	uint64_t random;
	pid_t server;

	if (argc < 6)
		errx(2, "usage: fs_crash KILLS SEED BYTES FILE COMMAND...");
	kills = (unsigned)strtoul(argv[1], NULL, 10);
	random = strtoull(argv[2], NULL, 10) * 2654435761u + 1;
	sectors = strtoull(argv[3], NULL, 10) / SECTOR;
	path = argv[4];
	believes_writes = getenv("CRASH_BELIEVES_WRITES") != NULL;
	(void)sigaction(SIGBUS, &bus, NULL);
	synced = calloc(sectors, sizeof(*synced));
	acknowledged = calloc(sectors, sizeof(*acknowledged));
	begun = calloc(sectors, sizeof(*begun));
	for (unsigned i = 0; i < kills && wrong == 0; i++)
		wrong += one_kill(argv + 5, &random);
	server = start_server(argv + 5);
	if (wrong == 0)
		wrong = check_file();
	(void)kill(server, SIGTERM);
	(void)waitpid(server, NULL, 0);
	(void)printf("%u kills, %u writes\n", kills, (unsigned)write_count);
	return wrong == 0 ? 0 : 1;
}
