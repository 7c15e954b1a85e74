"""From staged messages to encoded batches: what a producer does once a batch and not once a message.

A `Lane` collects the messages of one topic as tuples `(value, key, timestamp)`. When it is sealed, `split` turns them
into `Chunk`s, one encoded batch for each partition: keys are mapped to partitions by a memo, messages sorted into
buckets, buckets turned into columns, all by calls that loop in C. Messages without a key go where the lane sticks, and
the lane moves on with each batch.

Nothing here waits, locks or writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

from streamlite.batch import encode_payload, timestamp_steps
from streamlite.compression import codec
from streamlite.delivery import Outcome
from streamlite.partition import Outgoing, Partition
from streamlite.partitioner import KeyMemo
from streamlite.registry import TopicState

__all__ = ["MESSAGE_OVERHEAD", "STAGED_MAX", "Chunk", "Lane", "Same", "Staged", "split"]

MESSAGE_OVERHEAD: Final = 250
"""Bytes that a staged message takes in memory beside its payload: tuple, delivery, column entries (PERFORMANCE, S12)."""
STAGED_MAX: Final = 20_000
"""Messages in a batch at most: beyond this a batch saves nothing more and a reader must decode it whole."""

Item = tuple[bytes | None, bytes | None, int]


class Chunk:
    """One encoded batch on its way to its partition. `since`: when its append was first tried, by the machine's clock."""

    __slots__ = ("outcome", "outgoing", "partition", "since")

    def __init__(self, partition: Partition, outgoing: Outgoing, outcome: Outcome) -> None:
        self.partition = partition
        self.outgoing = outgoing
        self.outcome = outcome
        self.since = 0.0


class Same(Sequence[int]):
    """A column that says the same `count` times."""

    __slots__ = ("count", "value")

    def __init__(self, value: int, count: int) -> None:
        self.value = value
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        return (self.value,) * len(range(self.count)[index]) if isinstance(index, slice) else self.value


class Staged(NamedTuple):
    """A sealed batch of a lane, not yet split: columns, and the partitions that were asked for."""

    lane: Lane
    outcome: Outcome
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None
    timestamps: Sequence[int]
    headers: Sequence[Any] | None
    partition: int | None
    """Of all of it, where it was asked for."""
    placed: Mapping[int, int]
    """Of the messages at these places."""


class Lane:
    """The staged messages of one topic, and where they go. Guarded by the producer's mutex."""

    __slots__ = (
        "bytes_max", "count", "extras", "items", "keyed_only", "last_ms", "left", "memo", "message_bytes_max", "opened",
        "opened_ms", "outcome", "push", "reserved", "state", "sticky",
    )  # fmt: skip

    def __init__(self, state: TopicState, sticky: int) -> None:
        self.state = state
        self.sticky = sticky
        self.last_ms = 0  # when the last batch went
        self.outcome: Outcome | None = None
        self.begin(None, 0, 0, 0.0)
        self.take_settings()

    def take_settings(self) -> None:
        """Take up what the topic's settings say now."""
        settings = self.state.settings
        self.keyed_only = settings.compacted
        self.message_bytes_max = settings.max_message_bytes
        self.memo = KeyMemo(settings.partitioner, len(self.state.partitions))

    def begin(self, outcome: Outcome | None, room: int, now_ms: int, now: float) -> None:
        """A new batch with room for so many bytes; none when `outcome` is `None`."""
        self.outcome = outcome
        self.items: list[Item] = []
        self.push = self.items.append
        self.extras: dict[int, tuple[int | None, Any]] = {}
        self.count = 0
        self.left = self.reserved = room
        self.opened_ms = now_ms
        self.opened = now

    def seal(self) -> Staged | None:
        """Take out what is staged."""
        outcome = self.outcome
        if outcome is None:
            return None
        outcome.count = self.count
        outcome.bytes = self.reserved - self.left
        values, keys, timestamps = zip(*self.items, strict=True)
        outcome.timestamps = timestamps
        placed = {index: partition for index, (partition, _) in self.extras.items() if partition is not None}
        staged = Staged(self, outcome, values, keys, timestamps, self._headers(), None, placed)
        self.begin(None, 0, 0, 0.0)
        return staged

    def _headers(self) -> list[Any] | None:
        if not any(headers for _, headers in self.extras.values()):
            return None
        column: list[Any] = [None] * self.count
        for index, (_, headers) in self.extras.items():
            column[index] = headers or None
        return column

    def next_sticky(self) -> int:
        """The partition for a batch without keys; the next one is for the next batch."""
        sticky = self.sticky
        self.sticky = (sticky + 1) % len(self.state.partitions)
        return sticky


def split(staged: Staged) -> list[Chunk]:
    """The chunks of a staged batch; its outcome knows afterwards which partition each message has."""
    outcome, state = staged.outcome, staged.lane.state
    partition = _only_partition(staged)
    if partition is not None:
        outcome.partitions = partition
        outcome.open_parts = 1
        outgoing = encode(state, staged.values, staged.keys, staged.timestamps, staged.headers)
        return [Chunk(state.partitions[partition], outgoing, outcome)]
    outcome.partitions = placed = _partitions(staged)
    buckets = _buckets(placed, staged)
    outcome.open_parts = len(buckets)
    return [Chunk(state.partitions[number], encode(state, *columns), outcome) for number, columns in buckets]


def _is_keyless(keys: Sequence[bytes | None] | None) -> bool:
    return keys is None or (keys[0] is None and keys.count(None) == len(keys))


def _only_partition(staged: Staged) -> int | None:
    """The partition of the whole batch, where it has just one."""
    lane, keys, placed = staged.lane, staged.keys, staged.placed
    if staged.partition is not None:
        return staged.partition
    if placed:
        wanted = set(placed.values())
        return wanted.pop() if len(wanted) == 1 and len(placed) == len(staged.values) else None
    if len(lane.state.partitions) == 1:
        return 0
    if keys is None or _is_keyless(keys):
        return lane.next_sticky()
    return lane.memo[keys[0]] if len(keys) == 1 and keys[0] is not None else None


def _partitions(staged: Staged) -> list[int]:
    """The partition of each message."""
    lane, keys = staged.lane, staged.keys
    if keys is None or None in keys:
        sticky, memo = lane.next_sticky(), lane.memo
        column = keys if keys is not None else (None,) * len(staged.values)
        placed = [sticky if key is None else memo[key] for key in column]
    else:
        placed = list(map(lane.memo.__getitem__, keys))
    for index, partition in staged.placed.items():
        placed[index] = partition
    return placed


def _buckets(placed: Sequence[int], staged: Staged) -> list[tuple[int, list[Any]]]:
    """Partition and the columns (values, keys, timestamps, headers) of what goes there."""
    same = staged.timestamps if isinstance(staged.timestamps, Same) else None
    keys = repeat(None) if staged.keys is None else staged.keys
    times: Any = repeat(0) if same is not None else staged.timestamps
    columns = (staged.values, keys, times) if staged.headers is None else (staged.values, keys, times, staged.headers)
    rows: dict[int, list[Any]] = {number: [] for number in sorted(set(placed))}
    pushes = {number: bucket.append for number, bucket in rows.items()}
    for number, row in zip(placed, zip(*columns)):  # noqa: B905 - two may be endless
        pushes[number](row)
    found = []
    for number, bucket in rows.items():
        part: list[Any] = list(zip(*bucket, strict=True))
        if same is not None:
            part[2] = Same(same.value, len(bucket))
        found.append((number, part if staged.headers is not None else [*part, None]))
    return found


def encode(
    state: TopicState, values: Sequence[Any], keys: Sequence[Any] | None, timestamps: Sequence[int], headers: Any
) -> Outgoing:
    """One batch for one partition, compressed as the topic has it."""
    if isinstance(timestamps, Same):
        base, greatest, steps = timestamps.value, timestamps.value, None
    else:
        base, greatest, steps = timestamp_steps(timestamps)
    content = encode_payload(keys, values, steps, headers)
    compression = state.settings.compression
    if compression == "none":
        return Outgoing(content, len(values), base, greatest, len(content))
    chosen = codec(compression)
    return Outgoing(chosen.compress(content), len(values), base, greatest, len(content), chosen.id)
