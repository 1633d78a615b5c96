#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The power fails at any instant of what keeps a store in order: clean-up, retention with its small one, pins and labels, a
# disk removed, the reserve used and kept again, a rebuild with the catalog there and without, a repair. In each state every
# image is right, those that were acknowledged are there, and it goes on: a deep check, a clean-up, a rebuild, a round.
# timeout: 400
. "$(dirname "$0")/functions.sh"
. "$WHERRY_SOURCE/tests/integration/power-cut.sh"
requires sqlite3
power_begin
KIB=1024

# done_quietly STATUS COMMAND…: recorded; sets BEFORE, the record before, and AFTER, the one at which it has said that it is done.
done_quietly() {
	local status=$1
	shift
	BEFORE=$(records)
	expect_exit "$status" recorded "$@" --json
	AFTER=$(said)
}
# round_made DISK@N SOURCE OPTION…: a round of a copy of the source, that must make this image.
round_made() {
	local image=$1 source=$2
	shift 2
	cp "$source" "kept-${image/@/-}"
	done_quietly 0 wherry sync "$source" "${image%@*}" --progress=none "$@"
	expect_equal "${image#*@}" "$(json_get .image)"
	content[$image]=$(digest "$source")
}
# sources[N]: from which record on the source of web01 is what.
sources=() sources_from=()
source_is() {
	sources+=("kept-web01-$1")
	sources_from+=("$BEFORE")
}

say "the scenario: images, pins, a disk that is removed"
done_quietly 0 wherry init --chunk-size 16K
initialized=$AFTER
random_file source 768K first
round_made web01@1 source
made1=$AFTER
source_is 1
random_range source 0 384K second
round_made web01@2 source --label two
made2=$AFTER
source_is 2
random_range source 192K 384K third
round_made web01@3 source
made3=$AFTER
source_is 3
done_quietly 0 wherry pin web01@1
pinned1=$AFTER
done_quietly 0 wherry unpin web01@1
promise "$pinned1" "$BEFORE" + "image web01@1 ${content[web01@1]} p"
promise "$AFTER" $never - "image web01@1 ${content[web01@1]} p"
done_quietly 0 wherry pin web01@2
pinned2=$AFTER
random_file extra 2M other
round_made other@1 extra
promise "$AFTER" "$(records)" + "image other@1 ${content[other@1]}"
done_quietly 0 wherry remove other
promise "$AFTER" $never - "disk other"
promise "$AFTER" $never - "image other@1"
done_quietly 0 wherry delete web01@1
promise "$made1" "$BEFORE" + "image web01@1 ${content[web01@1]}"
promise "$AFTER" $never - "image web01@1"
done_quietly 0 wherry image web01 --label again
content[web01@4]=${content[web01@3]}
made4=$AFTER

say "  a clean-up that moves what lives"
done_quietly 0 wherry gc --progress=none
expect_number "$(json_get .moved_bytes) > 512 * KIB && $(json_get .freed_bytes) > 2048 * KIB" "it was worth it"
gc_from=$BEFORE gc_to=$(records)

say "  retention and its small clean-up"
done_quietly 0 wherry unpin web01@2
promise "$pinned2" "$BEFORE" + "image web01@2 ${content[web01@2]} p two"
promise "$AFTER" $never - "image web01@2 ${content[web01@2]} p"
random_range source 0 768K fourth
round_made web01@5 source --keep 1
promise "$made2" "$BEFORE" + "image web01@2 ${content[web01@2]}"
promise "$made3" "$BEFORE" + "image web01@3 ${content[web01@3]}"
promise "$made4" "$BEFORE" + "image web01@4 ${content[web01@4]} - again"
for image in 2 3 4; do
	promise "$AFTER" $never - "image web01@$image"
done
source_is 5
retain_from=$BEFORE retain_to=$AFTER
made5=$AFTER
expect_equal 1 "$(find "$WHERRY_STORE/segments" -name '*.seg' | wc -l)" "segments: all but one were cleaned away"

say "  the reserve is used, and kept again"
done_quietly 0 wherry set web01 --keep 9
if ((EUID == 0)); then
	dd if=/dev/zero of=recorded/fill bs=64K count=$(($(stat -f -c '%a * %S / 65536' recorded) - 24)) status=none
fi
random_range source 0 64K fifth
round_made web01@6 source
source_is 6
promise "$AFTER" "$(records)" + "image web01@6 ${content[web01@6]}"
done_quietly 0 wherry delete web01@6
promise "$AFTER" $never - "image web01@6"
((EUID != 0)) || [[ ! -e $WHERRY_STORE/reserve ]] || die "the reserve was not needed"
rm -f recorded/fill
done_quietly 0 wherry gc --progress=none
[[ -e $WHERRY_STORE/reserve ]] || die "no reserve is kept again"

say "  a rebuild, with a catalog whose log is not empty"
start_reader
random_range source 128K 64K sixth
round_made web01@7 source --label seven
source_is 7
made7=$AFTER
done_quietly 0 wherry pin web01@7
promise "$AFTER" $never + "image web01@7 ${content[web01@7]} p seven"
promise "$made7" $never + "image web01@7 ${content[web01@7]}"
round_made more@1 source
promise "$AFTER" $never + "image more@1 ${content[more@1]}"
stop_reader
done_quietly 0 wherry rebuild --progress=none
rebuild_from=$BEFORE rebuild_to=$(records)
swapped=$((AFTER - 8)) # the new catalog takes the old one's place in the last few records
expect_equal "2 1 0" "$(json_get '"\(.disks) \(.removed_disks) \(.lost_chunks)"')"
random_range source 256K 64K seventh
printf damage-goes-here | dd of=source bs=1 seek=$((600 * KIB)) conv=notrunc status=none
round_made web01@8 source
promise "$AFTER" $never + "image web01@8 ${content[web01@8]}"
source_is 8

say "  a rebuild without a catalog"
recorded rm "$WHERRY_STORE"/catalog.db*
recorded sync "$WHERRY_STORE"
done_quietly 0 wherry rebuild --progress=none
promise "$made5" $never + "image web01@5 ${content[web01@5]}"

say "  damage, a repair, and the round that heals it"
place=$(grep -obaF -r damage-goes-here "$WHERRY_STORE/segments")
segment=${place%%:*}
place=${place#*:}
place=${place%%:*}
damage_from=$(records)
printf damaged | recorded dd of="$segment" bs=1 seek="$place" conv=notrunc,fsync status=none
done_quietly 3 wherry check --repair --progress=none
expect_number "$(json_get .repair.waiting_chunks) >= 1" "it is marked"
cp source source-as-before
random_range source 0 16K eighth
round_made web01@9 source
promise "$AFTER" $never + "image web01@9 ${content[web01@9]}"
source_is 9
healed=$AFTER
power_end
expect_exit 0 wherry check --deep --progress=none
check_export web01@9 kept-web01-9
check_export web01@5 kept-web01-5

choose_steps() {
	local i
	SOURCE=${sources[0]}
	for ((i = 0; i < ${#sources[@]}; i++)); do
		(($1 <= sources_from[i])) || SOURCE=${sources[i]}
	done
	if (($1 >= damage_from && $1 < healed)); then
		STEPS=(rebuild-if-told repair sync=source=web01 list check)
		return
	fi
	STEPS=(rebuild-if-told list check)
	# whatever was under way goes on, and something else does
	case $((($1 + $2) % 3)) in
	0) STEPS+=(gc sync=source=web01) ;;
	1) STEPS+=(rebuild gc sync=source=web01) ;;
	2) STEPS+=(sync=source=web01 gc rebuild) ;;
	esac
	STEPS+=(gc list check reserve)
}
judge_more() {
	local reserve=0
	if (($1 > retain_from && $1 < retain_to)) && [[ ! $OUTPUT =~ image\ web01@[45]\  ]]; then
		WRONG+="neither the newest image before the round nor the one after is there"$'\n'
	fi
	if ((EUID == 0 && ($1 < damage_from || $1 >= healed))); then
		[[ ! $OUTPUT =~ reserve\ ([0-9]+) ]] || reserve=${BASH_REMATCH[1]}
		((reserve >= $(to_bytes $MEMORY) / 16)) || WRONG+="the reserve has $reserve bytes"$'\n'
	fi
}

say "states"
states_begin
look_at_states 30 0 "$all"
expect_equal 0 $bad "states with something lost"

say "control: with a disk that lies this test fails"
control .seg "$gc_from" "$gc_from" "$gc_to"
control .db.new "$rebuild_from" "$swapped" "$rebuild_to"
control / "$rebuild_from" "$swapped" "$rebuild_to"
