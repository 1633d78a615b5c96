/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks of 4 KiB, in the order in which they were first written, and a hash table that says which is where. While
 * nothing has been written, and that is always so with a file system that was unmounted, reading costs one look at a
 * counter.
 */
#include "fsreader/kernel/overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"

enum { FIRST_CAPACITY = 256 };

struct place {
	uint64_t block; /* of the source, plus 1; 0: nothing here */
	uint32_t slot;	/* of the file */
};

struct overlay {
	struct fsreader_source source;
	char *scratch_dir;
	pthread_rwlock_t lock; /* all below */
	int fd;		       /* -1: none yet */
	atomic_uint count;     /* of blocks; read without the lock to see whether there are any */
	uint32_t capacity;     /* of the table: twice as much as there is in it, at least; a power of two */
	struct place *places;
};

int overlay_make(const struct fsreader_source *source, const char *scratch_dir, struct overlay **ret_overlay,
		 struct failure *failure)
{
	struct overlay *overlay = calloc(1, sizeof(*overlay));
	const char *tmpdir = getenv("TMPDIR");

	if (scratch_dir == NULL)
		scratch_dir = tmpdir != NULL && *tmpdir != '\0' ? tmpdir : "/var/tmp";
	if (overlay == NULL || (overlay->scratch_dir = strdup(scratch_dir)) == NULL) {
		free(overlay);
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	}
	overlay->source = *source;
	overlay->fd = -1;
	(void)pthread_rwlock_init(&overlay->lock, NULL); /* can't fail with default attributes */
	*ret_overlay = overlay;
	return 0;
}

void overlay_free(struct overlay *overlay)
{
	if (overlay == NULL)
		return;
	overlay_drop(overlay);
	(void)pthread_rwlock_destroy(&overlay->lock);
	free(overlay->scratch_dir);
	free(overlay);
}

void overlay_drop(struct overlay *overlay)
{
	(void)pthread_rwlock_wrlock(&overlay->lock); /* not held by this thread */
	if (overlay->fd >= 0)
		(void)close(overlay->fd); /* nobody misses it */
	overlay->fd = -1;
	free(take_ptr(overlay->places));
	overlay->capacity = 0;
	atomic_store(&overlay->count, 0);
	(void)pthread_rwlock_unlock(&overlay->lock);
}

/* ---- the table ---- */

/* Where the block is, or would be. There is room. */
static struct place *find_place(struct place *places, uint32_t capacity, uint64_t block)
{
	uint32_t at = (uint32_t)((block + 1) * 0x9e3779b97f4a7c15ULL >> 32) & (capacity - 1);

	while (places[at].block != 0 && places[at].block != block + 1)
		at = (at + 1) & (capacity - 1);
	return &places[at];
}

static const struct place *find_block_locked(const struct overlay *overlay, uint64_t block)
{
	const struct place *place =
		overlay->capacity == 0 ? NULL : find_place(overlay->places, overlay->capacity, block);

	return place == NULL || place->block == 0 ? NULL : place;
}

static int grow_locked(struct overlay *overlay)
{
	uint32_t capacity = overlay->capacity == 0 ? FIRST_CAPACITY : overlay->capacity * 2;
	struct place *places = calloc(capacity, sizeof(*places));

	if (places == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < overlay->capacity; i++)
		if (overlay->places[i].block != 0)
			*find_place(places, capacity, overlay->places[i].block - 1) = overlay->places[i];
	free(overlay->places);
	overlay->places = places;
	overlay->capacity = capacity;
	return 0;
}

/* ---- writing ---- */

static int open_file_locked(struct overlay *overlay, struct failure *failure)
{
	if (overlay->fd >= 0)
		return 0;
	overlay->fd = open(overlay->scratch_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (overlay->fd < 0)
		return fail_errno(failure, -errno, "%s: a temporary file", overlay->scratch_dir);
	return 0;
}

static int write_slot_locked(struct overlay *overlay, uint32_t slot, const void *data, size_t len_bytes,
			     size_t skip_bytes, struct failure *failure)
{
	ssize_t written = pwrite(overlay->fd, data, len_bytes, (off_t)slot * OVERLAY_BLOCK_BYTES + (off_t)skip_bytes);

	if (written == (ssize_t)len_bytes)
		return 0;
	return fail_errno(failure, written < 0 ? -errno : -ENOSPC, "%s: a temporary file", overlay->scratch_dir);
}

/* A block that is written to for the first time: with what the source has of it, for the write may be of a part. */
static int add_block_locked(struct overlay *overlay, uint64_t block, uint32_t *ret_slot, struct failure *failure)
{
	uint64_t off_bytes = block * OVERLAY_BLOCK_BYTES;
	uint64_t left_bytes = overlay->source.size_bytes - off_bytes;
	uint8_t data[OVERLAY_BLOCK_BYTES] = {0};
	uint32_t count = atomic_load(&overlay->count);
	int error;

	if (count == OVERLAY_MOST_BLOCKS)
		return fail(failure, -ENOSPC, "fsreader: mounting it read-only writes more than %d blocks",
			    OVERLAY_MOST_BLOCKS);
	if (2 * (count + 1) > overlay->capacity && grow_locked(overlay) < 0)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	error = overlay->source.read(overlay->source.opaque, data,
				     left_bytes < sizeof(data) ? (size_t)left_bytes : sizeof(data), off_bytes, failure);
	if (error == 0)
		error = write_slot_locked(overlay, count, data, sizeof(data), 0, failure);
	if (error < 0)
		return error;
	*find_place(overlay->places, overlay->capacity, block) = (struct place){.block = block + 1, .slot = count};
	atomic_store(&overlay->count, count + 1);
	*ret_slot = count;
	return 0;
}

static int write_block_locked(struct overlay *overlay, uint64_t block, const void *data, size_t len_bytes,
			      size_t skip_bytes, struct failure *failure)
{
	const struct place *place = find_block_locked(overlay, block);
	uint32_t slot = place == NULL ? 0 : place->slot;
	int error = place == NULL ? add_block_locked(overlay, block, &slot, failure) : 0;

	return error < 0 ? error : write_slot_locked(overlay, slot, data, len_bytes, skip_bytes, failure);
}

int overlay_write(struct overlay *overlay, const void *data, size_t len_bytes, uint64_t off_bytes,
		  struct failure *failure)
{
	const uint8_t *at = data;
	int error;

	(void)pthread_rwlock_wrlock(&overlay->lock); /* not held by this thread */
	error = open_file_locked(overlay, failure);
	while (len_bytes > 0 && error == 0) {
		size_t skip_bytes = (size_t)(off_bytes % OVERLAY_BLOCK_BYTES);
		size_t step_bytes =
			OVERLAY_BLOCK_BYTES - skip_bytes < len_bytes ? OVERLAY_BLOCK_BYTES - skip_bytes : len_bytes;

		error = write_block_locked(overlay, off_bytes / OVERLAY_BLOCK_BYTES, at, step_bytes, skip_bytes,
					   failure);
		at += step_bytes;
		off_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	(void)pthread_rwlock_unlock(&overlay->lock);
	return error;
}

/* ---- reading ---- */

static int read_slot_locked(const struct overlay *overlay, uint32_t slot, void *buffer, size_t len_bytes,
			    size_t skip_bytes, struct failure *failure)
{
	ssize_t done = pread(overlay->fd, buffer, len_bytes, (off_t)slot * OVERLAY_BLOCK_BYTES + (off_t)skip_bytes);

	if (done == (ssize_t)len_bytes)
		return 0;
	return fail_errno(failure, done < 0 ? -errno : -EIO, "%s: a temporary file", overlay->scratch_dir);
}

/* As far as blocks go on to be of the same kind: of the source, in one read; of the file, block by block. */
static size_t same_kind_bytes_locked(const struct overlay *overlay, uint64_t off_bytes, size_t len_bytes)
{
	uint64_t block = off_bytes / OVERLAY_BLOCK_BYTES, end_bytes = off_bytes + len_bytes;
	uint64_t next_bytes = (block + 1) * OVERLAY_BLOCK_BYTES;

	if (find_block_locked(overlay, block) == NULL)
		while (next_bytes < end_bytes && find_block_locked(overlay, next_bytes / OVERLAY_BLOCK_BYTES) == NULL)
			next_bytes += OVERLAY_BLOCK_BYTES;
	return (size_t)((next_bytes < end_bytes ? next_bytes : end_bytes) - off_bytes);
}

static int read_locked(struct overlay *overlay, uint8_t *buffer, size_t len_bytes, uint64_t off_bytes,
		       struct failure *failure)
{
	int error = 0;

	while (len_bytes > 0 && error == 0) {
		const struct place *place = find_block_locked(overlay, off_bytes / OVERLAY_BLOCK_BYTES);
		size_t step_bytes = same_kind_bytes_locked(overlay, off_bytes, len_bytes);

		error = place == NULL
				? overlay->source.read(overlay->source.opaque, buffer, step_bytes, off_bytes, failure)
				: read_slot_locked(overlay, place->slot, buffer, step_bytes,
						   (size_t)(off_bytes % OVERLAY_BLOCK_BYTES), failure);
		buffer += step_bytes;
		off_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	return error;
}

static int overlay_read(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	struct overlay *overlay = opaque;
	int error;

	if (atomic_load(&overlay->count) == 0)
		return overlay->source.read(overlay->source.opaque, buffer, len_bytes, off_bytes, failure);
	(void)pthread_rwlock_rdlock(&overlay->lock); /* not held by this thread */
	error = read_locked(overlay, buffer, len_bytes, off_bytes, failure);
	(void)pthread_rwlock_unlock(&overlay->lock);
	return error;
}

struct fsreader_source overlay_source(struct overlay *overlay)
{
	struct fsreader_source source = overlay->source;

	source.read = overlay_read;
	source.opaque = overlay;
	return source;
}
