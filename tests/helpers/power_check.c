/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is in a store, and whether work goes on there: for scripts that look at very many states of one, where a process
 * for each image and each step would take most of the time.
 *
 *     power_check STORE STEP…
 *     power_check -                the same for each line of standard input, each in a process of its own; "end"
 * follows
 *
 * The steps:
 *
 *     rebuild-if-told      opens it; where the catalog is missing, "told" and a rebuild; a damaged one fails
 *     list                 "image DISK@N SHA256 FLAGS LABEL" for each image, FLAGS "p" (pinned), "d" (damaged) or "-";
 *                          "disk DISK IMAGES" for each disk
 *     live=DISK            "live DISK SHA256"
 *     engine=DISK=LOG:RECORD[+LOG:RECORD]…
 *                          opens a live disk as a server does, twice, and looks at all of it and of its images; what
 * may be there the records before RECORD of LOG tell, then those of the next one (live_model.h). "disk DISK IMAGES",
 *                          and "flaw …" for what is wrong
 *     round=DISK           "round DISK STATE DONE-BYTES": the newest one
 *     reserve              "reserve BYTES": blocks that the store's reserve really has
 *     check                a deep one; "damaged …" and "flaw …" for what it finds
 *     repair               the same, mending: "repaired CHUNKS WAITING UNKNOWN"
 *     gc, rebuild
 *     sync=FILE=DISK       a round; "made DISK@N"
 *     init-if-none         a new store with chunks of 16 KiB, unless there is one
 *
 * A step that fails says so ("failed STEP: why"), and is the last one; status 1. The store is opened anew for each
 * step, as by a command of its own. Content is read through the store and digested with OpenSSL.
 */
#include <err.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/failure.h"
#include "live_model.h"
#include "power_log.h"
#include "store/disk.h"
#include "store/store.h"
#include "syncer/round.h"

enum { CHUNK_BYTES = 16 << 10, STEPS_MOST = 32, STATE_MOST_SECONDS = 60 };

static const char doing[] = "power_check";

static void close_store(struct store **store)
{
	store_close(*store);
}

static void close_view(struct store_view **view)
{
	store_view_close(*view);
}

static int open_store(const char *path, struct store **ret_store, struct failure *failure)
{
	struct store_options options = {.read_only = false};

	return store_open_local(path, &options, ret_store, failure);
}

/* ---- content ---- */

/* Digests a disk from its start to its end, with zeros where nothing is mapped. */
struct digesting {
	struct store_view *view;
	struct store_scratch *scratch;
	EVP_MD_CTX *context;
	uint8_t plain[CHUNK_BYTES];
};

static int digest_chunk(struct digesting *digesting, const struct store_map_entry *entry, uint32_t len_bytes,
			struct failure *failure)
{
	int result = 0;

	if (entry->kind == STORE_MAP_CHUNK)
		result = store_view_read_chunk(digesting->view, digesting->scratch, entry->chunk, digesting->plain,
					       len_bytes, true, failure);
	else
		memset(digesting->plain, 0, len_bytes);
	if (result == 0 && EVP_DigestUpdate(digesting->context, digesting->plain, len_bytes) != 1)
		errx(3, "EVP_DigestUpdate");
	return result;
}

static int digest_content(struct digesting *digesting, struct failure *failure)
{
	uint64_t size_bytes = store_view_size(digesting->view);
	AUTO_FREE struct store_map_page *map = malloc(sizeof(*map));
	int result = 0;

	if (map == NULL)
		errx(3, "memory");
	for (uint64_t chunk = 0; result == 0 && chunk * CHUNK_BYTES < size_bytes; chunk++) {
		uint64_t left_bytes = size_bytes - chunk * CHUNK_BYTES;

		if (chunk % STORE_MAP_PAGE_ENTRIES == 0)
			result = store_view_map(digesting->view, chunk / STORE_MAP_PAGE_ENTRIES, map, failure);
		if (result == 0)
			result = digest_chunk(digesting, &map->entries[chunk % STORE_MAP_PAGE_ENTRIES],
					      left_bytes < CHUNK_BYTES ? (uint32_t)left_bytes : CHUNK_BYTES, failure);
	}
	return result;
}

/* Prints the digest, or what is wrong in its place. */
static int print_digest(struct store *store, const char *name, struct failure *failure)
{
	AUTO(close_view) struct store_view *view = NULL;
	struct digesting digesting = {.context = EVP_MD_CTX_new()};
	struct store_reference reference;
	uint8_t digest[DIGEST_BYTES];
	char text[DIGEST_BYTES * 2 + 1];
	int result = store_parse_reference(name, &reference, failure);

	if (digesting.context == NULL || EVP_DigestInit_ex(digesting.context, EVP_sha256(), NULL) != 1)
		errx(3, "EVP_DigestInit_ex");
	if (result == 0)
		result = store_view_open(store, &reference, VIEW_READ, doing, &view, failure);
	digesting.view = view;
	if (result == 0)
		result = store_scratch_new(&digesting.scratch, failure);
	if (result == 0)
		result = digest_content(&digesting, failure);
	if (result == 0 && EVP_DigestFinal_ex(digesting.context, digest, NULL) != 1)
		errx(3, "EVP_DigestFinal_ex");
	if (result == 0) {
		bytes_to_hex(digest, sizeof(digest), text);
		(void)printf("%s", text);
	}
	store_scratch_free(digesting.scratch);
	EVP_MD_CTX_free(digesting.context);
	return result;
}

/* ---- steps ---- */

static int print_image(struct store *store, const struct store_image *image, struct failure *failure)
{
	char name[STORE_NAME_MOST_BYTES + 16];
	int result;

	(void)snprintf(name, sizeof(name), "%s@%" PRIu32, image->disk, image->number);
	(void)printf("image %s ", name);
	result = print_digest(store, name, failure);
	if (result == -EBADMSG) { /* what it is, is for the check to say */
		(void)printf("unreadable");
		result = 0;
	}
	if (result == 0)
		(void)printf(" %s%s%s %s\n", image->pinned ? "p" : "", image->damaged ? "d" : "",
			     image->pinned || image->damaged ? "" : "-", image->label == NULL ? "" : image->label);
	return result;
}

static int step_list(struct store *store, const char *unused, struct failure *failure)
{
	struct store_image *images = NULL;
	struct store_disk *disks = NULL;
	size_t image_count = 0, disk_count = 0;
	int result = store_list_images(store, NULL, &images, &image_count, failure);

	(void)unused;
	for (size_t i = 0; result == 0 && i < image_count; i++)
		result = print_image(store, &images[i], failure);
	if (result == 0)
		result = store_list_disks(store, NULL, &disks, &disk_count, failure);
	for (size_t i = 0; result == 0 && i < disk_count; i++)
		(void)printf("disk %s %" PRIu32 "\n", disks[i].name, disks[i].images);
	store_images_free(images, image_count);
	store_disks_free(disks, disk_count);
	return result;
}

static int step_live(struct store *store, const char *disk, struct failure *failure)
{
	int result;

	(void)printf("live %s ", disk);
	result = print_digest(store, disk, failure);
	(void)printf("\n");
	return result;
}

/* ---- a live disk, and what was noted of it ---- */

enum { PIECE_BYTES = 1 << 20 };

/* The notes among the first `records` records. */
static void read_notes(const char *path, uint64_t records, struct live_model *model)
{
	AUTO_FCLOSE FILE *file = fopen(path, "re");
	struct power_log_head head;

	if (file == NULL)
		err(3, "%s", path);
	for (uint64_t i = 0; i < records && fread(&head, sizeof(head), 1, file) == 1; i++) {
		AUTO_FREE char *text = NULL;

		if (head.kind != POWER_NOTE) {
			if (fseek(file, (long)(head.name_bytes + head.data_bytes), SEEK_CUR) != 0)
				err(3, "%s", path);
			continue;
		}
		text = calloc(head.data_bytes + 1, 1);
		if (text == NULL || fread(text, 1, head.data_bytes, file) != head.data_bytes)
			err(3, "%s", path);
		live_note(model, text);
	}
}

static int open_engine(struct store *store, const char *name, bool write, struct chunk_cache *cache,
		       struct disk **ret_disk, struct failure *failure)
{
	const struct disk_options options = {.doing = doing, .cache = cache, .write = write};
	struct store_reference reference;
	int result = store_parse_reference(name, &reference, failure);

	return result == 0 ? disk_open(store, &reference, &options, ret_disk, failure) : result;
}

/* How many sectors are wrong; `what` NULL: without a word. image NULL: live content. */
static int judge_engine(struct disk *disk, const struct live_model *model, const char *what,
			const struct live_image *image, unsigned *ret_wrong, struct failure *failure)
{
	AUTO_FREE uint8_t *content = malloc(PIECE_BYTES);
	uint64_t size_bytes = disk_size(disk);
	unsigned wrong = 0;

	if (content == NULL)
		errx(3, "memory");
	for (uint64_t at = 0; at < size_bytes; at += PIECE_BYTES) {
		size_t len_bytes = size_bytes - at < PIECE_BYTES ? (size_t)(size_bytes - at) : PIECE_BYTES;
		int result = disk_read(disk, content, len_bytes, at, failure);

		if (result < 0)
			return result;
		wrong = live_judge(model, what, content, at / LIVE_SECTOR, len_bytes / LIVE_SECTOR, image, wrong);
	}
	*ret_wrong = wrong;
	return 0;
}

/* One that is listed: what was acknowledged, or what one of those that were asked for may have become. */
static int judge_image(struct disk *disk, const struct live_model *model, const char *name, uint32_t number,
		       struct failure *failure)
{
	unsigned wrong = 1;
	int result = 0;

	for (size_t i = 0; i < model->image_count; i++)
		if (model->images[i].number == number)
			return judge_engine(disk, model, name, &model->images[i], &wrong, failure);
	for (size_t i = 0; result == 0 && wrong > 0 && i < model->image_count; i++)
		if (model->images[i].number == 0)
			result = judge_engine(disk, model, NULL, &model->images[i], &wrong, failure);
	if (result == 0 && wrong > 0)
		(void)printf("flaw %s: not an image that was asked for\n", name);
	return result;
}

static int judge_images(struct store *store, const char *disk, const struct live_model *model,
			struct chunk_cache *cache, struct failure *failure)
{
	struct store_image *images = NULL;
	size_t count = 0;
	int result = store_list_images(store, disk, &images, &count, failure);

	for (size_t i = 0; result == 0 && i < count; i++) {
		char name[STORE_NAME_MOST_BYTES + 16];
		struct disk *image = NULL;

		(void)snprintf(name, sizeof(name), "%s@%" PRIu32, disk, images[i].number);
		result = open_engine(store, name, false, cache, &image, failure);
		if (result == 0)
			result = judge_image(image, model, name, images[i].number, failure);
		(void)disk_close(image, NULL); /* nothing was written */
	}
	for (size_t i = 0; result == 0 && i < model->image_count; i++) {
		bool is_there = model->images[i].number == 0;

		for (size_t j = 0; j < count; j++)
			is_there = is_there || images[j].number == model->images[i].number;
		if (!is_there)
			(void)printf("flaw %s@%" PRIu32 ": it was acknowledged, and is gone\n", disk,
				     model->images[i].number);
	}
	if (result == 0)
		(void)printf("disk %s %zu\n", disk, count);
	store_images_free(images, count);
	return result;
}

/* Opened for writing, which takes up what a crash left and folds it in the end; and once more: then all is in chunks.
 */
static int judge_live(struct store *store, const char *name, const struct live_model *model, struct chunk_cache *cache,
		      struct failure *failure)
{
	int result = 0;

	for (int i = 0; result == 0 && i < 2; i++) {
		struct disk *disk = NULL;
		unsigned wrong = 0;
		int closed;

		result = open_engine(store, name, i == 0, cache, &disk, failure);
		if (result == 0)
			result = judge_engine(disk, model, i == 0 ? name : "folded", NULL, &wrong, failure);
		closed = disk_close(disk, result == 0 ? failure : NULL);
		result = result == 0 ? closed : result;
	}
	return result;
}

static int count_sectors(struct store *store, const char *disk, uint64_t *ret_sectors, struct failure *failure)
{
	struct store_disk *list = NULL;
	size_t count = 0;
	int result = store_list_disks(store, disk, &list, &count, failure);

	if (result == 0)
		*ret_sectors = list[0].size_bytes / LIVE_SECTOR;
	store_disks_free(list, count);
	return result;
}

static int step_engine(struct store *store, const char *what, struct failure *failure)
{
	AUTO_FREE char *text = strdup(what);
	char *rest = NULL, *disk = text == NULL ? NULL : strtok_r(text, "=", &rest);
	struct chunk_cache *cache = NULL;
	struct live_model model;
	uint64_t sectors = 0;
	int result = disk == NULL ? -EINVAL : count_sectors(store, disk, &sectors, failure);

	if (result < 0)
		return result;
	live_model_begin(&model, sectors);
	for (char *log = strtok_r(NULL, "+", &rest); log != NULL; log = strtok_r(NULL, "+", &rest)) {
		char *colon = strrchr(log, ':');

		if (colon == NULL)
			errx(3, "engine=DISK=LOG:RECORD");
		*colon = '\0';
		read_notes(log, strtoull(colon + 1, NULL, 10), &model);
	}
	result = chunk_cache_new(CHUNK_CACHE_LEAST_BYTES, &cache, failure);
	if (result == 0)
		result = judge_live(store, disk, &model, cache, failure);
	if (result == 0)
		result = judge_images(store, disk, &model, cache, failure);
	chunk_cache_free(cache);
	return result; /* the model goes with the process */
}

static int step_round(struct store *store, const char *disk, struct failure *failure)
{
	struct store_round *rounds = NULL;
	size_t count = 0;
	int result = store_list_rounds(store, disk, &rounds, &count, failure);

	if (result == 0 && count > 0)
		(void)printf("round %s %s %" PRIu64 "\n", disk, store_round_state_name(rounds[count - 1].state),
			     rounds[count - 1].counts.done);
	store_rounds_free(rounds, count);
	return result;
}

static int step_reserve(struct store *store, const char *unused, struct failure *failure)
{
	AUTO_FREE char *path = NULL;
	struct stat status = {.st_blocks = 0};

	(void)unused;
	(void)failure;
	if (asprintf(&path, "%s/reserve", store_location(store)) < 0)
		errx(3, "memory");
	(void)stat(path, &status); /* missing: nothing */
	(void)printf("reserve %" PRIu64 "\n", (uint64_t)status.st_blocks * 512);
	return 0;
}

static int check(struct store *store, bool repair, struct failure *failure)
{
	struct store_check_params params = {.deep = true, .repair = repair};
	struct store_check_report report = {.is_clean = false};
	int result = store_check(store, &params, &report, failure);

	if (result == 0 && repair)
		(void)printf("repaired %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", report.repair.mended_chunks,
			     report.repair.waiting_chunks, report.repair.unknown_chunks);
	for (size_t i = 0; result == 0 && !repair && i < report.damage_count; i++) {
		const struct store_damage *damage = &report.damages[i];

		(void)printf("damaged %s@%" PRIu32 " %" PRIu64 "+%" PRIu64 ": %s\n", damage->disk, damage->image,
			     damage->off_bytes, damage->len_bytes, damage->why);
	}
	for (size_t i = 0; result == 0 && !repair && i < report.flaw_count; i++)
		(void)printf("flaw %s: %s\n", report.flaws[i].what, report.flaws[i].why);
	if (result == 0 && !repair && !report.is_clean && report.damage_count + report.flaw_count == 0)
		(void)printf("flaw: not clean\n");
	store_check_report_free(&report);
	return result;
}

static int step_check(struct store *store, const char *unused, struct failure *failure)
{
	(void)unused;
	return check(store, false, failure);
}

static int step_repair(struct store *store, const char *unused, struct failure *failure)
{
	(void)unused;
	return check(store, true, failure);
}

static int step_gc(struct store *store, const char *unused, struct failure *failure)
{
	struct store_clean_params params = {.doing = doing};
	struct store_clean_report report;

	(void)unused;
	return store_clean(store, &params, &report, failure);
}

static int step_sync(struct store *store, const char *what, struct failure *failure)
{
	AUTO_FREE char *source = strdup(what);
	char *disk = source == NULL ? NULL : strchr(source, '=');
	struct round_report report = {.image = 0};
	struct operation operation = {.doing = doing};
	struct round_options options = {.source = source};
	int result;

	if (disk == NULL)
		errx(3, "sync=FILE=DISK");
	*disk++ = '\0';
	options.disk = disk;
	result = round_run(store, &options, &operation, &report, failure);
	if (result == 0)
		(void)printf("made %s@%" PRIu32 "\n", disk, report.image);
	round_report_free(&report);
	return result;
}

static const struct step {
	const char *name;
	int (*run)(struct store *store, const char *argument, struct failure *failure);
} steps[] = {
	{"list", step_list},	 {"live", step_live},	    {"round", step_round},
	{"check", step_check},	 {"engine", step_engine},   {"gc", step_gc},
	{"repair", step_repair}, {"reserve", step_reserve}, {"sync", step_sync},
};

/*
 * What a cut left of a write that was never acknowledged: without the catalog a rebuild can't tell it from damage, and says so. Whether
 * something that was acknowledged is in it shows in what is listed, and in lost chunks.
 */
static bool is_unacknowledged_rest(const struct store_flaw *flaw)
{
	return strncmp(flaw->why, "no record can be found from byte ", strlen("no record can be found from byte ")) == 0;
}

static int rebuild(const char *path, struct failure *failure)
{
	struct store_rebuild_params params = {.doing = doing};
	struct store_rebuild_report report = {.disks = 0};
	int result = store_rebuild_local(path, &params, &report, failure);

	for (size_t i = 0; result == 0 && i < report.found.flaw_count; i++)
		(void)printf("%s %s: %s\n", is_unacknowledged_rest(&report.found.flaws[i]) ? "rest" : "flaw", report.found.flaws[i].what,
			     report.found.flaws[i].why);
	if (result == 0 && report.lost_chunks > 0)
		(void)printf("flaw: %" PRIu64 " chunks lost\n", report.lost_chunks);
	store_rebuild_report_free(&report);
	return result;
}

static int rebuild_if_told(const char *path, struct failure *failure)
{
	AUTO(close_store) struct store *store = NULL;
	struct failure refusal = {.code = 0};

	if (open_store(path, &store, &refusal) == 0)
		return 0;
	if (strstr(refusal.message, "it is missing; 'wherry rebuild'") == NULL)
		return fail_from(failure, &refusal);
	(void)printf("told\n");
	return rebuild(path, failure);
}

/* Of a store that is open: one of `steps`. */
static int run_in_store(const char *path, const char *name, struct failure *failure)
{
	AUTO(close_store) struct store *store = NULL;
	size_t len_bytes = strcspn(name, "=");
	int result = open_store(path, &store, failure);

	for (size_t i = 0; result == 0 && i < sizeof(steps) / sizeof(steps[0]); i++)
		if (strlen(steps[i].name) == len_bytes && strncmp(name, steps[i].name, len_bytes) == 0)
			return steps[i].run(store, name + len_bytes + (name[len_bytes] == '='), failure);
	if (result == 0)
		errx(3, "%s: no such step", name);
	return result;
}

static int init_if_none(const char *path, struct failure *failure)
{
	AUTO_FREE char *description = NULL;

	if (asprintf(&description, "%s/wherry.json", path) < 0)
		errx(3, "memory");
	return access(description, F_OK) == 0 ? 0 : store_create_local(path, CHUNK_BYTES, failure);
}

static int run_step(const char *path, const char *name, struct failure *failure)
{
	if (strcmp(name, "init-if-none") == 0)
		return init_if_none(path, failure);
	if (strcmp(name, "rebuild") == 0)
		return rebuild(path, failure);
	if (strcmp(name, "rebuild-if-told") == 0)
		return rebuild_if_told(path, failure);
	return run_in_store(path, name, failure);
}

static int run_steps(const char *path, char **names, int count)
{
	for (int i = 0; i < count; i++) {
		struct failure failure = {.code = 0};

		if (run_step(path, names[i], &failure) < 0) {
			(void)printf("\nfailed %s: %s\n", names[i], failure.message);
			return 1;
		}
	}
	return 0;
}

static int run_line(char *line)
{
	char *names[STEPS_MOST], *rest = NULL, *path = strtok_r(line, " \n", &rest);
	int count = 0;

	while (count < STEPS_MOST && (names[count] = strtok_r(NULL, " \n", &rest)) != NULL)
		count++;
	if (path == NULL || count == STEPS_MOST)
		errx(3, "not a request");
	return run_steps(path, names, count);
}

static void run_lines(void)
{
	char line[8192];

	while (fgets(line, sizeof(line), stdin) != NULL) {
		int status;
		pid_t child = fork();

		if (child < 0)
			err(3, "fork");
		if (child == 0) {
			(void)alarm(STATE_MOST_SECONDS);
			(void)dup2(STDOUT_FILENO, STDERR_FILENO); /* a sanitizer's words belong to the state */
			status = run_line(line);
			(void)fflush(stdout);
			_exit(status);
		}
		if (waitpid(child, &status, 0) < 0)
			err(3, "waitpid");
		if (WIFSIGNALED(status) || WEXITSTATUS(status) > 1)
			(void)printf("\nfailed: wait status %d\n", status);
		(void)printf("end\n");
		(void)fflush(stdout);
	}
}

int main(int argument_count, char **arguments)
{
	if (argument_count == 2 && strcmp(arguments[1], "-") == 0) {
		run_lines();
		return 0;
	}
	if (argument_count < 3)
		errx(3, "see the head of power_check.c");
	return run_steps(arguments[1], arguments + 2, argument_count - 2);
}
