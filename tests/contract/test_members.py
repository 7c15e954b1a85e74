"""API.md, "Consumer": several members of one group: who gets what, who is told, and whose commit is refused.

Most tests have all members in one thread and call them in turn, so that every step is known: a member takes part in a
rebalance when it asks for messages. Members in threads of their own come at the end.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from streamlite import Bus, Consumer, Topic, TopicPartition, errors
from streamlite.testing.clock import VirtualClock

from .helpers import PATIENCE, T0, beside, committed, numbers, offsets, put, take, tps, values, wait_until

OpenBus = Callable[..., Bus]

TP = TopicPartition("t", 0)
TP1 = TopicPartition("t", 1)

ASSIGNORS = ["sticky", "range", "roundrobin"]
INTERVAL_MS = 10_000
"""`max_poll_interval_ms` of members that are to hang."""


class Told:
    """What a member's callbacks were told, in order: `("assign" | "revoke" | "lost", partitions)`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[TopicPartition]]] = []

    def options(self) -> dict[str, Any]:
        """The callbacks, as options of `consumer()`."""
        return {f"on_{what}": self._noting(what) for what in ("assign", "revoke", "lost")}

    def _noting(self, what: str) -> Callable[[Consumer, list[TopicPartition]], None]:
        def note(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            self.calls.append((what, list(partitions)))

        return note

    def of(self, what: str) -> set[TopicPartition]:
        """All partitions of one kind of call."""
        return {tp for kind, partitions in self.calls if kind == what for tp in partitions}


def filled(bus: Bus, count: int = 10, partitions: int = 2) -> Topic:
    """A topic `t` with numbers in each partition."""
    topic = bus.topic("t", partitions=partitions)
    for partition in range(partitions):
        put(bus, topic, *numbers(count, partition * 1000), partition=partition)
    return topic


def settle(*members: Consumer) -> None:
    """Let each ask for messages until nothing moves any more; for topics that are empty, or members that are paused."""
    for _ in range(4):
        for member in members:
            assert member.poll() == []


def split(*members: Consumer) -> list[set[TopicPartition]]:
    """What each has; no two have the same."""
    found = [member.assignment() for member in members]
    assert sum(map(len, found)) == len(set().union(*found))
    return found


def die(member: Consumer) -> None:
    """What is left of a member whose process was killed: its lock is free, and nobody asks for messages.

    The only thing here that looks inside; a real death takes a process, see tests/integration/test_processes.py.
    """
    membership = member._assignment.membership
    assert membership is not None
    assert membership._lock is not None
    membership._lock.release()
    del membership._files._own[membership.id]  # it would be another process's


def hang(clock: VirtualClock, *others: Consumer) -> None:
    """Let time pass in which only the `others` ask for messages, until a member that hangs has been put out."""
    for _ in range(12):
        clock.advance(INTERVAL_MS / 10_000)
        for other in others:
            other.poll(max_messages=1)


# --- who gets what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assignor", ASSIGNORS)
def test_two_members_share_the_partitions(bus: Bus, assignor: str) -> None:
    bus.topic("t", partitions=4)
    with (
        bus.consumer("t", group="g", assignor=assignor) as one,
        bus.consumer("t", group="g", assignor=assignor) as two,
    ):
        assert one.assignment() == tps("t", 4)
        assert two.assignment() == set()  # nobody loses what he may be working on
        settle(one, two)
        assert sorted(map(len, split(one, two))) == [2, 2]
        assert set().union(*split(one, two)) == tps("t", 4)
    assert bus.groups() == []


@pytest.mark.parametrize("assignor", ASSIGNORS)
def test_whoever_leaves_leaves_everything_to_the_others(bus: Bus, assignor: str) -> None:
    bus.topic("t", partitions=4)
    one = bus.consumer("t", group="g", assignor=assignor)
    two = bus.consumer("t", group="g", assignor=assignor)
    settle(one, two)
    one.close()
    settle(two)
    assert two.assignment() == tps("t", 4)


def test_range_gives_neighbours_topic_by_topic(bus: Bus) -> None:
    bus.topic("t", partitions=3)
    bus.topic("u", partitions=3)
    members = [bus.consumer("t", "u", group="g", assignor="range") for _ in range(2)]
    settle(*members)
    # Kafka's RangeAssignor documentation: C0 has t0p0, t0p1, t1p0, t1p1, and C1 has t0p2, t1p2.
    assert sorted(map(sorted, split(*members)), key=len, reverse=True) == [
        [TP, TP1, TopicPartition("u", 0), TopicPartition("u", 1)],
        [TopicPartition("t", 2), TopicPartition("u", 2)],
    ]


def test_roundrobin_deals_out_all_topics_as_one_row(bus: Bus) -> None:
    bus.topic("t", partitions=3)
    bus.topic("u", partitions=3)
    members = [bus.consumer("t", "u", group="g", assignor="roundrobin") for _ in range(2)]
    settle(*members)
    # Kafka's RoundRobinAssignor documentation: C0 has t0p0, t0p2, t1p1, and C1 has t0p1, t1p0, t1p2.
    assert sorted(map(sorted, split(*members))) == [
        [TP, TopicPartition("t", 2), TopicPartition("u", 1)],
        [TP1, TopicPartition("u", 0), TopicPartition("u", 2)],
    ]


def test_sticky_moves_no_more_than_it_must(bus: Bus) -> None:
    bus.topic("t", partitions=6)
    members = [bus.consumer("t", group="g") for _ in range(2)]
    settle(*members)
    before = split(*members)
    third = bus.consumer("t", group="g")
    settle(*members, third)
    after = split(*members, third)
    assert list(map(len, after)) == [2, 2, 2]
    assert after[0] < before[0]
    assert after[1] < before[1]


def test_a_member_more_than_there_are_partitions_waits(bus: Bus) -> None:
    bus.topic("t", partitions=2)
    members = [bus.consumer("t", group="g") for _ in range(3)]
    settle(*members)
    assert sorted(map(len, split(*members))) == [0, 1, 1]
    idle = next(member for member in members if not member.assignment())
    with pytest.raises(errors.TimeoutError):
        idle.wait_assigned(timeout=0)
    busy = next(member for member in members if member.assignment())
    busy.close()
    assert len(idle.wait_assigned(timeout=PATIENCE)) == 1


def test_members_with_different_topics(bus: Bus) -> None:
    for name in "tuv":
        bus.topic(name, partitions=2)
    one = bus.consumer("t", "u", group="g")
    two = bus.consumer("u", "v", group="g")
    settle(one, two)
    found = split(one, two)
    assert set().union(*found) == tps("t", 2) | tps("u", 2) | tps("v", 2)
    assert tps("t", 2) <= found[0]
    assert tps("v", 2) <= found[1]


def test_members_must_agree_on_the_assignor(bus: Bus) -> None:
    bus.topic("t")
    with bus.consumer("t", group="g", assignor="range"):
        with pytest.raises(errors.ConfigError, match=r"sticky.*range|range.*sticky"):
            bus.consumer("t", group="g", assignor="sticky")
        assert len(bus.group("g").members) == 1
    with bus.consumer("t", group="g", assignor="sticky") as consumer:
        assert consumer.assignment() == {TP}


def test_new_partitions_are_shared_too(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    members = [bus.consumer("t", group="g") for _ in range(2)]
    settle(*members)
    topic.increase_partitions(6)
    settle(*members)
    assert list(map(len, split(*members))) == [3, 3]
    put(bus, topic, b"new", partition=5)
    assert values(members[0].poll(1.0) + members[1].poll(1.0)) == [b"new"]


def test_a_group_is_described_with_all_its_members(bus: Bus) -> None:
    bus.topic("t", partitions=4)
    members = [bus.consumer("t", group="g") for _ in range(2)]
    settle(*members)
    described = {frozenset(member.partitions) for member in bus.group("g").members}
    assert described == set(map(frozenset, split(*members)))


# --- callbacks, and what goes on meanwhile ------------------------------------------------------------------------


def test_only_what_moves_is_revoked(bus: Bus) -> None:
    filled(bus, partitions=4)
    told = Told()
    one = bus.consumer("t", group="g", **told.options())
    assert told.calls == [("assign", sorted(tps("t", 4)))]
    two = bus.consumer("t", group="g")
    # Until `one` asks for messages it has everything, and commits all of it.
    one.commit(dict.fromkeys(tps("t", 4), 1))
    one.poll(max_messages=1)
    assert [what for what, _ in told.calls] == ["assign", "revoke"]
    assert len(told.of("revoke")) == 2
    assert one.assignment() == tps("t", 4) - told.of("revoke")
    two.poll(max_messages=1)
    assert two.assignment() == told.of("revoke")
    one.poll(max_messages=1)
    assert [what for what, _ in told.calls] == ["assign", "revoke"]


def test_what_stays_is_read_on_without_a_pause(bus: Bus) -> None:
    filled(bus, count=4, partitions=2)
    one = bus.consumer("t", group="g")
    first = take(one, 4)
    two = bus.consumer("t", group="g")
    rest = one.poll()
    assert len(one.assignment()) == 1
    (kept,) = one.assignment()
    while batch := one.poll():
        rest += batch
    found = [message for message in first + rest if message.partition == kept.partition]
    assert offsets(found) == [0, 1, 2, 3]  # nothing twice, nothing left out
    (moved,) = take(two, 1)
    assert moved.partition != kept.partition


def test_processed_messages_are_committed_before_a_partition_goes(bus: Bus) -> None:
    filled(bus)
    one = bus.consumer("t", group="g", auto_commit_interval_ms=3_600_000)
    assert len(take(one, 20)) == 20
    two = bus.consumer("t", group="g")
    assert one.poll() == []  # processed what it had, and gives one partition up
    put(bus, "t", b"next", partition=0)
    put(bus, "t", b"next", partition=1)
    (found,) = take(two, 1)
    assert found.value == b"next"


def test_a_member_may_commit_what_it_is_about_to_give_up(bus: Bus) -> None:
    filled(bus)
    seen: list[Any] = []

    def on_revoke(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.commit(dict.fromkeys(partitions, 7))
        seen.extend(partitions)

    one = bus.consumer("t", group="g", auto_commit=False, on_revoke=on_revoke)
    two = bus.consumer("t", group="g", auto_commit=False)
    one.poll(max_messages=1)
    assert len(seen) == 1
    assert two.wait_assigned(timeout=PATIENCE) == set(seen)
    assert two.position(seen[0]) == 7


@pytest.mark.parametrize("end", ["close", "unsubscribe"])
def test_a_member_may_commit_when_it_goes(bus: Bus, end: str) -> None:
    filled(bus)
    told = Told()

    def on_revoke(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        told.calls.append(("revoke", list(partitions)))
        consumer.commit(dict.fromkeys(partitions, 7))

    one = bus.consumer("t", group="g", auto_commit=False, on_revoke=on_revoke)
    getattr(one, end)()
    assert told.calls == [("revoke", [TP, TP1])]
    assert bus.group("g").committed == {TP: 7, TP1: 7}


def test_leaving_revokes(bus: Bus) -> None:
    bus.topic("t", partitions=2)
    told = Told()
    one = bus.consumer("t", group="g", **told.options())
    one.close()
    assert told.calls == [("assign", [TP, TP1]), ("revoke", [TP, TP1])]


@pytest.mark.parametrize("assignor", ASSIGNORS)
def test_a_callback_that_fails_stops_no_partition(bus: Bus, assignor: str) -> None:
    """Its error comes from the call that asked for messages; after it the member goes on with what it owns."""
    for name in "tuv":
        bus.topic(name, partitions=3)
        for partition in range(3):
            put(bus, name, b"x", partition=partition)
    fail = []

    def failing(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if fail:
            fail.clear()
            raise ZeroDivisionError

    options: dict[str, Any] = {"group": "g", "assignor": assignor}
    members = [
        bus.consumer("t", "u", "v", **options, on_assign=failing, on_revoke=failing, on_lost=failing) for _ in range(2)
    ]
    found: list[Any] = []

    def turns(asked: list[Consumer]) -> None:
        for _ in range(8):
            for member in asked:
                try:
                    found.extend(member.poll())
                except ZeroDivisionError:
                    continue

    turns(members)
    for _ in range(4):
        fail.append(True)
        members.append(bus.consumer("t", "u", "v", **options))
        turns(members)
        fail.append(True)
        members.pop().close()
        turns(members)
    fail.clear()
    turns(members)
    everything = tps("t", 3) | tps("u", 3) | tps("v", 3)
    assert set().union(*split(*members)) == everything
    assert {TopicPartition(message.topic, message.partition) for message in found} == everything


def test_losing_partitions_with_a_callback_that_fails_stops_none(bus: Bus, clock: VirtualClock) -> None:
    filled(bus)
    fail = [True]

    def on_lost(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if fail.pop():
            raise ZeroDivisionError

    one = bus.consumer("t", group="g", max_poll_interval_ms=INTERVAL_MS, on_lost=on_lost)
    two = bus.consumer("t", group="g")
    hang(clock, two)
    assert two.assignment() == {TP, TP1}
    two.close()
    with pytest.raises(ZeroDivisionError):
        one.poll()
    assert {message.partition for message in take(one, 20)} <= {0, 1}
    assert one.assignment() == {TP, TP1}


def test_a_consumer_that_could_not_be_opened_is_no_member(bus: Bus) -> None:
    filled(bus)

    def fail(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bus.consumer("t", group="g", on_assign=fail)
    with bus.consumer("t", group="g") as consumer:
        assert consumer.assignment() == {TP, TP1}
        assert len(bus.group("g").members) == 1


def test_wait_assigned(bus: Bus) -> None:
    bus.topic("t", partitions=2)
    one = bus.consumer("t", group="g")
    assert one.wait_assigned() == {TP, TP1}
    two = bus.consumer("t", group="g")
    with pytest.raises(errors.TimeoutError, match="g"):
        two.wait_assigned(timeout=0.5)
    with pytest.raises(TimeoutError):  # the builtin
        two.wait_assigned(timeout=0.5)
    one.poll()
    assert len(two.wait_assigned(timeout=0.5)) == 1


def test_the_first_poll_of_a_new_group_has_messages(bus: Bus) -> None:
    filled(bus, count=1, partitions=1)
    with bus.consumer("t", group="g") as consumer:
        assert values(consumer.poll()) == [b"0"]


def test_a_pattern_picks_up_new_topics(bus: Bus) -> None:
    bus.topic("t", partitions=2)
    told = Told()
    one = bus.consumer(re.compile("t.*"), group="g", **told.options())
    two = bus.consumer(re.compile("t.*"), group="g")
    settle(one, two)
    bus.topic("other", partitions=2)
    topic = bus.topic("tea", partitions=2)
    settle(one, two)
    assert set().union(*split(one, two)) == tps("t", 2) | tps("tea", 2)
    assert list(map(len, split(one, two))) == [2, 2]
    assert told.of("assign") & tps("tea", 2)
    assert told.of("lost") == set()
    put(bus, topic, b"a", partition=0)
    put(bus, topic, b"b", partition=1)
    assert sorted(values(one.poll(1.0) + two.poll(1.0))) == [b"a", b"b"]


def test_a_pattern_lets_go_of_a_topic_that_was_deleted(bus: Bus) -> None:
    bus.topic("t")
    bus.topic("tea")
    one = bus.consumer(re.compile("t.*"), group="g")
    assert one.assignment() == {TP, TopicPartition("tea", 0)}
    bus.delete_topic("tea")
    put(bus, "t", b"x")
    assert values(take(one, 1)) == [b"x"]
    assert one.assignment() == {TP}


def test_a_topic_created_anew_begins_anew(bus: Bus) -> None:
    filled(bus, partitions=1)
    told = Told()
    one = bus.consumer(re.compile("t"), group="g", **told.options())
    assert len(take(one, 10)) == 10
    one.commit()
    bus.delete_topic("t")
    put(bus, bus.topic("t"), b"new")
    (found,) = take(one, 1)
    assert (found.value, found.offset) == (b"new", 0)
    one.commit()
    assert bus.group("g").committed == {TP: 1}


def test_subscribing_anew_keeps_what_stays(bus: Bus) -> None:
    filled(bus, partitions=1)
    bus.topic("u")
    one = bus.consumer("t", group="g", auto_commit=False)
    assert offsets(take(one, 4)) == [0, 1, 2, 3] or one.position(TP) == 10
    before = one.position(TP)
    one.subscribe("t", "u")
    assert one.assignment() == {TP, TopicPartition("u", 0)}
    assert one.position(TP) == before


def test_start_latest_loses_nothing_between_two_members(bus: Bus) -> None:
    topic = filled(bus, count=3)
    one = bus.consumer("t", group="g", start="latest", auto_commit=False)
    two = bus.consumer("t", group="g", start="latest", auto_commit=False)
    put(bus, topic, b"between", partition=0)
    put(bus, topic, b"between", partition=1)
    found = one.poll() + two.poll() + one.poll() + two.poll()
    assert {message.partition for message in found} == {0, 1}
    assert set(values(found)) == {b"between"}
    assert set(offsets(found)) == {3}


def test_start_at_a_time_is_settled_once(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    for partition in (0, 1):
        with bus.producer() as producer:
            producer.send_many(topic, numbers(5), partition=partition, timestamps=[T0 + 1000 * n for n in range(5)])
    moment = datetime.fromtimestamp(T0 / 1000 + 3, UTC)
    one = bus.consumer("t", group="g", start=moment)
    two = bus.consumer("t", group="g", start="earliest")
    settled = bus.group("g").committed
    assert settled == {TP: 3, TP1: 3}
    found = one.poll() + two.poll() + one.poll() + two.poll()
    assert set(offsets(found)) == {3, 4}


# --- commits and their fence --------------------------------------------------------------------------------------


def test_a_commit_is_not_refused_because_somebody_joined(bus: Bus) -> None:
    filled(bus)
    one = bus.consumer("t", group="g", auto_commit=False)
    assert take(one, 1)
    generation = bus.group("g").generation
    two = bus.consumer("t", group="g", auto_commit=False)
    assert bus.group("g").generation > generation
    one.commit({TP: 5, TP1: 6})
    assert bus.group("g").committed == {TP: 5, TP1: 6}
    one.poll()
    (kept,) = one.assignment()
    two.close()
    one.commit({kept: 8})
    assert bus.group("g").committed[kept] == 8


def test_a_commit_of_what_was_given_up_is_refused(bus: Bus) -> None:
    filled(bus)
    one = bus.consumer("t", group="g", auto_commit=False)
    two = bus.consumer("t", group="g", auto_commit=False)
    one.poll(max_messages=1)
    (moved,) = two.wait_assigned()
    with pytest.raises(errors.FencedError, match=r"'t'"):
        one.commit({moved: 5})
    two.commit({moved: 4})
    assert bus.group("g").committed == {moved: 4}


def test_a_commit_with_one_lost_partition_is_refused_whole(bus: Bus) -> None:
    filled(bus)
    one = bus.consumer("t", group="g", auto_commit=False)
    two = bus.consumer("t", group="g", auto_commit=False)
    one.poll(max_messages=1)
    two.wait_assigned()
    (kept,) = one.assignment()
    with pytest.raises(errors.FencedError):
        one.commit({TP: 5, TP1: 5})
    assert bus.group("g").committed == {}
    again = take(one, 10)  # joins again: what is kept goes on from its committed offset, which is none
    assert {message.partition for message in again} == {kept.partition}
    assert offsets(again)[0] == 0
    one.commit({kept: 5})
    assert bus.group("g").committed == {kept: 5}


@pytest.mark.parametrize("way", ["all", "message", "offsets"])
def test_the_commit_of_a_member_that_hung_is_refused(bus: Bus, clock: VirtualClock, way: str) -> None:
    filled(bus)
    told = Told()
    one = bus.consumer("t", group="g", auto_commit=False, max_poll_interval_ms=INTERVAL_MS, **told.options())
    two = bus.consumer("t", group="g", auto_commit=False)
    first = one.poll(max_messages=1)
    (mine,) = one.assignment()
    found = [message for message in first + one.poll() if message.partition == mine.partition]
    two.pause(*two.wait_assigned())
    hang(clock, two)
    assert two.assignment() == {TP, TP1}
    before = bus.group("g").committed
    with pytest.raises(errors.FencedError):
        one.commit({"all": None, "message": found[-1], "offsets": {mine: 3}}[way])
    assert bus.group("g").committed == before
    assert told.of("lost") == set()
    one.poll()  # joins again
    assert told.of("lost") == {mine}
    assert len(bus.group("g").members) == 2
    two.poll()
    assert len(one.wait_assigned(timeout=PATIENCE)) == 1
    assert one.position(next(iter(one.assignment()))) == 0


def test_after_a_refused_commit_on_assign_may_still_seek(bus: Bus, clock: VirtualClock) -> None:
    """Offsets kept elsewhere count, whatever the group committed."""
    filled(bus)

    def seek(consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for tp in partitions:
            consumer.seek(tp, 7)

    one = bus.consumer("t", group="g", auto_commit=False, max_poll_interval_ms=INTERVAL_MS, on_assign=seek)
    assert len(take(one, 6)) == 6
    two = bus.consumer("t", group="g", auto_commit=False)
    assert len(two.wait_assigned(timeout=2 * INTERVAL_MS / 1000)) == 2
    with pytest.raises(errors.FencedError):
        one.commit()
    two.close()
    assert sorted(offsets(take(one, 6))) == [7, 7, 8, 8, 9, 9]


def test_the_automatic_commit_of_a_member_that_hung_is_dropped(bus: Bus, clock: VirtualClock) -> None:
    topic = filled(bus)
    told = Told()
    one = bus.consumer("t", group="g", max_poll_interval_ms=INTERVAL_MS, **told.options())
    assert len(take(one, 20)) == 20
    two = bus.consumer("t", group="g", auto_commit=False)
    hang(clock, two)
    assert two.assignment() == {TP, TP1}
    assert bus.group("g").committed == {}
    one.poll()  # asks for more, so it processed all; none of it is its own any more
    assert bus.group("g").committed == {}
    assert told.of("lost") == {TP, TP1}
    assert told.of("revoke") == set()
    put(bus, topic, b"x", partition=0)
    two.commit({TP: 2})
    assert bus.group("g").committed == {TP: 2}


def test_a_loop_that_hung_goes_on_with_what_it_gets(bus: Bus, clock: VirtualClock) -> None:
    filled(bus, partitions=1)
    told = Told()
    one = bus.consumer("t", group="g", max_poll_interval_ms=INTERVAL_MS, **told.options())
    two = bus.consumer("t", group="g", auto_commit=False)
    for message in one:
        if message.offset == 5:
            hang(clock, two)
            two.commit({TP: 2})
            two.close()
            break
    assert offsets(one.messages(timeout=1)) == list(range(2, 10))
    assert told.of("lost") == {TP}
    one.close()
    assert bus.group("g").committed == {TP: 10}


def test_a_slow_member_that_keeps_asking_keeps_its_partitions(bus: Bus, clock: VirtualClock) -> None:
    filled(bus)
    told = Told()
    one = bus.consumer("t", group="g", max_poll_interval_ms=INTERVAL_MS, **told.options())
    two = bus.consumer("t", group="g")
    one.poll(max_messages=1)
    mine = one.assignment()
    for _ in range(20):
        clock.advance(INTERVAL_MS / 1000 * 0.9)
        one.poll(max_messages=1)
        two.poll(max_messages=1)
    assert one.assignment() == mine
    assert told.of("lost") == set()


def test_a_refused_commit_is_not_made_by_closing(bus: Bus, clock: VirtualClock) -> None:
    filled(bus)
    one = bus.consumer("t", group="g", auto_commit_interval_ms=3_600_000)
    two = bus.consumer("t", group="g", auto_commit=False)
    one.poll(max_messages=1)
    (kept,) = one.assignment()
    found = [message for message in take(one, 5) if message.partition == kept.partition]
    assert found
    before = bus.group("g").committed.get(kept)
    (moved,) = two.wait_assigned()
    with pytest.raises(errors.FencedError):
        one.commit({kept: found[-1].offset + 1, moved: 5})
    one.close()  # the last poll is unprocessed, and the commit that would have made it so was refused
    assert bus.group("g").committed.get(kept) in (before, found[0].offset)


def test_a_refused_commit_of_everything_is_not_made_by_closing(bus: Bus, clock: VirtualClock) -> None:
    """`one` is replaced in one of two topics only, by a topic that is created anew."""
    filled(bus, partitions=1)
    put(bus, bus.topic("u"), *numbers(10))
    one = bus.consumer(re.compile("t|u"), group="g", auto_commit_interval_ms=3_600_000)
    assert len(one.poll(1.0, max_messages=1000)) == 20
    bus.delete_topic("u")
    bus.topic("u")
    two = bus.consumer(re.compile("t|u"), group="g", auto_commit=False)  # tells the group of the new `u`
    with pytest.raises(errors.FencedError):
        one.commit()
    assert TP not in bus.group("g").committed
    one.close()
    assert TP not in bus.group("g").committed
    two.close()


# --- static members -----------------------------------------------------------------------------------------------


def static(bus: Bus, name: str, **options: Any) -> Consumer:
    """A static member of `g`."""
    return bus.consumer("t", group="g", member=name, member_timeout_ms=20_000, **options)


def test_a_second_member_of_a_name_fences_the_first(bus: Bus) -> None:
    filled(bus)
    one, other = static(bus, "a", auto_commit=False), static(bus, "b", auto_commit=False)
    one.poll(max_messages=1)
    mine = one.assignment()
    assert len(mine) == 1
    second = static(bus, "a", auto_commit=False)
    assert second.assignment() == mine  # at once: who was replaced has nothing to give up
    with pytest.raises(errors.FencedError, match="nothing was committed"):
        one.commit(dict.fromkeys(mine, 3))
    for _ in range(3):
        with pytest.raises(errors.FencedError, match="member 'a'"):
            one.poll()
    second.commit(dict.fromkeys(mine, 2))
    one.close()
    assert bus.group("g").committed == dict.fromkeys(mine, 2)
    assert second.poll(max_messages=1)
    assert second.assignment() == mine
    other.close()


def test_the_automatic_commit_of_who_was_replaced_is_dropped(bus: Bus) -> None:
    filled(bus)
    told = Told()
    one = static(bus, "a", **told.options())
    assert len(take(one, 20)) == 20
    second = static(bus, "a", auto_commit=False)
    assert second.assignment() == {TP, TP1}
    with pytest.raises(errors.FencedError):
        one.poll()
    one.close()
    assert bus.group("g").committed == {}
    assert second.position(TP) == 0


def test_a_static_member_that_died_keeps_its_partitions_for_a_while(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t", partitions=4)
    one, two = static(bus, "a"), static(bus, "b")
    settle(one, two)
    kept = one.assignment()
    die(one)
    clock.advance(19)
    settle(two)
    assert two.assignment() == tps("t", 4) - kept
    clock.advance(19)  # from when its death was seen
    settle(two)
    assert two.assignment() == tps("t", 4) - kept
    clock.advance(1.5)
    settle(two)
    assert two.assignment() == tps("t", 4)


def test_a_static_member_that_comes_back_has_what_it_had(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t", partitions=4)
    one, two = static(bus, "a"), static(bus, "b")
    settle(one, two)
    kept = one.assignment()
    die(one)
    settle(two)
    clock.advance(10)
    again = static(bus, "a")
    assert again.assignment() == kept
    clock.advance(60)
    settle(two, again)
    assert again.assignment() == kept


def test_a_member_without_a_name_that_died_is_gone_at_once(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t", partitions=2)
    one, two = bus.consumer("t", group="g"), bus.consumer("t", group="g")
    settle(one, two)
    die(one)
    clock.advance(1)
    settle(two)
    assert two.assignment() == {TP, TP1}


def test_a_static_member_that_leaves_is_gone_at_once(bus: Bus) -> None:
    bus.topic("t", partitions=2)
    one, two = static(bus, "a"), static(bus, "b")
    settle(one, two)
    one.close()
    settle(two)
    assert two.assignment() == {TP, TP1}


class JumpingClock(VirtualClock):
    """Somebody sets the date; the monotonic clock goes on as it did."""

    jump_ms = 0

    def time_ms(self) -> int:
        return super().time_ms() + self.jump_ms


@pytest.mark.parametrize("days", [1, -1])
def test_a_date_that_is_set_expires_nobody(open_bus: OpenBus, days: int) -> None:
    clock = JumpingClock()
    bus = open_bus(clock=clock)
    bus.topic("t", partitions=2)
    one, two = static(bus, "a", max_poll_interval_ms=INTERVAL_MS), static(bus, "b", max_poll_interval_ms=INTERVAL_MS)
    settle(one, two)
    die(one)
    clock.advance(1)
    settle(two)  # sees it
    clock.jump_ms = days * 86_400_000
    clock.advance(1)
    settle(two)
    assert len(two.assignment()) == 1
    for _ in range(10):
        clock.advance(2.5)
        settle(two)
    assert two.assignment() == {TP, TP1}


# --- from outside -------------------------------------------------------------------------------------------------


def test_an_active_group_is_left_alone(bus: Bus, clock: VirtualClock) -> None:
    filled(bus)
    one, two = static(bus, "a", auto_commit=False), bus.consumer("t", group="g", auto_commit=False)
    for alive in (2, 1):
        with pytest.raises(errors.GroupActiveError, match="g"):
            bus.delete_group("g")
        with pytest.raises(errors.GroupActiveError, match="g"):
            bus.reset_offsets("g", "t", to="latest")
        if alive == 2:
            two.close()
    one.commit({TP: 3})
    die(one)
    bus.reset_offsets("g", "t", to="latest")
    assert bus.group("g").committed == {TP: 10, TP1: 10}
    bus.delete_group("g")
    assert bus.groups() == []


def test_a_group_can_begin_anew(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        assert len(take(consumer, 20)) == 20
        consumer.commit()
    bus.delete_group("g")
    with bus.consumer("t", group="g") as consumer:
        assert len(take(consumer, 20)) == 20


def test_who_assigns_itself_may_not_commit_what_a_member_has(bus: Bus) -> None:
    filled(bus)
    alone = bus.consumer(group="g", auto_commit=False)
    alone.assign([TP])
    alone.commit({TP: 2})
    member = bus.consumer("t", group="g", auto_commit=False)
    assert member.position(TP) == 2
    with pytest.raises(errors.FencedError):
        alone.commit({TP: 3})
    member.close()
    alone.commit({TP: 3})
    assert committed(bus, "t", "g") == 3


# --- threads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assignor", ASSIGNORS)
def test_members_in_threads_read_everything(open_bus: OpenBus, assignor: str) -> None:
    """Members come and go while messages are sent: all are read, and everything read is committed in the end."""
    bus = open_bus(clock=None)
    topic = bus.topic("t", partitions=5)
    total = 600
    seen: set[bytes] = set()
    stop = threading.Event()

    def member(turns: int) -> None:
        while not stop.is_set():
            with bus.consumer("t", group="g", assignor=assignor) as consumer:
                for turn, message in enumerate(consumer.messages(timeout=0.05)):
                    seen.add(message.value)
                    if turn == turns:
                        break

    def stay() -> None:
        with bus.consumer("t", group="g", assignor=assignor) as consumer:
            while not stop.is_set():
                seen.update(message.value for message in consumer.poll(timeout=0.05))

    running = [beside(stay), beside(lambda: member(7)), beside(lambda: member(23))]
    put(bus, topic, *numbers(total))
    wait_until(lambda: len(seen) == total)
    stop.set()
    for one in running:
        one.result(timeout=PATIENCE)
    assert seen == set(numbers(total))
    described = bus.group("g")
    assert list(described.members) == []
    assert sum(described.lag.values()) == 0


def test_a_blocked_member_gets_what_another_leaves(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    topic = bus.topic("t")
    one = bus.consumer("t", group="g")
    two = bus.consumer("t", group="g")
    waiting = beside(lambda: two.poll(timeout=PATIENCE))
    one.close()
    put(bus, topic, b"x")
    assert values(waiting.result(timeout=PATIENCE)) == [b"x"]


@pytest.mark.needs("shared")
def test_members_of_several_buses_share_a_group(open_bus: OpenBus) -> None:
    buses = [open_bus(clock=None) for _ in range(3)]
    topic = buses[0].topic("t", partitions=3)
    members = [bus.consumer("t", group="g") for bus in buses]
    stop = threading.Event()
    seen: dict[int, set[int]] = {}

    def run(at: int) -> None:
        while not stop.is_set():
            for message in members[at].poll(timeout=0.05):
                seen.setdefault(at, set()).add(message.partition)

    running = [beside(lambda at=at: run(at)) for at in range(3)]  # type: ignore[misc]
    wait_until(lambda: [len(one.partitions) for one in buses[0].group("g").members] == [1, 1, 1])
    for partition in range(3):
        put(buses[partition], topic if partition == 0 else "t", b"x", partition=partition)
    wait_until(lambda: sorted(map(sorted, seen.values())) == [[0], [1], [2]])
    stop.set()
    for one in running:
        one.result(timeout=PATIENCE)
