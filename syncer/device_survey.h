/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What /proc and /sys say about block devices: mounts, swap areas, loop devices,
 * and how devices lie on each other. Facts only; device_use.c draws conclusions.
 */
#ifndef WHERRY_SYNCER_DEVICE_SURVEY_H
#define WHERRY_SYNCER_DEVICE_SURVEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A file system on a device. One of several devices has an entry for each of them. */
struct device_mount {
	dev_t device;
	bool is_writable; /* the file system is, whatever a single mount of it says */
	char *where;
};

struct device_swap {
	dev_t device; /* 0: a file, named by the next two */
	dev_t file_device;
	ino_t file_inode;
};

struct device_loop {
	dev_t device;
	dev_t on_device; /* 0: on a file, named by the next two */
	dev_t file_device;
	ino_t file_inode;
	uint64_t off_bytes; /* where in the backing file it begins */
	uint64_t len_bytes; /* UINT64_MAX: to the end */
};

struct device_survey {
	struct device_mount *mounts;
	size_t mount_count;
	struct device_swap *swaps;
	size_t swap_count;
	struct device_loop *loops;
	size_t loop_count;
};

/* -ENOMEM, or why /proc/self/mountinfo can't be read. On failure nothing is left to free. */
int device_survey_make(struct device_survey *ret_survey);
void device_survey_free(struct device_survey *survey);

struct device_list {
	dev_t *devices;
	size_t count;
};
void device_list_free(struct device_list *list);

/* The partitions of a disk that the kernel knows; the devices stacked on a device. -ENOMEM is all that can fail. */
int device_list_partitions(dev_t device, struct device_list *ret_list);
int device_list_holders(dev_t device, struct device_list *ret_list);

/* First line of /sys/dev/block/M:m/LEAF without its line end. -ENOENT, … */
int device_read_attribute(dev_t device, const char *leaf, char *ret_text, size_t text_bytes);
int device_read_number(dev_t device, const char *leaf, uint64_t *ret_number);

/* The disk that a partition lies on; false when `device` is no partition. */
bool device_get_whole_disk(dev_t device, dev_t *ret_disk);

enum { DEVICE_NAME_BYTES = 320 };
/* "/dev/sda2", "/dev/mapper/vg-root"; "device 8:2" when it has no name. Returns `name`. */
const char *device_get_name(dev_t device, char name[DEVICE_NAME_BYTES]);

/*
 * For tests: a directory that holds proc/ and sys/ and stands for "/". NULL: "/" again. Real devices are not touched
 * then. Not while another thread is in here.
 */
void device_survey_set_root(const char *directory);
bool device_survey_is_real(void);

/* `path` below that root. NULL: no memory. Caller frees. */
__attribute__((format(printf, 1, 2))) char *device_survey_path(const char *format, ...);

#endif
