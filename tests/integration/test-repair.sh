#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Damage in content that two disks and several images share: check --repair marks it, images say so, export --salvage
# gives all the rest and a map that is exactly right, and the next sync of an unchanged source heals all of them.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires openssl jq cmp qemu-nbd qemu-img qemu-io

MIB=$((1024 * 1024))
CHUNK=65536
SIZE=$((8 * MIB))

put_text() {
	printf '%s' "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# find_text TEXT: sets FILE and PLACE to where it stands in a segment; it must be there once.
find_text() {
	local found
	found=$(grep -obaF -r "$1" "$WHERRY_STORE/segments")
	expect_equal 1 "$(wc -l <<<"$found")" "how often '$1' is in segments"
	FILE=${found%%:*}
	found=${found#*:}
	PLACE=${found%%:*}
}

# damage_header PLACE_IN_CHUNK: the header of the record with the text just found; content that is random is stored plain.
damage_header() {
	byte_flip "$FILE" $((PLACE - $1 - 64 + 20))
}

# damaged_images: those that the listing calls damaged, "DISK@N …".
damaged_images() {
	wherry images --json | jq -r '[.images[] | select(.damaged) | "\(.disk)@\(.number)"] | join(" ")'
}

# zeros_at FILE OFFSET LENGTH…: what the file should be with holes there.
zeros_at() {
	local file=$1
	shift
	while (($# > 0)); do
		dd if=/dev/zero of="$file" bs=4096 seek=$(($1 / 4096)) count=$(($2 / 4096)) conv=notrunc status=none
		shift 2
	done
}

repair_says() { # "MENDED SOUND WAITING UNKNOWN"
	expect_equal "$1" "$(json_get '.repair | "\(.mended_chunks) \(.sound_chunks) \(.waiting_chunks) \(.unknown_chunks)"')" "repair"
}

say "two disks, four images; one chunk in all of them, one in two, one in one"
make_store
random_file source $SIZE repair
put_text source $((2 * MIB + 100)) shared-by-all
put_text source $((3 * MIB + 200)) the-first-image-has-it
put_text source $((5 * MIB + 300)) header-is-flipped
sync_disk source web01
cp source first
put_text source $((3 * MIB + 200)) later-images-have-this
sync_disk source web01
sync_disk source web02
cp source middle
put_text source $((7 * MIB)) newest
sync_disk source web02
cp source second
cp -a store pristine
expect_equal "" "$(damaged_images)"
expect_exit 0 wherry check --repair --json --progress=none
repair_says "0 0 0 0"

say "payload of two records and the header of a third are flipped"
find_text shared-by-all
byte_flip "$FILE" "$PLACE"
find_text the-first-image-has-it
byte_flip "$FILE" "$PLACE"
find_text header-is-flipped
damage_header 300
expect_exit 3 wherry check --deep --json --progress=none
expect_equal null "$(json_get .repair)" "nothing is repaired unless it is asked for"
ranges=$(json_get '[.damaged[] | "\(.disk)@\(.image // 0):\(.offset)"] | sort | join(" ")')
expect_equal "" "$(damaged_images)"

say "repair marks them: the digest of the third is found in the logs"
expect_exit 3 wherry check --repair --json --progress=none
repair_says "0 0 3 0"
expect_equal true "$(json_get .deep)"
expect_equal "$ranges" "$(json_get '[.damaged[] | "\(.disk)@\(.image // 0):\(.offset)"] | sort | join(" ")')"
expect_equal "web01@1 web01@2 web02@1 web02@2" "$(damaged_images)"
wherry images >listing
grep -q "web01@1 .*damaged" listing || die "the listing doesn't say so: $(cat listing)"
expect_exit 3 wherry check --json --progress=none
expect_equal "$ranges" "$(json_get '[.damaged[] | "\(.disk)@\(.image // 0):\(.offset)"] | sort | join(" ")')" "a quick check knows"
expect_exit 3 wherry check --repair --json --progress=none
repair_says "0 0 3 0"

say "an export ends at the damage and says how to have the rest"
expect_error "web01@1: 65536 bytes at .* are damaged: .*--salvage" wherry export --progress=none web01@1 out
[[ ! -e out ]] || die "a part was left"

say "salvage: everything else, and a map of the holes"
cp first expected
zeros_at expected $((2 * MIB)) $CHUNK $((3 * MIB)) $CHUNK $((5 * MIB)) $CHUNK
expect_exit 3 wherry export --salvage --progress=none web01@1 out
printf '%s\n' "$((2 * MIB)) $CHUNK" "$((3 * MIB)) $CHUNK" "$((5 * MIB)) $CHUNK" >map
cmp map stdout || die "the map is not right: $(cat stdout)"
cmp expected out
head -c $SIZE /dev/urandom >out # what is there before is overwritten, in holes too
expect_exit 3 wherry export --salvage --json --progress=none web01@1 out
cmp expected out
expect_equal "$(tr '\n' ' ' <map)" "$(json_get '[.holes[] | "\(.offset) \(.length)"] | join(" ")') "
expect_equal $((SIZE - 3 * CHUNK)) "$(json_get .data_bytes)"
wherry export --salvage --progress=none web02@2 - >out 2>stderr && die "exit status 0 with holes"
sed -n '/^[0-9]* [0-9]*$/p' stderr >holes
printf '%s\n' "$((2 * MIB)) $CHUNK" "$((5 * MIB)) $CHUNK" | cmp - holes
cp second expected
zeros_at expected $((2 * MIB)) $CHUNK $((5 * MIB)) $CHUNK
cmp expected out

say "a sync of the unchanged source heals all but what it does not have"
sync_disk source web02
expect_equal "web01@1" "$(damaged_images)"
check_export web01@2 middle
check_export web02@1 middle
check_export web02@2 second
expect_exit 3 wherry check --repair --json --progress=none
repair_says "0 0 1 0"
sync_disk first other # the same content comes from elsewhere
expect_exit 0 wherry check --repair --json --progress=none
repair_says "0 0 0 0"
check_export web01@1 first
expect_equal "" "$(damaged_images)"
expect_exit 0 wherry check --deep --json --progress=none

say "a record that a sync stored anew before the repair mends the damaged one"
rm -rf store
cp -a pristine store
find_text header-is-flipped
damage_header 300
cp source source-now
put_text source-now $((5 * MIB + 300)) something-else-now
sync_disk source-now web02
sync_disk source web02 # its header can't be read: stored anew, and images keep the damaged one
expect_exit 3 wherry check --deep --json --progress=none
expect_exit 0 wherry check --repair --json --progress=none
repair_says "1 0 0 0"
expect_exit 0 wherry check --deep --json --progress=none
check_export web01@1 first

say "what comes back is unmarked"
rm -rf store
cp -a pristine store
find_text shared-by-all
mv "$FILE" away # with the logs, so that nobody knows what is to be brought back
expect_exit 3 wherry check --repair --json --progress=none
expect_equal "0 0 0" "$(json_get '.repair | "\(.mended_chunks) \(.sound_chunks) \(.waiting_chunks)"')"
expect_number "$(json_get .repair.unknown_chunks) > 0"
mv away "$FILE"
expect_exit 0 wherry check --json --progress=none
byte_flip "$FILE" "$PLACE"
expect_exit 3 wherry check --repair --json --progress=none
repair_says "0 0 1 0"
byte_flip "$FILE" "$PLACE"
expect_exit 3 wherry check --json --progress=none
expect_exit 0 wherry check --repair --json --progress=none
repair_says "0 1 0 0"
expect_exit 0 wherry check --deep --json --progress=none
check_export web01@1 first
check_export web02@2 second

say "what is lost is read although a dirty bitmap calls it clean"
rm -rf store
make_store
qemu-img create -q -f qcow2 disk.qcow2 $SIZE
qemu-io -f qcow2 -c "write -q -s first 0 $SIZE" disk.qcow2
qemu-img bitmap --add -g 64k disk.qcow2 b0
serve() {
	SOCKET=disk start_qemu_nbd -f qcow2 --read-only -B b0 disk.qcow2
}
serve
expect_exit 0 wherry sync --json --progress=none --dirty-bitmap b0 "$NBD_URI" vm
stop_process "$NBD_PID"
find_text shared-by-all
byte_flip "$FILE" "$PLACE"
expect_exit 3 wherry check --repair --json --progress=none
serve
expect_exit 0 wherry sync --json --progress=none --dirty-bitmap b0 "$NBD_URI" vm
expect_number "$(json_get .read_bytes) < $SIZE / 2" "the bitmap is trusted"
stop_process "$NBD_PID"
expect_exit 0 wherry check --deep --json --progress=none
check_export vm@1 first
check_export vm@2 first
