"""The commit records: who counts as committed, and when records may go."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from streamlite import Bus, errors, ledger
from streamlite.config import TopicSettings
from streamlite.counters import ACTIVE, FAILED, FLAGS, START, SYNCED, TRANSACTION, WRITING, Slot
from streamlite.files.memory import MemoryFiles
from streamlite.format import FLAG_TRANSACTION, BatchHeader, unpack_header
from streamlite.ledger import Part
from streamlite.partition import Partition
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import FaultyFiles, Plan, Stopped, kill, open_over

SMALL = TopicSettings(segment_bytes=500)
"""Three records or so a segment."""


@pytest.fixture(autouse=True)
def small_segments() -> Iterator[None]:
    with mock.patch.object(ledger, "SETTINGS", SMALL):
        yield


@pytest.fixture
def inner() -> MemoryFiles:
    return MemoryFiles()


@pytest.fixture
def bus(inner: MemoryFiles) -> Iterator[Bus]:
    """A bus in whose background nothing happens, with topics `t` and `u`."""
    bus = _open(inner)
    bus.create_topic("t", partitions=2)
    bus.create_topic("u")
    yield bus
    bus.close()


def _open(inner: MemoryFiles, **options: Any) -> Bus:
    bus = open_over(FaultyFiles(inner), **{"sync": "never", "clock": VirtualClock(), "lock_timeout": 1.0, **options})
    bus._engine.maintenance.worker.stop()
    if bus._engine.syncer is not None:
        bus._engine.syncer.worker.stop()
    bus._engine.maintenance.look_soon = lambda: None  # type: ignore[method-assign]
    return bus


def _partition(bus: Bus, topic: str = "t", number: int = 0) -> Partition:
    return bus._engine.registry.get(topic).partitions[number]


def _records(bus: Bus) -> Partition:
    return bus._engine.ledger.log()


def _transact(bus: Bus, *places: tuple[str, int], count: int = 1) -> None:
    with bus.producer() as producer:
        for _ in range(count):
            with producer.transaction() as tx:
                for topic, partition in places or (("t", 0), ("u", 0)):
                    tx.send(topic, b"v", partition=partition)


def _header(partition: Partition, position: int = 0) -> BatchHeader:
    return unpack_header(partition.active_file(partition.slot.words()).read(1000, position))


def _record(bus: Bus, *parts: Part) -> int:
    """Append a record by hand; the number of its transaction."""
    return _records(bus).append([bus._engine.ledger.record(parts)]).offsets[0] + 1


# -- who is committed --------------------------------------------------------------------------------------------------


def test_a_transactions_number_is_the_place_of_its_record(bus: Bus) -> None:
    _transact(bus, ("t", 0))
    _transact(bus, ("t", 1))
    found = [_header(_partition(bus, "t", number)) for number in range(2)]
    assert [header.transaction_id for header in found] == [1, 2]
    assert all(header.flags & FLAG_TRANSACTION for header in found)
    assert _records(bus).end() == 2
    assert [_partition(bus, "t", number).slot.get(TRANSACTION) for number in range(2)] == [1, 2]


def test_a_plain_message_is_of_no_transaction(bus: Bus) -> None:
    with bus.producer() as producer:
        producer.send("t", b"v", partition=0).result(timeout=10)
    header = _header(_partition(bus))
    assert (header.transaction_id, header.flags & FLAG_TRANSACTION) == (0, 0)


def test_an_aborted_or_empty_transaction_takes_no_number(bus: Bus) -> None:
    with bus.producer() as producer:
        with producer.transaction():
            pass
        with producer.transaction() as tx:
            tx.send("t", b"never", partition=0)
            tx.abort()
    assert bus._engine.registry.find("__transactions") is None
    _transact(bus)
    assert _records(bus).end() == 1


def test_without_any_record_nothing_is_committed(bus: Bus) -> None:
    header = _batch_of(bus, 1)
    assert not bus._engine.ledger.committed(_partition(bus), header)


def _batch_of(bus: Bus, number: int, base: int = 0, count: int = 1) -> BatchHeader:
    """The header of a batch that the transaction of that number has at these offsets."""
    with bus.producer() as producer:
        producer.send("u", b"v").result(timeout=10)
    header = _header(_partition(bus, "u"))
    return header._replace(transaction_id=number, base_offset=base, count=count, last_delta=count - 1)


def test_a_record_speaks_for_the_offsets_it_names_in_the_partition_it_names(bus: Bus) -> None:
    one, two = _partition(bus, "t", 0), _partition(bus, "t", 1)
    number = _record(bus, Part(one.topic.incarnation, 0, 10, 20))
    committed = bus._engine.ledger.committed
    for base, count, expected in [(10, 10, True), (10, 1, True), (19, 1, True), (9, 1, False), (19, 2, False),
                                  (20, 1, False), (0, 1, False), (9, 12, False)]:  # fmt: skip
        assert committed(one, _batch_of(bus, number, base, count)) == expected, (base, count)
    assert not committed(two, _batch_of(bus, number, 10))
    assert not committed(_partition(bus, "u"), _batch_of(bus, number, 10))


def test_a_topic_of_the_same_name_is_another_partition(bus: Bus) -> None:
    old = _partition(bus).topic.incarnation
    number = _record(bus, Part(old, 0, 0, 1))
    bus.delete_topic("t")
    bus.create_topic("t")
    assert not bus._engine.ledger.committed(_partition(bus), _batch_of(bus, number))


def test_a_number_beyond_the_end_is_not_committed(bus: Bus) -> None:
    _transact(bus, count=2)
    for number in (3, 4, 1 << 40):
        assert not bus._engine.ledger.committed(_partition(bus), _batch_of(bus, number))


def test_a_record_of_another_epoch_speaks_for_nobody(bus: Bus) -> None:
    partition = _partition(bus)
    number = _record(bus, Part(partition.topic.incarnation, 0, 0, 5))
    header = _batch_of(bus, number)
    assert bus._engine.ledger.committed(partition, header)
    for epoch in (header.epoch - 1, header.epoch + 1):
        assert not bus._engine.ledger.committed(partition, header._replace(epoch=epoch))


def test_what_is_before_the_first_record_is_committed(bus: Bus) -> None:
    _transact(bus, count=20)
    bus.maintain()
    start = _records(bus).slot.get(START)
    assert start > 3
    committed = bus._engine.ledger.committed
    assert committed(_partition(bus), _batch_of(bus, start, start - 1))
    assert not committed(_partition(bus), _batch_of(bus, start + 1, 10_000))


def test_answers_are_right_however_few_are_remembered(bus: Bus) -> None:
    _transact(bus, count=10)
    partition = _partition(bus)
    with mock.patch.object(ledger, "_KNOWN_MAX", 2):
        for number in [1, 2, 3, 10, 9, 1, 5, 5, 1]:
            assert bus._engine.ledger.committed(partition, _batch_of(bus, number, number - 1))
            assert not bus._engine.ledger.committed(partition, _batch_of(bus, number, number))
            assert len(bus._engine.ledger._known) <= 2


@pytest.mark.parametrize("by", ["reading", "committing", "waiting"])
def test_a_record_that_was_written_and_not_published_is_found(inner: MemoryFiles, by: str) -> None:
    """Its committer died between the two: the record is whole, and that was the commit.

    Whoever comes by may have the records' lock already, for a commit of his own, or have to wait for it.
    """
    bus, witness = _open(inner), _open(inner, lock_timeout=0.05)
    bus.create_topic("t", partitions=2)
    bus.create_topic("u")
    _transact(bus)
    records = _records(bus)
    with mock.patch.object(Slot, "publish", _dies(bus)), pytest.raises(Stopped):
        _transact(bus)
    kill(bus)
    assert records.slot.end == 1
    if by == "committing":
        _transact(witness)
    if by == "waiting":
        held = FaultyFiles(inner).lock("topics/__transactions/0/lock")
        assert held.acquire()
        for topic in ("t", "u"):
            with pytest.raises(errors.LockTimeoutError):
                list(witness.topic(topic).read())
        held.release()
    expected = [b"v"] * (3 if by == "committing" else 2)
    assert [message.value for message in witness.topic("u").read()] == expected
    assert [message.value for message in witness.topic("t").read()] == expected
    assert _records(witness).end() == len(expected)
    witness.close()


def _dies(bus: Bus) -> Any:
    """In place of the publication of the record, the first of a commit."""

    def dies(slot: Slot, *args: Any) -> None:
        files = bus._engine.ctx.files
        assert isinstance(files, FaultyFiles)
        assert slot.number == _records(bus).slot.number
        files.stop()
        raise Stopped("before a publication")

    return dies


@pytest.mark.parametrize("pruned", [False, True])
def test_who_only_reads_finds_the_same(inner: MemoryFiles, pruned: bool) -> None:
    """After a stop of the machine, when nobody has opened the bus for more."""
    bus = _open(inner, sync="interval", sync_interval_ms=100_000)
    bus.create_topic("t", partitions=2)
    bus.create_topic("u")
    _transact(bus, count=20)
    if pruned:
        bus.maintain()
        assert _records(bus).slot.get(START) > 3
    bus.sync()
    kill(bus)
    reader = open_over(FaultyFiles(inner, boot=2), read_only=True, clock=VirtualClock())
    for topic in ("t", "u"):
        assert len(list(reader.topic(topic).read())) == 20
    reader.close()


def test_who_only_reads_looks_through_the_records_once(inner: MemoryFiles) -> None:
    """Not once for each transaction in each look at each log: that took hours."""
    bus = _open(inner, sync="never")
    bus.create_topic("t", partitions=2)
    bus.create_topic("u")
    _transact(bus, count=60)
    kill(bus)
    files = FaultyFiles(inner, boot=2)
    with open_over(files, read_only=True, clock=VirtualClock()) as reader:
        for _ in range(3):
            assert len(list(reader.topic("t").read())) == len(list(reader.topic("u").read())) == 60
    records = [
        path for path, _, _ in files.reads if path.startswith("topics/__transactions/") and path.endswith(".log")
    ]
    assert len(records) < 60 * 6


# -- records that go ---------------------------------------------------------------------------------------------------


def test_records_go_when_everything_they_name_is_settled_and_synced(bus: Bus) -> None:
    _transact(bus, count=20)
    records = _records(bus)
    active = records.slot.get(ACTIVE)
    assert 3 < active < 20
    bus._engine.ledger.prune()
    assert records.slot.get(START) == active
    assert set(_logs(bus)) == {f"{active:020}.log"}
    for partition in (_partition(bus), _partition(bus, "u")):
        assert partition.slot.get(SYNCED) == 20
        assert not partition.unsynced


def _logs(bus: Bus) -> list[str]:
    files = bus._engine.ctx.files
    return [name for name in files.list("topics/__transactions/0") if name.endswith(".log")]


def test_the_active_segment_stays(bus: Bus) -> None:
    _transact(bus, count=2)
    bus._engine.ledger.prune()
    assert _records(bus).slot.get(START) == 0


def test_numbers_go_on_when_records_are_gone(inner: MemoryFiles) -> None:
    bus = _open(inner)
    bus.create_topic("t", partitions=2)
    bus.create_topic("u")
    for round_ in range(3):
        _transact(bus, count=10)
        bus.maintain()
        assert _records(bus).end() == 10 * (round_ + 1)
        bus.close()
        bus = _open(inner)
    _transact(bus, ("t", 1))
    assert _header(_partition(bus, "t", 1)).transaction_id == 31
    kill(bus)
    bus = _open(inner)
    assert len(list(bus.topic("t").read())) == 31
    assert _records(bus).end() == 31
    bus.close()


def test_a_dead_committers_tails_are_settled_before_its_record_goes(inner: MemoryFiles) -> None:
    """Else they would be found without one: and that means committed, for those that were not, too."""
    bus = _open(inner)
    bus.create_topic("t", partitions=2)
    bus.create_topic("u")
    _transact(bus)
    witness = _open(inner)
    witness.create_topic("other")
    files = bus._engine.ctx.files
    assert isinstance(files, FaultyFiles)
    files.plan = Plan(1, looks_at=lambda call: call.name == "write" and "/__transactions/" in call.path)
    with pytest.raises(Stopped):
        _transact(bus)
    kill(bus)
    slot = _partition(witness).slot
    assert slot.get(FLAGS) & WRITING
    _transact(witness, ("other", 0), count=20)
    assert slot.get(FLAGS) & WRITING
    witness._engine.ledger.prune()
    assert _records(witness).slot.get(START) > 2
    assert not slot.get(FLAGS) & WRITING
    assert len(list(witness.topic("t").read())) == len(list(witness.topic("u").read())) == 1
    witness.close()


def test_a_sync_that_fails_keeps_the_records(bus: Bus) -> None:
    _transact(bus, count=20)
    files = bus._engine.ctx.files
    assert isinstance(files, FaultyFiles)
    files.plan = Plan(1, errno.EIO, looks_at=lambda call: call.name == "sync" and "/u/" in call.path)
    with pytest.raises(errors.StorageError):
        bus._engine.ledger.prune()
    files.heal()
    assert _partition(bus, "u").slot.get(FAILED)
    with pytest.raises(errors.StorageError):
        bus._engine.ledger.prune()
    assert _records(bus).slot.get(START) == 0


def test_a_deleted_topic_keeps_no_records(bus: Bus) -> None:
    _transact(bus, count=20)
    bus.delete_topic("u")
    bus._engine.ledger.prune()
    assert _records(bus).slot.get(START) > 3


def test_records_go_by_themselves(inner: MemoryFiles) -> None:
    """A commit that finds a sealed segment of them has maintenance look."""
    bus = _open(inner)
    bus.create_topic("t")
    with mock.patch.object(bus._engine.maintenance, "look_soon") as looked:
        _transact(bus, ("t", 0), count=2)
        assert not looked.called
        _transact(bus, ("t", 0), count=10)
        assert looked.called
    bus.close()


# -- safety ------------------------------------------------------------------------------------------------------------


def test_records_are_covered_once_they_are_synced(bus: Bus) -> None:
    covers, sync_upto = bus._engine.ledger.covers, bus._engine.ledger.sync_upto
    assert covers(0)
    assert covers(5)  # no transaction was ever
    sync_upto(5)
    _transact(bus, count=3)
    assert covers(0)
    assert not covers(1)
    sync_upto(2)
    assert covers(1)
    assert covers(3)
    assert covers(4)  # of a record that damage cut off: there is none to wait for


def test_a_partition_is_synced_after_the_records_of_what_it_holds(bus: Bus) -> None:
    _transact(bus, ("t", 0))
    _transact(bus, ("t", 1))
    files = bus._engine.ctx.files
    assert isinstance(files, FaultyFiles)
    files.calls.clear()
    _partition(bus, "t", 0).sync()
    synced = [call.path.split("/")[1] for call in files.calls if call.name == "sync" and call.path.endswith(".log")]
    assert synced == ["__transactions", "t"]
    files.calls.clear()
    _partition(bus, "t", 1).sync()
    synced = [call.path.split("/")[1] for call in files.calls if call.name == "sync" and call.path.endswith(".log")]
    assert synced == ["t"]  # its record was synced with the other
