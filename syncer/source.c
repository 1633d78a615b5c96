/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The front of all sources: which kind a name means, and the checks that are the
 * same for each of them.
 *
 * A name is an NBD URI or a path, and nothing is ever guessed: "ssh://host/x" is
 * refused although a directory of that name could exist, for whoever writes that
 * means something else ("./ssh://…" names the path). Offsets and lengths are the
 * program's own and asserted; what a kernel or a server answers is checked where
 * it arrives, in the kinds.
 */
#include "syncer/source_internal.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/source_nbd_uri.h"

#define ABANDON_SECONDS 2.0

/* Length of the scheme if `spec` starts as RFC 3986 says a URI does ("nbd+unix://"), else 0. */
static size_t scheme_length(const char *spec)
{
	size_t len = 0;

	if (!isalpha((unsigned char)spec[0]))
		return 0;
	while (isalnum((unsigned char)spec[len]) || (spec[len] != '\0' && strchr("+-.", spec[len]) != NULL))
		len++;
	return strncmp(spec + len, "://", 3) == 0 ? len : 0;
}

static int refuse_scheme(const char *spec, size_t scheme_len, struct failure *failure)
{
	AUTO_FREE char *name = source_nbd_public_name(spec);

	if (scheme_len == strlen("nbds+unix") && strncmp(spec, "nbds+unix", scheme_len) == 0)
		return fail(failure, -EINVAL,
			    "%s: TLS over a Unix socket is refused, because the server's certificate would not be "
			    "verified; use nbd+unix:// or nbds://HOST",
			    name != NULL ? name : "nbds+unix://");
	return fail(failure, -EINVAL,
		    "%s: %.*s:// is not something to read from; use a path, nbd://, nbds:// or nbd+unix://",
		    name != NULL ? name : "the source", (int)scheme_len, spec);
}

static bool scheme_is(const char *spec, size_t scheme_len, const char *scheme)
{
	return strlen(scheme) == scheme_len && strncmp(spec, scheme, scheme_len) == 0;
}

int source_open(const char *spec, const struct source_options *options, struct source **ret_source,
		struct failure *failure)
{
	static const struct source_options no_options = {.dirty_bitmap = NULL};
	size_t scheme_len = scheme_length(spec);

	if (options == NULL)
		options = &no_options;
	if (spec[0] == '\0')
		return fail(failure, -EINVAL, "source: its name is empty; give a path or an NBD URI");
	if (scheme_len == 0)
		return source_file_open(spec, options, ret_source, failure);
	if (scheme_is(spec, scheme_len, "nbd") || scheme_is(spec, scheme_len, "nbds") ||
	    scheme_is(spec, scheme_len, "nbd+unix"))
		return source_nbd_open(spec, options, ret_source, failure);
	return refuse_scheme(spec, scheme_len, failure);
}

void source_close(struct source *source)
{
	if (source == NULL)
		return;
	free(take_ptr(source->info.name));
	free(take_ptr(source->info.identity));
	free(take_ptr(source->dirty_bitmaps));
	source->ops->close(source);
}

const struct source_info *source_get_info(const struct source *source)
{
	return &source->info;
}

const char *source_dirty_bitmaps(const struct source *source)
{
	return source->dirty_bitmaps != NULL ? source->dirty_bitmaps : "";
}

/* Ranges come from this program, never from outside. */
static void assert_inside(const struct source *source, uint64_t off_bytes, uint64_t len_bytes)
{
	assert(len_bytes > 0);
	assert(off_bytes < source->info.size_bytes);
	assert(len_bytes <= source->info.size_bytes - off_bytes);
	(void)source;
	(void)off_bytes;
	(void)len_bytes;
}

int source_submit(struct source *source, struct source_request *request, struct failure *failure)
{
	int error;

	assert_inside(source, request->off_bytes, request->len_bytes);
	assert(request->len_bytes <= SOURCE_MOST_REQUEST_BYTES);
	assert(source->in_flight < 2 * source->info.most_in_flight);

	error = source->ops->submit(source, request, failure);
	if (error == 0)
		source->in_flight++;
	return error;
}

struct source_request *source_reap(struct source *source, bool wait)
{
	struct source_request *request;

	if (source->in_flight == 0)
		return NULL;
	request = source->ops->reap(source, wait);
	if (request != NULL)
		source->in_flight--;
	return request;
}

void source_abandon(struct source *source, bool is_urgent)
{
	double until = units_monotonic_seconds() + ABANDON_SECONDS;

	while (source->in_flight > 0)
		if (source_reap(source, true) == NULL && is_urgent && source->ops->drop != NULL &&
		    units_monotonic_seconds() > until)
			source->ops->drop(source);
}

void source_forget_maps(struct source *source)
{
	if (source->ops->forget_maps != NULL)
		source->ops->forget_maps(source);
}

int source_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	uint8_t *at = buffer;

	assert_inside(source, off_bytes, len_bytes);
	while (len_bytes > 0) {
		size_t piece_bytes = len_bytes < SOURCE_MOST_REQUEST_BYTES ? len_bytes : SOURCE_MOST_REQUEST_BYTES;
		int error = source->ops->read(source, at, piece_bytes, off_bytes, failure);

		if (error < 0)
			return error;
		at += piece_bytes;
		off_bytes += piece_bytes;
		len_bytes -= piece_bytes;
	}
	return 0;
}

bool source_is_at_hand(struct source *source, size_t len_bytes, uint64_t off_bytes)
{
	assert_inside(source, off_bytes, len_bytes);
	return source->ops->is_at_hand != NULL && source->ops->is_at_hand(source, len_bytes, off_bytes);
}

bool source_read_at_hand(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes)
{
	assert_inside(source, off_bytes, len_bytes);
	return source->ops->read_at_hand != NULL && source->ops->read_at_hand(source, buffer, len_bytes, off_bytes);
}

int source_extent_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, enum source_extent *ret_extent,
		     uint64_t *ret_len_bytes, struct failure *failure)
{
	assert_inside(source, off_bytes, len_bytes);
	return source->ops->extent_at(source, off_bytes, len_bytes, ret_extent, ret_len_bytes, failure);
}

int source_dirty_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_is_dirty,
		    uint64_t *ret_len_bytes, struct failure *failure)
{
	assert_inside(source, off_bytes, len_bytes);
	return source->ops->dirty_at(source, off_bytes, len_bytes, ret_is_dirty, ret_len_bytes, failure);
}

int source_in_use(struct source *source, bool *ret_in_use, char **ret_why, struct failure *failure)
{
	return source->ops->in_use(source, ret_in_use, ret_why, failure);
}

int source_range_mounted(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_mounted,
			 struct failure *failure)
{
	assert_inside(source, off_bytes, len_bytes);
	return source->ops->range_mounted(source, off_bytes, len_bytes, ret_mounted, failure);
}

int source_change_stamp(struct source *source, char **ret_stamp, struct failure *failure)
{
	return source->ops->change_stamp(source, ret_stamp, failure);
}

int source_current_size(struct source *source, uint64_t *ret_size_bytes, struct failure *failure)
{
	return source->ops->current_size(source, ret_size_bytes, failure);
}
