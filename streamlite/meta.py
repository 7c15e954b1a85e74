"""What the segments cannot give back: an internal compacted log of small records, `__meta`.

Keys and values are bytes of msgpack; the last value of a key counts. Every bus keeps what it has read in memory and
reads on from there. Who changes a record by what it was holds the log's lock meanwhile (`change`): it is the last but
one in the order of locks (`streamlite.commit`), so whoever holds a partition's lock may take it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final

import msgspec

from streamlite.batch import encode_payload
from streamlite.config import TopicSettings
from streamlite.context import Context
from streamlite.errors import CorruptionError
from streamlite.partition import Outgoing, Partition
from streamlite.reader import Cursor
from streamlite.registry import META, Registry

__all__ = ["Meta"]

SETTINGS: Final = TopicSettings(cleanup="compact", segment_bytes=4 << 20, delete_retention_ms=0)

_encode = msgspec.msgpack.Encoder().encode
_decode_key = msgspec.msgpack.Decoder(Annotated[list[str | int], msgspec.Meta(min_length=1)]).decode


class Meta:
    """The records, as one open bus sees them."""

    def __init__(self, ctx: Context, registry: Registry) -> None:
        self._ctx = ctx
        self._registry = registry
        self._mutex = threading.Lock()  # guards the two below
        self._cursor: Cursor | None = None
        self._records: dict[bytes, bytes] = {}

    def create(self) -> None:
        """Have the log be there; under no lock, for it takes the bus's."""
        self._registry.find_or_create(META, SETTINGS)

    def log(self) -> Partition | None:
        """The log, where it is there: whoever needs it has created it."""
        state = self._registry.find(META)
        return None if state is None else state.partitions[0]

    def change(self, call: Callable[[Partition], object]) -> None:
        """Call it with the log, under its lock."""
        log = self.log()
        assert log is not None, "create() comes first"
        log.locked(partial(call, log))
        log.announce()

    def get(self, *key: str | int, kind: Any = Any) -> Any:
        """The value of a record, which is of that type, `None` where there is none."""
        log = self.log()
        if log is None:
            return None
        end = log.end() if log.guard.mine else log.settled_end()
        with self._mutex:
            if self._cursor is None or self._cursor.partition is not log:
                self._records.clear()
                self._cursor = Cursor(log, log.start())
            for batch in self._cursor.batches(end):
                for name, value in zip(batch.keys, batch.values, strict=True):
                    if name is None:
                        continue
                    try:
                        _decode_key(name)
                    except ValueError as error:  # of msgspec, which has seen other bytes than are written here
                        raise self._cursor.damaged(batch, error) from error
                    if value is not None:
                        self._records[name] = value
                    else:
                        self._records.pop(name, None)
            found = self._records.get(_encode(key))
        try:
            return None if found is None else msgspec.msgpack.decode(found, type=kind)
        except (ValueError, RecursionError) as error:
            raise CorruptionError(
                f"the record {key} in {log.directory} makes no sense ({error}); restore it from a copy",
                file=log.directory,
                position=0,
            ) from error

    def all_keys(self) -> list[tuple[Any, ...]]:
        """The keys of all records."""
        self.get("")
        with self._mutex:
            return [tuple(_decode_key(name)) for name in self._records]

    def forget(self, log: Partition, keys: Sequence[tuple[Any, ...]]) -> None:
        """Under the log's lock: these records are no more."""
        now = self._ctx.clock.time_ms()
        payload = encode_payload([_encode(key) for key in keys], None)
        log.append_locked([Outgoing(payload, len(keys), now, now, len(payload))])

    def put(self, log: Partition, key: tuple[str | int, ...], value: Any) -> None:
        """Under the log's lock (`change`)."""
        now = self._ctx.clock.time_ms()
        payload = encode_payload([_encode(key)], [_encode(value)])
        log.append_locked([Outgoing(payload, 1, now, now, len(payload))])

    def sync(self) -> None:
        """Bring the records to the device, where this bus brings anything there; with the log's lock free."""
        log = self.log()
        if log is not None and self._ctx.sync != "never":
            log.sync(log.slot.end)
