"""What travels through streamlite: messages, their addresses, and what is said about them.

Plain values, immutable, cheap to make by the million: `Message` is built by `map(Message, ...)` over the columns of a
batch, so its fields stand in the order of those columns and it is left out of garbage collection's bookkeeping
(`gc=False`), which is safe because a message refers to data only, never back to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

__all__ = ["Columns", "GroupDescription", "GroupMember", "Message", "RecordMetadata", "TopicPartition"]

Header = tuple[str, bytes | None]


class TopicPartition(NamedTuple):
    """The address of one partition; hashable, ordered by topic, then number."""

    topic: str
    partition: int


class RecordMetadata(NamedTuple):
    """Where a sent message stands: its partition, its offset, and its timestamp in ms since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message as a consumer gets it.

    `timestamp` is in milliseconds since the epoch; `key` and `value` are `bytes`, `None`, or of the topic's type;
    `headers` is a sequence of `(name, bytes or None)` pairs, in the order sent, empty when there are none.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Any
    value: Any
    headers: Sequence[Header] = ()


class Columns(NamedTuple):
    """One stretch of a partition as columns of equal length: nothing decoded, no message objects built.

    `keys` and `values` hold `bytes` or `None`; `headers` holds a sequence of pairs for each message.
    """

    topic: str
    partition: int
    offsets: Sequence[int]
    timestamps: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Sequence[Header]]


class GroupMember(NamedTuple):
    """A live member of a group: its id, the process it runs in, and the partitions it owns."""

    id: str
    pid: int
    partitions: tuple[TopicPartition, ...]


class GroupDescription(NamedTuple):
    """A group at one moment.

    `committed` is the next offset to read of each partition that has one; `lag` is end minus committed, and end minus
    beginning where nothing is committed.
    """

    name: str
    members: tuple[GroupMember, ...]
    generation: int
    committed: dict[TopicPartition, int]
    lag: dict[TopicPartition, int]
