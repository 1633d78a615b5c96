/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One error, described once, where its cause is known.
 *
 * A function that can fail returns 0 or a negative errno and takes a
 * `struct failure *` as its last argument. Whoever finds the cause calls fail(),
 * which writes the message and returns the code; everybody above passes the code
 * on and adds nothing. The first message written stays. `failure` may be NULL
 * when the caller wants the code alone.
 *
 * A message reads "WHAT: WHY" or "WHAT: WHY; HINT", without a final full stop,
 * for example
 *     disk web01: locked by wherry sync (pid 4711); wait for it or stop it
 *
 * Threads: a failure belongs to one thread at a time.
 */
#ifndef WHERRY_COMMON_FAILURE_H
#define WHERRY_COMMON_FAILURE_H

#include <stdarg.h>
#include <stdbool.h>

enum { FAILURE_MESSAGE_BYTES = 1024 };

struct failure {
	int code; /* negative errno, 0 while nothing has failed */
	char message[FAILURE_MESSAGE_BYTES]; /* one line, cut with "..." when longer */
};

/*
 * Writes the message unless one is there already, and returns `code`, which must
 * be negative. Control characters in the message (file names can hold them) are
 * replaced by '?', so that it stays one line. Keeps errno.
 */
__attribute__((format(printf, 3, 4))) int fail(struct failure *failure, int code, const char *format, ...);

/* The same, and appends ": " and the text of the errno `-code`. */
__attribute__((format(printf, 3, 4))) int fail_errno(struct failure *failure, int code, const char *format, ...);

/* Hands `from` on to `to` unless `to` has a message already; returns from->code. */
int fail_from(struct failure *to, const struct failure *from);

void failure_clear(struct failure *failure);

/*
 * What a library has to say while it works on: not an error, not output. The
 * caller decides where it goes. The text is one line, valid during the call
 * only. May be called from any thread; the callee locks if it must.
 */
enum notice_level { NOTICE_INFO, NOTICE_WARNING };

struct notices {
	void (*say)(void *opaque, enum notice_level level, const char *text); /* NULL: silence */
	void *opaque;
};

__attribute__((format(printf, 3, 4))) void notice(const struct notices *notices, enum notice_level level,
						  const char *format, ...);

#endif
