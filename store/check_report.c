/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A report is bounded: ranges and flaws beyond its limits are counted, not listed. Who looks for what is damaged walks
 * over content page by page, and all images at once; so a range is put behind the last one of its image, which is
 * anywhere in the list, and the list is sorted at the end.
 */
#include "store/check_report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

/* Arrays are as long as the next power of two. */
static int make_room(void **array, size_t count, size_t element_bytes, struct failure *failure)
{
	void *grown;

	if ((count & (count - 1)) != 0)
		return 0;
	grown = reallocarray(*array, count == 0 ? 1 : count * 2, element_bytes);
	if (grown == NULL)
		return fail_errno(failure, -ENOMEM, "check");
	*array = grown;
	return 0;
}

int check_report_damage(struct store_check_report *report, size_t *last, const char *disk, uint32_t image,
			uint64_t off_bytes, uint64_t len_bytes, const char *why, struct failure *failure)
{
	struct store_damage *damage = *last == 0 ? NULL : &report->damages[*last - 1];
	void *damages = report->damages;
	int result;

	if (damage != NULL && off_bytes < damage->off_bytes + damage->len_bytes)
		return 0; /* told already, for another reason */
	if (damage != NULL && damage->off_bytes + damage->len_bytes == off_bytes && strcmp(damage->why, why) == 0) {
		damage->len_bytes += len_bytes;
		return 0;
	}
	if (report->damage_count == STORE_DAMAGES_MOST) {
		report->more_damages++;
		return 0;
	}
	result = make_room(&damages, report->damage_count, sizeof(*damage), failure);
	if (result < 0)
		return result;
	report->damages = damages;
	damage = &report->damages[report->damage_count++];
	*damage = (struct store_damage){.image = image, .off_bytes = off_bytes, .len_bytes = len_bytes};
	(void)snprintf(damage->disk, sizeof(damage->disk), "%s", disk);
	(void)snprintf(damage->why, sizeof(damage->why), "%s", why);
	*last = report->damage_count;
	return 0;
}

int check_report_flaw(struct store_check_report *report, struct failure *failure, const char *what,
		      const char *why_format, ...)
{
	AUTO_FREE char *why = NULL;
	AUTO_FREE char *copy = strdup(what);
	void *flaws = report->flaws;
	va_list arguments;
	int result;

	if (report->flaw_count == STORE_FLAWS_MOST) {
		report->more_flaws++;
		return 0;
	}
	va_start(arguments, why_format);
	result = vasprintf(&why, why_format, arguments);
	va_end(arguments);
	if (result < 0)
		why = NULL;
	if (result < 0 || copy == NULL)
		return fail_errno(failure, -ENOMEM, "check");
	result = make_room(&flaws, report->flaw_count, sizeof(*report->flaws), failure);
	if (result < 0)
		return result;
	report->flaws = flaws;
	report->flaws[report->flaw_count].what = take_ptr(copy);
	report->flaws[report->flaw_count++].why = take_ptr(why);
	return 0;
}

static int compare_damages(const void *a, const void *b)
{
	const struct store_damage *first = a, *second = b;
	int order = strcmp(first->disk, second->disk);

	if (order != 0)
		return order;
	if (first->image != second->image)
		return first->image < second->image ? -1 : 1;
	return first->off_bytes < second->off_bytes ? -1 : first->off_bytes > second->off_bytes;
}

void check_report_finish(struct store_check_report *report)
{
	if (report->damage_count > 0)
		qsort(report->damages, report->damage_count, sizeof(*report->damages), compare_damages);
	report->is_clean = report->damage_count == 0 && report->more_damages == 0 && report->flaw_count == 0 &&
			   report->more_flaws == 0;
}
