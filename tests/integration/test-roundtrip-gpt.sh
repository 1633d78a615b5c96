#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A GPT disk with an EFI partition, ext4, a wide gap and swap goes into a store and comes back, as file and as device.
# timeout: 400
# shellcheck disable=SC2034,SC1091
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/roundtrip.sh"
roundtrip_requires
requires mkfs.vfat mkswap blkid

truncate -s 256M source.img
sfdisk -q source.img <<-END
	label: gpt
	label-id: 5741B0A7-0000-4000-8000-000000000000
	start=1MiB, size=36MiB, type=U, name="EFI"
	start=37MiB, size=120MiB, type=L, name="root"
	start=205MiB, size=24MiB, type=S, name="swap"
END
vfat_in_partition source.img 1
ext4_in_partition source.img 2 ""
swap_in_partition source.img 3
# What a system has left in swap, and what is in nobody's partition, in the middle of 48 MiB and of the rest.
random_range source.img $(($(partition_start source.img 3) + 65536)) 16M in-swap
random_range source.img 165M 30M in-the-gap
TABLE=gpt
FILE_SYSTEMS=("$(partition_start source.img 2):$(partition_size source.img 2)")

roundtrip_all

say "the EFI partition is read whole, swap is a swap area with nothing in it"
check_same <(partition_bytes source.img 1) <(partition_bytes second.img 1)
partition_bytes second.img 3 >swap.img
expect_equal 5741b0a7-0000-4000-8000-000000000001 "$(blkid -p -o value -s UUID swap.img)" "UUID of swap"
cmp -s <(tail -c +65537 swap.img) <(head -c $((24 * 1048576 - 65536)) /dev/zero) || die "old pages of swap are in the image"
cmp -s <(dd if=second.img bs=1M skip=165 count=30 status=none) <(head -c 30M /dev/zero) ||
	die "the middle of the gap is in the image"
why=$(json_get '.left_out[].why' first.json)
grep -q 'partition 2: .*ext4' <<<"$why" || die "ext4 is not in the report"
grep -q 'partition 3: .*swap' <<<"$why" || die "swap is not in the report"
grep -q 'gap' <<<"$why" || die "the gap is not in the report"

say "partitions of images by themselves"
for number in 1 2 3; do
	check_export "web01@2/$number" <(partition_bytes second.img "$number")
done
expect_error 'web01@2: has no partition 4; there is 1 .*, 2 .*, 3 ' wherry export web01@2/4 -
