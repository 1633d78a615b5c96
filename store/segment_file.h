/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What writer, reader and walk of segments share: the name of a segment's file, its header, and reads that end only at
 * the end of the file. For these three alone; everybody else includes segment.h.
 */
#ifndef WHERRY_STORE_SEGMENT_FILE_H
#define WHERRY_STORE_SEGMENT_FILE_H

#include <stdint.h>
#include <sys/types.h>

#include "common/failure.h"
#include "store/segment.h"

enum { SEGMENT_FOLDER_BYTES = sizeof("ab"), SEGMENT_PATH_BYTES = sizeof("ab/000001ab.seg") };

void segment_folder(uint32_t number, char ret_folder[SEGMENT_FOLDER_BYTES]);
void segment_path(uint32_t number, char ret_path[SEGMENT_PATH_BYTES]); /* below STORE/segments */

/* The first block of a segment: the header and zeros. */
void segment_block_encode(const uint8_t store_id[STORE_ID_BYTES], uint32_t number, uint64_t created_seconds,
			  uint8_t ret_block[SEGMENT_BLOCK_BYTES]);

/* -ENOENT (missing), -EBADMSG (no plain file of the store), and all others with a message. */
int segment_file_open(int segments_fd, uint32_t number, int flags, int *ret_fd, struct failure *failure);

/* Reads the header and checks it. -EBADMSG when damaged, of another store or number, or of a version not known. */
int segment_file_check_header(int fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number, struct failure *failure);

/* How many bytes there were: less than len_bytes at the end of the file only. Or a negative errno. */
ssize_t segment_file_read(int fd, void *buffer, size_t len_bytes, uint64_t off_bytes);

#endif
