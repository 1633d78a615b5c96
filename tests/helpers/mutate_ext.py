#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Damages an ext2/3/4 in many ways, and has each of them read.

    mutate_ext.py LISTER IMAGE TYPE FIRST_SEED COUNT

For each seed, a few places of the image's metadata get other values: the superblock, descriptors, inodes, folders, trees of extents, blocks of names,
attributes, the journal. Then `LISTER IMAGE TYPE survive` must end by itself, with status 0, within its time and memory. A seed does the same
to the same image always. The image is as before in the end, unless something went wrong: then it stays damaged, to be looked at.
"""
import os
import random
import resource
import struct
import subprocess
import sys

QUESTION_SECONDS = 5  # which the reader has for one question
RUN_SECONDS = 90
MEMORY_BYTES = 600 << 20  # of the process that asks

INTERESTING = [0, 1, 2, 7, 8, 11, 12, 0x7F, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


class Image:
    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            self.data = file.read()
        super_block = self.data[1024:2048]
        self.inode_count, self.block_count = struct.unpack_from("<II", super_block, 0)
        self.first_block, self.log_block = struct.unpack_from("<II", super_block, 20)
        self.block = 1024 << self.log_block
        self.blocks_per_group, _, self.inodes_per_group = struct.unpack_from("<III", super_block, 32)
        self.inode_size = struct.unpack_from("<H", super_block, 88)[0] if struct.unpack_from("<I", super_block, 76)[0] else 128
        has_64bit = struct.unpack_from("<I", super_block, 96)[0] & 0x80
        self.descriptor = struct.unpack_from("<H", super_block, 254)[0] if has_64bit else 32
        self.regions = {"superblock": [(1024, 1024)], "descriptors": [], "inodes": [], "folders": [], "extents": [], "names": [],
                        "attributes": [], "journal": []}
        self.folders = []
        self.find_regions()

    def get(self, format, offset):
        return struct.unpack_from("<" + format, self.data, offset)[0]

    def find_regions(self):
        groups = -(-(self.block_count - self.first_block) // self.blocks_per_group)
        table = (self.first_block + 1) * self.block
        self.regions["descriptors"].append((table, groups * self.descriptor))
        for inode in range(1, self.inode_count + 1):
            group, index = divmod(inode - 1, self.inodes_per_group)
            offset = self.get("I", table + group * self.descriptor + 8) * self.block + index * self.inode_size
            mode, links = self.get("H", offset), self.get("H", offset + 26)
            if links == 0:
                continue
            self.regions["inodes"].append((offset, self.inode_size))
            if mode & 0xF000 == 0x4000:
                self.folders.append(inode)
            self.find_of_inode(inode, offset, mode & 0xF000)

    def find_of_inode(self, inode, offset, kind):
        attributes = self.get("I", offset + 104)
        if attributes:
            self.add("attributes", attributes)
        flags = self.get("I", offset + 32)
        if flags & 0x10000000 or kind not in (0x4000, 0x8000):
            return
        blocks = list(self.leaves(offset + 40) if flags & 0x80000 else self.names(offset + 40))
        if kind == 0x4000:
            for block in blocks:
                self.add("folders", block)
        elif inode == 8:
            for block in blocks[:40]:
                self.add("journal", block)

    def add(self, kind, block):
        if block * self.block < len(self.data):
            self.regions[kind].append((block * self.block, self.block))

    def leaves(self, offset):
        entries, depth = self.get("H", offset + 2), self.get("H", offset + 6)
        for i in range(entries):
            at = offset + 12 + 12 * i
            if depth == 0:
                length = self.get("H", at + 4)
                start = self.get("I", at + 8)
                yield from range(start, start + (length if length <= 32768 else length - 32768))
            else:
                block = self.get("I", at + 4)
                self.add("extents", block)
                yield from self.leaves(block * self.block)

    def names(self, offset):
        for i in range(15):
            yield from self.below(self.get("I", offset + 4 * i), max(0, i - 11))

    def below(self, block, height):
        if block == 0:
            return
        if height == 0:
            yield block
            return
        self.add("names", block)
        for i in range(self.block // 4):
            yield from self.below(self.get("I", block * self.block + 4 * i), height - 1)


def choose_change(image, source):
    """(offset, bytes, what) of one change."""
    kinds = [kind for kind, regions in image.regions.items() if regions]
    kind = source.choice(kinds)
    offset, length = source.choice(image.regions[kind])
    way = source.randrange(7)
    if kind == "folders" and way < 3:  # an entry leads to another folder, or into itself
        at = offset + source.choice([0, 12, 24, 4 * source.randrange(length // 4)])
        return at, struct.pack("<I", source.choice(image.folders + [1, 2, 8, image.inode_count, image.inode_count + 1])), kind
    if way == 0:
        size = source.choice([1, 4, 16, 64, 512])
        at = offset + source.randrange(max(1, length - size))
        return at, source.randbytes(min(size, length)), kind
    if way == 1:  # something from elsewhere
        other, other_length = source.choice(image.regions[source.choice(kinds)])
        size = min(length, other_length)
        return offset, image.data[other:other + size], kind
    if way == 2:
        return offset, bytes(length), kind
    size = source.choice([1, 2, 2, 4, 4, 4])
    # fields of an inode and of the superblock are mostly in the beginning
    most = min(length, 160 if kind in ("inodes", "superblock") and source.random() < 0.8 else length)
    at = offset + size * source.randrange(most // size)
    value = source.choice(INTERESTING + [image.get("I", at) + source.choice([-1, 1]), source.getrandbits(32), source.randrange(image.block_count)])
    return at, struct.pack("<I", value & 0xFFFFFFFF)[:size], kind


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def survive(lister, image, kind):
    environment = dict(os.environ, TIMEOUT_SECONDS=str(QUESTION_SECONDS), VERBOSE="1")
    sanitized = "asan" in environment.get("ASAN_OPTIONS", "") or "ASAN_OPTIONS" in environment and environment.get("MUTATE_NO_LIMIT")
    return subprocess.run([lister, image, kind, "survive"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          timeout=RUN_SECONDS, preexec_fn=None if sanitized else limit_memory, check=False)


def main():
    lister, path, kind, first_seed, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    image = Image(path)
    opened, ended, late = 0, 0, 0
    with open(path, "r+b", buffering=0) as file:
        for seed in range(first_seed, first_seed + count):
            source = random.Random(seed)
            changes = [choose_change(image, source) for _ in range(source.choice([1, 1, 1, 2, 3]))]
            for offset, data, _ in changes:
                os.pwrite(file.fileno(), data, offset)
            told = f"seed {seed}: " + ", ".join(f"{kind} at {offset}: {data[:16].hex()}" for offset, data, kind in changes)
            try:
                result = survive(lister, path, kind)
            except subprocess.TimeoutExpired:
                sys.exit(f"{told}: not done after {RUN_SECONDS} s")
            if result.returncode != 0:
                sys.exit(f"{told}: status {result.returncode}: {result.stderr.decode(errors='replace')[-2000:]}")
            opened += b"not opened" not in result.stderr
            ended += b"the process that read it was" in result.stderr
            late += b"no answer about a file" in result.stderr
            if os.environ.get("MUTATE_TELL") and (b"the process that read it was" in result.stderr or b"no answer about" in result.stderr):
                print(told)
            for offset, data, _ in changes:
                os.pwrite(file.fileno(), image.data[offset:offset + len(data)], offset)
    print(f"{count} of them, {opened} could be opened; {ended} ended their reader, {late} took it too long")


main()
