/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both sockets are of SOCK_SEQPACKET, so that a message is one send and one receive, as with /dev/fuse. Three things can happen while
 * an answer is waited for: the answer; a question for bytes of the image; the end of the program, which closes its ends of the sockets.
 *
 * Time: a question has `timeout_seconds`, in which the time that the source takes doesn't count; but with ten times
 * that, the source's included, it ends all the same: a program that reads the image in circles is no better than one
 * that computes in circles.
 *
 * States: not running (pid 0) → fuse_peer_ensure() → running → anything unexpected, or fuse_peer_end() → not running.
 */
#include "fsreader/fuse_peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "fsreader/helper_path.h"
#include "fsreader/image_link.h"
#include "fsreader/sandbox.h"

enum {
	MOST_ARGUMENTS = 16,
	PROTOCOL_MINOR = 19, /* what libfuse 2.9 knows; newer ones keep to what they are told */
	INIT_IN_BYTES = 16,  /* of that minor */
	INIT_OUT_LEAST_BYTES = 24,
	MESSAGE_BYTES = FUSE_PEER_MOST_READ_BYTES + 4096,
	PROGRAM_BYTES = 768 << 20,
	MOST_CRASHES = 5, /* in CRASH_SECONDS */
	CRASH_SECONDS = 60,
	PATIENCE = 10, /* times the timeout, the source's time included */
};

#define PRELOAD_NAME "wherry-image.so"

struct fuse_peer {
	char *what, *name;
	char *argv[MOST_ARGUMENTS + 1];
	struct fsreader_source source;
	unsigned timeout_seconds;

	pid_t pid; /* 0: not running */
	int pidfd, fuse_fd, image_fd;
	uint64_t generation, unique;
	double crashes[MOST_CRASHES]; /* when the last ones were, oldest first */

	double deadline, last_deadline; /* of the question that is being answered */
	uint8_t *message;		/* MESSAGE_BYTES */
	uint8_t *image_buffer;		/* IMAGE_LINK_MOST_BYTES, behind a struct image_answer */
};

/* ---- making ---- */

static int copy_texts(struct fuse_peer *peer, const struct fuse_peer_params *params)
{
	peer->what = strdup(params->what);
	peer->name = strdup(params->name);
	if (peer->what == NULL || peer->name == NULL)
		return -ENOMEM;
	for (unsigned i = 0; params->argv[i] != NULL; i++) {
		if (i == MOST_ARGUMENTS)
			return -E2BIG;
		peer->argv[i] = strdup(params->argv[i]);
		if (peer->argv[i] == NULL)
			return -ENOMEM;
	}
	return 0;
}

int fuse_peer_make(const struct fuse_peer_params *params, struct fuse_peer **ret_peer, struct failure *failure)
{
	struct fuse_peer *peer = calloc(1, sizeof(*peer));
	int error;

	if (peer == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", params->what);
	peer->pidfd = peer->fuse_fd = peer->image_fd = -1;
	peer->source = *params->source;
	peer->timeout_seconds = params->timeout_seconds == 0 ? FUSE_PEER_TIMEOUT_SECONDS : params->timeout_seconds;
	for (unsigned i = 0; i < MOST_CRASHES; i++)
		peer->crashes[i] = -2.0 * CRASH_SECONDS;
	peer->message = malloc(MESSAGE_BYTES);
	peer->image_buffer = malloc(IMAGE_LINK_MOST_BYTES);
	error = peer->message == NULL || peer->image_buffer == NULL ? -ENOMEM : copy_texts(peer, params);
	if (error < 0) {
		fuse_peer_free(peer);
		return fail_errno(failure, error, "%s: %s", params->what, params->name);
	}
	*ret_peer = peer;
	return 0;
}

void fuse_peer_end(struct fuse_peer *peer)
{
	if (peer->fuse_fd >= 0)
		(void)close(peer->fuse_fd); /* a socket: nothing is lost */
	if (peer->image_fd >= 0)
		(void)close(peer->image_fd);
	if (peer->pid != 0)
		sandbox_kill_and_reap(peer->pid, peer->pidfd);
	peer->pid = 0;
	peer->pidfd = peer->fuse_fd = peer->image_fd = -1;
}

void fuse_peer_free(struct fuse_peer *peer)
{
	if (peer == NULL)
		return;
	fuse_peer_end(peer);
	for (unsigned i = 0; i < MOST_ARGUMENTS; i++)
		free(peer->argv[i]);
	free(peer->what);
	free(peer->name);
	free(peer->message);
	free(peer->image_buffer);
	free(peer);
}

bool fuse_peer_is_alive(const struct fuse_peer *peer)
{
	return peer->pid != 0;
}

uint64_t fuse_peer_generation(const struct fuse_peer *peer)
{
	return peer->generation;
}

/* Something that a program in order doesn't do: it is ended, and that is remembered. */
__attribute__((format(printf, 3, 4))) static int give_up(struct fuse_peer *peer, struct failure *failure,
							 const char *format, ...)
{
	char why[256];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(why, sizeof(why), format, arguments); /* cut when longer */
	va_end(arguments);
	memmove(peer->crashes, peer->crashes + 1, sizeof(peer->crashes) - sizeof(peer->crashes[0]));
	peer->crashes[MOST_CRASHES - 1] = units_monotonic_seconds();
	fuse_peer_end(peer);
	return fail(failure, -EIO, "%s: %s %s; the file system may be damaged", peer->what, peer->name, why);
}

/* Its end of a socket is closed: why? */
static int give_up_lost(struct fuse_peer *peer, struct failure *failure)
{
	char how[SANDBOX_END_BYTES];

	return give_up(peer, failure, "was lost: it %s", sandbox_describe_end(peer->pidfd, how));
}

/* ---- messages ---- */

/* What may come behind an image_question, and is read for the program. An error of the source is its answer, and the source has a message for us. */
static int serve_image(struct fuse_peer *peer, struct failure *failure)
{
	struct image_question question = {.len_bytes = 0};
	struct image_answer answer = {.error = 0};
	struct iovec parts[2] = {{&answer, sizeof(answer)}, {peer->image_buffer, 0}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t len_bytes = recv(peer->image_fd, &question, sizeof(question), 0);
	double before = units_monotonic_seconds();

	if (len_bytes < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (len_bytes == 0)
		return give_up_lost(peer, failure);
	if (len_bytes != sizeof(question) || question.operation != IMAGE_READ || question.len_bytes == 0 ||
	    question.len_bytes > IMAGE_LINK_MOST_BYTES || question.off_bytes > peer->source.size_bytes ||
	    question.len_bytes > peer->source.size_bytes - question.off_bytes)
		return give_up(peer, failure, "asked for what there isn't");
	answer.error = peer->source.read(peer->source.opaque, peer->image_buffer, question.len_bytes,
					 question.off_bytes, failure);
	parts[1].iov_len = answer.error == 0 ? question.len_bytes : 0;
	peer->deadline += units_monotonic_seconds() - before;
	/* It waits for this with nothing in its socket, so there is room. */
	if (sendmsg(peer->image_fd, &message, MSG_NOSIGNAL) < 0)
		return give_up(peer, failure, "didn't take what it had asked for");
	return 0;
}

/* Until there is something on the FUSE socket; the image is served meanwhile. */
static int wait_for_answer(struct fuse_peer *peer, struct failure *failure)
{
	for (;;) {
		struct pollfd sockets[2] = {{.fd = peer->image_fd, .events = POLLIN},
					    {.fd = peer->fuse_fd, .events = POLLIN}};
		double now = units_monotonic_seconds(),
		       end = peer->deadline < peer->last_deadline ? peer->deadline : peer->last_deadline;
		int ready = now >= end ? 0 : poll(sockets, 2, (int)((end - now) * 1000) + 1);
		int error = 0;

		if (ready < 0 && errno != EINTR)
			return give_up(peer, failure, "can't be waited for: %s", strerror(errno));
		if (ready == 0 && now >= end)
			return give_up(peer, failure, "took longer than %u seconds", peer->timeout_seconds);
		if (ready > 0 && sockets[0].revents != 0)
			error = serve_image(peer, failure);
		else if (ready > 0 && sockets[1].revents != 0)
			return 0;
		if (error < 0)
			return error;
	}
}

static int send_question(struct fuse_peer *peer, const struct fuse_question *question, struct failure *failure)
{
	struct fuse_in_header header = {.opcode = question->opcode, .nodeid = question->node, .unique = ++peer->unique};
	struct iovec parts[3] = {{&header, sizeof(header)},
				 {(void *)question->head, question->head_bytes},
				 {(void *)question->tail, question->tail_bytes}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
	ssize_t sent;

	header.len = (uint32_t)(sizeof(header) + question->head_bytes + question->tail_bytes);
	do
		sent = sendmsg(peer->fuse_fd, &message, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	/* EAGAIN: it doesn't read what it is told, with a buffer full of it. */
	if (sent < 0)
		return errno == EAGAIN ? give_up(peer, failure, "doesn't listen") : give_up_lost(peer, failure);
	return 0;
}

/* What a reader of files may say; programs that are confused say all kinds of things. */
static bool errno_is_an_answer(int code)
{
	return code == ENOENT || code == ENOTDIR || code == EISDIR || code == ELOOP || code == ENODATA ||
	       code == ENOSYS || code == EINVAL || code == ENAMETOOLONG || code == EOPNOTSUPP;
}

static int read_answer(struct fuse_peer *peer, size_t least_bytes, size_t most_bytes, size_t *ret_len_bytes,
		       struct failure *failure)
{
	struct fuse_out_header header;
	ssize_t len_bytes = recv(peer->fuse_fd, peer->message, MESSAGE_BYTES, MSG_TRUNC);

	if (len_bytes < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (len_bytes <= 0)
		return give_up_lost(peer, failure);
	if ((size_t)len_bytes < sizeof(header) || len_bytes > MESSAGE_BYTES)
		return give_up(peer, failure, "answered %zd bytes", len_bytes);
	memcpy(&header, peer->message, sizeof(header));
	if (header.unique != peer->unique || header.len != (size_t)len_bytes || header.error > 0 ||
	    header.error < -4095)
		return give_up(peer, failure, "answered something else");
	*ret_len_bytes = (size_t)len_bytes - sizeof(header);
	if (header.error != 0 && errno_is_an_answer(-header.error))
		return header.error;
	if (header.error != 0)
		return fail(failure, -EIO, "%s: %s can't read it: %s; the file system may be damaged", peer->what,
			    peer->name, strerror(-header.error));
	if (*ret_len_bytes < least_bytes || *ret_len_bytes > most_bytes)
		return give_up(peer, failure, "answered %zu bytes", *ret_len_bytes);
	return 0;
}

int fuse_peer_ask(struct fuse_peer *peer, const struct fuse_question *question, size_t least_bytes, size_t most_bytes,
		  const void **ret_data, size_t *ret_len_bytes, struct failure *failure)
{
	int error = peer->pid == 0 ? fail(failure, -EIO, "%s: %s has ended", peer->what, peer->name)
				   : send_question(peer, question, failure);

	peer->deadline = units_monotonic_seconds() + peer->timeout_seconds;
	peer->last_deadline = units_monotonic_seconds() + (double)PATIENCE * peer->timeout_seconds;
	if (error < 0)
		return error;
	do {
		error = wait_for_answer(peer, failure);
		if (error == 0)
			error = read_answer(peer, least_bytes, most_bytes, ret_len_bytes, failure);
	} while (error == -EAGAIN);
	if (error == 0 && ret_data != NULL)
		*ret_data = peer->message + sizeof(struct fuse_out_header);
	return error;
}

void fuse_peer_tell(struct fuse_peer *peer, const struct fuse_question *question)
{
	if (peer->pid != 0)
		(void)send_question(peer, question, NULL);
}

/* ---- starting ---- */

struct ends {
	int fuse[2], image[2], file; /* [0] ours, [1] the program's */
};

static void close_ends(struct ends *ends)
{
	const int fds[] = {ends->fuse[0], ends->fuse[1], ends->image[0], ends->image[1], ends->file};

	for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			(void)close(fds[i]); /* sockets and an empty file */
}

/* Ours never block. The program's do: it has nothing else to do than to wait for us. */
static int make_sockets(int ret_sockets[2])
{
	int bytes = 2 * MESSAGE_BYTES;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret_sockets) < 0)
		return -errno;
	for (unsigned i = 0; i < 2; i++)
		(void)setsockopt(ret_sockets[i], SOL_SOCKET, SO_SNDBUF, &bytes,
				 sizeof(bytes)); /* the least that hosts allow is enough */
	return fcntl(ret_sockets[0], F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

static int make_ends(struct ends *ret_ends, uint64_t image_bytes)
{
	int error = make_sockets(ret_ends->fuse);

	if (error == 0)
		error = make_sockets(ret_ends->image);
	if (error < 0)
		return error;
	ret_ends->file = memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (ret_ends->file < 0 || ftruncate(ret_ends->file, (off_t)image_bytes) < 0)
		return -errno;
	/* Nothing may be kept in it: it is memory that no limit counts. */
	if (fcntl(ret_ends->file, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		return -errno;
	return 0;
}

static int spawn(struct fuse_peer *peer, struct failure *failure)
{
	AUTO(close_ends) struct ends ends = {.fuse = {-1, -1}, .image = {-1, -1}, .file = -1};
	char preload[PATH_MAX], variable[PATH_MAX + sizeof("LD_PRELOAD=")];
	int error = helper_path_find(PRELOAD_NAME, preload, failure);
	struct sandbox_params params = {.kind = SANDBOX_TOOL,
					.program = peer->argv[0],
					.argv = peer->argv,
					.fd_count = 3,
					.memory_bytes = PROGRAM_BYTES,
					.environment = (char *[]){variable, NULL}};

	if (error < 0)
		return error;
	(void)snprintf(variable, sizeof(variable), "LD_PRELOAD=%s", preload); /* fits */
	error = make_ends(&ends, peer->source.size_bytes);
	if (error < 0)
		return fail_errno(failure, error, "%s: sockets to %s", peer->what, peer->name);
	params.fds = (const int[][2]){
		{ends.fuse[1], IMAGE_LINK_TALK}, {ends.image[1], IMAGE_LINK_SOCKET}, {ends.file, IMAGE_LINK_FILE}};
	error = sandbox_spawn(&params, &peer->pid, &peer->pidfd, failure);
	if (error < 0) {
		peer->pid = 0;
		peer->pidfd = -1;
		return error;
	}
	peer->fuse_fd = take_fd(&ends.fuse[0]);
	peer->image_fd = take_fd(&ends.image[0]);
	peer->generation++;
	return 0;
}

static int agree(struct fuse_peer *peer, struct failure *failure)
{
	const struct fuse_init_in in = {
		.major = FUSE_KERNEL_VERSION, .minor = PROTOCOL_MINOR, .max_readahead = FUSE_PEER_MOST_READ_BYTES};
	const struct fuse_question question = {.opcode = FUSE_INIT, .head = &in, .head_bytes = INIT_IN_BYTES};
	const void *data;
	uint32_t major;
	size_t len_bytes;
	int error = fuse_peer_ask(peer, &question, INIT_OUT_LEAST_BYTES, 256, &data, &len_bytes, failure);

	if (error < 0 && peer->pid != 0)
		return give_up(peer, failure, "doesn't speak FUSE");
	if (error < 0)
		return error;
	memcpy(&major, data, sizeof(major));
	return major == FUSE_KERNEL_VERSION ? 0 : give_up(peer, failure, "speaks another FUSE: version %u", major);
}

int fuse_peer_ensure(struct fuse_peer *peer, struct failure *failure)
{
	int error;

	if (peer->pid != 0)
		return 0;
	if (units_monotonic_seconds() - peer->crashes[0] < CRASH_SECONDS)
		return fail(failure, -EIO, "%s: %s was lost %d times within a minute; the file system may be damaged",
			    peer->what, peer->name, MOST_CRASHES);
	error = spawn(peer, failure);
	return error < 0 ? error : agree(peer, failure);
}
