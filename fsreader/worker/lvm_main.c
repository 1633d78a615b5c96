/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The job of parsing LVM's metadata: one question (lvm_wire.h), one answer, for lvm.c.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "fsreader/lvm_group.h"
#include "fsreader/lvm_wire.h"
#include "fsreader/worker/lvm_worker.h"

static int read_all(int socket, void *buffer, size_t len_bytes)
{
	uint8_t *at = buffer;

	while (len_bytes > 0) {
		ssize_t done = read(socket, at, len_bytes);

		if (done == 0)
			return -EPIPE;
		if (done < 0 && errno != EINTR)
			return -errno;
		if (done > 0) {
			at += done;
			len_bytes -= (size_t)done;
		}
	}
	return 0;
}

static int write_all(int socket, const void *buffer, size_t len_bytes)
{
	const uint8_t *at = buffer;

	while (len_bytes > 0) {
		ssize_t done = write(socket, at, len_bytes);

		if (done < 0 && errno != EINTR)
			return -errno;
		if (done > 0) {
			at += done;
			len_bytes -= (size_t)done;
		}
	}
	return 0;
}

static int read_number(int socket, uint32_t *ret_number)
{
	uint8_t bytes[4];
	int error = read_all(socket, bytes, sizeof(bytes));

	*ret_number = error < 0 ? 0 : bytes_get_le32(bytes);
	return error;
}

static void release_uuids(struct lvm_present *present)
{
	free((void *)present->uuids);
}

static int read_present(int socket, struct lvm_present *ret_present)
{
	char(*uuids)[LVM_UUID_BYTES];
	uint32_t count;
	int error = read_number(socket, &count);

	if (error < 0 || count > LVM_MOST_SOURCES)
		return error < 0 ? error : -EINVAL;
	uuids = calloc(count + 1, sizeof(*uuids));
	if (uuids == NULL)
		return -ENOMEM;
	ret_present->uuids = (const char(*)[LVM_UUID_BYTES])uuids;
	ret_present->count = count;
	for (uint32_t i = 0; i < count && error == 0; i++)
		error = read_all(socket, uuids[i], LVM_UUID_BYTES - 1);
	return error;
}

static int parse(const char *text, size_t len_bytes, const struct lvm_present *present, struct byte_writer *writer,
		 struct failure *failure)
{
	struct lvm_text *tree = NULL;
	struct lvm_group *group = NULL;
	int error = lvm_text_parse(text, len_bytes, &tree, failure);

	if (error == 0)
		error = lvm_group_read(tree, present, &group, failure);
	lvm_text_free(tree);
	if (error == 0)
		lvm_wire_put_group(writer, group);
	lvm_group_free(group);
	return error;
}

static int answer(int socket, const struct lvm_present *present, const char *text, size_t len_bytes)
{
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	struct failure failure = {.code = 0};
	uint8_t length[4];
	int error;

	byte_writer_varint(&writer, 0);
	error = parse(text, len_bytes, present, &writer, &failure);
	if (error < 0) {
		byte_writer_free(&writer);
		byte_writer_varint(&writer, (uint64_t)-error);
		byte_writer_string(&writer, failure.message);
	}
	if (writer.failed || writer.len_bytes > LVM_WIRE_MOST_BYTES)
		return -ENOMEM;
	bytes_put_le32(length, (uint32_t)writer.len_bytes);
	error = write_all(socket, length, sizeof(length));
	return error < 0 ? error : write_all(socket, writer.data, writer.len_bytes);
}

static int serve(int socket)
{
	AUTO(release_uuids) struct lvm_present present = {.count = 0};
	AUTO_FREE char *text = NULL;
	uint32_t len_bytes = 0;
	int error = read_present(socket, &present);

	if (error == 0)
		error = read_number(socket, &len_bytes);
	if (error < 0 || len_bytes > LVM_TEXT_MOST_BYTES)
		return error < 0 ? error : -E2BIG;
	text = malloc(len_bytes + (size_t)1);
	if (text == NULL)
		return -ENOMEM;
	error = read_all(socket, text, len_bytes);
	return error < 0 ? error : answer(socket, &present, text, len_bytes);
}

int lvm_main(int socket)
{
	return serve(socket) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
