/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clean-up: gives back the room of what nothing reaches.
 *
 * A chunk without references is dead; so is a log entry of a disk that is gone. A segment with less than half alive is rewritten: what lives is
 * copied into the segment that is being appended to, then its file is removed. Segments with nothing alive go first, since they need no
 * room: a store on a full file system gets its room back from them.
 *
 *     segment's row      its file     records
 *   1 unsealed           there        as they came               nobody appends to it: sealed, under its lock
 *   2 sealed             there        copied by and by           in batches: copy, fdatasync, one transaction that says so
 *   3 sealed, live 0     there        none that a row speaks of
 *   4 sealed, live 0     gone                                    folder fsynced
 *   5 no row
 *
 * Every step is durable before the next one begins, and one that was cut short is found where it is by the next clean-up, for a row with little alive is what
 * it looks for. The row goes last: a file without a row would be found by nobody. What a batch had copied when it was cut short is dead bytes in another segment.
 *
 * Why nothing is lost:
 * - The catalog says that a record has moved after the copy is durable, and the file goes after the catalog says so (R2).
 * - Within a batch's transaction, which no other transaction can be inside of, the references of each chunk are looked at again. One that was dead and is referred
 *   to again is left for the next pass; one that is dead is dropped, and a round that had found it before gets -ESTALE from its
 *   commit and stores it anew.
 * - No row ever comes to speak of a sealed segment again: new chunks are where they were appended, and a dead chunk can only come back while it has a row.
 * - A reader that looked up the old place and finds the file gone looks again.
 * - Every copy is checked against the record's checksum, and the record against what the catalog means to be there. What fails stays where it is, with its segment, for a
 *   check to name.
 *
 * One clean-up at a time: the lease `clean`. Nobody waits for one: what it would do, another one does.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "store/local.h"

enum {
	LEAST_DEAD_BYTES = 64 << 10, /* a rewrite costs a header and up to two blocks; less than that isn't worth it, and would never end */
	BATCH_BYTES = 8 << 20,
	BATCH_ITEMS = 4096,
	SEGMENTS_A_LOOK = 64,
	PASSES_MOST = 4, /* through one segment; more are needed only if dead content keeps coming back */
	TAG_CANDIDATES = 16,
	PAUSE_MS = 100,
	ROOM_BESIDES_BYTES = 2 << 20, /* for transactions */
};

/* A record in a segment that is being rewritten. */
struct item {
	uint32_t off_bytes;
	uint32_t stored_bytes;
	uint8_t type;
	uint64_t tag;
};

struct item_list {
	struct item *items;
	size_t count, capacity;
};

enum move_kind { MOVE_NOTHING, MOVE_DROP, MOVE_CHUNK, MOVE_LOG };

/* What is to become of an item. */
struct move {
	enum move_kind kind;
	uint64_t chunk;			/* of MOVE_DROP and MOVE_CHUNK */
	struct catalog_log_entry entry; /* of MOVE_LOG */
	uint32_t from_off_bytes;
	uint32_t stored_bytes;
	uint32_t segment, off_bytes; /* of the copy */
};

struct cleaning {
	struct local_store *local;
	const struct store_clean_params *params;
	struct store_clean_report *report;
	struct store_scratch *scratch;
	struct move *moves; /* BATCH_ITEMS */
	struct timespec started_at;
};

/* ---- pace ---- */

static bool is_stopped(const struct cleaning *cleaning)
{
	return cleaning->params->stop != NULL && *cleaning->params->stop;
}

static double seconds_since(const struct timespec *then)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now); /* can't fail for this clock */
	return (double)(now.tv_sec - then->tv_sec) + (double)(now.tv_nsec - then->tv_nsec) / 1e9;
}

/* -EINTR when stopped. Holds no lock. */
static int keep_pace(const struct cleaning *cleaning)
{
	uint64_t limit = cleaning->params->limit_bytes_per_second;

	while (limit > 0 && !is_stopped(cleaning) &&
	       (double)cleaning->report->moved_bytes / (double)limit > seconds_since(&cleaning->started_at))
		(void)nanosleep(&(struct timespec){ .tv_nsec = PAUSE_MS * 1000000L }, NULL); /* woken early: looks again */
	return is_stopped(cleaning) ? -EINTR : 0;
}

static bool has_moved_enough(const struct cleaning *cleaning)
{
	return cleaning->params->most_bytes > 0 && cleaning->report->moved_bytes >= cleaning->params->most_bytes;
}

static void add_progress(_Atomic uint64_t *counter, uint64_t bytes)
{
	if (counter != NULL)
		atomic_fetch_add_explicit(counter, bytes, memory_order_relaxed);
}

/* ---- what is in a segment ---- */

static int note_item(void *opaque, uint64_t off_bytes, const struct record_header *header)
{
	struct item_list *list = opaque;

	if (list->count == list->capacity) {
		size_t larger = list->capacity == 0 ? 4096 : list->capacity * 2;
		struct item *grown = reallocarray(list->items, larger, sizeof(*grown));

		if (grown == NULL)
			return -ENOMEM;
		list->items = grown;
		list->capacity = larger;
	}
	list->items[list->count++] = (struct item){ .off_bytes = (uint32_t)off_bytes,
						    .stored_bytes = header->stored_bytes,
						    .type = header->type,
						    .tag = catalog_tag(header->digest) };
	return 0;
}

static void item_list_free(struct item_list *list)
{
	free(list->items);
}

/* -EBADMSG when its records can't be followed up to its end: it is damaged, or gone. */
static int list_items(struct cleaning *cleaning, const struct catalog_segment *segment, struct item_list *list,
		      struct failure *failure)
{
	struct local_store *local = cleaning->local;
	uint64_t valid_bytes = 0;
	int result = segment_walk(local->segments_fd, local->id, segment->number, note_item, list, &valid_bytes, failure);

	if (result == -ENOENT)
		return -EBADMSG;
	if (result == -ENOMEM)
		return fail_errno(failure, result, "clean-up");
	if (result == 0 && valid_bytes < segment->length_bytes)
		return fail(failure, -EBADMSG, "segment %08x at %llu: no valid record", segment->number,
			    (unsigned long long)valid_bytes);
	return result;
}

/* The chunk whose record is there; a move of nothing if no row speaks of it. */
static int find_chunk_at(struct catalog *catalog, uint32_t segment, const struct item *item, struct move *ret_move,
			 struct failure *failure)
{
	uint64_t candidates[TAG_CANDIDATES];
	size_t count;
	int result = catalog_chunk_find(catalog, item->tag, candidates, TAG_CANDIDATES, &count, failure);

	for (size_t i = 0; result == 0 && i < count; i++) {
		struct catalog_location location;

		result = catalog_chunk_get(catalog, candidates[i], &location, failure);
		if (result == -ENOENT) {
			result = 0;
			continue;
		}
		if (result < 0)
			return result;
		if (location.segment != segment || location.off_bytes != item->off_bytes)
			continue;
		ret_move->kind = location.references > 0 ? MOVE_CHUNK : MOVE_DROP;
		ret_move->chunk = candidates[i];
		return 0;
	}
	return result;
}

static int decide(struct catalog *catalog, uint32_t segment, const struct item *item, struct move *ret_move,
		  struct failure *failure)
{
	int result;

	*ret_move = (struct move){ .from_off_bytes = item->off_bytes, .stored_bytes = item->stored_bytes };
	if (item->type == RECORD_CHUNK)
		return find_chunk_at(catalog, segment, item, ret_move, failure);
	result = catalog_log_at(catalog, segment, item->off_bytes, &ret_move->entry, failure);
	if (result == 0)
		ret_move->kind = MOVE_LOG;
	return result == -ENOENT ? 0 : result;
}

/* Fills cleaning->moves from items on; *first is moved on. */
static int decide_batch(struct cleaning *cleaning, uint32_t segment, const struct item_list *list, size_t *first,
			size_t *ret_count, struct failure *failure)
{
	uint64_t bytes = 0;
	size_t count = 0;
	bool is_snapshot = false;
	POOLED_READER(reader, cleaning->local);
	int result = pooled_reader_open(&reader, failure);

	if (result == 0)
		result = catalog_snapshot_begin(reader.catalog, &is_snapshot, failure);
	if (result < 0)
		return result;
	for (; result == 0 && *first < list->count && count < BATCH_ITEMS && bytes < BATCH_BYTES; ++*first) {
		struct move *move = &cleaning->moves[count];

		result = decide(reader.catalog, segment, &list->items[*first], move, failure);
		if (result == 0 && move->kind != MOVE_NOTHING)
			count++;
		if (move->kind == MOVE_CHUNK || move->kind == MOVE_LOG)
			bytes += record_total_bytes(move->stored_bytes);
	}
	catalog_snapshot_end(reader.catalog, is_snapshot);
	*ret_count = count;
	return result;
}

/* ---- moving ---- */

static int copy_record(struct cleaning *cleaning, uint32_t segment, struct move *move, struct failure *failure)
{
	struct local_store *local = cleaning->local;
	struct record_header header;
	int result = segment_reader_read(local->reader, segment, move->from_off_bytes, move->stored_bytes, &header,
					 cleaning->scratch->stored, failure);

	if (result < 0)
		return result == -ENOENT ? -EBADMSG : result;
	/* the segment may have been exchanged since it was walked through */
	if (move->kind == MOVE_LOG && memcmp(header.digest, move->entry.digest, DIGEST_BYTES) != 0)
		return fail(failure, -EBADMSG, "segment %08x at %u: another record than the one expected", segment,
			    move->from_off_bytes);
	result = local_append_locked(local, &header, cleaning->scratch->stored, &move->segment, &move->off_bytes, failure);
	if (result == 0)
		cleaning->report->moved_bytes += record_total_bytes(move->stored_bytes);
	return result;
}

static int apply_chunk_move(struct catalog *catalog, uint32_t segment, const struct move *move, struct failure *failure)
{
	struct catalog_location location;
	int result = catalog_chunk_get(catalog, move->chunk, &location, failure);

	if (result == -ENOENT)
		return 0;
	if (result < 0 || location.segment != segment || location.off_bytes != move->from_off_bytes)
		return result;
	if (location.references == 0)
		return catalog_chunk_drop(catalog, move->chunk, failure);
	if (move->kind == MOVE_DROP)
		return 0; /* something refers to it again: the next pass copies it */
	location.segment = move->segment;
	location.off_bytes = move->off_bytes;
	return catalog_chunk_relocate(catalog, move->chunk, &location, failure);
}

static int apply_log_move(struct catalog *catalog, uint32_t segment, const struct move *move, struct failure *failure)
{
	struct catalog_log_entry entry;
	int result = catalog_log_at(catalog, segment, move->from_off_bytes, &entry, failure);

	if (result < 0)
		return result == -ENOENT ? 0 : result; /* its disk went meanwhile */
	entry.segment = move->segment;
	entry.off_bytes = move->off_bytes;
	return catalog_log_relocate(catalog, &entry, failure);
}

/* Copies what lives, then says so in one transaction. */
static int move_batch(struct cleaning *cleaning, uint32_t segment, size_t count, struct failure *failure)
{
	struct local_store *local = cleaning->local;
	int result = 0;
	WITH_LOCK(&local->write_lock);

	for (size_t i = 0; result == 0 && i < count; i++)
		if (cleaning->moves[i].kind != MOVE_DROP)
			result = copy_record(cleaning, segment, &cleaning->moves[i], failure);
	if (result == 0)
		result = local_sync_locked(local, failure);
	if (result == 0)
		result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	for (size_t i = 0; result == 0 && i < count; i++) {
		const struct move *move = &cleaning->moves[i];

		result = move->kind == MOVE_LOG ? apply_log_move(local->writer, segment, move, failure) :
						  apply_chunk_move(local->writer, segment, move, failure);
	}
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, failure);
}

/* ---- one segment ---- */

/* Asked before anything is copied: a segment writer that has met the end of a file system is of no use any more. */
static int check_room(const struct cleaning *cleaning, const struct catalog_segment *segment, struct failure *failure)
{
	char needed[UNITS_TEXT_BYTES], there[UNITS_TEXT_BYTES];
	uint64_t needed_bytes = segment->live_bytes + ROOM_BESIDES_BYTES;
	uint64_t free_bytes = segment->live_bytes == 0 ? needed_bytes : local_free_bytes(cleaning->local);

	if (free_bytes >= needed_bytes)
		return 0;
	return fail(failure, -ENOSPC, "store %s: clean-up needs %s to move what lives, and %s are free; make room and run it again",
		    cleaning->local->base.location, units_format_size(needed_bytes, needed),
		    units_format_size(free_bytes, there));
}

/* In a transaction of its own: nobody appends to it any more. -EWOULDBLOCK without a message: somebody does. */
static int seal(struct cleaning *cleaning, struct catalog_segment *segment, struct failure *failure)
{
	struct local_store *local = cleaning->local;
	struct segment_writer *writer = NULL;
	int result;
	WITH_LOCK(&local->write_lock);

	local_leave_segment_locked(local, segment->number);
	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	result = catalog_segment_get(local->writer, segment->number, segment, failure);
	if (result == 0 && segment->sealed) {
		local_abandon_locked(local);
		return 0;
	}
	if (result == 0)
		result = segment_writer_open(local->segments_fd, local->id, segment->number, segment->length_bytes, &writer,
					     failure);
	if (result == -EBADMSG || result == -ENOENT)
		result = 0; /* nobody appends to one that is damaged or missing; what is in it, is found out later */
	if (result == 0)
		result = catalog_segment_update(local->writer, segment->number, segment->length_bytes, true, failure);
	if (result < 0) {
		segment_writer_close(writer);
		local_abandon_locked(local);
		return result;
	}
	result = local_end_locked(local, failure);
	segment_writer_close(writer);
	segment->sealed = result == 0;
	return result;
}

struct dead_search {
	uint32_t segment;
	uint64_t chunks[BATCH_ITEMS];
	size_t count;
	uint64_t next;
};

static int note_dead_chunk(void *opaque, uint64_t chunk, const struct catalog_location *location)
{
	struct dead_search *search = opaque;

	search->next = chunk + 1;
	if (location != NULL && location->segment == search->segment && location->references == 0)
		search->chunks[search->count++] = chunk;
	return search->count == BATCH_ITEMS ? 1 : 0;
}

static int drop_found(struct local_store *local, const struct dead_search *search, struct failure *failure)
{
	int result;
	WITH_LOCK(&local->write_lock);

	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	for (size_t i = 0; result == 0 && i < search->count; i++) {
		struct move move = { .kind = MOVE_DROP, .chunk = search->chunks[i] };
		struct catalog_location location;

		result = catalog_chunk_get(local->writer, move.chunk, &location, failure);
		if (result == 0) {
			move.from_off_bytes = location.off_bytes;
			result = apply_chunk_move(local->writer, search->segment, &move, failure);
		} else if (result == -ENOENT) {
			result = 0;
		}
	}
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, failure);
}

/*
 * A damaged or missing file that nothing alive is in: its records can't be gone through, so all chunks are, for the ones that the catalog has there. That
 * costs what the store holds, and only damage leads here.
 */
static int drop_dead_chunks(struct cleaning *cleaning, uint32_t segment, struct failure *failure)
{
	AUTO_FREE struct dead_search *search = calloc(1, sizeof(*search));
	uint64_t end = 0;
	int result;

	if (search == NULL)
		return fail_errno(failure, -ENOMEM, "clean-up");
	search->segment = segment;
	do {
		{
			POOLED_READER(reader, cleaning->local);
			result = pooled_reader_open(&reader, failure);
			if (result == 0)
				result = catalog_chunk_count(reader.catalog, &end, failure);
			search->count = 0;
			if (result == 0)
				result = catalog_chunk_walk(reader.catalog, search->next, end + 1, note_dead_chunk, search, failure);
		}
		if (result >= 0 && search->count > 0) {
			int dropped = drop_found(cleaning->local, search, failure);

			result = dropped < 0 ? dropped : result;
		}
	} while (result == 1 && !is_stopped(cleaning));
	return result == 1 ? -EINTR : result;
}

static int get_segment(struct local_store *local, uint32_t number, struct catalog_segment *ret_segment,
		       struct failure *failure)
{
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	return result == 0 ? catalog_segment_get(reader.catalog, number, ret_segment, failure) : result;
}

/* All that lives in it is elsewhere on return, unless dead content keeps coming back: *ret_empty says. */
static int empty_segment(struct cleaning *cleaning, struct catalog_segment *segment, bool *ret_empty,
			 struct failure *failure)
{
	AUTO(item_list_free) struct item_list list = { .items = NULL };
	size_t left = 0;
	int result = list_items(cleaning, segment, &list, failure);

	if (result == -EBADMSG && segment->live_bytes == 0) {
		result = drop_dead_chunks(cleaning, segment->number, failure);
		*ret_empty = result == 0;
		return result;
	}
	if (result < 0)
		return result;
	for (unsigned pass = 0; pass < PASSES_MOST; pass++) {
		left = 0;
		for (size_t first = 0, count = 0; first < list.count;) {
			result = decide_batch(cleaning, segment->number, &list, &first, &count, failure);
			if (result == 0 && count > 0)
				result = move_batch(cleaning, segment->number, count, failure);
			left += count;
			if (result == 0)
				result = keep_pace(cleaning);
			if (result < 0)
				return result;
		}
		if (left == 0)
			break;
	}
	result = get_segment(cleaning->local, segment->number, segment, failure);
	/* nothing alive isn't enough: what is dead and has a row can be referred to again */
	*ret_empty = result == 0 && left == 0 && segment->live_bytes == 0;
	return result;
}

static int forget_segment(struct cleaning *cleaning, uint32_t number, struct failure *failure)
{
	struct local_store *local = cleaning->local;
	int result = segment_remove(local->segments_fd, number, failure);

	if (result < 0)
		return result;
	segment_reader_forget(local->reader, number);
	WITH_LOCK(&local->write_lock);
	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	result = catalog_segment_remove(local->writer, number, failure);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, failure);
}

/* What can't be read is left alone, and said; the rest goes on. */
static int leave_damaged(struct cleaning *cleaning, const struct failure *why)
{
	cleaning->report->damaged_segments++;
	notice(&cleaning->local->notices, NOTICE_WARNING,
	       "%s: mostly dead, and left as it is; 'wherry check --deep' says whose it is", why->message);
	return 0;
}

static int clean_segment(struct cleaning *cleaning, struct catalog_segment *segment, struct failure *failure)
{
	struct store_clean_report *report = cleaning->report;
	uint64_t length_bytes = segment->length_bytes, moved_before_bytes = report->moved_bytes;
	struct failure why = { .code = 0 };
	bool is_empty = false;
	int result = check_room(cleaning, segment, failure);

	if (result < 0)
		return result;
	if (!segment->sealed)
		result = seal(cleaning, segment, &why);
	if (result == -EWOULDBLOCK) {
		report->busy_segments++;
		return 0;
	}
	if (result == 0)
		result = empty_segment(cleaning, segment, &is_empty, &why);
	if (result == 0 && is_empty)
		result = forget_segment(cleaning, segment->number, &why);
	if (result == -EBADMSG || result == -EIO)
		return leave_damaged(cleaning, &why);
	if (result < 0)
		return why.code != 0 ? fail_from(failure, &why) : result;
	if (is_empty) {
		uint64_t moved_bytes = report->moved_bytes - moved_before_bytes;

		report->removed_segments++;
		report->freed_bytes += length_bytes > moved_bytes ? length_bytes - moved_bytes : 0;
	}
	return 0;
}

/* ---- all of them ---- */

static int list_sparse(struct local_store *local, const struct catalog_sparse_position *after,
		       struct catalog_segment **ret_list, size_t *ret_count, struct failure *failure)
{
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	if (result < 0)
		return result;
	return catalog_segment_list_sparse(reader.catalog, LEAST_DEAD_BYTES, after, SEGMENTS_A_LOOK, ret_list, ret_count,
					   failure);
}

static void count_segment(struct store_clean_report *report, const struct catalog_segment *segment)
{
	report->removed_segments++;
	report->moved_bytes += segment->live_bytes;
	report->freed_bytes += segment->length_bytes - segment->live_bytes;
}

static int clean_segments(struct cleaning *cleaning, struct failure *failure)
{
	struct catalog_sparse_position after = { .number = 0 };
	size_t count = 0;
	int result = 0;

	do {
		AUTO_FREE struct catalog_segment *list = NULL;

		result = list_sparse(cleaning->local, &after, &list, &count, failure);
		for (size_t i = 0; result == 0 && i < count; i++)
			add_progress(cleaning->params->total_bytes, list[i].length_bytes);
		for (size_t i = 0; result == 0 && i < count && !has_moved_enough(cleaning); i++) {
			uint64_t length_bytes = list[i].length_bytes;

			after = (struct catalog_sparse_position){ .live_bytes = list[i].live_bytes, .number = list[i].number };
			if (is_stopped(cleaning))
				result = -EINTR;
			else if (cleaning->params->dry_run)
				count_segment(cleaning->report, &list[i]);
			else
				result = clean_segment(cleaning, &list[i], failure);
			add_progress(cleaning->params->done_bytes, length_bytes);
		}
	} while (result == 0 && count == SEGMENTS_A_LOOK && !has_moved_enough(cleaning));
	return result;
}

static int clean_alone(struct local_store *local, const struct store_clean_params *params,
		       struct store_clean_report *report, struct failure *failure)
{
	AUTO(scratch_free_at) struct store_scratch *scratch = NULL;
	AUTO_FREE struct move *moves = calloc(BATCH_ITEMS, sizeof(*moves));
	struct cleaning cleaning = { .local = local, .params = params, .report = report, .moves = moves };
	int result = moves == NULL ? fail_errno(failure, -ENOMEM, "clean-up") : store_scratch_new(&scratch, failure);

	if (result < 0)
		return result;
	cleaning.scratch = scratch;
	(void)clock_gettime(CLOCK_MONOTONIC, &cleaning.started_at); /* can't fail for this clock */
	if (!params->dry_run)
		result = local_finish_deletions(local, failure);
	return result < 0 ? result : clean_segments(&cleaning, failure);
}

int local_clean(struct store *store, const struct store_clean_params *params, struct store_clean_report *ret_report,
		struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO_FREE char *us = lease_holder_text(params->doing);
	AUTO_FREE char *holder = NULL;
	struct lease lease = LEASE_NONE;
	int result;

	*ret_report = (struct store_clean_report){ .freed_bytes = 0 };
	if (params->dry_run)
		return clean_alone(local, params, ret_report, failure);
	if (us == NULL)
		return fail_errno(failure, -ENOMEM, "clean-up");
	result = lease_take(local->locks_fd, "clean", LEASE_EXCLUSIVE, us, &lease, &holder, failure);
	if (result == -EWOULDBLOCK)
		return fail(failure, -EBUSY, "store %s: %s cleans it up already; there is nothing to do but to wait", store->location,
			    holder != NULL ? holder : "another process");
	if (result < 0)
		return result;
	local_reserve_use(local);
	result = clean_alone(local, params, ret_report, failure);
	local_reserve_keep(local->folder_fd);
	lease_release(&lease);
	return result;
}
