"""S11 and S13: what must not grow with the log: opening it, and finding a place in it."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Final

import streamlite
from streamlite import Bus, Consumer, TopicPartition
from tests.bench.case import DISTINCT, VALUES, Absolute, percentile
from tests.bench.throughput import PATIENCE_S

TP: Final = TopicPartition("t", 0)
START_MS: Final = 1_700_000_000_000
VALUE_BYTES: Final = len(VALUES[0])


def fill(bus: Bus, messages: int, piece: int = 10_000, name: str = "t") -> None:
    """Send so many to a topic, one a millisecond of event time, in calls of `piece` messages, one after the other."""
    topic = bus.topic(name)
    values = VALUES * (piece // DISTINCT + 1)
    with bus.producer() as producer:
        for begin in range(0, messages, piece):
            count = min(piece, messages - begin)
            stamps = range(START_MS + begin, START_MS + begin + count)
            producer.send_many(topic, values[:count], timestamps=list(stamps)).result(PATIENCE_S)


class Open(Absolute):
    """Open, the first message read, the first one appended; then the same with a hundredth of the messages."""

    name = "S11"
    what = "open 10 M messages in 1,000 segments, first read and first append included"
    target = 50.0
    unit = "ms"
    segments: Final = 1_000
    batches: Final = 10
    """In a segment; of 1,000 messages each at full size."""

    @contextmanager
    def prepare(self) -> Iterator[None]:
        messages = self.setting.scaled(10_000_000)
        with ExitStack() as stack:
            self.place, self.count = self._build(stack.enter_context(self.setting.scratch()), messages)
            self.small, _ = self._build(stack.enter_context(self.setting.scratch()), messages // 100)
            self.less: list[float] = []
            yield

    def _build(self, place: str, messages: int) -> tuple[str, int]:
        piece = messages // self.segments // self.batches
        with streamlite.open(place, sync="never") as bus:
            bus.topic("probe")
            fill(bus, piece, piece, "probe")
            batch_bytes = sum(path.stat().st_size for path in _logs(place, "probe"))
            bus.delete_topic("probe")
            # Half a batch more, so that it is the same whether a roll comes before or after what exceeds it.
            bus.topic("t", segment_bytes=round((self.batches + 0.5) * batch_bytes))
            fill(bus, messages, piece, "t")
        found = len(_logs(place, "t"))
        assert 0.85 * self.segments <= found <= 1.15 * self.segments, f"{found} segments"
        return place, messages

    def measure(self) -> float:
        self.less.append(self._open(self.small))
        return self._open(self.place)

    def _open(self, place: str) -> float:
        begun = perf_counter_ns()
        bus = streamlite.open(place)
        topic = bus.topic("t")
        message = next(topic.read())
        producer = bus.producer()
        producer.send(topic, VALUES[0]).result(PATIENCE_S)
        taken = perf_counter_ns() - begun
        assert message.offset == 0
        bus.close()
        return taken / 1e6

    def note(self) -> str:
        return f"{self.count:,} messages; with a hundredth of them {statistics.median(self.less):.1f} ms"


def _logs(place: str, topic: str) -> list[Path]:
    return [path for path in Path(place).rglob("*.log") if topic in path.relative_to(place).parts]


class Seek(Absolute):
    """To random places of a partition, by offset and by timestamp in turn, each with the message there."""

    name = "S13"
    what = "seek by offset or by timestamp in a 1 GiB partition, first message included"
    target = 2.0
    unit = "ms"
    places: Final = 200
    seed: Final = 13

    @contextmanager
    def prepare(self) -> Iterator[None]:
        self.random = random.Random(self.seed)
        self.times: dict[str, list[float]] = {"offset": [], "timestamp": [], "small": []}
        messages = self.setting.scaled((1 << 30) // VALUE_BYTES)
        with ExitStack() as stack:
            self.bus, self.count = self._build(stack, messages)
            self.small, self.few = self._build(stack, messages // 16)
            yield

    def _build(self, stack: ExitStack, messages: int) -> tuple[Bus, int]:
        place = stack.enter_context(self.setting.scratch())
        bus = stack.enter_context(streamlite.open(place, sync="never"))
        fill(bus, messages)
        return bus, messages

    def measure(self) -> float:
        with self.small.consumer() as consumer:
            consumer.assign([TP])
            self.times["small"] += self._seeks(consumer, self.few, by_time=False)
        with self.bus.consumer() as consumer:
            consumer.assign([TP])
            by_offset = self._seeks(consumer, self.count, by_time=False)
            by_time = self._seeks(consumer, self.count, by_time=True)
        self.times["offset"] += by_offset
        self.times["timestamp"] += by_time
        return max(statistics.median(by_offset), statistics.median(by_time))

    def _seeks(self, consumer: Consumer, count: int, *, by_time: bool) -> list[float]:
        taken = []
        for _ in range(self.places):
            wanted = self.random.randrange(count)
            begun = perf_counter_ns()
            offset: int | None = wanted
            if by_time:
                offset = consumer.offsets_for_times({TP: START_MS + wanted})[TP]
                assert offset is not None
            consumer.seek(TP, offset or 0)
            (message,) = consumer.poll(PATIENCE_S, max_messages=1)
            taken.append((perf_counter_ns() - begun) / 1e6)
            assert (message.offset, message.timestamp) == (wanted, START_MS + wanted)
        return taken

    def note(self) -> str:
        said = [
            f"{name} p50 {statistics.median(times):.2f} p99 {percentile(times, 0.99):.2f}"
            for name, times in (("by offset", self.times["offset"]), ("by timestamp", self.times["timestamp"]))
        ]
        return (
            f"{'; '.join(said)}; a sixteenth of the size, by offset: p50 {statistics.median(self.times['small']):.2f}"
        )
