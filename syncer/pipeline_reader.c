/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reading stage: from the plan to units full of content.
 *
 * The disk is cut at multiples of UNIT_BYTES. Within a unit the pieces that the plan wants are read; pieces less than READ_THROUGH_BYTES apart are read in
 * one request, because seeking costs more; whatever the plan does not want is then set to zero, so that what is left out reads as zeros whether
 * it was read along or not.
 *
 * With a dirty bitmap a chunk is read if any part of it is dirty. Of those called clean, a sample is read all the same and must prove to
 * be the same: a bitmap that lost blocks (over a reboot, or one made anew under the same name) is worth nothing, and silently so.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/pipeline_internal.h"
#include "syncer/source_internal.h"

enum {
	READ_THROUGH_BYTES = 32 << 10,
	SAMPLE_EVERY = 64, /* one of so many clean chunks, by chance; of more on a disk of which that would be more than … */
	SAMPLES_MOST = 16384, /* … so many in all: 1 GiB at 64 KiB a chunk */
};

struct reader {
	struct pipeline *pipeline;
	struct source *source;
	unsigned in_flight;
	unsigned most_in_flight;
	uint32_t align_bytes;
	uint64_t at_bytes; /* everything before has been made into units */
	struct plan_range range; /* of the plan, that contains at_bytes; len 0: not asked yet */
	struct shared_page *page; /* the last one used */
	uint64_t next_mapped_page; /* pages in [at, this) hold nothing; valid if known_from <= page of at */
	bool next_mapped_is_known;
	bool dirty, dirty_is_known; /* answer of the bitmap for [.., dirty_end) */
	uint64_t dirty_end;
	uint64_t random;
	uint64_t sample_every;
	struct failure failure;
};

/* xorshift64: only which chunks to look at, nothing secret */
static uint64_t next_random(struct reader *reader)
{
	reader->random ^= reader->random << 13;
	reader->random ^= reader->random >> 7;
	reader->random ^= reader->random << 17;
	return reader->random;
}

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- handing units on ---- */

static void hand_to_workers(struct pipeline *pipeline, struct unit *unit)
{
	WITH_LOCK(&pipeline->lock);

	pipeline->unread_count += unit->is_unread;
	unit_queue_put(&pipeline->work, unit);
	(void)pthread_cond_signal(&pipeline->workers_wake);
}

static void hand_to_committer(struct pipeline *pipeline, struct unit *unit)
{
	WITH_LOCK(&pipeline->lock);

	pipeline_hand_to_committer_locked(pipeline, unit);
}

/* ---- finished reads ---- */

static void note_bad_range(void *opaque, uint64_t off_bytes, uint64_t len_bytes)
{
	struct reader *reader = opaque;
	struct pipeline *pipeline = reader->pipeline;
	WITH_LOCK(&pipeline->lock);

	(void)range_list_add(pipeline->params->read_errors, off_bytes, len_bytes, &reader->failure); /* looked at by salvage() */
	pipeline->errors_are_noted = false;
}

static void note_first_bad_range(void *opaque, uint64_t off_bytes, uint64_t len_bytes)
{
	struct reader *reader = opaque;

	(void)fail(&reader->failure, -EIO,
		   "source %s: can't read %" PRIu64 " bytes at offset %" PRIu64
		   ": input/output error, after several tries; --on-read-error zero goes on with zeros there",
		   source_get_info(reader->source)->name, len_bytes, off_bytes);
}

static int source_is_gone(struct reader *reader, int code)
{
	if (code == -ESTALE)
		return fail(&reader->failure, code, "source %s: it became smaller while it was read; nothing was imaged, sync it again",
			    source_get_info(reader->source)->name);
	if (code == -ENOTCONN || code == -ESHUTDOWN) /* the server died, or says that it is about to end */
		return fail(&reader->failure, code,
			    "source %s: the connection to the server was lost while it was read; what is done is kept, the same "
			    "command goes on when the server is back",
			    source_get_info(reader->source)->name);
	return fail_errno(&reader->failure, code, "source %s: reading at offset %" PRIu64, source_get_info(reader->source)->name,
			  reader->at_bytes);
}

/* What could not be read in one piece. */
static int salvage(struct reader *reader, struct unit *unit, const struct unit_read *read)
{
	bool zero = reader->pipeline->params->on_read_error == READ_ERROR_ZERO;
	int result;

	if (!source_error_is_bad_sector(read->request.result))
		return source_is_gone(reader, read->request.result);
	/* only what is wanted: a bad spot in a block that nobody uses is nobody's problem */
	for (unsigned i = 0; i < unit->wanted_count; i++) {
		uint64_t first = unit->off_bytes + unit->wanted[i].off;
		uint64_t end = first + unit->wanted[i].len;

		if (first < read->off_bytes)
			first = read->off_bytes;
		end = min64(end, read->off_bytes + read->len_bytes);
		if (first >= end)
			continue;
		result = source_read_salvaging(reader->source, unit->buffer + (first - unit->off_bytes), end - first, first,
					       reader->pipeline->params->stop, zero ? note_bad_range : note_first_bad_range, reader,
					       &reader->failure);
		if (result == 0)
			result = reader->failure.code;
		if (result < 0)
			return result; /* -ECANCELED too: what is in the buffer is not the source's, and must go nowhere */
	}
	return 0;
}

static int finish_read(struct reader *reader, struct source_request *request)
{
	struct unit *unit = request->opaque;

	reader->in_flight--;
	unit->reads_left--;
	if (unit->reads_left > 0)
		return reader->failure.code;
	for (unsigned i = 0; i < unit->read_count; i++) {
		int result = unit->reads[i].request.result == 0 ? 0 : salvage(reader, unit, &unit->reads[i]);

		if (result < 0)
			return result;
	}
	unit_clear_unwanted(unit, 0, (uint32_t)unit->len_bytes);
	hand_to_workers(reader->pipeline, unit);
	return 0;
}

/* If `wait`, there is none only if the source takes its time. */
static int reap(struct reader *reader, bool wait)
{
	struct source_request *request;

	while ((request = source_reap(reader->source, wait)) != NULL) {
		int result = finish_read(reader, request);

		if (result < 0)
			return result;
		wait = false;
	}
	return 0;
}

/* ---- new units ---- */

/* What the source can do at once in this and that unit. At most most_in_flight requests at a time. */
static int submit_reads(struct reader *reader, struct unit *unit)
{
	unit->is_unread = false;
	unit->reads_left = unit->read_count;
	unit_take_buffer(reader->pipeline, unit);
	for (unsigned i = 0; i < unit->read_count; i++) {
		struct unit_read *read = &unit->reads[i];
		int result = 0;

		read->request = (struct source_request){ .off_bytes = read->off_bytes,
							 .len_bytes = read->len_bytes,
							 .buffer = unit->buffer + (read->off_bytes - unit->off_bytes),
							 .opaque = unit };
		while (result == 0 && reader->in_flight >= reader->most_in_flight)
			result = pipeline_must_end(reader->pipeline) ? -ECANCELED : reap(reader, true);
		if (result == 0)
			result = source_submit(reader->source, &read->request, &reader->failure);
		if (result < 0)
			return result;
		reader->in_flight++;
	}
	return 0;
}

static struct unit *take_returned(struct pipeline *pipeline)
{
	WITH_LOCK(&pipeline->lock);

	return unit_queue_take(&pipeline->returned);
}

/* Finished reads, and units that no worker could read. */
static int see_to_reads(struct reader *reader)
{
	struct unit *unit;
	int result = reap(reader, false);

	while (result == 0 && (unit = take_returned(reader->pipeline)) != NULL)
		result = submit_reads(reader, unit);
	return result;
}

static void nap_locked(struct pipeline *pipeline)
{
	struct timespec until = units_time_from_now(CLOCK_REALTIME, 100000000); /* nothing depends on its length */

	(void)pthread_cond_timedwait(&pipeline->reader_wakes, &pipeline->lock, &until);
}

/* A free unit; finished reads are seen to while waiting for one. NULL: the end. */
static struct unit *take_unit(struct reader *reader)
{
	struct pipeline *pipeline = reader->pipeline;

	for (;;) {
		if (see_to_reads(reader) < 0 || pipeline_must_end(pipeline))
			return NULL;
		{
			WITH_LOCK(&pipeline->lock);
			struct unit *unit = unit_queue_take(&pipeline->free_units);

			if (unit != NULL) {
				pipeline->free_count--;
				unit->sequence = pipeline->next_sequence++;
				unit->has_content = unit->is_unread = unit->says_something = false;
				unit->read_bytes = unit->hole_bytes = 0;
				unit->read_count = unit->reads_left = unit->wanted_count = 0;
				assert(unit->page == NULL && unit->buffer == NULL);
				memset(unit->chunks, 0, sizeof(unit->chunks));
				return unit;
			}
			if (reader->in_flight == 0) {
				if (pipeline->returned.first == NULL)
					nap_locked(pipeline);
				continue;
			}
		}
		if (reap(reader, true) < 0)
			return NULL;
	}
}

/* The page of the map that this offset is in; *ret_page NULL if nothing is mapped there. */
static int page_at(struct reader *reader, uint64_t off_bytes, struct shared_page **ret_page)
{
	struct pipeline *pipeline = reader->pipeline;
	uint64_t number = off_bytes / pipeline->chunk_bytes / STORE_MAP_PAGE_ENTRIES;
	int result;

	*ret_page = NULL;
	if (!reader->next_mapped_is_known || reader->next_mapped_page < number) {
		result = store_view_next_page(pipeline->params->view, number, &reader->next_mapped_page, &reader->failure);
		if (result < 0)
			return result;
		reader->next_mapped_is_known = true;
	}
	if (reader->next_mapped_page != number)
		return 0;
	if (reader->page == NULL || reader->page->number != number) {
		struct shared_page *page = calloc(1, sizeof(*page));

		if (page == NULL)
			return fail_errno(&reader->failure, -ENOMEM, "round");
		atomic_store(&page->references, 1);
		page->number = number;
		shared_page_release(reader->page);
		reader->page = page;
		result = store_view_map(pipeline->params->view, number, &page->map, &reader->failure);
		if (result < 0)
			return result;
	}
	atomic_fetch_add(&reader->page->references, 1);
	*ret_page = reader->page;
	return 0;
}

static int ask_plan(struct reader *reader, uint64_t off_bytes)
{
	if (reader->range.len_bytes != 0 && off_bytes >= reader->range.off_bytes &&
	    off_bytes < reader->range.off_bytes + reader->range.len_bytes)
		return 0;
	return plan_next(reader->pipeline->params->plan, off_bytes, &reader->range, &reader->failure);
}

/* Is any part of [off, off + len) dirty? */
static int ask_bitmap(struct reader *reader, uint64_t off_bytes, uint64_t len_bytes, bool *ret_dirty)
{
	uint64_t size_bytes = source_get_info(reader->source)->size_bytes;
	uint64_t end = min64(off_bytes + len_bytes, size_bytes);

	*ret_dirty = false;
	while (off_bytes < end && !*ret_dirty) {
		if (!reader->dirty_is_known || off_bytes >= reader->dirty_end) {
			uint64_t answered;
			int result = source_dirty_at(reader->source, off_bytes, size_bytes - off_bytes, &reader->dirty, &answered,
						     &reader->failure);

			if (result < 0)
				return result;
			reader->dirty_is_known = true;
			reader->dirty_end = off_bytes + answered;
		}
		*ret_dirty = reader->dirty;
		off_bytes = reader->dirty_end;
	}
	return 0;
}

/* How much of a chunk the plan says to read. */
static int planned_of(struct reader *reader, uint64_t off_bytes, uint64_t end_bytes, uint64_t *ret_bytes)
{
	uint64_t bytes = 0;

	for (uint64_t at = off_bytes; at < end_bytes;) {
		uint64_t piece_end;
		int result = ask_plan(reader, at);

		if (result < 0)
			return result;
		piece_end = min64(end_bytes, reader->range.off_bytes + reader->range.len_bytes);
		if (reader->range.kind == PLAN_READ)
			bytes += piece_end - at;
		at = piece_end;
	}
	*ret_bytes = bytes;
	return 0;
}

/* One without a fingerprint was lost by the store, or was never read since its catalog was made anew: clean or not, it is read. */
static bool is_chunk_known(const struct store_map_entry *entry)
{
	return entry->kind == STORE_MAP_CHUNK && entry->has_fingerprint;
}

/*
 * Marks the chunks of a unit that are clean and need not be read, but for samples. One of which nothing is in use any more becomes zero without being
 * read. Only whole chunks in use that the mirror has are good samples: in others, what is not in use may differ for good reason.
 */
static int choose_chunks(struct reader *reader, struct unit *unit)
{
	uint32_t chunk_bytes = reader->pipeline->chunk_bytes;

	for (uint64_t at = 0, i = 0; at < unit->len_bytes; at += chunk_bytes, i++) {
		struct chunk_slot *slot = &unit->chunks[i];
		uint64_t chunk = unit->off_bytes / chunk_bytes + i;
		uint64_t len_bytes = min64(chunk_bytes, unit->len_bytes - at), planned = 0;
		bool is_dirty, is_mapped;
		int result = ask_bitmap(reader, unit->off_bytes + at, len_bytes, &is_dirty);

		if (result == 0 && !is_dirty)
			result = planned_of(reader, unit->off_bytes + at, unit->off_bytes + at + len_bytes, &planned);
		if (result < 0)
			return result;
		if (is_dirty || planned == 0)
			continue;
		is_mapped = unit->page != NULL && is_chunk_known(&unit->page->map.entries[chunk % STORE_MAP_PAGE_ENTRIES]);
		/* zeros of the mirror may be what an earlier round left out: only what it got by reading is as it was */
		if (!is_mapped || planned != len_bytes)
			continue;
		slot->is_sample = next_random(reader) % reader->sample_every == 0;
		slot->is_skipped = !slot->is_sample;
	}
	return 0;
}

static void want(struct unit *unit, uint64_t off, uint64_t len)
{
	unsigned last = unit->wanted_count - 1;

	if (unit->wanted_count > 0 && unit->wanted[last].off + unit->wanted[last].len == off) {
		unit->wanted[last].len += (uint32_t)len;
		return;
	}
	/* room runs out only when pieces are smaller than half a least chunk: then the gap is taken along. That stores what
	 * could have been left out, and loses nothing. */
	if (unit->wanted_count == sizeof(unit->wanted) / sizeof(unit->wanted[0])) {
		unit->wanted[last].len = (uint32_t)(off + len - unit->wanted[last].off);
		return;
	}
	unit->wanted[unit->wanted_count].off = (uint32_t)off;
	unit->wanted[unit->wanted_count].len = (uint32_t)len;
	unit->wanted_count++;
}

/* Goes through the plan for a unit and notes what is wanted of it. */
static int plan_unit(struct reader *reader, struct unit *unit)
{
	uint32_t chunk_bytes = reader->pipeline->chunk_bytes;
	uint64_t end = unit->off_bytes + unit->len_bytes;

	for (uint64_t at = unit->off_bytes; at < end;) {
		uint64_t piece_end;
		struct chunk_slot *slot = &unit->chunks[(at - unit->off_bytes) / chunk_bytes];
		int result = ask_plan(reader, at);

		if (result < 0)
			return result;
		piece_end = min64(end, reader->range.off_bytes + reader->range.len_bytes);
		/* chunk by chunk, since each may be skipped */
		piece_end = min64(piece_end, (at / chunk_bytes + 1) * chunk_bytes);
		if (reader->range.kind == PLAN_READ && !slot->is_skipped) {
			want(unit, at - unit->off_bytes, piece_end - at);
			slot->planned_bytes += slot->is_sample ? 0 : (uint32_t)(piece_end - at);
		}
		at = piece_end;
	}
	return 0;
}

static void add_read(struct reader *reader, struct unit *unit, uint64_t first, uint64_t end)
{
	uint64_t align = reader->align_bytes;
	uint64_t unit_end = unit->off_bytes + unit->len_bytes;
	struct unit_read *read = &unit->reads[unit->read_count++];

	/* a unit starts and ends at multiples of any alignment, but at the end of the source */
	first = first / align * align;
	end = min64((end + align - 1) / align * align, unit_end);
	read->off_bytes = first < unit->off_bytes ? unit->off_bytes : first;
	read->len_bytes = (uint32_t)(end - read->off_bytes);
	unit->read_bytes += read->len_bytes;
}

/* Requests for what is wanted: few and large. */
static void plan_reads(struct reader *reader, struct unit *unit)
{
	uint64_t first = unit->wanted[0].off, end = first + unit->wanted[0].len;

	for (unsigned i = 1; i < unit->wanted_count; i++) {
		/* requests must not overlap once they are aligned: a gap is larger than two alignments or read through */
		if (unit->wanted[i].off - end > READ_THROUGH_BYTES && unit->read_count < UNIT_MOST_REQUESTS - 1) {
			add_read(reader, unit, unit->off_bytes + first, unit->off_bytes + end);
			first = unit->wanted[i].off;
		}
		end = unit->wanted[i].off + unit->wanted[i].len;
	}
	add_read(reader, unit, unit->off_bytes + first, unit->off_bytes + end);
}

/* All that is to be read of it, also if that is nothing. */
static bool is_at_hand(const struct reader *reader, const struct unit *unit)
{
	for (unsigned i = 0; i < unit->read_count; i++)
		if (!source_is_at_hand(reader->source, unit->reads[i].len_bytes, unit->reads[i].off_bytes))
			return false;
	return true;
}

/* The rest of the disk behind `at_bytes` up to the next multiple of UNIT_BYTES. */
static int make_content_unit(struct reader *reader)
{
	struct unit *unit = take_unit(reader);
	uint64_t grid_end = (reader->at_bytes / UNIT_BYTES + 1) * UNIT_BYTES;
	int result;

	if (unit == NULL)
		return reader->failure.code != 0 ? reader->failure.code : -ECANCELED;
	unit->off_bytes = reader->at_bytes;
	unit->len_bytes = min64(grid_end, reader->pipeline->size_bytes) - reader->at_bytes;
	result = page_at(reader, unit->off_bytes, &unit->page);
	if (result == 0 && reader->pipeline->params->use_dirty_bitmap)
		result = choose_chunks(reader, unit);
	if (result == 0)
		result = plan_unit(reader, unit);
	if (result < 0)
		return result;
	reader->at_bytes = unit->off_bytes + unit->len_bytes;
	unit->has_content = true;
	if (unit->wanted_count > 0)
		plan_reads(reader, unit);
	if (!is_at_hand(reader, unit))
		return submit_reads(reader, unit);
	unit->is_unread = true;
	hand_to_workers(reader->pipeline, unit);
	return 0;
}

/* A unit without content: [at, end) is zero. Within one page if that has something mapped. */
static int make_empty_unit(struct reader *reader, uint64_t end, enum plan_kind kind)
{
	struct pipeline *pipeline = reader->pipeline;
	uint64_t page_bytes = (uint64_t)pipeline->chunk_bytes * STORE_MAP_PAGE_ENTRIES;
	struct unit *unit = take_unit(reader);
	int result;

	if (unit == NULL)
		return reader->failure.code != 0 ? reader->failure.code : -ECANCELED;
	unit->off_bytes = reader->at_bytes;
	result = page_at(reader, reader->at_bytes, &unit->page);
	if (result < 0)
		return result;
	if (unit->page != NULL)
		end = min64(end, (reader->at_bytes / page_bytes + 1) * page_bytes);
	else if (reader->next_mapped_page != UINT64_MAX)
		end = min64(end, reader->next_mapped_page * page_bytes);
	unit->len_bytes = end - unit->off_bytes;
	if (kind == PLAN_HOLE)
		unit->hole_bytes = unit->len_bytes;
	unit->says_something = unit->page != NULL;
	reader->at_bytes = end;
	hand_to_committer(pipeline, unit);
	return 0;
}

/* How far, from at_bytes on, whole chunks are not to be read for one and the same reason; at_bytes itself if not at all. */
static int find_unread_end(struct reader *reader, uint64_t *ret_end)
{
	struct pipeline *pipeline = reader->pipeline;
	uint64_t at = reader->at_bytes, end = at;
	int result = ask_plan(reader, at);

	if (result < 0)
		return result;
	if (reader->range.kind != PLAN_READ)
		end = reader->range.off_bytes + reader->range.len_bytes;
	if (end < pipeline->size_bytes)
		end = end / pipeline->chunk_bytes * pipeline->chunk_bytes;
	*ret_end = end < at ? at : end;
	return 0;
}

/* Nothing new comes; what is on its way has to be read. */
static int read_rest(struct reader *reader)
{
	struct pipeline *pipeline = reader->pipeline;
	bool is_all_read = false;
	int result = 0;

	while (result == 0 && !is_all_read) {
		result = pipeline_must_end(pipeline) ? -ECANCELED : see_to_reads(reader);
		if (result == 0 && reader->in_flight > 0) {
			result = reap(reader, true);
		} else if (result == 0) {
			WITH_LOCK(&pipeline->lock);

			is_all_read = pipeline->unread_count == 0 && pipeline->returned.first == NULL;
			if (pipeline->unread_count > 0 && pipeline->returned.first == NULL)
				nap_locked(pipeline);
		}
	}
	return result;
}

static int read_on(struct reader *reader)
{
	while (reader->at_bytes < reader->pipeline->size_bytes) {
		uint64_t unread_end;
		int result = find_unread_end(reader, &unread_end);

		if (result < 0)
			return result;
		/* a unit with some chunks to read and some not is one with content */
		if (unread_end - reader->at_bytes >= UNIT_BYTES || unread_end == reader->pipeline->size_bytes)
			result = make_empty_unit(reader, unread_end, reader->range.kind);
		else
			result = make_content_unit(reader);
		if (result < 0)
			return result;
	}
	return read_rest(reader);
}

void pipeline_read(struct pipeline *pipeline)
{
	const struct source_info *info = source_get_info(pipeline->params->source);
	struct reader reader = {
		.pipeline = pipeline,
		.source = pipeline->params->source,
		.most_in_flight = info->most_in_flight,
		.align_bytes = info->align_bytes,
		.at_bytes = pipeline->params->start_bytes,
		.random = (uint64_t)time(NULL) << 20 ^ (uint64_t)pipeline->params->round ^ 0x9e3779b97f4a7c15u,
	};
	uint64_t chunks = pipeline->size_bytes / pipeline->chunk_bytes;
	int result;

	/* everywhere on the disk with the same chance */
	reader.sample_every = chunks / SAMPLES_MOST > SAMPLE_EVERY ? chunks / SAMPLES_MOST : SAMPLE_EVERY;
	result = read_on(&reader);

	/* requests in flight write into our units: none may be left */
	source_abandon(reader.source, pipeline->params->stop != NULL && *pipeline->params->stop);
	shared_page_release(reader.page);
	/* stopped in the middle of a unit: nobody may wait for it */
	if (result == -ECANCELED)
		(void)pipeline_must_end(pipeline);
	if (reader.failure.code != 0)
		pipeline_fail(pipeline, &reader.failure);
	else
		assert(result == 0 || result == -ECANCELED);
	WITH_LOCK(&pipeline->lock);
	pipeline->reader_is_done = true;
	pipeline_wake_all_locked(pipeline);
}
