/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The archive is what the kernel calls an initramfs: cpio, "newc", uncompressed. In it: /init, and modules as /00.ko,
 * /01.ko, …, in the order in which they are to be loaded, found by modules.dep as depmod(8) has written it: "path: path
 * path …", the needed ones, the first to load last.
 */
#include "fsreader/kernel/initrd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "fsreader/helper_path.h"

enum { MOST_MODULES = 32, MOST_FILE_BYTES = 64 << 20 };

#define PROGRAM "/usr/bin/linux.uml"
#define MODULES "/usr/lib/uml/modules"
#define INSIDE "wherry-inside"

/* Those whose files can be opened by a handle that stays good (of FAT only with that option): not exFAT, nor HFS+. */
static const struct kernel_type types[] = {
	{"xfs", "xfs", "nouuid", "xfs"},
	{"btrfs", "btrfs", NULL, "btrfs"},
	{"vfat", "vfat", "iocharset=utf8,nfs=nostale_ro", "vfat nls_cp437 nls_utf8"},
	{"msdos", "vfat", "iocharset=utf8,nfs=nostale_ro", "vfat nls_cp437 nls_utf8"},
	{"f2fs", "f2fs", NULL, "f2fs"},
	{"iso9660", "iso9660", NULL, "isofs"},
	{"udf", "udf", NULL, "udf"},
	{"squashfs", "squashfs", NULL, "squashfs"},
	{"erofs", "erofs", NULL, "erofs"},
	{"jfs", "jfs", NULL, "jfs"},
	{"reiserfs", "reiserfs", NULL, "reiserfs"},
	{"nilfs2", "nilfs2", NULL, "nilfs2"},
};

const struct kernel_type *kernel_type_find(const char *type)
{
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (strcmp(types[i].type, type) == 0)
			return &types[i];
	return NULL;
}

int kernel_program_find(char ret_path[PATH_MAX], struct failure *failure)
{
	const char *named = secure_getenv("WHERRY_UML"), *program = named != NULL && *named != '\0' ? named : PROGRAM;
	int len_bytes = snprintf(ret_path, PATH_MAX, "%s", program);

	if (len_bytes >= PATH_MAX || access(program, X_OK) < 0)
		return fail(failure, -ENOTSUP, "%s is not there; apt-get install user-mode-linux", program);
	return 0;
}

/* ---- modules ---- */

struct modules {
	char folder[PATH_MAX];
	char *dep;     /* modules.dep */
	char *builtin; /* modules.builtin, or NULL */
	unsigned count;
	char paths[MOST_MODULES][256]; /* below the folder, in the order of loading */
};

static void modules_release(struct modules *modules)
{
	free(modules->dep);
	free(modules->builtin);
}

static char *read_text(const char *folder, const char *name)
{
	char path[PATH_MAX + 32];
	AUTO_FCLOSE FILE *file = NULL;
	char *text = NULL;
	size_t capacity_bytes = 0;

	(void)snprintf(path, sizeof(path), "%s/%s", folder, name); /* fits */
	file = fopen(path, "re");
	if (file == NULL || getdelim(&text, &capacity_bytes, '\0', file) < 0) {
		free(text);
		return NULL;
	}
	return text;
}

/* There is one kernel, and one folder of modules, in the package. Of several the newest, by name. */
static bool find_folder(char ret_folder[PATH_MAX])
{
	struct dirent **names = NULL;
	int count = scandir(MODULES, &names, NULL, versionsort);
	bool is_found = false;

	for (int i = count - 1; i >= 0; i--) {
		if (!is_found && names[i]->d_name[0] != '.') {
			(void)snprintf(ret_folder, PATH_MAX, "%s/%s", MODULES, names[i]->d_name); /* fits */
			is_found = true;
		}
		free(names[i]);
	}
	free(names);
	return is_found;
}

/* Does a path end in "/NAME.ko"? '-' and '_' are the same. */
static bool is_module(const char *path, size_t path_bytes, const char *name)
{
	size_t name_bytes = strlen(name);

	if (path_bytes < name_bytes + 4 || strncmp(path + path_bytes - 3, ".ko", 3) != 0 ||
	    path[path_bytes - 4 - name_bytes] != '/')
		return false;
	for (size_t i = 0; i < name_bytes; i++) {
		char c = path[path_bytes - 3 - name_bytes + i];

		if ((c == '-' ? '_' : c) != (name[i] == '-' ? '_' : name[i]))
			return false;
	}
	return true;
}

static bool add_module(struct modules *modules, const char *path, size_t path_bytes)
{
	for (unsigned i = 0; i < modules->count; i++)
		if (strlen(modules->paths[i]) == path_bytes && strncmp(modules->paths[i], path, path_bytes) == 0)
			return true;
	if (modules->count == MOST_MODULES || path_bytes >= sizeof(modules->paths[0]))
		return false;
	memcpy(modules->paths[modules->count], path, path_bytes);
	modules->paths[modules->count++][path_bytes] = '\0';
	return true;
}

/* A line of modules.dep: what is needed, from the last to the first, then the module itself. */
static bool add_line(struct modules *modules, const char *line, size_t path_bytes)
{
	const char *first = line + path_bytes + 1, *end = first + strcspn(first, "\n");

	while (end > first) {
		const char *start = end;

		while (start > first && start[-1] != ' ')
			start--;
		if (end > start && !add_module(modules, start, (size_t)(end - start)))
			return false;
		end = start > first ? start - 1 : first;
	}
	return add_module(modules, line, path_bytes);
}

static bool is_builtin(const struct modules *modules, const char *name)
{
	for (const char *line = modules->builtin; line != NULL && *line != '\0';) {
		size_t line_bytes = strcspn(line, "\n");

		if (is_module(line, line_bytes, name))
			return true;
		line += line_bytes + (line[line_bytes] == '\n');
	}
	return false;
}

static bool add_named(struct modules *modules, const char *name)
{
	for (const char *line = modules->dep; *line != '\0';) {
		size_t line_bytes = strcspn(line, "\n"), path_bytes = strcspn(line, ":\n");

		if (line[path_bytes] == ':' && is_module(line, path_bytes, name))
			return add_line(modules, line, path_bytes);
		line += line_bytes + (line[line_bytes] == '\n');
	}
	return is_builtin(modules, name);
}

static int find_modules(const struct kernel_type *type, struct modules *ret_modules, struct failure *failure)
{
	AUTO_FREE char *names = strdup(type->modules);
	char *rest = NULL;

	if (names == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	if (!find_folder(ret_modules->folder) ||
	    (ret_modules->dep = read_text(ret_modules->folder, "modules.dep")) == NULL)
		return fail(failure, -ENOTSUP, MODULES ": no modules; apt-get install user-mode-linux");
	ret_modules->builtin = read_text(ret_modules->folder, "modules.builtin");
	for (char *name = strtok_r(names, " ", &rest); name != NULL; name = strtok_r(NULL, " ", &rest))
		if (!add_named(ret_modules, name) &&
		    strncmp(name, "nls_", 4) != 0) /* the mount says so if it does need one */
			return fail(failure, -ENOTSUP, "file system %s: " PROGRAM " has no module %s", type->type,
				    name);
	return 0;
}

int kernel_initrd_check(const struct kernel_type *type, struct failure *failure)
{
	AUTO(modules_release) struct modules modules = {.count = 0};
	char path[PATH_MAX];
	int error = kernel_program_find(path, failure);

	if (error == 0)
		error = helper_path_find(INSIDE, path, failure) < 0 ? -ENOTSUP : 0;
	return error < 0 ? error : find_modules(type, &modules, failure);
}

/* ---- the archive ---- */

static void put_padding(struct byte_writer *archive)
{
	while (archive->len_bytes % 4 != 0 && !archive->failed)
		byte_writer_u8(archive, 0);
}

static void put_head(struct byte_writer *archive, const char *name, unsigned mode, size_t len_bytes)
{
	/* magic, inode (any that differs), mode, uid, gid, links, time, size, four of devices, length of the name, checksum (none) */
	char head[128];
	int head_bytes = snprintf(head, sizeof(head), "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
				  (unsigned)archive->len_bytes + 1, mode, 0, 0, 1, 0, (unsigned)len_bytes, 0, 0, 0, 0,
				  (unsigned)strlen(name) + 1, 0);

	byte_writer_bytes(archive, head, (size_t)head_bytes);
	byte_writer_bytes(archive, name, strlen(name) + 1);
	put_padding(archive);
}

static int put_file(struct byte_writer *archive, const char *path, const char *name, unsigned mode,
		    struct failure *failure)
{
	AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	AUTO_FREE uint8_t *data = NULL;
	struct stat status;

	if (fd < 0 || fstat(fd, &status) < 0)
		return fail_errno(failure, -errno, "%s", path);
	if (status.st_size > MOST_FILE_BYTES)
		return fail(failure, -EFBIG, "%s: larger than %d bytes", path, MOST_FILE_BYTES);
	data = malloc((size_t)status.st_size + 1);
	if (data == NULL)
		return fail(failure, -ENOMEM, "fsreader: out of memory");
	if (read(fd, data, (size_t)status.st_size) != status.st_size)
		return fail(failure, -EIO, "%s: can't be read", path);
	put_head(archive, name, mode, (size_t)status.st_size);
	byte_writer_bytes(archive, data, (size_t)status.st_size);
	put_padding(archive);
	return 0;
}

static int put_all(struct byte_writer *archive, const struct kernel_type *type, struct failure *failure)
{
	AUTO(modules_release) struct modules modules = {.count = 0};
	char path[PATH_MAX + 300], name[16];
	int error = find_modules(type, &modules, failure);

	if (error == 0)
		error = helper_path_find(INSIDE, path, failure);
	if (error == 0)
		error = put_file(archive, path, "init", S_IFREG | 0755, failure);
	for (unsigned i = 0; i < modules.count && error == 0; i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", modules.folder, modules.paths[i]); /* fits */
		(void)snprintf(name, sizeof(name), "%02u.ko", i);
		error = put_file(archive, path, name, S_IFREG | 0644, failure);
	}
	put_head(archive, "TRAILER!!!", 0, 0);
	return error == 0 && archive->failed ? fail(failure, -ENOMEM, "fsreader: out of memory") : error;
}

static int write_all(int fd, const uint8_t *data, size_t len_bytes)
{
	while (len_bytes > 0) {
		ssize_t written = write(fd, data, len_bytes);

		if (written < 0)
			return -errno;
		data += written;
		len_bytes -= (size_t)written;
	}
	return 0;
}

int kernel_initrd_make(const struct kernel_type *type, int *ret_fd, struct failure *failure)
{
	AUTO(byte_writer_free) struct byte_writer archive = BYTE_WRITER_EMPTY;
	AUTO_CLOSE int fd = memfd_create("initrd", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int error = fd < 0 ? fail_errno(failure, -errno, "memfd_create") : put_all(&archive, type, failure);

	if (error < 0)
		return error;
	error = write_all(fd, archive.data, archive.len_bytes);
	if (error == 0 && lseek(fd, 0, SEEK_SET) < 0)
		error = -errno;
	if (error == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		error = -errno;
	if (error < 0)
		return fail_errno(failure, error, "initrd");
	*ret_fd = take_fd(&fd);
	return 0;
}
