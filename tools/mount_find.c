/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk has a few partitions and logical volumes, one of which is what people mean by "its files". Which one is found out by reading: a file system with
 * etc/os-release in it is the root of an operating system, wherever it lies and whatever it is called. It is read as wherryfs reads it, by a parser in
 * a sandbox. Where partitions lie and what type they are of is all that is interpreted here of a disk that may be anybody's.
 */
#include "tools/mount_find.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "fsreader/fsreader.h"
#include "store/disk.h"
#include "syncer/source_disk.h"
#include "syncer/source_type.h"

enum {
	CACHE_BYTES = 16 << 20,
	LOOK_TIMEOUT_SECONDS = 20,
	CANDIDATES_MOST = 1024,
	LIST_BYTES = 600, /* of what there is to choose from, in a message that has more to say */
};

/* Where a partition is. */
struct place {
	struct disk *disk;
	uint64_t off_bytes;
};

/* A partition or a logical volume. */
struct candidate {
	char name[MOUNT_VOLUME_BYTES]; /* as it stands behind the slash: "2", "vg/root"; "" for a file system on all of the disk */
	bool is_volume;
	uint32_t partition;
	struct disk_partition about; /* its type, label, uuid */
	const char *problem;	     /* a volume that can't be read, and why; else NULL */
	struct fsreader_source source;
	uint64_t off_bytes, len_bytes; /* as in mount_choice */
};

/* What is looked at. */
struct search {
	const struct mount_wanted *wanted;
	struct disk *disk;
	struct disk_contents contents;
	struct place *places;		 /* one for each partition */
	struct fsreader_source *sources; /* the same */
	struct lvm_scan *scan;		 /* NULL: there are no physical volumes, or they could not be read */
	struct candidate *candidates;
	size_t count;
	struct failure why; /* one could not be looked into: the first that it was so with */
};

static void release_search(struct search *search)
{
	lvm_scan_free(search->scan);
	disk_contents_free(&search->contents);
	free(search->places);
	free(search->sources);
	free(search->candidates);
}

static void cleanup_disk(struct disk **disk)
{
	(void)disk_close(*disk, NULL); /* nothing was written through it */
}

static void cleanup_cache(struct chunk_cache **cache)
{
	chunk_cache_free(*cache);
}

static void cleanup_reader(struct fsreader **reader)
{
	fsreader_stop(*reader);
}

/* ---- what there is, in words ---- */

/* "2 (ext4 "root", 188.0 MiB)" */
static void describe(const struct candidate *one, char *ret_text, size_t text_bytes)
{
	const struct disk_partition *about = &one->about;
	bool has_label = about->label[0] != '\0';
	char size[UNITS_TEXT_BYTES];

	(void)snprintf(ret_text, text_bytes, "%s%s(%s%s%s%s, %s)", one->name, one->name[0] != '\0' ? " " : "",
		       about->type[0] != '\0' ? about->type : "unknown", has_label ? " \"" : "", about->label, has_label ? "\"" : "",
		       units_format_size(one->source.size_bytes, size));
}

/* All of them, one after the other; "…" for those that find no room. */
static void describe_all(const struct search *search, bool file_systems_only, char ret_text[LIST_BYTES])
{
	size_t used = 0;

	ret_text[0] = '\0';
	for (size_t i = 0; i < search->count; i++) {
		char one[MOUNT_VOLUME_BYTES + 160];

		if (file_systems_only && !search->candidates[i].about.holds_files)
			continue;
		describe(&search->candidates[i], one, sizeof(one));
		if (used + strlen(one) + 8 > LIST_BYTES) {
			(void)snprintf(ret_text + used, LIST_BYTES - used, ", …");
			return;
		}
		used += (size_t)snprintf(ret_text + used, LIST_BYTES - used, "%s%s", used > 0 ? ", " : "", one);
	}
}

/* Something that has no files itself: what it is, and what can be done with it. */
static int fail_no_files(const struct search *search, const struct candidate *one, struct failure *failure)
{
	const char *text = search->wanted->text, *type = one->about.type;

	if (one->problem != NULL)
		return fail(failure, -ENODATA, "%s: can't be read: %s", text, one->problem);
	if (strcmp(type, "swap") == 0 || strcmp(type, "swsuspend") == 0)
		return fail(failure, -ENODATA, "%s: is swap, which has no files", text);
	if (strcmp(type, "LVM2_member") == 0)
		return fail(failure, -ENODATA, "%s: is a physical volume of LVM; name the disk alone, and its logical volumes are looked for", text);
	if (strcmp(type, "crypto_LUKS") == 0 || strcmp(type, "BitLocker") == 0)
		return fail(failure, -ENODATA, "%s: is encrypted (%s); 'wherry attach' makes a device of it that can be unlocked", text, type);
	if (strstr(type, "_member") != NULL)
		return fail(failure, -ENODATA, "%s: is a part of something (%s); 'wherry attach' makes a device of it, to put that together from",
			    text, type);
	return fail(failure, -ENODATA, "%s: holds no file system that is known%s%s%s; 'wherry attach' makes a device of it", text,
		    *type != '\0' ? " (" : "", type, *type != '\0' ? ")" : "");
}

/* ---- what there is ---- */

static int read_place(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	const struct place *place = opaque;

	return disk_read(place->disk, buffer, len_bytes, place->off_bytes + off_bytes, failure);
}

/* The next free one; there is room. */
static struct candidate *add_candidate(struct search *search)
{
	struct candidate *one = &search->candidates[search->count++];

	*one = (struct candidate){.is_volume = false};
	return one;
}

static void add_partitions(struct search *search)
{
	for (size_t i = 0; i < search->contents.partition_count && search->count < CANDIDATES_MOST; i++) {
		const struct disk_partition *partition = &search->contents.partitions[i];
		struct candidate *one = add_candidate(search);

		if (partition->number != 0)
			(void)snprintf(one->name, sizeof(one->name), "%" PRIu32, partition->number);
		one->partition = partition->number;
		one->about = *partition;
		one->source = search->sources[i];
		one->off_bytes = partition->off_bytes;
		one->len_bytes = partition->len_bytes;
	}
}

/* Where a volume that is one piece of the disk begins; false: it is in several. */
static bool find_piece(const struct lvm_volume *volume, uint64_t *ret_off_bytes)
{
	uint64_t next_bytes = 0;

	for (size_t i = 0; i < volume->segment_count; i++) {
		const struct lvm_segment *segment = &volume->segments[i];
		const struct lvm_area *area;
		const struct lvm_pv *pv;
		uint64_t off_bytes;

		if (segment->kind != LVM_MAPPED || segment->area_count != 1)
			return false;
		area = &volume->areas[segment->first_area];
		pv = &volume->group->pvs[area->pv];
		if (pv->source == NULL)
			return false;
		off_bytes = ((const struct place *)pv->source->opaque)->off_bytes + area->off_bytes;
		if (i == 0)
			*ret_off_bytes = off_bytes;
		else if (off_bytes != next_bytes)
			return false;
		next_bytes = off_bytes + segment->len_bytes;
	}
	return volume->segment_count > 0;
}

static int add_volume(struct search *search, const struct lvm_volume *volume, struct failure *failure)
{
	struct candidate *one = add_candidate(search);

	(void)snprintf(one->name, sizeof(one->name), "%s/%s", volume->group->name, volume->name);
	one->is_volume = true;
	one->source.size_bytes = volume->size_bytes;
	one->problem = volume->problem;
	if (volume->problem != NULL)
		return 0;
	one->source = lvm_source(volume);
	if (find_piece(volume, &one->off_bytes))
		one->len_bytes = volume->size_bytes;
	return source_describe(one->source.read, one->source.opaque, one->source.size_bytes, one->source.sector_bytes, &one->about, failure);
}

static int add_volumes(struct search *search, struct failure *failure)
{
	for (size_t i = 0; search->scan != NULL && i < search->scan->group_count; i++) {
		const struct lvm_group *group = &search->scan->groups[i];

		for (size_t k = 0; k < group->volume_count && search->count < CANDIDATES_MOST; k++) {
			int error = add_volume(search, &group->volumes[k], failure);

			if (error < 0)
				return error;
		}
	}
	return 0;
}

static void note_trouble(void *opaque, enum notice_level level, const char *text)
{
	struct search *search = opaque;

	if (level == NOTICE_WARNING)
		(void)fail(&search->why, -EIO, "%s", text);
}

/* A group that can't be read hides its volumes, and nothing else. */
static void scan_volumes(struct search *search)
{
	const struct notices notices = {.say = note_trouble, .opaque = search};
	const struct lvm_options options = {.what = search->wanted->text, .notices = &notices};
	bool has_any = false;

	for (size_t i = 0; i < search->contents.partition_count; i++)
		has_any |= strcmp(search->contents.partitions[i].type, "LVM2_member") == 0;
	if (has_any)
		(void)lvm_scan(search->sources, search->contents.partition_count, &options, &search->scan, &search->why);
}

static int look(struct search *search, struct failure *failure)
{
	int error = source_disk_look(search->disk, &search->contents, failure);
	size_t count = search->contents.partition_count;

	if (error < 0)
		return error;
	search->places = calloc(count + 1, sizeof(*search->places));
	search->sources = calloc(count + 1, sizeof(*search->sources));
	search->candidates = calloc(CANDIDATES_MOST, sizeof(*search->candidates));
	if (search->places == NULL || search->sources == NULL || search->candidates == NULL)
		return fail(failure, -ENOMEM, "%s: out of memory", search->wanted->text);
	for (size_t i = 0; i < count; i++) {
		search->places[i] = (struct place){.disk = search->disk, .off_bytes = search->contents.partitions[i].off_bytes};
		search->sources[i] = (struct fsreader_source){.read = read_place,
							      .opaque = &search->places[i],
							      .size_bytes = search->contents.partitions[i].len_bytes,
							      .sector_bytes = disk_sector_bytes(search->disk)};
	}
	add_partitions(search);
	scan_volumes(search);
	return add_volumes(search, failure);
}

/* ---- looking into one ---- */

/* Whether there is something of this path, from `dir` on. 0 or 1, or an error. */
static int has_path(struct fsreader *reader, uint64_t dir, const char *path, struct failure *failure)
{
	while (*path != '\0') {
		char name[FSREADER_NAME_MOST_BYTES + 1];
		size_t name_bytes = strcspn(path, "/");
		struct failure cause = {.code = 0};
		struct fsreader_attr attr;
		int error;

		(void)snprintf(name, sizeof(name), "%.*s", (int)name_bytes, path);
		error = fsreader_lookup(reader, dir, name, &attr, &cause);
		if (error == -ENOENT || error == -ENOTDIR)
			return 0;
		if (error < 0)
			return fail_from(failure, &cause);
		path += name_bytes + (path[name_bytes] == '/');
		if (*path != '\0' && !S_ISDIR(attr.mode))
			return 0;
		dir = attr.ino;
	}
	return 1;
}

/* The files that tell a root file system; of the last two both are needed. 0 or 1, or an error. */
static int has_root(struct fsreader *reader, uint64_t dir, struct failure *failure)
{
	static const char *const signs[] = {"etc/os-release", "usr/lib/os-release", "Windows/System32"};
	int has = 0;

	for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]) && has == 0; i++)
		has = has_path(reader, dir, signs[i], failure);
	if (has != 0)
		return has;
	has = has_path(reader, dir, "etc/fstab", failure);
	return has == 1 ? has_path(reader, dir, "usr", failure) : has;
}

/* The same below the subvolumes in which installers of Btrfs systems put it. */
static int has_root_below(struct fsreader *reader, struct failure *failure)
{
	static const char *const subvolumes[] = {"@", "@rootfs", "root"};
	int has = 0;

	for (size_t i = 0; i < sizeof(subvolumes) / sizeof(subvolumes[0]) && has == 0; i++) {
		struct fsreader_attr attr;

		if (fsreader_lookup(reader, FSREADER_ROOT, subvolumes[i], &attr, NULL) == 0 && S_ISDIR(attr.mode))
			has = has_root(reader, attr.ino, failure);
	}
	return has;
}

/* 0 or 1, or an error: it can't be looked into. */
static int is_root_file_system(const struct search *search, const struct candidate *one, struct failure *failure)
{
	const struct fsreader_options options = {.what = search->wanted->text, .timeout_seconds = LOOK_TIMEOUT_SECONDS};
	AUTO(cleanup_reader) struct fsreader *reader = NULL;
	int error = fsreader_check_type(one->about.type, failure);
	int has;

	if (error == 0)
		error = fsreader_start(&one->source, one->about.type, &options, &reader, failure);
	if (error < 0)
		return error;
	has = has_root(reader, FSREADER_ROOT, failure);
	return has == 0 && strcmp(one->about.type, "btrfs") == 0 ? has_root_below(reader, failure) : has;
}

/* ---- choosing ---- */

static int fail_unclear(const struct search *search, size_t roots, struct failure *failure)
{
	const struct candidate *example = NULL;
	char list[LIST_BYTES], why[160] = "";

	for (size_t i = 0; i < search->count; i++)
		if (search->candidates[i].about.holds_files)
			example = &search->candidates[i];
	describe_all(search, true, list);
	if (search->why.code < 0)
		(void)snprintf(why, sizeof(why), " (not all could be looked into: %.120s)", search->why.message);
	return fail(failure, -ENOTUNIQ,
		    "%s: it is not clear which file system is meant, for %s has the root of a system in it%s: %s; name one, as in %s/%s",
		    search->wanted->text, roots == 0 ? "none" : "more than one", why, list, search->wanted->text, example->name);
}

/* Of several file systems. */
static int choose_root(struct search *search, const struct candidate **ret_one, struct failure *failure)
{
	const struct candidate *root = NULL;
	size_t roots = 0;

	for (size_t i = 0; i < search->count; i++) {
		struct candidate *one = &search->candidates[i];
		struct failure cause = {.code = 0};
		int is_root = one->about.holds_files ? is_root_file_system(search, one, &cause) : 0;

		if (is_root < 0)
			(void)fail_from(&search->why, &cause);
		if (is_root <= 0)
			continue;
		root = one;
		roots++;
	}
	if (roots != 1)
		return fail_unclear(search, roots, failure);
	*ret_one = root;
	return 0;
}

static int fail_unknown_volume(const struct search *search, struct failure *failure)
{
	char list[LIST_BYTES];

	describe_all(search, false, list);
	if (search->why.code < 0)
		return fail_from(failure, &search->why);
	return fail(failure, -ENOENT, "%s: there is no such logical volume; there are: %s", search->wanted->text, list);
}

static int choose_named(struct search *search, const struct candidate **ret_one, struct failure *failure)
{
	const struct mount_wanted *wanted = search->wanted;
	uint64_t off_bytes, len_bytes;
	int error =
		wanted->volume != NULL ? 0 : source_disk_find_partition(search->disk, wanted->reference.partition, &off_bytes, &len_bytes, failure);

	if (error < 0)
		return error;
	for (size_t i = 0; i < search->count; i++) {
		const struct candidate *one = &search->candidates[i];

		if (wanted->volume != NULL ? strcmp(one->name, wanted->volume) != 0 : one->partition != wanted->reference.partition)
			continue;
		*ret_one = one;
		return one->about.holds_files ? 0 : fail_no_files(search, one, failure);
	}
	return fail_unknown_volume(search, failure);
}

static int choose(struct search *search, const struct candidate **ret_one, struct failure *failure)
{
	const struct candidate *only = NULL;
	size_t file_systems = 0;
	char list[LIST_BYTES];

	if (search->wanted->volume != NULL || search->wanted->reference.partition != 0)
		return choose_named(search, ret_one, failure);
	for (size_t i = 0; i < search->count; i++)
		if (search->candidates[i].about.holds_files) {
			only = &search->candidates[i];
			file_systems++;
		}
	if (file_systems > 1 || (only != NULL && search->why.code < 0)) /* volumes that could not be looked for may have more */
		return choose_root(search, ret_one, failure);
	if (only != NULL) {
		*ret_one = only;
		return 0;
	}
	if (search->count == 1)
		return fail_no_files(search, &search->candidates[0], failure);
	if (search->count == 0)
		return fail(failure, -ENODATA, "%s: neither partitions nor a file system that is known are on it", search->wanted->text);
	describe_all(search, false, list);
	return fail(failure, -ENODATA, "%s: nothing on it has a file system that is known: %s", search->wanted->text, list);
}

static void take_choice(const struct candidate *one, struct mount_choice *ret_choice)
{
	*ret_choice = (struct mount_choice){.partition = one->partition, .off_bytes = one->off_bytes, .len_bytes = one->len_bytes};
	if (one->is_volume)
		memcpy(ret_choice->volume, one->name, sizeof(ret_choice->volume));
	memcpy(ret_choice->type, one->about.type, sizeof(ret_choice->type));
	memcpy(ret_choice->label, one->about.label, sizeof(ret_choice->label));
	memcpy(ret_choice->uuid, one->about.uuid, sizeof(ret_choice->uuid));
}

int mount_find(struct store *store, const struct mount_wanted *wanted, struct mount_choice *ret_choice, struct failure *failure)
{
	AUTO(cleanup_cache) struct chunk_cache *cache = NULL;
	AUTO(cleanup_disk) struct disk *disk = NULL;
	AUTO(release_search) struct search search = {.wanted = wanted};
	const struct candidate *one = NULL;
	int error = chunk_cache_new(CACHE_BYTES, &cache, failure);

	if (error == 0)
		error = disk_open(store, &wanted->reference, &(struct disk_options){.doing = wanted->doing, .cache = cache, .write = wanted->writes},
				  &disk, failure);
	search.disk = disk;
	if (error == 0)
		error = look(&search, failure);
	if (error == 0)
		error = choose(&search, &one, failure);
	if (error == 0)
		take_choice(one, ret_choice);
	return error;
}
