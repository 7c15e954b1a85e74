"""A signal handler that raises, at every moment at which CPython could run it in a call (see `interrupting`).

Each story does a few things with a bus, and is interrupted at its n-th moment, for all n; some, a second time shortly
after, in whatever cleans up. Afterwards the same handle is used on, and what must hold is looked at:

* nothing hangs (a real signal ends what takes too long), and the handles go on to work;
* what was acknowledged is in the log, once, in the order of sending, and nothing is there that was not sent;
* every message is handed out, in order per partition, though some of them twice, and no commit is beyond what was
  handed out and processed.

On every change each story is interrupted at a sample of its moments, chosen by a stated seed. STREAMLITE_INTERRUPTS=all
takes every one of them, each once more with a second one, and once more with an ordinary exception.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlite
from streamlite import Bus, Consumer, Delivery, Message, Producer, TopicPartition, Transaction, errors
from tests.crash.interrupting import REASON, SUPPORTED, Failed, Interrupted, Interrupter, deadline

pytestmark = pytest.mark.skipif(not SUPPORTED, reason=REASON)

ALL = os.environ.get("STREAMLITE_INTERRUPTS") == "all"
SEED = int(os.environ.get("STREAMLITE_SEED", "1"))
SAMPLE = int(os.environ.get("STREAMLITE_INTERRUPTS_SAMPLE", "40"))
"""Moments of each story in memory, unless all are wanted; on disk, where most is the same and slower, a third."""
PATIENCE = 10.0
PARTITIONS = 2
MESSAGES = 12


class Story:
    """One story on one bus. `prepare` and `check` are not interrupted, `act` is."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.bus: Bus = streamlite.open(location)
        self.prepare()

    def prepare(self) -> None:
        return

    def act(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        raise NotImplementedError

    def again(self) -> None:
        """What a user does with the same handle after the interruption."""
        return

    def end(self) -> None:
        self.bus.close()
        if self.location != ":memory:":
            with streamlite.open(self.location) as bus:  # nothing was left held
                assert [m.offset for m in bus.topic("t").read(partition=0)] == list(
                    range(bus.topic("t").end_offsets()[TopicPartition("t", 0)])
                )


class Sending(Story):
    """A producer, what was sent, and what became of it."""

    def options(self) -> dict[str, Any]:
        return {}

    def prepare(self) -> None:
        self.topic = self.bus.topic("t", partitions=PARTITIONS)
        self.told: list[Delivery] = []
        self.producer: Producer = self.bus.producer(**self.options())
        self.producer.send(self.topic, b"first", key=b"k0").result(PATIENCE)
        self.tried: list[bytes] = []
        self.taken: list[tuple[bytes, Delivery]] = []
        self.known: list[tuple[bytes, int, int]] = []

    def send(self, value: bytes, **options: Any) -> Delivery:
        self.tried.append(value)
        delivery = self.producer.send(self.topic, value, **options)
        self.taken.append((value, delivery))
        return delivery

    def result(self, value: bytes, delivery: Delivery) -> None:
        found = delivery.result(PATIENCE)
        self.known.append((value, found.partition, found.offset))

    def again(self) -> None:
        for number in range(3):
            value = b"again-%d" % number
            self.result(value, self.send(value, key=b"k%d" % number))
        self.send(b"again-3")
        self.producer.flush(PATIENCE)

    def check(self) -> None:
        self.again()
        for value, delivery in self.taken:
            self.result(value, delivery)
        self.producer.close(PATIENCE)
        self.look(self.bus)

    def look(self, bus: Bus) -> None:
        log = list(bus.topic("t").read())
        there = {(m.partition, m.offset): m.value for m in log}
        for value, partition, offset in self.known:
            assert there[partition, offset] == value
        values = [m.value for m in log if m.value != b"first"]
        assert len(values) == len(set(values)), f"twice: {sorted(v for v in values if values.count(v) > 1)}"
        assert {value for value, _ in self.taken} <= set(values) <= set(self.tried)
        for number in range(PARTITIONS):
            here = [m.value for m in log if m.partition == number and m.key is not None and m.value != b"first"]
            places = [self.tried.index(value) for value in here]
            assert places == sorted(places), f"out of order: {here}"


class SendKeyed(Sending):
    def act(self) -> None:
        deliveries = [(b"%d" % n, self.send(b"%d" % n, key=b"k%d" % (n % 3))) for n in range(4)]
        for value, delivery in deliveries:
            self.result(value, delivery)


class SendOneByOne(Sending):
    """Each is waited for: they go at once."""

    def act(self) -> None:
        for number in range(3):
            value = b"%d" % number
            self.result(value, self.send(value))


class SendWithEverything(Sending):
    def act(self) -> None:
        self.send(b"0", key=b"k", headers={"h": b"1"}, timestamp=5)
        self.send(b"1" * 3000, key=b"k")
        self.send(b"2", partition=1)
        self.producer.flush(PATIENCE)


class SendAndClose(Sending):
    def act(self) -> None:
        for number in range(3):
            self.send(b"%d" % number, key=b"k%d" % number)
        self.producer.close(PATIENCE)

    def check(self) -> None:
        self.producer.close(PATIENCE)
        with pytest.raises(errors.ClosedError):
            self.producer.send(self.topic, b"late")
        for value, delivery in self.taken:
            self.result(value, delivery)
        with self.bus.producer() as other:
            other.send(self.topic, b"first").result(PATIENCE)
        self.look(self.bus)


class SendWithCallback(Sending):
    """Everything that is delivered is told of."""

    def options(self) -> dict[str, Any]:
        return {"on_delivery": self.told.append}

    def act(self) -> None:
        for number in range(3):
            self.send(b"%d" % number, key=b"k%d" % number)
        self.producer.flush(PATIENCE)

    def check(self) -> None:
        super().check()
        for _, delivery in self.taken:
            assert self.told.count(delivery) == 1


class SendMany(Sending):
    def act(self) -> None:
        values = [b"%d" % number for number in range(6)]
        self.tried += values
        found = self.producer.send_many(self.topic, values, keys=[b"k%d" % (n % 3) for n in range(6)])
        for value, one in zip(values, found.result(PATIENCE), strict=True):
            self.known.append((value, one.partition, one.offset))


class SendIntoALittleBuffer(Sending):
    """Room is given back again and again; what is interrupted must not keep it."""

    def options(self) -> dict[str, Any]:
        return {"buffer_bytes": 4000, "batch_bytes": 2000, "max_block": PATIENCE}

    def act(self) -> None:
        for number in range(8):
            self.send(b"%d" % number + b"x" * 1000, key=b"k%d" % number)

    def again(self) -> None:
        for number in range(12):
            self.send(b"again-%d" % number + b"x" * 1000, key=b"k%d" % number)
        self.producer.flush(PATIENCE)
        assert self.producer._outbox.buffered == 0


class SendAlways(Sending):
    """The append includes a sync."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.bus = streamlite.open(location, sync="always")
        self.prepare()

    def act(self) -> None:
        for number in range(2):
            value = b"%d" % number
            self.result(value, self.send(value, key=b"k"))


class Transact(Sending):
    """All of it or nothing. A block whose end was cut off is ended by hand."""

    def prepare(self) -> None:
        super().prepare()
        self.tx: Transaction | None = None

    def act(self) -> None:
        self.tx = self.producer.transaction()
        with self.tx:
            for number in range(4):
                self.tried.append(b"%d" % number)
                self.tx.send(self.topic, self.tried[-1], key=b"k%d" % number)

    def check(self) -> None:
        if self.tx is not None:
            with contextlib.suppress(errors.TransactionError):
                self.tx.abort()
        done = list(self.tried)
        super().check()
        there = {message.value for message in self.bus.topic("t").read()}
        assert len({value in there for value in done}) < 2, f"a part of a transaction is there: {there}"

    def again(self) -> None:
        super().again()
        with self.producer.transaction() as tx:
            self.tried.append(b"again, together")
            tx.send(self.topic, self.tried[-1], key=b"k0")


class SendOverASegment(Sending):
    """Segments roll in the middle."""

    def prepare(self) -> None:
        self.bus.topic("t", partitions=PARTITIONS, segment_bytes=4096)
        super().prepare()

    def act(self) -> None:
        for number in range(4):
            self.result(b"%d" % number + b"x" * 1500, self.send(b"%d" % number + b"x" * 1500, key=b"k"))


class CloseTheBus(Sending):
    def act(self) -> None:
        self.send(b"0", key=b"k0")
        self.send(b"1", key=b"k1")
        self.bus.close()

    def check(self) -> None:
        self.bus.close()
        if self.location == ":memory:":
            return
        assert (Path(self.location) / "clean").exists()
        with streamlite.open(self.location) as bus:
            for value, delivery in self.taken:
                self.result(value, delivery)
            self.look(bus)


class OpenABus(Sending):
    """Nobody has it after the interruption; the next opens it as if nothing had been."""

    def act(self) -> None:
        if self.location != ":memory:":
            self.bus.close()
        with streamlite.open(self.location) as bus, bus.producer() as producer:
            topic = bus.topic("t", partitions=PARTITIONS)
            self.tried.append(b"0")
            self.taken.append((b"0", producer.send(topic, b"0", key=b"k")))
            self.taken[0][1].result(PATIENCE)

    def check(self) -> None:
        self.bus.close()
        if self.location == ":memory:":
            return
        with streamlite.open(self.location, lock_timeout=1.0) as bus:
            bus.topic("t", partitions=PARTITIONS)
            assert [m.value for m in bus.topic("t").read()].count(b"first") == 1


class CreateATopic(Story):
    def prepare(self) -> None:
        self.bus.topic("t")

    def act(self) -> None:
        self.bus.create_topic("u", partitions=3)
        self.bus.topic("u").increase_partitions(4)
        self.bus.topic("u").alter(retention_ms=1000)
        self.bus.delete_topic("u")

    def check(self) -> None:
        self.bus.topic("v", partitions=2)
        if "u" in self.bus.topics():
            assert len(self.bus.topic("u").end_offsets()) in (3, 4)
            self.bus.delete_topic("u")
        assert self.bus.topics() == ["t", "v"]
        self.bus.create_topic("u")


class Reading(Story):
    """A consumer, what it got, and what may be committed at most."""

    group: str | None = "g"

    def prepare(self) -> None:
        self.topic = self.bus.topic("t", partitions=PARTITIONS)
        self.producer = self.bus.producer()
        for start in (0, MESSAGES // 2):  # two batches in each partition
            for partition in range(PARTITIONS):
                values = [b"%d" % number for number in range(start, start + MESSAGES // 2)]
                self.producer.send_many(self.topic, values, partition=partition).result(PATIENCE)
        self.got: list[list[int]] = [[] for _ in range(PARTITIONS)]
        self.handed = [0] * PARTITIONS
        """By partition, the offset after the last one that was handed out."""
        self.consumer = self.open()

    def open(self) -> Consumer:
        return self.bus.consumer("t", group=self.group, auto_commit_interval_ms=1)

    def take(self, messages: list[Message]) -> None:
        for message in messages:
            self.got[message.partition].append(message.offset)
            self.handed[message.partition] = max(self.handed[message.partition], message.offset + 1)

    def again(self) -> None:
        """Until all was handed out."""
        self.producer.send(self.topic, b"after", partition=0).result(PATIENCE)
        self.producer.send(self.topic, b"after", partition=1).result(PATIENCE)
        ends = [end for _, end in sorted(self.topic.end_offsets().items())]
        while any(handed < end for handed, end in zip(self.handed, ends, strict=True)):
            found = self.consumer.poll(PATIENCE, max_messages=5)
            assert found or self.woken(), f"a partition stopped: {self.got}"
            self.take(found)
        assert self.consumer.poll(0) == []
        if self.group is not None:
            self.consumer.commit()
            self.look_at_commits(exactly=ends)

    def woken(self) -> bool:
        return False

    def look_at_commits(self, *, exactly: list[int] | None = None) -> None:
        if exactly is None and "g" not in self.bus.groups():
            return
        committed = self.bus.group("g").committed
        for tp, offset in committed.items():
            assert offset <= self.handed[tp.partition], f"{tp} is committed to {offset}, handed out: {self.handed}"
        if exactly is not None:
            assert [offset for _, offset in sorted(committed.items())] == exactly

    def check(self) -> None:
        if self.group is not None:
            self.look_at_commits()
        self.again()
        for offsets in self.got:
            nexts = 0
            for offset in offsets:
                assert offset <= nexts, f"skipped: {offsets}"
                nexts = max(nexts, offset + 1)
        self.consumer.close()


class Poll(Reading):
    def act(self) -> None:
        for _ in range(5):
            self.take(self.consumer.poll(0, max_messages=5))


class PollAlone(Poll):
    group = None


class PollColumns(Reading):
    def act(self) -> None:
        for _ in range(3):
            for columns in self.consumer.poll_columns(0, max_messages=5):
                self.got[columns.partition] += columns.offsets
                self.handed[columns.partition] = max(self.handed[columns.partition], columns.offsets[-1] + 1)


class PollAndCommit(Reading):
    def act(self) -> None:
        found = self.consumer.poll(0, max_messages=5)
        self.take(found)
        self.consumer.commit(found[-1])
        self.take(self.consumer.poll(0, max_messages=5))
        self.consumer.commit()


class Loop(Reading):
    def act(self) -> None:
        for message in self.consumer.messages(timeout=0.0):
            self.take([message])


class LoopAlone(Loop):
    group = None


class PollThatSleeps(Reading):
    """Nothing is there, and `wakeup` ends the call."""

    def prepare(self) -> None:
        super().prepare()
        while found := self.consumer.poll(0):
            self.take(found)

    def act(self) -> None:
        self.take(self.consumer.poll(0.002))
        self.consumer.wakeup()
        self.take(self.consumer.poll(PATIENCE))

    def woken(self) -> bool:
        return True  # the wakeup that was interrupted


class PollWhatComes(PollThatSleeps):
    """A message comes from another thread, before the poll sleeps or while it does."""

    def prepare(self) -> None:
        super().prepare()
        self.gate = threading.Lock()
        self.gate.acquire()
        self.sender = threading.Thread(target=self.send)
        self.sender.start()

    def send(self) -> None:
        self.gate.acquire()
        self.producer.send(self.topic, b"new", partition=0)

    def act(self) -> None:
        self.gate.release()  # no moment of ours comes before
        self.take(self.consumer.poll(PATIENCE))

    def check(self) -> None:
        self.sender.join()
        super().check()

    def woken(self) -> bool:
        return False


class SeekAndPause(Reading):
    def act(self) -> None:
        first, second = (TopicPartition("t", number) for number in range(PARTITIONS))
        self.take(self.consumer.poll(0, max_messages=5))
        self.consumer.pause(first)
        self.take(self.consumer.poll(0, max_messages=5))
        self.consumer.seek(second, 0)
        self.consumer.resume(first)
        self.take(self.consumer.poll(0, max_messages=5))

    def again(self) -> None:
        self.consumer.resume(*self.consumer.assignment())
        self.consumer.seek_to_beginning()
        self.handed = [0] * PARTITIONS
        self.got = [[] for _ in range(PARTITIONS)]
        super().again()


class CloseAConsumer(Reading):
    """What it had is another's at once, who goes on from what was committed."""

    def act(self) -> None:
        self.take(self.consumer.poll(0, max_messages=7))
        self.take(self.consumer.poll(0, max_messages=7))
        self.consumer.close()

    def check(self) -> None:
        self.consumer.close()
        self.look_at_commits()
        self.consumer = self.open()
        assert len(self.consumer.wait_assigned(PATIENCE)) == PARTITIONS
        super().check()


class OpenAConsumer(Reading):
    """Nobody has it after the interruption: it must not stay a member."""

    def open(self) -> Any:
        return None

    def act(self) -> None:
        self.consumer = self.bus.consumer("t", group="g")
        self.take(self.consumer.poll(0, max_messages=7))

    def check(self) -> None:
        if self.consumer is None:
            self.consumer = self.bus.consumer("t", group="g")
        while len(self.consumer.assignment()) < PARTITIONS:
            self.take(self.consumer.poll(0.01))
        super().check()


class Rebalance(Reading):
    """A second member comes and goes, in the same process."""

    def prepare(self) -> None:
        self.assigned: list[TopicPartition] = []
        self.others: list[Consumer] = []
        super().prepare()

    def open(self) -> Consumer:
        return self.bus.consumer(
            "t", group="g", auto_commit_interval_ms=1, on_assign=lambda _, tps: self.assigned.extend(tps)
        )

    def act(self) -> None:
        self.assigned.clear()
        self.take(self.consumer.poll(0, max_messages=4))
        other = self.bus.consumer("t", group="g")
        self.others.append(other)
        self.take(self.consumer.poll(0, max_messages=4))
        self.take(self.consumer.poll(0, max_messages=4))
        other.poll(0, max_messages=1)
        other.close()
        self.take(self.consumer.poll(0, max_messages=4))

    def check(self) -> None:
        for other in self.others:
            other.close()
        self.take(self.consumer.poll(0))
        with deadline(PATIENCE):
            while len(self.consumer.assignment()) < PARTITIONS:
                self.take(self.consumer.poll(0.01))
        super().check()


SENDING = [
    SendKeyed, SendOneByOne, SendWithEverything, SendAndClose, SendWithCallback, SendMany, SendIntoALittleBuffer,
    SendAlways, SendOverASegment, Transact, CloseTheBus, OpenABus, CreateATopic,
]  # fmt: skip
READING = [
    Poll, PollAlone, PollColumns, PollAndCommit, Loop, LoopAlone, PollThatSleeps, PollWhatComes, SeekAndPause,
    CloseAConsumer, OpenAConsumer, Rebalance,
]  # fmt: skip


def run(kind: Callable[[str], Story], location: str, *at: int, error: type[BaseException] = Interrupted) -> Interrupter:
    """One story, interrupted at these moments; says where, if it does not end well."""
    story = kind(location)
    interrupter = Interrupter(*at, error=error)
    try:
        with deadline(PATIENCE * 2):
            with contextlib.suppress(Interrupted, Failed), interrupter:
                story.act()
            story.check()
            story.end()
    except KeyboardInterrupt:
        raise
    except BaseException as found:
        where = " and ".join(interrupter.places)
        raise AssertionError(f"moments {at} of {kind.__name__}, {where}: {found!r}") from found
    return interrupter


@pytest.mark.parametrize("where", ["memory", "directory"])
@pytest.mark.parametrize("kind", [*SENDING, *READING])
def test_whatever_is_interrupted_goes_on(kind: type[Story], where: str, tmp_path: Path) -> None:
    numbers = itertools.count()

    def location() -> str:
        return ":memory:" if where == "memory" else str(tmp_path / str(next(numbers)))

    count = run(kind, location(), 0).count
    assert count > 20
    rng = random.Random(f"{SEED} {kind.__name__} {where}")
    moments = range(1, count + 1)
    sample = SAMPLE if where == "memory" else SAMPLE // 3
    once = list(moments) if ALL else rng.sample(moments, min(sample, count))
    for n in once:
        run(kind, location(), n)
    for n in once if ALL else once[::4]:
        # A second one soon after the first, most often in what cleans up after it.
        run(kind, location(), n, n + rng.randint(1, 6))
    for n in once if ALL else once[1::4]:
        # An ordinary exception is caught in more places.
        run(kind, location(), n, error=Failed)


_moments: dict[tuple[str, str], int] = {}


def case(seed: int) -> int:
    """One story, interrupted at one moment or at two; how often it was."""
    assert SUPPORTED, REASON
    rng = random.Random(f"interrupts {seed}")
    kind = rng.choice([*SENDING, *READING])
    where = rng.choice(("memory", "memory", "directory"))
    with tempfile.TemporaryDirectory() as directory:
        numbers = itertools.count()

        def location() -> str:
            return ":memory:" if where == "memory" else f"{directory}/{next(numbers)}"

        known = (kind.__name__, where)
        if known not in _moments:
            _moments[known] = run(kind, location(), 0).count
        moments = [rng.randint(1, _moments[known])]
        if rng.random() < 0.4:
            moments.append(moments[0] + rng.randint(1, 6))
        error = rng.choice((Interrupted, Interrupted, Failed))
        return len(run(kind, location(), *moments, error=error).places)
