"""The layout on disk: every constant and fixed-size structure, shared by who writes and who reads.

`docs/format.md` is this module in prose, with grammar, a worked example and the reasons. A log is a run of batches; a
batch is this header, then `length` bytes of payload. All integers are little-endian. The header is designed once for
everything that a batch will ever have to say (encodings, compression, epochs, named producers, transactions, the synced
offset), so that later stages fill fields in and never move them.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import xxhash

from streamlite.errors import FormatError

FORMAT_VERSION: Final = 1
"""Of the whole directory, kept in bus.json; a newer one is refused."""

MAGIC: Final = b"sLbT"
BATCH_VERSION: Final = 1

ENCODING_NATIVE: Final = ord("N")
"""Columns in msgpack; see `streamlite.batch`."""
ENCODING_KAFKA: Final = ord("K")
"""Reserved: a Kafka RecordBatch v2, verbatim, as a gateway will write and serve it."""

FLAG_TRANSACTION: Final = 1
"""Part of a transaction; visible only when its commit record is."""
FLAG_COMPACTED: Final = 2
"""Rewritten by compaction: carries its offsets as a column, which has gaps."""
FLAG_SEQUENCES: Final = 4
"""Of a named producer that left sequences out: they are a column of the payload."""
FLAGS_KNOWN: Final = FLAG_TRANSACTION | FLAG_COMPACTED | FLAG_SEQUENCES

NO_PRODUCER: Final = 0
NO_SEQUENCE: Final = -1
NO_TRANSACTION: Final = 0

PAYLOAD_BYTES_MAX: Final = (1 << 31) - 1
"""A declared length above this is not believed, whatever the checksum says: nothing is allocated for it."""

BATCH_COUNT_MAX: Final = 1 << 17
"""Messages in a batch: a constant column takes no room on disk, so the count alone must bound what a reader builds."""

EPOCH_MAX: Final = (1 << 32) - 2
"""Of the bus and of a named producer, that the next one still fits the header's field."""

OFFSET_MAX: Final = 1 << 62
"""No log gets there: an offset or position above it is damage, and would not fit a counter or a call to read a file."""

# magic, version, encoding, compression, flags, length, content bytes, count, last offset delta,
# base offset, base timestamp, max timestamp, synced_upto, epoch, producer epoch,
# producer id, base sequence, transaction id, spare
_BODY: Final = struct.Struct("<4sBBBBIIII QqqQII QqQ32x")
_CHECK: Final = struct.Struct("<Q")
_BODY_BYTES: Final = _BODY.size
HEADER_BYTES: Final = _BODY.size + _CHECK.size
_COPIED_MAX: Final = 2048
"""Payloads below this are copied behind their header to be digested in one call: that takes half the time of three."""
assert HEADER_BYTES == 128, HEADER_BYTES


class BatchHeader(NamedTuple):
    """What stands before a payload. Offsets count messages, positions bytes, timestamps are ms since the epoch."""

    encoding: int
    compression: int
    flags: int
    length: int
    content_bytes: int
    """Length of the payload when decompressed; equals `length` without compression."""
    count: int  # type: ignore[assignment]  # hides a method of tuples that a header has no use for
    last_delta: int
    base_offset: int
    base_timestamp: int
    max_timestamp: int
    synced_upto: int
    epoch: int
    producer_epoch: int
    producer_id: int
    base_sequence: int
    transaction_id: int

    @property
    def next_offset(self) -> int:
        """The offset after this batch's last one."""
        return self.base_offset + self.last_delta + 1

    @property
    def total_bytes(self) -> int:
        """Header and payload together."""
        return HEADER_BYTES + self.length


class BadBatch(ValueError):
    """Bytes that are not a batch; the caller knows file and position and says what it means there."""


class ShortBatch(BadBatch):
    """Fewer bytes than the batch needs: read more, or find that the file ends."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} bytes needed")
        self.needed = needed


def pack_header(header: tuple[int, ...], payload: bytes) -> bytes:
    """The 128 bytes of a header (a `BatchHeader`, or its fields), its checksum over them and `payload` last."""
    body = _BODY.pack(MAGIC, BATCH_VERSION, *header)
    if len(payload) < _COPIED_MAX:
        return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body + payload))
    check = xxhash.xxh3_64(body)
    check.update(payload)
    return body + _CHECK.pack(check.intdigest())


def unpack_header(data: bytes | memoryview, at: int = 0) -> BatchHeader:
    """The header at `at`, its fields checked for sense but its checksum not yet: that needs the payload.

    Raises `ShortBatch` where `data` ends before the header does, and `BadBatch` where the bytes are no header.
    """
    if len(data) - at < HEADER_BYTES:
        raise ShortBatch(HEADER_BYTES)
    magic, version, *fields = _BODY.unpack_from(data, at)
    if magic != MAGIC:
        raise BadBatch("no batch begins here")
    if version != BATCH_VERSION:
        raise BadBatch(f"batch version {version}, this release knows {BATCH_VERSION}")
    header = BatchHeader(*fields)
    if header.length > PAYLOAD_BYTES_MAX or header.content_bytes > PAYLOAD_BYTES_MAX:
        raise BadBatch("a batch header with an impossible length")
    if header.content_bytes != header.length and not header.compression:
        raise BadBatch("a batch header with two lengths for one payload")
    least = 0 if header.flags & FLAG_COMPACTED else 1
    if not least <= header.count <= BATCH_COUNT_MAX or header.last_delta + 1 < header.count:
        raise BadBatch("a batch header with an impossible count")
    if header.last_delta + 1 != header.count and not header.flags & FLAG_COMPACTED:
        raise BadBatch("a batch header with gaps that only compaction makes")
    if header.base_offset + header.last_delta >= OFFSET_MAX:
        raise BadBatch("a batch header with an impossible offset")
    return header


def verify(header: BatchHeader, data: bytes | memoryview, at: int = 0) -> memoryview:
    """The payload of the batch at `at`, once its checksum holds; `ShortBatch` or `BadBatch` otherwise."""
    end = at + HEADER_BYTES + header.length
    if len(data) < end:
        raise ShortBatch(end - at)
    view = memoryview(data)
    payload = view[at + HEADER_BYTES : end]
    if header.length < _COPIED_MAX:
        digest = xxhash.xxh3_64_intdigest(b"".join((view[at : at + _BODY_BYTES], payload)))
    else:
        check = xxhash.xxh3_64(view[at : at + _BODY_BYTES])
        check.update(payload)
        digest = check.intdigest()
    if digest != _CHECK.unpack_from(data, at + _BODY_BYTES)[0]:
        raise BadBatch("a batch whose checksum does not hold")
    return payload


def checksum(data: bytes | memoryview) -> int:
    """xxh3_64: the checksum of everything that is no batch (index entries, the clean-close mark)."""
    return xxhash.xxh3_64_intdigest(data)


# One entry of a segment's index: offset and position of a batch, the greatest timestamp of all batches before it,
# and a checksum of the three, so that every entry stands for itself and a torn or stale file gives fewer entries.
_ENTRY_BODY: Final = struct.Struct("<QQq")
INDEX_ENTRY_BYTES: Final = _ENTRY_BODY.size + _CHECK.size
INDEX_INTERVAL_BYTES: Final = 64 << 10
"""A seek reads about this much past an entry at most; LevelDB and Kafka (4 KiB) index denser, with smaller batches."""


class IndexEntry(NamedTuple):
    """Where a batch begins, and the greatest timestamp of the segment before it."""

    offset: int
    position: int
    max_timestamp: int

    def follows(self, last: IndexEntry) -> bool:
        """Whether this one may stand after `last`."""
        return self.offset > last.offset and self.position > last.position and self.max_timestamp >= last.max_timestamp


def pack_entry(entry: IndexEntry) -> bytes:
    """The 32 bytes of an index entry."""
    body = _ENTRY_BODY.pack(*entry)
    return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body))


def unpack_entries(data: bytes) -> list[IndexEntry]:
    """The leading entries of an index file that are whole and rising; what follows a bad one is not trusted."""
    entries: list[IndexEntry] = []
    last = IndexEntry(-1, -1, -(1 << 63))
    for at in range(0, len(data) - INDEX_ENTRY_BYTES + 1, INDEX_ENTRY_BYTES):
        body = data[at : at + _ENTRY_BODY.size]
        if xxhash.xxh3_64_intdigest(body) != _CHECK.unpack_from(data, at + _ENTRY_BODY.size)[0]:
            break
        entry = IndexEntry(*_ENTRY_BODY.unpack(body))
        if not entry.follows(last) or max(entry.offset, entry.position) > OFFSET_MAX:
            break
        entries.append(entry)
        last = entry
    return entries


def segment_name(base: int, next_offset: int = 0, generation: int = 0) -> str:
    """The stem of a segment's files: its base offset, and for a compacted one what it covers and its generation."""
    if generation == 0:
        return f"{base:020d}"
    return f"{base:020d}-{next_offset:020d}.{generation}"


def parse_segment_name(stem: str) -> tuple[int, int, int] | None:
    """`(base, next offset or 0, generation)` of a stem, or `None` when it is no segment's."""
    span, _, generation = stem.partition(".")
    base, _, end = span.partition("-")
    digits = (base, end or "0", generation or "0")
    if len(base) != 20 or not all(part.isdecimal() and part.isascii() for part in digits):
        return None
    parsed = (int(base), int(digits[1]), int(digits[2]))
    if max(parsed) > OFFSET_MAX or (parsed[2] and parsed[1] <= parsed[0]):
        return None
    return parsed if segment_name(*parsed) == stem else None


def check_format(version: object) -> None:
    """Refuse a directory whose format this release does not know."""
    if version != FORMAT_VERSION:
        raise FormatError(
            f"the directory has format {version!r}; this release reads and writes {FORMAT_VERSION}: use the release "
            "that wrote it, or a newer streamlite"
        )
