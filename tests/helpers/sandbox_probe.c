/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process in a sandbox tries, for test_sandbox.c.
 *
 *     sandbox_probe worker ACTION    confines itself as our worker does, then tries; exit status 0: it could, 1: it was
 * refused. (Killed, mostly.) sandbox_probe tool             tries all of them, and writes "ACTION STATUS\n" to
 * descriptor 3: "ok", or the name of the error sandbox_probe status           copies /proc/self/status to descriptor 3
 *     sandbox_probe fds              writes the numbers of its open descriptors to descriptor 3
 *     sandbox_probe processes        counts those that it could send a signal to
 *     sandbox_probe echo             writes back to descriptor 3 what it reads from there, until the end
 *     sandbox_probe loop             runs for ever
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fsreader/sandbox.h"

enum { OUT = 3, TOO_MUCH_MIB = 2048, PAGE_BYTES = 4096 };

static int refused(long result)
{
	return result < 0 ? -errno : 0;
}

static int try_nothing(void)
{
	void *memory = malloc(1 << 20);

	free(memory);
	return memory == NULL ? -ENOMEM : 0;
}

static int try_socket(void)
{
	return refused(socket(AF_INET, SOCK_STREAM, 0));
}

static int try_unix_socket(void)
{
	return refused(socket(AF_UNIX, SOCK_STREAM, 0));
}

static int try_read_file(void)
{
	return refused(open("/etc/passwd", O_RDONLY | O_CLOEXEC));
}

static int try_write_file(void)
{
	return refused(open("/dev/null", O_WRONLY | O_CLOEXEC));
}

static int try_make_file(void)
{
	return refused(open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
}

static int try_make_folder(void)
{
	return refused(mkdir("/tmp/wherry-sandbox-probe", 0700));
}

static int try_unlink(void)
{
	return refused(unlink("/tmp/wherry-sandbox-probe"));
}

static int try_fork(void)
{
	pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

	if (pid == 0)
		_exit(0);
	return refused(pid);
}

static int try_clone3(void)
{
	unsigned long long arguments[11] = {0};

	return refused(syscall(SYS_clone3, arguments, sizeof(arguments)));
}

static int try_kill(void)
{
	return refused(kill(getppid(), 0));
}

static int try_kill_thread(void)
{
	return refused(syscall(SYS_tgkill, getppid(), getppid(), 0));
}

static int try_ptrace(void)
{
	return refused(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));
}

static int try_read_memory(void)
{
	char byte;
	struct iovec here = {.iov_base = &byte, .iov_len = 1}, there = {.iov_base = &byte, .iov_len = 1};

	return refused(syscall(SYS_process_vm_readv, getppid(), &here, 1, &there, 1, 0));
}

static int try_execute(void)
{
	return refused(execl("/bin/true", "true", (char *)NULL));
}

static int try_execute_fd(void)
{
	int fd = open("/bin/true", O_RDONLY | O_CLOEXEC);
	char *const argv[] = {(char *)(uintptr_t) "true", NULL}, *const none[] = {NULL};

	return fd < 0 ? -errno : refused(syscall(SYS_execveat, fd, "", argv, none, AT_EMPTY_PATH));
}

/* The descriptor that it was executed from is one that it can't get back. */
static int try_execute_as_started(void)
{
	int fd = open("/bin/true", O_RDONLY | O_CLOEXEC), copy = fd < 0 ? -1 : dup2(fd, 255);
	char *const argv[] = {(char *)(uintptr_t) "true", NULL}, *const none[] = {NULL};

	if (fd < 0 || copy < 0)
		return -EPERM;
	return refused(syscall(SYS_execveat, 255, "", argv, none, AT_EMPTY_PATH));
}

static int try_mount(void)
{
	return refused(mount("none", "/tmp", "tmpfs", 0, NULL));
}

static int try_namespace(void)
{
	return refused(syscall(SYS_unshare, 0x10000000 /* CLONE_NEWUSER */));
}

static int try_become_root(void)
{
	return refused(setuid(0));
}

static int try_raise_limit(void)
{
	const struct rlimit limit = {.rlim_cur = 100, .rlim_max = 100};

	return refused(setrlimit(RLIMIT_NOFILE, &limit));
}

static int try_ioctl(void)
{
	int count;

	return refused(ioctl(OUT, FIONREAD, &count));
}

static int try_shared_memory(void)
{
	return refused(shmget(IPC_PRIVATE, PAGE_BYTES, IPC_CREAT | 0600));
}

static int try_code(void)
{
	void *memory = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return memory == MAP_FAILED ? -errno : 0;
}

static int try_much_memory(void)
{
	void *memory = mmap(NULL, (size_t)TOO_MUCH_MIB << 20, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return memory == MAP_FAILED ? -errno : 0;
}

static void *run_thread(void *opaque)
{
	return opaque;
}

static int try_thread(void)
{
	pthread_t thread;
	int error = pthread_create(&thread, NULL, run_thread, NULL);

	if (error == 0)
		(void)pthread_join(thread, NULL);
	return -error;
}

static const struct action {
	const char *name;
	int (*run)(void);
} actions[] = {
	{"nothing", try_nothing},
	{"read-file", try_read_file},
	{"thread", try_thread},
	{"socket", try_socket},
	{"unix-socket", try_unix_socket},
	{"write-file", try_write_file},
	{"make-file", try_make_file},
	{"make-folder", try_make_folder},
	{"unlink", try_unlink},
	{"fork", try_fork},
	{"clone3", try_clone3},
	{"kill", try_kill},
	{"kill-thread", try_kill_thread},
	{"ptrace", try_ptrace},
	{"read-memory", try_read_memory},
	{"execute", try_execute},
	{"execute-fd", try_execute_fd},
	{"execute-as-started", try_execute_as_started},
	{"mount", try_mount},
	{"namespace", try_namespace},
	{"become-root", try_become_root},
	{"raise-limit", try_raise_limit},
	{"ioctl", try_ioctl},
	{"shared-memory", try_shared_memory},
	{"code", try_code},
	{"much-memory", try_much_memory},
};

enum { ACTIONS = sizeof(actions) / sizeof(actions[0]) };

static int run_worker(const char *name)
{
	for (unsigned i = 0; i < ACTIONS; i++) {
		if (strcmp(actions[i].name, name) != 0)
			continue;
		if (sandbox_confine_worker() < 0)
			return 3;
		return actions[i].run() < 0 ? 1 : 0;
	}
	return 2;
}

static int run_tool(void)
{
	for (unsigned i = 0; i < ACTIONS; i++) {
		int result = actions[i].run();

		(void)dprintf(OUT, "%s %s\n", actions[i].name, result == 0 ? "ok" : strerrorname_np(-result));
	}
	return 0;
}

static int copy_status(void)
{
	char text[8192];
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	ssize_t len_bytes = fd < 0 ? -1 : read(fd, text, sizeof(text));

	return len_bytes > 0 && write(OUT, text, (size_t)len_bytes) == len_bytes ? 0 : 1;
}

static int list_fds(void)
{
	DIR *folder = opendir("/proc/self/fd");
	struct dirent *entry;

	if (folder == NULL)
		return 1;
	while ((entry = readdir(folder)) != NULL) {
		if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(folder))
			(void)dprintf(OUT, "%s\n", entry->d_name);
	}
	return 0;
}

/* Processes that a signal could be sent to, besides itself. */
static int count_processes(void)
{
	int others = 0;

	for (pid_t pid = 1; pid < 40000; pid++)
		others += pid != getpid() && (kill(pid, 0) == 0 || errno == EPERM);
	return dprintf(OUT, "pid %d, others %d\n", getpid(), others) > 0 ? 0 : 1;
}

static int echo(void)
{
	char text[256];
	ssize_t len_bytes;

	while ((len_bytes = read(OUT, text, sizeof(text))) > 0) {
		if (write(OUT, text, (size_t)len_bytes) != len_bytes)
			return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "worker") == 0)
		return run_worker(argv[2]);
	if (argc != 2)
		return 2;
	if (strcmp(argv[1], "tool") == 0)
		return run_tool();
	if (strcmp(argv[1], "status") == 0)
		return copy_status();
	if (strcmp(argv[1], "fds") == 0)
		return list_fds();
	if (strcmp(argv[1], "processes") == 0)
		return count_processes();
	if (strcmp(argv[1], "echo") == 0)
		return echo();
	while (strcmp(argv[1], "loop") == 0)
		;
	return 2;
}
