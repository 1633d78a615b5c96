/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls that a program in a sandbox may make. For sandbox.c only.
 */
#ifndef WHERRY_FSREADER_SANDBOX_FILTER_H
#define WHERRY_FSREADER_SANDBOX_FILTER_H

#include <linux/filter.h>

#include "common/failure.h"
#include "fsreader/sandbox.h"

/* Sanitizers' run-time systems map terabytes, look around in /proc, and talk on stderr. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANDBOX_HAS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANDBOX_HAS_SANITIZER 1
#endif
#endif
#ifndef SANDBOX_HAS_SANITIZER
#define SANDBOX_HAS_SANITIZER 0
#endif

/*
 * The program is executed from this descriptor, and nothing else is: it lies above the child's limit of descriptors, so
 * that once it is closed, by the exec, nobody can open anything there.
 */
enum { SANDBOX_PROGRAM_FD = 255 };

/* A filter for a tool, or a kernel, to be loaded between fork and exec by seccomp(2). Caller frees ret_program->filter. */
int sandbox_filter_make(enum sandbox_kind kind, struct sock_fprog *ret_program, struct failure *failure);

#endif
