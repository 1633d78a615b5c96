/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing to somebody who may not be reading.
 *
 * A write of a megabyte to a pipe returns when all of it has found a place, which is never if the reader sleeps; and a
 * stop must be obeyed soon. O_NONBLOCK is a flag of the open file description, and that of standard output is shared
 * with the shell and whoever else has it: setting it there has broken many a terminal. So a pipe is opened anew by way
 * of /proc, which gives a description of our own for the same pipe. Where that can't be done (no /proc, a pipe of
 * another user), only PIPE_BUF bytes are written at a time, and only after poll() says that so much fits (pipe(7): a
 * pipe is writable when PIPE_BUF bytes can be written without blocking). Sockets take the wish not to wait with each
 * call.
 *
 * A regular file behind standard output is written as it comes, zeros too, for it may be open for appending, or at
 * an offset: a hole is only for files that we made.
 *
 * Zeros are given to a pipe as pages (vmsplice): always the same ones, which never change, and nothing is copied or allocated. Content is not: pages given to
 * a pipe must not change until the last reader has taken them (who may have moved them on to another pipe), and nobody says when that is.
 */
#include "syncer/export_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "syncer/meter.h"

enum {
	PIPE_BYTES = 1 << 20,	       /* what anybody may have by default (/proc/sys/fs/pipe-max-size) */
	PLAIN_WRITE_BYTES = 256 << 10, /* between two looks at whether to stop */
	ZERO_BYTES = 256 << 10,	       /* stays in the processor's cache */
	WAIT_MS = 100,
};

static uint8_t zeros[ZERO_BYTES]; /* never written; const would put it into the program's file */

static bool is_over(const struct stream *stream)
{
	return atomic_load_explicit(stream->is_abandoned, memory_order_relaxed) ||
	       operation_is_stopped(stream->operation);
}

/* ------------------------------------------------------------------ opening */

/* A larger pipe means fewer switches between us and the reader. It may be refused, and works all the same. */
static void widen(int fd)
{
	if (fcntl(fd, F_GETPIPE_SZ) < PIPE_BYTES)
		(void)fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES);
}

static void adopt_pipe(struct stream *stream, int fd)
{
	char path[64];
	int own_fd;

	widen(fd);
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	own_fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	stream->owns_fd = own_fd >= 0;
	stream->fd = own_fd >= 0 ? own_fd : fd;
	stream->way = own_fd >= 0 ? STREAM_NONBLOCKING : STREAM_CAREFUL;
}

int stream_open_shared(struct stream *stream, int fd, struct failure *failure)
{
	struct stat status;

	stream->fd = fd;
	stream->owns_fd = false;
	stream->way = STREAM_PLAIN;
	if (fstat(fd, &status) < 0)
		return fail_errno(failure, -errno, "%s: can't be written to", stream->name);
	if (S_ISFIFO(status.st_mode))
		adopt_pipe(stream, fd);
	else if (S_ISSOCK(status.st_mode))
		stream->way = STREAM_SOCKET;
	stream->can_sync = S_ISREG(status.st_mode) || S_ISBLK(status.st_mode);
	return 0;
}

static void sleep_ms(long wait_ms)
{
	const struct timespec wait = {.tv_nsec = wait_ms * 1000000};

	(void)nanosleep(&wait, NULL); /* shorter is fine */
}

int stream_open_path(struct stream *stream, const char *path, bool is_fifo, struct failure *failure)
{
	const int flags = O_WRONLY | O_CLOEXEC | O_NOCTTY | (is_fifo ? O_NONBLOCK : 0);

	stream->way = is_fifo ? STREAM_NONBLOCKING : STREAM_PLAIN;
	for (;;) {
		stream->fd = open(path, flags);
		if (stream->fd >= 0)
			break;
		if (!is_fifo || errno != ENXIO) /* ENXIO: nobody has it open for reading */
			return fail_errno(failure, -errno, "%s: can't be opened for writing", path);
		if (is_over(stream))
			return -EINTR;
		sleep_ms(WAIT_MS / 2);
	}
	stream->owns_fd = true;
	if (is_fifo)
		widen(stream->fd);
	return 0;
}

/* ------------------------------------------------------------------ writing */

static bool wait_until_writable(const struct stream *stream)
{
	struct pollfd waiting = {.fd = stream->fd, .events = POLLOUT};

	/* POLLERR: nobody reads any more; the write says so. An interrupted wait is asked again. */
	return poll(&waiting, 1, WAIT_MS) > 0 && waiting.revents != 0;
}

/* How much was written, or a negative errno; -EAGAIN: nothing fits at the moment. */
static ssize_t try_write(const struct stream *stream, const uint8_t *at, size_t len_bytes)
{
	ssize_t written;

	switch (stream->way) {
	case STREAM_SOCKET:
		written = send(stream->fd, at, len_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case STREAM_CAREFUL:
		if (!wait_until_writable(stream))
			return -EAGAIN;
		written = write(stream->fd, at, len_bytes < PIPE_BUF ? len_bytes : PIPE_BUF);
		break;
	case STREAM_PLAIN:
		written = write(stream->fd, at, len_bytes < PLAIN_WRITE_BYTES ? len_bytes : PLAIN_WRITE_BYTES);
		break;
	case STREAM_NONBLOCKING:
	default:
		written = write(stream->fd, at, len_bytes);
		break;
	}
	return written < 0 ? -errno : written;
}

/* The same, of zeros. Where pages can't be given, they are written. */
static ssize_t try_zero(struct stream *stream, uint64_t len_bytes)
{
	size_t piece_bytes = len_bytes < ZERO_BYTES ? (size_t)len_bytes : ZERO_BYTES;
	struct iovec pages = { .iov_base = zeros, .iov_len = piece_bytes };
	ssize_t given;

	if (stream->way != STREAM_NONBLOCKING || stream->cannot_give_pages)
		return try_write(stream, zeros, piece_bytes);
	given = vmsplice(stream->fd, &pages, 1, SPLICE_F_NONBLOCK);
	if (given < 0 && (errno == EINVAL || errno == ENOSYS || errno == EPERM || errno == EBADF)) {
		stream->cannot_give_pages = true;
		return -EINTR;
	}
	return given < 0 ? -errno : given;
}

static int fail_write(const struct stream *stream, int error, struct failure *failure)
{
	if (error == -EPIPE || error == -ECONNRESET)
		return fail(failure, -EPIPE, "%s: whoever was reading it has gone, after %" PRIu64 " bytes",
			    stream->name, stream->written_bytes);
	return fail_errno(failure, error, "%s: can't write at %" PRIu64, stream->name, stream->written_bytes);
}

/* `buffer` NULL: zeros */
static int put_all(struct stream *stream, const uint8_t *buffer, uint64_t len_bytes, struct failure *failure)
{
	while (len_bytes > 0) {
		ssize_t written;

		if (is_over(stream))
			return -EINTR;
		written = buffer != NULL ? try_write(stream, buffer, (size_t)len_bytes) : try_zero(stream, len_bytes);
		if (written > 0) {
			buffer = buffer != NULL ? buffer + written : NULL;
			len_bytes -= (uint64_t)written;
			stream->written_bytes += (uint64_t)written;
		} else if (written == -EAGAIN) {
			(void)wait_until_writable(stream);
		} else if (written != -EINTR) {
			return fail_write(stream, written == 0 ? -EIO : (int)written, failure);
		}
	}
	return 0;
}

int stream_write(struct stream *stream, const void *buffer, size_t len_bytes, struct failure *failure)
{
	return put_all(stream, buffer, len_bytes, failure);
}

int stream_zero(struct stream *stream, uint64_t len_bytes, struct failure *failure)
{
	return put_all(stream, NULL, len_bytes, failure);
}

int stream_finish(struct stream *stream, struct failure *failure)
{
	if (stream->can_sync && fsync(stream->fd) < 0)
		return fail_errno(failure, -errno, "%s: what was written to it did not reach the disk", stream->name);
	return 0;
}

void stream_close(struct stream *stream)
{
	if (stream->owns_fd && stream->fd >= 0)
		(void)close(stream->fd); /* a pipe or a character device: nothing that a close could lose */
	stream->fd = -1;
	stream->owns_fd = false;
}
