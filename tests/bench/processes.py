"""S7, S9, S10 and S14: processes and threads side by side, waiting, and many partitions."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import streamlite
from streamlite import Bus, Consumer, Topic
from tests.bench import floors
from tests.bench.case import DISTINCT, VALUES, Absolute, Ratio, Setting, percentile
from tests.bench.child import child
from tests.bench.latency import PAUSE_S, PINGS
from tests.bench.throughput import PATIENCE_S

THREADS: Final = 8
PROCESSES: Final = 4
IDLE_S: Final = 2.5
POLLS: Final = 1_000


class BetweenProcesses(Ratio):
    """A process in `poll`, another that sends now and then."""

    name = "S7"
    what = "send to receive between two processes, p50, against F5 (pipe ping)"
    target = 8.0
    unit = "us"
    bus: Bus
    place: str
    share = 1
    """Which of the child's figures: the median, or p99."""

    @contextmanager
    def prepare(self) -> Iterator[None]:
        self.figures: list[list[float]] = []
        with self.setting.scratch() as self.place, streamlite.open(self.place, sync="never") as self.bus:
            self.bus.topic("t")
            yield

    def floor(self) -> float:
        return floors.f5_pipe_ping()

    def measure(self) -> float:
        with child("receive", self.place, PINGS) as receiver, self.bus.producer() as producer:
            topic = self.bus.topic("t")
            assert receiver.hear() == "ready"
            for _ in range(PINGS):
                time.sleep(PAUSE_S)
                producer.send(topic, b"%d" % time.perf_counter_ns())
            figures = receiver.hear()
        assert figures[0] == PINGS, f"{figures[0]} of {PINGS} received"
        self.figures.append(figures)
        return float(figures[self.share])

    def note(self) -> str:
        return f"p50 {self._median(1):.0f} us, p99 {self._median(2):.0f} us"

    def _median(self, at: int) -> float:
        return statistics.median(figures[at] for figures in self.figures)


class BetweenProcessesLate(BetweenProcesses):
    """The same, of the slowest in a hundred."""

    name = "S7b"
    what = "send to receive between two processes, p99, against F5 (pipe ping, p50)"
    target = 40.0
    share = 2


class _Together(Ratio):
    """Time a message with many senders to one partition, against that with one: 1.11 is a throughput of 0.9."""

    target = 1.11

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        # Of which each sender gets an equal share, in thousands.
        self.messages = max(1, self.setting.messages // 4 // THREADS // DISTINCT) * THREADS * DISTINCT

    def floor(self) -> float:
        return self.send(1)

    def send(self, senders: int) -> float:
        """Nanoseconds a message when so many share the work."""
        raise NotImplementedError


class Threads(_Together):
    """Threads that share a producer."""

    name = "S9"
    what = f"send to one partition, {THREADS} threads with one producer, against one thread"

    def measure(self) -> float:
        return self.send(THREADS)

    def send(self, senders: int) -> float:
        with self.setting.scratch() as place, streamlite.open(place, sync="never") as bus, bus.producer() as producer:
            topic = bus.topic("t")
            ready = threading.Barrier(senders + 1)

            def work() -> None:
                ready.wait()
                for _ in range(self.messages // senders // DISTINCT):
                    for value in VALUES:
                        producer.send(topic, value)

            threads = [threading.Thread(target=work) for _ in range(senders)]
            for thread in threads:
                thread.start()
            ready.wait()
            begun = time.perf_counter_ns()
            for thread in threads:
                thread.join()
            producer.flush()
            taken = time.perf_counter_ns() - begun
            assert sum(topic.end_offsets().values()) == self.messages
        return taken / self.messages


class Processes(_Together):
    """Processes, each with a producer."""

    name = "S9b"
    what = f"send to one partition, {PROCESSES} processes, against one process"

    def measure(self) -> float:
        return self.send(PROCESSES)

    def send(self, senders: int) -> float:
        with ExitStack() as stack:
            place = stack.enter_context(self.setting.scratch())
            bus = stack.enter_context(streamlite.open(place, sync="never"))
            topic = bus.topic("t")
            children = [stack.enter_context(child("send", place, self.messages // senders)) for _ in range(senders)]
            for one in children:
                assert one.hear() == "ready"
            for one in children:
                one.go()
            times = [one.hear() for one in children]
            assert sum(topic.end_offsets().values()) == self.messages + senders
        return (max(end for _, end in times) - min(begun for begun, _ in times)) / self.messages


class Idle(Absolute):
    """A consumer that is blocked and gets nothing: of 1 and of 1,000 partitions, alone and in a group."""

    name = "S10"
    what = "a blocked consumer's share of one core, the worst of 1 and 1,000 partitions, alone and in a group"
    target = 0.5
    unit = "%"

    @contextmanager
    def prepare(self) -> Iterator[None]:
        self.found: dict[str, list[float]] = {}
        with self.setting.scratch() as place, streamlite.open(place) as self.bus:
            for count in (1, 1_000):
                self.bus.topic(f"t{count}", partitions=count)
            yield

    def measure(self) -> float:
        return max(self._idle(count, group) for count in (1, 1_000) for group in (None, "g"))

    def _idle(self, count: int, group: str | None) -> float:
        with self.bus.consumer(f"t{count}", group=group) as consumer:
            consumer.poll(0)
            thread = threading.Thread(target=consumer.poll, args=(None,))
            thread.start()
            begun, worked = time.perf_counter(), time.process_time()
            time.sleep(IDLE_S)
            share = 100 * (time.process_time() - worked) / (time.perf_counter() - begun)
            consumer.wakeup()
            thread.join()
        self.found.setdefault(f"{count}{' in a group' if group else ''}", []).append(share)
        return share

    def note(self) -> str:
        return "; ".join(f"{name}: {statistics.median(shares):.2f} %" for name, shares in self.found.items())


class ManyIdle(Ratio):
    """Polls that find one message in one partition; all others are idle."""

    name = "S14"
    what = "poll, 1 busy partition among 10,000 idle ones, against among 10"
    target = 1.5
    unit = "us"

    @contextmanager
    def prepare(self) -> Iterator[None]:
        with self.setting.scratch() as place, streamlite.open(place, sync="never") as self.bus:
            self.few = self.bus.topic("few", partitions=10)
            self.many = self.bus.topic("many", partitions=10_000)
            with self.bus.consumer(self.few) as one, self.bus.consumer(self.many) as other:
                one.poll(0)
                other.poll(0)
                self.consumers = {self.few: one, self.many: other}
                yield

    def floor(self) -> float:
        return self._poll(self.few, self.consumers[self.few])

    def measure(self) -> float:
        return self._poll(self.many, self.consumers[self.many])

    def _poll(self, topic: Topic, consumer: Consumer) -> float:
        taken = []
        with self.bus.producer() as producer:
            for _ in range(POLLS):
                producer.send(topic, b"x", partition=topic.partitions // 2).result(PATIENCE_S)
                begun = time.perf_counter_ns()
                (message,) = consumer.poll(PATIENCE_S)
                taken.append((time.perf_counter_ns() - begun) / 1e3)
                assert message.value == b"x"
        self.p99 = percentile(taken, 0.99)
        return statistics.median(taken)

    def note(self) -> str:
        return f"p99 of the last round {self.p99:.0f} us"
