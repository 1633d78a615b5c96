#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A store as files: names, sizes and content of disks, partitions and images, against exports and by tools that know nothing of stores; live disks
# that are written to through file systems; what is refused; how it ends.
# timeout: 300
# asan: yes
. "$(dirname "$0")/functions.sh"

requires_loop
requires_fs
requires sfdisk e2fsck mkfs.ext4 qemu-img jq fallocate
HOLES=$WHERRY_TEST_TOOLS/file_holes
MNT=$WORK/mnt

# reason PATTERN: the log has it.
reason() {
	grep -qE -- "$1" "$FS_LOG" || die "no reason like /$1/ in the log: $(cat "$FS_LOG")"
}
# expect_errno TEXT COMMAND…: fails, and says this of the error.
expect_errno() {
	local text=$1
	shift
	! "$@" >"$WORK/stdout" 2>"$WORK/stderr" || die "succeeds: $*"
	grep -q "$text" "$WORK/stderr" || die "$* says not '$text' but: $(cat "$WORK/stderr")"
}
# whole COMMAND…: again until nobody has the disk open any more; close() doesn't wait for that.
is_closed() {
	[[ $(wherry disks --json | jq -r --arg name "$1" '.disks[] | select(.name == $name) | .open_by') == null ]]
}

make_store
make_disk_gpt disk.img 256M
sync_disk disk.img web01
cp --sparse=always disk.img first.img
random_range disk.img 10M 300K changed # in the EFI partition, which is read whole
sync_disk disk.img web01 --label "after a change"
expect_exit 0 wherry clone web01@1 test
expect_exit 0 wherry create live 64M

make_disk_mbr mbr.img 64M
sync_disk mbr.img mbr
truncate -s 32M large-sectors.img
attach_loop large-sectors.img --sector-size 4096
printf 'label: gpt\nlabel-id: 5741B0A7-0000-4000-8000-000000000001\nsize=1000, type=L, name="a, b"\ntype=L\n' |
	sfdisk -q --no-reread --no-tell-kernel "$LOOP"
sfdisk --dump "$LOOP" | sed "s#${LOOP}p*#disk.raw#" >large-sectors.layout
detach_loop "$LOOP"
sync_disk large-sectors.img large-sectors

say "names, sizes, modes"
start_fs "$MNT"
expect_equal "large-sectors live mbr test web01" "$(ls "$MNT" | xargs)"
expect_equal "disk.raw images layout part" "$(ls "$MNT/web01" | xargs)"
expect_equal "1 2 latest" "$(ls "$MNT/web01/images" | xargs)"
expect_equal "disk.raw files info.json layout part" "$(ls "$MNT/web01/images/1" | xargs)"
expect_equal "1.raw 2.raw 3.raw" "$(ls "$MNT/web01/images/1/part" | xargs)"
expect_equal "1.raw 2.raw 3.raw" "$(ls "$MNT/web01/part" | xargs)"
expect_equal "" "$(ls "$MNT/live/part" "$MNT/live/images" | grep -v : | xargs)"
expect_equal 2 "$(readlink "$MNT/web01/images/latest")"
expect_equal "$(stat -c %s disk.img) 400 regular file" "$(stat -c '%s %a %F' "$MNT/web01/images/1/disk.raw")"
expect_equal "$((64 << 20)) 600 regular file" "$(stat -c '%s %a %F' "$MNT/live/disk.raw")"
expect_equal "400" "$(stat -c %a "$MNT/web01/disk.raw")" "a mirror"
expect_equal "$(partition_size disk.img 2)" "$(stat -c %s "$MNT/web01/images/latest/part/2.raw")"
expect_equal "500 directory" "$(stat -c '%a %F' "$MNT/web01/images")"
expect_equal "$(wherry images web01 --json | jq -r '.images[1].created_at')" "$(date -u -r "$MNT/web01/images/2" +%FT%TZ)"
for name in web01@1 web0 Web01 . .. images; do
	[[ $name == . || $name == .. || ! -e $MNT/$name ]] || die "there is a $name"
done
for name in 0 3 01 +1 4294967297 lates latest/; do
	[[ $name == latest/ || ! -e $MNT/web01/images/$name ]] || die "there is an image $name"
done
[[ ! -e $MNT/web01/part/4.raw && ! -e $MNT/web01/part/01.raw && ! -e $MNT/web01/part/1 && ! -e $MNT/web01/images/1/lv ]]

say "what is said of an image"
diff <(wherry images web01 --json | jq -S '.images[1]') <(jq -S . "$MNT/web01/images/2/info.json")
expect_equal "after a change" "$(jq -r .label "$MNT/web01/images/latest/info.json")"
for folder in images/1 images/2 .; do
	diff "$MNT/web01/$folder/layout" <(cd "$MNT/web01/$folder" && sfdisk --dump disk.raw)
done
expect_equal "" "$(cat "$MNT/live/layout")"
diff "$MNT/mbr/images/1/layout" <(cd "$MNT/mbr/images/1" && sfdisk --dump disk.raw)
expect_equal "1.raw 5.raw 6.raw" "$(ls "$MNT/mbr/part" | xargs)"
diff large-sectors.layout "$MNT/large-sectors/images/1/layout"
expect_equal $((1000 * 4096)) "$(stat -c %s "$MNT/large-sectors/images/1/part/1.raw")"

say "content, read by one, by many, from the end, in pieces"
cmp "$MNT/web01/images/1/disk.raw" first.img
cmp "$MNT/web01/images/2/disk.raw" disk.img
cmp "$MNT/web01/disk.raw" disk.img
cmp "$MNT/test/disk.raw" first.img
cmp "$MNT/web01/images/2/part/2.raw" <(partition_bytes disk.img 2)
cmp "$MNT/web01/images/1/part/3.raw" <(partition_bytes first.img 3)
dd if="$MNT/web01/images/2/disk.raw" bs=8M iflag=direct status=none | cmp - disk.img
for ((i = 0; i < 4; i++)); do
	start cmp -i $((i * (64 << 20))) -n $((64 << 20)) "$MNT/web01/images/2/disk.raw" disk.img
	pids[i]=$PID
done
for pid in "${pids[@]}"; do
	finish "$pid"
done
expect_equal "$(tail -c 777 disk.img | sha256sum)" "$(tail -c 777 "$MNT/web01/images/2/disk.raw" | sha256sum)"
expect_exit 0 qemu-img compare -f raw -F raw "$MNT/web01/images/latest/disk.raw" disk.img
expect_equal raw "$(qemu-img info -f raw --output=json "$MNT/web01/images/1/part/2.raw" | jq -r .format)"

say "holes"
"$HOLES" "$MNT/web01/images/1/disk.raw" >holes.image
grep -q ^hole holes.image
cp --sparse=auto "$MNT/web01/images/1/disk.raw" copy.img
check_same first.img copy.img
expect_number "$(du -k copy.img | cut -f 1) < $(du -k --apparent-size copy.img | cut -f 1) / 2" "a copy has the holes, too"
"$HOLES" "$MNT/web01/images/1/part/2.raw" >/dev/null
expect_equal "hole 0 $((64 << 20))" "$("$HOLES" "$MNT/live/disk.raw")"

say "by the kernel, and by e2fsck"
expect_exit 0 e2fsck -fn "$MNT/web01/images/1/part/2.raw"
mount_at loop -o loop,ro,noload "$MNT/web01/images/2/part/2.raw"
mkdir original
mount_partition disk.img 2 "$WORK/original" ro,noload
diff -r original loop
unmount loop
unmount_partition original

say "live: a file system is made, written to, and looked at, while images are made of it"
mkfs.ext4 -q "$MNT/live/disk.raw"
mount_writable "$MNT/live/disk.raw" loop discard
cp -r "$FILES/source" loop/
sync loop/source
[[ $(wherry disks --json | jq -r '.disks[] | select(.name == "live") | .open_by') == wherryfs* ]]
expect_error "live: locked by wherryfs live \(pid" wherry export live -
expect_exit 0 wherry image live --json
expect_equal frozen "$(json_get .consistency)"
wait_until 3 test -e "$MNT/live/images/1"
expect_equal 1 "$(readlink "$MNT/live/images/latest")"
rm -r loop/source/store
fstrim loop
unmount loop
wait_until 20 is_closed live
expect_exit 0 e2fsck -fn "$MNT/live/disk.raw"
wait_until 20 is_closed live
expect_exit 0 wherry export live live.img --progress=none
expect_exit 0 e2fsck -fn live.img
cmp live.img "$MNT/live/disk.raw"
wait_until 20 is_closed live

say "a partition of a clone, through the kernel"
mount_writable "$MNT/test/part/2.raw" loop
echo "written here" >loop/note
unmount loop
wait_until 20 is_closed test
expect_exit 0 e2fsck -fn "$MNT/test/part/2.raw"
wait_until 20 is_closed test
expect_exit 0 wherry export test/2 part.img --progress=none
expect_equal "written here" "$(debugfs -R 'cat note' part.img 2>/dev/null)"
cmp "$MNT/web01/images/1/disk.raw" first.img

say "punched, zeroed, written, up to the end and not beyond"
live=$MNT/live/disk.raw
head -c $((64 << 20)) /dev/urandom >model.img
dd if=model.img of="$live" bs=1M conv=notrunc,fsync status=none
fallocate --punch-hole --offset 1000000 --length 3000000 "$live"
fallocate --zero-range --keep-size --offset $((20 << 20)) --length 65537 "$live"
zero_range model.img 1000000 3000000
zero_range model.img $((20 << 20)) 65537
cmp model.img "$live"
"$HOLES" "$live" | grep -q "^hole 1048576 "
expect_errno "Operation not supported" fallocate --offset 0 --length 4096 "$live"
expect_errno "Operation not permitted" fallocate --zero-range --offset $((64 << 20)) --length 4096 "$live"
expect_errno "No space left" dd if=/dev/zero of="$live" bs=4096 count=2 seek=$(((64 << 20) / 4096 - 1)) conv=notrunc
zero_range model.img $(((64 << 20) - 4096)) 4096
cmp model.img "$live"
printf 'synced' | dd of="$live" bs=6 conv=notrunc oflag=sync status=none
printf 'synced' | dd of=model.img bs=6 conv=notrunc status=none
cmp model.img "$live"

say "what can't be"
expect_errno "Operation not permitted" truncate -s 1M "$live"
reason "live: a disk can't be resized here"
expect_errno "Operation not permitted" truncate -s 1M "$MNT/test/part/2.raw"
reason "test/2: partitions can't be resized yet"
expect_errno "Operation not permitted" dd if=/dev/zero of="$live" bs=1M count=1
truncate -s 64M "$live"
expect_errno "Operation not permitted" bash -c "echo >'$MNT/test/layout'"
expect_errno "Operation not permitted" touch "$MNT/test/new"
expect_errno "Operation not permitted" rm "$MNT/test/layout"
expect_errno "Operation not permitted" mkdir "$MNT/new"
expect_errno "Operation not permitted" chmod 666 "$live"
expect_errno "Read-only file system" dd if=/dev/zero of="$MNT/test/../web01/images/1/disk.raw" bs=1 count=1 conv=notrunc
reason "web01@1: an image can't be written to"
expect_errno "Read-only file system" dd if=/dev/zero of="$MNT/web01/disk.raw" bs=1 count=1 conv=notrunc
reason "disk web01: it is a mirror"
expect_errno "Read-only file system" rm "$MNT/web01/images/1/info.json"
cmp "$live" model.img
wait_until 20 is_closed live

say "somebody else has the disk"
first_pid=$FS_PID first_log=$FS_LOG
start_fs other
exec 7<other/live/disk.raw
FS_LOG=$first_log
expect_errno "Device or resource busy" head -c 1 "$live"
reason "live: locked by wherryfs live \(pid $FS_PID on"
ls -l "$MNT/live" >/dev/null
exec 7<&-
wait_until 20 is_closed live
head -c 1 "$live" >/dev/null
wait_until 20 is_closed live
stop_fs other
FS_PID=$first_pid

say "an image that somebody looks at stays, and goes when nobody does"
exec 7<"$MNT/web01/images/1/disk.raw"
expect_error "in use by .*" wherry delete web01@1
exec 7<&-
wait_until 10 eval "wherry images --json | jq -e '[.images[] | select(.disk == \"web01\" and .number == 1 and .in_use_by != \"clone test\")] == []'"
expect_exit 0 wherry remove test
wait_until 5 eval "[[ ! -e $MNT/test ]]"
expect_exit 0 wherry delete web01@1
wait_until 5 eval "[[ ! -e $MNT/web01/images/1 ]]"
expect_equal "2 latest" "$(ls "$MNT/web01/images" | xargs)"

say "a disk of the same name is another one"
expect_exit 0 wherry create test 1M
wait_until 5 test -e "$MNT/test/disk.raw"
expect_equal $((1 << 20)) "$(stat -c %s "$MNT/test/disk.raw")"
ino=$(stat -c %i "$MNT/test/disk.raw")
cmp -n 1048576 "$MNT/test/disk.raw" /dev/zero
wait_until 20 is_closed test
expect_exit 0 wherry remove test
expect_exit 0 wherry create test 1M
sleep 1.1
expect_number "$ino != $(stat -c %i "$MNT/test/disk.raw")"

say "room, as that of the store"
expect_equal "$(stat -f -c '%S %b' "$WHERRY_STORE")" "$(stat -f -c '%S %b' "$MNT/web01")"

say "the same numbers after another mount"
numbers() {
	(cd "$MNT" && find . -path '*/files/*' -prune -o -printf '%p %i\n') | sort
}
numbers >before
stop_fs "$MNT"
expect_equal "" "$(find "$WHERRY_STORE/journal" -name '*.wj')" "what is left of the journal"
start_fs "$MNT"
diff before <(numbers)
expect_equal "" "$(numbers | cut -d ' ' -f 2 | sort | uniq -d)" "numbers that two have"

say "1,000 images are listed at once"
images=1000
[[ -n ${ASAN_OPTIONS:-}${TSAN_OPTIONS:-} && $WHERRY_BUILD == *san* ]] && images=100
expect_exit 0 "$WHERRY_TEST_TOOLS/make_images" "$WHERRY_STORE" test $images
wait_until 5 test -e "$MNT/test/images/$images"
ls "$MNT" >/dev/null
began=$(date +%s%N)
expect_equal $((images + 1)) "$(ls -l "$MNT/test/images" | tail -n +2 | wc -l)"
took_ms=$((($(date +%s%N) - began) / 1000000))
say "  $images in $took_ms ms"
stop_fs "$MNT"

say "told to end: with nothing open, and with something"
for signal in TERM INT HUP; do
	start_fs "$MNT"
	kill "-$signal" "$FS_PID"
	finish "$FS_PID" || die "status $? after SIG$signal"
	! _is_mounted "$MNT"
done
start_fs "$MNT"
exec 7<>"$MNT/live/disk.raw"
printf 'not synced' >&7
kill "$FS_PID"
finish "$FS_PID" || die "status $? after SIGTERM with something open"
! _is_mounted "$MNT"
! printf 'too late' >&7 2>/dev/null
exec 7>&-
wherry export live live.img --progress=none
expect_equal "not synced" "$(head -c 10 live.img)"

say "told to end: what others have mounted there stays, below it and in its place"
mount_at "$WORK/theirs" -t tmpfs below
start_fs "$WORK/theirs"
exec 7<"$WORK/theirs/live/disk.raw"
kill "$FS_PID"
finish "$FS_PID" || die "status $? after SIGTERM, with a mount below"
exec 7<&-
expect_equal below "$(findmnt -n -o SOURCE --mountpoint "$WORK/theirs")"
start_fs "$WORK/theirs"
exec 7<"$WORK/theirs/live/disk.raw"
umount --lazy "$WORK/theirs"
mount_at "$WORK/theirs" -t tmpfs over
kill "$FS_PID"
finish "$FS_PID" || die "status $? after SIGTERM, with a mount in its place"
exec 7<&-
expect_equal "below over" "$(findmnt -n -o SOURCE --mountpoint "$WORK/theirs" | xargs)"
umount "$WORK/theirs"
unmount "$WORK/theirs"

say "in the background; the mount of one that was killed is taken away"
odd="$WORK/a folder, oddly \\named"
mkdir "$odd"
at_exit umount --quiet --lazy "$odd"
server() {
	pgrep -f "^wherryfs $WHERRY_STORE .*oddly"
}
expect_exit 0 wherryfs "$WHERRY_STORE" "$odd"
ls "$odd/live" >/dev/null
expect_errno "a wherryfs is mounted there already" wherryfs "$WHERRY_STORE" "$odd"
kill -KILL "$(server)"
wait_until 10 eval '! ls "$odd"'
(cd "$(dirname "$odd")" && expect_exit 0 wherryfs store "$(basename "$odd")")
ls "$odd/live" >/dev/null
umount "$odd"
wait_until 10 eval '! server'

say "mistakes"
expect_exit 2 wherryfs "$WHERRY_STORE"
expect_exit 2 wherryfs "$WHERRY_STORE" "$MNT" -o cache=1K
expect_exit 2 wherryfs "$WHERRY_STORE" "$MNT" -o ro,scratch
expect_exit 2 wherryfs "$WHERRY_STORE" "$MNT" -x
expect_errno "no such store\|not a store\|No such file" wherryfs "$WORK/nowhere" "$MNT"
expect_errno "disk web1:" wherryfs "$WHERRY_STORE" "$MNT" -o disk=web1
expect_errno "root=web01/images/9: there is no 9 in it" wherryfs "$WHERRY_STORE" "$MNT" -o root=web01/images/9
expect_errno "No such file" wherryfs "$WHERRY_STORE" "$MNT/nowhere"
expect_errno "unknown option(s): \`-o nonsense'$" wherryfs "$WHERRY_STORE" "$MNT" -o nonsense
expect_errno "a store is a folder" wherryfs "$WHERRY_STORE" disk.img
expect_errno "web01/disk.raw is a file" wherryfs "$WHERRY_STORE" "$MNT" -o root=web01/disk.raw
! _is_mounted "$MNT"
expect_exit 0 wherryfs -h
expect_number "$(awk '{ print length }' stdout | sort -n | tail -n 1) <= 80" "the help fits"

say "parts of the tree, as folder and as file; one disk; read-only; scratch"
start_fs "$MNT" -o root=web01/images/latest
expect_equal "disk.raw files info.json layout part" "$(ls "$MNT" | xargs)"
stop_fs "$MNT"
: >file.raw
expect_exit 0 wherryfs "$WHERRY_STORE" file.raw -o root=web01/images/2/part/2.raw
cmp file.raw <(partition_bytes disk.img 2)
umount file.raw
start_fs "$MNT" -o disk=live,ro
expect_equal live "$(ls "$MNT")"
[[ ! -e $MNT/web01 ]]
expect_errno "Read-only file system" dd if=/dev/zero of="$MNT/live/disk.raw" bs=1 count=1 conv=notrunc
expect_equal "not synced" "$(head -c 10 "$MNT/live/disk.raw")"
stop_fs "$MNT"
start_fs "$MNT" -o scratch,cache=8M
mount_writable "$MNT/web01/images/2/part/2.raw" loop
echo scratch >loop/note
unmount loop
mount_at loop -o loop,ro "$MNT/web01/images/2/part/2.raw"
expect_equal scratch "$(cat loop/note)"
unmount loop
stop_fs "$MNT"
check_export web01@2 disk.img
expect_exit 0 wherry check --deep

say "damage is an error for who reads it, and the log says what it is"
segment=$(find "$WHERRY_STORE/segments" -name '*.seg' | sort | head -n 1)
byte_flip "$segment" 100000
start_fs "$MNT"
status=0
cmp "$MNT/web01/images/2/disk.raw" disk.img 2>err || status=$?
expect_equal 2 $status
grep -q "Input/output error" err
reason "web01@2: [0-9]+ bytes at [0-9]+ are damaged"
cmp "$MNT/web01/images/2/part/3.raw" <(partition_bytes disk.img 3)
stop_fs "$MNT"
byte_flip "$segment" 100000

say "a store that can't be written to"
mount --bind "$WHERRY_STORE" "$WHERRY_STORE"
mount_points+=("$WHERRY_STORE")
mount -o remount,bind,ro "$WHERRY_STORE"
start_fs "$MNT"
cmp "$MNT/web01/images/2/disk.raw" disk.img
expect_equal "not synced" "$(head -c 10 "$MNT/live/disk.raw")"
expect_errno "Read-only file system" dd if=/dev/zero of="$MNT/live/disk.raw" bs=1 count=1 conv=notrunc
stop_fs "$MNT"
unmount "$WHERRY_STORE"
