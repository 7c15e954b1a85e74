"""What travels through streamlite: messages, their addresses, and what is said about them.

Plain values, immutable, cheap to make by the million: `Message` is built by `map(Message, ...)` over the columns of a
batch, so its fields stand in the order of those columns and it is left out of garbage collection's bookkeeping
(`gc=False`), which is safe because a message refers to data only, never back to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, NoReturn

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


_LATE: Final = ("timestamps", "keys", "values", "headers")
_set: Final = object.__setattr__


class Columns:
    """One stretch of a partition as columns of equal length: no message objects built, no type decoded.

    `keys` and `values` hold `bytes` or `None`; `headers` holds a sequence of pairs for each message. It unpacks,
    compares and is indexed as the tuple of its fields, and cannot be changed.

    What `poll_columns` hands out is taken apart column by column, when each is first asked for: who needs the values
    alone pays for no keys, and `Producer.send_many` may take the whole as it was read. The bytes that were read stay in
    memory until all columns were asked for, or the last stretch of that read is gone.
    """

    __slots__ = (
        "_left", "_source", "_start", "headers", "keys", "offsets", "partition", "timestamps", "topic", "values",
    )  # fmt: skip
    _fields: ClassVar = ("topic", "partition", "offsets", "timestamps", "keys", "values", "headers")

    topic: str
    partition: int
    offsets: Sequence[int]
    timestamps: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Sequence[Header]]
    _source: Any
    _start: int
    _left: int

    def __init__(
        self,
        topic: str,
        partition: int,
        offsets: Sequence[int],
        timestamps: Sequence[int],
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Sequence[Header]],
    ) -> None:
        for name, column in zip(
            self._fields, (topic, partition, offsets, timestamps, keys, values, headers), strict=True
        ):
            _set(self, name, column)
        _set(self, "_left", 0)
        _set(self, "_source", None)
        _set(self, "_start", 0)

    @classmethod
    def of(cls, source: Any, topic: str, partition: int, offsets: Sequence[int], start: int) -> Columns:
        """The stretch of a batch that begins at `start`; the batch is asked for the columns by their names."""
        one = cls.__new__(cls)
        _set(one, "topic", topic)
        _set(one, "partition", partition)
        _set(one, "offsets", offsets)
        _set(one, "_left", len(_LATE))
        _set(one, "_source", source)
        _set(one, "_start", start)
        return one

    if not TYPE_CHECKING:  # or every misspelt attribute would pass

        def __getattr__(self, name: str) -> Any:
            """A column that nobody has asked for yet."""
            if name not in _LATE:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            count, start = len(self.offsets), self._start
            column = getattr(self._source, name)
            column = ((),) * count if column is None else column[start : start + count]
            _set(self, name, column)
            _set(self, "_left", self._left - 1)
            if not self._left:
                _set(self, "_source", None)
            return column

    @property
    def untouched(self) -> Any:
        """The batch that this is the whole of, while no column was asked for; else `None`."""
        source = self._source
        whole = source is not None and self._left == len(_LATE) and len(self.offsets) == len(source.offsets)
        return source if whole else None

    def cut(self, start: int, stop: int) -> Columns:
        """Messages `start` to `stop` of it."""
        if self._source is not None and self._left == len(_LATE):
            return Columns.of(
                self._source,
                self.topic,
                self.partition,
                self.offsets[start:stop],
                self._start + min(start, len(self.offsets)),
            )
        return Columns(self.topic, self.partition, *(column[start:stop] for column in tuple(self)[2:]))

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{name!r} of Columns cannot be set: they are what was read")

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._fields)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, (Columns, tuple)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        count = len(self.offsets)
        span = f", offsets {self.offsets[0]} to {self.offsets[-1]}" if count else ""
        return f"<Columns of {self.topic!r} partition {self.partition}: {count:,} messages{span}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Columns, tuple(self)


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
