/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads are started with all signals blocked in the one that starts them, because a mask set by the new thread itself
 * would come too late for a signal that is on its way.
 */
#include "syncer/crew.h"

#include <assert.h>
#include <signal.h>
#include <unistd.h>

int crew_start(struct crew *crew, void *(*run)(void *opaque), void *opaque, struct failure *failure)
{
	sigset_t all, before;
	int error;

	assert(crew->count < CREW_MOST_THREADS);
	(void)sigfillset(&all); /* none of the three can fail with such arguments */
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&crew->threads[crew->count], NULL, run, opaque);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error != 0)
		return fail_errno(failure, -error, "can't start a thread");
	crew->count++;
	return 0;
}

void crew_join(struct crew *crew)
{
	while (crew->count > 0)
		(void)pthread_join(crew->threads[--crew->count], NULL); /* ours, joined once: can't fail */
}

unsigned crew_cores(unsigned most)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	if (cores < 1)
		return 1;
	return (unsigned long)cores < most ? (unsigned)cores : most;
}
