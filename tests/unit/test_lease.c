/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases: who gets one, who is told about whom, and that no two ever hold the same, whatever is removed, looked at or
 * killed meanwhile.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "scratch_folder.h"
#include "store/lease.h"

static int make_folder(void **state)
{
	struct scratch_folder *folder = malloc(sizeof(*folder));

	if (folder == NULL)
		return -1;
	scratch_folder_make(folder);
	*state = folder;
	return 0;
}

static int remove_folder(void **state)
{
	scratch_folder_remove(*state);
	free(*state);
	return 0;
}

static int folder_fd(void **state)
{
	return ((struct scratch_folder *)*state)->fd;
}

static struct lease take(int locks_fd, enum lease_mode mode, const char *holder)
{
	struct lease lease = LEASE_NONE;
	struct failure failure = {.code = 0};

	if (lease_take(locks_fd, "disk-1", mode, holder, &lease, NULL, &failure) != 0)
		fail_msg("not taken: %s", failure.message);
	assert_true(lease.fd >= 0);
	return lease;
}

/* Who shares a lease writes no line: the kernel says which process has the lock. */
static const char some_process[] = "some process";

static void assert_holder(const char *holder, const char *by)
{
	if (by == NULL)
		assert_null(holder);
	else if (by == some_process)
		assert_true(holder != NULL && strstr(holder, "pid ") != NULL);
	else
		assert_string_equal(holder, by);
}

static void assert_taken_by(int locks_fd, enum lease_mode mode, const char *by)
{
	AUTO_FREE char *holder = NULL;
	struct lease lease = LEASE_NONE;
	struct failure failure = {.code = 0};

	assert_int_equal(lease_take(locks_fd, "disk-1", mode, "me", &lease, &holder, &failure), -EWOULDBLOCK);
	assert_int_equal(lease.fd, -1);
	assert_int_equal(failure.code, 0);
	assert_holder(holder, by);
}

static void assert_held(int locks_fd, bool expected, const char *by)
{
	AUTO_FREE char *holder = NULL;
	bool held = !expected;

	assert_int_equal(lease_is_held(locks_fd, "disk-1", &held, &holder, NULL), 0);
	assert_int_equal(held, expected);
	assert_holder(holder, by);
}

/* ---- one process ---- */

static void exclusive_keeps_all_others_out_and_says_who(void **state)
{
	struct lease lease = take(folder_fd(state), LEASE_EXCLUSIVE, "wherry sync (pid 1)");

	assert_taken_by(folder_fd(state), LEASE_EXCLUSIVE, "wherry sync (pid 1)");
	assert_taken_by(folder_fd(state), LEASE_SHARED, "wherry sync (pid 1)");
	assert_held(folder_fd(state), true, "wherry sync (pid 1)");
	lease_release(&lease);
	assert_int_equal(lease.fd, -1);
	lease_release(&lease);
	assert_held(folder_fd(state), false, NULL);
	lease = take(folder_fd(state), LEASE_EXCLUSIVE, NULL);
	assert_taken_by(folder_fd(state), LEASE_EXCLUSIVE, NULL);
	lease_release(&lease);
}

static void shared_ones_keep_exclusive_ones_out(void **state)
{
	struct lease first = take(folder_fd(state), LEASE_SHARED, NULL);
	struct lease second = take(folder_fd(state), LEASE_SHARED, NULL);

	assert_taken_by(folder_fd(state), LEASE_EXCLUSIVE, some_process);
	assert_held(folder_fd(state), true, some_process);
	lease_release(&first);
	assert_taken_by(folder_fd(state), LEASE_EXCLUSIVE, some_process);
	lease_release(&second);
	first = take(folder_fd(state), LEASE_EXCLUSIVE, "me");
	lease_release(&first);
}

static void a_lease_that_never_was_is_not_held(void **state)
{
	assert_held(folder_fd(state), false, NULL);
	assert_int_equal(faccessat(folder_fd(state), "disk-1", F_OK, 0), -1);
}

static void a_removed_one_is_free_and_gone(void **state)
{
	struct lease lease = take(folder_fd(state), LEASE_EXCLUSIVE, "me");

	lease_release_and_remove(folder_fd(state), "disk-1", &lease);
	assert_int_equal(lease.fd, -1);
	assert_int_equal(faccessat(folder_fd(state), "disk-1", F_OK, 0), -1);
	lease = take(folder_fd(state), LEASE_EXCLUSIVE, "me");
	lease_release(&lease);
	lease_release_and_remove(folder_fd(state), "disk-1", &lease);
	assert_int_equal(faccessat(folder_fd(state), "disk-1", F_OK, 0), 0); /* LEASE_NONE removes nothing */
}

static void descriptors_are_not_inherited(void **state)
{
	struct lease lease = take(folder_fd(state), LEASE_EXCLUSIVE, "me");

	assert_int_equal(fcntl(lease.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	lease_release(&lease);
}

static void the_holders_line_is_made_safe(void **state)
{
	char long_name[5000];
	struct lease lease = take(folder_fd(state), LEASE_EXCLUSIVE, "a\x1b[2Jb\nsecond line");
	AUTO_FREE char *holder = NULL;
	bool held;

	assert_taken_by(folder_fd(state), LEASE_SHARED, "a?[2Jb");
	lease_release(&lease);
	memset(long_name, 'x', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = '\0';
	lease = take(folder_fd(state), LEASE_EXCLUSIVE, long_name);
	assert_int_equal(lease_is_held(folder_fd(state), "disk-1", &held, &holder, NULL), 0);
	assert_non_null(holder);
	assert_true(strlen(holder) > 500);
	assert_memory_equal(holder, long_name, strlen(holder));
	lease_release(&lease);
}

static void an_unfinished_line_names_nobody(void **state)
{
	struct lease lease = take(folder_fd(state), LEASE_EXCLUSIVE, NULL);

	assert_int_equal(pwrite(lease.fd, "wherry sy", 9, 0), 9);
	assert_taken_by(folder_fd(state), LEASE_EXCLUSIVE, NULL);
	lease_release(&lease);
}

static void holder_text_names_process_and_host(void **state)
{
	AUTO_FREE char *text = lease_holder_text("wherry sync /dev/sda web01");
	char expected[512];
	char host[256] = "";

	(void)state;
	assert_int_equal(gethostname(host, sizeof(host) - 1), 0);
	(void)snprintf(expected, sizeof(expected), "wherry sync /dev/sda web01 (pid %ld on host %s)", (long)getpid(),
		       host);
	assert_string_equal(text, expected);
}

static void other_errors_have_a_message(void **state)
{
	struct failure failure = {.code = 0};
	struct lease lease = LEASE_NONE;
	bool held;

	assert_int_equal(mkdirat(folder_fd(state), "disk-1", 0755), 0);
	assert_int_equal(lease_take(folder_fd(state), "disk-1", LEASE_EXCLUSIVE, "me", &lease, NULL, &failure),
			 -EISDIR);
	assert_non_null(strstr(failure.message, "lease locks/disk-1"));
	failure_clear(&failure);
	assert_int_equal(lease_is_held(folder_fd(state), "disk-1", &held, NULL, &failure), -EISDIR);
	assert_non_null(strstr(failure.message, "lease locks/disk-1"));
}

/* ---- processes ---- */

/* A child that has taken the lease and waits; it writes a byte when it has it. */
static pid_t start_holder(int locks_fd, enum lease_mode mode, const char *holder)
{
	int ready[2];
	char byte;
	pid_t child;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		struct lease lease = LEASE_NONE;

		if (lease_take(locks_fd, "disk-1", mode, holder, &lease, NULL, NULL) != 0 ||
		    write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			(void)pause();
	}
	(void)close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	(void)close(ready[0]);
	return child;
}

static void end_child(pid_t child)
{
	assert_int_equal(kill(child, SIGKILL), 0);
	assert_int_equal(waitpid(child, NULL, 0), child);
}

static void a_killed_holder_holds_nothing_and_is_not_named(void **state)
{
	pid_t child = start_holder(folder_fd(state), LEASE_EXCLUSIVE, "the dead one");
	struct lease lease;

	assert_held(folder_fd(state), true, "the dead one");
	assert_taken_by(folder_fd(state), LEASE_SHARED, "the dead one");
	end_child(child);
	assert_held(folder_fd(state), false, NULL);
	lease = take(folder_fd(state), LEASE_SHARED, NULL); /* its line is still in the file */
	assert_taken_by(folder_fd(state), LEASE_EXCLUSIVE, some_process);
	assert_held(folder_fd(state), true, some_process);
	lease_release(&lease);
	lease = take(folder_fd(state), LEASE_EXCLUSIVE, "me");
	assert_held(folder_fd(state), true, "me");
	lease_release(&lease);
}

/* fork() without exec: the child has the descriptor, and must not keep the lease that its parent releases. */
static void a_forked_child_does_not_keep_what_its_parent_releases(void **state)
{
	struct lease lease = take(folder_fd(state), LEASE_EXCLUSIVE, "me");
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0)
		for (;;)
			(void)pause();
	lease_release(&lease);
	assert_held(folder_fd(state), false, NULL);
	end_child(child);
}

/* ---- a read-only file system ---- */

/* Status: 0 as it should be, 77 when mounting isn't allowed here, else the number of what was wrong. */
static int try_read_only(const char *path)
{
	struct lease lease = {.fd = 5};
	struct failure failure = {.code = 0};
	bool held = true;
	int fd;

	if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
	    mount(path, path, NULL, MS_BIND, NULL) != 0 ||
	    mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) != 0)
		return 77;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (lease_take(fd, "image-1-1", LEASE_SHARED, NULL, &lease, NULL, &failure) != 0 || lease.fd != -1)
		return 1;
	if (lease_take(fd, "image-1-2", LEASE_SHARED, NULL, &lease, NULL, &failure) != 0 || lease.fd < 0)
		return 2;
	if (lease_is_held(fd, "image-1-2", &held, NULL, &failure) != 0 || !held)
		return 3;
	lease_release(&lease);
	if (lease_is_held(fd, "image-1-2", &held, NULL, &failure) != 0 || held)
		return 4;
	/* nothing can be changed there, so whoever wants it to himself needs no proof */
	if (lease_take(fd, "image-1-2", LEASE_EXCLUSIVE, "me", &lease, NULL, &failure) != 0 || lease.fd != -1)
		return 5;
	return 0;
}

static void shared_ones_are_given_on_a_read_only_file_system(void **state)
{
	struct scratch_folder *folder = *state;
	int status = 0;
	pid_t child;
	int fd = openat(folder->fd, "image-1-2", O_CREAT | O_WRONLY | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	(void)close(fd);
	child = fork();
	assert_true(child >= 0);
	if (child == 0)
		_exit(try_read_only(folder->path)); /* its mounts end with it */
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77) {
		print_message("skipped: mounting is not allowed here\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- races ---- */

enum { RACERS = 4, RACER_TURNS = 400 };

struct race {
	int locks_fd;
	atomic_int holders;
	atomic_int most_holders;
	atomic_uint taken;
	atomic_uint failed_looks;
	atomic_bool is_over;
};

static void *race_for_it(void *opaque)
{
	struct race *race = opaque;

	for (unsigned int turn = 0; turn < RACER_TURNS; turn++) {
		struct lease lease = LEASE_NONE;
		int now;

		if (lease_take(race->locks_fd, "disk-1", LEASE_EXCLUSIVE, "racer", &lease, NULL, NULL) != 0)
			continue;
		now = atomic_fetch_add(&race->holders, 1) + 1;
		if (now > atomic_load(&race->most_holders))
			atomic_store(&race->most_holders, now);
		atomic_fetch_add(&race->taken, 1);
		(void)sched_yield();
		atomic_fetch_sub(&race->holders, 1);
		if (turn % 2 == 0)
			lease_release(&lease);
		else
			lease_release_and_remove(race->locks_fd, "disk-1", &lease);
	}
	return NULL;
}

static void *look_at_it(void *opaque)
{
	struct race *race = opaque;

	while (!atomic_load(&race->is_over)) {
		bool held;

		if (lease_is_held(race->locks_fd, "disk-1", &held, NULL, NULL) != 0)
			atomic_fetch_add(&race->failed_looks, 1);
	}
	return NULL;
}

static void two_never_hold_it_though_it_is_removed_all_the_time(void **state)
{
	struct race race = {.locks_fd = folder_fd(state)};
	pthread_t threads[RACERS];
	pthread_t looker;

	assert_int_equal(pthread_create(&looker, NULL, look_at_it, &race), 0);
	for (size_t i = 0; i < RACERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, race_for_it, &race), 0);
	for (size_t i = 0; i < RACERS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	atomic_store(&race.is_over, true);
	assert_int_equal(pthread_join(looker, NULL), 0);
	print_message("taken %u times of %d\n", atomic_load(&race.taken), RACERS * RACER_TURNS);
	assert_int_equal(atomic_load(&race.failed_looks), 0);
	assert_int_equal(atomic_load(&race.most_holders), 1);
	assert_true(atomic_load(&race.taken) > RACER_TURNS / 2);
}

static void a_look_does_not_pass_for_a_holder(void **state)
{
	struct race race = {.locks_fd = folder_fd(state)};
	pthread_t looker;

	assert_int_equal(pthread_create(&looker, NULL, look_at_it, &race), 0);
	for (unsigned int turn = 0; turn < RACER_TURNS; turn++) {
		struct lease lease = take(race.locks_fd, turn % 2 == 0 ? LEASE_EXCLUSIVE : LEASE_SHARED, "me");

		lease_release(&lease);
	}
	atomic_store(&race.is_over, true);
	assert_int_equal(pthread_join(looker, NULL), 0);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_FOLDER(exclusive_keeps_all_others_out_and_says_who),
		IN_FOLDER(shared_ones_keep_exclusive_ones_out),
		IN_FOLDER(a_lease_that_never_was_is_not_held),
		IN_FOLDER(a_removed_one_is_free_and_gone),
		IN_FOLDER(descriptors_are_not_inherited),
		IN_FOLDER(the_holders_line_is_made_safe),
		IN_FOLDER(an_unfinished_line_names_nobody),
		IN_FOLDER(holder_text_names_process_and_host),
		IN_FOLDER(other_errors_have_a_message),
		IN_FOLDER(a_killed_holder_holds_nothing_and_is_not_named),
		IN_FOLDER(a_forked_child_does_not_keep_what_its_parent_releases),
		IN_FOLDER(shared_ones_are_given_on_a_read_only_file_system),
		IN_FOLDER(two_never_hold_it_though_it_is_removed_all_the_time),
		IN_FOLDER(a_look_does_not_pass_for_a_holder),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
