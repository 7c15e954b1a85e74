"""Putting a damaged bus in order: what can be read stays, what cannot is said, nothing is deleted.

`repair(directory)` looks first (`streamlite.verify`), tells what it would do, and does it only when told to. Rules:

* Nobody has the bus open, and nobody can open it meanwhile: both of its locks are held.
* Whatever is replaced or taken away is moved to `quarantine/`, under the path that it had.
* A segment with damage is written anew from its whole batches; an empty batch stands for the offsets that are lost, so
  offsets never shift and none is given out twice. Readers pass over the hole.
* The counters and the mark of a clean close go too: the next opening reads the logs and raises the epoch, so that a
  commit of what is lost is capped (`streamlite.reader.cap_offset`).
* What was moved away can be moved back: each step is one rename, or a whole new file and then one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

from streamlite import ledger, meta, offsets
from streamlite.batch import encode_payload
from streamlite.clock import SystemClock
from streamlite.config import TopicSettings
from streamlite.counters import BLOCK_BYTES, DELETED, DETAILS, FLAGS, INCARNATION, PAGE, SLOTS
from streamlite.counters import PATH as COUNTERS
from streamlite.engine import Engine
from streamlite.errors import CorruptionError, LockTimeoutError
from streamlite.files import File, Files, MissingFile, random_number
from streamlite.files.local import LocalFiles
from streamlite.format import (
    ENCODING_NATIVE,
    FLAG_COMPACTED,
    FLAG_TRANSACTION,
    HEADER_BYTES,
    NO_PRODUCER,
    NO_SEQUENCE,
    NO_TRANSACTION,
    BatchHeader,
    pack_header,
)
from streamlite.handles import Handles
from streamlite.log import Log
from streamlite.marks import BUS, BUS_LOCK, CLEAN, EPOCH_FILE, OPEN_LOCK, create_identity, read_clean, write_epoch
from streamlite.partition import Partition
from streamlite.registry import META, OFFSETS, TRANSACTIONS, TopicFile
from streamlite.segment import NEVER_MS, Found, Segment, walk
from streamlite.verify import Report, Stretch, scan, verify

__all__ = ["Action", "Repair", "repair"]

QUARANTINE: Final = "quarantine"
_GAP_MAX: Final = (1 << 32) - 1
_FAR: Final = 1 << 40
"""Offsets that are passed over at most, in 256 empty batches: a trillion of lost messages is a number that is wrong."""
_COPY_BYTES: Final = 1 << 20
_ROUNDS: Final = 5
_INTERNAL: Final = {OFFSETS: offsets.SETTINGS, META: meta.SETTINGS, TRANSACTIONS: ledger.SETTINGS}


class Action(NamedTuple):
    """One thing to do, in words."""

    file: str
    what: str
    run: Callable[[], None]


class Repair(NamedTuple):
    """What was found, what was done about it (nothing where it was not agreed to), and what is found now."""

    before: Report
    actions: list[Action]
    done: bool
    after: Report


def repair(
    directory: str | os.PathLike[str], agree: Callable[[Report, list[Action]], bool] = lambda report, actions: True
) -> Repair:
    """Put the bus in `directory` in order, where `agree(report, actions)` says so.

    It may be asked again: where the bus's own files are damaged, what lies below them is seen only afterwards. Raises
    `LockTimeoutError` while somebody has the bus open, `FormatError` for a directory that is no bus at all.
    """
    place = os.fspath(directory)
    verify(place)  # says what is no bus, before anything is created
    files = LocalFiles(place, read_only=False)
    bus_lock, open_lock = files.lock(BUS_LOCK), files.lock(OPEN_LOCK)
    if not bus_lock.acquire() or not open_lock.acquire():
        bus_lock.release()
        raise LockTimeoutError(f"{place} is open in some process: close it everywhere, then repair it")
    try:
        before = after = verify(place)
        done: list[Action] = []
        remade: set[str] = set()
        for _ in range(_ROUNDS):
            actions = [] if after.ok and not remade else _actions(place, files, after, remade)
            if not actions or not agree(after, actions):
                return Repair(before, done or actions, bool(done), after)
            for action in actions:
                action.run()
            done += actions
            after = verify(place)
        return Repair(before, done, True, after)
    finally:
        open_lock.release()
        bus_lock.release()
        files.close()


def _actions(place: str, files: Files, report: Report, remade: set[str]) -> list[Action]:
    """What is to be done about a report. What the rest is known by comes first, and alone.

    `remade`: directories of topics that lost their identity for good; grows.
    """
    damaged = {finding.file for finding in report.findings if finding.damage}
    aside = _Aside(files)
    if BUS in damaged:
        return [Action(BUS, "written anew, with a new identity", partial(_write_identity, files, aside))]
    if EPOCH_FILE in damaged:
        return [Action(EPOCH_FILE, "written anew, above every epoch in the logs", partial(_write_epoch, files, aside))]
    engine = Engine.open(place, sync="never", sync_interval_s=1, read_only=True, lock_timeout=1, clock=SystemClock())
    try:
        return list(_Plan(engine, files, aside, damaged, remade).actions())
    finally:
        engine.close()


class _Aside:
    """The place for what is taken away."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._place = f"{QUARANTINE}/{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"

    def put(self, path: str) -> None:
        """Move a file there, under the path that it has; one that is not there is fine."""
        *above, _ = f"{self._place}/{path}".split("/")
        for depth in range(1, len(above) + 1):
            self._files.make_dir("/".join(above[:depth]))
        try:
            self._files.rename(path, f"{self._place}/{path}")
        except MissingFile:
            return
        self._files.sync_dir("/".join(above))
        self._files.sync_dir(path.rpartition("/")[0])


def _write_identity(files: Files, aside: _Aside) -> None:
    aside.put(BUS)
    create_identity(files)


def _write_epoch(files: Files, aside: _Aside) -> None:
    greatest, handles = 0, Handles(files)
    for topic in files.list("topics"):
        for number in (name for name in files.list(f"topics/{topic}") if name.isdecimal()):
            for segment in Log(files, handles, 0, f"topics/{topic}/{number}").refreshed(0).values():
                epochs = [one.epoch for one in scan(segment.file(), segment.base, lambda header: True)]
                greatest = max([greatest, *epochs])
    aside.put(EPOCH_FILE)
    write_epoch(files, greatest + 1)


class _Plan:
    """What is to be done about topics and logs. `engine` only reads; what is done goes through `files`."""

    def __init__(self, engine: Engine, files: Files, aside: _Aside, damaged: set[str], remade: set[str]) -> None:
        self._remade = remade
        self._files = files
        self._aside = aside
        self._damaged = damaged
        self._clean = read_clean(files, engine.identity) or {}
        self._partitions = list(_partitions(engine))

    def actions(self) -> Iterator[Action]:
        """In the order in which they are to be done."""
        lost = [path.rpartition("/")[0] for path in sorted(self._damaged) if path.endswith("/topic.json")]
        for topic in lost:
            known = self._identity(topic, lost)
            what = "written anew with default settings"
            if known is None:
                what += "; what groups committed for it does not count any more"
            yield Action(f"{topic}/topic.json", what, partial(self._write_topic, topic, known))
        if any(self._identity(topic, lost) is None for topic in lost):
            yield self._forgetting()  # they know nothing of a topic made anew, and would have it empty
        if lost:
            return  # what is in the logs is told by what the topics are
        for path in sorted(self._damaged):
            if path.endswith("/start"):
                yield Action(path, "the log begins with its first segment again", partial(self._aside.put, path))
        for partition in self._partitions:
            damaged = any(f"{path}/".startswith(f"{partition.directory}/") for path in self._damaged)
            if damaged or partition.topic.directory in self._remade:
                yield from self._log(partition)
        yield self._forgetting()

    def _forgetting(self) -> Action:
        return Action(COUNTERS, "the next opening reads the logs, and raises the epoch", self._forget_counters)

    def _forget_counters(self) -> None:
        self._remade -= {partition.topic.directory for partition in self._partitions}  # their logs are done
        self._aside.put(COUNTERS)
        self._aside.put(CLEAN)

    def _count(self, topic: str) -> int:
        """The partitions that its directory has."""
        return max((int(name) for name in self._files.list(topic) if name.isdecimal()), default=0) + 1

    def _identity(self, topic: str, lost: list[str]) -> tuple[int, list[int]] | None:
        """Incarnation and slots of a topic whose file is lost, where the mark of a clean close or the counters tell.

        They know slots and incarnations and no names: what belongs to no other topic and has as many partitions.
        """
        used = {partition.slot.number for partition in self._partitions}
        found: dict[int, list[int]] = {}
        for number, incarnation in (self._counted() | {n: one.incarnation for n, one in self._clean.items()}).items():
            if number not in used and incarnation:
                found.setdefault(incarnation, []).append(number)
        fitting = [(one, sorted(slots)) for one, slots in found.items() if len(slots) == self._count(topic)]
        rivals = [other for other in lost if self._count(other) == self._count(topic)]
        return fitting[0] if len(fitting) == 1 == len(rivals) else None

    def _counted(self) -> dict[int, int]:
        """Slot to incarnation, as the counters have it, whatever boot they are of."""
        try:
            data = self._files.read_file(COUNTERS)
        except MissingFile:
            return {}
        found = {}
        for block in range((len(data) - PAGE) // BLOCK_BYTES):
            words = memoryview(data)[PAGE + block * BLOCK_BYTES + PAGE :].cast("Q")
            for at in range(SLOTS):
                if words[at * DETAILS + INCARNATION] and not words[at * DETAILS + FLAGS] & DELETED:
                    found[block * SLOTS + at] = words[at * DETAILS + INCARNATION]
        return found

    def _write_topic(self, topic: str, known: tuple[int, list[int]] | None) -> None:
        if known is None:
            self._remade.add(topic)
            taken = [partition.slot.number for partition in self._partitions] + [*self._counted(), *self._clean]
            first = max(taken, default=-1) + 1
            known = random_number() | 1 << 62, list(range(first, first + self._count(topic)))
        incarnation, slots = known
        settings = _INTERNAL.get(topic.rpartition("/")[2], TopicSettings())
        file = TopicFile(incarnation=incarnation, asked=None, settings=settings, slots=slots)
        self._aside.put(f"{topic}/topic.json")
        for number in range(len(slots)):
            self._files.make_dir(f"{topic}/{number}")
        self._files.replace_file(f"{topic}/topic.json", file.encode(), sync=True)

    def _log(self, partition: Partition) -> Iterator[Action]:
        remade = partition.topic.directory in self._remade
        committed = _counts if remade else partial(partition.ctx.ledger.committed, partition)
        segments = [(one, scan(one.file(), one.base, committed)) for one in partition.log.refreshed(0).values()]
        known = max([self._known_end(partition), *(one.synced for _, found in segments for one in found)])
        reached = max((_reached(segment, found) for segment, found in segments), default=0)
        if known - reached > _FAR:
            known = reached  # of counters that are damaged
        for at, (segment, found) in enumerate(segments):
            if at + 1 < len(segments):
                until = segments[at + 1][0].base
            else:
                until = max(known, _reached(segment, found), segment.next if segment.generation else 0)
            if remade and any(found.header.flags & FLAG_TRANSACTION for found in _headers(segment)):
                what = "its transactions count as committed: which topic they were of is not known any more"
                yield Action(segment.log_path, what, partial(self._rewrite, partition, segment, found, until))
            elif any(not one.whole for one in found) or _reached(segment, found) < until:
                lost = until - segment.base - sum(one.end - one.base for one in found if one.whole)
                _require_near(segment.log_path, until - lost, until)
                span = f"{segment.base} to {until - 1}"
                what = f"written anew from its whole batches; {lost:,} of the offsets {span} are lost"
                yield Action(segment.log_path, what, partial(self._rewrite, partition, segment, found, until))
        if not segments and known:
            what = f"its segments are lost: offsets 0 to {known - 1} are passed over"
            yield Action(partition.directory, what, self._passing_over(partition, 0, known))
        start = self._known_start(partition)
        if segments and start < segments[0][0].base:
            _require_near(segments[0][0].log_path, start, segments[0][0].base)
            what = f"offsets {start} to {segments[0][0].base - 1} are lost, and passed over"
            yield Action(partition.directory, what, self._passing_over(partition, start, segments[0][0].base))

    def _passing_over(self, partition: Partition, base: int, end: int) -> Callable[[], None]:
        return partial(self._write, partition, partition.log.compacted(base, end, 1), [], None)

    def _known_start(self, partition: Partition) -> int:
        try:
            return partition.start()
        except CorruptionError:
            return 1 << 62

    def _known_end(self, partition: Partition) -> int:
        """Up to where the log was known to reach: by the mark of a clean close, or by the counters."""
        state = self._clean.get(partition.slot.number)
        known = 0 if state is None or state.incarnation != partition.topic.incarnation else state.end
        try:
            return max(known, partition.end())
        except CorruptionError:
            return known

    def _rewrite(self, partition: Partition, segment: Segment, found: list[Stretch], until: int) -> None:
        target = partition.log.compacted(segment.base, until, segment.generation + 1)
        self._write(partition, target, [one for one in found if one.whole], self._files.open(segment.log_path))
        self._aside.put(segment.log_path)
        self._aside.put(segment.index_path)

    def _write(self, partition: Partition, target: Segment, parts: list[Stretch], source: File | None) -> None:
        """Whole stretches as they are, empty batches for what lies between."""
        scratch = f"{target.path}.new"
        file = self._files.open(scratch, create=True)
        file.truncate(0)
        position, reached, epoch = 0, target.base, 0
        for part in [*parts, None]:
            for data in _gap(reached, target.next if part is None else part.base, epoch):
                file.write([data], position)
                position += len(data)
            if part is not None:
                assert source is not None
                for data in _copied(source, part, plain=partition.topic.directory in self._remade):
                    file.write([data], position)
                    position += len(data)
                reached, epoch = part.end, part.epoch
        file.sync()
        self._files.rename(scratch, target.log_path)
        self._files.sync_dir(partition.directory)


def _partitions(engine: Engine) -> Iterator[Partition]:
    """Those of topics whose file is whole."""
    for name in engine.registry.names(internal=True):
        try:
            state = None if name.startswith(("__new-", "__deleted-")) else engine.registry.find(name)
        except CorruptionError:
            continue
        if state is not None:
            yield from state.partitions


def _counts(header: BatchHeader) -> bool:
    return True


def _headers(segment: Segment) -> Iterator[Found]:
    return walk(segment.file(), 0, segment.file().size())


def _copied(source: File, part: Stretch, *, plain: bool) -> Iterator[bytes]:
    """A whole stretch as it is; `plain`: its batches are of no transaction any more."""
    if not plain:
        for at in range(part.position, part.stop, _COPY_BYTES):
            yield source.read(min(_COPY_BYTES, part.stop - at), at)
        return
    for header, position in walk(source, part.position, part.stop):
        payload = source.read(header.length, position + HEADER_BYTES)
        flags = header.flags & ~FLAG_TRANSACTION
        yield pack_header(header._replace(flags=flags, transaction_id=NO_TRANSACTION), payload) + payload


def _require_near(path: str, base: int, until: int) -> None:
    """Refuse to pass over more offsets than can have been lost: one of the two is not what was written."""
    if until - base > _FAR:
        raise CorruptionError(
            f"{path}: what comes after offset {base} is said to go on at {until}, which cannot be; look at the names "
            "of the files beside it and at its start file, remove what is not of this log, and repair again",
            file=path,
            position=0,
        )


def _reached(segment: Segment, found: list[Stretch]) -> int:
    return max([segment.base, *(one.end for one in found if one.whole)])


def _gap(base: int, until: int, epoch: int) -> Iterator[bytes]:
    """Batches without messages that stand for these offsets."""
    payload = encode_payload(None, None, None, None, [])
    while base < until:
        end = min(until, base + _GAP_MAX)
        header = BatchHeader(
            ENCODING_NATIVE, 0, FLAG_COMPACTED, len(payload), len(payload), 0, end - base - 1, base,
            NEVER_MS, NEVER_MS, 0, epoch, 0, NO_PRODUCER, NO_SEQUENCE, NO_TRANSACTION,
        )  # fmt: skip
        yield pack_header(header, payload) + payload
        base = end
