"""Commit records: the internal log that says which transactions were committed.

A transaction's number is the offset of its record in `__transactions` plus one, so that looking it up is a seek. The
record names every partition that the transaction wrote to and the offsets it took there. Whoever finds batches of a
transaction that are not published asks here (`committed`), by one rule:

* Its record is there, names this partition and these offsets, and is of the same epoch: it was committed.
* The log of records begins after it: it was committed, for a record goes only when all that it names is published and
  on the device (`prune`).
* Anything else (but for a record that a repair had to give up): it was not. Its committer held the partition's lock,
  which the asker has now, so it is dead.

What a dead committer left of the records' own log is settled before it is read: the last record may be written and not
published. The lock of `__transactions` is the last in the order of locks (`streamlite.commit`), so whoever holds
a partition's lock may take it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from streamlite.batch import encode_payload
from streamlite.config import TopicSettings
from streamlite.context import Context
from streamlite.counters import ACTIVE, FLAGS, RECOVER, START, SYNCED, TRANSACTION, WRITING
from streamlite.errors import OffsetOutOfRangeError
from streamlite.format import BatchHeader
from streamlite.partition import Outgoing, Partition
from streamlite.reader import Cursor
from streamlite.registry import TRANSACTIONS, Registry

__all__ = ["Ledger", "Part"]

SETTINGS: Final = TopicSettings(segment_bytes=4 << 20)
"""Small segments: records go a segment at a time."""
_KNOWN_MAX: Final = 1000
"""Records kept in memory: those of a burst that is being recovered, partition by partition."""


class Part(NamedTuple):
    """What a transaction has in one partition: offsets `base` to `end`, the latter exclusive."""

    incarnation: int
    partition: int
    base: int
    end: int


class _Record(NamedTuple):
    epoch: int
    parts: dict[tuple[int, int], tuple[int, int]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Part]).decode


class Ledger:
    """The commit records, as one open bus sees them."""

    def __init__(self, ctx: Context, registry: Registry) -> None:
        self._ctx = ctx
        self._registry = registry
        self._mutex = threading.Lock()  # guards the two below
        self._cursor: Cursor | None = None
        self._known: OrderedDict[int, _Record] = OrderedDict()

    def log(self) -> Partition:
        """The log of records, created at the first transaction; not under any lock."""
        return self._registry.find_or_create(TRANSACTIONS, SETTINGS).partitions[0]

    def _log(self) -> Partition | None:
        state = self._registry.find(TRANSACTIONS)
        if state is None:
            return None
        log = state.partitions[0]
        if log.slot.get(TRANSACTION):
            log.slot.set(TRANSACTION, 0)  # records are of no transaction, or they would wait for themselves
        return log

    def record(self, parts: Iterable[Part]) -> Outgoing:
        """The record of a transaction, to be appended to `log`."""
        now = self._ctx.clock.time_ms()
        payload = encode_payload(None, [_encode(list(parts))])
        return Outgoing(payload, 1, now, now, len(payload))

    # -- looking up ---------------------------------------------------------------------------------------------------

    def committed(self, partition: Partition, header: BatchHeader) -> bool:
        """Whether the transaction of that batch was committed; for who holds the partition's lock, or only reads."""
        log = self._log()
        if log is None or log is partition:  # a record is of no transaction: it would have to be asked for itself
            return False
        self._settle(log)
        offset = header.transaction_id - 1
        end = log.end()  # first: whoever only reads has the beginning from it, too
        if offset < log.slot.get(START):
            return True
        if offset >= end:
            return False
        try:
            record = self._record(log, offset)
        except OffsetOutOfRangeError:  # it went meanwhile, as it may for who holds no lock and only reads
            return True
        if record is None:
            return True  # a repair passed over it: what is in a log stays there
        if record.epoch != header.epoch:
            return False
        base, end = record.parts.get((partition.topic.incarnation, partition.number), (0, 0))
        return base <= header.base_offset and header.next_offset <= end

    def _settle(self, log: Partition) -> None:
        """Have the end of the records stand for all that were written."""
        if self._ctx.read_only or not log.slot.get(FLAGS) & (WRITING | RECOVER):
            # Nobody is in the middle of a commit: a live one would hold the asker's lock if he wrote to his partition.
            return
        if log.guard.mine:
            log.settle()
        else:
            log.settle_now()

    def _record(self, log: Partition, offset: int) -> _Record | None:
        with self._mutex:
            known = self._known.get(offset)
            if known is not None and self._cursor is not None and self._cursor.partition is log:
                return known
            if self._cursor is None or self._cursor.partition is not log:
                self._known.clear()
                self._cursor = Cursor(log, offset)
            self._cursor.seek(offset)
            batch = self._cursor.fetch()
            if batch is None or batch.header.base_offset != offset:
                return None
            self._cursor.offset = batch.header.next_offset
            try:
                named = _decode(batch.values[0] or b"")
            except ValueError as error:  # of msgspec, which has seen other bytes than `record` made
                raise self._cursor.damaged(batch, error) from error
            parts = {(one.incarnation, one.partition): (one.base, one.end) for one in named}
            record = self._known[offset] = _Record(batch.header.epoch, parts)
            while len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
            return record

    # -- safety -------------------------------------------------------------------------------------------------------

    def covers(self, transaction: int) -> bool:
        """Whether the records up to that transaction are on the device; 0 is none."""
        if not transaction:
            return True
        log = self._log()
        # Where damage cut records off, those that are left are all there is to wait for.
        return log is None or log.slot.get(SYNCED) >= min(transaction, log.slot.end)

    def sync_upto(self, transaction: int) -> None:
        """Bring them there."""
        log = self._log()
        if transaction and log is not None:
            log.sync(min(transaction, log.slot.end))

    def prune(self) -> None:
        """Remove records whose transactions are published and safe in every partition; under no lock.

        Seen once from the beginning of the active segment of records: whatever was committed before has written to its
        partitions, so each of them that is settled and synced now needs none of these records any more.
        """
        log = self._log()
        if log is None:
            return
        before = log.locked(lambda: log.slot.get(ACTIVE))
        if log.slot.get(START) >= before:
            return
        for partition in self._registry.every_partition():
            if partition.slot.get(FLAGS):
                partition.settle_now()
            if partition.unsynced:
                partition.sync()
        log.locked(lambda: log.drop_before(before))
