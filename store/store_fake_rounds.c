/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds of the fake store.
 *
 *     (none) --begin--> running --finish--> done
 *                       |    ^   \-finish--> stopped, failed
 *                       |    |                 |
 *                 power cut  +----begin--------+     same source, same `how`: resumed
 *                       |    |                 |
 *                       +----+      else: failed, "superseded", and a new one begins
 *
 * Only a disk's newest round can be running or be resumed.
 *
 * What the last round that was done knew of the content is worth something to the
 * next only as long as nothing was written since: disk->content_round is that
 * round, and 0 from the first change after it. A round that is resumed after
 * changes of its own is not told either.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "store/store_fake_internal.h"

void fake_round_free(struct fake_round *round)
{
	if (round == NULL)
		return;
	free(round->source);
	free(round->identity);
	free(round->how);
	free(round->start_stamp);
	free(round->dirty_bitmaps);
	free(round->details);
	free(round->error);
	free(round);
}

struct fake_round *fake_newest_round(const struct fake_disk *disk)
{
	return disk->round_count == 0 ? NULL : disk->rounds[disk->round_count - 1];
}

int fake_check_round(const struct fake_view *view, uint32_t number, struct fake_round **ret_round,
		     struct failure *failure)
{
	struct fake_round *round = fake_newest_round(view->disk);

	if (round == NULL || round->number != number || round->state != ROUND_RUNNING)
		return fail(failure, -EINVAL, "%s: round %u is not running", view->view.name, number);
	*ret_round = round;
	return 0;
}

/* Is this the round to go on with? Whatever ended it but being done or superseded, its last commit stands. */
static bool may_resume(const struct fake_round *round, const struct store_round_params *params)
{
	return round != NULL && round->state != ROUND_DONE && strcmp(round->identity, params->source_identity) == 0 &&
	       strcmp(round->how, params->how) == 0;
}

static int supersede_round(struct fake_round *round, struct failure *failure)
{
	char *text;

	if (round == NULL || round->state == ROUND_DONE || round->state == ROUND_FAILED)
		return 0; /* over, or failed for a reason of its own */
	if (asprintf(&text, "superseded by round %u", round->number + 1) < 0)
		return fake_no_memory(failure);
	free(round->error);
	round->error = text;
	round->state = ROUND_FAILED;
	if (round->finished_at == 0)
		round->finished_at = time(NULL);
	return 0;
}

static int make_round(const struct store_round_params *params, struct fake_round **ret_round, struct failure *failure)
{
	struct fake_round *round = calloc(1, sizeof(*round));
	int error;

	if (round == NULL)
		return fake_no_memory(failure);
	error = fake_copy_text(params->source_identity, &round->identity, failure);
	if (error == 0)
		error = fake_copy_text(params->how, &round->how, failure);
	if (error == 0)
		error = fake_copy_text(params->start_stamp, &round->start_stamp, failure);
	if (error == 0)
		error = fake_copy_text(params->dirty_bitmaps, &round->dirty_bitmaps, failure);
	if (error != 0) {
		fake_round_free(round);
		return error;
	}
	round->dirty_bytes = params->dirty_bytes;
	round->started_at = time(NULL);
	*ret_round = round;
	return 0;
}

static int add_round(struct fake_disk *disk, const struct store_round_params *params, struct failure *failure)
{
	struct fake_round *round = NULL;
	int error = fake_reserve(&disk->rounds, &disk->round_capacity, disk->round_count, sizeof(struct fake_round *),
				 failure);

	if (error == 0)
		error = make_round(params, &round, failure);
	if (error != 0)
		return error;
	error = supersede_round(fake_newest_round(disk), failure);
	if (error != 0) {
		fake_round_free(round);
		return error;
	}
	disk->rounds[disk->round_count++] = round;
	round->number = (uint32_t)disk->round_count;
	return 0;
}

static int describe_begun(const struct fake_disk *disk, const struct fake_round *round, bool resumed,
			  struct store_round_begun *begun, struct failure *failure)
{
	const struct fake_round *previous = disk->content_round == 0 ? NULL : disk->rounds[disk->content_round - 1];
	int error;

	begun->number = round->number;
	begun->resumed = resumed;
	begun->cursor_bytes = round->cursor_bytes;
	begun->counts = round->counts;
	error = fake_copy_text(round->start_stamp, &begun->start_stamp, failure);
	if (error == 0)
		error = fake_copy_text(round->details, &begun->details, failure);
	if (error != 0 || previous == NULL)
		return error;
	begun->previous_dirty_bytes = previous->dirty_bytes;
	error = fake_copy_text(previous->identity, &begun->previous_identity, failure);
	if (error == 0)
		error = fake_copy_text(previous->details, &begun->previous_details, failure);
	return error != 0 ? error : fake_copy_text(previous->dirty_bitmaps, &begun->previous_dirty_bitmaps, failure);
}

static int begin_round_locked(struct fake_view *view, const struct store_round_params *params,
			      struct store_round_begun *begun, struct failure *failure)
{
	struct fake_disk *disk = view->disk;
	bool resumed = may_resume(fake_newest_round(disk), params);
	AUTO_FREE char *mirror_of = NULL;
	AUTO_FREE char *source = NULL;
	struct fake_round *round;
	int error = fake_copy_text(params->source, &mirror_of, failure);

	if (error == 0)
		error = fake_copy_text(params->source, &source, failure);
	if (error == 0 && !resumed)
		error = add_round(disk, params, failure);
	if (error != 0)
		return error;
	round = fake_newest_round(disk);
	round->state = ROUND_RUNNING;
	round->finished_at = 0;
	free(take_ptr(round->error));
	free(round->source);
	round->source = take_ptr(source);
	round->has_limit = params->has_limit;
	round->has_level = params->has_level;
	round->limit_bytes_per_second = params->limit_bytes_per_second;
	round->level = params->level;
	free(disk->mirror_of);
	disk->mirror_of = take_ptr(mirror_of);
	return describe_begun(disk, round, resumed, begun, failure);
}

int fake_begin_round(struct store_view *store_view, const struct store_round_params *params,
		     struct store_round_begun *ret_begun, struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct store_round_begun begun = {.number = 0};
	struct fake_call call;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_BEGIN_ROUND, view, failure);

	if (error == 0)
		error = begin_round_locked(view, params, &begun, failure);
	error = fake_call_leave(&call, error, failure);
	if (error != 0) {
		store_round_begun_free(&begun);
		return error;
	}
	*ret_begun = begun;
	return 0;
}

static int note_round_locked(struct fake_view *view, uint32_t number, const char *details, struct failure *failure)
{
	struct fake_round *round = NULL;
	char *note = NULL;
	int error = fake_check_round(view, number, &round, failure);

	if (error == 0)
		error = fake_copy_text(details, &note, failure);
	if (error != 0)
		return error;
	free(round->details);
	round->details = note;
	return 0;
}

int fake_note_round(struct store_view *store_view, uint32_t number, const char *details, struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct fake_call call;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_NOTE_ROUND, view, failure);

	if (error == 0)
		error = note_round_locked(view, number, details, failure);
	return fake_call_leave(&call, error, failure);
}

static int finish_round_locked(struct fake_view *view, uint32_t number, enum store_round_state state,
			       const char *error_text, const struct store_round_counts *counts, struct failure *failure)
{
	struct fake_round *round = NULL;
	char *copy = NULL;
	int error = fake_check_round(view, number, &round, failure);

	if (error == 0)
		error = fake_copy_text(error_text, &copy, failure);
	if (error != 0)
		return error;
	free(round->error);
	round->error = copy;
	round->state = state;
	round->finished_at = time(NULL);
	round->counts = *counts;
	if (state == ROUND_DONE)
		view->disk->content_round = number;
	return 0;
}

int fake_finish_round(struct store_view *store_view, uint32_t number, enum store_round_state state, const char *error,
		      const struct store_round_counts *counts, struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct fake_call call;
	int status = fake_call_enter(&call, view->fake, STORE_FAKE_FINISH_ROUND, view, failure);

	if (status == 0)
		status = finish_round_locked(view, number, state, error, counts, failure);
	return fake_call_leave(&call, status, failure);
}

static int round_throttle_locked(const struct fake_view *view, uint32_t number, struct store_throttle *throttle,
				 struct failure *failure)
{
	const struct fake_disk *disk = view->disk;
	const struct fake_round *round;

	if (number > disk->round_count)
		return fail(failure, -EINVAL, "%s: there is no round %u", view->view.name, number);
	round = disk->rounds[number - 1];
	throttle->limit_bytes_per_second =
		round->has_limit ? round->limit_bytes_per_second : disk->limit_bytes_per_second;
	throttle->level = round->has_level ? round->level : disk->level;
	if (throttle->level == -1)
		throttle->level = CODEC_LEVEL_DEFAULT;
	return 0;
}

int fake_round_throttle(struct store_view *store_view, uint32_t number, struct store_throttle *ret_throttle,
			struct failure *failure)
{
	struct fake_view *view = fake_view_of(store_view);
	struct store_throttle throttle;
	struct fake_call call;
	int error = fake_call_enter(&call, view->fake, STORE_FAKE_ROUND_THROTTLE, view, failure);

	if (error == 0)
		error = round_throttle_locked(view, number, &throttle, failure);
	error = fake_call_leave(&call, error, failure);
	if (error == 0)
		*ret_throttle = throttle;
	return error;
}
