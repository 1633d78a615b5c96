/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is said of nodes, without asking anybody: owners, modes, times, and for how long that holds.
 *
 * Disks come and go, and so do images and what "latest" is: a second. Below an image all is forever, for who comes by
 * its path has looked at the image's name within that second; below a disk whatever is always there, for the same
 * reason. The rest is live content: its size, its partitions.
 */
#include "fusefs/tree_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/sysmacros.h>

enum { BLOCK_BYTES = 4096, SECTOR_BYTES = 512, NS_PER_SECOND = 1000000000 };

struct timespec origin_time(const struct origin *origin)
{
	int64_t changed_at_ns = origin->changed_at_ns;

	if (origin->image != 0)
		return (struct timespec){.tv_sec = origin->created_at};
	return (struct timespec){.tv_sec = changed_at_ns / NS_PER_SECOND, .tv_nsec = changed_at_ns % NS_PER_SECOND};
}

static void fill_stat(const struct tree *tree, ino_t ino, mode_t mode, const struct timespec *time,
		      struct stat *ret_stat)
{
	*ret_stat = (struct stat){.st_ino = ino,
				  .st_mode = mode & ~(tree->options.umask & 0777),
				  .st_nlink = 1, /* of a folder it means that its folders are not counted */
				  .st_uid = tree->options.uid,
				  .st_gid = tree->options.gid,
				  .st_blksize = BLOCK_BYTES,
				  .st_atim = *time,
				  .st_mtim = *time,
				  .st_ctim = *time};
}

void stat_of_folder(const struct tree *tree, ino_t ino, const struct timespec *time, struct stat *ret_stat)
{
	fill_stat(tree, ino, S_IFDIR | 0555, time, ret_stat);
}

/*
 * What a disk takes would have to be counted. That one block is missing says that it has holes: cp and tar look for
 * them only then.
 */
void stat_of_file(const struct tree *tree, ino_t ino, uint64_t size_bytes, bool is_writable,
		  const struct timespec *time, struct stat *ret_stat)
{
	fill_stat(tree, ino, S_IFREG | (is_writable ? 0644 : 0444), time, ret_stat);
	ret_stat->st_size = (off_t)size_bytes;
	ret_stat->st_blocks = (blkcnt_t)(size_bytes / SECTOR_BYTES);
	if (size_bytes >= (uint64_t)2 * BLOCK_BYTES)
		ret_stat->st_blocks -= BLOCK_BYTES / SECTOR_BYTES;
}

/* Owner and group that everything is given to may read it, and go into folders. */
static mode_t mode_for_owners(const struct tree *tree, mode_t mode)
{
	mode_t reads = S_ISDIR(mode) ? 05 : 04;

	if (S_ISLNK(mode))
		return mode;
	return mode | (tree->options.has_uid ? reads << 6 : 0) | (tree->options.has_gid ? reads << 3 : 0);
}

void stat_of_inner(const struct tree *tree, const struct volume *volume, const struct fsreader_attr *attr,
		   struct stat *ret_stat)
{
	const struct node key = {.kind = NODE_INNER, .volume = (struct volume *)volume, .inner = attr->ino};

	*ret_stat = (struct stat){.st_ino = node_ino(&key),
				  .st_mode = mode_for_owners(tree, attr->mode),
				  .st_nlink = attr->nlink,
				  .st_uid = tree->options.has_uid ? tree->options.uid : attr->uid,
				  .st_gid = tree->options.has_gid ? tree->options.gid : attr->gid,
				  .st_rdev = makedev(attr->rdev_major, attr->rdev_minor),
				  .st_size = (off_t)attr->size_bytes,
				  .st_blksize = BLOCK_BYTES,
				  .st_blocks = (blkcnt_t)(attr->allocated_bytes / SECTOR_BYTES),
				  .st_atim = attr->atime,
				  .st_mtim = attr->mtime,
				  .st_ctim = attr->ctime};
}

static bool is_live(const struct node *node)
{
	return node->origin != NULL && node->origin->image == 0;
}

/* Whatever is there as soon as the disk, or the image, is. */
void found_fixed(struct tree *tree, struct node *node, struct found *ret_found)
{
	struct timespec time = origin_time(node->origin);

	*ret_found = (struct found){.node = node,
				    .entry_seconds = TREE_FOREVER,
				    .attr_seconds = is_live(node) ? MUTABLE_SECONDS : TREE_FOREVER};
	switch (node->kind) {
	case NODE_RAW:
		stat_of_file(tree, node->ino, node->origin->size_bytes, origin_may_be_written(tree, node->origin),
			     &time, &ret_found->stat);
		break;
	case NODE_LAYOUT:
	case NODE_INFO:
		stat_of_file(tree, node->ino, text_known_bytes(tree, node), false, &time, &ret_found->stat);
		ret_found->attr_seconds = MUTABLE_SECONDS;
		break;
	default:
		stat_of_folder(tree, node->ino, &time, &ret_found->stat);
		ret_found->attr_seconds = TREE_FOREVER;
	}
}

static void found_coming_and_going(struct tree *tree, struct node *node, struct found *ret_found)
{
	struct timespec time = {.tv_sec = node->origin->created_at};

	*ret_found = (struct found){.node = node, .entry_seconds = MUTABLE_SECONDS, .attr_seconds = TREE_FOREVER};
	stat_of_folder(tree, node->ino, &time, &ret_found->stat);
}

void found_disk(struct tree *tree, struct node *node, struct found *ret_found)
{
	found_coming_and_going(tree, node, ret_found);
}

void found_image(struct tree *tree, struct node *node, struct found *ret_found)
{
	found_coming_and_going(tree, node, ret_found);
}

void found_latest(struct tree *tree, struct node *node, struct found *ret_found)
{
	char target[16];

	found_coming_and_going(tree, node, ret_found);
	ret_found->stat.st_mode = S_IFLNK | 0777;
	ret_found->stat.st_size = snprintf(target, sizeof(target), "%" PRIu32, node->number);
}

void found_part(struct tree *tree, struct node *node, uint64_t size_bytes, struct found *ret_found)
{
	struct timespec time = origin_time(node->origin);
	double seconds = is_live(node) ? MUTABLE_SECONDS : TREE_FOREVER;
	bool is_writable = node->kind == NODE_PART && origin_may_be_written(tree, node->origin);

	*ret_found = (struct found){.node = node, .entry_seconds = seconds, .attr_seconds = seconds};
	stat_of_file(tree, node->ino, size_bytes, is_writable, &time, &ret_found->stat);
}

void found_inner(struct tree *tree, struct node *node, const struct fsreader_attr *attr, struct found *ret_found)
{
	*ret_found = (struct found){.node = node, .entry_seconds = TREE_FOREVER, .attr_seconds = TREE_FOREVER};
	stat_of_inner(tree, node->volume, attr, &ret_found->stat);
}

/* A folder with the reason, which may not be one the next time. */
void found_refused(struct tree *tree, struct node *node, struct found *ret_found)
{
	struct timespec time = origin_time(node->volume->origin);

	*ret_found = (struct found){.node = node, .entry_seconds = MUTABLE_SECONDS, .attr_seconds = MUTABLE_SECONDS};
	stat_of_folder(tree, node->ino, &time, &ret_found->stat);
}

void found_why_not(struct tree *tree, struct node *node, struct found *ret_found)
{
	struct timespec time = origin_time(node->volume != NULL ? node->volume->origin : node->origin);

	*ret_found = (struct found){.node = node, .entry_seconds = MUTABLE_SECONDS, .attr_seconds = MUTABLE_SECONDS};
	stat_of_file(tree, node->ino, text_known_bytes(tree, node), false, &time, &ret_found->stat);
}

void found_store(struct tree *tree, struct node *node, struct found *ret_found)
{
	*ret_found = (struct found){.node = node, .entry_seconds = TREE_FOREVER, .attr_seconds = TREE_FOREVER};
	stat_of_folder(tree, node->ino, &tree->opened_at, &ret_found->stat);
}
