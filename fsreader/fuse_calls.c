/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers are copied out of the message, whose bytes lie as they came, and checked for what can be checked here: lengths, names.
 */
#include "fsreader/fuse_calls.h"

#include <errno.h>
#include <string.h>

/* Before version 7.9 an attribute had no block size, at its end. */
enum { OLD_ATTR_BYTES = 80, NEW_ATTR_BYTES = 88 };

bool fuse_handle_is_open(const struct fuse_peer *peer, const struct fuse_handle *handle)
{
	return handle->generation != 0 && fuse_peer_is_alive(peer) && handle->generation == fuse_peer_generation(peer);
}

int fuse_call_lookup(struct fuse_peer *peer, uint64_t folder, const char *name, struct fuse_entry_out *ret_entry,
		     struct failure *failure)
{
	const struct fuse_question question = {
		.opcode = FUSE_LOOKUP, .node = folder, .head = name, .head_bytes = strlen(name) + 1};
	size_t old_bytes = sizeof(*ret_entry) - (NEW_ATTR_BYTES - OLD_ATTR_BYTES), len_bytes;
	struct fuse_entry_out entry = {.nodeid = 0};
	const void *data;
	int error = fuse_peer_ask(peer, &question, old_bytes, sizeof(entry), &data, &len_bytes, failure);

	if (error < 0)
		return error;
	memcpy(&entry, data, len_bytes);
	*ret_entry = entry;
	return entry.nodeid == 0 ? -ENOENT : 0; /* 0: it isn't there, and that may be kept */
}

int fuse_call_getattr(struct fuse_peer *peer, uint64_t node, struct fuse_attr *ret_attr, struct failure *failure)
{
	const struct fuse_getattr_in in = {.getattr_flags = 0};
	const struct fuse_question question = {
		.opcode = FUSE_GETATTR, .node = node, .head = &in, .head_bytes = sizeof(in)};
	struct fuse_attr_out out = {.attr_valid = 0};
	size_t old_bytes = sizeof(out) - (NEW_ATTR_BYTES - OLD_ATTR_BYTES), len_bytes;
	const void *data;
	int error = fuse_peer_ask(peer, &question, old_bytes, sizeof(out), &data, &len_bytes, failure);

	if (error < 0)
		return error;
	memcpy(&out, data, len_bytes);
	*ret_attr = out.attr;
	return 0;
}

int fuse_call_open(struct fuse_peer *peer, bool is_folder, uint64_t node, struct fuse_handle *ret_handle,
		   struct failure *failure)
{
	const struct fuse_open_in in = {.flags = 0};
	const struct fuse_question question = {
		.opcode = is_folder ? FUSE_OPENDIR : FUSE_OPEN, .node = node, .head = &in, .head_bytes = sizeof(in)};
	struct fuse_open_out out;
	const void *data;
	size_t len_bytes;
	int error = fuse_peer_ask(peer, &question, sizeof(out), sizeof(out), &data, &len_bytes, failure);

	if (error < 0)
		return error;
	memcpy(&out, data, sizeof(out));
	*ret_handle = (struct fuse_handle){.node = node, .handle = out.fh, .generation = fuse_peer_generation(peer)};
	return 0;
}

void fuse_call_release(struct fuse_peer *peer, bool is_folder, struct fuse_handle *handle)
{
	const struct fuse_release_in in = {.fh = handle->handle};
	const struct fuse_question question = {.opcode = is_folder ? FUSE_RELEASEDIR : FUSE_RELEASE,
					       .node = handle->node,
					       .head = &in,
					       .head_bytes = sizeof(in)};
	size_t len_bytes;

	if (fuse_handle_is_open(peer, handle))
		(void)fuse_peer_ask(peer, &question, 0, 0, NULL, &len_bytes, NULL);
	handle->generation = 0;
}

int fuse_call_read(struct fuse_peer *peer, bool is_folder, const struct fuse_handle *handle, void *buffer,
		   size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes, struct failure *failure)
{
	const struct fuse_read_in in = {.fh = handle->handle, .offset = off_bytes, .size = (uint32_t)len_bytes};
	const struct fuse_question question = {.opcode = is_folder ? FUSE_READDIR : FUSE_READ,
					       .node = handle->node,
					       .head = &in,
					       .head_bytes = sizeof(in)};
	const void *data;
	int error = fuse_peer_ask(peer, &question, 0, len_bytes, &data, ret_len_bytes, failure);

	if (error == 0)
		memcpy(buffer, data, *ret_len_bytes);
	return error;
}

static bool is_name(const char *name, size_t len_bytes)
{
	if (len_bytes == 0 || len_bytes > FSREADER_NAME_MOST_BYTES || memchr(name, '/', len_bytes) != NULL ||
	    memchr(name, '\0', len_bytes) != NULL)
		return false;
	return !(name[0] == '.' && (len_bytes == 1 || (len_bytes == 2 && name[1] == '.')));
}

bool fuse_listed_next(const uint8_t **at, size_t *left_bytes, struct fuse_listed *ret_listed)
{
	const char *name = (const char *)*at + FUSE_NAME_OFFSET;
	struct fuse_dirent entry;
	size_t entry_bytes;

	if (*left_bytes < FUSE_NAME_OFFSET)
		return false;
	memcpy(&entry, *at, FUSE_NAME_OFFSET);
	entry_bytes = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + (size_t)entry.namelen);
	if (entry_bytes > *left_bytes)
		return false;
	*at += entry_bytes;
	*left_bytes -= entry_bytes;
	ret_listed->ino = entry.ino;
	ret_listed->cookie = entry.off;
	ret_listed->name[0] = '\0';
	if (is_name(name, entry.namelen)) {
		memcpy(ret_listed->name, name, entry.namelen);
		ret_listed->name[entry.namelen] = '\0';
	}
	return true;
}
