"""What a log holds after a stop that was not clean: whole batches, then perhaps a torn tail.

Two questions, one walk. After the machine stopped, or when nobody knows (`recover`), nothing about the newest segments
is taken for granted: from the newest segment that begins at or before the synced offset, every batch is read, its
checksum holds and it continues the one before, across segments too; what does not is either a torn tail, to be cut, or
damage, to be reported. The difference is the synced offset: what was on the device cannot be torn. It is the greatest
that any later whole batch recorded, so a bad batch is followed by a search for later ones before anything is called a
tail. Older segments were synced before, so the time this takes depends on what was not synced, not on the log.

After a process died in an append (`resolve`) everything below the published end is whole, and only what lies beyond is
looked at: whole batches were written completely and count as sent; the rest is cut.

A batch of a transaction counts only if that was committed. Who knows is asked (`Committed`): the first batch of one
that was not ends the log, and what stands behind it goes with it.

Epochs rise with offsets. What a recovery cut off or removed may be there again after another stop of the machine, right
behind what was written since: it is known by its epoch, which is lower, and ends the log.

These functions decide; the partition, which holds its lock, cuts and publishes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, NoReturn

from streamlite.errors import CorruptionError
from streamlite.files import File
from streamlite.format import (
    FLAG_TRANSACTION,
    HEADER_BYTES,
    MAGIC,
    NO_PRODUCER,
    NO_TRANSACTION,
    BadBatch,
    BatchHeader,
    IndexEntry,
    unpack_header,
    verify,
)
from streamlite.segment import NEVER_MS, IndexBuilder, Segment, walk_verified

__all__ = ["Committed", "Recovered", "Tail", "recover", "resolve"]

Committed = Callable[[BatchHeader], bool]
"""Whether the transaction of this batch was committed."""

_SEARCH_BYTES = 1 << 20


class Tail(NamedTuple):
    """Where one segment ends when all that counts is counted.

    `next_offset` and `position` of the end, how many bytes beyond it are to be cut, the greatest synced offset that any
    batch recorded, the greatest timestamp, the time of the first batch, the last transaction, whether a named producer
    wrote any of it, the index of what was walked, and the epochs of the first and the last batch (`None` of none).
    """

    next_offset: int
    position: int
    cut: int
    synced_upto: int
    max_timestamp: int
    first_timestamp: int
    transaction: int
    numbered: bool
    indexed: int
    entries: list[IndexEntry]
    epochs: tuple[int, int] | None


class Recovered(NamedTuple):
    """A log's newest segment and its end (`None` for one without segments), and the synced offset.

    `removed`: segments in front of its beginning, of which only the names came back. `lost`: those behind its end.
    `first`: where its segments begin.
    """

    active: Segment | None
    tail: Tail | None
    removed: Sequence[Segment]
    lost: Sequence[Segment]
    synced: int
    first: int


def recover(segments: Sequence[Segment], committed: Committed, synced: int = 0, start: int = 0) -> Recovered:
    """What the log of these segments (rising) holds.

    `synced`: an offset known to be safe from elsewhere; `start`: where the log was noted down to begin. Raises
    `CorruptionError` where what is not whole was safe.
    """
    front = [one for one, following in pairwise(segments) if following.base <= start]
    segments = segments[len(front) :]
    if not segments:
        return Recovered(None, None, front, [], synced, start)
    tails: dict[int, Tail] = {}
    for at in range(len(segments) - 1, -1, -1):
        tails[at] = tail = _tail(segments[at], committed)
        synced = max(synced, tail.synced_upto)
        if tail.cut:
            file = segments[at].file()
            synced = max(synced, _recorded(file, tail.position + 1, file.size()))
        if segments[at].base <= synced:
            break
    if synced <= start < segments[0].base:
        # What the log began with was never safe, and its name is gone: nothing is left that could come before the rest.
        return Recovered(None, None, front, segments, synced, start)
    # From here on the chain of segments must hold; what comes after its first gap cannot follow what came before.
    last, epoch = len(segments) - 1, 0
    for at in range(min(tails), last):
        epochs = tails[at].epochs, tails[at + 1].epochs
        epoch = epochs[0][1] if epochs[0] else epoch
        follows = segments[at + 1].base == tails[at].next_offset and (epochs[1] is None or epochs[1][0] >= epoch)
        if tails[at].cut or not follows:
            last = at
            break
    active, tail = segments[last], tails[last]
    if synced > tail.next_offset:
        _refuse(active.file(), tail.position, tail.next_offset, synced)
    return Recovered(active, tail, front, segments[last + 1 :], synced, segments[0].base)


def _tail(segment: Segment, committed: Committed) -> Tail:
    file = segment.file()
    tail = _walk(file, segment.base, 0, file.size(), IndexBuilder(), committed)
    if segment.generation and (tail.cut or tail.next_offset != segment.next):
        # It was synced before it took its name: what is not whole is no torn tail.
        _refuse(file, tail.position, tail.next_offset, segment.next)
    return tail


def _refuse(file: File, position: int, offset: int, synced: int) -> NoReturn:
    raise CorruptionError(
        f"{file.path} is damaged at position {position}: offsets {offset} to {synced - 1} were safely stored and "
        "cannot be read; nothing was changed: restore the file from a copy",
        file=file.path,
        position=position,
    )


def resolve(segment: Segment, end: int, committed: Committed) -> Tail:
    """What lies beyond the published end `end` in the newest segment, which begins at or before it."""
    file = segment.file()
    size = file.size()
    start = segment.floor(end)
    builder = IndexBuilder()
    builder.max_timestamp, builder.indexed = start.max_timestamp, start.position
    next_offset, position = max(start.offset, segment.base), start.position
    for found in walk_verified(file, start.position, size):
        if found.header.next_offset > end:
            break
        builder.add(found)
        next_offset, position = found.header.next_offset, found.position + found.header.total_bytes
    if next_offset < end:
        _refuse(file, position, next_offset, end)
    return _walk(file, end, position, size, builder, committed)


def _walk(file: File, next_offset: int, position: int, size: int, builder: IndexBuilder, committed: Committed) -> Tail:
    synced, first, transaction, numbered = 0, NEVER_MS, NO_TRANSACTION, False
    epochs: tuple[int, int] | None = None
    for found in walk_verified(file, position, size):
        header = found.header
        if header.base_offset != next_offset or (epochs is not None and header.epoch < epochs[1]):
            break
        if header.flags & FLAG_TRANSACTION:
            if not committed(header):
                break
            transaction = header.transaction_id
        builder.add(found)
        next_offset = header.next_offset
        position = found.position + header.total_bytes
        synced = max(synced, header.synced_upto)
        first = header.base_timestamp if first == NEVER_MS else first
        numbered = numbered or header.producer_id != NO_PRODUCER
        epochs = (header.epoch if epochs is None else epochs[0]), header.epoch
    index = builder.indexed, builder.entries
    times = builder.max_timestamp, first
    return Tail(next_offset, position, size - position, synced, *times, transaction, numbered, *index, epochs)


def _recorded(file: File, position: int, size: int) -> int:
    """The greatest synced offset that any whole batch from `position` on records, damage between them or not."""
    greatest = 0
    position = next_batch(file, position, size)
    while position < size:
        for found in walk_verified(file, position, size):
            # No batch was written before what it says is safe: one that says so is part of somebody's message.
            if found.header.synced_upto <= found.header.base_offset:
                greatest = max(greatest, found.header.synced_upto)
            position = found.position + found.header.total_bytes
        position = next_batch(file, position + 1, size)
    return greatest


def next_batch(file: File, position: int, size: int) -> int:
    """Where the next whole batch begins, at or after `position`; `size` when there is none."""
    while position + HEADER_BYTES <= size:
        chunk = file.read(min(_SEARCH_BYTES, size - position), position)
        at = chunk.find(MAGIC)
        if at < 0:
            position += max(1, len(chunk) - len(MAGIC) + 1)
        elif _is_whole(file, position + at, size):
            return position + at
        else:
            position += at + 1
    return size


def _is_whole(file: File, position: int, size: int) -> bool:
    try:
        header = unpack_header(file.read(HEADER_BYTES, position))
        if position + header.total_bytes > size:
            return False
        verify(header, file.read(header.total_bytes, position))
    except BadBatch:
        return False
    return True
