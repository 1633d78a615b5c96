/* SPDX-License-Identifier: Apache-2.0 */
/* What a child in a sandbox can't do: it tries (tests/helpers/sandbox_probe.c), as root's child and as another user's.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fsreader/sandbox.h"
#include "fsreader/sandbox_filter.h"

enum { CHILD_FD = 3, OTHER_USER = 54321, TEXT_BYTES = 8192, END_MS = 10000 };

static char probe[4096];

struct child {
	pid_t pid;
	int pidfd;
	int fd; /* the other end of its descriptor 3 */
};

static int spawn(enum sandbox_kind kind, const char *mode, const char *action, struct child *ret_child,
		 struct failure *failure)
{
	char *const argv[] = {probe, (char *)(uintptr_t)mode, (char *)(uintptr_t)action, NULL};
	int pair[2], error;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	error = sandbox_spawn(&(struct sandbox_params){.kind = kind,
						       .program = probe,
						       .argv = argv,
						       .fds = (const int[][2]){{pair[1], CHILD_FD}},
						       .fd_count = 1},
			      &ret_child->pid, &ret_child->pidfd, failure);
	(void)close(pair[1]);
	ret_child->fd = pair[0];
	if (error < 0)
		(void)close(pair[0]);
	return error;
}

static struct child start(enum sandbox_kind kind, const char *mode, const char *action)
{
	struct failure failure = {.code = 0};
	struct child child;

	if (spawn(kind, mode, action, &child, &failure) < 0)
		fail_msg("%s", failure.message);
	return child;
}

static void end(struct child *child)
{
	(void)close(child->fd);
	sandbox_kill_and_reap(child->pid, child->pidfd);
}

/* How it ended by itself. */
static const char *outcome_of(struct child *child, char text[SANDBOX_END_BYTES])
{
	struct pollfd poll_fd = {.fd = child->pidfd, .events = POLLIN};

	assert_int_equal(poll(&poll_fd, 1, END_MS), 1);
	(void)sandbox_describe_end(child->pidfd, text);
	end(child);
	return text;
}

/* All that a tool writes. */
static void read_all(struct child *child, char text[TEXT_BYTES])
{
	size_t len_bytes = 0;
	ssize_t got_bytes;

	while ((got_bytes = read(child->fd, text + len_bytes, TEXT_BYTES - 1 - len_bytes)) > 0)
		len_bytes += (size_t)got_bytes;
	text[len_bytes] = '\0';
	end(child);
}

/* ------------------------------------------------------------------- tests */

static const char *const forbidden[] = {
	"socket",      "unix-socket", "write-file",    "make-file",	     "make-folder",
	"unlink",      "fork",	      "kill",	       "kill-thread",	     "ptrace",
	"read-memory", "execute",     "mount",	       "namespace",	     "become-root",
	"raise-limit", "ioctl",	      "shared-memory", "execute-as-started",
};

enum { FORBIDDEN = sizeof(forbidden) / sizeof(forbidden[0]) };

static void expect_worker(const char *action, const char *expected)
{
	struct child child = start(SANDBOX_WORKER, "worker", action);
	char how[SANDBOX_END_BYTES];

	if (strncmp(outcome_of(&child, how), expected, strlen(expected)) != 0)
		fail_msg("worker, %s: %s; expected: %s", action, how, expected);
}

static void worker_is_killed_for_what_it_must_not(void **state)
{
	const char *expected = SANDBOX_HAS_SANITIZER ? "ended with status 1" : "killed, for a system call";

	(void)state;
	expect_worker("nothing", "ended with status 0");
	if (!SANDBOX_HAS_SANITIZER) { /* whose runtime reads files, and loads its own code */
		expect_worker("much-memory", "ended with status 1");
		expect_worker("read-file", expected);
		expect_worker("execute-fd", expected);
		expect_worker("code", expected);
		expect_worker("thread", expected);
	}
	for (unsigned i = 0; i < FORBIDDEN; i++) {
		if (SANDBOX_HAS_SANITIZER &&
		    (strncmp(forbidden[i], "kill", 4) == 0 || strcmp(forbidden[i], "ptrace") == 0))
			continue;
		expect_worker(forbidden[i], expected);
	}
}

static void expect_line(const char *text, const char *action, const char *status)
{
	char line[128];

	(void)snprintf(line, sizeof(line), "%s %s\n", action, status);
	if (strstr(text, line) == NULL)
		fail_msg("tool: expected %s in:\n%s", line, text);
}

static void tool_is_refused_what_it_must_not(void **state)
{
	struct child child = start(SANDBOX_TOOL, "tool", NULL);
	char text[TEXT_BYTES];

	(void)state;
	read_all(&child, text);
	expect_line(text, "nothing", "ok");
	expect_line(text, "read-file", "ok");
	expect_line(text, "thread", "ok");
	expect_line(text, "execute-fd", "EPERM");
	if (SANDBOX_HAS_SANITIZER)
		return;
	expect_line(text, "much-memory", "ENOMEM");
	expect_line(text, "clone3", "ENOSYS");
	for (unsigned i = 0; i < FORBIDDEN; i++)
		expect_line(text, forbidden[i], "EPERM");
}

static void child_has_no_privileges(void **state)
{
	struct child child = start(SANDBOX_TOOL, "status", NULL);
	char text[TEXT_BYTES], line[128];
	unsigned uid = geteuid() == 0 ? 65534 : geteuid(), gid = geteuid() == 0 ? 65534 : getegid();

	(void)state;
	read_all(&child, text);
	assert_non_null(strstr(text, "\nCapEff:\t0000000000000000\n"));
	assert_non_null(strstr(text, "\nCapPrm:\t0000000000000000\n"));
	assert_non_null(strstr(text, "\nCapAmb:\t0000000000000000\n"));
	assert_non_null(strstr(text, "\nNoNewPrivs:\t1\n"));
	assert_non_null(strstr(text, "\nSeccomp:\t2\n"));
	(void)snprintf(line, sizeof(line), "\nUid:\t%u\t%u\t%u\t%u\n", uid, uid, uid, uid);
	if (strstr(text, line) == NULL)
		fail_msg("expected %s in:\n%s", line, text);
	(void)snprintf(line, sizeof(line), "\nGid:\t%u\t%u\t%u\t%u\n", gid, gid, gid, gid);
	assert_non_null(strstr(text, line));
	if (geteuid() == 0) {
		assert_non_null(strstr(text, "\nGroups:\t \n"));
		assert_non_null(strstr(text, "\nCapBnd:\t0000000000000000\n"));
	}
}

static void child_has_the_descriptors_it_was_given_and_no_others(void **state)
{
	int high = fcntl(0, F_DUPFD, 200), other = fcntl(0, F_DUPFD, 255); /* that it would inherit */
	struct child child = start(SANDBOX_TOOL, "fds", NULL);
	char text[TEXT_BYTES];

	(void)state;
	read_all(&child, text);
	(void)close(high);
	(void)close(other);
	assert_string_equal(text, "0\n1\n2\n3\n");
}

static void talk(struct child *child)
{
	char byte = 'x';

	assert_int_equal(write(child->fd, &byte, 1), 1);
	byte = 0;
	assert_int_equal(read(child->fd, &byte, 1), 1);
	assert_int_equal(byte, 'x');
}

static void *spawn_in_thread(void *opaque)
{
	*(struct child *)opaque = start(SANDBOX_TOOL, "echo", NULL);
	return NULL;
}

static void child_outlives_the_thread_that_started_it(void **state)
{
	const struct timespec moment = {.tv_nsec = 100000000};
	struct child child;
	pthread_t thread;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, spawn_in_thread, &child), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	(void)nanosleep(&moment, NULL);
	talk(&child);
	end(&child);
}

/* In a process of its own, whose children become ours when it ends. */
static void child_ends_with_its_parent(void **state)
{
	int pipe_fds[2], status;
	pid_t parent, child;

	(void)state;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1L, 0L, 0L, 0L), 0);
	assert_int_equal(pipe(pipe_fds), 0);
	parent = fork();
	assert_true(parent >= 0);
	if (parent == 0) {
		struct child looping = {.pid = -1};

		if (spawn(SANDBOX_TOOL, "loop", NULL, &looping, NULL) < 0)
			_exit(1);
		_exit(write(pipe_fds[1], &looping.pid, sizeof(looping.pid)) == (ssize_t)sizeof(looping.pid) ? 0 : 1);
	}
	assert_int_equal(waitpid(parent, &status, 0), parent);
	assert_int_equal(status, 0);
	assert_int_equal(read(pipe_fds[0], &child, sizeof(child)), sizeof(child));
	assert_int_equal(waitpid(child, &status, 0), child); /* hangs, if it doesn't */
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	(void)close(pipe_fds[0]);
	(void)close(pipe_fds[1]);
	(void)prctl(PR_SET_CHILD_SUBREAPER, 0L, 0L, 0L, 0L);
}

static void a_kernel_has_no_processes_but_its_own(void **state)
{
	struct child child = start(SANDBOX_KERNEL, "processes", NULL);
	char text[TEXT_BYTES];

	(void)state;
	read_all(&child, text);
	assert_string_equal(text, "pid 1, others 0\n");
}

/* Both of them: the one that we know, and the one that it waits for. */
static void a_kernel_ends_with_its_parent(void **state)
{
	pid_t parent;
	int status;

	(void)state;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1L, 0L, 0L, 0L), 0);
	parent = fork();
	assert_true(parent >= 0);
	if (parent == 0) {
		struct child looping = {.pid = -1};

		_exit(spawn(SANDBOX_KERNEL, "loop", NULL, &looping, NULL) < 0 ? 1 : 0);
	}
	assert_int_equal(waitpid(parent, &status, 0), parent);
	assert_int_equal(status, 0);
	for (int i = 0; i < 2; i++) { /* hangs, if they don't */
		assert_true(waitpid(-1, &status, 0) > 0);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	}
	assert_int_equal(waitpid(-1, &status, WNOHANG), -1);
	(void)prctl(PR_SET_CHILD_SUBREAPER, 0L, 0L, 0L, 0L);
}

static void a_program_that_is_not_there_is_told(void **state)
{
	static char name[] = "no-such-program-anywhere";
	char *const argv[] = {name, NULL};
	struct failure failure = {.code = 0};
	pid_t pid;
	int pidfd;

	(void)state;
	assert_int_equal(sandbox_spawn(&(struct sandbox_params){.kind = SANDBOX_TOOL, .program = name, .argv = argv},
				       &pid, &pidfd, &failure),
			 -ENOENT);
	assert_non_null(strstr(failure.message, name));
}

static int prepare_in_vain(void *opaque)
{
	(void)opaque;
	return -EXDEV;
}

static void a_failure_in_the_child_is_told(void **state)
{
	char *const argv[] = {probe, NULL};
	struct failure failure = {.code = 0};
	pid_t pid;
	int pidfd;

	(void)state;
	assert_int_equal(sandbox_spawn(&(struct sandbox_params){.kind = SANDBOX_TOOL,
								.program = probe,
								.argv = argv,
								.prepare = prepare_in_vain},
				       &pid, &pidfd, &failure),
			 -EXDEV);
	assert_non_null(strstr(failure.message, "preparing"));
}

static void a_killed_child_is_described(void **state)
{
	struct child child = start(SANDBOX_TOOL, "echo", NULL);
	char how[SANDBOX_END_BYTES];

	(void)state;
	assert_string_equal(sandbox_describe_end(child.pidfd, how), "still runs");
	assert_int_equal(kill(child.pid, SIGUSR1), 0);
	assert_string_equal(outcome_of(&child, how), "killed by signal 10 (User defined signal 1)");
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(child_ends_with_its_parent), /* first: ThreadSanitizer wants no fork next to threads */
	cmocka_unit_test(a_kernel_ends_with_its_parent),
	cmocka_unit_test(worker_is_killed_for_what_it_must_not),
	cmocka_unit_test(tool_is_refused_what_it_must_not),
	cmocka_unit_test(child_has_no_privileges),
	cmocka_unit_test(child_has_the_descriptors_it_was_given_and_no_others),
	cmocka_unit_test(child_outlives_the_thread_that_started_it),
	cmocka_unit_test(a_kernel_has_no_processes_but_its_own),
	cmocka_unit_test(a_program_that_is_not_there_is_told),
	cmocka_unit_test(a_failure_in_the_child_is_told),
	cmocka_unit_test(a_killed_child_is_described),
};

/* The same once more as somebody else, who has no privileges to give up. */
static int run_as_other_user(void)
{
	pid_t pid = fork();
	int status;

	if (pid < 0)
		return 1;
	if (pid == 0) {
		/* a login leaves a process that its user may look into; a change of user alone doesn't */
		if (setgroups(0, NULL) < 0 || setgid(OTHER_USER) < 0 || setuid(OTHER_USER) < 0 ||
		    prctl(PR_SET_DUMPABLE, 1L, 0L, 0L, 0L) < 0)
			_exit(1);
		exit(cmocka_run_group_tests_name("as another user", tests, NULL, NULL) == 0 ? 0 : 1);
	}
	return waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 1;
}

int main(void)
{
	const char *build = getenv("WHERRY_BUILD");
	int result;

	(void)snprintf(probe, sizeof(probe), "%s/helpers/sandbox_probe", build == NULL ? "build/release" : build);
	result = geteuid() == 0 ? run_as_other_user() : 0;
	return cmocka_run_group_tests(tests, NULL, NULL) != 0 || result != 0;
}
