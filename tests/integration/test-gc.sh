#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# gc gives back the room of what nothing reaches, and loses nothing else: next to rounds and readers, next to another gc,
# killed at any call, with damage in its way. Retention does it by itself.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq strace cmp

MIB=$((1024 * 1024))

segment_bytes() {
	find "$WHERRY_STORE/segments" -name '*.seg' -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'
}
segment_files() {
	find "$WHERRY_STORE/segments" -name '*.seg' -printf '%f %s %C@\n' | sort
}
check_deep() {
	expect_exit 0 wherry check --deep --json --progress=none
	expect_equal true "$(json_get .ok)"
}
# churn FILE SEED: two thirds of it are other ones now.
churn() {
	random_range "$1" 4M 16M "$2"
}

say "nothing dead, nothing done"
make_store
expect_exit 0 wherry gc --json --progress=none
expect_equal "0 0 0" "$(json_get '"\(.freed_bytes) \(.moved_bytes) \(.removed_segments)"')"
random_file source 24M first
sync_disk source web01
before=$(segment_files)
expect_exit 0 wherry gc --progress=none
expect_equal "nothing to free" "$(cat stdout)"
expect_equal "$before" "$(segment_files)" "files of segments"

say "what is dead goes, what lives is moved and is what it was"
cp source kept1
churn source two
cp source kept2
sync_disk source web01
churn source three
cp source kept3
sync_disk source web01
expect_exit 0 wherry delete web01@2
before_bytes=$(segment_bytes)
expect_exit 0 wherry delete web01@1
expect_number "$(segment_bytes) >= before_bytes" "deleting alone gives nothing back"
before_bytes=$(segment_bytes)
expect_exit 0 wherry gc --dry-run --json --progress=none
promised=$(json_get .freed_bytes)
expect_number "$promised > 24 * MIB" "of 56 MiB 24 live"
expect_equal "$before_bytes" "$(segment_bytes)" "nothing happens with --dry-run"
expect_exit 0 wherry gc --json --progress=none
freed=$(json_get .freed_bytes)
expect_number "$(json_get .moved_bytes) > 23 * MIB"
# the file system may be told more than what was promised: a new segment has a head
expect_number "$freed - (before_bytes - $(segment_bytes)) < 65536 && before_bytes - $(segment_bytes) - freed < 65536" "what it says"
expect_number "$promised - freed < 65536 && freed - promised < 65536" "is what it promised"
check_deep
check_export web01@3 kept3
sync_disk kept3 web01
expect_equal 0 "$(json_get .stored_bytes)" "the next round finds what was moved"
expect_equal 0 "$(json_get .changed_bytes)"
sync_disk kept3 web02
expect_number "$(json_get .stored_bytes) < 65536" "and so does another disk"
expect_exit 0 wherry gc --json --progress=none
expect_equal 0 "$(json_get .removed_segments)" "a second time there is nothing to do"
expect_exit 0 wherry remove web02

say "content that was dead and gone is stored anew"
sync_disk kept1 web01
check_export web01@latest kept1
check_deep

say "next to a reader that began before, and one gc at a time"
# a MiB that stays between MiBs that go
random_file fresh 24M fresh
random_file going 48M going
for ((i = 0; i < 24; i++)); do
	dd if=fresh of=mixed bs=1M skip=$i seek=$((3 * i)) count=1 conv=notrunc status=none
	dd if=going of=mixed bs=1M skip=$((2 * i)) seek=$((3 * i + 1)) count=2 conv=notrunc status=none
done
sync_disk mixed web02
sync_disk fresh web03
expect_exit 0 wherry remove web02
mkfifo slow
start bash -c 'exec wherry export web03@1 - --progress=none >slow'
reader=$PID
exec 7<slow
head -c $MIB <&7 >read
start wherry gc --limit 4M --progress=none >gc.out 2>gc.err
cleaner=$PID
wait_until 20 test -s "$WHERRY_STORE/locks/clean"
sleep 0.3
expect_error "cleans it up already" wherry gc --progress=none
kill -INT "$cleaner"
status=0
finish "$cleaner" || status=$?
expect_equal 130 $status "stopped by a signal: $(cat gc.err)"
expect_exit 0 wherry gc --json --progress=none
cat <&7 >>read
exec 7<&-
finish "$reader" || die "the reader failed"
check_same fresh read
expect_exit 0 wherry remove web03
check_deep

say "next to a round"
start wherry sync kept2 web03 --limit 12M --progress=none >round.out 2>&1
round=$PID
for ((i = 0; i < 4; i++)); do
	expect_exit 0 wherry sync kept3 web04 --progress=none
	expect_exit 0 wherry remove web04
	expect_exit 0 wherry gc --progress=none
done
finish "$round" || die "the round failed: $(cat round.out)"
check_export web03@1 kept2
check_deep

say "killed at any call"
kills=0
for ((i = 0; i < 12; i++)); do
	random_range source $((i % 12 * 2))M 2M "five $i"
	sync_disk source web01
	random_file other 6M "six $i"
	sync_disk other web02
	expect_exit 0 wherry remove web02
	case $((i % 4)) in
	0) call=unlinkat most=1 ;;
	1) call=fdatasync most=3 ;;
	2) call=fsync most=3 ;;
	3) call=pwrite64 most=16 ;;
	esac
	random_number $most
	status=0
	without_leak_check strace -f -qq -o /dev/null -e trace=$call -e inject=$call:signal=KILL:when=$((NUMBER + 1)) \
		wherry gc --progress=none >"$WORK/stdout" 2>"$WORK/stderr" || status=$?
	((status == 137)) && kills=$((kills + 1))
	expect_number "status == 137 || status == 0" "$(cat "$WORK/stderr")"
	check_deep
	((i % 4 != 3)) || check_export web01@latest source
done
say "  $kills kills"
expect_number "kills >= 5"
expect_exit 0 wherry gc --progress=none
check_export web01@latest source
check_export web03@1 kept2
usage=$(wherry df --json)
expect_number "$(jq .dead_bytes <<<"$usage") <= $(jq .live_bytes <<<"$usage") + 8 * MIB" "half of what is left lives"

say "damage is left where it is, and said"
expect_exit 0 wherry remove web03
expect_exit 0 wherry remove web01
expect_exit 0 wherry gc --progress=none
sync_disk kept1 web05
sync_disk kept2 web05
expect_exit 0 wherry delete web05@1
segment=$(find "$WHERRY_STORE/segments" -name '*.seg' -printf '%s %p\n' | sort -n | tail -n 1 | cut -d' ' -f2)
sync_disk kept2 web06
churn kept2 six
sync_disk kept2 web05
expect_exit 0 wherry delete web05@2
churn kept2 seven
sync_disk kept2 web05
expect_exit 0 wherry remove web06
random_file other 40M eight
sync_disk other web07
expect_exit 0 wherry delete web05@3
mv "$segment" "$WORK/away"
expect_exit 0 wherry gc --json --progress=none
damaged=$(json_get .damaged_segments)
[[ -e $segment ]] && die "it is not made anew"
mv "$WORK/away" "$segment"
say "  $damaged left alone"
expect_exit 0 wherry gc --json --progress=none
expect_equal 0 "$(json_get .damaged_segments)"
check_deep
check_export web05@latest kept2
check_export web07@latest other

say "retention does it by itself"
expect_exit 0 wherry remove web05
expect_exit 0 wherry remove web07
expect_exit 0 wherry gc --progress=none
for ((i = 0; i < 6; i++)); do
	churn kept3 "nine $i"
	sync_disk kept3 web08 --keep 1
done
expect_number "$(segment_bytes) < 72 * MIB" "24 MiB live, 120 MiB were written"
check_deep
check_export web08@latest kept3
expect_equal 1 "$(wherry images web08 --json | jq '.images | length')"
