/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry serve-nbd: nbdkit with our plugin, until a signal ends it.
 *
 * nbdkit before 1.34 is ended by an assertion of its own when a client hangs up while several answers wait to be sent to it, which nbdcopy
 * does at the first error and at Ctrl-C. All other clients would lose the server by that. So it is started again, on the socket that we keep
 * for that, where clients that come back meanwhile wait: what they flushed is there. Whatever else ends it is final.
 */
#include "tools/command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/source_disk.h"
#include "tools/nbd_server.h"
#include "tools/output.h"
#include "tools/runtime_folder.h"

enum { DEFAULT_PORT = 10809, READY_FD_LEAST = 10, ABORTS_MOST = 5, ABORTS_SECONDS = 10 };

/* Where it listens. */
struct place {
	int fd;
	char *socket_path; /* NULL: TCP */
	char *uri;
};

static void leave_place(struct place *place)
{
	if (place->fd >= 0)
		(void)close(place->fd);
	free(place->socket_path);
	free(place->uri);
}

static enum exit_status check_options(const struct command_line *line)
{
	const struct options *options = &line->options;
	bool is_tcp = options->address != NULL || options->has_port;
	bool has_tls = options->tls_certificates != NULL || options->tls_psk != NULL;

	if (is_tcp && options->socket != NULL)
		return report_usage(line->verb, "--socket: a unix socket, and --address and --port mean TCP");
	if (options->tls_certificates != NULL && options->tls_psk != NULL)
		return report_usage(line->verb, "--tls-psk: not together with --tls-certificates");
	if (options->scratch && options->read_only)
		return report_usage(line->verb, "--scratch: not together with --read-only");
	if (options->write_mirror && options->read_only)
		return report_usage(line->verb, "--rw: not together with --read-only");
	if (options->address != NULL && !nbd_address_is_loopback(options->address) && !has_tls && !options->insecure)
		return report_usage(line->verb,
				    "--address %s: other hosts reach it, and there is no TLS: give --tls-certificates "
				    "or --tls-psk, or --insecure if the network is to be trusted",
				    options->address);
	return STATUS_DONE;
}

/* The reference is fine, and the store is one, before anybody can connect. */
static int check_reference(const struct command_line *line, struct failure *failure)
{
	AUTO(cleanup_store) struct store *store = NULL;
	AUTO_FREE char *doing = command_line_doing(line);
	struct store_reference reference;
	int error = doing == NULL ? fail(failure, -ENOMEM, "out of memory") :
				    command_line_open_store(line, true, &store, failure);

	if (error < 0 || line->argument_count == 0)
		return error;
	command_line_reference(line, 0, &reference);
	if (reference.which == STORE_LIVE && line->options.scratch)
		return fail(failure, -EINVAL, "%s: live content, and --scratch is for images; try %s@latest",
			    line->arguments[0], reference.disk);
	return source_disk_check_reference(store, &reference, doing, failure);
}

/* A reference in a file's name: web01@3/2 as web01@3-2. */
static char *default_socket(const struct command_line *line, struct failure *failure)
{
	AUTO_FREE char *folder = NULL;
	char *path = NULL;

	if (runtime_folder(&folder, failure) < 0)
		return NULL;
	if (asprintf(&path, "%s/%s.sock", folder, line->argument_count > 0 ? line->arguments[0] : "nbd") < 0) {
		(void)fail(failure, -ENOMEM, "out of memory");
		return NULL;
	}
	for (char *at = path + strlen(folder) + 1; *at != '\0'; at++)
		if (*at == '/')
			*at = '-';
	return path;
}

/* As a URI has it: from the root, and with %XX for what means something else there. NULL: no memory, or no current folder. */
static char *encode_path(const char *path)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/-._~@:";
	AUTO_FREE char *folder = *path == '/' ? strdup("") : getcwd(NULL, 0);
	AUTO_FREE char *whole = NULL;
	char *encoded, *end;

	if (folder == NULL || asprintf(&whole, "%s%s%s", folder, *folder != '\0' ? "/" : "", path) < 0) {
		whole = NULL;
		return NULL;
	}
	encoded = end = malloc(strlen(whole) * 3 + 1);
	for (const char *at = whole; encoded != NULL && *at != '\0'; at++)
		end += sprintf(end, strchr(plain, *at) != NULL ? "%c" : "%%%02X", (unsigned char)*at);
	if (encoded != NULL)
		*end = '\0';
	return encoded;
}

static int listen_unix(const struct command_line *line, struct place *place, struct failure *failure)
{
	const char *name = line->argument_count > 0 ? line->arguments[0] : "";
	const char *scheme = line->options.tls_certificates != NULL || line->options.tls_psk != NULL ? "nbds" : "nbd";
	AUTO_FREE char *path = NULL;
	int error;

	place->socket_path =
		line->options.socket != NULL ? realpath(line->options.socket, NULL) : default_socket(line, failure);
	if (place->socket_path == NULL && line->options.socket != NULL)
		place->socket_path = strdup(line->options.socket); /* as a rule it isn't there yet */
	if (place->socket_path == NULL)
		return failure->code < 0 ? failure->code : fail(failure, -ENOMEM, "out of memory");
	error = nbd_listen_unix(place->socket_path, &place->fd, failure);
	if (error < 0)
		return error;
	path = encode_path(place->socket_path);
	if (path == NULL || asprintf(&place->uri, "%s+unix:///%s?socket=%s", scheme, name, path) < 0) {
		place->uri = NULL;
		return fail(failure, -ENOMEM, "out of memory");
	}
	return 0;
}

static int listen_tcp(const struct command_line *line, struct place *place, struct failure *failure)
{
	const struct options *options = &line->options;
	const char *address = options->address != NULL ? options->address : "127.0.0.1";
	const char *scheme = options->tls_certificates != NULL || options->tls_psk != NULL ? "nbds" : "nbd";
	bool is_v6 = strchr(address, ':') != NULL;
	uint16_t port;
	int error =
		nbd_listen_tcp(address, options->has_port ? options->port : DEFAULT_PORT, &place->fd, &port, failure);

	if (error < 0)
		return error;
	if (asprintf(&place->uri, "%s://%s%s%s:%u/%s", scheme, is_v6 ? "[" : "", address, is_v6 ? "]" : "", port,
		     line->argument_count > 0 ? line->arguments[0] : "") < 0) {
		place->uri = NULL;
		return fail(failure, -ENOMEM, "out of memory");
	}
	return 0;
}

/* The writing end is out of the way of the descriptor that nbdkit gets the socket as. */
static int make_ready_pipe(int *ret_read_fd, int *ret_write_fd, struct failure *failure)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return fail_errno(failure, -errno, "pipe");
	*ret_read_fd = ends[0];
	*ret_write_fd = fcntl(ends[1], F_DUPFD_CLOEXEC, READY_FD_LEAST);
	(void)close(ends[1]);
	return *ret_write_fd < 0 ? fail_errno(failure, -errno, "pipe") : 0;
}

/* True when nbdkit is ready for clients; false when it has ended before, or a signal asks it to. */
static bool wait_until_ready(int ready_fd, const sigset_t *signals)
{
	sigset_t asking = *signals;

	(void)sigdelset(&asking, SIGCHLD); /* may be about a child of whoever became us; the end of ours is the end of the pipe */
	AUTO_CLOSE int signal_fd = signalfd(-1, &asking, SFD_CLOEXEC); /* only looked at: signals stay pending */
	struct pollfd fds[] = {{.fd = ready_fd, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};

	while (poll(fds, sizeof(fds) / sizeof(fds[0]), -1) < 0 && errno == EINTR)
		continue;
	return (fds[0].revents & POLLIN) != 0;
}

static void say_where(const struct command_line *line, const struct place *place)
{
	if (line->options.json) {
		json_t *document = json_object();

		json_put(document, "uri", json_text(place->uri));
		json_put(document, "socket", json_text(place->socket_path));
		json_print(document);
	} else {
		output_safe(stdout, place->uri);
		(void)putchar('\n');
	}
	(void)fflush(stdout); /* whoever waits for the line goes on; what can't be printed is found out at the end */
}

/* How it ended, and whether it was asked to. */
struct ending {
	int status; /* of waitpid() */
	bool is_asked;
};

/* Until it has ended; a signal that is meant for us goes on to it. */
static struct ending wait_for_end(pid_t pid, const sigset_t *signals)
{
	static const struct timespec patience = {.tv_sec = 1};
	struct ending ending = {.is_asked = false};
	bool is_told = false;

	while (waitpid(pid, &ending.status, WNOHANG) == 0) {
		int signal_number = sigtimedwait(signals, NULL, &patience);

		if (signal_number < 0 && ending.is_asked && !is_told) {
			report_line("wherry: waiting for clients to leave; another signal ends it at once");
			is_told = true;
		}
		if (signal_number < 0 || signal_number == SIGCHLD)
			continue;
		(void)kill(pid, ending.is_asked ? SIGKILL : SIGTERM);
		ending.is_asked = true;
	}
	return ending;
}

static enum exit_status judge_ending(const struct ending *ending)
{
	if (ending->is_asked || (WIFEXITED(ending->status) && WEXITSTATUS(ending->status) == 0))
		return STATUS_DONE;
	if (WIFSIGNALED(ending->status))
		report_line("wherry: nbdkit: ended by signal %d", WTERMSIG(ending->status));
	return STATUS_FAILED;
}

/* Whether to try again: not when it does nothing else. */
static bool may_start_again(const struct ending *ending, double aborted_at[ABORTS_MOST], unsigned *aborts)
{
	double *oldest = &aborted_at[*aborts % ABORTS_MOST];
	double now = units_monotonic_seconds();
	bool is_often = *aborts >= ABORTS_MOST && now - *oldest < ABORTS_SECONDS;

	if (ending->is_asked || !WIFSIGNALED(ending->status) || WTERMSIG(ending->status) != SIGABRT || is_often)
		return false;
	*oldest = now;
	++*aborts;
	report_line("wherry: nbdkit has ended by an assertion, as it does before 1.34 when a client hangs up too early; it is started again");
	return true;
}

/* Started, and again where that helps. The listening socket is closed as soon as nobody will answer on it. */
static enum exit_status serve(const struct command_line *line, struct nbd_server *server, struct place *place, const sigset_t *signals)
{
	double aborted_at[ABORTS_MOST] = {0};
	unsigned aborts = 0;
	struct failure failure = {.code = 0};
	AUTO_CLOSE int ready_fd = -1;
	bool is_ready;
	struct ending ending;
	pid_t pid;

	if (make_ready_pipe(&ready_fd, &server->ready_fd, &failure) < 0)
		return report_failure(&failure);
	if (nbd_server_start(server, place->fd, &pid, &failure) < 0) {
		(void)close(take_fd(&server->ready_fd));
		(void)close(take_fd(&place->fd));
		return report_failure(&failure);
	}
	(void)close(take_fd(&server->ready_fd));
	is_ready = wait_until_ready(ready_fd, signals);
	if (is_ready)
		say_where(line, place);
	ending = wait_for_end(pid, signals);
	while (is_ready && may_start_again(&ending, aborted_at, &aborts)) {
		if (nbd_server_start(server, place->fd, &pid, &failure) < 0)
			return report_failure(&failure);
		ending = wait_for_end(pid, signals);
	}
	(void)close(take_fd(&place->fd)); /* nobody shall wait for an answer */
	if (!is_ready && judge_ending(&ending) == STATUS_FAILED)
		report_line("wherry: nbdkit: could not start; it says why above");
	return is_ready ? judge_ending(&ending) : ending.is_asked ? STATUS_DONE : STATUS_FAILED;
}

static enum exit_status run_serve_nbd(const struct command_line *line)
{
	AUTO(leave_place) struct place place = {.fd = -1};
	struct nbd_server server = {.reference = line->argument_count > 0 ? line->arguments[0] : NULL,
				    .options = &line->options,
				    .ready_fd = -1};
	struct failure failure = {.code = 0};
	enum exit_status status = check_options(line);
	sigset_t signals;
	int error;

	if (status != STATUS_DONE)
		return status;
	if (check_reference(line, &failure) < 0 || nbd_server_check(&failure) < 0 ||
	    nbd_server_check_tls(&line->options, &failure) < 0)
		return report_failure(&failure);
	if (line->options.address != NULL || line->options.has_port)
		error = listen_tcp(line, &place, &failure);
	else
		error = listen_unix(line, &place, &failure);
	if (error < 0)
		return report_failure(&failure);
	(void)sigemptyset(&signals);
	(void)sigaddset(&signals, SIGINT);
	(void)sigaddset(&signals, SIGTERM);
	(void)sigaddset(&signals, SIGHUP);
	(void)sigaddset(&signals, SIGCHLD);
	(void)sigprocmask(SIG_BLOCK, &signals, NULL);
	status = serve(line, &server, &place, &signals);
	if (place.socket_path != NULL)
		nbd_remove_socket(place.socket_path);
	return status;
}

const struct verb verb_serve_nbd = {
	.name = "serve-nbd",
	.summary = "offer disks and images over NBD",
	.description =
		"Runs nbdkit with wherry's plugin, in the foreground, and prints the URI. With REF just that is "
		"offered, without "
		"it everything: by export names web01 (live, for writing), web01@3 and web01@latest (images, "
		"read-only), "
		"web01@3/2 (partition 2); 'nbdinfo --list URI' lists them.\n\n"
		"Listens on a unix socket that only the same user can use, or with --address or --port on TCP. A live "
		"disk is "
		"taken while a client is connected to it: rounds, and others, wait or are refused so long. Several "
		"clients may "
		"connect to the same.\n\n"
		"With --scratch each export name of an image has a disk of its own for writing, and web01@3:NAME one "
		"more for "
		"each NAME; what is written is in temporary files in $TMPDIR or /var/tmp, the image stays as it is.\n\n"
		"A first SIGINT or SIGTERM ends it when the requests under way are done; what clients flushed is "
		"durable in any "
		"case.",
	.argument_count = 1,
	.arguments = {{.name = "REF", .kind = ARGUMENT_REFERENCE, .optional = true}},
	.option_count = 10,
	.options = {{.id = OPTION_SOCKET},
		    {.id = OPTION_ADDRESS},
		    {.id = OPTION_PORT},
		    {.id = OPTION_TLS_CERTIFICATES},
		    {.id = OPTION_TLS_PSK},
		    {.id = OPTION_INSECURE},
		    {.id = OPTION_SCRATCH},
		    {.id = OPTION_READ_ONLY},
		    {.id = OPTION_CACHE},
		    {.id = OPTION_RW}},
	.example_count = 4,
	.examples = {{"wherry serve-nbd", "everything in the store, on a unix socket"},
		     {"wherry serve-nbd web01@latest --scratch", "the newest image, to boot it for a test"},
		     {"wherry serve-nbd --address 0.0.0.0 --tls-psk keys.psk", "to other hosts"},
		     {"wherry serve-nbd web01 --port 0 --json", "on loopback, at any free port"}},
	.run = run_serve_nbd,
};
