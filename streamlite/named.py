"""Sending under a name: whether a message is a repeat, before it is staged.

In a partition a named producer's sequences are counted, or all given by the caller: a counted one could stand in the
way of one that is given. A given sequence above all before it is new. Any other is a repeat: of a message that this
producer was given (it gets the same `Delivery`), or of one that the log remembers (`streamlite.numbering`: it gets that
one's offset); or it comes too late, and is refused. Everything here is called under the producer's mutex, but for
`load`, which may wait for a partition's lock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

from streamlite.bulk import BulkColumns
from streamlite.delivery import Delivery, Outcome, Sender
from streamlite.errors import ConfigError, StreamliteError
from streamlite.numbering import WINDOW, Name
from streamlite.partition import Partition
from streamlite.reader import Cursor
from streamlite.staging import Batch

if TYPE_CHECKING:
    from streamlite.bulk import PassedColumns
    from streamlite.staging import Lane

__all__ = ["Numbers"]

_SEQUENCE_MAX: Final = (1 << 62) - 1


class NamedSender(Sender, Protocol):
    """What is needed of the producer."""

    def push(self) -> None:
        """Have every earlier send settled."""


class _Given:
    """The given sequences of one partition."""

    __slots__ = ("last", "recent", "stored")

    def __init__(self, stored: int) -> None:
        self.last = self.stored = stored
        """The last that was sent, whatever became of it; and the last of the log, when it was last looked at."""
        self.recent: OrderedDict[int, Delivery] = OrderedDict()

    def last_sent(self) -> int:
        """The last sequence that did not fail."""
        for sequence, delivery in reversed(self.recent.items()):
            if not _failed(delivery):
                return max(sequence, self.stored)
        return self.stored


class Numbers:
    """The sequences of one named producer, as far as they are known when a message is sent."""

    def __init__(self, name: Name, sender: NamedSender) -> None:
        self.name = name
        self._sender = sender
        self._given: dict[Partition, _Given] = {}
        self._counted: set[Partition] = set()

    def require(self, topic: str, key: object, partition: object, sequence: object) -> None:
        """`ConfigError` where it is not said which partition a message goes to, or what is no sequence."""
        self.name.require_current()
        if key is None and partition is None:
            raise ConfigError(
                f"producer {self.name.name!r} has a name: a message to {topic!r} needs a key or a partition, for a "
                "repeat is looked for where the first one went"
            )
        if sequence is not None and (
            isinstance(sequence, bool) or not isinstance(sequence, int) or not 0 <= sequence <= _SEQUENCE_MAX
        ):
            raise ConfigError(f"sequence must be an int from 0 to 2**62 - 1; found {sequence!r:.60}")

    def known(
        self, partition: Partition, sequence: int | None, *, topic: str, key: object, given: object
    ) -> Delivery | None:
        """What became of the first message with that sequence; `None` for a new one. Not under the mutex.

        `key` and `given` (the partition that the caller named): of what is to be sent there.
        """
        self.require(topic, key, given, sequence)
        mutex = self._sender.mutex
        if sequence is None:
            with mutex:
                self.count(partition)
            return None
        self.load(partition)
        with mutex:
            if self.remembers(partition, sequence):
                return self.check(partition, sequence)
        self._sender.push()
        found = self.look_back(partition, sequence)
        if found is None:
            with mutex:
                return self.check(partition, sequence)
        return found

    def load(self, partition: Partition) -> None:
        """A message with a sequence goes there: learn what is stored; not under the mutex."""
        if partition in self._counted:
            raise _mixed(partition, "counted", "gives a sequence")
        if partition not in self._given:
            last = self.name.look(partition).last
            self._given.setdefault(partition, _Given(-1 if last is None else last))

    def count(self, partition: Partition) -> None:
        """A message without a sequence goes there."""
        if self._given.get(partition) is not None:
            raise _mixed(partition, "given", "leaves counting to it")
        self._counted.add(partition)

    def count_columns(self, lane: Lane, columns: BulkColumns | PassedColumns) -> None:
        """All these messages have none."""
        assert isinstance(columns, BulkColumns)  # of a named producer nothing passes
        keys, number = columns.keys, columns.partition
        for key in {None} if keys is None or number is not None else set(keys):
            self.require(lane.state.name, key, number, None)
            if columns.values:
                part = lane.parts[number] if number is not None else lane.by_key.part(key or b"")
                self.count(part.partition)

    def check(self, partition: Partition, sequence: int) -> Delivery | None:
        """What became of the first message with that sequence; `None` for a new one."""
        if partition not in self._given:
            self.load(partition)  # the topic grew a moment ago
        given = self._given[partition]
        if sequence > given.last:
            return None
        found = given.recent.get(sequence)
        if found is not None and not _failed(found):
            return found
        last = given.last_sent()
        if sequence > last:
            return None  # it failed, and so did all after it: it may come again
        raise self._too_low(partition, sequence, last)

    def look_back(self, partition: Partition, sequence: int) -> Delivery | None:
        """The same of one that this producer does not remember, or that failed, from the log; not under the mutex."""
        offset, last = self.name.find(partition, sequence)
        given = self._given[partition]
        given.stored = max(given.stored, last)
        if offset is None:
            return None
        outcome = Outcome(self._sender, partition.topic.name, partition.number)
        outcome.stamps = [_timestamp(partition, offset)]
        outcome.settle(offset, None)
        return Delivery(outcome, 0)

    def remembers(self, partition: Partition, sequence: int) -> bool:
        """Whether `check` knows about that sequence without the log, where also what failed may be."""
        given = self._given[partition]
        found = given.recent.get(sequence)
        return sequence > given.last or (found is not None and not _failed(found))

    def staged(self, batch: Batch, sequence: int, delivery: Delivery) -> None:
        """It is on its way."""
        batch.sequences.append(sequence)
        given = self._given[batch.part.partition]
        given.recent.pop(sequence, None)
        given.recent[sequence] = delivery
        given.last = sequence  # what was above it has failed
        if len(given.recent) > WINDOW:
            given.recent.popitem(last=False)

    def _too_low(self, partition: Partition, sequence: int, last: int) -> ConfigError:
        return ConfigError(
            f"producer {self.name.name!r}: sequence {sequence} of {partition.tp.topic!r} partition {partition.number} "
            f"is not above {last} and is not among the last {WINDOW:,}, of which a repeat is recognised: go on after "
            "last_sequence()"
        )


def _failed(delivery: Delivery) -> bool:
    return delivery.done() and delivery._outcome.error is not None


def _mixed(partition: Partition, before: str, now: str) -> ConfigError:
    return ConfigError(
        f"the sequences of {partition.tp.topic!r} partition {partition.number} were {before} so far, and this message "
        f"{now}: a producer does one or the other in a partition"
    )


def _timestamp(partition: Partition, offset: int) -> int:
    """Of the message at that offset; -1 where it is gone."""
    try:
        batch = Cursor(partition, offset).fetch()
    except StreamliteError:
        return -1
    if batch is None or offset not in batch.offsets:
        return -1
    return batch.timestamps[batch.offsets.index(offset)]
