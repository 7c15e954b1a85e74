"""API.md, "topic setting": what `retention_ms` and `retention_bytes` take away at `bus.maintain()`, as in Kafka.

Whole segments go, oldest first. So what is left is always the later part of the log; these tests give each message a
segment of its own where they say exactly which.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamlite import Bus, Topic, TopicPartition, errors
from streamlite.testing.clock import VirtualClock

from .helpers import T0, committed, drain, numbers, offsets, put, put_apart, take, values

OpenBus = Callable[..., Bus]

pytestmark = pytest.mark.needs("clock", "maintenance")

TP = TopicPartition("t", 0)
HOUR_MS = 3_600_000


def old_and_new(bus: Bus, clock: VirtualClock, topic: Topic) -> None:
    """Ten messages, an hour, ten more."""
    put_apart(bus, topic, *numbers(10))
    clock.advance(3600)
    put_apart(bus, topic, *numbers(10, 10))


def test_nothing_is_forgotten_unasked(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t", segment_bytes=1, segment_ms=1)
    old_and_new(bus, clock, topic)
    clock.advance(20 * 365 * 86_400)
    bus.maintain()
    assert values(topic.read()) == numbers(20)
    assert topic.beginning_offsets() == {TP: 0}


def test_what_is_too_old_goes(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t", segment_bytes=1, retention_ms=HOUR_MS // 2)
    old_and_new(bus, clock, topic)
    bus.maintain()
    assert values(topic.read()) == numbers(10, 10)
    assert topic.beginning_offsets() == {TP: 10}
    assert topic.end_offsets() == {TP: 20}
    assert offsets(topic.read()) == list(range(10, 20))


def test_nothing_that_is_young_enough_goes(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t", segment_bytes=1, retention_ms=HOUR_MS + 1000)
    old_and_new(bus, clock, topic)
    bus.maintain()
    assert values(topic.read()) == numbers(20)
    clock.advance(2)
    bus.maintain()
    assert values(topic.read()) == numbers(10, 10)


@pytest.mark.parametrize("segment_bytes", [1, 400, 10**6])
def test_whatever_the_segments_all_goes_in_time_and_nothing_too_early(
    bus: Bus, clock: VirtualClock, segment_bytes: int
) -> None:
    topic = bus.topic("t", segment_bytes=segment_bytes, retention_ms=60_000)
    begun = 0
    for number in range(60):
        put(bus, topic, b"%d" % number)
        clock.advance(10)
        bus.maintain()
        left = values(topic.read())
        assert left == numbers(number + 1 - (begun := number + 1 - len(left)), begun)
        assert len(left) >= min(number + 1, 6)
    clock.advance(3600)
    bus.maintain()
    assert list(topic.read()) == []
    assert topic.beginning_offsets() == topic.end_offsets() == {TP: 60}
    assert put(bus, topic, b"next")[0].offset == 60
    bus.maintain()
    assert values(topic.read()) == [b"next"]


def test_age_is_told_by_the_messages_timestamps(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t", segment_bytes=1, retention_ms=HOUR_MS)
    put_apart(bus, topic, *numbers(5), timestamp=T0 - 2 * HOUR_MS)
    put_apart(bus, topic, *numbers(5, 5), timestamp=T0 + 2 * HOUR_MS)
    bus.maintain()
    assert values(topic.read()) == numbers(5, 5)
    clock.advance(2 * 3600)
    bus.maintain()
    assert values(topic.read()) == numbers(5, 5)
    clock.advance(3601)
    bus.maintain()
    assert list(topic.read()) == []


def test_what_is_too_much_goes(bus: Bus) -> None:
    topic = bus.topic("t", segment_bytes=15_000, retention_bytes=200_000)
    sent = [b"%05d" % number * 2000 for number in range(50)]
    put_apart(bus, topic, *sent)
    bus.maintain()
    left = values(topic.read())
    assert left == sent[-len(left) :]
    # No segment goes that would leave less than the limit; so less than one segment stands above it.
    assert 195_000 <= sum(map(len, left)) <= 225_000
    assert topic.beginning_offsets() == {TP: 50 - len(left)}
    bus.maintain()
    assert values(topic.read()) == left


def test_what_is_not_too_much_stays(bus: Bus) -> None:
    topic = bus.topic("t", segment_bytes=1000, retention_bytes=200_000)
    put_apart(bus, topic, *(b"x" * 600 for _ in range(100)))
    bus.maintain()
    assert len(list(topic.read())) == 100


def test_each_partition_has_the_limit_for_itself(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2, segment_bytes=1000, retention_bytes=10_000)
    put_apart(bus, topic, *(b"x" * 600 for _ in range(100)), partition=0)
    put_apart(bus, topic, *(b"x" * 600 for _ in range(5)), partition=1)
    bus.maintain()
    assert topic.beginning_offsets()[TopicPartition("t", 1)] == 0
    assert topic.beginning_offsets()[TP] > 0


def test_altered_limits_hold_from_the_next_time(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t", segment_bytes=1)
    old_and_new(bus, clock, topic)
    bus.maintain()
    assert len(list(topic.read())) == 20
    topic.alter(retention_ms=HOUR_MS // 2)
    bus.maintain()
    assert values(topic.read()) == numbers(10, 10)


@pytest.mark.parametrize(("cleanup", "left"), [("compact", numbers(20)), ("compact,delete", numbers(10, 10))])
def test_only_where_the_cleanup_says_delete(bus: Bus, clock: VirtualClock, cleanup: str, left: list[bytes]) -> None:
    topic = bus.topic("t", segment_bytes=1, retention_ms=HOUR_MS // 2, cleanup=cleanup)
    for value in numbers(10):
        put(bus, topic, value, key=value)
    clock.advance(3600)
    for value in numbers(10, 10):
        put(bus, topic, value, key=value)
    bus.maintain()
    assert values(topic.read()) == left


@pytest.mark.needs("durable")
def test_what_is_gone_stays_gone_and_offsets_go_on(open_bus: OpenBus, clock: VirtualClock) -> None:
    with open_bus() as bus:
        topic = bus.topic("t", partitions=2, segment_bytes=1, retention_ms=HOUR_MS // 2)
        put_apart(bus, topic, *numbers(5), partition=1)
        old_and_new(bus, clock, bus.topic("u", segment_bytes=1, retention_ms=HOUR_MS // 2))
        bus.maintain()
    for _ in range(2):
        with open_bus() as bus:
            topic = bus.topic("t")
            assert topic.beginning_offsets()[TopicPartition("t", 1)] == 5
            assert topic.end_offsets()[TopicPartition("t", 1)] == 5
            assert values(bus.topic("u").read()) == numbers(10, 10)
    with open_bus() as bus:
        assert put(bus, "t", b"next", partition=1)[0].offset == 5


def test_a_consumer_goes_on_where_it_is(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t", segment_bytes=1, retention_ms=HOUR_MS // 2)
    with bus.consumer("t", group="g", max_poll_interval_ms=10**9) as consumer:
        put_apart(bus, topic, *numbers(10))
        assert values(take(consumer, 10)) == numbers(10)
        clock.advance(3600)
        put_apart(bus, topic, *numbers(10, 10))
        bus.maintain()
        assert consumer.lag() == {TP: 10}
        assert consumer.beginning_offsets([TP]) == {TP: 10}
        assert values(drain(consumer)) == numbers(10, 10)
    assert committed(bus, "t", "g") == 20


@pytest.mark.parametrize("rule", ["raise", "earliest", "latest"])
def test_a_group_that_was_overtaken(bus: Bus, clock: VirtualClock, rule: str) -> None:
    topic = bus.topic("t", segment_bytes=1, retention_ms=HOUR_MS // 2)
    put_apart(bus, topic, *numbers(10))
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.commit({TP: 5})
    clock.advance(3600)
    put_apart(bus, topic, *numbers(10, 10))
    bus.maintain()
    assert bus.group("g").committed == {TP: 5}
    with bus.consumer("t", group="g", out_of_range=rule) as consumer:
        if rule == "raise":
            with pytest.raises(errors.OffsetOutOfRangeError):
                consumer.poll(timeout=1)
        else:
            assert values(drain(consumer)) == (numbers(10, 10) if rule == "earliest" else [])
