#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Files of NTFS, read by lowntfs-3g in a sandbox and over a socket, are those that a mount of ntfs-3g shows: attributes, links,
# contents, streams, folders of any length, from any place in them. Damaged ones do no harm.
# timeout: 200
# asan: yes
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/fsreader-compare.sh"
requires_root
requires lowntfs-3g mkntfs setfattr getfattr python3 runuser
[[ -c /dev/fuse ]] || skip "needs /dev/fuse"

mount_ntfs() {
	mkdir -p mnt
	lowntfs-3g ntfs.img mnt -o "$1" 2>mount.log || die "lowntfs-3g: $(cat mount.log)"
	mount_points+=("$WORK/mnt")
}

unmount_ntfs() {
	unmount mnt
	wait_until 10 bash -c '! pgrep -f "^lowntfs-3g ntfs.img mnt"' # it writes after the unmount
}

say "a tree"
truncate -s 128M ntfs.img
mkntfs -q -F ntfs.img >/dev/null 2>&1
mount_ntfs streams_interface=xattr,compression
cp -r "$WHERRY_SOURCE/docs" mnt/
mkdir mnt/large mnt/empty mnt/compressed
for ((i = 0; i < 3000; i++)); do
	: >"mnt/large/a file with number $i in a name that is not short"
done
printf 'x' >mnt/docs/'Ümläut ☃'
ln mnt/docs/decisions.md mnt/hard-1
ln mnt/docs/decisions.md mnt/large/hard-2
ln -s docs/decisions.md mnt/symbolic
ln -s nowhere mnt/dangling
random_file mnt/random 5M random
truncate -s 40M mnt/sparse-large
printf 'end' >>mnt/sparse-large
setfattr -h -n system.ntfs_attrib_be -v 0x00000800 mnt/compressed # of what is made in there
cat docs/* "$WHERRY_SOURCE"/docs/*.md >mnt/compressed/text 2>/dev/null || true
setfattr -n user.stream -v 'in a stream' mnt/random
touch -d '1999-12-31 23:59:59.1234567' mnt/random
unmount_ntfs

mount_ntfs ro,streams_interface=xattr,uid=0,gid=0,umask=0222
compare_attributes ntfs.img ntfs mnt
compare_links ntfs.img ntfs mnt
compare_contents ntfs.img ntfs mnt 100000000
compare_xattrs ntfs.img ntfs mnt
(cd mnt && find . -mindepth 1 -print0) >expected
"$LIST" ntfs.img ntfs names | sed -z 1d >got
same_records "names in ntfs.img, each looked up" expected got
stat -f --printf '%S %b %f %a %c %d\n' mnt >expected
"$LIST" ntfs.img ntfs statfs >got
check_same expected got
unmount_ntfs

say "who isn't root reads it as well"
chmod a+rx . tmp
chmod a+r ntfs.img
"$LIST" ntfs.img ntfs stat | sort -z >expected
TMPDIR=/var/tmp runuser -u nobody -- "$LIST" ntfs.img ntfs stat | sort -z >got
check_same expected got

say "nothing is left of it when its reader is killed"
nothing_is_left ntfs.img ntfs ./random

say "damaged ones do no harm"
ROUNDS=10
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || ROUNDS=200
for ((i = 0; i < ROUNDS; i++)); do
	cp --sparse=always ntfs.img damaged.img
	python3 "$WHERRY_SOURCE/tests/helpers/damage.py" "$WHERRY_TEST_SEED-$i" damaged.img 64M
	status=0
	TIMEOUT_SECONDS=5 timeout 120 "$LIST" damaged.img ntfs survive >out 2>err || status=$?
	((status == 0 || status == 1)) || die "mutation $i: status $status: $(tail -n 3 err)"
done
