#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Whatever is wrong in an ext2/3/4, reading it ends, in bounded time and memory, and with an error at worst. Images with damage in superblocks,
# descriptors, inodes, folders, trees of extents, attributes, journals: some sixty, and a thousand with WHERRY_TEST_THOROUGH=1.
# timeout: 1800
# asan: yes
. "$(dirname "$0")/functions.sh"
requires mke2fs debugfs python3

LIST=$WHERRY_TEST_TOOLS/fsreader_list
COUNT=15
[[ ${WHERRY_TEST_THOROUGH:-} == 1 ]] && COUNT=250

# The same content for all: an indexed folder, fragments, attributes, links.
mkdir tree
python3 "$WHERRY_SOURCE/tests/helpers/make_tree.py" tree big=1 many=700 pieces=900 block=1024
printf 'attribute value' >value

# make NAME TYPE MKE2FS-OPTIONS
make() {
	truncate -s 32M "$1.img"
	# shellcheck disable=SC2086 # words on purpose
	mke2fs -q -F -t "$2" $3 -d tree "$1.img" >mke2fs.log 2>&1 || die "mke2fs: $(cat mke2fs.log)"
	{
		echo "ea_set files/1000 user.small value"
		echo "ea_set -f $WORK/tree/files/1000 files/100 user.block"
		echo "ea_set -f $WORK/tree/files/1000 folders/small user.block"
	} | debugfs -w "$1.img" >debugfs.log 2>&1
	e2fsck -fyD "$1.img" >e2fsck.log 2>&1 || true # with indexes
}

# read_damaged NAME TYPE
read_damaged() {
	cp "$1.img" "$1.work"
	say "$1: $(python3 "$WHERRY_SOURCE/tests/helpers/mutate_ext.py" "$LIST" "$1.work" "$2" "$WHERRY_TEST_SEED" "$COUNT" 2>stderr)" ||
		die "$1: $(cat stderr)"
	[[ ! -s stderr ]] || die "$1: $(cat stderr)"
}

make plain ext4 "-b 1024 -O ^metadata_csum,^64bit,inline_data,ea_inode -I 256"
make large-blocks ext4 "-b 4096 -O ^metadata_csum,bigalloc -C 16384"
make old ext2 "-b 1024"
read_damaged plain ext4
read_damaged large-blocks ext4
read_damaged old ext2

# With something in its journal.
make dirty ext4 "-b 1024 -O ^metadata_csum"
mapfile -t blocks < <(for number in 0 1; do debugfs -R "bmap folders/small $number" dirty.img; debugfs -R "bmap files/1048576 $number" dirty.img; done 2>/dev/null)
head -c 1024 dirty.img >one-block
dd if=dirty.img of=folder-block bs=1024 skip="${blocks[0]}" count=1 status=none
debugfs -w dirty.img >debugfs.log 2>&1 <<-END
	journal_open
	journal_write -b ${blocks[0]} folder-block
	journal_write -b ${blocks[1]} one-block
	journal_write -r ${blocks[1]}
	journal_close
END
"$LIST" dirty.img ext4 statfs 2>stderr >/dev/null || die "$(cat stderr)"
grep -q 'not cleanly unmounted' stderr || die "nothing is in its journal: $(cat debugfs.log)"
read_damaged dirty ext4
