/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a source has to be read.
 *
 * plan_make() cuts the source into segments, once:
 *
 *     READ       all of it
 *     LEFT_OUT   nothing of it, for one reason
 *     MAPPED     an ext file system; which of its blocks is asked while the walk is there
 *
 * Everything is READ unless it is the inside of a wide gap, the pages of a swap area, or an ext whose maps are
 * trusted; and from those is taken away again whatever anything else lays a claim to: the tables, EBRs,
 * ranges that only some MBR entry speaks of, the edges of gaps, the first blocks of a file system. So there is one
 * place where it is decided that something isn't read (add_exempt), everything else can only add to what is, and
 * a claim more costs time, not data.
 *
 * When there is doubt about the layout itself (a table that isn't understood, or one beside a file system on the
 * whole disk), there is one segment: READ. A partition that overlaps another one is READ.
 *
 * The sector size isn't known for certain: a file may hold an image of a disk of 4096-byte sectors. A GPT
 * settles it, its header is in sector 1. An MBR doesn't: the same numbers mean places eight times as far
 * away, and a wrong guess would take partitions for gaps. Where both fit the disk, the one under which partitions
 * hold something known is taken, and if that doesn't decide it, everything is read.
 *
 * A disk's first 16 MiB are never a gap: boards keep their boot loaders there, at places of their own. In
 * other gaps the first and the last MiB are read, for what boot loaders, RAID and volume managers keep at edges.
 *
 * One ext file system is open at a time, so that memory doesn't grow with the number of partitions; a walk
 * forward opens each once more at most.
 */
#include "syncer/plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "syncer/plan_internal.h"

enum {
	DISK_HEAD_BYTES = 16 * 1024 * 1024,
	NARROW_GAP_BYTES = 16 * 1024 * 1024,
	FILE_SYSTEM_HEAD_BYTES = 64 * 1024, /* boot sectors, superblock */
	PARTITIONS_TO_JUDGE_BY = 8,
};

enum segment_kind { SEGMENT_READ, SEGMENT_LEFT_OUT, SEGMENT_MAPPED };

struct segment {
	uint64_t first;
	uint64_t end;
	enum segment_kind kind;
	unsigned partition; /* MAPPED: index */
	const char *why;    /* LEFT_OUT */
};

/* What a plan knows of a partition beyond what it tells. */
struct part {
	char name[48];		     /* "sda: partition 2 (ext4)", for notices */
	char why[64];		     /* "partition 2: blocks not in use by ext4", for ranges */
	bool is_told;		     /* of a damaged group */
	struct plan_span swap_pages; /* bytes of the source; empty if not swap */
	uint64_t mapped_bytes;	     /* size of the ext whose maps are trusted, else 0 */
};

struct plan {
	struct source *source;
	struct plan_options options;
	uint64_t size_bytes;
	const char *table_type;
	uint32_t table_sector_bytes;
	struct plan_partition *partitions;
	struct part *parts; /* as many */
	unsigned partition_count;
	struct segment *segments; /* from 0 to size_bytes without gaps */
	size_t segment_count;
	size_t at_segment;    /* where the walk was last */
	struct plan_ext *ext; /* the one that is open, or NULL */
	unsigned ext_partition;
};

/* While a plan is made. */
struct plan_maker {
	struct plan *plan;
	struct plan_table table;
	struct plan_spans claims; /* bytes that are read whatever else is said */
	struct segment *exempt;	  /* what isn't simply read, before claims are taken away; disjoint */
	size_t exempt_count;
	size_t exempt_capacity;
};

/* ------------------------------------------------------------------- segments */

static int add_segment(struct segment **segments, size_t *count, size_t *capacity, const struct segment *segment,
		       struct failure *failure)
{
	if (segment->first >= segment->end)
		return 0;
	if (*count == *capacity) {
		size_t grown = *capacity == 0 ? 32 : *capacity * 2;
		struct segment *moved = reallocarray(*segments, grown, sizeof(*moved));
		if (moved == NULL)
			return fail(failure, -ENOMEM, "plan: out of memory");
		*segments = moved;
		*capacity = grown;
	}
	(*segments)[(*count)++] = *segment;
	return 0;
}

static int add_exempt(struct plan_maker *maker, const struct segment *segment, struct failure *failure)
{
	return add_segment(&maker->exempt, &maker->exempt_count, &maker->exempt_capacity, segment, failure);
}

static int compare_segments(const void *left, const void *right)
{
	const struct segment *a = left;
	const struct segment *b = right;

	return a->first < b->first ? -1 : a->first > b->first;
}

static uint64_t align_up(uint64_t bytes)
{
	uint64_t sum;

	if (__builtin_add_overflow(bytes, (uint64_t)PLAN_REQUEST_ALIGNMENT_BYTES - 1, &sum))
		return UINT64_MAX;
	return sum / PLAN_REQUEST_ALIGNMENT_BYTES * PLAN_REQUEST_ALIGNMENT_BYTES;
}

static uint64_t align_down(uint64_t bytes)
{
	return bytes / PLAN_REQUEST_ALIGNMENT_BYTES * PLAN_REQUEST_ALIGNMENT_BYTES;
}

/* Adds what no claim covers of an exempt range, and READ up to it. */
static int cut_exempt(struct plan_maker *maker, const struct segment *exempt, size_t *capacity, struct failure *failure)
{
	struct plan *plan = maker->plan;
	uint64_t position = exempt->first;
	int error = 0;

	for (size_t i = plan_spans_find(&maker->claims, position); position < exempt->end && error == 0; i++) {
		bool has_claim = i < maker->claims.count && maker->claims.spans[i].first < exempt->end;
		struct segment piece = *exempt;
		piece.first = position;
		if (has_claim)
			piece.end = maker->claims.spans[i].first;
		if (piece.kind == SEGMENT_LEFT_OUT) {
			piece.first = align_up(piece.first);
			piece.end = align_down(piece.end);
		}
		position = has_claim ? maker->claims.spans[i].end : exempt->end;
		if (piece.first >= piece.end)
			continue;
		struct segment before = {
			.first = plan->segment_count == 0 ? 0 : plan->segments[plan->segment_count - 1].end,
			.end = piece.first,
			.kind = SEGMENT_READ,
		};
		error = add_segment(&plan->segments, &plan->segment_count, capacity, &before, failure);
		if (error == 0)
			error = add_segment(&plan->segments, &plan->segment_count, capacity, &piece, failure);
	}
	return error;
}

static int cut_segments(struct plan_maker *maker, struct failure *failure)
{
	struct plan *plan = maker->plan;
	size_t capacity = 0;
	struct segment rest = {.kind = SEGMENT_READ, .end = plan->size_bytes};
	int error = 0;

	plan_spans_normalise(&maker->claims);
	if (maker->exempt_count > 0)
		qsort(maker->exempt, maker->exempt_count, sizeof(*maker->exempt), compare_segments);
	for (size_t i = 0; i < maker->exempt_count && error == 0; i++)
		error = cut_exempt(maker, &maker->exempt[i], &capacity, failure);
	if (error < 0)
		return error;
	if (plan->segment_count > 0)
		rest.first = plan->segments[plan->segment_count - 1].end;
	return add_segment(&plan->segments, &plan->segment_count, &capacity, &rest, failure);
}

/* ----------------------------------------------------------------- partitions */

static const char *source_name(const struct plan *plan)
{
	return source_get_info(plan->source)->name;
}

static void distrust(struct plan_partition *partition, const char *why)
{
	if (plan_type_is_ext(partition->type))
		(void)snprintf(partition->why_whole, sizeof(partition->why_whole), "%s", why); /* all are shorter */
}

static void name_part(const struct plan_partition *partition, struct part *part)
{
	const char *what = strcmp(partition->type, "swap") == 0 ? "content of" : "blocks not in use by";

	if (partition->number == 0) {
		(void)snprintf(part->name, sizeof(part->name), "the whole disk (%.20s)", partition->type);
		(void)snprintf(part->why, sizeof(part->why), "%s %.20s", what, partition->type);
	} else {
		(void)snprintf(part->name, sizeof(part->name), "partition %u (%.20s)", partition->number,
			       partition->type);
		(void)snprintf(part->why, sizeof(part->why), "partition %u: %s %.20s", partition->number, what,
			       partition->type);
	}
}

/* Asks for the maps of an ext, and keeps it open: it may be the one that the walk needs first. */
static int open_ext(struct plan *plan, unsigned index, struct failure *failure)
{
	struct plan_partition *partition = &plan->partitions[index];
	struct part *part = &plan->parts[index];
	struct plan_ext *ext = NULL;
	char name[sizeof(part->name) + 96];
	char why[PLAN_WHY_BYTES] = "";
	int error;

	plan_ext_close(take_ptr(plan->ext));
	(void)snprintf(name, sizeof(name), "%.90s: %s", source_name(plan), part->name); /* cut off when too long */
	error = plan_ext_open(plan->source, partition->off_bytes, partition->len_bytes, name, plan->options.notices,
			      &part->is_told, &ext, why, failure);
	if (error < 0)
		return error;
	plan->ext = ext;
	plan->ext_partition = index;
	if (ext == NULL)
		distrust(partition, why);
	return 0;
}

static bool overlaps_another(const struct plan *plan, unsigned index)
{
	const struct plan_partition *one = &plan->partitions[index];

	for (unsigned i = 0; i < plan->partition_count; i++) {
		const struct plan_partition *other = &plan->partitions[i];
		if (i != index && other->off_bytes < one->off_bytes + one->len_bytes &&
		    one->off_bytes < other->off_bytes + other->len_bytes)
			return true;
	}
	return false;
}

static void take_type(struct plan_partition *partition, const struct plan_type *type)
{
	memcpy(partition->type, type->name, sizeof(partition->type));
	memcpy(partition->label, type->label, sizeof(partition->label));
	memcpy(partition->uuid, type->uuid, sizeof(partition->uuid));
	partition->holds_files = type->holds_files;
	partition->looks_in_use = type->looks_in_use;
}

static int look_into_partition(struct plan *plan, unsigned index, const struct plan_type *type, struct failure *failure)
{
	struct plan_partition *partition = &plan->partitions[index];
	struct part *part = &plan->parts[index];
	int error;

	take_type(partition, type);
	name_part(partition, part);
	if (plan->options.read_all) {
		distrust(partition, "all of it was asked for");
		return 0;
	}
	if (overlaps_another(plan, index)) {
		distrust(partition, "overlaps another partition");
		return 0;
	}
	if (type->has_other_table) {
		distrust(partition, "there is a partition table in it");
		return 0;
	}
	if (type->swap_pages.end > 0)
		part->swap_pages = (struct plan_span){
			.first = partition->off_bytes + type->swap_pages.first,
			.end = partition->off_bytes + type->swap_pages.end,
		};
	if (!plan_type_is_ext(partition->type))
		return 0;
	error = open_ext(plan, index, failure);
	if (error == 0 && plan->ext != NULL) {
		partition->by_allocation_map = true;
		part->mapped_bytes = plan_ext_size_bytes(plan->ext);
	}
	return error;
}

static int make_room_for_partitions(struct plan *plan, unsigned count, struct failure *failure)
{
	plan->partitions = calloc(count + 1u, sizeof(*plan->partitions)); /* count may be 0 */
	plan->parts = calloc(count + 1u, sizeof(*plan->parts));
	if (plan->partitions == NULL || plan->parts == NULL)
		return fail(failure, -ENOMEM, "plan: out of memory");
	return 0;
}

static int look_into_slots(struct plan_maker *maker, struct failure *failure)
{
	struct plan *plan = maker->plan;
	int error = make_room_for_partitions(plan, maker->table.slot_count, failure);

	if (error < 0)
		return error;
	for (unsigned i = 0; i < maker->table.slot_count; i++)
		plan->partitions[i] = (struct plan_partition){
			.number = maker->table.slots[i].number,
			.off_bytes = maker->table.slots[i].off_bytes,
			.len_bytes = maker->table.slots[i].len_bytes,
		};
	plan->partition_count = maker->table.slot_count;
	for (unsigned i = 0; i < plan->partition_count && error == 0; i++) {
		struct plan_type type;
		error = plan_type_probe(plan->source, plan->partitions[i].off_bytes, plan->partitions[i].len_bytes,
					&type, failure);
		if (error == 0)
			error = look_into_partition(plan, i, &type, failure);
	}
	return error;
}

/* ---------------------------------------------------------------------- layout */

/* How many partitions hold something that libblkid knows. */
static int count_known(struct source *source, const struct plan_table *table, unsigned *ret_count,
		       struct failure *failure)
{
	unsigned count = 0;

	for (unsigned i = 0; i < table->slot_count && i < PARTITIONS_TO_JUDGE_BY; i++) {
		struct plan_type type;
		int error =
			plan_type_probe(source, table->slots[i].off_bytes, table->slots[i].len_bytes, &type, failure);
		if (error < 0)
			return error;
		count += type.name[0] != '\0' && !type.is_ambivalent;
	}
	*ret_count = count;
	return 0;
}

static bool fits_the_disk(const struct plan_table *table)
{
	for (unsigned i = 0; i < table->slot_count; i++)
		if (table->slots[i].is_clipped)
			return false;
	return true;
}

static void swap_tables(struct plan_table *a, struct plan_table *b)
{
	struct plan_table kept = *a;

	*a = *b;
	*b = kept;
}

/* An MBR that makes sense with either size of sectors: `table` becomes the right one, or says that it isn't known. */
static int choose_mbr(struct source *source, struct plan_table *table, struct plan_table *other,
		      struct failure *failure)
{
	unsigned count = 0, other_count = 0;
	int error;

	/* A partition that starts behind the end of the disk is no slot, one that ends there is clipped. */
	if (table->slot_count == 0 || other->slot_count < table->slot_count || !fits_the_disk(other))
		return 0;
	error = count_known(source, table, &count, failure);
	if (error == 0)
		error = count_known(source, other, &other_count, failure);
	if (error < 0)
		return error;
	if (count == 0 && other_count > 0)
		swap_tables(table, other);
	else if ((count == 0) == (other_count == 0))
		table->why_distrust = "a partition table that fits with sectors of 512 and of 4096 bytes";
	return 0;
}

/* Reads the table with the source's sector size, and with the other one where that may be the right one. */
static int read_table(struct plan *plan, struct plan_table *ret_table, struct failure *failure)
{
	const struct source_info *info = source_get_info(plan->source);
	uint32_t other_sector_bytes = info->sector_bytes == 4096 ? 512 : 4096;
	__attribute__((cleanup(plan_table_free))) struct plan_table table = {.type = "none"};
	__attribute__((cleanup(plan_table_free))) struct plan_table other = {.type = "none"};
	int error = plan_table_read(plan->source, info->sector_bytes, &table, failure);

	if (error == 0 && strcmp(table.type, "gpt") != 0)
		error = plan_table_read(plan->source, other_sector_bytes, &other, failure);
	if (error < 0)
		return error;
	if (strcmp(table.type, "gpt") != 0 && strcmp(other.type, "gpt") == 0)
		swap_tables(&table, &other);
	else if (strcmp(table.type, "dos") == 0 && strcmp(other.type, "dos") == 0 && table.why_distrust == NULL &&
		 info->kind != SOURCE_BLOCK_DEVICE) /* whose sectors are what the kernel reads its table with */
		error = choose_mbr(plan->source, &table, &other, failure);
	if (error < 0)
		return error;
	*ret_table = table;
	table = (struct plan_table){.type = "none"};
	return 0;
}

static void tell_read_whole(const struct plan *plan, const char *why)
{
	if (!plan->options.read_all)
		notice(plan->options.notices, NOTICE_WARNING, "%s: all of it is read: %s", source_name(plan), why);
}

/*
 * Finds out what the disk is divided into. *ret_is_understood = false: nothing may be left out.
 *
 * An MBR without entries divides nothing; boot sectors of file systems look like that.
 */
static int find_layout(struct plan_maker *maker, bool *ret_is_understood, struct failure *failure)
{
	struct plan *plan = maker->plan;
	const struct plan_table *table = &maker->table;
	struct plan_type disk;
	int error = read_table(plan, &maker->table, failure);

	if (error == 0)
		error = plan_type_probe(plan->source, 0, plan->size_bytes, &disk, failure);
	if (error < 0)
		return error;
	bool has_table = table->slot_count > 0 || table->mentioned.count > 0 || strcmp(table->type, "gpt") == 0;
	bool has_disk_type = disk.name[0] != '\0' || disk.is_ambivalent;
	*ret_is_understood = false;
	if (table->why_distrust != NULL) {
		tell_read_whole(plan, table->why_distrust);
	} else if (has_table && has_disk_type) {
		tell_read_whole(plan, "there is a partition table, and a file system or the like on the whole disk");
	} else if (disk.has_other_table) {
		tell_read_whole(plan, "a partition table of a kind that isn't understood");
	} else {
		*ret_is_understood = true;
		plan->table_type = table->type;
		plan->table_sector_bytes = table->sector_bytes;
		if (has_table)
			return look_into_slots(maker, failure);
	}
	if (disk.name[0] == '\0')
		return 0;

	error = make_room_for_partitions(plan, 1, failure);
	if (error < 0)
		return error;
	plan->partitions[0] = (struct plan_partition){.len_bytes = plan->size_bytes};
	plan->partition_count = 1;
	plan->table_type = "none";
	if (*ret_is_understood)
		return look_into_partition(plan, 0, &disk, failure);
	take_type(&plan->partitions[0], &disk);
	distrust(&plan->partitions[0], "the disk's layout isn't clear");
	return 0;
}

/* ------------------------------------------------------------- what to leave out */

/* The inside of the space between two partitions, or a partition and an end of the disk. */
static int exempt_gap(struct plan_maker *maker, uint64_t first, uint64_t end, struct failure *failure)
{
	struct segment inside = {
		.first = first + PLAN_EDGE_BYTES < DISK_HEAD_BYTES ? DISK_HEAD_BYTES : first + PLAN_EDGE_BYTES,
		.kind = SEGMENT_LEFT_OUT,
		.why = "gap between partitions",
	};

	if (end - first <= NARROW_GAP_BYTES)
		return 0;
	inside.end = end - PLAN_EDGE_BYTES;
	if (first == 0)
		inside.why = "gap before the first partition";
	else if (end == maker->plan->size_bytes)
		inside.why = "gap after the last partition";
	return add_exempt(maker, &inside, failure);
}

static int exempt_gaps(struct plan_maker *maker, struct failure *failure)
{
	const struct plan *plan = maker->plan;
	struct plan_spans used = {.spans = NULL};
	uint64_t position = 0;
	int error = 0;

	/* A table without a partition isn't reason enough to leave out a whole disk, whatever an MBR beside it mentions. */
	if (plan->partition_count == 0)
		return 0;
	for (unsigned i = 0; i < plan->partition_count && error == 0; i++)
		error = plan_spans_add(&used, plan->partitions[i].off_bytes,
				       plan->partitions[i].off_bytes + plan->partitions[i].len_bytes, failure);
	for (size_t i = 0; i < maker->table.mentioned.count && error == 0; i++)
		error = plan_spans_add(&used, maker->table.mentioned.spans[i].first,
				       maker->table.mentioned.spans[i].end, failure);
	plan_spans_normalise(&used);
	for (size_t i = 0; i < used.count && error == 0; i++) {
		error = exempt_gap(maker, position, used.spans[i].first, failure);
		position = used.spans[i].end;
	}
	if (error == 0 && used.count > 0)
		error = exempt_gap(maker, position, plan->size_bytes, failure);
	plan_spans_free(&used);
	return error;
}

static int exempt_in_partition(struct plan_maker *maker, unsigned index, struct failure *failure)
{
	const struct plan_partition *partition = &maker->plan->partitions[index];
	const struct part *part = &maker->plan->parts[index];
	struct segment segment = {.partition = index, .why = part->why};

	if (part->swap_pages.end > 0) {
		segment.kind = SEGMENT_LEFT_OUT;
		segment.first = part->swap_pages.first;
		segment.end = part->swap_pages.end;
	} else if (part->mapped_bytes > FILE_SYSTEM_HEAD_BYTES) {
		segment.kind = SEGMENT_MAPPED;
		segment.first = partition->off_bytes + FILE_SYSTEM_HEAD_BYTES;
		segment.end = partition->off_bytes + part->mapped_bytes;
	}
	return add_exempt(maker, &segment, failure);
}

static int claim_all(struct plan_maker *maker, const struct plan_spans *list, struct failure *failure)
{
	int error = 0;

	for (size_t i = 0; i < list->count && error == 0; i++)
		error = plan_spans_add(&maker->claims, list->spans[i].first, list->spans[i].end, failure);
	return error;
}

static int decide(struct plan_maker *maker, struct failure *failure)
{
	int error = claim_all(maker, &maker->table.pinned, failure);

	if (error == 0)
		error = claim_all(maker, &maker->table.mentioned, failure);
	if (error == 0)
		error = exempt_gaps(maker, failure);
	for (unsigned i = 0; i < maker->plan->partition_count && error == 0; i++)
		error = exempt_in_partition(maker, i, failure);
	return error;
}

int plan_make(struct source *source, const struct plan_options *options, struct plan **ret_plan,
	      struct failure *failure)
{
	struct plan_maker maker = {.table = {.type = "none"}};
	struct plan *plan = calloc(1, sizeof(*plan));
	bool is_understood = false;
	int error;

	if (plan == NULL)
		return fail(failure, -ENOMEM, "plan: out of memory");
	plan->source = source;
	plan->options = *options;
	plan->size_bytes = source_get_info(source)->size_bytes;
	plan->table_type = "none";
	maker.plan = plan;

	error = find_layout(&maker, &is_understood, failure);
	if (error == 0 && is_understood && !options->read_all)
		error = decide(&maker, failure);
	if (error == 0)
		error = cut_segments(&maker, failure);
	plan_table_free(&maker.table);
	plan_spans_free(&maker.claims);
	free(maker.exempt);
	if (error < 0)
		plan_free(plan);
	else
		*ret_plan = plan;
	return error;
}

void plan_free(struct plan *plan)
{
	if (plan == NULL)
		return;
	plan_ext_close(plan->ext);
	free(plan->partitions);
	free(plan->parts);
	free(plan->segments);
	free(plan);
}

/* -------------------------------------------------------------------- the walk */

static const struct segment *find_segment(struct plan *plan, uint64_t off_bytes)
{
	size_t low = 0;
	size_t high = plan->segment_count - 1;

	/* Mostly the same one as last time, or the next. */
	for (size_t i = plan->at_segment; i < plan->segment_count && i < plan->at_segment + 2; i++)
		if (plan->segments[i].first <= off_bytes && off_bytes < plan->segments[i].end) {
			plan->at_segment = i;
			return &plan->segments[i];
		}
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (plan->segments[middle].end > off_bytes)
			high = middle;
		else
			low = middle + 1;
	}
	plan->at_segment = low;
	return &plan->segments[low];
}

/* From here on the maps of this file system aren't asked any more. */
static void give_up_maps(struct plan *plan, unsigned index)
{
	struct plan_partition *partition = &plan->partitions[index];

	plan_ext_close(take_ptr(plan->ext));
	for (size_t i = 0; i < plan->segment_count; i++)
		if (plan->segments[i].kind == SEGMENT_MAPPED && plan->segments[i].partition == index)
			plan->segments[i].kind = SEGMENT_READ;
	partition->by_allocation_map = false;
	distrust(partition, "mounted or changed while it was being read");
	notice(plan->options.notices, NOTICE_WARNING,
	       "%s: %s: mounted or changed meanwhile; from here on all of it is read", source_name(plan),
	       plan->parts[index].name);
}

static int next_of_map(struct plan *plan, const struct segment *segment, struct plan_range *range,
		       struct failure *failure)
{
	const struct plan_partition *partition = &plan->partitions[segment->partition];
	bool in_use = true;
	bool is_lost = false;
	uint64_t len_bytes = 0;
	int error = 0;

	if (plan->ext == NULL || plan->ext_partition != segment->partition)
		error = open_ext(plan, segment->partition, failure);
	if (error == 0 && plan->ext != NULL) /* opened again, it may be another one */
		is_lost = plan_ext_size_bytes(plan->ext) != plan->parts[segment->partition].mapped_bytes;
	if (error == 0 && plan->ext != NULL && !is_lost)
		error = plan_ext_next(plan->ext, range->off_bytes - partition->off_bytes, &in_use, &len_bytes, &is_lost,
				      failure);
	if (error < 0)
		return error;
	if (plan->ext == NULL || is_lost) {
		give_up_maps(plan, segment->partition);
		return 0;
	}
	if (len_bytes < range->len_bytes)
		range->len_bytes = len_bytes;
	if (!in_use) {
		range->kind = PLAN_LEFT_OUT;
		range->why = plan->parts[segment->partition].why;
	}
	return 0;
}

static int mind_holes(struct plan *plan, struct plan_range *range, struct failure *failure)
{
	enum source_extent extent = SOURCE_DATA;
	uint64_t len_bytes = range->len_bytes;
	int error = source_extent_at(plan->source, range->off_bytes, range->len_bytes, &extent, &len_bytes, failure);

	if (error < 0)
		return error;
	range->len_bytes = len_bytes;
	range->kind = extent == SOURCE_HOLE ? PLAN_HOLE : PLAN_READ;
	return 0;
}

int plan_next(struct plan *plan, uint64_t off_bytes, struct plan_range *ret_range, struct failure *failure)
{
	struct plan_range range = {.off_bytes = off_bytes, .kind = PLAN_READ};
	const struct segment *segment;
	int error = 0;

	if (off_bytes >= plan->size_bytes)
		return fail(failure, -EINVAL, "%s: there is nothing at byte %llu", source_name(plan),
			    (unsigned long long)off_bytes);
	segment = find_segment(plan, off_bytes);
	range.len_bytes = segment->end - off_bytes;
	if (segment->kind == SEGMENT_LEFT_OUT) {
		range.kind = PLAN_LEFT_OUT;
		range.why = segment->why;
	} else if (segment->kind == SEGMENT_MAPPED) {
		error = next_of_map(plan, segment, &range, failure);
	}
	if (error == 0 && range.kind == PLAN_READ)
		error = mind_holes(plan, &range, failure);
	if (error == 0)
		*ret_range = range;
	return error;
}

const char *plan_table_type(const struct plan *plan)
{
	return plan->table_type;
}

int plan_dump_table(const struct plan *plan, const char *name, char **ret_text, struct failure *failure)
{
	char *nothing;

	if (strcmp(plan->table_type, "none") != 0)
		return plan_table_dump(plan->source, plan->table_sector_bytes, name, ret_text, failure);
	nothing = strdup("");
	if (nothing == NULL)
		return fail(failure, -ENOMEM, "plan: out of memory");
	*ret_text = nothing;
	return 0;
}

const struct plan_partition *plan_partitions(const struct plan *plan, unsigned *ret_count)
{
	*ret_count = plan->partition_count;
	return plan->partitions;
}
