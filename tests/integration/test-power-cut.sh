#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The power fails at any instant of rounds and deletions: what was acknowledged is there. In each state every image that
# is listed is right, those that had been acknowledged are listed, those whose deletion had been are not, a deep check
# finds nothing, and a round goes on.
# timeout: 400
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/power-cut.sh"
requires sqlite3
power_begin

say "the scenario"
expect_exit 0 recorded wherry init --chunk-size 16K --json
initialized=$(said)
random_file source 1M first
cp source kept1
expect_exit 0 recorded wherry sync source web01 --progress=none --json
made1=$(said)
start_reader
random_range source 256K 320K second
cp source kept2
expect_exit 0 recorded wherry sync source web01 --progress=none --label two --json
made2=$(said)
promise_image "$made2" $never web01@2 kept2
expect_exit 0 recorded wherry sync kept1 other --progress=none --json
promise_image "$(said)" $never other@1 kept1
expect_exit 0 recorded wherry clone other@1 twin --json
expect_exit 0 recorded wherry image twin --json
twin=$(said)
promise_image "$made1" "$(records)" web01@1 kept1
expect_exit 0 recorded wherry delete web01@1 --json
promise "$(said)" $never - "image web01@1"
stop_reader
random_range source 0 700K third
cp source kept3
expect_exit 0 recorded wherry pin web01@2 --json
promise "$(said)" $never + "image web01@2 ${content[web01@2]} p two"
start "${recording[@]}" wherry sync source web01 --limit 300K --progress=none >/dev/null 2>&1
sleep 1.2
kill -INT "$PID"
status=0
finish "$PID" || status=$?
expect_equal 130 $status "stopped by a signal"
stopped=$(records)
done_bytes=$(wherry rounds web01 --json | jq '.rounds | max_by(.number).done_bytes')
expect_number "$done_bytes > 0" "something was done"
expect_exit 0 recorded wherry sync source web01 --progress=none --json
expect_equal true "$(json_get .resumed)" "goes on"
ended3=$(said)
expect_exit 0 recorded wherry image web01 --label live --json
made4=$(said)
random_range source 320K 160K fifth
cp source kept5
promise_image "$ended3" "$(records)" web01@3 kept3
promise_image "$made4" "$(records)" web01@4 kept3
expect_exit 0 recorded wherry sync source web01 --keep 2 --progress=none --json
made5=$(said)
promise "$made5" $never - "image web01@3"
promise "$made5" $never - "image web01@4"
promise_image "$made5" "$(records)" web01@5 kept5 # the next round takes it away
expect_exit 0 recorded wherry sync source web01 --progress=none --json # nothing has changed
promise_image "$(said)" $never web01@6 kept5
promise_image "$twin" "$(records)" twin@1 kept1
expect_exit 0 recorded wherry remove twin --json
promise "$(said)" $never - "image twin@1"
power_end
check_export web01@2 kept2
check_export web01@6 kept5
expect_equal "2 6" "$(wherry images web01 --json | jq -r '[.images[].number] | sort | join(" ")')" "images at the end"

# The source is as it was then.
choose_steps() {
	if (($1 < made1)); then
		SOURCE=kept1
	elif (($1 < made2)); then
		SOURCE=kept2
	elif (($1 < ended3)); then
		SOURCE=kept3
	else
		SOURCE=kept5
	fi
	STEPS=(list)
	(($1 < stopped || $1 >= ended3)) || STEPS+=(round=web01)
	STEPS+=(sync=source=web01 list check)
}
judge_more() {
	local kept=0
	if (($1 >= stopped && $1 < ended3)); then
		[[ ! $OUTPUT =~ round\ web01\ [a-z]*\ ([0-9]+) ]] || kept=${BASH_REMATCH[1]}
		((kept >= done_bytes)) || WRONG+="a checkpoint of $done_bytes bytes is lost, $kept are done"$'\n'
	fi
}

say "states"
states_begin
look_at_states 30 0 "$all"
expect_equal 0 $bad "states with something lost"

say "control: with a disk that lies this test fails"
control .seg "$made1" "$made1" "$all"
control .db-wal "$made1" "$made1" "$all"
control .db "$made1" "$made1" "$all"
