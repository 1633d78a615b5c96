/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verify: is an image what a source is?
 *
 * A source belongs to one thread, so the calling one walks the plan, submits reads and takes them back; workers read
 * chunks of the image and compare. What goes between them is a `unit`: the pieces of one window of the disk that are to
 * be compared, with one read for all of them and the names of the image's chunks there. Windows are aligned in the
 * image, so a chunk belongs to one window; pieces that are far apart get units of their own, so that little is read for
 * nothing.
 *
 *     free list --calling thread: plan, submit, reap--> work list --workers: read chunks, compare--> free list
 *
 * Units are all the memory there is: UNITS_MOST windows, 32 MiB, and a chunk for each worker.
 *
 * Both sides' bytes are here, so the bytes are compared and not digests of them: it is more certain and five times as
 * fast. On the image's side the SHA-256 of each chunk is recomputed on the way (`deep`), so that what was compared is
 * what the chunk is named by, and holds for everybody who reads that image later.
 *
 * Nothing counts as equal that was not looked at: a read that fails is tried again piece by piece, and what stays
 * unreadable is a failure. A hole of the source is zeros on the word of the source, as for a round; where neither side
 * has anything, whole ranges are passed at once.
 *
 * Positions. `disk` positions are those of the image; `source` positions are less by the partition's start. Differences
 * are reported in the latter, on the source's sectors.
 */
#include "syncer/verify.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/crew.h"
#include "syncer/map_cursor.h"
#include "syncer/meter.h"
#include "syncer/plan.h"
#include "syncer/report.h"
#include "syncer/source.h"
#include "syncer/source_view.h"

enum {
	WINDOW_BYTES = 1 << 20, /* a multiple of every chunk size */
	ALIGN_MOST_BYTES = 4096,
	BUFFER_BYTES = WINDOW_BYTES + 2 * ALIGN_MOST_BYTES,
	FAR_BYTES = 128 << 10, /* a gap that is not worth reading */
	UNIT_PIECES = 128,
	UNIT_CHUNKS = WINDOW_BYTES / STORE_CHUNK_LEAST_BYTES,
	UNITS_MOST = 32,
	IN_FLIGHT_MOST = 16,
	MOST_WORKERS = 8,
	SHORTEST_WAIT_US = 50, /* for a read to finish */
	LONGEST_WAIT_US = 2000,
};

_Static_assert((int)WINDOW_BYTES >= (int)STORE_CHUNK_MOST_BYTES, "a chunk lies in one window");

/* Positions on the disk. */
struct piece {
	uint64_t off_bytes;
	uint32_t len_bytes;
	bool is_hole;
};

struct unit {
	struct unit *next; /* in the free list or the work list */
	struct source_request request;
	uint8_t *buffer; /* BUFFER_BYTES, aligned */
	bool has_read;
	unsigned piece_count;
	struct piece pieces[UNIT_PIECES];
	uint64_t window_bytes; /* where the window starts, on the disk */
	store_chunk chunks[UNIT_CHUNKS];
};

struct unit_list {
	struct unit *first;
	struct unit **end; /* where the next one is put */
};

struct comparison;

struct worker {
	struct comparison *comparison;
	struct store_scratch *scratch;
	struct read_pace pace;
	uint8_t *chunk;
	uint64_t compared_bytes; /* of the unit at hand */
	uint64_t run_off_bytes;	 /* a difference that may go on, on the source */
	uint64_t run_len_bytes;	 /* 0: none */
};

struct comparison {
	const struct operation *operation;
	struct store_view *view;
	struct source *source;
	const struct source_info *info;
	struct plan *plan;
	uint64_t first_bytes;  /* where the source's start is on the disk */
	uint64_t common_bytes; /* what both have, from there on */
	uint32_t chunk_bytes;
	struct meter meter;

	/* the calling thread's */
	struct map_cursor cursor;
	struct plan_range range; /* what is left of the range at hand; len 0: none; on the source */
	uint64_t at_bytes;	 /* the walk over the plan, on the source */
	uint64_t left_out_bytes;
	unsigned in_flight;
	unsigned most_in_flight;

	struct unit *units;
	unsigned unit_count;
	struct worker workers[MOST_WORKERS];
	unsigned worker_count;
	struct crew crew;

	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t work_came;
	pthread_cond_t unit_freed;
	struct unit_list free_units;
	struct unit_list work;
	unsigned units_out; /* with workers, or on the work list */
	bool is_ending;	    /* no more work will come */
	bool is_failed;
	int error;
	struct failure failure;
	struct range_list differences;
};

/* -------------------------------------------------------------------- lists */

static void list_init(struct unit_list *list)
{
	list->first = NULL;
	list->end = &list->first;
}

static void list_put(struct unit_list *list, struct unit *unit)
{
	unit->next = NULL;
	*list->end = unit;
	list->end = &unit->next;
}

static struct unit *list_take(struct unit_list *list)
{
	struct unit *unit = list->first;

	if (unit == NULL)
		return NULL;
	list->first = unit->next;
	if (list->first == NULL)
		list->end = &list->first;
	return unit;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void fail_comparison(struct comparison *comparison, int error, const struct failure *cause)
{
	WITH_LOCK(&comparison->lock);
	if (comparison->is_failed)
		return;
	comparison->is_failed = true;
	comparison->error = error;
	comparison->failure = *cause;
	(void)pthread_cond_broadcast(&comparison->work_came);
	(void)pthread_cond_broadcast(&comparison->unit_freed);
}

/* ------------------------------------------------------------------ workers */

/* Writes down the difference that was found last. */
static int flush_run(struct worker *worker, struct failure *failure)
{
	int error = 0;

	if (worker->run_len_bytes > 0) {
		WITH_LOCK(&worker->comparison->lock);
		error = range_list_add(&worker->comparison->differences, worker->run_off_bytes, worker->run_len_bytes,
				       failure);
	}
	worker->run_len_bytes = 0;
	return error;
}

static int note_difference(struct worker *worker, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure)
{
	int error;

	if (worker->run_len_bytes > 0 && worker->run_off_bytes + worker->run_len_bytes == off_bytes) {
		worker->run_len_bytes += len_bytes;
		return 0;
	}
	error = flush_run(worker, failure);
	worker->run_off_bytes = off_bytes;
	worker->run_len_bytes = len_bytes;
	return error;
}

/* NULL stands for zeros. */
static bool are_equal(const uint8_t *ours, const uint8_t *theirs, size_t len_bytes)
{
	if (ours == NULL && theirs == NULL)
		return true;
	if (ours == NULL || theirs == NULL)
		return bytes_are_zero(ours != NULL ? ours : theirs, len_bytes);
	return memcmp(ours, theirs, len_bytes) == 0;
}

/* Two ranges that are known to differ somewhere: in which sectors of the source? */
static int narrow_down(struct worker *worker, const uint8_t *ours, const uint8_t *theirs, uint64_t len_bytes,
		       uint64_t source_off_bytes, struct failure *failure)
{
	uint32_t sector_bytes = worker->comparison->info->sector_bytes;
	uint64_t done_bytes = 0;

	while (done_bytes < len_bytes) {
		uint64_t at_bytes = source_off_bytes + done_bytes;
		size_t piece_bytes = (size_t)smaller(sector_bytes - at_bytes % sector_bytes, len_bytes - done_bytes);
		bool is_equal = are_equal(ours == NULL ? NULL : ours + done_bytes,
					  theirs == NULL ? NULL : theirs + done_bytes, piece_bytes);
		int error = is_equal ? 0 : note_difference(worker, at_bytes, piece_bytes, failure);

		if (error < 0)
			return error;
		done_bytes += piece_bytes;
	}
	return 0;
}

/* One piece against the chunk of the image that is in worker->chunk (`theirs` NULL: zeros there), as far as it reaches.
 */
static int compare_in_chunk(struct worker *worker, const struct unit *unit, const struct piece *piece,
			    const uint8_t *theirs, uint64_t chunk_off_bytes, struct failure *failure)
{
	const struct comparison *comparison = worker->comparison;
	uint64_t chunk_end_bytes = chunk_off_bytes + comparison->chunk_bytes;
	uint64_t from_bytes = piece->off_bytes > chunk_off_bytes ? piece->off_bytes : chunk_off_bytes;
	uint64_t to_bytes = smaller(piece->off_bytes + piece->len_bytes, chunk_end_bytes);
	uint64_t source_off_bytes = from_bytes - comparison->first_bytes;
	const uint8_t *ours = NULL;

	if (from_bytes >= to_bytes)
		return 0;
	worker->compared_bytes += to_bytes - from_bytes;
	if (!piece->is_hole)
		ours = unit->buffer + (source_off_bytes - unit->request.off_bytes);
	if (theirs != NULL)
		theirs += from_bytes - chunk_off_bytes;
	if (are_equal(ours, theirs, (size_t)(to_bytes - from_bytes)))
		return 0;
	return narrow_down(worker, ours, theirs, to_bytes - from_bytes, source_off_bytes, failure);
}

static bool lies_in(const struct piece *piece, uint64_t off_bytes, uint64_t len_bytes)
{
	return piece->off_bytes < off_bytes + len_bytes && off_bytes < piece->off_bytes + piece->len_bytes;
}

/* Chunk `number` of the window: reads it once if any piece lies in it. `first` is the first piece that may; moved on.
 */
static int compare_chunk(struct worker *worker, const struct unit *unit, unsigned number, unsigned *first,
			 struct failure *failure)
{
	const struct comparison *comparison = worker->comparison;
	uint64_t chunk_off_bytes = unit->window_bytes + (uint64_t)number * comparison->chunk_bytes;
	const uint8_t *theirs = NULL;
	unsigned at = *first;
	int error = 0;

	if (!lies_in(&unit->pieces[at], chunk_off_bytes, comparison->chunk_bytes))
		return 0;
	if (unit->chunks[number] != 0) {
		error = map_cursor_read(&comparison->cursor, worker->scratch, unit->chunks[number],
					chunk_off_bytes / comparison->chunk_bytes, true, worker->chunk, failure);
		theirs = worker->chunk;
	}
	for (; error == 0 && at < unit->piece_count; at++) {
		const struct piece *piece = &unit->pieces[at];

		error = compare_in_chunk(worker, unit, piece, theirs, chunk_off_bytes, failure);
		if (piece->off_bytes + piece->len_bytes > chunk_off_bytes + comparison->chunk_bytes)
			break; /* goes on in the next chunk */
	}
	*first = at;
	return error;
}

static int compare_unit(struct worker *worker, const struct unit *unit, struct failure *failure)
{
	unsigned chunk_count = WINDOW_BYTES / worker->comparison->chunk_bytes;
	unsigned first = 0;
	int error = 0;

	worker->compared_bytes = 0;
	read_pace_begin(&worker->pace, worker->comparison->view, unit->chunks, chunk_count);
	for (unsigned i = 0; i < chunk_count && first < unit->piece_count && error == 0; i++)
		error = compare_chunk(worker, unit, i, &first, failure);
	read_pace_end(&worker->pace, worker->compared_bytes);
	return error < 0 ? error : flush_run(worker, failure);
}

static struct unit *take_work(struct comparison *comparison)
{
	WITH_LOCK(&comparison->lock);
	while (!comparison->is_failed && comparison->work.first == NULL && !comparison->is_ending)
		(void)pthread_cond_wait(&comparison->work_came, &comparison->lock);
	return comparison->is_failed ? NULL : list_take(&comparison->work);
}

static void give_back(struct comparison *comparison, struct unit *unit)
{
	WITH_LOCK(&comparison->lock);
	list_put(&comparison->free_units, unit);
	comparison->units_out--;
	(void)pthread_cond_signal(&comparison->unit_freed);
}

static void *run_worker(void *opaque)
{
	struct worker *worker = opaque;
	struct comparison *comparison = worker->comparison;
	struct failure failure = {.code = 0};
	struct unit *unit;

	while ((unit = take_work(comparison)) != NULL) {
		int error = compare_unit(worker, unit, &failure);

		if (error < 0) {
			fail_comparison(comparison, error, &failure);
			break;
		}
		meter_add(&comparison->meter.done_bytes, worker->compared_bytes);
		give_back(comparison, unit);
	}
	return NULL;
}

/* ----------------------------------------------------------------- the walk */

/* Moves on within the range at hand. */
static void consume(struct comparison *comparison, uint64_t len_bytes)
{
	comparison->range.off_bytes += len_bytes;
	comparison->range.len_bytes -= len_bytes;
	comparison->at_bytes += len_bytes;
}

/* Where the source has a hole and the image nothing, nothing has to be done. Consumes that, up to the first chunk. */
static int pass_empty(struct comparison *comparison, struct failure *failure)
{
	uint64_t disk_bytes = comparison->first_bytes + comparison->at_bytes;
	uint64_t end_bytes = disk_bytes + comparison->range.len_bytes;
	uint64_t index = disk_bytes / comparison->chunk_bytes;
	uint64_t end_index = (end_bytes - 1) / comparison->chunk_bytes + 1;
	uint64_t next = index;
	uint64_t passed_bytes;
	int error = map_cursor_next(&comparison->cursor, index, end_index, &next, failure);

	if (error < 0 || next == index)
		return error;
	passed_bytes = smaller(next < end_index ? next * comparison->chunk_bytes : end_bytes, end_bytes) - disk_bytes;
	meter_add(&comparison->meter.done_bytes, passed_bytes);
	consume(comparison, passed_bytes);
	return 0;
}

static void leave_out(struct comparison *comparison)
{
	uint64_t len_bytes = comparison->range.len_bytes;

	comparison->left_out_bytes += len_bytes;
	atomic_fetch_sub_explicit(&comparison->meter.total_bytes, len_bytes, memory_order_relaxed);
	consume(comparison, len_bytes);
}

/* The next range that has to be looked at, in comparison->range. Its length is 0 at the end. -EINTR when stopped. */
static int find_range(struct comparison *comparison, struct failure *failure)
{
	struct plan_range *range = &comparison->range;
	int error = 0;

	while (error == 0) {
		if (operation_is_stopped(comparison->operation))
			return -EINTR;
		if (range->len_bytes == 0 && comparison->at_bytes == comparison->common_bytes)
			return 0;
		if (range->len_bytes == 0) {
			error = plan_next(comparison->plan, comparison->at_bytes, range, failure);
			if (error < 0)
				return error;
			assert(range->off_bytes == comparison->at_bytes && range->len_bytes > 0);
			range->len_bytes = smaller(range->len_bytes, comparison->common_bytes - comparison->at_bytes);
		}
		if (range->kind == PLAN_READ)
			return 0;
		if (range->kind == PLAN_LEFT_OUT)
			leave_out(comparison);
		else
			error = pass_empty(comparison, failure);
		if (range->len_bytes > 0)
			return error; /* a hole where the image has something */
	}
	return error;
}

/* Can the range at hand go on with this unit? */
static bool belongs(const struct unit *unit, uint64_t disk_bytes, bool is_hole, uint64_t read_end_bytes)
{
	if (unit->piece_count == 0)
		return true;
	if (unit->piece_count == UNIT_PIECES || disk_bytes - unit->window_bytes >= WINDOW_BYTES)
		return false;
	return is_hole || !unit->has_read || disk_bytes - read_end_bytes < FAR_BYTES;
}

static void add_piece(struct unit *unit, uint64_t disk_bytes, uint32_t len_bytes, bool is_hole)
{
	struct piece *last = unit->piece_count > 0 ? &unit->pieces[unit->piece_count - 1] : NULL;

	if (last != NULL && last->is_hole == is_hole && last->off_bytes + last->len_bytes == disk_bytes)
		last->len_bytes += len_bytes;
	else
		unit->pieces[unit->piece_count++] =
			(struct piece){.off_bytes = disk_bytes, .len_bytes = len_bytes, .is_hole = is_hole};
}

/* Gathers pieces. The unit has none at the end of the walk. */
static int gather_pieces(struct comparison *comparison, struct unit *unit, uint64_t *ret_read_off_bytes,
			 uint64_t *ret_read_end_bytes, struct failure *failure)
{
	uint64_t read_end_bytes = 0;

	unit->piece_count = 0;
	unit->has_read = false;
	for (;;) {
		bool is_hole;
		uint64_t disk_bytes, len_bytes;
		int error = find_range(comparison, failure);

		if (error < 0)
			return error;
		is_hole = comparison->range.kind == PLAN_HOLE;
		disk_bytes = comparison->first_bytes + comparison->at_bytes;
		if (comparison->range.len_bytes == 0 || !belongs(unit, disk_bytes, is_hole, read_end_bytes))
			break;
		if (unit->piece_count == 0)
			unit->window_bytes = disk_bytes / WINDOW_BYTES * WINDOW_BYTES;
		len_bytes = smaller(comparison->range.len_bytes, unit->window_bytes + WINDOW_BYTES - disk_bytes);
		add_piece(unit, disk_bytes, (uint32_t)len_bytes, is_hole);
		if (!is_hole) {
			if (!unit->has_read)
				*ret_read_off_bytes = disk_bytes;
			unit->has_read = true;
			read_end_bytes = disk_bytes + len_bytes;
		}
		consume(comparison, len_bytes);
	}
	*ret_read_end_bytes = read_end_bytes;
	return 0;
}

/* What the image has in the window. */
static int look_up_chunks(struct comparison *comparison, struct unit *unit, struct failure *failure)
{
	uint64_t disk_chunks = (comparison->cursor.size_bytes - 1) / comparison->chunk_bytes + 1;
	uint64_t first = unit->window_bytes / comparison->chunk_bytes;
	unsigned chunk_count = WINDOW_BYTES / comparison->chunk_bytes;

	memset(unit->chunks, 0, sizeof(unit->chunks));
	for (unsigned i = 0; i < chunk_count && first + i < disk_chunks; i++) {
		uint64_t chunk_off_bytes = (first + i) * comparison->chunk_bytes;
		const struct piece *last = &unit->pieces[unit->piece_count - 1];
		int error;

		if (chunk_off_bytes + comparison->chunk_bytes <= unit->pieces[0].off_bytes)
			continue;
		if (chunk_off_bytes >= last->off_bytes + last->len_bytes)
			break;
		error = map_cursor_get(&comparison->cursor, first + i, &unit->chunks[i], failure);
		if (error < 0)
			return error;
	}
	return 0;
}

static int fill_unit(struct comparison *comparison, struct unit *unit, struct failure *failure)
{
	uint64_t align_bytes = comparison->info->align_bytes;
	uint64_t read_off_bytes = 0, read_end_bytes = 0;
	int error = gather_pieces(comparison, unit, &read_off_bytes, &read_end_bytes, failure);

	if (error < 0 || unit->piece_count == 0)
		return error;
	if (unit->has_read) {
		read_off_bytes = (read_off_bytes - comparison->first_bytes) / align_bytes * align_bytes;
		read_end_bytes =
			(read_end_bytes - comparison->first_bytes + align_bytes - 1) / align_bytes * align_bytes;
		read_end_bytes = smaller(read_end_bytes, comparison->info->size_bytes);
		assert(read_end_bytes - read_off_bytes <= BUFFER_BYTES);
		unit->request = (struct source_request){.off_bytes = read_off_bytes,
							.len_bytes = (uint32_t)(read_end_bytes - read_off_bytes),
							.buffer = unit->buffer,
							.opaque = unit};
	}
	return look_up_chunks(comparison, unit, failure);
}

/* -------------------------------------------------- reading from the source */

struct bad_spot {
	uint64_t off_bytes;
	uint64_t len_bytes; /* 0: none */
};

static void note_bad_spot(void *opaque, uint64_t off_bytes, uint64_t len_bytes)
{
	struct bad_spot *spot = opaque;

	if (spot->len_bytes == 0)
		*spot = (struct bad_spot){.off_bytes = off_bytes, .len_bytes = len_bytes};
}

/* A read for several pieces failed: perhaps in between, perhaps only this once. */
static int read_again(struct comparison *comparison, struct unit *unit, struct failure *failure)
{
	for (unsigned i = 0; i < unit->piece_count; i++) {
		const struct piece *piece = &unit->pieces[i];
		uint64_t off_bytes = piece->off_bytes - comparison->first_bytes;
		struct bad_spot spot = {.len_bytes = 0};
		struct failure cause = {.code = 0};
		int error;

		if (piece->is_hole)
			continue;
		error = source_read_salvaging(comparison->source, unit->buffer + (off_bytes - unit->request.off_bytes),
					      piece->len_bytes, off_bytes, comparison->operation->stop, note_bad_spot,
					      &spot, &cause);
		if (error == -ECANCELED)
			return -EINTR;
		if (error < 0) {
			(void)fail_from(failure, &cause);
			return error;
		}
		if (spot.len_bytes > 0)
			return fail(failure, -EIO,
				    "%s: can't be read: %" PRIu64 " bytes at %" PRIu64
				    "; whether it is equal can't be told",
				    comparison->info->name, spot.len_bytes, spot.off_bytes);
	}
	return 0;
}

static void hand_over(struct comparison *comparison, struct unit *unit)
{
	WITH_LOCK(&comparison->lock);
	list_put(&comparison->work, unit);
	comparison->units_out++;
	(void)pthread_cond_signal(&comparison->work_came);
}

static struct unit *take_free_unit(struct comparison *comparison)
{
	WITH_LOCK(&comparison->lock);
	return list_take(&comparison->free_units);
}

/* Puts as many reads in flight as there may be. *ret_is_at_end: the walk is over. */
static int submit_units(struct comparison *comparison, bool *ret_is_at_end, struct failure *failure)
{
	while (!*ret_is_at_end && comparison->in_flight < comparison->most_in_flight) {
		struct unit *unit = take_free_unit(comparison);
		int error;

		if (unit == NULL)
			return 0;
		error = fill_unit(comparison, unit, failure);
		if (error == 0 && unit->piece_count > 0 && unit->has_read)
			error = source_submit(comparison->source, &unit->request, failure);
		if (error < 0)
			return error;
		if (unit->piece_count == 0)
			*ret_is_at_end = true; /* the unit isn't needed any more */
		else if (unit->has_read)
			comparison->in_flight++;
		else
			hand_over(comparison, unit);
	}
	return 0;
}

/* One finished read to the workers. *ret_is_idle: there was none. */
static int reap_unit(struct comparison *comparison, bool *ret_is_idle, struct failure *failure)
{
	struct source_request *request = source_reap(comparison->source, false);
	struct unit *unit;
	int error = 0;

	*ret_is_idle = request == NULL;
	if (request == NULL)
		return 0;
	comparison->in_flight--;
	unit = request->opaque;
	if (request->result < 0)
		error = read_again(comparison, unit, failure);
	if (error == 0)
		hand_over(comparison, unit);
	return error;
}

/* Until a unit comes back from the workers, or for a moment. */
static void wait_a_moment(struct comparison *comparison, long wait_us)
{
	struct timespec until = units_time_from_now(CLOCK_MONOTONIC, wait_us * 1000);
	WITH_LOCK(&comparison->lock);
	if (!comparison->is_failed)
		(void)pthread_cond_timedwait(&comparison->unit_freed, &comparison->lock, &until);
}

static bool is_waiting_for_workers(struct comparison *comparison)
{
	WITH_LOCK(&comparison->lock);
	return !comparison->is_failed && comparison->units_out > 0;
}

static bool has_failed(struct comparison *comparison)
{
	WITH_LOCK(&comparison->lock);
	return comparison->is_failed;
}

/*
 * The calling thread's part. Looks whether a read has finished instead of waiting for one: a server that doesn't answer
 * any more must not keep a stop from being obeyed. The waits begin short, and with several reads in flight none is
 * missed for long.
 */
static int feed(struct comparison *comparison, struct failure *failure)
{
	long wait_us = SHORTEST_WAIT_US;
	bool is_at_end = false;

	while (!has_failed(comparison)) {
		bool is_idle = true;
		int error;

		if (operation_is_stopped(comparison->operation))
			return -EINTR;
		error = submit_units(comparison, &is_at_end, failure);
		if (error == 0)
			error = reap_unit(comparison, &is_idle, failure);
		if (error < 0)
			return error;
		if (is_at_end && comparison->in_flight == 0 && !is_waiting_for_workers(comparison))
			return 0;
		if (is_idle)
			wait_a_moment(comparison, wait_us);
		wait_us = is_idle && wait_us * 2 <= LONGEST_WAIT_US ? wait_us * 2 : SHORTEST_WAIT_US;
	}
	return 0; /* the failure is in the comparison */
}

/* ------------------------------------------------------------- from outside */

static struct comparison *make_comparison(const struct operation *operation)
{
	struct comparison *comparison = calloc(1, sizeof(*comparison));
	pthread_condattr_t attributes;

	if (comparison == NULL)
		return NULL;
	comparison->operation = operation;
	list_init(&comparison->free_units);
	list_init(&comparison->work);
	/* none of these can fail on Linux with such arguments */
	(void)pthread_mutex_init(&comparison->lock, NULL);
	(void)pthread_cond_init(&comparison->work_came, NULL);
	(void)pthread_condattr_init(&attributes);
	(void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&comparison->unit_freed, &attributes);
	(void)pthread_condattr_destroy(&attributes);
	return comparison;
}

/* The source is closed before the buffers go away: that ends the reads in flight. */
static void free_comparison(struct comparison **comparison_at)
{
	struct comparison *comparison = *comparison_at;

	if (comparison == NULL)
		return;
	meter_stop(&comparison->meter);
	plan_free(comparison->plan);
	source_close(comparison->source);
	for (unsigned i = 0; i < comparison->unit_count; i++)
		free(comparison->units[i].buffer);
	free(comparison->units);
	for (unsigned i = 0; i < MOST_WORKERS; i++) {
		store_scratch_free(comparison->workers[i].scratch);
		free(comparison->workers[i].chunk);
	}
	range_list_free(&comparison->differences);
	store_view_close(comparison->view);
	(void)pthread_cond_destroy(&comparison->work_came);
	(void)pthread_cond_destroy(&comparison->unit_freed);
	(void)pthread_mutex_destroy(&comparison->lock);
	free(comparison);
}

static int make_units(struct comparison *comparison, struct failure *failure)
{
	unsigned wanted = comparison->most_in_flight + 2 * comparison->worker_count;

	if (wanted > UNITS_MOST)
		wanted = UNITS_MOST;
	comparison->units = calloc(wanted, sizeof(*comparison->units));
	if (comparison->units == NULL)
		return fail(failure, -ENOMEM, "verify: out of memory");
	for (; comparison->unit_count < wanted; comparison->unit_count++) {
		struct unit *unit = &comparison->units[comparison->unit_count];

		if (posix_memalign((void **)&unit->buffer, ALIGN_MOST_BYTES, BUFFER_BYTES) != 0)
			return fail(failure, -ENOMEM, "verify: out of memory");
		list_put(&comparison->free_units, unit);
	}
	return 0;
}

static int make_workers(struct comparison *comparison, struct failure *failure)
{
	comparison->worker_count = crew_cores(MOST_WORKERS);
	for (unsigned i = 0; i < comparison->worker_count; i++) {
		struct worker *worker = &comparison->workers[i];
		int error;

		worker->comparison = comparison;
		worker->chunk = malloc(comparison->chunk_bytes);
		if (worker->chunk == NULL)
			return fail(failure, -ENOMEM, "verify: out of memory");
		error = store_scratch_new(&worker->scratch, failure);
		if (error < 0)
			return error;
	}
	return 0;
}

/* What is compared with what. What only one of them has is a difference. */
static int find_ranges(struct comparison *comparison, const struct store_reference *reference, struct failure *failure)
{
	uint64_t source_bytes = comparison->info->size_bytes;
	uint64_t len_bytes = 0;
	int error = source_view_find_partition(comparison->view, reference->partition, &comparison->first_bytes,
					       &len_bytes, failure);

	if (error < 0)
		return error;
	comparison->common_bytes = smaller(len_bytes, source_bytes);
	if (len_bytes != source_bytes)
		error = range_list_add(&comparison->differences, comparison->common_bytes,
				       (len_bytes > source_bytes ? len_bytes : source_bytes) - comparison->common_bytes,
				       failure);
	return error;
}

static int open_both(struct comparison *comparison, struct store *store, const struct store_reference *reference,
		     bool read_all, struct failure *failure)
{
	const struct operation *operation = comparison->operation;
	const struct plan_options plan_options = {.read_all = read_all, .notices = operation->notices};
	int error = store_view_open(store, reference, VIEW_READ, operation->doing, &comparison->view, failure);

	if (error < 0)
		return error;
	comparison->info = source_get_info(comparison->source);
	comparison->most_in_flight =
		comparison->info->most_in_flight < IN_FLIGHT_MOST ? comparison->info->most_in_flight : IN_FLIGHT_MOST;
	comparison->chunk_bytes = store_chunk_bytes(store);
	map_cursor_init(&comparison->cursor, comparison->view);
	error = find_ranges(comparison, reference, failure);
	if (error == 0)
		error = plan_make(comparison->source, &plan_options, &comparison->plan, failure);
	return error;
}

/* All threads are joined on return, whatever it is. */
static int compare(struct comparison *comparison, struct failure *failure)
{
	struct failure cause = {.code = 0};
	int error = 0;

	for (unsigned i = 0; i < comparison->worker_count && error == 0; i++)
		error = crew_start(&comparison->crew, run_worker, &comparison->workers[i], &cause);
	if (error == 0)
		error = feed(comparison, &cause);
	if (error < 0)
		fail_comparison(comparison, error, &cause);
	(void)pthread_mutex_lock(&comparison->lock);
	comparison->is_ending = true;
	(void)pthread_cond_broadcast(&comparison->work_came);
	(void)pthread_mutex_unlock(&comparison->lock);
	crew_join(&comparison->crew);
	if (!comparison->is_failed)
		return 0;
	(void)fail_from(failure, &comparison->failure);
	return comparison->error;
}

int verify_run(struct store *store, const struct store_reference *reference, const char *source, bool read_all,
	       const struct operation *operation, struct verify_report *ret_report, struct failure *failure)
{
	const struct source_options source_options = {.notices = operation->notices};
	struct source *opened = NULL;
	int error = source_open(source, &source_options, &opened, failure);

	return error < 0 ? error : verify_source(store, reference, opened, read_all, operation, ret_report, failure);
}

int verify_source(struct store *store, const struct store_reference *reference, struct source *source, bool read_all,
		const struct operation *operation, struct verify_report *ret_report, struct failure *failure)
{
	AUTO(free_comparison) struct comparison *comparison = make_comparison(operation);
	double started_at_seconds = units_monotonic_seconds();
	struct verify_report report = {.equal = false};
	int error;

	if (comparison == NULL) {
		source_close(source);
		return fail(failure, -ENOMEM, "verify: out of memory");
	}
	comparison->source = source;
	error = open_both(comparison, store, reference, read_all, failure);
	if (error == 0)
		error = make_workers(comparison, failure);
	if (error == 0)
		error = make_units(comparison, failure);
	if (error == 0)
		error = meter_start_at(&comparison->meter, "verify", operation, comparison->common_bytes, 0, 0, 0,
				       failure);
	if (error == 0)
		error = compare(comparison, failure);
	if (error < 0)
		return error;
	meter_stop(&comparison->meter);
	report.compared_bytes = comparison->meter.done_bytes;
	report.left_out_bytes = comparison->left_out_bytes;
	report.differences = range_list_take(&comparison->differences, &report.difference_count);
	report.equal = report.difference_count == 0;
	report.elapsed_seconds = units_monotonic_seconds() - started_at_seconds;
	*ret_report = report;
	return 0;
}

void verify_report_free(struct verify_report *report)
{
	free(report->differences);
	*report = (struct verify_report){.equal = false};
}
