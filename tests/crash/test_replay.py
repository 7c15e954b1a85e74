"""Fault 3 of the promises: the machine stops, and what it may leave by the fault model (`recording`) is opened again.

Each workload runs once over a directory that records what is done to it. The states that a stop at any point may leave
are opened by a bus of another boot and compared with the story (`Story.check_machine`); then they are written to,
closed, and opened once more. With `always` everything that was acknowledged must be there; with `interval` everything
that a pass of syncing had finished with, and of what came later a suffix of each partition may be gone. No state may be
called damaged, and what is cut off is logged with its size.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from streamlite import Bus, TopicPartition
from streamlite.clock import as_clock
from streamlite.engine import Engine
from streamlite.files.memory import MemoryFiles
from streamlite.testing.clock import VirtualClock
from tests.crash import test_named
from tests.crash.faulty import FaultyFiles, bury, clone, file_at, kill, logs_of, open_over, walk_files
from tests.crash.recording import FULL, Left, RecordedCalls, RecordedFiles, Recording, Scale, Stored
from tests.crash.story import PATIENCE, Moment, Story
from tests.crash.test_stop_at_every_call import SMALL, WORKLOADS, append, numbers

SEED = int(os.environ.get("STREAMLITE_SEED", "0"))
STATES = int(os.environ.get("STREAMLITE_STATES", "2000"))
"""Of each workload at each level, at most about so many; those that are the same do not count."""
GOING_ON = 3
"""Each so-manieth state of the quick scale is written to as well, closed and opened again; in full, each."""
LEVELS = ("interval", "always")
SYNCS = ("sync", "interval sync", "close")
READ_ONLY = 8
"""Each so-manieth state is also read by who may not change it."""

Workload = Callable[[Story], None]


# -- more workloads ----------------------------------------------------------------------------------------------------


def rebalance(story: Story) -> None:
    """Members come, commit what they own, and go; then the offsets are set anew."""
    story.create("t", partitions=2)
    for partition in range(2):
        story.send("t", *numbers(4), partition=partition)
    bus = story.bus
    assert bus is not None
    with bus.consumer("t", group="g", auto_commit=False) as first:
        story.commit_by(first, "t", "g", {0: 1, 1: 1})
        with bus.consumer("t", group="g", auto_commit=False) as second:
            for _ in range(2):
                first.poll(timeout=0.2)
                second.poll(timeout=0.2)
            assert {*first.assignment(), *second.assignment()} == {TopicPartition("t", 0), TopicPartition("t", 1)}
            for consumer, offset in ((first, 2), (second, 3), (first, 3)):
                story.commit_by(consumer, "t", "g", {tp.partition: offset for tp in consumer.assignment()})
    story.reset("g", "t", 0, 1)
    story.send("t", b"after")


def commit_and_lose(story: Story) -> None:
    """Commits of offsets whose messages are not synced yet."""
    story.create("t", partitions=2)
    for at in range(3):
        story.send("t", *numbers(2, 2 * at))
        story.send("t", *numbers(1, at), partition=1)
        story.commit("t", "g", {0: 2 * at + 2, 1: at + 1})


def create_many(story: Story) -> None:
    """Topics that come and go under the same name, and others."""
    for at in range(3):
        story.create("t", partitions=1 + at % 2)
        story.send("t", *numbers(2, at))
        story.create(f"u{at}")
        story.send(f"u{at}", b"one")
        story.delete("t")


def close_and_open(story: Story) -> None:
    """Several times; the second but last time nothing is written."""
    story.create("t", **SMALL)
    for at in range(4):
        if at != 2:
            story.send("t", *numbers(3, 3 * at))
        story.close_and_open()


def transact_and_truncate(story: Story) -> None:
    story.create("t", **SMALL)
    story.create("u")
    for at in range(4):
        story.transact({("t", 0): numbers(3, 3 * at), ("u", 0): numbers(1, at)})
    story.truncate("t", 0, 7)
    story.transact({("t", 0): numbers(2, 12), ("u", 0): numbers(1, 4)})


def compact_and_transact(story: Story) -> None:
    """Compaction seals the segment, all of which is safe, and the next one's first batches are a transaction's."""
    story.create("t", **SMALL, cleanup="compact")
    story.create("u")
    for at in range(3):
        story.send("t", b"%d" % at * 20, key=b"k")
        story.compact("t")
        story.transact({("t", 0): [b"%d" % at], ("u", 0): [b"%d" % at]})
        story.compact("t")
        story.send("t", b"more %d" % at, key=b"l")


def any_steps(draw: random.Random, *, deletes: bool = True) -> Workload:
    """Steps as drawn."""

    def workload(story: Story) -> None:
        story.create("t", partitions=2, **SMALL)
        story.create("u")
        story.create("c", cleanup="compact", **SMALL)
        for number in range(draw.randrange(4, 10)):
            _any_step(story, draw, number, deletes=deletes)

    workload.__name__ = "any_steps"
    return workload


def _any_step(story: Story, draw: random.Random, number: int, *, deletes: bool) -> None:
    world = story.worlds[-1]
    topic = draw.choice(sorted(set(world.topics) - {"c"}))
    partition = draw.randrange(len(world.topics[topic]))
    size = len(world.topics[topic][partition].sent)
    what = draw.randrange(13)
    if what < 4:
        story.send(topic, *numbers(draw.randrange(1, 6), 10 * number), partition=partition)
    elif what == 4:
        story.send_keyed(topic, [(b"k%d" % at, b"%d" % at * draw.randrange(1, 200)) for at in range(6)])
    elif what < 7:
        places = {(topic, partition): numbers(draw.randrange(1, 4), number), ("c", 0): [b"%d" % number]}
        if what == 5:
            story.transact(places)
        else:
            story.transact(places, topic, "g", {partition: draw.randrange(size + 1)})
    elif what == 7:
        story.commit(topic, draw.choice("gh"), {partition: draw.randrange(size + 1)})
    elif what == 8:
        for at in range(draw.randrange(1, 5)):
            story.send("c", b"%d" % number * 20, key=b"k%d" % at)
        story.compact("c")
    elif what == 9:
        offset = draw.randrange(size + 1)
        if offset > world.topics[topic][partition].start_min:
            story.truncate(topic, partition, offset)
    elif what == 10:
        story.grow(topic, len(world.topics[topic]) + 1)
    elif what == 11 and deletes:
        story.close_and_open()
    elif what == 12 and deletes and len(world.topics) > 2:
        story.delete(topic)
        story.create("t" if topic == "u" else "u", **SMALL) if len(story.worlds[-1].topics) < 2 else None
    else:
        story.alter(topic, segment_bytes=draw.choice((200, 400, 4000)))


MORE: list[Workload] = [
    rebalance, commit_and_lose, create_many, close_and_open, transact_and_truncate, compact_and_transact,
]  # fmt: skip


# -- the runs ----------------------------------------------------------------------------------------------------------


class Rebooted(MemoryFiles):
    """A directory after the machine was started once more."""

    def __init__(self, found: MemoryFiles, boot: int) -> None:
        super().__init__()
        self._tree = found._tree
        self._boot = boot

    def boot_id(self) -> int:
        return self._boot


class SyncedStory(Story):
    """A story in which passes of syncing come in between, as drawn."""

    def __init__(self, draw: random.Random, share: float) -> None:
        super().__init__()
        self._draw = draw
        self._share = share

    def step(self, what: str, does: Callable[[Any], object], do: Callable[[Bus], Any]) -> Any:
        result = super().step(what, does, do)
        if what not in ("interval sync", "close") and self._draw.random() < self._share:
            self.interval_sync()
        return result

    def safe(self, done: int, sync: str) -> int:
        """The step up to which everything is on the device."""
        if sync == "always":
            return done
        return max((at for at, what in enumerate(self.steps[:done], 1) if what in SYNCS), default=0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The numbers that are drawn from the operating system are the same for the same seed."""
    draw = random.Random(seed)
    with mock.patch("streamlite.files.os", SimpleNamespace(urandom=draw.randbytes, getpid=os.getpid)):
        yield


def open_recorded(files: FaultyFiles, sync: str) -> Bus:
    """Nothing is synced by itself."""
    bus = open_over(files, sync=sync, sync_interval_ms=100_000, clock=VirtualClock())
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    return bus


def record(workload: Workload, sync: str, seed: int) -> tuple[SyncedStory, Recording]:
    """Run it, close, open again and send once more, then be cut off by the stop of the machine."""
    story = SyncedStory(random.Random(seed), 0.3 if sync == "interval" else 0.0)
    files = RecordedFiles()
    files.told = story.moment
    story.after_step = files.say
    calls = RecordedCalls(files)
    story.opener = partial(open_recorded, calls, sync)
    with seeded(seed):
        story.bus = open_recorded(calls, sync)
        workload(story)
        story.close_and_open()
        story.send(sorted(story.worlds[-1].topics)[0], b"after it was closed", key=b"k")
        calls.stop()
        bury(story.bus)
    return story, files.recording


# -- the checks --------------------------------------------------------------------------------------------------------


Lines = list[str]


class _Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: Lines = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def logged() -> Iterator[Lines]:
    """What streamlite logs, and nothing of it anywhere else: it is thousands of lines."""
    handler, logger = _Handler(), logging.getLogger("streamlite")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def reopen(files: MemoryFiles, boot: int, *, read_only: bool = False) -> Bus:
    """By a process after the machine was started again; at the level at which no thread syncs."""
    engine = Engine.open(
        Rebooted(files, boot), sync="never", sync_interval_s=1, read_only=read_only, lock_timeout=30,
        clock=as_clock(VirtualClock()),
    )  # fmt: skip
    engine.maintenance._begun = True
    return Bus(engine)


def check_left(story: SyncedStory, left: Left, sync: str, lines: Lines, *, going_on: bool = True) -> None:
    """All that is promised of one state."""
    moment: Moment = left.note
    logs = _sizes(left.files)
    follower = None
    if left.at % READ_ONLY == 0 and "bus.json" in left.files.list(""):
        follower = _seen(reopen(clone(left.files), 2, read_only=True))
    lines.clear()
    bus = reopen(left.files, 2)
    story.check_machine(bus, moment, story.safe(moment.done, sync))
    if follower is not None:
        assert follower == _seen(bus)
    _check_lines(lines, logs, _sizes(left.files))
    if going_on:
        _check_going_on(bus, left.files, story)
    else:
        bus._engine.abandon()


def _sizes(files: MemoryFiles) -> dict[str, int]:
    found = ((path, file) for path, file in walk_files(files._tree) if path.endswith(".log") and file is not None)
    return {path: file.size() for path, file in found if not path.startswith("topics/__new")}


def _seen(bus: Bus) -> object:
    return {name: list(bus.topic(name).read()) for name in bus.topics()}


def _check_lines(lines: Lines, before: dict[str, int], after: dict[str, int]) -> None:
    """Every byte that was taken away from a log is in a line, and every line is true."""
    cut = {}
    for line in lines:
        found = re.match(r"cut (\d+) bytes at position (\d+) of (\S+), left by a stop that was not clean$", line)
        if found:
            cut[found[3]] = int(found[1]), int(found[2])
    removed = {path for path in before if f"removed {path}, which follows a gap left by a stop of the machine" in lines}
    shorter = {path: (size - after[path], after[path]) for path, size in before.items() if after.get(path, size) < size}
    assert cut == shorter, (cut, shorter)
    assert not removed & set(after)


def _check_going_on(bus: Bus, files: MemoryFiles, story: Story) -> None:
    """Write, read again, close, and read once more from what is there then."""
    groups = story.worlds[-1].commits
    before = {name: bus.topic(name).end_offsets() for name in bus.topics()}
    committed = {group: bus._engine.offsets.of_group(group) for group in groups}
    capped = {group: dict(bus.group(group).committed) for group, raw in committed.items() if raw}
    raw = {group: story.raw_commits(bus, group) for group in groups}
    values = _write(bus, raw)
    content = _content(bus, before)
    assert content == values, (content, values)
    assert {group: dict(bus.group(group).committed) for group in capped} == capped
    for found in capped.values():
        for tp, offset in found.items():
            assert offset <= before[tp.topic][tp]  # or what was just written would be skipped
    bus.close()
    assert "clean" in files.list("")
    bus = reopen(files, 2)
    assert _content(bus, before) == values
    assert {group: dict(bus.group(group).committed) for group in capped} == capped
    bus.close()


def _write(bus: Bus, raw: dict[str, dict[TopicPartition, int]]) -> dict[TopicPartition, list[tuple[int, bytes]]]:
    """To each partition, and as much that a commit from before the stop would point into it."""
    values: dict[TopicPartition, list[tuple[int, bytes]]] = {}
    with bus.producer() as producer:
        for name in bus.topics():
            for tp, end in bus.topic(name).end_offsets().items():
                most = max((found.get(tp, 0) for found in raw.values()), default=0)
                sent = [b"new %d" % at for at in range(max(most - end, 0) + 1)]
                delivery = producer.send_many(name, sent, keys=[b"new"] * len(sent), partition=tp.partition)
                offsets = [one.offset for one in delivery.result(timeout=PATIENCE)]  # type: ignore[attr-defined]
                assert offsets == list(range(end, end + len(sent)))
                values[tp] = list(zip(offsets, sent, strict=True))
    return values


def _content(
    bus: Bus, start: dict[str, dict[TopicPartition, int]]
) -> dict[TopicPartition, list[tuple[int, bytes | None]]]:
    """What is there from these offsets on."""
    return {
        tp: [(message.offset, message.value) for message in bus.topic(name).read(partition=tp.partition, start=offset)]
        for name, ends in start.items()
        for tp, offset in ends.items()
    }


def replay(workload: Workload, sync: str, seed: int, scale: Scale = FULL) -> int:
    """Check the states of a workload; how many there were."""
    story, recording = record(workload, sync, seed)
    count = 0
    with logged() as lines:
        for left in recording.states(seed, scale):
            try:
                check_left(story, left, sync, lines, going_on=scale is FULL or count % GOING_ON == 0)
            except BaseException:
                print(f"seed {seed}, {workload.__name__}, {sync}, after event {left.at}:")
                print(f"{recording.events[left.at][0]!r:.200}")
                print(f"{left.note}, steps {story.steps}\n{left.chosen}")
                raise
            count += 1
    return count


def quick(recording: Recording, states: int) -> Scale:
    """So that there are about so many, spread over the whole run."""
    points = sum(not isinstance(event, Stored) for event, _ in recording.events)
    return Scale(all=1, samples=max(1, states // (2 * points)), tears=1, every=max(1, 2 * points // states))


def case(seed: int) -> int:
    """One run of one workload, drawn or given, at one level, with every state; how many there were."""
    draw = random.Random(seed)
    workloads = [*WORKLOADS, *MORE, *[any_steps(draw)] * len(WORKLOADS)]
    return replay(workloads[seed % len(workloads)], LEVELS[seed // len(workloads) % 2], seed)


@pytest.mark.parametrize("sync", LEVELS)
@pytest.mark.parametrize("workload", [*WORKLOADS, *MORE], ids=lambda workload: workload.__name__)
def test_a_machine_that_stops_loses_what_it_may_lose(workload: Workload, sync: str) -> None:
    assert replay(workload, sync, SEED, quick(record(workload, sync, SEED)[1], STATES)) > 20


# -- producers with a name ---------------------------------------------------------------------------------------------


class SyncedIngest(test_named.Ingest):
    """Says up to where everything is on the device, which passes of syncing that are drawn bring further."""

    def __init__(self, bus: Bus, draw: random.Random, sync: str, say: Callable[[], object], *, given: bool) -> None:
        super().__init__(bus, given=given)
        self.safe = list(self.acked)
        self._draw = draw
        self._sync = sync
        self._say = say

    def _acknowledged(self) -> None:
        super()._acknowledged()
        if self._sync == "interval" and self._draw.random() < 0.3:
            assert self.bus._engine.syncer is not None
            self.bus._engine.syncer.sync_dirty()
            self.safe = list(self.acked)
        elif self._sync == "always":
            self.safe = list(self.acked)
        self._say()


def replay_named(workload: test_named.Workload, sync: str, seed: int, states: int) -> int:
    """Check the states of a named producer's workload: whoever has the name next stores each sequence once."""
    draw = random.Random(seed)
    files = RecordedFiles()
    files.told = lambda: (-1,) * test_named.PARTITIONS
    calls = RecordedCalls(files)
    with seeded(seed):
        bus = open_recorded(calls, sync)
        ingest = SyncedIngest(bus, draw, sync, files.say, given=draw.random() < 0.7)
        files.told = lambda: tuple(ingest.safe)
        workload(ingest)
        calls.stop()
        bury(bus)
    upto = [number + test_named.AFTER for number in ingest.next]
    shrinks = workload in test_named.SHRINKING
    count = 0
    with logged():
        for left in files.recording.states(seed, quick(files.recording, states) if states else NAMED):
            ways = test_named.WAYS[1 + draw.randrange(2)] if ingest.given else test_named.WAYS[0]
            acked = left.note
            try:
                for _ in range(2):
                    with reopen(left.files, 2) as bus:
                        test_named.have_topic(bus, workload)
                        test_named.go_on(bus, ways, upto, acked)
                        test_named.check(bus, upto, shrinks=shrinks)
                    acked = tuple(number - 1 for number in upto)
            except BaseException:
                print(f"seed {seed}, {workload.__name__}, {sync}, {ways}, after event {left.at}:")
                print(f"{files.recording.events[left.at][0]!r:.200}\n{left.note}, {left.chosen}")
                raise
            count += 1
    return count


NAMED = Scale(all=4, samples=16, tears=1)
"""Of a named producer: its states take longer, since all is sent again."""


def named_case(seed: int) -> int:
    """One workload of a named producer at one level, with many states; how many there were."""
    workloads = test_named.WORKLOADS
    return replay_named(workloads[seed % len(workloads)], LEVELS[seed // len(workloads) % 2], seed, 0)


@pytest.mark.parametrize("sync", LEVELS)
@pytest.mark.parametrize("workload", test_named.WORKLOADS, ids=lambda workload: workload.__name__)
def test_a_machine_that_stops_has_no_sequence_stored_twice(workload: test_named.Workload, sync: str) -> None:
    assert replay_named(workload, sync, SEED, STATES // 20) > 20


# -- the line in the log -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot", [1, 2])
def test_a_torn_tail_is_cut_once_and_logged_with_its_byte_count(boot: int) -> None:
    inner = MemoryFiles()
    bus = open_recorded(FaultyFiles(inner), "never")
    story = Story(bus)
    append(story)
    kill(bus)
    file = file_at(inner, logs_of(inner)[-1])
    size = file.size() if boot == 2 else file.size() // 8 * 7
    file.truncate(size)  # in the middle of a batch, or what an append behind it left
    file.write([b"torn" * 10], size)
    with logged() as lines, reopen(inner, boot) as bus:
        kept = [message.value for message in bus.topic("t").read()]
    [line] = lines
    cut = re.fullmatch(r"cut (\d+) bytes at position (\d+) of (\S+), left by a stop that was not clean", line)
    assert cut is not None
    assert cut[3] == file.path
    assert int(cut[1]) == size + 40 - int(cut[2])
    assert file.size() == int(cut[2])
    assert kept == numbers(12)[: len(kept)]
    assert len(kept) == (12 if boot == 2 else 9)
    with logged() as lines, reopen(inner, boot) as bus:
        assert [message.value for message in bus.topic("t").read()] == kept
    assert lines == []
