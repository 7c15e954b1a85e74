"""Fault 1 of the promises: writers are killed (SIGKILL) at random, fifty times in one directory.

One to three processes at a time send in every way there is: one by one and in bulk, in batches that linger, under
names, in transactions, as read-process-write with a group's offsets; into topics of small segments, of which one is
compacted, one forgets, and maintenance runs among it. What each is about to do, and what it was told is done, it writes
to a pipe first and at once; from that the test knows after each kill what must be there and what may be (I1 to I4):

* I1 what was acknowledged is in the log, at the offset that was told, and what was once read stays what it is;
* I2 of each producer, per partition, a prefix of what it attempted is there, in order and without a hole;
* I3 nothing else is there, and nothing twice: a named producer's sequences are 0, 1, 2 ... over all its lives;
* I4 a transaction is there in all its partitions or in none, and the offsets with it; an output names each input below
  the committed offset once, and no other.

Kills are placed by events, not by time: by the process itself at its n-th write, sync or publication; after it has
told of k things that are done, and a few microseconds; or while it is just beginning.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import streamlite
from streamlite import Bus, Consumer, Delivery, Producer, Topic, TopicPartition, errors
from tests.crash.processes import PATIENCE, Forked, Link, children, readable, scratch, spin
from tests.integration.exactly_once import die_at

SEED = int(os.environ.get("STREAMLITE_SEED", "1"))
KILLS = 50
"""In one directory."""
REREAD = 10
"""After so many kills everything is read again, not only what is new."""

STRICT = ("t", "u", "out", "compacted")
"""Where no message may be missing: in `compacted` each has a key of its own."""
GROUPS = ("g", "h")
LATEST, FORGETTING = "latest", "forgetting"
"""Compacted, a few keys; and one that retention takes from."""


Place = tuple[str, int]
Entry = tuple[str | None, str]
"""A message's key and value."""


class Options(NamedTuple):
    """What a directory's processes are like."""

    sync: str
    compression: str
    partitions: int
    segment_bytes: int
    batch_bytes: int
    linger_ms: float
    processes: int
    memory: bool

    @classmethod
    def draw(cls, rng: random.Random) -> Options:
        return cls(
            sync=rng.choice(("never", "never", "interval", "always")),
            compression=rng.choice(("none", "none", "lz4", "zstd")),
            partitions=rng.randint(1, 4),
            segment_bytes=rng.choice((1_000, 4_000, 20_000, 1 << 27)),
            batch_bytes=rng.choice((500, 4_000, 1 << 20)),
            linger_ms=rng.choice((0, 1, 1, 5)),
            processes=rng.randint(1, 3),
            memory=rng.random() < 0.5,
        )


# -- the processes -----------------------------------------------------------------------------------------------------


class Writer:
    """One life: opens the bus, and does one thing after the other until it is killed."""

    def __init__(self, directory: Path, options: Options, life: int, slot: int, seed: int, dies_at: int) -> None:
        self.directory, self.options, self.life, self.slot = directory, options, life, slot
        self.rng = random.Random(seed)
        self.dies_at = dies_at

    def __call__(self, link: Link) -> None:
        self.tell = link.tell
        if self.dies_at:
            die_at(self.dies_at, self.rng)
        self.bus = streamlite.open(self.directory, sync=self.options.sync, sync_interval_ms=5)
        self.plain = self.bus.producer(batch_bytes=self.options.batch_bytes, linger_ms=self.options.linger_ms)
        self._named: Producer | None = None
        self._consumers: dict[str, Consumer] = {}
        self.next: dict[Place, int] = {}
        self.fresh: dict[Place, int] = {}
        ways = (self.send, self.send, self.one, self.many, self.name, self.name, self.transact, self.transact,
                self.process, self.process, self.commit, self.maintain)  # fmt: skip
        for self.number in itertools.count(1):
            self.rng.choice(ways)()

    # What it has is opened when it is used first.

    @property
    def named(self) -> Producer:
        if self._named is None:
            self._named = self.bus.producer(name=f"n{self.slot}", linger_ms=self.options.linger_ms)
        return self._named

    def consumer(self, group: str) -> Consumer:
        if group not in self._consumers:
            self._consumers[group] = self.bus.consumer("t", group=group, auto_commit=False)
        return self._consumers[group]

    # What is sent.

    def value(self, at: int) -> str:
        return f"{self.life}.{self.number}.{at} " + "x" * self.rng.choice((0, 10, 200))

    def place(self, topic: str) -> tuple[int | None, str | None, int]:
        """A partition or a key for the next message, and where that is; -1 where the producer chooses."""
        if topic == "compacted":
            return None, f"{self.life}.{self.number}.{self.rng.random()}", 0
        if topic == LATEST:
            return None, f"k{self.rng.randrange(4)}", 0
        if topic in ("u", FORGETTING):
            return 0, None, 0
        how = self.rng.random()
        if how < 0.4:
            number = self.rng.randrange(self.options.partitions)
            return number, None, number
        if how < 0.8:
            key = f"k{self.rng.randrange(20)}"
            return None, key, self.bus.topic(topic).partition_for(key.encode())
        return None, None, -1

    def topic(self) -> str:
        return self.rng.choice(("t", "t", "u", "compacted", LATEST, FORGETTING))

    def told(self, number: int, at: int, delivery: Delivery) -> None:
        found = delivery.result()
        self.tell("stored", number, [[at, found.partition, found.offset]])

    def send(self, count: int = 0) -> None:
        topic = self.topic()
        placed = [(self.value(at), *self.place(topic)) for at in range(count or self.rng.randint(1, 20))]
        self.tell("send", self.number, topic, [[where, key, value] for value, _, key, where in placed])
        for at, (value, partition, key, _) in enumerate(placed):
            delivery = self.plain.send(topic, value, partition=partition, key=key)
            delivery.add_done_callback(partial(self.told, self.number, at))
        if self.rng.random() < 0.5:
            self.plain.flush()

    def one(self) -> None:
        """And wait for it: the short way to the log."""
        self.plain.flush()
        topic = self.topic()
        value = self.value(0)
        partition, key, where = self.place(topic)
        self.tell("send", self.number, topic, [[where, key, value]])
        self.told(self.number, 0, self.plain.send(topic, value, partition=partition, key=key))

    def many(self) -> None:
        topic = self.topic()
        partition = 0 if topic in ("t", "u", FORGETTING) else None
        values = [self.value(at) for at in range(self.rng.randint(1, 60))]
        keys = [self.place(topic)[1] for _ in values] if partition is None else [None] * len(values)
        self.tell("send", self.number, topic, [[0, key, value] for value, key in zip(values, keys, strict=True)])
        sent = self.plain.send_many(topic, values, keys=keys if partition is None else None, partition=partition)
        found = sent.result()
        self.tell("stored", self.number, [[at, one.partition, one.offset] for at, one in enumerate(found)])

    def sequences(self, topic: str, partition: int, *, again: bool) -> list[int]:
        """The next few of this name; at the beginning of a life the last ones too, if they may be sent again."""
        place = topic, partition
        if place not in self.next:
            last = self.named.last_sequence(topic, partition)
            self.fresh[place] = 0 if last is None else last + 1
            self.next[place] = max(self.fresh[place] - self.rng.randint(0, 3), 0)
        first = self.next[place] if again else max(self.next[place], self.fresh[place])
        return list(range(first, first + self.rng.randint(1, 8)))

    def sequence_value(self, topic: str, partition: int, sequence: int) -> str:
        return f"n{self.slot}.{topic}.{partition}.{sequence} "

    def name(self) -> None:
        topic = self.rng.choice(("t", "t", "u"))
        partition = self.rng.randrange(self.options.partitions) if topic == "t" else 0
        sequences = self.sequences(topic, partition, again=True)
        values = [self.sequence_value(topic, partition, sequence) for sequence in sequences]
        self.tell("send", self.number, topic, [[partition, None, value] for value in values])
        for at, (value, sequence) in enumerate(zip(values, sequences, strict=True)):
            delivery = self.named.send(topic, value, partition=partition, sequence=sequence)
            delivery.add_done_callback(partial(self.told, self.number, at))
        self.next[topic, partition] = sequences[-1] + 1
        if self.rng.random() < 0.3:
            self.named.flush()

    def maintain(self) -> None:
        if self.rng.random() < 0.5:
            self.bus.sync()
        else:
            self.bus.maintain()
        self.tell("done", self.number)

    # What is done together.

    def transact(self) -> None:
        by_name = self.rng.random() < 0.4
        places = [("t", number) for number in range(self.options.partitions)] + [("u", 0)]
        chosen = self.rng.sample(places, self.rng.randint(1, len(places)))
        numbers = itertools.count()
        sends: list[tuple[str, int, str, int | None]] = []
        for topic, partition in chosen:
            if by_name:
                self.named.flush()
                sends += [
                    (topic, partition, self.sequence_value(topic, partition, sequence), sequence)
                    for sequence in self.sequences(topic, partition, again=False)
                ]
            else:
                sends += [(topic, partition, self.value(next(numbers)), None) for _ in range(self.rng.randint(1, 6))]
        abort = self.rng.random() < 0.15
        self.tell("transact", self.number, [[topic, where, value] for topic, where, value, _ in sends], None, {})
        with (self.named if by_name else self.plain).transaction() as tx:
            for topic, partition, value, sequence in sends:
                tx.send(topic, value, partition=partition, sequence=sequence)
            if abort:
                tx.abort()
        self.tell("undone" if abort else "done", self.number)
        if by_name and not abort:
            for topic, partition, _, sequence in sends:
                assert sequence is not None
                self.next[topic, partition] = sequence + 1

    def process(self) -> None:
        """Read, and write what was read to `out` together with the offsets."""
        consumer = self.consumer("g")
        found = consumer.poll(0, max_messages=self.rng.randint(1, 30))
        if not found:
            return
        offsets = _after(found)
        sends = [
            ("out", message.partition, f"{self.life}.{self.number}.{at} {message.partition}/{message.offset}")
            for at, message in enumerate(found)
        ]
        self.tell("transact", self.number, sends, "g", offsets)
        try:
            with self.plain.transaction() as tx:
                for topic, partition, value in sends:
                    tx.send(topic, value, partition=partition)
                tx.commit_offsets(consumer, {TopicPartition("t", int(at)): offset for at, offset in offsets.items()})
        except errors.FencedError:
            self.tell("undone", self.number)
        else:
            self.tell("done", self.number)

    def commit(self) -> None:
        consumer = self.consumer("h")
        found = consumer.poll(0, max_messages=self.rng.randint(1, 30))
        if not found:
            return
        offsets = _after(found)
        self.tell("transact", self.number, [], "h", offsets)
        try:
            consumer.commit({TopicPartition("t", int(at)): offset for at, offset in offsets.items()})
        except errors.FencedError:
            self.tell("undone", self.number)
        else:
            self.tell("done", self.number)


def _after(messages: Iterable[Any]) -> dict[str, int]:
    return {str(message.partition): message.offset + 1 for message in messages}


# -- the oracle --------------------------------------------------------------------------------------------------------


class Step:
    """A transaction, or a commit: all of it or nothing."""

    def __init__(self, sends: list[list[Any]], group: str | None, offsets: dict[str, int]) -> None:
        self.values = [value for _, _, value in sends]
        self.group = group
        self.offsets = {int(partition): offset for partition, offset in offsets.items()}
        self.done: bool | None = None
        """`None` while it is under way, and for ever if its process is killed then."""


class Life:
    """What one process attempted, and what it was told is done."""

    def __init__(self) -> None:
        self.dead = False
        self.told = 0
        self.sends: dict[int, tuple[str, list[list[Any]]]] = {}
        self.attempts: dict[Place, list[str]] = defaultdict(list)
        """By topic and partition, in order; under partition -1 where the producer chose it."""
        self.found: dict[tuple[Place, Place], int] = defaultdict(int)
        """By where it was found and attempted: how many of the attempts are found, or passed."""
        self.gaps: dict[Place, int] = defaultdict(int)
        """Up to which of the gaps its messages were looked at."""
        self.steps: dict[int, Step] = {}


class Oracle:
    """What must be in the directory, what may be, and what was found in it."""

    def __init__(self) -> None:
        self.lives: dict[int, Life] = {}
        self.log: dict[Place, dict[int, Entry]] = defaultdict(dict)
        self.ends: dict[Place, int] = defaultdict(int)
        self.gaps: dict[Place, int] = defaultdict(int)
        """How often retention was quicker than this reader."""
        self.there: set[str] = set()
        self.acknowledged: dict[Place, dict[int, Entry]] = defaultdict(dict)
        """What was not looked for since."""
        self.done: list[Step] = []
        """Likewise."""
        self.sequences: dict[tuple[int, str, int], int] = defaultdict(int)
        """By slot, topic and partition: the next one to be found."""
        self.intended: dict[tuple[int, str, int], int] = defaultdict(int)
        """Likewise: the next one to be sent."""
        self.commits: dict[str, list[Step]] = defaultdict(list)
        """Of each group, all that were begun."""
        self.committed: dict[str, dict[int, int]] = defaultdict(dict)
        self.inputs: set[tuple[int, int]] = set()
        """What `out` was made from."""

    # -- what the processes say

    def hear(self, number: int, lines: Iterable[list[Any]]) -> None:
        life = self.lives[number]
        for what, at, *rest in lines:
            if what == "send":
                topic, sent = life.sends[at] = rest[0], rest[1]
                for partition, _, value in sent:
                    self._intend(life, topic, partition, value)
            elif what == "transact":
                sends, group, offsets = rest
                life.steps[at] = Step(sends, group, offsets)
                if group is not None:
                    self.commits[group].append(life.steps[at])
                for topic, partition, value in sends:
                    if value[0] == "n":
                        self._intend(life, topic, partition, value)
            elif what == "stored":
                life.told += 1
                topic, sent = life.sends[at]
                for one, partition, offset in rest[0]:
                    _, key, value = sent[one]
                    self.acknowledged[topic, partition][offset] = key, value
            elif what in ("done", "undone"):
                life.told += 1
                if at in life.steps:
                    life.steps[at].done = what == "done"
                    if what == "done":
                        self.done.append(life.steps[at])

    def _intend(self, life: Life, topic: str, partition: int, value: str) -> None:
        if value[0] == "n":
            slot, _, _, sequence = value[1:].split(".")
            place = int(slot), topic, partition
            self.intended[place] = max(self.intended[place], int(sequence) + 1)
        else:
            life.attempts[topic, partition].append(value)

    # -- what the directory says

    def check(self, bus: Bus, hear: Callable[[], None], *, again: bool) -> None:
        """Compare. `hear` brings what the processes have said; what they had said before the reading must be there.

        `again`: read everything, not only what is new.
        """
        hear()
        acknowledged, self.acknowledged = self.acknowledged, defaultdict(dict)
        done, self.done = self.done, []
        committed = {group: _committed(bus, group) for group in GROUPS}
        read = []
        for name in bus.topics():
            topic = bus.topic(name)
            for tp, begin in topic.beginning_offsets().items():
                start, messages = _read(topic, tp, begin if again else max(self.ends[name, tp.partition], begin))
                read.append(((name, tp.partition), start, messages, topic.beginning_offsets()[tp]))
        hear()
        begins = {}
        for place, start, messages, begin in read:
            begins[place] = begin
            self._check_partition(place, start, messages, begin)
        for place, found in acknowledged.items():
            for offset, entry in found.items():
                self._check_acknowledged(place, begins[place], offset, entry)
        for step in done:
            missing = [value for value in step.values if value not in self.there]
            assert not missing, f"of a transaction that is done {missing} is missing"
        for group, offsets in committed.items():
            self._check_commits(group, offsets, [step for step in done if step.group == group])
        self._check_the_dead(committed)
        if all(life.dead for life in self.lives.values()):
            wanted = {(at, offset) for at, end in committed["g"].items() for offset in range(end)}
            assert self.inputs == wanted, f"out is not what was committed: {sorted(self.inputs ^ wanted)[:5]}"

    def _check_partition(self, place: Place, start: int, messages: list[Any], begin: int) -> None:
        topic, log, end = place[0], self.log[place], self.ends[place]
        expected = start
        self.gaps[place] += start > end
        assert topic not in STRICT or begin == 0, f"{place} begins at {begin}"
        for message in messages:
            offset, entry = message.offset, (_text(message.key), message.value.decode())
            if offset != expected and topic != LATEST:
                assert topic == FORGETTING, f"a hole in {place}: {offset} follows {expected - 1}"
                assert expected < offset <= begin, f"a hole in {place}: {offset} follows {expected - 1}"
                self.gaps[place] += 1
            expected = offset + 1
            if offset < end:
                assert log.get(offset) == entry, f"{place} {offset} was {log.get(offset)} and is {entry}"
            else:
                log[offset] = entry
                self._found(place, entry[1])
        assert expected >= end or topic == LATEST, f"{place} ended at {end} and ends at {expected}"
        self.ends[place] = max(end, expected)

    def _found(self, place: Place, value: str) -> None:
        if place[0] in STRICT:
            assert value not in self.there, f"{value} is in {place} for the second time"
            self.there.add(value)
        if value[0] == "n":
            self._found_sequence(place, value)
            return
        words = value.split(" ")
        life, step = self.lives[int(words[0].split(".")[0])], int(words[0].split(".")[1])
        if step in life.steps:
            assert value in life.steps[step].values, f"nobody sent {value}"
            assert life.steps[step].done is not False, f"{value} is of a transaction that was aborted"
            if place[0] == "out":
                partition, offset = map(int, words[1].split("/"))
                assert (partition, offset) not in self.inputs, f"{partition}/{offset} was processed twice"
                self.inputs.add((partition, offset))
            return
        gap = place[0] == LATEST or life.gaps[place] < self.gaps[place]
        life.gaps[place] = self.gaps[place]
        for attempted in (place, (place[0], -1)):
            attempts, at = life.attempts[attempted], life.found[place, attempted]
            hole = gap or attempted[1] == -1
            if (at < len(attempts) and attempts[at] == value) or (hole and value in attempts[at:]):
                life.found[place, attempted] = attempts.index(value, at) + 1
                return
        raise AssertionError(f"{value} in {place} was not sent, or comes after a hole, or out of order")

    def _found_sequence(self, place: Place, value: str) -> None:
        slot, topic, partition, sequence = value[1:].split(".")
        name = int(slot), topic, int(partition)
        assert name[1:] == place, f"{value} is in {place}"
        assert int(sequence) == self.sequences[name], f"{value} is there, and {self.sequences[name]} is next"
        self.sequences[name] += 1
        assert self.sequences[name] <= self.intended[name], f"nobody sent {value}"

    def _check_acknowledged(self, place: Place, begin: int, offset: int, entry: Entry) -> None:
        log = self.log[place]
        if log.get(offset) == entry:
            return
        where = f"{entry}, acknowledged at {place} {offset}"
        assert offset not in log, f"{where}: there is {log[offset]}"
        if place[0] == LATEST:
            later = any(key == entry[0] and at > offset for at, (key, _) in log.items())
            assert later, f"{where}, is gone, and no later one of its key is there"
        else:
            assert place[0] == FORGETTING, f"{where}, is not there"
            assert offset < begin, f"{where}, is not there"

    def _check_commits(self, group: str, offsets: dict[int, int], done: list[Step]) -> None:
        for partition, before in self.committed[group].items():
            assert offsets.get(partition, 0) >= before, f"{group} had committed {before} of {partition}: {offsets}"
        for step in done:
            for partition, offset in step.offsets.items():
                assert offsets.get(partition, 0) >= offset, f"{group} committed {step.offsets}: {offsets}"
        possible = {place for step in self.commits[group] if step.done is not False for place in step.offsets.items()}
        assert set(offsets.items()) <= possible, f"nobody committed {offsets} for {group}"
        self.committed[group] = offsets

    def _check_the_dead(self, committed: dict[str, dict[int, int]]) -> None:
        """What one had under way when it was killed is there as a whole, or not at all."""
        for life in self.lives.values():
            if not life.dead:
                continue
            for step in life.steps.values():
                if step.done is None:
                    self._check_whole(step, committed)
            life.steps = {number: step for number, step in life.steps.items() if step.done is not None}

    def _check_whole(self, step: Step, committed: dict[str, dict[int, int]]) -> None:
        there = {value in self.there for value in step.values}
        assert len(there) < 2, f"only a part of a transaction is there: {step.values}"
        if step.group is not None:
            found = committed[step.group]
            passed = [found.get(partition, 0) >= offset for partition, offset in step.offsets.items()]
            if not there:
                there = {all(passed)}
            if there == {True}:
                assert all(passed), f"a transaction is there without its offsets {step.offsets}: {found}"
            else:
                # Another member may have committed the same offset of a partition that it took over.
                others = [other.offsets for other in self.commits[step.group] if other is not step]
                seen = set(found.items()) & set(step.offsets.items())
                seen -= {place for other in others for place in other.items()}
                assert not seen, f"of the commit {step.offsets} only {seen} is there"


def _read(topic: Topic, tp: TopicPartition, start: int) -> tuple[int, list[Any]]:
    """All from there on; from where retention has left something, if it takes away meanwhile."""
    while True:
        try:
            return start, list(topic.read(partition=tp.partition, start=start))
        except errors.OffsetOutOfRangeError:
            begin = topic.beginning_offsets()[tp]
            if begin <= start:
                raise
            start = begin


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _committed(bus: Bus, group: str) -> dict[int, int]:
    try:
        return {tp.partition: offset for tp, offset in bus.group(group).committed.items()}
    except errors.UnknownGroupError:
        return {}


# -- the kills ---------------------------------------------------------------------------------------------------------


class Round:
    """One to three processes at work in the same directory, killed one after the other."""

    def __init__(self, directory: Path, options: Options, oracle: Oracle, rng: random.Random) -> None:
        self.oracle, self.rng = oracle, rng
        self.stack = ExitStack()
        start = self.stack.enter_context(children())
        self.running: dict[int, Forked] = {}
        self.targets: dict[int, int] = {}
        for slot in range(options.processes):
            life = len(oracle.lives) + 1
            oracle.lives[life] = Life()
            dies_at = int(200 ** rng.random()) if rng.random() < 0.4 else 0
            writer = Writer(directory, options, life, slot, rng.getrandbits(32), dies_at)
            self.running[life] = start(writer, f"life {life}")
            # Of what it tells that it is done; -1: whatever it is at, which may be to open the bus.
            self.targets[life] = -1 if rng.random() < 0.1 else int(80 ** rng.random()) - 1
            if dies_at:
                self.targets[life] = 1 << 60

    def hear(self) -> None:
        for life, child in self.running.items():
            self.oracle.hear(life, child.lines())

    def next_kill(self) -> None:
        """Until one of them is dead."""
        while True:
            self.hear()
            for life, child in self.running.items():
                if self.oracle.lives[life].told >= self.targets[life] or child.ended:
                    spin(self.rng)
                    self._bury(life, child)
                    return
            said = readable([child.fileno() for child in self.running.values()], PATIENCE)
            assert said, f"nobody says anything: {list(self.running)}"

    def _bury(self, life: int, child: Forked) -> None:
        child.kill()
        assert child.wait() == -signal.SIGKILL, f"life {life} ended with status {child.status}"
        self.oracle.hear(life, child.lines())
        self.oracle.lives[life].dead = True
        del self.running[life]


def case(seed: int) -> int:
    """One directory through its kills; how many there were."""
    rng = random.Random(f"kills {seed}")
    options = Options.draw(rng)
    oracle = Oracle()
    kills = 0
    with scratch(f"{seed}, {options}", memory=options.memory) as directory:
        with streamlite.open(directory / "bus") as bus:
            _create_topics(bus, options)
        while kills < KILLS:
            here = Round(directory / "bus", options, oracle, rng)
            with here.stack:
                while here.running:
                    here.next_kill()
                    kills += 1
                    with streamlite.open(directory / "bus", sync=options.sync) as bus:
                        oracle.check(bus, here.hear, again=not here.running and kills % REREAD < options.processes)
        with streamlite.open(directory / "bus") as bus:  # after a clean close
            oracle.check(bus, lambda: None, again=True)
            _check_names(bus, oracle)
    return kills


def _create_topics(bus: Bus, options: Options) -> None:
    common: dict[str, Any] = {"segment_bytes": options.segment_bytes, "compression": options.compression}
    for name in ("t", "out"):
        bus.create_topic(name, partitions=options.partitions, **common)
    bus.create_topic("u", **common)
    bus.create_topic("compacted", **common, cleanup="compact")
    bus.create_topic(LATEST, **common, cleanup="compact")
    bus.create_topic(FORGETTING, **common, retention_bytes=4 * min(options.segment_bytes, 10_000))


def _check_names(bus: Bus, oracle: Oracle) -> None:
    for (slot, topic, partition), following in oracle.sequences.items():
        with bus.producer(name=f"n{slot}") as producer:
            assert producer.last_sequence(topic, partition) == following - 1


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
def test_killed_writers_leave_what_was_acknowledged_and_nothing_else(seed: int) -> None:
    assert case(seed) >= KILLS
