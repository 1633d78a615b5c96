/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few threads that do one job together and are joined at its end.
 *
 * They take no signals: those are for the program's own thread. So a write of theirs to a pipe that nobody reads any
 * more gives EPIPE, without killing the program.
 */
#ifndef WHERRY_SYNCER_CREW_H
#define WHERRY_SYNCER_CREW_H

#include <pthread.h>

#include "common/failure.h"

enum { CREW_MOST_THREADS = 32 };

struct crew {
	pthread_t threads[CREW_MOST_THREADS];
	unsigned count;
};

/* Starts one more. -EAGAIN and the like: it isn't there, the others go on. At most CREW_MOST_THREADS, asserted. */
int crew_start(struct crew *crew, void *(*run)(void *opaque), void *opaque, struct failure *failure);

/* Waits for all of them to end; the crew is empty then. */
void crew_join(struct crew *crew);

/* How many processors there are to use, at least 1, at most `most`. */
unsigned crew_cores(unsigned most);

#endif
