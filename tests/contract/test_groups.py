"""API.md, "Bus": groups, their description, deleting them, and setting their offsets. Groups of no member or of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from streamlite import Bus, GroupDescription, Topic, TopicPartition, errors

from .helpers import T0, by_partition, committed, drain, numbers, put, take, tps, values

OpenBus = Callable[..., Bus]

TP = TopicPartition("t", 0)
TP1 = TopicPartition("t", 1)


def committed_group(bus: Bus, offset: int = 4) -> Topic:
    """A topic `t` of two partitions with ten timed messages each, and a group `g` that committed `offset` in both."""
    topic = bus.topic("t", partitions=2)
    with bus.producer() as producer:
        for partition in (0, 1):
            times = [T0 + 1000 * number for number in range(10)]
            producer.send_many(topic, numbers(10, 1000 * partition), partition=partition, timestamps=times)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.commit({TP: offset, TP1: offset})
    return topic


def test_groups_are_listed(bus: Bus) -> None:
    assert bus.groups() == []
    committed_group(bus)
    assert bus.groups() == ["g"]
    with bus.consumer("t", group="another") as consumer:
        assert sorted(bus.groups()) == ["another", "g"]
        take(consumer, 1)
        consumer.commit()
    assert sorted(bus.groups()) == ["another", "g"]


@pytest.mark.needs("durable")
def test_groups_are_there_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        committed_group(bus)
    with open_bus() as bus:
        assert bus.groups() == ["g"]
        assert bus.group("g").committed == {TP: 4, TP1: 4}
        assert bus.group("g").lag == {TP: 6, TP1: 6}


def test_a_group_is_described(bus: Bus) -> None:
    topic = committed_group(bus)
    found = bus.group("g")
    assert isinstance(found, GroupDescription)
    assert list(found.members) == []
    assert isinstance(found.generation, int)
    assert found.committed == {TP: 4, TP1: 4}
    assert found.lag == {TP: 6, TP1: 6}
    put(bus, topic, *numbers(3), partition=1)
    assert bus.group("g").lag == {TP: 6, TP1: 9}


def test_a_member_is_described(bus: Bus) -> None:
    committed_group(bus)
    with bus.consumer("t", group="g") as consumer:
        (member,) = bus.group("g").members
        assert isinstance(member.id, str)
        assert member.id
        assert member.pid == os.getpid()
        assert set(member.partitions) == consumer.assignment() == tps("t", 2)
    assert list(bus.group("g").members) == []


def test_lag_where_nothing_is_committed_counts_from_the_beginning(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    put(bus, topic, *numbers(10), partition=0)
    put(bus, topic, *numbers(10), partition=1)
    topic.truncate_before(1, 3)
    with bus.consumer("t", group="g") as consumer:
        assert bus.group("g").committed == {}
        assert bus.group("g").lag == {TP: 10, TP1: 7}
        drain(consumer)
        consumer.seek(TP1, 5)
        consumer.commit({TP: 9})
        # A group's lag counts from what is committed, not from where its member is.
        assert bus.group("g").lag[TP] == 1
        assert consumer.lag() == {TP: 0, TP1: 5}


def test_the_generation_rises_with_every_member(bus: Bus) -> None:
    bus.topic("t")
    generations = []
    for _ in range(3):
        with bus.consumer("t", group="g") as consumer:
            consumer.commit({TP: 0})
            generations.append(bus.group("g").generation)
    assert generations == sorted(set(generations))


def test_a_group_that_is_not_there(bus: Bus) -> None:
    bus.topic("t")
    for call in (lambda: bus.group("nobody"), lambda: bus.delete_group("nobody")):
        with pytest.raises(errors.UnknownGroupError, match="nobody"):
            call()
    assert bus.groups() == []


# --- deleting -----------------------------------------------------------------------------------------------------


def test_a_deleted_group_is_gone_and_begins_anew(bus: Bus) -> None:
    committed_group(bus)
    bus.delete_group("g")
    assert bus.groups() == []
    with pytest.raises(errors.UnknownGroupError):
        bus.group("g")
    with pytest.raises(errors.UnknownGroupError):
        bus.delete_group("g")
    with bus.consumer("t", group="g") as consumer:
        assert consumer.committed(TP) is None
        assert by_partition(drain(consumer)) == {0: numbers(10), 1: numbers(10, 1000)}
    assert committed(bus, "t", "g") == 10


@pytest.mark.needs("durable")
def test_a_deleted_group_is_gone_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        committed_group(bus)
        bus.delete_group("g")
    with open_bus() as bus:
        assert bus.groups() == []
        assert committed(bus, "t", "g") is None


def test_a_group_with_a_member_is_not_deleted(bus: Bus) -> None:
    committed_group(bus)
    with bus.consumer("t", group="g") as consumer:
        with pytest.raises(errors.GroupActiveError, match="g"):
            bus.delete_group("g")
        assert consumer.committed(TP) == 4
        assert values(take(consumer, 1))
    bus.delete_group("g")
    assert bus.groups() == []


def test_deleting_one_group_leaves_the_others(bus: Bus) -> None:
    committed_group(bus)
    with bus.consumer("t", group="h", auto_commit=False) as consumer:
        consumer.commit({TP: 7})
    bus.delete_group("g")
    assert bus.groups() == ["h"]
    assert bus.group("h").committed == {TP: 7}


# --- reset_offsets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"to": "earliest"}, 1),
        ({"to": "latest"}, 10),
        ({"offset": 7}, 7),
        ({"offset": 1}, 1),
        ({"offset": 10}, 10),
        ({"timestamp_ms": T0 + 6000}, 6),
        ({"timestamp_ms": T0 + 6001}, 7),
        ({"timestamp_ms": 0}, 1),
        ({"shift": 2}, 6),
        ({"shift": -2}, 2),
        ({"shift": 0}, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("partition", [None, 1])
def test_offsets_are_set(bus: Bus, how: dict[str, Any], expected: int, partition: int | None) -> None:
    topic = committed_group(bus)
    topic.truncate_before(0, 1)
    topic.truncate_before(1, 1)
    bus.reset_offsets("g", "t", partition=partition, **how)
    assert bus.group("g").committed == {TP: expected if partition is None else 4, TP1: expected}
    with bus.consumer("t", group="g") as consumer:
        assert consumer.position(TP1) == expected
        left = by_partition(drain(consumer)).get(1, [])
        assert left == numbers(10 - expected, 1000 + expected)


@pytest.mark.needs("durable")
def test_offsets_that_were_set_are_there_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        committed_group(bus)
        bus.reset_offsets("g", "t", offset=8)
    with open_bus() as bus:
        assert bus.group("g").committed == {TP: 8, TP1: 8}


def test_setting_offsets_leaves_other_topics_and_groups(bus: Bus) -> None:
    committed_group(bus)
    put(bus, bus.topic("u"), *numbers(5))
    with bus.consumer("t", "u", group="h", auto_commit=False) as consumer:
        consumer.commit({TP: 3, TopicPartition("u", 0): 2})
    bus.reset_offsets("h", "t", partition=0, to="earliest")
    assert bus.group("h").committed == {TP: 0, TopicPartition("u", 0): 2}
    assert bus.group("g").committed == {TP: 4, TP1: 4}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"partition": 0},
        {"to": "earliest", "offset": 1},
        {"offset": 1, "shift": 1},
        {"timestamp_ms": T0, "to": "latest"},
        {"to": "earliest", "offset": 1, "timestamp_ms": 1, "shift": 1},
        {"to": "middle"},
        {"to": 5},
        {"offset": "1"},
        {"offset": -1},
        {"offset": 1.5},
        {"shift": "1"},
        {"timestamp_ms": "now"},
    ],
    ids=str,
)
def test_exactly_one_way_must_be_told(bus: Bus, how: dict[str, Any]) -> None:
    committed_group(bus)
    with pytest.raises(errors.ConfigError):
        bus.reset_offsets("g", "t", **how)
    assert bus.group("g").committed == {TP: 4, TP1: 4}


def test_offsets_of_what_is_not_there_cannot_be_set(bus: Bus) -> None:
    committed_group(bus)
    with pytest.raises(errors.UnknownTopicError):
        bus.reset_offsets("g", "absent", to="earliest")
    for partition in (2, -1):
        with pytest.raises(errors.UnknownTopicError):
            bus.reset_offsets("g", "t", partition=partition, to="earliest")
    assert bus.group("g").committed == {TP: 4, TP1: 4}
    assert bus.topics() == ["t"]


def test_offsets_are_not_set_under_a_member(bus: Bus) -> None:
    committed_group(bus)
    with bus.consumer("t", group="g") as consumer:
        with pytest.raises(errors.GroupActiveError):
            bus.reset_offsets("g", "t", to="earliest")
        assert consumer.committed(TP) == 4
