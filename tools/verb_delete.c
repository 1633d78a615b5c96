/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry delete, remove, retain: what takes images away. And pin, unpin, which
 * protect them.
 *
 * Several images are deleted all or none, as far as can be known: each is asked
 * for in a dry run before the first one goes, so that a number mistyped in the
 * middle of a line leaves everything as it was.
 */
#include "tools/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "tools/output.h"

/* ---- delete ---- */

struct doomed {
	char disk[STORE_NAME_MOST_BYTES + 1];
	uint32_t number;
	uint64_t freed_bytes;
};

/* Numbers for all that was typed; what was named twice (web01@3 web01@latest) is there once. */
static int resolve_doomed(struct store *store, const struct command_line *line, struct doomed *ret_list,
			  size_t *ret_count, struct failure *failure)
{
	size_t count = 0;

	for (size_t i = 0; i < line->argument_count; i++) {
		struct store_reference reference;
		struct doomed *doomed = &ret_list[count];
		bool is_known = false;
		int result;

		command_line_reference(line, i, &reference);
		memcpy(doomed->disk, reference.disk, sizeof(doomed->disk));
		result = store_resolve_image(store, &reference, &doomed->number, failure);
		if (result < 0)
			return result;
		for (size_t k = 0; k < count; k++)
			is_known |= ret_list[k].number == doomed->number && strcmp(ret_list[k].disk, doomed->disk) == 0;
		count += !is_known;
	}
	*ret_count = count;
	return 0;
}

static int delete_doomed(struct store *store, struct doomed *list, size_t count, bool dry_run, size_t *ret_deleted,
			 struct failure *failure)
{
	*ret_deleted = 0;
	for (size_t i = 0; i < count; i++) {
		int result =
			store_delete_image(store, list[i].disk, list[i].number, dry_run, &list[i].freed_bytes, failure);

		if (result < 0)
			return result;
		*ret_deleted += 1;
	}
	return 0;
}

static void print_doomed_json(const struct doomed *list, size_t count, bool dry_run)
{
	json_t *document = json_object();
	json_t *array = json_array();
	uint64_t freed_bytes = 0;

	for (size_t i = 0; i < count; i++) {
		json_t *object = json_object();

		json_put(object, "disk", json_text(list[i].disk));
		json_put(object, "image", json_bytes(list[i].number));
		json_put(object, "freed_bytes", json_bytes(list[i].freed_bytes));
		if (json_array_append_new(array, object) != 0)
			output_out_of_memory();
		freed_bytes += list[i].freed_bytes;
	}
	json_put(document, "dry_run", json_boolean(dry_run));
	json_put(document, "deleted", array);
	json_put(document, "freed_bytes", json_bytes(freed_bytes));
	json_print(document);
}

static void print_doomed(const struct doomed *list, size_t count, bool dry_run)
{
	char text[UNITS_TEXT_BYTES];

	for (size_t i = 0; i < count; i++)
		(void)printf("%s@%u: %s %s\n", list[i].disk, list[i].number,
			     dry_run ? "would be deleted, freeing" : "deleted, which frees",
			     units_format_size(list[i].freed_bytes, text));
}

static enum exit_status run_delete(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO_FREE struct doomed *list = calloc(line->argument_count, sizeof(*list));
	struct failure failure = {.code = 0};
	bool dry_run = line->options.dry_run;
	size_t count = 0, deleted = 0;
	int result;

	if (list == NULL)
		output_out_of_memory();
	if (command_line_open_store(line, dry_run, &store, &failure) < 0 ||
	    resolve_doomed(store, line, list, &count, &failure) < 0 ||
	    delete_doomed(store, list, count, true, &deleted, &failure) < 0)
		return report_failure(&failure);
	result = dry_run ? 0 : delete_doomed(store, list, count, false, &deleted, &failure);
	if (line->options.json && result == 0)
		print_doomed_json(list, deleted, dry_run);
	else if (!line->options.json)
		print_doomed(list, deleted, dry_run);
	return result < 0 ? report_failure(&failure) : STATUS_DONE;
}

const struct verb verb_delete = {
	.name = "delete",
	.summary = "delete images",
	.description = "Deletes images. Any image can go at any time: each is full by itself, and the others don't "
		       "notice. One "
		       "that is pinned or in use is refused, and then none of those named is deleted.",
	.argument_count = 1,
	.arguments = {{.name = "DISK@N", .kind = ARGUMENT_IMAGE, .repeats = true}},
	.option_count = 1,
	.options = {{.id = OPTION_DRY_RUN}},
	.example_count = 2,
	.examples = {{"wherry delete web01@3", "delete image 3 of web01"},
		     {"wherry delete --dry-run web01@3 web01@4", "what would be deleted, and what that would free"}},
	.run = run_delete,
};

/* ---- remove ---- */

/* How many images go with it: worth knowing before and after. */
static int count_images(struct store *store, const char *disk, uint32_t *ret_images, struct failure *failure)
{
	struct store_disk *disks = NULL;
	size_t count = 0;
	int result = store_list_disks(store, disk, &disks, &count, failure);

	if (result < 0)
		return result;
	*ret_images = count == 0 ? 0 : disks[0].images;
	store_disks_free(disks, count);
	return 0;
}

static enum exit_status run_remove(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	struct failure failure = {.code = 0};
	bool dry_run = line->options.dry_run;
	const char *disk = line->arguments[0];
	uint32_t images = 0;
	json_t *document;

	if (command_line_open_store(line, dry_run, &store, &failure) < 0 ||
	    count_images(store, disk, &images, &failure) < 0 || store_remove_disk(store, disk, dry_run, &failure) < 0)
		return report_failure(&failure);
	if (!line->options.json) {
		(void)printf("%s: %s with %u image%s\n", disk, dry_run ? "would be removed" : "removed", images,
			     images == 1 ? "" : "s");
		return STATUS_DONE;
	}
	document = json_object();
	json_put(document, "disk", json_text(disk));
	json_put(document, "images", json_bytes(images));
	json_put(document, "dry_run", json_boolean(dry_run));
	json_print(document);
	return STATUS_DONE;
}

const struct verb verb_remove = {
	.name = "remove",
	.summary = "remove a disk with all its images",
	.description = "Removes DISK: its live content, all its images and its history. Refused while it or one of its "
		       "images is "
		       "in use, or an image is pinned. There is no way back.",
	.argument_count = 1,
	.arguments = {{.name = "DISK", .kind = ARGUMENT_DISK}},
	.option_count = 1,
	.options = {{.id = OPTION_DRY_RUN}},
	.example_count = 2,
	.examples = {{"wherry remove --dry-run web01", "whether it could be removed, and how many images would go"},
		     {"wherry remove web01", "remove it"}},
	.run = run_remove,
};

/* ---- retain ---- */

static enum exit_status run_retain(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO(store_retention_free) struct store_retention retention = {.deleted = NULL};
	AUTO_FREE char *doing = command_line_doing(line);
	struct failure failure = {.code = 0};
	bool dry_run = line->options.dry_run;
	const char *disk = line->arguments[0];
	uint32_t keep = line->options.keep;
	struct store_policy policy = {.set_keep = true, .keep = keep};

	if (doing == NULL)
		output_out_of_memory();
	if (command_line_open_store(line, dry_run, &store, &failure) < 0 ||
	    (!dry_run && store_set_policy(store, disk, &policy, &failure) < 0) ||
	    store_retain(store, disk, keep, dry_run, &retention, &failure) < 0)
		return report_failure(&failure);
	if (line->options.json)
		output_json_retention(disk, keep, dry_run, &retention);
	else
		output_text_retention(disk, dry_run, &retention);
	/* a signal may end it at once: what is done stays done */
	if (!dry_run && store_clean_after(store, &retention, doing, NULL, &failure) < 0)
		report_line("wherry: warning: %s; the images are gone, their room is not given back", failure.message);
	return STATUS_DONE;
}

const struct verb verb_retain = {
	.name = "retain",
	.summary = "keep at most so many images of a disk, now and from now on",
	.description = "Deletes images of DISK, the oldest first, until there are at most N. Those that are pinned or "
		       "in use stay, "
		       "and are named; the newest one never goes. The number stays as the disk's policy: every round "
		       "keeps to it.",
	.argument_count = 1,
	.arguments = {{.name = "DISK", .kind = ARGUMENT_DISK}},
	.option_count = 2,
	.options = {{.id = OPTION_KEEP, .required = true, .help = "at most so many images"}, {.id = OPTION_DRY_RUN}},
	.example_count = 2,
	.examples = {{"wherry retain web01 --keep 7 --dry-run", "which images would go"},
		     {"wherry retain web01 --keep 7", "delete them, and keep it that way"}},
	.run = run_retain,
};

/* ---- pin, unpin ---- */

static enum exit_status set_pinned(const struct command_line *line, bool pinned)
{
	AUTO(cleanup_store) struct store *store = NULL;
	struct failure failure = {.code = 0};
	struct store_reference reference;
	uint32_t number;
	json_t *document;

	command_line_reference(line, 0, &reference);
	if (command_line_open_store(line, false, &store, &failure) < 0 ||
	    store_resolve_image(store, &reference, &number, &failure) < 0 ||
	    store_pin_image(store, reference.disk, number, pinned, &failure) < 0)
		return report_failure(&failure);
	if (!line->options.json) {
		(void)printf("%s@%u: %s\n", reference.disk, number, pinned ? "pinned" : "not pinned");
		return STATUS_DONE;
	}
	document = json_object();
	json_put(document, "disk", json_text(reference.disk));
	json_put(document, "image", json_bytes(number));
	json_put(document, "pinned", json_boolean(pinned));
	json_print(document);
	return STATUS_DONE;
}

static enum exit_status run_pin(const struct command_line *line)
{
	return set_pinned(line, true);
}

static enum exit_status run_unpin(const struct command_line *line)
{
	return set_pinned(line, false);
}

const struct verb verb_pin = {
	.name = "pin",
	.summary = "protect an image from deletion",
	.description = "A pinned image is deleted neither by --keep nor by 'wherry delete', until it is unpinned; nor "
		       "can its disk "
		       "be removed.",
	.argument_count = 1,
	.arguments = {{.name = "DISK@N", .kind = ARGUMENT_IMAGE}},
	.example_count = 1,
	.examples = {{"wherry pin web01@latest", "keep the newest image of web01"}},
	.run = run_pin,
};

const struct verb verb_unpin = {
	.name = "unpin",
	.summary = "take the protection of 'pin' away",
	.description = "The image can be deleted again, by 'wherry delete' and by --keep.",
	.argument_count = 1,
	.arguments = {{.name = "DISK@N", .kind = ARGUMENT_IMAGE}},
	.example_count = 1,
	.examples = {{"wherry unpin web01@3", "image 3 of web01 may go"}},
	.run = run_unpin,
};
