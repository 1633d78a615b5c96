# SPDX-License-Identifier: Apache-2.0
"""What the parts of tools/bench have in common: content, the page cache, processes, tables and charts."""
import os
import platform
import random
import re
import signal
import sys
import time

MIB = 1 << 20
GIB = 1 << 30
OURS, THEIRS, NOBODYS = "#1f6fb4", "#d69a4c", "#8a8a8a"  # colours of bars


def say(text):
    print(text, file=sys.stderr, flush=True)


def fail(text):
    say(f"bench: {text}")
    sys.exit(1)


# ------------------------------------------------------------ what is measured with

class Words:
    """Text that shrinks like text, and bytes that don't shrink, from one seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        words = ["".join(self.random.choices("etaoinshrdlucmfwypvbgkjqxz", range(26, 0, -1), k=self.random.randint(2, 11)))
                 for _ in range(4000)]
        weights = [1 / (i + 1) for i in range(len(words))]
        self.lines = [" ".join(self.random.choices(words, weights, k=self.random.randint(4, 18))) for _ in range(20000)]

    def text(self, size):
        parts, total = [], 0
        while total < size:
            line = f"{self.random.getrandbits(32):08x} {self.random.choice(self.lines)}\n"
            parts.append(line)
            total += len(line)
        return "".join(parts).encode()[:size]

    def noise(self, size):
        return self.random.randbytes(size)


def write_file(path, size, make):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        while size > 0:
            piece = min(size, 4 * MIB)
            file.write(make(piece))
            size -= piece


def machine_files(choice):
    """Paths of programs, libraries, documents and code of this machine, in an order that the seed says."""
    paths = []
    for top in ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share", "/usr/include", "/usr/local"):
        for where, folders, files in os.walk(top):
            folders.sort()
            paths.extend(os.path.join(where, name) for name in files)
    paths.sort()
    choice.shuffle(paths)
    return paths


def forget_pages(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_pages(path):
    with open(path, "rb", buffering=0) as file:
        while file.read(4 * MIB):
            pass


def end_group(process):
    """The command and all that it started: SIGTERM, and SIGKILL for what is there after ten seconds."""
    for attempt in range(200):
        try:
            os.killpg(process.pid, signal.SIGKILL if attempt == 100 else signal.SIGTERM if attempt == 0 else 0)
        except ProcessLookupError:
            return
        process.poll()
        time.sleep(0.1)


def processor():
    with open("/proc/cpuinfo") as file:
        found = re.search(r"model name\s*:\s*(.*)", file.read())
    return f"{found.group(1) if found else platform.machine()}, {os.cpu_count()} cores"


# ------------------------------------------------------------ the report

def number(value, digits=2):
    return "" if value is None else f"{value:.{digits}f}"


def mib(value):
    return "" if value is None else f"{value / MIB:.0f}"


class AimsTable:
    def __init__(self):
        self.lines = ["| Aim | Measured | |", "|---|---|---|"]

    def add(self, aim, measured, is_met):
        self.lines.append(f"| {aim} | {measured} | {'met' if is_met else '**missed**'} |")


def bar_chart(title, unit, bars):
    """Bars one below the other, of (name, value, colour); readable on light and dark pages."""
    most = max((value for _, value, _ in bars), default=0) or 1
    height = 40 + 22 * len(bars)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" width="720" height="{height}" '
             f'font-family="sans-serif" font-size="13" role="img" aria-label="{title}: {unit}">',
             f'<rect width="720" height="{height}" fill="#ffffff"/>',
             f'<text x="10" y="22" font-weight="bold" fill="#222222">{title}: {unit}</text>']
    for index, (name, value, colour) in enumerate(bars):
        y = 34 + 22 * index
        lines += [f'<text x="220" y="{y + 14}" text-anchor="end" fill="#222222">{name}</text>',
                  f'<rect x="228" y="{y + 2}" width="{max(value / most * 410, 1):.1f}" height="16" fill="{colour}"/>',
                  f'<text x="{234 + value / most * 410:.1f}" y="{y + 14}" fill="#222222">{number(value, 2 if most < 100 else 0)}</text>']
    return "\n".join(lines + ["</svg>", ""])


def put_into_docs(docs, mark, report):
    """Into benchmarks.md, between the two comments of this mark."""
    path = os.path.join(docs, "benchmarks.md")
    first, last = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
    with open(path) as file:
        head, rest = file.read().split(first, 1)
    tail = rest.split(last, 1)[1]
    with open(path, "w") as file:
        file.write(f"{head}{first}\n{report}\n{last}{tail}")
