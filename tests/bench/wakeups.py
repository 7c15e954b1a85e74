"""What waking another process costs, by candidate: `python -m tests.bench.wakeups [--rounds N] [--directory D]`.

A child waits; the parent rings every half millisecond and says when, in shared memory, as a writer publishes before
it wakes. The candidates take turns, so that whatever else the machine does falls on all of them. What each would need
beyond that (a place in a directory, an address) is not measured. `streamlite.wakeup` has the FIFO, docs/architecture.md
the reasons.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import platform
import select
import socket
import statistics
import struct
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from tests.bench.case import percentile

PINGS = 1_500
PAUSE_S = 0.0005
IN_MODIFY = 2
SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
FUTEX_WAIT, FUTEX_WAKE = 0, 1


class Candidate(ABC):
    """One way to wake. Made before the fork; `wait` is the child's, `ring` the parent's."""

    name: ClassVar[str]

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @abstractmethod
    def ring(self) -> None:
        """Wake the child."""

    @abstractmethod
    def wait(self) -> None:
        """Sleep until rung."""


class Pipe(Candidate):
    name = "pipe, blocking read"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.out, self.into = os.pipe()

    def ring(self) -> None:
        os.write(self.into, b"\0")

    def wait(self) -> None:
        os.read(self.out, 4096)


class Fifo(Candidate):
    """As `streamlite.files.local.LocalFifo` does it: opened for both, polled, then read."""

    name = "FIFO, poll and read"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        path = directory / "fifo"
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.poll = select.poll()
        self.poll.register(self.fd, select.POLLIN)

    def ring(self) -> None:
        os.write(self.fd, b"\0")

    def wait(self) -> None:
        if self.poll.poll():
            os.read(self.fd, 4096)


class Datagram(Candidate):
    name = "Unix datagram"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.path = str(directory / "socket")
        self.receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.receiver.bind(self.path)
        self.sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def ring(self) -> None:
        self.sender.sendto(b"\0", self.path)

    def wait(self) -> None:
        self.receiver.recv(16)


class Inotify(Candidate):
    """The child watches a file, the parent writes a byte to it: nobody need know who waits."""

    name = "inotify"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        path = directory / "watched"
        path.touch()
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(0)
        assert self.fd >= 0, os.strerror(ctypes.get_errno())
        assert libc.inotify_add_watch(self.fd, str(path).encode(), IN_MODIFY) >= 0, os.strerror(ctypes.get_errno())
        self.file = os.open(path, os.O_WRONLY)

    def ring(self) -> None:
        os.pwrite(self.file, b"\0", 0)

    def wait(self) -> None:
        os.read(self.fd, 4096)


class Futex(Candidate):
    """By `syscall(2)` through ctypes: Python has no other way to it."""

    name = "futex, by ctypes"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        if SYS_FUTEX is None:
            raise OSError(f"the number of futex(2) on {platform.machine()} is not known here")
        self.page = mmap.mmap(-1, mmap.PAGESIZE)
        self.word = ctypes.c_uint32.from_buffer(self.page)
        self.syscall = ctypes.CDLL(None).syscall
        self.address = ctypes.byref(self.word)
        self.seen = 0

    def ring(self) -> None:
        self.word.value += 1
        self.syscall(SYS_FUTEX, self.address, FUTEX_WAKE, 1, None, None, 0)

    def wait(self) -> None:
        while self.word.value == self.seen:
            self.syscall(SYS_FUTEX, self.address, FUTEX_WAIT, ctypes.c_uint32(self.seen), None, None, 0)
        self.seen = self.word.value


CANDIDATES: list[type[Candidate]] = [Pipe, Fifo, Datagram, Inotify, Futex]


def ping(candidate: Candidate) -> tuple[float, float, float]:
    """Microseconds from before the ring to the child's waking, p50 and p99; and the parent's ring alone, p50."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    sent = memoryview(shared).cast("q")
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        seen = []
        while sent[1] < PINGS:  # two rings may be taken as one
            candidate.wait()
            seen.append((time.perf_counter_ns() - sent[0]) / 1e3)
        os.write(into, struct.pack("dd", statistics.median(seen), percentile(seen, 0.99)))
        os._exit(0)
    rings = []
    for number in range(PINGS):
        time.sleep(PAUSE_S)
        sent[1] = number + 1
        begun = sent[0] = time.perf_counter_ns()
        candidate.ring()
        rings.append((time.perf_counter_ns() - begun) / 1e3)
    p50, p99 = struct.unpack("dd", os.read(out, 16))
    os.waitpid(child, 0)
    os.close(out)
    os.close(into)
    return p50, p99, statistics.median(rings)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    asked = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {kind.name: [] for kind in CANDIDATES}
    for _ in range(asked.rounds):
        for kind in CANDIDATES:
            with tempfile.TemporaryDirectory(dir=asked.directory) as directory:
                found[kind.name].append(ping(kind(Path(directory))))
    print(f"CPython {sys.version.split()[0]}, {platform.platform()}; medians of {asked.rounds} rounds of {PINGS}")
    for name, figures in found.items():
        p50, p99, ring = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:<22} p50 {p50:6.1f} us   p99 {p99:6.1f} us   the ring itself {ring:5.1f} us")


if __name__ == "__main__":
    main()
