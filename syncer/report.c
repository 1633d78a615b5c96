/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges arrive nearly in order, from a disk that is walked from its start by several threads. So a new one mostly
 * touches or follows the last one; where it goes is found by bisection all the same, and what has to be moved for it is
 * short.
 *
 * When the list is full, the smallest gaps are given up: the gap over which ranges are merged is doubled until half of
 * the list is free, and stays. A disk with a hundred thousand separate differences is "different from here to there"
 * for anybody who reads the report, and its memory is bounded.
 */
#include "syncer/report.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

enum { LEAST_GAP_BYTES = 512 };

static uint64_t end_of(const struct range *range)
{
	return range->off_bytes + range->len_bytes;
}

/* True if `next`, which doesn't begin before `range`, is so near to its end that they become one. */
static bool reaches(const struct range_list *list, const struct range *range, const struct range *next)
{
	return next->off_bytes <= end_of(range) || next->off_bytes - end_of(range) <= list->gap_bytes;
}

static void stretch(struct range *range, const struct range *other)
{
	uint64_t off_bytes = range->off_bytes < other->off_bytes ? range->off_bytes : other->off_bytes;
	uint64_t end_bytes = end_of(range) > end_of(other) ? end_of(range) : end_of(other);

	*range = (struct range){.off_bytes = off_bytes, .len_bytes = end_bytes - off_bytes};
}

/* How many ranges begin before `off_bytes`. */
static size_t count_before(const struct range_list *list, uint64_t off_bytes)
{
	size_t low = 0, high = list->count;

	if (high > 0 && list->ranges[high - 1].off_bytes < off_bytes)
		return high;
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (list->ranges[middle].off_bytes < off_bytes)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Merges all that the gap says, in one pass. */
static void merge_neighbours(struct range_list *list)
{
	size_t kept = 0;

	for (size_t i = 1; i < list->count; i++) {
		if (reaches(list, &list->ranges[kept], &list->ranges[i]))
			stretch(&list->ranges[kept], &list->ranges[i]);
		else
			list->ranges[++kept] = list->ranges[i];
	}
	list->count = kept + 1;
}

static void coarsen(struct range_list *list)
{
	while (list->count > RANGE_LIST_MOST / 2) {
		list->gap_bytes = list->gap_bytes == 0 ? LEAST_GAP_BYTES : list->gap_bytes * 2;
		merge_neighbours(list);
	}
}

static int make_room(struct range_list *list, struct failure *failure)
{
	size_t capacity = list->capacity == 0 ? 16 : list->capacity * 2;
	struct range *ranges;

	if (list->count < list->capacity)
		return 0;
	ranges = realloc(list->ranges, capacity * sizeof(*ranges));
	if (ranges == NULL)
		return fail(failure, -ENOMEM, "report: out of memory for a list of ranges");
	list->ranges = ranges;
	list->capacity = capacity;
	return 0;
}

int range_list_add(struct range_list *list, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure)
{
	struct range added = {.off_bytes = off_bytes, .len_bytes = len_bytes};
	size_t at, last;
	int error;

	assert(len_bytes > 0 && len_bytes <= UINT64_MAX - off_bytes);
	at = count_before(list, off_bytes);
	if (at > 0 && reaches(list, &list->ranges[at - 1], &added)) {
		at--;
		stretch(&list->ranges[at], &added);
	} else if (at < list->count && reaches(list, &added, &list->ranges[at])) {
		stretch(&list->ranges[at], &added);
	} else {
		error = make_room(list, failure);
		if (error < 0)
			return error;
		memmove(&list->ranges[at + 1], &list->ranges[at], (list->count - at) * sizeof(added));
		list->ranges[at] = added;
		list->count++;
		if (list->count > RANGE_LIST_MOST)
			coarsen(list);
		return 0;
	}
	/* The stretched one may have reached those after it. */
	for (last = at; last + 1 < list->count && reaches(list, &list->ranges[at], &list->ranges[last + 1]); last++)
		stretch(&list->ranges[at], &list->ranges[last + 1]);
	memmove(&list->ranges[at + 1], &list->ranges[last + 1], (list->count - last - 1) * sizeof(added));
	list->count -= last - at;
	return 0;
}

uint64_t range_list_bytes(const struct range_list *list)
{
	uint64_t sum_bytes = 0;

	for (size_t i = 0; i < list->count; i++)
		sum_bytes += list->ranges[i].len_bytes; /* they don't overlap: no more than there are bytes */
	return sum_bytes;
}

struct range *range_list_take(struct range_list *list, size_t *ret_count)
{
	struct range *ranges = list->ranges;

	*ret_count = list->count;
	*list = RANGE_LIST_EMPTY;
	return ranges;
}

void range_list_free(struct range_list *list)
{
	free(list->ranges);
	*list = RANGE_LIST_EMPTY;
}
