"""API.md, "Producer": what may be sent, what is refused at once, batching, and that no failure is silent."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from streamlite import Bus, Delivery, TopicPartition, errors
from streamlite.testing.clock import VirtualClock

from .helpers import PATIENCE, T0, beside, by_partition, drain, locks_held, numbers, offsets, pairs, put, values

OpenBus = Callable[..., Bus]

PAYLOADS: list[Any] = [
    b"",
    b"x",
    "",
    "text",
    "żółć 漢字 🎈",
    bytes(range(256)),
    b"\x00" * 1000,
    b"x" * 100_000,
    "é" * 10_000,
]


def as_bytes(what: bytes | str | None) -> bytes | None:
    """What is stored of it."""
    return what.encode() if isinstance(what, str) else what


# --- values and keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, *PAYLOADS[:7]], ids=lambda key: repr(key)[:20])
def test_keys_and_values_come_back_as_they_were(bus: Bus, key: Any) -> None:
    topic = bus.topic("t")
    put(bus, topic, *PAYLOADS, None, key=key)
    with bus.producer() as producer:
        producer.send_many(topic, [*PAYLOADS, None], keys=[key] * (len(PAYLOADS) + 1))
    messages = list(topic.read())
    assert values(messages) == [as_bytes(value) for value in [*PAYLOADS, None]] * 2
    assert {message.key for message in messages} == {as_bytes(key)}


def test_keys_of_text_and_of_its_bytes_are_one(bus: Bus) -> None:
    """Staged in any mixture, in bursts and alone: what is read is bytes, in one partition a key, in order."""
    bus.topic("t", partitions=8)
    texts = ["plain", "żółć 漢字 🎈", "", "x" * 300]
    keys = [*texts, *map(str.encode, texts)]
    with bus.producer() as producer:
        sent = [producer.send("t", b"%d" % n, key=keys[n % len(keys)]) for n in range(400)]
        producer.flush()
        sent += [producer.send("t", b"%d" % n, key=keys[n % len(keys)]) for n in range(400, 408)]
        sent.append(producer.send("t", b"408", key="plain", headers={"a": b"1"}))
        places = [(one.result().partition, one.result().offset) for one in sent]
    expected = [as_bytes(keys[n % len(keys)]) for n in range(408)] + [b"plain"]
    found = {(message.partition, message.offset): message for message in bus.topic("t").read()}
    assert len(found) == 409
    assert [(found[place].value, found[place].key) for place in places] == [
        (b"%d" % n, key) for n, key in enumerate(expected)
    ]
    for key in set(expected):
        of_key = [place for place, other in zip(places, expected, strict=True) if other == key]
        assert of_key == sorted(of_key)
        assert len({partition for partition, _ in of_key}) == 1


def test_a_key_that_utf8_cannot_hold_is_refused_however_often(bus: Bus) -> None:
    with bus.producer() as producer:
        for _ in range(3):
            with pytest.raises(errors.SerdeError):
                producer.send(bus.topic("t"), b"x", key="\ud800")
        producer.send("t", b"x", key="fine").result()
    assert [message.key for message in bus.topic("t").read()] == [b"fine"]


def test_none_and_nothing_are_different(bus: Bus) -> None:
    topic = bus.topic("t")
    put(bus, topic, None, b"", "", key=b"k")
    put(bus, topic, b"x", key=None)
    put(bus, topic, b"x", key=b"")
    assert [(m.key, m.value) for m in topic.read()] == [
        (b"k", None),
        (b"k", b""),
        (b"k", b""),
        (None, b"x"),
        (b"", b"x"),
    ]


@pytest.mark.parametrize("what", [5, 1.5, True, ["x"], {"a": 1}, 1j, "\ud800"], ids=repr)
def test_what_is_neither_bytes_nor_text_is_refused(bus: Bus, what: Any) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        with pytest.raises(errors.SerdeError):
            producer.send(topic, what)
        with pytest.raises(errors.SerdeError):
            producer.send(topic, b"x", key=what)
        with pytest.raises(errors.SerdeError):
            producer.send_many(topic, [b"x", what])
        with pytest.raises(errors.SerdeError):
            producer.send_many(topic, [b"x", b"y"], keys=[b"k", what])
    assert list(topic.read()) == []


def test_a_topic_goes_by_its_name_or_its_handle(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        producer.send(topic, b"0")
        producer.send("t", b"1")
        producer.send_many(topic, [b"2"])
        producer.send_many("t", [b"3"])
    assert values(topic.read()) == numbers(4)


def test_the_result_says_where_it_stands(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    with bus.producer() as producer:
        for offset in range(3):
            place = producer.send(topic, b"x", partition=2, timestamp=T0 + offset).result(timeout=PATIENCE)
            assert (place.topic, place.partition, place.offset, place.timestamp) == ("t", 2, offset, T0 + offset)
    assert [(m.partition, m.offset, m.timestamp) for m in topic.read()] == [(2, n, T0 + n) for n in range(3)]


def test_a_partition_may_be_named_whatever_the_key(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    for partition in range(3):
        assert put(bus, topic, b"x", key=b"same", partition=partition)[0].partition == partition


@pytest.mark.parametrize("partition", [3, 99, -1])
def test_a_partition_that_is_not_there_is_refused_at_once(bus: Bus, partition: int) -> None:
    topic = bus.topic("t", partitions=3)
    with bus.producer() as producer:
        with pytest.raises(errors.UnknownTopicError):
            producer.send(topic, b"x", partition=partition)
        with pytest.raises(errors.UnknownTopicError):
            producer.send_many(topic, [b"x"], partition=partition)
    assert list(topic.read()) == []


def test_a_topic_that_is_not_there_is_refused_at_once_and_not_created(bus: Bus) -> None:
    with bus.producer() as producer:
        with pytest.raises(errors.UnknownTopicError):
            producer.send("absent", b"x")
        with pytest.raises(errors.UnknownTopicError):
            producer.send_many("absent", [b"x"])
    assert bus.topics() == []


# --- size ---------------------------------------------------------------------------------------------------------


def test_from_nothing_to_the_greatest_size(bus: Bus) -> None:
    topic = bus.topic("t", max_message_bytes=1000)
    with bus.producer() as producer:
        for size in (0, 1, 500, 999, 1000):
            producer.send(topic, b"x" * size)
        producer.send(topic, b"x" * 600, key=b"k" * 400)
        producer.send(topic, None, key=b"k" * 1000)
        for value, key, headers in (
            (b"x" * 1001, None, None),
            (b"x" * 600, b"k" * 401, None),
            (None, b"k" * 1001, None),
            (b"x" * 999, None, {"h": b"yy"}),
            (b"", None, {"h": b"y" * 1000}),
            ("é" * 501, None, None),
        ):
            with pytest.raises(errors.MessageTooLargeError):
                producer.send(topic, value, key=key, headers=headers)
        with pytest.raises(errors.MessageTooLargeError):
            producer.send_many(topic, [b"x", b"x" * 1001])
        with pytest.raises(errors.MessageTooLargeError):
            producer.send_many(topic, [b"x", b"x" * 600], keys=[b"k", b"k" * 401])
    assert [len(m.value or b"") + len(m.key or b"") for m in topic.read()] == [0, 1, 500, 999, 1000, 1000, 1000]


def test_sixteen_mebibytes_are_fine_unless_told_otherwise(bus: Bus) -> None:
    topic = bus.topic("t")
    value = b"0123456789abcdef" * (1 << 20)
    with bus.producer() as producer:
        producer.send(topic, value).result(timeout=PATIENCE)
        with pytest.raises(errors.MessageTooLargeError, match=r"16,?777,?216"):
            producer.send(topic, value + b"x")
    with bus.consumer("t") as consumer:
        assert values(consumer.poll(timeout=PATIENCE)) == [value]


# --- headers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (None, []),
        ({}, []),
        ([], []),
        ({"a": b"1"}, [("a", b"1")]),
        ({"a": b"1", "b": None, "c": b""}, [("a", b"1"), ("b", None), ("c", b"")]),
        ([("a", b"1"), ("a", b"2"), ("a", None), ("a", b"1")], [("a", b"1"), ("a", b"2"), ("a", None), ("a", b"1")]),
        ([("b", b"1"), ("a", b"2")], [("b", b"1"), ("a", b"2")]),
        ((("é漢", b"\xff\x00"), ("", b"x")), [("é漢", b"\xff\x00"), ("", b"x")]),
        ({"big": b"x" * 100_000}, [("big", b"x" * 100_000)]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_headers_come_back_in_order(bus: Bus, headers: Any, expected: list[Any]) -> None:
    topic = bus.topic("t")
    put(bus, topic, b"x", headers=headers)
    with bus.producer() as producer:
        producer.send_many(topic, [b"0", b"1", b"2"], headers=[headers, None, headers])
    assert [pairs(message) for message in topic.read()] == [expected, expected, [], expected]


def test_each_message_keeps_its_own_headers(bus: Bus) -> None:
    topic = bus.topic("t")
    sent: list[Any] = [None, {"a": b"1"}, {}, [("a", b"2"), ("b", None)], None]
    with bus.producer() as producer:
        for headers in sent:
            producer.send(topic, b"x", headers=headers)
        producer.send_many(topic, [b"x"] * 5, headers=sent)
    expected = [[], [("a", b"1")], [], [("a", b"2"), ("b", None)], []]
    assert [pairs(message) for message in topic.read()] == expected * 2


@pytest.mark.parametrize(
    "headers",
    [{"a": "text"}, {"a": 1}, {b"a": b"1"}, {1: b"1"}, [("a",)], [("a", b"1", b"2")], ["ab"], 5, b"a=1", "a"],
    ids=repr,
)
def test_headers_of_another_kind_are_refused(bus: Bus, headers: Any) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        with pytest.raises((errors.ConfigError, errors.SerdeError)):
            producer.send(topic, b"x", headers=headers)
        with pytest.raises((errors.ConfigError, errors.SerdeError)):
            producer.send_many(topic, [b"x"], headers=[headers])
    assert list(topic.read()) == []


# --- timestamps ---------------------------------------------------------------------------------------------------


@pytest.mark.needs("clock")
def test_a_message_without_a_timestamp_gets_the_present_one(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t")
    assert put(bus, topic, b"0")[0].timestamp == clock.time_ms()
    clock.advance(5)
    with bus.producer() as producer:
        producer.send_many(topic, [b"1", b"2"])
    assert [message.timestamp for message in topic.read()] == [T0, clock.time_ms(), clock.time_ms()]


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        (0, 0),
        (1, 1),
        (T0, T0),
        (T0 + 10**12, T0 + 10**12),
        (datetime(2024, 1, 1, 12, 0, 0, 123_000, tzinfo=UTC), 1_704_110_400_123),
        (datetime(2024, 1, 1, 14, 30, tzinfo=timezone(timedelta(hours=2, minutes=30))), 1_704_110_400_000),
    ],
    ids=str,
)
def test_timestamps_are_ms_or_aware_moments(bus: Bus, timestamp: Any, expected: int) -> None:
    topic = bus.topic("t")
    assert put(bus, topic, b"x", timestamp=timestamp)[0].timestamp == expected
    with bus.producer() as producer:
        producer.send_many(topic, [b"a", b"b"], timestamps=[timestamp, 5])
    assert [message.timestamp for message in topic.read()] == [expected, expected, 5]


@pytest.mark.parametrize(
    "timestamp",
    [1.5, float(T0), float("nan"), datetime(2024, 1, 1, tzinfo=UTC).replace(tzinfo=None), "2024-01-01", b"1"],
    ids=repr,
)
def test_a_float_or_a_naive_moment_is_refused(bus: Bus, timestamp: Any) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        with pytest.raises(errors.ConfigError):
            producer.send(topic, b"x", timestamp=timestamp)
        with pytest.raises(errors.ConfigError):
            producer.send_many(topic, [b"x", b"y"], timestamps=[T0, timestamp])
    assert list(topic.read()) == []


def test_timestamps_need_no_order(bus: Bus) -> None:
    topic = bus.topic("t")
    times = [T0 + step for step in (5, 3, 9, 0, 9, -1000, 10**9)]
    with bus.producer() as producer:
        for timestamp in times:
            producer.send(topic, b"x", timestamp=timestamp)
        producer.send_many(topic, [b"x"] * len(times), timestamps=times)
    assert [message.timestamp for message in topic.read()] == times * 2


# --- compacted topics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cleanup", ["compact", "compact,delete"])
def test_a_compacted_topic_takes_no_message_without_a_key(bus: Bus, cleanup: str) -> None:
    topic = bus.topic("t", cleanup=cleanup)
    with bus.producer() as producer:
        for call in (
            lambda: producer.send(topic, b"x"),
            lambda: producer.send(topic, None),
            lambda: producer.send("t", b"x", partition=0),
            lambda: producer.send_many(topic, [b"x"]),
            lambda: producer.send_many(topic, [b"x", b"y"], keys=[b"k", None]),
        ):
            with pytest.raises(errors.ConfigError, match="key"):
                call()
        producer.send(topic, b"x", key=b"")
        producer.send(topic, None, key=b"k")
    assert [(message.key, message.value) for message in topic.read()] == [(b"", b"x"), (b"k", None)]


# --- order and placement ------------------------------------------------------------------------------------------


def test_one_partition_keeps_the_order_of_sending(bus: Bus) -> None:
    topic = bus.topic("t", segment_bytes=5000)
    with bus.producer(batch_bytes=1000) as producer:
        sent = 0
        for count in (1, 10, 100, 1000):
            for value in numbers(count, sent):
                producer.send(topic, value)
            producer.send_many(topic, numbers(count, sent + count))
            sent += 2 * count
    assert values(topic.read()) == numbers(sent)
    assert offsets(topic.read()) == list(range(sent))


def test_one_key_keeps_its_partition_and_order(bus: Bus) -> None:
    topic = bus.topic("t", partitions=4)
    with bus.producer(batch_bytes=500) as producer:
        for number in range(400):
            producer.send(topic, b"%d" % number, key=f"key-{number % 13}")
        producer.send_many(topic, numbers(400, 400), keys=[f"key-{number % 13}" for number in range(400, 800)])
    found: dict[bytes | None, list[int]] = {}
    for message in topic.read():
        assert message.partition == topic.partition_for(message.key)
        found.setdefault(message.key, []).append(int(message.value))
    assert found == {b"key-%d" % k: [n for n in range(800) if n % 13 == k] for k in range(13)}


@pytest.mark.needs("clock")
def test_without_a_key_batches_stick_to_a_partition_and_move_on(bus: Bus) -> None:
    topic = bus.topic("t", partitions=4)
    with bus.producer(batch_bytes=1000, linger_ms=60_000) as producer:
        deliveries = [producer.send(topic, b"x" * 100) for _ in range(400)]
        producer.flush(timeout=PATIENCE)
    places = [delivery.result(timeout=PATIENCE).partition for delivery in deliveries]
    moves = sum(before != after for before, after in pairwise(places))
    assert len(set(places)) > 1
    assert moves <= 200


def test_without_a_key_all_partitions_get_their_turn(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    with bus.producer() as producer:
        places = [producer.send(topic, b"x").result(timeout=PATIENCE).partition for _ in range(100)]
    assert set(places) == {0, 1, 2}


def test_many_threads_may_share_a_producer(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    with bus.producer(batch_bytes=300) as producer:

        def send(thread: int) -> list[Delivery]:
            return [producer.send(topic, b"%d" % n, key=b"thread-%d" % thread) for n in range(200)]

        threads = [beside(lambda thread=thread: send(thread)) for thread in range(4)]
        deliveries = [delivery for thread in threads for delivery in thread.result(timeout=PATIENCE)]
        producer.flush(timeout=PATIENCE)
        assert all(delivery.done() for delivery in deliveries)
    found: dict[bytes | None, list[bytes]] = {}
    for message in topic.read():
        found.setdefault(message.key, []).append(message.value)
    assert found == {b"thread-%d" % thread: numbers(200) for thread in range(4)}
    places = [delivery.result() for delivery in deliveries]
    assert len({(place.partition, place.offset) for place in places}) == 800


def test_two_producers_share_a_topic(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer() as first, bus.producer() as second:
        for number in range(20):
            (first, second)[number % 2].send(topic, b"%d" % number).result(timeout=PATIENCE)
    assert values(topic.read()) == numbers(20)


# --- send_many ----------------------------------------------------------------------------------------------------


def test_send_many_has_one_delivery_for_all(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    put(bus, topic, b"before", partition=1)
    with bus.producer() as producer:
        delivery = producer.send_many(topic, numbers(100), partition=1, timestamps=range(T0, T0 + 100))
        places = delivery.result(timeout=PATIENCE)
        assert delivery.done()
    assert len(places) == 100
    assert [places[0].offset, places[57].offset, places[-1].offset] == [1, 58, 100]
    assert [(p.topic, p.partition, p.offset, p.timestamp) for p in places] == [
        ("t", 1, n + 1, T0 + n) for n in range(100)
    ]
    assert values(topic.read(start=1, partition=1)) == numbers(100)


def test_send_many_places_each_key(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    keys = [b"%d" % (number % 10) for number in range(100)]
    with bus.producer() as producer:
        places = producer.send_many(topic, numbers(100), keys=keys).result(timeout=PATIENCE)
    assert [place.partition for place in places] == [topic.partition_for(key) for key in keys]
    stored = {(message.partition, message.offset): (message.key, message.value) for message in topic.read()}
    found = [stored[place.partition, place.offset] for place in places]
    assert found == list(zip(keys, numbers(100), strict=True))


def test_send_many_may_mix_keys_and_none(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    keys = [b"%d" % number if number % 3 else None for number in range(60)]
    with bus.producer() as producer:
        places = producer.send_many(topic, numbers(60), keys=keys).result(timeout=PATIENCE)
    stored = {(message.partition, message.offset): (message.key, message.value) for message in topic.read()}
    assert [stored[place.partition, place.offset] for place in places] == list(zip(keys, numbers(60), strict=True))


def test_send_many_of_nothing_is_done(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        delivery = producer.send_many(topic, [])
        assert len(delivery.result(timeout=PATIENCE)) == 0
    assert list(topic.read()) == []


@pytest.mark.parametrize(
    "columns",
    [{"keys": [b"k"]}, {"keys": [b"k"] * 3}, {"timestamps": [T0]}, {"headers": [None] * 3}, {"keys": []}],
    ids=str,
)
def test_columns_must_be_of_one_length(bus: Bus, columns: dict[str, Any]) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer, pytest.raises(errors.ConfigError):
        producer.send_many(topic, [b"a", b"b"], **columns)
    assert list(topic.read()) == []


def test_more_than_the_buffer_holds_goes_in_pieces(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer(buffer_bytes=50_000, batch_bytes=10_000) as producer:
        delivery = producer.send_many(topic, [b"%05d" % number * 200 for number in range(1000)])
        assert len(delivery.result(timeout=PATIENCE)) == 1000
        deliveries = [producer.send(topic, b"%05d" % number * 200) for number in range(1000, 1500)]
    assert [int(message.value[:5]) for message in topic.read()] == list(range(1500))
    assert [delivery.result().offset for delivery in deliveries] == list(range(1000, 1500))


def test_send_many_keeps_its_place_among_sends(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    with bus.producer(linger_ms=50) as producer:
        for start in range(0, 100, 10):
            for value in numbers(3, start):
                producer.send(topic, value, key=b"k")
            producer.send_many(topic, numbers(7, start + 3), keys=[b"k"] * 7)
    assert by_partition(topic.read()) == {topic.partition_for(b"k"): numbers(100)}


# --- linger and flush ---------------------------------------------------------------------------------------------


@pytest.mark.needs("clock")
def test_what_lingers_goes_out_when_its_time_has_come(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t")
    with bus.consumer("t") as consumer, bus.producer(linger_ms=5000) as producer:
        for value in numbers(10):
            producer.send(topic, value)
        found: list[Any] = []
        for _ in range(10):
            found += consumer.poll(timeout=5)
        assert values(found) == numbers(10)


@pytest.mark.needs("clock")
@pytest.mark.parametrize("how", ["flush", "result", "exception", "close"])
def test_whoever_waits_cuts_the_linger_short(bus: Bus, clock: VirtualClock, how: str) -> None:
    topic = bus.topic("t")
    before = clock.monotonic()
    with bus.producer(linger_ms=60_000) as producer:
        deliveries = [producer.send(topic, value) for value in numbers(10)]
        if how == "flush":
            producer.flush(timeout=PATIENCE)
            assert all(delivery.done() for delivery in deliveries)
        elif how == "close":
            producer.close(timeout=PATIENCE)
            assert all(delivery.done() for delivery in deliveries)
        elif how == "result":
            assert deliveries[-1].result(timeout=PATIENCE).offset == 9
        else:
            assert deliveries[-1].exception(timeout=PATIENCE) is None
    assert clock.monotonic() - before < 60


def test_flush_without_anything_to_flush(bus: Bus) -> None:
    with bus.producer() as producer:
        producer.flush()
        producer.flush(timeout=0)


def test_flush_waits_for_every_earlier_send(bus: Bus) -> None:
    topic = bus.topic("t", partitions=3)
    with bus.producer(linger_ms=100) as producer:
        deliveries = [producer.send(topic, b"x", key=b"%d" % number) for number in range(300)]
        bulk = producer.send_many(topic, numbers(300))
        producer.flush()
        assert all(delivery.done() for delivery in [*deliveries, bulk])
        assert sum(topic.end_offsets().values()) == 600


# --- close --------------------------------------------------------------------------------------------------------


def test_closing_flushes_and_ends(bus: Bus) -> None:
    topic = bus.topic("t")
    producer = bus.producer(linger_ms=60_000)
    deliveries = [producer.send(topic, value) for value in numbers(10)]
    producer.close()
    assert all(delivery.done() for delivery in deliveries)
    assert values(topic.read()) == numbers(10)
    producer.close()
    for call in (lambda: producer.send(topic, b"x"), lambda: producer.send_many(topic, [b"x"])):
        with pytest.raises(errors.ClosedError):
            call()
    assert deliveries[3].result().offset == 3
    assert values(topic.read()) == numbers(10)


def test_an_exception_in_the_block_closes_and_keeps_what_was_sent(bus: Bus) -> None:
    class Oops(Exception):
        pass

    topic = bus.topic("t")

    def fail() -> None:
        raise Oops

    with suppress(Oops), bus.producer(linger_ms=60_000) as producer:
        producer.send(topic, b"0")
        producer.send(topic, b"1")
        fail()
    assert values(topic.read()) == numbers(2)
    with pytest.raises(errors.ClosedError):
        producer.send(topic, b"2")


# --- on_delivery --------------------------------------------------------------------------------------------------


def test_on_delivery_is_called_once_for_each(bus: Bus) -> None:
    topic = bus.topic("t")
    seen: queue.Queue[Delivery] = queue.Queue()
    with bus.producer(on_delivery=seen.put) as producer:
        deliveries = [producer.send(topic, value) for value in numbers(20)]
        deliveries.append(producer.send_many(topic, numbers(20)))
        producer.flush()
    called = [seen.get(timeout=PATIENCE) for _ in deliveries]
    assert seen.empty()
    assert all(delivery.done() for delivery in called)
    assert set(called) == set(deliveries)


def test_on_delivery_may_send(bus: Bus) -> None:
    topic = bus.topic("t")
    echo = bus.topic("echo")
    seen: queue.Queue[Delivery] = queue.Queue()

    def answer(delivery: Delivery) -> None:
        if delivery.result().topic == "t":
            producer.send(echo, b"%d" % delivery.result().offset)
            seen.put(delivery)

    producer = bus.producer(on_delivery=answer)
    for value in numbers(5):
        producer.send(topic, value)
    producer.flush(timeout=PATIENCE)
    for _ in range(5):
        seen.get(timeout=PATIENCE)
    producer.close()
    assert sorted(values(echo.read())) == numbers(5)


# --- a writer that gets no further: another process holds the lock ---------------------------------------------------


@pytest.mark.needs("directory")
def test_send_does_not_wait_for_anothers_lock(open_bus: OpenBus, location: Path) -> None:
    bus = open_bus(clock=None, sync="never")
    topic = bus.topic("t")
    put(bus, topic, b"0")
    with bus.producer() as producer:
        with locks_held(location):
            delivery = producer.send(topic, b"1")
            bulk = producer.send_many(topic, [b"2", b"3"])
            assert not delivery.done()
            assert not bulk.done()
            with pytest.raises(errors.TimeoutError):
                delivery.result(timeout=0)
            with pytest.raises(errors.TimeoutError):
                delivery.exception(timeout=0.01)
            with pytest.raises(errors.TimeoutError):
                producer.flush(timeout=0.01)
        assert delivery.result(timeout=PATIENCE).offset == 1
        assert bulk.result(timeout=PATIENCE)[1].offset == 3
    assert values(topic.read()) == numbers(4)


@pytest.mark.needs("directory")
def test_a_full_buffer_waits_and_then_says_so(open_bus: OpenBus, location: Path) -> None:
    bus = open_bus(clock=None, sync="never")
    topic = bus.topic("t")
    put(bus, topic, b"first")
    sent = [b"first"]
    with bus.producer(buffer_bytes=20_000, max_block=0.02) as producer:
        with locks_held(location):
            with suppress(errors.BufferFullError):
                for number in range(1000):
                    producer.send(topic, b"%04d" % number + b"x" * 996)
                    sent.append(b"%04d" % number + b"x" * 996)
            with pytest.raises(errors.BufferFullError):
                producer.send(topic, b"y" * 1000)
        assert 2 < len(sent) < 25
        producer.flush(timeout=PATIENCE)
        producer.send(topic, b"last")
    assert values(topic.read()) == [*sent, b"last"]


@pytest.mark.needs("directory")
def test_a_sender_waits_for_room_no_longer_than_it_has_to(open_bus: OpenBus, location: Path) -> None:
    bus = open_bus(clock=None, sync="never")
    topic = bus.topic("t")
    put(bus, topic, b"first")
    with bus.producer(buffer_bytes=20_000, max_block=PATIENCE) as producer:
        with locks_held(location):
            sending = beside(lambda: [producer.send(topic, b"%d" % number * 500) for number in range(100)])
            with pytest.raises(TimeoutError):
                sending.result(timeout=0.05)
        sending.result(timeout=PATIENCE)
    assert len(list(topic.read())) == 101


def failed_send(open_bus: OpenBus, location: Path, **options: Any) -> Any:
    """A bus, a producer of it with a failed delivery that nobody has looked at, and that delivery."""
    bus = open_bus(clock=None, sync="never", lock_timeout=0.02)
    topic = bus.topic("t")
    put(bus, topic, b"first")
    producer = bus.producer(**options)
    with locks_held(location):
        delivery = producer.send(topic, b"x")
        assert isinstance(producer.send(topic, b"y").exception(timeout=PATIENCE), errors.LockTimeoutError)
    assert delivery.done()
    return bus, producer, delivery


@pytest.mark.needs("directory")
def test_what_went_wrong_arrives_in_the_delivery(open_bus: OpenBus, location: Path) -> None:
    bus, producer, delivery = failed_send(open_bus, location)
    assert delivery.done()
    assert isinstance(delivery.exception(), errors.LockTimeoutError)
    with pytest.raises(errors.LockTimeoutError):
        delivery.result()
    producer.close()
    assert values(bus.topic("t").read()) == [b"first"]


@pytest.mark.needs("directory")
def test_a_failure_that_nobody_looked_at_is_raised_by_close(open_bus: OpenBus, location: Path) -> None:
    bus, producer, delivery = failed_send(open_bus, location)
    with pytest.raises(errors.LockTimeoutError):
        producer.close()
    with pytest.raises(errors.ClosedError):
        producer.send("t", b"x")
    assert delivery.done()
    assert TopicPartition("t", 0) in bus.topic("t").end_offsets()


@pytest.mark.needs("directory")
def test_or_by_the_end_of_the_block(open_bus: OpenBus, location: Path) -> None:
    _, producer, _ = failed_send(open_bus, location)
    with pytest.raises(errors.LockTimeoutError), producer:
        pass


@pytest.mark.needs("directory")
def test_or_by_closing_the_bus(open_bus: OpenBus, location: Path) -> None:
    bus, _, _ = failed_send(open_bus, location)
    with pytest.raises(errors.LockTimeoutError):
        bus.close()


@pytest.mark.needs("directory")
def test_flush_raises_the_first_failure_of_what_it_waited_for(open_bus: OpenBus, location: Path) -> None:
    bus = open_bus(clock=None, sync="never", lock_timeout=0.02)
    topic = bus.topic("t")
    put(bus, topic, b"first")
    producer = bus.producer()
    with locks_held(location):
        producer.send(topic, b"x")
        producer.send(topic, b"y")
        with pytest.raises(errors.LockTimeoutError):
            producer.flush(timeout=PATIENCE)
    producer.flush(timeout=PATIENCE)
    assert producer.send(topic, b"z").result(timeout=PATIENCE).offset == 1
    producer.close()
    assert values(topic.read()) == [b"first", b"z"]


@pytest.mark.needs("directory")
def test_a_failed_delivery_reaches_on_delivery(open_bus: OpenBus, location: Path) -> None:
    seen: queue.Queue[Delivery] = queue.Queue()
    _, producer, delivery = failed_send(open_bus, location, on_delivery=seen.put)
    failed = [seen.get(timeout=PATIENCE) for _ in range(2)]
    assert delivery in failed
    assert [type(each.exception()) for each in failed] == [errors.LockTimeoutError] * 2
    producer.close()
    assert seen.empty()


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"linger_ms": -1},
        {"linger_ms": "1"},
        {"batch_bytes": 0},
        {"batch_bytes": 1.5},
        {"buffer_bytes": 0},
        {"buffer_bytes": None},
        {"max_block": -1},
        {"max_block": "60"},
        {"on_delivery": "print"},
    ],
    ids=str,
)
def test_an_option_that_means_nothing_is_refused(bus: Bus, options: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=next(iter(options))):
        bus.producer(**options)


@pytest.mark.parametrize(
    "options",
    [{"linger_ms": 0}, {"linger_ms": 0.5}, {"batch_bytes": 1}, {"batch_bytes": 100}, {"max_block": 0}],
    ids=str,
)
def test_an_option_changes_speed_but_no_message(bus: Bus, options: dict[str, Any]) -> None:
    topic = bus.topic("t", partitions=2)
    with bus.producer(**options) as producer:
        for value in numbers(50):
            producer.send(topic, value, key=b"k")
        producer.send_many(topic, numbers(50, 50), keys=[b"k"] * 50)
    with bus.consumer("t") as consumer:
        assert values(drain(consumer)) == numbers(100)
