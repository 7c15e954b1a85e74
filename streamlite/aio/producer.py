"""Sending from an event loop: the sync producer, which says so where it would wait.

A `send` stages its message in memory, in the loop's thread, and writes nothing there: that is the producer's worker's,
since a write may wait for a disk that is behind. In memory it writes at once, as the sync one does. What else could
hold the loop is taken out: where the buffer is full, or where it is not known what a topic's name means, `_Sender`
raises `_MayWait`, with nothing taken; the task waits for room, or a step looks the topic up; then it is sent again.

A cancelled `send` has either been taken or not, never half; a cancelled `send_many` may have been taken in part, as the
sync one when its time for room is over.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streamlite import errors
from streamlite.aio.loop import Aside, Pool, Turn, busy, clocked, outcome, tell, until
from streamlite.bulk import BulkColumns, PassedColumns
from streamlite.clock import SystemClock
from streamlite.config import ProducerOptions
from streamlite.context import Context
from streamlite.delivery import BulkDelivery, Delivery, Outcome, Piece
from streamlite.engine import Engine
from streamlite.errors import StreamliteError
from streamlite.message import Columns
from streamlite.outbox import Outbox
from streamlite.partition import Outgoing
from streamlite.producer import Producer
from streamlite.staging import Batch, Lane

if TYPE_CHECKING:
    from streamlite.aio.transaction import AsyncTransaction

__all__ = ["AsyncProducer"]

logger = logging.getLogger("streamlite")

_SLICE: Final = 2_000
"""Messages of a `send_many` that are checked, or staged, in one go: 0.3 ms."""


class _MayWait(Exception):
    """What was asked for could take a while: nothing of it was done."""


class _NotKnown(_MayWait):
    """It is not known what the topic means now."""


class _NoRoom(_MayWait):
    """The buffer is full."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


class _Room(threading.Condition):
    """Tells tasks too when room was given back."""

    def __init__(self, mutex: Any) -> None:
        super().__init__(mutex)
        self.tasks: list[Callable[[], None]] = []
        """Under the mutex."""

    def notify_all(self) -> None:
        super().notify_all()
        tasks, self.tasks = self.tasks, []
        for wake in tasks:
            wake()


class _Outbox(Outbox):
    """An outbox whose drain, which may have a hundred batches to encode, stands aside now and then."""

    def __init__(self, ctx: Context, options: ProducerOptions, mutex: Any, lanes: Mapping[int, Lane]) -> None:
        super().__init__(ctx, options, mutex, lanes)
        self.aside: Aside | None = None

    def _drain_once(self) -> None:
        if self.aside is not None:
            self.aside.begin()
        super()._drain_once()

    def _weigh(self, batch: Batch, outgoing: Outgoing) -> None:
        super()._weigh(batch, outgoing)
        if self.aside is not None:
            self.aside.stand()


class _Sender(Producer):
    """The sync producer; `send` and `take` raise `_MayWait` where they would wait."""

    def __init__(self, engine: Engine, options: ProducerOptions) -> None:
        self._naming = threading.Lock()  # one step takes the name
        super().__init__(engine, options)
        self._on_disk = engine.syncer is not None
        self._goes_directly = self._goes_directly and not self._on_disk
        self.room = _Room(self.mutex)
        outbox = self._outbox = _Outbox(self._ctx, options, self.mutex, self._lanes)
        outbox.room = self.room
        outbox.aside = Aside() if self._on_disk else None  # in memory the drain is in the loop's own thread

    @property
    def shut(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closed

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do for `close`."""
        return self._finished or self._ctx.forked

    def look_up(self, topic: Any) -> None:
        """Find out what the topic means, and what the producer's name; this may take the disk."""
        with self._naming:
            if self._options.name is not None and self._numbers is None:
                super()._take_name()
        super()._route(topic)

    def _take_name(self) -> None:
        """Not here, in the loop's thread: it waits for the disk, and comes with the first message."""

    def _route(self, topic: Any) -> Any:
        self._check_open()
        route = self._routes.fresh(topic)
        if route is None or (self._options.name is not None and self._numbers is None):
            raise _NotKnown
        return route

    def last_sequence(self, topic: Any, partition: int) -> int | None:
        self.look_up(topic)
        return super().last_sequence(topic, partition)

    def _here(self) -> object:
        """A task, where one is running."""
        try:
            return asyncio.current_task() or super()._here()
        except RuntimeError:
            return super()._here()

    def _wait_for_room(self, size: int) -> None:
        if self._outbox.has_room(size):
            return
        self._seal_all()
        self._worker.wake()
        raise _NoRoom(size)

    def _drain_if_free(self) -> None:
        if self._on_disk:
            self._worker.wake()
        else:
            super()._drain_if_free()

    def slice(
        self, topic: Any, values: Any, keys: Any, timestamps: Any, headers: Any, *, partition: Any
    ) -> BulkColumns | PassedColumns:
        """Columns as bytes, checked."""
        return self._columns(topic, values, keys, partition, timestamps, headers)[1]

    def take(self, topic: Any, columns: BulkColumns | PassedColumns, start: int, stop: int, size: int) -> Piece:
        """Stage a stretch of columns."""
        lane = self._route(topic).lane
        with self.mutex:
            self._check_open()
            self._seal(lane)
            self._wait_for_room(size)
            now_ms = int(self._now() * 1000)
            piece, batches = columns.piece(self, lane, start, stop, now_ms, told=self._options.on_delivery is not None)
            batches[0].bytes = size
            self._outbox.put(batches)
        self._drain_if_free()
        return piece

    def none(self, topic: Any) -> BulkDelivery:
        """Of sending nothing."""
        return self._nothing(self._route(topic).lane)

    def unsettled(self) -> list[Outcome]:
        """Everything that was sent and has no result, on its way now."""
        self._ctx.check_fork()
        with self.mutex:
            self._seal_all()
            return self._outbox.waiting

    def raise_unseen(self) -> None:
        """Raise the first failure nobody was told of."""
        self._outbox.raise_unseen()

    def shut_out(self) -> None:
        """Take nothing more; who waits for room gets a `ClosedError`."""
        with self.mutex:
            self._closed = True
            self._routes.clear()
            self.room.notify_all()

    async def wait_for_room(self, size: int, deadline: float) -> None:
        """Wait in the loop, until there may be room or `deadline` has passed; `BufferFullError`, `ClosedError`."""
        left = deadline - self._clock.monotonic()
        if left <= 0:
            raise self._outbox.full()
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        wake = partial(tell, loop, waiting)
        with self.mutex:
            self._check_open()
            if self._outbox.has_room(size):
                return
            if isinstance(self._clock, SystemClock):
                self.room.tasks.append(wake)
        self._worker.wake()
        if not isinstance(self._clock, SystemClock):
            await clocked(self._clock, partial(self._wait_by_clock, size, left), self._wake_room)
            return
        try:
            await until(waiting, left)
        finally:
            with self.mutex:
                if wake in self.room.tasks:
                    self.room.tasks.remove(wake)

    def _wait_by_clock(self, size: int, timeout: float) -> None:
        with self.mutex:
            if not self._closed and not self._outbox.has_room(size):
                self._clock.wait(self.room, timeout)

    def _wake_room(self) -> None:
        with self.mutex:
            self.room.notify_all()


class AsyncProducer:
    """`Producer` for asyncio; any number of tasks may use it. Made by `Bus.async_producer`.

    `delivery = await producer.send(...)` waits for room in the buffer only; `await delivery` for the result.
    """

    def __init__(self, engine: Engine, options: ProducerOptions) -> None:
        self._ctx = engine.ctx
        self._clock = engine.ctx.clock
        self._pool = Pool.of(engine)
        self._max_block = options.max_block
        self._on_delivery = options.on_delivery
        if self._on_delivery is not None:
            options = msgspec.structs.replace(options, on_delivery=self._delivered)
        self._sender = _Sender(engine, options)
        self._turn = Turn()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        engine.adopt(self._sender)

    def __repr__(self) -> str:
        return repr(self._sender).replace("<Producer", "<AsyncProducer", 1)

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- send ---------------------------------------------------------------------------------------------------------

    async def send(
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
        """Send one message, as `Producer.send`. Awaits room in the buffer, up to `max_block` seconds, and no result."""
        if self._turn.until <= monotonic():
            await self._give()
        if sequence is not None:
            self._sender._check_outside()  # whose block it is shows here only
            sent: Delivery = await self._again(
                partial(
                    self._sender.send, topic, value, key=key, partition=partition, timestamp=timestamp,
                    headers=headers if headers is None or isinstance(headers, Mapping) else list(headers),
                    sequence=sequence,
                ),
                topic, aside=True,
            )  # fmt: skip
            return sent
        try:
            return self._sender.send(
                topic, value, key=key, partition=partition, timestamp=timestamp, headers=headers, sequence=sequence
            )
        except _MayWait as reason:
            why = reason
        if headers is not None and not isinstance(headers, Mapping):
            headers = list(headers)  # it may have been an iterator
        send = partial(
            self._sender.send, topic, value, key=key, partition=partition, timestamp=timestamp, headers=headers
        )
        found: Delivery = await self._again(send, topic, why)
        return found

    async def send_many(
        self,
        topic: Any,
        values: Sequence[Any] | Columns,
        *,
        keys: Sequence[Any] | None = None,
        partition: int | None = None,
        timestamps: Sequence[int | datetime] | None = None,
        headers: Sequence[Any] | None = None,
    ) -> Delivery:
        """Send a column of messages, as `Producer.send_many`: one `Delivery` for all; all are checked before."""
        sender = self._sender
        slices: list[BulkColumns | PassedColumns] = []
        cuts = _slices((values, keys, timestamps, headers))
        for cut in cuts:
            if self._turn.until <= monotonic():
                await self._give()
            try:
                slices.append(await self._again(partial(sender.slice, topic, *cut, partition=partition), topic))
            except StreamliteError:
                if len(cuts) > 1:  # it counts from the beginning of its slice
                    sender.slice(topic, values, keys, timestamps, headers, partition=partition)
                raise
        pieces: list[Piece] = []
        for columns in slices:
            for start, stop, size in columns.cuts(sender._batch_bytes):
                if self._turn.until <= monotonic():
                    await self._give()
                pieces.append(await self._again(partial(sender.take, topic, columns, start, stop, size), topic))
        if not pieces:
            return sender.none(topic)
        delivery = BulkDelivery(next(iter(pieces[0].outcomes.values())), 0, pieces)
        if self._on_delivery is not None:
            delivery.add_done_callback(self._delivered)
        return delivery

    async def _give(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._turn.give()

    async def _again(
        self, call: Callable[[], Any], topic: Any, why: _MayWait | None = None, *, aside: bool = False
    ) -> Any:
        """Make a call until it need not wait; `why`: what it said already. `aside`: not in the loop's thread."""
        deadline: float | None = None
        while True:
            if why is None:
                try:
                    return await outcome(self._pool.submit(call)) if aside else call()
                except _MayWait as reason:
                    why = reason
            if isinstance(why, _NoRoom):
                if deadline is None:
                    deadline = self._clock.monotonic() + self._max_block
                await self._sender.wait_for_room(why.size, deadline)
            else:
                with busy(self._clock):
                    await outcome(self._pool.submit(partial(self._sender.look_up, topic)))
            why = None

    # -- results ------------------------------------------------------------------------------------------------------

    def _delivered(self, delivery: Delivery) -> None:
        """In whichever thread found out: have `on_delivery` called in the loop."""
        loop = self._loop
        try:
            if loop is None:
                self._tell(delivery)
            else:
                loop.call_soon_threadsafe(self._tell, delivery)
        except RuntimeError:  # the loop is closed
            self._tell(delivery)

    def _tell(self, delivery: Delivery) -> None:
        assert self._on_delivery is not None
        try:
            result = self._on_delivery(delivery)
            if inspect.isawaitable(result):
                task = asyncio.ensure_future(result)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except Exception:
            logger.exception("a delivery callback failed: %r", self._on_delivery)

    async def flush(self, timeout: float | None = None) -> None:
        """Return when every earlier send has a result; raises the first failure nobody looked at, or `TimeoutError`."""
        await self._flush(timeout)
        self._sender.raise_unseen()

    async def _flush(self, timeout: float | None) -> None:
        waiting = self._sender.unsettled()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        left, mutex = [len(waiting)], threading.Lock()

        def settled(_: object) -> None:
            with mutex:
                left[0] -= 1
                last = not left[0]
            if last:
                tell(loop, done)

        for one in waiting:
            one.add_callback(0, settled)
        if waiting:
            self._sender.nudge()
            await until(done, timeout)
        unsettled = sum(one.count for one in waiting if not one.done)
        if unsettled:
            raise errors.TimeoutError(
                f"{unsettled:,} messages have no result after {timeout} s; they are not lost, flush again"
            )

    async def close(self, timeout: float | None = None) -> None:
        """Flush and close; raises a failed delivery that nobody has looked at. Idempotent.

        After a `TimeoutError`, or cancelled, what is left goes on being written; close again to wait for it again.
        """
        if self._sender.finished:
            return
        self._sender.shut_out()
        await self._flush(timeout)
        with busy(self._clock):
            await outcome(self._pool.submit(partial(self._sender.close, timeout)))

    # -- transactions and a name --------------------------------------------------------------------------------------

    def transaction(self, consumer: Any = None) -> AsyncTransaction:
        """`async with producer.transaction(consumer) as tx:`, as `Producer.transaction`; it belongs to its task."""
        from streamlite.aio.transaction import AsyncTransaction  # loaded by who uses it

        self._sender._check_open()
        return AsyncTransaction(self, self._sender, consumer)

    async def last_sequence(self, topic: Any, partition: int) -> int | None:
        """Of a named producer: the last sequence it sent to a partition."""
        return await outcome(self._pool.submit(partial(self._sender.last_sequence, topic, partition)))


def _slices(columns: tuple[Any, Any, Any, Any]) -> list[tuple[Any, ...]]:
    """Columns cut into short ones. Those that do not fit together stay whole: whoever looks at them says why."""
    kept = (list, tuple, str, bytes, bytearray, Columns)
    lists: list[Any] = [one if one is None or isinstance(one, kept) else list(one) for one in columns]
    count = len(lists[0].offsets if isinstance(lists[0], Columns) else lists[0])
    if count <= _SLICE or isinstance(lists[0], (str, bytes, bytearray)):
        return [tuple(lists)]
    if any(one is not None and len(one) != count for one in lists[1:]):
        return [tuple(lists)]
    starts = range(0, count, _SLICE)
    return [tuple(None if one is None else _stretch(one, start) for one in lists) for start in starts]


def _stretch(column: Any, start: int) -> Any:
    stop = start + _SLICE
    return column.cut(start, stop) if isinstance(column, Columns) else column[start:stop]
