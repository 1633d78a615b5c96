#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check finds damage of every kind and says whose it is and where; and it finds none where there is none: after syncs,
# deletions and kills, and while others work. (tests/unit/test_store_check.c damages records byte by byte.)
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3 sfdisk strace

MIB=$((1024 * 1024))
SIZE=$((72 * MIB)) # more than a segment takes

# check_is_clean [OPTION…]: both kinds of check find nothing.
check_is_clean() {
	local deep
	for deep in "" --deep; do
		expect_exit 0 wherry check $deep --json --progress=none "$@"
		expect_equal "true 0 0" "$(json_get '"\(.ok) \(.damaged | length) \(.flaws | length)"')"
		[[ ! -s stderr ]] || die "nothing was expected to be said: $(cat stderr)"
	done
}

# damaged_ranges: "DISK@N:OFFSET:LENGTH …" of the last report.
damaged_ranges() {
	json_get '[.damaged[] | "\(.disk)@\(.image // "live"):\(.offset):\(.length)"] | join(" ")'
}

# expect_damage "DISK@N:OFFSET:LENGTH …" PATTERN [OPTION…]: just these ranges, each with a reason that matches.
expect_damage() {
	local ranges=$1 pattern=$2
	shift 2
	expect_exit 3 wherry check --json --progress=none "$@"
	expect_equal false "$(json_get .ok)"
	expect_equal "$ranges" "$(damaged_ranges)" "damage"
	json_get '.damaged[].why' >whys
	! grep -qvE "$pattern" whys || die "reasons don't match /$pattern/: $(cat whys)"
}

# segment NUMBER: sets FILE.
segment() {
	printf -v FILE '%s/segments/%02x/%08x.seg' "$WHERRY_STORE" $(($1 % 256)) "$1"
}

# find_text TEXT: sets FILE and PLACE to where it stands in a segment; it must be there once.
find_text() {
	local found
	found=$(grep -obaF -r "$1" "$WHERRY_STORE/segments")
	expect_equal 1 "$(wc -l <<<"$found")" "how often '$1' is in segments"
	FILE=${found%%:*}
	found=${found#*:}
	PLACE=${found%%:*}
}

put_text() {
	printf '%s' "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

say "a store with partitions, three images of two disks, two segments"
make_store
check_is_clean
expect_equal "0 0" "$(json_get '"\(.chunks) \(.segments)"')"
random_file source $SIZE source
printf 'label: gpt\nstart=1MiB, size=20MiB\nstart=21MiB, size=40MiB\n' | sfdisk -q source
put_text source 10 boot-loader
put_text source $((30 * MIB + 100)) in-all-of-them
put_text source $((5 * MIB + 200)) in-the-first-image
put_text source $((5 * MIB + 65536 + 200)) next-to-it
sync_disk source web01
check_is_clean
put_text source $((5 * MIB + 200)) in-later-images-to
put_text source $((50 * MIB)) second
sync_disk source web01
sync_disk source web02
cp source original
check_is_clean
chunks=$(json_get .chunks)
expect_number "chunks == $SIZE / 65536 + 2" "each chunk is counted once"
expect_equal 2 "$(json_get .segments)"
cp -a store pristine

mend() {
	rm -rf store
	cp -a pristine store
}

say "a flipped byte of content: found by a deep check, named for all who have it"
find_text in-all-of-them
byte_flip "$FILE" "$PLACE"
expect_exit 0 wherry check --progress=none
all_at() { # OFFSET:LENGTH
	echo "web01@live:$1 web01@1:$1 web01@2:$1 web02@live:$1 web02@1:$1"
}
expect_damage "$(all_at $((30 * MIB)):65536)" '^segment 00000001: damaged record: payload$' --deep
expect_equal '[2]' "$(json_get '[.damaged[].partitions] | unique | map(tojson) | join(" ")')" "partition"
expect_exit 3 wherry check --deep --progress=none
expect_equal "6" "$(wc -l <stdout)"
grep -qxF "  web01@2, partition 2: 64.0 KiB at byte $((30 * MIB)): segment 00000001: damaged record: payload" stdout ||
	die "not as people are told: $(cat stdout)"
expect_exit 1 wherry export web01@1 exported --progress=none # what a check finds is what a reader meets
mend

say "a flipped byte of a header: found by both; only by those who see that state"
find_text in-the-first-image
byte_flip "$FILE" $((PLACE - 200 - 64 + 20))
expect_damage "web01@1:$((5 * MIB)):65536" 'damaged record: header'
expect_damage "web01@1:$((5 * MIB)):65536" 'damaged record: header' --deep
expect_equal '[1]' "$(json_get '.damaged[0].partitions | tojson')"

say "ranges that touch are one"
find_text next-to-it
byte_flip "$FILE" $((PLACE - 200 - 64))
expect_exit 3 wherry check --json --progress=none
expect_equal "131072" "$(json_get '.damaged[] | select(.image == 1 and .disk == "web01") | .length')"
mend

say "the table itself: told without its partition"
find_text boot-loader
byte_flip "$FILE" "$PLACE"
expect_exit 3 wherry check --deep --json --progress=none
expect_equal '[{"offset":0,"partitions":[]}]' \
	"$(json_get '[.damaged[] | select(.image == 1 and .disk == "web01") | {offset, partitions}] | tojson')"
mend

say "a compressed record"
make_store
(set +o pipefail && yes 'the quick brown fox jumps over the lazy dog' | head -c 300000 >text)
sync_disk text texts
segment 1
record=$(grep -obaF wRC1 "$FILE" | sed -n 5p) # behind two entries of the log and two chunks
byte_flip "$FILE" $((${record%%:*} + 64 + 40))
expect_damage "texts@live:131072:65536 texts@1:131072:65536" 'damaged record: payload' --deep
mend

say "a segment that is missing, cut short, swapped, of another store, and damaged at its head"
segment 1
mv "$FILE" taken
expect_exit 3 wherry check --json --progress=none
expect_equal 5 "$(json_get '[.damaged[] | "\(.disk)@\(.image)"] | unique | length')"
expect_equal 'segment 00000001: its file segments/01/00000001.seg is missing' \
	"$(json_get '[.damaged[].why] | unique | join("")')"
missing=$(json_get '[.damaged[] | select(.disk == "web02" and .image == 1) | .length] | add')
expect_number "missing >= 60 * $MIB && missing < $SIZE"
expect_equal true "$(json_get 'any(.flaws[]; .what == "segment 00000001")')"
expect_number "$(json_get '.flaws | length') < 10" "entries of logs in it are one flaw"
mv taken "$FILE"
truncate -s 40M "$FILE"
expect_exit 3 wherry check --json --progress=none
expect_equal 'segment 00000001: its file was cut short' "$(json_get '[.damaged[].why] | unique | join("")')"
cut=$(json_get '[.damaged[] | select(.disk == "web02" and .image == 1) | .length] | add')
expect_number "cut >= missing - 41 * $MIB && cut <= missing - 39 * $MIB" "what is behind the cut"
mend
segment 1 && one=$FILE
segment 2 && two=$FILE
mv "$one" taken && mv "$two" "$one" && mv taken "$two"
expect_exit 3 wherry check --deep --json --progress=none
expect_equal 2 "$(json_get '[.flaws[] | select(.why == "it is another segment under this name")] | length')"
expect_equal $SIZE "$(json_get '[.damaged[] | select(.disk == "web02" and .image == 1) | .length] | add')"
mend
wherry -s other init >/dev/null
expect_exit 0 wherry -s other sync text x --progress=none
cp other/segments/01/00000001.seg "$two"
expect_exit 3 wherry check --json --progress=none
expect_equal 1 "$(json_get '[.flaws[] | select(.what == "segment 00000002")] | length')"
mend
byte_flip "$one" 13
expect_exit 3 wherry check --json --progress=none
expect_equal 'segment 00000001: header checksum' "$(json_get '[.damaged[].why] | unique | join("")')"
mend

say "the log of a disk"
place=$(sqlite3 store/catalog.db 'SELECT segment, off_bytes FROM log WHERE disk=2 AND sequence=1')
segment "${place%|*}"
byte_flip "$FILE" $((${place#*|} + 70))
expect_exit 3 wherry check --json --progress=none
expect_equal "0 log of disk web02, entry 1" "$(json_get '"\(.damaged | length) \([.flaws[].what] | join(", "))"')"
mend

say "rows of the catalog"
change_catalog() {
	mend
	sqlite3 store/catalog.db "$1"
	expect_exit 3 wherry check --json --progress=none
}
change_catalog 'UPDATE segment SET live_bytes=live_bytes+8 WHERE number=2'
expect_equal "0 segment 2" "$(json_get '"\(.damaged | length) \([.flaws[].what] | join(", "))"')"
change_catalog 'DELETE FROM digest WHERE chunk=9'
expect_equal "0 chunk 9" "$(json_get '"\(.damaged | length) \([.flaws[].what] | join(", "))"')"
change_catalog 'UPDATE disk SET generation=1 WHERE id=1'
expect_number "$(json_get '.flaws | length') > 0"
change_catalog "UPDATE disk SET size_bytes=size_bytes-512 WHERE name='web01'"
expect_number "$(json_get '[.flaws[].why | select(test("the catalog says"))] | length') == 1"
change_catalog 'UPDATE image SET size_bytes=size_bytes-512 WHERE number=1 AND disk=1'
expect_number "$(json_get '[.flaws[].why | select(test("image 1 had .* bytes when it was made"))] | length') == 1"
change_catalog 'UPDATE past SET entries=zeroblob(3)'
expect_equal "web01@1:0:$((16 * MIB)) web01@1:$((48 * MIB)):$((16 * MIB))" "$(damaged_ranges)"
change_catalog "UPDATE map SET entries=x'00' WHERE key=(1<<40)"
expect_equal "web01@live:0:$((16 * MIB)) web01@1:0:$((16 * MIB)) web01@2:0:$((16 * MIB))" "$(damaged_ranges)"
mend

root=$(sqlite3 store/catalog.db "SELECT rootpage FROM sqlite_master WHERE name='digest'")
zero_range store/catalog.db $(((root - 1) * 4096)) 4096
expect_exit 3 wherry check --json --progress=none
expect_equal "0 catalog" "$(json_get '"\(.damaged | length) \([.flaws[].what] | unique | join(", "))"')"
mend

say "clean after deletions, and kills at any moment"
random_range source 10M 6M third
sync_disk source web01
expect_exit 0 wherry delete web01@1
check_is_clean
for n in 1 2 3; do
	random_range source "$((n * 8))M" 8M "kill-$n"
	start wherry sync source web01 --progress=none --limit 40M >killed 2>&1
	random_number 300
	sleep "0.$(printf '%03d' $((NUMBER + 50)))"
	kill -KILL "$PID" 2>/dev/null || true # on a quick machine it may be done
	finish "$PID" 2>killed || true
	check_is_clean
done
sync_disk source web01
expect_exit 0 wherry remove web02
check_is_clean

say "clean while rounds run"
random_file fresh 48M fresh
start wherry sync fresh web03 --progress=none --limit 10M >round.out 2>&1
round=$PID
ran=0
while _is_running_child "$round"; do
	check_is_clean
	ran=$((ran + 1))
	((ran < 4)) || break
done
expect_number "ran > 1" "checks while a round ran"
stop_process "$round"
check_is_clean

say "progress, and a signal"
expect_exit 0 wherry check --deep --progress=json
expect_equal "check" "$(jq -r .phase stderr | sort -u)"
expect_equal true "$(tail -n 1 stderr | jq '.total_bytes > 0 and .done_bytes >= .total_bytes * 0.99')"
# Each read of a record takes 10 ms: the signal comes while there is much left to do.
ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" start strace -f -qq -o trace -e trace=preadv \
	-e inject=preadv:delay_enter=10000 wherry check --deep --progress=none >stopped.out 2>stopped.err
wait_until 20 grep -q preadv trace
kill -INT "$(pgrep -P "$PID")"
status=0
finish "$PID" || status=$?
expect_equal 130 $status "status of a check that was stopped"
[[ ! -s stopped.out ]] || die "a stopped check prints a result: $(cat stopped.out)"
grep -q 'check stopped by a signal; nothing is known about the rest' stopped.err ||
	die "it doesn't say so: $(cat stopped.err)"

((EUID == 0)) || skip "all but what needs root has passed"
say "on a store that can't be written to"
mkdir read-only
mount_at read-only --bind "$WHERRY_STORE"
mount -o remount,bind,ro "$WORK/read-only"
store_state >before
WHERRY_STORE=read-only check_is_clean
store_state >after
check_same before after
unmount read-only
