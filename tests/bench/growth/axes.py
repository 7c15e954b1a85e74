"""The axes: each has a bus for each of its steps, one larger than the other, and measures what a user notices.

The steps are taken in turn, some rounds long, so that what else the machine does meets them all. A step's figure is the
least of all rounds: what must not grow is the work, and noise only ever adds to it.
"""

from __future__ import annotations

import gc
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
from tests.bench.growth.fit import FLAT, LINEAR, Curve
from tests.bench.memory import memory_of
from tests.bench.size import fill
from tests.bench.throughput import PATIENCE_S

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
    """One axis: its steps, and a curve for each measure."""

    name: str
    steps: tuple[int, ...]
    label: str
    """What n is, for the plot."""

    def __init__(self, setting: Setting, most: int | None = None) -> None:
        self.setting = setting
        self.steps = tuple(step for step in self.steps if most is None or step <= most)
        self._least: dict[tuple[str, int], float] = {}
        self._curves: dict[str, Curve] = {}

    def run(self) -> list[Curve]:
        """All steps, in turn."""
        with ExitStack() as stack:
            measures = [(step, stack.enter_context(self.at(step))) for step in self.steps]
            for number in range(self.setting.rounds):
                for step, measure in measures:
                    gc.collect()
                    measure()
                    print(f"  round {number + 1}: {step:,}", flush=True)
        for (what, n), figure in self._least.items():
            self._curves[what].points.append((n, figure))
        return list(self._curves.values())

    @contextmanager
    def at(self, n: int) -> Iterator[Callable[[], None]]:
        """Make what a step needs; gives what measures there once."""
        raise NotImplementedError
        yield

    def note(self, n: int, what: str, unit: str, figure: float, limit: float | None = FLAT) -> None:
        """What was measured once at one step."""
        self._curves.setdefault(what, Curve(self.name, what, unit, limit))
        self._least[what, n] = min(figure, self._least.get((what, n), figure))

    def memory(self, n: int, place: str, topic: str, count: int = SOME, limit: float | None = FLAT) -> None:
        """Of a small reader, in a process of its own."""
        self.note(n, "memory of a small reader", "MiB", memory_of(READ, place, topic, count)[0], limit)


class Messages(Axis):
    """One partition that is longer and longer."""

    name = "messages"
    label = "messages in a partition"
    steps = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)

    @contextmanager
    def at(self, n: int) -> Iterator[Callable[[], None]]:
        with self.setting.scratch() as place:
            with streamlite.open(place, sync="never") as bus:
                fill(bus, n)
                bus.sync()  # or the disk is still busy with it when the clock runs

            def measure() -> None:
                some = min(n, SOME)
                with streamlite.open(place, sync="never") as bus:
                    self.note(n, "poll", "ns", polling(bus, "t", some))
                    self.note(n, "seek and first message", "ms", seeking(bus, "t", n))
                    self.note(n, "send", "ns", sending(bus, bus.topic("t"), PAIRS, SOME))
                self.note(n, "open, first read and append", "ms", opening(place, "t"))
                self.memory(n, place, "t", some)

            yield measure


class Partitions(Axis):
    """A topic of ever more partitions. Opening sets a few words for each, a topic has an object for each."""

    name = "partitions"
    label = "partitions of a topic"
    steps = (1, 10, 100, 1_000, 10_000)
    plain: Final[list[tuple[None, bytes]]] = [(None, value) for value in VALUES]

    @contextmanager
    def at(self, n: int) -> Iterator[Callable[[], None]]:
        with self.setting.scratch() as place:
            with streamlite.open(place, sync="never") as bus:
                begun = perf_counter_ns()
                topic = bus.topic("t", partitions=n)
                self.note(n, "create, a partition", "us", (perf_counter_ns() - begun) / 1e3 / n)
                sending(bus, topic, self.plain, SOME, partition=0)

            def measure() -> None:
                self.note(n, "open, first read and append", "ms", opening(place, "t"), LINEAR)
                with streamlite.open(place, sync="never") as bus:
                    topic = bus.topic("t")
                    self.note(n, "send to one", "ns", sending(bus, topic, self.plain, SOME, partition=0))
                    self.note(n, "poll one", "ns", polling(bus, "t", SOME))
                    # What a batch costs is in it, and more of them the more partitions a millisecond's messages fall
                    # on, until each message is a batch of its own.
                    self.note(n, "send to all, 1,000 keys", "ns", sending(bus, topic, PAIRS, SOME), None)
                    # Whoever reads n partitions must look each of them up once.
                    self.note(n, "consumer of all, a partition", "us", self._joining(bus) / n)
                self.memory(n, place, "t", limit=LINEAR)

            yield measure

    def _joining(self, bus: Bus) -> float:
        begun = perf_counter_ns()
        with bus.consumer("t") as consumer:
            assert consumer.poll(PATIENCE_S)
            return (perf_counter_ns() - begun) / 1e3


class Topics(Axis):
    """A bus of ever more topics, messages in one of them. Opening sets a few words for each of them."""

    name = "topics"
    label = "topics of a bus"
    steps = (1, 10, 100, 1_000, 10_000)

    @contextmanager
    def at(self, n: int) -> Iterator[Callable[[], None]]:
        with self.setting.scratch() as place:
            with streamlite.open(place, sync="never") as bus:
                begun = perf_counter_ns()
                for number in range(n):
                    bus.create_topic(f"t{number}")
                self.note(n, "create, a topic", "us", (perf_counter_ns() - begun) / 1e3 / n)
                sending(bus, bus.topic("t0"), PAIRS, SOME)

            def measure() -> None:
                self.note(n, "open, first read and append", "ms", opening(place, "t0"), LINEAR)
                with streamlite.open(place, sync="never") as bus:
                    topic = bus.topic("t0")
                    self.note(n, "send to one", "ns", sending(bus, topic, PAIRS, SOME))
                    self.note(n, "poll one", "ns", polling(bus, "t0", SOME))
                self.memory(n, place, "t0", limit=LINEAR)

            yield measure


class Groups(Axis):
    """A topic that ever more groups have read and committed."""

    name = "groups"
    label = "groups of a topic"
    steps = (1, 10, 100, 1_000)

    @contextmanager
    def at(self, n: int) -> Iterator[Callable[[], None]]:
        with self.setting.scratch() as place:
            with streamlite.open(place, sync="never") as bus:
                fill(bus, SOME)
                for number in range(n):
                    self._visit(bus, f"g{number}")

            def measure() -> None:
                self.note(n, "open, first read and append", "ms", opening(place, "t"))
                self.note(n, "open, join and first message", "ms", self._return(place))
                with streamlite.open(place, sync="never") as bus:
                    self.note(n, "join, message, commit, leave", "ms", self._visit(bus, "g0"))
                    self.note(n, "commit", "us", self._commits(bus))
                    self.note(n, "poll in a group", "ns", self._polls(bus))
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
    steps = (1, 2, 4, 8, 16)

    @contextmanager
    def at(self, n: int) -> Iterator[Callable[[], None]]:
        with self.setting.scratch() as place:
            with streamlite.open(place, sync="never") as bus:
                fill(bus, SOME)

            def measure() -> None:
                self.note(n, "send from all, a message of all", "ns", self._senders(place, n))
                with ExitStack() as stack:
                    # They wait at the log's end, each as the member of a group of its own.
                    others = [stack.enter_context(child("member", place, f"g{number}")) for number in range(n)]
                    for other in others:
                        other.hear()
                    self.note(n, "open, first read and append", "ms", opening(place, "t"))
                    with streamlite.open(place, sync="never") as bus:
                        # Each of them reads what is sent, and there are two cores: shown, and nothing asked of it.
                        self.note(n, "send while all read", "ns", sending(bus, bus.topic("t"), PAIRS, SOME), None)
                    self.memory(n, place, "t")

            yield measure

    def _senders(self, place: str, n: int) -> float:
        each = max(1, SOME * 10 // n // 1_000) * 1_000
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
    def at(self, n: int) -> Iterator[Callable[[], None]]:
        draw = random.Random(n)
        pairs: list[tuple[None, bytes]] = [(None, draw.randbytes(n)) for _ in range(max(5, min(20, self.total // n)))]
        count = max(1, min(SOME, self.total // n) // len(pairs)) * len(pairs)
        with self.setting.scratch() as place:
            with streamlite.open(place, sync="never") as bus:
                sending(bus, bus.topic("t"), pairs, count)

            def measure() -> None:
                with streamlite.open(place, sync="never") as bus:
                    taken = sending(bus, bus.topic("more", retention_bytes=self.total), pairs, count)
                    self.note(n, "send", "us", taken / 1e3, LINEAR)
                    self.note(n, "poll", "us", polling(bus, "t", count) / 1e3, LINEAR)
                    self.note(n, "seek and first message", "ms", seeking(bus, "t", count), LINEAR)
                self.note(n, "open, first read and append", "ms", opening(place, "t"), LINEAR)
                self.memory(n, place, "t", min(count, 2_000), LINEAR)

            yield measure


AXES: Final = {axis.name: axis for axis in (Messages, Partitions, Topics, Groups, Processes, Sizes)}
