"""Committed offsets: an internal compacted log, and what this bus has read of it.

The log is the database. A record's key says group, topic, incarnation and partition, its value offset and epoch; the
last one counts, and one without a value forgets. Every bus keeps what it has read in memory and reads on from there, so
that asking costs what was committed since.

Whoever needs to be sure that nothing newer is on its way holds the group's lock: all commits of a group are made under
it (`streamlite.group`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple

import msgspec

from streamlite.batch import encode_payload
from streamlite.config import TopicSettings
from streamlite.context import Context
from streamlite.counters import FLAGS
from streamlite.format import EPOCH_MAX, OFFSET_MAX
from streamlite.message import TopicPartition
from streamlite.partition import Outgoing, Partition
from streamlite.reader import Cursor
from streamlite.registry import OFFSETS, Registry

__all__ = ["Offsets", "Position"]

SETTINGS: Final = TopicSettings(cleanup="compact", segment_bytes=4 << 20, delete_retention_ms=0)
"""Small segments: compaction leaves the active one alone, and this log is read whole when a bus first needs it."""


class Position(NamedTuple):
    """A place in a partition of a topic's incarnation, as noted down in an epoch."""

    incarnation: int
    offset: int
    epoch: int


Key = tuple[str, str, int, int]

_encode = msgspec.msgpack.Encoder().encode
_decode_key = msgspec.msgpack.Decoder(tuple[str, str, int, int]).decode
_decode_value = msgspec.msgpack.Decoder(
    tuple[Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)], Annotated[int, msgspec.Meta(ge=0, le=EPOCH_MAX + 1)]]
).decode


class Offsets:
    """The committed offsets of all groups, as one open bus sees them."""

    def __init__(self, ctx: Context, registry: Registry) -> None:
        self._ctx = ctx
        self._registry = registry
        self._cursor: Cursor | None = None
        self._groups: dict[str, dict[tuple[str, int, int], tuple[int, int]]] = {}
        self._mutex = threading.Lock()  # guards the two above

    def log(self) -> Partition:
        """The log they are in, created at the first commit; not under the bus's lock."""
        return self._registry.find_or_create(OFFSETS, SETTINGS).partitions[0]

    def _log(self) -> Partition | None:
        state = self._registry.find(OFFSETS)
        return None if state is None else state.partitions[0]

    def _read_on(self, *, surely: bool = False) -> None:
        """Take up what was committed since; under the mutex. `surely`: wait for what a dead committer left."""
        partition = self._log()
        if partition is None:
            return
        if self._cursor is None or self._cursor.partition is not partition:
            self._groups.clear()
            self._cursor = Cursor(partition, partition.start())
        if surely and partition.slot.get(FLAGS):
            partition.settle_now()
        for batch in self._cursor.batches(partition.settled_end()):
            try:
                for key, value in zip(batch.keys, batch.values, strict=True):
                    if key is not None:
                        self._apply(_decode_key(key), value)
            except ValueError as error:  # of msgspec, which has seen other bytes than `outgoing` made
                raise self._cursor.damaged(batch, error) from error

    def _apply(self, key: Key, value: bytes | None) -> None:
        group, *place = key
        if value is None:
            self._groups.get(group, {}).pop(tuple(place), None)  # type: ignore[arg-type]
        else:
            self._groups.setdefault(group, {})[tuple(place)] = _decode_value(value)  # type: ignore[index]

    def get(self, group: str, tp: TopicPartition, incarnation: int, *, surely: bool = False) -> Position | None:
        """What the group committed of a partition; `None` where nothing, or for another incarnation of the topic.

        `surely`, for a new owner: also where a transaction's committer died and somebody else has the log's lock;
        `LockTimeoutError` where he keeps it.
        """
        with self._mutex:
            self._read_on(surely=surely)
            found = self._groups.get(group, {}).get((tp.topic, incarnation, tp.partition))
        return None if found is None else Position(incarnation, *found)

    def of_group(self, group: str, *, surely: bool = False) -> dict[tuple[str, int, int], tuple[int, int]]:
        """`(topic, incarnation, partition)` to `(offset, epoch)` of everything the group committed; see `get`."""
        with self._mutex:
            self._read_on(surely=surely)
            return dict(self._groups.get(group, {}))

    def groups(self) -> set[str]:
        """The groups that committed something."""
        with self._mutex:
            self._read_on()
            return {group for group, found in self._groups.items() if found}

    def commit(
        self,
        group: str,
        positions: Mapping[TopicPartition, Position | None],
        incarnations: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        """Append; under the group's lock. `None` forgets what is committed of the partition of that incarnation."""
        result = self.log().append([self.outgoing(group, positions, incarnations)])
        if result.error is not None:
            raise result.error

    def outgoing(
        self,
        group: str,
        positions: Mapping[TopicPartition, Position | None],
        incarnations: Mapping[TopicPartition, int] | None = None,
    ) -> Outgoing:
        """The batch that says so."""
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        for tp, position in positions.items():
            incarnation = position.incarnation if position is not None else (incarnations or {})[tp]
            keys.append(_encode((group, tp.topic, incarnation, tp.partition)))
            values.append(None if position is None else _encode((position.offset, position.epoch)))
        now = self._ctx.clock.time_ms()
        payload = encode_payload(keys, values)
        return Outgoing(payload, len(keys), now, now, len(payload))
