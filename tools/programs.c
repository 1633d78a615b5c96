/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program says goes to a file in memory, not to a pipe: one that becomes a daemon may keep its standard error open for as long as it
 * runs, and nobody waits for the end of that.
 */
#include "tools/programs.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"

/* FOLDER/REST if that is there; NULL else. */
static char *path_if_there(const char *folder, const char *rest)
{
	char *path = NULL;

	if (asprintf(&path, "%s/%s", folder, rest) < 0)
		return NULL;
	if (access(path, R_OK) == 0)
		return path;
	free(path);
	return NULL;
}

char *programs_find_beside(const char *folder, const char *name)
{
	char program[4096], rest[256];
	ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	char *found;

	if (length <= 0)
		return NULL;
	program[length] = '\0';
	*strrchr(program, '/') = '\0'; /* the kernel's paths begin with one */
	found = path_if_there(program, name);
	if (found != NULL || strrchr(program, '/') == NULL)
		return found;
	*strrchr(program, '/') = '\0'; /* BUILD/bin */
	(void)snprintf(rest, sizeof(rest), "%s/%s", folder, name);
	return path_if_there(program, rest);
}

/* Who became root by su(1) has a PATH without what is root's. */
static int extend_path(void)
{
	const char *path = getenv("PATH");
	AUTO_FREE char *longer = NULL;

	if (asprintf(&longer, "%s:/usr/local/sbin:/usr/sbin:/sbin", path != NULL ? path : "/usr/bin:/bin") < 0) {
		longer = NULL;
		return -1;
	}
	return setenv("PATH", longer, 1);
}

__attribute__((noreturn)) static void become(const struct program_run *run, int words_fd)
{
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	(void)signal(SIGPIPE, SIG_DFL);
	/* what they say is passed on in our own messages, which are in English */
	if (null_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 || dup2(null_fd, STDOUT_FILENO) < 0 ||
	    dup2(words_fd >= 0 ? words_fd : null_fd, STDERR_FILENO) < 0 || setenv("LC_ALL", "C", 1) < 0 || extend_path() < 0)
		_exit(1);
	if (run->kept_fd >= 0 && fcntl(run->kept_fd, F_SETFD, 0) < 0)
		_exit(1);
	(void)execvp(run->words[0], (char *const *)run->words);
	_exit(PROGRAM_MISSING);
}

static void take_words(int words_fd, char *ret_words)
{
	ssize_t length = words_fd < 0 ? 0 : pread(words_fd, ret_words, PROGRAM_WORDS_BYTES - 1, 0);

	ret_words[length < 0 ? 0 : length] = '\0';
}

int programs_run(const struct program_run *run)
{
	AUTO_CLOSE int words_fd = run->ret_words == NULL ? -1 : memfd_create("words", MFD_CLOEXEC);
	pid_t pid = fork();
	int status;

	if (pid == 0)
		become(run, words_fd);
	while (pid > 0 && waitpid(pid, &status, 0) < 0)
		if (errno != EINTR) {
			pid = -1;
			break;
		}
	if (run->ret_words != NULL)
		take_words(words_fd, run->ret_words);
	return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int programs_run_quietly(const char *const *words)
{
	return programs_run(&(struct program_run){.words = words, .kept_fd = -1});
}

static const char *without_name(const char *line, const char *name)
{
	size_t name_bytes = strlen(name);

	return strncmp(line, name, name_bytes) == 0 && strncmp(line + name_bytes, ": ", 2) == 0 ? line + name_bytes + 2 : line;
}

const char *programs_first_line(char *words, const char *name)
{
	words[strcspn(words, "\n")] = '\0';
	return without_name(words, name);
}

const char *programs_last_line(char *words, const char *name)
{
	size_t length = strlen(words);
	char *start;

	while (length > 0 && words[length - 1] == '\n')
		words[--length] = '\0';
	start = strrchr(words, '\n');
	return without_name(start == NULL ? words : start + 1, name);
}
