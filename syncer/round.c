/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A round, from the first look at the source to retention.
 *
 *   look      open the source, plan, survey. Nothing has been changed: whatever is refused, is refused here.
 *   claim     the disk (made if there is none), exclusively; its size follows the source's
 *   begin     a new round, or the unfinished one goes on from its cursor
 *   pipeline  until everything is committed (pipeline.c)
 *   judge     did the source change meanwhile? That decides how far the image can be trusted
 *   image     then the round is done; retention; verification if asked for
 *
 * A round that ends anywhere before `image` changes no image (R7). One that was killed between `image` and the end of the round finds
 * its image when it goes on, and doesn't make another.
 *
 * A dirty bitmap is believed as bitmap_trust.h says. When it is found to be wrong in the middle of the round, the round begins at offset 0
 * again, and knows so before anything else happens: a crash at any point ends up there, too.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <limits.h>

#include "common/cleanup.h"
#include "common/json_release.h"
#include "common/units.h"
#include "common/utf8.h"
#include "syncer/bitmap_trust.h"
#include "syncer/left_out.h"
#include "syncer/pipeline.h"
#include "syncer/round.h"
#include "syncer/verify.h"

enum { STALE_TRIES = 10, NOTED_RANGES_MOST = 700 };

struct round {
	struct store *store;
	const struct round_options *options;
	const struct operation *operation;
	struct round_report *report;
	struct source *source;
	const struct source_info *info;
	char *source_name; /* for the disk's description: a path from the root, or the URI */
	struct plan *plan;
	struct survey survey;
	struct store_view *view;
	struct store_round_begun begun;
	struct meter meter;
	struct range_list read_errors;
	bool trusts_bitmap;
	bool must_restart; /* noted: the bitmap lied, from the start again, whatever the cursor says */
	bool starts_over;  /* from the start again, for whatever reason, since this process goes on with the round */
	uint64_t layout_hash;
	struct dirty_marks dirty;	/* as of now; with a bitmap in use only */
	struct dirty_marks noted_dirty; /* as of when the round decided to trust it */
	char *start_stamp;
	struct pipeline_result result;
};

void round_report_free(struct round_report *report)
{
	free(report->fuzzy_because);
	left_out_free(report->left_out, report->left_out_count);
	free(report->read_errors);
	free(report->differences);
	store_retention_free(&report->retention);
	memset(report, 0, sizeof(*report));
}

/* ---- look ---- */

static int refuse_own_folder(struct round *round, struct failure *failure)
{
	bool contains;
	int result;

	if (round->info->kind != SOURCE_FILE)
		return 0;
	result = store_contains_path(round->store, round->options->source, &contains, failure);
	if (result == 0 && contains)
		return fail(failure, -EINVAL, "source %s: it is inside the store %s itself", round->info->name,
			    store_location(round->store));
	return result;
}

/* A store that lies on the disk being copied grows while it is copied, and into itself. Legitimate, and rarely meant. */
static void warn_if_store_is_on_source(struct round *round)
{
	char link[64], device[PATH_MAX], holder[PATH_MAX];
	struct stat store_status, source_status;
	size_t length;

	if (round->info->kind != SOURCE_BLOCK_DEVICE || stat(store_location(round->store), &store_status) < 0 ||
	    stat(round->options->source, &source_status) < 0)
		return;
	(void)snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(source_status.st_rdev), minor(source_status.st_rdev));
	if (realpath(link, device) == NULL)
		return;
	(void)snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(store_status.st_dev), minor(store_status.st_dev));
	if (realpath(link, holder) == NULL)
		return;
	length = strlen(device);
	if (strncmp(device, holder, length) == 0 && (holder[length] == '\0' || holder[length] == '/'))
		notice(round->operation->notices, NOTICE_WARNING,
		       "source %s: the store %s is on it, and so is copied into itself; keep the store on another disk",
		       round->info->name, store_location(round->store));
}

/* Whoever wonders why 2 TiB are read, when 300 GiB are in use. */
static void say_what_is_read_whole(const struct round *round)
{
	unsigned count;
	const struct plan_partition *partitions = plan_partitions(round->plan, &count);

	for (unsigned i = 0; i < count && !round->options->read_all; i++) {
		if (partitions[i].why_whole[0] == '\0')
			continue;
		if (partitions[i].number == 0)
			notice(round->operation->notices, NOTICE_INFO, "the %s is read whole, not just what it uses: %s",
			       partitions[i].type, partitions[i].why_whole);
		else
			notice(round->operation->notices, NOTICE_INFO,
			       "partition %u (%s) is read whole, not just what it uses: %s", partitions[i].number,
			       partitions[i].type, partitions[i].why_whole);
	}
}

static int look_at_source(struct round *round, struct failure *failure)
{
	struct source_options source_options = { .dirty_bitmap = round->options->dirty_bitmap,
						 .notices = round->operation->notices };
	struct plan_options plan_options = { .read_all = round->options->read_all, .notices = round->operation->notices };
	int result = source_open(round->options->source, &source_options, &round->source, failure);

	if (result < 0)
		return result;
	round->info = source_get_info(round->source);
	if (round->info->size_bytes > STORE_DISK_MOST_BYTES)
		return fail(failure, -EFBIG, "source %s: larger than a disk can be", round->info->name);
	result = refuse_own_folder(round, failure);
	if (result < 0)
		return result;
	warn_if_store_is_on_source(round);
	round->source_name = round->info->kind == SOURCE_NBD ? NULL : realpath(round->options->source, NULL);
	if (round->source_name == NULL)
		round->source_name = strdup(round->info->name);
	if (round->source_name == NULL)
		return fail_errno(failure, -ENOMEM, "source %s", round->info->name);
	/* the stamp before anything is read: what is written from here on is noticed */
	result = source_change_stamp(round->source, &round->start_stamp, failure);
	if (result == 0)
		result = plan_make(round->source, &plan_options, &round->plan, failure);
	if (result == 0)
		result = survey_plan(round->source, round->plan, round->options->dirty_bitmap != NULL,
				     store_chunk_bytes(round->store), round->operation->stop, &round->survey, failure);
	if (result == 0)
		round->layout_hash = bitmap_trust_layout(round->source, round->plan, round->options->read_all);
	if (result == 0 && round->options->dirty_bitmap != NULL)
		result = dirty_marks_read(round->source, round->operation->stop, &round->dirty, failure);
	if (result == 0)
		say_what_is_read_whole(round);
	return result;
}

/* ---- claim ---- */

static int check_sizes(struct round *round, uint64_t disk_bytes, struct failure *failure)
{
	if (round->info->size_bytes < disk_bytes && !round->options->allow_shrink)
		return fail(failure, -EINVAL,
			    "source %s: it has %" PRIu64 " bytes, disk %s has %" PRIu64
			    "; if it really became smaller, say --allow-shrink",
			    round->info->name, round->info->size_bytes, round->options->disk, disk_bytes);
	return 0;
}

static int create_or_check_disk(struct round *round, struct failure *failure)
{
	struct store_disk_params params = { .name = round->options->disk,
					    .size_bytes = round->info->size_bytes,
					    .sector_bytes = round->info->sector_bytes,
					    .mirror_of = round->source_name };
	struct store_disk *disks = NULL;
	size_t count = 0;
	struct failure ignored = { .code = 0 };
	int result = store_list_disks(round->store, round->options->disk, &disks, &count, &ignored);

	if (result == -ENOENT)
		return store_create_disk(round->store, &params, failure);
	if (result < 0)
		return fail_from(failure, &ignored);
	result = check_sizes(round, disks[0].size_bytes, failure);
	if (result == 0 && disks[0].sector_bytes != round->info->sector_bytes)
		notice(round->operation->notices, NOTICE_WARNING,
		       "source %s: its sectors have %u bytes, those of disk %s %u: is it the same disk?", round->info->name,
		       round->info->sector_bytes, round->options->disk, disks[0].sector_bytes);
	store_disks_free(disks, count);
	return result;
}

static int follow_size(struct round *round, struct failure *failure)
{
	uint64_t disk_bytes = store_view_size(round->view);
	int result = check_sizes(round, disk_bytes, failure);

	if (result < 0 || disk_bytes == round->info->size_bytes)
		return result;
	notice(round->operation->notices, NOTICE_INFO, "disk %s: %s from %" PRIu64 " to %" PRIu64 " bytes, as the source has",
	       round->options->disk, disk_bytes < round->info->size_bytes ? "grows" : "shrinks", disk_bytes,
	       round->info->size_bytes);
	return store_resize_disk(round->view, round->info->size_bytes, failure);
}

/*
 * The first round onto a disk that was there before: what somebody else has written to it would be gone, without an image
 * that holds it. Looked at with the disk in our hands, when what a crash left in its journal is counted.
 */
static int check_nothing_is_lost(struct round *round, struct failure *failure)
{
	char size[UNITS_TEXT_BYTES];
	struct store_disk *disks = NULL;
	size_t count = 0;
	int result = store_list_disks(round->store, round->options->disk, &disks, &count, failure);

	if (result == 0 && disks[0].mirror_of == NULL && disks[0].changed_bytes > 0)
		result = fail(failure, -EEXIST,
			      "disk %s: no round has written to it yet, but somebody else has: %s that no image holds, and that this "
			      "round would overwrite; 'wherry image %s' keeps them, or sync to a disk of another name",
			      round->options->disk, units_format_size(disks[0].changed_bytes, size), round->options->disk);
	store_disks_free(disks, count);
	return result;
}

static int claim_disk(struct round *round, struct failure *failure)
{
	struct store_reference reference = { .which = STORE_LIVE };
	int result = store_check_name(round->options->disk, failure);

	if (result == 0)
		result = create_or_check_disk(round, failure);
	if (result < 0)
		return result;
	(void)strncpy(reference.disk, round->options->disk, sizeof(reference.disk) - 1);
	result = store_view_open(round->store, &reference, VIEW_WRITE, round->operation->doing, &round->view, failure);
	if (result == 0)
		result = check_nothing_is_lost(round, failure);
	if (result == 0)
		result = follow_size(round, failure);
	if (result == 0 && round->options->keep > 0) {
		struct store_policy policy = { .set_keep = true, .keep = round->options->keep };

		result = store_set_policy(round->store, round->options->disk, &policy, failure);
	}
	return result;
}

/* ---- begin ---- */

/* Everything that decides which bytes of the disk are compared: a round resumes only if it is the same. */
static char *describe_how(const struct round *round)
{
	const struct round_options *options = round->options;
	/* who may be asked for a bitmap has to know what exactly was read: not two layouts in one round */
	uint64_t layout_hash = source_dirty_bitmaps(round->source)[0] == '\0' ? 0 : round->layout_hash;
	char *how = NULL;

	if (asprintf(&how, "size=%" PRIu64 " read-all=%d on-read-error=%d layout=%" PRIx64 " dirty-bitmap=%s",
		     round->info->size_bytes, options->read_all, options->on_read_error, layout_hash,
		     options->dirty_bitmap == NULL ? "" : options->dirty_bitmap) < 0)
		return NULL;
	return how;
}

/* What the round itself noted: which ranges were bad, whether the bitmap is trusted. */
static int read_notes(struct round *round, struct failure *failure)
{
	AUTO(json_release) json_t *notes = NULL;
	json_t *item;
	size_t i;

	if (round->begun.details == NULL)
		return 0;
	notes = json_loads(round->begun.details, 0, NULL);
	round->trusts_bitmap = round->options->dirty_bitmap != NULL && json_is_true(json_object_get(notes, "bitmap_trusted"));
	round->must_restart = json_is_true(json_object_get(notes, "restart"));
	dirty_marks_from_json(json_object_get(notes, "dirty"), &round->noted_dirty);
	json_array_foreach(json_object_get(notes, "read_errors"), i, item) {
		json_int_t offset = json_integer_value(json_object_get(item, "offset"));
		json_int_t length = json_integer_value(json_object_get(item, "length"));
		int result;

		if (offset < 0 || length <= 0)
			continue;
		result = range_list_add(&round->read_errors, (uint64_t)offset, (uint64_t)length, failure);
		if (result < 0)
			return result;
	}
	return 0;
}

/* At most so many ranges, since a note is of bounded size: the last one then reaches over all that follow. */
static json_t *ranges_to_json(const struct range_list *list)
{
	json_t *array = json_array();

	for (size_t i = 0; array != NULL && i < list->count && i < NOTED_RANGES_MOST; i++) {
		const struct range *range = &list->ranges[i], *last = range;

		if (i == NOTED_RANGES_MOST - 1)
			last = &list->ranges[list->count - 1];
		if (json_array_append_new(array, json_pack("{s:I, s:I}", "offset", (json_int_t)range->off_bytes, "length",
							   (json_int_t)(last->off_bytes + last->len_bytes - range->off_bytes))) < 0) {
			json_decref(array);
			return NULL;
		}
	}
	return array;
}

static int write_notes(void *opaque, const struct range_list *read_errors, struct failure *failure)
{
	struct round *round = opaque;
	AUTO(json_release) json_t *notes =
		json_pack("{s:b, s:b, s:o, s:o}", "bitmap_trusted", round->trusts_bitmap, "restart", round->must_restart,
			  "dirty", dirty_marks_to_json(&round->noted_dirty), "read_errors", ranges_to_json(read_errors));
	AUTO_FREE char *text = notes == NULL ? NULL : json_dumps(notes, JSON_COMPACT);

	if (text == NULL)
		return fail_errno(failure, -ENOMEM, "round");
	return store_note_round(round->view, round->begun.number, text, failure);
}

static int decide_on_bitmap(struct round *round, struct failure *failure)
{
	const char *why_not;
	int result;

	/* A round that goes on has decided, unless it is at 0 again because somebody wrote to the disk meanwhile. */
	if (round->options->dirty_bitmap == NULL ||
	    (round->begun.resumed && !(round->trusts_bitmap && round->begun.cursor_bytes == 0)))
		return 0;
	round->trusts_bitmap = false;
	result = bitmap_trust_decide(round->source, round->layout_hash, &round->begun, round->options->dirty_bitmap, &round->dirty,
				     &why_not, failure);
	if (result < 0)
		return result;
	if (why_not != NULL) {
		notice(round->operation->notices, NOTICE_INFO, "dirty bitmap %s: %s; everything is compared this time",
		       round->options->dirty_bitmap, why_not);
		return round->begun.resumed ? write_notes(round, &round->read_errors, failure) : 0;
	}
	round->trusts_bitmap = true;
	round->noted_dirty = round->dirty;
	/* durable before the first checkpoint: if this round goes on later, it must know */
	return write_notes(round, &round->read_errors, failure);
}

/* Without the bitmap there is more to read than the survey said. */
static int survey_again(struct round *round, struct failure *failure)
{
	survey_free(&round->survey);
	return survey_plan(round->source, round->plan, false, store_chunk_bytes(round->store), round->operation->stop,
			   &round->survey, failure);
}

static int begin(struct round *round, struct failure *failure)
{
	const struct round_options *options = round->options;
	AUTO_FREE char *how = describe_how(round);
	AUTO_FREE char *bitmaps = bitmap_trust_describe(round->source, round->layout_hash, options->dirty_bitmap, &round->dirty);
	struct store_round_params params = { .source = round->source_name,
					     .source_identity = round->info->identity,
					     .how = how,
					     .start_stamp = round->start_stamp,
					     .dirty_bitmaps = bitmaps,
					     .dirty_bytes = round->dirty.dirty_bytes,
					     .has_limit = options->has_limit,
					     .limit_bytes_per_second = options->limit_bytes_per_second,
					     .has_level = options->has_level,
					     .level = options->level };
	int result;

	if (how == NULL || bitmaps == NULL)
		return fail_errno(failure, -ENOMEM, "round");
	result = store_begin_round(round->view, &params, &round->begun, failure);
	if (result < 0)
		return result;
	round->report->round = round->begun.number;
	round->report->resumed = round->begun.resumed;
	round->result.cursor_bytes = round->begun.cursor_bytes;
	round->result.counts = round->begun.counts;
	return 0;
}

/*
 * The cursor goes back to the start, durably: what is noted first says that it must, so that a crash at any point in between ends up here again.
 * What was changed and stored stays so.
 */
static int restart_from_zero(struct round *round, struct failure *failure)
{
	struct store_round_counts counts = { .total = round->survey.read_bytes,
					     .left_out = round->survey.left_out_bytes,
					     .changed = round->result.counts.changed,
					     .stored = round->result.counts.stored,
					     .sent = round->result.counts.sent,
					     .read = round->result.counts.read };
	struct store_round_position position = { .number = round->begun.number, .counts = counts };
	int result = store_commit(round->view, NULL, 0, &position, failure);

	if (result < 0)
		return result;
	round->result = (struct pipeline_result){ .cursor_bytes = 0, .counts = counts };
	round->must_restart = false;
	round->starts_over = true;
	range_list_free(&round->read_errors);
	return write_notes(round, &round->read_errors, failure);
}

/* What follows from what the round noted before, or the last one left. */
static int prepare(struct round *round, struct failure *failure)
{
	int result = read_notes(round, failure);

	if (result == 0)
		result = decide_on_bitmap(round, failure);
	if (result == 0 && round->options->dirty_bitmap != NULL && !round->trusts_bitmap)
		result = survey_again(round, failure);
	if (result < 0)
		return result;
	round->result.counts.total = round->survey.read_bytes;
	round->result.counts.left_out = round->survey.left_out_bytes;
	if (round->must_restart || round->starts_over)
		return restart_from_zero(round, failure);
	if (round->begun.resumed)
		notice(round->operation->notices, NOTICE_INFO, "round %u of disk %s goes on at offset %" PRIu64,
		       round->begun.number, round->options->disk, round->begun.cursor_bytes);
	return 0;
}

/* ---- pipeline ---- */

static int run_pipeline_once(struct round *round, struct failure *failure)
{
	struct pipeline_params params = { .source = round->source,
					  .plan = round->plan,
					  .view = round->view,
					  .round = round->begun.number,
					  .start_bytes = round->result.cursor_bytes,
					  .counts = round->result.counts,
					  .use_dirty_bitmap = round->trusts_bitmap,
					  .on_read_error = round->options->on_read_error,
					  .notices = round->operation->notices,
					  .stop = round->operation->stop,
					  .meter = &round->meter,
					  .read_errors = &round->read_errors,
					  .note = write_notes,
					  .note_opaque = round };

	return pipeline_run(&params, &round->result, failure);
}

/* The bitmap lied: from the start, and everything. */
static int start_over_without_bitmap(struct round *round, const struct failure *why, struct failure *failure)
{
	int result;

	notice(round->operation->notices, NOTICE_WARNING, "dirty bitmap %s: not to be trusted: %s; everything is compared",
	       round->options->dirty_bitmap, why->message);
	round->trusts_bitmap = false;
	round->must_restart = true;
	result = write_notes(round, &round->read_errors, failure);
	if (result == 0)
		result = survey_again(round, failure);
	if (result == 0)
		result = restart_from_zero(round, failure);
	if (result < 0)
		return result;
	atomic_store(&round->meter.total_bytes, round->result.counts.total);
	atomic_store(&round->meter.done_bytes, 0);
	return 0;
}

/* A round that goes on finds the bitmap of its beginning, or one that was made anew meanwhile and knows nothing of what was dirty then. */
static int check_resumed_bitmap(struct round *round, struct failure *failure)
{
	struct failure why = { .code = 0 };
	bool still_dirty = true;
	int result = 0;

	if (round->begun.resumed && round->trusts_bitmap)
		result = dirty_marks_check(round->source, &round->noted_dirty, &round->dirty, &still_dirty, failure);
	if (result < 0 || still_dirty)
		return result;
	(void)fail(&why, -EUCLEAN, "what it called dirty when the round began, it calls clean: it was cleared, or made anew");
	return start_over_without_bitmap(round, &why, failure);
}

/*
 * The bitmap was asked some time ago. What was written since is dirty now, and no lie: the round goes on from its last checkpoint, with what the bitmap says now.
 */
static int is_dirty_now(struct round *round, bool *ret_is_dirty, struct failure *failure)
{
	uint64_t end_bytes = round->result.doubt_off_bytes + round->result.doubt_len_bytes, len_bytes;

	*ret_is_dirty = false;
	source_forget_maps(round->source);
	for (uint64_t at = round->result.doubt_off_bytes; at < end_bytes && !*ret_is_dirty; at += len_bytes) {
		int result = source_dirty_at(round->source, at, end_bytes - at, ret_is_dirty, &len_bytes, failure);

		if (result < 0)
			return result;
	}
	return 0;
}

static int run_pipeline(struct round *round, struct failure *failure)
{
	for (int tries = 0;; tries++) {
		struct failure why = { .code = 0 };
		int result = run_pipeline_once(round, &why);
		bool is_dirty;

		if (result == 0)
			return 0;
		if (result == -EUCLEAN && round->result.doubt_len_bytes > 0) {
			result = is_dirty_now(round, &is_dirty, failure);
			if (result == 0 && !is_dirty)
				result = start_over_without_bitmap(round, &why, failure);
			tries--; /* each time it knows of more, and goes on from further along */
		} else if (result != -EAGAIN || tries == STALE_TRIES)
			return fail_from(failure, &why);
		else
			result = 0; /* a chunk was cleaned away meanwhile: on from the checkpoint */
		if (result < 0)
			return result;
	}
}

/* ---- judge ---- */

static void say_fuzzy(struct round *round, char *why)
{
	struct round_report *report = round->report;

	if (why == NULL || report->consistency == STORE_FUZZY) {
		free(why);
		return;
	}
	report->consistency = STORE_FUZZY;
	report->fuzzy_because = why;
}

static int judge_use(struct round *round, bool warn, struct failure *failure)
{
	AUTO_FREE char *why = NULL;
	bool in_use;
	int result = source_in_use(round->source, &in_use, &why, failure);

	if (result < 0 || !in_use)
		return result;
	if (warn)
		notice(round->operation->notices, NOTICE_WARNING,
		       "source %s: in use (%s): the image will be fuzzy, as a disk after a power cut or worse; "
		       "sync it again with the server stopped, or from a snapshot, for a clean one",
		       round->info->name, why == NULL ? "?" : why);
	say_fuzzy(round, why != NULL ? take_ptr(why) : strdup("in use"));
	return 0;
}

static bool say_claimed(struct round *round, const struct plan *plan)
{
	unsigned count;
	const struct plan_partition *partitions = plan_partitions(plan, &count);
	char *why = NULL;

	for (unsigned i = 0; i < count; i++)
		if (partitions[i].looks_in_use) {
			if (asprintf(&why, "the %s in partition %u says that it is mounted, or was not unmounted",
				     partitions[i].type, partitions[i].number) < 0)
				why = NULL;
			say_fuzzy(round, why);
			return true;
		}
	return false;
}

/*
 * An NBD source can't be asked who else uses it. What its server lets nobody write through it, and no file system on it claims, now as at the start, is taken
 * for quiet.
 */
static int judge_nbd(struct round *round, struct failure *failure)
{
	const struct plan_options options = { .read_all = true };
	struct plan *plan_now = NULL;
	int result;

	if (round->info->kind != SOURCE_NBD || say_claimed(round, round->plan))
		return 0;
	result = plan_make(round->source, &options, &plan_now, failure);
	if (result < 0)
		return result;
	if (!say_claimed(round, plan_now) && !round->info->is_read_only)
		say_fuzzy(round, strdup("its server lets it be written to, and can't be asked whether somebody did; "
					"export it read-only where nobody does"));
	plan_free(plan_now);
	return 0;
}

static int judge_changes(struct round *round, struct failure *failure)
{
	AUTO_FREE char *end_stamp = NULL;
	uint64_t size_bytes;
	bool goes_on;
	int result = source_current_size(round->source, &size_bytes, failure);

	if (result < 0)
		return result;
	if (size_bytes != round->info->size_bytes)
		return fail(failure, -ESTALE,
			    "source %s: its size changed from %" PRIu64 " to %" PRIu64
			    " bytes while it was read; no image was made, sync it again",
			    round->info->name, round->info->size_bytes, size_bytes);
	result = source_change_stamp(round->source, &end_stamp, failure);
	if (result < 0)
		return result;
	goes_on = round->begun.resumed && !round->starts_over;
	if (goes_on && (end_stamp[0] == '\0' || round->begun.start_stamp == NULL))
		say_fuzzy(round, strdup("the round was interrupted, and it can't be told whether the source changed meanwhile"));
	else if (strcmp(end_stamp, goes_on ? round->begun.start_stamp : round->start_stamp) != 0)
		say_fuzzy(round, strdup("it was written to while it was read"));
	return 0;
}

static int judge(struct round *round, struct failure *failure)
{
	int result = judge_use(round, false, failure);

	if (result == 0)
		result = judge_changes(round, failure);
	return result == 0 ? judge_nbd(round, failure) : result;
}

/* ---- image and after ---- */

/* Made by this very round before it was killed? */
static int find_own_image(struct round *round, uint32_t *ret_number, struct failure *failure)
{
	struct store_image *images;
	size_t count;
	int result;

	*ret_number = 0;
	if (!round->begun.resumed)
		return 0;
	result = store_list_images(round->store, round->options->disk, &images, &count, failure);
	if (result < 0)
		return result;
	for (size_t i = 0; i < count; i++)
		if (images[i].round == round->begun.number)
			*ret_number = images[i].number;
	store_images_free(images, count);
	return 0;
}

static char *describe_image(const struct round *round)
{
	AUTO_FREE char *because = round->report->fuzzy_because == NULL ? NULL : utf8_repair(round->report->fuzzy_because);
	AUTO(json_release) json_t *details =
		json_pack("{s:o, s:I, s:s*}", "read_errors", ranges_to_json(&round->read_errors), "left_out_bytes",
			  (json_int_t)round->survey.left_out_bytes, "fuzzy_because", because);

	return details == NULL ? NULL : json_dumps(details, JSON_COMPACT);
}

static int make_image(struct round *round, struct failure *failure)
{
	AUTO_FREE char *details = describe_image(round);
	struct store_image_params params = { .label = round->options->label,
					     .consistency = round->report->consistency,
					     .round = round->begun.number,
					     .details = details };
	int result;

	if (details == NULL)
		return fail_errno(failure, -ENOMEM, "image");
	result = store_create_image(round->view, &params, &round->report->image, failure);
	return result;
}

/* Without an image, the round itself keeps how far its content can be trusted: for an image made of it later. */
static int note_trust(struct round *round, struct failure *failure)
{
	AUTO_FREE char *because = round->report->fuzzy_because == NULL ? NULL : utf8_repair(round->report->fuzzy_because);
	AUTO(json_release) json_t *notes =
		json_pack("{s:o, s:I, s:s, s:s*}", "read_errors", ranges_to_json(&round->read_errors), "left_out_bytes",
			  (json_int_t)round->survey.left_out_bytes, "consistency",
			  store_consistency_name(round->report->consistency), "fuzzy_because", because);
	AUTO_FREE char *text = notes == NULL ? NULL : json_dumps(notes, JSON_COMPACT);

	if (text == NULL)
		return fail_errno(failure, -ENOMEM, "round");
	return store_note_round(round->view, round->begun.number, text, failure);
}

/* The round and its retention are done, whatever becomes of this. */
static void clean_up(struct round *round)
{
	struct failure why = { .code = 0 };

	if (store_clean_after(round->store, &round->report->retention, round->operation->doing, round->operation->stop, &why) < 0)
		notice(round->operation->notices, NOTICE_WARNING, "%s; the round is done, the room of what it replaced is not given back",
		       why.message);
}

static int retain(struct round *round, struct failure *failure)
{
	struct store_disk *disks;
	size_t count;
	uint32_t keep;
	int result = store_list_disks(round->store, round->options->disk, &disks, &count, failure);

	if (result < 0)
		return result;
	keep = disks[0].keep;
	store_disks_free(disks, count);
	if (keep == 0)
		return 0;
	result = store_retain(round->store, round->options->disk, keep, false, &round->report->retention, failure);
	if (result == 0)
		clean_up(round);
	return result;
}

static int verify(struct round *round, struct failure *failure)
{
	struct store_reference reference = { .which = round->report->image == 0 ? STORE_LIVE : STORE_NUMBER,
					     .number = round->report->image };
	struct verify_report report;
	int result;

	(void)strncpy(reference.disk, round->options->disk, sizeof(reference.disk) - 1);
	/* an image is leased by whoever reads it, the live disk is ours until now */
	if (reference.which == STORE_LIVE) {
		store_view_close(round->view);
		round->view = NULL;
	}
	/* with the same connection: a server may take one client only, and end when it leaves */
	source_forget_maps(round->source);
	result = verify_source(round->store, &reference, take_ptr(round->source), round->options->read_all, round->operation, &report,
			     failure);
	if (result < 0)
		return result;
	round->report->verified = true;
	round->report->equal = report.equal;
	round->report->differences = take_ptr(report.differences);
	round->report->difference_count = report.difference_count;
	verify_report_free(&report);
	return 0;
}

static int conclude(struct round *round, struct failure *failure)
{
	int result = judge(round, failure);

	if (result == 0 && round->options->no_image)
		result = note_trust(round, failure);
	else if (result == 0)
		result = make_image(round, failure);
	if (result == 0)
		result = store_finish_round(round->view, round->begun.number, ROUND_DONE, NULL, &round->result.counts, failure);
	return result;
}

/* The round's row says how it ended. Best effort: if the store can't be written any more, the row stays as "running" of a process that is gone. */
static void note_end(struct round *round, const struct failure *why)
{
	enum store_round_state state = why->code == -EINTR ? ROUND_STOPPED : ROUND_FAILED;

	(void)store_finish_round(round->view, round->begun.number, state, why->message, &round->result.counts, NULL);
}

static void fill_report(struct round *round)
{
	struct round_report *report = round->report;

	report->counts = round->result.counts;
	report->elapsed_seconds = meter_elapsed_seconds(&round->meter);
	report->bytes_per_second = meter_average_speed(&round->meter);
	report->left_out = take_ptr(round->survey.left_out);
	report->left_out_count = round->survey.left_out_count;
	round->survey.left_out_count = 0;
	report->read_errors = range_list_take(&round->read_errors, &report->read_error_count);
}

/* How much more the rest of the round may take, as far as its beginning can tell. */
static void say_what_is_missing(const struct round *round, struct failure *why)
{
	uint64_t total_bytes = round->meter.total_bytes, done_bytes = round->meter.done_bytes;
	uint64_t left_bytes = total_bytes > done_bytes ? total_bytes - done_bytes : 0;
	char most[UNITS_TEXT_BYTES], likely[UNITS_TEXT_BYTES];
	AUTO_FREE char *said = strdup(why->message);

	if (said == NULL || left_bytes == 0)
		return;
	(void)units_format_size(left_bytes, most);
	failure_clear(why);
	if (done_bytes == 0) {
		(void)fail(why, -ENOSPC, "%s; the round needs up to %s; run it again then, it goes on where it is", said, most);
		return;
	}
	(void)units_format_size((uint64_t)((double)left_bytes * (double)round->meter.sent_bytes / (double)done_bytes), likely);
	(void)fail(why, -ENOSPC, "%s; the rest of the round may need some %s, %s at most; run it again then, it goes on where it is",
		   said, likely, most);
}

/* From the beginning of the round to its end. */
static int run_begun(struct round *round, struct failure *failure)
{
	struct failure why = { .code = 0 };
	int result = prepare(round, &why);

	if (result == 0)
		result = meter_start_at(&round->meter, "sync", round->operation, round->result.counts.total,
					round->result.counts.done, round->result.counts.changed, round->result.counts.stored,
					&why);
	if (result == 0)
		result = check_resumed_bitmap(round, &why);
	if (result == 0)
		result = run_pipeline(round, &why);
	meter_stop(&round->meter);
	if (result == 0)
		result = conclude(round, &why);
	if (result == -ENOSPC)
		say_what_is_missing(round, &why);
	if (result < 0)
		note_end(round, &why);
	fill_report(round);
	round->report->resumed = round->begun.resumed && !round->starts_over;
	return result < 0 ? fail_from(failure, &why) : 0;
}

/*
 * A round that was cut short when there was nothing left to read isn't simply gone on with: it would hand out as new what may be old. If its image was made, it
 * is done, and a new one follows. If not, and the source may have changed since, everything is compared again.
 */
static int leave_what_is_over(struct round *round, struct failure *failure)
{
	const struct store_round_begun *begun = &round->begun;
	bool is_same = begun->start_stamp != NULL && round->start_stamp[0] != '\0' &&
		       strcmp(begun->start_stamp, round->start_stamp) == 0;
	uint32_t image;
	int result;

	if (!begun->resumed)
		return 0;
	result = find_own_image(round, &image, failure);
	if (result < 0)
		return result;
	if (image == 0 || begun->cursor_bytes < round->info->size_bytes) {
		/* with an image, and a cursor that was set back: somebody wrote to the disk since */
		round->starts_over = image != 0 || (begun->cursor_bytes >= round->info->size_bytes && !is_same);
		return 0;
	}
	result = store_finish_round(round->view, begun->number, ROUND_DONE, NULL, &begun->counts, failure);
	if (result < 0)
		return result;
	store_round_begun_free(&round->begun);
	round->begun = (struct store_round_begun){ .number = 0 };
	return begin(round, failure);
}

static int run(struct round *round, struct failure *failure)
{
	int result = look_at_source(round, failure);

	if (result < 0)
		return result;
	round->report->size_bytes = round->info->size_bytes;
	result = judge_use(round, true, failure);
	if (result == 0)
		result = claim_disk(round, failure);
	if (result == 0)
		result = begin(round, failure);
	if (result == 0)
		result = leave_what_is_over(round, failure);
	if (result == 0)
		result = run_begun(round, failure);
	if (result == 0)
		result = retain(round, failure);
	if (result == 0 && round->options->verify)
		result = verify(round, failure);
	return result;
}

int round_run(struct store *store, const struct round_options *options, const struct operation *operation,
	      struct round_report *ret_report, struct failure *failure)
{
	struct round round = {
		.store = store, .options = options, .operation = operation, .report = ret_report, .read_errors = RANGE_LIST_EMPTY
	};
	int result;

	*ret_report = (struct round_report){ .consistency = STORE_CLEAN };
	result = run(&round, failure);
	store_view_close(round.view);
	store_round_begun_free(&round.begun);
	plan_free(round.plan);
	source_close(round.source);
	survey_free(&round.survey);
	range_list_free(&round.read_errors);
	free(round.start_stamp);
	free(round.source_name);
	return result;
}
