# SPDX-License-Identifier: Apache-2.0
"""The part of tools/bench that measures what is served over NBD.

fio's engine nbd on unix sockets, each server its own process. For reading all of them are up at once, and every job goes
through all before the next begins; all of it comes before the first write. For writing each is started for its job and ended after it, for what a live disk folds
when its last client leaves belongs to that job, and to nobody else's time; what others leave in the page cache is synced
before the next begins.

CPU seconds are the server's alone, fio's aren't in them. Peak memory is VmHWM of the process that serves.
"""
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import time

from bench_common import GIB, MIB, OURS, THEIRS, AimsTable, Words, bar_chart, fail, load_pages, machine_files, number, say

ROOM = 9  # times the disk: the disk, two of qcow2, the store with what was overwritten, overlays
SPARSE_CACHE = 32 * MIB
TICKS = os.sysconf("SC_CLK_TCK")
NAMES = {"image": "wherry, image, cached", "image-small": "wherry, image, small cache", "live": "wherry, live disk",
         "live-small": "wherry, live disk, small cache", "scratch": "wherry, scratch overlay", "file": "nbdkit file, raw",
         "cow": "nbdkit file, cow filter", "raw": "qemu-nbd, raw", "qcow2": "qemu-nbd, qcow2",
         "zstd": "qemu-nbd, qcow2 compressed (zstd)"}
READERS = ("image", "image-small", "live", "live-small", "file", "raw", "qcow2", "zstd")
WRITERS = ("live", "scratch", "file", "cow", "raw", "qcow2")
OURSELVES = ("image", "image-small", "live", "live-small", "scratch")
# name: what fio does, title, unit
READS = {"read-4k-1": (["--rw=randread", "--bs=4k", "--iodepth=1"], "4K random, QD 1", "IOPS"),
         "read-4k-16": (["--rw=randread", "--bs=4k", "--iodepth=16"], "4K random, QD 16", "IOPS"),
         "read-4k-64": (["--rw=randread", "--bs=4k", "--iodepth=64"], "4K random, QD 64", "IOPS"),
         "read-64k-16": (["--rw=randread", "--bs=64k", "--iodepth=16"], "64K random, QD 16", "MiB/s"),
         "read-seq": (["--rw=read", "--bs=1m", "--iodepth=4"], "1M sequential", "MiB/s")}
WRITES = {"write-4k-1": (["--rw=randwrite", "--bs=4k", "--iodepth=1"], "4K random, QD 1", "IOPS"),
          "write-4k-16": (["--rw=randwrite", "--bs=4k", "--iodepth=16"], "4K random, QD 16", "IOPS"),
          "write-4k-64": (["--rw=randwrite", "--bs=4k", "--iodepth=64"], "4K random, QD 64", "IOPS"),
          "write-fsync": (["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"], "4K random, fsync after each", "IOPS"),
          "write-64k-16": (["--rw=randwrite", "--bs=64k", "--iodepth=16"], "64K random, QD 16", "MiB/s"),
          "write-seq": (["--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"], "1M sequential", "MiB/s"),
          "write-fresh": (["--rw=randwrite", "--bs=4k", "--iodepth=16"], "4K random, QD 16, fresh overlay", "IOPS")}
JOBS = READS | WRITES
OVERLAYS = ("scratch", "cow")
TLS = {"plain": "no TLS", "fast": "TLS as serve-nbd has it", "default": "TLS as GnuTLS prefers it"}


# ---------------------------------------------------------------- servers

class Server:
    """One that is up when this returns, on a unix socket."""

    def __init__(self, work, name, command, environment, export=""):
        self.name = name
        self.socket = f"{work}/{name}.sock"
        self.uri = f"nbd+unix:///{export}?socket={self.socket}"
        self.log = open(f"{work}/{name}.log", "w+b")
        self.pid_file = f"{work}/{name}.pid"
        for left_over in (self.pid_file, self.socket):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left_over)
        command = [word.format(socket=self.socket, pid_file=self.pid_file) for word in command]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log,
                                        env=environment, cwd=work, start_new_session=True)
        self.pid = self.wait_until_up()
        self.peak = 0

    def wait_until_up(self):
        for _ in range(1200):
            if self.process.poll() is not None:
                self.fail("it ended")
            if os.path.basename(self.process.args[0]) == "wherry":  # says so; nbdkit is its child
                if not self.process.stdout.readline():
                    self.fail("it didn't start")
                with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
                    return int(file.read().split()[0])
            with contextlib.suppress(FileNotFoundError, ValueError):
                with open(self.pid_file) as file:
                    return int(file.read())
            time.sleep(0.05)
        return self.fail("it didn't start")

    def fail(self, what):
        self.log.seek(0)
        fail(f"{' '.join(self.process.args)}: {what}\n{self.log.read().decode(errors='replace')[-2000:]}")

    def cpu_seconds(self):
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / TICKS
        except (FileNotFoundError, ProcessLookupError):
            return 0

    def look(self):
        """Notes the peak so far; the CPU seconds so far, 0 when it has gone."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, AttributeError):
            with open(f"/proc/{self.pid}/status") as file:
                self.peak = max(self.peak, int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) * 1024)
        return self.cpu_seconds()

    def stop(self):
        """Ends it, and waits for what it does at its end. Its CPU seconds."""
        cpu = self.look()
        self.process.send_signal(signal.SIGTERM)
        while self.process.poll() is None:
            cpu = max(cpu, self.look())
            time.sleep(0.01)
        self.process.stdout.close()
        self.log.close()
        return cpu

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Servers:
    """Those of one run. What is still up at the end of the with statement is killed: the folder is about to go."""

    def __init__(self, work, options, size):
        self.work, self.options, self.size = work, options, size
        self.environment = dict(os.environ, TMPDIR=work)
        self.small_cache = max(size // 16, 4 * MIB)
        self.large_cache = size * 5 // 4
        self.up = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.up:
            server.kill()

    def cache_of(self, name):
        return self.small_cache if name.endswith("-small") else self.large_cache

    def wherry(self, reference, cache, *more):
        return [self.options.wherry, "-s", f"{self.work}/store", "serve-nbd", reference, "--socket", "{socket}", "--cache",
                str(cache), *more]

    def command(self, name, for_writing):
        raw, mode = f"{self.work}/disk.raw", [] if for_writing else ["-r"]
        if name.startswith("image"):
            return self.wherry("disk@1", self.cache_of(name))
        if name == "scratch":
            return self.wherry("disk@1", self.cache_of(name), "--scratch")
        if name.startswith("live"):
            return self.wherry("disk", self.cache_of(name), "--rw", "mirror")
        if name in ("file", "cow"):
            return ["nbdkit", "-f", *mode, "-U", "{socket}", "-P", "{pid_file}",
                    *(["--filter=cow"] if name == "cow" else []), "file", raw]
        form, image = {"raw": ("raw", raw), "qcow2": ("qcow2", f"{self.work}/disk.qcow2"),
                       "zstd": ("qcow2", f"{self.work}/disk-zstd.qcow2")}[name]
        return ["qemu-nbd", *mode, "-f", form, "-k", "{socket}", "--pid-file={pid_file}", "-t", "-e", "4",
                "--cache=writeback", "--discard=unmap", image]

    def start(self, name, for_writing=False, command=None, label=None, **environment):
        server = Server(self.work, label or name, command or self.command(name, for_writing),
                        dict(self.environment, **environment),
                        {"live": "disk", "live-small": "disk", "image": "disk@1", "image-small": "disk@1",
                         "scratch": "disk@1", "sparse": "sparse"}.get(name, ""))
        self.up.append(server)
        return server

    def stop(self, server):
        cpu = server.stop()
        self.up.remove(server)
        return cpu


# ---------------------------------------------------------------- measuring

class NbdBench:
    def __init__(self, work, options, servers, data):
        self.work, self.options, self.servers, self.data = work, options, servers, data
        self.seconds = 1 if options.quick else 8
        self.size = servers.size
        self.turn = 0
        self.overhead = 0  # seconds

    def run(self, *command):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=self.servers.environment)
        if done.returncode != 0:
            fail(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr.decode(errors='replace')[-2000:]}")

    def prepare(self):
        """The same content for all of them."""
        say(f"making a disk of {self.size // MIB} MiB for what is served over NBD…")
        store = f"{self.work}/store"
        make_content(f"{self.work}/disk.raw", self.size, Words(self.options.seed))
        self.run(self.options.wherry, "-s", store, "init")
        self.run(self.options.wherry, "-s", store, "sync", f"{self.work}/disk.raw", "disk", "--progress=none")
        self.run(self.options.wherry, "-s", store, "create", "sparse", "1024T")
        for target, more in (("disk.qcow2", []), ("disk-zstd.qcow2", ["-c", "-o", "compression_type=zstd"])):
            self.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "16", "-W", *more, f"{self.work}/disk.raw",
                     f"{self.work}/{target}")
        self.run("psktool", "-u", "bench", "-p", f"{self.work}/keys.psk")
        for target in ("disk.qcow2", "disk-zstd.qcow2"):
            self.settle(f"{self.work}/{target}")

    def settle(self, path):
        """What was written to it isn't written back while somebody else is measured; and it is in the page cache."""
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        load_pages(path)

    def fio(self, server, job, more, seconds):
        report = f"{self.work}/fio.json"
        self.turn += 1
        bounds = [f"--runtime={seconds}", "--time_based"] if seconds else []
        self.run("fio", "--name=bench", "--ioengine=nbd", f"--uri={server.uri}", f"--output={report}", "--output-format=json",
                 f"--size={self.size}", f"--randseed={self.options.seed + self.turn}", "--norandommap",
                 "--random_generator=tausworthe64", "--refill_buffers", "--buffer_compress_percentage=50",
                 "--buffer_compress_chunk=4k", *JOBS[job][0], *bounds, *more)
        with open(report) as file:
            found = json.load(file)["jobs"][0]
        if found["error"] != 0:
            fail(f"fio: {job} of {server.name}: error {found['error']}")
        return found

    def job(self, server, job, more=()):
        cpu = server.look()
        found = self.fio(server, job, more, None if job in ("write-seq", "write-fresh") else self.seconds)
        side = found["read" if job in READS else "write"]
        cpu = server.look() - cpu
        return {"iops": side["iops"], "rate": side["bw_bytes"], "requests": side["total_ios"], "cpu": cpu,
                "median_us": side["clat_ns"]["percentile"]["50.000000"] / 1000,
                "p99_us": side["clat_ns"]["percentile"]["99.000000"] / 1000,
                "bytes": side["io_bytes"]}

    def note(self, job, name, measure):
        self.data["rows"].setdefault(f"{job}/{name}", []).append(measure)
        say(f"  {job:12} {name:12} {measure['iops']:9.0f} IOPS {measure['rate'] / MIB:8.0f} MiB/s  "
            f"cpu {measure['cpu'] / max(measure['requests'], 1) * 1e6:7.1f} us a request  p99 {measure['p99_us']:8.0f} us" +
            (f"  end {measure['end']:.2f} s, cpu {measure['end_cpu']:.2f} s" if "end" in measure else ""))

    def note_peak(self, server, name, cache):
        self.data["peaks"].setdefault(name, []).append({"peak": server.peak, "cache": cache})

    def reads(self):
        servers = {name: self.servers.start(name) for name in READERS}
        for name in READERS:  # its cache is full of it, or overflows
            self.run("nbdcopy", servers[name].uri, "null:")
        for job in READS:
            for name in READERS:
                self.note(job, name, self.job(servers[name], job))
        for name in READERS:
            self.servers.stop(servers[name])
            if name in OURSELVES:
                self.note_peak(servers[name], name, self.servers.cache_of(name))

    def measure_overhead(self):
        """What fio takes for nothing."""
        server = self.servers.start("file", for_writing=True)
        times = []
        for _ in range(3):
            began = time.time()
            self.job(server, "write-seq", ("--io_size=4k", "--bs=4k"))
            times.append(time.time() - began)
        self.servers.stop(server)
        self.overhead = min(times)

    def writes(self):
        self.measure_overhead()
        for job in WRITES:
            for name in WRITERS:
                if (job == "write-fsync" and name in OVERLAYS) or (job == "write-fresh" and name not in OVERLAYS):
                    continue  # there is nothing that has to be durable; there is nothing below
                server = self.servers.start(name, for_writing=True)
                began = time.time()
                # of an overlay one write for each 64 KiB, which is what the filter copies at the first write to any of them
                measure = self.job(server, job, (f"--io_size={self.size // 16}",) if job == "write-fresh" else ())
                ended, cpu = time.time(), server.look()
                measure["end_cpu"] = self.servers.stop(server) - cpu
                measure["end"] = time.time() - ended
                if job == "write-seq":  # until all is where it belongs
                    measure["rate"] = measure["bytes"] / max(time.time() - began - self.overhead, 0.001)
                self.note(job, name, measure)
                if name in OURSELVES:
                    self.note_peak(server, name + ", writing", self.servers.cache_of(name))
                if name in ("file", "raw", "qcow2"):
                    self.settle(f"{self.work}/disk.{'qcow2' if name == 'qcow2' else 'raw'}")
        self.run(self.options.wherry, "-s", f"{self.work}/store", "gc", "--progress=none")

    def sparse(self):
        """Memory must not follow the size of a disk: requests all over one of 1 PiB."""
        server = self.servers.start("sparse", command=self.servers.wherry("sparse", SPARSE_CACHE))
        for job in ("write-4k-16", "read-4k-16"):
            self.note(job, "sparse", self.job(server, job, (f"--size={1 << 50}",)))
        self.servers.stop(server)
        self.note_peak(server, "live, 1 PiB", SPARSE_CACHE)

    def tls(self):
        """All of the cached image into nbdcopy, which decrypts it."""
        for way in TLS:
            keys = f"{self.work}/keys.psk"
            settings = {"GNUTLS_SYSTEM_PRIORITY_FILE": "/dev/null"} if way == "default" else {}
            command = self.servers.wherry("disk@1", self.servers.large_cache, *([] if way == "plain" else ["--tls-psk", keys]))
            server = self.servers.start("image", command=command, label=f"tls-{way}", **settings)
            if way != "plain":
                server.uri = f"nbds+unix://bench@/disk@1?socket={server.socket}&tls-psk-file={keys}"
            self.run("nbdcopy", server.uri, "null:")
            cpu, before = server.look(), time.time()
            self.run("nbdcopy", server.uri, "null:")
            seconds = time.time() - before
            cpu = server.look() - cpu
            self.data["tls"].setdefault(way, []).append({"rate": self.size / seconds, "cpu": cpu})
            say(f"  {TLS[way]}: {self.size / seconds / MIB:.0f} MiB/s, cpu {cpu:.2f} s")
            self.servers.stop(server)


def make_content(path, size, words):
    """Six tenths files of this machine, a quarter incompressible, the rest text; in pieces, as on a disk in use."""
    paths = iter(machine_files(words.random))
    with open(path, "wb") as file:
        while file.tell() < size:
            kind = words.random.choices(("machine", "noise", "text"), (60, 25, 15))[0]
            length = min(int(16384 * 2 ** words.random.uniform(0, 7)) // 4096 * 4096, size - file.tell())
            if kind == "machine":
                copy_files(file, length, paths)
            else:
                file.write((words.noise if kind == "noise" else words.text)(length))
        os.fsync(file.fileno())


def copy_files(file, length, paths):
    """As much as `length` bytes of the next files that there are, from a block on."""
    copied = 0
    for path in paths:
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        with contextlib.suppress(OSError), open(path, "rb") as source:
            content = source.read(length - copied)
            content += bytes(-len(content) % 4096)
            file.write(content[:length - copied])
            copied = min(copied + len(content), length)
        if copied == length:
            return
    if copied < length:  # a machine with few files
        file.write(os.urandom(length - copied))


def versions(wherry):
    for program, command in (("wherry", [wherry, "--version"]), ("nbdkit", ["nbdkit", "--version"]),
                             ("qemu-nbd", ["qemu-nbd", "--version"]), ("fio", ["fio", "--version"]),
                             ("nbdcopy", ["nbdcopy", "--version"])):
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        yield program, re.search(r"\d+[\w.+~]*", said).group(0)


def measure(work, options, data, save):
    size = options.nbd_size * MIB
    with Servers(work, options, size) as servers:
        bench = NbdBench(work, options, servers, data)
        data.update(size=size, seed=options.seed, seconds=bench.seconds, repeat=0, rows={}, peaks={}, tls={},
                    small_cache=servers.small_cache, large_cache=servers.large_cache, versions=dict(versions(options.wherry)))
        bench.prepare()
        for turn in range(options.nbd_repeat):  # of what nobody has written to yet
            say(f"over NBD, reading: run {turn + 1} of {options.nbd_repeat}")
            bench.reads()
            bench.tls()
        for turn in range(options.nbd_repeat):
            say(f"over NBD, writing: run {turn + 1} of {options.nbd_repeat}")
            bench.writes()
            bench.sparse()
            data["repeat"] += 1
            save()  # what is measured stays, however this ends


# ------------------------------------------------------------ the report

class Results:
    def __init__(self, data):
        self.data = data
        self.rows = data["rows"]

    def of(self, job, name, what="iops"):
        values = [row[what] for row in self.rows.get(f"{job}/{name}", []) if what in row]
        return statistics.median(values) if values else None

    def cpu_us(self, job, name):
        values = [row["cpu"] / row["requests"] * 1e6 for row in self.rows.get(f"{job}/{name}", []) if row["requests"]]
        return statistics.median(values) if values else None

    def peak(self, name, what="peak"):
        return max(row[what] for row in self.data["peaks"][name])

    def tls(self, way, what="rate"):
        return statistics.median(row[what] for row in self.data["tls"][way])


class Aims(AimsTable):
    def __init__(self, results):
        super().__init__()
        self.results = results

    def ratio(self, job, ours, theirs, least, what):
        """Of requests a second, or bytes where requests are large."""
        unit = "iops" if JOBS[job][2] == "IOPS" else "rate"
        mine, other = self.results.of(job, ours, unit), self.results.of(job, theirs, unit)
        cpu, other_cpu = self.results.cpu_us(job, ours), self.results.cpu_us(job, theirs)
        if mine and other:
            self.add(f"{what}: ≥ {least:g}× {NAMES[theirs]}",
                     f"{mine / other:.2f}×" + (f" (CPU a request: {cpu / other_cpu:.2f}×)" if other_cpu else ""),
                     mine / other >= least)

    def memory(self):
        for name in sorted(self.results.data["peaks"]):
            peak, cache = self.results.peak(name), self.results.peak(name, "cache")
            self.add(f"Peak memory, {name}: ≤ cache + 64 MiB",
                     f"{peak / MIB:.0f} MiB, of which the cache may take {cache / MIB:.0f}", peak <= cache + 64 * MIB)

    def all(self):
        for job, title in (("read-4k-1", "QD 1"), ("read-4k-16", "QD 16")):
            self.ratio(job, "image-small", "zstd", 1.4, f"Image, chunks not cached, 4K random read, {title}")
        self.ratio("read-seq", "image-small", "zstd", 2.5, "Image, chunks not cached, 1M sequential read")
        for job, title in (("read-4k-1", "QD 1"), ("read-4k-16", "QD 16"), ("read-4k-64", "QD 64")):
            self.ratio(job, "image", "file", 0.9, f"Image, cached, 4K random read, {title}")
        for job, title in (("write-4k-1", "QD 1"), ("write-4k-16", "QD 16"), ("write-4k-64", "QD 64")):
            self.ratio(job, "live", "file", 1, f"Live disk, 4K random write, {title}")
            self.ratio(job, "live", "qcow2", 1, f"Live disk, 4K random write, {title}")
        self.ratio("write-fsync", "live", "file", 1.2, "Live disk, 4K write with fsync each")
        self.ratio("write-seq", "live", "file", 0.5, "Live disk, sequential write, fold included")
        self.ratio("write-fresh", "scratch", "cow", 5, "Scratch overlay, 4K random write, QD 16")
        fast, slow = self.results.tls("fast"), self.results.tls("default")
        self.add("TLS with a pre-shared key: the fast cipher", f"{fast / slow:.1f}× GnuTLS's default", fast / slow >= 1.5)
        self.memory()
        return self.lines + [""]


def jobs_table(results, jobs, names, title):
    at = next(job for job in jobs if job.endswith("4k-16"))
    lines = [f"### {title}", "",
             "| | " + " | ".join(f"{words}, {unit}" for _, words, unit in jobs.values()) +
             " | 4K, QD 16: CPU µs a request | median µs | p99 µs |", "|---|" + "--:|" * (len(jobs) + 3)]
    for name in names:
        cells = [number(results.of(job, name), 0) if unit == "IOPS" else number((results.of(job, name, "rate") or 0) / MIB, 0)
                 for job, (_, _, unit) in jobs.items()]
        cells = ["" if cell == "0" else cell for cell in cells]
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + f" | {number(results.cpu_us(at, name), 1)} | "
                     f"{number(results.of(at, name, 'median_us'), 0)} | {number(results.of(at, name, 'p99_us'), 0)} |")
    return lines + [""]


def folding_table(results):
    lines = ["### Folding at the end of the writes to the live disk", "",
             "| | written MiB | s until the client had left and all was in chunks | CPU s |", "|---|--:|--:|--:|"]
    for job, (_, title, _) in WRITES.items():
        if results.of(job, "live") is None:
            continue
        lines.append(f"| {title} | {number(results.of(job, 'live', 'bytes') / MIB, 0)} | "
                     f"{number(results.of(job, 'live', 'end'))} | {number(results.of(job, 'live', 'end_cpu'))} |")
    return lines + [""]


def tls_table(results):
    lines = ["### TLS with a pre-shared key: all of the cached image into nbdcopy", "",
             "| | MiB/s | CPU s of the server per GiB |", "|---|--:|--:|"]
    for way, title in TLS.items():
        lines.append(f"| {title} | {results.tls(way) / MIB:.0f} | "
                     f"{results.tls(way, 'cpu') / (results.data['size'] / GIB):.2f} |")
    return lines + [""]


def chart(results, job):
    _, title, unit = JOBS[job]
    names = READERS if job in READS else WRITERS
    bars = [(NAMES[name], results.of(job, name) if unit == "IOPS" else results.of(job, name, "rate") / MIB,
             OURS if name in OURSELVES else THEIRS) for name in names if results.of(job, name) is not None]
    return bar_chart(f"{'Reading' if job in READS else 'Writing'}, {title}", f"{unit}, more is better", bars)


def write_report(all_data, folder, charts):
    results = Results(all_data["nbd"])
    data = results.data
    lines = [f"A disk of {data['size'] / GIB:g} GiB, all of it in use, in the page cache; each job {data['seconds']} s, medians of "
             f"{data['repeat']}; seed {data['seed']}. wherry's cache: {data['large_cache'] // MIB} MiB, and "
             f"{data['small_cache'] // MIB} MiB as the small one. {all_data['processor']}, Linux {all_data['kernel']}. " +
             ", ".join(f"{program} {version}" for program, version in data["versions"].items()) + ".", ""]
    lines += ["### The aims, over NBD", ""] + Aims(results).all()
    lines += jobs_table(results, READS, READERS, "Reading over NBD")
    lines += jobs_table(results, WRITES, WRITERS, "Writing over NBD")
    lines += folding_table(results) + tls_table(results)
    for job in ("read-4k-16", "read-seq", "write-4k-16", "write-fsync"):
        with open(os.path.join(folder, charts, f"nbd-{job}.svg"), "w") as file:
            file.write(chart(results, job))
        lines += [f"![{JOBS[job][1]}]({charts}/nbd-{job}.svg)", ""]
    return "\n".join(lines)
