/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Release by scope (common/cleanup.h) of a JSON value: AUTO(json_release) json_t *document = NULL;
 * For folders that link jansson; nothing in common/ does.
 */
#ifndef WHERRY_COMMON_JSON_RELEASE_H
#define WHERRY_COMMON_JSON_RELEASE_H

#include <jansson.h>

static inline void json_release(json_t **json)
{
	json_decref(*json); /* NULL is fine */
}

#endif
