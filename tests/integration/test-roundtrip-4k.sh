#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A GPT disk with sectors of 4096 bytes goes into a store and comes back; as a device, and as a file, of which nobody
# says how large its sectors are.
# thorough: yes
# timeout: 400
# shellcheck disable=SC2034,SC1091
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/roundtrip.sh"
roundtrip_requires

# with_4k_sectors FILE: sets LOOP.
with_4k_sectors() {
	attach_loop "$1" --sector-size 4096 2>"$TMPDIR/losetup.err" || skip "needs loop devices with sectors of 4096 bytes"
	expect_equal 4096 "$(blockdev --getss "$LOOP")" "size of a sector"
}

# Instead of the one that looks at files.
check_same_table() {
	local file
	for file in "$1" "$2"; do
		with_4k_sectors "$file"
		sfdisk --verify "$LOOP" >sfdisk.log 2>&1 || die "sfdisk is not content with $file: $(cat sfdisk.log)"
		sfdisk -d "$LOOP" | sed "s/^device:.*//; s#^$LOOP##" >"table-of-$(basename "$file")"
		detach_loop "$LOOP"
	done
	expect_number "$(grep -c 'type=' "table-of-$(basename "$1")") == 2" "partitions"
	check_same "table-of-$(basename "$1")" "table-of-$(basename "$2")"
}

truncate -s 160M source.img
with_4k_sectors source.img
sfdisk -q "$LOOP" <<-END
	label: gpt
	label-id: 5741B0A7-0000-4000-8000-000000000000
	start=256, size=28160, type=L, name="root"
	size=4096, type=S, name="swap"
END
detach_loop "$LOOP"
TABLE=gpt
FILE_SYSTEMS=("$((256 * 4096)):$((28160 * 4096))")
mke2fs -q -F -t ext4 -b 4096 -E "offset=$((256 * 4096)),lazy_itable_init=0" source.img $((28160 * 4))k

roundtrip_all

say "as a device of such sectors"
with_4k_sectors source.img
sync_disk "$LOOP" by-device
[[ ! -s stderr ]] || die "nothing was expected to be said: $(cat stderr)"
expect_number "$(json_get .left_out_bytes) >= 20 * 1048576" "unused blocks are left out"
detach_loop "$LOOP"
check_export by-device@1 second.img
expect_exit 0 wherry disks --json
expect_equal 4096 "$(json_get '.disks[] | select(.name == "by-device") | .sector_bytes')" "sectors of the disk"

say "onto a device of such sectors, and of others"
random_file target.img 160M garbage
with_4k_sectors target.img
expect_exit 0 wherry export by-device@1 "$LOOP"
! grep -q warning stderr || die "nothing to be warned of: $(cat stderr)"
check_same second.img "$LOOP"
detach_loop "$LOOP"
attach_loop target.img
expect_exit 0 wherry export by-device@1 "$LOOP"
grep -q '^wherry: warning: .*sectors' stderr || die "not a word about sectors that differ: $(cat stderr)"
check_same second.img "$LOOP"
detach_loop "$LOOP"

say "a source of such sectors is verified at their precision"
byte_flip source.img $((256 * 4096 + 1024)) # in the superblock
with_4k_sectors source.img
expect_exit 3 wherry verify by-device@1 --source "$LOOP" --read-all --json --progress=none
json_get '.differences[] | "\(.offset):\(.length)"' >differences
grep -qx "$((256 * 4096)):4096" differences || die "the sector with the byte is not listed alone: $(head -n 3 differences)"
detach_loop "$LOOP"
say "partitions by their number"
check_export by-device@1/1 <(tail -c +$((256 * 4096 + 1)) second.img | head -c $((28160 * 4096)))
