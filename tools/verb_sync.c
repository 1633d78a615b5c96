/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry sync: one round. All the work is in syncer/round.h; here is what was
 * asked for, what is told about it, and which exit status that makes.
 */
#include "tools/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "tools/levels.h"
#include "tools/output.h"
#include "tools/progress_bar.h"

/* Options that leave one another without effect are refused: nothing asked for is silently left out. */
static enum exit_status check_options(const struct command_line *line)
{
	const struct options *options = &line->options;

	if (options->no_image && options->label != NULL)
		return report_usage(line->verb, "--label: with --no-image there is no image to keep it with");
	if (options->dirty_bitmap != NULL && strstr(line->arguments[0], "://") == NULL)
		return report_usage(line->verb, "--dirty-bitmap: only an NBD source has one, and %s is a path",
				    line->arguments[0]);
	if (options->dirty_bitmap != NULL && options->read_all)
		return report_usage(line->verb,
				    "--read-all: reads what --dirty-bitmap would leave out; use one of them");
	return STATUS_DONE;
}

/* Stopped: what is kept, and how to go on. */
static enum exit_status report_stop(const struct command_line *line, const struct round_report *report)
{
	char done[UNITS_TEXT_BYTES], total[UNITS_TEXT_BYTES];

	report_line("wherry: disk %s: round stopped by a signal with %s of %s done, which is kept; the same command "
		    "goes on from there",
		    line->arguments[1], units_format_size(report->counts.done, done),
		    units_format_size(report->counts.total, total));
	return STATUS_STOPPED;
}

static enum exit_status report_round(const struct command_line *line, const struct round_report *report)
{
	if (line->options.json)
		output_json_sync(line->arguments[1], report);
	else
		output_text_sync(line->arguments[1], report);
	return report->verified && !report->equal ? STATUS_DIFFERENT : STATUS_DONE;
}

/* A source that isn't there, and a file where the name of a disk is wanted. */
static enum exit_status report_sync_failure(const struct command_line *line, const struct failure *failure)
{
	const char *source = line->arguments[0], *disk = line->arguments[1];

	if (failure->code != -ENOENT || strstr(source, "://") != NULL || access(source, F_OK) == 0 || access(disk, F_OK) < 0)
		return report_failure(failure);
	report_line("wherry: %s; SOURCE comes first: was 'wherry sync %s %s' meant?", failure->message, disk, source);
	return STATUS_FAILED;
}

static struct round_options round_options_of(const struct command_line *line)
{
	const struct options *options = &line->options;

	return (struct round_options){
		.source = line->arguments[0],
		.disk = line->arguments[1],
		.read_all = options->read_all,
		.on_read_error = options->on_read_error,
		.has_level = options->has_level,
		.level = options->level,
		.has_limit = options->has_limit,
		.limit_bytes_per_second = options->limit_bytes_per_second,
		.dirty_bitmap = options->dirty_bitmap,
		.no_image = options->no_image,
		.label = options->label,
		.keep = options->keep,
		.allow_shrink = options->allow_shrink,
		.verify = options->verify,
	};
}

static enum exit_status run_sync(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO(round_report_free) struct round_report report = {.image = 0};
	AUTO_FREE char *doing = command_line_doing(line);
	struct round_options round = round_options_of(line);
	struct operation operation = {.doing = doing};
	struct failure failure = {.code = 0};
	enum exit_status status = check_options(line);
	int result;

	if (status != STATUS_DONE)
		return status;
	if (doing == NULL)
		output_out_of_memory();
	if (command_line_open_store(line, false, &store, &failure) < 0)
		return report_failure(&failure);
	progress_begin(line->options.progress, &operation);
	result = round_run(store, &round, &operation, &report, &failure);
	progress_end();
	/* what was to follow the image may fail; the image is there all the same, and the report says so */
	if (result < 0 && report.image != 0) {
		(void)report_round(line, &report);
		(void)report_failure(&failure);
		return result == -EINTR && *operation.stop ? STATUS_STOPPED : STATUS_FAILED;
	}
	if (result == -EINTR && *operation.stop)
		return report_stop(line, &report);
	if (result < 0)
		return report_sync_failure(line, &failure);
	return report_round(line, &report);
}

const struct verb verb_sync = {
	.name = "sync",
	.summary = "one round: make a disk equal to a source, then an image of it",
	.description =
		"Copies SOURCE, a block device, an image file, or an NBD server's export (nbd://HOST/NAME, nbds://..., "
		"nbd+unix:///NAME?socket=PATH), to the live content of DISK, which is made if there is none. The first "
		"round "
		"copies the blocks in use; later ones read and compare, and store what has changed. At the end an "
		"image is "
		"made of it, and images over the limit of --keep go.\n\n"
		"A disk that was made by hand or by 'wherry clone' becomes a mirror of SOURCE; what was written to it "
		"and is in no image has to be put into one first ('wherry image').\n\n"
		"The source is only read. It may be in use meanwhile: then the image is marked fuzzy, since parts of "
		"it were "
		"read at different moments.\n\n"
		"A round that is stopped (Ctrl-C) or fails changes no image, and keeps what is done: the same command "
		"goes on "
		"from there. While it runs, 'wherry set' changes its limit and level.",
	.argument_count = 2,
	.arguments = {{.name = "SOURCE", .kind = ARGUMENT_SOURCE}, {.name = "DISK", .kind = ARGUMENT_DISK}},
	.option_count = 11,
	.options = {{.id = OPTION_KEEP},
		    {.id = OPTION_LABEL},
		    {.id = OPTION_NO_IMAGE},
		    {.id = OPTION_LEVEL},
		    {.id = OPTION_LIMIT},
		    {.id = OPTION_READ_ALL},
		    {.id = OPTION_ON_READ_ERROR},
		    {.id = OPTION_VERIFY},
		    {.id = OPTION_DIRTY_BITMAP},
		    {.id = OPTION_ALLOW_SHRINK},
		    {.id = OPTION_PROGRESS}},
	.appendix = LEVELS_TEXT,
	.example_count = 4,
	.examples = {{"wherry sync /dev/sda web01",
		      "the first time a copy of what is in use, then every time what has changed"},
		     {"wherry sync /dev/sda web01 --keep 7 --label 'before the upgrade'",
		      "at most seven images from now on, this one with a few words"},
		     {"wherry sync nbd://vmhost:10809/web01 web01 --dirty-bitmap backup0",
		      "a virtual machine's disk, reading only what QEMU knows to have changed"},
		     {"wherry sync /dev/sda web01 --limit 20M --progress=json --json 2>progress",
		      "for a program: progress in one file, the result on standard output"}},
	.run = run_sync,
};
