"""API.md, "topic setting": `cleanup="compact"` at `bus.maintain()`, as in Kafka.

The last value of each key stays, offsets and order stay, tombstones stay for `delete_retention_ms`. What was written
last (the active segment) is left alone, so these tests end what they write with a message of a key of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from streamlite import Bus, Message, Topic, TopicPartition
from streamlite.testing.clock import VirtualClock

from .helpers import PATIENCE, by_partition, committed, drain, numbers, offsets, pairs, put, put_apart, take, values

OpenBus = Callable[..., Bus]

pytestmark = pytest.mark.needs("clock", "maintenance")

TP = TopicPartition("t", 0)
END = b"~end"


def compacted(bus: Bus, **settings: Any) -> Topic:
    """A compacted topic `t` in which every batch has a segment of its own."""
    return bus.topic("t", **{"cleanup": "compact", "segment_bytes": 1, **settings})


def write(bus: Bus, topic: Topic, *rows: tuple[Any, Any]) -> None:
    """Keys and values, each in a batch of its own, and the end."""
    with bus.producer() as producer:
        for key, value in [*rows, (END, b"")]:
            producer.send(topic, value, key=key).result(timeout=PATIENCE)


def found(messages: Iterable[Message]) -> list[tuple[int, Any, Any]]:
    """Offsets, keys and values, without the ends."""
    return [(message.offset, message.key, message.value) for message in messages if message.key != END]


def test_nothing_is_compacted_before_its_time_or_unasked(bus: Bus) -> None:
    topic = bus.topic("t", segment_bytes=1)
    write(bus, topic, (b"a", b"1"), (b"a", b"2"))
    bus.maintain()
    assert found(topic.read()) == [(0, b"a", b"1"), (1, b"a", b"2")]


def test_the_last_value_of_each_key_stays_where_it_was(bus: Bus) -> None:
    topic = compacted(bus)
    write(bus, topic, (b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"c", b"4"), (b"b", b"5"), (b"a", b"6"))
    bus.maintain()
    assert found(topic.read()) == [(3, b"c", b"4"), (4, b"b", b"5"), (5, b"a", b"6")]
    assert topic.end_offsets() == {TP: 7}
    assert put(bus, topic, b"7", key=b"c")[0].offset == 7


def test_maintaining_again_changes_nothing(bus: Bus) -> None:
    topic = compacted(bus)
    write(bus, topic, *((b"%d" % (number % 3), b"%d" % number) for number in range(10)))
    bus.maintain()
    once = found(topic.read())
    bus.maintain()
    bus.maintain()
    assert found(topic.read()) == once
    assert [value for _, _, value in once] == numbers(3, 7)


def test_what_comes_later_is_compacted_with_what_was(bus: Bus) -> None:
    topic = compacted(bus)
    last: dict[bytes, tuple[int, bytes, bytes]] = {}
    offset = 0
    for turn in range(5):
        rows = [(b"%d" % (number * turn % 7), b"%d-%d" % (turn, number)) for number in range(10)]
        write(bus, topic, *rows)
        for key, value in rows:
            last[key] = (offset, key, value)
            offset += 1
        offset += 1
        bus.maintain()
        assert found(topic.read()) == sorted(last.values())


def test_empty_keys_and_keys_of_all_kinds_are_keys(bus: Bus) -> None:
    topic = compacted(bus)
    keys = ["", "żółć", b"\x00", b"\xff" * 300, "k"]
    for turn in range(3):
        write(bus, topic, *((key, b"%d" % turn) for key in keys))
    bus.maintain()
    kept = {key: value for _, key, value in found(topic.read())}
    assert kept == {key.encode() if isinstance(key, str) else key: b"2" for key in keys}
    assert len(found(topic.read())) == len(keys)


def test_empty_values_are_no_tombstones(bus: Bus, clock: VirtualClock) -> None:
    topic = compacted(bus, delete_retention_ms=0)
    write(bus, topic, (b"a", b"1"), (b"a", b""))
    for _ in range(3):
        bus.maintain()
        clock.advance(10)
        write(bus, topic)
    assert found(topic.read()) == [(1, b"a", b"")]


def test_headers_and_timestamps_stay(bus: Bus) -> None:
    topic = compacted(bus)
    with bus.producer() as producer:
        for number in range(6):
            producer.send(
                topic,
                b"%d" % number,
                key=b"%d" % (number % 2),
                timestamp=1000 - number,
                headers=[("n", b"%d" % number), ("n", None)],
            ).result(timeout=PATIENCE)
    write(bus, topic)
    bus.maintain()
    kept = [message for message in topic.read() if message.key != END]
    assert [(m.offset, m.timestamp, pairs(m)) for m in kept] == [
        (4, 996, [("n", b"4"), ("n", None)]),
        (5, 995, [("n", b"5"), ("n", None)]),
    ]
    assert offsets(topic.read(since_ms=996, until_ms=997)) == [4]


def test_a_tombstone_stays_for_its_time_and_goes(bus: Bus, clock: VirtualClock) -> None:
    topic = compacted(bus, delete_retention_ms=60_000)
    write(bus, topic, (b"a", b"1"), (b"b", b"2"), (b"a", None))
    bus.maintain()
    assert found(topic.read()) == [(1, b"b", b"2"), (2, b"a", None)]
    clock.advance(50)
    write(bus, topic)
    bus.maintain()
    assert found(topic.read()) == [(1, b"b", b"2"), (2, b"a", None)]
    clock.advance(60)
    write(bus, topic)
    bus.maintain()
    bus.maintain()
    assert found(topic.read()) == [(1, b"b", b"2")]
    assert list(topic.end_offsets().values()) == [6]


def test_a_tombstone_goes_though_nothing_is_written_any_more(bus: Bus, clock: VirtualClock) -> None:
    topic = compacted(bus, delete_retention_ms=60_000)
    write(bus, topic, (b"a", b"1"), (b"a", None))
    bus.maintain()
    clock.advance(61)
    bus.maintain()
    assert found(topic.read()) == []


def test_a_key_may_come_back_after_its_tombstone(bus: Bus, clock: VirtualClock) -> None:
    topic = compacted(bus, delete_retention_ms=0)
    write(bus, topic, (b"a", b"1"), (b"a", None), (b"a", b"3"))
    bus.maintain()
    clock.advance(1)
    bus.maintain()
    assert found(topic.read()) == [(2, b"a", b"3")]


@pytest.mark.parametrize("segment_bytes", [1, 500, 5000])
@pytest.mark.parametrize("cleanup", ["compact", "compact,delete"])
def test_compaction_is_what_a_dict_would_be(bus: Bus, segment_bytes: int, cleanup: str) -> None:
    topic = bus.topic("t", partitions=2, cleanup=cleanup, segment_bytes=segment_bytes)
    chance = random.Random(7)
    last: dict[bytes, bytes | None] = {}
    with bus.producer(batch_bytes=300) as producer:
        for turn in range(3):
            for number in range(20 if segment_bytes == 1 else 100):
                key = b"%d" % chance.randrange(9)
                last[key] = value = b"%d-%d" % (turn, number) if chance.random() < 0.9 else None
                producer.send(topic, value, key=key)
                if chance.random() < 0.1:
                    producer.flush()
            producer.flush()
            before = {(message.partition, message.offset): message for message in topic.read()}
            bus.maintain()
            after = list(topic.read())
            assert all(before[message.partition, message.offset] == message for message in after)
            for partition in (0, 1):
                kept = [message.offset for message in after if message.partition == partition]
                assert kept == sorted(set(kept))
            assert {message.key: message.value for message in after} == last
    assert len(after) < sum(topic.end_offsets().values())


@pytest.mark.needs("durable")
def test_what_was_compacted_is_so_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        topic = compacted(bus)
        write(bus, topic, *((b"%d" % (number % 3), b"%d" % number) for number in range(10)))
        bus.maintain()
        expected = found(topic.read())
    for _ in range(2):
        with open_bus() as bus:
            assert found(bus.topic("t").read()) == expected
            assert bus.topic("t").end_offsets() == {TP: 11}
    with open_bus() as bus:
        assert put(bus, "t", b"x", key=b"x")[0].offset == 11
        bus.maintain()
        assert found(bus.topic("t").read()) == [*expected, (11, b"x", b"x")]


# --- readers --------------------------------------------------------------------------------------------------------


def test_a_consumer_reads_over_gaps(bus: Bus) -> None:
    topic = compacted(bus)
    write(bus, topic, *((b"%d" % (number % 2), b"%d" % number) for number in range(20)))
    bus.maintain()
    with bus.consumer("t", group="g") as consumer:
        messages = drain(consumer)
        assert found(messages) == [(18, b"0", b"18"), (19, b"1", b"19")]
        assert consumer.position(TP) == 21
        assert consumer.lag() == {TP: 0}
        consumer.seek(TP, 5)
        assert consumer.position(TP) == 5
        assert offsets(drain(consumer)) == [18, 19, 20]
        consumer.seek(TP, 19)
        assert offsets(consumer.messages(timeout=1)) == [19, 20]
        assert consumer.offsets_for_times({TP: 0}) == {TP: 18}
    assert committed(bus, "t", "g") == 21


def test_bounds_in_gaps_are_fine(bus: Bus) -> None:
    topic = compacted(bus)
    write(bus, topic, *((b"%d" % (number % 2), b"%d" % number) for number in range(20)))
    bus.maintain()
    assert offsets(topic.read(partition=0, start=3)) == [18, 19, 20]
    assert offsets(topic.read(partition=0, start=3, stop=19)) == [18]
    assert offsets(topic.read(partition=0, start=3, stop=9)) == []
    topic.truncate_before(0, 19)
    assert offsets(topic.read()) == [19, 20]


@pytest.mark.parametrize("segment_bytes", [1, 1000])
def test_readers_are_not_disturbed(bus: Bus, segment_bytes: int) -> None:
    topic = compacted(bus, segment_bytes=segment_bytes)
    rows = [(b"%d" % (number % 10), b"%d" % number) for number in range(60)]
    write(bus, topic, *rows)
    with bus.consumer("t") as consumer:
        reading = topic.read()
        read = [next(reading) for _ in range(5)]
        polled = take(consumer, 5)
        bus.maintain()
        write(bus, topic, (b"new", b"later"))
        bus.maintain()
        read += reading
        polled += drain(consumer)
    for messages in (read, polled):
        places = offsets(messages)
        assert places == sorted(set(places))
        assert places[:5] == [0, 1, 2, 3, 4]
        assert set(places[5:]) >= set(range(50, 60))
        last = {message.key: message.value for message in messages}
        assert {key: last[key] for key, _ in rows} == dict(rows)
    assert by_partition(polled)[0][-2] == b"later"


@pytest.mark.parametrize("read_before", [1, 7, 30, 59])
def test_who_reads_while_batches_become_one_gets_each_message_once(bus: Bus, read_before: int) -> None:
    """Compaction packs what stays into larger batches: the one that holds the next message begins before it."""
    topic = bus.topic("t", segment_bytes=300)
    for number in range(60):
        put_apart(bus, topic, b"%d" % number, key=b"k%d" % number)
    reading, columns = topic.read(), topic.read_columns()
    read = [next(reading) for _ in range(read_before)]
    first = [next(columns) for _ in range(read_before)]
    topic.alter(cleanup="compact", segment_bytes=1 << 20)
    bus.maintain()
    read += reading
    assert offsets(read) == list(range(60))
    assert [offset for one in [*first, *columns] for offset in one.offsets] == list(range(60))


def test_a_group_resumes_in_a_gap(bus: Bus) -> None:
    topic = bus.topic("t", segment_bytes=1)  # not compacted in the background while it is read
    write(bus, topic, *((b"%d" % (number % 2), b"%d" % number) for number in range(20)))
    with bus.consumer("t", group="g") as consumer:
        take(consumer, 7)
        consumer.commit()
    topic.alter(cleanup="compact")
    bus.maintain()
    with bus.consumer("t", group="g") as consumer:
        assert consumer.position(TP) == 7
        assert offsets(drain(consumer)) == [18, 19, 20]


def test_each_partition_is_compacted_for_itself(bus: Bus) -> None:
    topic = compacted(bus, partitions=2)
    for partition in (0, 1):
        put_apart(bus, topic, *numbers(5, 100 * partition), key=b"same", partition=partition)
        put(bus, topic, b"", key=END, partition=partition)
    bus.maintain()
    kept = [message for message in topic.read() if message.key != END]
    assert by_partition(kept) == {0: [b"4"], 1: [b"104"]}
    assert values(topic.read(partition=1)) == [b"104", b""]
