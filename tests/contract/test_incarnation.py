"""API.md, "Errors": a topic deleted or created anew is told from the old one by every handle and every commit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from streamlite import Bus, Topic, TopicPartition, errors

from .helpers import PATIENCE, committed, drain, numbers, put, take, values

OpenBus = Callable[..., Bus]

TP = TopicPartition("t", 0)

CALLS: dict[str, Callable[[Topic], Any]] = {
    "read": lambda topic: list(topic.read()),
    "read of one": lambda topic: list(topic.read(partition=0)),
    "read_columns": lambda topic: list(topic.read_columns()),
    "end_offsets": lambda topic: topic.end_offsets(),
    "beginning_offsets": lambda topic: topic.beginning_offsets(),
    "alter": lambda topic: topic.alter(retention_ms=5),
    "increase_partitions": lambda topic: topic.increase_partitions(9),
    "truncate_before": lambda topic: topic.truncate_before(0, 1),
    "consumer": lambda topic: topic.bus.consumer(topic),
    "consumer of a group": lambda topic: topic.bus.consumer(topic, group="g"),
    "send": lambda topic: send(topic.bus, topic),
    "send_many": lambda topic: topic.bus.producer().send_many(topic, [b"x"]).result(timeout=PATIENCE),
}


def send(bus: Bus, topic: Topic | str) -> Any:
    """One message; what is wrong comes at once or with the delivery."""
    with bus.producer() as producer:
        return producer.send(topic, b"x").result(timeout=PATIENCE)


@pytest.mark.parametrize("anew", [False, True], ids=["deleted", "created anew"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_old_handle_says_so(bus: Bus, call: Callable[[Topic], Any], anew: bool) -> None:
    topic = bus.topic("t")
    put(bus, topic, *numbers(3))
    bus.delete_topic("t")
    if anew:
        put(bus, bus.create_topic("t", retention_ms=7), b"new")
    with pytest.raises(errors.UnknownTopicError, match="t"):
        call(topic)
    if anew:
        assert values(bus.topic("t", partitions=1, retention_ms=7).read()) == [b"new"]
    else:
        assert bus.topics() == []


@pytest.mark.needs("shared")
@pytest.mark.parametrize("anew", [False, True], ids=["deleted", "created anew"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_old_handle_of_another_bus_says_so(open_bus: OpenBus, call: Callable[[Topic], Any], anew: bool) -> None:
    first, second = open_bus(), open_bus()
    topic = first.topic("t")
    put(first, topic, *numbers(3))
    second.delete_topic("t")
    if anew:
        put(second, second.create_topic("t", retention_ms=7), b"new")
    with pytest.raises(errors.UnknownTopicError, match="t"):
        call(topic)
    if anew:
        assert values(second.topic("t", partitions=1, retention_ms=7).read()) == [b"new"]
    else:
        assert second.topics() == []


def test_the_new_topic_has_nothing_of_the_old(bus: Bus) -> None:
    old = bus.topic("t", partitions=4, retention_ms=10**9, segment_bytes=100)
    put(bus, old, *numbers(50))
    old.truncate_before(0, 1)
    bus.delete_topic("t")
    topic = bus.create_topic("t", partitions=2)
    assert topic.partitions == 2
    assert list(topic.read()) == []
    assert topic.end_offsets() == topic.beginning_offsets() == {TP: 0, TopicPartition("t", 1): 0}
    assert put(bus, topic, b"new", partition=0)[0].offset == 0
    assert values(topic.read()) == [b"new"]


def test_again_and_again(bus: Bus) -> None:
    for turn in range(5):
        topic = bus.create_topic("t", partitions=turn + 1)
        put(bus, topic, *numbers(3, turn * 10), partition=turn)
        assert values(bus.topic("t").read()) == numbers(3, turn * 10)
        with bus.consumer("t", group="g") as consumer:
            assert values(drain(consumer)) == numbers(3, turn * 10)
        bus.delete_topic("t")
    assert bus.topics() == []


@pytest.mark.needs("durable")
def test_what_was_deleted_is_gone_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        put(bus, bus.topic("t"), *numbers(5))
        put(bus, bus.topic("u"), *numbers(5))
        bus.delete_topic("t")
        bus.delete_topic("u")
        put(bus, bus.create_topic("u"), b"new")
    with open_bus() as bus:
        assert bus.topics() == ["u"]
        assert values(bus.topic("u").read()) == [b"new"]
        assert list(bus.topic("t").read()) == []


# --- producers and consumers ----------------------------------------------------------------------------------------


def test_a_producer_by_name_sends_to_the_topic_of_now(bus: Bus) -> None:
    put_into = bus.topic("t")
    with bus.producer() as producer:
        producer.send("t", b"old").result(timeout=PATIENCE)
        bus.delete_topic("t")
        with pytest.raises(errors.UnknownTopicError):
            producer.send("t", b"nobody")
        topic = bus.create_topic("t")
        producer.send("t", b"new").result(timeout=PATIENCE)
        with pytest.raises(errors.UnknownTopicError):
            producer.send(put_into, b"old").result(timeout=PATIENCE)
    assert values(topic.read()) == [b"new"]


def test_what_lingers_for_the_old_topic_never_reaches_the_new(bus: Bus) -> None:
    producer = bus.producer(linger_ms=60_000)
    old = bus.topic("t")
    deliveries = [producer.send(old, value) for value in numbers(5)]
    bus.delete_topic("t")
    topic = bus.create_topic("t")
    for delivery in deliveries:
        assert isinstance(delivery.exception(timeout=PATIENCE), (errors.UnknownTopicError, type(None)))
    producer.close()
    assert list(topic.read()) == []


@pytest.mark.needs("shared")
def test_nor_when_another_bus_deletes_it(open_bus: OpenBus) -> None:
    first, second = open_bus(), open_bus()
    producer = first.producer(linger_ms=60_000)
    old = first.topic("t")
    deliveries = [producer.send(old, value) for value in numbers(5)]
    second.delete_topic("t")
    topic = second.create_topic("t")
    for delivery in deliveries:
        assert isinstance(delivery.exception(timeout=PATIENCE), (errors.UnknownTopicError, type(None)))
    producer.close()
    assert list(topic.read()) == []


@pytest.mark.parametrize("anew", [False, True], ids=["deleted", "created anew"])
@pytest.mark.parametrize("how", ["poll", "poll_columns", "iteration"])
def test_a_consumer_of_the_old_topic_says_so(bus: Bus, how: str, anew: bool) -> None:
    put(bus, bus.topic("t"), *numbers(3))
    with bus.consumer("t") as consumer:
        take(consumer, 3)
        bus.delete_topic("t")
        if anew:
            put(bus, bus.create_topic("t"), b"new")
        calls: dict[str, Callable[[], Any]] = {
            "poll": lambda: consumer.poll(timeout=1),
            "poll_columns": lambda: consumer.poll_columns(timeout=1),
            "iteration": lambda: list(consumer.messages(timeout=1)),
        }
        with pytest.raises(errors.UnknownTopicError):
            calls[how]()


def test_old_commits_are_not_used(bus: Bus) -> None:
    put(bus, bus.topic("t"), *numbers(10))
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.commit({TP: 7})
    bus.delete_topic("t")
    put(bus, bus.create_topic("t"), *numbers(10, 100))
    assert committed(bus, "t", "g") is None
    assert TP not in bus.group("g").committed
    with bus.consumer("t", group="g") as consumer:
        assert consumer.position(TP) == 0
        assert values(drain(consumer)) == numbers(10, 100)
    assert committed(bus, "t", "g") == 10
    assert bus.group("g").committed == {TP: 10}


@pytest.mark.needs("durable")
def test_old_commits_are_not_used_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        put(bus, bus.topic("t"), *numbers(10))
        with bus.consumer("t", group="g") as consumer:
            consumer.commit({TP: 7})
        bus.delete_topic("t")
    with open_bus() as bus:
        put(bus, bus.topic("t"), *numbers(10, 100))
    with open_bus() as bus, bus.consumer("t", group="g") as consumer:
        assert consumer.committed(TP) is None
        assert values(drain(consumer)) == numbers(10, 100)


def test_an_incarnation_tells_a_topic_from_the_next_of_its_name(bus: Bus) -> None:
    bus.topic("t", partitions=2)
    bus.topic("u")
    with bus.consumer("t", "u") as consumer:
        first, other = consumer.incarnation(TP), consumer.incarnation(TopicPartition("u", 0))
        assert first == consumer.incarnation(TopicPartition("t", 1)) != other
        assert 0 < first < 1 << 63
        with pytest.raises(errors.UnknownTopicError):
            consumer.incarnation(TopicPartition("t", 2))
    bus.delete_topic("t")
    bus.create_topic("t")
    with bus.consumer("t") as consumer:
        assert consumer.incarnation(TP) not in (first, other)
        with pytest.raises(errors.ConfigError):
            consumer.incarnation(TopicPartition("u", 0))


@pytest.mark.needs("durable")
def test_an_incarnation_is_the_same_after_reopening(open_bus: OpenBus) -> None:
    found = []
    for _ in range(2):
        with open_bus() as bus:
            bus.topic("t")
            with bus.consumer("t") as consumer:
                found.append(consumer.incarnation(TP))
    assert found[0] == found[1]


def test_commits_of_other_topics_stay(bus: Bus) -> None:
    put(bus, bus.topic("t"), *numbers(10))
    put(bus, bus.topic("u"), *numbers(10))
    with bus.consumer("t", "u", group="g", auto_commit=False) as consumer:
        consumer.commit({TP: 7, TopicPartition("u", 0): 6})
    bus.delete_topic("t")
    assert bus.group("g").committed == {TopicPartition("u", 0): 6}
    assert bus.group("g").lag == {TopicPartition("u", 0): 4}


@pytest.mark.parametrize("how", ["by itself", "all", "a message"])
def test_a_late_commit_of_the_old_topic_is_not_used(bus: Bus, how: str) -> None:
    put(bus, bus.topic("t"), *numbers(10))
    consumer = bus.consumer("t", group="g", auto_commit_interval_ms=10**9)
    message = take(consumer, 3)[-1]
    assert consumer.poll(max_messages=4)
    bus.delete_topic("t")
    put(bus, bus.create_topic("t"), *numbers(10, 100))
    # Whether it is refused, or stored for the old topic, is the backend's; the new topic has no part in it.
    with suppress(errors.StreamliteError):
        if how != "by itself":
            consumer.commit(None if how == "all" else message)
    with suppress(errors.StreamliteError):
        consumer.close()
    assert committed(bus, "t", "g") is None
    with bus.consumer("t", group="g") as consumer:
        assert values(drain(consumer)) == numbers(10, 100)
