/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker says where content lies, and whoever reads the file reads it there, next to all others.
 *
 * Most files have all their pieces in their node. Of others, the map comes in windows: EXT_MAP from some byte on gives
 * what fits an answer. A file keeps the last few, so that readers in different places don't take them from each other.
 * The file's lock is held while one is fetched: who reads the same file wants the same window, most likely.
 *
 * Inline data is read with the first byte that somebody wants. Content that has no places of its own (in a kernel: compressed, and all of
 * file systems that don't tell) is asked for as it is read.
 */
#include "fsreader/ext_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "fsreader/ext_cache.h"

enum { WINDOWS = 4 };

struct window {
	uint64_t first_bytes, end_bytes; /* of the file: all there is in between is in `pieces`; the same when empty */
	size_t piece_count;
	struct ext_piece *pieces;
	uint64_t used_at; /* by the file's own clock */
};

struct ext_file {
	struct ext_link *link;
	uint64_t ino;
	uint64_t size_bytes;
	bool is_inline, is_by_reading;
	pthread_mutex_t lock; /* all below */
	struct window windows[WINDOWS];
	uint64_t clock;
	bool has_inline;
	struct ext_reply inline_data;
};

/* A range of a file that is all the same. */
struct span {
	uint64_t end_bytes;
	bool is_data;
	bool is_escaped;
	uint64_t place_bytes; /* of its first byte */
	uint64_t skip_bytes;  /* from the beginning of its piece */
};

/* -------------------------------------------------------------------- open */

static int take_pieces(struct ext_file *file, const struct ext_node *node)
{
	struct window *window = &file->windows[0];

	window->pieces = calloc(EXT_NODE_PIECES, sizeof(*window->pieces));
	if (window->pieces == NULL)
		return -ENOMEM;
	memcpy(window->pieces, node->pieces, node->piece_count * sizeof(*window->pieces));
	window->piece_count = node->piece_count;
	window->end_bytes = UINT64_MAX;
	return 0;
}

int ext_file_open(struct ext_link *link, const struct ext_node *node, struct ext_file **ret_file,
		  struct failure *failure)
{
	struct ext_file *file;

	if ((node->flags & EXT_NODE_ENCRYPTED) != 0)
		return fail(failure, -ENOKEY, "%s: inode %" PRIu64 " is encrypted, and its key is not in the image",
			    ext_link_what(link), node->attr.ino);
	file = calloc(1, sizeof(*file));
	if (file == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	(void)pthread_mutex_init(&file->lock, NULL); /* can't fail with default attributes */
	file->link = link;
	file->ino = node->attr.ino;
	file->size_bytes = node->attr.size_bytes;
	file->is_inline = (node->flags & EXT_NODE_INLINE) != 0;
	file->is_by_reading = (node->flags & EXT_NODE_BY_READING) != 0;
	if ((node->flags & EXT_NODE_MAPPED) != 0 && take_pieces(file, node) < 0) {
		ext_file_close(file);
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	}
	*ret_file = file;
	return 0;
}

void ext_file_close(struct ext_file *file)
{
	if (file == NULL)
		return;
	for (unsigned i = 0; i < WINDOWS; i++)
		free(file->windows[i].pieces);
	ext_reply_free(&file->inline_data);
	(void)pthread_mutex_destroy(&file->lock);
	free(file);
}

/* ----------------------------------------------------------------- windows */

static struct window *find_window_locked(struct ext_file *file, uint64_t off_bytes)
{
	for (unsigned i = 0; i < WINDOWS; i++) {
		struct window *window = &file->windows[i];

		if (off_bytes >= window->first_bytes && off_bytes < window->end_bytes)
			return window;
	}
	return NULL;
}

static struct window *oldest_window_locked(struct ext_file *file)
{
	struct window *oldest = &file->windows[0];

	for (unsigned i = 1; i < WINDOWS; i++) {
		if (file->windows[i].used_at < oldest->used_at)
			oldest = &file->windows[i];
	}
	return oldest;
}

static int check_map(struct ext_file *file, const struct ext_reply *reply, uint64_t off_bytes, struct failure *failure)
{
	const char *flaw = NULL;

	if (reply->payload_bytes != (uint64_t)reply->count * sizeof(struct ext_piece) || reply->position <= off_bytes)
		flaw = "a map that can't be";
	else
		flaw = ext_pieces_find_flaw((const struct ext_piece *)(const void *)reply->payload, reply->count,
					    ext_link_source(file->link)->size_bytes);
	return flaw == NULL ? 0 : ext_link_distrust(file->link, failure, "%s, of inode %" PRIu64, flaw, file->ino);
}

static int fetch_window_locked(struct ext_file *file, uint64_t off_bytes, struct window **ret_window,
			       struct failure *failure)
{
	const struct ext_question question = {.kind = EXT_MAP, .ino = file->ino, .position = off_bytes};
	AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
	struct window *window = oldest_window_locked(file);
	int error = ext_link_ask(file->link, &question, &reply, failure);

	if (error == 0)
		error = check_map(file, &reply, off_bytes, failure);
	if (error < 0)
		return error;
	free(window->pieces);
	*window = (struct window){.first_bytes = off_bytes,
				  .end_bytes = reply.position,
				  .piece_count = reply.count,
				  .pieces = (struct ext_piece *)(void *)take_ptr(reply.payload)};
	*ret_window = window;
	return 0;
}

/* How many pieces begin at `off_bytes` or before. */
static size_t count_pieces_before(const struct window *window, uint64_t off_bytes)
{
	size_t low = 0, high = window->piece_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (window->pieces[middle].off_bytes <= off_bytes)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static struct span look_into_window(const struct window *window, uint64_t off_bytes)
{
	size_t next = count_pieces_before(window, off_bytes);
	struct span span = {.end_bytes =
				    next < window->piece_count ? window->pieces[next].off_bytes : window->end_bytes};
	const struct ext_piece *piece = next == 0 ? NULL : &window->pieces[next - 1];

	if (piece == NULL || off_bytes >= piece->off_bytes + piece->len_bytes)
		return span;
	span.end_bytes = piece->off_bytes + piece->len_bytes;
	span.skip_bytes = off_bytes - piece->off_bytes;
	span.is_data = piece->kind != EXT_PIECE_ZEROS;
	span.is_escaped = piece->kind == EXT_PIECE_ESCAPED;
	span.place_bytes = piece->place_bytes + span.skip_bytes;
	return span;
}

static int find_span(struct ext_file *file, uint64_t off_bytes, struct span *ret_span, struct failure *failure)
{
	WITH_LOCK(&file->lock);
	struct window *window = find_window_locked(file, off_bytes);

	if (window == NULL) {
		int error = fetch_window_locked(file, off_bytes, &window, failure);
		if (error < 0)
			return error;
	}
	window->used_at = ++file->clock;
	*ret_span = look_into_window(window, off_bytes);
	return 0;
}

/* -------------------------------------------------------------------- read */

/* A span's bytes from its first on. */
static int read_span(struct ext_file *file, const struct span *span, uint8_t *buffer, size_t len_bytes,
		     struct failure *failure)
{
	const struct fsreader_source *source = ext_link_source(file->link);
	int error;

	if (!span->is_data) {
		memset(buffer, 0, len_bytes);
		return 0;
	}
	error = source->read(source->opaque, buffer, len_bytes, span->place_bytes, failure);
	if (error == 0 && span->is_escaped && span->skip_bytes < sizeof(ext_journal_magic)) {
		size_t magic_bytes = sizeof(ext_journal_magic) - (size_t)span->skip_bytes;

		memcpy(buffer, ext_journal_magic + span->skip_bytes, len_bytes < magic_bytes ? len_bytes : magic_bytes);
	}
	return error;
}

static int fetch_inline_locked(struct ext_file *file, struct failure *failure)
{
	int error;

	if (file->has_inline)
		return 0;
	error = ext_link_ask(file->link, &(struct ext_question){.kind = EXT_INLINE, .ino = file->ino},
			     &file->inline_data, failure);
	file->has_inline = error == 0;
	return error;
}

/* What the inode says is there and isn't reads as zeros, as by the kernel. */
static int read_inline(struct ext_file *file, uint8_t *buffer, size_t len_bytes, uint64_t off_bytes,
		       struct failure *failure)
{
	WITH_LOCK(&file->lock);
	int error = fetch_inline_locked(file, failure);
	size_t there_bytes;

	if (error < 0)
		return error;
	there_bytes =
		off_bytes < file->inline_data.payload_bytes ? file->inline_data.payload_bytes - (size_t)off_bytes : 0;
	if (there_bytes > len_bytes)
		there_bytes = len_bytes;
	if (there_bytes > 0)
		memcpy(buffer, file->inline_data.payload + off_bytes, there_bytes);
	memset(buffer + there_bytes, 0, len_bytes - there_bytes);
	return 0;
}

static int read_mapped(struct ext_file *file, uint8_t *buffer, size_t len_bytes, uint64_t off_bytes,
		       struct failure *failure)
{
	while (len_bytes > 0) {
		struct span span;
		size_t step_bytes = len_bytes;
		int error = find_span(file, off_bytes, &span, failure);

		if (error < 0)
			return error;
		if (span.end_bytes - off_bytes < step_bytes)
			step_bytes = (size_t)(span.end_bytes - off_bytes);
		error = read_span(file, &span, buffer, step_bytes, failure);
		if (error < 0)
			return error;
		buffer += step_bytes;
		off_bytes += step_bytes;
		len_bytes -= step_bytes;
	}
	return 0;
}

static int read_by_asking(struct ext_file *file, uint8_t *buffer, size_t len_bytes, uint64_t off_bytes,
			  struct failure *failure)
{
	int error = 0;

	while (len_bytes > 0 && error == 0) {
		AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
		struct ext_question question = {.kind = EXT_READ, .ino = file->ino, .position = off_bytes};

		question.count = len_bytes < EXT_PAYLOAD_MOST_BYTES ? len_bytes : EXT_PAYLOAD_MOST_BYTES;
		error = ext_link_ask(file->link, &question, &reply, failure);
		if (error < 0)
			return error;
		if (reply.payload_bytes == 0 || reply.payload_bytes > question.count)
			return ext_link_distrust(file->link, failure, "content of another length, inode %" PRIu64,
						 file->ino);
		memcpy(buffer, reply.payload, reply.payload_bytes);
		buffer += reply.payload_bytes;
		off_bytes += reply.payload_bytes;
		len_bytes -= reply.payload_bytes;
	}
	return error;
}

int ext_file_read(struct ext_file *file, void *buffer, size_t len_bytes, uint64_t off_bytes, size_t *ret_len_bytes,
		  struct failure *failure)
{
	int error;

	if (off_bytes >= file->size_bytes)
		len_bytes = 0;
	else if (len_bytes > file->size_bytes - off_bytes)
		len_bytes = (size_t)(file->size_bytes - off_bytes);
	error = file->is_by_reading ? read_by_asking(file, buffer, len_bytes, off_bytes, failure)
		: file->is_inline   ? read_inline(file, buffer, len_bytes, off_bytes, failure)
				    : read_mapped(file, buffer, len_bytes, off_bytes, failure);
	if (error == 0)
		*ret_len_bytes = len_bytes;
	return error;
}

static int seek_by_asking(struct ext_file *file, uint64_t off_bytes, bool wants_hole, uint64_t *ret_off_bytes,
			  struct failure *failure)
{
	const struct ext_question question = {
		.kind = EXT_SEEK, .ino = file->ino, .position = off_bytes, .count = wants_hole};
	AUTO(ext_reply_free) struct ext_reply reply = {.payload = NULL};
	int error = ext_link_ask(file->link, &question, &reply, failure);

	if (error < 0)
		return error;
	if (reply.position < off_bytes || reply.position > file->size_bytes)
		return ext_link_distrust(file->link, failure, "content in no order, inode %" PRIu64, file->ino);
	*ret_off_bytes = reply.position;
	return 0;
}

int ext_file_seek(struct ext_file *file, uint64_t off_bytes, bool wants_hole, uint64_t *ret_off_bytes,
		  struct failure *failure)
{
	if (file->is_by_reading)
		return seek_by_asking(file, off_bytes, wants_hole, ret_off_bytes, failure);
	while (!file->is_inline && off_bytes < file->size_bytes) {
		struct span span;
		int error = find_span(file, off_bytes, &span, failure);

		if (error < 0)
			return error;
		if (span.is_data != wants_hole) {
			*ret_off_bytes = off_bytes;
			return 0;
		}
		off_bytes = span.end_bytes;
	}
	if (file->is_inline && !wants_hole) {
		*ret_off_bytes = off_bytes;
		return 0;
	}
	if (!wants_hole)
		return fail(failure, -ENXIO, "%s: only a hole is behind this in inode %" PRIu64,
			    ext_link_what(file->link), file->ino);
	*ret_off_bytes = file->size_bytes;
	return 0;
}
