/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far a long operation is. Reported about four times a second, and once at the end, from a thread of the operation's own: the callee
 * locks what it shares.
 */
#ifndef WHERRY_SYNCER_PROGRESS_H
#define WHERRY_SYNCER_PROGRESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct progress {
	const char *phase;	 /* "sync", "export", "verify" */
	uint64_t total_bytes;	 /* may still grow a little: unused blocks are found as they are reached */
	uint64_t done_bytes;
	uint64_t changed_bytes;
	uint64_t sent_bytes;	 /* stored, or sent over a network */
	double bytes_per_second; /* source bytes, over the last seconds */
	double remaining_seconds; /* (total - done) / speed; < 0: unknown */
};
typedef void (*progress_fn)(void *opaque, const struct progress *progress);

struct operation {
	const char *doing;		/* for leases: "wherry sync /dev/sda web01" */
	const struct notices *notices;	/* may be NULL */
	progress_fn progress;		/* may be NULL */
	void *progress_opaque;
	const atomic_bool *stop;	/* becomes true (by a signal handler): stop soon, keep what is done; may be NULL */
};

#endif
