/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wherry init: the one verb that makes a store. All others refuse where there is
 * none, because a path mistyped must not become a second, empty store.
 */
#include "tools/command.h"

#include <stdio.h>

#include "common/units.h"
#include "tools/output.h"

static enum exit_status run_init(const struct command_line *line)
{
	const struct options *options = &line->options;
	struct failure failure = {.code = 0};
	char size[UNITS_TEXT_BYTES];

	if (store_create_local(options->store, options->chunk_bytes, &failure) < 0)
		return report_failure(&failure);
	if (options->json) {
		json_t *document = json_object();

		json_put(document, "store", json_text(options->store));
		json_put(document, "chunk_bytes", json_bytes(options->chunk_bytes));
		json_print(document);
		return STATUS_DONE;
	}
	output_safe(stdout, options->store);
	(void)printf(": an empty store, with chunks of %s\n", units_format_size(options->chunk_bytes, size));
	return STATUS_DONE;
}

const struct verb verb_init = {
	.name = "init",
	.summary = "make a store",
	.description =
		"Makes an empty store in a directory, which is created, or must be empty. Everything that is synced "
		"goes "
		"there, for any number of disks; content that is the same is stored once, whichever disk it is on.\n\n"
		"Small chunks find more that is the same and more that has not changed; large ones need less room for "
		"what "
		"is kept about them. Without a reason, stay with 64K.",
	.option_count = 1,
	.options = {{.id = OPTION_CHUNK_SIZE}},
	.example_count = 2,
	.examples = {{"wherry -s /srv/ferry init", "a store in /srv/ferry"},
		     {"wherry -s /srv/ferry init --chunk-size 128K", "for few, very large disks"}},
	.run = run_init,
};
