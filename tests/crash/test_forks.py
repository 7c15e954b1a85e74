"""Fault 11 of the promises: forks at random points of a process that is at work.

A process has a bus open with everything: producers of both kinds, consumers with and without a group, threads that
send, a transaction under way. It forks again and again, at whatever point its threads are. A child uses what it has
inherited (each use is a `ForkedError`), closes it, opens the bus for itself and sends, forks once more, or just stays
and outlives everybody, with copies of all descriptors of its parent. The parent goes on as if nothing had been; then it
closes, or is killed. Who comes next gets every lock at once, finds no member that is dead, and all that was
acknowledged, once; and it can close cleanly, though the children that stayed are still there.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlite
from streamlite import TopicPartition, errors
from tests.crash.processes import PATIENCE, Forked, Link, children, scratch, spin

SEED = int(os.environ.get("STREAMLITE_SEED", "1"))
FORKS = 8
"""Of one process."""
TP = TopicPartition("t", 0)
ENDS_S = 60
"""A child that stays for longer is forgotten: the kernel ends it."""


class Host:
    """The process that forks."""

    def __init__(self, directory: Path, seed: int, stay: int) -> None:
        self.directory, self.rng = directory, random.Random(seed)
        self.stay = stay
        """What children that stay read from, until the test closes its other end."""
        self.sent = 0

    def __call__(self, link: Link) -> None:
        self.link = link
        self.bus = bus = streamlite.open(self.directory, sync=self.rng.choice(("never", "interval", "always")))
        self.topic = bus.topic("t")
        self.producer, self.named = bus.producer(), bus.producer(name="n")
        self.member, self.alone = bus.consumer("t", group="g"), bus.consumer("t")
        stop = threading.Event()
        threads = [threading.Thread(target=self.work, args=(number, stop), daemon=True) for number in range(2)]
        link.tell("begun")
        for thread in threads:
            thread.start()
        for number in range(FORKS):
            self.step(number)
            self.fork(number)
            self.member.poll(0)
        link.tell("forked")
        if link.told() == ["close"]:
            stop.set()
            for thread in threads:
                thread.join()
            self.use_it_all()
            bus.close()
        else:
            signal.pause()  # to be killed, at work

    def work(self, thread: int, stop: threading.Event) -> None:
        with self.bus.producer(linger_ms=1) as mine:
            number = 0
            while not stop.is_set():
                sent = [mine.send(self.topic, f"w{thread}.{number + at}", partition=0) for at in range(3)]
                for one in sent:
                    one.result(PATIENCE)
                self.link.tell("stored", [f"w{thread}.{number + at}" for at in range(3)])
                number += 3

    def step(self, number: int) -> None:
        """Something is under way when it forks."""
        for value in (f"p.{number}.0", f"p.{number}.1"):
            self.producer.send(self.topic, value, partition=1)
        self.named.send(self.topic, f"n.{number}", partition=1)
        spin(self.rng)

    def fork(self, number: int) -> None:
        what = self.rng.choice((self.use, self.use, self.close, self.begin_anew, self.outlive, self.fork_again))
        staged = self.rng.random() < 0.3
        if staged:
            with self.producer.transaction() as tx:
                tx.send(self.topic, f"tx.{number}", partition=1)
                child = self.child(what, tx)
        else:
            child = self.child(what, None)
        self.link.tell("fork", what.__name__)
        if what != self.outlive:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == 0, f"a child that was to {what.__name__} ended with {status}"

    def child(self, what: Callable[[Any], None], tx: Any) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        signal.alarm(ENDS_S)
        self.link = self.link.again()
        try:
            what(tx)
            status = 0
        except BaseException as error:  # noqa: BLE001 - told to the test, which fails by it
            self.link.tell("error", f"a child that was to {what.__name__}: {error!r}")
        finally:
            os._exit(status)

    # What a child does.

    def use(self, tx: Any) -> None:
        """Whatever it tries is a `ForkedError`, and nothing hangs."""
        uses: list[Callable[[], Any]] = [
            lambda: self.producer.send(self.topic, b"child"),
            lambda: self.producer.send_many(self.topic, [b"child"]),
            lambda: self.named.send(self.topic, b"child", partition=0),
            lambda: self.named.last_sequence(self.topic, 0),
            lambda: self.producer.transaction().__enter__(),
            self.producer.flush, self.member.poll, self.member.commit, self.alone.poll,
            lambda: next(iter(self.member)), lambda: self.member.position(TP), lambda: self.member.committed(TP),
            lambda: list(self.topic.read()), self.topic.end_offsets, lambda: self.topic.truncate_before(0, 1),
            lambda: self.bus.topic("t"), lambda: self.bus.create_topic("u"), lambda: self.bus.delete_topic("t"),
            lambda: self.bus.group("g"), self.bus.sync, self.bus.maintain, self.bus.producer,
            lambda: self.bus.consumer("t", group="g"),
        ]  # fmt: skip
        if tx is not None:
            uses.append(lambda: tx.send(self.topic, b"child"))
        # Within the parent's transaction its producer's own send says that first.
        wanted = errors.ForkedError if tx is None else (errors.ForkedError, errors.TransactionError)
        for use in self.rng.sample(uses, 8):
            with pytest.raises(wanted):
                use()

    def close(self, tx: Any) -> None:
        closes = [self.producer.close, self.named.close, self.member.close, self.alone.close, self.bus.close]
        self.rng.shuffle(closes)
        for close in closes:
            close()

    def begin_anew(self, tx: Any) -> None:
        """The bus, opened by the child for itself."""
        value = f"c.{os.getpid()}"
        with streamlite.open(self.directory) as bus, bus.producer() as producer:
            producer.send("t", value, partition=1).result(PATIENCE)
        self.link.tell("stored", [value])

    def outlive(self, tx: Any) -> None:
        os.read(self.stay, 1)

    def fork_again(self, tx: Any) -> None:
        child = self.child(self.use, tx)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        self.close(tx)

    def use_it_all(self) -> None:
        """The parent is unharmed."""
        self.producer.flush(PATIENCE)
        self.named.flush(PATIENCE)
        self.producer.send(self.topic, "last", partition=1).result(PATIENCE)
        with self.producer.transaction() as tx:
            tx.send(self.topic, "last of all", partition=1)
        assert self.named.last_sequence(self.topic, 1) == FORKS - 1
        while any(self.member.lag().values()):
            assert self.member.poll(PATIENCE)
        self.member.commit()
        assert [one.pid for one in self.bus.group("g").members] == [os.getpid()]
        self.link.tell("stored", [*(f"p.{n}.{at}" for n in range(FORKS) for at in (0, 1)), "last", "last of all"])
        self.link.tell("stored", [f"n.{number}" for number in range(FORKS)])


def case(seed: int) -> int:
    """One process and its forks; how many there were."""
    rng = random.Random(f"forks {seed}")
    ours, theirs = os.pipe()
    forks: list[str] = []
    stored: list[str] = []
    try:
        with scratch(seed, memory=rng.random() < 0.5) as directory, children() as start:
            with streamlite.open(directory / "bus") as bus:
                bus.create_topic("t", partitions=2)
            host = Host(directory / "bus", rng.getrandbits(32), ours)
            child = start(lambda link: (os.close(theirs), host(link)), "the host")
            killed = rng.random() < 0.5
            _follow(child, forks, stored, killed=killed)
            with streamlite.open(directory / "bus", lock_timeout=1.0) as bus:
                _look(bus, stored)
            assert (directory / "bus" / "clean").exists(), "somebody still has the bus"
    finally:
        os.close(theirs)  # who stayed ends
        os.close(ours)
    return len(forks)


def _follow(child: Forked, forks: list[str], stored: list[str], *, killed: bool) -> None:
    child.line("begun")
    while (line := child.next()) != ["forked"]:
        (forks if line[0] == "fork" else stored).extend([line[1]] if line[0] == "fork" else line[1])
    if killed:
        child.kill()
    else:
        child.say("close")
        assert child.wait() == 0, child.lines()
    for _, values in child.lines():
        stored += values


def _look(bus: streamlite.Bus, stored: list[str]) -> None:
    with bus.producer(name="n") as named, bus.producer() as producer:
        consumer = bus.consumer("t", group="g", auto_commit=False)
        # A child has the locks of its parent, which was killed, until it runs for the first time and lets go of them.
        deadline = time.monotonic() + PATIENCE
        while len(consumer.assignment()) < 2:
            assert time.monotonic() < deadline, "a member that is gone has its partitions still"
            consumer.poll(0.05)
        for number in (0, 1):
            producer.send("t", "next", partition=number).result(PATIENCE)
        last = named.last_sequence("t", 1)
        found = [message.value.decode() for message in bus.topic("t").read()]
        assert found.count("next") == 2
        rest = [value for value in found if value != "next"]
        assert len(rest) == len(set(rest)), "something is there twice"
        assert set(stored) <= set(rest), f"missing: {sorted(set(stored) - set(rest))}"
        assert "child" not in found
        assert [value for value in rest if value[0] == "n"] == [
            f"n.{at}" for at in range(0 if last is None else last + 1)
        ]
        for sender in ("w0", "w1"):
            numbers = [int(value[3:]) for value in rest if value.startswith(sender)]
            assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("seed", range(SEED, SEED + 7))
def test_forks_at_any_point_harm_nobody(seed: int) -> None:
    assert case(seed) == FORKS
