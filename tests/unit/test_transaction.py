"""Staging a transaction: its limits, what spills to a file, and a batch that cannot be put away."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import streamlite
from streamlite import Bus, Producer, errors, transaction
from streamlite.files.memory import MemoryFiles
from streamlite.partition import Outgoing
from streamlite.staging import MESSAGE_OVERHEAD, STAGED_MAX
from streamlite.testing.clock import VirtualClock
from streamlite.transaction import SPILL_BYTES, TRANSACTION_BYTES_MAX, TRANSACTION_PARTITIONS_MAX, Parcel
from tests.crash.faulty import FaultyFiles, Plan, open_over


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(MemoryFiles())


@pytest.fixture
def bus(files: FaultyFiles) -> Iterator[Bus]:
    bus = open_over(files, sync="never", clock=VirtualClock())
    bus.create_topic("t", partitions=4)
    bus.create_topic("u")
    yield bus
    bus.close()


@pytest.fixture
def producer(bus: Bus) -> Iterator[Producer]:
    with bus.producer(batch_bytes=1_000) as made:
        yield made


def _values(bus: Bus, topic: str = "t", **options: Any) -> list[Any]:
    return [message.value for message in bus.topic(topic).read(**options)]


# -- limits ------------------------------------------------------------------------------------------------------------


def test_the_stated_limits() -> None:
    assert (TRANSACTION_BYTES_MAX, TRANSACTION_PARTITIONS_MAX, SPILL_BYTES) == (1 << 30, 500, 16 << 20)


def test_what_would_go_beyond_the_bytes_is_not_taken_and_the_rest_is_committed(bus: Bus, producer: Producer) -> None:
    size = 100 + MESSAGE_OVERHEAD
    with mock.patch.object(transaction, "TRANSACTION_BYTES_MAX", 5 * size), producer.transaction() as tx:
        for _ in range(4):
            tx.send("t", b"x" * 100, partition=0)
        with pytest.raises(errors.TransactionError, match="commit more often"):
            tx.send("t", b"x" * 101, partition=1) and tx.send("t", b"x" * 100, partition=1)
        with pytest.raises(errors.TransactionError, match="bytes at most"):
            tx.send_many("u", [b"x" * 100] * 2)
        assert _values(bus) == []
    assert _values(bus, partition=0) == [b"x" * 100] * 4
    assert len(_values(bus, partition=1)) <= 1
    assert _values(bus, "u") == []


def test_exactly_the_limit_is_taken(bus: Bus, producer: Producer) -> None:
    size = 100 + MESSAGE_OVERHEAD
    with mock.patch.object(transaction, "TRANSACTION_BYTES_MAX", 5 * size), producer.transaction() as tx:
        tx.send_many("u", [b"x" * 100] * 3)
        tx.send("u", b"y" * 100)
        tx.send("u", b"z" * 100)
        with pytest.raises(errors.TransactionError):
            tx.send("u", b"")
    assert _values(bus, "u") == [b"x" * 100] * 3 + [b"y" * 100, b"z" * 100]


def test_each_transaction_has_its_own_count(bus: Bus, producer: Producer) -> None:
    with mock.patch.object(transaction, "TRANSACTION_BYTES_MAX", 100 + MESSAGE_OVERHEAD):
        for _ in range(3):
            with producer.transaction() as tx:
                tx.send("u", b"x" * 100)
    assert len(_values(bus, "u")) == 3


def test_one_partition_too_many_is_not_taken_and_the_rest_is_committed(bus: Bus, producer: Producer) -> None:
    with mock.patch.object(transaction, "TRANSACTION_PARTITIONS_MAX", 3), producer.transaction() as tx:
        sent = [tx.send("t", b"v", partition=at) for at in range(3)]
        for refused in (
            lambda: tx.send("t", b"never", partition=3),
            lambda: tx.send("u", b"never"),
            lambda: tx.send_many("u", [b"never"]),
            lambda: tx.send_many("t", [b"never"] * 20, keys=[b"%d" % at for at in range(20)]),
        ):
            with pytest.raises(errors.TransactionError, match="partitions at most"):
                refused()
        sent += [tx.send("t", b"w", partition=at) for at in range(3)]
    assert [delivery.result().offset for delivery in sent] == [0, 0, 0, 1, 1, 1]
    assert _values(bus, "t") == [b"v", b"w"] * 3
    assert _values(bus, "u") == []


# -- spilling ----------------------------------------------------------------------------------------------------------


def test_what_is_beyond_the_memory_goes_to_a_file_and_comes_back_in_order(
    bus: Bus, files: FaultyFiles, producer: Producer
) -> None:
    with mock.patch.object(transaction, "SPILL_BYTES", 3_000):
        with producer.transaction() as tx:
            for at in range(100):
                tx.send("t", b"%02d" % at * 100, partition=at % 4)
                tx.send_many("u", [b"%02d" % at * 50, b"%02d" % at * 50])
            kept = sum(
                len(one.payload) for parcel in tx._parcels.values() for one in parcel._outgoing if type(one) is Outgoing
            )
            assert 0 < kept <= 3_000
            assert [call.name for call in files.calls].count("scratch") == 1
        assert tx._file is None
    for partition in range(4):
        assert _values(bus, partition=partition) == [b"%02d" % at * 100 for at in range(partition, 100, 4)]
    assert _values(bus, "u") == [b"%02d" % (at // 2) * 50 for at in range(200)]


def test_a_small_transaction_makes_no_file(bus: Bus, files: FaultyFiles, producer: Producer) -> None:
    with producer.transaction() as tx:
        tx.send_many("u", [b"x" * 100] * 100)
    assert "scratch" not in [call.name for call in files.calls]


def test_an_abort_lets_the_file_go(bus: Bus, producer: Producer) -> None:
    with mock.patch.object(transaction, "SPILL_BYTES", 100), producer.transaction() as tx:
        sent = [tx.send("u", b"x" * 500) for _ in range(10)]
        assert tx._file is not None
        tx.abort()
        assert tx._file is None
    assert all(isinstance(delivery.exception(), errors.TransactionError) for delivery in sent)
    assert _values(bus, "u") == []


def test_the_file_has_no_name_and_goes_away(tmp_path: Path) -> None:
    with streamlite.open(tmp_path / "bus", sync="never") as bus, bus.producer(batch_bytes=1_000) as producer:
        bus.create_topic("u")
        before = {path for path in tmp_path.rglob("*") if "topics" not in path.parts}
        with mock.patch.object(transaction, "SPILL_BYTES", 100), producer.transaction() as tx:
            for at in range(50):
                tx.send("u", b"%d" % at * 100)
            assert tx._file is not None
            assert {path for path in tmp_path.rglob("*") if "topics" not in path.parts} == before
        assert _values(bus, "u") == [b"%d" % at * 100 for at in range(50)]
        assert {path for path in tmp_path.rglob("*") if "topics" not in path.parts} == before


def test_a_parcel_can_be_read_twice(files: FaultyFiles) -> None:
    parcel, file = Parcel(), files.scratch()
    payloads = [b"one", b"two two", b"three"]
    parcel.add(Outgoing(payloads[0], 1, 1, 1, 3))
    parcel.add_spilled(Outgoing(payloads[1], 2, 1, 1, 7), file, 0)
    parcel.add_spilled(Outgoing(payloads[2], 3, 1, 1, 5), file, 7)
    for _ in range(2):
        assert [(one.payload, one.count) for one in parcel] == list(zip(payloads, (1, 2, 3), strict=True))
    assert parcel.payload_bytes == sum(map(len, payloads))


def test_a_long_run_of_small_messages_is_cut_into_batches(bus: Bus) -> None:
    count = STAGED_MAX + 10
    with bus.producer(batch_bytes=1 << 30, buffer_bytes=1 << 30) as producer, producer.transaction() as tx:
        sent = [tx.send("u", b"%d" % at) for at in range(count)]
        assert len(tx._parcels) == 1
    assert _values(bus, "u") == [b"%d" % at for at in range(count)]
    assert sent[-1].result().offset == count - 1


# -- helpers that come too late ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "abort"])
@pytest.mark.parametrize("many", [False, True])
def test_a_send_that_was_under_way_when_the_block_was_left_is_refused(
    bus: Bus, producer: Producer, many: bool, end: str
) -> None:
    """It had looked whether the transaction is open, and puts its message in when nobody looks there any more."""
    looked, go_on = threading.Event(), threading.Event()
    name = "_columns" if many else "_message"
    check = getattr(producer, name)

    def slow(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            looked.set()
            assert go_on.wait(20)
        return check(*args)

    def send_late(tx: Any) -> None:
        with pytest.raises(errors.TransactionError, match=r"committed|aborted"):
            tx.send_many("u", [b"late"]) if many else tx.send("u", b"late")

    with mock.patch.object(producer, name, slow), ThreadPoolExecutor(1) as helpers:
        with producer.transaction() as tx:
            tx.send("t", b"v", partition=0)
            late = helpers.submit(send_late, tx)
            assert looked.wait(20)
            if end == "abort":
                tx.abort()
        go_on.set()
        late.result(20)
    assert _values(bus, "u") == []
    assert _values(bus) == ([b"v"] if end == "commit" else [])


# -- what cannot be put away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_batch_that_cannot_be_put_away_refuses_the_whole(
    bus: Bus, files: FaultyFiles, producer: Producer, at: int, many: bool
) -> None:
    """The block may go on as if nothing had happened: what is missing must not be left out."""
    sent: list[Any] = []
    failures = 0
    tx = producer.transaction()
    with mock.patch.object(transaction, "SPILL_BYTES", 100):
        tx.__enter__()
        files.plan = Plan(at, errno.ENOSPC, looks_at=lambda call: call.name in ("scratch", "write"))
        for number in range(20):
            try:
                if many:
                    sent.append(tx.send_many("u", [b"%d" % number * 300, b"%d" % number * 300]))
                else:
                    sent.append(tx.send("u", b"%d" % number * 300))
            except errors.StorageError:
                failures += 1
        files.heal()
        assert failures == 1
        with pytest.raises(errors.TransactionError, match="could not be put away"):
            tx.__exit__(None, None, None)
    assert _values(bus, "u") == []
    for delivery in sent:
        assert delivery.done()
        assert isinstance(delivery.exception(), errors.TransactionError)
    with producer.transaction() as tx:
        tx.send("u", b"next")
    assert _values(bus, "u") == [b"next"]


def test_a_disk_that_is_full_at_the_end_refuses_the_whole(bus: Bus, files: FaultyFiles, producer: Producer) -> None:
    tx = producer.transaction()
    with mock.patch.object(transaction, "SPILL_BYTES", 100):
        tx.__enter__()
        sent = [tx.send("t", b"x" * 200, partition=at) for at in range(4)]
        files.plan = Plan(2, errno.ENOSPC, looks_at=lambda call: call.name == "write")
        with pytest.raises(errors.StorageError):
            tx.__exit__(None, None, None)
    files.heal()
    assert _values(bus) == []
    assert all(isinstance(delivery.exception(), errors.StorageError) for delivery in sent)


def test_a_spilled_part_that_cannot_be_read_refuses_the_whole(bus: Bus, files: FaultyFiles, producer: Producer) -> None:
    tx = producer.transaction()
    with mock.patch.object(transaction, "SPILL_BYTES", 100):
        tx.__enter__()
        sent = [tx.send("t", b"x" * 500, partition=at % 4) for at in range(12)]
        files.plan = Plan(1, errno.EIO, looks_at=lambda call: call.name == "read" and not call.path.endswith(".log"))
        with pytest.raises(errors.StorageError, match="as planned"):
            tx.__exit__(None, None, None)
        assert files.hits
    files.heal()
    assert _values(bus) == []
    assert all(isinstance(delivery.exception(), errors.StorageError) for delivery in sent)
    assert [call.path for call in files.calls if call.name == "write" and "/__transactions/" in call.path] == []
