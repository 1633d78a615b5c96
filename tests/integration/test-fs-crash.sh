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
