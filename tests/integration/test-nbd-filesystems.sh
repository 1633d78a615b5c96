#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Real file systems on live disks: nbdfuse makes a file of a disk, losetup a device of the file, and the kernel's ext4, xfs and btrfs are
# made, mounted and written there. Images that are made meanwhile, frozen or in the middle of it all, are whole; so is what a killed
# server leaves. By default ext4 goes all the way and the others a short one; WHERRY_TEST_THOROUGH=1 does it all with each, with more files.
# timeout: 600
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdfuse nbdcopy nbdinfo jq python3 rsync diff mke2fs e2fsck resize2fs sfdisk fsfreeze findmnt
requires mkfs.xfs xfs_repair mkfs.btrfs btrfs
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"
requires_loop
[[ -c /dev/fuse ]] || skip "needs /dev/fuse"

# requires_file_system TYPE: one that this kernel mounts.
requires_file_system() {
	grep -qw "$1" /proc/filesystems || modprobe "$1" 2>/dev/null || true
	grep -qw "$1" /proc/filesystems || skip "needs a kernel with $1"
}
for type in ext4 xfs btrfs; do
	requires_file_system $type
done

# ------------------------------------------------------- a disk, as a device

DISK_FILE=$WORK/fuse/disk FUSE_PID=0
mkdir fuse
: >"$DISK_FILE"

# Whatever is mounted is to be let go before its device, and the device before its server; else the kernel waits for who has gone.
let_go() {
	local i
	for ((i = ${#mount_points[@]} - 1; i >= 0; i--)); do
		umount "${mount_points[i]}" || umount --lazy "${mount_points[i]}"
	done
	for ((i = ${#loop_devices[@]} - 1; i >= 0; i--)); do
		losetup --detach "${loop_devices[i]}"
	done
	mount_points=() loop_devices=()
	! findmnt --mountpoint "$DISK_FILE" >/dev/null || umount "$DISK_FILE" || umount --lazy "$DISK_FILE"
}
at_exit let_go

# serve EXPORT [PARAMETER…]: nbdkit, and nbdfuse: DISK_FILE is the disk.
serve() {
	local export=$1
	shift
	start_nbdkit "$PLUGIN" store="$WHERRY_STORE" disk="$export" "$@"
	rm -f fuse.pid
	nbdfuse --pidfile "$WORK/fuse.pid" "$DISK_FILE" "$NBD_URI" 2>fuse.log & # it complains when its server is killed
	FUSE_PID=$!
	started_pids+=("$FUSE_PID")
	wait_until 20 test -s fuse.pid
}

# leave: the other way; the journal is in its place afterwards.
leave() {
	umount "$DISK_FILE"
	finish "$FUSE_PID"
	stop_process "$NBD_PID"
	expect_equal "" "$(find "$WHERRY_STORE/journal" -name '*.wj')" "what is left of the journal"
}

# attach EXPORT: DEVICE is the disk.
attach() {
	serve "$@"
	attach_loop "$DISK_FILE"
	DEVICE=$LOOP
}
detach() {
	detach_loop "$DEVICE"
	leave
}

# -------------------------------------------------------------- file systems

# make_fs TYPE DEVICE-OR-FILE
make_fs() {
	case $1 in
	ext4) mke2fs -q -F -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 "$2" ;;
	xfs) mkfs.xfs -q -f "$2" ;;
	btrfs) mkfs.btrfs -q -f "$2" >/dev/null ;;
	esac
}

# check_fs TYPE FILE WHAT: the file system's own checker finds nothing to complain of.
check_fs() {
	local status=0
	case $1 in
	ext4) e2fsck -fn "$2" >fsck.log 2>&1 || status=$? ;;
	xfs) xfs_repair -n "$2" >fsck.log 2>&1 || status=$? ;;
	btrfs) btrfs check --readonly --check-data-csum "$2" >fsck.log 2>&1 || status=$? ;;
	esac
	((status == 0)) && return
	sed 's/^/    /' fsck.log >&2
	die "$3: the checker of $1 is not content, status $status"
}

# with_files TYPE FILE COMMAND…: mounted, so that its log is replayed, at $WORK/look while the command runs.
with_files() {
	local type=$1 file=$2 options=rw
	shift 2
	[[ $type != xfs ]] || options=nouuid # its original may be mounted, too
	attach_loop "$file"
	mount_at look -t "$type" -o "$options" "$LOOP"
	"$@"
	unmount look
	detach_loop "$LOOP"
}

# describe DIRECTORY: a line for all that a file system knows of each of its files.
describe() {
	python3 - "$1" <<-'END'
		import hashlib, os, stat, sys
		top = os.fsencode(sys.argv[1])
		links = {}
		for folder, folders, files in os.walk(top):
		    folders[:] = sorted(name for name in folders if name != b"lost+found")
		    for name in [b"."] + sorted(files) + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
		        path = os.path.join(folder, name)
		        status = os.lstat(path)
		        same = links.setdefault(status.st_ino, os.path.relpath(path, top)) if status.st_nlink > 1 and name != b"." else b""
		        content = ""
		        if stat.S_ISLNK(status.st_mode):
		            content = repr(os.readlink(path))
		        elif stat.S_ISREG(status.st_mode):
		            with open(path, "rb") as file:
		                content = hashlib.sha256(file.read()).hexdigest()
		        xattrs = sorted((key, os.getxattr(path, key, follow_symlinks=False))
		                        for key in os.listxattr(path, follow_symlinks=False) if key.startswith("user."))
		        # a folder's size is the file system's, and rsync may touch it again after it has set its time
		        size, time = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
		        print(os.path.relpath(path, top), oct(status.st_mode), status.st_uid, status.st_gid, size, time,
		              status.st_rdev, same, content, xattrs)
	END
}

# check_tree EXPECTED DIRECTORY: the description made earlier is that of what is there now.
check_tree() {
	describe "$2" >described
	cmp -s "$1" described && return
	(set +o pipefail && diff "$1" described | head -n 20 | cut -c 1-300 >&2)
	die "$2 is not what $1 says"
}

# Files of this machine, and what programs that copy files get wrong.
real_files
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || cp -a /usr/share/doc /usr/share/zoneinfo /etc "$FILES/"
(
	cd "$FILES"
	mkdir odd
	: >"odd/ leading and trailing "
	: >odd/$'new\nline' && : >odd/$'tab\t' && : >odd/$'not utf-8 \xff\xfe' && : >odd/-rf && : >'odd/*' && : >'odd/"quotes'\'
	: >odd/"$(printf 'n%.0s' {1..255})"
	mkdir -p "odd/$(printf 'deep/%.0s' {1..40})"
	for ((i = 0; i < 300; i++)); do
		echo "$i" >"odd/many-$i"
	done
	ln -s nowhere odd/dangling
	ln random odd/third-name
	mkfifo odd/fifo
	mknod odd/device c 1 3
	chmod 4711 bin/bash
	chown 12345:54321 empty
	touch -d @1.123456789 odd/-rf
	truncate -s 20M holes-only
	random_range holes-only 15M 5000 holes-only
	python3 - <<-'END'
		import os
		os.setxattr("empty", "user.wherry", bytes(range(256)))
		os.setxattr("odd", "user.folder", b"x" * 500)
	END
)
describe "$FILES" >files.txt

SIZE_ext4=128M SIZE_xfs=320M SIZE_btrfs=256M
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || SIZE_ext4=2G SIZE_xfs=2G SIZE_btrfs=2G

copy_tree() {
	rsync -aHAXS --numeric-ids --delete "$1/" "$2/"
}

# made_files TYPE: the file system on a new disk, mounted, with the files.
made_files() {
	local type=$1 size=SIZE_$1
	expect_exit 0 wherry create "$type" "${!size}"
	attach "$type"
	make_fs "$type" "$DEVICE"
	mount_at mnt -t "$type" "$DEVICE"
	copy_tree "$FILES" mnt
}

# frozen_image TYPE: number 1, of a frozen file system.
frozen_image() {
	fsfreeze --freeze mnt
	expect_exit 0 wherry image "$1" --json
	fsfreeze --unfreeze mnt
	expect_equal "1 frozen" "$(json_get '"\(.image) \(.consistency)"')"
}

# check_image REFERENCE TYPE DESCRIPTION: an export has these files when its log was replayed, and then the checker is content.
check_image() {
	rm -f out.img
	expect_exit 0 wherry export "$1" out.img --progress=none
	with_files "$2" out.img check_tree "$3" look
	check_fs "$2" out.img "$1"
}


# write_files DIRECTORY: one after the other, each synced and then noted in synced.numbers, until it can't or is stopped.
write_files() {
	exec python3 - "$1" <<-'END'
		import os, sys
		for number in range(100000):
		    with open(f"{sys.argv[1]}/{number}", "wb") as file:
		        file.write(b"%08d" % number * (number * 37 % 3000 + 1))
		        file.flush()
		        os.fsync(file.fileno())
		    os.write(1, b"%d\n" % number)
	END
}

# has_synced COUNT
has_synced() {
	(($(wc -l <synced.numbers) >= $1))
}

# check_written DIRECTORY COUNT: the first so many files are there, and right.
check_written() {
	python3 - "$@" <<-'END'
		import sys
		for number in range(int(sys.argv[2])):
		    with open(f"{sys.argv[1]}/{number}", "rb") as file:
		        assert file.read() == b"%08d" % number * (number * 37 % 3000 + 1), number
	END
}

# kill_server: while the file system is mounted. What of the device is gone can be let go.
kill_server() {
	kill -KILL "$NBD_PID"
	finish "$NBD_PID" 2>/dev/null || true
	finish "$WRITER" 2>/dev/null || true # it is told by its file system
	unmount mnt
	detach_loop "$DEVICE"
	umount "$DISK_FILE"
	finish "$FUSE_PID" 2>/dev/null || true
}

# all_the_way TYPE
all_the_way() {
	local type=$1
	say "$type: made, filled, and an image of it while it is frozen"
	make_store
	made_files "$type"
	frozen_image "$type"

	say "$type: an image in the middle of writing, and one after a sync"
	mkdir mnt/second && sync -f mnt
	: >synced.numbers
	start write_files mnt/second >>synced.numbers 2>/dev/null
	WRITER=$PID
	wait_until 20 has_synced 10
	written=$(wc -l <synced.numbers)
	expect_exit 0 wherry image "$type"
	stop_process "$WRITER"
	expect_number "$written < $(wc -l <synced.numbers)" "files were written while the image was made"
	rm -r mnt/source mnt/second
	mv mnt/odd mnt/moved
	sync -f mnt
	describe mnt >synced.txt
	expect_exit 0 wherry image "$type"
	(cd mnt && random_file moved/later 3M later && rm -r licenses)
	describe mnt >last.txt

	say "$type: by rsync back"
	copy_tree mnt back
	diff -r --no-dereference mnt back >diff.out 2>&1 || true
	! grep -v "is a fifo\|is a character special file\|^Only in mnt: lost+found" diff.out || die "what came back is something else"
	check_tree last.txt back
	unmount mnt
	detach
	rm -rf back

	say "$type: what the images hold"
	rm -f out.img
	expect_exit 0 wherry export "$type" out.img --progress=none
	check_fs "$type" out.img "live content"
	with_files "$type" out.img check_tree last.txt look
	if [[ $type == ext4 ]]; then # nothing to be replayed: xfs leaves something in its log on purpose
		expect_exit 0 wherry export ext4@1 frozen.img --progress=none
		check_fs ext4 frozen.img frozen
		[[ $(dumpe2fs -h frozen.img 2>/dev/null) != *needs_recovery* ]] || die "a frozen ext4 that needs recovery"
	fi
	check_image "$type@1" "$type" files.txt
	check_image "$type@3" "$type" synced.txt
	expect_exit 0 wherry export "$type@2" middle.img --progress=none
	with_files "$type" middle.img check_written look/second "$written"
	check_fs "$type" middle.img "in the middle"

	say "$type: the server is killed while files are written"
	attach "$type"
	mount_at mnt -t "$type" "$DEVICE"
	check_tree last.txt mnt
	(cd mnt && random_file moved/synced 2M synced && mv holes moved/ && sync -f .)
	describe mnt >synced.txt
	mkdir mnt/third
	: >synced.numbers
	start write_files mnt/third >>synced.numbers 2>/dev/null
	WRITER=$PID
	wait_until 20 has_synced 20
	kill_server
	attach "$type"
	mount_at mnt -t "$type" "$DEVICE"
	check_written mnt/third "$(wc -l <synced.numbers)"
	rm -rf mnt/third
	check_tree synced.txt mnt
	unmount mnt
	detach
	rm -f out.img
	expect_exit 0 wherry export "$type" out.img --progress=none
	check_fs "$type" out.img "what a killed server left"
	expect_exit 0 wherry check --deep --progress=none
}

# a_short_way TYPE: an image of it, mounted, after a sync.
a_short_way() {
	local type=$1
	say "$type: an image after a sync, and what is there when it was unmounted"
	make_store
	made_files "$type"
	sync -f mnt
	expect_exit 0 wherry image "$type"
	rm -r mnt/source
	unmount mnt
	detach
	check_image "$type@1" "$type" files.txt
	expect_exit 0 wherry export "$type" live.img --progress=none
	check_fs "$type" live.img "live content"
}

all_the_way ext4
for type in xfs btrfs; do
	if [[ ${WHERRY_TEST_THOROUGH:-} == 1 ]]; then
		all_the_way $type
	else
		a_short_way $type
	fi
done

# resize_ext4 [SIZE]: of the device, which is not mounted; as large as the device without SIZE.
resize_ext4() {
	e2fsck -fp "$DEVICE" >fsck.log 2>&1 || die "$(cat fsck.log)"
	resize2fs "$DEVICE" "$@" >resize.log 2>&1 || die "$(cat resize.log)"
}

say "dd of a file system, synced: it is there when the server is killed then"
make_store
random_file raw.img 24M raw
make_fs ext4 raw.img
attach_loop raw.img
mount_at look "$LOOP"
cp -a "$FILES/bin" "$FILES/licenses" look/
describe look >raw.txt
unmount look
detach_loop "$LOOP"
expect_exit 0 wherry create copied 24M
serve copied
dd if=raw.img of="$DISK_FILE" bs=1M conv=fsync,notrunc status=none
kill -KILL "$NBD_PID"
finish "$NBD_PID" 2>/dev/null || true
umount "$DISK_FILE"
finish "$FUSE_PID" 2>/dev/null || true
check_export copied raw.img
check_image copied ext4 raw.txt

say "it grows onto a larger disk, shrinks, and grows again while it is mounted"
expect_exit 0 wherry image copied
expect_exit 0 wherry create larger 1G
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
nbdcopy --destination-is-zero --flush "nbd+unix:///copied@1?socket=$NBD_SOCKET" "nbd+unix:///larger?socket=$NBD_SOCKET"
stop_process "$NBD_PID"
attach larger
resize_ext4
mount_at mnt "$DEVICE"
expect_number "$(df -B1 --output=size mnt | tail -n 1) > 900000000" "bytes of the file system"
check_tree raw.txt mnt
cp -a "$FILES/source" mnt/
describe mnt >last.txt
unmount mnt
resize_ext4 48M
expect_exit 0 wherry image larger
mount_at mnt "$DEVICE"
expect_number "$(df -B1 --output=size mnt | tail -n 1) < 50000000" "bytes of the file system"
check_tree last.txt mnt
# the kernel asks for CAP_SYS_RESOURCE (24), which root in a container may not have
if ((0x$(sed -n 's/^CapEff:\s*//p' /proc/self/status) >> 24 & 1)); then
	resize2fs "$DEVICE" 512M >resize.log 2>&1 || die "$(cat resize.log)"
else
	unmount mnt
	resize_ext4 512M
	mount_at mnt "$DEVICE"
fi
expect_number "$(df -B1 --output=size mnt | tail -n 1) > 450000000" "bytes of the file system"
cp -a "$FILES/odd" mnt/
describe mnt >more.txt
unmount mnt
detach
check_image larger@1 ext4 last.txt
check_image larger ext4 more.txt

say "and with its partition"
expect_exit 0 wherry create parted 256M
attach parted
sfdisk -q "$DEVICE" <<<$'label: gpt\nsize=30MiB' 2>sfdisk.log # without its partitions as devices: who has udev has them
detach
attach parted/1
expect_equal "$(to_bytes 30M)" "$(size_of "$DEVICE")"
dd if=raw.img of="$DEVICE" bs=1M conv=fsync status=none
detach
attach parted
sfdisk -q -N 1 "$DEVICE" <<<"size=+" 2>sfdisk.log
detach
attach parted/1
expect_number "$(size_of "$DEVICE") > 250000000" "bytes of the partition"
resize_ext4
mount_at mnt "$DEVICE"
expect_number "$(df -B1 --output=size mnt | tail -n 1) > 200000000" "bytes of the file system"
check_tree raw.txt mnt
unmount mnt
detach
check_image parted/1 ext4 raw.txt
expect_exit 0 wherry check --deep --progress=none
