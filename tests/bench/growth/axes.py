"""The axes: each makes a bus larger step by step and measures at every step what a user would notice.

A step's figure is the least of a few tries: what must not grow is the work, and noise only ever adds to it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter_ns
from typing import Any, Final

import streamlite
from streamlite import Bus, Topic, TopicPartition
from tests.bench.case import PAIRS, VALUES, Setting
from tests.bench.child import child
from tests.bench.growth.fit import LINEAR, Curve
from tests.bench.memory import memory_of
from tests.bench.size import fill
from tests.bench.throughput import PATIENCE_S

TRIES: Final = 5
SOME: Final = 20_000
"""Messages to send or to poll at each step."""
SEEKS: Final = 50

READ: Final = """
import streamlite
from streamlite import TopicPartition
before = peak()
with streamlite.open(sys.argv[1], sync="never") as bus, bus.consumer() as consumer:
    consumer.assign([TopicPartition(sys.argv[2], 0)])
    seen = 0
    while seen < int(sys.argv[3]):
        batch = consumer.poll(60)
        assert batch, seen
        seen += len(batch)
    consumer.seek(TopicPartition(sys.argv[2], 0), seen // 2)
    assert consumer.poll(60, max_messages=1)
print(max(peak() - before, 1), seen)
"""
"""Open, read some messages of one partition, seek: what a small reader of a large bus does."""


def least(measure: Callable[[], float], tries: int = TRIES) -> float:
    """The least of a few tries."""
    return min(measure() for _ in range(tries))


def sending(bus: Bus, topic: Topic, pairs: Sequence[tuple[bytes | None, bytes]], count: int, **options: Any) -> float:
    """Nanoseconds a message: send, flush included."""
    with bus.producer() as producer:
        send = producer.send
        begun = perf_counter_ns()
        for _ in range(max(1, count // len(pairs))):
            for key, value in pairs:
                send(topic, value, key=key, **options)
        producer.flush()
        return (perf_counter_ns() - begun) / (max(1, count // len(pairs)) * len(pairs))


def polling(bus: Bus, topic: str, count: int) -> float:
    """Nanoseconds a message: poll through the first `count` of partition 0."""
    with bus.consumer() as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        seen = 0
        begun = perf_counter_ns()
        while seen < count:
            messages = consumer.poll(PATIENCE_S)
            assert messages, f"{seen} of {count}"
            seen += len(messages)
        return (perf_counter_ns() - begun) / seen


def opening(place: str, topic: str) -> float:
    """Milliseconds to open, to read one message and to append one."""
    begun = perf_counter_ns()
    bus = streamlite.open(place, sync="never")
    found = bus.topic(topic)
    next(found.read(partition=0))
    producer = bus.producer()
    producer.send(found, VALUES[0], partition=0).result(PATIENCE_S)
    taken = perf_counter_ns() - begun
    bus.close()
    return taken / 1e6


def seeking(bus: Bus, topic: str, count: int) -> float:
    """Milliseconds to a random offset of partition 0 and to the message there, the median."""
    place, taken, choice = TopicPartition(topic, 0), [], random.Random(count)
    with bus.consumer() as consumer:
        consumer.assign([place])
        for _ in range(SEEKS):
            begun = perf_counter_ns()
            consumer.seek(place, choice.randrange(count))
            assert consumer.poll(PATIENCE_S, max_messages=1)
            taken.append((perf_counter_ns() - begun) / 1e6)
    return statistics.median(taken)


class Axis:
    """One axis: its steps, and curves that `measure` adds a point to at each of them."""

    name: str
    steps: tuple[int, ...]
    label: str
    """What n is, for the plot."""

    def __init__(self, setting: Setting, most: int | None = None) -> None:
        self.setting = setting
        self.steps = tuple(step for step in self.steps if most is None or step <= most)
        self._curves: dict[str, Curve] = {}

    def run(self) -> Iterator[Curve]:
        """All steps; the curves when they are complete."""
        with self.prepare() as measure:
            for step in self.steps:
                measure(step)
                print(f"  {self.label} {step:,}", flush=True)
        yield from self._curves.values()

    @contextmanager
    def prepare(self) -> Iterator[Callable[[int], None]]:
        """What all steps need; gives what measures at one."""
        raise NotImplementedError
        yield

    def note(self, n: int, what: str, unit: str, figure: float, limit: float | None = -1.0) -> None:
        """One point. The limit is that of a logarithm unless another is given."""
        if what not in self._curves:
            self._curves[what] = Curve(self.name, what, unit)
            if limit != -1.0:
                self._curves[what].limit = limit
        self._curves[what].points.append((n, figure))

    def memory(self, n: int, place: str, topic: str, limit: float | None = -1.0, count: int = SOME) -> None:
        """Of a small reader, in a process of its own."""
        self.note(
            n, "memory of a small reader", "MiB", least(lambda: memory_of(READ, place, topic, count)[0], 2), limit
        )


class Messages(Axis):
    """One partition that becomes longer."""

    name = "messages"
    label = "messages in a partition"
    steps = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)

    @contextmanager
    def prepare(self) -> Iterator[Callable[[int], None]]:
        with self.setting.scratch() as place:
            there = 0

            def measure(n: int) -> None:
                nonlocal there
                with streamlite.open(place, sync="never") as bus:
                    fill(bus, n - there)
                    there = n
                    some = min(n, SOME)
                    self.note(n, "poll", "ns", least(lambda: polling(bus, "t", some)))
                    self.note(n, "seek and first message", "ms", least(lambda: seeking(bus, "t", n)))
                    self.note(n, "send", "ns", least(lambda: sending(bus, bus.topic("t"), PAIRS, SOME)))
                    there += TRIES * SOME
                self.note(n, "open, first read and append", "ms", least(lambda: opening(place, "t")))
                there += TRIES
                self.memory(n, place, "t", count=some)

            yield measure


class Partitions(Axis):
    """A topic of ever more partitions."""

    name = "partitions"
    label = "partitions of a topic"
    steps = (1, 10, 100, 1_000, 10_000)

    @contextmanager
    def prepare(self) -> Iterator[Callable[[int], None]]:
        def measure(n: int) -> None:
            with self.setting.scratch() as place:
                with streamlite.open(place, sync="never") as bus:
                    begun = perf_counter_ns()
                    topic = bus.topic("t", partitions=n)
                    self.note(n, "create, a partition", "us", (perf_counter_ns() - begun) / 1e3 / n)
                    plain: list[tuple[None, bytes]] = [(None, value) for value in VALUES]
                    self.note(n, "send to one", "ns", least(lambda: sending(bus, topic, plain, SOME, partition=0)))
                    self.note(n, "poll one", "ns", least(lambda: polling(bus, "t", SOME)))
                    # So much of it is what a batch costs, which grows with the partitions that each millisecond's
                    # messages fall on, until each message is a batch of its own: 1,000 keys, 1,000 partitions at most.
                    spread = least(lambda: sending(bus, topic, PAIRS, SOME), 3)
                    self.note(n, "send to all, 1,000 keys", "ns", spread, None)
                    # Whoever reads n partitions must look each of them up once.
                    self.note(n, "consumer of all, a partition", "us", least(lambda: self._joining(bus) / n, 3))
                self.note(n, "open, first read and append", "ms", least(lambda: opening(place, "t"), 3))
                self.memory(n, place, "t")

        yield measure

    def _joining(self, bus: Bus) -> float:
        begun = perf_counter_ns()
        with bus.consumer("t") as consumer:
            assert consumer.poll(PATIENCE_S)
            return (perf_counter_ns() - begun) / 1e3


class Topics(Axis):
    """A bus of ever more topics, a few messages in each."""

    name = "topics"
    label = "topics of a bus"
    steps = (1, 10, 100, 1_000, 10_000)

    @contextmanager
    def prepare(self) -> Iterator[Callable[[int], None]]:
        with self.setting.scratch() as place:
            there = 0

            def measure(n: int) -> None:
                nonlocal there
                with streamlite.open(place, sync="never") as bus:
                    begun, made = perf_counter_ns(), n - there
                    for number in range(there, n):
                        bus.create_topic(f"t{number}")
                    there = n
                    self.note(n, "create, a topic", "us", (perf_counter_ns() - begun) / 1e3 / made)
                    topic = bus.topic("t0")
                    self.note(n, "send to one", "ns", least(lambda: sending(bus, topic, PAIRS, SOME)))
                    self.note(n, "poll one", "ns", least(lambda: polling(bus, "t0", SOME)))
                self.note(n, "open, first read and append", "ms", least(lambda: opening(place, "t0")))
                self.memory(n, place, "t0")

            yield measure


class Groups(Axis):
    """A topic that ever more groups have read and committed."""

    name = "groups"
    label = "groups of a topic"
    steps = (1, 10, 100, 1_000)

    @contextmanager
    def prepare(self) -> Iterator[Callable[[int], None]]:
        with self.setting.scratch() as place:
            with streamlite.open(place, sync="never") as bus:
                fill(bus, SOME)
            there = 0

            def measure(n: int) -> None:
                nonlocal there
                with streamlite.open(place, sync="never") as bus:
                    for number in range(there, n):
                        self._visit(bus, f"g{number}")
                    there = n
                    self.note(n, "join, first message, commit, leave", "ms", least(lambda: self._visit(bus, "g0")))
                    self.note(n, "commit", "us", least(lambda: self._commits(bus)))
                    self.note(n, "poll in a group", "ns", least(lambda: self._polls(bus)))
                self.note(n, "open, first read and append", "ms", least(lambda: opening(place, "t")))
                self.note(n, "open, join and first message", "ms", least(lambda: self._return(place)))
                self.memory(n, place, "t")

            yield measure

    def _visit(self, bus: Bus, group: str) -> float:
        begun = perf_counter_ns()
        with bus.consumer("t", group=group, auto_commit=False) as consumer:
            assert consumer.poll(PATIENCE_S, max_messages=1)
            consumer.commit({TopicPartition("t", 0): 1})
        return (perf_counter_ns() - begun) / 1e6

    def _commits(self, bus: Bus) -> float:
        with bus.consumer("t", group="g0", auto_commit=False) as consumer:
            begun = perf_counter_ns()
            for _ in range(100):
                consumer.commit({TopicPartition("t", 0): 1})
            return (perf_counter_ns() - begun) / 1e5

    def _polls(self, bus: Bus) -> float:
        with bus.consumer("t", group="g0", auto_commit=False) as consumer:
            consumer.seek_to_beginning()
            seen, begun = 0, perf_counter_ns()
            while seen < SOME:
                seen += len(consumer.poll(PATIENCE_S))
            return (perf_counter_ns() - begun) / seen

    def _return(self, place: str) -> float:
        begun = perf_counter_ns()
        with streamlite.open(place, sync="never") as bus, bus.consumer("t", group="g0", auto_commit=False) as consumer:
            assert consumer.poll(PATIENCE_S, max_messages=1)
            taken = perf_counter_ns() - begun
        return taken / 1e6


class Processes(Axis):
    """Ever more processes on one directory."""

    name = "processes"
    label = "processes"
    steps = (1, 2, 4, 8, 16, 32)

    @contextmanager
    def prepare(self) -> Iterator[Callable[[int], None]]:
        def measure(n: int) -> None:
            with self.setting.scratch() as place:
                with streamlite.open(place, sync="never") as bus:
                    fill(bus, SOME)
                self.note(n, "send from all at once, a message of all", "ns", least(lambda: self._senders(place, n), 3))
                with ExitStack() as stack:
                    # They wait at the log's end, each as the member of a group of its own.
                    others = [stack.enter_context(child("member", place, f"g{number}")) for number in range(n)]
                    for other in others:
                        other.hear()
                    self.note(n, "open, first read and append", "ms", least(lambda: opening(place, "t")))
                    with streamlite.open(place, sync="never") as bus:
                        # With more processes that want to run than cores, theirs is in it, and waking each has a cost.
                        taken = least(lambda: sending(bus, bus.topic("t"), PAIRS, SOME), 3)
                        self.note(n, "send while all read", "ns", taken, None)
                    self.memory(n, place, "t")

        yield measure

    def _senders(self, place: str, n: int) -> float:
        each = max(1, SOME * 4 // n // 1_000) * 1_000
        with ExitStack() as stack:
            others = [stack.enter_context(child("send", place, each)) for _ in range(n)]
            for other in others:
                other.hear()
            for other in others:
                other.go()
            times = [other.hear() for other in others]
        return float(max(end for _, end in times) - min(begun for begun, _ in times)) / (each * n)


class Sizes(Axis):
    """Ever larger messages: proportional to their bytes at most."""

    name = "sizes"
    label = "bytes of a message"
    steps = (10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    total: Final = 64 << 20

    @contextmanager
    def prepare(self) -> Iterator[Callable[[int], None]]:
        def measure(n: int) -> None:
            count = max(5, min(SOME, self.total // n))
            pairs: list[tuple[None, bytes]] = [
                (None, random.Random(n + at).randbytes(n)) for at in range(min(count, 20))
            ]
            with self.setting.scratch() as place:
                with streamlite.open(place, sync="never") as bus:
                    topic = bus.topic("t")
                    self.note(n, "send", "us", least(lambda: sending(bus, topic, pairs, count) / 1e3, 3), LINEAR)
                    self.note(n, "poll", "us", least(lambda: polling(bus, "t", count) / 1e3, 3), LINEAR)
                    self.note(n, "seek and first message", "ms", least(lambda: seeking(bus, "t", count)), LINEAR)
                self.note(n, "open, first read and append", "ms", least(lambda: opening(place, "t")), LINEAR)
                self.memory(n, place, "t", LINEAR, min(count, 2_000))

        yield measure


AXES: Final = {axis.name: axis for axis in (Messages, Partitions, Topics, Groups, Processes, Sizes)}
