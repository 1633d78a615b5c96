# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034,SC2154
#
# The power fails at any instant, for test-power-*.sh: a scenario is recorded, call by call; a helper makes states as the
# disk may have had them when the power went (what was synced is there, of the rest any part may be); each is looked at.
#
#     power_begin                        a store's folder, $WHERRY_STORE, of which all that is done below it is recorded
#     recorded COMMAND…                  a command, recorded. What it does that has no record ends it, and the test
#     records, said                      how many records there are; the first one after the last document was said
#     promise FROM TO + TEXT             in states from the record FROM on, to TO, a line of the listing begins with these words; "-": none does
#     content[DISK@N]=DIGEST             what an image holds, whenever it is there
#     power_end                          no more is recorded; that nothing is missing in the records is made sure. The
#                                        store is the recorded one still: the last moment to look at it
#     states_begin                       the helpers at work
#     look_at_states COUNT FROM TO       so many states in that part of the records; all of them when thorough
#     control ENDING LIES FROM TO        with a disk that lies about syncs of such files from LIES on, states from FROM to TO
#                                        have lost something, or the test is worth nothing
#
# The script says what is done in a state: choose_steps AT SEED sets STEPS (see helpers/power_check.c) and SOURCE, the file of a
# round among them. It may have more to say: judge_more AT adds to WRONG what else is wrong with $OUTPUT.

cut=$WHERRY_TEST_TOOLS/power_cut
checker=$WHERRY_TEST_TOOLS/power_check
recorder=$WHERRY_TEST_TOOLS/preload_record.so
log=$WORK/log
never=99999999
promises=()
declare -A content=()

# In memory where that can be had, for nothing here waits for a real disk; small, so that what is kept as a reserve is.
MEMORY=32M
# power_memory FOLDER
power_memory() {
	mkdir -p "$1"
	((EUID != 0)) || mount_at "$1" -t tmpfs -o size=$MEMORY tmpfs
}

power_begin() {
	local file
	for file in "$cut" "$checker" "$recorder"; do
		[[ -e $file ]] || skip "needs $file"
	done
	requires openssl jq sha256sum diff
	power_memory "$WORK/recorded"
	export WHERRY_STORE=$WORK/recorded/store
	: >"$log"
	mkdir "$WHERRY_STORE" # records are of what is made below it
	recording=(env RECORD_FOLDER="$(realpath "$WHERRY_STORE")" RECORD_LOG="$log" LD_PRELOAD="$recorder")
}

recorded() {
	"${recording[@]}" "$@"
}
records() {
	"$cut" count "$log"
}
# From when a command's promise counts: from the moment at which it has closed its standard output, with a JSON document
# that says so. (What it does to the store after that, as it ends, may be cut off.)
said() {
	"$cut" said "$log"
}
promise() {
	promises+=("$*")
}
digest() {
	sha256sum <"$1" | cut -d' ' -f1
}
# promise_image FROM TO DISK@N FILE: with that content.
promise_image() {
	content[$3]=$(digest "$4")
	promise "$1" "$2" + "image $3 ${content[$3]}"
}

# start_reader: somebody who reads in the catalog. A command that ends moves what the catalog's log holds into the
# database, unless somebody does: meanwhile all that is promised is in the log alone.
start_reader() {
	[[ -p $WORK/queries ]] || mkfifo "$WORK/queries"
	: >"$WORK/answers"
	# shellcheck disable=SC2016
	start bash -c 'exec sqlite3 -readonly "$1" <"$2" >"$3"' - "$WHERRY_STORE/catalog.db" "$WORK/queries" "$WORK/answers"
	READER=$PID
	exec 8>"$WORK/queries"
	echo "BEGIN; SELECT count(*) FROM disk;" >&8
	wait_until 20 test -s "$WORK/answers"
}
# stop_reader: killed, for it would tidy up unrecorded if it ended by itself.
stop_reader() {
	kill -KILL "$READER"
	finish "$READER" 2>/dev/null || true # bash would tell of it
	exec 8>&-
}

power_end() {
	power_memory "$WORK/states"
	all=$(records)
	say "  $all records"
	"$cut" whole "$log" "$WORK/states/whole"
	diff -r --exclude='*-shm' "$WHERRY_STORE" "$WORK/states/whole" || die "the records lack something"
	rm -rf "$WORK/states/whole"
}

# ------------------------------------------------------------------ judging

# judge_line LINE: of power_check's; adds to WRONG, listing and made.
judge_line() {
	local kind name digest rest
	read -r kind name digest rest <<<"$1"
	case $kind in
	failed* | damaged | flaw*) WRONG+="$1"$'\n' ;;
	made)
		made=$name
		[[ -z $listing ]] || is_listing=0 # it is what was there before; a repair comes before its listing
		;;
	image)
		((!is_listing)) || listing+=$'\n'$1
		if [[ $digest != "${content[$name]:-none}" && ($name != "$made" || $digest != "${digests[$SOURCE]}") ]]; then
			WRONG+="$name is not what it was: $digest $rest"$'\n'
		fi
		;;
	disk) ((!is_listing)) || listing+=$'\n'$1 ;;
	esac
}

# judge AT: what power_check says of a state; sets WRONG and OUTPUT.
judge() {
	local line promised from to sign text is_listing=1 listing="" made=""
	WRONG="" OUTPUT=""
	while read -r -t 90 line <&7; do
		[[ $line != end ]] || break
		OUTPUT+=$line$'\n'
		judge_line "$line"
	done
	[[ ${line:-} == end ]] || die "$checker has ended: $OUTPUT"
	listing+=$'\n'
	for promised in "${promises[@]}"; do
		read -r from to sign text <<<"$promised"
		((from <= $1 && $1 < to)) || continue
		if [[ $sign == + && $listing != *$'\n'"$text"[$' \n']* ]]; then
			WRONG+="was promised: $text"$'\n'
		elif [[ $sign == - && $listing == *$'\n'"$text"[$' \n']* ]]; then
			WRONG+="is back: $text"$'\n'
		fi
	done
	judge_more "$1"
}
judge_more() {
	:
}

# look_at AT SEED [IGNORED FROM]: at one state; sets WRONG to what is wrong there, "" if nothing is.
look_at() {
	local line
	echo "$1 $2 $WHERRY_STORE ${*:3}" >&6
	read -r -t 90 line <&5 || true
	[[ ${line:-} == done ]] || die "$cut has ended"
	choose_steps "$1" "$2"
	if [[ $SOURCE != "$source_now" ]]; then
		cp "$SOURCE" source
		source_now=$SOURCE
		[[ -n ${digests[$SOURCE]:-} ]] || digests[$SOURCE]=$(digest "$SOURCE")
	fi
	(($1 >= initialized)) || STEPS=(init-if-none "${STEPS[@]}")
	echo "$WHERRY_STORE ${STEPS[*]}" >&8
	judge "$1"
}
source_now=""
declare -A digests=()

# states_begin: both helpers at work, who are asked on descriptors 6 and 8 and answer on 5 and 7.
states_begin() {
	mapfile -t syncs < <("$cut" syncs "$log")
	export WHERRY_STORE=$WORK/states/crashed
	mkfifo "$WORK"/{make,made,look,seen}
	# both ends: or opening one would wait for the other
	exec 5<>"$WORK/made" 6<>"$WORK/make" 7<>"$WORK/seen" 8<>"$WORK/look"
	# told in there, for what runs in the background has no standard input otherwise
	start bash -c 'exec "$@" <&6 >&5' - "$cut" states "$log"
	start bash -c 'exec "$@" <&8 >&7' - "$checker" -
}

# ---------------------------------------------------------------- choosing

# random_point FROM TO: sets AT. A quarter of them just after something was promised, a quarter next to a sync.
random_point() {
	local sync
	random_number 4
	if ((NUMBER == 0)); then
		random_number ${#promises[@]}
		AT=${promises[NUMBER]%% *}
		((AT < $1 || AT > $2)) || return 0
	fi
	random_number $(($2 - $1 + 1))
	AT=$(($1 + NUMBER))
	if ((NUMBER % 2 == 0)); then
		for sync in "${syncs[@]}"; do
			((sync < AT)) || break
		done
		AT=$((sync + NUMBER / 2 % 2))
		((AT <= $2)) || AT=$2
	fi
}

bad=0
look_and_tell() {
	look_at "$@"
	[[ -n $WRONG ]] || return 0
	bad=$((bad + 1))
	say "  power cut at record $1, seed $2:"
	sed 's/^/    /' <<<"${WRONG%$'\n'}"
}

look_at_states() {
	local i
	if [[ ${WHERRY_TEST_THOROUGH:-} == 1 ]]; then
		for ((AT = $2; AT <= $3; AT++)); do
			for ((i = 0; i < 4; i++)); do
				random_number 1000000
				look_and_tell "$AT" "$NUMBER"
			done
		done
	else
		for ((i = 0; i < $1; i++)); do
			random_point "$2" "$3"
			random_number 1000000
			look_and_tell "$AT" "$NUMBER"
		done
	fi
}

control() {
	local i lost=0
	for ((i = 0; i < 80 && lost < 2; i++)); do
		random_point "$3" "$4"
		random_number 1000000
		look_at "$AT" "$NUMBER" "$1" "$2"
		[[ -z $WRONG ]] || lost=$((lost + 1))
	done
	say "  syncs of *$1 ignored from record $2 on: $lost of $i states have lost something"
	expect_number "$lost == 2" "the control notices"
}
