"""One partition: the append protocol, the published end, and bringing both back after a stop.

An append, step by step, under the partition's lock:

1. settle what a dead writer left beyond the published end (`settle`), and refuse where a sync failed;
2. roll the segment if it is full or old;
3. set WRITING, write all batches at the end of the active segment in one call;
4. store the position, then the published end: that store is the publication; clear WRITING;
5. unlock, and wake who waits.

A write that fails cuts its own bytes and clears WRITING again. A process that dies between 3 and 4 leaves WRITING set,
and whoever locks the partition next looks at the tail: position and end may disagree then, so the place of the end is
found by walking from the index. Readers take no lock: they load the end, then read below it (`streamlite.reader`).

With `sync="always"` the data is synced after the lock is released and before the delivery is reported, so that writers
who come meanwhile share one fdatasync; a reader may see a message a moment before it is safe. A sync that fails sets
FAILED for all processes, and the partition takes no more writes until it has been recovered: what the pages hold after
a failed fsync is not known to be on the device, and a second fsync would say nothing about it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar
from weakref import ref

from streamlite.config import TopicSettings
from streamlite.context import Context
from streamlite.counters import (
    ACTIVE,
    BORN,
    CHANGES,
    DELETED,
    FAILED,
    FLAGS,
    INDEXED,
    MAX_TIME,
    NAMED,
    POSITION,
    RECOVER,
    START,
    SYNCED,
    TRANSACTION,
    WRITING,
    Slot,
    SlotState,
    from_word,
    to_word,
)
from streamlite.device import sync_below, sync_files
from streamlite.errors import (
    CorruptionError,
    LockTimeoutError,
    OffsetOutOfRangeError,
    StorageError,
    StreamliteError,
    UnknownTopicError,
)
from streamlite.files import File, FileLock, MissingFile
from streamlite.format import (
    ENCODING_NATIVE,
    HEADER_BYTES,
    INDEX_INTERVAL_BYTES,
    NO_PRODUCER,
    NO_SEQUENCE,
    NO_TRANSACTION,
    OFFSET_MAX,
    IndexEntry,
    checksum,
    pack_header,
)
from streamlite.locks import Guard
from streamlite.log import Log
from streamlite.message import TopicPartition
from streamlite.segment import NEVER_MS, Segment
from streamlite.settle import recover_log, resolve_tail

__all__ = ["Appended", "Outgoing", "Partition", "TopicInfo"]

logger = logging.getLogger("streamlite")

_START_FILE = "start"
_SETTLE_S = 1.0
_T = TypeVar("_T")


class TopicInfo:
    """What a partition knows of its topic; `settings` is replaced as a whole when they are altered."""

    __slots__ = ("directory", "incarnation", "name", "settings")

    def __init__(self, name: str, incarnation: int, settings: TopicSettings) -> None:
        self.name = name
        self.incarnation = incarnation
        self.settings = settings
        self.directory = f"topics/{name}"


class Outgoing(NamedTuple):
    """A batch that is encoded and has no offset yet; the fields are those of `BatchHeader`."""

    payload: bytes
    count: int  # type: ignore[assignment]
    base_timestamp: int
    max_timestamp: int
    content_bytes: int
    compression: int = 0
    flags: int = 0
    producer_id: int = NO_PRODUCER
    producer_epoch: int = 0
    base_sequence: int = NO_SEQUENCE
    transaction_id: int = NO_TRANSACTION
    sequences: Sequence[int] | None = None
    """Of each message, where a named producer left some out."""


class Appended(NamedTuple):
    """What became of a list of batches: base offsets of the leading ones that were written, and why not the rest."""

    offsets: list[int]
    error: StreamliteError | None


def _nothing_kept() -> None:
    return


class Numbering(Protocol):
    """A named producer; see `streamlite.numbering`."""

    def append_locked(self, partition: Partition, batches: Sequence[Outgoing], offsets: list[int]) -> Appended:
        """As `Partition.append_locked`, numbered."""


class Partition:
    """One partition as one open bus sees it. The lock `guard` guards the log's files and the slot's words."""

    def __init__(self, ctx: Context, topic: TopicInfo, number: int, slot: Slot) -> None:
        self.ctx = ctx
        self.topic = topic
        self.number = number
        self.slot = slot
        self.tp = TopicPartition(topic.name, number)
        self.directory = f"{topic.directory}/{number}"
        self.log = Log(ctx.files, ctx.handles, topic.incarnation, self.directory)
        self.guard = Guard(self._open_lock, f"partition {number} of {topic.name!r}")
        self._active: Segment | None = None
        # What the bounded cache of descriptors has anyway: so that an append need not ask it.
        self._lock_kept: Callable[[], FileLock | None] = _nothing_kept
        self._file_kept: Callable[[], File | None] = _nothing_kept
        self._file_base = -1
        self._sync_mutex = threading.Lock()  # one sync of this partition at a time in this process

    def _open_lock(self) -> FileLock:
        lock = self._lock_kept()
        if lock is not None:
            return lock
        try:
            lock = self.ctx.handles.lock(self.topic.incarnation, f"{self.directory}/lock")
            self._lock_kept = ref(lock)
            return lock
        except MissingFile:
            if self.slot.get(FLAGS) & DELETED:
                self._refuse_deleted()
            raise

    def __repr__(self) -> str:
        return f"<Partition {self.topic.name}/{self.number} [{self.slot.get(START)}, {self.slot.end})>"

    # -- the ends -----------------------------------------------------------------------------------------------------

    def end(self) -> int:
        """The published end: the next offset, as everybody sees it. Raises when the topic is gone."""
        if self.slot.get(FLAGS):
            self.look()
        return self.slot.end

    def settled_end(self) -> int:
        """As `end`, but what a dead writer left is waited for, if somebody else is just finishing it.

        For whoever asks what is in the log; a live writer holds the lock for microseconds. One that was stopped in the
        middle of an append delays the answer by `_SETTLE_S`, and no more: what it has not published does not count.
        """
        if self.slot.get(FLAGS) & WRITING and not self.ctx.read_only:
            try:
                self.settle_now(min(_SETTLE_S, self.ctx.lock_timeout))
            except LockTimeoutError:
                return self.end()
        return self.end()

    def start(self) -> int:
        """The first offset of the log."""
        if self.slot.get(FLAGS):
            self.look()
        return self.slot.get(START)

    def look(self) -> None:
        """Do what the flags ask of a reader: recover after a stop, finish for a dead writer, wait for no live one."""
        flags = self.slot.get(FLAGS)
        if flags & DELETED:
            self._refuse_deleted()
        if self.ctx.read_only:
            self.ctx.follow(self)
            return
        if flags & RECOVER:
            self.settle_now()
        elif flags & WRITING:
            self.guard.attempt(self.settle)

    def locked(self, call: Callable[[], _T]) -> _T:
        """Call it under the lock, and settled: the words of the slot are true."""

        def settled() -> _T:
            self.settle()
            return call()

        return self.guard.run(settled, self.ctx.lock_timeout)

    def settle_now(self, timeout: float | None = None) -> None:
        """Take the lock once, for what `settle` does."""
        self.guard.run(self.settle, self.ctx.lock_timeout if timeout is None else timeout)

    def settle_if_free(self) -> None:
        """As `settle_now`, where nobody holds the lock: who does is alive, and does it himself."""
        self.guard.attempt(self.settle)

    # -- append -------------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[Outgoing], timeout: float | None = None) -> Appended:
        """Append, waiting for the lock and, with `sync="always"`, for the device. Raises when nothing was written."""
        timeout = self.ctx.lock_timeout if timeout is None else timeout
        return self.published(self.guard.run(lambda: self.append_locked(batches), timeout))

    def try_append(
        self, batches: Sequence[Outgoing], offsets: list[int], numbering: Numbering | None = None
    ) -> Appended | None:
        """As `append`, but `None` where the lock is not free at once. `numbering`: of a named producer.

        `offsets`, given empty, grows with each batch's publication: whatever a signal handler raised then, it says what
        is in the log, and `published` does what is left to do.
        """
        if numbering is None:
            result = self.guard.attempt(partial(self.append_locked, batches, offsets))
        else:
            result = self.guard.attempt(lambda: numbering.append_locked(self, batches, offsets))
        return None if result is None else self.published(result)

    def published(self, result: Appended) -> Appended:
        """What follows a publication once the lock is free."""
        self.announce()
        if self.ctx.always and result.offsets:
            try:
                self.sync(result.offsets[-1] + 1)
            except StreamliteError as error:
                return Appended([], error)
        return result

    def announce(self) -> None:
        """Tell who syncs and who waits; with no lock held."""
        ctx = self.ctx
        if self not in ctx.dirty:
            ctx.dirty.add(self)
            ctx.on_dirty()
        bell = ctx.bell
        if bell.words[0] or bell.waiters:
            bell.ring()  # the last thing: who is woken needs the GIL, and gets it when this thread is through

    def append_locked(self, batches: Sequence[Outgoing], offsets: list[int] | None = None) -> Appended:
        """Append under the lock; the caller announces it afterwards. `offsets` grows as in `try_append`."""
        offsets = [] if offsets is None else offsets
        try:
            while len(offsets) < len(batches):
                self._append_run(batches, offsets)
        except StreamliteError as error:
            if not offsets:
                raise
            return Appended(offsets, error)
        return Appended(offsets, None)

    def _append_run(self, batches: Sequence[Outgoing], offsets: list[int]) -> None:
        """Append as many of the batches as fit the active segment, at least one, with one write; `offsets` grows."""
        known = len(offsets)
        words = self._ready_for(HEADER_BYTES + len(batches[known].payload))
        buffers, bases, size, greatest = self._packed(batches[known:], words[POSITION], words[SYNCED])
        end = bases[-1] + batches[known + len(bases) - 1].count
        self._write(words, buffers, size, greatest, end, bases, offsets)

    def append_single(self, payload: bytes, stamp: int) -> int:
        """As `append_locked` for one message, neither compressed nor numbered: its offset. Raises where it failed."""
        size = len(payload)
        words = self._ready_for(HEADER_BYTES + size)
        offset = self.slot.end
        header = (
            ENCODING_NATIVE, 0, 0, size, size, 1, 0, offset, stamp, stamp, words[SYNCED], self.ctx.epoch, 0,
            NO_PRODUCER, NO_SEQUENCE, NO_TRANSACTION,
        )  # fmt: skip
        buffers = [pack_header(header, payload), payload]
        self._write(words, buffers, HEADER_BYTES + size, stamp, offset + 1, [offset], [])
        return offset

    def _ready_for(self, size: int) -> list[int]:
        """The slot's words, once what others left is settled and `size` bytes may go to the active segment."""
        words = self.slot.words()
        if words[FLAGS] or words[FAILED]:
            self.settle()
            words = self.slot.words()
        if self.is_full(words, size):
            self.roll()
            words = self.slot.words()
        return words

    def _write(
        self,
        words: list[int],
        buffers: list[bytes],
        size: int,
        greatest: int,
        end: int,
        bases: list[int],
        offsets: list[int],
    ) -> None:
        """Write batches with these base offsets behind the active segment, and publish them up to `end`."""
        slot, position, before, known = self.slot, words[POSITION], words[MAX_TIME], len(offsets)
        latest = max(before, to_word(greatest))
        file = self.active_file(words)
        if not position:
            slot.set(BORN, max(self.ctx.clock.time_ms(), 0))
        cut = file.cutting(position)
        slot.set(FLAGS, WRITING)
        try:
            file.write(buffers, position)
            slot.publish(position + size, latest, end, bases, offsets)
        except BaseException:
            # Also for what a signal handler raised: it comes before all that `publish` does, or after. The cut is made
            # before another one can come. Where even that fails, WRITING stays set and the next holder of the lock
            # looks at the tail.
            if not offsets[known:] and not self.ctx.forked:
                try:
                    cut()
                except OSError:
                    file.truncate(position)  # says so as it should be said
                slot.set(FLAGS, 0)
            raise
        if position - words[INDEXED] >= INDEX_INTERVAL_BYTES:
            self.add_entry(IndexEntry(bases[0], position, from_word(before)))

    def _packed(
        self, batches: Sequence[Outgoing], position: int, synced: int
    ) -> tuple[list[bytes], list[int], int, int]:
        """`(buffers, base offsets, bytes, greatest timestamp)` of as many as fit behind `position`, at least one."""
        end, room = self.slot.end, self.topic.settings.segment_bytes - position
        buffers: list[bytes] = []
        bases: list[int] = []
        greatest = NEVER_MS
        size = 0
        for batch in batches:
            total = HEADER_BYTES + len(batch.payload)
            if size and size + total > room:
                break
            buffers += (self.pack(batch, end, synced), batch.payload)
            bases.append(end)
            end += batch.count
            size += total
            greatest = max(greatest, batch.max_timestamp)
        return buffers, bases, size, greatest

    def pack(self, batch: Outgoing, base_offset: int, synced: int) -> bytes:
        """The header of a batch that is about to be written at that offset; `synced` is the slot's word."""
        payload, count = batch.payload, batch.count
        # The fields of a `BatchHeader`: making one takes as long as its checksum.
        header = (
            ENCODING_NATIVE, batch.compression, batch.flags, len(payload), batch.content_bytes, count, count - 1,
            base_offset, batch.base_timestamp, batch.max_timestamp, synced, self.ctx.epoch, batch.producer_epoch,
            batch.producer_id, batch.base_sequence, batch.transaction_id,
        )  # fmt: skip
        return pack_header(header, payload)

    def publish(self, position: int, end: int, greatest: int) -> None:
        """Under the lock: what is written up to `position` is part of the log, which ends at `end` now."""
        slot = self.slot
        if not slot.get(POSITION):
            slot.set(BORN, max(self.ctx.clock.time_ms(), 0))
        slot.publish(position, max(slot.get(MAX_TIME), to_word(greatest)), end, [], [])

    def active_file(self, words: Sequence[int]) -> File:
        """The file that is appended to, as the slot's words have it; created where it is new."""
        create, base = not words[POSITION], words[ACTIVE]
        file = self._file_kept()
        if file is None or create or base != self._file_base:
            file = self._active_segment(create=create).file(create=create)
            self._file_kept, self._file_base = ref(file), base
        return file

    def add_entry(self, entry: IndexEntry) -> None:
        """An index is a cache: where it cannot be written, seeks are slower and nothing is wrong."""
        try:
            self._active_segment().add_entry(entry)
        except StorageError as error:
            logger.warning("no index entry for %s at %d: %s", self.directory, entry.position, error)
        self.slot.set(INDEXED, entry.position)

    def _active_segment(self, *, create: bool = False) -> Segment:
        base = self.slot.get(ACTIVE)
        if self._active is None or self._active.base != base or create:
            found = self.log.segments(self.slot.get(CHANGES)).get(base)
            if found is None or found.generation:
                if not create:
                    raise MissingFile(f"the active segment {base} of {self.directory} is gone", path=self.directory)
                found = self.new_segment(base)
            self._active = found
        return self._active

    def new_segment(self, base: int) -> Segment:
        """Create an empty segment, under the lock."""
        segment = self.log.create(base)
        self.log.refresh(self.changed())
        return segment

    def changed(self) -> int:
        """Say that the list of segments changed."""
        changes = self.slot.get(CHANGES) + 1
        self.slot.set(CHANGES, changes)
        return changes

    def is_full(self, words: Sequence[int], size: int) -> bool:
        """Whether `size` more bytes go to a new segment; with the slot's words."""
        position = words[POSITION]
        if not position:
            return False
        settings = self.topic.settings
        if position + size > settings.segment_bytes:
            return True
        return self.ctx.clock.time_ms() - words[BORN] >= settings.segment_ms

    def roll(self) -> None:
        """Begin a new segment unless the active one is empty; under the lock."""
        slot = self.slot
        if not slot.get(POSITION):
            return
        slot.set(FLAGS, WRITING)
        end = slot.end
        self.add_entry(IndexEntry(end, slot.get(POSITION), from_word(slot.get(MAX_TIME))))
        self.new_segment(end)
        self.set_active(end, 0, NEVER_MS, 0, 0)
        self.ctx.sealed.add(self)
        slot.set(FLAGS, 0)
        self.ctx.on_sealed()

    def set_active(self, base: int, position: int, max_timestamp: int, indexed: int, born: int) -> None:
        slot = self.slot
        slot.set(ACTIVE, base)
        slot.set(POSITION, position)
        slot.set(INDEXED, indexed)
        slot.set(MAX_TIME, to_word(max_timestamp))
        slot.set(BORN, born)

    # -- settle: what a dead writer or a stop left --------------------------------------------------------------------

    def settle(self) -> None:
        """Under the lock: make the words true, or refuse. Does nothing when there is nothing to do."""
        flags = self.slot.get(FLAGS)
        if flags & DELETED:
            self._refuse_deleted()
        if flags & RECOVER:
            recover_log(self)
        elif self.slot.get(FAILED):
            raise self.failed()
        elif flags & WRITING:
            resolve_tail(self)

    def _refuse_deleted(self) -> None:
        raise UnknownTopicError(
            f"topic {self.topic.name!r} was deleted (it may have been created anew): ask the bus for it again"
        )

    def announce_later(self) -> None:
        """What `settle` published is synced and told like any append; waiters take no lock, so it may happen here."""
        self.ctx.bell.ring()
        self.ctx.dirty.add(self)

    # -- the beginning ------------------------------------------------------------------------------------------------

    def truncate_before(self, offset: int) -> None:
        """Make `offset` the first offset of the log, durably; whole segments below it are removed."""
        self.sync(offset)

        def truncate() -> None:
            if not 0 <= offset <= self.slot.end:
                raise OffsetOutOfRangeError(
                    f"cannot truncate partition {self.number} of {self.topic.name!r} before {offset}: it ends at "
                    f"{self.slot.end}"
                )
            if offset > self.slot.get(START):
                data = offset.to_bytes(8, "little")
                path = f"{self.directory}/{_START_FILE}"
                self.ctx.files.replace_file(path, data + checksum(data).to_bytes(8, "little"), sync=True)
                self.drop_before(offset)

        self.locked(truncate)

    def stored_start(self) -> int:
        """Where `truncate_before` said the log begins; 0 where it never did."""
        path = f"{self.directory}/{_START_FILE}"
        try:
            data = self.ctx.files.read_file(path)
        except MissingFile:
            return 0
        start = int.from_bytes(data[:8], "little")
        if len(data) != 16 or checksum(data[:8]) != int.from_bytes(data[8:], "little") or start > OFFSET_MAX:
            raise CorruptionError(
                f"{path} does not hold the beginning of the log; restore it from a copy, or remove it to get back "
                "whatever segments are still there", file=path, position=0
            )  # fmt: skip
        return start

    def drop_before(self, offset: int) -> list[Segment]:
        """Under the lock: let the log begin at `offset`, and remove sealed segments that hold nothing from there on."""
        slot = self.slot
        segments = list(self.log.segments(slot.get(CHANGES)).values())
        gone = [one for one, following in pairwise(segments) if following.base <= offset]
        if gone:
            self.ctx.preserve(self, segments[len(gone)].base)
        if gone and slot.get(NAMED) != slot.get(CHANGES):
            # What stays must have its name before what goes loses its own: or offsets would begin anew after a stop.
            self.ctx.files.sync_dir(self.directory)
        slot.set(START, max(slot.get(START), offset))
        for segment in gone:
            self.log.remove(segment)
        if gone:
            self.log.refresh(self.changed())
        return gone

    def replaced(self, old: Sequence[Segment]) -> None:
        """Under the lock: a compacted segment stands for these now, which are removed."""
        for segment in old:
            self.log.remove(segment)
        self.log.refresh(self.changed())

    # -- sync ---------------------------------------------------------------------------------------------------------

    def sync(self, upto: int | None = None, *, sealed_only: bool = False) -> None:
        """Bring the log to the device: up to offset `upto` at least, all of it, or all but the active segment.

        A failure closes the partition for writes, in all processes.
        """
        slot, ctx = self.slot, self.ctx
        if slot.get(FLAGS) & RECOVER:
            self.settle_now()
        end: int | None = None
        try:
            while True:
                with self._sync_mutex:
                    if slot.get(FAILED):
                        ctx.dirty.discard(self)
                        raise self.failed()
                    if upto is not None and slot.get(SYNCED) >= upto and slot.get(NAMED) == slot.get(CHANGES):
                        return
                    ctx.dirty.discard(self)
                    if end is None:
                        # First the end, then which commit records it takes: what follows one is never safer than it.
                        end = slot.get(ACTIVE) if sealed_only else slot.end
                        records = slot.get(TRANSACTION)
                    if ctx.ledger.covers(records):
                        sync_below(self, end)
                        return
                ctx.ledger.sync_upto(records)  # not under the mutex: it may wait for a lock
        except StorageError:
            if not slot.get(FAILED):
                ctx.dirty.add(self)
            raise

    def sync_written(self) -> None:
        """Under the lock: bring to the device what is written, be it published or not."""
        slot = self.slot
        with self._sync_mutex:
            if slot.get(FAILED):
                raise self.failed()
            sync_files(self, slot.end + 1, slot.get(CHANGES))

    def failed(self) -> StorageError:
        """What is said of one whose sync failed."""
        return StorageError(
            f"partition {self.number} of {self.topic.name!r} takes no writes since a sync of it failed: what the disk "
            "holds is not known; close the bus in all processes and open it again to recover, after a look at the disk"
        )

    @property
    def unsynced(self) -> bool:
        """Whether something of it is not known to be on the device."""
        slot = self.slot
        behind = slot.end > slot.get(SYNCED) or slot.get(NAMED) != slot.get(CHANGES)
        return behind or bool(slot.get(FLAGS) & RECOVER)

    def state(self) -> SlotState:
        """All words, under the lock or while nobody else has the bus open."""
        return self.slot.load()
