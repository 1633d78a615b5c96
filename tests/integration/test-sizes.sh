#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Disks of every odd size come back bit by bit, with every chunk size; sparse exports are sparse; sources grow and
# shrink.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3

KIB=1024
MIB=$((1024 * 1024))

# write_source KIND BYTES: what it is that has this size.
write_source() {
	case $1 in
	random) random_file source "$2" "$WHERRY_TEST_SEED-$2" ;;
	zeros) head -c "$2" /dev/zero >source ;;
	hole) rm -f source && truncate -s "$2" source ;;
	ends) # zeros, but for the first and the last byte
		rm -f source
		truncate -s "$2" source
		byte_flip source 0
		byte_flip source $(($2 - 1))
		;;
	esac
}

check_size() {
	local kind=$1 bytes=$2 disk=$1-$2 size stored
	write_source "$kind" "$bytes"
	sync_disk source "$disk"
	[[ ! -s stderr ]] || die "$disk: nothing was expected to be said: $(cat stderr)"
	read -r size stored <<<"$(json_get '"\(.size_bytes) \(.stored_bytes)"')"
	expect_equal "$bytes" "$size" "size of $disk"
	case $kind in
	zeros | hole) expect_equal 0 "$stored" "nothing is stored of $disk" ;;
	random) expect_number "$stored >= $bytes" "random bytes can't be made smaller" ;;
	esac
	check_export "$disk@1" source
}

# The same, and as a file.
check_size_as_file() {
	check_size "$@"
	expect_exit 0 wherry export "$1-$2@1" exported
	check_same source exported
	rm -f exported
}

for chunk_size in 16K 64K 256K 1M; do
	chunk=$(to_bytes $chunk_size)
	say "chunks of $chunk_size"
	make_store --chunk-size $chunk_size
	for bytes in 1 513 $((chunk - 1)) $((chunk + 1)) $((2 * MIB + 13)); do
		check_size random "$bytes"
	done
	check_size_as_file ends $((3 * chunk + 1))
	check_size hole $((5 * chunk - 513))
	check_size zeros $((3 * MIB + 511))
done

say "64K chunks from here on"
make_store
check_size_as_file random $((10 * MIB + 13))
check_size_as_file ends $((10 * MIB + 13))
check_size_as_file hole $((10 * MIB + 13))

say "sizes around the border of a chunk"
for step in -4097 -512 -511 511 512 4095; do
	check_size_as_file random $((128 * KIB + step))
done

say "a large disk with little on it stays small, in the store and outside"
rm -f source
truncate -s 8G source
random_range source 0 5000 head
random_range source 3G 1M middle
random_range source $((8 * 1024 * MIB - 777)) 777 tail
sync_disk source sparse
expect_number "$(json_get .stored_bytes) < 2 * $MIB" "little is stored of a large sparse disk"
expect_number "$(json_get .read_bytes) < 4 * $MIB" "holes are not read"
expect_exit 0 wherry export sparse@1 exported
expect_equal "$(size_of source)" "$(size_of exported)" "size of the sparse export"
expect_number "$(du -B1 exported | cut -f1) < 2 * $MIB" "room that the sparse export takes"
cmp -s -i 0 -n 16M source exported || die "head differs"
cmp -s -i 3G -n 16M source exported || die "middle differs"
cmp -s -i $((8 * 1024 * MIB - 16 * MIB)) source exported || die "tail differs"

say "zeros that are not holes in the source are holes in the export"
head -c 64M /dev/zero >source
random_range source 20M 100 island
sync_disk source zeros-with-island
expect_exit 0 wherry export zeros-with-island@1 exported
check_same source exported
expect_number "$(du -B1 exported | cut -f1) <= 128 * $KIB" "room of 64 MiB of zeros"

say "a source grows"
random_file source $((3 * MIB + 100)) grow-1
cp source kept-1
sync_disk source growing
random_stream $((2 * MIB + 29)) grow-2 >>source
cp source kept-2
sync_disk source growing
grep -q '^wherry: .*growing.*grows' stderr || die "not a word about growing: $(cat stderr)"
expect_equal $((5 * MIB + 129)) "$(json_get .size_bytes)" "size after growing"
expect_number "$(json_get .stored_bytes) <= 2 * $MIB + 29 + 3 * 64 * $KIB" "what was there before is not stored again"
truncate -s $((9 * MIB + 1)) source
sync_disk source growing
expect_number "$(json_get .stored_bytes) <= 129 + 4096" "growing by a hole stores no more than the last chunk that was there"
check_export growing@1 kept-1
check_export growing@2 kept-2
check_export growing@3 source
check_export growing source

say "a source that shrank is refused, unless that was meant"
cp source kept-3
truncate -s $((3 * MIB + 5000)) source
store_state >before
expect_error 'source.*growing.*--allow-shrink' wherry sync source growing
store_state >after
check_same before after
sync_disk source growing --allow-shrink
grep -q '^wherry: .*growing.*shrinks' stderr || die "not a word about shrinking: $(cat stderr)"
expect_equal $((3 * MIB + 5000)) "$(json_get .size_bytes)" "size after shrinking"
check_export growing@4 source
check_export growing@3 kept-3
check_export growing@2 kept-2
cp source kept-4

say "what grows again after that is zero"
truncate -s $((9 * MIB + 1)) source
sync_disk source growing
check_export growing@5 source
check_export growing@4 kept-4
check_export growing@3 kept-3
expect_exit 0 wherry images growing --json
expect_equal "$((3 * MIB + 100)) $((5 * MIB + 129)) $((9 * MIB + 1)) $((3 * MIB + 5000)) $((9 * MIB + 1))" \
	"$(json_get '[.images[].size_bytes] | map(tostring) | join(" ")')" "sizes of the images"
