/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A question takes 10 to 20 microseconds, most of it two switches of context. So answers are made to be worth it:
 * listings with attributes and places of content, in batches (ext_protocol.h).
 *
 * What ends the process: that it ends by itself, an answer that can't be, and that it takes too long. The time that the
 * source took for reading isn't its fault, and not counted; but what it may read for one question is bounded, else a
 * process that was taken over could keep us reading for ever.
 *
 * A process that ends again and again on the same question would be started again and again: five times a minute, then
 * questions fail at once until the minute is over.
 *
 * A user-mode Linux (kernel/kernel_process.h) has one socket more, on which it reads its disk whenever it likes.
 *
 * Nothing is held but `lock` of this link while the source is read: reading takes its time, but others have nobody else to ask.
 */
#include "fsreader/ext_link.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "fsreader/kernel/kernel_process.h"
#include "fsreader/sandbox.h"

#define PROGRAM "wherry-fsreader"

enum {
	STARTS_MOST = 5,
	STARTS_SECONDS = 60,
	SOCKET_BUFFER_BYTES = 2 * EXT_PAYLOAD_MOST_BYTES,
	MEMORY_BYTES = 1 << 30,
};

static const uint64_t READS_MOST_BYTES = (uint64_t)8 << 30; /* for one question: many times the largest journal */

struct ext_link {
	const struct fsreader_source *source;
	char *what;
	const struct notices *notices;
	double timeout_seconds;
	const struct kernel_type *kernel; /* NULL: wherry-fsreader */
	struct overlay *overlay;	  /* of a kernel */
	struct fsreader_source overlaid;

	pthread_mutex_t lock; /* all below */
	bool is_running;
	bool is_announced; /* that its journal was replayed */
	pid_t pid;
	int pidfd;
	int socket;
	int image_socket;	    /* of a kernel */
	double starts[STARTS_MOST]; /* when, the last ones in turn */
	unsigned start_count;
	uint8_t payload[EXT_PAYLOAD_MOST_BYTES];
	uint8_t data[KERNEL_BUFFER_BYTES]; /* EXT_READ_MOST_BYTES is less */
};

/* One question, while it is open. */
struct exchange {
	double begun_seconds;
	double source_seconds; /* that the source took */
	uint64_t read_bytes;
	struct failure source_failure; /* the first */
};

/* ------------------------------------------------------------- the program */

static int try_path(const char *folder, const char *rest, char **ret_path)
{
	char *path;

	if (asprintf(&path, "%s%s", folder, rest) < 0)
		return -ENOMEM;
	if (access(path, X_OK) == 0) {
		*ret_path = path;
		return 0;
	}
	free(path);
	return -ENOENT;
}

/* Beside this program in a tree that was built, or installed in any place. */
static int find_near(char **ret_path)
{
	static const char *const places[] = {"/" PROGRAM, "/../fsreader/" PROGRAM, "/../libexec/wherry/" PROGRAM};
	char own[PATH_MAX];
	ssize_t len_bytes = readlink("/proc/self/exe", own, sizeof(own) - 1);
	char *slash;
	int error = -ENOENT;

	if (len_bytes <= 0)
		return -ENOENT;
	own[len_bytes] = '\0';
	slash = strrchr(own, '/');
	if (slash == NULL)
		return -ENOENT;
	*slash = '\0';
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]) && error == -ENOENT; i++)
		error = try_path(own, places[i], ret_path);
	return error;
}

int ext_link_find_program(char **ret_path, struct failure *failure)
{
	const char *named = getenv("WHERRY_FSREADER");
	int error;

	if (named != NULL && *named != '\0') {
		error = try_path(named, "", ret_path);
		return error < 0 ? fail_errno(failure, error, "%s (WHERRY_FSREADER)", named) : 0;
	}
	error = find_near(ret_path);
	if (error == -ENOENT)
		error = try_path(WHERRY_LIBEXEC_DIR, "/" PROGRAM, ret_path);
	if (error == -ENOENT)
		return fail(failure, -ENOENT,
			    PROGRAM ": not found beside this program nor in " WHERRY_LIBEXEC_DIR
				    "; install wherry as a whole");
	return error < 0 ? fail(failure, error, "fsreader: out of memory") : 0;
}

/* ------------------------------------------------------------- the process */

static void end_locked(struct ext_link *link)
{
	if (!link->is_running)
		return;
	(void)close(link->socket);
	if (link->kernel != NULL)
		(void)close(link->image_socket);
	sandbox_kill_and_reap(link->pid, link->pidfd);
	link->is_running = false;
}

/* Its socket has closed: why? */
static int fail_of_end_locked(struct ext_link *link, struct failure *failure)
{
	char how[SANDBOX_END_BYTES];

	(void)sandbox_describe_end(link->pidfd, how);
	end_locked(link);
	return fail(failure, -EIO, "%s: the process that read it was %s%s; is the file system damaged?", link->what,
		    strncmp(how, "killed", 6) == 0 ? "" : "lost: ", how);
}

static int prepare_socket(int fd, double timeout_seconds, struct failure *failure)
{
	static const int buffer_bytes = SOCKET_BUFFER_BYTES;
	struct timeval tick = {.tv_sec = timeout_seconds < 2 ? 0 : 1, .tv_usec = timeout_seconds < 2 ? 100000 : 0};

	(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes)); /* the default does, mostly */
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof(tick)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tick, sizeof(tick)) < 0)
		return fail_errno(failure, -errno, "fsreader: a socket");
	return 0;
}

static int spawn_kernel_locked(struct ext_link *link, struct failure *failure)
{
	struct kernel_process process;
	int error = kernel_process_start(link->kernel, link->source->size_bytes, &process, failure);

	if (error < 0)
		return error;
	link->pid = process.pid;
	link->pidfd = process.pidfd;
	link->socket = process.talk_fd;
	link->image_socket = process.image_fd;
	link->is_running = true;
	return 0;
}

static int spawn_locked(struct ext_link *link, struct failure *failure)
{
	static char program_name[] = PROGRAM, job[] = "ext";
	static char *const argv[] = {program_name, job, NULL};
	static const int buffer_bytes = SOCKET_BUFFER_BYTES;
	AUTO_FREE char *program = NULL;
	AUTO_CLOSE int ours = -1;
	AUTO_CLOSE int theirs = -1;
	int pair[2];
	int error = ext_link_find_program(&program, failure);

	if (error < 0)
		return error;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return fail_errno(failure, -errno, "fsreader: a socket");
	ours = pair[0];
	theirs = pair[1];
	(void)setsockopt(theirs, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes)); /* as above */
	error = prepare_socket(ours, link->timeout_seconds, failure);
	if (error == 0)
		error = sandbox_spawn(&(struct sandbox_params){.kind = SANDBOX_WORKER,
							       .program = program,
							       .argv = argv,
							       .fds = (const int[][2]){{theirs, EXT_SOCKET_FD}},
							       .fd_count = 1,
							       .memory_bytes = MEMORY_BYTES},
				      &link->pid, &link->pidfd, failure);
	if (error < 0)
		return error;
	link->socket = take_fd(&ours);
	link->is_running = true;
	return 0;
}

/* ---------------------------------------------------------------- messages */

static bool is_time_over(const struct ext_link *link, const struct exchange *exchange)
{
	return units_monotonic_seconds() - exchange->begun_seconds - exchange->source_seconds > link->timeout_seconds;
}

static int fail_of_time_locked(struct ext_link *link, struct failure *failure)
{
	end_locked(link);
	return fail(failure, -EIO, "%s: no answer about a file within %.0f seconds; is the file system damaged?",
		    link->what, link->timeout_seconds);
}

static bool is_to_be_tried_again(int code)
{
	return code == EAGAIN || code == EWOULDBLOCK || code == EINTR;
}

static int send_locked(struct ext_link *link, const struct exchange *exchange, struct iovec *parts, size_t part_count,
		       struct failure *failure)
{
	const struct msghdr message = {.msg_iov = parts, .msg_iovlen = part_count};

	while (sendmsg(link->socket, &message, MSG_NOSIGNAL) < 0) {
		if (!is_to_be_tried_again(errno))
			return fail_of_end_locked(link, failure);
		if (is_time_over(link, exchange))
			return fail_of_time_locked(link, failure);
	}
	return 0;
}

static int serve_kernel_locked(struct ext_link *link, struct exchange *exchange, struct failure *failure)
{
	double before_seconds = units_monotonic_seconds();
	uint64_t read_bytes = 0;
	int error = kernel_process_serve(link->image_socket, link->overlay, link->source->size_bytes, link->data,
					 &read_bytes, &exchange->source_failure);

	exchange->source_seconds += units_monotonic_seconds() - before_seconds;
	exchange->read_bytes += read_bytes;
	if (error == -EAGAIN)
		return 0;
	if (error == -EPIPE)
		return fail_of_end_locked(link, failure);
	if (error < 0 || exchange->read_bytes > READS_MOST_BYTES) {
		end_locked(link);
		return fail(failure, -EIO, "%s: its reader wanted to read what isn't there, or too much", link->what);
	}
	return 0;
}

/* Until a kernel has answered; meanwhile it is given what it reads. */
static int wait_for_kernel_locked(struct ext_link *link, struct exchange *exchange, struct failure *failure)
{
	int error = 0;

	while (error == 0) {
		struct pollfd sockets[2] = {{.fd = link->image_socket, .events = POLLIN},
					    {.fd = link->socket, .events = POLLIN}};
		int ready = poll(sockets, 2, 1000);

		if (ready < 0 && errno != EINTR)
			error = fail_errno(failure, -errno, "fsreader: poll");
		else if (ready > 0 && sockets[0].revents != 0)
			error = serve_kernel_locked(link, exchange, failure);
		else if (ready > 0)
			return 0;
		if (error == 0 && is_time_over(link, exchange))
			error = fail_of_time_locked(link, failure);
	}
	return error;
}

static int receive_locked(struct ext_link *link, struct exchange *exchange, struct ext_answer *ret_answer,
			  struct failure *failure)
{
	struct iovec parts[2] = {{.iov_base = ret_answer, .iov_len = sizeof(*ret_answer)},
				 {.iov_base = link->payload, .iov_len = sizeof(link->payload)}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t len_bytes;
	int error = link->kernel == NULL ? 0 : wait_for_kernel_locked(link, exchange, failure);

	if (error < 0)
		return error;
	while ((len_bytes = recvmsg(link->socket, &message, 0)) < 0) {
		if (!is_to_be_tried_again(errno))
			return fail_of_end_locked(link, failure);
		if (is_time_over(link, exchange))
			return fail_of_time_locked(link, failure);
	}
	if (len_bytes == 0)
		return fail_of_end_locked(link, failure);
	if ((size_t)len_bytes < sizeof(*ret_answer) || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ||
	    ret_answer->payload_bytes != (size_t)len_bytes - sizeof(*ret_answer)) {
		end_locked(link);
		return fail(failure, -EIO, "%s: its reader sent what is no message", link->what);
	}
	return 0;
}

/* Reads for the process what it asked for. What the source can't read is told it, and kept for whoever asked the
 * question. */
static int serve_locked(struct ext_link *link, struct exchange *exchange, const struct ext_answer *want,
			struct failure *failure)
{
	struct ext_data head = {.len_bytes = want->count};
	struct iovec parts[2] = {{.iov_base = &head, .iov_len = sizeof(head)},
				 {.iov_base = link->data, .iov_len = want->count}};
	double before_seconds = units_monotonic_seconds();

	if (want->count == 0 || want->count > EXT_READ_MOST_BYTES || want->payload_bytes != 0 ||
	    exchange->read_bytes > READS_MOST_BYTES || want->position > link->source->size_bytes ||
	    want->count > link->source->size_bytes - want->position) {
		end_locked(link);
		return fail(failure, -EIO, "%s: its reader wanted to read what isn't there, or too much", link->what);
	}
	exchange->read_bytes += want->count;
	head.error = link->source->read(link->source->opaque, link->data, want->count, want->position,
					&exchange->source_failure);
	exchange->source_seconds += units_monotonic_seconds() - before_seconds;
	if (is_time_over(link, exchange))
		return fail_of_time_locked(link, failure);
	if (head.error < 0)
		head.len_bytes = 0;
	return send_locked(link, exchange, parts, head.error < 0 ? 1 : 2, failure);
}

/* ---------------------------------------------------------------- questions */

/* What a process may say has gone wrong. */
static int known_error(int code)
{
	static const int known[] = {-ENOENT, -ENOTDIR, -EISDIR, -EINVAL, -ENODATA, -ERANGE,    -ENOTSUP,
				    -ESTALE, -EIO,     -ENOKEY, -ENOMEM, -ENXIO,   -EOPNOTSUPP};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (known[i] == code)
			return code;
	}
	return -EIO;
}

/* What it says may end on a terminal, and it may have been taken over. */
static void make_harmless(char *text)
{
	for (; *text != '\0'; text++)
		if ((unsigned char)*text < ' ' || *text == '\177')
			*text = '?';
}

static int fail_of_answer(const struct ext_link *link, const struct exchange *exchange, const struct ext_answer *answer,
			  struct failure *failure)
{
	size_t text_bytes = answer->payload_bytes < FAILURE_MESSAGE_BYTES ? answer->payload_bytes : FAILURE_MESSAGE_BYTES - 1;
	char text[FAILURE_MESSAGE_BYTES];

	if (exchange->source_failure.code < 0) /* the cause of it all, most likely */
		return fail_from(failure, &exchange->source_failure);
	memcpy(text, link->payload, text_bytes);
	text[text_bytes] = '\0';
	make_harmless(text);
	return fail(failure, known_error(answer->error), "%s: %s", link->what, text);
}

static int take_answer(const struct ext_link *link, const struct ext_answer *answer, struct ext_reply *ret_reply,
		       struct failure *failure)
{
	uint8_t *payload = malloc((size_t)answer->payload_bytes + 1);

	if (payload == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	memcpy(payload, link->payload, answer->payload_bytes);
	payload[answer->payload_bytes] = 0;
	*ret_reply = (struct ext_reply){.count = answer->count,
					.position = answer->position,
					.payload_bytes = answer->payload_bytes,
					.payload = payload};
	return 0;
}

static int ask_locked(struct ext_link *link, const struct ext_question *question, struct ext_reply *ret_reply,
		      struct failure *failure)
{
	struct exchange exchange = {.begun_seconds = units_monotonic_seconds()};
	struct ext_question copy = *question;
	struct iovec part = {.iov_base = &copy, .iov_len = sizeof(copy)};
	struct ext_answer answer;
	int error = send_locked(link, &exchange, &part, 1, failure);

	while (error == 0) {
		error = receive_locked(link, &exchange, &answer, failure);
		if (error < 0 || answer.kind != EXT_WANTS)
			break;
		error = serve_locked(link, &exchange, &answer, failure);
	}
	if (error < 0)
		return error;
	if (answer.kind != EXT_ANSWERS || answer.error > 0) {
		end_locked(link);
		return fail(failure, -EIO, "%s: its reader sent what is no answer", link->what);
	}
	if (answer.error < 0)
		return fail_of_answer(link, &exchange, &answer, failure);
	if (exchange.source_failure.code < 0) /* it got along without, perhaps with less to show */
		notice(link->notices, NOTICE_WARNING, "%s: %s", link->what, exchange.source_failure.message);
	return take_answer(link, &answer, ret_reply, failure);
}

void ext_reply_free(struct ext_reply *reply)
{
	free(reply->payload);
	reply->payload = NULL;
}

static int have_opened_locked(struct ext_link *link, struct failure *failure)
{
	AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
	struct ext_question question = {.kind = EXT_OPEN, .position = link->source->size_bytes};
	int error;

	if (link->kernel != NULL)
		question.name_bytes = (uint32_t)snprintf(question.name, sizeof(question.name), "%s%s%s",
							 link->kernel->mount, link->kernel->options == NULL ? "" : " ",
							 link->kernel->options == NULL ? "" : link->kernel->options);
	error = ask_locked(link, &question, &reply, failure);

	if (error < 0) {
		end_locked(link);
		return error;
	}
	if (reply.count > 0 && !link->is_announced) {
		notice(link->notices, NOTICE_INFO,
		       "%s: was not cleanly unmounted; shown with the %" PRIu32 " blocks that its journal has",
		       link->what, reply.count);
		link->is_announced = true;
	}
	return 0;
}

static int start_locked(struct ext_link *link, struct failure *failure)
{
	double now_seconds = units_monotonic_seconds();
	double *oldest = &link->starts[link->start_count % STARTS_MOST];
	int error;

	if (link->start_count >= STARTS_MOST && now_seconds - *oldest < STARTS_SECONDS)
		return fail(failure, -EIO,
			    "%s: the process that reads it has ended %d times within a minute, and is not started "
			    "again before that is over; is the file system damaged?",
			    link->what, STARTS_MOST);
	*oldest = now_seconds;
	link->start_count++;
	error = link->kernel == NULL ? spawn_locked(link, failure) : spawn_kernel_locked(link, failure);
	return error < 0 ? error : have_opened_locked(link, failure);
}

int ext_link_ask(struct ext_link *link, const struct ext_question *question, struct ext_reply *ret_reply,
		 struct failure *failure)
{
	WITH_LOCK(&link->lock);
	int error = link->is_running ? 0 : start_locked(link, failure);

	return error < 0 ? error : ask_locked(link, question, ret_reply, failure);
}

int ext_link_distrust(struct ext_link *link, struct failure *failure, const char *format, ...)
{
	char why[FAILURE_MESSAGE_BYTES];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(why, sizeof(why), format, arguments); /* cut off when too long */
	va_end(arguments);
	WITH_LOCK(&link->lock);
	end_locked(link);
	return fail(failure, -EIO, "%s: its reader told of %s", link->what, why);
}

/* ------------------------------------------------------------ open and close */

int ext_link_open(const struct fsreader_source *source, const struct kernel_type *kernel,
		  const struct fsreader_options *options, struct ext_link **ret_link, struct failure *failure)
{
	struct ext_link *link = calloc(1, sizeof(*link));
	int error;

	if (link == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	(void)pthread_mutex_init(&link->lock, NULL); /* can't fail with default attributes */
	link->source = source;
	link->kernel = kernel;
	link->notices = options->notices;
	link->timeout_seconds = options->timeout_seconds;
	link->what = strdup(options->what);
	error = link->what == NULL ? fail(failure, -ENOMEM, "fsreader: out of memory") : 0;
	if (error == 0 && kernel != NULL)
		error = overlay_make(source, options->scratch_dir, &link->overlay, failure);
	if (error == 0) {
		WITH_LOCK(&link->lock);
		link->overlaid = kernel == NULL ? *source : overlay_source(link->overlay);
		error = start_locked(link, failure);
	}
	if (error < 0) {
		ext_link_close(link);
		return error;
	}
	*ret_link = link;
	return 0;
}

void ext_link_close(struct ext_link *link)
{
	if (link == NULL)
		return;
	end_locked(link); /* nobody else is left */
	overlay_free(link->overlay);
	(void)pthread_mutex_destroy(&link->lock);
	free(link->what);
	free(link);
}

const struct fsreader_source *ext_link_source(const struct ext_link *link)
{
	return &link->overlaid;
}

const char *ext_link_what(const struct ext_link *link)
{
	return link->what;
}
