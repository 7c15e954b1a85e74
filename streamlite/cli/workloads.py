"""What `streamlite bench` does with a bus: each workload once, timed, without a line of output.

Throughput workloads go as fast as they can. The latency of a send is from the call to its result, that of a poll how
long the call took. End to end, messages are sent at a stated rate, each at its own intended time, and their latency
counts from that time whether or not the sender was late: a stall delays all messages that should have gone meanwhile,
and all of them show it (a sender that waits for one message before it sends the next would show one). Values are 1,000
distinct random ones, so that nothing is saved by saying the same once.
"""

from __future__ import annotations

import random
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from time import monotonic_ns, sleep
from typing import Any, Final

import msgspec

from streamlite import Bus, Consumer, Delivery, Topic, TopicPartition
from streamlite.errors import StreamliteError
from streamlite.errors import TimeoutError as LateError

__all__ = ["PATIENCE_S", "STAMP_BYTES", "Listener", "Load", "Taken", "end_to_end", "ping", "receive", "run"]

DISTINCT: Final = 1_000
DISTINCT_BYTES: Final = 64 << 20
"""Of large values there are fewer distinct ones: to hold a thousand of 10 MB would take the machine's memory."""
PATIENCE_S: Final = 30.0
"""Without a message for so long, a workload fails: something is wrong."""
STAMP_BYTES: Final = 8
"""A value begins with the time it is to be sent at, where its latency is measured at the other end."""
SAMPLES: Final = 5_000
"""Sends of a throughput workload whose latency is taken, at most: to take every one would be what is measured."""
BULK: Final = 1_000
"""Messages in one `send_many`."""
PING_PAUSE_S: Final = 0.001


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, and where; travels to other processes as JSON."""

    directory: str
    topic: str
    messages: int
    size: int = 100
    keys: int = 1_000
    """Distinct ones; 0 for none."""
    sync: str = "interval"
    share: tuple[int, int] = (0, 1)
    """Which of how many processes this is."""

    @property
    def mine(self) -> int:
        """The messages of this process."""
        number, of = self.share
        return self.messages // of + (number < self.messages % of)

    def values(self) -> list[bytes]:
        """1,000 random values, or as many as there are messages, or as 64 MiB hold; one at least."""
        chance = random.Random(self.share[0])
        count = max(min(DISTINCT, self.messages, DISTINCT_BYTES // self.size), 1)
        return [chance.randbytes(self.size) for _ in range(count)]

    def pairs(self) -> Iterator[tuple[bytes | None, bytes]]:
        """Key and value of each message, without end."""
        keys: list[bytes | None] = [b"k%d" % number for number in range(self.keys)] or [None]
        return zip(cycle(keys), cycle(self.values()), strict=False)


class Taken(msgspec.Struct):
    """What one process took for a workload: times in ns on the machine's monotonic clock, `latencies` in ns."""

    begun: int
    ended: int
    count: int
    latencies: list[int]
    late: list[int] = []
    """How much later than intended messages were sent."""


def run(name: str, bus: Bus, load: Load, ready: Callable[[], object] = lambda: None) -> Taken:
    """One throughput workload; `ready` is called when all is prepared, and the clock starts when it returns."""
    return _WORKLOADS[name](bus, load, ready)


def _produce(bus: Bus, load: Load, ready: Callable[[], object]) -> Taken:
    topic, latencies = bus.topic(load.topic), list[int]()
    step = max(load.mine // SAMPLES, 1)
    with bus.producer() as producer:
        send, pairs = producer.send, load.pairs()
        ready()
        begun = monotonic_ns()
        for start in range(0, load.mine, step):
            before = monotonic_ns()
            for key, value in islice(pairs, min(step, load.mine - start)):
                delivery = send(topic, value, key=key)
                if before:
                    delivery.add_done_callback(_Clock(before, latencies))
                    before = 0
        producer.flush()
        return Taken(begun, monotonic_ns(), load.mine, latencies)


class _Clock:
    """Called when a delivery is done: notes how long that took."""

    __slots__ = ("_begun", "_latencies")

    def __init__(self, begun: int, latencies: list[int]) -> None:
        self._begun = begun
        self._latencies = latencies

    def __call__(self, delivery: Delivery) -> None:
        self._latencies.append(monotonic_ns() - self._begun)


def _bulk(bus: Bus, load: Load, ready: Callable[[], object]) -> Taken:
    topic, latencies = bus.topic(load.topic), list[int]()
    with bus.producer() as producer:
        columns = [_columns(load, min(BULK, load.mine - start)) for start in range(0, load.mine, BULK)]
        ready()
        begun = monotonic_ns()
        for keys, values in columns:
            before = monotonic_ns()
            producer.send_many(topic, values, keys=keys).add_done_callback(_Clock(before, latencies))
        producer.flush()
        return Taken(begun, monotonic_ns(), load.mine, latencies)


def _columns(load: Load, count: int) -> tuple[Sequence[bytes | None] | None, Sequence[bytes]]:
    keys, values = zip(*islice(load.pairs(), count), strict=True)
    return keys if load.keys else None, values


def _single(bus: Bus, load: Load, ready: Callable[[], object]) -> Taken:
    topic, latencies = bus.topic(load.topic), list[int]()
    with bus.producer() as producer:
        send, pairs = producer.send, islice(load.pairs(), load.mine)
        ready()
        begun = before = monotonic_ns()
        for key, value in pairs:
            send(topic, value, key=key).result(PATIENCE_S)
            now = monotonic_ns()
            latencies.append(now - before)
            before = now
        return Taken(begun, before, load.mine, latencies)


def _poll(bus: Bus, load: Load, ready: Callable[[], object]) -> Taken:
    return _consume(bus, load, ready, lambda consumer: len(consumer.poll(PATIENCE_S)))


def _poll_columns(bus: Bus, load: Load, ready: Callable[[], object]) -> Taken:
    return _consume(
        bus, load, ready, lambda consumer: sum(len(columns.values) for columns in consumer.poll_columns(PATIENCE_S))
    )


def _consume(bus: Bus, load: Load, ready: Callable[[], object], poll: Callable[[Consumer], int]) -> Taken:
    topic, latencies = bus.topic(load.topic), list[int]()
    number, of = load.share
    mine = [TopicPartition(topic.name, partition) for partition in range(number, topic.partitions, of)]
    ends = topic.end_offsets()
    left = count = sum(ends[tp] for tp in mine)
    with bus.consumer() as consumer:
        consumer.assign(mine)
        ready()
        begun = before = monotonic_ns()
        while left > 0:
            found = poll(consumer)
            now = monotonic_ns()
            latencies.append(now - before)
            before = now
            left -= _some(found, left)
        return Taken(begun, before, count, latencies)


def _some(found: int, left: int) -> int:
    if not found:
        raise LateError(f"no message within {PATIENCE_S:g} s, {left:,} were to come")
    return found


_WORKLOADS: Final = {
    "produce": _produce,
    "bulk": _bulk,
    "single": _single,
    "poll": _poll,
    "columns": _poll_columns,
}


# -- end to end --------------------------------------------------------------------------------------------------------


def receive(consumer: Consumer, count: int) -> list[int]:
    """The latencies of the next `count` messages, from the times that they were to be sent at."""
    seen = array("q")
    while len(seen) < count:
        messages = consumer.poll(PATIENCE_S)
        now = monotonic_ns()
        _some(len(messages), count - len(seen))
        seen.extend([now - int.from_bytes(message.value[:STAMP_BYTES], "little") for message in messages])
    return list(seen)


def end_to_end(topic: Topic, load: Load, rate: float, hear: Callable[[], list[int]]) -> Taken:
    """Send at `rate` messages a second, each at its own time; `hear` gives the latencies that the receiver saw."""
    late = array("q")
    with topic.bus.producer() as producer:
        begun = monotonic_ns() + 1_000_000
        for number, (key, value) in enumerate(islice(load.pairs(), load.messages)):
            due = begun + int(number * 1e9 / rate)
            now = monotonic_ns()
            if now < due:
                sleep((due - now) / 1e9)
                now = monotonic_ns()
            late.append(now - due)
            producer.send(topic, due.to_bytes(STAMP_BYTES, "little") + value[STAMP_BYTES:], key=key)
        producer.flush()
        latencies = hear()
    return Taken(begun, monotonic_ns(), load.messages, latencies, list(late))


def ping(topic: Topic, load: Load, hear: Callable[[], list[int]]) -> Taken:
    """Send one message after the other to somebody who waits, with pauses in which the bus is idle."""
    with topic.bus.producer() as producer:
        begun = monotonic_ns()
        for key, value in islice(load.pairs(), load.messages):
            sleep(PING_PAUSE_S)
            stamp = monotonic_ns().to_bytes(STAMP_BYTES, "little")
            producer.send(topic, stamp + value[STAMP_BYTES:], key=key)
        latencies = hear()
    return Taken(begun, monotonic_ns(), load.messages, latencies)


class Listener:
    """A thread of this process that receives."""

    def __init__(self, bus: Bus, load: Load) -> None:
        self._consumer = bus.consumer(load.topic, start="latest")
        self._failure: StreamliteError | None = None
        self._seen: list[int] = []
        self._thread = threading.Thread(target=self._run, args=(load.messages,), daemon=True)
        self._thread.start()

    def _run(self, count: int) -> None:
        try:
            self._seen = receive(self._consumer, count)
        except StreamliteError as error:
            self._failure = error

    def hear(self) -> list[int]:
        """What it saw, once that is all."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._seen

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._consumer.close()
        self._thread.join()
