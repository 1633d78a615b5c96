/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fsreader.h: with a file system that mke2fs made, and with a reader that has been taken over
 * (tests/helpers/fsreader_liar.c).
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/units.h"
#include "fsreader/fsreader.h"
#include "scratch_folder.h"
#include "../helpers/fsreader_liar.h"

enum {
	IMAGE_BYTES = 32 * 1024 * 1024,
	LIAR_IMAGE_BYTES = 1024 * 1024,
	CONTENT_BYTES = 3 * 1024 * 1024 + 777,
	MANY_FILES = 700,
	THREADS = 6,
	PATH_BYTES = 512,
};

static struct scratch_folder folder;
static char liar[PATH_BYTES];

/* ----------------------------------------------------------------- source */

struct image {
	struct fsreader_source source;
	uint8_t *data;
	_Atomic uint64_t bad_off_bytes; /* reading this fails; UINT64_MAX: none */
	atomic_uint delay_ms;
	atomic_uint reads;
};

static int read_image(void *opaque, void *buffer, size_t len_bytes, uint64_t off_bytes, struct failure *failure)
{
	struct image *image = opaque;
	uint64_t bad_off_bytes = atomic_load(&image->bad_off_bytes);
	unsigned delay_ms = atomic_load(&image->delay_ms);

	(void)atomic_fetch_add(&image->reads, 1);
	if (delay_ms > 0)
		(void)nanosleep(&(struct timespec){.tv_sec = delay_ms / 1000, .tv_nsec = delay_ms % 1000 * 1000000L},
				NULL);
	assert_true(off_bytes <= image->source.size_bytes && len_bytes <= image->source.size_bytes - off_bytes);
	if (bad_off_bytes >= off_bytes && bad_off_bytes < off_bytes + len_bytes)
		return fail(failure, -EIO, "chunk 5 of the image is damaged");
	memcpy(buffer, image->data + off_bytes, len_bytes);
	return 0;
}

static struct image make_image(uint64_t size_bytes)
{
	struct image image = {.source = {.read = read_image, .size_bytes = size_bytes, .sector_bytes = 512},
			      .data = calloc(1, size_bytes),
			      .bad_off_bytes = UINT64_MAX};

	assert_non_null(image.data);
	return image;
}

static struct fsreader *start(struct image *image, unsigned timeout_seconds)
{
	const struct fsreader_options options = {.what = "web01@3/2", .timeout_seconds = timeout_seconds};
	struct failure failure = {.code = 0};
	struct fsreader *reader = NULL;

	image->source.opaque = image;
	if (fsreader_start(&image->source, "ext4", &options, &reader, &failure) < 0)
		fail_msg("%s", failure.message);
	return reader;
}

static void stop(struct fsreader *reader, struct image *image)
{
	fsreader_stop(reader);
	free(image->data);
}

/* ------------------------------------------------- a file system of our own */

static uint8_t content_byte(size_t i)
{
	return (uint8_t)(i * 2654435761U >> 13);
}

static void write_file(const char *name, size_t len_bytes)
{
	char path[PATH_BYTES];
	uint8_t *data = malloc(len_bytes + 1);
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/tree/%s", folder.path, name);
	file = fopen(path, "w");
	assert_non_null(file);
	for (size_t i = 0; i < len_bytes; i++)
		data[i] = content_byte(i);
	assert_int_equal(fwrite(data, 1, len_bytes, file), len_bytes);
	assert_int_equal(fclose(file), 0);
	free(data);
}

static void run(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void run(const char *format, ...)
{
	char command[4 * PATH_BYTES];
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(command, sizeof(command), format, arguments);
	va_end(arguments);
	if (system(command) != 0)
		fail_msg("%s", command);
}

static void make_tree(void)
{
	char name[64];

	run("mkdir -p %s/tree/many %s/tree/empty", folder.path, folder.path);
	write_file("content", CONTENT_BYTES);
	write_file("small", 100);
	for (unsigned i = 0; i < MANY_FILES; i++) {
		(void)snprintf(name, sizeof(name), "many/a-file-with-a-name-of-some-length-%04u", i);
		write_file(name, i % 5);
	}
	run("cd %s/tree && ln -s small link && truncate -s 1M holes && printf data >>holes", folder.path);
	run("PATH=$PATH:/sbin:/usr/sbin; cd %s && truncate -s %d fs.img && mke2fs -q -F -t ext4 -b 4096 -d tree fs.img "
	    ">/dev/null 2>&1",
	    folder.path, IMAGE_BYTES);
}

static struct image load_image(void)
{
	struct image image = make_image(IMAGE_BYTES);
	char path[PATH_BYTES];
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/fs.img", folder.path);
	file = fopen(path, "r");
	assert_non_null(file);
	assert_int_equal(fread(image.data, 1, IMAGE_BYTES, file), IMAGE_BYTES);
	(void)fclose(file);
	return image;
}

static struct fsreader_attr look_up(struct fsreader *reader, const char *name)
{
	struct failure failure = {.code = 0};
	struct fsreader_attr attr;

	if (fsreader_lookup(reader, FSREADER_ROOT, name, &attr, &failure) < 0)
		fail_msg("%s", failure.message);
	return attr;
}

static struct fsreader_file *open_file(struct fsreader *reader, const char *name)
{
	struct failure failure = {.code = 0};
	struct fsreader_file *file = NULL;

	if (fsreader_open(reader, look_up(reader, name).ino, &file, &failure) < 0)
		fail_msg("%s", failure.message);
	return file;
}

static void expect_content(struct fsreader_file *file, size_t off_bytes, size_t len_bytes)
{
	uint8_t *buffer = malloc(len_bytes);
	size_t got_bytes = 0, expected_bytes = off_bytes >= CONTENT_BYTES ? 0 : CONTENT_BYTES - off_bytes;

	if (expected_bytes > len_bytes)
		expected_bytes = len_bytes;
	assert_int_equal(fsreader_read(file, buffer, len_bytes, off_bytes, &got_bytes, NULL), 0);
	assert_int_equal(got_bytes, expected_bytes);
	for (size_t i = 0; i < got_bytes; i++) {
		if (buffer[i] != content_byte(off_bytes + i))
			fail_msg("byte %zu differs", off_bytes + i);
	}
	free(buffer);
}

/* ------------------------------------------------------------------- truth */

static void content_is_read_at_any_offset(void **state)
{
	static const size_t places[][2] = {{0, 1},
					   {0, 4096},
					   {1, 4096},
					   {4095, 2},
					   {12345, 100000},
					   {0, CONTENT_BYTES},
					   {CONTENT_BYTES - 1, 10},
					   {CONTENT_BYTES, 10},
					   {CONTENT_BYTES + 5000, 10},
					   {CONTENT_BYTES - 5000, 8192}};
	struct image image = load_image();
	struct fsreader *reader = start(&image, 0);
	struct fsreader_file *file = open_file(reader, "content");

	(void)state;
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		expect_content(file, places[i][0], places[i][1]);
	fsreader_close(file);
	stop(reader, &image);
}

static void holes_are_zeros_and_are_told(void **state)
{
	struct image image = load_image();
	struct fsreader *reader = start(&image, 0);
	struct fsreader_file *file = open_file(reader, "holes");
	uint64_t found_bytes = 1;
	char text[8] = {0};
	size_t got_bytes;

	(void)state;
	assert_int_equal(fsreader_seek(file, 0, true, &found_bytes, NULL), 0);
	assert_int_equal(found_bytes, 0);
	assert_int_equal(fsreader_seek(file, 0, false, &found_bytes, NULL), 0);
	assert_int_equal(found_bytes, 1024 * 1024);
	assert_int_equal(fsreader_seek(file, found_bytes, true, &found_bytes, NULL), 0);
	assert_int_equal(found_bytes, 1024 * 1024 + 4);
	assert_int_equal(fsreader_seek(file, found_bytes, false, &found_bytes, NULL), -ENXIO);
	assert_int_equal(fsreader_read(file, text, sizeof(text), 1024 * 1024 - 2, &got_bytes, NULL), 0);
	assert_int_equal(got_bytes, 6);
	assert_memory_equal(text, "\0\0data", 6);
	fsreader_close(file);
	stop(reader, &image);
}

struct names {
	unsigned count, stop_after;
	uint64_t cookie;
	char last[FSREADER_NAME_MOST_BYTES + 1];
	uint64_t sum; /* of the names, in whatever parts they come */
};

static int gather_name(void *opaque, const char *name, const struct fsreader_attr *attr, uint64_t cookie)
{
	struct names *names = opaque;

	assert_true(attr->ino != 0);
	names->count++;
	names->cookie = cookie;
	(void)strcpy(names->last, name); /* 255 bytes at most */
	for (const char *at = name; *at != '\0'; at++)
		names->sum = names->sum * 31 + (uint8_t)*at;
	return names->stop_after > 0 && names->count % names->stop_after == 0 ? 7 : 0;
}

static void listings_go_on_behind_any_cookie(void **state)
{
	static const unsigned steps[] = {1, 23, 699, 700, 701};
	struct image image = load_image();
	struct fsreader *reader = start(&image, 0);
	uint64_t dir = look_up(reader, "many").ino;
	struct names all = {.count = 0};

	(void)state;
	assert_int_equal(fsreader_list(reader, dir, 0, gather_name, &all, NULL), 0);
	assert_int_equal(all.count, MANY_FILES);
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		struct names some = {.stop_after = steps[i]};
		int result;

		do
			result = fsreader_list(reader, dir, some.cookie, gather_name, &some, NULL);
		while (result == 7);
		assert_int_equal(result, 0);
		assert_int_equal(some.count, MANY_FILES);
		assert_true(some.sum == all.sum);
		assert_string_equal(some.last, all.last);
	}
	stop(reader, &image);
}

static void what_is_asked_wrongly_is_refused(void **state)
{
	struct image image = load_image();
	struct fsreader *reader = start(&image, 0);
	struct fsreader_attr attr;
	struct fsreader_file *file = NULL;
	char name[300], *target = NULL;

	(void)state;
	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(fsreader_lookup(reader, FSREADER_ROOT, "nothing", &attr, NULL), -ENOENT);
	assert_int_equal(fsreader_lookup(reader, FSREADER_ROOT, name, &attr, NULL), -ENAMETOOLONG);
	assert_int_equal(fsreader_lookup(reader, FSREADER_ROOT, "..", &attr, NULL), -EINVAL);
	assert_int_equal(fsreader_lookup(reader, FSREADER_ROOT, "many/x", &attr, NULL), -EINVAL);
	assert_int_equal(fsreader_lookup(reader, look_up(reader, "small").ino, "x", &attr, NULL), -ENOTDIR);
	assert_int_equal(fsreader_open(reader, look_up(reader, "many").ino, &file, NULL), -EISDIR);
	assert_int_equal(fsreader_open(reader, look_up(reader, "link").ino, &file, NULL), -EINVAL);
	assert_int_equal(fsreader_readlink(reader, look_up(reader, "small").ino, &target, NULL), -EINVAL);
	for (uint64_t ino = 2; ino < 11; ino++) /* the journal and other things that no folder names */
		assert_int_equal(fsreader_getattr(reader, ino, &attr, NULL), -ESTALE);
	assert_int_equal(fsreader_getattr(reader, 4000, &attr, NULL), -ESTALE);
	assert_int_equal(fsreader_getattr(reader, UINT64_MAX, &attr, NULL), -ESTALE);
	assert_int_equal(fsreader_check_type("swap", NULL), -ENOTSUP);
	assert_int_equal(fsreader_check_type("ext3", NULL), 0);
	stop(reader, &image);
}

static void looking_at_what_was_listed_asks_nothing(void **state)
{
	struct image image = load_image();
	struct fsreader *reader = start(&image, 0);
	uint64_t dir = look_up(reader, "many").ino;
	struct names all = {.count = 0};
	unsigned reads;

	(void)state;
	assert_int_equal(fsreader_list(reader, dir, 0, gather_name, &all, NULL), 0);
	reads = atomic_load(&image.reads);
	assert_int_equal(fsreader_list(reader, dir, all.cookie, gather_name, &all, NULL), 0);
	assert_int_equal(all.count, MANY_FILES);
	assert_int_equal(atomic_load(&image.reads), reads);
	stop(reader, &image);
}

/* The message of whoever couldn't read it, not another one. */
static void damage_of_the_source_is_told_as_it_is(void **state)
{
	struct image image = load_image();
	struct fsreader *reader = start(&image, 0);
	struct fsreader_file *file = open_file(reader, "content");
	struct failure failure = {.code = 0};
	uint8_t *buffer = malloc(CONTENT_BYTES);
	struct fsreader_attr attr;
	size_t got_bytes;

	(void)state;
	for (uint64_t off_bytes = 0; off_bytes < IMAGE_BYTES; off_bytes += 4096) { /* where its second block lies */
		if (image.data[off_bytes] == content_byte(4096) && image.data[off_bytes + 1] == content_byte(4097) &&
		    image.data[off_bytes + 2] == content_byte(4098))
			atomic_store(&image.bad_off_bytes, off_bytes);
	}
	assert_true(atomic_load(&image.bad_off_bytes) != UINT64_MAX);
	assert_int_equal(fsreader_read(file, buffer, CONTENT_BYTES, 0, &got_bytes, &failure), -EIO);
	assert_string_equal(failure.message, "chunk 5 of the image is damaged");
	assert_int_equal(fsreader_read(file, buffer, 4096, 0, &got_bytes, NULL), 0); /* the others are whole */
	fsreader_close(file);
	fsreader_stop(reader);

	/* the same below the reader: the root folder's block */
	atomic_store(&image.bad_off_bytes,
		     (uint64_t)((uint8_t *)memmem(image.data, IMAGE_BYTES, "\5\1small", 7) - image.data));
	failure_clear(&failure);
	reader = start(&image, 0);
	assert_int_equal(fsreader_lookup(reader, FSREADER_ROOT, "small", &attr, &failure), -EIO);
	assert_string_equal(failure.message, "chunk 5 of the image is damaged");
	free(buffer);
	stop(reader, &image);
}

static void time_of_the_source_does_not_count(void **state)
{
	struct image image = load_image();
	struct fsreader *reader = start(&image, 1);
	struct fsreader_attr attr;

	(void)state;
	atomic_store(&image.delay_ms, 1200);
	assert_int_equal(fsreader_lookup(reader, FSREADER_ROOT, "small", &attr, NULL), 0);
	stop(reader, &image);
}

static void *read_in_thread(void *opaque)
{
	struct fsreader *reader = opaque;
	struct fsreader_file *file = open_file(reader, "content");
	struct names all = {.count = 0};

	for (size_t off_bytes = 0; off_bytes < CONTENT_BYTES; off_bytes += 300000)
		expect_content(file, off_bytes, 200000);
	assert_int_equal(fsreader_list(reader, look_up(reader, "many").ino, 0, gather_name, &all, NULL), 0);
	assert_int_equal(all.count, MANY_FILES);
	fsreader_close(file);
	return NULL;
}

static void many_threads_read_at_once(void **state)
{
	struct image image = load_image();
	struct fsreader *reader = start(&image, 0);
	pthread_t threads[THREADS];

	(void)state;
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_in_thread, reader), 0);
	for (unsigned i = 0; i < THREADS; i++)
		(void)pthread_join(threads[i], NULL);
	stop(reader, &image);
}

/* -------------------------------------------------------------------- lies */

static struct image make_lying_image(enum lie lie)
{
	struct image image = make_image(LIAR_IMAGE_BYTES);

	image.data[0] = (uint8_t)lie;
	return image;
}

struct found {
	unsigned count, most;
};

static int count_found(void *opaque, const char *name, const struct fsreader_attr *attr, uint64_t cookie)
{
	struct found *found = opaque;

	(void)attr;
	(void)cookie;
	assert_true(strcmp(name, "file") == 0 || strcmp(name, "other") == 0);
	return ++found->count >= found->most;
}

/* Asks all there is to ask; returns how many answers were refused with -EIO. */
static unsigned ask_all(struct fsreader *reader)
{
	AUTO_FREE char *target = NULL;
	AUTO_FREE char *names = NULL;
	AUTO_FREE void *value = NULL;
	struct found found = {.most = 1000};
	struct fsreader_statfs statfs;
	struct fsreader_file *file = NULL;
	struct fsreader_attr attr;
	uint8_t buffer[8192];
	size_t len_bytes;
	int results[8] = {0};
	unsigned refused = 0;

	results[0] = fsreader_list(reader, FSREADER_ROOT, 0, count_found, &found, NULL);
	results[1] = fsreader_lookup(reader, FSREADER_ROOT, "file", &attr, NULL);
	results[2] = fsreader_getattr(reader, 99, &attr, NULL); /* in no listing */
	results[3] = fsreader_readlink(reader, 12, &target, NULL);
	results[4] = fsreader_listxattr(reader, 12, &names, &len_bytes, NULL);
	results[5] = fsreader_getxattr(reader, 12, "user.a", &value, &len_bytes, NULL);
	results[6] = fsreader_open(reader, 12, &file, NULL);
	if (results[6] == 0)
		results[6] = fsreader_read(file, buffer, sizeof(buffer), 0, &len_bytes, NULL);
	fsreader_close(file);
	results[7] = fsreader_statfs(reader, &statfs, NULL); /* too short, always */
	for (unsigned i = 0; i < 8; i++)
		refused += results[i] == -EIO;
	assert_int_equal(results[7], -EIO);
	return refused;
}

static void lies_are_refused(void **state)
{
	(void)state;
	for (enum lie lie = LIE_NONE; lie < LIE_LOOP; lie++) {
		struct image image = make_lying_image(lie);
		struct fsreader *reader = start(&image, 5);
		unsigned refused = ask_all(reader);

		if (lie == LIE_NONE || lie == LIE_LIST_ENDLESS || lie == LIE_INLINE ? refused != 1 : refused < 2)
			fail_msg("lie %d: %u refused", (int)lie, refused);
		stop(reader, &image);
	}
	for (enum lie lie = LIE_WANT_BEHIND; lie < LIE_WANT_ENDLESS; lie++) {
		struct image image = make_lying_image(lie);
		struct fsreader *reader = start(&image, 5);
		struct fsreader_attr attr;

		assert_int_equal(fsreader_getattr(reader, 12, &attr, NULL), -EIO);
		stop(reader, &image);
	}
}

static void what_takes_too_long_is_ended(void **state)
{
	static const enum lie lies[] = {LIE_LOOP, LIE_SLEEP, LIE_WANT_ENDLESS};

	(void)state;
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct image image = make_lying_image(lies[i]);
		struct fsreader *reader = start(&image, 1);
		struct failure failure = {.code = 0};
		double begun_seconds = units_monotonic_seconds();
		struct fsreader_attr attr;

		assert_int_equal(fsreader_getattr(reader, 12, &attr, &failure), -EIO);
		assert_non_null(strstr(failure.message, "web01@3/2"));
		assert_true(units_monotonic_seconds() - begun_seconds < (HAS_SANITIZER ? 60 : 20));
		stop(reader, &image);
	}
}

static void a_crash_is_told_and_the_next_question_starts_it_anew(void **state)
{
	struct image image = make_lying_image(LIE_CRASH);
	struct fsreader *reader = start(&image, 5);
	struct failure failure = {.code = 0};
	struct fsreader_attr attr;

	(void)state;
	assert_int_equal(fsreader_getattr(reader, 12, &attr, &failure), -EIO);
	if (!HAS_SANITIZER)
		assert_non_null(strstr(failure.message, "was killed by signal 11 (Segmentation fault)"));
	image.data[0] = LIE_NONE;
	assert_int_equal(fsreader_getattr(reader, 12, &attr, NULL), 0);
	assert_int_equal(attr.size_bytes, 8192);
	stop(reader, &image);
}

static void crashing_again_and_again_is_not_started_again(void **state)
{
	struct image image = make_lying_image(LIE_EXIT);
	struct fsreader *reader = start(&image, 5);
	struct failure failure = {.code = 0};
	struct fsreader_attr attr;

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		failure_clear(&failure);
		assert_int_equal(fsreader_getattr(reader, 12, &attr, &failure), -EIO);
	}
	assert_non_null(strstr(failure.message, "5 times within a minute"));
	image.data[0] = LIE_NONE;
	assert_int_equal(fsreader_getattr(reader, 12, &attr, NULL), -EIO);
	stop(reader, &image);
}

static void use_liar(bool is_liar)
{
	if (is_liar)
		assert_int_equal(setenv("WHERRY_FSREADER", liar, 1), 0);
	else
		assert_int_equal(unsetenv("WHERRY_FSREADER"), 0);
}

static int with_liar(void **state)
{
	(void)state;
	use_liar(true);
	return 0;
}

static int with_truth(void **state)
{
	(void)state;
	use_liar(false);
	return 0;
}

static void a_program_that_is_missing_is_told(void **state)
{
	struct failure failure = {.code = 0};

	(void)state;
	assert_int_equal(setenv("WHERRY_FSREADER", "/nowhere/wherry-fsreader", 1), 0);
	assert_int_equal(fsreader_check_type("ext4", &failure), -ENOENT);
	assert_non_null(strstr(failure.message, "/nowhere/wherry-fsreader"));
	use_liar(false);
}

int main(void)
{
	const struct CMUnitTest truths[] = {
		cmocka_unit_test(content_is_read_at_any_offset),
		cmocka_unit_test(holes_are_zeros_and_are_told),
		cmocka_unit_test(listings_go_on_behind_any_cookie),
		cmocka_unit_test(what_is_asked_wrongly_is_refused),
		cmocka_unit_test(looking_at_what_was_listed_asks_nothing),
		cmocka_unit_test(damage_of_the_source_is_told_as_it_is),
		cmocka_unit_test(time_of_the_source_does_not_count),
		cmocka_unit_test(many_threads_read_at_once),
		cmocka_unit_test(a_program_that_is_missing_is_told),
	};
	const struct CMUnitTest lies[] = {
		cmocka_unit_test(lies_are_refused),
		cmocka_unit_test(what_takes_too_long_is_ended),
		cmocka_unit_test(a_crash_is_told_and_the_next_question_starts_it_anew),
		cmocka_unit_test(crashing_again_and_again_is_not_started_again),
	};
	const char *build = getenv("WHERRY_BUILD");
	int failed;

	(void)snprintf(liar, sizeof(liar), "%s/helpers/fsreader_liar", build == NULL ? "build/release" : build);
	scratch_folder_make(&folder);
	make_tree();
	failed = cmocka_run_group_tests_name("a file system", truths, with_truth, NULL);
	failed += cmocka_run_group_tests_name("a reader that was taken over", lies, with_liar, with_truth);
	scratch_folder_remove(&folder);
	return failed != 0;
}
