/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pieces of disks that are those of images: clones.
 *
 * What a chunk of a disk is, its own states say (map.c). Where they say CATALOG_NOTHING, a piece may cover the chunk:
 * then it is what the piece's image has in that place, and that is found in the same way, since the image's disk may be
 * a clone itself. CATALOG_ZERO ends the search with zeros.
 *
 * Pieces have generations as states have: [since, until) with 0 for those that live content has. So what a disk's base
 * is can change (a clone that is zeroed as a whole needs none any more) while its images go on seeing what they saw, at
 * the cost of a row. A piece that is replaced is kept if an image has seen it, and goes with the last such image. Rows
 * are few: one for a plain clone, some for a new layout, and each large range that is zeroed takes two more at most.
 *
 * An image to which a row of another disk refers must not go. Whoever deletes looks, in the transaction that deletes,
 * with catalog_base_users(); whoever adds a row looks, in the transaction that adds it, that the image is alive. So
 * neither can miss the other, and there is nothing to be locked for it.
 *
 * Levels. The search goes down one level a clone, and is over when nothing is open any more; with written-over clones
 * it is over sooner. The store makes a clone of an unwritten part of a clone refer to what lies below it, so that only
 * what was really written makes a level. CATALOG_LEVELS_MOST ends a search that a damaged catalog leads around in a
 * circle.
 *
 * Rows have the uuid of the image's disk besides its id: it is what the disk's log has, and all that a rebuild knows
 * until it has been through all logs.
 */
#include <errno.h>
#include <string.h>

#include "catalog/internal.h"
#include "common/cleanup.h"

/* A generation in which live content's pieces are in force, and no others: none ends in or after it. */
#define LIVE_GENERATION ((uint64_t)UINT32_MAX)
#define SIZE_MOST ((uint64_t)1 << 60)

bool base_read_piece(sqlite3_stmt *row, int first_column, struct catalog_piece *ret_piece)
{
	bool bad = false;

	*ret_piece = (struct catalog_piece){
		.off_bytes = column_u64(row, first_column, SIZE_MOST, &bad),
		.len_bytes = column_u64(row, first_column + 1, SIZE_MOST, &bad),
		.since = (uint32_t)column_u64(row, first_column + 2, UINT32_MAX, &bad),
		.image_disk = column_i64(row, first_column + 4, 0, CATALOG_DISKS_END - 1, &bad),
		.image_number = (uint32_t)column_u64(row, first_column + 5, UINT32_MAX, &bad),
		.image_generation = (uint32_t)column_u64(row, first_column + 6, UINT32_MAX, &bad),
		.image_off_bytes = column_u64(row, first_column + 7, SIZE_MOST, &bad),
	};
	column_bytes(row, first_column + 3, ret_piece->image_uuid, CATALOG_UUID_BYTES, &bad);
	return !bad && ret_piece->len_bytes > 0 && ret_piece->image_number > 0;
}

/* ---- lists ---- */

struct piece_list {
	struct catalog_piece *pieces;
	size_t count;
};

static void piece_list_free(struct piece_list *list)
{
	free(list->pieces);
}

static int add_piece(struct piece_list *list, const struct catalog_piece *piece, struct failure *failure)
{
	if ((list->count & (list->count - 1)) == 0) {
		struct catalog_piece *grown =
			reallocarray(list->pieces, list->count == 0 ? 1 : list->count * 2, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "catalog");
		list->pieces = grown;
	}
	list->pieces[list->count++] = *piece;
	return 0;
}

/* The pieces that reach into [off_bytes, end_bytes); end_bytes 0: all. */
static int list_pieces(struct catalog *catalog, int64_t disk, uint32_t generation, uint64_t off_bytes,
		       uint64_t end_bytes, struct piece_list *list, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, end_bytes == 0 ? ST_BASE_LIST : ST_BASE_RANGE, failure);
	int result = 0;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, generation == 0 ? LIVE_GENERATION : generation);
	if (end_bytes != 0) {
		bind_u64(query, 3, off_bytes);
		bind_u64(query, 4, end_bytes);
	}
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		struct catalog_piece piece;

		if (!base_read_piece(query, 0, &piece) || list->count == CATALOG_PIECES_MOST)
			return catalog_bad_row(catalog, "base", failure);
		result = add_piece(list, &piece, failure);
		if (result < 0)
			return result;
	}
	return result;
}

int catalog_base_list(struct catalog *catalog, int64_t disk, uint32_t generation, struct catalog_piece **ret_list,
		      size_t *ret_count, struct failure *failure)
{
	AUTO(piece_list_free) struct piece_list list = {.pieces = NULL};
	int result = list_pieces(catalog, disk, generation, 0, 0, &list, failure);

	if (result < 0)
		return result;
	*ret_count = list.count;
	*ret_list = take_ptr(list.pieces);
	return 0;
}

int catalog_base_any(struct catalog *catalog, int64_t disk, uint32_t generation, bool *ret_any, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_BASE_ANY, failure);
	int result = 0;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, generation == 0 ? LIVE_GENERATION : generation);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	*ret_any = result == 1;
	return 0;
}

int catalog_base_users(struct catalog *catalog, int64_t image_disk, uint32_t number,
		       struct catalog_base_user **ret_list, size_t *ret_count, struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_BASE_USERS, failure);
	AUTO_FREE struct catalog_base_user *list = NULL;
	size_t count = 0;
	int result = 0;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, image_disk);
	bind_u64(query, 2, number);
	while ((result = catalog_step(catalog, query, failure)) == 1) {
		struct catalog_base_user *grown = reallocarray(list, count + 1, sizeof(*grown));
		bool bad = false;
		AUTO_FREE char *name = column_text(query, 1, CATALOG_NAME_BYTES - 1, &bad);

		if (grown == NULL)
			return fail_errno(failure, -ENOMEM, "catalog");
		list = grown;
		list[count].image_number = (uint32_t)column_u64(query, 0, UINT32_MAX, &bad);
		if (bad || name == NULL)
			return catalog_bad_row(catalog, "base", failure);
		(void)strcpy(list[count++].name, name);
	}
	if (result < 0)
		return result;
	*ret_list = take_ptr(list);
	*ret_count = count;
	return 0;
}

int catalog_base_parent(struct catalog *catalog, int64_t disk, char ret_name[CATALOG_NAME_BYTES], uint32_t *ret_number,
			struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_BASE_PARENT, failure);
	AUTO_FREE char *name = NULL;
	bool bad = false;
	uint32_t number;
	int result = 0;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	result = catalog_step(catalog, query, failure);
	if (result == 0)
		*ret_number = 0;
	if (result <= 0)
		return result;
	name = column_text(query, 0, CATALOG_NAME_BYTES - 1, &bad);
	number = (uint32_t)column_u64(query, 1, UINT32_MAX, &bad);
	if (bad || name == NULL)
		return catalog_bad_row(catalog, "base", failure);
	(void)strcpy(ret_name, name);
	*ret_number = number;
	return 0;
}

int catalog_base_levels(struct catalog *catalog, int64_t disk, uint32_t generation, unsigned *ret_levels,
			struct failure *failure)
{
	STATEMENT *query = catalog_statement(catalog, ST_BASE_LEVELS, failure);
	bool bad = false;
	int result = 0;

	if (query == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(query, 1, disk);
	bind_u64(query, 2, generation);
	bind_u64(query, 3, CATALOG_LEVELS_MOST);
	result = catalog_step(catalog, query, failure);
	if (result < 0)
		return result;
	*ret_levels = (unsigned)column_u64(query, 0, CATALOG_LEVELS_MOST + 1, &bad);
	return bad ? catalog_bad_row(catalog, "base", failure) : 0;
}

/* ---- changing ---- */

static bool is_same_piece(const struct catalog_piece *a, const struct catalog_piece *b)
{
	return a->off_bytes == b->off_bytes && a->len_bytes == b->len_bytes && a->image_number == b->image_number &&
	       a->image_off_bytes == b->image_off_bytes &&
	       memcmp(a->image_uuid, b->image_uuid, CATALOG_UUID_BYTES) == 0;
}

/* Both ascend, so the one that begins in the same place is the only one that can be the same. */
static bool has_piece(const struct catalog_piece *pieces, size_t count, const struct catalog_piece *piece)
{
	size_t first = 0, end = count;

	while (first < end) {
		size_t middle = first + (end - first) / 2;

		if (pieces[middle].off_bytes < piece->off_bytes)
			first = middle + 1;
		else
			end = middle;
	}
	return first < count && is_same_piece(&pieces[first], piece);
}

/* A piece of live content ends: kept until now if an image has seen it. */
static int end_piece(struct catalog *catalog, const struct catalog_disk *disk, uint32_t newest_image,
		     const struct catalog_piece *piece, struct failure *failure)
{
	bool is_seen = newest_image != 0 && piece->since <= newest_image;
	STATEMENT *statement = catalog_statement(catalog, is_seen ? ST_BASE_END : ST_BASE_DELETE, failure);

	if (statement == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(statement, 1, disk->id);
	bind_u64(statement, 2, piece->off_bytes);
	if (is_seen)
		bind_u64(statement, 3, disk->generation);
	return catalog_run_one(catalog, statement, "base", failure);
}

static int put_piece(struct catalog *catalog, const struct catalog_disk *disk, const struct catalog_piece *piece,
		     struct failure *failure)
{
	STATEMENT *put = catalog_statement(catalog, ST_BASE_PUT, failure);

	if (put == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(put, 1, disk->id);
	bind_u64(put, 2, piece->off_bytes);
	bind_u64(put, 3, piece->len_bytes);
	bind_u64(put, 4, disk->generation);
	(void)sqlite3_bind_blob(put, 5, piece->image_uuid, CATALOG_UUID_BYTES, SQLITE_STATIC);
	(void)sqlite3_bind_int64(put, 6, piece->image_disk);
	bind_u64(put, 7, piece->image_number);
	bind_u64(put, 8, piece->image_generation);
	bind_u64(put, 9, piece->image_off_bytes);
	return catalog_run(catalog, put, failure);
}

int catalog_base_set(struct catalog *catalog, const struct catalog_disk *disk, const struct catalog_piece *pieces,
		     size_t count, struct failure *failure)
{
	AUTO(piece_list_free) struct piece_list before = {.pieces = NULL};
	uint32_t newest_image = 0;
	int result;

	assert(catalog->in_transaction && count <= CATALOG_PIECES_MOST);
	result = list_pieces(catalog, disk->id, 0, 0, 0, &before, failure);
	if (result == 0)
		result = image_newest_generation(catalog, disk->id, &newest_image, failure);
	for (size_t i = 0; result == 0 && i < before.count; i++)
		if (!has_piece(pieces, count, &before.pieces[i]))
			result = end_piece(catalog, disk, newest_image, &before.pieces[i], failure);
	for (size_t i = 0; result == 0 && i < count; i++)
		if (!has_piece(before.pieces, before.count, &pieces[i]))
			result = put_piece(catalog, disk, &pieces[i], failure);
	return result;
}

static int run_for_disk(struct catalog *catalog, enum statement which, int64_t disk, struct failure *failure)
{
	STATEMENT *statement = catalog_statement(catalog, which, failure);

	assert(catalog->in_transaction);
	if (statement == NULL)
		return catalog->statement_error;
	(void)sqlite3_bind_int64(statement, 1, disk);
	return catalog_run(catalog, statement, failure);
}

int catalog_base_forget_unseen(struct catalog *catalog, int64_t disk, struct failure *failure)
{
	return run_for_disk(catalog, ST_BASE_FORGET, disk, failure);
}

int catalog_base_drop(struct catalog *catalog, int64_t disk, struct failure *failure)
{
	return run_for_disk(catalog, ST_BASE_DROP, disk, failure);
}

int catalog_base_resolve(struct catalog *catalog,
			 int (*missing)(void *opaque, const char *disk, const struct catalog_piece *piece),
			 void *opaque, struct failure *failure)
{
	STATEMENT *resolve = catalog_statement(catalog, ST_BASE_RESOLVE, failure);
	STATEMENT *query = catalog_statement(catalog, ST_BASE_MISSING, failure);
	int result;

	assert(catalog->in_transaction);
	if (resolve == NULL || query == NULL)
		return catalog->statement_error;
	result = catalog_run(catalog, resolve, failure);
	while (result == 0 && (result = catalog_step(catalog, query, failure)) == 1) {
		bool bad = false;
		AUTO_FREE char *name = column_text(query, 0, CATALOG_NAME_BYTES - 1, &bad);
		struct catalog_piece piece;

		if (bad || name == NULL || !base_read_piece(query, 1, &piece))
			return catalog_bad_row(catalog, "base", failure);
		result = missing(opaque, name, &piece);
	}
	return result;
}

/* ---- reading ---- */

/* A search down the levels. */
struct content_search {
	struct catalog *catalog;
	uint32_t chunk_bytes;
	struct failure *failure;
};

/* The chunks that a piece covers, and where its image has them. */
struct covered {
	uint64_t first, end;
	uint64_t image_first;
};

static int cover(const struct content_search *search, int64_t disk, const struct catalog_piece *piece,
		 struct covered *ret_covered)
{
	uint32_t chunk_bytes = search->chunk_bytes;

	if (piece->image_generation == 0 || piece->image_disk == 0)
		return fail(search->failure, -EBADMSG,
			    "catalog %s: %llu bytes at %llu of disk %lld are those of an image that is gone",
			    search->catalog->path, (unsigned long long)piece->len_bytes,
			    (unsigned long long)piece->off_bytes, (long long)disk);
	if (piece->off_bytes % chunk_bytes != 0 || piece->image_off_bytes % chunk_bytes != 0)
		return fail(search->failure, -EBADMSG,
			    "catalog %s: a piece of disk %lld is not at a multiple of the chunk size",
			    search->catalog->path, (long long)disk);
	*ret_covered = (struct covered){.first = piece->off_bytes / chunk_bytes,
					.end = (piece->off_bytes + piece->len_bytes - 1) / chunk_bytes + 1,
					.image_first = piece->image_off_bytes / chunk_bytes};
	return 0;
}

static int read_level(const struct content_search *search, int64_t disk, uint32_t generation, uint64_t page,
		      unsigned levels_left, struct catalog_page *ret_page);

/* Fills in what a piece has for entries of the page that are nothing. */
static int fill_from_piece(const struct content_search *search, int64_t disk, const struct catalog_piece *piece,
			   uint64_t page, unsigned levels_left, struct catalog_page *content)
{
	AUTO_FREE struct catalog_page *source = NULL;
	uint64_t source_page = UINT64_MAX, page_first = page * CATALOG_PAGE_ENTRIES;
	struct covered covered;
	int result = cover(search, disk, piece, &covered);

	for (unsigned i = 0; result == 0 && i < CATALOG_PAGE_ENTRIES; i++) {
		uint64_t source_chunk = page_first + i - covered.first + covered.image_first;
		struct catalog_entry *entry = &content->entries[i];

		if (page_first + i < covered.first || page_first + i >= covered.end || entry->kind != CATALOG_NOTHING)
			continue;
		if (source == NULL && (source = malloc(sizeof(*source))) == NULL)
			return fail_errno(search->failure, -ENOMEM, "catalog");
		if (source_chunk / CATALOG_PAGE_ENTRIES != source_page) {
			source_page = source_chunk / CATALOG_PAGE_ENTRIES;
			result = read_level(search, piece->image_disk, piece->image_generation, source_page,
					    levels_left - 1, source);
			if (result < 0)
				return result;
		}
		*entry = source->entries[source_chunk % CATALOG_PAGE_ENTRIES];
		entry->has_fingerprint = false; /* its key is another disk's */
		memset(entry->fingerprint, 0, sizeof(entry->fingerprint));
		entry->since = piece->since;
	}
	return result;
}

static bool has_nothing(const struct catalog_page *page)
{
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		if (page->entries[i].kind == CATALOG_NOTHING)
			return true;
	return false;
}

static int read_level(const struct content_search *search, int64_t disk, uint32_t generation, uint64_t page,
		      unsigned levels_left, struct catalog_page *ret_page)
{
	AUTO(piece_list_free) struct piece_list list = {.pieces = NULL};
	uint64_t page_bytes = (uint64_t)search->chunk_bytes * CATALOG_PAGE_ENTRIES;
	int result;

	if (levels_left == 0)
		return fail(search->failure, -EBADMSG,
			    "catalog %s: clones of clones on more than %d levels; the catalog is damaged",
			    search->catalog->path, CATALOG_LEVELS_MOST);
	if (page >= SIZE_MOST / page_bytes + 1) {
		memset(ret_page, 0, sizeof(*ret_page));
		return 0;
	}
	if (generation == 0)
		result = catalog_map_read(search->catalog, disk, page, ret_page, search->failure);
	else
		result = catalog_map_read_at(search->catalog, disk, generation, page, ret_page, search->failure);
	if (result == 0 && has_nothing(ret_page))
		result = list_pieces(search->catalog, disk, generation, page * page_bytes, (page + 1) * page_bytes,
				     &list, search->failure);
	for (size_t i = 0; result == 0 && i < list.count; i++)
		result = fill_from_piece(search, disk, &list.pieces[i], page, levels_left, ret_page);
	return result;
}

int catalog_content_read(struct catalog *catalog, int64_t disk, uint32_t generation, uint32_t chunk_bytes,
			 uint64_t page, struct catalog_page *ret_page, struct failure *failure)
{
	const struct content_search search = {.catalog = catalog, .chunk_bytes = chunk_bytes, .failure = failure};
	struct catalog_page content;
	bool ours;
	int result = catalog_snapshot_begin(catalog, &ours, failure);

	if (result < 0)
		return result;
	result = read_level(&search, disk, generation, page, CATALOG_LEVELS_MOST, &content);
	catalog_snapshot_end(catalog, ours);
	if (result == 0)
		*ret_page = content;
	return result;
}

static int next_on_level(const struct content_search *search, int64_t disk, uint32_t generation, uint64_t from_page,
			 unsigned levels_left, uint64_t *ret_page);

/* The first page >= from_page in which something may show through the piece. */
static int next_of_piece(const struct content_search *search, int64_t disk, const struct catalog_piece *piece,
			 uint64_t from_page, unsigned levels_left, uint64_t *ret_page)
{
	uint64_t from = from_page * CATALOG_PAGE_ENTRIES, source, source_page;
	struct covered covered;
	int result = cover(search, disk, piece, &covered);

	*ret_page = UINT64_MAX;
	if (result < 0 || from >= covered.end)
		return result;
	source = (from > covered.first ? from - covered.first : 0) + covered.image_first;
	result = next_on_level(search, piece->image_disk, piece->image_generation, source / CATALOG_PAGE_ENTRIES,
			       levels_left - 1, &source_page);
	if (result < 0 || source_page == UINT64_MAX)
		return result;
	if (source < source_page * CATALOG_PAGE_ENTRIES)
		source = source_page * CATALOG_PAGE_ENTRIES;
	if (source - covered.image_first < covered.end - covered.first)
		*ret_page = (source - covered.image_first + covered.first) / CATALOG_PAGE_ENTRIES;
	return 0;
}

static int next_on_level(const struct content_search *search, int64_t disk, uint32_t generation, uint64_t from_page,
			 unsigned levels_left, uint64_t *ret_page)
{
	AUTO(piece_list_free) struct piece_list list = {.pieces = NULL};
	uint64_t page_bytes = (uint64_t)search->chunk_bytes * CATALOG_PAGE_ENTRIES, best = UINT64_MAX;
	int result;

	if (levels_left == 0)
		return fail(search->failure, -EBADMSG,
			    "catalog %s: clones of clones on more than %d levels; the catalog is damaged",
			    search->catalog->path, CATALOG_LEVELS_MOST);
	result = catalog_map_next(search->catalog, disk, generation, from_page, &best, search->failure);
	if (result == 0 && from_page <= SIZE_MOST / page_bytes)
		result = list_pieces(search->catalog, disk, generation, from_page * page_bytes, 2 * SIZE_MOST, &list,
				     search->failure);
	for (size_t i = 0; result == 0 && i < list.count; i++) {
		uint64_t page;

		if (best != UINT64_MAX && list.pieces[i].off_bytes / page_bytes >= best)
			break;
		result = next_of_piece(search, disk, &list.pieces[i], from_page, levels_left, &page);
		if (result == 0 && page < best)
			best = page;
	}
	if (result == 0)
		*ret_page = best;
	return result;
}

int catalog_content_next(struct catalog *catalog, int64_t disk, uint32_t generation, uint32_t chunk_bytes,
			 uint64_t from_page, uint64_t *ret_page, struct failure *failure)
{
	const struct content_search search = {.catalog = catalog, .chunk_bytes = chunk_bytes, .failure = failure};
	bool ours;
	int result = catalog_snapshot_begin(catalog, &ours, failure);

	if (result < 0)
		return result;
	result = next_on_level(&search, disk, generation, from_page, CATALOG_LEVELS_MOST, ret_page);
	catalog_snapshot_end(catalog, ours);
	return result;
}
