/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LVM2 read without LVM: its text, what it means, and the content of volumes, on physical volumes forged here, each sector of which says where it is.
 * Where volumes that LVM itself has made are concerned: tests/integration/test-fsreader-lvm.sh.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "fsreader/lvm.h"
#include "fsreader/lvm_group.h"
#include "fsreader/lvm_label.h"
#include "fsreader/lvm_text.h"
#include "fsreader/lvm_wire.h"

enum {
	EXTENT_SECTORS = 16,
	EXTENT_BYTES = EXTENT_SECTORS * 512,
	START_SECTORS = 256, /* where extents begin */
	EXTENTS = 40,	     /* of each physical volume */
	DISK_BYTES = START_SECTORS * 512 + EXTENTS * EXTENT_BYTES,
	AREA_OFF_BYTES = 4096,
	AREA_BYTES = 64 << 10,
	DISKS = 3,
};

static const char *const uuids[DISKS] = {"AAAAAAaaaaaaaaaaaaaaaaaaaaaaAAAA", "BBBBBBbbbbbbbbbbbbbbbbbbbbbbBBBB",
					 "CCCCCCccccccccccccccccccccccCCCC"};

/* ---- forging ---- */

/* Physical volumes a, b, c, on which `volumes` lie. */
static char *make_text(const char *volumes, unsigned seqno)
{
	char *text;

	assert_true(asprintf(&text,
			     "vg0 { # a comment { \"\n"
			     "id = \"VVVVVV-vvvv-vvvv-vvvv-vvvv-vvvv-VVVVVV\"\nseqno = %u\nformat = \"lvm2\"\n"
			     "status = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\nextent_size = %d\n"
			     "physical_volumes {\n"
			     "a { id = \"AAAAAA-aaaa-aaaa-aaaa-aaaa-aaaa-aaAAAA\" status = [\"ALLOCATABLE\"] pe_start "
			     "= %d pe_count = %d }\n"
			     "b { id = \"BBBBBB-bbbb-bbbb-bbbb-bbbb-bbbb-bbBBBB\" status = [\"ALLOCATABLE\"] pe_start "
			     "= %d pe_count = %d }\n"
			     "c { id = \"CCCCCC-cccc-cccc-cccc-cccc-cccc-ccCCCC\" status = [\"ALLOCATABLE\"] pe_start "
			     "= %d pe_count = %d }\n"
			     "}\nlogical_volumes {\n%s\n}\n}\ncontents = \"Text Format Volume Group\"\nversion = 1\n",
			     seqno, EXTENT_SECTORS, START_SECTORS, EXTENTS, START_SECTORS, EXTENTS, START_SECTORS,
			     EXTENTS, volumes) > 0);
	return text;
}

#define VISIBLE "id = \"x\" status = [\"READ\", \"VISIBLE\"] "
#define HIDDEN "id = \"x\" status = [\"READ\"] "

static struct lvm_group *read_group(const char *text, size_t present_count, struct failure *failure)
{
	static const char all[DISKS][LVM_UUID_BYTES] = {"AAAAAAaaaaaaaaaaaaaaaaaaaaaaAAAA",
							"BBBBBBbbbbbbbbbbbbbbbbbbbbbbBBBB",
							"CCCCCCccccccccccccccccccccccCCCC"};
	struct lvm_present present = {.count = present_count, .uuids = all};
	struct lvm_text *tree = NULL;
	struct lvm_group *group = NULL;

	if (lvm_text_parse(text, strlen(text), &tree, failure) == 0)
		(void)lvm_group_read(tree, &present, &group, failure); /* NULL then */
	lvm_text_free(tree);
	return group;
}

static struct lvm_group *read_volumes(const char *volumes, size_t present_count)
{
	struct failure failure = {.code = 0};
	AUTO_FREE char *text = make_text(volumes, 1);
	struct lvm_group *group = read_group(text, present_count, &failure);

	if (group == NULL)
		fail_msg("%s", failure.message);
	return group;
}

static const struct lvm_volume *find_volume(const struct lvm_group *group, const char *name)
{
	for (size_t i = 0; i < group->volume_count; i++)
		if (strcmp(group->volumes[i].name, name) == 0)
			return &group->volumes[i];
	return NULL;
}

static void assert_problem(const struct lvm_group *group, const char *name, const char *words)
{
	const struct lvm_volume *volume = find_volume(group, name);

	assert_non_null(volume);
	if (volume->problem == NULL || strstr(volume->problem, words) == NULL)
		fail_msg("%s: \"%s\" instead of something with \"%s\"", name,
			 volume->problem == NULL ? "" : volume->problem, words);
	assert_int_equal(volume->segment_count, 0);
}

/* ---- the text ---- */

static void text_is_read_with_comments_quotes_and_lists(void **state)
{
	const char *text = "a = 12 # b = 13\n b=\"q\\\"\\\\\" c { d = [ \"x\" , 'y\\', -7,] e=[] f { } }g = 1 ";
	struct failure failure = {.code = 0};
	struct lvm_text *tree;
	const struct lvm_node *first, *inner;
	uint64_t number;

	(void)state;
	assert_int_equal(lvm_text_parse(text, strlen(text), &tree, &failure), 0);
	first = lvm_text_first(tree);
	assert_true(lvm_node_number(first, "a", &number) && number == 12);
	assert_string_equal(lvm_node_string(first, "b"), "q\"\\");
	assert_true(lvm_node_number(first, "g", &number) && number == 1);
	inner = lvm_node_section(first, "c")->children;
	assert_true(lvm_node_lists(inner, "d", "y\\"));
	assert_false(lvm_node_lists(inner, "d", "z"));
	assert_int_equal(lvm_node_list(inner, "d")->values->next->next->number, -7);
	assert_null(lvm_node_list(inner, "e")->values);
	assert_false(lvm_node_number(inner, "d", &number));
	assert_null(lvm_node_section(inner, "f")->children);
	lvm_text_free(tree);
}

static void text_that_is_none_is_refused(void **state)
{
	static const char *const texts[] = {"a",	 "a =", "a = [1", "a = \"x",	 "a { b = 1", "}",
					    "a = [1 2]", "= 1", "a = {",  "a = \"x\\\"", "a [1]"};

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		struct failure failure = {.code = 0};
		struct lvm_text *tree = NULL;
		/* Exactly as long as it is, so that AddressSanitizer sees who reads on. */
		char *copy = memcpy(malloc(strlen(texts[i])), texts[i], strlen(texts[i]));
		int error = lvm_text_parse(copy, strlen(texts[i]), &tree, &failure);

		free(copy);
		if (error != -EINVAL)
			fail_msg("\"%s\" gave %d", texts[i], error);
	}
}

static void deep_text_is_refused(void **state)
{
	struct failure failure = {.code = 0};
	struct lvm_text *tree;
	char text[100 * 3 + 1] = "";

	(void)state;
	for (int i = 0; i < 100; i++)
		memcpy(text + (size_t)i * 3, "a{ ", 4);
	assert_int_equal(lvm_text_parse(text, strlen(text), &tree, &failure), -E2BIG);
}

/* ---- what it means ---- */

static void linear_segments_lie_where_the_text_says(void **state)
{
	struct lvm_group *group = read_volumes(
		"one { " VISIBLE "segment_count = 2 segment1 { start_extent = 0 extent_count = 3 type = \"striped\" "
		"stripe_count = 1 stripes = [\"b\", 5] } segment2 { start_extent = 3 extent_count = 1 "
		"type = \"linear\" stripe_count = 1 stripes = [\"a\", 39] } }",
		DISKS);
	const struct lvm_volume *volume = find_volume(group, "one");

	(void)state;
	assert_null(volume->problem);
	assert_int_equal(volume->size_bytes, 4 * EXTENT_BYTES);
	assert_int_equal(volume->segment_count, 2);
	assert_int_equal(volume->areas[volume->segments[0].first_area].pv, 1);
	assert_int_equal(volume->areas[volume->segments[0].first_area].off_bytes,
			 START_SECTORS * 512 + 5 * EXTENT_BYTES);
	assert_int_equal(volume->segments[1].lv_off_bytes, 3 * EXTENT_BYTES);
	assert_int_equal(volume->areas[volume->segments[1].first_area].off_bytes,
			 START_SECTORS * 512 + 39 * EXTENT_BYTES);
	lvm_group_free(group);
}

static void what_device_mapper_alone_can_read_says_so(void **state)
{
	struct lvm_group *group = read_volumes(
		"t { " VISIBLE "segment1 { start_extent = 0 extent_count = 7 type = \"thin\" thin_pool = \"pool\" } }"
		"pool { " VISIBLE
		"segment1 { start_extent = 0 extent_count = 1 type = \"thin-pool+METADATA_FORMAT\" } }"
		"r { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = \"raid5_ls\" } }"
		"c { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = \"cache\" } }"
		"new { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = \"raid99\" } }"
		"origin { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = \"striped\" stripe_count = 1 "
				    "stripes = [\"a\", 0] } }"
		"snap { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = \"striped\" stripe_count = 1 "
				  "stripes = [\"a\", 1] } }"
		"snapshot0 { " VISIBLE
		"segment1 { start_extent = 0 extent_count = 1 type = \"snapshot\" chunk_size = 8 origin = \"origin\" "
		"cow_store = \"snap\" } }"
		"hidden { " HIDDEN "segment1 { start_extent = 0 extent_count = 1 type = \"striped\" stripe_count = 1 "
				   "stripes = [\"a\", 0] } }",
		DISKS);

	(void)state;
	assert_problem(group, "t", "a thin volume");
	assert_int_equal(find_volume(group, "t")->size_bytes, 7 * EXTENT_BYTES);
	assert_problem(group, "pool", "a pool of thin volumes");
	assert_problem(group, "r", "raid5_ls");
	assert_problem(group, "c", "a cached volume");
	assert_problem(group, "new", "raid99");
	assert_null(find_volume(group, "origin")->problem);
	assert_problem(group, "snap", "a snapshot of origin");
	assert_null(find_volume(group, "snapshot0"));
	assert_null(find_volume(group, "hidden"));
	lvm_group_free(group);
}

static void snapshot_that_is_being_merged_makes_its_origin_unreadable(void **state)
{
	struct lvm_group *group =
		read_volumes("origin { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = \"striped\" "
						 "stripe_count = 1 stripes = [\"a\", 0] } }"
			     "snap { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = \"striped\" "
					       "stripe_count = 1 stripes = [\"a\", 1] } }"
			     "snapshot0 { " VISIBLE
			     "segment1 { start_extent = 0 extent_count = 1 type = \"snapshot\" origin = \"origin\" "
			     "merging_store = \"snap\" } }",
			     DISKS);

	(void)state;
	assert_problem(group, "origin", "merged");
	assert_null(find_volume(group, "snap"));
	lvm_group_free(group);
}

#define LEG(name, pv)                                                                                            \
	name " { " HIDDEN                                                                                        \
	     "segment1 { start_extent = 0 extent_count = 2 type = \"striped\" stripe_count = 1 stripes = [\"" pv \
	     "\", 4] } }"
#define RAID1                                                                                                \
	"m { " VISIBLE                                                                                       \
	"segment1 { start_extent = 0 extent_count = 2 type = \"raid1\" device_count = 2 region_size = 1024 " \
	"raids = [\"m_rmeta_0\", \"m_rimage_0\", \"m_rmeta_1\", \"m_rimage_1\"] } }" LEG("m_rimage_0", "c")  \
		LEG("m_rimage_1", "b")

static void mirror_is_read_from_the_first_leg_that_is_there(void **state)
{
	struct lvm_group *whole = read_volumes(RAID1, DISKS), *without_c = read_volumes(RAID1, 2),
			 *without_both = read_volumes(RAID1, 1);

	(void)state;
	assert_int_equal(find_volume(whole, "m")->areas[0].pv, 2);
	assert_int_equal(find_volume(without_c, "m")->areas[0].pv, 1);
	assert_int_equal(without_c->missing_count, 1);
	assert_problem(without_both, "m", "missing");
	lvm_group_free(whole);
	lvm_group_free(without_c);
	lvm_group_free(without_both);
}

static void leg_that_was_being_rebuilt_is_passed_over(void **state)
{
	struct lvm_group *group = read_volumes(
		"m { " VISIBLE "segment1 { start_extent = 0 extent_count = 2 type = \"raid1\" "
		"raids = [\"m_rmeta_0\", \"m_rimage_0\", \"m_rmeta_1\", \"m_rimage_1\"] } }"
		"m_rimage_0 { status = [\"REBUILD\"] segment1 { start_extent = 0 extent_count = 2 type = \"striped\" "
		"stripe_count = 1 stripes = [\"a\", 0] } }" LEG("m_rimage_1", "b"),
		DISKS);

	(void)state;
	assert_int_equal(find_volume(group, "m")->areas[0].pv, 1);
	lvm_group_free(group);
}

static void lies_about_places_make_problems(void **state)
{
	static const struct {
		const char *segment, *words;
	} lies[] = {
		{"start_extent = 0 extent_count = 1 type = \"striped\" stripe_count = 1 stripes = [\"a\", 40]",
		 "doesn't have"},
		{"start_extent = 0 extent_count = 41 type = \"striped\" stripe_count = 1 stripes = [\"a\", 0]",
		 "doesn't have"},
		{"start_extent = 0 extent_count = 1 type = \"striped\" stripe_count = 1 stripes = [\"a\", "
		 "9223372036854775807]",
		 "doesn't have"},
		{"start_extent = 1 extent_count = 1 type = \"striped\" stripe_count = 1 stripes = [\"a\", 0]",
		 "follow"},
		{"start_extent = 0 extent_count = 0 type = \"striped\" stripe_count = 1 stripes = [\"a\", 0]", "none"},
		{"start_extent = 0 extent_count = 9223372036854775807 type = \"zero\"", "none"},
		{"start_extent = 0 extent_count = 2 type = \"striped\" stripe_count = 2 stripes = [\"a\", 0, \"b\", 0]",
		 "no size"},
		{"start_extent = 0 extent_count = 3 type = \"striped\" stripe_count = 2 stripe_size = 8 stripes = "
		 "[\"a\", 0, \"b\", 0]",
		 "can't be"},
		{"start_extent = 0 extent_count = 4 type = \"striped\" stripe_count = 4000 stripe_size = 8 stripes = "
		 "[]",
		 "can't be"},
		{"start_extent = 0 extent_count = 2 type = \"striped\" stripe_count = 2 stripe_size = 8 stripes = "
		 "[\"a\", 0]",
		 "list"},
		{"start_extent = 0 extent_count = 1 type = \"striped\" stripe_count = 1 stripes = [\"a\", 0, \"b\", 0]",
		 "list"},
		{"start_extent = 0 extent_count = 1 type = \"striped\" stripe_count = 1 stripes = [\"z\", 0]",
		 "don't have"},
		{"start_extent = 0 extent_count = 1 type = \"striped\" stripe_count = 1", "list"},
		{"start_extent = 0 extent_count = 1 type = \"raid1+RESHAPE\" raids = []", "being changed"},
		{"start_extent = 0 extent_count = 1 type = \"raid1\" raids = []", "without legs"},
		{"start_extent = 0 extent_count = 1", "none"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		AUTO_FREE char *volumes = NULL;
		struct lvm_group *group;

		assert_true(asprintf(&volumes, "lie { " VISIBLE "segment1 { %s } }", lies[i].segment) > 0);
		group = read_volumes(volumes, DISKS);
		assert_problem(group, "lie", lies[i].words);
		lvm_group_free(group);
	}
}

static void volumes_that_lie_on_themselves_are_refused(void **state)
{
	AUTO_FREE char *text = make_text("x { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = "
							"\"striped\" stripe_count = 1 stripes = [\"y\", 0] } }"
					 "y { " HIDDEN "segment1 { start_extent = 0 extent_count = 1 type = "
						       "\"striped\" stripe_count = 1 stripes = [\"x\", 0] } }",
					 1);
	struct failure failure = {.code = 0};

	(void)state;
	assert_null(read_group(text, DISKS, &failure));
	assert_int_equal(failure.code, -EINVAL);
	assert_non_null(strstr(failure.message, "lies on itself"));
}

/* Seven volumes, each of which refers twenty times to the next: 1.28 billion segments, if somebody were to write them all down. */
static void a_few_lines_cant_mean_billions(void **state)
{
	AUTO(byte_writer_free) struct byte_writer volumes = BYTE_WRITER_EMPTY;
	struct failure failure = {.code = 0};
	AUTO_FREE char *text = NULL;

	(void)state;
	for (int level = 0; level < 7; level++) {
		char line[256], below[8] = "a";
		int extents = 1;

		for (int i = level; i < 6; i++)
			extents *= 20;
		if (level < 6)
			(void)snprintf(below, sizeof(below), "v%d", level + 1);
		byte_writer_bytes(&volumes, line, (size_t)snprintf(line, sizeof(line), "v%d { " VISIBLE, level));
		for (int i = 0; i < 20; i++)
			byte_writer_bytes(
				&volumes, line,
				(size_t)snprintf(line, sizeof(line),
						 "segment%d { start_extent = %d extent_count = %d type = \"striped\" "
						 "stripe_count = 1 stripes = [\"%s\", 0] }\n",
						 i + 1, i * extents, extents, below));
		byte_writer_bytes(&volumes, "}\n", 2);
	}
	byte_writer_u8(&volumes, 0);
	text = make_text((char *)volumes.data, 1);
	assert_null(read_group(text, DISKS, &failure));
	assert_int_equal(failure.code, -E2BIG);
}

/* ---- content ---- */

struct disk {
	uint8_t *data;
	unsigned reads;
};

static int read_disk(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	struct disk *disk = opaque;

	(void)failure;
	assert_true(off_bytes + len_bytes <= DISK_BYTES);
	memcpy(buffer, disk->data + off_bytes, len_bytes);
	disk->reads++;
	return 0;
}

/* Bit by bit, unlike the one that is tested. */
static uint32_t slow_crc(const uint8_t *data, size_t len_bytes)
{
	uint32_t crc = 0xf597a6cf;

	for (size_t i = 0; i < len_bytes; i++) {
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = (crc & 1) != 0 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
	}
	return crc;
}

/* The text begins at `text_off_bytes` of the ring, and may go around its end. */
static void forge_disk(struct disk *disk, unsigned number, const char *text, uint64_t text_off_bytes)
{
	static const uint8_t magic[16] = " LVM2 x[5A%r0N*>";
	uint8_t *label, *area;
	size_t len_bytes = strlen(text);

	disk->data = calloc(1, DISK_BYTES);
	assert_non_null(disk->data);
	for (uint32_t sector = 0; sector < DISK_BYTES / 512; sector++) {
		bytes_put_le32(disk->data + (size_t)sector * 512, number + 1);
		bytes_put_le32(disk->data + (size_t)sector * 512 + 4, sector);
	}
	memset(disk->data, 0, START_SECTORS * 512);
	label = disk->data + 512;
	memcpy(label, "LABELONE", 8);
	bytes_put_le64(label + 8, 1);
	bytes_put_le32(label + 20, 32);
	memcpy(label + 24, "LVM2 001", 8);
	memcpy(label + 32, uuids[number], 32);
	bytes_put_le64(label + 64, DISK_BYTES);
	bytes_put_le64(label + 72, START_SECTORS * 512);
	bytes_put_le64(label + 104, AREA_OFF_BYTES);
	bytes_put_le64(label + 112, AREA_BYTES);
	bytes_put_le32(label + 16, slow_crc(label + 20, 512 - 20));
	area = disk->data + AREA_OFF_BYTES;
	memcpy(area + 4, magic, 16);
	bytes_put_le32(area + 20, 1);
	bytes_put_le64(area + 24, AREA_OFF_BYTES);
	bytes_put_le64(area + 32, AREA_BYTES);
	bytes_put_le64(area + 40, text_off_bytes);
	bytes_put_le64(area + 48, len_bytes);
	bytes_put_le32(area + 56, slow_crc((const uint8_t *)text, len_bytes));
	bytes_put_le32(area, slow_crc(area + 4, 512 - 4));
	for (size_t i = 0; i < len_bytes; i++) {
		uint64_t at = text_off_bytes + i;

		area[at < AREA_BYTES ? at : at - AREA_BYTES + 512] = (uint8_t)text[i];
	}
}

static void say_nothing(void *opaque, enum notice_level level, const char *text)
{
	(void)level;
	(void)snprintf(opaque, 1024, "%s", text); /* the last one, cut */
}

struct scanned {
	struct disk disks[DISKS];
	struct fsreader_source sources[DISKS];
	char last_notice[1024];
	struct lvm_scan *scan;
};

static void scan_disks(struct scanned *scanned, size_t count)
{
	struct notices notices = {.say = say_nothing, .opaque = scanned->last_notice};
	struct lvm_options options = {.what = "test", .notices = &notices};
	struct failure failure = {.code = 0};

	for (size_t i = 0; i < count; i++)
		scanned->sources[i] = (struct fsreader_source){read_disk, &scanned->disks[i], DISK_BYTES, 512};
	if (lvm_scan(scanned->sources, count, &options, &scanned->scan, &failure) < 0)
		fail_msg("%s", failure.message);
	if (scanned->last_notice[0] != '\0')
		print_message("notice: %s\n", scanned->last_notice);
}

static void release(struct scanned *scanned)
{
	lvm_scan_free(scanned->scan);
	for (size_t i = 0; i < DISKS; i++)
		free(scanned->disks[i].data);
}

/* Sector `sector` of the volume is sector `expected` of disk `disk`. */
static void assert_sector(const struct lvm_volume *volume, uint64_t sector, unsigned disk, uint64_t expected)
{
	struct fsreader_source source = lvm_source(volume);
	struct failure failure = {.code = 0};
	uint8_t data[512];

	assert_int_equal(source.read(source.opaque, data, sizeof(data), sector * 512, &failure), 0);
	assert_int_equal(bytes_get_le32(data), disk + 1);
	assert_int_equal(bytes_get_le32(data + 4), expected);
}

static void stripes_are_read_in_their_order(void **state)
{
	struct scanned scanned = {.scan = NULL};
	/* Three stripes of 4 KiB, and, behind pvmove's volume, whose two halves lie apart, two more. */
	AUTO_FREE char *text = make_text(
		"s { " VISIBLE
		"segment1 { start_extent = 0 extent_count = 6 type = \"striped\" stripe_count = 3 stripe_size = 8 "
		"stripes = [\"a\", 3, \"c\", 0, \"b\", 7] } segment2 { start_extent = 6 extent_count = 8 type = "
		"\"striped\" stripe_count = 2 "
		"stripe_size = 2 stripes = [\"pvmove0\", 1, \"b\", 20] } }"
		"pvmove0 { " HIDDEN
		"segment1 { start_extent = 0 extent_count = 3 type = \"mirror\" mirrors = [\"a\", 10, \"b\", 1] } "
		"segment2 { start_extent = 3 extent_count = 2 type = \"mirror\" mirrors = [\"c\", 30, \"b\", 1] } }"
		"r { " VISIBLE
		"segment1 { start_extent = 0 extent_count = 4 type = \"raid0\" stripe_count = 2 stripe_size = 8 "
		"raid0_lvs = [\"r_rimage_0\", \"r_rimage_1\"] } }" LEG("r_rimage_0", "c") LEG("r_rimage_1", "a"),
		7);
	static const unsigned order[3] = {0, 2, 1}, first_extent[3] = {3, 0, 7};
	const struct lvm_volume *volume;

	(void)state;
	for (unsigned i = 0; i < DISKS; i++)
		forge_disk(&scanned.disks[i], i, text, i == 1 ? AREA_BYTES - 100 : 512);
	scan_disks(&scanned, DISKS);
	assert_int_equal(scanned.scan->group_count, 1);
	assert_int_equal(scanned.scan->groups[0].seqno, 7);
	volume = find_volume(&scanned.scan->groups[0], "s");
	assert_null(volume->problem);
	assert_int_equal(volume->size_bytes, 14 * EXTENT_BYTES);
	for (uint64_t sector = 0; sector < 6 * EXTENT_SECTORS; sector++) {
		uint64_t stripe = sector / 8;

		assert_sector(volume, sector, order[stripe % 3],
			      START_SECTORS + first_extent[stripe % 3] * EXTENT_SECTORS + stripe / 3 * 8 + sector % 8);
	}
	for (uint64_t sector = 0; sector < 8 * EXTENT_SECTORS; sector++) {
		uint64_t in_area = sector / 2 / 2 * 2 + sector % 2; /* of four extents each */
		bool is_first_half = in_area < 2 * EXTENT_SECTORS;

		if (sector / 2 % 2 == 1)
			assert_sector(volume, 6 * EXTENT_SECTORS + sector, 1,
				      START_SECTORS + 20 * EXTENT_SECTORS + in_area);
		else
			assert_sector(volume, 6 * EXTENT_SECTORS + sector, is_first_half ? 0 : 2,
				      START_SECTORS + (is_first_half ? 11u : 28u) * EXTENT_SECTORS + in_area);
	}
	volume = find_volume(&scanned.scan->groups[0], "r");
	assert_null(volume->problem);
	for (uint64_t sector = 0; sector < 4 * EXTENT_SECTORS; sector++)
		assert_sector(volume, sector, sector / 8 % 2 == 0 ? 2 : 0,
			      START_SECTORS + 4 * EXTENT_SECTORS + sector / 16 * 8 + sector % 8);
	release(&scanned);
}

static void reads_of_any_length_and_place_agree_with_single_sectors(void **state)
{
	struct scanned scanned = {.scan = NULL};
	AUTO_FREE char *text = make_text(
		"s { " VISIBLE
		"segment1 { start_extent = 0 extent_count = 6 type = \"striped\" stripe_count = 3 stripe_size = 8 "
		"stripes = [\"a\", 3, \"c\", 0, \"b\", 7] } segment2 { start_extent = 6 extent_count = 2 type = "
		"\"zero\" } "
		"segment3 { start_extent = 8 extent_count = 5 type = \"striped\" stripe_count = 1 stripes = [\"a\", "
		"30] } }",
		1);
	struct fsreader_source source;
	uint8_t whole[13 * EXTENT_BYTES], part[sizeof(whole)];
	struct failure failure = {.code = 0};

	(void)state;
	for (unsigned i = 0; i < DISKS; i++)
		forge_disk(&scanned.disks[i], i, text, 512);
	scan_disks(&scanned, DISKS);
	source = lvm_source(find_volume(&scanned.scan->groups[0], "s"));
	assert_int_equal(source.size_bytes, sizeof(whole));
	for (size_t off_bytes = 0; off_bytes < sizeof(whole); off_bytes += 512)
		assert_int_equal(source.read(source.opaque, whole + off_bytes, 512, off_bytes, &failure), 0);
	srand(4711);
	for (int i = 0; i < 500; i++) {
		size_t off_bytes = (size_t)rand() % sizeof(whole),
		       len_bytes = (size_t)rand() % (sizeof(whole) - off_bytes + 1);

		assert_int_equal(source.read(source.opaque, part, len_bytes, off_bytes, &failure), 0);
		assert_memory_equal(part, whole + off_bytes, len_bytes);
	}
	release(&scanned);
}

static void newest_metadata_count_and_damaged_copies_are_said(void **state)
{
	struct scanned scanned = {.scan = NULL};
	AUTO_FREE char *old =
		make_text("old { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = \"zero\" } }", 3);
	AUTO_FREE char *new =
		make_text("new { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = \"zero\" } }", 4);

	(void)state;
	forge_disk(&scanned.disks[0], 0, old, 512);
	forge_disk(&scanned.disks[1], 1, new, 1024);
	forge_disk(&scanned.disks[2], 2, new, 512);
	scanned.disks[2].data[AREA_OFF_BYTES + 600] ^= 1;
	scan_disks(&scanned, DISKS);
	assert_int_equal(scanned.scan->group_count, 1);
	assert_non_null(find_volume(&scanned.scan->groups[0], "new"));
	assert_non_null(strstr(scanned.last_notice, "its text is damaged"));
	release(&scanned);
}

static void missing_physical_volume_is_a_problem_of_who_lies_on_it(void **state)
{
	struct scanned scanned = {.scan = NULL};
	AUTO_FREE char *text = make_text("here { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = "
							   "\"striped\" stripe_count = 1 stripes = [\"a\", 0] } }"
					 "gone { " VISIBLE "segment1 { start_extent = 0 extent_count = 1 type = "
							   "\"striped\" stripe_count = 1 stripes = [\"c\", 0] } }",
					 1);

	(void)state;
	for (unsigned i = 0; i < DISKS; i++)
		forge_disk(&scanned.disks[i], i, text, 512);
	scan_disks(&scanned, 2);
	assert_int_equal(scanned.scan->groups[0].missing_count, 1);
	assert_null(find_volume(&scanned.scan->groups[0], "here")->problem);
	assert_problem(&scanned.scan->groups[0], "gone", uuids[2]);
	release(&scanned);
}

static void places_without_lvm_have_no_groups(void **state)
{
	struct scanned scanned = {.scan = NULL};

	(void)state;
	for (unsigned i = 0; i < DISKS; i++)
		scanned.disks[i].data = calloc(1, DISK_BYTES);
	scan_disks(&scanned, DISKS);
	assert_int_equal(scanned.scan->group_count, 0);
	release(&scanned);
}

/* ---- lies ---- */

static unsigned fuzz_rounds(void)
{
	const char *told = getenv("WHERRY_TEST_ROUNDS");

	return told == NULL ? 3000 : (unsigned)atoi(told) * 10;
}

static char *make_rich_text(void)
{
	return make_text(
		RAID1
		"s { " VISIBLE
		"segment1 { start_extent = 0 extent_count = 6 type = \"striped\" stripe_count = 3 stripe_size = 8 "
		"stripes = [\"a\", 3, \"c\", 0, \"b\", 7] } segment2 { start_extent = 6 extent_count = 8 type = "
		"\"striped\" "
		"stripe_count = 2 stripe_size = 2 stripes = [\"pvmove0\", 1, \"b\", 20] } }"
		"pvmove0 { " HIDDEN
		"segment1 { start_extent = 0 extent_count = 5 type = \"mirror\" mirrors = [\"a\", 10, \"b\", 1] } }"
		"t { " VISIBLE "segment1 { start_extent = 0 extent_count = 7 type = \"thin\" thin_pool = \"pool\" } }",
		1);
}

static void mutated_texts_do_no_harm(void **state)
{
	static const char letters[] = "{}[]=,\"#\\ 0129 ab";
	AUTO_FREE char *good = make_rich_text();
	unsigned understood = 0;

	(void)state;
	srand(99);
	for (unsigned round = 0; round < fuzz_rounds(); round++) {
		AUTO_FREE char *text = strdup(good);
		struct failure failure = {.code = 0};
		struct lvm_group *group;

		for (int i = rand() % 4; i >= 0; i--)
			text[(size_t)rand() % strlen(good)] = letters[(size_t)rand() % (sizeof(letters) - 1)];
		group = read_group(text, (size_t)rand() % (DISKS + 1), &failure);
		understood += group != NULL;
		assert_true(group != NULL || failure.code < 0);
		lvm_group_free(group);
	}
	assert_true(understood > 0);
}

static void mutated_answers_do_no_harm(void **state)
{
	AUTO(byte_writer_free) struct byte_writer writer = BYTE_WRITER_EMPTY;
	AUTO_FREE char *text = make_rich_text();
	struct failure failure = {.code = 0};
	struct lvm_group *good = read_group(text, DISKS, &failure), *group;
	struct byte_reader reader;

	(void)state;
	lvm_wire_put_group(&writer, good);
	assert_false(writer.failed);
	reader = byte_reader_over(writer.data, writer.len_bytes);
	assert_int_equal(lvm_wire_get_group(&reader, &group, &failure), 0);
	assert_int_equal(group->volume_count, good->volume_count);
	lvm_group_free(group);
	lvm_group_free(good);
	srand(98);
	for (unsigned round = 0; round < fuzz_rounds(); round++) {
		size_t len_bytes = round % 4 == 0 ? (size_t)rand() % writer.len_bytes : writer.len_bytes;
		AUTO_FREE uint8_t *data = malloc(len_bytes + 1);

		memcpy(data, writer.data, len_bytes);
		for (int i = rand() % 3; len_bytes > 0 && i >= 0; i--)
			data[(size_t)rand() % len_bytes] = (uint8_t)rand();
		reader = byte_reader_over(data, len_bytes);
		if (lvm_wire_get_group(&reader, &group, NULL) == 0)
			lvm_group_free(group);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(text_is_read_with_comments_quotes_and_lists),
		cmocka_unit_test(text_that_is_none_is_refused),
		cmocka_unit_test(deep_text_is_refused),
		cmocka_unit_test(linear_segments_lie_where_the_text_says),
		cmocka_unit_test(what_device_mapper_alone_can_read_says_so),
		cmocka_unit_test(snapshot_that_is_being_merged_makes_its_origin_unreadable),
		cmocka_unit_test(mirror_is_read_from_the_first_leg_that_is_there),
		cmocka_unit_test(leg_that_was_being_rebuilt_is_passed_over),
		cmocka_unit_test(lies_about_places_make_problems),
		cmocka_unit_test(volumes_that_lie_on_themselves_are_refused),
		cmocka_unit_test(a_few_lines_cant_mean_billions),
		cmocka_unit_test(stripes_are_read_in_their_order),
		cmocka_unit_test(reads_of_any_length_and_place_agree_with_single_sectors),
		cmocka_unit_test(newest_metadata_count_and_damaged_copies_are_said),
		cmocka_unit_test(missing_physical_volume_is_a_problem_of_who_lies_on_it),
		cmocka_unit_test(places_without_lvm_have_no_groups),
		cmocka_unit_test(mutated_texts_do_no_harm),
		cmocka_unit_test(mutated_answers_do_no_harm),
	};

	return cmocka_run_group_tests_name("lvm", tests, NULL, NULL);
}
