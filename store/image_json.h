/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image as JSON, the same wherever it is shown: in listings of the command, in files about it. For folders that link
 * jansson.
 */
#ifndef WHERRY_STORE_IMAGE_JSON_H
#define WHERRY_STORE_IMAGE_JSON_H

#include <jansson.h>

#include "store/store.h"

/* An object; the caller's. NULL: no memory. */
json_t *store_image_json(const struct store_image *image);

#endif
