/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry set: a disk's policies, which stay, and which a round that is running
 * obeys within two seconds. Prints what holds afterwards.
 */
#include "tools/command.h"

#include "common/cleanup.h"
#include "tools/levels.h"
#include "tools/output.h"

static void print_policy(const struct command_line *line, const struct store_disk *disk)
{
	json_t *document;

	if (!line->options.json) {
		output_text_policy(disk);
		return;
	}
	document = json_object();
	json_put(document, "disk", json_text(disk->name));
	json_put(document, "keep", json_number_or_null(disk->keep));
	json_put(document, "level", disk->level < 0 ? json_null() : json_bytes((uint64_t)disk->level));
	json_put(document, "limit_bytes_per_second", json_number_or_null(disk->limit_bytes_per_second));
	json_print(document);
}

static enum exit_status run_set(const struct command_line *line)
{
	const struct options *options = &line->options;
	struct store_policy policy = {
		.set_keep = options->has_keep,
		.keep = options->keep,
		.set_level = options->has_level,
		.level = options->level,
		.set_limit = options->has_limit,
		.limit_bytes_per_second = options->limit_bytes_per_second,
	};
	AUTO(cleanup_store) struct store *store = NULL;
	struct failure failure = {.code = 0};
	struct store_disk *disks = NULL;
	size_t count = 0;

	if (!policy.set_keep && !policy.set_level && !policy.set_limit)
		return report_usage(line->verb, "set: nothing to set; give --keep, --level or --limit");
	if (command_line_open_store(line, false, &store, &failure) < 0 ||
	    store_set_policy(store, line->arguments[0], &policy, &failure) < 0 ||
	    store_list_disks(store, line->arguments[0], &disks, &count, &failure) < 0)
		return report_failure(&failure);
	for (size_t i = 0; i < count; i++)
		print_policy(line, &disks[i]);
	store_disks_free(disks, count);
	return STATUS_DONE;
}

const struct verb verb_set = {
	.name = "set",
	.summary = "set limit, compression level, number of images of a disk",
	.description =
		"Changes what holds for all rounds of DISK that don't say otherwise themselves. A round that is "
		"running obeys a new limit or level within two seconds. Images over a new number go at the end of the "
		"next round, or with 'wherry retain'.",
	.argument_count = 1,
	.arguments = {{.name = "DISK", .kind = ARGUMENT_DISK}},
	.option_count = 3,
	.options = {{.id = OPTION_LIMIT, .help = "store at most RATE a second: 10M, 100Mbit; 0 or unlimited: no limit"},
		    {.id = OPTION_LEVEL,
		     .also = "default",
		     .help = "compression, from 0 (none) to 10 (smallest); see below"},
		    {.id = OPTION_KEEP,
		     .also = "all",
		     .help = "keep at most N images, the oldest that is neither pinned nor in use goes first"}},
	.appendix = LEVELS_TEXT,
	.example_count = 2,
	.examples = {{"wherry set web01 --limit 5M", "slow down the round that is running, and those to come"},
		     {"wherry set web01 --limit unlimited --level default", "as in the beginning"}},
	.run = run_set,
};
