"""The other process of a measurement: `python -m tests.bench.child ROLE PLACE ...`, driven over its pipes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import streamlite
from tests.bench.case import DISTINCT, VALUES, percentile
from tests.bench.throughput import PATIENCE_S

ROOT = Path(__file__).parents[2]


class Child:
    """One such process, seen from the one that measures."""

    def __init__(self, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.child", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def hear(self) -> Any:
        """What it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the other process ended"
        return json.loads(line)

    def go(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """End it, now."""
        self._process.kill()

    def end(self) -> None:
        """Wait until it is gone."""
        with self._process:
            self._process.kill()


@contextmanager
def child(*arguments: object) -> Iterator[Child]:
    """One for as long as the block runs."""
    one = Child(*arguments)
    try:
        yield one
    finally:
        one.end()


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def receive(place: str, count: str) -> None:
    """Wait for messages whose value is the time they were sent; say how long they took."""
    seen: list[float] = []
    with streamlite.open(place, sync="never") as bus, bus.consumer("t", start="latest") as consumer:
        say("ready")
        while len(seen) < int(count):
            messages = consumer.poll(PATIENCE_S)
            now = time.perf_counter_ns()
            if not messages:
                break
            seen += [(now - int(message.value)) / 1e3 for message in messages]
        say([len(seen), statistics.median(seen), percentile(seen, 0.99)])


def send(place: str, count: str) -> None:
    """Send so many to one partition when told to; say when it began and ended."""
    with streamlite.open(place, sync="never") as bus, bus.producer() as producer:
        topic = bus.topic("t")
        producer.send(topic, b"").result(PATIENCE_S)
        say("ready")
        sys.stdin.readline()
        begun = time.perf_counter_ns()
        for _ in range(int(count) // DISTINCT):
            for value in VALUES:
                producer.send(topic, value)
        producer.flush()
        say([begun, time.perf_counter_ns()])


def member(place: str, group: str) -> None:
    """Be a member until killed; say when it has partitions."""
    with streamlite.open(place, sync="never") as bus, bus.consumer("t", group=group) as consumer:
        consumer.wait_assigned(PATIENCE_S)
        say("ready")
        while True:
            consumer.poll(PATIENCE_S)


ROLES: dict[str, Callable[..., None]] = {"receive": receive, "send": send, "member": member}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
