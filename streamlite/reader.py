"""Reading a partition in offset order, without locks.

A `Cursor` loads the published end first and then reads the files: a batch is believed only when it lies below the end
that was loaded before its bytes were read, since what stands beyond may still be cut and written anew. Batches come as
they are on disk, verified; a batch out of place (its offset is not the one that must come next) is damage like one with
a bad checksum. Bytes below the end that are missing or bad are looked at again under the lock, for a segment may have
been swapped or removed meanwhile, before they are called corrupt.

Seeking is two bisections (which segment, which index entry) and then this same verified reading from there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from streamlite.batch import Batch, decode, peel
from streamlite.counters import ACTIVE, CHANGES, POSITION, START
from streamlite.errors import CorruptionError, OffsetOutOfRangeError, StreamliteError
from streamlite.files import File, MissingFile
from streamlite.format import HEADER_BYTES, BadBatch, BatchHeader, ShortBatch, unpack_header, verify
from streamlite.partition import Partition
from streamlite.segment import Segment

__all__ = ["Cursor", "batches_left", "cap_offset", "offset_for_time"]

_LOOKS: Final = 20
"""Swaps of segments that may come in the way of one read, one after the other."""
READ_BYTES: Final = 1 << 20
"""One read of the file: large enough that the system call is a hundredth of the work on what it brings."""


class Cursor:
    """Where one reader stands in one partition: `offset` is the next one it wants. For one thread at a time."""

    __slots__ = (
        "_chunk", "_chunk_at", "_chunk_end", "_file", "_next", "_position", "_segment", "offset", "partition", "peels",
    )  # fmt: skip

    def __init__(self, partition: Partition, offset: int) -> None:
        self.partition = partition
        self.offset = offset
        self.peels = False  # whether columns are to stay encoded until they are asked for
        self._segment: Segment | None = None
        self._file: File | None = None
        self._position = 0  # in the segment's file, where the next batch begins
        self._next = 0  # the offset expected there
        self._forget_chunk()

    def _forget_chunk(self) -> None:
        self._chunk = memoryview(b"")
        self._chunk_at = 0
        self._chunk_end = 0  # the published end when the chunk was read

    def seek(self, offset: int) -> None:
        """Want `offset` next; costs nothing where that is where it stands."""
        if offset != self.offset or (self._segment is not None and self._next > offset):
            self._segment = None
            self._file = None
            self._forget_chunk()
        self.offset = offset

    def fetch(self) -> Batch | None:
        """The next batch that holds a message at or after `offset`, or `None` at the published end.

        The batch may begin before `offset`; the caller moves `offset` on. Raises `OffsetOutOfRangeError` where `offset`
        is before the log's beginning or beyond its end, `CorruptionError` for bytes that are not what was written.
        """
        partition = self.partition
        if self._next > self.offset:
            self._segment = None  # the last one was passed and reached nobody: a signal handler ended the call
        end = partition.end()
        if not partition.slot.get(START) <= self.offset <= end:
            self._refuse(end)
        if self.offset == end:
            if len(self._chunk):
                self._forget_chunk()  # an idle reader holds no memory
            return None
        try:
            return self._next_batch(end)
        except (BadBatch, MissingFile) as error:
            return self._look_again(error)

    def _refuse(self, end: int) -> None:
        start = self.partition.start()
        raise OffsetOutOfRangeError(
            f"offset {self.offset} of {self.partition.tp.topic!r} partition {self.partition.number} is not in the log, "
            f"which holds {start} to {end}: seek to one of these, or choose out_of_range='earliest' or 'latest'"
        )

    def _look_again(self, first: Exception) -> Batch | None:
        """Once what a dead writer left is settled; again, as long as somebody swaps or removes segments meanwhile."""
        partition, slot = self.partition, self.partition.slot
        error = first
        for _ in range(_LOOKS):
            self._segment = None
            self._forget_chunk()
            if partition.guard.mine:
                partition.settle()
            elif not partition.ctx.read_only:
                partition.settle_now()
            changes = slot.get(CHANGES)
            partition.log.refresh(changes)
            end = partition.end()
            if self.offset < slot.get(START):
                self._refuse(end)
            try:
                return self._next_batch(end)
            except (BadBatch, MissingFile) as again:
                error = again
            if slot.get(CHANGES) == changes:
                break
        if isinstance(error, MissingFile):
            raise first from None
        segment = self._segment
        path = segment.log_path if segment is not None else partition.directory
        raise CorruptionError(
            f"{path} is damaged at position {self._position} (offset {self._next}): {error}; what stands elsewhere "
            "can still be read by seeking past it",
            file=path,
            position=self._position,
        ) from error

    def damaged(self, batch: Batch, error: Exception | str) -> CorruptionError:
        """What is to be said of a batch that came from here and whose messages make no sense to who wrote them."""
        path = self.partition.directory if self._segment is None else self._segment.log_path
        position = max(0, self._position - batch.header.total_bytes)
        return CorruptionError(
            f"{path} is damaged at position {position} (offset {batch.header.base_offset}): {error}; restore it from a "
            "copy",
            file=path,
            position=position,
        )

    def _next_batch(self, end: int) -> Batch | None:
        while True:
            if self._segment is None:
                self._locate()
            header = self._header(end)
            if header is None:
                if not self._advance(end):
                    return None
                continue
            if header.base_offset >= end:
                return None
            if header.next_offset <= self.offset:
                self._pass(header)  # not looked into: damage in it is no matter of who seeks past it
                continue
            payload = self._payload(header, end)
            batch = self._peeled(header, payload) if self.peels else decode(header, payload)
            self._pass(header)
            if batch.offsets and batch.offsets[-1] >= self.offset:
                return batch

    def _peeled(self, header: BatchHeader, payload: memoryview) -> Batch:
        assert self._segment is not None
        batch = peel(header, payload)
        batch.place = (self._segment.log_path, self._position)
        return batch

    def _pass(self, header: BatchHeader) -> None:
        position, following = self._position + header.total_bytes, header.next_offset
        self._position, self._next = position, following

    def _locate(self) -> None:
        """Stand at the last known beginning of a batch at or before `offset`."""
        partition = self.partition
        segment = partition.log.holding(self.offset, partition.slot.get(CHANGES))
        if segment is None:
            raise BadBatch("no segment is there")
        if segment.base > self.offset:
            self._next = self.offset
            raise BadBatch(f"the segment that holds it is gone, the first one there begins at {segment.base}")
        entry = segment.floor(self.offset)
        self._enter(segment, entry.position, max(entry.offset, segment.base))

    def _enter(self, segment: Segment, position: int, offset: int) -> None:
        self._segment = None
        self._file = segment.file()
        self._position = position
        self._next = offset
        self._forget_chunk()
        self._segment = segment  # last: what is interrupted here is located anew

    def _advance(self, end: int) -> bool:
        """Go to the next segment; `False` where there is nothing more below `end`, all of it having been passed."""
        assert self._segment is not None
        partition = self.partition
        if self._segment.next > self._next:
            raise BadBatch(f"the file ends before offset {self._next}, it was to reach {self._segment.next}")
        following = partition.log.after(self._segment, partition.slot.get(CHANGES))
        if following is None:
            if self._next < end:
                raise BadBatch(f"the file ends before offset {self._next}, the log at {end}")
            self.offset = max(self.offset, end)  # what compaction left out at the end is passed
            return False
        if following.base != self._next:
            raise BadBatch(f"offset {self._next} is missing: the next segment begins at {following.base}")
        self._enter(following, 0, following.base)
        return True

    def _header(self, end: int) -> BatchHeader | None:
        """The header at the position, or `None` at the end of the file."""
        at = self._position - self._chunk_at
        if at + HEADER_BYTES > len(self._chunk) or self._next >= self._chunk_end:
            self._read(READ_BYTES, end)
            at = 0
            if len(self._chunk) == 0:
                return None
        header = unpack_header(self._chunk, at)
        if header.base_offset != self._next:
            raise BadBatch(f"offset {self._next} is missing: a batch begins at {header.base_offset}")
        return header

    def _payload(self, header: BatchHeader, end: int) -> memoryview:
        try:
            return verify(header, self._chunk, self._position - self._chunk_at)
        except ShortBatch as short:
            self._read(max(READ_BYTES, short.needed), end)
            return verify(unpack_header(self._chunk), self._chunk)

    def _read(self, size: int, end: int) -> None:
        """Read from the position on; of the active segment no more than what is published."""
        assert self._segment is not None
        assert self._file is not None
        slot = self.partition.slot
        if slot.get(ACTIVE) == self._segment.base and not self._segment.generation:
            # Stored before the end was, so it covers all that lies below `end`, unless a roll came between.
            published = slot.get(POSITION) - self._position
            if 0 < published < size and slot.get(ACTIVE) == self._segment.base:
                size = published
        if size > READ_BYTES:  # a length that is damaged must not make anybody allocate it
            size = min(size, max(self._file.size() - self._position, 0))
        self._chunk = memoryview(self._file.read(size, self._position))
        self._chunk_at = self._position
        self._chunk_end = end

    def batches(self, until: int) -> Iterator[Batch]:
        """Every batch from here on that holds something below offset `until`."""
        while self.offset < until:
            batch = self.fetch()
            if batch is None:
                return
            yield batch
            self.offset = max(self.offset, batch.header.next_offset)


def batches_left(partition: Partition, start: int, stop: int) -> Iterator[Batch]:
    """Every batch with something from `start` up to `stop`; what is removed while somebody reads is passed over."""
    cursor = Cursor(partition, start)
    while True:
        try:
            yield from cursor.batches(stop)
            return
        except OffsetOutOfRangeError:
            if partition.start() <= cursor.offset:
                raise
            cursor.seek(partition.start())


def offset_for_time(partition: Partition, timestamp_ms: int) -> int | None:
    """The first offset whose message has that timestamp or a later one; `None` when there is none."""
    end, start = partition.end(), partition.slot.get(START)
    changes = partition.slot.get(CHANGES)
    segments = list(partition.log.segments(changes).values())
    for segment, following in zip(segments, [*segments[1:], None]):  # noqa: B905 - of none there is no last one
        entry = segment.last_entry() if following is not None else None
        is_end = entry is not None and following is not None and entry.offset == following.base
        if entry is not None and is_end and entry.max_timestamp < timestamp_ms:
            continue  # a sealed segment's last entry stands for its end: nothing in it is later than that
        until = end if following is None else following.base
        floor = segment.floor_time(timestamp_ms)
        for batch in batches_left(partition, max(floor.offset, start), until):
            if batch.header.max_timestamp >= timestamp_ms:
                for offset, timestamp in zip(batch.offsets, batch.timestamps, strict=True):
                    if timestamp >= timestamp_ms and offset >= partition.slot.get(START):
                        return offset
    return None


def cap_offset(partition: Partition, offset: int, epoch: int) -> int:
    """`offset` as it still holds when it was noted down in `epoch`.

    Within the present epoch no offset was taken back. An earlier one may have lost its tail with a stop of the machine,
    and its offsets may have been given to other messages since: it is capped at the first batch of a later epoch, else
    at the log's end (compare KIP-101).
    """
    end = partition.end()
    if epoch >= partition.ctx.epoch:
        return offset
    return min(offset, end, _first_of_later_epoch(partition, offset, epoch))


def _first_of_later_epoch(partition: Partition, offset: int, epoch: int) -> int:
    """The first offset below `offset` that a later epoch wrote, else `offset`. Epochs rise with offsets."""
    changes = partition.slot.get(CHANGES)
    segments = list(partition.log.segments(changes).values())
    first = max(bisect_left(segments, True, key=lambda one: _begins_later(one, epoch)) - 1, 0)
    start = segments[first].base if segments else 0
    for batch in batches_left(partition, max(start, partition.start()), min(offset, partition.end())):
        if batch.header.epoch > epoch:
            return batch.header.base_offset
    return offset


def _begins_later(segment: Segment, epoch: int) -> bool:
    try:
        return unpack_header(segment.file().read(HEADER_BYTES, 0)).epoch > epoch
    except (BadBatch, StreamliteError):
        return False
