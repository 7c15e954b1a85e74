"""A year of real flights, keyed by tail number, through six partitions: what a log must never get wrong.

tests/data/README.md says where the 336,776 flights come from. The memory runs too, as far as nothing is opened again.
"""

from __future__ import annotations

import csv
import lzma
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest

import streamlite
from streamlite import Bus, Consumer, Message, TopicPartition

DATA = Path(__file__).parents[1] / "data" / "flights-2013.csv.xz"
FLIGHTS = 336_776
PARTITIONS = 6
PATIENCE_S = 10.0


class Sent(NamedTuple):
    """A flight as it is sent: the row of the data is the value, so that every value is distinct."""

    key: bytes | None
    value: bytes
    timestamp: int


@pytest.fixture(scope="module")
def flights() -> list[Sent]:
    with lzma.open(DATA, "rt", encoding="ascii", newline="") as text:
        rows = list(csv.reader(text))[1:]
    hours = {row[0]: int(datetime.fromisoformat(row[0]).timestamp()) * 1000 for row in rows}
    return [Sent(None if row[-1] == "NA" else row[-1].encode(), ",".join(row).encode(), hours[row[0]]) for row in rows]


def produce(bus: Bus, flights: Sequence[Sent], name: str = "flights") -> None:
    topic = bus.topic(name, partitions=PARTITIONS)
    with bus.producer() as producer:
        for key, value, timestamp in flights:
            producer.send(topic, value, key=key, timestamp=timestamp)


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory, flights: list[Sent]) -> Path:
    """A directory with the whole year in it, written once, closed, and opened by each test."""
    location = tmp_path_factory.mktemp("flights") / "bus"
    with streamlite.open(location) as bus:
        produce(bus, flights)
    return location


@pytest.fixture(scope="module")
def memory(flights: list[Sent]) -> Iterator[Bus]:
    """The same in memory, shared by all tests: each has groups of its own."""
    with streamlite.open(":memory:") as bus:
        produce(bus, flights)
        yield bus


@pytest.fixture(params=["disk", "memory"])
def bus(request: pytest.FixtureRequest) -> Iterator[Bus]:
    """A bus with the whole year in it."""
    if request.param == "memory":
        yield request.getfixturevalue("memory")
        return
    with streamlite.open(request.getfixturevalue("location")) as bus:
        yield bus


def drain(consumer: Consumer) -> list[Message]:
    """All that is left, then nothing: ends by lag, so no wait decides what is found."""
    messages: list[Message] = []
    while any(consumer.lag().values()):
        batch = consumer.poll(timeout=PATIENCE_S)
        assert batch, f"{consumer.lag()} left, nothing came"
        messages += batch
    return messages


def assert_all_once(messages: Sequence[Message], flights: Sequence[Sent]) -> None:
    assert len(messages) == len(flights)
    assert {(message.key, message.value, message.timestamp) for message in messages} == set(flights)
    assert {(message.topic, *message.headers) for message in messages} == {("flights",)}


def assert_contiguous(messages: Sequence[Message], begins: dict[int, int] | None = None) -> None:
    """In order within each partition, from the given offsets (0) on, without a gap."""
    following = dict.fromkeys(range(PARTITIONS), 0) | (begins or {})
    for message in messages:
        assert message.offset == following[message.partition]
        following[message.partition] += 1


def test_data_is_a_year_of_distinct_flights(flights: list[Sent]) -> None:
    assert len(flights) == FLIGHTS
    assert len({flight.value for flight in flights}) == FLIGHTS
    assert len({flight.key for flight in flights} - {None}) == 4_043


def test_none_is_lost_and_none_comes_twice(bus: Bus, flights: list[Sent]) -> None:
    messages = list(bus.topic("flights").read())
    assert_all_once(messages, flights)


def test_offsets_are_contiguous_in_every_partition(bus: Bus) -> None:
    topic = bus.topic("flights")
    messages = list(topic.read())
    assert_contiguous(messages)
    counts = {tp.partition: end for tp, end in topic.end_offsets().items()}
    assert sorted(counts) == list(range(PARTITIONS))
    assert all(counts.values())
    assert sum(counts.values()) == FLIGHTS
    assert set(topic.beginning_offsets().values()) == {0}


def test_each_tail_number_keeps_one_partition_and_its_order(bus: Bus, flights: list[Sent]) -> None:
    topic = bus.topic("flights")
    number = {flight.value: place for place, flight in enumerate(flights)}
    last: dict[bytes, int] = {}
    homes: dict[bytes, int] = {}
    for message in topic.read():
        if message.key is None:
            continue
        assert homes.setdefault(message.key, message.partition) == message.partition
        assert number[message.value] > last.get(message.key, -1)
        last[message.key] = number[message.value]
    assert homes == {key: topic.partition_for(key) for key in homes}
    assert len(homes) == 4_043


def test_send_many_places_and_orders_as_send_does(bus: Bus, flights: list[Sent]) -> None:
    keyed = [flight for flight in flights if flight.key is not None]
    keys, values, timestamps = zip(*keyed, strict=True)
    again = bus.topic("again", partitions=PARTITIONS)
    with bus.producer() as producer:
        results = producer.send_many(again, values, keys=keys, timestamps=timestamps).result(60)
    one = _by_partition(message for message in bus.topic("flights").read() if message.key is not None)
    many = _by_partition(again.read())
    assert many == one
    assert [many[result.partition][result.offset] for result in results[:1000]] == list(values[:1000])
    assert [result.timestamp for result in results] == list(timestamps)
    bus.delete_topic("again")


def _by_partition(messages: Iterator[Message]) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
    for message in messages:
        found[message.partition].append(message.value)
    return found


def test_group_reads_all_once_by_poll(bus: Bus, flights: list[Sent]) -> None:
    with bus.consumer("flights", group="poll") as consumer:
        messages = drain(consumer)
        consumer.commit()
        assert consumer.lag() == dict.fromkeys(consumer.assignment(), 0)
    assert_all_once(messages, flights)
    assert_contiguous(messages)
    assert sum(bus.group("poll").lag.values()) == 0


def test_group_reads_all_once_by_iteration(bus: Bus, flights: list[Sent]) -> None:
    with bus.consumer("flights", group="iterate") as consumer:
        messages = list(consumer.messages(timeout=0))
    assert_all_once(messages, flights)
    assert_contiguous(messages)
    assert sum(bus.group("iterate").committed.values()) == FLIGHTS


def test_group_reads_all_once_as_columns(bus: Bus, flights: list[Sent]) -> None:
    found: list[Sent] = []
    following = dict.fromkeys(range(PARTITIONS), 0)
    with bus.consumer("flights", group="columns") as consumer:
        while any(consumer.lag().values()):
            for columns in consumer.poll_columns(timeout=PATIENCE_S):
                begin = following[columns.partition]
                assert list(columns.offsets) == list(range(begin, begin + len(columns.values)))
                following[columns.partition] += len(columns.values)
                found += map(Sent, columns.keys, columns.values, columns.timestamps)
    assert len(found) == FLIGHTS
    assert set(found) == set(flights)


def test_group_resumes_exactly_where_it_committed_after_reopening(location: Path, flights: list[Sent]) -> None:
    """Stopped many times: some of what it was handed out is committed, the rest comes again, nothing else does."""
    done: list[Message] = []
    committed: dict[TopicPartition, int] = {}
    for stop in (1, 999, 50_000, 100_001, 150_000):
        with streamlite.open(location) as bus, bus.consumer("flights", group="stopped", auto_commit=False) as consumer:
            assert {tp: consumer.committed(tp) or 0 for tp in consumer.assignment()} == _by_tp(committed)
            handed: list[Message] = []
            while len(handed) < stop + 500:
                handed += consumer.poll(timeout=PATIENCE_S, max_messages=min(777, stop + 500 - len(handed)))
            assert_contiguous(handed, _by_number(committed))
            done += handed[:stop]
            for message in handed[:stop]:
                committed[TopicPartition("flights", message.partition)] = message.offset + 1
            consumer.commit(committed)
    with streamlite.open(location) as bus, bus.consumer("flights", group="stopped", auto_commit=False) as consumer:
        assert {tp: offset for tp, offset in bus.group("stopped").committed.items() if offset} == committed
        assert {tp: consumer.position(tp) for tp in consumer.assignment()} == _by_tp(committed)
        rest = drain(consumer)
    assert_contiguous(rest, _by_number(committed))
    assert_all_once(done + rest, flights)


def test_auto_commit_resumes_at_the_message_the_loop_left_in(location: Path, flights: list[Sent]) -> None:
    """`break` leaves the last message unprocessed: after reopening it is the first to come again, and alone does so."""
    done: list[Message] = []
    left: Message | None = None
    for stop in (1, 1_000, 123_456):
        begin = len(done)
        with streamlite.open(location) as bus, bus.consumer("flights", group="left") as consumer:
            for left in consumer:
                if len(done) == begin + stop:
                    break
                done.append(left)
        with streamlite.open(location) as bus:
            committed = {tp.partition: offset for tp, offset in bus.group("left").committed.items()}
        assert sum(committed.values()) == len(done)
        assert left is not None
        assert committed.get(left.partition, 0) == left.offset
    with streamlite.open(location) as bus, bus.consumer("flights", group="left") as consumer:
        done += consumer.messages(timeout=0)
    assert_contiguous(done)
    assert_all_once(done, flights)


def test_read_by_time_finds_exactly_the_flights_of_an_hour(bus: Bus, flights: list[Sent]) -> None:
    topic = bus.topic("flights")
    hour = flights[FLIGHTS // 2].timestamp
    wanted = {flight.value for flight in flights if flight.timestamp == hour}
    found = [message.value for message in topic.read(since_ms=hour, until_ms=hour + 3_600_000)]
    assert len(found) == len(wanted)
    assert set(found) == wanted


def test_offsets_for_times_are_the_first_of_that_time_or_later(bus: Bus, flights: list[Sent]) -> None:
    moment = flights[FLIGHTS // 3].timestamp + 1
    first: dict[TopicPartition, int | None] = {TopicPartition("flights", each): None for each in range(PARTITIONS)}
    for message in bus.topic("flights").read():
        tp = TopicPartition("flights", message.partition)
        if message.timestamp >= moment and first[tp] is None:
            first[tp] = message.offset
    with bus.consumer() as consumer:
        consumer.assign(list(first))
        assert consumer.offsets_for_times(dict.fromkeys(first, moment)) == first


def _by_tp(committed: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
    return {TopicPartition("flights", each): 0 for each in range(PARTITIONS)} | committed


def _by_number(committed: dict[TopicPartition, int]) -> dict[int, int]:
    return {tp.partition: offset for tp, offset in committed.items()}
