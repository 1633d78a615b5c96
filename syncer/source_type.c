/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A source that can do nothing but read, for libblkid to look at.
 */
#include "syncer/source_type.h"

#include <stdio.h>
#include <string.h>

#include "syncer/plan_internal.h"
#include "syncer/source_internal.h"

enum { SECTOR_DEFAULT_BYTES = 512 };

struct type_source {
	struct source base;
	int (*read)(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure);
	void *opaque;
};

static int type_source_read(struct source *source, void *buffer, size_t len_bytes, uint64_t off_bytes,
			    struct failure *failure)
{
	struct type_source *own = (struct type_source *)source; /* base is the first member */

	return own->read(own->opaque, buffer, len_bytes, off_bytes, failure);
}

static const struct source_ops type_source_ops = {.read = type_source_read};

static int probe(int (*read)(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes,
			     struct failure *failure),
		 void *opaque, uint64_t size_bytes, uint32_t sector_bytes, struct plan_type *ret_type,
		 struct failure *failure)
{
	char name[] = "volume";
	struct type_source source = {
		.base = {.ops = &type_source_ops, .grain_bytes = SECTOR_DEFAULT_BYTES}, .read = read, .opaque = opaque};

	source.base.info.name = name;
	source.base.info.size_bytes = size_bytes;
	source.base.info.sector_bytes = sector_bytes != 0 ? sector_bytes : SECTOR_DEFAULT_BYTES;
	return plan_type_probe(&source.base, 0, size_bytes, ret_type, failure);
}

int source_type_of(int (*read)(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes,
			       struct failure *failure),
		   void *opaque, uint64_t size_bytes, uint32_t sector_bytes, char ret_type[SOURCE_TYPE_BYTES],
		   struct failure *failure)
{
	struct plan_type type;
	int error = probe(read, opaque, size_bytes, sector_bytes, &type, failure);

	if (error == 0)
		(void)snprintf(ret_type, SOURCE_TYPE_BYTES, "%s", type.name);
	return error;
}

int source_describe(int (*read)(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes,
				struct failure *failure),
		    void *opaque, uint64_t size_bytes, uint32_t sector_bytes, struct disk_partition *ret_partition,
		    struct failure *failure)
{
	struct disk_partition partition = {.len_bytes = size_bytes};
	struct plan_type type;
	int error = probe(read, opaque, size_bytes, sector_bytes, &type, failure);

	if (error < 0)
		return error;
	(void)snprintf(partition.type, sizeof(partition.type), "%s", type.name);
	(void)snprintf(partition.label, sizeof(partition.label), "%s", type.label);
	(void)snprintf(partition.uuid, sizeof(partition.uuid), "%s", type.uuid);
	partition.holds_files = type.holds_files;
	*ret_partition = partition;
	return 0;
}
