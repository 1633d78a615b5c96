/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes into a pipe, a socket or a character device, in order, with an eye on whether to stop. Part of export_target.c.
 */
#ifndef WHERRY_SYNCER_EXPORT_STREAM_H
#define WHERRY_SYNCER_EXPORT_STREAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "syncer/progress.h"

enum stream_way {
	STREAM_NONBLOCKING, /* a pipe of whose descriptor we are the only user: write() doesn't wait */
	STREAM_SOCKET,	    /* send() doesn't wait if told so */
	STREAM_CAREFUL,	    /* a pipe whose descriptor others share: only what fits is written */
	STREAM_PLAIN	    /* write() waits, and not for long */
};

struct stream {
	const char *name; /* borrowed; for messages */
	const struct operation *operation;
	const atomic_bool *is_abandoned; /* borrowed: somebody else failed */
	int fd;
	bool owns_fd;
	bool cannot_give_pages; /* a pipe that doesn't take vmsplice() */
	bool can_sync; /* a regular file or a block device behind it */
	enum stream_way way;
	uint64_t written_bytes;
};

/*
 * Over a descriptor that somebody else owns and shares (standard output); its flags stay as they are. `stream` is
 * released by stream_close() whatever is returned.
 */
int stream_open_shared(struct stream *stream, int fd, struct failure *failure);

/* Opens a FIFO, waiting until somebody reads it (-EINTR when stopped meanwhile), or a character device. */
int stream_open_path(struct stream *stream, const char *path, bool is_fifo, struct failure *failure);

/*
 * In a thread that has SIGPIPE blocked. -EPIPE: nobody reads any more. -EINTR, without a message: stopped or abandoned,
 * noticed within a tenth of a second.
 */
int stream_write(struct stream *stream, const void *buffer, size_t len_bytes, struct failure *failure);
int stream_zero(struct stream *stream, uint64_t len_bytes, struct failure *failure);

/* Durable on return where there is something to be durable on. */
int stream_finish(struct stream *stream, struct failure *failure);
void stream_close(struct stream *stream);

#endif
