#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# verify finds every difference between an image and a source, exactly, and nothing else; so does sync --verify.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3 mke2fs debugfs
requires_nbdkit_plugin eval

MIB=$((1024 * 1024))
SIZE=$((8 * MIB + 1000)) # the last sector is a short one
random_file source $SIZE source
zero_range source 2M 1M
cp source original
make_store
sync_disk source web01

# expect_ranges "OFFSET:LENGTH …": what the last document says.
expect_ranges() {
	expect_equal "$1" "$(json_get '[.differences[] | "\(.offset):\(.length)"] | join(" ")')" "differences"
}

say "equal"
expect_exit 0 wherry verify web01@1 --source source
grep -qi 'equal' stdout || die "it doesn't say equal: $(cat stdout)"
expect_exit 0 wherry verify web01@1 --source source --json --progress=none
[[ ! -s stderr ]] || die "nothing was expected to be said: $(cat stderr)"
expect_equal "true $SIZE 0 0" "$(json_get '"\(.equal) \(.compared_bytes) \(.left_out_bytes) \(.differences | length)"')"
expect_exit 0 wherry verify web01@latest --source source
expect_exit 0 wherry verify web01 --source source

say "one byte, anywhere"
random_number $SIZE
for offset in 0 511 512 65535 65536 $((3 * MIB - 1)) $((2 * MIB)) $((SIZE - 1)) "$NUMBER"; do
	cp original source
	byte_flip source "$offset"
	expect_exit 3 wherry verify web01@1 --source source --json --progress=none
	expect_equal false "$(json_get .equal)"
	first=$((offset / 512 * 512))
	length=$((first + 512 > SIZE ? SIZE - first : 512))
	expect_ranges "$first:$length"
done
expect_exit 3 wherry verify web01@1 --source source --progress=none
grep -qE "byte $first\b" stdout || die "the place of the difference is not told: $(cat stdout)"
grep -qiE 'differ' stdout || die "it doesn't say that they differ: $(cat stdout)"

say "ranges: neighbours are one, across chunks; others stay apart"
cp original source
random_range source 0 1024 one
random_range source 2048 512 two
random_range source $((1 * MIB - 512)) 1024 three
zero_range source 4M 2M
random_range source $((SIZE - 1000)) 1000 last
expect_exit 3 wherry verify web01@1 --source source --json --progress=none
expect_ranges "0:1024 2048:512 $((MIB - 512)):1024 $((4 * MIB)):$((2 * MIB)) $((SIZE - 1000)):1000"

say "a hole where the image has data, data where the image has none"
cp original source
fallocate --punch-hole --offset 1M --length 64K source
random_range source 2M 512 data
expect_exit 3 wherry verify web01@1 --source source --json --progress=none
expect_ranges "$MIB:65536 $((2 * MIB)):512"

say "another size is a difference of all that is beyond the shorter one"
cp original source
random_stream 3000 more >>source
expect_exit 3 wherry verify web01@1 --source source --json --progress=none
expect_equal false "$(json_get .equal)"
expect_ranges "$SIZE:3000"
head -c $((SIZE - 5000)) original >source
expect_exit 3 wherry verify web01@1 --source source --json --progress=none
expect_ranges "$((SIZE - 5000)):5000"
cp original source
truncate -s +1M source
expect_exit 3 wherry verify web01@1 --source source --json --progress=none
expect_ranges "$SIZE:$MIB"

say "nothing is changed by it, and the exit status tells failure from difference"
store_state >before
expect_error 'nosuch: no such file' wherry verify web01@1 --source nosuch
expect_error 'web01@2: .*there is' wherry verify web01@2 --source source
expect_error 'verify: --source is missing' wherry verify web01@1
store_state >after
check_same before after

say "older images are compared as they were"
cp original source
random_range source 5M 100K second
sync_disk source web01
expect_exit 0 wherry verify web01@2 --source source
expect_exit 0 wherry verify web01@1 --source original
expect_exit 3 wherry verify web01@1 --source source --json --progress=none
expect_ranges "$((5 * MIB)):102400"

say "garbage in blocks that no file uses is no difference, unless that was asked for"
real_files
truncate -s 48M disk
mke2fs -q -F -t ext4 -E lazy_itable_init=0 -d "$FILES" disk
random_file garbage 8M garbage
debugfs -w -R 'write garbage garbage' disk >debugfs.log 2>&1
block=$(debugfs -R 'blocks garbage' disk 2>/dev/null | awk '{ print $4000 }')
block_bytes=$(dumpe2fs -h disk 2>/dev/null | sed -n 's/^Block size: *//p')
debugfs -w -R 'rm garbage' disk >>debugfs.log 2>&1
sync_disk disk web02
left_out=$(json_get .left_out_bytes)
expect_number "$left_out >= 7 * $MIB" "garbage is left out"
expect_exit 0 wherry verify web02@1 --source disk --json --progress=none
expect_number "$(json_get .left_out_bytes) == $left_out" "the same is left out"
expect_number "$(json_get '.compared_bytes + .left_out_bytes') == $(size_of disk)" "all is accounted for"
expect_exit 3 wherry verify web02@1 --source disk --read-all --json --progress=none
expect_equal "0 $(size_of disk)" "$(json_get '"\(.left_out_bytes) \(.compared_bytes)"')"
place=$((block * block_bytes))
expect_equal true "$(json_get "any(.differences[]; .offset <= $place and .offset + .length >= $place + $block_bytes)")" \
	"deleted garbage at $place is a difference"
random_range disk "$place" 1024 other-garbage
expect_exit 0 wherry verify web02@1 --source disk

say "sync --verify"
sync_disk source web03 --verify
expect_equal "true true 0" "$(json_get '"\(.verified) \(.equal) \(.differences | length)"')"
expect_exit 0 wherry sync disk web02 --verify --progress=none
grep -q '^  verified: equal' stdout || die "it doesn't say that it was verified: $(cat stdout)"
sync_disk source web03
expect_equal "false null" "$(json_get '"\(.verified) \(.equal)"')"

say "sync --verify of a source that changes behind its back"
cp original changed
byte_flip changed $((5 * MIB))
# The first time it is read there, it is as before; from then on it is not.
# shellcheck disable=SC2016
start_nbdkit eval get_size="echo $SIZE" pread='
	file='"$WORK"'/original
	if [ "$4" -le '$((5 * MIB))' ] && [ $(($4 + $3)) -gt '$((5 * MIB))' ]; then
		[ ! -e '"$WORK"'/was-read ] || file='"$WORK"'/changed
		touch '"$WORK"'/was-read
	fi
	dd if="$file" skip="$4" count="$3" bs=64K iflag=skip_bytes,count_bytes status=none'
expect_exit 3 wherry sync "$NBD_URI" web04 --verify --json --progress=none
expect_equal "1 true false" "$(json_get '"\(.image) \(.verified) \(.equal)"')"
expect_ranges "$((5 * MIB)):512"
check_export web04@1 original
expect_exit 0 wherry sync "$NBD_URI" web04 --verify --progress=none
check_export web04@2 changed
stop_process "$NBD_PID"

((EUID == 0)) || skip "all but what needs root has passed"
requires_loop
say "against block devices, and partitions against their devices"
attach_loop original 2>/dev/null # "does not fit into a 512-byte sector"
loop=$LOOP
expect_exit 3 wherry verify web01@1 --source "$loop" --json --progress=none # the last sector is cut off there
expect_ranges "$((SIZE / 512 * 512)):$((SIZE % 512))"
detach_loop "$loop"
make_disk_gpt disk 128M
sync_disk disk web05
attach_loop disk --offset "$(partition_start disk 2)" --sizelimit "$(partition_size disk 2)"
loop=$LOOP
expect_exit 0 wherry verify web05@1/2 --source "$loop"
start_of_2=$(partition_start disk 2)
file_block=$(debugfs -R 'blocks /random' "$loop" 2>/dev/null | awk '{ print $1 }')
block_bytes=$(dumpe2fs -h "$loop" 2>/dev/null | sed -n 's/^Block size: *//p')
detach_loop "$loop"
byte_flip disk $((start_of_2 + file_block * block_bytes))
attach_loop disk --offset "$start_of_2" --sizelimit "$(partition_size disk 2)"
expect_exit 3 wherry verify web05@1/2 --source "$LOOP" --json --progress=none
expect_ranges "$((file_block * block_bytes)):512"
detach_loop "$LOOP"
