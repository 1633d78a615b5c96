/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images of a local store: making, listing, pinning, deleting, retention.
 *
 * Deleting an image takes its lease exclusively first, so that nobody has it open and nobody can open it, then marks it in a transaction: from
 * then on it is gone. Giving back what only it held comes after, in transactions of bounded size; if that is cut short, the next deletion ends it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/local.h"

enum { SWEEP_ROWS = 512 };

/* ---- listing ---- */

/* Who has it open, which clones it has: "wherry export (pid 7), clone web02". */
static int describe_use(struct local_store *local, struct catalog *catalog, const struct catalog_image *row,
			struct store_image *image, struct failure *failure)
{
	AUTO_FREE char *lease_name = local_image_lease_name(row->disk, row->number);
	AUTO_FREE char *clones = NULL;
	char *both = NULL;
	int result;

	if (lease_name == NULL)
		return fail_errno(failure, -ENOMEM, "images");
	result = lease_is_held(local->locks_fd, lease_name, &image->in_use, &image->in_use_by, failure);
	if (result == 0 && image->in_use && image->in_use_by == NULL &&
	    (image->in_use_by = strdup("another process")) == NULL)
		return fail_errno(failure, -ENOMEM, "images");
	if (result == 0)
		result = local_clone_names(catalog, row->disk, row->number, NULL, &clones, failure);
	if (result < 0 || clones == NULL)
		return result;
	if (image->in_use && asprintf(&both, "%s, %s", image->in_use_by, clones) < 0)
		return fail_errno(failure, -ENOMEM, "images");
	free(image->in_use_by);
	image->in_use_by = both != NULL ? both : take_ptr(clones);
	image->in_use = true;
	return 0;
}

static int describe_image(struct local_store *local, struct catalog *catalog, const char *disk_name,
			  const struct catalog_image *row, struct store_image *ret_image, struct failure *failure)
{
	int result;

	*ret_image = (struct store_image){
		.number = row->number,
		.created_at = row->created_at,
		.size_bytes = row->size_bytes,
		.changed_bytes = row->changed_bytes,
		.pinned = row->pinned,
		.consistency = (enum store_consistency)row->consistency,
		.round = row->round,
	};
	(void)strcpy(ret_image->disk, disk_name);
	if ((row->label != NULL && (ret_image->label = strdup(row->label)) == NULL) ||
	    (row->details != NULL && (ret_image->details = strdup(row->details)) == NULL))
		return fail_errno(failure, -ENOMEM, "images");
	result = catalog_image_unique(catalog, row, &ret_image->unique_bytes, failure);
	return result < 0 ? result : describe_use(local, catalog, row, ret_image, failure);
}

/* Images of one disk, appended to a list that grows. */
struct image_list {
	struct store_image *images;
	size_t count;
};

static int append_images_of(struct local_store *local, struct catalog *catalog, const struct catalog_disk *disk,
			    struct image_list *list, struct failure *failure)
{
	AUTO_FREE struct catalog_image *rows = NULL;
	size_t count = 0, first = list->count;
	int result = catalog_image_list(catalog, disk->id, CATALOG_ALIVE, &rows, &count, failure);
	struct store_image *grown;

	if (result < 0)
		return result;
	grown = reallocarray(list->images, list->count + count + 1, sizeof(*grown));
	if (grown == NULL)
		result = fail_errno(failure, -ENOMEM, "images");
	else
		list->images = grown;
	for (size_t i = 0; i < count; i++) {
		if (result == 0)
			result = describe_image(local, catalog, disk->name, &rows[i], &list->images[list->count++], failure);
		catalog_image_release(&rows[i]); /* what is needed of it below isn't released */
	}
	if (result == 0)
		result = local_note_damaged_images(catalog, disk->id, local->base.chunk_bytes, rows, &list->images[first],
						   count, failure);
	return result;
}

int local_list_images(struct store *store, const char *name, struct store_image **ret_list, size_t *ret_count,
		      struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO_FREE struct catalog_disk *disks = NULL;
	struct image_list list = { .images = NULL };
	size_t disk_count = 0;
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	if (result < 0)
		return result;
	if (name == NULL) {
		result = catalog_disk_list(reader.catalog, CATALOG_ALIVE, &disks, &disk_count, failure);
	} else {
		disks = calloc(1, sizeof(*disks));
		result = disks == NULL ? fail_errno(failure, -ENOMEM, "images") :
					 local_find_disk(reader.catalog, name, disks, failure);
		disk_count = result == 0;
	}
	for (size_t i = 0; i < disk_count; i++) {
		if (result == 0)
			result = append_images_of(local, reader.catalog, &disks[i], &list, failure);
		catalog_disk_release(&disks[i]);
	}
	if (result < 0) {
		store_images_free(list.images, list.count);
		return result;
	}
	*ret_list = list.images;
	*ret_count = list.count;
	return 0;
}

/* ---- one, and in brief ---- */

static int find_image(struct catalog *catalog, const struct store_reference *reference, struct catalog_disk *ret_disk,
		      struct catalog_image *ret_image, struct failure *failure)
{
	int result = local_find_disk(catalog, reference->disk, ret_disk, failure);

	if (result < 0)
		return result;
	if (reference->which == STORE_NUMBER)
		return local_find_image(catalog, ret_disk, reference->number, ret_image, failure);
	result = catalog_image_last(catalog, ret_disk->id, ret_image, failure);
	if (result == -ENOENT)
		return fail(failure, -ENOENT, "image %s@latest: disk %s has no images; 'wherry sync' makes them", ret_disk->name,
			    ret_disk->name);
	return result;
}

int local_describe_image(struct store *store, const char *disk_name, uint32_t number, struct store_image **ret_image,
			 struct failure *failure)
{
	struct local_store *local = local_of(store);
	struct store_reference reference = { .which = STORE_NUMBER, .number = number };
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	AUTO(catalog_image_release) struct catalog_image row = { .number = 0 };
	struct store_image *image;
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	(void)snprintf(reference.disk, sizeof(reference.disk), "%s", disk_name);
	if (result == 0)
		result = find_image(reader.catalog, &reference, &disk, &row, failure);
	if (result < 0)
		return result;
	image = calloc(1, sizeof(*image));
	if (image == NULL)
		return fail_errno(failure, -ENOMEM, "images");
	result = describe_image(local, reader.catalog, disk.name, &row, image, failure);
	if (result == 0)
		result = local_note_damaged_images(reader.catalog, disk.id, local->base.chunk_bytes, &row, image, 1, failure);
	if (result < 0) {
		store_images_free(image, 1);
		return result;
	}
	*ret_image = image;
	return 0;
}

static struct store_image_brief brief_of(const struct catalog_disk *disk, const struct catalog_image *row)
{
	struct store_image_brief brief = { .number = row->number,
					   .created_at = row->created_at,
					   .size_bytes = row->size_bytes };

	_Static_assert((int)STORE_ID_OF_DISK_BYTES == (int)CATALOG_UUID_BYTES, "it is the uuid");
	memcpy(brief.disk_id, disk->uuid, sizeof(brief.disk_id));
	return brief;
}

int local_brief_images(struct store *store, const char *disk_name, struct store_image_brief **ret_list, size_t *ret_count,
		       struct failure *failure)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	AUTO_FREE struct catalog_image *rows = NULL;
	struct store_image_brief *list;
	size_t count = 0;
	POOLED_READER(reader, local_of(store));
	int result = pooled_reader_open(&reader, failure);

	if (result == 0)
		result = local_find_disk(reader.catalog, disk_name, &disk, failure);
	if (result == 0)
		result = catalog_image_list(reader.catalog, disk.id, CATALOG_ALIVE, &rows, &count, failure);
	if (result < 0)
		return result;
	list = calloc(count + 1, sizeof(*list));
	for (size_t i = 0; i < count; i++) {
		if (list != NULL)
			list[i] = brief_of(&disk, &rows[i]);
		catalog_image_release(&rows[i]);
	}
	if (list == NULL)
		return fail_errno(failure, -ENOMEM, "images");
	*ret_list = list;
	*ret_count = count;
	return 0;
}

int local_brief_image(struct store *store, const struct store_reference *reference, struct store_image_brief *ret_brief,
		      struct failure *failure)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	AUTO(catalog_image_release) struct catalog_image row = { .number = 0 };
	POOLED_READER(reader, local_of(store));
	int result = pooled_reader_open(&reader, failure);

	if (result == 0)
		result = find_image(reader.catalog, reference, &disk, &row, failure);
	if (result == 0)
		*ret_brief = brief_of(&disk, &row);
	return result;
}

/* ---- making ---- */

static int insert_image_locked(struct local_store *local, struct catalog_disk *disk,
			       const struct store_image_params *params, uint32_t *ret_number, struct failure *failure)
{
	AUTO_FREE char *label = params->label == NULL ? NULL : strdup(params->label);
	AUTO_FREE char *details = params->details == NULL ? NULL : strdup(params->details);
	struct catalog_image image = { .disk = disk->id,
				       .number = disk->next_image,
				       .generation = disk->generation,
				       .size_bytes = disk->size_bytes,
				       .changed_bytes = disk->changed_bytes,
				       .label = label,
				       .consistency = (uint8_t)params->consistency,
				       .round = params->round,
				       .details = details };
	struct log_entry entry = { .op = LOG_IMAGE,
				   .image_number = image.number,
				   .generation = image.generation,
				   .size_bytes = image.size_bytes,
				   .changed_bytes = image.changed_bytes,
				   .label = label,
				   .consistency = image.consistency,
				   .round_number = image.round,
				   .details = details };
	int result;

	if ((params->label != NULL && label == NULL) || (params->details != NULL && details == NULL))
		return fail_errno(failure, -ENOMEM, "image");
	if (disk->next_image == UINT32_MAX || disk->generation == UINT32_MAX)
		return fail(failure, -ENOSPC, "disk %s: out of image numbers", disk->name);
	result = local_log_locked(local, disk, &entry, failure);
	image.created_at = entry.time_seconds; /* as a rebuild would have it */
	if (result == 0)
		result = catalog_image_insert(local->writer, &image, failure);
	if (result < 0)
		return result;
	disk->generation++;
	disk->next_image++;
	disk->changed_bytes = 0;
	*ret_number = image.number;
	return catalog_disk_update(local->writer, disk, failure);
}

int local_create_image(struct store_view *store_view, const struct store_image_params *params, uint32_t *ret_number,
		       struct failure *failure)
{
	struct local_view *view = local_view_of(store_view);
	struct local_store *local = local_of(store_view->store);
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	uint32_t number = 0;
	int result;
	WITH_LOCK(&local->write_lock);

	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	result = catalog_disk_get(local->writer, view->disk, &disk, failure);
	if (result == 0)
		result = insert_image_locked(local, &disk, params, &number, failure);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	result = local_end_locked(local, failure);
	if (result == 0)
		*ret_number = number;
	return result;
}

/* ---- changing one image's row ---- */

enum image_change { IMAGE_PIN, IMAGE_UNPIN, IMAGE_GOES };

/* *ret_why as in claim_image(); may be NULL. */
static int refuse_with_clones(struct catalog *catalog, const char *disk_name, const struct catalog_image *image,
			      char **ret_why, struct failure *failure)
{
	AUTO_FREE char *clones = NULL;
	int result = local_clone_names(catalog, image->disk, image->number, NULL, &clones, failure);

	if (result < 0 || clones == NULL)
		return result;
	if (ret_why != NULL && asprintf(ret_why, "in use by %s", clones) < 0)
		*ret_why = NULL;
	return fail(failure, -EBUSY, "image %s@%u: in use by %s; it can be deleted when what reads through it is gone", disk_name,
		    image->number, clones);
}

/* In one transaction: the row changes and the log says so. disk_id: of the disk that was looked at under this name before; 0: whichever has it now. */
static int change_image(struct local_store *local, const char *disk_name, int64_t disk_id, uint32_t number,
			enum image_change change, struct failure *failure)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	AUTO(catalog_image_release) struct catalog_image image = { .number = 0 };
	struct log_entry entry = { .op = change == IMAGE_GOES ? LOG_IMAGE_DELETE : LOG_IMAGE_PIN,
				   .image_number = number,
				   .pinned = change == IMAGE_PIN };
	int result;
	WITH_LOCK(&local->write_lock);

	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	result = local_find_disk(local->writer, disk_name, &disk, failure);
	if (result == 0 && disk_id != 0 && disk.id != disk_id)
		result = fail(failure, -ENOENT, "image %s@%u: its disk has been removed", disk_name, number);
	if (result == 0)
		result = local_find_image(local->writer, &disk, number, &image, failure);
	if (result == 0 && change == IMAGE_GOES && image.pinned)
		result = fail(failure, -EBUSY, "image %s@%u: it is pinned; unpin it first", disk_name, number);
	if (result == 0 && change == IMAGE_GOES)
		result = refuse_with_clones(local->writer, disk_name, &image, NULL, failure);
	if (result == 0 && change != IMAGE_GOES && image.pinned == entry.pinned) {
		local_abandon_locked(local); /* it is so already */
		return 0;
	}
	if (change == IMAGE_GOES)
		image.state = CATALOG_GOING;
	else
		image.pinned = entry.pinned;
	if (result == 0)
		result = local_log_locked(local, &disk, &entry, failure);
	if (result == 0)
		result = catalog_image_update(local->writer, &image, failure);
	if (result == 0 && change == IMAGE_GOES)
		result = catalog_base_forget_unseen(local->writer, disk.id, failure);
	if (result == 0)
		result = catalog_disk_update(local->writer, &disk, failure);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, failure);
}

int local_pin_image(struct store *store, const char *disk, uint32_t number, bool pinned, struct failure *failure)
{
	return change_image(local_of(store), disk, 0, number, pinned ? IMAGE_PIN : IMAGE_UNPIN, failure);
}

/* ---- deleting ---- */

static int sweep_image(struct local_store *local, const struct catalog_image *image, uint64_t *freed_bytes,
		       struct failure *failure)
{
	struct catalog_position position = { .until = 0 };

	for (bool is_done = false; !is_done;) {
		int result;
		WITH_LOCK(&local->write_lock);

		result = local_begin_locked(local, failure);
		if (result < 0)
			return result;
		result = catalog_image_sweep(local->writer, image, &position, SWEEP_ROWS, freed_bytes, &is_done, failure);
		if (result < 0) {
			local_abandon_locked(local);
			return result;
		}
		result = local_end_locked(local, failure);
		if (result < 0)
			return result;
	}
	return 0;
}

static int sweep_images_of(struct local_store *local, int64_t disk, uint64_t *freed_bytes, struct failure *failure)
{
	AUTO_FREE struct catalog_image *going = NULL;
	size_t count = 0;
	int result;
	{
		POOLED_READER(reader, local);
		result = pooled_reader_open(&reader, failure);
		if (result == 0)
			result = catalog_image_list(reader.catalog, disk, CATALOG_GOING, &going, &count, failure);
	}
	for (size_t i = 0; i < count; i++) {
		if (result == 0)
			result = sweep_image(local, &going[i], freed_bytes, failure);
		catalog_image_release(&going[i]);
	}
	return result;
}

int local_sweep_images(struct local_store *local, struct failure *failure)
{
	uint64_t freed_bytes = 0;

	return sweep_images_of(local, 0, &freed_bytes, failure);
}

/* Looks an image up and takes its lease for deletion. -EBUSY: pinned or in use; *ret_why says so in a few words, for retention. */
static int claim_image(struct local_store *local, const char *disk_name, uint32_t number, struct catalog_image *ret_image,
		       struct lease *ret_lease, char **ret_why, struct failure *failure)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	AUTO_FREE char *us = lease_holder_text("wherry delete");
	AUTO_FREE char *holder = NULL;
	AUTO_FREE char *lease_name = NULL;
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	if (result == 0)
		result = local_find_disk(reader.catalog, disk_name, &disk, failure);
	if (result == 0)
		result = local_find_image(reader.catalog, &disk, number, ret_image, failure);
	if (result < 0)
		return result;
	if (ret_image->pinned) {
		*ret_why = strdup("pinned");
		return fail(failure, -EBUSY, "image %s@%u: it is pinned; unpin it first", disk_name, number);
	}
	result = refuse_with_clones(reader.catalog, disk_name, ret_image, ret_why, failure);
	if (result < 0)
		return result;
	lease_name = local_image_lease_name(disk.id, number);
	if (lease_name == NULL || us == NULL)
		return fail_errno(failure, -ENOMEM, "image %s@%u", disk_name, number);
	result = lease_take(local->locks_fd, lease_name, LEASE_EXCLUSIVE, us, ret_lease, &holder, failure);
	if (result == -EWOULDBLOCK) {
		const char *who = holder != NULL ? holder : "another process";

		if (asprintf(ret_why, "in use by %s", who) < 0)
			*ret_why = NULL;
		return fail(failure, -EBUSY, "image %s@%u: in use by %s; delete it when nobody uses it", disk_name, number, who);
	}
	return result;
}

/* On failure *ret_why may be set: the caller frees it in any case. */
static int delete_image(struct local_store *local, const char *disk_name, uint32_t number, bool dry_run,
			uint64_t *freed_bytes, char **ret_why, struct failure *failure)
{
	AUTO(catalog_image_release) struct catalog_image image = { .number = 0 };
	struct lease lease = LEASE_NONE;
	int result = claim_image(local, disk_name, number, &image, &lease, ret_why, failure);

	if (result == 0 && !dry_run)
		local_reserve_use(local);
	if (result == 0 && dry_run) {
		POOLED_READER(reader, local);
		result = pooled_reader_open(&reader, failure);
		if (result == 0)
			result = catalog_image_unique(reader.catalog, &image, freed_bytes, failure);
	} else if (result == 0) {
		result = change_image(local, disk_name, image.disk, number, IMAGE_GOES, failure);
	}
	if (result < 0 || dry_run) {
		lease_release(&lease);
		return result;
	}
	AUTO_FREE char *lease_name = local_image_lease_name(image.disk, image.number);
	if (lease_name != NULL)
		lease_release_and_remove(local->locks_fd, lease_name, &lease);
	lease_release(&lease);
	return sweep_images_of(local, image.disk, freed_bytes, failure);
}

int local_delete_image(struct store *store, const char *disk, uint32_t number, bool dry_run, uint64_t *ret_freed_bytes,
		       struct failure *failure)
{
	AUTO_FREE char *why = NULL;
	uint64_t freed_bytes = 0;
	int result = delete_image(local_of(store), disk, number, dry_run, &freed_bytes, &why, failure);

	if (result == 0)
		*ret_freed_bytes = freed_bytes;
	return result;
}

/* ---- retention ---- */

static int note_deleted(struct store_retention *retention, uint32_t number, struct failure *failure)
{
	uint32_t *grown = reallocarray(retention->deleted, retention->deleted_count + 1, sizeof(*grown));

	if (grown == NULL)
		return fail_errno(failure, -ENOMEM, "retention");
	grown[retention->deleted_count++] = number;
	retention->deleted = grown;
	return 0;
}

static int note_kept(struct store_retention *retention, uint32_t number, char **why, struct failure *failure)
{
	void *grown = reallocarray(retention->kept, retention->kept_count + 1, sizeof(*retention->kept));

	if (grown == NULL)
		return fail_errno(failure, -ENOMEM, "retention");
	retention->kept = grown;
	retention->kept[retention->kept_count].number = number;
	retention->kept[retention->kept_count].why = take_ptr(*why);
	retention->kept_count++;
	return 0;
}

static int image_numbers_of(struct local_store *local, const char *disk_name, uint32_t **ret_numbers, size_t *ret_count,
			    struct failure *failure)
{
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	AUTO_FREE struct catalog_image *rows = NULL;
	size_t count = 0;
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	if (result == 0)
		result = local_find_disk(reader.catalog, disk_name, &disk, failure);
	if (result == 0)
		result = catalog_image_list(reader.catalog, disk.id, CATALOG_ALIVE, &rows, &count, failure);
	if (result < 0)
		return result;
	*ret_numbers = calloc(count + 1, sizeof(**ret_numbers));
	for (size_t i = 0; i < count; i++) {
		if (*ret_numbers != NULL)
			(*ret_numbers)[i] = rows[i].number;
		catalog_image_release(&rows[i]);
	}
	*ret_count = count;
	return *ret_numbers == NULL ? fail_errno(failure, -ENOMEM, "retention") : 0;
}

int local_retain(struct store *store, const char *disk, uint32_t keep, bool dry_run,
		 struct store_retention *ret_retention, struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO(store_retention_free) struct store_retention retention = { .deleted = NULL };
	AUTO_FREE uint32_t *numbers = NULL;
	size_t count = 0, left;
	int result = image_numbers_of(local, disk, &numbers, &count, failure);

	left = count;
	for (size_t i = 0; result == 0 && left > keep && i + 1 < count; i++) {
		struct failure why_not = { .code = 0 };
		AUTO_FREE char *why = NULL;
		uint64_t freed_bytes = 0;

		result = delete_image(local, disk, numbers[i], dry_run, &freed_bytes, &why, &why_not);
		if (result == 0) {
			result = note_deleted(&retention, numbers[i], failure);
			left--;
		} else if (result == -EBUSY && why != NULL) {
			result = note_kept(&retention, numbers[i], &why, failure);
		} else if (result == -ENOENT) {
			result = 0; /* somebody else deleted it meanwhile */
			left--;
		} else {
			return fail_from(failure, &why_not);
		}
	}
	if (result < 0)
		return result;
	*ret_retention = retention;
	retention = (struct store_retention){ .deleted = NULL };
	return 0;
}
