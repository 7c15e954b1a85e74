"""Faults 8 and 9 of the promises: processes that are stopped (SIGSTOP) and go on when others have taken their place.

Past its time (`case`): a member of a group, one with a name (static), one in the middle of a transaction, or a named
producer is stopped at a random point. Its time passes (a clock that all processes share is moved), another takes over
and does its work; then it goes on. It is told that it was fenced, and nothing that it does late is ever visible.

Inside a lock (`case_of_lock_holder`): a process stops itself before, in the middle of, or after a write, before or
after a publication, of a send, a commit or a transaction, with the locks of that in its hands. Others get
`LockTimeoutError` and take nothing away from it; who needs no lock goes on. Then it goes on, or is killed.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import streamlite
from streamlite import Bus, Consumer, Message, Producer, TopicPartition, Transaction, errors
from tests.crash.processes import PATIENCE, Forked, Link, SharedClock, children, scratch, spin

SEED = int(os.environ.get("STREAMLITE_SEED", "1"))
INTERVAL_MS = 30_000
"""What a member may take between two polls; passed by moving the clock."""
LOOK_S = 0.2
"""So far the clock is moved from one look of the others to the next."""
LATE_S = INTERVAL_MS / 1000 + 1
LINES = 300
"""More than a process says from when it goes on until it finds that it was fenced."""
LOCK_S = 0.1
"""How long the test waits for a lock that it expects to be taken."""
TP = TopicPartition("t", 0)

Start = Callable[..., Forked]


# -- the processes that are stopped ------------------------------------------------------------------------------------


class Stopping:
    """What all of them have: the bus, and what the test drew for them."""

    def __init__(self, directory: Path, clock: SharedClock, seed: int, **options: Any) -> None:
        self.directory, self.clock, self.options = directory, clock, options
        self.rng = random.Random(seed)
        self.lost: list[TopicPartition] = []

    def __call__(self, link: Link) -> None:
        self.link = link
        bus = streamlite.open(self.directory, clock=self.clock, sync=self.rng.choice(("never", "interval")))
        with suppress(errors.FencedError):
            self.run(bus)
        link.tell("fenced")
        link.told()  # until the test has looked at everything: closing comes after that
        with suppress(errors.FencedError):  # of a send whose result nobody has looked at
            bus.close()
        bus.close()
        link.tell("closed")

    def run(self, bus: Bus) -> None:
        """Until a `FencedError`, or until it was told that it has lost what it had."""
        raise NotImplementedError

    def join(self, bus: Bus) -> Consumer:
        return bus.consumer(
            "t", group="g", max_poll_interval_ms=INTERVAL_MS, **self.options,
            on_lost=lambda consumer, partitions: self.lost.extend(partitions),
        )  # fmt: skip


class Member(Stopping):
    """Polls and commits."""

    def run(self, bus: Bus) -> None:
        consumer = self.join(bus)
        self.link.tell("begun")
        while not self.lost:
            found = consumer.poll(0.001, max_messages=self.rng.randint(1, 3))
            self.link.tell("polled")
            if found and not self.options["auto_commit"]:
                consumer.commit()
                self.link.tell("committed", [[message.partition, message.offset + 1] for message in found])


class Processor(Stopping):
    """Reads, and writes what it read to `out`, in transactions."""

    def run(self, bus: Bus) -> None:
        consumer, producer = self.join(bus), bus.producer()
        self.link.tell("begun")
        while not self.lost:
            with producer.transaction(consumer) as tx:
                found = process(tx, consumer, self.rng.randint(1, 3))
                self.link.tell("polled")
            self.link.tell("committed", [[message.partition, message.offset + 1] for message in found])


def process(tx: Transaction, consumer: Consumer, most: int) -> list[Message]:
    found = consumer.poll(0.001, max_messages=most)
    for message in found:
        tx.send("out", f"{message.partition}/{message.offset}")
    return found


class Named(Stopping):
    """Sends under a name, alone and in batches and in transactions."""

    def run(self, bus: Bus) -> None:
        producer = bus.producer(name="n", linger_ms=self.rng.choice((0, 1)))
        self.link.tell("begun")
        sequence = 0
        while True:
            numbers = range(sequence, sequence + self.rng.randint(1, 5))
            if self.rng.random() < 0.3:
                with producer.transaction() as tx:
                    for number in numbers:
                        tx.send("t", f"{number} old", partition=0, sequence=number)
                    self.link.tell("staged")
            else:
                for one in [producer.send("t", f"{n} old", partition=0, sequence=n) for n in numbers]:
                    one.result(PATIENCE)
            self.link.tell("stored", list(numbers))
            sequence = numbers.stop


# -- past their time ---------------------------------------------------------------------------------------------------


class Takeover:
    """A process that is stopped somewhere, and the test as the one that takes over."""

    def __init__(self, directory: Path, start: Start, rng: random.Random) -> None:
        self.rng, self.start, self.directory = rng, start, directory / "bus"
        self.clock = SharedClock()
        self.partitions = rng.randint(1, 3)
        self.count = rng.randint(10, 40)
        """Messages in each partition."""
        self.told: list[list[Any]] = []
        with streamlite.open(self.directory) as bus, bus.producer() as producer:
            bus.create_topic("t", partitions=self.partitions)
            bus.create_topic("out")
            for number in range(self.partitions if self.wants_messages else 0):
                producer.send_many("t", [b"x"] * self.count, partition=number).result(PATIENCE)

    wants_messages = True

    def open(self) -> Bus:
        found: Bus = self.patiently(lambda: streamlite.open(self.directory, clock=self.clock, lock_timeout=LOCK_S))
        return found

    def stop(self, kind: type[Stopping], **options: Any) -> None:
        """Start one, stop it at a random point, and let its time pass."""
        act = kind(self.directory, self.clock, self.rng.getrandbits(32), **options)
        self.child = self.start(act, kind.__name__)
        self.child.line("begun")
        for _ in range(self.rng.randrange(16)):
            self.told.append(self.child.next())
        spin(self.rng)
        self.child.stop()
        self.told += self.child.lines()
        self.clock.advance(LATE_S)

    def patiently(self, call: Callable[[], Any]) -> Any:
        """Do it. Where the stopped one holds a lock, nobody takes that from it: it goes on for a longer and longer
        instant.
        """
        most = 20_000
        while True:
            try:
                return call()
            except errors.LockTimeoutError:
                self.child.signal(signal.SIGCONT)
                most *= 2
                spin(self.rng, most)
                self.child.stop()
                self.clock.advance(LATE_S)

    def go_on(self) -> None:
        """It goes on, and is told."""
        self.told += self.child.lines()
        self.child.signal(signal.SIGCONT)
        for _ in range(LINES):
            if ["fenced"] in self.told:
                return
            self.told.append(self.child.next())
        raise AssertionError(f"it was replaced, and goes on and on: {self.told[-5:]}")

    def end(self) -> None:
        self.child.say("end")
        while ["closed"] not in self.told:
            self.told.append(self.child.next())
        assert self.child.wait() == 0

    def of_a_member(self, *, static: bool) -> None:
        auto_commit = self.rng.random() < 0.3
        name: dict[str, Any] = {"member": "a"} if static else {}
        self.stop(Member, auto_commit=auto_commit, **name)
        with self.open() as bus:
            consumer = self.patiently(lambda: self.join(bus, **name))
            got: dict[int, list[int]] = {}

            def poll() -> None:
                for message in consumer.poll(0):
                    got.setdefault(message.partition, []).append(message.offset)

            self.until(consumer, poll)
            before = self.committed(bus)
            for number in range(self.partitions):
                assert got.get(number, []) == list(range(before.get(number, 0), self.count)), (before, got)
            self.patiently(consumer.commit)
            wanted = dict.fromkeys(range(self.partitions), self.count)
            assert self.committed(bus) == wanted
            self.go_on()
            for line in self.told:
                for partition, offset in line[1] if line[0] == "committed" else ():
                    assert offset <= before[partition], f"it was told that {offset} is committed: {before}"
            assert self.committed(bus) == wanted
            self.end()
            assert self.committed(bus) == wanted

    def of_a_processor(self) -> None:
        self.stop(Processor, auto_commit=False)
        with self.open() as bus, bus.producer() as producer:
            consumer = self.patiently(lambda: self.join(bus))

            def step() -> None:
                with producer.transaction(consumer) as tx:
                    process(tx, consumer, 50)

            self.until(consumer, step)
            made = self.made(bus)
            assert sorted(made) == sorted(f"{p}/{o}" for p in range(self.partitions) for o in range(self.count))
            self.go_on()
            self.end()
            assert self.made(bus) == made
            assert self.committed(bus) == dict.fromkeys(range(self.partitions), self.count)

    def of_a_named_producer(self) -> None:
        self.stop(Named)
        with self.open() as bus:
            producer: Producer = self.patiently(lambda: bus.producer(name="n"))
            last = self.patiently(lambda: producer.last_sequence("t", 0))
            first = 0 if last is None else last + 1
            for number in range(first, first + self.rng.randint(1, 20)):
                value = f"{number} new"
                # The same sequence again, if a lock was not to be had: it is stored once.
                self.patiently(lambda: producer.send("t", value, partition=0, sequence=number).result(PATIENCE))  # noqa: B023
            wanted = [f"{at} old" for at in range(first)] + [f"{at} new" for at in range(first, number + 1)]
            assert self.values(bus) == wanted
            self.go_on()
            stored = [number for line in self.told if line[0] == "stored" for number in line[1]]
            assert all(number < first for number in stored), f"it was told that {stored} is stored; {first} is new"
            assert self.values(bus) == wanted
            self.end()
            assert self.values(bus) == wanted
            assert self.patiently(lambda: producer.last_sequence("t", 0)) == number

    def join(self, bus: Bus, **options: Any) -> Consumer:
        return bus.consumer("t", group="g", auto_commit=False, max_poll_interval_ms=INTERVAL_MS, **options)

    def until(self, consumer: Consumer, step: Callable[[], None]) -> None:
        """Until the consumer has every partition and has read it to its end."""
        for _ in range(int(LATE_S / LOOK_S) * 10):
            self.patiently(step)
            self.clock.advance(LOOK_S)
            if len(consumer.assignment()) == self.partitions and not any(consumer.lag().values()):
                return
        raise AssertionError("the one that was stopped was not put out")

    def committed(self, bus: Bus) -> dict[int, int]:
        found = self.patiently(lambda: bus.group("g").committed)
        return {tp.partition: offset for tp, offset in found.items()}

    def made(self, bus: Bus) -> list[str]:
        return [message.value.decode() for message in bus.topic("out").read()]

    def values(self, bus: Bus) -> list[str]:
        return [message.value.decode() for message in bus.topic("t").read(partition=0)]


class TakeoverOfAName(Takeover):
    wants_messages = False


def case(seed: int) -> int:
    """One process that is stopped past its time."""
    rng = random.Random(f"stops {seed}")
    what = rng.choice(("a member", "a static member", "a transaction", "a name"))
    with scratch(f"{seed}, {what}", memory=rng.random() < 0.5) as directory, children() as start:
        here = (TakeoverOfAName if what == "a name" else Takeover)(directory, start, rng)
        if what == "a name":
            here.of_a_named_producer()
        elif what == "a transaction":
            here.of_a_processor()
        else:
            here.of_a_member(static=what == "a static member")
    return 1


@pytest.mark.parametrize("seed", range(SEED, SEED + 50))
def test_who_was_stopped_past_its_time_does_nothing_late(seed: int) -> None:
    assert case(seed)


# -- inside a lock -----------------------------------------------------------------------------------------------------


class Holder(Stopping):
    """Does one thing, and stops itself in the middle of it."""

    def __call__(self, link: Link) -> None:
        with streamlite.open(self.directory, sync="never") as bus:
            consumer = bus.consumer("t", group="g", auto_commit=False)
            producer = bus.producer(name="n" if self.options["named"] else None)
            producer.send_many("t", ["h-0", "h-1"], partition=0).result(PATIENCE)
            assert consumer.poll(PATIENCE)
            does = {"send": self.send, "transact": self.transact, "commit": consumer.commit}[self.options["does"]]
            link.tell("begun")
            self.arm()
            does(*(() if self.options["does"] == "commit" else (producer, consumer)))
            link.tell("done")
            link.told()

    def send(self, producer: Producer, consumer: Consumer) -> None:
        producer.send_many("t", BATCH, partition=0).result(PATIENCE)

    def transact(self, producer: Producer, consumer: Consumer) -> None:
        with producer.transaction() as tx:
            for value in BATCH:
                tx.send("t", value, partition=0)
                tx.send("out", value, partition=0)
            tx.commit_offsets(consumer)

    def arm(self) -> None:
        """Stop in the n-th write to a log, or in the n-th publication."""
        from streamlite.counters import Slot
        from streamlite.files.local import LocalFile

        left = [self.options["at"]]
        how = self.options["how"]

        def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                counts = function.__name__ != "write" or args[0].path.endswith(".log")
                left[0] -= counts
                now = counts and left[0] == 0
                if now and how == "half" and function.__name__ == "write":
                    data = b"".join(args[1])
                    function(args[0], [data[: len(data) // 2]], args[2])
                if now and how != "after":
                    os.kill(os.getpid(), signal.SIGSTOP)
                result = function(*args)
                if now and how == "after":
                    os.kill(os.getpid(), signal.SIGSTOP)
                return result

            return run

        owner: Any = LocalFile if self.options["where"] == "write" else Slot
        name = self.options["where"]
        setattr(owner, name, stopping(getattr(owner, name)))


BATCH = [f"b-{number}" for number in range(5)]


def case_of_lock_holder(seed: int) -> int:
    """One process that is stopped inside a lock."""
    rng = random.Random(f"lock holders {seed}")
    does = rng.choice(("send", "send", "transact", "transact", "commit"))
    how, where = rng.choice(("before", "half", "after")), rng.choice(("write", "write", "publish"))
    at = rng.randint(1, 3) if does == "transact" else 1
    named = rng.random() < 0.3
    what = f"{seed}, {does} {'by name ' * named}stopped {how} {where} {at}"
    with scratch(what, memory=rng.random() < 0.5) as directory, children() as start:
        with streamlite.open(directory / "bus", lock_timeout=LOCK_S) as bus:
            bus.create_topic("t", partitions=2)
            bus.create_topic("out")
        act = Holder(directory / "bus", SharedClock(), 0, does=does, how=how, where=where, at=at, named=named)
        child = start(act, what)
        child.line("begun")
        child.wait_stopped()
        with streamlite.open(directory / "bus", lock_timeout=LOCK_S) as bus:
            must = _look_at_a_held_lock(bus, does)
            if rng.random() < 0.3:
                child.kill()
            else:
                must = True
                child.signal(signal.SIGCONT)
                child.line("done")
                child.say("end")
                assert child.wait() == 0
            if rng.random() < 0.7:
                _look_at_what_is_left(bus, does, must=must)
                return 1
        with streamlite.open(directory / "bus") as bus:
            _look_at_what_is_left(bus, does, must=must)
    return 1


def _values(bus: Bus, topic: str = "t") -> list[str]:
    return [message.value.decode() for message in bus.topic(topic).read(partition=0)]


def _look_at_a_held_lock(bus: Bus, does: str) -> bool:
    """Nobody gets it and nobody needs it to read; whether what the stopped one does is visible already."""
    with bus.producer() as other:
        for _ in range(2):
            other.send("t", "elsewhere", partition=1).result(PATIENCE)
            if does != "commit":
                with pytest.raises(errors.LockTimeoutError):
                    other.send("t", "late", partition=0).result(PATIENCE)
            if does != "send":
                with pytest.raises(errors.LockTimeoutError):
                    bus.consumer("t", group="g")
    found = _values(bus)
    assert found in (["h-0", "h-1"], ["h-0", "h-1", *BATCH])
    return len(found) > 2


def _look_at_what_is_left(bus: Bus, does: str, *, must: bool) -> None:
    """All of it, or, of one that was killed, nothing; and whoever comes next works as ever."""
    with bus.producer() as other, bus.consumer("t", group="g", auto_commit=False) as consumer:
        other.send("t", "next", partition=0).result(PATIENCE)
        found = _values(bus)
        done = len(found) > 3
        assert found == ["h-0", "h-1", *(BATCH if done else []), "next"]
        committed = bus.group("g").committed
        if does == "commit":
            assert committed in ([{TP: 2}] if must else [{TP: 2}, {}])
        else:
            assert done or not must
        if does == "transact":
            assert _values(bus, "out") == (BATCH if done else [])
            assert committed == ({TP: 2} if done else {})
        consumer.commit({TP: 3})
        assert bus.group("g").committed == {TP: 3}


@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
def test_who_is_stopped_with_a_lock_keeps_it(seed: int) -> None:
    assert case_of_lock_holder(seed)
