/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherryfs: the program.
 *
 * Without -f the mount is served by a child in a session of its own. The parent waits for one byte, which comes when
 * the mount works, so that who started it can use it at once; if the pipe is closed without it, the child has said why
 * on standard error. Nothing that must not cross a fork is there at that moment: no thread, and the store was closed
 * again after it was looked at.
 *
 * Exit status: 0 mounted, or in the foreground: unmounted; 1 failed; 2 wrong usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fusefs/log.h"
#include "fusefs/mount_point.h"
#include "fusefs/options.h"
#include "fusefs/session.h"

enum { STATUS_DONE, STATUS_FAILED, STATUS_USAGE };

/* ---- ready ---- */

/* systemd's protocol (sd_notify(3)): one datagram to the socket that the environment names; '@' stands for an abstract
 * one. */
static void tell_systemd(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	AUTO_CLOSE int fd = -1;
	size_t len_bytes = path == NULL ? 0 : strlen(path);

	if (len_bytes == 0 || len_bytes >= sizeof(address.sun_path))
		return;
	memcpy(address.sun_path, path, len_bytes);
	if (*path == '@')
		address.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0)
		(void)sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address,
			     (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
					 len_bytes)); /* who waits there notices that it doesn't come */
}

struct readiness {
	bool foreground;
	int fd; /* of who waits; -1 in the foreground */
};

/* Who started us may wait until nobody has his standard output open any more. */
static void leave_terminal(void)
{
	AUTO_CLOSE int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int standard = STDIN_FILENO; fd >= 0 && standard <= STDERR_FILENO; standard++)
		(void)dup2(fd, standard); /* they stay what they were, then */
}

static void say_ready(void *opaque)
{
	struct readiness *readiness = opaque;

	if (readiness->foreground) {
		tell_systemd("READY=1");
		return;
	}
	log_to_system();
	leave_terminal();
	(void)!write(readiness->fd, "", 1); /* who waits may have been killed: the mount is there all the same */
	(void)close(readiness->fd);
	readiness->fd = -1;
}

/* ---- one of both ---- */

static int serve(const struct fs_options *options, const char *mount_point, bool is_folder, int ready_fd)
{
	struct readiness readiness = {.foreground = options->foreground, .fd = ready_fd};
	struct failure failure = {.code = 0};
	int error = chdir("/") < 0 ? fail_errno(&failure, -errno, "/")
				   : session_run(options, mount_point, is_folder, say_ready, &readiness, &failure);

	if (error < 0)
		log_line(failure.message);
	return error < 0 ? STATUS_FAILED : STATUS_DONE;
}

static int wait_for_child(pid_t child, int fd)
{
	char byte;
	ssize_t got;
	int status;

	do
		got = read(fd, &byte, 1);
	while (got < 0 && errno == EINTR);
	if (got == 1)
		return STATUS_DONE;
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return STATUS_FAILED;
	if (WIFSIGNALED(status))
		(void)fprintf(stderr, "wherryfs: ended by signal %d (%s) before it was mounted\n", WTERMSIG(status),
			      strsignal(WTERMSIG(status)));
	return STATUS_FAILED;
}

static int serve_in_background(const struct fs_options *options, const char *mount_point, bool is_folder)
{
	int ends[2];
	pid_t child;

	if (pipe2(ends, O_CLOEXEC) < 0 || (child = fork()) < 0) {
		(void)fprintf(stderr, "wherryfs: can't go to the background: %s\n", strerror(errno));
		return STATUS_FAILED;
	}
	if (child > 0) {
		(void)close(ends[1]);
		return wait_for_child(child, ends[0]);
	}
	(void)close(ends[0]);
	(void)setsid(); /* a fresh child leads no group, so it can't fail */
	return serve(options, mount_point, is_folder, ends[1]);
}

static int prepare(const struct fs_options *options, char **ret_mount_point, bool *ret_is_folder,
		   struct failure *failure)
{
	struct tree_options tree = options->tree;
	int error;

	tree.notices = &log_notices;
	error = tree_check(&tree, failure);
	return error < 0 ? error : mount_point_prepare(options->mount_point, ret_mount_point, ret_is_folder, failure);
}

int main(int argc, char **argv)
{
	AUTO(fs_options_free) struct fs_options options = {.store_path = NULL};
	AUTO_FREE char *mount_point = NULL;
	struct failure failure = {.code = 0};
	bool is_folder = false;

	if (fs_options_parse(argc, argv, &options, &failure) < 0) {
		log_line(failure.message);
		return failure.code == -EINVAL ? STATUS_USAGE : STATUS_FAILED;
	}
	if (options.wants_help) {
		fs_options_print_help();
		return STATUS_DONE;
	}
	if (options.wants_version) {
		(void)puts("wherryfs " WHERRY_VERSION);
		return STATUS_DONE;
	}
	if (prepare(&options, &mount_point, &is_folder, &failure) < 0) {
		log_line(failure.message);
		return STATUS_FAILED;
	}
	if (options.foreground)
		return serve(&options, mount_point, is_folder, -1);
	return serve_in_background(&options, mount_point, is_folder);
}
