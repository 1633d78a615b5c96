/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks that are open are shared by key (store/disk_pool.h): "web01", "web01@3", or with an overlay the export's name, so that an overlay is that
 * name's own.
 */
#include "nbdplugin/exports.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "syncer/source_disk.h"

#define DOING "nbdkit wherry"

enum {
	LIST_MOST_EXPORTS = 10000, /* nbdkit takes no more */
	LIST_MOST_TABLES = 256,	   /* partition tables that are read for one listing */
	DESCRIPTION_BYTES = 1024,
};

struct exports {
	struct exports_options options;
	struct store *store;
	bool store_is_read_only;
	struct chunk_cache *cache;
	struct disk_pool *pool;
	pthread_mutex_t lock;
	struct open_export *opened; /* locked */
};

/* An export's name, understood. */
struct request {
	char name[EXPORT_NAME_BYTES]; /* never "" */
	struct store_reference reference;
	bool wants_overlay;
};

/* ---- the store ---- */

static int open_store(const struct exports_options *options, struct store **ret_store, bool *ret_is_read_only,
		      struct failure *failure)
{
	return store_open_local_or_read_only(options->store_path, options->notices, ret_store, ret_is_read_only, failure);
}

static void cleanup_store(struct store **store)
{
	store_close(*store);
}

static int check_only(const struct exports_options *options, struct store *store, struct failure *failure)
{
	struct store_reference only;
	int error = store_parse_reference(options->only, &only, failure);

	if (error < 0)
		return error;
	if (only.which == STORE_LIVE && options->scratch)
		return fail(failure, -EINVAL, "%s: live content, and scratch=1 is for images; try disk=%s@latest",
			    options->only, only.disk);
	return source_disk_check_reference(store, &only, DOING, failure);
}

int exports_check(const struct exports_options *options, struct failure *failure)
{
	AUTO(cleanup_store) struct store *store = NULL;
	bool is_read_only;
	int error = open_store(options, &store, &is_read_only, failure);

	if (error == 0 && options->only != NULL)
		error = check_only(options, store, failure);
	return error;
}

static int new_pool(struct exports *exports, struct failure *failure)
{
	const struct disk_pool_options options = {.store = exports->store,
						  .cache = exports->cache,
						  .doing = DOING,
						  .store_is_read_only = exports->store_is_read_only,
						  .write_mirror = exports->options.write_mirror,
						  .notices = exports->options.notices};

	return disk_pool_new(&options, &exports->pool, failure);
}

int exports_start(const struct exports_options *options, struct exports **ret_exports, struct failure *failure)
{
	struct exports *exports = calloc(1, sizeof(*exports));
	int error;

	if (exports == NULL)
		return fail(failure, -ENOMEM, "exports: out of memory");
	exports->options = *options;
	(void)pthread_mutex_init(&exports->lock, NULL); /* on Linux it can't fail */
	error = open_store(options, &exports->store, &exports->store_is_read_only, failure);
	if (error == 0)
		error = chunk_cache_new(options->cache_bytes, &exports->cache, failure);
	if (error == 0)
		error = new_pool(exports, failure);
	if (error < 0) {
		exports_stop(exports);
		return error;
	}
	*ret_exports = exports;
	return 0;
}

/* ---- names ---- */

int exports_default(struct exports *exports, char *ret_name, struct failure *failure)
{
	struct store_disk *disks;
	size_t count;
	int error;

	if (exports->options.only != NULL) {
		(void)snprintf(ret_name, EXPORT_NAME_BYTES, "%s", exports->options.only);
		return 0;
	}
	error = store_list_disks(exports->store, NULL, &disks, &count, failure);
	if (error < 0)
		return error;
	if (count == 1)
		(void)snprintf(ret_name, EXPORT_NAME_BYTES, "%s", disks[0].name);
	store_disks_free(disks, count);
	if (count != 1)
		return fail(failure, -ENOENT,
			    "no export name given, and there are %zu disks; 'nbdinfo --list URI' lists them", count);
	return 0;
}

/* Whether it is the one that is offered, or a partition of it. */
static int check_offered(const struct exports *exports, const struct request *request, struct failure *failure)
{
	struct store_reference only;
	const struct store_reference *asked = &request->reference;

	if (exports->options.only == NULL)
		return 0;
	if (store_parse_reference(exports->options.only, &only, failure) < 0)
		return -EINVAL;
	if (strcmp(only.disk, asked->disk) == 0 && only.which == asked->which && only.number == asked->number &&
	    (only.partition == 0 || only.partition == asked->partition))
		return 0;
	return fail(failure, -ENOENT, "export %s: not offered here, where disk=%s is", request->name,
		    exports->options.only);
}

static int understand(struct exports *exports, const char *name, struct request *ret_request, struct failure *failure)
{
	struct request request = {.name = ""};
	char reference[EXPORT_NAME_BYTES];
	char *overlay;
	int error = 0;

	if (strlen(name) >= sizeof(request.name))
		return fail(failure, -ENOENT, "export: a name of %zu bytes; none is longer than %zu", strlen(name),
			    sizeof(request.name) - 1);
	if (*name == '\0')
		error = exports_default(exports, request.name, failure);
	else
		(void)snprintf(request.name, sizeof(request.name), "%s", name);
	if (error < 0)
		return error;
	memcpy(reference, request.name, sizeof(reference));
	overlay = strchr(reference, ':');
	if (overlay != NULL) {
		*overlay++ = '\0';
		error = store_check_name(overlay, failure);
	}
	if (error == 0)
		error = store_parse_reference(reference, &request.reference, failure);
	if (error < 0)
		return error;
	request.wants_overlay = exports->options.scratch && request.reference.which != STORE_LIVE;
	if (overlay != NULL && !request.wants_overlay)
		return fail(failure, -ENOENT, "export %s: ':' names an overlay, which images have with scratch=1 only",
			    request.name);
	error = check_offered(exports, &request, failure);
	if (error == 0)
		*ret_request = request;
	return error;
}

static int make_key(struct exports *exports, struct request *request, char ret_key[EXPORT_NAME_BYTES],
		    struct failure *failure)
{
	uint32_t number;
	int error;

	if (request->wants_overlay) {
		(void)snprintf(ret_key, EXPORT_NAME_BYTES, "%s", request->name);
		return 0;
	}
	if (request->reference.which == STORE_LIVE) {
		(void)snprintf(ret_key, EXPORT_NAME_BYTES, "%s", request->reference.disk);
		return 0;
	}
	error = store_resolve_image(exports->store, &request->reference, &number, failure);
	if (error < 0)
		return error;
	/* what is opened is what the key says, though another image may be the latest by then */
	request->reference.which = STORE_NUMBER;
	request->reference.number = number;
	(void)snprintf(ret_key, EXPORT_NAME_BYTES, "%s@%" PRIu32, request->reference.disk, number);
	return 0;
}

/* ---- coming and going ---- */

static int acquire(struct exports *exports, struct request *request, bool read_only, struct pooled_disk **ret_pooled,
		   struct failure *failure)
{
	enum pool_mode mode = POOL_READ;
	char key[EXPORT_NAME_BYTES];
	int error = make_key(exports, request, key, failure);

	if (error < 0)
		return error;
	if (request->wants_overlay)
		mode = POOL_OVERLAY;
	else if (request->reference.which == STORE_LIVE && !read_only)
		mode = POOL_WRITE_OR_READ;
	return disk_pool_acquire(exports->pool, key, &request->reference, mode, ret_pooled, failure);
}

static int describe_open(struct open_export *export, const struct request *request)
{
	char size[UNITS_TEXT_BYTES], partition[32] = "";

	if (request->reference.partition > 0)
		(void)snprintf(partition, sizeof(partition), "partition %" PRIu32 " of ", request->reference.partition);
	return asprintf(&export->description, "%s%s%s, %s%s%s", partition,
			request->reference.which == STORE_LIVE ? "live content of " : "", disk_name(export->disk),
			units_format_size(export->len_bytes, size), export->is_writable ? "" : ", read-only",
			export->scratch != NULL ? ", scratch: what is written vanishes with its last client" : "");
}

int exports_open(struct exports *exports, const char *name, bool read_only, struct open_export **ret_export,
		 struct failure *failure)
{
	struct open_export *export = calloc(1, sizeof(*export));
	struct request request;
	int error = export == NULL ? fail(failure, -ENOMEM, "export: out of memory") : 0;

	if (error == 0)
		error = understand(exports, name, &request, failure);
	if (error == 0)
		error = acquire(exports, &request, read_only, &export->pooled, failure);
	if (error < 0) {
		free(export);
		return error;
	}
	export->disk = export->pooled->disk;
	export->scratch = export->pooled->scratch;
	export->is_writable = !read_only && (export->scratch != NULL || disk_is_writable(export->disk));
	error = source_disk_find_partition(export->disk, request.reference.partition, &export->off_bytes,
					   &export->len_bytes, failure);
	if (error == 0 && describe_open(export, &request) < 0) {
		export->description = NULL;
		error = fail(failure, -ENOMEM, "export %s: out of memory", request.name);
	}
	if (error < 0) {
		(void)exports_close(exports, export, NULL); /* nothing was written through it */
		return error;
	}
	*ret_export = export;
	WITH_LOCK(&exports->lock);
	export->next = exports->opened;
	exports->opened = export;
	return 0;
}

static void forget_open(struct exports *exports, const struct open_export *export)
{
	WITH_LOCK(&exports->lock);

	for (struct open_export **at = &exports->opened; *at != NULL; at = &(*at)->next)
		if (*at == export) {
			*at = export->next;
			break;
		}
}

int exports_close(struct exports *exports, struct open_export *export, struct failure *failure)
{
	int error;

	forget_open(exports, export);
	error = disk_pool_release(exports->pool, export->pooled, failure);
	free(export->description);
	free(export);
	return error;
}

void exports_stop(struct exports *exports)
{
	if (exports == NULL)
		return;
	while (exports->opened != NULL) {
		struct failure failure = {.code = 0};

		if (exports_close(exports, exports->opened, &failure) < 0)
			notice(exports->options.notices, NOTICE_WARNING, "%s", failure.message);
	}
	disk_pool_free(exports->pool);
	chunk_cache_free(exports->cache);
	store_close(exports->store);
	(void)pthread_mutex_destroy(&exports->lock);
	free(exports);
}

/* ---- listing ---- */

struct listing {
	int (*found)(void *opaque, const char *name, const char *description);
	void *opaque;
	unsigned exports;
	unsigned tables;
};

static int list_one(struct listing *listing, const char *name, const char *description)
{
	if (listing->exports++ >= LIST_MOST_EXPORTS)
		return 0;
	return listing->found(listing->opaque, name, description);
}

static int list_live(struct listing *listing, const struct store_disk *disk)
{
	char description[DESCRIPTION_BYTES], size[UNITS_TEXT_BYTES];

	(void)snprintf(description, sizeof(description), "live content of %s, %s%s%.200s%s%.200s%s%.200s", disk->name,
		       units_format_size(disk->size_bytes, size), disk->parent != NULL ? ", clone of " : "",
		       disk->parent != NULL ? disk->parent : "", disk->mirror_of != NULL ? ", mirror of " : "",
		       disk->mirror_of != NULL ? disk->mirror_of : "", disk->open_by != NULL ? ", open by " : "",
		       disk->open_by != NULL ? disk->open_by : "");
	return list_one(listing, disk->name, description);
}

static int list_image(struct listing *listing, const char *name, const struct store_image *image)
{
	char description[DESCRIPTION_BYTES], size[UNITS_TEXT_BYTES], time[UNITS_TEXT_BYTES];

	(void)snprintf(description, sizeof(description), "image %" PRIu32 " of %s, %s, %s, %s%s%s", image->number,
		       image->disk, units_format_size(image->size_bytes, size),
		       units_format_time(image->created_at, time), store_consistency_name(image->consistency),
		       image->label != NULL ? ": " : "", image->label != NULL ? image->label : "");
	return list_one(listing, name, description);
}

static int list_partitions(struct exports *exports, struct listing *listing, const char *name,
			   const struct store_reference *reference)
{
	AUTO_FREE struct disk_partition *partitions = NULL;
	char key[POOL_KEY_BYTES]; /* none that a client shares: he may want an overlay */
	struct failure cause = {.code = 0};
	struct pooled_disk *pooled;
	size_t count = 0;
	int result;

	if (listing->tables++ >= LIST_MOST_TABLES)
		return 0;
	(void)snprintf(key, sizeof(key), "list %s", name);
	result = disk_pool_acquire(exports->pool, key, reference, POOL_READ, &pooled, &cause);
	if (result == 0) {
		result = source_disk_list_partitions(pooled->disk, &partitions, &count, &cause);
		(void)disk_pool_release(exports->pool, pooled, NULL); /* nothing was written */
	}
	if (result < 0) /* damaged, or deleted meanwhile: no reason not to list the others */
		notice(exports->options.notices, NOTICE_WARNING, "partitions are not listed: %s", cause.message);
	result = 0;
	for (size_t i = 0; i < count && result == 0; i++) {
		char export_name[EXPORT_NAME_BYTES], description[DESCRIPTION_BYTES], size[UNITS_TEXT_BYTES];

		(void)snprintf(export_name, sizeof(export_name), "%s/%" PRIu32, name, partitions[i].number);
		(void)snprintf(description, sizeof(description), "partition %" PRIu32 " of %s: %s, %s",
			       partitions[i].number, name,
			       partitions[i].type[0] != '\0' ? partitions[i].type : "type unknown",
			       units_format_size(partitions[i].len_bytes, size));
		result = list_one(listing, export_name, description);
	}
	return result;
}

static int list_images_of(struct exports *exports, struct listing *listing, const struct store_disk *disk,
			  struct failure *failure)
{
	struct store_image *images;
	char name[EXPORT_NAME_BYTES];
	size_t count;
	int result = store_list_images(exports->store, disk->name, &images, &count, failure);

	if (result < 0)
		return result;
	if (count > 0) {
		(void)snprintf(name, sizeof(name), "%s@latest", disk->name);
		result = list_image(listing, name, &images[count - 1]);
	}
	for (size_t i = 0; i < count && result == 0; i++) {
		(void)snprintf(name, sizeof(name), "%s@%" PRIu32, disk->name, images[i].number);
		result = list_image(listing, name, &images[i]);
	}
	if (count > 0 && result == 0) {
		struct store_reference reference = {.which = STORE_NUMBER, .number = images[count - 1].number};

		memcpy(reference.disk, disk->name, sizeof(reference.disk));
		result = list_partitions(exports, listing, name, &reference);
	}
	store_images_free(images, count);
	return result;
}

/* With disk=: that, and its partitions if it is an image. */
static int list_only(struct exports *exports, struct listing *listing, struct failure *failure)
{
	const char *only = exports->options.only;
	struct store_reference reference;
	char description[DESCRIPTION_BYTES];
	int result = store_parse_reference(only, &reference, failure);

	if (result < 0)
		return result;
	(void)snprintf(description, sizeof(description), "%s%s",
		       reference.which == STORE_LIVE ? "live content of " : "image ", only);
	result = list_one(listing, only, description);
	if (result != 0 || reference.partition > 0 || reference.which == STORE_LIVE)
		return result;
	return list_partitions(exports, listing, only, &reference);
}

int exports_list(struct exports *exports, int (*found)(void *opaque, const char *name, const char *description),
		 void *opaque, struct failure *failure)
{
	struct listing listing = {.found = found, .opaque = opaque};
	struct store_disk *disks;
	size_t count;
	int result;

	if (exports->options.only != NULL)
		return list_only(exports, &listing, failure);
	result = store_list_disks(exports->store, NULL, &disks, &count, failure);
	if (result < 0)
		return result;
	for (size_t i = 0; i < count && result == 0; i++) {
		result = list_live(&listing, &disks[i]);
		if (result == 0)
			result = list_images_of(exports, &listing, &disks[i], failure);
	}
	store_disks_free(disks, count);
	if (listing.exports > LIST_MOST_EXPORTS)
		notice(exports->options.notices, NOTICE_WARNING,
		       "%u exports, of which the first %d are listed; all of them can be opened", listing.exports,
		       LIST_MOST_EXPORTS);
	return result;
}
