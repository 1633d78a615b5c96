/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who uses a device. Stacks of devices come from a made-up /sys and /proc, for no test machine has them all; loop
 * devices, mounts and locks are real, where the test may make them.
 */
#include "unit_test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scratch_folder.h"
#include "syncer/device_survey.h"
#include "syncer/device_use.h"
#include "syncer/source.h"

enum { MIB = 1 << 20 };

static struct scratch_folder folder;

static int make_folder(void **state)
{
	(void)state;
	scratch_folder_make(&folder);
	return 0;
}

static int remove_folder(void **state)
{
	(void)state;
	device_survey_set_root(NULL);
	scratch_folder_remove(&folder);
	return 0;
}

/* Runs a shell command in which "$D" is the folder. True: it worked. */
__attribute__((format(printf, 1, 2))) static bool run(const char *format, ...)
{
	char command[2000];
	va_list arguments;
	int len = snprintf(command, sizeof(command), "exec >/dev/null 2>&1; D='%s'; ", folder.path);

	va_start(arguments, format);
	(void)vsnprintf(command + len, sizeof(command) - (size_t)len, format, arguments);
	va_end(arguments);
	return system(command) == 0;
}

static const char *path_of(const char *name)
{
	static char path[400];

	(void)snprintf(path, sizeof(path), "%s/%s", folder.path, name);
	return path;
}

static const char *const fake_tree =
	"cd $D && rm -rf fake && mkdir -p fake && cd fake && mkdir -p proc/self sys/block sys/dev/block sys/devices "
	"dev &&"
	"device() { mkdir -p sys/devices/$2/holders && echo $1 >sys/devices/$2/dev &&"
	"           echo DEVNAME=${2##*/} >sys/devices/$2/uevent && ln -s ../../devices/$2 sys/dev/block/$1; } &&"
	"part() { device $1 $2 && echo $3 >sys/devices/$2/partition && echo $4 >sys/devices/$2/start &&"
	"         echo $5 >sys/devices/$2/size; } &&"
	"holds() { ln -s ../../$1 sys/devices/$2/holders/; } &&"
	/* sda: sda1 plain, sda2 carries LVM (two volumes); sdb, sdc: md0, which carries crypt; sdd: two loops. */
	"device 8:0 sda && echo 8192000 >sys/devices/sda/size && part 8:1 sda/sda1 1 2048 1000 &&"
	"part 8:2 sda/sda2 2 4096 100000 && device 253:0 dm-0 && device 253:1 dm-1 &&"
	"mkdir sys/devices/dm-0/dm sys/devices/dm-1/dm && echo vg-root >sys/devices/dm-0/dm/name &&"
	"echo vg-swap >sys/devices/dm-1/dm/name && ln -s ../../../dm-0 ../../../dm-1 sys/devices/sda/sda2/holders/ &&"
	"device 8:16 sdb && device 8:32 sdc && device 9:0 md0 && device 253:2 dm-2 && holds md0 sdb && holds md0 sdc &&"
	"holds dm-2 md0 && device 8:48 sdd && device 8:64 sde && device 8:80 sdf &&"
	"printf 'Filename Type Size Used Priority\\n' >proc/swaps && mknod dev/sda1 b 8 1 && mknod dev/dm-1 b 253 1 &&"
	"mknod dev/sde b 8 64 && mknod dev/sdf b 8 80 && mknod dev/other b 8 240 && : >proc/self/mountinfo";

static char fake_root[300]; /* device_survey_set_root() borrows it */

/* A made-up machine with the given mountinfo and swaps lines. False: the test can't have device nodes. */
static bool make_machine(const char *mountinfo, const char *swaps)
{
	if (geteuid() != 0) {
		print_message("skipped: only root can make device nodes\n");
		return false;
	}
	if (!run("%s", fake_tree)) {
		print_message("skipped: device nodes can't be made here\n");
		return false;
	}
	assert_true(run("cd $D/fake; printf '%s' >proc/self/mountinfo; printf '%s' >>proc/swaps", mountinfo, swaps));
	(void)snprintf(fake_root, sizeof(fake_root), "%s/fake", folder.path);
	device_survey_set_root(fake_root);
	return true;
}

/* The made-up device can't be opened, but a descriptor that only names it will do. */
static bool ask(unsigned major_number, unsigned minor_number, enum device_use_kind kind, uint64_t off_bytes,
		uint64_t len_bytes, char **ret_why)
{
	struct failure failure = {.code = 0};
	char name[32];
	bool is_found = false;
	int fd;

	(void)unlink(path_of("node"));
	assert_int_equal(mknod(path_of("node"), S_IFBLK | 0600, makedev(major_number, minor_number)), 0);
	fd = open(path_of("node"), O_PATH | O_CLOEXEC);
	assert_true(fd >= 0);
	(void)snprintf(name, sizeof(name), "/dev/%u:%u", major_number, minor_number);
	if (device_use_find(fd, name, kind, off_bytes, len_bytes, &is_found, ret_why, &failure) < 0)
		fail_msg("%s", failure.message);
	assert_int_equal(close(fd), 0);
	return is_found;
}

static void assert_use(unsigned major_number, unsigned minor_number, enum device_use_kind kind, const char *expected)
{
	char *why = NULL;
	bool is_found = ask(major_number, minor_number, kind, 0, UINT64_MAX, &why);

	assert_int_equal(is_found, why != NULL);
	if (expected == NULL && why != NULL)
		fail_msg("%u:%u is in use: %s", major_number, minor_number, why);
	if (expected != NULL && (why == NULL || strcmp(why, expected) != 0))
		fail_msg("%u:%u: \"%s\" instead of \"%s\"", major_number, minor_number, why != NULL ? why : "",
			 expected);
	free(why);
}

/* ------------------------------------------------------- a made-up machine */

static void mounted_partition_means_the_disk_is_in_use(void **state)
{
	(void)state;
	if (!make_machine("22 1 8:1 / /srv/a\\\\040b rw,relatime shared:1 - ext4 /dev/sda1 rw,discard\n", ""))
		skip();
	assert_use(8, 0, DEVICE_USE_CHANGES, "/dev/sda1 (on /dev/8:0) is mounted on /srv/a b");
	assert_use(8, 1, DEVICE_USE_CHANGES, "/dev/8:1 is mounted on /srv/a b");
	assert_use(8, 2, DEVICE_USE_CHANGES, NULL);
	assert_use(8, 2, DEVICE_USE_MOUNTED, NULL);
	assert_use(8, 16, DEVICE_USE_CHANGES, NULL);
}

static void read_only_file_system_is_no_change(void **state)
{
	(void)state;
	if (!make_machine("22 1 8:1 / /srv ro,relatime - ext4 /dev/sda1 ro\n", ""))
		skip();
	assert_use(8, 0, DEVICE_USE_CHANGES, NULL);
	assert_use(8, 0, DEVICE_USE_MOUNTED, "/dev/sda1 (on /dev/8:0) is mounted on /srv");
	assert_use(8, 0, DEVICE_USE_BUSY, "/dev/sda1 (on /dev/8:0) is mounted on /srv");
}

/* The file system is written to by way of another mount, maybe one that can't be seen. */
static void read_only_mount_of_a_writable_file_system_is_use(void **state)
{
	(void)state;
	if (!make_machine("22 1 8:1 / /srv ro,relatime - ext4 /dev/sda1 rw,discard\n", ""))
		skip();
	assert_use(8, 0, DEVICE_USE_CHANGES, "/dev/sda1 (on /dev/8:0) is mounted on /srv");
}

static void mount_is_followed_through_stacks(void **state)
{
	(void)state;
	if (!make_machine("22 1 253:0 / / rw - xfs /dev/mapper/vg-root rw\n"
			  "23 1 253:2 / /data rw - ext4 /dev/mapper/x rw\n",
			  ""))
		skip();
	assert_use(8, 0, DEVICE_USE_CHANGES, "/dev/mapper/vg-root (on /dev/8:0) is mounted on /");
	assert_use(8, 2, DEVICE_USE_CHANGES, "/dev/mapper/vg-root (on /dev/8:2) is mounted on /");
	assert_use(8, 1, DEVICE_USE_CHANGES, NULL);
	assert_use(8, 32, DEVICE_USE_CHANGES, "/dev/dm-2 (on /dev/8:32) is mounted on /data");
	assert_use(9, 0, DEVICE_USE_MOUNTED, "/dev/dm-2 (on /dev/9:0) is mounted on /data");
}

static void device_with_something_on_it_is_busy_unmounted(void **state)
{
	(void)state;
	if (!make_machine("", ""))
		skip();
	assert_use(8, 16, DEVICE_USE_BUSY, "/dev/8:16 is part of /dev/md0");
	assert_use(8, 16, DEVICE_USE_CHANGES, NULL);
	assert_use(253, 2, DEVICE_USE_BUSY, NULL);
	assert_use(8, 48, DEVICE_USE_BUSY, NULL);
}

static void swap_is_use_and_no_mount(void **state)
{
	(void)state;
	if (!make_machine("", "/dev/dm-1 partition 1000 0 -2\\n"))
		skip();
	assert_use(8, 0, DEVICE_USE_CHANGES, "/dev/mapper/vg-swap (on /dev/8:0) is active swap");
	assert_use(8, 0, DEVICE_USE_MOUNTED, NULL);
	assert_use(253, 1, DEVICE_USE_BUSY, "/dev/253:1 is active swap");
}

static void btrfs_is_on_all_its_devices(void **state)
{
	(void)state;
	if (!make_machine("22 1 0:41 /root / rw - btrfs /dev/sde rw,ssd\n", ""))
		skip();
	assert_true(run("cd $D/fake && mkdir -p sys/fs/btrfs/features sys/fs/btrfs/1-2-3/devices && "
			"ln -s ../../../../devices/sde ../../../../devices/sdf sys/fs/btrfs/1-2-3/devices/"));
	assert_use(8, 64, DEVICE_USE_CHANGES, "/dev/8:64 is mounted on /");
	assert_use(8, 80, DEVICE_USE_CHANGES, "/dev/8:80 is mounted on /");
	assert_use(8, 48, DEVICE_USE_CHANGES, NULL);
}

static void several_devices_of_one_mount_are_told_apart(void **state)
{
	(void)state;
	if (!make_machine("22 1 0:41 / /b rw - bcachefs /dev/sde:/dev/sdf rw\n"
			  "23 1 0:42 / /o rw - overlay overlay rw,lowerdir=/x\n"
			  "24 1 0:43 / /z rw - zfs pool/set rw\nnonsense\n25 1 0:44 /\n",
			  ""))
		skip();
	assert_use(8, 64, DEVICE_USE_CHANGES, "/dev/8:64 is mounted on /b");
	assert_use(8, 80, DEVICE_USE_CHANGES, "/dev/8:80 is mounted on /b");
	assert_use(8, 48, DEVICE_USE_CHANGES, NULL);
}

static void range_follows_partitions(void **state)
{
	(void)state;
	if (!make_machine("22 1 8:1 / /srv rw - ext4 /dev/sda1 rw\n23 1 253:0 / / rw - xfs /dev/x rw\n", ""))
		skip();
	assert_false(ask(8, 0, DEVICE_USE_MOUNTED, 0, MIB, NULL));
	assert_true(ask(8, 0, DEVICE_USE_MOUNTED, 0, MIB + 1, NULL));
	assert_true(ask(8, 0, DEVICE_USE_MOUNTED, MIB + 511999, 1, NULL));
	assert_false(ask(8, 0, DEVICE_USE_MOUNTED, MIB + 512000, 512, NULL));
	assert_true(ask(8, 0, DEVICE_USE_MOUNTED, 4096 * 512, 512, NULL));
	assert_true(ask(8, 2, DEVICE_USE_MOUNTED, 77, 1, NULL)); /* what LVM does with it isn't known */
	assert_false(ask(8, 0, DEVICE_USE_MOUNTED, UINT64_C(1) << 40, 512, NULL));
}

static void unknown_is_use(void **state)
{
	char *why = NULL;

	(void)state;
	if (!make_machine("", ""))
		skip();
	assert_int_equal(unlink(path_of("fake/proc/self/mountinfo")), 0);
	assert_true(ask(8, 48, DEVICE_USE_MOUNTED, 0, 1, &why));
	assert_non_null(strstr(why, "can't be told"));
	free(why);
}

static void devices_that_hold_each_other_end_the_search(void **state)
{
	(void)state;
	if (!make_machine("", ""))
		skip();
	assert_true(run("ln -s ../../sdb $D/fake/sys/devices/dm-2/holders/"));
	assert_use(8, 16, DEVICE_USE_CHANGES, "too many devices lie on /dev/8:16 to tell");
}

/* ------------------------------------------------------------- this machine */

static struct source *open_image(const char *name)
{
	struct failure failure = {.code = 0};
	struct source *source = NULL;

	device_survey_set_root(NULL);
	if (source_open(path_of(name), NULL, &source, &failure) < 0)
		fail_msg("%s", failure.message);
	return source;
}

static bool is_in_use(struct source *source, char **ret_why)
{
	bool in_use = false;

	assert_int_equal(source_in_use(source, &in_use, ret_why, NULL), 0);
	return in_use;
}

/* A child that holds a lock on the file until it is killed. */
static pid_t lock_in_child(const char *name, short type, off_t start, off_t len)
{
	int ready[2];
	char byte;
	pid_t child;

	assert_int_equal(pipe(ready), 0);
	child = fork();
	if (child == 0) {
		struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
		int fd = open(path_of(name), O_RDWR | O_CLOEXEC);

		if (fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) == 0 && write(ready[1], "x", 1) == 1)
			(void)pause();
		_exit(1);
	}
	assert_int_equal(close(ready[1]), 0);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(close(ready[0]), 0);
	return child;
}

static void end_child(pid_t child)
{
	assert_int_equal(kill(child, SIGKILL), 0);
	assert_int_equal(waitpid(child, NULL, 0), child);
}

static void assert_locked_use(short type, off_t start, off_t len, bool in_use, bool is_busy)
{
	struct source *source = open_image("locked");
	pid_t child = lock_in_child("locked", type, start, len);
	char *why = NULL;
	bool busy = false;

	assert_int_equal(is_in_use(source, &why), in_use);
	assert_int_equal(why != NULL, in_use);
	assert_int_equal(source_path_busy(path_of("locked"), &busy, NULL, NULL), 0);
	assert_int_equal(busy, is_busy);
	end_child(child);
	free(why);
	assert_false(is_in_use(source, &why));
	source_close(source);
}

static void locks_tell_who_writes(void **state)
{
	(void)state;
	assert_true(run("truncate -s 1M $D/locked"));
	assert_locked_use(F_WRLCK, 0, 0, true, true);
	assert_locked_use(F_WRLCK, 5000, 10, true, true);
	assert_locked_use(F_RDLCK, 0, 0, false, true);	 /* somebody reads */
	assert_locked_use(F_RDLCK, 100, 1, false, true); /* QEMU reads */
	assert_locked_use(F_RDLCK, 100, 2, true, true);	 /* QEMU writes: byte 101 */
}

static void missing_target_is_not_busy(void **state)
{
	char *why = NULL;
	bool busy = true;

	(void)state;
	assert_int_equal(source_path_busy(path_of("missing"), &busy, &why, NULL), 0);
	assert_false(busy);
	assert_null(why);
	assert_int_equal(source_path_busy(folder.path, &busy, &why, NULL), -EISDIR);
}

static bool have_loop_and_mount(void)
{
	device_survey_set_root(NULL);
	if (geteuid() != 0) {
		print_message("skipped: only root can set up loop devices and mount\n");
		return false;
	}
	if (!run("cd $D && truncate -s 64M disk && truncate -s 16M fs && mkfs.ext4 -q -F fs && "
		 "dd if=fs of=disk bs=1M seek=8 conv=notrunc && mkdir -p mnt && losetup -f --show disk >loop && "
		 "losetup -d $(cat loop)")) {
		print_message("skipped: loop devices or mkfs.ext4 don't work here\n");
		return false;
	}
	return true;
}

static void file_mounted_by_loop_device_is_in_use(void **state)
{
	struct source *source;
	char *why = NULL;
	bool flag = false;

	(void)state;
	if (!have_loop_and_mount())
		skip();
	source = open_image("disk");
	assert_true(run("cd $D && mount -o loop,offset=$((8 << 20)),sizelimit=$((16 << 20)) disk mnt"));
	assert_true(is_in_use(source, &why));
	assert_non_null(strstr(why, "/mnt"));
	free(why);
	assert_int_equal(source_range_mounted(source, 0, 8 * MIB, &flag, NULL), 0);
	assert_false(flag);
	assert_int_equal(source_range_mounted(source, 8 * MIB - 1, 2, &flag, NULL), 0);
	assert_true(flag);
	assert_int_equal(source_range_mounted(source, 24 * MIB, 8 * MIB, &flag, NULL), 0);
	assert_false(flag);
	assert_int_equal(source_path_busy(path_of("disk"), &flag, &why, NULL), 0);
	assert_true(flag);
	free(why);
	assert_true(run("mount -o remount,ro $D/mnt"));
	assert_false(is_in_use(source, &why));
	assert_int_equal(source_range_mounted(source, 9 * MIB, 1, &flag, NULL), 0);
	assert_true(flag);
	assert_true(run("umount $D/mnt"));
	assert_int_equal(source_range_mounted(source, 9 * MIB, 1, &flag, NULL), 0);
	assert_false(flag);
	source_close(source);
}

/* Sets up a loop device on the image; the caller closes the source and calls end_loop(). */
static struct source *open_loop(const char *image, char device[64])
{
	struct source *source = NULL;
	struct failure failure = {.code = 0};
	FILE *file;

	assert_true(run("cd $D && losetup -f --show %s >loop", image));
	file = fopen(path_of("loop"), "re");
	assert_non_null(file);
	assert_non_null(fgets(device, 64, file));
	device[strcspn(device, "\n")] = '\0';
	assert_int_equal(fclose(file), 0);
	if (source_open(device, NULL, &source, &failure) < 0)
		fail_msg("%s", failure.message);
	return source;
}

static void end_loop(void)
{
	assert_true(run("losetup -d $(cat $D/loop)"));
}

static void device_reads_like_its_file(void **state)
{
	char device[64];
	struct source *source;
	uint8_t *buffer = malloc(3 * MIB);
	uint8_t *expected = malloc(3 * MIB);
	int fd;

	(void)state;
	if (!have_loop_and_mount()) {
		free(buffer);
		free(expected);
		skip();
	}
	source = open_loop("disk", device);
	fd = open(path_of("disk"), O_RDONLY | O_CLOEXEC);
	assert_int_equal(source_get_info(source)->kind, SOURCE_BLOCK_DEVICE);
	assert_int_equal(source_get_info(source)->size_bytes, 64 * MIB);
	assert_int_equal(source_get_info(source)->sector_bytes, 512);
	assert_int_equal(pread(fd, expected, 3 * MIB, 8 * MIB + 513), 3 * MIB);
	assert_int_equal(source_read(source, buffer, 3 * MIB, 8 * MIB + 513, NULL), 0);
	assert_memory_equal(buffer, expected, 3 * MIB);
	assert_int_equal(source_read(source, buffer, 1, 64 * MIB - 1, NULL), 0);
	source_close(source);
	end_loop();
	(void)close(fd);
	free(buffer);
	free(expected);
}

static void mount_out_of_sight_is_seen_by_its_claim(void **state)
{
	char device[64];
	struct source *source;
	char *why = NULL;
	bool flag = false;

	(void)state;
	if (!have_loop_and_mount())
		skip();
	source = open_loop("fs", device);
	if (!run("cd $D && { unshare -m sh -c 'mount %s mnt && : >up && exec sleep 60' & echo $! >pid; } && "
		 "for i in $(seq 100); do [ -e up ] && break; sleep 0.1; done; [ -e up ]",
		 device)) {
		print_message("skipped: no mount namespace to be had\n");
		source_close(source);
		end_loop();
		skip();
	}
	assert_true(is_in_use(source, &why));
	assert_non_null(strstr(why, "held by something that can't be seen from here"));
	free(why);
	assert_int_equal(source_range_mounted(source, 0, 512, &flag, NULL), 0);
	assert_true(flag);
	assert_true(run("kill $(cat $D/pid); for i in $(seq 100); do kill -0 $(cat $D/pid) || break; sleep 0.1; done"));
	source_close(source);
	end_loop();
}

static void stamp_of_a_device_counts_writes(void **state)
{
	char device[64];
	struct source *source;
	char *first = NULL;
	char *second = NULL;
	char *third = NULL;

	(void)state;
	if (!have_loop_and_mount())
		skip();
	source = open_loop("fs", device);
	assert_int_equal(source_change_stamp(source, &first, NULL), 0);
	assert_string_not_equal(first, "");
	assert_int_equal(source_change_stamp(source, &second, NULL), 0);
	assert_string_equal(first, second);
	assert_true(run("printf x | dd of=%s bs=1 seek=5000 conv=fsync,notrunc", device));
	assert_int_equal(source_change_stamp(source, &third, NULL), 0);
	assert_string_not_equal(second, third);
	free(first);
	free(second);
	free(third);
	source_close(source);
	end_loop();
}

static void identity_of_a_device_names_its_medium(void **state)
{
	char device[64];
	char expected[500];
	struct source *source;

	(void)state;
	if (!have_loop_and_mount())
		skip();
	source = open_loop("fs", device);
	(void)snprintf(expected, sizeof(expected), "block:%s:%s", device, path_of("fs"));
	assert_string_equal(source_get_info(source)->identity, expected);
	source_close(source);
	end_loop();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mounted_partition_means_the_disk_is_in_use),
		cmocka_unit_test(read_only_file_system_is_no_change),
		cmocka_unit_test(read_only_mount_of_a_writable_file_system_is_use),
		cmocka_unit_test(mount_is_followed_through_stacks),
		cmocka_unit_test(device_with_something_on_it_is_busy_unmounted),
		cmocka_unit_test(swap_is_use_and_no_mount),
		cmocka_unit_test(btrfs_is_on_all_its_devices),
		cmocka_unit_test(several_devices_of_one_mount_are_told_apart),
		cmocka_unit_test(range_follows_partitions),
		cmocka_unit_test(unknown_is_use),
		cmocka_unit_test(devices_that_hold_each_other_end_the_search),
		cmocka_unit_test(locks_tell_who_writes),
		cmocka_unit_test(missing_target_is_not_busy),
		cmocka_unit_test(file_mounted_by_loop_device_is_in_use),
		cmocka_unit_test(device_reads_like_its_file),
		cmocka_unit_test(mount_out_of_sight_is_seen_by_its_claim),
		cmocka_unit_test(stamp_of_a_device_counts_writes),
		cmocka_unit_test(identity_of_a_device_names_its_medium),
	};

	return cmocka_run_group_tests_name("device_use", tests, make_folder, remove_folder);
}
