/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walks through the file system in an image file by fsreader/fsreader.h, and prints what other programs print of a
 * mounted one, so that the two can be compared. Records end with a NUL, as names may hold anything else; sort -z brings
 * them in order.
 *
 *     fsreader_list IMAGE TYPE stat              as find . -exec stat --printf
 * '%n|%f|%h|%u|%g|%t:%T|%s|%b|%.9X|%.9Y|%.9Z\0' {} + fsreader_list IMAGE TYPE links             as find . -type l
 * -printf '%p -> %l\0' fsreader_list IMAGE TYPE contents [BYTES]  as find . -type f -exec sha256sum -z {} +; files of
 * more than BYTES left out fsreader_list IMAGE TYPE xattrs            PATH|NAME=hexadecimal fsreader_list IMAGE TYPE
 * statfs            as stat -f --printf '%S %b %f %a %c %d\n' fsreader_list IMAGE TYPE cat PATH [OFF LEN] fsreader_list
 * IMAGE TYPE data PATH         where SEEK_DATA and SEEK_HOLE say that data is: "OFF LEN", a line each fsreader_list
 * IMAGE TYPE names             names alone, without a stat, by listings and by looking each one up again fsreader_list
 * IMAGE TYPE survive           all of the above as far as it goes: errors are counted, not fatal, and what it does is
 * bounded. Ends with 0 unless something can't be that it was told
 *
 * Environment: TIMEOUT_SECONDS of one question; THREADS that walk at once (stat: 1); QUIET: what the library has to say
 * doesn't go to stderr; VERBOSE: what was survived does.
 */
#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/units.h"
#include "fsreader/fsreader.h"

enum {
	PATH_BYTES = 8192,
	BUFFER_BYTES = 1 << 20,
	SURVIVE_ENTRIES_MOST = 20000, /* of all listings of a walk */
	SURVIVE_READ_BYTES = 64 * 1024,
	DEPTH_MOST = 500,
	DIGEST_BYTES = 32,
};

struct walk {
	struct fsreader *reader;
	void (*visit)(struct walk *walk, const char *path, const struct fsreader_attr *attr);
	bool goes_on; /* errors are counted */
	bool looks_up;
	uint64_t contents_most_bytes;
	uint64_t *seen; /* folders that were gone into, for a damaged file system may go round in circles */
	size_t seen_count;
	uint64_t entries, errors;
	uint8_t *buffer;
};

static int image_fd;

static int read_image(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	(void)opaque;
	while (len_bytes > 0) {
		ssize_t got_bytes = pread(image_fd, buffer, len_bytes, (off_t)off_bytes);

		if (got_bytes <= 0)
			return fail(failure, -EIO, "the image can't be read");
		buffer = (uint8_t *)buffer + got_bytes;
		off_bytes += (uint64_t)got_bytes;
		len_bytes -= (size_t)got_bytes;
	}
	return 0;
}

static void say(void *opaque, enum notice_level level, const char *text)
{
	(void)opaque;
	if (getenv("QUIET") == NULL)
		(void)fprintf(stderr, "%s: %s\n", level == NOTICE_WARNING ? "warning" : "notice", text);
}

/* Counts it, or ends the program. */
static void tell_failure(struct walk *walk, const char *path, const struct failure *failure)
{
	walk->errors++;
	if (!walk->goes_on)
		error(EXIT_FAILURE, 0, "%s: %s (%s)", path, failure->message, strerrorname_np(-failure->code));
	if (getenv("VERBOSE") != NULL)
		(void)fprintf(stderr, "%s: %s\n", path, failure->message);
}

/* -------------------------------------------------------------------- walk */

struct folder {
	struct walk *walk;
	const char *path;
	uint64_t ino;
	unsigned depth;
};

static void walk_folder(struct walk *walk, const char *path, uint64_t ino, unsigned depth);

static bool is_seen(struct walk *walk, uint64_t ino)
{
	for (size_t i = 0; i < walk->seen_count && walk->goes_on; i++) {
		if (walk->seen[i] == ino)
			return true;
	}
	walk->seen = realloc(walk->seen, (walk->seen_count + 1) * sizeof(*walk->seen));
	if (walk->seen == NULL)
		error(EXIT_FAILURE, ENOMEM, "seen");
	walk->seen[walk->seen_count++] = ino;
	return false;
}

static void look_up_again(struct folder *folder, const char *path, const char *name, const struct fsreader_attr *attr)
{
	struct failure failure = {.code = 0};
	struct fsreader_attr found;
	int result = fsreader_lookup(folder->walk->reader, folder->ino, name, &found, &failure);

	if (result < 0)
		tell_failure(folder->walk, path, &failure);
	else if (found.ino != attr->ino && attr->ino != 0 && !folder->walk->goes_on)
		error(EXIT_FAILURE, 0, "%s: listed as inode %" PRIu64 ", found as %" PRIu64, path, attr->ino,
		      found.ino);
}

static int found_entry(void *opaque, const char *name, const struct fsreader_attr *attr, uint64_t cookie)
{
	struct folder *folder = opaque;
	struct walk *walk = folder->walk;
	char path[PATH_BYTES];

	(void)cookie;
	if (walk->goes_on && ++walk->entries > SURVIVE_ENTRIES_MOST)
		return 1;
	if (snprintf(path, sizeof(path), "%s/%s", folder->path, name) >= (int)sizeof(path))
		return 0;
	if (walk->looks_up)
		look_up_again(folder, path, name, attr);
	if (attr->ino == 0) {
		tell_failure(walk, path, &(struct failure){.code = -EIO, .message = "its inode can't be read"});
		return 0;
	}
	walk->visit(walk, path, attr);
	if (S_ISDIR(attr->mode) && folder->depth < DEPTH_MOST && !is_seen(walk, attr->ino))
		walk_folder(walk, path, attr->ino, folder->depth + 1);
	return 0;
}

static void walk_folder(struct walk *walk, const char *path, uint64_t ino, unsigned depth)
{
	struct folder folder = {.walk = walk, .path = path, .ino = ino, .depth = depth};
	struct failure failure = {.code = 0};

	if (fsreader_list(walk->reader, ino, 0, found_entry, &folder, &failure) < 0)
		tell_failure(walk, path, &failure);
}

static void walk_all(struct walk *walk)
{
	struct failure failure = {.code = 0};
	struct fsreader_attr root;

	if (fsreader_getattr(walk->reader, FSREADER_ROOT, &root, &failure) < 0) {
		tell_failure(walk, ".", &failure);
		return;
	}
	walk->visit(walk, ".", &root);
	(void)is_seen(walk, FSREADER_ROOT);
	walk_folder(walk, ".", FSREADER_ROOT, 0);
}

/* ------------------------------------------------------------------ visits */

static void print_time(const struct timespec *time)
{
	if (time->tv_sec < 0 && time->tv_nsec > 0) /* as stat(1): a minus for all of it */
		(void)printf("|-%" PRId64 ".%09ld", -(int64_t)time->tv_sec - 1, 1000000000L - time->tv_nsec);
	else
		(void)printf("|%" PRId64 ".%09ld", (int64_t)time->tv_sec, time->tv_nsec);
}

static void visit_stat(struct walk *walk, const char *path, const struct fsreader_attr *attr)
{
	(void)walk;
	(void)printf("%s|%x|%u|%u|%u|%x:%x|%" PRIu64 "|%" PRIu64, path, attr->mode, attr->nlink, attr->uid, attr->gid,
		     attr->rdev_major, attr->rdev_minor, attr->size_bytes, attr->allocated_bytes / 512);
	print_time(&attr->atime);
	print_time(&attr->mtime);
	print_time(&attr->ctime);
	(void)putchar('\0');
}

static void visit_names(struct walk *walk, const char *path, const struct fsreader_attr *attr)
{
	(void)walk;
	(void)attr;
	(void)printf("%s", path);
	(void)putchar('\0');
}

static void visit_links(struct walk *walk, const char *path, const struct fsreader_attr *attr)
{
	AUTO_FREE char *target = NULL;
	struct failure failure = {.code = 0};

	if (!S_ISLNK(attr->mode))
		return;
	if (fsreader_readlink(walk->reader, attr->ino, &target, &failure) < 0) {
		tell_failure(walk, path, &failure);
		return;
	}
	(void)printf("%s -> %s", path, target);
	(void)putchar('\0');
}

static void visit_contents(struct walk *walk, const char *path, const struct fsreader_attr *attr)
{
	struct failure failure = {.code = 0};
	struct fsreader_file *file;
	uint8_t digest[DIGEST_BYTES];
	char text[2 * DIGEST_BYTES + 1];
	EVP_MD_CTX *context;
	uint64_t off_bytes = 0;
	size_t got_bytes = 1;
	int result = 0;

	if (!S_ISREG(attr->mode) || attr->size_bytes > walk->contents_most_bytes)
		return;
	if (fsreader_open(walk->reader, attr->ino, &file, &failure) < 0) {
		tell_failure(walk, path, &failure);
		return;
	}
	context = EVP_MD_CTX_new();
	(void)EVP_DigestInit_ex(context, EVP_sha256(), NULL);
	while (result == 0 && got_bytes > 0) {
		result = fsreader_read(file, walk->buffer, BUFFER_BYTES, off_bytes, &got_bytes, &failure);
		if (result == 0)
			(void)EVP_DigestUpdate(context, walk->buffer, got_bytes);
		off_bytes += got_bytes;
	}
	(void)EVP_DigestFinal_ex(context, digest, NULL);
	EVP_MD_CTX_free(context);
	fsreader_close(file);
	if (result < 0) {
		tell_failure(walk, path, &failure);
		return;
	}
	bytes_to_hex(digest, sizeof(digest), text);
	(void)printf("%s  %s", text, path);
	(void)putchar('\0');
}

static void print_xattr(struct walk *walk, const char *path, uint64_t ino, const char *name)
{
	AUTO_FREE void *value = NULL;
	AUTO_FREE char *text = NULL;
	struct failure failure = {.code = 0};
	size_t len_bytes;

	if (fsreader_getxattr(walk->reader, ino, name, &value, &len_bytes, &failure) < 0) {
		tell_failure(walk, path, &failure);
		return;
	}
	text = malloc(2 * len_bytes + 1);
	if (text == NULL)
		error(EXIT_FAILURE, ENOMEM, "%s", path);
	bytes_to_hex(value, len_bytes, text);
	(void)printf("%s|%s=%s", path, name, text);
	(void)putchar('\0');
}

static void visit_xattrs(struct walk *walk, const char *path, const struct fsreader_attr *attr)
{
	AUTO_FREE char *names = NULL;
	struct failure failure = {.code = 0};
	size_t len_bytes;

	if (fsreader_listxattr(walk->reader, attr->ino, &names, &len_bytes, &failure) < 0) {
		tell_failure(walk, path, &failure);
		return;
	}
	for (const char *name = names; name < names + len_bytes; name += strlen(name) + 1)
		print_xattr(walk, path, attr->ino, name);
}

/* Reads a little of a file, where it begins, and where it ends. */
static void read_some(struct walk *walk, const char *path, const struct fsreader_attr *attr)
{
	uint64_t places[3] = {0, attr->size_bytes / 2, attr->size_bytes > 100 ? attr->size_bytes - 100 : 0},
		 found_bytes;
	struct failure failure = {.code = 0};
	struct fsreader_file *file;
	size_t got_bytes;

	if (fsreader_open(walk->reader, attr->ino, &file, &failure) < 0) {
		tell_failure(walk, path, &failure);
		return;
	}
	for (unsigned i = 0; i < 3; i++) {
		failure_clear(&failure);
		if (fsreader_read(file, walk->buffer, SURVIVE_READ_BYTES, places[i], &got_bytes, &failure) < 0)
			tell_failure(walk, path, &failure);
	}
	failure_clear(&failure);
	if (fsreader_seek(file, 0, true, &found_bytes, &failure) < 0 && failure.code != -ENXIO)
		tell_failure(walk, path, &failure);
	fsreader_close(file);
}

static void visit_to_survive(struct walk *walk, const char *path, const struct fsreader_attr *attr)
{
	visit_stat(walk, path, attr);
	visit_links(walk, path, attr);
	visit_xattrs(walk, path, attr);
	if (S_ISREG(attr->mode))
		read_some(walk, path, attr);
}

/* For threads next to the one that prints. */
static void visit_quietly(struct walk *walk, const char *path, const struct fsreader_attr *attr)
{
	if (S_ISREG(attr->mode))
		read_some(walk, path, attr);
}

/* --------------------------------------------------------------- one file */

static uint64_t find_path(struct fsreader *reader, const char *path)
{
	AUTO_FREE char *copy = strdup(path);
	struct failure failure = {.code = 0};
	struct fsreader_attr attr = {.ino = FSREADER_ROOT};
	char *rest = copy, *name;

	while ((name = strsep(&rest, "/")) != NULL) {
		if (*name == '\0' || strcmp(name, ".") == 0)
			continue;
		if (fsreader_lookup(reader, attr.ino, name, &attr, &failure) < 0)
			error(EXIT_FAILURE, 0, "%s (%s)", failure.message, strerrorname_np(-failure.code));
	}
	return attr.ino;
}

static struct fsreader_file *open_path(struct fsreader *reader, const char *path)
{
	struct failure failure = {.code = 0};
	struct fsreader_file *file;

	if (fsreader_open(reader, find_path(reader, path), &file, &failure) < 0)
		error(EXIT_FAILURE, 0, "%s (%s)", failure.message, strerrorname_np(-failure.code));
	return file;
}

static void print_content(struct fsreader *reader, const char *path, uint64_t off_bytes, uint64_t len_bytes)
{
	struct fsreader_file *file = open_path(reader, path);
	AUTO_FREE uint8_t *buffer = malloc(BUFFER_BYTES);
	struct failure failure = {.code = 0};
	size_t got_bytes = 1;

	while (len_bytes > 0 && got_bytes > 0) {
		size_t step_bytes = len_bytes < BUFFER_BYTES ? (size_t)len_bytes : BUFFER_BYTES;

		if (fsreader_read(file, buffer, step_bytes, off_bytes, &got_bytes, &failure) < 0)
			error(EXIT_FAILURE, 0, "%s (%s)", failure.message, strerrorname_np(-failure.code));
		(void)fwrite(buffer, 1, got_bytes, stdout);
		off_bytes += got_bytes;
		len_bytes -= got_bytes;
	}
	fsreader_close(file);
}

static void print_data(struct fsreader *reader, const char *path)
{
	struct fsreader_file *file = open_path(reader, path);
	struct failure failure = {.code = 0};
	uint64_t first_bytes = 0, end_bytes = 0;

	while (fsreader_seek(file, end_bytes, false, &first_bytes, &failure) == 0 &&
	       fsreader_seek(file, first_bytes, true, &end_bytes, &failure) == 0)
		(void)printf("%" PRIu64 " %" PRIu64 "\n", first_bytes, end_bytes - first_bytes);
	if (failure.code != -ENXIO)
		error(EXIT_FAILURE, 0, "%s", failure.message);
	fsreader_close(file);
}

static void print_statfs(struct fsreader *reader)
{
	struct failure failure = {.code = 0};
	struct fsreader_statfs statfs;

	if (fsreader_statfs(reader, &statfs, &failure) < 0)
		error(EXIT_FAILURE, 0, "%s", failure.message);
	(void)printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", statfs.block_bytes,
		     statfs.blocks, statfs.free_blocks, statfs.available_blocks, statfs.files, statfs.free_files);
}

/* --------------------------------------------------------------------- all */

static void survive(struct walk *walk)
{
	struct fsreader_statfs statfs;
	double begun_seconds = units_monotonic_seconds();

	walk->goes_on = true;
	walk->looks_up = true;
	walk->visit = visit_to_survive;
	if (freopen("/dev/null", "w", stdout) == NULL)
		error(EXIT_FAILURE, errno, "/dev/null");
	if (walk->reader != NULL) {
		walk_all(walk);
		(void)fsreader_statfs(walk->reader, &statfs, NULL);
	}
	(void)fprintf(stderr, "%" PRIu64 " entries, %" PRIu64 " errors, %.1f seconds\n", walk->entries, walk->errors,
		      units_monotonic_seconds() - begun_seconds);
}

static void *walk_thread(void *opaque)
{
	struct walk *walk = opaque;

	walk_all(walk);
	return NULL;
}

/* Several at once, each on its own; the first prints. */
static void walk_with_threads(struct walk *walk)
{
	const char *text = getenv("THREADS");
	unsigned count = text == NULL ? 1 : (unsigned)strtoul(text, NULL, 10);
	pthread_t threads[16];
	struct walk walks[16];

	if (count > 16)
		count = 16;
	for (unsigned i = 1; i < count; i++) {
		walks[i] = *walk;
		walks[i].visit = visit_quietly;
		walks[i].buffer = malloc(BUFFER_BYTES);
		if (pthread_create(&threads[i], NULL, walk_thread, &walks[i]) != 0)
			error(EXIT_FAILURE, 0, "threads");
	}
	walk_all(walk);
	for (unsigned i = 1; i < count; i++) {
		(void)pthread_join(threads[i], NULL);
		free(walks[i].buffer);
		free(walks[i].seen);
	}
}

static void run(struct walk *walk, const char *mode, int argc, char **argv)
{
	static const struct {
		const char *mode;
		void (*visit)(struct walk *walk, const char *path, const struct fsreader_attr *attr);
	} visits[] = {
		{"stat", visit_stat},	  {"links", visit_links}, {"contents", visit_contents},
		{"xattrs", visit_xattrs}, {"names", visit_names},
	};

	if (strcmp(mode, "survive") == 0) {
		survive(walk);
		return;
	}
	if (strcmp(mode, "statfs") == 0) {
		print_statfs(walk->reader);
		return;
	}
	if (strcmp(mode, "cat") == 0 && argc >= 1) {
		print_content(walk->reader, argv[0], argc > 1 ? strtoull(argv[1], NULL, 10) : 0,
			      argc > 2 ? strtoull(argv[2], NULL, 10) : UINT64_MAX);
		return;
	}
	if (strcmp(mode, "data") == 0 && argc >= 1) {
		print_data(walk->reader, argv[0]);
		return;
	}
	walk->contents_most_bytes = argc >= 1 ? strtoull(argv[0], NULL, 10) : UINT64_MAX;
	walk->looks_up = strcmp(mode, "names") == 0;
	for (size_t i = 0; i < sizeof(visits) / sizeof(visits[0]); i++) {
		if (strcmp(mode, visits[i].mode) == 0) {
			walk->visit = visits[i].visit;
			walk_with_threads(walk);
			return;
		}
	}
	error(2, 0, "no such mode: %s", mode);
}

int main(int argc, char **argv)
{
	static const struct notices notices = {.say = say};
	const char *timeout = getenv("TIMEOUT_SECONDS");
	struct fsreader_options options = {.what = argc > 1 ? argv[1] : NULL,
					   .timeout_seconds =
						   timeout == NULL ? 0 : (unsigned)strtoul(timeout, NULL, 10),
					   .notices = &notices};
	struct fsreader_source source = {.read = read_image, .sector_bytes = 512};
	struct failure failure = {.code = 0};
	struct walk walk = {.buffer = malloc(BUFFER_BYTES)};
	struct stat status;

	if (argc < 4)
		error(2, 0,
		      "usage: fsreader_list IMAGE TYPE stat|links|contents|xattrs|statfs|cat|data|names|survive …");
	image_fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (image_fd < 0 || fstat(image_fd, &status) < 0)
		error(EXIT_FAILURE, errno, "%s", argv[1]);
	source.size_bytes = (uint64_t)lseek(image_fd, 0, SEEK_END);
	if (fsreader_start(&source, argv[2], &options, &walk.reader, &failure) < 0) {
		if (strcmp(argv[3], "survive") != 0)
			error(EXIT_FAILURE, 0, "%s (%s)", failure.message, strerrorname_np(-failure.code));
		(void)fprintf(stderr, "not opened: %s\n", failure.message);
		free(walk.buffer);
		return 0;
	}
	run(&walk, argv[3], argc - 4, argv + 4);
	fsreader_stop(walk.reader);
	free(walk.seen);
	free(walk.buffer);
	if (fflush(stdout) != 0)
		error(EXIT_FAILURE, errno, "stdout");
	return 0;
}
