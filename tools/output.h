/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results on standard output: aligned tables and short summaries for people, documents for programs.
 *
 * A document is printed when and only when the exit status is 0 or 3; it is the whole of standard output then. Its keys
 * are promised (docs/man/wherry.1): added to, never changed.
 *
 * Texts from outside (labels, names of sources) are made safe to print: in tables what can't be printed becomes '?', in
 * JSON everything beyond ASCII is escaped, and what is no UTF-8 becomes U+FFFD.
 *
 * Out of memory ends the process with STATUS_FAILED: the work is done by then, and there is nothing to undo.
 */
#ifndef WHERRY_TOOLS_OUTPUT_H
#define WHERRY_TOOLS_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "store/store.h"
#include "syncer/export.h"
#include "syncer/round.h"
#include "syncer/verify.h"

struct options;
struct mount_record;

__attribute__((noreturn)) void output_out_of_memory(void);

/* In which partitions of its disk a damaged range is, as far as that is known. */
struct damage_place {
	unsigned *partitions;
	size_t partition_count;
};

/*
 * Flushes and closes standard output. Returns 0, or a negative errno when something that was printed did not arrive;
 * -EPIPE for a reader that has gone, which is no news to whoever piped us into `head`.
 */
int output_finish(struct failure *failure);

/* ---- for programs ---- */

/* Takes over `value`; NULL is out of memory. */
void json_put(json_t *object, const char *key, json_t *value);
json_t *json_text(const char *text); /* null for NULL */
json_t *json_bytes(uint64_t bytes);
json_t *json_time(int64_t unix_seconds);      /* null for 0 */
json_t *json_seconds(double seconds);	      /* to the millisecond */
json_t *json_number_or_null(uint64_t number); /* null for 0 */
void json_print(json_t *document);	      /* frees it */

void output_json_disks(const struct store_disk *disks, size_t count);
void output_json_images(const struct store_image *images, size_t count);
void output_json_rounds(const struct store_round *rounds, size_t count);
void output_json_sync(const char *disk, const struct round_report *report);
void output_json_retention(const char *disk, uint32_t keep, bool dry_run, const struct store_retention *retention);
void output_json_verify(const struct verify_report *report);
/* `places`: one for each damage of the report. */
void output_json_check(const struct store_check_report *report, const struct damage_place *places,
		       const struct options *options, double elapsed_seconds);
void output_json_df(const struct store_usage *usage);
/* `losses`: what a check found afterwards. */
void output_json_rebuild(bool dry_run, const struct store_rebuild_report *report, const struct store_check_report *losses);
void output_json_gc(bool dry_run, const struct store_clean_report *report);
void output_json_export(const struct store_reference *reference, uint32_t image, const char *target,
			const struct export_report *report);

void output_json_mounts(const struct mount_record *list, size_t count);
/* One that has just been made. */
void output_json_mount(const struct mount_record *record, const char *type, const char *label, bool is_replayed);

/* ---- for people ---- */

/* `text` with '?' for what can't be printed. */
void output_safe(FILE *to, const char *text);

void output_text_disks(const struct store_disk *disks, size_t count);
void output_text_images(const struct store_image *images, size_t count);
void output_text_rounds(const struct store_round *rounds, size_t count);
void output_text_sync(const char *disk, const struct round_report *report);
void output_text_retention(const char *disk, bool dry_run, const struct store_retention *retention);
void output_text_verify(const char *reference, const char *source, const struct verify_report *report);
void output_text_check(const struct store_check_report *report, const struct damage_place *places,
		       const struct options *options, double elapsed_seconds);
void output_text_df(const struct store_usage *usage);
void output_text_rebuild(const char *store, bool dry_run, const struct store_rebuild_report *report,
			 const struct store_check_report *losses);
void output_text_gc(bool dry_run, const struct store_clean_report *report);
void output_text_export(FILE *to, const char *reference, const char *target, const struct export_report *report);
/* A map of what could not be read: "OFFSET LENGTH", one line a range. */
void output_text_holes(FILE *to, const struct export_report *report);

void output_text_mounts(const struct mount_record *list, size_t count);

/* One line with what rounds of this disk do unless they are told otherwise. */
void output_text_policy(const struct store_disk *disk);

#endif
