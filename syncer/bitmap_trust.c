/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text that a round notes is one JSON object: {"used": NAME or null, "layout": HASH, "names": [...], "marks": {...}}.
 */
#include <stdatomic.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/json_release.h"
#include "common/utf8.h"
#include "syncer/bitmap_trust.h"

/* FNV-1a, 64 bits. Nobody gains by a collision. */
static uint64_t hash_add(uint64_t hash, const void *data, size_t len_bytes)
{
	const uint8_t *bytes = data;

	for (size_t i = 0; i < len_bytes; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3u;
	return hash;
}

#define HASH_START 0xcbf29ce484222325u

/* ---- marks ---- */

static uint64_t rank_of(uint64_t off_bytes)
{
	return hash_add(HASH_START, &off_bytes, sizeof(off_bytes));
}

/* Of all places the ones that rank lowest are kept. */
static void add_mark(struct dirty_marks *marks, uint64_t off_bytes)
{
	unsigned highest = 0;

	if (marks->count < DIRTY_MARKS_MOST) {
		marks->at[marks->count++] = off_bytes;
		return;
	}
	for (unsigned i = 1; i < marks->count; i++)
		if (rank_of(marks->at[i]) > rank_of(marks->at[highest]))
			highest = i;
	if (rank_of(off_bytes) < rank_of(marks->at[highest]))
		marks->at[highest] = off_bytes;
}

int dirty_marks_read(struct source *source, const atomic_bool *stop, struct dirty_marks *ret_marks,
		     struct failure *failure)
{
	uint64_t size_bytes = source_get_info(source)->size_bytes;
	struct dirty_marks marks = {.count = 0};
	bool was_dirty = false;

	for (uint64_t at = 0, len_bytes; at < size_bytes; at += len_bytes) {
		bool is_dirty;
		int result = source_dirty_at(source, at, size_bytes - at, &is_dirty, &len_bytes, failure);

		if (result == 0 && stop != NULL && *stop)
			result = fail(failure, -EINTR, "stopped");
		if (result < 0)
			return result;
		if (is_dirty && !was_dirty)
			add_mark(&marks, at);
		if (is_dirty)
			marks.dirty_bytes += len_bytes;
		was_dirty = is_dirty;
	}
	*ret_marks = marks;
	return 0;
}

int dirty_marks_check(struct source *source, const struct dirty_marks *then, const struct dirty_marks *now,
		      bool *ret_still_dirty, struct failure *failure)
{
	uint64_t size_bytes = source_get_info(source)->size_bytes;
	bool still_dirty = now->dirty_bytes >= then->dirty_bytes;

	for (unsigned i = 0; still_dirty && i < then->count; i++) {
		uint64_t len_bytes;
		int result;

		if (then->at[i] >= size_bytes)
			continue; /* what is gone from a source that shrank is no loss */
		result = source_dirty_at(source, then->at[i], 1, &still_dirty, &len_bytes, failure);
		if (result < 0)
			return result;
	}
	*ret_still_dirty = still_dirty;
	return 0;
}

json_t *dirty_marks_to_json(const struct dirty_marks *marks)
{
	json_t *at = json_array();

	for (unsigned i = 0; i < marks->count; i++)
		if (json_array_append_new(at, json_integer((json_int_t)marks->at[i])) < 0) {
			json_decref(at);
			return NULL;
		}
	return json_pack("{s:I, s:o}", "bytes", (json_int_t)marks->dirty_bytes, "at", at);
}

void dirty_marks_from_json(const json_t *json, struct dirty_marks *ret_marks)
{
	const json_t *array = json_object_get(json, "at");
	json_int_t bytes = json_integer_value(json_object_get(json, "bytes"));

	*ret_marks = (struct dirty_marks){.dirty_bytes = bytes > 0 ? (uint64_t)bytes : 0};
	for (size_t i = 0; i < json_array_size(array) && ret_marks->count < DIRTY_MARKS_MOST; i++) {
		json_int_t at = json_integer_value(json_array_get(array, i));

		if (at >= 0)
			ret_marks->at[ret_marks->count++] = (uint64_t)at;
	}
}

/* ---- what a round notes ---- */

uint64_t bitmap_trust_layout(struct source *source, struct plan *plan, bool read_all)
{
	unsigned count;
	const struct plan_partition *partitions = plan_partitions(plan, &count);
	const uint64_t basics[] = { source_get_info(source)->size_bytes, read_all };
	uint64_t hash = hash_add(HASH_START, basics, sizeof(basics));
	char text[160];

	for (unsigned i = 0; i < count; i++) {
		int length = snprintf(text, sizeof(text), "%u %" PRIu64 " %" PRIu64 " %.40s %d;", partitions[i].number,
				      partitions[i].off_bytes, partitions[i].len_bytes, partitions[i].type,
				      partitions[i].by_allocation_map);

		hash = hash_add(hash, text, length < 0 ? 0 : (size_t)length);
	}
	return hash;
}

static json_t *names_to_json(const char *names)
{
	json_t *array = json_array();

	while (*names != '\0') {
		size_t length = strcspn(names, "\n");

		AUTO_FREE char *name = strndup(names, length);

		/* one that is no UTF-8 can't be noted, and so is never trusted */
		if (name == NULL || (utf8_is_valid(name) && json_array_append_new(array, json_string(name)) < 0)) {
			json_decref(array);
			return NULL;
		}
		names += length + (names[length] == '\n');
	}
	return array;
}

char *bitmap_trust_describe(struct source *source, uint64_t layout_hash, const char *used, const struct dirty_marks *marks)
{
	char layout[20];
	AUTO(json_release) json_t *noted = NULL;

	(void)snprintf(layout, sizeof(layout), "%016" PRIx64, layout_hash);
	noted = json_pack("{s:s, s:o, s:o}", "layout", layout, "names", names_to_json(source_dirty_bitmaps(source)), "marks",
			  dirty_marks_to_json(marks));
	if (noted == NULL ||
	    json_object_set_new(noted, "used", used == NULL || !utf8_is_valid(used) ? json_null() : json_string(used)) < 0)
		return NULL;
	return json_dumps(noted, JSON_COMPACT);
}

/* The newest finished round took zeros for what it could not read: the mirror doesn't have what is there. If that can't be told, it did. */
static bool had_read_errors(const struct store_round_begun *begun)
{
	AUTO(json_release) json_t *notes = NULL;

	if (begun->previous_details == NULL)
		return false;
	notes = json_loads(begun->previous_details, 0, NULL);
	return notes == NULL || json_array_size(json_object_get(notes, "read_errors")) > 0;
}

static bool has_name(const json_t *noted, const char *name)
{
	size_t i;
	json_t *item;

	json_array_foreach(json_object_get(noted, "names"), i, item)
		if (json_is_string(item) && strcmp(json_string_value(item), name) == 0)
			return true;
	return false;
}

int bitmap_trust_decide(struct source *source, uint64_t layout_hash, const struct store_round_begun *begun, const char *name,
			const struct dirty_marks *now, const char **ret_why_not, struct failure *failure)
{
	AUTO(json_release) json_t *noted = NULL;
	const char *layout, *used;
	char layout_now[20];
	struct dirty_marks then;
	bool still_dirty;
	int result;

	if (begun->previous_identity == NULL) {
		*ret_why_not = "no finished round before this one left what the disk holds now";
		return 0;
	}
	if (strcmp(begun->previous_identity, source_get_info(source)->identity) != 0) {
		*ret_why_not = "the last round read another source";
		return 0;
	}
	noted = json_loads(begun->previous_dirty_bitmaps, 0, NULL);
	if (!has_name(noted, name)) {
		*ret_why_not = "it wasn't there when the last round began";
		return 0;
	}
	(void)snprintf(layout_now, sizeof(layout_now), "%016" PRIx64, layout_hash);
	layout = json_string_value(json_object_get(noted, "layout"));
	if (layout == NULL || strcmp(layout, layout_now) != 0) {
		*ret_why_not = "the partitions, or what is left out of them, have changed since the last round";
		return 0;
	}
	if (had_read_errors(begun)) {
		*ret_why_not = "the last round could not read all of the source";
		return 0;
	}
	*ret_why_not = NULL;
	used = json_string_value(json_object_get(noted, "used"));
	if (used == NULL || strcmp(used, name) != 0)
		return 0; /* nobody noted what it said then */
	dirty_marks_from_json(json_object_get(noted, "marks"), &then);
	result = dirty_marks_check(source, &then, now, &still_dirty, failure);
	if (result == 0 && !still_dirty)
		*ret_why_not = "what it called dirty when the last round began, it calls clean: it was cleared, or made anew";
	return result;
}
