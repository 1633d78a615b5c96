#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Files of XFS, Btrfs, FAT and others, read by a user-mode Linux in a sandbox, are those that this host's kernel shows: attributes, links, contents,
# holes, extended attributes; also of a file system that was copied while it was mounted. Who isn't root reads them as well. Damaged ones do no harm.
# timeout: 400
# asan: yes
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/fsreader-compare.sh"
requires_loop
requires linux.uml mkfs.xfs mkfs.btrfs btrfs mkfs.vfat mcopy getfattr setfacl python3 runuser

# make IMAGE SIZE MKFS…: an image, mounted at mnt
make() {
	local image=$1 size=$2
	shift 2
	truncate -s "$size" "$image"
	"$@" "$image" >mkfs.log 2>&1 || die "$*: $(cat mkfs.log)"
	attach_loop "$image"
	mount_at mnt "$LOOP"
}

done_with() {
	unmount mnt
	detach_loop "$LOOP"
}

# compare IMAGE TYPE [OPTIONS]
compare() {
	attach_loop "$1"
	mount_at mnt -o "ro,noatime${3:+,$3}" "$LOOP"
	compare_data "$1" "$2" mnt # before somebody has read what was never written: then it counts as data
	compare_attributes "$1" "$2" mnt
	compare_links "$1" "$2" mnt
	compare_contents "$1" "$2" mnt
	compare_xattrs "$1" "$2" mnt
	done_with
}

say "XFS"
make xfs.img 512M mkfs.xfs -q
python3 "$MAKE_TREE" mnt root xattr sparse many=2500 block=1024
done_with
compare xfs.img xfs

say "XFS that was copied while it was written to: its journal is replayed, and the image stays as it is"
attach_loop xfs.img
mount_at mnt "$LOOP"
cp -a "$WHERRY_SOURCE/tests" mnt/new
mv mnt/new/README.md mnt/new/renamed
sync -f mnt
rm -r mnt/new/unit
xfs_io -c 'fsync' mnt/new/renamed
cp --sparse=always xfs.img dirty.img
done_with
cp --sparse=always dirty.img same.img
chmod a-w dirty.img
cp --sparse=always dirty.img mounted.img
attach_loop mounted.img
mount_at mnt -o nouuid,noatime "$LOOP"
compare_attributes dirty.img xfs mnt
compare_contents dirty.img xfs mnt
compare_links dirty.img xfs mnt
done_with
check_same same.img dirty.img

if [[ ${WHERRY_TEST_THOROUGH:-} == 1 ]]; then
	say "XFS with blocks of 1 KiB and times of 32 bits"
	make old.img 320M mkfs.xfs -q -m bigtime=0 -b size=1024
	python3 "$MAKE_TREE" mnt root xattr sparse block=1024 pieces=500
	done_with
	compare old.img xfs
	rm old.img
fi

say "Btrfs, compressed, with subvolumes and a snapshot"
make btrfs.img 512M mkfs.btrfs -q
mount -o remount,compress=zstd mnt
python3 "$MAKE_TREE" mnt root xattr many=1500 block=2048
btrfs -q subvolume create mnt/subvolume
cp -a mnt/links mnt/subvolume/ 2>/dev/null || cp -a "$WHERRY_SOURCE/docs" mnt/subvolume/
btrfs -q subvolume snapshot mnt/subvolume mnt/snapshot
done_with
compare btrfs.img btrfs

say "FAT"
truncate -s 64M vfat.img
mkfs.vfat vfat.img >/dev/null
mkdir tree
cp -r "$WHERRY_SOURCE/docs" tree/
printf 'x' >'tree/A name that is longer than eight and three.text'
touch tree/'Ümläut.txt'
MTOOLS_SKIP_CHECK=1 LC_ALL=C.UTF-8 mcopy -s -i vfat.img tree/* ::
"$LIST" vfat.img vfat contents >got
(cd tree && find . -type f -print0 | xargs -0 sha256sum -z) >expected
same_records "contents in vfat.img" expected got

say "a user who isn't root reads it, too"
chmod a+rx . tmp
cp --sparse=always xfs.img shared.img
chmod a+r shared.img
"$LIST" shared.img xfs stat | sort -z >expected
TMPDIR=/var/tmp runuser -u nobody -- "$LIST" shared.img xfs stat | sort -z >got
check_same expected got

say "nothing is left of it when its reader is killed"
nothing_is_left xfs.img xfs ./files/8388608

say "damaged ones do no harm"
ROUNDS=2
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || ROUNDS=50
for type in xfs btrfs vfat; do
	for ((i = 0; i < ROUNDS; i++)); do
		cp --sparse=always $type.img damaged.img
		# where the used blocks of a small tree are, mostly
		python3 "$WHERRY_SOURCE/tests/helpers/damage.py" "$WHERRY_TEST_SEED-$type-$i" damaged.img 24M
		status=0
		TIMEOUT_SECONDS=10 timeout 120 "$LIST" damaged.img $type survive >out 2>err || status=$?
		((status == 0 || status == 1)) || die "$type, mutation $i: status $status: $(tail -n 3 err)"
	done
done
