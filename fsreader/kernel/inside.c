/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only program inside of a user-mode Linux (kernel_process.c): process 1. It loads the modules that were put beside
 * it, mounts the image, read-only, and answers questions about files (ext_protocol.h) with system calls. The kernel
 * around it parses the file system; both live in a sandbox.
 *
 *     /dev/ubda    the image
 *     /dev/ubdb    the link to the client (image_link.h): reading in its middle waits for the next question; what is written from its start on
 *                  is the answer, padded to whole sectors
 *
 * Nothing is kept between questions but a table from inode numbers to handles (open_by_handle_at(2)). Of XFS, Btrfs and FAT
 * a handle can be made from a number; of others, a number that has been dropped from the table, or was told by a kernel that
 * has ended, is -ESTALE until its name is looked up again.
 *
 * Linked statically: there is no C library in there. Whoever takes this program over, or the kernel, has what the sandbox has: nothing.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/btrfs.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fsreader/image_link.h"
#include "fsreader/kernel/kernel_protocol.h"

enum {
	UBD_MAJOR = 98,
	UBD_MINORS = 16, /* of a disk */
	HANDLE_BYTES = 48,
	WAYS = 4,
	SETS = 1 << 16,
	MAP_EXTENTS = 1024,
	NOTHING_FD = -1,
	BTRFS_TREE_SHIFT = 40,
	BTRFS_HANDLE_TYPE = 0x4d,
	BTRFS_HANDLE_BYTES = 20,
	BTRFS_INODE_ITEM = 1,
	FAT_HANDLE_TYPE = 0x71,
	FAT_HANDLE_BYTES = 12,
	BULK_MOST = 128, /* inodes asked for at once */
	NODES_MOST = 32, /* of which the maps are looked at at once: more are seldom all wanted */
	LIST_ENTRIES_BYTES = 32 << 10,
	LIST_ENTRIES_MOST = LIST_ENTRIES_BYTES / 24,
};

#define POSITION_UNKNOWN UINT64_MAX

#define MOUNT_POINT "/image"
#define FILES_FLAGS (O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOATIME)

struct known {	      /* an inode, and how to open it */
	uint64_t ino; /* as the client has it; 0: none */
	uint32_t handle_bytes;
	int32_t handle_type;
	uint8_t handle[HANDLE_BYTES];
};

union handle {
	struct file_handle head;
	uint8_t room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

struct kept {
	int fd; /* or NOTHING_FD */
	uint64_t ino;
};

static struct {
	int link_fd, mount_fd;
	bool has_maps;	    /* of this type of file system FIEMAP tells places on the device */
	uint64_t root_ino;  /* as the file system has it */
	uint64_t root_tree; /* of btrfs: the tree that is mounted */
	bool is_btrfs, is_fat;
	struct known *known; /* SETS of WAYS */
	uint32_t next_way;
	struct kept list, file; /* that were asked about last */
	uint64_t list_position; /* of `list`: 0, or POSITION_UNKNOWN */
	bool has_bulk;		/* XFS, with handles as they are made here */
	char message[256];	/* why a question failed, or "" */
	_Alignas(4096) uint8_t question[KERNEL_QUESTION_BYTES];
	_Alignas(4096) uint8_t answer[KERNEL_ANSWER_MOST_BYTES];
} state = {.list = {.fd = NOTHING_FD}, .file = {.fd = NOTHING_FD}};

static uint8_t *const payload = state.answer + sizeof(struct ext_answer);

/* ---- inode numbers ---- */

/* An inode of btrfs has a number that is its own in its subvolume only; what tells them apart goes above. */
static uint64_t client_ino(uint64_t ino, const union handle *handle)
{
	uint64_t tree;

	if (state.is_btrfs && handle->head.handle_bytes >= 16) {
		memcpy(&tree, handle->head.f_handle + 8, sizeof(tree));
		if (tree != state.root_tree)
			return tree << BTRFS_TREE_SHIFT ^ ino;
	}
	if (ino == state.root_ino)
		return FSREADER_ROOT;
	return ino == FSREADER_ROOT ? state.root_ino : ino;
}

static struct known *set_of(uint64_t ino)
{
	return &state.known[(ino * 0x9e3779b97f4a7c15ULL >> 40) % SETS * WAYS];
}

static const struct known *find_known(uint64_t ino)
{
	const struct known *set = set_of(ino);

	for (unsigned way = 0; way < WAYS; way++)
		if (set[way].ino == ino)
			return &set[way];
	return NULL;
}

static void remember(uint64_t ino, const union handle *handle)
{
	struct known *set = set_of(ino), *place = &set[state.next_way++ % WAYS];

	for (unsigned way = 0; way < WAYS; way++)
		if (set[way].ino == ino || (set[way].ino == 0 && place->ino != ino))
			place = &set[way];
	if (ino == FSREADER_ROOT || handle->head.handle_bytes > HANDLE_BYTES)
		return;
	place->ino = ino;
	place->handle_bytes = handle->head.handle_bytes;
	place->handle_type = handle->head.handle_type;
	memcpy(place->handle, handle->head.f_handle, handle->head.handle_bytes);
}

/* ---- what only one type of file system has ---- */

/*
 * XFS tells of many inodes by one system call (XFS_IOC_BULKSTAT, fs/xfs/libxfs/xfs_fs.h): those from a number on, in
 * the order of their numbers. What is in one folder has numbers close to each other, mostly. Whatever isn't told here
 * is looked at by itself.
 */
struct xfs_status {
	uint64_t ino, size, blocks, xflags;
	int64_t atime, mtime, ctime, btime;
	uint32_t generation, uid, gid, project;
	uint32_t atime_ns, mtime_ns, ctime_ns, btime_ns;
	uint32_t block_bytes, rdev, cow_extent_size, extent_size;
	uint32_t nlink, extents, attribute_extents;
	uint16_t version, fork_offset, sick, checked, mode, padding;
	uint64_t extents_64, more[6];
};

struct xfs_request {
	uint64_t first_ino;
	uint32_t flags, room, count, group;
	uint64_t reserved[5]; /* behind which there is room for statuses */
};

_Static_assert(sizeof(struct xfs_status) == 192 && sizeof(struct xfs_request) == 64, "as the kernel has them");

#define BULKSTAT _IOR('X', 127, struct xfs_request)
enum { XFS_HANDLE_TYPE = 0x81, XFS_HANDLE_BYTES = 12 }; /* an inode number of 64 bits, its generation */

static void fill_xfs_handle(const struct xfs_status *status, union handle *ret_handle)
{
	*ret_handle = (union handle){.head = {.handle_bytes = XFS_HANDLE_BYTES, .handle_type = XFS_HANDLE_TYPE}};
	memcpy(ret_handle->head.f_handle, &status->ino, sizeof(status->ino));
	memcpy(ret_handle->head.f_handle + sizeof(status->ino), &status->generation, sizeof(status->generation));
}

/* The generation, which is a part of a handle, is the file system's to tell. */
static bool bulk_make_handle(uint64_t ino, union handle *ret_handle)
{
	struct {
		struct xfs_request head;
		struct xfs_status status;
	} request = {.head = {.first_ino = ino, .room = 1}};

	if (ioctl(state.mount_fd, BULKSTAT, &request) < 0 || request.head.count != 1 || request.status.ino != ino)
		return false;
	fill_xfs_handle(&request.status, ret_handle);
	return true;
}

/* That of an inode, which is the beginning of its item in its tree. */
static bool btrfs_find_generation(uint64_t tree, uint64_t inode, uint64_t *ret_generation)
{
	static struct btrfs_ioctl_search_args search;

	search.key = (struct btrfs_ioctl_search_key){.tree_id = tree,
						     .min_objectid = inode,
						     .max_objectid = inode,
						     .max_offset = UINT64_MAX,
						     .max_transid = UINT64_MAX,
						     .min_type = BTRFS_INODE_ITEM,
						     .max_type = BTRFS_INODE_ITEM,
						     .nr_items = 1};
	if (ioctl(state.mount_fd, BTRFS_IOC_TREE_SEARCH, &search) < 0 || search.key.nr_items != 1)
		return false;
	memcpy(ret_generation, search.buf + sizeof(struct btrfs_ioctl_search_header), sizeof(*ret_generation));
	return true;
}

/* A handle of Btrfs: inode, tree, generation. client_ino() has put the tree into the number. */
static bool btrfs_make_handle(uint64_t ino, union handle *ret_handle)
{
	uint64_t tree = ino >> BTRFS_TREE_SHIFT, inode = tree == 0 ? ino : ino ^ tree << BTRFS_TREE_SHIFT, generation;
	uint32_t low_generation;

	if (tree == 0)
		tree = state.root_tree;
	if (!btrfs_find_generation(tree, inode, &generation))
		return false;
	low_generation = (uint32_t)generation;
	*ret_handle = (union handle){.head = {.handle_bytes = BTRFS_HANDLE_BYTES, .handle_type = BTRFS_HANDLE_TYPE}};
	memcpy(ret_handle->head.f_handle, &inode, sizeof(inode));
	memcpy(ret_handle->head.f_handle + sizeof(inode), &tree, sizeof(tree));
	memcpy(ret_handle->head.f_handle + sizeof(inode) + sizeof(tree), &low_generation, sizeof(low_generation));
	return true;
}

/*
 * A handle of FAT with nfs=nostale_ro: generation (0: any), the place of the entry in its folder, which is the number, too.
 * Upper bits of that are two bytes of their own.
 */
static bool fat_make_handle(uint64_t ino, union handle *ret_handle)
{
	uint32_t low = (uint32_t)ino;
	uint16_t high = (uint16_t)(ino >> 32);

	*ret_handle = (union handle){.head = {.handle_bytes = FAT_HANDLE_BYTES, .handle_type = FAT_HANDLE_TYPE}};
	memcpy(ret_handle->head.f_handle + sizeof(uint32_t), &low, sizeof(low));
	memcpy(ret_handle->head.f_handle + 2 * sizeof(uint32_t), &high, sizeof(high));
	return true;
}

static bool make_handle(uint64_t ino, union handle *ret_handle)
{
	if (state.is_btrfs)
		return btrfs_make_handle(ino, ret_handle);
	if (state.is_fat)
		return fat_make_handle(ino, ret_handle);
	return state.has_bulk && bulk_make_handle(ino, ret_handle);
}

/* Of a number that is known, or from which it can be made. */
static bool find_handle(uint64_t ino, union handle *ret_handle)
{
	const struct known *known = find_known(ino);

	if (known == NULL)
		return make_handle(ino, ret_handle);
	ret_handle->head.handle_bytes = known->handle_bytes;
	ret_handle->head.handle_type = known->handle_type;
	memcpy(ret_handle->head.f_handle, known->handle, known->handle_bytes);
	return true;
}

static int open_ino(uint64_t ino, int flags)
{
	union handle handle;
	int fd;

	if (ino == FSREADER_ROOT)
		fd = openat(state.mount_fd, ".", flags | O_CLOEXEC);
	else if (find_handle(ino, &handle))
		fd = open_by_handle_at(state.mount_fd, &handle.head, flags | O_CLOEXEC);
	else
		return -ESTALE;
	return fd < 0 ? -errno : fd;
}

/* ---- nodes ---- */

static void fill_attr(const struct stat *status, uint64_t ino, struct fsreader_attr *ret_attr)
{
	*ret_attr = (struct fsreader_attr){.ino = ino,
					   .mode = status->st_mode,
					   .nlink = (uint32_t)status->st_nlink,
					   .uid = status->st_uid,
					   .gid = status->st_gid,
					   .rdev_major = major(status->st_rdev),
					   .rdev_minor = minor(status->st_rdev),
					   .size_bytes = (uint64_t)status->st_size,
					   .allocated_bytes = (uint64_t)status->st_blocks * 512,
					   .atime = status->st_atim,
					   .mtime = status->st_mtim,
					   .ctime = status->st_ctim};
}

/* Extents from `off_bytes` on, `most` at most; the number of them, or a negative errno. *ret_is_last: there are no more. */
static int read_extents(int fd, uint64_t off_bytes, struct ext_piece *pieces, unsigned most, bool *ret_is_last,
			uint64_t *ret_end_bytes)
{
	static _Alignas(8) uint8_t room[sizeof(struct fiemap) + MAP_EXTENTS * sizeof(struct fiemap_extent)];
	struct fiemap *map = (struct fiemap *)(void *)room;
	unsigned count = 0;

	*map = (struct fiemap){.fm_start = off_bytes,
			       .fm_length = FIEMAP_MAX_OFFSET - off_bytes,
			       .fm_extent_count = most < MAP_EXTENTS ? most : MAP_EXTENTS};
	if (ioctl(fd, FS_IOC_FIEMAP, map) < 0)
		return -errno;
	*ret_is_last = map->fm_mapped_extents < map->fm_extent_count;
	*ret_end_bytes = off_bytes;
	for (unsigned i = 0; i < map->fm_mapped_extents; i++) {
		const struct fiemap_extent *extent = &map->fm_extents[i];

		if ((extent->fe_flags & (FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_ENCODED |
					 FIEMAP_EXTENT_DATA_ENCRYPTED | FIEMAP_EXTENT_NOT_ALIGNED |
					 FIEMAP_EXTENT_DATA_INLINE | FIEMAP_EXTENT_DATA_TAIL)) != 0)
			return -EOPNOTSUPP;
		if ((extent->fe_flags & FIEMAP_EXTENT_LAST) != 0)
			*ret_is_last = true;
		*ret_end_bytes = extent->fe_logical + extent->fe_length;
		pieces[count++] = (struct ext_piece){
			.off_bytes = extent->fe_logical,
			.len_bytes = extent->fe_length,
			.place_bytes = extent->fe_physical,
			.kind = (extent->fe_flags & FIEMAP_EXTENT_UNWRITTEN) != 0 ? EXT_PIECE_ZEROS : EXT_PIECE_DATA};
	}
	return (int)count;
}

/* A system call costs some 20 microseconds in here; so what few ask for (the map of a file, its attributes) is left for those who do. */
static void fill_node(const struct stat *status, uint64_t ino, struct ext_node *ret_node)
{
	*ret_node = (struct ext_node){.flags = EXT_NODE_HAS_XATTRS};
	fill_attr(status, ino, &ret_node->attr);
	if (S_ISREG(status->st_mode) && !state.has_maps)
		ret_node->flags |= EXT_NODE_BY_READING;
	else if (S_ISREG(status->st_mode) && status->st_blocks > 0)
		ret_node->flags |= EXT_NODE_UNSEEN;
	else if (S_ISREG(status->st_mode) && status->st_blocks == 0)
		ret_node->flags |= EXT_NODE_MAPPED; /* nothing */
}

/* The node of a name in an open folder. */
static int look_at(int folder_fd, const char *name, struct ext_node *ret_node)
{
	union handle handle = {.head = {.handle_bytes = MAX_HANDLE_SZ}};
	struct stat status;
	uint64_t ino;
	int mount_id;

	if (fstatat(folder_fd, name, &status, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
		return -errno;
	if (name_to_handle_at(folder_fd, name, &handle.head, &mount_id, 0) < 0)
		return -errno;
	ino = client_ino(status.st_ino, &handle);
	fill_node(&status, ino, ret_node);
	remember(ino, &handle);
	return 0;
}

static int look_at_ino(uint64_t ino, struct ext_node *ret_node)
{
	struct stat status;
	int fd = open_ino(ino, O_PATH | O_NOFOLLOW), error = 0;

	if (fd < 0)
		return fd;
	if (fstat(fd, &status) < 0)
		error = -errno;
	else
		fill_node(&status, ino, ret_node);
	(void)close(fd);
	return error;
}

/* ---- folders ---- */

/* The file that a question is about stays open for the next one, which most likely is about it, too. */
static int open_kept(struct kept *kept, uint64_t ino, int flags)
{
	if (kept->fd != NOTHING_FD && kept->ino == ino)
		return kept->fd;
	if (kept->fd != NOTHING_FD)
		(void)close(kept->fd);
	kept->ino = ino;
	kept->fd = open_ino(ino, flags | FILES_FLAGS);
	if (kept == &state.list)
		state.list_position = 0;
	if (kept->fd < 0) {
		int error = kept->fd;

		kept->fd = NOTHING_FD;
		return error;
	}
	return kept->fd;
}

static int open_list(uint64_t ino)
{
	return open_kept(&state.list, ino, O_RDONLY | O_DIRECTORY);
}

struct entry { /* as getdents64(2) has it */
	uint64_t ino;
	int64_t next;
	uint16_t bytes;
	uint8_t type;
	char name[];
};

static bool is_name(const struct entry *entry)
{
	return strcmp(entry->name, ".") != 0 && strcmp(entry->name, "..") != 0 &&
	       strlen(entry->name) <= FSREADER_NAME_MOST_BYTES;
}

/* ---- many inodes at once, of XFS ---- */

static struct {
	size_t count, told_count;
	uint64_t inos[LIST_ENTRIES_MOST];	   /* of a part of a folder, sorted */
	struct xfs_status told[LIST_ENTRIES_MOST]; /* in the same order, with gaps left out */
} bulk;

static int compare_inos(const void *a, const void *b)
{
	const uint64_t *first = a, *second = b;

	return (*first > *second) - (*first < *second);
}

static int compare_status(const void *a, const void *b)
{
	const uint64_t *ino = a;
	const struct xfs_status *status = b;

	return (*ino > status->ino) - (*ino < status->ino);
}

static bool bulk_is_usable(const struct xfs_status *status)
{
	/* Of devices it tells less than there is; of those kept in the inode itself it doesn't count the blocks of their attributes. */
	return !S_ISCHR(status->mode) && !S_ISBLK(status->mode) &&
	       !(status->blocks == 0 && status->attribute_extents > 0);
}

/* How many from number `at` on to ask for at once: as long as not much else lies between them. */
static uint32_t bulk_room(size_t at)
{
	size_t last = at;

	while (last + 1 < bulk.count && bulk.inos[last + 1] - bulk.inos[at] < 2 * (last + 1 - at) + 8)
		last++;
	return bulk.inos[last] - bulk.inos[at] + 1 < BULK_MOST ? (uint32_t)(bulk.inos[last] - bulk.inos[at] + 1)
							       : BULK_MOST;
}

static struct {
	struct xfs_request head;
	struct xfs_status room[BULK_MOST];
} bulk_request;

/* Inodes from a number on; false: there are none. */
static bool bulk_ask(uint64_t first_ino, uint32_t room)
{
	memset(&bulk_request.head, 0, sizeof(bulk_request.head));
	bulk_request.head.first_ino = first_ino;
	bulk_request.head.room = room < BULK_MOST ? room : BULK_MOST;
	return ioctl(state.mount_fd, BULKSTAT, &bulk_request) == 0 && bulk_request.head.count > 0 &&
	       bulk_request.head.count <= BULK_MOST;
}

/* For a folder, from number `at` on; where to go on. */
static size_t bulk_take(size_t at)
{
	uint64_t end_ino;

	if (!bulk_ask(bulk.inos[at], bulk_room(at)))
		return at + 1;
	end_ino = bulk_request.room[bulk_request.head.count - 1].ino;
	for (uint32_t i = 0; i < bulk_request.head.count; i++) {
		const struct xfs_status *status = &bulk_request.room[i];

		while (at < bulk.count && bulk.inos[at] < status->ino)
			at++;
		if (at < bulk.count && bulk.inos[at] == status->ino && bulk_is_usable(status))
			bulk.told[bulk.told_count++] = *status;
	}
	while (at < bulk.count && bulk.inos[at] <= end_ino)
		at++;
	return at;
}

/* Of all entries. */
static void bulk_read(const uint8_t *entries, long len_bytes)
{
	bulk.count = bulk.told_count = 0;
	if (!state.has_bulk)
		return;
	for (long at = 0; at < len_bytes && bulk.count < LIST_ENTRIES_MOST;) {
		const struct entry *entry = (const struct entry *)(const void *)(entries + at);

		bulk.inos[bulk.count] = entry->ino;
		bulk.count += is_name(entry);
		at += entry->bytes;
	}
	qsort(bulk.inos, bulk.count, sizeof(bulk.inos[0]), compare_inos);
	for (size_t at = 0; at < bulk.count;)
		at = bulk_take(at);
}

static const struct xfs_status *bulk_find(uint64_t ino)
{
	return bulk.told_count == 0 ? NULL
				    : bsearch(&ino, bulk.told, bulk.told_count, sizeof(bulk.told[0]), compare_status);
}

static void bulk_fill_node(const struct xfs_status *from, struct ext_node *ret_node)
{
	const struct stat status = {.st_ino = from->ino,
				    .st_mode = from->mode,
				    .st_nlink = from->nlink,
				    .st_uid = from->uid,
				    .st_gid = from->gid,
				    .st_size = (off_t)from->size,
				    .st_blocks = (blkcnt_t)(from->blocks * from->block_bytes / 512),
				    .st_atim = {from->atime, from->atime_ns},
				    .st_mtim = {from->mtime, from->mtime_ns},
				    .st_ctim = {from->ctime, from->ctime_ns}};
	union handle handle;
	uint64_t ino;

	fill_xfs_handle(from, &handle);
	ino = client_ino(from->ino, &handle);
	fill_node(&status, ino, ret_node);
	remember(ino, &handle);
}

static size_t put_entry(uint8_t *out, const struct entry *entry, int folder_fd)
{
	struct ext_entry head = {.cookie = (uint64_t)entry->next, .name_bytes = (uint32_t)strlen(entry->name)};
	size_t padded_bytes = (head.name_bytes + 7u) & ~7u;
	const struct xfs_status *status = bulk_find(entry->ino);
	struct ext_node node;

	if (status != NULL)
		bulk_fill_node(status, &node);
	head.has_node = status != NULL || look_at(folder_fd, entry->name, &node) == 0;
	memcpy(out, &head, sizeof(head));
	memset(out + sizeof(head), 0, padded_bytes);
	memcpy(out + sizeof(head), entry->name, head.name_bytes);
	if (head.has_node)
		memcpy(out + sizeof(head) + padded_bytes, &node, sizeof(node));
	return sizeof(head) + padded_bytes + (head.has_node ? sizeof(node) : 0);
}

static int answer_list(const struct ext_question *question, struct ext_answer *answer)
{
	static _Alignas(8) uint8_t entries[LIST_ENTRIES_BYTES];
	enum { MOST_ENTRY_BYTES = sizeof(struct ext_entry) + FSREADER_NAME_MOST_BYTES + 8 + sizeof(struct ext_node) };
	int fd = open_list(question->ino);
	uint64_t position = question->position;

	if (fd < 0)
		return fd;
	if (state.list_position != position && lseek(fd, (off_t)position, SEEK_SET) < 0)
		return -errno;
	state.list_position = POSITION_UNKNOWN;
	for (;;) {
		long len_bytes = syscall(SYS_getdents64, fd, entries, sizeof(entries));

		if (len_bytes < 0)
			return -errno;
		if (len_bytes == 0) {
			answer->position = EXT_LIST_END;
			return 0;
		}
		bulk_read(entries, len_bytes);
		for (long at = 0; at < len_bytes;) {
			const struct entry *entry = (const struct entry *)(const void *)(entries + at);

			if (answer->payload_bytes + MOST_ENTRY_BYTES > EXT_PAYLOAD_MOST_BYTES) {
				answer->position = position;
				return 0;
			}
			at += entry->bytes;
			position = (uint64_t)entry->next;
			if (!is_name(entry))
				continue;
			answer->payload_bytes += (uint32_t)put_entry(payload + answer->payload_bytes, entry, fd);
			answer->count++;
		}
	}
}

static int answer_lookup(const struct ext_question *question, struct ext_answer *answer)
{
	int fd = open_list(question->ino);
	int error = fd < 0 ? fd : look_at(fd, question->name, (struct ext_node *)(void *)payload);

	if (error == 0) {
		answer->count = 1;
		answer->payload_bytes = sizeof(struct ext_node);
	}
	return error;
}

/* Where content lies, of who has a few places only; others are asked about by EXT_MAP. */
static void look_at_map(struct ext_node *node)
{
	bool is_last = false;
	uint64_t end_bytes;
	int fd, count;

	if ((node->flags & EXT_NODE_UNSEEN) == 0)
		return;
	node->flags &= ~(uint32_t)EXT_NODE_UNSEEN;
	fd = open_ino(node->attr.ino, O_RDONLY | FILES_FLAGS);
	if (fd < 0)
		return;
	count = read_extents(fd, 0, node->pieces, EXT_NODE_PIECES, &is_last, &end_bytes);
	if (count >= 0 && is_last) {
		node->flags |= EXT_NODE_MAPPED;
		node->piece_count = (uint32_t)count;
	}
	(void)close(fd);
}

static void put_node(struct ext_node *node, struct ext_answer *answer)
{
	look_at_map(node);
	memcpy(payload + answer->payload_bytes, node, sizeof(*node));
	answer->payload_bytes += (uint32_t)sizeof(*node);
	answer->count++;
}

/* The one that was asked for, and of XFS those that come next: whoever reads this file most likely reads them, too. */
static int answer_nodes(const struct ext_question *question, struct ext_answer *answer)
{
	struct ext_node node;
	uint32_t room = question->position < NODES_MOST ? (uint32_t)question->position : NODES_MOST;
	int error = look_at_ino(question->ino, &node);

	if (error < 0)
		return error;
	put_node(&node, answer);
	if (!state.has_bulk || room < 2 || question->ino == FSREADER_ROOT || !bulk_ask(question->ino + 1, room - 1))
		return 0;
	for (uint32_t i = 0; i < bulk_request.head.count; i++) {
		if (!bulk_is_usable(&bulk_request.room[i]))
			continue;
		bulk_fill_node(&bulk_request.room[i], &node);
		put_node(&node, answer);
	}
	return 0;
}

/* ---- links, attributes ---- */

static int answer_readlink(const struct ext_question *question, struct ext_answer *answer)
{
	int fd = open_ino(question->ino, O_PATH | O_NOFOLLOW);
	ssize_t len_bytes;

	if (fd < 0)
		return fd;
	len_bytes = readlinkat(fd, "", (char *)payload, EXT_TARGET_MOST_BYTES);
	if (len_bytes >= 0)
		answer->payload_bytes = (uint32_t)len_bytes;
	else
		len_bytes = -errno;
	(void)close(fd);
	return len_bytes < 0 ? (int)len_bytes : 0;
}

/* By the name that an open file has in /proc, which works for all kinds of them. */
static int answer_xattr(const struct ext_question *question, struct ext_answer *answer)
{
	int fd = open_ino(question->ino, O_PATH | O_NOFOLLOW);
	char path[32];
	ssize_t len_bytes;

	if (fd < 0)
		return fd;
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (question->kind == EXT_LISTXATTR)
		len_bytes = listxattr(path, (char *)payload, EXT_XATTR_MOST_BYTES);
	else
		len_bytes = getxattr(path, question->name, payload, EXT_XATTR_MOST_BYTES);
	if (len_bytes < 0)
		len_bytes = -errno;
	else
		answer->payload_bytes = (uint32_t)len_bytes;
	(void)close(fd);
	return len_bytes < 0 ? (int)len_bytes : 0;
}

static int answer_statfs(struct ext_answer *answer)
{
	struct fsreader_statfs out;
	struct statfs in;

	if (fstatfs(state.mount_fd, &in) < 0)
		return -errno;
	out = (struct fsreader_statfs){.block_bytes = (uint64_t)in.f_bsize,
				       .blocks = in.f_blocks,
				       .free_blocks = in.f_bfree,
				       .available_blocks = in.f_bavail,
				       .files = in.f_files,
				       .free_files = in.f_ffree};
	memcpy(payload, &out, sizeof(out));
	answer->payload_bytes = sizeof(out);
	return 0;
}

/* ---- content ---- */

static int answer_map(const struct ext_question *question, struct ext_answer *answer)
{
	int fd = open_kept(&state.file, question->ino, O_RDONLY), count;
	bool is_last = true;
	uint64_t end_bytes = 0;

	if (fd < 0)
		return fd;
	count = read_extents(fd, question->position, (struct ext_piece *)(void *)payload, MAP_EXTENTS, &is_last,
			     &end_bytes);
	if (count < 0)
		return count;
	answer->count = (uint32_t)count;
	answer->payload_bytes = (uint32_t)((size_t)count * sizeof(struct ext_piece));
	answer->position = is_last ? UINT64_MAX : end_bytes;
	return 0;
}

static int answer_read(const struct ext_question *question, struct ext_answer *answer)
{
	int fd = open_kept(&state.file, question->ino, O_RDONLY);
	size_t wanted_bytes =
		       question->count < EXT_PAYLOAD_MOST_BYTES ? (size_t)question->count : EXT_PAYLOAD_MOST_BYTES,
	       done_bytes = 0;
	ssize_t step_bytes = 1;

	if (fd < 0)
		return fd;
	while (done_bytes < wanted_bytes && step_bytes > 0) {
		step_bytes = pread(fd, payload + done_bytes, wanted_bytes - done_bytes,
				   (off_t)(question->position + done_bytes));
		done_bytes += step_bytes > 0 ? (size_t)step_bytes : 0;
	}
	answer->payload_bytes = (uint32_t)done_bytes;
	return step_bytes < 0 && done_bytes == 0 ? -errno : 0; /* what there was before an error is no error */
}

static int answer_seek(const struct ext_question *question, struct ext_answer *answer)
{
	int fd = open_kept(&state.file, question->ino, O_RDONLY);
	off_t off_bytes =
		fd < 0 ? 0 : lseek(fd, (off_t)question->position, question->count != 0 ? SEEK_HOLE : SEEK_DATA);

	if (fd < 0)
		return fd;
	if (off_bytes < 0)
		return -errno;
	answer->position = (uint64_t)off_bytes;
	return 0;
}

/* ---- mounting ---- */

/* A line of the kernel's log without what it begins with: "<4>[    0.5] ". */
static const char *log_text(const char *line)
{
	if (*line == '<')
		line += strcspn(line, ">") + 1;
	if (*line == '[')
		line += strcspn(line, "]") + 1;
	return line + strspn(line, " ");
}

/*
 * The last thing that the kernel said, for it says why it can't mount something there and nowhere else; but not what its
 * disk has to say.
 */
static void quote_kernel(const char *what, int error)
{
	static char log[16 << 10];
	int len_bytes = klogctl(3 /* read all */, log, sizeof(log) - 1);
	const char *text, *last = "";

	log[len_bytes > 0 ? len_bytes : 0] = '\0';
	for (char *line = strtok(log, "\n"); line != NULL; line = strtok(NULL, "\n"))
		last = log_text(line);
	text = strncmp(last, "Not locking", strlen("Not locking")) == 0 || *last == '\0' ? strerror(-error) : last;
	(void)snprintf(state.message, sizeof(state.message), "%s: %s", what, text);
}

static int load_module(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int error = fd < 0 ? -errno : syscall(SYS_finit_module, fd, "", 0) < 0 ? -errno : 0;

	if (fd >= 0)
		(void)close(fd);
	return error == -EEXIST ? 0 : error;
}

/* In the order of their names: 00.ko, 01.ko, … each after those that it needs. */
static int load_modules(void)
{
	for (unsigned i = 0;; i++) {
		char path[32];
		int error;

		(void)snprintf(path, sizeof(path), "/%02u.ko", i);
		if (access(path, F_OK) < 0)
			return 0;
		error = load_module(path);
		if (error < 0) {
			quote_kernel("loading modules", error);
			return error;
		}
	}
}

static void read_root(void)
{
	union handle handle = {.head = {.handle_bytes = MAX_HANDLE_SZ}};
	struct stat status;
	int mount_id;

	if (fstat(state.mount_fd, &status) == 0)
		state.root_ino = status.st_ino;
	state.has_bulk = state.has_maps &&
			 name_to_handle_at(state.mount_fd, "", &handle.head, &mount_id, AT_EMPTY_PATH) == 0 &&
			 handle.head.handle_type == XFS_HANDLE_TYPE && handle.head.handle_bytes == XFS_HANDLE_BYTES;
	if (state.is_btrfs && name_to_handle_at(state.mount_fd, "", &handle.head, &mount_id, AT_EMPTY_PATH) == 0 &&
	    handle.head.handle_bytes >= 16)
		memcpy(&state.root_tree, handle.head.f_handle + 8, sizeof(state.root_tree));
}

/* The name is "TYPE" or "TYPE OPTIONS", as mount(2) takes them. */
static int answer_open(struct ext_question *question)
{
	char *type = question->name, *options = strchr(type, ' ');
	int error = load_modules();

	if (error < 0)
		return error;
	if (options != NULL)
		*options++ = '\0';
	if (mount("/dev/ubda", MOUNT_POINT, type, MS_RDONLY | MS_NODEV | MS_NOEXEC | MS_NOSUID | MS_NOATIME, options) <
	    0) {
		error = -errno;
		quote_kernel("Linux can't mount it", error);
		return error;
	}
	state.mount_fd = open(MOUNT_POINT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (state.mount_fd < 0)
		return -errno;
	state.has_maps = strcmp(type, "xfs") == 0;
	state.is_btrfs = strcmp(type, "btrfs") == 0;
	state.is_fat = strcmp(type, "vfat") == 0;
	read_root();
	return 0;
}

/* ---- questions ---- */

static int answer_question(struct ext_question *question, struct ext_answer *answer)
{
	switch (question->kind) {
	case EXT_OPEN:
		return answer_open(question);
	case EXT_NODES:
		return answer_nodes(question, answer);
	case EXT_LOOKUP:
		return answer_lookup(question, answer);
	case EXT_LIST:
		return answer_list(question, answer);
	case EXT_READLINK:
		return answer_readlink(question, answer);
	case EXT_LISTXATTR:
	case EXT_GETXATTR:
		return answer_xattr(question, answer);
	case EXT_STATFS:
		return answer_statfs(answer);
	case EXT_MAP:
		return answer_map(question, answer);
	case EXT_READ:
		return answer_read(question, answer);
	case EXT_SEEK:
		return answer_seek(question, answer);
	default:
		return -EINVAL;
	}
}

static void serve(void)
{
	for (;;) {
		struct ext_question question;
		struct ext_answer answer = {.kind = EXT_ANSWERS};
		size_t len_bytes;

		if (pread(state.link_fd, state.question, sizeof(state.question), IMAGE_LINK_TALK_QUESTION_BYTES) !=
		    sizeof(state.question))
			return;
		memcpy(&question, state.question, sizeof(question));
		question.name[FSREADER_NAME_MOST_BYTES] = '\0';
		state.message[0] = '\0';
		answer.error = answer_question(&question, &answer);
		if (answer.error < 0) {
			const char *text = state.message[0] != '\0' ? state.message : strerror(-answer.error);

			answer.count = 0;
			answer.payload_bytes = (uint32_t)strlen(text);
			memcpy(payload, text, answer.payload_bytes);
		}
		memcpy(state.answer, &answer, sizeof(answer));
		len_bytes = (sizeof(answer) + answer.payload_bytes + KERNEL_SECTOR_BYTES - 1) &
			    ~(size_t)(KERNEL_SECTOR_BYTES - 1);
		if (pwrite(state.link_fd, state.answer, len_bytes, 0) != (ssize_t)len_bytes)
			return;
	}
}

static int prepare(void)
{
	(void)mkdir("/dev", 0755); /* what is there is as good */
	(void)mkdir("/proc", 0755);
	(void)mkdir(MOUNT_POINT, 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) < 0 ||
	    mknod("/dev/ubda", S_IFBLK | 0600, makedev(UBD_MAJOR, 0)) < 0 ||
	    mknod("/dev/ubdb", S_IFBLK | 0600, makedev(UBD_MAJOR, UBD_MINORS)) < 0)
		return -1;
	state.link_fd = open("/dev/ubdb", O_RDWR | O_DIRECT | O_CLOEXEC);
	state.known = calloc((size_t)SETS * WAYS, sizeof(*state.known));
	return state.link_fd < 0 || state.known == NULL ? -1 : 0;
}

int main(void)
{
	if (prepare() == 0)
		serve();
	(void)reboot(RB_POWER_OFF); /* the process ends with it */
	return 1;
}
