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
	{"list", step_list}, {"live", step_live},     {"round", step_round},	 {"check", step_check},
	{"gc", step_gc},     {"repair", step_repair}, {"reserve", step_reserve}, {"sync", step_sync},
};

static int rebuild(const char *path, struct failure *failure)
{
	struct store_rebuild_params params = {.doing = doing};
	struct store_rebuild_report report = {.disks = 0};
	int result = store_rebuild_local(path, &params, &report, failure);

	for (size_t i = 0; result == 0 && i < report.found.flaw_count; i++)
		(void)printf("flaw %s: %s\n", report.found.flaws[i].what, report.found.flaws[i].why);
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
