/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pipeline: three stages, joined by queues of units of 1 MiB.
 *
 *   reader (the calling thread)     walks the plan, keeps requests to the source in flight, fills units
 *   workers (one a core)            zero? same fingerprint? digest; known? compress
 *   committer (one thread)          takes units in the order of the disk, hands new chunks to the store, keeps the limit, makes checkpoints
 *
 * Memory is bounded by the number of units: a unit's buffer holds what was read, and later, in the same place, what it was compressed to. Nothing else grows with
 * the disk. A stage that is slow holds up the others when units run out.
 *
 * Why in order: the cursor of a checkpoint says that everything before it is done. Units may be read and worked on in any order, the committer waits for
 * the next one. It also makes segments follow the disk's order, so that reading an image back is sequential.
 *
 * What is not read is not a unit each: a hole of 5 TiB is one unit without content that says how far it reaches, and one for each page of the map in
 * which something has to become zero.
 *
 * Ending: on the first failure, or when asked to stop, all stages leave; the committer makes a last checkpoint of what it has handed over,
 * unless it was the store that failed. So a stop costs at most what was in the queues.
 *
 * Reading in memory: what the source has at hand (a file in the page cache) is not worth a request to another thread and the way back. Such a unit goes to a
 * worker unread, and that reads it in pieces that are still in the core's own cache when they are looked at. A unit gets its buffer when
 * it is read, and gives it back as soon as nothing of it is to be stored: a round that finds nothing changed touches as many buffers as it has workers.
 * What turns out not to be at hand, or can't be read, goes back to the reader, who submits it like any other.
 *
 * One lock guards queues and flags. It is taken a few times a unit, 1 MiB of work: no contention to speak of. Waking a thread costs more: each stage
 * has a condition of its own, and is woken when there is something worth it.
 */
#include <stdatomic.h>
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/mman.h>

#include "common/cleanup.h"
#include "syncer/pipeline_internal.h"

enum { MEMORY_BYTES = UNIT_COUNT * UNIT_BYTES, HUGE_PAGE_BYTES = 2 << 20 };

void unit_queue_put(struct unit_queue *queue, struct unit *unit)
{
	unit->next = NULL;
	if (queue->first == NULL)
		queue->last = &queue->first;
	*queue->last = unit;
	queue->last = &unit->next;
}

void unit_queue_put_first(struct unit_queue *queue, struct unit *unit)
{
	unit->next = queue->first;
	if (queue->first == NULL)
		queue->last = &unit->next;
	queue->first = unit;
}

struct unit *unit_queue_take(struct unit_queue *queue)
{
	struct unit *unit = queue->first;

	if (unit != NULL)
		queue->first = unit->next;
	return unit;
}

void unit_take_buffer(struct pipeline *pipeline, struct unit *unit)
{
	WITH_LOCK(&pipeline->lock);

	assert(unit->buffer == NULL && pipeline->free_buffer_count > 0);
	unit->buffer = pipeline->free_buffers[--pipeline->free_buffer_count];
}

void unit_drop_buffer_locked(struct pipeline *pipeline, struct unit *unit)
{
	if (unit->buffer != NULL)
		pipeline->free_buffers[pipeline->free_buffer_count++] = unit->buffer;
	unit->buffer = NULL;
}

static void clear(struct unit *unit, uint32_t first, uint32_t end)
{
	if (first < end)
		memset(unit->buffer + first, 0, end - first);
}

void unit_clear_unwanted(struct unit *unit, uint32_t first, uint32_t end)
{
	for (unsigned i = 0; i < unit->wanted_count && first < end; i++) {
		clear(unit, first, unit->wanted[i].off < end ? unit->wanted[i].off : end);
		if (unit->wanted[i].off + unit->wanted[i].len > first)
			first = unit->wanted[i].off + unit->wanted[i].len;
	}
	clear(unit, first, end);
}

/*
 * Most units of most rounds say only how far the work is. The committer is not woken for each of those: it looks by itself a few times a second.
 * Nor is it woken before the unit is there that comes next.
 */
void pipeline_hand_to_committer_locked(struct pipeline *pipeline, struct unit *unit)
{
	pipeline->order[unit->sequence % UNIT_COUNT] = unit;
	pipeline->ordered_count++;
	pipeline->saying_count += unit->says_something;
	if (pipeline->order[pipeline->commit_sequence % UNIT_COUNT] != NULL &&
	    (pipeline->saying_count > 0 || pipeline->ordered_count >= UNIT_COUNT / 4 || pipeline->work.first == NULL))
		(void)pthread_cond_signal(&pipeline->committer_wakes);
}

void pipeline_wake_all_locked(struct pipeline *pipeline)
{
	(void)pthread_cond_broadcast(&pipeline->reader_wakes);
	(void)pthread_cond_broadcast(&pipeline->workers_wake);
	(void)pthread_cond_broadcast(&pipeline->committer_wakes);
}

void shared_page_release(struct shared_page *page)
{
	if (page != NULL && atomic_fetch_sub(&page->references, 1) == 1)
		free(page);
}

void pipeline_fail(struct pipeline *pipeline, const struct failure *failure)
{
	WITH_LOCK(&pipeline->lock);

	if (pipeline->failure.code == 0)
		pipeline->failure = *failure;
	pipeline->is_ending = true;
	pipeline_wake_all_locked(pipeline);
}

bool pipeline_must_end(struct pipeline *pipeline)
{
	const atomic_bool *stop = pipeline->params->stop;
	bool is_stopped = stop != NULL && *stop;
	WITH_LOCK(&pipeline->lock);

	if (is_stopped && !pipeline->is_ending) {
		pipeline->is_ending = true;
		if (pipeline->failure.code == 0)
			(void)fail(&pipeline->failure, -EINTR, "stopped");
		pipeline_wake_all_locked(pipeline);
	}
	return pipeline->is_ending;
}

static unsigned core_count(void)
{
	cpu_set_t cores;
	int count = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;

	return count < 1 ? 1 : count > WORKERS_MOST ? WORKERS_MOST : (unsigned)count;
}

static void pipeline_free(struct pipeline *pipeline)
{
	for (unsigned i = 0; pipeline->units != NULL && i < UNIT_COUNT; i++)
		shared_page_release(pipeline->units[i].page);
	free(pipeline->units);
	free(pipeline->memory);
	(void)pthread_cond_destroy(&pipeline->reader_wakes); /* nobody is left to wait on them */
	(void)pthread_cond_destroy(&pipeline->workers_wake);
	(void)pthread_cond_destroy(&pipeline->committer_wakes);
	(void)pthread_mutex_destroy(&pipeline->lock);
	free(pipeline);
}

static struct pipeline *pipeline_allocate(const struct pipeline_params *params)
{
	struct pipeline *pipeline = calloc(1, sizeof(*pipeline));

	if (pipeline == NULL)
		return NULL;
	(void)pthread_mutex_init(&pipeline->lock, NULL); /* these don't fail on Linux with default attributes */
	(void)pthread_cond_init(&pipeline->reader_wakes, NULL);
	(void)pthread_cond_init(&pipeline->workers_wake, NULL);
	(void)pthread_cond_init(&pipeline->committer_wakes, NULL);
	pipeline->params = params;
	pipeline->store = store_view_store(params->view);
	pipeline->chunk_bytes = store_chunk_bytes(pipeline->store);
	pipeline->size_bytes = store_view_size(params->view);
	pipeline->worker_count = core_count();
	pipeline->errors_are_noted = true;
	pipeline->units = calloc(UNIT_COUNT, sizeof(*pipeline->units));
	if (pipeline->units == NULL ||
	    posix_memalign((void **)&pipeline->memory, HUGE_PAGE_BYTES, MEMORY_BYTES) != 0) {
		pipeline->memory = NULL;
		pipeline_free(pipeline);
		return NULL;
	}
	/* 12,000 page faults fewer, which were a third of a small round's CPU time on a virtual machine; only a wish */
	(void)madvise(pipeline->memory, MEMORY_BYTES, MADV_HUGEPAGE);
	for (unsigned i = 0; i < UNIT_COUNT; i++) {
		pipeline->free_buffers[i] = pipeline->memory + (size_t)i * UNIT_BYTES;
		unit_queue_put(&pipeline->free_units, &pipeline->units[i]);
	}
	pipeline->free_count = pipeline->free_buffer_count = UNIT_COUNT;
	return pipeline;
}

struct commit_thread {
	struct pipeline *pipeline;
	struct pipeline_result *result;
};

static void *run_committer(void *opaque)
{
	struct commit_thread *thread = opaque;

	pipeline_commit(thread->pipeline, thread->result);
	return NULL;
}

static int start_thread(struct pipeline *pipeline, pthread_t *ret_thread, void *(*run)(void *), void *opaque)
{
	int error = pthread_create(ret_thread, NULL, run, opaque);

	if (error != 0) {
		struct failure failure = { .code = 0 };

		(void)fail_errno(&failure, -error, "starting a thread");
		pipeline_fail(pipeline, &failure);
	}
	return -error;
}

int pipeline_run(const struct pipeline_params *params, struct pipeline_result *ret_result, struct failure *failure)
{
	struct pipeline *pipeline = pipeline_allocate(params);
	pthread_t workers[WORKERS_MOST], committer;
	unsigned started = 0;
	struct store_throttle throttle;
	int result;

	*ret_result = (struct pipeline_result){ .cursor_bytes = params->start_bytes, .counts = params->counts };
	if (pipeline == NULL)
		return fail_errno(failure, -ENOMEM, "round");
	result = store_round_throttle(params->view, params->round, &throttle, failure);
	if (result < 0) {
		pipeline_free(pipeline);
		return result;
	}
	atomic_store(&pipeline->level, throttle.level);
	atomic_store(&pipeline->limit, throttle.limit_bytes_per_second);
	struct commit_thread commit = { .pipeline = pipeline, .result = ret_result };
	bool has_committer = start_thread(pipeline, &committer, run_committer, &commit) == 0;
	while (has_committer && started < pipeline->worker_count &&
	       start_thread(pipeline, &workers[started], pipeline_work, pipeline) == 0)
		started++;
	if (has_committer && started > 0)
		pipeline_read(pipeline);
	for (unsigned i = 0; i < started; i++)
		(void)pthread_join(workers[i], NULL); /* can't fail: ours, joinable, joined once */
	if (has_committer)
		(void)pthread_join(committer, NULL);
	ret_result->doubt_off_bytes = pipeline->doubt_off_bytes;
	ret_result->doubt_len_bytes = pipeline->doubt_len_bytes;
	result = pipeline->failure.code == 0 ? 0 : fail_from(failure, &pipeline->failure);
	pipeline_free(pipeline);
	return result;
}
