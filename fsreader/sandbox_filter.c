/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filters of system calls, by libseccomp.
 *
 * Our own worker talks over a socket that it has, and uses memory. Whatever else it tries is the end of it: nobody but
 * an intruder would.
 *
 * A tool is another's program, started by the dynamic loader, that asks for this and that at its start. It may do what
 * changes nothing outside of itself: read files, map them, use threads, talk over what it has open. All else fails with
 * EPERM, which programs know how to live with. What arguments decide is decided here:
 *
 *   open, openat        for reading only
 *   clone               threads only; clone3 hides its flags behind a pointer: "there is no such call", libc falls back
 *   execveat            of SANDBOX_PROGRAM_FD only
 *   prlimit64           to ask, not to set
 *   kill, tgkill, …     none: they reach any process of the same user
 *   ioctl               none: some of them write (TIOCSTI into a terminal)
 *   socket, connect, …  none
 *
 * A user-mode Linux may besides start processes, trace them, and send them signals: it lives in a namespace of processes in which there are none
 * but its own. It has pairs of sockets, timers, and disks that it locks and doesn't write to.
 *
 * A filter sees numbers of system calls as the CPU has them; those of another ABI (x32, 32 bit) kill. It is made before
 * the fork and loaded after it by the bare system call, because libseccomp takes memory, which a child of a process
 * with threads must not.
 */
#include "fsreader/sandbox_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fsreader/sandbox.h"

enum { FILTER_MOST_BYTES = 64 * 1024 };

/* What changes nothing outside of the process. */
static const int tool_calls[] = {
	/* data, through what is open */
	SCMP_SYS(read),
	SCMP_SYS(readv),
	SCMP_SYS(pread64),
	SCMP_SYS(preadv),
	SCMP_SYS(preadv2),
	SCMP_SYS(write),
	SCMP_SYS(writev),
	SCMP_SYS(lseek),
	SCMP_SYS(recvfrom),
	SCMP_SYS(recvmsg),
	SCMP_SYS(sendto),
	SCMP_SYS(sendmsg),
	SCMP_SYS(getsockopt),
	SCMP_SYS(splice),
	SCMP_SYS(vmsplice),
	SCMP_SYS(tee),
	/* descriptors */
	SCMP_SYS(close),
	SCMP_SYS(close_range),
	SCMP_SYS(dup),
	SCMP_SYS(dup2),
	SCMP_SYS(dup3),
	SCMP_SYS(pipe),
	SCMP_SYS(pipe2),
	SCMP_SYS(eventfd2),
	SCMP_SYS(poll),
	SCMP_SYS(ppoll),
	SCMP_SYS(select),
	SCMP_SYS(pselect6),
	SCMP_SYS(epoll_create1),
	SCMP_SYS(epoll_ctl),
	SCMP_SYS(epoll_wait),
	SCMP_SYS(epoll_pwait),
	/* files, to look at */
	SCMP_SYS(stat),
	SCMP_SYS(lstat),
	SCMP_SYS(fstat),
	SCMP_SYS(newfstatat),
	SCMP_SYS(statx),
	SCMP_SYS(statfs),
	SCMP_SYS(fstatfs),
	SCMP_SYS(access),
	SCMP_SYS(faccessat),
	SCMP_SYS(faccessat2),
	SCMP_SYS(readlink),
	SCMP_SYS(readlinkat),
	SCMP_SYS(getcwd),
	SCMP_SYS(getdents64),
	SCMP_SYS(umask),
	/* memory */
	SCMP_SYS(brk),
	SCMP_SYS(mmap),
	SCMP_SYS(munmap),
	SCMP_SYS(mremap),
	SCMP_SYS(mprotect),
	SCMP_SYS(madvise),
	SCMP_SYS(membarrier),
	/* itself, its threads */
	SCMP_SYS(getpid),
	SCMP_SYS(gettid),
	SCMP_SYS(getppid),
	SCMP_SYS(getuid),
	SCMP_SYS(geteuid),
	SCMP_SYS(getgid),
	SCMP_SYS(getegid),
	SCMP_SYS(getresuid),
	SCMP_SYS(getresgid),
	SCMP_SYS(getgroups),
	SCMP_SYS(getrusage),
	SCMP_SYS(uname),
	SCMP_SYS(sysinfo),
	SCMP_SYS(arch_prctl),
	SCMP_SYS(set_tid_address),
	SCMP_SYS(set_robust_list),
	SCMP_SYS(rseq),
	SCMP_SYS(futex),
	SCMP_SYS(sched_yield),
	SCMP_SYS(sched_getaffinity),
	SCMP_SYS(getcpu),
	SCMP_SYS(getrandom),
	SCMP_SYS(exit),
	SCMP_SYS(exit_group),
	/* signals to itself by the kernel, timers, time */
	SCMP_SYS(rt_sigaction),
	SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(rt_sigreturn),
	SCMP_SYS(sigaltstack),
	SCMP_SYS(restart_syscall),
	SCMP_SYS(clock_gettime),
	SCMP_SYS(clock_getres),
	SCMP_SYS(clock_nanosleep),
	SCMP_SYS(nanosleep),
	SCMP_SYS(gettimeofday),
	SCMP_SYS(time),
	SCMP_SYS(times),
};

static const int kernel_calls[] = {
	/* processes */
	SCMP_SYS(clone),
	SCMP_SYS(fork),
	SCMP_SYS(vfork),
	SCMP_SYS(execve),
	SCMP_SYS(wait4),
	SCMP_SYS(waitid),
	SCMP_SYS(ptrace),
	SCMP_SYS(kill),
	SCMP_SYS(tkill),
	SCMP_SYS(tgkill),
	SCMP_SYS(setsid),
	SCMP_SYS(setpgid),
	SCMP_SYS(personality),
	/* what happens when */
	SCMP_SYS(timer_create),
	SCMP_SYS(timer_settime),
	SCMP_SYS(timer_gettime),
	SCMP_SYS(timer_delete),
	SCMP_SYS(timer_getoverrun),
	SCMP_SYS(setitimer),
	SCMP_SYS(getitimer),
	SCMP_SYS(pause),
	SCMP_SYS(rt_sigsuspend),
	SCMP_SYS(rt_sigpending),
	SCMP_SYS(rt_sigtimedwait),
	SCMP_SYS(epoll_create),
	/* between its parts */
	SCMP_SYS(socketpair),
	SCMP_SYS(fcntl),
	SCMP_SYS(pwrite64),
	SCMP_SYS(fsync),
	SCMP_SYS(fdatasync),
	SCMP_SYS(getpgid),
	SCMP_SYS(getpgrp),
	SCMP_SYS(getsid),
};

/* A socket, memory, the end. (qsort() of libc before 2.37 asks how much memory there is: sysinfo.) */
static const int worker_calls[] = {
	SCMP_SYS(read),	      SCMP_SYS(write),		 SCMP_SYS(recvfrom),	  SCMP_SYS(recvmsg),
	SCMP_SYS(sendto),     SCMP_SYS(sendmsg),	 SCMP_SYS(close),	  SCMP_SYS(brk),
	SCMP_SYS(munmap),     SCMP_SYS(mremap),		 SCMP_SYS(madvise),	  SCMP_SYS(sysinfo),
	SCMP_SYS(getrandom),  SCMP_SYS(futex),		 SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday),
	SCMP_SYS(time),	      SCMP_SYS(restart_syscall), SCMP_SYS(rt_sigreturn),  SCMP_SYS(exit),
	SCMP_SYS(exit_group),
};

static void release_filter(scmp_filter_ctx *filter)
{
	if (*filter != NULL)
		seccomp_release(*filter);
}

/* A call that this CPU doesn't have (open, on arm64) needs no permission. */
static int allow(scmp_filter_ctx filter, int call)
{
	return call < 0 ? 0 : seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 0);
}

static int allow_all(scmp_filter_ctx filter, const int *calls, size_t count)
{
	int error = 0;

	for (size_t i = 0; i < count && error == 0; i++)
		error = allow(filter, calls[i]);
	return error;
}

static int allow_if(scmp_filter_ctx filter, int call, struct scmp_arg_cmp condition)
{
	return call < 0 ? 0 : seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 1, condition);
}

static struct scmp_arg_cmp equals(unsigned argument, scmp_datum_t value)
{
	return (struct scmp_arg_cmp){.arg = argument, .op = SCMP_CMP_EQ, .datum_a = value};
}

/* Of these bits, just those that are in `value`. */
static struct scmp_arg_cmp has_of(unsigned argument, scmp_datum_t bits, scmp_datum_t value)
{
	return (struct scmp_arg_cmp){.arg = argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = bits, .datum_b = value};
}

static int allow_by_argument(scmp_filter_ctx filter)
{
	static const scmp_datum_t writing = O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | (O_TMPFILE & ~O_DIRECTORY);
	static const scmp_datum_t thread = CLONE_VM | CLONE_THREAD | CLONE_SIGHAND;
	static const int asking[] = {F_GETFD, F_SETFD,	       F_GETFL,	     F_SETFL,
				     F_DUPFD, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_SETPIPE_SZ};
	int error = allow_if(filter, SCMP_SYS(open), has_of(1, writing, O_RDONLY));

	if (error == 0)
		error = allow_if(filter, SCMP_SYS(openat), has_of(2, writing, O_RDONLY));
	if (error == 0)
		error = allow_if(filter, SCMP_SYS(clone), has_of(0, thread, thread));
	if (error == 0)
		error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	if (error == 0)
		error = allow_if(filter, SCMP_SYS(execveat), equals(0, SANDBOX_PROGRAM_FD));
	if (error == 0)
		error = allow_if(filter, SCMP_SYS(prlimit64), equals(2, 0));
	if (error == 0)
		error = allow_if(filter, SCMP_SYS(prctl), equals(0, PR_SET_NAME));
	for (size_t i = 0; i < sizeof(asking) / sizeof(asking[0]) && error == 0; i++)
		error = allow_if(filter, SCMP_SYS(fcntl), equals(1, (scmp_datum_t)asking[i]));
	return error;
}

static int fill_for_tool(scmp_filter_ctx filter, enum sandbox_kind kind)
{
	int error = allow_all(filter, tool_calls, sizeof(tool_calls) / sizeof(tool_calls[0]));

	if (error == 0 && kind == SANDBOX_KERNEL)
		error = allow_all(filter, kernel_calls, sizeof(kernel_calls) / sizeof(kernel_calls[0]));
	if (error == 0)
		error = allow_by_argument(filter);
	if (error == 0 && SANDBOX_HAS_SANITIZER) /* its run-time system looks around, and says what it finds before it
						    ends the program */
		error = allow_all(
			filter,
			(const int[]){SCMP_SYS(kill), SCMP_SYS(tgkill), SCMP_SYS(ptrace), SCMP_SYS(personality)}, 4);
	return error;
}

/* libseccomp writes a filter to a descriptor, and nowhere else, before version 2.6. */
static int export_filter(scmp_filter_ctx filter, struct sock_fprog *ret_program)
{
	AUTO_CLOSE int fd = memfd_create("seccomp", MFD_CLOEXEC);
	AUTO_FREE struct sock_filter *code = NULL;
	struct stat status;
	int error = fd < 0 ? -errno : seccomp_export_bpf(filter, fd);

	if (error < 0)
		return error;
	if (fstat(fd, &status) < 0)
		return -errno;
	if (status.st_size <= 0 || status.st_size > FILTER_MOST_BYTES || (size_t)status.st_size % sizeof(*code) != 0)
		return -EINVAL;
	code = malloc((size_t)status.st_size);
	if (code == NULL)
		return -ENOMEM;
	if (pread(fd, code, (size_t)status.st_size, 0) != status.st_size)
		return -EIO;
	ret_program->len = (unsigned short)((size_t)status.st_size / sizeof(*code));
	ret_program->filter = take_ptr(code);
	return 0;
}

int sandbox_filter_make(enum sandbox_kind kind, struct sock_fprog *ret_program, struct failure *failure)
{
	AUTO(release_filter) scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	int error = filter == NULL ? -ENOMEM : seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);

	if (error == 0)
		error = fill_for_tool(filter, kind);
	if (error == 0)
		error = export_filter(filter, ret_program);
	return error < 0 ? fail_errno(failure, error, "sandbox: making a filter of system calls") : 0;
}

/* Memory for data, never for code. */
static int allow_data_memory(scmp_filter_ctx filter)
{
	int error = allow_if(filter, SCMP_SYS(mmap), has_of(2, PROT_EXEC, 0));

	if (error == 0)
		error = allow_if(filter, SCMP_SYS(mprotect), has_of(2, PROT_EXEC, 0));
	return error;
}

int sandbox_confine_worker(void)
{
	AUTO(release_filter)
	scmp_filter_ctx filter = seccomp_init(SANDBOX_HAS_SANITIZER ? SCMP_ACT_ERRNO(EPERM) : SCMP_ACT_KILL_PROCESS);
	int error = filter == NULL ? -ENOMEM : 0;

	/* Others of this user can't look into it. The executed program starts without this, whatever its parent had. */
	if (prctl(PR_SET_DUMPABLE, SANDBOX_HAS_SANITIZER ? 1L : 0L, 0L, 0L, 0L) < 0)
		return -errno;
	if (error == 0)
		error = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	if (error == 0)
		error = SANDBOX_HAS_SANITIZER
				? fill_for_tool(filter, SANDBOX_WORKER)
				: allow_all(filter, worker_calls, sizeof(worker_calls) / sizeof(worker_calls[0]));
	if (error == 0 && !SANDBOX_HAS_SANITIZER)
		error = allow_data_memory(filter);
	return error == 0 ? seccomp_load(filter) : error;
}
