#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How a round may end otherwise than well: the source changes its size, or its content, while it is read; the store's
# file system is full; the process is killed. No image then, or one that says how far it can be trusted; what was there
# before stays, and it goes on from there.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq strace
MIB=$((1024 * 1024))
SIZE=$((16 * MIB))

last_round() {
	wherry rounds "${2:-web01}" --json | jq -r ".rounds | max_by(.number).$1"
}
is_running() {
	[[ $(last_round state) == running ]]
}
images() {
	wherry images web01 --json | jq -r '[.images[].number] | join(" ")'
}

# slow_round: in the background, for more than ten seconds; sets PID when it has begun.
slow_round() {
	start wherry sync source web01 --limit 1M --progress=none --json >"$WORK/round" 2>"$WORK/round.err"
	wait_until 30 is_running
	sleep 0.3
}

# hurry: what slow_round() has begun is let go.
hurry() {
	is_running || die "the round has ended early"
	expect_exit 0 wherry set web01 --limit unlimited
}

# refused PATTERN: the round in the background fails with one line that matches.
refused() {
	local status=0
	hurry
	finish "$PID" || status=$?
	expect_equal 1 $status "exit status: $(cat "$WORK/round.err")"
	expect_equal 1 "$(wc -l <"$WORK/round.err")" "lines on standard error: $(cat "$WORK/round.err")"
	grep -qE "^wherry: .*$1" "$WORK/round.err" || die "not as expected: $(cat "$WORK/round.err")"
	expect_equal 0 "$(wc -c <"$WORK/round")" "bytes on standard output"
	expect_equal failed "$(last_round state)" "state of the round"
	grep -qE "$1" <<<"$(last_round error)" || die "the round's row says: $(last_round error)"
}

random_file source $SIZE first
cp source kept1
make_store
sync_disk source web01
expect_equal clean "$(json_get .consistency)" "consistency"

say "the source is truncated while it is read"
random_file source $SIZE second
cp source kept2
slow_round
truncate -s 10M source
refused 'source .*(size|short|end|truncated|small)'
expect_equal 1 "$(images)" "images"
check_export web01@1 kept1
expect_error '--allow-shrink' wherry sync source web01
cp kept2 source
sync_disk source web01
expect_equal 2 "$(json_get .image)" "number of the image"
check_export web01@2 kept2
check_export web01@1 kept1

say "the source grows while it is read"
random_file source $SIZE third
slow_round
random_range source 16M 1M more
refused 'source .*size changed from 16777216 to 17825792'
expect_equal "1 2" "$(images)" "images"
cp source kept3
sync_disk source web01
expect_equal $((17 * MIB)) "$(json_get .size_bytes)" "size"
check_export web01@3 kept3
check_export web01@2 kept2

say "the source is written to while it is read"
random_file source 17M fourth
slow_round
random_range source 1M 4K written
hurry
finish "$PID" || die "$(cat "$WORK/round.err")"
expect_equal fuzzy "$(json_get .consistency "$WORK/round")" "consistency"
expect_equal fuzzy "$(wherry images web01 --json | jq -r '.images | max_by(.number).consistency')" "the image's consistency"
grep -q 'written to while it was read' <<<"$(wherry images web01 --json; cat "$WORK/round" "$WORK/round.err")" || die "no reason is given"
check_export web01@3 kept3
sync_disk source web01
expect_equal clean "$(json_get .consistency)" "consistency of the next one"
check_export web01@5 source

say "written to between a round that was stopped and its continuation"
random_file source 17M fifth
slow_round
kill -TERM "$PID"
status=0
finish "$PID" || status=$?
expect_equal 130 $status "exit status"
random_range source 16M 4K written-too
sync_disk source web01
expect_equal "true fuzzy" "$(json_get '"\(.resumed) \(.consistency)"')" "goes on, and is not to be trusted"
sync_disk source web01
expect_equal "false clean" "$(json_get '"\(.resumed) \(.consistency)"')" "the next one is"
check_export web01@latest source

say "another file takes the place of the source between a round that was stopped and its continuation"
random_file source 17M fifth-b
slow_round
kill -TERM "$PID"
finish "$PID" || true
random_file replacement 17M fifth-c
mv replacement source
sync_disk source web01
expect_equal "false clean" "$(json_get '"\(.resumed) \(.consistency)"')" "two files are not joined to one"
check_export web01@latest source

say "a disk that shrinks, killed before it is smaller; an image of that says what it is"
random_file large 32M large
sync_disk large shrinks
cp large first
truncate -s 6M large
for ((n = 1; n <= 12; n++)); do
	status=0
	without_leak_check strace -f -qq -o trace -e trace=fdatasync -e inject=fdatasync:signal=KILL:when=$n \
		wherry sync large shrinks --allow-shrink --progress=none >stdout 2>stderr || status=$?
	((status != 0)) || break
	expect_exit 0 wherry image shrinks --json
	[[ $(json_get .consistency) == clean ]] || continue
	expect_exit 0 wherry export "shrinks@$(json_get .image)" exported --progress=none
	cmp -s first exported || cmp -s large exported || die "killed at fdatasync $n: a mix is called clean"
done
say "  killed $((n - 1)) times"
expect_number "$n > 3" "it was killed"
sync_disk large shrinks --allow-shrink
check_export shrinks@latest large

say "the process is killed"
random_file source 17M sixth
slow_round
kill -KILL "$PID"
finish "$PID" 2>/dev/null || true # bash would tell of it
expect_equal stopped "$(last_round state)" "state of the round"
[[ $(last_round error) == *killed* ]] || die "the round's row says: $(last_round error)"
wherry rounds web01 | grep -q stopped || die "not said to have stopped: $(wherry rounds web01)"
sync_disk source web01
expect_equal true "$(json_get .resumed)" "goes on"
expect_equal done "$(last_round state)" "state of the round"
check_export web01@latest source

say "the source goes away"
mv source elsewhere
expect_error 'source: no such file' wherry sync source web01
mv elsewhere source

if ((EUID != 0)); then
	skip "the rest needs root, to mount a small file system"
fi

say "the store's file system is full"
mount_at "$WORK/small" -t tmpfs -o size=24M tmpfs
export WHERRY_STORE=$WORK/small/store
random_file source 12M small
truncate -s 20M source
cp source kept1
make_store
sync_disk source web01
random_file source 20M larger
cp source kept2
expect_error '(No space left|no space left).*room' wherry sync source web01 --progress=none
[[ $(last_round state) == failed || $(last_round state) == stopped ]] || die "state of the round: $(last_round state)"
expect_equal 1 "$(images)" "images"
check_export web01@1 kept1
expect_exit 1 wherry sync source web01 --progress=none
grep -q 'No space left.*room' "$WORK/stderr" || die "the second time: $(cat "$WORK/stderr")"
check_export web01@1 kept1
expect_exit 0 wherry disks
mount -o remount,size=80M "$WORK/small"
sync_disk source web01
expect_equal "true 2" "$(json_get '"\(.resumed) \(.image)"')" "goes on after room was made"
check_export web01@2 kept2
check_export web01@1 kept1

say "full while the catalog is written, at whatever byte"
for ((left = 4; left <= 512; left = left * 3 / 2)); do
	rm -f "$WORK/small/fill"
	random_range source 0 256K "left $left"
	cp source kept3
	free=$(($(stat -f -c '%a * %S' "$WORK/small") / 1024))
	((free <= left)) || fallocate -l $((free - left))K "$WORK/small/fill"
	status=0
	wherry sync source web01 --progress=none --json >"$WORK/stdout" 2>"$WORK/stderr" || status=$?
	rm -f "$WORK/small/fill"
	if ((status != 0)); then
		expect_equal 1 $status "exit status with ${left}K left: $(cat "$WORK/stderr")"
		grep -qiE 'no space left|disk is full' "$WORK/stderr" || die "with ${left}K left: $(cat "$WORK/stderr")"
		sync_disk source web01
	fi
	check_export "web01@$(json_get .image)" kept3
	check_export web01@1 kept1
	check_export web01@2 kept2
done
