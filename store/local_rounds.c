/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds of a local store: their rows, and which one goes on where it stopped.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "store/local.h"

_Static_assert(sizeof(struct store_round_counts) == CATALOG_ROUND_COUNTS * sizeof(uint64_t), "a row has all counts");

void local_counts_to_row(const struct store_round_counts *counts, struct catalog_round *row)
{
	memcpy(row->counts, counts, sizeof(*counts));
}

void local_counts_from_row(const struct catalog_round *row, struct store_round_counts *ret_counts)
{
	memcpy(ret_counts, row->counts, sizeof(*ret_counts));
}

/* ---- listing ---- */

/* A row that says "running" while nobody has the disk open is of a process that was killed. */
static int is_disk_open(struct local_store *local, int64_t disk, bool *ret_open, struct failure *failure)
{
	AUTO_FREE char *lease_name = local_disk_lease_name(disk);

	if (lease_name == NULL)
		return fail_errno(failure, -ENOMEM, "rounds");
	return lease_is_held(local->locks_fd, lease_name, ret_open, NULL, failure);
}

static int describe_round(struct local_store *local, const char *disk_name, struct catalog_round *row,
			  struct store_round *ret_round, struct failure *failure)
{
	bool is_open = true;
	int result = 0;

	*ret_round = (struct store_round){
		.number = row->number,
		.state = (enum store_round_state)row->state,
		.source = take_ptr(row->source),
		.started_at = row->started_at,
		.finished_at = row->finished_at,
		.error = take_ptr(row->error),
		.details = take_ptr(row->details),
	};
	(void)strcpy(ret_round->disk, disk_name);
	local_counts_from_row(row, &ret_round->counts);
	if (ret_round->state == ROUND_RUNNING)
		result = is_disk_open(local, row->disk, &is_open, failure);
	if (result == 0 && !is_open) {
		ret_round->state = ROUND_STOPPED;
		ret_round->error = strdup("killed; the same sync goes on from its last checkpoint");
		if (ret_round->error == NULL)
			result = fail_errno(failure, -ENOMEM, "rounds");
	}
	return result;
}

static int append_rounds_of(struct local_store *local, struct catalog *catalog, const struct catalog_disk *disk,
			    struct store_round **list, size_t *count, struct failure *failure)
{
	AUTO_FREE struct catalog_round *rows = NULL;
	size_t row_count = 0;
	int result = catalog_round_list(catalog, disk->id, &rows, &row_count, failure);
	struct store_round *grown;

	if (result < 0)
		return result;
	grown = reallocarray(*list, *count + row_count + 1, sizeof(*grown));
	if (grown == NULL)
		result = fail_errno(failure, -ENOMEM, "rounds");
	else
		*list = grown;
	for (size_t i = 0; i < row_count; i++) {
		if (result == 0)
			result = describe_round(local, disk->name, &rows[i], &(*list)[(*count)++], failure);
		catalog_round_release(&rows[i]);
	}
	return result;
}

int local_list_rounds(struct store *store, const char *name, struct store_round **ret_list, size_t *ret_count,
		      struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO_FREE struct catalog_disk *disks = NULL;
	struct store_round *list = NULL;
	size_t disk_count = 0, count = 0;
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	if (result < 0)
		return result;
	if (name == NULL) {
		result = catalog_disk_list(reader.catalog, CATALOG_ALIVE, &disks, &disk_count, failure);
	} else {
		disks = calloc(1, sizeof(*disks));
		result = disks == NULL ? fail_errno(failure, -ENOMEM, "rounds") :
					 local_find_disk(reader.catalog, name, disks, failure);
		disk_count = result == 0;
	}
	for (size_t i = 0; i < disk_count; i++) {
		if (result == 0)
			result = append_rounds_of(local, reader.catalog, &disks[i], &list, &count, failure);
		catalog_disk_release(&disks[i]);
	}
	if (result < 0) {
		store_rounds_free(list, count);
		return result;
	}
	*ret_list = list;
	*ret_count = count;
	return 0;
}

/* ---- beginning ---- */

static void set_own_throttle(struct catalog_round *round, const struct store_round_params *params)
{
	round->has_limit = params->has_limit;
	round->limit_bytes_per_second = params->limit_bytes_per_second;
	round->has_level = params->has_level;
	round->level = params->level;
}

static char *copy_or_empty(const char *text)
{
	return strdup(text == NULL ? "" : text);
}

static int insert_round_locked(struct local_store *local, struct catalog_disk *disk,
			       const struct store_round_params *params, struct catalog_round *ret_round,
			       struct failure *failure)
{
	*ret_round = (struct catalog_round){
		.disk = disk->id,
		.number = disk->next_round,
		.state = ROUND_RUNNING,
		.source = copy_or_empty(params->source),
		.identity = copy_or_empty(params->source_identity),
		.how = copy_or_empty(params->how),
		.start_stamp = copy_or_empty(params->start_stamp),
		.dirty_bitmaps = copy_or_empty(params->dirty_bitmaps),
		.dirty_bytes = params->dirty_bytes,
		.started_at = time(NULL),
	};
	if (ret_round->source == NULL || ret_round->identity == NULL || ret_round->how == NULL ||
	    ret_round->start_stamp == NULL || ret_round->dirty_bitmaps == NULL)
		return fail_errno(failure, -ENOMEM, "round");
	if (disk->next_round == UINT32_MAX)
		return fail(failure, -ENOSPC, "disk %s: out of round numbers", disk->name);
	set_own_throttle(ret_round, params);
	disk->next_round++;
	return catalog_round_insert(local->writer, ret_round, failure);
}

static int supersede_locked(struct local_store *local, struct catalog_round *round, uint32_t by, struct failure *failure)
{
	char text[64];

	if (round->state == ROUND_FAILED)
		return 0;
	(void)snprintf(text, sizeof(text), "superseded by round %u", by);
	free(round->error);
	round->error = strdup(text);
	round->state = ROUND_FAILED;
	round->finished_at = time(NULL);
	return round->error == NULL ? fail_errno(failure, -ENOMEM, "round") :
				      catalog_round_update(local->writer, round, failure);
}

/* Goes on with the newest round if it is not done and reads the same in the same way. */
static int resume_or_insert_locked(struct local_store *local, struct catalog_disk *disk,
				   const struct store_round_params *params, struct catalog_round *ret_round,
				   bool *ret_resumed, struct failure *failure)
{
	AUTO(catalog_round_release) struct catalog_round last = { .number = 0 };
	int result = disk->next_round == 1 ?
			     -ENOENT :
			     catalog_round_get(local->writer, disk->id, disk->next_round - 1, &last, failure);

	if (result < 0 && result != -ENOENT)
		return result;
	if (result == 0 && last.state != ROUND_DONE) {
		if (strcmp(last.identity, params->source_identity) == 0 && strcmp(last.how, params->how) == 0) {
			free(last.error);
			last.error = NULL;
			last.state = ROUND_RUNNING;
			last.finished_at = 0;
			set_own_throttle(&last, params);
			result = catalog_round_update(local->writer, &last, failure);
			if (result < 0)
				return result;
			*ret_round = last;
			memset(&last, 0, sizeof(last));
			*ret_resumed = true;
			return 0;
		}
		result = supersede_locked(local, &last, disk->next_round, failure);
		if (result < 0)
			return result;
	}
	*ret_resumed = false;
	return insert_round_locked(local, disk, params, ret_round, failure);
}

static int note_mirror_locked(struct local_store *local, struct catalog_disk *disk, const char *source,
			      struct failure *failure)
{
	struct log_entry entry = { .op = LOG_POLICY,
				   .keep = disk->keep,
				   .level = disk->level,
				   .limit_bytes_per_second = disk->limit_bytes_per_second };
	char *copy;

	if (disk->mirror_of != NULL && strcmp(disk->mirror_of, source) == 0)
		return 0;
	copy = strdup(source);
	if (copy == NULL)
		return fail_errno(failure, -ENOMEM, "round");
	free(disk->mirror_of);
	disk->mirror_of = entry.mirror_of = copy;
	return local_log_locked(local, disk, &entry, failure);
}

static int fill_begun(struct local_store *local, const struct catalog_disk *disk, struct catalog_round *round,
		      struct store_round_begun *ret_begun, struct failure *failure)
{
	AUTO(catalog_round_release) struct catalog_round previous = { .number = 0 };
	int result = 0;

	ret_begun->number = round->number;
	ret_begun->cursor_bytes = round->cursor_bytes;
	ret_begun->start_stamp = take_ptr(round->start_stamp);
	ret_begun->details = take_ptr(round->details);
	local_counts_from_row(round, &ret_begun->counts);
	if (disk->content_round != 0)
		result = catalog_round_get(local->writer, disk->id, disk->content_round, &previous, failure);
	if (result == 0 && disk->content_round != 0) {
		ret_begun->previous_identity = take_ptr(previous.identity);
		ret_begun->previous_dirty_bitmaps = take_ptr(previous.dirty_bitmaps);
		ret_begun->previous_details = take_ptr(previous.details);
		ret_begun->previous_dirty_bytes = previous.dirty_bytes;
	}
	return result == -ENOENT ? 0 : result;
}

static void begun_release(struct store_round_begun *begun)
{
	store_round_begun_free(begun);
}

int local_begin_round(struct store_view *store_view, const struct store_round_params *params,
		      struct store_round_begun *ret_begun, struct failure *failure)
{
	struct local_view *view = local_view_of(store_view);
	struct local_store *local = local_of(store_view->store);
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	AUTO(catalog_round_release) struct catalog_round round = { .number = 0 };
	AUTO(begun_release) struct store_round_begun begun = { .number = 0 };
	int result = local_finish_deletions(local, failure);
	local_reserve_keep(local->folder_fd);
	WITH_LOCK(&local->write_lock);

	if (result == 0)
		result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	result = catalog_disk_get(local->writer, view->disk, &disk, failure);
	if (result == 0)
		result = resume_or_insert_locked(local, &disk, params, &round, &begun.resumed, failure);
	if (result == 0)
		result = note_mirror_locked(local, &disk, params->source, failure);
	if (result == 0)
		result = catalog_disk_update(local->writer, &disk, failure);
	if (result == 0)
		result = fill_begun(local, &disk, &round, &begun, failure);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	result = local_end_locked(local, failure);
	if (result < 0)
		return result;
	*ret_begun = begun;
	memset(&begun, 0, sizeof(begun));
	return 0;
}

/* ---- going on and ending ---- */

static int get_round(struct catalog *catalog, const struct store_view *view, uint32_t number,
		     struct catalog_round *ret_round, struct failure *failure)
{
	int result = catalog_round_get(catalog, ((const struct local_view *)view)->disk, number, ret_round, failure);

	return result == -ENOENT ? fail(failure, result, "disk %s: there is no round %u", view->name, number) : result;
}

int local_note_round(struct store_view *view, uint32_t number, const char *details, struct failure *failure)
{
	struct local_store *local = local_of(view->store);
	AUTO(catalog_round_release) struct catalog_round round = { .number = 0 };
	int result;
	WITH_LOCK(&local->write_lock);

	result = catalog_begin(local->writer, failure); /* no bytes of a segment are named: it may even have failed */
	if (result < 0)
		return result;
	result = get_round(local->writer, view, number, &round, failure);
	if (result == 0) {
		free(round.details);
		round.details = details == NULL ? NULL : strdup(details);
		if (details != NULL && round.details == NULL)
			result = fail_errno(failure, -ENOMEM, "round");
	}
	if (result == 0)
		result = catalog_round_update(local->writer, &round, failure);
	if (result < 0) {
		catalog_rollback(local->writer);
		return result;
	}
	return catalog_commit(local->writer, failure);
}

static int end_round_locked(struct local_store *local, const struct store_view *view, struct catalog_round *round,
			    struct failure *failure)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	int result = catalog_round_update(local->writer, round, failure);

	if (result < 0 || round->state != ROUND_DONE)
		return result;
	/* live content is what this round left: the next one may trust a list of changes since */
	result = catalog_disk_get(local->writer, ((const struct local_view *)view)->disk, &disk, failure);
	if (result < 0)
		return result;
	disk.content_round = round->number;
	return catalog_disk_update(local->writer, &disk, failure);
}

int local_finish_round(struct store_view *view, uint32_t number, enum store_round_state state, const char *error,
		       const struct store_round_counts *counts, struct failure *failure)
{
	struct local_store *local = local_of(view->store);
	AUTO(catalog_round_release) struct catalog_round round = { .number = 0 };
	int result;
	WITH_LOCK(&local->write_lock);

	result = catalog_begin(local->writer, failure); /* no bytes of a segment are named: it may even have failed */
	if (result < 0)
		return result;
	result = get_round(local->writer, view, number, &round, failure);
	if (result == 0) {
		free(round.error);
		round.error = error == NULL ? NULL : strdup(error);
		round.state = (uint8_t)state;
		round.finished_at = time(NULL);
		if (counts != NULL)
			local_counts_to_row(counts, &round);
		result = end_round_locked(local, view, &round, failure);
	}
	if (result < 0) {
		catalog_rollback(local->writer);
		return result;
	}
	return catalog_commit(local->writer, failure);
}

int local_round_throttle(struct store_view *view, uint32_t number, struct store_throttle *ret_throttle,
			 struct failure *failure)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	AUTO(catalog_round_release) struct catalog_round round = { .number = 0 };
	POOLED_READER(reader, local_of(view->store));
	int result = pooled_reader_open(&reader, failure);

	if (result == 0)
		result = catalog_disk_get(reader.catalog, local_view_of(view)->disk, &disk, failure);
	if (result == 0)
		result = get_round(reader.catalog, view, number, &round, failure);
	if (result < 0)
		return result;
	ret_throttle->limit_bytes_per_second = round.has_limit ? round.limit_bytes_per_second : disk.limit_bytes_per_second;
	ret_throttle->level = round.has_level ? round.level : disk.level;
	if (ret_throttle->level < CODEC_LEVEL_LEAST)
		ret_throttle->level = CODEC_LEVEL_DEFAULT;
	return 0;
}
