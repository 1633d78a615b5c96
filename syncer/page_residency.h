/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of a file were in the host's page cache before we came.
 *
 * Reading a file must neither fill the page cache nor go past what is there
 * already. Both need the same knowledge, and it has to be older than our own
 * reads: as soon as a resident page is read, the kernel may read ahead, and what
 * it brings in then would look as if it had been there all the time. So the file
 * is looked at in regions, each once, and the one after a region always before
 * anything of the region is read.
 */
#ifndef WHERRY_SYNCER_PAGE_RESIDENCY_H
#define WHERRY_SYNCER_PAGE_RESIDENCY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	RESIDENCY_WINDOW_BYTES = 1 << 20, /* what is asked about at once lies within one aligned window of this size */
	RESIDENCY_WINDOW_PAGES = RESIDENCY_WINDOW_BYTES / 4096
};

struct page_residency;

/* What is known of a part of a window. */
struct residency {
	bool is_known;	  /* false: it can't be found out, and nothing may be concluded */
	bool is_resident; /* all of it was, and, as far as one can say, is */
	uint64_t off_bytes;
	size_t page_count;			     /* from off_bytes on */
	unsigned char pages[RESIDENCY_WINDOW_PAGES]; /* bit 0: was resident */
};

/* `fd` is borrowed. NULL: no memory. Any thread may call the functions below. */
struct page_residency *page_residency_new(int fd, uint64_t size_bytes);
void page_residency_free(struct page_residency *residency); /* NULL is fine */

void page_residency_look(struct page_residency *residency, uint64_t off_bytes, size_t len_bytes,
			 struct residency *ret_known);

/* Just whether all of it was and is, as in `is_resident`. */
bool page_residency_is_resident(struct page_residency *residency, uint64_t off_bytes, size_t len_bytes);

/* After an ordinary read: drops those pages that had been absent. */
void page_residency_restore(const struct page_residency *residency, const struct residency *known);

/* After a read that should have left the page cache alone: the same, if there is a sign that it hasn't. */
void page_residency_restore_if_changed(struct page_residency *residency, const struct residency *known);

#endif
