/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting nbdkit.
 *
 * TLS: GnuTLS as Debian 12 has it prefers CHACHA20-POLY1305 with a pre-shared key, at a fifteenth of the speed that a
 * CPU with AES instructions has with AES-GCM. nbdkit has no option for that, but GnuTLS reads a file of overrides that
 * the environment names. It is a memory file which nbdkit inherits. Who has settings of his own (the variable, or a
 * file of the system) keeps them.
 */
#include "tools/nbd_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "common/cleanup.h"
#include "tools/programs.h"

#define PLUGIN_FILE "nbdkit-wherry-plugin.so"

enum { THREADS_LEAST = 8, THREADS_MOST = 16 };
enum { FIRST_LISTEN_FD = 3, ARGUMENTS_MOST = 32, BACKLOG = 64, LOCK_WAIT_MS = 5000, LOCK_STEP_MS = 20 };

/* ---- sockets ---- */

static int fill_unix_address(struct sockaddr_un *address, const char *path, struct failure *failure)
{
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(address->sun_path))
		return fail(failure, -ENAMETOOLONG,
			    "%s: too long for a socket, whose path has %zu bytes at most; --socket takes another", path,
			    sizeof(address->sun_path) - 1);
	memcpy(address->sun_path, path, strlen(path) + 1);
	return 0;
}

/*
 * The folder of a socket, locked while its fd is open. Anybody who may read the folder can lock it, so nobody waits for
 * long.
 */
static int lock_folder(const char *path, int *ret_fd, struct failure *failure)
{
	const char *slash = strrchr(path, '/');
	AUTO_FREE char *folder = slash == NULL ? strdup(".") : strndup(path, slash == path ? 1 : (size_t)(slash - path));
	AUTO_CLOSE int fd = folder == NULL ? -1 : open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (folder == NULL)
		return fail(failure, -ENOMEM, "out of memory");
	if (fd < 0)
		return fail_errno(failure, -errno, "%s: the folder for a socket", folder);
	for (int waited_ms = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; waited_ms += LOCK_STEP_MS) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return fail_errno(failure, -errno, "%s: locking the folder for a socket", folder);
		if (waited_ms >= LOCK_WAIT_MS)
			return fail(failure, -EBUSY,
				    "%s: another process keeps this folder locked; --socket takes a path in another",
				    folder);
		(void)nanosleep(&(struct timespec){.tv_nsec = LOCK_STEP_MS * 1000000L}, NULL); /* woken early: asks again */
	}
	*ret_fd = take_fd(&fd);
	return 0;
}

/* Takes away a socket on which nobody answers. With the folder's lock. */
static int remove_stale_socket(const struct sockaddr_un *address, struct failure *failure)
{
	/* not blocking: EAGAIN is a server with too many waiting in front of it, who must not be joined */
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct stat status;

	if (fd < 0)
		return fail_errno(failure, -errno, "socket");
	if (lstat(address->sun_path, &status) < 0)
		return errno == ENOENT ? 0 : fail_errno(failure, -errno, "%s", address->sun_path);
	if (!S_ISSOCK(status.st_mode))
		return fail(failure, -EEXIST, "%s: is there, and is no socket; --socket takes another path",
			    address->sun_path);
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN)
		return fail(failure, -EADDRINUSE, "%s: a server answers there already; --socket takes another path",
			    address->sun_path);
	if (errno != ECONNREFUSED)
		return fail_errno(failure, -errno, "%s", address->sun_path);
	if (unlink(address->sun_path) < 0 && errno != ENOENT)
		return fail_errno(failure, -errno, "%s: removing an old socket", address->sun_path);
	return 0;
}

int nbd_listen_unix(const char *path, int *ret_fd, struct failure *failure)
{
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	AUTO_CLOSE int folder_fd = -1;
	struct sockaddr_un address;
	mode_t mask;
	int error = fd < 0 ? fail_errno(failure, -errno, "socket") : fill_unix_address(&address, path, failure);

	if (error == 0)
		error = lock_folder(path, &folder_fd, failure);
	if (error == 0)
		error = remove_stale_socket(&address, failure);
	if (error < 0)
		return error;
	mask = umask(0077); /* who may connect may read the disk */
	error = bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
	(void)umask(mask);
	if (error == 0 && listen(fd, BACKLOG) < 0)
		error = -errno;
	if (error < 0)
		return fail_errno(failure, error, "%s: listening", path);
	*ret_fd = take_fd(&fd);
	return 0;
}

void nbd_remove_socket(const char *path)
{
	AUTO_CLOSE int folder_fd = -1;
	struct sockaddr_un address;

	/* one that stays is taken away by the next */
	if (fill_unix_address(&address, path, NULL) == 0 && lock_folder(path, &folder_fd, NULL) == 0)
		(void)remove_stale_socket(&address, NULL);
}

static void free_addresses(struct addrinfo **addresses)
{
	if (*addresses != NULL)
		freeaddrinfo(*addresses);
}

int nbd_listen_tcp(const char *address, uint16_t port, int *ret_fd, uint16_t *ret_port, struct failure *failure)
{
	static const int yes = 1;
	const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
	AUTO(free_addresses) struct addrinfo *found = NULL;
	struct sockaddr_storage bound = {.ss_family = AF_UNSPEC};
	socklen_t bound_bytes = sizeof(bound);
	AUTO_CLOSE int fd = -1;
	char service[8];
	int error;

	(void)snprintf(service, sizeof(service), "%u", port);
	error = getaddrinfo(address, service, &hints, &found);
	if (error != 0) {
		found = NULL;
		return fail(failure, -EINVAL, "--address %s: %s", address, gai_strerror(error));
	}
	fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0 ||
	    bind(fd, found->ai_addr, found->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0 ||
	    getsockname(fd, (struct sockaddr *)&bound, &bound_bytes) < 0)
		return fail_errno(failure, -errno, "%s port %u: listening", address, port);
	*ret_port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
						      : ((struct sockaddr_in *)&bound)->sin_port);
	*ret_fd = take_fd(&fd);
	return 0;
}

bool nbd_address_is_loopback(const char *address)
{
	struct in_addr v4;
	struct in6_addr v6;

	if (inet_pton(AF_INET, address, &v4) == 1)
		return ntohl(v4.s_addr) >> 24 == 127;
	if (inet_pton(AF_INET6, address, &v6) == 1)
		return IN6_IS_ADDR_LOOPBACK(&v6);
	return strcmp(address, "localhost") == 0;
}

/* ---- what to run ---- */

/* The plugin of the build tree that this program is in, or "wherry", for nbdkit to look for. Caller frees; NULL: out of
 * memory. */
static char *find_plugin(void)
{
	char *path = programs_find_beside("nbdplugin", PLUGIN_FILE);

	return path != NULL ? path : strdup("wherry");
}

int nbd_server_check(struct failure *failure)
{
	AUTO_FREE char *plugin = find_plugin();
	AUTO_FREE char *command = NULL;
	int status;

	if (plugin == NULL || asprintf(&command, "nbdkit '%s' --dump-plugin >/dev/null 2>&1", plugin) < 0) {
		command = NULL;
		return fail(failure, -ENOMEM, "nbdkit: out of memory");
	}
	if (system("nbdkit --version >/dev/null 2>&1") != 0) // NOLINT(cert-env33-c): a fixed command
		return fail(failure, -ENOENT, "nbdkit: is not installed; apt install nbdkit");
	if (strchr(plugin, '\'') != NULL)
		return 0;	  /* nbdkit itself will say it */
	status = system(command); // NOLINT(cert-env33-c): our own path, quoted
	if (status != 0)
		return fail(failure, -ENOENT, "nbdkit: can't load the plugin '%s'; 'nbdkit %s --dump-plugin' says why",
			    plugin, plugin);
	return 0;
}

static int check_key_file(const char *option, const char *path, const char *made_by, struct failure *failure)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat status;

	if (fd < 0)
		return fail(failure, -errno, "%s: %s: %s; %s", option, path, strerror(errno), made_by);
	if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode))
		return fail(failure, -EISDIR, "%s: %s: is a directory; %s", option, path, made_by);
	return 0;
}

int nbd_server_check_tls(const struct options *options, struct failure *failure)
{
	static const char *const names[] = {"ca-cert.pem", "server-cert.pem", "server-key.pem"};

	if (options->tls_psk != NULL)
		return check_key_file("--tls-psk", options->tls_psk, "psktool(1) makes such a file", failure);
	for (size_t i = 0; options->tls_certificates != NULL && i < sizeof(names) / sizeof(names[0]); i++) {
		AUTO_FREE char *path = NULL;
		int error;

		if (asprintf(&path, "%s/%s", options->tls_certificates, names[i]) < 0) {
			path = NULL;
			return fail(failure, -ENOMEM, "out of memory");
		}
		error = check_key_file("--tls-certificates", path, "nbdkit-tls(1) says how to make it", failure);
		if (error < 0)
			return error;
	}
	return 0;
}

/* ---- the process ---- */

struct arguments {
	const char *words[ARGUMENTS_MOST + 1];
	unsigned count;
	char *owned[ARGUMENTS_MOST];
	unsigned owned_count;
	bool is_out_of_memory;
};

static void free_arguments(struct arguments *arguments)
{
	for (unsigned i = 0; i < arguments->owned_count; i++)
		free(arguments->owned[i]);
}

static void add_word(struct arguments *arguments, const char *word)
{
	if (word == NULL || arguments->count == ARGUMENTS_MOST)
		arguments->is_out_of_memory = true;
	else
		arguments->words[arguments->count++] = word;
}

/* PREFIX and VALUE as one word. */
static void add_pair(struct arguments *arguments, const char *prefix, const char *value)
{
	char *word = NULL;

	if (asprintf(&word, "%s%s", prefix, value) < 0)
		word = NULL;
	add_word(arguments, word);
	if (word != NULL && !arguments->is_out_of_memory)
		arguments->owned[arguments->owned_count++] = word;
	else
		free(word);
}

/*
 * nbdkit has 16 threads a connection, whatever the machine. Requests mostly wait for a core, not for a disk, and threads beyond a few for each of those cost
 * a tenth of the CPU time in switching and waking.
 */
static unsigned thread_count(void)
{
	cpu_set_t cores;
	int count = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? 4 * CPU_COUNT(&cores) : THREADS_MOST;

	return count < THREADS_LEAST ? THREADS_LEAST : count > THREADS_MOST ? THREADS_MOST : (unsigned)count;
}

static void make_arguments(struct arguments *arguments, const struct nbd_server *server, const char *plugin)
{
	const struct options *options = server->options;
	char cache[32], ready[32], threads[16];

	add_word(arguments, "nbdkit");
	add_word(arguments, "--foreground");
	(void)snprintf(threads, sizeof(threads), "%u", thread_count());
	add_pair(arguments, "--threads=", threads);
	if (server->ready_fd >= 0) {
		(void)snprintf(ready, sizeof(ready), "%d", server->ready_fd);
		add_pair(arguments, "--pidfile=/dev/fd/", ready);
	}
	if (options->read_only)
		add_word(arguments, "--readonly");
	if (options->tls_certificates != NULL || options->tls_psk != NULL)
		add_word(arguments, "--tls=require");
	if (options->tls_certificates != NULL) {
		add_pair(arguments, "--tls-certificates=", options->tls_certificates);
		add_word(arguments, "--tls-verify-peer"); /* else everybody who gets there reads and writes */
	}
	if (options->tls_psk != NULL)
		add_pair(arguments, "--tls-psk=", options->tls_psk);
	add_word(arguments, plugin);
	add_pair(arguments, "store=", options->store);
	if (server->reference != NULL)
		add_pair(arguments, "disk=", server->reference);
	if (options->scratch)
		add_word(arguments, "scratch=1");
	if (server->ends_with_last_client)
		add_word(arguments, "exit=last");
	if (options->write_mirror)
		add_word(arguments, "rw=mirror");
	if (options->cache_bytes != 0) {
		(void)snprintf(cache, sizeof(cache), "%" PRIu64, options->cache_bytes);
		add_pair(arguments, "cache=", cache);
	}
}

static bool cpu_has_aes(void)
{
#if defined(__x86_64__)
	return __builtin_cpu_supports("aes") != 0;
#elif defined(__aarch64__)
	return (getauxval(AT_HWCAP) & HWCAP_AES) != 0;
#else
	return false;
#endif
}

/* In the child. Without it TLS works too, slower. */
static void prefer_fast_cipher(void)
{
	static const char overrides[] = "[overrides]\ntls-disabled-cipher = CHACHA20-POLY1305\n";
	char path[32];
	int fd;

	if (!cpu_has_aes() || getenv("GNUTLS_SYSTEM_PRIORITY_FILE") != NULL || access("/etc/gnutls/config", F_OK) == 0)
		return;
	fd = memfd_create("wherry-gnutls", 0); /* is to be inherited */
	if (fd < 0 || write(fd, overrides, sizeof(overrides) - 1) != (ssize_t)(sizeof(overrides) - 1))
		return;
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	(void)setenv("GNUTLS_SYSTEM_PRIORITY_FILE", path, 1);
}

__attribute__((noreturn)) static void become_server(const struct nbd_server *server, const char *const *words,
						    int socket_fd, pid_t parent)
{
	char pid[16];
	sigset_t none;

	if (server->log_path != NULL) {
		int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		int log_fd = open(server->log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

		if (null_fd < 0 || log_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 || dup2(log_fd, STDOUT_FILENO) < 0 ||
		    dup2(log_fd, STDERR_FILENO) < 0 || setsid() < 0)
			_exit(STATUS_FAILED);
	} else if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != parent) {
		_exit(STATUS_FAILED);
	}
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)signal(SIGPIPE, SIG_DFL);
	/* The socket has to be number 3, which may be somebody else's; those are not needed any more. */
	if (socket_fd == FIRST_LISTEN_FD ? fcntl(socket_fd, F_SETFD, 0) < 0 : dup2(socket_fd, FIRST_LISTEN_FD) < 0)
		_exit(STATUS_FAILED);
	if (server->ready_fd >= 0 && fcntl(server->ready_fd, F_SETFD, 0) < 0)
		_exit(STATUS_FAILED);
	if (server->options->tls_certificates != NULL || server->options->tls_psk != NULL)
		prefer_fast_cipher();
	(void)snprintf(pid, sizeof(pid), "%ld", (long)getpid());
	if (setenv("LISTEN_PID", pid, 1) < 0 || setenv("LISTEN_FDS", "1", 1) < 0)
		_exit(STATUS_FAILED);
	(void)execvp("nbdkit", (char *const *)words);
	(void)fprintf(stderr, "wherry: nbdkit: %s\n", strerror(errno));
	_exit(STATUS_FAILED);
}

int nbd_server_start(const struct nbd_server *server, int socket_fd, pid_t *ret_pid, struct failure *failure)
{
	AUTO_FREE char *plugin = find_plugin();
	AUTO(free_arguments) struct arguments arguments = {.count = 0};
	pid_t parent = getpid();
	pid_t pid;

	make_arguments(&arguments, server, plugin);
	if (arguments.is_out_of_memory)
		return fail(failure, -ENOMEM, "nbdkit: out of memory");
	pid = fork();
	if (pid < 0)
		return fail_errno(failure, -errno, "nbdkit: starting it");
	if (pid == 0)
		become_server(server, arguments.words, socket_fd, parent);
	*ret_pid = pid;
	return 0;
}
