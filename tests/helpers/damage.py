#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Damages a file in some places, the same ones for the same seed: bytes changed, bits flipped, zeros, ones.

    damage.py SEED FILE LENGTH

Within its first LENGTH bytes (64M, 512K, …), a third of them in the first 64 KiB, where most file systems begin.
"""
import random
import sys

UNITS = {"K": 10, "M": 20, "G": 30}


def main():
    seed, path, length = sys.argv[1:4]
    length = int(length[:-1]) << UNITS[length[-1]] if length[-1] in UNITS else int(length)
    random.seed(seed)
    with open(path, "r+b") as file:
        for _ in range(random.choice((1, 5, 50, 500))):
            at = random.randrange(length if random.random() < 0.7 else 64 << 10)
            file.seek(at)
            old = file.read(random.choice((1, 2, 4, 64)))
            file.seek(at)
            file.write(bytes(random.choice((0, 255, byte ^ 1 << random.randrange(8), random.randrange(256))) for byte in old))


main()
