/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scratch overlay: a disk that can be written to, over one that is not changed by it.
 *
 * What is written goes to temporary files, which have no name and are gone with the overlay or its process, however
 * that ends. Nothing is durable, so there is no flush. Byte granularity, any number of threads; ranges as in
 * store/disk.h, and its errors. -ENOSPC: no room for temporary files; what was not concerned is as it was.
 *
 *     scratch_new(disk, NULL, &scratch, …);  scratch_write(scratch, …);  scratch_read(scratch, …);
 *     scratch_free(scratch);                 disk_close(disk, …);
 */
#ifndef WHERRY_STORE_SCRATCH_H
#define WHERRY_STORE_SCRATCH_H

#include "store/disk.h"

struct scratch;

/*
 * `base` is borrowed: read only, and must outlive the overlay. `folder`: where the temporary files are made; NULL:
 * $TMPDIR, else /var/tmp. Costs nothing until something is written. -ENOENT, -EACCES and others: that folder is no
 * good.
 */
int scratch_new(struct disk *base, const char *folder, struct scratch **ret_scratch, struct failure *failure);
void scratch_free(struct scratch *scratch); /* nobody uses it any more; NULL is fine */

int scratch_read(struct scratch *scratch, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure);
int scratch_write(struct scratch *scratch, const void *buffer, size_t len_bytes, uint64_t off_bytes,
		  struct failure *failure);
int scratch_zero(struct scratch *scratch, uint64_t len_bytes, uint64_t off_bytes, struct failure *failure);

/* As disk_extents(). */
int scratch_extents(struct scratch *scratch, uint64_t off_bytes, uint64_t len_bytes,
		    int (*found)(void *opaque, uint64_t off_bytes, uint64_t len_bytes, bool is_hole, bool is_zero),
		    void *opaque, struct failure *failure);

#endif
