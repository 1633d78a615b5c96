#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fifty images (36, unless WHERRY_TEST_THOROUGH=1) with random changes between them are deleted in random order; after
# every deletion the others are what they were.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq sqlite3

MIB=$((1024 * 1024))
IMAGES=36
SAMPLE=0 # besides the two neighbours, after every deletion; all of them at every 25th
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || IMAGES=50 SAMPLE=50

# The oracle: a copy of the source as it was, for each image that is there.
mkdir kept
declare -A images

random_file source 8M source # as many chunks as 32 MiB have with the usual size
make_store --chunk-size 16K

change_source() {
	random_number 16
	"$WHERRY_TEST_TOOLS/scribble" source "$WHERRY_TEST_SEED-$1" $((NUMBER + 1)) 200000
	case $1 in
	15) truncate -s $(($(size_of source) + 3 * MIB + 77)) source ;;
	30) truncate -s $(($(size_of source) - 2 * MIB)) source ;;
	40) random_stream 500000 "$1-end" >>source ;;
	esac
}

make_image() {
	sync_disk source web01 --allow-shrink
	expect_equal "$1" "$(json_get .image)" "number of the image"
	cp source "kept/$1"
	images[$1]=1
}

say "$IMAGES images"
for ((n = 1; n <= IMAGES; n++)); do
	change_source "$n"
	make_image "$n"
done

check_images() {
	local n
	for n in "$@"; do
		check_export "web01@$n" "kept/$n"
	done
}

numbers() {
	printf '%s\n' "${!images[@]}" | sort -n
}

# delete_image NUMBER: and look at the nearest ones on both sides, and at some others.
delete_image() {
	local position others=() n
	mapfile -t all < <(numbers)
	for ((position = 0; position < ${#all[@]}; position++)); do
		((all[position] == $1)) && break
	done
	expect_exit 0 wherry delete "web01@$1"
	unset "images[$1]"
	rm "kept/$1"
	((steps += 1))
	mapfile -t all < <(numbers)
	if ((steps % 25 == 0 || SAMPLE >= 50)); then
		others=("${all[@]}")
	else
		((position == 0)) || others+=("${all[position - 1]}")
		((position >= ${#all[@]})) || others+=("${all[position]}")
		for ((n = 0; n < SAMPLE && ${#all[@]} > 0; n++)); do
			random_number ${#all[@]}
			others+=("${all[NUMBER]}")
		done
	fi
	mapfile -t others < <(printf '%s\n' "${others[@]}" | sort -nu | sed '/^$/d')
	check_images "${others[@]}"
	((steps % 5 == 0 || ${#all[@]} < 3)) || return 0
	expect_exit 0 wherry images web01 --json
	expect_equal "${all[*]}" "$(json_get '[.images[].number] | map(tostring) | join(" ")')" "images that are left"
	expect_error "web01@$1.*(there are|there is|no images)" wherry export "web01@$1" -
}

steps=0
while ((${#images[@]} > 1)); do
	mapfile -t all < <(numbers)
	random_number ${#all[@]}
	delete_image "${all[NUMBER]}"
	if ((steps == 20 || steps == 35)); then
		say "a round between deletions"
		IMAGES=$((IMAGES + 1))
		change_source "between-$steps"
		make_image $IMAGES
		mapfile -t all < <(numbers)
		check_images "${all[@]}"
	fi
done

say "the live content is what the source is, with one image and without any"
check_export web01 source
delete_image "$(numbers)"
expect_error 'web01.*no images' wherry export web01@latest -
check_export web01 source

say "and a round goes on where the last one was"
change_source last
cp source before
IMAGES=$((IMAGES + 1))
make_image $IMAGES
check_export "web01@$IMAGES" before

say "nothing is left when the disk is removed"
expect_exit 0 wherry remove web01
expect_exit 0 wherry disks --json
expect_equal '{"disks":[]}' "$(json_get tojson)"
cp "$WHERRY_STORE"/catalog.db* "$TMPDIR/"
rm -f "$TMPDIR/catalog.db-shm"
for table in map past image disk round; do
	expect_equal 0 "$(sqlite3 "$TMPDIR/catalog.db" "SELECT count(*) FROM $table")" "rows of table $table"
done
# What says that the disk was removed stays, so that nothing brings it back.
live=$(sqlite3 "$TMPDIR/catalog.db" "SELECT coalesce(sum(live_bytes), 0) FROM segment")
expect_number "$live <= 4096" "no chunk is in use any more"
