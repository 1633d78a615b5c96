/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chunks whose content is lost: their record is damaged, or in a segment that is gone.
 *
 * Such a chunk keeps its id, so that all that refer to it go on to say what they had; it has no row in the index by digest, so that nobody new comes to refer to it,
 * and a row here, by its whole digest. A round that meets the content stores it, and the chunk's location becomes that of the new record: every disk and image that
 * refers to it is healed by that one change.
 *
 *                                row in digest   row in lost   location
 *     sound                          yes            no          its record
 *     marked by a check              no             yes         its record, damaged: who finds it sound again takes the mark away
 *     found gone by a rebuild        no             yes         CATALOG_NO_SEGMENT
 *
 * With its last reference it goes, with all its rows: what is dead and can be found again must be sound.
 *
 * Nearly always nothing is lost. Whether anything is, is asked once for each state of the database, so that whoever reads much doesn't pay for it.
 */
#include <errno.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

enum { LOST_BYTES = 1 /* as much as a location must have */, LOST_A_LOOK = 256 };

static int lost_put(struct catalog *catalog, uint64_t chunk, const uint8_t digest[CATALOG_DIGEST_BYTES],
		    struct failure *failure)
{
	STATEMENT *put = catalog_statement(catalog, ST_LOST_PUT, failure);

	if (put == NULL)
		return catalog->statement_error;
	catalog->has_lost = catalog->knows_lost = true;
	(void)sqlite3_bind_blob(put, 1, digest, CATALOG_DIGEST_BYTES, SQLITE_STATIC);
	bind_u64(put, 2, chunk);
	return catalog_run(catalog, put, failure);
}

int catalog_lost_add(struct catalog *catalog, const uint8_t digest[CATALOG_DIGEST_BYTES], uint64_t *ret_chunk,
		     struct failure *failure)
{
	const struct catalog_location nowhere = {
		.tag = catalog_tag(digest), .segment = CATALOG_NO_SEGMENT, .stored_bytes = LOST_BYTES};
	uint64_t chunk;
	int result = catalog_chunk_add(catalog, &nowhere, &chunk, failure);

	if (result == 0)
		result = digest_forget(catalog, nowhere.tag, chunk, failure);
	if (result == 0)
		result = lost_put(catalog, chunk, digest, failure);
	if (result == 0)
		*ret_chunk = chunk;
	return result;
}

int catalog_lost_hold(struct catalog *catalog, uint64_t chunk, struct failure *failure)
{
	return chunk_refer(catalog, chunk, 1, NULL, failure);
}

int catalog_lost_release(struct catalog *catalog, uint64_t chunk, struct failure *failure)
{
	return chunk_refer(catalog, chunk, -1, NULL, failure);
}

int catalog_lost_mark(struct catalog *catalog, uint64_t chunk, const uint8_t digest[CATALOG_DIGEST_BYTES],
		      struct failure *failure)
{
	struct catalog_location location;
	uint64_t known = 0;
	int result = catalog_chunk_get(catalog, chunk, &location, failure);

	assert(catalog->in_transaction);
	if (result < 0)
		return result;
	if (location.tag != catalog_tag(digest))
		return -EINVAL;
	if (location.references == 0)
		return catalog_chunk_drop(catalog, chunk, failure);
	result = catalog_lost_find(catalog, digest, &known, failure);
	if (result < 0 || known != 0)
		return result < 0 || known == chunk ? result : -EEXIST;
	result = digest_forget(catalog, location.tag, chunk, failure);
	return result == 0 ? lost_put(catalog, chunk, digest, failure) : result;
}

int catalog_lost_any(struct catalog *catalog, bool *ret_any, struct failure *failure)
{
	static const uint8_t first[CATALOG_DIGEST_BYTES];
	int result = chunk_cache_prepare(catalog, failure);

	if (result == 0 && !catalog->knows_lost) {
		struct catalog_lost row;
		size_t count = 0;

		result = catalog_lost_list(catalog, first, &row, 1, &count, failure);
		if (result < 0)
			return result;
		catalog->has_lost = count > 0;
		catalog->knows_lost = true;
	}
	if (result == 0)
		*ret_any = catalog->has_lost;
	return result;
}

int catalog_lost_has(struct catalog *catalog, uint64_t chunk, bool *ret_has, struct failure *failure)
{
	bool any = false;
	int result = catalog_lost_any(catalog, &any, failure);

	if (result == 0 && any) {
		STATEMENT *query = catalog_statement(catalog, ST_LOST_HAS, failure);

		if (query == NULL)
			return catalog->statement_error;
		bind_u64(query, 1, chunk);
		result = catalog_step(catalog, query, failure);
	}
	if (result < 0)
		return result;
	*ret_has = result == 1;
	return 0;
}

int lost_forget(struct catalog *catalog, uint64_t chunk, bool *ret_was, struct failure *failure)
{
	bool was = false;
	int result = catalog_lost_has(catalog, chunk, &was, failure);

	assert(catalog->in_transaction);
	if (result == 0 && was) {
		STATEMENT *delete = catalog_statement(catalog, ST_LOST_FORGET, failure);

		if (delete == NULL)
			return catalog->statement_error;
		bind_u64(delete, 1, chunk);
		result = catalog_run(catalog, delete, failure);
		catalog->knows_lost = false;
	}
	if (result == 0)
		*ret_was = was;
	return result;
}

int catalog_lost_unmark(struct catalog *catalog, uint64_t chunk, struct failure *failure)
{
	struct catalog_location location;
	bool was = false;
	int result = catalog_chunk_get(catalog, chunk, &location, failure);

	if (result < 0)
		return result == -ENOENT ? 0 : result;
	if (location.segment == CATALOG_NO_SEGMENT)
		return fail(failure, -EINVAL, "catalog %s: chunk %llu has no record that could be sound", catalog->path,
			    (unsigned long long)chunk);
	result = lost_forget(catalog, chunk, &was, failure);
	return result == 0 && was ? digest_remember(catalog, location.tag, chunk, failure) : result;
}

int catalog_lost_find(struct catalog *catalog, const uint8_t digest[CATALOG_DIGEST_BYTES], uint64_t *ret_chunk,
		      struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_LOST_FIND, failure);
	bool bad = false;
	uint64_t chunk = 0;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_blob(query, 1, digest, CATALOG_DIGEST_BYTES, SQLITE_STATIC);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	if (result == 1)
		chunk = column_u64(query, 0, ((uint64_t)1 << 62) - 1, &bad);
	if (bad)
		return catalog_bad_row(catalog, "lost", failure);
	*ret_chunk = chunk;
	return 0;
}

int catalog_lost_list(struct catalog *catalog, const uint8_t after[CATALOG_DIGEST_BYTES], struct catalog_lost *ret_list,
		      size_t most, size_t *ret_count, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_LOST_LIST, failure);
	bool bad = false;
	size_t count = 0;
	int result;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_blob(query, 1, after, CATALOG_DIGEST_BYTES, SQLITE_STATIC);
	bind_u64(query, 2, most);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		column_bytes(query, 0, ret_list[count].digest, CATALOG_DIGEST_BYTES, &bad);
		ret_list[count++].chunk = column_u64(query, 1, ((uint64_t)1 << 62) - 1, &bad);
	}
	if (result < 0)
		return result;
	if (bad)
		return catalog_bad_row(catalog, "lost", failure);
	*ret_count = count;
	return 0;
}

static int lost_delete(struct catalog *catalog, const uint8_t digest[CATALOG_DIGEST_BYTES], struct failure *failure)
{
	STATEMENT *delete = catalog_statement(catalog, ST_LOST_DELETE, failure);

	if (delete == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_blob(delete, 1, digest, CATALOG_DIGEST_BYTES, SQLITE_STATIC);
	catalog->knows_lost = false;
	return catalog_run_one(catalog, delete, "lost", failure);
}

int catalog_lost_heal(struct catalog *catalog, uint64_t chunk, const uint8_t digest[CATALOG_DIGEST_BYTES],
		      const struct catalog_location *location, struct failure *failure)
{
	int result = catalog_chunk_relocate(catalog, chunk, location, failure);

	if (result == 0)
		result = lost_delete(catalog, digest, failure);
	return result == 0 ? digest_remember(catalog, catalog_tag(digest), chunk, failure) : result;
}

int catalog_lost_sweep(struct catalog *catalog, uint64_t *ret_left, struct failure *failure)
{
	AUTO_FREE struct catalog_lost *rows = calloc(LOST_A_LOOK, sizeof(*rows));
	uint8_t after[CATALOG_DIGEST_BYTES] = {0};
	uint64_t left = 0;
	size_t count;

	assert(catalog->in_transaction);
	if (rows == NULL)
		return fail_errno(failure, -ENOMEM, "catalog");
	do {
		int result = catalog_lost_list(catalog, after, rows, LOST_A_LOOK, &count, failure);

		for (size_t i = 0; result == 0 && i < count; i++) {
			struct catalog_location location;

			memcpy(after, rows[i].digest, sizeof(after));
			result = catalog_chunk_get(catalog, rows[i].chunk, &location, failure);
			if (result == -ENOENT)
				result = lost_delete(catalog, rows[i].digest, failure);
			else if (result == 0 && location.references > 0)
				left++;
			else if (result == 0)
				result = catalog_chunk_drop(catalog, rows[i].chunk, failure);
		}
		if (result < 0)
			return result;
	} while (count == LOST_A_LOOK);
	*ret_left = left;
	return 0;
}
