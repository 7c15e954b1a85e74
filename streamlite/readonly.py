"""Following a bus that is only read: nothing is written, locked or repaired.

The words of a partition are looked up anew whenever somebody asks for its end, in this order: from the counters that
the writers share, where these are of this boot and the partition is recovered; from the mark of a clean close; else
from the log itself, as recovery would find it, but without changing a byte. They are kept in a private page, so that
all of the engine above reads as it always does.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from streamlite.beginning import stored_start
from streamlite.context import Context
from streamlite.counters import (
    BLOCK_BYTES,
    BOOT,
    CHANGES,
    DELETED,
    FLAGS,
    PAGE,
    PATH,
    READY,
    READY_MARK,
    RECOVER,
    SLOTS,
    TOPICS,
    Counters,
    Slot,
    SlotState,
    to_word,
)
from streamlite.errors import StorageError
from streamlite.files import Files
from streamlite.files.memory import MemoryFiles
from streamlite.marks import Identity, read_clean, read_epoch
from streamlite.partition import Partition
from streamlite.recovery import recover
from streamlite.segment import NEVER_MS

__all__ = ["Follower", "PrivateCounters"]

FOLLOW: Final = 8
"""A flag that every private slot has: whoever asks for its end follows the log first."""


class PrivateCounters(Counters):
    """The words as this reader knows them."""

    def __init__(self) -> None:
        super().__init__(MemoryFiles())

    def slot(self, number: int) -> Slot:
        slot = super().slot(number)
        slot.set(FLAGS, FOLLOW)
        return slot


class _SharedCounters:
    """The writers' counters, where they are there to be looked at."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._boot = files.boot_id()
        self._header: memoryview | None = None
        self._blocks: dict[int, Counters] = {}
        self._pages: dict[int, tuple[memoryview, memoryview]] = {}

    def _map(self, offset: int, size: int) -> memoryview | None:
        try:
            return self._files.map(PATH, offset, size)
        except StorageError:  # not there, or not that long yet: looked for again at the next turn
            return None

    @property
    def header(self) -> memoryview | None:
        """The first words, whatever boot they are of."""
        if self._header is None:
            page = self._map(0, PAGE)
            self._header = None if page is None else page.cast("Q")
        return self._header

    def state(self, number: int) -> SlotState | None:
        """The words of a slot; `None` where they cannot be believed."""
        header = self.header
        if header is None or header[READY] != READY_MARK or header[BOOT] != self._boot:
            return None
        block = number // SLOTS
        if block not in self._pages:
            view = self._map(PAGE + block * BLOCK_BYTES, BLOCK_BYTES)
            if view is None:
                return None
            self._pages[block] = (view[:PAGE].cast("Q"), view[PAGE:].cast("Q"))
        ends, details = self._pages[block]
        # The end is loaded first: whatever else is read afterwards covers it.
        return Slot(number, ends, details).load()


class Follower:
    """Brings the private words up to date."""

    def __init__(self, ctx: Context, identity: Identity) -> None:
        self._ctx = ctx
        self._identity = identity
        self._shared = _SharedCounters(ctx.files)
        self._known: dict[Partition, tuple[object, SlotState]] = {}
        ctx.counters.header[3] = read_epoch(ctx.files)

    def follow(self, partition: Partition | None) -> None:
        """The words of a partition; of `None`, whether topics came or went."""
        header = self._shared.header
        if header is not None:
            self._ctx.counters.header[TOPICS] = header[TOPICS]
        if partition is None:
            return
        state = self._found(partition)
        partition.slot.store(state._replace(flags=FOLLOW | (state.flags & DELETED)))

    def _found(self, partition: Partition) -> SlotState:
        number, incarnation = partition.slot.number, partition.topic.incarnation
        state = self._shared.state(number)
        if state is not None and state.incarnation == incarnation and not state.flags & RECOVER:
            return state
        clean = read_clean(self._ctx.files, self._identity)
        if clean is not None and number in clean and clean[number].incarnation == incarnation:
            return clean[number]
        return self._walked(partition)

    def _walked(self, partition: Partition) -> SlotState:
        """What recovery would find, looked for again only where a file came, went or grew.

        A log is asked for its end at every turn, and that of the commit records for every transaction in the others.
        """
        segments = partition.log.refreshed(partition.slot.get(CHANGES)).values()
        files = (tuple(segment.path for segment in segments), segments[-1].file().size() if segments else 0)
        before = self._known.get(partition)
        if before is None or before[0] != files:
            before = self._known[partition] = (files, self._walk(partition))
        return before[1]

    def _walk(self, partition: Partition) -> SlotState:
        changes = partition.slot.get(CHANGES)
        segments = partition.log.segments(changes)
        start = stored_start(partition.ctx.files, partition.directory)
        found = recover(segments.values(), partial(self._ctx.ledger.committed, partition), start=start)
        if found.active is None or found.tail is None:
            return SlotState(end=start, start=start, incarnation=partition.topic.incarnation, changes=changes)
        start = max(start, found.first)
        return SlotState(
            end=max(found.tail.next_offset, start),
            position=found.tail.position,
            active=found.active.base,
            start=start,
            incarnation=partition.topic.incarnation,
            max_time=to_word(max(found.tail.max_timestamp, NEVER_MS)),
            changes=changes,
        )
