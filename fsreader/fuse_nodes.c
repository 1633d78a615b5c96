/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An array, which grows to FUSE_NODES_MOST and is then used again in a circle, the root excepted; chains by hash through it.
 *
 * Two names with the same 64-bit hash: the one that comes second gets the next number that is free. Somebody could make such names, and
 * would get numbers that depend on who was looked up first; no file is ever taken for another.
 */
#include "fsreader/fuse_nodes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

enum { BUCKETS = FUSE_NODES_MOST, NOTHING = 0 }; /* links are indexes plus 1 */

struct slot {
	struct fuse_node node;
	uint32_t next_by_ino;
};

struct fuse_nodes {
	uint32_t count, capacity, hand;
	struct slot *slots;
	uint32_t buckets[BUCKETS];
};

static uint64_t mix(uint64_t hash)
{
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93ULL;
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93ULL;
	return hash ^ hash >> 32;
}

/* Never 0, nor the root's. */
static uint64_t number_of(uint64_t parent, const char *name)
{
	uint64_t hash = mix(parent + 0x9e3779b97f4a7c15ULL);

	for (const unsigned char *at = (const unsigned char *)name; *at != '\0'; at++)
		hash = (hash ^ *at) * 0x100000001b3ULL;
	hash = mix(hash);
	return hash > FSREADER_ROOT ? hash : hash + 2;
}

static uint32_t *bucket_of(struct fuse_nodes *nodes, uint64_t ino)
{
	return &nodes->buckets[mix(ino) % BUCKETS];
}

struct fuse_node *fuse_nodes_find(struct fuse_nodes *nodes, uint64_t ino)
{
	for (uint32_t link = *bucket_of(nodes, ino); link != NOTHING; link = nodes->slots[link - 1].next_by_ino)
		if (nodes->slots[link - 1].node.attr.ino == ino)
			return &nodes->slots[link - 1].node;
	return NULL;
}

static bool is_named(const struct fuse_node *node, uint64_t parent, const char *name)
{
	return node->parent == parent && node->name != NULL && strcmp(node->name, name) == 0;
}

struct fuse_node *fuse_nodes_find_name(struct fuse_nodes *nodes, uint64_t parent, const char *name)
{
	uint64_t ino = number_of(parent, name);
	struct fuse_node *node;

	while ((node = fuse_nodes_find(nodes, ino)) != NULL && !is_named(node, parent, name))
		ino = ino == UINT64_MAX ? FSREADER_ROOT + 1 : ino + 1;
	return node;
}

static void unlink_slot(struct fuse_nodes *nodes, uint32_t number)
{
	uint32_t *link = bucket_of(nodes, nodes->slots[number].node.attr.ino);

	while (*link != number + 1)
		link = &nodes->slots[*link - 1].next_by_ino;
	*link = nodes->slots[number].next_by_ino;
}

static bool grow(struct fuse_nodes *nodes)
{
	uint32_t capacity = nodes->capacity == 0 ? 64 : nodes->capacity * 2;
	struct slot *slots = reallocarray(nodes->slots, capacity, sizeof(*slots));

	if (slots == NULL)
		return false;
	nodes->slots = slots;
	nodes->capacity = capacity;
	return true;
}

/* A slot to use; what was in it has been dropped. */
static int take_slot(struct fuse_nodes *nodes, uint32_t *ret_number, struct fuse_node *ret_dropped)
{
	ret_dropped->generation = 0;
	if (nodes->count < FUSE_NODES_MOST) {
		if (nodes->count == nodes->capacity && !grow(nodes))
			return -ENOMEM;
		*ret_number = nodes->count++;
		return 0;
	}
	nodes->hand = nodes->hand % (FUSE_NODES_MOST - 1) + 1; /* 0 is the root */
	unlink_slot(nodes, nodes->hand);
	*ret_dropped = nodes->slots[nodes->hand].node;
	free(take_ptr(nodes->slots[nodes->hand].node.name));
	ret_dropped->name = NULL;
	*ret_number = nodes->hand;
	return 0;
}

int fuse_nodes_add(struct fuse_nodes *nodes, const struct fsreader_attr *attr, uint64_t parent, const char *name,
		   struct fuse_node **ret_node, struct fuse_node *ret_dropped)
{
	AUTO_FREE char *copy = strdup(name);
	uint64_t ino = number_of(parent, name);
	struct fuse_node *node;
	uint32_t number;

	if (copy == NULL || take_slot(nodes, &number, ret_dropped) < 0)
		return -ENOMEM;
	while (fuse_nodes_find(nodes, ino) != NULL)
		ino = ino == UINT64_MAX ? FSREADER_ROOT + 1 : ino + 1;
	node = &nodes->slots[number].node;
	*node = (struct fuse_node){.attr = *attr, .parent = parent, .name = take_ptr(copy)};
	node->attr.ino = ino;
	nodes->slots[number].next_by_ino = *bucket_of(nodes, ino);
	*bucket_of(nodes, ino) = number + 1;
	*ret_node = node;
	return 0;
}

struct fuse_nodes *fuse_nodes_make(void)
{
	struct fuse_nodes *nodes = calloc(1, sizeof(*nodes));

	if (nodes == NULL || !grow(nodes)) {
		free(nodes);
		return NULL;
	}
	nodes->slots[0] = (struct slot){.node = {.attr = {.ino = FSREADER_ROOT}}};
	nodes->count = 1;
	*bucket_of(nodes, FSREADER_ROOT) = 1;
	return nodes;
}

void fuse_nodes_free(struct fuse_nodes *nodes)
{
	if (nodes == NULL)
		return;
	for (uint32_t i = 0; i < nodes->count; i++)
		free(nodes->slots[i].node.name);
	free(nodes->slots);
	free(nodes);
}
