/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Export: a walk over the map, and workers that turn chunks into bytes.
 *
 * The walk cuts the content into spans: at most SPAN_BYTES of chunks that follow each other without a gap, or what lies
 * between, which is zero and as long as it is. Workers take spans in order, one at a time, under `lock`; reading,
 * checking and decompressing happens outside of it.
 *
 *     file, device   each worker writes its spans itself, at their places. Who comes first doesn't matter.
 *     stream         a span is taken together with the next slot of a ring; a worker fills the slot's buffer, and one
 * writer empties the slots in the order in which they were taken. A worker that finds no free slot waits, so the ring's
 * buffers are all the memory there is, however slow the reader and however uneven the chunks.
 *
 * Memory: MOST_WORKERS * 2 buffers of SPAN_BYTES for a stream, half of it otherwise, and what a scratch takes: below 40
 * MiB. More than eight workers decompress faster than anything that they could be writing to.
 *
 * The first failure stays: it is written down under `lock`, `is_failed` makes everybody else return, and the target is
 * abandoned so that nobody is left in a write. A stop is such a failure, found by the calling thread, which has nothing
 * to do but to look for it. What failed its check is in a worker's buffer then, and goes nowhere.
 */
#include "syncer/export.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/crew.h"
#include "syncer/export_target.h"
#include "syncer/map_cursor.h"
#include "syncer/meter.h"
#include "syncer/report.h"
#include "syncer/source_view.h"

enum {
	MOST_WORKERS = 8,
	SPAN_BYTES = 2 << 20,					/* at least one chunk of any size */
	ZERO_SPAN_BYTES = 256 << 20,				/* for progress on devices that take zeros slowly */
	SPAN_CHUNKS = SPAN_BYTES / STORE_CHUNK_LEAST_BYTES + 1, /* one more when it doesn't begin with a chunk */
	LOOK_MS = 100,						/* between two looks at whether to stop */
};

_Static_assert((int)SPAN_BYTES >= (int)STORE_CHUNK_MOST_BYTES, "a span holds any chunk");

struct span {
	uint64_t off_bytes; /* of the disk */
	uint64_t len_bytes;
	unsigned chunk_count; /* 0: zeros */
	store_chunk chunks[SPAN_CHUNKS];
};

struct slot {
	struct span span;
	uint8_t *buffer; /* SPAN_BYTES + EXPORT_ALIGN_BYTES, aligned; see bytes_of() */
	bool is_ready;
};

struct job;

struct worker {
	struct job *job;
	struct slot *slot; /* unless it is a stream */
	struct store_scratch *scratch;
	uint8_t *chunk; /* for chunks of which only a part is wanted */
	struct export_trail trail;
	struct read_pace pace;
};

struct job {
	const struct operation *operation;
	struct store_view *view;
	struct export_target *target;
	struct meter meter;
	uint64_t first_bytes; /* of the disk: what is exported */
	uint64_t end_bytes;
	_Atomic uint64_t data_bytes;
	bool is_stream;
	bool salvages; /* what is damaged becomes a hole */
	bool wants_zeros;
	uint32_t chunk_bytes;

	pthread_mutex_t lock;	   /* of all that follows */
	pthread_cond_t slot_free;  /* stream */
	pthread_cond_t slot_ready; /* stream */
	pthread_cond_t came_home;  /* a thread has ended */
	struct map_cursor cursor;
	uint64_t at_bytes; /* the walk; end_bytes: done */
	uint64_t taken;	   /* stream: slots taken and written so far */
	uint64_t written;
	unsigned threads_out;
	bool is_failed;
	struct failure failure; /* the first one; without a message when stopped */
	int error;
	struct range_list holes;

	struct slot slots[2 * MOST_WORKERS];
	unsigned slot_count;
	struct worker workers[MOST_WORKERS];
	unsigned worker_count;
};

static void fail_job_locked(struct job *job, int error, const struct failure *cause)
{
	if (job->is_failed)
		return;
	job->is_failed = true;
	job->error = error;
	job->failure = *cause;
	export_target_abandon(job->target);
	(void)pthread_cond_broadcast(&job->slot_free);
	(void)pthread_cond_broadcast(&job->slot_ready);
}

static void fail_job(struct job *job, int error, const struct failure *cause)
{
	WITH_LOCK(&job->lock);
	fail_job_locked(job, error, cause);
}

/* ----------------------------------------------------------------- the walk */

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The chunks that follow from `index` on, as far as a span goes. */
static int collect_chunks_locked(struct job *job, uint64_t index, struct span *span, struct failure *failure)
{
	uint64_t until_bytes = smaller(job->end_bytes, (span->off_bytes / SPAN_BYTES + 1) * SPAN_BYTES);
	uint64_t end_bytes = span->off_bytes;

	while (end_bytes < until_bytes) {
		store_chunk chunk = 0;
		int error = map_cursor_get(&job->cursor, index, &chunk, failure);

		if (error < 0)
			return error;
		if (chunk == 0)
			break;
		assert(span->chunk_count < SPAN_CHUNKS);
		span->chunks[span->chunk_count++] = chunk;
		index++;
		end_bytes = smaller(index * job->chunk_bytes, until_bytes);
	}
	span->len_bytes = end_bytes - span->off_bytes;
	return 0;
}

/* The next span of all. There is one: at_bytes < end_bytes. */
static int next_span_locked(struct job *job, struct span *span, struct failure *failure)
{
	uint64_t index = job->at_bytes / job->chunk_bytes;
	uint64_t end_index = (job->end_bytes - 1) / job->chunk_bytes + 1;
	uint64_t next = index;
	int error = map_cursor_next(&job->cursor, index, end_index, &next, failure);

	if (error < 0)
		return error;
	span->off_bytes = job->at_bytes;
	span->chunk_count = 0;
	if (next == index)
		error = collect_chunks_locked(job, index, span, failure);
	else
		span->len_bytes = smaller(next < end_index ? next * job->chunk_bytes : job->end_bytes, job->end_bytes) -
				  span->off_bytes;
	if (error < 0)
		return error;
	if (span->chunk_count == 0 && job->wants_zeros)
		span->len_bytes = smaller(span->len_bytes, ZERO_SPAN_BYTES);
	job->at_bytes += span->len_bytes;
	return 0;
}

/* The next span that something has to be done about. False at the end, and when somebody failed. */
static bool take_span_locked(struct job *job, struct span *span)
{
	struct failure failure = {.code = 0};
	int error = 0;

	while (!job->is_failed && job->at_bytes < job->end_bytes) {
		error = next_span_locked(job, span, &failure);
		if (error < 0)
			break;
		if (span->chunk_count > 0 || job->wants_zeros)
			return true;
	}
	if (error < 0)
		fail_job_locked(job, error, &failure);
	return false;
}

/* For files: how much there is to write. What zeros cost there is nothing. */
static int count_data(struct job *job, struct failure *failure)
{
	struct span *span = &job->slots[0].span;
	int error = 0;

	while (job->at_bytes < job->end_bytes && error == 0) {
		error = operation_is_stopped(job->operation) ? -EINTR : next_span_locked(job, span, failure);
		if (error == 0 && span->chunk_count > 0)
			meter_add(&job->meter.total_bytes, span->len_bytes);
	}
	job->at_bytes = job->first_bytes;
	return error;
}

/* ------------------------------------------------------------------ workers */

/* Where the span's bytes are in its buffer: on the target's grid, wherever a partition begins. */
static uint8_t *bytes_of(const struct job *job, const struct slot *slot)
{
	return slot->buffer + (slot->span.off_bytes - job->first_bytes) % EXPORT_ALIGN_BYTES;
}

/* What can't be had of the span becomes zeros, and is noted. -EBADMSG and its like say that it can't. */
static int salvage(struct job *job, uint8_t *at, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure)
{
	WITH_LOCK(&job->lock);
	memset(at, 0, len_bytes);
	return range_list_add(&job->holes, off_bytes - job->first_bytes, len_bytes, failure);
}

static bool is_damage(int error)
{
	return error == -EBADMSG || error == -EIO || error == -ENOENT;
}

/* One chunk of the span, or the part of it that lies in the span, to where it belongs in the buffer. */
static int read_chunk(struct worker *worker, const struct span *span, unsigned number, uint8_t *buffer,
		      struct failure *failure)
{
	struct job *job = worker->job;
	uint64_t index = span->off_bytes / job->chunk_bytes + number;
	uint64_t chunk_off_bytes = index * job->chunk_bytes;
	uint64_t chunk_end_bytes = chunk_off_bytes + map_cursor_length(&job->cursor, index);
	uint64_t from_bytes = chunk_off_bytes > span->off_bytes ? chunk_off_bytes : span->off_bytes;
	uint64_t to_bytes = smaller(chunk_end_bytes, span->off_bytes + span->len_bytes);
	bool is_whole = from_bytes == chunk_off_bytes && to_bytes == chunk_end_bytes;
	uint8_t *at = buffer + (from_bytes - span->off_bytes);
	struct failure cause = {.code = 0};
	int error = map_cursor_read(&job->cursor, worker->scratch, span->chunks[number], index, false,
				    is_whole ? at : worker->chunk, &cause);

	if (job->salvages && is_damage(error))
		return salvage(job, at, from_bytes, to_bytes - from_bytes, failure);
	if (error == -EBADMSG)
		return fail(failure, error, "%s; --salvage exports the rest", cause.message);
	if (error < 0)
		return fail_from(failure, &cause);
	if (!is_whole)
		memcpy(at, worker->chunk + (from_bytes - chunk_off_bytes), to_bytes - from_bytes);
	return 0;
}

static int read_span(struct worker *worker, const struct slot *slot, struct failure *failure)
{
	struct job *job = worker->job;
	const struct span *span = &slot->span;

	if (span->chunk_count == 0)
		return 0;
	read_pace_begin(&worker->pace, job->view, span->chunks, span->chunk_count);
	for (unsigned i = 0; i < span->chunk_count; i++) {
		int error = operation_is_stopped(job->operation)
				    ? -EINTR
				    : read_chunk(worker, span, i, bytes_of(job, slot), failure);

		if (error < 0)
			return error;
	}
	read_pace_end(&worker->pace, span->len_bytes);
	meter_add(&job->data_bytes, span->len_bytes);
	return 0;
}

static int write_span(struct job *job, const struct slot *slot, struct export_trail *trail, struct failure *failure)
{
	const struct span *span = &slot->span;
	uint64_t off_bytes = span->off_bytes - job->first_bytes;
	int error;

	if (span->chunk_count > 0)
		error = export_target_write(job->target, trail, bytes_of(job, slot), (size_t)span->len_bytes, off_bytes,
					    failure);
	else
		error = export_target_zero(job->target, span->len_bytes, off_bytes, failure);
	if (error == 0)
		meter_add(&job->meter.done_bytes, span->len_bytes);
	return error;
}

static bool take_work(struct worker *worker)
{
	WITH_LOCK(&worker->job->lock);
	return take_span_locked(worker->job, &worker->slot->span);
}

/* Takes a span, and the next slot for it. NULL at the end. */
static struct slot *take_slot(struct job *job)
{
	struct slot *slot;

	WITH_LOCK(&job->lock);
	while (!job->is_failed && job->taken - job->written == job->slot_count)
		(void)pthread_cond_wait(&job->slot_free, &job->lock);
	slot = &job->slots[job->taken % job->slot_count];
	if (!take_span_locked(job, &slot->span)) {
		(void)pthread_cond_broadcast(&job->slot_ready); /* the writer may be waiting for what won't come */
		return NULL;
	}
	job->taken++;
	return slot;
}

static void give_slot(struct job *job, struct slot *slot)
{
	WITH_LOCK(&job->lock);
	slot->is_ready = true;
	(void)pthread_cond_signal(&job->slot_ready);
}

static void come_home(struct job *job)
{
	WITH_LOCK(&job->lock);
	job->threads_out--;
	(void)pthread_cond_signal(&job->came_home);
}

static void *run_worker(void *opaque)
{
	struct worker *worker = opaque;
	struct job *job = worker->job;
	struct failure failure = {.code = 0};
	int error = 0;

	while (error == 0 && take_work(worker)) {
		error = read_span(worker, worker->slot, &failure);
		if (error == 0)
			error = write_span(job, worker->slot, &worker->trail, &failure);
	}
	if (error < 0)
		fail_job(job, error, &failure);
	come_home(job);
	return NULL;
}

static void *run_stream_worker(void *opaque)
{
	struct worker *worker = opaque;
	struct job *job = worker->job;
	struct failure failure = {.code = 0};
	struct slot *slot;

	while ((slot = take_slot(job)) != NULL) {
		int error = read_span(worker, slot, &failure);

		if (error < 0) {
			fail_job(job, error, &failure);
			break;
		}
		give_slot(job, slot);
	}
	come_home(job);
	return NULL;
}

/* The next slot in order, once it is filled. NULL when there will be none. */
static struct slot *wait_for_slot(struct job *job)
{
	WITH_LOCK(&job->lock);
	for (;;) {
		struct slot *slot = &job->slots[job->written % job->slot_count];

		if (job->is_failed || (job->written == job->taken && job->at_bytes == job->end_bytes))
			return NULL;
		if (job->written < job->taken && slot->is_ready)
			return slot;
		(void)pthread_cond_wait(&job->slot_ready, &job->lock);
	}
}

static void free_slot(struct job *job, struct slot *slot)
{
	WITH_LOCK(&job->lock);
	slot->is_ready = false;
	job->written++;
	(void)pthread_cond_signal(&job->slot_free);
}

static void *run_writer(void *opaque)
{
	struct job *job = opaque;
	struct failure failure = {.code = 0};
	struct slot *slot;

	while ((slot = wait_for_slot(job)) != NULL) {
		int error = write_span(job, slot, NULL, &failure);

		if (error < 0) {
			fail_job(job, error, &failure);
			break;
		}
		free_slot(job, slot);
	}
	come_home(job);
	return NULL;
}

/* ------------------------------------------------------------------ the job */

static int set_up_worker(struct job *job, unsigned number, struct failure *failure)
{
	struct worker *worker = &job->workers[number];

	worker->job = job;
	worker->slot = &job->slots[number];
	worker->chunk = malloc(job->chunk_bytes);
	if (worker->chunk == NULL)
		return fail(failure, -ENOMEM, "export: out of memory");
	return store_scratch_new(&worker->scratch, failure);
}

static int set_up_job(struct job *job, struct failure *failure)
{
	int error = 0;

	job->worker_count = crew_cores(MOST_WORKERS);
	job->slot_count = job->is_stream ? 2 * job->worker_count : job->worker_count;
	for (unsigned i = 0; i < job->slot_count; i++) {
		if (posix_memalign((void **)&job->slots[i].buffer, EXPORT_ALIGN_BYTES,
				   SPAN_BYTES + EXPORT_ALIGN_BYTES) != 0)
			return fail(failure, -ENOMEM, "export: out of memory");
	}
	for (unsigned i = 0; i < job->worker_count && error == 0; i++)
		error = set_up_worker(job, i, failure);
	return error;
}

static struct job *make_job(const struct operation *operation)
{
	struct job *job = calloc(1, sizeof(*job));
	pthread_condattr_t attributes;

	if (job == NULL)
		return NULL;
	job->operation = operation;
	/* none of these can fail on Linux with such arguments */
	(void)pthread_mutex_init(&job->lock, NULL);
	(void)pthread_cond_init(&job->slot_free, NULL);
	(void)pthread_cond_init(&job->slot_ready, NULL);
	(void)pthread_condattr_init(&attributes);
	(void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&job->came_home, &attributes);
	(void)pthread_condattr_destroy(&attributes);
	return job;
}

static void free_job(struct job **job_at)
{
	struct job *job = *job_at;

	if (job == NULL)
		return;
	meter_stop(&job->meter);
	for (unsigned i = 0; i < MOST_WORKERS; i++) {
		store_scratch_free(job->workers[i].scratch);
		free(job->workers[i].chunk);
	}
	for (unsigned i = 0; i < 2 * MOST_WORKERS; i++)
		free(job->slots[i].buffer);
	range_list_free(&job->holes);
	store_view_close(job->view);
	(void)pthread_cond_destroy(&job->slot_free);
	(void)pthread_cond_destroy(&job->slot_ready);
	(void)pthread_cond_destroy(&job->came_home);
	(void)pthread_mutex_destroy(&job->lock);
	free(job);
}

/* Starts one thread of the job. When it can't be started, the job has failed. */
static void start(struct job *job, struct crew *crew, void *(*run)(void *opaque), void *opaque)
{
	struct failure failure = {.code = 0};
	int error;

	(void)pthread_mutex_lock(&job->lock);
	job->threads_out++;
	(void)pthread_mutex_unlock(&job->lock);
	error = crew_start(crew, run, opaque, &failure);
	if (error < 0) {
		fail_job(job, error, &failure);
		come_home(job);
	}
}

/* Until all threads are home; turns a stop into a failure. */
static void watch(struct job *job)
{
	const struct failure stopped = {.code = 0};
	bool is_out = true;

	while (is_out) {
		struct timespec until = units_time_from_now(CLOCK_MONOTONIC, LOOK_MS * 1000000L);

		(void)pthread_mutex_lock(&job->lock);
		if (job->threads_out > 0)
			(void)pthread_cond_timedwait(&job->came_home, &job->lock, &until);
		is_out = job->threads_out > 0;
		(void)pthread_mutex_unlock(&job->lock);
		if (is_out && operation_is_stopped(job->operation))
			fail_job(job, -EINTR, &stopped);
	}
}

static int run_job(struct job *job, struct failure *failure)
{
	struct crew crew = {.count = 0};

	for (unsigned i = 0; i < job->worker_count; i++)
		start(job, &crew, job->is_stream ? run_stream_worker : run_worker, &job->workers[i]);
	if (job->is_stream)
		start(job, &crew, run_writer, job);
	watch(job);
	crew_join(&crew);
	if (!job->is_failed)
		return 0;
	(void)fail_from(failure, &job->failure);
	return job->error;
}

/* Words of caution, not a refusal: blocks of zeros take no room, and the file system may compress. */
static void warn_of_room(const struct job *job, const char *path)
{
	uint64_t room_bytes = export_target_room(job->target);
	uint64_t needed_bytes = job->meter.total_bytes;
	char room[UNITS_TEXT_BYTES], needed[UNITS_TEXT_BYTES];

	if (needed_bytes > room_bytes)
		notice(job->operation->notices, NOTICE_WARNING, "%s: up to %s will be written, and %s are free", path,
		       units_format_size(needed_bytes, needed), units_format_size(room_bytes, room));
}

/* With the target open: writes all of it. */
static int fill_target(struct job *job, const char *path, uint64_t *ret_target_bytes, struct failure *failure)
{
	int error;

	job->is_stream = export_target_is_stream(job->target);
	job->wants_zeros = !export_target_is_fresh(job->target);
	error = set_up_job(job, failure);
	if (error == 0)
		error = meter_start(&job->meter, "export", job->operation, failure);
	if (error == 0 && job->wants_zeros)
		meter_add(&job->meter.total_bytes, job->end_bytes - job->first_bytes);
	else if (error == 0)
		error = count_data(job, failure);
	if (error < 0)
		return error;
	warn_of_room(job, path);
	error = run_job(job, failure);
	if (error == 0)
		error = export_target_finish(job->target, ret_target_bytes, failure);
	meter_stop(&job->meter);
	return error;
}

/* Closes the target, and says what became of it beside why it failed. */
static int conclude(struct export_target *target, const char *path, int error, struct failure *cause,
		    struct failure *failure)
{
	enum export_leftover leftover = export_target_close(target);
	const char *name = strcmp(path, "-") == 0 ? "standard output" : path;

	if (error == 0)
		return 0;
	if (cause->code == 0 && error == -EINTR)
		(void)fail(cause, error, "%s: export stopped", name);
	else if (cause->code == 0)
		(void)fail_errno(cause, error, "%s: export failed", name);
	switch (leftover) {
	case EXPORT_LEFT_PART:
		return fail(failure, error, "%s; %s holds only a part of it", cause->message, name);
	case EXPORT_LEFT_FILE:
		return fail(failure, error, "%s; %s holds only a part of it, and could not be removed", cause->message,
			    name);
	case EXPORT_LEFT_NOTHING:
	default:
		(void)fail_from(failure, cause);
		return error;
	}
}

static int open_view(struct job *job, struct store *store, const struct store_reference *reference,
		     struct failure *failure)
{
	uint64_t len_bytes = 0;
	int error = store_view_open(store, reference, VIEW_READ, job->operation->doing, &job->view, failure);

	if (error == 0)
		error = source_view_find_partition(job->view, reference->partition, &job->first_bytes, &len_bytes,
						   failure);
	if (error < 0)
		return error;
	job->end_bytes = job->first_bytes + len_bytes;
	job->at_bytes = job->first_bytes;
	job->chunk_bytes = store_chunk_bytes(store);
	map_cursor_init(&job->cursor, job->view);
	return 0;
}

void export_report_free(struct export_report *report)
{
	free(report->holes);
	*report = (struct export_report){.size_bytes = 0};
}

int export_run(struct store *store, const struct store_reference *reference, const char *target, int output_fd,
	       bool salvage, const struct operation *operation, struct export_report *ret_report, struct failure *failure)
{
	AUTO(free_job) struct job *job = make_job(operation);
	double started_at_seconds = units_monotonic_seconds();
	struct failure cause = {.code = 0};
	struct export_content content;
	char name[STORE_NAME_MOST_BYTES + 32];
	uint64_t target_bytes = 0;
	int error;

	if (job == NULL)
		return fail(failure, -ENOMEM, "export: out of memory");
	job->salvages = salvage;
	error = open_view(job, store, reference, failure);
	if (error < 0)
		return error;
	(void)snprintf(name, sizeof(name), "%s", store_view_name(job->view));
	if (reference->partition > 0)
		(void)snprintf(name + strlen(name), sizeof(name) - strlen(name), "/%" PRIu32, reference->partition);
	content = (struct export_content){.name = name,
					  .size_bytes = job->end_bytes - job->first_bytes,
					  .sector_bytes = store_view_sector_bytes(job->view),
					  .is_whole_disk = reference->partition == 0};
	error = export_target_open(store, target, output_fd, &content, operation, &job->target, &cause);
	if (error == 0)
		error = fill_target(job, target, &target_bytes, &cause);
	error = conclude(take_ptr(job->target), target, error, &cause, failure);
	if (error < 0)
		return error;
	*ret_report = (struct export_report){.size_bytes = content.size_bytes,
					     .data_bytes = job->data_bytes - smaller(range_list_bytes(&job->holes), job->data_bytes),
					     .target_bytes = target_bytes,
					     .elapsed_seconds = units_monotonic_seconds() - started_at_seconds};
	ret_report->holes = range_list_take(&job->holes, &ret_report->hole_count);
	return 0;
}
