#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A live disk through wherryfs, which is killed while four clients write and sync: what was synced is there (R1). 5 kills, 50 with WHERRY_TEST_THOROUGH=1.
# timeout: 400
. "$(dirname "$0")/functions.sh"

requires_root
requires_fs
MIB=$((1024 * 1024))
MNT=$WORK/mnt
KILLS=5
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || KILLS=50
mkdir "$MNT"
at_exit umount --quiet --lazy "$MNT"

say "the server is killed $KILLS times"
make_store
expect_exit 0 wherry create live $((16 * MIB))
expect_exit 0 "$WHERRY_TEST_TOOLS/fs_crash" $KILLS "$WHERRY_TEST_SEED" $((16 * MIB)) "$MNT/live/disk.raw" wherryfs -f "$WHERRY_STORE" "$MNT"
say "  $(cat "$WORK/stdout")"
expect_exit 0 wherry check --deep
expect_exit 0 wherry image live
! _is_mounted "$MNT"

say "control: who takes a write for durable before it was synced finds some lost"
make_store
expect_exit 0 wherry create live $((16 * MIB))
status=0
CRASH_BELIEVES_WRITES=1 "$WHERRY_TEST_TOOLS/fs_crash" 10 "$WHERRY_TEST_SEED" $((16 * MIB)) "$MNT/live/disk.raw" wherryfs -f "$WHERRY_STORE" "$MNT" \
	>control 2>&1 || status=$?
expect_equal 1 $status "status of the control: $(cat control)"
grep -q "after a kill, sector" control

say "killed while many read the same small pieces of an image: it is gone, and nobody waits for it"
head -c 64M /dev/urandom >image.img
sync_disk image.img web01
cat >read_pieces.py <<'END'
import os, random, sys
for reader in range(24):
    if os.fork() == 0:
        pieces, pages = random.Random(1), random.Random(reader)  # the same pieces at the same time, other pages of them
        try:
            fd = os.open(sys.argv[1], os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            while True:
                piece = pieces.randrange(1024) * 65536
                for _ in range(4):
                    os.pread(fd, 4096, piece + pages.randrange(16) * 4096)
        except OSError:
            os._exit(0)
for reader in range(24):
    os.wait()
END
is_gone() {
	[[ ! -d /proc/$1 || $(cut -d' ' -f3 "/proc/$1/stat") == Z && $(ls "/proc/$1/task") == "$1" ]]
}
for pause in 0.15 0.2 0.25 0.3 0.2 0.15; do
	start_fs "$MNT" -o ro,cache=16M
	start python3 read_pieces.py "$MNT/web01/images/1/disk.raw"
	readers=$PID
	sleep $pause
	kill -KILL "$FS_PID"
	(wait_until 10 is_gone "$FS_PID") || {
		umount --force "$MNT"
		die "it can't be killed"
	}
	finish "$FS_PID" || true
	finish "$readers"
	umount "$MNT"
done
