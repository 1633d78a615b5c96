#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# clone and create: a clone is its image at once and for nothing, goes its own way, and keeps its image from going; rounds
# onto it are right; rebuilt from the segments it is the same; damage below it is told of it too; and killed at any call, what makes and
# removes clones leaves a store in which everything fits.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3 strace cmp

KILLS=5
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || KILLS=200

disk() {
	wherry disks --json | jq -r ".disks[] | select(.name == \"$1\") | $2"
}
segment_bytes() {
	wherry df --json | jq .segment_bytes
}

say "a clone costs nothing, and is the image"
make_store --chunk-size 16K
random_file source 8M first
zero_range source 2M 3M
truncate -s 8389120 source # not whole chunks
cp source kept1
sync_disk source web01
random_range source 6M 100K second
cp source kept2
sync_disk source web01
before=$(segment_bytes)
expect_exit 0 wherry clone web01@1 test --json
expect_equal "test web01@1 8389120 512 web01@1" \
	"$(json_get '"\(.disk) \(.image) \(.size_bytes) \(.sector_bytes) \(.parent)"')"
expect_number "$(segment_bytes) - $before <= 65536" "bytes of a clone"
expect_equal "web01@1 null" "$(disk test .parent) $(disk web01 .parent)"
check_export test kept1
expect_exit 0 wherry verify test --source kept1 --progress=none
expect_exit 3 wherry verify test --source kept2 --progress=none
expect_equal "true clone test" "$(wherry images --json | jq -r '.images[0] | "\(.in_use) \(.in_use_by)"')"
expect_exit 0 wherry disks
grep -q "CLONE OF" "$WORK/stdout"
expect_exit 0 wherry image test --json
expect_equal "$(wherry images web01 --json | jq -r '.images[0].consistency')" "$(json_get .consistency)" "trust is inherited"
check_export test@1 kept1

say "rounds onto a clone"
random_range source 1M 40K third
zero_range source 3M 1M # zeros already, below
zero_range source 5M 512K
cp source kept3
expect_exit 0 wherry sync source test --progress=none --json
expect_number "$(json_get .changed_bytes) < 900000" "what changed, and no more"
expect_number "$(json_get .stored_bytes) < 200000" "what is new, and no more"
check_export test kept3
check_export test@2 kept3
check_export test@1 kept1
check_export web01@1 kept1
sync_disk source test
expect_equal 0 "$(json_get .changed_bytes)" "nothing has changed"
truncate -s 3000000 source
expect_exit 0 wherry sync source test --allow-shrink --progress=none
check_export test source
truncate -s 7M source
sync_disk source test
check_export test source
check_export test@1 kept1
check_export test@2 kept3

say "clones of clones"
expect_exit 0 wherry clone test@2 deep1
for i in 1 2 3 4; do
	cp kept3 source
	random_range source $((i * 1000000)) 20K "deep $i"
	sync_disk source "deep$i"
	cp source "deep$i"
	expect_exit 0 wherry clone "deep$i@latest" "deep$((i + 1))"
	check_export "deep$((i + 1))" "deep$i"
done
expect_equal "deep4@1" "$(disk deep5 .parent)"
expect_exit 0 wherry image deep5
expect_exit 0 wherry clone deep5@1 flat
expect_equal "deep4@1" "$(disk flat .parent)" "deep5 has written nothing"
check_export flat deep4
expect_exit 0 wherry check --deep --json --progress=none

say "what has clones stays"
expect_error "in use by clone test" wherry delete web01@1
expect_error "in use by clone test" wherry delete --dry-run web01@1
expect_error "image 1 is in use by clone test" wherry remove web01
expect_error "clones deep5, flat" wherry remove deep4
expect_exit 0 wherry retain web01 --keep 1
grep -q "in use by clone test" "$WORK/stdout"
expect_equal "1 2" "$(wherry images web01 --json | jq -r '[.images[].number] | join(" ")')"
expect_error "there is one of that name" wherry clone web01@1 test
expect_error "no such image|there are" wherry clone web01@7 other
expect_error "an image is wanted here" wherry clone web01 other
expect_error "partition" wherry clone web01@1/2 other

say "create"
expect_exit 0 wherry create empty 10G --json
expect_equal "empty 10737418240 512" "$(json_get '"\(.disk) \(.size_bytes) \(.sector_bytes)"')"
expect_exit 0 wherry create small 40K --sector-size 4K
expect_equal 4096 "$(disk small .sector_bytes)"
head -c 40960 /dev/zero >zeros
check_export small zeros
expect_error "not a size" wherry create other 10X
expect_error "not a size" wherry create other 0
expect_error "multiple of the sector size" wherry create other 1000
expect_error "1 EiB" wherry create other 2000000T
expect_error "there is one of that name" wherry create empty 1G
expect_exit 0 wherry image empty
expect_exit 0 wherry clone empty@1 nothing
expect_equal null "$(disk nothing .parent)" "nothing shows in it"
expect_exit 0 wherry remove empty
expect_exit 0 wherry remove nothing
cp kept2 source
sync_disk source small # as any disk does, it becomes a mirror, and grows
check_export small kept2

say "rebuilt"
listing() {
	{
		wherry disks --json | jq '.disks[] | del(.mirror_of)'
		wherry images --json
	} >"$1"
}
contents() {
	check_export web01@1 kept1
	check_export test source_test
	check_export test@1 kept1
	check_export test@2 kept3
	check_export deep5 deep4
	check_export flat deep4
}
expect_exit 0 wherry export test source_test --progress=none
expect_exit 0 wherry remove deep5 # the clone of its image goes on
expect_exit 0 wherry clone deep4@1 deep5
listing before
expect_exit 0 wherry rebuild --progress=none
listing after
check_same before after
contents
expect_exit 0 wherry check --deep --json --progress=none
expect_error "in use by clone test" wherry delete web01@1

say "a rebuild finds a clone whose image is gone"
# As when whoever made it was killed before the transaction, and the image is deleted then: its entries are in a segment, and it never was.
cp -r "$WHERRY_STORE" whole
expect_exit 0 wherry clone web01@2 never
never=$(sqlite3 "$WHERRY_STORE/catalog.db" "SELECT id FROM disk WHERE name='never'")
sqlite3 "$WHERRY_STORE/catalog.db" "DELETE FROM base WHERE disk=$never; DELETE FROM log WHERE disk=$never;
	DELETE FROM disk WHERE id=$never"
expect_exit 0 wherry delete web01@2
expect_exit 3 wherry rebuild --progress=none
grep -q "never.*left out" "$WORK/stdout" "$WORK/stderr"
expect_equal "" "$(disk never .name)" "a clone that never was"
expect_exit 0 wherry check --deep --json --progress=none
rm -rf "$WHERRY_STORE"
mv whole "$WHERRY_STORE"

say "damage below a clone is the clone's, too"
cp -r "$WHERRY_STORE" whole
segment=$(find "$WHERRY_STORE/segments" -name '00000001.seg')
byte_flip "$segment" 500000
expect_exit 3 wherry check --deep --json --progress=none
json_get '.damaged[] | "\(.disk)@\(.image) \(.offset) \(.length)"' >damaged
where=$(sed -n 's/^web01@1 //p' damaged)
grep -qx "test@1 $where" damaged
expect_exit 1 wherry export test@1 out --progress=none
expect_exit 3 wherry check --deep --repair --json --progress=none
expect_equal "true" "$(wherry images test --json | jq '.images[0].damaged')" "an image of the clone is damaged"
rm -rf "$WHERRY_STORE"
mv whole "$WHERRY_STORE"

say "killed at any call"
# killed COMMAND…: sets STATUS.
killed() {
	local calls=(pwrite64 pwrite64 fdatasync fsync unlinkat flock openat) call
	random_number ${#calls[@]}
	call=${calls[NUMBER]}
	case $call in
	pwrite64 | flock | openat) random_number 30 ;;
	*) random_number 4 ;;
	esac
	STATUS=0
	without_leak_check strace -f -qq -o /dev/null -e trace="$call" -e inject="$call:signal=KILL:when=$((NUMBER + 1))" \
		"$@" >"$WORK/stdout" 2>"$WORK/stderr" || STATUS=$?
}
# ended WHAT…: the last command was killed, or did what it should.
ended() {
	((STATUS == 0 || STATUS == 137)) || die "status $STATUS: $(cat "$WORK/stderr")"
	kills=$((kills + (STATUS == 137)))
}
is_there() {
	[[ $(disk "$1" .name) == "$1" ]]
}
has_image() {
	[[ -n $(wherry images "${1%@*}" --json | jq ".images[] | select(.number == ${1#*@})") ]]
}
# take_away_under DISK: an image of a clone that was written to, a clone of that, and deletion of the image, which is refused as long
# as the clone is there.
take_away_under() {
	local base=base$1 victim=under$1
	expect_exit 0 wherry clone test@2 "$base"
	cp kept3 source
	random_range source 2M 20K "$base"
	sync_disk source "$base"
	cp source "kept-base"
	killed wherry clone "$base@1" "$victim"
	ended
	if is_there "$victim"; then
		check_export "$victim" kept-base
		killed wherry delete "$base@1" # refused, or killed before it was
		if ((STATUS != 137)); then
			expect_equal 1 $STATUS "what has a clone was deleted"
			grep -q "in use by clone $victim" "$WORK/stderr"
		fi
		kills=$((kills + (STATUS == 137)))
		check_export "$base@1" kept-base
		check_export "$victim" kept-base
		killed wherry remove "$victim"
		ended
		if is_there "$victim"; then
			check_export "$victim" kept-base
			expect_error "in use by clone $victim" wherry delete "$base@1"
			expect_exit 0 wherry remove "$victim"
		fi
	elif ((STATUS == 0)); then
		die "the clone was acknowledged, and is gone"
	fi
	killed wherry delete "$base@1"
	ended
	if has_image "$base@1"; then
		((STATUS == 137)) || die "the deletion was acknowledged, and $base@1 is there"
		check_export "$base@1" kept-base
		expect_exit 0 wherry clone "$base@1" "$victim" # it is a base as before
		check_export "$victim" kept-base
		expect_exit 0 wherry remove "$victim"
		expect_exit 0 wherry delete "$base@1"
	else
		expect_error "no such image|no image|has no" wherry clone "$base@1" "$victim"
	fi
	killed wherry remove "$base"
	ended
	! is_there "$base" || expect_exit 0 wherry remove "$base"
}
kills=0
for ((i = 0; kills < KILLS; i++)); do
	killed wherry clone test@2 "victim$i"
	ended
	if is_there "victim$i"; then
		check_export "victim$i" kept3
		expect_exit 0 wherry image "victim$i"
		killed wherry remove "victim$i"
		ended
		if is_there "victim$i"; then
			check_export "victim$i@1" kept3
			expect_error "clone.* victim$i" wherry delete test@2
			expect_exit 0 wherry remove "victim$i"
		fi
	elif ((STATUS == 0)); then
		die "the clone was acknowledged, and is gone"
	fi
	take_away_under "$i"
	random_number 3
	if ((NUMBER == 0)); then
		status=0
		wherry rebuild --progress=none >rebuilt 2>&1 || status=$?
		# 3: clones whose entries were durable when they were killed, and whose image has gone since
		((status == 0)) || { ((status == 3)) && grep -q "under[0-9]*.*left out" rebuilt; } || die "$(cat rebuilt)"
		expect_equal "" "$(wherry disks --json | jq -r '.disks[].name | select(test("^(under|base)"))')" "what was taken away"
		# some whose entries were durable when they were killed, now or earlier: asked for, not acknowledged, and whole
		for victim in $(wherry disks --json | jq -r '.disks[].name | select(startswith("victim"))'); do
			check_export "$victim" kept3
			expect_exit 0 wherry remove "$victim"
		done
	fi
	expect_exit 0 wherry check --json --progress=none
done
say "  $kills kills in $i turns"
contents

say "everything goes"
for name in flat deep5 deep4 deep3 deep2 deep1 test small web01; do
	expect_exit 0 wherry remove $name
done
expect_exit 0 wherry gc --progress=none
expect_exit 0 wherry df --json
expect_number "$(json_get .live_bytes) < 100000" "left: entries that say what is gone"
expect_exit 0 wherry check --deep --json --progress=none
