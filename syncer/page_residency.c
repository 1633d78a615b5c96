/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking into the page cache with mincore().
 *
 * preadv2(RWF_NOWAIT), which copies what is resident and nothing else, would be
 * the obvious tool. But it no longer implies "no I/O": with Linux 6.18 it starts
 * readahead on what is absent, and one pass over a cold file made all of it
 * resident. cachestat(), which came with Linux 6.5, counts pages without saying
 * which, and does it a good ten times faster: where it counts all, that is the answer.
 *
 * Regions are 64 MiB: larger than readahead gets, so that looking one region
 * ahead is enough, and the last few are remembered, more than requests in flight
 * span. Looking with mincore() costs some 10 (cold) to 50 ms (warm) a GiB.
 *
 * What was resident may have been driven out since. When the look at a region is
 * seconds old, a window of it is looked at once more before it is called resident.
 */
#include "syncer/page_residency.h"

#include <assert.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"

enum { REGION_BYTES = 64 << 20, REGION_PAGES = REGION_BYTES / 4096, REGIONS = 16, FRESH_SECONDS = 2 };

struct region {
	bool is_used;
	uint64_t off_bytes;
	void *view; /* of the file, never touched: mincore() wants one. MAP_FAILED: nothing is known */
	double looked_at_seconds;
	unsigned char pages[REGION_PAGES];
};

struct page_residency {
	int fd;
	uint64_t size_bytes;
	size_t page_bytes;
	pthread_mutex_t lock; /* guards all of the following */
	unsigned next_victim;
	struct region regions[REGIONS];
};

struct page_residency *page_residency_new(int fd, uint64_t size_bytes)
{
	struct page_residency *residency = calloc(1, sizeof(*residency));

	if (residency == NULL)
		return NULL;
	residency->fd = fd;
	residency->size_bytes = size_bytes;
	residency->page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	(void)pthread_mutex_init(&residency->lock, NULL); /* can't fail with default attributes */
	return residency;
}

static void drop_region(struct region *region)
{
	if (region->is_used && region->view != MAP_FAILED)
		(void)munmap(region->view, REGION_BYTES); /* ours and whole: can't fail */
	region->is_used = false;
}

void page_residency_free(struct page_residency *residency)
{
	if (residency == NULL)
		return;
	for (unsigned i = 0; i < REGIONS; i++)
		drop_region(&residency->regions[i]);
	(void)pthread_mutex_destroy(&residency->lock);
	free(residency);
}

/* As in Linux' include/uapi/linux/mman.h and asm-generic/unistd.h: Debian 12's headers are older. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
struct cachestat_range {
	uint64_t off, len;
};
struct cachestat_counts {
	uint64_t nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted;
};

/* How many pages. False when it can't be told: an older kernel, or somebody else's file. */
static bool count_resident(const struct page_residency *residency, uint64_t off_bytes, uint64_t len_bytes, size_t *ret_count)
{
	struct cachestat_range range = { .off = off_bytes, .len = len_bytes };
	struct cachestat_counts counts = { .nr_cache = 0 };

	if (syscall(SYS_cachestat, residency->fd, &range, &counts, 0) != 0)
		return false;
	*ret_count = counts.nr_cache;
	return true;
}

/* Pages are marked window by window: most are in memory as a whole, or not at all. False: nothing can be found out. */
static bool look_at_window(const struct page_residency *residency, const struct region *region, uint64_t off_bytes,
			   uint64_t len_bytes, unsigned char *pages)
{
	size_t count = (len_bytes + residency->page_bytes - 1) / residency->page_bytes, counted;

	if (!count_resident(residency, off_bytes, count * residency->page_bytes, &counted) || (counted != 0 && counted < count))
		return mincore((char *)region->view + (off_bytes - region->off_bytes), count * residency->page_bytes, pages) == 0;
	memset(pages, counted == 0 ? 0 : 1, count);
	return true;
}

static void look_at_region(const struct page_residency *residency, struct region *region, uint64_t off_bytes)
{
	uint64_t left_bytes = residency->size_bytes - off_bytes;
	uint64_t end_bytes = off_bytes + (left_bytes < REGION_BYTES ? left_bytes : REGION_BYTES);

	region->is_used = true;
	region->off_bytes = off_bytes;
	region->looked_at_seconds = units_monotonic_seconds();
	region->view =
		mmap(NULL, REGION_BYTES, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, residency->fd, (off_t)off_bytes);
	if (region->view == MAP_FAILED)
		return;
	memset(region->pages, 0, sizeof(region->pages));
	for (uint64_t at = off_bytes; at < end_bytes; at += RESIDENCY_WINDOW_BYTES) {
		uint64_t len_bytes = end_bytes - at < RESIDENCY_WINDOW_BYTES ? end_bytes - at : RESIDENCY_WINDOW_BYTES;

		if (!look_at_window(residency, region, at, len_bytes, region->pages + (at - off_bytes) / residency->page_bytes)) {
			(void)munmap(region->view, REGION_BYTES);
			region->view = MAP_FAILED;
			return;
		}
	}
}

static struct region *get_region_locked(struct page_residency *residency, uint64_t off_bytes)
{
	struct region *victim = &residency->regions[residency->next_victim];

	for (unsigned i = 0; i < REGIONS; i++) {
		if (residency->regions[i].is_used && residency->regions[i].off_bytes == off_bytes)
			return &residency->regions[i];
	}
	residency->next_victim = (residency->next_victim + 1) % REGIONS;
	drop_region(victim);
	look_at_region(residency, victim, off_bytes);
	return victim;
}

static bool all_resident(const unsigned char *pages, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if ((pages[i] & 1) == 0)
			return false;
	}
	return true;
}

static bool still_resident(const struct page_residency *residency, const struct region *region, size_t first_page,
			   size_t count)
{
	unsigned char pages[RESIDENCY_WINDOW_PAGES];

	if (units_monotonic_seconds() - region->looked_at_seconds < FRESH_SECONDS)
		return true;
	return mincore((char *)region->view + first_page * residency->page_bytes, count * residency->page_bytes,
		       pages) == 0 &&
	       all_resident(pages, count);
}

/* The region that a part of a window is in; it has no view if nothing can be told. */
static const struct region *look_locked(struct page_residency *residency, uint64_t off_bytes)
{
	uint64_t region_off_bytes = off_bytes & ~(uint64_t)(REGION_BYTES - 1);

	if (residency->size_bytes - region_off_bytes > REGION_BYTES)
		(void)get_region_locked(residency,
					region_off_bytes + REGION_BYTES); /* before we read anything near it */
	return get_region_locked(residency, region_off_bytes);
}

static size_t find_pages(const struct page_residency *residency, const struct region *region, uint64_t off_bytes,
			 size_t len_bytes, size_t *ret_first)
{
	size_t last = (size_t)((off_bytes - region->off_bytes + len_bytes - 1) / residency->page_bytes);

	assert(len_bytes > 0);
	*ret_first = (size_t)((off_bytes - region->off_bytes) / residency->page_bytes);
	assert(last - *ret_first < RESIDENCY_WINDOW_PAGES);
	return last - *ret_first + 1;
}

void page_residency_look(struct page_residency *residency, uint64_t off_bytes, size_t len_bytes,
			 struct residency *ret_known)
{
	WITH_LOCK(&residency->lock);
	const struct region *region = look_locked(residency, off_bytes);
	size_t first, count = find_pages(residency, region, off_bytes, len_bytes, &first);

	ret_known->is_known = region->view != MAP_FAILED;
	ret_known->is_resident = false;
	if (!ret_known->is_known)
		return;
	ret_known->off_bytes = region->off_bytes + first * residency->page_bytes;
	ret_known->page_count = count;
	memcpy(ret_known->pages, region->pages + first, count);
	ret_known->is_resident =
		all_resident(ret_known->pages, count) && still_resident(residency, region, first, count);
}

bool page_residency_is_resident(struct page_residency *residency, uint64_t off_bytes, size_t len_bytes)
{
	WITH_LOCK(&residency->lock);
	const struct region *region = look_locked(residency, off_bytes);
	size_t first, count = find_pages(residency, region, off_bytes, len_bytes, &first);

	return region->view != MAP_FAILED && all_resident(region->pages + first, count) &&
	       still_resident(residency, region, first, count);
}

void page_residency_restore(const struct page_residency *residency, const struct residency *known)
{
	size_t from = 0;

	while (known->is_known && from < known->page_count) {
		size_t to = from;

		while (to < known->page_count && (known->pages[to] & 1) == 0)
			to++;
		if (to > from) /* advice: when it fails, pages stay, and nothing is wrong with what was read */
			(void)posix_fadvise(residency->fd, (off_t)(known->off_bytes + from * residency->page_bytes),
					    (off_t)((to - from) * residency->page_bytes), POSIX_FADV_DONTNEED);
		from = to + 1;
	}
}

/* The first absent page is the sign: whoever read it in has read on from there. */
void page_residency_restore_if_changed(struct page_residency *residency, const struct residency *known)
{
	uint64_t region_off_bytes = known->off_bytes & ~(uint64_t)(REGION_BYTES - 1);
	const unsigned char *absent;
	unsigned char now = 0;

	if (!known->is_known)
		return;
	for (absent = known->pages; absent < known->pages + known->page_count && (*absent & 1) != 0;)
		absent++;
	if (absent == known->pages + known->page_count)
		return;
	{
		WITH_LOCK(&residency->lock);
		const struct region *region = get_region_locked(residency, region_off_bytes);
		size_t page = (size_t)((known->off_bytes - region_off_bytes) / residency->page_bytes) +
			      (size_t)(absent - known->pages);

		if (region->view != MAP_FAILED)
			(void)mincore((char *)region->view + page * residency->page_bytes, residency->page_bytes, &now);
	}
	if ((now & 1) != 0)
		page_residency_restore(residency, known);
}
