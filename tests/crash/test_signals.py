"""Fault 10 of the promises, by real signals: an alarm goes off at a random moment of a call, and its handler raises.

`test_interrupts` knows the moments at which CPython runs handlers and takes them one by one; here they are what they
are, in blocking calls too, and beside threads. A process does a hundred things, each under an alarm. Then everything
that it was told is stored is there, in order; of what it was not told, once or not at all; transactions are whole; the
consumer has had every message; and the same handles go on.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import streamlite
from streamlite import Delivery, Message, errors
from tests.crash.processes import PATIENCE, Link, children, scratch
from tests.integration.test_processes import Alarm

SEED = int(os.environ.get("STREAMLITE_SEED", "1"))
ROUNDS = 100
PARTITIONS = 2


class Interrupted:
    """The process: what it does, and what it knows."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.seed = directory, seed
        self.rng = random.Random(seed)
        self.tried: dict[str, int] = {}
        """Values in the order of sending, and to which partition."""
        self.deliveries: dict[str, Delivery] = {}
        self.stored: dict[str, tuple[int, int]] = {}
        self.transactions: list[list[str]] = []
        self.got: set[str] = set()

    def __call__(self, link: Link) -> None:
        self.alarm = Alarm(self.seed)
        self.bus = streamlite.open(self.directory, sync=self.rng.choice(("never", "interval", "always")))
        self.topic = self.bus.topic("t")
        self.producer = self.bus.producer(linger_ms=self.rng.choice((0, 1)))
        self.consumer = self.bus.consumer("t", group="g", auto_commit_interval_ms=1)
        ways = (self.send, self.send, self.one, self.many, self.transact, self.poll, self.loop, self.commit,
                self.producer.flush, self.bus.maintain, self.bus.sync)  # fmt: skip
        for self.number in range(ROUNDS):
            self.alarm(self.rng.choice(ways), 5e-6 * 600 ** self.rng.random())
            # What a poll returned to a call that was interrupted is in nobody's hands: it is handed out again.
            self.consumer.messages(timeout=0.0)
        self.go_on()
        link.tell("interrupted", self.alarm.count)
        link.tell("stored", [[value, *where] for value, where in self.stored.items()])
        link.tell("tried", list(self.tried), self.transactions)

    def value(self, at: int, partition: int) -> str:
        value = f"{self.number}.{at}"
        self.tried[value] = partition
        return value

    def send(self) -> None:
        for at in range(5):
            partition = at % PARTITIONS
            value = self.value(at, partition)
            self.deliveries[value] = self.producer.send(self.topic, value, partition=partition)

    def one(self) -> None:
        value = self.value(0, 0)
        found = self.producer.send(self.topic, value, partition=0).result(PATIENCE)
        self.stored[value] = found.partition, found.offset

    def many(self) -> None:
        values = [self.value(at, 1) for at in range(20)]
        sent = self.producer.send_many(self.topic, values, partition=1).result(PATIENCE)
        for value, found in zip(values, sent, strict=True):
            self.stored[value] = found.partition, found.offset

    def transact(self) -> None:
        self.producer.flush(PATIENCE)
        values: list[str] = []
        self.transactions.append(values)
        places = [at % PARTITIONS for at in range(4)]
        values += [self.value(at, partition) for at, partition in enumerate(places)]
        tx = self.producer.transaction()
        try:
            with tx:
                for value, partition in zip(values, places, strict=True):
                    tx.send(self.topic, value, partition=partition)
        except KeyboardInterrupt:
            # It may have come in the moment before the block's end was seen to: then the block is still open.
            with suppress(errors.TransactionError):
                tx.abort()
            raise

    def poll(self) -> None:
        self.take(self.consumer.poll(0.001, max_messages=5))

    def loop(self) -> None:
        for message in self.consumer.messages(timeout=0.0):
            self.take([message])

    def commit(self) -> None:
        self.consumer.commit()

    def take(self, messages: list[Message]) -> None:
        self.got.update(message.value.decode() for message in messages)

    def go_on(self) -> None:
        """Nothing was harmed: the same handles work, and everything comes to its end."""
        self.number = ROUNDS
        self.one()
        self.producer.flush(PATIENCE)
        for value, delivery in self.deliveries.items():
            found = delivery.result(PATIENCE)
            self.stored[value] = found.partition, found.offset
        there = {message.value.decode() for message in self.topic.read()}
        while any(self.consumer.lag().values()):  # what a call was about to hand out may come again
            found = self.consumer.poll(PATIENCE)
            assert found, f"a partition stopped: {self.consumer.lag()}"
            self.take(found)
        assert there <= self.got, f"never handed out: {sorted(there - self.got)}"
        self.consumer.commit()
        committed, ends = (
            self.bus.group("g").committed,
            {tp: end for tp, end in self.topic.end_offsets().items() if end},
        )
        assert committed == ends, f"{committed} is committed, and the ends are {ends}"
        self.bus.close()


def case(seed: int) -> int:
    """One process under its alarms; how often they raised."""
    rng = random.Random(f"signals {seed}")
    with scratch(seed, memory=True) as directory, children() as start:
        with streamlite.open(directory / "bus") as bus:
            bus.create_topic("t", partitions=PARTITIONS, segment_bytes=rng.choice((1_000, 1 << 27)))
        child = start(Interrupted(directory / "bus", rng.getrandbits(32)))
        (count,) = child.line("interrupted")
        (stored,) = child.line("stored")
        tried, transactions = child.line("tried")
        assert child.wait() == 0
        with streamlite.open(directory / "bus", lock_timeout=1.0) as bus:
            _check(bus, stored, tried, transactions)
    return int(count)


def _check(bus: streamlite.Bus, stored: list[Any], tried: list[str], transactions: list[list[str]]) -> None:
    order = {value: at for at, value in enumerate(tried)}
    found: dict[int, list[str]] = defaultdict(list)
    for message in bus.topic("t").read():
        assert message.offset == len(found[message.partition])
        found[message.partition].append(message.value.decode())
    for value, partition, offset in stored:
        assert found[partition][offset] == value, f"{value} was stored at {partition}/{offset}"
    there = {value for values in found.values() for value in values}
    assert sum(map(len, found.values())) == len(there), "something is there twice"
    assert there <= order.keys()
    for values in found.values():
        places = [order[value] for value in values]
        assert places == sorted(places), f"out of order: {values}"
    for values in transactions:
        assert len({value in there for value in values}) < 2, f"a part of a transaction is there: {values}"
    assert sum(bus.topic("t").end_offsets().values()) == len(there)
    assert not any(bus.group("g").lag.values())


@pytest.mark.parametrize("seed", range(SEED, SEED + 14))
def test_whatever_a_signal_interrupts_goes_on(seed: int) -> None:
    assert case(seed) > ROUNDS // 5
