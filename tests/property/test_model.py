"""A simple model against random sequences of everything that a user of the log may do.

The model remembers every message sent. What retention and compaction may take away they may, or may not yet: a message
is *kept* while nothing allows its removal, and *gone* once it was seen to be. So whatever is read lies between the two:
all that is kept, nothing that is gone, in order, each as it was sent. A group of one member is held to API.md's words:
no kept message is skipped, and after a close it goes on at the first unprocessed one.

All of it on a virtual clock, in memory and in a directory, where the bus is also closed and opened again.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import streamlite
from streamlite import Consumer, Delivery, Message, TopicPartition
from streamlite.maintenance import Maintenance
from streamlite.testing.clock import VirtualClock

NAME = "t"
GROUP = "g"
PATIENCE = 10.0
PARTITIONS_MAX = 4
OVERHEAD = 300
"""No message takes more than that on disk beyond its own bytes: a batch header, its share of the payload's frame."""

KEYS = [b"", b"a", b"b", "ż".encode(), b"\xff"]
INDEXES = st.integers(0, 10**6)
"""Folded into whatever range there is at that moment, or the seed of many small choices."""


class Sent(NamedTuple):
    """What was sent, and when."""

    key: bytes | None
    value: bytes | None
    timestamp: int
    at_ms: int


class Partition:
    """All that was ever sent to a partition, what was seen of it last, and how far the group has got."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.gone: set[int] = set()
        self.beginning = 0
        self.next = 0  # to be handed out
        self.processed = 0  # the first that is not
        self.committed = 0


class LogMachine(RuleBasedStateMachine):
    """The log under test, and the model of it."""

    durable = False

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.directory = Path(tempfile.mkdtemp(prefix="streamlite-model-"))
        self.count = 0
        self.pending: list[tuple[Delivery, list[tuple[bytes | None, bytes | None]], int]] = []
        self.partitions: list[Partition] = []
        self.broken_off = False  # a loop was left: what comes next is a new loop
        self.open()

    # --- open and close -------------------------------------------------------------------------------------------

    def open(self) -> None:
        location = self.directory / "bus" if self.durable else ":memory:"
        self.bus = streamlite.open(location, clock=self.clock, sync="never")

    @initialize(
        partitions=st.integers(1, 3),
        segment_bytes=st.sampled_from([1, 400, 10**6]),
        segment_ms=st.sampled_from([20_000, 10**9]),
        retention_ms=st.sampled_from([None, None, 60_000]),
        retention_bytes=st.sampled_from([None, None, 2000]),
        cleanup=st.sampled_from(["delete", "delete", "compact", "compact,delete"]),
        delete_retention_ms=st.sampled_from([0, 60_000]),
        auto_commit=st.booleans(),
        batch_bytes=st.sampled_from([1, 300, 1 << 20]),
        seed=INDEXES,
    )
    def begin(self, partitions: int, auto_commit: bool, batch_bytes: int, seed: int, **chosen: Any) -> None:
        self.settings = chosen
        self.auto_commit = auto_commit
        self.batch_bytes = batch_bytes
        self.create(partitions)
        self.enter()
        self.send(count=20, seed=seed)

    def create(self, partitions: int) -> None:
        self.topic = self.bus.create_topic(NAME, partitions=partitions, **self.settings)
        self.partitions = [Partition() for _ in range(partitions)]

    def enter(self) -> None:
        """A producer and the group's only member, where the group goes on."""
        self.producer = self.bus.producer(linger_ms=1000, batch_bytes=self.batch_bytes)
        self.consumer = self.consumer_of_group()

    def consumer_of_group(self) -> Consumer:
        # However long it stays away between two polls, it is not taken for dead.
        options = {"auto_commit": self.auto_commit, "out_of_range": "earliest", "max_poll_interval_ms": 10**9}
        return self.bus.consumer(NAME, group=GROUP, **options)

    def leave(self) -> None:
        self.producer.close()
        self.consumer.close()
        self.settle()
        self.left()

    def left(self) -> None:
        """What a closed member leaves: processed is committed, and what was not comes again."""
        for partition in self.partitions:
            if self.auto_commit:
                partition.committed = partition.processed
            partition.next = partition.processed = partition.committed
        self.broken_off = False

    def teardown(self) -> None:
        try:
            if self.partitions:
                self.loop_to_the_end()
                self.read()
        finally:
            self.bus.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    @rule()
    def the_member_leaves_and_comes_back(self) -> None:
        self.consumer.close()
        self.settle()
        self.left()
        self.consumer = self.consumer_of_group()
        self.check_positions()

    @precondition(lambda self: self.durable)
    @rule()
    def the_bus_is_closed_and_opened_again(self) -> None:
        self.bus.close()
        self.settle()
        self.left()
        self.open()
        self.topic = self.bus.topic(NAME)
        self.enter()
        self.check_positions()
        self.read()

    @rule()
    def the_topic_is_deleted_and_created_anew(self) -> None:
        self.leave()
        self.bus.delete_topic(NAME)
        self.create(len(self.partitions))
        self.enter()
        assert self.bus.topics() == [NAME]
        assert list(self.topic.read()) == []

    @precondition(lambda self: len(self.partitions) < PARTITIONS_MAX)
    @rule()
    def a_partition_is_added(self) -> None:
        self.topic.increase_partitions(len(self.partitions) + 1)
        self.partitions.append(Partition())

    # --- sending --------------------------------------------------------------------------------------------------

    def row(self, chance: random.Random, most: int) -> tuple[bytes | None, bytes | None]:
        """A key as the topic takes it, and a value that no other message has; seldom a tombstone."""
        self.count += 1
        key = chance.choice(KEYS if "compact" in self.settings["cleanup"] else [None, *KEYS])
        if key is not None and chance.random() < 0.2:
            return key, None
        return key, b"%d" % self.count + b"." * chance.choice([0, 10, most])

    def where(self, chance: random.Random) -> int | None:
        """A partition by number, or the producer's choice."""
        return chance.choice([None, chance.randrange(len(self.partitions))])

    @rule(count=st.integers(1, 20), seed=INDEXES)
    def send(self, count: int, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(count):
            key, value = self.row(chance, most=300)
            age_s = chance.choice([None, None, None, None, 0, 50, 1000, -50])
            timestamp = None if age_s is None else self.clock.time_ms() - age_s * 1000
            delivery = self.producer.send(NAME, value, key=key, partition=self.where(chance), timestamp=timestamp)
            self.pending.append((delivery, [(key, value)], self.clock.time_ms()))

    @rule(count=st.integers(1, 40), seed=INDEXES)
    def send_many(self, count: int, seed: int) -> None:
        chance = random.Random(seed)
        rows = [self.row(chance, most=100) for _ in range(count)]
        keys, sent = [key for key, _ in rows], [value for _, value in rows]
        delivery = self.producer.send_many(self.topic, sent, keys=keys, partition=self.where(chance))
        self.pending.append((delivery, rows, self.clock.time_ms()))

    @rule()
    def flush(self) -> None:
        self.producer.flush(timeout=PATIENCE)
        assert all(delivery.done() for delivery, _, _ in self.pending)
        self.settle()

    def settle(self) -> None:
        """Take what was sent into the model: each partition gets its own in the order of sending, without a gap."""
        for delivery, rows, at_ms in self.pending:
            result = delivery.result(timeout=PATIENCE)
            places = [result] if isinstance(result, streamlite.RecordMetadata) else result
            assert len(places) == len(rows)
            for (key, value), place in zip(rows, places, strict=True):
                sent = self.partitions[place.partition].sent
                assert place.offset == len(sent)
                sent.append(Sent(key, value, place.timestamp, at_ms))
        self.pending.clear()

    # --- what may be gone -----------------------------------------------------------------------------------------

    def kept(self, partition: Partition, offsets: Iterable[int]) -> list[int]:
        """Those of `offsets` that nothing allows to be gone by now."""
        now = self.clock.time_ms()
        retention_ms, retention_bytes = self.settings["retention_ms"], self.settings["retention_bytes"]
        deleting, compacting = "delete" in self.settings["cleanup"], "compact" in self.settings["cleanup"]
        last = {sent.key: offset for offset, sent in enumerate(partition.sent)}
        sizes = [len(sent.key or b"") + len(sent.value or b"") + OVERHEAD for sent in partition.sent]

        def may_go(offset: int) -> bool:
            sent = partition.sent[offset]
            if offset < partition.beginning:
                return True
            if deleting and retention_ms is not None and sent.timestamp < now - retention_ms:
                return True
            if deleting and retention_bytes is not None and sum(sizes[offset + 1 :]) >= retention_bytes:
                return True
            if not compacting:
                return False
            return last[sent.key] > offset or (
                sent.value is None and now >= sent.at_ms + self.settings["delete_retention_ms"]
            )

        return [offset for offset in offsets if not may_go(offset)]

    def check(self, index: int, messages: list[Message], asked: Iterable[int]) -> None:
        """Messages of one partition against the offsets that were asked for."""
        partition = self.partitions[index]
        found = [message.offset for message in messages]
        allowed = set(asked)
        assert found == sorted(set(found))
        assert set(found) <= allowed - partition.gone
        assert set(found) >= set(self.kept(partition, allowed))
        for message in messages:
            sent = partition.sent[message.offset]
            assert message.topic == NAME
            assert (message.key, message.value, message.timestamp) == (sent.key, sent.value, sent.timestamp)
            assert len(message.headers) == 0

    # --- reading --------------------------------------------------------------------------------------------------

    @rule()
    def read(self) -> None:
        messages = list(self.topic.read())
        ends = self.topic.end_offsets()
        # They see every earlier send of this bus, so nothing is pending any more.
        assert all(delivery.done() for delivery, _, _ in self.pending)
        self.settle()
        assert ends == {TopicPartition(NAME, n): len(p.sent) for n, p in enumerate(self.partitions)}
        for number, partition in enumerate(self.partitions):
            mine = [message for message in messages if message.partition == number]
            self.check(number, mine, range(len(partition.sent)))
            partition.gone |= set(range(len(partition.sent))) - {message.offset for message in mine}
        self.check_beginnings()

    def check_beginnings(self) -> None:
        """The beginning never goes back, nor past something that is kept."""
        for tp, beginning in self.topic.beginning_offsets().items():
            partition = self.partitions[tp.partition]
            assert partition.beginning <= beginning <= len(partition.sent)
            assert self.kept(partition, range(beginning)) == []
            partition.beginning = beginning

    @rule(partition=INDEXES, start=st.none() | INDEXES, stop=st.none() | INDEXES)
    def read_a_range(self, partition: int, start: int | None, stop: int | None) -> None:
        self.flush()
        number = partition % len(self.partitions)
        end = len(self.partitions[number].sent)
        # Up to one beyond the end; from what is gone already, too, where it is gaps that compaction left.
        first = None if start is None else max(start % (end + 1), self.partitions[number].beginning)
        last = None if stop is None else stop % (end + 2)
        self.check_beginnings()
        if first is not None:
            first = max(first, self.partitions[number].beginning)
        messages = list(self.topic.read(partition=number, start=first, stop=last))
        self.check(number, messages, range(end)[slice(first, last)])

    @rule(since_s=st.none() | st.integers(-1100, 300), span_s=st.none() | st.integers(0, 1100))
    def read_a_time(self, since_s: int | None, span_s: int | None) -> None:
        self.flush()
        now = self.clock.time_ms()
        since = None if since_s is None else now + since_s * 1000
        until = None if span_s is None else (now if since is None else since) + span_s * 1000
        messages = list(self.topic.read(since_ms=since, until_ms=until))
        for number, partition in enumerate(self.partitions):
            asked = [
                offset
                for offset, sent in enumerate(partition.sent)
                if (since is None or since <= sent.timestamp) and (until is None or sent.timestamp < until)
            ]
            self.check(number, [message for message in messages if message.partition == number], asked)

    @rule(partition=INDEXES, age_s=st.integers(-100, 1100))
    def look_for_a_time(self, partition: int, age_s: int) -> None:
        self.flush()
        number = partition % len(self.partitions)
        tp, since = TopicPartition(NAME, number), self.clock.time_ms() - age_s * 1000
        sent = self.partitions[number].sent
        offset = self.consumer.offsets_for_times({tp: since})[tp]
        late = [each for each, message in enumerate(sent) if message.timestamp >= since]
        assert offset is None or offset in late
        assert offset not in self.partitions[number].gone
        assert self.kept(self.partitions[number], [each for each in late if offset is None or each < offset]) == []

    # --- maintenance ----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 10, 61, 2000]))
    def time_passes(self, seconds: float) -> None:
        self.flush()
        self.clock.advance(seconds)

    @rule()
    def maintain(self) -> None:
        self.bus.maintain()
        self.read()

    @rule(partition=INDEXES, offset=INDEXES)
    def truncate(self, partition: int, offset: int) -> None:
        self.flush()
        number = partition % len(self.partitions)
        before = offset % (len(self.partitions[number].sent) + 1)
        self.topic.truncate_before(number, before)
        self.partitions[number].beginning = max(self.partitions[number].beginning, before)
        self.read()

    # --- the group's member ---------------------------------------------------------------------------------------

    def handed(self, message: Message) -> None:
        """One message to the group: nothing kept was skipped, and it is what was sent."""
        partition = self.partitions[message.partition]
        assert message.offset >= partition.next
        self.check_skipped(message.partition, message.offset)
        sent = partition.sent[message.offset]
        assert (message.key, message.value, message.timestamp) == (sent.key, sent.value, sent.timestamp)
        partition.next = message.offset + 1

    def check_skipped(self, number: int, upto: int) -> None:
        partition = self.partitions[number]
        assert self.kept(partition, range(partition.next, upto)) == [], f"skipped in partition {number}"

    def check_positions(self) -> None:
        """A member that came back stands where the group left off, or beyond what is not there any more."""
        for tp in self.consumer.assignment():
            partition = self.partitions[tp.partition]
            position = self.consumer.position(tp)
            assert partition.next <= position <= len(partition.sent) or partition.next < partition.beginning
            self.check_skipped(tp.partition, position)

    @rule(most=st.none() | st.integers(1, 30), timeout=st.sampled_from([0.0, 5.0]))
    def poll(self, most: int | None, timeout: float) -> None:
        if self.broken_off:  # no precondition: what retention has left by now may differ from run to run
            return
        self.flush()
        for partition in self.partitions:
            partition.processed = partition.next
        messages = self.consumer.poll(timeout=timeout, max_messages=most)
        assert most is None or len(messages) <= most
        for message in messages:
            self.handed(message)

    @rule(most=st.integers(1, 30))
    def loop(self, most: int) -> None:
        self.flush()
        for partition in self.partitions:
            partition.next = partition.processed  # a new loop starts at the first unprocessed message
        messages = list(islice(self.consumer.messages(timeout=PATIENCE), most))
        for message in messages:
            self.handed(message)
        for number, partition in enumerate(self.partitions):
            partition.processed = partition.next
            if len(messages) < most:
                self.check_skipped(number, len(partition.sent))
        self.broken_off = len(messages) == most
        if self.broken_off:
            # The loop was left with this one in hand.
            self.partitions[messages[-1].partition].processed = messages[-1].offset

    def loop_to_the_end(self) -> None:
        self.loop(10**6)

    @rule()
    def commit(self) -> None:
        self.settle()
        self.consumer.commit()
        for partition in self.partitions:
            partition.committed = partition.processed = partition.next
        self.broken_off = False

    @rule(partition=INDEXES)
    def committed_is_never_beyond_what_was_processed(self, partition: int) -> None:
        number = partition % len(self.partitions)
        committed = self.consumer.committed(TopicPartition(NAME, number))
        if committed is not None and committed > self.partitions[number].processed:
            self.flush()
            model = self.partitions[number]
            # Over a gap it may stand at the next message there is.
            assert self.kept(model, range(model.processed, committed)) == []


class DiskMachine(LogMachine):
    """The same in a directory, where reopening is one more thing that may happen."""

    durable = True


def run(machine: type[LogMachine], share: int) -> None:
    """A share of the profile's examples, of thirty steps each, so that it takes seconds."""
    examples = max(10, settings().max_examples // share)
    chosen = settings(max_examples=examples, stateful_step_count=30, deadline=None)
    # Retention and compaction run when the model says so: a thread that does it between two of its steps would make the
    # same steps mean different things, which hypothesis calls flaky.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Maintenance, "needed_for", lambda self, state: None)
        run_state_machine_as_test(machine, settings=chosen)


def test_the_log_in_memory_is_what_the_model_says() -> None:
    run(LogMachine, share=2)


def test_the_log_in_a_directory_is_what_the_model_says() -> None:
    run(DiskMachine, share=3)
