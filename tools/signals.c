/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SIGINT and SIGTERM are caught even where they were ignored when we started: a
 * shell script starts its background jobs with SIGINT ignored, and "kill -INT" of
 * such a round has to make its checkpoint too. SIGHUP is left alone where it was
 * ignored, since that is what nohup is for.
 *
 * SIGCHLD ignored, as some parents leave it, would have the kernel take away what became of the programs that we run.
 *
 * SA_RESTART: a round's threads are in system calls most of the time, and asking
 * it to stop must not look like a device that fails with EINTR.
 */
#include "tools/signals.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "tools/command.h"

static atomic_bool stop_wanted;
static volatile sig_atomic_t can_stop;
static const char *volatile last_words = "";

/* Atomic, and free of locks where bool is: allowed in a signal handler (C17 7.14.1.1). */
_Static_assert(ATOMIC_BOOL_LOCK_FREE == 2, "a signal handler may set it");

static void on_signal(int number)
{
	const char *words = last_words;

	(void)number;
	if (!can_stop || stop_wanted) {
		ssize_t ignored = write(STDERR_FILENO, words, strlen(words)); /* nobody left to tell if it fails */

		(void)ignored;
		_exit(STATUS_STOPPED);
	}
	stop_wanted = true;
}

void signals_setup(void)
{
	struct sigaction catch = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	struct sigaction ignore = {.sa_handler = SIG_IGN};
	struct sigaction normal = {.sa_handler = SIG_DFL};
	struct sigaction inherited;
	sigset_t ours;

	(void)sigemptyset(&catch.sa_mask);
	(void)sigemptyset(&ignore.sa_mask);
	(void)sigemptyset(&normal.sa_mask);
	/* None of these can fail: the numbers and addresses are good. */
	(void)sigaction(SIGINT, &catch, NULL);
	(void)sigaction(SIGTERM, &catch, NULL);
	(void)sigaction(SIGPIPE, &ignore, NULL);
	(void)sigaction(SIGCHLD, &normal, NULL);
	if (sigaction(SIGHUP, NULL, &inherited) == 0 && inherited.sa_handler != SIG_IGN)
		(void)sigaction(SIGHUP, &catch, NULL);
	/* A parent that blocked them would have made us impossible to stop. */
	(void)sigemptyset(&ours);
	(void)sigaddset(&ours, SIGINT);
	(void)sigaddset(&ours, SIGTERM);
	(void)sigprocmask(SIG_UNBLOCK, &ours, NULL);
}

const atomic_bool *signals_ask_to_stop(void)
{
	can_stop = 1;
	return &stop_wanted;
}

void signals_set_last_words(const char *text)
{
	last_words = text;
}
