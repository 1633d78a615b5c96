/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clean-up of the fake store: chunks that no map refers to are forgotten. There are no segments: one counts as removed
 * when anything was.
 */
#include <errno.h>

#include "common/cleanup.h"
#include "store/store_fake_internal.h"

/* Forgets every chunk that no map refers to. */
static int clean_locked(struct fake *fake, bool pending_too, bool dry_run, uint64_t *ret_bytes, size_t *ret_count,
			struct failure *failure)
{
	AUTO_FREE uint32_t *sharers = NULL;
	int error = fake_count_sharers(fake, &sharers, failure);

	for (size_t i = 0; error == 0 && i < fake->chunks.count; i++) {
		const struct fake_chunk *chunk = fake->chunks.by_id[i];

		if (chunk == NULL || sharers[i] > 0 || !(chunk->is_durable || pending_too))
			continue;
		*ret_bytes += record_total_bytes(chunk->stored_bytes);
		++*ret_count;
		if (!dry_run)
			fake_chunk_drop(&fake->chunks, i + 1);
	}
	return error;
}

size_t store_fake_clean(struct store *store)
{
	struct fake *fake = fake_of(store);
	uint64_t bytes = 0;
	size_t count = 0;

	WITH_LOCK(&fake->mutex);
	fake_undo_drop(&fake->undo); /* it refers to chunks, too */
	return clean_locked(fake, true, false, &bytes, &count, NULL) == 0 ? count : 0;
}

int fake_clean(struct store *store, const struct store_clean_params *params, struct store_clean_report *ret_report,
	       struct failure *failure)
{
	struct fake *fake = fake_of(store);
	struct store_clean_report report = {.freed_bytes = 0};
	struct fake_call call;
	size_t count = 0;
	int error = fake_call_enter(&call, fake, STORE_FAKE_CLEAN, NULL, failure);

	if (error == 0 && !params->dry_run)
		error = fake_check_writable(fake, failure);
	if (error == 0 && params->stop != NULL && *params->stop)
		error = -EINTR;
	if (error == 0 && !params->dry_run)
		fake_undo_drop(&fake->undo);
	if (error == 0)
		error = clean_locked(fake, false, params->dry_run, &report.freed_bytes, &count, failure);
	report.removed_segments = count > 0;
	*ret_report = report;
	return fake_call_leave(&call, error, failure);
}
