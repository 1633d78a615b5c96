/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an export writes to: a file, a block device, or a stream. For export.c alone.
 *
 * A file and a device are written anywhere, by many threads at once. A stream is written in order by one thread, which
 * has SIGPIPE blocked. All functions that write return -EINTR without a message soon after the operation was stopped or
 * the target abandoned.
 */
#ifndef WHERRY_SYNCER_EXPORT_TARGET_H
#define WHERRY_SYNCER_EXPORT_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "store/store.h"
#include "syncer/progress.h"

/* What is going to be written. */
struct export_content {
	const char *name; /* "web01@3/2"; borrowed as long as the target is open */
	uint64_t size_bytes;
	uint32_t sector_bytes;
	bool is_whole_disk; /* as opposed to a partition */
};

struct export_target;

/*
 * `path` as in export.h, `output_fd` is what "-" means. Refuses what export.h says is refused, then makes the target
 * ready: a file that is there is emptied. *ret_target is set also when it fails after something was changed; else it is
 * NULL. The caller calls export_target_close() in any case.
 */
int export_target_open(struct store *store, const char *path, int output_fd, const struct export_content *content,
		       const struct operation *operation, struct export_target **ret_target, struct failure *failure);

bool export_target_is_stream(const struct export_target *target); /* in order, by one thread */
bool export_target_is_fresh(const struct export_target *target);  /* reads as zeros where nothing is written */

/* Bytes that still fit, UINT64_MAX if that can't be told. */
uint64_t export_target_room(const struct export_target *target);

/* What one thread has written and the kernel has not yet; zeroed at first. */
struct export_trail {
	uint64_t off_bytes; /* written, … */
	uint64_t end_bytes;
	uint64_t len_bytes;	    /* … so much of it */
	uint64_t started_off_bytes; /* on its way to the disk */
	uint64_t started_end_bytes;
};

/* Buffers should lie on this grid as offsets do: (buffer - offset) % EXPORT_ALIGN_BYTES == 0. Others work and are
 * slower. */
enum { EXPORT_ALIGN_BYTES = 4096 };

/* Inside the content. `trail` is not used by a stream. */
int export_target_write(struct export_target *target, struct export_trail *trail, const void *buffer, size_t len_bytes,
			uint64_t off_bytes, struct failure *failure);
int export_target_zero(struct export_target *target, uint64_t len_bytes, uint64_t off_bytes, struct failure *failure);

/* Makes all writes under way and to come return soon. Any thread. */
void export_target_abandon(struct export_target *target);

/* All is written: durable on return, but for pipes. *ret_target_bytes: the device's size, or the content's. */
int export_target_finish(struct export_target *target, uint64_t *ret_target_bytes, struct failure *failure);

/* What closing a target that was not finished left behind. */
enum export_leftover {
	EXPORT_LEFT_NOTHING, /* finished; or nothing was changed, or it was removed again */
	EXPORT_LEFT_PART,    /* something that was there before has been overwritten in part, or a stream has begun */
	EXPORT_LEFT_FILE,    /* a new file that could not be removed */
};
enum export_leftover export_target_close(struct export_target *target); /* NULL is fine */

#endif
