"""Reading everything that a bus holds, and saying what is wrong with it. Nothing is written, locked or repaired.

`verify(directory)` walks every segment of every topic, the internal ones too: checksums, columns, offsets without
holes, the files beside them. It tells *damage*, which is an error for whoever reads there and which `streamlite.repair`
knows what to do about, from *notes*: what the next opening puts in order by itself (a torn tail, a lost index), or what
is merely strange. On a bus that others have open it looks no further than their published ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from streamlite.batch import decode
from streamlite.beginning import stored_start
from streamlite.clock import SystemClock
from streamlite.engine import Engine
from streamlite.errors import CorruptionError, FormatError, StorageError, StreamliteError
from streamlite.files import File, Files
from streamlite.format import (
    FLAG_TRANSACTION,
    HEADER_BYTES,
    INDEX_ENTRY_BYTES,
    BadBatch,
    BatchHeader,
    parse_segment_name,
    unpack_entries,
    unpack_header,
)
from streamlite.format import verify as verified
from streamlite.marks import CLEAN, EPOCH_FILE, read_clean, read_epoch
from streamlite.partition import Partition
from streamlite.recovery import Committed, next_batch
from streamlite.segment import Segment, walk_verified

__all__ = ["Finding", "PartitionReport", "Report", "Stretch", "chain", "scan", "verify"]


class Finding(NamedTuple):
    """Something to know about a file. `damage`: `False` for a note. `position` in bytes, where there is one."""

    damage: bool
    file: str
    position: int | None
    what: str


class PartitionReport(NamedTuple):
    """What is in a partition: whole batches and their messages, offsets from `start` to `end`, bytes of segments."""

    topic: str
    partition: int
    start: int
    end: int
    batches: int
    messages: int
    bytes: int
    whole: bool


class Report(NamedTuple):
    """What `verify` found."""

    directory: str
    partitions: list[PartitionReport]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether there is no damage."""
        return not any(finding.damage for finding in self.findings)


class Stretch(NamedTuple):
    """A part of a segment's file: bytes `position` to `stop`, and, where it is whole, offsets `base` to `end`."""

    whole: bool
    position: int
    stop: int
    base: int
    end: int
    batches: int
    messages: int
    synced: int = 0
    """The greatest offset below which any of its batches says that all is safe."""
    epoch: int = 0
    """Of its last batch."""
    why: str = ""


def verify(directory: str | os.PathLike[str]) -> Report:
    """Read all of the bus in `directory`.

    Raises `FormatError` for a directory that is no bus at all, `StorageError` for what the system refuses to read.
    """
    findings: list[Finding] = []
    report = Report(os.fspath(directory), [], findings)
    try:
        engine = Engine.open(
            os.fspath(directory), sync="never", sync_interval_s=1, read_only=True, lock_timeout=1, clock=SystemClock()
        )
    except CorruptionError as error:
        findings.append(Finding(True, error.file, error.position, str(error)))
        return report
    except FormatError as error:
        if "makes no sense" not in str(error):
            raise
        findings.append(Finding(True, "bus.json", 0, str(error)))
        return report
    try:
        _verify_marks(engine, findings)
        for name in engine.registry.names(internal=True):
            if name.startswith(("__new-", "__deleted-")):
                findings.append(Finding(False, f"topics/{name}", None, "left half-done; the next opening removes it"))
            else:
                _verify_topic(engine, name, report)
    finally:
        engine.close()
    return report


def _verify_marks(engine: Engine, findings: list[Finding]) -> None:
    files = engine.ctx.files
    try:
        read_epoch(files)
    except CorruptionError as error:
        findings.append(Finding(True, EPOCH_FILE, 0, str(error)))
    if CLEAN in files.list("") and read_clean(files, engine.identity) is None:
        findings.append(Finding(False, CLEAN, 0, "not whole, or of another bus: the next opening reads the logs"))


def _verify_topic(engine: Engine, name: str, report: Report) -> None:
    try:
        state = engine.registry.find(name)
    except CorruptionError as error:
        report.findings.append(Finding(True, error.file, error.position, str(error)))
        return
    if state is None and "topic.json" not in engine.ctx.files.list(f"topics/{name}"):
        report.findings.append(Finding(True, f"topics/{name}/topic.json", None, "is missing"))
    for partition in [] if state is None else state.partitions:
        report.partitions.append(_verify_partition(partition, report.findings))


def _verify_partition(partition: Partition, findings: list[Finding]) -> PartitionReport:
    before = sum(finding.damage for finding in findings)
    start, end = _ends(partition, findings)
    segments = list(chain(partition))
    for segment, found in segments:
        _tell_segment(segment, found, end, findings)
        _verify_index(segment, findings)
    _tell_holes(partition, segments, start, end, findings)
    strange = names_of(partition.ctx.files, partition.directory)
    findings += [Finding(False, f"{partition.directory}/{name}", None, "nothing that a bus knows") for name in strange]
    whole = [one for _, found in segments for one in found if one.whole]
    size = sum(segment.file().size() for segment, _ in segments)
    reached = max((one.end for one in whole), default=0)
    return PartitionReport(
        partition.topic.name, partition.number, start, reached if end is None else end,
        sum(one.batches for one in whole), sum(one.messages for one in whole), size,
        sum(finding.damage for finding in findings) == before,
    )  # fmt: skip


def _ends(partition: Partition, findings: list[Finding]) -> tuple[int, int | None]:
    try:
        stored_start(partition.ctx.files, partition.directory)
    except CorruptionError as error:
        findings.append(Finding(True, error.file, error.position, str(error)))
    try:
        return partition.start(), partition.end()
    except CorruptionError as error:
        findings.append(Finding(True, error.file, error.position, str(error)))
        return 0, None


def chain(partition: Partition) -> Iterator[tuple[Segment, list[Stretch]]]:
    """Each segment of a partition, and what stands in its file."""
    committed = partial(partition.ctx.ledger.committed, partition)
    for segment in list(partition.log.refreshed(0).values()):
        yield segment, scan(segment.file(), segment.base, committed)


def scan(file: File, base: int, committed: Committed) -> list[Stretch]:
    """A segment's file from its beginning to its end, whole and damaged stretches in turn."""
    found: list[Stretch] = []
    position, expected, size = 0, base, file.size()
    while position < size:
        stretch = _whole(file, position, expected, size, committed)
        if stretch.batches:
            found.append(stretch)
            position, expected = stretch.stop, stretch.end
        if position < size:
            following = next_batch(file, position + 1, size)
            while following < size and unpack_header(file.read(HEADER_BYTES, following)).base_offset < expected:
                following = next_batch(file, following + 1, size)  # part of somebody's message
            found.append(Stretch(False, position, following, expected, expected, 0, 0, why=stretch.why))
            if following < size:
                expected = unpack_header(file.read(HEADER_BYTES, following)).base_offset
            position = following
    return found


def _whole(file: File, position: int, expected: int, size: int, committed: Committed) -> Stretch:
    """The batches from `position` on that are whole and follow one another."""
    first, at, batches, messages, synced, epoch, why = expected, position, 0, 0, 0, 0, "no whole batch begins here"
    for found in walk_verified(file, position, size):
        header = found.header
        if header.base_offset != expected:
            why = f"a batch of offset {header.base_offset} where {expected} should come"
            break
        if header.flags & FLAG_TRANSACTION and not _is_committed(committed, header):
            why = "of a transaction that was not committed"
            break
        try:
            decode(header, verified(header, file.read(header.total_bytes, found.position)))
        except BadBatch as error:
            why = str(error)
            break
        at, expected = found.position + header.total_bytes, header.next_offset
        batches, messages, epoch = batches + 1, messages + header.count, header.epoch
        synced = max(synced, min(header.synced_upto, header.next_offset))  # nobody called safe what was to come
    return Stretch(True, position, at, first, expected, batches, messages, synced, epoch, why)


def _is_committed(committed: Committed, header: BatchHeader) -> bool:
    try:
        return committed(header)
    except CorruptionError:  # of the records, which are looked at for themselves
        return True


def _tell_segment(segment: Segment, found: list[Stretch], end: int | None, findings: list[Finding]) -> None:
    reached = segment.base
    for one in found:
        if one.whole:
            reached = one.end
        elif end is None or reached < end or segment.generation:
            findings.append(
                Finding(True, segment.log_path, one.position, f"{one.stop - one.position:,} bytes: {one.why}")
            )
        else:
            what = f"{one.stop - one.position:,} bytes after the end of the log, which the next writer cuts"
            findings.append(Finding(False, segment.log_path, one.position, what))


def _tell_holes(
    partition: Partition,
    segments: list[tuple[Segment, list[Stretch]]],
    start: int,
    end: int | None,
    findings: list[Finding],
) -> None:
    """Offsets that no segment stands for."""
    if not segments:
        if end:
            findings.append(
                Finding(True, partition.directory, None, f"all segments are missing; the log ended at {end}")
            )
        return
    if start < segments[0][0].base:
        what = f"offsets {start} to {segments[0][0].base - 1} are missing before its first segment"
        findings.append(Finding(True, partition.directory, None, what))
    for (segment, found), following in zip(segments, [*(one for one, _ in segments[1:]), None], strict=True):
        reached = max([segment.base, *(one.end for one in found if one.whole)])
        if following is not None:
            until: int | None = following.base
        else:
            until = segment.next if segment.generation else end
        if until is not None and reached < until:
            what = f"offsets {reached} to {until - 1} are missing after it"
            findings.append(Finding(True, segment.log_path, segment.file().size(), what))


def _verify_index(segment: Segment, findings: list[Finding]) -> None:
    try:
        file = segment.index_file()
        data = file.read(file.size(), 0)
    except StreamliteError as error:
        if not isinstance(error, StorageError):
            raise
        return  # none: a seek walks
    entries = unpack_entries(data)
    if len(entries) * INDEX_ENTRY_BYTES != len(data):
        findings.append(
            Finding(False, segment.index_path, len(entries) * INDEX_ENTRY_BYTES, "not whole; seeks are slower")
        )


def names_of(files: Files, directory: str) -> list[str]:
    """What is in a partition's directory and is no segment's, nor any other file's that belongs there."""
    strange = []
    for name in files.list(directory):
        stem, _, suffix = name.rpartition(".")
        known = name in ("lock", "start") or (
            suffix in ("log", "index", "new") and parse_segment_name(stem) is not None
        )
        if not known:
            strange.append(name)
    return strange
