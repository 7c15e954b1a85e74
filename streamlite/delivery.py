"""What became of sends: an `Outcome` for every batch, a light `Delivery` for every send.

A send must not pay for a result that nobody looks at. So a `Delivery` is two words, its batch's outcome and its place
in it; the outcome knows where the batch begins in its partition, or why it failed, and the rest is worked out when
somebody asks.

An outcome is settled once, by whoever drains; callbacks run afterwards in that thread, with no lock held. Registering
and settling are guarded by the producer's mutex.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from streamlite.errors import StreamliteError, TimeoutError
from streamlite.message import RecordMetadata

__all__ = ["BulkDelivery", "Delivery", "Outcome", "Piece"]

logger = logging.getLogger("streamlite")


class Sender(Protocol):
    """What an outcome needs of its producer."""

    mutex: Any

    def hurry(self, outcome: Outcome, timeout: float | None) -> bool:
        """Cut the linger short and wait for one outcome; whether it is done."""

    def nudge(self) -> None:
        """Cut the linger short, without waiting."""


class Outcome:
    """What became of one batch for one partition."""

    __slots__ = (
        "_callbacks", "_waiting", "base", "bytes", "count", "done", "error", "ids", "partition", "seen", "sender",
        "stamps", "steps", "topic",
    )  # fmt: skip

    def __init__(self, sender: Sender, topic: str, partition: int) -> None:
        self.sender = sender
        self.topic = topic
        self.partition = partition
        self.done = False
        self.base = -1
        self.error: StreamliteError | None = None
        self.seen = False
        """Whether anybody was told of the error."""
        self.count = 0
        self.bytes = 0
        self.steps: dict[int, int] = {}
        """Timestamps in ms: from a place in the batch on."""
        self.stamps: Sequence[int] | None = None
        """Timestamps one by one, where they were given."""
        self.ids: Sequence[int] | None = None
        """Which object stands at which place, for those that a `Delivery` keeps alive."""
        self._callbacks: deque[tuple[Callable[[Delivery], Any], Delivery]] | None = None
        self._waiting: list[threading.Lock] = []  # one for each who waits, released when it is done

    def settle(self, base: int, error: StreamliteError | None) -> None:
        """The batch stands at `base`, or failed. Wakes who waits, runs the callbacks; goes on where it was cut off."""
        with self.sender.mutex:
            if not self.done:
                self.base = base
                self.error = error
                self.done = True
            waiting, self._waiting = self._waiting, []
        for lock in waiting:
            lock.release()
        if self._callbacks:
            _run(self._callbacks)

    def add_callback(self, item: Any, callback: Callable[[Delivery], Any]) -> None:
        """Call it when done; at once if it is."""
        with self.sender.mutex:
            if not self.done:
                if self._callbacks is None:
                    self._callbacks = deque()
                self._callbacks.append((callback, Delivery(self, item)))
                return
        _run(deque([(callback, Delivery(self, item))]))

    def expect(self, callbacks: Sequence[tuple[Callable[[Delivery], Any], Delivery]]) -> None:
        """Under the producer's mutex, before it is done: call these as well. Calls nothing itself."""
        if self._callbacks is None:
            self._callbacks = deque()
        self._callbacks += callbacks

    def wait(self, timeout: float | None) -> bool:
        """Wait until done; whether it is."""
        lock = threading.Lock()
        lock.acquire()
        with self.sender.mutex:
            if self.done:
                return True
            self._waiting.append(lock)
        return lock.acquire(timeout=-1 if timeout is None else timeout)

    def failure(self) -> StreamliteError | None:
        """Why it failed, or `None`; whoever asks has been told."""
        self.seen = True
        return self.error

    def metadata(self, item: Any) -> RecordMetadata:
        """Where the message stands: number `item` of the batch, or the staged object `item`."""
        if isinstance(item, int):
            index = item
        else:
            assert self.ids is not None  # taken down when the batch was encoded, and it is done
            index = self.ids.index(id(item))
        return RecordMetadata(self.topic, self.partition, self.base + index, self._timestamp(index))

    def _timestamp(self, index: int) -> int:
        if self.stamps is not None:
            return self.stamps[index]
        places = sorted(self.steps)
        return self.steps[places[max(bisect_right(places, index) - 1, 0)]]


def _run(callbacks: deque[tuple[Callable[[Delivery], Any], Delivery]]) -> None:
    """Call all of them, each once, whoever else runs the same.

    A `for` statement takes the next one and calls it with nothing in between: a signal handler that raises does so in
    the application's callback, or while the callback is still to be found here.
    """
    with suppress(IndexError):  # none left
        for callback, delivery in iter(callbacks.popleft, None):
            try:
                callback(delivery)
            except Exception:
                logger.exception("a delivery callback failed: %r", callback)


class Delivery(msgspec.Struct, gc=False, eq=False):
    """What becomes of one send, or of one `send_many`.

    `result()` is a `RecordMetadata`, of a `send_many` a sequence of them. It can be waited for, be told to call back,
    and be awaited inside asyncio.
    """

    _outcome: Outcome
    _item: Any
    """The staged tuple, known to the outcome by its identity, or the message's number in its batch."""

    def __eq__(self, other: object) -> bool:
        # A callback gets a new one for the same send.
        return isinstance(other, Delivery) and self._outcome is other._outcome and self._item is other._item

    def __hash__(self) -> int:
        return hash((id(self._outcome), id(self._item)))

    def done(self) -> bool:
        """Whether it is known what became of it."""
        return self._outcome.done

    def result(self, timeout: float | None = None) -> Any:
        """Where the message stands. Waits `timeout` seconds (`TimeoutError`), raises what made the send fail."""
        outcome = self._outcome
        if not outcome.done:
            _wait(outcome, timeout)
        outcome.seen = True
        if outcome.error is not None:
            raise outcome.error
        return outcome.metadata(self._item)

    def exception(self, timeout: float | None = None) -> StreamliteError | None:
        """Why the send failed; `None` when it did not. Waits as `result` does."""
        outcome = self._outcome
        if not outcome.done:
            _wait(outcome, timeout)
        return outcome.failure()

    def add_done_callback(self, fn: Callable[[Delivery], Any]) -> None:
        """Have `fn(delivery)` called once it is done (at once if it is), with no lock held, in any thread."""
        self._outcome.add_callback(self._item, fn)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done():
            import asyncio

            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()

            def resolve() -> None:
                if not future.done():
                    future.set_result(None)

            self.add_done_callback(lambda _: loop.call_soon_threadsafe(resolve))
            self._outcome.sender.nudge()
            yield from future
        return self.result()

    def __repr__(self) -> str:
        outcome = self._outcome
        if not outcome.done:
            return f"<Delivery to {outcome.topic!r}: on its way>"
        return f"<Delivery to {outcome.topic!r}: {outcome.error or outcome.metadata(self._item)}>"


def _wait(outcome: Outcome, timeout: float | None) -> None:
    if not outcome.sender.hurry(outcome, timeout):
        raise TimeoutError(f"no result from the disk within {timeout} s; nothing is lost, ask again")


class Piece:
    """A stretch of a `send_many`: its outcomes by partition, and the partition of each message (or of all)."""

    __slots__ = ("_ranks", "count", "outcomes", "placed")

    def __init__(self, outcomes: dict[int, Outcome], placed: Sequence[int] | int, count: int) -> None:
        self.outcomes = outcomes
        self.placed = placed
        self.count = count
        self._ranks: list[int] | None = None

    def metadata(self, index: int) -> RecordMetadata:
        """Where message `index` of the stretch stands."""
        if isinstance(self.placed, int):
            return self.outcomes[self.placed].metadata(index)
        if self._ranks is None:
            following = dict.fromkeys(self.outcomes, 0)
            ranks = []
            for partition in self.placed:
                ranks.append(following[partition])
                following[partition] += 1
            self._ranks = ranks
        return self.outcomes[self.placed[index]].metadata(self._ranks[index])


class Results(Sequence[RecordMetadata]):
    """Where each message of a `send_many` stands; worked out one by one, when asked."""

    __slots__ = ("_pieces", "_total")

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._total = sum(piece.count for piece in pieces)

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self._total))]
        at = index + self._total if index < 0 else index
        if not 0 <= at < self._total:
            raise IndexError(f"message {index} of {self._total}")
        for piece in self._pieces:
            if at < piece.count:
                break
            at -= piece.count
        return piece.metadata(at)

    def __repr__(self) -> str:
        return f"<{self._total} messages delivered>"


class BulkDelivery(Delivery, gc=False, eq=False):
    """Of a `send_many`: done when all its pieces are."""

    _pieces: list[Piece] = []

    def _outcomes(self) -> list[Outcome]:
        return [outcome for piece in self._pieces for outcome in piece.outcomes.values()]

    def done(self) -> bool:
        return all(outcome.done for outcome in self._outcomes())

    def result(self, timeout: float | None = None) -> Any:
        error = self.exception(timeout)
        if error is not None:
            raise error
        return Results(self._pieces)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def exception(self, timeout: float | None = None) -> StreamliteError | None:
        first: StreamliteError | None = None
        for outcome in self._outcomes():
            if not outcome.done:
                _wait(outcome, timeout)
            error = outcome.failure()
            first = first or error
        return first

    def add_done_callback(self, fn: Callable[[Delivery], Any]) -> None:
        outcomes = self._outcomes()
        once: deque[tuple[Callable[[Delivery], Any], Delivery]] = deque([(fn, self)])

        # Outcomes are settled in any order and thread; the last one calls.
        def settled(_: Delivery) -> None:
            if self.done():
                _run(once)

        if not outcomes:
            self._outcome.add_callback(0, lambda _: fn(self))
        for outcome in outcomes:
            outcome.add_callback(0, settled)

    def __repr__(self) -> str:
        count = sum(piece.count for piece in self._pieces)
        return f"<Delivery of {count} messages: {'done' if self.done() else 'on their way'}>"
