"""What a test did to a bus, and what may be found of it after a stop: the oracle of the crash tests.

A `Story` runs steps against a bus one after the other and keeps, as a model, what each of them does. `moment()` says
how far it is: the steps that are done (acknowledged), and whether one more was begun. After a stop at that moment the
bus must hold what the done steps made, plus of the one that was under way: of a send a prefix in each partition, of
anything else all or nothing. That is I1 to I4 of the promises:

* I1 what was acknowledged is there: the end of a partition is not before what the done steps made.
* I2 what is there is a prefix of what was attempted: offset n holds the n-th value sent to that partition.
* I3 nothing else is there, and nothing twice.
* I4 what a group committed is what one of its commits says, in every partition of it; of a transaction everything is
  there or nothing, messages and offsets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from streamlite import Bus, Consumer, TopicPartition, errors

PATIENCE = 20.0


class Log:
    """One partition: every value sent to it in order, and between what bounds its beginning is."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes | None, bytes]] = []
        self.start_min = 0
        self.start_max = 0
        self.retained = False
        """Whether retention may take what is old at any time."""
        self.compacted_below = 0
        """Of messages before this offset only the last of each key must be there."""


class World:
    """Topics by name, each a list of partitions; what each group committed; settings that were altered."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Log]] = {}
        self.lives: dict[str, int] = {}
        self.commits: dict[str, dict[TopicPartition, int]] = {}


class Moment(NamedTuple):
    """How many steps were done, and how many begun."""

    done: int
    begun: int


class Transacted(NamedTuple):
    """What a transaction does: values by topic and partition, and the offsets of a group."""

    sent: dict[tuple[str, int], list[bytes]]
    group: str | None
    offsets: dict[TopicPartition, int]


class Story:
    """Runs steps against `bus`, which may be opened anew in between."""

    def __init__(self, bus: Bus | None = None) -> None:
        self.bus = bus
        self.worlds = [World()]
        """After 0, 1, 2 ... steps, done or begun."""
        self.done = 0
        self.steps: list[str] = []
        self.transactions: dict[int, Transacted] = {}
        """By the number of the world they make."""
        self.after_step: Callable[[], object] = lambda: None
        self.opener: Callable[[], Bus] = lambda: self.bus  # type: ignore[assignment,return-value]

    def moment(self) -> Moment:
        return Moment(self.done, len(self.worlds) - 1)

    def step(self, what: str, does: Callable[[World], object], do: Callable[[Bus], Any]) -> Any:
        """Do it, with what it does to the model noted down first."""
        world = copy.deepcopy(self.worlds[-1])
        does(world)
        self.steps.append(what)
        self.worlds.append(world)
        assert self.bus is not None
        result = do(self.bus)
        self.done += 1
        self.after_step()
        return result

    # -- the steps ----------------------------------------------------------------------------------------------------

    def create(self, topic: str, partitions: int = 1, **settings: Any) -> None:
        def does(world: World) -> None:
            world.topics[topic] = [Log() for _ in range(partitions)]
            for log in world.topics[topic]:
                log.retained = any(name.startswith("retention") for name in settings)
            world.lives[topic] = world.lives.get(topic, 0) + 1

        self.step(f"create {topic}", does, lambda bus: bus.create_topic(topic, partitions=partitions, **settings))

    def delete(self, topic: str) -> None:
        def does(world: World) -> None:
            del world.topics[topic]

        self.step(f"delete {topic}", does, lambda bus: bus.delete_topic(topic))

    def grow(self, topic: str, partitions: int) -> None:
        def does(world: World) -> None:
            logs = world.topics[topic]
            logs += [Log() for _ in range(partitions - len(logs))]

        self.step(f"grow {topic}", does, lambda bus: bus.topic(topic).increase_partitions(partitions))

    def send(
        self, topic: str, *values: bytes, partition: int = 0, key: bytes | None = None, timestamp: int | None = None
    ) -> None:
        """One batch."""

        def does(world: World) -> None:
            world.topics[topic][partition].sent += [(key, value) for value in values]

        def do(bus: Bus) -> None:
            with bus.producer() as producer:
                keys = None if key is None else [key] * len(values)
                times = None if timestamp is None else [timestamp] * len(values)
                sent = producer.send_many(topic, values, partition=partition, keys=keys, timestamps=times)
                sent.result(timeout=PATIENCE)

        self.step(f"send {len(values)} to {topic}/{partition}", does, do)

    def send_keyed(self, topic: str, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Messages to several partitions, by their keys: one batch for each."""
        assert self.bus is not None
        places = [self.bus.topic(topic).partition_for(key) for key, _ in pairs]

        def does(world: World) -> None:
            for place, pair in zip(places, pairs, strict=True):
                world.topics[topic][place].sent.append(pair)

        def do(bus: Bus) -> None:
            with bus.producer() as producer:
                keys, values = zip(*pairs, strict=True)
                producer.send_many(topic, values, keys=keys).result(timeout=PATIENCE)

        self.step(f"send {len(pairs)} by key to {topic}", does, do)

    def commit(self, topic: str, group: str, offsets: dict[int, int]) -> None:
        places = {TopicPartition(topic, partition): offset for partition, offset in offsets.items()}

        def does(world: World) -> None:
            world.commits[group] = world.commits.get(group, {}) | places

        def do(bus: Bus) -> None:
            with bus.consumer(topic, group=group, auto_commit=False) as consumer:
                consumer.wait_assigned(PATIENCE)
                consumer.commit(places)

        self.step(f"commit {offsets} of {topic} for {group}", does, do)

    def commit_by(self, consumer: Consumer, topic: str, group: str, offsets: dict[int, int]) -> None:
        """By a member that is there."""
        places = {TopicPartition(topic, partition): offset for partition, offset in offsets.items()}

        def does(world: World) -> None:
            world.commits[group] = world.commits.get(group, {}) | places

        self.step(f"commit {offsets} of {topic} by a member of {group}", does, lambda bus: consumer.commit(places))

    def reset(self, group: str, topic: str, partition: int, offset: int) -> None:
        def does(world: World) -> None:
            world.commits[group] = world.commits[group] | {TopicPartition(topic, partition): offset}

        self.step(
            f"reset {group} to {offset} of {topic}/{partition}",
            does,
            lambda bus: bus.reset_offsets(group, topic, partition=partition, offset=offset),
        )

    def transact(
        self,
        sent: dict[tuple[str, int], list[bytes]],
        read: str | None = None,
        group: str | None = None,
        offsets: dict[int, int] | None = None,
        *,
        abort: bool = False,
    ) -> None:
        """One transaction: these values to these partitions, and these offsets of `read` for the group."""
        given = Transacted(
            sent, group, {TopicPartition(read or "", at): offset for at, offset in (offsets or {}).items()}
        )

        def does(world: World) -> None:
            if not abort:
                self.transactions[len(self.worlds)] = given
                for (topic, partition), values in sent.items():
                    world.topics[topic][partition].sent += [(b"k", value) for value in values]
                if group is not None:
                    world.commits[group] = world.commits.get(group, {}) | given.offsets

        def do(bus: Bus) -> None:
            with ExitStack() as stack:
                producer = stack.enter_context(bus.producer())
                if group is not None:
                    consumer = stack.enter_context(bus.consumer(read, group=group, auto_commit=False))
                    consumer.wait_assigned(PATIENCE)
                tx = stack.enter_context(producer.transaction())
                for (topic, partition), values in sent.items():
                    tx.send_many(topic, values, partition=partition, keys=[b"k"] * len(values))
                if group is not None:
                    tx.commit_offsets(consumer, given.offsets)
                if abort:
                    tx.abort()

        self.step(f"transact {sorted(sent)} {offsets or ''}{' and abort' if abort else ''}", does, do)

    def truncate(self, topic: str, partition: int, offset: int) -> None:
        def does(world: World) -> None:
            log = world.topics[topic][partition]
            log.start_min = log.start_max = offset

        self.step(
            f"truncate {topic}/{partition} at {offset}", does, lambda bus: _truncate(bus, topic, partition, offset)
        )

    def retain(self, topic: str) -> None:
        """Retention takes from the old end; what it took is known once it is done."""
        self.step(f"retain {topic}", lambda world: None, lambda bus: bus.maintain())
        assert self.bus is not None
        starts = self.bus.topic(topic).beginning_offsets()
        for log, (_, start) in zip(self.worlds[-1].topics[topic], sorted(starts.items()), strict=True):
            log.start_min = start

    def compact(self, topic: str) -> None:
        def does(world: World) -> None:
            for log in world.topics[topic]:
                log.compacted_below = len(log.sent)

        self.step(f"compact {topic}", does, lambda bus: bus.maintain())

    def alter(self, topic: str, **settings: Any) -> None:
        self.step(f"alter {topic}", lambda world: None, lambda bus: bus.topic(topic).alter(**settings))

    def add_to_every_partition(self, value: bytes) -> None:
        """After a step that failed, which may have done a part: go on from what is there."""
        assert self.bus is not None
        world = copy.deepcopy(self.worlds[-1])
        for name in [name for name in world.topics if name not in self.bus.topics()]:
            del world.topics[name]
        older = self.worlds[self.done].topics
        world.topics |= {name: copy.deepcopy(older[name]) for name in self.bus.topics() if name not in world.topics}
        for name, logs in world.topics.items():
            topic = self.bus.topic(name)
            del logs[topic.partitions :]
            for (_, end), (_, start), log in zip(
                sorted(topic.end_offsets().items()), sorted(topic.beginning_offsets().items()), logs, strict=True
            ):
                del log.sent[end:]
                log.start_min = log.start_max = start
        for group in world.commits:
            self._settle_commits(world, group)
        self.steps.append("what is there")
        self.worlds.append(world)
        self.done = len(self.worlds) - 1
        for name, logs in world.topics.items():
            for number in range(len(logs)):
                self.send(name, value, partition=number, key=b"k")

    def _settle_commits(self, world: World, group: str) -> None:
        assert self.bus is not None
        try:
            world.commits[group] = dict(self.bus.group(group).committed)
        except errors.UnknownGroupError:
            world.commits[group] = {}

    def sync(self) -> None:
        self.step("sync", lambda world: None, lambda bus: bus.sync())

    def interval_sync(self) -> None:
        """What the background thread does each `sync_interval_ms`."""
        self.step("interval sync", lambda world: None, lambda bus: bus._engine.syncer.sync_dirty())  # type: ignore[union-attr]

    def close(self) -> None:
        self.step("close", lambda world: None, lambda bus: bus.close())

    def close_and_open(self) -> None:
        """As another process would."""
        self.close()
        self.bus = self.opener()

    # -- what may be there --------------------------------------------------------------------------------------------

    def check(self, bus: Bus, moment: Moment, *, kept: int | None = None, groups: bool = True) -> None:
        """Compare what `bus` holds with what it must.

        `kept`: how many steps must have survived, all that are done unless told. `groups`: commits too, which takes the
        groups' locks.
        """
        least = self.worlds[moment.done if kept is None else kept]
        most = self.worlds[moment.begun]
        possible = self.worlds[moment.done if kept is None else kept : moment.begun + 1]
        names = set(bus.topics())
        must = set.intersection(*(set(world.topics) for world in possible))
        may = set.union(*(set(world.topics) for world in possible))
        assert must <= names <= may, (must, names, may)
        for name in names:
            self._check_topic(bus, name, least, most, possible)
        for group in most.commits if groups else ():
            self._check_commits(bus, group, possible)
        first = moment.done if kept is None else kept
        for number in range(first + 1, moment.begun + 1):
            if number in self.transactions:
                self._check_whole(bus, number, groups=groups)

    def check_machine(self, bus: Bus, moment: Moment, kept: int) -> None:
        """Compare what `bus` holds with what it must after a stop of the machine.

        `kept`: the step up to which messages and commits must be there; of each partition, a suffix of what came later
        may be lost. Topics, partitions, settings and beginnings are there for every step that is done.
        """
        done = self.worlds[moment.done]
        possible = self.worlds[moment.done : moment.begun + 1]
        names = set(bus.topics())
        must = set.intersection(*(set(world.topics) for world in possible))
        may = set.union(*(set(world.topics) for world in possible))
        assert must <= names <= may, (must, names, may)
        for name in names:
            self._check_topic_of_machine(bus, name, self.worlds[kept], done, possible)
        for group in self.worlds[moment.begun].commits:
            self._check_commits_of_machine(bus, group, self.worlds[kept : moment.begun + 1])
        for number in range(kept + 1, moment.begun + 1):
            if number in self.transactions and not self._is_recreated(number, moment):
                self._check_whole(bus, number, groups=True)

    def _is_recreated(self, number: int, moment: Moment) -> bool:
        """Whether a topic of that transaction may be a later one of its name."""
        names = {topic for topic, _ in self.transactions[number].sent}
        return any(
            world.lives.get(name) != self.worlds[number].lives.get(name) or name not in world.topics
            for world in self.worlds[number : moment.begun + 1]
            for name in names
        )

    def _check_topic_of_machine(self, bus: Bus, name: str, kept: World, done: World, possible: list[World]) -> None:
        lives = [world for world in possible if name in world.topics]
        counts = {len(world.topics[name]) for world in lives}
        topic = bus.topic(name)
        assert topic.partitions in counts, (topic.partitions, counts)
        if len({world.lives[name] for world in lives}) > 1:
            return
        life, last = lives[-1].lives[name], lives[-1].topics[name]
        safe = kept.topics[name] if name in kept.topics and kept.lives[name] == life else []
        told = done.topics[name] if name in done.topics and done.lives[name] == life else []
        for number in range(topic.partitions):
            old = Log()
            old.sent = safe[number].sent if number < len(safe) else []
            if number < len(told):
                old.start_min, old.start_max = told[number].start_min, told[number].start_max
                if told[number].retained:
                    old.start_min = 0  # removing is not durable
            _check_log(bus, name, number, old, last[number])

    def _check_commits_of_machine(self, bus: Bus, group: str, possible: list[World]) -> None:
        """One of the commits, as a whole; to the user it is capped where its partition lost its tail."""
        raw = self.raw_commits(bus, group)
        candidates = [
            {tp: offset for tp, offset in world.commits.get(group, {}).items() if tp.topic in bus.topics()}
            for world in possible
        ]
        assert raw in candidates, (raw, candidates)
        capped = {tp: min(offset, bus.topic(tp.topic).end_offsets()[tp]) for tp, offset in raw.items()}
        found = dict(bus.group(group).committed) if raw else {}
        assert found == capped, (found, capped)

    @staticmethod
    def raw_commits(bus: Bus, group: str) -> dict[TopicPartition, int]:
        """What is in the log of offsets, as it was committed."""
        engine = bus._engine
        states = {name: engine.registry.get(name) for name in bus.topics()}
        return {
            TopicPartition(topic, number): offset
            for (topic, incarnation, number), (offset, _) in engine.offsets.of_group(group).items()
            if topic in states and states[topic].incarnation == incarnation
        }

    def _check_whole(self, bus: Bus, number: int, *, groups: bool) -> None:
        """Of the transaction that made this world everything is there, or nothing."""
        sent, group, offsets = self.transactions[number]
        world, there = self.worlds[number], {}
        for topic, partition in sent:
            if topic in bus.topics():
                end = bus.topic(topic).end_offsets()[TopicPartition(topic, partition)]
                there[topic, partition] = end >= len(world.topics[topic][partition].sent)
                if not there[topic, partition]:
                    before = self.worlds[number - 1].topics[topic][partition].sent
                    assert end <= len(before), (number, topic, partition, end, len(before))
        if group is not None and groups and self._tells(number, group, offsets):
            found = self.raw_commits(bus, group)
            there[group] = all(found.get(tp, -1) >= offset for tp, offset in offsets.items())
        assert len(set(there.values())) <= 1, (number, self.steps[number - 1], there)

    def _tells(self, number: int, group: str, offsets: dict[TopicPartition, int]) -> bool:
        """Whether the group's offsets say if that step was done: they were lower before, and never again after."""
        commits = [world.commits.get(group, {}) for world in self.worlds]
        return all(
            all(found.get(tp, -1) < offset for found in commits[:number])
            and all(found.get(tp, -1) >= offset for found in commits[number:])
            for tp, offset in offsets.items()
        )

    def _check_topic(self, bus: Bus, name: str, least: World, most: World, possible: list[World]) -> None:
        lives = [world for world in possible if name in world.topics]
        topic = bus.topic(name)
        counts = {len(world.topics[name]) for world in lives}
        assert topic.partitions in counts, (topic.partitions, counts)
        if len({world.lives[name] for world in lives}) > 1:
            return  # deleted and created in between: the callers that look at this know more
        last = lives[-1].topics[name]
        first = lives[0].topics[name] if name in least.topics and least.lives[name] == lives[-1].lives[name] else []
        for number in range(topic.partitions):
            old = first[number] if number < len(first) else Log()
            _check_log(bus, name, number, old, last[number])

    def _check_commits(self, bus: Bus, group: str, possible: list[World]) -> None:
        try:
            found = dict(bus.group(group).committed)
        except errors.UnknownGroupError:
            found = {}
        candidates = [
            {tp: offset for tp, offset in world.commits.get(group, {}).items() if tp.topic in world.topics}
            for world in possible
        ]
        assert found in candidates, (found, candidates)


def _truncate(bus: Bus, topic: str, partition: int, offset: int) -> None:
    bus.topic(topic).truncate_before(partition, offset)


def _check_log(bus: Bus, name: str, number: int, old: Log, new: Log) -> None:
    topic = bus.topic(name)
    tp = TopicPartition(name, number)
    messages = list(topic.read(partition=number))
    start, end = topic.beginning_offsets()[tp], topic.end_offsets()[tp]
    start_max = end if new.retained else max(old.start_max, new.start_max)
    assert old.start_min <= start <= start_max, (start, old.start_min, start_max)
    assert len(old.sent) <= end <= len(new.sent), (len(old.sent), end, len(new.sent))
    found = [message.offset for message in messages]
    for message in messages:
        assert start <= message.offset < end, message
        assert (message.key, message.value) == new.sent[message.offset], message
    assert found == sorted(set(found)), found
    wanted = set(range(max(start, new.compacted_below), end))
    if new.compacted_below:
        last = {key: offset for offset, (key, _) in enumerate(new.sent[:end])}
        wanted |= {offset for offset in last.values() if offset >= start}
    assert wanted <= set(found), (wanted - set(found), start, end)
