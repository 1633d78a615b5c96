/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting a child with nothing to lose.
 *
 * What is needed is made before the fork (the filter, an open program, texts), because between fork and exec only
 * async-signal-safe functions may be called: other threads may have held locks. In the child, in this order:
 *
 *   signals          as if nobody had ever touched them
 *   a session        of its own: no Ctrl-C of ours, no terminal
 *   namespaces       network, IPC, host name; of mounts where there is something to prepare. Some hosts forbid them: it goes on
 *                    without, for the filter allows no socket anyway
 *   prepare          what the caller has for it
 *   processes        a kernel gets a namespace of them, in which it is the first: one more fork; who forked waits for its end
 *   descriptors      those that were named and nothing else
 *   limits           memory, descriptors, no files written, no core
 *   privileges       root becomes nobody; no groups, no capabilities, none to be had by exec
 *   PDEATHSIG        after the change of user, which clears it
 *   filter           of system calls, for a tool. Our worker loads its own, stricter one, once the dynamic loader is done
 *   exec             by descriptor (sandbox_filter.h says why; and nobody may not reach the folder that the program is in)
 *
 * PR_SET_PDEATHSIG means the thread that forked, not its process: a thread of a pool that ends for want of work would
 * take the child with it. So one thread forks for all, and lives as long as the process.
 */
#include "fsreader/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fsreader/sandbox_filter.h"

enum {
	DEFAULT_MEMORY_BYTES = 1 << 30,
	ERROR_FD = SANDBOX_PROGRAM_FD - 1,
	LIFE_FD = SANDBOX_PROGRAM_FD - 2,
	SPARE_FD_LEAST = SANDBOX_PROGRAM_FD + 1,
	FDS_MOST = 16,
	LIMIT_OF_FDS = SANDBOX_FD_MOST + 1,
	NOBODY = 65534,
	SIGNALS = 64,
	END_WAIT_MS = 200,
	ENVIRONMENT_MOST = 16,
};

/* Where a child failed; over a pipe to its parent. */
enum stage {
	STAGE_NAMESPACES,
	STAGE_PREPARE,
	STAGE_FDS,
	STAGE_LIMITS,
	STAGE_PRIVILEGES,
	STAGE_PARENT,
	STAGE_FILTER,
	STAGE_EXEC,
};

static const char *const stage_names[] = {
	[STAGE_NAMESPACES] = "entering namespaces",
	[STAGE_PREPARE] = "preparing",
	[STAGE_FDS] = "handing over descriptors",
	[STAGE_LIMITS] = "setting limits",
	[STAGE_PRIVILEGES] = "giving up privileges",
	[STAGE_PARENT] = "its parent has ended",
	[STAGE_FILTER] = "loading the filter of system calls",
	[STAGE_EXEC] = "executing it",
};

struct child_error {
	int stage;
	int code; /* negative errno */
};

/* All that the child uses. */
struct launch {
	const struct sandbox_params *params;
	struct sock_fprog filter;
	int program_fd;
	int null_fd;
	int error_fd;
	int life_fd; /* set in the child: of a pipe that ends with who waits for it; -1: none */
	pid_t parent;
	uid_t uid;
	char uid_map[64], gid_map[64];
	char *sanitizer_options[2]; /* owned; NULL without */
	char *environment[ENVIRONMENT_MOST];
	/* set in the child */
	bool has_own_users; /* a user namespace */
};

/* ---------------------------------------------------------------- the child */

static void reset_signals(void)
{
	struct sigaction action = {.sa_handler = SIG_DFL};
	sigset_t none;

	for (int number = 1; number <= SIGNALS; number++)
		(void)sigaction(number, &action, NULL); /* SIGKILL and SIGSTOP refuse, as do numbers that libc keeps */
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL); /* can't fail with valid arguments */
}

static int write_text(const char *path, const char *text)
{
	size_t len_bytes = strlen(text);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int error = fd < 0 ? -errno : 0;

	if (fd >= 0 && write(fd, text, len_bytes) != (ssize_t)len_bytes)
		error = -EIO;
	if (fd >= 0)
		(void)close(fd); /* the write has told */
	return error;
}

/* A user namespace in which we are who we are outside: what is open and what is owned stays so. */
static int enter_own_users(struct launch *launch, int flags)
{
	if (unshare(CLONE_NEWUSER | flags) < 0)
		return -errno;
	launch->has_own_users = true;
	(void)write_text("/proc/self/setgroups", "deny"); /* kernels before 3.19 have no such file */
	(void)write_text("/proc/self/gid_map", launch->gid_map);
	return write_text("/proc/self/uid_map", launch->uid_map);
}

/*
 * Mounts only where something is to be mounted: a copy of all mounts keeps a file system busy that is unmounted
 * outside, and a FUSE mount of our own would never learn of its end.
 */
static int enter_namespaces(struct launch *launch)
{
	bool needs_mounts = launch->params->prepare != NULL;
	bool needs_processes = launch->params->kind == SANDBOX_KERNEL;
	int flags = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | (needs_mounts ? CLONE_NEWNS : 0) |
		    (needs_processes ? CLONE_NEWPID : 0);
	int error = unshare(flags) < 0 ? -errno : 0;

	if (error == -EPERM && (launch->uid != 0 || needs_mounts))
		error = enter_own_users(launch, flags);
	if (error < 0 && !needs_mounts && !needs_processes)
		return 0;
	if (error == 0 && needs_mounts && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		error = -errno;
	return error;
}

static int move_up(int *fd)
{
	int copy = fcntl(*fd, F_DUPFD_CLOEXEC, SPARE_FD_LEAST);

	if (copy < 0)
		return -errno;
	*fd = copy;
	return 0;
}

/* Descriptors may have numbers that others shall get: all move out of the way first, whatever the soft limit was. */
static int move_all_up(struct launch *launch, int spare[FDS_MOST])
{
	const struct sandbox_params *params = launch->params;
	struct rlimit limit;
	int error = getrlimit(RLIMIT_NOFILE, &limit) < 0 ? -errno : 0;

	if (error < 0)
		return error;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit); /* if it is too low, what comes next fails and says so */
	error = move_up(&launch->error_fd);
	if (error == 0)
		error = move_up(&launch->null_fd);
	if (error == 0)
		error = move_up(&launch->program_fd);
	if (error == 0 && launch->life_fd >= 0)
		error = move_up(&launch->life_fd);
	for (unsigned i = 0; i < params->fd_count && error == 0; i++) {
		spare[i] = params->fds[i][0];
		error = move_up(&spare[i]);
	}
	return error;
}

/* The numbers up to the highest that the child can have: what was named, /dev/null, nothing. */
static int place_low_fds(struct launch *launch, const int spare[FDS_MOST])
{
	const struct sandbox_params *params = launch->params;
	bool is_taken[LIMIT_OF_FDS] = {[STDERR_FILENO] = SANDBOX_HAS_SANITIZER};

	for (unsigned i = 0; i < params->fd_count; i++) {
		if (dup2(spare[i], params->fds[i][1]) < 0)
			return -errno;
		is_taken[params->fds[i][1]] = true;
	}
	for (int fd = 0; fd < LIMIT_OF_FDS; fd++) {
		if (!is_taken[fd] && fd <= STDERR_FILENO && dup2(launch->null_fd, fd) < 0)
			return -errno;
		if (!is_taken[fd] && fd > STDERR_FILENO)
			(void)close(fd); /* most aren't open */
	}
	return 0;
}

static int place_fds(struct launch *launch)
{
	int spare[FDS_MOST];
	int error = move_all_up(launch, spare);

	if (error == 0)
		error = place_low_fds(launch, spare);
	if (error < 0)
		return error;
	if (dup3(launch->error_fd, ERROR_FD, O_CLOEXEC) < 0 ||
	    dup3(launch->program_fd, SANDBOX_PROGRAM_FD, O_CLOEXEC) < 0)
		return -errno;
	if (launch->life_fd >= 0 && dup3(launch->life_fd, LIFE_FD, O_CLOEXEC) < 0)
		return -errno;
	launch->error_fd = ERROR_FD;
	launch->life_fd = launch->life_fd < 0 ? -1 : LIFE_FD;
	return close_range(LIMIT_OF_FDS, launch->life_fd < 0 ? ERROR_FD - 1 : LIFE_FD - 1, 0) < 0 ||
			       close_range(SPARE_FD_LEAST, ~0U, 0) < 0
		       ? -errno
		       : 0;
}

static int limit(__rlimit_resource_t what, uint64_t value)
{
	struct rlimit both = {.rlim_cur = value, .rlim_max = value};

	return setrlimit(what, &both) < 0 ? -errno : 0;
}

static int set_limits(const struct sandbox_params *params)
{
	uint64_t memory_bytes = params->memory_bytes == 0 ? DEFAULT_MEMORY_BYTES : params->memory_bytes;
	int error = limit(RLIMIT_NOFILE, LIMIT_OF_FDS);

	if (error == 0)
		error = limit(RLIMIT_CORE, 0);
	if (error == 0)
		error = limit(RLIMIT_MEMLOCK, 0);
	if (error == 0 && !SANDBOX_HAS_SANITIZER) /* whose shadow is a file, and takes terabytes of addresses */
		error = limit(RLIMIT_FSIZE, 0);
	if (error == 0 && !SANDBOX_HAS_SANITIZER)
		error = limit(RLIMIT_AS, memory_bytes);
	if (error == 0 && params->cpu_seconds != 0)
		error = limit(RLIMIT_CPU, params->cpu_seconds);
	return error;
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {{0}};

	(void)prctl(PR_CAP_AMBIENT, (unsigned long)PR_CAP_AMBIENT_CLEAR_ALL, 0L, 0L,
		    0L); /* kernels before 4.3 have none */
	return syscall(SYS_capset, &header, none) < 0 ? -errno : 0;
}

/* The bounding set takes a capability to be emptied, and who isn't root any more has none: first that, then the user.
 */
static int give_up_privileges(const struct launch *launch)
{
	for (unsigned long capability = 0; prctl(PR_CAPBSET_DROP, capability, 0L, 0L, 0L) == 0; capability++)
		; /* until there is no such capability, or we may not */
	/* In a user namespace that root had to take, there is nobody else to become. Outside of it, its rights are
	 * none. */
	if (launch->uid == 0 && !launch->has_own_users &&
	    (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0))
		return -errno;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) < 0)
		return -errno;
	return drop_capabilities();
}

static int load_filter(const struct sock_fprog *filter)
{
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, filter) < 0 ? -errno : 0;
}

static void __attribute__((noreturn)) child_fail(const struct launch *launch, enum stage stage, int code)
{
	const struct child_error error = {.stage = (int)stage, .code = code};
	ssize_t written = write(launch->error_fd, &error, sizeof(error));

	(void)written; /* then the parent reads of no error, and sees the child end */
	_exit(127);
}

static void child_check(const struct launch *launch, int code, enum stage stage)
{
	if (code < 0)
		child_fail(launch, stage, code);
}

/* Waits for the end of the first process of a namespace, and ends the same way. */
static void __attribute__((noreturn)) child_wait(const struct launch *launch, pid_t first, int life_fd)
{
	int status = 0;

	(void)dup2(life_fd, 0);
	(void)close_range(1, ~0U, 0);	  /* the error pipe, too: else it would never end */
	(void)give_up_privileges(launch); /* it does nothing any more, and nobody in the namespace sees it */
	(void)prctl(PR_SET_PDEATHSIG, (unsigned long)SIGKILL, 0L, 0L, 0L);
	if (getppid() != launch->parent)
		_exit(127);
	while (waitpid(first, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFSIGNALED(status))
		(void)kill(getpid(), WTERMSIG(status));
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 127);
}

/*
 * The first process of the new namespace goes on. Its parent has no number there; whether it lives is told by a pipe that
 * ends with it.
 */
static int become_first(struct launch *launch)
{
	int pipe_fds[2];
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return -errno;
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid > 0)
		child_wait(launch, pid, pipe_fds[1]);
	(void)close(pipe_fds[1]);
	launch->life_fd = pipe_fds[0];
	return 0;
}

static bool has_parent(const struct launch *launch)
{
	struct pollfd life = {.fd = launch->life_fd};

	if (launch->life_fd < 0)
		return getppid() == launch->parent;
	return poll(&life, 1, 0) == 0;
}

static void __attribute__((noreturn)) child_run(struct launch *launch)
{
	const struct sandbox_params *params = launch->params;

	reset_signals();
	(void)setsid(); /* can't fail: the child of a fork leads no group */
	child_check(launch, enter_namespaces(launch), STAGE_NAMESPACES);
	if (params->kind == SANDBOX_KERNEL)
		child_check(launch, become_first(launch), STAGE_NAMESPACES);
	if (params->prepare != NULL)
		child_check(launch, params->prepare(params->opaque), STAGE_PREPARE);
	child_check(launch, place_fds(launch), STAGE_FDS);
	child_check(launch, chdir("/") < 0 ? -errno : 0, STAGE_FDS);
	child_check(launch, set_limits(params), STAGE_LIMITS);
	child_check(launch, give_up_privileges(launch), STAGE_PRIVILEGES);
	child_check(launch, prctl(PR_SET_PDEATHSIG, (unsigned long)SIGKILL, 0L, 0L, 0L) < 0 ? -errno : 0,
		    STAGE_PRIVILEGES);
	if (!has_parent(launch)) /* it ended before it could have mattered to us */
		child_fail(launch, STAGE_PARENT, -ESRCH);
	if (params->kind != SANDBOX_WORKER)
		child_check(launch, load_filter(&launch->filter), STAGE_FILTER);
	if (params->kind == SANDBOX_KERNEL)
		(void)personality(ADDR_NO_RANDOMIZE); /* it would execute itself again to get that */
	(void)syscall(SYS_execveat, SANDBOX_PROGRAM_FD, "", params->argv, launch->environment, AT_EMPTY_PATH);
	child_fail(launch, STAGE_EXEC, -errno);
}

/* --------------------------------------------------------------- the keeper */

struct job {
	struct launch *launch;
	int read_fd; /* of the error pipe, ours */
	bool is_done;
	int result; /* 0 or a negative errno: of fork, pidfd_open */
	pid_t pid;
	int pidfd;
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool is_running;
	bool is_told_of_forks;
	struct job *job; /* one at a time */
} keeper = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void start_child(struct job *job)
{
	job->pid = fork();
	if (job->pid == 0)
		child_run(job->launch);
	if (job->pid < 0) {
		job->result = -errno;
		return;
	}
	job->pidfd = (int)syscall(SYS_pidfd_open, job->pid, 0);
	if (job->pidfd < 0) {
		job->result = -errno;
		(void)kill(job->pid, SIGKILL); /* our child, not waited for: the number is its */
		(void)waitpid(job->pid, NULL, 0);
	}
}

static void *keep(void *unused)
{
	(void)unused;
	(void)prctl(PR_SET_NAME, "sandbox-keeper", 0L, 0L, 0L);
	(void)pthread_mutex_lock(&keeper.lock);
	for (;;) {
		struct job *job = keeper.job;

		if (job == NULL || job->is_done) {
			(void)pthread_cond_wait(&keeper.changed, &keeper.lock);
			continue;
		}
		(void)pthread_mutex_unlock(&keeper.lock);
		start_child(job);
		(void)pthread_mutex_lock(&keeper.lock);
		job->is_done = true;
		(void)pthread_cond_broadcast(&keeper.changed);
	}
	return NULL;
}

/* A process that was forked off has no keeper: threads aren't copied. */
static void forget_keeper(void)
{
	keeper.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	keeper.changed = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
	keeper.is_running = false;
	keeper.job = NULL;
}

static int start_keeper_locked(void)
{
	sigset_t all, before;
	pthread_t thread;
	int error;

	if (keeper.is_running)
		return 0;
	if (!keeper.is_told_of_forks) {
		error = pthread_atfork(NULL, NULL, forget_keeper);
		if (error != 0)
			return -error;
		keeper.is_told_of_forks = true;
	}
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for those who wait for them */
	error = pthread_create(&thread, NULL, keep, NULL);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error != 0)
		return -error;
	(void)pthread_detach(thread);
	keeper.is_running = true;
	return 0;
}

static int give_to_keeper(struct job *job)
{
	WITH_LOCK(&keeper.lock);
	int error = start_keeper_locked();

	if (error < 0)
		return error;
	while (keeper.job != NULL)
		(void)pthread_cond_wait(&keeper.changed, &keeper.lock);
	keeper.job = job;
	(void)pthread_cond_broadcast(&keeper.changed);
	while (!job->is_done)
		(void)pthread_cond_wait(&keeper.changed, &keeper.lock);
	keeper.job = NULL;
	(void)pthread_cond_broadcast(&keeper.changed);
	return job->result;
}

/* --------------------------------------------------------------- the parent */

static int open_program(const char *program, struct failure *failure)
{
	const char *path = getenv("PATH");
	int fd, error = -ENOENT;

	if (strchr(program, '/') != NULL) {
		fd = open(program, O_PATH | O_CLOEXEC);
		return fd < 0 ? fail_errno(failure, -errno, "%s", program) : fd;
	}
	/* Where system programs are, too: who isn't root seldom has those on the path. */
	for (const char *const *list =
		     (const char *const[]){path == NULL ? "" : path, "/usr/sbin:/usr/bin:/sbin:/bin", NULL};
	     *list != NULL; list++) {
		for (const char *at = *list; *at != '\0';) {
			size_t len_bytes = strcspn(at, ":");
			AUTO_FREE char *candidate = NULL;

			if (asprintf(&candidate, "%.*s/%s", (int)len_bytes, at, program) < 0) {
				candidate = NULL;
				return fail(failure, -ENOMEM, "sandbox: out of memory");
			}
			if (*at == '/' && access(candidate, X_OK) == 0) {
				fd = open(candidate, O_PATH | O_CLOEXEC);
				if (fd >= 0)
					return fd;
				error = -errno;
			}
			at += len_bytes + (at[len_bytes] == ':');
		}
	}
	return fail_errno(failure, error, "%s", program);
}

static void free_launch(struct launch *launch)
{
	free(launch->filter.filter);
	free(launch->sanitizer_options[0]);
	free(launch->sanitizer_options[1]);
	cleanup_close(&launch->program_fd);
	cleanup_close(&launch->null_fd);
	cleanup_close(&launch->error_fd);
}

/* A sanitizer's run-time system has options of its own, and must not do what it may not do here. */
static int add_sanitizer_options(const char *name, char **ret_variable)
{
	const char *options = getenv(name);

	if (SANDBOX_HAS_SANITIZER && asprintf(ret_variable, "%s=%s:detect_leaks=0:disable_coredump=0", name,
					      options == NULL ? "" : options) < 0) {
		*ret_variable = NULL;
		return -ENOMEM;
	}
	return 0;
}

static int fill_environment(struct launch *launch, char *const *more)
{
	static char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin", locale[] = "LC_ALL=C";
	unsigned count = 0;

	if (add_sanitizer_options("ASAN_OPTIONS", &launch->sanitizer_options[0]) < 0 ||
	    add_sanitizer_options("TSAN_OPTIONS", &launch->sanitizer_options[1]) < 0)
		return -ENOMEM;
	launch->environment[count++] = path;
	launch->environment[count++] = locale;
	for (unsigned i = 0; i < 2; i++)
		if (launch->sanitizer_options[i] != NULL)
			launch->environment[count++] = launch->sanitizer_options[i];
	for (; more != NULL && *more != NULL && count < ENVIRONMENT_MOST - 1; more++)
		launch->environment[count++] = *more;
	launch->environment[count] = NULL;
	return 0;
}

static int fill_launch(struct launch *launch, const struct sandbox_params *params, struct failure *failure)
{
	if (params->fd_count > FDS_MOST)
		return fail(failure, -EINVAL, "sandbox: more than %d descriptors", FDS_MOST);
	for (unsigned i = 0; i < params->fd_count; i++) {
		if (params->fds[i][1] < 0 || params->fds[i][1] > SANDBOX_FD_MOST)
			return fail(failure, -EINVAL, "sandbox: descriptor %d for a child", params->fds[i][1]);
	}
	launch->params = params;
	launch->parent = getpid();
	launch->uid = geteuid();
	(void)snprintf(launch->uid_map, sizeof(launch->uid_map), "%u %u 1", (unsigned)geteuid(), (unsigned)geteuid());
	(void)snprintf(launch->gid_map, sizeof(launch->gid_map), "%u %u 1", (unsigned)getegid(), (unsigned)getegid());
	if (fill_environment(launch, params->environment) < 0)
		return fail(failure, -ENOMEM, "sandbox: out of memory");
	launch->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (launch->null_fd < 0)
		return fail_errno(failure, -errno, "/dev/null");
	launch->program_fd = open_program(params->program, failure);
	if (launch->program_fd < 0)
		return launch->program_fd;
	return params->kind != SANDBOX_WORKER ? sandbox_filter_make(params->kind, &launch->filter, failure) : 0;
}

/* Nothing comes when all went well: the pipe closes with the exec. */
static int read_child_error(int fd, const char *program, struct failure *failure)
{
	struct child_error error;
	ssize_t len_bytes;

	do
		len_bytes = read(fd, &error, sizeof(error));
	while (len_bytes < 0 && errno == EINTR);
	if (len_bytes == 0)
		return 0;
	if (len_bytes != (ssize_t)sizeof(error) || error.stage < 0 ||
	    (size_t)error.stage >= sizeof(stage_names) / sizeof(stage_names[0]) || error.code >= 0)
		return fail(failure, -EIO, "sandbox: %s didn't start", program);
	return fail_errno(failure, error.code, "sandbox: starting %s: %s", program, stage_names[error.stage]);
}

int sandbox_spawn(const struct sandbox_params *params, pid_t *ret_pid, int *ret_pidfd, struct failure *failure)
{
	AUTO(free_launch) struct launch launch = {.program_fd = -1, .null_fd = -1, .error_fd = -1, .life_fd = -1};
	struct job job = {.launch = &launch, .pidfd = -1};
	AUTO_CLOSE int read_fd = -1;
	int pipe_fds[2];
	int error = fill_launch(&launch, params, failure);

	if (error < 0)
		return error;
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return fail_errno(failure, -errno, "pipe");
	read_fd = pipe_fds[0];
	launch.error_fd = pipe_fds[1];
	error = give_to_keeper(&job);
	if (error < 0)
		return fail_errno(failure, error, "sandbox: starting %s", params->program);
	cleanup_close(&launch.error_fd); /* else the end of the pipe would never come */
	launch.error_fd = -1;
	error = read_child_error(read_fd, params->program, failure);
	if (error < 0) {
		sandbox_kill_and_reap(job.pid, job.pidfd);
		return error;
	}
	*ret_pid = job.pid;
	*ret_pidfd = job.pidfd;
	return 0;
}

void sandbox_kill_and_reap(pid_t pid, int pidfd)
{
	siginfo_t info;

	(void)pid;
	(void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0); /* it may have ended by itself */
	while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) < 0 && errno == EINTR)
		; /* ECHILD: the process ignores SIGCHLD, so that the kernel has reaped */
	(void)close(pidfd);
}

const char *sandbox_describe_end(int pidfd, char text[SANDBOX_END_BYTES])
{
	struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
	siginfo_t info = {.si_pid = 0};
	const char *name;

	(void)poll(&poll_fd, 1, END_WAIT_MS); /* interrupted: then it is told as it is by now */
	if (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0)
		(void)snprintf(text, SANDBOX_END_BYTES, "still runs");
	else if (info.si_code == CLD_EXITED)
		(void)snprintf(text, SANDBOX_END_BYTES, "ended with status %d", info.si_status);
	else if (info.si_status == SIGSYS)
		(void)snprintf(text, SANDBOX_END_BYTES, "killed, for a system call that it may not make");
	else {
		name = sigdescr_np(info.si_status);
		(void)snprintf(text, SANDBOX_END_BYTES, "killed by signal %d (%s)", info.si_status,
			       name == NULL ? "?" : name);
	}
	return text;
}
