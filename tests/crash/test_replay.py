"""Fault 3 of the promises: the machine stops, and what it may leave by the fault model (`recording`) is opened again.

Each workload runs once over a directory that records what is done to it. Every state that a stop at any point may leave
is opened by a bus of another boot, compared with the story (`Story.check_machine`), written to, closed and opened once
more. With `always` everything that was acknowledged must be there; with `interval` everything that a pass of syncing or
a `sync` had finished with, and of what came later a suffix of each partition may be gone. No state may be called damaged.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from streamlite import Bus, TopicPartition, errors
from streamlite.files.memory import MemoryFiles
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import bury, fingerprint, open_over, walk_files
from tests.crash.recording import FULL, Left, RecordedCalls, RecordedFiles, Recording, Scale
from tests.crash.story import PATIENCE, Moment, Story
from tests.crash.test_stop_at_every_call import WORKLOADS

SEED = int(os.environ.get("STREAMLITE_SEED", "0"))
STATES = int(os.environ.get("STREAMLITE_STATES", "150"))
"""Of each workload at each level; a large number for all of them."""

Workload = Callable[[Story], None]


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


SYNCS = ("sync", "interval sync", "close")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The numbers that are drawn from the operating system are the same for the same seed."""
    draw = random.Random(seed)
    with mock.patch("streamlite.files.os", SimpleNamespace(urandom=draw.randbytes, getpid=os.getpid)):
        yield


def open_recorded(files: RecordedCalls, sync: str) -> Bus:
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
    with seeded(seed):
        for last in (False, True):
            story.bus = open_recorded(calls, sync)
            if last:
                story.send(sorted(story.worlds[-1].topics)[0], b"after it was closed", key=b"k")
            else:
                workload(story)
                story.close()
        calls.stop()
        bury(story.bus)
    return story, files.recording


# -- the checks --------------------------------------------------------------------------------------------------------


class Lines(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(autouse=True)
def lines() -> Iterator[Lines]:
    handler = Lines()
    logger = logging.getLogger("streamlite")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.propagate = propagate


def reopen(files: MemoryFiles, boot: int, sync: str = "never") -> Bus:
    return open_over(Rebooted(files, boot), sync=sync, clock=VirtualClock())


def check_left(story: SyncedStory, left: Left, sync: str) -> None:
    """All that is promised of one state."""
    moment: Moment = left.note
    kept = story.safe(moment.done, sync)
    bus = reopen(left.files, 2)
    story.check_machine(bus, moment, kept)
    _check_going_on(bus, left.files, story)


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


def replay(workload: Workload, sync: str, seed: int, scale: Scale = FULL, most: int = 1 << 60) -> int:
    """Check the states of a workload; how many there were."""
    story, recording = record(workload, sync, seed)
    count = 0
    for left in recording.states(seed, scale):
        try:
            check_left(story, left, sync)
        except BaseException:
            print(
                f"seed {seed}, {workload.__name__}, {sync}, after event {left.at} {recording.events[left.at][0]!r:.200}"
            )
            print(f"{left.note}, steps {story.steps}\n{left.chosen}")
            raise
        count += 1
        if count >= most:
            break
    return count
