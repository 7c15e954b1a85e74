"""Whether a message is a repeat, before it is staged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from streamlite import Bus, errors, named
from streamlite.files.memory import MemoryFiles
from streamlite.named import Numbers
from streamlite.testing.clock import VirtualClock
from tests.contract.helpers import beside
from tests.crash.faulty import FaultyFiles, open_over

PATIENCE = 20.0


@pytest.fixture
def inner() -> MemoryFiles:
    return MemoryFiles()


def _open(inner: MemoryFiles) -> Bus:
    return open_over(FaultyFiles(inner), sync="never", clock=VirtualClock(), lock_timeout=2.0)


@pytest.fixture
def bus(inner: MemoryFiles) -> Iterator[Bus]:
    with _open(inner) as one:
        yield one


def _numbers(producer: Any) -> Numbers:
    found = producer._numbers
    assert isinstance(found, Numbers)
    return found


def test_what_is_remembered_is_bounded(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "WINDOW", 10)
    bus.topic("t")
    with bus.producer(name="n") as producer:
        sent = [producer.send("t", b"", partition=0, sequence=sequence) for sequence in range(200)]
        (given,) = _numbers(producer)._given.values()
        assert list(given.recent) == list(range(190, 200))
        again = [producer.send("t", b"", partition=0, sequence=sequence) for sequence in range(200)]
        assert [one.result(timeout=PATIENCE).offset for one in sent] == list(range(200))
        assert [one.result(timeout=PATIENCE).offset for one in again] == list(range(200))
        assert list(given.recent) == list(range(190, 200))


def test_a_topic_that_another_process_lets_grow_in_the_middle_of_a_send(inner: MemoryFiles, bus: Bus) -> None:
    """The message was looked for where its key went before, and is staged where it goes now."""
    topic, four = bus.topic("t"), bus.topic("later", partitions=4)
    keys = [b"k%d" % number for number in range(20)]
    moving = next(key for key in keys if four.partition_for(key))
    with _open(inner) as other, bus.producer(name="n") as producer:
        assert producer.send("t", b"", key=moving, sequence=7).result(timeout=PATIENCE).partition == 0
        known = producer._known

        def known_and_grown(*args: Any) -> Any:
            found = known(*args)
            producer._known = known  # type: ignore[method-assign]
            other.topic("t").increase_partitions(4)
            return found

        producer._known = known_and_grown  # type: ignore[method-assign]
        sent = producer.send("t", b"", key=moving, sequence=8)
        assert sent.result(timeout=PATIENCE).partition == topic.partition_for(moving) > 0
        assert producer.send("t", b"", key=moving, sequence=8).result(timeout=PATIENCE) == sent.result()
        assert producer.last_sequence("t", topic.partition_for(moving)) == 8
        assert producer.last_sequence("t", 0) == 7


def test_who_stages_a_sequence_second_gets_the_first_ones_delivery(bus: Bus) -> None:
    """Both found it new, one after the other; in a transaction as outside."""
    bus.topic("t")
    with bus.producer(name="n") as producer:
        known = producer._known

        def known_then_sent(*args: Any) -> Any:
            found = known(*args)
            producer._known = known  # type: ignore[method-assign]
            for sequence in quicker:
                beside(lambda one=sequence: send(one)).result(timeout=PATIENCE)
            return found

        with producer.transaction() as tx:

            def send(sequence: int) -> Any:
                return tx.send("t", b"", partition=0, sequence=sequence)

            quicker = [1]
            producer._known = known_then_sent  # type: ignore[method-assign]
            first = send(1)
            quicker = [3]
            producer._known = known_then_sent  # type: ignore[method-assign]
            with pytest.raises(errors.ConfigError, match="sequence 2 "):
                send(2)
        assert first.result(timeout=PATIENCE).offset == 0

        def send(sequence: int) -> Any:
            return producer.send("t", b"", partition=0, sequence=sequence)

        quicker = [4]
        producer._known = known_then_sent  # type: ignore[method-assign]
        assert send(4).result(timeout=PATIENCE).offset == 2
        quicker = [6]
        producer._known = known_then_sent  # type: ignore[method-assign]
        with pytest.raises(errors.ConfigError, match="sequence 5 "):
            send(5)
        assert producer.last_sequence("t", 0) == 6
    assert len(list(bus.topic("t").read())) == 4
