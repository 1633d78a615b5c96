#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that changes a store, killed at any call: rounds, deletions, retention, clean-up, rebuilds, in any order. After each kill a
# deep check finds nothing, every image that is listed is what it was, none that was acknowledged is missing, and work goes on.
# With WHERRY_TEST_THOROUGH=1 300 kills, otherwise a sample of them.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq strace cmp sha256sum

KILLS=9
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || KILLS=300

# What each image holds, as its digest; made when the image is first seen listed, from the source that led to it.
declare -A content=()
kills=0 runs=0

digest() {
	sha256sum <"$1" | cut -d' ' -f1
}
images() {
	wherry images --json | jq -r '.images[] | "\(.disk)@\(.number)"'
}
# verify_images SAMPLE: those that are listed are right; one in SAMPLE of those that were seen before is read again.
verify_images() {
	local image
	images >listed
	while read -r image; do
		if [[ -z ${content[$image]:-} ]]; then
			content[$image]=$(wherry export "$image" - --progress=none 2>/dev/null | sha256sum | cut -d' ' -f1)
			# new: what was synced to it, now or by a round that went on
			[[ " ${sources[*]} " == *" ${content[$image]} "* ]] || die "$image is nothing that a source was"
		else
			random_number "$1"
			((NUMBER > 0)) || expect_equal "${content[$image]}" \
				"$(wherry export "$image" - --progress=none 2>/dev/null | sha256sum | cut -d' ' -f1)" "$image"
		fi
	done <listed
	for image in "${acknowledged[@]}"; do
		grep -qxF "$image" listed || die "$image was acknowledged, and is gone"
	done
}
# killed COMMAND…: at a random call of a kind; sets STATUS.
killed() {
	local calls=(pwrite64 pwrite64 fdatasync fsync unlinkat renameat flock ftruncate openat) call
	random_number ${#calls[@]}
	call=${calls[NUMBER]}
	case $call in
	pwrite64 | flock | openat) random_number 60 ;;
	*) random_number 6 ;;
	esac
	STATUS=0
	without_leak_check strace -f -qq -o /dev/null -e trace=$call -e inject=$call:signal=KILL:when=$((NUMBER + 1)) \
		"$@" >"$WORK/stdout" 2>"$WORK/stderr" || STATUS=$?
	runs=$((runs + 1))
	((STATUS == 137)) && kills=$((kills + 1))
	((STATUS == 137 || STATUS == 0)) || die "status $STATUS: $*: $(cat "$WORK/stderr")"
}
acknowledge() {
	mapfile -t acknowledged < <(images)
}

make_store --chunk-size 16K
random_file source 2M start
sources=("$(digest source)")
sync_disk source web01
acknowledge
verify_images 1
while ((kills < KILLS)); do
	random_number 10
	what=$NUMBER
	newest=$(images | sort -t@ -k2n | tail -n 1)
	case $what in
	0 | 1 | 2 | 3)
		# while a round is unfinished the source stays as it is: a mixture would be right, and fuzzy
		if [[ $(wherry rounds web01 --json | jq -r '.rounds | max_by(.number).state') == done ]]; then
			random_number 24
			random_range source $((NUMBER * 65536)) 300K "kill $kills $runs"
			sources+=("$(digest source)")
		fi
		killed wherry sync source web01 --progress=none
		;;
	4)
		((${#acknowledged[@]} > 1)) || continue
		random_number $((${#acknowledged[@]} - 1))
		acknowledged=("${acknowledged[@]:0:NUMBER}" "${acknowledged[@]:NUMBER+1}") # gone or not: both are right
		killed wherry delete "$(images | sed -n $((NUMBER + 1))p)"
		;;
	5)
		acknowledged=("$newest")
		killed wherry retain web01 --keep 2
		wherry set web01 --keep all >/dev/null
		;;
	6 | 7) killed wherry gc --progress=none ;;
	8)
		killed wherry rebuild --progress=none
		[[ -e $WHERRY_STORE/catalog.db ]] || expect_exit 0 wherry rebuild --progress=none
		;;
	9) killed wherry image web01 ;;
	esac
	expect_exit 0 wherry check --deep --json --progress=none
	verify_images 8
	acknowledge
done
say "  $kills kills in $runs runs, ${#content[@]} images"
expect_exit 0 wherry sync source web01 --progress=none
expect_exit 0 wherry sync source web01 --progress=none
check_export web01@latest source
expect_exit 0 wherry gc --progress=none
verify_images 1
