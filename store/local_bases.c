/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clones: disks that begin as an image, and what becomes of the pieces of images that show through them.
 *
 * Making one is a transaction with a row for each piece and two log entries, whatever the image holds. A plain clone
 * has one piece: all of it is the image. Where the image's disk is a clone itself and has written nothing in a part
 * (between two ends of its pieces), the piece refers to what lies below instead: a chain of clones is as long as what
 * was written in it. Then it is the image below that is in use, not the one that was named.
 *
 * Zeros over a piece. What is dropped or zeroed must not show the image again, so CATALOG_NOTHING becomes CATALOG_ZERO
 * where a piece is. That costs a page of the map for each 256 chunks, so a range of a page or more, or one that covers
 * a piece whole, is cut out of the pieces instead: 1 TiB of zeros over a clone is one row. Smaller ones are entries:
 * two rows more for each would soon be more than the page that they share. Above PIECES_MOST pieces nothing is cut that
 * would make one more.
 *
 * The log has what was asked for; what is made of it is decided here, in the one function through which commits and a
 * rebuild go, from the pieces that there are. A rebuild by another version may decide otherwise, and the content is the
 * same.
 *
 * Power lost: the transaction is the whole of it. The entry that makes the clone and the one that names its pieces are
 * durable before it, and count only if a later one follows them, or both are the newest: a rebuild that finds just the
 * first has an empty disk of that name, which was not acknowledged.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/local.h"

enum { PIECES_MOST = 256, LARGE_CHUNKS = CATALOG_PAGE_ENTRIES, NAMES_TOLD = 3 };

_Static_assert((int)PIECES_MOST <= (int)LOG_ENTRY_MOST_PIECES, "a list of pieces fits into an entry");

/* ---- who uses an image ---- */

int local_clone_names(struct catalog *catalog, int64_t disk, uint32_t number, uint32_t *ret_number, char **ret_names,
		      struct failure *failure)
{
	AUTO_FREE struct catalog_base_user *users = NULL;
	AUTO_FREE char *text = NULL;
	size_t count = 0, of_image = 0;
	int result = catalog_base_users(catalog, disk, number, &users, &count, failure);

	*ret_names = NULL;
	if (result < 0 || count == 0)
		return result;
	while (of_image < count && users[of_image].image_number == users[0].image_number)
		of_image++;
	for (size_t i = 0; i < of_image && i < NAMES_TOLD; i++) {
		char *longer = NULL;
		int length = i == 0 ? asprintf(&longer, "%s %s", of_image == 1 ? "clone" : "clones", users[0].name)
				    : asprintf(&longer, "%s, %s", text, users[i].name);

		if (length < 0)
			return fail_errno(failure, -ENOMEM, "clones");
		free(text);
		text = longer;
	}
	if (of_image > NAMES_TOLD) {
		char *longer = NULL;

		if (asprintf(&longer, "%s and %zu more", text, of_image - NAMES_TOLD) < 0)
			return fail_errno(failure, -ENOMEM, "clones");
		free(text);
		text = longer;
	}
	if (ret_number != NULL)
		*ret_number = users[0].image_number;
	*ret_names = take_ptr(text);
	return 0;
}

int local_parent_text(struct catalog *catalog, int64_t disk, char **ret_text, struct failure *failure)
{
	char name[CATALOG_NAME_BYTES];
	uint32_t number = 0;
	int result = catalog_base_parent(catalog, disk, name, &number, failure);

	*ret_text = NULL;
	if (result < 0 || number == 0)
		return result;
	if (asprintf(ret_text, "%s@%u", name, number) < 0) {
		*ret_text = NULL;
		return fail_errno(failure, -ENOMEM, "disk");
	}
	return 0;
}

/* ---- lists of pieces ---- */

struct pieces {
	struct catalog_piece *list;
	size_t count, capacity;
};

static void pieces_free(struct pieces *pieces)
{
	free(pieces->list);
}

static int make_room(struct pieces *pieces, struct failure *failure)
{
	size_t capacity = pieces->capacity == 0 ? 8 : pieces->capacity * 2;
	struct catalog_piece *grown;

	if (pieces->count < pieces->capacity)
		return 0;
	grown = reallocarray(pieces->list, capacity, sizeof(*grown));
	if (grown == NULL)
		return fail_errno(failure, -ENOMEM, "disk");
	pieces->list = grown;
	pieces->capacity = capacity;
	return 0;
}

static uint64_t piece_end(const struct catalog_piece *piece)
{
	return piece->off_bytes + piece->len_bytes;
}

static int load_pieces(struct local_store *local, int64_t disk, uint32_t generation, struct pieces *pieces,
		       struct failure *failure)
{
	int result = catalog_base_list(local->writer, disk, generation, &pieces->list, &pieces->count, failure);

	pieces->capacity = pieces->count;
	return result;
}

/* Takes [off_bytes, end_bytes) out of a piece that reaches over it, or begins or ends in it. */
static int cut_piece(struct pieces *pieces, size_t index, uint64_t off_bytes, uint64_t end_bytes,
		     struct failure *failure)
{
	struct catalog_piece *piece = &pieces->list[index], right = *piece;
	bool has_left = piece->off_bytes<off_bytes, has_right = piece_end(piece)> end_bytes;
	int result;

	if (has_right) {
		right.off_bytes = end_bytes;
		right.len_bytes = piece_end(piece) - end_bytes;
		right.image_off_bytes += end_bytes - piece->off_bytes;
	}
	if (has_left && has_right) {
		result = make_room(pieces, failure);
		if (result < 0)
			return result;
		piece = &pieces->list[index];
		memmove(piece + 2, piece + 1, (pieces->count - index - 1) * sizeof(*piece));
		piece[1] = right;
		pieces->count++;
	} else if (has_right) {
		*piece = right;
	} else if (!has_left) {
		pieces->count--;
		memmove(piece, piece + 1, (pieces->count - index) * sizeof(*piece));
	}
	if (has_left)
		piece->len_bytes = off_bytes - piece->off_bytes;
	return 0;
}

/* ---- zeros over pieces ---- */

struct zeroing {
	uint32_t chunk_bytes;
	struct pieces pieces; /* of live content */
	bool is_cut;
	uint64_t hidden_bytes; /* of what was cut out */
	struct catalog_change *changes;
	size_t count, capacity;
	struct failure *failure;
};

static void zeroing_free(struct zeroing *zeroing)
{
	pieces_free(&zeroing->pieces);
	free(zeroing->changes);
}

static int add_change(struct zeroing *zeroing, const struct catalog_change *change)
{
	if (zeroing->count == zeroing->capacity) {
		size_t capacity = zeroing->capacity * 2 + 64;
		struct catalog_change *grown = reallocarray(zeroing->changes, capacity, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(zeroing->failure, -ENOMEM, "commit");
		zeroing->changes = grown;
		zeroing->capacity = capacity;
	}
	zeroing->changes[zeroing->count++] = *change;
	return 0;
}

static int add_empty(struct zeroing *zeroing, uint64_t first, uint64_t end, enum catalog_kind kind)
{
	const struct catalog_change change = {.first = first, .count = end - first, .kind = (uint8_t)kind};

	return first == end ? 0 : add_change(zeroing, &change);
}

/* The first piece that reaches beyond a chunk's beginning. */
static size_t find_piece(const struct pieces *pieces, uint64_t off_bytes)
{
	size_t first = 0, end = pieces->count;

	while (first < end) {
		size_t middle = first + (end - first) / 2;

		if (piece_end(&pieces->list[middle]) <= off_bytes)
			first = middle + 1;
		else
			end = middle;
	}
	return first;
}

/* Zeros over the chunks first … end - 1, all of them in one piece. */
static int zero_in_piece(struct zeroing *zeroing, size_t index, uint64_t first, uint64_t end)
{
	const struct catalog_piece *piece = &zeroing->pieces.list[index];
	uint64_t off_bytes = first * zeroing->chunk_bytes, end_bytes = end * zeroing->chunk_bytes;
	bool reaches_begin = off_bytes <= piece->off_bytes, reaches_end = end_bytes >= piece_end(piece);
	bool makes_one_more = !reaches_begin && !reaches_end;
	int result;

	if ((end - first < LARGE_CHUNKS && !(reaches_begin && reaches_end)) ||
	    (makes_one_more && zeroing->pieces.count >= PIECES_MOST))
		return add_empty(zeroing, first, end, CATALOG_ZERO);
	zeroing->is_cut = true;
	zeroing->hidden_bytes +=
		(reaches_end ? piece_end(piece) : end_bytes) - (reaches_begin ? piece->off_bytes : off_bytes);
	result = cut_piece(&zeroing->pieces, index, off_bytes, end_bytes, zeroing->failure);
	return result < 0 ? result : add_empty(zeroing, first, end, CATALOG_NOTHING);
}

static int zero_range(struct zeroing *zeroing, uint64_t first, uint64_t end)
{
	while (first < end) {
		size_t index = find_piece(&zeroing->pieces, first * zeroing->chunk_bytes);
		const struct catalog_piece *piece;
		uint64_t piece_first, piece_last;
		int result;

		if (index == zeroing->pieces.count)
			return add_empty(zeroing, first, end, CATALOG_NOTHING);
		piece = &zeroing->pieces.list[index];
		piece_first = piece->off_bytes / zeroing->chunk_bytes;
		piece_last = (piece_end(piece) - 1) / zeroing->chunk_bytes;
		if (piece_first >= end)
			return add_empty(zeroing, first, end, CATALOG_NOTHING);
		if (piece_first > first) {
			result = add_empty(zeroing, first, piece_first, CATALOG_NOTHING);
			if (result < 0)
				return result;
			first = piece_first;
		}
		uint64_t stop = piece_last + 1 < end ? piece_last + 1 : end;
		result = zero_in_piece(zeroing, index, first, stop);
		if (result < 0)
			return result;
		first = stop;
	}
	return 0;
}

static int spread_zeros(struct zeroing *zeroing, const struct catalog_change *changes, size_t count)
{
	int result = 0;

	for (size_t i = 0; result == 0 && i < count; i++) {
		if (changes[i].kind == CATALOG_CHUNK)
			result = add_change(zeroing, &changes[i]);
		else
			result = zero_range(zeroing, changes[i].first, changes[i].first + changes[i].count);
	}
	return result;
}

/*
 * Applies changes whose zeros are what shows from then on: whether they are nothing, entries or a cut is decided here.
 */
int local_apply_changes_locked(struct local_store *local, struct catalog_disk *disk,
			       const struct catalog_change *changes, size_t count, struct failure *failure)
{
	AUTO(zeroing_free) struct zeroing zeroing = {.chunk_bytes = local->base.chunk_bytes, .failure = failure};
	bool any_empty = false;
	int result;

	for (size_t i = 0; !any_empty && i < count; i++)
		any_empty = changes[i].kind != CATALOG_CHUNK;
	if (!any_empty)
		return local_update_map_locked(local, disk, changes, count, failure);
	result = load_pieces(local, disk->id, 0, &zeroing.pieces, failure);
	if (result == 0)
		result = spread_zeros(&zeroing, changes, count);
	if (result == 0)
		result = local_update_map_locked(local, disk, zeroing.changes, zeroing.count, failure);
	if (result < 0 || !zeroing.is_cut)
		return result;
	disk->content_round = 0;
	disk->changed_bytes += zeroing.hidden_bytes;
	if (disk->changed_bytes > disk->size_bytes) /* what it had written there itself was counted as well */
		disk->changed_bytes = disk->size_bytes;
	return catalog_base_set(local->writer, disk, zeroing.pieces.list, zeroing.pieces.count, failure);
}

/*
 * A disk is to have this size. Its last chunk is its own by now, if there is anything in it: so a piece that reached
 * beyond the new end ends in front of that chunk.
 */
int local_clip_base_locked(struct local_store *local, const struct catalog_disk *disk, uint64_t size_bytes,
			   struct failure *failure)
{
	AUTO(pieces_free) struct pieces pieces = {.list = NULL};
	uint64_t end_bytes = size_bytes - size_bytes % local->base.chunk_bytes;
	int result = load_pieces(local, disk->id, 0, &pieces, failure);

	if (result < 0 || pieces.count == 0 || piece_end(&pieces.list[pieces.count - 1]) <= size_bytes)
		return result;
	while (pieces.count > 0 && pieces.list[pieces.count - 1].off_bytes >= end_bytes)
		pieces.count--;
	if (pieces.count > 0 && piece_end(&pieces.list[pieces.count - 1]) > end_bytes)
		pieces.list[pieces.count - 1].len_bytes = end_bytes - pieces.list[pieces.count - 1].off_bytes;
	return catalog_base_set(local->writer, disk, pieces.list, pieces.count, failure);
}

/* ---- making clones ---- */

struct cloning {
	struct local_store *local;
	struct failure *failure;
	struct catalog_disk source; /* the image's disk */
	struct catalog_image image;
	struct catalog_disk disk; /* the new one */
	struct pieces pieces;
};

static void cloning_done(struct cloning *cloning)
{
	catalog_disk_release(&cloning->source);
	catalog_image_release(&cloning->image);
	pieces_free(&cloning->pieces);
}

/* Behind the others; one with the last if it goes on where that ends. */
static int add_piece(struct cloning *cloning, const struct catalog_piece *piece)
{
	struct pieces *pieces = &cloning->pieces;
	struct catalog_piece *last = pieces->count == 0 ? NULL : &pieces->list[pieces->count - 1];
	int result;

	if (last != NULL && piece_end(last) == piece->off_bytes && last->image_disk == piece->image_disk &&
	    last->image_number == piece->image_number &&
	    last->image_off_bytes + last->len_bytes == piece->image_off_bytes) {
		last->len_bytes += piece->len_bytes;
		return 0;
	}
	result = make_room(pieces, cloning->failure);
	if (result == 0)
		pieces->list[pieces->count++] = *piece;
	return result;
}

static struct catalog_piece piece_of_image(const struct cloning *cloning, uint64_t off_bytes, uint64_t end_bytes)
{
	struct catalog_piece piece = {.off_bytes = off_bytes,
				      .len_bytes = end_bytes - off_bytes,
				      .image_disk = cloning->source.id,
				      .image_number = cloning->image.number,
				      .image_generation = cloning->image.generation,
				      .image_off_bytes = off_bytes};

	memcpy(piece.image_uuid, cloning->source.uuid, CATALOG_UUID_BYTES);
	return piece;
}

/*
 * Has the image's disk anything of its own there, as of the image? What was written later has pages in the map too,
 * so a few are looked into; after that many it is taken for
 * written, which costs a level and no more.
 */
static int is_written(const struct cloning *cloning, uint64_t off_bytes, uint64_t end_bytes, bool *ret_is_written)
{
	enum { LOOKS_MOST = 64 };
	AUTO_FREE struct catalog_page *content = malloc(sizeof(*content));
	uint32_t chunk_bytes = cloning->local->base.chunk_bytes;
	uint64_t page = off_bytes / chunk_bytes / CATALOG_PAGE_ENTRIES;

	if (content == NULL)
		return fail_errno(cloning->failure, -ENOMEM, "disk %s", cloning->disk.name);
	for (unsigned looks = 0; looks < LOOKS_MOST; looks++, page++) {
		int result = catalog_map_next(cloning->local->writer, cloning->source.id, cloning->image.generation,
					      page, &page, cloning->failure);

		*ret_is_written = false;
		if (result < 0 || page == UINT64_MAX || page * CATALOG_PAGE_ENTRIES * chunk_bytes >= end_bytes)
			return result;
		result = catalog_map_read_at(cloning->local->writer, cloning->source.id, cloning->image.generation,
					     page, content, cloning->failure);
		if (result < 0)
			return result;
		*ret_is_written = true;
		for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
			uint64_t at_bytes = (page * CATALOG_PAGE_ENTRIES + i) * chunk_bytes;

			if (at_bytes + chunk_bytes > off_bytes && at_bytes < end_bytes &&
			    content->entries[i].kind != CATALOG_NOTHING)
				return 0;
		}
	}
	return 0;
}

/* A part of the image that one piece of its disk covers, or none (below NULL). */
static int add_part(struct cloning *cloning, uint64_t off_bytes, uint64_t end_bytes, const struct catalog_piece *below)
{
	struct catalog_piece piece = piece_of_image(cloning, off_bytes, end_bytes);
	bool written = false;
	int result;

	if (off_bytes >= end_bytes)
		return 0;
	result = is_written(cloning, off_bytes, end_bytes, &written);
	if (result < 0)
		return result;
	if (written || (below != NULL && below->image_generation == 0))
		return add_piece(cloning, &piece);
	if (below == NULL)
		return 0;
	piece = *below;
	piece.len_bytes = end_bytes - off_bytes;
	return add_piece(cloning, &piece);
}

static int find_pieces(struct cloning *cloning)
{
	AUTO(pieces_free) struct pieces below = {.list = NULL};
	uint64_t at_bytes = 0, size_bytes = cloning->image.size_bytes;
	int result =
		load_pieces(cloning->local, cloning->source.id, cloning->image.generation, &below, cloning->failure);

	for (size_t i = 0; result == 0 && i < below.count && below.list[i].off_bytes < size_bytes; i++) {
		const struct catalog_piece *piece = &below.list[i];
		uint64_t end_bytes = piece_end(piece) < size_bytes ? piece_end(piece) : size_bytes;

		result = add_part(cloning, at_bytes, piece->off_bytes, NULL);
		if (result == 0)
			result = add_part(cloning, piece->off_bytes, end_bytes, piece);
		at_bytes = end_bytes;
	}
	if (result == 0)
		result = add_part(cloning, at_bytes, size_bytes, NULL);
	if (result == 0 && cloning->pieces.count > PIECES_MOST) {
		cloning->pieces.count = 1;
		cloning->pieces.list[0] = piece_of_image(cloning, 0, size_bytes);
	}
	return result;
}

/* What reading can't follow is not made. */
static int check_pieces(const struct cloning *cloning)
{
	for (size_t i = 0; i < cloning->pieces.count; i++) {
		const struct catalog_piece *piece = &cloning->pieces.list[i];
		uint32_t chunk_bytes = cloning->local->base.chunk_bytes;
		unsigned levels = 0;
		int result;

		if (piece->off_bytes % chunk_bytes != 0 || piece->image_off_bytes % chunk_bytes != 0)
			return fail(cloning->failure, -EINVAL,
				    "disk %s: its piece at %llu is not a multiple of the chunk size (%u bytes)",
				    cloning->disk.name, (unsigned long long)piece->off_bytes, chunk_bytes);
		result = catalog_base_levels(cloning->local->writer, piece->image_disk, piece->image_generation,
					     &levels, cloning->failure);
		if (result < 0)
			return result;
		if (levels >= CATALOG_LEVELS_MOST)
			return fail(cloning->failure, -EMLINK,
				    "disk %s: it would be a clone of a clone of a clone … on more than %d levels; "
				    "export the image and sync that",
				    cloning->disk.name, CATALOG_LEVELS_MOST);
	}
	return 0;
}

static int log_base_locked(struct cloning *cloning)
{
	const struct pieces *pieces = &cloning->pieces;
	AUTO_FREE struct log_piece *list = calloc(pieces->count + 1, sizeof(*list));
	struct log_entry entry = {
		.op = LOG_BASE, .generation = cloning->disk.generation, .pieces = list, .piece_count = pieces->count};

	if (list == NULL)
		return fail_errno(cloning->failure, -ENOMEM, "disk %s", cloning->disk.name);
	for (size_t i = 0; i < pieces->count; i++) {
		list[i] = (struct log_piece){.off_bytes = pieces->list[i].off_bytes,
					     .len_bytes = pieces->list[i].len_bytes,
					     .image_number = pieces->list[i].image_number,
					     .image_off_bytes = pieces->list[i].image_off_bytes};
		memcpy(list[i].image_uuid, pieces->list[i].image_uuid, DISK_UUID_BYTES);
	}
	return local_log_locked(cloning->local, &cloning->disk, &entry, cloning->failure);
}

static int make_clone_locked(struct cloning *cloning, const char *source, uint32_t number, const char *name)
{
	struct local_store *local = cloning->local;
	struct catalog_disk *disk = &cloning->disk;
	int result = local_find_disk(local->writer, source, &cloning->source, cloning->failure);

	if (result == 0)
		result = local_find_image(local->writer, &cloning->source, number, &cloning->image, cloning->failure);
	if (result < 0)
		return result;
	*disk = (struct catalog_disk){.size_bytes = cloning->image.size_bytes,
				      .sector_bytes = cloning->source.sector_bytes};
	(void)strncpy(disk->name, name, sizeof(disk->name) - 1); /* its length was checked */
	result = local_make_disk_locked(local, disk, cloning->failure);
	if (result == 0)
		result = find_pieces(cloning);
	if (result == 0)
		result = check_pieces(cloning);
	if (result == 0 && cloning->pieces.count > 0)
		result = log_base_locked(cloning);
	if (result == 0)
		result = catalog_base_set(local->writer, disk, cloning->pieces.list, cloning->pieces.count,
					  cloning->failure);
	return result == 0 ? catalog_disk_update(local->writer, disk, cloning->failure) : result;
}

int local_clone_disk(struct store *store, const struct store_reference *image, const char *name,
		     struct failure *failure)
{
	struct local_store *local = local_of(store);
	AUTO(cloning_done) struct cloning cloning = {.local = local, .failure = failure};
	struct store_image_brief brief;
	int result = local_brief_image(store, image, &brief, failure);

	if (result < 0)
		return result;
	WITH_LOCK(&local->write_lock);
	result = local_begin_locked(local, failure);
	if (result < 0)
		return result;
	result = make_clone_locked(&cloning, image->disk, brief.number, name);
	if (result < 0) {
		local_abandon_locked(local);
		return result;
	}
	return local_end_locked(local, failure);
}
