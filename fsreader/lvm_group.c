/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A volume is resolved when somebody needs it, once; volumes that it lies on (legs of a mirror, members of a raid0, what pvmove has put in
 * between) are resolved before it, to a depth of LVM_MOST_DEPTH. The result is flat: segments over physical volumes only. All volumes of a group
 * together have LVM_MOST_SEGMENTS of them at most, so that a few lines of text can't be made to mean billions.
 *
 * What a volume can't be read for is written into its `problem`, by whoever finds it, once; those that lie on it inherit it.
 *
 * Sizes in the text are in sectors of 512 bytes, whatever the disk has, and in extents.
 */
#include "fsreader/lvm_group.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

enum { SECTOR_BYTES = 512, PROBLEM_BYTES = 256 };

struct pv_entry {
	const char *key; /* "pv0": how segments call it */
	uint64_t start_bytes, extent_count;
	uint32_t number;
	bool is_present;
};

enum lv_state { LV_UNSEEN, LV_BEING_RESOLVED, LV_RESOLVED };

struct lv_entry {
	const char *key;
	const struct lvm_node *children;
	uint32_t number; /* in the order of the text */
	bool is_hidden;
	enum lv_state state;
	struct lvm_volume volume;
	size_t segment_capacity, area_capacity;
};

struct reading {
	struct lvm_group *group;
	uint64_t extent_bytes;
	size_t pv_count, lv_count;
	struct pv_entry *pvs; /* sorted by key */
	struct lv_entry *lvs; /* sorted by key */
	size_t segments_left;
	unsigned depth;
	struct failure *failure;
};

/* ---- names ---- */

bool lvm_name_is_valid(const char *name)
{
	size_t len_bytes = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-");

	return len_bytes > 0 && len_bytes < LVM_NAME_BYTES && name[len_bytes] == '\0' && name[0] != '-' &&
	       strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

bool lvm_uuid_is_valid(const char *uuid)
{
	size_t len_bytes = strspn(uuid, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#");

	return len_bytes == LVM_UUID_BYTES - 1 && uuid[len_bytes] == '\0';
}

/* "nHsWW3-YHO9-…": six dashes are for people. */
static bool read_uuid(const char *text, char ret_uuid[LVM_UUID_BYTES])
{
	char uuid[LVM_UUID_BYTES] = "";
	size_t len_bytes = 0;

	for (; text != NULL && *text != '\0'; text++) {
		if (*text == '-')
			continue;
		if (len_bytes == LVM_UUID_BYTES - 1)
			return false;
		uuid[len_bytes++] = *text;
	}
	if (!lvm_uuid_is_valid(uuid))
		return false;
	memcpy(ret_uuid, uuid, LVM_UUID_BYTES);
	return true;
}

/* ---- what can go wrong with one volume ---- */

/* The first one stays. No memory for it: it has no message, but there still is a problem. */
__attribute__((format(printf, 2, 3))) static void set_problem(struct lv_entry *lv, const char *format, ...)
{
	char *problem;
	va_list arguments;

	if (lv->volume.problem != NULL)
		return;
	problem = malloc(PROBLEM_BYTES);
	if (problem == NULL)
		abort(); /* in the worker, whose end is an error for whoever asked it */
	va_start(arguments, format);
	(void)vsnprintf(problem, PROBLEM_BYTES, format, arguments); /* cut when longer */
	va_end(arguments);
	lv->volume.problem = problem;
}

static bool has_problem(const struct lv_entry *lv)
{
	return lv->volume.problem != NULL;
}

/* ---- growing a volume ---- */

static int grow(void *array, size_t *capacity, size_t count, size_t wanted, size_t item_bytes)
{
	void **items = array;
	size_t new_capacity = *capacity * 2 > count + wanted ? *capacity * 2 : count + wanted;
	void *grown;

	if (count + wanted <= *capacity)
		return 0;
	grown = reallocarray(*items, new_capacity, item_bytes);
	if (grown == NULL)
		return -ENOMEM;
	*items = grown;
	*capacity = new_capacity;
	return 0;
}

/* Appends a segment with its areas behind what is there. */
static int append(struct reading *reading, struct lv_entry *lv, struct lvm_segment segment,
		  const struct lvm_area *areas)
{
	struct lvm_volume *volume = &lv->volume;

	if (reading->segments_left == 0 || volume->area_count + segment.area_count > UINT32_MAX)
		return fail(reading->failure, -E2BIG, "LVM metadata: more than %d segments", LVM_MOST_SEGMENTS);
	if (grow(&volume->segments, &lv->segment_capacity, volume->segment_count, 1, sizeof(*volume->segments)) < 0 ||
	    grow(&volume->areas, &lv->area_capacity, volume->area_count, segment.area_count, sizeof(*volume->areas)) <
		    0)
		return fail(reading->failure, -ENOMEM, "LVM metadata: out of memory");
	reading->segments_left--;
	segment.lv_off_bytes = volume->size_bytes;
	segment.first_area = segment.area_count == 0 ? 0 : (uint32_t)volume->area_count;
	if (segment.area_count > 0)
		memcpy(volume->areas + volume->area_count, areas, segment.area_count * sizeof(*areas));
	volume->area_count += segment.area_count;
	volume->segments[volume->segment_count++] = segment;
	if (__builtin_add_overflow(volume->size_bytes, segment.len_bytes, &volume->size_bytes) ||
	    volume->size_bytes > INT64_MAX)
		set_problem(lv, "its size is no size");
	return 0;
}

/* ---- what a segment lies on ---- */

static int compare_keys(const void *a, const void *b)
{
	const char *const *first = a, *const *second = b;

	return strcmp(*first, *second); /* `key` is the first member of what is sorted here */
}

static void *find_entry(void *entries, size_t count, size_t entry_bytes, const char *key)
{
	return count == 0 ? NULL : bsearch(&key, entries, count, entry_bytes, compare_keys);
}

static int resolve(struct reading *reading, struct lv_entry *lv);

/* One stripe, or leg, as the text has it: a physical volume, or a volume. */
struct place {
	const struct pv_entry *pv;
	const struct lv_entry *lv;
	uint64_t off_bytes;
};

/* Of a PV all extents must be there. */
static void place_on_pv(struct lv_entry *lv, struct place *place, const struct pv_entry *pv, uint64_t extent,
			uint64_t len_extents, uint64_t extent_bytes)
{
	uint64_t end_extent;

	if (__builtin_add_overflow(extent, len_extents, &end_extent) || end_extent > pv->extent_count) {
		set_problem(lv, "it lies on extents that physical volume %s doesn't have", pv->key);
		return;
	}
	place->pv = pv;
	place->off_bytes = pv->start_bytes + extent * extent_bytes; /* both within the PV's size, which was checked */
}

static int place_on_lv(struct reading *reading, struct lv_entry *lv, struct place *place, struct lv_entry *below,
		       uint64_t extent, uint64_t len_extents)
{
	uint64_t end_extent, end_bytes;
	int error = resolve(reading, below);

	if (error < 0)
		return error;
	if (has_problem(below))
		set_problem(lv, "%s, which it lies on: %s", below->key, below->volume.problem);
	else if (__builtin_add_overflow(extent, len_extents, &end_extent) ||
		 __builtin_mul_overflow(end_extent, reading->extent_bytes, &end_bytes) ||
		 end_bytes > below->volume.size_bytes)
		set_problem(lv, "it lies on extents that %s doesn't have", below->key);
	place->lv = below;
	place->off_bytes = has_problem(lv) ? 0 : extent * reading->extent_bytes;
	return 0;
}

/* Leaves a problem with `lv` when there is no such place. */
static int find_place(struct reading *reading, struct lv_entry *lv, const char *key, uint64_t extent,
		      uint64_t len_extents, struct place *ret_place)
{
	const struct pv_entry *pv = find_entry(reading->pvs, reading->pv_count, sizeof(*reading->pvs), key);
	struct lv_entry *below = find_entry(reading->lvs, reading->lv_count, sizeof(*reading->lvs), key);

	*ret_place = (struct place){.pv = NULL};
	if (pv != NULL) {
		place_on_pv(lv, ret_place, pv, extent, len_extents, reading->extent_bytes);
		if (!pv->is_present)
			set_problem(lv, "physical volume %s is missing", reading->group->pvs[pv->number].uuid);
		return 0;
	}
	if (below == NULL) {
		set_problem(lv, "it lies on something that the metadata don't have");
		return 0;
	}
	return place_on_lv(reading, lv, ret_place, below, extent, len_extents);
}

/* ---- segments over places ---- */

static const struct lvm_segment *segment_at(const struct lvm_volume *volume, uint64_t off_bytes)
{
	size_t low = 0, high = volume->segment_count;

	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (volume->segments[middle].lv_off_bytes <= off_bytes)
			low = middle;
		else
			high = middle;
	}
	return &volume->segments[low];
}

/* `len_bytes` of another volume, whose segments they are taken from. */
static int append_range(struct reading *reading, struct lv_entry *lv, const struct lvm_volume *below,
			uint64_t off_bytes, uint64_t len_bytes)
{
	int error = 0;

	while (len_bytes > 0 && error == 0) {
		const struct lvm_segment *segment = segment_at(below, off_bytes);
		uint64_t skip_bytes = off_bytes - segment->lv_off_bytes;
		uint64_t step_bytes =
			segment->len_bytes - skip_bytes < len_bytes ? segment->len_bytes - skip_bytes : len_bytes;
		struct lvm_segment piece = *segment;
		struct lvm_area moved;

		piece.len_bytes = step_bytes;
		if (segment->area_count == 1) {
			moved = below->areas[segment->first_area];
			moved.off_bytes += skip_bytes;
			error = append(reading, lv, piece, &moved);
		} else {
			piece.skip_bytes += segment->kind == LVM_MAPPED ? skip_bytes : 0;
			error = append(reading, lv, piece, below->areas + segment->first_area);
		}
		off_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	return error;
}

static int append_place(struct reading *reading, struct lv_entry *lv, const struct place *place, uint64_t len_bytes)
{
	if (place->lv != NULL)
		return append_range(reading, lv, &place->lv->volume, place->off_bytes, len_bytes);
	return append(reading, lv, (struct lvm_segment){.kind = LVM_MAPPED, .len_bytes = len_bytes, .area_count = 1},
		      &(struct lvm_area){.pv = place->pv->number, .off_bytes = place->off_bytes});
}

/* Where `off_bytes` of a place lies, and for how long in one piece; false: not in one piece of a physical volume. */
static bool locate(const struct place *place, uint64_t off_bytes, uint64_t len_bytes, struct lvm_area *ret_area,
		   uint64_t *ret_run_bytes)
{
	const struct lvm_segment *segment;
	uint64_t skip_bytes;

	if (place->pv != NULL) {
		*ret_area = (struct lvm_area){.pv = place->pv->number, .off_bytes = place->off_bytes + off_bytes};
		*ret_run_bytes = len_bytes;
		return true;
	}
	segment = segment_at(&place->lv->volume, place->off_bytes + off_bytes);
	if (segment->kind != LVM_MAPPED || segment->area_count != 1)
		return false;
	skip_bytes = place->off_bytes + off_bytes - segment->lv_off_bytes;
	*ret_area = place->lv->volume.areas[segment->first_area];
	ret_area->off_bytes += skip_bytes;
	*ret_run_bytes = segment->len_bytes - skip_bytes < len_bytes ? segment->len_bytes - skip_bytes : len_bytes;
	return true;
}

/* Stripes over `count` places of `len_bytes` each: a segment as far as all of them go on in one piece, then the next. */
static int append_stripes(struct reading *reading, struct lv_entry *lv, const struct place *places, uint32_t count,
			  uint64_t stripe_bytes, uint64_t len_bytes)
{
	struct lvm_area areas[LVM_MOST_AREAS];
	int error = 0;

	for (uint64_t done_bytes = 0, run_bytes; done_bytes < len_bytes && error == 0; done_bytes += run_bytes) {
		run_bytes = len_bytes - done_bytes;
		for (uint32_t i = 0; i < count; i++) {
			if (!locate(&places[i], done_bytes, run_bytes, &areas[i], &run_bytes)) {
				set_problem(lv, "its stripes lie on volumes that are striped themselves");
				return 0;
			}
		}
		if (run_bytes % stripe_bytes != 0) {
			set_problem(lv, "its stripes are cut where no stripe ends");
			return 0;
		}
		error = append(reading, lv,
			       (struct lvm_segment){.kind = LVM_MAPPED,
						    .len_bytes = run_bytes * count,
						    .stripe_bytes = stripe_bytes,
						    .area_count = count},
			       areas);
	}
	return error;
}

/* ---- kinds of segments ---- */

struct segment_text {
	const struct lvm_node *children;
	const char *type;
	uint64_t len_extents;
};

static uint64_t segment_bytes(const struct reading *reading, const struct segment_text *segment)
{
	return segment->len_extents * reading->extent_bytes; /* checked by read_segment() */
}

/* The places of a striped segment in `list`: pairs of name and extent. */
static int find_stripes(struct reading *reading, struct lv_entry *lv, const struct segment_text *segment,
			const struct lvm_value *list, uint32_t count, struct place *ret_places)
{
	uint32_t found = 0;

	for (; list != NULL && list->next != NULL && found < count && !has_problem(lv); list = list->next->next) {
		const struct lvm_value *extent = list->next;
		int error;

		if (!extent->is_number || extent->number < 0)
			break;
		error = find_place(reading, lv, list->text, (uint64_t)extent->number, segment->len_extents / count,
				   &ret_places[found++]);
		if (error < 0)
			return error;
	}
	if (list != NULL || found < count)
		set_problem(lv, "its list of stripes is not one");
	return 0;
}

/* Of a raid: names, each data volume perhaps after the one with its metadata. */
static int find_members(struct reading *reading, struct lv_entry *lv, const struct segment_text *segment,
			const struct lvm_value *list, uint32_t count, struct place *ret_places)
{
	uint32_t found = 0;

	for (; list != NULL && !has_problem(lv); list = list->next) {
		int error;

		if (strstr(list->text, "_rmeta_") != NULL)
			continue;
		if (found == count)
			break;
		error = find_place(reading, lv, list->text, 0, segment->len_extents / count, &ret_places[found++]);
		if (error < 0)
			return error;
	}
	if (list != NULL || found < count)
		set_problem(lv, "its list of members is not one");
	return 0;
}

static bool read_stripe_geometry(struct lv_entry *lv, const struct segment_text *segment, uint32_t *ret_count,
				 uint64_t *ret_stripe_bytes)
{
	uint64_t count = 0, stripe_sectors = 0;

	(void)lvm_node_number(segment->children, "stripe_count", &count); /* 0 then */
	(void)lvm_node_number(segment->children, "stripe_size", &stripe_sectors);
	if (count == 0 || count > LVM_MOST_AREAS || segment->len_extents % count != 0)
		set_problem(lv, "it has %llu stripes, which can't be", (unsigned long long)count);
	else if (count > 1 && (stripe_sectors == 0 || stripe_sectors > UINT32_MAX))
		set_problem(lv, "its stripes have no size");
	*ret_count = (uint32_t)count;
	*ret_stripe_bytes = stripe_sectors * SECTOR_BYTES;
	return !has_problem(lv);
}

static int read_striped(struct reading *reading, struct lv_entry *lv, const struct segment_text *segment)
{
	struct place places[LVM_MOST_AREAS];
	bool is_raid = strncmp(segment->type, "raid", strlen("raid")) == 0;
	const struct lvm_node *list =
		lvm_node_list(segment->children, !is_raid			       ? "stripes"
						 : strcmp(segment->type, "raid0") == 0 ? "raid0_lvs"
										       : "raids");
	uint64_t stripe_bytes, len_bytes = segment_bytes(reading, segment);
	uint32_t count;
	int error;

	if (!read_stripe_geometry(lv, segment, &count, &stripe_bytes))
		return 0;
	error = (is_raid ? find_members : find_stripes)(reading, lv, segment, list == NULL ? NULL : list->values, count,
							places);
	if (error < 0 || has_problem(lv))
		return error;
	if (count == 1)
		return append_place(reading, lv, &places[0], len_bytes);
	return append_stripes(reading, lv, places, count, stripe_bytes, len_bytes / count);
}

/* A leg that can't be read leaves a problem with `lv`. */
static int try_leg(struct reading *reading, struct lv_entry *lv, const struct segment_text *segment, const char *key,
		   uint64_t extent)
{
	struct place place;
	int error = find_place(reading, lv, key, extent, segment->len_extents, &place);

	if (error < 0)
		return error;
	if (place.lv != NULL && lvm_node_lists(place.lv->children, "status", "REBUILD"))
		set_problem(lv, "%s, which it lies on, was being rebuilt", place.lv->key);
	return has_problem(lv) ? 0 : append_place(reading, lv, &place, segment_bytes(reading, segment));
}

/* Of legs that hold the same: the first that is there and in step. If there is none, what is wrong with the first is said. */
static int read_mirrored(struct reading *reading, struct lv_entry *lv, const struct segment_text *segment)
{
	bool is_raid = strcmp(segment->type, "raid1") == 0;
	const struct lvm_node *list = lvm_node_list(segment->children, is_raid ? "raids" : "mirrors");
	AUTO_FREE char *first_problem = NULL;

	for (const struct lvm_value *leg = list == NULL ? NULL : list->values; leg != NULL; leg = leg->next) {
		const struct lvm_value *extent = is_raid ? NULL : leg->next;
		int error;

		if (leg->is_number || strstr(leg->text, "_rmeta_") != NULL)
			continue;
		error = try_leg(reading, lv, segment, leg->text,
				extent != NULL && extent->is_number && extent->number > 0 ? (uint64_t)extent->number
											  : 0);
		if (error < 0 || !has_problem(lv))
			return error;
		if (first_problem == NULL)
			first_problem = take_ptr(lv->volume.problem);
		free(take_ptr(lv->volume.problem));
	}
	set_problem(lv, "%s", first_problem != NULL ? first_problem : "a mirror without legs");
	return 0;
}

static int read_void(struct reading *reading, struct lv_entry *lv, const struct segment_text *segment)
{
	return append(reading, lv,
		      (struct lvm_segment){.kind = strcmp(segment->type, "zero") == 0 ? LVM_ZERO : LVM_ERROR,
					   .len_bytes = segment_bytes(reading, segment)},
		      NULL);
}

static const struct {
	const char *type;
	int (*read)(struct reading *reading, struct lv_entry *lv, const struct segment_text *segment);
	const char *problem; /* where there is no `read` */
} kinds[] = {
	{"striped", read_striped, NULL},
	{"linear", read_striped, NULL},
	{"raid0", read_striped, NULL},
	{"raid0_meta", read_striped, NULL},
	{"mirror", read_mirrored, NULL},
	{"raid1", read_mirrored, NULL},
	{"zero", read_void, NULL},
	{"error", read_void, NULL},
	{"thin", NULL, "a thin volume"},
	{"thin-pool", NULL, "a pool of thin volumes"},
	{"cache", NULL, "a cached volume, whose newest content may be in its cache only"},
	{"cache-pool", NULL, "a pool for caches"},
	{"writecache", NULL, "a volume with a write cache, which may hold its newest content"},
	{"integrity", NULL, "a volume with integrity data in between"},
	{"vdo", NULL, "a volume that is deduplicated by VDO"},
	{"vdo-pool", NULL, "a pool of VDO volumes"},
	{"raid10", NULL, "striped mirrors (raid10)"},
	{"raid10_near", NULL, "striped mirrors (raid10)"},
};

static int read_kind(struct reading *reading, struct lv_entry *lv, const struct segment_text *segment)
{
	const char *flags = strchr(segment->type, '+');
	size_t type_bytes = flags == NULL ? strlen(segment->type) : (size_t)(flags - segment->type);

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (strlen(kinds[i].type) != type_bytes || strncmp(kinds[i].type, segment->type, type_bytes) != 0)
			continue;
		if (kinds[i].read == NULL)
			set_problem(lv, "%s: only the kernel's device mapper can put it together", kinds[i].problem);
		else if (flags != NULL)
			set_problem(lv, "it was being changed: its type is \"%.60s\"", segment->type);
		else
			return kinds[i].read(reading, lv, segment);
		return 0;
	}
	set_problem(lv, "of type \"%.60s\": only the kernel's device mapper can put it together", segment->type);
	return 0;
}

static int read_segment(struct reading *reading, struct lv_entry *lv, const struct lvm_node *children)
{
	struct segment_text segment = {.children = children, .type = lvm_node_string(children, "type")};
	uint64_t first_extent, first_bytes, len_bytes, data_offset;

	if (segment.type == NULL || !lvm_node_number(children, "start_extent", &first_extent) ||
	    !lvm_node_number(children, "extent_count", &segment.len_extents) || segment.len_extents == 0 ||
	    __builtin_mul_overflow(first_extent, reading->extent_bytes, &first_bytes) ||
	    __builtin_mul_overflow(segment.len_extents, reading->extent_bytes, &len_bytes) || len_bytes > INT64_MAX) {
		set_problem(lv, "one of its segments is none");
		return 0;
	}
	if (first_bytes != lv->volume.size_bytes) {
		set_problem(lv, "its segments don't follow each other");
		return 0;
	}
	if (lvm_node_number(children, "data_offset", &data_offset)) {
		set_problem(lv, "it was being reshaped");
		return 0;
	}
	return read_kind(reading, lv, &segment);
}

/* ---- volumes ---- */

static int read_segments(struct reading *reading, struct lv_entry *lv)
{
	int error = 0;

	for (const struct lvm_node *node = lv->children; node != NULL && error == 0 && !has_problem(lv);
	     node = node->next)
		if (node->is_section && strncmp(node->key, "segment", strlen("segment")) == 0)
			error = read_segment(reading, lv, node->children);
	if (error == 0 && lv->volume.segment_count == 0)
		set_problem(lv, "it has no segments");
	return error;
}

/* No segments where there is a problem: nobody can read half of a volume by mistake. */
static void drop_segments(struct lv_entry *lv)
{
	free(take_ptr(lv->volume.segments));
	free(take_ptr(lv->volume.areas));
	lv->volume.segment_count = lv->volume.area_count = 0;
}

static int resolve(struct reading *reading, struct lv_entry *lv)
{
	int error;

	if (lv->state == LV_BEING_RESOLVED)
		return fail(reading->failure, -EINVAL, "LVM metadata: volume %.60s lies on itself", lv->key);
	if (lv->state == LV_RESOLVED)
		return 0;
	if (reading->depth == LVM_MOST_DEPTH)
		return fail(reading->failure, -E2BIG, "LVM metadata: volumes lie on volumes more than %d deep",
			    LVM_MOST_DEPTH);
	lv->state = LV_BEING_RESOLVED;
	reading->depth++;
	error = read_segments(reading, lv);
	reading->depth--;
	lv->state = LV_RESOLVED;
	if (has_problem(lv))
		drop_segments(lv);
	return error;
}

/* Of a volume that can't be read its size is shown all the same. */
static uint64_t size_from_extents(const struct reading *reading, const struct lv_entry *lv)
{
	uint64_t size_bytes = 0;

	for (const struct lvm_node *node = lv->children; node != NULL; node = node->next) {
		uint64_t extents, len_bytes;

		if (!node->is_section || strncmp(node->key, "segment", strlen("segment")) != 0 ||
		    !lvm_node_number(node->children, "extent_count", &extents))
			continue;
		if (__builtin_mul_overflow(extents, reading->extent_bytes, &len_bytes) ||
		    __builtin_add_overflow(size_bytes, len_bytes, &size_bytes) || size_bytes > INT64_MAX)
			return 0;
	}
	return size_bytes;
}

/* A snapshot is three volumes: its origin, what was written to since (which looks like any other), and "snapshot0", which ties the two together. */
static void note_snapshot(struct reading *reading, struct lv_entry *tie, const struct lvm_node *segment)
{
	const char *origin = lvm_node_string(segment, "origin");
	const char *store = lvm_node_string(segment, "cow_store"), *merging = lvm_node_string(segment, "merging_store");
	struct lv_entry *lv;

	tie->is_hidden = true;
	lv = store == NULL ? NULL : find_entry(reading->lvs, reading->lv_count, sizeof(*reading->lvs), store);
	if (lv != NULL && lv != tie)
		set_problem(lv, "a snapshot of %.60s: only the kernel's device mapper can put it together",
			    origin == NULL ? "?" : origin);
	lv = merging == NULL ? NULL : find_entry(reading->lvs, reading->lv_count, sizeof(*reading->lvs), merging);
	if (lv != NULL && lv != tie)
		lv->is_hidden = true;
	lv = merging == NULL || origin == NULL
		     ? NULL
		     : find_entry(reading->lvs, reading->lv_count, sizeof(*reading->lvs), origin);
	if (lv != NULL && lv != tie)
		set_problem(lv, "a snapshot was being merged into it");
}

static void note_snapshots(struct reading *reading)
{
	for (size_t i = 0; i < reading->lv_count; i++) {
		for (const struct lvm_node *node = reading->lvs[i].children; node != NULL; node = node->next) {
			const char *type = node->is_section ? lvm_node_string(node->children, "type") : NULL;

			if (type != NULL && strcmp(type, "snapshot") == 0)
				note_snapshot(reading, &reading->lvs[i], node->children);
		}
	}
}

/* ---- the group ---- */

static size_t count_sections(const struct lvm_node *node)
{
	size_t count = 0;

	for (; node != NULL; node = node->next)
		count += node->is_section;
	return count;
}

static bool is_present(const struct lvm_present *present, const char *uuid)
{
	for (size_t i = 0; i < present->count; i++)
		if (strcmp(present->uuids[i], uuid) == 0)
			return true;
	return false;
}

static int read_pv(struct reading *reading, const struct lvm_node *node, const struct lvm_present *present,
		   uint32_t number)
{
	struct lvm_pv *pv = &reading->group->pvs[number];
	struct pv_entry *entry = &reading->pvs[number];
	uint64_t start_sectors = 0, size_sectors = 0, end_bytes;

	pv->is_missing = lvm_node_lists(node->children, "status", "MISSING") ||
			 lvm_node_lists(node->children, "flags", "MISSING");
	*entry = (struct pv_entry){.key = node->key, .number = number};
	if (!read_uuid(lvm_node_string(node->children, "id"), pv->uuid) ||
	    !lvm_node_number(node->children, "pe_start", &start_sectors) ||
	    !lvm_node_number(node->children, "pe_count", &entry->extent_count) ||
	    __builtin_mul_overflow(entry->extent_count, reading->extent_bytes, &end_bytes) ||
	    start_sectors > INT64_MAX / SECTOR_BYTES || end_bytes > INT64_MAX - start_sectors * SECTOR_BYTES)
		return fail(reading->failure, -EINVAL, "LVM metadata: physical volume \"%.60s\" is not described",
			    node->key);
	(void)lvm_node_number(node->children, "dev_size", &size_sectors); /* optional */
	if (!__builtin_mul_overflow(size_sectors, (uint64_t)SECTOR_BYTES, &end_bytes) && end_bytes <= INT64_MAX)
		pv->size_bytes = end_bytes;
	entry->start_bytes = start_sectors * SECTOR_BYTES;
	entry->is_present = !pv->is_missing && is_present(present, pv->uuid);
	reading->group->missing_count += !entry->is_present;
	return 0;
}

static int read_pvs(struct reading *reading, const struct lvm_node *group, const struct lvm_present *present)
{
	const struct lvm_node *section = lvm_node_section(group, "physical_volumes");
	uint32_t number = 0;

	reading->pv_count = section == NULL ? 0 : count_sections(section->children);
	if (reading->pv_count == 0 || reading->pv_count > UINT16_MAX)
		return fail(reading->failure, -EINVAL, "LVM metadata: %zu physical volumes", reading->pv_count);
	reading->pvs = calloc(reading->pv_count, sizeof(*reading->pvs));
	reading->group->pvs = calloc(reading->pv_count, sizeof(*reading->group->pvs));
	if (reading->pvs == NULL || reading->group->pvs == NULL)
		return fail(reading->failure, -ENOMEM, "LVM metadata: out of memory");
	reading->group->pv_count = reading->pv_count;
	for (const struct lvm_node *node = section->children; node != NULL; node = node->next) {
		int error = node->is_section ? read_pv(reading, node, present, number++) : 0;

		if (error < 0)
			return error;
	}
	qsort(reading->pvs, reading->pv_count, sizeof(*reading->pvs), compare_keys);
	return 0;
}

/* The group's own section is the only one at the top of the text. */
static int read_head(struct reading *reading, const struct lvm_node *node)
{
	struct lvm_group *group = reading->group;
	uint64_t extent_sectors;

	if (!lvm_name_is_valid(node->key))
		return fail(reading->failure, -EINVAL, "LVM metadata: a volume group's name that is none: \"%.60s\"",
			    node->key);
	(void)snprintf(group->name, sizeof(group->name), "%s", node->key); /* fits: valid */
	if (!read_uuid(lvm_node_string(node->children, "id"), group->uuid) ||
	    !lvm_node_number(node->children, "seqno", &group->seqno) ||
	    !lvm_node_number(node->children, "extent_size", &extent_sectors) || extent_sectors == 0 ||
	    extent_sectors > UINT32_MAX)
		return fail(reading->failure, -EINVAL, "LVM metadata: volume group %s has no id, seqno or extent_size",
			    group->name);
	reading->extent_bytes = extent_sectors * SECTOR_BYTES;
	return 0;
}

static int find_lvs(struct reading *reading, const struct lvm_node *group)
{
	const struct lvm_node *section = lvm_node_section(group, "logical_volumes");
	size_t count = 0;

	reading->lv_count = section == NULL ? 0 : count_sections(section->children);
	if (reading->lv_count > LVM_MOST_VOLUMES)
		return fail(reading->failure, -E2BIG, "LVM metadata: %zu logical volumes", reading->lv_count);
	reading->lvs = calloc(reading->lv_count + 1, sizeof(*reading->lvs));
	if (reading->lvs == NULL)
		return fail(reading->failure, -ENOMEM, "LVM metadata: out of memory");
	for (const struct lvm_node *node = section == NULL ? NULL : section->children; node != NULL;
	     node = node->next) {
		if (!node->is_section)
			continue;
		if (!lvm_name_is_valid(node->key))
			return fail(reading->failure, -EINVAL,
				    "LVM metadata: a logical volume's name that is none: \"%.60s\"", node->key);
		reading->lvs[count] =
			(struct lv_entry){.key = node->key,
					  .children = node->children,
					  .number = (uint32_t)count,
					  .is_hidden = !lvm_node_lists(node->children, "status", "VISIBLE")};
		count++;
	}
	qsort(reading->lvs, reading->lv_count, sizeof(*reading->lvs), compare_keys);
	for (size_t i = 1; i < reading->lv_count; i++)
		if (strcmp(reading->lvs[i - 1].key, reading->lvs[i].key) == 0)
			return fail(reading->failure, -EINVAL, "LVM metadata: two volumes called %s",
				    reading->lvs[i].key);
	return 0;
}

static int compare_numbers(const void *a, const void *b)
{
	const struct lv_entry *first = a, *second = b;

	return (first->number > second->number) - (first->number < second->number);
}

static int resolve_all(struct reading *reading)
{
	note_snapshots(reading);
	for (size_t i = 0; i < reading->lv_count; i++) {
		struct lv_entry *lv = &reading->lvs[i];
		int error = lv->is_hidden ? 0 : resolve(reading, lv);

		if (error < 0)
			return error;
	}
	return 0;
}

static int hand_over(struct reading *reading)
{
	struct lvm_group *group = reading->group;

	group->volumes = calloc(reading->lv_count + 1, sizeof(*group->volumes));
	if (group->volumes == NULL)
		return fail(reading->failure, -ENOMEM, "LVM metadata: out of memory");
	qsort(reading->lvs, reading->lv_count, sizeof(*reading->lvs), compare_numbers);
	for (size_t i = 0; i < reading->lv_count; i++) {
		struct lv_entry *lv = &reading->lvs[i];
		struct lvm_volume *volume = &group->volumes[group->volume_count];

		if (lv->is_hidden)
			continue;
		*volume = lv->volume;
		lv->volume = (struct lvm_volume){.size_bytes = 0};
		(void)snprintf(volume->name, sizeof(volume->name), "%s", lv->key); /* fits: valid */
		if (volume->problem != NULL)
			volume->size_bytes = size_from_extents(reading, lv);
		volume->group = group;
		group->volume_count++;
	}
	return 0;
}

static void empty_volume(struct lvm_volume *volume)
{
	free(take_ptr(volume->problem));
	free(take_ptr(volume->segments));
	free(take_ptr(volume->areas));
}

static void reading_release(struct reading *reading)
{
	for (size_t i = 0; reading->lvs != NULL && i < reading->lv_count; i++)
		empty_volume(&reading->lvs[i].volume);
	free(reading->lvs);
	free(reading->pvs);
	lvm_group_free(reading->group);
}

static const struct lvm_node *only_section(const struct lvm_node *node)
{
	while (node != NULL && !node->is_section)
		node = node->next;
	return node;
}

int lvm_group_read(const struct lvm_text *text, const struct lvm_present *present, struct lvm_group **ret_group,
		   struct failure *failure)
{
	const struct lvm_node *group = only_section(lvm_text_first(text));
	AUTO(reading_release) struct reading reading = {.segments_left = LVM_MOST_SEGMENTS, .failure = failure};
	int error;

	if (group == NULL)
		return fail(failure, -EINVAL, "LVM metadata: no volume group in it");
	reading.group = calloc(1, sizeof(*reading.group));
	if (reading.group == NULL)
		return fail(failure, -ENOMEM, "LVM metadata: out of memory");
	error = read_head(&reading, group);
	if (error == 0)
		error = read_pvs(&reading, group->children, present);
	if (error == 0)
		error = find_lvs(&reading, group->children);
	if (error == 0)
		error = resolve_all(&reading);
	if (error == 0)
		error = hand_over(&reading);
	if (error == 0)
		*ret_group = take_ptr(reading.group);
	return error;
}

void lvm_group_empty(struct lvm_group *group)
{
	for (size_t i = 0; group->volumes != NULL && i < group->volume_count; i++)
		empty_volume(&group->volumes[i]);
	free(take_ptr(group->volumes));
	free(take_ptr(group->pvs));
	group->volume_count = group->pv_count = 0;
}

void lvm_group_free(struct lvm_group *group)
{
	if (group == NULL)
		return;
	lvm_group_empty(group);
	free(group);
}
