/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names, references, and what is said about wrong ones. What has to be right is
 * the advice as much as the refusal: whatever name is proposed must be one that
 * is taken.
 */
#include "unit_test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/store.h"
#include "store/store_ops.h"

static void assert_name_refused(const char *name, const char *message)
{
	struct failure failure = {.code = 0};

	assert_int_equal(store_check_name(name, &failure), -EINVAL);
	assert_string_equal(failure.message, message);
}

static void names_that_keep_the_rule_are_taken(void **state)
{
	static const char *const names[] = {"a", "0", "web01", "web-01", "web_01", "a.b.c", "0-", "a..", "latest"};
	char longest[STORE_NAME_MOST_BYTES + 1];
	struct failure failure = {.code = 0};

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		assert_int_equal(store_check_name(names[i], &failure), 0);
	memset(longest, 'x', STORE_NAME_MOST_BYTES);
	longest[STORE_NAME_MOST_BYTES] = '\0';
	assert_int_equal(store_check_name(longest, &failure), 0);
	assert_int_equal(failure.code, 0);
}

static void refused_name_comes_with_one_that_would_do(void **state)
{
	(void)state;
	assert_name_refused("", "a disk's name is empty; it is made of a-z, 0-9, '.', '_' and '-'");
	assert_name_refused("Web 01", "Web 01: a name can't hold upper-case letters, only a-z, 0-9, '.', '_' and '-'; "
				      "try 'web-01'");
	assert_name_refused("web 01", "web 01: a name can't hold ' ', only a-z, 0-9, '.', '_' and '-'; try 'web-01'");
	assert_name_refused("/dev/sda",
			    "/dev/sda: a name can't hold '/', only a-z, 0-9, '.', '_' and '-'; try 'dev-sda'");
	assert_name_refused("web01@3", "web01@3: a name can't hold '@', only a-z, 0-9, '.', '_' and '-'; try 'web01'");
	assert_name_refused("-web", "-web: a name starts with a letter or a digit; try 'web'");
	assert_name_refused("..", "..: a name starts with a letter or a digit");
	assert_name_refused("b\xc3\xbcro", "b\xc3\xbcro: a name can't hold letters beyond ASCII, only a-z, 0-9, '.', "
					   "'_' and '-'; try 'b-ro'");
	assert_name_refused("a\nb", "a?b: a name can't hold control characters, only a-z, 0-9, '.', '_' and '-'; "
				    "try 'a-b'");
}

static void too_long_name_is_shown_cut(void **state)
{
	char name[400];
	struct failure failure = {.code = 0};

	(void)state;
	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(store_check_name(name, &failure), -EINVAL);
	assert_non_null(strstr(failure.message, "n...: a name has at most 63 characters; try 'nnn"));
	assert_true(strlen(failure.message) < 300);
}

/* Any bytes at all: either taken, or refused with a proposal that is taken. */
static void every_proposal_is_a_name(void **state)
{
	enum { ROUNDS = 20000 };
	static const char alphabet[] = "aZ0.-_ @/\x01\xc3\xbc\xff";
	unsigned int seed = 20261125;
	unsigned int proposals = 0;

	(void)state;
	print_message("seed %u\n", seed);
	for (unsigned int round = 0; round < ROUNDS; round++) {
		char name[100];
		char proposal[STORE_NAME_MOST_BYTES + 1];
		struct failure failure = {.code = 0};
		size_t len_bytes = (size_t)rand_r(&seed) % (sizeof(name) - 1);
		const char *hint;

		for (size_t i = 0; i < len_bytes; i++)
			name[i] = alphabet[(size_t)rand_r(&seed) % (sizeof(alphabet) - 1)];
		name[len_bytes] = '\0';
		if (store_check_name(name, &failure) == 0)
			continue;
		hint = strstr(failure.message, "; try '");
		if (hint == NULL)
			continue;
		proposals++;
		assert_int_equal(sscanf(hint, "; try '%63[^']'", proposal), 1);
		failure_clear(&failure);
		if (store_check_name(proposal, &failure) != 0)
			fail_msg("%s", failure.message);
	}
	assert_true(proposals > ROUNDS / 2);
}

static void assert_reference(const char *text, const char *disk, enum store_which which, uint32_t number,
			     uint32_t partition)
{
	struct store_reference reference;
	struct failure failure = {.code = 0};

	if (store_parse_reference(text, &reference, &failure) != 0)
		fail_msg("%s: %s", text, failure.message);
	assert_string_equal(reference.disk, disk);
	assert_int_equal(reference.which, which);
	assert_int_equal(reference.number, number);
	assert_int_equal(reference.partition, partition);
}

static void references_are_read(void **state)
{
	(void)state;
	assert_reference("web01", "web01", STORE_LIVE, 0, 0);
	assert_reference("web01/2", "web01", STORE_LIVE, 0, 2);
	assert_reference("web01@1", "web01", STORE_NUMBER, 1, 0);
	assert_reference("web01@4294967295", "web01", STORE_NUMBER, 4294967295, 0);
	assert_reference("web01@3/12", "web01", STORE_NUMBER, 3, 12);
	assert_reference("web01@latest", "web01", STORE_LATEST, 0, 0);
	assert_reference("web01@latest/1", "web01", STORE_LATEST, 0, 1);
}

static void assert_reference_refused(const char *text, const char *message)
{
	struct store_reference reference = {.number = 77};
	struct failure failure = {.code = 0};

	assert_int_equal(store_parse_reference(text, &reference, &failure), -EINVAL);
	assert_string_equal(failure.message, message);
	assert_int_equal(reference.number, 77); /* untouched */
}

static void wrong_references_are_explained(void **state)
{
	(void)state;
	assert_reference_refused("web01@x", "web01@x: not an image number; images are DISK@N or DISK@latest");
	assert_reference_refused("web01@", "web01@: no image number behind '@'; images are DISK@N or DISK@latest");
	assert_reference_refused("web01@Latest", "web01@Latest: not an image number; images are DISK@N or DISK@latest");
	assert_reference_refused("web01@03", "web01@03: not an image number; images are DISK@N or DISK@latest");
	assert_reference_refused("web01@-1", "web01@-1: not an image number; images are DISK@N or DISK@latest");
	assert_reference_refused("web01@1@2", "web01@1@2: not an image number; images are DISK@N or DISK@latest");
	assert_reference_refused("web01@0", "web01@0: no image has this number; they are counted from 1 to 4294967295");
	assert_reference_refused("web01@4294967296",
				 "web01@4294967296: no image has this number; they are counted from 1 to 4294967295");
	assert_reference_refused("web01/", "web01/: no partition number behind '/'; partitions are DISK/P or DISK@N/P");
	assert_reference_refused("web01/x", "web01/x: not a partition number; partitions are DISK/P or DISK@N/P");
	assert_reference_refused("web01/0", "web01/0: no partition has this number; they are counted from 1");
	assert_reference_refused("web01/2@3", "web01/2@3: the partition stands in front of the image; write DISK@N/P");
	assert_reference_refused("", "no disk given; write DISK, DISK@N or DISK@latest, with /P for partition P");
	assert_reference_refused("@3", "@3: no disk in front of '@'; write DISK, DISK@N or DISK@latest");
	assert_reference_refused("/dev/sda", "/dev/sda: no disk in front of '/'; write DISK, DISK@N or DISK@latest");
	assert_reference_refused("Web01@3",
				 "Web01: a name can't hold upper-case letters, only a-z, 0-9, '.', '_' and '-'; "
				 "try 'web01'");
}

static void nearest_name_is_near(void **state)
{
	static const char *const names[] = {"web01", "web02", "database", "mail"};
	enum { COUNT = sizeof(names) / sizeof(names[0]) };

	(void)state;
	assert_string_equal(store_nearest_name("web0l", names, COUNT), "web01");
	assert_string_equal(store_nearest_name("wbe02", names, COUNT), "web02"); /* neighbours exchanged: one slip */
	assert_string_equal(store_nearest_name("WEB02", names, COUNT), "web02");
	assert_string_equal(store_nearest_name("databse", names, COUNT), "database");
	assert_string_equal(store_nearest_name("mial", names, COUNT), "mail");
	assert_string_equal(store_nearest_name("data", names, COUNT), "database"); /* its beginning */
	assert_null(store_nearest_name("printer", names, COUNT));
	assert_null(store_nearest_name("x", names, COUNT));
	assert_null(store_nearest_name("", names, COUNT));
	assert_null(store_nearest_name("web01", names, 0));
}

static void nearest_name_bears_any_length(void **state)
{
	char longer[200];
	char longest[65];
	const char *names[2] = {longer, longest};

	(void)state;
	memset(longer, 'a', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	memset(longest, 'a', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	assert_null(store_nearest_name(longer, names, 2));
	assert_ptr_equal(store_nearest_name(longest, names, 2), longest);
}

static void last_chunk_may_be_short(void **state)
{
	(void)state;
	assert_int_equal(store_chunk_length(65536, 65536, 0), 65536);
	assert_int_equal(store_chunk_length(65536, 65536, 1), 0);
	assert_int_equal(store_chunk_length(65536, 65537, 1), 1);
	assert_int_equal(store_chunk_length(65536, 65537, 2), 0);
	assert_int_equal(store_chunk_length(65536, 1, 0), 1);
	assert_int_equal(store_chunk_length(65536, STORE_DISK_MOST_BYTES, UINT64_MAX), 0);
	assert_int_equal(store_chunk_length(65536, STORE_DISK_MOST_BYTES, STORE_DISK_MOST_BYTES / 65536 - 1), 65536);
}

static void states_have_names(void **state)
{
	(void)state;
	assert_string_equal(store_consistency_name(STORE_CLEAN), "clean");
	assert_string_equal(store_consistency_name(STORE_FROZEN), "frozen");
	assert_string_equal(store_consistency_name(STORE_FUZZY), "fuzzy");
	assert_string_equal(store_round_state_name(ROUND_RUNNING), "running");
	assert_string_equal(store_round_state_name(ROUND_STOPPED), "stopped");
	assert_string_equal(store_round_state_name(ROUND_FAILED), "failed");
	assert_string_equal(store_round_state_name(ROUND_DONE), "done");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_that_keep_the_rule_are_taken),
		cmocka_unit_test(refused_name_comes_with_one_that_would_do),
		cmocka_unit_test(too_long_name_is_shown_cut),
		cmocka_unit_test(every_proposal_is_a_name),
		cmocka_unit_test(references_are_read),
		cmocka_unit_test(wrong_references_are_explained),
		cmocka_unit_test(nearest_name_is_near),
		cmocka_unit_test(nearest_name_bears_any_length),
		cmocka_unit_test(last_chunk_may_be_short),
		cmocka_unit_test(states_have_names),
	};

	return cmocka_run_group_tests_name("store names", tests, NULL, NULL);
}
