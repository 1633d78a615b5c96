#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The files inside of images, as wherryfs shows them: the same as what the kernel shows of the same partition, line by line; who may read them; what is said where there are none;
# what happens when a reader is killed.
# timeout: 300
# asan: yes
. "$(dirname "$0")/functions.sh"

requires_loop
requires_fs
requires sfdisk mkfs.ext4 mkswap getfattr setfattr setfacl getfacl setpriv tar mcopy
MNT=$WORK/mnt
USER_ID=$(id -u nobody)
chmod 755 "$WORK"

# facts FOLDER: everything of everything in it, a line each, in one order. Times of access are none of ours.
facts() {
	(cd "$1" && find . -mindepth 1 -printf '%P %y %m %U %G %s %T@ %C@ %n %l\n' | LC_ALL=C sort)
}
extended() {
	(cd "$1" && find . -print0 | LC_ALL=C sort -z | xargs -0 getfattr -h -d -m - -e hex 2>/dev/null)
}
digests() {
	(cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
}
sets_of_links() {
	(cd "$1" && find . -type f -links +1 -printf '%i %P\n' | LC_ALL=C sort -k 2 | awk '{ if (!($1 in n)) n[$1] = ++c; print n[$1], $2 }')
}

make_store
make_disk_gpt disk.img 256M
mount_partition disk.img 2 "$WORK/kernel"
mkdir kernel/many kernel/hollow kernel/private
(cd kernel/many && seq -f 'a file with number %g' 3000 | xargs -d '\n' touch)
chmod 700 kernel/private
echo secret >kernel/private/secret
echo other >kernel/other
chmod 600 kernel/other
chown $USER_ID kernel/other
ln kernel/random kernel/private/hard-link
ln -s /etc/passwd kernel/absolute
mkfifo kernel/fifo
mknod kernel/zero c 1 5
setfattr -n user.note -v "of one file" kernel/hollow
setfacl -m u:$USER_ID:r kernel/random
setfacl -m u:$USER_ID:rx kernel
truncate -s 200M kernel/sparse
printf end | dd of=kernel/sparse bs=1 seek=$((200 << 20)) conv=notrunc status=none
touch -d 2050-01-02T03:04:05.123456789Z kernel/future
cp "$(command -v id)" kernel/setuid
chmod 4755 kernel/setuid
unmount_partition kernel
mcopy -i "disk.img@@$(partition_start disk.img 1)" -s "$WHERRY_SOURCE/common" ::/
sync_disk disk.img web01
truncate -s 40M plain.img
mkfs.ext4 -q -d "$WHERRY_SOURCE/docs" plain.img
sync_disk plain.img plain

say "what the kernel shows"
mount_partition disk.img 2 "$WORK/kernel" ro,noload
start_fs "$MNT"
files=$MNT/web01/images/1/files/2
facts kernel >kernel.facts
diff kernel.facts <(facts "$files")
diff <(digests kernel) <(digests "$files")
diff <(extended kernel) <(extended "$files")
diff <(sets_of_links kernel) <(sets_of_links "$files")
diff <(cd kernel && getfacl -n random) <(cd "$files" && getfacl -n random)
expect_equal "$(stat -c '%t %T' kernel/zero)" "$(stat -c '%t %T' "$files/zero")"
expect_equal "$(stat -f -c '%S %b %f %c' kernel)" "$(stat -f -c '%S %b %f %c' "$files")"
expect_equal "$(stat -c '%a %u %g %Y %h' kernel)" "$(stat -c '%a %u %g %Y %h' "$files")" "the root"
(cd kernel && tar -c --sort=name --xattrs . | sha256sum) >kernel.tar
diff kernel.tar <(cd "$files" && tar -c --sort=name --xattrs . | sha256sum)
"$WHERRY_TEST_TOOLS/file_holes" "$files/sparse" >holes
expect_number "$(grep -c ^hole holes) >= 1" "a sparse file has its holes"
cmp -n 4096 kernel/bin/bash "$files/bin/bash"

say "many at once, the second time from what the kernel knows"
pids=()
for ((i = 0; i < 4; i++)); do
	start bash -c "cd '$files' && find . -mindepth 1 -printf '%P %y %m %U %G %s %T@ %C@ %n %l\n' | LC_ALL=C sort | cmp - '$WORK/kernel.facts'"
	pids+=("$PID")
done
for pid in "${pids[@]}"; do
	finish "$pid"
done
[[ ! -e $files/nothing && ! -e $files/many/nothing ]]
expect_equal 3000 "$(ls -f "$files/many" | grep -c number)"

say "nothing can be changed, and no device is one"
! touch "$files/new" 2>/dev/null
! rm "$files/random" 2>/dev/null
! chmod 777 "$files/random" 2>/dev/null
! (echo >"$files/random") 2>/dev/null
! head -c 1 "$files/zero" 2>/dev/null

say "another file system, by another reader"
diff -r "$WHERRY_SOURCE/common" "$MNT/web01/images/1/files/1/common"

say "no files: it says why"
expect_equal "1 2 3" "$(ls "$MNT/web01/images/1/files" | xargs)"
expect_equal WHY-NOT.txt "$(ls "$MNT/web01/images/1/files/3")"
grep -q "web01@1/3: swap space" "$MNT/web01/images/1/files/3/WHY-NOT.txt"
[[ ! -e $MNT/web01/images/1/files/4 && ! -e $MNT/web01/images/1/files/disk && ! -e $MNT/web01/files ]]

say "a file system without partitions around it"
expect_equal disk "$(ls "$MNT/plain/images/1/files")"
expect_equal "" "$(ls "$MNT/plain/images/1/part")"
diff -r "$WHERRY_SOURCE/docs" "$MNT/plain/images/1/files/disk" | grep -v "lost+found" && die "docs differ"

say "an image that is looked into is in use, and its readers can be killed"
exec 7<"$files/random"
wherry images web01 --json | jq -e '.images[0].in_use' >/dev/null
for pid in $(pgrep -P "$FS_PID" || true); do
	kill -KILL "$pid"
done
diff kernel.facts <(facts "$files") >/dev/null || diff kernel.facts <(facts "$files")
sha256sum <&7 >/dev/null
exec 7<&-
stop_fs "$MNT"

say "as many readers as images that are looked into; few of them wait for the next look"
expect_exit 0 "$WHERRY_TEST_TOOLS/make_images" "$WHERRY_STORE" plain 11
start_fs "$MNT"
for ((i = 1; i <= 12; i++)); do
	exec {fds[i]}<"$MNT/plain/images/$i/files/disk/architecture.md"
done
expect_equal 12 "$(pgrep -P "$FS_PID" | wc -l)"
for ((i = 1; i <= 12; i++)); do
	exec {fds[i]}<&-
done
wait_until 10 eval "(( \$(pgrep -P $FS_PID | wc -l) == 8 ))"
for ((i = 1; i <= 12; i++)); do
	ls "$MNT/plain/images/$i/files/disk" >/dev/null
done
stop_fs "$MNT"

say "the same numbers after another mount, and as the root of one"
start_fs "$MNT"
(cd "$files" && find . -mindepth 1 -printf '%P %i\n' | sort) >numbers
stop_fs "$MNT"
start_fs "$MNT" -o root=web01/images/latest/files/2
diff kernel.facts <(facts "$MNT")
diff numbers <(cd "$MNT" && find . -mindepth 1 -printf '%P %i\n' | sort)
stop_fs "$MNT"
! wherryfs "$WHERRY_STORE" "$MNT" -o root=web01/images/1/files/3 2>err
grep -q "swap space" err

say "who has been given an image reads its files, and nothing else, and nobody else does"
user() {
	setpriv --reuid=$1 --regid=$1 --clear-groups "${@:2}"
}
start_fs "$MNT" -o allow_other,uid=$USER_ID,disk=web01
user $USER_ID cat "$files/private/secret" >/dev/null
user $USER_ID cmp -n 100000 "$files/random" kernel/random
user $USER_ID head -c 1 "$MNT/web01/images/1/disk.raw" >/dev/null
! user $USER_ID bash -c "echo >'$MNT/web01/images/1/disk.raw'" 2>/dev/null
[[ ! -e $MNT/plain ]]
for command in "ls $MNT" "ls $MNT/web01" "cat $files/random" "head -c 1 $MNT/web01/images/1/disk.raw" "stat $files/random"; do
	! user $((USER_ID - 1)) $command >/dev/null 2>&1 || die "another user can: $command"
done
user $USER_ID ls "$files" >/dev/null # what is cached for one is not another's
! user $((USER_ID - 1)) cat "$files/other" >/dev/null 2>&1
expect_equal "uid=$USER_ID" "$(user $USER_ID "$files/setuid" | grep -o "^uid=[0-9]*")" "a program is nobody's but who runs it"
stop_fs "$MNT"

say "with umask=022 modes count as they do in the image"
start_fs "$MNT" -o allow_other,umask=022
user $USER_ID cat "$files/other" >/dev/null
user $((USER_ID - 1)) ls "$files" >/dev/null
! user $((USER_ID - 1)) cat "$files/other" >/dev/null 2>&1
! user $USER_ID cat "$files/private/secret" >/dev/null 2>&1
expect_equal "uid=$USER_ID" "$(user $USER_ID "$files/setuid" | grep -o "^uid=[0-9]*")" "set-user-ID is not obeyed"
stop_fs "$MNT"
unmount_partition kernel

say "an image's ACL lets nobody in where it is mounted"
start_fs "$MNT" -o allow_other,umask=007,root=web01/images/latest/files/2
for command in "ls $MNT" "cat $MNT/random"; do
	! user $USER_ID $command >/dev/null 2>&1 || die "somebody with a right in the image can: $command"
done
ls "$MNT" >/dev/null
stop_fs "$MNT"

say "who isn't root mounts for himself, and reads all of it; root doesn't get in"
chown -R $USER_ID:$USER_ID "$WHERRY_STORE"
mkdir own
chown $USER_ID own
mknod -m 666 fuse c 10 229 # as it is in Debian; not everywhere
# own_mount: in a mount namespace, where /dev/fuse is that one
own_mount() {
	mount --bind fuse /dev/fuse
	user $USER_ID env HOME=/ TMPDIR=/tmp wherryfs "$WHERRY_STORE" "$WORK/own"
	user $USER_ID cat own/web01/images/1/files/2/private/secret >/dev/null
	! ls own 2>/dev/null
	user $USER_ID fusermount3 -u "$WORK/own"
	! grep -q "$WORK/own" /proc/self/mountinfo
}
[[ -u $(command -v fusermount3) ]] || skip "fusermount3 is not setuid root"
export -f user own_mount
export WHERRY_STORE WORK USER_ID
unshare --mount --propagation slave bash -euo pipefail -c own_mount
