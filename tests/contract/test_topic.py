"""API.md, "Topic": read and its filters, offsets, placement, growing, truncating."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from streamlite import Bus, TopicPartition, errors
from streamlite.testing.clock import VirtualClock

from .helpers import PATIENCE, T0, by_partition, drain, numbers, offsets, pairs, put, put_apart, take, values

OpenBus = Callable[..., Bus]

MURMUR2 = {
    # The published vectors of Kafka's own UtilsTest.testMurmur2.
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def test_a_topic_says_what_it_is(bus: Bus) -> None:
    topic = bus.topic("orders", partitions=3)
    assert topic.name == "orders"
    assert topic.partitions == 3
    assert topic.bus is bus
    assert "orders" in repr(topic)


# --- read ---------------------------------------------------------------------------------------------------------


def test_an_empty_topic_reads_as_nothing(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    assert list(topic.read()) == []
    assert list(topic.read(partition=2)) == []
    assert list(topic.read(since_ms=0, until_ms=2 * T0)) == []
    assert list(topic.read_columns()) == []


def test_read_gives_everything_in_order_per_partition_and_ends(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    for partition in range(3):
        put(bus, topic, *numbers(50, partition * 100), partition=partition)
    messages = list(topic.read())
    assert by_partition(messages) == {partition: numbers(50, partition * 100) for partition in range(3)}
    for partition in range(3):
        assert [m.offset for m in messages if m.partition == partition] == list(range(50))
    assert {message.topic for message in messages} == {"t"}
    assert list(topic.read()) == messages


def test_read_gives_the_whole_message(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    put(bus, topic, b"value", key=b"key", partition=1, timestamp=T0 - 5, headers=[("a", b"1"), ("b", None)])
    (message,) = topic.read()
    assert (message.topic, message.partition, message.offset) == ("t", 1, 0)
    assert (message.timestamp, message.key, message.value) == (T0 - 5, b"key", b"value")
    assert pairs(message) == [("a", b"1"), ("b", None)]


def test_read_of_one_partition(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    put(bus, topic, *numbers(5), partition=0)
    put(bus, topic, *numbers(5, 5), partition=1)
    assert values(topic.read(partition=1)) == numbers(5, 5)
    assert values(topic.read(partition=0)) == numbers(5)


@pytest.mark.parametrize("apart", [False, True], ids=["one batch", "a batch each"])
@pytest.mark.parametrize("segment_bytes", [1, 300, 10**6])
def test_start_and_stop_are_offsets(bus: Bus, apart: bool, segment_bytes: int) -> None:
    topic = bus.topic("t", segment_bytes=segment_bytes)
    (put_apart if apart else put)(bus, topic, *numbers(30))
    for start in (None, 0, 1, 7, 15, 29, 30):
        for stop in (None, 0, 1, 8, 15, 30, 31, 1000):
            expected = numbers(30)[slice(start, stop)]
            assert values(topic.read(partition=0, start=start, stop=stop)) == expected, (start, stop)


def test_start_and_stop_need_a_partition(bus: Bus) -> None:
    topic = bus.topic("t")
    put(bus, topic, *numbers(3))
    for bounds in ({"start": 1}, {"stop": 1}, {"start": 0, "stop": 2}):
        with pytest.raises(errors.ConfigError, match="partition"):
            list(topic.read(**bounds))


@pytest.mark.parametrize(
    "bounds",
    [
        {"partition": 0, "start": "1"},
        {"partition": 0, "stop": 1.5},
        {"since_ms": "yesterday"},
        {"until_ms": b"1"},
    ],
    ids=str,
)
def test_bounds_that_mean_nothing_are_refused(bus: Bus, bounds: dict[str, Any]) -> None:
    topic = bus.topic("t")
    put(bus, topic, *numbers(3))
    with pytest.raises(errors.ConfigError):
        list(topic.read(**bounds))


@pytest.mark.parametrize("partition", [2, 1000, -1])
def test_a_partition_that_is_not_there(bus: Bus, partition: int) -> None:
    topic = bus.topic("t", partitions=2)
    with pytest.raises(errors.UnknownTopicError):
        list(topic.read(partition=partition))
    with pytest.raises(errors.UnknownTopicError):
        list(topic.read_columns(partition=partition))
    with pytest.raises(errors.UnknownTopicError):
        topic.truncate_before(partition, 0)


TIMES = [T0 + ms for ms in (50, 10, 90, 30, 70, 30, 0, 100, 20, 60, 40, 80)]


@pytest.mark.parametrize("how", ["one batch", "a batch each"])
@pytest.mark.parametrize("segment_bytes", [1, 300, 10**6])
def test_since_and_until_give_exactly_the_messages_between(bus: Bus, how: str, segment_bytes: int) -> None:
    topic = bus.topic("t", segment_bytes=segment_bytes)
    sent = numbers(len(TIMES))
    with bus.producer() as producer:
        if how == "one batch":
            producer.send_many(topic, sent, timestamps=TIMES)
        else:
            for value, timestamp in zip(sent, TIMES, strict=True):
                producer.send(topic, value, timestamp=timestamp).result(timeout=PATIENCE)
    for since in (None, T0 - 1, T0, T0 + 30, T0 + 31, T0 + 100, T0 + 101):
        for until in (None, T0, T0 + 1, T0 + 30, T0 + 31, T0 + 100, T0 + 101):
            expected = [
                value
                for value, timestamp in zip(sent, TIMES, strict=True)
                if (since is None or since <= timestamp) and (until is None or timestamp < until)
            ]
            assert values(topic.read(since_ms=since, until_ms=until)) == expected, (since, until)


def test_times_and_offsets_together(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    for partition in (0, 1):
        with bus.producer() as producer:
            producer.send_many(topic, numbers(10), partition=partition, timestamps=[T0 + i for i in range(10)])
    found = list(topic.read(partition=1, start=2, stop=8, since_ms=T0 + 4, until_ms=T0 + 9))
    assert values(found) == numbers(4, 4)
    assert {message.partition for message in found} == {1}
    assert by_partition(topic.read(since_ms=T0 + 8)) == {0: numbers(2, 8), 1: numbers(2, 8)}


def test_read_takes_part_in_no_group_and_commits_nothing(bus: Bus) -> None:
    topic = bus.topic("t")
    put(bus, topic, *numbers(3))
    list(topic.read())
    assert bus.groups() == []
    with bus.consumer("t", group="g") as consumer:
        assert values(drain(consumer)) == numbers(3)


@pytest.mark.needs("clock")
def test_read_and_ends_see_every_earlier_send_of_this_bus(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t", partitions=2)
    before = clock.monotonic()
    with bus.producer(linger_ms=60_000) as producer:
        for count in (3, 6, 9):
            for value in numbers(3, count - 3):
                producer.send(topic, value, partition=1)
            assert values(topic.read()) == numbers(count)
        producer.send(topic, b"9", partition=1)
        assert topic.end_offsets() == {TopicPartition("t", 0): 0, TopicPartition("t", 1): 10}
        producer.send_many(topic, numbers(10, 10), partition=1)
        assert values(topic.read(partition=1)) == numbers(20)
    assert clock.monotonic() - before < 60


def test_read_ends_though_more_is_sent_meanwhile(bus: Bus) -> None:
    topic = bus.topic("t", segment_bytes=200)
    put(bus, topic, *numbers(20))
    found = []
    with bus.producer() as producer:
        for message in topic.read():
            found.append(message.value)
            assert len(found) <= 20
            producer.send(topic, b"more").result(timeout=PATIENCE)
    assert found == numbers(20)


@pytest.mark.parametrize("segment_bytes", [1, 10**6])
def test_read_goes_on_though_what_it_comes_to_is_truncated(bus: Bus, segment_bytes: int) -> None:
    topic = bus.topic("t", segment_bytes=segment_bytes)
    put_apart(bus, topic, *numbers(30))
    reading = topic.read()
    found = [next(reading).offset for _ in range(3)]
    topic.truncate_before(0, 25)
    found += offsets(reading)
    assert found == sorted(set(found))
    assert found[:3] == [0, 1, 2]
    assert found[-5:] == [25, 26, 27, 28, 29]


def test_columns_hold_the_same_as_messages(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2, segment_bytes=500)
    with bus.producer() as producer:
        for partition in (0, 1):
            for number in range(30):
                headers = {"n": b"%d" % number} if number % 3 == 0 else None
                key = None if number % 2 else b"k%d" % number
                value = None if number % 7 == 6 else b"v%d" % number
                producer.send(topic, value, key=key, partition=partition, timestamp=T0 + number, headers=headers)
    for bounds in ({}, {"partition": 1, "start": 3, "stop": 17}, {"since_ms": T0 + 5, "until_ms": T0 + 9}):
        rows = []
        for columns in topic.read_columns(**bounds):
            assert columns.topic == "t"
            for offset, timestamp, key, value, headers in zip(
                columns.offsets, columns.timestamps, columns.keys, columns.values, columns.headers, strict=True
            ):
                rows.append((columns.partition, offset, timestamp, key, value, [(n, v) for n, v in headers]))
        expected = [(m.partition, m.offset, m.timestamp, m.key, m.value, pairs(m)) for m in topic.read(**bounds)]
        assert sorted(rows) == sorted(expected)
        assert [row for row in rows if row[0] == 1] == [row for row in expected if row[0] == 1]


# --- offsets ------------------------------------------------------------------------------------------------------


def test_ends_and_beginnings(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    nothing = {TopicPartition("t", partition): 0 for partition in range(3)}
    assert topic.end_offsets() == nothing
    assert topic.beginning_offsets() == nothing
    put(bus, topic, *numbers(7), partition=1)
    assert topic.end_offsets() == nothing | {TopicPartition("t", 1): 7}
    assert topic.beginning_offsets() == nothing


@pytest.mark.needs("gapless")
def test_offsets_begin_at_zero_and_have_no_gaps(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2, segment_bytes=300)
    with bus.producer() as producer:
        for number in range(100):
            producer.send(topic, b"%d" % number, key=b"%d" % (number % 9))
            if number % 10 == 0:
                producer.send_many(topic, numbers(7), keys=numbers(7))
            if number % 17 == 0:
                producer.flush()
    ends = topic.end_offsets()
    assert sum(ends.values()) == 170
    for tp, end in ends.items():
        assert offsets(topic.read(partition=tp.partition)) == list(range(end))


# --- placement ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitioner", ["xxh3", "murmur2"])
def test_partition_for_is_where_send_puts_a_key(bus: Bus, partitioner: str) -> None:
    topic = bus.topic("t", partitions=7, partitioner=partitioner)
    keys: list[Any] = [b"", b"a", b"\xff\x00", "żółć", "漢字" * 50, *(f"key-{n}" for n in range(60))]
    for key in keys:
        (place,) = put(bus, topic, b"x", key=key)
        assert place.partition == topic.partition_for(key)
    with bus.producer() as producer:
        places = producer.send_many(topic, [b"x"] * len(keys), keys=keys).result(timeout=PATIENCE)
    assert [place.partition for place in places] == [topic.partition_for(key) for key in keys]
    assert {topic.partition_for(key) for key in keys} == set(range(7))


@pytest.mark.parametrize("partitioner", ["xxh3", "murmur2"])
def test_text_is_placed_as_its_utf8(bus: Bus, partitioner: str) -> None:
    topic = bus.topic("t", partitions=100, partitioner=partitioner)
    for key in ("", "a", "żółć", "漢字"):
        assert topic.partition_for(key) == topic.partition_for(key.encode())


def test_keys_spread_over_the_partitions(bus: Bus) -> None:
    topic = bus.topic("t", partitions=8)
    share = Counter(topic.partition_for(b"key-%d" % number) for number in range(8000))
    assert set(share) == set(range(8))
    assert max(share.values()) < 1200
    assert min(share.values()) > 800


@pytest.mark.parametrize("partitions", [1, 3, 10, 61])
def test_murmur2_is_kafkas(bus: Bus, partitions: int) -> None:
    topic = bus.topic("t", partitions=partitions, partitioner="murmur2")
    for key, hashed in MURMUR2.items():
        assert topic.partition_for(key) == (hashed & 0x7FFFFFFF) % partitions


@pytest.mark.needs("durable")
def test_a_key_keeps_its_partition_over_reopening(open_bus: OpenBus) -> None:
    keys = numbers(50)
    with open_bus() as bus:
        before = [bus.topic("t", partitions=5).partition_for(key) for key in keys]
    with open_bus() as bus:
        assert [bus.topic("t").partition_for(key) for key in keys] == before


# --- growing ------------------------------------------------------------------------------------------------------


def test_partitions_are_added_and_nothing_else_changes(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    put(bus, topic, *numbers(5), partition=1)
    topic.increase_partitions(4)
    assert topic.partitions == 4
    assert bus.topic("t").partitions == 4
    assert values(topic.read()) == numbers(5)
    assert topic.end_offsets() == {TopicPartition("t", n): 5 if n == 1 else 0 for n in range(4)}
    assert put(bus, topic, b"x", partition=3)[0].offset == 0
    places = {topic.partition_for(b"%d" % number) for number in range(200)}
    assert places == set(range(4))
    assert {put(bus, topic, b"x", key=b"%d" % n)[0].partition for n in range(50)} == set(range(4))


def test_a_producer_that_is_there_sends_to_partitions_that_appear(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        producer.send(topic, b"0").result(timeout=PATIENCE)
        producer.send_many(topic, [b"1"]).result(timeout=PATIENCE)
        for count in (2, 3, 4):
            topic.increase_partitions(count)
            for offset, which in ((0, "t"), (2, topic)):
                (place,) = producer.send_many(which, [b"x"], partition=count - 1).result(timeout=PATIENCE)
                assert (place.partition, place.offset) == (count - 1, offset)
                place = producer.send(which, b"x", partition=count - 1).result(timeout=PATIENCE)
                assert (place.partition, place.offset) == (count - 1, offset + 1)
            with pytest.raises(errors.UnknownTopicError):
                producer.send(topic, b"x", partition=count)
            keys = numbers(50)
            places = producer.send_many(topic, keys, keys=keys).result(timeout=PATIENCE)
            assert [place.partition for place in places] == [topic.partition_for(key) for key in keys]
            places = [producer.send(topic, key, key=key).result(timeout=PATIENCE) for key in keys]
            assert [place.partition for place in places] == [topic.partition_for(key) for key in keys]


@pytest.mark.needs("durable")
def test_partitions_added_are_there_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        topic = bus.topic("t")
        topic.increase_partitions(3)
        put(bus, topic, b"x", partition=2)
    with open_bus() as bus:
        assert bus.topic("t").partitions == 3
        assert [message.partition for message in bus.topic("t").read()] == [2]


@pytest.mark.parametrize("count", [0, -1, 1, 2, "5", 4.0, None, True], ids=repr)
def test_partitions_are_never_taken_away(bus: Bus, count: Any) -> None:
    topic = bus.topic("t", partitions=3)
    with pytest.raises(errors.ConfigError):
        topic.increase_partitions(count)
    assert bus.topic("t").partitions == 3


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_consumer_gets_what_is_in_partitions_that_appear(bus: Bus, group: str | None, start: str) -> None:
    topic = bus.topic("t")
    with bus.consumer("t", group=group, start=start) as consumer:
        drain(consumer)
        topic.increase_partitions(3)
        put(bus, topic, b"1", partition=1)
        put(bus, topic, b"2", partition=2)
        assert sorted(values(take(consumer, 2))) == [b"1", b"2"]
        assert len(consumer.assignment()) == 3


# --- truncating ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment_bytes", [1, 300, 10**6])
@pytest.mark.parametrize("apart", [False, True], ids=["one batch", "a batch each"])
def test_truncating_takes_what_is_before(bus: Bus, apart: bool, segment_bytes: int) -> None:
    topic = bus.topic("t", partitions=2, segment_bytes=segment_bytes)
    (put_apart if apart else put)(bus, topic, *numbers(30), partition=1)
    put(bus, topic, b"other", partition=0)
    for before in (1, 12, 13, 29, 30):
        topic.truncate_before(1, before)
        assert topic.beginning_offsets() == {TopicPartition("t", 0): 0, TopicPartition("t", 1): before}
        assert topic.end_offsets() == {TopicPartition("t", 0): 1, TopicPartition("t", 1): 30}
        assert values(topic.read(partition=1)) == numbers(30)[before:]
    assert values(topic.read()) == [b"other"]
    assert put(bus, topic, b"next", partition=1)[0].offset == 30
    assert offsets(topic.read(partition=1)) == [30]


def test_truncating_brings_nothing_back(bus: Bus) -> None:
    topic = bus.topic("t")
    put(bus, topic, *numbers(10))
    topic.truncate_before(0, 6)
    topic.truncate_before(0, 2)
    assert topic.beginning_offsets() == {TopicPartition("t", 0): 6}
    assert values(topic.read()) == numbers(4, 6)


def test_truncating_needs_an_offset(bus: Bus) -> None:
    topic = bus.topic("t")
    put(bus, topic, *numbers(10))
    for offset in (-1, "3", 1.5, None):
        with pytest.raises(errors.StreamliteError):
            topic.truncate_before(0, offset)  # type: ignore[arg-type]
    assert topic.beginning_offsets() == {TopicPartition("t", 0): 0}


@pytest.mark.needs("durable")
def test_what_was_truncated_stays_away_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        topic = bus.topic("t", partitions=2)
        put(bus, topic, *numbers(10), partition=0)
        put(bus, topic, *numbers(10), partition=1)
        topic.truncate_before(0, 4)
        topic.truncate_before(1, 10)
    with open_bus() as bus:
        topic = bus.topic("t")
        assert topic.beginning_offsets() == {TopicPartition("t", 0): 4, TopicPartition("t", 1): 10}
        assert topic.end_offsets() == {TopicPartition("t", 0): 10, TopicPartition("t", 1): 10}
        assert values(topic.read()) == numbers(6, 4)
        assert put(bus, topic, b"next", partition=1)[0].offset == 10
