"""Faults as users inject them: a disk that refuses, a full one, and processes that die at a chosen call."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from streamlite import Bus, ClosedError, StorageError, TopicPartition
from streamlite.errors import ConfigError
from streamlite.testing import Faults

TP = TopicPartition("orders", 0)


@pytest.fixture(params=["memory", "directory"])
def faults(request: pytest.FixtureRequest, tmp_path: Path) -> Faults:
    return Faults() if request.param == "memory" else Faults(tmp_path / "bus")


def values(bus: Bus) -> list[bytes]:
    return [message.value for message in bus.topic("orders").read()]


def test_a_write_that_fails_fails_its_delivery_and_no_more(faults: Faults) -> None:
    with faults.open() as bus, bus.producer() as producer:
        producer.send(bus.topic("orders"), b"before").result(10)
        with faults.failing("write", topic="orders"):
            error = producer.send("orders", b"lost").exception(10)
        assert isinstance(error, StorageError)
        assert error.errno == errno.EIO
        producer.send("orders", b"after").result(10)
        assert values(bus) == [b"before", b"after"]


def test_a_full_disk_is_one_until_there_is_room(faults: Faults) -> None:
    with faults.open() as bus, bus.producer() as producer:
        producer.send(bus.topic("orders"), b"before").result(10)
        with faults.full_disk():
            error = producer.send("orders", b"lost").exception(10)
            assert values(bus) == [b"before"]
        assert isinstance(error, StorageError)
        assert error.errno == errno.ENOSPC
        producer.send("orders", b"after").result(10)
        assert values(bus) == [b"before", b"after"]


def test_only_the_topic_that_is_named_fails(faults: Faults) -> None:
    with faults.open() as bus, bus.producer() as producer:
        for name in ("orders", "other"):
            bus.topic(name)
        with faults.failing("write", topic="oth*"):
            assert producer.send("other", b"x").exception(10) is not None
            assert producer.send("orders", b"x").exception(10) is None


def test_some_calls_may_succeed_first(faults: Faults) -> None:
    with faults.open() as bus, bus.producer() as producer:
        bus.topic("orders")
        with faults.failing("write", topic="orders", skip=2):
            outcomes = [producer.send("orders", b"x").exception(10) for _ in range(4)]
        assert [outcome is None for outcome in outcomes] == [True, True, False, False]


def test_a_sync_that_failed_closes_the_partition_until_all_have_closed(faults: Faults) -> None:
    bus = faults.open(sync="always")
    with bus.producer() as producer:
        producer.send(bus.topic("orders"), b"safe").result(10)
        with faults.failing("sync", topic="orders"):
            assert producer.send("orders", b"unsafe").exception(10) is not None
        assert producer.send("orders", b"refused").exception(10) is not None
    bus.close()
    with faults.open(sync="always") as again, again.producer() as producer:
        producer.send("orders", b"after").result(10)
        assert values(again)[0] == b"safe"
        assert values(again)[-1] == b"after"


def work(bus: Bus, done: list[bytes]) -> None:
    """What a user's program does: process, then commit."""
    with bus.consumer("orders", group="workers", auto_commit=False) as consumer:
        while messages := consumer.poll(timeout=0.1, max_messages=2):
            done += [message.value for message in messages]
            consumer.commit()


def test_a_crash_between_processing_and_commit_hands_the_same_out_again(faults: Faults) -> None:
    done: list[bytes] = []
    bus = faults.open()
    with bus.producer() as producer:
        for number in range(6):
            producer.send(bus.topic("orders"), b"%d" % number).result(10)
    with faults.crashing("commit", skip=1):
        work(bus, done)
    assert done == [b"0", b"1", b"2", b"3"]
    with faults.open() as again:
        assert again.group("workers").committed == {TP: 2}
        work(again, done)
        assert done == [b"0", b"1", b"2", b"3", b"2", b"3", b"4", b"5"]


def test_what_was_sent_survives_a_crash_and_what_was_being_sent_does_not(faults: Faults) -> None:
    bus = faults.open()
    producer = bus.producer()
    producer.send(bus.topic("orders"), b"sent").result(10)
    with faults.crashing("write", topic="orders"):
        producer.send("orders", b"lost").result(10)
    with faults.open() as again:
        assert values(again) == [b"sent"]
        with again.producer() as other:
            other.send("orders", b"after").result(10)
        assert values(again) == [b"sent", b"after"]


def test_a_crash_in_a_transaction_leaves_nothing_of_it(faults: Faults) -> None:
    bus = faults.open()
    orders = bus.topic("orders", partitions=3)
    bus.topic("more")
    with bus.producer() as producer, faults.crashing("write", topic="__transactions"), producer.transaction() as tx:
        for number in range(9):
            tx.send(orders, b"x", partition=number % 3)
        tx.send("more", b"x")
    with faults.open() as again:
        assert values(again) == []
        assert list(again.topic("more").read()) == []


def test_a_process_may_end_at_any_moment(faults: Faults) -> None:
    bus = faults.open()
    bus.producer().send(bus.topic("orders"), b"sent").result(10)
    faults.crash()
    with pytest.raises(ClosedError):
        bus.topic("another")
    with faults.open() as again:
        assert values(again) == [b"sent"]


def test_a_crash_that_did_not_come_is_an_error_of_the_test(faults: Faults) -> None:
    with faults.open() as bus, pytest.raises(AssertionError, match="no commit"), faults.crashing("commit"):
        bus.topic("orders")


def test_the_code_under_test_cannot_catch_a_crash(faults: Faults) -> None:
    bus = faults.open()
    bus.topic("orders")
    caught = []
    with faults.crashing("write", topic="orders"):
        try:
            bus.producer().send("orders", b"x").result(10)
        except Exception as error:  # noqa: BLE001 - what is shown here is that it does not come
            caught.append(error)
    assert not caught


@pytest.mark.parametrize("call", ["", "fsync", "Write"])
def test_a_call_that_is_none_is_refused(call: str) -> None:
    with pytest.raises(ConfigError, match="call"), Faults().failing(call):
        raise AssertionError("it was let in")


def test_one_thing_goes_wrong_at_a_time() -> None:
    faults = Faults()
    with faults.full_disk(), pytest.raises(ConfigError, match="one thing"), faults.failing("read"):
        raise AssertionError("it was let in")
