/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where an error becomes a line and an exit status: here and nowhere else, so
 * that both mean the same for every verb.
 */
#include "tools/command.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/progress_bar.h"

int command_line_open_store(const struct command_line *line, bool read_only, struct store **ret_store,
			    struct failure *failure)
{
	struct store_options options = {.read_only = read_only, .notices = progress_notices()};

	struct failure cause = {.code = 0};
	int error = store_open_local(line->options.store, &options, ret_store, &cause);

	if (error == -ENOENT && strcmp(line->options.store, DEFAULT_STORE) == 0 && access(DEFAULT_STORE, F_OK) < 0)
		return fail(failure, error, "%s, or name another one with -s or $WHERRY_STORE", cause.message);
	if (error == -EACCES && geteuid() != 0)
		return fail(failure, error, "%s; run as root, or as the user whose store it is", cause.message);
	return error == 0 ? 0 : fail_from(failure, &cause);
}

int command_line_open_store_to_read(const struct command_line *line, const struct store_reference *reference,
				    struct store **ret_store, struct failure *failure)
{
	struct failure cause = {.code = 0};
	int error;

	if (reference->which != STORE_LIVE)
		return command_line_open_store(line, true, ret_store, failure);
	error = command_line_open_store(line, false, ret_store, &cause);
	if (error == -EROFS || error == -EACCES)
		return command_line_open_store(line, true, ret_store, failure);
	return error == 0 ? 0 : fail_from(failure, &cause);
}

static enum exit_status status_of(const struct failure *failure)
{
	return failure->code == -EINTR ? STATUS_STOPPED : STATUS_FAILED;
}

enum exit_status report_failure(const struct failure *failure)
{
	/* A code without a message would be somebody's mistake; better the code than nothing. */
	if (failure->message[0] != '\0')
		report_line("wherry: %s", failure->message);
	else
		report_line("wherry: failed: %s", strerror(failure->code < 0 ? -failure->code : EIO));
	return status_of(failure);
}

enum exit_status report_usage(const struct verb *verb, const char *format, ...)
{
	char text[FAILURE_MESSAGE_BYTES];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	report_line("wherry: %s; try 'wherry %s --help'", text, verb->name);
	return STATUS_USAGE;
}
