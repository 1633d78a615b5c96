#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fills a folder with files of every kind that a file system has, the same ones each time.

    make_tree.py FOLDER [FEATURE...]

    root      devices, owners, trusted and security attributes
    xattr     extended attributes and ACLs (setfacl)
    large     an attribute of 40 KB, which takes the feature ea_inode
    sparse    files far larger than what is in them, up to 4 TiB
    big=N     an upper limit for sizes of files in MiB, in place of 8
    many=N    files in the large folder, in place of 3000
    pieces=N  pieces of the fragmented file, in place of 3000
    block=N   bytes of a block, in place of 4096
"""
import os
import random
import socket
import subprocess
import sys


def main():
    folder, features = sys.argv[1], dict((word.split("=") + [""])[:2] for word in sys.argv[2:])
    block = int(features.get("block", 4096))
    os.chdir(folder)
    make_files(block, int(features.get("big", 8)))
    make_folders(int(features.get("many", 3000)))
    make_links(block)
    make_special_files()
    make_fragmented(block, int(features.get("pieces", 3000)))
    if "xattr" in features:
        make_xattrs("root" in features, "large" in features)
    if "sparse" in features:
        make_sparse(block)
    if "root" in features:
        make_as_root()
    make_times()


def write(path, data, mode="wb"):
    with open(path, mode) as file:
        file.write(data)


def make_files(block, big_mib):
    source = random.Random(1)
    os.mkdir("files")
    sizes = [0, 1, 59, 60, 61, 100, 150, 160, 200, 1000, block - 1, block, block + 1, 5 * block, 12 * block, 13 * block, 300000]
    for size in sizes + [1 << 20, big_mib << 20]:
        write(f"files/{size}", source.randbytes(size))
    write("files/zeros", bytes(100000))
    for mode in 0o600, 0o644, 0o755, 0o4755, 0o2711, 0o1777, 0:
        write(f"files/mode-{mode:o}", b"mode\n")
        os.chmod(f"files/mode-{mode:o}", mode)
    # what a journal has to escape
    write("files/journal-magic", b"".join(b"\xc0\x3b\x39\x98" + source.randbytes(block - 4) for _ in range(5)))


def make_folders(many):
    os.mkdir("folders")
    os.mkdir("folders/empty")
    os.mkdir("folders/small")
    for name in "a", "bb", "ccc":
        write(f"folders/small/{name}", name.encode())
    os.mkdir("folders/large")
    for number in range(many):
        write(f"folders/large/file-{number:06}", b"")
    for number in range(0, many, 7):  # gaps in its blocks
        os.unlink(f"folders/large/file-{number:06}")
    os.mkdir("folders/long-names")
    for number in range(200):
        write(f"folders/long-names/{number:04}" + "x" * 251, b"")
    path = "folders/deep"
    for _ in range(40):
        os.mkdir(path)
        path += "/deeper"
    os.mkdir("folders/many-folders")
    for number in range(120):
        os.mkdir(f"folders/many-folders/{number}")
    os.mkdir("names")
    for name in (b"new\nline", b"tab\there", b"back\\slash", b"\xc3\xa4\xc3\xb6", b"\xff\xfe", b" ", b"-rf", b"'\"`$", b"...", b".hidden",
                 b"\x01\x7f", b"n" * 255):
        write(b"names/" + name, name)


def make_links(block):
    os.mkdir("links")
    for size in 1, 20, 58, 59, 60, 61, 150, 1000, min(block - 1, 4000):
        os.symlink("t" * size if size < 255 else ("d" * 100 + "/") * (size // 101) + "e" * (size % 101), f"links/{size}")
    os.symlink("../files/1000", "links/real")
    write("links/hard-1", b"three names")
    os.link("links/hard-1", "links/hard-2")
    os.link("links/hard-1", "folders/small/hard-3")


def make_special_files():
    os.mkfifo("pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    server.close()


def make_fragmented(block, pieces):
    """Every second block of it is a hole."""
    source = random.Random(2)
    with open("fragmented", "wb") as file:
        for number in range(pieces):
            os.pwrite(file.fileno(), source.randbytes(block), 2 * number * block)
    with open("unwritten", "wb") as file:
        write_at(file, b"begin", 0)
        try:
            os.posix_fallocate(file.fileno(), 0, 100 * block)
        except OSError:
            os.truncate("unwritten", 100 * block)
        write_at(file, b"middle", 50 * block + 10)


def write_at(file, data, offset):
    os.pwrite(file.fileno(), data, offset)


def make_sparse(block):
    most = min(4 << 40, (1 << 32) * block) - 100
    for name, offsets in ("sparse-small", [0, 10 << 20]), ("sparse-begin", [33 << 20]), ("sparse-large", [0, 5 << 30, most // 2, most - 50]):
        with open(name, "wb") as file:
            for offset in offsets:
                try:
                    write_at(file, b"here " + str(offset).encode(), offset)
                except OSError:  # too large for this one
                    pass
    write("sparse-end", b"only the beginning")
    os.truncate("sparse-end", 3 << 20)


def make_xattrs(is_root, has_large):
    os.mkdir("xattrs")
    source = random.Random(3)
    for name in "none", "small", "many", "block", "shared-1", "shared-2", "empty-value", "large":
        write(f"xattrs/{name}", name.encode())
    os.setxattr("xattrs/small", "user.comment", b"short")
    for number in range(12):
        os.setxattr("xattrs/many", f"user.{number:03}" + "n" * number, source.randbytes(number))
    os.setxattr("xattrs/block", "user.block", source.randbytes(700))
    for name in "shared-1", "shared-2":
        os.setxattr(f"xattrs/{name}", "user.same", b"s" * 500)
    os.setxattr("xattrs/empty-value", "user.nothing", b"")
    if has_large:
        os.setxattr("xattrs/large", "user.large", source.randbytes(40000))
    os.mkdir("xattrs/acl")
    write("xattrs/acl/file", b"acl")
    subprocess.run(["setfacl", "-m", "u:12345:rw,g:54321:r,m::rwx", "xattrs/acl/file"], check=True)
    subprocess.run(["setfacl", "-m", "u:1:rx", "-m", "d:u:70000:rwx,d:g::r,d:o::-", "xattrs/acl"], check=True)
    if is_root:
        os.setxattr("xattrs/many", "trusted.secret", b"\x00\x01\x02")
        os.setxattr("xattrs/small", "security.other", b"label\x00")
        os.setxattr("links/60", "trusted.on-a-link", b"link", follow_symlinks=False)


def make_as_root():
    os.mknod("null", 0o20666, os.makedev(1, 3))
    os.mknod("disk", 0o60660, os.makedev(8, 17))
    os.mknod("new-kind-of-device", 0o20600, os.makedev(300, 70000))
    os.chown("files/1", 70000, 4294967294)
    os.chown("files/60", 65535, 65536)
    os.lchown("links/20", 1234, 5678)


def make_times():
    for number, seconds in enumerate((0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 4 * 10 ** 9, 15 * 10 ** 9, -1, -2 ** 31)):
        path = f"files/time-{number}"
        write(path, b"")
        os.utime(path, ns=(seconds * 10 ** 9 + 123456789, seconds * 10 ** 9 + 987654321))


main()
