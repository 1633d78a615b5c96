#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The power fails at any instant: what was acknowledged is there. All that wherry does to the files of a store is
# recorded; a helper makes states as the disk may have had them when the power went, at random records and next to those
# of syncs: what was synced is there, of the rest any part may be. In each state every image that is listed is right,
# those that had been acknowledged are listed, those whose deletion had been are not, and a round goes on.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3
STATES=20

cut=$WHERRY_TEST_TOOLS/power_cut
recorder=$WHERRY_TEST_TOOLS/preload_record.so
[[ -x $cut && -e $recorder ]] || skip "needs $cut and $recorder"
log=$WORK/log
mkdir "$WHERRY_STORE" # records are of what is made below it

recording=(env RECORD_FOLDER="$(realpath "$WHERRY_STORE")" RECORD_LOG="$log" LD_PRELOAD="$recorder")

# recorded COMMAND…: the command, recorded.
recorded() {
	"${recording[@]}" "$@"
}

# What was promised, and when: FROM TO REFERENCE FILE. Before the record FROM nothing was promised, from TO on
# somebody began to take the image away.
promises=()
# From when it counts: from the moment at which the command has closed its standard output, with a JSON document that
# says so. (What it does to the store after that, as it ends, may be cut off.)
records() {
	"$cut" count "$log"
}
said() {
	"$cut" said "$log"
}
say "the scenario"
expect_exit 0 recorded wherry init --chunk-size 16K --json
initialized=$(said)
never=99999999
random_file source 3M first
cp source kept1
expect_exit 0 recorded wherry sync source web01 --progress=none --json
made1=$(said)

# A command that ends moves what the catalog's log holds into the database, unless somebody reads there: meanwhile all
# that is promised is in the log alone. The reader is killed, for it would tidy up unrecorded if it ended by itself.
mkfifo "$WORK/queries"
# shellcheck disable=SC2016
start bash -c 'exec sqlite3 -readonly "$1" <"$2" >"$3"' - "$WHERRY_STORE/catalog.db" "$WORK/queries" "$WORK/answers"
READER=$PID
exec 8>"$WORK/queries"
echo "BEGIN; SELECT count(*) FROM disk;" >&8
wait_until 20 test -s "$WORK/answers"
random_range source 512K 1M second
cp source kept2
expect_exit 0 recorded wherry sync source web01 --progress=none --label two --json
made2=$(said)
promises+=("$made2 $never web01@2 kept2")
expect_exit 0 recorded wherry sync kept1 other --progress=none --json
promises+=("$(said) $never other@1 kept1")
promises+=("$made1 $(records) web01@1 kept1")
expect_exit 0 recorded wherry delete web01@1 --json
gone1=$(said)
kill -KILL "$READER"
finish "$READER" 2>/dev/null || true # bash would tell of it
exec 8>&-
random_range source 0 2M third
cp source kept3
expect_exit 0 recorded wherry pin web01@2 --json
start "${recording[@]}" wherry sync source web01 --limit 1M --progress=none >/dev/null 2>&1
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
promises+=("$ended3 $never web01@3 kept3")
expect_exit 0 recorded wherry image web01 --label live --json
made4=$(records)
random_range source 1M 512K fifth
cp source kept5
expect_exit 0 recorded wherry sync source web01 --keep 2 --progress=none --json
promises=("${promises[@]/#$ended3 $never web01@3/$ended3 $made4 web01@3}")
made5=$(said)
gone3=$made5
promises+=("$made5 $((made5 + 1)) web01@5 kept5") # the next round takes it away
expect_exit 0 recorded wherry sync source web01 --progress=none --json # nothing has changed
promises+=("$(said) $never web01@6 kept5")
all=$(records)
check_export web01@2 kept2
check_export web01@6 kept5
expect_equal "2 6" "$(wherry images web01 --json | jq -r '[.images[].number] | sort | join(" ")')" "images at the end"
say "  $all records"

# What each image holds, whenever it is there.
declare -A content=([web01@1]=kept1 [web01@2]=kept2 [web01@3]=kept3 [web01@4]=kept3 [web01@5]=kept5 [web01@6]=kept5
	[other@1]=kept1)

# same REFERENCE FILE
same() {
	wherry export "$1" - --progress=none 2>"$WORK/export.err" | cmp -s - "$2"
}

# check_state RECORD: of the store in $WHERRY_STORE; prints what is wrong, and returns 1 if something is.
check_state() {
	local at=$1 listed reference from to file promise wrong=0
	if ((at >= initialized)) || [[ -e $WHERRY_STORE/wherry.json ]]; then
		if ! wherry disks --json >"$WORK/disks" 2>"$WORK/state.err"; then
			echo "not a store any more: $(cat "$WORK/state.err")"
			return 1
		fi
	else
		wherry init --chunk-size 16K >/dev/null 2>"$WORK/state.err" ||
			{ echo "can't be begun anew: $(cat "$WORK/state.err")" && return 1; }
	fi
	listed=$(wherry images --json 2>"$WORK/state.err" | jq -r '.images[] | "\(.disk)@\(.number)"' | tr '\n' ' ')
	for reference in $listed; do
		same "$reference" "${content[$reference]}" || {
			echo "$reference is not ${content[$reference]}: $(cat "$WORK/export.err")"
			wrong=1
		}
	done
	for promise in "${promises[@]}"; do
		read -r from to reference file <<<"$promise"
		if ((at >= from && at < to)) && [[ " $listed" != *" $reference "* ]]; then
			echo "$reference was there and is lost"
			wrong=1
		fi
	done
	if ((at >= gone1)) && [[ " $listed" == *" web01@1 "* ]]; then
		echo "web01@1 was deleted and is back"
		wrong=1
	fi
	if ((at >= gone3)) && [[ " $listed" =~ \ web01@[34]\  ]]; then
		echo "images that retention deleted are back: $listed"
		wrong=1
	fi
	if ((at >= stopped && at < ended3)); then
		from=$(wherry rounds web01 --json | jq '.rounds | max_by(.number).done_bytes')
		if ((from < done_bytes)); then
			echo "a checkpoint of $done_bytes bytes is lost, $from are done"
			wrong=1
		fi
	fi
	# On with the work, with the source as it was then: a round, and all as before.
	if ((at < made1)); then
		file=kept1
	elif ((at < made2)); then
		file=kept2
	elif ((at < ended3)); then
		file=kept3
	else
		file=kept5
	fi
	cp "$file" source
	if ! wherry sync source web01 --progress=none --json >"$WORK/round" 2>"$WORK/state.err"; then
		echo "no round goes on: $(cat "$WORK/state.err")"
		return 1
	fi
	reference=web01@$(jq .image "$WORK/round")
	same "$reference" source || {
		echo "$reference of the round after is not the source: $(cat "$WORK/export.err")"
		wrong=1
	}
	wherry images --json | jq -r '.images[] | "\(.disk)@\(.number)"' >"$WORK/after"
	for reference in $listed; do
		if grep -qxF "$reference" "$WORK/after" && ! same "$reference" "${content[$reference]}"; then
			echo "$reference was damaged by the round after"
			wrong=1
		fi
	done
	return $wrong
}

# random_state: sets AT. A quarter of them just after something was promised, a quarter next to a sync.
random_state() {
	random_number 4
	if ((NUMBER == 0)); then
		random_number ${#promises[@]}
		AT=${promises[NUMBER]%% *}
		return
	fi
	random_number "$all"
	AT=$NUMBER
	if ((NUMBER % 2 == 0)); then
		AT=$("$cut" sync-near "$log" "$AT")
		AT=$((AT + NUMBER / 2 % 2))
	fi
}

# In memory where that can be had: the states are made and thrown away, and nothing here waits for a real disk.
mkdir "$WORK/states"
((EUID != 0)) || mount_at "$WORK/states" -t tmpfs -o size=256M tmpfs
export WHERRY_STORE=$WORK/states/crashed
say "$STATES states"
bad=0
for ((i = 0; i < STATES; i++)); do
	random_state
	random_number 1000000
	rm -rf "$WHERRY_STORE"
	"$cut" make "$log" "$AT" "$NUMBER" "$WHERRY_STORE"
	if ! check_state "$AT" >"$WORK/wrong"; then
		say "  power cut at record $AT, seed $NUMBER:"
		sed 's/^/    /' "$WORK/wrong"
		bad=$((bad + 1))
		cp -r "$WHERRY_STORE" "$WORK/bad$bad"
	fi
done
expect_equal 0 $bad "states with something lost"

# control ENDING: with a disk that lies about syncs of such files, something must be lost in some of the states.
control() {
	local i lost=0
	for ((i = 0; i < 40 && lost < 2; i++)); do
		random_state
		((AT >= made1)) || continue
		random_number 1000000
		rm -rf "$WHERRY_STORE"
		"$cut" make "$log" "$AT" "$NUMBER" "$WHERRY_STORE" "$1"
		check_state "$AT" >/dev/null || lost=$((lost + 1))
	done
	say "  syncs of *$1 ignored: $lost of $i states have lost something"
	expect_number "$lost == 2" "the control notices"
}
say "control: with a disk that lies this test fails"
control .seg
control .db-wal
control .db
