/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The catalog's content against a model that is too simple to be wrong.
 *
 * The model writes down, for each chunk of a disk, every state it ever had with the generations from which and until
 * which it held, and keeps those that an image sees. Two disks that share chunks are changed, imaged, and their images
 * deleted in random order, by two writing handles in turn, with sweeps of a row or three at a time taking turns as
 * well, some of them undone or cut off. After every step the live content and every image must read as the model says,
 * and the references to chunks must be what it says. Until the last sweep of a deleted image is done, what only it saw
 * may or may not be gone: there the model says at least and at most.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "catalog_fixture.h"
#include "common/cleanup.h"

enum {
	DISKS = 2,
	PAGES = 5,
	NEAR_PAGES = 4, /* 0 … 3; the last is far away */
	CHUNKS = PAGES * CATALOG_PAGE_ENTRIES,
	NEAR_CHUNKS = NEAR_PAGES * CATALOG_PAGE_ENTRIES,
	IMAGES_MOST = 12,
	CHANGES_MOST = 48,
	WRITERS = 2,
	STEPS = 500,
	CONSISTENCY_EVERY = 20,
};
#define FAR_PAGE (((uint64_t)1 << 30) + 5)

struct state {
	uint8_t kind;
	uint64_t chunk;
	bool has_fingerprint; /* of live states */
	uint8_t fingerprint;  /* sixteen times this byte */
};

struct version {
	unsigned index;
	struct state was;
	uint32_t since, until;
};

struct model_image {
	struct catalog_image row;
	enum { UNUSED, ALIVE, GOING } is;
	struct catalog_position position;
};

struct model_disk {
	struct catalog_disk row;
	struct state live[CHUNKS];
	uint32_t since[CHUNKS];
	struct version *versions;
	size_t version_count, version_capacity;
	struct model_image images[IMAGES_MOST];
};

struct model {
	struct catalog_fixture fixture;
	struct catalog *writers[WRITERS];
	struct catalog *reader;
	struct model_disk disks[DISKS];
};

static uint64_t below(struct model *model, uint64_t end)
{
	return catalog_fixture_below(&model->fixture, end);
}

static uint64_t page_number(unsigned page)
{
	return page < NEAR_PAGES ? page : FAR_PAGE;
}

static uint64_t real_index(unsigned index)
{
	return page_number(index / CATALOG_PAGE_ENTRIES) * CATALOG_PAGE_ENTRIES + index % CATALOG_PAGE_ENTRIES;
}

static bool is_same(const struct state *a, const struct state *b)
{
	return a->kind == b->kind && a->chunk == b->chunk;
}

/* ---- the model ---- */

static bool is_seen_by(const struct model_disk *disk, uint32_t since, uint32_t until, int is)
{
	for (unsigned i = 0; i < IMAGES_MOST; i++)
		if ((int)disk->images[i].is == is && disk->images[i].row.generation >= since &&
		    disk->images[i].row.generation < until)
			return true;
	return false;
}

static void keep_version(struct model_disk *disk, unsigned index)
{
	if (!is_seen_by(disk, disk->since[index], disk->row.generation, ALIVE))
		return;
	if (disk->version_count == disk->version_capacity) {
		disk->version_capacity = disk->version_capacity * 2 + 256;
		disk->versions = reallocarray(disk->versions, disk->version_capacity, sizeof(*disk->versions));
		assert_non_null(disk->versions);
	}
	disk->versions[disk->version_count++] = (struct version){
		.index = index, .was = disk->live[index], .since = disk->since[index], .until = disk->row.generation};
}

/* Returns 1 if that is a change of state. */
static unsigned model_set(struct model_disk *disk, unsigned index, const struct state *now)
{
	unsigned is_change = !is_same(&disk->live[index], now);

	if (is_change) {
		keep_version(disk, index);
		disk->since[index] = disk->row.generation;
	}
	disk->live[index] = *now;
	return is_change;
}

/* Content as of a generation; *ret_is_live: that is what it is still. */
static void model_at(const struct model_disk *disk, uint32_t generation, struct state *ret_states, bool *ret_is_live)
{
	for (unsigned i = 0; i < CHUNKS; i++) {
		ret_is_live[i] = disk->since[i] <= generation;
		ret_states[i] = disk->live[i];
	}
	for (size_t v = 0; v < disk->version_count; v++) {
		const struct version *version = &disk->versions[v];

		if (version->since > generation || version->until <= generation)
			continue;
		assert_false(ret_is_live[version->index]);
		ret_states[version->index] = version->was;
		ret_states[version->index].has_fingerprint = false;
	}
}

/* After an image's last sweep: what nobody sees any more is gone. */
static void model_forget(struct model_disk *disk, struct model_image *image)
{
	size_t kept = 0;

	image->is = UNUSED;
	for (size_t v = 0; v < disk->version_count; v++) {
		const struct version *version = &disk->versions[v];

		if (is_seen_by(disk, version->since, version->until, ALIVE) ||
		    is_seen_by(disk, version->since, version->until, GOING))
			disk->versions[kept++] = *version;
	}
	disk->version_count = kept;
}

/* ---- comparing ---- */

static void compare_page(const struct catalog_page *page, const struct state *states, const bool *is_live)
{
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
		const struct catalog_entry *entry = &page->entries[i];
		uint8_t fingerprint[CATALOG_FINGERPRINT_BYTES];

		assert_int_equal(entry->kind, states[i].kind);
		assert_true(entry->chunk == states[i].chunk);
		assert_int_equal(entry->has_fingerprint, is_live[i] && states[i].has_fingerprint);
		if (!entry->has_fingerprint)
			continue;
		memset(fingerprint, states[i].fingerprint, sizeof(fingerprint));
		assert_memory_equal(entry->fingerprint, fingerprint, sizeof(fingerprint));
	}
}

static bool is_empty(const struct state *states)
{
	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++)
		if (states[i].kind != CATALOG_NOTHING)
			return false;
	return true;
}

/* A walk meets every page with something on it, in order, and none that the disk has not. */
static void compare_walk(struct catalog *catalog, const struct model_disk *disk, uint32_t generation,
			 const struct state *states)
{
	struct failure failure = {.code = 0};
	uint64_t at = 0;
	unsigned page = 0;

	for (;;) {
		uint64_t found;

		assert_done(catalog_map_next(catalog, disk->row.id, generation, at, &found, &failure), &failure);
		for (; page < PAGES && page_number(page) < found; page++)
			assert_true(is_empty(&states[page * CATALOG_PAGE_ENTRIES]));
		if (found == UINT64_MAX)
			break;
		assert_true(page < PAGES && page_number(page) == found);
		if (generation == 0)
			assert_false(is_empty(&states[page * CATALOG_PAGE_ENTRIES]));
		at = found + 1;
		page++;
	}
	assert_int_equal(page, PAGES);
}

static void compare_content(struct catalog *catalog, const struct model_disk *disk)
{
	AUTO_FREE struct catalog_page *page = malloc(sizeof(*page));
	static struct state states[CHUNKS];
	static bool is_live[CHUNKS];
	struct failure failure = {.code = 0};

	memset(is_live, true, sizeof(is_live));
	for (unsigned p = 0; p < PAGES; p++) {
		assert_done(catalog_map_read(catalog, disk->row.id, page_number(p), page, &failure), &failure);
		compare_page(page, &disk->live[p * CATALOG_PAGE_ENTRIES], is_live);
	}
	compare_walk(catalog, disk, 0, disk->live);
	for (unsigned i = 0; i < IMAGES_MOST; i++) {
		uint32_t generation = disk->images[i].row.generation;

		if (disk->images[i].is != ALIVE)
			continue;
		model_at(disk, generation, states, is_live);
		for (unsigned p = 0; p < PAGES; p++) {
			assert_done(
				catalog_map_read_at(catalog, disk->row.id, generation, page_number(p), page, &failure),
				&failure);
			compare_page(page, &states[p * CATALOG_PAGE_ENTRIES], &is_live[p * CATALOG_PAGE_ENTRIES]);
		}
		compare_walk(catalog, disk, generation, states);
	}
}

static void count_references(const struct model_disk *disk, uint32_t *least, uint32_t *most)
{
	for (unsigned i = 0; i < CHUNKS; i++) {
		least[disk->live[i].chunk]++;
		most[disk->live[i].chunk]++;
	}
	for (size_t v = 0; v < disk->version_count; v++) {
		const struct version *version = &disk->versions[v];

		least[version->was.chunk] += is_seen_by(disk, version->since, version->until, ALIVE);
		most[version->was.chunk]++;
	}
}

static void compare_references(struct catalog *catalog, const struct model *model)
{
	struct failure failure = {.code = 0};
	uint64_t count;
	bool ours;

	assert_done(catalog_snapshot_begin(catalog, &ours, &failure),
		    &failure); /* for speed: many small reads follow */
	assert_done(catalog_chunk_count(catalog, &count, &failure), &failure);
	AUTO_FREE uint32_t *least = calloc(count + 1, sizeof(*least));
	AUTO_FREE uint32_t *most = calloc(count + 1, sizeof(*most));
	assert_true(least != NULL && most != NULL);
	for (unsigned d = 0; d < DISKS; d++)
		count_references(&model->disks[d], least, most);
	for (uint64_t chunk = 1; chunk <= count; chunk++) {
		struct catalog_location location;

		assert_done(catalog_chunk_get(catalog, chunk, &location, &failure), &failure);
		if (location.references < least[chunk] || location.references > most[chunk])
			fail_msg("chunk %llu: %u references, the model says %u to %u", (unsigned long long)chunk,
				 location.references, least[chunk], most[chunk]);
	}
	catalog_snapshot_end(catalog, ours);
}

static void compare(struct model *model)
{
	struct catalog *catalog = below(model, 2) == 0 ? model->reader : model->writers[below(model, WRITERS)];

	for (unsigned d = 0; d < DISKS; d++)
		compare_content(catalog, &model->disks[d]);
	if (below(model, 4) == 0)
		compare_references(catalog, model);
}

/* ---- steps ---- */

static void open_all(struct model *model)
{
	for (unsigned i = 0; i < WRITERS; i++)
		model->writers[i] = catalog_fixture_open(&model->fixture, false, true);
	model->reader = catalog_fixture_open(&model->fixture, true, false);
}

static void close_all(struct model *model)
{
	for (unsigned i = 0; i < WRITERS; i++)
		catalog_close(model->writers[i]);
	catalog_close(model->reader);
}

static struct catalog *begin(struct model *model)
{
	struct failure failure = {.code = 0};
	struct catalog *catalog = model->writers[below(model, WRITERS)];

	assert_done(catalog_begin(catalog, &failure), &failure);
	return catalog;
}

static void commit(struct catalog *catalog)
{
	struct failure failure = {.code = 0};

	assert_done(catalog_commit(catalog, &failure), &failure);
}

/* Undone one way or the other; true if it was. Sweeps start over after a crash. */
static bool undo_sometimes(struct model *model, struct catalog *catalog)
{
	switch (below(model, 10)) {
	case 0:
		catalog_rollback(catalog);
		return true;
	case 1:
		close_all(model);
		open_all(model);
		for (unsigned d = 0; d < DISKS; d++)
			for (unsigned i = 0; i < IMAGES_MOST; i++)
				model->disks[d].images[i].position = (struct catalog_position){.until = 0};
		return true;
	default:
		return false;
	}
}

static uint64_t some_chunk(struct model *model, struct catalog *catalog)
{
	struct failure failure = {.code = 0};
	uint64_t count;

	assert_done(catalog_chunk_count(catalog, &count, &failure), &failure);
	return count == 0 || below(model, 3) != 0 ? catalog_fixture_chunk(&model->fixture, catalog)
						  : 1 + below(model, count);
}

struct plan {
	struct catalog_change changes[CHANGES_MOST];
	unsigned first[CHANGES_MOST], count[CHANGES_MOST]; /* in the model's indexes */
	size_t length;
};

static void plan_one(struct model *model, struct catalog *catalog, const struct model_disk *disk, unsigned index,
		     unsigned count, struct catalog_change *change)
{
	const struct state *live = &disk->live[index];

	*change = (struct catalog_change){.first = real_index(index), .count = 1};
	change->kind = (uint8_t)(below(model, 10) == 0	? CATALOG_ZERO
				 : below(model, 8) == 0 ? CATALOG_NOTHING
							: CATALOG_CHUNK);
	if (change->kind != CATALOG_CHUNK) {
		change->count = real_index(index + count - 1) - real_index(index) + 1;
		return;
	}
	change->has_fingerprint = below(model, 4) != 0;
	if (change->has_fingerprint)
		memset(change->fingerprint, (int)below(model, 256), sizeof(change->fingerprint));
	if (live->kind == CATALOG_CHUNK && below(model, 4) == 0) {
		change->refresh = below(model, 2) == 0;
		change->chunk = live->chunk;
	} else {
		change->chunk = some_chunk(model, catalog);
	}
}

/* Ascending changes; runs of zeros stay among the near pages or on the far one, runs of nothing may span what lies
 * between. */
static void make_plan(struct model *model, struct catalog *catalog, const struct model_disk *disk, struct plan *plan)
{
	uint64_t widest = 1 + below(model, 200);

	plan->length = 0;
	for (unsigned index = (unsigned)below(model, CHUNKS / 2); index < CHUNKS && plan->length < CHANGES_MOST;) {
		size_t n = plan->length++;
		unsigned count = 1 + (unsigned)below(model, below(model, 4) == 0 ? CHUNKS : 40);

		if (count > CHUNKS - index)
			count = CHUNKS - index;
		if (index < NEAR_CHUNKS && index + count > NEAR_CHUNKS && below(model, 2) == 0)
			count = NEAR_CHUNKS - index;
		plan_one(model, catalog, disk, index, count, &plan->changes[n]);
		if (plan->changes[n].kind == CATALOG_ZERO && index < NEAR_CHUNKS && index + count > NEAR_CHUNKS) {
			count = NEAR_CHUNKS - index;
			plan->changes[n].count = count;
		}
		plan->first[n] = index;
		plan->count[n] = plan->changes[n].kind == CATALOG_CHUNK ? 1 : count;
		index += plan->count[n] + (unsigned)(below(model, 3) == 0 ? below(model, widest) : 0);
	}
}

static uint64_t apply_plan(struct model_disk *disk, const struct plan *plan)
{
	uint64_t changed = 0;

	for (size_t n = 0; n < plan->length; n++) {
		const struct catalog_change *change = &plan->changes[n];
		struct state now = {.kind = change->kind,
				    .chunk = change->chunk,
				    .has_fingerprint = change->has_fingerprint,
				    .fingerprint = change->fingerprint[0]};

		for (unsigned i = 0; i < plan->count[n]; i++)
			changed += model_set(disk, plan->first[n] + i, &now);
	}
	return changed;
}

static void step_change(struct model *model, struct model_disk *disk)
{
	struct catalog *catalog = begin(model);
	struct failure failure = {.code = 0};
	AUTO_FREE struct plan *plan = malloc(sizeof(*plan));

	for (uint64_t batches = 1 + below(model, 3), n = 0; n < batches; n++) {
		uint64_t changed = 5, newly_changed = 0;

		make_plan(model, catalog, disk, plan);
		assert_done(catalog_map_update(catalog, &disk->row, plan->changes, plan->length, &changed, &newly_changed, &failure),
			    &failure);
		if (n == 0 && undo_sometimes(model, catalog))
			return;
		assert_int_equal(changed, 5 + apply_plan(disk, plan));
	}
	commit(catalog);
}

static struct model_image *pick_image(struct model *model, struct model_disk *disk, int is)
{
	uint64_t start = below(model, IMAGES_MOST);

	for (unsigned i = 0; i < IMAGES_MOST; i++) {
		struct model_image *image = &disk->images[(start + i) % IMAGES_MOST];

		if ((int)image->is == is)
			return image;
	}
	return NULL;
}

static void step_image(struct model *model, struct model_disk *disk)
{
	struct model_image *image = pick_image(model, disk, UNUSED);
	struct catalog *catalog;

	if (image == NULL)
		return;
	catalog = begin(model);
	*image = (struct model_image){.is = ALIVE};
	catalog_fixture_image(catalog, &disk->row, &image->row);
	commit(catalog);
}

static void mark_going(struct model *model, struct model_image *image)
{
	struct catalog *catalog = begin(model);
	struct failure failure = {.code = 0};

	image->is = GOING;
	image->row.state = CATALOG_GOING;
	image->position = (struct catalog_position){.until = 0};
	assert_done(catalog_image_update(catalog, &image->row, &failure), &failure);
	commit(catalog);
}

/* One sweep of one image; true if it was the last. */
static bool sweep_once(struct model *model, struct model_disk *disk, struct model_image *image, bool may_undo,
		       uint64_t *freed_bytes)
{
	struct catalog *catalog = begin(model);
	struct catalog_position before = image->position;
	struct failure failure = {.code = 0};
	unsigned most_rows = 1 + (unsigned)below(model, 3);
	int64_t rows = catalog_fixture_value(catalog, "SELECT count(*) FROM past");
	bool is_done = false;

	assert_done(
		catalog_image_sweep(catalog, &image->row, &image->position, most_rows, freed_bytes, &is_done, &failure),
		&failure);
	assert_in_range(rows - catalog_fixture_value(catalog, "SELECT count(*) FROM past"), 0, most_rows);
	if (may_undo && undo_sometimes(model, catalog)) {
		if (image->position.until != 0) /* it was no crash */
			image->position = before;
		return false;
	}
	commit(catalog);
	if (is_done)
		model_forget(disk, image);
	return is_done;
}

static void step_sweep(struct model *model, struct model_disk *disk)
{
	struct model_image *image = pick_image(model, disk, GOING);
	uint64_t freed_bytes = 0;

	if (image != NULL)
		(void)sweep_once(model, disk, image, true, &freed_bytes);
}

/* What an image is said to hold alone is what its deletion gives back, if nothing comes between. */
static void step_delete_at_once(struct model *model, struct model_disk *disk)
{
	struct model_image *image = pick_image(model, disk, ALIVE);
	struct failure failure = {.code = 0};
	uint64_t unique_bytes, freed_bytes = 0;

	if (image == NULL)
		return;
	assert_done(catalog_image_unique(model->reader, &image->row, &unique_bytes, &failure), &failure);
	mark_going(model, image);
	while (!sweep_once(model, disk, image, false, &freed_bytes))
		;
	assert_int_equal(unique_bytes, freed_bytes);
}

static void step_delete(struct model *model, struct model_disk *disk)
{
	struct model_image *image = pick_image(model, disk, ALIVE);

	if (image != NULL)
		mark_going(model, image);
}

static void step(struct model *model, uint64_t deletions_of_16)
{
	struct model_disk *disk = &model->disks[below(model, DISKS)];
	uint64_t dice = below(model, 16);

	if (dice < deletions_of_16)
		(below(model, 4) == 0 ? step_delete_at_once : step_delete)(model, disk);
	else if (dice < 6)
		step_image(model, disk);
	else if (dice < 11)
		step_sweep(model, disk);
	else
		step_change(model, disk);
}

/* ---- the end of everything ---- */

static void delete_all_images(struct model *model)
{
	for (unsigned d = 0; d < DISKS; d++)
		for (struct model_image *image; (image = pick_image(model, &model->disks[d], ALIVE)) != NULL;)
			mark_going(model, image);
	for (bool is_done = false; !is_done;) {
		is_done = true;
		for (unsigned d = 0; d < DISKS; d++) {
			step_sweep(model, &model->disks[d]);
			is_done = is_done && pick_image(model, &model->disks[d], GOING) == NULL;
		}
	}
	compare(model);
	assert_int_equal(catalog_fixture_value(model->reader, "SELECT count(*) FROM past"), 0);
	assert_int_equal(catalog_fixture_value(model->reader, "SELECT count(*) FROM image"), 0);
}

static void delete_disk(struct model *model, struct model_disk *disk)
{
	struct failure failure = {.code = 0};
	struct catalog *catalog = begin(model);
	uint64_t freed_bytes = 0;

	disk->row.state = CATALOG_GOING;
	assert_done(catalog_disk_update(catalog, &disk->row, &failure), &failure);
	commit(catalog);
	for (bool is_done = false; !is_done;) {
		catalog = begin(model);
		assert_done(catalog_disk_sweep(catalog, &disk->row, 1 + (unsigned)below(model, 3), &freed_bytes,
					       &is_done, &failure),
			    &failure);
		if (undo_sometimes(model, catalog))
			is_done = false;
		else
			commit(catalog);
	}
	memset(disk->live, 0, sizeof(disk->live));
	disk->version_count = 0;
	compare_references(model->reader, model);
	catalog_assert_consistent(model->reader);
}

static void nothing_is_left(struct model *model)
{
	struct catalog *catalog = model->reader;

	assert_int_equal(catalog_fixture_value(catalog, "SELECT count(*) FROM disk"), 0);
	assert_int_equal(catalog_fixture_value(catalog, "SELECT count(*) FROM image"), 0);
	assert_int_equal(catalog_fixture_value(catalog, "SELECT count(*) FROM map"), 0);
	assert_int_equal(catalog_fixture_value(catalog, "SELECT count(*) FROM past"), 0);
	assert_int_equal(catalog_fixture_value(catalog, "SELECT total(live_bytes) FROM segment"), 0);
}

static struct model *model_new(uint64_t seed)
{
	struct model *model = calloc(1, sizeof(*model));

	assert_non_null(model);
	catalog_fixture_make(&model->fixture, seed);
	open_all(model);
	for (unsigned d = 0; d < DISKS; d++)
		catalog_fixture_disk(model->writers[0], d == 0 ? "web01" : "web02", &model->disks[d].row);
	return model;
}

static void model_free(struct model *model)
{
	close_all(model);
	catalog_fixture_remove(&model->fixture);
	for (unsigned d = 0; d < DISKS; d++)
		free(model->disks[d].versions);
	free(model);
}

static void run_model(uint64_t seed, uint64_t deletions_of_16)
{
	struct model *model = model_new(seed);

	for (unsigned n = 1; n <= STEPS; n++) {
		step(model, deletions_of_16);
		compare(model);
		if (n % CONSISTENCY_EVERY == 0)
			catalog_assert_consistent(model->reader);
	}
	if (seed % 2 == 0)
		delete_all_images(model);
	for (unsigned d = 0; d < DISKS; d++) /* with its images, if they're there */
		delete_disk(model, &model->disks[d]);
	nothing_is_left(model);
	assert_int_equal(catalog_fixture_value(model->reader, "SELECT count(*) FROM pragma_integrity_check WHERE "
							      "integrity_check <> 'ok'"),
			 0);
	model_free(model);
}

static void few_images_are_deleted(void **state)
{
	(void)state;
	run_model(1, 2);
	run_model(2, 2);
}

static void most_images_are_deleted(void **state)
{
	(void)state;
	run_model(3, 4);
	run_model(4, 4);
	run_model(5, 4);
	run_model(6, 4);
}

static void images_are_deleted_as_soon_as_made(void **state)
{
	(void)state;
	run_model(7, 5);
	run_model(8, 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(few_images_are_deleted),
		cmocka_unit_test(most_images_are_deleted),
		cmocka_unit_test(images_are_deleted_as_soon_as_made),
	};

	print_message("seeds 1 to 8\n");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
