/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A socket by which other processes ask whoever has a live disk open for an image of it.
 *
 *     > image CONSISTENCY BYTES LABEL\n   a number (enum store_consistency): no better than that; LABEL may be empty
 *     > details                          BYTES of them
 *     < ok NUMBER\n   or   failed ERRNO MESSAGE\n
 *
 * It stands in the store's locks/, so that who may write there may ask. Only the holder of the disk's lease makes it,
 * and replaces one that a crash left. One request a connection, one at a time. Neither side waits for the other without
 * end: a request has TALK_SECONDS to come, and who closes the disk doesn't wait for one that is coming.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "store/disk_log.h"
#include "store/disk_internal.h"

enum {
	LINE_BYTES = STORE_LABEL_MOST_BYTES + 64,
	REQUEST_BYTES = LINE_BYTES + LOG_DETAILS_MOST_BYTES,
	ANSWER_BYTES = FAILURE_MESSAGE_BYTES + 64,
	TALK_SECONDS = 10,
	ACCEPT_PAUSE_MS = 100,
	WORK_SECONDS = 3600
};

struct disk_control {
	struct disk *disk;
	char *path;
	int listen_fd;
	int stop_fd; /* becomes readable: end */
	pthread_t thread;
};

static int fill_address(struct sockaddr_un *address, const char *path, struct failure *failure)
{
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(address->sun_path))
		return fail_errno(failure, -ENAMETOOLONG, "socket %s", path);
	memcpy(address->sun_path, path, strlen(path) + 1);
	return 0;
}

static void set_patience(int fd, time_t seconds)
{
	const struct timeval patience = {.tv_sec = seconds};

	(void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)); /* without, it only waits longer */
}

/* What the other end says. */
struct listening {
	int fd;
	int stop_fd;	 /* readable: no time for that any more; -1: always time */
	double deadline; /* units_monotonic_seconds(): for all of it, however small the pieces are in which it comes */
	size_t length, most_bytes;
	char *text; /* owned; most_bytes and a NUL */
};

static void listening_end(struct listening *listening)
{
	free(listening->text);
}

/* False: it is time to end, or the other end went away, is too slow, or says too much. */
static bool receive_more(struct listening *listening)
{
	struct pollfd events[] = {{.fd = listening->fd, .events = POLLIN}, {.fd = listening->stop_fd, .events = POLLIN}};
	double left = listening->deadline - units_monotonic_seconds();
	ssize_t got;

	if (left <= 0 || listening->length == listening->most_bytes)
		return false;
	if (poll(events, 2, (int)(left * 1000) + 1) < 0 && errno != EINTR)
		return false;
	if (events[1].revents != 0)
		return false;
	got = recv(listening->fd, listening->text + listening->length, listening->most_bytes - listening->length,
		   MSG_DONTWAIT);
	if (got < 0)
		return errno == EINTR || errno == EAGAIN;
	listening->length += (size_t)got;
	listening->text[listening->length] = '\0';
	return got > 0;
}

/* Up to a newline, which is replaced. What has come behind it stays there; *ret_end is where that begins. */
static bool receive_line(struct listening *listening, size_t most_bytes, size_t *ret_end)
{
	const char *newline;

	while ((newline = memchr(listening->text, '\n', listening->length)) == NULL)
		if (listening->length > most_bytes || !receive_more(listening))
			return false;
	*ret_end = (size_t)(newline - listening->text) + 1;
	listening->text[*ret_end - 1] = '\0';
	return strlen(listening->text) == *ret_end - 1;
}

static bool receive_bytes(struct listening *listening, size_t end)
{
	while (listening->length < end)
		if (!receive_more(listening))
			return false;
	return listening->length == end;
}

static bool send_all(int fd, const char *text)
{
	size_t left = strlen(text);

	while (left > 0) {
		ssize_t sent = send(fd, text, left, MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return false;
		text += sent;
		left -= (size_t)sent;
	}
	return true;
}

/* ------------------------------------------------------------------ the side that has the disk */

/* What is asked for; the texts are in `listening`. False: not a request. */
static bool receive_request(struct listening *listening, struct store_image_params *ret_params)
{
	unsigned consistency;
	size_t details_bytes, at;
	int label_at = 0;

	if (!receive_line(listening, LINE_BYTES, &at) ||
	    sscanf(listening->text, "image %u %zu %n", &consistency, &details_bytes, &label_at) != 2 || label_at == 0 ||
	    consistency > STORE_FUZZY || details_bytes > LOG_DETAILS_MOST_BYTES ||
	    !receive_bytes(listening, at + details_bytes) || strlen(listening->text + at) != details_bytes)
		return false;
	*ret_params = (struct store_image_params){
		.consistency = (enum store_consistency)consistency,
		.label = listening->text[label_at] == '\0' ? NULL : listening->text + label_at,
		.details = details_bytes == 0 ? NULL : listening->text + at};
	return true;
}

static void answer(struct disk_control *control, int fd)
{
	AUTO(listening_end) struct listening listening = {.fd = fd,
							  .stop_fd = control->stop_fd,
							  .deadline = units_monotonic_seconds() + TALK_SECONDS,
							  .most_bytes = REQUEST_BYTES,
							  .text = malloc(REQUEST_BYTES + 1)};
	struct failure failure = {.code = 0};
	struct store_image_params params;
	char text[ANSWER_BYTES];
	uint32_t number = 0;
	int result;

	set_patience(fd, TALK_SECONDS);
	if (listening.text == NULL || !receive_request(&listening, &params))
		return;
	result = disk_create_image(control->disk, &params, &number, &failure);
	if (result == 0)
		(void)snprintf(text, sizeof(text), "ok %" PRIu32 "\n", number);
	else
		(void)snprintf(text, sizeof(text), "failed %d %s\n", -result, failure.message);
	(void)send_all(fd, text); /* who asked may have gone: the image is there all the same */
}

static void *serve(void *opaque)
{
	struct disk_control *control = opaque;

	for (;;) {
		struct pollfd events[] = {{.fd = control->stop_fd, .events = POLLIN},
					  {.fd = control->listen_fd, .events = POLLIN}};

		if (poll(events, 2, -1) < 0)
			continue; /* a signal */
		if (events[0].revents != 0)
			return NULL;
		AUTO_CLOSE int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			answer(control, fd);
		else
			(void)poll(events, 1, ACCEPT_PAUSE_MS); /* no descriptors, for instance: who asks waits there */
	}
}

int disk_control_start(struct disk *disk, const char *socket_path, struct disk_control **ret_control,
		       struct failure *failure)
{
	struct disk_control *control = calloc(1, sizeof(*control));
	struct sockaddr_un address;
	int result;

	if (control == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", disk->name);
	control->disk = disk;
	control->path = strdup(socket_path);
	control->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	control->stop_fd = eventfd(0, EFD_CLOEXEC);
	result = control->path == NULL || control->listen_fd < 0 || control->stop_fd < 0
			 ? fail_errno(failure, -errno, "disk %s: a socket for requests", disk->name)
			 : fill_address(&address, socket_path, failure);
	if (result == 0) {
		(void)unlink(socket_path); /* of somebody who crashed: the lease is ours */
		if (bind(control->listen_fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
		    chmod(socket_path, 0600) < 0 || listen(control->listen_fd, 8) < 0)
			result = fail_errno(failure, -errno, "disk %s: a socket for requests", disk->name);
	}
	if (result == 0) {
		result = -pthread_create(&control->thread, NULL, serve, control);
		if (result < 0)
			(void)fail_errno(failure, result, "disk %s: a thread for requests", disk->name);
	}
	if (result < 0) {
		if (control->listen_fd >= 0)
			(void)close(control->listen_fd);
		if (control->stop_fd >= 0)
			(void)close(control->stop_fd);
		free(control->path);
		free(control);
		return result;
	}
	*ret_control = control;
	return 0;
}

void disk_control_stop(struct disk_control *control)
{
	const uint64_t one = 1;

	if (control == NULL)
		return;
	(void)!write(control->stop_fd, &one, sizeof(one)); /* an eventfd takes it */
	(void)pthread_join(control->thread, NULL);
	(void)unlink(control->path); /* the lease is still ours */
	(void)close(control->listen_fd);
	(void)close(control->stop_fd);
	free(control->path);
	free(control);
}

/* ------------------------------------------------------------------ the side that asks */

static int parse_answer(const char *line, const char *disk, uint32_t *ret_number, struct failure *failure)
{
	unsigned number, code;
	int message_at = 0;

	if (sscanf(line, "ok %u", &number) == 1) {
		*ret_number = number;
		return 0;
	}
	if (sscanf(line, "failed %u %n", &code, &message_at) == 1 && message_at > 0 && code > 0 && code < 4096)
		return fail(failure, -(int)code, "%s", line + message_at);
	return fail(failure, -EPROTO, "disk %s: whoever has it open answers what can't be understood", disk);
}

int disk_control_request_image(const char *socket_path, const char *disk, const struct store_image_params *params,
			       uint32_t *ret_number, struct failure *failure)
{
	AUTO(listening_end) struct listening listening = {.stop_fd = -1,
							  .deadline = units_monotonic_seconds() + WORK_SECONDS,
							  .most_bytes = ANSWER_BYTES,
							  .text = malloc(ANSWER_BYTES + 1)};
	const char *details = params->details != NULL ? params->details : "";
	struct sockaddr_un address;
	char line[LINE_BYTES];
	size_t end;
	int result = fill_address(&address, socket_path, failure);

	if (result < 0)
		return result;
	if (listening.text == NULL)
		return fail_errno(failure, -ENOMEM, "disk %s", disk);
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail_errno(failure, -errno, "disk %s: a socket", disk);
	set_patience(fd, WORK_SECONDS);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		if (errno == ENOENT || errno == ECONNREFUSED)
			return -ENOENT;
		return fail_errno(failure, -errno, "disk %s: can't ask whoever has it open", disk);
	}
	(void)snprintf(line, sizeof(line), "image %u %zu %s\n", (unsigned)params->consistency, strlen(details),
		       params->label != NULL ? params->label : "");
	listening.fd = fd;
	if (!send_all(fd, line) || !send_all(fd, details) || !receive_line(&listening, ANSWER_BYTES, &end))
		return fail(failure, -EIO,
			    "disk %s: whoever has it open did not answer; 'wherry images %s' shows whether there is a "
			    "new one",
			    disk, disk);
	return parse_answer(listening.text, disk, ret_number, failure);
}
