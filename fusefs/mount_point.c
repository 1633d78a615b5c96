/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A FUSE mount whose server has died stays in the way: whatever touches it, stat() included, gets ENOTCONN.
 * /proc/self/mountinfo tells what it is without touching it; only one of type fuse.wherryfs is taken away.
 *
 * Root unmounts by the system call. Others ask fusermount3, which is setuid root and takes away what its caller has
 * mounted.
 */
#include "fusefs/mount_point.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"

#define OUR_TYPE "fuse.wherryfs"

/* ---- mountinfo ---- */

/* The last mount at this path, which is the one on top. */
struct mounted {
	bool is_there;
	char type[64];
	unsigned major, minor;
};

/* As mountinfo has it, "\040" is a space. In place. */
static void unescape(char *text)
{
	char *to = text;

	for (const char *from = text; *from != '\0'; to++) {
		if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' &&
		    from[3] >= '0' && from[3] <= '7') {
			*to = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
			from += 4;
		} else {
			*to = *from++;
		}
	}
	*to = '\0';
}

/* ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS [FIELDS…] - TYPE SOURCE OPTIONS */
static void read_line(char *line, const char *path, struct mounted *mounted)
{
	unsigned major, minor;
	int place_at = 0, place_end = 0;
	const char *type;

	if (sscanf(line, "%*u %*u %u:%u %*s %n%*s%n", &major, &minor, &place_at, &place_end) != 2 || place_end == 0)
		return;
	type = strstr(line + place_end, " - ");
	if (type == NULL)
		return;
	line[place_end] = '\0';
	unescape(line + place_at);
	if (strcmp(line + place_at, path) != 0)
		return;
	*mounted = (struct mounted){.is_there = true, .major = major, .minor = minor};
	(void)sscanf(type, " - %63s", mounted->type);
}

static struct mounted find_mounted(const char *path)
{
	struct mounted mounted = {.is_there = false};
	AUTO_FCLOSE FILE *file = fopen("/proc/self/mountinfo", "re");
	AUTO_FREE char *line = NULL;
	size_t room = 0;

	while (file != NULL && getline(&line, &room, file) > 0)
		read_line(line, path, &mounted);
	return mounted;
}

dev_t mount_point_device(const char *path)
{
	struct mounted mounted = find_mounted(path);

	return mounted.is_there && strcmp(mounted.type, OUR_TYPE) == 0 ? makedev(mounted.major, mounted.minor) : 0;
}

/* ---- unmounting ---- */

extern char **environ;

static bool run_fusermount(const char *path, bool lazily)
{
	char program[] = "fusermount3", unmount[] = "-u", quiet[] = "-q", lazy[] = "-z", end[] = "--";
	char *const arguments[] = {
		program, unmount, quiet, lazily ? lazy : end, lazily ? end : (char *)path, lazily ? (char *)path : NULL,
		NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none;
	pid_t pid;
	int status, error;

	(void)posix_spawn_file_actions_init(
		&actions); /* on Linux none of these fails but for memory, and then that does, or it says more */
	(void)posix_spawnattr_init(&attributes);
	(void)sigemptyset(&none);
	(void)posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	(void)posix_spawnattr_setsigmask(&attributes, &none); /* we block what ends us */
	(void)posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
	error = posix_spawnp(&pid, program, &actions, &attributes, arguments, environ);
	(void)posix_spawn_file_actions_destroy(&actions);
	(void)posix_spawnattr_destroy(&attributes);
	if (error != 0)
		return false;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return false;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool mount_point_unmount(const char *path, bool lazily)
{
	if (geteuid() == 0)
		return umount2(path, UMOUNT_NOFOLLOW | (lazily ? MNT_DETACH : 0)) == 0;
	return run_fusermount(path, lazily);
}

/* ---- before mounting ---- */

/* The path of something that can't be looked at: of the folder it is in, and its name. */
static int resolve_parent(const char *path, char **ret_path, struct failure *failure)
{
	AUTO_FREE char *copy = strdup(path);
	AUTO_FREE char *other_copy = strdup(path);
	AUTO_FREE char *parent = NULL;
	const char *name;

	if (copy == NULL || other_copy == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", path);
	name = basename(copy);
	parent = realpath(dirname(other_copy), NULL);
	if (parent == NULL)
		return fail_errno(failure, -errno, "%s", path);
	if (asprintf(ret_path, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, name) < 0)
		return fail(failure, -ENOMEM, "%s: out of memory", path);
	return 0;
}

static int take_dead_away(const char *path, struct failure *failure)
{
	AUTO_FREE char *resolved = NULL;
	struct mounted mounted;
	int error = resolve_parent(path, &resolved, failure);

	if (error < 0)
		return error;
	mounted = find_mounted(resolved);
	if (!mounted.is_there || strcmp(mounted.type, OUR_TYPE) != 0)
		return fail(failure, -ENOTCONN,
			    "%s: something is mounted there that doesn't answer, and is not ours; unmount it first",
			    path);
	if (!mount_point_unmount(resolved, true))
		return fail(failure, -EBUSY,
			    "%s: a dead mount of ours, which can't be taken away; 'umount -l %s' as root does", path,
			    path);
	return 0;
}

/* stat() may be answered from what the kernel remembers; statfs() never is. */
static int look_at(const char *path, struct stat *ret_status)
{
	struct statfs answer;

	return stat(path, ret_status) < 0 || statfs(path, &answer) < 0 ? -errno : 0;
}

int mount_point_prepare(const char *path, char **ret_path, bool *ret_is_folder, struct failure *failure)
{
	enum { DEAD_MOST = 16 }; /* on top of each other */
	AUTO_FREE char *resolved = NULL;
	struct mounted mounted;
	struct stat status;
	int error;

	for (unsigned i = 0; (error = look_at(path, &status)) == -ENOTCONN && i < DEAD_MOST; i++) {
		error = take_dead_away(path, failure);
		if (error < 0)
			return error;
	}
	if (error < 0)
		return fail_errno(failure, error, "%s", path);
	resolved = realpath(path, NULL);
	if (resolved == NULL)
		return fail_errno(failure, -errno, "%s", path);
	mounted = find_mounted(resolved);
	if (mounted.is_there && strcmp(mounted.type, OUR_TYPE) == 0)
		return fail(failure, -EBUSY, "%s: a wherryfs is mounted there already; 'umount %s' takes it away", path,
			    path);
	if (!S_ISDIR(status.st_mode) && !S_ISREG(status.st_mode))
		return fail(failure, -ENOTDIR, "%s: neither a folder nor a file", path);
	*ret_path = take_ptr(resolved);
	*ret_is_folder = S_ISDIR(status.st_mode);
	return 0;
}

void mount_point_set_read_ahead(const char *path, unsigned kib)
{
	struct mounted mounted = find_mounted(path);
	char file[64], text[16];
	AUTO_CLOSE int fd = -1;
	int len;

	if (!mounted.is_there)
		return;
	(void)snprintf(file, sizeof(file), "/sys/class/bdi/%u:%u/read_ahead_kb", mounted.major, mounted.minor);
	len = snprintf(text, sizeof(text), "%u\n", kib);
	fd = open(file, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, text, (size_t)len) < 0)
		return; /* then it reads ahead less */
}
