"""API.md, "Errors": one hierarchy, and what each says."""

from __future__ import annotations

import builtins
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import streamlite
from streamlite import Bus, errors

from .helpers import PATIENCE, files_below, numbers, put, put_apart, values

NAMES = (
    "ConfigError InvalidNameError UnknownTopicError TopicExistsError UnknownGroupError GroupActiveError "
    "UnsupportedError FormatError SerdeError MessageTooLargeError TimeoutError BufferFullError LockTimeoutError "
    "ClosedError OffsetOutOfRangeError FencedError TransactionError StorageError CorruptionError ForkedError"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_every_error_is_a_streamlite_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.StreamliteError)


@pytest.mark.parametrize("name", ["StreamliteError", *NAMES])
def test_every_error_is_at_the_top_but_timeout_error(name: str) -> None:
    if name == "TimeoutError":
        assert not hasattr(streamlite, name)
    else:
        assert getattr(streamlite, name) is getattr(errors, name)


def test_a_timeout_is_the_builtin_one_too_with_two_kinds_under_it() -> None:
    assert issubclass(errors.TimeoutError, builtins.TimeoutError)
    assert issubclass(errors.BufferFullError, errors.TimeoutError)
    assert issubclass(errors.LockTimeoutError, errors.TimeoutError)


def test_a_storage_error_keeps_errno() -> None:
    assert errors.StorageError("full", errno=28).errno == 28


@pytest.mark.needs("directory")
def test_the_operating_systems_no_is_a_storage_error_with_errno(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.StorageError) as caught:
        streamlite.open(tmp_path / "file" / "bus")
    assert isinstance(caught.value.errno, int)


def test_a_message_says_what_was_asked_and_what_was_found(bus: Bus) -> None:
    bus.create_topic("orders", partitions=4)
    with pytest.raises(errors.ConfigError) as caught:
        bus.topic("orders", partitions=7)
    assert "orders" in str(caught.value)
    assert "4" in str(caught.value)
    assert "7" in str(caught.value)
    with pytest.raises(errors.UnknownTopicError, match="absent"):
        bus.consumer("absent")
    with pytest.raises(errors.UnknownGroupError, match="nobody"):
        bus.group("nobody")
    with pytest.raises(errors.TopicExistsError, match="orders"):
        bus.create_topic("orders")


@pytest.mark.needs("directory")
def test_bytes_that_changed_on_disk_are_never_passed_on(open_bus: Callable[..., Bus], location: Path) -> None:
    with open_bus() as bus:
        put_apart(bus, bus.topic("t"), *(value * 200 for value in numbers(8)))
    log = max(files_below(location / "topics" / "t"), key=lambda path: path.stat().st_size)
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 0x55
    log.write_bytes(content)
    with pytest.raises(errors.CorruptionError) as caught, open_bus() as bus:
        list(bus.topic("t").read())
    assert Path(caught.value.file).name == log.name
    assert 0 <= caught.value.position <= len(content)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_bus_used_after_a_fork_raises_and_the_parent_goes_on(bus: Bus) -> None:
    topic = bus.topic("t")
    producer = bus.producer()
    consumer = bus.consumer(topic)
    producer.send(topic, b"before").result(timeout=PATIENCE)
    calls: list[Callable[[], object]] = [
        lambda: bus.topic("u"),
        lambda: list(topic.read()),
        lambda: producer.send(topic, b"child").result(timeout=1),
        consumer.poll,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that the parent has threads is the point
        child = os.fork()
    if child == 0:
        os._exit(_count_refused(calls))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == len(calls)
    producer.send(topic, b"after").result(timeout=PATIENCE)
    assert values(topic.read()) == [b"before", b"after"]


def _count_refused(calls: list[Callable[[], object]]) -> int:
    """How many calls raise `ForkedError`; in the child, which must end whatever happens."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(10)
    refused = 0
    for call in calls:
        try:
            call()
        except errors.ForkedError:
            refused += 1
        except BaseException:  # noqa: BLE001 - the child may not run the test on
            return 100
    return refused


def test_nothing_is_created_by_a_call_that_is_refused(bus: Bus) -> None:
    with pytest.raises(errors.UnknownTopicError):
        put(bus, "absent", b"x")
    with pytest.raises(errors.UnknownTopicError):
        bus.consumer("absent", group="g")
    assert bus.topics() == []
    assert bus.groups() == []
