/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clones of the fake store: a clone is a copy of the image's map, so nothing has to show through anything. It only
 * notes which image it was made of, and keeps that one from going as long as the clone is there. (A store that keeps no
 * copy lets it go as soon as nothing shows; the promise is the same.)
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/store_fake_internal.h"

enum { NAMES_TOLD = 3 };

int fake_clone_names(const struct fake *fake, const struct fake_disk *disk, uint32_t number, uint32_t *ret_number,
		     char **ret_names, struct failure *failure)
{
	AUTO_FREE char *text = NULL;
	size_t count = 0;

	*ret_names = NULL;
	for (size_t i = 0; i < fake->disk_count; i++) {
		const struct fake_disk *clone = fake->disks[i];
		char *longer = NULL;

		if (clone->parent != disk || (number != 0 && clone->parent_number != number))
			continue;
		number = clone->parent_number; /* of the first one that is met, from now on */
		if (count++ >= NAMES_TOLD)
			continue;
		if (asprintf(&longer, "%s%s%s", text == NULL ? "" : text, text == NULL ? "" : ", ", clone->name) < 0)
			return fake_no_memory(failure);
		free(text);
		text = longer;
	}
	if (count == 0)
		return 0;
	if (ret_number != NULL)
		*ret_number = number;
	if (count > NAMES_TOLD) {
		if (asprintf(ret_names, "clones %s and %zu more", text, count - NAMES_TOLD) >= 0)
			return 0;
	} else if (asprintf(ret_names, "%s %s", count == 1 ? "clone" : "clones", text) >= 0) {
		return 0;
	}
	*ret_names = NULL;
	return fake_no_memory(failure);
}

static bool has_same_content(const struct fake_map *a, const struct fake_map *b)
{
	uint64_t page = 0;

	for (;; page++) {
		uint64_t in_a = fake_map_next(a, page), in_b = fake_map_next(b, page);

		page = in_a < in_b ? in_a : in_b;
		if (page == UINT64_MAX)
			return true;
		for (uint64_t i = page * STORE_MAP_PAGE_ENTRIES; i < (page + 1) * STORE_MAP_PAGE_ENTRIES; i++)
			if (fake_map_entry(a, i)->chunk != fake_map_entry(b, i)->chunk)
				return false;
	}
}

/* A copy as of the first generation, without fingerprints: they are of another key. */
static int copy_map(const struct fake_map *map, struct fake_map *ret_map, struct failure *failure)
{
	for (size_t i = 0; i < map->count; i++)
		for (uint64_t j = 0; j < STORE_MAP_PAGE_ENTRIES; j++) {
			const struct store_map_entry *from = &map->pages[i]->entries[j];
			const struct store_map_entry entry = {
				.kind = from->kind, .chunk = from->chunk, .since_generation = 1};
			struct store_map_entry old;
			int error;

			if (from->kind == STORE_MAP_NOTHING)
				continue;
			error = fake_map_set(ret_map, map->pages[i]->number * STORE_MAP_PAGE_ENTRIES + j, &entry, &old,
					     failure);
			if (error != 0)
				return error;
		}
	return 0;
}

static const struct fake_image *image_of_number(const struct fake_disk *disk, uint32_t number)
{
	for (size_t i = 0; i < disk->image_count; i++)
		if (disk->images[i]->number == number)
			return disk->images[i];
	return NULL;
}

/* An image of a clone that has written nothing: what is below it is what counts. */
static void note_parent(struct fake_disk *clone, struct fake_disk *disk, const struct fake_image *image)
{
	const struct fake_image *below =
		disk->parent == NULL ? NULL : image_of_number(disk->parent, disk->parent_number);

	if (image->map.count == 0)
		return;
	if (below != NULL && has_same_content(&below->map, &image->map)) {
		clone->parent = disk->parent;
		clone->parent_number = disk->parent_number;
		return;
	}
	clone->parent = disk;
	clone->parent_number = image->number;
}

static int clone_disk_locked(struct fake *fake, const struct store_reference *reference, const char *name,
			     struct failure *failure)
{
	AUTO(fake_map_free) struct fake_map map = {.pages = NULL};
	struct fake_disk *disk = NULL, *clone = NULL;
	const struct fake_image *image;
	size_t index = 0;
	int error = fake_check_writable(fake, failure);

	if (error == 0)
		error = fake_find_disk(fake, reference->disk, &disk, failure);
	if (error == 0)
		error = fake_find_image_index(disk, reference, &index, failure);
	if (error != 0)
		return error;
	image = disk->images[index];
	error = copy_map(&image->map, &map, failure);
	if (error != 0)
		return error;
	const struct store_disk_params params = {
		.name = name, .size_bytes = image->size_bytes, .sector_bytes = disk->sector_bytes};
	error = fake_create_disk_locked(fake, &params, &clone, failure);
	if (error != 0)
		return error;
	error = fake_map_share(&map, &clone->first, failure);
	if (error != 0) {
		fake_drop_disk_locked(fake, clone);
		return error;
	}
	clone->live = map;
	map = (struct fake_map){.pages = NULL};
	note_parent(clone, disk, image);
	return 0;
}

int fake_clone_disk(struct store *store, const struct store_reference *image, const char *name, struct failure *failure)
{
	struct fake_call call;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_CLONE_DISK, NULL, failure);

	if (error == 0)
		error = clone_disk_locked(fake_of(store), image, name, failure);
	return fake_call_leave(&call, error, failure);
}
