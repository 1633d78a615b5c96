/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A source that reads a disk of the engine. Made for looking at metadata: it has no cache, for the disk has one, and
 * does everything in the calling thread. Others may write meanwhile, as with any disk in use.
 */
#include "syncer/source_disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "syncer/plan.h"
#include "syncer/source_internal.h"
#include "syncer/source_partition.h"
#include "syncer/source_view.h"

enum { DISK_GRAIN_BYTES = 512 };

struct disk_source {
	struct source base;
	struct disk *disk; /* borrowed */
	struct request_ring finished;
	struct failure damage; /* the first one met */
};

static struct disk_source *disk_source_of(struct source *source)
{
	return (struct disk_source *)source; /* base is the first member */
}

static int disk_source_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes,
			    struct failure *failure)
{
	struct disk_source *own = disk_source_of(source);
	struct failure cause = {.code = 0};
	int error = disk_read(own->disk, buffer, len_bytes, off_bytes, &cause);

	if (error == -EBADMSG)
		(void)fail_from(&own->damage, &cause);
	if (error < 0)
		(void)fail_from(failure, &cause);
	return error;
}

static int disk_source_submit(struct source *source, struct source_request *request, struct failure *failure)
{
	(void)failure; /* what goes wrong is the request's result */
	request->result = disk_source_read(source, request->buffer, request->len_bytes, request->off_bytes, NULL);
	request_ring_put(&disk_source_of(source)->finished, request);
	return 0;
}

static struct source_request *disk_source_reap(struct source *source, bool wait)
{
	(void)wait; /* all that were submitted are finished */
	return request_ring_take(&disk_source_of(source)->finished);
}

struct first_extent {
	bool is_hole;
	uint64_t len_bytes;
};

static int take_first_extent(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero)
{
	struct first_extent *first = opaque;

	(void)off_bytes;
	*first = (struct first_extent){.is_hole = is_hole && is_zero, .len_bytes = len_bytes};
	return 1; /* enough */
}

static int disk_source_extent_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes,
				 enum source_extent *ret_extent, uint64_t *ret_len_bytes, struct failure *failure)
{
	struct first_extent first = {.len_bytes = len_bytes};
	int error =
		disk_extents(disk_source_of(source)->disk, off_bytes, len_bytes, take_first_extent, &first, failure);

	if (error < 0)
		return error;
	*ret_extent = first.is_hole ? SOURCE_HOLE : SOURCE_DATA;
	*ret_len_bytes = first.len_bytes;
	return 0;
}

static int disk_source_dirty_at(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_is_dirty,
				uint64_t *ret_len_bytes, struct failure *failure)
{
	(void)off_bytes;
	(void)len_bytes;
	(void)ret_is_dirty;
	(void)ret_len_bytes;
	return fail(failure, -ENODATA, "%s: has no dirty bitmap", source->info.name);
}

/* Whoever asks is the one who has it open. */
static int disk_source_in_use(struct source *source, bool *ret_in_use, char **ret_why, struct failure *failure)
{
	(void)source;
	(void)failure;
	*ret_in_use = false;
	if (ret_why != NULL)
		*ret_why = NULL;
	return 0;
}

static int disk_source_range_mounted(struct source *source, uint64_t off_bytes, uint64_t len_bytes, bool *ret_mounted,
				     struct failure *failure)
{
	(void)source;
	(void)off_bytes;
	(void)len_bytes;
	(void)failure;
	*ret_mounted = false;
	return 0;
}

static int disk_source_change_stamp(struct source *source, char **ret_stamp, struct failure *failure)
{
	char *stamp = strdup("");

	if (stamp == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", source->info.name);
	*ret_stamp = stamp;
	return 0;
}

static int disk_source_current_size(struct source *source, uint64_t *ret_size_bytes, struct failure *failure)
{
	(void)failure;
	*ret_size_bytes = source->info.size_bytes;
	return 0;
}

static void disk_source_close(struct source *source)
{
	free(disk_source_of(source));
}

static const struct source_ops disk_source_ops = {
	.close = disk_source_close,
	.submit = disk_source_submit,
	.reap = disk_source_reap,
	.read = disk_source_read,
	.extent_at = disk_source_extent_at,
	.dirty_at = disk_source_dirty_at,
	.in_use = disk_source_in_use,
	.range_mounted = disk_source_range_mounted,
	.change_stamp = disk_source_change_stamp,
	.current_size = disk_source_current_size,
};

static int disk_source_open(struct disk *disk, struct source **ret_source, struct failure *failure)
{
	struct disk_source *own = calloc(1, sizeof(*own));
	struct source_info *info;

	if (own == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", disk_name(disk));
	own->base.ops = &disk_source_ops;
	own->base.grain_bytes = DISK_GRAIN_BYTES;
	own->disk = disk;
	info = &own->base.info;
	info->kind = SOURCE_FILE;
	info->size_bytes = disk_size(disk);
	info->sector_bytes = disk_sector_bytes(disk);
	info->align_bytes = DISK_GRAIN_BYTES;
	info->most_in_flight = 1;
	info->name = strdup(disk_name(disk));
	if (asprintf(&info->identity, "disk:%s", disk_name(disk)) < 0)
		info->identity = NULL;
	if (info->name == NULL || info->identity == NULL) {
		source_close(&own->base);
		return fail(failure, -ENOMEM, "%s: out of memory", disk_name(disk));
	}
	*ret_source = &own->base;
	return 0;
}

static void cleanup_source(struct source **source)
{
	source_close(*source);
}

static void cleanup_plan(struct plan **plan)
{
	plan_free(*plan);
}

int source_disk_find_partition(struct disk *disk, uint32_t number, uint64_t *ret_off_bytes, uint64_t *ret_len_bytes,
			       struct failure *failure)
{
	AUTO(cleanup_source) struct source *source = NULL;
	int error;

	if (number == 0) {
		*ret_off_bytes = 0;
		*ret_len_bytes = disk_size(disk);
		return 0;
	}
	error = disk_source_open(disk, &source, failure);
	if (error < 0)
		return error;
	return source_partition_find(source, number, &disk_source_of(source)->damage, ret_off_bytes, ret_len_bytes,
				     failure);
}

static void cleanup_view(struct store_view **view)
{
	store_view_close(*view);
}

static int check_disk(struct store *store, const char *name, struct failure *failure)
{
	struct store_disk *disks;
	size_t count;
	int error = store_list_disks(store, name, &disks, &count, failure);

	if (error == 0)
		store_disks_free(disks, count);
	return error;
}

int source_disk_check_reference(struct store *store, const struct store_reference *reference, const char *doing,
				struct failure *failure)
{
	AUTO(cleanup_view) struct store_view *view = NULL;
	uint64_t off_bytes, len_bytes;
	uint32_t number;
	int error;

	if (reference->which == STORE_LIVE)
		return check_disk(store, reference->disk, failure);
	if (reference->partition == 0)
		return store_resolve_image(store, reference, &number, failure);
	error = store_view_open(store, reference, VIEW_READ, doing, &view, failure);
	if (error < 0)
		return error;
	return source_view_find_partition(view, reference->partition, &off_bytes, &len_bytes, failure);
}

static struct disk_partition disk_partition_of(const struct plan_partition *partition)
{
	struct disk_partition copy = {.number = partition->number,
				      .off_bytes = partition->off_bytes,
				      .len_bytes = partition->len_bytes,
				      .holds_files = partition->holds_files};

	(void)snprintf(copy.type, sizeof(copy.type), "%s", partition->type);
	(void)snprintf(copy.label, sizeof(copy.label), "%s", partition->label);
	(void)snprintf(copy.uuid, sizeof(copy.uuid), "%s", partition->uuid);
	return copy;
}

static int list_partitions(struct disk *disk, const struct plan *plan, bool with_whole, struct disk_partition **ret_list,
			   size_t *ret_count, struct failure *failure)
{
	unsigned count;
	const struct plan_partition *partitions = plan_partitions(plan, &count);
	struct disk_partition *list = calloc((size_t)count + 1, sizeof(*list)); /* count may be 0 */
	size_t listed = 0;

	if (list == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", disk_name(disk));
	for (unsigned i = 0; i < count; i++)
		if (partitions[i].number != 0 || with_whole) /* a file system without a table around it */
			list[listed++] = disk_partition_of(&partitions[i]);
	*ret_list = list;
	*ret_count = listed;
	return 0;
}

static int make_plan(struct disk *disk, struct source **ret_source, struct plan **ret_plan, struct failure *failure)
{
	const struct plan_options options = {.read_all = true}; /* nothing is going to be left out */
	int error = disk_source_open(disk, ret_source, failure);

	return error < 0 ? error : plan_make(*ret_source, &options, ret_plan, failure);
}

int source_disk_list_partitions(struct disk *disk, struct disk_partition **ret_list, size_t *ret_count,
				struct failure *failure)
{
	AUTO(cleanup_source) struct source *source = NULL;
	AUTO(cleanup_plan) struct plan *plan = NULL;
	int error = make_plan(disk, &source, &plan, failure);

	return error < 0 ? error : list_partitions(disk, plan, false, ret_list, ret_count, failure);
}

int source_disk_look(struct disk *disk, struct disk_contents *ret_contents, struct failure *failure)
{
	AUTO(cleanup_source) struct source *source = NULL;
	AUTO(cleanup_plan) struct plan *plan = NULL;
	struct disk_contents contents = {.layout = NULL};
	int error = make_plan(disk, &source, &plan, failure);

	if (error == 0)
		error = list_partitions(disk, plan, true, &contents.partitions, &contents.partition_count, failure);
	/* damage where the table should be looks like a disk without one */
	if (error == 0 && contents.partition_count == 0 && disk_source_of(source)->damage.code != 0)
		error = fail_from(failure, &disk_source_of(source)->damage);
	if (error == 0)
		error = plan_dump_table(plan, "disk.raw", &contents.layout, failure);
	if (error < 0)
		disk_contents_free(&contents);
	else
		*ret_contents = contents;
	return error;
}

void disk_contents_free(struct disk_contents *contents)
{
	free(contents->partitions);
	free(contents->layout);
	*contents = (struct disk_contents){.layout = NULL};
}
