"""S12: memory, each time in a process of its own, above what it takes to import streamlite."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import streamlite
from tests.bench.case import VALUES, Absolute
from tests.bench.size import fill

MIB: Final = 1 << 20
BUFFER_BYTES: Final = 64 * MIB
"""The producer's default."""
OVERHEAD_BYTES: Final = 250
"""What the buffer counts for a message beside its payload."""
FULL: Final = BUFFER_BYTES // (len(VALUES[0]) + OVERHEAD_BYTES)
LIMIT_S: Final = 60.0
"""Sending to the slow disk ends after this, whatever was sent."""

PEAK: Final = """
import os, resource, sys, time

def peak():
    # Not ru_maxrss where it can be helped: it begins with the size of the process that started this one.
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
"""

CONSUME: Final = """
import streamlite
before = peak()
with streamlite.open(sys.argv[1]) as bus, bus.consumer("t", group=f"g{os.getpid()}") as consumer:
    seen = 0
    while seen < int(sys.argv[2]):
        batch = consumer.poll(60)
        assert batch, seen
        seen += len(batch)
print(peak() - before, seen)
"""

PRODUCE: Final = """
def slow(name):
    write = getattr(os, name)
    def late(*arguments):
        time.sleep(0.05)
        return write(*arguments)
    setattr(os, name, late)

for name in sys.argv[6].split():
    slow(name)

import streamlite
keys = [b"k%d" % number for number in range(1000)]
with streamlite.open(sys.argv[1], sync=sys.argv[5]) as bus:
    topic = bus.topic("t", partitions=6)
    with bus.producer(buffer_bytes=int(sys.argv[3])) as producer:
        send = producer.send
        before = peak()
        until = time.monotonic() + float(sys.argv[4])
        for number in range(int(sys.argv[2])):
            # Bytes of its own, as values that come from anywhere are: 1,000 shared ones would take no room.
            send(topic, os.urandom(96) + number.to_bytes(4, "little"), key=keys[number % 1000])
            if time.monotonic() > until:
                break
    assert sum(topic.end_offsets().values()) == number + 1
print(peak() - before, number + 1)
"""


def memory_of(program: str, *arguments: object) -> tuple[float, int]:
    """Memory in MiB and the count of messages that a process prints that runs `program`."""
    root = Path(streamlite.__file__).parents[1]
    command = [sys.executable, "-c", PEAK + program, *map(str, arguments)]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    peak, count = map(int, done.stdout.split())
    return peak / MIB, count


class ConsumerMemory(Absolute):
    """A consumer that polls through a log of 2 GiB."""

    name = "S12"
    what = "memory above import of a consumer that reads a 2 GiB log"
    target = 64.0
    unit = "MiB"

    @contextmanager
    def prepare(self) -> Iterator[None]:
        self.messages = self.setting.scaled((2 << 30) // len(VALUES[0]))
        with self.setting.scratch() as self.place:
            with streamlite.open(self.place, sync="never") as bus:
                fill(bus, self.messages)
            yield

    def measure(self) -> float:
        return memory_of(CONSUME, self.place, self.messages)[0]


class ProducerMemory(Absolute):
    """A producer that is given four times what its buffer holds, for a disk that takes 50 ms more for each sync."""

    name = "S12b"
    what = "memory above import of a producer whose disk is slow to sync, sync=always, buffer_bytes 64 MiB"
    target = BUFFER_BYTES / MIB + 16
    unit = "MiB"
    sync = "always"
    slow = "fdatasync fsync"

    def measure(self) -> float:
        # A tenth of the size still has to fill the buffer, so this one does not scale.
        with self.setting.scratch() as place:
            memory, self.sent = memory_of(PRODUCE, place, 4 * FULL, BUFFER_BYTES, LIMIT_S, self.sync, self.slow)
        return memory if self.sent >= FULL else math.inf  # a buffer that was never full has shown nothing

    def note(self) -> str:
        if self.sent < FULL:
            return f"{self.sent:,} messages in {LIMIT_S:.0f} s: the buffer, good for {FULL:,}, was never full"
        return f"{self.sent:,} messages sent, the buffer is good for {FULL:,}"


class ProducerMemorySlowWrites(ProducerMemory):
    """The same for a disk that takes 50 ms more for each write."""

    name = "S12c"
    what = "memory above import of a producer whose disk is slow to write, sync=never, buffer_bytes 64 MiB"
    sync = "never"
    slow = "write writev pwrite pwritev"
