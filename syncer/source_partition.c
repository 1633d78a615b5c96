/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Partitions by number. The plan that rounds go by knows them: a partition has the same place and number wherever it is
 * asked for.
 */
#include "syncer/source_partition.h"

#include <errno.h>
#include <stdio.h>

#include "common/cleanup.h"
#include "syncer/plan.h"

static void cleanup_plan(struct plan **plan)
{
	plan_free(*plan);
}

/* "1 (vfat), 2 (ext4), 3"; cut where it gets too long for a message. */
static void list_partitions(const struct plan *plan, char *text, size_t text_bytes)
{
	unsigned count;
	const struct plan_partition *partitions = plan_partitions(plan, &count);
	size_t used_bytes = 0;

	text[0] = '\0';
	for (unsigned i = 0; i < count; i++) {
		bool is_typed = partitions[i].type[0] != '\0';
		int len;

		if (partitions[i].number == 0)
			continue;
		len = snprintf(text + used_bytes, text_bytes - used_bytes, "%s%u%s%s%s", used_bytes > 0 ? ", " : "",
			       partitions[i].number, is_typed ? " (" : "", partitions[i].type, is_typed ? ")" : "");
		if (len < 0 || (size_t)len >= text_bytes - used_bytes) {
			text[used_bytes] = '\0';
			return;
		}
		used_bytes += (size_t)len;
	}
}

static int fail_no_partition(const char *name, const struct plan *plan, uint32_t number, struct failure *failure)
{
	char list[512];

	list_partitions(plan, list, sizeof(list));
	if (list[0] == '\0')
		return fail(failure, -ENOENT,
			    "%s: has no partition %u, nor any other; leave out /%u for the whole disk", name, number,
			    number);
	return fail(failure, -ENOENT, "%s: has no partition %u; there is %s", name, number, list);
}

int source_partition_find(struct source *source, uint32_t number, const struct failure *damage, uint64_t *ret_off_bytes,
			  uint64_t *ret_len_bytes, struct failure *failure)
{
	/* types and table, and no word about what would be read: nothing is going to be left out */
	const struct plan_options options = {.read_all = true};
	AUTO(cleanup_plan) struct plan *plan = NULL;
	const struct plan_partition *partitions;
	unsigned count;
	int error = plan_make(source, &options, &plan, failure);

	if (error < 0)
		return error;
	partitions = plan_partitions(plan, &count);
	for (unsigned i = 0; i < count; i++) {
		if (partitions[i].number != number)
			continue;
		*ret_off_bytes = partitions[i].off_bytes;
		*ret_len_bytes = partitions[i].len_bytes;
		return 0;
	}
	if (damage->code != 0)
		return fail_from(failure, damage);
	return fail_no_partition(source_get_info(source)->name, plan, number, failure);
}
