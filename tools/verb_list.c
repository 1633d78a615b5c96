/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry disks, images, rounds: what there is. Read-only, so they work on a
 * store that can't be written to, and next to a round that is running.
 *
 * Where there is nothing to list, standard output is empty and standard error
 * has a line that says what would make something: a program that counts lines is
 * not misled, and a person is not left in front of nothing.
 */
#include "tools/command.h"

#include "common/cleanup.h"
#include "tools/output.h"

static const char *disk_or_all(const struct command_line *line)
{
	return line->argument_count == 0 ? NULL : line->arguments[0];
}

static void say_none(const struct command_line *line, const char *what, const char *hint)
{
	if (line->argument_count == 0)
		report_line("wherry: store %s: no %s yet; %s", line->options.store, what, hint);
	else
		report_line("wherry: disk %s: no %s yet; %s", line->arguments[0], what, hint);
}

static enum exit_status run_disks(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	struct failure failure = {.code = 0};
	struct store_disk *disks = NULL;
	size_t count = 0;

	if (command_line_open_store(line, true, &store, &failure) < 0 ||
	    store_list_disks(store, NULL, &disks, &count, &failure) < 0)
		return report_failure(&failure);
	if (line->options.json)
		output_json_disks(disks, count);
	else if (count > 0)
		output_text_disks(disks, count);
	else
		say_none(line, "disks", "'wherry sync SOURCE DISK' makes one");
	store_disks_free(disks, count);
	return STATUS_DONE;
}

static enum exit_status run_images(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	struct failure failure = {.code = 0};
	struct store_image *images = NULL;
	size_t count = 0;

	if (command_line_open_store(line, true, &store, &failure) < 0 ||
	    store_list_images(store, disk_or_all(line), &images, &count, &failure) < 0)
		return report_failure(&failure);
	if (line->options.json)
		output_json_images(images, count);
	else if (count > 0)
		output_text_images(images, count);
	else
		say_none(line, "images", "every finished round of 'wherry sync' makes one");
	store_images_free(images, count);
	return STATUS_DONE;
}

static enum exit_status run_rounds(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	struct failure failure = {.code = 0};
	struct store_round *rounds = NULL;
	size_t count = 0;

	if (command_line_open_store(line, true, &store, &failure) < 0 ||
	    store_list_rounds(store, disk_or_all(line), &rounds, &count, &failure) < 0)
		return report_failure(&failure);
	if (line->options.json)
		output_json_rounds(rounds, count);
	else if (count > 0)
		output_text_rounds(rounds, count);
	else
		say_none(line, "rounds", "'wherry sync SOURCE DISK' runs one");
	store_rounds_free(rounds, count);
	return STATUS_DONE;
}

const struct verb verb_disks = {
	.name = "disks",
	.summary = "list disks: size, images, policy, source, who has it open",
	.description = "Lists the disks of the store. POLICY is what 'wherry set' and --keep have set, MIRROR OF the "
		       "source of "
		       "the last round, OPEN BY who holds the live content open at the moment.",
	.example_count = 2,
	.examples = {{"wherry disks", "what is in the store"},
		     {"wherry disks --json | jq -r '.disks[].name'", "their names, for a script"}},
	.run = run_disks,
};

const struct verb verb_images = {
	.name = "images",
	.summary = "list images: when, how large, how far to be trusted",
	.description = "Lists images, of all disks or of DISK. Each is the full content of its disk at one moment.\n\n"
		       "CHANGED is what differs from the image before, ITS OWN what deleting just this image would "
		       "free. STATE says how "
		       "far it can be trusted: clean (the source was not in use), frozen (it was a snapshot or a "
		       "frozen file system), "
		       "fuzzy (it was changing while it was read).",
	.argument_count = 1,
	.arguments = {{.name = "DISK", .kind = ARGUMENT_DISK, .optional = true}},
	.example_count = 2,
	.examples = {{"wherry images web01", "all images of web01"},
		     {"wherry images --json | jq '.images[] | select(.pinned)'", "those that are pinned, in any disk"}},
	.run = run_images,
};

const struct verb verb_rounds = {
	.name = "rounds",
	.summary = "list rounds: state, how far, what changed, errors",
	.description = "Lists the rounds that 'wherry sync' has run, of all disks or of DISK. A round is running, "
		       "stopped (by a "
		       "signal; the same sync goes on with it), failed, or done.",
	.argument_count = 1,
	.arguments = {{.name = "DISK", .kind = ARGUMENT_DISK, .optional = true}},
	.example_count = 2,
	.examples = {{"wherry rounds web01", "the history of web01"},
		     {"wherry rounds web01 --json", "the same for a program"}},
	.run = run_rounds,
};
