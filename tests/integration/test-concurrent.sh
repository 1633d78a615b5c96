#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Many at one store: a second round on a disk is refused and told by whom; rounds on two disks with the same content at
# once store it once; listings, exports, deletions and images during rounds do as they do at other times.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq

MIB=$((1024 * 1024))
SIZE=$((16 * MIB))

is_running() {
	[[ $(wherry rounds "$1" --json | jq -r '.rounds | max_by(.number).state') == running ]]
}

# slow_round SOURCE DISK: in the background, for more than ten seconds; sets PID when it runs.
slow_round() {
	start wherry sync "$1" "$2" --limit 1M --progress=none --json >"$WORK/round-$2" 2>"$WORK/round-$2.err"
	wait_until 30 is_running "$2"
}

# hurry PID DISK: lets go what slow_round() has begun, and waits for its good end.
hurry() {
	is_running "$2" || die "the round on $2 has ended early: what was done meanwhile tests nothing"
	expect_exit 0 wherry set "$2" --limit unlimited
	finish "$1" || die "$(cat "$WORK/round-$2.err")"
}

random_file source $SIZE first
cp source kept1
make_store
sync_disk source web01

say "two rounds at once on one disk"
random_file source $SIZE second
cp source kept2
slow_round source web01
first=$PID
expect_error "disk web01: locked by wherry sync.*pid $first" wherry sync source web01
expect_error "web01.*$first" wherry remove web01
expect_error "web01.*$first" wherry image web01
[[ $(wherry disks --json | jq -r ".disks[0].open_by") == *"$first"* ]] || die "disks doesn't say who has it open"
hurry "$first" web01
expect_equal 2 "$(json_get .image "$WORK/round-web01")" "the first round's image"
expect_equal false "$(json_get .resumed "$WORK/round-web01")" "it was one round"
expect_equal null "$(wherry disks --json | jq '.disks[0].open_by')" "open by"
check_export web01@1 kept1
check_export web01@2 kept2

say "listings, exports, deletions while a round runs"
random_file source $SIZE third
cp source kept3
slow_round source web01
check_export web01@1 kept1
check_export web01@2 kept2
expect_exit 0 wherry images
expect_exit 0 wherry disks
expect_exit 0 wherry delete web01@1
expect_equal "2" "$(wherry images web01 --json | jq -r '[.images[].number] | join(" ")')" "images"
expect_exit 0 wherry pin web01@2
check_export web01@2 kept2
expect_exit 0 wherry verify web01@2 --source kept2
hurry "$PID" web01
check_export web01@2 kept2
check_export web01@3 kept3

say "two disks of one store at once, with the same content"
make_store
random_file source $SIZE same
cp source source2
cp source kept
start wherry sync source web01 --progress=none --json >"$WORK/round1" 2>"$WORK/round1.err"
one=$PID
start wherry sync source2 web02 --progress=none --json >"$WORK/round2" 2>"$WORK/round2.err"
two=$PID
finish "$one" || die "$(cat "$WORK/round1.err")"
finish "$two" || die "$(cat "$WORK/round2.err")"
check_export web01@1 kept
check_export web02@1 kept
first=$(json_get .stored_bytes "$WORK/round1")
second=$(json_get .stored_bytes "$WORK/round2")
say "  $first and $second bytes stored"
# What both meet before the other has committed it is stored twice; deleting shows that neither needs the other.
expect_number "$first + $second >= $SIZE" "all of it is stored"
expect_exit 0 wherry delete web01@1
expect_exit 0 wherry remove web01
check_export web02@1 kept
sync_disk source web03
expect_number "$(json_get .stored_bytes) < $MIB" "stored once for the next one"
check_export web03@1 kept

say "one behind the other: what the first has made sure of is not stored again"
make_store
random_file source $SIZE behind
cp source kept
slow_round source web01
one=$PID
has_done_some() {
	(($(wherry rounds web01 --json | jq '.rounds[0].done_bytes') >= 3 * MIB))
}
wait_until 30 has_done_some # as of its last checkpoint
is_running web01 || die "the first has ended early"
sync_disk source web02
second=$(json_get .stored_bytes)
expect_number "$second <= $SIZE - 3 * $MIB + 256 * 1024" "stored by the second"
hurry "$one" web01
first=$(json_get .stored_bytes "$WORK/round-web01")
say "  $first and $second bytes stored"
check_export web01@1 kept
check_export web02@1 kept

say "four disks at once, each with rounds, exports and deletions of its own"
make_store --chunk-size 16K
# busy_disk NAME: five rounds with exports, the older images deleted.
busy_disk() {
	local name=$1 round
	for ((round = 1; round <= 5; round++)); do
		random_stream 1M "$name-$round" | dd of="$name.img" bs=1M seek=$round conv=notrunc status=none
		cp "$name.img" "$name.kept$round"
		wherry sync "$name.img" "$name" --progress=none --json >/dev/null || return 1
		wherry export "$name@$round" - --progress=none 2>/dev/null | cmp - "$name.kept$round" || return 1
		if ((round > 2)); then
			wherry delete "$name@$((round - 2))" >/dev/null || return 1
			wherry export "$name@$((round - 1))" - --progress=none 2>/dev/null | cmp - "$name.kept$((round - 1))" || return 1
		fi
		wherry images --json >/dev/null || return 1
	done
}
busy=()
for name in a b c d; do
	random_file "$name.img" 8M common
	start busy_disk $name
	busy+=("$PID")
done
for PID in "${busy[@]}"; do
	finish "$PID" || die "one of the four has failed"
done
for name in a b c d; do
	check_export $name@5 $name.kept5
	check_export $name@4 $name.kept4
done
expect_equal 8 "$(wherry images --json | jq '.images | length')" "images left"
