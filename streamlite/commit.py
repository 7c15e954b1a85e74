"""Committing a transaction: publish at commit.

Nothing of a transaction is in any log before its commit. Then, with all locks held:

1. whatever dead writers left in its partitions is settled, a group's ownerships are checked;
2. its batches are written behind the published end of each partition (`__offsets` is one of them), WRITING set: nobody
   reads there;
3. unless `sync="never"`, every one of them is synced, with the names that lead to it;
4. one record, naming them all, is appended to `__transactions` (`streamlite.ledger`): this is the commit;
5. the ends are stored: each partition shows its part at once, one partition a moment after the other.

Who dies before 4 leaves tails that the next holder of each lock cuts, after 4 tails that he publishes; so does this
process itself when something is raised in between. A write or sync that fails before 4 cuts what it wrote. With
`sync="always"` the record is synced after the locks are released and before anybody is told.

The order of locks, for everybody who takes more than one: groups by name; then partitions by topic and number, the
internal ones among them; then `__meta`; then `__transactions`. The bus's lock comes before all of them. Nothing waits
for a lock while it holds a later one, so no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from streamlite.counters import (
    ACTIVE,
    FLAGS,
    INDEXED,
    MAX_TIME,
    POSITION,
    START,
    SYNCED,
    TRANSACTION,
    WRITING,
    from_word,
)
from streamlite.engine import Engine
from streamlite.errors import StreamliteError
from streamlite.format import FLAG_TRANSACTION, HEADER_BYTES, INDEX_INTERVAL_BYTES, IndexEntry
from streamlite.group import GroupOffsets
from streamlite.ledger import Part
from streamlite.locks import Guard, run_all
from streamlite.partition import Outgoing, Partition
from streamlite.segment import NEVER_MS

if TYPE_CHECKING:
    from streamlite.numbering import Name

__all__ = ["Commit", "Staged"]

_WRITE_BYTES: Final = 4 << 20
"""So much is written with one call; a transaction that spilled to a file is never whole in memory."""


class Staged(Protocol):
    """The batches of a transaction for one partition, in order; they may be asked for more than once."""

    @property
    def payload_bytes(self) -> int:
        """Of all payloads together."""

    @property
    def count(self) -> int:
        """Of batches."""

    def __iter__(self) -> Iterator[Outgoing]: ...


class _Offsets(list[Outgoing]):
    """The batches of `__offsets`."""

    @property
    def payload_bytes(self) -> int:
        return sum(len(one.payload) for one in self)

    @property
    def count(self) -> int:  # type: ignore[override]
        return len(self)


class _Tail:
    """What one transaction writes behind the published end of one partition; under the partition's lock."""

    def __init__(self, partition: Partition, transaction: int) -> None:
        self.partition = partition
        self._transaction = transaction
        slot = partition.slot
        self._start = self._position = slot.get(POSITION)
        self._indexed = slot.get(INDEXED)
        self.base = self.end = slot.end
        self._greatest = from_word(slot.get(MAX_TIME)) if self._start else NEVER_MS
        self._entries: list[IndexEntry] = []
        self.offsets: list[int] = []

    def write(self, batches: Iterable[Outgoing]) -> None:
        """Write them; all go to one segment, be it larger than others."""
        partition = self.partition
        words = partition.slot.words()
        file, synced = partition.active_file(words), words[SYNCED]
        partition.slot.set(FLAGS, WRITING)
        buffers: list[bytes] = []
        size, at = 0, self._position
        for given in batches:
            batch = given._replace(flags=given.flags | FLAG_TRANSACTION, transaction_id=self._transaction)
            if at - self._indexed >= INDEX_INTERVAL_BYTES:
                self._entries.append(IndexEntry(self.end, at, self._greatest))
                self._indexed = at
            buffers += (partition.pack(batch, self.end, synced), batch.payload)
            self.offsets.append(self.end)
            self.end += batch.count
            self._greatest = max(self._greatest, batch.max_timestamp)
            size += HEADER_BYTES + len(batch.payload)
            at = self._position + size
            if size >= _WRITE_BYTES:
                file.write(buffers, self._position)
                self._position, size, buffers = at, 0, []
        if buffers:
            file.write(buffers, self._position)
            self._position = at

    def publish(self) -> None:
        """It is committed: let it be read."""
        partition, slot = self.partition, self.partition.slot
        for entry in self._entries:
            partition.add_entry(entry)
        slot.set(TRANSACTION, self._transaction)  # before the end: see Partition.sync
        partition.publish(self._position, self.end, self._greatest)

    def cut(self) -> None:
        """It is not: take it out again. Where even that fails WRITING stays, and the next holder does it."""
        slot = self.partition.slot
        if slot.get(FLAGS) & WRITING:
            self.partition.active_file(slot.words()).truncate(self._start)
            slot.set(FLAGS, slot.get(FLAGS) & ~WRITING)


class Commit:
    """One transaction, about to be committed. `run` does it; what became of it is there afterwards, raise or not."""

    def __init__(
        self,
        engine: Engine,
        staged: Mapping[Partition, Staged],
        groups: Sequence[GroupOffsets],
        name: Name | None = None,
    ) -> None:
        self._engine = engine
        self._ctx = engine.ctx
        self._staged = dict(staged)
        self._name = name
        self._numbered = set(staged) if name is not None else set()
        self._groups = groups
        self.committed: bool | None = False
        """`None`: the disk did not say, whoever next gets the locks finds out."""
        self.offsets: dict[Partition, list[int]] = {}
        """The base offset of each batch."""

    def run(self) -> None:
        """Commit, or raise with nothing done: `FencedError`, `LockTimeoutError`, `StorageError`, `UnknownTopicError`.

        With `sync="always"` it may raise a `StorageError` with `committed` set: all see it, and a stop of the machine
        may take it back.
        """
        engine, ctx = self._engine, self._ctx
        records = engine.ledger.log()
        if self._groups:
            offsets = engine.offsets.log()
            batch = [engine.offsets.outgoing(one.membership.group, one.positions) for one in self._groups]
            self._staged[offsets] = _Offsets(batch)
        if self._name is not None:
            for partition in self._numbered:
                self._name.look(partition)  # before the locks: it may take that of __meta
        partitions = sorted(self._staged, key=lambda one: (one.topic.name, one.number))
        groups = {one.membership.group: one.membership.guard for one in self._groups}
        guards: list[Guard] = [groups[name] for name in sorted(groups)]
        guards += [one.guard for one in partitions]
        guards.append(records.guard)
        members = [one.membership for one in self._groups]
        for member in members:
            member.begin_waiting()
        try:
            run_all(guards, lambda: self._checked(partitions, records), ctx.lock_timeout)
        finally:
            for member in members:
                member.end_waiting()
        for partition in (*partitions, records):
            partition.announce()
        if records.slot.get(START) < records.slot.get(ACTIVE):
            engine.maintenance.look_soon()
        if ctx.always:
            engine.ledger.sync_upto(records.slot.end)

    def _checked(self, partitions: Sequence[Partition], records: Partition) -> None:
        """Under all locks: commit, if that is still this producer's and these members' to do."""
        for one in self._groups:
            one.membership.require_owned(one.positions, one.ownerships)
        try:
            if self._name is not None:
                self._name.require_current()
            self._commit(partitions, records)
        finally:
            for one in self._groups:
                one.membership.is_freeing()
            if self._name is not None:
                for partition in self._numbered:
                    self._name.doubt(partition)

    def _commit(self, partitions: Sequence[Partition], records: Partition) -> None:
        """Under all locks."""
        for partition in (*partitions, records):
            partition.settle()
            staged = self._staged.get(partition)
            if staged is not None:
                size = staged.payload_bytes + staged.count * HEADER_BYTES
                if partition.is_full(partition.slot.words(), size):
                    partition.roll()
        transaction = records.slot.end + 1
        tails = [_Tail(partition, transaction) for partition in partitions]
        try:
            for tail in tails:
                tail.write(self._batches(tail.partition))
            if self._ctx.sync != "never":
                for tail in tails:
                    tail.partition.sync_written()
        except BaseException:
            _cut(tails)
            raise
        try:
            parts = [Part(t.partition.topic.incarnation, t.partition.number, t.base, t.end) for t in tails]
            records.append_locked([self._engine.ledger.record(parts)])
            self.committed = True
            self.offsets = {tail.partition: tail.offsets for tail in tails}
            for tail in tails:
                tail.publish()
        except BaseException:
            # Whatever it was, and wherever: what a death at this point would have come to is what becomes of it.
            self._settle(tails, records, transaction)
            raise

    def _batches(self, partition: Partition) -> Iterable[Outgoing]:
        staged = self._staged[partition]
        if self._name is None or partition not in self._numbered:
            return staged
        return self._name.numbered(partition, staged)

    def _settle(self, tails: Sequence[_Tail], records: Partition, transaction: int) -> None:
        self.committed = None
        records.settle()
        self.committed = records.slot.end >= transaction
        if self.committed:
            self.offsets = {tail.partition: tail.offsets for tail in tails}
            for tail in tails:
                tail.partition.settle()
        else:
            _cut(tails)


def _cut(tails: Sequence[_Tail]) -> None:
    """Each of them, whatever becomes of the others."""
    failed: StreamliteError | None = None
    for tail in tails:
        try:
            tail.cut()
        except StreamliteError as error:
            failed = failed or error
    if failed is not None:
        raise failed
