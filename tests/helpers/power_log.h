/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log that preload_record.c writes and power_cut.c replays: what a program did to the files below one folder, in
 * the order in which it did it. Files are known by their inode numbers, names are entries of folders.
 *
 * A record is the head, then the name (not terminated), then the data. It is for the machine that wrote it, and only
 * for as long as a test runs.
 */
#ifndef TESTS_HELPERS_POWER_LOG_H
#define TESTS_HELPERS_POWER_LOG_H

#include <stdint.h>

enum power_log_kind {
	POWER_ROOT,	/* inode: the folder below which all is recorded */
	POWER_CREATE,	/* folder, name: inode is there from now on; offset 1: a folder */
	POWER_WRITE,	/* inode, offset, data */
	POWER_TRUNCATE, /* inode, offset: the new size */
	POWER_SYNC,	/* inode */
	POWER_UNLINK,	/* folder, name */
	POWER_SAID,	/* standard output was closed: what it says has been said, and must be true from here on */
	POWER_RENAME,	/* folder, name: now in the folder `inode`; data: as this name */
	POWER_NOTE,	/* data: text of the program that is recorded, for who looks at what is left (live_model.h) */
};

struct power_log_head {
	uint32_t kind, name_bytes;
	uint64_t inode, folder, offset, data_bytes;
};

#endif
