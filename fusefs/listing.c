/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Folders that are being listed.
 *
 * Those of the tree are looked at once, when the listing begins, and kept: 1,000 images are one question to the store,
 * however small the pieces are in which the kernel takes them. Folders inside of images can be larger than memory; they
 * are asked for some hundred entries at a time.
 *
 * What an entry is can be said at once where the listing knows it anyway (listing_take()), which spares who wants
 * attributes of all of them a question for each.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fusefs/tree_internal.h"

enum { BATCH_ENTRIES = 256 };

/* What is known of an entry. */
enum knows { KNOWS_NAME, KNOWS_FIXED, KNOWS_DISK, KNOWS_IMAGE, KNOWS_LATEST, KNOWS_SIZE, KNOWS_ATTR };

struct entry {
	char name[TREE_NAME_BYTES];
	uint64_t cookie;
	mode_t type;
	enum knows knows;
	struct node wanted; /* origin and volume are borrowed, but: */
	bool owns_origin;
	uint64_t size_bytes;	   /* KNOWS_SIZE */
	struct fsreader_attr attr; /* KNOWS_ATTR */
};

struct listing {
	struct listing *next; /* of all; files_lock */
	struct tree *tree;
	struct node *folder;
	struct fsreader *reader; /* of a folder in a volume, which is in use; else NULL */
	struct entry *entries;	 /* owned: all, or with a reader those behind first_cookie */
	size_t count, room;
	uint64_t first_cookie;
	bool is_loaded;
	bool is_end; /* there is nothing behind these */
	const struct entry *current;
	struct listed listed;
};

/* ---- entries ---- */

static void clear(struct listing *listing)
{
	for (size_t i = 0; i < listing->count; i++)
		if (listing->entries[i].owns_origin)
			origin_put(listing->tree, listing->entries[i].wanted.origin);
	listing->count = 0;
	listing->current = NULL;
	listing->is_loaded = false;
}

/* The next one, of a name: cookies count them. NULL: no memory. */
static struct entry *add(struct listing *listing, const char *name, mode_t type, enum knows knows, enum node_kind kind)
{
	struct entry *entry;

	if (listing->count == listing->room) {
		size_t room = listing->room == 0 ? 8 : listing->room * 2;
		struct entry *grown = reallocarray(listing->entries, room, sizeof(*grown));

		if (grown == NULL)
			return NULL;
		listing->entries = grown;
		listing->room = room;
	}
	entry = &listing->entries[listing->count++];
	entry->cookie = listing->count;
	entry->type = type;
	entry->knows = knows;
	entry->wanted = (struct node){.kind = kind, .origin = listing->folder->origin};
	entry->owns_origin = false;
	(void)snprintf(entry->name, sizeof(entry->name), "%s", name);
	return entry;
}

static int no_memory(struct failure *failure)
{
	return fail(failure, -ENOMEM, "a listing: out of memory");
}

/* ---- folders of the tree ---- */

static int add_disk(struct listing *listing, const struct store_disk *disk, struct failure *failure)
{
	struct entry *entry = add(listing, disk->name, S_IFDIR, KNOWS_DISK, NODE_DISK);

	if (entry == NULL)
		return no_memory(failure);
	entry->wanted.origin = origin_get(listing->tree, disk->name, disk->id, 0, disk->created_at, disk->size_bytes);
	if (entry->wanted.origin == NULL) {
		listing->count--;
		return no_memory(failure);
	}
	entry->owns_origin = true;
	origin_note_disk(entry->wanted.origin, disk);
	return 0;
}

static int load_store(struct listing *listing, struct failure *failure)
{
	struct store_disk *disks;
	size_t count;
	int error = store_list_disks(listing->tree->store, listing->tree->options.only, &disks, &count, failure);

	if (error < 0)
		return error;
	for (size_t i = 0; i < count && error == 0; i++)
		error = add_disk(listing, &disks[i], failure);
	store_disks_free(disks, count);
	return error;
}

static int load_disk(struct listing *listing, struct failure *failure)
{
	if (add(listing, "disk.raw", S_IFREG, KNOWS_FIXED, NODE_RAW) == NULL ||
	    add(listing, "images", S_IFDIR, KNOWS_FIXED, NODE_IMAGES) == NULL ||
	    add(listing, "layout", S_IFREG, KNOWS_FIXED, NODE_LAYOUT) == NULL ||
	    add(listing, "part", S_IFDIR, KNOWS_FIXED, NODE_PARTS) == NULL)
		return no_memory(failure);
	return 0;
}

/* info.json says what deleting the image would free, which isn't to be had for nothing: who wants its size asks. */
static int load_image(struct listing *listing, struct failure *failure)
{
	const struct lvm_scan *scan = NULL;

	if (add(listing, "disk.raw", S_IFREG, KNOWS_FIXED, NODE_RAW) == NULL ||
	    add(listing, "files", S_IFDIR, KNOWS_FIXED, NODE_FILES) == NULL ||
	    add(listing, "info.json", S_IFREG, KNOWS_NAME, NODE_INFO) == NULL ||
	    add(listing, "layout", S_IFREG, KNOWS_NAME, NODE_LAYOUT) == NULL ||
	    add(listing, "part", S_IFDIR, KNOWS_FIXED, NODE_PARTS) == NULL)
		return no_memory(failure);
	/* what can't be read there is said by whoever looks into part/ */
	if (origin_scan(listing->tree, listing->folder->origin, &scan, NULL) == 0 && scan != NULL &&
	    scan->group_count > 0 && add(listing, "lv", S_IFDIR, KNOWS_FIXED, NODE_LVM) == NULL)
		return no_memory(failure);
	return 0;
}

static int add_image(struct listing *listing, const struct store_image_brief *brief, struct failure *failure)
{
	const struct origin *disk = listing->folder->origin;
	char name[TREE_NAME_BYTES];
	struct entry *entry;

	(void)snprintf(name, sizeof(name), "%" PRIu32, brief->number);
	entry = add(listing, name, S_IFDIR, KNOWS_IMAGE, NODE_IMAGE);
	if (entry == NULL)
		return no_memory(failure);
	entry->wanted.origin = origin_get(listing->tree, disk->disk, disk->disk_id, brief->number, brief->created_at,
					  brief->size_bytes);
	entry->owns_origin = entry->wanted.origin != NULL;
	return entry->owns_origin ? 0 : no_memory(failure);
}

static int load_images(struct listing *listing, struct failure *failure)
{
	struct origin *disk = listing->folder->origin;
	AUTO_FREE struct store_image_brief *briefs = NULL;
	struct entry *latest;
	size_t count;
	int error = store_brief_images(listing->tree->store, disk->disk, &briefs, &count, failure);

	if (error < 0 || count == 0)
		return error;
	if (memcmp(briefs[0].disk_id, disk->disk_id, sizeof(disk->disk_id)) != 0)
		return fail(failure, -ENOENT, "disk %s: it was removed, and another one has its name", disk->disk);
	latest = add(listing, "latest", S_IFLNK, KNOWS_LATEST, NODE_LATEST);
	if (latest == NULL)
		return no_memory(failure);
	latest->wanted.number = briefs[count - 1].number;
	for (size_t i = 0; i < count && error == 0; i++)
		error = add_image(listing, &briefs[i], failure);
	return error;
}

static int load_parts(struct listing *listing, struct failure *failure)
{
	AUTO_FREE struct disk_partition *partitions = NULL;
	size_t count = 0;
	int error = origin_list_partitions(listing->tree, listing->folder->origin, &partitions, &count, failure);

	for (size_t i = 0; i < count && error == 0; i++) {
		char name[TREE_NAME_BYTES];
		struct entry *entry;

		if (partitions[i].number == WHOLE_DISK)
			continue;
		(void)snprintf(name, sizeof(name), "%" PRIu32 ".raw", partitions[i].number);
		entry = add(listing, name, S_IFREG, KNOWS_SIZE, NODE_PART);
		if (entry == NULL)
			return no_memory(failure);
		entry->wanted.number = partitions[i].number;
		entry->size_bytes = partitions[i].len_bytes;
	}
	return error;
}

static bool has_entry(const struct listing *listing, const char *name)
{
	for (size_t i = 0; i < listing->count; i++)
		if (strcmp(listing->entries[i].name, name) == 0)
			return true;
	return false;
}

static int add_groups(struct listing *listing, enum node_kind kind, struct failure *failure)
{
	const struct lvm_scan *scan = NULL;
	int error = origin_scan(listing->tree, listing->folder->origin, &scan, failure);

	for (size_t i = 0; error == 0 && scan != NULL && i < scan->group_count; i++) {
		const char *name = scan->groups[i].name;

		if (has_entry(listing, name))
			notice(listing->tree->options.notices, NOTICE_WARNING,
			       "%s: volume group %s has the name of a partition; its volumes are in lv/%s",
			       listing->folder->origin->disk, name, name);
		else if (add(listing, name, S_IFDIR, KNOWS_NAME, kind) == NULL)
			return no_memory(failure);
	}
	return error;
}

static int load_files(struct listing *listing, struct failure *failure)
{
	AUTO_FREE struct disk_partition *partitions = NULL;
	struct failure cause = {.code = 0};
	size_t count = 0;
	int error = origin_list_partitions(listing->tree, listing->folder->origin, &partitions, &count, failure);

	for (size_t i = 0; i < count && error == 0; i++) {
		char name[TREE_NAME_BYTES] = WHOLE_DISK_NAME;

		if (partitions[i].number != WHOLE_DISK)
			(void)snprintf(name, sizeof(name), "%" PRIu32, partitions[i].number);
		if (add(listing, name, S_IFDIR, KNOWS_NAME, NODE_INNER) == NULL)
			return no_memory(failure);
	}
	/* partitions are there, whatever is with LVM */
	if (error == 0 && add_groups(listing, NODE_FILES_GROUP, &cause) < 0)
		notice(listing->tree->options.notices, NOTICE_WARNING, "logical volumes are not listed: %s",
		       cause.message);
	return error;
}

/* In files/VG all volumes have a folder; in lv/VG a file, or one that says why there is none. */
static int load_group(struct listing *listing, struct failure *failure)
{
	const struct lvm_scan *scan = NULL;
	const struct lvm_group *group;
	int error = origin_scan(listing->tree, listing->folder->origin, &scan, failure);

	if (error < 0)
		return error;
	group = origin_find_group(scan, listing->folder->name);
	for (size_t i = 0; group != NULL && i < group->volume_count; i++) {
		const struct lvm_volume *volume = &group->volumes[i];
		char name[TREE_NAME_BYTES];
		bool is_folder = listing->folder->kind == NODE_FILES_GROUP;

		(void)snprintf(name, sizeof(name), "%s%s", volume->name,
			       is_folder		 ? ""
			       : volume->problem == NULL ? ".raw"
							 : WHY_NOT_SUFFIX);
		if (add(listing, name, is_folder ? S_IFDIR : S_IFREG, KNOWS_NAME,
			is_folder		  ? NODE_INNER
			: volume->problem == NULL ? NODE_LVM_RAW
						  : NODE_LVM_WHY_NOT) == NULL)
			return no_memory(failure);
	}
	return 0;
}

static int load_refusal(struct listing *listing, struct failure *failure)
{
	struct entry *entry = add(listing, WHY_NOT_NAME, S_IFREG, KNOWS_NAME, NODE_WHY_NOT);

	if (entry == NULL)
		return no_memory(failure);
	entry->wanted = (struct node){.kind = NODE_WHY_NOT, .volume = listing->folder->volume};
	return 0;
}

static int load(struct listing *listing, struct failure *failure)
{
	switch (listing->folder->kind) {
	case NODE_STORE:
		return load_store(listing, failure);
	case NODE_DISK:
		return load_disk(listing, failure);
	case NODE_IMAGE:
		return load_image(listing, failure);
	case NODE_IMAGES:
		return load_images(listing, failure);
	case NODE_PARTS:
		return load_parts(listing, failure);
	case NODE_FILES:
		return load_files(listing, failure);
	case NODE_LVM:
		return add_groups(listing, NODE_LVM_GROUP, failure);
	case NODE_LVM_GROUP:
	case NODE_FILES_GROUP:
		return load_group(listing, failure);
	case NODE_INNER:
		return load_refusal(listing, failure);
	default:
		return -ENOTDIR;
	}
}

static int next_of_tree(struct listing *listing, uint64_t cookie, struct failure *failure)
{
	if (cookie == 0 || !listing->is_loaded) {
		int error;

		clear(listing);
		error = load(listing, failure);
		if (error < 0) {
			clear(listing);
			return error;
		}
		listing->is_loaded = true;
	}
	listing->current = cookie < listing->count ? &listing->entries[cookie] : NULL;
	return 0;
}

/* ---- folders in a volume ---- */

static int take_inner(void *opaque, const char *name, const struct fsreader_attr *attr, uint64_t cookie)
{
	struct listing *listing = opaque;
	struct entry *entry;

	if (listing->count == BATCH_ENTRIES)
		return 1;
	entry = &listing->entries[listing->count++];
	(void)snprintf(entry->name, sizeof(entry->name), "%s", name);
	entry->cookie = cookie;
	entry->type = attr->mode & S_IFMT;
	entry->knows = attr->ino != 0 ? KNOWS_ATTR : KNOWS_NAME;
	entry->attr = *attr;
	entry->wanted = (struct node){.kind = NODE_INNER, .volume = listing->folder->volume, .inner = attr->ino};
	entry->owns_origin = false;
	return 0;
}

static int load_batch(struct listing *listing, uint64_t cookie, struct failure *failure)
{
	int result;

	if (listing->entries == NULL)
		listing->entries = calloc(BATCH_ENTRIES, sizeof(*listing->entries));
	if (listing->entries == NULL)
		return no_memory(failure);
	listing->count = 0;
	listing->first_cookie = cookie;
	result = fsreader_list(listing->reader, listing->folder->inner, cookie, take_inner, listing, failure);
	listing->is_loaded = result >= 0;
	listing->is_end = result == 0;
	return result < 0 ? result : 0;
}

/* Where in the batch that is; false: not in it. */
static bool find_place(const struct listing *listing, uint64_t cookie, size_t *ret_index)
{
	if (!listing->is_loaded || cookie == 0) /* from the start: anew */
		return false;
	*ret_index = 0;
	if (cookie == listing->first_cookie)
		return true;
	for (size_t i = 0; i < listing->count; i++)
		if (listing->entries[i].cookie == cookie) {
			*ret_index = i + 1;
			return true;
		}
	return false;
}

static int next_of_volume(struct listing *listing, uint64_t cookie, struct failure *failure)
{
	size_t index = 0;
	int error = 0;

	listing->current = NULL;
	if (!find_place(listing, cookie, &index) || (index == listing->count && !listing->is_end)) {
		index = 0;
		error = load_batch(listing, cookie, failure);
	}
	if (error == 0 && index < listing->count)
		listing->current = &listing->entries[index];
	return error;
}

/* ---- for others ---- */

int listing_open(struct tree *tree, struct node *folder, struct listing **ret_listing, struct failure *failure)
{
	struct listing *listing = calloc(1, sizeof(*listing));
	struct failure cause = {.code = 0};
	int error;

	if (listing == NULL)
		return no_memory(failure);
	listing->tree = tree;
	listing->folder = folder;
	if (folder->kind == NODE_INNER) {
		error = volume_use(tree, folder->volume, &listing->reader, &cause);
		if (error < 0 && folder->inner != FSREADER_ROOT) {
			free(listing);
			return fail_from(failure, &cause);
		}
	}
	*ret_listing = listing;
	WITH_LOCK(&tree->files_lock);
	listing->next = tree->listings;
	tree->listings = listing;
	return 0;
}

void listing_close(struct listing *listing)
{
	struct tree *tree;

	if (listing == NULL)
		return;
	tree = listing->tree;
	{
		WITH_LOCK(&tree->files_lock);
		for (struct listing **at = &tree->listings; *at != NULL; at = &(*at)->next)
			if (*at == listing) {
				*at = listing->next;
				break;
			}
	}
	clear(listing);
	if (listing->reader != NULL)
		volume_done(tree, listing->folder->volume);
	free(listing->entries);
	free(listing);
}

void listings_close(struct tree *tree)
{
	while (tree->listings != NULL)
		listing_close(tree->listings);
}

bool listing_is_forever(const struct listing *listing)
{
	return listing->reader != NULL;
}

/* Of an entry that is known by its name only, the number that it will have. */
static ino_t ino_of(const struct listing *listing, const struct entry *entry)
{
	struct node key = entry->wanted;
	char path[TREE_NAME_BYTES + LVM_NAME_BYTES];
	int stem_bytes = (int)strlen(entry->name);

	if (key.kind == NODE_LVM_RAW)
		stem_bytes -= (int)strlen(".raw");
	else if (key.kind == NODE_LVM_WHY_NOT)
		stem_bytes -= (int)strlen(WHY_NOT_SUFFIX);
	(void)snprintf(path, sizeof(path), "%s%s%.*s", listing->folder->name != NULL ? listing->folder->name : "",
		       listing->folder->name != NULL ? "/" : "", stem_bytes, entry->name);
	if (key.kind == NODE_INNER && key.volume == NULL)
		return inner_ino(volume_seed(key.origin, path), FSREADER_ROOT);
	if (key.kind == NODE_FILES_GROUP || key.kind == NODE_LVM_GROUP || key.kind == NODE_LVM_RAW ||
	    key.kind == NODE_LVM_WHY_NOT)
		key.name = path;
	return node_ino(&key);
}

int listing_next(struct listing *listing, uint64_t cookie, const struct listed **ret_listed, struct failure *failure)
{
	const struct entry *entry;
	int error = listing->reader != NULL ? next_of_volume(listing, cookie, failure)
					    : next_of_tree(listing, cookie, failure);

	if (error < 0)
		return error;
	entry = listing->current;
	if (entry == NULL) {
		*ret_listed = NULL;
		return 0;
	}
	if (entry->cookie > (uint64_t)INT64_MAX - 8)
		return fail(failure, -EIO, "a listing of %s: its entries can't be counted",
			    listing->folder->volume->name);
	listing->listed =
		(struct listed){.name = entry->name,
				.cookie = entry->cookie,
				.ino = entry->knows == KNOWS_NAME ? ino_of(listing, entry) : node_ino(&entry->wanted),
				.type = entry->type};
	*ret_listed = &listing->listed;
	return 0;
}

int listing_take(struct listing *listing, struct found *ret_found)
{
	const struct entry *entry = listing->current;
	struct tree *tree = listing->tree;
	struct node *node;

	assert(entry != NULL);
	if (entry->knows == KNOWS_NAME)
		return -EAGAIN;
	node = node_get(tree, &entry->wanted);
	if (node == NULL)
		return -EAGAIN;
	switch (entry->knows) {
	case KNOWS_DISK:
		found_disk(tree, node, ret_found);
		break;
	case KNOWS_IMAGE:
		found_image(tree, node, ret_found);
		break;
	case KNOWS_LATEST:
		found_latest(tree, node, ret_found);
		break;
	case KNOWS_SIZE:
		found_part(tree, node, entry->size_bytes, ret_found);
		break;
	case KNOWS_ATTR:
		found_inner(tree, node, &entry->attr, ret_found);
		break;
	default:
		found_fixed(tree, node, ret_found);
	}
	return 0;
}
