# SPDX-License-Identifier: Apache-2.0
"""A few requests of the NBD protocol as they are on the wire, for those that real clients don't send.

    raw_nbd.py SOCKET EXPORT REQUEST...     read:OFFSET:LENGTH  write:OFFSET:LENGTH  zero:OFFSET:LENGTH  trim:OFFSET:LENGTH
                                            status:OFFSET:LENGTH  status-one:OFFSET:LENGTH
    raw_nbd.py SOCKET EXPORT hang-up        asks for 16 times 256 KiB at once, and is gone

Prints a line for each: "ok", "error NUMBER" (the protocol's), or for a status the extents, "LENGTH/FLAGS" each.
"""
import socket
import struct
import sys

OPT_GO, OPT_STRUCTURED_REPLY, OPT_SET_META_CONTEXT = 7, 8, 10
COMMANDS = {"read": 0, "write": 1, "trim": 4, "zero": 6, "status": 7, "status-one": 7}
FLAG_REQ_ONE = 1 << 3


class Client:
    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.take(18)
        self.socket.sendall(struct.pack(">I", 3))
        name = export.encode()
        self.option(OPT_STRUCTURED_REPLY, b"")
        context = b"base:allocation"
        self.option(OPT_SET_META_CONTEXT,
                    struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(context)) + context)
        self.option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))

    def take(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                sys.exit("the server has hung up")
            data += piece
        return data

    def option(self, number, data):
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            text = self.take(length)
            if kind >= 1 << 31:
                sys.exit(f"option {number}: refused: {text.decode()}")
            if kind == 1:
                return

    def request(self, command, offset, length):
        flags = FLAG_REQ_ONE if command == "status-one" else 0
        data = b"x" * length if command == "write" else b""
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, COMMANDS[command], 1, offset, length) + data)
        answer = "ok"
        while True:
            (magic,) = struct.unpack(">I", self.take(4))
            if magic == 0x67446698:
                error, _ = struct.unpack(">IQ", self.take(12))
                return f"error {error}" if error else answer
            is_last, kind, _, size = struct.unpack(">HHQI", self.take(16))
            chunk = self.take(size)
            if kind >= 1 << 15:
                answer = f"error {struct.unpack('>I', chunk[:4])[0]}"
            elif kind == 5:
                extents = struct.iter_unpack(">II", chunk[4:])
                answer = " ".join(f"{length}/{flags}" for length, flags in extents)
            if is_last & 1:
                return answer


    def hang_up(self):
        requests = (struct.pack(">IHHQQI", 0x25609513, 0, 0, cookie, cookie % 8 << 18, 1 << 18) for cookie in range(16))
        self.socket.sendall(b"".join(requests))
        self.take(1)  # answers are on their way
        self.socket.close()


client = Client(sys.argv[1], sys.argv[2])
if sys.argv[3:] == ["hang-up"]:
    client.hang_up()
    sys.exit()
for text in sys.argv[3:]:
    word, first, count = text.split(":")
    print(client.request(word, int(first), int(count)))
