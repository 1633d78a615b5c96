#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compression levels and rates: whatever they are, what comes out is what went in; a higher level makes it no larger,
# a limit makes it slower, and both can be changed while a round runs.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq basenc

MIB=$((1024 * 1024))
RECORD=4096 # more than a record has besides its chunk

# now_ms: milliseconds, to take the difference of.
now_ms() {
	echo $(($(date +%s%N) / 1000000))
}

# policy_of DISK: "LEVEL LIMIT KEEP".
policy_of() {
	wherry disks --json | jq -r --arg name "$1" \
		'.disks[] | select(.name == $name) | "\(.level) \(.limit_bytes_per_second) \(.keep)"'
}

# ---------------------------------------------------------------- levels

# Text, what doesn't compress, zeros, and what does in its first half only.
text_bytes=$((2 * MIB))
while (($(size_of text 2>/dev/null || echo 0) < text_bytes)); do
	cat /usr/share/common-licenses/* "$WHERRY_SOURCE"/*/*.[ch] >>text
done
truncate -s $text_bytes text
random_file random 1M random
{ cat text random && head -c 1M /dev/zero && head -c 100000 text && head -c 100000 random; } >mixed

say "each level"
stored=()
for level in {0..10}; do
	make_store # chunks that are there already would not be stored again
	sync_disk text text --level "$level"
	stored[level]=$(json_get .stored_bytes)
	sync_disk mixed mixed --level "$level"
	check_export text@1 text
	check_export mixed@1 mixed
done
say "  $text_bytes bytes of text take: ${stored[*]}"
expect_number "${stored[0]} >= $text_bytes" "level 0 stores text as it is"
expect_number "${stored[1]} < $text_bytes * 8 / 10" "level 1 compresses"
for level in {2..10}; do
	expect_number "${stored[level]} <= ${stored[1]}" "level $level stores no more than level 1"
done
expect_number "${stored[10]} < ${stored[1]} * 9 / 10" "level 10 compresses much better than level 1"
expect_number "${stored[10]} <= ${stored[3]}" "level 10 stores no more than level 3"

say "what can't be compressed is stored as it is, at any level"
for level in 1 10; do
	make_store
	sync_disk random random --level "$level"
	expect_number "$(json_get .stored_bytes) >= $MIB && $(json_get .stored_bytes) <= $MIB + 16 * $RECORD" "level $level"
	check_export random@1 random
done

say "chunks of several levels in one disk"
make_store
cp mixed source
for level in 0 10 1 5; do
	random_number $((text_bytes / 2))
	seq "$NUMBER" $((NUMBER + 50000)) | dd of=source bs=1M seek="$NUMBER" oflag=seek_bytes conv=notrunc status=none
	sync_disk source levels --level $level
	cp source "source-$level"
done
image=1
for level in 0 10 1 5; do
	check_export "levels@$image" "source-$level"
	image=$((image + 1))
done

say "chunks known already are not stored again at another level"
sync_disk source again --level 10
expect_number "$(json_get .stored_bytes) <= $RECORD" "so much is stored"

say "set: a level for the rounds to come"
make_store
truncate -s 4K nothing
sync_disk nothing web01
expect_equal "null null null" "$(policy_of web01)" "in the beginning"
expect_exit 0 wherry set web01 --level 0 --limit 100Mbit --keep 9 --json
expect_equal "web01 0 12500000 9" "$(json_get '"\(.disk) \(.level) \(.limit_bytes_per_second) \(.keep)"')" "what is set"
expect_equal "0 12500000 9" "$(policy_of web01)" "what is listed"
sync_disk text web01
expect_number "$(json_get .stored_bytes) >= $text_bytes" "level 0 is obeyed"
make_store
sync_disk nothing web01
expect_exit 0 wherry set web01 --level 0
sync_disk text web01 --level 6
expect_number "$(json_get .stored_bytes) <= ${stored[1]}" "what is said to one round goes before what is set"
expect_equal "0 null null" "$(policy_of web01)" "and leaves it as it was"
expect_exit 0 wherry set web01 --limit 3M
expect_equal "0 $((3 * MIB)) null" "$(policy_of web01)" "one thing set leaves the others"
expect_exit 0 wherry set web01 --level default --limit unlimited --keep all
expect_equal "null null null" "$(policy_of web01)" "as in the beginning"
check_export web01@latest text

# ---------------------------------------------------------------- limits

# A round may be slower than its limit for reasons of its own, so times have a lower bound; an upper one is there only
# where a limit that is not obeyed would take minutes.
random_file fast 12M fast
random_file slow 24M slow
make_store

say "a limit"
began=$(now_ms)
sync_disk fast fast --limit 4M
took=$(($(now_ms) - began))
say "  12 MiB at 4 MiB a second: $took ms"
expect_number "$took >= 2000" "12 MiB take three seconds at 4 MiB a second"
expect_equal true "$(json_get '.elapsed_seconds >= 2')" "seconds in the report"
expect_equal true "$(json_get ".bytes_per_second <= 6 * $MIB")" "speed in the report"
check_export fast@1 fast
expect_equal "null null null" "$(policy_of fast)" "the limit of one round is not the disk's"

say "the limit is one of what is stored: what is there already passes freely"
sync_disk fast again --limit 100K
expect_equal true "$(json_get '.elapsed_seconds < 30')" "12 MiB that are known take no 2 minutes"
check_export again@1 fast

say "set: a limit for the rounds to come"
truncate -s 4K nothing
sync_disk nothing web02
expect_exit 0 wherry set web02 --limit 4M
random_file other 12M other
began=$(now_ms)
sync_disk other web02
took=$(($(now_ms) - began))
expect_number "$took >= 2000" "the limit that was set is obeyed"
check_export web02@2 other

# sent FILE: bytes that the last whole line of a round's progress tells.
sent() {
	grep '}$' "$1" | tail -n 1 | jq .sent_bytes
}
has_sent() {
	(($(sent "$1") > 0))
}

# slow_round DISK OPTION…: begins a round that would take four minutes; sets ROUND.
slow_round() {
	start wherry sync slow "$@" --progress=json --json >slow.out 2>slow.err
	ROUND=$PID
	wait_until 20 has_sent slow.err
}

say "set: a running round obeys a limit that is raised within 2 seconds"
sync_disk nothing web03
expect_exit 0 wherry set web03 --limit 100K
slow_round web03
sleep 1
expect_number "$(sent slow.err) <= 3 * $MIB" "it is slow"
began=$(now_ms)
expect_exit 0 wherry set web03 --limit unlimited
finish "$ROUND" || die "the round failed: $(cat slow.err)"
took=$(($(now_ms) - began))
say "  finished after $took ms"
expect_number "$took < 20000" "it finishes soon, and not after minutes"
expect_equal "$(size_of slow)" "$(json_get .size_bytes slow.out)"
check_export web03@2 slow

say "set: a running round obeys a limit that is lowered, and one that was given to the round itself"
make_store
slow_round web04 --limit 2M
expect_exit 0 wherry set web04 --limit 50K
sleep 2
before=$(sent slow.err)
sleep 2
after=$(sent slow.err)
say "  $before, 2 seconds later $after"
expect_number "$before < $(size_of slow)" "it is not done"
expect_number "$after - $before <= 512 * 1024" "what is sent in 2 seconds at 50 KiB a second, and a chunk or some"
expect_exit 0 wherry set web04 --limit unlimited
finish "$ROUND" || die "the round failed: $(cat slow.err)"
check_export web04@1 slow

say "set: a running round obeys another level"
# Text of which half remains, and that is not the same anywhere. What is read ahead is compressed already when it waits
# for the limit, and stays as it is: no more than 48 MiB of memory, and the text is larger.
random_stream $((48 * MIB)) words | basenc --base16 -w 0 >words
make_store
start wherry sync words web05 --limit 1M --level 0 --progress=json --json >words.out 2>words.err
wait_until 20 has_sent words.err
expect_exit 0 wherry set web05 --level 3
sleep 2
before=$(sent words.err)
expect_number "$before <= 16 * $MIB" "the limit is as it was"
expect_exit 0 wherry set web05 --limit unlimited
finish "$PID" || die "the round failed: $(cat words.err)"
after=$(json_get .stored_bytes words.out)
say "  of $(size_of words) bytes $before were stored before, $after at the end"
expect_number "$after < $(size_of words) * 85 / 100" "the rest was compressed"
# Four bits of each byte are random: less than half of what came after $before bytes can't remain.
expect_number "$after >= $(size_of words) / 2 + $before / 2" "the beginning was not"
check_export web05@1 words

say "a round at a low limit can be stopped at once"
make_store
slow_round web06 --limit 10K
began=$(now_ms)
kill -INT "$ROUND"
status=0
finish "$ROUND" || status=$?
expect_equal 130 "$status" "status of a round that was stopped"
expect_number "$(now_ms) - $began < 5000" "it did not wait for what the limit allows"
sync_disk slow web06
expect_equal true "$(json_get .resumed)" "the next one goes on"
check_export web06@1 slow
