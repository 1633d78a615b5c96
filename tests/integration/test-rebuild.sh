#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# rebuild: the catalog from the segments alone, whatever became of the old one; with damaged segments it says what is
# lost, returns nothing else for it, and a round heals it. Killed at any call it can be run again.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3 strace cmp

MIB=$((1024 * 1024))

# listing FILE: all that the catalog says of disks and images. Rounds are forgotten, so what a listing knows only from them is, too.
listing() {
	{
		wherry disks --json
		wherry images --json
	} >"$1"
}
rebuild() {
	expect_exit "$1" wherry rebuild --json --progress=none
}
# same_as_before: everything is there and what it was.
same_as_before() {
	listing after
	check_same before after
	expect_exit 0 wherry check --deep --json --progress=none
	check_export web01@1 kept1
	check_export web01@3 kept3
	check_export web01 kept5
	check_export web02@1 kept2
	check_export shrunk@1 kept3
	check_export shrunk shrunk
}

say "a store with all that can happen"
make_store --chunk-size 16K
random_file source 6M first
zero_range source 2M 1M
sync_disk source web01 --label "a label"
cp source kept1
for i in 2 3 4; do
	random_range source $((i - 1))M 900K "change $i"
	sync_disk source web01
	cp source kept$i
done
expect_exit 0 wherry pin web01@1
expect_exit 0 wherry pin web01@2
expect_exit 0 wherry unpin web01@2
expect_exit 0 wherry delete web01@2
random_range source 0 100K five
truncate -s 7M source
sync_disk source web01 --no-image
cp source kept5
sync_disk kept2 web02
expect_exit 0 wherry set web02 --keep 5 --limit 3M --level 7
cp kept3 shrunk
sync_disk shrunk shrunk
truncate -s 2500000 shrunk
expect_exit 0 wherry sync shrunk shrunk --allow-shrink --progress=none
sync_disk kept3 gone
expect_exit 0 wherry remove gone
sync_disk kept4 gone
expect_exit 0 wherry image gone --label again
random_file other 5M other
sync_disk other web03
expect_exit 0 wherry delete web03@1 || true
listing before

say "lost, garbage, an old copy"
cp "$WHERRY_STORE/catalog.db" old
rm "$WHERRY_STORE"/catalog.db*
expect_error "missing; 'wherry rebuild'" wherry images
rebuild 0
expect_equal "5 1 0" "$(json_get '"\(.disks) \(.removed_disks) \(.lost_chunks)"')"
same_as_before
dd if=/dev/urandom of="$WHERRY_STORE/catalog.db" bs=64K count=3 conv=notrunc status=none
rebuild 0
same_as_before
random_range kept5 1M 300K six
cp kept5 source
sync_disk source web01 --no-image
listing before
cp old "$WHERRY_STORE/catalog.db"
rm -f "$WHERRY_STORE"/catalog.db-*
rebuild 0
same_as_before

say "a second time nothing changes, and a round goes on"
dump() {
	# keys are drawn anew
	sqlite3 "$WHERRY_STORE/catalog.db" "UPDATE disk SET fingerprint_key = zeroblob(32)" .dump
}
rebuild 0
cp -r "$WHERRY_STORE" kept_store
dump >dump1
rebuild 0
dump >dump2
check_same dump1 dump2
rm -rf "$WHERRY_STORE"
mv kept_store "$WHERRY_STORE"
rebuild 0
sync_disk source web01
expect_equal "0 0" "$(json_get '"\(.stored_bytes) \(.changed_bytes)"')" "it is all there"
sync_disk source web01
expect_equal 6 "$(json_get .image)"
expect_exit 0 wherry delete web01@5
expect_exit 0 wherry delete web01@6
listing before

say "after a clean-up, which moves records"
expect_exit 0 wherry remove web03
random_file other 3M other2
sync_disk other web03
expect_exit 0 wherry remove web03
expect_exit 0 wherry gc --progress=none
listing before
rm "$WHERRY_STORE"/catalog.db*
rebuild 0
same_as_before

say "not while somebody uses it, not by halves"
random_file fresh 4M fresh
start wherry sync fresh web05 --limit 500K --level 0 --progress=none >round.out 2>&1
round=$PID
is_open() {
	wherry disks --json | jq -e '.disks[] | select(.name == "web05") | .open_by != null' >/dev/null
}
wait_until 20 is_open
expect_error "in use by wherry sync|writes to it" wherry rebuild --progress=none
kill -KILL "$round"
finish "$round" 2>/dev/null || true
rebuild 0
listing before
expect_exit 0 wherry rebuild --dry-run --json --progress=lines
grep -qE '^rebuild: 100%, ([0-9.]+ .iB) of \1,' "$WORK/stderr" || die "it ends when all is done: $(cat "$WORK/stderr")"
kills=0
for ((i = 0; i < 10; i++)); do
	case $((i % 4)) in
	0) call=unlinkat most=6 ;;
	1) call=renameat most=2 ;;
	2) call=fsync most=4 ;;
	3) call=pwrite64 most=30 ;;
	esac
	random_number $most
	status=0
	without_leak_check strace -f -qq -o /dev/null -e trace=$call -e inject=$call:signal=KILL:when=$((NUMBER + 1)) \
		wherry rebuild --progress=none >"$WORK/stdout" 2>"$WORK/stderr" || status=$?
	((status == 137)) && kills=$((kills + 1))
	expect_number "status == 137 || status == 0" "$(cat "$WORK/stderr")"
	if [[ -e $WHERRY_STORE/catalog.db ]]; then
		listing after
		check_same before after
	else
		expect_error "wherry rebuild" wherry images
	fi
done
say "  $kills kills"
expect_number "kills >= 3"
rebuild 0
same_as_before

say "damage: what is lost is said, read as an error, and healed by a round"
random_file big 70M big
sync_disk big web04
random_range big 66M 2M late
sync_disk big web04
cp big kept_big
first=$WHERRY_STORE/segments/$(ls -S "$WHERRY_STORE"/segments/*/*.seg | sed 's|.*/segments/||' | head -n 1)
length=$(size_of "$first")
expect_number "length > 60 * MIB"
# the segment ends early: chunks, and maybe log entries, are lost
cp "$first" whole
truncate -s $((length - 5 * MIB)) "$first"
rebuild 3
expect_equal false "$(json_get .ok)"
lost=$(json_get '.damaged | map(select(.disk == "web04" and .image == 1) | .length) | add // 0')
flaws=$(json_get '.flaws | length')
say "  $lost bytes of web04@1 are lost, $flaws flaws"
expect_number "lost > 4 * MIB && lost < 6 * MIB || flaws > 0"
status=0
wherry export web04@1 out --progress=none 2>err || status=$?
expect_equal 1 $status "what is lost is no data: $(cat err)"
expect_exit 3 wherry check --json --progress=none
expect_exit 0 wherry disks
check_export web01@1 kept1
check_export web02@1 kept2
rebuild 3
sync_disk big web04
expect_number "$(json_get .stored_bytes) >= lost"
check_export web04@latest big
check_export web04@2 kept_big
expect_exit 0 wherry check --deep --json --progress=none # one round healed all images
cp whole "$first"
rebuild 0
expect_exit 0 wherry check --deep --json --progress=none
check_export web04@2 kept_big
check_export web04@latest big

say "a missing segment"
mv "$first" aside
rebuild 3
expect_number "$(json_get '(.flaws | length) + (.damaged | length)') > 0" "what is lost is said"
for image in $(wherry images --json | jq -r '.images[] | "\(.disk)@\(.number)"'); do
	case $image in
	web01@*) content=kept${image#*@} ;;
	web02@1) content=kept2 ;;
	*) continue ;;
	esac
	wherry export "$image" out --progress=none 2>err || continue # an error, never other content
	check_same "$content" out
done
mv aside "$first"
rebuild 0
expect_exit 0 wherry check --deep --json --progress=none

say "a log whose chunks are all lost, and that moved them around"
make_store
random_file swapped 1M swapped
sync_disk swapped other
content_segment=$WHERRY_STORE/segments/01/00000001.seg
sync_apart() {
	expect_exit 0 flock "$content_segment" wherry sync "$@" --no-image --progress=none # it has to append elsewhere
}
sync_apart swapped web01
dd if=swapped of=moved bs=64K count=3 skip=3 status=none
dd if=swapped of=moved bs=64K seek=3 count=3 status=none
dd if=swapped of=moved bs=64K seek=6 skip=6 status=none
cp moved swapped
sync_apart swapped web01
mv "$content_segment" aside
rebuild 3
expect_equal "$((1024 * 1024))" \
	"$(json_get '[.damaged[] | select(.disk == "web01") | .length] | add')" "all of web01"
expect_error "lost" wherry export web01 out --progress=none
mv aside "$content_segment"
rebuild 0
check_export web01 swapped
