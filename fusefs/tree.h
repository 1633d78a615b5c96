/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A store as a tree of folders and files, for whoever mounts one. Knows nothing of FUSE.
 *
 *     web01/                            a disk
 *           disk.raw                    its live content
 *           part/1.raw …                the partitions of that
 *           layout                      their table, as sfdisk prints it
 *           images/latest -> 3
 *                  3/disk.raw, part/, layout
 *                    info.json          what "wherry images --json" says of it
 *                    lv/VG/LV.raw       logical volumes, where there are some
 *                    files/2/…          the files in partition 2; in "disk", of a disk without partitions; in VG/LV, of
 * a logical volume
 *
 * A node is a thing in this tree that somebody knows about. It is found by name from the one above, counted by who was
 * given it, and given back by tree_forget(). The same thing is the same node as long as it is known, by whatever way it
 * is found: two names of a file inside of an image, too. Its inode number is made of what it is, and so the same after
 * another mount.
 *
 * What can't change (anything in an image) may be remembered by who asks for as long as he likes; all else for a
 * second, and names that were not there not at all: `entry_seconds` and `attr_seconds` say so.
 *
 * Any thread. 0 or a negative errno, with a message unless it is -ENOENT or the like, as they come when somebody just
 * tries names; outputs untouched on failure.
 */
#ifndef WHERRY_FUSEFS_TREE_H
#define WHERRY_FUSEFS_TREE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>

#include "common/failure.h"

struct tree_options {
	const char *store_path; /* borrowed, like the others here, until tree_close() */
	const char *only;	/* a disk: no other is shown; NULL: all are */
	const char *root;  /* a path in the tree, which becomes its root: "web01/images/3/files/2"; NULL: all of it */
	bool read_only;	   /* nothing can be written to */
	bool write_mirror; /* live disks that rounds write to can be */
	bool scratch;	   /* images can be: into overlays that last until tree_close() */
	uint64_t cache_bytes;
	/* Whose all of it is. Files inside of images have their own owners, unless is_all_ours says that they are shown
	 * as ours as well, and may be read by us whatever their modes say: as owner (has_uid), as group (has_gid). */
	uid_t uid;
	gid_t gid;
	bool has_uid, has_gid;
	mode_t umask;	  /* taken from the modes of disks, images and folders */
	bool guards_root; /* owner and mode of the root are ours even where it is a folder inside of an image: nobody
			     else gets in */
	const struct notices *notices; /* may be NULL */
};

/* Whether that can be shown, as far as can be told before a fork. Leaves nothing open and no thread. */
int tree_check(const struct tree_options *options, struct failure *failure);

struct tree;
int tree_open(const struct tree_options *options, struct tree **ret_tree, struct failure *failure);
/* Nobody uses it any more. Closes what is still open, and puts everything in its place; what could not be is a notice.
 * NULL is fine. */
void tree_close(struct tree *tree);

struct node;
struct node *tree_root(struct tree *tree); /* counted by the tree: not to be forgotten */

/* What is found, or asked about. */
struct found {
	struct node *node;
	struct stat stat;
	double entry_seconds, attr_seconds; /* TREE_FOREVER: it can't change */
};
#define TREE_FOREVER 1e9

int tree_getattr(struct tree *tree, struct node *node, struct found *ret_found, struct failure *failure);
/* The node is the caller's, once, until tree_forget(). -ENOENT; *ret_is_forever then says whether it never will be
 * there either. */
int tree_lookup(struct tree *tree, struct node *folder, const char *name, struct found *ret_found, bool *ret_is_forever,
		struct failure *failure);
void tree_forget(struct tree *tree, struct node *node, uint64_t count);
/* Told apart from an earlier node that had the same address. */
uint64_t node_generation(const struct node *node);

/* Caller frees. */
int tree_readlink(struct tree *tree, struct node *node, char **ret_target, struct failure *failure);
/* As in fsreader.h; -ENOTSUP where there are none. */
int tree_listxattr(struct tree *tree, struct node *node, char **ret_names, size_t *ret_len_bytes,
		   struct failure *failure);
int tree_getxattr(struct tree *tree, struct node *node, const char *name, void **ret_value, size_t *ret_len_bytes,
		  struct failure *failure);
int tree_statfs(struct tree *tree, struct node *node, struct statvfs *ret_statfs, struct failure *failure);
bool tree_is_of_image(const struct node *node); /* which never changes */
bool tree_is_writable(struct tree *tree, struct node *node);
/* Files have the size that they have. 0: it is this one; else -EPERM or -EROFS, with a message. */
int tree_check_size(struct tree *tree, struct node *node, uint64_t size_bytes, struct failure *failure);

/* ---- listings ---- */

/*
 * A folder that is being listed. One thread at a time. What is held open meanwhile is as in a file that is open.
 */
struct listing;
int listing_open(struct tree *tree, struct node *folder, struct listing **ret_listing, struct failure *failure);
void listing_close(struct listing *listing);		/* NULL is fine */
bool listing_is_forever(const struct listing *listing); /* it will always be the same */

struct listed {
	const char *name; /* valid until the next call */
	uint64_t cookie;  /* continues behind it; 1 … INT64_MAX - 8 */
	ino_t ino;
	mode_t type; /* S_IFMT bits */
};
/* The entry behind `cookie`, 0: the first. *ret_listed is NULL at the end. A cookie of 0 looks anew. */
int listing_next(struct listing *listing, uint64_t cookie, const struct listed **ret_listed, struct failure *failure);
/*
 * The same as tree_lookup() of what listing_next() just gave, and much cheaper. -EAGAIN: that would take long, or it
 * can't be told: the caller looks it up if he must.
 */
int listing_take(struct listing *listing, struct found *ret_found);

/* ---- files ---- */

struct file;
/* -EROFS with a message; -EBUSY: a live disk that somebody else has, by whom. */
int file_open(struct tree *tree, struct node *node, bool write, struct file **ret_file, struct failure *failure);
/* Durable is what was flushed; a live disk's last file waits until all is in place. The file is gone in any case. NULL
 * is fine. */
int file_close(struct file *file, struct failure *failure);

/* How its content may be remembered by who reads it. */
enum file_caching {
	FILE_CACHE_FOREVER,    /* it never changes */
	FILE_CACHE_WHILE_OPEN, /* by nobody else while it is open; what was remembered before may be old */
	FILE_CACHE_NEVER,      /* and its size isn't known before it was read to the end */
};
enum file_caching file_caching(const struct file *file);

/*
 * Whether the beginning of this file is to be put into the kernel's page cache while it is being opened, which saves a small file all further questions.
 * True once for a node, for who opens it first, and that one calls file_end_giving() before he says that it is open. All who open it meanwhile wait here:
 * a page that somebody is already reading would be locked until that is answered, by a thread that may be waiting for the page.
 */
bool file_begin_giving(struct file *file);
void file_end_giving(struct file *file);

/* What lies behind the end is not read: *ret_len_bytes. */
int file_read(struct file *file, void *buffer, size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes,
	      struct failure *failure);
/* A file's size is what it is: -ENOSPC at the end, and *ret_len_bytes less than asked for when some of it fits.
 * `durable`: it is, on return. */
int file_write(struct file *file, const void *buffer, size_t len_bytes, uint64_t off_bytes, bool durable,
	       size_t *ret_len_bytes, struct failure *failure);
/* Of what lies in the file. `punch`: may become a hole. */
int file_zero(struct file *file, uint64_t off_bytes, uint64_t len_bytes, bool punch, struct failure *failure);
int file_check_end(const struct file *file, uint64_t end_bytes, struct failure *failure); /* -EPERM: beyond its end */
int file_flush(struct file *file, struct failure *failure);				  /* R1 */
/* As lseek(2) with SEEK_DATA and SEEK_HOLE. -ENXIO */
int file_seek(struct file *file, uint64_t off_bytes, bool wants_hole, uint64_t *ret_off_bytes, struct failure *failure);

#endif
