/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry: copies the disks of running servers, and keeps their history.
 *
 * Here is what comes before and after any verb: a process in a known state, the
 * command line taken apart, the verb run, and the last look at whether standard
 * output took what was printed.
 */
#include "tools/command.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/output.h"
#include "tools/signals.h"

#ifndef WHERRY_VERSION
#error "the build says which version it is: -DWHERRY_VERSION=\"...\""
#endif

/*
 * A descriptor that is closed would be given to the first file that is opened, and a message meant for standard error
 * would go into a segment. Standard output is filled with something that can't be written to: what is printed there
 * must not seem to have arrived.
 */
static void open_standard_descriptors(void)
{
	static const int modes[] = {O_RDONLY, O_RDONLY, O_WRONLY};

	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", modes[fd]) != fd)
			_exit(STATUS_FAILED); /* no /dev/null, and nowhere to say so */
}

static enum exit_status run_line(const struct command_line *line)
{
	if (line->options.version) {
		(void)puts("wherry " WHERRY_VERSION);
		return STATUS_DONE;
	}
	if (line->verb != NULL && !line->options.help)
		return line->verb->run(line);
	if (line->verb != NULL) {
		help_print_verb(line->verb);
		return STATUS_DONE;
	}
	help_print_overview(!line->options.help);
	return line->options.help ? STATUS_DONE : STATUS_USAGE;
}

static enum exit_status run(int argc, char **argv)
{
	AUTO(command_line_free) struct command_line line = {.verb = NULL};
	struct failure failure = {.code = 0};

	if (help_print_list(argc, argv))
		return STATUS_DONE;
	if (command_line_parse(argc, argv, &line, &failure) < 0) {
		(void)report_failure(&failure);
		return failure.code == -EINVAL ? STATUS_USAGE : STATUS_FAILED;
	}
	return run_line(&line);
}

int main(int argc, char **argv)
{
	struct failure failure = {.code = 0};
	enum exit_status status;

	open_standard_descriptors();
	/* The width of characters, and nothing else: numbers are written with a point, everywhere. */
	(void)setlocale(LC_CTYPE, "");
	signals_setup();
	status = run(argc, argv);
	if (output_finish(&failure) == 0)
		return (int)status;
	if (failure.code != -EPIPE)
		(void)report_failure(&failure);
	if (status == STATUS_DONE || status == STATUS_DIFFERENT)
		status = STATUS_FAILED;
	return (int)status;
}
