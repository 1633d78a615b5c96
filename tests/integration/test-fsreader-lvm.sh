#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Logical volumes that LVM's own tools have made, read without them: where they lie, by LVM's own account, what they hold, and
# what becomes of them when a physical volume is missing, or their metadata are damaged. Nothing is activated: no device mapper is needed.
# asan: yes
. "$(dirname "$0")/functions.sh"

requires pvcreate vgcreate lvcreate vgcfgbackup vgcfgrestore python3 jq
requires_loop
LIST=$WHERRY_TEST_TOOLS/lvm_list

# LVM sees our loop devices and nothing else, keeps what it writes in here, and asks neither udev nor device mapper.
mkdir -p lvm/backup
lvm_config() {
	local devices
	devices=$(printf '"a|^%s$|", ' "${loop_devices[@]}")
	cat >lvm/lvm.conf <<-END
		devices { dir = "/dev" scan = "/dev" filter = [ $devices "r|.*|" ] use_devicesfile = 0 sysfs_scan = 0 hints = "none"
			obtain_device_list_from_udev = 0 external_device_info_source = "none" md_component_detection = 0 }
		activation { udev_sync = 0 udev_rules = 0 monitoring = 0 verify_udev_operations = 0 missing_stripe_filler = "error" }
		global { locking_type = 1 use_lvmpolld = 0 use_lvmlockd = 0 system_id_source = "none" event_activation = 0 }
		backup { backup = 1 backup_dir = "$WORK/lvm/backup" archive = 0 }
	END
}
lvm() {
	local verb=$1
	shift
	LVM_SYSTEM_DIR=$WORK/lvm LVM_SUPPRESS_FD_WARNINGS=1 DM_DISABLE_UDEV=1 "$verb" --driverloaded n "$@" >>lvm.log 2>&1 || {
		tail -n 20 lvm.log >&2
		die "$verb $* failed"
	}
}

# What a volume has to hold, put together from what `pvs` and `lvs` say of its segments.
cat >oracle.py <<'END'
import json, subprocess, sys, os
group, volume, out = sys.argv[1:4]
files = dict(item.split("=") for item in sys.argv[4:])
env = dict(os.environ)
report = json.loads(subprocess.run(
    ["lvs", "--driverloaded", "n", "--reportformat", "json", "--segments", "--units", "b", "--nosuffix", "-a",
     "-o", "lv_name,seg_start,seg_size,stripes,stripe_size,seg_pe_ranges,vg_extent_size", group],
    check=True, capture_output=True, env=env).stdout)
starts = {line["pv_name"]: int(line["pe_start"]) for line in json.loads(subprocess.run(
    ["pvs", "--driverloaded", "n", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", "pv_name,pe_start"],
    check=True, capture_output=True, env=env).stdout)["report"][0]["pv"]}
data = bytearray()
for seg in sorted((s for s in report["report"][0]["seg"] if s["lv_name"] == volume), key=lambda s: int(s["seg_start"])):
    extent = int(seg["vg_extent_size"])
    parts = []
    for piece in seg["seg_pe_ranges"].split():
        device, extents = piece.rsplit(":", 1)
        first, last = map(int, extents.split("-"))
        with open(files[device], "rb") as file:
            file.seek(starts[device] + first * extent)
            parts.append(file.read((last - first + 1) * extent))
    if len(parts) == 1:
        data += parts[0]
        continue
    step = int(seg["stripe_size"])
    for at in range(0, len(parts[0]), step):
        for part in parts:
            data += part[at:at + step]
open(out, "wb").write(data)
END

say "four physical volumes, linear and striped logical volumes of several pieces"
FILES=()
for i in 0 1 2 3; do
	random_file pv$i 24M "pv$i"
	dd if=/dev/zero of=pv$i bs=1M count=2 conv=notrunc status=none
	FILES+=("$WORK/pv$i")
	attach_loop "$WORK/pv$i"
	LOOPS[i]=$LOOP
done
lvm_config
lvm pvcreate -q --metadatasize 1m "${LOOPS[0]}" "${LOOPS[1]}" "${LOOPS[2]}"
lvm pvcreate -q --metadatacopies 0 "${LOOPS[3]}"
lvm vgcreate -q -s 1m one "${LOOPS[@]}"
create() {
	lvm lvcreate -q -an -Zn -Wn -y "$@"
}
create -l 5 -n linear one "${LOOPS[1]}"
create -l 3 -n wall one "${LOOPS[1]}"
create -l 6 -i 3 -I 64k -n stripes one "${LOOPS[0]}" "${LOOPS[1]}" "${LOOPS[2]}"
create -l 4 -i 2 -I 4k -n fine.2_+x one "${LOOPS[2]}" "${LOOPS[3]}"
lvm lvextend -q -l +4 one/linear "${LOOPS[3]}"
lvm lvextend -q -l +2 one/linear "${LOOPS[0]}"
lvm lvextend -q -l +6 -i 2 -I 8k one/stripes "${LOOPS[0]}" "${LOOPS[3]}"
for i in 0 1 2 3; do
	blockdev --flushbufs "${LOOPS[i]}" # what LVM wrote to the device is in the file
	PAIRS[i]=${LOOPS[i]}=$WORK/pv$i
done
compare() {
	local volume
	for volume in "$@"; do
		LVM_SYSTEM_DIR=$WORK/lvm LVM_SUPPRESS_FD_WARNINGS=1 python3 oracle.py one "$volume" expected "${PAIRS[@]}"
		"$LIST" --cat "one/$volume" "${FILES[@]}" >got
		check_same expected got
	done
}
compare linear wall stripes fine.2_+x
expect_exit 0 "$LIST" "${FILES[@]}"
expect_equal "1 4" "$(grep -c '^vg one ' stdout) $(grep -c '^lv one/' stdout)"
[[ ! -s stderr ]] || die "there was nothing to be said: $(cat stderr)"

say "a physical volume that is missing is a problem of who lies on it, and of nobody else"
expect_exit 0 "$LIST" pv0 pv1 pv2
grep -q '^vg one .* 4 1$' stdout || die "one of four is missing"
grep -q '^lv one/wall [0-9]*$' stdout || die "wall is all there"
grep -qE '^lv one/linear [0-9]+ physical volume .* is missing$' stdout || die "linear isn't"
expect_exit 1 "$LIST" --cat one/linear pv0 pv1 pv2

say "metadata that were written again and again go around the end of their area"
TAGS=()
for i in $(seq 60); do
	TAGS+=(--addtag "$(printf 'x%.0s' {1..1000}).$i")
done
lvm vgchange -q "${TAGS[@]}" one
for i in $(seq 18); do # some 60 KiB each, in an area of 1 MiB
	lvm lvchange -q --addtag "a$i" one/wall
done
compare linear stripes

say "damaged metadata on some are read from another"
for i in 0 1; do
	blockdev --flushbufs "${LOOPS[i]}"
	cp --sparse=always pv$i broken$i
	dd if=/dev/urandom of=broken$i bs=4096 seek=1 count=200 conv=notrunc status=none
done
"$LIST" --cat one/stripes broken0 broken1 pv2 pv3 >got 2>notices
LVM_SYSTEM_DIR=$WORK/lvm LVM_SUPPRESS_FD_WARNINGS=1 python3 oracle.py one stripes expected "${PAIRS[@]}"
check_same expected got
grep -q "metadata area" notices || die "that something is damaged is to be said"

say "kinds that only device mapper can read are said to be such, others are read through what is in between"
lvm vgcfgbackup -f "$WORK/text" one
python3 - <<'END'
import re
text = open("text").read()
names = dict((m.group(1), m.group(0)) for m in re.finditer(r"\n\t\t(pv\d) \{", text))
mirror = '''
		mirrored {
			id = "aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"
			status = ["READ", "WRITE", "VISIBLE"]
			flags = []
			creation_time = 1
			creation_host = "x"
			segment_count = 1
			segment1 {
				start_extent = 0
				extent_count = 3
				type = "raid1"
				device_count = 2
				region_size = 1024
				raids = [ "mirrored_rmeta_0", "mirrored_rimage_0", "mirrored_rmeta_1", "mirrored_rimage_1" ]
			}
		}
'''
def part(name, id, pv, extents, at):
    return f'''
		{name} {{
			id = "{id}"
			status = ["READ", "WRITE"]
			flags = []
			creation_time = 1
			creation_host = "x"
			segment_count = 1
			segment1 {{
				start_extent = 0
				extent_count = {extents}
				type = "striped"
				stripe_count = 1
				stripes = [ "{pv}", {at} ]
			}}
		}}
'''
def uuid(letter):
    return "-".join([letter * 6] + [letter * 4] * 5 + [letter * 6])
mirror += part("mirrored_rmeta_0", uuid("b"), "pv3", 1, 15) + part("mirrored_rimage_0", uuid("c"), "pv3", 3, 16)
mirror += part("mirrored_rmeta_1", uuid("d"), "pv1", 1, 15) + part("mirrored_rimage_1", uuid("e"), "pv1", 3, 16)
at = text.index("\n\tlogical_volumes {") + len("\n\tlogical_volumes {")
open("text2", "w").write(text[:at] + mirror + text[at:])
END
lvm vgcfgrestore -f "$WORK/text2" one
for i in 0 1 2 3; do
	blockdev --flushbufs "${LOOPS[i]}"
done
leg() {
	dd if="pv$1" bs=1M iflag=skip_bytes,count_bytes skip=$(($(LVM_SYSTEM_DIR=$WORK/lvm pvs --noheadings --units b --nosuffix -o pe_start \
		"${LOOPS[$1]}" 2>/dev/null) + (16 << 20))) count=3M status=none
}
"$LIST" --cat one/mirrored "${FILES[@]}" >got
leg 3 >expected
check_same expected got
"$LIST" --cat one/mirrored pv0 pv1 pv2 >got
leg 1 >expected
check_same expected got
expect_exit 0 "$LIST" "${FILES[@]}"
! grep -q rimage stdout || die "legs are not for users"

say "mutated metadata do no harm"
ROUNDS=25
[[ ${WHERRY_TEST_THOROUGH:-} != 1 ]] || ROUNDS=1000
cat >mutate.py <<'END'
import random, struct, sys, zlib
seed, source, target = sys.argv[1:4]
random.seed(seed)
data = bytearray(open(source, "rb").read(2 << 20))
def crc(part):  # LVM's begins with its own number, and isn't inverted
    return zlib.crc32(bytes(part), 0xf597a6cf ^ 0xffffffff) ^ 0xffffffff
area = 4096
offset, size = struct.unpack_from("<QQ", data, area + 40)
ring = struct.unpack_from("<Q", data, area + 32)[0]
place = lambda i: area + (offset + i if offset + i < ring else offset + i - ring + 512)
for _ in range(random.randint(1, 20)):
    at = random.randrange(size)
    data[place(at)] = random.choice(b"{}[]=\",#0123456789pvx\n ")
struct.pack_into("<I", data, area + 56, crc(bytes(data[place(i)] for i in range(size))))
if random.random() < 0.2:
    data[area + random.randrange(20, 64)] = random.randrange(256)
struct.pack_into("<I", data, area, crc(data[area + 4:area + 512]))
file = open(target, "r+b")
file.write(data)
END
cp --sparse=always pv0 mutated
understood=0
for ((i = 0; i < ROUNDS; i++)); do
	python3 mutate.py "$WHERRY_TEST_SEED-$i" pv0 mutated
	status=0
	timeout 20 "$LIST" mutated pv3 >out 2>err || status=$?
	((status == 0)) || die "mutation $i: status $status: $(tail -n 1 err)"
	! grep -q '^vg' out || understood=$((understood + 1))
done
((understood > 0)) || die "none of the mutations was understood: they are too much"
