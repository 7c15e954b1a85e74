"""API.md, "topic setting": defaults, what is accepted, what must agree, and `alter`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamlite import Bus, errors
from streamlite.testing.clock import VirtualClock

from .helpers import numbers, put, put_apart, setting, values

OpenBus = Callable[..., Bus]

DEFAULTS = {
    "partitioner": "xxh3",
    "retention_ms": None,
    "retention_bytes": None,
    "cleanup": "delete",
    "delete_retention_ms": 86_400_000,
    "segment_bytes": 128 * 1024 * 1024,
    "segment_ms": 7 * 24 * 3600 * 1000,
    "compression": "none",
    "max_message_bytes": 16 * 1024 * 1024,
}
OTHERS: dict[str, list[Any]] = {
    "partitioner": ["murmur2"],
    "retention_ms": [1, 3_600_000],
    "retention_bytes": [1, 10**12],
    "cleanup": ["compact", "compact,delete"],
    "delete_retention_ms": [0, 1],
    "segment_bytes": [1, 10**6],
    "segment_ms": [1, 10**6],
    "compression": ["lz4", "zstd"],
    "max_message_bytes": [1, 1000],
}
BAD: list[tuple[str, Any]] = [
    ("partitions", 0),
    ("partitions", -1),
    ("partitions", 1.5),
    ("partitions", "4"),
    ("partitioner", "crc32"),
    ("partitioner", None),
    ("retention_ms", -1),
    ("retention_ms", "1"),
    ("retention_ms", 1.5),
    ("retention_bytes", -1),
    ("cleanup", "compress"),
    ("cleanup", None),
    ("delete_retention_ms", -1),
    ("delete_retention_ms", None),
    ("segment_bytes", 0),
    ("segment_bytes", None),
    ("segment_ms", 0),
    ("compression", "gzip"),
    ("compression", 1),
    ("max_message_bytes", 0),
    ("max_message_bytes", None),
]
EACH = [(name, value) for name, values_ in OTHERS.items() for value in values_]


def test_the_defaults(bus: Bus) -> None:
    topic = bus.topic("t")
    assert topic.partitions == 1
    assert {name: setting(topic, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(("name", "value"), EACH, ids=str)
def test_each_setting_is_taken_and_kept(bus: Bus, name: str, value: Any) -> None:
    if name == "compression":
        pytest.importorskip({"lz4": "lz4", "zstd": "zstandard"}[value])
    assert setting(bus.topic("t", **{name: value}), name) == value
    assert setting(bus.topic("t"), name) == value
    assert setting(bus.topic("t", **{name: value}), name) == value
    assert setting(bus.create_topic("u", **{name: value}), name) == value


@pytest.mark.needs("durable")
def test_settings_are_kept_over_reopening(open_bus: OpenBus) -> None:
    chosen = {"retention_ms": 5, "retention_bytes": 6, "segment_bytes": 7, "cleanup": "compact,delete"}
    with open_bus() as bus:
        bus.topic("t", partitions=3, **chosen)
    with open_bus() as bus:
        topic = bus.topic("t", partitions=3, **chosen)
        assert {name: setting(topic, name) for name in DEFAULTS} == DEFAULTS | chosen


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_a_value_that_means_nothing_is_refused_and_nothing_created(bus: Bus, name: str, value: Any) -> None:
    for create in (bus.topic, bus.create_topic):
        with pytest.raises(errors.ConfigError, match=name):
            create("t", **{name: value})
    assert bus.topics() == []


def test_an_unknown_setting_is_refused(bus: Bus) -> None:
    for create in (bus.topic, bus.create_topic):
        with pytest.raises(errors.ConfigError, match="retention"):
            create("t", retention=5)
    assert bus.topics() == []
    topic = bus.topic("t")
    with pytest.raises(errors.ConfigError):
        bus.topic("t", retention=5)
    with pytest.raises(errors.ConfigError):
        topic.alter(retention=5)


@pytest.mark.parametrize(
    ("name", "stored", "asked"),
    [
        ("retention_ms", 1111, 2222),
        ("retention_ms", None, 2222),
        ("retention_ms", 1111, None),
        ("retention_bytes", 1111, 2222),
        ("segment_bytes", 1111, 2222),
        ("segment_ms", 1111, 2222),
        ("delete_retention_ms", 1111, 2222),
        ("max_message_bytes", 1111, 2222),
        ("cleanup", "delete", "compact"),
        ("partitioner", "xxh3", "murmur2"),
        ("compression", "none", "zstd"),
    ],
)
def test_a_setting_that_differs_is_refused_naming_both(bus: Bus, name: str, stored: Any, asked: Any) -> None:
    bus.create_topic("t", **{name: stored})
    with pytest.raises(errors.ConfigError, match=name) as caught:
        bus.topic("t", **{name: asked})
    assert str(stored) in str(caught.value)
    assert str(asked) in str(caught.value)
    assert setting(bus.topic("t", **{name: stored}), name) == stored


def test_a_default_said_aloud_is_the_stored_one(bus: Bus) -> None:
    bus.create_topic("t")
    assert bus.topic("t", **DEFAULTS).partitions == 1


# --- the count of partitions --------------------------------------------------------------------------------------


def test_the_count_must_be_the_present_one(bus: Bus) -> None:
    bus.create_topic("t", partitions=4)
    assert bus.topic("t").partitions == 4
    assert bus.topic("t", partitions=4).partitions == 4
    for count in (1, 3, 5):
        with pytest.raises(errors.ConfigError) as caught:
            bus.topic("t", partitions=count)
        assert "4" in str(caught.value)
        assert str(count) in str(caught.value)
    assert bus.topic("t").partitions == 4


def test_or_the_one_it_was_created_with(bus: Bus) -> None:
    bus.topic("t", partitions=2).increase_partitions(5)
    for count in (None, 2, 5):
        assert bus.topic("t", partitions=count).partitions == 5
    for count in (1, 3, 4, 6):
        with pytest.raises(errors.ConfigError):
            bus.topic("t", partitions=count)


def test_a_topic_without_a_count_takes_the_first_asked(bus: Bus) -> None:
    first = bus.topic("t")
    assert first.partitions == 1
    assert bus.topic("t").partitions == 1
    assert bus.topic("t", partitions=3).partitions == 3
    assert bus.topic("t").partitions == 3
    put(bus, first, b"x", partition=2)
    for count in (2, 4):
        with pytest.raises(errors.ConfigError):
            bus.topic("t", partitions=count)
    assert [message.partition for message in bus.topic("t").read()] == [2]


def test_but_not_when_something_is_in_it(bus: Bus) -> None:
    put(bus, bus.topic("t"), b"x")
    with pytest.raises(errors.ConfigError):
        bus.topic("t", partitions=3)
    assert bus.topic("t", partitions=1).partitions == 1


def test_nor_when_a_count_was_given(bus: Bus) -> None:
    bus.topic("t", partitions=1)
    with pytest.raises(errors.ConfigError):
        bus.topic("t", partitions=3)
    assert bus.topic("t").partitions == 1


@pytest.mark.needs("durable")
def test_counts_are_kept_over_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        bus.topic("counted", partitions=2).increase_partitions(3)
        bus.topic("open")
    with open_bus() as bus:
        assert bus.topic("counted", partitions=2).partitions == 3
        assert bus.topic("open", partitions=4).partitions == 4
    with open_bus() as bus:
        assert bus.topic("open").partitions == 4
        with pytest.raises(errors.ConfigError):
            bus.topic("counted", partitions=1)


# --- alter --------------------------------------------------------------------------------------------------------


def test_alter_changes_what_is_stored(bus: Bus) -> None:
    topic = bus.topic("t", retention_ms=5)
    topic.alter(retention_ms=6, segment_bytes=1000)
    assert setting(topic, "retention_ms") == 6
    again = bus.topic("t", retention_ms=6, segment_bytes=1000)
    assert setting(again, "retention_ms") == 6
    with pytest.raises(errors.ConfigError):
        bus.topic("t", retention_ms=5)
    topic.alter(retention_ms=None)
    assert setting(bus.topic("t"), "retention_ms") is None


@pytest.mark.needs("durable")
def test_what_was_altered_is_kept_over_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        bus.topic("t", retention_ms=5).alter(retention_ms=6)
    with open_bus() as bus:
        assert setting(bus.topic("t"), "retention_ms") == 6


@pytest.mark.parametrize(("name", "value"), [bad for bad in BAD if bad[0] != "partitions"], ids=str)
def test_alter_refuses_what_means_nothing_and_changes_nothing(bus: Bus, name: str, value: Any) -> None:
    topic = bus.topic("t")
    with pytest.raises(errors.ConfigError):
        topic.alter(**{"retention_ms": 77, name: value})
    assert {each: setting(bus.topic("t"), each) for each in DEFAULTS} == DEFAULTS


def test_an_altered_limit_holds_from_the_next_send(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        producer.send(topic, b"x" * 100)
        topic.alter(max_message_bytes=50)
        with pytest.raises(errors.MessageTooLargeError):
            producer.send(topic, b"x" * 100)
        topic.alter(cleanup="compact")
        with pytest.raises(errors.ConfigError):
            producer.send(topic, b"x")
    assert values(topic.read()) == [b"x" * 100]


# --- what settings do to messages: nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_compression_changes_no_message(bus: Bus, compression: str) -> None:
    if compression != "none":
        pytest.importorskip({"lz4": "lz4", "zstd": "zstandard"}[compression])
    topic = bus.topic("t", compression=compression)
    sent = [b"", b"x", b"abc" * 10_000, bytes(range(256)) * 20, *numbers(500)]
    put(bus, topic, *sent)
    put_apart(bus, topic, *sent[:4])
    assert values(topic.read()) == sent + sent[:4]


@pytest.mark.needs("durable")
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_what_was_compressed_is_read_after_the_setting_changed(open_bus: OpenBus, compression: str) -> None:
    pytest.importorskip({"lz4": "lz4", "zstd": "zstandard"}[compression])
    with open_bus() as bus:
        topic = bus.topic("t", compression=compression)
        put(bus, topic, b"a" * 1000)
        topic.alter(compression="none")
        put(bus, topic, b"b" * 1000)
    with open_bus() as bus:
        assert values(bus.topic("t").read()) == [b"a" * 1000, b"b" * 1000]


@pytest.mark.parametrize("segment_bytes", [1, 100, 1000])
def test_segments_that_roll_by_size_lose_nothing(bus: Bus, segment_bytes: int) -> None:
    topic = bus.topic("t", segment_bytes=segment_bytes)
    sent = put_apart(bus, topic, *numbers(40))
    put(bus, topic, *numbers(40, 40))
    assert values(topic.read()) == numbers(80)
    assert [place.offset for place in sent] == list(range(40))
    assert values(topic.read(partition=0, start=33, stop=47)) == numbers(14, 33)


@pytest.mark.needs("clock")
def test_segments_that_roll_by_age_lose_nothing(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t", segment_ms=1000)
    for value in numbers(10):
        put(bus, topic, value)
        clock.advance(0.7)
    assert values(topic.read()) == numbers(10)
    assert values(topic.read(partition=0, start=5)) == numbers(5, 5)
