/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks of a local store: making, listing, removing, policies.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "store/local.h"

enum { SWEEP_ROWS = 512 };

/* ---- listing ---- */

static int describe_disk(struct local_store *local, struct catalog *catalog, const struct catalog_disk *row,
			 struct store_disk *ret_disk, struct failure *failure)
{
	AUTO_FREE char *lease_name = local_disk_lease_name(row->id);
	bool is_held = false;
	int result;

	*ret_disk = (struct store_disk){
		.changes = row->log_sequence,
		.size_bytes = row->size_bytes,
		.sector_bytes = row->sector_bytes,
		.live_generation = row->generation,
		.content_round = row->content_round,
		.changed_bytes = row->changed_bytes,
		.keep = row->keep,
		.level = row->level,
		.limit_bytes_per_second = row->limit_bytes_per_second,
		.created_at = row->created_at,
	};
	(void)strcpy(ret_disk->name, row->name);
	memcpy(ret_disk->id, row->uuid, sizeof(ret_disk->id));
	if (lease_name == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", row->name);
	result = catalog_image_count(catalog, row->id, &ret_disk->images, failure);
	if (result < 0)
		return result;
	if (row->mirror_of != NULL && (ret_disk->mirror_of = strdup(row->mirror_of)) == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", row->name);
	result = local_parent_text(catalog, row->id, &ret_disk->parent, failure);
	if (result == 0)
		result = lease_is_held(local->locks_fd, lease_name, &is_held, &ret_disk->open_by, failure);
	if (result == 0 && is_held && ret_disk->open_by == NULL && (ret_disk->open_by = strdup("another process")) == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", row->name);
	return result;
}

static int list_rows(struct catalog *catalog, const char *name, struct catalog_disk **ret_rows, size_t *ret_count,
		     struct failure *failure)
{
	struct catalog_disk *row;
	int result;

	if (name == NULL)
		return catalog_disk_list(catalog, CATALOG_ALIVE, ret_rows, ret_count, failure);
	row = calloc(1, sizeof(*row));
	if (row == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", name);
	result = local_find_disk(catalog, name, row, failure);
	if (result < 0) {
		free(row);
		return result;
	}
	*ret_rows = row;
	*ret_count = 1;
	return 0;
}

int local_list_disks(struct store *store, const char *name, struct store_disk **ret_list, size_t *ret_count,
		     struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO_FREE struct catalog_disk *rows = NULL;
	struct store_disk *list;
	size_t count = 0;
	POOLED_READER(reader, local);
	int result = pooled_reader_open(&reader, failure);

	if (result == 0)
		result = list_rows(reader.catalog, name, &rows, &count, failure);
	if (result < 0)
		return result;
	list = calloc(count + 1, sizeof(*list));
	if (list == NULL)
		result = fail_errno(failure, -ENOMEM, "disks");
	for (size_t i = 0; i < count; i++) {
		if (result == 0)
			result = describe_disk(local, reader.catalog, &rows[i], &list[i], failure);
		catalog_disk_release(&rows[i]);
	}
	if (result < 0) {
		if (list != NULL)
			store_disks_free(list, count);
		return result;
	}
	*ret_list = list;
	*ret_count = count;
	return 0;
}

/* ---- making ---- */

static int log_policy_locked(struct local_store *local, struct catalog_disk *disk, struct failure *failure)
{
	struct log_entry entry = { .op = LOG_POLICY,
				   .keep = disk->keep,
				   .level = disk->level,
				   .limit_bytes_per_second = disk->limit_bytes_per_second,
				   .mirror_of = disk->mirror_of };

	return local_log_locked(local, disk, &entry, failure);
}

int local_make_disk_locked(struct local_store *local, struct catalog_disk *disk, struct failure *failure)
{
	struct log_entry entry = { .op = LOG_CREATE,
				   .name = disk->name,
				   .size_bytes = disk->size_bytes,
				   .sector_bytes = disk->sector_bytes,
				   .chunk_bytes = local->base.chunk_bytes };
	int result;

	disk->generation = 1;
	disk->level = -1;
	disk->created_at = time(NULL);
	disk->next_image = 1;
	disk->next_round = 1;
	result = hash_random(disk->uuid, sizeof(disk->uuid), failure);
	if (result == 0)
		result = hash_random(disk->fingerprint_key, sizeof(disk->fingerprint_key), failure);
	if (result == 0)
		result = catalog_disk_insert(local->writer, disk, failure);
	if (result == 0)
		result = local_log_locked(local, disk, &entry, failure);
	disk->created_at = entry.time_seconds; /* as a rebuild would have it */
	return result;
}

int local_create_disk(struct store *store, const struct store_disk_params *params, struct failure *failure)
{
	struct local_store *local = local_of(store);
	struct catalog_disk disk = { .size_bytes = params->size_bytes, .sector_bytes = params->sector_bytes };
	AUTO_FREE char *mirror_of = NULL;
	int result;
	WITH_LOCK(&local->write_lock);

	(void)strncpy(disk.name, params->name, sizeof(disk.name) - 1); /* its length was checked */
	if (params->mirror_of != NULL && (mirror_of = strdup(params->mirror_of)) == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", params->name);
	disk.mirror_of = mirror_of;
	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	result = local_make_disk_locked(local, &disk, failure);
	if (result == 0 && disk.mirror_of != NULL) /* the entry that makes a disk has no room for it */
		result = log_policy_locked(local, &disk, failure);
	if (result == 0)
		result = catalog_disk_update(local->writer, &disk, failure);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, failure);
}

/* ---- policies ---- */

/* A round that is under way has limit and level of its own if it was started with some: what is set now goes before them. */
static int override_running_round_locked(struct local_store *local, const struct catalog_disk *disk,
					 const struct store_policy *policy, struct failure *failure)
{
	AUTO(catalog_round_release) struct catalog_round round = { .number = 0 };
	int result;

	if (disk->next_round <= 1 || (!policy->set_level && !policy->set_limit))
		return 0;
	result = catalog_round_get(local->writer, disk->id, disk->next_round - 1, &round, failure);
	if (result < 0)
		return result == -ENOENT ? 0 : result;
	if (round.state != ROUND_RUNNING)
		return 0;
	if (policy->set_limit)
		round.has_limit = false;
	if (policy->set_level)
		round.has_level = false;
	return catalog_round_update(local->writer, &round, failure);
}

int local_set_policy(struct store *store, const char *name, const struct store_policy *policy, struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO(catalog_disk_release) struct catalog_disk disk = { .id = 0 };
	int result;
	WITH_LOCK(&local->write_lock);

	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	result = local_find_disk(local->writer, name, &disk, failure);
	if (policy->set_keep)
		disk.keep = policy->keep;
	if (policy->set_level)
		disk.level = policy->level;
	if (policy->set_limit)
		disk.limit_bytes_per_second = policy->limit_bytes_per_second;
	if (result == 0)
		result = log_policy_locked(local, &disk, failure);
	if (result == 0)
		result = override_running_round_locked(local, &disk, policy, failure);
	if (result == 0)
		result = catalog_disk_update(local->writer, &disk, failure);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, failure);
}

/* ---- removing ---- */

/* The exclusive leases of a disk and all its images, so that nobody can open any while they go. */
struct removal {
	struct local_store *local;
	struct catalog_disk disk;
	struct catalog_image *images;
	size_t image_count;
	struct lease disk_lease;
	struct lease *image_leases;
};

static void removal_done(struct removal *removal)
{
	for (size_t i = 0; i < removal->image_count; i++) {
		if (removal->image_leases != NULL)
			lease_release(&removal->image_leases[i]);
		catalog_image_release(&removal->images[i]);
	}
	lease_release(&removal->disk_lease);
	catalog_disk_release(&removal->disk);
	free(removal->image_leases);
	free(removal->images);
}

static int take_removal_lease(struct removal *removal, char *lease_name, const char *what, const char *image,
			      struct lease *ret_lease, struct failure *failure)
{
	AUTO_FREE char *name = lease_name;
	AUTO_FREE char *us = lease_holder_text("wherry remove");
	AUTO_FREE char *holder = NULL;
	int result;

	if (name == NULL || us == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", removal->disk.name);
	result = lease_take(removal->local->locks_fd, name, LEASE_EXCLUSIVE, us, ret_lease, &holder, failure);
	if (result == -EWOULDBLOCK)
		return fail(failure, -EBUSY, "%s %s%s: in use by %s; it can be removed when nobody uses it", what,
			    removal->disk.name, image, holder != NULL ? holder : "another process");
	return result;
}

/* Asked once to say so at once, and once more in the transaction that decides. */
static int refuse_with_clones(struct catalog *catalog, const struct catalog_disk *disk, struct failure *failure)
{
	AUTO_FREE char *clones = NULL;
	uint32_t number = 0;
	int result = local_clone_names(catalog, disk->id, 0, &number, &clones, failure);

	if (result == 0 && clones != NULL)
		return fail(failure, -EBUSY, "disk %s: its image %u is in use by %s; it can be removed when what reads through it is gone",
			    disk->name, number, clones);
	return result;
}

static int check_removal(struct removal *removal, struct failure *failure)
{
	int result = 0;

	removal->image_leases = calloc(removal->image_count + 1, sizeof(*removal->image_leases));
	if (removal->image_leases == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", removal->disk.name);
	for (size_t i = 0; i < removal->image_count; i++)
		removal->image_leases[i] = LEASE_NONE;
	for (size_t i = 0; result == 0 && i < removal->image_count; i++) {
		const struct catalog_image *image = &removal->images[i];
		char suffix[16];

		(void)snprintf(suffix, sizeof(suffix), "@%u", image->number);
		if (image->pinned)
			return fail(failure, -EBUSY, "disk %s: image %u is pinned; unpin it first", removal->disk.name,
				    image->number);
		result = take_removal_lease(removal, local_image_lease_name(image->disk, image->number), "image", suffix,
					    &removal->image_leases[i], failure);
	}
	return result;
}

static int mark_disk_going(struct removal *removal, struct failure *failure)
{
	struct local_store *local = removal->local;
	struct log_entry entry = { .op = LOG_REMOVE };
	int result;
	WITH_LOCK(&local->write_lock);

	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	catalog_disk_release(&removal->disk);
	result = catalog_disk_get(local->writer, removal->disk.id, &removal->disk, failure);
	if (result == -ENOENT || (result == 0 && removal->disk.state != CATALOG_ALIVE))
		result = fail(failure, -ENOENT, "disk %s: it was removed just now", removal->disk.name);
	if (result == 0)
		result = refuse_with_clones(local->writer, &removal->disk, failure);
	removal->disk.state = CATALOG_GOING;
	if (result == 0)
		result = local_log_locked(local, &removal->disk, &entry, failure);
	if (result == 0) /* whose images may go from now on */
		result = catalog_base_drop(local->writer, removal->disk.id, failure);
	if (result == 0)
		result = catalog_disk_update(local->writer, &removal->disk, failure);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, failure);
}

static int sweep_disk(struct local_store *local, const struct catalog_disk *disk, struct failure *failure)
{
	uint64_t freed_bytes = 0;
	int result = local_remove_journal(local, disk, failure);

	if (result < 0)
		return result;
	for (bool is_done = false; !is_done;) {
		WITH_LOCK(&local->write_lock);

		result = local_begin_locked(local, failure);
		if (result < 0)
			return result;
		result = catalog_disk_sweep(local->writer, disk, SWEEP_ROWS, &freed_bytes, &is_done, failure);
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

static void forget_leases(struct removal *removal)
{
	for (size_t i = 0; i < removal->image_count; i++) {
		AUTO_FREE char *name = local_image_lease_name(removal->images[i].disk, removal->images[i].number);

		if (name != NULL)
			lease_release_and_remove(removal->local->locks_fd, name, &removal->image_leases[i]);
	}
	AUTO_FREE char *name = local_disk_lease_name(removal->disk.id);
	AUTO_FREE char *socket_name = NULL;
	if (asprintf(&socket_name, "%s.socket", name == NULL ? "" : name) < 0)
		socket_name = NULL;
	if (socket_name != NULL)
		(void)unlinkat(removal->local->locks_fd, socket_name, 0); /* of a server that was killed; mostly there is none */
	if (name != NULL)
		lease_release_and_remove(removal->local->locks_fd, name, &removal->disk_lease);
}

int local_remove_disk(struct store *store, const char *name, bool dry_run, struct failure *failure)
{
	AUTO(removal_done) struct removal removal = { .local = local_of(store), .disk_lease = LEASE_NONE };
	int result;
	{
		POOLED_READER(reader, removal.local);
		result = pooled_reader_open(&reader, failure);
		if (result == 0)
			result = local_find_disk(reader.catalog, name, &removal.disk, failure);
		/* the disk first: images are made by who has it open, so the list is whole from then on */
		if (result == 0)
			result = take_removal_lease(&removal, local_disk_lease_name(removal.disk.id), "disk", "",
						    &removal.disk_lease, failure);
		if (result == 0)
			result = refuse_with_clones(reader.catalog, &removal.disk, failure);
		if (result == 0)
			result = catalog_image_list(reader.catalog, removal.disk.id, CATALOG_ALIVE, &removal.images,
						    &removal.image_count, failure);
	}
	if (result == 0)
		result = check_removal(&removal, failure);
	if (result < 0 || dry_run)
		return result;
	local_reserve_use(removal.local);
	result = mark_disk_going(&removal, failure);
	if (result < 0)
		return result;
	forget_leases(&removal);
	return local_finish_deletions(removal.local, failure);
}

/* Both kinds of deletion that may have been left half done; also the normal way to end one. */
static int finish_disks(struct local_store *local, struct failure *failure)
{
	AUTO_FREE struct catalog_disk *going = NULL;
	size_t count = 0;
	int result;
	{
		POOLED_READER(reader, local);
		result = pooled_reader_open(&reader, failure);
		if (result == 0)
			result = catalog_disk_list(reader.catalog, CATALOG_GOING, &going, &count, failure);
	}
	for (size_t i = 0; i < count; i++) {
		if (result == 0)
			result = sweep_disk(local, &going[i], failure);
		catalog_disk_release(&going[i]);
	}
	return result;
}

int local_finish_deletions(struct local_store *local, struct failure *failure)
{
	int result = finish_disks(local, failure);

	return result < 0 ? result : local_sweep_images(local, failure);
}
