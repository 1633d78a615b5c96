/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is known of the tree: tables of nodes, of origins, and of the volumes of each origin.
 *
 * A node is there as long as somebody has been given it and has not given it back; it keeps its origin, or its volume
 * and with that the origin. A kernel that knows a million files makes a million nodes, so the table grows. Two things
 * are the same if all that a node is made of is the same: as there is one origin for each disk and image, and one
 * volume for each file system, addresses are compared.
 *
 * An inode number is a hash: of the disk's id (so that a disk of the same name is another one), the image, and what it
 * is in there. Inside of a volume the mix is a bijection, so that two files never share a number.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fusefs/tree_internal.h"

/* ---- numbers ---- */

/* The last step of MurmurHash3 (public domain): a bijection for each `hash`. */
uint64_t mix(uint64_t hash, uint64_t value)
{
	uint64_t mixed = hash ^ (value + 0x9e3779b97f4a7c15U);

	mixed ^= mixed >> 33;
	mixed *= 0xff51afd7ed558ccdU;
	mixed ^= mixed >> 33;
	mixed *= 0xc4ceb9fe1a85ec53U;
	mixed ^= mixed >> 33;
	return mixed;
}

uint64_t mix_text(uint64_t hash, const char *text)
{
	for (; *text != '\0'; text++)
		hash = mix(hash, (unsigned char)*text);
	return hash;
}

/* 0 is none, 1 is the root. */
static uint64_t usable(uint64_t hash)
{
	return hash > 1 ? hash : hash + 2;
}

uint64_t inner_ino(uint64_t seed, uint64_t inner)
{
	return usable(mix(seed, inner));
}

uint64_t node_ino(const struct node *wanted)
{
	uint64_t hash = 0;

	if (wanted->kind == NODE_STORE)
		return 1;
	if (wanted->kind == NODE_INNER)
		return inner_ino(wanted->volume->seed, wanted->inner);
	else if (wanted->volume != NULL)
		hash = mix(mix(wanted->volume->seed, 0), wanted->kind);
	else
		hash = mix(mix(wanted->origin->seed, wanted->kind), wanted->number);
	if (wanted->name != NULL)
		hash = mix_text(hash, wanted->name);
	return usable(hash);
}

uint64_t volume_seed(const struct origin *origin, const char *name)
{
	return mix_text(mix(origin->seed, NODE_INNER), name);
}

static bool is_same(const struct node *a, const struct node *b)
{
	return a->ino == b->ino && a->kind == b->kind && a->number == b->number && a->inner == b->inner &&
	       a->origin == b->origin && a->volume == b->volume && (a->name == NULL) == (b->name == NULL) &&
	       (a->name == NULL || strcmp(a->name, b->name) == 0);
}

/* ---- nodes ---- */

static struct node **bucket_of(struct tree *tree, uint64_t ino)
{
	return &tree->nodes[ino & (tree->bucket_count - 1)];
}

/* Without memory it stays as it is: slower. */
static void grow_locked(struct tree *tree)
{
	size_t old_count = tree->bucket_count;
	struct node **old = tree->nodes;
	struct node **grown = calloc(old_count * 2, sizeof(struct node *));

	if (grown == NULL)
		return;
	tree->nodes = grown;
	tree->bucket_count = old_count * 2;
	for (size_t i = 0; i < old_count; i++)
		while (old[i] != NULL) {
			struct node *node = old[i];
			struct node **bucket = bucket_of(tree, node->ino);

			old[i] = node->next;
			node->next = *bucket;
			*bucket = node;
		}
	free(old);
}

static struct node *find_locked(struct tree *tree, const struct node *wanted)
{
	for (struct node *node = *bucket_of(tree, wanted->ino); node != NULL; node = node->next)
		if (is_same(node, wanted))
			return node;
	return NULL;
}

static struct node *add_locked(struct tree *tree, const struct node *wanted)
{
	struct node *node = malloc(sizeof(*node));
	struct node **bucket;

	if (node == NULL)
		return NULL;
	*node = *wanted;
	node->known = 0;
	node->generation = ++tree->generations;
	if (wanted->name != NULL && (node->name = strdup(wanted->name)) == NULL) {
		free(node);
		return NULL;
	}
	if (tree->node_count >= tree->bucket_count)
		grow_locked(tree);
	bucket = bucket_of(tree, node->ino);
	node->next = *bucket;
	*bucket = node;
	tree->node_count++;
	if (node->origin != NULL)
		node->origin->known++;
	if (node->volume != NULL)
		node->volume->known++;
	return node;
}

struct node *node_get(struct tree *tree, const struct node *wanted)
{
	struct node key = *wanted;
	struct node *node;

	key.ino = node_ino(wanted);
	WITH_LOCK(&tree->lock);
	if (tree->nodes == NULL) {
		tree->nodes = calloc(NODE_BUCKETS_LEAST, sizeof(struct node *));
		tree->bucket_count = tree->nodes == NULL ? 0 : NODE_BUCKETS_LEAST;
	}
	if (tree->nodes == NULL)
		return NULL;
	node = find_locked(tree, &key);
	if (node == NULL)
		node = add_locked(tree, &key);
	if (node != NULL)
		node->known++;
	return node;
}

static void free_node(struct tree *tree, struct node *node)
{
	origin_put(tree, node->origin);
	volume_put(tree, node->volume);
	free(node->name);
	free(node);
}

void tree_forget(struct tree *tree, struct node *node, uint64_t count)
{
	struct node **at;
	{
		WITH_LOCK(&tree->lock);

		assert(node->known >= count);
		node->known -= count;
		if (node->known > 0)
			return;
		for (at = bucket_of(tree, node->ino); *at != node; at = &(*at)->next)
			;
		*at = node->next;
		tree->node_count--;
	}
	free_node(tree, node);
}

uint64_t node_generation(const struct node *node)
{
	return node->generation;
}

void nodes_free(struct tree *tree)
{
	for (size_t i = 0; i < tree->bucket_count; i++)
		while (tree->nodes[i] != NULL) {
			struct node *node = tree->nodes[i];

			tree->nodes[i] = node->next;
			free_node(tree, node);
		}
	free(take_ptr(tree->nodes));
	tree->bucket_count = 0;
}

/* ---- origins ---- */

static struct origin **origin_bucket(struct tree *tree, uint64_t seed)
{
	return &tree->origins[seed % ORIGIN_BUCKETS];
}

static struct origin *new_origin(const char *disk, const uint8_t disk_id[STORE_ID_OF_DISK_BYTES], uint32_t image,
				 uint64_t seed)
{
	struct origin *origin = calloc(1, sizeof(*origin));

	if (origin == NULL)
		return NULL;
	(void)pthread_mutex_init(&origin->lock, NULL); /* on Linux these two can't fail */
	(void)pthread_mutex_init(&origin->facts_lock, NULL);
	memcpy(origin->disk, disk, strlen(disk) + 1);
	memcpy(origin->disk_id, disk_id, sizeof(origin->disk_id));
	origin->image = image;
	origin->seed = seed;
	return origin;
}

struct origin *origin_get(struct tree *tree, const char *disk, const uint8_t disk_id[STORE_ID_OF_DISK_BYTES],
			  uint32_t image, int64_t created_at, uint64_t size_bytes)
{
	struct origin *origin, **bucket;
	uint64_t halves[2], seed;

	_Static_assert(sizeof(halves) == STORE_ID_OF_DISK_BYTES, "all of it is used");
	memcpy(halves, disk_id, sizeof(halves));
	seed = mix(mix(mix(0, halves[0]), halves[1]), image);
	WITH_LOCK(&tree->lock);
	bucket = origin_bucket(tree, seed);
	for (origin = *bucket; origin != NULL; origin = origin->next)
		if (origin->image == image && memcmp(origin->disk_id, disk_id, sizeof(origin->disk_id)) == 0)
			break;
	if (origin == NULL) {
		origin = new_origin(disk, disk_id, image, seed);
		if (origin == NULL)
			return NULL;
		origin->created_at = created_at;
		origin->size_bytes = size_bytes;
		origin->next = *bucket;
		*bucket = origin;
	}
	origin->known++;
	return origin;
}

void origin_put(struct tree *tree, struct origin *origin)
{
	struct origin **at;

	if (origin == NULL)
		return;
	{
		WITH_LOCK(&tree->lock);
		if (--origin->known > 0)
			return;
		for (at = origin_bucket(tree, origin->seed); *at != origin; at = &(*at)->next)
			;
		*at = origin->next;
	}
	origin_release(origin);
	(void)pthread_mutex_destroy(&origin->lock);
	(void)pthread_mutex_destroy(&origin->facts_lock);
	free(origin);
}

/* ---- volumes ---- */

struct volume *volume_get(struct tree *tree, struct origin *origin, const char *name)
{
	struct volume *volume;
	WITH_LOCK(&tree->lock);

	for (volume = origin->volumes; volume != NULL; volume = volume->next)
		if (strcmp(volume->name, name) == 0)
			break;
	if (volume == NULL) {
		volume = calloc(1, sizeof(*volume));
		if (volume == NULL)
			return NULL;
		(void)snprintf(volume->name, sizeof(volume->name), "%s", name);
		volume->origin = origin;
		volume->seed = volume_seed(origin, name);
		volume->next = origin->volumes;
		origin->volumes = volume;
		origin->known++;
	}
	volume->known++;
	return volume;
}

void volume_put(struct tree *tree, struct volume *volume)
{
	struct volume **at;

	if (volume == NULL)
		return;
	{
		WITH_LOCK(&tree->lock);
		if (--volume->known > 0)
			return;
		assert(volume->state == VOLUME_STOPPED);
		for (at = &volume->origin->volumes; *at != volume; at = &(*at)->next)
			;
		*at = volume->next;
	}
	origin_put(tree, volume->origin);
	free(volume);
}
