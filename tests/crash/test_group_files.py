"""What a group's files hold when a member was killed: before every call, in the middle of every write, after each.

The members that are left, and those to come, share out the partitions, whichever of two states is in the files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest

from streamlite import Bus, Consumer, TopicPartition
from streamlite.files.memory import MemoryFiles
from streamlite.group import GroupFiles, _unpacked
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import FaultyFiles, Plan, States, Stopped, clone, file_at, kill, open_over

PARTITIONS = 3
ALL = {TopicPartition("t", number) for number in range(PARTITIONS)}
STATE_FILES = ("groups/g/state.0", "groups/g/state.1")


def opened(files: MemoryFiles) -> Bus:
    return open_over(FaultyFiles(files), sync="never", clock=VirtualClock())


def come_and_go(bus: Bus) -> None:
    """Two members join, share, and leave one after the other."""
    first = bus.consumer("t", group="g")
    second = bus.consumer("t", group="g")
    for _ in range(3):
        first.poll(timeout=0.2)
        second.poll(timeout=0.2)
    assert first.assignment() | second.assignment() == ALL
    assert first.assignment()
    assert second.assignment()
    first.close()
    second.poll(timeout=0.2)
    second.close()


def has_all(consumer: Consumer) -> bool:
    """Whether it comes to own everything, looking now and then."""
    for _ in range(10):
        if consumer.assignment() == ALL:
            return True
        consumer.poll(timeout=0.5)
    return False


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "streamlite"):
        yield caplog


def test_whoever_comes_after_a_kill_gets_every_partition(warnings: pytest.LogCaptureFixture) -> None:
    states = States(MemoryFiles())
    with open_over(states.files, sync="never", clock=VirtualClock()) as bus:
        bus.topic("t", partitions=PARTITIONS)
        before = len(states.found)
        come_and_go(bus)
    torn = 0
    for state in states.found[before:]:
        torn += state.call.name.endswith("of a write") and state.call.path in STATE_FILES
        bus = opened(clone(state.files))
        with bus.consumer("t", group="g") as consumer:
            assert has_all(consumer), state.call
            assert len(bus.group("g").members) == 1, state.call
        bus.close()
    assert torn >= 10
    assert "makes no sense" not in warnings.text  # a half-written state is not damage: the one before it counts


def test_whoever_was_there_at_a_kill_gets_every_partition(warnings: pytest.LogCaptureFixture) -> None:
    stops = 0
    for at in range(1, 1_000):
        inner = MemoryFiles()
        witness, files = opened(inner), FaultyFiles(inner)
        witness.topic("t", partitions=PARTITIONS)
        member = witness.consumer("t", group="g")
        bus = open_over(files, sync="never", clock=VirtualClock())
        files.plan = Plan(at, short=True)
        with suppress(Stopped):
            other = bus.consumer("t", group="g")
            member.poll(timeout=0.2)
            other.poll(timeout=0.2)
            other.close()
        stopped = files.dead
        kill(bus)
        assert has_all(member), files.hits
        witness.close()
        if not stopped:
            break
        stops += 1
    assert 20 < stops < 999
    assert "makes no sense" not in warnings.text


def _two_states() -> MemoryFiles:
    """What is left when the only member was killed: its own state, and the one before it."""
    inner = MemoryFiles()
    bus = opened(inner)
    bus.topic("t", partitions=PARTITIONS)
    bus.consumer("t", group="g").close()
    bus.consumer("t", group="g")
    kill(bus)
    return inner


@pytest.mark.parametrize("number", [0, 1])
def test_no_flipped_bit_in_a_state_file_makes_an_older_state_the_newest(
    number: int, warnings: pytest.LogCaptureFixture
) -> None:
    inner = _two_states()
    files = [file_at(inner, path).data for path in STATE_FILES]
    newest = max((0, 1), key=lambda one: _number_of(bytes(files[one])))
    for at in range(len(files[number])):
        damaged = clone(inner)
        file_at(damaged, STATE_FILES[number]).data[at] ^= 0x10
        warnings.clear()
        bus = opened(damaged)
        with bus.consumer("t", group="g") as consumer:
            assert has_all(consumer)
        bus.close()
        assert ("makes no sense" in warnings.text) == (number == newest), at


def _number_of(data: bytes) -> int:
    return _unpacked(data).number


def test_a_state_that_was_written_and_not_published_counts_from_then_on() -> None:
    """Who wrote it was killed before it stored the generation word."""
    inner = _two_states()
    control = inner.map("groups/g/control", 0, 4096).cast("Q")
    control[0] -= 1
    bus = opened(inner)
    with bus.consumer("t", group="g") as consumer:
        assert has_all(consumer)
        assert bus.group("g").members[0].partitions == tuple(sorted(ALL))
    bus.close()


def test_states_of_before_a_stop_of_the_machine_do_not_outnumber_new_ones() -> None:
    """The control page, which is not synced, came back empty, the state files did not."""
    inner = _two_states()
    inner.map("groups/g/control", 0, 4096)[:] = bytes(4096)
    for _ in range(3):
        bus = opened(inner)
        with bus.consumer("t", group="g") as consumer:
            assert has_all(consumer)
            witness = opened(inner)
            assert [member.partitions for member in witness.group("g").members] == [tuple(sorted(ALL))]
            witness.close()
        bus.close()


def test_a_short_state_over_a_long_one_is_read_as_what_it_is() -> None:
    inner = MemoryFiles()
    bus = opened(inner)
    bus.topic("t", partitions=PARTITIONS)
    many = [bus.consumer("t", group="g") for _ in range(20)]
    for consumer in many:
        consumer.close()
    sizes = [file_at(inner, path).size() for path in STATE_FILES]
    assert min(sizes) > 1_000
    witness = opened(inner)
    assert "g" not in witness.groups()
    witness.close()
    bus.close()


def test_a_death_among_many_members_is_found_by_one_look_of_each() -> None:
    """Of many, each looks at a few at a time."""
    inner = MemoryFiles()
    bus, other = opened(inner), opened(inner)
    bus.topic("t", partitions=PARTITIONS)
    members = [bus.consumer("t", group="g") for _ in range(30)]
    for _ in range(3):
        other.consumer("t", group="g")
    kill(other)
    assert len(GroupFiles.of(bus._engine, "g").load().members) == 33
    for member in members:
        assert member._assignment.membership is not None
        member._assignment.membership.look_for_dead()
    assert len(GroupFiles.of(bus._engine, "g").load().members) == 30
    bus.close()
