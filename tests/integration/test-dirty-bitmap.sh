#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# QEMU's dirty bitmaps: when one can be trusted, only what it calls dirty is read; whenever it can't, everything is
# compared. Reading too little would be loss of data, so every case ends with a comparison with what the disk has.
# timeout: 400
. "$(dirname "$0")/functions.sh"
requires qemu-nbd qemu-img qemu-io jq openssl cmp sfdisk

MIB=$((1024 * 1024))
SIZE=$((32 * MIB))
DATA=$((24 * MIB))

# Persistent bitmaps are read by the server when it starts and written when it ends: it is stopped for every change, as
# a virtual machine would be. The socket, and so the source, stays the same.
serve() {
	SOCKET=disk start_qemu_nbd -f qcow2 --read-only "$@" disk.qcow2
}
stop_serving() {
	stop_process "$NBD_PID"
}

# A disk that is full in its first 24 MiB, with the bitmaps named.
make_disk() {
	local name
	random_file content $DATA "disk-$1"
	shift
	qemu-img create -q -f qcow2 disk.qcow2 $SIZE
	qemu-io -f qcow2 -c "write -q -s content 0 $DATA" disk.qcow2
	for name; do add_bitmap "$name"; done
}
add_bitmap() {
	qemu-img bitmap --add -g 64k disk.qcow2 "$1"
}
remake_bitmap() {
	qemu-img bitmap --remove disk.qcow2 "$1"
	add_bitmap "$1"
}

# write_blocks FIRST COUNT STEP: other content in that many blocks of 64 KiB, every STEP-th from FIRST on.
writes=0
write_blocks() {
	local i commands=()
	writes=$((writes % 250 + 1))
	for ((i = 0; i < $2; i++)); do
		commands+=(-c "write -q -P $writes $((($1 + i * $3) * 65536 + 512)) 1k")
	done
	qemu-io -f qcow2 "${commands[@]}" disk.qcow2 >/dev/null
}

# rewrite OFFSET LENGTH SEED: random content.
rewrite() {
	random_file part "$2" "$3"
	qemu-io -f qcow2 -c "write -q -s part $1 $2" disk.qcow2
}

# round_with BITMAP [OPTION…]: a round that must succeed and be right, whatever it trusted.
round_with() {
	local bitmap=$1
	shift
	serve -B "$bitmap"
	sync_disk "$NBD_URI" "${DISK:-web01}" --dirty-bitmap "$bitmap" "$@"
	mv stderr said
	stop_serving
	check_right
}
check_right() {
	qemu-img convert -f qcow2 -O raw disk.qcow2 expected
	check_export "${DISK:-web01}@latest" expected
}
# What was kept of earlier images stays so.
keep_copy() {
	qemu-img convert -f qcow2 -O raw disk.qcow2 kept
	KEPT=$(json_get .image)
}
check_kept() {
	check_export "web01@$KEPT" kept
}

# expect_trusted BYTES: so much was read, besides samples of a 64th.
expect_trusted() {
	! grep -q 'everything is compared' said || die "not trusted: $(cat said)"
	expect_number "$(json_get .read_bytes) <= $1 + $DATA / 4" "what is dirty is read and not much else"
	expect_number "$(json_get .read_bytes) >= $1" "all that is dirty is read"
}
# expect_not_trusted WHY
expect_not_trusted() {
	grep -qE "dirty bitmap .*$1.*everything is compared" said || die "why it is not trusted, is not said: $(cat said)"
	expect_number "$(json_get .read_bytes) >= $DATA - 4 * $MIB" "everything is compared" # zeros were written to some
}

make_store --chunk-size 16K # many chunks, and many of them samples
make_disk 1 backup

say "refused"
serve -B backup
expect_error 'no dirty bitmap "other".*: backup$' wherry sync "$NBD_URI" web01 --dirty-bitmap other
expect_error '[-][-]read-all' wherry sync "$NBD_URI" web01 --dirty-bitmap backup --read-all
stop_serving
serve
expect_error 'no dirty bitmap "backup", nor any' wherry sync "$NBD_URI" web01 --dirty-bitmap backup
stop_serving
expect_error '[-][-]dirty-bitmap: only an NBD source' wherry sync "$WORK/content" web01 --dirty-bitmap backup
expect_exit 0 wherry disks --json
expect_equal 0 "$(json_get '.disks | length')" "nothing was made for what was refused"

say "the first round compares all and says why; the next ones read what is dirty"
round_with backup
expect_not_trusted "no finished round before"
write_blocks 3 20 17
round_with backup
expect_trusted $((20 * 65536))
expect_equal $((20 * 16384)) "$(json_get .changed_bytes)" "of each block one chunk has changed"
keep_copy
write_blocks 100 5 40
round_with backup --verify
expect_trusted $((20 * 65536)) # it accumulates: nobody clears it
expect_equal true "$(json_get .equal)" "verified with what the server gives"
round_with backup
expect_trusted $((20 * 65536))
expect_equal 0 "$(json_get .changed_bytes)"
check_kept

say "writes of zeros, and discards"
qemu-io -f qcow2 -c "write -z 1M 300k" -c "discard 20M 2M" -c "write -P 3 28M 64k" disk.qcow2 >/dev/null
round_with backup
expect_trusted 0

say "a bitmap that was not there at the last round"
write_blocks 200 10 5
add_bitmap second
write_blocks 380 1 1
round_with second
expect_not_trusted "wasn't there"
write_blocks 381 2 1
round_with second
expect_trusted $((2 * 65536))
check_kept

say "back to the other name: the server did not show it at the last round"
round_with backup
expect_not_trusted "wasn't there"

say "removed and made anew between two rounds, and the changes before are lost to it"
write_blocks 10 30 3
round_with backup
expect_trusted 0
write_blocks 300 20 3
remake_bitmap backup
write_blocks 370 1 1
round_with backup
expect_not_trusted "calls clean: it was cleared"
write_blocks 10 1 1
round_with backup
expect_trusted 65536

say "cleared, then more was written than before, but not all that was written before"
rewrite 0 $DATA all
qemu-img bitmap --clear disk.qcow2 backup
write_blocks 300 30 2
round_with backup
expect_not_trusted "calls clean: it was cleared"

say "cleared when it had recorded nothing yet: only the samples can tell"
add_bitmap fresh
round_with fresh
expect_not_trusted "wasn't there"
round_with fresh
expect_trusted 0
rewrite 0 $DATA none
qemu-img bitmap --clear disk.qcow2 fresh
write_blocks 300 30 2
round_with fresh
expect_not_trusted "calls the [0-9]+ bytes at offset [0-9]+ clean"

say "killed while it starts over: the next one doesn't go on where the first one was when it trusted the bitmap"
rewrite 0 $DATA over
qemu-img bitmap --clear disk.qcow2 fresh
write_blocks 290 80 1
serve -B fresh
start wherry sync "$NBD_URI" web01 --dirty-bitmap fresh --limit 3M --level 0 >stopped.out 2>stopped.err
wait_until 60 grep -q 'everything is compared' stopped.err
sleep 0.3
kill -KILL "$PID"
finish "$PID" || true
stop_serving
round_with fresh
expect_equal true "$(json_get .resumed)"
qemu-img bitmap --remove disk.qcow2 fresh

say "another source was synced into the disk meanwhile"
remake_bitmap backup
write_blocks 30 4 1
round_with backup
write_blocks 40 1 1
round_with backup
expect_trusted $((5 * 65536))
random_file other $SIZE other
sync_disk "$WORK/other" web01
check_export web01@latest other
round_with backup
expect_not_trusted "another source"
round_with backup
expect_trusted $((5 * 65536))

say "a round without the bitmap in between does no harm: the server showed it"
write_blocks 50 3 1
serve -B backup
sync_disk "$NBD_URI" web01
stop_serving
check_right
write_blocks 60 3 1
round_with backup
expect_trusted $((11 * 65536))

say "a round that did not see the bitmap in between"
write_blocks 70 3 1
serve
sync_disk "$NBD_URI" web01
stop_serving
round_with backup
expect_not_trusted "wasn't there"

# stop_round DISK BITMAP: a round that is stopped when a part of it is done. Slowed down by its limit, so there has to
# be something to store.
stop_round() {
	local status=0
	serve -B "$2"
	start wherry sync "$NBD_URI" "$1" --dirty-bitmap "$2" --limit 3M --level 0 --progress=json >stopped.out 2>stopped.err
	wait_until 60 grep -q '"done_bytes": *[1-9][0-9]\{6\}' stopped.err
	kill -INT "$PID"
	finish "$PID" || status=$?
	stop_serving
	expect_equal 130 $status "status of a round that was stopped: $(tail -n 2 stopped.err)"
}

say "stopped, and gone on with: changes meanwhile are found by this round or the next"
rewrite 8M 8M stopped
stop_round web01 backup
write_blocks 129 3 1 # in what was done already
serve -B backup
sync_disk "$NBD_URI" web01 --dirty-bitmap backup
stop_serving
expect_equal true "$(json_get .resumed)"
expect_equal fuzzy "$(json_get .consistency)" "what changed while a round was interrupted may be half in the image"
expect_number "$(json_get .read_bytes) < 16 * $MIB" "what is dirty is read"
round_with backup
check_kept

say "stopped; made anew before it goes on"
rewrite 8M 8M again
stop_round web01 backup
write_blocks 360 20 1
remake_bitmap backup
write_blocks 5 1 1
round_with backup
expect_equal false "$(json_get .resumed)" "it starts over"
expect_not_trusted "calls clean: it was cleared"

say "stopped in a first round; the next one, with a bitmap made anew, trusts nothing"
rm -f disk.qcow2
make_disk 2 backup
write_blocks 300 10 1
DISK=web02
stop_round web02 backup
write_blocks 1 4 1
remake_bitmap backup
write_blocks 370 1 1
serve -B backup
sync_disk "$NBD_URI" web02 --dirty-bitmap backup
stop_serving
expect_equal true "$(json_get .resumed)"
# What was read before the stop has changed since, and the bitmap does not know.
round_with backup
expect_not_trusted "calls clean: it was cleared"

say "a partition that is made where a gap was: what is in it was never read"
DISK=web03
random_file content $SIZE gap
printf 'label: gpt\nstart=2048,size=16384\n' | sfdisk -q content
qemu-img create -q -f qcow2 disk.qcow2 $SIZE
qemu-io -f qcow2 -c "write -q -s content 0 $SIZE" disk.qcow2
add_bitmap backup
serve -B backup
sync_disk "$NBD_URI" web03 --dirty-bitmap backup
expect_number "$(json_get .left_out_bytes) > 12 * $MIB" "the gap is left out, behind the first 16 MiB"
sync_disk "$NBD_URI" web03 --dirty-bitmap backup
stop_serving
! grep -q 'everything is compared' stderr || die "not trusted: $(cat stderr)"
printf 'label: gpt\nstart=2048,size=16384\nstart=18432\n' | sfdisk -q content
head -c $MIB content >part
qemu-io -f qcow2 -c "write -q -s part 0 $MIB" disk.qcow2
tail -c $MIB content >part
qemu-io -f qcow2 -c "write -q -s part $((SIZE - MIB)) $MIB" disk.qcow2
round_with backup
expect_not_trusted "partitions, or what is left out"

say "a round that took zeros for what it could not read, and a bitmap that knows nothing of that"
rm -f disk.qcow2
make_disk 4 backup
DISK=web04
round_with backup
write_blocks 5 1 1
bad=$(qemu-img map --output=json -f qcow2 disk.qcow2 | jq '.[0].offset + 5 * 65536')
disk="driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=$WORK/disk.qcow2"
SOCKET=disk start_qemu_nbd --image-opts --read-only -B backup \
	"$disk,file.inject-error.0.event=read_aio,file.inject-error.0.sector=$((bad / 512))"
sync_disk "$NBD_URI" web04 --dirty-bitmap backup --on-read-error zero
stop_serving
expect_number "$(json_get '.read_errors | length') > 0" "there were bad sectors"
round_with backup
expect_not_trusted "could not read all"

say "written to by others while the round reads: what the bitmap calls dirty by then is no lie"
rm -f disk.qcow2
make_disk 5 backup
DISK=web05
round_with backup
rewrite 0 4M busy
serve_writable() {
	SOCKET=disk start_qemu_nbd -f qcow2 -B backup disk.qcow2
}
serve_writable
start wherry sync "$NBD_URI" web05 --dirty-bitmap backup --limit 1M --level 0 --progress=json --json >busy.out 2>busy.err
wait_until 60 grep -q '"done_bytes": *[1-9][0-9]\{5\}' busy.err
random_file part 12M busy-part
qemu-io -f raw -c "write -q -s part 8M 12M" "$NBD_URI"
expect_exit 0 wherry set web05 --limit unlimited
finish "$PID" || die "the round failed: $(tail -n 3 busy.err)"
! grep -q 'everything is compared' busy.err || die "a true bitmap was condemned: $(cat busy.err)"
expect_equal fuzzy "$(json_get .consistency busy.out)"
stop_serving
round_with backup
expect_trusted $((16 * MIB))
