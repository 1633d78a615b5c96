# SPDX-License-Identifier: Apache-2.0
"""The part of tools/bench that measures disks as files.

Content through FUSE, next to what others show through FUSE and to our own way over NBD; and the files inside an image, next to what the
kernel shows of the same ext4 on a loop device. Everything is mounted anew for each job, so that nothing but the source is in the page
cache; the programs go by turns. CPU seconds are those of the process that serves the mount.

Taking the tree apart by find and tar asks for a name, its attributes, and its content, a file at a time. tar writes into a pipe, for it reads
nothing when it sees that it writes to /dev/null.
"""
import contextlib
import glob
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import time

from bench_common import GIB, MIB, OURS, THEIRS, AimsTable, Words, bar_chart, fail, forget_pages, load_pages, number, say
from bench_nbd import TICKS, make_content

ROOM = 8  # times the disk
IMAGES = 1000
NAMES = {"wherryfs": "wherryfs, image", "wherryfs-live": "wherryfs, live disk", "nbd": "wherry over NBD, image", "nbd-live": "wherry over NBD, live disk",
         "nbdfuse": "nbdfuse, nbdkit file", "qsd-raw": "qemu-storage-daemon, raw", "qsd-qcow2": "qemu-storage-daemon, qcow2",
         "restic": "restic mount", "kernel": "the kernel's ext4, loop"}
OURSELVES = ("wherryfs", "wherryfs-live", "nbd", "nbd-live")
READERS = ("wherryfs", "wherryfs-live", "nbd", "nbdfuse", "qsd-raw", "qsd-qcow2", "restic")
WRITERS = ("wherryfs-live", "nbd-live", "nbdfuse", "qsd-raw", "qsd-qcow2")
BEST_OF = ("nbdfuse", "qsd-raw", "qsd-qcow2", "restic")
TREES = ("wherryfs", "kernel")
JOBS = {"read-seq": (["--rw=read", "--bs=1m"], "1M sequential read", "MiB/s"),
        "read-4k": (["--rw=randread", "--bs=4k"], "4K random read", "IOPS"),
        "write-fsync": (["--rw=randwrite", "--bs=4k", "--fsync=1"], "4K random write, fsync after each", "IOPS"),
        "write-seq": (["--rw=write", "--bs=1m", "--end_fsync=1"], "1M sequential write", "MiB/s")}


class Mount:
    """A process that serves a mount point, or a socket; up when this returns, and gone after stop()."""

    def __init__(self, bench, name, command, path, is_mount=True, environment=None):
        self.name, self.path, self.is_mount = name, path, is_mount
        self.log = open(f"{bench.work}/{name}.log", "w+b")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, cwd=bench.work,
                                        env=environment or bench.environment, start_new_session=True)
        self.point = None
        for _ in range(1200):
            if self.process.poll() is not None:
                self.fail("it ended")
            with contextlib.suppress(OSError):
                if os.stat(path) and (not is_mount or self.find_point()):
                    return
            time.sleep(0.05)
        self.fail("it didn't start")

    def find_point(self):
        with open("/proc/self/mounts") as file:
            points = [line.split()[1] for line in file if " fuse" in line]
        found = [point for point in points if self.path == point or self.path.startswith(point + "/")]
        self.point = max(found, key=len, default=None)
        return self.point is not None

    def fail(self, what):
        self.kill()
        self.log.seek(0)
        fail(f"{' '.join(self.process.args)}: {what}\n{self.log.read().decode(errors='replace')[-2000:]}")

    def cpu(self):
        """Of it and of its children, who may be the ones that work."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / TICKS
        return total

    def pids(self):
        found = [self.process.pid]
        for pid in found:
            for task in glob.glob(f"/proc/{pid}/task/*/children"):
                with contextlib.suppress(OSError), open(task) as file:
                    found += [int(word) for word in file.read().split()]
        return found

    def peak(self):
        peaks = [0]
        for pid in self.pids():
            with contextlib.suppress(OSError, AttributeError), open(f"/proc/{pid}/status") as file:
                peaks.append(int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) * 1024)
        return max(peaks)

    def unmount(self):
        if self.point is not None:
            subprocess.run(["umount", self.point] if os.geteuid() == 0 else ["fusermount3", "-u", self.point], check=False, capture_output=True)

    def stop(self):
        self.unmount()
        if not self.is_mount or self.name == "restic" or self.name.startswith("qsd"):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.fail("it didn't end")
        self.log.close()

    def kill(self):
        if self.point is not None:
            subprocess.run(["umount", "-l", self.point], check=False, capture_output=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class FsBench:
    def __init__(self, work, options, data):
        self.work, self.options, self.data = work, options, data
        self.size = options.nbd_size * MIB
        self.files = 20000 if options.quick else 100000
        self.seconds = 1 if options.quick else 8
        self.cache = str(self.size * 5 // 4)
        self.environment = dict(os.environ, TMPDIR=work, RESTIC_PASSWORD="bench", RESTIC_CACHE_DIR=f"{work}/restic-cache",
                                WHERRY_STORE=f"{work}/store")
        self.up = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for mount in reversed(self.up):
            mount.kill()

    def run(self, *command, **more):
        done = subprocess.run(command, stdin=more.pop("stdin", subprocess.DEVNULL), capture_output=True, env=self.environment, cwd=self.work, **more)
        if done.returncode != 0:
            fail(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout

    # ---- what is measured with

    def prepare(self):
        say(f"making a disk of {self.size // MIB} MiB and one with {self.files} files for what is shown as files…")
        words = Words(self.options.seed)
        wherry, raw = self.options.wherry, f"{self.work}/disk.raw"
        make_content(raw, self.size, words)
        self.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, f"{self.work}/disk.qcow2")
        self.make_tree(words)
        self.run(wherry, "init")
        self.run(wherry, "sync", raw, "disk", "--progress=none")
        self.run(wherry, "clone", "disk@1", "live")
        self.run(wherry, "sync", f"{self.work}/tree.img", "tree", "--progress=none")
        self.run(wherry, "create", "many", "1M")
        if "restic" in self.options.only:
            self.run("restic", "init", "-q", "--repository-version", "2", "-r", f"{self.work}/restic.store")
            with open(raw, "rb") as file:
                self.run("restic", "backup", "-q", "-r", f"{self.work}/restic.store", "--stdin", "--stdin-filename", "disk", stdin=file)
        for _ in range(IMAGES):
            self.run(wherry, "image", "many")

    def make_tree(self, words):
        """GPT and one ext4 with files of up to 16 KiB, 500 a folder, as in a home or a mail spool."""
        folder, image = f"{self.work}/tree", f"{self.work}/tree.img"
        for index in range(self.files):
            where = f"{folder}/{index // 5000:02}/{index // 500 % 10}"
            if index % 500 == 0:
                os.makedirs(where)
            with open(f"{where}/file-{index:06}", "wb") as file:
                file.write(words.text(int(2 ** words.random.uniform(7, 14))))
        size = 128 * MIB + self.files * 10240
        with open(image, "wb") as file:
            file.truncate(size // MIB * MIB)
        subprocess.run(["sfdisk", "-q", image], input=f"label: gpt\nstart=1MiB, size={size // MIB - 2}MiB, type=linux\n", text=True, check=True)
        self.run("mke2fs", "-q", "-F", "-t", "ext4", "-N", str(self.files * 5 // 4), "-d", folder, "-E", "offset=1048576", image,
                 f"{size // MIB - 2}m")
        shutil.rmtree(folder)

    # ---- who shows it

    def start(self, name, for_writing):
        mount = self.make(name, for_writing)
        self.up.append(mount)
        return mount

    def stop(self, mount):
        mount.stop()
        self.up.remove(mount)

    def make(self, name, for_writing):
        point, raw = f"{self.work}/mnt", f"{self.work}/disk.raw"
        os.makedirs(point, exist_ok=True)
        socket = f"{self.work}/server.sock"
        if name.startswith("wherryfs"):
            path = f"{point}/{'live/disk.raw' if name == 'wherryfs-live' else 'disk/images/1/disk.raw'}"
            return Mount(self, name, [self.options.wherryfs, f"{self.work}/store", point, "-f", "-o", f"cache={self.cache}"], path)
        if name.startswith("nbd") and name != "nbdfuse":
            reference = "live" if name == "nbd-live" else "disk@1"
            return Mount(self, name, [self.options.wherry, "serve-nbd", reference, "--socket", socket, "--cache", self.cache], socket, False)
        if name == "nbdfuse":
            mode = [] if for_writing else ["-r"]
            return Mount(self, name, ["nbdfuse", *mode, f"{point}/disk", "--command", "nbdkit", "-s", "--exit-with-parent", *mode, "file", raw],
                         f"{point}/disk")
        if name.startswith("qsd"):
            target = f"{self.work}/qsd.disk"
            open(target, "wb").close()
            form, image = ("raw", raw) if name == "qsd-raw" else ("qcow2", f"{self.work}/disk.qcow2")
            return Mount(self, name, ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=file,filename={image},discard=unmap",
                                      "--blockdev", f"driver={form},node-name=disk,file=file", "--export",
                                      f"type=fuse,id=export,node-name=disk,mountpoint={target},writable={'on' if for_writing else 'off'}"], target)
        return Mount(self, name, ["restic", "mount", "-q", "-r", f"{self.work}/restic.store", point], f"{point}/snapshots/latest/disk")

    # ---- measuring

    def fio(self, mount, job):
        report = f"{self.work}/fio.json"
        words = JOBS[job][0]
        if mount.is_mount:
            where = ["--ioengine=psync", f"--filename={mount.path}", "--allow_file_create=0"]
        else:  # as many as the kernel reads ahead
            export = "live" if mount.name == "nbd-live" else "disk@1"
            where = ["--ioengine=nbd", f"--uri=nbd+unix:///{export}?socket={mount.path}", f"--iodepth={4 if 'seq' in job else 1}"]
        bounds = [] if "seq" in job else ["--time_based", f"--runtime={self.seconds}", f"--ramp_time={self.seconds / 8}"]
        self.run("fio", "--name=job", *where, f"--output={report}", "--output-format=json", f"--size={self.size}",
                 f"--randseed={self.options.seed}", "--norandommap", "--random_generator=tausworthe64", "--refill_buffers",
                 "--buffer_compress_percentage=50", *words, *bounds)
        with open(report) as file:
            found = json.load(file)["jobs"][0]
        if found["error"] != 0:
            fail(f"fio: {job} of {mount.name}: error {found['error']}")
        return found["read" if "read" in job else "write"]

    def note(self, job, name, measure):
        self.data["rows"].setdefault(f"{job}/{name}", []).append(measure)
        say(f"  {job:12} {name:14} " + (f"{measure['iops']:9.0f} IOPS {measure['rate'] / MIB:8.0f} MiB/s" if "iops" in measure else
                                        f"{measure['seconds']:9.2f} s") + f"  cpu {measure['cpu']:.2f} s  peak {measure['peak'] / MIB:.0f} MiB")

    def load_sources(self):
        """Of all of them: wherry writes its segments past the page cache."""
        paths = [f"{self.work}/disk.raw", f"{self.work}/disk.qcow2", f"{self.work}/tree.img"]
        for folder in ("store/segments", "restic.store/data"):
            paths += [path for path in glob.glob(f"{self.work}/{folder}/**", recursive=True) if os.path.isfile(path)]
        for path in paths:
            load_pages(path)

    def job(self, job, name):
        self.load_sources()
        mount = self.start(name, "write" in job)
        cpu = mount.cpu()
        side = self.fio(mount, job)
        self.note(job, name, {"iops": side["iops"], "rate": side["bw_bytes"], "cpu": mount.cpu() - cpu, "peak": mount.peak(),
                              "p99_us": side["clat_ns"]["percentile"]["99.000000"] / 1000})
        self.stop(mount)
        if "write" in job and name in BEST_OF:
            forget_pages(f"{self.work}/disk.raw")

    @contextlib.contextmanager
    def tree(self, name):
        """The folder with the files, the mount, CPU seconds so far."""
        self.load_sources()
        point = f"{self.work}/mnt"
        if name == "kernel":
            os.makedirs(point, exist_ok=True)
            self.run("mount", "-o", "loop,ro,noload,offset=1048576", f"{self.work}/tree.img", point)
            try:
                yield point, None
            finally:
                self.run("umount", point)
            return
        mount = Mount(self, "wherryfs", [self.options.wherryfs, f"{self.work}/store", point, "-f"], f"{point}/tree/images/1")
        self.up.append(mount)
        yield f"{point}/tree/images/1/files/1", mount
        self.stop(mount)

    def walk(self, job, name):
        commands = {"find": ["find", ".", "-printf", "%p %i %s %m %U %G %T@ %n\\n"], "tar": ["tar", "--create", "--file=-", "."]}
        with self.tree(name) as (folder, mount):
            os.listdir(folder)  # it is there, whatever that takes; not what this is about
            cpu, before = mount.cpu() if mount else 0, time.time()
            with subprocess.Popen(commands[job], cwd=folder, stdout=subprocess.PIPE) as process:
                total = 0
                while piece := process.stdout.read(MIB):
                    total += len(piece)
            if process.returncode != 0:
                fail(f"{job} of {name}: exit status {process.returncode}")
            self.note(job, name, {"seconds": time.time() - before, "cpu": mount.cpu() - cpu if mount else 0, "bytes": total,
                                  "peak": mount.peak() if mount else 0})

    def list_images(self):
        mount = Mount(self, "wherryfs", [self.options.wherryfs, f"{self.work}/store", f"{self.work}/mnt", "-f"], f"{self.work}/mnt/many")
        self.up.append(mount)
        cpu, before = mount.cpu(), time.time()
        said = self.run("ls", "-l", f"{self.work}/mnt/many/images")
        seconds = time.time() - before
        if len(said.splitlines()) != IMAGES + 2:  # "total", "latest"
            fail(f"{len(said.splitlines())} lines of ls for {IMAGES} images")
        self.note("list", "wherryfs", {"seconds": seconds, "cpu": mount.cpu() - cpu, "peak": mount.peak()})
        self.stop(mount)

    def measure_once(self):
        having = [name for name in READERS if name != "restic" or "restic" in self.options.only]
        for job in ("read-seq", "read-4k"):
            for name in having:
                self.job(job, name)
        for job in ("find", "tar"):
            for name in TREES if os.geteuid() == 0 else TREES[:1]:
                self.walk(job, name)
        self.list_images()
        for job in ("write-fsync", "write-seq"):
            for name in WRITERS:
                self.job(job, name)


def measure(work, options, data, save):
    with FsBench(work, options, data) as bench:
        data.update(size=bench.size, files=bench.files, seed=options.seed, seconds=bench.seconds, repeat=0, rows={})
        bench.prepare()
        for turn in range(options.nbd_repeat):
            say(f"as files: run {turn + 1} of {options.nbd_repeat}")
            bench.measure_once()
            data["repeat"] += 1
            save()  # what is measured stays, however this ends


# ------------------------------------------------------------ the report

class Results:
    def __init__(self, data):
        self.data = data
        self.rows = data["rows"]

    def of(self, job, name, what):
        values = [row[what] for row in self.rows.get(f"{job}/{name}", []) if what in row]
        return statistics.median(values) if values else None


class Aims(AimsTable):
    def __init__(self, results):
        super().__init__()
        self.results = results

    def ratio(self, job, ours, theirs, least, what):
        unit = "rate" if "seq" in job else "iops"
        mine, other = self.results.of(job, ours, unit), self.results.of(job, theirs, unit)
        if mine and other:
            self.add(f"{what}: ≥ {least:g}× {NAMES[theirs]}", f"{mine / other:.2f}×", mine / other >= least)

    def all(self):
        self.ratio("read-seq", "wherryfs", "nbd", 0.8, "Image, sequential read")
        for theirs in BEST_OF:
            self.ratio("read-seq", "wherryfs", theirs, 2, "Image, sequential read")
        for theirs in BEST_OF:
            self.ratio("read-4k", "wherryfs", theirs, 1, "Image, 4K random read")
        self.ratio("write-fsync", "wherryfs-live", "nbd-live", 0.85, "Live disk, 4K write with fsync each")
        for job, what in (("find", "find -printf"), ("tar", "tar")):
            ours, theirs = self.results.of(job, "wherryfs", "seconds"), self.results.of(job, "kernel", "seconds")
            if ours and theirs:
                self.add(f"{what} of {self.results.data['files']} files: ≥ 0.5× {NAMES['kernel']}", f"{theirs / ours:.2f}×", theirs / ours >= 0.5)
        listed = self.results.of("list", "wherryfs", "seconds")
        self.add(f"{IMAGES} images listed with ls -l: < 0.2 s", f"{listed:.3f} s", listed < 0.2)
        return self.lines + [""]


def jobs_table(results):
    lines = ["### Content through FUSE", "", "| | " + " | ".join(f"{title}, {unit}" for _, title, unit in JOBS.values()) +
             " | peak MiB, sequential read |", "|---|" + "--:|" * (len(JOBS) + 1)]
    for name in [name for name in NAMES if any(f"{job}/{name}" in results.rows for job in JOBS)]:
        cells = []
        for job, (_, _, unit) in JOBS.items():
            value = results.of(job, name, "iops" if unit == "IOPS" else "rate")
            cells.append("" if value is None else number(value if unit == "IOPS" else value / MIB, 0))
        peak = results.of("read-seq", name, "peak")
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + f" | {'' if peak is None else number(peak / MIB, 0)} |")
    return lines + [""]


def trees_table(results):
    lines = [f"### {results.data['files']} files of an ext4 in an image", "", "| | find -printf, s | CPU s | tar, s | CPU s |", "|---|--:|--:|--:|--:|"]
    for name in TREES:
        cells = [number(results.of(job, name, what)) if name != "kernel" or what != "cpu" else "" for job in ("find", "tar")
                 for what in ("seconds", "cpu")]
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
    return lines + [""]


def chart(results, job):
    _, title, unit = JOBS[job]
    bars = [(NAMES[name], results.of(job, name, "iops") if unit == "IOPS" else results.of(job, name, "rate") / MIB,
             OURS if name in OURSELVES else THEIRS) for name in NAMES if results.of(job, name, "rate") is not None]
    return bar_chart(title, f"{unit}, more is better", bars)


def write_report(all_data, folder, charts):
    results = Results(all_data["fs"])
    data = results.data
    lines = [f"A disk of {data['size'] / GIB:g} GiB, all of it in use, its source in the page cache; {data['seconds']} s a job, medians of "
             f"{data['repeat']}; seed {data['seed']}. {all_data['processor']}, Linux {all_data['kernel']}.", ""]
    lines += ["### The aims, as files", ""] + Aims(results).all() + jobs_table(results) + trees_table(results)
    for job in ("read-seq", "read-4k", "write-fsync"):
        with open(os.path.join(folder, charts, f"fs-{job}.svg"), "w") as file:
            file.write(chart(results, job))
        lines += [f"![{JOBS[job][1]}]({charts}/fs-{job}.svg)", ""]
    return "\n".join(lines)
