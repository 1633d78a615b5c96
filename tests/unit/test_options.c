/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tools/: what is typed, and what is shown. Command lines in every order, wrong
 * in every way; the bar in every width; words nearly right. And the levels that
 * the help speaks of, against those that the store has.
 */
#include "unit_test.h"

#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "store/record.h"
#include "tools/command.h"
#include "tools/levels.h"
#include "tools/progress_bar.h"
#include "tools/text.h"

/* ------------------------------------------------------- command lines */

enum { WORDS_MOST = 16 };

/* Takes a line apart at its blanks, as a shell would, and parses it. The words live as long as the next call. */
static int parse(const char *text, struct command_line *ret_line, struct failure *failure)
{
	static char storage[512];
	static char *argv[WORDS_MOST + 1];
	int argc = 0;
	char *rest = storage;

	(void)snprintf(storage, sizeof(storage), "wherry %s", text);
	for (char *word = strsep(&rest, " "); word != NULL && argc < WORDS_MOST; word = strsep(&rest, " "))
		argv[argc++] = word;
	argv[argc] = NULL;
	failure_clear(failure);
	return command_line_parse(argc, argv, ret_line, failure);
}

static void expect_good(const char *text, struct command_line *ret_line)
{
	struct failure failure;

	if (parse(text, ret_line, &failure) != 0)
		fail_msg("'%s': %s", text, failure.message);
}

/* Refused, and with this in the message. */
static void expect_bad(const char *text, const char *part)
{
	struct command_line line = {.verb = &verb_help};
	struct failure failure;

	if (parse(text, &line, &failure) != -EINVAL)
		fail_msg("'%s' was taken", text);
	if (strstr(failure.message, part) == NULL)
		fail_msg("'%s': '%s' does not say '%s'", text, failure.message, part);
	if (strstr(failure.message, "; ") == NULL)
		fail_msg("'%s': '%s' has no hint", text, failure.message);
	assert_ptr_equal(line.verb, &verb_help); /* untouched */
}

static void options_stand_anywhere(void **state)
{
	static const char *const texts[] = {
		"sync /dev/sda web01 --keep 3 --level=5 -s /srv/f",
		"--keep 3 --level=5 -s /srv/f sync /dev/sda web01",
		"-s/srv/f sync --keep=3 /dev/sda --level 5 web01",
		"--keep 9 sync --level 1 /dev/sda web01 --store /srv/f --keep 3 --level 5",
		"--keep 3 --level 5 --store=/srv/f -- sync /dev/sda web01",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		AUTO(command_line_free) struct command_line line = {.verb = NULL};

		/* The second time as a shell with POSIXLY_CORRECT would start it. */
		for (int round = 0; round < 2; round++) {
			assert_int_equal(round == 0 ? unsetenv("POSIXLY_CORRECT") : setenv("POSIXLY_CORRECT", "1", 1),
					 0);
			command_line_free(&line);
			expect_good(texts[i], &line);
			assert_ptr_equal(line.verb, &verb_sync);
			assert_int_equal(line.argument_count, 2);
			assert_string_equal(line.arguments[0], "/dev/sda");
			assert_string_equal(line.arguments[1], "web01");
			assert_string_equal(line.options.store, "/srv/f");
			assert_int_equal(line.options.keep, 3);
			assert_true(line.options.has_level);
			assert_int_equal(line.options.level, 5);
			assert_false(line.options.has_limit);
		}
		assert_int_equal(unsetenv("POSIXLY_CORRECT"), 0);
	}
}

static void store_comes_from_the_environment(void **state)
{
	AUTO(command_line_free) struct command_line line = {.verb = NULL};

	(void)state;
	assert_int_equal(setenv("WHERRY_STORE", "/srv/there", 1), 0);
	expect_good("disks", &line);
	assert_string_equal(line.options.store, "/srv/there");
	command_line_free(&line);
	expect_good("disks -s here", &line);
	assert_string_equal(line.options.store, "here");
	command_line_free(&line);
	assert_int_equal(setenv("WHERRY_STORE", "", 1), 0);
	expect_good("disks", &line);
	assert_string_equal(line.options.store, "/var/lib/wherry");
	assert_int_equal(unsetenv("WHERRY_STORE"), 0);
}

static void what_is_not_given_is_not_set(void **state)
{
	AUTO(command_line_free) struct command_line line = {.verb = NULL};

	(void)state;
	expect_good("sync a b", &line);
	assert_false(line.options.has_keep || line.options.has_level || line.options.has_limit || line.options.json);
	assert_int_equal(line.options.keep, 0);
	assert_int_equal(line.options.progress, PROGRESS_AUTO);
	assert_int_equal(line.options.on_read_error, READ_ERROR_FAIL);
	assert_int_equal(line.options.chunk_bytes, STORE_CHUNK_DEFAULT_BYTES);
	assert_null(line.options.label);
}

static void values_are_read(void **state)
{
	AUTO(command_line_free) struct command_line line = {.verb = NULL};

	(void)state;
	expect_good("set b --level default --limit unlimited --keep all", &line);
	assert_int_equal(line.options.level, -1);
	assert_true(line.options.has_limit && line.options.limit_bytes_per_second == 0);
	assert_true(line.options.has_keep && line.options.keep == 0);
	command_line_free(&line);
	expect_good("sync a b --progress json --on-read-error zero --limit 100Mbit --keep 1000000 --level 0", &line);
	assert_int_equal(line.options.progress, PROGRESS_JSON);
	assert_int_equal(line.options.on_read_error, READ_ERROR_ZERO);
	assert_int_equal(line.options.limit_bytes_per_second, 12500000);
	assert_int_equal(line.options.keep, 1000000);
	assert_true(line.options.has_level && line.options.level == 0);
	command_line_free(&line);
	expect_good("init --chunk-size 1M", &line);
	assert_int_equal(line.options.chunk_bytes, 1 << 20);
}

static void wrong_lines_are_refused_with_a_hint(void **state)
{
	static const struct {
		const char *text, *part;
	} cases[] = {
		{"snyc a b", "did you mean 'sync'"},
		{"rm web01@3", "did you mean 'delete'"},
		{"quantize", "try 'wherry --help'"},
		{"sync a b --leve 3", "did you mean '--level'"},
		{"sync a b --ke 3", "did you mean '--keep'"}, /* a beginning is not the name */
		{"sync a b -x", "-x"},
		{"sync a b --json=1", "takes no value"},
		{"sync a b --keep", "N is missing"},
		{"disks -s", "STORE is missing"},
		{"export a b --keep 3", "not an option of 'export'"},
		{"--keep 3 export a b", "not an option of 'export'"},
		{"sync a", "DISK is missing"},
		{"sync", "SOURCE is missing"},
		{"sync a b c", "c: one argument too many"},
		{"disks a", "a: one argument too many"},
		{"init /srv/f", "wherry -s /srv/f init"},
		{"verify b", "--source is missing"},
		{"retain b", "--keep is missing"},
		{"sync a b --keep 0", "--keep"},
		{"sync a b --keep 1000001", "--keep"},
		{"sync a b --keep 99999999999999999999", "--keep"},
		{"sync a b --keep -1", "--keep"},
		{"sync a b --keep all", "--keep"}, /* for set alone */
		{"sync a b --level 11", "0 to 10"},
		{"sync a b --level default", "0 to 10"},
		{"sync a b --level +3", "0 to 10"},
		{"sync a b --limit 10Q", "10Q"},
		{"sync -odd.img b", "write ./-odd.img"},
		{"sync a b -o x", "-o: no such option"},
		{"sync a b -on-read-error zero", "did you mean '--on-read-error'"},
		{"sync a b -f", "-f: no such option"},
		{"mount web01@1 /mnt --via best", "nbd loop files"},
		{"mount web01@1 /mnt -o", "LIST is missing"},
		{"umount", "DIR is missing"},
		{"sync a b --progress fast", "bar lines json none"},
		{"sync a b --progress ba", "bar lines json none"},
		{"sync a b --on-read-error skip", "fail zero"},
		{"sync - b", "standard input"},
		{"init --chunk-size 48K", "power of two"},
		{"init --chunk-size 2M", "power of two"},
		{"create web01 10G --sector-size 513", "power of two"},
		{"create web01 10G --sector-size 128K", "power of two"},
		{"create web01 many", "not a size"},
		{"create web01", "SIZE is missing"},
		{"create web01@1 1G", "names an image"},
		{"clone web01 copy", "names a disk"},
		{"clone web01@1/2 copy", "names a partition"},
		{"clone web01@1", "NEWDISK is missing"},
		{"sync a b@3", "names an image"},
		{"delete web01", "names a disk"},
		{"delete web01@3/1", "names a partition"},
		{"delete web01@1 web01", "names a disk"}, /* every argument is looked at */
		{"pin web01@latest web01@2", "one argument too many"},
		{"help snyc", "did you mean 'sync'"},
		{"help --json", "not an option of 'help'"},
		{"--bogus", "--bogus"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		expect_bad(cases[i].text, cases[i].part);
}

/* --rw takes a word with attach and serve-nbd, and none with mount; a disk may well be called "mirror". */
static void rw_takes_a_value_where_it_has_one(void **state)
{
	static const char *const with[] = {"attach web01 --rw mirror", "--rw mirror attach web01", "attach --rw=mirror web01",
					   "attach --rw mirror web01"};
	static const char *const without[] = {"mount mirror /mnt --rw", "mount --rw mirror /mnt", "--rw mount mirror /mnt",
					      "mount mirror --rw /mnt"};

	(void)state;
	for (size_t i = 0; i < sizeof(with) / sizeof(with[0]); i++) {
		AUTO(command_line_free) struct command_line line = {.verb = NULL};

		expect_good(with[i], &line);
		assert_ptr_equal(line.verb, &verb_attach);
		assert_int_equal(line.argument_count, 1);
		assert_string_equal(line.arguments[0], "web01");
		assert_true(line.options.write_mirror && !line.options.write);
	}
	for (size_t i = 0; i < sizeof(without) / sizeof(without[0]); i++) {
		AUTO(command_line_free) struct command_line line = {.verb = NULL};

		expect_good(without[i], &line);
		assert_ptr_equal(line.verb, &verb_mount);
		assert_int_equal(line.argument_count, 2);
		assert_string_equal(line.arguments[0], "mirror");
		assert_string_equal(line.arguments[1], "/mnt");
		assert_true(line.options.write && !line.options.write_mirror);
	}
	expect_bad("mount --rw=mirror web01 /mnt", "takes no value");
	expect_bad("attach web01 --rw", "mirror is missing");
	expect_bad("attach web01 --rw --json", "mirror is missing");
	expect_bad("attach web01 --rw other", "'other' is not mirror");
	expect_bad("--rw other attach web01", "'other' is not mirror");
	expect_bad("sync a b --rw mirror", "not an option of 'sync'");
	expect_bad("--rw", "mirror is missing");
}

static void files_may_be_in_a_logical_volume(void **state)
{
	static const struct {
		const char *text, *volume;
		uint32_t partition;
	} good[] = {{"web01@3", NULL, 0}, {"web01/2", NULL, 2}, {"web01@3/vg0/root", "vg0/root", 0}, {"web01@latest/2/a-b+c_.d", "2/a-b+c_.d", 0}};
	static const char *const bad[] = {"web01@3/", "web01@3/vg/", "web01@3//lv", "web01@3/vg/lv/x", "web01@3/vg/l v", "web01@3/v:g/lv", "Web/vg/lv"};

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		AUTO_FREE char *volume = NULL;
		struct store_reference reference;

		assert_int_equal(command_line_files(good[i].text, &reference, &volume, NULL), 0);
		assert_string_equal(reference.disk, "web01");
		assert_int_equal(reference.partition, good[i].partition);
		if (good[i].volume == NULL)
			assert_null(volume);
		else
			assert_string_equal(volume, good[i].volume);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char *volume = NULL;
		struct store_reference reference;

		assert_int_equal(command_line_files(bad[i], &reference, &volume, NULL), -EINVAL);
		assert_null(volume);
	}
}

static void bad_names_are_wrong_usage(void **state)
{
	struct command_line line = {.verb = NULL};
	struct failure failure;

	(void)state;
	assert_int_equal(parse("sync a WEB", &line, &failure), -EINVAL);
	assert_int_equal(parse("export web01@x out", &line, &failure), -EINVAL);
	assert_int_equal(parse("images .hidden", &line, &failure), -EINVAL);
}

static void who_asks_for_help_gets_it(void **state)
{
	AUTO(command_line_free) struct command_line line = {.verb = NULL};

	(void)state;
	expect_good("sync --help", &line);
	assert_ptr_equal(line.verb, &verb_sync);
	assert_true(line.options.help);
	command_line_free(&line);
	expect_good("-h", &line);
	assert_null(line.verb);
	assert_true(line.options.help);
	command_line_free(&line);
	expect_good("-V", &line);
	assert_true(line.options.version);
}

static void labels_are_lines_of_text(void **state)
{
	static const char *const good[] = {"a", "before the upgrade", "h\xc3\xa9llo", "\xf0\x9f\x9b\xb6"};
	static const char *const bad[] = {
		"",
		"a\nb",
		"\x1b[31m",
		"\x7f",
		"\xc2\x9b",	    /* CSI as a C1 control */
		"\xe9",		    /* Latin-1 */
		"\xc0\xaf",	    /* '/' in two bytes */
		"\xed\xa0\x80",	    /* a surrogate */
		"\xf4\x90\x80\x80", /* beyond U+10FFFF */
		"\xe2\x82",	    /* cut short */
	};

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_true(text_is_plain(good[i]));
	for (size_t i = 1; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_false(text_is_plain(bad[i]));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char option[64];
		char *argv[] = {(char[]){"wherry"}, (char[]){"image"}, (char[]){"web01"}, option, NULL};
		struct command_line line = {.verb = NULL};
		struct failure failure = {.code = 0};

		(void)snprintf(option, sizeof(option), "--label=%s", bad[i]);
		assert_int_equal(command_line_parse(4, argv, &line, &failure), -EINVAL);
	}
}

static void doing_names_verb_and_arguments(void **state)
{
	AUTO(command_line_free) struct command_line line = {.verb = NULL};
	AUTO_FREE char *doing = NULL;

	(void)state;
	expect_good("--keep 3 sync /dev/sda web01", &line);
	doing = command_line_doing(&line);
	assert_string_equal(doing, "wherry sync /dev/sda web01");
}

/* ------------------------------------------------------- the verb table */

static void verbs_are_described_well(void **state)
{
	(void)state;
	for (size_t i = 0; verbs[i] != NULL; i++) {
		const struct verb *verb = verbs[i];

		assert_ptr_equal(verb_find(verb->name), verb);
		assert_true(strlen(verb->summary) > 0 && 4 + 6 + 2 + strlen(verb->summary) <= 80);
		assert_true(verb->argument_count <= VERB_ARGUMENTS_MOST && verb->option_count <= VERB_OPTIONS_MOST);
		assert_true(verb->example_count > 0 && verb->example_count <= VERB_EXAMPLES_MOST);
		for (unsigned int k = 0; k < verb->argument_count; k++) {
			assert_non_null(verb->arguments[k].name);
			assert_true(!verb->arguments[k].repeats || k + 1 == verb->argument_count);
		}
		for (unsigned int k = 0; k < verb->option_count; k++)
			assert_ptr_equal(verb_option_of(verb, verb->options[k].id), &verb->options[k]); /* once */
		for (unsigned int k = 0; k < verb->example_count; k++)
			assert_non_null(verb->examples[k].what);
	}
}

static void what_deletes_has_a_dry_run(void **state)
{
	(void)state;
	assert_true(verb_takes_option(&verb_delete, OPTION_DRY_RUN));
	assert_true(verb_takes_option(&verb_remove, OPTION_DRY_RUN));
	assert_true(verb_takes_option(&verb_retain, OPTION_DRY_RUN));
}

static void levels_are_those_of_the_store(void **state)
{
	char *zstd = strstr(LEVELS_TEXT, "zstd");
	char *at = zstd + strlen("zstd");
	char wanted[64];

	(void)state;
	at += strspn(at, " ");
	assert_int_equal(strncmp(at, "none ", 5), 0); /* level 0 */
	at += 5;
	for (int level = CODEC_LEVEL_LEAST + 1; level <= CODEC_LEVEL_MOST; level++)
		assert_int_equal(strtol(at, &at, 10), codec_zstd_level(level));
	assert_int_equal(*at, '\n');
	(void)snprintf(wanted, sizeof(wanted), "The default is %d.", CODEC_LEVEL_DEFAULT);
	assert_non_null(strstr(LEVELS_TEXT, wanted));
}

/* ------------------------------------------------------- nearest words */

static void near_words_are_found(void **state)
{
	static const char *const words[] = {"init", "sync", "images", "image", "delete", "pin", "unpin", "verify"};
	enum { WORDS = sizeof(words) / sizeof(words[0]) };
	static const struct {
		const char *typed, *meant;
	} cases[] = {
		{"snyc", "sync"},  {"imags", "images"},	 {"iamge", "image"},  {"delte", "delete"},
		{"del", "delete"}, {"verfiy", "verify"}, {"unpinn", "unpin"}, {"im", "images"},
		{"zzz", NULL},	   {"", NULL},		 {"x", NULL},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const char *found = suggest_word(cases[i].typed, words, WORDS);

		if (cases[i].meant == NULL)
			assert_null(found);
		else
			assert_string_equal(found, cases[i].meant);
	}
	assert_null(suggest_word("a-word-that-is-longer-than-any-that-there-is", words, WORDS));
}

/* ------------------------------------------------------------ progress */

static const struct progress states_of_progress[] = {
	{.phase = "sync", .remaining_seconds = -1},
	{.phase = "sync", .total_bytes = 700, .done_bytes = 3, .bytes_per_second = 12, .remaining_seconds = 58},
	{.phase = "verify",
	 .total_bytes = 8ULL << 30,
	 .done_bytes = 1ULL << 30,
	 .bytes_per_second = 4e8,
	 .remaining_seconds = 7},
	{.phase = "sync",
	 .total_bytes = 1ULL << 60,
	 .done_bytes = (1ULL << 60) - 1,
	 .sent_bytes = 1023ULL << 40,
	 .bytes_per_second = 1e12,
	 .remaining_seconds = 360000},
	{.phase = "export", .total_bytes = 5, .done_bytes = 9, .bytes_per_second = -1, .remaining_seconds = 1e300},
	{.phase = "sync", .total_bytes = UINT64_MAX, .done_bytes = UINT64_MAX, .bytes_per_second = 1e300},
};
enum { STATES_OF_PROGRESS = sizeof(states_of_progress) / sizeof(states_of_progress[0]) };

static void bar_fits_every_width(void **state)
{
	(void)state;
	for (size_t i = 0; i < STATES_OF_PROGRESS; i++)
		for (unsigned int columns = 0; columns < 240; columns++) {
			char text[PROGRESS_TEXT_BYTES];

			progress_compose_bar(text, &states_of_progress[i], columns, false);
			if (strlen(text) > columns)
				fail_msg("%u columns: \"%s\"", columns, text);
			assert_null(strpbrk(text, "\r\n\033"));
		}
}

static void bar_keeps_its_width(void **state)
{
	char first[PROGRESS_TEXT_BYTES], later[PROGRESS_TEXT_BYTES];
	struct progress progress = {.phase = "sync", .total_bytes = 64ULL << 30, .remaining_seconds = -1};

	(void)state;
	progress_compose_bar(first, &progress, 79, false);
	for (progress.done_bytes = 0; progress.done_bytes <= progress.total_bytes; progress.done_bytes += 77777777) {
		progress.sent_bytes = progress.done_bytes / 3;
		progress.bytes_per_second = (double)progress.done_bytes / 7;
		progress.remaining_seconds = (double)(progress.total_bytes - progress.done_bytes) / 1e6;
		progress_compose_bar(later, &progress, 79, false);
		assert_int_equal(strlen(later), strlen(first));
	}
}

static void hundred_percent_is_for_what_is_done(void **state)
{
	struct progress progress = {.phase = "sync", .total_bytes = 1000000, .done_bytes = 999999};
	char text[PROGRESS_TEXT_BYTES];

	(void)state;
	progress_compose_line(text, &progress);
	assert_non_null(strstr(text, " 99%"));
	progress.done_bytes = 1000000;
	progress_compose_line(text, &progress);
	assert_non_null(strstr(text, " 100%"));
}

static void progress_is_one_json_line(void **state)
{
	static const char *const keys[] = {"phase",	 "total_bytes",	     "done_bytes",	 "changed_bytes",
					   "sent_bytes", "bytes_per_second", "remaining_seconds"};
	char text[PROGRESS_TEXT_BYTES];

	(void)state;
	for (size_t i = 0; i < STATES_OF_PROGRESS; i++) {
		progress_compose_json(text, &states_of_progress[i]);
		assert_null(strchr(text, '\n'));
		assert_null(strstr(text, "nan"));
		assert_null(strstr(text, "inf"));
		for (size_t k = 0; k < sizeof(keys) / sizeof(keys[0]); k++) {
			char wanted[32];

			(void)snprintf(wanted, sizeof(wanted), "\"%s\":", keys[k]);
			assert_non_null(strstr(text, wanted));
		}
	}
	progress_compose_json(text, &states_of_progress[0]);
	assert_non_null(strstr(text, "\"remaining_seconds\":null}"));
	progress_compose_json(text, &states_of_progress[2]);
	assert_non_null(strstr(text, "\"remaining_seconds\":7.0}"));
}

/* ----------------------------------------------------------- safe text */

static void text_for_terminals_is_harmless(void **state)
{
	AUTO_FREE char *safe = text_made_safe("a\033[31mb\n\xff\xc2\x9b");
	AUTO_FREE char *kept = NULL;

	(void)state;
	assert_null(strpbrk(safe, "\033\n"));
	assert_int_equal(strncmp(safe, "a?[31mb??", 9), 0);
	if (setlocale(LC_CTYPE, "C.UTF-8") == NULL)
		return;
	kept = text_made_safe("h\xc3\xa9llo \xe6\x97\xa5");
	assert_string_equal(kept, "h\xc3\xa9llo \xe6\x97\xa5");
	assert_int_equal(text_columns(kept), 8); /* the last one is two columns wide */
	assert_non_null(setlocale(LC_CTYPE, "C"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_stand_anywhere),
		cmocka_unit_test(store_comes_from_the_environment),
		cmocka_unit_test(what_is_not_given_is_not_set),
		cmocka_unit_test(values_are_read),
		cmocka_unit_test(wrong_lines_are_refused_with_a_hint),
		cmocka_unit_test(rw_takes_a_value_where_it_has_one),
		cmocka_unit_test(files_may_be_in_a_logical_volume),
		cmocka_unit_test(bad_names_are_wrong_usage),
		cmocka_unit_test(who_asks_for_help_gets_it),
		cmocka_unit_test(labels_are_lines_of_text),
		cmocka_unit_test(doing_names_verb_and_arguments),
		cmocka_unit_test(verbs_are_described_well),
		cmocka_unit_test(what_deletes_has_a_dry_run),
		cmocka_unit_test(levels_are_those_of_the_store),
		cmocka_unit_test(near_words_are_found),
		cmocka_unit_test(bar_fits_every_width),
		cmocka_unit_test(bar_keeps_its_width),
		cmocka_unit_test(hundred_percent_is_for_what_is_done),
		cmocka_unit_test(progress_is_one_json_line),
		cmocka_unit_test(text_for_terminals_is_harmless),
	};

	return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
