/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk engine against a model in memory: many threads, each with a part of the disk of its own (what they share are
 * chunks, the journal, the cache, commits and folds), while images and clones are made and deleted, and what nothing
 * refers to is cleaned up. The same over clones of clones and overlays. What a crash leaves is tried on copies of the
 * store's folder.
 *
 * WHERRY_TEST_SEED repeats a run.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "scratch_folder.h"
#include "store/disk_internal.h"
#include "store/scratch.h"
#include "store/store_fake.h"

enum { KIB = 1024, MIB = 1024 * 1024, SECTOR = 512, THREADS = 4 };

static struct scratch_folder scratch;
static struct chunk_cache *cache;
static uint64_t seed;
static const struct store_image_params no_params;

static uint64_t random_number(uint64_t *state, uint64_t below)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (*state >> 33) % below;
}

static void check(int result, const struct failure *failure)
{
	if (result == 0)
		return;
	(void)fprintf(stderr, "%d: %s\n", result, failure->message); /* of a thread cmocka has nothing to say */
	fail_msg("%d: %s", result, failure->message);
}

static char *in_folder(const char *name)
{
	char *path = NULL;

	assert_true(asprintf(&path, "%s/%s", scratch.path, name) > 0);
	return path;
}

static void remove_tree(const char *path)
{
	char command[1024];

	(void)snprintf(command, sizeof(command), "rm -rf %s", path);
	assert_int_equal(system(command), 0);
}

/* As it is at this moment, in the place of what was there. */
static void copy_tree(const char *from, const char *to)
{
	char command[1024];

	remove_tree(to);
	(void)snprintf(command, sizeof(command), "cp -a %s %s", from, to);
	assert_int_equal(system(command), 0);
}

static struct store *open_store(const char *name)
{
	struct failure failure = {.code = 0};
	AUTO_FREE char *path = in_folder(name);
	struct store *store = NULL;

	check(store_open_local(path, &(struct store_options){.read_only = false}, &store, &failure), &failure);
	return store;
}

static struct store *new_store(const char *name, uint32_t chunk_bytes, uint64_t size_bytes)
{
	struct failure failure = {.code = 0};
	AUTO_FREE char *path = in_folder(name);
	const struct store_disk_params params = {.name = "d", .size_bytes = size_bytes, .sector_bytes = SECTOR};
	struct store *store;

	remove_tree(path);
	check(store_create_local(path, chunk_bytes, &failure), &failure);
	store = open_store(name);
	check(store_create_disk(store, &params, &failure), &failure);
	return store;
}

/* soft_bytes: UINT64_MAX to have nothing folded in the background. */
static struct disk *open_disk_with(struct store *store, const char *reference_text, bool write, uint64_t soft_bytes)
{
	struct failure failure = {.code = 0};
	struct disk_options options = {.doing = "test_disk",
				       .cache = cache,
				       .write = write,
				       .journal_soft_bytes = soft_bytes,
				       .journal_hard_bytes = soft_bytes == UINT64_MAX ? UINT64_MAX : 6 * MIB};
	struct store_reference reference;
	struct disk *disk = NULL;

	check(store_parse_reference(reference_text, &reference, &failure), &failure);
	check(disk_open(store, &reference, &options, &disk, &failure), &failure);
	return disk;
}

static struct disk *open_disk(struct store *store, const char *reference_text, bool write)
{
	return open_disk_with(store, reference_text, write, 2 * MIB);
}

static void close_disk(struct disk *disk)
{
	struct failure failure = {.code = 0};

	check(disk_close(disk, &failure), &failure);
}

static void write_at(struct disk *disk, const void *data, size_t len_bytes, uint64_t off_bytes, unsigned flags)
{
	struct failure failure = {.code = 0};

	check(disk_write(disk, data, len_bytes, off_bytes, flags, &failure), &failure);
}

static void zero_at(struct disk *disk, uint64_t len_bytes, uint64_t off_bytes, unsigned flags)
{
	struct failure failure = {.code = 0};

	check(disk_zero(disk, len_bytes, off_bytes, flags, &failure), &failure);
}

static void flush(struct disk *disk)
{
	struct failure failure = {.code = 0};

	check(disk_flush(disk, &failure), &failure);
}

static void assert_holds(struct disk *disk, const uint8_t *model, uint64_t off_bytes, uint64_t len_bytes)
{
	struct failure failure = {.code = 0};
	AUTO_FREE uint8_t *read = malloc(len_bytes);

	assert_non_null(read);
	check(disk_read(disk, read, len_bytes, off_bytes, &failure), &failure);
	for (uint64_t i = 0; i < len_bytes; i++)
		if (read[i] != model[off_bytes + i])
			fail_msg("byte %" PRIu64 " is %02x, not %02x", off_bytes + i, read[i], model[off_bytes + i]);
}

static void fill(uint64_t *state, uint8_t *data, size_t len_bytes)
{
	uint64_t kind = random_number(state, 4);

	for (size_t i = 0; i < len_bytes; i++)
		data[i] = kind == 0 ? 0 : kind == 1 ? (uint8_t)(i / 100) : (uint8_t)random_number(state, 256);
}

static void fill_random(uint8_t *data, size_t len_bytes, uint64_t from)
{
	for (size_t i = 0; i < len_bytes; i++)
		data[i] = (uint8_t)random_number(&from, 256);
}

/* ------------------------------------------------------------------ many threads */

/* What is written to: a live disk, or an overlay over an image of one. */
struct target {
	struct disk *disk;
	struct scratch *scratch; /* or NULL */
};

static void target_write(const struct target *target, const void *data, size_t len_bytes, uint64_t off_bytes, unsigned flags)
{
	struct failure failure = {.code = 0};

	if (target->scratch != NULL)
		check(scratch_write(target->scratch, data, len_bytes, off_bytes, &failure), &failure);
	else
		write_at(target->disk, data, len_bytes, off_bytes, flags);
}

static void target_zero(const struct target *target, uint64_t len_bytes, uint64_t off_bytes, unsigned flags)
{
	struct failure failure = {.code = 0};

	if (target->scratch != NULL)
		check(scratch_zero(target->scratch, len_bytes, off_bytes, &failure), &failure);
	else
		zero_at(target->disk, len_bytes, off_bytes, flags);
}

static void assert_target_holds(const struct target *target, const uint8_t *model, uint64_t off_bytes, uint64_t len_bytes)
{
	struct failure failure = {.code = 0};
	AUTO_FREE uint8_t *read = NULL;

	if (target->scratch == NULL) {
		assert_holds(target->disk, model, off_bytes, len_bytes);
		return;
	}
	read = malloc(len_bytes + 1);
	assert_non_null(read);
	check(scratch_read(target->scratch, read, len_bytes, off_bytes, &failure), &failure);
	if (memcmp(read, model + off_bytes, len_bytes) != 0)
		fail_msg("an overlay holds something else at %" PRIu64 ", %" PRIu64 " bytes", off_bytes, len_bytes);
}

static int check_piece(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero)
{
	uint8_t **at = opaque;

	assert_true(len_bytes > 0);
	assert_true(!is_hole || is_zero);
	for (uint64_t i = 0; is_zero && i < len_bytes; i++)
		assert_int_equal(at[0][off_bytes + i], 0);
	at[1] += len_bytes;
	return 0;
}

static void assert_extents(const struct target *target, uint8_t *model, uint64_t off_bytes, uint64_t len_bytes)
{
	struct failure failure = {.code = 0};
	uint8_t *at[] = {model, model};

	if (target->scratch != NULL)
		check(scratch_extents(target->scratch, off_bytes, len_bytes, check_piece, at, &failure), &failure);
	else
		check(disk_extents(target->disk, off_bytes, len_bytes, check_piece, at, &failure), &failure);
	assert_int_equal(at[1] - at[0], len_bytes);
}

struct worker {
	struct target target;
	uint8_t *model; /* of the whole disk; this one's part is [first, end) */
	uint64_t first, end;
	uint64_t random;
	unsigned steps;
	pthread_t thread;
};

static void one_step(struct worker *worker, uint8_t *data)
{
	uint64_t part = worker->end - worker->first;
	uint64_t most = random_number(&worker->random, 8) == 0	 ? 700 * KIB
			: random_number(&worker->random, 3) == 0 ? 70 * KIB
								 : 9 * KIB;
	uint64_t off = worker->first + random_number(&worker->random, part);
	uint64_t len = 1 + random_number(&worker->random, most < worker->end - off ? most : worker->end - off);
	unsigned flags = random_number(&worker->random, 12) == 0 ? DISK_FUA : 0;

	if (random_number(&worker->random, 2) == 0) { /* as clients do */
		off -= (off - worker->first) % (4 * KIB);
		len = len / (4 * KIB) * (4 * KIB);
	}
	switch (random_number(&worker->random, 8)) {
	case 0:
	case 1:
	case 2:
	case 3:
		fill(&worker->random, data, len);
		target_write(&worker->target, data, len, off, flags);
		memcpy(worker->model + off, data, len);
		break;
	case 4:
		target_zero(&worker->target, len, off, flags | (random_number(&worker->random, 2) == 0 ? DISK_TRIM : 0));
		memset(worker->model + off, 0, len);
		break;
	case 5:
		if (worker->target.scratch == NULL && random_number(&worker->random, 6) == 0)
			flush(worker->target.disk);
		break;
	default:
		assert_target_holds(&worker->target, worker->model, off, len);
		break;
	}
}

static void *work(void *opaque)
{
	struct worker *worker = opaque;
	AUTO_FREE uint8_t *data = malloc(MIB);

	assert_non_null(data);
	for (unsigned i = 0; i < worker->steps; i++)
		one_step(worker, data);
	return NULL;
}

/* A set of threads, each with a part of its own. */
struct crew {
	struct worker workers[THREADS];
};

static void crew_start(struct crew *crew, const struct target *target, uint8_t *model, uint64_t size_bytes, uint64_t random,
		       unsigned steps)
{
	for (unsigned i = 0; i < THREADS; i++) {
		crew->workers[i] = (struct worker){.target = *target,
						   .model = model,
						   .first = size_bytes * i / THREADS,
						   .end = size_bytes * (i + 1) / THREADS,
						   .random = seed * 31 + random * THREADS + i,
						   .steps = steps};
		assert_int_equal(pthread_create(&crew->workers[i].thread, NULL, work, &crew->workers[i]), 0);
	}
}

static void crew_finish(struct crew *crew)
{
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(crew->workers[i].thread, NULL), 0);
}

/* ---- what goes on in the store meanwhile ---- */

static void clean(struct store *store)
{
	struct store_clean_report report;
	struct failure failure = {.code = 0};

	check(store_clean(store, &(struct store_clean_params){.doing = "test"}, &report, &failure), &failure);
}

static struct store_reference reference_of(const char *text)
{
	struct store_reference reference;
	struct failure failure = {.code = 0};

	check(store_parse_reference(text, &reference, &failure), &failure);
	return reference;
}

static void assert_same_content(struct store *store, const char *first, const char *second)
{
	struct disk *disks[] = {open_disk(store, first, false), open_disk(store, second, false)};
	struct failure failure = {.code = 0};
	AUTO_FREE uint8_t *read = malloc(2 * MIB);

	assert_int_equal(disk_size(disks[0]), disk_size(disks[1]));
	for (uint64_t at = 0; at < disk_size(disks[0]); at += MIB) {
		size_t len_bytes = disk_size(disks[0]) - at < MIB ? (size_t)(disk_size(disks[0]) - at) : MIB;

		check(disk_read(disks[0], read, len_bytes, at, &failure), &failure);
		check(disk_read(disks[1], read + MIB, len_bytes, at, &failure), &failure);
		if (memcmp(read, read + MIB, len_bytes) != 0)
			fail_msg("%s and %s differ at %" PRIu64, first, second, at);
	}
	close_disk(disks[0]);
	close_disk(disks[1]);
}

/* Makes images of a disk that is being written to, clones of them and clones of these, and deletes them all; cleans up. */
struct meddler {
	struct store *store;
	const char *name; /* of the disk */
	_Atomic(struct disk *) disk; /* NULL: it is closed just now */
	pthread_mutex_t lock; /* held while the disk is used */
	uint64_t random;
	unsigned images;
	atomic_bool stop;
	pthread_t thread;
};

static uint32_t meddler_image(struct meddler *meddler)
{
	struct failure failure = {.code = 0};
	uint32_t number = 0;
	WITH_LOCK(&meddler->lock);

	if (meddler->disk != NULL)
		check(disk_create_image(meddler->disk, &no_params, &number, &failure), &failure);
	return number;
}

/* A clone of the image, written to, an image of that, and a clone of that one. */
static void clone_twice(struct meddler *meddler, const char *image)
{
	struct failure failure = {.code = 0};
	char clone[64], clone_image[80], second[80];
	struct store_reference reference = reference_of(image);
	uint8_t data[3000];
	struct store_disk *disks = NULL;
	struct disk *disk;
	uint32_t number = 0;
	uint64_t freed;
	size_t count = 0;

	(void)snprintf(clone, sizeof(clone), "%s-clone", meddler->name);
	(void)snprintf(clone_image, sizeof(clone_image), "%s@1", clone);
	(void)snprintf(second, sizeof(second), "%s-2", clone);
	check(store_clone_disk(meddler->store, &reference, clone, &failure), &failure);
	assert_same_content(meddler->store, image, clone);
	check(store_list_disks(meddler->store, clone, &disks, &count, &failure), &failure);
	/* else the image shows nothing, or just what lies below */
	if (disks[0].parent != NULL && strcmp(disks[0].parent, image) == 0)
		assert_int_equal(store_delete_image(meddler->store, meddler->name, reference.number, false, &freed, NULL),
				 -EBUSY);
	store_disks_free(disks, count);
	disk = open_disk(meddler->store, clone, true);
	fill_random(data, sizeof(data), meddler->random);
	write_at(disk, data, sizeof(data), random_number(&meddler->random, disk_size(disk) - sizeof(data)), 0);
	check(disk_create_image(disk, &no_params, &number, &failure), &failure);
	close_disk(disk);
	reference = reference_of(clone_image);
	check(store_clone_disk(meddler->store, &reference, second, &failure), &failure);
	assert_same_content(meddler->store, clone_image, second);
	check(store_remove_disk(meddler->store, second, false, &failure), &failure);
	check(store_remove_disk(meddler->store, clone, false, &failure), &failure);
}

static void *meddle(void *opaque)
{
	struct meddler *meddler = opaque;

	while (!meddler->stop) {
		struct failure failure = {.code = 0};
		uint32_t number = meddler_image(meddler);
		char image[80];
		uint64_t freed;

		if (number > 0) {
			(void)snprintf(image, sizeof(image), "%s@%" PRIu32, meddler->name, number);
			if (random_number(&meddler->random, 2) == 0)
				clone_twice(meddler, image);
			check(store_delete_image(meddler->store, meddler->name, number, false, &freed, &failure), &failure);
			meddler->images++;
		}
		clean(meddler->store);
		(void)usleep(20000);
	}
	return NULL;
}

static void meddler_start(struct meddler *meddler, struct store *store, const char *name)
{
	*meddler = (struct meddler){.store = store, .name = name, .random = seed};
	(void)pthread_mutex_init(&meddler->lock, NULL);
	assert_int_equal(pthread_create(&meddler->thread, NULL, meddle, meddler), 0);
}

static void meddler_finish(struct meddler *meddler)
{
	meddler->stop = true;
	assert_int_equal(pthread_join(meddler->thread, NULL), 0);
	assert_true(meddler->images > 0);
	(void)pthread_mutex_destroy(&meddler->lock);
}

static void meddler_has(struct meddler *meddler, struct disk *disk)
{
	WITH_LOCK(&meddler->lock);

	meddler->disk = disk;
}

static void assert_new_image_holds(struct store *store, const char *name, struct disk *disk, const uint8_t *model,
				   uint64_t size_bytes)
{
	struct failure failure = {.code = 0};
	AUTO_FREE char *reference = NULL;
	struct disk *image;
	uint32_t number = 0;

	check(disk_create_image(disk, &no_params, &number, &failure), &failure);
	assert_true(asprintf(&reference, "%s@%" PRIu32, name, number) > 0);
	image = open_disk(store, reference, false);
	assert_holds(image, model, 0, size_bytes);
	close_disk(image);
}

/* The model is of what is there at first, and of what is there in the end. */
static void many_threads_and_a_model(struct store *store, const char *name, uint8_t *model, uint64_t size_bytes,
				     unsigned rounds, unsigned steps)
{
	struct target target = {.disk = open_disk(store, name, true)};
	struct meddler meddler;

	assert_holds(target.disk, model, 0, size_bytes);
	meddler_start(&meddler, store, name);
	meddler_has(&meddler, target.disk);
	for (unsigned round = 0; round < rounds; round++) {
		struct crew crew;

		crew_start(&crew, &target, model, size_bytes, round, steps);
		crew_finish(&crew);
		assert_holds(target.disk, model, 0, size_bytes);
		assert_extents(&target, model, 0, size_bytes);
		assert_extents(&target, model, size_bytes / 3, size_bytes / 5);
		assert_new_image_holds(store, name, target.disk, model, size_bytes);
		if (round % 2 == 1) {
			meddler_has(&meddler, NULL);
			close_disk(target.disk);
			target.disk = open_disk(store, name, true);
			assert_holds(target.disk, model, 0, size_bytes);
			meddler_has(&meddler, target.disk);
		}
	}
	meddler_finish(&meddler);
	close_disk(target.disk);
	target.disk = open_disk(store, name, false);
	assert_holds(target.disk, model, 0, size_bytes);
	close_disk(target.disk);
}

static void assert_deep_check_is_clean(struct store *store)
{
	struct failure failure = {.code = 0};
	struct store_check_report report = {.chunks = 0};

	check(store_check(store, &(struct store_check_params){.deep = true}, &report, &failure), &failure);
	assert_true(report.is_clean);
	store_check_report_free(&report);
}

static void threads_see_what_they_wrote(void **state)
{
	const uint64_t size_bytes = 24 * MIB + 5 * SECTOR;
	struct store *store = new_store("store", 64 * KIB, size_bytes);
	AUTO_FREE uint8_t *model = calloc(1, size_bytes);

	(void)state;
	many_threads_and_a_model(store, "d", model, size_bytes, HAS_SANITIZER ? 2 : 4, HAS_SANITIZER ? 100 : 300);
	assert_deep_check_is_clean(store);
	store_close(store);
}

/* The newest image becomes a disk. */
static void clone_newest(struct store *store, const char *disk, const char *clone, char ret_image[80])
{
	struct failure failure = {.code = 0};
	struct store_image *images = NULL;
	struct store_reference reference;
	size_t count = 0;

	check(store_list_images(store, disk, &images, &count, &failure), &failure);
	assert_true(count > 0);
	(void)snprintf(ret_image, 80, "%s@%" PRIu32, disk, images[count - 1].number);
	store_images_free(images, count);
	reference = reference_of(ret_image);
	check(store_clone_disk(store, &reference, clone, &failure), &failure);
}

static void assert_disk_holds(struct store *store, const char *name, const uint8_t *model, uint64_t size_bytes)
{
	struct disk *disk = open_disk(store, name, false);

	assert_holds(disk, model, 0, size_bytes);
	close_disk(disk);
}

/* Two overlays over one image, and the disk that the image is of, all written to at once. */
static void overlays_and_their_disk(struct store *store, const char *image_name, const char *disk_name_text,
				    uint8_t *model, uint64_t size_bytes, unsigned steps)
{
	enum { OVERLAYS = 2 };
	struct disk *image = open_disk(store, image_name, false);
	struct target targets[OVERLAYS + 1] = {{.disk = open_disk(store, disk_name_text, true)}};
	struct crew crews[OVERLAYS + 1];
	uint8_t *models[OVERLAYS + 1] = {malloc(size_bytes), malloc(size_bytes), malloc(size_bytes)};
	struct failure failure = {.code = 0};
	struct meddler meddler;

	meddler_start(&meddler, store, disk_name_text);
	meddler_has(&meddler, targets[0].disk);
	for (unsigned i = 0; i <= OVERLAYS; i++) {
		memcpy(models[i], model, size_bytes);
		if (i > 0) {
			targets[i].disk = image;
			check(scratch_new(image, scratch.path, &targets[i].scratch, &failure), &failure);
		}
		crew_start(&crews[i], &targets[i], models[i], size_bytes, 100 + i, steps);
	}
	for (unsigned i = 0; i <= OVERLAYS; i++)
		crew_finish(&crews[i]);
	meddler_finish(&meddler);
	for (unsigned i = 0; i <= OVERLAYS; i++) {
		assert_target_holds(&targets[i], models[i], 0, size_bytes);
		assert_extents(&targets[i], models[i], 0, size_bytes);
		scratch_free(targets[i].scratch);
	}
	close_disk(targets[0].disk);
	assert_holds(image, model, 0, size_bytes);
	close_disk(image);
	memcpy(model, models[0], size_bytes);
	for (unsigned i = 0; i <= OVERLAYS; i++)
		free(models[i]);
}

static void clones_of_clones_and_overlays_go_their_own_ways(void **state)
{
	const uint64_t size_bytes = 9 * MIB + 3 * SECTOR;
	const unsigned rounds = HAS_SANITIZER ? 1 : 2, steps = HAS_SANITIZER ? 60 : 150;
	static const char *const names[] = {"d", "clone", "clone-of-clone"};
	struct store *store = new_store("store", 16 * KIB, size_bytes);
	uint8_t *models[3], *first = malloc(size_bytes);
	char images[3][80] = {""};

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		models[i] = calloc(1, size_bytes);
		assert_non_null(models[i]);
		if (i > 0) {
			memcpy(models[i], models[i - 1], size_bytes);
			clone_newest(store, names[i - 1], names[i], images[i - 1]);
			assert_disk_holds(store, names[i], models[i], size_bytes);
		}
		many_threads_and_a_model(store, names[i], models[i], size_bytes, rounds, steps);
	}
	memcpy(first, models[1], size_bytes);
	overlays_and_their_disk(store, images[1], names[1], models[1], size_bytes, steps);
	for (unsigned i = 0; i < 3; i++)
		assert_disk_holds(store, names[i], models[i], size_bytes);
	assert_disk_holds(store, images[0], models[0], size_bytes);
	assert_disk_holds(store, images[1], first, size_bytes);
	assert_deep_check_is_clean(store);
	for (unsigned i = 0; i < 3; i++)
		free(models[i]);
	free(first);
	store_close(store);
}

static void the_fake_store_serves_as_well(void **state)
{
	const uint64_t size_bytes = 9 * MIB + 77;
	const struct store_disk_params params = {.name = "d", .size_bytes = size_bytes, .sector_bytes = SECTOR};
	struct failure failure = {.code = 0};
	AUTO_FREE char *files = in_folder("files");
	AUTO_FREE uint8_t *model = calloc(1, size_bytes);
	struct store *store = NULL;

	(void)state;
	assert_int_equal(mkdir(files, 0700), 0);
	assert_int_equal(store_fake_new(&(struct store_fake_options){.chunk_bytes = 16 * KIB}, &store), 0);
	assert_int_equal(store_fake_set_files(store, files), 0);
	check(store_create_disk(store, &params, &failure), &failure);
	many_threads_and_a_model(store, "d", model, size_bytes, 2, HAS_SANITIZER ? 60 : 150);
	store_close(store);
}

/* ------------------------------------------------------------------ crashes */

/* A copy of the store as it is on disk at this moment is what a killed process leaves. */
static struct store *crashed_copy(void)
{
	AUTO_FREE char *from = in_folder("store");
	AUTO_FREE char *to = in_folder("crashed");

	copy_tree(from, to);
	return open_store("crashed");
}

static void what_was_flushed_survives_a_crash(void **state)
{
	const uint64_t size_bytes = 6 * MIB + SECTOR;
	struct store *store = new_store("store", 64 * KIB, size_bytes);
	AUTO_FREE uint8_t *flushed = calloc(1, size_bytes);
	AUTO_FREE uint8_t *model = calloc(1, size_bytes);
	AUTO_FREE uint8_t *read = malloc(size_bytes);
	struct disk *disk =
		open_disk_with(store, "d", true, UINT64_MAX); /* a copy takes time: nobody may write meanwhile */
	struct failure failure = {.code = 0};
	struct worker worker = {.target = {.disk = disk}, .model = model, .end = size_bytes, .random = seed, .steps = 40};

	(void)state;
	assert_true(flushed != NULL && model != NULL && read != NULL);
	for (int i = 0; i < (HAS_SANITIZER ? 5 : 15); i++) {
		struct store *copy;
		struct disk *after;

		(void)work(&worker);
		flush(disk);
		memcpy(flushed, model, size_bytes);
		worker.steps = 1;
		(void)work(&worker);
		worker.steps = 40;
		copy = crashed_copy();
		after = open_disk(copy, "d", i % 2 == 0);
		check(disk_read(after, read, size_bytes, 0, &failure), &failure);
		for (uint64_t at = 0; at < size_bytes; at += SECTOR) {
			size_t len = size_bytes - at < SECTOR ? (size_t)(size_bytes - at) : SECTOR;

			if (memcmp(read + at, flushed + at, len) != 0)
				assert_memory_equal(read + at, model + at, len);
		}
		close_disk(after);
		after = open_disk(copy, "d", true); /* folded by now */
		assert_holds(after, read, 0, size_bytes);
		close_disk(after);
		store_close(copy);
	}
	close_disk(disk);
	store_close(store);
}

static const char *journal_file(const char *store_name)
{
	char command[1024];
	static char line[1024];
	FILE *list;

	(void)snprintf(command, sizeof(command), "ls %s/%s/journal/*/*.wj | tail -n 1", scratch.path, store_name);
	list = popen(command, "r");
	assert_non_null(list);
	assert_non_null(fgets(line, sizeof(line), list));
	(void)pclose(list);
	line[strcspn(line, "\n")] = '\0';
	return line;
}

/* The file's last record is cut off, or zeroed, from one of its bytes on (each of them: test_journal.c): the writes
 * before are there, that one is there whole or not at all. */
static void a_torn_record_is_old_or_new(void **state)
{
	const uint64_t size_bytes = MIB;
	struct store *store = new_store("store", 64 * KIB, size_bytes);
	struct disk *disk = open_disk_with(store, "d", true, UINT64_MAX);
	uint8_t first[3000], second[1000], read[4000];
	struct failure failure = {.code = 0};
	AUTO_FREE char *origin = in_folder("origin");
	const int end = 8192 + 56 + 1000; /* journal.c: what comes after a flush begins a block; a header in front */

	(void)state;
	memset(first, 1, sizeof(first));
	memset(second, 2, sizeof(second));
	write_at(disk, first, sizeof(first), 100, 0);
	flush(disk);
	write_at(disk, second, sizeof(second), 2000, 0);
	{
		AUTO_FREE char *from = in_folder("store");

		copy_tree(from, origin);
	}
	close_disk(disk);
	store_close(store);
	const int cuts[] = {end - 1056, end - 1055, end - 1040, end - 1001, end - 1000,
			    end - 999,	end - 500,  end - 1,	end};

	for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
		const int cut = cuts[i];
		AUTO_FREE char *copy = in_folder("crashed");
		const char *file;
		bool is_new = cut == end;

		copy_tree(origin, copy);
		file = journal_file("crashed");
		if (cut % 2 == 0) {
			assert_int_equal(truncate(file, cut), 0);
		} else {
			AUTO_CLOSE int fd = open(file, O_WRONLY | O_CLOEXEC);
			AUTO_FREE uint8_t *zeros = calloc(1, 4096);

			assert_true(fd >= 0 && pwrite(fd, zeros, 1200, cut) == 1200);
		}
		store = open_store("crashed");
		disk = open_disk(store, "d", cut % 3 == 0);
		check(disk_read(disk, read, sizeof(read), 0, &failure), &failure);
		assert_memory_equal(read + 100, first, 1900);
		assert_memory_equal(read + 2000, is_new ? second : first, 1000);
		assert_memory_equal(read + 3000, first, 100);
		close_disk(disk);
		store_close(store);
	}
}

/* A flushed record that is damaged, with a later one behind it that knows that it was flushed: not taken for a torn
 * end. */
static void damage_of_what_was_flushed_is_said(void **state)
{
	struct store *store = new_store("store", 64 * KIB, MIB);
	struct disk *disk = open_disk_with(store, "d", true, UINT64_MAX);
	struct store_reference reference = {.disk = "d"};
	struct failure failure = {.code = 0};
	uint8_t data[4096];
	struct store *copy;

	(void)state;
	memset(data, 7, sizeof(data));
	write_at(disk, data, sizeof(data), 0, 0);
	flush(disk);
	write_at(disk, data, sizeof(data), 8192, 0);
	copy = crashed_copy();
	store_close(copy);
	{
		AUTO_CLOSE int fd = open(journal_file("crashed"), O_WRONLY | O_CLOEXEC);

		assert_true(fd >= 0 && pwrite(fd, "x", 1, 4096 + 56 + 1000) == 1);
	}
	copy = open_store("crashed");
	assert_int_equal(disk_open(copy, &reference,
				   &(struct disk_options){.doing = "test", .cache = cache, .write = true}, &disk,
				   &failure),
			 -EBADMSG);
	assert_non_null(strstr(failure.message, "damaged"));
	store_close(copy);
}

/* ------------------------------------------------------------------ damage under small writes */

/* Where in a file below the store's folder this content stands. */
static char *file_with(const char *store_name, const char *files, const uint8_t *content, size_t len_bytes, off_t *ret_at)
{
	char command[1024], line[1024];
	FILE *list;

	(void)snprintf(command, sizeof(command), "ls %s/%s/%s", scratch.path, store_name, files);
	list = popen(command, "r");
	assert_non_null(list);
	while (fgets(line, sizeof(line), list) != NULL) {
		AUTO_FREE uint8_t *bytes = NULL;
		struct stat status;
		const uint8_t *found;

		line[strcspn(line, "\n")] = '\0';
		AUTO_CLOSE int fd = open(line, O_RDONLY | O_CLOEXEC);
		assert_true(fd >= 0 && fstat(fd, &status) == 0);
		bytes = malloc((size_t)status.st_size + 1);
		assert_int_equal(pread(fd, bytes, (size_t)status.st_size, 0), status.st_size);
		found = memmem(bytes, (size_t)status.st_size, content, len_bytes);
		if (found == NULL)
			continue;
		*ret_at = found - bytes;
		(void)pclose(list);
		return strdup(line);
	}
	fail_msg("no file %s holds it", files);
	return NULL;
}

static void flip_where(const char *store_name, const char *files, const uint8_t *content)
{
	off_t at = 0;
	AUTO_FREE char *path = file_with(store_name, files, content, 64, &at);
	AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at + 40), 1);
	byte ^= 16;
	assert_int_equal(pwrite(fd, &byte, 1, at + 40), 1);
}

static uint64_t journal_length(const char *store_name)
{
	char command[1024];
	unsigned long long bytes = 0;
	FILE *sum;

	(void)snprintf(command, sizeof(command), "cat %s/%s/journal/*/*.wj 2>/dev/null | wc -c", scratch.path, store_name);
	sum = popen(command, "r");
	assert_true(sum != NULL && fscanf(sum, "%llu", &bytes) == 1);
	(void)pclose(sum);
	return bytes;
}

static void assert_damaged(struct disk *disk, uint64_t off_bytes)
{
	struct failure failure = {.code = 0};
	uint8_t read[512];

	assert_int_equal(disk_read(disk, read, sizeof(read), off_bytes, &failure), -EBADMSG);
	assert_non_null(strstr(failure.message, "damaged"));
}

static void assert_no_image(struct disk *disk)
{
	struct failure failure = {.code = 0};
	uint32_t number = 0;

	assert_int_equal(disk_create_image(disk, &no_params, &number, &failure), -EBADMSG);
	assert_non_null(strstr(failure.message, "are damaged"));
	assert_non_null(strstr(failure.message, "write all of the"));
}

/* A disk of which this chunk is damaged. */
static struct store *store_with_damage(uint8_t *model, uint64_t size_bytes, uint64_t off_bytes)
{
	struct store *store = new_store("store", 64 * KIB, size_bytes);
	struct disk *disk = open_disk(store, "d", true);

	fill_random(model, size_bytes, seed);
	write_at(disk, model, size_bytes, 0, 0);
	close_disk(disk);
	store_close(store);
	flip_where("store", "segments/*/*.seg", model + off_bytes + 1000);
	chunk_cache_free(cache); /* it knows what is damaged now */
	assert_int_equal(chunk_cache_new(CHUNK_CACHE_LEAST_BYTES, &cache, NULL), 0);
	return open_store("store");
}

/* Everything else goes on for good: the journal doesn't grow, and what was written to the chunk stays, over a crash too. */
static void small_writes_over_damage_hold_up_nothing_else(void **state)
{
	const uint64_t size_bytes = 4 * MIB, at = 17 * 64 * KIB;
	AUTO_FREE uint8_t *model = malloc(size_bytes);
	struct store *store = store_with_damage(model, size_bytes, at), *copy;
	struct disk *disk = open_disk_with(store, "d", true, 256 * KIB);
	uint64_t random = seed;
	struct disk *after;

	(void)state;
	fill_random(model + at + 5000, 3000, seed + 1);
	write_at(disk, model + at + 5000, 3000, at + 5000, 0);
	memset(model + at + 6000, 0, 700);
	zero_at(disk, 700, at + 6000, 0);
	for (unsigned i = 0; i < 24 * MIB / 8192; i++) { /* four times what the journal may hold */
		uint64_t off = random_number(&random, size_bytes / 8192) * 8192;

		if (off / (64 * KIB) == at / (64 * KIB))
			continue;
		fill_random(model + off, 8192, seed + i);
		write_at(disk, model + off, 8192, off, 0);
	}
	flush(disk);
	for (unsigned i = 0; i < 600 && journal_length("store") >= 10 * MIB; i++) /* what is folded already goes a moment later */
		(void)nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	assert_true(journal_length("store") < 10 * MIB);
	assert_damaged(disk, at);
	assert_damaged(disk, at + 8000);
	assert_holds(disk, model, at + 5000, 3000);
	assert_holds(disk, model, 0, at);
	assert_holds(disk, model, at + 64 * KIB, size_bytes - at - 64 * KIB);
	assert_no_image(disk);

	copy = crashed_copy();
	after = open_disk(copy, "d", true);
	assert_damaged(after, at);
	assert_holds(after, model, at + 5000, 3000);
	assert_holds(after, model, 0, at);
	assert_holds(after, model, at + 64 * KIB, size_bytes - at - 64 * KIB);
	assert_int_equal(disk_close(after, NULL), -EBADMSG); /* and is there still */
	after = open_disk(copy, "d", true);
	assert_holds(after, model, at + 5000, 3000);
	assert_int_equal(disk_close(after, NULL), -EBADMSG);
	store_close(copy);

	/* all of it anew */
	fill_random(model + at, 64 * KIB, seed + 2);
	write_at(disk, model + at, 64 * KIB, at, 0);
	assert_new_image_holds(store, "d", disk, model, size_bytes);
	close_disk(disk);
	assert_int_equal(journal_length("store"), 0);
	store_close(store);
}

static void discarding_what_is_damaged_mends_it(void **state)
{
	const uint64_t size_bytes = MIB, at = 3 * 64 * KIB;
	AUTO_FREE uint8_t *model = malloc(size_bytes);
	struct store *store = store_with_damage(model, size_bytes, at);
	struct disk *disk = open_disk_with(store, "d", true, UINT64_MAX);

	(void)state;
	write_at(disk, model, 512, at + 512, 0);
	assert_no_image(disk);
	memset(model + at, 0, 64 * KIB);
	zero_at(disk, 64 * KIB, at, DISK_TRIM);
	assert_new_image_holds(store, "d", disk, model, size_bytes);
	close_disk(disk);
	store_close(store);
}

/* Marked by a repair, and stored once more for another disk. */
static void content_that_comes_back_mends_what_is_damaged(void **state)
{
	const uint64_t size_bytes = MIB, at = 3 * 64 * KIB;
	const struct store_disk_params params = {.name = "other", .size_bytes = MIB, .sector_bytes = SECTOR};
	AUTO_FREE uint8_t *model = malloc(size_bytes);
	struct store *store = store_with_damage(model, size_bytes, at);
	struct disk *disk = open_disk_with(store, "d", true, UINT64_MAX), *other;
	struct store_check_report report = {.chunks = 0};
	struct failure failure = {.code = 0};
	AUTO_FREE uint8_t *former = malloc(64 * KIB);

	(void)state;
	memcpy(former, model + at, 64 * KIB);
	fill_random(model + at + 512, 512, seed + 4);
	write_at(disk, model + at + 512, 512, at + 512, DISK_FUA);
	assert_no_image(disk);
	check(store_check(store, &(struct store_check_params){.deep = true, .repair = true}, &report, &failure), &failure);
	assert_int_equal(report.repair.waiting_chunks, 1);
	store_check_report_free(&report);
	check(store_create_disk(store, &params, &failure), &failure);
	other = open_disk(store, "other", true);
	write_at(other, former, 64 * KIB, 0, DISK_FUA);
	close_disk(other);
	assert_new_image_holds(store, "d", disk, model, size_bytes);
	close_disk(disk);
	assert_deep_check_is_clean(store);
	store_close(store);
}

/* What changes in the journal's file after it was written there is never returned, nor does it become content. */
static void a_damaged_record_is_not_data(void **state)
{
	const uint64_t size_bytes = MIB, at = 5 * 64 * KIB + 100;
	struct store *store = new_store("store", 64 * KIB, size_bytes);
	struct disk *disk = open_disk_with(store, "d", true, UINT64_MAX);
	AUTO_FREE uint8_t *model = calloc(1, size_bytes);

	(void)state;
	fill_random(model + at, 9000, seed);
	write_at(disk, model + at, 3000, at, 0);
	write_at(disk, model + at + 3000, 3000, at + 3000, 0);
	write_at(disk, model + at + 6000, 3000, at + 6000, DISK_FUA);
	assert_holds(disk, model, 0, size_bytes);
	flip_where("store", "journal/*/*.wj", model + at + 4000);
	assert_damaged(disk, at + 3000);
	assert_damaged(disk, at + 5400); /* of a record all or nothing is right */
	assert_holds(disk, model, at, 3000);
	assert_holds(disk, model, at + 6000, 3000);
	{
		struct failure failure = {.code = 0};
		uint32_t number = 0;

		assert_int_equal(disk_create_image(disk, &no_params, &number, &failure), -EBADMSG);
		assert_non_null(strstr(failure.message, "its journal is damaged"));
	}
	fill_random(model + at + 3000, 3000, seed + 3);
	write_at(disk, model + at + 3000, 3000, at + 3000, 0);
	assert_holds(disk, model, 0, size_bytes);
	assert_new_image_holds(store, "d", disk, model, size_bytes);
	close_disk(disk);
	assert_int_equal(journal_length("store"), 0);
	store_close(store);
}

/* ------------------------------------------------------------------ the rest */

/* Disks with large chunks, written side by side and never flushed: what they hold in memory has a bound in all. */
static void many_disks_have_no_more_pending_than_one_process_may(void **state)
{
	enum { DISKS = 12, SIZE = 20 * MIB };
	struct store *store = new_store("store", MIB, SIZE);
	struct disk *disks[DISKS];
	struct failure failure = {.code = 0};
	AUTO_FREE uint8_t *model = malloc(SIZE);
	uint64_t most = 0;

	(void)state;
	for (unsigned i = 0; i < DISKS; i++) {
		char name[16];
		const struct store_disk_params params = {.name = name, .size_bytes = SIZE, .sector_bytes = SECTOR};

		(void)snprintf(name, sizeof(name), "many%u", i);
		check(store_create_disk(store, &params, &failure), &failure);
		disks[i] = open_disk_with(store, name, true, UINT64_MAX);
	}
	fill_random(model, SIZE, seed);
	for (unsigned chunk = 0; chunk < SIZE / MIB; chunk++)
		for (unsigned i = 0; i < DISKS; i++) {
			write_at(disks[i], model + chunk * MIB, MIB, chunk * MIB, 0);
			most = disk_kept_by_all() > most ? disk_kept_by_all() : most;
		}
	assert_true(most > DISK_KEPT_BY_ALL_MOST_BYTES / 2); /* it was put to the test */
	assert_true(most <= DISK_KEPT_BY_ALL_MOST_BYTES + MIB);
	for (unsigned i = 0; i < DISKS; i++) {
		assert_holds(disks[i], model, 0, SIZE);
		close_disk(disks[i]);
	}
	assert_int_equal(disk_kept_by_all(), 0);
	store_close(store);
}

static void requests_out_of_range_are_refused(void **state)
{
	struct store *store = new_store("store", 64 * KIB, MIB);
	struct disk *disk = open_disk(store, "d", true);
	struct failure failure = {.code = 0};
	uint8_t data[512] = {1};

	(void)state;
	assert_int_equal(disk_read(disk, data, 512, MIB - 511, &failure), -EINVAL);
	assert_int_equal(disk_read(disk, data, 512, UINT64_MAX - 100, NULL), -EINVAL);
	assert_int_equal(disk_write(disk, data, 512, MIB - 511, 0, NULL), -ENOSPC);
	assert_int_equal(disk_zero(disk, UINT64_MAX, 1, 0, NULL), -ENOSPC);
	assert_int_equal(disk_write(disk, data, 512, MIB - 512, DISK_FUA, NULL), 0);
	close_disk(disk);
	store_close(store);
}

static void a_disk_has_one_opener_and_images_by_request(void **state)
{
	struct store *store = new_store("store", 64 * KIB, MIB);
	struct disk *disk = open_disk(store, "d", true), *image;
	struct store_reference reference = {.disk = "d"};
	struct failure failure = {.code = 0};
	struct store *other = open_store("store");
	uint8_t data[512];
	uint8_t *model = calloc(1, MIB);
	uint32_t number = 0;
	struct disk *second = NULL;

	(void)state;
	memset(data, 9, sizeof(data));
	memcpy(model + 700, data, sizeof(data));
	write_at(disk, data, sizeof(data), 700, 0);
	assert_int_equal(disk_open(other, &reference,
				   &(struct disk_options){.doing = "x", .cache = cache, .write = true}, &second,
				   &failure),
			 -EBUSY);
	assert_non_null(strstr(failure.message, "test_disk"));
	failure.code = 0;
	failure.message[0] = '\0';
	check(store_request_image(other, "d", &(struct store_image_params){.label = "asked for"}, "test", &number, &failure), &failure);
	assert_int_equal(number, 1);
	image = open_disk(other, "d@1", false);
	assert_holds(image, model, 0, MIB);
	assert_int_equal(disk_write(image, data, 512, 0, 0, NULL), -EROFS);
	close_disk(image);
	close_disk(disk);
	check(store_request_image(other, "d", &no_params, "test", &number, &failure), &failure);
	assert_int_equal(number, 2);
	free(model);
	store_close(other);
	store_close(store);
}

/* ---- the socket by which images are asked for ---- */

static int connect_to_control(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char command[1024];
	FILE *list;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)snprintf(command, sizeof(command), "ls %s/store/locks/*.socket", scratch.path);
	list = popen(command, "r");
	assert_true(fd >= 0 && list != NULL);
	assert_non_null(fgets(address.sun_path, sizeof(address.sun_path), list));
	(void)pclose(list);
	address.sun_path[strcspn(address.sun_path, "\n")] = '\0';
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void an_image_is_no_better_than_what_is_known_of_its_content(void **state)
{
	struct store *store = new_store("store", 64 * KIB, MIB), *other = open_store("store");
	struct disk *disk = open_disk(store, "d", true);
	const struct store_image_params fuzzy = {
		.consistency = STORE_FUZZY, .label = "asked", .details = "{\"fuzzy_because\":\"it was mounted\\n\"}"};
	struct store_image *images = NULL;
	struct failure failure = {.code = 0};
	uint32_t number = 0;
	size_t count = 0;

	(void)state;
	check(store_request_image(other, "d", &no_params, "test", &number, &failure), &failure);
	check(store_request_image(other, "d", &fuzzy, "test", &number, &failure), &failure);
	check(disk_create_image(disk, &fuzzy, &number, &failure), &failure);
	close_disk(disk);
	check(store_request_image(other, "d", &no_params, "test", &number, &failure), &failure);
	check(store_list_images(store, "d", &images, &count, &failure), &failure);
	assert_int_equal(count, 4);
	assert_int_equal(images[0].consistency, STORE_FROZEN);
	assert_null(images[0].details);
	for (int i = 1; i < 3; i++) {
		assert_int_equal(images[i].consistency, STORE_FUZZY);
		assert_string_equal(images[i].details, fuzzy.details);
		assert_string_equal(images[i].label, "asked");
	}
	assert_int_equal(images[3].consistency, STORE_CLEAN);
	store_images_free(images, count);
	store_close(other);
	store_close(store);
}

static void requests_that_are_none_are_ignored(void **state)
{
	static const char *const requests[] = {"image\n", "image 3 0 \n", "image 0 70000 \n", "image 1 5 \n{}", "image 0 2 a\n{}{}",
					       "image 0 -1 \n", "remove d\n", "image 0 0 a\0b\n"};
	struct store *store = new_store("store", 64 * KIB, MIB), *other = open_store("store");
	struct disk *disk = open_disk(store, "d", true);
	struct failure failure = {.code = 0};
	AUTO_FREE char *long_request = malloc(100 * KIB);
	uint32_t number = 0;

	(void)state;
	for (size_t i = 0; i <= sizeof(requests) / sizeof(requests[0]); i++) {
		bool is_long = i == sizeof(requests) / sizeof(requests[0]);
		size_t len_bytes = is_long ? 100 * KIB : i == 7 ? 14 : strlen(requests[i]);
		char byte;
		AUTO_CLOSE int fd = connect_to_control();

		memset(long_request, 'a', 100 * KIB);
		(void)!send(fd, is_long ? long_request : requests[i], len_bytes, MSG_NOSIGNAL); /* all, or it has hung up */
		(void)shutdown(fd, SHUT_WR);
		assert_true(recv(fd, &byte, 1, 0) <= 0); /* hung up, without a word */
	}
	check(store_request_image(other, "d", &no_params, "test", &number, &failure), &failure);
	assert_int_equal(number, 1);
	close_disk(disk);
	store_close(other);
	store_close(store);
}

static void *drip(void *opaque)
{
	const int fd = *(int *)opaque;

	while (send(fd, "i", 1, MSG_NOSIGNAL) == 1)
		(void)usleep(50000);
	return NULL;
}

/* Who says nothing, or one letter at a time, has ten seconds; closing waits for neither. */
static void who_is_slow_to_ask_holds_up_nobody(void **state)
{
	struct store *store = new_store("store", 64 * KIB, MIB);

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct disk *disk = open_disk(store, "d", true);
		double started = units_monotonic_seconds();
		pthread_t thread;
		int fd = connect_to_control();

		if (i == 1)
			assert_int_equal(pthread_create(&thread, NULL, drip, &fd), 0);
		(void)usleep(200000);
		close_disk(disk);
		assert_true(units_monotonic_seconds() - started < 9);
		if (i == 1)
			assert_int_equal(pthread_join(thread, NULL), 0);
		(void)close(fd);
	}
	store_close(store);
}

static void a_mirror_is_not_written_by_accident(void **state)
{
	struct store *store = new_store("store", 64 * KIB, MIB);
	const struct store_disk_params params = {
		.name = "m", .size_bytes = MIB, .sector_bytes = SECTOR, .mirror_of = "/dev/sda"};
	struct store_reference reference = {.disk = "m"};
	struct failure failure = {.code = 0};
	struct disk *disk = NULL;
	struct disk_options options = {.doing = "x", .cache = cache, .write = true};

	(void)state;
	check(store_create_disk(store, &params, &failure), &failure);
	assert_int_equal(disk_open(store, &reference, &options, &disk, &failure), -EPERM);
	assert_non_null(strstr(failure.message, "rw=mirror"));
	options.write_mirror = true;
	failure.code = 0;
	check(disk_open(store, &reference, &options, &disk, NULL), &failure);
	close_disk(disk);
	store_close(store);
}

/* 1 TiB: what is zeroed and asked for is large, what there is of it is not. */
static void large_ranges_cost_what_is_there(void **state)
{
	const uint64_t size_bytes = (uint64_t)1 << 40;
	struct store *store = new_store("store", 64 * KIB, size_bytes);
	struct disk *disk = open_disk(store, "d", true);
	uint8_t data[8192];
	uint8_t zeros[8192] = {0}, read[8192];
	struct failure failure = {.code = 0};

	(void)state;
	memset(data, 5, sizeof(data));
	write_at(disk, data, sizeof(data), 100 * MIB + 4096, 0);
	write_at(disk, data, sizeof(data), size_bytes / 2, 0);
	zero_at(disk, size_bytes - 4096, 2048, DISK_TRIM);
	check(disk_read(disk, read, sizeof(read), size_bytes / 2, &failure), &failure);
	assert_memory_equal(read, zeros, sizeof(read));
	write_at(disk, data, sizeof(data), size_bytes / 2 + 512, DISK_FUA);
	close_disk(disk);
	disk = open_disk(store, "d", false);
	check(disk_read(disk, read, sizeof(read), 100 * MIB + 4096, &failure), &failure);
	assert_memory_equal(read, zeros, sizeof(read));
	check(disk_read(disk, read, sizeof(read), size_bytes / 2 + 512, &failure), &failure);
	assert_memory_equal(read, data, sizeof(read));
	close_disk(disk);
	store_close(store);
}

static int make_folder(void **state)
{
	struct failure failure = {.code = 0};
	const char *given = getenv("WHERRY_TEST_SEED");

	(void)state;
	scratch_folder_make(&scratch);
	seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
	print_message("WHERRY_TEST_SEED=%" PRIu64 "\n", seed);
	return chunk_cache_new(CHUNK_CACHE_LEAST_BYTES, &cache, &failure);
}

static int remove_folder(void **state)
{
	(void)state;
	chunk_cache_free(cache);
	scratch_folder_remove(&scratch);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests_out_of_range_are_refused),
		cmocka_unit_test(a_disk_has_one_opener_and_images_by_request),
		cmocka_unit_test(an_image_is_no_better_than_what_is_known_of_its_content),
		cmocka_unit_test(requests_that_are_none_are_ignored),
		cmocka_unit_test(who_is_slow_to_ask_holds_up_nobody),
		cmocka_unit_test(a_mirror_is_not_written_by_accident),
		cmocka_unit_test(large_ranges_cost_what_is_there),
		cmocka_unit_test(a_torn_record_is_old_or_new),
		cmocka_unit_test(damage_of_what_was_flushed_is_said),
		cmocka_unit_test(what_was_flushed_survives_a_crash),
		cmocka_unit_test(small_writes_over_damage_hold_up_nothing_else),
		cmocka_unit_test(discarding_what_is_damaged_mends_it),
		cmocka_unit_test(content_that_comes_back_mends_what_is_damaged),
		cmocka_unit_test(a_damaged_record_is_not_data),
		cmocka_unit_test(many_disks_have_no_more_pending_than_one_process_may),
		cmocka_unit_test(threads_see_what_they_wrote),
		cmocka_unit_test(clones_of_clones_and_overlays_go_their_own_ways),
		cmocka_unit_test(the_fake_store_serves_as_well),
	};

	return cmocka_run_group_tests_name("disk", tests, make_folder, remove_folder);
}
