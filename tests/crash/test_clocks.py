"""Fault 12 of the promises: somebody sets the date by a day, or the machine is started anew, its clocks with it.

Two clocks can jump. The date moves by a day and back, between any two things that happen, and over a start of the
machine; the monotonic clock begins anew with each boot, before or beyond where it was. What is a duration must not see
the one, and not be misled by the other: a member that lives keeps its partition, a dead one with a name (static) keeps
its for its whole time and no longer. What is a date (retention, tombstones) goes by the date there is, so of a message
that is younger than its limit, by each date at which somebody looked, nothing is gone; and offsets, commits and the
sequences of names have no date at all.
"""

from __future__ import annotations

import os
import random

import pytest

from streamlite import Bus, Consumer, TopicPartition
from streamlite.files.memory import MemoryFiles
from streamlite.group import GroupFiles
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import FaultyFiles, kill, open_over

SEED = int(os.environ.get("STREAMLITE_SEED", "1"))
PATIENCE = 20.0
STEPS = 40
DAY_MS = 86_400_000
DELETE_RETENTION_MS = 2 * DAY_MS
TIMEOUT_S = 45
"""For which a dead static member keeps its partition."""
HANGS_S = 300
LONG_AGO_MS = 1_700_000_000_000


class JumpingClock(VirtualClock):
    """The clocks of one boot."""

    def __init__(self, date_ms: int, monotonic: float) -> None:
        super().__init__(date_ms - round(monotonic * 1000))
        self._now = monotonic
        self.jump_ms = 0

    def time_ms(self) -> int:
        return super().time_ms() + self.jump_ms


class World:
    """One bus in memory over several boots, and what must be in it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.inner = MemoryFiles()
        self.boot = 0
        self.jumps = 0
        self.limit_ms = rng.choice((3_600_000, DAY_MS // 2, 2 * DAY_MS))
        self.rows: dict[str, list[tuple[int, bytes, bytes | None]]] = {"kept": [], "aged": [], "compacted": []}
        """What was sent to each topic, by offset: date, key, value."""
        self.must_from = 0
        """Of `aged`: from this offset on everything is there."""
        self.looks: list[tuple[int, int]] = []
        """Dates of maintenance, and what `compacted` had then."""
        self.committed: dict[TopicPartition, int] = {}
        self.sequence = -1
        self.offsets: list[int] = []
        """Of the name's sequences in `kept`."""
        self.other: Bus | None = None
        self.date_ms = LONG_AGO_MS
        self.start()
        self.bus.create_topic("kept", segment_bytes=300, segment_ms=3_600_000)
        self.bus.create_topic("aged", segment_bytes=300, segment_ms=3_600_000, retention_ms=self.limit_ms)
        self.bus.create_topic(
            "compacted", segment_bytes=300, cleanup="compact", delete_retention_ms=DELETE_RETENTION_MS
        )
        self.bus.create_topic("shared", partitions=2)
        self.join()

    def start(self) -> None:
        """The machine starts."""
        self.boot += 1
        self.clock = JumpingClock(self.date_ms, self.rng.choice((1.0, 30.0, 5_000.0, 5_000_000.0)))
        self.bus = self.open()

    def open(self) -> Bus:
        files = FaultyFiles(self.inner, boot=self.boot)
        return open_over(files, clock=self.clock, sync=self.rng.choice(("never", "interval")), lock_timeout=PATIENCE)

    # -- the group: a member that lives, one that dies

    def member(self, bus: Bus, name: str) -> Consumer:
        return bus.consumer(
            "shared", group="g", member=name, member_timeout_ms=TIMEOUT_S * 1000, auto_commit=False,
            max_poll_interval_ms=HANGS_S * 1000,
        )  # fmt: skip

    def join(self) -> None:
        """Two members, each with a partition; and then the other one dies."""
        self.mine = self.member(self.bus, "a")
        self.other = self.open()
        theirs = self.member(self.other, "b")
        for _ in range(20):
            self.mine.poll(0)
            theirs.poll(0)
            self.clock.advance(0.2)
            if len(self.mine.assignment()) == len(theirs.assignment()) == 1:
                break
        (self.partition,) = self.mine.assignment()
        self.alone = False
        """Whether the other's time is over."""
        self.dead_s: float | None = None
        """For how long it is dead, as far as this boot knows."""

    def die(self) -> None:
        """The other member's process ends, and somebody sees it."""
        if self.other is not None:
            kill(self.other)
            self.other = None
            self.look_at_the_group(0.2)
            self.dead_s = 0.0

    def look_at_the_group(self, seconds: float) -> None:
        """Time passes, in steps that no member would call hanging; who lives keeps asking for messages."""
        while seconds > 0:
            step = min(seconds, 20.0)
            self.clock.advance(step)
            seconds -= step
            if self.dead_s is not None:
                self.dead_s += step
            self.mine.poll(0)
            self.mine.poll(0)
            self.check_the_group()

    def check_the_group(self) -> None:
        assert self.partition in self.mine.assignment(), "who lives has lost what it had"
        if self.dead_s is None or self.alone:
            return
        count = len(self.mine.assignment())
        assert count == 1 or self.dead_s >= TIMEOUT_S, f"the dead one's time was over after {self.dead_s} s"
        # A poll sees it, the next one has it; whatever a virtual clock moved by itself is a moment.
        assert count == 2 or self.dead_s < TIMEOUT_S + 25, f"the dead one keeps its partition after {self.dead_s} s"
        self.alone = count == 2

    def commit(self) -> None:
        with self.bus.producer() as producer:
            end = producer.send("shared", b"x", partition=self.partition.partition).result(PATIENCE).offset + 1
        self.mine.commit({self.partition: end})
        self.committed[self.partition] = end

    # -- the clocks

    def set_the_date(self) -> None:
        self.jumps += 1
        self.clock.jump_ms += self.rng.choice((-DAY_MS, DAY_MS))

    def start_anew(self) -> None:
        """The machine ends, cleanly or not (nothing is lost: that is another test), and starts with another date."""
        self.jumps += 1
        self.die()
        if self.rng.random() < 0.5:
            kill(self.bus)
        else:
            # The static member does not leave: its process is killed, and the bus is closed by another.
            kill(self.bus)
            self.open().close()
        self.date_ms = self.clock.time_ms() + self.rng.choice((1_000, 60_000, DAY_MS, -DAY_MS))
        self.start()
        self.mine = self.member(self.bus, "a")
        if self.dead_s is not None and not self.alone:
            self.dead_s = 0.0  # nobody knows for how long the machine was off: it has its whole time again
        self.mine.poll(0)
        self.check_the_group()

    # -- the logs

    def send(self) -> None:
        topic = self.rng.choice(list(self.rows))
        with self.bus.producer() as producer:
            for _ in range(self.rng.randint(1, 5)):
                key = b"k%d" % self.rng.randrange(6)
                value = None if topic == "compacted" and self.rng.random() < 0.3 else b"%d" % self.clock.time_ms() * 3
                found = producer.send(topic, value, key=key).result(PATIENCE)
                assert found.offset == len(self.rows[topic])
                self.rows[topic].append((found.timestamp, key, value))

    def name(self) -> None:
        """The next sequence of a name, and some that were stored before."""
        with self.bus.producer(name="n") as producer:
            last = producer.last_sequence("kept", 0)
            assert last == (None if self.sequence < 0 else self.sequence), (
                f"the name's last was {self.sequence}: {last}"
            )
            for sequence in range(max(self.sequence - 2, 0), self.sequence + 2):
                value = b"sequence %d" % sequence
                found = producer.send("kept", value, partition=0, key=b"n", sequence=sequence).result(PATIENCE)
                if sequence <= self.sequence:
                    assert found.offset == self.offsets[sequence], f"sequence {sequence} was stored again"
                else:
                    assert found.offset == len(self.rows["kept"])
                    self.offsets.append(found.offset)
                    self.rows["kept"].append((found.timestamp, b"n", value))
                    self.sequence = sequence

    def maintain(self) -> None:
        now = self.clock.time_ms()
        self.looks.append((now, len(self.rows["compacted"])))
        self.bus.maintain()
        aged = self.rows["aged"]
        while self.must_from < len(aged) and aged[self.must_from][0] < now - self.limit_ms:
            self.must_from += 1

    def check(self) -> None:
        """What is there."""
        for topic, rows in self.rows.items():
            found = {
                message.offset: (message.timestamp, message.key, message.value)
                for message in self.bus.topic(topic).read()
            }
            assert all(rows[offset] == row for offset, row in found.items())
            assert self.bus.topic(topic).end_offsets() == {TopicPartition(topic, 0): len(rows)}
            if topic == "kept":
                must = set(range(len(rows)))
            elif topic == "aged":
                must = set(range(self.must_from, len(rows)))
            else:
                must = self._must_of_compacted(rows)
            gone = must - found.keys()
            assert not gone, f"{topic}: {sorted(gone)} of {len(rows)} is gone too early"
        if self.committed:
            assert self.bus.group("g").committed == self.committed

    def _must_of_compacted(self, rows: list[tuple[int, bytes, bytes | None]]) -> set[int]:
        must = set()
        for offset in {key: offset for offset, (_, key, _) in enumerate(rows)}.values():
            dates = [date for date, count in self.looks if count > offset]
            # A tombstone's time begins at one of these dates.
            if rows[offset][2] is not None or not dates or max(dates) - min(dates) < DELETE_RETENTION_MS:
                must.add(offset)
        return must


def case(seed: int) -> int:
    """One bus among jumping clocks; how often they jumped."""
    rng = random.Random(f"clocks {seed}")
    world = World(rng)
    ways = (
        world.send, world.send, world.send, world.name, world.name, world.maintain, world.maintain, world.commit,
        world.set_the_date, world.set_the_date, world.start_anew, world.die,
        lambda: world.look_at_the_group(rng.choice((0.5, 5.0, 30.0, 60.0))),
        lambda: world.look_at_the_group(rng.choice((0.5, 5.0, 30.0))),
    )  # fmt: skip
    done: list[str] = []
    try:
        for _ in range(STEPS):
            way = rng.choice(ways)
            done.append(getattr(way, "__name__", "?"))
            way()
            world.check()
        world.bus.close()
    except BaseException as error:
        raise AssertionError(f"seed {seed}, after {done}: {error!r}") from error
    return world.jumps


@pytest.mark.parametrize("monotonic", [1.0, 50_000_000.0])
def test_a_member_that_died_before_the_machine_was_started_anew_has_its_whole_time(monotonic: float) -> None:
    """By the time of the old clock it would be gone at once, or keep its partition for weeks."""
    world = World(random.Random(0))
    assert 1_000.0 < world.clock.monotonic() < 10_000_000.0
    world.die()
    assert any(found.dead for found in GroupFiles.of(world.bus._engine, "g").load().members.values()), "nobody saw it"
    kill(world.bus)
    world.boot += 1
    world.clock = JumpingClock(LONG_AGO_MS, monotonic)
    world.bus = world.open()
    world.mine = world.member(world.bus, "a")
    world.dead_s = 0.0
    world.look_at_the_group(TIMEOUT_S - 1)
    assert not world.alone
    world.look_at_the_group(30)
    assert world.alone
    world.bus.close()


@pytest.mark.parametrize("seed", range(SEED, SEED + 24))
def test_clocks_that_jump_make_nothing_expire_early(seed: int) -> None:
    assert case(seed)
