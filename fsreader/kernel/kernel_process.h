/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A user-mode Linux in a sandbox, with our program (inside.c) in it, and what goes between it and us (image_link.h).
 */
#ifndef WHERRY_FSREADER_KERNEL_KERNEL_PROCESS_H
#define WHERRY_FSREADER_KERNEL_KERNEL_PROCESS_H

#include <sys/types.h>

#include "fsreader/kernel/initrd.h"
#include "fsreader/kernel/overlay.h"

struct kernel_process {
	pid_t pid;
	int pidfd;
	int talk_fd;  /* SOCK_SEQPACKET: a struct ext_question, then a struct ext_answer and its payload, by turns */
	int image_fd; /* questions about the image, at any time: kernel_process_serve() */
};

/* `image_bytes` as the kernel inside shall see it. The caller ends it: closes both sockets, sandbox_kill_and_reap(). */
int kernel_process_start(const struct kernel_type *type, uint64_t image_bytes, struct kernel_process *ret_process,
			 struct failure *failure);

enum { KERNEL_BUFFER_BYTES = 132 << 10 };

/*
 * Receives one question about the image and answers it: 0. What the source, or the overlay, can't do is the kernel's answer, and the message is in
 * `source_failure`. -EAGAIN: there was none; -EPIPE: the process has ended; -EBADMSG: it asked for what can't be, and is to be ended.
 */
int kernel_process_serve(int image_fd, struct overlay *overlay, uint64_t image_bytes,
			 uint8_t buffer[KERNEL_BUFFER_BYTES], uint64_t *ret_read_bytes, struct failure *source_failure);

#endif
