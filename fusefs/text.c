/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that are made when somebody reads them. How long they are is told where that is known anyway; else, as with
 * files of /proc, it is 0, and who reads finds the end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_release.h"
#include "fusefs/tree_internal.h"
#include "store/image_json.h"

static int make_info(struct tree *tree, struct node *node, char **ret_text, struct failure *failure)
{
	AUTO(json_release) json_t *object = NULL;
	AUTO_FREE char *line = NULL;
	struct store_image *image;
	int error = store_describe_image(tree->store, node->origin->disk, node->origin->image, &image, failure);

	if (error < 0)
		return error;
	object = store_image_json(image);
	store_images_free(image, 1);
	if (object != NULL)
		line = json_dumps(object, JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(15));
	if (line == NULL || asprintf(ret_text, "%s\n", line) < 0)
		return fail(failure, -ENOMEM, "info.json: out of memory");
	return 0;
}

static int make_lvm_why_not(struct tree *tree, struct node *node, char **ret_text, struct failure *failure)
{
	const struct lvm_scan *scan = NULL;
	const struct lvm_volume *volume;
	int error = origin_scan(tree, node->origin, &scan, failure);

	if (error < 0)
		return error;
	volume = origin_find_volume(scan, node->name);
	if (volume == NULL || volume->problem == NULL)
		return -ENOENT;
	return asprintf(ret_text, "%s: %s\n", node->name, volume->problem) < 0 ? fail(failure, -ENOMEM, "out of memory")
									       : 0;
}

/* Starts the volume, if that is possible by now; then nothing stands against it. */
static int make_why_not(struct tree *tree, struct node *node, char **ret_text, struct failure *failure)
{
	struct failure cause = {.code = 0};
	struct fsreader *reader;
	char name[POOL_KEY_BYTES];

	origin_name(node->volume->origin, name);
	if (volume_use(tree, node->volume, &reader, &cause) == 0) {
		volume_done(tree, node->volume);
		(void)fail(&cause, -EAGAIN, "by now there are files; look again");
	}
	if (asprintf(ret_text, "%s/%s: %s\n", name, node->volume->name, cause.message) < 0)
		return fail(failure, -ENOMEM, "out of memory");
	return 0;
}

int text_make(struct tree *tree, struct node *node, char **ret_text, struct failure *failure)
{
	switch (node->kind) {
	case NODE_INFO:
		return make_info(tree, node, ret_text, failure);
	case NODE_LAYOUT:
		return origin_layout(tree, node->origin, ret_text, failure);
	case NODE_LVM_WHY_NOT:
		return make_lvm_why_not(tree, node, ret_text, failure);
	case NODE_WHY_NOT:
		return make_why_not(tree, node, ret_text, failure);
	default:
		return -EISDIR;
	}
}

uint64_t text_known_bytes(struct tree *tree, struct node *node)
{
	AUTO_FREE char *text = NULL;

	if (node->kind == NODE_LAYOUT && node->origin->image == 0)
		return origin_known_layout_bytes(node->origin);
	return text_make(tree, node, &text, NULL) < 0 ? 0 : strlen(text); /* who opens it is told why */
}
