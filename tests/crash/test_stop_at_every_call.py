"""Fault 2 of the promises: a process is killed before every call of the files seam, and in the middle of every write.

What it leaves is opened by another process. I1 to I4 must hold (`story`), writing must work, a clean close too, and the
recovery itself may be stopped at any of its calls without a difference to what is found in the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

import pytest

from streamlite import Bus
from streamlite.batch import encode_payload
from streamlite.files.memory import MemoryFiles
from streamlite.partition import Outgoing
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import (
    Call,
    FaultyFiles,
    Plan,
    State,
    States,
    Stopped,
    bury,
    clone,
    fingerprint,
    kill,
    open_over,
)
from tests.crash.story import PATIENCE, Story

Workload = Callable[[Story], None]

SAMPLES = int(os.environ.get("STREAMLITE_STOPS", "12"))
"""Of a workload, where each one takes two runs; a large number for every single one."""
SMALL = {"segment_bytes": 400}
"""Two or three batches a segment."""
OLD_MS = 1


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number * 20 for number in range(start, start + count)]


def create(story: Story) -> None:
    story.create("t", partitions=2)
    story.create("u")


def append(story: Story) -> None:
    story.create("t")
    for at in range(4):
        story.send("t", *numbers(3, 3 * at))


def append_by_key(story: Story) -> None:
    story.create("t", partitions=2)
    for at in range(3):
        story.send_keyed("t", [(b"k%d" % (n % 5), b"%d-%d" % (at, n)) for n in range(8)])


def roll(story: Story) -> None:
    story.create("t", **SMALL)
    for at in range(9):
        story.send("t", *numbers(2, 2 * at))


def roll_within_a_send(story: Story) -> None:
    story.create("t", partitions=2, **SMALL)
    for at in range(2):
        story.send_keyed("t", [(b"k%d" % n, b"%d-%d" % (at, n) * 60) for n in range(12)])


def commit(story: Story) -> None:
    story.create("t", partitions=2)
    story.send("t", *numbers(5), partition=0)
    story.send("t", *numbers(5), partition=1)
    story.commit("t", "g", {0: 1, 1: 2})
    story.commit("t", "g", {0: 3, 1: 5})
    story.commit("t", "h", {0: 5})


def truncate(story: Story) -> None:
    story.create("t", **SMALL)
    for at in range(5):
        story.send("t", *numbers(2, 2 * at))
    story.truncate("t", 0, 3)
    story.send("t", b"after")
    story.truncate("t", 0, 11)
    story.send("t", b"after that")


def retain_by_size(story: Story) -> None:
    story.create("t", **SMALL, retention_bytes=500)
    for at in range(8):
        story.send("t", *numbers(2, 2 * at))
    story.retain("t")
    story.send("t", b"after")


def retain_by_time(story: Story) -> None:
    story.create("t", **SMALL, retention_ms=1000)
    for at in range(4):
        story.send("t", *numbers(2, 2 * at), timestamp=OLD_MS)
    story.retain("t")
    story.send("t", b"after")


def compact(story: Story) -> None:
    story.create("t", **SMALL, cleanup="compact")
    for at in range(8):
        story.send("t", b"%d" % at * 20, key=b"k%d" % (at % 3))
    story.compact("t")
    for at in range(4):
        story.send("t", b"more%d" % at * 20, key=b"k%d" % (at % 2))
    story.compact("t")
    story.send("t", b"after", key=b"k0")


def delete(story: Story) -> None:
    story.create("t", partitions=2)
    story.create("other")
    story.send("t", *numbers(3))
    story.send("other", *numbers(3))
    story.delete("t")
    story.send("other", b"after")
    story.create("t")
    story.send("t", b"of its second life")


def grow(story: Story) -> None:
    story.create("t")
    story.send("t", *numbers(2))
    story.grow("t", 3)
    story.send("t", *numbers(2), partition=2)


def alter(story: Story) -> None:
    story.create("t")
    story.send("t", *numbers(3))
    story.alter("t", segment_bytes=100)
    story.send("t", *numbers(3))
    story.send("t", *numbers(3))


def transact(story: Story) -> None:
    """Two partitions of one topic, one of another, and offsets; before it, after it and between, plain sends."""
    story.create("t", partitions=2)
    story.create("u")
    story.send("t", *numbers(2))
    story.create("in")
    story.send("in", *numbers(5))
    story.transact({("t", 0): numbers(2, 2), ("t", 1): numbers(3), ("u", 0): numbers(1)}, "in", "g", {0: 2})
    story.send("u", b"between")
    story.transact({("t", 1): numbers(1, 3), ("u", 0): numbers(2, 2)}, "in", "g", {0: 5}, abort=True)
    story.transact({("u", 0): numbers(2, 2), ("t", 1): numbers(1, 3)}, "in", "g", {0: 4})
    story.send("t", b"after")


def transact_offsets_only(story: Story) -> None:
    story.create("t", partitions=2)
    story.send("t", *numbers(5), partition=0)
    story.send("t", *numbers(5), partition=1)
    story.transact({}, "t", "g", {0: 1, 1: 2})
    story.transact({}, "t", "g", {0: 3, 1: 5})


def transact_and_roll(story: Story) -> None:
    """Segments so small that a commit rolls, and one whose part is larger than a segment."""
    story.create("t", partitions=2, **SMALL)
    story.create("u", **SMALL)
    for at in range(3):
        story.transact({("t", 0): numbers(4, 4 * at), ("t", 1): numbers(6, 6 * at), ("u", 0): numbers(2, 2 * at)})
    story.transact({("t", 0): numbers(40, 100), ("u", 0): numbers(1, 100)})
    story.send("t", b"after")


def transact_and_compact(story: Story) -> None:
    story.create("t", **SMALL, cleanup="compact")
    story.create("u")
    for at in range(5):
        story.transact({("t", 0): [b"%d" % at * 60], ("u", 0): [b"%d" % at]})
    story.compact("t")
    story.transact({("t", 0): [b"last"], ("u", 0): [b"last"]})


TRANSACTIONS: list[Workload] = [transact, transact_offsets_only, transact_and_roll, transact_and_compact]
WORKLOADS: list[Workload] = [
    create, append, append_by_key, roll, roll_within_a_send, commit, truncate, retain_by_size, retain_by_time, compact,
    delete, grow, alter, *TRANSACTIONS,
]  # fmt: skip


def run(workload: Workload, sync: str) -> tuple[Story, list[State]]:
    """Run a workload, close, open again and send once more: the story, and every state it can be killed in."""
    story = Story()
    states = States(MemoryFiles(), story.moment)
    for last in (False, True):
        story.bus = open_over(states.files, sync=sync, sync_interval_ms=10, clock=VirtualClock())
        if last:
            story.send(sorted(story.worlds[-1].topics)[0], b"after it was closed", key=b"k")
        else:
            workload(story)
        story.close()
    return story, states.found


def reopen(files: MemoryFiles) -> tuple[FaultyFiles, Bus]:
    faulty = FaultyFiles(files)
    return faulty, open_over(faulty, sync="never", clock=VirtualClock())


@pytest.mark.parametrize("sync", ["never", "interval", "always"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_what_a_killed_process_leaves_is_whole(workload: Workload, sync: str) -> None:
    story, states = run(workload, sync)
    assert len(states) > 20
    for number, state in enumerate(states):
        try:
            _check_state(story, state)
        except BaseException:
            print(f"state {number} of {len(states)}, before {state.call}; steps {story.steps}, {state.note}")
            raise


def _check_state(story: Story, state: State) -> None:
    files = clone(state.files)
    _, bus = reopen(files)
    story.check(bus, state.note)
    for name in bus.topics():
        _check_writing(bus, name)
    bus.close()
    assert "clean" in files.list("")
    _, bus = reopen(files)
    for name in bus.topics():
        assert list(bus.topic(name).read(partition=0))[-1].value == b"written after the stop"
    bus.close()


def _check_writing(bus: Bus, name: str) -> None:
    with bus.producer() as producer:
        sent = producer.send(name, b"written after the stop", key=b"k", partition=0).result(timeout=PATIENCE)
    assert list(bus.topic(name).read(partition=0, start=sent.offset))[-1].offset == sent.offset


@pytest.mark.parametrize(
    "workload", [roll, commit, truncate, compact, delete, *TRANSACTIONS], ids=lambda workload: workload.__name__
)
def test_a_recovery_that_is_killed_too_changes_nothing(workload: Workload) -> None:
    story, states = run(workload, "never")
    seen: set[int] = set()
    for state in states[:: max(1, len(states) // SAMPLES)]:
        recovering = States(clone(state.files))
        bus = open_over(recovering.files, sync="never", clock=VirtualClock())
        story.check(bus, state.note)
        found = _content(bus)
        kill(bus)
        for again in recovering.found:
            known = fingerprint(again.files)
            if known in seen:
                continue
            seen.add(known)
            _, bus = reopen(again.files)
            assert _content(bus) == found, (state.call, again.call)
            kill(bus)
    assert len(seen) > 20


def _content(bus: Bus) -> object:
    """Everything that is to be seen of a bus."""
    return (
        {
            name: (list(bus.topic(name).read()), bus.topic(name).beginning_offsets(), bus.topic(name).end_offsets())
            for name in bus.topics()
        },
        {group: bus.group(group).committed for group in bus.groups()},
    )


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_who_has_the_bus_open_meanwhile_goes_on(workload: Workload) -> None:
    """Not the next one to open it, but another that was there all the time finds what the killed one left."""
    calls = _calls(workload)
    for at in range(1, calls + 1, max(1, calls // SAMPLES)):
        inner = MemoryFiles()
        witness = open_over(FaultyFiles(inner), sync="never", lock_timeout=5.0)
        story = Story(open_over(FaultyFiles(inner), sync="never", clock=VirtualClock()))
        call = _stop_in(workload, story, at)
        try:
            for name in witness.topics():
                assert witness.topic(name).partitions
            story.check(witness, story.moment())
            for name in witness.topics():
                _check_writing(witness, name)
            witness.close()
        except BaseException:
            print(f"stopped in call {at} of {calls}, {call}; steps {story.steps}, {story.moment()}")
            raise


def test_what_a_killed_writer_left_is_settled_before_another_writes_there() -> None:
    """Two batches stand whole in the file and are not published: nothing may take the place of the first alone."""
    inner = MemoryFiles()
    witness, files = open_over(FaultyFiles(inner), sync="never"), FaultyFiles(inner)
    bus = open_over(files, sync="never")
    partition = bus._engine.registry.get(bus.topic("t").name).partitions[0]

    def written_and_killed(path: str, data: bytes, position: int) -> None:
        inner.open(path).write([data], position)
        files.stop()
        raise Stopped(path)

    files.before_write = written_and_killed
    payloads = [encode_payload(None, [value]) for value in (b"a", b"b")]
    with pytest.raises(Stopped):
        partition.append([Outgoing(payload, 1, 1, 1, len(payload)) for payload in payloads])
    bury(bus)
    with witness.producer() as producer:
        producer.send("t", b"c").result(timeout=PATIENCE)
    kill(witness)
    _, bus = reopen(inner)
    assert [message.value for message in bus.topic("t").read()] == [b"a", b"b", b"c"]
    bus.close()


def test_a_recovery_that_is_killed_is_begun_again_by_who_has_the_bus_open() -> None:
    """After a stop of the machine nothing is known of a log but what its files say."""
    left = MemoryFiles()
    bus = open_over(FaultyFiles(left), sync="always", clock=VirtualClock())
    with bus.producer() as producer:
        for value in (b"a", b"b"):
            producer.send(bus.topic("t"), value).result(timeout=PATIENCE)
    kill(bus)
    for at in range(1, 200):
        inner = clone(left)
        files = FaultyFiles(inner, boot=2)
        bus = open_over(files, sync="never", clock=VirtualClock())
        witness = open_over(FaultyFiles(inner, boot=2), sync="never", clock=VirtualClock())
        files.plan = Plan(at)
        with suppress(Stopped):
            assert [message.value for message in bus.topic("t").read()] == [b"a", b"b"]
        kill(bus)
        assert [message.value for message in witness.topic("t").read()] == [b"a", b"b"], files.hits
        _check_writing(witness, "t")
        witness.close()
        if not files.hits:
            assert at > 10
            return


@pytest.mark.parametrize("sync", ["never", "always"])
def test_who_goes_on_after_a_creation_or_deletion_was_cut_off_closes_cleanly(sync: str) -> None:
    for workload in (create, delete):
        for at in range(1, _calls(workload) + 1):
            inner = MemoryFiles()
            witness = open_over(FaultyFiles(inner), sync=sync, lock_timeout=5.0)
            call = _stop_in(workload, Story(open_over(FaultyFiles(inner), sync="never", clock=VirtualClock())), at)
            witness.close()
            assert "clean" in inner.list(""), call
            names = inner.list("topics") if "topics" in inner.list("") else []
            assert [name for name in names if name.startswith(("__new", "__deleted"))] == [], call


def test_a_topic_whose_deleter_was_killed_can_be_created_anew_by_who_knew_it() -> None:
    for at in range(1, 200):
        inner = MemoryFiles()
        witness, files = open_over(FaultyFiles(inner), sync="never"), FaultyFiles(inner)
        bus = open_over(files, sync="never")
        assert list(witness.create_topic("t").read()) == []
        files.plan = Plan(at)
        try:
            bus.delete_topic("t")
        except Stopped:
            ended = False
        else:
            ended = True
        kill(bus)
        _check_writing(witness, witness.topic("t").name)
        witness.close()
        if ended:
            return


def _calls(workload: Workload) -> int:
    files = FaultyFiles(MemoryFiles())
    bus = open_over(files, sync="never", clock=VirtualClock())
    before = len(files.calls)
    workload(Story(bus))
    calls = len(files.calls) - before
    bus.close()
    return calls


def _stop_in(workload: Workload, story: Story, at: int) -> Call | None:
    """Kill the process of the story's bus in its `at`-th call from now, or after its last."""
    bus = story.bus
    assert bus is not None
    files = bus._engine.ctx.files
    assert isinstance(files, FaultyFiles)
    files.plan = Plan(at, short=True)
    with suppress(Stopped):
        workload(story)
    kill(bus)
    return files.hits[0] if files.hits else None
