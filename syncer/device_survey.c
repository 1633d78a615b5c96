/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading /proc and /sys.
 *
 * Devices are known by number, never by name: one device has many names, and
 * names are made by rules of each distribution. /sys/dev/block/M:m leads from the
 * number to everything else.
 *
 * A mount is found by the device number of its file system. File systems with a
 * number of their own (btrfs, bcachefs: major 0) are found by the path they were
 * mounted from; as that names one device of several, btrfs' further ones are
 * added from /sys/fs/btrfs. A mount namespace shows its own mounts only: whoever
 * asks must not take silence for proof.
 */
#include "syncer/device_survey.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/loop.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "common/cleanup.h"

static const char *root_directory = ""; /* tests put a tree of their own here */

void device_survey_set_root(const char *directory)
{
	root_directory = directory != NULL ? directory : "";
}

bool device_survey_is_real(void)
{
	return root_directory[0] == '\0';
}

char *device_survey_path(const char *format, ...)
{
	AUTO_FREE char *tail = NULL;
	char *path = NULL;
	va_list arguments;
	int len;

	va_start(arguments, format);
	len = vasprintf(&tail, format, arguments);
	va_end(arguments);
	if (len < 0) {
		tail = NULL; /* undefined after a failed vasprintf() */
		return NULL;
	}
	return asprintf(&path, "%s%s", root_directory, tail) < 0 ? NULL : path;
}

static void close_directory(DIR **directory)
{
	if (*directory != NULL)
		(void)closedir(*directory);
}

/* Room for one more element; NULL: no memory, the array is as it was. */
static void *append_slot(void *array_address, size_t *count, size_t element_bytes)
{
	void **array = array_address;
	void *larger = reallocarray(*array, *count + 1, element_bytes);

	if (larger == NULL)
		return NULL;
	*array = larger;
	return memset((char *)larger + (*count)++ * element_bytes, 0, element_bytes);
}

/* ------------------------------------------------------------- attributes */

static int read_first_line(const char *path, char *ret_text, size_t text_bytes)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;

	if (fd < 0)
		return -errno;
	len = read(fd, ret_text, text_bytes - 1);
	if (len < 0)
		return -errno;
	ret_text[len] = '\0';
	ret_text[strcspn(ret_text, "\n")] = '\0';
	return 0;
}

int device_read_attribute(dev_t device, const char *leaf, char *ret_text, size_t text_bytes)
{
	AUTO_FREE char *path = device_survey_path("/sys/dev/block/%u:%u/%s", major(device), minor(device), leaf);

	if (path == NULL)
		return -ENOMEM;
	return read_first_line(path, ret_text, text_bytes);
}

static bool parse_number(const char *text, uint64_t *ret_number)
{
	char *end;
	unsigned long long number;

	if (!isdigit((unsigned char)text[0]))
		return false;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (errno != 0 || *end != '\0')
		return false;
	*ret_number = number;
	return true;
}

int device_read_number(dev_t device, const char *leaf, uint64_t *ret_number)
{
	char text[32];
	int error = device_read_attribute(device, leaf, text, sizeof(text));

	if (error < 0)
		return error;
	return parse_number(text, ret_number) ? 0 : -EINVAL;
}

static bool parse_device(const char *text, dev_t *ret_device)
{
	unsigned major_number;
	unsigned minor_number;

	if (sscanf(text, "%u:%u", &major_number, &minor_number) != 2)
		return false;
	*ret_device = makedev(major_number, minor_number);
	return true;
}

/* The number in the file "dev" of a directory of /sys; false: there is none. */
static bool read_device_file(const char *directory, const char *entry, dev_t *ret_device)
{
	AUTO_FREE char *path = NULL;
	char text[32];

	if (asprintf(&path, "%s/%s/dev", directory, entry) < 0) {
		path = NULL;
		return false;
	}
	return read_first_line(path, text, sizeof(text)) == 0 && parse_device(text, ret_device);
}

bool device_get_whole_disk(dev_t device, dev_t *ret_disk)
{
	char text[32];
	uint64_t number;

	if (device_read_number(device, "partition", &number) < 0)
		return false;
	return device_read_attribute(device, "../dev", text, sizeof(text)) == 0 && parse_device(text, ret_disk);
}

/* DEVNAME of the device's uevent file, "" when there is none. */
static void read_kernel_name(dev_t device, char name[DEVICE_NAME_BYTES])
{
	AUTO_FREE char *path = device_survey_path("/sys/dev/block/%u:%u/uevent", major(device), minor(device));
	AUTO_FCLOSE FILE *file = path != NULL ? fopen(path, "re") : NULL;
	char line[DEVICE_NAME_BYTES];

	name[0] = '\0';
	while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		if (strncmp(line, "DEVNAME=", 8) == 0)
			(void)snprintf(name, DEVICE_NAME_BYTES, "%s", line + 8);
	}
}

const char *device_get_name(dev_t device, char name[DEVICE_NAME_BYTES])
{
	char own_name[DEVICE_NAME_BYTES - 16];
	char kernel_name[DEVICE_NAME_BYTES];

	if (device_read_attribute(device, "dm/name", own_name, sizeof(own_name)) == 0 && own_name[0] != '\0') {
		(void)snprintf(name, DEVICE_NAME_BYTES, "/dev/mapper/%s", own_name);
		return name;
	}
	read_kernel_name(device, kernel_name);
	if (kernel_name[0] != '\0')
		(void)snprintf(name, DEVICE_NAME_BYTES, "/dev/%.300s", kernel_name);
	else
		(void)snprintf(name, DEVICE_NAME_BYTES, "device %u:%u", major(device), minor(device));
	return name;
}

/* ------------------------------------------------------- devices on devices */

void device_list_free(struct device_list *list)
{
	free(list->devices);
	*list = (struct device_list){.devices = NULL};
}

static int list_append(struct device_list *list, dev_t device)
{
	dev_t *slot = append_slot(&list->devices, &list->count, sizeof(*list->devices));

	if (slot == NULL)
		return -ENOMEM;
	*slot = device;
	return 0;
}

/* All entries of a directory that have a file "dev", and a file `needed` unless that is NULL. */
static int list_directory(const char *path, const char *needed, struct device_list *ret_list)
{
	struct device_list list = {.devices = NULL};
	AUTO(close_directory) DIR *directory = opendir(path);
	const struct dirent *entry;

	while (directory != NULL && (entry = readdir(directory)) != NULL) {
		AUTO_FREE char *needed_path = NULL;
		dev_t device;

		if (entry->d_name[0] == '.')
			continue;
		if (needed != NULL && asprintf(&needed_path, "%s/%s/%s", path, entry->d_name, needed) < 0) {
			needed_path = NULL;
			device_list_free(&list);
			return -ENOMEM;
		}
		if (needed_path != NULL && access(needed_path, F_OK) < 0)
			continue;
		if (!read_device_file(path, entry->d_name, &device))
			continue;
		if (list_append(&list, device) < 0) {
			device_list_free(&list);
			return -ENOMEM;
		}
	}
	*ret_list = list;
	return 0;
}

int device_list_partitions(dev_t device, struct device_list *ret_list)
{
	AUTO_FREE char *path = device_survey_path("/sys/dev/block/%u:%u", major(device), minor(device));

	return path != NULL ? list_directory(path, "partition", ret_list) : -ENOMEM;
}

int device_list_holders(dev_t device, struct device_list *ret_list)
{
	AUTO_FREE char *path = device_survey_path("/sys/dev/block/%u:%u/holders", major(device), minor(device));

	return path != NULL ? list_directory(path, NULL, ret_list) : -ENOMEM;
}

/* ----------------------------------------------------------------- mounts */

/* Undoes the \ooo by which /proc writes blanks, in place. */
static void decode_octal(char *text)
{
	const char *from = text;

	while (*from != '\0') {
		if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' &&
		    from[3] >= '0' && from[3] <= '7') {
			*text++ = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
			from += 4;
		} else {
			*text++ = *from++;
		}
	}
	*text = '\0';
}

static int add_mount(struct device_survey *survey, dev_t device, bool is_writable, const char *where)
{
	char *copy = strdup(where);
	struct device_mount *mount;

	if (copy == NULL)
		return -ENOMEM;
	mount = append_slot(&survey->mounts, &survey->mount_count, sizeof(*mount));
	if (mount == NULL) {
		free(copy);
		return -ENOMEM;
	}
	*mount = (struct device_mount){.device = device, .is_writable = is_writable, .where = copy};
	return 0;
}

/* The option "rw" stands first where the kernel lists a file system's options. */
static bool options_say_writable(const char *options)
{
	return !(strncmp(options, "ro", 2) == 0 && (options[2] == ',' || options[2] == '\0'));
}

/* "/dev/sda2", or several with ':' between them as bcachefs has it. */
static int add_mounts_by_path(struct device_survey *survey, char *paths, bool is_writable, const char *where)
{
	char *rest = NULL;

	for (char *part = strtok_r(paths, ":", &rest); part != NULL; part = strtok_r(NULL, ":", &rest)) {
		AUTO_FREE char *path = NULL;
		struct stat status;
		int error;

		if (part[0] != '/')
			continue;
		path = device_survey_path("%s", part);
		if (path == NULL)
			return -ENOMEM;
		if (stat(path, &status) < 0 || !S_ISBLK(status.st_mode))
			continue;
		error = add_mount(survey, status.st_rdev, is_writable, where);
		if (error < 0)
			return error;
	}
	return 0;
}

/*
 * "26 1 254:0 / /mnt rw,relatime shared:1 - ext4 /dev/vda rw,discard": id, parent, device, root, where, options of this
 * mount, optional fields up to "-", type, source, options of the file system. A line that looks otherwise is skipped.
 */
static int add_mountinfo_line(struct device_survey *survey, char *line)
{
	char *rest = NULL;
	char *fields[6];
	char *field;
	const char *type;
	char *source;
	char *options;
	dev_t device;

	for (unsigned i = 0; i < 6; i++) {
		fields[i] = strtok_r(i == 0 ? line : NULL, " \n", &rest);
		if (fields[i] == NULL)
			return 0;
	}
	do {
		field = strtok_r(NULL, " \n", &rest);
	} while (field != NULL && strcmp(field, "-") != 0);
	type = strtok_r(NULL, " \n", &rest);
	source = strtok_r(NULL, " \n", &rest);
	options = strtok_r(NULL, " \n", &rest);
	if (type == NULL || source == NULL || options == NULL || !parse_device(fields[2], &device))
		return 0;
	decode_octal(fields[4]);
	decode_octal(source);
	if (major(device) != 0)
		return add_mount(survey, device, options_say_writable(options), fields[4]);
	return add_mounts_by_path(survey, source, options_say_writable(options), fields[4]);
}

static int read_mounts(struct device_survey *survey)
{
	AUTO_FREE char *path = device_survey_path("/proc/self/mountinfo");
	AUTO_FCLOSE FILE *file = NULL;
	AUTO_FREE char *line = NULL;
	size_t line_bytes = 0;

	if (path == NULL)
		return -ENOMEM;
	file = fopen(path, "re");
	if (file == NULL)
		return -errno;
	while (getline(&line, &line_bytes, file) >= 0) {
		int error = add_mountinfo_line(survey, line);

		if (error < 0)
			return error;
	}
	return ferror(file) ? -EIO : 0;
}

static const struct device_mount *find_mount_of(const struct device_survey *survey, const struct device_list *devices)
{
	for (size_t i = 0; i < survey->mount_count; i++) {
		for (size_t j = 0; j < devices->count; j++) {
			if (survey->mounts[i].device == devices->devices[j])
				return &survey->mounts[i];
		}
	}
	return NULL;
}

/* A btrfs is listed in /sys/fs/btrfs as long as it is mounted somewhere, be it out of our sight. */
static int add_btrfs(struct device_survey *survey, const char *devices_path)
{
	AUTO(device_list_free) struct device_list devices = {.devices = NULL};
	AUTO_FREE char *where = NULL;
	const struct device_mount *known;
	bool is_writable;
	int error = list_directory(devices_path, NULL, &devices);

	if (error < 0)
		return error;
	known = find_mount_of(survey, &devices);
	is_writable = known != NULL ? known->is_writable : true;
	where = strdup(known != NULL ? known->where : "a directory that can't be seen from here (btrfs)");
	if (where == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < devices.count && error == 0; i++)
		error = add_mount(survey, devices.devices[i], is_writable, where);
	return error;
}

static int read_btrfs(struct device_survey *survey)
{
	AUTO_FREE char *path = device_survey_path("/sys/fs/btrfs");
	AUTO(close_directory) DIR *directory = path != NULL ? opendir(path) : NULL;
	const struct dirent *entry;

	if (path == NULL)
		return -ENOMEM;
	while (directory != NULL && (entry = readdir(directory)) != NULL) {
		AUTO_FREE char *devices_path = NULL;
		int error;

		if (entry->d_name[0] == '.')
			continue;
		if (asprintf(&devices_path, "%s/%s/devices", path, entry->d_name) < 0) {
			devices_path = NULL;
			return -ENOMEM;
		}
		error = add_btrfs(survey, devices_path);
		if (error < 0)
			return error;
	}
	return 0;
}

/* ------------------------------------------------------------------- swap */

/* "/swap.img   file   4194300   0   -2" */
static int add_swap_line(struct device_survey *survey, char *line)
{
	AUTO_FREE char *path = NULL;
	struct device_swap *swap;
	struct stat status;

	line[strcspn(line, " \t\n")] = '\0';
	if (line[0] != '/')
		return 0; /* the heading */
	decode_octal(line);
	path = device_survey_path("%s", line);
	if (path == NULL)
		return -ENOMEM;
	if (stat(path, &status) < 0)
		return 0; /* its name is gone: then it's not what somebody names now, and a device is still claimed */
	swap = append_slot(&survey->swaps, &survey->swap_count, sizeof(*swap));
	if (swap == NULL)
		return -ENOMEM;
	if (S_ISBLK(status.st_mode))
		swap->device = status.st_rdev;
	swap->file_device = status.st_dev;
	swap->file_inode = status.st_ino;
	return 0;
}

static int read_swaps(struct device_survey *survey)
{
	AUTO_FREE char *path = device_survey_path("/proc/swaps");
	AUTO_FCLOSE FILE *file = path != NULL ? fopen(path, "re") : NULL;
	AUTO_FREE char *line = NULL;
	size_t line_bytes = 0;

	if (path == NULL)
		return -ENOMEM;
	while (file != NULL && getline(&line, &line_bytes, file) >= 0) { /* no file: a kernel without swap */
		int error = add_swap_line(survey, line);

		if (error < 0)
			return error;
	}
	return 0;
}

/* ----------------------------------------------------------- loop devices */

/*
 * What a loop device lies on. The kernel's own answer is exact, but needs the right to open the device; everybody can
 * read the path in /sys, which may be stale. False: it can't be found out.
 */
static bool identify_backing(struct device_loop *loop, const char *name, const char *backing_path)
{
	AUTO_FREE char *device_path = device_survey_path("/dev/%s", name);
	AUTO_CLOSE int fd = -1;
	struct loop_info64 info;
	struct stat status;

	if (device_survey_is_real() && device_path != NULL)
		fd = open(device_path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && fstat(fd, &status) == 0 && S_ISBLK(status.st_mode) && status.st_rdev == loop->device &&
	    ioctl(fd, LOOP_GET_STATUS64, &info) == 0) {
		loop->on_device = (dev_t)info.lo_rdevice;
		loop->file_device = (dev_t)info.lo_device;
		loop->file_inode = (ino_t)info.lo_inode;
		return true;
	}
	if (stat(backing_path, &status) < 0)
		return false;
	loop->on_device = S_ISBLK(status.st_mode) ? status.st_rdev : 0;
	loop->file_device = status.st_dev;
	loop->file_inode = status.st_ino;
	return true;
}

static int add_loop(struct device_survey *survey, const char *name)
{
	AUTO_FREE char *block_path = device_survey_path("/sys/block");
	AUTO_FREE char *backing_path = NULL;
	struct device_loop loop = {.len_bytes = UINT64_MAX};
	struct device_loop *slot;
	char backing[4096];
	uint64_t limit_bytes;

	if (block_path == NULL)
		return -ENOMEM;
	if (!read_device_file(block_path, name, &loop.device) ||
	    device_read_attribute(loop.device, "loop/backing_file", backing, sizeof(backing)) < 0)
		return 0; /* not set up */
	backing_path = device_survey_path("%s", backing);
	if (backing_path == NULL)
		return -ENOMEM;
	if (!identify_backing(&loop, name, backing_path))
		return 0;
	(void)device_read_number(loop.device, "loop/offset", &loop.off_bytes); /* stays 0 */
	if (device_read_number(loop.device, "loop/sizelimit", &limit_bytes) == 0 && limit_bytes > 0)
		loop.len_bytes = limit_bytes;
	slot = append_slot(&survey->loops, &survey->loop_count, sizeof(*slot));
	if (slot == NULL)
		return -ENOMEM;
	*slot = loop;
	return 0;
}

static int read_loops(struct device_survey *survey)
{
	AUTO_FREE char *path = device_survey_path("/sys/block");
	AUTO(close_directory) DIR *directory = path != NULL ? opendir(path) : NULL;
	const struct dirent *entry;

	if (path == NULL)
		return -ENOMEM;
	while (directory != NULL && (entry = readdir(directory)) != NULL) {
		int error = strncmp(entry->d_name, "loop", 4) == 0 ? add_loop(survey, entry->d_name) : 0;

		if (error < 0)
			return error;
	}
	return 0;
}

/* -------------------------------------------------------------- all of it */

void device_survey_free(struct device_survey *survey)
{
	for (size_t i = 0; i < survey->mount_count; i++)
		free(survey->mounts[i].where);
	free(survey->mounts);
	free(survey->swaps);
	free(survey->loops);
	*survey = (struct device_survey){.mounts = NULL};
}

int device_survey_make(struct device_survey *ret_survey)
{
	int (*const steps[])(struct device_survey *) = {read_mounts, read_btrfs, read_swaps, read_loops};
	struct device_survey survey = {.mounts = NULL};

	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		int error = steps[i](&survey);

		if (error < 0) {
			device_survey_free(&survey);
			return error;
		}
	}
	*ret_survey = survey;
	return 0;
}
