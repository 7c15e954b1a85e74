"""S6 and S8: how long one message takes."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import streamlite
from streamlite import Bus, Consumer
from tests.bench import floors
from tests.bench.case import DISTINCT, PAIRS, Ratio, percentile
from tests.bench.throughput import PARTITIONS, PATIENCE_S

PINGS: Final = 1_500
PAUSE_S: Final = 0.0005
"""Both as F4 has them, so that the processor is as awake for the one as for the other."""
SINGLES: Final = 20_000


class SendToReceive(Ratio):
    """A thread in `poll`, another that sends now and then; the value is the time it was sent."""

    name = "S6"
    what = "send to receive between two threads, p50, against F4 (condition ping)"
    target = 4.0
    unit = "us"
    bus: Bus
    p99 = 0.0

    @contextmanager
    def prepare(self) -> Iterator[None]:
        with self.setting.scratch() as place, streamlite.open(place, sync="never") as self.bus:
            self.bus.topic("t")
            yield

    def floor(self) -> float:
        return floors.f4_condition_ping()

    def measure(self) -> float:
        seen: list[float] = []
        with self.bus.producer() as producer, self.bus.consumer("t", start="latest") as consumer:
            thread = threading.Thread(target=self._receive, args=(consumer, seen))
            thread.start()
            topic = self.bus.topic("t")
            for _ in range(PINGS):
                time.sleep(PAUSE_S)
                producer.send(topic, b"%d" % time.perf_counter_ns())
            thread.join()
        assert len(seen) == PINGS, f"{len(seen)} of {PINGS} received"
        self.p99 = percentile(seen, 0.99)
        return statistics.median(seen)

    def _receive(self, consumer: Consumer, seen: list[float]) -> None:
        while len(seen) < PINGS:
            messages = consumer.poll(PATIENCE_S)
            now = time.perf_counter_ns()
            if not messages:
                return
            seen += [(now - int(message.value)) / 1e3 for message in messages]

    def note(self) -> str:
        return f"p99 of the last round {self.p99:.0f} us"


class SendAndWait(Ratio):
    """Each send waits for its result before the next."""

    name = "S8"
    what = "send().result() one by one, 1,000 keys, 6 partitions, against F6 (write under flock)"
    target = 5.0

    def floor(self) -> float:
        with self.setting.scratch() as place:
            return floors.f6_locked_write(place, SINGLES)

    def measure(self) -> float:
        with self.setting.scratch() as place, streamlite.open(place, sync="never") as bus, bus.producer() as producer:
            topic = bus.topic("t", partitions=PARTITIONS)
            send = producer.send
            begun = time.perf_counter_ns()
            for _ in range(SINGLES // DISTINCT):
                for key, value in PAIRS:
                    send(topic, value, key=key).result()
            return (time.perf_counter_ns() - begun) / SINGLES
