"""Named producers: what one has stored in a partition, so that a repeat is recognised, whoever sends it and when.

A name has a number (the hash of its letters) and an epoch that every opening raises. Each batch it writes carries both,
and the sequence of its first message; sequences rise within a partition. Rules:

* Every append of a named producer is made under the partition's lock, and checks there that the epoch is still the
  last: a word of a page that all processes map. So a producer that was replaced writes nothing more.
* What it has stored is known after the log was read, under that lock, from where the last note (a record in `__meta`)
  leaves off: at the first use of a partition, and again after an append that was interrupted.
* A note is written before segments with such batches go or are compacted, when a producer closes, and when the log had
  to be read: so what is read the next time is bounded by what came since.
* At least the last `WINDOW` messages can be recognised as repeats and answered with the first one's offset; of what
  lies before them only the last sequence is known.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec

from streamlite.batch import decode
from streamlite.counters import CHANGES, FLAGS, NUMBERED
from streamlite.errors import ConfigError, CorruptionError, FencedError, StreamliteError, UnknownTopicError
from streamlite.files import Files
from streamlite.format import (
    EPOCH_MAX,
    FLAG_SEQUENCES,
    NO_PRODUCER,
    NO_SEQUENCE,
    OFFSET_MAX,
    BadBatch,
    checksum,
    unpack_header,
    verify,
)
from streamlite.meta import Meta
from streamlite.partition import Appended, Outgoing, Partition
from streamlite.reader import cap_offset
from streamlite.segment import Found, Segment, walk

if TYPE_CHECKING:
    from streamlite.engine import Engine

__all__ = ["WINDOW", "Name", "Stored", "preserve"]

logger = logging.getLogger("streamlite")

WINDOW: Final = 1_000
"""Messages of a producer in a partition that are remembered at least; Kafka remembers its last 5 batches."""
DIRECTORY: Final = "producers"
_PAGE: Final = 4096
_EPOCH: Final = 0
_READ_MUCH: Final = 1_000
"""Batches read to know what was stored, after which a note is worth its write."""


def producer_number(name: str) -> int:
    """The number that stands for a name in batches; 64 bits of hash, so that no record is needed to find it again."""
    return checksum(name.encode()) or 1


_Counted = Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)]


class Run(NamedTuple):
    """Messages whose sequences and offsets count up side by side."""

    sequence: _Counted
    length: _Counted
    offset: _Counted


_Epoch = Annotated[int, msgspec.Meta(ge=0, le=EPOCH_MAX)]
_Note = tuple[_Counted | None, _Counted, int, list[Run]]
"""The last sequence, the offset up to which the log was taken into account, the bus's epoch, the runs."""


class Stored:
    """What one producer has stored in one partition, as far back as the window reaches."""

    def __init__(self, upto: int = 0, last: int | None = None, runs: Sequence[Sequence[int]] = ()) -> None:
        self.upto = upto
        """The offset up to which the log has been taken into account."""
        self.last = last
        self._runs = [Run(*run) for run in runs]
        self._total = sum(run.length for run in self._runs)
        self.doubtful = False
        """An append was begun and nobody saw its end: to be read again."""

    def add(self, sequence: int, length: int, offset: int) -> None:
        """So many messages were stored, from that sequence on, at that offset; what is known already is passed over."""
        if self.last is not None and sequence <= self.last:
            return
        runs = self._runs
        if runs and runs[-1].sequence + runs[-1].length == sequence and runs[-1].offset + runs[-1].length == offset:
            before = runs.pop()
            runs.append(Run(before.sequence, before.length + length, before.offset))
        else:
            runs.append(Run(sequence, length, offset))
        self._total += length
        while len(runs) > 1 and self._total - runs[0].length >= WINDOW:
            self._total -= runs.pop(0).length
        self.last = sequence + length - 1

    def add_batch(self, base_sequence: int, count: int, offset: int, sequences: Sequence[int] | None) -> None:
        """As `add`; `sequences` where some were left out."""
        if sequences is None:
            self.add(base_sequence, count, offset)
            return
        for at, sequence in enumerate(sequences):
            self.add(sequence, 1, offset + at)

    def find(self, sequence: int) -> int | None:
        """The offset of the message with that sequence, where it is remembered."""
        at = bisect_right(self._runs, sequence, key=lambda run: run.sequence) - 1
        if at < 0 or sequence >= self._runs[at].sequence + self._runs[at].length:
            return None
        return self._runs[at].offset + sequence - self._runs[at].sequence

    def note(self, epoch: int) -> list[object]:
        """As a record; `epoch`: the bus's."""
        return [self.last, self.upto, epoch, [list(run) for run in self._runs]]

    @classmethod
    def of(cls, note: _Note | None, partition: Partition) -> Stored | None:
        """What a record says, without what a stop of the machine took back; `None` where all of that is gone."""
        if note is None:
            return None
        last, upto, epoch, found = note
        runs = [Run(*run) for run in found]
        cap = cap_offset(partition, upto, epoch)
        if cap == upto:
            return cls(upto, last, runs)
        kept = [run._replace(length=min(run.length, cap - run.offset)) for run in runs if run.offset < cap]
        return cls(cap, kept[-1].sequence + kept[-1].length - 1, kept) if kept else None


class Name:
    """A name that this bus has opened a producer with."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._meta: Meta = engine.meta
        self.name = name
        self.number = producer_number(name)
        self._stored: dict[Partition, Stored] = {}
        self._noted: dict[Partition, int] = {}  # upto of the last note
        self._meta.create()
        self._page = _page(engine.ctx.files, name)
        self.epoch = 0
        self._is_new = False
        self._meta.change(self._take)
        self._meta.sync()

    def _take(self, log: Partition) -> None:
        """Under the lock of `__meta`: the name is this one's."""
        known = self._meta.get("producer", self.name, kind=_Epoch) or 0
        if self._page[_EPOCH] > EPOCH_MAX:
            path = f"{DIRECTORY}/{self.name}"
            raise CorruptionError(
                f"{path} does not hold the epoch of producer {self.name!r}: close the bus everywhere, and remove it",
                file=path,
                position=0,
            )
        self.epoch = max(known, self._page[_EPOCH]) + 1
        self._is_new = not known
        self._meta.put(log, ("producer", self.name), self.epoch)
        self._page[_EPOCH] = self.epoch

    def require_current(self) -> None:
        """`FencedError` once another has opened the name."""
        if self._page[_EPOCH] != self.epoch:
            raise FencedError(
                f"producer {self.name!r} was opened elsewhere since: this one sends nothing more; close it"
            )

    # -- under a partition's lock -------------------------------------------------------------------------------------

    def stored(self, partition: Partition) -> Stored:
        """What is stored, under the partition's lock and after its tail was settled."""
        found = self._stored.get(partition)
        if found is None:
            found = self._stored[partition] = self._read(partition)
        elif found.doubtful:
            noted = self._noted_down(partition)
            if noted is not None and noted.upto > found.upto:
                found = self._stored[partition] = noted  # of what is in question something was compacted, or is gone
            read_on(partition, {self.number: found}, partition.slot.end)
            found.doubtful = False
        return found

    def _read(self, partition: Partition) -> Stored:
        was_numbered = partition.slot.get(NUMBERED)
        partition.slot.set(NUMBERED, 1)
        stored = self._noted_down(partition)
        if stored is None:
            stored = Stored(0 if was_numbered and not self._is_new else partition.slot.end)
        self._noted.setdefault(partition, stored.upto)
        read = read_on(partition, {self.number: stored}, partition.slot.end)
        if read > _READ_MUCH:
            self._note(partition, stored)
        return stored

    def _noted_down(self, partition: Partition) -> Stored | None:
        return Stored.of(
            self._meta.get("stored", self.number, partition.topic.incarnation, partition.number, kind=_Note), partition
        )

    def append_locked(self, partition: Partition, batches: Sequence[Outgoing], offsets: list[int]) -> Appended:
        """As `Partition.append_locked`, numbered."""
        if partition.slot.get(FLAGS):
            partition.settle()
        self.require_current()
        stored = self.stored(partition)
        numbered = list(self.numbered(partition, batches))
        stored.doubtful = True  # until it is seen what became of it
        result = partition.append_locked(numbered, offsets)
        for one, offset in zip(numbered, result.offsets, strict=False):  # an error left the last ones out
            stored.add_batch(one.base_sequence, one.count, offset, one.sequences)
            stored.upto = offset + one.count
        stored.doubtful = result.error is not None  # where cutting what was written failed too, it may be published yet
        return result

    def numbered(self, partition: Partition, batches: Iterable[Outgoing]) -> Iterator[Outgoing]:
        """The same batches with number, epoch and sequences; under the lock. `ConfigError` for one that is too low."""
        stored = self.stored(partition)
        last = -1 if stored.last is None else stored.last
        for outgoing in batches:
            base = last + 1 if outgoing.base_sequence == NO_SEQUENCE else outgoing.base_sequence
            if base <= last:
                raise ConfigError(
                    f"producer {self.name!r}: sequence {base} is not above {last}, the last one of its partition; send "
                    "it with a later one"
                )
            last = outgoing.sequences[-1] if outgoing.sequences else base + outgoing.count - 1
            yield outgoing._replace(
                producer_id=self.number,
                producer_epoch=self.epoch,
                base_sequence=base,
                flags=outgoing.flags | (FLAG_SEQUENCES if outgoing.sequences else 0),
            )

    def doubt(self, partition: Partition) -> None:
        """Something was written with what `numbered` gave: what became of it is read when it is next asked for."""
        stored = self._stored.get(partition)
        if stored is not None:
            stored.doubtful = True

    # -- from outside -------------------------------------------------------------------------------------------------

    def look(self, partition: Partition) -> Stored:
        """What is stored now; takes the partition's lock. Kept up to date by every append."""
        return partition.locked(partial(self._look, partition))

    def _look(self, partition: Partition) -> Stored:
        self.require_current()
        return self.stored(partition)

    def find(self, partition: Partition, sequence: int) -> tuple[int | None, int]:
        """`(offset of the message with that sequence, the last sequence)` as `look` has them; -1 for no last one."""

        def find() -> tuple[int | None, int]:
            stored = self._look(partition)
            return stored.find(sequence), -1 if stored.last is None else stored.last

        return partition.locked(find)

    def close(self) -> None:
        """Note down what is stored, for whoever opens the name next; without, the logs are read again."""
        for partition, stored in list(self._stored.items()):
            try:
                self.require_current()
                if not stored.doubtful and stored.upto > self._noted[partition]:
                    if self._engine.ctx.sync != "never":
                        partition.sync(stored.upto)  # a note must not speak of what a stop may take back
                    partition.locked(partial(self._note_down, partition, stored))
            except FencedError:
                return  # the other one knows better
            except UnknownTopicError:
                continue  # deleted
            except StreamliteError as error:
                logger.warning("producer %r leaves no note, its next opener reads the logs: %s", self.name, error)

    def _note_down(self, partition: Partition, stored: Stored) -> None:
        self.require_current()  # who came meanwhile may have noted down more, and it may be gone since
        self._note(partition, stored)

    def _note(self, partition: Partition, stored: Stored) -> None:
        self._noted[partition] = stored.upto
        write_note(self._meta, self.number, partition, stored)


def write_note(meta: Meta, number: int, partition: Partition, stored: Stored) -> None:
    """Under the partition's lock: a record of what that producer stored there."""
    place = (number, partition.topic.incarnation, partition.number)
    meta.change(lambda log: meta.put(log, ("stored", *place), stored.note(partition.ctx.epoch)))


def _page(files: Files, name: str) -> memoryview:
    files.make_dir(DIRECTORY)
    return files.map(f"{DIRECTORY}/{name}", 0, _PAGE).cast("Q")


def read_on(partition: Partition, wanted: dict[int, Stored], end: int) -> int:
    """Take up what these producers stored up to offset `end`; how many batches were looked at. Under the lock."""
    start = min(stored.upto for stored in wanted.values())
    if start >= end:
        return 0
    segments = list(partition.log.segments(partition.slot.get(CHANGES)).values())
    count = 0
    for segment, following in pairwise([*segments, None]):
        assert segment is not None
        if following is None or following.base > start:
            until = end if following is None else min(end, following.base)
            count += _read_segment(segment, wanted, start, until)
    for stored in wanted.values():
        stored.upto = max(stored.upto, end)
    return count


def _read_segment(segment: Segment, wanted: dict[int, Stored], start: int, end: int) -> int:
    if segment.base >= end:
        return 0
    file = segment.file()
    count, position, reached = 0, segment.floor(start).position, segment.base
    for found in walk(file, position, file.size()):
        header = found.header
        if header.base_offset >= end:
            break
        stored = wanted.get(header.producer_id) if header.producer_id != NO_PRODUCER else None
        if stored is not None and header.base_offset >= stored.upto:
            try:
                sequences = _sequences(segment, found) if header.flags & FLAG_SEQUENCES else None
            except BadBatch:
                break
            if not 0 <= header.base_sequence <= (sequences[-1] if sequences else header.base_sequence) <= OFFSET_MAX:
                break
            stored.add_batch(header.base_sequence, header.count, header.base_offset, sequences)
        count, position, reached = count + 1, found.position + header.total_bytes, header.next_offset
    if reached < end:
        # What a producer stored there is not known, and to go on without would be to store some of it twice.
        raise CorruptionError(
            f"{segment.log_path} is damaged at position {position}: what sequences it has behind that cannot be read",
            file=segment.log_path,
            position=position,
        )
    return count


def _sequences(segment: Segment, found: Found) -> Sequence[int] | None:
    data = segment.file().read(found.header.total_bytes, found.position)
    header = unpack_header(data)
    return decode(header, verify(header, data)).sequences


def preserve(meta: Meta, partition: Partition, upto: int) -> None:
    """Under the partition's lock: note down what named producers stored below `upto`, before that goes.

    Costs a look at the headers of what goes, in partitions that a named producer may have written to.
    """
    if not partition.slot.get(NUMBERED) or meta.log() is None:
        return
    wanted: dict[int, Stored] = {}
    for segment in partition.log.segments(partition.slot.get(CHANGES)).values():
        if segment.base >= upto:
            break
        for found in walk(segment.file(), 0, segment.file().size()):
            number = found.header.producer_id
            if number != NO_PRODUCER and found.header.base_offset < upto and number not in wanted:
                place = (number, partition.topic.incarnation, partition.number)
                wanted[number] = Stored.of(meta.get("stored", *place, kind=_Note), partition) or Stored()
    behind = {number: stored for number, stored in wanted.items() if stored.upto < upto}
    if behind:
        read_on(partition, behind, upto)
        for number, stored in behind.items():
            write_note(meta, number, partition, stored)
        meta.sync()
