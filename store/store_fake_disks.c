/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks of the fake store: finding them and saying which there are, listings,
 * policies.
 *
 * Disks are few, so they stand in a list sorted by name.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "store/store_fake_internal.h"

void fake_disk_free(struct fake_disk *disk)
{
	for (size_t i = 0; i < disk->image_count; i++)
		fake_image_free(disk->images[i]);
	for (size_t i = 0; i < disk->round_count; i++)
		fake_round_free(disk->rounds[i]);
	fake_map_free(&disk->live);
	fake_map_free(&disk->first);
	free(disk->images);
	free(disk->rounds);
	free(disk->mirror_of);
	free(disk);
}

/* ------------------------------------------------------------------ finding */

/* Where a disk of this name is, or would be. */
static size_t fake_disk_search(const struct fake *fake, const char *name)
{
	size_t at = 0;

	while (at < fake->disk_count && strcmp(fake->disks[at]->name, name) < 0)
		at++;
	return at;
}

static int refuse_unknown_disk(const struct fake *fake, const char *name, struct failure *failure)
{
	AUTO_FREE const char **names = calloc(fake->disk_count + 1, sizeof(*names));
	const char *nearest;

	if (names == NULL)
		return fake_no_memory(failure);
	if (fake->disk_count == 0)
		return fail(failure, -ENOENT, "disk %s: there is none, the store is empty", name);
	for (size_t i = 0; i < fake->disk_count; i++)
		names[i] = fake->disks[i]->name;
	nearest = store_nearest_name(name, names, fake->disk_count);
	if (nearest == NULL)
		return fail(failure, -ENOENT, "disk %s: there is none of this name", name);
	return fail(failure, -ENOENT, "disk %s: there is none of this name; did you mean %s?", name, nearest);
}

int fake_find_disk(const struct fake *fake, const char *name, struct fake_disk **ret_disk, struct failure *failure)
{
	size_t at = fake_disk_search(fake, name);

	if (at == fake->disk_count || strcmp(fake->disks[at]->name, name) != 0)
		return refuse_unknown_disk(fake, name, failure);
	*ret_disk = fake->disks[at];
	return 0;
}

static bool holds(const struct fake_view *view, const struct fake_disk *disk, const struct fake_image *image)
{
	return view->disk == disk && view->image == image;
}

/*
 * Who has this open (image NULL: the live content): "wherry export (pid 7)", "… and 2 more"; *ret_holder is NULL when
 * nobody has.
 */
int fake_find_holder(const struct fake *fake, const struct fake_disk *disk, const struct fake_image *image,
		     char **ret_holder, struct failure *failure)
{
	const struct fake_view *first = NULL;
	unsigned int count = 0;
	char *text = NULL;
	int made;

	for (const struct fake_view *view = fake->views; view != NULL; view = view->next)
		if (holds(view, disk, image)) {
			first = view;
			count++;
		}
	*ret_holder = NULL;
	if (count == 0)
		return 0;
	if (count == 1)
		made = asprintf(&text, "%s (pid %d)", first->doing, (int)getpid());
	else
		made = asprintf(&text, "%s (pid %d) and %u more", first->doing, (int)getpid(), count - 1);
	if (made < 0)
		return fake_no_memory(failure);
	*ret_holder = text;
	return 0;
}

/* ----------------------------------------------------------------- listings */

/* Which disks a listing is about: all, or the one of this name. */
static int select_disks(const struct fake *fake, const char *name, size_t *ret_first, size_t *ret_end,
			struct failure *failure)
{
	struct fake_disk *disk = NULL;
	int error;

	*ret_first = 0;
	*ret_end = fake->disk_count;
	if (name == NULL)
		return 0;
	error = fake_find_disk(fake, name, &disk, failure);
	if (error == 0) {
		*ret_first = fake_disk_search(fake, name);
		*ret_end = *ret_first + 1;
	}
	return error;
}

static int describe_disk(const struct fake *fake, const struct fake_disk *disk, struct store_disk *ret_item,
			 struct failure *failure)
{
	int error;

	memcpy(ret_item->name, disk->name, sizeof(disk->name));
	memcpy(ret_item->id, disk->fingerprint_key, sizeof(ret_item->id));
	ret_item->changes = disk->changes;
	ret_item->size_bytes = disk->size_bytes;
	ret_item->sector_bytes = disk->sector_bytes;
	ret_item->images = (uint32_t)disk->image_count;
	ret_item->live_generation = disk->generation;
	ret_item->content_round = disk->content_round;
	ret_item->changed_bytes = fake_count_changed_bytes(fake, disk);
	ret_item->keep = disk->keep;
	ret_item->level = disk->level;
	ret_item->limit_bytes_per_second = disk->limit_bytes_per_second;
	ret_item->created_at = disk->created_at;
	error = fake_copy_text(disk->mirror_of, &ret_item->mirror_of, failure);
	if (error == 0 && disk->parent != NULL &&
	    asprintf(&ret_item->parent, "%s@%u", disk->parent->name, disk->parent_number) < 0) {
		ret_item->parent = NULL;
		error = fake_no_memory(failure);
	}
	return error != 0 ? error : fake_find_holder(fake, disk, NULL, &ret_item->open_by, failure);
}

static int list_disks_locked(const struct fake *fake, const char *name, struct store_disk **ret_list, size_t *ret_count,
			     struct failure *failure)
{
	struct store_disk *list;
	size_t first;
	size_t end;
	int error = select_disks(fake, name, &first, &end, failure);

	if (error != 0)
		return error;
	list = calloc(end - first + 1, sizeof(*list));
	if (list == NULL)
		return fake_no_memory(failure);
	for (size_t i = first; i < end && error == 0; i++)
		error = describe_disk(fake, fake->disks[i], &list[i - first], failure);
	if (error != 0) {
		store_disks_free(list, end - first);
		return error;
	}
	*ret_list = list;
	*ret_count = end - first;
	return 0;
}

int fake_list_disks(struct store *store, const char *name, struct store_disk **ret_list, size_t *ret_count,
		    struct failure *failure)
{
	struct fake_call call;
	struct store_disk *list = NULL;
	size_t count = 0;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_LIST_DISKS, NULL, failure);

	if (error == 0)
		error = list_disks_locked(fake_of(store), name, &list, &count, failure);
	error = fake_call_leave(&call, error, failure);
	if (error != 0) {
		store_disks_free(list, count);
		return error;
	}
	*ret_list = list;
	*ret_count = count;
	return 0;
}

static bool has_lost(const struct fake *fake, const struct fake_map *map)
{
	for (size_t i = 0; i < map->count; i++)
		for (size_t j = 0; j < STORE_MAP_PAGE_ENTRIES; j++) {
			store_chunk id = map->pages[i]->entries[j].chunk;

			if (id != 0 && fake_chunk_get(&fake->chunks, id)->is_lost)
				return true;
		}
	return false;
}

/* Behind who has it open. */
static int add_clones(const struct fake *fake, const struct fake_disk *disk, const struct fake_image *image,
		      char **in_use_by, struct failure *failure)
{
	AUTO_FREE char *clones = NULL;
	char *both = NULL;
	int error = fake_clone_names(fake, disk, image->number, NULL, &clones, failure);

	if (error != 0 || clones == NULL)
		return error;
	if (asprintf(&both, "%s%s%s", *in_use_by == NULL ? "" : *in_use_by, *in_use_by == NULL ? "" : ", ", clones) < 0)
		return fake_no_memory(failure);
	free(*in_use_by);
	*in_use_by = both;
	return 0;
}

static int describe_image(const struct fake *fake, const struct fake_disk *disk, const struct fake_image *image,
			  const uint32_t *sharers, struct store_image *ret_item, struct failure *failure)
{
	int error;

	memcpy(ret_item->disk, disk->name, sizeof(disk->name));
	ret_item->number = image->number;
	ret_item->created_at = image->created_at;
	ret_item->size_bytes = image->size_bytes;
	ret_item->changed_bytes = image->changed_bytes;
	ret_item->pinned = image->pinned;
	ret_item->damaged = has_lost(fake, &image->map);
	ret_item->consistency = image->consistency;
	ret_item->round = image->round;
	error = fake_unique_bytes(fake, &image->map, sharers, &ret_item->unique_bytes, failure);
	if (error == 0)
		error = fake_copy_text(image->label, &ret_item->label, failure);
	if (error == 0)
		error = fake_copy_text(image->details, &ret_item->details, failure);
	if (error == 0)
		error = fake_find_holder(fake, disk, image, &ret_item->in_use_by, failure);
	if (error == 0)
		error = add_clones(fake, disk, image, &ret_item->in_use_by, failure);
	ret_item->in_use = ret_item->in_use_by != NULL;
	return error;
}

static int list_images_locked(const struct fake *fake, const char *name, struct store_image **ret_list,
			      size_t *ret_count, struct failure *failure)
{
	AUTO_FREE uint32_t *sharers = NULL;
	struct store_image *list;
	size_t total = 0;
	size_t count = 0;
	size_t first;
	size_t end;
	int error = select_disks(fake, name, &first, &end, failure);

	if (error == 0)
		error = fake_count_sharers(fake, &sharers, failure);
	if (error != 0)
		return error;
	for (size_t i = first; i < end; i++)
		total += fake->disks[i]->image_count;
	list = calloc(total + 1, sizeof(*list));
	if (list == NULL)
		return fake_no_memory(failure);
	for (size_t i = first; i < end && error == 0; i++)
		for (size_t j = 0; j < fake->disks[i]->image_count && error == 0; j++)
			error = describe_image(fake, fake->disks[i], fake->disks[i]->images[j], sharers, &list[count++],
					       failure);
	if (error != 0) {
		store_images_free(list, total);
		return error;
	}
	*ret_list = list;
	*ret_count = total;
	return 0;
}

int fake_list_images(struct store *store, const char *name, struct store_image **ret_list, size_t *ret_count,
		     struct failure *failure)
{
	struct fake_call call;
	struct store_image *list = NULL;
	size_t count = 0;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_LIST_IMAGES, NULL, failure);

	if (error == 0)
		error = list_images_locked(fake_of(store), name, &list, &count, failure);
	error = fake_call_leave(&call, error, failure);
	if (error != 0) {
		store_images_free(list, count);
		return error;
	}
	*ret_list = list;
	*ret_count = count;
	return 0;
}

static int describe_image_locked(const struct fake *fake, const char *name, uint32_t number, struct store_image **ret_image,
				 struct failure *failure)
{
	const struct store_reference reference = {.which = STORE_NUMBER, .number = number};
	AUTO_FREE uint32_t *sharers = NULL;
	struct fake_disk *disk = NULL;
	struct store_image *image;
	size_t index = 0;
	int error = fake_find_disk(fake, name, &disk, failure);

	if (error == 0)
		error = fake_find_image_index(disk, &reference, &index, failure);
	if (error == 0)
		error = fake_count_sharers(fake, &sharers, failure);
	if (error != 0)
		return error;
	image = calloc(1, sizeof(*image));
	if (image == NULL)
		return fake_no_memory(failure);
	error = describe_image(fake, disk, disk->images[index], sharers, image, failure);
	if (error != 0)
		store_images_free(image, 1);
	else
		*ret_image = image;
	return error;
}

int fake_describe_image(struct store *store, const char *name, uint32_t number, struct store_image **ret_image,
			struct failure *failure)
{
	struct fake_call call;
	struct store_image *image = NULL;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_DESCRIBE_IMAGE, NULL, failure);

	if (error == 0)
		error = describe_image_locked(fake_of(store), name, number, &image, failure);
	error = fake_call_leave(&call, error, failure);
	if (error != 0) {
		store_images_free(image, 1);
		return error;
	}
	*ret_image = image;
	return 0;
}

/* A round that is running while nobody has the disk open was killed, and says so. */
static int describe_round(const struct fake *fake, const struct fake_disk *disk, const struct fake_round *round,
			  struct store_round *ret_item, struct failure *failure)
{
	AUTO_FREE char *holder = NULL;
	const char *error_text = round->error;
	int error = fake_find_holder(fake, disk, NULL, &holder, failure);

	if (error != 0)
		return error;

	memcpy(ret_item->disk, disk->name, sizeof(disk->name));
	ret_item->number = round->number;
	ret_item->state = round->state;
	if (round->state == ROUND_RUNNING && holder == NULL) {
		ret_item->state = ROUND_STOPPED;
		error_text = "killed; the same sync goes on from its last checkpoint";
	}
	ret_item->started_at = round->started_at;
	ret_item->finished_at = round->finished_at;
	ret_item->counts = round->counts;
	error = fake_copy_text(round->source, &ret_item->source, failure);
	if (error == 0)
		error = fake_copy_text(error_text, &ret_item->error, failure);
	return error != 0 ? error : fake_copy_text(round->details, &ret_item->details, failure);
}

static int list_rounds_locked(const struct fake *fake, const char *name, struct store_round **ret_list,
			      size_t *ret_count, struct failure *failure)
{
	struct store_round *list;
	size_t total = 0;
	size_t count = 0;
	size_t first;
	size_t end;
	int error = select_disks(fake, name, &first, &end, failure);

	if (error != 0)
		return error;
	for (size_t i = first; i < end; i++)
		total += fake->disks[i]->round_count;
	list = calloc(total + 1, sizeof(*list));
	if (list == NULL)
		return fake_no_memory(failure);
	for (size_t i = first; i < end && error == 0; i++)
		for (size_t j = 0; j < fake->disks[i]->round_count && error == 0; j++)
			error = describe_round(fake, fake->disks[i], fake->disks[i]->rounds[j], &list[count++],
					       failure);
	if (error != 0) {
		store_rounds_free(list, total);
		return error;
	}
	*ret_list = list;
	*ret_count = total;
	return 0;
}

int fake_list_rounds(struct store *store, const char *name, struct store_round **ret_list, size_t *ret_count,
		     struct failure *failure)
{
	struct fake_call call;
	struct store_round *list = NULL;
	size_t count = 0;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_LIST_ROUNDS, NULL, failure);

	if (error == 0)
		error = list_rounds_locked(fake_of(store), name, &list, &count, failure);
	error = fake_call_leave(&call, error, failure);
	if (error != 0) {
		store_rounds_free(list, count);
		return error;
	}
	*ret_list = list;
	*ret_count = count;
	return 0;
}

/* ------------------------------------------------------- disks and policies */

/* Keys differ between disks, and are the same in every run: a failing test fails again. */
static void make_key(uint64_t seed, uint8_t ret_key[FINGERPRINT_KEY_BYTES])
{
	for (size_t i = 0; i < FINGERPRINT_KEY_BYTES; i += sizeof(uint64_t)) {
		uint64_t mixed = (seed += 0x9e3779b97f4a7c15);

		mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
		mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
		bytes_put_le64(ret_key + i, mixed ^ mixed >> 31);
	}
}

int fake_create_disk_locked(struct fake *fake, const struct store_disk_params *params, struct fake_disk **ret_disk,
			    struct failure *failure)
{
	size_t at = fake_disk_search(fake, params->name);
	struct fake_disk *disk = NULL;
	int error = fake_check_writable(fake, failure);

	if (error != 0)
		return error;
	if (at < fake->disk_count && strcmp(fake->disks[at]->name, params->name) == 0)
		return fail(failure, -EEXIST, "disk %s: there is one of this name already", params->name);
	error = fake_reserve(&fake->disks, &fake->disk_capacity, fake->disk_count, sizeof(struct fake_disk *), failure);
	if (error != 0)
		return error;
	disk = calloc(1, sizeof(*disk));
	if (disk == NULL)
		return fake_no_memory(failure);
	error = fake_copy_text(params->mirror_of, &disk->mirror_of, failure);
	if (error != 0) {
		free(disk);
		return error;
	}
	memcpy(disk->name, params->name, strlen(params->name));
	disk->size_bytes = params->size_bytes;
	disk->sector_bytes = params->sector_bytes;
	disk->level = -1;
	disk->created_at = time(NULL);
	disk->generation = 1;
	disk->next_image = 1;
	make_key(++fake->disks_made, disk->fingerprint_key);
	memmove(fake->disks + at + 1, fake->disks + at, (fake->disk_count - at) * sizeof(struct fake_disk *));
	fake->disks[at] = disk;
	fake->disk_count++;
	*ret_disk = disk;
	return 0;
}

void fake_drop_disk_locked(struct fake *fake, struct fake_disk *disk)
{
	size_t at = fake_disk_search(fake, disk->name);

	fake_disk_free(disk);
	fake->disk_count--;
	memmove(fake->disks + at, fake->disks + at + 1, (fake->disk_count - at) * sizeof(struct fake_disk *));
}

int fake_create_disk(struct store *store, const struct store_disk_params *params, struct failure *failure)
{
	struct fake_call call;
	struct fake_disk *disk;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_CREATE_DISK, NULL, failure);

	if (error == 0)
		error = fake_create_disk_locked(fake_of(store), params, &disk, failure);
	return fake_call_leave(&call, error, failure);
}

static int remove_disk_locked(struct fake *fake, const char *name, bool dry_run, struct failure *failure)
{
	AUTO_FREE char *holder = NULL;
	AUTO_FREE char *clones = NULL;
	struct fake_disk *disk = NULL;
	uint32_t number = 0;
	int error = fake_check_writable(fake, failure);

	if (error == 0)
		error = fake_find_disk(fake, name, &disk, failure);
	if (error == 0)
		error = fake_find_holder(fake, disk, NULL, &holder, failure);
	if (error != 0)
		return error;
	if (holder != NULL)
		return fail(failure, -EBUSY, "disk %s: locked by %s; wait for it or stop it", name, holder);
	error = fake_clone_names(fake, disk, 0, &number, &clones, failure);
	if (error == 0 && clones != NULL)
		error = fail(failure, -EBUSY, "disk %s: its image %u is in use by %s; remove what is cloned first", name, number,
			     clones);
	if (error != 0)
		return error;
	for (size_t i = 0; i < disk->image_count; i++) {
		AUTO_FREE char *why = NULL;

		error = fake_why_kept(fake, disk, disk->images[i], &why, failure);
		if (error != 0)
			return error;
		if (why != NULL)
			return fail(failure, -EBUSY, "disk %s: its image %u is %s", name, disk->images[i]->number, why);
	}
	if (!dry_run)
		fake_drop_disk_locked(fake, disk);
	return 0;
}

int fake_remove_disk(struct store *store, const char *name, bool dry_run, struct failure *failure)
{
	struct fake_call call;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_REMOVE_DISK, NULL, failure);

	if (error == 0)
		error = remove_disk_locked(fake_of(store), name, dry_run, failure);
	return fake_call_leave(&call, error, failure);
}

static int set_policy_locked(struct fake *fake, const char *name, const struct store_policy *policy,
			     struct failure *failure)
{
	struct fake_round *round;
	struct fake_disk *disk = NULL;
	int error = fake_check_writable(fake, failure);

	if (error == 0)
		error = fake_find_disk(fake, name, &disk, failure);
	if (error != 0)
		return error;
	if (policy->set_keep)
		disk->keep = policy->keep;
	if (policy->set_level)
		disk->level = policy->level;
	if (policy->set_limit)
		disk->limit_bytes_per_second = policy->limit_bytes_per_second;
	/* The later word counts: a running round obeys it even where it began with a limit of its own. */
	round = fake_newest_round(disk);
	if (round != NULL && round->state == ROUND_RUNNING) {
		round->has_level = round->has_level && !policy->set_level;
		round->has_limit = round->has_limit && !policy->set_limit;
	}
	return 0;
}

int fake_set_policy(struct store *store, const char *name, const struct store_policy *policy, struct failure *failure)
{
	struct fake_call call;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_SET_POLICY, NULL, failure);

	if (error == 0)
		error = set_policy_locked(fake_of(store), name, policy, failure);
	return fake_call_leave(&call, error, failure);
}

/* ------------------------------------------------------------------ files of the disk engine */

int store_fake_set_files(struct store *store, const char *folder)
{
	struct fake *fake = fake_of(store);
	char *copy = strdup(folder);
	WITH_LOCK(&fake->mutex);

	if (copy == NULL)
		return -ENOMEM;
	free(fake->files);
	fake->files = copy;
	return 0;
}

/* FILES/KEY/ and FILES/KEY.socket, with a KEY that no other disk has. */
int fake_disk_files(struct store *store, const char *name, bool make, struct store_disk_files *ret_files,
		    struct failure *failure)
{
	struct fake *fake = fake_of(store);
	struct store_disk_files files = {.journal_fd = -1};
	char key[sizeof(files.owner) * 2 + 1];
	AUTO_FREE char *path = NULL;
	struct fake_disk *disk;
	int error;
	WITH_LOCK(&fake->mutex);

	error = fake_find_disk(fake, name, &disk, failure);
	if (error != 0)
		return error;
	if (fake->files == NULL && make)
		return fail(failure, -ENOTSUP, "disk %s: this store keeps no files", name);
	memcpy(files.owner, disk->fingerprint_key, sizeof(files.owner));
	bytes_to_hex(files.owner, sizeof(files.owner), key);
	if (asprintf(&path, "%s/%s", fake->files != NULL ? fake->files : "", key) < 0 ||
	    asprintf(&files.socket_path, "%s.socket", path) < 0)
		return fail_errno(failure, -ENOMEM, "disk %s", name);
	if (make && mkdir(path, 0700) < 0 && errno != EEXIST)
		error = -errno;
	if (error == 0 && fake->files != NULL)
		files.journal_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (error == 0 && make && files.journal_fd < 0)
		error = -errno;
	if (error != 0) {
		free(files.socket_path);
		return fail_errno(failure, error, "disk %s: its files in %s", name, path);
	}
	*ret_files = files;
	return 0;
}
