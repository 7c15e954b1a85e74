"""What became of sends: one `Outcome` for every batch that a producer staged, one light `Delivery` for every send.

A send must not pay for a result that nobody looks at. So a `Delivery` is two words, its batch's outcome and its place in
it, and the outcome knows per partition where the batch begins, or why it failed. Which offset a single message got is
worked out when somebody asks.

An outcome is settled part by part (a batch goes to several partitions), under its own mutex; callbacks run afterwards,
in the thread that settled the last part, with no lock held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from streamlite.errors import StreamliteError, TimeoutError
from streamlite.message import RecordMetadata

if TYPE_CHECKING:
    from streamlite.producer import Producer

__all__ = ["Delivery", "Outcome"]

logger = logging.getLogger("streamlite")


class Outcome:
    """What became of one staged batch. `partitions` has the partition of each message, or is the one of all."""

    __slots__ = (
        "_callbacks", "_mutex", "_offsets", "_waiting", "bases", "bulk", "bytes", "count", "done", "errors", "open_parts",
        "partitions", "producer", "seen", "timestamps", "topic",
    )  # fmt: skip

    def __init__(self, producer: Producer, topic: str) -> None:
        self.producer = producer
        self.topic = topic
        self.done = False
        self.bulk = False
        self.count = 0
        self.bytes = 0
        self.timestamps: Sequence[int] = ()
        self.partitions: Sequence[int] | int = 0
        self.bases: dict[int, list[tuple[int, int]]] = {}
        """Partition to its (count, base offset) stretches, in order."""
        self.errors: dict[int, StreamliteError] = {}
        self.seen = False
        self.open_parts = 0
        self._offsets: list[int] | None = None
        self._callbacks: list[tuple[int, Callable[[Delivery], Any]]] = []
        self._waiting: threading.Event | None = None
        self._mutex = threading.Lock()  # guards everything above once the batch is on its way

    # -- settling -----------------------------------------------------------------------------------------------------

    def settle(self, partition: int, count: int, base: int, error: StreamliteError | None) -> bool:
        """One part is written at `base`, or failed; whether that was the last one."""
        with self._mutex:
            if error is not None:
                self.errors[partition] = error
            else:
                self.bases.setdefault(partition, []).append((count, base))
            self.open_parts -= 1
            return self.open_parts <= 0

    def finish(self) -> None:
        """All parts are settled: wake who waits, run the callbacks."""
        with self._mutex:
            self.done = True
            waiting, callbacks, self._callbacks = self._waiting, self._callbacks, []
        if waiting is not None:
            waiting.set()
        for index, callback in callbacks:
            self._call(callback, index)

    def _call(self, callback: Callable[[Delivery], Any], index: int) -> None:
        try:
            callback(Delivery(self, index))
        except Exception:
            logger.exception("a delivery callback failed: %r", callback)

    def add_callback(self, index: int, callback: Callable[[Delivery], Any]) -> None:
        """Call it when done; at once if it is."""
        with self._mutex:
            if not self.done:
                self._callbacks.append((index, callback))
                return
        self._call(callback, index)

    def wait(self, timeout: float | None) -> bool:
        """Wait until done; whether it is."""
        with self._mutex:
            if self.done:
                return True
            if self._waiting is None:
                self._waiting = threading.Event()
            waiting = self._waiting
        return waiting.wait(timeout)

    # -- asking -------------------------------------------------------------------------------------------------------

    def error(self, index: int) -> StreamliteError | None:
        """Why message `index` failed, or `None`."""
        if not self.errors:
            return None
        self.seen = True
        if index < 0:
            return next(iter(self.errors.values()))
        return self.errors.get(self.partition(index))

    def partition(self, index: int) -> int:
        """The partition of message `index`."""
        return self.partitions if isinstance(self.partitions, int) else self.partitions[index]

    def metadata(self, index: int) -> RecordMetadata:
        """Where message `index` stands."""
        partition = self.partition(index)
        return RecordMetadata(self.topic, partition, self._offset(index, partition), self.timestamps[index])

    def _offset(self, index: int, partition: int) -> int:
        stretches = self.bases[partition]
        if isinstance(self.partitions, int):
            return _place(stretches, index)
        if self._offsets is None:
            self._offsets = _offsets(self.partitions, self.bases)
        return self._offsets[index]


def _place(stretches: Sequence[tuple[int, int]], rank: int) -> int:
    for count, base in stretches:
        if rank < count:
            return base + rank
        rank -= count
    raise IndexError(rank)


def _offsets(partitions: Sequence[int], bases: dict[int, list[tuple[int, int]]]) -> list[int]:
    """The offset of every message: the n-th of a partition is the n-th of its stretches."""
    next_rank = dict.fromkeys(bases, 0)
    found = []
    for partition in partitions:
        if partition not in bases:
            found.append(-1)
            continue
        rank = next_rank[partition]
        next_rank[partition] = rank + 1
        found.append(_place(bases[partition], rank))
    return found


class Results(Sequence[RecordMetadata]):
    """Where each message of a `send_many` stands; worked out one by one, when asked."""

    __slots__ = ("_outcomes", "_total")

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = outcomes
        self._total = sum(outcome.count for outcome in outcomes)

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self._total))]
        at = index + self._total if index < 0 else index
        if not 0 <= at < self._total:
            raise IndexError(f"message {index} of {self._total}")
        for outcome in self._outcomes:
            if at < outcome.count:
                return outcome.metadata(at)
            at -= outcome.count
        raise IndexError(index)

    def __repr__(self) -> str:
        return f"<{self._total} messages delivered>"


class Delivery(msgspec.Struct, gc=False, eq=False):
    """What becomes of one send, or of one `send_many`.

    `result()` is a `RecordMetadata`, of a `send_many` a sequence of them. It can be waited for, be told to call back,
    and be awaited inside asyncio.
    """

    _outcome: Outcome
    _index: int

    def done(self) -> bool:
        """Whether it is known what became of it."""
        return self._outcome.done

    def result(self, timeout: float | None = None) -> Any:
        """Where the message stands. Waits `timeout` seconds (`TimeoutError`), raises what made the send fail."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._outcome.metadata(self._index)

    def exception(self, timeout: float | None = None) -> StreamliteError | None:
        """Why the send failed; `None` when it did not. Waits as `result` does."""
        outcome = self._outcome
        if not outcome.done and not outcome.producer.hurry(outcome, timeout):
            raise TimeoutError(f"no result from the disk within {timeout} s; the message is not lost, ask again")
        return outcome.error(self._index)

    def add_done_callback(self, fn: Callable[[Delivery], Any]) -> None:
        """Have `fn(delivery)` called once it is done, with no lock held, in whichever thread finds out; at once if it is."""
        self._outcome.add_callback(self._index, fn)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done():
            import asyncio

            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()

            def tell(_: Delivery) -> None:
                loop.call_soon_threadsafe(lambda: future.done() or future.set_result(None))

            self.add_done_callback(tell)
            self._outcome.producer.nudge()
            yield from future
        return self.result()

    def __repr__(self) -> str:
        outcome = self._outcome
        if not outcome.done:
            return f"<Delivery to {outcome.topic!r}: on its way>"
        error = outcome.errors.get(outcome.partition(self._index)) if outcome.errors else None
        return f"<Delivery to {outcome.topic!r}: {error if error else outcome.metadata(self._index)}>"


class BulkDelivery(Delivery, gc=False, eq=False):
    """Of a `send_many`: done when all its pieces are."""

    _pieces: list[Outcome] = []

    def done(self) -> bool:
        return all(piece.done for piece in self._pieces)

    def result(self, timeout: float | None = None) -> Any:
        error = self.exception(timeout)
        if error is not None:
            raise error
        return Results(self._pieces)

    def exception(self, timeout: float | None = None) -> StreamliteError | None:
        for piece in self._pieces:
            if not piece.done and not piece.producer.hurry(piece, timeout):
                raise TimeoutError(f"no result from the disk within {timeout} s; the messages are not lost, ask again")
            error = piece.error(-1)
            if error is not None:
                return error
        return None

    def add_done_callback(self, fn: Callable[[Delivery], Any]) -> None:
        # Pieces settle in any order and thread; the last one calls.
        left = [len(self._pieces)]
        mutex = threading.Lock()

        def settled(_: Delivery) -> None:
            with mutex:
                left[0] -= 1
                last = left[0] == 0
            if last:
                fn(self)

        for piece in self._pieces:
            piece.add_callback(0, settled)

    def __repr__(self) -> str:
        done = sum(piece.count for piece in self._pieces if piece.done)
        return f"<Delivery of {sum(piece.count for piece in self._pieces)} messages: {done} done>"
