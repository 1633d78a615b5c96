/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks: the giver's before the tree's.
 */
#include "fusefs/giver.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/units.h"

enum { PIECES_MOST = 32, END_WAIT_NANOSECONDS = 1000000000 };

struct piece {
	struct node *node; /* remembered */
	fuse_ino_t ino;
	uint64_t off_bytes;
	size_t len_bytes;
	char *bytes; /* owned */
};

struct giver {
	struct fuse_mount *mount;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_t thread;
	bool has_thread, is_ending, has_ended;
	bool is_abandoned; /* the mount and its tree are gone, or about to be */
	struct piece pieces[PIECES_MOST]; /* a ring */
	unsigned first, count;
};

static void tell_kernel(struct giver *giver, struct piece *piece)
{
	struct fuse_bufvec vector = FUSE_BUFVEC_INIT(piece->len_bytes);

	vector.buf[0].mem = piece->bytes;
	/* -ENOENT: the kernel has forgotten the file meanwhile */
	(void)fuse_lowlevel_notify_store(giver->mount->session, piece->ino, (off_t)piece->off_bytes, &vector, (enum fuse_buf_copy_flags)0);
}

static void drop(struct giver *giver, struct piece *piece)
{
	tree_forget(giver->mount->tree, piece->node, 1);
	free(piece->bytes);
}

static bool take_piece(struct giver *giver, struct piece *ret_piece)
{
	WITH_LOCK(&giver->lock);

	while (giver->count == 0 && !giver->is_ending)
		(void)pthread_cond_wait(&giver->changed, &giver->lock);
	if (giver->is_ending)
		return false;
	*ret_piece = giver->pieces[giver->first];
	giver->first = (giver->first + 1) % PIECES_MOST;
	giver->count--;
	return true;
}

static void drop_unless_abandoned(struct giver *giver, struct piece *piece)
{
	WITH_LOCK(&giver->lock);

	if (!giver->is_abandoned)
		drop(giver, piece);
}

static void *give_all(void *opaque)
{
	struct giver *giver = opaque;
	struct piece piece;

	while (take_piece(giver, &piece)) {
		tell_kernel(giver, &piece);
		drop_unless_abandoned(giver, &piece);
	}
	WITH_LOCK(&giver->lock);
	giver->has_ended = true;
	(void)pthread_cond_broadcast(&giver->changed);
	return NULL;
}

int giver_new(struct fuse_mount *mount, struct giver **ret_giver)
{
	struct giver *giver = calloc(1, sizeof(*giver));

	if (giver == NULL)
		return -ENOMEM;
	giver->mount = mount;
	(void)pthread_mutex_init(&giver->lock, NULL); /* on Linux these two can't fail */
	(void)pthread_cond_init(&giver->changed, NULL);
	*ret_giver = giver;
	return 0;
}

/* False: it waits in the kernel. */
static bool wait_for_thread(struct giver *giver)
{
	struct timespec until = units_time_from_now(CLOCK_REALTIME, END_WAIT_NANOSECONDS); /* its exact length doesn't matter */
	WITH_LOCK(&giver->lock);

	giver->is_ending = true;
	(void)pthread_cond_broadcast(&giver->changed);
	while (giver->has_thread && !giver->has_ended)
		if (pthread_cond_timedwait(&giver->changed, &giver->lock, &until) == ETIMEDOUT) {
			giver->is_abandoned = !giver->has_ended;
			return giver->has_ended;
		}
	return true;
}

void giver_stop(struct giver *giver)
{
	if (giver == NULL || !wait_for_thread(giver))
		return;
	if (giver->has_thread)
		(void)pthread_join(giver->thread, NULL);
	for (; giver->count > 0; giver->count--, giver->first = (giver->first + 1) % PIECES_MOST)
		drop(giver, &giver->pieces[giver->first]);
	(void)pthread_cond_destroy(&giver->changed);
	(void)pthread_mutex_destroy(&giver->lock);
	free(giver);
}

char *giver_room(struct giver *giver)
{
	{
		WITH_LOCK(&giver->lock);
		if (giver->count == PIECES_MOST || giver->is_ending)
			return NULL;
	}
	return malloc(GIVER_PIECE_BYTES);
}

void giver_give(struct giver *giver, struct node *node, fuse_ino_t ino, uint64_t off_bytes, char *bytes, size_t len_bytes)
{
	const struct piece piece = {.node = node, .ino = ino, .off_bytes = off_bytes, .len_bytes = len_bytes, .bytes = bytes};
	WITH_LOCK(&giver->lock);

	if (!giver->has_thread && !giver->is_ending)
		giver->has_thread = pthread_create(&giver->thread, NULL, give_all, giver) == 0;
	if (!giver->has_thread || giver->is_ending || giver->count == PIECES_MOST) {
		free(bytes);
		return;
	}
	tree_remember(giver->mount->tree, node);
	giver->pieces[(giver->first + giver->count++) % PIECES_MOST] = piece;
	(void)pthread_cond_broadcast(&giver->changed);
}
