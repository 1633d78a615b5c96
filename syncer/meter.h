/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The progress of a long operation: counters that any thread adds to, and a thread that reports them about four
 * times a second.
 *
 *     struct meter meter;
 *     error = meter_start(&meter, "export", operation, failure);
 *     meter_add(&meter.total_bytes, …);         -- any thread, any time in between
 *     meter_add(&meter.done_bytes, …);
 *     meter_stop(&meter);                       -- the last report, from the calling thread
 *
 * Speed is what done_bytes grew by over the last five seconds or so; what it held when the meter was started
 * (meter_start_at(): a round that resumes) doesn't count.
 */
#ifndef WHERRY_SYNCER_METER_H
#define WHERRY_SYNCER_METER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/failure.h"
#include "syncer/progress.h"

enum { METER_SAMPLES = 20 }; /* a quarter of a second each */

struct meter_sample {
	double at_seconds;
	uint64_t done_bytes;
};

struct meter {
	/* as in struct progress; read and written by any thread, also before the start but for what meter_start_at()
	 * sets */
	_Atomic uint64_t total_bytes;
	_Atomic uint64_t done_bytes;
	_Atomic uint64_t changed_bytes;
	_Atomic uint64_t sent_bytes;

	/* meter.c's own */
	const char *phase;
	const struct operation *operation;
	double started_at_seconds;
	uint64_t started_at_bytes;
	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t wake;
	struct meter_sample samples[METER_SAMPLES]; /* a ring, the oldest one at first_sample */
	unsigned first_sample;
	unsigned sample_count;
	bool is_stopping;
	bool is_running; /* between start and stop */
	bool has_thread;
	pthread_t thread;
};

static inline void meter_add(_Atomic uint64_t *counter, uint64_t bytes)
{
	atomic_fetch_add_explicit(counter, bytes, memory_order_relaxed);
}

/*
 * Initialises the meter, all counters 0, and starts to report, if the operation has somewhere to report to. `phase` and
 * `operation` are borrowed until meter_stop(). -EAGAIN, -ENOMEM: no thread to be had; there is nothing to stop then.
 */
int meter_start(struct meter *meter, const char *phase, const struct operation *operation, struct failure *failure);

/* The same with counters that start elsewhere. */
int meter_start_at(struct meter *meter, const char *phase, const struct operation *operation, uint64_t total_bytes,
		   uint64_t done_bytes, uint64_t changed_bytes, uint64_t sent_bytes, struct failure *failure);

/* Reports once more and ends it. After that the counters may still be read. A second call, or one on a zeroed meter,
 * does nothing. */
void meter_stop(struct meter *meter);

/* Seconds since the start, and the average of done_bytes a second since then (0 when it took no time). */
double meter_elapsed_seconds(const struct meter *meter);
double meter_average_speed(const struct meter *meter);

/* True once the operation is to stop. */
static inline bool operation_is_stopped(const struct operation *operation)
{
	return operation->stop != NULL && atomic_load(operation->stop);
}

#endif
