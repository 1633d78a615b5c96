#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A round costs what changed: one byte anywhere, blocks that became zero, blocks that moved, a second disk that is the
# same.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq

MIB=$((1024 * 1024))
CHUNK=65536
SIZE=$((16 * MIB + 777)) # the last chunk is a short one
RECORD=4096              # more than a record has besides its chunk

random_file source $SIZE source
make_store
sync_disk source web01
expect_equal "$SIZE" "$(json_get .changed_bytes)" "all is new in the first round"

# next_round CHANGED STORED: the source has been changed in so many chunks, of which so many are new.
rounds=1
next_round() {
	local changed stored image
	sync_disk source web01
	read -r image changed stored <<<"$(json_get '"\(.image) \(.changed_bytes) \(.stored_bytes)"')"
	rounds=$((rounds + 1))
	expect_equal $rounds "$image" "number of the image"
	expect_number "$changed <= $1 * $CHUNK" "so much has changed and no more"
	expect_number "$changed >= ($1 > 0 ? 1 : 0)" "something has changed"
	expect_number "$stored <= $2 * ($CHUNK + $RECORD)" "so much is stored and no more"
	check_export "web01@$image" source
	check_export "web01@$((image - 1))" before
}

say "nothing has changed"
cp source before
next_round 0 0
expect_equal 0 "$(json_get .stored_bytes)" "nothing is stored"

say "one byte"
offsets=(0 $((SIZE - 1)) $((SIZE - 777)) $((SIZE - 778)))
for border in 1 7 255; do
	offsets+=($((border * CHUNK - 1)) $((border * CHUNK)))
done
for ((i = 0; i < 8; i++)); do
	random_number $SIZE
	offsets+=("$NUMBER")
done
for offset in "${offsets[@]}"; do
	say "  at $offset"
	cp source before
	byte_flip source "$offset"
	next_round 1 1
done

say "two bytes on both sides of a chunk's border, in one round"
cp source before
byte_flip source $((100 * CHUNK - 1))
byte_flip source $((100 * CHUNK))
next_round 2 2

say "back to what it was: nothing new is stored"
cp before other
cp source before
cp other source
next_round 2 0

say "blocks that became zero"
cp source before
zero_range source $((20 * CHUNK)) $((30 * CHUNK))
next_round 30 0
expect_equal $((30 * CHUNK)) "$(json_get .changed_bytes)" "zeros are a change"

say "blocks that became zero in the middle of chunks, and in the last one"
cp source before
zero_range source $((60 * CHUNK + 1000)) $((3 * CHUNK))
zero_range source $((SIZE - 777)) 777
next_round 5 2

say "blocks that became a hole"
cp source before
fallocate --punch-hole --offset $((70 * CHUNK)) --length $((10 * CHUNK)) source
next_round 10 0

say "zeros that became something again"
cp source before
random_range source $((20 * CHUNK)) $((2 * CHUNK)) again
next_round 2 2

say "blocks that moved"
cp source before
dd if=before of=source bs=$CHUNK skip=128 seek=160 count=64 conv=notrunc status=none
dd if=before of=source bs=$CHUNK skip=160 seek=128 count=32 conv=notrunc status=none
next_round 96 0

say "the same content at an offset that is none of a chunk is new content"
cp source before
dd if=before of=source bs=512 skip=$((130 * CHUNK / 512)) seek=$((200 * CHUNK / 512 + 1)) count=$((4 * CHUNK / 512)) \
	conv=notrunc status=none
next_round 5 5

say "a second disk with the same content"
sync_disk source web02
expect_number "$(json_get .stored_bytes) <= $RECORD" "what one disk has is not stored for another"
check_export web02@1 source
cat source <(random_stream 100 more) >other
sync_disk other web03
expect_number "$(json_get .stored_bytes) <= $CHUNK + $RECORD" "a disk that is nearly the same"
check_export web03@1 other
check_export web01@1 <(random_stream $SIZE source)

say "the same block many times"
random_file block $CHUNK block
for ((i = 0; i < 64; i++)); do cat block; done >other
sync_disk other repeating
expect_number "$(json_get .stored_bytes) <= $CHUNK + $RECORD" "what repeats is stored once"
check_export repeating@1 other
