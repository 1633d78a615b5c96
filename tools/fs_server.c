/* SPDX-License-Identifier: Apache-2.0 */
/*
 * $WHERRY_FS names the program, else it is what lies beside this one, else what PATH has. It puts itself into the background when it is
 * mounted, and says before that what is wrong: so its status and its last line are all there is to know.
 */
#include "tools/fs_server.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tools/programs.h"

enum { WORDS_MOST = 6 };

/* Caller frees; NULL: out of memory. */
static char *find_program(void)
{
	const char *named = getenv("WHERRY_FS");
	char *path;

	if (named != NULL && *named != '\0')
		return strdup(named);
	path = programs_find_beside("fusefs", "wherryfs");
	return path != NULL ? path : strdup("wherryfs");
}

int fs_server_check(struct failure *failure)
{
	AUTO_FREE char *program = find_program();

	if (program == NULL)
		return fail(failure, -ENOMEM, "out of memory");
	if (programs_run_quietly((const char *const[]){program, "-V", NULL}) != 0)
		return fail(failure, -ENOENT, "the program wherryfs is not there, or does not run; '%s -V' says more", program);
	if (access("/dev/fuse", F_OK) < 0 && geteuid() == 0)
		(void)programs_run_quietly((const char *const[]){"modprobe", "fuse", NULL}); /* the next look says whether it helped */
	if (access("/dev/fuse", F_OK) < 0)
		return fail(failure, -ENODEV, "this kernel has no FUSE, or its module can't be loaded ('modprobe fuse')");
	if (access("/dev/fuse", R_OK | W_OK) < 0)
		return fail_errno(failure, -errno, "/dev/fuse, which everybody may use as a rule");
	return 0;
}

char **fs_server_words(const struct fs_server *server, bool is_foreground)
{
	char **words = calloc(WORDS_MOST + 1, sizeof(*words));
	unsigned count = 0;

	if (words == NULL)
		return NULL;
	words[count++] = find_program();
	words[count++] = realpath(server->store, NULL);
	words[count++] = strdup(server->directory);
	if (server->options != NULL) {
		words[count++] = strdup("-o");
		words[count++] = strdup(server->options);
	}
	if (is_foreground)
		words[count++] = strdup("-f");
	for (unsigned i = 0; i < count; i++)
		if (words[i] == NULL) {
			for (unsigned k = 0; k < count; k++)
				free(words[k]);
			free(words);
			return NULL;
		}
	return words;
}

void fs_server_free_words(char ***words)
{
	for (unsigned i = 0; *words != NULL && (*words)[i] != NULL; i++)
		free((*words)[i]);
	free(*words);
	*words = NULL;
}

int fs_server_start(const struct fs_server *server, struct failure *failure)
{
	AUTO(fs_server_free_words) char **words = fs_server_words(server, false);
	AUTO_FREE char *said = malloc(PROGRAM_WORDS_BYTES);
	const char *line;
	int status;

	if (words == NULL || said == NULL)
		return fail(failure, -ENOMEM, "wherryfs: out of memory");
	status = programs_run(&(struct program_run){.words = (const char *const *)words, .kept_fd = server->alive_fd, .ret_words = said});
	if (status == 0)
		return 0;
	line = programs_last_line(said, "wherryfs");
	if (status == PROGRAM_MISSING)
		return fail(failure, -ENOENT, "%s: no such program", words[0]);
	if (*line == '\0')
		return fail(failure, -EIO, "%s: could not be mounted, and wherryfs does not say why", server->directory);
	return fail(failure, -EIO, "%s", line);
}
