/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FUSE_HANDLE_KILLPRIV_V2 (linux/fuse.h): writing to a file takes set-user-ID bits and capabilities away from it,
 * without being told to. Nothing that can be written to here has any, so it is true. A kernel that isn't told asks for
 * the attribute security.capability before each write: 7 us of 24 for one of 4 KiB.
 *
 * libfuse lets one read and write its messages. The first one that is written is the answer to the kernel's hello
 * (FUSE_INIT), for the kernel asks nothing else before it has that. A kernel that doesn't know the flag passes over it.
 */
#include "fusefs/fuse_wire.h"

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include <linux/fuse.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_flag has_answered = ATOMIC_FLAG_INIT;

static ssize_t read_message(int fd, void *buffer, size_t room, void *opaque)
{
	(void)opaque;
	return read(fd, buffer, room);
}

/* A header, and what it is about. */
static ssize_t write_message(int fd, struct iovec *pieces, int count, void *opaque)
{
	(void)opaque;
	if (!atomic_flag_test_and_set(&has_answered) && count == 2 &&
	    pieces[1].iov_len >= offsetof(struct fuse_init_out, flags) + sizeof(uint32_t))
		((struct fuse_init_out *)pieces[1].iov_base)->flags |= FUSE_HANDLE_KILLPRIV_V2;
	return writev(fd, pieces, count);
}

int fuse_wire_attach(struct fuse_session *session, struct failure *failure)
{
	const struct fuse_custom_io io = {.writev = write_message, .read = read_message};
	int error = fuse_session_custom_io(session, &io, fuse_session_fd(session));

	return error < 0 ? fail_errno(failure, error, "FUSE: its messages can't be looked at") : 0;
}
