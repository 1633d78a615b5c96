/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the harnesses begin with, made anew each time: small, valid things of each kind, so that mutation starts at the
 * heart of a decoder and not at its door.
 *
 *     fuzz-seeds FOLDER    writes FOLDER/NAME/seed-N for each harness fuzz_NAME
 *
 * They are made by the program's own encoders and by sfdisk, mke2fs and mkswap: a format that changes takes its seeds
 * along. A tool that is missing costs its seeds, and is said.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>

#include "catalog/internal.h"
#include "common/bytes.h"
#include "common/cleanup.h"
#include "memory_disk.h"
#include "segment_maker.h"
#include "store/disk_log.h"
#include "store/record.h"

static const char *folder;

__attribute__((format(printf, 1, 2))) static int run(const char *format, ...)
{
	char command[1024];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(command, sizeof(command), format, arguments);
	va_end(arguments);
	require(length > 0 && (size_t)length < sizeof(command));
	return system(command); /* a fixed text but for a path of our own */
}

static void write_seed(const char *name, const void *bytes, size_t len_bytes)
{
	static unsigned number;
	char path[512];
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/%s", folder, name);
	(void)mkdir(path, 0700); /* there after the first one */
	(void)snprintf(path, sizeof(path), "%s/%s/seed-%03u", folder, name, number++);
	file = fopen(path, "we");
	require(file != NULL && fwrite(bytes, 1, len_bytes, file) == len_bytes && fclose(file) == 0);
}

static void write_seed_and_free(const char *name, struct byte_writer *writer)
{
	require(!writer->failed);
	write_seed(name, writer->data, writer->len_bytes);
	byte_writer_free(writer);
}

static void put_le16(struct byte_writer *writer, size_t value)
{
	byte_writer_u8(writer, (uint8_t)value);
	byte_writer_u8(writer, (uint8_t)(value >> 8));
}

/* ---- records ---- */

static void make_record(struct codec *codec, uint8_t type, int level, uint8_t flags, const uint8_t *plain,
			uint32_t plain_bytes)
{
	static uint8_t stored[RECORD_STORED_MOST_BYTES];
	struct record_header header = {.type = type};
	struct byte_writer seed = BYTE_WRITER_EMPTY;
	uint8_t bytes[RECORD_HEADER_BYTES];

	require(codec_encode(codec, level, plain, plain_bytes, stored, &header, NULL) == 0);
	record_header_encode(&header, bytes);
	byte_writer_u8(&seed, flags);
	byte_writer_bytes(&seed, bytes, sizeof(bytes));
	byte_writer_bytes(&seed, stored, header.stored_bytes);
	write_seed_and_free("records", &seed);
}

static void make_records(void)
{
	static uint8_t plain[16 << 10];
	struct codec *codec = NULL;
	struct byte_writer content = BYTE_WRITER_EMPTY;

	require(codec_new(&codec, NULL) == 0);
	for (size_t i = 0; i < sizeof(plain); i++)
		plain[i] = (uint8_t)(i % 251 * (i / 1000));
	for (uint8_t flags = 0; flags < 4; flags++) {
		make_record(codec, RECORD_CHUNK, CODEC_LEVEL_LEAST, flags, plain + 2000, 40);
		make_record(codec, RECORD_LOG, CODEC_LEVEL_DEFAULT, flags, plain, 700);
		make_record(codec, RECORD_CHUNK, CODEC_LEVEL_MOST, flags, plain, sizeof(plain));
	}
	byte_writer_u8(&content, 0x80 | CODEC_LEVEL_DEFAULT);
	byte_writer_bytes(&content, plain, 3000);
	write_seed_and_free("records", &content);
	codec_free(codec);
}

/* ---- entries of logs ---- */

enum { ENTRY_HEAD_BYTES = 66, DISK_CHUNKS = 2 * CATALOG_PAGE_ENTRIES };

static struct log_entry entry_of(enum log_op op)
{
	static char name[] = "web01", label[] = "before the update", source[] = "/dev/sda",
		    details[] = "{\"read_errors\":[{\"offset\":4096,\"length\":512}],\"fuzzy_because\":\"mounted\"}";
	static uint8_t digests[3][DIGEST_BYTES] = {{0}, {1}, {2}};
	static struct log_run runs[] = {
		{.first_chunk = 0, .chunk_count = 2, .kind = LOG_RUN_CHUNKS, .digests = digests},
		{.first_chunk = 2, .chunk_count = 5, .kind = LOG_RUN_ZERO},
		{.first_chunk = 300, .chunk_count = 100, .kind = LOG_RUN_NOTHING},
		/* the disk's last one: whatever moves it on is over the end */
		{.first_chunk = DISK_CHUNKS - 1, .chunk_count = 1, .kind = LOG_RUN_CHUNKS, .digests = digests + 2},
	};

	return (struct log_entry){
		.op = op,
		.sequence = op == LOG_CREATE ? 1 : 2,
		.disk_uuid = {1},
		.predecessor = {op == LOG_CREATE ? 0 : 1},
		.time_seconds = 1700000000,
		.name = name,
		.size_bytes = DISK_CHUNKS * SEGMENT_MAKER_CHUNK_BYTES,
		.sector_bytes = 512,
		.chunk_bytes = SEGMENT_MAKER_CHUNK_BYTES,
		.generation = 1,
		.runs = runs,
		.run_count = sizeof(runs) / sizeof(runs[0]),
		.image_number = 1,
		.changed_bytes = 49152,
		.label = label,
		.consistency = 2,
		.round_number = 1,
		.details = details,
		.pinned = true,
		.keep = 7,
		.level = -1,
		.limit_bytes_per_second = 1000000,
		.mirror_of = source,
	};
}

static void make_manifests(void)
{
	for (int op = LOG_CREATE; op <= LOG_REMOVE; op++) {
		struct log_entry entry = entry_of((enum log_op)op);

		for (uint8_t flags = 0; flags < 2; flags++) {
			struct byte_writer seed = BYTE_WRITER_EMPTY;

			byte_writer_u8(&seed, flags);
			require(log_entry_encode(&entry, &seed, NULL) == 0);
			write_seed_and_free("manifests", &seed);
		}
	}
}

/* ---- pages ---- */

static void make_pages(void)
{
	struct catalog_page map = {.entries = {{.kind = CATALOG_NOTHING}}};
	struct past_page past = {.present = {false}};
	struct chunk_page chunks = {.number = 0};
	struct byte_writer seed = BYTE_WRITER_EMPTY;

	for (unsigned i = 0; i < CATALOG_PAGE_ENTRIES; i++) {
		if (i % 100 < 5)
			map.entries[i] = (struct catalog_entry){.kind = CATALOG_CHUNK,
								.chunk = i + 1,
								.since = 3,
								.has_fingerprint = i < 2,
								.fingerprint = {(uint8_t)i}};
		past.present[i] = i % 90 > 80;
		if (past.present[i])
			past.entries[i] = (struct catalog_entry){.kind = (uint8_t)(i % 3), .since = 2};
		if (past.entries[i].kind == CATALOG_CHUNK)
			past.entries[i].chunk = 1000 - i;
	}
	for (unsigned i = 0; i < CATALOG_CHUNK_PAGE_ENTRIES; i += 7)
		chunks.chunks[i] = (struct catalog_location){.tag = i * 1234567u,
							     .segment = 1 + i / 20,
							     .off_bytes = 4096 + i * 800,
							     .stored_bytes = 700,
							     .references = i};
	byte_writer_u8(&seed, 0);
	map_page_encode(&map, &seed);
	write_seed_and_free("pages", &seed);
	byte_writer_u8(&seed, 1);
	past_page_encode(&past, &seed);
	write_seed_and_free("pages", &seed);
	byte_writer_u8(&seed, 2);
	chunk_page_encode(&chunks, &seed);
	write_seed_and_free("pages", &seed);
}

/* ---- segments ---- */

static void put_chunk_item(struct byte_writer *seed, uint8_t what, uint8_t filling, size_t len_bytes)
{
	byte_writer_u8(seed, what);
	put_le16(seed, len_bytes);
	for (size_t i = 0; i < len_bytes; i++)
		byte_writer_u8(seed, filling);
}

static void put_log_item(struct byte_writer *seed, uint8_t what, enum log_op op, uint8_t how)
{
	struct log_entry entry = entry_of(op);
	AUTO(byte_writer_free) struct byte_writer bytes = BYTE_WRITER_EMPTY;

	require(log_entry_encode(&entry, &bytes, NULL) == 0);
	byte_writer_u8(seed, what | ITEM_LOG);
	byte_writer_u8(seed, (uint8_t)(op - 1) | how);
	put_le16(seed, bytes.len_bytes - ENTRY_HEAD_BYTES);
	byte_writer_bytes(seed, bytes.data + ENTRY_HEAD_BYTES, bytes.len_bytes - ENTRY_HEAD_BYTES);
}

static void make_segments(void)
{
	static const enum log_op life[] = {LOG_CREATE,	  LOG_EXTENTS,	   LOG_IMAGE,  LOG_POLICY,
					   LOG_IMAGE_PIN, LOG_IMAGE_LABEL, LOG_RESIZE, LOG_IMAGE_DELETE};

	for (unsigned variant = 0; variant < 6; variant++) {
		struct byte_writer seed = BYTE_WRITER_EMPTY;

		byte_writer_u8(&seed, (uint8_t)(variant << 2)); /* fuzz_segment.c: flags */
		put_chunk_item(&seed, ITEM_CHUNK | ITEM_PACKED, 'a', 300);
		put_chunk_item(&seed, ITEM_CHUNK, 'b', 20);
		put_chunk_item(&seed, ITEM_CHUNK | ITEM_ENDS_SYNC, 'c', 9);
		for (size_t i = 0; i < sizeof(life) / sizeof(life[0]) && i < 2 + 2 * variant; i++) {
			put_log_item(&seed, i == 2 ? ITEM_ENDS_SYNC : ITEM_PACKED, life[i], 0);
			if (variant == 4 && i == 1)
				put_log_item(&seed, 0, LOG_EXTENTS, ENTRY_NEVER_WAS);
		}
		if (variant == 3)
			put_log_item(&seed, 0, LOG_REMOVE, 0);
		if (variant == 1) {
			byte_writer_u8(&seed, ITEM_CHUNK | ITEM_LIES);
			byte_writer_le32(&seed, 24);
			put_le16(&seed, 24);
			byte_writer_bytes(&seed, "as long as its header says", 24);
		}
		if (variant == 5)
			put_log_item(&seed, 0, LOG_CREATE, ENTRY_OTHER_DISK);
		write_seed_and_free("segment", &seed);
	}
}

/* ---- layouts ---- */

/*
 * A disk image as pieces: sectors that aren't zero, each without the zeros at its end. The fewer bytes, the more often
 * a mutation hits one that matters.
 */
static void write_layout_seed(const char *image, uint8_t flags)
{
	enum { SECTOR_BYTES = MEMORY_DISK_SECTOR_BYTES };
	AUTO_CLOSE int fd = open(image, O_RDONLY | O_CLOEXEC);
	struct byte_writer seed = BYTE_WRITER_EMPTY;
	uint8_t sector[SECTOR_BYTES];
	struct stat status;
	uint32_t sectors;

	require(fd >= 0 && fstat(fd, &status) == 0);
	sectors = (uint32_t)(status.st_size / SECTOR_BYTES);
	byte_writer_u8(&seed, flags);
	byte_writer_u8(&seed, 11); /* in MiB */
	put_le16(&seed, sectors / 2048 - 1);
	for (uint32_t at = 0; at < sectors; at++) {
		size_t len_bytes = SECTOR_BYTES;

		require(pread(fd, sector, sizeof(sector), (off_t)at * SECTOR_BYTES) == SECTOR_BYTES);
		while (len_bytes > 0 && sector[len_bytes - 1] == 0)
			len_bytes--;
		if (len_bytes == 0)
			continue;
		byte_writer_le32(&seed, at);
		put_le16(&seed, len_bytes);
		byte_writer_bytes(&seed, sector, len_bytes);
	}
	write_seed_and_free("layout", &seed);
}

/* `script` is for sfdisk, none: no table. `command` makes what is in the disk, its %s is the image. */
static void make_layout(const char *image, unsigned mib, const char *script, const char *in_it, uint8_t flags)
{
	(void)unlink(image);
	if (run("truncate -s %uM %s", mib, image) != 0 ||
	    (script != NULL && run("printf '%s' | sfdisk -q --wipe never %s >/dev/null 2>&1", script, image) != 0) ||
	    (in_it != NULL && run("image=%s; { %s; } >/dev/null 2>&1", image, in_it) != 0)) {
		(void)fprintf(stderr, "fuzz-seeds: no seed of a disk: a command failed: %s\n",
			      in_it != NULL ? in_it : "sfdisk");
		return;
	}
	write_layout_seed(image, flags);
}

static void make_layouts(void)
{
	static const char gpt[] = "label: gpt\\nstart=2048,size=16384\\nstart=40960,size=4096,type=swap\\n";
	static const char dos[] =
		"label: dos\\nstart=2048,size=16384\\nstart=49152,size=8192,type=5\\nstart=51200,size=2048\\n";
	static const char two[] = "label: dos\\nstart=2048,size=16384\\nstart=49152,size=16384\\n";
	static const char ext4[] = "mke2fs -Fq -t ext4 -O ^metadata_csum,^has_journal,^resize_inode -N 16 -E "
				   "offset=1048576,nodiscard -b 1024 $image 8192; true";
	static const char whole[] = "mke2fs -Fq -t ext2 -O ^resize_inode -N 16 -b 1024 -g 1024 $image";
	static const char whole_4k[] = "mke2fs -Fq -t ext4 -O ^has_journal,^resize_inode -N 16 -b 4096 $image";
	static const char swap[] = "mkswap $image";
	char image[512];

	(void)snprintf(image, sizeof(image), "%s/image", folder);
	make_layout(image, 64, gpt, ext4, MEMORY_DISK_MEND);
	make_layout(image, 64, two, ext4, MEMORY_DISK_IS_DEVICE);
	make_layout(image, 64, dos, ext4, MEMORY_DISK_IS_DEVICE);
	make_layout(image, 64, dos, NULL, MEMORY_DISK_READ_ALL | MEMORY_DISK_KNOWS_HOLES);
	make_layout(image, 4, NULL, whole, MEMORY_DISK_IS_DEVICE | MEMORY_DISK_KNOWS_HOLES);
	make_layout(image, 16, NULL, whole_4k, 0);
	make_layout(image, 16, NULL, swap, 0);
	(void)unlink(image);
}

/* ---- JSON ---- */

static void make_texts(void)
{
	static const char *const texts[] = {
		"\0{\"format\": 1, \"store_id\": \"00112233445566778899aabbccddeeff\", \"chunk_bytes\": 65536, "
		"\"created_at_unix\": 1700000000}",
		"\1{\"bytes\": 12345, \"at\": [0, 4096, 1048576]}",
	};
	static const char notes[] =
		"\2{\"layout\":\"0000000000001234\",\"names\":[\"daily\"],\"marks\":{\"bytes\":512,\"at\":[4096]},"
		"\"used\":\"daily\"}\0{\"read_errors\":[{\"offset\":0,\"length\":512}],\"left_out_bytes\":0}";
	static const char clean_notes[] =
		"\2{\"layout\":\"0000000000001234\",\"names\":[\"daily\"],\"marks\":{\"bytes\":512,\"at\":[4096]},"
		"\"used\":\"daily\"}\0{\"read_errors\":[]}";

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		write_seed("json", texts[i], 1 + strlen(texts[i] + 1));
	write_seed("json", notes, sizeof(notes) - 1);
	write_seed("json", clean_notes, sizeof(clean_notes) - 1);
}

int main(int count, char **arguments)
{
	if (count != 2) {
		(void)fprintf(stderr, "usage: fuzz-seeds FOLDER\n");
		return 2;
	}
	folder = arguments[1];
	require(mkdir(folder, 0700) == 0);
	make_records();
	make_manifests();
	make_pages();
	make_segments();
	make_layouts();
	make_texts();
	return 0;
}
