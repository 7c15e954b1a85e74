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
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from typing import Any, Final

from streamlite.config import ProducerOptions
from streamlite.context import Context
from streamlite.errors import BufferFullError, LockTimeoutError, SerdeError, StreamliteError
from streamlite.partition import Numbering, Outgoing, Partition
from streamlite.staging import MESSAGE_OVERHEAD, Batch

__all__ = ["Outbox"]

_FAILED_MAX: Final = 1000
"""Failed batches remembered until somebody flushes, who is told of the first."""

_Queue = deque[tuple[Batch, Outgoing]]


class Outbox:
    """What a producer has sealed and not yet settled."""

    def __init__(self, ctx: Context, options: ProducerOptions, mutex: threading.RLock) -> None:
        self._ctx = ctx
        self._options = options
        self._mutex = mutex
        self.numbering: Numbering | None = None
        """Of a producer with a name."""
        self._tickets = count(1)
        self.room = threading.Condition(mutex)
        """Notified when room in the buffer was given back."""
        self.buffered = 0
        """Bytes sealed and not settled, and what lanes have reserved; under the mutex."""
        self.unsettled: dict[Batch, None] = {}
        self._failed: list[Batch] = []
        self._sealed: deque[Batch] = deque()
        self._queues: dict[Partition, _Queue] = {}
        self._blocked: dict[Partition, float] = {}  # since when a partition's lock was found taken
        self._settled: deque[tuple[Batch, int, StreamliteError | None]] = (
            deque()
        )  # what became of batches, not told yet
        self._draining: Any = threading.RLock()  # re-entrant only to know its owner

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
        return not self.buffered or self.buffered + size <= self._options.buffer_bytes

    def full(self) -> BufferFullError:
        """What a sender gets who waited in vain."""
        options = self._options
        return BufferFullError(
            f"the buffer ({options.buffer_bytes:,} bytes) stayed full for {options.max_block:g} s; the message was not "
            "taken: the disk or another holder of a lock is slow; send again, or raise buffer_bytes"
        )

    def put(self, batches: Iterable[Batch]) -> None:
        """Under the mutex: these batches are the drain's now."""
        for batch in batches:
            if batch not in self.unsettled:
                self.buffered += batch.bytes
                self.unsettled[batch] = None
                self._sealed.append(batch)

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
                if draining._is_owned():
                    draining.release()
            if not self._tell():
                return True
        return True

    def _drain_once(self) -> None:
        """Encode and append, holding `_draining`; what became of the batches goes to `_settled`."""
        queues, keep = self._queues, self._options.on_delivery is not None
        while self._sealed:
            batch = self._sealed[0]
            try:
                outgoing = batch.encoded(keep=keep)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not stay before all others
                failure = (
                    error if isinstance(error, StreamliteError) else SerdeError(f"cannot encode a batch: {error!r}")
                )
                self._settled.append((batch, -1, failure))
                self._sealed.popleft()
                continue
            queue = queues.get(batch.part.partition)
            if queue is None:
                queue = queues[batch.part.partition] = deque()
            self._weigh(batch, outgoing)
            if not queue or queue[-1][0] is not batch:
                if self.numbering is not None:
                    outgoing = outgoing._replace(ticket=next(self._tickets))
                queue.append((batch, outgoing))
            self._sealed.popleft()
        for partition in list(queues):
            if queues[partition]:
                self._append(partition, queues[partition])
            if not queues[partition]:
                del queues[partition]

    def _weigh(self, batch: Batch, outgoing: Outgoing) -> None:
        """Charge what the batch really takes, and remember it for the next ones of its lane."""
        if batch.steps:
            size = outgoing.content_bytes + batch.count * MESSAGE_OVERHEAD
            with self._mutex:
                self.buffered += size - batch.bytes
                batch.bytes = size
                batch.part.lane.message_bytes = size // batch.count + 1

    def _append(self, partition: Partition, queue: _Queue) -> None:
        """Append a partition's batches if its lock is free."""
        error: StreamliteError | None = None
        try:
            result = partition.try_append([outgoing for _, outgoing in queue], self.numbering)
        except StreamliteError as failure:
            error = failure
        else:
            if result is None:
                self._expire(queue)
                return
            error = result.error
            self._blocked.pop(partition, None)
            for offset in result.offsets:
                self._settled.append((queue[0][0], offset, None))
                queue.popleft()
        # What follows a failed batch in its partition must not overtake it: it fails as well, for the same reason.
        if error is not None:
            self._fail(queue, error)

    def _fail(self, queue: _Queue, error: StreamliteError) -> None:
        while queue:
            self._settled.append((queue[0][0], -1, error))
            queue.popleft()

    def _expire(self, queue: _Queue) -> None:
        """The partition's lock is taken: batches that waited for it too long fail."""
        partition = queue[0][0].part.partition
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
        told = False
        on_delivery = self._options.on_delivery
        while self._settled:
            try:
                batch, base, error = self._settled[0]
            except IndexError:  # another thread tells
                return True
            told = True
            with self._mutex:
                if self.unsettled.pop(batch, self) is None:  # once, whoever tells
                    self.buffered -= batch.bytes
                    if error is not None and len(self._failed) < _FAILED_MAX:
                        self._failed.append(batch)
                    if batch.kept and on_delivery is not None:
                        batch.seen = True
                        for item in batch.kept:
                            batch.add_callback(item, on_delivery)
                    self.room.notify_all()
            batch.settle(base, error)
            with self._mutex, suppress(ValueError):  # another thread may have been quicker
                self._settled.remove((batch, base, error))
        return told

    def raise_unseen(self) -> None:
        """Raise the first failure since the last call that nobody was told of."""
        with self._mutex:
            failed, self._failed = self._failed, []
        for outcome in failed:
            if not outcome.seen:
                error = outcome.failure()
                assert error is not None
                raise error
