"""S1 to S5 and columns: what a message costs, on disk, without waiting for the disk (`sync="never"`)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from time import perf_counter_ns
from typing import Final

import streamlite
from streamlite import Bus
from tests.bench import floors
from tests.bench.case import DISTINCT, PAIRS, VALUES, Ratio

PARTITIONS: Final = 6
PATIENCE_S: Final = 10.0


class _Produce(Ratio):
    """A fresh directory each round; the bus is closed after the clock has stopped."""

    def measure(self) -> float:
        messages = self.setting.messages
        with self.setting.scratch() as place, streamlite.open(place, sync="never") as bus:
            bus.topic("t", partitions=PARTITIONS)
            taken = self.produce(bus, messages)
            ends = bus.topic("t").end_offsets()
            assert sum(ends.values()) == messages, ends
        return taken / messages

    def produce(self, bus: Bus, messages: int) -> int:
        """Send them all and flush; the nanoseconds it took."""
        raise NotImplementedError


class Send(_Produce):
    """`send` with a key."""

    name = "S1"
    what = "send, 1,000 keys, 6 partitions, flush included, against F1 (call and append)"
    target = 4.5

    def floor(self) -> float:
        return floors.f1_call_and_append()

    def produce(self, bus: Bus, messages: int) -> int:
        topic = bus.topic("t")
        with bus.producer() as producer:
            send = producer.send
            begun = perf_counter_ns()
            for _ in range(messages // DISTINCT):
                for key, value in PAIRS:
                    send(topic, value, key=key)
            producer.flush()
            return perf_counter_ns() - begun


class SendKeyless(Send):
    """`send` without a key."""

    name = "S2"
    what = "send, no key, against F1 (call and append)"
    target = 4.0

    def produce(self, bus: Bus, messages: int) -> int:
        topic = bus.topic("t")
        with bus.producer() as producer:
            send = producer.send
            begun = perf_counter_ns()
            for _ in range(messages // DISTINCT):
                for _, value in PAIRS:
                    send(topic, value)
            producer.flush()
            return perf_counter_ns() - begun


class SendMany(_Produce):
    """`send_many`, one call for all."""

    name = "S3"
    what = "send_many, one call, no keys, against F2 (encode and write)"
    target = 2.5

    def floor(self) -> float:
        with self.setting.scratch() as place:
            return floors.f2_encode_and_write(place)

    def produce(self, bus: Bus, messages: int) -> int:
        topic = bus.topic("t")
        values = VALUES * (messages // DISTINCT)
        with bus.producer() as producer:
            begun = perf_counter_ns()
            producer.send_many(topic, values)
            producer.flush()
            return perf_counter_ns() - begun


class _Consume(Ratio):
    """One log for all rounds, written as S1 writes; a new consumer each round."""

    bus: Bus
    round = 0

    @contextmanager
    def prepare(self) -> Iterator[None]:
        with self.setting.scratch() as place, streamlite.open(place, sync="never") as self.bus:
            topic = self.bus.topic("t", partitions=PARTITIONS)
            with self.bus.producer() as producer:
                for _ in range(self.setting.messages // DISTINCT):
                    for key, value in PAIRS:
                        producer.send(topic, value, key=key)
            yield

    def floor(self) -> float:
        with self.setting.scratch() as place:
            return floors.f3_read_and_decode(place)


class Poll(_Consume):
    """`poll` with its defaults."""

    name = "S4"
    what = "poll, against F3 (read and decode)"
    target = 1.6

    def measure(self) -> float:
        messages = self.setting.messages
        with self.bus.consumer("t") as consumer:
            poll = consumer.poll
            seen = 0
            begun = perf_counter_ns()
            while seen < messages:
                batch = poll(PATIENCE_S)
                assert batch, f"{seen} of {messages} read"
                seen += len(batch)
            taken = perf_counter_ns() - begun
        assert seen == messages
        return taken / messages


class Iterate(_Consume):
    """`for message in consumer`, as a group that commits."""

    name = "S5"
    what = "for message in consumer, group and auto-commit, against F3 (read and decode)"
    target = 2.4

    def measure(self) -> float:
        messages = self.setting.messages
        self.round += 1
        with self.bus.consumer("t", group=f"g{self.round}") as consumer:
            begun = perf_counter_ns()
            for _ in islice(consumer, messages):
                pass
            taken = perf_counter_ns() - begun
            assert not any(consumer.lag().values())
        return taken / messages


class PollColumns(_Consume):
    """`poll_columns` with its defaults; nothing is taken apart but what is asked for, which the note has."""

    name = "COLUMNS"
    what = "poll_columns, against F3 (read and decode)"
    target = 0.8

    @contextmanager
    def prepare(self) -> Iterator[None]:
        self.more: dict[str, list[float]] = {"values": [], "timestamps keys values headers": []}
        with super().prepare():
            yield

    def measure(self) -> float:
        for names, found in self.more.items():
            found.append(self._read(names.split()))
        return self._read([])

    def _read(self, names: list[str]) -> float:
        messages = self.setting.messages
        with self.bus.consumer("t") as consumer:
            seen = 0
            begun = perf_counter_ns()
            while seen < messages:
                stretches = consumer.poll_columns(PATIENCE_S)
                assert stretches, f"{seen} of {messages} read"
                for columns in stretches:
                    seen += len(columns.offsets)
                    for name in names:
                        getattr(columns, name)
            taken = perf_counter_ns() - begun
        assert seen == messages
        return taken / messages

    def note(self) -> str:
        values, everything = (statistics.median(found) for found in self.more.values())
        return f"with the values asked for {values:.0f} ns, with all columns {everything:.0f} ns"


class CopyColumns(_Consume):
    """Columns of a topic into another, to the same partitions: a whole batch goes on as it was read."""

    name = "COPY"
    what = "poll_columns into send_many, partition by partition, flush included, against F3 (read and decode)"
    target = 4.0

    def measure(self) -> float:
        messages = self.setting.messages
        topic = self.bus.topic("copy", partitions=PARTITIONS)
        with self.bus.consumer("t") as consumer, self.bus.producer() as producer:
            seen = 0
            begun = perf_counter_ns()
            while seen < messages:
                stretches = consumer.poll_columns(PATIENCE_S, 100_000)
                assert stretches, f"{seen} of {messages} read"
                for columns in stretches:
                    seen += len(columns.offsets)
                    producer.send_many(topic, columns, partition=columns.partition)
            producer.flush()
            taken = perf_counter_ns() - begun
        assert sum(topic.end_offsets().values()) == messages
        self.bus.delete_topic("copy")
        return taken / messages
