# SPDX-License-Identifier: Apache-2.0
"""What tools/bench does once everything is installed and built.

Measures in one run, the programs by turns, so that what else the machine does hits all of them alike. Each is given its
input in the way that suits it and all others alike: restic and borg the disk on standard input, since they would skip a file
whose times have not changed, which says nothing of the disk of a server; rsync with --ignore-times for the same reason.

Wall and CPU seconds and peak memory are GNU time's, of the program itself: a reader at the other end of its pipe isn't counted.
Nothing but Python's own library is used.
"""
import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

import bench_fs
import bench_nbd
from bench_common import (GIB, MIB, NOBODYS, OURS, THEIRS, AimsTable, Words, bar_chart, end_group, fail, forget_pages,
                          load_pages, machine_files, mib, number, processor, put_into_docs, say, write_file)

BLOCK = 4096
CHUNK = 65536
EXT4_OFFSET = MIB
PEERS = ("restic", "borg", "borg-default", "qemu-img", "casync", "rsync")
NAMES = {"wherry": "wherry", "restic": "restic", "borg": "borg, fixed 64K", "borg-default": "borg, default chunker",
         "qemu-img": "qemu-img", "casync": "casync", "rsync": "rsync", "limit": "the limit", "read": "just reading"}


# ---------------------------------------------------------------- the disk

def copy_machine_files(folder, size, choice):
    left = size
    for number, path in enumerate(machine_files(choice)):
        try:
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            length = (os.path.getsize(path) + BLOCK - 1) // BLOCK * BLOCK
            if length == 0 or length > min(left, 64 * MIB):
                continue
            target = f"{folder}/d{number % 16:02}/machine/{number % 211}/{number}-{os.path.basename(path)}"
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(path, target)
            left -= length
        except OSError:
            continue
        if left < 64 * 1024:
            break
    return size - left


def fill(folder, size, words):
    """Half of the disk: six tenths files of this machine, a quarter incompressible, the rest text; and sparse ones."""
    used = copy_machine_files(folder, int(size * 0.6), words.random)
    noise = int(size * 0.25)
    while used < size:
        length = min(max(int(64 * 1024 * 2 ** words.random.uniform(0, 8)) // BLOCK * BLOCK, BLOCK), max(size - used, BLOCK))
        kind = "noise" if noise > 0 else "text"
        write_file(f"{folder}/d{words.random.randrange(16):02}/{kind}/{used // BLOCK}", length,
                   words.noise if kind == "noise" else words.text)
        used += length
        noise -= length
    for number in range(4):
        path = f"{folder}/d{number:02}/sparse"
        write_file(path, BLOCK, words.text)
        with open(path, "r+b") as file:
            file.truncate(64 * MIB)
            file.seek(32 * MIB)
            file.write(words.noise(BLOCK))


def make_disk(work, size, words):
    disk, folder = f"{work}/disk.img", f"{work}/files"
    say(f"making a disk of {size // MIB} MiB…")
    fill(folder, size // 2, words)
    garbage = []
    for number in range(max(size // 8 // (4 * MIB), 1)):
        name = f"d{number % 16:02}/garbage-{number}"
        write_file(f"{folder}/{name}", 4 * MIB, words.noise if number % 2 else words.text)
        garbage.append(name)
    with open(disk, "wb") as file:
        file.truncate(size)
    table = f"label: gpt\nstart=1MiB, size={size // MIB - 2}MiB, type=linux, name=root\n"
    subprocess.run(["sfdisk", "-q", disk], input=table, text=True, check=True)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-L", "root", "-d", folder, "-E",
                    f"offset={EXT4_OFFSET}", disk, f"{size // MIB - 2}m"], check=True)
    shutil.rmtree(folder)
    subprocess.run(["debugfs", "-w", "-f", "-", f"{disk}?offset={EXT4_OFFSET}"], check=True, text=True,
                   input="".join(f"rm /{name}\n" for name in garbage), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return disk


def block_ranges(text):
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        yield int(first), int(last or first)


def data_chunks(path):
    """Those that aren't in holes of the file."""
    chunks = set()
    with open(path, "rb") as file:
        size, at = file.seek(0, os.SEEK_END), 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            chunks.update(range(at // CHUNK, (end + CHUNK - 1) // CHUNK))
            at = end
    return chunks


class Layout:
    """What of the disk is in use, and what of that is content of files, in the words of dumpe2fs and debugfs."""

    def __init__(self, disk, size):
        name = f"{disk}?offset={EXT4_OFFSET}"
        text = subprocess.run(["dumpe2fs", name], check=True, capture_output=True, text=True).stdout
        count = int(re.search(r"^Block count:\s+(\d+)", text, re.M).group(1))
        state = bytearray(b"c" * count)
        for line in text.splitlines():
            free = re.match(r"\s+Free blocks: (.*)", line)
            if free:
                for first, last in block_ranges(free.group(1)):
                    state[first:last + 1] = b"." * (last + 1 - first)
            elif re.search(r"\bat \d", line):
                for first, last in re.findall(r"\bat (\d+)(?:-(\d+))?", line):
                    first, last = int(first), int(last or first)
                    state[first:last + 1] = b"m" * (last + 1 - first)
        journal = subprocess.run(["debugfs", "-R", "blocks <8>", name], check=True, capture_output=True, text=True).stdout
        for block in journal.split():
            state[int(block)] = ord("m")
        if len(state) != count:
            fail("dumpe2fs: blocks that the file system doesn't have")
        self.used = [0]  # chunks: the first one has the partition table
        per_chunk, shift = CHUNK // BLOCK, EXT4_OFFSET // CHUNK
        for chunk in range((count + per_chunk - 1) // per_chunk):
            blocks = state[chunk * per_chunk:(chunk + 1) * per_chunk]
            if blocks.strip(b"."):
                self.used.append(chunk + shift)
        self.used.append(size // CHUNK - 1)
        held = data_chunks(disk)
        self.used = [chunk for chunk in self.used if chunk in held]
        self.content = [block for block in range(count) if state[block] == ord("c")]
        self.content_set = set(self.content)

    def used_bytes(self):
        return len(self.used) * CHUNK

    def write_ranges(self, path):
        with open(path, "w") as file:
            first = last = self.used[0]
            for chunk in self.used[1:] + [-1]:
                if chunk != last + 1:
                    file.write(f"{first * CHUNK} {(last + 1 - first) * CHUNK}\n")
                    first = chunk
                last = chunk

    def change(self, disk, words, part=0.02):
        """Half of what changes in pieces of 4 to 64 KiB, half in pieces of up to 4 MiB; half of it text."""
        left = int(len(self.content) * part)
        small = left // 2
        with open(disk, "r+b") as file:
            while left > 0:
                most = words.random.uniform(0, 4) if left > small else words.random.uniform(4, 10)
                start = words.random.choice(self.content)
                length = 0
                while length < min(int(2 ** most), left) and start + length in self.content_set:
                    length += 1
                data = (words.noise if words.random.random() < 0.5 else words.text)(length * BLOCK)
                os.pwrite(file.fileno(), data, EXT4_OFFSET + start * BLOCK)
                left -= length
            os.fsync(file.fileno())


# ------------------------------------------------------------- measuring

def stored_bytes(path):
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(path) for name in names
               if (where, name) != (path, "reserve"))  # wherry's: 40 MiB for hard times, whatever the store holds


class Bench:
    def __init__(self, work, options):
        self.work = work
        self.options = options
        self.rows = {}  # "phase/cache/program": a list of measures
        self.environment = dict(os.environ, RESTIC_PASSWORD="bench", RESTIC_CACHE_DIR=f"{work}/restic-cache",
                                RESTIC_PROGRESS_FPS="0.1", BORG_BASE_DIR=f"{work}/borg-home",
                                BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes", BORG_RELOCATED_REPO_ACCESS_IS_OK="yes",
                                TMPDIR=work)

    def run(self, command, stdin=None, into_pipe=False):
        """One measure; ends the run if the command fails, since a number of a failed command means nothing."""
        once = f"{self.work}/time"
        with open(f"{self.work}/log", "w+b") as log, open(stdin or os.devnull, "rb") as source:
            process = subprocess.Popen(["time", "-q", "-f", "%e %U %S %M", "-o", once, "--"] + command, stdin=source,
                                       stdout=subprocess.PIPE if into_pipe else log, stderr=log, env=self.environment,
                                       cwd=self.work, start_new_session=True)
            try:
                if into_pipe:
                    subprocess.run(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL, check=True)
                status = process.wait()
            except BaseException:  # Ctrl-C: nothing goes on in a folder that is about to be removed
                end_group(process)
                raise
            log.seek(0)
            said = log.read().decode(errors="replace")
        if status != 0:
            fail(f"{' '.join(command)}: exit status {status}\n{said[-2000:]}")
        with open(once) as file:
            wall, user, system, peak = (float(word) for word in file.read().split()[-4:])
        return {"wall": wall, "cpu": user + system, "peak": peak * 1024, "said": said}

    def note(self, phase, cache, program, measure, **more):
        measure = {key: value for key, value in dict(measure, **more).items() if key != "said"}
        self.rows.setdefault(f"{phase}/{cache}/{program}", []).append(measure)
        say(f"  {phase:8} {cache:4} {program:13} {measure['wall']:8.2f} s  cpu {measure['cpu']:8.2f} s  "
            f"{measure['peak'] / MIB:6.0f} MiB" + (f"  stored {measure['stored'] / MIB:.0f} MiB" if "stored" in measure else ""))

    def limit(self, operation, disk, into_pipe=False):
        measure = self.run([self.options.limits, operation, disk, str(self.size)], f"{self.work}/ranges", into_pipe)
        counted = json.loads(measure["said"].strip().splitlines()[-1])
        return dict(measure, wall=counted["seconds"], cpu=counted["cpu_seconds"])

    # What each program does for a phase. All of them leave `store(program)` as their repository.

    def store(self, program):
        return f"{self.work}/{program}.store"

    def forget(self, program):
        for path in (self.store(program), f"{self.work}/casync.caibx", f"{self.work}/restic-cache") \
                if program in ("casync", "restic") else (self.store(program),):
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)

    def prepare(self, program):
        self.forget(program)
        store = self.store(program)
        if program == "wherry":
            self.run([self.options.wherry, "-s", store, "init"])
        elif program == "restic":
            self.run(["restic", "init", "-q", "--repository-version", "2", "-r", store])
        elif program.startswith("borg"):
            self.run(["borg", "init", "-e", "none", store])

    def back_up(self, program, disk, name):
        store = self.store(program)
        if program == "wherry":
            return self.run([self.options.wherry, "-s", store, "sync", disk, "disk", "--progress=none"])
        if program == "restic":
            return self.run(["restic", "backup", "-q", "-r", store, "--stdin", "--stdin-filename", "disk", "--tag", name], disk)
        if program.startswith("borg"):
            chunker = ["--chunker-params", "fixed,65536"] if program == "borg" else []
            return self.run(["borg", "create", "--compression", "zstd,1", *chunker, f"{store}::{name}", "-"], disk)
        if program == "casync":
            return self.run(["casync", "make", f"--store={store}", f"{self.work}/casync.caibx", disk])
        if program == "qemu-img":
            return self.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "-m", "16",
                             "-W", disk, store])
        return self.run(["rsync", "--inplace", "--no-whole-file", "--ignore-times", disk, store])

    def give_back(self, program, name):
        store = self.store(program)
        if program == "wherry":
            return self.run([self.options.wherry, "-s", store, "export", "disk@latest", "-", "--progress=none"], None, True)
        if program == "restic":
            return self.run(["restic", "dump", "-q", "-r", store, "--tag", name, "latest", "/disk"], None, True)
        if program.startswith("borg"):
            return self.run(["borg", "extract", "--stdout", f"{store}::{name}"], None, True)
        return self.run(["qemu-img", "convert", "-n", "-f", "qcow2", "-m", "16", "-W", store, "--target-image-opts",
                         f"driver=null-co,size={self.size}"])

    def check(self, program):
        store = self.store(program)
        if program == "wherry":
            return self.run([self.options.wherry, "-s", store, "check", "--deep", "--progress=none"])
        if program == "restic":
            return self.run(["restic", "check", "-q", "--read-data", "-r", store])
        return self.run(["borg", "check", "--verify-data", store])

    def ready(self, cache, disk):
        (load_pages if cache == "warm" else forget_pages)(disk)

    def having(self, *programs):
        return [program for program in programs if program == "wherry" or program in self.options.only]

    # ---- the phases

    def pass_once(self, cache):
        disk, changed = f"{self.work}/disk.img", f"{self.work}/changed.img"
        for program in self.having("wherry", "restic", "borg", "borg-default", "qemu-img", "casync"):
            self.prepare(program)
            self.ready(cache, disk)
            self.note("first", cache, program, self.back_up(program, disk, "first"), stored=stored_bytes(self.store(program)))
        self.note("first", cache, "limit", self.limit("store", disk))
        if "rsync" in self.options.only:
            shutil.copyfile(disk, self.store("rsync"))
        again = self.having("wherry", "restic", "borg", "borg-default", "casync", "rsync")
        for program in again:
            self.ready(cache, disk)
            self.note("same", cache, program, self.back_up(program, disk, "same"))
        for operation, name in (("compare", "limit"), ("read", "read")):
            self.ready(cache, disk)
            self.note("same", cache, name, self.limit(operation, disk))
        for program in again:
            before = stored_bytes(self.store(program))
            self.ready(cache, changed)
            measure = self.back_up(program, changed, "changed")
            self.note("changed", cache, program, measure, stored=stored_bytes(self.store(program)) - before)
        if cache == "cold":
            return
        for program in self.having("wherry", "restic", "borg", "borg-default", "qemu-img"):
            self.note("export", cache, program, self.give_back(program, "changed"))
        self.ready("warm", changed)
        self.note("export", cache, "limit", self.limit("export", changed, True))
        for program in self.having("wherry", "restic", "borg"):
            self.note("check", cache, program, self.check(program))

    def series(self, layout, words, count):
        """Images in a row, each with 2 % changed against the one before; then every other one goes."""
        disk = f"{self.work}/changed.img"
        programs = self.having("wherry", "restic", "borg")
        subprocess.run(["cp", "--sparse=always", f"{self.work}/disk.img", disk], check=True)
        for program in programs:
            self.prepare(program)
        for number in range(count):
            if number > 0:
                layout.change(disk, words)
            for program in programs:
                self.ready("warm", disk)
                self.note("image", "warm", program, self.back_up(program, disk, f"n{number}"),
                          stored=stored_bytes(self.store(program)))
        gone = range(0, count, 2)
        for program in programs:
            store = self.store(program)
            if program == "wherry":
                steps = [[self.options.wherry, "-s", store, "delete", *(f"disk@{number + 1}" for number in gone)],
                         [self.options.wherry, "-s", store, "gc", "--progress=none"]]
            elif program == "restic":
                listed = json.loads(subprocess.run(["restic", "-q", "-r", store, "snapshots", "--json"], check=True,
                                                   capture_output=True, env=self.environment).stdout)
                doomed = [shot["id"] for shot in listed if int(shot["tags"][0][1:]) % 2 == 0]
                steps = [["restic", "forget", "-q", "--prune", "-r", store, *doomed]]
            else:
                steps = [["borg", "delete", store, *(f"n{number}" for number in gone)], ["borg", "compact", store]]
            measures = [self.run(step) for step in steps]
            self.note("delete", "warm", program,
                      {"wall": sum(m["wall"] for m in measures), "cpu": sum(m["cpu"] for m in measures),
                       "peak": max(m["peak"] for m in measures)}, stored=stored_bytes(store))

    def sparse(self):
        """The same content on a disk a hundred times as large."""
        disk = f"{self.work}/changed.img"
        subprocess.run(["cp", "--sparse=always", f"{self.work}/disk.img", disk], check=True)
        os.truncate(disk, self.size * 100)
        self.prepare("wherry")
        self.note("sparse", "warm", "wherry", self.back_up("wherry", disk, "sparse"))


def versions(wherry):
    for program, command in (("wherry", [wherry, "--version"]), ("restic", ["restic", "version"]), ("borg", ["borg", "--version"]),
                             ("qemu-img", ["qemu-img", "--version"]), ("casync", ["casync", "--version"]),
                             ("rsync", ["rsync", "--version"])):
        try:
            said = subprocess.run(command, capture_output=True, text=True).stdout
            yield program, re.search(r"\d+[\w.+~-]*", said).group(0)
        except (OSError, AttributeError):
            continue


def measure_rounds(options, data):
    size = options.size * MIB
    parent = os.environ.get("TMPDIR", "/var/tmp")
    # disk, its changed copy, rsync's copy, and half a disk in each of five stores, twice
    need = size * 6 + size * options.images // 8
    check_room(parent, need)
    say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="wherry-bench.", dir=parent) as work:
        bench = Bench(work, options)
        bench.size = size
        words = Words(options.seed)
        disk = make_disk(work, size, words)
        layout = Layout(disk, size)
        layout.write_ranges(f"{work}/ranges")
        data.update(size=size, used=layout.used_bytes(), seed=options.seed, repeat=0, images=options.images,
                    versions=dict(versions(options.wherry)), rows=bench.rows)
        for _ in range(options.repeat):
            subprocess.run(["cp", "--sparse=always", disk, f"{work}/changed.img"], check=True)
            layout.change(f"{work}/changed.img", words)
            for cache in ("warm",) if options.warm_only else ("warm", "cold"):
                say(f"run {data['repeat'] + 1} of {options.repeat}, page cache {cache}")
                bench.pass_once(cache)
            data["repeat"] += 1
            save(options, data)  # what is measured stays, however this ends
        bench.sparse()
        for program in PEERS:
            bench.forget(program)
        save(options, data)
        if options.images > 0:
            say(f"{options.images} images")
            bench.series(layout, words, options.images)


def check_room(folder, need):
    free = shutil.disk_usage(folder).free
    if free < need:
        fail(f"{folder}: {need / GIB:.1f} GiB of free space are needed, {free / GIB:.1f} GiB are there; "
             "say TMPDIR=… for another place, or --quick")


def measure_nbd(options, data):
    parent = os.environ.get("TMPDIR", "/var/tmp")
    check_room(parent, options.nbd_size * MIB * bench_nbd.ROOM)
    with tempfile.TemporaryDirectory(prefix="wherry-bench.", dir=parent) as work:
        bench_nbd.measure(work, options, data.setdefault("nbd", {}), lambda: save(options, data))


def measure_fs(options, data):
    parent = os.environ.get("TMPDIR", "/var/tmp")
    check_room(parent, options.nbd_size * MIB * bench_fs.ROOM)
    with tempfile.TemporaryDirectory(prefix="wherry-bench.", dir=parent) as work:
        bench_fs.measure(work, options, data.setdefault("fs", {}), lambda: save(options, data))


def measure(options):
    data = {"processor": processor(), "kernel": platform.release().split("-")[0]}
    for number_of_signal in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number_of_signal, lambda *_: sys.exit(130))
    if options.rounds:
        measure_rounds(options, data)
    if options.nbd:
        measure_nbd(options, data)
    if options.fs:
        measure_fs(options, data)
    return data


def save(options, data):
    os.makedirs(options.output, exist_ok=True)
    with open(os.path.join(options.output, "results.json"), "w") as file:
        json.dump(data, file, indent=1)


# ------------------------------------------------------------ the report

class Results:
    def __init__(self, data):
        self.data = data
        self.rows = data["rows"]

    def of(self, phase, cache, program, what="wall"):
        values = [row[what] for row in self.rows.get(f"{phase}/{cache}/{program}", []) if what in row]
        return statistics.median(values) if values else None

    def programs(self, phase, cache):
        found = [key.split("/")[2] for key in self.rows if key.startswith(f"{phase}/{cache}/")]
        return [program for program in NAMES if program in found]


PHASES = (("first", "First round", ("warm", "cold")), ("same", "Nothing changed", ("warm", "cold")),
          ("changed", "2 % changed", ("warm", "cold")), ("export", "Export into a pipe", ("warm",)),
          ("check", "Check of all content", ("warm",)))


def phase_table(results, phase, title, cache):
    ours = results.of(phase, cache, "wherry")
    ours_cpu = results.of(phase, cache, "wherry", "cpu")
    size = results.data["size"] / GIB
    stored = {"first": "stored MiB", "changed": "growth MiB"}.get(phase)
    lines = [f"### {title}" + (f", page cache {cache}" if phase in ("first", "same", "changed") else ""), "",
             "| | wall s | × wherry | CPU s | CPU s per GiB of disk | × wherry | peak MiB |" + (f" {stored} |" if stored else ""),
             "|---|--:|--:|--:|--:|--:|--:|" + ("--:|" if stored else "")]
    for program in results.programs(phase, cache):
        wall, cpu = results.of(phase, cache, program), results.of(phase, cache, program, "cpu")
        lines.append(f"| {NAMES[program]} | {number(wall)} | {number(wall / ours if ours else None)} | {number(cpu)} | "
                     f"{number(cpu / size)} | {number(cpu / ours_cpu if ours_cpu else None)} | "
                     f"{mib(results.of(phase, cache, program, 'peak'))} |" +
                     (f" {mib(results.of(phase, cache, program, 'stored'))} |" if stored else ""))
    return lines + [""]


def series_table(results):
    lines = [f"### {results.data['images']} images, each with 2 % changed; then every other one deleted", "",
             "| | wall s per image | CPU s per image | stored MiB | deletion and clean-up: wall s | CPU s | stored MiB after |",
             "|---|--:|--:|--:|--:|--:|--:|"]
    for program in results.programs("image", "warm"):
        rows = results.rows[f"image/warm/{program}"]
        later = rows[1:] or rows
        lines.append(f"| {NAMES[program]} | {number(statistics.median(row['wall'] for row in later))} | "
                     f"{number(statistics.median(row['cpu'] for row in later))} | {mib(rows[-1]['stored'])} | "
                     f"{number(results.of('delete', 'warm', program))} | {number(results.of('delete', 'warm', program, 'cpu'))} | "
                     f"{mib(results.of('delete', 'warm', program, 'stored'))} |")
    return lines + [""]


class Aims(AimsTable):
    def __init__(self, results):
        super().__init__()
        self.results = results

    def faster(self, phase, cache, program, least, what):
        ours, theirs = self.results.of(phase, cache, "wherry"), self.results.of(phase, cache, program)
        if ours and theirs:
            cpu = self.results.of(phase, cache, program, "cpu") / max(self.results.of(phase, cache, "wherry", "cpu"), 0.001)
            self.add(f"{what}: ≥ {least}× {NAMES[program]}", f"{theirs / ours:.1f}× (CPU seconds: {cpu:.1f}×)",
                     theirs / ours >= least)

    def of_limit(self, phase, cache, limit, least, what):
        ours, best = self.results.of(phase, cache, "wherry"), self.results.of(phase, cache, limit)
        if ours and best:
            cpu = self.results.of(phase, cache, limit, "cpu") / max(self.results.of(phase, cache, "wherry", "cpu"), 0.001)
            self.add(f"{what}: ≥ {least * 100:.0f} % of {NAMES[limit]}",
                     f"{best / ours * 100:.0f} % (CPU seconds: {cpu * 100:.0f} %)", best / ours >= least)

    def stored(self, phase, what):
        ours, theirs = (self.results.of(phase, "warm", program, "stored") for program in ("wherry", "borg"))
        if ours is not None and theirs is not None:
            self.add(f"{what}: ≤ that of {NAMES['borg']}", f"{ours / MIB:.1f} MiB and {theirs / MIB:.1f} MiB", ours <= theirs)

    def cpu(self):
        worst = None
        for phase in ("first", "same", "changed", "export", "check"):
            ours = self.results.of(phase, "warm", "wherry", "cpu")
            for program in self.results.programs(phase, "warm"):
                if program in PEERS and ours:
                    ratio = self.results.of(phase, "warm", program, "cpu") / ours
                    worst = min(worst or (ratio, phase, program), (ratio, phase, program))
        if worst:
            title = next(title for phase, title, _ in PHASES if phase == worst[1])
            self.add("CPU seconds per GiB: below each peer's",
                     f"the closest: {NAMES[worst[2]]}, {title.lower()}: {worst[0]:.1f}×", worst[0] > 1)

    def memory(self):
        peaks = [row["peak"] for key, rows in self.results.rows.items() if key.endswith("/wherry") for row in rows]
        sparse = self.results.of("sparse", "warm", "wherry", "peak")
        first = self.results.of("first", "warm", "wherry", "peak")
        if peaks:
            self.add("Peak memory: < 256 MiB", f"{max(peaks) / MIB:.0f} MiB", max(peaks) < 256 * MIB)
        if sparse and first:
            self.add("Peak memory, a sparse disk 100 times as large: the same",
                     f"{sparse / MIB:.0f} MiB and {first / MIB:.0f} MiB", sparse < first * 1.25)

    def all(self):
        self.of_limit("first", "warm", "limit", 0.85, "First round")
        for program, least in (("restic", 3), ("borg", 2), ("casync", 5), ("qemu-img", 1.7)):
            self.faster("first", "warm", program, least, "First round")
        self.stored("first", "First round, stored bytes")
        for program in ("restic", "borg", "borg-default", "casync", "rsync"):
            self.faster("same", "warm", program, 15, "Nothing changed, warm")
        self.of_limit("same", "cold", "read", 0.9, "Nothing changed, cold")
        for program in ("restic", "borg", "borg-default", "casync", "rsync"):
            self.faster("changed", "warm", program, 7, "2 % changed")
        self.stored("changed", "2 % changed, growth")
        for program in ("restic", "borg", "borg-default", "qemu-img"):
            self.faster("export", "warm", program, 3, "Export into a pipe")
        self.of_limit("export", "warm", "limit", 0.7, "Export into a pipe")
        self.faster("check", "warm", "restic", 2, "Check of all content")
        self.memory()
        self.cpu()
        return self.lines + [""]


def chart(results, phase, title, caches):
    colours = {"wherry": OURS, "limit": NOBODYS, "read": NOBODYS}
    bars = [(f"{NAMES[program]}{', ' + cache if len(caches) > 1 else ''}", results.of(phase, cache, program),
             colours.get(program, THEIRS))
            for program in NAMES for cache in caches if results.of(phase, cache, program) is not None]
    return bar_chart(title, "seconds, less is better", bars)


def write_report(results, folder, charts):
    """The tables as Markdown; the charts as files in folder/charts."""
    data = results.data
    lines = [f"A disk of {data['size'] / GIB:g} GiB, {data['used'] / GIB:.2f} GiB of it in use; medians of {data['repeat']}; "
             f"seed {data['seed']}. {data['processor']}, Linux {data['kernel']}. " +
             ", ".join(f"{program} {version}" for program, version in data["versions"].items()) + ".", ""]
    lines += ["### The aims", ""] + Aims(results).all()
    for phase, title, caches in PHASES:
        caches = [cache for cache in caches if results.of(phase, cache, "wherry") is not None]
        if not caches:
            continue
        with open(os.path.join(folder, charts, f"{phase}.svg"), "w") as file:
            file.write(chart(results, phase, title, caches))
        for cache in caches:
            lines += phase_table(results, phase, title, cache)
        lines += [f"![{title}: wall seconds]({charts}/{phase}.svg)", ""]
    if results.programs("image", "warm"):
        lines += series_table(results)
    return "\n".join(lines)


def write_reports(data, folder, charts, take):
    """Charts go into folder/charts; take() gets the tables of each part that there are results of."""
    os.makedirs(os.path.join(folder, charts), exist_ok=True)
    if "rows" in data:
        take("results of tools/bench", write_report(Results(data), folder, charts))
    if "nbd" in data:
        take("results of tools/bench over NBD", bench_nbd.write_report(data, folder, charts))
    if "fs" in data:
        take("results of tools/bench as files", bench_fs.write_report(data, folder, charts))


def parse_arguments():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser = argparse.ArgumentParser(prog="tools/bench", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", type=int)
    parser.add_argument("--repeat", type=int)
    parser.add_argument("--seed", type=int, default=4711)
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--warm-only", action="store_true")
    parser.add_argument("--parts", default="rounds,nbd,files")
    parser.add_argument("--output", default=os.path.join(root, "build", "benchmarks"))
    parser.add_argument("--update-docs", action="store_true")
    parser.add_argument("--from", dest="results")
    options = parser.parse_args()
    options.root = root
    options.size = options.size or (1024 if options.quick else 8192)
    options.nbd_size = min(max(options.size // 4, 512), options.size)
    options.nbd_repeat = (2 if options.quick else 3) if options.repeat is None else options.repeat
    options.repeat = 3 if options.repeat is None else options.repeat
    if options.size < 64 or options.repeat < 1 or options.images < 0:
        parser.error("--size is at least 64, --repeat at least 1")
    parts = options.parts.split(",")
    for part in parts:
        if part not in ("rounds", "nbd", "files"):
            parser.error(f"--parts: {part}: none of rounds, nbd, files")
    options.rounds, options.nbd, options.fs = ("rounds" in parts, "nbd" in parts, "files" in parts)
    options.only = [] if options.only == "none" else options.only.split(",")
    for program in options.only:
        if program not in PEERS:
            parser.error(f"--only: {program}: none of {', '.join(PEERS)}")
    options.wherry = os.environ.get("WHERRY", "wherry")
    options.wherryfs = os.environ.get("WHERRYFS", "wherryfs")
    options.limits = os.environ.get("BENCH_LIMITS", "bench_limits")
    return options


def main():
    options = parse_arguments()
    if options.results:
        with open(options.results) as file:
            data = json.load(file)
    else:
        data = measure(options)
    save(options, data)
    with open(os.path.join(options.output, "benchmarks.md"), "w") as file:
        write_reports(data, options.output, "charts", lambda mark, report: (file.write(report), print(report)))
    if options.update_docs:
        docs = os.path.join(options.root, "docs")
        write_reports(data, docs, "benchmarks", lambda mark, report: put_into_docs(docs, mark, report))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
