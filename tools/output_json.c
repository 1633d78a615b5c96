/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Documents. Everything is escaped down to ASCII, so that a label can't reach a
 * terminal with more than it says, and numbers are integers wherever they are
 * counts of something.
 */
#include "tools/output.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "tools/command.h"
#include "common/utf8.h"
#include "store/image_json.h"
#include "tools/mount_ways.h"

void output_out_of_memory(void)
{
	report_line("wherry: output: out of memory");
	_exit(STATUS_FAILED); /* no exit(): it would flush half a document and end it as if it were whole */
}

int output_finish(struct failure *failure)
{
	bool failed_before = ferror(stdout) != 0;

	errno = 0;
	if (fclose(stdout) == 0 && !failed_before)
		return 0;
	if (errno == EPIPE)
		return fail(failure, -EPIPE, "standard output: the reader has gone");
	if (errno == 0)
		return fail(failure, -EIO, "standard output: could not be written");
	return fail_errno(failure, -errno, "standard output");
}

void json_put(json_t *object, const char *key, json_t *value)
{
	if (json_object_set_new(object, key, value) != 0)
		output_out_of_memory();
}

json_t *json_text(const char *text)
{
	AUTO_FREE char *valid = NULL;
	json_t *string;

	if (text == NULL)
		return json_null();
	valid = utf8_repair(text);
	if (valid == NULL)
		output_out_of_memory();
	string = json_string(valid);
	if (string == NULL)
		output_out_of_memory();
	return string;
}

json_t *json_bytes(uint64_t bytes)
{
	return json_integer(bytes <= INT64_MAX ? (json_int_t)bytes : INT64_MAX);
}

json_t *json_time(int64_t unix_seconds)
{
	char text[UNITS_TEXT_BYTES];

	return unix_seconds == 0 ? json_null() : json_string(units_format_time(unix_seconds, text));
}

json_t *json_seconds(double seconds)
{
	if (!(seconds > 0 && seconds < 1e12)) /* not a number, too */
		return json_real(0);
	return json_real((double)(int64_t)(seconds * 1000 + 0.5) / 1000);
}

json_t *json_number_or_null(uint64_t number)
{
	return number == 0 ? json_null() : json_bytes(number);
}

void json_print(json_t *document)
{
	if (json_dumpf(document, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(15)) != 0 &&
	    !ferror(stdout))
		output_out_of_memory();
	(void)putchar('\n'); /* output_finish() looks for what went wrong */
	json_decref(document);
}

static json_t *json_speed(double bytes_per_second)
{
	return json_bytes(bytes_per_second > 0 && bytes_per_second < 1e18 ? (uint64_t)bytes_per_second : 0);
}

static json_t *json_new_array(void)
{
	json_t *array = json_array();

	if (array == NULL)
		output_out_of_memory();
	return array;
}

static json_t *json_new_object(void)
{
	json_t *object = json_object();

	if (object == NULL)
		output_out_of_memory();
	return object;
}

static void json_add(json_t *array, json_t *value)
{
	if (json_array_append_new(array, value) != 0)
		output_out_of_memory();
}

/* {"KEY": array}, printed. */
static void print_listing(const char *key, json_t *array)
{
	json_t *document = json_new_object();

	json_put(document, key, array);
	json_print(document);
}

void output_json_disks(const struct store_disk *disks, size_t count)
{
	json_t *array = json_new_array();

	for (const struct store_disk *disk = disks; disk < disks + count; disk++) {
		json_t *object = json_new_object();

		json_put(object, "name", json_text(disk->name));
		json_put(object, "size_bytes", json_bytes(disk->size_bytes));
		json_put(object, "images", json_bytes(disk->images));
		json_put(object, "live_generation", json_bytes(disk->live_generation));
		json_put(object, "mirror_of", json_text(disk->mirror_of));
		json_put(object, "open_by", json_text(disk->open_by));
		json_put(object, "parent", json_text(disk->parent));
		json_put(object, "sector_bytes", json_bytes(disk->sector_bytes));
		json_put(object, "created_at", json_time(disk->created_at));
		json_put(object, "keep", json_number_or_null(disk->keep));
		json_put(object, "level", disk->level < 0 ? json_null() : json_bytes((uint64_t)disk->level));
		json_put(object, "limit_bytes_per_second", json_number_or_null(disk->limit_bytes_per_second));
		json_add(array, object);
	}
	print_listing("disks", array);
}

void output_json_images(const struct store_image *images, size_t count)
{
	json_t *array = json_new_array();

	for (const struct store_image *image = images; image < images + count; image++) {
		json_t *object = store_image_json(image);

		if (object == NULL)
			output_out_of_memory();
		json_add(array, object);
	}
	print_listing("images", array);
}

void output_json_rounds(const struct store_round *rounds, size_t count)
{
	json_t *array = json_new_array();

	for (const struct store_round *round = rounds; round < rounds + count; round++) {
		json_t *object = json_new_object();

		json_put(object, "disk", json_text(round->disk));
		json_put(object, "number", json_bytes(round->number));
		json_put(object, "state", json_text(store_round_state_name(round->state)));
		json_put(object, "source", json_text(round->source));
		json_put(object, "started_at", json_time(round->started_at));
		json_put(object, "finished_at", json_time(round->finished_at));
		json_put(object, "total_bytes", json_bytes(round->counts.total));
		json_put(object, "done_bytes", json_bytes(round->counts.done));
		json_put(object, "read_bytes", json_bytes(round->counts.read));
		json_put(object, "left_out_bytes", json_bytes(round->counts.left_out));
		json_put(object, "zero_bytes", json_bytes(round->counts.zero));
		json_put(object, "changed_bytes", json_bytes(round->counts.changed));
		json_put(object, "stored_bytes", json_bytes(round->counts.stored));
		json_put(object, "sent_bytes", json_bytes(round->counts.sent));
		json_put(object, "error", json_text(round->error));
		json_add(array, object);
	}
	print_listing("rounds", array);
}

static json_t *json_ranges(const struct range *ranges, size_t count)
{
	json_t *array = json_new_array();

	for (size_t i = 0; i < count; i++) {
		json_t *object = json_new_object();

		json_put(object, "offset", json_bytes(ranges[i].off_bytes));
		json_put(object, "length", json_bytes(ranges[i].len_bytes));
		json_add(array, object);
	}
	return array;
}

static json_t *json_left_out(const struct range_why *ranges, size_t count)
{
	json_t *array = json_new_array();

	for (size_t i = 0; i < count; i++) {
		json_t *object = json_new_object();

		json_put(object, "offset", json_bytes(ranges[i].off_bytes));
		json_put(object, "length", json_bytes(ranges[i].len_bytes));
		json_put(object, "why", json_text(ranges[i].why));
		json_put(object, "scattered", json_boolean(ranges[i].scattered));
		json_add(array, object);
	}
	return array;
}

static json_t *json_deleted(const struct store_retention *retention)
{
	json_t *array = json_new_array();

	for (size_t i = 0; i < retention->deleted_count; i++)
		json_add(array, json_bytes(retention->deleted[i]));
	return array;
}

static json_t *json_kept(const struct store_retention *retention)
{
	json_t *array = json_new_array();

	for (size_t i = 0; i < retention->kept_count; i++) {
		json_t *object = json_new_object();

		json_put(object, "image", json_bytes(retention->kept[i].number));
		json_put(object, "why", json_text(retention->kept[i].why));
		json_add(array, object);
	}
	return array;
}

void output_json_sync(const char *disk, const struct round_report *report)
{
	json_t *document = json_new_object();

	json_put(document, "disk", json_text(disk));
	json_put(document, "image", json_number_or_null(report->image));
	json_put(document, "round", json_bytes(report->round));
	json_put(document, "resumed", json_boolean(report->resumed));
	json_put(document, "consistency", json_text(store_consistency_name(report->consistency)));
	json_put(document, "fuzzy_because", json_text(report->fuzzy_because));
	json_put(document, "size_bytes", json_bytes(report->size_bytes));
	json_put(document, "read_bytes", json_bytes(report->counts.read));
	json_put(document, "left_out_bytes", json_bytes(report->counts.left_out));
	json_put(document, "zero_bytes", json_bytes(report->counts.zero));
	json_put(document, "changed_bytes", json_bytes(report->counts.changed));
	json_put(document, "stored_bytes", json_bytes(report->counts.stored));
	json_put(document, "sent_bytes", json_bytes(report->counts.sent));
	json_put(document, "elapsed_seconds", json_seconds(report->elapsed_seconds));
	json_put(document, "bytes_per_second", json_speed(report->bytes_per_second));
	json_put(document, "left_out", json_left_out(report->left_out, report->left_out_count));
	json_put(document, "read_errors", json_ranges(report->read_errors, report->read_error_count));
	json_put(document, "deleted_images", json_deleted(&report->retention));
	json_put(document, "kept_images", json_kept(&report->retention));
	json_put(document, "verified", json_boolean(report->verified));
	json_put(document, "equal", report->verified ? json_boolean(report->equal) : json_null());
	json_put(document, "differences", json_ranges(report->differences, report->difference_count));
	json_print(document);
}

void output_json_retention(const char *disk, uint32_t keep, bool dry_run, const struct store_retention *retention)
{
	json_t *document = json_new_object();

	json_put(document, "disk", json_text(disk));
	json_put(document, "keep", json_bytes(keep));
	json_put(document, "dry_run", json_boolean(dry_run));
	json_put(document, "deleted_images", json_deleted(retention));
	json_put(document, "kept_images", json_kept(retention));
	json_print(document);
}

void output_json_verify(const struct verify_report *report)
{
	json_t *document = json_new_object();

	json_put(document, "equal", json_boolean(report->equal));
	json_put(document, "compared_bytes", json_bytes(report->compared_bytes));
	json_put(document, "left_out_bytes", json_bytes(report->left_out_bytes));
	json_put(document, "elapsed_seconds", json_seconds(report->elapsed_seconds));
	json_put(document, "differences", json_ranges(report->differences, report->difference_count));
	json_print(document);
}

static json_t *json_damages(const struct store_check_report *report, const struct damage_place *places)
{
	json_t *array = json_new_array();

	for (size_t i = 0; i < report->damage_count; i++) {
		const struct store_damage *damage = &report->damages[i];
		json_t *object = json_new_object();
		json_t *partitions = json_new_array();

		for (size_t k = 0; k < places[i].partition_count; k++)
			json_add(partitions, json_bytes(places[i].partitions[k]));
		json_put(object, "disk", json_text(damage->disk));
		json_put(object, "image", json_number_or_null(damage->image));
		json_put(object, "offset", json_bytes(damage->off_bytes));
		json_put(object, "length", json_bytes(damage->len_bytes));
		json_put(object, "why", json_text(damage->why));
		json_put(object, "partitions", partitions);
		json_add(array, object);
	}
	return array;
}

static json_t *json_flaws(const struct store_check_report *report)
{
	json_t *array = json_new_array();

	for (size_t i = 0; i < report->flaw_count; i++) {
		json_t *object = json_new_object();

		json_put(object, "what", json_text(report->flaws[i].what));
		json_put(object, "why", json_text(report->flaws[i].why));
		json_add(array, object);
	}
	return array;
}

static json_t *json_repair(const struct store_repair *repair)
{
	json_t *object = json_new_object();

	json_put(object, "mended_chunks", json_bytes(repair->mended_chunks));
	json_put(object, "sound_chunks", json_bytes(repair->sound_chunks));
	json_put(object, "waiting_chunks", json_bytes(repair->waiting_chunks));
	json_put(object, "unknown_chunks", json_bytes(repair->unknown_chunks));
	return object;
}

void output_json_check(const struct store_check_report *report, const struct damage_place *places,
		       const struct options *options, double elapsed_seconds)
{
	json_t *document = json_new_object();

	json_put(document, "ok", json_boolean(report->is_clean));
	json_put(document, "deep", json_boolean(options->deep));
	json_put(document, "chunks", json_bytes(report->chunks));
	json_put(document, "segments", json_bytes(report->segments));
	json_put(document, "elapsed_seconds", json_seconds(elapsed_seconds));
	json_put(document, "damaged", json_damages(report, places));
	json_put(document, "damaged_not_listed", json_bytes(report->more_damages));
	json_put(document, "flaws", json_flaws(report));
	json_put(document, "flaws_not_listed", json_bytes(report->more_flaws));
	json_put(document, "repair", options->repair ? json_repair(&report->repair) : json_null());
	json_print(document);
}

static struct damage_place *unknown_places(const struct store_check_report *report)
{
	struct damage_place *places = calloc(report->damage_count + 1, sizeof(*places));

	if (places == NULL)
		output_out_of_memory();
	return places;
}

void output_json_rebuild(bool dry_run, const struct store_rebuild_report *report, const struct store_check_report *losses)
{
	AUTO_FREE struct damage_place *places = unknown_places(losses);
	json_t *document = json_new_object();

	json_put(document, "ok", json_boolean(report->lost_chunks == 0 && report->found.is_clean));
	json_put(document, "dry_run", json_boolean(dry_run));
	json_put(document, "disks", json_bytes(report->disks));
	json_put(document, "removed_disks", json_bytes(report->removed_disks));
	json_put(document, "chunks", json_bytes(report->chunks));
	json_put(document, "segments", json_bytes(report->segments));
	json_put(document, "lost_chunks", json_bytes(report->lost_chunks));
	json_put(document, "damaged", json_damages(losses, places));
	json_put(document, "damaged_not_listed", json_bytes(losses->more_damages));
	json_put(document, "flaws", json_flaws(&report->found));
	json_put(document, "flaws_not_listed", json_bytes(report->found.more_flaws));
	json_print(document);
}

void output_json_df(const struct store_usage *usage)
{
	json_t *document = json_new_object();
	json_t *disks = json_new_array();

	for (const struct store_disk_usage *disk = usage->disks; disk < usage->disks + usage->disk_count; disk++) {
		json_t *object = json_new_object();

		json_put(object, "name", json_text(disk->name));
		json_put(object, "size_bytes", json_bytes(disk->size_bytes));
		json_put(object, "images", json_bytes(disk->images));
		json_put(object, "unique_bytes", json_bytes(disk->unique_bytes));
		json_add(disks, object);
	}
	json_put(document, "segment_bytes", json_bytes(usage->segment_bytes));
	json_put(document, "live_bytes", json_bytes(usage->live_bytes));
	json_put(document, "dead_bytes", json_bytes(usage->dead_bytes));
	json_put(document, "catalog_bytes", json_bytes(usage->catalog_bytes));
	json_put(document, "plain_bytes", json_bytes(usage->plain_bytes));
	json_put(document, "disks", disks);
	json_print(document);
}

void output_json_gc(bool dry_run, const struct store_clean_report *report)
{
	json_t *document = json_new_object();

	json_put(document, "dry_run", json_boolean(dry_run));
	json_put(document, "freed_bytes", json_bytes(report->freed_bytes));
	json_put(document, "moved_bytes", json_bytes(report->moved_bytes));
	json_put(document, "removed_segments", json_bytes(report->removed_segments));
	json_put(document, "busy_segments", json_bytes(report->busy_segments));
	json_put(document, "damaged_segments", json_bytes(report->damaged_segments));
	json_print(document);
}

void output_json_export(const struct store_reference *reference, uint32_t image, const char *target,
			const struct export_report *report)
{
	json_t *document = json_new_object();
	double seconds = report->elapsed_seconds;

	json_put(document, "disk", json_text(reference->disk));
	json_put(document, "image", json_number_or_null(image));
	json_put(document, "partition", json_number_or_null(reference->partition));
	json_put(document, "target", json_text(target));
	json_put(document, "size_bytes", json_bytes(report->size_bytes));
	json_put(document, "data_bytes", json_bytes(report->data_bytes));
	json_put(document, "target_bytes", json_bytes(report->target_bytes));
	json_put(document, "elapsed_seconds", json_seconds(seconds));
	json_put(document, "bytes_per_second", json_speed(seconds > 0 ? (double)report->size_bytes / seconds : 0));
	json_put(document, "holes", json_ranges(report->holes, report->hole_count));
	json_print(document);
}

static json_t *json_mount(const struct mount_record *record)
{
	json_t *object = json_new_object();

	json_put(object, "reference", json_text(record->reference));
	json_put(object, "directory", json_text(record->directory));
	json_put(object, "via", json_text(mount_via_name(record->via)));
	json_put(object, "read_only", json_boolean(record->read_only));
	json_put(object, "since", json_time(record->since));
	json_put(object, "scratch", json_boolean(record->scratch));
	json_put(object, "store", json_text(record->store));
	json_put(object, "device", json_text(record->device));
	return object;
}

void output_json_mounts(const struct mount_record *list, size_t count)
{
	json_t *array = json_new_array();

	for (size_t i = 0; i < count; i++) {
		json_t *object = json_mount(&list[i]);

		json_put(object, "alive", json_boolean(!mount_is_dead(&list[i])));
		json_add(array, object);
	}
	print_listing("mounts", array);
}

void output_json_mount(const struct mount_record *record, const char *type, const char *label, bool is_replayed)
{
	json_t *document = json_mount(record);

	json_put(document, "type", json_text(type));
	json_put(document, "label", *label == '\0' ? json_null() : json_text(label));
	json_put(document, "journal_replayed", json_boolean(is_replayed));
	json_print(document);
}
