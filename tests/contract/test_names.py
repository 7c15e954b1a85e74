"""API.md, "Bus": which names may reach the disk, and that nothing is created under any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamlite import Bus, TopicPartition, errors

from .helpers import INVALID_NAMES, NO_NAMES, VALID_NAMES, put, snapshot, take, values

CALLS: dict[str, Callable[[Bus, Any], Any]] = {
    "topic": lambda bus, name: bus.topic(name),
    "create_topic": lambda bus, name: bus.create_topic(name),
    "delete_topic": lambda bus, name: bus.delete_topic(name),
    "group of consumer": lambda bus, name: bus.consumer("t", group=name),
    "group": lambda bus, name: bus.group(name),
    "delete_group": lambda bus, name: bus.delete_group(name),
    "reset_offsets of group": lambda bus, name: bus.reset_offsets(name, "t", to="earliest"),
    "reset_offsets of topic": lambda bus, name: bus.reset_offsets("g", name, to="earliest"),
    "producer": lambda bus, name: bus.producer(name=name),
    "member": lambda bus, name: bus.consumer("t", group="g", member=name),
    "subscribe": lambda bus, name: bus.consumer().subscribe(name),
    "consumer": lambda bus, name: bus.consumer(name),
    "send": lambda bus, name: bus.producer().send(name, b"x"),
    "send_many": lambda bus, name: bus.producer().send_many(name, [b"x"]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_name_that_is_not_valid_is_refused(bus: Bus, call: Callable[[Bus, Any], Any]) -> None:
    bus.topic("t")
    for name in INVALID_NAMES:
        with pytest.raises(errors.InvalidNameError):
            call(bus, name)
    assert bus.topics() == ["t"]
    assert bus.groups() == []


@pytest.mark.needs("directory")
@pytest.mark.parametrize("name", INVALID_NAMES, ids=repr)
def test_nothing_is_created_under_such_a_name(open_bus: Callable[..., Bus], location: Path, name: str) -> None:
    with open_bus(sync="never") as bus:
        bus.topic("t")
        before = snapshot(location.parent).keys()
        for call in (CALLS["topic"], CALLS["create_topic"], CALLS["group of consumer"]):
            with pytest.raises(errors.InvalidNameError):
                call(bus, name)
        assert snapshot(location.parent).keys() == before


@pytest.mark.parametrize("call", ["topic", "create_topic", "delete_topic", "group", "send"])
@pytest.mark.parametrize("name", NO_NAMES, ids=repr)
def test_what_is_no_str_is_no_name(bus: Bus, call: str, name: Any) -> None:
    with pytest.raises((errors.InvalidNameError, errors.ConfigError) if call == "send" else errors.InvalidNameError):
        CALLS[call](bus, name)
    assert bus.topics() == []


@pytest.mark.parametrize("what", [5, None, b"t", 1j], ids=repr)
def test_what_is_no_topic_cannot_be_subscribed(bus: Bus, what: Any) -> None:
    with pytest.raises((errors.InvalidNameError, errors.ConfigError)):
        bus.consumer(what)


@pytest.mark.parametrize("name", VALID_NAMES)
def test_a_valid_name_names_a_topic_and_a_group(bus: Bus, name: str) -> None:
    topic = bus.topic(name)
    assert topic.name == name
    put(bus, name, b"x")
    with bus.consumer(name, group=name) as consumer:
        assert values(take(consumer, 1)) == [b"x"]
        consumer.commit()
    assert bus.topics() == [name]
    assert bus.groups() == [name]
    assert bus.group(name).committed == {TopicPartition(name, 0): 1}


def test_names_that_differ_in_case_or_a_dot_are_different(bus: Bus) -> None:
    names = ["a", "A", "a.", ".a", "a.b", "a-b", "a_b"]
    for name in names:
        put(bus, bus.topic(name), name)
    assert {name: values(bus.topic(name).read()) for name in names} == {name: [name.encode()] for name in names}
