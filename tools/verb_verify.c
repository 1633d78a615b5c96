/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry verify: is it what the source is? Exit status 3 says that it isn't, and
 * differs from 1, which says that the question could not be answered.
 */
#include "tools/command.h"

#include <errno.h>

#include "common/cleanup.h"
#include "tools/output.h"
#include "tools/progress_bar.h"

static enum exit_status report_stop(const struct command_line *line, const struct failure *failure)
{
	if (failure->message[0] != '\0')
		return report_failure(failure);
	report_line("wherry: %s: comparison stopped by a signal; nothing is known about the rest", line->arguments[0]);
	return STATUS_STOPPED;
}

static enum exit_status run_verify(const struct command_line *line)
{
	const struct options *options = &line->options;
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO(verify_report_free) struct verify_report report = {.equal = false};
	AUTO_FREE char *doing = command_line_doing(line);
	struct operation operation = {.doing = doing};
	struct failure failure = {.code = 0};
	struct store_reference reference;
	int result;

	if (doing == NULL)
		output_out_of_memory();
	command_line_reference(line, 0, &reference);
	if (command_line_open_store_to_read(line, &reference, &store, &failure) < 0)
		return report_failure(&failure);
	progress_begin(options->progress, &operation);
	result = verify_run(store, &reference, options->source, options->read_all, &operation, &report, &failure);
	progress_end();
	if (result == -EINTR && *operation.stop)
		return report_stop(line, &failure);
	if (result < 0)
		return report_failure(&failure);
	if (options->json)
		output_json_verify(&report);
	else
		output_text_verify(line->arguments[0], options->source, &report);
	return report.equal ? STATUS_DONE : STATUS_DIFFERENT;
}

const struct verb verb_verify = {
	.name = "verify",
	.summary = "compare an image with a source, byte for byte",
	.description = "Reads REF and SOURCE whole and compares every byte, after each chunk of REF has proved to have "
		       "its SHA-256 digest; the quick fingerprints that rounds use play no part. Exit status "
		       "0: equal; 3: they differ, and the ranges are listed; 1: it could not be told.\n\n"
		       "What a round leaves out of a source like this one (blocks that no file uses, the content of "
		       "swap) is not compared, "
		       "unless --read-all says so. A source that has changed since, differs.",
	.argument_count = 1,
	.arguments = {{.name = "REF", .kind = ARGUMENT_REFERENCE}},
	.option_count = 3,
	.options = {{.id = OPTION_SOURCE, .required = true},
		    {.id = OPTION_READ_ALL, .help = "compare also what a round leaves out"},
		    {.id = OPTION_PROGRESS}},
	.example_count = 2,
	.examples = {{"wherry verify web01@latest --source /dev/sda", "is the newest image what is on /dev/sda?"},
		     {"wherry verify web01@3 --source disk.img --json", "the same for a program"}},
	.run = run_verify,
};
