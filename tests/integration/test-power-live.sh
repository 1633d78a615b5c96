#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The power fails at any instant while a live disk is written to: small writes, whole chunks, zeros, discards, FUA, flushes, folds,
# images, clean-up; after a kill, while what that left is taken up; and again, while what a power cut left is. In each state every
# sector holds what was flushed last or something that was written after that, images that were acknowledged are there and
# right, and a deep check finds nothing.
# timeout: 400
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/power-cut.sh"
requires jq
MEMORY=128M
power_begin
[[ -e $WHERRY_TEST_TOOLS/power_live ]] || skip "needs power_live"

SIZE=$((66 * 1024 * 1024 + 1536)) # 4,096 chunks can be zeroed at once, and the last one is short
WRITES=130

say "the scenario"
expect_exit 0 recorded wherry init --chunk-size 16K
expect_exit 0 recorded wherry create live $SIZE --json
initialized=$(said)
random_number 1000000
for run in "1 kill" "100000 kill" "200000 close"; do
	read -r first how <<<"$run"
	expect_exit 0 recorded "$WHERRY_TEST_TOOLS/power_live" "$WHERRY_STORE" live $((NUMBER + first)) $WRITES "$first" "$how"
done
power_end
# to look just after flushes and images, a quarter of the times
while read -r at kind; do
	[[ $kind != [FI] ]] || promise "$at" $never + "disk live"
done < <("$cut" notes "$log")

choose_steps() {
	: >nothing
	SOURCE=nothing
	STEPS=(engine=live="$log:$1" check)
}

say "states"
states_begin
# a sample in any case: there are ten thousand records
states=60
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || states=4000
WHERRY_TEST_THOROUGH=0 look_at_states $states "$initialized" "$all"
expect_equal 0 $bad "states with something lost"

# again COUNT STATES: so many states are made, work goes on in each and is recorded, and of that again states are looked at.
again() {
	local i j first log2=$WORK/log2 folder=$WORK/states/again
	for ((i = 0; i < $1; i++)); do
		random_point "$initialized" "$all"
		random_number 1000000
		"$cut" states "$log" <<<"$AT $NUMBER $folder" >/dev/null
		"$cut" import "$folder" "$log2"
		first=$("$cut" count "$log2")
		RECORD_FOLDER=$(realpath "$folder") RECORD_LOG=$log2 LD_PRELOAD=$recorder expect_exit 0 \
			"$WHERRY_TEST_TOOLS/power_live" "$folder" live "$NUMBER" 60 300000 kill
		for ((j = 0; j < $2; j++)); do
			again_at "$AT" "$log2" "$first" "$NUMBER"
		done
done
}
again_at() {
	local before=$1 log2=$2 first=$3 seed=$4 at
	random_number $(($("$cut" count "$log2") - first + 1))
	at=$((first + NUMBER))
	random_number 1000000
	"$cut" states "$log2" <<<"$at $NUMBER $WHERRY_STORE" >/dev/null
	"$checker" "$WHERRY_STORE" "engine=live=$log:$before+$log2:$at" check >looked 2>&1 || true
	if grep -qE '^(failed|flaw|damaged)' looked; then
		bad=$((bad + 1))
		say "  power cut at record $before, seed $seed, and at record $at after that, seed $NUMBER:"
		sed 's/^/    /' looked
	fi
}

say "the power fails again, after work went on"
if [[ ${WHERRY_TEST_THOROUGH:-} == 1 ]]; then
	again 60 20
else
	again 5 5
fi
expect_equal 0 $bad "states with something lost"

say "control: with a disk that lies this test fails"
control .wj "$initialized" "$initialized" "$all"
control .seg "$initialized" "$initialized" "$all"
control .db-wal "$initialized" "$initialized" "$all"
