/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images of the fake store: made, found, pinned, deleted, retained.
 *
 * An image shares its map with the live content at the moment it is made, so it
 * costs a list of pointers; what it alone refers to is counted when somebody asks.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "store/store_fake_internal.h"

void fake_image_free(struct fake_image *image)
{
	if (image == NULL)
		return;
	fake_map_free(&image->map);
	free(image->label);
	free(image->details);
	free(image);
}

/* ------------------------------------------------------------------ finding */

/* "1-3, 7": as many as fit; the newest of all come last in any case. */
static void list_numbers(const struct fake_disk *disk, char *ret_text, size_t room_bytes)
{
	enum { LAST_BYTES = 32 };
	size_t used_bytes = 0;

	for (size_t i = 0; i < disk->image_count;) {
		uint32_t first = disk->images[i]->number;
		uint32_t last = first;
		bool is_full = used_bytes + (size_t)2 * LAST_BYTES > room_bytes;

		while (++i < disk->image_count && (is_full || disk->images[i]->number == last + 1))
			last = disk->images[i]->number;
		used_bytes += (size_t)snprintf(ret_text + used_bytes, room_bytes - used_bytes,
					       first == last ? "%s%u"
					       : is_full     ? "%s%u, ..., %u"
							     : "%s%u-%u",
					       used_bytes > 0 ? ", " : "", first, last);
	}
}

static int find_image_number(const struct fake_disk *disk, uint32_t number, size_t *ret_index, struct failure *failure)
{
	char numbers[256] = "";

	for (size_t i = 0; i < disk->image_count; i++)
		if (disk->images[i]->number == number) {
			*ret_index = i;
			return 0;
		}
	if (disk->image_count == 0)
		return fail(failure, -ENOENT, "%s@%u: disk %s has no images", disk->name, number, disk->name);
	list_numbers(disk, numbers, sizeof(numbers));
	return fail(failure, -ENOENT, "%s@%u: there is no such image; there are %s", disk->name, number, numbers);
}

int fake_find_image_index(const struct fake_disk *disk, const struct store_reference *reference, size_t *ret_index,
			  struct failure *failure)
{
	if (reference->which == STORE_NUMBER)
		return find_image_number(disk, reference->number, ret_index, failure);
	if (disk->image_count == 0)
		return fail(failure, -ENOENT, "%s@latest: disk %s has no images", disk->name, disk->name);
	*ret_index = disk->image_count - 1;
	return 0;
}

/* Why an image has to stay: "pinned", "in use by …"; NULL when it may go. */
int fake_why_kept(const struct fake *fake, const struct fake_disk *disk, const struct fake_image *image, char **ret_why,
		  struct failure *failure)
{
	AUTO_FREE char *holder = NULL;
	AUTO_FREE char *clones = NULL;
	int error;

	if (image->pinned)
		return fake_copy_text("pinned", ret_why, failure);
	error = fake_find_holder(fake, disk, image, &holder, failure);
	if (error == 0)
		error = fake_clone_names(fake, disk, image->number, NULL, &clones, failure);
	if (error != 0 || (holder == NULL && clones == NULL)) {
		*ret_why = NULL;
		return error;
	}
	return asprintf(ret_why, "in use by %s", holder != NULL ? holder : clones) < 0 ? fake_no_memory(failure) : 0;
}

/* --------------------------------------------- deleting, pinning, retaining */

static void remove_image(struct fake_disk *disk, size_t index)
{
	fake_image_free(disk->images[index]);
	disk->image_count--;
	memmove(disk->images + index, disk->images + index + 1,
		(disk->image_count - index) * sizeof(struct fake_image *));
}

static int delete_image_locked(struct fake *fake, const char *name, uint32_t number, bool dry_run,
			       uint64_t *ret_freed_bytes, struct failure *failure)
{
	AUTO_FREE uint32_t *sharers = NULL;
	AUTO_FREE char *why = NULL;
	struct fake_disk *disk = NULL;
	size_t index = 0;
	int error = fake_check_writable(fake, failure);

	if (error == 0)
		error = fake_find_disk(fake, name, &disk, failure);
	if (error == 0)
		error = find_image_number(disk, number, &index, failure);
	if (error == 0)
		error = fake_why_kept(fake, disk, disk->images[index], &why, failure);
	if (error != 0)
		return error;
	if (why != NULL)
		return fail(failure, -EBUSY, "%s@%u: %s%s", name, number, why,
			    disk->images[index]->pinned ? "; unpin it first" : "; wait for it or stop it");
	error = fake_count_sharers(fake, &sharers, failure);
	if (error == 0)
		error = fake_unique_bytes(fake, &disk->images[index]->map, sharers, ret_freed_bytes, failure);
	if (error == 0 && !dry_run)
		remove_image(disk, index);
	return error;
}

int fake_delete_image(struct store *store, const char *disk, uint32_t number, bool dry_run, uint64_t *ret_freed_bytes,
		      struct failure *failure)
{
	struct fake_call call;
	uint64_t freed_bytes = 0;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_DELETE_IMAGE, NULL, failure);

	if (error == 0)
		error = delete_image_locked(fake_of(store), disk, number, dry_run, &freed_bytes, failure);
	error = fake_call_leave(&call, error, failure);
	if (error == 0)
		*ret_freed_bytes = freed_bytes;
	return error;
}

static int pin_image_locked(struct fake *fake, const char *name, uint32_t number, bool pinned, struct failure *failure)
{
	struct fake_disk *disk = NULL;
	size_t index = 0;
	int error = fake_check_writable(fake, failure);

	if (error == 0)
		error = fake_find_disk(fake, name, &disk, failure);
	if (error == 0)
		error = find_image_number(disk, number, &index, failure);
	if (error == 0)
		disk->images[index]->pinned = pinned;
	return error;
}

int fake_pin_image(struct store *store, const char *disk, uint32_t number, bool pinned, struct failure *failure)
{
	struct fake_call call;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_PIN_IMAGE, NULL, failure);

	if (error == 0)
		error = pin_image_locked(fake_of(store), disk, number, pinned, failure);
	return fake_call_leave(&call, error, failure);
}

static struct store_image_brief brief_of(const struct fake_disk *disk, const struct fake_image *image)
{
	struct store_image_brief brief = {
		.number = image->number, .created_at = image->created_at, .size_bytes = image->size_bytes};

	memcpy(brief.disk_id, disk->fingerprint_key, sizeof(brief.disk_id));
	return brief;
}

static int brief_images_locked(const struct fake *fake, const char *name, struct store_image_brief **ret_list,
			       size_t *ret_count, struct failure *failure)
{
	struct fake_disk *disk = NULL;
	struct store_image_brief *list;
	int error = fake_find_disk(fake, name, &disk, failure);

	if (error != 0)
		return error;
	list = calloc(disk->image_count + 1, sizeof(*list));
	if (list == NULL)
		return fake_no_memory(failure);
	for (size_t i = 0; i < disk->image_count; i++)
		list[i] = brief_of(disk, disk->images[i]);
	*ret_list = list;
	*ret_count = disk->image_count;
	return 0;
}

int fake_brief_images(struct store *store, const char *name, struct store_image_brief **ret_list, size_t *ret_count,
		      struct failure *failure)
{
	struct fake_call call;
	struct store_image_brief *list = NULL;
	size_t count = 0;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_BRIEF_IMAGES, NULL, failure);

	if (error == 0)
		error = brief_images_locked(fake_of(store), name, &list, &count, failure);
	error = fake_call_leave(&call, error, failure);
	if (error != 0) {
		free(list);
		return error;
	}
	*ret_list = list;
	*ret_count = count;
	return 0;
}

int fake_brief_image(struct store *store, const struct store_reference *reference, struct store_image_brief *ret_brief,
		     struct failure *failure)
{
	struct store_image_brief brief = {.number = 0};
	struct fake_call call;
	struct fake_disk *disk = NULL;
	size_t index = 0;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_BRIEF_IMAGE, NULL, failure);

	if (error == 0)
		error = fake_find_disk(fake_of(store), reference->disk, &disk, failure);
	if (error == 0)
		error = fake_find_image_index(disk, reference, &index, failure);
	if (error == 0)
		brief = brief_of(disk, disk->images[index]);
	error = fake_call_leave(&call, error, failure);
	if (error == 0)
		*ret_brief = brief;
	return error;
}

/* Oldest first, the newest never, until `keep` are left; those that can't go are noted with the reason. */
static int retain_locked(struct fake *fake, const char *name, uint32_t keep, bool dry_run,
			 struct store_retention *retention, struct failure *failure)
{
	struct fake_disk *disk = NULL;
	size_t left;
	int error = fake_check_writable(fake, failure);

	if (error == 0)
		error = fake_find_disk(fake, name, &disk, failure);
	if (error != 0)
		return error;
	left = disk->image_count;
	retention->deleted = calloc(left + 1, sizeof(*retention->deleted));
	retention->kept = calloc(left + 1, sizeof(*retention->kept));
	if (retention->deleted == NULL || retention->kept == NULL)
		return fake_no_memory(failure);
	for (size_t i = 0; i + 1 < disk->image_count && left > keep;) {
		uint32_t number = disk->images[i]->number;
		char *why;

		error = fake_why_kept(fake, disk, disk->images[i], &why, failure);
		if (error != 0)
			return error;
		if (why != NULL) {
			retention->kept[retention->kept_count].number = number;
			retention->kept[retention->kept_count++].why = why;
			i++;
			continue;
		}
		retention->deleted[retention->deleted_count++] = number;
		left--;
		if (dry_run)
			i++;
		else
			remove_image(disk, i);
	}
	return 0;
}

int fake_retain(struct store *store, const char *disk, uint32_t keep, bool dry_run,
		struct store_retention *ret_retention, struct failure *failure)
{
	struct fake_call call;
	struct store_retention retention = {.deleted = NULL};
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_RETAIN, NULL, failure);

	if (error == 0)
		error = retain_locked(fake_of(store), disk, keep, dry_run, &retention, failure);
	error = fake_call_leave(&call, error, failure);
	if (error != 0) {
		store_retention_free(&retention);
		return error;
	}
	*ret_retention = retention;
	return 0;
}

/* ------------------------------------------------------------------- making */

uint64_t fake_count_changed_bytes(const struct fake *fake, const struct fake_disk *disk)
{
	const struct fake_map *before = disk->image_count == 0 ? &disk->first : &disk->images[disk->image_count - 1]->map;
	uint64_t changed_bytes = 0;
	uint64_t page = 0;

	for (;; page++) {
		uint64_t live_page = fake_map_next(&disk->live, page);
		uint64_t before_page = fake_map_next(before, page);

		page = live_page < before_page ? live_page : before_page;
		if (page == UINT64_MAX)
			return changed_bytes;
		for (uint64_t i = page * STORE_MAP_PAGE_ENTRIES; i < (page + 1) * STORE_MAP_PAGE_ENTRIES; i++)
			if (fake_map_entry(&disk->live, i)->chunk != fake_map_entry(before, i)->chunk)
				changed_bytes += store_chunk_length(fake->store.chunk_bytes, disk->size_bytes, i);
	}
}

static int create_image_locked(struct fake_view *view, const struct store_image_params *params, uint32_t *ret_number,
			       struct failure *failure)
{
	struct fake_disk *disk = view->disk;
	struct fake_image *image;
	int error;

	if (params->round > disk->round_count)
		return fail(failure, -EINVAL, "%s: an image of round %u, which there isn't", disk->name, params->round);
	error = fake_reserve(&disk->images, &disk->image_capacity, disk->image_count, sizeof(struct fake_image *),
			     failure);
	if (error != 0)
		return error;
	image = calloc(1, sizeof(*image));
	if (image == NULL)
		return fake_no_memory(failure);
	error = fake_map_share(&disk->live, &image->map, failure);
	if (error == 0)
		error = fake_copy_text(params->label, &image->label, failure);
	if (error == 0)
		error = fake_copy_text(params->details, &image->details, failure);
	if (error != 0) {
		fake_image_free(image);
		return error;
	}
	image->number = disk->next_image++;
	image->created_at = time(NULL);
	image->size_bytes = disk->size_bytes;
	image->changed_bytes = fake_count_changed_bytes(view->fake, disk);
	image->consistency = params->consistency;
	image->round = params->round;
	disk->images[disk->image_count++] = image;
	disk->generation++;
	disk->changes++;
	*ret_number = image->number;
	return 0;
}

int fake_create_image(struct store_view *store_view, const struct store_image_params *params, uint32_t *ret_number,
		      struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct fake_call call;
	uint32_t number = 0;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_CREATE_IMAGE, view, failure);

	if (error == 0)
		error = create_image_locked(view, params, &number, failure);
	error = fake_call_leave(&call, error, failure);
	if (error == 0)
		*ret_number = number;
	return error;
}
