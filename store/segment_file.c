/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A segment's file and the header in front of it.
 *
 * The header ties a file to its place: a segment that was copied in from another store, or renamed to another number,
 * would hand out other bytes for a record that the catalog names. Records are checked one by one all the same (their
 * checksums, and a deep check their digests), but checksums alone can't tell one valid record from another.
 */
#include "store/segment_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/own_file.h"

enum {
	AT_MAGIC = 0,
	AT_VERSION = 8,
	AT_NUMBER = 12,
	AT_STORE_ID = 16,
	AT_CREATED = 32,
	AT_RESERVED = 40,
	AT_CHECKSUM = 56,
	FORMAT_VERSION = 1,
};

static const uint8_t segment_magic[8] = {'w', 'h', 'e', 'r', 'r', 'y', 'S', 'G'};

void segment_folder(uint32_t number, char ret_folder[SEGMENT_FOLDER_BYTES])
{
	(void)snprintf(ret_folder, SEGMENT_FOLDER_BYTES, "%02x", (unsigned int)(number & 0xff));
}

void segment_path(uint32_t number, char ret_path[SEGMENT_PATH_BYTES])
{
	(void)snprintf(ret_path, SEGMENT_PATH_BYTES, "%02x/%08" PRIx32 ".seg", (unsigned int)(number & 0xff), number);
}

void segment_block_encode(const uint8_t store_id[STORE_ID_BYTES], uint32_t number, uint64_t created_seconds,
			  uint8_t ret_block[SEGMENT_BLOCK_BYTES])
{
	memset(ret_block, 0, SEGMENT_BLOCK_BYTES);
	memcpy(ret_block + AT_MAGIC, segment_magic, sizeof(segment_magic));
	bytes_put_le32(ret_block + AT_VERSION, FORMAT_VERSION);
	bytes_put_le32(ret_block + AT_NUMBER, number);
	memcpy(ret_block + AT_STORE_ID, store_id, STORE_ID_BYTES);
	bytes_put_le64(ret_block + AT_CREATED, created_seconds);
	bytes_put_le64(ret_block + AT_CHECKSUM, XXH3_64bits(ret_block, AT_CHECKSUM));
}

int segment_file_open(int segments_fd, uint32_t number, int flags, int *ret_fd, struct failure *failure)
{
	char folder[SEGMENT_FOLDER_BYTES];
	char path[SEGMENT_PATH_BYTES];
	int fd;

	segment_folder(number, folder);
	segment_path(number, path);
	AUTO_CLOSE int folder_fd = own_folder_open(segments_fd, folder);
	fd = folder_fd < 0 ? folder_fd : own_file_open(folder_fd, path + SEGMENT_FOLDER_BYTES, flags, 0640);
	if (fd == -ENOENT)
		return fail(failure, -ENOENT, "segment %08" PRIx32 ": its file segments/%s is missing", number, path);
	if (fd == -EBADMSG)
		return fail(failure, -EBADMSG, "segment %08" PRIx32 ": segments/%s: " OWN_FILE_FLAW, number,
			    folder_fd < 0 ? folder : path);
	if (fd < 0)
		return fail_errno(failure, fd, "segment %08" PRIx32 ": open segments/%s", number, path);
	*ret_fd = fd;
	return 0;
}

ssize_t segment_file_read(int fd, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	size_t done_bytes = 0;

	if (off_bytes > INT64_MAX - (uint64_t)SSIZE_MAX / 2 || len_bytes > (size_t)SSIZE_MAX / 2)
		return -EINVAL;
	while (done_bytes < len_bytes) {
		ssize_t got_bytes = pread(fd, (uint8_t *)buffer + done_bytes, len_bytes - done_bytes,
					  (off_t)(off_bytes + done_bytes));

		if (got_bytes < 0 && errno == EINTR)
			continue;
		if (got_bytes < 0)
			return -errno;
		if (got_bytes == 0)
			break;
		done_bytes += (size_t)got_bytes;
	}
	return (ssize_t)done_bytes;
}

/* NULL when all is well. */
static const char *find_header_flaw(const uint8_t header[SEGMENT_HEADER_BYTES], const uint8_t store_id[STORE_ID_BYTES],
				    uint32_t number)
{
	if (memcmp(header + AT_MAGIC, segment_magic, sizeof(segment_magic)) != 0)
		return "bad magic";
	if (bytes_get_le64(header + AT_CHECKSUM) != XXH3_64bits(header, AT_CHECKSUM))
		return "header checksum";
	if (bytes_get_le32(header + AT_VERSION) != FORMAT_VERSION)
		return "its format version is not known to this program";
	if (memcmp(header + AT_STORE_ID, store_id, STORE_ID_BYTES) != 0)
		return "it belongs to another store";
	if (bytes_get_le32(header + AT_NUMBER) != number)
		return "it is another segment under this name";
	if (!bytes_are_zero(header + AT_RESERVED, AT_CHECKSUM - AT_RESERVED))
		return "reserved bytes are not zero";
	return NULL;
}

int segment_file_check_header(int fd, const uint8_t store_id[STORE_ID_BYTES], uint32_t number, struct failure *failure)
{
	uint8_t header[SEGMENT_HEADER_BYTES];
	ssize_t got_bytes = segment_file_read(fd, header, sizeof(header), 0);
	const char *flaw;

	if (got_bytes < 0)
		return fail_errno(failure, (int)got_bytes, "segment %08" PRIx32 ": read of its header", number);
	if (got_bytes < SEGMENT_HEADER_BYTES)
		return fail(failure, -EBADMSG, "segment %08" PRIx32 ": the file ends inside its header", number);
	flaw = find_header_flaw(header, store_id, number);
	if (flaw != NULL)
		return fail(failure, -EBADMSG, "segment %08" PRIx32 ": %s", number, flaw);
	return 0;
}
