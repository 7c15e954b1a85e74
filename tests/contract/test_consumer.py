"""API.md, "Consumer": assignment, polling, positions, pausing, waking, closing, start and out-of-range rules."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamlite import Bus, Consumer, Topic, TopicPartition, errors
from streamlite.testing.clock import VirtualClock

from .helpers import (
    PATIENCE,
    T0,
    beside,
    by_partition,
    drain,
    numbers,
    offsets,
    pairs,
    put,
    put_apart,
    take,
    tps,
    values,
)

OpenBus = Callable[..., Bus]

TP = TopicPartition("t", 0)


def moment(ms: int) -> datetime:
    """A time in ms since the epoch as an aware moment."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)


def filled(bus: Bus, count: int = 10, partitions: int = 1, **settings: Any) -> Topic:
    """A topic `t` with numbers in each partition."""
    topic = bus.topic("t", partitions=partitions, **settings)
    for partition in range(partitions):
        put(bus, topic, *numbers(count, partition * 1000), partition=partition)
    return topic


# --- subscribing and assigning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "g"])
def test_a_consumer_has_all_partitions_when_it_is_there(bus: Bus, group: str | None) -> None:
    topic = bus.topic("t", partitions=3)
    bus.topic("u")
    for which in ("t", topic):
        with bus.consumer(which, group=group) as consumer:
            assert consumer.assignment() == tps("t", 3)
            assert consumer.wait_assigned(timeout=PATIENCE) == tps("t", 3)
    with bus.consumer("t", bus.topic("u"), group=group) as consumer:
        assert consumer.assignment() == tps("t", 3) | tps("u", 1)


@pytest.mark.parametrize("group", [None, "g"])
def test_a_pattern_takes_every_topic_it_fits(bus: Bus, group: str | None) -> None:
    for name in ("orders-eu", "orders-us", "other"):
        put(bus, bus.topic(name), name)
    with bus.consumer(re.compile(r"orders-.+"), group=group) as consumer:
        assert consumer.assignment() == tps("orders-eu", 1) | tps("orders-us", 1)
        assert sorted(values(take(consumer, 2))) == [b"orders-eu", b"orders-us"]


@pytest.mark.parametrize("group", [None, "g"])
def test_a_pattern_takes_no_internal_topic(bus: Bus, group: str | None) -> None:
    put(bus, bus.topic("t"), b"x")
    with bus.consumer("t", group="another") as consumer:
        take(consumer, 1)
        consumer.commit()
    with bus.consumer(re.compile(".*"), group=group) as consumer:
        assert consumer.assignment() == tps("t", 1)
        assert values(drain(consumer)) == [b"x"]


@pytest.mark.parametrize("group", [None, "g"])
def test_a_pattern_takes_topics_that_appear(bus: Bus, group: str | None) -> None:
    bus.topic("orders-eu")
    with bus.consumer(re.compile(r"orders-.+"), group=group) as consumer:
        assert drain(consumer) == []
        put(bus, bus.topic("orders-us"), b"new")
        assert values(take(consumer, 1)) == [b"new"]
        assert consumer.assignment() == tps("orders-eu", 1) | tps("orders-us", 1)


@pytest.mark.needs("clock")
def test_a_pattern_that_fits_nothing_waits(bus: Bus) -> None:
    with bus.consumer(re.compile("nothing-.*")) as consumer:
        assert consumer.assignment() == set()
        with pytest.raises(errors.TimeoutError):
            consumer.wait_assigned(timeout=1)


@pytest.mark.parametrize("group", [None, "g"])
def test_a_topic_that_is_not_there(bus: Bus, group: str | None) -> None:
    bus.topic("t")
    for topics in (["absent"], ["t", "absent"]):
        with pytest.raises(errors.UnknownTopicError, match="absent"):
            bus.consumer(*topics, group=group)
    with bus.consumer(group=group) as consumer, pytest.raises(errors.UnknownTopicError):
        consumer.subscribe("absent")
    assert bus.topics() == ["t"]


@pytest.mark.parametrize("group", [None, "g"])
def test_subscribing_replaces_what_was_subscribed(bus: Bus, group: str | None) -> None:
    for name in ("a", "b", "c"):
        put(bus, bus.topic(name), name)
    with bus.consumer(group=group) as consumer:
        assert consumer.assignment() == set()
        consumer.subscribe("a")
        assert consumer.wait_assigned(timeout=PATIENCE) == tps("a", 1)
        assert values(drain(consumer)) == [b"a"]
        consumer.subscribe("b", bus.topic("c"))
        assert consumer.wait_assigned(timeout=PATIENCE) == tps("b", 1) | tps("c", 1)
        assert sorted(values(take(consumer, 2))) == [b"b", b"c"]
        consumer.unsubscribe()
        assert consumer.assignment() == set()
        consumer.subscribe(re.compile("^[ab]$"))
        assert consumer.wait_assigned(timeout=PATIENCE) == tps("a", 1) | tps("b", 1)


def test_on_assign_and_on_revoke_are_told(bus: Bus) -> None:
    bus.topic("a", partitions=2)
    bus.topic("b")
    told: list[tuple[str, Consumer, set[TopicPartition]]] = []
    callbacks: dict[str, Any] = {
        name: lambda consumer, partitions, name=name: told.append((name, consumer, set(partitions)))
        for name in ("on_assign", "on_revoke", "on_lost")
    }
    with bus.consumer("a", group="g", **callbacks) as consumer:
        consumer.wait_assigned(timeout=PATIENCE)
        assert [(name, partitions) for name, _, partitions in told] == [("on_assign", tps("a", 2))]
        assert told[0][1] is consumer
        told.clear()
        consumer.subscribe("b", **callbacks)
        consumer.wait_assigned(timeout=PATIENCE)
        assert ("on_revoke", tps("a", 2)) in [(name, partitions) for name, _, partitions in told]
        assert ("on_assign", tps("b", 1)) in [(name, partitions) for name, _, partitions in told]
        told.clear()
        consumer.unsubscribe()
        assert [(name, partitions) for name, _, partitions in told] == [("on_revoke", tps("b", 1))]


def test_on_assign_may_seek(bus: Bus) -> None:
    filled(bus)

    def rewind(consumer: Consumer, partitions: Any) -> None:
        for tp in partitions:
            consumer.seek(tp, 7)

    with bus.consumer("t", group="g", on_assign=rewind) as consumer:
        assert values(drain(consumer)) == numbers(3, 7)


@pytest.mark.parametrize("group", [None, "g"])
def test_partitions_may_be_assigned_by_hand(bus: Bus, group: str | None) -> None:
    filled(bus, partitions=3)
    with bus.consumer(group=group) as consumer:
        consumer.assign([TopicPartition("t", 2)])
        assert consumer.assignment() == {TopicPartition("t", 2)}
        assert values(drain(consumer)) == numbers(10, 2000)
        consumer.assign([TopicPartition("t", 0), TopicPartition("t", 1)])
        assert consumer.assignment() == tps("t", 2)
        assert set(by_partition(drain(consumer))) == {0, 1}
        consumer.assign([])
        assert consumer.assignment() == set()
        with pytest.raises(errors.UnknownTopicError):
            consumer.assign([TopicPartition("t", 3)])
        with pytest.raises(errors.UnknownTopicError):
            consumer.assign([TopicPartition("absent", 0)])


# --- poll ---------------------------------------------------------------------------------------------------------


def test_poll_of_nothing_gives_an_empty_list(bus: Bus) -> None:
    bus.topic("t")
    with bus.consumer("t") as consumer:
        assert consumer.poll() == []
        assert consumer.poll(timeout=0) == []
        assert consumer.poll(timeout=1) == []
        assert consumer.poll_columns() == []


def test_poll_gives_everything_once_in_order_per_partition(bus: Bus) -> None:
    filled(bus, count=100, partitions=3, segment_bytes=500)
    with bus.consumer("t") as consumer:
        messages = drain(consumer)
        assert by_partition(messages) == {n: numbers(100, n * 1000) for n in range(3)}
        put(bus, "t", b"late", partition=1)
        (late,) = take(consumer, 1)
        assert (late.topic, late.partition, late.offset, late.value) == ("t", 1, 100, b"late")
        assert drain(consumer) == []


def test_poll_gives_the_whole_message(bus: Bus) -> None:
    bus.topic("t")
    put(bus, "t", "wert", key="schlüssel", timestamp=T0 + 5, headers=[("h", b"1"), ("h", None)])
    with bus.consumer("t") as consumer:
        (message,) = take(consumer, 1)
    assert (message.topic, message.partition, message.offset, message.timestamp) == ("t", 0, 0, T0 + 5)
    assert (message.key, message.value) == ("schlüssel".encode(), b"wert")
    assert pairs(message) == [("h", b"1"), ("h", None)]


@pytest.mark.parametrize("limit", [1, 3, 10, 1000])
def test_poll_gives_no_more_than_asked(bus: Bus, limit: int) -> None:
    filled(bus, count=25, partitions=2)
    with bus.consumer("t") as consumer:
        found = []
        while batch := consumer.poll(timeout=1, max_messages=limit):
            assert len(batch) <= limit
            found += batch
        assert by_partition(found) == {0: numbers(25), 1: numbers(25, 1000)}


def test_poll_gives_no_more_than_max_poll_messages(bus: Bus) -> None:
    filled(bus, count=2500)
    with bus.consumer("t") as consumer:
        assert len(consumer.poll(timeout=1)) <= 1000
    with bus.consumer("t", max_poll_messages=7) as consumer:
        found = []
        while batch := consumer.poll(timeout=1):
            assert len(batch) <= 7
            found += batch
        assert values(found) == numbers(2500)


@pytest.mark.needs("clock")
@pytest.mark.parametrize("columns", [False, True], ids=["messages", "columns"])
def test_what_a_call_gives_is_bounded_in_bytes(bus: Bus, columns: bool) -> None:
    topic = bus.topic("t", partitions=2)
    with bus.producer() as producer:
        for number in range(48):
            producer.send(topic, bytes(1 << 20), partition=number % 2)
    calls = []
    with bus.consumer("t") as consumer:
        while sum(calls) < 48:
            found = consumer.poll_columns(PATIENCE) if columns else consumer.poll(PATIENCE)
            assert found, calls
            calls.append(sum(len(one.values) for one in found) if columns else len(found))
    # 16 MiB, and what the last batch has beyond them: a thousand messages of this size would be a gigabyte.
    assert max(calls) <= 18
    assert sum(calls) == 48


def test_poll_waits_as_long_as_told(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t")
    with bus.consumer("t") as consumer:
        before = clock.monotonic()
        assert consumer.poll(timeout=5) == []
        assert clock.monotonic() - before == pytest.approx(5)
        put(bus, "t", b"x")
        before = clock.monotonic()
        assert values(consumer.poll(timeout=5)) == [b"x"]
        assert clock.monotonic() - before < 5


def test_poll_waits_for_what_another_thread_sends(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    bus.topic("t", partitions=2)
    with bus.consumer("t") as consumer:
        for partition in (1, 0, 1):
            sending = beside(lambda partition=partition: put(bus, "t", b"x", partition=partition))
            assert values(consumer.poll(timeout=PATIENCE)) == [b"x"]
            sending.result(timeout=PATIENCE)


def test_columns_hold_what_poll_would_give(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2, segment_bytes=300)
    for number in range(20):
        put(bus, topic, b"v%d" % number, key=b"k%d" % number, headers={"n": b"%d" % number}, timestamp=T0 + number)
    put(bus, topic, None, key=b"k0")
    with bus.consumer("t") as consumer:
        expected = [(m.partition, m.offset, m.timestamp, m.key, m.value, pairs(m)) for m in drain(consumer)]
    rows = []
    with bus.consumer("t") as consumer:
        while batch := consumer.poll_columns(timeout=1, max_messages=6):
            assert sum(len(columns.offsets) for columns in batch) <= 6
            for columns in batch:
                assert columns.topic == "t"
                for offset, timestamp, key, value, headers in zip(
                    columns.offsets, columns.timestamps, columns.keys, columns.values, columns.headers, strict=True
                ):
                    rows.append((columns.partition, offset, timestamp, key, value, [(n, v) for n, v in headers]))
        assert consumer.lag() == dict.fromkeys(tps("t", 2), 0)
    assert sorted(rows) == sorted(expected)
    for partition in (0, 1):
        assert [row[1] for row in rows if row[0] == partition] == list(
            range(sum(row[0] == partition for row in expected))
        )


def test_consumers_without_a_group_do_not_share(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as first, bus.consumer("t") as second:
        assert values(drain(first)) == numbers(10)
        assert values(drain(second)) == numbers(10)
    assert bus.groups() == []


# --- positions ----------------------------------------------------------------------------------------------------


def test_the_position_is_the_next_offset_to_be_handed_out(bus: Bus) -> None:
    filled(bus, partitions=2)
    with bus.consumer("t") as consumer:
        assert [consumer.position(tp) for tp in sorted(tps("t", 2))] == [0, 0]
        for message in take(consumer, 7):
            last = message
        assert sum(consumer.position(tp) for tp in tps("t", 2)) == 7
        assert consumer.position(TopicPartition("t", last.partition)) == last.offset + 1
        for message in consumer.messages(timeout=1):
            assert consumer.position(TopicPartition("t", message.partition)) == message.offset + 1
        assert [consumer.position(tp) for tp in sorted(tps("t", 2))] == [10, 10]


def test_seeking_goes_there(bus: Bus) -> None:
    filled(bus, partitions=2, segment_bytes=200)
    first, second = sorted(tps("t", 2))
    with bus.consumer("t") as consumer:
        drain(consumer)
        for offset in (3, 0, 9, 5, 10):
            consumer.seek(second, offset)
            assert consumer.position(second) == offset
            assert consumer.position(first) == 10
            assert values(drain(consumer)) == numbers(10 - offset, 1000 + offset)
        consumer.seek(first, 2)
        consumer.seek(first, 8)
        assert values(drain(consumer)) == numbers(2, 8)


def test_seeking_drops_what_was_fetched_before(bus: Bus) -> None:
    filled(bus, count=100)
    with bus.consumer("t") as consumer:
        take(consumer, 3)
        consumer.seek(TP, 50)
        assert offsets(take(consumer, 3)) == [50, 51, 52]
        consumer.seek(TP, 10)
        assert offsets(take(consumer, 3)) == [10, 11, 12]


def test_seeking_to_the_beginning_and_the_end(bus: Bus) -> None:
    topic = filled(bus, partitions=3)
    topic.truncate_before(1, 4)
    a, b, c = sorted(tps("t", 3))
    with bus.consumer("t") as consumer:
        consumer.seek_to_end()
        assert [consumer.position(tp) for tp in (a, b, c)] == [10, 10, 10]
        consumer.seek_to_beginning()
        assert [consumer.position(tp) for tp in (a, b, c)] == [0, 4, 0]
        consumer.seek_to_end(a, c)
        assert [consumer.position(tp) for tp in (a, b, c)] == [10, 4, 10]
        consumer.seek_to_beginning(c)
        assert [consumer.position(tp) for tp in (a, b, c)] == [10, 4, 0]
        assert by_partition(drain(consumer)) == {1: numbers(6, 1004), 2: numbers(10, 2000)}
        consumer.seek_to_end()
        put(bus, "t", b"late", partition=0)
        assert values(drain(consumer)) == [b"late"]


@pytest.mark.parametrize("group", [None, "g"])
def test_seeking_outside_the_assignment_is_a_config_error(bus: Bus, group: str | None) -> None:
    filled(bus, partitions=2)
    bus.topic("u")
    outside = [TopicPartition("t", 1), TopicPartition("u", 0)]
    with bus.consumer(group=group) as consumer:
        consumer.assign([TP])
        for tp in outside:
            with pytest.raises(errors.ConfigError):
                consumer.seek(tp, 0)
            with pytest.raises(errors.ConfigError):
                consumer.seek_to_beginning(tp)
            with pytest.raises(errors.ConfigError):
                consumer.seek_to_end(TP, tp)
        assert values(drain(consumer)) == numbers(10)


@pytest.mark.parametrize("offset", [-1, "3", 1.5, None], ids=repr)
def test_seeking_needs_an_offset(bus: Bus, offset: Any) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        with pytest.raises((errors.ConfigError, errors.OffsetOutOfRangeError)):
            consumer.seek(TP, offset)
        assert values(drain(consumer)) == numbers(10)


def test_an_offset_of_ones_own_store_may_bring_its_epoch(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        offset, epoch = take(consumer, 4)[-1].offset + 1, consumer.epoch(TP)
        assert isinstance(epoch, int)
    with bus.consumer("t") as consumer:
        consumer.seek(TP, offset, epoch=epoch)
        assert values(drain(consumer)) == numbers(6, 4)
        consumer.seek(TP, offset, epoch)
        assert consumer.position(TP) == 4


def test_offsets_for_times(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3, segment_bytes=150)
    first, second, third = sorted(tps("t", 3))
    with bus.producer() as producer:
        for ms in (10, 30, 20, 40):
            producer.send(topic, b"x", partition=0, timestamp=T0 + ms).result(timeout=PATIENCE)
        producer.send_many(topic, [b"x"] * 4, partition=1, timestamps=[T0 + ms for ms in (100, 300, 200, 400)])
    with bus.consumer("t") as consumer:
        for ms, expected in ((0, 0), (10, 0), (11, 1), (25, 1), (30, 1), (31, 3), (40, 3), (41, None)):
            assert consumer.offsets_for_times({first: T0 + ms}) == {first: expected}, ms
        for ms, expected in ((100, 0), (101, 1), (300, 1), (301, 3), (401, None)):
            assert consumer.offsets_for_times({second: T0 + ms}) == {second: expected}, ms
        found = consumer.offsets_for_times({first: T0, second: T0 + 350, third: T0})
        assert found == {first: 0, second: 3, third: None}
        topic.truncate_before(0, 2)
        assert consumer.offsets_for_times({first: T0}) == {first: 2}
        assert consumer.offsets_for_times({}) == {}
        with pytest.raises(errors.UnknownTopicError):
            consumer.offsets_for_times({TopicPartition("t", 9): T0})
        assert consumer.position(first) == 0


def test_lag_and_ends(bus: Bus) -> None:
    topic = filled(bus, partitions=2)
    first, second = sorted(tps("t", 2))
    topic.truncate_before(1, 2)
    with bus.consumer("t") as consumer:
        assert consumer.beginning_offsets([first, second]) == {first: 0, second: 2}
        assert consumer.end_offsets([second]) == {second: 10}
        assert consumer.lag() == {first: 10, second: 8}
        consumer.seek(first, 4)
        assert consumer.lag() == {first: 6, second: 8}
        drain(consumer)
        assert consumer.lag() == {first: 0, second: 0}
        put(bus, topic, *numbers(3), partition=1)
        assert consumer.lag() == {first: 0, second: 3}
        assert consumer.end_offsets({first, second}) == {first: 10, second: 13}
        with pytest.raises(errors.UnknownTopicError):
            consumer.end_offsets([TopicPartition("t", 9)])
        with pytest.raises(errors.UnknownTopicError):
            consumer.beginning_offsets([TopicPartition("absent", 0)])


# --- pause and resume ---------------------------------------------------------------------------------------------


def test_what_is_paused_gives_nothing_until_it_is_resumed(bus: Bus) -> None:
    filled(bus, partitions=2)
    first, second = sorted(tps("t", 2))
    with bus.consumer("t") as consumer:
        assert consumer.paused() == set()
        consumer.pause(first)
        assert consumer.paused() == {first}
        assert by_partition(drain(consumer)) == {1: numbers(10, 1000)}
        assert consumer.position(first) == 0
        consumer.pause(second)
        assert consumer.paused() == {first, second}
        put(bus, "t", b"late", partition=1)
        assert drain(consumer) == []
        consumer.resume(first)
        assert consumer.paused() == {second}
        assert by_partition(drain(consumer)) == {0: numbers(10)}
        consumer.resume(second)
        assert values(drain(consumer)) == [b"late"]
        assert consumer.assignment() == {first, second}


def test_pausing_loses_nothing_that_was_fetched(bus: Bus) -> None:
    filled(bus, count=100, partitions=2)
    first, second = sorted(tps("t", 2))
    with bus.consumer("t") as consumer:
        found = take(consumer, 5)
        consumer.pause(first, second)
        assert drain(consumer) == []
        consumer.resume(first, second)
        found += drain(consumer)
    assert by_partition(found) == {0: numbers(100), 1: numbers(100, 1000)}


def test_pausing_inside_a_loop(bus: Bus) -> None:
    filled(bus, count=20, partitions=2)
    with bus.consumer("t") as consumer:
        found = []
        for message in consumer.messages(timeout=1):
            found.append(message)
            if len(found) == 3:
                paused = TopicPartition("t", message.partition)
                stopped_at = message.offset
                consumer.pause(paused)
        assert max(m.offset for m in found if m.partition == paused.partition) == stopped_at
        consumer.resume(paused)
        found += consumer.messages(timeout=1)
    assert by_partition(found) == {0: numbers(20), 1: numbers(20, 1000)}


def test_a_paused_partition_may_be_sought(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        consumer.pause(TP)
        consumer.seek(TP, 8)
        assert drain(consumer) == []
        consumer.resume(TP)
        assert values(drain(consumer)) == numbers(2, 8)


# --- wakeup and close ---------------------------------------------------------------------------------------------


@pytest.mark.needs("clock")
def test_wakeup_ends_the_next_call_that_blocks(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t")
    with bus.consumer("t") as consumer:
        before = clock.monotonic()
        consumer.wakeup()
        assert consumer.poll(timeout=60) == []
        consumer.wakeup()
        assert list(consumer.messages(timeout=60)) == []
        consumer.wakeup()
        assert list(consumer) == []
        consumer.wakeup()
        assert consumer.poll_columns(timeout=60) == []
        assert clock.monotonic() - before < 60
        assert consumer.poll(timeout=60) == []
        assert clock.monotonic() - before >= 60
        put(bus, "t", b"x")
        assert values(consumer.poll(timeout=60)) == [b"x"]


def blocked(
    bus: Bus, call: Callable[[Consumer, threading.Event], Any], name: str, **options: Any
) -> tuple[Consumer, Any]:
    """A consumer of one message, in a thread that is blocked, or will be at once, after it got that."""
    put(bus, bus.topic(name), b"0")
    consumer = bus.consumer(name, **options)
    got = threading.Event()
    running = beside(lambda: call(consumer, got))
    assert got.wait(timeout=PATIENCE)
    return consumer, running


def iterate(consumer: Consumer, got: threading.Event) -> list[Any]:
    """All values that iteration gives before it ends."""
    found = []
    for message in consumer:
        found.append(message.value)
        got.set()
    return found


def poll_twice(consumer: Consumer, got: threading.Event) -> list[Any]:
    """What a long poll gives after one that gave something."""
    assert values(consumer.poll(timeout=PATIENCE)) == [b"0"]
    got.set()
    return consumer.poll(timeout=5 * PATIENCE)


@pytest.mark.parametrize("group", [None, "g"])
def test_wakeup_from_another_thread(open_bus: OpenBus, group: str | None) -> None:
    bus = open_bus(clock=None)
    consumer, running = blocked(bus, iterate, "t", group=group)
    consumer.wakeup()
    assert running.result(timeout=PATIENCE) == [b"0"]
    consumer.close()
    consumer, running = blocked(bus, poll_twice, "u", group=group)
    consumer.wakeup()
    assert running.result(timeout=PATIENCE) == []
    put(bus, "u", b"more")
    assert values(consumer.poll(timeout=PATIENCE)) == [b"more"]
    consumer.close()


@pytest.mark.parametrize("group", [None, "g"])
def test_close_from_another_thread_ends_iteration(open_bus: OpenBus, group: str | None) -> None:
    bus = open_bus(clock=None)
    consumer, running = blocked(bus, iterate, "t", group=group)
    consumer.close()
    assert running.result(timeout=PATIENCE) == [b"0"]
    with pytest.raises(errors.ClosedError):
        consumer.poll()


def test_close_from_another_thread_ends_a_poll(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    consumer, running = blocked(bus, poll_twice, "t")
    consumer.close()
    with suppress(errors.ClosedError):  # it had not begun to block
        assert running.result(timeout=PATIENCE) == []


def test_a_closed_consumer_says_so(bus: Bus) -> None:
    filled(bus)
    consumer = bus.consumer("t", group="g")
    consumer.close()
    consumer.close()
    for call in (
        consumer.poll,
        consumer.poll_columns,
        lambda: consumer.subscribe("t"),
        consumer.unsubscribe,
        lambda: consumer.assign([TP]),
        lambda: consumer.position(TP),
        lambda: consumer.seek(TP, 0),
        consumer.seek_to_end,
        consumer.commit,
        lambda: consumer.committed(TP),
        consumer.lag,
        lambda: consumer.pause(TP),
        lambda: consumer.end_offsets([TP]),
        lambda: consumer.offsets_for_times({TP: 0}),
        lambda: consumer.wait_assigned(timeout=0),
    ):
        with pytest.raises(errors.ClosedError):
            call()


def test_leaving_the_block_closes(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        pass
    with pytest.raises(errors.ClosedError):
        consumer.poll()


# --- start --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "g"])
def test_earliest_begins_at_the_beginning(bus: Bus, group: str | None) -> None:
    topic = filled(bus, partitions=2)
    topic.truncate_before(0, 3)
    with bus.consumer("t", group=group, start="earliest") as consumer:
        assert by_partition(drain(consumer)) == {0: numbers(7, 3), 1: numbers(10, 1000)}


@pytest.mark.parametrize("group", [None, "g"])
def test_latest_begins_with_what_is_sent_once_the_consumer_is_there(bus: Bus, group: str | None) -> None:
    filled(bus, partitions=2)
    with bus.consumer("t", group=group, start="latest") as consumer:
        put(bus, "t", b"a", partition=0)
        put(bus, "t", b"b", partition=1)
        assert [consumer.position(tp) for tp in sorted(tps("t", 2))] == [10, 10]
        assert by_partition(take(consumer, 2)) == {0: [b"a"], 1: [b"b"]}


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize(
    ("start", "expected"),
    [(T0 - 1, 0), (T0, 0), (T0 + 1, 1), (T0 + 1000, 1), (T0 + 1001, 2), (T0 + 9000, 9), (T0 + 9001, 10)],
)
def test_a_moment_begins_with_the_first_message_of_then_or_later(
    bus: Bus, group: str | None, start: int, expected: int
) -> None:
    topic = bus.topic("t", segment_bytes=200)
    with bus.producer() as producer:
        for number in range(10):
            producer.send(topic, b"%d" % number, timestamp=T0 + number * 1000).result(timeout=PATIENCE)
    with bus.consumer("t", group=group, start=moment(start)) as consumer:
        put(bus, topic, b"10", timestamp=T0)
        assert values(drain(consumer)) == numbers(11 - expected, expected)


@pytest.mark.parametrize(
    "start", ["first", "", None, 0, 1.5, datetime(2024, 1, 1, tzinfo=UTC).replace(tzinfo=None), b"latest"], ids=repr
)
def test_a_start_that_means_nothing_is_refused(bus: Bus, start: Any) -> None:
    bus.topic("t")
    for group in (None, "g"):
        with pytest.raises(errors.ConfigError, match="start"):
            bus.consumer("t", group=group, start=start)
    assert bus.groups() == []


# --- out of range -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 3, 11, 1000])
@pytest.mark.parametrize("how", ["poll", "poll_columns", "iteration"])
def test_out_of_range_raises_by_default(bus: Bus, position: int, how: str) -> None:
    filled(bus).truncate_before(0, 4)
    calls: dict[str, Callable[[Consumer], Any]] = {
        "poll": lambda consumer: consumer.poll(timeout=1),
        "poll_columns": lambda consumer: consumer.poll_columns(timeout=1),
        "iteration": lambda consumer: list(consumer.messages(timeout=1)),
    }
    with bus.consumer("t") as consumer:
        consumer.seek(TP, position)
        with pytest.raises(errors.OffsetOutOfRangeError) as caught:
            calls[how](consumer)
        assert str(position) in str(caught.value)
        consumer.seek(TP, 8)
        assert values(drain(consumer)) == numbers(2, 8)


@pytest.mark.parametrize("position", [0, 3, 11, 1000])
@pytest.mark.parametrize(("rule", "expected"), [("earliest", numbers(6, 4)), ("latest", [])])
def test_or_goes_where_it_is_told(bus: Bus, position: int, rule: str, expected: list[bytes]) -> None:
    filled(bus).truncate_before(0, 4)
    with bus.consumer("t", out_of_range=rule) as consumer:
        consumer.seek(TP, position)
        assert values(drain(consumer)) == expected
        put(bus, "t", b"late")
        assert values(drain(consumer)) == [b"late"]


@pytest.mark.parametrize("position", [4, 7, 10])
def test_the_beginning_and_the_end_are_in_range(bus: Bus, position: int) -> None:
    filled(bus).truncate_before(0, 4)
    with bus.consumer("t") as consumer:
        consumer.seek(TP, position)
        assert values(drain(consumer)) == numbers(10 - position, position)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("raise", None), ("earliest", numbers(4, 6)), ("latest", [])],
    ids=lambda value: str(value)[:8],
)
def test_a_committed_offset_that_is_gone(bus: Bus, rule: str, expected: list[bytes] | None) -> None:
    topic = filled(bus)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.commit({TP: 2})
    topic.truncate_before(0, 6)
    with bus.consumer("t", group="g", out_of_range=rule) as consumer:
        if expected is None:
            with pytest.raises(errors.OffsetOutOfRangeError):
                consumer.poll(timeout=1)
        else:
            assert values(drain(consumer)) == expected


def test_a_consumer_that_is_overtaken(bus: Bus) -> None:
    topic = filled(bus, count=3000)
    with bus.consumer("t", out_of_range="earliest") as patient, bus.consumer("t") as strict:
        assert offsets(take(patient, 10)) == offsets(take(strict, 10)) == list(range(10))
        topic.truncate_before(0, 2900)
        found = [offset for offset in offsets(drain(patient)) if offset >= 2900]
        assert found == list(range(2900, 3000))
        with suppress(errors.OffsetOutOfRangeError):
            assert offsets(drain(strict)) == list(range(10, 3000))  # all of it was fetched already


def test_a_beginning_that_moves_disturbs_nobody(bus: Bus) -> None:
    topic = bus.topic("t", segment_bytes=400)
    put_apart(bus, topic, *numbers(300), timestamp=T0)

    def truncate() -> None:
        for offset in range(1, 300):
            topic.truncate_before(0, offset)

    with bus.consumer("t", out_of_range="earliest") as consumer:
        truncating = beside(truncate)
        try:
            while not truncating.done():
                assert offsets(topic.read())[-1:] == [299]
                assert offsets(topic.read(since_ms=T0))[-1:] == [299]
                assert isinstance(consumer.offsets_for_times({TP: T0})[TP], int)
                consumer.seek_to_beginning()
                assert consumer.poll(timeout=1)
        finally:
            truncating.result(timeout=PATIENCE)
        assert consumer.offsets_for_times({TP: T0}) == {TP: 299}


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"auto_commit": "yes"},
        {"auto_commit_interval_ms": -1},
        {"out_of_range": "ignore"},
        {"isolation": "read_uncommitted"},
        {"assignor": "random"},
        {"max_poll_interval_ms": 0},
        {"max_poll_messages": 0},
        {"max_poll_messages": "10"},
        {"member_timeout_ms": -1},
        {"on_assign": 5},
    ],
    ids=str,
)
def test_an_option_that_means_nothing_is_refused(bus: Bus, options: dict[str, Any]) -> None:
    bus.topic("t")
    with pytest.raises(errors.ConfigError, match=next(iter(options))):
        bus.consumer("t", group="g", **options)
    assert bus.groups() == []


@pytest.mark.parametrize(
    "options",
    [
        {"isolation": "read_committed"},
        {"assignor": "range"},
        {"assignor": "roundrobin"},
        {"assignor": "sticky"},
        {"max_poll_interval_ms": 1000},
        {"auto_commit_interval_ms": 0},
    ],
    ids=str,
)
def test_an_option_changes_no_message(bus: Bus, options: dict[str, Any]) -> None:
    filled(bus, partitions=2)
    with bus.consumer("t", group="g", **options) as consumer:
        assert by_partition(drain(consumer)) == {0: numbers(10), 1: numbers(10, 1000)}


# --- reading far behind and at the end -------------------------------------------------------------------------------


def test_a_consumer_keeps_up_with_batches_of_every_size(bus: Bus) -> None:
    topic = bus.topic("t", segment_bytes=1000)
    with bus.consumer("t", max_poll_messages=13) as consumer:
        found = []
        sent = 0
        for count in (1, 2, 50, 1, 200, 3):
            put(bus, topic, *numbers(count, sent))
            put_apart(bus, topic, *numbers(2, sent + count))
            sent += count + 2
            found += take(consumer, count + 2)
        assert values(found) == numbers(sent)


def test_latest_holds_for_what_is_subscribed_to_after_opening(bus: Bus) -> None:
    topic = bus.topic("t")
    put(bus, topic, *numbers(3))
    with bus.consumer(start="latest") as consumer:
        consumer.subscribe("t")
        put(bus, topic, b"new")
        assert values(take(consumer, 1)) == [b"new"]
