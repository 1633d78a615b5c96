#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# An MBR disk with an extended partition and logical ones in it goes into a store and comes back.
# thorough: yes
# timeout: 400
# shellcheck disable=SC2034,SC1091
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/roundtrip.sh"
roundtrip_requires

truncate -s 256M source.img
sfdisk -q source.img <<-END
	label: dos
	label-id: 0x5741b0a7
	size=100MiB, type=83, bootable
	type=5
	size=80MiB, type=83
	size=60MiB, type=83
END
random_range source.img 512 32K boot-loader
for number in 1 5 6; do
	ext4_in_partition source.img $number ""
	FILE_SYSTEMS+=("$(partition_start source.img $number):$(partition_size source.img $number)")
done
# The last one stays empty: no partition is like the other.
empty_area=${FILE_SYSTEMS[2]}
unset 'FILE_SYSTEMS[2]'
TABLE=dos

roundtrip_all

say "the boot loader between the table and the first partition is there"
check_same <(head -c 1M source.img) <(head -c 1M second.img)
why=$(json_get '.left_out[].why' first.json)
for number in 1 5 6; do
	grep -q "partition $number: .*ext4" <<<"$why" || die "partition $number is not in the report"
done
e2fsck -fn "second.img?offset=${empty_area%:*}" >e2fsck.log 2>&1 || die "the empty file system: $(cat e2fsck.log)"

say "partitions of images by themselves, the logical ones too"
for number in 1 5 6; do
	check_export "web01@2/$number" <(partition_bytes second.img "$number")
done
