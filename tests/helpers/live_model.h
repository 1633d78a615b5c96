/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a live disk may hold after the power failed, for power_live.c, which writes to one while it is recorded, and
 * power_check.c, which looks at what is left.
 *
 * Every write has a number, and leaves it in each sector of 512 bytes, or zeros. Whoever writes notes in the log of
 * preload_record.c what it begins and what was acknowledged, so that these stand among the records in their true order:
 *
 *     w N FIRST END ZERO   write N to sectors FIRST to END - 1 begins; ZERO 1: of zeros
 *     a N DURABLE          it was acknowledged; DURABLE 1: as durable (FUA)
 *     f ID, F ID           a flush begins, and was acknowledged
 *     i ID, I ID NUMBER    an image is asked for, and is there
 *     o N [FIRST:END:M]…   the disk was opened: what a crash left is as follows, and must stay. Sectors that aren't
 * named are zeros, as if write N had made them so. Writes before N are history: of them just what is there may be seen
 * again
 *
 * Of a sector only one thing is under way at a time. It may hold any write from the last one that is known to be
 * durable to the last one that was begun.
 */
#ifndef TESTS_HELPERS_LIVE_MODEL_H
#define TESTS_HELPERS_LIVE_MODEL_H

#include <err.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIVE_SECTOR = 512, LIVE_IDS = 64, LIVE_WRONG_MOST = 5 };

/* ---- content ---- */

static inline void live_stamp_sector(uint8_t at[LIVE_SECTOR], uint32_t number, uint64_t sector)
{
	uint64_t filler = number * 0x9e3779b97f4a7c15U ^ sector;

	/* every other write is of what compresses */
	for (unsigned i = 0; i < LIVE_SECTOR;
	     i += 8, filler = number % 2 == 0 ? filler : filler * 6364136223846793005U + 1)
		memcpy(at + i, &filler, 8);
	memcpy(at, &number, sizeof(number));
	memcpy(at + 4, &sector, sizeof(sector));
}

/* The number of the write that left this; 0: zeros; UINT32_MAX: none did. */
static inline uint32_t live_read_stamp(const uint8_t at[LIVE_SECTOR], uint64_t sector)
{
	uint8_t expected[LIVE_SECTOR] = {0};
	uint32_t number;

	memcpy(&number, at, sizeof(number));
	if (number > 0)
		live_stamp_sector(expected, number, sector);
	return memcmp(at, expected, LIVE_SECTOR) == 0 ? number : UINT32_MAX;
}

/* ---- what is known ---- */

struct live_sector {
	uint32_t opened;       /* what was there when the disk was opened */
	uint32_t durable;      /* not older than this */
	uint32_t acknowledged; /* the last one that was */
	uint32_t begun;	       /* not newer than this */
	uint32_t zeros;	       /* the last write of zeros that was begun */
};

struct live_write {
	uint64_t first, end;
	bool is_zero;
};

struct live_image {
	uint32_t id, number;	    /* number 0: it is asked for */
	uint32_t *oldest;	    /* what had been acknowledged then, by sector */
	struct live_sector *newest; /* what had been begun when it was there; NULL: now */
	uint32_t opened_at;
};

struct live_model {
	uint64_t sectors;
	struct live_sector *now;
	struct live_write *writes; /* [number] */
	uint32_t write_count, write_room;
	uint32_t opened_at;	     /* writes from this one on are of this opening */
	uint32_t *flushes[LIVE_IDS]; /* by ID: what had been acknowledged when it began */
	struct live_image *images;
	size_t image_count;
};

static inline void *live_alloc(size_t count, size_t each_bytes)
{
	void *memory = calloc(count, each_bytes);

	if (memory == NULL)
		err(3, "memory");
	return memory;
}

static inline void live_model_begin(struct live_model *model, uint64_t sectors)
{
	*model = (struct live_model){.sectors = sectors, .write_count = 1};
	model->now = live_alloc(sectors, sizeof(*model->now));
}

static inline uint32_t *live_acknowledged(const struct live_model *model)
{
	uint32_t *copy = live_alloc(model->sectors, sizeof(*copy));

	for (uint64_t i = 0; i < model->sectors; i++)
		copy[i] = model->now[i].acknowledged;
	return copy;
}

static inline struct live_sector *live_copy(const struct live_model *model)
{
	struct live_sector *copy = live_alloc(model->sectors, sizeof(*copy));

	memcpy(copy, model->now, model->sectors * sizeof(*copy));
	return copy;
}

/* ---- notes ---- */

static inline void live_note_write(struct live_model *model, uint32_t number, uint64_t first, uint64_t end,
				   bool is_zero)
{
	if (end > model->sectors || first > end)
		errx(3, "write %" PRIu32 " is beyond the end", number);
	if (number >= model->write_room) {
		model->write_room = number * 2 + 1024;
		model->writes = reallocarray(model->writes, model->write_room, sizeof(*model->writes));
		if (model->writes == NULL)
			err(3, "memory");
	}
	while (model->write_count <= number)
		model->writes[model->write_count++] = (struct live_write){.end = 0}; /* others' are noted later */
	model->writes[number] = (struct live_write){.first = first, .end = end, .is_zero = is_zero};
	for (uint64_t i = first; i < end; i++) {
		model->now[i].begun = number;
		if (is_zero)
			model->now[i].zeros = number;
	}
}

static inline void live_note_acknowledged(struct live_model *model, uint32_t number, bool is_durable)
{
	for (uint64_t i = model->writes[number].first; i < model->writes[number].end; i++) {
		model->now[i].acknowledged = number;
		if (is_durable)
			model->now[i].durable = number;
	}
}

static inline void live_note_flush(struct live_model *model, uint32_t id, bool is_done)
{
	if (!is_done) {
		free(model->flushes[id % LIVE_IDS]);
		model->flushes[id % LIVE_IDS] = live_acknowledged(model);
		return;
	}
	for (uint64_t i = 0; i < model->sectors; i++)
		if (model->now[i].durable < model->flushes[id % LIVE_IDS][i])
			model->now[i].durable = model->flushes[id % LIVE_IDS][i];
}

static inline void live_note_image(struct live_model *model, uint32_t id, uint32_t number)
{
	struct live_image *image = NULL;

	if (number == 0) {
		model->images = reallocarray(model->images, model->image_count + 1, sizeof(*image));
		if (model->images == NULL)
			err(3, "memory");
		model->images[model->image_count++] = (struct live_image){
			.id = id, .oldest = live_acknowledged(model), .opened_at = model->opened_at};
		return;
	}
	for (size_t i = 0; i < model->image_count; i++) {
		if (model->images[i].number == number)
			errx(3, "image %" PRIu32 " was made twice", number);
		if (model->images[i].id == id && model->images[i].opened_at == model->opened_at)
			image = &model->images[i];
	}
	if (image == NULL)
		errx(3, "image %" PRIu32 " was not asked for", number);
	image->number = number;
	image->newest = live_copy(model);
}

static inline void live_note_opened(struct live_model *model, const char *text)
{
	uint32_t opened_at, number;
	uint64_t first, end;
	int length;

	if (sscanf(text, "%" SCNu32 "%n", &opened_at, &length) != 1)
		errx(3, "not a note: o %s", text);
	for (size_t i = 0; i < model->image_count; i++) /* what came of these is there now */
		if (model->images[i].newest == NULL)
			model->images[i].newest = live_copy(model);
	model->opened_at = opened_at;
	live_note_write(model, opened_at, 0, model->sectors, true);
	for (uint64_t i = 0; i < model->sectors; i++)
		model->now[i] = (struct live_sector){opened_at, opened_at, opened_at, opened_at, opened_at};
	for (text += length;
	     sscanf(text, " %" SCNu64 ":%" SCNu64 ":%" SCNu32 "%n", &first, &end, &number, &length) == 3;
	     text += length)
		for (uint64_t i = first; i < end; i++)
			model->now[i] = (struct live_sector){number, number, number, number, 0};
}

static inline void live_note(struct live_model *model, const char *text)
{
	uint32_t number = 0, flag = 0;
	uint64_t first, end;

	if (sscanf(text, "w %" SCNu32 " %" SCNu64 " %" SCNu64 " %" SCNu32, &number, &first, &end, &flag) == 4)
		live_note_write(model, number, first, end, flag != 0);
	else if (sscanf(text, "a %" SCNu32 " %" SCNu32, &number, &flag) == 2)
		live_note_acknowledged(model, number, flag != 0);
	else if (sscanf(text, "f %" SCNu32, &number) == 1)
		live_note_flush(model, number, false);
	else if (sscanf(text, "F %" SCNu32, &number) == 1)
		live_note_flush(model, number, true);
	else if (sscanf(text, "i %" SCNu32, &number) == 1)
		live_note_image(model, number, 0);
	else if (sscanf(text, "I %" SCNu32 " %" SCNu32, &number, &flag) == 2)
		live_note_image(model, number, flag);
	else if (text[0] == 'o')
		live_note_opened(model, text + 1);
	else
		errx(3, "not a note: %s", text);
}

/* ---- judging ---- */

/* What a sector holds, against the oldest and the newest write that may be there. */
static inline bool live_sector_is_right(const struct live_model *model, uint64_t sector, uint32_t found,
					const struct live_sector *newest, uint32_t oldest, uint32_t opened_at)
{
	const struct live_write *write = found < model->write_count ? &model->writes[found] : NULL;

	if (found == 0) /* written as zeros, or never written at all */
		return newest->zeros >= oldest;
	if (found == newest->opened)
		return oldest <= found;
	return found >= opened_at && write != NULL && !write->is_zero && sector >= write->first &&
	       sector < write->end && found >= oldest && found <= newest->begun;
}

/* Content from the sector `first` on. Says what is wrong on standard output, unless `what` is NULL; returns how many
 * sectors are. */
static inline unsigned live_judge(const struct live_model *model, const char *what, const uint8_t *content,
				  uint64_t first, uint64_t count, const struct live_image *image, unsigned wrong)
{
	for (uint64_t i = first; i < first + count; i++) {
		uint32_t found = live_read_stamp(content + (i - first) * LIVE_SECTOR, i);
		const struct live_sector *newest =
			image == NULL || image->newest == NULL ? &model->now[i] : &image->newest[i];
		uint32_t oldest = image == NULL ? newest->durable : image->oldest[i];

		if (live_sector_is_right(model, i, found, newest, oldest,
					 image == NULL ? model->opened_at : image->opened_at))
			continue;
		if (wrong++ < LIVE_WRONG_MOST && what != NULL)
			(void)printf("flaw %s: sector %" PRIu64 " holds write %" PRId64 ", not one of %" PRIu32
				     " to %" PRIu32 " (zeros: %" PRIu32 ", when opened: %" PRIu32 ")\n",
				     what, i, found == UINT32_MAX ? (int64_t)-1 : (int64_t)found, oldest, newest->begun,
				     newest->zeros, newest->opened);
	}
	return wrong;
}

#endif
