/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child process with nothing to lose, for programs that parse what strangers made.
 *
 * What it can't do: reach a network (namespaces where the host allows them, and a seccomp filter in any case), write or
 * make files, gain privileges (no_new_privs; as root: another user, no capabilities), trace or signal others, outlive
 * us (PR_SET_PDEATHSIG), use more memory or time than told.
 */
#ifndef WHERRY_FSREADER_SANDBOX_H
#define WHERRY_FSREADER_SANDBOX_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/failure.h"

enum sandbox_kind {
	SANDBOX_WORKER, /* our own worker: confines itself further, with sandbox_confine_worker(), once it runs */
	SANDBOX_TOOL,	/* somebody else's program: may open files for reading, which a dynamic loader has to */
	SANDBOX_KERNEL, /* a user-mode Linux: a tool that has processes of its own, and traces them. It sees none but those */
};

enum { SANDBOX_FD_MOST = 63 }; /* the highest number that the child can have */

struct sandbox_params {
	enum sandbox_kind kind;
	const char *program; /* looked up in PATH without a slash */
	char *const *argv;
	char *const *environment; /* "NAME=VALUE", besides PATH and LC_ALL; NULL: none */
	/*
	 * {ours, theirs}: what the child has open, besides 0, 1 and 2, which are /dev/null unless they are named here.
	 * What a hostile file system makes its parser say doesn't belong on our terminal, so its stderr is for a pipe,
	 * if for anything.
	 */
	const int (*fds)[2];
	unsigned fd_count;
	uint64_t memory_bytes; /* RLIMIT_AS; 0: 1 GiB */
	unsigned cpu_seconds;  /* RLIMIT_CPU; 0: none */
	/*
	 * Called in the child, after namespaces are there and before anything is given up; may be NULL.
	 * Async-signal-safe code only. 0 or a negative errno. With it the child gets a mount namespace of its own (else
	 * none: it would keep alive what is unmounted outside), in which it may mount; as another user than root in a
	 * user namespace, too, with all rights in that.
	 */
	int (*prepare)(void *opaque);
	void *opaque;
};

/* Forks and executes. *ret_pidfd is for poll() and pidfd_send_signal(). The caller reaps it with
 * sandbox_kill_and_reap(). -ENOENT: no such program. */
int sandbox_spawn(const struct sandbox_params *params, pid_t *ret_pid, int *ret_pidfd, struct failure *failure);
void sandbox_kill_and_reap(pid_t pid, int pidfd); /* closes pidfd */

enum { SANDBOX_END_BYTES = 96 };

/*
 * How a child has ended, for messages: "killed by signal 11 (Segmentation fault)". Waits a moment for the end of one
 * whose socket was just closed: "still runs" when it doesn't. It is still to be reaped. Returns `text`.
 */
const char *sandbox_describe_end(int pidfd, char text[SANDBOX_END_BYTES]);

/* For our own worker, once it has all it needs: from here on only read, write, memory, and the end. Any other system
 * call kills it. */
int sandbox_confine_worker(void);

#endif
