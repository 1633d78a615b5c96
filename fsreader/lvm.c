/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Labels are looked for on all sources; each text that is found, once however many copies there are, goes to a worker
 * of its own; of each group the newest description counts. Then physical volumes are tied to sources, and every area of
 * every volume is held against the size of its source: what is read later needs no check.
 *
 * A copy of the metadata that is damaged is said, and the next one is taken, as LVM does.
 */
#include "fsreader/lvm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"
#include "fsreader/ext_link.h"
#include "fsreader/lvm_group.h"
#include "fsreader/lvm_label.h"
#include "fsreader/lvm_wire.h"
#include "fsreader/sandbox.h"

enum { MOST_TEXTS = 2 * LVM_MOST_SOURCES, WORKER_BYTES = 1 << 30, TIMEOUT_SECONDS = 10 };
#define WORKER_NAME "wherry-fsreader"

struct text_copy {
	char *text;
	size_t len_bytes;
	char uuid[LVM_UUID_BYTES]; /* of the physical volume it was first seen on, for messages */
};

struct scanning {
	const struct fsreader_source *sources;
	const struct lvm_options *options;
	size_t label_count, text_count, texts_bytes;
	struct lvm_label *labels;
	const struct fsreader_source **label_sources;
	struct text_copy *texts;
	struct lvm_scan *scan;
};

/* ---- what is on the sources ---- */

static bool is_known_text(const struct scanning *scanning, const char *text, size_t len_bytes)
{
	for (size_t i = 0; i < scanning->text_count; i++)
		if (scanning->texts[i].len_bytes == len_bytes && memcmp(scanning->texts[i].text, text, len_bytes) == 0)
			return true;
	return false;
}

/* One that can't be read is said; but -EIO and its kin of the source are as good as damage here: another copy may be readable. */
static void gather_text(struct scanning *scanning, size_t number, unsigned area)
{
	const struct lvm_label *label = &scanning->labels[number];
	struct failure failure = {.code = 0};
	AUTO_FREE char *text = NULL;
	size_t len_bytes = 0;

	if (lvm_label_read_text(scanning->label_sources[number], label, area, &text, &len_bytes, &failure) < 0) {
		notice(scanning->options->notices, NOTICE_WARNING, "%s: %s", scanning->options->what, failure.message);
		return;
	}
	if (text == NULL || is_known_text(scanning, text, len_bytes) || scanning->text_count == MOST_TEXTS)
		return;
	if (scanning->texts_bytes + len_bytes > 4 * (size_t)LVM_TEXT_MOST_BYTES) {
		notice(scanning->options->notices, NOTICE_WARNING,
		       "%s: too much LVM metadata: that of physical volume %s is left out", scanning->options->what,
		       label->uuid);
		return;
	}
	scanning->texts_bytes += len_bytes;
	memcpy(scanning->texts[scanning->text_count].uuid, label->uuid, sizeof(label->uuid));
	scanning->texts[scanning->text_count].len_bytes = len_bytes;
	scanning->texts[scanning->text_count++].text = take_ptr(text);
}

static const struct fsreader_source *find_source(const struct scanning *scanning, const char *uuid)
{
	for (size_t i = 0; i < scanning->label_count; i++)
		if (strcmp(scanning->labels[i].uuid, uuid) == 0)
			return scanning->label_sources[i];
	return NULL;
}

/* One that can't be read may have been none; the others are looked at all the same. */
static void look_at_source(struct scanning *scanning, const struct fsreader_source *source)
{
	struct lvm_label *label = &scanning->labels[scanning->label_count];
	struct failure why = {.code = 0};
	int found = lvm_label_read(source, label, &why);

	if (found < 0)
		notice(scanning->options->notices, NOTICE_WARNING, "%s: looking for LVM: %s", scanning->options->what,
		       why.message);
	if (found <= 0)
		return;
	if (find_source(scanning, label->uuid) != NULL) {
		notice(scanning->options->notices, NOTICE_WARNING,
		       "%s: physical volume %s is there twice; the first is taken", scanning->options->what,
		       label->uuid);
		return;
	}
	scanning->label_sources[scanning->label_count] = source;
	for (unsigned area = 0; area < label->area_count; area++)
		gather_text(scanning, scanning->label_count, area);
	scanning->label_count++;
}

/* ---- the worker ---- */

struct worker {
	pid_t pid;
	int pidfd;
	int socket;
	double deadline;
};

static void worker_end(struct worker *worker)
{
	if (worker->socket >= 0)
		(void)close(worker->socket); /* nothing is lost with it */
	if (worker->pid > 0)
		sandbox_kill_and_reap(worker->pid, worker->pidfd);
}

static int worker_start(struct worker *ret_worker, unsigned timeout_seconds, struct failure *failure)
{
	AUTO_FREE char *program = NULL;
	int sockets[2], error = ext_link_find_program(&program, failure);
	struct sandbox_params params = {.kind = SANDBOX_WORKER,
					.program = program,
					.argv = (char *[]){(char[]){WORKER_NAME}, (char[]){"lvm"}, NULL},
					.fd_count = 1,
					.memory_bytes = WORKER_BYTES,
					.cpu_seconds = timeout_seconds};

	if (error < 0)
		return error;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) < 0)
		return fail_errno(failure, -errno, "%s: socketpair", WORKER_NAME);
	(void)fcntl(sockets[0], F_SETFL, O_NONBLOCK); /* can't fail; the worker has nothing else to do than to wait */
	params.fds = &(const int[2]){sockets[1], EXT_SOCKET_FD};
	ret_worker->socket = sockets[0];
	ret_worker->deadline = units_monotonic_seconds() + timeout_seconds;
	error = sandbox_spawn(&params, &ret_worker->pid, &ret_worker->pidfd, failure);
	(void)close(sockets[1]); /* the worker has its own */
	return error;
}

static int worker_wait(const struct worker *worker, short events, struct failure *failure)
{
	double left_seconds = worker->deadline - units_monotonic_seconds();
	struct pollfd wait = {.fd = worker->socket, .events = events};
	int ready = left_seconds <= 0 ? 0 : poll(&wait, 1, (int)(left_seconds * 1000) + 1);

	if (ready < 0 && errno != EINTR)
		return fail_errno(failure, -errno, "%s: poll", WORKER_NAME);
	if (ready == 0)
		return fail(failure, -EIO, "LVM metadata: not understood in time");
	return 0;
}

static int worker_send(const struct worker *worker, const void *data, size_t len_bytes, struct failure *failure)
{
	const uint8_t *at = data;
	int error = 0;

	while (len_bytes > 0 && error == 0) {
		ssize_t sent = send(worker->socket, at, len_bytes, MSG_NOSIGNAL);

		if (sent < 0 && errno != EAGAIN && errno != EINTR)
			return fail(failure, -EIO, "LVM metadata: %s crashed", WORKER_NAME);
		if (sent > 0) {
			at += sent;
			len_bytes -= (size_t)sent;
		} else {
			error = worker_wait(worker, POLLOUT, failure);
		}
	}
	return error;
}

static int worker_receive(const struct worker *worker, void *data, size_t len_bytes, struct failure *failure)
{
	uint8_t *at = data;
	int error = 0;

	while (len_bytes > 0 && error == 0) {
		ssize_t received = recv(worker->socket, at, len_bytes, 0);

		if (received == 0 || (received < 0 && errno != EAGAIN && errno != EINTR))
			return fail(failure, -EIO, "LVM metadata: %s crashed", WORKER_NAME);
		if (received > 0) {
			at += received;
			len_bytes -= (size_t)received;
		} else {
			error = worker_wait(worker, POLLIN, failure);
		}
	}
	return error;
}

static int worker_ask(const struct worker *worker, const struct scanning *scanning, const struct text_copy *copy,
		      struct failure *failure)
{
	uint8_t number[4];
	int error;

	bytes_put_le32(number, (uint32_t)scanning->label_count);
	error = worker_send(worker, number, sizeof(number), failure);
	for (size_t i = 0; i < scanning->label_count && error == 0; i++)
		error = worker_send(worker, scanning->labels[i].uuid, LVM_UUID_BYTES - 1, failure);
	bytes_put_le32(number, (uint32_t)copy->len_bytes);
	if (error == 0)
		error = worker_send(worker, number, sizeof(number), failure);
	return error < 0 ? error : worker_send(worker, copy->text, copy->len_bytes, failure);
}

/* Room for the answer grows with what has come, not with what it says it will be. */
static int worker_answer(const struct worker *worker, uint8_t **ret_data, size_t *ret_len_bytes,
			 struct failure *failure)
{
	AUTO_FREE uint8_t *data = NULL;
	size_t len_bytes, done_bytes = 0;
	uint8_t number[4];
	int error = worker_receive(worker, number, sizeof(number), failure);

	if (error < 0)
		return error;
	len_bytes = bytes_get_le32(number);
	if (len_bytes > LVM_WIRE_MOST_BYTES)
		return fail(failure, -EIO, "LVM metadata: an answer of %zu bytes", len_bytes);
	while (done_bytes < len_bytes) {
		size_t step_bytes = len_bytes - done_bytes < 1 << 20 ? len_bytes - done_bytes : 1 << 20;
		uint8_t *grown = realloc(data, done_bytes + step_bytes);

		if (grown == NULL)
			return fail(failure, -ENOMEM, "LVM metadata: out of memory");
		data = grown;
		error = worker_receive(worker, data + done_bytes, step_bytes, failure);
		if (error < 0)
			return error;
		done_bytes += step_bytes;
	}
	*ret_data = take_ptr(data);
	*ret_len_bytes = len_bytes;
	return 0;
}

static int read_answer(const uint8_t *data, size_t len_bytes, struct lvm_group **ret_group, struct failure *failure)
{
	struct byte_reader reader = byte_reader_over(data, len_bytes);
	uint64_t code = byte_reader_varint(&reader);
	AUTO_FREE char *message = NULL;

	if (code == 0 && !reader.bad)
		return lvm_wire_get_group(&reader, ret_group, failure);
	message = byte_reader_string(&reader, FAILURE_MESSAGE_BYTES - 1);
	return fail(failure, -EINVAL, "%s", message == NULL ? "LVM metadata: no answer" : message);
}

static int understand(const struct scanning *scanning, const struct text_copy *copy, struct lvm_group **ret_group,
		      struct failure *failure)
{
	AUTO(worker_end) struct worker worker = {.pidfd = -1, .socket = -1};
	unsigned timeout_seconds =
		scanning->options->timeout_seconds == 0 ? TIMEOUT_SECONDS : scanning->options->timeout_seconds;
	AUTO_FREE uint8_t *answer = NULL;
	size_t len_bytes = 0;
	int error = worker_start(&worker, timeout_seconds, failure);

	if (error == 0)
		error = worker_ask(&worker, scanning, copy, failure);
	if (error == 0)
		error = worker_answer(&worker, &answer, &len_bytes, failure);
	return error < 0 ? error : read_answer(answer, len_bytes, ret_group, failure);
}

/* ---- groups ---- */

static struct lvm_group *find_group(struct lvm_scan *scan, const char *uuid)
{
	for (size_t i = 0; i < scan->group_count; i++)
		if (strcmp(scan->groups[i].uuid, uuid) == 0)
			return &scan->groups[i];
	return NULL;
}

/* `group` moves into the scan, where its volumes point to it. */
static void place_group(struct lvm_group *place, struct lvm_group *group)
{
	*place = *group;
	free(group);
	for (size_t i = 0; i < place->volume_count; i++)
		place->volumes[i].group = place;
}

static void keep_newest(struct lvm_scan *scan, struct lvm_group *group)
{
	struct lvm_group *known = find_group(scan, group->uuid);

	if (known == NULL) {
		place_group(&scan->groups[scan->group_count++], group);
	} else if (known->seqno < group->seqno) {
		lvm_group_empty(known);
		place_group(known, group);
	} else {
		lvm_group_free(group);
	}
}

static void drop_map(struct lvm_volume *volume)
{
	free(take_ptr(volume->segments));
	free(take_ptr(volume->areas));
	volume->segment_count = volume->area_count = 0;
}

/* What keeps a segment from being read, as one line in `ret_why`; false: nothing. */
static bool segment_is_out_of_reach(const struct lvm_volume *volume, const struct lvm_segment *segment,
				    char ret_why[256])
{
	uint64_t area_bytes = lvm_segment_area_bytes(segment);

	for (uint32_t i = 0; i < segment->area_count; i++) {
		const struct lvm_area *area = &volume->areas[segment->first_area + i];
		const struct lvm_pv *pv = &volume->group->pvs[area->pv];

		if (pv->source == NULL)
			return snprintf(ret_why, 256, "physical volume %s is missing", pv->uuid) > 0;
		if (area->off_bytes + area_bytes > pv->source->size_bytes) /* no overflow: lvm_wire.c looked */
			return snprintf(ret_why, 256,
					"physical volume %s is shorter than its volume group takes it to be",
					pv->uuid) > 0;
	}
	return false;
}

static int check_reach(struct lvm_volume *volume, struct failure *failure)
{
	char why[256];

	for (size_t i = 0; i < volume->segment_count; i++) {
		if (!segment_is_out_of_reach(volume, &volume->segments[i], why))
			continue;
		volume->problem = strdup(why);
		if (volume->problem == NULL)
			return fail(failure, -ENOMEM, "LVM metadata: out of memory");
		drop_map(volume);
	}
	return 0;
}

static void tie_sources(const struct scanning *scanning, struct lvm_group *group)
{
	group->missing_count = 0;
	for (size_t i = 0; i < group->pv_count; i++) {
		struct lvm_pv *pv = &group->pvs[i];

		pv->source = pv->is_missing ? NULL : find_source(scanning, pv->uuid);
		group->missing_count += pv->source == NULL;
	}
	if (group->missing_count > 0)
		notice(scanning->options->notices, NOTICE_WARNING,
		       "%s: volume group %s: %zu of %zu physical volumes are missing", scanning->options->what,
		       group->name, group->missing_count, group->pv_count);
}

static void tell_apart(struct lvm_scan *scan, size_t number)
{
	struct lvm_group *group = &scan->groups[number];

	for (size_t i = 0; i < number; i++) {
		char name[LVM_NAME_BYTES];

		if (strcmp(scan->groups[i].name, group->name) != 0)
			continue;
		(void)snprintf(name, sizeof(name), "%.*s-%s", LVM_NAME_BYTES - LVM_UUID_BYTES - 1, group->name,
			       group->uuid); /* fits */
		memcpy(group->name, name, sizeof(name));
		return;
	}
}

static int finish_groups(struct scanning *scanning, struct failure *failure)
{
	struct lvm_scan *scan = scanning->scan;

	for (size_t i = 0; i < scan->group_count; i++) {
		tell_apart(scan, i);
		tie_sources(scanning, &scan->groups[i]);
		for (size_t j = 0; j < scan->groups[i].volume_count; j++) {
			int error = check_reach(&scan->groups[i].volumes[j], failure);

			if (error < 0)
				return error;
		}
	}
	return 0;
}

/* A text that isn't understood is said; a worker that can't be started is an error, for then nothing would be found anywhere. */
static int understand_all(struct scanning *scanning, struct failure *failure)
{
	for (size_t i = 0; i < scanning->text_count; i++) {
		struct lvm_group *group = NULL;
		struct failure why = {.code = 0};
		int error = understand(scanning, &scanning->texts[i], &group, &why);

		if (error == 0)
			keep_newest(scanning->scan, group);
		else if (error == -EINVAL || error == -EIO)
			notice(scanning->options->notices, NOTICE_WARNING, "%s: physical volume %s: %s",
			       scanning->options->what, scanning->texts[i].uuid, why.message);
		else
			return fail_from(failure, &why);
	}
	return 0;
}

/* ---- the scan ---- */

static void scanning_release(struct scanning *scanning)
{
	for (size_t i = 0; i < scanning->text_count; i++)
		free(scanning->texts[i].text);
	free(scanning->texts);
	free(scanning->labels);
	free(scanning->label_sources);
	lvm_scan_free(scanning->scan);
}

static int scanning_prepare(struct scanning *scanning, size_t count, struct failure *failure)
{
	scanning->labels = calloc(count + 1, sizeof(*scanning->labels));
	scanning->label_sources = calloc(count + 1, sizeof(*scanning->label_sources));
	scanning->texts = calloc(MOST_TEXTS, sizeof(*scanning->texts));
	scanning->scan = calloc(1, sizeof(*scanning->scan));
	if (scanning->scan != NULL)
		scanning->scan->groups = calloc(MOST_TEXTS, sizeof(*scanning->scan->groups));
	if (scanning->labels == NULL || scanning->label_sources == NULL || scanning->texts == NULL ||
	    scanning->scan == NULL || scanning->scan->groups == NULL)
		return fail(failure, -ENOMEM, "LVM metadata: out of memory");
	return 0;
}

int lvm_scan(const struct fsreader_source *sources, size_t count, const struct lvm_options *options,
	     struct lvm_scan **ret_scan, struct failure *failure)
{
	AUTO(scanning_release) struct scanning scanning = {.sources = sources, .options = options};
	int error;

	if (count > LVM_MOST_SOURCES)
		return fail(failure, -E2BIG, "%s: more than %d places to look for LVM", options->what,
			    LVM_MOST_SOURCES);
	error = scanning_prepare(&scanning, count, failure);
	for (size_t i = 0; i < count && error == 0; i++)
		look_at_source(&scanning, &sources[i]);
	if (error == 0)
		error = understand_all(&scanning, failure);
	if (error == 0)
		error = finish_groups(&scanning, failure);
	if (error == 0)
		*ret_scan = take_ptr(scanning.scan);
	return error;
}

void lvm_scan_free(struct lvm_scan *scan)
{
	if (scan == NULL)
		return;
	for (size_t i = 0; scan->groups != NULL && i < scan->group_count; i++)
		lvm_group_empty(&scan->groups[i]);
	free(scan->groups);
	free(scan);
}

int lvm_is_physical_volume(const struct fsreader_source *source, struct failure *failure)
{
	struct lvm_label label;

	return lvm_label_read(source, &label, failure);
}

/* ---- content ---- */

static const struct lvm_segment *segment_at(const struct lvm_volume *volume, uint64_t off_bytes)
{
	size_t low = 0, high = volume->segment_count;

	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (volume->segments[middle].lv_off_bytes <= off_bytes)
			low = middle;
		else
			high = middle;
	}
	return &volume->segments[low];
}

/* Where byte `skip_bytes` of a segment lies, and how many of those behind it lie there too, `*len_bytes` at most. */
static struct lvm_area locate(const struct lvm_volume *volume, const struct lvm_segment *segment, uint64_t skip_bytes,
			      uint64_t *len_bytes)
{
	const struct lvm_area *areas = &volume->areas[segment->first_area];
	uint64_t position_bytes = skip_bytes + segment->skip_bytes, stripe, in_stripe_bytes;
	struct lvm_area area;

	if (segment->area_count == 1)
		return (struct lvm_area){.pv = areas[0].pv, .off_bytes = areas[0].off_bytes + skip_bytes};
	stripe = position_bytes / segment->stripe_bytes;
	in_stripe_bytes = position_bytes % segment->stripe_bytes;
	area = areas[stripe % segment->area_count];
	area.off_bytes += stripe / segment->area_count * segment->stripe_bytes + in_stripe_bytes;
	if (*len_bytes > segment->stripe_bytes - in_stripe_bytes)
		*len_bytes = segment->stripe_bytes - in_stripe_bytes;
	return area;
}

static int read_mapped(const struct lvm_volume *volume, const struct lvm_segment *segment, uint8_t *buffer,
		       uint64_t len_bytes, uint64_t skip_bytes, struct failure *failure)
{
	int error = 0;

	while (len_bytes > 0 && error == 0) {
		uint64_t step_bytes = len_bytes;
		struct lvm_area area = locate(volume, segment, skip_bytes, &step_bytes);
		const struct fsreader_source *source = volume->group->pvs[area.pv].source;

		error = source->read(source->opaque, buffer, step_bytes, area.off_bytes, failure);
		buffer += step_bytes;
		skip_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	return error;
}

static int volume_read(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	const struct lvm_volume *volume = opaque;
	uint8_t *at = buffer;
	int error = 0;

	while (len_bytes > 0 && error == 0) {
		const struct lvm_segment *segment = segment_at(volume, off_bytes);
		uint64_t skip_bytes = off_bytes - segment->lv_off_bytes;
		size_t step_bytes =
			segment->len_bytes - skip_bytes < len_bytes ? segment->len_bytes - skip_bytes : len_bytes;

		if (segment->kind == LVM_MAPPED)
			error = read_mapped(volume, segment, at, step_bytes, skip_bytes, failure);
		else if (segment->kind == LVM_ZERO)
			memset(at, 0, step_bytes);
		else
			error = fail(failure, -EIO, "%s/%s: offset %llu: LVM has nothing there, by its own account",
				     volume->group->name, volume->name, (unsigned long long)off_bytes);
		at += step_bytes;
		off_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	return error;
}

struct fsreader_source lvm_source(const struct lvm_volume *volume)
{
	return (struct fsreader_source){
		.read = volume_read, .opaque = (void *)volume, .size_bytes = volume->size_bytes, .sector_bytes = 512};
}
