"""Sending: stage in the caller's thread, a batch at a time to the disk.

The way of a message: `send` checks it, puts a tuple on its topic's lane and hands out a `Delivery`. When the lane's
batch is full, older than `linger_ms`, or the first after a quiet moment, it is sealed, and a drain takes it on:
`staging.split` encodes it for its partitions, `Partition.append` writes, the outcome is settled.

Who drains: the sending thread, wherever that costs it no wait (the drain is nobody else's just now, each partition's
lock is free at once, no sync is part of the append); whoever waits for a result; else the producer's worker thread,
which also takes the tail of every burst when its linger is over. One drain at a time, batches in order, so that
messages of one key are appended in the order of sending. A chunk whose partition stays locked waits while the others go
on, and fails after `lock_timeout`.

The buffer counts each message's payload plus `MESSAGE_OVERHEAD`. A lane reserves room when it begins a batch; where
there is none, `send` waits up to `max_block` seconds, and then the message was not taken.

Locks: `_mutex` guards lanes and the buffer's count and is held for moments; `_draining` is the drain's. `_mutex` is
never held while `_draining` is waited for, and no lock at all while a callback runs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from streamlite.clock import SystemClock
from streamlite.config import ProducerOptions
from streamlite.delivery import BulkDelivery, Delivery, Outcome
from streamlite.engine import Engine
from streamlite.errors import (
    BufferFullError,
    ClosedError,
    ConfigError,
    LockTimeoutError,
    MessageTooLargeError,
    StreamliteError,
    TimeoutError,
    UnsupportedError,
)
from streamlite.outgoing import check_headers, check_partition, check_timestamp, headers_bytes
from streamlite.partition import Partition
from streamlite.registry import TopicState
from streamlite.serde import Serde, encode_raw
from streamlite.staging import MESSAGE_OVERHEAD, STAGED_MAX, Chunk, Lane, Staged, split
from streamlite.subscription import topic_state
from streamlite.worker import Worker

__all__ = ["Producer"]

_RETRY_S: Final = 0.0005
"""How soon a partition whose lock was taken is tried again; a lock is held for tens of microseconds."""
_ROUTES_MAX: Final = 1024
_FAILED_MAX: Final = 1000
"""Failed batches remembered until somebody flushes, who is told of the first."""


class _Route:
    """What a topic argument means: a lane, and how keys and values become bytes (`None`: they are bytes or text)."""

    __slots__ = ("key", "lane", "value")

    def __init__(self, lane: Lane, key: Serde | None, value: Serde | None) -> None:
        self.lane = lane
        self.key = key
        self.value = value


class Producer:
    """Sends messages; thread-safe. Made by `Bus.producer`."""

    def __init__(self, engine: Engine, options: ProducerOptions) -> None:
        self._engine = engine
        self._ctx = engine.ctx
        self._options = options
        clock = self._ctx.clock
        self._clock = clock
        self._system_clock = isinstance(clock, SystemClock)
        self._time_ms = clock.time_ms
        self._linger_ms = options.linger_ms
        self._raw: dict[Any, Lane] = {}  # topic arguments whose messages are plain bytes or text: the fast path
        self._routes: dict[Any, _Route] = {}
        self._lanes: dict[int, Lane] = {}  # by incarnation
        self._mutex = threading.RLock()
        self._room = threading.Condition(self._mutex)
        self._buffered = 0  # bytes sealed and not settled, and room reserved by lanes
        self._sealed: deque[Staged] = deque()
        self._queues: dict[Partition, deque[Chunk]] = {}
        self._draining = threading.Lock()
        self._unsettled: dict[Outcome, None] = {}
        self._failed: list[Outcome] = []
        self._closed = False
        self._finished = False
        self._worker = Worker("producer", self._step, clock)
        self._ctx.senders += (self,)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._buffered:,} bytes buffered"
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
        lane = self._raw.get(topic)
        if (
            lane is None
            or type(value) is not bytes
            or partition is not None
            or timestamp is not None
            or headers is not None
            or sequence is not None
        ):
            return self._send_any(topic, value, key, partition, timestamp, headers, sequence)
        if type(key) is bytes:
            size = len(value) + len(key)
        elif key is None and not lane.keyed_only:
            size = len(value)
        else:
            return self._send_any(topic, value, key, partition, timestamp, headers, sequence)
        if size > lane.message_bytes_max:
            return self._send_any(topic, value, key, partition, timestamp, headers, sequence)
        now = time.time_ns() // 1_000_000 if self._system_clock else self._time_ms()
        with self._mutex:
            outcome = lane.outcome
            left = lane.left - size - MESSAGE_OVERHEAD
            if outcome is None or left < 0:
                outcome = self._begin(lane, size + MESSAGE_OVERHEAD, now)
                left = lane.left - size - MESSAGE_OVERHEAD
            lane.left = left
            index = lane.count
            lane.count = index + 1
            lane.push((value, key, now))
            due = now - lane.opened_ms >= self._linger_ms or index >= STAGED_MAX
        if due:
            self._go(lane)
        return Delivery(outcome, index)

    def _send_any(
        self, topic: Any, value: Any, key: Any, partition: int | None, timestamp: Any, headers: Any, sequence: int | None
    ) -> Delivery:
        """`send` for everything that is not bytes to a known topic and nothing else."""
        route = self._route(topic)
        lane = route.lane
        if sequence is not None:
            raise ConfigError("sequence needs a named producer: open it with bus.producer(name=...)")
        data = encode_raw(value, "value") if route.value is None else route.value.encode(value)
        key_data = encode_raw(key, "key") if route.key is None else route.key.encode(key)
        if partition is not None:
            partition = check_partition(lane.state, partition)
        pairs = check_headers(headers)
        if lane.keyed_only and key_data is None:
            raise ConfigError(f"topic {lane.state.name!r} is compacted: it takes no message without a key")
        size = len(data or b"") + len(key_data or b"") + headers_bytes(pairs)
        if size > lane.message_bytes_max:
            raise MessageTooLargeError(
                f"a message of {size:,} bytes (key, value and headers) to {lane.state.name!r}, which takes "
                f"{lane.message_bytes_max:,}: send less, or raise its max_message_bytes"
            )
        now = self._time_ms()
        moment = now if timestamp is None else check_timestamp(timestamp)
        with self._mutex:
            self._check_open()
            outcome = lane.outcome
            if outcome is None or lane.left < size + MESSAGE_OVERHEAD:
                outcome = self._begin(lane, size + MESSAGE_OVERHEAD, now)
            lane.left -= size + MESSAGE_OVERHEAD
            index = lane.count
            lane.count = index + 1
            if partition is not None or pairs:
                lane.extras[index] = (partition, pairs)
            lane.push((data, key_data, moment))
            due = now - lane.opened_ms >= self._linger_ms or index >= STAGED_MAX
        if due:
            self._go(lane)
        return Delivery(outcome, index)

    def send_many(
        self,
        topic: Any,
        values: Sequence[Any],
        *,
        keys: Sequence[Any] | None = None,
        partition: int | None = None,
        timestamps: Sequence[int | datetime] | None = None,
        headers: Sequence[Any] | None = None,
    ) -> Delivery:
        """Send a column of messages; one `Delivery` for all, whose `result()` is a sequence.

        Columns are as long as `values`. All are checked before any is sent; more than the buffer holds goes in pieces.
        """
        route = self._route(topic)
        lane = route.lane
        from streamlite.bulk import BulkColumns  # the bulk path, loaded by who uses it

        columns = BulkColumns(lane.state, values, keys, partition, timestamps, headers, route.key, route.value)
        pieces: list[Outcome] = []
        budget = max(1, min(self._options.batch_bytes, self._options.buffer_bytes))
        for staged, size in columns.pieces(lane, budget, self._new_outcome, self._time_ms):
            with self._mutex:
                self._check_open()
                self._seal(lane)
                self._wait_for_room(size)
                self._buffered += size
                staged.outcome.bytes = size
                self._unsettled[staged.outcome] = None
                self._sealed.append(staged)
            pieces.append(staged.outcome)
            self._drain_if_free()
        if not pieces:
            pieces.append(self._new_outcome(lane))
            pieces[0].finish()
        return BulkDelivery(pieces[0], 0, pieces)

    # -- topics -------------------------------------------------------------------------------------------------------

    def _route(self, topic: Any) -> _Route:
        """What `topic` means, as the bus has it now."""
        self._check_open()
        self._ctx.check_writable()
        route = self._routes.get(topic)
        if route is None or route.lane.state.seen != self._engine.registry.changes:
            with self._mutex:
                route = self._new_route(topic)
        return route

    def _new_route(self, topic: Any) -> _Route:
        key = value = None
        registry = self._engine.registry
        if isinstance(topic, str):
            from streamlite.config import check_name

            state = registry.get(check_name(topic, "topic"))
        else:
            state, key, value = topic_state(topic, self._engine)
            registry.current(state)
        lane = self._lanes.get(state.incarnation)
        if lane is None:
            lane = self._lanes[state.incarnation] = Lane(state, len(self._lanes) % len(state.partitions))
        else:
            self._seal(lane)
            lane.take_settings()
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.clear()
            self._raw.clear()
        route = self._routes[topic] = _Route(lane, key, value)
        if key is None and value is None:
            self._raw[topic] = lane
        return route

    # -- batches ------------------------------------------------------------------------------------------------------

    def _new_outcome(self, lane: Lane) -> Outcome:
        return Outcome(self, lane.state.name)

    def _begin(self, lane: Lane, size: int, now_ms: int) -> Outcome:
        """Under the mutex: seal what is staged and begin a batch with room for `size` at least."""
        self._check_open()
        self._seal(lane)
        if lane.state.seen != self._engine.registry.changes:
            self._engine.registry.current(lane.state)
            lane.take_settings()
        self._wait_for_room(size)
        free = self._options.buffer_bytes - self._buffered
        room = max(size, min(self._options.batch_bytes, free // 2))
        self._buffered += room
        outcome = self._new_outcome(lane)
        self._unsettled[outcome] = None
        quiet = now_ms - lane.last_ms >= self._linger_ms
        lane.begin(outcome, room, now_ms, self._clock.monotonic())
        if quiet:
            lane.opened_ms = now_ms - 60_000  # the first after a quiet moment goes at once
        elif self._worker.idle:
            self._worker.wake()
        return outcome

    def _wait_for_room(self, size: int) -> None:
        """Under the mutex: wait until `size` bytes fit the buffer, or it is empty; `BufferFullError`."""
        limit = self._options.buffer_bytes
        if self._buffered and self._buffered + size > limit:
            self._seal_all()
            deadline = self._clock.monotonic() + self._options.max_block
            while self._buffered and self._buffered + size > limit:
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    raise BufferFullError(
                        f"the buffer ({limit:,} bytes) stayed full for {self._options.max_block:g} s; the message was not "
                        "taken: the disk or another holder of a lock is slow; send again, or raise buffer_bytes"
                    )
                self._worker.wake()
                self._clock.wait(self._room, left)
                self._check_open()

    def _seal(self, lane: Lane) -> None:
        """Under the mutex: put what is staged on its way."""
        unused = lane.left
        staged = lane.seal()
        if staged is not None:
            lane.last_ms = self._time_ms()
            self._buffered -= unused
            self._sealed.append(staged)

    def _seal_all(self) -> None:
        with self._mutex:
            for lane in self._lanes.values():
                self._seal(lane)

    # -- the drain ----------------------------------------------------------------------------------------------------

    def _go(self, lane: Lane) -> None:
        """A batch is due: write it here if that costs no wait, else leave it to the worker."""
        with self._mutex:
            self._seal(lane)
        self._drain_if_free()

    def _drain_if_free(self) -> None:
        if self._ctx.always:
            self._worker.wake()  # the append includes a sync, and a sender waits for none
        elif not self._drain(0) or self._queues:
            self._worker.wake()

    def _drain(self, timeout: float) -> bool:
        """Write what is sealed, as far as locks are free; `False` where the drain itself was taken."""
        while self._sealed or self._queues:
            if not self._draining.acquire(timeout=timeout) if timeout > 0 else not self._draining.acquire(blocking=False):
                return False
            finished: list[Outcome] = []
            try:
                progress = self._drain_once(finished)
            finally:
                self._draining.release()
                self._settled(finished)
            if not progress:
                return True
        return True

    def _drain_once(self, finished: list[Outcome]) -> bool:
        """Split and append, holding `_draining`; whether anything came off."""
        progress = False
        while self._sealed:
            staged = self._sealed.popleft()
            progress = True
            try:
                chunks = split(staged)
            except StreamliteError as error:
                self._fail_all(staged, error, finished)
                continue
            for chunk in chunks:
                self._queues.setdefault(chunk.partition, deque()).append(chunk)
        for partition, queue in list(self._queues.items()):
            progress |= self._append(partition, queue, finished)
            if not queue:
                del self._queues[partition]
        return progress

    def _fail_all(self, staged: Staged, error: StreamliteError, finished: list[Outcome]) -> None:
        outcome = staged.outcome
        outcome.partitions = 0
        outcome.settle(0, outcome.count, 0, error)
        finished.append(outcome)

    def _append(self, partition: Partition, queue: deque[Chunk], finished: list[Outcome]) -> bool:
        """Append a partition's chunks if its lock is free; whether any was settled."""
        chunks = list(queue)
        try:
            result = partition.try_append([chunk.outgoing for chunk in chunks])
        except StreamliteError as error:
            self._settle(queue, [], error, finished)
            return True
        if result is None:
            return self._expire(queue, finished)
        self._settle(queue, result.offsets, result.error, finished)
        return True

    def _expire(self, queue: deque[Chunk], finished: list[Outcome]) -> bool:
        """The partition's lock is taken: chunks that waited for it too long fail."""
        now = time.monotonic()
        timeout = self._ctx.lock_timeout
        for chunk in queue:
            chunk.since = chunk.since or now
        late = sum(now - chunk.since >= timeout for chunk in queue)
        if not late:
            return False
        error = LockTimeoutError(
            f"the lock of {queue[0].partition.guard.what} stayed taken for {timeout:g} s; these messages were not written: "
            "its holder may be stopped or very slow; send them again, or raise lock_timeout"
        )
        for _ in range(late):
            self._settle_one(queue.popleft(), -1, error, finished)
        return True

    def _settle(
        self, queue: deque[Chunk], offsets: Sequence[int], error: StreamliteError | None, finished: list[Outcome]
    ) -> None:
        for offset in offsets:
            self._settle_one(queue.popleft(), offset, None, finished)
        if error is not None:
            # What follows the failed one in this partition must not overtake it: it fails as well, for the same reason.
            while queue:
                self._settle_one(queue.popleft(), -1, error, finished)

    def _settle_one(self, chunk: Chunk, offset: int, error: StreamliteError | None, finished: list[Outcome]) -> None:
        if chunk.outcome.settle(chunk.partition.number, chunk.outgoing.count, offset, error):
            finished.append(chunk.outcome)

    def _settled(self, finished: list[Outcome]) -> None:
        """Give room back and tell who waits, with no lock held but for a moment."""
        if not finished:
            return
        with self._mutex:
            for outcome in finished:
                self._buffered -= outcome.bytes
                self._unsettled.pop(outcome, None)
                if outcome.errors and len(self._failed) < _FAILED_MAX:
                    self._failed.append(outcome)
            self._room.notify_all()
        on_delivery = self._options.on_delivery
        for outcome in finished:
            if on_delivery is not None:
                for index in range(outcome.count):
                    outcome.add_callback(index, on_delivery)
                outcome.seen = True
            outcome.finish()

    # -- the worker ---------------------------------------------------------------------------------------------------

    def _step(self) -> float | None:
        """What the worker does when it is due: lanes whose linger is over, and whatever senders left."""
        if self._ctx.forked:
            return None
        next_due = self._seal_due()
        if not self._drain(0) or self._queues:
            return _RETRY_S
        return next_due

    def _seal_due(self) -> float | None:
        linger = self._linger_ms / 1000
        soonest: float | None = None
        with self._mutex:
            now = self._clock.monotonic()
            for lane in self._lanes.values():
                if lane.outcome is not None:
                    left = lane.opened + linger - now
                    if left <= 0:
                        self._seal(lane)
                    else:
                        soonest = left if soonest is None else min(soonest, left)
        return soonest

    # -- waiting ------------------------------------------------------------------------------------------------------

    def hurry(self, outcome: Outcome, timeout: float | None) -> bool:
        """Cut the linger short and wait for one batch; whether it is done."""
        return self._wait_until(lambda: outcome.done, outcome, timeout)

    def nudge(self) -> None:
        """Cut the linger short, without waiting."""
        self._seal_all()
        if self._sealed or self._queues:
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

    def forked(self) -> None:
        """In the child of a fork: the fast path takes nothing more."""
        self._raw.clear()
        self._routes.clear()

    def flush(self, timeout: float | None = None) -> None:
        """Return when every earlier send has a result; raises the first failure nobody looked at, or `TimeoutError`."""
        self._flush(timeout)
        self._raise_unseen()

    def _flush(self, timeout: float | None) -> None:
        self._ctx.check_fork()
        with self._mutex:
            self._seal_all()
            waiting = list(self._unsettled)
        if not self._wait_until(lambda: all(outcome.done for outcome in waiting), None, timeout):
            left = sum(outcome.count for outcome in waiting if not outcome.done)
            raise TimeoutError(f"{left:,} messages have no result after {timeout} s; they are not lost, flush again")

    def _raise_unseen(self) -> None:
        with self._mutex:
            failed, self._failed = self._failed, []
        for outcome in failed:
            if not outcome.seen:
                error = outcome.error(-1)
                assert error is not None
                raise error

    def close(self, timeout: float | None = None) -> None:
        """Flush and close; raises a failed delivery that nobody has looked at. Idempotent.

        After a `TimeoutError` what is left goes on being written; close again to wait for it again.
        """
        if self._finished or self._ctx.forked:
            return
        with self._mutex:
            self._closed = True  # from here on no send gets in: it finds its lane sealed and looks at this
            self._raw.clear()
            self._routes.clear()
            self._room.notify_all()
        self._flush(timeout)
        self._finished = True
        self._worker.stop()
        self._ctx.senders = tuple(sender for sender in self._ctx.senders if sender is not self)
        self._engine.forget(self)
        self._raise_unseen()

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed or self._ctx.closed or self._ctx.forked:
            self._ctx.check()
            raise ClosedError("the producer is closed; open another with bus.producer()")

    # -- what comes with named producers and transactions -------------------------------------------------------------

    def transaction(self, consumer: Any = None) -> Any:
        """Not in this release."""
        raise UnsupportedError("transactions are not in this release of streamlite")

    def last_sequence(self, topic: Any, partition: int) -> int | None:
        """Not in this release: no producer has a name."""
        raise UnsupportedError("named producers are not in this release of streamlite")
