/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A folder of its own for a test, below $TMPDIR or /tmp, and gone with all that is in it afterwards.
 */
#ifndef WHERRY_TESTS_SCRATCH_FOLDER_H
#define WHERRY_TESTS_SCRATCH_FOLDER_H

struct scratch_folder {
	char path[256];
	int fd;
};

/* Ends the program when it can't: no test could go on. */
void scratch_folder_make(struct scratch_folder *ret_folder);
void scratch_folder_remove(struct scratch_folder *folder);

#endif
