/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each disk is counted, and goes through
 *
 *     OPENING ──► OPEN ──► CLOSING ──► gone        OPENING ──► gone, when it can't be opened
 *
 * Opening and closing take their time, so no lock is held meanwhile: who comes along and finds a disk in one of these
 * states waits for the next one. The lock is for coming and going only; requests don't take it.
 */
#include "store/disk_pool.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/units.h"

enum { BUSY_STEP_MS = 50, DOING_BYTES = 256 };
#define BUSY_WAIT_SECONDS 2.0

enum state { STATE_OPENING, STATE_OPEN, STATE_CLOSING };

struct disk_pool {
	struct disk_pool_options options;
	pthread_mutex_t lock;
	pthread_cond_t changed;	   /* the state of a disk, or that it is gone */
	struct pooled_disk *disks; /* locked */
};

int disk_pool_new(const struct disk_pool_options *options, struct disk_pool **ret_pool, struct failure *failure)
{
	struct disk_pool *pool = calloc(1, sizeof(*pool));

	if (pool == NULL)
		return fail(failure, -ENOMEM, "disks: out of memory");
	pool->options = *options;
	(void)pthread_mutex_init(&pool->lock, NULL); /* on Linux these two can't fail */
	(void)pthread_cond_init(&pool->changed, NULL);
	*ret_pool = pool;
	return 0;
}

void disk_pool_free(struct disk_pool *pool)
{
	if (pool == NULL)
		return;
	assert(pool->disks == NULL);
	(void)pthread_cond_destroy(&pool->changed);
	(void)pthread_mutex_destroy(&pool->lock);
	free(pool);
}

/* ---- opening ---- */

/*
 * An image of a disk that nobody has open, a flush of what a killed server left: such work has the disk for a moment,
 * and who comes just then is better served a moment later than refused. That is counted from when he came: who has waited for
 * another's attempt asks once more, or all who want a disk that stays busy would wait one after the other.
 */
static int open_patiently(struct store *store, const struct store_reference *reference,
			  const struct disk_options *options, double came_at, struct disk **ret_disk,
			  struct failure *failure)
{
	for (;;) {
		struct failure cause = {.code = 0};
		int error = disk_open(store, reference, options, ret_disk, &cause);

		if (error != -EBUSY || units_monotonic_seconds() - came_at >= BUSY_WAIT_SECONDS)
			return error < 0 ? fail_from(failure, &cause) : 0;
		(void)nanosleep(&(struct timespec){.tv_nsec = BUSY_STEP_MS * 1000000L},
				NULL); /* woken early: asks again */
	}
}

static int open_disk(struct disk_pool *pool, const struct store_reference *reference, enum pool_mode mode,
		     double came_at, struct disk **ret_disk, struct failure *failure)
{
	const struct disk_pool_options *ours = &pool->options;
	char doing[DOING_BYTES];
	struct disk_options options = {.doing = doing, .cache = ours->cache, .write_mirror = ours->write_mirror};
	struct failure cause = {.code = 0};
	int error;

	(void)snprintf(doing, sizeof(doing), "%s %s", ours->doing, reference->disk);
	options.write = reference->which == STORE_LIVE && (mode == POOL_WRITE || mode == POOL_WRITE_OR_READ);
	if (ours->store_is_read_only && mode == POOL_WRITE_OR_READ)
		options.write = false;
	error = open_patiently(ours->store, reference, &options, came_at, ret_disk, &cause);
	if (error < 0 && options.write && mode == POOL_WRITE_OR_READ && (error == -EPERM || error == -EROFS)) {
		notice(ours->notices, NOTICE_WARNING, "read-only: %s", cause.message);
		options.write = false;
		failure_clear(&cause);
		error = open_patiently(ours->store, reference, &options, came_at, ret_disk, &cause);
	}
	if (error < 0)
		(void)fail_from(failure, &cause);
	return error;
}

static int fill(struct disk_pool *pool, struct pooled_disk *pooled, const struct store_reference *reference,
		enum pool_mode mode, double came_at, struct failure *failure)
{
	int error = open_disk(pool, reference, mode, came_at, &pooled->disk, failure);

	if (error < 0 || mode != POOL_OVERLAY)
		return error;
	error = scratch_new(pooled->disk, NULL, &pooled->scratch, failure);
	if (error < 0)
		(void)disk_close(pooled->disk, NULL); /* nothing was written */
	return error;
}

/* ---- coming and going ---- */

static struct pooled_disk *find_locked(struct disk_pool *pool, const char *key)
{
	for (struct pooled_disk *pooled = pool->disks; pooled != NULL; pooled = pooled->next)
		if (strcmp(pooled->key, key) == 0)
			return pooled;
	return NULL;
}

static void drop_locked(struct disk_pool *pool, struct pooled_disk *pooled)
{
	struct pooled_disk **at = &pool->disks;

	while (*at != pooled)
		at = &(*at)->next;
	*at = pooled->next;
	free(pooled);
	(void)pthread_cond_broadcast(&pool->changed);
}

/* With the lock; gives it up while it works. */
static int open_locked(struct disk_pool *pool, const char *key, const struct store_reference *reference,
		       enum pool_mode mode, double came_at, struct pooled_disk **ret_pooled, struct failure *failure)
{
	struct pooled_disk *pooled = calloc(1, sizeof(*pooled));
	int error;

	if (pooled == NULL)
		return fail(failure, -ENOMEM, "disk %s: out of memory", key);
	(void)snprintf(pooled->key, sizeof(pooled->key), "%s", key);
	pooled->state = STATE_OPENING;
	pooled->next = pool->disks;
	pool->disks = pooled;
	(void)pthread_mutex_unlock(&pool->lock);
	error = fill(pool, pooled, reference, mode, came_at, failure);
	(void)pthread_mutex_lock(&pool->lock);
	if (error < 0) {
		drop_locked(pool, pooled);
		return error;
	}
	pooled->state = STATE_OPEN;
	pooled->users = 1;
	(void)pthread_cond_broadcast(&pool->changed);
	*ret_pooled = pooled;
	return 0;
}

int disk_pool_acquire(struct disk_pool *pool, const char *key, const struct store_reference *reference,
		      enum pool_mode mode, struct pooled_disk **ret_pooled, struct failure *failure)
{
	double came_at = units_monotonic_seconds();
	struct pooled_disk *pooled;

	assert(mode != POOL_OVERLAY || reference->which != STORE_LIVE);
	if (strlen(key) >= POOL_KEY_BYTES)
		return fail(failure, -ENAMETOOLONG, "disk %s: a name of %zu bytes; none is longer than %d", key,
			    strlen(key), POOL_KEY_BYTES - 1);
	WITH_LOCK(&pool->lock);
	while ((pooled = find_locked(pool, key)) != NULL && pooled->state != STATE_OPEN)
		(void)pthread_cond_wait(&pool->changed, &pool->lock);
	if (pooled == NULL)
		return open_locked(pool, key, reference, mode, came_at, ret_pooled, failure);
	pooled->users++;
	*ret_pooled = pooled;
	return 0;
}

int disk_pool_release(struct disk_pool *pool, struct pooled_disk *pooled, struct failure *failure)
{
	int error;

	WITH_LOCK(&pool->lock);
	if (--pooled->users > 0)
		return 0;
	pooled->state = STATE_CLOSING;
	(void)pthread_mutex_unlock(&pool->lock);
	scratch_free(pooled->scratch);
	error = disk_close(pooled->disk, failure);
	(void)pthread_mutex_lock(&pool->lock);
	drop_locked(pool, pooled);
	return error;
}
