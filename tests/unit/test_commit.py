"""Writing a transaction: what is written where, under which locks, and what is left when it fails."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import streamlite
from streamlite import Bus, TopicPartition, commit, errors
from streamlite.counters import ACTIVE, CHANGES, FLAGS, INDEXED, MAX_TIME, POSITION
from streamlite.files import FileLock
from streamlite.files.memory import MemoryFiles
from streamlite.format import HEADER_BYTES, INDEX_INTERVAL_BYTES
from streamlite.locks import Guard, run_all
from streamlite.partition import Partition
from streamlite.testing.clock import VirtualClock
from streamlite.transaction import TRANSACTION_PARTITIONS_MAX
from tests.crash.faulty import FaultyFiles, Plan, file_at, logs_of, open_over


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(MemoryFiles())


@pytest.fixture
def bus(files: FaultyFiles) -> Iterator[Bus]:
    bus = open_over(files, sync="never", clock=VirtualClock(), lock_timeout=0.05)
    bus._engine.maintenance.worker.stop()
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    bus.create_topic("t", partitions=2)
    bus.create_topic("u")
    yield bus
    files.heal()
    bus.close()


def _partition(bus: Bus, topic: str = "t", number: int = 0) -> Partition:
    return bus._engine.registry.get(topic).partitions[number]


def _values(bus: Bus, topic: str, partition: int = 0, **options: Any) -> list[Any]:
    return [message.value for message in bus.topic(topic).read(partition=partition, **options)]


def _writes(files: FaultyFiles) -> list[str]:
    return [call.path for call in files.calls if call.name == "write" and call.path.endswith(".log")]


# -- what is written ---------------------------------------------------------------------------------------------------


def test_each_partition_is_written_once_and_the_record_last(bus: Bus, files: FaultyFiles) -> None:
    with bus.producer() as producer, producer.transaction() as tx:
        tx.send("u", b"v")
        for partition in (1, 0):
            tx.send_many("t", [b"v"] * 10, partition=partition)
            tx.send("t", b"v", partition=partition)
        files.calls.clear()
    directories = [path.rpartition("/")[0] for path in _writes(files)]
    assert directories == ["topics/t/0", "topics/t/1", "topics/u/0", "topics/__transactions/0"]


def test_nothing_is_written_before_the_block_is_left(bus: Bus, files: FaultyFiles) -> None:
    with bus.producer() as producer, producer.transaction() as tx:
        files.calls.clear()
        tx.send_many("t", [b"x" * 1000] * 100, partition=0)
        tx.send("u", b"v")
        assert [call for call in files.calls if call.name == "write"] == []


def test_a_part_that_does_not_fit_begins_a_segment_and_stays_in_it(bus: Bus, files: FaultyFiles) -> None:
    bus.create_topic("small", segment_bytes=2_000)
    with bus.producer(batch_bytes=600) as producer:
        producer.send("small", b"first").result(timeout=10)
        with producer.transaction() as tx:
            for at in range(50):
                tx.send("small", b"%d" % at * 50)
        assert len(logs_of(files.inner, "small")) == 2
        assert _partition(bus, "small").slot.get(ACTIVE) == 1
        producer.send("small", b"last").result(timeout=10)
    assert len(logs_of(files.inner, "small")) == 3
    assert _values(bus, "small") == [b"first", *(b"%d" % at * 50 for at in range(50)), b"last"]


def test_a_part_that_fits_exactly_stays_in_the_segment(bus: Bus, files: FaultyFiles) -> None:
    with bus.producer() as producer:
        with producer.transaction() as tx:
            tx.send("u", b"v")
        size = _partition(bus, "u").slot.get(POSITION)
        for segment_bytes, segments in ((2 * size, 1), (2 * size - 1, 2)):
            name = f"s{segment_bytes}"
            bus.create_topic(name, segment_bytes=segment_bytes)
            for _ in range(2):
                with producer.transaction() as tx:
                    tx.send(name, b"v")
            assert len(logs_of(files.inner, name)) == segments


def test_a_large_part_is_indexed_as_many_appends_would_be(bus: Bus, files: FaultyFiles) -> None:
    with bus.producer(batch_bytes=1_000) as producer:
        for topic in ("t", "u"):
            with producer.transaction() as tx:
                for at in range(200):
                    tx.send(topic, b"%03d" % at * 1_000, partition=0, timestamp=1_000 + at)
    partition = _partition(bus)
    segment = partition.log.segments(partition.slot.get(CHANGES))[0]
    entry = segment.floor(150)
    assert 0 < entry.offset <= 150
    assert entry.position > 0
    assert 150 - entry.offset <= 2 * INDEX_INTERVAL_BYTES // 3_000
    assert partition.slot.get(INDEXED) > partition.slot.get(POSITION) - 2 * INDEX_INTERVAL_BYTES
    assert partition.slot.get(MAX_TIME) == _partition(bus, "u").slot.get(MAX_TIME)
    assert _values(bus, "t", start=150, stop=152) == [b"150" * 1_000, b"151" * 1_000]
    with bus.consumer() as consumer:
        consumer.assign([TopicPartition("t", 0)])
        assert consumer.offsets_for_times({TopicPartition("t", 0): 1_150}) == {TopicPartition("t", 0): 150}


def test_a_transaction_is_never_whole_in_memory(bus: Bus, files: FaultyFiles) -> None:
    sizes: list[int] = []
    files.before_write = lambda path, data, position: sizes.append(len(data)) if path.startswith("topics/t") else None
    producer = bus.producer(batch_bytes=1_000)
    with mock.patch.object(commit, "_WRITE_BYTES", 5_000), producer, producer.transaction() as tx:
        for at in range(100):
            tx.send("t", b"%02d" % at * 250, partition=0)
    assert len(sizes) >= 10
    assert max(sizes) < 5_000 + 1_000 + HEADER_BYTES
    assert _values(bus, "t") == [b"%02d" % at * 250 for at in range(100)]


@pytest.mark.parametrize("at", range(1, 12))
def test_a_write_that_fails_in_the_middle_takes_all_of_it_back(bus: Bus, files: FaultyFiles, at: int) -> None:
    with bus.producer(batch_bytes=1_000) as producer:
        producer.send("t", b"before", partition=0).result(timeout=10)
        producer.send("u", b"before").result(timeout=10)
        sizes = {
            path: len(file_at(files.inner, path).data) for path in logs_of(files.inner) + logs_of(files.inner, "u")
        }
        with mock.patch.object(commit, "_WRITE_BYTES", 3_000):
            tx = producer.transaction()
            tx.__enter__()
            for number in range(30):
                tx.send("t", b"%02d" % number * 250, partition=0)
            tx.send("u", b"never")
            plan = Plan(at, errno.ENOSPC, short=True, looks_at=lambda call: call.name == "write")
            files.count, files.plan = 0, plan
            try:
                tx.__exit__(None, None, None)
            except errors.StorageError:
                for path, size in sizes.items():  # at once, not by whoever looks next
                    assert len(file_at(files.inner, path).data) == size
                assert _values(bus, "t") == _values(bus, "u") == [b"before"]
            else:
                assert at > 5  # so many are there, at least
                assert len(_values(bus, "t")) == 31
        files.heal()
        for topic in ("t", "u"):
            assert _partition(bus, topic).slot.get(FLAGS) == 0
            producer.send(topic, b"after", partition=0).result(timeout=10)
            assert _values(bus, topic)[-1] == b"after"


def test_where_the_cut_fails_too_the_next_holder_does_it(bus: Bus, files: FaultyFiles) -> None:
    with bus.producer() as producer:
        tx = producer.transaction()
        tx.__enter__()
        for topic in ("t", "u"):
            tx.send(topic, b"never", partition=0)
        seen: list[str] = []

        def breaks(call: Any) -> bool:
            seen.append(call.name)
            return (call.name == "write" and "/__transactions/" in call.path) or call.name == "truncate"

        files.plan = Plan(1, errno.EIO, lasting=True, looks_at=breaks)
        with pytest.raises(errors.StorageError):
            tx.__exit__(None, None, None)
        files.heal()
        assert "truncate" in seen
        assert _values(bus, "t") == _values(bus, "u") == []
        with producer.transaction() as again:
            for topic in ("t", "u"):
                again.send(topic, b"now", partition=0)
    assert _values(bus, "t") == _values(bus, "u") == [b"now"]


# -- locks -------------------------------------------------------------------------------------------------------------


def test_locks_are_taken_in_one_order_and_all_given_back(bus: Bus, files: FaultyFiles) -> None:
    for name in ("Z", "a.b", "_x", "9"):
        bus.create_topic(name, partitions=12)
    with bus.producer() as producer:
        producer.send("t", b"v", partition=0).result(timeout=10)
        consumers = [bus.consumer("t", group=group, auto_commit=False) for group in ("h", "G", "g")]
        for consumer in consumers:
            consumer.poll(timeout=10)
        with producer.transaction() as tx:
            for name in ("u", "a.b", "9", "_x", "Z"):
                for partition in (11, 2, 10) if name != "u" else (0,):
                    tx.send(name, b"v", partition=partition)
            for consumer in consumers:
                tx.commit_offsets(consumer)
            bus.topic("t").end_offsets()
            bus._engine.offsets.log(), bus._engine.ledger.log()
            files.calls.clear()
        calls = [call for call in files.calls if call.name in ("acquire", "release") and "/members/" not in call.path]
        for consumer in consumers:
            consumer.close()
    taken = [call.path for call in calls if call.name == "acquire"]
    partitions = [
        f"topics/{topic}/{number}/lock"
        for topic, numbers in [("9", (2, 10, 11)), ("Z", (2, 10, 11)), ("__offsets", (0,)), ("_x", (2, 10, 11)),
                               ("a.b", (2, 10, 11)), ("u", (0,))]
        for number in numbers
    ]  # fmt: skip
    groups = [f"groups/{name}/lock" for name in ("G", "g", "h")]
    assert taken == [*groups, *partitions, "topics/__transactions/0/lock"]
    assert [call.path for call in calls if call.name == "release"] == taken[::-1]


class CountedLock(FileLock):
    """A lock that may be another's."""

    def __init__(self, *, free: bool = True) -> None:
        self.path = "lock"
        self.free = free
        self.held = False

    def acquire(self, *, shared: bool = False) -> bool:
        if not self.free or self.held:
            return False
        self.held = True
        return True

    def release(self) -> None:
        self.held = False

    @property
    def unlock(self) -> Callable[[], object]:  # type: ignore[override]
        return self.release


def test_all_locks_are_taken_or_none() -> None:
    locks = [CountedLock() for _ in range(4)]
    guards = [Guard(lambda lock=lock: lock, f"{at}") for at, lock in enumerate(locks)]  # type: ignore[misc]
    assert run_all(guards, lambda: [lock.held for lock in locks], 1.0) == [True] * 4
    assert not any(lock.held for lock in locks)
    locks[2].free = False
    with pytest.raises(errors.LockTimeoutError):
        run_all(guards, lambda: pytest.fail("it was taken"), 0.01)
    assert not any(lock.held for lock in locks)
    assert not any(guard.mine for guard in guards)
    locks[2].free = True
    with pytest.raises(ZeroDivisionError):
        run_all(guards, lambda: 1 // 0, 1.0)
    assert not any(lock.held for lock in locks)
    assert not any(guard.mine for guard in guards)


def test_a_lock_that_this_thread_holds_already_is_not_given_back() -> None:
    locks = [CountedLock() for _ in range(3)]
    guards = [Guard(lambda lock=lock: lock, f"{at}") for at, lock in enumerate(locks)]  # type: ignore[misc]

    def take_all() -> list[bool]:
        with pytest.raises(errors.LockTimeoutError, match="this very thread"):
            run_all(guards, lambda: pytest.fail("it was taken"), 0.01)
        return [lock.held for lock in locks]

    assert guards[1].run(take_all, 1.0) == [False, True, False]


def test_as_many_locks_as_a_transaction_may_take_need_no_deep_stack() -> None:
    guards = [Guard(CountedLock, f"{at}") for at in range(TRANSACTION_PARTITIONS_MAX + 3)]
    assert run_all(guards, lambda: "called", 1.0) == "called"


def test_a_lock_that_stays_taken_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with streamlite.open(tmp_path / "bus", sync="never", lock_timeout=0.05) as bus, bus.producer() as producer:
        bus.create_topic("t", partitions=3)
        with producer.transaction() as tx:
            for partition in range(3):
                tx.send("t", b"1", partition=partition)
        sizes = {path: path.stat().st_size for path in (tmp_path / "bus").rglob("*.log")}
        for lock in ("topics/t/2/lock", "topics/__transactions/0/lock"):
            with open(tmp_path / "bus" / lock, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                tx = producer.transaction()
                tx.__enter__()
                for partition in range(3):
                    tx.send("t", b"2", partition=partition)
                with pytest.raises(errors.LockTimeoutError):
                    tx.__exit__(None, None, None)
            assert {path: path.stat().st_size for path in (tmp_path / "bus").rglob("*.log")} == sizes


# -- words -------------------------------------------------------------------------------------------------------------


def test_all_words_are_true_afterwards(bus: Bus, files: FaultyFiles) -> None:
    with bus.producer() as producer, producer.transaction() as tx:
        tx.send_many("t", [b"v"] * 3, partition=1)
        tx.send("u", b"v")
    for topic, number, end in (("t", 0, 0), ("t", 1, 3), ("u", 0, 1), ("__transactions", 0, 1)):
        partition = _partition(bus, topic, number)
        assert (partition.slot.end, partition.slot.get(FLAGS)) == (end, 0)
        paths = logs_of(files.inner, topic, number)
        assert partition.slot.get(POSITION) == sum(len(file_at(files.inner, path).data) for path in paths)


def test_whoever_syncs_is_told_of_each_partition(bus: Bus) -> None:
    bus._engine.ctx.dirty.clear()
    with bus.producer() as producer, producer.transaction() as tx:
        tx.send("t", b"v", partition=1)
        tx.send("u", b"v")
    assert {partition.tp for partition in bus._engine.ctx.dirty} == {
        TopicPartition("t", 1), TopicPartition("u", 0), TopicPartition("__transactions", 0)
    }  # fmt: skip
