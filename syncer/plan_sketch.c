/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metadata of a source, read so that bad sectors are an answer and not an error, and shown to libraries as a file.
 *
 * The file is a memfd: nothing of the source ever lies on the host's disk, and what it takes is what was copied
 * (two MiB and the tables), whatever its size says.
 */
#include "syncer/plan_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "syncer/source_internal.h"

int plan_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes, bool *ret_is_bad,
	      struct failure *failure)
{
	struct failure cause = {.code = 0};
	int error = source_read(source, buffer, len_bytes, off_bytes, &cause);

	if (error < 0 && !source_error_is_bad_sector(error)) {
		if (cause.code == 0)
			return fail_errno(failure, error, "%s: reading metadata", source_get_info(source)->name);
		(void)fail_from(failure, &cause);
		return error;
	}
	*ret_is_bad = error < 0;
	return 0;
}

int plan_sketch_open(struct source *source, uint64_t off_bytes, uint64_t len_bytes, struct plan_sketch *ret_sketch,
		     struct failure *failure)
{
	AUTO_CLOSE int fd = memfd_create("wherry-plan", MFD_CLOEXEC);

	if (fd < 0)
		return fail_errno(failure, -errno, "plan: memfd_create");
	if (ftruncate(fd, (off_t)len_bytes) < 0)
		return fail_errno(failure, -errno, "plan: a memfd of %llu bytes", (unsigned long long)len_bytes);
	*ret_sketch = (struct plan_sketch){
		.source = source,
		.off_bytes = off_bytes,
		.len_bytes = len_bytes,
		.fd = take_fd(&fd),
	};
	return 0;
}

void plan_sketch_close(struct plan_sketch *sketch)
{
	if (sketch->fd >= 0)
		(void)close(sketch->fd); /* memory only */
	sketch->fd = -1;
}

int plan_sketch_put(const struct plan_sketch *sketch, const void *buffer, size_t len_bytes, uint64_t off_bytes,
		    struct failure *failure)
{
	const uint8_t *at = buffer;

	while (len_bytes > 0) {
		ssize_t put = pwrite(sketch->fd, at, len_bytes, (off_t)off_bytes);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return fail_errno(failure, put < 0 ? -errno : -ENOSPC, "plan: write to a memfd");
		at += put;
		len_bytes -= (size_t)put;
		off_bytes += (uint64_t)put;
	}
	return 0;
}

int plan_sketch_get(const struct plan_sketch *sketch, void *buffer, size_t len_bytes, uint64_t off_bytes,
		    struct failure *failure)
{
	uint8_t *at = buffer;

	memset(buffer, 0, len_bytes);
	while (len_bytes > 0 && off_bytes < sketch->len_bytes) {
		ssize_t got = pread(sketch->fd, at, len_bytes, (off_t)off_bytes);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return fail_errno(failure, -errno, "plan: read from a memfd");
		if (got == 0)
			break;
		at += got;
		len_bytes -= (size_t)got;
		off_bytes += (uint64_t)got;
	}
	return 0;
}

int plan_sketch_copy(struct plan_sketch *sketch, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure)
{
	AUTO_FREE uint8_t *buffer = NULL;
	size_t buffer_bytes = PLAN_EDGE_BYTES;

	if (off_bytes >= sketch->len_bytes)
		return 0;
	if (len_bytes > sketch->len_bytes - off_bytes)
		len_bytes = sketch->len_bytes - off_bytes;
	if (len_bytes < buffer_bytes)
		buffer_bytes = (size_t)len_bytes;
	buffer = malloc(buffer_bytes + 1); /* len_bytes may be 0 */
	if (buffer == NULL)
		return fail(failure, -ENOMEM, "plan: out of memory");

	while (len_bytes > 0) {
		size_t step_bytes = len_bytes < buffer_bytes ? (size_t)len_bytes : buffer_bytes;
		bool is_bad = false;
		int error =
			plan_read(sketch->source, buffer, step_bytes, sketch->off_bytes + off_bytes, &is_bad, failure);
		if (error < 0)
			return error;
		if (is_bad)
			sketch->is_incomplete = true;
		else
			error = plan_sketch_put(sketch, buffer, step_bytes, off_bytes, failure);
		if (error < 0)
			return error;
		off_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	return 0;
}

int plan_sketch_copy_edges(struct plan_sketch *sketch, struct failure *failure)
{
	uint64_t tail_bytes = sketch->len_bytes < PLAN_EDGE_BYTES ? sketch->len_bytes : PLAN_EDGE_BYTES;
	int error = plan_sketch_copy(sketch, 0, PLAN_EDGE_BYTES, failure);

	if (error < 0)
		return error;
	return plan_sketch_copy(sketch, sketch->len_bytes - tail_bytes, tail_bytes, failure);
}
