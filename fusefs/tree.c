/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tree: opening and closing it, names, and what is asked about them.
 */
#include "fusefs/tree_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK_BYTES = 4096 };
#define ACL_NAMES "system.posix_acl_"

/* ---- attributes ---- */

static int getattr_part(struct tree *tree, struct node *node, struct found *ret_found, struct failure *failure)
{
	struct disk_partition partition;
	int error = origin_find_partition(tree, node->origin, node->number, &partition, failure);

	if (error == 0)
		found_part(tree, node, partition.len_bytes, ret_found);
	return error;
}

static int getattr_lvm_raw(struct tree *tree, struct node *node, struct found *ret_found, struct failure *failure)
{
	const struct lvm_scan *scan = NULL;
	const struct lvm_volume *volume;
	int error = origin_scan(tree, node->origin, &scan, failure);

	if (error < 0)
		return error;
	volume = origin_find_volume(scan, node->name);
	if (volume == NULL)
		return -ENOENT;
	found_part(tree, node, volume->size_bytes, ret_found);
	return 0;
}

static int getattr_inner(struct tree *tree, struct node *node, struct found *ret_found, struct failure *failure)
{
	struct fsreader_attr attr;
	struct fsreader *reader;
	struct failure cause = {.code = 0};
	int error = volume_use(tree, node->volume, &reader, &cause);

	if (error < 0 && node->inner == FSREADER_ROOT) {
		found_refused(tree, node, ret_found);
		return 0;
	}
	if (error < 0)
		return fail_from(failure, &cause);
	error = fsreader_getattr(reader, node->inner, &attr, failure);
	volume_done(tree, node->volume);
	if (error == 0)
		found_inner(tree, node, &attr, ret_found);
	return error;
}

static int getattr(struct tree *tree, struct node *node, struct found *ret_found, struct failure *failure)
{
	int error;

	switch (node->kind) {
	case NODE_STORE:
		found_store(tree, node, ret_found);
		return 0;
	case NODE_DISK:
		found_disk(tree, node, ret_found);
		return 0;
	case NODE_IMAGE:
		found_image(tree, node, ret_found);
		return 0;
	case NODE_LATEST:
		found_latest(tree, node, ret_found);
		return 0;
	case NODE_PART:
		return getattr_part(tree, node, ret_found, failure);
	case NODE_LVM_RAW:
		return getattr_lvm_raw(tree, node, ret_found, failure);
	case NODE_INNER:
		return getattr_inner(tree, node, ret_found, failure);
	case NODE_WHY_NOT:
	case NODE_LVM_WHY_NOT:
		found_why_not(tree, node, ret_found);
		return 0;
	default:
		error = node->kind == NODE_RAW && node->origin->image == 0 ? origin_refresh(tree, node->origin, failure)
									   : 0;
		if (error == 0)
			found_fixed(tree, node, ret_found);
		return error;
	}
}

int tree_getattr(struct tree *tree, struct node *node, struct found *ret_found, struct failure *failure)
{
	struct found found;
	int error = getattr(tree, node, &found, failure);

	if (error < 0)
		return error;
	if (node == tree->root && tree->options.guards_root) {
		mode_t type = found.stat.st_mode & S_IFMT;

		found.stat.st_mode =
			type | ((type == S_IFDIR ? 0555 : found.stat.st_mode & 0777) & ~(tree->options.umask & 0777));
		found.stat.st_uid = tree->options.uid;
		found.stat.st_gid = tree->options.gid;
	}
	*ret_found = found;
	return 0;
}

/* ---- names ---- */

static int no_memory(struct failure *failure)
{
	return fail(failure, -ENOMEM, "tree: out of memory");
}

/* A number as it is written here, from 1; *ret_end is behind it. */
static bool parse_number(const char *text, uint32_t *ret_number, const char **ret_end)
{
	uint64_t number = 0;

	if (*text < '1' || *text > '9')
		return false;
	for (; *text >= '0' && *text <= '9'; text++) {
		number = number * 10 + (uint64_t)(*text - '0');
		if (number > UINT32_MAX)
			return false;
	}
	*ret_number = (uint32_t)number;
	*ret_end = text;
	return true;
}

static int lookup_disk(struct tree *tree, const char *name, struct found *ret_found, struct failure *failure)
{
	struct node wanted = {.kind = NODE_DISK};
	struct store_disk *disk;
	struct node *node = NULL;
	size_t count;
	int error;

	if (store_check_name(name, NULL) < 0 || (tree->options.only != NULL && strcmp(name, tree->options.only) != 0))
		return -ENOENT;
	error = store_list_disks(tree->store, name, &disk, &count, failure);
	if (error < 0)
		return error;
	wanted.origin = origin_get(tree, disk->name, disk->id, 0, disk->created_at, disk->size_bytes);
	if (wanted.origin != NULL) {
		origin_note_disk(wanted.origin, disk);
		node = node_get(tree, &wanted);
	}
	origin_put(tree, wanted.origin);
	store_disks_free(disk, count);
	if (node == NULL)
		return no_memory(failure);
	found_disk(tree, node, ret_found);
	return 0;
}

struct fixed_name {
	const char *name;
	enum node_kind kind;
};
static const struct fixed_name disk_names[] = {{"disk.raw", NODE_RAW},
					       {"part", NODE_PARTS},
					       {"layout", NODE_LAYOUT},
					       {"images", NODE_IMAGES},
					       {NULL, NODE_STORE}};
static const struct fixed_name image_names[] = {{"disk.raw", NODE_RAW},	 {"part", NODE_PARTS},
						{"layout", NODE_LAYOUT}, {"info.json", NODE_INFO},
						{"files", NODE_FILES},	 {NULL, NODE_STORE}};

static int lookup_fixed(struct tree *tree, struct node *folder, const struct fixed_name *names, const char *name,
			struct found *ret_found, struct failure *failure)
{
	struct node wanted = {.origin = folder->origin};
	struct node *node;

	while (names->name != NULL && strcmp(names->name, name) != 0)
		names++;
	if (names->name == NULL)
		return -ENOENT;
	wanted.kind = names->kind;
	if (wanted.kind == NODE_RAW && folder->origin->image == 0) {
		int error = origin_refresh(tree, folder->origin, failure);

		if (error < 0)
			return error;
	}
	node = node_get(tree, &wanted);
	if (node == NULL)
		return no_memory(failure);
	found_fixed(tree, node, ret_found);
	return 0;
}

static int lookup_image(struct tree *tree, struct node *folder, const char *name, struct found *ret_found,
			struct failure *failure)
{
	struct store_reference reference = origin_reference(folder->origin);
	struct node wanted = {.kind = NODE_IMAGE};
	struct store_image_brief brief;
	struct node *node = NULL;
	const char *end = "";
	bool is_latest = strcmp(name, "latest") == 0;
	int error;

	reference.which = is_latest ? STORE_LATEST : STORE_NUMBER;
	if (!is_latest && (!parse_number(name, &reference.number, &end) || *end != '\0'))
		return -ENOENT;
	error = store_brief_image(tree->store, &reference, &brief, failure);
	if (error < 0)
		return error;
	if (memcmp(brief.disk_id, folder->origin->disk_id, sizeof(brief.disk_id)) != 0)
		return -ENOENT; /* of another disk, which has the name now */
	if (is_latest) {
		wanted = (struct node){.kind = NODE_LATEST, .origin = folder->origin, .number = brief.number};
		node = node_get(tree, &wanted);
	} else {
		wanted.origin = origin_get(tree, folder->origin->disk, brief.disk_id, brief.number, brief.created_at,
					   brief.size_bytes);
		node = wanted.origin == NULL ? NULL : node_get(tree, &wanted);
		origin_put(tree, wanted.origin);
	}
	if (node == NULL)
		return no_memory(failure);
	if (is_latest)
		found_latest(tree, node, ret_found);
	else
		found_image(tree, node, ret_found);
	return 0;
}

static int lookup_part(struct tree *tree, struct node *folder, const char *name, struct found *ret_found,
		       struct failure *failure)
{
	struct node wanted = {.kind = NODE_PART, .origin = folder->origin};
	struct disk_partition partition;
	struct node *node;
	const char *end;
	int error;

	if (!parse_number(name, &wanted.number, &end) || strcmp(end, ".raw") != 0)
		return -ENOENT;
	error = origin_find_partition(tree, folder->origin, wanted.number, &partition, failure);
	if (error < 0)
		return error;
	node = node_get(tree, &wanted);
	if (node == NULL)
		return no_memory(failure);
	found_part(tree, node, partition.len_bytes, ret_found);
	return 0;
}

/* The root folder of a volume. */
static int lookup_volume(struct tree *tree, struct origin *origin, const char *name, struct found *ret_found,
			 struct failure *failure)
{
	struct node wanted = {.kind = NODE_INNER, .inner = FSREADER_ROOT, .volume = volume_get(tree, origin, name)};
	struct node *node = wanted.volume == NULL ? NULL : node_get(tree, &wanted);
	int error;

	volume_put(tree, wanted.volume);
	if (node == NULL)
		return no_memory(failure);
	error = getattr_inner(tree, node, ret_found, failure);
	if (error < 0)
		tree_forget(tree, node, 1);
	return error;
}

static int lookup_named(struct tree *tree, struct node *folder, enum node_kind kind, const char *name,
			struct found *ret_found, struct failure *failure)
{
	struct node wanted = {.kind = kind, .origin = folder->origin, .name = (char *)name};
	struct node *node = node_get(tree, &wanted);
	int error;

	if (node == NULL)
		return no_memory(failure);
	error = getattr(tree, node, ret_found, failure);
	if (error < 0)
		tree_forget(tree, node, 1);
	return error;
}

static int lookup_in_files(struct tree *tree, struct node *folder, const char *name, struct found *ret_found,
			   struct failure *failure)
{
	struct disk_partition partition;
	const struct lvm_scan *scan = NULL;
	uint32_t number = WHOLE_DISK;
	const char *end = "";
	int error;

	if (strcmp(name, WHOLE_DISK_NAME) == 0 || (parse_number(name, &number, &end) && *end == '\0')) {
		error = origin_find_partition(tree, folder->origin, number, &partition, failure);
		if (error != -ENOENT)
			return error < 0 ? error : lookup_volume(tree, folder->origin, name, ret_found, failure);
	}
	error = origin_scan(tree, folder->origin, &scan, failure);
	if (error < 0)
		return error;
	if (origin_find_group(scan, name) == NULL)
		return -ENOENT;
	return lookup_named(tree, folder, NODE_FILES_GROUP, name, ret_found, failure);
}

/* "lv" of an image, its groups, and theirs. */
static int lookup_lvm(struct tree *tree, struct node *folder, const char *name, struct found *ret_found,
		      struct failure *failure)
{
	const struct lvm_scan *scan = NULL;
	int error = origin_scan(tree, folder->origin, &scan, failure);

	if (error < 0)
		return error;
	if (folder->kind == NODE_IMAGE && scan != NULL && scan->group_count > 0)
		return lookup_named(tree, folder, NODE_LVM, NULL, ret_found, failure);
	if (folder->kind == NODE_LVM && origin_find_group(scan, name) != NULL)
		return lookup_named(tree, folder, NODE_LVM_GROUP, name, ret_found, failure);
	return -ENOENT;
}

/* "LV.raw", or why there is none. */
static int lookup_in_lvm_group(struct tree *tree, struct node *folder, const char *name, struct found *ret_found,
			       struct failure *failure)
{
	static const struct {
		const char *suffix;
		enum node_kind kind;
	} kinds[] = {{".raw", NODE_LVM_RAW}, {WHY_NOT_SUFFIX, NODE_LVM_WHY_NOT}};
	const struct lvm_scan *scan = NULL;
	size_t name_bytes = strlen(name);
	int error = origin_scan(tree, folder->origin, &scan, failure);

	if (error < 0)
		return error;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		size_t suffix_bytes = strlen(kinds[i].suffix);
		char path[TREE_NAME_BYTES + LVM_NAME_BYTES];
		const struct lvm_volume *volume;

		if (name_bytes <= suffix_bytes || strcmp(name + name_bytes - suffix_bytes, kinds[i].suffix) != 0)
			continue;
		(void)snprintf(path, sizeof(path), "%s/%.*s", folder->name, (int)(name_bytes - suffix_bytes), name);
		volume = origin_find_volume(scan, path);
		if (volume != NULL && (volume->problem != NULL) == (kinds[i].kind == NODE_LVM_WHY_NOT))
			return lookup_named(tree, folder, kinds[i].kind, path, ret_found, failure);
	}
	return -ENOENT;
}

static int lookup_in_files_group(struct tree *tree, struct node *folder, const char *name, struct found *ret_found,
				 struct failure *failure)
{
	const struct lvm_scan *scan = NULL;
	char path[TREE_NAME_BYTES + LVM_NAME_BYTES];
	int error = origin_scan(tree, folder->origin, &scan, failure);

	if (error < 0)
		return error;
	(void)snprintf(path, sizeof(path), "%s/%s", folder->name, name);
	return origin_find_volume(scan, path) == NULL ? -ENOENT
						      : lookup_volume(tree, folder->origin, path, ret_found, failure);
}

static int lookup_why_not(struct tree *tree, struct node *folder, const char *name, struct found *ret_found,
			  struct failure *failure)
{
	struct node wanted = {.kind = NODE_WHY_NOT, .volume = folder->volume};
	struct node *node;

	if (strcmp(name, WHY_NOT_NAME) != 0)
		return -ENOENT;
	node = node_get(tree, &wanted);
	if (node == NULL)
		return no_memory(failure);
	found_why_not(tree, node, ret_found);
	return 0;
}

static int lookup_inner(struct tree *tree, struct node *folder, const char *name, struct found *ret_found,
			bool *ret_is_forever, struct failure *failure)
{
	struct node wanted = {.kind = NODE_INNER, .volume = folder->volume};
	struct fsreader_attr attr;
	struct failure cause = {.code = 0};
	struct fsreader *reader;
	struct node *node;
	int error = volume_use(tree, folder->volume, &reader, &cause);

	if (error < 0 && folder->inner == FSREADER_ROOT)
		return lookup_why_not(tree, folder, name, ret_found, failure);
	if (error < 0)
		return fail_from(failure, &cause);
	error = fsreader_lookup(reader, folder->inner, name, &attr, failure);
	volume_done(tree, folder->volume);
	*ret_is_forever = error == -ENOENT;
	if (error < 0)
		return error;
	wanted.inner = attr.ino;
	node = node_get(tree, &wanted);
	if (node == NULL)
		return no_memory(failure);
	found_inner(tree, node, &attr, ret_found);
	return 0;
}

int tree_lookup(struct tree *tree, struct node *folder, const char *name, struct found *ret_found, bool *ret_is_forever,
		struct failure *failure)
{
	int error;

	*ret_is_forever = false;
	if (strlen(name) >= TREE_NAME_BYTES)
		return -ENAMETOOLONG;
	switch (folder->kind) {
	case NODE_STORE:
		return lookup_disk(tree, name, ret_found, failure);
	case NODE_DISK:
		return lookup_fixed(tree, folder, disk_names, name, ret_found, failure);
	case NODE_IMAGES:
		return lookup_image(tree, folder, name, ret_found, failure);
	case NODE_IMAGE:
		error = lookup_fixed(tree, folder, image_names, name, ret_found, failure);
		return error == -ENOENT && strcmp(name, "lv") == 0 ? lookup_lvm(tree, folder, name, ret_found, failure)
								   : error;
	case NODE_PARTS:
		return lookup_part(tree, folder, name, ret_found, failure);
	case NODE_FILES:
		return lookup_in_files(tree, folder, name, ret_found, failure);
	case NODE_FILES_GROUP:
		return lookup_in_files_group(tree, folder, name, ret_found, failure);
	case NODE_LVM:
		return lookup_lvm(tree, folder, name, ret_found, failure);
	case NODE_LVM_GROUP:
		return lookup_in_lvm_group(tree, folder, name, ret_found, failure);
	case NODE_INNER:
		return lookup_inner(tree, folder, name, ret_found, ret_is_forever, failure);
	default:
		return -ENOTDIR;
	}
}

/* ---- the rest of what can be asked about a node ---- */

int tree_readlink(struct tree *tree, struct node *node, char **ret_target, struct failure *failure)
{
	struct fsreader *reader;
	int error;

	if (node->kind == NODE_LATEST)
		return asprintf(ret_target, "%" PRIu32, node->number) < 0 ? no_memory(failure) : 0;
	if (node->kind != NODE_INNER)
		return -EINVAL;
	error = volume_use(tree, node->volume, &reader, failure);
	if (error < 0)
		return error;
	error = fsreader_readlink(reader, node->inner, ret_target, failure);
	volume_done(tree, node->volume);
	return error;
}

int tree_listxattr(struct tree *tree, struct node *node, char **ret_names, size_t *ret_len_bytes,
		   struct failure *failure)
{
	struct fsreader *reader;
	int error;

	if (node->kind != NODE_INNER)
		return -ENOTSUP;
	error = volume_use(tree, node->volume, &reader, failure);
	if (error < 0)
		return node->inner == FSREADER_ROOT ? -ENOTSUP : error;
	error = fsreader_listxattr(reader, node->inner, ret_names, ret_len_bytes, failure);
	volume_done(tree, node->volume);
	return error;
}

int tree_getxattr(struct tree *tree, struct node *node, const char *name, void **ret_value, size_t *ret_len_bytes,
		  struct failure *failure)
{
	struct fsreader *reader;
	int error;

	if (node->kind != NODE_INNER)
		return -ENOTSUP;
	/* by which whoever made the image would say who gets in here */
	if (node == tree->root && tree->options.guards_root && strncmp(name, ACL_NAMES, strlen(ACL_NAMES)) == 0)
		return -ENODATA;
	error = volume_use(tree, node->volume, &reader, failure);
	if (error < 0)
		return node->inner == FSREADER_ROOT ? -ENOTSUP : error;
	error = fsreader_getxattr(reader, node->inner, name, ret_value, ret_len_bytes, failure);
	volume_done(tree, node->volume);
	return error;
}

static int statfs_of_volume(struct tree *tree, struct volume *volume, struct statvfs *ret_statfs,
			    struct failure *failure)
{
	struct fsreader_statfs inner;
	struct fsreader *reader;
	int error = volume_use(tree, volume, &reader, failure);

	if (error < 0)
		return error;
	error = fsreader_statfs(reader, &inner, failure);
	volume_done(tree, volume);
	if (error == 0)
		*ret_statfs = (struct statvfs){.f_bsize = inner.block_bytes,
					       .f_frsize = inner.block_bytes,
					       .f_blocks = inner.blocks,
					       .f_bfree = inner.free_blocks,
					       .f_bavail = inner.available_blocks,
					       .f_files = inner.files,
					       .f_ffree = inner.free_files,
					       .f_favail = inner.free_files,
					       .f_namemax = TREE_NAME_BYTES - 1};
	return error;
}

int tree_statfs(struct tree *tree, struct node *node, struct statvfs *ret_statfs, struct failure *failure)
{
	struct store_room room;
	int error;

	if (node->kind == NODE_INNER && statfs_of_volume(tree, node->volume, ret_statfs, NULL) == 0)
		return 0;
	error = store_room(tree->store, &room, failure);
	if (error == 0)
		*ret_statfs = (struct statvfs){.f_bsize = BLOCK_BYTES,
					       .f_frsize = BLOCK_BYTES,
					       .f_blocks = room.total_bytes / BLOCK_BYTES,
					       .f_bfree = room.free_bytes / BLOCK_BYTES,
					       .f_bavail = room.available_bytes / BLOCK_BYTES,
					       .f_namemax = TREE_NAME_BYTES - 1};
	return error;
}

bool tree_is_of_image(const struct node *node)
{
	return node->volume != NULL || (node->origin != NULL && node->origin->image != 0);
}

bool tree_is_writable(struct tree *tree, struct node *node)
{
	return (node->kind == NODE_RAW || node->kind == NODE_PART) && origin_may_be_written(tree, node->origin);
}

int tree_check_size(struct tree *tree, struct node *node, uint64_t size_bytes, struct failure *failure)
{
	char name[POOL_KEY_BYTES];
	struct found found;
	int error = tree_getattr(tree, node, &found, failure);

	if (error < 0 || (uint64_t)found.stat.st_size == size_bytes)
		return error;
	if (node->origin == NULL || !tree_is_writable(tree, node))
		return fail(failure, node->kind == NODE_LAYOUT ? -EPERM : -EROFS,
			    "the size of what can't be written to can't be changed");
	origin_name(node->origin, name);
	if (node->kind == NODE_PART)
		return fail(failure, -EPERM,
			    "%s/%" PRIu32 ": partitions can't be resized yet; dd writes into one with conv=notrunc",
			    name, node->number);
	return fail(failure, -EPERM, "%s: a disk can't be resized here; dd writes into it with conv=notrunc", name);
}

/* ---- opening ---- */

static int check_only(struct store *store, const char *only, struct failure *failure)
{
	struct store_disk *disk;
	size_t count;
	int error = store_list_disks(store, only, &disk, &count, failure);

	if (error == 0)
		store_disks_free(disk, count);
	return error;
}

int tree_check(const struct tree_options *options, struct failure *failure)
{
	struct store *store;
	bool is_read_only;
	int error =
		store_open_local_or_read_only(options->store_path, options->notices, &store, &is_read_only, failure);

	if (error < 0)
		return error;
	if (options->only != NULL)
		error = check_only(store, options->only, failure);
	store_close(store);
	return error;
}

/* "latest" is a link: what it points to is the root, whatever it points to later. */
static int step_to(struct tree *tree, struct node *folder, const char *name, struct node **ret_node,
		   struct failure *failure)
{
	char number[16];
	struct found found;
	bool is_forever;
	int error = tree_lookup(tree, folder, name, &found, &is_forever, failure);

	if (error < 0)
		return error;
	if (found.node->kind == NODE_LATEST) {
		(void)snprintf(number, sizeof(number), "%" PRIu32, found.node->number);
		tree_forget(tree, found.node, 1);
		return step_to(tree, folder, number, ret_node, failure);
	}
	*ret_node = found.node;
	return 0;
}

static struct origin *origin_of_root(const struct tree *tree)
{
	return tree->root->volume != NULL ? tree->root->volume->origin : tree->root->origin;
}

/* What a part of an image is mounted of stays as long. And a folder of files that is none is no root for anybody. */
static int hold_root(struct tree *tree, struct failure *failure)
{
	struct origin *origin = origin_of_root(tree);
	struct fsreader *reader;
	int error = 0;

	if (origin != NULL && origin->image != 0)
		error = origin_open(tree, origin, &tree->root_pooled, failure);
	if (error < 0 || tree->root->kind != NODE_INNER)
		return error;
	error = volume_use(tree, tree->root->volume, &reader, failure);
	if (error == 0)
		volume_done(tree, tree->root->volume);
	return error;
}

static int find_root(struct tree *tree, struct failure *failure)
{
	const struct node wanted = {.kind = NODE_STORE};
	AUTO_FREE char *path = strdup(tree->options.root != NULL ? tree->options.root : "");
	char *rest = path;
	int error = 0;

	tree->root = node_get(tree, &wanted);
	if (tree->root == NULL || path == NULL)
		return no_memory(failure);
	for (char *name; error == 0 && (name = strsep(&rest, "/")) != NULL;) {
		struct failure cause = {.code = 0};
		struct node *next = NULL;

		if (*name == '\0')
			continue;
		error = step_to(tree, tree->root, name, &next, &cause);
		if (error == -ENOENT || error == -ENOTDIR)
			return fail(failure, error, "root=%s: there is no %s in it", tree->options.root, name);
		if (error < 0)
			return fail_from(failure, &cause);
		tree_forget(tree, tree->root, 1);
		tree->root = next;
	}
	return error < 0 ? error : hold_root(tree, failure);
}

static int open_store(struct tree *tree, struct failure *failure)
{
	const struct tree_options *options = &tree->options;
	struct disk_pool_options pool_options = {
		.doing = "wherryfs", .write_mirror = options->write_mirror, .notices = options->notices};
	int error = store_open_local_or_read_only(options->store_path, options->notices, &tree->store,
						  &tree->store_is_read_only, failure);

	if (error == 0)
		error = chunk_cache_new(options->cache_bytes, &tree->cache, failure);
	pool_options.store = tree->store;
	pool_options.cache = tree->cache;
	pool_options.store_is_read_only = tree->store_is_read_only;
	if (error == 0)
		error = disk_pool_new(&pool_options, &tree->pool, failure);
	return error;
}

int tree_open(const struct tree_options *options, struct tree **ret_tree, struct failure *failure)
{
	struct tree *tree = calloc(1, sizeof(*tree));
	pthread_condattr_t monotonic;
	int error;

	if (tree == NULL)
		return no_memory(failure);
	tree->options = *options;
	(void)clock_gettime(CLOCK_REALTIME, &tree->opened_at);
	(void)pthread_mutex_init(&tree->lock, NULL); /* on Linux these can't fail */
	(void)pthread_mutex_init(&tree->files_lock, NULL);
	(void)pthread_mutex_init(&tree->giving_lock, NULL);
	(void)pthread_cond_init(&tree->given, NULL);
	(void)pthread_mutex_init(&tree->volumes.lock, NULL);
	(void)pthread_cond_init(&tree->volumes.changed, NULL);
	(void)pthread_condattr_init(&monotonic);
	(void)pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&tree->volumes.wake_keeper, &monotonic);
	(void)pthread_condattr_destroy(&monotonic);
	error = open_store(tree, failure);
	if (error == 0)
		error = volumes_start(tree, failure);
	if (error == 0)
		error = find_root(tree, failure);
	if (error < 0)
		tree_close(tree);
	else
		*ret_tree = tree;
	return error;
}

void tree_close(struct tree *tree)
{
	if (tree == NULL)
		return;
	listings_close(tree);
	files_close(tree);
	volumes_stop(tree);
	if (tree->root_pooled != NULL)
		(void)origin_close(tree, origin_of_root(tree), tree->root_pooled, NULL); /* an image */
	nodes_free(tree);
	disk_pool_free(tree->pool);
	chunk_cache_free(tree->cache);
	store_close(tree->store);
	(void)pthread_cond_destroy(&tree->volumes.wake_keeper);
	(void)pthread_cond_destroy(&tree->volumes.changed);
	(void)pthread_mutex_destroy(&tree->volumes.lock);
	(void)pthread_cond_destroy(&tree->given);
	(void)pthread_mutex_destroy(&tree->giving_lock);
	(void)pthread_mutex_destroy(&tree->files_lock);
	(void)pthread_mutex_destroy(&tree->lock);
	free(tree);
}

struct node *tree_root(struct tree *tree)
{
	return tree->root;
}
