"""Fault 4 of the promises: what may stop or fail does so in recovery itself, and recovery comes to the same in the end.

A machine stops in a workload (`test_replay`). Whoever opens what is left is killed at any of its calls, or the machine
stops again, in the recovery or while the first messages after it are written; or one of its calls fails. Whoever comes
then finds what an undisturbed recovery would have found, and of what was written since a prefix.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import pytest

from streamlite import Bus, TopicPartition, errors
from streamlite.files.memory import MemoryFiles
from streamlite.format import HEADER_BYTES, pack_header, unpack_header
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import (
    CHANGING,
    SYNCING,
    Call,
    FaultyFiles,
    Plan,
    States,
    Stopped,
    clone,
    file_at,
    kill,
    logs_of,
    open_over,
)
from tests.crash.recording import FULL, RecordedCalls, RecordedFiles, Recording, Scale
from tests.crash.story import PATIENCE, Moment, Story
from tests.crash.test_replay import (
    LEVELS,
    MORE,
    SEED,
    SyncedStory,
    Workload,
    any_steps,
    close_and_open,
    create_many,
    logged,
    open_recorded,
    quick,
    record,
    reopen,
    seeded,
)
from tests.crash.test_stop_at_every_call import WORKLOADS, delete

RECOVERIES = int(os.environ.get("STREAMLITE_RECOVERIES", "1"))
"""States of each workload whose recovery is disturbed; a large number before a release."""
EACH = 12
"""Stops of the process, stops of the machine, and failing calls, of each."""
NEW = 3
"""Messages written to each partition after a recovery."""


UNDELETING = [one for one in (*WORKLOADS, *MORE) if one not in (delete, create_many, close_and_open)]
"""A deletion that was cut off may be taken back by a stop of the machine, and one story cannot tell two lives apart."""


class Found(NamedTuple):
    """What is to be seen of a bus, and the commits as they were made."""

    messages: dict[TopicPartition, list[tuple[int, bytes | None]]]
    starts: dict[TopicPartition, int]
    commits: dict[str, dict[TopicPartition, int]]


def look(bus: Bus, groups: list[str]) -> Found:
    """All of it."""
    messages, starts = {}, {}
    for name in bus.topics():
        topic = bus.topic(name)
        starts |= topic.beginning_offsets()
        for tp in topic.end_offsets():
            messages[tp] = [(message.offset, message.value) for message in topic.read(partition=tp.partition)]
    return Found(messages, starts, {group: Story.raw_commits(bus, group) for group in groups})


def is_continued(before: Found, now: Found, least: int) -> None:
    """What was there is there, and of what was written since, at least so many to each partition."""
    assert now.starts == before.starts
    assert now.commits == before.commits
    assert now.messages.keys() == before.messages.keys()
    for tp, messages in before.messages.items():
        found = now.messages[tp]
        assert found[: len(messages)] == messages, (tp, messages, found)
        new = found[len(messages) :]
        assert least <= len(new) <= NEW, (tp, new)
        assert [value for _, value in new] == [b"new %d" % at for at in range(len(new))], (tp, new)
        assert [offset for offset, _ in new] == list(range(new[0][0], new[0][0] + len(new)) if new else [])


def write(bus: Bus, wrote: Callable[[int], object]) -> None:
    """One after the other to each partition, each round acknowledged."""
    with bus.producer() as producer:
        for at in range(NEW):
            for name in bus.topics():
                for tp in bus.topic(name).end_offsets():
                    sent = producer.send(name, b"new %d" % at, key=b"new", partition=tp.partition)
                    sent.result(timeout=PATIENCE)
            wrote(at + 1)


# -- the machine stops again -------------------------------------------------------------------------------------------


def record_recovery(files: MemoryFiles, groups: list[str], sync: str) -> Recording:
    """Of the recovery, and of writing after it; the note of each event is how many rounds were acknowledged."""
    recorded = RecordedFiles(files)
    rounds = 0
    recorded.told = lambda: rounds
    calls = RecordedCalls(recorded, boot=2)
    bus = open_over(calls, sync=sync, sync_interval_ms=100_000, clock=VirtualClock())
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    look(bus, groups)

    def wrote(count: int) -> None:
        nonlocal rounds
        rounds = count
        recorded.say()

    write(bus, wrote)
    bus.close()
    rounds = NEW
    recorded.say()
    return recorded.recording


def stop_machine_again(files: MemoryFiles, groups: list[str], sync: str, seed: int, most: int) -> int:
    """At any point of the recovery, and of the writing after it; how many states there were."""
    reference = look(reopen(clone(files), 2), groups)
    recording = record_recovery(clone(files), groups, sync)
    scale = quick(recording, most) if most < 1 << 30 else FULL
    count = 0
    for left in recording.states(seed, scale):
        try:
            bus = reopen(left.files, 3)
            closed = left.at >= len(recording.events) - 1
            is_continued(reference, look(bus, groups), left.note if sync == "always" or closed else 0)
            bus.close()
        except BaseException:
            print(f"the machine stopped again after event {left.at}: {recording.events[left.at][0]!r:.200}")
            print(f"{left.note} rounds written at {sync}; {left.chosen}")
            raise
        count += 1
    return count


# -- the process is killed ---------------------------------------------------------------------------------------------


def stop_process(files: MemoryFiles, groups: list[str], draw: random.Random, most: int) -> int:
    """Before any call of the recovery."""
    reference = look(reopen(clone(files), 2), groups)
    states = States(clone(files))
    states.files.boot = 2
    bus = open_over(states.files, sync="never", clock=VirtualClock())
    look(bus, groups)
    kill(bus)
    chosen = draw.sample(states.found, min(most, len(states.found)))
    for state in chosen:
        try:
            # It may be the machine that stops next.
            bus = reopen(clone(state.files), draw.choice((2, 3)))
            is_continued(reference, look(bus, groups), 0)
            bus.close()
        except BaseException:
            print(f"killed in the recovery before {state.call}")
            raise
    return len(chosen)


# -- calls fail --------------------------------------------------------------------------------------------------------


def _not_reading(call: Call) -> bool:
    return call.name in CHANGING or call.name in SYNCING


FAULTS = [
    Plan(1, errno.EIO),
    Plan(1, errno.EIO, lasting=True),
    Plan(1, errno.EIO, short=True, looks_at=_not_reading),
    Plan(1, errno.ENOSPC, lasting=True, short=True, looks_at=lambda call: call.name in ("write", "create", "make_dir")),
    Plan(1, errno.EIO, looks_at=lambda call: call.name in SYNCING),
]


def fail(files: MemoryFiles, groups: list[str], draw: random.Random, most: int) -> int:
    """A call of the recovery fails, once or for good, with a declared error that is no damage; then all is well."""
    reference = look(reopen(clone(files), 2), groups)
    counting = FaultyFiles(clone(files), Plan(1 << 60), boot=2)
    with open_over(counting, sync="interval", clock=VirtualClock()) as bus:
        look(bus, groups)
    for _ in range(most):
        plan = draw.choice(FAULTS)
        made = sum(map(plan.looks_at, counting.calls))
        if made:
            _fail(clone(files), groups, reference, plan._replace(at=draw.randrange(made) + 1), draw)
    return most


def _fail(files: MemoryFiles, groups: list[str], reference: Found, plan: Plan, draw: random.Random) -> None:
    faulty = FaultyFiles(files, plan, boot=2)
    bus: Bus | None = None
    try:
        try:
            bus = open_over(faulty, sync=draw.choice(("never", "interval", "always")), clock=VirtualClock())
            look(bus, groups)
        except errors.CorruptionError:
            raise
        except errors.StreamliteError:
            pass
        faulty.heal()
        if bus is not None:
            if draw.random() < 0.5:
                is_continued(reference, look(bus, groups), 0)
                bus.close()
            else:
                kill(bus)
        faulty.stop()
        bus = reopen(files, draw.choice((2, 3)))
        is_continued(reference, look(bus, groups), 0)
        bus.close()
    except BaseException:
        print(f"{plan}, {faulty.hits[:3]}")
        raise


# -- a process is killed, and later the machine stops ------------------------------------------------------------------


def _is_there(story: Story, number: int) -> bool:
    """Whether that transaction's messages are there; `False` for one that has offsets alone."""
    assert story.bus is not None
    for topic, partition in story.transactions[number].sent:
        end = story.bus.topic(topic).end_offsets()[TopicPartition(topic, partition)]
        return end >= len(story.worlds[number].topics[topic][partition].sent)
    return False


def stop_both(
    workload: Workload, sync: str, seed: int, scale: Callable[[Recording], Scale], *, failing: bool = False
) -> int:
    """A process is killed at some call; another one goes on from what it left, and then the machine stops.

    What the killed one did not sync is in nobody's hands but the next one's, and of the same boot. `failing`: instead,
    one of its syncs failed, and what that was for may be gone whatever is synced later.
    """
    draw = random.Random(seed)
    story = SyncedStory(draw, 0.3 if sync == "interval" else 0.0)
    files = RecordedFiles()
    done_at_kill, synced, sound = 1 << 30, 1 << 30, 1 << 30
    files.told = lambda: (story.moment(), done_at_kill, synced)
    first = RecordedCalls(files)

    def after_step() -> None:
        nonlocal sound
        files.say()
        if failing and first.hits:
            sound = min(sound, story.done - 1)  # a pass of syncing that failed has made nothing safe

    story.after_step = after_step
    story.opener = partial(open_recorded, first, sync)
    with seeded(seed):
        story.bus = open_recorded(first, sync)
        first.plan = Plan(draw.randrange(20, 200), short=True)
        if failing:
            first.plan = Plan(draw.randrange(1, 12), errno.EIO, looks_at=lambda call: call.name == "sync")
        with suppress(Stopped, errors.StorageError):
            workload(story)
        sound = min(sound, story.done)
        kill(story.bus)
        done_at_kill = story.done
        second = RecordedCalls(files)
        story.bus = open_recorded(second, sync)
        story.check(story.bus, story.moment())
        for number in [number for number in story.transactions if number > done_at_kill]:
            if not _is_there(story, number):
                del story.transactions[number]
        story.add_to_every_partition(b"by the next one")
        story.sync()
        synced = story.done
        story.add_to_every_partition(b"and once more")
        kill(story.bus)
    count = 0
    for left in files.recording.states(seed, scale(files.recording)):
        moment, killed, safe = left.note
        if killed == 1 << 30:
            continue  # `test_replay` has those
        if moment.done < safe:
            # What is there for the next one was not promised to anybody.
            moment = Moment(killed, moment.begun)
        try:
            bus = reopen(left.files, 2)
            limit = sound if left.note[0].done < safe else moment.done
            story.check_machine(bus, moment, story.safe(min(moment.done, limit), sync))
            bus.close()
        except BaseException:
            print(f"seed {seed}, {workload.__name__}, {sync}, after event {left.at}, killed in {first.hits[:1]}:")
            print(f"{files.recording.events[left.at][0]!r:.200}")
            print(f"{left.note}, steps {story.steps}\n{left.chosen}")
            raise
        count += 1
    return count


# -- all of it ---------------------------------------------------------------------------------------------------------


def disturb(workload: Workload, sync: str, seed: int, recoveries: int, each: int) -> int:
    """Of some states of a workload, all ways to disturb the recovery; how many disturbed recoveries there were."""
    story, recording = record(workload, sync, seed)
    groups = sorted(story.worlds[-1].commits)
    draw = random.Random(seed)
    count = 0
    with logged():
        states = recording.states(seed, quick(recording, max(100, 4 * recoveries)))
        lefts = [left for left in states if "topics" in left.files.list("") and "clean" not in left.files.list("")]
        for left in draw.sample(lefts, min(recoveries, len(lefts))):
            try:
                count += stop_machine_again(left.files, groups, sync, seed, each)
                count += stop_process(left.files, groups, draw, each)
                count += fail(left.files, groups, draw, each)
            except BaseException:
                print(f"seed {seed}, {workload.__name__}, {sync}, after event {left.at}:")
                print(f"{recording.events[left.at][0]!r:.200}")
                print(f"{left.note}, steps {story.steps}\n{left.chosen}")
                raise
    return count


def case(seed: int) -> int:
    """One workload, drawn or given, at one level; how many disturbed recoveries there were."""
    draw = random.Random(seed)
    workloads = [*WORKLOADS, *MORE, *[any_steps(draw)] * len(WORKLOADS)]
    sync = LEVELS[seed // len(workloads) % 2]
    return disturb(workloads[seed % len(workloads)], sync, seed, recoveries=8, each=120)


@pytest.mark.parametrize("sync", LEVELS)
@pytest.mark.parametrize("workload", [*WORKLOADS, *MORE], ids=lambda workload: workload.__name__)
def test_a_disturbed_recovery_comes_to_the_same(workload: Workload, sync: str) -> None:
    assert disturb(workload, sync, SEED, RECOVERIES, EACH) >= EACH


def both_case(seed: int) -> int:
    """A process is killed in a workload, another goes on, the machine stops; with every state; how many there were."""
    draw = random.Random(seed)
    workloads = [*UNDELETING, *[any_steps(draw, deletes=False)] * len(UNDELETING)]
    sync = LEVELS[seed // len(workloads) % 2]
    with logged():
        workload = workloads[seed % len(workloads)]
        return stop_both(workload, sync, seed, lambda recording: FULL, failing=seed // (2 * len(workloads)) % 3 == 2)


@pytest.mark.parametrize("sync", LEVELS)
@pytest.mark.parametrize("workload", UNDELETING, ids=lambda workload: workload.__name__)
def test_what_a_killed_process_left_is_made_safe_by_the_next(workload: Workload, sync: str) -> None:
    with logged():
        count = sum(stop_both(workload, sync, SEED + at, lambda recording: quick(recording, 100)) for at in range(2))
    assert count > 5


@pytest.mark.parametrize("sync", LEVELS)
@pytest.mark.parametrize("workload", UNDELETING, ids=lambda workload: workload.__name__)
def test_what_a_failed_sync_left_is_made_safe_by_the_next(workload: Workload, sync: str) -> None:
    with logged():
        count = stop_both(workload, sync, SEED, lambda recording: quick(recording, 100), failing=True)
    assert count > 0


# -- cases that were thought of ----------------------------------------------------------------------------------------


def _two_segments(inner: MemoryFiles) -> None:
    bus = open_over(FaultyFiles(inner), sync="interval", clock=VirtualClock())
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    bus.create_topic("t", segment_bytes=400)
    with bus.producer() as producer:
        for at in range(0, 8, 2):
            producer.send_many("t", [b"%d" % at * 20, b"%d" % (at + 1) * 20]).result(timeout=PATIENCE)
    kill(bus)
    assert len(logs_of(inner)) == 2


def _lose_batch(inner: MemoryFiles) -> None:
    file = file_at(inner, logs_of(inner)[0])
    file.truncate(len(file.data) // 2)


def _tear_batch(inner: MemoryFiles) -> None:
    """The second of two batches in the same segment, which is followed by a third that is whole."""
    inner.remove(logs_of(inner)[1])
    file = file_at(inner, logs_of(inner)[0])
    size = len(file.data) // 2
    first, second = bytes(file.data[:size]), bytes(file.data[size:])
    header = unpack_header(second)._replace(base_offset=4)
    later = pack_header(header, second[HEADER_BYTES:]) + second[HEADER_BYTES:]
    file.data[:] = first + bytes(size) + later


@pytest.mark.parametrize("damage", [_lose_batch, _tear_batch])
def test_what_a_recovery_took_away_does_not_come_back_behind_what_was_written_since(
    damage: Callable[[MemoryFiles], None],
) -> None:
    inner = MemoryFiles()
    _two_segments(inner)
    damage(inner)
    recorded = RecordedFiles(inner)
    calls = RecordedCalls(recorded, boot=2)
    bus = open_over(calls, sync="interval", clock=VirtualClock())
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    old = [message.value for message in bus.topic("t").read()]
    assert old == [b"0" * 20, b"1" * 20]
    new = [b"2" * 20, b"3" * 20]
    with bus.producer() as producer:
        producer.send_many("t", new).result(timeout=PATIENCE)
    kill(bus)
    with logged():
        for left in recorded.recording.states():
            with reopen(left.files, 3) as bus:
                found = [message.value for message in bus.topic("t").read()]
            assert found in (old, old + new), left.chosen
