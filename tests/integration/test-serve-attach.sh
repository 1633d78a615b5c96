#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# serve-nbd starts nbdkit as it should be started; attach and detach say what is missing where the kernel has no NBD. (What they do where it
# has is in test-nbd-kernel.sh.)
# timeout: 400
. "$(dirname "$0")/functions.sh"

requires nbdkit nbdinfo nbdcopy qemu-io psktool openssl nbd-client jq python3
[[ -e $WHERRY_BUILD/nbdplugin/nbdkit-wherry-plugin.so ]] || skip "no plugin: nbdkit-plugin-dev was not there when it was built"

random_file disk.img 3M disk
make_store
sync_disk disk.img web01 --read-all

# serve ARGUMENT…: sets SERVER and URI when it serves.
serve() {
	: >served
	start bash -c 'exec wherry serve-nbd "$@" >served 2>served.log' bash "$@"
	SERVER=$PID
	wait_until 20 test -s served
	URI=$(tail -n 1 served)
}

# stop_server SIGNAL: it ends by this signal, with status 0, and takes its socket away.
stop_server() {
	kill "-$1" "$SERVER"
	finish "$SERVER" || die "serve-nbd ended with status $? by SIG$1: $(cat served.log)"
	[[ ! -e $WORK/own.sock ]] || die "the socket is still there"
}

say "a unix socket, for this user alone"
serve web01@1 --socket "$WORK/own.sock"
expect_equal "nbd+unix:///web01@1?socket=$WORK/own.sock" "$URI"
expect_equal 700 "$(stat -c %a own.sock)"
nbdcopy "$URI" out.img
check_same disk.img out.img
expect_error "own.sock: a server answers there already" wherry serve-nbd --socket "$WORK/own.sock"
stop_server TERM

say "one that a killed server left is no obstacle"
serve --socket "$WORK/own.sock"
kill -KILL "$SERVER"
finish "$SERVER" || true
[[ -S own.sock ]]
wait_until 10 eval '! nbdinfo --size "nbd+unix:///web01@1?socket=$WORK/own.sock"' # nbdkit went along with it
serve web01@latest --scratch --cache 16M --socket "$WORK/own.sock"
expect_exit 0 qemu-io -f raw -c 'write -P 1 0 64k' -c 'read -P 1 0 64k' "$URI"
stop_server INT
echo "not a socket" >file
expect_error "file: is there, and is no socket" wherry serve-nbd --socket "$WORK/file"
expect_equal "not a socket" "$(cat file)"
expect_error "too long for a socket" wherry serve-nbd --socket "$WORK/$(printf '%0120d' 1)"

mkdir "an odd & fol%der"
serve web01@1 --socket "an odd & fol%der/own.sock"
expect_equal 3M "$(($(nbdinfo --size "$URI") >> 20))M" "what the URI leads to"
kill "$SERVER"
finish "$SERVER"

say "a parent that ignores what becomes of its children"
(trap "" CHLD && exec wherry serve-nbd web01@1 --socket "$WORK/own.sock" >served 2>served.log) &
SERVER=$!
started_pids+=("$SERVER")
wait_until 20 eval "nbdinfo --size 'nbd+unix:///web01@1?socket=$WORK/own.sock' 2>/dev/null || [[ -s served.log ]]"
stop_server TERM

say "it waits for clients to leave"
serve web01@1 --socket "$WORK/own.sock"
start qemu-io -r -f raw -c 'sleep 3000' "$URI"
client=$PID
wait_until 10 eval "wherry images --json | jq -e '.images[0].in_use'"
stop_server TERM
finish "$client"
grep -q "waiting for clients to leave" served.log

say "a client that hangs up too early takes the server from nobody, though it ends nbdkit before 1.34"
serve web01@1 --socket "$WORK/own.sock"
for _ in 1 2 3; do
	python3 "$WHERRY_SOURCE/tests/helpers/raw_nbd.py" own.sock web01@1 hang-up
	rm -f out.img
	expect_exit 0 timeout 20 nbdcopy "$URI" out.img
	check_same disk.img out.img
done
! grep -q "Assertion.*failed" served.log || grep -q "is started again" served.log
stop_server TERM

say "TCP: loopback, or TLS, or a word that it may be insecure"
serve web01@1 --port 0 --json
URI=$(jq -r .uri served)
[[ $URI =~ ^nbd://127\.0\.0\.1:[0-9]+/web01@1$ ]]
expect_equal null "$(jq .socket served)"
nbdcopy "$URI" out.img
check_same disk.img out.img
stop_server TERM
expect_error "--address 0.0.0.0: other hosts reach it, and there is no TLS" wherry serve-nbd --address 0.0.0.0 --port 0
expect_error "--address ::: other hosts reach it" wherry serve-nbd --address ::
serve --address 0.0.0.0 --port 0 --insecure
expect_exit 0 nbdinfo --size "${URI/0.0.0.0/127.0.0.1}web01@1"
stop_server TERM

say "TLS with a pre-shared key: AES-GCM where the CPU has it"
psktool -u wherry -p keys.psk >/dev/null 2>&1
serve web01@1 --address 127.0.0.1 --port 0 --tls-psk keys.psk
port=${URI##*:}
port=${port%%/*}
nbdcopy "nbds://wherry@127.0.0.1:$port/web01@1?tls-psk-file=$WORK/keys.psk" out.img
check_same disk.img out.img
nbdinfo --size "nbd://127.0.0.1:$port/web01@1" >/dev/null 2>&1 && die "a client without TLS got in"
if grep -qw aes /proc/cpuinfo && [[ ! -e /etc/gnutls/config && -z ${GNUTLS_SYSTEM_PRIORITY_FILE:-} ]]; then
	# A client that has nothing but ChaCha20 is what tells: nbdkit by itself takes it, the one started here doesn't.
	cat >chacha-only <<-END
		[overrides]
		tls-disabled-cipher = AES-128-GCM
		tls-disabled-cipher = AES-256-GCM
		tls-disabled-cipher = AES-128-CCM
		tls-disabled-cipher = AES-256-CCM
	END
	start_nbdkit --tls=require --tls-psk="$WORK/keys.psk" null 1M
	GNUTLS_SYSTEM_PRIORITY_FILE=$WORK/chacha-only nbdinfo --size \
		"nbds+unix://wherry@/?socket=$NBD_SOCKET&tls-psk-file=$WORK/keys.psk" >/dev/null
	GNUTLS_SYSTEM_PRIORITY_FILE=$WORK/chacha-only nbdinfo --size \
		"nbds://wherry@127.0.0.1:$port/web01@1?tls-psk-file=$WORK/keys.psk" >/dev/null 2>&1 && die "ChaCha20 was agreed on"
fi
stop_server TERM

say "a round doesn't take what somebody has written to a disk by hand, and no image holds"
for how in TERM KILL; do
	expect_exit 0 wherry create "by-hand-${how,,}" 3M
	serve "by-hand-${how,,}" --socket "$WORK/own.sock"
	expect_exit 0 qemu-io -f raw -c 'write -P 7 70000 512' -c flush "$URI"
	kill "-$how" "$SERVER" # killed: it stays in the journal
	finish "$SERVER" || true
	wait_until 10 eval '! nbdinfo --size "nbd+unix:///?socket=$WORK/own.sock" 2>/dev/null'
	disk=by-hand-${how,,}
	expect_error "disk $disk: no round has written to it yet.*64.0 KiB that no image holds.*wherry image $disk" wherry sync disk.img "$disk"
	expect_exit 0 wherry image "$disk"
	sync_disk disk.img "$disk" --read-all
	check_export "$disk@2" disk.img
	expect_exit 0 wherry export "$disk@1" out.img --progress=none
	expect_equal "0707 512" "$(od -An -tx1 -j 70000 -N 2 out.img | tr -d ' \n') $(tr -d '\0' <out.img | wc -c)" "what was written by hand is in image 1"
done
wherry clone web01@1 of-web01 >/dev/null
sync_disk disk.img of-web01 # a clone that nobody has written to has nothing of its own to lose

say "no URI before it is ready, nor when it can't be"
# refused_serving PATTERN OPTION…: fails, and has printed nothing that looks like an answer
refused_serving() {
	local pattern=$1
	shift
	expect_error "$pattern" wherry serve-nbd --port 0 --json "$@"
	[[ ! -s stdout ]] || die "an answer of a server that isn't there: $(cat stdout)"
}
mkdir certificates
refused_serving "--tls-psk: nosuch: No such file.*psktool" --tls-psk nosuch
refused_serving "--tls-psk: certificates: is a directory" --tls-psk certificates
refused_serving "--tls-certificates: certificates/ca-cert.pem: No such file.*nbdkit-tls" --tls-certificates certificates
touch certificates/{ca-cert,server-cert,server-key}.pem
status=0
wherry serve-nbd --port 0 --json --tls-certificates certificates >stdout 2>stderr || status=$?
expect_equal 1 "$status" "exit status without a certificate in the files"
[[ ! -s stdout ]] || die "an answer of a server that isn't there: $(cat stdout)"
expect_equal "wherry: nbdkit: could not start; it says why above" "$(tail -n 1 stderr)"
# children that the program has from the shell before it are none of its business
: >served
start bash -c '(sleep 0.2) & exec wherry serve-nbd web01@1 --socket "$1" >served 2>served.log' bash "$WORK/own.sock"
SERVER=$PID
wait_until 20 grep -q nbd+unix served
expect_exit 0 nbdinfo --size "$(cat served)"
stop_server TERM

say "TLS with certificates: of both, and what the README says of nbd-client"
mkdir tls other
for folder in tls other; do
	(
		cd $folder
		openssl req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca-cert.pem -subj /CN=authority -days 2
		for name in server client; do
			openssl req -newkey rsa:2048 -nodes -keyout $name-key.pem -out $name.csr -subj /CN=localhost -addext subjectAltName=DNS:localhost
			openssl x509 -req -in $name.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -copy_extensions copy -out $name-cert.pem
		done
	) >openssl.log 2>&1
done
serve web01@1 --address 127.0.0.1 --port 0 --tls-certificates tls
port=${URI##*:}
port=${port%%/*}
nbdcopy "nbds://localhost:$port/web01@1?tls-certificates=$WORK/tls" out.img
check_same disk.img out.img
client=(nbd-client -l localhost "$port" -x -H localhost -A "$WORK/tls/ca-cert.pem")
timeout 20 "${client[@]}" -certfile "$WORK/tls/client-cert.pem" -keyfile "$WORK/tls/client-key.pem" >exports 2>&1
grep -q "^web01@1" exports
timeout 20 "${client[@]}" >exports 2>&1 && die "a client without a certificate got in"
timeout 20 "${client[@]}" -certfile "$WORK/other/client-cert.pem" -keyfile "$WORK/other/client-key.pem" >exports 2>&1 &&
	die "a client with a certificate of another authority got in"
nbdinfo --size "nbds://localhost:$port/web01@1?tls-certificates=$WORK/other" >/dev/null 2>&1 && die "another authority's"
stop_server TERM

say "wrong usage"
expect_error "--tls-psk: not together with --tls-certificates" wherry serve-nbd --tls-psk a --tls-certificates b
expect_error "--scratch: not together with --read-only" wherry serve-nbd --scratch --read-only
expect_error "--socket: a unix socket" wherry serve-nbd --socket a --port 1
expect_error "--port: '70000' is not a number" wherry serve-nbd --port 70000
expect_error "--cache: '1K' is not a size of 4 MiB or more" wherry serve-nbd --cache 1K
expect_error "--rw: 'all' is not mirror" wherry serve-nbd --rw all
expect_error "disk web02: there is none of that name" wherry serve-nbd web02
expect_error "image web01@3: there is none of that number" wherry serve-nbd web01@3
expect_error "web01: live content, and --scratch is for images; try web01@latest" wherry serve-nbd web01 --scratch
expect_error "no nbdkit|nbdkit: is not installed; apt install nbdkit" env PATH="$(dirname "$WHERRY"):/nonexistent" wherry serve-nbd
expect_error "/dev/sda: not a device of the kernel's NBD client" wherry attach web01@1 /dev/sda
expect_error "--scratch: for images, and web01 is live content" wherry attach web01 --scratch
expect_error "--rw: not together with --read-only" wherry attach web01 --rw mirror --read-only
expect_error "web01: is not attached" wherry detach web01

if [[ ! -e /sys/block/nbd0 ]] && ! modprobe -n -q nbd 2>/dev/null; then
	say "without the kernel's NBD client"
	expect_error "this kernel has no NBD client.*wherry mount web01@1 DIR.*wherry fs" wherry attach web01@1
	expect_error "/dev/nbd0: nothing is attached" wherry detach /dev/nbd0
fi
