"""A transaction as its user sees it: messages staged, a consumer's offsets with them, then all or nothing.

What is sent inside is staged here and nowhere else: in memory, batch by batch, and beyond `SPILL_BYTES` in a private
file that nobody can open and that goes away with the process. Leaving the block hands it to `streamlite.commit`. Rules:

* A delivery of a transaction is settled when the block is left: with its offset, or with why nothing was sent.
* What this producer was given before the commit is written before it: messages of one key stay in the order of sending.
* A consumer given has its offsets taken down at the end of the block. Whatever it handed out and did not commit of a
  partition that it lost meanwhile refuses the whole (`FencedError`): its new owner hands that out again.
* After an abort the consumer given is back at its committed offsets, or where it began.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from streamlite.commit import Commit
from streamlite.consumer import Consumer
from streamlite.delivery import BulkDelivery, Delivery, Outcome
from streamlite.errors import ConfigError, FencedError, StreamliteError, TransactionError, not_picklable
from streamlite.files import File
from streamlite.group import GroupOffsets
from streamlite.partition import Outgoing, Partition
from streamlite.staging import MESSAGE_OVERHEAD, STAGED_MAX, Batch, Lane, Part

if TYPE_CHECKING:
    from streamlite.assignment import Assignment
    from streamlite.message import Columns
    from streamlite.producer import Producer

__all__ = ["TRANSACTION_BYTES_MAX", "TRANSACTION_PARTITIONS_MAX", "Transaction"]

logger = logging.getLogger("streamlite")

TRANSACTION_BYTES_MAX: Final = 1 << 30
"""Payload of one transaction at most: its locks are held while it is copied into the logs."""
TRANSACTION_PARTITIONS_MAX: Final = 500
"""Each takes a lock, and a lock a descriptor: half of the usual limit of 1,024."""
SPILL_BYTES: Final = 16 << 20
"""Payload kept in memory; what comes after goes to a file."""

_NEW, _OPEN, _LEFT, _COMMITTED, _ABORTED = "not begun", "open", "being committed", "committed", "aborted"


class Parcel:
    """The batches of a transaction for one partition, some of them in its file."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.payload_bytes = 0
        self._outgoing: list[Outgoing | tuple[Outgoing, int, int]] = []
        self._file: File | None = None

    @property
    def count(self) -> int:
        """Of batches."""
        return len(self.batches)

    def add(self, outgoing: Outgoing) -> None:
        """What the next of `batches` is in bytes, kept in memory."""
        self._outgoing.append(outgoing)
        self.payload_bytes += len(outgoing.payload)

    def add_spilled(self, outgoing: Outgoing, file: File, position: int) -> None:
        """The same, written to the file."""
        file.write([outgoing.payload], position)
        self._file = file
        self._outgoing.append((outgoing._replace(payload=b""), position, len(outgoing.payload)))
        self.payload_bytes += len(outgoing.payload)

    def __iter__(self) -> Iterator[Outgoing]:
        for one in self._outgoing:
            if isinstance(one, Outgoing):
                yield one
            else:
                outgoing, position, size = one
                assert self._file is not None
                yield outgoing._replace(payload=self._file.read(size, position))


class Transaction:
    """`with producer.transaction(consumer) as tx:`. Made by `Producer.transaction`; used by the thread that entered."""

    def __init__(self, producer: Producer, consumer: Any) -> None:
        self._producer = producer
        self._engine = producer._engine
        self._assignment: Assignment | None = None
        if consumer is not None:
            self.take(consumer)
        self._state = _NEW
        self._owner: object = None
        # Guards what is staged, and the state: a helper of the thread that owns the block may send while it is left.
        self._staging = threading.RLock()
        self.mutex = producer.mutex
        """Guards the outcomes, as `delivery.Sender` has it."""
        self._open: dict[Part, Batch] = {}
        self._sizes: dict[Part, int] = {}
        self._keyless: dict[Lane, Part] = {}
        self._parcels: dict[Partition, Parcel] = {}
        self._written: set[Partition] = set()
        self._offsets: dict[Assignment, dict[Any, Any]] = {}
        self._ownerships: dict[Assignment, dict[Any, int]] = {}  # those under which offsets were given
        self._failure: BaseException | None = None  # of a batch that could not be put away: it must not be left out
        self._bytes = 0
        self._spilled = 0
        self._file: File | None = None

    def __repr__(self) -> str:
        return f"<Transaction on {self._engine.ctx.files.root}: {self._state}>"

    def __reduce__(self) -> NoReturn:
        raise not_picklable("transaction")

    def _assignment_of(self, consumer: Any) -> Assignment:
        if not isinstance(consumer, Consumer):
            raise ConfigError(f"a transaction takes a Consumer; found {type(consumer).__name__}")
        return consumer._for_transaction(self._engine)

    def take(self, consumer: Any) -> None:
        """Commit what this consumer was handed out by the end, too."""
        self._assignment = self._assignment_of(consumer)

    # -- the block ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Transaction:
        if self._state is not _NEW:
            raise TransactionError(f"this transaction is {self._state}: begin another with producer.transaction()")
        self._owner = self._producer._here()
        try:
            self._producer._enter(self)
            self._state = _OPEN
            if self._assignment is not None:
                self._assignment.transaction = self
        except BaseException:
            # A signal handler's exception, which leaves no block that could end it.
            if self._is_entered():
                self._end(_ABORTED)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.leave(error)

    def leave(self, error: BaseException | None) -> None:
        """The block is over: commit, or, where it raised, abort."""
        if self._state is not _OPEN:
            return
        if error is None:
            self._commit()
        else:
            said = f": {error}" if str(error) else ""
            self._abort(f"its block raised {type(error).__name__}{said}")

    def abort(self) -> None:
        """Publish nothing; what follows in the block may send no more. The consumer given is rewound.

        Also for after the block, where a signal handler raised in the moment before its end was seen to.
        """
        with self._staging:
            if self._state is not _OPEN and self._is_entered():
                self._producer._leave(self._owner)  # a signal handler cut that off
            self._check()
            self._state = _LEFT
        self._abort("abort() was called")

    def _is_entered(self) -> bool:
        """Whether its producer takes it for the transaction that its owner is in."""
        return self._producer._transactions.get(self._owner) is self

    def _check(self) -> None:
        if self._state is not _OPEN:
            raise TransactionError(
                f"this transaction is {self._state}: use it inside its 'with' block, and begin another for what follows"
            )
        self._producer._check_open()

    # -- staging ------------------------------------------------------------------------------------------------------

    def send(
        self,
        topic: Any,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: int | datetime | None = None,
        headers: Mapping[str, bytes | None] | Iterable[tuple[str, bytes | None]] | None = None,
        sequence: int | None = None,
    ) -> Delivery:
        """As `Producer.send`; the delivery is settled when the block is left. `TransactionError` beyond the limits."""
        self._check()
        producer = self._producer
        lane, number, item, size = producer._message(topic, value, key, partition, timestamp, headers, sequence)
        known = producer._known(lane, number, item[1], sequence)
        if known is not None:
            return known
        with self._staging:
            self._check()
            part = self._part(lane, number, item[1])
            self._charge(size + MESSAGE_OVERHEAD, {part.partition})
            batch = self._batch(part)
            if sequence is not None:
                assert producer._numbers is not None
                with self.mutex:
                    known = producer._numbers.check(part.partition, sequence)
                    if known is not None:
                        return known  # another thread sent the same meanwhile
                    producer._numbers.staged(batch, sequence, Delivery(batch, item))
            now = producer._now()
            if now >= batch.tick:
                batch.step(now)
            if len(item) > 2:
                batch.mixed = True
            batch.items.append(item)
            self._sizes[part] += size + MESSAGE_OVERHEAD
            if self._sizes[part] >= producer._batch_bytes or len(batch.items) >= STAGED_MAX:
                self._seal(part)
        return Delivery(batch, item)

    def send_many(
        self,
        topic: Any,
        values: Sequence[Any] | Columns,
        *,
        keys: Sequence[Any] | None = None,
        partition: int | None = None,
        timestamps: Sequence[int | datetime] | None = None,
        headers: Sequence[Any] | None = None,
    ) -> Delivery:
        """As `Producer.send_many`; the delivery is settled when the block is left."""
        self._check()
        producer = self._producer
        lane, columns = producer._columns(topic, values, keys, partition, timestamps, headers)
        told = producer._on_delivery is not None
        pieces = []
        with self._staging:
            self._check()
            now_ms = int(producer._now() * 1000)
            cut = [
                columns.piece(self, lane, start, stop, now_ms, told=told)
                for start, stop, _ in columns.cuts(producer._batch_bytes)
            ]
            self._charge(columns.total_bytes, {batch.part.partition for _, batches in cut for batch in batches})
            for piece, batches in cut:
                pieces.append(piece)
                for batch in batches:
                    self._seal(batch.part)  # what was sent to it before comes first
                    self._put(batch)
        if not pieces:
            return producer._nothing(lane)
        delivery = BulkDelivery(next(iter(pieces[0].outcomes.values())), 0, pieces)
        if producer._on_delivery is not None:
            delivery.add_done_callback(producer._on_delivery)
        return delivery

    def _part(self, lane: Lane, partition: int | None, key: bytes | None) -> Part:
        if partition is not None:
            return lane.parts[partition]
        if key is not None:
            return lane.by_key.part(key)
        part = self._keyless.get(lane)
        if part is None:
            with self.mutex:
                part = self._keyless[lane] = lane.next_sticky()
        return part

    def _batch(self, part: Part) -> Batch:
        batch = self._open.get(part)
        if batch is None:
            batch = self._open[part] = Batch(self, part)
            self._sizes[part] = 0
        return batch

    def _charge(self, size: int, partitions: set[Partition]) -> None:
        """Count what is about to be staged; `TransactionError` where it is too much, with nothing of it taken."""
        if len(self._written) + len(partitions - self._written) > TRANSACTION_PARTITIONS_MAX:
            raise TransactionError(
                f"a transaction writes to {TRANSACTION_PARTITIONS_MAX} partitions at most; this would go beyond and "
                "was not taken: commit more often"
            )
        if self._bytes + size > TRANSACTION_BYTES_MAX:
            raise TransactionError(
                f"a transaction takes {TRANSACTION_BYTES_MAX:,} bytes at most; it has {self._bytes:,} and this would "
                f"add {size:,}, which were not taken: commit more often"
            )
        self._bytes += size
        self._written |= partitions

    def _seal(self, part: Part) -> None:
        batch = self._open.get(part)
        if batch is not None:
            batch.count = len(batch.items)
            self._put(batch)

    def _put(self, batch: Batch) -> None:
        """Encode a batch and put it away. Whatever is raised meanwhile, the end finds it, and nothing is committed."""
        try:
            if batch.count:
                parcel = self._parcels.setdefault(batch.part.partition, Parcel())
                parcel.batches.append(batch)
                self._store(parcel, batch.encoded(keep=self._producer._on_delivery is not None))
            if self._open.get(batch.part) is batch:
                del self._open[batch.part]
        except BaseException as error:
            self._failure = self._failure or error
            raise

    def _store(self, parcel: Parcel, outgoing: Outgoing) -> None:
        size = len(outgoing.payload)
        if self._kept() + size <= SPILL_BYTES:
            parcel.add(outgoing)
            return
        if self._file is None:
            self._file = self._engine.ctx.files.scratch()
        parcel.add_spilled(outgoing, self._file, self._spilled)
        self._spilled += size

    def _kept(self) -> int:
        return sum(parcel.payload_bytes for parcel in self._parcels.values()) - self._spilled

    def commit_offsets(self, consumer: Any, offsets: Mapping[Any, int] | None = None) -> None:
        """Commit these offsets of a consumer's group with the messages; `None`: all that it has handed out so far.

        The consumer must have a group and `auto_commit=False`. `ConfigError` for what it could not commit itself; an
        ownership that has ended refuses the whole transaction, when the block is left.
        """
        self._check()
        assignment = self._assignment_of(consumer)
        given = assignment.to_commit(offsets)
        if assignment is self._assignment and offsets is None:
            return  # all that it hands out until the end is committed anyway
        with self._staging:
            self._check()
            self._offsets.setdefault(assignment, {}).update(given)
            # Lost and got back before the end is lost: what was decided on before that no longer holds.
            self._ownerships.setdefault(assignment, {}).update(assignment.for_commit(given).ownerships)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        commit: Commit | None = None
        groups: list[GroupOffsets] = []
        try:
            self._producer._check_open()
            with self._staging:
                self._state = _LEFT
                for part in list(self._open):
                    self._seal(part)
                if self._failure is not None:
                    raise TransactionError(f"a message could not be put away: {self._failure}") from self._failure
            groups = self._group_offsets()
            if self._parcels or groups:
                self._producer.push()
                numbers = self._producer._numbers
                commit = Commit(self._engine, self._parcels, groups, None if numbers is None else numbers.name)
                commit.run()
            self._committed(commit, None)
        except BaseException as error:
            if commit is not None and commit.committed:
                self._committed(commit, error if isinstance(error, StreamliteError) else None)
            else:
                self._fail(error, unknown=commit is not None and commit.committed is None)
            raise

    def _group_offsets(self) -> list[GroupOffsets]:
        """What is to be committed for groups, as it is now."""
        if self._assignment is not None:
            given = self._offsets.setdefault(self._assignment, {})
            self._offsets[self._assignment] = self._assignment.to_commit(None) | given
        groups = []
        for assignment, positions in self._offsets.items():
            assignment.require_unbroken()
            if positions:
                found = assignment.for_commit(positions)
                groups.append(found._replace(ownerships={**found.ownerships, **self._ownerships.get(assignment, {})}))
        return groups

    def _committed(self, commit: Commit | None, error: StreamliteError | None) -> None:
        """It is visible to all; `error`: and not safe. Goes on where a signal handler interrupted it."""
        self._end(_COMMITTED)
        for assignment, positions in self._offsets.items():
            assignment.committed(positions)
        for partition, parcel in self._parcels.items():
            assert commit is not None
            for batch, base in zip(parcel.batches, commit.offsets[partition], strict=True):
                self._settle(batch, base, error)

    def _fail(self, error: BaseException, *, unknown: bool) -> None:
        """The commit raised; `unknown`: and perhaps it is one."""
        if isinstance(error, FencedError):
            for assignment in self._offsets:
                assignment.join_again()
        if not unknown:
            self._abort(f"{type(error).__name__}: {error}", error if isinstance(error, StreamliteError) else None)
            return
        logger.error("it is not known whether a transaction was committed: %s", error)
        self._end(_ABORTED)
        for assignment in self._offsets:
            assignment.join_again()
        what = TransactionError(f"it is not known whether the transaction was committed: {error}")
        self._settle_all(what)

    def _abort(self, why: str, error: StreamliteError | None = None) -> None:
        self._end(_ABORTED)
        try:
            if self._assignment is not None:
                self._assignment.go_back()
        finally:
            self._settle_all(error or TransactionError(f"nothing of the transaction was sent: {why}"))

    def _settle_all(self, error: StreamliteError) -> None:
        with self._staging:
            left = list(self._open.values())
        for batch in left:
            batch.count = batch.count or len(batch.items)
        for batch in (*(batch for parcel in self._parcels.values() for batch in parcel.batches), *left):
            self._settle(batch, -1, error)

    def _settle(self, batch: Batch, base: int, error: StreamliteError | None) -> None:
        if batch.done:
            return
        on_delivery = self._producer._on_delivery
        if on_delivery is not None:
            batch.seen = True
            for item in batch.kept or batch.items[: batch.count]:
                batch.add_callback(item, on_delivery)
        batch.settle(base, error)

    def _end(self, state: str) -> None:
        self._state = state
        if self._assignment is not None and self._assignment.transaction is self:
            self._assignment.transaction = None
        self._producer._leave(self._owner)
        self._file = None

    # -- waiting ------------------------------------------------------------------------------------------------------

    def hurry(self, outcome: Outcome, timeout: float | None) -> bool:
        """Wait for a result; not inside the block."""
        self.nudge()
        return outcome.wait(timeout)

    def nudge(self) -> None:
        """A result is wanted: `TransactionError` in the block, whose end it comes with."""
        if self._state is _OPEN and self._producer._here() == self._owner:
            raise TransactionError(
                "a result inside its own transaction would never come: messages are sent when the block is left; ask "
                "the delivery after it"
            )
