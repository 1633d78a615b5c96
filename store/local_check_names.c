/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose content is damaged: all maps are walked over, and each state of each chunk is judged. Only done when something
 * was found.
 *
 * A state that held from one generation until another is what the images of the generations in between see, and live
 * content if it still holds. States of a page come in the order in which they ended, so what is damaged in a page is
 * gathered first and told by place then: ranges that touch become one.
 *
 * A clone reads more than its own states. There each image is read as its readers would read it, which costs what it holds for each.
 */
#include "store/local_check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

enum { ROWS_A_PIECE = 4096, WORDS_KEPT = 64, WALK_ENDS_HERE = 1 };

struct damaged_state {
	uint32_t since, until; /* until 0: it holds */
	uint32_t segment;
	uint16_t index; /* in the page */
	uint8_t kind;
};

struct naming {
	struct checking *checking;
	struct catalog *catalog;
	struct failure *failure;
	const struct catalog_disk *disk;
	struct catalog_image *images;
	size_t image_count;
	size_t *last;		      /* for check_report_damage(): live content, then the images */
	struct damaged_state *states; /* of this page */
	size_t state_count;
	uint64_t page;
	unsigned rows; /* in this piece */
	struct segment_words {
		uint32_t number; /* 0: none */
		char text[STORE_WHY_BYTES];
	} words[WORDS_KEPT]; /* about files of segments, by number */
};

static void naming_free(struct naming *naming)
{
	for (size_t i = 0; i < naming->image_count; i++)
		catalog_image_release(&naming->images[i]);
	free(naming->images);
	free(naming->last);
	free(naming->states);
}

/* ---- in words ---- */

/* Asked anew, for the file's own words were kept for nobody. */
static const char *say_segment(struct naming *naming, uint32_t number)
{
	struct local_store *local = naming->checking->local;
	struct segment_words *words = &naming->words[number % WORDS_KEPT];
	struct failure cause = {.code = 0};
	uint64_t file_bytes;

	if (words->number == number)
		return words->text;
	if (segment_examine(local->segments_fd, local->id, number, &file_bytes, &cause) == 0)
		(void)fail(&cause, -EBADMSG, "segment %08" PRIx32 ": it could not be opened", number);
	(void)snprintf(words->text, sizeof(words->text), "%.*s", STORE_WHY_BYTES - 1, cause.message);
	words->number = number;
	return words->text;
}

static void say_why(struct naming *naming, const struct damaged_state *state, char ret_why[STORE_WHY_BYTES])
{
	static const char *const words[] = {
		[DAMAGE_SHORT] = "its file was cut short",
		[DAMAGE_READ] = "a record can't be read from the device",
		[DAMAGE_HEADER] = "damaged record: header",
		[DAMAGE_OTHER] = "another record than the one expected",
		[DAMAGE_PAYLOAD] = "damaged record: payload",
		[DAMAGE_FRAME] = "damaged record: it does not decompress",
		[DAMAGE_CONTENT] = "content and SHA-256 differ",
	};

	switch (state->kind) {
	case DAMAGE_PLACE:
		(void)snprintf(ret_why, STORE_WHY_BYTES, "catalog: it doesn't know where the content is");
		break;
	case DAMAGE_MAP:
		(void)snprintf(ret_why, STORE_WHY_BYTES, "catalog: it doesn't know what the content is");
		break;
	case DAMAGE_LOST:
		if (state->segment == CATALOG_NO_SEGMENT)
			(void)snprintf(ret_why, STORE_WHY_BYTES,
				       "lost: no record of it is left; a round that finds it at the source brings it back");
		else
			(void)snprintf(ret_why, STORE_WHY_BYTES,
				       "segment %08" PRIx32 ": marked as damaged; a round that finds it at the source brings it back",
				       state->segment);
		break;
	case DAMAGE_SEGMENT:
		(void)snprintf(ret_why, STORE_WHY_BYTES, "%s", say_segment(naming, state->segment));
		break;
	default:
		(void)snprintf(ret_why, STORE_WHY_BYTES, "segment %08" PRIx32 ": %s", state->segment,
			       words[state->kind]);
	}
}

/* ---- judging ---- */

/* Among the first `count` in the list, which are in order. */
static const struct bad_chunk *find_bad_chunk(const struct checking *checking, size_t count, uint64_t chunk)
{
	size_t first = 0, end = count;

	while (first < end) {
		size_t middle = first + (end - first) / 2;

		if (checking->bad_chunks[middle].chunk == chunk)
			return &checking->bad_chunks[middle];
		if (checking->bad_chunks[middle].chunk < chunk)
			first = middle + 1;
		else
			end = middle;
	}
	return NULL;
}

static int judge(struct naming *naming, uint64_t chunk, struct damaged_state *state)
{
	const struct bad_chunk *bad = find_bad_chunk(naming->checking, naming->checking->bad_chunk_count, chunk);
	const struct bad_segment *segment;
	struct catalog_location location;
	int result;

	state->kind = DAMAGE_NONE;
	state->segment = CATALOG_NO_SEGMENT;
	if (bad != NULL) {
		state->kind = bad->kind;
		state->segment = bad->segment;
		if (bad->kind != DAMAGE_LOST) /* then what is the matter with its segment says more */
			return 0;
	}
	result = catalog_chunk_get(naming->catalog, chunk, &location, NULL);
	if (result == -ENOENT || result == -EBADMSG) {
		state->kind = DAMAGE_PLACE;
		return 0;
	}
	if (result < 0)
		return fail_errno(naming->failure, result, "check: looking up a chunk");
	if (location.segment == CATALOG_NO_SEGMENT) {
		state->kind = DAMAGE_SEGMENT;
		state->segment = CATALOG_NO_SEGMENT;
		return 0;
	}
	segment = checking_bad_place(naming->checking, location.segment, location.off_bytes, location.stored_bytes);
	if (segment != NULL) {
		state->kind = segment->is_short ? DAMAGE_SHORT : DAMAGE_SEGMENT;
		state->segment = segment->number;
	}
	return 0;
}

static int add_state(struct naming *naming, const struct damaged_state *state)
{
	size_t count = naming->state_count;

	if ((count & (count - 1)) == 0) {
		struct damaged_state *grown = reallocarray(naming->states, count == 0 ? 1 : count * 2, sizeof(*grown));

		if (grown == NULL)
			return fail_errno(naming->failure, -ENOMEM, "check");
		naming->states = grown;
	}
	naming->states[naming->state_count++] = *state;
	return 0;
}

/* Reading content goes by every row of the page that is of its time: by one that can't be read, too. */
static int add_bad_row(struct naming *naming, const struct catalog_states *states)
{
	int result = 0;

	for (unsigned i = 0; result == 0 && i < CATALOG_PAGE_ENTRIES; i++) {
		const struct damaged_state state = {.until = states->until, .index = (uint16_t)i, .kind = DAMAGE_MAP};

		result = add_state(naming, &state);
	}
	return result;
}

static int add_row(struct naming *naming, const struct catalog_states *states)
{
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
		const struct catalog_entry *entry = &states->entries[i];
		struct damaged_state state = {.since = entry->since, .until = states->until, .index = (uint16_t)i};
		int result;

		if ((states->present != NULL && !states->present[i]) || entry->kind != CATALOG_CHUNK)
			continue;
		result = judge(naming, entry->chunk, &state);
		if (result == 0 && state.kind != DAMAGE_NONE)
			result = add_state(naming, &state);
		if (result < 0)
			return result;
	}
	return 0;
}

/* ---- telling ---- */

static int compare_states(const void *a, const void *b)
{
	const struct damaged_state *first = a, *second = b;

	return (int)first->index - (int)second->index;
}

static int tell_range(struct naming *naming, size_t who, uint32_t image, uint64_t size_bytes,
		      const struct damaged_state *state, const char *why)
{
	struct store_check_report *report = naming->checking->report;
	uint32_t chunk_bytes = naming->checking->local->base.chunk_bytes;
	uint64_t index = naming->page * CATALOG_PAGE_ENTRIES + state->index;
	uint32_t len_bytes = store_chunk_length(chunk_bytes, size_bytes, index);

	if (len_bytes == 0)
		return 0;
	return check_report_damage(report, &naming->last[who], naming->disk->name, image, index * chunk_bytes,
				   len_bytes, why, naming->failure);
}

static int tell_state(struct naming *naming, const struct damaged_state *state)
{
	char why[STORE_WHY_BYTES];
	int result = 0;

	say_why(naming, state, why);
	if (state->until == 0)
		result = tell_range(naming, 0, 0, naming->disk->size_bytes, state, why);
	for (size_t i = 0; result == 0 && i < naming->image_count; i++) {
		const struct catalog_image *image = &naming->images[i];

		if (image->generation >= state->since && (state->until == 0 || image->generation < state->until))
			result = tell_range(naming, i + 1, image->number, image->size_bytes, state, why);
	}
	return result;
}

static int tell_page(struct naming *naming)
{
	int result = 0;

	if (naming->state_count > 0)
		qsort(naming->states, naming->state_count, sizeof(*naming->states), compare_states);
	for (size_t i = 0; result == 0 && i < naming->state_count; i++)
		result = tell_state(naming, &naming->states[i]);
	naming->state_count = 0;
	return result;
}

/* ---- walking ---- */

static int name_row(void *opaque, const struct catalog_states *states)
{
	struct naming *naming = opaque;

	if (states->page != naming->page) {
		int result = tell_page(naming);

		if (result < 0)
			return result;
		naming->page = states->page;
		if (naming->rows >= ROWS_A_PIECE)
			return WALK_ENDS_HERE;
	}
	if (checking_is_stopped(naming->checking))
		return -EINTR;
	naming->rows++;
	return states->is_bad ? add_bad_row(naming, states) : add_row(naming, states);
}

/* What one view of a clone reads in a page. Where that can't be told, all of it is damaged. */
static int name_in_content_page(struct naming *naming, size_t who, uint32_t generation, uint64_t page,
				struct catalog_page *content)
{
	const struct catalog_image *image = who == 0 ? NULL : &naming->images[who - 1];
	uint64_t size_bytes = image == NULL ? naming->disk->size_bytes : image->size_bytes;
	int read = catalog_content_read(naming->catalog, naming->disk->id, generation,
					naming->checking->local->base.chunk_bytes, page, content, NULL);
	int result = 0;

	if (read < 0 && read != -EBADMSG)
		return fail_errno(naming->failure, read, "check: looking up content");
	naming->page = page;
	for (unsigned i = 0; result == 0 && i < CATALOG_PAGE_ENTRIES; i++) {
		struct damaged_state state = {.index = (uint16_t)i, .kind = read < 0 ? DAMAGE_MAP : DAMAGE_NONE};
		char why[STORE_WHY_BYTES];

		if (read == 0 && content->entries[i].kind == CATALOG_CHUNK)
			result = judge(naming, content->entries[i].chunk, &state);
		if (result < 0 || state.kind == DAMAGE_NONE)
			continue;
		say_why(naming, &state, why);
		result = tell_range(naming, who, image == NULL ? 0 : image->number, size_bytes, &state, why);
	}
	return result;
}

/* Which page comes next; all of them where that can't be told. */
static int next_content_page(struct naming *naming, uint32_t generation, uint64_t size_bytes, uint64_t *page)
{
	uint32_t chunk_bytes = naming->checking->local->base.chunk_bytes;
	uint64_t next = UINT64_MAX;
	int result = catalog_content_next(naming->catalog, naming->disk->id, generation, chunk_bytes, *page, &next, NULL);

	if (result < 0 && result != -EBADMSG)
		return fail_errno(naming->failure, result, "check: looking up content");
	if (result == -EBADMSG)
		next = *page;
	*page = next <= (size_bytes - 1) / chunk_bytes / CATALOG_PAGE_ENTRIES ? next : UINT64_MAX;
	return 0;
}

/* Live content and every image of a clone, as they are read: what shows through is another disk's, and not among the clone's own states. */
static int name_in_clone(struct naming *naming)
{
	AUTO_FREE struct catalog_page *content = malloc(sizeof(*content));
	int result = content == NULL ? fail_errno(naming->failure, -ENOMEM, "check") : 0;

	for (size_t who = 0; result == 0 && who <= naming->image_count; who++) {
		uint32_t generation = who == 0 ? 0 : naming->images[who - 1].generation;
		uint64_t size_bytes = who == 0 ? naming->disk->size_bytes : naming->images[who - 1].size_bytes;

		for (uint64_t page = 0;; page++) {
			if (checking_is_stopped(naming->checking))
				return -EINTR;
			result = next_content_page(naming, generation, size_bytes, &page);
			if (result < 0 || page == UINT64_MAX)
				break;
			result = name_in_content_page(naming, who, generation, page, content);
			if (result < 0)
				break;
		}
	}
	return result;
}

static int is_clone(struct naming *naming, bool *ret_is_clone)
{
	int result = catalog_base_any(naming->catalog, naming->disk->id, 0, ret_is_clone, naming->failure);

	for (size_t i = 0; result == 0 && !*ret_is_clone && i < naming->image_count; i++)
		result = catalog_base_any(naming->catalog, naming->disk->id, naming->images[i].generation, ret_is_clone,
					  naming->failure);
	return result;
}

static int name_in_disk(struct naming *naming)
{
	bool has_base = false;
	int result = catalog_image_list(naming->catalog, naming->disk->id, CATALOG_ALIVE, &naming->images,
					&naming->image_count, naming->failure);

	if (result < 0)
		return result;
	naming->last = calloc(naming->image_count + 1, sizeof(*naming->last));
	if (naming->last == NULL)
		return fail_errno(naming->failure, -ENOMEM, "check");
	result = is_clone(naming, &has_base);
	if (result < 0 || has_base)
		return result < 0 ? result : name_in_clone(naming);
	do {
		naming->rows = 0;
		result = catalog_states_walk(naming->catalog, naming->disk->id, naming->page, UINT64_MAX, name_row,
					     naming, naming->failure);
	} while (result == WALK_ENDS_HERE);
	return result < 0 ? result : tell_page(naming);
}

static int name_in_all(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	AUTO_FREE struct catalog_disk *disks = NULL;
	size_t count = 0;
	int result = catalog_disk_list(catalog, CATALOG_ALIVE, &disks, &count, failure);

	for (size_t i = 0; i < count; i++) {
		AUTO(naming_free)
		struct naming naming = {
			.checking = checking, .catalog = catalog, .failure = failure, .disk = &disks[i]};

		if (result == 0)
			result = name_in_disk(&naming);
		catalog_disk_release(&disks[i]);
	}
	return result;
}

/* What was found, and isn't in the list of damage, is told all the same. */
static int tell_rest(struct checking *checking, struct failure *failure)
{
	struct store_check_report *report = checking->report;
	int result = 0;

	if (checking->more_bad_chunks + checking->more_bad_segments > 0)
		result = check_report_flaw(report, failure, "store",
					   "too much is damaged: %" PRIu64 " more records and %" PRIu64
					   " more segments were not looked for in disks and images",
					   checking->more_bad_chunks, checking->more_bad_segments);
	if (result == 0 && checking->bad_chunk_count > 0 && report->damage_count == 0)
		result = check_report_flaw(report, failure, "store",
					   "%zu damaged records, which only what was deleted refers to",
					   checking->bad_chunk_count);
	return result;
}

int checking_lost(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	struct catalog_lost list[64], after = {.chunk = 0};
	size_t count = 0, sorted_count = checking->bad_chunk_count;
	int result;

	do {
		result = catalog_lost_list(catalog, after.digest, list, sizeof(list) / sizeof(list[0]), &count, failure);
		for (size_t i = 0; result == 0 && i < count; i++) {
			struct bad_chunk bad = {.chunk = list[i].chunk, .kind = DAMAGE_LOST};
			struct catalog_location location;

			after = list[i];
			if (find_bad_chunk(checking, sorted_count, bad.chunk) != NULL)
				continue;
			result = catalog_chunk_get(catalog, bad.chunk, &location, failure);
			if (result == -ENOENT) {
				result = 0;
				continue;
			}
			bad.segment = location.segment;
			if (result == 0)
				result = checking_add_bad_chunk(checking, &bad, failure);
		}
	} while (result == 0 && count > 0);
	checking_sort_bad_chunks(checking);
	return result;
}

int checking_names(struct checking *checking, struct catalog *catalog, struct failure *failure)
{
	int result = 0;

	if (!checking->has_damage)
		return 0;
	result = name_in_all(checking, catalog, failure);
	return result == 0 ? tell_rest(checking, failure) : result;
}
