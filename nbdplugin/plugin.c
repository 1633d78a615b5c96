/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What nbdkit calls.
 *
 * Before it forks nbdkit reads the configuration (config, config_complete) and asks whether we are ready (get_ready);
 * there what can be wrong is found out while somebody still looks at the terminal, with a store that is opened for that
 * and closed again: neither a SQLite connection nor a thread survives a fork. after_fork opens what is served from.
 *
 * Requests come from any number of threads, several of one connection too, and nothing here is locked: the engine does
 * what has to be. Connections to a disk share it (exports.h), so a flush on one is a flush of what all of them have
 * written, which is what multi-conn promises.
 *
 * nbdkit has checked that requests lie in the export. An extent never reaches beyond what was asked for: nbdkit 1.32
 * would abort (CVE-2025-47711). Errors that the protocol has no word for would become EINVAL at the client, so they are
 * EIO.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "nbdplugin/exports.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define DEFAULT_STORE "/var/lib/wherry"

enum {
	MOST_REQUEST_BYTES = 32 << 20,
	MOST_EXTENTS = 1 << 16, /* of one answer: half a MiB */
};

static void say(void *opaque, enum notice_level level, const char *text)
{
	(void)opaque;
	if (level == NOTICE_WARNING)
		nbdkit_error("%s", text);
	else
		nbdkit_debug("%s", text);
}
static const struct notices notices = {.say = say};

static struct exports_options options = {.cache_bytes = CHUNK_CACHE_DEFAULT_BYTES, .notices = &notices};
static char *configured_store; /* owned */
static char *configured_only;  /* owned */
static bool exits_with_last_client;
static atomic_uint connections;
static struct exports *exports;

/* ---- errors ---- */

static int protocol_errno(int code)
{
	switch (-code) {
	case EPERM:
	case EROFS:
	case EIO:
	case ENOMEM:
	case EINVAL:
	case ENOSPC:
	case EDQUOT:
	case ENOTSUP:
	case EOVERFLOW:
	case ESHUTDOWN:
		return -code;
	default:
		return EIO;
	}
}

static int report(int code, const struct failure *failure)
{
	if (code == 0)
		return 0;
	nbdkit_error("%s", failure->message[0] != '\0' ? failure->message : strerror(-code));
	nbdkit_set_error(protocol_errno(code));
	return -1;
}

/* ---- configuration ---- */

static int set_text(char **text, const char *key, char *value)
{
	if (value == NULL)
		return -1; /* nbdkit has said why, or memory is out */
	if (*text != NULL) {
		nbdkit_error("%s=: given twice", key);
		free(value);
		return -1;
	}
	*text = value;
	return 0;
}

static int set_cache(const char *value)
{
	if (units_parse_size(value, &options.cache_bytes) == 0 && options.cache_bytes >= CHUNK_CACHE_LEAST_BYTES)
		return 0;
	nbdkit_error("cache=%s: not a size of %d MiB or more, such as 256M", value, CHUNK_CACHE_LEAST_BYTES >> 20);
	return -1;
}

static int plugin_config(const char *key, const char *value)
{
	struct store_reference reference;
	struct failure failure = {.code = 0};
	int truth;

	if (strcmp(key, "store") == 0)
		return set_text(&configured_store, key, nbdkit_realpath(value));
	if (strcmp(key, "disk") == 0) {
		if (store_parse_reference(value, &reference, &failure) < 0)
			return report(failure.code, &failure);
		return set_text(&configured_only, key, strdup(value));
	}
	if (strcmp(key, "cache") == 0)
		return set_cache(value);
	if (strcmp(key, "scratch") == 0) {
		truth = nbdkit_parse_bool(value);
		options.scratch = truth == 1;
		return truth < 0 ? -1 : 0;
	}
	if (strcmp(key, "rw") == 0) {
		options.write_mirror = strcmp(value, "mirror") == 0;
		if (!options.write_mirror)
			nbdkit_error(
				"rw=%s: there is rw=mirror only, which serves disks that rounds write to for writing",
				value);
		return options.write_mirror ? 0 : -1;
	}
	if (strcmp(key, "exit") == 0) {
		exits_with_last_client = strcmp(value, "last") == 0;
		if (!exits_with_last_client)
			nbdkit_error("exit=%s: there is exit=last only, which ends the server with its last client",
				     value);
		return exits_with_last_client ? 0 : -1;
	}
	nbdkit_error("%s=: no such parameter; 'nbdkit wherry --help' lists them", key);
	return -1;
}

static int plugin_config_complete(void)
{
	const char *place = getenv("WHERRY_STORE");

	if (configured_store == NULL)
		configured_store = nbdkit_realpath(place != NULL && *place != '\0' ? place : DEFAULT_STORE);
	if (configured_store == NULL)
		return -1;
	options.store_path = configured_store;
	options.only = configured_only;
	return 0;
}

#define CONFIG_HELP                                                                     \
	"[disk=]REF      serves just this: web01, web01@3, web01@latest, web01@3/2\n"   \
	"store=PATH      the store; without it $WHERRY_STORE, else " DEFAULT_STORE "\n" \
	"scratch=1       images can be written to, until their last client leaves\n"    \
	"cache=SIZE      memory for decompressed content (128M)\n"                      \
	"exit=last       ends with the last client, not with who started it\n"          \
	"rw=mirror       disks that rounds write to can be written to by others, too"

static int plugin_get_ready(void)
{
	struct failure failure = {.code = 0};

	return report(exports_check(&options, &failure), &failure);
}

/*
 * exit=last: nbdkit 1.32 asks the kernel to be ended with its parent, whether it was told to or not, and what has ended
 * so is a block device that fails. Here, before the first client is taken, it is asked not to. We are in the thread
 * that had asked, which is the one that counts.
 */
static int plugin_after_fork(void)
{
	struct failure failure = {.code = 0};

	if (report(exports_start(&options, &exports, &failure), &failure) < 0)
		return -1;
	if (exits_with_last_client && prctl(PR_SET_PDEATHSIG, 0) < 0) {
		nbdkit_error("exit=last: outliving the parent: %m");
		return -1;
	}
	return 0;
}

static void plugin_cleanup(void)
{
	exports_stop(take_ptr(exports));
}

static void plugin_unload(void)
{
	exports_stop(take_ptr(exports));
	free(take_ptr(configured_store));
	free(take_ptr(configured_only));
}

static void plugin_dump(void)
{
	printf("wherry_version=" WHERRY_VERSION "\n");
	printf("wherry_default_cache_bytes=%d\n", CHUNK_CACHE_DEFAULT_BYTES);
	printf("wherry_scratch=yes\n");
}

/* ---- exports ---- */

static int add_export(void *opaque, const char *name, const char *description)
{
	return nbdkit_add_export(opaque, name, description);
}

static int plugin_list_exports(int readonly, int is_tls, struct nbdkit_exports *list)
{
	struct failure failure = {.code = 0};
	int result = exports_list(exports, add_export, list, &failure);

	(void)readonly;
	(void)is_tls;
	return failure.code == 0 ? result : report(failure.code, &failure);
}

static const char *plugin_default_export(int readonly, int is_tls)
{
	char name[EXPORT_NAME_BYTES];

	(void)readonly;
	(void)is_tls;
	if (exports_default(exports, name, NULL) < 0)
		return NULL;
	return nbdkit_strdup_intern(name);
}

static void *plugin_open(int readonly)
{
	struct failure failure = {.code = 0};
	struct open_export *export;

	if (report(exports_open(exports, nbdkit_export_name(), readonly != 0, &export, &failure), &failure) < 0)
		return NULL;
	atomic_fetch_add(&connections, 1);
	return export;
}

/*
 * exit=last: a client that asks about an export before it takes it (NBD_OPT_INFO) has it opened and closed twice, and
 * the first time is no end. So only one counts that has read something, as the kernel does at once. (This is what
 * nbdkit's filter exitlast does not tell apart.)
 */
static void plugin_close(void *handle)
{
	struct failure failure = {.code = 0};
	bool was_used = ((struct open_export *)handle)->was_read;

	(void)report(exports_close(exports, handle, &failure), &failure); /* nobody is left to be told but the log */
	if (atomic_fetch_sub(&connections, 1) == 1 && was_used && exits_with_last_client)
		nbdkit_shutdown();
}

static const char *plugin_export_description(void *handle)
{
	return ((struct open_export *)handle)->description;
}

static int64_t plugin_get_size(void *handle)
{
	return (int64_t)((struct open_export *)handle)->len_bytes; /* 2^60 at most */
}

static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
	const struct open_export *export = handle;

	/* Larger ones would hide the last sectors; a disk that isn't made of sectors has bytes. */
	*minimum = export->len_bytes % 512 == 0 ? 512 : 1;
	*preferred = disk_chunk_bytes(export->disk);
	*maximum = MOST_REQUEST_BYTES;
	return 0;
}

/* ---- what it can do ---- */

static int always(void *handle)
{
	(void)handle;
	return 1;
}

static int never(void *handle)
{
	(void)handle;
	return 0;
}

static int if_writable(void *handle)
{
	return ((struct open_export *)handle)->is_writable;
}

static int plugin_can_fua(void *handle)
{
	return ((struct open_export *)handle)->is_writable ? NBDKIT_FUA_NATIVE : NBDKIT_FUA_NONE;
}

static int plugin_can_cache(void *handle)
{
	(void)handle;
	return NBDKIT_CACHE_NATIVE;
}

/* ---- requests ---- */

static unsigned disk_flags(uint32_t flags)
{
	return ((flags & NBDKIT_FLAG_FUA) != 0 ? DISK_FUA : 0U) |
	       ((flags & NBDKIT_FLAG_MAY_TRIM) != 0 ? DISK_TRIM : 0U) |
	       ((flags & NBDKIT_FLAG_FAST_ZERO) != 0 ? DISK_FAST : 0U);
}

static int plugin_pread(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct open_export *export = handle;
	struct failure failure = {.code = 0};

	(void)flags;
	if (exits_with_last_client)
		atomic_store_explicit(&export->was_read, true, memory_order_relaxed);
	offset += export->off_bytes;
	return report(export->scratch != NULL ? scratch_read(export->scratch, buffer, count, offset, &failure)
					      : disk_read(export->disk, buffer, count, offset, &failure),
		      &failure);
}

static int plugin_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct open_export *export = handle;
	struct failure failure = {.code = 0};

	offset += export->off_bytes;
	return report(export->scratch != NULL
			      ? scratch_write(export->scratch, buffer, count, offset, &failure)
			      : disk_write(export->disk, buffer, count, offset, disk_flags(flags), &failure),
		      &failure);
}

static int zero(struct open_export *export, uint32_t count, uint64_t offset, unsigned flags)
{
	struct failure failure = {.code = 0};

	offset += export->off_bytes;
	return report(export->scratch != NULL ? scratch_zero(export->scratch, count, offset, &failure)
					      : disk_zero(export->disk, count, offset, flags, &failure),
		      &failure);
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	return zero(handle, count, offset, disk_flags(flags));
}

static int plugin_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	return zero(handle, count, offset, disk_flags(flags) | DISK_TRIM);
}

static int plugin_flush(void *handle, uint32_t flags)
{
	struct open_export *export = handle;
	struct failure failure = {.code = 0};

	(void)flags;
	return export->scratch != NULL ? 0 : report(disk_flush(export->disk, &failure), &failure);
}

static int plugin_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct open_export *export = handle;

	(void)flags;
	disk_prefetch(export->disk, offset + export->off_bytes, count);
	return 0;
}

/* An answer to a question about extents: what was found is put together while it is alike. */
struct answer {
	struct nbdkit_extents *extents;
	uint64_t first_bytes;	      /* of the export, in the disk */
	uint64_t at_bytes, len_bytes; /* in the disk; not given to nbdkit yet */
	uint32_t type;
	unsigned count; /* given to it */
	unsigned most;
	bool is_refused; /* nbdkit did not take one, and has said why */
};

static int hand_over(struct answer *answer)
{
	if (answer->len_bytes == 0)
		return 0;
	if (nbdkit_add_extent(answer->extents, answer->at_bytes - answer->first_bytes, answer->len_bytes,
			      answer->type) < 0) {
		answer->is_refused = true;
		return 1;
	}
	answer->len_bytes = 0;
	answer->count++;
	return answer->count == answer->most;
}

static int take_extent(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero)
{
	struct answer *answer = opaque;
	uint32_t type = (is_hole ? (uint32_t)NBDKIT_EXTENT_HOLE : 0) | (is_zero ? (uint32_t)NBDKIT_EXTENT_ZERO : 0);

	if (answer->len_bytes > 0 && type == answer->type) {
		answer->len_bytes += len_bytes;
		return 0;
	}
	if (hand_over(answer) != 0)
		return 1;
	answer->at_bytes = off_bytes;
	answer->len_bytes = len_bytes;
	answer->type = type;
	return 0;
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags, struct nbdkit_extents *extents)
{
	struct open_export *export = handle;
	struct answer answer = {.extents = extents,
				.first_bytes = export->off_bytes,
				.most = (flags & NBDKIT_FLAG_REQ_ONE) != 0 ? 1 : MOST_EXTENTS};
	struct failure failure = {.code = 0};
	int result;

	offset += export->off_bytes;
	result = export->scratch != NULL
			 ? scratch_extents(export->scratch, offset, count, take_extent, &answer, &failure)
			 : disk_extents(export->disk, offset, count, take_extent, &answer, &failure);
	if (result < 0)
		return report(result, &failure);
	if (result == 0)
		(void)hand_over(&answer);
	return answer.is_refused ? -1 : 0;
}

static struct nbdkit_plugin plugin = {
	.name = "wherry",
	.longname = "wherry disks and images",
	.version = WHERRY_VERSION,
	.description = "live disks and point-in-time images of a wherry store",
	.unload = plugin_unload,
	.config = plugin_config,
	.config_complete = plugin_config_complete,
	.config_help = CONFIG_HELP,
	.magic_config_key = "disk",
	.dump_plugin = plugin_dump,
	.get_ready = plugin_get_ready,
	.after_fork = plugin_after_fork,
	.cleanup = plugin_cleanup,
	.list_exports = plugin_list_exports,
	.default_export = plugin_default_export,
	.export_description = plugin_export_description,
	.open = plugin_open,
	.close = plugin_close,
	.get_size = plugin_get_size,
	.block_size = plugin_block_size,
	.can_write = if_writable,
	.can_flush = if_writable,
	.can_trim = if_writable,
	.can_zero = if_writable,
	.can_fast_zero = if_writable,
	.can_fua = plugin_can_fua,
	.can_extents = always,
	.can_cache = plugin_can_cache,
	.can_multi_conn = always,
	.is_rotational = never,
	.pread = plugin_pread,
	.pwrite = plugin_pwrite,
	.flush = plugin_flush,
	.trim = plugin_trim,
	.zero = plugin_zero,
	.cache = plugin_cache,
	.extents = plugin_extents,
};

#pragma GCC diagnostic ignored "-Wmissing-prototypes" /* the macro of nbdkit's header has none for plugin_init() */
NBDKIT_REGISTER_PLUGIN(plugin)
