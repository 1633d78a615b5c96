/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files in a file system that lies in an image, read without root and without the kernel's file system code.
 *
 * Images come from other people's servers, so what they hold may be made to break whoever parses it. The parser
 * therefore runs in a process of its own with nothing to lose: no network, no files, no privileges, bounded memory and
 * time (sandbox.h). It asks us for bytes of the image and answers questions about files. Whatever it answers is checked
 * here; when it crashes, or answers nothing for too long, the question fails with -EIO, and the next one starts it anew
 * (a bounded number of times).
 *
 * Engines (engine.h) stand behind this: ext2/3/4 by libext2fs; xfs, btrfs, vfat and others by a user-mode Linux; ntfs by
 * lowntfs-3g; what is left by grub-mount, which also serves where there is no such Linux.
 *
 *     struct fsreader *reader;                       struct fsreader_file *file;
 *     fsreader_start(&source, "ext4", …, &reader);   fsreader_lookup(reader, FSREADER_ROOT, "etc", &attr, …);
 *     …                                              fsreader_open(reader, attr.ino, &file, …); fsreader_read(file, …);
 *     fsreader_stop(reader);                         fsreader_close(file);
 *
 * Common to all: 0 or a negative errno with a message; outputs untouched on failure; any thread. -EIO: damage, a lie, a
 * crash; -ENOENT, -ENOTDIR, -EISDIR, -ENODATA, -ERANGE, -ENOTSUP as the system calls of that kind have them. -ESTALE:
 * no such inode.
 */
#ifndef WHERRY_FSREADER_FSREADER_H
#define WHERRY_FSREADER_FSREADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "common/failure.h"

/* Where the file system lies. Borrowed until fsreader_stop(); called from any thread, several at once. Ranges are
 * checked before. */
struct fsreader_source {
	int (*read)(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure);
	void *opaque;
	uint64_t size_bytes;
	uint32_t sector_bytes;
};

struct fsreader_options {
	const char *what; /* for messages: "web01@3/2"; copied */
	/* For engines that have to write what a journal has: an unlinked file. ext4's is read in place. NULL: $TMPDIR, else
	 * /var/tmp */
	const char *scratch_dir;
	unsigned timeout_seconds;      /* of one question, without the time that `source` takes; 0: 60 */
	const struct notices *notices; /* may be NULL; must outlive the reader */
};

struct fsreader;

enum { FSREADER_NAME_MOST_BYTES = 255 };
#define FSREADER_ROOT ((uint64_t)1) /* of every file system, whatever number its root has inside */

/* Is there an engine for what libblkid calls `type`, and are the programs it needs here? -ENOTSUP says in one line why
 * not, and what to do. */
int fsreader_check_type(const char *type, struct failure *failure);

/* Starts the process, and reads what there is to read before the first question (where an ext4's journal
 * has newer blocks). */
int fsreader_start(const struct fsreader_source *source, const char *type, const struct fsreader_options *options,
		   struct fsreader **ret_reader, struct failure *failure);
void fsreader_stop(struct fsreader *reader); /* all files closed before; the process is gone on return; NULL is fine */

struct fsreader_attr {
	uint64_t ino;  /* FSREADER_ROOT for the root; else the file system's own number; the same over restarts */
	uint32_t mode; /* with the type */
	uint32_t nlink, uid, gid;
	uint32_t rdev_major, rdev_minor;
	uint64_t size_bytes;
	uint64_t allocated_bytes;
	struct timespec atime, mtime, ctime;
};

int fsreader_getattr(struct fsreader *reader, uint64_t ino, struct fsreader_attr *ret_attr, struct failure *failure);
int fsreader_lookup(struct fsreader *reader, uint64_t dir, const char *name, struct fsreader_attr *ret_attr,
		    struct failure *failure);

/*
 * The entries of a directory behind `cookie` (0: from the start), "." and ".." left out, in an order that doesn't
 * change. `found` ends it by returning != 0, which is returned; `cookie` of an entry continues behind it. Names hold
 * neither '/' nor NUL. An entry whose inode can't be read has attr->ino and attr->mode of 0.
 */
typedef int fsreader_found(void *opaque, const char *name, const struct fsreader_attr *attr, uint64_t cookie);
int fsreader_list(struct fsreader *reader, uint64_t dir, uint64_t cookie, fsreader_found *found, void *opaque,
		  struct failure *failure);

/* Caller frees the string, which is NUL-terminated. */
int fsreader_readlink(struct fsreader *reader, uint64_t ino, char **ret_target, struct failure *failure);

/* Names one after the other, each with its NUL, as listxattr(2) has them; caller frees. POSIX ACLs are given as
 * system.posix_acl_…, in the kernel's format. */
int fsreader_listxattr(struct fsreader *reader, uint64_t ino, char **ret_names, size_t *ret_len_bytes,
		       struct failure *failure);
int fsreader_getxattr(struct fsreader *reader, uint64_t ino, const char *name, void **ret_value, size_t *ret_len_bytes,
		      struct failure *failure);

struct fsreader_statfs {
	uint64_t block_bytes, blocks, free_blocks, available_blocks, files, free_files;
};
int fsreader_statfs(struct fsreader *reader, struct fsreader_statfs *ret_statfs, struct failure *failure);

/* ---- content ---- */

struct fsreader_file;

/* Regular files only: -EISDIR, -EINVAL. What it costs is one question at most; content of mapped files is read from
 * `source` by the caller's thread. */
int fsreader_open(struct fsreader *reader, uint64_t ino, struct fsreader_file **ret_file, struct failure *failure);
void fsreader_close(struct fsreader_file *file); /* NULL is fine */

/* What lies behind the end is not read: *ret_len_bytes. */
int fsreader_read(struct fsreader_file *file, void *buffer, size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes,
		  struct failure *failure);
/* As lseek(2) with SEEK_DATA, SEEK_HOLE: -ENXIO behind the last data, or the end. An engine that can't tell says that
 * all is data. */
int fsreader_seek(struct fsreader_file *file, uint64_t off_bytes, bool wants_hole, uint64_t *ret_off_bytes,
		  struct failure *failure);

#endif
