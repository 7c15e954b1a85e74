"""Offsets in the user's own database, with a group: whoever owns a partition when, each message is done once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from streamlite import Bus, Consumer, Message, TopicPartition, errors
from streamlite.dbapi import OffsetStore

from .helpers import PATIENCE, numbers, put

TP, TP1 = TopicPartition("t", 0), TopicPartition("t", 1)
INTERVAL_MS = 1000

Connect = Callable[[], sqlite3.Connection]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """Opens connections to one database, which has the tables."""
    with ExitStack() as stack:

        def connect_one() -> sqlite3.Connection:
            return stack.enter_context(closing(sqlite3.connect(tmp_path / "db", timeout=0)))

        connection = connect_one()
        OffsetStore(connection, group="g").create()
        connection.execute("CREATE TABLE done (value)")
        yield connect_one


class Member:
    """A member of the group `g` that does its messages in transactions of its own."""

    def __init__(self, bus: Bus, connect: Connect) -> None:
        self.store = OffsetStore(connect(), group="g")
        self.consumer: Consumer = bus.consumer(
            "t", group="g", auto_commit=False, max_poll_interval_ms=INTERVAL_MS, on_assign=self.store.restore
        )
        self.refused = 0

    def poll(self, most: int = 100) -> list[Message]:
        return self.consumer.poll(max_messages=most)

    def do(self, messages: list[Message]) -> bool:
        """Do these in one transaction; whether they are done."""
        connection = self.store.connection
        try:
            with connection, self.store.saving(self.consumer, messages):
                connection.executemany("INSERT INTO done VALUES (?)", [(message.value,) for message in messages])
        except errors.FencedError:
            self.refused += 1
            self.store.restore(self.consumer)
            return False
        return True


def go_on(*members: Member) -> None:
    """Until there is nothing more to do for any of them."""
    for _ in range(50):
        for member in members:
            member.do(member.poll(3))
        lag = {tp: count for member in members for tp, count in member.consumer.lag().items()}
        if lag == {TP: 0, TP1: 0}:
            return
    raise AssertionError("it does not come to an end")


def done(connect: Connect) -> list[bytes]:
    return sorted(value for (value,) in connect().execute("SELECT value FROM done"))


def filled(bus: Bus) -> list[bytes]:
    """Two partitions with ten messages each; their values."""
    bus.topic("t", partitions=2)
    put(bus, "t", *numbers(10, 1000), partition=0)
    put(bus, "t", *numbers(10, 2000), partition=1)
    return numbers(10, 1000) + numbers(10, 2000)


def replace(two: Member) -> None:
    """Wait until the other member, which asks for nothing meanwhile, was put out."""
    assert two.consumer.wait_assigned(PATIENCE) == {TP, TP1}


@pytest.mark.parametrize("saved", [0, 2])
@pytest.mark.parametrize("late", [True, False], ids=["after its successor", "before its successor"])
def test_one_that_hung_does_nothing_twice(bus: Bus, connect: Connect, saved: int, late: bool) -> None:
    values = filled(bus)
    one = Member(bus, connect)
    for _ in range(saved):
        assert one.do(one.poll(3))
    hanging = one.poll(4)
    two = Member(bus, connect)
    replace(two)
    if late:
        while messages := two.poll(4):
            assert two.do(messages)
        assert not one.do(hanging)
    else:
        assert one.do(hanging)
        go_on(two)
        assert two.refused == 1
    assert done(connect) == values
    put(bus, "t", *numbers(10, 3000))
    go_on(one, two)
    assert done(connect) == values + numbers(10, 3000)


@pytest.mark.parametrize("late", [True, False], ids=["after its successor", "before its successor"])
def test_a_transaction_over_a_rebalance_is_done_once(bus: Bus, connect: Connect, late: bool) -> None:
    values = filled(bus)
    one = Member(bus, connect)
    kept = [*one.poll(), *one.poll()]
    assert len(kept) == 20
    two = Member(bus, connect)
    one.poll()  # gives one of them up, with what it kept of it
    assert len(one.consumer.assignment()) == len(two.consumer.wait_assigned(PATIENCE)) == 1
    theirs = two.poll()
    assert len(theirs) == 10
    order = [(two, theirs), (one, kept)] if late else [(one, kept), (two, theirs)]
    assert [member.do(messages) for member, messages in order] == [True, False]
    go_on(one, two)
    assert done(connect) == values


@pytest.mark.parametrize("left", [False, True], ids=["both stay", "the other leaves"])
def test_commits_to_the_bus_beside_it_do_no_harm(bus: Bus, connect: Connect, left: bool) -> None:
    """For others to see the lag: a commit that is refused sends its consumer back to what the bus knows."""
    values = filled(bus)
    one = Member(bus, connect)
    assert one.do(one.poll(3))
    one.consumer.commit()
    assert one.do(one.poll(3))
    two = Member(bus, connect)
    replace(two)
    assert two.do(two.poll(5))
    if left:
        two.consumer.close()  # without a commit: the database is ahead of the bus
    with pytest.raises(errors.FencedError):
        one.consumer.commit()
    for _ in range(30):
        for member in (one,) if left else (one, two):
            if member.do(member.poll(3)):
                member.consumer.commit()
    assert done(connect) == values
    assert bus.group("g").lag == {TP: 0, TP1: 0}


def test_what_the_group_committed_is_where_it_begins_without_a_row(bus: Bus, connect: Connect) -> None:
    values = filled(bus)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.commit({TP: 4})
    one = Member(bus, connect)
    assert (one.consumer.position(TP), one.consumer.position(TP1)) == (4, 0)
    go_on(one)
    assert done(connect) == values[4:]


def test_a_partition_that_went_back_to_what_the_bus_knows_is_noticed(bus: Bus, connect: Connect) -> None:
    """A refused commit sends back what stays assigned, too, and of that `on_assign` is not told."""
    values = filled(bus)
    one = Member(bus, connect)
    while messages := one.poll(4):
        assert one.do(messages)
    two = Member(bus, connect)
    one.poll()
    two.consumer.wait_assigned(PATIENCE)
    (kept,) = one.consumer.assignment()
    with pytest.raises(errors.FencedError):
        one.consumer.commit({TP: 10, TP1: 10})
    again = one.poll()
    assert [message.offset for message in again] == list(range(10))
    assert not one.do(again)
    assert one.consumer.position(kept) == 10
    go_on(one, two)
    assert done(connect) == values
