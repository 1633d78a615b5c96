#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# wherryfs out of fstab: mount(8) and its helper for FUSE give it options that are for others, too; systemd is told when it is ready.
# timeout: 120

# mount(8) looks for programs in the system's folders only: ours is in one of them for who is in a mount namespace of this test
if [[ ${1:-} != inside ]] && ((EUID == 0)) && command -v unshare >/dev/null; then
	exec unshare --mount --propagation slave bash "$0" inside
fi
. "$(dirname "$0")/functions.sh"

requires_root
requires_fs
requires mount.fuse3 python3 unshare
make_store
expect_exit 0 wherry create live 1M
mkdir mnt bin
ln -s "$WHERRY_BUILD/bin/wherryfs" bin/wherryfs
mount --bind bin /usr/local/bin
at_exit umount --quiet --lazy "$WORK/mnt"

say "mount -t"
mount -t fuse.wherryfs -o ro,allow_other,cache=8M,umask=027 "$WHERRY_STORE" mnt
expect_equal "disk.raw images layout part" "$(ls mnt/live | xargs)"
expect_equal "fuse.wherryfs $WHERRY_STORE" "$(findmnt -n -o FSTYPE,SOURCE --mountpoint "$WORK/mnt" | xargs)"
options=$(findmnt -n -o OPTIONS --mountpoint "$WORK/mnt")
for option in ro nosuid nodev allow_other default_permissions; do
	[[ ,$options, == *,$option,* ]] || die "mounted without $option: $options"
done
umount mnt

say "fstab"
echo "$WHERRY_STORE $WORK/mnt fuse.wherryfs defaults,nofail,_netdev,x-systemd.automount,noauto,suid,dev,noexec,disk=live 0 0" >fstab
mount --fstab "$WORK/fstab" "$WORK/mnt"
options=$(findmnt -n -o OPTIONS --mountpoint "$WORK/mnt")
for option in rw nosuid nodev noexec; do
	[[ ,$options, == *,$option,* ]] || die "mounted without $option: $options"
done
printf x | dd of=mnt/live/disk.raw conv=notrunc,fsync status=none
umount mnt

say "what is wrong is said, and the status is not 0"
status=0
mount -t fuse.wherryfs -o nonsense "$WHERRY_STORE" mnt 2>err || status=$?
expect_number "$status != 0"
grep -q nonsense err || die "$(cat err)"
status=0
mount -t fuse.wherryfs "$WORK/nowhere" mnt 2>err || status=$?
expect_number "$status != 0"
! findmnt --mountpoint "$WORK/mnt" >/dev/null

say "systemd is told"
cat >listen.py <<'END'
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("bound", flush=True)
s.settimeout(20)
print(s.recv(100).decode(), flush=True)
END
start python3 listen.py "$WORK/notify" >heard
listener=$PID
wait_until 10 grep -q bound heard
NOTIFY_SOCKET=$WORK/notify start_fs "$WORK/mnt"
finish "$listener"
grep -q READY=1 heard
stop_fs "$WORK/mnt"
