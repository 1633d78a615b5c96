#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# mount and umount: which file system is meant, by which way, for reading, writing and trying things; what is refused, and in which words. (What is
# left when something is killed: test-mount-ends.sh. With the kernel's NBD client: test-nbd-kernel.sh.)
# timeout: 400
# asan: yes
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/mounts.sh"

requires_loop
requires_fs
requires mke2fs debugfs e2fsck sfdisk jq findmnt fusermount3 setpriv nsenter unshare

make_server_disk server.img
make_store
sync_disk server.img web01 --read-all

say "the partition with the root, found by reading, by the best way there is"
mkdir mnt
expect_exit 0 wherry mount web01@latest mnt
grep -qE "^web01@1/2 \(ext4 \"root\"\) is mounted on $WORK/mnt, read-only, (through FUSE and a loop device|by the kernel's NBD client) \(/dev/" stdout ||
	die "not said: $(cat stdout)"
[[ ! -s stderr ]] || die "says $(cat stderr)"
mount_partition server.img 2 original ro
same_tree original mnt
for option in ro nosuid nodev; do
	findmnt -n -o OPTIONS mnt | tr , '\n' | grep -qx $option || die "mounted without $option"
done
touch mnt/new 2>/dev/null && die "could be written to"
expect_error "web01@1" wherry delete web01@1
expect_exit 0 wherry mount
grep -qE "^web01@1/2 .* ok +$WORK/mnt$" stdout || die "not listed: $(cat stdout)"
expect_exit 0 wherry mount --json
expect_equal "web01@1/2 true false true $WORK/store" \
	"$(json_get ".mounts[] | select(.directory == \"$WORK/mnt\") | \"\(.reference) \(.read_only) \(.scratch) \(.alive) \(.store)\"")"
umount_ok mnt
nothing_left

say "all three ways"
for via in loop files; do
	mount_ok web01@1 mnt --via $via
	expect_equal "web01@1/2 $via true ext4 root false" \
		"$(json_get '"\(.reference) \(.via) \(.read_only) \(.type) \(.label) \(.journal_replayed)"')"
	same_tree original mnt
	umount_ok mnt
	nothing_left
done
if [[ ! -e /sys/block/nbd0 ]] && ! modprobe -n -q nbd 2>/dev/null; then
	expect_error "web01@1/2: can't be mounted: nbd: this kernel has no NBD client" wherry mount web01@1 mnt --via nbd
fi
mount_ok web01@1/1 mnt # a partition that is named
expect_equal menu "$(cat mnt/grub/grub.cfg)"
umount_ok mnt/ # as it was typed, not as it was mounted
(cd mnt && expect_exit 0 wherry mount web01@1 . && cd .. && expect_exit 0 wherry umount "$WORK/original/../mnt")
nothing_left

say "a disk without a partition table"
truncate -s 32M plain.img
mke2fs -q -F -t ext4 -d boot plain.img
sync_disk plain.img plain
for via in loop files; do
	mount_ok plain@1 mnt --via $via
	expect_equal plain@1 "$(json_get .reference)"
	expect_equal menu "$(cat mnt/grub/grub.cfg)"
	umount_ok mnt
done

say "a clone is changed, its image is not"
expect_exit 0 wherry clone web01@1 copy
mount_ok copy mnt --rw
expect_equal "copy/2 false false" "$(json_get '"\(.reference) \(.read_only) \(.scratch)"')"
mkdir other
expect_error "copy.*wherryfs|copy.*open" wherry mount copy other --rw
cp -a root/home/files/random mnt/home/written
sync mnt/home/written
umount_ok mnt
nothing_left
expect_exit 0 wherry export copy copy.img --progress=none
check_ext4 copy.img 2
debugfs -R "dump /home/written written" "copy.img?offset=$(partition_start copy.img 2)" >debugfs.log 2>&1
check_same root/home/files/random written
check_export web01@1 server.img
mount_ok copy mnt
[[ -e mnt/home/written ]] || die "what was written is not there"
touch mnt/new 2>/dev/null && die "could be written to"
umount_ok mnt

say "a new disk"
expect_exit 0 wherry create new 32M
mkdir tree
expect_exit 0 wherry fs tree --disk new
mke2fs -q -F -t ext4 -L fresh tree/new/disk.raw
expect_exit 0 wherry umount tree
nothing_left
mount_ok new mnt --rw
expect_equal fresh "$(json_get .label)"
echo first >mnt/file
umount_ok mnt
expect_exit 0 wherry image new
mount_ok new@1 mnt
expect_equal first "$(cat mnt/file)"
umount_ok mnt

say "an image to try things with"
mount_ok web01@1 mnt --scratch
expect_equal "false true" "$(json_get '"\(.read_only) \(.scratch)"')"
echo changed >mnt/etc/fstab
rm mnt/home/files/random
sync mnt/etc/fstab
expect_equal changed "$(cat mnt/etc/fstab)"
umount_ok mnt
nothing_left
check_export web01@1 server.img
mount_ok web01@1 mnt --scratch --rw --via loop
expect_equal "/dev/sda2 / ext4" "$(cat mnt/etc/fstab)"
umount_ok mnt

say "images of servers that run: what their next start would have found"
# dirty NAME TYPE: an image of a file system that was mounted, in a journal of which there is more than in its place.
dirty() {
	local loop
	attach_loop "$1.img"
	loop=$LOOP
	mount_at writing "$loop"
	cp -a root/etc root/home/files/source writing/
	sync writing
	for name in a b c; do
		echo "$name" >"writing/$name"
		sync "writing/$name"
	done
	cp --sparse=always "$1.img" "$1-running.img"
	unmount writing
	detach_loop "$loop"
	sync_disk "$1-running.img" "$1"
	attach_loop "$1-running.img"
	loop=$LOOP
	mount_at as-shown -o "ro${2:+,$2}" "$loop"
	mount_ok "$1@1" mnt --via loop
	expect_equal true "$(json_get .journal_replayed)" "$1: a journal was replayed"
	same_tree as-shown mnt
	expect_equal "a b c" "$(cat mnt/a mnt/b mnt/c | tr '\n' ' ' | sed 's/ $//')"
	umount_ok mnt
	expect_exit 0 wherry mount "$1@1" mnt
	grep -q "its journal was replayed into an overlay that vanishes" stdout || die "not said: $(cat stdout)"
	umount_ok mnt
	unmount as-shown
	detach_loop "$loop"
}
truncate -s 64M ext4.img
mke2fs -q -F -t ext4 ext4.img
dirty ext4 ""
mount_ok ext4@1 mnt --via files
expect_equal "a b c" "$(cat mnt/a mnt/b mnt/c | tr '\n' ' ' | sed 's/ $//')"
umount_ok mnt
expect_exit 0 wherry clone ext4@1 running
expect_error "running: .*if its journal has to be replayed, that writes to it" wherry mount running mnt --via loop
mount_ok running mnt --rw
expect_equal a "$(cat mnt/a)"
umount_ok mnt
if command -v mkfs.xfs >/dev/null && grep -qw xfs /proc/filesystems; then
	truncate -s 300M xfs.img
	mkfs.xfs -q xfs.img
	dirty xfs nouuid
fi
nothing_left

say "two of the same UUID at once"
if command -v mkfs.xfs >/dev/null && grep -qw xfs /proc/filesystems; then
	expect_exit 0 wherry clone xfs@1 xfs-copy
	mount_ok xfs@1 mnt
	mount_ok xfs-copy other --rw
	echo more >other/more
	umount_ok other
	umount_ok mnt
fi
if command -v mkfs.btrfs >/dev/null && grep -qw btrfs /proc/filesystems; then
	truncate -s 128M btrfs.img
	mkfs.btrfs -q -r boot btrfs.img >mkfs.log 2>&1
	sync_disk btrfs.img btrfs
	attach_loop btrfs.img
	mount_at original-btrfs "$LOOP"
	status=0
	wherry mount btrfs@1 mnt --via loop >stdout 2>stderr || status=$?
	if ((status == 0)); then # from Linux 6.7 on
		expect_equal menu "$(cat mnt/grub/grub.cfg)"
		umount_ok mnt
	else
		grep -q "a Btrfs of the same UUID is mounted on this host.*--via files" stderr || die "not said: $(cat stderr)"
	fi
	unmount original-btrfs
	detach_loop "$LOOP"
fi
nothing_left

say "when it is not clear which file system is meant"
truncate -s 48M unclear.img
sfdisk -q unclear.img <<-END
	label: gpt
	size=16MiB, type=L
	size=16MiB, type=L
	size=8MiB, type=S
END
ext4_in_partition unclear.img 1 boot -L one
ext4_in_partition unclear.img 2 boot
swap_in_partition unclear.img 3
sync_disk unclear.img unclear
expect_error 'unclear@1: it is not clear which .*none has the root of a system in it: 1 \(ext4 "one", 16.0 MiB\), 2 \(ext4, 16.0 MiB\); name one, as in unclear@1/2' \
	wherry mount unclear@1 mnt
debugfs -w -R "mkdir etc" "unclear.img?offset=$(partition_start unclear.img 1)" >debugfs.log 2>&1
debugfs -w -R "write root/usr/lib/os-release etc/os-release" "unclear.img?offset=$(partition_start unclear.img 1)" >debugfs.log 2>&1
sync_disk unclear.img unclear
mount_ok unclear@2 mnt
expect_equal unclear@2/1 "$(json_get .reference)"
umount_ok mnt
debugfs -w -R "mkdir etc" "unclear.img?offset=$(partition_start unclear.img 2)" >debugfs.log 2>&1
debugfs -w -R "write root/usr/lib/os-release etc/os-release" "unclear.img?offset=$(partition_start unclear.img 2)" >debugfs.log 2>&1
sync_disk unclear.img unclear
expect_error "more than one has the root" wherry mount unclear@latest mnt
expect_error "unclear@1/3: is swap, which has no files" wherry mount unclear@1/3 mnt
expect_error "unclear@1.*4.*there are|partition 4" wherry mount unclear@1/4 mnt
expect_error "neither partitions nor a file system" eval 'wherry create void 1M >/dev/null && wherry mount void mnt'

say "who isn't root"
chmod 755 "$WORK"
mkdir -m 700 run user
cp -a store user-store
chown -R 65534:65534 run user user-store
# With a /dev/fuse as it is wherever there is udev, in mounts of their own, where that can be put into the place of another.
mknod -m 666 fuse c 10 229
start unshare --mount --propagation private bash -c "mount --bind fuse /dev/fuse && mount -o remount,dev,bind /dev/fuse; touch ready; exec sleep 1000"
holder=$PID
wait_until 5 test -e ready
there() {
	nsenter --target "$holder" --mount bash -c 'cd "$0" && exec "$@"' "$WORK" "$@"
}
as_user() {
	there setpriv --reuid 65534 --regid 65534 --clear-groups env XDG_RUNTIME_DIR="$WORK/run" WHERRY_STORE="$WORK/user-store" "$@"
}
expect_exit 0 as_user wherry mount web01@1 user
grep -q "web01@1/2 (ext4 \"root\") is mounted on $WORK/user, read-only, read through FUSE, without the kernel's code for it" stdout ||
	die "not said: $(cat stdout)"
as_user diff -r --no-dereference -x secret root user >tree.diff 2>&1 || grep -v lost+found tree.diff && die "differ: $(head -n 5 tree.diff)"
expect_equal secret "$(as_user cat user/etc/secret)" "who may read the image may read all that is in it"
there ls user 2>/dev/null && die "others can look into it, root among them"
expect_exit 0 as_user wherry mount --json
expect_equal "web01@1/2 files true" "$(json_get '.mounts[] | "\(.reference) \(.via) \(.read_only)"')"
expect_error "user: .*is mounted there already" as_user wherry mount web01@1 user
expect_exit 0 as_user wherry umount user
there grep -q " $WORK/user " /proc/self/mountinfo && die "still mounted"
nothing_left
expect_exit 0 as_user wherry mount web01@1/1 user
kill_servers
expect_exit 0 as_user wherry mount
grep -q "^web01@1/1 .* dead " stdout || die "not said: $(cat stdout)"
expect_exit 0 as_user wherry umount user
there grep -q " $WORK/user " /proc/self/mountinfo && die "still mounted"
nothing_left
expect_error "web01@1/2: can't be mounted for writing: nbd: .*; loop: loop devices are root's; files: .*read only" \
	as_user wherry mount web01@1 user --scratch
expect_error "copy/2: can't be mounted: .*files: only images.*'wherry image copy' makes one" as_user wherry mount copy user
expect_error "loop devices are root's" as_user wherry mount web01@1 user --via loop
stop_process "$holder"
mount_ok web01@1 mnt --via files -o allow_other,umask=022
setpriv --reuid 65534 --regid 65534 --clear-groups cat mnt/etc/fstab >as-other
check_same root/etc/fstab as-other
setpriv --reuid 65534 --regid 65534 --clear-groups cat mnt/etc/secret 2>/dev/null && die "read what is root's alone"
umount_ok mnt
mount_ok web01@1 mnt --via files -o allow_other,uid=65534
expect_equal secret "$(setpriv --reuid 65534 --regid 65534 --clear-groups cat mnt/etc/secret)" "who it was given to may read all of it"
umount_ok mnt
nothing_left

say "what is refused"
expect_error "REF is missing" wherry mount --rw
expect_error "DIR is missing" wherry mount web01@1
expect_error "disk web02: there is none of that name" wherry mount web02 mnt
expect_error "image web01@7: there is none of that number" wherry mount web01@7 mnt
expect_error "nosuch: No such file or directory" wherry mount web01@1 nosuch
expect_error "server.img: not a directory" wherry mount web01@1 server.img
expect_error "store/locks: is in the store itself" wherry mount web01@1 store/locks
expect_error "web01@1 is an image, which never changes; --scratch.*'wherry clone'" wherry mount web01@1 mnt --rw
expect_error "web01 is live content" wherry mount web01 mnt --scratch
expect_error "disk web01: it mirrors .*server.img, .*the next round overwrites; 'wherry clone web01@latest NEW'" wherry mount web01 mnt --rw
expect_error "'rw' is what --rw is for" wherry mount web01@1 mnt -o noatime,rw
expect_error "'loop' is decided here, or has an option of its own" wherry mount web01@1 mnt -o loop
expect_error "--via: 'best' is not one of: nbd loop files" wherry mount web01@1 mnt --via best
expect_error "--via files: reads only" wherry mount web01@1 mnt --via files --scratch
expect_error "--rw: takes no value" wherry mount web01 mnt --rw=mirror
mount_at taken -t tmpfs tmpfs
expect_error "taken: tmpfs is mounted there already" wherry mount web01@1 taken
expect_error "taken: tmpfs is mounted there, and not by wherry; 'umount taken'" wherry umount taken
expect_error "mnt: nothing is mounted there" wherry umount mnt
expect_error "nosuch: No such file" wherry umount nosuch
mount_ok web01@1 mnt -o noexec,noatime
findmnt -n -o OPTIONS mnt | tr , '\n' | grep -qx noexec || die "an option was left out"
expect_error "mnt: web01@1/2 is mounted there already|mnt: /dev/.* is mounted there already" wherry mount plain@1 mnt
umount_ok mnt
expect_error "mnt.*[Bb]ad option|mnt.*bad option" wherry mount web01@1 mnt --via loop -o nosuchoption=1
nothing_left

say "the tree of everything"
expect_exit 0 wherry fs tree --json
expect_equal "$WORK/store $WORK/tree" "$(json_get '"\(.store) \(.directory)"')"
cmp tree/web01/images/1/disk.raw server.img
umount_ok tree
nothing_left
start bash -c 'exec wherry fs tree --foreground --read-only'
wait_until 10 test -e tree/web01/images/1/disk.raw
(: >>tree/new/disk.raw) 2>/dev/null && die "written to what is read-only"
stop_process "$PID"
nothing_left
expect_error "no such|nosuch" wherry fs nosuch
expect_error "disk web09: there is none" wherry fs tree --disk web09
expect_error "is in the store itself" wherry fs store/locks
expect_error "--json: not together with --foreground" wherry fs tree --foreground --json
unmount original
