"""Groups: how soon another member reads on after one was killed, and how soon a new group has its first message."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

import streamlite
from streamlite import Bus
from tests.bench.case import VALUES, Absolute, percentile
from tests.bench.child import child
from tests.bench.throughput import PATIENCE_S

PARTITIONS: Final = 4
KILLS: Final = 5
"""A round."""
JOINS: Final = 20


class _Groups(Absolute):
    """A topic with something in each partition."""

    unit = "ms"
    bus: Bus

    @contextmanager
    def prepare(self) -> Iterator[None]:
        self.names = (f"g{number}" for number in count())
        self.taken: list[float] = []
        with self.setting.scratch() as self.place, streamlite.open(self.place, sync="never") as self.bus:
            topic = self.bus.topic("t", partitions=PARTITIONS)
            with self.bus.producer() as producer:
                for partition in range(PARTITIONS):
                    producer.send_many(topic, VALUES, partition=partition)
            yield

    def note(self) -> str:
        p50, p99 = statistics.median(self.taken), percentile(self.taken, 0.99)
        return f"of {len(self.taken)}: p50 {p50:.1f} ms, p99 {p99:.1f} ms"


class Takeover(_Groups):
    """From SIGKILL of one of two members to a message of what was its, in the other's `poll`."""

    name = "TAKE"
    what = "a killed member's partitions are read by another"
    target = 200.0

    def measure(self) -> float:
        taken = [self._kill(next(self.names)) for _ in range(KILLS)]
        self.taken += taken
        return statistics.median(taken)

    def _kill(self, group: str) -> float:
        with (
            self.bus.consumer("t", group=group, start="latest") as consumer,
            self.bus.producer() as producer,
            child("member", self.place, group) as other,
        ):
            consumer.poll(0)
            while len(consumer.assignment()) == PARTITIONS:
                consumer.poll(0.01)  # gives up its half
            assert other.hear() == "ready"
            mine = consumer.assignment()
            theirs = set(range(PARTITIONS)) - {tp.partition for tp in mine}
            other.kill()
            begun = time.perf_counter_ns()
            for partition in theirs:
                producer.send("t", b"new", partition=partition)
            while not any(message.partition in theirs for message in consumer.poll(PATIENCE_S)):
                assert time.perf_counter_ns() - begun < PATIENCE_S * 1e9, "nobody took over"
            return (time.perf_counter_ns() - begun) / 1e6


class Join(_Groups):
    """From `bus.consumer()` in a group that nobody knows to its first message."""

    name = "JOIN"
    what = "the first message after consumer() in a new group"
    target = 50.0

    def measure(self) -> float:
        taken = []
        for _ in range(JOINS):
            begun = time.perf_counter_ns()
            with self.bus.consumer("t", group=next(self.names)) as consumer:
                assert consumer.poll(PATIENCE_S, max_messages=1)
                taken.append((time.perf_counter_ns() - begun) / 1e6)
        self.taken += taken
        return statistics.median(taken)
