/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A source that reads a view of a store.
 *
 * Made for looking at metadata: a few thousand small reads, many of them close to each other. A handful of plain chunks
 * is kept, the one not used for longest goes first. It does everything in the calling thread; whoever wants to read a
 * whole image fast reads chunks instead (export.c, verify.c).
 *
 * The first damage that was met is remembered, for source_partition.h.
 */
#include "syncer/source_view.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "syncer/map_cursor.h"
#include "syncer/source_internal.h"
#include "syncer/source_partition.h"

enum {
	CACHE_SLOTS = 16,
	CACHE_MOST_BYTES = 4 << 20,
	VIEW_GRAIN_BYTES = 512,
};

struct cached_chunk {
	uint8_t *plain; /* chunk_bytes; NULL until used */
	uint64_t index;
	uint64_t last_use; /* 0: holds nothing */
};

struct view_source {
	struct source base;
	struct map_cursor cursor;
	struct store_scratch *scratch;
	struct request_ring finished;
	struct cached_chunk cache[CACHE_SLOTS];
	unsigned cache_slots;
	uint64_t uses;
	struct failure damage; /* the first one met */
};

static struct view_source *view_of(struct source *source)
{
	return (struct view_source *)source; /* base is the first member */
}

/* ------------------------------------------------------------------ reading */

static struct cached_chunk *find_slot(struct view_source *view, uint64_t index)
{
	struct cached_chunk *oldest = &view->cache[0];

	for (unsigned i = 0; i < view->cache_slots; i++) {
		struct cached_chunk *slot = &view->cache[i];

		if (slot->last_use > 0 && slot->index == index)
			return slot;
		if (slot->last_use < oldest->last_use)
			oldest = slot;
	}
	oldest->last_use = 0;
	return oldest;
}

static int load_chunk(struct view_source *view, struct cached_chunk *slot, store_chunk chunk, uint64_t index,
		      struct failure *failure)
{
	struct failure cause = {.code = 0};
	int error;

	if (slot->plain == NULL)
		slot->plain = malloc(view->cursor.chunk_bytes);
	if (slot->plain == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", view->base.info.name);
	error = map_cursor_read(&view->cursor, view->scratch, chunk, index, false, slot->plain, &cause);
	if (error == 0) {
		slot->index = index;
		return 0;
	}
	if (error == -EBADMSG)
		(void)fail_from(&view->damage, &cause);
	(void)fail_from(failure, &cause);
	return error;
}

/* What lies in one chunk of a range. */
static int read_in_chunk(struct view_source *view, uint8_t *buffer, size_t len_bytes, uint64_t off_bytes,
			 struct failure *failure)
{
	uint64_t index = off_bytes / view->cursor.chunk_bytes;
	struct cached_chunk *slot;
	store_chunk chunk = 0;
	int error = map_cursor_get(&view->cursor, index, &chunk, failure);

	if (error < 0)
		return error;
	if (chunk == 0) {
		memset(buffer, 0, len_bytes);
		return 0;
	}
	slot = find_slot(view, index);
	if (slot->last_use == 0)
		error = load_chunk(view, slot, chunk, index, failure);
	if (error < 0)
		return error;
	slot->last_use = ++view->uses;
	memcpy(buffer, slot->plain + off_bytes % view->cursor.chunk_bytes, len_bytes);
	return 0;
}

static int view_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	struct view_source *view = view_of(source);
	uint8_t *at = buffer;

	while (len_bytes > 0) {
		size_t piece_bytes = view->cursor.chunk_bytes - (size_t)(off_bytes % view->cursor.chunk_bytes);
		int error;

		if (piece_bytes > len_bytes)
			piece_bytes = len_bytes;
		error = read_in_chunk(view, at, piece_bytes, off_bytes, failure);
		if (error < 0)
			return error;
		at += piece_bytes;
		off_bytes += piece_bytes;
		len_bytes -= piece_bytes;
	}
	return 0;
}

static int view_submit(struct source *source, struct source_request *request, struct failure *failure)
{
	(void)failure; /* what goes wrong is the request's result */
	request->result = view_read(source, request->buffer, request->len_bytes, request->off_bytes, NULL);
	request_ring_put(&view_of(source)->finished, request);
	return 0;
}

static struct source_request *view_reap(struct source *source, bool wait)
{
	(void)wait; /* all that were submitted are finished */
	return request_ring_take(&view_of(source)->finished);
}

/* ------------------------------------------------------- what else is asked */

static int view_extent_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, enum source_extent *ret_extent,
			  uint64_t *ret_len_bytes, struct failure *failure)
{
	struct view_source *view = view_of(source);
	uint32_t chunk_bytes = view->cursor.chunk_bytes;
	uint64_t first = off_bytes / chunk_bytes;
	uint64_t last = (off_bytes + len_bytes - 1) / chunk_bytes;
	uint64_t next = 0, until_bytes;
	int error = map_cursor_next(&view->cursor, first, last + 1, &next, failure);

	if (error < 0)
		return error;
	*ret_extent = next == first ? SOURCE_DATA : SOURCE_HOLE;
	if (next == first)
		next++; /* the one chunk: it costs little to be asked again */
	until_bytes = next > last ? off_bytes + len_bytes : next * chunk_bytes;
	*ret_len_bytes = until_bytes - off_bytes;
	return 0;
}

static int view_dirty_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_is_dirty,
			 uint64_t *ret_len_bytes, struct failure *failure)
{
	(void)off_bytes;
	(void)len_bytes;
	(void)ret_is_dirty;
	(void)ret_len_bytes;
	return fail(failure, -ENODATA, "%s: has no dirty bitmap", source->info.name);
}

static int view_in_use(struct source *source, bool *ret_in_use, char **ret_why, struct failure *failure)
{
	(void)source;
	(void)failure;
	*ret_in_use = false;
	if (ret_why != NULL)
		*ret_why = NULL;
	return 0;
}

static int view_range_mounted(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_mounted,
			      struct failure *failure)
{
	(void)source;
	(void)off_bytes;
	(void)len_bytes;
	(void)failure;
	*ret_mounted = false;
	return 0;
}

static int view_change_stamp(struct source *source, char **ret_stamp, struct failure *failure)
{
	char *stamp = strdup("");

	if (stamp == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", source->info.name);
	*ret_stamp = stamp;
	return 0;
}

static int view_current_size(struct source *source, uint64_t *ret_size_bytes, struct failure *failure)
{
	(void)failure;
	*ret_size_bytes = source->info.size_bytes;
	return 0;
}

/* ------------------------------------------------------ opening and closing */

static void view_close(struct source *source)
{
	struct view_source *view = view_of(source);

	for (unsigned i = 0; i < CACHE_SLOTS; i++)
		free(view->cache[i].plain);
	store_scratch_free(view->scratch);
	free(view);
}

static const struct source_ops view_ops = {
	.close = view_close,
	.submit = view_submit,
	.reap = view_reap,
	.read = view_read,
	.extent_at = view_extent_at,
	.dirty_at = view_dirty_at,
	.in_use = view_in_use,
	.range_mounted = view_range_mounted,
	.change_stamp = view_change_stamp,
	.current_size = view_current_size,
};

static int fill_info(struct source_info *info, struct store_view *view, struct failure *failure)
{
	const char *name = store_view_name(view);

	info->kind = SOURCE_FILE;
	info->size_bytes = store_view_size(view);
	info->sector_bytes = store_view_sector_bytes(view);
	info->align_bytes = VIEW_GRAIN_BYTES;
	info->most_in_flight = 1;
	info->name = strdup(name);
	if (asprintf(&info->identity, "view:%s", name) < 0)
		info->identity = NULL;
	if (info->name == NULL || info->identity == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", name);
	return 0;
}

int source_view_open(struct store_view *view, struct source **ret_source, struct failure *failure)
{
	struct view_source *source = calloc(1, sizeof(*source));
	int error;

	if (source == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", store_view_name(view));
	source->base.ops = &view_ops;
	source->base.grain_bytes = VIEW_GRAIN_BYTES;
	map_cursor_init(&source->cursor, view);
	source->cache_slots = CACHE_MOST_BYTES / source->cursor.chunk_bytes;
	if (source->cache_slots > CACHE_SLOTS)
		source->cache_slots = CACHE_SLOTS;
	error = fill_info(&source->base.info, view, failure);
	if (error == 0)
		error = store_scratch_new(&source->scratch, failure);
	if (error < 0) {
		source_close(&source->base);
		return error;
	}
	*ret_source = &source->base;
	return 0;
}

/* --------------------------------------------------------------- partitions */

static void cleanup_source(struct source **source)
{
	source_close(*source);
}

int source_view_find_partition(struct store_view *view, uint32_t number, uint64_t *ret_off_bytes,
			       uint64_t *ret_len_bytes, struct failure *failure)
{
	AUTO(cleanup_source) struct source *source = NULL;
	int error;

	if (number == 0) {
		*ret_off_bytes = 0;
		*ret_len_bytes = store_view_size(view);
		return 0;
	}
	error = source_view_open(view, &source, failure);
	if (error < 0)
		return error;
	return source_partition_find(source, number, &view_of(source)->damage, ret_off_bytes, ret_len_bytes, failure);
}
