#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A round that is killed at any moment loses what came after its last checkpoint and nothing else: the same command goes
# on, the image is the source, earlier images are untouched. 15 kills, 50 with WHERRY_TEST_THOROUGH=1: at random calls that
# write, at random moments next to checkpoints that follow each other closely, and behind checkpoints that are made by the
# clock. Then signals, on which a round makes a checkpoint itself.
# timeout: 500
. "$(dirname "$0")/functions.sh"
requires openssl jq strace

MIB=$((1024 * 1024))
SLACK=$((8 * MIB)) # looking at what the source is; the unit in which the cursor stands
kills=0
# How many rounds are killed at calls that write; how many kills there were behind that, next to close checkpoints, and before
# those of the clock; four more behind those.
at_calls=6 by_checkpoints=7 by_clock=11
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || at_calls=24 by_checkpoints=28 by_clock=46

# last_round FILTER: of the newest round of web01.
last_round() {
	wherry rounds web01 --json | jq -r ".rounds | max_by(.number) | $1"
}

# killed STATUS: counts it when it was a kill. (A round that was faster than the kill has simply ended.)
killed() {
	if (($1 == 137)); then
		kills=$((kills + 1))
	else
		expect_equal 0 "$1" "a round is killed, or has ended well: $(cat "$WORK/stderr")"
	fi
}

# round_killed_after SECONDS: 137 when it was killed, 0 when it had ended. wherry is the child itself.
round_killed_after() {
	local delay=$1
	shift
	start wherry sync source web01 --progress=none "$@" >/dev/null 2>"$WORK/stderr"
	sleep "$delay"
	kill -KILL "$PID" 2>/dev/null || true
	status=0
	finish "$PID" 2>/dev/null || status=$? # bash would tell of each kill
}

# seconds_between FROM TO: sets SECONDS_CHOSEN, both in ms.
seconds_between() {
	random_number $(($2 - $1))
	printf -v SECONDS_CHOSEN '%d.%03d' $((($1 + NUMBER) / 1000)) $((($1 + NUMBER) % 1000))
}

# bytes_read_by COMMAND…: sets READ_BYTES to what it read of the file "source", as strace sees it, and keeps its
# standard output like expect_exit.
bytes_read_by() {
	without_leak_check strace -f -qq -y -e trace=pread64,preadv,preadv2,read,readv -e status=successful \
		-o "$WORK/reads" "$@" >"$WORK/stdout" 2>"$WORK/stderr" || die "$(cat "$WORK/stderr")"
	# A call that another thread interrupts takes two lines; the second one has the result and not the file, so count
	# by the thread.
	READ_BYTES=$(awk -v file="<$WORK/source>" '
		/resumed>/ { if (open[$1]) sum += $NF; open[$1] = 0; next }
		index($0, file) == 0 { next }
		/unfinished/ { open[$1] = 1; next }
		{ sum += $NF }
		END { printf "%d", sum }' "$WORK/reads")
}

say "killed at calls that write"
random_file source 8M first
make_store --chunk-size 16K
sync_disk source web01
cp source kept1
random_range source 1M 3M second
for ((i = 0; i < at_calls; i++)); do
	random_number 4
	case $NUMBER in
	0) call=fdatasync most=6 ;;
	1) call=fsync most=3 ;;
	*) call=pwrite64 most=60 ;;
	esac
	random_number $most
	status=0
	without_leak_check strace -f -qq -o /dev/null -e trace=$call -e inject=$call:signal=KILL:when=$((NUMBER + 1)) \
		wherry sync source web01 --progress=none --json >"$WORK/stdout" 2>"$WORK/stderr" || status=$?
	killed $status
	check_export web01@1 kept1
	if ((status == 0)); then
		check_export "web01@$(json_get .image)" source
		random_range source 2M 1M "again $i"
	fi
done
say "  $kills kills"
sync_disk source web01
check_export "web01@$(json_get .image)" source
check_export web01@1 kept1

say "killed next to checkpoints that follow each other closely"
# 40960 blocks of a few kinds: next to nothing to store, but an entry to note for each, and a checkpoint after 32768.
repeat_block() {
	random_range block 0 1M "block $1"
	# shellcheck disable=SC2046
	cat $(printf 'block %.0s' {1..640}) >source
}
REPEATED=$((640 * MIB))
: >block
repeat_block 0
make_store --chunk-size 16K
sync_disk kept1 web01 --label earlier
sync_disk source timed
whole_ms=$(json_get '.elapsed_seconds * 1000 | floor + 50')
moved=0
tries=0

# round_killed_behind_checkpoint: as soon as something more is certain, or up to a tenth of a second later.
is_more_certain() {
	local state done_bytes
	_is_running_child "$PID" || return 0
	read -r state done_bytes <<<"$(last_round '"\(.state) \(.done_bytes)"')"
	[[ $state == running ]] && ((done_bytes > before))
}
round_killed_behind_checkpoint() {
	before=0
	[[ $(last_round .state) == "done" ]] || before=$(last_round .done_bytes)
	start wherry sync source web01 --progress=none >/dev/null 2>"$WORK/stderr"
	until is_more_certain; do sleep 0.03; done
	seconds_between 0 100
	sleep "$SECONDS_CHOSEN"
	kill -KILL "$PID" 2>/dev/null || true
	status=0
	finish "$PID" 2>/dev/null || status=$?
}

while ((kills < by_checkpoints)); do
	tries=$((tries + 1))
	if ((tries % 2)); then
		seconds_between 10 "$whole_ms"
		round_killed_after "$SECONDS_CHOSEN"
	else
		round_killed_behind_checkpoint
	fi
	killed "$status"
	check_export web01@1 kept1
	if ((status == 137)); then
		# done: it was killed before it began a round, or when it had ended one
		state=$(last_round .state)
		[[ $state == stopped || $state == "done" ]] || die "the state of a round whose process is gone: $state"
		[[ $state == "done" || $(last_round .done_bytes) == 0 ]] || moved=$((moved + 1))
	else
		check_export web01@latest source
		repeat_block $tries
	fi
done
say "  in $moved of them something was done already"
unfinished=$(last_round .state)
done_bytes=$(last_round .done_bytes)
[[ $unfinished != "done" ]] || done_bytes=0
bytes_read_by wherry sync source web01 --progress=none --json
[[ $unfinished == "done" ]] || expect_equal true "$(json_get .resumed)" "goes on"
expect_number "$READ_BYTES <= $REPEATED + $SLACK - $done_bytes" "what was finished is not read again"
check_export "web01@$(json_get .image)" source
check_export web01@1 kept1

# 64 MiB at 8 MiB a second; a checkpoint after 5 seconds.
DISK=$((64 * MIB))

# restart_slow_disk: an image that must stay, and 64 MiB of changes to come.
restart_slow_disk() {
	random_file source $DISK "slow $1"
	cp source kept1
	make_store
	sync_disk source web01
	random_file source $DISK "slower $1"
}

# check_resumed LEAST: the round goes on, and doesn't read at least so much again.
check_resumed() {
	bytes_read_by wherry sync source web01 --progress=none --json
	expect_equal true "$(json_get .resumed)" "goes on"
	expect_equal 2 "$(json_get .image)" "number of the image"
	expect_equal clean "$(json_get .consistency)" "nobody wrote to the source"
	expect_equal $DISK "$(json_get .changed_bytes)" "changed bytes of the whole round"
	expect_number "$READ_BYTES <= $DISK + $SLACK - $1" "what was finished is not read again"
	check_export web01@2 source
	check_export web01@1 kept1
}

say "killed behind checkpoints made by the clock"
restart_slow_disk clock
while ((kills < by_clock)); do
	seconds_between 50 700
	round_killed_after "$SECONDS_CHOSEN" --limit 8M
	killed "$status"
done
expect_equal 0 "$(last_round .done_bytes)" "before the first checkpoint nothing is certain"
has_done_more() {
	(($(last_round .done_bytes) > before))
}
for ((i = 0; i < 4; i++)); do
	before=$(last_round .done_bytes)
	start wherry sync source web01 --limit $((i == 0 ? 4 : 2))M --progress=none >/dev/null 2>"$WORK/stderr"
	wait_until 30 has_done_more
	seconds_between 0 500
	sleep "$SECONDS_CHOSEN"
	kill -KILL "$PID"
	status=0
	finish "$PID" 2>/dev/null || status=$?
	killed "$status"
	expect_number "$(last_round .done_bytes) > $before" "what the checkpoint had is kept"
	check_export web01@1 kept1
done
expect_equal $((by_clock + 4)) $kills "kills"
check_resumed "$(last_round .done_bytes)"

say "stopped by a signal"
for signal in INT TERM; do
	restart_slow_disk $signal
	start wherry sync source web01 --limit 8M --progress=none >/dev/null 2>"$WORK/stderr"
	sleep 1.5
	kill -$signal "$PID"
	status=0
	finish "$PID" || status=$?
	expect_equal 130 $status "exit status after SIG$signal"
	expect_equal 1 "$(grep -vc 'wherry: stopping' "$WORK/stderr")" "lines on standard error: $(cat "$WORK/stderr")"
	grep -q '^wherry: disk web01: round stopped by a signal' "$WORK/stderr"
	expect_equal stopped "$(last_round .state)" "state of the round"
	expect_equal 1 "$(wherry images web01 --json | jq '.images | length')" "images"
	done_bytes=$(last_round .done_bytes)
	expect_number "$done_bytes >= 4 * $MIB" "what was done is kept"
	check_resumed "$done_bytes"
done

say "control: with a disk that forgets, this test fails"
swallow=$WHERRY_TEST_TOOLS/preload_swallow.so
[[ -e $swallow ]] || skip "the control needs $swallow"
restart_slow_disk control
start env LD_PRELOAD="$swallow" wherry sync source web01 --limit 8M --progress=none >/dev/null 2>&1
sleep 1
kill -INT "$PID"
finish "$PID" || true
LD_PRELOAD=$swallow wherry sync source web01 --progress=none >/dev/null 2>&1 || true
status=0
(check_export web01@2 source) >"$WORK/control" 2>&1 || status=$?
expect_number "$status != 0" "a damaged image is noticed"
