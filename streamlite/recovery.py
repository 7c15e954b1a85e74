"""What an active segment holds after a stop that was not clean: whole batches, then perhaps a torn tail.

Two questions with one walk. After a machine crash (`recover`) nothing about the file is known: every batch is read and
its checksum holds, or the rest is either a torn tail, to be cut, or damage, to be reported. The difference is the
synced offset: what was on the device cannot be torn. It is the greatest that any later whole batch recorded, so a bad
batch is followed by a search for later ones before anything is called a tail.

After a process died in an append (`resolve`) the file is whole up to the published end, and only what lies beyond is
looked at: whole batches of no transaction were written completely and count as sent; the rest is cut.

Pure over one file: it decides, its caller (the partition, under its lock) cuts and publishes.
"""

from __future__ import annotations

from typing import NamedTuple

from streamlite.errors import CorruptionError
from streamlite.files import File
from streamlite.format import (
    FLAG_TRANSACTION,
    HEADER_BYTES,
    MAGIC,
    BadBatch,
    BatchHeader,
    IndexEntry,
    unpack_header,
    verify,
)
from streamlite.segment import Found, IndexBuilder, walk_verified

__all__ = ["Tail", "recover", "resolve"]

_SEARCH_BYTES = 1 << 20


class Tail(NamedTuple):
    """Where a segment ends when all that counts is counted.

    `next_offset` and `position` of the end, how many bytes beyond it are to be cut, the greatest synced offset and epoch
    that any batch recorded, the greatest timestamp, and the index of what was walked.
    """

    next_offset: int
    position: int
    cut: int
    synced_upto: int
    epoch: int
    max_timestamp: int
    indexed: int
    entries: list[IndexEntry]


def recover(file: File, base: int, synced: int = 0) -> Tail:
    """The whole of a segment that begins at offset `base`, checked batch by batch, as after a machine crash.

    `synced`: an offset known to be safe from elsewhere. Raises `CorruptionError` where what is not whole was safe.
    """
    size = file.size()
    tail = _walk(file, base, 0, size, IndexBuilder())
    safe = max(synced, tail.synced_upto)
    if tail.cut:
        safe = max(safe, _recorded_later(file, tail.position + 1, size))
    if safe > tail.next_offset:
        raise CorruptionError(
            f"{file.path} is damaged at position {tail.position}: offset {tail.next_offset} and up to {safe} were "
            "safely stored and cannot be read; nothing was changed: restore the file from a copy",
            file=file.path,
            position=tail.position,
        )
    return tail._replace(synced_upto=safe)


def resolve(file: File, start: IndexEntry, next_offset: int, position: int) -> Tail:
    """What lies beyond the published end, which is `next_offset` at `position`; `start` is an index entry before it."""
    builder = IndexBuilder()
    builder.max_timestamp, builder.indexed = start.max_timestamp, start.position
    for found in walk_verified(file, start.position, position):
        builder.add(found)
    return _walk(file, next_offset, position, file.size(), builder)


def _walk(file: File, next_offset: int, position: int, size: int, builder: IndexBuilder) -> Tail:
    synced = epoch = 0
    for found in walk_verified(file, position, size):
        if not _continues(found, next_offset):
            break
        builder.add(found)
        next_offset = found.header.next_offset
        position = found.position + found.header.total_bytes
        synced = max(synced, found.header.synced_upto)
        epoch = max(epoch, found.header.epoch)
    cut = size - position
    return Tail(next_offset, position, cut, synced, epoch, builder.max_timestamp, builder.indexed, builder.entries)


def _continues(found: Found, next_offset: int) -> bool:
    """Whether a batch counts where `next_offset` was expected; one of a transaction counts only with its record."""
    header = found.header
    return header.base_offset >= next_offset and not header.flags & FLAG_TRANSACTION


def _recorded_later(file: File, position: int, size: int) -> int:
    """The greatest synced offset that any whole batch from `position` on records; searches for where one begins."""
    greatest = 0
    while position + HEADER_BYTES <= size:
        chunk = file.read(_SEARCH_BYTES, position)
        at = chunk.find(MAGIC)
        if at < 0:
            position += max(1, len(chunk) - len(MAGIC) + 1)
            continue
        header = _whole_batch(file, position + at, size)
        if header is None:
            position += at + 1
        else:
            greatest = max(greatest, header.synced_upto)
            position += at + header.total_bytes
    return greatest


def _whole_batch(file: File, position: int, size: int) -> BatchHeader | None:
    try:
        header = unpack_header(file.read(HEADER_BYTES, position))
        if position + header.total_bytes > size:
            return None
        verify(header, file.read(header.total_bytes, position))
    except BadBatch:
        return None
    return header
