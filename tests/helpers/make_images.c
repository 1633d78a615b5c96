/* SPDX-License-Identifier: Apache-2.0 */
/*
 * make_images STORE DISK COUNT: so many images of a disk that nobody has open, one after the other, without a start of
 * the command for each.
 */
#include <stdio.h>
#include <stdlib.h>

#include "store/store.h"

int main(int argc, char **argv)
{
	struct store_reference reference;
	struct failure failure = {.code = 0};
	struct store *store = NULL;
	struct store_view *view = NULL;
	uint32_t number;
	int result;

	if (argc != 4) {
		(void)fputs("usage: make_images STORE DISK COUNT\n", stderr);
		return 2;
	}
	result = store_open_local(argv[1], &(struct store_options){.read_only = false}, &store, &failure);
	if (result == 0)
		result = store_parse_reference(argv[2], &reference, &failure);
	if (result == 0)
		result = store_view_open(store, &reference, VIEW_WRITE, "make_images", &view, &failure);
	for (unsigned long i = strtoul(argv[3], NULL, 10); result == 0 && i > 0; i--)
		result = store_create_image(view, &(struct store_image_params){.consistency = STORE_CLEAN}, &number,
					    &failure);
	if (view != NULL)
		store_view_close(view);
	store_close(store);
	if (result < 0)
		(void)fprintf(stderr, "make_images: %s\n", failure.message);
	return result < 0;
}
