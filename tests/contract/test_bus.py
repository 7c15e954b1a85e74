"""API.md, "Bus": open, topics by name, close, sync, and buses that share a location or only read it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlite
from streamlite import Bus, TopicPartition, errors
from streamlite.testing.clock import VirtualClock

from .helpers import PATIENCE, beside, drain, numbers, put, snapshot, take, tps, values

OpenBus = Callable[..., Bus]


# --- open ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["always", "interval", "never"])
def test_every_level_of_sync_works(open_bus: OpenBus, sync: str) -> None:
    with open_bus(sync=sync, sync_interval_ms=10) as bus:
        put(bus, bus.topic("t"), *numbers(3))
        bus.sync()
        assert values(bus.topic("t").read()) == numbers(3)


@pytest.mark.parametrize(
    "options",
    [
        {"sync": "sometimes"},
        {"sync": None},
        {"sync": True},
        {"sync_interval_ms": -1},
        {"sync_interval_ms": "100"},
        {"lock_timeout": -1},
        {"lock_timeout": "30"},
        {"read_only": "yes"},
        {"clock": 5},
    ],
    ids=str,
)
def test_an_option_that_means_nothing_is_a_config_error(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError):
        streamlite.open(tmp_path / "bus", **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(errors.ConfigError):
        streamlite.open(":memory:", **options)


def test_an_option_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises((TypeError, errors.ConfigError)):
        streamlite.open(tmp_path / "bus", sinc="never")  # type: ignore[call-arg]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("location", [None, 5, b":memory:", ["bus"]], ids=repr)
def test_a_location_that_is_none_is_a_config_error(location: Any) -> None:
    with pytest.raises(errors.ConfigError):
        streamlite.open(location)


def test_a_kafka_cluster_is_not_supported_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UnsupportedError):
        streamlite.open("kafka://localhost:9092")
    assert list(tmp_path.iterdir()) == []


def test_memory_keeps_nothing() -> None:
    with streamlite.open(":memory:") as first, streamlite.open(":memory:") as second:
        put(first, first.topic("t"), b"x")
        assert second.topics() == []
    with streamlite.open(":memory:") as third:
        assert third.topics() == []


def test_the_clock_given_is_the_one_used(open_bus: OpenBus) -> None:
    class Fixed:
        """A user's clock: three methods, no more."""

        def time_ms(self) -> int:
            return 1234

        def monotonic(self) -> float:
            return 5.0

        def wait(self, condition: Any, timeout: float | None) -> bool:
            return bool(condition.wait(0.001))

    with open_bus(clock=Fixed()) as bus:
        assert put(bus, bus.topic("t"), b"x")[0].timestamp == 1234


def test_a_long_poll_costs_no_time_on_a_virtual_clock(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t")
    with bus.consumer("t") as consumer:
        before = clock.monotonic()
        assert consumer.poll(timeout=60) == []
        assert clock.monotonic() - before == pytest.approx(60)


# --- a directory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_a_directory_is_created_by_path(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    with streamlite.open(kind(tmp_path / "bus")) as bus:
        bus.topic("t")
    assert (tmp_path / "bus").is_dir()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_everything_is_the_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with streamlite.open(tmp_path / "bus") as bus:
            put(bus, bus.topic("t"), b"x")
            with bus.consumer("t", group="g") as consumer:
                consumer.poll()
                consumer.commit()
    finally:
        os.umask(before)
    for path in [tmp_path / "bus", *(tmp_path / "bus").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_empty_directory_may_be_there_already(tmp_path: Path) -> None:
    (tmp_path / "bus").mkdir(mode=0o700)
    with streamlite.open(tmp_path / "bus") as bus:
        put(bus, bus.topic("t"), b"x")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bus").write_bytes(b"precious")
    with pytest.raises(errors.FormatError):
        streamlite.open(tmp_path / "bus")
    assert (tmp_path / "bus").read_bytes() == b"precious"


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "letter.txt").write_bytes(b"precious")
    with pytest.raises(errors.FormatError):
        streamlite.open(home)
    assert [path.name for path in home.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    with streamlite.open(tmp_path / "bus") as bus:
        bus.topic("t")
    (tmp_path / "bus").chmod(mode)
    for read_only in (False, True):
        with pytest.raises(errors.FormatError):
            streamlite.open(tmp_path / "bus", read_only=read_only)


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    with streamlite.open(tmp_path / "bus") as bus:
        bus.topic("t")
    about = tmp_path / "bus" / "bus.json"
    content = json.loads(about.read_bytes())
    version = next(name for name in content if "format" in name or "version" in name)
    about.write_text(json.dumps({**content, version: content[version] + 1000}))
    before = snapshot(tmp_path / "bus")
    for read_only in (False, True):
        with pytest.raises(errors.FormatError):
            streamlite.open(tmp_path / "bus", read_only=read_only)
    assert snapshot(tmp_path / "bus") == before


def test_a_bus_without_sense_in_its_description_is_refused(tmp_path: Path) -> None:
    with streamlite.open(tmp_path / "bus") as bus:
        bus.topic("t")
    (tmp_path / "bus" / "bus.json").write_bytes(b"\xff{nonsense")
    with pytest.raises((errors.FormatError, errors.CorruptionError)):
        streamlite.open(tmp_path / "bus")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_refused_but_to_read(tmp_path: Path) -> None:
    with streamlite.open(tmp_path / "bus") as bus:
        put(bus, bus.topic("t"), b"x")
    (tmp_path / "bus").chmod(0o500)
    with pytest.raises(errors.StorageError):
        streamlite.open(tmp_path / "bus")
    with streamlite.open(tmp_path / "bus", read_only=True) as bus:
        assert values(bus.topic("t").read()) == [b"x"]


# --- topics -------------------------------------------------------------------------------------------------------


def test_topics_are_listed_by_name(bus: Bus) -> None:
    assert bus.topics() == []
    bus.topic("b")
    bus.create_topic("a")
    assert sorted(bus.topics()) == ["a", "b"]
    bus.delete_topic("b")
    assert bus.topics() == ["a"]


def test_internal_topics_are_not_listed(bus: Bus) -> None:
    put(bus, bus.topic("t"), b"x")
    with bus.consumer("t", group="g") as consumer:
        take(consumer, 1)
        consumer.commit()
    assert bus.topics() == ["t"]


def test_a_topic_that_exists_cannot_be_created(bus: Bus) -> None:
    bus.create_topic("t", partitions=2)
    with pytest.raises(errors.TopicExistsError):
        bus.create_topic("t", partitions=2)
    bus.topic("u")
    with pytest.raises(errors.TopicExistsError):
        bus.create_topic("u")
    assert bus.topic("t").partitions == 2


def test_a_topic_that_does_not_exist_cannot_be_deleted(bus: Bus) -> None:
    with pytest.raises(errors.UnknownTopicError):
        bus.delete_topic("t")
    bus.topic("t")
    bus.delete_topic("t")
    with pytest.raises(errors.UnknownTopicError):
        bus.delete_topic("t")


@pytest.mark.needs("durable")
def test_topics_and_messages_are_there_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        topic = bus.topic("t", partitions=2)
        put(bus, topic, *numbers(5), partition=1)
        bus.topic("gone")
        bus.delete_topic("gone")
    for _ in range(3):
        with open_bus() as bus:
            assert bus.topics() == ["t"]
            assert bus.topic("t").partitions == 2
            assert values(bus.topic("t").read()) == numbers(5)
            assert bus.topic("t").end_offsets() == {TopicPartition("t", 0): 0, TopicPartition("t", 1): 5}


# --- unknown options of producer and consumer ---------------------------------------------------------------------


def test_an_unknown_option_of_a_producer_or_consumer_is_a_config_error(bus: Bus) -> None:
    bus.topic("t")
    with pytest.raises(errors.ConfigError, match="linger"):
        bus.producer(linger=1)
    with pytest.raises(errors.ConfigError, match="from_beginning"):
        bus.consumer("t", from_beginning=True)


# --- close --------------------------------------------------------------------------------------------------------


def test_closing_twice_is_fine(open_bus: OpenBus) -> None:
    bus = open_bus()
    bus.close()
    bus.close()
    with open_bus() as bus:
        bus.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda bus: bus.topic("t"),
        lambda bus: bus.create_topic("u"),
        lambda bus: bus.delete_topic("t"),
        lambda bus: bus.topics(),
        lambda bus: bus.producer(),
        lambda bus: bus.consumer("t"),
        lambda bus: bus.groups(),
        lambda bus: bus.group("g"),
        lambda bus: bus.delete_group("g"),
        lambda bus: bus.reset_offsets("g", "t", to="earliest"),
        lambda bus: bus.sync(),
        lambda bus: bus.maintain(),
    ],
    ids="topic create delete topics producer consumer groups group delete_group reset sync maintain".split(),
)
def test_a_closed_bus_says_so(open_bus: OpenBus, call: Callable[[Bus], Any]) -> None:
    bus = open_bus()
    bus.topic("t")
    bus.close()
    with pytest.raises(errors.ClosedError):
        call(bus)


def test_handles_of_a_closed_bus_say_so(open_bus: OpenBus) -> None:
    bus = open_bus()
    topic = bus.topic("t")
    producer, consumer = bus.producer(), bus.consumer("t")
    bus.close()
    for call in (
        lambda: producer.send(topic, b"x"),
        consumer.poll,
        lambda: list(topic.read()),
        topic.end_offsets,
        lambda: topic.alter(retention_ms=1),
    ):
        with pytest.raises(errors.ClosedError):
            call()


def test_leaving_the_block_closes(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        pass
    with pytest.raises(errors.ClosedError):
        bus.topics()


def test_an_exception_leaves_the_block_and_closes(open_bus: OpenBus) -> None:
    class Oops(Exception):
        pass

    with pytest.raises(Oops), open_bus() as bus:
        raise Oops
    with pytest.raises(errors.ClosedError):
        bus.topics()


def test_closing_the_bus_flushes_its_producers(open_bus: OpenBus) -> None:
    bus = open_bus()
    topic = bus.topic("t")
    producer = bus.producer(linger_ms=60_000)
    deliveries = [producer.send(topic, value) for value in numbers(10)]
    bus.close()
    assert [delivery.done() for delivery in deliveries] == [True] * 10
    assert [delivery.exception() for delivery in deliveries] == [None] * 10


@pytest.mark.needs("durable")
def test_closing_the_bus_stores_what_its_producers_held(open_bus: OpenBus) -> None:
    bus = open_bus()
    producer = bus.producer(linger_ms=60_000)
    topic = bus.topic("t")
    for value in numbers(10):
        producer.send(topic, value)
    bus.close()
    assert values(open_bus().topic("t").read()) == numbers(10)


@pytest.mark.needs("durable")
def test_closing_the_bus_commits_what_its_consumers_processed(open_bus: OpenBus) -> None:
    bus = open_bus()
    put(bus, bus.topic("t"), *numbers(10))
    consumer = bus.consumer("t", group="g")
    take(consumer, 4)
    take(consumer, 3)
    bus.close()
    bus = open_bus()
    assert bus.group("g").committed == {TopicPartition("t", 0): 4}
    assert bus.group("g").members in ((), [])


def test_closing_the_bus_ends_iteration_in_another_thread(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    put(bus, bus.topic("t"), b"0")
    consumer = bus.consumer("t")
    reading = beside(lambda: values(consumer))
    bus.close()
    assert reading.result(timeout=PATIENCE) in ([], [b"0"])


# --- several buses at one location --------------------------------------------------------------------------------


@pytest.mark.needs("shared")
def test_two_buses_see_each_others_topics_and_messages(open_bus: OpenBus) -> None:
    first, second = open_bus(), open_bus()
    topic = first.topic("t", partitions=2, retention_ms=10**9)
    assert second.topics() == ["t"]
    assert second.topic("t", partitions=2, retention_ms=10**9).partitions == 2
    put(first, topic, *numbers(5), partition=0)
    put(second, "t", *numbers(5, 5), partition=0)
    assert values(first.topic("t").read()) == values(second.topic("t").read()) == numbers(10)
    with second.consumer("t") as consumer:
        assert values(drain(consumer)) == numbers(10)
        put(first, topic, b"late", partition=1)
        assert values(drain(consumer)) == [b"late"]
    second.delete_topic("t")
    assert first.topics() == []


@pytest.mark.needs("shared")
def test_what_one_bus_committed_another_resumes_from(open_bus: OpenBus) -> None:
    first, second = open_bus(), open_bus()
    put(first, first.topic("t"), *numbers(10))
    with first.consumer("t", group="g") as consumer:
        take(consumer, 6)
        consumer.commit()
    with second.consumer("t", group="g") as consumer:
        assert values(drain(consumer)) == numbers(4, 6)


@pytest.mark.needs("shared")
def test_one_bus_goes_on_when_another_closes(open_bus: OpenBus) -> None:
    first, second = open_bus(), open_bus()
    put(first, first.topic("t"), b"1")
    first.close()
    put(second, "t", b"2")
    assert values(second.topic("t").read()) == [b"1", b"2"]


# --- read_only ----------------------------------------------------------------------------------------------------


@pytest.mark.needs("durable")
def test_a_read_only_bus_reads(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        put(bus, bus.topic("t", partitions=2), *numbers(10), partition=1)
    with open_bus(read_only=True) as bus:
        topic = bus.topic("t")
        assert bus.topics() == ["t"]
        assert topic.partitions == 2
        assert values(topic.read()) == numbers(10)
        assert topic.end_offsets()[TopicPartition("t", 1)] == 10
        with bus.consumer("t") as consumer:
            assert consumer.assignment() == tps("t", 2)
            assert values(drain(consumer)) == numbers(10)
            consumer.seek(TopicPartition("t", 1), 7)
            assert values(drain(consumer)) == numbers(3, 7)


@pytest.mark.needs("durable")
@pytest.mark.parametrize(
    "call",
    [
        lambda bus: bus.producer().send("t", b"x").result(timeout=PATIENCE),
        lambda bus: bus.create_topic("u"),
        lambda bus: bus.delete_topic("t"),
        lambda bus: bus.topic("t").alter(retention_ms=1),
        lambda bus: bus.topic("t").increase_partitions(5),
        lambda bus: bus.topic("t").truncate_before(0, 1),
        lambda bus: bus.consumer("t", group="g"),
        lambda bus: bus.delete_group("g"),
        lambda bus: bus.reset_offsets("g", "t", to="earliest"),
    ],
    ids="send create_topic delete_topic alter increase_partitions truncate_before group delete_group reset".split(),
)
def test_a_read_only_bus_changes_nothing(open_bus: OpenBus, call: Callable[[Bus], Any]) -> None:
    with open_bus() as bus:
        put(bus, bus.topic("t"), *numbers(3))
        with bus.consumer("t", group="g") as consumer:
            drain(consumer)
    with open_bus(read_only=True) as bus:
        with pytest.raises(errors.UnsupportedError):
            call(bus)
        assert values(bus.topic("t").read()) == numbers(3)


@pytest.mark.needs("durable")
def test_a_read_only_bus_creates_no_topic(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        bus.topic("t")
    with open_bus(read_only=True) as bus:
        with pytest.raises((errors.UnknownTopicError, errors.UnsupportedError)):
            bus.topic("u")
        assert bus.topics() == ["t"]


@pytest.mark.needs("directory")
def test_a_read_only_bus_leaves_every_byte_as_it_was(open_bus: OpenBus, location: Path) -> None:
    with open_bus() as bus:
        put(bus, bus.topic("t", segment_bytes=100), *numbers(50))
    before = snapshot(location)
    with open_bus(read_only=True) as bus:
        assert len(list(bus.topic("t").read())) == 50
        with bus.consumer("t") as consumer:
            assert len(drain(consumer)) == 50
    assert snapshot(location) == before


@pytest.mark.needs("directory")
def test_reading_only_creates_no_directory(tmp_path: Path) -> None:
    with pytest.raises(errors.StreamliteError):
        streamlite.open(tmp_path / "absent", read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("shared")
def test_a_read_only_bus_follows_the_log_and_keeps_nobody_out(open_bus: OpenBus) -> None:
    with open_bus() as writer:
        put(writer, writer.topic("t", segment_bytes=200), *numbers(20))
    reader = open_bus(read_only=True)
    topic = reader.topic("t")
    with reader.consumer("t") as consumer, open_bus() as writer:
        assert values(drain(consumer)) == numbers(20)
        put(writer, "t", *numbers(30, 20))
        assert values(take(consumer, 30)) == numbers(30, 20)
        assert values(topic.read()) == numbers(50)
        writer.topic("later")
        assert sorted(reader.topics()) == ["later", "t"]
        writer.delete_topic("t")
        assert reader.topics() == ["later"]
