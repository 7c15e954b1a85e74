"""Messages that go at once: when they do, and that they are like any other."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from streamlite import Bus, Producer, errors
from streamlite.delivery import Delivery
from streamlite.direct import Single
from streamlite.files.memory import MemoryFiles
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import FaultyFiles, Plan, open_over


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(MemoryFiles())


@pytest.fixture
def bus(files: FaultyFiles, clock: VirtualClock) -> Iterator[Bus]:
    with open_over(files, sync="never", clock=clock, lock_timeout=0.05) as bus:
        bus.topic("t", partitions=2)
        yield bus
        files.heal()


def went_directly(delivery: Delivery) -> bool:
    return isinstance(delivery._outcome, Single)


def values(bus: Bus) -> list[bytes]:
    return [message.value for message in bus.topic("t").read(partition=0)]


def test_the_first_goes_at_once_and_a_burst_is_staged(bus: Bus, clock: VirtualClock) -> None:
    with bus.producer(linger_ms=1000) as producer:
        deliveries = [producer.send("t", b"%d" % number, partition=0) for number in range(5)]
        assert [went_directly(one) for one in deliveries] == [True] + [False] * 4
        assert deliveries[0].done()
        producer.flush()
        clock.advance(1)
        assert went_directly(producer.send("t", b"5", partition=0))
    assert values(bus) == [b"%d" % number for number in range(6)]


def test_what_it_says_of_itself_is_what_stands_in_the_log(bus: Bus) -> None:
    with bus.producer() as producer:
        given = {"key": b"k", "timestamp": 1234, "headers": {"a": b"1", "b": None}}
        sent = producer.send("t", "text", partition=1, **given)
        assert went_directly(sent)
        assert (sent.result().partition, sent.result().offset, sent.result().timestamp) == (1, 0, 1234)
    [message] = bus.topic("t").read(partition=1)
    assert (message.key, message.value, message.timestamp) == (b"k", b"text", 1234)
    assert dict(message.headers) == given["headers"]
    told: list[Delivery] = []
    sent.add_done_callback(told.append)
    assert told == [sent]


def test_who_waits_for_each_result_has_each_sent_at_once(bus: Bus) -> None:
    with bus.producer(linger_ms=60_000) as producer:
        producer.send("t", b"0", partition=0)
        assert (
            producer.send("t", b"1", partition=0).result(10).offset == 1
        )  # staged: from now on none waits for company
        for number in range(2, 40):
            sent = producer.send("t", b"%d" % number, partition=0)
            assert went_directly(sent)
            assert sent.result().offset == number
        later = [producer.send("t", b"x", partition=0) for _ in range(40)]
        assert not went_directly(later[-1])  # nobody asked for a while
        producer.flush()
        later.clear()
    assert values(bus) == [b"%d" % number for number in range(40)] + [b"x"] * 40


@pytest.mark.parametrize("options", [{"on_delivery": print}, {"name": "n"}])
def test_who_must_be_told_or_numbered_is_staged(bus: Bus, options: dict[str, object]) -> None:
    with bus.producer(**options) as producer:
        assert not went_directly(producer.send("t", b"x", partition=0))


def test_with_a_sync_in_the_append_nobody_writes_in_the_senders_thread(files: FaultyFiles) -> None:
    with open_over(files, sync="always") as bus, bus.producer() as producer:
        bus.topic("t")
        sent = producer.send("t", b"x")
        assert not went_directly(sent)
        sent.result(10)


def test_a_lock_that_is_taken_leaves_the_message_to_others(bus: Bus, files: FaultyFiles) -> None:
    held = FaultyFiles(files.inner).lock("topics/t/0/lock")
    with bus.producer() as producer:
        producer.send("t", b"0", partition=0).result(10)
        assert held.acquire()
        sent = producer.send("t", b"1", partition=0)
        assert not went_directly(sent)
        assert not sent.done()
        held.release()
        assert sent.result(10).offset == 1
    assert values(bus) == [b"0", b"1"]


def test_nothing_overtakes_what_is_staged(bus: Bus, files: FaultyFiles) -> None:
    held = FaultyFiles(files.inner).lock("topics/t/0/lock")
    with bus.producer(linger_ms=0) as producer:
        producer.send("t", b"0", partition=0).result(10)
        assert held.acquire()
        for number in range(1, 4):
            producer.send("t", b"%d" % number, partition=0)
        held.release()
        producer.send("t", b"4", partition=0)
    assert values(bus) == [b"%d" % number for number in range(5)]


def test_a_failure_is_in_its_delivery_and_is_never_silent(bus: Bus, files: FaultyFiles) -> None:
    producer = bus.producer()
    producer.send("t", b"0", partition=0).result(10)
    files.plan = Plan(1, errno.ENOSPC, looks_at=lambda call: call.name == "write" and call.path.endswith(".log"))
    files.count = 0
    failed = send_after_quiet(producer, bus)
    assert isinstance(failed._outcome.error, errors.StorageError)
    with pytest.raises(errors.StorageError):
        producer.close()
    assert values(bus) == [b"0"]


def send_after_quiet(producer: Producer, bus: Bus) -> Delivery:
    clock: VirtualClock = bus._engine.ctx.clock  # type: ignore[assignment]
    clock.advance(1)
    sent = producer.send("t", b"1", partition=0)
    assert went_directly(sent)
    return sent


def test_without_keys_each_goes_to_the_next_partition(bus: Bus, clock: VirtualClock) -> None:
    with bus.producer() as producer:
        places = []
        for _ in range(6):
            clock.advance(1)
            places.append(producer.send("t", b"x").result(10).partition)
    assert places == [0, 1] * 3 or places == [1, 0] * 3
