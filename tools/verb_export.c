/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry export: content as a raw disk. To "-" the disk itself is standard
 * output, and what there is to say about it goes to standard error.
 */
#include "tools/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/output.h"
#include "tools/progress_bar.h"

static enum exit_status check_target(const struct command_line *line, bool to_stdout)
{
	if (!to_stdout)
		return STATUS_DONE;
	if (line->options.json)
		return report_usage(line->verb, "--json: standard output is the disk itself here");
	if (isatty(STDOUT_FILENO))
		return report_usage(line->verb, "standard output: a terminal is no place for a disk, redirect it");
	return STATUS_DONE;
}

static enum exit_status report_stop(const struct command_line *line, const struct failure *failure)
{
	if (failure->message[0] != '\0')
		return report_failure(failure);
	report_line("wherry: %s to %s: export stopped by a signal; what was written is not the whole disk",
		    line->arguments[0], line->arguments[1]);
	return STATUS_STOPPED;
}

/* The number that "latest" stands for now, so that what is exported and what is reported are one image. */
static int pin_down(struct store *store, struct store_reference *reference, struct failure *failure)
{
	uint32_t number;
	int result;

	if (reference->which != STORE_LATEST)
		return 0;
	result = store_resolve_image(store, reference, &number, failure);
	if (result < 0)
		return result;
	reference->which = STORE_NUMBER;
	reference->number = number;
	return 0;
}

static void format_reference(const struct store_reference *reference, char *text, size_t room_bytes)
{
	char image[16] = "", partition[16] = "";

	if (reference->which == STORE_NUMBER)
		(void)snprintf(image, sizeof(image), "@%u", reference->number);
	if (reference->partition > 0)
		(void)snprintf(partition, sizeof(partition), "/%u", reference->partition);
	(void)snprintf(text, room_bytes, "%s%s%s", reference->disk, image, partition);
}

static enum exit_status run_export(const struct command_line *line)
{
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO_FREE char *doing = command_line_doing(line);
	struct operation operation = {.doing = doing};
	struct failure failure = {.code = 0};
	AUTO(export_report_free) struct export_report report = {.size_bytes = 0};
	const char *target = line->arguments[1];
	bool to_stdout = strcmp(target, "-") == 0;
	struct store_reference reference;
	char name[STORE_NAME_MOST_BYTES + 33];
	enum exit_status status = check_target(line, to_stdout);
	int result;

	if (status != STATUS_DONE)
		return status;
	if (doing == NULL)
		output_out_of_memory();
	command_line_reference(line, 0, &reference);
	if (command_line_open_store_to_read(line, &reference, &store, &failure) < 0 ||
	    pin_down(store, &reference, &failure) < 0)
		return report_failure(&failure);
	progress_begin(line->options.progress, &operation);
	result = export_run(store, &reference, target, STDOUT_FILENO, line->options.salvage, &operation, &report, &failure);
	progress_end();
	if (result == -EINTR && *operation.stop)
		return report_stop(line, &failure);
	if (result < 0)
		return report_failure(&failure);
	format_reference(&reference, name, sizeof(name));
	if (line->options.json)
		output_json_export(&reference, reference.which == STORE_LIVE ? 0 : reference.number, target, &report);
	else if (line->options.salvage)
		output_text_holes(to_stdout ? stderr : stdout, &report);
	else
		output_text_export(to_stdout ? stderr : stdout, name, target, &report);
	return report.hole_count == 0 ? STATUS_DONE : STATUS_DIFFERENT;
}

const struct verb verb_export = {
	.name = "export",
	.summary = "write an image out as a raw disk: to a file, a device, a pipe",
	.description = "Writes REF, an image (web01@3), the live content (web01) or a partition of either (web01@3/2), "
		       "as a raw disk.\n\n"
		       "To a file: sparse; one that is there is overwritten. To a device: all of it, also what is "
		       "zero; refused if the "
		       "device is mounted or in use, or smaller than the disk. To '-': to standard output. Every byte "
		       "is checked on its "
		       "way out; damage ends the export, and is never written.\n\n"
		       "With --salvage all that can be read is exported, with zeros in place of the rest, and instead "
		       "of a summary there is a map of these holes: offset and length in what was exported, in bytes, one "
		       "line a range; on standard output, or with TARGET '-' on standard error. Exit status 3: there "
		       "are holes.",
	.argument_count = 2,
	.arguments = {{.name = "REF", .kind = ARGUMENT_REFERENCE}, {.name = "TARGET", .kind = ARGUMENT_TARGET}},
	.option_count = 2,
	.options = {{.id = OPTION_SALVAGE}, {.id = OPTION_PROGRESS}},
	.example_count = 5,
	.examples = {{"wherry export web01@latest disk.img", "the newest image as a file"},
		     {"wherry export web01@3 /dev/sdb", "image 3 onto a disk, which boots then"},
		     {"wherry export web01@3 - | ssh newhost dd of=/dev/vda bs=1M", "to another host"},
		     {"wherry export web01@3/2 part2.img", "just partition 2"},
		     {"wherry export --salvage web01@3 disk.img", "what is left of a damaged image"}},
	.run = run_export,
};
