/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Content of a file of an ext2/3/4, read from the source by whoever wants it. For ext_client.c only.
 */
#ifndef WHERRY_FSREADER_EXT_FILE_H
#define WHERRY_FSREADER_EXT_FILE_H

#include "fsreader/ext_link.h"

struct ext_file;

/* `node` is checked, and of a regular file. */
int ext_file_open(struct ext_link *link, const struct ext_node *node, struct ext_file **ret_file,
		  struct failure *failure);
void ext_file_close(struct ext_file *file); /* NULL is fine */

/* As in engine.h: what is behind the end isn't read; any thread. */
int ext_file_read(struct ext_file *file, void *buffer, size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes,
		  struct failure *failure);
int ext_file_seek(struct ext_file *file, uint64_t off_bytes, bool wants_hole, uint64_t *ret_off_bytes,
		  struct failure *failure);

#endif
