"""The demo's work: real flights through a bus on disk, without a line of output.

`run` produces every flight into a partitioned topic, reads the topic with two groups, stops one of them half-way and
closes everything, opens the directory again, lets that group go on from its committed offsets, replays one day by
timestamp, and checks what it did against the flights it was given. Whoever wants to watch passes a `Watcher`; the
figures do not depend on it, so a test can compare them with the data.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final

import streamlite
from streamlite import Consumer, Message, Topic
from streamlite.cli.checks import run_checks
from streamlite.cli.figures import Delays, Figures, is_alert
from streamlite.cli.flights import Flight, day_bounds_ms

__all__ = ["Told", "Watcher", "run"]

Told = Callable[[int], None]
"""What a watcher is told with: the number of messages so far."""

TOPIC: Final = "flights"
DELAYS: Final = "delays"
ALERTS: Final = "alerts"
PATIENCE: Final = 10.0
"""Seconds without a message, where there should be one, after which reading gives up; the checks then say so."""
BATCH: Final = 1000
TOLD_EVERY: Final = 500
"""Sends between two calls of the watcher: often enough for a smooth bar, too rarely to slow producing down."""


class Watcher:
    """Told how the demo gets on, always in the demo's own thread; this one keeps quiet."""

    @contextmanager
    def producing(self, total: int) -> Iterator[Told]:
        """Around producing; told how many messages were sent."""
        yield lambda sent: None

    @contextmanager
    def counting(self, delays: Delays) -> Iterator[Told]:
        """Around the group `delays`; told after each batch how many messages it has read."""
        yield lambda read: None

    @contextmanager
    def alerting(self, alerts: Sequence[Flight]) -> Iterator[Told]:
        """Around each half of the group `alerts`; told after each batch how many messages this half has read."""
        yield lambda read: None

    def stopped(self, read: int) -> None:
        """The group `alerts` was stopped after `read` messages, and the bus closed."""

    def reopened(self, committed: Mapping[int, int]) -> None:
        """The bus is open again, and the group found these committed offsets by partition."""


@dataclass(slots=True)
class _Reading:
    """The messages that one consumer was handed out, in that order, and the seconds it took, handling included."""

    messages: list[Message] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def flights(self) -> list[Flight]:
        return [message.value for message in self.messages]


@dataclass(frozen=True, slots=True)
class _FirstHalf:
    """What was done before the stop."""

    produce_seconds: float
    delays: Delays
    counted: _Reading
    alerts: list[Flight]
    read: _Reading


@dataclass(frozen=True, slots=True)
class _SecondHalf:
    """What was done after the directory was opened again."""

    open_seconds: float
    committed: dict[int, int]
    alerts: list[Flight]
    read: _Reading
    day: str
    replay: _Reading
    ends: dict[int, int]
    lag: dict[str, int]


def run(directory: Path, flights: Sequence[Flight], *, partitions: int = 6, watcher: Watcher | None = None) -> Figures:
    """Do everything in `directory`, which must not hold a topic `flights` yet, and return the figures."""
    watcher = watcher or Watcher()
    first = _first_half(directory, flights, partitions, watcher)
    # Consumers and bus are closed: all that the second half knows of the first comes out of the directory.
    watcher.stopped(len(first.read.messages))
    second = _second_half(directory, flights, first.alerts, watcher)
    return _figures(flights, first, second)


def _first_half(directory: Path, flights: Sequence[Flight], partitions: int, watcher: Watcher) -> _FirstHalf:
    delays, alerts = Delays(), list[Flight]()
    with streamlite.open(directory) as bus:
        topic = bus.create_topic(TOPIC, partitions=partitions, key=str, value=Flight)
        produce_seconds = _produce(topic, flights, watcher)
        with watcher.counting(delays) as told:
            counted = _read(topic, DELAYS, delays.add, told)
        with watcher.alerting(alerts) as told:
            read = _read(topic, ALERTS, _collector(alerts), told, most=len(flights) // 2)
    return _FirstHalf(produce_seconds, delays, counted, alerts, read)


def _second_half(directory: Path, flights: Sequence[Flight], alerts: list[Flight], watcher: Watcher) -> _SecondHalf:
    begun = perf_counter()
    with streamlite.open(directory) as bus:
        topic = bus.topic(TOPIC, key=str, value=Flight)
        committed = _by_partition(bus.group(ALERTS).committed)
        open_seconds = perf_counter() - begun
        watcher.reopened(committed)
        found = list(alerts)
        with watcher.alerting(found) as told:
            read = _read(topic, ALERTS, _collector(found), told)
        day = _worst_day(flights, found)
        replay = _replay(topic, day)
        lag = {group: sum(bus.group(group).lag.values()) for group in (DELAYS, ALERTS)}
        ends = _by_partition(topic.end_offsets())
    return _SecondHalf(open_seconds, committed, found, read, day, replay, ends, lag)


def _produce(topic: Topic, flights: Sequence[Flight], watcher: Watcher) -> float:
    """Send every flight, keyed by tail number, at its scheduled time; the seconds until all were delivered."""
    with watcher.producing(len(flights)) as told, topic.bus.producer() as producer:
        begun = perf_counter()
        for number, flight in enumerate(flights):
            # A flight without a tail number has no key: it may go to any partition.
            producer.send(topic, flight, key=flight.tailnum, timestamp=flight.scheduled_ms)
            if number % TOLD_EVERY == 0:
                told(number)
        producer.flush()
        seconds = perf_counter() - begun
        told(len(flights))
    return seconds


def _read(
    topic: Topic, group: str, handle: Callable[[Sequence[Flight]], None], told: Told, most: int = sys.maxsize
) -> _Reading:
    """Read as a member of `group` until nothing is left or `most` messages are handled, and commit exactly those."""
    reading = _Reading()
    messages = reading.messages
    with topic.bus.consumer(topic, group=group) as consumer:
        begun = perf_counter()
        while len(messages) < most and _behind(consumer):
            batch = consumer.poll(timeout=PATIENCE, max_messages=min(BATCH, most - len(messages)))
            if not batch:
                break
            handle([message.value for message in batch])
            messages += batch
            told(len(messages))
        # The last batch counts as processed when we poll again or say so; we stop here, so we say so.
        consumer.commit()
        reading.seconds = perf_counter() - begun
    return reading


def _behind(consumer: Consumer) -> bool:
    return any(consumer.lag().values())


def _collector(alerts: list[Flight]) -> Callable[[Sequence[Flight]], None]:
    return lambda flights: alerts.extend(filter(is_alert, flights))


def _replay(topic: Topic, day: str) -> _Reading:
    since_ms, until_ms = day_bounds_ms(day)
    begun = perf_counter()
    messages = list(topic.read(since_ms=since_ms, until_ms=until_ms))
    return _Reading(messages, perf_counter() - begun)


def _by_partition(offsets: Mapping[streamlite.TopicPartition, int]) -> dict[int, int]:
    return {tp.partition: offset for tp, offset in sorted(offsets.items())}


def _worst_day(flights: Sequence[Flight], alerts: Sequence[Flight]) -> str:
    """The day with most alerts; the earliest of several."""
    count = Counter(alert.date for alert in alerts)
    return max(sorted({flight.date for flight in flights}), key=lambda date: count[date])


def _figures(flights: Sequence[Flight], first: _FirstHalf, second: _SecondHalf) -> Figures:
    keys = [message.key for message in first.counted.messages]
    replayed = second.replay.flights
    return Figures(
        flights=len(keys),
        keys=len(set(keys) - {None}),
        keyless=keys.count(None),
        per_partition=tuple(second.ends.values()),
        produce_seconds=first.produce_seconds,
        carriers=tuple(row for _, row in sorted(first.delays.items())),
        delays_seconds=first.counted.seconds,
        read_before=len(first.read.messages),
        read_after=len(second.read.messages),
        alerts=tuple(second.alerts),
        alerts_before=len(first.alerts),
        alerts_seconds=first.read.seconds + second.read.seconds,
        committed=second.committed,
        reopen_seconds=second.open_seconds,
        day=second.day,
        day_flights=len(replayed),
        day_cancelled=sum(flight.dep_delay is None for flight in replayed),
        day_alerts=sum(map(is_alert, replayed)),
        replay_seconds=second.replay.seconds,
        checks=run_checks(
            flights,
            counted=first.counted.messages,
            before=first.read.messages,
            committed=second.committed,
            after=second.read.messages,
            replayed=replayed,
            day=second.day,
            ends=second.ends,
            lag=second.lag,
        ),
    )
