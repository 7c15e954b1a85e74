"""API.md, "Consumer" and "Producer": columns out of `poll_columns`, and the same columns into `send_many`."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import msgspec
import pytest

from streamlite import Bus, Columns, Consumer, Message, Topic, TopicPartition, batch, errors
from streamlite.compression import codec
from streamlite.counters import CHANGES
from streamlite.segment import walk_verified

from .helpers import PATIENCE, T0, drain, numbers, put, values

ALL = ("timestamps", "keys", "values", "headers")
Row = tuple[int, bytes | None, bytes | None, tuple[Any, ...]]


class Order(msgspec.Struct):
    id: int


def rows(messages: Iterable[Message]) -> list[Row]:
    """What a copy keeps of each message."""
    return [(m.timestamp, m.key, m.value, tuple((name, data) for name, data in m.headers)) for m in messages]


def polled(consumer: Consumer, most: int = 1000) -> Iterator[Columns]:
    """All that there is, stretch by stretch."""
    while stretches := consumer.poll_columns(timeout=1, max_messages=most):
        yield from stretches


def filled(bus: Bus, name: str = "from", *, partitions: int = 2, count: int = 40, **settings: Any) -> Topic:
    """A topic with something of everything in it: keys and none, tombstones, headers and none, times."""
    topic = bus.topic(name, partitions=partitions, **settings)
    with bus.producer() as producer:
        for partition in range(partitions):
            for start in range(0, count, 10):
                these = range(start, start + 10)
                producer.send_many(
                    topic,
                    [None if number % 7 == 3 else b"v%d" % number for number in these],
                    keys=[None if number % 5 == 2 else b"k%d" % (number % 8) for number in these],
                    partition=partition,
                    timestamps=[T0 + number * 3 for number in these],
                    headers=[{"n": b"%d" % number, "none": None} if start == 20 else None for number in these],
                )
    return topic


def pipe(bus: Bus, topic: Topic | str, into: Topic | str, *, most: int = 1000, **options: Any) -> int:
    """Copy a topic column-wise; how many messages went."""
    count = 0
    with bus.consumer(topic) as consumer, bus.producer() as producer:
        for columns in polled(consumer, most):
            given = {name: columns.partition if value == "same" else value for name, value in options.items()}
            result = producer.send_many(into, columns, **given).result(timeout=PATIENCE)
            assert len(result) == len(columns.offsets)
            assert [place.timestamp for place in result] == list(columns.timestamps)
            count += len(columns.offsets)
    return count


@contextmanager
def nothing_encoded(bus: Bus) -> Iterator[None]:
    """Fails where any column is encoded or made; on the way to producers in another process all are."""
    if type(bus) is not Bus:
        yield
        return
    refuse = mock.Mock(side_effect=AssertionError("a column was encoded or decoded"))
    with (
        mock.patch("streamlite.staging.encode_payload", refuse),
        mock.patch.object(batch, "_decode", refuse),
        mock.patch.object(batch, "_decode_bytes", refuse),
        mock.patch.object(batch, "_decode_headers", refuse),
    ):
        yield


# -- out ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 7, 1000])
@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_columns_are_what_poll_gives(bus: Bus, compression: str, most: int) -> None:
    if compression != "none":
        pytest.importorskip("lz4" if compression == "lz4" else "zstandard")
    filled(bus, compression=compression)
    with bus.consumer("from") as consumer:
        expected = {partition: [m for m in drain(consumer) if m.partition == partition] for partition in (0,)}[0]
    with bus.consumer() as consumer:
        consumer.assign([TopicPartition("from", 0)])
        found = list(polled(consumer, most))
    assert [offset for one in found for offset in one.offsets] == list(range(40))
    read = [
        Message("from", 0, *row)
        for one in found
        for row in zip(one.offsets, one.timestamps, one.keys, one.values, one.headers, strict=True)
    ]
    assert rows(read) == rows(expected)


def test_a_column_that_nobody_asks_for_is_not_made(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("from") as consumer:
        stretches = [*polled(consumer)]
    with nothing_encoded(bus):
        assert sum(len(one.offsets) for one in stretches) == 80
        for one in stretches:
            assert len(one.timestamps) == len(one.offsets)
    assert all(len(one.values) == len(one.offsets) for one in stretches)


def test_poll_and_poll_columns_take_turns_within_a_batch(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        producer.send_many(topic, numbers(100)).result(timeout=PATIENCE)
    found: list[bytes | None] = []
    with bus.consumer("t") as consumer:
        while len(found) < 100:
            found += values(consumer.poll(timeout=1, max_messages=7))
            for one in consumer.poll_columns(timeout=1, max_messages=5):
                found += one.values
    assert found == numbers(100)


def test_columns_are_a_tuple_of_their_fields(bus: Bus) -> None:
    filled(bus, partitions=1)
    with bus.consumer("from") as consumer:
        first, *rest = polled(consumer, 3)
    topic, partition, offsets, timestamps, keys, column, headers = first
    assert (topic, partition, list(offsets)) == ("from", 0, [0, 1, 2])
    assert first[5] is column is first.values
    assert first == Columns(topic, partition, offsets, timestamps, keys, column, headers)
    assert first == (topic, partition, offsets, timestamps, keys, column, headers)
    assert first != rest[0]
    assert pickle.loads(pickle.dumps(rest[0])) == rest[0] == copy.copy(rest[0])  # noqa: S301
    assert repr(first) == "<Columns of 'from' partition 0: 3 messages, offsets 0 to 2>"
    with pytest.raises(AttributeError):
        first.values = []  # type: ignore[misc]
    with pytest.raises(AttributeError):
        _ = first.nothing  # type: ignore[attr-defined]


# -- in again ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [3, 1000], ids=["in parts", "whole"])
@pytest.mark.parametrize("touched", [(), ("values",), ALL], ids=["untouched", "values", "all"])
def test_a_copy_by_columns_keeps_everything(bus: Bus, most: int, touched: tuple[str, ...]) -> None:
    source, copied = filled(bus), bus.topic("to", partitions=2)
    with bus.consumer("from") as consumer, bus.producer() as producer:
        for columns in polled(consumer, most):
            for name in touched:
                getattr(columns, name)
            producer.send_many("to", columns, partition=columns.partition)
    for partition in (0, 1):
        expected, found = (list(one.read(partition=partition)) for one in (source, copied))
        assert rows(found) == rows(expected)
        assert [message.offset for message in found] == list(range(40))


def test_a_whole_batch_for_one_partition_goes_on_as_it_was_read(bus: Bus) -> None:
    filled(bus)
    bus.topic("one")
    bus.topic("two", partitions=2)
    with nothing_encoded(bus):
        assert pipe(bus, "from", "one") == 80
        assert pipe(bus, "from", "two", partition="same") == 80
    assert sorted(map(str, rows(bus.topic("one").read()))) == sorted(map(str, rows(bus.topic("from").read())))


def test_batches_without_keys_go_on_whole_and_spread(bus: Bus) -> None:
    topic = bus.topic("from", partitions=3)
    with bus.producer() as producer:
        for _ in range(12):
            producer.send_many(topic, numbers(5))
    to = bus.topic("to", partitions=3)
    with nothing_encoded(bus):
        assert pipe(bus, "from", "to") == 60
    assert sorted(values(to.read())) == sorted(numbers(5) * 12)
    assert set(to.end_offsets().values()) != {0, 60}, "one partition got all of it"


def test_keys_are_placed_anew_where_there_are_several_partitions(bus: Bus) -> None:
    source, to = filled(bus), bus.topic("to", partitions=5)
    assert pipe(bus, "from", "to") == 80
    assert sorted(map(str, rows(to.read()))) == sorted(map(str, rows(source.read())))
    for message in to.read():
        if message.key is not None:
            assert message.partition == to.partition_for(message.key)


@pytest.mark.parametrize(("of", "to"), [("lz4", "none"), ("none", "lz4"), ("lz4", "lz4"), ("zstd", "lz4")])
def test_a_copy_is_compressed_as_its_own_topic_says(bus: Bus, of: str, to: str) -> None:
    pytest.importorskip("lz4")
    pytest.importorskip("zstandard")
    source = filled(bus, compression=of)
    copied = bus.topic("to", compression=to)
    assert pipe(bus, "from", "to") == 80
    assert sorted(map(str, rows(copied.read()))) == sorted(map(str, rows(source.read())))
    if type(bus) is Bus:
        assert codecs(bus, "to") == {0 if to == "none" else codec(to).id}


def codecs(bus: Bus, name: str) -> set[int]:
    """Of all batches of a topic of one segment a partition."""
    found = set()
    for partition in bus._engine.registry.get(name).partitions:
        [segment] = partition.log.segments(partition.slot.get(CHANGES)).values()
        file = segment.file()
        found |= {one.header.compression for one in walk_verified(file, 0, file.size())}
    return found


def test_columns_given_beside_take_the_place_of_those_read(bus: Bus) -> None:
    filled(bus, partitions=1, count=10)
    to = bus.topic("to")
    with bus.consumer("from") as consumer, bus.producer() as producer:
        (columns,) = polled(consumer)
        producer.send_many(to, columns, keys=["x"] * 10, headers=[{"h": b"1"}] * 10, timestamps=[5] * 10)
    read = list(to.read())
    assert {(m.key, m.timestamp, tuple(m.headers)) for m in read} == {(b"x", 5, (("h", b"1"),))}
    assert values(read) == values(bus.topic("from").read())


def test_columns_of_a_typed_topic_are_not_encoded_again(bus: Bus) -> None:
    orders, to = (bus.topic(name, value=Order, key=str) for name in ("orders", "to"))
    put(bus, orders, Order(1), Order(2), key="k")
    with bus.consumer(orders) as consumer, bus.producer() as producer:
        for columns in polled(consumer, 1):
            _ = columns.values
            producer.send_many(to, columns)
    assert [(m.key, m.value) for m in to.read()] == [("k", Order(1)), ("k", Order(2))]


def test_what_a_topic_does_not_take_is_refused(bus: Bus) -> None:
    filled(bus, partitions=1)
    bus.topic("keyed", cleanup="compact")
    bus.topic("small", max_message_bytes=3)
    with bus.consumer("from") as consumer, bus.producer() as producer:
        one, two, three, four = polled(consumer)
        with pytest.raises(errors.ConfigError):
            producer.send_many("keyed", one)
        with pytest.raises(errors.MessageTooLargeError):
            producer.send_many("small", two)
        with pytest.raises(errors.UnknownTopicError):
            producer.send_many("small", three, partition=1)
        with pytest.raises(errors.ConfigError):
            producer.send_many("from", four, keys=[b"k"])
    for name in ("keyed", "small"):
        assert list(bus.topic(name).read()) == []


def test_a_batch_larger_than_the_producers_is_cut(bus: Bus) -> None:
    topic = bus.topic("from")
    with bus.producer() as producer:
        producer.send_many(topic, [b"%05d" % number * 20 for number in range(500)]).result(timeout=PATIENCE)
    to = bus.topic("to")
    with bus.consumer("from") as consumer, bus.producer(batch_bytes=10_000, buffer_bytes=50_000) as producer:
        for columns in polled(consumer):
            producer.send_many(to, columns)
    assert values(to.read()) == values(topic.read())
    with bus.consumer("to") as consumer:
        # In full, so that each stretch is a batch.
        assert max(len(one.offsets) for one in polled(consumer, 100_000)) <= 10_000 // 250


def test_what_compaction_left_is_copied_without_its_gaps(bus: Bus) -> None:
    topic = bus.topic("from", cleanup="compact", segment_bytes=600)
    with bus.producer() as producer:
        for start in range(0, 60, 10):
            these = range(start, start + 10)
            keys = [b"k%d" % (number % 7 if number % 3 else number) for number in these]
            producer.send_many(topic, [b"%d" % number * 10 for number in these], keys=keys).result(timeout=PATIENCE)
    bus.maintain()
    to = bus.topic("to")
    left = list(topic.read())
    assert left[-1].offset > len(left)
    assert pipe(bus, "from", "to") == len(left)
    assert rows(to.read()) == rows(left)
    assert [message.offset for message in to.read()] == list(range(len(left)))


def test_a_transaction_takes_columns(bus: Bus) -> None:
    source, to = filled(bus), bus.topic("to")
    with bus.consumer("from") as consumer, bus.producer() as producer:
        with producer.transaction() as tx:
            for columns in polled(consumer):
                tx.send_many(to, columns)
            tx.abort()
        consumer.seek_to_beginning()
        with producer.transaction() as tx:
            sent = [tx.send_many(to, columns) for columns in polled(consumer)]
        assert sum(len(one.result(timeout=PATIENCE)) for one in sent) == 80
    assert sorted(map(str, rows(to.read()))) == sorted(map(str, rows(source.read())))


def test_a_named_producer_takes_columns(bus: Bus) -> None:
    source, to = filled(bus), bus.topic("to", partitions=2)
    with bus.consumer("from") as consumer, bus.producer(name="copier") as producer:
        for columns in polled(consumer):
            producer.send_many(to, columns, partition=columns.partition)
        producer.flush()
        assert [producer.last_sequence(to, partition) for partition in (0, 1)] == [39, 39]
    assert rows(to.read()) == rows(source.read())


def test_the_asyncio_twins_do_the_same(bus: Bus) -> None:
    topic = filled(bus)
    with bus.producer() as producer:
        producer.send_many(topic, numbers(5000), partition=0, timestamps=range(T0, T0 + 5000))
    to = bus.topic("to", partitions=2)

    async def main() -> None:
        async with bus.async_consumer("from") as consumer, bus.async_producer() as producer:
            while stretches := await consumer.poll_columns(1, 10_000):
                for columns in stretches:
                    delivery = await producer.send_many("to", columns, partition=columns.partition)
                    assert len(await delivery) == len(columns.offsets)

    asyncio.run(main())
    assert rows(to.read()) == rows(topic.read())
