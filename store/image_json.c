/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keys are a promise to scripts: some may be added, none changes.
 */
#include "store/image_json.h"

#include <stdlib.h>

#include "common/cleanup.h"
#include "common/json_release.h"
#include "common/units.h"
#include "common/utf8.h"

/* A label or a name may hold what isn't UTF-8. */
static json_t *text_or_null(const char *text)
{
	AUTO_FREE char *valid = text == NULL ? NULL : utf8_repair(text);

	if (text == NULL)
		return json_null();
	return valid == NULL ? NULL : json_string(valid);
}

static json_t *bytes(uint64_t count)
{
	return json_integer(count <= INT64_MAX ? (json_int_t)count : INT64_MAX);
}

static json_t *time_or_null(int64_t unix_seconds)
{
	char text[UNITS_TEXT_BYTES];

	return unix_seconds == 0 ? json_null() : json_string(units_format_time(unix_seconds, text));
}

/* What was kept as JSON text; null when there is none, or it isn't JSON. */
static json_t *parsed(const char *text)
{
	json_t *value = text == NULL ? NULL : json_loads(text, 0, NULL);

	return value == NULL ? json_null() : value;
}

json_t *store_image_json(const struct store_image *image)
{
	AUTO(json_release) json_t *object = json_object();
	const struct {
		const char *key;
		json_t *value;
	} members[] = {
		{"disk", text_or_null(image->disk)},
		{"number", bytes(image->number)},
		{"created_at", time_or_null(image->created_at)},
		{"size_bytes", bytes(image->size_bytes)},
		{"changed_bytes", bytes(image->changed_bytes)},
		{"unique_bytes", bytes(image->unique_bytes)},
		{"label", text_or_null(image->label)},
		{"pinned", json_boolean(image->pinned)},
		{"damaged", json_boolean(image->damaged)},
		{"in_use", json_boolean(image->in_use)},
		{"in_use_by", text_or_null(image->in_use_by)},
		{"consistency", text_or_null(store_consistency_name(image->consistency))},
		{"round", image->round == 0 ? json_null() : bytes(image->round)},
		{"details", parsed(image->details)},
	};
	bool is_whole = object != NULL;

	/* all of them, for each is taken, or released, by that */
	for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
		is_whole = json_object_set_new(object, members[i].key, members[i].value) == 0 && is_whole;
	return is_whole ? take_ptr(object) : NULL;
}
