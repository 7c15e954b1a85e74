"""A batch of messages as columns: lists in, bytes out, and back.

A payload is one msgpack array of columns `[keys, values, timestamps, headers, offsets, horizon, sequences]`, trailing
absent ones left out. A column that says nothing is nil, one that says the same of every message has a single element,
so that a million keyless messages cost no key bytes. Columns and not rows, because msgspec encodes and decodes a list
of bytes in a third of the time of a list of structs, and because a reader of keys need not look at values.

* timestamps: nil (all are the header's base timestamp), a list of differences from it, or a map from an index to
  the difference that holds from there on: what a clock gives to a burst is a handful of steps.
* offsets: only in compacted batches, differences from the base offset, rising.
* horizon: only in compacted batches that hold tombstones: the time in ms after which they may go.
* sequences: only where a named producer left some out, differences from the header's base sequence, rising.

Pure: no file, clock or lock. Whatever bytes come in, `decode` gives columns of equal length or `BadBatch`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from streamlite.compression import codec_by_id
from streamlite.errors import CorruptionError
from streamlite.format import (
    BATCH_COUNT_MAX,
    ENCODING_NATIVE,
    FLAG_COMPACTED,
    FLAG_SEQUENCES,
    FLAGS_KNOWN,
    BadBatch,
    BatchHeader,
)
from streamlite.message import Columns, Header, Message

__all__ = ["Batch", "Peeled", "decode", "encode_payload", "encode_single", "peel", "timestamp_steps"]

_Read = TypeVar("_Read")

Timestamps = list[int] | dict[int, int] | None
Headers = Sequence[Header]


# A column's length is judged before room is made for it. One that this release does not know is refused: to skip it
# would be to lose what it says, and msgspec skips nested arrays by recursion.
_bounded = msgspec.Meta(max_length=BATCH_COUNT_MAX)
_Difference = Annotated[int, msgspec.Meta(ge=0)]
_SMALL_BYTES = 4096
"""Of one message: what is encoded in one go, see `encode_payload`."""


class _Payload(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    keys: Annotated[list[bytes | None], _bounded] | None = None
    values: Annotated[list[bytes | None], _bounded] | None = None
    timestamps: Annotated[list[_Difference], _bounded] | Annotated[dict[int, _Difference], _bounded] | None = None
    headers: Annotated[list[tuple[Header, ...] | None], _bounded] | None = None
    offsets: Annotated[list[_Difference], _bounded] | None = None
    horizon: int | None = None
    sequences: Annotated[list[_Difference], _bounded] | None = None


_NIL = b"\xc0"


class _Skin(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A `_Payload` whose large columns stay the bytes that they are."""

    keys: msgspec.Raw = msgspec.Raw(_NIL)
    values: msgspec.Raw = msgspec.Raw(_NIL)
    timestamps: msgspec.Raw = msgspec.Raw(_NIL)
    headers: msgspec.Raw = msgspec.Raw(_NIL)
    offsets: Annotated[list[_Difference], _bounded] | None = None
    horizon: int | None = None
    sequences: Annotated[list[_Difference], _bounded] | None = None


_encoder = msgspec.msgpack.Encoder()
_encode = _encoder.encode
_decode = msgspec.msgpack.Decoder(_Payload).decode
_peel = msgspec.msgpack.Decoder(_Skin).decode
_decode_bytes = msgspec.msgpack.Decoder(Annotated[list[bytes | None], _bounded] | None).decode
_decode_times = msgspec.msgpack.Decoder(
    Annotated[list[_Difference], _bounded] | Annotated[dict[int, _Difference], _bounded] | None
).decode
_decode_headers = msgspec.msgpack.Decoder(Annotated[list[tuple[Header, ...] | None], _bounded] | None).decode


def encode_payload(
    keys: Sequence[bytes | None] | None,
    values: Sequence[bytes | None] | None,
    timestamps: Timestamps = None,
    headers: Sequence[Any] | None = None,
    offsets: list[int] | None = None,
    horizon: int | None = None,
    sequences: list[int] | None = None,
) -> bytes:
    """The payload of these columns; `timestamps`, `offsets` and `sequences` as differences from the header's base."""
    count = len(values) if values is not None else 0
    headers = _squeeze(headers) if headers and any(headers) else None
    columns: list[Any] = [_squeeze(keys), _squeeze(values), timestamps, headers, offsets, horizon, sequences]
    while columns and columns[-1] is None:
        columns.pop()
    if count == 1 and values is not None and len(values[0] or b"") < _SMALL_BYTES:
        return _encode(columns)
    return _encode_large(columns)


def encode_single(key: bytes | None, value: bytes | None) -> bytes:
    """As `encode_payload` of one message that has the header's timestamp and no headers."""
    if value is None:
        return _encode(() if key is None else ((key,),))
    columns = (None if key is None else (key,), (value,))
    return _encode(columns) if len(value) < _SMALL_BYTES else _encode_large(columns)


def _encode_large(columns: Sequence[Any]) -> bytes:
    """As `_encode`, which (msgspec 0.22) ends the process by SIGSEGV where the system has no memory to give.

    This raises `MemoryError`. What comes of it is only read, and to make bytes of it would be to copy it.
    """
    payload = bytearray(64)
    _encoder.encode_into(columns, payload)
    return payload  # type: ignore[return-value]


def _squeeze(column: Sequence[Any] | None) -> Sequence[Any] | None:
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
    distinct = sorted(set(timestamps))
    if len(distinct) <= len(timestamps) // 4 and sorted(timestamps) == list(timestamps):
        return base, greatest, {bisect_left(timestamps, value): value - base for value in distinct}
    return base, greatest, [timestamp - base for timestamp in timestamps]


class Batch:
    """A decoded batch: its header, and columns of `header.count` elements each.

    `offsets` and `timestamps` are absolute; `headers` is `None` when no message has any, `sequences` (absolute too)
    where they count up from the header's or there are none.
    """

    __slots__ = ("header", "headers", "horizon", "keys", "offsets", "sequences", "timestamps", "values")

    def __init__(
        self,
        header: BatchHeader,
        offsets: Sequence[int],
        timestamps: Sequence[int],
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Sequence[Headers] | None,
        horizon: int | None,
        sequences: list[int] | None = None,
    ) -> None:
        self.header = header
        self.offsets = offsets
        self.timestamps = timestamps
        self.keys = keys
        self.values = values
        self.headers = headers
        self.horizon = horizon
        self.sequences = sequences

    def messages(self, topic: str, partition: int, start: int = 0, stop: int | None = None) -> list[Message]:
        """Messages `start` to `stop` of it, keys and values as bytes: one `map` over the columns, no Python loop."""
        offsets, timestamps, keys, values, headers = self.offsets, self.timestamps, self.keys, self.values, self.headers
        if start or (stop is not None and stop < len(offsets)):
            offsets, timestamps = offsets[start:stop], timestamps[start:stop]
            keys, values = keys[start:stop], values[start:stop]
            headers = None if headers is None else headers[start:stop]
        columns: tuple[Any, ...] = (repeat(topic), repeat(partition), offsets, timestamps, keys, values)
        return list(map(Message, *columns) if headers is None else map(Message, *columns, headers))

    def columns(self, topic: str, partition: int, start: int = 0, stop: int | None = None) -> Columns:
        """The same as columns."""
        cut = slice(start, stop)
        headers = self.headers if self.headers is not None else ((),) * len(self.offsets)
        return Columns(
            topic, partition, self.offsets[cut], self.timestamps[cut], self.keys[cut], self.values[cut], headers[cut]
        )


class Peeled(Batch):
    """A batch whose timestamps, keys, values and headers stay as they are on disk until each is asked for.

    `payload` is what was read, compressed where the header says so. What makes no sense is found later here, when the
    column is made: a `CorruptionError` about `place`, the file and the position, which whoever read it puts in.
    """

    __slots__ = ("_skin", "payload", "place")

    def __init__(self, header: BatchHeader, skin: _Skin, payload: bytes | memoryview) -> None:
        self.header = header
        self.offsets = _places(header, skin)
        self.horizon = skin.horizon
        self.sequences = _sequences(header, skin.sequences)
        self._skin = skin
        self.payload = payload
        self.place = ("", 0)

    @property
    def keyless(self) -> bool:
        """Whether no message has a key."""
        return bytes(self._skin.keys) == _NIL

    @property
    def plain(self) -> bool:
        """Whether the payload says nothing that belongs to where it stands."""
        return not self.header.flags & (FLAG_COMPACTED | FLAG_SEQUENCES)

    if not TYPE_CHECKING:  # or every misspelt attribute would pass

        def __getattr__(self, name: str) -> Any:
            make = _MAKERS.get(name)
            if make is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            try:
                column = make(self.header, getattr(self._skin, name))
            except (BadBatch, msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
                file, position = self.place
                raise CorruptionError(
                    f"{file} is damaged at position {position}: {name} that make no sense ({error})",
                    file=file,
                    position=position,
                ) from error
            setattr(self, name, column)
            return column

    def columns(self, topic: str, partition: int, start: int = 0, stop: int | None = None) -> Columns:
        """The same as columns, which are made when they are asked for."""
        return Columns.of(self, topic, partition, self.offsets[start:stop], start)


def peel(header: BatchHeader, payload: bytes | memoryview) -> Peeled:
    """As `decode`, but keys, values and headers are looked at when they are asked for."""
    return _opened(header, payload, lambda content: Peeled(header, _peel(content), payload))


def decode(header: BatchHeader, payload: bytes | memoryview) -> Batch:
    """The columns of a batch whose checksum has been verified; `BadBatch` when they make no sense all the same."""
    return _opened(header, payload, lambda content: _expand(header, _decode(content)))


def _opened(header: BatchHeader, payload: bytes | memoryview, read: Callable[[bytes | memoryview], _Read]) -> _Read:
    """What `read` makes of the columns' bytes."""
    if header.encoding != ENCODING_NATIVE:
        raise BadBatch(f"encoding {header.encoding} is not one that this release reads")
    if header.flags & ~FLAGS_KNOWN:
        raise BadBatch(f"flags {header.flags:#x} are not known to this release")
    try:
        content = payload
        if header.compression:
            content = codec_by_id(header.compression).decompress(payload, header.content_bytes)
        if len(content) != header.content_bytes:
            raise BadBatch(f"{len(content)} bytes of columns, {header.content_bytes} expected")
        return read(content)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise BadBatch(f"a batch whose payload makes no sense: {error}") from error


def _expand(header: BatchHeader, columns: _Payload) -> Batch:
    count = header.count
    return Batch(
        header,
        _places(header, columns),
        _timestamps(header, columns.timestamps),
        _fill(columns.keys, count, "keys"),
        _fill(columns.values, count, "values"),
        _pairs(columns.headers, count),
        columns.horizon,
        _sequences(header, columns.sequences),
    )


def _places(header: BatchHeader, columns: _Payload | _Skin) -> Sequence[int]:
    if header.flags & FLAG_COMPACTED:
        return _offsets(header, columns.offsets)
    if columns.offsets is not None or columns.horizon is not None:
        raise BadBatch("columns that only a compacted batch has")
    return range(header.base_offset, header.base_offset + header.count)


def _pairs(column: list[Any] | None, count: int) -> list[Headers] | None:
    return None if column is None else [pairs or () for pairs in _fill(column, count, "headers")]


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
    if column is None and base <= header.max_timestamp:
        return [base] * count
    greatest = max(column.values() if isinstance(column, dict) else column or (), default=0)
    if base + greatest > header.max_timestamp:
        raise BadBatch(f"timestamps up to {base + greatest} in a batch that ends at {header.max_timestamp}")
    assert column is not None
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


def _sequences(header: BatchHeader, column: list[int] | None) -> list[int] | None:
    if bool(header.flags & FLAG_SEQUENCES) != (column is not None):
        raise BadBatch("a batch with sequences where none are announced, or without them where they are")
    if column is None:
        return None
    if len(column) != header.count or not column or column[0] != 0 or not all(map(int.__lt__, column, column[1:])):
        raise BadBatch("sequences that do not rise within their batch")
    return [header.base_sequence + difference for difference in column]


def _offsets(header: BatchHeader, column: list[int] | None) -> list[int]:
    if column is None or len(column) != header.count:
        raise BadBatch("a compacted batch without its offsets")
    rising = all(map(int.__lt__, column, column[1:]))
    if column and (not rising or column[0] < 0 or column[-1] > header.last_delta):
        raise BadBatch("offsets that do not rise within their batch")
    return [header.base_offset + difference for difference in column]


_MAKERS: Final[dict[str, Callable[[BatchHeader, Any], Any]]] = {
    "timestamps": lambda header, raw: _timestamps(header, _decode_times(raw)),
    "keys": lambda header, raw: _fill(_decode_bytes(raw), header.count, "keys"),
    "values": lambda header, raw: _fill(_decode_bytes(raw), header.count, "values"),
    "headers": lambda header, raw: _pairs(_decode_headers(raw), header.count),
}
