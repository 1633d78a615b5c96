/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A walk over the plan before the round begins: how much there is to read (for the progress, and how long it will take), and what is left out.
 *
 * It reads the allocation maps once more than needed, two parts in a hundred of what they describe at most; an estimate that is off by the free
 * half of a disk would be worse.
 */
#include <stdatomic.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "syncer/left_out.h"

enum { LISTED_LEAST_BYTES = 1 << 20, LISTED_MOST = 4096 };

void left_out_free(struct range_why *list, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free(list[i].why);
	free(list);
}

void survey_free(struct survey *survey)
{
	left_out_free(survey->left_out, survey->left_out_count);
	memset(survey, 0, sizeof(*survey));
}

static int append(struct survey *survey, const struct plan_range *range, bool is_scattered, struct failure *failure)
{
	struct range_why *entry;

	if (survey->left_out_count == survey->left_out_capacity) {
		size_t capacity = survey->left_out_capacity == 0 ? 64 : survey->left_out_capacity * 2;
		struct range_why *grown = reallocarray(survey->left_out, capacity, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "report");
		survey->left_out = grown;
		survey->left_out_capacity = capacity;
	}
	entry = &survey->left_out[survey->left_out_count];
	*entry = (struct range_why){ .off_bytes = range->off_bytes,
				     .len_bytes = range->len_bytes,
				     .scattered = is_scattered,
				     .why = strdup(range->why) };
	if (entry->why == NULL)
		return fail_errno(failure, -ENOMEM, "report");
	survey->left_out_count++;
	return 0;
}

static int note_left_out(struct survey *survey, const struct plan_range *range, struct failure *failure)
{
	bool is_listed = range->len_bytes >= LISTED_LEAST_BYTES && survey->left_out_count < LISTED_MOST;

	survey->left_out_bytes += range->len_bytes;
	if (is_listed && survey->left_out_count > 0) {
		struct range_why *last = &survey->left_out[survey->left_out_count - 1];

		/* the plan hands out long ranges in pieces */
		if (!last->scattered && last->off_bytes + last->len_bytes == range->off_bytes && strcmp(last->why, range->why) == 0) {
			last->len_bytes += range->len_bytes;
			return 0;
		}
	}
	if (is_listed)
		return append(survey, range, false, failure);
	for (size_t i = 0; i < survey->left_out_count; i++)
		if (survey->left_out[i].scattered && strcmp(survey->left_out[i].why, range->why) == 0) {
			survey->left_out[i].len_bytes += range->len_bytes;
			return 0;
		}
	return append(survey, range, true, failure);
}

/* Of a range to be read: the chunks that are dirty in any part. */
static int count_dirty(struct source *source, uint32_t chunk_bytes, const struct plan_range *range, struct survey *survey,
		       struct failure *failure)
{
	uint64_t size_bytes = source_get_info(source)->size_bytes;
	uint64_t end = range->off_bytes + range->len_bytes;

	for (uint64_t at = range->off_bytes; at < end;) {
		uint64_t len_bytes;
		bool is_dirty;
		uint64_t chunk_end;
		int result = source_dirty_at(source, at, size_bytes - at, &is_dirty, &len_bytes, failure);

		if (result < 0)
			return result;
		len_bytes = len_bytes < end - at ? len_bytes : end - at;
		if (!is_dirty) {
			at += len_bytes;
			continue;
		}
		chunk_end = (at + len_bytes + chunk_bytes - 1) / chunk_bytes * chunk_bytes;
		chunk_end = chunk_end < end ? chunk_end : end;
		survey->read_bytes += chunk_end - (at / chunk_bytes * chunk_bytes > range->off_bytes ?
							   at / chunk_bytes * chunk_bytes :
							   range->off_bytes);
		at = chunk_end;
	}
	return 0;
}

static int survey_range(struct source *source, bool with_bitmap, uint32_t chunk_bytes, const struct plan_range *range,
			struct survey *survey, struct failure *failure)
{
	switch (range->kind) {
	case PLAN_LEFT_OUT:
		return note_left_out(survey, range, failure);
	case PLAN_HOLE:
		survey->hole_bytes += range->len_bytes;
		return 0;
	default:
		if (with_bitmap)
			return count_dirty(source, chunk_bytes, range, survey, failure);
		survey->read_bytes += range->len_bytes;
		return 0;
	}
}

int survey_plan(struct source *source, struct plan *plan, bool with_bitmap, uint32_t chunk_bytes,
		const atomic_bool *stop, struct survey *ret_survey, struct failure *failure)
{
	uint64_t size_bytes = source_get_info(source)->size_bytes;
	AUTO(survey_free) struct survey survey = { .read_bytes = 0 };
	struct plan_range range;

	for (uint64_t at = 0; at < size_bytes; at += range.len_bytes) {
		int result = plan_next(plan, at, &range, failure);

		if (result == 0 && stop != NULL && *stop)
			result = fail(failure, -EINTR, "stopped");
		if (result == 0)
			result = survey_range(source, with_bitmap, chunk_bytes, &range, &survey, failure);
		if (result < 0)
			return result;
	}
	*ret_survey = survey;
	memset(&survey, 0, sizeof(survey));
	return 0;
}
