# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034,SC2154
#
# There and back again, for test-roundtrip-*.sh, which make a disk in source.img and say in FILE_SYSTEMS where its ext4
# file systems are ("offset:size" in bytes each). Then
#
#     roundtrip_prepare     puts files and deleted garbage into them, as a mounted file system would
#     roundtrip_first       first round: what is left out, what comes back
#     roundtrip_second      files change, second round: both images, the first one unchanged
#     roundtrip_whole       --read-all: bit by bit
#     roundtrip_device      the same source and an export as block devices
#
# The oracle: e2fsck, sfdisk, cmp, and lists of all files with their digests.

GARBAGE=()

roundtrip_requires() {
	requires_loop
	requires sfdisk mke2fs e2fsck filefrag jq openssl sqlite3 findmnt
}

# mount_area IMAGE OFFSET:SIZE DIRECTORY [OPTIONS]
mount_area() {
	attach_loop "$1" --offset "${2%:*}" --sizelimit "${2#*:}"
	mount_at "$3" -o "${4:-rw}" "$LOOP"
}
unmount_area() {
	unmount_partition "$1"
}

# list_files IMAGE OFFSET:SIZE: every file with all that can be seen of it.
list_files() {
	mount_area "$1" "$2" mnt-list ro
	(
		cd mnt-list || exit
		find . -printf '%p %y %m %U:%G %n %s %T@ %l\n' | sort
		find . -type f -print0 | sort -z | xargs -0 sha256sum
	)
	unmount_area mnt-list
}

# check_file_systems IMAGE: e2fsck is content with all of them.
check_file_systems() {
	local area
	for area in "${FILE_SYSTEMS[@]}"; do
		e2fsck -fn "$1?offset=${area%:*}" >e2fsck.log 2>&1 && continue
		sed 's/^/    /' e2fsck.log >&2
		die "e2fsck is not content with the file system at ${area%:*} of $1"
	done
}

# check_same_files SOURCE EXPORT
check_same_files() {
	local area
	for area in "${FILE_SYSTEMS[@]}"; do
		list_files "$1" "$area" >files-expected
		list_files "$2" "$area" >files-actual
		expect_number "$(wc -l <files-expected) > 1" "there are files to compare"
		diff files-expected files-actual >files-diff || {
			head -n 20 files-diff >&2
			die "files of $2 at ${area%:*} are not those of $1"
		}
	done
}

check_same_table() {
	[[ $TABLE != none ]] || return 0
	sfdisk --verify "$2" >sfdisk.log 2>&1 || die "sfdisk is not content with $2: $(cat sfdisk.log)"
	sfdisk -d "$1" | sed 's/^device:.*//; s/^[^ ]*source\.img//' >table-expected
	sfdisk -d "$2" | sed "s/^device:.*//; s#^[^ ]*$(basename "$2")##" >table-actual
	check_same table-expected table-actual
}

# note_garbage OFFSET:SIZE FILE: where in the image the longest piece of a file lies, that is about to be deleted: into
# GARBAGE ("offset:length" each), less a bit at both ends, for short runs of unused blocks are read along.
note_garbage() {
	local offset length
	sync -f "$2"
	read -r offset length < <(filefrag -b4096 -v "$2" | tr -d ':.' |
		awk '$1 ~ /^[0-9]+$/ && $6 > most { most = $6; at = $4 } END { print at * 4096, most * 4096 }')
	expect_number "$length > 1048576" "the file to be deleted has a long piece"
	GARBAGE+=("$((${1%:*} + offset + 131072)):$((length - 262144))")
}

# check_exported EXPORT: against source.img, and what may not be in it.
check_exported() {
	local garbage left
	expect_equal "$(size_of source.img)" "$(size_of "$1")" "size of $1"
	check_same_table source.img "$1"
	check_file_systems "$1"
	check_same_files source.img "$1"
	for garbage in "${GARBAGE[@]}"; do
		# Short runs of unused blocks are read along, and pieces at the borders of block groups.
		left=$({ cmp -l -n "${garbage#*:}" -i "${garbage%:*}:0" "$1" /dev/zero || true; } | wc -l)
		expect_number "$left * 100 < ${garbage#*:}" "$1 does not hold what was deleted at $garbage"
	done
}

check_garbage_is_there() {
	local garbage
	for garbage in "${GARBAGE[@]}"; do
		cmp -s -n 4096 -i "${garbage%:*}:0" source.img /dev/zero && die "no garbage at $garbage"
	done
	return 0
}

roundtrip_prepare() {
	local area number=0
	real_files
	for area in "${FILE_SYSTEMS[@]}"; do
		number=$((number + 1))
		mount_area source.img "$area" mnt
		cp -a "$FILES/." mnt/
		mkdir -p mnt/usr
		cp -a /usr/bin/[ab]* mnt/usr/ 2>/dev/null || true
		random_file mnt/changes-later 5M "changes-$number"
		random_file mnt/goes-later 4M "goes-$number"
		random_file mnt/garbage 24M "garbage-$number"
		note_garbage "$area" mnt/garbage
		rm mnt/garbage
		unmount_area mnt
	done
	check_file_systems source.img
	check_garbage_is_there
}

roundtrip_first() {
	local area areas_bytes=0
	for area in "${FILE_SYSTEMS[@]}"; do
		areas_bytes=$((areas_bytes + ${area#*:}))
	done
	say "first round: used blocks only"
	sync_disk source.img web01
	cp stdout first.json
	[[ ! -s stderr ]] || die "nothing was expected to be said: $(cat stderr)"
	expect_equal "clean null false" "$(json_get '"\(.consistency) \(.fuzzy_because) \(.resumed)"')"
	expect_equal "$(size_of source.img)" "$(json_get .size_bytes)"
	expect_number "$(json_get .stored_bytes) < $areas_bytes" "less is stored than the file systems' sizes"
	expect_number "$(json_get .left_out_bytes) >= ${#FILE_SYSTEMS[@]} * 28 * 1048576" "deleted garbage is left out"
	expect_number "$(json_get .read_bytes) + $(json_get .left_out_bytes) <= $(size_of source.img)" "adds up"
	expect_equal "$(json_get .left_out_bytes)" "$(json_get '[.left_out[].length] | add')" "all that is left out is listed"
	json_get '.left_out[].why' | grep -q 'not in use by ext4' || die "no word about unused blocks of ext4"
	expect_exit 0 wherry export web01@1 first.img
	check_exported first.img
	cp --sparse=always source.img source-1.img
}

roundtrip_second() {
	local area number=0
	GARBAGE=()
	for area in "${FILE_SYSTEMS[@]}"; do
		number=$((number + 1))
		mount_area source.img "$area" mnt
		random_range mnt/changes-later 1M 700K "changed-$number"
		rm mnt/goes-later
		rm -r mnt/usr/b*
		random_file mnt/came-later 3M "came-$number"
		mkdir mnt/folder-came
		cp -a "$FILES/licenses" mnt/folder-came/
		mv mnt/bin mnt/bin-moved
		ln -s came-later mnt/link-came
		random_file mnt/garbage-again 5M "garbage-again-$number"
		note_garbage "$area" mnt/garbage-again
		rm mnt/garbage-again
		unmount_area mnt
	done
	check_file_systems source.img
	check_garbage_is_there
	say "second round"
	sync_disk source.img web01
	expect_equal 2 "$(json_get .image)"
	expect_number "$(json_get .changed_bytes) > 0" "something has changed"
	expect_number "$(json_get .stored_bytes) < $(json_get .stored_bytes first.json)" "less is stored than in the first round"
	expect_exit 0 wherry export web01@2 second.img
	check_exported second.img
	check_export web01@1 first.img
}

roundtrip_whole() {
	say "everything is read with --read-all"
	sync_disk source-1.img whole --read-all
	expect_equal 0 "$(json_get .left_out_bytes)"
	sync_disk source.img whole --read-all
	check_export whole@1 source-1.img
	check_export whole@2 source.img
}

roundtrip_device() {
	local source_loop target_loop
	say "from a block device, onto a block device"
	attach_loop source.img --read-only
	source_loop=$LOOP
	sync_disk "$source_loop" from-device
	[[ ! -s stderr ]] || die "nothing was expected to be said: $(cat stderr)"
	expect_equal "clean $(size_of source.img)" "$(json_get '"\(.consistency) \(.size_bytes)"')"
	expect_number "$(json_get .stored_bytes) <= 1048576" "the content is in the store already"
	check_export from-device@1 second.img
	detach_loop "$source_loop"

	random_file target.img "$(size_of source.img)" old-garbage
	attach_loop target.img
	target_loop=$LOOP
	expect_exit 0 wherry export web01@2 "$target_loop"
	check_same second.img "$target_loop"
	detach_loop "$target_loop"
	check_same second.img target.img
	check_exported target.img
}

roundtrip_all() {
	roundtrip_prepare
	make_store
	roundtrip_first
	roundtrip_second
	roundtrip_whole
	roundtrip_device
	expect_exit 0 wherry images web01 --json
	expect_equal "1 2" "$(json_get '[.images[].number] | map(tostring) | join(" ")')"
}
