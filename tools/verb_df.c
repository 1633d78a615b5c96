/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry df: what the store takes, and what of it is good for something.
 */
#include "tools/command.h"

#include "common/cleanup.h"
#include "tools/output.h"

static enum exit_status run_df(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO(store_usage_free) struct store_usage usage = {.disks = NULL};
	struct failure failure = {.code = 0};

	if (command_line_open_store(line, true, &store, &failure) < 0 || store_usage(store, &usage, &failure) < 0)
		return report_failure(&failure);
	if (line->options.json)
		output_json_df(&usage);
	else
		output_text_df(&usage);
	return STATUS_DONE;
}

const struct verb verb_df = {
	.name = "df",
	.summary = "how much room the store takes, and each disk",
	.description =
		"Tells what the store takes. SEGMENTS is what the files with the data take; LIVE of it is what "
		"images and disks refer to, DEAD what nothing refers to any more. CATALOG is what the index of "
		"all that takes. CONTENT is what LIVE was before it was compressed, each piece counted once, "
		"however many images share it.\n\n"
		"Then a line for each disk. ITS OWN is what removing this disk, with all its images, would free; "
		"what it shares with another one is in neither's.",
	.example_count = 2,
	.examples = {{"wherry df", "what the store takes"},
		     {"wherry df --json | jq .dead_bytes", "one number of it, for a script"}},
	.run = run_df,
};
