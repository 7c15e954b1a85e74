"""One segment: a file of batches, its name, its sparse index, and how to walk it.

A segment's log file is the truth; its index is a cache of (offset, position, greatest timestamp before it) about every
64 KiB, appended to by whoever appends to the log, read by whoever seeks. One index serves both kinds of seek, because
"the greatest timestamp before here" rises with the offset. Entries check themselves, and a seek confirms one against
the batch it points at; with any doubt the segment is walked instead, so that a lost index costs time and never truth.
A sealed segment's index ends with an entry for its end, which tells its greatest timestamp without a walk.

Lengths and positions are bytes, offsets count messages.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from streamlite.files import File, MissingFile
from streamlite.format import (
    HEADER_BYTES,
    INDEX_ENTRY_BYTES,
    INDEX_INTERVAL_BYTES,
    BadBatch,
    BatchHeader,
    IndexEntry,
    ShortBatch,
    pack_entry,
    parse_segment_name,
    segment_name,
    unpack_entries,
    unpack_header,
    verify,
)
from streamlite.handles import Handles

__all__ = ["NEVER_MS", "Found", "Segment", "walk", "walk_verified"]

NEVER_MS = -(1 << 63)
"""Earlier than every timestamp."""

_WALK_BYTES = 64 << 10
_WALK_VERIFIED_BYTES = 1 << 20
_INDEX_READ_BYTES = 1 << 20
"""Of an index, at a time: its size says nothing about how much of it makes sense."""


class Found(NamedTuple):
    """A batch's header and the position where it begins."""

    header: BatchHeader
    position: int


def walk(file: File, position: int, limit: int) -> Iterator[Found]:
    """The headers of the batches from `position` up to `limit`, payloads unread; ends before what is no header."""
    chunk, at = b"", position
    while position + HEADER_BYTES <= limit:
        if position + HEADER_BYTES > at + len(chunk) or position < at:
            chunk, at = file.read(min(_WALK_BYTES, limit - position), position), position
        try:
            header = unpack_header(chunk, position - at)
        except BadBatch:
            return
        if position + header.total_bytes > limit:
            return
        yield Found(header, position)
        position += header.total_bytes


def walk_verified(file: File, position: int, limit: int) -> Iterator[Found]:
    """As `walk`, but every batch is read whole and its checksum holds."""
    chunk, at = b"", position
    while position < limit:
        try:
            header = unpack_header(chunk, position - at)
            if position + header.total_bytes > limit:
                return
            verify(header, chunk, position - at)
        except ShortBatch as short:
            if at + len(chunk) >= min(limit, position + short.needed):
                return  # the file is shorter than it should be
            chunk, at = file.read(min(max(_WALK_VERIFIED_BYTES, short.needed), limit - position), position), position
            if len(chunk) < short.needed:
                return
            continue
        except BadBatch:
            return
        yield Found(header, position)
        position += header.total_bytes


class _Index:
    """What was read of an index: columns that only grow. Where entries go away another one takes its place.

    An offset is added last and the others are looked at no further than the offsets go, so who reads needs no lock.
    """

    __slots__ = ("max_times", "offsets", "positions")

    def __init__(self) -> None:
        self.offsets = array("q")
        self.positions = array("q")
        self.max_times = array("q")

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, at: int) -> IndexEntry:
        return IndexEntry(self.offsets[at], self.positions[at], self.max_times[at])

    def take(self, entries: list[IndexEntry]) -> bool:
        """Add what continues it; whether that was all."""
        for column in (self.max_times, self.positions):
            del column[len(self) :]  # of an entry that a signal handler cut off half-way
        last = self[-1] if self.offsets else None
        for entry in entries:
            if last is not None and not entry.follows(last):
                return False  # stale: not a continuation of what is known
            self.max_times.append(entry.max_timestamp)
            self.positions.append(entry.position)
            self.offsets.append(entry.offset)
            last = entry
        return True

    def until(self, position: int) -> _Index:
        """A copy with the entries for positions before `position`."""
        kept = _Index()
        keep = bisect_left(self.positions, position, 0, len(self))
        kept.offsets, kept.positions = self.offsets[:keep], self.positions[:keep]
        kept.max_times = self.max_times[:keep]
        return kept


class Segment:
    """A segment of one partition, known by its name; holds no descriptor, only what it read of its index."""

    __slots__ = ("_handles", "_incarnation", "_index", "_mutex", "base", "generation", "next", "path")

    def __init__(
        self, handles: Handles, incarnation: int, directory: str, base: int, next_offset: int = 0, generation: int = 0
    ) -> None:
        self._handles = handles
        self._incarnation = incarnation
        self.base = base
        self.next = next_offset
        """For a compacted segment the offset after those it stands for; 0 where the next segment's base tells."""
        self.generation = generation
        self.path = f"{directory}/{segment_name(base, next_offset, generation)}"
        self._mutex = threading.Lock()  # guards the growth and the replacement of _index: readers share a segment
        self._index = _Index()

    @classmethod
    def parse(cls, handles: Handles, incarnation: int, directory: str, name: str) -> Segment | None:
        """The segment whose log file has that name, or `None`."""
        stem, dot, suffix = name.rpartition(".")
        parsed = parse_segment_name(stem) if dot and suffix == "log" else None
        return None if parsed is None else cls(handles, incarnation, directory, *parsed)

    @property
    def log_path(self) -> str:
        """Its file of batches."""
        return f"{self.path}.log"

    @property
    def index_path(self) -> str:
        """Its index."""
        return f"{self.path}.index"

    def file(self, *, create: bool = False) -> File:
        """Its open log file; `MissingFile` when retention or compaction took it away."""
        return self._handles.file(self._incarnation, self.log_path, create=create)

    def index_file(self, *, create: bool = False) -> File:
        """Its open index file."""
        return self._handles.file(self._incarnation, self.index_path, create=create)

    def forget(self) -> None:
        """Drop its descriptors: the files are removed."""
        self._handles.forget(self._incarnation, self.log_path)
        self._handles.forget(self._incarnation, self.index_path)

    def add_entry(self, entry: IndexEntry) -> None:
        """Append to the index file; under the partition's lock. A reader takes it up at its next seek."""
        file = self.index_file(create=True)
        file.write([pack_entry(entry)], file.size() // INDEX_ENTRY_BYTES * INDEX_ENTRY_BYTES)

    def cut_index(self, position: int) -> None:
        """Remove index entries for positions from `position` on; under the partition's lock, before the log is cut."""
        with self._mutex:
            kept = self._look().until(position)
            with suppress(MissingFile):  # no index yet: nothing to cut
                self.index_file().truncate(len(kept) * INDEX_ENTRY_BYTES)
            self._index = kept

    def replace_index(self, entries: list[IndexEntry]) -> None:
        """Write the whole index anew, from a walk; under the partition's lock."""
        with self._mutex:
            file = self.index_file(create=True)
            file.truncate(0)
            file.write([pack_entry(entry) for entry in entries], 0)
            self._index = _Index()
            self._index.take(entries)

    def _load(self) -> _Index:
        """The index, with the entries that were appended since the last look."""
        with self._mutex:
            return self._look()

    def _look(self) -> _Index:
        index = self._index
        try:
            file = self.index_file()
        except MissingFile:
            return index
        size = file.size()
        if size < len(index) * INDEX_ENTRY_BYTES:
            index = self._index = _Index()  # somebody cut it: which entries are still true is in the file
        known = len(index) * INDEX_ENTRY_BYTES
        while size - known >= INDEX_ENTRY_BYTES:
            entries = unpack_entries(file.read(min(size - known, _INDEX_READ_BYTES), known))
            if not index.take(entries) or len(entries) < _INDEX_READ_BYTES // INDEX_ENTRY_BYTES:
                break
            known = len(index) * INDEX_ENTRY_BYTES
        return index

    def last_entry(self) -> IndexEntry | None:
        """The last index entry, which for a sealed segment stands for its end."""
        index = self._load()
        return index[len(index) - 1] if len(index) else None

    def floor(self, offset: int) -> IndexEntry:
        """The last confirmed index entry at or before `offset`; the segment's beginning where there is none."""
        index = self._load()
        return self._confirmed(index, bisect_right(index.offsets, offset) - 1)

    def floor_time(self, timestamp_ms: int) -> IndexEntry:
        """The last confirmed entry with nothing of that time or later before it."""
        index = self._load()
        return self._confirmed(index, bisect_left(index.max_times, timestamp_ms, 0, len(index)) - 1)

    def _confirmed(self, index: _Index, at: int) -> IndexEntry:
        """The entry number `at`, or the nearest before it that points at the batch it names."""
        while at >= 0:
            entry = index[at]
            try:
                header = unpack_header(self.file().read(HEADER_BYTES, entry.position))
                if header.base_offset == entry.offset:
                    return entry
                self._forget(index)
            except ShortBatch:
                pass  # an entry for the segment's end: nothing stands there
            except BadBatch:
                self._forget(index)
            at -= 1
        return IndexEntry(self.base, 0, NEVER_MS)

    def _forget(self, index: _Index) -> None:
        """It is of other bytes than the log now has: the next seek reads it anew."""
        with self._mutex:
            if self._index is index:
                self._index = _Index()


class IndexBuilder:
    """Makes the entries of an index from the batches of a segment, in order."""

    def __init__(self) -> None:
        self.entries: list[IndexEntry] = []
        self.max_timestamp = NEVER_MS
        self.indexed = 0

    def add(self, found: Found) -> None:
        """Take up the next batch."""
        if found.position - self.indexed >= INDEX_INTERVAL_BYTES:
            self.entries.append(IndexEntry(found.header.base_offset, found.position, self.max_timestamp))
            self.indexed = found.position
        self.max_timestamp = max(self.max_timestamp, found.header.max_timestamp)

    def seal(self, next_offset: int, position: int) -> None:
        """Add the entry that stands for the segment's end."""
        self.entries.append(IndexEntry(next_offset, position, self.max_timestamp))
