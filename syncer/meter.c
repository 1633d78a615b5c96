/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread of its own, because the work has no place from which one could report regularly: a single read from a dying
 * disk takes half a minute, and people want to see then that nothing moves.
 *
 * Speed is taken over a window of the last samples rather than smoothed: a person who plugs in a faster network sees
 * the new speed within five seconds, all of it, and a source that stands still is at 0 after five seconds.
 *
 * The counters are relaxed atomics: they are for looking at, nothing is decided by them. `lock` guards the samples and
 * the flags; it is never held while progress() is called, so a slow terminal holds up nobody.
 */
#include "syncer/meter.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "common/units.h"

enum { TICK_MS = 250 };

static uint64_t look_at(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Adds a sample and returns the speed since the oldest one that is kept. */
static double sample_speed_locked(struct meter *meter, double now_seconds, uint64_t done_bytes)
{
	const struct meter_sample *oldest = &meter->samples[meter->first_sample];
	double over_seconds = now_seconds - oldest->at_seconds;
	/* a round that goes back to its last checkpoint makes the counter fall */
	double grown_bytes = done_bytes > oldest->done_bytes ? (double)(done_bytes - oldest->done_bytes) : 0;

	if (meter->sample_count == METER_SAMPLES) {
		meter->first_sample = (meter->first_sample + 1) % METER_SAMPLES;
		meter->sample_count--;
	}
	meter->samples[(meter->first_sample + meter->sample_count) % METER_SAMPLES] =
		(struct meter_sample){.at_seconds = now_seconds, .done_bytes = done_bytes};
	meter->sample_count++;
	return over_seconds > 0 ? grown_bytes / over_seconds : 0;
}

static void report(struct meter *meter)
{
	const struct operation *operation = meter->operation;
	struct progress progress = {
		.phase = meter->phase,
		.total_bytes = look_at(&meter->total_bytes),
		.done_bytes = look_at(&meter->done_bytes),
		.changed_bytes = look_at(&meter->changed_bytes),
		.sent_bytes = look_at(&meter->sent_bytes),
		.remaining_seconds = -1,
	};

	(void)pthread_mutex_lock(&meter->lock);
	progress.bytes_per_second = sample_speed_locked(meter, units_monotonic_seconds(), progress.done_bytes);
	(void)pthread_mutex_unlock(&meter->lock);
	if (progress.done_bytes >= progress.total_bytes)
		progress.remaining_seconds = 0;
	else if (progress.bytes_per_second > 0)
		progress.remaining_seconds =
			(double)(progress.total_bytes - progress.done_bytes) / progress.bytes_per_second;
	operation->progress(operation->progress_opaque, &progress);
}

/* Sleeps until the next tick. False when the meter is being stopped. */
static bool wait_for_tick(struct meter *meter, struct timespec *tick)
{
	bool go_on;

	*tick = units_time_later(*tick, TICK_MS * 1000000L);
	(void)pthread_mutex_lock(&meter->lock);
	while (!meter->is_stopping && pthread_cond_timedwait(&meter->wake, &meter->lock, tick) != ETIMEDOUT)
		;
	go_on = !meter->is_stopping;
	(void)pthread_mutex_unlock(&meter->lock);
	return go_on;
}

static void *run_meter(void *opaque)
{
	struct meter *meter = opaque;
	struct timespec tick;

	for (;;) {
		/* From now on, not from the last tick: after a suspend nobody wants all the missed ones. */
		(void)clock_gettime(CLOCK_MONOTONIC, &tick);
		if (!wait_for_tick(meter, &tick))
			return NULL;
		report(meter);
	}
}

static void init_lock(struct meter *meter)
{
	pthread_condattr_t attributes;

	/* none of these can fail on Linux with such arguments */
	(void)pthread_mutex_init(&meter->lock, NULL);
	(void)pthread_condattr_init(&attributes);
	(void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&meter->wake, &attributes);
	(void)pthread_condattr_destroy(&attributes);
}

static void release_lock(struct meter *meter)
{
	(void)pthread_cond_destroy(&meter->wake);
	(void)pthread_mutex_destroy(&meter->lock);
}

/* Signals are for the program's own thread. */
static int start_thread(struct meter *meter)
{
	sigset_t all, before;
	int error;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&meter->thread, NULL, run_meter, meter);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

int meter_start(struct meter *meter, const char *phase, const struct operation *operation, struct failure *failure)
{
	return meter_start_at(meter, phase, operation, 0, 0, 0, 0, failure);
}

int meter_start_at(struct meter *meter, const char *phase, const struct operation *operation, uint64_t total_bytes,
		   uint64_t done_bytes, uint64_t changed_bytes, uint64_t sent_bytes, struct failure *failure)
{
	int error = 0;

	memset(meter, 0, sizeof(*meter));
	atomic_init(&meter->total_bytes, total_bytes);
	atomic_init(&meter->done_bytes, done_bytes);
	atomic_init(&meter->changed_bytes, changed_bytes);
	atomic_init(&meter->sent_bytes, sent_bytes);
	meter->phase = phase;
	meter->operation = operation;
	meter->started_at_seconds = units_monotonic_seconds();
	meter->started_at_bytes = done_bytes;
	meter->samples[0] = (struct meter_sample){.at_seconds = meter->started_at_seconds, .done_bytes = done_bytes};
	meter->sample_count = 1;
	init_lock(meter);
	if (operation->progress != NULL)
		error = start_thread(meter);
	if (error < 0) {
		release_lock(meter);
		return fail_errno(failure, error, "%s: can't start a thread to report progress", phase);
	}
	meter->has_thread = operation->progress != NULL;
	meter->is_running = true;
	return 0;
}

void meter_stop(struct meter *meter)
{
	if (!meter->is_running)
		return;
	if (meter->has_thread) {
		(void)pthread_mutex_lock(&meter->lock);
		meter->is_stopping = true;
		(void)pthread_cond_signal(&meter->wake);
		(void)pthread_mutex_unlock(&meter->lock);
		(void)pthread_join(meter->thread, NULL); /* ours, joined once: can't fail */
		report(meter);
	}
	release_lock(meter);
	meter->is_running = false;
	meter->has_thread = false;
}

double meter_elapsed_seconds(const struct meter *meter)
{
	return units_monotonic_seconds() - meter->started_at_seconds;
}

double meter_average_speed(const struct meter *meter)
{
	double over_seconds = meter_elapsed_seconds(meter);
	uint64_t done_bytes = look_at(&meter->done_bytes);

	if (over_seconds <= 0 || done_bytes <= meter->started_at_bytes)
		return 0;
	return (double)(done_bytes - meter->started_at_bytes) / over_seconds;
}
