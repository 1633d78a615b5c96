#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# An ext4 on a whole disk without any table goes into a store and comes back; ext2 and ext3 and other block sizes, too.
# thorough: yes
# timeout: 400
# shellcheck disable=SC2034,SC1091
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/roundtrip.sh"
roundtrip_requires
TABLE=none

truncate -s 200M source.img
mke2fs -q -F -t ext4 -E lazy_itable_init=0 source.img
FILE_SYSTEMS=("0:$(size_of source.img)")
roundtrip_all

say "other kinds of ext"
while read -r name options; do
	say "  $name: $options"
	truncate -s 64M "$name.img"
	# shellcheck disable=SC2086
	mke2fs -q -F $options -E lazy_itable_init=0 -d "$FILES" "$name.img"
	# Deleted by debugfs, which can do without mounting.
	random_file garbage 8M "$name"
	debugfs -w -R 'write garbage garbage' "$name.img" >debugfs.log 2>&1
	debugfs -w -R 'rm garbage' "$name.img" >>debugfs.log 2>&1
	e2fsck -fn "$name.img" >e2fsck.log 2>&1 || die "$name before: $(cat e2fsck.log)"
	sync_disk "$name.img" "$name"
	expect_number "$(json_get .left_out_bytes) >= 8 * 1048576" "garbage in $name is left out"
	expect_exit 0 wherry export "$name@1" exported.img
	e2fsck -fn exported.img >e2fsck.log 2>&1 || die "$name after: $(cat e2fsck.log)"
	FILE_SYSTEMS=("0:$(size_of "$name.img")")
	check_same_files "$name.img" exported.img
	rm "$name.img" exported.img
done <<-END
	ext2 -t ext2
	ext3 -t ext3
	1k -t ext4 -b 1024
	2k -t ext4 -b 2048
	meta-bg -t ext4 -O meta_bg,^resize_inode
	no-checksums -t ext4 -O ^metadata_csum,^64bit
	flex-bg-off -t ext4 -O ^flex_bg
	bigalloc -t ext4 -O bigalloc -C 16384
	uninit-bg -t ext4 -O uninit_bg,^metadata_csum
END
