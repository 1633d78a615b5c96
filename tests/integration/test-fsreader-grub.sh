#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Where there is no user-mode Linux, and for what that doesn't know, GRUB's readers give names, sizes and contents, in a sandbox, without a
# mount: compared with what was put in. Damaged file systems do no harm.
# timeout: 300
# asan: yes
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/fsreader-compare.sh"
requires_loop
requires grub-mount mkfs.xfs mkfs.vfat mcopy python3 runuser
export WHERRY_UML=/nonexistent

mkdir tree
cp -r "$WHERRY_SOURCE/docs" tree/
cp -r "$WHERRY_SOURCE/tests/helpers" tree/docs/
random_file tree/large 9M large
: >tree/empty
head -c 131072 tree/large >tree/docs/one-read
(cd tree && find . -type f -print0 | xargs -0 sha256sum -z) >contents
(cd tree && find . -mindepth 1 -print0) >names

# compare IMAGE TYPE
compare() {
	"$LIST" "$1" "$2" contents 100000000 >got
	same_records "contents in $1" contents got
	"$LIST" "$1" "$2" names | sed -z 1d >got
	same_records "names in $1" names got
}

say "FAT"
truncate -s 64M vfat.img
mkfs.vfat vfat.img >/dev/null
MTOOLS_SKIP_CHECK=1 mcopy -s -i vfat.img tree/* ::
compare vfat.img vfat

say "XFS; a link is what it points to"
truncate -s 320M xfs.img
mkfs.xfs -q xfs.img
attach_loop xfs.img
mount_at mnt "$LOOP"
cp -r tree/* mnt/
unmount mnt
compare xfs.img xfs
mount_at mnt "$LOOP"
ln -s large mnt/link
ln -s nowhere mnt/dangling
unmount mnt
detach_loop "$LOOP"
"$LIST" xfs.img xfs cat ./link | cmp - tree/large || die "a link isn't what it points to"
expect_exit 1 "$LIST" xfs.img xfs cat ./dangling

say "who isn't root reads it as well"
chmod a+rx . tmp
chmod a+r vfat.img
"$LIST" vfat.img vfat names | sort -z >expected
TMPDIR=/var/tmp runuser -u nobody -- "$LIST" vfat.img vfat names | sort -z >got
check_same expected got

say "nothing is left of it when its reader is killed"
nothing_is_left vfat.img vfat ./large

say "what GRUB can't read is an error that says so"
random_file noise.img 16M noise
status=0
"$LIST" noise.img vfat names >out 2>err || status=$?
((status == 1)) && grep -q "can't read" err || die "status $status: $(cat err)"

if [[ ${WHERRY_TEST_THOROUGH:-} == 1 ]]; then
	say "more files than grub-mount has places for"
	mkdir many
	for ((i = 0; i < 660; i++)); do
		mkdir many/$i
		for ((j = 0; j < 50; j++)); do echo "$i $j" >many/$i/$j; done
	done
	truncate -s 256M many.img
	mkfs.vfat many.img >/dev/null
	MTOOLS_SKIP_CHECK=1 mcopy -s -i many.img many ::
	find ./many -type f -print0 | xargs -0 sha256sum -z >expected
	"$LIST" many.img vfat contents >got
	same_records "contents of many files" expected got
fi

say "damaged ones do no harm"
ROUNDS=5
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || ROUNDS=50
for type in xfs vfat; do
	for ((i = 0; i < ROUNDS; i++)); do
		cp --sparse=always $type.img damaged.img
		python3 "$WHERRY_SOURCE/tests/helpers/damage.py" "$WHERRY_TEST_SEED-$type-$i" damaged.img 16M
		status=0
		TIMEOUT_SECONDS=5 timeout 120 "$LIST" damaged.img $type survive >out 2>err || status=$?
		((status == 0 || status == 1)) || die "$type, mutation $i: status $status: $(tail -n 3 err)"
	done
done
