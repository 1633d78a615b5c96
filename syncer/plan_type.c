/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is in a partition.
 *
 * libblkid's low-level probing on a sketch: the first and the last MiB, where superblocks are. It gets to see
 * zeros in between, so a signature further inside (VMFS at 2 MiB) goes unnoticed; then the type is unknown
 * and the partition is read whole, as one of a known type without an allocation map that we read is.
 *
 * The types that decide over what is left out are ext2, ext3, ext4 and swap, and only when nothing else has a
 * signature in the same place: safeprobe answers "ambivalent" then. Swap is what says SWAPSPACE2 at the end of its
 * first page; a hibernated system writes another signature over it (libblkid: swsuspend), and its memory is
 * content that counts.
 *
 * The flags by which a file system says that it is in use are read where one look at the superblock
 * tells: ext, FAT, exFAT, Btrfs. They are for the report only; XFS and NTFS would need their journals read.
 */
#include "syncer/plan_internal.h"

#include <blkid/blkid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"

enum {
	EXT_SUPERBLOCK_OFF = 1024,
	EXT_STATE_VALID = 1,
	EXT_INCOMPAT_RECOVER = 4,
	BTRFS_SUPERBLOCK_OFF = 64 * 1024,
	BTRFS_LOG_ROOT_OFF = 96,
	SWAP_MIN_PAGE_BYTES = 4096,
	SWAP_MAX_PAGE_BYTES = 64 * 1024,
	SWAP_HEADER_OFF = 1024,
	SWAP_MAGIC_BYTES = 10,
	SWAP_EDGE_BYTES = 64 * 1024, /* read of swap: the header (one page), and as much before its end */
};

bool plan_type_is_ext(const char *name)
{
	return strcmp(name, "ext2") == 0 || strcmp(name, "ext3") == 0 || strcmp(name, "ext4") == 0;
}

static void copy_value(blkid_probe probe, const char *key, char *ret_text, size_t text_bytes)
{
	const char *value = NULL;

	ret_text[0] = '\0';
	if (blkid_probe_lookup_value(probe, key, &value, NULL) == 0 && value != NULL && strlen(value) < text_bytes)
		memcpy(ret_text, value, strlen(value) + 1);
}

/* ---------------------------------------------------------- what its flags say */

static int ext_looks_in_use(const struct plan_sketch *sketch, bool *ret_looks_in_use, struct failure *failure)
{
	uint8_t super[128];
	int error = plan_sketch_get(sketch, super, sizeof(super), EXT_SUPERBLOCK_OFF, failure);

	if (error == 0)
		*ret_looks_in_use = (bytes_get_le16(super + 58) & EXT_STATE_VALID) == 0 ||
				    (bytes_get_le32(super + 96) & EXT_INCOMPAT_RECOVER) != 0;
	return error;
}

static int fat_looks_in_use(const struct plan_sketch *sketch, const char *version, bool *ret_looks_in_use,
			    struct failure *failure)
{
	uint8_t boot[128];
	int error = plan_sketch_get(sketch, boot, sizeof(boot), 0, failure);

	/* BS_Reserved1, bit 0: Windows and Linux set it while the volume is mounted. */
	if (error == 0)
		*ret_looks_in_use = (boot[strcmp(version, "FAT32") == 0 ? 65 : 37] & 1) != 0;
	return error;
}

static int exfat_looks_in_use(const struct plan_sketch *sketch, bool *ret_looks_in_use, struct failure *failure)
{
	uint8_t boot[128];
	int error = plan_sketch_get(sketch, boot, sizeof(boot), 0, failure);

	if (error == 0)
		*ret_looks_in_use = (boot[106] & 2) != 0; /* VolumeFlags.VolumeDirty */
	return error;
}

static int btrfs_looks_in_use(const struct plan_sketch *sketch, bool *ret_looks_in_use, struct failure *failure)
{
	uint8_t super[128];
	int error = plan_sketch_get(sketch, super, sizeof(super), BTRFS_SUPERBLOCK_OFF, failure);

	/* A log tree is there between an fsync and the next commit, and gone after a clean unmount. */
	if (error == 0)
		*ret_looks_in_use = bytes_get_le64(super + BTRFS_LOG_ROOT_OFF) != 0;
	return error;
}

/* ------------------------------------------------------------------------ swap */

/*
 * The pages of a swap area, from the header that the kernel would read: version 1, in this machine's byte order,
 * and no more pages than fit. Anything else isn't left out. What of the partition lies behind the last page doesn't
 * belong to it.
 */
static int measure_swap(const struct plan_sketch *sketch, struct plan_span *ret_pages, struct failure *failure)
{
	uint8_t header[16];
	uint8_t magic[SWAP_MAGIC_BYTES];
	uint64_t page_bytes, end_bytes;
	int error = 0;

	for (page_bytes = SWAP_MIN_PAGE_BYTES; page_bytes <= SWAP_MAX_PAGE_BYTES; page_bytes *= 2) {
		error = plan_sketch_get(sketch, magic, sizeof(magic), page_bytes - sizeof(magic), failure);
		if (error < 0 || memcmp(magic, "SWAPSPACE2", sizeof(magic)) == 0)
			break;
	}
	if (error == 0)
		error = plan_sketch_get(sketch, header, sizeof(header), SWAP_HEADER_OFF, failure);
	if (error < 0 || page_bytes > SWAP_MAX_PAGE_BYTES || bytes_get_le32(header) != 1)
		return error;
	end_bytes = ((uint64_t)bytes_get_le32(header + 4) + 1) * page_bytes;
	if (end_bytes > sketch->len_bytes || end_bytes < 3 * (uint64_t)SWAP_EDGE_BYTES)
		return 0;
	*ret_pages = (struct plan_span){.first = SWAP_EDGE_BYTES, .end = end_bytes - SWAP_EDGE_BYTES};
	return 0;
}

/* -------------------------------------------------------------------- libblkid */

static int look_closer(const struct plan_sketch *sketch, blkid_probe probe, struct plan_type *type,
		       struct failure *failure)
{
	char version[16];

	if (plan_type_is_ext(type->name))
		return ext_looks_in_use(sketch, &type->looks_in_use, failure);
	if (strcmp(type->name, "vfat") == 0) {
		copy_value(probe, "VERSION", version, sizeof(version));
		return fat_looks_in_use(sketch, version, &type->looks_in_use, failure);
	}
	if (strcmp(type->name, "exfat") == 0)
		return exfat_looks_in_use(sketch, &type->looks_in_use, failure);
	if (strcmp(type->name, "btrfs") == 0)
		return btrfs_looks_in_use(sketch, &type->looks_in_use, failure);
	if (strcmp(type->name, "swap") == 0)
		return measure_swap(sketch, &type->swap_pages, failure);
	return 0;
}

static int ask_blkid(const struct plan_sketch *sketch, blkid_probe probe, struct plan_type *type,
		     struct failure *failure)
{
	char table[32], usage[32];

	if (blkid_probe_set_device(probe, sketch->fd, 0, (blkid_loff_t)sketch->len_bytes) != 0 ||
	    blkid_probe_enable_superblocks(probe, 1) != 0 ||
	    blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE | BLKID_SUBLKS_VERSION |
							     BLKID_SUBLKS_LABEL | BLKID_SUBLKS_UUID) != 0 ||
	    blkid_probe_enable_partitions(probe, 1) != 0) {
		type->is_ambivalent = true;
		return 0;
	}
	switch (blkid_do_safeprobe(probe)) {
	case 0:
		break;
	case 1: /* nothing that it knows */
		return 0;
	default: /* -2: more than one thing; -1: an error, which on a memfd is a table or superblock that makes no sense
		  */
		type->is_ambivalent = true;
		return 0;
	}
	copy_value(probe, "TYPE", type->name, sizeof(type->name));
	copy_value(probe, "LABEL", type->label, sizeof(type->label));
	copy_value(probe, "UUID", type->uuid, sizeof(type->uuid));
	copy_value(probe, "USAGE", usage, sizeof(usage));
	type->holds_files = strcmp(usage, "filesystem") == 0 && strcmp(type->name, "zfs_member") != 0; /* which libblkid calls one, too */
	copy_value(probe, "PTTYPE", table, sizeof(table));
	type->has_other_table = table[0] != '\0' && strcmp(table, "dos") != 0 && strcmp(table, "gpt") != 0 &&
				strcmp(table, "PMBR") != 0;
	return look_closer(sketch, probe, type, failure);
}

int plan_type_probe(struct source *source, uint64_t off_bytes, uint64_t len_bytes, struct plan_type *ret_type,
		    struct failure *failure)
{
	struct plan_type type = {.name = ""};
	struct plan_sketch sketch;
	blkid_probe probe = NULL;
	int error = plan_sketch_open(source, off_bytes, len_bytes, &sketch, failure);

	if (error < 0)
		return error;
	error = plan_sketch_copy_edges(&sketch, failure);
	if (error == 0 && sketch.is_incomplete) {
		type.is_ambivalent = true;
	} else if (error == 0) {
		probe = blkid_new_probe();
		error = probe == NULL ? fail(failure, -ENOMEM, "plan: out of memory")
				      : ask_blkid(&sketch, probe, &type, failure);
	}
	blkid_free_probe(probe);
	plan_sketch_close(&sketch);
	if (error == 0)
		*ret_type = type;
	return error;
}
