"""From sealed batches to settled ones: the drain of one producer, and the room in its buffer.

One drain at a time, batches in the order they were sealed, so that messages of one key are appended in the order of
sending. A drain takes only what is free at once: a batch whose partition is locked stays in its partition's queue while
the others go on, and fails after `lock_timeout`. A batch that fails takes what is queued behind it for its partition
along: nothing overtakes it.

`mutex` is the producer's: it guards the lanes and the buffer's count, and is held for moments. `_draining` is the
drain's own. `mutex` is never held while `_draining` is waited for, and neither while a callback runs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from streamlite.config import ProducerOptions
from streamlite.context import Context
from streamlite.delivery import Delivery, Outcome
from streamlite.errors import BufferFullError, LockTimeoutError, SerdeError, StreamliteError
from streamlite.partition import Appended, Numbering, Outgoing, Partition
from streamlite.staging import MESSAGE_OVERHEAD, Batch, Lane

__all__ = ["Outbox"]

_FAILED_MAX: Final = 1000
"""Failed batches remembered until somebody flushes, who is told of the first."""


class _Queue:
    """What waits for its partition, in order, and the base offsets of the leading batches that are published."""

    __slots__ = ("batches", "offsets")

    def __init__(self) -> None:
        self.batches: deque[tuple[Batch, Outgoing]] = deque()
        self.offsets: list[int] = []


class Outbox:
    """What a producer has sealed and not yet settled.

    A signal handler may raise after any call. So a batch goes from one place to the next in statements that call
    nothing (`+=`, `del`), and what has been done is read off where it is, never counted along.
    """

    def __init__(
        self, ctx: Context, options: ProducerOptions, mutex: threading.RLock, lanes: Mapping[int, Lane]
    ) -> None:
        self._ctx = ctx
        self._options = options
        self._mutex: Any = mutex  # asked for its owner
        self.numbering: Numbering | None = None
        """Of a producer with a name."""
        self._lanes = lanes
        self.room = threading.Condition(mutex)
        """Notified when room in the buffer was given back."""
        self.unsettled: dict[Batch, None] = {}
        self._failed: list[Outcome] = []
        self._sealed: deque[Batch] = deque()
        self._queues: dict[Partition, _Queue] = {}
        self._blocked: dict[Partition, float] = {}  # since when a partition's lock was found taken
        # What became of batches, not told yet.
        self._settled: deque[tuple[Batch, int, StreamliteError | None]] = deque()
        self._draining: Any = threading.RLock()  # re-entrant only to know its owner

    @property
    def buffered(self) -> int:
        """Bytes sealed and not settled, and what lanes have reserved; under the mutex."""
        sealed = sum([batch.bytes for batch in list(self.unsettled)])
        return sealed + sum([lane.reserved for lane in self._lanes.values() if lane.active])

    @property
    def waiting(self) -> list[Outcome]:
        """Everything that has no result yet; under the mutex."""
        return [*self.unsettled, *(batch for batch, _, _ in self._settled.copy())]

    @property
    def pending(self) -> bool:
        """Whether a drain has something to do."""
        return bool(self._sealed or self._queues)

    @property
    def blocked(self) -> bool:
        """Whether something waits for a partition's lock."""
        return bool(self._queues)

    def has_room(self, size: int) -> bool:
        """Under the mutex: whether `size` bytes fit the buffer; into an empty one anything does."""
        buffered = self.buffered
        return not buffered or buffered + size <= self._options.buffer_bytes

    def full(self) -> BufferFullError:
        """What a sender gets who waited in vain."""
        options = self._options
        return BufferFullError(
            f"the buffer ({options.buffer_bytes:,} bytes) stayed full for {options.max_block:g} s; the message was not "
            "taken: the disk or another holder of a lock is slow; send again, or raise buffer_bytes"
        )

    def put(self, batches: Iterable[Batch]) -> None:
        """Under the mutex: these batches are the drain's now."""
        unsettled, sealed = self.unsettled, self._sealed
        for batch in batches:
            if not batch.sent:
                batch.sent = True
                unsettled[batch] = None
                sealed += (batch,)

    def drain(self, timeout: float) -> bool:
        """Write what is sealed, as far as locks are free; `False` where the drain itself was taken.

        Anything may be raised anywhere by a signal handler: what has not been taken off then is where the next drain
        finds it, and what became of batches is kept in `_settled` until they were told.
        """
        draining = self._draining
        while self._sealed or self._queues or self._settled:
            if draining._is_owned():
                return False  # a signal handler in the middle of a drain
            try:
                if not (draining.acquire(timeout=timeout) if timeout > 0 else draining.acquire(blocking=False)):
                    return False
                self._drain_once()
            finally:
                try:  # noqa: SIM105 - `suppress` is Python, and may be interrupted before it begins
                    draining.release()
                except RuntimeError:
                    pass  # not taken
            if not self._tell():
                return True
        return True

    def _drain_once(self) -> None:
        """Encode and append, holding `_draining`; what became of the batches goes to `_settled`."""
        queues, sealed, settled, keep = self._queues, self._sealed, self._settled, self._options.on_delivery is not None
        while sealed:
            batch = sealed[0]
            outgoing, failure = _encode(batch, keep=keep)
            if outgoing is None:
                settled += ((batch, -1, failure),)
                del sealed[0]
                continue
            queue = queues.get(batch.part.partition)
            if queue is None:
                queue = queues[batch.part.partition] = _Queue()
            self._weigh(batch, outgoing)
            batches = queue.batches
            batches += ((batch, outgoing),)
            del sealed[0]
        for partition in list(queues):
            if queues[partition].batches:
                self._append(partition, queues[partition])
            if not queues[partition].batches:
                del queues[partition]

    def _weigh(self, batch: Batch, outgoing: Outgoing) -> None:
        """Charge what the batch really takes, and remember it for the next ones of its lane."""
        if batch.steps:
            size = outgoing.content_bytes + batch.count * MESSAGE_OVERHEAD
            with self._mutex:
                batch.bytes = size
                batch.part.lane.message_bytes = size // batch.count + 1

    def _append(self, partition: Partition, queue: _Queue) -> None:
        """Append a partition's batches if its lock is free."""
        batches, offsets, settled = queue.batches, queue.offsets, self._settled
        try:
            if offsets:  # a signal handler ended the drain that published these
                result: Appended | None = partition.published(Appended(offsets, None))
            else:
                result = partition.try_append([outgoing for _, outgoing in batches], offsets, self.numbering)
        except StreamliteError as failure:
            result = Appended([], failure)
        if result is None:
            self._expire(queue)
            return
        self._blocked.pop(partition, None)
        if result.offsets:
            while offsets:
                settled += ((batches[0][0], offsets[0], None),)
                del batches[0], offsets[0]
        # What follows a failed batch in its partition must not overtake it: it fails as well, for the same reason.
        if result.error is not None:
            self._fail(queue, result.error)

    def _fail(self, queue: _Queue, error: StreamliteError) -> None:
        batches, settled = queue.batches, self._settled
        while batches:
            settled += ((batches[0][0], -1, error),)
            del batches[0]

    def _expire(self, queue: _Queue) -> None:
        """The partition's lock is taken: batches that waited for it too long fail."""
        partition = queue.batches[0][0].part.partition
        timeout = self._ctx.lock_timeout
        now = time.monotonic()
        if now - self._blocked.setdefault(partition, now) < timeout:
            return
        del self._blocked[partition]
        error = LockTimeoutError(
            f"the lock of {partition.guard.what} stayed taken for {timeout:g} s; these messages were not written: its "
            "holder may be stopped or very slow; send them again, or raise lock_timeout"
        )
        self._fail(queue, error)

    def _tell(self) -> bool:
        """Give room back and tell who waits, with no lock held but for a moment; whether there was anything."""
        if self._mutex._is_owned():
            return False  # a signal handler or finalizer in the middle of telling, which goes on
        told = False
        on_delivery = self._options.on_delivery
        while self._settled:
            try:
                batch, base, error = self._settled[0]
            except IndexError:  # another thread tells
                return True
            told = True
            with self._mutex:
                if batch in self.unsettled:  # once, whoever tells
                    calls = batch.kept if on_delivery is not None else ()
                    made = [(on_delivery, Delivery(batch, item)) for item in calls]
                    failed = [batch] if error is not None and len(self._failed) < _FAILED_MAX else []
                    # All of it or nothing, if a signal handler raises.
                    if made:
                        batch.seen = True
                        batch.expect(made)
                    self._failed += failed
                    del self.unsettled[batch]
                self.room.notify_all()
            batch.settle(base, error)
            with self._mutex, suppress(ValueError):  # another thread may have been quicker
                self._settled.remove((batch, base, error))
        return told

    def note_failed(self, outcome: Outcome) -> None:
        """A message that did not come by here failed: who flushes is told."""
        with self._mutex:
            if len(self._failed) < _FAILED_MAX:
                self._failed += [outcome]

    def raise_unseen(self) -> None:
        """Raise the first failure since the last call that nobody was told of."""
        with self._mutex:
            unseen = next((outcome for outcome in self._failed if not outcome.seen), None)
            self._failed = []
            if unseen is not None:
                assert unseen.error is not None
                unseen.seen = True
                raise unseen.error


def _encode(batch: Batch, *, keep: bool) -> tuple[Outgoing | None, StreamliteError | None]:
    """The batch as bytes, or why that cannot be: whatever it is, it must not stay before all others."""
    try:
        return batch.encoded(keep=keep), None
    except Exception:
        try:
            batch.encoded(keep=keep)
        except StreamliteError as error:
            return None, error
        except Exception as error:  # noqa: BLE001 - see above
            return None, SerdeError(f"cannot encode a batch: {error!r}")
        raise  # not the batch's fault, but what a signal handler raised
