"""Fault 14 of the promises: histories under a deterministic scheduler.

Three actors, each a process with a bus of its own over one directory in memory, run the real code; at every call of the
files seam and every store to a mapped word another one may take over, up to three times where nobody has to wait, and
one of them may be killed. Each history has a check of what must hold whatever the order was. No background thread runs,
and no time passes but where an actor says so, so a seed is the whole of a run.
"""

from __future__ import annotations

import logging
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from streamlite import Bus, Consumer, Message, Topic, TopicPartition, errors
from streamlite.clock import Clock
from streamlite.engine import Engine
from streamlite.files.memory import MemoryFiles
from tests.crash.faulty import Call, clone
from tests.crash.scheduler import Choose, Run, ScheduledFifo, ScheduledFiles, Scheduler

SEED = int(os.environ.get("STREAMLITE_SEED", "0"))
SCHEDULES = int(os.environ.get("STREAMLITE_HISTORIES", "200"))
"""Of each history."""
PREEMPTIONS = 3
LOOKS = ("load", "read", "size", "list", "read_file")
"""Calls that change nothing: nobody is preempted before one, since that is as good as before the next that does."""


def _is_point(call: Call) -> bool:
    return call.name not in LOOKS


class StandingClock(Clock):
    """Time that moves where an actor moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def time_ms(self) -> int:
        return 1_700_000_000_000 + round(self.now * 1000)

    def monotonic(self) -> float:
        return self.now

    def wait(self, condition: Any, timeout: float | None) -> bool:
        raise AssertionError("an actor asks and does not wait")


# -- histories ---------------------------------------------------------------------------------------------------------


class History(ABC):
    """What three actors do at the same time, and what must hold of it."""

    may_be_killed: Sequence[str] = ()
    """Actors."""

    def __init__(self, clock: StandingClock, draw: random.Random) -> None:
        self.clock = clock
        self.draw = draw
        self.killed = ""

    @staticmethod
    @abstractmethod
    def prepare(bus: Bus) -> None:
        """What is there before."""

    @abstractmethod
    def actors(self, buses: Sequence[Bus]) -> dict[str, Callable[[], object]]:
        """By name, in the order of their buses."""

    @abstractmethod
    def check(self, bus: Bus) -> None:
        """What must hold when all have ended. `bus` was opened afterwards."""

    def wait_a_moment(self) -> None:
        """So that who looks now and then looks again."""
        self.clock.now += 0.2


class Sent:
    """What was sent to each partition, and what was acknowledged."""

    def __init__(self) -> None:
        self.intents: dict[tuple[str, int], list[bytes]] = {}
        """By producer and partition, in order."""
        self.acked: dict[bytes, int] = {}

    def send(self, producer: Any, who: str, topic: str, partition: int, value: bytes) -> None:
        self.intents.setdefault((who, partition), []).append(value)
        sent = producer.send(topic, value, partition=partition, key=value)
        self.acked[value] = sent.result(timeout=20.0).offset

    def check(self, found: dict[int, list[Message]]) -> None:
        """Contiguous offsets, nothing lost, nothing invented, nothing twice, each producer's messages in order."""
        for partition, messages in found.items():
            assert [message.offset for message in messages] == list(range(len(messages)))
            values = [message.value for message in messages]
            assert len(set(values)) == len(values), values
            intents = {who: sent for (who, place), sent in self.intents.items() if place == partition}
            assert set(values) <= {value for sent in intents.values() for value in sent}
            for sent in intents.values():
                there = [value for value in values if value in sent]
                assert there == sent[: len(there)], (there, sent)
            for value in (value for sent in intents.values() for value in sent):
                if value in self.acked:
                    assert messages[self.acked[value]].value == value


def _read(bus: Bus, topic: str) -> dict[int, list[Message]]:
    return {at: list(bus.topic(topic).read(partition=at)) for at in range(bus.topic(topic).partitions)}


class ProducersAndConsumer(History):
    """Two producers send to two partitions, one message after the other; a member of a group reads and commits."""

    may_be_killed = ("producer 0", "producer 1", "consumer")

    def __init__(self, clock: StandingClock, draw: random.Random) -> None:
        super().__init__(clock, draw)
        self.sent = Sent()
        self.delivered: dict[TopicPartition, list[int]] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.trying: dict[TopicPartition, int] = {}

    @staticmethod
    def prepare(bus: Bus) -> None:
        bus.create_topic("t", partitions=2, segment_bytes=400)
        with bus.consumer("t", group="g"):
            pass

    def actors(self, buses: Sequence[Bus]) -> dict[str, Callable[[], object]]:
        return {
            "producer 0": lambda: self.produce(buses[0], 0),
            "producer 1": lambda: self.produce(buses[1], 1),
            "consumer": lambda: self.consume(buses[2]),
        }

    def produce(self, bus: Bus, number: int) -> None:
        with bus.producer() as producer:
            for at in range(4):
                self.sent.send(producer, f"{number}", "t", (at + number) % 2, b"%d-%d" % (number, at) * 20)

    def consume(self, bus: Bus) -> None:
        with bus.consumer("t", group="g", auto_commit=False) as consumer:
            for _ in range(3):
                for message in consumer.poll():
                    self.delivered.setdefault(TopicPartition("t", message.partition), []).append(message.offset)
                self.trying = {tp: offsets[-1] + 1 for tp, offsets in self.delivered.items()}
                consumer.commit()
                self.committed = dict(self.trying)
                self.wait_a_moment()

    def check(self, bus: Bus) -> None:
        found = _read(bus, "t")
        self.sent.check(found)
        for tp, offsets in self.delivered.items():
            assert offsets == list(range(len(offsets)))
            assert len(offsets) <= len(found[tp.partition])
        try:
            committed = dict(bus.group("g").committed)
        except errors.UnknownGroupError:
            committed = {}
        assert committed in (self.committed, self.trying)


class Members(History):
    """Three members come, read, commit and go."""

    may_be_killed = ("member 0", "member 1", "member 2")

    def __init__(self, clock: StandingClock, draw: random.Random) -> None:
        super().__init__(clock, draw)
        self.owners: dict[TopicPartition, str] = {}
        self.delivered: dict[TopicPartition, set[int]] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.tries: dict[str, dict[TopicPartition, int]] = {}

    @staticmethod
    def prepare(bus: Bus) -> None:
        bus.create_topic("t", partitions=3)
        with bus.producer() as producer:
            for partition in range(3):
                producer.send_many("t", [b"%d" % at for at in range(6)], partition=partition).result(timeout=20.0)

    def actors(self, buses: Sequence[Bus]) -> dict[str, Callable[[], object]]:
        return {f"member {at}": (lambda at=at: self.take_part(buses[at], f"member {at}")) for at in range(3)}  # type: ignore[misc]

    def take_part(self, bus: Bus, name: str) -> None:
        def assigned(consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
            for tp in partitions:
                before = self.owners.get(tp)
                assert before in (None, name, self.killed), f"{name} got {tp}, which {before} has"
                self.owners[tp] = name

        def revoked(consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
            for tp in partitions:
                assert self.owners.get(tp) == name
                del self.owners[tp]

        def lost(consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
            raise AssertionError(f"{name} lost {partitions}, and nobody was away for long")

        consumer = bus.consumer(
            "t", group="g", auto_commit=False, max_poll_messages=2, on_assign=assigned, on_revoke=revoked, on_lost=lost
        )
        for _ in range(3):
            self.read(consumer, name)
            self.wait_a_moment()
        consumer.close()
        assert name not in self.owners.values()

    def read(self, consumer: Consumer, name: str) -> None:
        reached: dict[TopicPartition, int] = {}
        for message in consumer.poll():
            tp = TopicPartition("t", message.partition)
            assert self.owners.get(tp) == name
            self.delivered.setdefault(tp, set()).add(message.offset)
            reached[tp] = message.offset + 1
        if reached and self.draw.random() < 0.7:
            self.tries[name] = reached
            with suppress(errors.FencedError):
                consumer.commit(reached)
                self.committed |= reached
            del self.tries[name]

    def check(self, bus: Bus) -> None:
        try:
            found = dict(bus.group("g").committed)
        except errors.UnknownGroupError:
            found = {}
        [tried] = [*self.tries.values(), {}][:1]
        assert found in (self.committed, self.committed | tried), (found, self.committed, tried)
        for tp, offset in found.items():
            assert set(range(offset)) <= self.delivered[tp]
        with bus.consumer("t", group="g", auto_commit=False) as consumer:
            left = [message for _ in range(3) for message in consumer.poll()]
        for partition in range(3):
            tp = TopicPartition("t", partition)
            offsets = [message.offset for message in left if message.partition == partition]
            assert offsets == list(range(found.get(tp, 0), 6)), (tp, offsets, found)


class Transactions(History):
    """Two producers' transactions over three partitions, and one who reads meanwhile."""

    may_be_killed = ("producer 0", "producer 1")
    PLACES = (("t", 0), ("t", 1), ("u", 0))

    def __init__(self, clock: StandingClock, draw: random.Random) -> None:
        super().__init__(clock, draw)
        self.begun: list[bytes] = []
        self.done: list[bytes] = []
        self.seen: list[dict[tuple[str, int], list[bytes]]] = []

    @staticmethod
    def prepare(bus: Bus) -> None:
        bus.create_topic("t", partitions=2, segment_bytes=600)
        bus.create_topic("u")
        with bus.producer() as producer, producer.transaction() as tx:
            tx.send("u", b"first")

    def actors(self, buses: Sequence[Bus]) -> dict[str, Callable[[], object]]:
        return {
            "producer 0": lambda: self.produce(buses[0], 0),
            "producer 1": lambda: self.produce(buses[1], 1),
            "reader": lambda: self.watch(buses[2]),
        }

    def produce(self, bus: Bus, number: int) -> None:
        with bus.producer() as producer:
            for at in range(2):
                value = b"%d-%d" % (number, at)
                self.begun.append(value)
                with producer.transaction() as tx:
                    for topic, partition in self.PLACES:
                        tx.send_many(topic, [value, value], partition=partition)
                self.done.append(value)
            producer.send("u", b"plain %d" % number).result(timeout=20.0)

    def look(self, bus: Bus) -> dict[tuple[str, int], list[bytes]]:
        return {
            (topic, partition): [message.value for message in bus.topic(topic).read(partition=partition)]
            for topic, partition in self.PLACES
        }

    def watch(self, bus: Bus) -> None:
        for _ in range(3):
            done = list(self.done)
            found = self.look(bus)
            for place, values in found.items():
                assert all(values.count(value) == 2 for value in done), (place, values, done)
            self.seen.append(found)

    def check(self, bus: Bus) -> None:
        last = self.look(bus)
        for earlier, later in zip([*self.seen], [*self.seen[1:], last], strict=True):
            for place, values in earlier.items():
                assert later[place][: len(values)] == values  # nothing that was seen goes, or gets something before it
        for found in [*self.seen, last]:
            for values in found.values():
                for value in self.begun:
                    at = [place for place, one in enumerate(values) if one == value]
                    assert len(at) in (0, 2), (value, values)
                    assert not at or at[1] == at[0] + 1
        for value in self.begun:
            there = {value in values for values in last.values()}
            assert len(there) == 1, (value, last)
            assert there == {True} or value not in self.done


class ExactlyOnce(History):
    """Two workers of a group copy a topic in transactions, while somebody adds to it."""

    may_be_killed = ("worker 0", "worker 1")

    def __init__(self, clock: StandingClock, draw: random.Random) -> None:
        super().__init__(clock, draw)
        self.sent = Sent()

    @staticmethod
    def prepare(bus: Bus) -> None:
        bus.create_topic("in", partitions=2)
        bus.create_topic("out", partitions=2)
        with bus.producer() as producer:
            for partition in range(2):
                values = [b"before %d-%d" % (partition, at) for at in range(3)]
                producer.send_many("in", values, partition=partition).result(timeout=20.0)

    def actors(self, buses: Sequence[Bus]) -> dict[str, Callable[[], object]]:
        return {
            "worker 0": lambda: self.work(buses[0], 3),
            "worker 1": lambda: self.work(buses[1], 3),
            "producer": lambda: self.produce(buses[2]),
        }

    def produce(self, bus: Bus) -> None:
        with bus.producer() as producer:
            for at in range(4):
                producer.send("in", b"%d" % at, partition=at % 2).result(timeout=20.0)

    def work(self, bus: Bus, rounds: int) -> None:
        with (
            bus.producer() as producer,
            bus.consumer("in", group="g", auto_commit=False, max_poll_messages=2) as consumer,
        ):
            for _ in range(rounds):
                with suppress(errors.FencedError), producer.transaction(consumer) as tx:
                    for message in consumer.poll():
                        tx.send("out", message.value, partition=message.partition)
                self.wait_a_moment()

    def check(self, bus: Bus) -> None:
        self.work(bus, 8)
        for partition, messages in _read(bus, "in").items():
            copies = [message.value for message in bus.topic("out").read(partition=partition)]
            assert copies == [message.value for message in messages], (partition, copies)


class Names(History):
    """Three who want the same name, each with the same messages to store."""

    may_be_killed = ("ingest 0", "ingest 1", "ingest 2")
    COUNT = 5

    @staticmethod
    def prepare(bus: Bus) -> None:
        bus.create_topic("t", segment_bytes=400)
        bus.producer(name="n").close()

    def actors(self, buses: Sequence[Bus]) -> dict[str, Callable[[], object]]:
        return {f"ingest {at}": (lambda at=at: self.ingest(buses[at], again=at != 1)) for at in range(3)}  # type: ignore[misc]

    def ingest(self, bus: Bus, *, again: bool) -> bool:
        try:
            with bus.producer(name="n") as producer:
                last = producer.last_sequence("t", 0)
                first = 0 if again or last is None else last + 1
                for at in range(first, self.COUNT):
                    sent = producer.send("t", b"%d" % at * 30, partition=0, sequence=at)
                    assert sent.result(timeout=20.0).offset == at
        except errors.FencedError:
            return False
        return True

    def check(self, bus: Bus) -> None:
        there = [message.value for message in bus.topic("t").read()]
        assert there == [b"%d" % at * 30 for at in range(len(there))]
        assert len(there) == self.COUNT or self.killed
        assert self.ingest(bus, again=True)
        assert [message.value for message in bus.topic("t").read()] == [b"%d" % at * 30 for at in range(self.COUNT)]


class Compaction(History):
    """Compaction beside a writer and a reader."""

    may_be_killed = ("writer", "compactor")

    def __init__(self, clock: StandingClock, draw: random.Random) -> None:
        super().__init__(clock, draw)
        self.sent = [(b"k%d" % (at % 3), b"%d" % at * 40) for at in range(8)]
        self.acked = len(self.sent)

    @staticmethod
    def prepare(bus: Bus) -> None:
        bus.create_topic("t", cleanup="compact", segment_bytes=400)
        with bus.producer() as producer:
            for at in range(8):
                producer.send("t", b"%d" % at * 40, key=b"k%d" % (at % 3)).result(timeout=20.0)

    def actors(self, buses: Sequence[Bus]) -> dict[str, Callable[[], object]]:
        return {
            "compactor": buses[0].maintain,
            "writer": lambda: self.write(buses[1]),
            "reader": lambda: self.read(buses[2]),
        }

    def write(self, bus: Bus) -> None:
        with bus.producer() as producer:
            for at in range(8, 12):
                key, value = b"k%d" % (at % 2), b"%d" % at * 40
                self.sent.append((key, value))
                assert producer.send("t", value, key=key).result(timeout=20.0).offset == at
                self.acked = at + 1

    def read(self, bus: Bus) -> None:
        for _ in range(3):
            least = self.acked
            self.compare(list(bus.topic("t").read()), least)

    def compare(self, found: list[Message], least: int) -> None:
        """Each message is what was sent with its offset, in order, and of each key the last of those is there."""
        offsets = [message.offset for message in found]
        assert offsets == sorted(set(offsets))
        assert all((message.key, message.value) == self.sent[message.offset] for message in found)
        end = max(least, max(offsets, default=-1) + 1)
        last = {key: at for at, (key, _) in enumerate(self.sent[:end])}
        # What was sent since the reading began may have taken the place of one, without being among what is read.
        since = {key for key, _ in self.sent[end:]}
        assert {at for key, at in last.items() if key not in since} <= set(offsets), (last, offsets)

    def check(self, bus: Bus) -> None:
        self.compare(list(bus.topic("t").read()), self.acked)
        bus.maintain()
        found = list(bus.topic("t").read())
        self.compare(found, self.acked)
        assert len(found) == 3


class Deletion(History):
    """A topic is deleted and created anew beside one who sends by its name, and one who sends to the old topic."""

    may_be_killed = ("deleter", "by name", "to the old")

    def __init__(self, clock: StandingClock, draw: random.Random) -> None:
        super().__init__(clock, draw)
        self.old: list[bytes] = []
        self.deleted = False
        self.created = False
        self.after: list[bytes] = []
        self.acked: list[bytes] = []

    @staticmethod
    def prepare(bus: Bus) -> None:
        bus.create_topic("t")
        with bus.producer() as producer:
            producer.send("t", b"at first").result(timeout=20.0)

    def actors(self, buses: Sequence[Bus]) -> dict[str, Callable[[], object]]:
        return {
            "deleter": lambda: self.delete(buses[0]),
            "by name": lambda: self.send(buses[1]),
            "to the old": partial(self.send_old, buses[2], buses[2].topic("t")),
        }

    def delete(self, bus: Bus) -> None:
        bus.delete_topic("t")
        self.deleted = True
        bus.create_topic("t")
        self.created = True

    def send(self, bus: Bus) -> None:
        with bus.producer() as producer:
            for at in range(4):
                value, created = b"by name %d" % at, self.created
                try:
                    producer.send("t", value).result(timeout=20.0)
                except errors.UnknownTopicError:
                    assert not created
                    continue
                if created:
                    self.after.append(value)
                self.acked.append(value)

    def send_old(self, bus: Bus, topic: Topic) -> None:
        with bus.producer() as producer:
            for at in range(4):
                value, deleted = b"old %d" % at, self.deleted
                try:
                    producer.send(topic, value).result(timeout=20.0)
                except errors.UnknownTopicError:
                    continue
                assert not deleted
                self.acked.append(value)

    def check(self, bus: Bus) -> None:
        if "t" not in bus.topics():
            assert self.killed == "deleter"
            return
        found = [message.value for message in bus.topic("t").read()]
        assert len(set(found)) == len(found)
        if found[:1] == [b"at first"]:
            assert self.killed == "deleter"
            assert set(self.acked) <= set(found)
            return
        assert not any(value.startswith(b"old") for value in found if value is not None), found
        assert set(self.after) <= set(found) <= {b"by name %d" % at for at in range(4)}
        assert found == sorted(found)


HISTORIES: list[type[History]] = [
    ProducersAndConsumer, Members, Transactions, ExactlyOnce, Names, Compaction, Deletion,
]  # fmt: skip


# -- running them ------------------------------------------------------------------------------------------------------

_prepared: dict[type[History], MemoryFiles] = {}
POINTS: dict[type[History], int] = {
    ProducersAndConsumer: 260, Members: 260, Transactions: 190, ExactlyOnce: 340, Names: 160, Compaction: 160,
    Deletion: 80,
}  # fmt: skip
"""About how many a run has: where preemptions and kills are drawn."""


def _open(files: Any, clock: Clock) -> Bus:
    engine = Engine.open(files, sync="never", sync_interval_s=1, read_only=False, lock_timeout=30, clock=clock)
    engine.maintenance._begun = True
    return Bus(engine)


@contextmanager
def alone(scheduler: Scheduler, clock: StandingClock, seed: int) -> Iterator[None]:
    """No thread of streamlite's own runs, no time passes, nothing is random, and who would sleep lets others go on."""

    def sleep(seconds: float) -> None:
        scheduler.give_way()

    def wait(outcome: Any, timeout: float | None) -> bool:
        scheduler.give_way()
        return bool(outcome.done)

    time = SimpleNamespace(monotonic=clock.monotonic, sleep=sleep, time=lambda: clock.time_ms() / 1000)
    draw = random.Random(seed)
    with ExitStack() as stack:
        for module in ("locks", "producer", "outbox", "direct"):
            stack.enter_context(mock.patch(f"streamlite.{module}.time", time))
        stack.enter_context(mock.patch("streamlite.delivery.Outcome.wait", wait))
        stack.enter_context(mock.patch("streamlite.worker.Worker.wake"))
        system = SimpleNamespace(urandom=draw.randbytes, getpid=os.getpid)
        stack.enter_context(mock.patch("streamlite.files.os", system))
        yield


def _chooser(draw: random.Random, points: int) -> Choose:
    """Preempts at drawn points, wherever they fall, and draws who runs where the one that ran cannot go on."""
    at = {draw.randrange(points) for _ in range(PREEMPTIONS)}
    state = {"count": 0, "last": ""}

    def choose(options: Sequence[str]) -> int:
        state["count"] += 1
        goes_on = options[0] == state["last"]
        picked = 0
        if not goes_on:
            picked = draw.randrange(len(options))
        elif state["count"] in at:
            picked = draw.randrange(1, len(options))
        state["last"] = options[picked]
        return picked

    return choose


def run(kind: type[History], seed: int) -> Run:
    """One history under one schedule."""
    draw = random.Random(seed)
    clock = StandingClock()
    scheduler = Scheduler(_is_point)
    history = kind(clock, draw)
    if kind not in _prepared:
        with alone(scheduler, clock, 0), _open(_prepared.setdefault(kind, MemoryFiles()), clock) as bus:
            kind.prepare(bus)
    with alone(scheduler, clock, seed):
        inner = clone(_prepared[kind])
        fifos: dict[str, ScheduledFifo] = {}
        seams = [ScheduledFiles(scheduler, inner, fifos) for _ in range(3)]
        buses = [_open(files, clock) for files in seams]
        actors = history.actors(buses)
        points = POINTS[kind]
        if history.may_be_killed and draw.random() < 0.5:
            history.killed = draw.choice(history.may_be_killed)
            seam = seams[list(actors).index(history.killed)]
            scheduler.kills = {history.killed: (draw.randrange(1, points // 2), seam)}
        found = scheduler.run(actors, _chooser(draw, points), PREEMPTIONS)
        assert not found.stuck, found.stuck
        _finish(history, buses, inner, clock)
    return found


def _finish(history: History, buses: Sequence[Bus], inner: MemoryFiles, clock: StandingClock) -> None:
    """Who lived closes; somebody else looks, and once more after a clean close."""
    history.wait_a_moment()
    with _open(inner, clock) as bus:
        history.check(bus)
    for bus in buses:
        bus._engine.abandon()


def case(seed: int) -> int:
    """One history under one schedule: 1."""
    kind = HISTORIES[seed % len(HISTORIES)]
    logging.disable(logging.CRITICAL)
    try:
        run(kind, seed)
    except BaseException:
        print(f"seed {seed}: {kind.__name__}")
        raise
    finally:
        logging.disable(logging.NOTSET)
    return 1


@pytest.mark.parametrize("number", range(len(HISTORIES)), ids=[kind.__name__ for kind in HISTORIES])
def test_whatever_the_order_a_history_keeps_the_promises(number: int) -> None:
    for at in range(SCHEDULES):
        case(SEED + number + at * len(HISTORIES))


@pytest.mark.parametrize("kind", HISTORIES, ids=lambda kind: kind.__name__)
def test_a_seed_is_the_whole_of_a_run(kind: type[History]) -> None:
    seeds = range(SEED, SEED + 3)
    assert [run(kind, seed).trace for seed in seeds] == [run(kind, seed).trace for seed in seeds]
