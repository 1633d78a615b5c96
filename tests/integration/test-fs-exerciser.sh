#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What programs do with files, at random, to a partition of a live disk, next to a model of it; then the same bytes by other ways. Some seconds; 10 minutes with WHERRY_TEST_THOROUGH=1.
# timeout: 900
# asan: yes
# tsan: yes
. "$(dirname "$0")/functions.sh"

requires_root
requires_fs
requires sfdisk
MNT=$WORK/mnt
PLACE=$((1024 * 1024))
SIZE=$((12 * 1024 * 1024 + 512 * 3)) # not of whole pages
TIME=4
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || TIME=300

make_store
truncate -s 16M disk.img
printf 'label: dos\nstart=%d, size=%d, type=83\n' $((PLACE / 512)) $((SIZE / 512)) | sfdisk -q disk.img
random_range disk.img 1M 8M content
sync_disk disk.img source
expect_exit 0 wherry clone source@1 live

start_fs "$MNT"
say "a clone's partition, $TIME seconds"
expect_exit 0 "$WHERRY_TEST_TOOLS/file_exerciser" "$MNT/live/part/1.raw" "$WHERRY_TEST_SEED" $TIME
say "  $(cat stdout)"
cp "$MNT/live/part/1.raw" part.raw
cmp "$MNT/live/disk.raw" part.raw -i $PLACE:0 -n $SIZE
cmp "$MNT/live/disk.raw" disk.img -n $PLACE
stop_fs "$MNT"
expect_exit 0 wherry export live/1 out.raw --progress=none
check_same part.raw out.raw
check_export source@1 disk.img

say "an image, with scratch"
start_fs "$MNT" -o scratch
expect_exit 0 "$WHERRY_TEST_TOOLS/file_exerciser" "$MNT/source/images/1/part/1.raw" "$WHERRY_TEST_SEED" $TIME
say "  $(cat stdout)"

say "control: who forgets what he wrote finds something wrong"
if EXERCISER_FORGETS=1 "$WHERRY_TEST_TOOLS/file_exerciser" "$MNT/source/images/1/part/1.raw" "$WHERRY_TEST_SEED" 20 20000 >control 2>&1; then
	die "the exerciser is content with anything"
fi
grep -q "file_exerciser: operation" control
stop_fs "$MNT"
check_export source@1 disk.img
expect_exit 0 wherry check --deep
