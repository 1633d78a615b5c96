/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbd_crash KILLS SEED BYTES DISK COMMAND…: starts COMMAND, a server of one disk of BYTES bytes on the socket "socket"
 * in the current folder, has four clients write to it and flush, makes images meanwhile, kills it with SIGKILL, and
 * starts over; after each kill it looks at every sector of 512 bytes.
 *
 * Each write carries its number in every sector. A client has a part of the disk for itself and does one thing at a
 * time, so that of each sector it is known which write was the last before the last flush that was acknowledged, and
 * which came later: one of these must be there. An image must hold, of each sector, a write not older than the last one
 * that was acknowledged when it was asked for, and none that was begun after it was there.
 *
 * With CRASH_BELIEVES_WRITES in the environment a write counts as flushed when it is acknowledged: the control, which
 * must fail.
 */
#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SECTOR = 512, CLIENTS = 4, WRITE_MOST = 200 << 10, WRITES_MOST = 1 << 20 };

struct write {
	uint64_t first, end; /* sectors */
};

static struct write *writes; /* [number]; 0: what was there at first, zeros */
static atomic_uint write_count = 1;
static uint32_t *flushed, *acknowledged, *begun; /* by sector: numbers of writes */
static uint64_t sectors;
static uint64_t seed;
static bool believes_writes;
static atomic_bool stop;

static uint64_t random_number(uint64_t *state, uint64_t below)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (*state >> 33) % below;
}

static void die(const char *what)
{
	(void)fprintf(stderr, "nbd_crash: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void sleep_ms(uint64_t ms)
{
	const struct timespec time = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};

	(void)nanosleep(&time, NULL);
}

static struct nbd_handle *connect_to_server(void)
{
	struct nbd_handle *nbd = nbd_create();

	if (nbd == NULL || nbd_connect_unix(nbd, "socket") < 0) {
		(void)fprintf(stderr, "nbd_crash: %s\n", nbd_get_error());
		exit(1);
	}
	return nbd;
}

/* ------------------------------------------------------------------ sectors */

static void stamp(uint8_t *data, uint32_t number, const struct write *write)
{
	for (uint64_t sector = write->first; sector < write->end; sector++) {
		uint8_t *at = data + (sector - write->first) * SECTOR;
		uint64_t filler = number * 0x9e3779b97f4a7c15u ^ sector;

		/* every other write is of what compresses */
		for (unsigned i = 0; i < SECTOR;
		     i += 8, filler = number % 2 == 0 ? filler : filler * 6364136223846793005u + 1)
			memcpy(at + i, &filler, 8);
		memcpy(at, &number, sizeof(number));
		memcpy(at + 4, &sector, sizeof(sector));
	}
}

/* The number of the write that left this, or UINT32_MAX if none did. */
static uint32_t read_stamp(const uint8_t *at, uint64_t sector)
{
	uint8_t expected[SECTOR] = {0};
	uint32_t number;
	struct write one = {.first = sector, .end = sector + 1};

	memcpy(&number, at, sizeof(number));
	if (number == 0)
		return memcmp(at, expected, SECTOR) == 0 ? 0 : UINT32_MAX;
	if (number >= write_count || sector < writes[number].first || sector >= writes[number].end)
		return UINT32_MAX;
	stamp(expected, number, &one);
	return memcmp(at, expected, SECTOR) == 0 ? number : UINT32_MAX;
}

static unsigned complain(const char *what, uint64_t sector, uint32_t found, uint32_t from, uint32_t to)
{
	(void)fprintf(stderr,
		      "nbd_crash: %s, sector %" PRIu64 ": write %" PRIu32 " is there, expected %" PRIu32 " to %" PRIu32
		      "\n",
		      what, sector, found, from, to);
	return 1;
}

/* Content against the oldest and the newest write that each sector may hold. */
static unsigned check_content(const char *what, const uint8_t *content, const uint32_t *oldest, const uint32_t *newest)
{
	unsigned wrong = 0;

	for (uint64_t sector = 0; sector < sectors && wrong < 10; sector++) {
		uint32_t number = read_stamp(content + sector * SECTOR, sector);

		if (number == UINT32_MAX || number < oldest[sector] || number > newest[sector])
			wrong += complain(what, sector, number, oldest[sector], newest[sector]);
	}
	return wrong;
}

/* ------------------------------------------------------------------ clients */

struct client {
	uint64_t first, end; /* sectors that are its own */
	uint64_t random;
	pthread_t thread;
	struct nbd_handle *nbd;
};

static void set_all(uint32_t *table, const struct write *write, uint32_t number)
{
	for (uint64_t sector = write->first; sector < write->end; sector++)
		__atomic_store_n(&table[sector], number, __ATOMIC_SEQ_CST);
}

static bool write_something(struct nbd_handle *nbd, struct client *client, uint8_t *data)
{
	uint64_t part = client->end - client->first;
	uint64_t kind = random_number(&client->random, 6);
	uint64_t most = kind == 0 ? WRITE_MOST / SECTOR : kind < 3 ? 16 : 8;
	uint64_t first = client->first + random_number(&client->random, part);
	uint64_t len = 1 + random_number(&client->random, most < client->end - first ? most : client->end - first);
	uint32_t number = write_count++;
	bool is_durable = believes_writes || random_number(&client->random, 10) == 0;

	/* A whole chunk of 64 KiB. The control writes nothing else: what is in the journal survives a kill without a flush. */
	if (believes_writes && client->end - first < 256)
		first = client->first;
	if ((kind == 1 || believes_writes) && client->end - first >= 256) {
		first = (first + 127) / 128 * 128;
		len = 128;
	}
	if (number >= WRITES_MOST)
		return false;
	writes[number] = (struct write){.first = first, .end = first + len};
	stamp(data, number, &writes[number]);
	set_all(begun, &writes[number], number);
	if (nbd_pwrite(nbd, data, len * SECTOR, first * SECTOR,
		       is_durable && !believes_writes ? LIBNBD_CMD_FLAG_FUA : 0) < 0)
		return false;
	set_all(acknowledged, &writes[number], number);
	if (is_durable)
		set_all(flushed, &writes[number], number);
	return true;
}

static void *run_client(void *opaque)
{
	struct client *client = opaque;
	struct nbd_handle *nbd = client->nbd;
	uint8_t *data = malloc(WRITE_MOST + SECTOR);

	while (!stop) {
		if (!write_something(nbd, client, data))
			break;
		if (random_number(&client->random, 30) != 0)
			continue;
		if (nbd_flush(nbd, 0) < 0)
			break;
		memcpy(flushed + client->first, acknowledged + client->first,
		       (client->end - client->first) * sizeof(*flushed));
	}
	free(data);
	nbd_close(nbd);
	return NULL;
}

/* ------------------------------------------------------------------ the server, and images */

static pid_t start_server(char **command)
{
	pid_t pid;

	(void)unlink("socket");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		(void)execvp(command[0], command);
		_exit(127);
	}
	for (int i = 0; i < 600; i++) {
		struct stat status;

		if (stat("socket", &status) == 0)
			return pid;
		if (waitpid(pid, NULL, WNOHANG) == pid) {
			(void)fprintf(stderr, "nbd_crash: the server ended before it listened\n");
			exit(1);
		}
		sleep_ms(100);
	}
	(void)kill(pid, SIGKILL);
	(void)fprintf(stderr, "nbd_crash: the server doesn't listen\n");
	exit(1);
}

struct image {
	bool is_made;
	unsigned number;
	uint32_t *oldest, *newest;
};

static uint32_t *copy_of(const uint32_t *table)
{
	uint32_t *copy = malloc(sectors * sizeof(*copy));

	for (uint64_t i = 0; i < sectors; i++)
		copy[i] = __atomic_load_n(&table[i], __ATOMIC_SEQ_CST);
	return copy;
}

static void make_image(struct image *image, const char *disk)
{
	char command[512], line[512];
	FILE *output;

	image->oldest = copy_of(acknowledged);
	(void)snprintf(command, sizeof(command), "\"$WHERRY\" image %s --json 2>/dev/null", disk);
	output = popen(command, "r");
	while (output != NULL && fgets(line, sizeof(line), output) != NULL)
		if (sscanf(line, " \"image\": %u", &image->number) == 1)
			image->is_made = true;
	if (output != NULL && pclose(output) != 0)
		image->is_made = false;
	image->newest = copy_of(begun);
}

static void read_all(FILE *from, uint8_t *content)
{
	if (from == NULL || fread(content, SECTOR, sectors, from) != sectors)
		die("reading an export");
}

static unsigned check_image(struct image *image, const char *disk)
{
	unsigned wrong = 0;

	if (image->is_made) {
		uint8_t *content = malloc(sectors * SECTOR);
		char command[512];
		FILE *output;

		(void)snprintf(command, sizeof(command), "\"$WHERRY\" export %s@%u - --progress=none 2>/dev/null", disk,
			       image->number);
		output = popen(command, "r");
		read_all(output, content);
		(void)pclose(output);
		(void)snprintf(command, sizeof(command), "image %u", image->number);
		wrong = check_content(command, content, image->oldest, image->newest);
		free(content);
	}
	free(image->oldest);
	free(image->newest);
	return wrong;
}

/* What is there after a kill is what there is from now on. */
static unsigned check_disk(void)
{
	struct nbd_handle *nbd = connect_to_server();
	uint8_t *content = malloc(sectors * SECTOR);
	unsigned wrong;

	for (uint64_t at = 0; at < sectors * SECTOR; at += 1 << 20) {
		uint64_t left = sectors * SECTOR - at;

		if (nbd_pread(nbd, content + at, left < 1 << 20 ? left : 1 << 20, at, 0) < 0) {
			(void)fprintf(stderr, "nbd_crash: %s\n", nbd_get_error());
			exit(1);
		}
	}
	wrong = check_content("after a kill", content, flushed, begun);
	for (uint64_t sector = 0; wrong == 0 && sector < sectors; sector++)
		flushed[sector] = acknowledged[sector] = begun[sector] = read_stamp(content + sector * SECTOR, sector);
	free(content);
	nbd_close(nbd);
	return wrong;
}

static unsigned one_kill(char **command, const char *disk, uint64_t *random, unsigned *images)
{
	struct client clients[CLIENTS];
	struct image image = {.is_made = false};
	pid_t server = start_server(command);
	unsigned wrong = check_disk();
	uint64_t later_ms = random_number(random, 400);

	stop = false;
	/* all connect before the time runs: a kill while one is at that proves nothing */
	for (unsigned i = 0; i < CLIENTS; i++) {
		clients[i] = (struct client){.first = sectors * i / CLIENTS,
					     .end = sectors * (i + 1) / CLIENTS,
					     .random = ++seed * 7919,
					     .nbd = connect_to_server()};
		if (pthread_create(&clients[i].thread, NULL, run_client, &clients[i]) != 0)
			die("a thread");
	}
	sleep_ms(random_number(random, 300));
	if (random_number(random, 2) == 0)
		make_image(&image, disk);
	sleep_ms(later_ms);
	(void)kill(server, SIGKILL);
	(void)waitpid(server, NULL, 0);
	stop = true;
	for (unsigned i = 0; i < CLIENTS; i++)
		(void)pthread_join(clients[i].thread, NULL);
	*images += image.is_made;
	return wrong + check_image(&image, disk);
}

int main(int argc, char **argv)
{
	unsigned kills, wrong = 0, images = 0;
	uint64_t random;
	pid_t server;

	if (argc < 6) {
		(void)fprintf(stderr, "usage: nbd_crash KILLS SEED BYTES DISK COMMAND...\n");
		return 2;
	}
	kills = (unsigned)strtoul(argv[1], NULL, 10);
	seed = strtoull(argv[2], NULL, 10);
	sectors = strtoull(argv[3], NULL, 10) / SECTOR;
	believes_writes = getenv("CRASH_BELIEVES_WRITES") != NULL;
	random = seed;
	writes = calloc(WRITES_MOST, sizeof(*writes));
	flushed = calloc(sectors, sizeof(*flushed));
	acknowledged = calloc(sectors, sizeof(*acknowledged));
	begun = calloc(sectors, sizeof(*begun));
	for (unsigned i = 0; i < kills && wrong == 0; i++)
		wrong += one_kill(argv + 5, argv[4], &random, &images);
	server = start_server(argv + 5);
	wrong += wrong == 0 ? check_disk() : 0;
	(void)kill(server, SIGTERM);
	(void)waitpid(server, NULL, 0);
	(void)printf("%u kills, %u writes, %u images\n", kills, (unsigned)write_count, images);
	return wrong == 0 ? 0 : 1;
}
