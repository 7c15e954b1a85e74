"""A partition's list of segments: which are there, which one holds an offset or a time.

The directory is the truth. A `Log` remembers what it listed until somebody says that the list changed (the CHANGES word
of the partition's counters). Where compaction was cut off half-way, two segments may stand for the same offsets: the
one of the higher generation counts, and the other is superseded, to be removed by whoever holds the partition's lock.
"""

from __future__ import annotations

import threading
from typing import Final

from sortedcontainers import SortedDict

from streamlite.files import Files, MissingFile
from streamlite.handles import Handles
from streamlite.segment import NEVER_MS, Segment, walk

__all__ = ["Log"]

_NOT_LISTED: Final[SortedDict[int, Segment]] = SortedDict()
"""Of all that nobody looked into yet: one of its own for each of 10,000 partitions took most of the time to open their
topic, as each is twenty objects that the garbage collector goes through again and again meanwhile.
"""


class Log:
    """The segments of one partition, in the directory `directory`."""

    def __init__(self, files: Files, handles: Handles, incarnation: int, directory: str) -> None:
        self.directory = directory
        self._files = files
        self._handles = handles
        self._incarnation = incarnation
        self._mutex = threading.Lock()  # guards the replacement of the list below
        self._segments: SortedDict[int, Segment] = _NOT_LISTED
        self._seen = -1
        self.superseded: list[Segment] = []

    def segments(self, changes: int) -> SortedDict[int, Segment]:
        """Segments by base offset, as of the `changes`-th change of the list; not to be modified."""
        if changes != self._seen:
            self.refresh(changes)
        return self._segments

    def refresh(self, changes: int) -> None:
        """List the directory again, keeping what is known of segments that are still there."""
        with self._mutex:
            try:
                names = self._files.list(self.directory)
            except MissingFile:
                names = []
            found = [segment for name in names if (segment := self._parse(name)) is not None]
            current, self.superseded = current_segments(found)
            fresh: SortedDict[int, Segment] = SortedDict()
            for segment in current:
                known = self._segments.get(segment.base)
                fresh[segment.base] = known if known is not None and known.path == segment.path else segment
            self._segments = fresh
            self._seen = changes

    def refreshed(self, changes: int) -> SortedDict[int, Segment]:
        """As `segments`, but listed anew: for whoever repairs, under the partition's lock."""
        self.refresh(changes)
        return self._segments

    def tidy(self) -> None:
        """Remove what a stop left half-made: unfinished copies, indexes without a log; under the partition's lock."""
        try:
            names = set(self._files.list(self.directory))
        except MissingFile:
            return
        for name in names:
            stem, _, suffix = name.rpartition(".")
            if suffix == "new" or (suffix == "index" and f"{stem}.log" not in names):
                self._files.remove(f"{self.directory}/{name}")

    def _parse(self, name: str) -> Segment | None:
        return Segment.parse(self._handles, self._incarnation, self.directory, name)

    def create(self, base: int) -> Segment:
        """A new, empty segment file; under the partition's lock."""
        segment = Segment(self._handles, self._incarnation, self.directory, base)
        segment.file(create=True)
        return segment

    def compacted(self, base: int, next_offset: int, generation: int) -> Segment:
        """The name of a segment that compaction is about to write."""
        return Segment(self._handles, self._incarnation, self.directory, base, next_offset, generation)

    def remove(self, segment: Segment) -> None:
        """Remove a segment's files, the log first: an index without a log is nothing, a log without one is whole."""
        self._files.remove(segment.log_path)
        self._files.remove(segment.index_path)
        segment.forget()

    def holding(self, offset: int, changes: int) -> Segment | None:
        """The segment to look into for `offset`: the last that begins at or before it, else the first there is."""
        segments = self.segments(changes)
        if not segments:
            return None
        at = max(segments.bisect_right(offset) - 1, 0)
        return segments.peekitem(at)[1]  # type: ignore[no-any-return]

    def after(self, segment: Segment, changes: int) -> Segment | None:
        """The segment that follows."""
        segments = self.segments(changes)
        at = segments.bisect_right(segment.base)
        return segments.peekitem(at)[1] if at < len(segments) else None


def current_segments(found: list[Segment]) -> tuple[list[Segment], list[Segment]]:
    """`(current, superseded)`: what a list of segment files means, whatever compaction left of itself."""
    compacted = [segment for segment in found if segment.generation]
    superseded = [
        segment for segment in found if any(_covers(other, segment) for other in compacted if other is not segment)
    ]
    current = [segment for segment in found if segment not in superseded]
    return sorted(current, key=lambda segment: segment.base), superseded


def _covers(other: Segment, segment: Segment) -> bool:
    """Whether `other` was made of `segment`, among others."""
    return other.generation > segment.generation and other.base <= segment.base < other.next


def last_timestamp(segment: Segment) -> int:
    """The greatest timestamp of a sealed segment; `NEVER_MS` when it is empty."""
    size = segment.file().size()
    entry = segment.last_entry()
    start, greatest = (entry.position, entry.max_timestamp) if entry is not None else (0, NEVER_MS)
    for found in walk(segment.file(), start, size):
        greatest = max(greatest, found.header.max_timestamp)
    return greatest
