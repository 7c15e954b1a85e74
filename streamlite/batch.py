"""A batch of messages as columns: lists in, bytes out, and back.

A payload is one msgpack array of columns `[keys, values, timestamps, headers, offsets, horizon]`, trailing absent ones
left out. A column that says nothing is nil, one that says the same of every message has a single element, so that a
million keyless messages cost no key bytes. Columns and not rows, because msgspec encodes and decodes a list of bytes in
a third of the time of a list of structs, and because a reader of keys need not look at values.

* timestamps: nil (all are the header's base timestamp), a list of differences from it, or a map from an index to
  the difference that holds from there on: what a clock gives to a burst is a handful of steps.
* offsets: only in compacted batches, differences from the base offset, rising.
* horizon: only in compacted batches that hold tombstones: the time in ms after which they may go.

Pure: no file, clock or lock. Whatever bytes come in, `decode` gives columns of equal length or `BadBatch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import msgspec

from streamlite.compression import codec_by_id
from streamlite.format import ENCODING_NATIVE, FLAG_COMPACTED, FLAGS_KNOWN, BadBatch, BatchHeader
from streamlite.message import Header, Message

__all__ = ["Batch", "decode", "encode_payload", "timestamp_steps"]

Timestamps = list[int] | dict[int, int] | None
Headers = Sequence[Header]


class _Payload(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    keys: list[bytes | None] | None = None
    values: list[bytes | None] | None = None
    timestamps: list[int] | dict[int, int] | None = None
    headers: list[list[tuple[str, bytes | None]] | None] | None = None
    offsets: list[int] | None = None
    horizon: int | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Payload).decode


def encode_payload(
    keys: list[bytes | None] | None,
    values: list[bytes | None] | None,
    timestamps: Timestamps = None,
    headers: Sequence[Any] | None = None,
    offsets: list[int] | None = None,
    horizon: int | None = None,
) -> bytes:
    """The payload of these columns, `timestamps` and `offsets` as differences from the header's base."""
    columns: list[Any] = [_squeeze(keys), _squeeze(values), timestamps, headers, offsets, horizon]
    while columns and columns[-1] is None:
        columns.pop()
    return _encode(columns)


def _squeeze(column: list[bytes | None] | None) -> list[bytes | None] | None:
    """`column` as short as it can be said; looks at two elements unless they are equal."""
    if column is None or len(column) == 0:
        return None
    first = column[0]
    if first == column[-1] and column.count(first) == len(column):
        return None if first is None else [first]
    return column


def timestamp_steps(timestamps: Sequence[int]) -> tuple[int, int, Timestamps]:
    """`(base, greatest, column)` of the timestamps of a batch."""
    base, greatest = min(timestamps), max(timestamps)
    if base == greatest:
        return base, greatest, None
    steps: dict[int, int] = {}
    limit = len(timestamps) // 4
    last = None
    for index, timestamp in enumerate(timestamps):
        if timestamp != last:
            if len(steps) >= limit:
                return base, greatest, [timestamp - base for timestamp in timestamps]
            steps[index] = timestamp - base
            last = timestamp
    return base, greatest, steps


class Batch:
    """A decoded batch: its header, and columns of `header.count` elements each.

    `offsets` and `timestamps` are absolute; `headers` is `None` when no message has any.
    """

    __slots__ = ("header", "headers", "horizon", "keys", "offsets", "timestamps", "values")

    def __init__(
        self,
        header: BatchHeader,
        offsets: Sequence[int],
        timestamps: Sequence[int],
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Headers] | None,
        horizon: int | None,
    ) -> None:
        self.header = header
        self.offsets = offsets
        self.timestamps = timestamps
        self.keys = keys
        self.values = values
        self.headers = headers
        self.horizon = horizon

    def messages(self, topic: str, partition: int) -> list[Message]:
        """All of it as messages, keys and values as bytes: one `map` over the columns, no Python loop."""
        columns: tuple[Any, ...] = (repeat(topic), repeat(partition), self.offsets, self.timestamps)
        if self.headers is None:
            return list(map(Message, *columns, self.keys, self.values))
        return list(map(Message, *columns, self.keys, self.values, self.headers))


def decode(header: BatchHeader, payload: bytes | memoryview) -> Batch:
    """The columns of a batch whose checksum has been verified; `BadBatch` when they make no sense all the same."""
    if header.encoding != ENCODING_NATIVE:
        raise BadBatch(f"encoding {header.encoding} is not one that this release reads")
    if header.flags & ~FLAGS_KNOWN:
        raise BadBatch(f"flags {header.flags:#x} are not known to this release")
    try:
        if header.compression:
            payload = codec_by_id(header.compression).decompress(payload, header.content_bytes)
        columns = _decode(payload)
        return _expand(header, columns)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise BadBatch(f"a batch whose payload makes no sense: {error}") from error


def _expand(header: BatchHeader, columns: _Payload) -> Batch:
    count, base = header.count, header.base_offset
    offsets: Sequence[int] = range(base, base + count)
    if header.flags & FLAG_COMPACTED:
        offsets = _offsets(header, columns.offsets)
    headers = columns.headers
    return Batch(
        header,
        offsets,
        _timestamps(header, columns.timestamps),
        _fill(columns.keys, count, "keys"),
        _fill(columns.values, count, "values"),
        None if headers is None else [pairs or () for pairs in _fill(headers, count, "headers")],
        columns.horizon,
    )


def _fill(column: list[Any] | None, count: int, what: str) -> list[Any]:
    if column is None:
        return [None] * count
    if len(column) == count:
        return column
    if len(column) == 1:
        return column * count
    raise BadBatch(f"{len(column)} {what} in a batch of {count}")


def _timestamps(header: BatchHeader, column: Timestamps) -> list[int]:
    base, count = header.base_timestamp, header.count
    if column is None:
        return [base] * count
    if isinstance(column, list):
        if len(column) != count:
            raise BadBatch(f"{len(column)} timestamps in a batch of {count}")
        return [base + difference for difference in column]
    filled: list[int] = []
    starts = list(column)
    if not starts or starts[0] != 0 or starts != sorted(starts) or starts[-1] >= count:
        raise BadBatch("timestamp steps out of order")
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        filled += [base + column[start]] * (end - start)
    return filled


def _offsets(header: BatchHeader, column: list[int] | None) -> list[int]:
    if column is None or len(column) != header.count:
        raise BadBatch("a compacted batch without its offsets")
    rising = all(map(int.__lt__, column, column[1:]))
    if not rising or column[0] < 0 or column[-1] > header.last_delta:
        raise BadBatch("offsets that do not rise within their batch")
    return [header.base_offset + difference for difference in column]
