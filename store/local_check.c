/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking a local store, step by step:
 *
 *     segments   each file that holds something in use: there, the one that its name says, as long as was committed
 *     catalog    the database as such, then whether its rows fit together
 *     records    each record that holds a chunk in use: its header; deep: its content (local_check_records.c)
 *     logs       each entry of each disk's log, and the chain that they make (local_check_logs.c)
 *     journals   whether each disk's can be replayed
 *     repair     if asked for: what can be mended is, what can't is marked (local_repair.c)
 *     lost       what is marked is damage, too
 *     names      if something was found: whose content that is (local_check_names.c)
 *
 * Others work meanwhile, and but for a repair no lock is taken. What is asked of the catalog is asked in pieces, each of which sees one
 * moment, so by the time that a record is looked at it may have been moved, or given up. So nothing is damage before it
 * was looked up again: a record that the catalog still means to be in that place after it was found bad there was bad
 * while it was meant to be there, for a segment's bytes never change and its file goes only after the catalog has
 * forgotten it.
 *
 * A step that can't go on because the catalog is damaged is a flaw in the report, and the next step is taken.
 */
#include "store/local_check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

enum { SEGMENTS_A_PIECE = 256 };

/* ---- segments ---- */

const struct bad_segment *checking_bad_segment(const struct checking *checking, uint32_t number)
{
	size_t first = 0, end = checking->bad_segment_count;

	while (first < end) {
		size_t middle = first + (end - first) / 2;

		if (checking->bad_segments[middle].number == number)
			return &checking->bad_segments[middle];
		if (checking->bad_segments[middle].number < number)
			first = middle + 1;
		else
			end = middle;
	}
	return NULL;
}

const struct bad_segment *checking_bad_place(const struct checking *checking, uint32_t segment, uint32_t off_bytes,
					     uint32_t stored_bytes)
{
	const struct bad_segment *bad = checking_bad_segment(checking, segment);

	if (bad != NULL && bad->is_short && off_bytes + record_total_bytes(stored_bytes) <= bad->file_bytes)
		return NULL;
	return bad;
}

static int add_bad_segment(struct checking *checking, const struct bad_segment *bad, struct failure *failure)
{
	size_t count = checking->bad_segment_count;

	checking->has_damage = true;
	if (count == BAD_SEGMENTS_MOST) {
		checking->more_bad_segments++;
		return 0;
	}
	if ((count & (count - 1)) == 0) {
		struct bad_segment *grown =
			reallocarray(checking->bad_segments, count == 0 ? 1 : count * 2, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "check");
		checking->bad_segments = grown;
	}
	checking->bad_segments[checking->bad_segment_count++] = *bad;
	return 0;
}

/* Does the catalog still say that something in use is there? */
static int is_still_needed(struct catalog *catalog, uint32_t number, bool *ret_is_needed, struct failure *failure)
{
	AUTO_FREE struct catalog_segment *row = NULL;
	size_t count;
	int result = catalog_segment_list(catalog, number - 1, 1, &row, &count, failure);

	if (result == 0)
		*ret_is_needed = count == 1 && row->number == number && row->live_bytes > 0;
	return result;
}

/* The message of a failure without the segment's name in front of it, which the report has besides. */
static const char *without_name(const char *message)
{
	const char *colon = strstr(message, ": ");

	return strncmp(message, "segment ", strlen("segment ")) == 0 && colon != NULL ? colon + 2 : message;
}

static int check_segment(struct checking *checking, struct catalog *catalog, const struct catalog_segment *segment,
			 struct failure *failure)
{
	struct bad_segment bad = {.number = segment->number};
	struct failure cause = {.code = 0};
	char what[32];
	bool is_needed = false;
	int result = segment_examine(checking->local->segments_fd, checking->local->id, segment->number,
				     &bad.file_bytes, &cause);

	if (result < 0 && !is_damage_code(result))
		return fail_from(failure, &cause);
	if (result == 0 && bad.file_bytes >= segment->length_bytes)
		return 0;
	bad.is_short = result == 0;
	result = is_still_needed(catalog, segment->number, &is_needed, failure);
	if (result < 0 || !is_needed)
		return result;
	(void)snprintf(what, sizeof(what), "segment %08" PRIx32, segment->number);
	if (bad.is_short)
		result = check_report_flaw(checking->report, failure, what,
					   "its file has %" PRIu64 " bytes, %" PRIu64 " were committed", bad.file_bytes,
					   segment->length_bytes);
	else
		result = check_report_flaw(checking->report, failure, what, "%s", without_name(cause.message));
	return result < 0 ? result : add_bad_segment(checking, &bad, failure);
}

static int check_segments(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	uint32_t after = 0;

	for (;;) {
		AUTO_FREE struct catalog_segment *list = NULL;
		size_t count;
		int result = catalog_segment_list(catalog, after, SEGMENTS_A_PIECE, &list, &count, failure);

		if (result < 0 || count == 0)
			return result;
		for (size_t i = 0; result == 0 && i < count; i++) {
			if (list[i].live_bytes == 0) /* nobody misses it */
				continue;
			if (checking->params->total_bytes != NULL)
				atomic_fetch_add(checking->params->total_bytes, list[i].live_bytes);
			checking->report->segments++;
			result = check_segment(checking, catalog, &list[i], failure);
		}
		if (result == 0 && checking_is_stopped(checking))
			result = -EINTR;
		if (result < 0)
			return result;
		after = list[count - 1].number;
	}
}

/* ---- the catalog ---- */

struct flaw_taker {
	struct checking *checking;
	struct failure *failure;
	int result;
};

static void take_flaw(void *opaque, const char *what, const char *why)
{
	struct flaw_taker *taker = opaque;

	taker->checking->has_damage = true;
	if (taker->result == 0)
		taker->result = check_report_flaw(taker->checking->report, taker->failure, what, "%s", why);
}

static int check_catalog(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	struct flaw_taker taker = {.checking = checking, .failure = failure};
	const struct catalog_check check = {.flaw = take_flaw, .opaque = &taker, .stop = checking->params->stop};
	uint64_t bytes = 0;
	int result = catalog_size(catalog, &bytes, failure);

	if (result < 0)
		return result;
	if (checking->params->total_bytes != NULL)
		atomic_fetch_add(checking->params->total_bytes, bytes);
	result = catalog_check_database(catalog, &check, failure);
	checking_add_done(checking, bytes / 2);
	if (result == 0)
		result = catalog_check_rows(catalog, checking->local->base.chunk_bytes, &check, failure);
	checking_add_done(checking, bytes - bytes / 2);
	return result == 0 ? taker.result : result;
}

/* ---- journals ---- */

/* What is in no segment yet. A disk whose journal is damaged can't be opened, and nothing else would say so. */
static int check_journal(struct checking *checking, const struct catalog_disk *disk, struct failure *failure)
{
	struct failure cause = {.code = 0};
	char what[STORE_NAME_MOST_BYTES + 16];
	const char *why;
	int result = local_examine_journal(checking->local, disk, &cause);

	if (result == 0)
		return 0;
	if (!is_damage_code(result))
		return fail_from(failure, &cause);
	(void)snprintf(what, sizeof(what), "disk %s", disk->name);
	why = strstr(cause.message, ": ");
	return check_report_flaw(checking->report, failure, what, "%s", why != NULL ? why + 2 : cause.message);
}

static int check_journals(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	AUTO_FREE struct catalog_disk *disks = NULL;
	size_t count = 0;
	int result = catalog_disk_list(catalog, CATALOG_ALIVE, &disks, &count, failure);

	for (size_t i = 0; i < count; i++) {
		if (result == 0)
			result = check_journal(checking, &disks[i], failure);
		if (result == 0 && checking_is_stopped(checking))
			result = -EINTR;
		catalog_disk_release(&disks[i]);
	}
	return result;
}

/* ---- all steps ---- */

typedef int (*check_step_fn)(struct checking *checking, struct catalog *catalog, struct failure *failure);

static int run_steps(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	static const check_step_fn steps[] = {check_segments, check_catalog, checking_records, checking_logs,
					      check_journals, checking_repair, checking_lost, checking_names};

	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		struct failure cause = {.code = 0};
		int result = steps[i](checking, catalog, &cause);

		if (result == -EBADMSG) {
			checking->has_damage = true;
			result = check_report_flaw(checking->report, failure, "catalog", "%s", cause.message);
		}
		if (result < 0)
			return cause.code != 0 && result != -EINTR ? fail_from(failure, &cause) : result;
	}
	return 0;
}

static void checking_done(struct checking *checking)
{
	local_reader_give(checking->local, checking->lookup);
	(void)pthread_mutex_destroy(&checking->lock); /* nobody is left to hold it */
	free(checking->bad_segments);
	free(checking->bad_chunks);
}

int local_check(struct store *store, const struct store_check_params *params, struct store_check_report *ret_report,
		struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO(store_check_report_free) struct store_check_report report = {.is_clean = false};
	AUTO(checking_done) struct checking checking = {.local = local, .params = params, .report = &report};
	POOLED_READER(reader, local);
	int result;

	if (params->repair && local->read_only)
		return fail(failure, -EROFS, "store %s: opened for reading only, it can't be repaired", store->location);
	(void)pthread_mutex_init(&checking.lock, NULL); /* never fails on Linux with default attributes */
	result = pooled_reader_open(&reader, failure);
	if (result == 0)
		result = local_reader_take(local, &checking.lookup, failure);
	if (result == 0)
		result = run_steps(&checking, reader.catalog, failure);
	if (result < 0)
		return result;
	report.chunks = atomic_load(&checking.chunks);
	check_report_finish(&report);
	*ret_report = report;
	report = (struct store_check_report){.is_clean = false};
	return 0;
}
