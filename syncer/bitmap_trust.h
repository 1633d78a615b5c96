/* SPDX-License-Identifier: Apache-2.0 */
/*
 * May a round believe a QEMU dirty bitmap? What a bitmap calls clean is not read, so in any doubt the answer is no.
 *
 * A bitmap accumulates on its server, and nobody here clears it: what it says is whole if it has been recording since
 * before the last finished round began to read. The protocol gives a bitmap a name and nothing else, no number, no time
 * of birth. So a round notes, when it begins:
 *
 *   - the names of all bitmaps that the server shows (one that is not among them began later);
 *   - a hash of the layout: what was left out of the disk then was never read, though the bitmap may call it clean;
 *   - of the bitmap in use, how much it calls dirty and some of the places (marks). A bitmap that was cleared, or made
 *     anew under its name, has forgotten them, unless all of them were written to again.
 *
 * The bitmap has to go on recording while it is read: an enabled one, or one of a snapshot that nobody writes to.
 *
 * What remains, a bitmap made anew that has no mark to miss, is left to the samples that the pipeline reads of what is
 * called clean. Who makes a bitmap anew gives it a new name.
 */
#ifndef WHERRY_SYNCER_BITMAP_TRUST_H
#define WHERRY_SYNCER_BITMAP_TRUST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/failure.h"
#include "store/store.h"
#include "syncer/plan.h"
#include "syncer/source.h"

enum { DIRTY_MARKS_MOST = 64 };

struct dirty_marks {
	uint64_t dirty_bytes;
	unsigned count;
	uint64_t at[DIRTY_MARKS_MOST]; /* offsets in bytes, each in a stretch of its own that was dirty, in no order */
};

/* Asks the server for all of the bitmap in use (source_options.dirty_bitmap). Which places are picked depends on where they are only. */
int dirty_marks_read(struct source *source, const atomic_bool *stop, struct dirty_marks *ret_marks,
		     struct failure *failure);

/* Is what was dirty then still dirty? If not, the bitmap is another one. */
int dirty_marks_check(struct source *source, const struct dirty_marks *then, const struct dirty_marks *now,
		      bool *ret_still_dirty, struct failure *failure);

/* NULL: no memory. Marks that were not written by this are read as none. */
json_t *dirty_marks_to_json(const struct dirty_marks *marks);
void dirty_marks_from_json(const json_t *json, struct dirty_marks *ret_marks);

/* What decides which parts of the disk are left out, besides what the file systems call free. */
uint64_t bitmap_trust_layout(struct source *source, struct plan *plan, bool read_all);

/* What a round notes, as a text for store_round_params.dirty_bitmaps. used: NULL for none. NULL: no memory. The caller frees it. */
char *bitmap_trust_describe(struct source *source, uint64_t layout_hash, const char *used, const struct dirty_marks *marks);

/*
 * May this round, which is a new one, trust the bitmap `name`? *ret_why_not becomes NULL, or says why not, a constant text. Asks the server; durable: nothing.
 */
int bitmap_trust_decide(struct source *source, uint64_t layout_hash, const struct store_round_begun *begun, const char *name,
			const struct dirty_marks *now, const char **ret_why_not, struct failure *failure);

#endif
