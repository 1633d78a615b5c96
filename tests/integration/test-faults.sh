#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the system refuses: a full file system, a store that turns read-only, errors of the device, no more descriptors,
# no memory. One line says why, what was acknowledged is there, and the next run goes on. Deleting and cleaning up work on a full store.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq strace cmp mkfs.ext4 e2fsck perl findmnt
requires_loop

MIB=$((1024 * 1024))
no_memory=$WHERRY_TEST_TOOLS/preload_no_memory.so

say "a full file system"
truncate -s 700M disk.img
mkfs.ext4 -q -m 0 disk.img
mkdir mounted
mount -o loop disk.img mounted
unmount() {
	umount "$WORK/mounted" 2>/dev/null || true
}
at_exit unmount
export WHERRY_STORE=$WORK/mounted/store
wherry init >/dev/null
[[ -e $WHERRY_STORE/reserve ]] || die "no reserve is kept"
random_file source 150M 1
cp source kept1
sync_disk source web01
for i in 2 3 4; do
	random_range source 0 150M $i
	sync_disk source web01
done
cp source kept4
random_range source 0 150M 5
expect_error "No space left on device.*may need some [0-9.]+ MiB, [0-9.]+ MiB at most" wherry sync source web01 --progress=none
check_export web01@4 kept4
expect_exit 0 wherry check --json --progress=none
dd if=/dev/zero of=mounted/fill bs=1M status=none 2>/dev/null || true
dd if=/dev/zero of=mounted/fill2 bs=4K status=none 2>/dev/null || true
expect_equal 0 "$(stat -f -c %a mounted)" "free blocks"
expect_error "No space left|no space" wherry rebuild --progress=none
[[ -e $WHERRY_STORE/catalog.db ]] || die "a rebuild that failed leaves the catalog as it was"
expect_exit 0 wherry delete web01@2
expect_exit 0 wherry delete web01@3
expect_exit 0 wherry gc --json --progress=none
expect_number "$(json_get .freed_bytes) > 200 * MIB" "300 MiB are dead"
[[ -e $WHERRY_STORE/reserve ]] || die "the reserve is kept again"
expect_exit 0 wherry sync source web01 --json --progress=none
expect_equal true "$(json_get .resumed)" "it goes on"
expect_exit 0 wherry check --deep --json --progress=none
check_export web01@1 kept1
check_export web01@5 source
expect_exit 0 wherry rebuild --progress=none
check_export web01@5 source
umount mounted
rm disk.img kept4

say "a full file system with blocks smaller than a page of memory: what SQLite maps needs all of its blocks"
truncate -s 40M disk.img
mkfs.ext4 -q -m 0 -b 1024 disk.img
mount -o loop disk.img mounted
wherry init >/dev/null
random_file source 4M 6
cp source kept1
sync_disk source web01
dd if=/dev/zero of=mounted/fill bs=1M status=none 2>/dev/null || true
dd if=/dev/zero of=mounted/fill2 bs=1K status=none 2>/dev/null || true
expect_equal 0 "$(stat -f -c %a mounted)" "free blocks"
check_export web01@1 kept1
expect_exit 0 wherry images
expect_exit 0 wherry check --progress=none
random_range source 0 1M 7
for attempt in 1 2; do
	expect_error "[Nn]o space left.*make room" wherry sync source web01 --progress=none
	expect_exit 0 wherry images
	expect_exit 0 wherry check --deep --progress=none
done
expect_exit 0 wherry delete web01@1
umount mounted
rm disk.img kept1

say "calls that fail"
export WHERRY_STORE=$WORK/store
make_store --chunk-size 16K
random_file source 3M 10
cp source kept1
sync_disk source web01
random_range source 1M 1M 11
# refused CALL ERROR FROM COMMAND…: from the FROM-th such call on all fail; the command says so, and no more than that.
refused() {
	local call=$1 error=$2 from=$3 status=0
	shift 3
	without_leak_check timeout 60 strace -f -qq -o /dev/null -e trace="$call" -e inject="$call:error=$error:when=$from+" \
		"$@" >"$WORK/stdout" 2>"$WORK/stderr" || status=$?
	expect_number "status == 0 || status == 1" "$call $error $from: status $status: $(cat "$WORK/stderr")"
	if ((status == 1)); then
		failures=$((failures + 1))
		expect_equal 1 "$(grep -c '^wherry: ' "$WORK/stderr" | sed 's/^[2-9]$/1/')" "it says why: $(cat "$WORK/stderr")"
	fi
}
failures=0
for error in EIO EROFS ENOSPC EDQUOT; do
	for call in pwrite64 fdatasync ftruncate fallocate; do
		random_number 8
		refused $call $error $((NUMBER + 1)) wherry sync source web01 --progress=none
	done
	check_export web01@1 kept1
done
for from in 4 12 20 28 36; do # 40: behind the libraries
	refused openat EMFILE $((from + 40)) wherry sync source web01 --progress=none
	refused pread64 EIO $((from * 2 + 4)) wherry export web01@1 out --progress=none
done
expect_exit 0 wherry delete web01@1 || true
for call in pwrite64 fdatasync unlinkat fsync pread64; do
	behind=1
	[[ $call != pread64 ]] || behind=12 # the loader's come first
	random_number 6
	refused $call EIO $((NUMBER + behind)) wherry gc --progress=none
	random_number 6
	refused $call EIO $((NUMBER + behind)) wherry rebuild --progress=none
	[[ -e $WHERRY_STORE/catalog.db ]] || expect_exit 0 wherry rebuild --progress=none
done
say "  $failures failed"
expect_number "failures > 10"
expect_exit 0 wherry sync source web01 --json --progress=none
check_export web01@latest source
expect_exit 0 wherry check --deep --json --progress=none

say "a store that turns read-only under way, a device that goes away"
mount_at memory -t tmpfs -o size=128M tmpfs # no real disk is waited for
truncate -s 96M memory/disk.img
mkfs.ext4 -q -m 0 memory/disk.img
device_mount() {
	mount -o loop,errors=remount-ro memory/disk.img mounted
	device=$(findmnt -n -o SOURCE --mountpoint "$WORK/mounted")
}
# after a fresh mount: all as it was, and it goes on
device_again() {
	umount mounted
	e2fsck -fp memory/disk.img >e2fsck.out 2>&1 || (($? <= 1)) || die "e2fsck: $(cat e2fsck.out)"
	device_mount
	[[ -e $WHERRY_STORE/catalog.db ]] || expect_exit 0 wherry rebuild --progress=none
	expect_exit 0 wherry check --deep --json --progress=none
	check_export web01@2 kept2
}
# read_only: as an error found in the file system makes it. gone: no more is written, not even the file system's journal.
read_only() {
	echo 1 >"/sys/fs/ext4/${device#/dev/}/trigger_fs_error"
}
gone() {
	# EXT4_IOC_SHUTDOWN, without flushing its journal
	perl -e 'my $flags = pack("L", 2); open(my $file, "<", $ARGV[0]) or die; ioctl($file, 0x8004587d, $flags) or die "$!"' mounted
}
# struck EVENT COMMAND…: it happens behind the command's third write, at which the command stands still meanwhile.
struck() {
	local event=$1 status=0
	shift
	without_leak_check strace -f -qq -o "$WORK/calls" -e trace=pwrite64 -e inject=pwrite64:signal=STOP:when=3 \
		"$@" >"$WORK/stdout" 2>"$WORK/stderr" &
	started_pids+=($!)
	wait_until 20 grep -q "stopped by SIGSTOP" "$WORK/calls"
	$event
	kill -CONT "$(sed -n '1s/ .*//p' "$WORK/calls")"
	finish "${started_pids[-1]}" || status=$?
	rm "$WORK/calls"
	expect_equal 1 $status "$event: $*: $(cat "$WORK/stderr")"
	expect_equal 1 "$(grep -c '^wherry: ' "$WORK/stderr")" "$event: $*: one message: $(cat "$WORK/stderr")"
	device_again
}
device_mount
export WHERRY_STORE=$WORK/mounted/store
make_store --chunk-size 16K
random_file source 3M 20
sync_disk source web01
random_range source 0 2M 21
sync_disk source web01
cp source kept2
sync_disk kept1 other
for event in read_only gone; do
	random_range source 0 1M "$event"
	struck $event wherry sync source web01 --progress=none
	expect_exit 0 wherry sync source web01 --progress=none
	check_export web01 source
	random_range other.img 0 4M "$event"
	expect_exit 0 wherry sync other.img "dead-$event" --level 0 --progress=none
	expect_exit 0 wherry remove "dead-$event"
	struck $event wherry gc --progress=none
	expect_exit 0 wherry gc --progress=none
	struck $event wherry rebuild --progress=none
	expect_exit 0 wherry rebuild --progress=none
	check_export web01 source
done
umount mounted
rm memory/disk.img
export WHERRY_STORE=$WORK/store

say "no memory"
[[ -e $no_memory ]] || die "needs $no_memory"
random_range source 0 1M 12
expect_exit 0 env LD_PRELOAD="$no_memory" NO_MEMORY_COUNT="$WORK/count" wherry sync source web01 --progress=none
all=$(cat count)
say "  a round allocates $all times"
expect_number "all > 100"
step=$((all / 30 + 1))
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || step=1
random_number $step
failures=0
for ((n = NUMBER + 1; n <= all; n += step)); do
	random_range source $((n % 40 * 65536)) 65536 "memory $n"
	status=0
	env LD_PRELOAD="$no_memory" NO_MEMORY_AT=$n wherry sync source web01 --progress=none >stdout 2>stderr || status=$?
	expect_number "status == 0 || status == 1" "allocation $n fails: status $status: $(cat stderr)"
	if ((status == 1)); then
		failures=$((failures + 1))
		[[ -s stderr ]] || die "allocation $n fails, and nothing is said"
	fi
done
say "  $failures of $((all / step)) failed"
expect_number "failures > 5"
expect_exit 0 wherry check --deep --json --progress=none
# it goes on with a round that began before the source was changed, and says so; the next one has it all
sync_disk source web01
wherry export web01@latest - --progress=none 2>/dev/null | cmp -s - source ||
	expect_equal "fuzzy" "$(json_get .consistency)" "a round that began with older content"
sync_disk source web01
check_export web01@latest source
