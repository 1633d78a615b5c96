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
 * One lock guards queues and flags. It is taken twice a unit and stage, 1 MiB of work: no contention to speak of.
 */
#include <stdatomic.h>
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
	(void)pthread_cond_broadcast(&pipeline->changed);
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
		(void)pthread_cond_broadcast(&pipeline->changed);
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
	(void)pthread_cond_destroy(&pipeline->changed); /* nobody is left to wait on it */
	(void)pthread_mutex_destroy(&pipeline->lock);
	free(pipeline);
}

static struct pipeline *pipeline_allocate(const struct pipeline_params *params)
{
	struct pipeline *pipeline = calloc(1, sizeof(*pipeline));

	if (pipeline == NULL)
		return NULL;
	(void)pthread_mutex_init(&pipeline->lock, NULL); /* these don't fail on Linux with default attributes */
	(void)pthread_cond_init(&pipeline->changed, NULL);
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
		pipeline->units[i].buffer = pipeline->memory + (size_t)i * UNIT_BYTES;
		unit_queue_put(&pipeline->free_units, &pipeline->units[i]);
	}
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
