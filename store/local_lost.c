/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which images have something in them that is marked as lost?
 *
 * No row says so: who refers to a chunk is known by its maps only, and one round may heal chunks of many images. So all states of the disk's chunks are
 * walked over, which costs what the disk's maps hold; but only while something is lost, which is nearly never.
 */
#include <errno.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "store/local.h"

enum { IDS_MOST = 1 << 20, LOST_A_LOOK = 256, ALL_ARE_DAMAGED = 1 };

struct looking {
	struct catalog *catalog;
	const struct catalog_image *rows;
	struct store_image *images;
	size_t count, damaged_count;
	uint64_t *ids; /* ascending; NULL: too many, the catalog is asked for each */
	size_t id_count;
};

static int compare_ids(const void *a, const void *b)
{
	uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;

	return first < second ? -1 : first > second;
}

static int load_ids(struct looking *looking, struct failure *failure)
{
	AUTO_FREE struct catalog_lost *list = calloc(LOST_A_LOOK, sizeof(*list));
	AUTO_FREE uint64_t *ids = NULL;
	struct catalog_lost after = { .chunk = 0 };
	size_t total = 0, count = 0;

	if (list == NULL)
		return fail_errno(failure, -ENOMEM, "images");
	do {
		uint64_t *grown = reallocarray(ids, total + LOST_A_LOOK, sizeof(*ids));
		int result;

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "images");
		ids = grown;
		result = catalog_lost_list(looking->catalog, after.digest, list, LOST_A_LOOK, &count, failure);
		if (result < 0)
			return result;
		for (size_t i = 0; i < count; i++)
			ids[total++] = list[i].chunk;
		if (count > 0)
			after = list[count - 1];
	} while (count == LOST_A_LOOK && total < IDS_MOST);
	if (count == LOST_A_LOOK)
		return 0;
	qsort(ids, total, sizeof(*ids), compare_ids);
	looking->ids = take_ptr(ids);
	looking->id_count = total;
	return 0;
}

static int is_lost(const struct looking *looking, uint64_t chunk, bool *ret_is_lost)
{
	if (looking->ids == NULL)
		return catalog_lost_has(looking->catalog, chunk, ret_is_lost, NULL);
	*ret_is_lost = bsearch(&chunk, looking->ids, looking->id_count, sizeof(chunk), compare_ids) != NULL;
	return 0;
}

static void note_images(struct looking *looking, uint32_t since, uint32_t until)
{
	for (size_t i = 0; i < looking->count; i++) {
		uint32_t generation = looking->rows[i].generation;

		if (!looking->images[i].damaged && generation >= since && (until == 0 || generation < until)) {
			looking->images[i].damaged = true;
			looking->damaged_count++;
		}
	}
}

static int look_at_states(void *opaque, const struct catalog_states *states)
{
	struct looking *looking = opaque;

	for (unsigned i = 0; !states->is_bad && i < CATALOG_PAGE_ENTRIES; i++) {
		const struct catalog_entry *entry = &states->entries[i];
		bool is_hit = false;
		int result;

		if ((states->present != NULL && !states->present[i]) || entry->kind != CATALOG_CHUNK)
			continue;
		result = is_lost(looking, entry->chunk, &is_hit);
		if (result < 0)
			return result;
		if (is_hit)
			note_images(looking, entry->since, states->until);
	}
	return looking->damaged_count == looking->count ? ALL_ARE_DAMAGED : 0;
}

/* Of a clone: what shows through from an image may be lost as well, so all that each image reads is looked at. */
static int look_at_content(struct looking *looking, int64_t disk, uint32_t chunk_bytes, struct failure *failure)
{
	AUTO_FREE struct catalog_page *content = malloc(sizeof(*content));
	int result = content == NULL ? fail_errno(failure, -ENOMEM, "images") : 0;

	for (size_t i = 0; result == 0 && i < looking->count; i++)
		for (uint64_t page = 0; result == 0 && !looking->images[i].damaged; page++) {
			bool is_hit = false;

			result = catalog_content_next(looking->catalog, disk, looking->rows[i].generation, chunk_bytes, page, &page, failure);
			if (result < 0 || page == UINT64_MAX)
				break;
			result = catalog_content_read(looking->catalog, disk, looking->rows[i].generation, chunk_bytes, page, content,
						      failure);
			for (unsigned j = 0; result == 0 && !is_hit && j < CATALOG_PAGE_ENTRIES; j++)
				if (content->entries[j].kind == CATALOG_CHUNK)
					result = is_lost(looking, content->entries[j].chunk, &is_hit);
			looking->images[i].damaged = is_hit;
		}
	return result;
}

int local_note_damaged_images(struct catalog *catalog, int64_t disk, uint32_t chunk_bytes, const struct catalog_image *rows,
			      struct store_image *images, size_t count, struct failure *failure)
{
	struct looking looking = { .catalog = catalog, .rows = rows, .images = images, .count = count };
	bool any = false, any_base = false;
	int result = catalog_lost_any(catalog, &any, failure);

	if (result < 0 || !any || count == 0)
		return result;
	result = load_ids(&looking, failure);
	for (size_t i = 0; result == 0 && !any_base && i < count; i++)
		result = catalog_base_any(catalog, disk, rows[i].generation, &any_base, failure);
	if (result == 0 && any_base)
		result = look_at_content(&looking, disk, chunk_bytes, failure);
	else if (result == 0)
		result = catalog_states_walk(catalog, disk, 0, UINT64_MAX, look_at_states, &looking, failure);
	free(looking.ids);
	return result < 0 ? result : 0;
}
