"""The records of `__meta`: the last value of a key counts, for every bus, whatever became of the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamlite import Bus, errors
from streamlite.files.memory import MemoryFiles
from streamlite.meta import Meta
from streamlite.partition import Partition
from streamlite.testing.clock import VirtualClock
from tests.contract.helpers import beside
from tests.crash.faulty import FaultyFiles, kill, open_over

PATIENCE = 20.0


def _open(inner: MemoryFiles) -> Bus:
    return open_over(FaultyFiles(inner), sync="never", clock=VirtualClock(), lock_timeout=PATIENCE)


def _put(meta: Meta, key: tuple[str | int, ...], value: object) -> None:
    meta.change(lambda log: meta.put(log, key, value))


@pytest.fixture
def inner() -> MemoryFiles:
    return MemoryFiles()


@pytest.fixture
def bus(inner: MemoryFiles) -> Iterator[Bus]:
    with _open(inner) as one:
        yield one


@pytest.fixture
def meta(bus: Bus) -> Meta:
    found = bus._engine.meta
    found.create()
    return found


def test_without_a_log_there_is_nothing(bus: Bus) -> None:
    meta = bus._engine.meta
    assert meta.log() is None
    assert meta.get("a", 1) is None
    meta.sync()
    meta.create()
    meta.create()
    assert meta.get("a", 1) is None
    assert bus.topics() == []


def test_the_last_value_counts(meta: Meta) -> None:
    _put(meta, ("a", 1), [1, None, "x"])
    _put(meta, ("a", 2), 2)
    assert (meta.get("a", 1), meta.get("a", 2), meta.get("a", 3), meta.get("a")) == ([1, None, "x"], 2, None, None)
    _put(meta, ("a", 1), 3)
    assert meta.get("a", 1) == 3

    def change(log: Partition) -> None:
        meta.put(log, ("a", 1), 4)
        assert meta.get("a", 1) == 4  # and so under the lock

    meta.change(change)
    _put(meta, ("a", 1), None)
    assert meta.get("a", 1) is None


def test_every_bus_sees_it(inner: MemoryFiles, meta: Meta) -> None:
    with _open(inner) as other:
        _put(meta, ("a",), 1)
        assert other._engine.meta.get("a") == 1
        _put(other._engine.meta, ("a",), 2)
        assert meta.get("a") == 2
    with _open(inner) as other:
        assert other._engine.meta.get("a") == 2


def test_who_changes_a_record_by_what_it_was_is_alone(inner: MemoryFiles, bus: Bus, meta: Meta) -> None:
    with _open(inner) as other:

        def count(one: Meta) -> None:
            for _ in range(50):
                one.change(lambda log: one.put(log, ("n",), (one.get("n") or 0) + 1))

        for running in [beside(lambda one=one: count(one)) for one in (meta, meta, other._engine.meta)]:
            running.result(timeout=PATIENCE)
        assert meta.get("n") == other._engine.meta.get("n") == 150


def test_compaction_keeps_the_last_values(inner: MemoryFiles, meta: Meta, bus: Bus) -> None:
    from streamlite.compaction import compact

    for number in range(100):
        _put(meta, ("a", number % 5), number)
    log = meta.log()
    assert log is not None
    with _open(inner) as other:
        assert other._engine.meta.get("a", 0) == 95
        compact(log, bus._engine.ctx.clock.time_ms(), force=True)
        _put(meta, ("a", 1), 100)
        for one in (meta, other._engine.meta):
            assert [one.get("a", number) for number in range(5)] == [95, 100, 97, 98, 99]
    with _open(inner) as other:
        assert [other._engine.meta.get("a", number) for number in range(5)] == [95, 100, 97, 98, 99]


def test_what_a_killed_process_wrote_counts(inner: MemoryFiles, meta: Meta) -> None:
    other = _open(inner)
    _put(other._engine.meta, ("a",), 1)
    kill(other)
    assert meta.get("a") == 1


def test_its_log_is_nobodys_to_write_to(bus: Bus, meta: Meta) -> None:
    with bus.producer() as producer, pytest.raises(errors.InvalidNameError):
        producer.send("__meta", b"a", key=b"k")
