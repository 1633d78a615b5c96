/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs, in the order in which the help lists them: first what is needed
 * first. Each is described in its own file; what is not in this table does not exist.
 */
#include "tools/command.h"

#include <string.h>

const struct verb *const verbs[] = {
	&verb_init,   &verb_sync,   &verb_set,	  &verb_disks,	   &verb_images, &verb_rounds, &verb_image,  &verb_create, &verb_clone,
	&verb_delete, &verb_remove, &verb_retain, &verb_pin,	   &verb_unpin,	 &verb_export, &verb_serve_nbd, &verb_attach, &verb_detach,
	&verb_fs,     &verb_mount,  &verb_umount,
	&verb_verify, &verb_check,  &verb_df,
	&verb_gc,     &verb_rebuild, &verb_help, NULL,
};

const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; verbs[i] != NULL; i++)
		if (strcmp(verbs[i]->name, name) == 0)
			return verbs[i];
	return NULL;
}

const struct verb_option *verb_option_of(const struct verb *verb, enum option_id id)
{
	for (unsigned int i = 0; i < verb->option_count; i++)
		if (verb->options[i].id == id)
			return &verb->options[i];
	return NULL;
}

const char *verb_option_argument(const struct verb *verb, enum option_id id)
{
	const struct verb_option *own = verb == NULL ? NULL : verb_option_of(verb, id);

	return own != NULL && own->is_flag ? NULL : option_kinds[id].argument;
}

bool verb_takes_option(const struct verb *verb, enum option_id id)
{
	if (id == OPTION_HELP)
		return true;
	if (id == OPTION_STORE || id == OPTION_JSON)
		return !verb->is_plain;
	return verb_option_of(verb, id) != NULL;
}
