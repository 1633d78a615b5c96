#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# At most so many images: the oldest ones go first, pinned ones and those in use stay and are named, the number stays the
# disk's policy, a dry run changes nothing. Who reads an image keeps it.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3

SIZE=$((4 * 1024 * 1024))

# images: the numbers, in one line.
images() {
	wherry images web01 --json | jq -r '[.images[].number] | sort | join(" ")'
}

# next_round [OPTION…]: something changes, one more image.
rounds=0
next_round() {
	rounds=$((rounds + 1))
	random_range source $((rounds * 65536)) 128K "round $rounds"
	cp source "kept$rounds"
	sync_disk source web01 "$@"
	expect_equal $rounds "$(json_get .image)" "number of the image"
}

# check_images NUMBER…: these are there and no others, and each is what it was.
check_images() {
	local number
	expect_equal "$*" "$(images)" "images"
	for number in "$@"; do
		check_export "web01@$number" "kept$number"
	done
}

# hold NUMBER: somebody reads the image, and doesn't get on. Sets READER; sees to it that the lease is taken.
is_in_use() {
	[[ $(wherry images web01 --json | jq ".images[] | select(.number == $1) | .in_use") == true ]]
}
hold() {
	rm -f "$WORK/pipe"
	mkfifo "$WORK/pipe"
	# opened by the child: it waits for us there
	# shellcheck disable=SC2016
	start bash -c 'exec wherry export "$1" - --progress=none >"$2"' - "web01@$1" "$WORK/pipe"
	READER=$PID
	exec 7<"$WORK/pipe"
	wait_until 20 is_in_use "$1"
}

# let_go NUMBER: reads to the end what hold() has blocked; it must be the image.
let_go() {
	cmp - "kept$1" <&7
	exec 7<&-
	finish "$READER"
}

random_file source $SIZE source
make_store

say "without a policy all images stay"
for ((i = 0; i < 6; i++)); do
	next_round
	expect_equal '[]' "$(json_get '.deleted_images | tostring')" "deleted images"
done
check_images 1 2 3 4 5 6

say "a dry run changes nothing"
before=$(store_state | sha256sum)
expect_exit 0 wherry retain web01 --keep 2 --dry-run --json
expect_equal '[1,2,3,4]' "$(json_get '[.. | arrays | select(length == 4)][0] | tostring')" "what would go"
expect_exit 0 wherry retain web01 --keep 2 -n
expect_equal "$before" "$(store_state | sha256sum)" "the store"
check_images 1 2 3 4 5 6

say "the oldest one goes"
next_round --keep 6
expect_equal '[1]' "$(json_get '.deleted_images | tostring')" "deleted images"
check_images 2 3 4 5 6 7

say "the number stays the disk's policy"
next_round
expect_equal '[2]' "$(json_get '.deleted_images | tostring')" "deleted images"
check_images 3 4 5 6 7 8

say "no image, nothing goes that would make fewer"
random_range source 3M 64K unseen
sync_disk source web01 --no-image
expect_equal '[]' "$(json_get '.deleted_images | tostring')" "deleted images"
check_images 3 4 5 6 7 8

say "pinned images stay, and are named"
expect_exit 0 wherry pin web01@3
expect_error 'web01@3.*pinned' wherry delete web01@3
expect_exit 0 wherry retain web01 --keep 3
grep -q 'web01@3, pinned' "$WORK/stdout" || die "nobody said that 3 stays: $(cat "$WORK/stdout")"
check_images 3 7 8
next_round
expect_equal '[7]' "$(json_get '.deleted_images | tostring')" "deleted images"
expect_equal '3 pinned' "$(json_get '.kept_images[] | "\(.image) \(.why)"')" "images that stay"
check_images 3 8 9
expect_exit 0 wherry unpin web01@3
expect_exit 0 wherry retain web01 --keep 3
check_images 3 8 9

say "an image in use is not deleted, and stays when others go"
hold 3
expect_error "web01@3.*in use by.*export" wherry delete web01@3
next_round
expect_equal '[8]' "$(json_get '.deleted_images | tostring')" "deleted images"
json_get '.kept_images[0].why' | grep -q "in use by.*$READER" || die "nobody said who holds it: $(json_get .kept_images)"
check_images 3 9 10
expect_exit 0 wherry retain web01 --keep 1
grep -q 'web01@3, in use by' "$WORK/stdout" || die "nobody said that 3 stays: $(cat "$WORK/stdout")"
check_images 3 10
expect_error 'web01.*in use' wherry remove web01
check_images 3 10
let_go 3
if is_in_use 3; then die "still in use after the reader's end"; fi
expect_exit 0 wherry retain web01 --keep 1
check_images 10

say "the lease of a reader that was killed is gone with it"
next_round --keep 5
hold 10
kill -KILL "$READER"
finish "$READER" 2>/dev/null || true # bash would tell of it
exec 7<&-
expect_exit 0 wherry delete web01@10
check_images 11

say "pins survive, and the newest image never goes"
expect_exit 0 wherry pin web01@11
next_round --keep 1
check_images 11 12
next_round
check_images 11 13
expect_exit 0 wherry unpin web01@11
next_round
check_images 14
expect_error 'keep' wherry retain web01 --keep 0
expect_error 'keep' wherry retain web01
check_images 14
