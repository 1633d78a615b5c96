/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NBD exports, through libnbd.
 *
 * One connection, one thread, many commands in flight. All of libnbd's work is
 * done in calls from the submitting thread: turn() waits for the socket and lets
 * libnbd read or write, completions are callbacks out of that, and nothing needs
 * a lock.
 *
 *     request --> job: the range, widened to the server's minimum block size,
 *                 into the caller's buffer or, if widened, one of our own
 *         job --> commands: pieces of at most the server's maximum payload
 *
 * Jobs wait in the order they came; pump() starts commands while fewer than
 * MOST_COMMANDS are in flight. A job is finished when its last command is, with
 * the first error any of them had. What came is looked at only when there was no
 * error (CVE-2022-0485: a failed command leaves its buffer as it likes).
 *
 * The connection is open, then perhaps lost, for good. A lost one finishes every
 * job with -ENOTCONN, whatever error libnbd gave it: to the caller, a bad sector
 * and a server that is gone must not look alike. TCP keep-alive and a limit on
 * unacknowledged data make a peer that vanished a lost connection in a minute.
 *
 * Nothing a server says is believed unseen. libnbd 1.14 checks the framing, but
 * hands on sizes of 2^63 and more, and block status entries of any length. Those
 * are checked where they arrive; a server that contradicts the protocol is
 * refused with -EPROTO.
 *
 * Block status is asked for in stretches of up to 1 GiB and kept, both contexts of
 * one reply, until another stretch is asked for. Not more at once: some versions
 * of nbdkit die of requests close to 4 GiB (CVE-2025-47711).
 */
#include "syncer/source_internal.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/libnbd_calls.h"
#include "syncer/source_nbd_uri.h"

enum {
	NBD_MOST_IN_FLIGHT = 16,
	MOST_JOBS = 2 * NBD_MOST_IN_FLIGHT + 1, /* one for a blocking read */
	MOST_COMMANDS = 64,
	MOST_PAYLOAD_BYTES = 32 << 20,	/* what every server must take, and no more than libnbd does */
	MOST_BLOCK_BYTES = 64 << 10,	/* NBD protocol: the largest minimum block size */
	MOST_STATUS_ENTRIES = 64 << 10, /* kept of one reply; the rest is asked for again */
	MOST_NAMES = 1024,		/* of bitmaps and exports, taken from a server's list */
	MOST_NAME_BYTES = 4096,		/* NBD protocol: of any string */
	CONNECT_SECONDS = 30,
	SILENCE_SECONDS = 60, /* a server that says nothing for so long, and owes an answer, is gone */
	REAP_MS = 250,
	GOODBYE_MS = 500,
	BUFFER_ALIGN_BYTES = 4096,
};

#define STATUS_REQUEST_BYTES ((uint64_t)1 << 30)

static const char allocation_context[] = "base:allocation";
static const char bitmap_prefix[] = "qemu:dirty-bitmap:";

struct nbd_source;

struct nbd_job {
	struct nbd_source *nbd;
	bool is_taken;
	bool is_done;			/* a blocking read's; requests go to the ring */
	bool is_queued;			/* has something left to ask for, or an error and nobody has looked yet */
	struct source_request *request; /* NULL: a blocking read */
	uint8_t *target;		/* where the commands' bytes go: stands for first_bytes */
	uint8_t *bounce;		/* owned; `target` if the range had to be widened, else NULL */
	uint8_t *buffer;		/* the caller's range */
	uint64_t off_bytes;
	size_t len_bytes;
	uint64_t first_bytes; /* the range on the wire */
	uint64_t next_bytes;  /* no command was made for what lies from here on */
	uint64_t end_bytes;
	unsigned commands;    /* in flight */
	int error;	      /* the first one */
	bool is_second_try;   /* it was too much in one piece */
	struct nbd_job *next; /* in the queue of jobs with something left to ask for */
};

/* One context's answer: entry i reaches from the end of the one before to end_bytes. */
struct status_entry {
	uint64_t end_bytes;
	uint32_t flags;
};

struct status_map {
	struct status_entry *entries; /* owned; room for MOST_STATUS_ENTRIES, NULL until needed */
	size_t count;
	uint64_t from_bytes;
	uint64_t to_bytes; /* from == to: nothing is known */
};

enum { MAP_ALLOCATION, MAP_DIRTY, MAPS };

/* A block status request on its way. */
struct status_query {
	uint64_t off_bytes;
	uint64_t len_bytes;
	bool is_done;
	int error;	/* the server's */
	bool is_broken; /* the reply contradicts the protocol */
};

/* The answer to an option during negotiation. */
struct option_answer {
	char *names[MOST_NAMES]; /* that a server lists */
	size_t count;
	bool is_done;
	int error;
	bool is_out_of_memory;
};

struct nbd_source {
	struct source base;
	struct nbd_handle *handle;
	uint64_t minimum_bytes; /* block size; a power of two */
	uint64_t maximum_bytes; /* payload; a multiple of it */
	bool is_lost;
	char why_lost[256];
	bool wants_one_piece; /* reads are answered in one piece (LIBNBD_CMD_FLAG_DF) */
	double heard_at;      /* when the server last took or gave bytes, or was asked first */
	struct nbd_job jobs[MOST_JOBS];
	struct nbd_job *first_waiting;
	struct nbd_job *last_waiting;
	unsigned commands; /* in flight, of all jobs */
	struct request_ring finished;
	bool has_map[MAPS];  /* the context was negotiated */
	char *dirty_context; /* "qemu:dirty-bitmap:NAME", or NULL */
	struct status_map maps[MAPS];
	bool has_said_no_status;
	/* What callbacks write to lives as long as the handle, so that a late one can't hit freed memory. */
	struct status_query query;
	struct option_answer answer;
};

static struct nbd_source *nbd_of(struct source *source)
{
	return (struct nbd_source *)source; /* base is the first member */
}

/* libnbd's last error without the name of the call in front, which tells a user nothing. */
static const char *last_error(void)
{
	const char *text = libnbd->get_error();
	const char *colon;

	if (text == NULL)
		return "unknown error";
	colon = strncmp(text, "nbd_", 4) == 0 ? strstr(text, ": ") : NULL;
	return colon != NULL ? colon + 2 : text;
}

static int last_errno(int otherwise)
{
	int code = libnbd->get_errno();

	return code > 0 ? -code : otherwise;
}

/* -------------------------------------------------------------- connection */

static void lose(struct nbd_source *nbd, const char *why)
{
	if (nbd->is_lost)
		return;
	nbd->is_lost = true;
	(void)snprintf(nbd->why_lost, sizeof(nbd->why_lost), "%s", why);
}

static void check_connection(struct nbd_source *nbd)
{
	if (libnbd->aio_is_dead(nbd->handle) != 0)
		lose(nbd, last_error());
	else if (libnbd->aio_is_closed(nbd->handle) != 0)
		lose(nbd, "the server has closed the connection");
}

static int fail_lost(const struct nbd_source *nbd, struct failure *failure)
{
	return fail(failure, -ENOTCONN, "%s: the connection to the server was lost: %s; check the server and try again",
		    nbd->base.info.name, nbd->why_lost);
}

/* Waits for the socket, at most timeout_ms (-1: for ever, 0: not at all), and lets libnbd do what can be done. */
static void turn(struct nbd_source *nbd, int timeout_ms)
{
	unsigned direction = libnbd->aio_get_direction(nbd->handle);
	struct pollfd socket = {.fd = libnbd->aio_get_fd(nbd->handle)};
	int ready;
	int result = 0;

	if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0)
		socket.events |= POLLIN;
	if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0)
		socket.events |= POLLOUT;
	ready = socket.fd < 0 || socket.events == 0 ? 0 : poll(&socket, 1, timeout_ms);
	if (ready <= 0) { /* a signal isn't ours to deal with; who waits comes again */
		check_connection(nbd);
		return;
	}
	nbd->heard_at = units_monotonic_seconds();
	/* One of the two: the state may be another after it. */
	if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0 && (socket.revents & (POLLIN | POLLHUP | POLLERR)) != 0)
		result = libnbd->aio_notify_read(nbd->handle);
	else if ((socket.revents & (POLLOUT | POLLHUP | POLLERR)) != 0)
		result = libnbd->aio_notify_write(nbd->handle);
	if (result < 0)
		lose(nbd, last_error());
	check_connection(nbd);
}

/* The same for who waits for the answer to a command, and not for ever. */
static void turn_patiently(struct nbd_source *nbd, int timeout_ms)
{
	turn(nbd, timeout_ms);
	if (!nbd->is_lost && units_monotonic_seconds() - nbd->heard_at > SILENCE_SECONDS)
		lose(nbd, "no answer within 60 seconds");
}

/* Until *is_done; false when that didn't happen within the time for connecting, or the connection is lost. */
static bool wait_until(struct nbd_source *nbd, const bool *is_done, double deadline_seconds)
{
	while (!*is_done) {
		double left_seconds = deadline_seconds - units_monotonic_seconds();

		if (nbd->is_lost)
			return false;
		if (left_seconds <= 0) {
			lose(nbd, "no answer within 30 seconds");
			return false;
		}
		turn(nbd, (int)(left_seconds * 1000) + 1);
	}
	return true;
}

/* --------------------------------------------------------------------- jobs */

static struct nbd_job *take_job(struct nbd_source *nbd)
{
	for (unsigned i = 0; i < MOST_JOBS; i++) {
		if (!nbd->jobs[i].is_taken) {
			nbd->jobs[i] = (struct nbd_job){.nbd = nbd, .is_taken = true};
			return &nbd->jobs[i];
		}
	}
	abort(); /* source.c asserts that there are not more */
}

static void release_job(struct nbd_job *job)
{
	free(take_ptr(job->bounce));
	job->is_taken = false;
}

static void queue_job(struct nbd_source *nbd, struct nbd_job *job)
{
	job->next = NULL;
	job->is_queued = true;
	if (nbd->first_waiting == NULL)
		nbd->first_waiting = job;
	else
		nbd->last_waiting->next = job;
	nbd->last_waiting = job;
}

/* The range on the wire: whole blocks, but never past the end, where the server decides about an incomplete block. */
static int prepare_job(struct nbd_source *nbd, struct nbd_job *job, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	const uint64_t block_bytes = nbd->minimum_bytes;
	uint64_t end_bytes = (off_bytes + len_bytes + block_bytes - 1) & ~(block_bytes - 1);

	job->buffer = buffer;
	job->off_bytes = off_bytes;
	job->len_bytes = len_bytes;
	job->first_bytes = off_bytes & ~(block_bytes - 1);
	job->end_bytes = end_bytes < nbd->base.info.size_bytes ? end_bytes : nbd->base.info.size_bytes;
	job->next_bytes = job->first_bytes;
	job->target = buffer;
	if (job->first_bytes == off_bytes && job->end_bytes == off_bytes + len_bytes)
		return 0;
	job->bounce = malloc((size_t)(job->end_bytes - job->first_bytes)); /* a request and two blocks at most */
	job->target = job->bounce;
	return job->bounce != NULL ? 0 : -ENOMEM;
}

static void finish_job(struct nbd_source *nbd, struct nbd_job *job)
{
	if (nbd->is_lost)
		job->error = -ENOTCONN;
	if (job->error == 0 && job->bounce != NULL)
		memcpy(job->buffer, job->bounce + (job->off_bytes - job->first_bytes), job->len_bytes);
	if (job->request == NULL) {
		job->is_done = true; /* who waits for it releases it */
		return;
	}
	job->request->result = job->error;
	request_ring_put(&nbd->finished, job->request);
	release_job(job);
}

static bool is_complete(const struct nbd_job *job)
{
	return job->commands == 0 && !job->is_queued;
}

/* "In one piece" is a wish that a server may decline for more than 64 KiB (NBD protocol, NBD_CMD_FLAG_DF): in pieces
 * then. */
static bool start_again_in_pieces(struct nbd_source *nbd, struct nbd_job *job)
{
	if (job->error != -EOVERFLOW || job->is_second_try)
		return false;
	nbd->wants_one_piece = false;
	job->is_second_try = true;
	job->error = 0;
	job->next_bytes = job->first_bytes;
	queue_job(nbd, job);
	return true;
}

/* libnbd's callback: no call of libnbd may be made in it. The error has to be looked at first. */
static int complete_command(void *opaque, int *error)
{
	struct nbd_job *job = opaque;

	if (*error != 0 && job->error == 0)
		job->error = -*error;
	job->commands--;
	job->nbd->commands--;
	return 1; /* retire the command */
}

static int ignore_chunk(void *opaque, const void *data, size_t len_bytes, uint64_t off_bytes, unsigned status,
			int *error)
{
	(void)opaque; /* libnbd has put it where it belongs, and checks that all of it came; an error comes with the
			 completion */
	(void)data;
	(void)len_bytes;
	(void)off_bytes;
	(void)status;
	(void)error;
	return 0;
}

static int64_t ask_for(struct nbd_source *nbd, void *target, size_t len_bytes, uint64_t off_bytes,
		       nbd_completion_callback completion)
{
	nbd_chunk_callback chunk = {.callback = ignore_chunk};

	if (nbd->wants_one_piece)
		return libnbd->aio_pread_structured(nbd->handle, target, len_bytes, off_bytes, chunk, completion,
						    LIBNBD_CMD_FLAG_DF);
	return libnbd->aio_pread(nbd->handle, target, len_bytes, off_bytes, completion, 0);
}

/* One piece of a job. */
static void start_command(struct nbd_source *nbd, struct nbd_job *job)
{
	uint64_t left_bytes = job->end_bytes - job->next_bytes;
	size_t piece_bytes = (size_t)(left_bytes < nbd->maximum_bytes ? left_bytes : nbd->maximum_bytes);
	uint8_t *at = job->target + (job->next_bytes - job->first_bytes);
	nbd_completion_callback completion = {.callback = complete_command, .user_data = job};
	uint64_t off_bytes = job->next_bytes;

	/* Counted before: the call itself may already complete it. */
	job->next_bytes += piece_bytes;
	if (nbd->commands == 0)
		nbd->heard_at = units_monotonic_seconds();
	job->commands++;
	nbd->commands++;
	if (ask_for(nbd, at, piece_bytes, off_bytes, completion) >= 0)
		return;
	job->commands--;
	nbd->commands--;
	if (job->error == 0)
		job->error = last_errno(-EIO);
	check_connection(nbd);
}

static void start_waiting(struct nbd_source *nbd)
{
	while (nbd->first_waiting != NULL && nbd->commands < MOST_COMMANDS && !nbd->is_lost) {
		struct nbd_job *job = nbd->first_waiting;

		if (job->error == 0)
			start_command(nbd, job);
		if (job->error != 0 || job->next_bytes == job->end_bytes) {
			nbd->first_waiting = job->next;
			job->is_queued = false;
		}
	}
	if (nbd->is_lost)
		nbd->first_waiting = NULL;
}

/* Starts what can be started, and finishes what is done. */
static void pump(struct nbd_source *nbd)
{
	start_waiting(nbd);
	for (unsigned i = 0; i < MOST_JOBS; i++) {
		struct nbd_job *job = &nbd->jobs[i];

		if (!job->is_taken || job->is_done || (!is_complete(job) && !nbd->is_lost))
			continue;
		if (nbd->is_lost || !start_again_in_pieces(nbd, job))
			finish_job(nbd, job);
		else
			start_waiting(nbd); /* or nothing would come that wakes who waits */
	}
}

static int nbd_submit(struct source *source, struct source_request *request, struct failure *failure)
{
	struct nbd_source *nbd = nbd_of(source);
	struct nbd_job *job;
	int error;

	if (nbd->is_lost)
		return fail_lost(nbd, failure);
	job = take_job(nbd);
	job->request = request;
	error = prepare_job(nbd, job, request->buffer, request->len_bytes, request->off_bytes);
	if (error < 0) {
		job->error = error; /* comes back with the request */
		finish_job(nbd, job);
		return 0;
	}
	queue_job(nbd, job);
	pump(nbd);
	return 0;
}

static struct source_request *nbd_reap(struct source *source, bool wait)
{
	struct nbd_source *nbd = nbd_of(source);
	struct source_request *request;

	pump(nbd);
	request = request_ring_take(&nbd->finished);
	for (double until = units_monotonic_seconds() + REAP_MS / 1e3; request == NULL;) {
		turn_patiently(nbd, wait ? REAP_MS : 0);
		pump(nbd);
		request = request_ring_take(&nbd->finished);
		if (!wait || units_monotonic_seconds() >= until)
			break;
	}
	return request;
}

static void nbd_forget_maps(struct source *source)
{
	struct nbd_source *nbd = nbd_of(source);

	for (unsigned i = 0; i < MAPS; i++)
		nbd->maps[i].to_bytes = nbd->maps[i].from_bytes;
}

static void nbd_drop(struct source *source)
{
	lose(nbd_of(source), "it did not answer in time when the reading was to end");
}

static int nbd_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	struct nbd_source *nbd = nbd_of(source);
	struct nbd_job *job;
	int error;

	if (nbd->is_lost)
		return fail_lost(nbd, failure);
	job = take_job(nbd);
	error = prepare_job(nbd, job, buffer, len_bytes, off_bytes);
	if (error == 0) {
		queue_job(nbd, job);
		for (pump(nbd); !job->is_done; pump(nbd))
			turn_patiently(nbd, SILENCE_SECONDS * 1000 / 4);
		error = job->error;
	}
	release_job(job);
	if (error < 0 && nbd->is_lost)
		return fail_lost(nbd, failure);
	if (error < 0)
		return fail_errno(failure, error, "%s: the server can't read %zu bytes at %" PRIu64, source->info.name,
				  len_bytes, off_bytes);
	return 0;
}

/* ------------------------------------------------------------- block status */

/* Adds an entry to a map that grows at its end; neighbours that say the same become one. */
static void map_append(struct status_map *map, uint64_t end_bytes, uint32_t flags)
{
	if (map->count > 0 && map->entries[map->count - 1].flags == flags)
		map->entries[map->count - 1].end_bytes = end_bytes;
	else
		map->entries[map->count++] = (struct status_entry){.end_bytes = end_bytes, .flags = flags};
	map->to_bytes = end_bytes;
}

static bool map_reset(struct status_map *map, uint64_t from_bytes)
{
	if (map->entries == NULL)
		map->entries = malloc(MOST_STATUS_ENTRIES * sizeof(*map->entries));
	map->count = 0;
	map->from_bytes = from_bytes;
	map->to_bytes = from_bytes;
	return map->entries != NULL;
}

/*
 * Takes one context's part of a reply: pairs of length and flags. The last entry may reach past what was asked for (NBD
 * protocol, NBD_REPLY_TYPE_BLOCK_STATUS) and is cut. False: not what a server may say, or no memory.
 */
static bool map_take_reply(struct status_map *map, const struct status_query *query, uint64_t off_bytes,
			   const uint32_t *words, size_t word_count)
{
	const uint64_t end_bytes = query->off_bytes + query->len_bytes;
	uint64_t at_bytes = off_bytes;

	if (off_bytes != query->off_bytes || word_count < 2 || word_count % 2 != 0)
		return false;
	if (map->from_bytes != map->to_bytes) /* the same context twice */
		return false;
	for (size_t i = 0; i < word_count && at_bytes < end_bytes && map->count < MOST_STATUS_ENTRIES; i += 2) {
		if (words[i] == 0)
			return false;
		at_bytes = words[i] < end_bytes - at_bytes ? at_bytes + words[i] : end_bytes;
		map_append(map, at_bytes, words[i + 1]);
	}
	return true;
}

static const struct status_entry *map_find(const struct status_map *map, uint64_t off_bytes)
{
	size_t low = 0;
	size_t high = map->count;

	if (off_bytes < map->from_bytes || off_bytes >= map->to_bytes)
		return NULL;
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (map->entries[middle].end_bytes <= off_bytes)
			low = middle + 1;
		else
			high = middle;
	}
	return &map->entries[low];
}

/* libnbd's callbacks. */
static int take_status(void *opaque, const char *context, uint64_t off_bytes, uint32_t *words, size_t word_count,
		       int *error)
{
	struct nbd_source *nbd = opaque;
	struct status_map *map = NULL;

	(void)error; /* comes with the completion as well */
	if (strcmp(context, allocation_context) == 0)
		map = &nbd->maps[MAP_ALLOCATION];
	else if (nbd->dirty_context != NULL && strcmp(context, nbd->dirty_context) == 0)
		map = &nbd->maps[MAP_DIRTY];
	if (map != NULL && !map_take_reply(map, &nbd->query, off_bytes, words, word_count))
		nbd->query.is_broken = true;
	return 0;
}

static int complete_status(void *opaque, int *error)
{
	struct nbd_source *nbd = opaque;

	nbd->query.error = -*error;
	nbd->query.is_done = true;
	return 1; /* retire the command */
}

/* Asks for both contexts from the block of `off_bytes` on. Afterwards the maps hold what is known of it, perhaps
 * nothing. */
static int ask_status(struct nbd_source *nbd, uint64_t off_bytes, struct failure *failure)
{
	struct status_query *query = &nbd->query;
	nbd_extent_callback extent = {.callback = take_status, .user_data = nbd};
	nbd_completion_callback completion = {.callback = complete_status, .user_data = nbd};
	uint64_t left_bytes;

	if (nbd->is_lost)
		return fail_lost(nbd, failure);
	*query = (struct status_query){.off_bytes = off_bytes & ~(nbd->minimum_bytes - 1)};
	left_bytes = nbd->base.info.size_bytes - query->off_bytes;
	query->len_bytes = left_bytes < STATUS_REQUEST_BYTES ? left_bytes : STATUS_REQUEST_BYTES;
	for (unsigned i = 0; i < MAPS; i++) {
		if (nbd->has_map[i] && !map_reset(&nbd->maps[i], query->off_bytes))
			return fail(failure, -ENOMEM, "%s: out of memory", nbd->base.info.name);
	}
	if (nbd->commands == 0)
		nbd->heard_at = units_monotonic_seconds();
	if (libnbd->aio_block_status(nbd->handle, query->len_bytes, query->off_bytes, extent, completion, 0) < 0) {
		query->error = last_errno(-EIO);
		query->is_done = true;
		check_connection(nbd);
	}
	while (!query->is_done && !nbd->is_lost) {
		turn_patiently(nbd, SILENCE_SECONDS * 1000 / 4);
		pump(nbd);
	}
	if (nbd->is_lost)
		return fail_lost(nbd, failure);
	if (query->is_broken)
		return fail(failure, -EPROTO, "%s: the server's answer about what is allocated breaks the NBD protocol",
			    nbd->base.info.name);
	return query->error;
}

/* The entry that covers off_bytes, NULL when the server has none. */
static int find_status(struct nbd_source *nbd, unsigned which, uint64_t off_bytes,
		       const struct status_entry **ret_entry, struct failure *failure)
{
	const struct status_entry *entry = map_find(&nbd->maps[which], off_bytes);
	int error = 0;

	if (entry == NULL) {
		error = ask_status(nbd, off_bytes, failure);
		entry = map_find(&nbd->maps[which], off_bytes);
	}
	if (error == 0)
		*ret_entry = entry;
	return error;
}

/*
 * A server that won't say what is allocated has all of it read; a broken connection or protocol and a lack of memory,
 * which have their message already, end the round.
 */
static int nbd_extent_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, enum source_extent *ret_extent,
			 uint64_t *ret_len_bytes, struct failure *failure)
{
	struct nbd_source *nbd = nbd_of(source);
	struct status_map *map = &nbd->maps[MAP_ALLOCATION];
	const struct status_entry *entry = NULL;
	uint64_t end_bytes;
	int error;

	if (!nbd->has_map[MAP_ALLOCATION]) {
		*ret_extent = SOURCE_DATA;
		*ret_len_bytes = len_bytes;
		return 0;
	}
	error = find_status(nbd, MAP_ALLOCATION, off_bytes, &entry, failure);
	if (error == -ENOTCONN || error == -EPROTO || error == -ENOMEM)
		return error;
	if (entry == NULL) {
		uint64_t left_bytes = source->info.size_bytes - off_bytes;

		if (!nbd->has_said_no_status)
			notice(nbd->base.notices, NOTICE_INFO,
			       "%s: the server doesn't say what is allocated (%s); all of it is read",
			       source->info.name, error < 0 ? strerrordesc_np(-error) : "no answer");
		nbd->has_said_no_status = true;
		(void)map_reset(map, off_bytes);
		map_append(map, off_bytes + (left_bytes < STATUS_REQUEST_BYTES ? left_bytes : STATUS_REQUEST_BYTES), 0);
		entry = map_find(map, off_bytes);
	}
	end_bytes = entry->end_bytes;
	*ret_extent = (entry->flags & LIBNBD_STATE_ZERO) != 0 ? SOURCE_HOLE : SOURCE_DATA;
	*ret_len_bytes = end_bytes - off_bytes < len_bytes ? end_bytes - off_bytes : len_bytes;
	return 0;
}

/* Bit 0 says dirty (QEMU's docs/interop/nbd.txt). Here no answer is an error: guessing either way would be wrong. */
static int nbd_dirty_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_is_dirty,
			uint64_t *ret_len_bytes, struct failure *failure)
{
	struct nbd_source *nbd = nbd_of(source);
	const struct status_entry *entry = NULL;
	int error;

	if (!nbd->has_map[MAP_DIRTY])
		return fail(failure, -ENODATA, "%s: no dirty bitmap was asked for", source->info.name);
	error = find_status(nbd, MAP_DIRTY, off_bytes, &entry, failure);
	if (error == -ENOTCONN || error == -EPROTO || error == -ENOMEM)
		return error;
	if (error < 0)
		return fail_errno(failure, error, "%s: the server can't read the dirty bitmap at %" PRIu64,
				  source->info.name, off_bytes);
	if (entry == NULL)
		return fail(failure, -EPROTO, "%s: the server gives no answer about the dirty bitmap at %" PRIu64,
			    source->info.name, off_bytes);
	*ret_is_dirty = (entry->flags & 1) != 0;
	*ret_len_bytes = entry->end_bytes - off_bytes < len_bytes ? entry->end_bytes - off_bytes : len_bytes;
	return 0;
}

/* ----------------------------------------------- what can't be told about NBD */

static int nbd_in_use(struct source *source, bool *ret_in_use, char **ret_why, struct failure *failure)
{
	(void)source;
	(void)failure;
	*ret_in_use = false;
	if (ret_why != NULL)
		*ret_why = NULL;
	return 0;
}

static int nbd_range_mounted(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_mounted,
			     struct failure *failure)
{
	(void)source;
	(void)off_bytes;
	(void)len_bytes;
	(void)failure;
	*ret_mounted = false;
	return 0;
}

static int nbd_change_stamp(struct source *source, char **ret_stamp, struct failure *failure)
{
	char *stamp = strdup("");

	if (stamp == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", source->info.name);
	*ret_stamp = stamp;
	return 0;
}

static int nbd_current_size(struct source *source, uint64_t *ret_size_bytes, struct failure *failure)
{
	(void)failure;
	*ret_size_bytes = source->info.size_bytes;
	return 0;
}

/* --------------------------------------------------------------- negotiation */

static struct option_answer *begin_option(struct nbd_source *nbd)
{
	struct option_answer *answer = &nbd->answer;

	for (size_t i = 0; i < answer->count; i++)
		free(answer->names[i]);
	*answer = (struct option_answer){.count = 0};
	return answer;
}

/* A name with control characters would break every list it is shown in, and can't be typed either. */
static bool is_printable(const char *name)
{
	for (const char *at = name; *at != '\0'; at++) {
		if (iscntrl((unsigned char)*at))
			return false;
	}
	return strlen(name) <= MOST_NAME_BYTES;
}

static void add_name(struct option_answer *answer, const char *name)
{
	if (answer->count == MOST_NAMES || !is_printable(name))
		return;
	answer->names[answer->count] = strdup(name);
	if (answer->names[answer->count] == NULL)
		answer->is_out_of_memory = true;
	else
		answer->count++;
}

static int take_context(void *opaque, const char *name)
{
	struct nbd_source *nbd = opaque;

	if (strncmp(name, bitmap_prefix, sizeof(bitmap_prefix) - 1) == 0)
		add_name(&nbd->answer, name + sizeof(bitmap_prefix) - 1);
	return 0;
}

static int take_export(void *opaque, const char *name, const char *description)
{
	struct nbd_source *nbd = opaque;

	(void)description;
	add_name(&nbd->answer, name);
	return 0;
}

static int complete_option(void *opaque, int *error)
{
	struct nbd_source *nbd = opaque;

	nbd->answer.error = -*error;
	nbd->answer.is_done = true;
	return 1;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* All names in order with `separator` between them; NULL: no memory. Caller frees. */
static char *join_names(struct option_answer *answer, const char *separator)
{
	size_t text_bytes = 1;
	char *text;
	char *at;

	qsort(answer->names, answer->count, sizeof(answer->names[0]), compare_names);
	for (size_t i = 0; i < answer->count; i++)
		text_bytes += strlen(answer->names[i]) + strlen(separator);
	text = malloc(text_bytes);
	if (text == NULL)
		return NULL;
	at = text;
	*at = '\0';
	for (size_t i = 0; i < answer->count; i++) {
		at = stpcpy(at, i > 0 ? separator : "");
		at = stpcpy(at, answer->names[i]);
	}
	return text;
}

static int fail_no_memory(const struct nbd_source *nbd, struct failure *failure)
{
	return fail(failure, -ENOMEM, "%s: out of memory", nbd->base.info.name);
}

/* A server that knows no such contexts, or none of NBD's newer options, has no bitmaps. */
static int list_bitmaps(struct nbd_source *nbd, double deadline_seconds, struct failure *failure)
{
	struct option_answer *answer = begin_option(nbd);
	nbd_context_callback context = {.callback = take_context, .user_data = nbd};
	nbd_completion_callback completion = {.callback = complete_option, .user_data = nbd};
	bool was_answered = true;

	if (libnbd->add_meta_context(nbd->handle, bitmap_prefix) < 0)
		return fail_no_memory(nbd, failure);
	if (libnbd->aio_opt_list_meta_context(nbd->handle, context, completion) >= 0)
		was_answered = wait_until(nbd, &answer->is_done, deadline_seconds);
	(void)libnbd->clear_meta_contexts(nbd->handle); /* can't fail while negotiating, and doesn't matter when lost */
	nbd->base.dirty_bitmaps = join_names(answer, "\n");
	if (answer->is_out_of_memory || nbd->base.dirty_bitmaps == NULL)
		return fail_no_memory(nbd, failure);
	return was_answered ? 0 : fail_lost(nbd, failure);
}

static bool list_has(const char *lines, const char *name)
{
	size_t name_bytes = strlen(name);

	while (*lines != '\0') {
		size_t line_bytes = strcspn(lines, "\n");

		if (line_bytes == name_bytes && strncmp(lines, name, name_bytes) == 0)
			return true;
		lines += line_bytes + (lines[line_bytes] == '\n');
	}
	return false;
}

/* "a\nb" as "a, b"; NULL: no memory. Caller frees. */
static char *lines_to_text(const char *lines)
{
	char *text = malloc(2 * strlen(lines) + 1);
	char *to = text;

	if (text == NULL)
		return NULL;
	for (const char *from = lines; *from != '\0'; from++) {
		if (*from == '\n')
			to = stpcpy(to, ", ");
		else
			*to++ = *from;
	}
	*to = '\0';
	return text;
}

static int fail_no_bitmap(const struct nbd_source *nbd, const char *bitmap, struct failure *failure)
{
	AUTO_FREE char *text = lines_to_text(source_dirty_bitmaps(&nbd->base));

	if (text == NULL || text[0] == '\0')
		return fail(failure, -ENODATA,
			    "%s: the server offers no dirty bitmap \"%s\", nor any other; QEMU has to export it",
			    nbd->base.info.name, bitmap);
	return fail(failure, -ENODATA, "%s: the server offers no dirty bitmap \"%s\"; it has: %s", nbd->base.info.name,
		    bitmap, text);
}

static int choose_contexts(struct nbd_source *nbd, const char *bitmap, struct failure *failure)
{
	if (bitmap != NULL && !list_has(source_dirty_bitmaps(&nbd->base), bitmap))
		return fail_no_bitmap(nbd, bitmap, failure);
	if (bitmap != NULL && asprintf(&nbd->dirty_context, "%s%s", bitmap_prefix, bitmap) < 0) {
		nbd->dirty_context = NULL;
		return fail_no_memory(nbd, failure);
	}
	if (libnbd->add_meta_context(nbd->handle, allocation_context) < 0 ||
	    (bitmap != NULL && libnbd->add_meta_context(nbd->handle, nbd->dirty_context) < 0))
		return fail(failure, last_errno(-EINVAL), "%s: %s", nbd->base.info.name, last_error());
	return 0;
}

/* The server refuses the export; its list of exports, if it gives one, is the most useful hint. */
static int fail_refused_export(struct nbd_source *nbd, int error, double deadline_seconds, struct failure *failure)
{
	AUTO_FREE char *names = NULL;
	AUTO_FREE char *why = strdup(last_error()); /* before another call */
	AUTO_FREE char *export_name = libnbd->get_export_name(nbd->handle);
	nbd_list_callback callback = {.callback = take_export, .user_data = nbd};
	nbd_completion_callback completion = {.callback = complete_option, .user_data = nbd};
	struct option_answer *answer = begin_option(nbd);

	if (why == NULL || export_name == NULL)
		return fail_no_memory(nbd, failure);
	if (nbd->is_lost)
		return fail_lost(nbd, failure);
	if (error != -ENOENT)
		return fail(failure, error, "%s: the server refuses export \"%s\": %s", nbd->base.info.name,
			    export_name, strncmp(why, "handshake: ", 11) == 0 ? why + 11 : why);
	if (libnbd->aio_is_negotiating(nbd->handle) == 1 &&
	    libnbd->aio_opt_list(nbd->handle, callback, completion) >= 0)
		(void)wait_until(nbd, &answer->is_done, deadline_seconds); /* without a list the message is shorter */
	names = join_names(answer, ", ");
	if (names == NULL || names[0] == '\0')
		return fail(failure, error, "%s: the server has no export \"%s\"; check the URI", nbd->base.info.name,
			    export_name);
	return fail(failure, error, "%s: the server has no export \"%s\"; it has: %s", nbd->base.info.name, export_name,
		    names);
}

static int negotiate(struct nbd_source *nbd, const char *bitmap, double deadline_seconds, struct failure *failure)
{
	nbd_completion_callback completion = {.callback = complete_option, .user_data = nbd};
	struct option_answer *answer;
	int error = list_bitmaps(nbd, deadline_seconds, failure);

	if (error < 0)
		return error;
	error = choose_contexts(nbd, bitmap, failure);
	if (error < 0)
		return error;
	answer = begin_option(nbd);
	if (libnbd->aio_opt_go(nbd->handle, completion) < 0)
		return fail(failure, last_errno(-EPROTO), "%s: %s", nbd->base.info.name, last_error());
	if (!wait_until(nbd, &answer->is_done, deadline_seconds))
		return fail_lost(nbd, failure);
	if (answer->error < 0)
		return fail_refused_export(nbd, answer->error, deadline_seconds, failure);
	return 0;
}

/* A peer that vanished without a word is noticed within about a minute, idle or not. Fails on Unix sockets, where the
 * kernel tells at once. */
static void watch_peer(struct nbd_source *nbd)
{
	int fd = libnbd->aio_get_fd(nbd->handle);
	const int on = 1;
	const int idle_seconds = 30;
	const int interval_seconds = 10;
	const int probes = 3;
	const unsigned unacknowledged_ms = 60000;

	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_seconds, sizeof(idle_seconds));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_seconds, sizeof(interval_seconds));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacknowledged_ms, sizeof(unacknowledged_ms));
}

static int configure(struct nbd_source *nbd, struct failure *failure)
{
	const uint32_t transports = LIBNBD_ALLOW_TRANSPORT_TCP | LIBNBD_ALLOW_TRANSPORT_UNIX;
	int error;

	error = libnbd_load(failure);
	if (error < 0)
		return error;
	nbd->handle = libnbd->create();
	if (nbd->handle == NULL)
		return fail(failure, last_errno(-ENOMEM), "%s: %s", nbd->base.info.name, last_error());
	/*
	 * Files with certificates and keys may be named: the URI is the administrator's own. The last block of a size
	 * that is no multiple of the server's block size is asked for nevertheless, so libnbd must not refuse that by
	 * itself.
	 */
	if (libnbd->set_uri_allow_transports(nbd->handle, transports) < 0 ||
	    libnbd->set_uri_allow_tls(nbd->handle, LIBNBD_TLS_ALLOW) < 0 ||
	    libnbd->set_uri_allow_local_file(nbd->handle, true) < 0 || libnbd->set_opt_mode(nbd->handle, true) < 0 ||
	    libnbd->set_strict_mode(nbd->handle, LIBNBD_STRICT_MASK & ~LIBNBD_STRICT_ALIGN) < 0)
		return fail(failure, last_errno(-EINVAL), "%s: %s", nbd->base.info.name, last_error());
	return 0;
}

static int fail_connect(struct nbd_source *nbd, int error, const char *why, struct failure *failure)
{
	switch (-error) {
	case ECONNREFUSED:
	case ENOENT:
		return fail(failure, error, "%s: can't connect: %s; is an NBD server listening there?",
			    nbd->base.info.name, strerrordesc_np(-error));
	case EACCES:
		return fail(failure, error, "%s: can't connect: permission denied; run as root, or as a user who may",
			    nbd->base.info.name);
	default:
		return fail(failure, error, "%s: can't connect: %s", nbd->base.info.name, why);
	}
}

static int connect_to(struct nbd_source *nbd, const char *uri, double deadline_seconds, struct failure *failure)
{
	if (libnbd->aio_connect_uri(nbd->handle, uri) < 0)
		return fail_connect(nbd, last_errno(-EINVAL), last_error(), failure);
	while (libnbd->aio_is_negotiating(nbd->handle) != 1 && libnbd->aio_is_ready(nbd->handle) != 1) {
		double left_seconds = deadline_seconds - units_monotonic_seconds();
		int error;

		if (left_seconds <= 0)
			return fail_connect(nbd, -ETIMEDOUT, "no answer within 30 seconds", failure);
		turn(nbd, (int)(left_seconds * 1000) + 1);
		error = nbd->is_lost ? last_errno(-ECONNRESET) : 0;
		if (nbd->is_lost)
			return fail_connect(nbd, error, nbd->why_lost, failure);
	}
	watch_peer(nbd);
	return 0;
}

/* ------------------------------------------------- what the server says of itself */

/* 0: the server doesn't say. */
static uint64_t get_block_size(const struct nbd_source *nbd, int which)
{
	int64_t bytes = libnbd->get_block_size(nbd->handle, which);

	return bytes > 0 ? (uint64_t)bytes : 0;
}

static int check_block_sizes(struct nbd_source *nbd, struct failure *failure)
{
	uint64_t minimum_bytes = get_block_size(nbd, LIBNBD_SIZE_MINIMUM);
	uint64_t maximum_bytes = get_block_size(nbd, LIBNBD_SIZE_MAXIMUM);

	if (minimum_bytes == 0)
		minimum_bytes = 512; /* what the protocol lets a client assume, and all servers take */
	if (maximum_bytes == 0 || maximum_bytes > MOST_PAYLOAD_BYTES)
		maximum_bytes = MOST_PAYLOAD_BYTES;
	if ((minimum_bytes & (minimum_bytes - 1)) != 0 || minimum_bytes > MOST_BLOCK_BYTES)
		return fail(failure, -EPROTO,
			    "%s: the server gives a minimum block size of %" PRIu64 ", which can't be",
			    nbd->base.info.name, minimum_bytes);
	if (maximum_bytes < minimum_bytes)
		return fail(failure, -EPROTO,
			    "%s: the server takes at least %" PRIu64 " and at most %" PRIu64 " bytes, which can't be",
			    nbd->base.info.name, minimum_bytes, maximum_bytes);
	nbd->minimum_bytes = minimum_bytes;
	nbd->maximum_bytes = maximum_bytes & ~(minimum_bytes - 1);
	return 0;
}

static int look_at_export(struct nbd_source *nbd, struct failure *failure)
{
	struct source_info *info = &nbd->base.info;
	int64_t size_bytes = libnbd->get_size(nbd->handle);
	int error;

	if (size_bytes < 0) /* an error, or a size of 2^63 and more that became negative */
		return fail(failure, -EFBIG, "%s: the server gives no size, or one of 8 EiB or more", info->name);
	if (size_bytes == 0)
		return fail(failure, -EINVAL, "%s: the export is empty; there is nothing to read", info->name);
	info->size_bytes = (uint64_t)size_bytes;
	error = check_block_sizes(nbd, failure);
	if (error < 0)
		return error;
	info->kind = SOURCE_NBD;
	info->sector_bytes = nbd->minimum_bytes == 4096 ? 4096 : 512;
	info->align_bytes = (uint32_t)nbd->minimum_bytes;
	if (info->align_bytes < 512)
		info->align_bytes = 512;
	if (info->align_bytes > BUFFER_ALIGN_BYTES)
		info->align_bytes = BUFFER_ALIGN_BYTES;
	info->most_in_flight = NBD_MOST_IN_FLIGHT;
	info->is_read_only = libnbd->is_read_only(nbd->handle) == 1;
	/*
	 * In one piece where the server can: qemu-nbd (7.2) answers a sector that can't be read with an error then, and
	 * otherwise by dropping the connection. Holes have been asked for anyhow.
	 */
	nbd->wants_one_piece = libnbd->can_df(nbd->handle) == 1;
	nbd->base.grain_bytes = nbd->minimum_bytes < 512 ? 512 : (uint32_t)nbd->minimum_bytes;
	nbd->has_map[MAP_ALLOCATION] = libnbd->can_meta_context(nbd->handle, allocation_context) == 1;
	nbd->has_map[MAP_DIRTY] =
		nbd->dirty_context != NULL && libnbd->can_meta_context(nbd->handle, nbd->dirty_context) == 1;
	if (nbd->dirty_context != NULL && !nbd->has_map[MAP_DIRTY])
		return fail_no_bitmap(nbd, nbd->dirty_context + sizeof(bitmap_prefix) - 1, failure);
	return 0;
}

/* ------------------------------------------------------------------ closing */

/* Servers log it when a client just hangs up. */
static void say_goodbye(struct nbd_source *nbd)
{
	double deadline_seconds = units_monotonic_seconds() + GOODBYE_MS / 1000.0;
	int error = -1;

	if (nbd->is_lost || nbd->commands > 0)
		return;
	if (libnbd->aio_is_ready(nbd->handle) == 1)
		error = libnbd->aio_disconnect(nbd->handle, 0);
	else if (libnbd->aio_is_negotiating(nbd->handle) == 1)
		error = libnbd->aio_opt_abort(nbd->handle);
	while (error == 0 && !nbd->is_lost && libnbd->aio_is_closed(nbd->handle) == 0 &&
	       units_monotonic_seconds() < deadline_seconds)
		turn(nbd, GOODBYE_MS);
}

static void nbd_source_close(struct source *source)
{
	struct nbd_source *nbd = nbd_of(source);

	if (nbd->handle != NULL) {
		say_goodbye(nbd);
		libnbd->close(nbd->handle); /* after this nobody writes into a buffer any more */
	}
	for (unsigned i = 0; i < MOST_JOBS; i++)
		free(nbd->jobs[i].bounce);
	for (unsigned i = 0; i < MAPS; i++)
		free(nbd->maps[i].entries);
	(void)begin_option(nbd); /* frees the names */
	free(nbd->dirty_context);
	free(nbd);
}

static const struct source_ops nbd_ops = {
	.close = nbd_source_close,
	.submit = nbd_submit,
	.reap = nbd_reap,
	.drop = nbd_drop,
	.forget_maps = nbd_forget_maps,
	.read = nbd_read,
	.extent_at = nbd_extent_at,
	.dirty_at = nbd_dirty_at,
	.in_use = nbd_in_use,
	.range_mounted = nbd_range_mounted,
	.change_stamp = nbd_change_stamp,
	.current_size = nbd_current_size,
};

static int open_nbd(struct nbd_source *nbd, const char *uri, const struct source_options *options,
		    struct failure *failure)
{
	double deadline_seconds = units_monotonic_seconds() + CONNECT_SECONDS;
	int error = configure(nbd, failure);

	if (error < 0)
		return error;
	error = connect_to(nbd, uri, deadline_seconds, failure);
	if (error < 0)
		return error;
	/* A server of the oldest kind doesn't negotiate: it has one export, and no contexts. */
	if (libnbd->aio_is_negotiating(nbd->handle) == 1)
		error = negotiate(nbd, options->dirty_bitmap, deadline_seconds, failure);
	else if (options->dirty_bitmap != NULL)
		error = fail_no_bitmap(nbd, options->dirty_bitmap, failure);
	if (error < 0)
		return error;
	return look_at_export(nbd, failure);
}

int source_nbd_open(const char *uri, const struct source_options *options, struct source **ret_source,
		    struct failure *failure)
{
	struct nbd_source *nbd;
	int error = source_nbd_check_uri(uri, failure);

	if (error < 0)
		return error;
	nbd = calloc(1, sizeof(*nbd));
	if (nbd == NULL)
		return fail(failure, -ENOMEM, "NBD source: out of memory");
	nbd->base.ops = &nbd_ops;
	nbd->base.notices = options->notices;
	nbd->base.info.name = source_nbd_public_name(uri);
	if (nbd->base.info.name == NULL || asprintf(&nbd->base.info.identity, "nbd:%s", nbd->base.info.name) < 0) {
		nbd->base.info.identity = NULL;
		error = fail(failure, -ENOMEM, "NBD source: out of memory");
	} else {
		error = open_nbd(nbd, uri, options, failure);
	}
	if (error < 0) {
		source_close(&nbd->base);
		return error;
	}
	*ret_source = &nbd->base;
	return 0;
}
