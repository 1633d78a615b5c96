/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of byte ranges for reports: bad sectors, differences.
 *
 * A list stays ascending, without overlaps, and merged, in whatever order ranges are added. It is bounded: beyond
 * RANGE_LIST_MOST ranges, those closest to each other are merged over the gaps between them, so what it says then
 * covers more than was added, never less.
 *
 * Not locked: the caller's business.
 */
#ifndef WHERRY_SYNCER_REPORT_H
#define WHERRY_SYNCER_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/failure.h"
#include "syncer/round.h"

enum { RANGE_LIST_MOST = 100000 };

struct range_list {
	struct range *ranges;
	size_t count;
	size_t capacity;
	uint64_t gap_bytes; /* ranges so far apart are merged: 0 until the list has been full */
};

#define RANGE_LIST_EMPTY ((struct range_list){.ranges = NULL})

/* len_bytes > 0 and off + len <= UINT64_MAX, asserted. Appending in ascending order is fast. -ENOMEM: the list is as it
 * was. */
int range_list_add(struct range_list *list, uint64_t off_bytes, uint64_t len_bytes, struct failure *failure);

/* Bytes in all of them. */
uint64_t range_list_bytes(const struct range_list *list);

/* Hands the array (NULL when empty) on to a report, which frees it; leaves an empty list. */
struct range *range_list_take(struct range_list *list, size_t *ret_count);
void range_list_free(struct range_list *list); /* leaves it empty */

#endif
