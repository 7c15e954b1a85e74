"""API.md, "Consumer": iteration, and where a new iteration begins.

Processed means: the loop asked for the next message, or `poll` was called again. A new `iter(consumer)` starts at the
first unprocessed message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from streamlite import Bus, Consumer, Topic, TopicPartition
from streamlite.testing.clock import VirtualClock

from .helpers import PATIENCE, beside, by_partition, numbers, put, take, values

OpenBus = Callable[..., Bus]

TP = TopicPartition("t", 0)

GROUPS = pytest.mark.parametrize(
    "options", [{}, {"group": "g"}, {"group": "g", "auto_commit": False}], ids=["no group", "group", "no auto-commit"]
)


def filled(bus: Bus, count: int = 10, partitions: int = 1, **settings: Any) -> Topic:
    """A topic `t` with numbers in each partition."""
    topic = bus.topic("t", partitions=partitions, **settings)
    for partition in range(partitions):
        put(bus, topic, *numbers(count, partition * 1000), partition=partition)
    return topic


def first(consumer: Consumer, count: int) -> list[Any]:
    """The first values of a new iteration, which is then given up: the last of them stays unprocessed."""
    return values(islice(consumer, count))


def rest(consumer: Consumer) -> list[Any]:
    """The values of a new iteration to the end."""
    return values(consumer.messages(timeout=1))


@GROUPS
def test_a_loop_gets_every_message_in_order(bus: Bus, options: dict[str, Any]) -> None:
    filled(bus, count=50, partitions=3, segment_bytes=300)
    with bus.consumer("t", **options) as consumer:
        assert by_partition(islice(consumer, 150)) == {n: numbers(50, n * 1000) for n in range(3)}


def test_a_loop_gets_what_is_sent_while_it_runs(bus: Bus) -> None:
    topic = filled(bus, count=1)
    found = []
    with bus.consumer("t") as consumer, bus.producer() as producer:
        for message in consumer:
            found.append(message.value)
            if len(found) == 20:
                break
            producer.send(topic, b"%d" % len(found))
    assert found == numbers(20)


def test_a_loop_waits_for_what_another_thread_sends(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    topic = bus.topic("t", partitions=2)

    def send() -> None:
        with bus.producer() as producer:
            for number in range(50):
                producer.send(topic, b"%d" % number, key=b"k").result(timeout=PATIENCE)

    with bus.consumer("t") as consumer:
        sending = beside(send)
        assert first(consumer, 50) == numbers(50)
        sending.result(timeout=PATIENCE)


@pytest.mark.needs("clock")
def test_with_a_timeout_it_ends_after_that_long_without_a_message(bus: Bus, clock: VirtualClock) -> None:
    topic = filled(bus, count=3)
    with bus.consumer("t") as consumer:
        before = clock.monotonic()
        assert values(consumer.messages(timeout=7)) == numbers(3)
        assert clock.monotonic() - before == pytest.approx(7)
        assert values(consumer.messages(timeout=7)) == []
        assert clock.monotonic() - before == pytest.approx(14)
        put(bus, topic, b"3")
        before = clock.monotonic()
        found = []
        for message in consumer.messages(timeout=7):
            found.append(message.value)
            clock.advance(5)  # however long the loop takes
            if len(found) < 4:
                put(bus, topic, b"%d" % (len(found) + 3))
        assert found == numbers(4, 3)
        assert clock.monotonic() - before == pytest.approx(4 * 5 + 7)


def test_a_timeout_of_nothing_gives_what_is_there(bus: Bus) -> None:
    topic = filled(bus, count=30)
    with bus.consumer("t") as consumer:
        assert values(consumer.messages(timeout=0)) == numbers(30)
        assert values(consumer.messages(timeout=0)) == []
        put(bus, topic, b"30")
        assert values(consumer.messages(timeout=0)) == [b"30"]


@GROUPS
def test_a_loop_that_breaks_begins_again_with_its_last_message(bus: Bus, options: dict[str, Any]) -> None:
    filled(bus)
    with bus.consumer("t", **options) as consumer:
        for message in consumer:
            if message.offset == 3:
                break
        assert first(consumer, 2) == numbers(2, 3)
        assert first(consumer, 1) == numbers(1, 4)
        assert first(consumer, 1) == numbers(1, 4)
        assert rest(consumer) == numbers(6, 4)
        assert rest(consumer) == []


@GROUPS
def test_a_loop_that_raises_begins_again_with_its_last_message(bus: Bus, options: dict[str, Any]) -> None:
    filled(bus)
    handled = []
    attempts = 0
    with bus.consumer("t", **options) as consumer:
        while len(handled) < 10:
            attempts += 1
            assert attempts < 20
            try:
                for message in consumer.messages(timeout=1):
                    if int(message.value) % 3 == 0 and attempts <= int(message.value) // 3 + 1:
                        raise RuntimeError
                    handled.append(message.value)
            except RuntimeError:
                continue
    assert handled == numbers(10)


def test_a_loop_that_returns_begins_again_with_its_last_message(bus: Bus) -> None:
    filled(bus)

    def find(wanted: bytes) -> bytes | None:
        return next((message.value for message in consumer if message.value == wanted), None)

    with bus.consumer("t") as consumer:
        assert find(b"2") == b"2"
        assert find(b"5") == b"5"
        assert rest(consumer) == numbers(5, 5)


def test_a_new_iterator_begins_at_the_first_unprocessed_message(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        iterator = iter(consumer)
        assert [next(iterator).value for _ in range(3)] == numbers(3)
        again: Iterator[Any] = iter(consumer)
        assert [next(again).value for _ in range(2)] == numbers(2, 2)
        assert rest(consumer) == numbers(7, 3)


@GROUPS
def test_what_the_last_poll_gave_is_unprocessed(bus: Bus, options: dict[str, Any]) -> None:
    filled(bus)
    with bus.consumer("t", **options) as consumer:
        assert values(take(consumer, 4)) == numbers(4)
        assert values(consumer.poll(timeout=1, max_messages=3)) == numbers(3, 4)
        assert first(consumer, 1) == numbers(1, 4)
        assert rest(consumer) == numbers(6, 4)


def test_what_an_earlier_poll_gave_is_processed(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        take(consumer, 10)
        assert consumer.poll() == []
        assert rest(consumer) == []


def test_what_was_polled_as_columns_is_unprocessed_too(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        take(consumer, 4)
        assert sum(len(columns.offsets) for columns in consumer.poll_columns(timeout=1, max_messages=3)) == 3
        assert rest(consumer) == numbers(6, 4)


def test_unprocessed_messages_of_every_partition_come_again(bus: Bus) -> None:
    filled(bus, partitions=3)
    with bus.consumer("t") as consumer:
        take(consumer, 13)
        positions = {tp: consumer.position(tp) for tp in consumer.assignment()}
        last = consumer.poll(timeout=1, max_messages=10)
        assert last
        expected = {
            tp.partition: numbers(10 - position, tp.partition * 1000 + position) for tp, position in positions.items()
        }
        assert by_partition(consumer.messages(timeout=1)) == {n: left for n, left in expected.items() if left}


def test_a_commit_marks_as_processed(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        take(consumer, 4)
        consumer.commit()
        assert first(consumer, 3) == numbers(3, 4)
        consumer.commit()
        assert rest(consumer) == numbers(3, 7)


def test_a_commit_inside_a_loop_that_breaks(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        for message in consumer:
            if message.offset == 3:
                consumer.commit()
                break
        assert rest(consumer) == numbers(6, 4)


def test_an_exhausted_iteration_processed_everything(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        assert rest(consumer) == numbers(10)
        assert rest(consumer) == []


def test_seeking_inside_a_loop_goes_there_next(bus: Bus) -> None:
    filled(bus)
    found = []
    with bus.consumer("t") as consumer:
        for message in consumer.messages(timeout=1):
            found.append(message.value)
            if len(found) == 3:
                consumer.seek(TP, 8)
            if len(found) == 5:
                consumer.seek(TP, 1)
            if len(found) == 7:
                break
        assert found == [*numbers(3), *numbers(2, 8), *numbers(2, 1)]


def test_seeking_between_loops_goes_there(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        assert first(consumer, 3) == numbers(3)
        consumer.seek(TP, 6)
        assert first(consumer, 2) == numbers(2, 6)
        consumer.seek_to_beginning()
        assert rest(consumer) == numbers(10)


def test_closing_inside_a_loop_ends_it(bus: Bus) -> None:
    filled(bus)
    found = []
    consumer = bus.consumer("t", group="g")
    for message in consumer:
        found.append(message.value)
        if len(found) == 3:
            consumer.close()
    assert found == numbers(3)
    with bus.consumer("t", group="g") as again:
        assert rest(again) == numbers(8, 2)


def test_waking_inside_a_loop_ends_it(bus: Bus) -> None:
    filled(bus, count=3)
    found = []
    with bus.consumer("t") as consumer:
        for message in consumer:
            found.append(message.value)
            if len(found) == 3:
                consumer.wakeup()
        assert found == numbers(3)
        assert rest(consumer) == []
