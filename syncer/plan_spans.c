/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of ranges: collected in any order, sorted and merged once, then searched.
 *
 * They are short where they come from a partition table and long where they come from a file system without
 * flex_bg, with one range a block group. Adding merges with the last few, because the tables of an ext4 with flex_bg
 * come as three interleaved streams of neighbours; that keeps a list of a million at a hundred thousand.
 */
#include "syncer/plan_internal.h"

#include <errno.h>
#include <stdlib.h>

enum { PLAN_SPANS_FIRST_CAPACITY = 16, PLAN_SPANS_LOOK_BACK = 4 };

static bool merge_into(struct plan_span *span, uint64_t first, uint64_t end)
{
	if (first > span->end || end < span->first)
		return false;
	if (first < span->first)
		span->first = first;
	if (end > span->end)
		span->end = end;
	return true;
}

int plan_spans_add(struct plan_spans *list, uint64_t first, uint64_t end, struct failure *failure)
{
	if (first >= end)
		return 0;
	for (size_t back = 1; back <= PLAN_SPANS_LOOK_BACK && back <= list->count; back++)
		if (merge_into(&list->spans[list->count - back], first, end))
			return 0;

	if (list->count == list->capacity) {
		size_t capacity = list->capacity == 0 ? PLAN_SPANS_FIRST_CAPACITY : list->capacity * 2;
		struct plan_span *spans = reallocarray(list->spans, capacity, sizeof(*spans));
		if (spans == NULL)
			return fail(failure, -ENOMEM, "plan: out of memory");
		list->spans = spans;
		list->capacity = capacity;
	}
	list->spans[list->count++] = (struct plan_span){.first = first, .end = end};
	return 0;
}

static int compare_spans(const void *left, const void *right)
{
	const struct plan_span *a = left;
	const struct plan_span *b = right;

	return a->first < b->first ? -1 : a->first > b->first;
}

void plan_spans_normalise(struct plan_spans *list)
{
	size_t kept = 0;

	if (list->count == 0)
		return;
	qsort(list->spans, list->count, sizeof(*list->spans), compare_spans);
	for (size_t i = 1; i < list->count; i++)
		if (!merge_into(&list->spans[kept], list->spans[i].first, list->spans[i].end))
			list->spans[++kept] = list->spans[i];
	list->count = kept + 1;
}

size_t plan_spans_find(const struct plan_spans *list, uint64_t position)
{
	size_t low = 0;
	size_t high = list->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (list->spans[middle].end > position)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

void plan_spans_free(struct plan_spans *list)
{
	free(list->spans);
	*list = (struct plan_spans){.spans = NULL};
}
