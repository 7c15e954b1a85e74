"""Sending: stage in the caller's thread, a batch at a time to the disk.

The way of a message: `send` checks it, puts a tuple into the open batch of its partition (`staging`) and hands out a
`Delivery`. When the topic's lane is full, older than `linger_ms`, or this is the first message after a quiet moment,
the lane is sealed, and a drain takes its batches on (`outbox`): each is encoded, `Partition.append` writes it, its
outcome is settled.

Who drains: the sending thread, wherever that costs it no wait (the drain is nobody else's just now, each partition's
lock is free at once, no sync is part of the append); whoever waits for a result; else the producer's worker thread,
which also takes the tail of every burst when its linger is over.

The buffer counts each message's payload plus `MESSAGE_OVERHEAD`. A lane reserves room when it begins a batch; where
there is none, `send` waits up to `max_block` seconds, and then the message was not taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from streamlite.clock import SystemClock, wait_held
from streamlite.config import ProducerOptions
from streamlite.delivery import BulkDelivery, Delivery, Outcome, Piece
from streamlite.direct import Direct
from streamlite.engine import Engine
from streamlite.errors import (
    ClosedError,
    ConfigError,
    TimeoutError,
    TransactionError,
    not_picklable,
)
from streamlite.outbox import Outbox
from streamlite.outgoing import check_message, check_partition
from streamlite.routes import Route, Routes
from streamlite.staging import MESSAGE_OVERHEAD, NO_PART, NOTHING, STAGED_MAX, Batch, Lane, Part, anew
from streamlite.wakeup import LOOK_AGAIN_S
from streamlite.worker import Worker

if TYPE_CHECKING:
    from streamlite.bulk import BulkColumns, PassedColumns
    from streamlite.message import Columns
    from streamlite.named import Numbers
    from streamlite.transaction import Transaction

__all__ = ["Producer"]

_RETRY_S: Final = 0.0005
"""How soon a partition whose lock was taken is tried again; a lock is held for tens of microseconds."""
_ALERT_S: Final = 0.02
"""How long the worker keeps looking after the last batch began: waking it for each of a run of sends costs more."""
_GRACE_S: Final = 0.0005
"""By so much the worker is later than a sender: while messages come, the sending thread takes a due batch itself."""
_QUIET_S: Final = 0.0002
"""After so long without a batch, the next message goes at once: writing it takes a tenth of that."""
_HURRIED: Final = 16
"""After somebody waited for a result, so many batches of one message go at once: he will wait for the next as well."""


class Producer:
    """Sends messages; thread-safe. Made by `Bus.producer`."""

    def __init__(self, engine: Engine, options: ProducerOptions) -> None:
        self._engine = engine
        self._ctx = engine.ctx
        self._options = options
        self._on_delivery: Callable[[Delivery], Any] | None = options.on_delivery
        self._clock = clock = self._ctx.clock
        # Seconds since the epoch: the machine's clock is one call in C, and a send makes one.
        self._now = time.time if isinstance(clock, SystemClock) else lambda: clock.time_ms() / 1000
        self._linger_ms = options.linger_ms
        self._batch_bytes = max(1, min(options.batch_bytes, options.buffer_bytes))
        self._transactions: dict[object, Transaction] = {}  # by who is in their block
        self.mutex = threading.RLock()
        self._numbers: Numbers | None = None
        named = options.name is not None
        self._routes = Routes(engine, self._seal, ticks=isinstance(clock, SystemClock), shut=named)
        self._raw = self._routes.raw  # the fast way
        self._lanes = self._routes.lanes
        self._outbox = Outbox(self._ctx, options, self.mutex, self._lanes)
        if named:
            self._take_name()
        self._begun = 0.0  # when the last batch of any lane began
        self._direct = Direct(self, engine.registry, self._outbox, self._now, min(self._linger_ms / 1000, _QUIET_S))
        self._goes_directly = not (self._ctx.always or named or options.on_delivery is not None)
        self._closed = False
        self._finished = False
        self._worker = Worker("producer", self._step, clock)
        self._ctx.senders += (self,)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._outbox.buffered:,} bytes buffered"
        return f"<Producer on {self._ctx.files.root}: {state}>"

    # -- send ---------------------------------------------------------------------------------------------------------

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
        """Send one message to `topic` (a name or a `Topic`); what becomes of it arrives in the `Delivery`.

        `key`, `value`: bytes, text, `None`, or what the topic's type takes. `timestamp`: ms since the epoch or an aware
        datetime; now when `None`. Raises at once `SerdeError`, `MessageTooLargeError`, `InvalidNameError`,
        `UnknownTopicError`, `ConfigError`, `ClosedError`, and `BufferFullError` after `max_block` seconds without room.
        """
        try:
            part = self._raw[topic][key]
        except TypeError:  # unhashable, so neither a topic nor a key of bytes
            return self._send_any(NO_PART, topic, value, key, partition, timestamp, headers, sequence)
        batch = part.batch
        if (
            type(value) is not bytes
            or len(value) > batch.small
            or self._now() >= batch.tick
            or partition is not None
            or timestamp is not None
            or headers is not None
            or sequence is not None
        ):
            return self._send_any(part, topic, value, key, partition, timestamp, headers, sequence)
        item = (value, key)
        items = batch.items
        items.append(item)
        if part.batch is not batch:
            return self._late(part, batch, items, item)
        return Delivery(batch, item)

    def _send_any(
        self,
        part: Part,
        topic: Any,
        value: Any,
        key: Any,
        partition: int | None,
        timestamp: Any,
        headers: Any,
        sequence: int | None,
    ) -> Delivery:
        """`send` for what is not bytes to a known topic and nothing else, and for what needs new room."""
        if self._goes_directly and type(value) is bytes and partition is timestamp is headers is sequence is None:
            sent = self._direct.plain(part, value, key)
            if sent is not None:
                return sent
        self._check_outside()
        lane, partition, item, size = self._message(topic, value, key, partition, timestamp, headers, sequence)
        found = self._known(lane, partition, item[1], sequence)
        if found is not None:
            return found
        return self._stage(lane, partition, item, size + MESSAGE_OVERHEAD, sequence)

    def _message(
        self,
        topic: Any,
        value: Any,
        key: Any,
        partition: int | None,
        timestamp: Any,
        headers: Any,
        sequence: int | None,
    ) -> tuple[Lane, int | None, tuple[Any, ...], int]:
        """What `send` was given, checked: lane, partition where one is given, the item to stage, its bytes."""
        route = self._route(topic)
        if sequence is not None and self._numbers is None:
            raise ConfigError("sequence needs a named producer: open it with bus.producer(name=...)")
        state, limit = route.lane.state, route.lane.message_bytes_max
        return route.lane, *check_message(
            state, limit, (route.key, route.value), value, key, partition, timestamp, headers
        )

    def _stage(
        self, lane: Lane, partition: int | None, item: tuple[Any, ...], size: int, sequence: int | None = None
    ) -> Delivery:
        """Put an item in; `size` is what it takes of the buffer."""
        if self._goes_directly:
            sent = self._direct.send(lane, self._part(lane, partition, item[1]).partition, item)
            if sent is not None:
                return sent
        try:
            with self.mutex:
                self._check_open()
                delivery, due = self._put_in(lane, partition, item, size, sequence)
            if due:
                self._go(lane)
            elif self._outbox.pending:
                self._drain_if_free()
        except BaseException:
            self._worker.wake()  # a signal handler may have ended what others' messages wait for
            raise
        return delivery

    def _put_in(
        self, lane: Lane, partition: int | None, item: tuple[Any, ...], size: int, sequence: int | None
    ) -> tuple[Delivery, bool]:
        """Under the mutex: put an item in its batch; its delivery, and whether its lane is due."""
        now = self._now()
        part = self._part(lane, partition, item[1])
        if part.batch is not NOTHING:
            lane.charge(part.batch)
        if lane.left < size:
            self._seal(lane)
        if not lane.active:
            self._begin(lane, size, now)
            part = self._part(lane, partition, item[1])
        batch = self._open(part, now)
        if len(item) > 2:
            batch.mixed = True
        delivery = Delivery(batch, item)
        if sequence is not None:
            assert self._numbers is not None
            found = self._numbers.check(part.partition, sequence)
            if found is not None:
                return found, False  # another thread sent the same meanwhile
            self._numbers.staged(batch, sequence, delivery)
        batch.items.append(item)
        batch.charged += 1
        lane.left -= size
        return delivery, now >= lane.due_at

    def _part(self, lane: Lane, partition: int | None, key: bytes | None) -> Part:
        if partition is not None:
            return lane.parts[partition]
        return lane.by_key[None] if key is None else lane.by_key.part(key)

    def _open(self, part: Part, now: float) -> Batch:
        """Under the mutex: the part's batch, its time brought up to date."""
        batch = part.batch
        if batch is NOTHING:
            batch = Batch(self, part)
            batch.step(now)
            active = part.lane.active
            part.batch = batch
            active += (batch,)
        elif now >= batch.tick:
            batch.step(now)
        return batch

    def _late(self, part: Part, batch: Batch, items: list[tuple[Any, ...]], item: tuple[Any, ...]) -> Delivery:
        """The batch was sealed while the item was put in: if it came too late, it is staged anew."""
        with self.mutex:
            if batch.holds(items, item):
                return Delivery(batch, item)
        item, size = anew(item)
        return self._stage(part.lane, part.partition.number, item, size)

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
        """Send a column of messages; one `Delivery` for all, whose `result()` is a sequence.

        Columns are as long as `values`. All are checked before any is sent; more than the buffer holds goes in pieces.
        `values` may be the `Columns` of `poll_columns`, which bring keys, timestamps and headers where none are given.
        """
        self._check_outside()
        lane, columns = self._columns(topic, values, keys, partition, timestamps, headers)
        pieces: list[Piece] = []
        on_delivery = self._on_delivery
        for start, stop, size in columns.cuts(self._batch_bytes):
            with self.mutex:
                self._check_open()
                self._seal(lane)
                self._wait_for_room(size)
                now_ms = int(self._now() * 1000)
                piece, batches = columns.piece(self, lane, start, stop, now_ms, told=on_delivery is not None)
                batches[0].bytes = size
                self._outbox.put(batches)
            pieces.append(piece)
            self._drain_if_free()
        delivery = BulkDelivery(next(iter(pieces[0].outcomes.values())), 0, pieces) if pieces else self._nothing(lane)
        if on_delivery is not None:
            delivery.add_done_callback(on_delivery)
        return delivery

    def _columns(
        self, topic: Any, values: Any, keys: Any, partition: Any, timestamps: Any, headers: Any
    ) -> tuple[Lane, BulkColumns | PassedColumns]:
        """What `send_many` was given, checked."""
        from streamlite.bulk import bulk_columns  # the bulk path, loaded by who uses it

        route = self._route(topic)
        columns = bulk_columns(route, values, keys, partition, timestamps, headers, passes=self._numbers is None)
        if self._numbers is not None:
            with self.mutex:
                self._numbers.count_columns(route.lane, columns)
        return route.lane, columns

    def _nothing(self, lane: Lane) -> BulkDelivery:
        """Of a `send_many` without messages."""
        outcome = Outcome(self, lane.state.name, 0)
        outcome.settle(0, None)
        return BulkDelivery(outcome, 0, [])

    # -- topics -------------------------------------------------------------------------------------------------------

    def _route(self, topic: Any) -> Route:
        """What `topic` means, as the bus has it now."""
        self._check_open()
        route = self._routes.fresh(topic)
        if route is None:
            with self.mutex:
                route = self._routes.look_up(topic)
        return route

    def topics_changed(self) -> None:
        """Some topic came, went or changed: look at it before the next message."""
        self._routes.clear()

    # -- batches ------------------------------------------------------------------------------------------------------

    def _begin(self, lane: Lane, size: int, now: float) -> None:
        """Under the mutex: the lane, which is empty, gets room for `size` bytes at least."""
        registry = self._engine.registry
        if lane.state.seen != registry.changes:
            registry.current(lane.state)
        if lane.stale:
            self._routes.refresh(lane)
        self._wait_for_room(size)
        if lane.active:
            return  # another thread was quicker while this one waited
        free = self._options.buffer_bytes - self._outbox.buffered
        room = max(size, min(self._options.batch_bytes, free // 2, STAGED_MAX * MESSAGE_OVERHEAD))
        lane.left = lane.reserved = room
        self._begun = lane.opened = self._clock.monotonic()
        linger = self._linger_ms / 1000
        if now - lane.last_at >= min(linger, _QUIET_S) or lane.hurried:
            # The first after a quiet moment goes at once, and so does the next of who waits for each.
            lane.due_at = now
            lane.hurried = max(lane.hurried - 1, 0)
            return
        lane.due_at = now + linger
        if self._worker.idle:
            self._worker.wake()

    def _wait_for_room(self, size: int) -> None:
        """Under the mutex: wait until `size` bytes fit the buffer, or it is empty; `BufferFullError`."""
        outbox = self._outbox
        if outbox.has_room(size):
            return
        self._seal_all()
        deadline = self._clock.monotonic() + self._options.max_block
        while not outbox.has_room(size):
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise outbox.full()
            self._worker.wake()
            # Whoever gives room back may be interrupted before he tells.
            wait_held(self._clock, self.mutex, outbox.room, min(left, LOOK_AGAIN_S))
            self._check_open()

    def _seal(self, lane: Lane) -> None:
        """Under the mutex: put what is staged on its way."""
        if not lane.active:
            return
        lane.left = lane.reserved = 0
        lane.last_at = self._now()
        lane.seal(self._put)

    def _put(self, batch: Batch) -> None:
        self._outbox.put((batch,))

    def _seal_all(self) -> None:
        with self.mutex:
            for lane in self._lanes.values():
                self._seal(lane)

    # -- the drain ----------------------------------------------------------------------------------------------------

    def _go(self, lane: Lane) -> None:
        """A lane is due: write its batches here if that costs no wait, else leave them to the worker."""
        with self.mutex:
            if self._outbox.pending and lane.left > 0:
                # A drain is under way and what it takes must go first: meanwhile the batch grows.
                lane.due_at = self._now() + self._linger_ms / 1000
                self._worker.wake()
                return
            self._seal(lane)
        self._drain_if_free()
        lane.last_at = self._now()

    def _drain_if_free(self) -> None:
        begun = time.monotonic()
        if self._ctx.always or begun < self._direct.slow_until:
            self._worker.wake()  # the append includes a sync, or takes long, and a sender waits for neither
            return
        if not self._drain(0) or self._outbox.blocked:
            self._worker.wake()
        self._direct.note_time(begun)

    def _drain(self, timeout: float) -> bool:
        try:
            return self._outbox.drain(timeout)
        except BaseException:
            self._worker.wake()  # a signal handler ended it: what is left must not wait for the next call
            raise

    # -- the worker ---------------------------------------------------------------------------------------------------

    def _step(self) -> float | None:
        """What the worker does when it is due: lanes whose linger is over, and whatever senders left."""
        if self._ctx.forked:
            return None
        next_due, now = self._seal_due()
        if not self._outbox.drain(0) or self._outbox.blocked:
            return _RETRY_S
        if next_due is None and now - self._begun < _ALERT_S:
            return max(self._linger_ms / 1000, _RETRY_S)
        return next_due

    def _seal_due(self) -> tuple[float | None, float]:
        """Seal what lingered long enough: `(seconds until the next is due, now)`."""
        linger = self._linger_ms / 1000
        soonest: float | None = None
        with self.mutex:
            now = self._clock.monotonic()
            for lane in self._lanes.values():
                if lane.active:
                    left = lane.opened + linger + _GRACE_S - now
                    if left <= 0:
                        self._seal(lane)
                    else:
                        soonest = left if soonest is None else min(soonest, left)
        return soonest, now

    # -- waiting ------------------------------------------------------------------------------------------------------

    def hurry(self, outcome: Outcome, timeout: float | None) -> bool:
        """Cut the linger short and wait for one batch; whether it is done."""
        if isinstance(outcome, Batch):
            outcome.part.lane.hurried = _HURRIED
        return self._wait_until(lambda: outcome.done, outcome, timeout)

    def nudge(self) -> None:
        """Cut the linger short, without waiting."""
        self._seal_all()
        if self._outbox.pending:
            self._drain_if_free()

    def _wait_until(self, done: Any, outcome: Outcome | None, timeout: float | None) -> bool:
        self._ctx.check_fork()
        deadline = None if timeout is None else time.monotonic() + timeout
        self._seal_all()
        pause = 50e-6
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._drain(min(0.01, left) if left is not None else 0.01)
            if done():
                return True
            if outcome is not None:
                outcome.wait(pause)
            else:
                time.sleep(pause)
            pause = min(pause * 2, 1e-3)
        return True

    def push(self) -> None:
        """Have every earlier send settled, whatever became of it."""
        self._flush(None)

    def flush(self, timeout: float | None = None) -> None:
        """Return when every earlier send has a result; raises the first failure nobody looked at, or `TimeoutError`."""
        self._flush(timeout)
        self._outbox.raise_unseen()

    def _flush(self, timeout: float | None) -> None:
        self._ctx.check_fork()
        with self.mutex:
            self._seal_all()
            waiting = self._outbox.waiting
        if not self._wait_until(lambda: all(outcome.done for outcome in waiting), None, timeout):
            left = sum(outcome.count for outcome in waiting if not outcome.done)
            raise TimeoutError(f"{left:,} messages have no result after {timeout} s; they are not lost, flush again")

    def close(self, timeout: float | None = None) -> None:
        """Flush and close; raises a failed delivery that nobody has looked at. Idempotent.

        After a `TimeoutError` what is left goes on being written; close again to wait for it again.
        """
        if self._ctx.forked:
            return
        if self._finished:
            self._outbox.raise_unseen()  # where the first call was interrupted
            return
        with self.mutex:
            self._closed = True  # from here on no send gets in: it finds its lane sealed and looks at this
            self._routes.clear()
            self._outbox.room.notify_all()
        self._flush(timeout)
        if self._numbers is not None and not self._finished:
            self._numbers.name.close()
        self._worker.stop()
        self._ctx.senders = tuple(sender for sender in self._ctx.senders if sender is not self)
        self._engine.forget(self)
        self._finished = True
        self._outbox.raise_unseen()

    def __reduce__(self) -> NoReturn:
        raise not_picklable("producer")

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_open(self) -> None:
        """`ClosedError`, `ForkedError`."""
        if self._closed or self._ctx.closed or self._ctx.forked:
            self._ctx.check()
            raise ClosedError("the producer is closed; open another with bus.producer()")

    # -- transactions -------------------------------------------------------------------------------------------------

    def transaction(self, consumer: Any = None) -> Transaction:
        """`with producer.transaction(consumer) as tx:`: everything sent by `tx` becomes visible together, or nothing.

        A `consumer` (of this bus, with a group and `auto_commit=False`) has what it was handed out by the block's end
        committed with it, and goes back to its committed offsets where the block raises.
        """
        from streamlite.transaction import Transaction  # loaded by who uses it

        self._check_open()
        return Transaction(self, consumer)

    def _here(self) -> object:
        """Who is calling: a thread."""
        return threading.get_ident()

    def _enter(self, transaction: Transaction) -> object:
        """A transaction's block is entered; whose it is. From here on its own thread may not send past it."""
        with self.mutex:
            self._check_open()
            here = self._here()
            if here in self._transactions:
                raise TransactionError(
                    "a transaction of this producer is open in this thread: leave its block, or abort it"
                )
            self._transactions[here] = transaction
            self._routes.shut()
        return here

    def _leave(self, owner: object) -> None:
        """The block is over."""
        with self.mutex:
            self._transactions.pop(owner, None)
            if not self._transactions and not self._closed and self._options.name is None:
                self._routes.open()

    def _check_outside(self) -> None:
        if self._transactions and self._here() in self._transactions:
            raise TransactionError(
                "this send would be no part of the open transaction: use tx.send, or another producer"
            )

    # -- a name -------------------------------------------------------------------------------------------------------

    def _take_name(self) -> None:
        from streamlite.named import Numbers  # loaded by who uses it
        from streamlite.numbering import Name

        assert self._options.name is not None
        self._numbers = Numbers(Name(self._engine, self._options.name), self)
        self._outbox.numbering = self._numbers.name

    def _known(self, lane: Lane, partition: int | None, key: bytes | None, sequence: int | None) -> Delivery | None:
        """What became of the first message with that sequence, of a producer with a name; `None` for a new one."""
        if self._numbers is None:
            return None
        place = self._part(lane, partition, key).partition
        return self._numbers.known(place, sequence, topic=lane.state.name, key=key, given=partition)

    def last_sequence(self, topic: Any, partition: int) -> int | None:
        """Of a named producer: the last sequence stored in a partition, by whomever had the name; `None` for none.

        After a crash, go on with the next. Waits for what was sent before.
        """
        if self._numbers is None:
            raise ConfigError("a producer without a name counts no sequences: open it with bus.producer(name=...)")
        state = self._route(topic).lane.state
        place = state.partitions[check_partition(state, partition)]
        self.push()
        return self._numbers.name.look(place).last
