"""What a message costs, in things that can be counted: calls to the operating system, bytes, calls in Python, blocks.

Time differs from one machine and one minute to the next, these do not: who adds a call to the way of every message
changes a number here. Calls are counted at the files seam, where one is one system call or two (a lock is `flock`, a
write `pwritev`). The numbers are what they are, not what they must be: whoever makes one smaller writes it down here.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import streamlite
from streamlite import Bus, Consumer, Producer, TopicPartition
from streamlite.files.local import LocalFifo
from streamlite.files.memory import MemoryFiles
from streamlite.format import HEADER_BYTES
from tests.crash.faulty import SYNCING, FaultyFiles, open_over

PATIENCE_S = 20.0
VALUES = [os.urandom(100) for _ in range(1000)]
KEYS = [b"k%03d" % number for number in range(1000)]
TP = TopicPartition("t", 0)


class Counted:
    """A bus over files whose calls are counted."""

    def __init__(self, **options: Any) -> None:
        self.files = FaultyFiles(MemoryFiles())
        self.bus = open_over(self.files, **({"sync": "never"} | options))
        self.topic = self.bus.topic("t")

    def calls(self, do: Callable[[], object]) -> list[str]:
        """The calls that `do` makes: name and file, the last part of it."""
        before = len(self.files.calls)
        do()
        return [f"{call.name} {call.path.rpartition('/')[2]}" for call in self.files.calls[before:]]


@pytest.fixture
def counted() -> Iterator[Counted]:
    one = Counted()
    yield one
    one.bus.close()


LOG = "00000000000000000000.log"
APPEND = ["acquire lock", f"write {LOG}", "release lock"]


# -- calls to the operating system -------------------------------------------------------------------------------------


def test_a_batch_is_one_write_under_one_lock_whatever_it_holds(counted: Counted) -> None:
    with counted.bus.producer() as producer:
        producer.send(counted.topic, b"first").result(PATIENCE_S)
        for count in (1, 10, 400):
            values = VALUES[:count]
            sent = counted.calls(lambda values=values: producer.send_many("t", values).result(PATIENCE_S))  # type: ignore[misc]
            assert sent == APPEND, count


def test_a_send_that_is_waited_for_is_one_write_under_one_lock(counted: Counted) -> None:
    with counted.bus.producer() as producer:
        producer.send(counted.topic, b"first").result(PATIENCE_S)
        for number in range(10):
            sent = counted.calls(lambda: producer.send(counted.topic, b"x", key=b"k").result(PATIENCE_S))
            assert sent == APPEND, number


def test_a_thousand_staged_sends_are_a_write_for_each_partition(counted: Counted) -> None:
    topic = counted.bus.topic("six", partitions=6)
    with staging(counted.bus) as producer:
        for partition in range(6):
            producer.send(topic, b"first", partition=partition)
        producer.flush()

        def send() -> None:
            for key, value in zip(KEYS, VALUES, strict=True):
                producer.send(topic, value[:20], key=key)
            producer.flush()

        assert Counter(counted.calls(send)) == dict.fromkeys(APPEND, 6)


def test_sixty_four_kilobytes_of_log_are_one_entry_of_the_index(counted: Counted) -> None:
    with counted.bus.producer() as producer:
        for _ in range(2):  # the first entry creates the index
            producer.send_many(counted.topic, VALUES).result(PATIENCE_S)
        sent = counted.calls(lambda: producer.send_many(counted.topic, VALUES).result(PATIENCE_S))
    index = LOG.replace(".log", ".index")
    assert sent == [*APPEND[:2], f"size {index}", f"write {index}", APPEND[2]]


def test_a_reader_reads_a_mebibyte_at_a_time_and_a_waiting_one_nothing(counted: Counted) -> None:
    with counted.bus.producer() as producer:
        for _ in range(30):
            producer.send_many(counted.topic, VALUES).result(PATIENCE_S)
    size = sum(len(counted.files.inner.read_file(path)) for path in [f"topics/t/0/{LOG}"])
    with counted.bus.consumer("t") as consumer:
        consumer.poll(max_messages=1)
        calls = counted.calls(lambda: read_all(consumer, 29_999))
        assert calls == [f"read {LOG}"] * len(calls)
        assert size / (1 << 20) - 1 <= len(calls) <= size / (1 << 20) + 1
        assert counted.calls(lambda: [consumer.poll() for _ in range(100)]) == []


def read_all(consumer: Consumer, count: int) -> None:
    seen = 0
    while seen < count:
        messages = consumer.poll(PATIENCE_S)
        assert messages
        seen += len(messages)


def test_a_commit_of_a_group_is_one_write() -> None:
    counted = Counted()
    with counted.bus.producer() as producer:
        producer.send_many(counted.topic, VALUES).result(PATIENCE_S)
    with counted.bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.poll()
        consumer.commit({TP: 1})
        calls = counted.calls(lambda: consumer.commit({TP: 2}))
    assert [call for call in calls if call.startswith("write")] == [f"write {LOG}"]
    assert len(calls) <= 5, calls  # the group's lock, and the log's
    counted.bus.close()


@pytest.mark.parametrize(("sync", "expected"), [("never", 0), ("always", 1)])
def test_a_sent_message_is_synced_once_or_never(sync: str, expected: int) -> None:
    counted = Counted(sync=sync)
    with counted.bus.producer() as producer:
        producer.send(counted.topic, b"first").result(PATIENCE_S)
        for send in (
            lambda: producer.send(counted.topic, b"x"),
            lambda: producer.send_many(counted.topic, VALUES[:100]),
        ):
            calls = counted.calls(lambda send=send: send().result(PATIENCE_S))  # type: ignore[misc]
            assert sum(call.split()[0] in SYNCING for call in calls) == expected, calls
    counted.bus.close()


def test_nothing_is_synced_at_never_until_the_bus_is_closed(counted: Counted) -> None:
    topic = counted.bus.topic("other", partitions=2, segment_bytes=20_000)
    with counted.bus.producer() as producer, counted.bus.consumer("t", group="g") as consumer:
        before = Counter(call.name for call in counted.files.calls)
        for key, value in zip(KEYS, VALUES, strict=True):
            producer.send(counted.topic, value, key=key)
        producer.flush()
        read_all(consumer, 1000)
        consumer.commit()
        producer.send_many(topic, VALUES[:100], keys=KEYS[:100]).result(PATIENCE_S)
        now = Counter(call.name for call in counted.files.calls)
    assert {name: now[name] - before[name] for name in SYNCING} == dict.fromkeys(SYNCING, 0)


# -- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "per_message"),
    [(None, 2), (KEYS, 2 + 2 + 4)],
    ids=["no keys", "keys of 4 bytes"],
)
def test_a_message_of_100_bytes_takes_its_bytes_and_a_length(
    counted: Counted, keys: list[bytes] | None, per_message: int
) -> None:
    """2 bytes before each value and each key, and once a batch its header and the lengths of the columns."""
    with counted.bus.producer() as producer:
        producer.send_many(counted.topic, VALUES, keys=keys).result(PATIENCE_S)
    size = len(counted.files.inner.read_file(f"topics/t/0/{LOG}"))
    columns = 1 + (1 if keys is None else 3) + 3
    assert size == HEADER_BYTES + columns + 1000 * (100 + per_message)


def test_what_all_messages_share_is_stored_once(counted: Counted) -> None:
    with counted.bus.producer() as producer:
        producer.send_many(counted.topic, [b"v" * 100] * 1000, keys=[b"k" * 20] * 1000).result(PATIENCE_S)
    assert len(counted.files.inner.read_file(f"topics/t/0/{LOG}")) < HEADER_BYTES + 140


# -- calls in Python ---------------------------------------------------------------------------------------------------


class staging:  # noqa: N801 - a context manager, called as one
    """A producer that goes on staging: its clock for timestamps stands still, in C, and its linger is long."""

    def __init__(self, bus: Bus) -> None:
        self._producer = bus.producer(linger_ms=60_000, buffer_bytes=1 << 30, batch_bytes=1 << 29)

    def __enter__(self) -> Producer:
        self._producer._now = self._producer._direct._now = repeat(1_700_000_000.0).__next__
        return self._producer

    def __exit__(self, *exc: object) -> None:
        self._producer.close()


def python_calls(do: Callable[[], object]) -> Counter[str]:
    """How often each function in Python is called by `do`, in this thread."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            found[frame.f_code.co_qualname] += 1  # type: ignore[attr-defined]

    gc.collect()
    gc.disable()
    sys.setprofile(note)
    try:
        do()
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


@pytest.mark.parametrize("keyed", [True, False], ids=["with a key", "without"])
def test_a_staged_send_is_one_call(counted: Counted, keyed: bool) -> None:
    topic, keys = counted.topic, KEYS if keyed else [None] * 1000
    with staging(counted.bus) as producer:
        for key in (*keys, keys[0]):  # the first goes at once, the next opens the batch, keys are remembered
            producer.send(topic, b"first", key=key)

        def send() -> None:
            for key, value in zip(keys, VALUES, strict=True):
                producer.send(topic, value, key=key)

        calls = python_calls(send)
    del calls[send.__qualname__]
    assert calls == {"Producer.send": 1000}


def test_a_polled_message_is_a_fraction_of_a_call(counted: Counted) -> None:
    with counted.bus.producer() as producer:
        for _ in range(20):
            producer.send_many(counted.topic, VALUES, keys=KEYS).result(PATIENCE_S)
    with counted.bus.consumer("t") as consumer:
        consumer.poll()
        whole = sum(python_calls(lambda: [consumer.poll() for _ in range(10)]).values())
        apart = sum(python_calls(lambda: [consumer.poll_columns() for _ in range(5)]).values())
    assert whole / 10_000 < 0.07
    assert apart / 5_000 < 0.07


def test_a_column_sent_is_a_fraction_of_a_call(counted: Counted) -> None:
    with counted.bus.producer() as producer:
        producer.send_many(counted.topic, VALUES).result(PATIENCE_S)
        calls = python_calls(lambda: producer.send_many(counted.topic, VALUES * 10).result(PATIENCE_S))
    assert sum(calls.values()) / 10_000 < 0.06


# -- blocks of memory --------------------------------------------------------------------------------------------------


def blocks(do: Callable[[], object]) -> float:
    """The blocks that are there more after `do`, a message of 1,000: the least of five, as other threads live too."""
    found = []
    for _ in range(5):
        gc.collect()
        gc.disable()
        before = sys.getallocatedblocks()
        kept = do()
        found.append(sys.getallocatedblocks() - before)
        gc.enable()
        del kept
    return min(found) / 1000


def test_a_staged_message_is_one_block_and_its_delivery_another(counted: Counted) -> None:
    topic = counted.topic
    with staging(counted.bus) as producer:
        for key in (*KEYS, KEYS[0]):
            producer.send(topic, b"first", key=key)
        pairs = list(zip(KEYS, VALUES, strict=True))

        def send() -> None:
            for key, value in pairs:
                producer.send(topic, value, key=key)

        assert 0.98 <= blocks(send) <= 1.05
        assert 1.98 <= blocks(lambda: [producer.send(topic, value, key=key) for key, value in pairs]) <= 2.05


def test_a_polled_message_is_five_blocks_and_a_column_one(counted: Counted) -> None:
    with counted.bus.producer() as producer:
        for _ in range(30):
            producer.send_many(counted.topic, VALUES, keys=KEYS, timestamps=range(1000, 2000)).result(PATIENCE_S)
    with counted.bus.consumer("t") as consumer:
        consumer.poll()
        # The message, its key, its value, offset and timestamp.
        assert 4.9 <= blocks(consumer.poll) <= 5.1
        assert blocks(consumer.poll_columns) <= 0.05
        assert 0.98 <= blocks(lambda: [(one, one.values) for one in consumer.poll_columns()]) <= 1.05


# -- waking ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every write to a FIFO."""
    found: list[int] = []
    ring = LocalFifo.ring

    def counted(self: LocalFifo) -> None:
        found.append(1)
        ring(self)

    monkeypatch.setattr(LocalFifo, "ring", counted)
    return found


def test_nobody_is_woken_while_nobody_waits(tmp_path: Path, rings: list[int]) -> None:
    with streamlite.open(tmp_path / "bus", sync="never") as bus:
        topic = bus.topic("t", partitions=2)
        with bus.producer() as producer, bus.consumer("t") as consumer, bus.consumer("t", group="g") as member:
            for one in (consumer, member):
                assert one.poll(timeout=0.01) == []  # it waited once
            rings.clear()
            for value in VALUES[:100]:
                producer.send(topic, value).result(PATIENCE_S)
            producer.send_many(topic, VALUES).result(PATIENCE_S)
            read_all(consumer, 1100)
            read_all(member, 1100)
            assert rings == []


def test_who_waits_is_woken_by_one_write_for_a_burst(tmp_path: Path, rings: list[int]) -> None:
    with streamlite.open(tmp_path / "bus", sync="never") as bus:
        topic = bus.topic("t")
        with bus.producer() as producer, bus.consumer("t") as consumer:
            armed, found = threading.Event(), list[bytes | None]()
            wait, go = LocalFifo.wait, threading.Event()

            def waiting(self: LocalFifo, timeout: float | None) -> None:
                armed.set()
                go.wait(PATIENCE_S)  # the burst comes while it sleeps
                wait(self, timeout)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(LocalFifo, "wait", waiting)
                thread = threading.Thread(target=lambda: found.extend(m.value for m in consumer.poll(PATIENCE_S)))
                thread.start()
                assert armed.wait(PATIENCE_S)
                for value in VALUES[:50]:
                    producer.send(topic, value).result(PATIENCE_S)
                go.set()
                thread.join(PATIENCE_S)
            assert found == VALUES[:50]
            assert len(rings) == 1
