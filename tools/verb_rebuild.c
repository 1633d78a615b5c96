/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry rebuild: the catalog from the segments. What it finds to be lost is then named
 * by a check, which knows how to say whose bytes are concerned.
 */
#include "tools/command.h"

#include <errno.h>

#include "common/cleanup.h"
#include "syncer/meter.h"
#include "tools/output.h"
#include "tools/progress_bar.h"

static int rebuild_store(const struct options *options, const struct operation *operation,
			 struct store_rebuild_report *ret_report, struct failure *failure)
{
	struct meter meter;
	const struct store_rebuild_params params = {.doing = operation->doing,
						    .dry_run = options->dry_run,
						    .total_bytes = &meter.total_bytes,
						    .done_bytes = &meter.done_bytes,
						    .stop = operation->stop};
	int result = meter_start(&meter, "rebuild", operation, failure);

	if (result < 0)
		return result;
	result = store_rebuild_local(options->store, &params, ret_report, failure);
	if (result == 0) /* records were counted, and a segment has a header, too */
		atomic_store(&meter.done_bytes, atomic_load(&meter.total_bytes));
	meter_stop(&meter);
	return result;
}

/* Which bytes of which image are lost. */
static int name_losses(const struct command_line *line, const struct store_rebuild_report *rebuilt,
		       struct store_check_report *ret_report, struct failure *failure)
{
	AUTO(cleanup_store) struct store *store = NULL;
	const struct store_check_params params = {.deep = false};
	int result;

	if (rebuilt->lost_chunks == 0 || line->options.dry_run)
		return 0;
	result = command_line_open_store(line, true, &store, failure);
	return result == 0 ? store_check(store, &params, ret_report, failure) : result;
}

static enum exit_status run_rebuild(const struct command_line *line)
{
	const struct options *options = &line->options;
	AUTO(store_rebuild_report_free) struct store_rebuild_report report = {.disks = 0};
	AUTO(store_check_report_free) struct store_check_report losses = {.is_clean = true};
	AUTO_FREE char *doing = command_line_doing(line);
	struct operation operation = {.doing = doing};
	struct failure failure = {.code = 0};
	int result;

	if (doing == NULL)
		output_out_of_memory();
	progress_begin(options->progress, &operation);
	result = rebuild_store(options, &operation, &report, &failure);
	progress_end();
	if (result == -EINTR && failure.message[0] == '\0') {
		report_line("wherry: store %s: rebuild stopped by a signal; the catalog is as it was", options->store);
		return STATUS_STOPPED;
	}
	if (result < 0 || name_losses(line, &report, &losses, &failure) < 0)
		return report_failure(&failure);
	if (options->json)
		output_json_rebuild(options->dry_run, &report, &losses);
	else
		output_text_rebuild(options->store, options->dry_run, &report, &losses);
	return report.lost_chunks == 0 && report.found.is_clean ? STATUS_DONE : STATUS_DIFFERENT;
}

const struct verb verb_rebuild = {
	.name = "rebuild",
	.summary = "make the catalog anew from the data alone",
	.description =
		"For when the catalog is lost or damaged, or an old copy of it was put back. Makes it from the files with the "
		"data: all disks and images with their numbers, labels, times, pins and policies, and live content as of its "
		"last change. Nothing else may use the store meanwhile.\n\n"
		"What is damaged or missing is said, with the images and ranges that it concerns, and the exit status is 3 "
		"then; such content reads as an error, and a round that meets it at the source brings it back. Rounds are "
		"forgotten, and the next one of each disk compares everything. Stopped or killed, it leaves the old catalog as it "
		"was; if there is none afterwards, run it again.",
	.option_count = 2,
	.options = {{.id = OPTION_DRY_RUN, .help = "find out what could be had again, and change nothing"},
		    {.id = OPTION_PROGRESS}},
	.example_count = 2,
	.examples = {{"wherry rebuild --dry-run", "what could be had again"}, {"wherry rebuild", "do it"}},
	.run = run_rebuild,
};
