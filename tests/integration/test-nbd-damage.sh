#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Damage in a store that is served over NBD: clients get an error for the chunk that is damaged and everything else, real ones that copy
# fail or save the rest, and nothing wrong is ever read. Then a damaged journal: who has the disk open gets an error for just that
# range; after a kill the disk is refused, check says so, and there are two ways to go on.
# timeout: 300
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdcopy nbdinfo qemu-img qemu-io python3 jq openssl cmp
PLUGIN=$WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so
[[ -e $PLUGIN ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"

uri() {
	echo "nbd+unix:///$1?socket=$NBD_SOCKET"
}

# io EXPORT COMMAND…: qemu-io, of which nothing fails.
io() {
	local export=$1 command words=()
	[[ $export != *@* ]] || words=(-r)
	shift
	for command in "$@"; do
		words+=(-c "$command")
	done
	qemu-io -f raw "${words[@]}" "$(uri "$export")" >io.out 2>&1 || die "$(cat io.out)"
	! grep -qi "failed\|error" io.out || die "$(grep -i "failed\|error" io.out)"
}

# io_error EXPORT COMMAND: it is an I/O error.
io_error() {
	local words=()
	[[ $1 != *@* ]] || words=(-r)
	qemu-io -f raw "${words[@]}" -c "$2" "$(uri "$1")" >io.out 2>&1 && die "no error: $2: $(cat io.out)"
	grep -q "Input/output error" io.out || die "$(cat io.out)"
}

# flip FILE TEXT: a bit changes in the file's first byte of this text.
flip() {
	python3 - "$@" <<-'END'
		import sys
		with open(sys.argv[1], "r+b") as file:
		    at = file.read().find(sys.argv[2].encode())
		    assert at >= 0, "no such text in the file"
		    file.seek(at)
		    file.write(bytes([ord(sys.argv[2][0]) ^ 4]))
	END
}

SIZE=8M
make_store
random_file disk.img $SIZE disk
zero_range disk.img 3M 1M
sync_disk disk.img web01
expect_exit 0 wherry clone web01@1 live
segment=$(find "$WHERRY_STORE/segments" -name '*.seg' | head -n 1)
byte_flip "$segment" 3000000
expect_exit 3 wherry check --deep --json --progress=none
offset=$(json_get '[.damaged[] | select(.disk == "web01" and .image == 1)][0].offset')
length=$(json_get '[.damaged[] | select(.disk == "web01" and .image == 1)][0].length')
expect_equal "1 65536" "$(json_get '[.damaged[] | select(.disk == "web01" and .image == 1)] | length') $length" "what is damaged"
end=$((offset + length))

say "an error for the chunk that is damaged, an image's and a clone's; what is around it is read"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
dd if=disk.img of=before bs=1M count=$offset iflag=count_bytes status=none
dd if=disk.img of=after bs=1M skip=$end iflag=skip_bytes status=none
for name in web01@1 live; do
	io_error $name "read $offset 512"
	io_error $name "read $((end - 512)) 512"
	io_error $name "read $((offset - 512)) 1024"
	io_error $name "read 0 $SIZE"
	io_error $name "read $((offset + 1)) 1"
	qemu-img dd -f raw -O raw bs=64k count=$((offset / 65536)) if="$(uri $name)" of=read.before
	check_same before read.before
	qemu-img dd -f raw -O raw bs=64k skip=$((end / 65536)) if="$(uri $name)" of=read.after
	check_same after read.after
	expect_equal "$(($(to_bytes $SIZE) - 1048576))" "$(nbdinfo --map --json "$(uri $name)" | jq '[.[] | select(.type == 0) | .length] | add')" "data"
done
grep -q "error: .*segment" "$NBD_LOG"

# One request at a time: nbdkit before 1.34 does not survive a client that hangs up while others are answered.
say "who copies fails, or saves the rest"
expect_exit 1 nbdcopy --connections=1 --requests=1 "$(uri web01@1)" out.img
grep -q "Input/output error" stderr
expect_exit 1 qemu-img convert -m 1 -f raw -O qcow2 "$(uri web01@1)" out.qcow2
grep -q "Input/output error" stderr
expect_exit 4 qemu-img compare -f raw -F raw disk.img "$(uri web01@1)"
cp disk.img saved.img
zero_range saved.img "$offset" "$length"
expect_exit 0 qemu-img convert --salvage -f raw -O raw "$(uri web01@1)" out.img
check_same saved.img out.img

say "a write to a part of it is read back, one of all of it mends it; the image stays as it is"
io live "write -P 7 $((offset + 1000)) 2000" flush "read -P 7 $((offset + 1000)) 2000"
io_error live "read $offset 512"
expect_error "live.*$offset" wherry image live
io live "write -P 8 $offset $length" flush "read -P 8 $offset $length"
expect_exit 0 wherry image live
printf '\x08%.0s' {1..65536} | dd of=saved.img bs=64K seek="$offset" oflag=seek_bytes conv=notrunc status=none
expect_exit 0 qemu-img compare -f raw -F raw saved.img "$(uri live)"
expect_exit 0 qemu-img compare -f raw -F raw saved.img "$(uri live@1)"
io_error web01@1 "read $offset 512"
stop_process "$NBD_PID"

say "and so does a round that brings the content back"
expect_exit 3 wherry check --deep --repair --progress=none
sync_disk disk.img web01
expect_exit 0 wherry check --deep --progress=none
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
expect_exit 0 qemu-img compare -f raw -F raw disk.img "$(uri web01@1)"
stop_process "$NBD_PID"

# ---------------------------------------------------------------- journals

make_store
expect_exit 0 wherry create disk 4M
expect_exit 0 wherry create other 4M
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
io disk "write -P 1 0 1M" flush
# piece_of TEXT: the file piece, 6000 bytes of it
piece_of() {
	(set +o pipefail && yes "$1" | tr -d '\n' | head -c 6000 >piece)
}
# written TEXT OFFSET: that is written there, and flushed
written() {
	piece_of "$1"
	io disk "write -s piece $2 6000" flush
}
hold() {
	start qemu-io -f raw -c 'sleep 90000' "$(uri "$1")"
	HOLDER=$PID
	wait_until 20 eval "wherry disks --json | jq -e '.disks[] | select(.name == \"$1\") | .open_by != null'"
}
is_written() {
	piece_of "$1"
	qemu-img dd -f raw -O raw bs=1000 skip=$(($2 / 1000)) count=$(($2 / 1000 + 6)) if="$(uri disk)" of=read.piece
	truncate -s 6000 read.piece # it has whole sectors
	check_same piece read.piece
}

say "a journal is damaged while the disk is open: an error for what was written there, until it is written again"
hold disk
journal=
for number in 1 2 3 4 5; do
	written "record-$number." $((number * 100000))
done
journal=$(find "$WHERRY_STORE/journal" -name '*.wj')
flip "$journal" record-3.
io_error disk "read 300000 512"
io_error disk "read 305000 512"
io disk "read 299008 512" "read 306176 512"
is_written record-2. 200000
is_written record-4. 400000
expect_error "its journal is damaged" wherry image disk
expect_exit 3 wherry check --json
expect_equal "disk disk" "$(json_get '.flaws[].what')"
[[ $(json_get '.flaws[].why') == "its journal is damaged at "* ]]
written record-3. 300000
is_written record-3. 300000
expect_exit 0 wherry image disk
stop_process "$HOLDER"
stop_process "$NBD_PID"
expect_exit 0 wherry check --deep --progress=none
expect_equal "" "$(find "$WHERRY_STORE/journal" -name '*.wj')"

say "a killed server's journal is damaged: the disk is refused, others are not, and check says it"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
hold disk
written "again-1." 2000000
written "again-2." 2100000
written "again-3." 2200000
kill -KILL "$NBD_PID"
finish "$NBD_PID" 2>/dev/null || true
stop_process "$HOLDER"
expect_exit 0 wherry check --deep --progress=none
journal=$(find "$WHERRY_STORE/journal" -name '*.wj')
folder=$(dirname "$journal")
cp -r "$folder" kept
flip "$journal" again-2.
why="disk disk: its journal is damaged at [0-9]+ of file .*put the file back from a copy, or remove .*journal/$(basename "$folder") to go on"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
for times in 1 2; do # and it is not changed by trying
	nbdinfo --size "$(uri disk)" >/dev/null 2>&1 && die "the disk was opened"
	grep -qE "error: $why" "$NBD_LOG" || die "$(cat "$NBD_LOG")"
	expect_error "$why" wherry image disk
	expect_error "$why" wherry export disk out.img --progress=none
done
io other "write -P 1 0 4k" flush "read -P 1 0 4k"
io disk@1 "read -P 1 0 100000"
expect_exit 3 wherry check
grep -q "disk disk: its journal is damaged" stdout
expect_exit 3 wherry check --json --repair --progress=none
expect_equal "disk disk" "$(json_get '.flaws[].what')" "a repair can't mend it, and says so"

say "the file is put back: all that was flushed is there"
cp kept/* "$folder/"
is_written again-1. 2000000
is_written again-2. 2100000
is_written again-3. 2200000
stop_process "$NBD_PID"
expect_exit 0 wherry check --deep --progress=none

say "or its folder is removed: the disk is what it was before that, and goes on"
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
hold disk
written "third-1." 3000000
written "third-2." 3100000
kill -KILL "$NBD_PID"
finish "$NBD_PID" 2>/dev/null || true
stop_process "$HOLDER"
flip "$(find "$WHERRY_STORE/journal" -name '*.wj')" third-1.
expect_exit 3 wherry check
rm -r "$folder"
expect_exit 0 wherry check --deep --progress=none
start_nbdkit "$PLUGIN" store="$WHERRY_STORE"
io disk "read -P 0 3000000 106000"
is_written again-3. 2200000
written third-1. 3000000
is_written third-1. 3000000
stop_process "$NBD_PID"
expect_exit 0 wherry check --deep --progress=none
