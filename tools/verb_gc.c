/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry gc: gives back the room of what nothing reaches any more.
 */
#include "tools/command.h"

#include <errno.h>

#include "common/cleanup.h"
#include "syncer/meter.h"
#include "tools/output.h"
#include "tools/progress_bar.h"

static int clean_store(struct store *store, const struct options *options, const struct operation *operation,
		       struct store_clean_report *ret_report, struct failure *failure)
{
	struct meter meter;
	const struct store_clean_params params = {.doing = operation->doing,
						  .dry_run = options->dry_run,
						  .limit_bytes_per_second = options->limit_bytes_per_second,
						  .total_bytes = &meter.total_bytes,
						  .done_bytes = &meter.done_bytes,
						  .stop = operation->stop};
	int result = meter_start(&meter, "gc", operation, failure);

	if (result < 0)
		return result;
	result = store_clean(store, &params, ret_report, failure);
	meter_stop(&meter);
	return result;
}

static enum exit_status run_gc(const struct command_line *line)
{
	const struct options *options = &line->options;
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO_FREE char *doing = command_line_doing(line);
	struct operation operation = {.doing = doing};
	struct store_clean_report report;
	struct failure failure = {.code = 0};
	bool is_stopped;
	int result;

	if (doing == NULL)
		output_out_of_memory();
	if (command_line_open_store(line, options->dry_run, &store, &failure) < 0)
		return report_failure(&failure);
	progress_begin(options->progress, &operation);
	result = clean_store(store, options, &operation, &report, &failure);
	progress_end();
	is_stopped = result == -EINTR && *operation.stop;
	if (is_stopped && failure.message[0] == '\0')
		report_line("wherry: store %s: gc stopped by a signal; what it has freed stays so, 'wherry gc' goes on",
			    options->store);
	else if (result < 0)
		return report_failure(&failure);
	if (is_stopped)
		return STATUS_STOPPED;
	if (options->json)
		output_json_gc(options->dry_run, &report);
	else
		output_text_gc(options->dry_run, &report);
	return STATUS_DONE;
}

const struct verb verb_gc = {
	.name = "gc",
	.summary = "give back the room of what nothing reaches any more",
	.description =
		"Deleted images and overwritten content leave dead records behind. gc removes files of the store that "
		"hold nothing else, and rewrites those with less than half alive. Those with more stay as they are: what "
		"is dead in them goes when more of it has died. It also ends deletions that were cut short.\n\n"
		"Rounds and readers may go on meanwhile, and it may be stopped at any moment: what is done stays done. "
		"Its cost follows what is dead. After images have gone by a disk's policy (--keep) a round does some of it by "
		"itself.",
	.option_count = 3,
	.options = {{.id = OPTION_LIMIT, .help = "rewrite at most RATE a second: 10M, 100Mbit; 0 or unlimited: no limit"},
		    {.id = OPTION_DRY_RUN, .help = "say how much would be freed, and free nothing"},
		    {.id = OPTION_PROGRESS}},
	.example_count = 2,
	.examples = {{"wherry gc --dry-run", "how much it would free"},
		     {"wherry gc --limit 20M", "free it, gently"}},
	.run = run_gc,
};
