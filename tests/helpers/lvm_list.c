/* SPDX-License-Identifier: Apache-2.0 */
/*
 *     lvm_list FILE…              the volume groups and logical volumes on these files, a line each:
 *                                     vg NAME UUID PVS MISSING
 *                                     lv GROUP/NAME BYTES [PROBLEM]
 *                                     segment GROUP/NAME KIND OFFSET LENGTH STRIPE SKIP FILE:OFFSET…
 *     lvm_list --cat GROUP/NAME FILE…   the content of one, on standard output
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "fsreader/lvm.h"

enum { MOST_FILES = 64, PIECE_BYTES = 1 << 20 };

static struct fsreader_source sources[MOST_FILES];
static int fds[MOST_FILES];

static int read_file(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	ssize_t done = pread(*(int *)opaque, buffer, len_bytes, (off_t)off_bytes);

	if (done != (ssize_t)len_bytes)
		return fail(failure, -EIO, "%zu bytes at %llu can't be read", len_bytes, (unsigned long long)off_bytes);
	return 0;
}

static void open_file(int number, const char *path)
{
	off_t size_bytes;

	fds[number] = open(path, O_RDONLY | O_CLOEXEC);
	size_bytes = fds[number] < 0 ? -1 : lseek(fds[number], 0, SEEK_END);
	if (size_bytes < 0) {
		perror(path);
		exit(1);
	}
	sources[number] = (struct fsreader_source){read_file, &fds[number], (uint64_t)size_bytes, 512};
}

static void say(void *opaque, enum notice_level level, const char *text)
{
	(void)opaque, (void)level;
	fprintf(stderr, "notice: %s\n", text);
}

static void print_segment(const struct lvm_volume *volume, const struct lvm_segment *segment)
{
	static const char *const kinds[] = {[LVM_MAPPED] = "mapped", [LVM_ZERO] = "zero", [LVM_ERROR] = "error"};

	printf("segment %s/%s %s %llu %llu %llu %llu", volume->group->name, volume->name, kinds[segment->kind],
	       (unsigned long long)segment->lv_off_bytes, (unsigned long long)segment->len_bytes,
	       (unsigned long long)segment->stripe_bytes, (unsigned long long)segment->skip_bytes);
	for (uint32_t i = 0; i < segment->area_count; i++) {
		const struct lvm_area *area = &volume->areas[segment->first_area + i];

		printf(" %td:%llu", volume->group->pvs[area->pv].source - sources, (unsigned long long)area->off_bytes);
	}
	putchar('\n');
}

static void print_group(const struct lvm_group *group)
{
	printf("vg %s %s %zu %zu\n", group->name, group->uuid, group->pv_count, group->missing_count);
	for (size_t i = 0; i < group->volume_count; i++) {
		const struct lvm_volume *volume = &group->volumes[i];

		printf("lv %s/%s %llu%s%s\n", group->name, volume->name, (unsigned long long)volume->size_bytes,
		       volume->problem == NULL ? "" : " ", volume->problem == NULL ? "" : volume->problem);
		for (size_t j = 0; j < volume->segment_count; j++)
			print_segment(volume, &volume->segments[j]);
	}
}

static int cat(const struct lvm_volume *volume)
{
	struct fsreader_source source = lvm_source(volume);
	AUTO_FREE uint8_t *piece = malloc(PIECE_BYTES);
	struct failure failure = {.code = 0};

	for (uint64_t off_bytes = 0; off_bytes < source.size_bytes;) {
		size_t len_bytes = source.size_bytes - off_bytes < PIECE_BYTES ? (size_t)(source.size_bytes - off_bytes)
									       : PIECE_BYTES;

		if (source.read(source.opaque, piece, len_bytes, off_bytes, &failure) < 0) {
			fprintf(stderr, "%s\n", failure.message);
			return 1;
		}
		if (fwrite(piece, 1, len_bytes, stdout) != len_bytes)
			return 1;
		off_bytes += len_bytes;
	}
	return 0;
}

static int cat_named(const struct lvm_scan *scan, const char *name)
{
	for (size_t i = 0; i < scan->group_count; i++) {
		const struct lvm_group *group = &scan->groups[i];

		for (size_t j = 0; j < group->volume_count; j++) {
			char full[2 * LVM_NAME_BYTES];

			(void)snprintf(full, sizeof(full), "%s/%s", group->name, group->volumes[j].name);
			if (strcmp(full, name) != 0)
				continue;
			if (group->volumes[j].problem == NULL)
				return cat(&group->volumes[j]);
			fprintf(stderr, "%s: %s\n", name, group->volumes[j].problem);
			return 1;
		}
	}
	fprintf(stderr, "%s: there is none\n", name);
	return 1;
}

int main(int argc, char **argv)
{
	struct notices notices = {.say = say};
	struct lvm_options options = {.what = "lvm_list", .notices = &notices};
	struct failure failure = {.code = 0};
	struct lvm_scan *scan = NULL;
	const char *name = argc > 2 && strcmp(argv[1], "--cat") == 0 ? argv[2] : NULL;
	int first = name == NULL ? 1 : 3, result = 0;

	if (argc - first < 1 || argc - first > MOST_FILES) {
		fprintf(stderr, "usage: lvm_list [--cat GROUP/NAME] FILE...\n");
		return 2;
	}
	for (int i = first; i < argc; i++)
		open_file(i - first, argv[i]);
	if (lvm_scan(sources, (size_t)(argc - first), &options, &scan, &failure) < 0) {
		fprintf(stderr, "%s\n", failure.message);
		return 1;
	}
	for (size_t i = 0; name == NULL && i < scan->group_count; i++)
		print_group(&scan->groups[i]);
	if (name != NULL)
		result = cat_named(scan, name);
	lvm_scan_free(scan);
	return fflush(stdout) == 0 ? result : 1;
}
