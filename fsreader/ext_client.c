/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine for ext2, ext3 and ext4: questions to wherry-fsreader, whose answers are checked and remembered. And the one for file systems that Linux
 * knows: the same questions to a user-mode Linux (kernel/inside.c).
 *
 *     ext_link.c    the process, one question at a time
 *     ext_cache.c   what was answered
 *     ext_file.c    content, read from the source
 *
 * What makes a walk through a tree fast: a listing brings all that is to be known about its files, where their content
 * lies included, so that looking at them and opening them asks nothing any more. Who opens files in the order of their
 * inode numbers, as tar does, and has lost what the listing brought, gets the next ones along with the first.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "fsreader/engine.h"
#include "fsreader/ext_cache.h"
#include "fsreader/ext_file.h"
#include "fsreader/ext_link.h"

enum {
	NEIGHBOURS = 64, /* nodes asked for at once by who goes through a table of inodes; 15 KiB */
	NEAR_INODES = 256,
};

struct ext {
	struct ext_link *link;
	struct ext_cache *cache;
	atomic_ullong missed_ino; /* of the last question for a node */
};

/* ------------------------------------------------------------- start, stop */

static bool ext_knows_type(const char *type)
{
	return strcmp(type, "ext2") == 0 || strcmp(type, "ext3") == 0 || strcmp(type, "ext4") == 0 ||
	       strcmp(type, "ext4dev") == 0;
}

static int ext_check(const char *type, struct failure *failure)
{
	AUTO_FREE char *program = NULL;

	(void)type;
	return ext_link_find_program(&program, failure);
}

static void ext_stop(void *engine)
{
	struct ext *ext = engine;

	ext_link_close(ext->link);
	ext_cache_free(ext->cache);
	free(ext);
}

static int start(const struct fsreader_source *source, const struct kernel_type *kernel,
		 const struct fsreader_options *options, void **ret_engine, struct failure *failure)
{
	struct ext *ext = calloc(1, sizeof(*ext));
	int error;

	if (ext == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	error = ext_cache_make(&ext->cache, failure);
	if (error == 0)
		error = ext_link_open(source, kernel, options, &ext->link, failure);
	if (error < 0) {
		ext_stop(ext);
		return error;
	}
	*ret_engine = ext;
	return 0;
}

static int ext_start(const struct fsreader_source *source, const char *type, const struct fsreader_options *options,
		     void **ret_engine, struct failure *failure)
{
	(void)type;
	return start(source, NULL, options, ret_engine, failure);
}

static bool kernel_knows_type(const char *type)
{
	return kernel_type_find(type) != NULL;
}

static int kernel_check(const char *type, struct failure *failure)
{
	return kernel_initrd_check(kernel_type_find(type), failure);
}

static int kernel_start(const struct fsreader_source *source, const char *type, const struct fsreader_options *options,
			void **ret_engine, struct failure *failure)
{
	return start(source, kernel_type_find(type), options, ret_engine, failure);
}

/* ------------------------------------------------------------------- nodes */

static int take_node(struct ext *ext, const uint8_t *at, struct ext_node *ret_node, struct failure *failure)
{
	const char *flaw;

	memcpy(ret_node, at, sizeof(*ret_node));
	flaw = ext_node_find_flaw(ret_node, ext_link_source(ext->link)->size_bytes);
	if (flaw != NULL)
		return ext_link_distrust(ext->link, failure, "%s, inode %" PRIu64, flaw, ret_node->attr.ino);
	ext_cache_put_node(ext->cache, ret_node);
	return 0;
}

static bool is_number_of_nodes(const struct ext_reply *reply)
{
	return reply->count >= 1 && reply->count <= EXT_NODES_MOST &&
	       reply->payload_bytes == reply->count * sizeof(struct ext_node);
}

static int fetch_nodes(struct ext *ext, uint64_t ino, unsigned count, struct ext_node *ret_node,
		       struct failure *failure)
{
	const struct ext_question question = {.kind = EXT_NODES, .ino = ino, .position = count};
	AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
	int error = ext_link_ask(ext->link, &question, &reply, failure);

	if (error < 0)
		return error;
	if (!is_number_of_nodes(&reply))
		return ext_link_distrust(ext->link, failure, "files that can't be");
	for (unsigned i = 0; i < reply.count && error == 0; i++) {
		struct ext_node node;

		error = take_node(ext, reply.payload + i * sizeof(node), &node, failure);
		if (error == 0 && i == 0 && node.attr.ino != ino)
			error = ext_link_distrust(ext->link, failure, "another file than it was asked for");
		if (error == 0 && i == 0)
			*ret_node = node;
	}
	return error;
}

/* With those that come next, for who goes through them. */
static int fetch_near(struct ext *ext, uint64_t ino, struct ext_node *ret_node, struct failure *failure)
{
	uint64_t missed_ino = atomic_exchange(&ext->missed_ino, ino);

	return fetch_nodes(ext, ino, ino > missed_ino && ino - missed_ino <= NEAR_INODES ? NEIGHBOURS : 1, ret_node,
			   failure);
}

static int get_node(struct ext *ext, uint64_t ino, struct ext_node *ret_node, struct failure *failure)
{
	return ext_cache_get_node(ext->cache, ino, ret_node) ? 0 : fetch_near(ext, ino, ret_node, failure);
}

static int ext_getattr(void *engine, uint64_t ino, struct fsreader_attr *ret_attr, struct failure *failure)
{
	struct ext_node node;
	int error = get_node(engine, ino, &node, failure);

	if (error == 0)
		*ret_attr = node.attr;
	return error;
}

static void name_question(struct ext_question *question, const char *name)
{
	size_t len_bytes = strlen(name); /* at most 255: the front has looked */

	memcpy(question->name, name, len_bytes + 1);
	question->name_bytes = (uint32_t)len_bytes;
}

static int ext_lookup(void *engine, uint64_t dir, const char *name, struct fsreader_attr *ret_attr,
		      struct failure *failure)
{
	struct ext *ext = engine;
	struct ext_question question = {.kind = EXT_LOOKUP, .ino = dir};
	AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
	struct ext_node node;
	int error;

	name_question(&question, name);
	error = ext_link_ask(ext->link, &question, &reply, failure);
	if (error < 0)
		return error;
	if (!is_number_of_nodes(&reply))
		return ext_link_distrust(ext->link, failure, "a file that can't be");
	error = take_node(ext, reply.payload, &node, failure);
	if (error == 0)
		*ret_attr = node.attr;
	return error;
}

/* ---------------------------------------------------------------- listings */

/* All of it, before anybody sees any of it. */
static const char *find_flaw_of_batch(struct ext *ext, struct ext_batch *batch)
{
	uint64_t source_bytes = ext_link_source(ext->link)->size_bytes;
	struct ext_batch_entry entry;
	enum ext_batch_step step;
	size_t off_bytes = 0;

	while ((step = ext_batch_next(&batch->reply, &off_bytes, &entry)) == EXT_BATCH_ENTRY) {
		const char *flaw = entry.has_node ? ext_node_find_flaw(&entry.node, source_bytes) : NULL;

		if (flaw != NULL)
			return flaw;
		if (entry.cookie <= batch->last_cookie)
			return "a folder that goes round in circles";
		batch->last_cookie = entry.cookie;
		if (entry.has_node)
			ext_cache_put_node(ext->cache, &entry.node);
	}
	if (step == EXT_BATCH_BAD)
		return "names that can't be";
	return batch->reply.position <= batch->first_cookie || batch->reply.position < batch->last_cookie
		       ? "a folder that goes round in circles"
		       : NULL;
}

static int fetch_batch(struct ext *ext, uint64_t dir, uint64_t cookie, struct ext_batch **ret_batch,
		       struct failure *failure)
{
	const struct ext_question question = {.kind = EXT_LIST, .ino = dir, .position = cookie};
	AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
	struct ext_batch *batch;
	const char *flaw;
	int error = ext_link_ask(ext->link, &question, &reply, failure);

	if (error < 0)
		return error;
	batch = calloc(1, sizeof(*batch));
	if (batch == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	*batch = (struct ext_batch){
		.users = 1, .dir = dir, .first_cookie = cookie, .last_cookie = cookie, .reply = reply};
	reply.payload = NULL;
	flaw = find_flaw_of_batch(ext, batch);
	if (flaw != NULL) {
		ext_batch_put(batch);
		return ext_link_distrust(ext->link, failure, "%s, inode %" PRIu64, flaw, dir);
	}
	ext_cache_put_batch(ext->cache, batch);
	*ret_batch = batch;
	return 0;
}

static int tell_entries(const struct ext_batch *batch, uint64_t cookie, fsreader_found *found, void *opaque)
{
	static const struct fsreader_attr unknown = {.ino = 0};
	struct ext_batch_entry entry;
	size_t off_bytes = 0;
	int result = 0;

	while (result == 0 && ext_batch_next(&batch->reply, &off_bytes, &entry) == EXT_BATCH_ENTRY) {
		if (entry.cookie > cookie)
			result = found(opaque, entry.name, entry.has_node ? &entry.node.attr : &unknown, entry.cookie);
	}
	return result;
}

static void put_batch(struct ext_batch **batch)
{
	ext_batch_put(*batch);
}

static int ext_list(void *engine, uint64_t dir, uint64_t cookie, fsreader_found *found, void *opaque,
		    struct failure *failure)
{
	struct ext *ext = engine;
	int result = 0;

	while (result == 0 && cookie != EXT_LIST_END) {
		AUTO(put_batch) struct ext_batch *batch = ext_cache_get_batch(ext->cache, dir, cookie);

		if (batch == NULL)
			result = fetch_batch(ext, dir, cookie, &batch, failure);
		if (result == 0)
			result = tell_entries(batch, cookie, found, opaque);
		if (result == 0)
			cookie = batch->reply.position;
	}
	return result;
}

/* ------------------------------------------------- links, attributes, space */

static int ext_readlink(void *engine, uint64_t ino, char **ret_target, struct failure *failure)
{
	struct ext *ext = engine;
	AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
	int error = ext_link_ask(ext->link, &(struct ext_question){.kind = EXT_READLINK, .ino = ino}, &reply, failure);

	if (error < 0)
		return error;
	if (reply.payload_bytes == 0 || reply.payload_bytes > EXT_TARGET_MOST_BYTES ||
	    memchr(reply.payload, '\0', reply.payload_bytes) != NULL)
		return ext_link_distrust(ext->link, failure, "a symbolic link that can't be, inode %" PRIu64, ino);
	*ret_target = (char *)take_ptr(reply.payload); /* a zero is behind it */
	return 0;
}

/* By the name "" the names of all. */
static int get_value(struct ext *ext, uint64_t ino, const char *name, uint8_t **ret_value, size_t *ret_len_bytes,
		     struct failure *failure)
{
	struct ext_question question = {.kind = *name == '\0' ? EXT_LISTXATTR : EXT_GETXATTR, .ino = ino};
	AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
	int error;

	if (ext_cache_get_value(ext->cache, ino, name, ret_value, ret_len_bytes))
		return 0;
	name_question(&question, name);
	error = ext_link_ask(ext->link, &question, &reply, failure);
	if (error < 0)
		return error;
	if (reply.payload_bytes > EXT_XATTR_MOST_BYTES)
		return ext_link_distrust(ext->link, failure, "an attribute that can't be, inode %" PRIu64, ino);
	ext_cache_put_value(ext->cache, ino, name, reply.payload, reply.payload_bytes);
	*ret_len_bytes = reply.payload_bytes;
	*ret_value = take_ptr(reply.payload);
	return 0;
}

static int ext_listxattr(void *engine, uint64_t ino, char **ret_names, size_t *ret_len_bytes, struct failure *failure)
{
	struct ext *ext = engine;
	uint8_t *names = NULL;
	struct ext_node node;
	int error = get_node(ext, ino, &node, failure);

	*ret_len_bytes = 0;
	if (error == 0 && (node.flags & EXT_NODE_HAS_XATTRS) != 0)
		error = get_value(ext, ino, "", &names, ret_len_bytes, failure);
	*ret_names = (char *)names;
	return error;
}

static bool has_name(const char *names, size_t len_bytes, const char *name)
{
	size_t name_bytes = strlen(name) + 1;

	for (size_t at = 0; at < len_bytes; at += strlen(names + at) + 1) { /* a zero is behind them; NULL is none */
		if (len_bytes - at >= name_bytes && memcmp(names + at, name, name_bytes) == 0)
			return true;
	}
	return false;
}

/* Most who ask, ask for what isn't there: ACLs, capabilities. The names of all that are tell that at once. */
static int ext_getxattr(void *engine, uint64_t ino, const char *name, void **ret_value, size_t *ret_len_bytes,
			struct failure *failure)
{
	struct ext *ext = engine;
	AUTO_FREE char *names = NULL;
	uint8_t *value = NULL;
	size_t len_bytes = 0;
	int error = ext_listxattr(ext, ino, &names, &len_bytes, failure);

	if (error == 0 && !has_name(names, len_bytes, name))
		return fail(failure, -ENODATA, "%s: inode %" PRIu64 " has no attribute %s", ext_link_what(ext->link),
			    ino, name);
	if (error == 0)
		error = get_value(ext, ino, name, &value, ret_len_bytes, failure);
	if (error == 0)
		*ret_value = value;
	return error;
}

static int ext_statfs(void *engine, struct fsreader_statfs *ret_statfs, struct failure *failure)
{
	struct ext *ext = engine;
	AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
	int error = ext_link_ask(ext->link, &(struct ext_question){.kind = EXT_STATFS}, &reply, failure);

	if (error < 0)
		return error;
	if (reply.payload_bytes != sizeof(*ret_statfs))
		return ext_link_distrust(ext->link, failure, "a size that can't be");
	memcpy(ret_statfs, reply.payload, sizeof(*ret_statfs));
	return 0;
}

/* ----------------------------------------------------------------- content */

static int ext_open(void *engine, uint64_t ino, void **ret_file, struct failure *failure)
{
	struct ext *ext = engine;
	struct ext_file *file;
	struct ext_node node;
	int error = get_node(ext, ino, &node, failure);

	if (error < 0)
		return error;
	if (!S_ISREG(node.attr.mode))
		return fail(failure, -EINVAL, "%s: inode %" PRIu64 " is no regular file", ext_link_what(ext->link),
			    ino);
	if ((node.flags & EXT_NODE_UNSEEN) != 0)
		error = fetch_near(ext, ino, &node, failure);
	if (error == 0)
		error = ext_file_open(ext->link, &node, &file, failure);
	if (error == 0)
		*ret_file = file;
	return error;
}

static void ext_close(void *engine, void *file)
{
	(void)engine;
	ext_file_close(file);
}

static int ext_read(void *engine, void *file, void *buffer, size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes,
		    struct failure *failure)
{
	(void)engine;
	return ext_file_read(file, buffer, len_bytes, off_bytes, ret_len_bytes, failure);
}

static int ext_seek(void *engine, void *file, uint64_t off_bytes, bool wants_hole, uint64_t *ret_off_bytes,
		    struct failure *failure)
{
	(void)engine;
	return ext_file_seek(file, off_bytes, wants_hole, ret_off_bytes, failure);
}

const struct engine_ops ext_engine = {
	.name = "ext",
	.knows_type = ext_knows_type,
	.check = ext_check,
	.start = ext_start,
	.stop = ext_stop,
	.getattr = ext_getattr,
	.lookup = ext_lookup,
	.list = ext_list,
	.readlink = ext_readlink,
	.listxattr = ext_listxattr,
	.getxattr = ext_getxattr,
	.statfs = ext_statfs,
	.open = ext_open,
	.close = ext_close,
	.read = ext_read,
	.seek = ext_seek,
};

const struct engine_ops kernel_engine = {
	.name = "kernel",
	.knows_type = kernel_knows_type,
	.check = kernel_check,
	.start = kernel_start,
	.stop = ext_stop,
	.getattr = ext_getattr,
	.lookup = ext_lookup,
	.list = ext_list,
	.readlink = ext_readlink,
	.listxattr = ext_listxattr,
	.getxattr = ext_getxattr,
	.statfs = ext_statfs,
	.open = ext_open,
	.close = ext_close,
	.read = ext_read,
	.seek = ext_seek,
};
