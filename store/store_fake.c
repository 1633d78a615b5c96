/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake store: the table of store_ops.h over lists in memory.
 *
 * One mutex guards everything. Every function of the table is a frame around one
 * that does the work: fake_call_enter() counts, sleeps, takes the mutex and
 * decides whether this call is one that shall fail; fake_call_leave() fails it
 * afterwards if it shall fail then, and gives the mutex back. What the caller
 * would have been given is released in that case, as if the answer had been lost
 * on its way.
 *
 * What a power cut takes away is marked as it comes in, rather than kept twice:
 *
 *     chunk that no commit has named       is_durable is false
 *     leases                               are the views, which become dead
 *
 * Everything else is durable the moment it is done. A store that
 * forgets_commits also keeps the state from before the last commit (fake->undo),
 * which is dropped when the next call that promises durability arrives, and put
 * back if the power goes first.
 *
 * A dead view has no disk and no image any more: they may be deleted while
 * somebody still holds it. All that is left to do with it is to close it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "store/store_fake_internal.h"

int fake_no_memory(struct failure *failure)
{
	return fail(failure, -ENOMEM, "fake store: out of memory");
}

int fake_copy_text(const char *text, char **ret_text, struct failure *failure)
{
	char *copy = NULL;

	if (text != NULL) {
		copy = strdup(text);
		if (copy == NULL)
			return fake_no_memory(failure);
	}
	*ret_text = copy;
	return 0;
}

int fake_check_writable(const struct fake *fake, struct failure *failure)
{
	return fake->read_only ? fail(failure, -EROFS, "store %s: is read-only", fake->store.location) : 0;
}

/* --------------------------------------------------- forgetting, on purpose */

void fake_undo_drop(struct fake_undo *undo)
{
	fake_map_free(&undo->live);
	free(undo->details);
	free(undo->chunks);
	*undo = (struct fake_undo){.disk = NULL};
}

/* Keeps the state of a disk as it is before a commit. */
int fake_undo_prepare(struct fake_undo *undo, struct fake_disk *disk, struct failure *failure)
{
	const struct fake_round *round = fake_newest_round(disk);
	int error = fake_map_share(&disk->live, &undo->live, failure);

	if (error == 0 && round != NULL)
		error = fake_copy_text(round->details, &undo->details, failure);
	if (error != 0) {
		fake_undo_drop(undo);
		return error;
	}
	undo->disk = disk;
	undo->content_round = disk->content_round;
	undo->round = fake_newest_round(disk);
	if (round != NULL) {
		undo->cursor_bytes = round->cursor_bytes;
		undo->counts = round->counts;
	}
	return 0;
}

static void undo_apply(struct fake *fake)
{
	struct fake_undo *undo = &fake->undo;

	if (undo->disk == NULL)
		return;
	fake_map_free(&undo->disk->live);
	undo->disk->live = undo->live;
	undo->live = (struct fake_map){.pages = NULL};
	undo->disk->content_round = undo->content_round;
	if (undo->round != NULL) {
		undo->round->cursor_bytes = undo->cursor_bytes;
		undo->round->counts = undo->counts;
		free(undo->round->details);
		undo->round->details = take_ptr(undo->details);
	}
	for (size_t i = 0; i < undo->chunk_count; i++)
		fake_chunk_get(&fake->chunks, undo->chunks[i])->is_durable = false;
	fake_undo_drop(undo);
}

static void power_cut_locked(struct fake *fake)
{
	undo_apply(fake);
	for (size_t i = 0; i < fake->chunks.count; i++) {
		struct fake_chunk *chunk = fake->chunks.by_id[i];

		if (chunk != NULL)
			chunk->is_brought = false;
		if (chunk != NULL && !chunk->is_durable)
			fake_chunk_drop(&fake->chunks, chunk->id);
	}
	for (struct fake_view *view = fake->views; view != NULL; view = view->next) {
		view->is_dead = true;
		view->disk = NULL;
		view->image = NULL;
	}
}

/* -------------------------------------------------- the frame of every call */

static bool promises_durability(enum store_fake_op op)
{
	switch (op) {
	case STORE_FAKE_CREATE_DISK:
	case STORE_FAKE_CLONE_DISK:
	case STORE_FAKE_REMOVE_DISK:
	case STORE_FAKE_SET_POLICY:
	case STORE_FAKE_DELETE_IMAGE:
	case STORE_FAKE_PIN_IMAGE:
	case STORE_FAKE_RETAIN:
	case STORE_FAKE_COMMIT:
	case STORE_FAKE_RESIZE_DISK:
	case STORE_FAKE_CREATE_IMAGE:
	case STORE_FAKE_BEGIN_ROUND:
	case STORE_FAKE_FINISH_ROUND:
		return true;
	default:
		return false;
	}
}

static int call_fail(struct fake_call *call, struct failure *failure)
{
	if (call->plan.cuts_power) {
		power_cut_locked(call->fake);
		return fail(failure, call->plan.code, "fake store: the power is gone");
	}
	return fail_errno(failure, call->plan.code, "fake store: failing as told");
}

static void sleep_for(unsigned int delay_ms)
{
	struct timespec left = {.tv_sec = delay_ms / 1000, .tv_nsec = (long)(delay_ms % 1000) * 1000000};

	while (delay_ms > 0 && nanosleep(&left, &left) != 0 && errno == EINTR)
		;
}

/* Returns with the mutex held, whatever it returns. `view` may be NULL. */
int fake_call_enter(struct fake_call *call, struct fake *fake, enum store_fake_op op, const struct fake_view *view,
		    struct failure *failure)
{
	struct fake_plan *plan = &fake->plans[op];
	unsigned int delay_ms;

	*call = (struct fake_call){.fake = fake};
	{
		WITH_LOCK(&fake->mutex);
		fake->calls[op]++;
		delay_ms = fake->delay_ms[op];
		if (plan->at_call == fake->calls[op])
			call->plan = *plan;
	}
	sleep_for(delay_ms);
	(void)cleanup_lock(&fake->mutex);
	if (view != NULL && view->is_dead)
		return fail(failure, -EIO, "%s: the power went while it was open; open it again", view->view.name);
	if (call->plan.at_call != 0 && call->plan.when == STORE_FAKE_BEFORE)
		return call_fail(call, failure);
	if (promises_durability(op))
		fake_undo_drop(&fake->undo);
	return 0;
}

int fake_call_leave(struct fake_call *call, int error, struct failure *failure)
{
	struct fake *fake = call->fake;

	if (error == 0 && call->plan.at_call != 0 && call->plan.when == STORE_FAKE_AFTER)
		error = call_fail(call, failure);
	(void)pthread_mutex_unlock(&fake->mutex); /* cannot fail for a mutex this thread holds */
	return error;
}

/* ----------------------------------------------------- the store as a whole */

static int fake_contains_path(struct store *store, const char *path, bool *ret_contains, struct failure *failure)
{
	struct fake_call call;
	int error = fake_call_enter(&call, fake_of(store), STORE_FAKE_CONTAINS_PATH, NULL, failure);

	(void)path; /* nothing of this store has one */
	error = fake_call_leave(&call, error, failure);
	if (error == 0)
		*ret_contains = false;
	return error;
}

static void fake_free(struct fake *fake)
{
	assert(fake->views == NULL); /* store.h: all views closed before */
	fake_undo_drop(&fake->undo);
	for (size_t i = 0; i < fake->disk_count; i++)
		fake_disk_free(fake->disks[i]);
	free(fake->disks);
	fake_chunks_free(&fake->chunks);
	store_scratch_free(fake->scratch);
	free(fake->plain);
	free(fake->files);
	(void)pthread_mutex_destroy(&fake->mutex); /* nobody holds it: the views are closed */
	free(fake);
}

static void fake_close(struct store *store)
{
	fake_free(fake_of(store));
}

static const struct store_ops fake_ops = {
	.close = fake_close,
	.contains_path = fake_contains_path,
	.list_disks = fake_list_disks,
	.list_images = fake_list_images,
	.describe_image = fake_describe_image,
	.brief_images = fake_brief_images,
	.brief_image = fake_brief_image,
	.list_rounds = fake_list_rounds,
	.usage = fake_usage,
	.room = fake_room,
	.check = fake_check,
	.clean = fake_clean,
	.create_disk = fake_create_disk,
	.clone_disk = fake_clone_disk,
	.remove_disk = fake_remove_disk,
	.set_policy = fake_set_policy,
	.delete_image = fake_delete_image,
	.pin_image = fake_pin_image,
	.retain = fake_retain,
	.disk_files = fake_disk_files,
	.view_open = fake_view_open,
	.view_close = fake_view_close,
	.view_map = fake_view_map,
	.view_next_page = fake_view_next_page,
	.view_read_chunk = fake_view_read_chunk,
	.view_prefetch = fake_view_prefetch,
	.find_chunks = fake_find_chunks,
	.put_chunk = fake_put_chunk,
	.commit = fake_commit,
	.resize_disk = fake_resize_disk,
	.create_image = fake_create_image,
	.begin_round = fake_begin_round,
	.note_round = fake_note_round,
	.finish_round = fake_finish_round,
	.round_throttle = fake_round_throttle,
};

int store_fake_new(const struct store_fake_options *options, struct store **ret_store)
{
	uint32_t chunk_bytes = options->chunk_bytes == 0 ? STORE_CHUNK_DEFAULT_BYTES : options->chunk_bytes;
	struct fake *fake;

	if (chunk_bytes < STORE_CHUNK_LEAST_BYTES || chunk_bytes > STORE_CHUNK_MOST_BYTES ||
	    (chunk_bytes & (chunk_bytes - 1)) != 0)
		return -EINVAL;
	fake = calloc(1, sizeof(*fake));
	if (fake == NULL)
		return -ENOMEM;
	(void)pthread_mutex_init(&fake->mutex, NULL); /* cannot fail without attributes */
	fake->store.ops = &fake_ops;
	fake->store.serial = store_next_serial();
	fake->store.chunk_bytes = chunk_bytes;
	fake->read_only = options->read_only;
	fake->forgets_commits = options->forgets_commits;
	fake->store.location = strdup("fake");
	fake->plain = malloc(chunk_bytes);
	if (fake->store.location == NULL || fake->plain == NULL || store_scratch_new(&fake->scratch, NULL) != 0) {
		free(fake->store.location);
		fake_free(fake);
		return -ENOMEM;
	}
	*ret_store = &fake->store;
	return 0;
}

/* ------------------------------------------------------------- misbehaviour */

void store_fake_delay(struct store *store, enum store_fake_op op, unsigned int delay_ms)
{
	struct fake *fake = fake_of(store);

	WITH_LOCK(&fake->mutex);
	fake->delay_ms[op] = delay_ms;
}

static void make_plan(struct fake *fake, enum store_fake_op op, uint64_t n, struct fake_plan plan)
{
	WITH_LOCK(&fake->mutex);
	plan.at_call = n == 0 ? 0 : fake->calls[op] + n;
	fake->plans[op] = plan;
}

void store_fake_fail(struct store *store, enum store_fake_op op, uint64_t n, int code, enum store_fake_when when)
{
	assert(code < 0);
	make_plan(fake_of(store), op, n, (struct fake_plan){.code = code, .when = when});
}

void store_fake_cut_power_at(struct store *store, enum store_fake_op op, uint64_t n, enum store_fake_when when)
{
	make_plan(fake_of(store), op, n, (struct fake_plan){.code = -EIO, .when = when, .cuts_power = true});
}

void store_fake_power_cut(struct store *store)
{
	struct fake *fake = fake_of(store);

	WITH_LOCK(&fake->mutex);
	power_cut_locked(fake);
}

int store_fake_damage(struct store *store, const uint8_t digest[DIGEST_BYTES], bool is_damaged)
{
	struct fake *fake = fake_of(store);
	struct fake_chunk *chunk;

	WITH_LOCK(&fake->mutex);
	chunk = fake_chunk_find(&fake->chunks, digest);
	if (chunk == NULL)
		return -ENOENT;
	chunk->is_damaged = is_damaged;
	return 0;
}

uint64_t store_fake_calls(struct store *store, enum store_fake_op op)
{
	struct fake *fake = fake_of(store);

	WITH_LOCK(&fake->mutex);
	return fake->calls[op];
}

uint64_t store_fake_bytes_read(struct store *store)
{
	struct fake *fake = fake_of(store);

	WITH_LOCK(&fake->mutex);
	return fake->bytes_read;
}
