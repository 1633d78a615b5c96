/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of nodes has one place for each inode number, by its last bits: files of one folder have numbers next to
 * each other, and so don't push each other out.
 */
#include "fsreader/ext_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

enum { NODES = 16384, BATCHES = 8, VALUES = 16, ALIGNMENT = 8 };

struct value {
	uint64_t ino; /* 0: none */
	char name[FSREADER_NAME_MOST_BYTES + 1];
	uint8_t *data;
	size_t len_bytes;
};

struct ext_cache {
	pthread_mutex_t lock;
	struct ext_node *nodes;		    /* NODES of them; attr.ino is 0 where there is none */
	struct ext_batch *batches[BATCHES]; /* the last used first */
	struct value values[VALUES];
	unsigned next_value; /* to be replaced */
};

int ext_cache_make(struct ext_cache **ret_cache, struct failure *failure)
{
	struct ext_cache *cache = calloc(1, sizeof(*cache));

	if (cache == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	(void)pthread_mutex_init(&cache->lock, NULL);	     /* can't fail with default attributes */
	cache->nodes = calloc(NODES, sizeof(*cache->nodes)); /* pages come as they are used */
	if (cache->nodes == NULL) {
		ext_cache_free(cache);
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	}
	*ret_cache = cache;
	return 0;
}

void ext_cache_free(struct ext_cache *cache)
{
	if (cache == NULL)
		return;
	for (unsigned i = 0; i < BATCHES; i++)
		ext_batch_put(cache->batches[i]);
	for (unsigned i = 0; i < VALUES; i++)
		free(cache->values[i].data);
	(void)pthread_mutex_destroy(&cache->lock);
	free(cache->nodes);
	free(cache);
}

/* ------------------------------------------------------------------- nodes */

bool ext_cache_get_node(struct ext_cache *cache, uint64_t ino, struct ext_node *ret_node)
{
	WITH_LOCK(&cache->lock);
	const struct ext_node *node = &cache->nodes[ino % NODES];

	if (ino == 0 || node->attr.ino != ino)
		return false;
	*ret_node = *node;
	return true;
}

void ext_cache_put_node(struct ext_cache *cache, const struct ext_node *node)
{
	WITH_LOCK(&cache->lock);

	cache->nodes[node->attr.ino % NODES] = *node;
}

/* ------------------------------------------------------------------ values */

static uint8_t *copy_bytes(const uint8_t *data, size_t len_bytes)
{
	uint8_t *copy = malloc(len_bytes + 1);

	if (copy == NULL)
		return NULL;
	memcpy(copy, data, len_bytes);
	copy[len_bytes] = 0;
	return copy;
}

bool ext_cache_get_value(struct ext_cache *cache, uint64_t ino, const char *name, uint8_t **ret_value,
			 size_t *ret_len_bytes)
{
	WITH_LOCK(&cache->lock);

	for (unsigned i = 0; i < VALUES; i++) {
		const struct value *value = &cache->values[i];
		uint8_t *copy;

		if (value->ino != ino || strcmp(value->name, name) != 0)
			continue;
		copy = copy_bytes(value->data, value->len_bytes);
		if (copy == NULL)
			return false;
		*ret_value = copy;
		*ret_len_bytes = value->len_bytes;
		return true;
	}
	return false;
}

void ext_cache_put_value(struct ext_cache *cache, uint64_t ino, const char *name, const uint8_t *data, size_t len_bytes)
{
	uint8_t *copy = copy_bytes(data, len_bytes);
	struct value *value;

	if (copy == NULL)
		return;
	WITH_LOCK(&cache->lock);
	value = &cache->values[cache->next_value++ % VALUES];
	free(value->data);
	value->ino = ino;
	(void)strcpy(value->name, name); /* 255 bytes at most: the front has looked */
	value->data = copy;
	value->len_bytes = len_bytes;
}

/* ------------------------------------------------------------------ pieces */

const char *ext_pieces_find_flaw(const struct ext_piece *pieces, size_t count, uint64_t source_bytes)
{
	uint64_t last_bytes = 0;

	for (size_t i = 0; i < count; i++) {
		const struct ext_piece *piece = &pieces[i];
		uint64_t end_bytes;

		if (piece->kind >= EXT_PIECE_KINDS || piece->len_bytes == 0 || piece->off_bytes < last_bytes ||
		    __builtin_add_overflow(piece->off_bytes, piece->len_bytes, &end_bytes))
			return "content in no order";
		if (piece->kind != EXT_PIECE_ZEROS &&
		    (piece->place_bytes > source_bytes || piece->len_bytes > source_bytes - piece->place_bytes))
			return "content behind the end of the file system";
		last_bytes = end_bytes;
	}
	return NULL;
}

const char *ext_node_find_flaw(const struct ext_node *node, uint64_t source_bytes)
{
	if (node->attr.ino == 0 || node->piece_count > EXT_NODE_PIECES)
		return "a file that can't be";
	return ext_pieces_find_flaw(node->pieces, node->piece_count, source_bytes);
}

/* ----------------------------------------------------------------- batches */

void ext_batch_put(struct ext_batch *batch)
{
	if (batch == NULL || atomic_fetch_sub(&batch->users, 1) != 1)
		return;
	ext_reply_free(&batch->reply);
	free(batch);
}

enum ext_batch_step ext_batch_next(const struct ext_reply *reply, size_t *off_bytes, struct ext_batch_entry *ret_entry)
{
	const uint8_t *at = reply->payload + *off_bytes;
	size_t left_bytes = reply->payload_bytes - *off_bytes;
	struct ext_entry head;
	size_t padded_bytes;

	if (left_bytes == 0)
		return EXT_BATCH_END;
	if (left_bytes < sizeof(head))
		return EXT_BATCH_BAD;
	memcpy(&head, at, sizeof(head));
	if (head.name_bytes == 0 || head.name_bytes > FSREADER_NAME_MOST_BYTES)
		return EXT_BATCH_BAD;
	padded_bytes = (head.name_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	if (left_bytes - sizeof(head) < padded_bytes + (head.has_node ? sizeof(ret_entry->node) : 0) ||
	    memchr(at + sizeof(head), '\0', head.name_bytes) != NULL)
		return EXT_BATCH_BAD;
	ret_entry->cookie = head.cookie;
	ret_entry->has_node = head.has_node != 0;
	memcpy(ret_entry->name, at + sizeof(head), head.name_bytes);
	ret_entry->name[head.name_bytes] = '\0';
	if (head.has_node)
		memcpy(&ret_entry->node, at + sizeof(head) + padded_bytes, sizeof(ret_entry->node));
	*off_bytes += sizeof(head) + padded_bytes + (head.has_node ? sizeof(ret_entry->node) : 0);
	return EXT_BATCH_ENTRY;
}

static void move_to_front_locked(struct ext_cache *cache, unsigned i)
{
	struct ext_batch *batch = cache->batches[i];

	memmove(&cache->batches[1], &cache->batches[0], i * sizeof(cache->batches[0]));
	cache->batches[0] = batch;
}

struct ext_batch *ext_cache_get_batch(struct ext_cache *cache, uint64_t dir, uint64_t cookie)
{
	WITH_LOCK(&cache->lock);

	for (unsigned i = 0; i < BATCHES; i++) {
		struct ext_batch *batch = cache->batches[i];

		if (batch == NULL || batch->dir != dir || cookie < batch->first_cookie || cookie > batch->last_cookie ||
		    batch->reply.position <= cookie) /* then it leads nowhere */
			continue;
		move_to_front_locked(cache, i);
		(void)atomic_fetch_add(&batch->users, 1);
		return batch;
	}
	return NULL;
}

void ext_cache_put_batch(struct ext_cache *cache, struct ext_batch *batch)
{
	WITH_LOCK(&cache->lock);

	ext_batch_put(cache->batches[BATCHES - 1]);
	cache->batches[BATCHES - 1] = batch;
	(void)atomic_fetch_add(&batch->users, 1);
	move_to_front_locked(cache, BATCHES - 1);
}
