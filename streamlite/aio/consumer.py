"""Receiving in an event loop.

`AsyncConsumer` runs the calls of the sync consumer as steps (`Steps`) in the bus's pool, one at a time, and sleeps
between them in the loop. What was published while it slept, and is small, is read in the loop's thread: it is in the
page cache, since somebody has just written it.

Cancelled, a call leaves its step alone: the next call waits until it is through, and what it took is taken back first.
If that next call is the same poll once more, it gets what the step found instead: polls that are all cancelled before
their step ends would never get anything else (`_left_over`).
A sequence that would lose messages otherwise: a poll's step runs; the task is cancelled; the step marks what it found
as handed out; the next poll counts that as processed, and a commit makes it so for ever.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import msgspec

from streamlite import errors
from streamlite.aio.loop import Pool, Turn, busy, outcome
from streamlite.aio.steps import Steps, Visit
from streamlite.config import ConsumerOptions
from streamlite.engine import Engine
from streamlite.errors import ClosedError, ConfigError
from streamlite.message import Columns, Message, TopicPartition

__all__ = ["AsyncConsumer"]

logger = logging.getLogger("streamlite")

R = TypeVar("R")
Callback = Callable[..., Any]


_visit: ContextVar[Visit | None] = ContextVar("streamlite_visit", default=None)


class AsyncConsumer:
    """`Consumer` for asyncio. Made by `Bus.async_consumer`; it joins at the first await.

    One task at a time uses it; `wakeup` and `close` may come from any, `wakeup` from any thread too. What only looks
    (`assignment`, `paused`) and `wakeup` are plain calls, everything else is awaited.
    """

    def __init__(self, engine: Engine, topics: tuple[Any, ...], group: str | None, options: ConsumerOptions) -> None:
        self._ctx = engine.ctx
        self._clock = engine.ctx.clock
        self._topics = topics
        self._pool = Pool.of(engine)
        callbacks = {name: self._wrapped(getattr(options, name)) for name in ("on_assign", "on_revoke", "on_lost")}
        self._steps = Steps(engine, group, msgspec.structs.replace(options, **callbacks), self)
        self.group = group
        self._turn = Turn()
        self._user: object | None = None
        self._under_way: Future[Any] | None = None
        self._swallowed = False
        """Whether the step that a cancelled call left hands out messages, which nobody gets."""
        self._polled: object = None
        """What kind of poll was called last."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        engine.adopt(self._steps)

    def __repr__(self) -> str:
        return repr(self._steps).replace("<Consumer", "<AsyncConsumer", 1)

    async def __aenter__(self) -> AsyncConsumer:
        try:
            with self._using():
                await self._do(lambda: None)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- steps --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _using(self) -> Iterator[None]:
        """One task at a time, and what it calls back."""
        self._steps.check()
        if self._inside() is not None:
            yield
            return
        if self._user is not None:
            raise ConfigError(
                "another task is inside a call of this consumer, and one task at a time uses it: open one for each, or "
                "end the other's call with wakeup()"
            )
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._user = object()
        try:
            yield
        finally:
            self._user = None

    def _inside(self) -> Visit | None:
        visit = _visit.get()
        return visit if visit is not None and visit.consumer is self and not visit.over else None

    async def _do(self, call: Callable[..., R], *args: Any, hands_out: bool = False) -> R:
        """Run a call as a step, after the one that a cancelled call left."""
        visit = self._inside()
        if visit is not None:
            return await outcome(visit.submit(partial(self._perform, partial(call, *args), False)))
        with busy(self._clock):
            await self._settled()
            swallowed, self._swallowed = self._swallowed, False
            future: Future[R] = self._pool.submit(partial(self._perform, partial(call, *args), swallowed))
            self._under_way = future
            try:
                result = await outcome(future)
            except asyncio.CancelledError:
                self._swallowed = hands_out
                raise
        self._under_way = None
        return result

    async def _settled(self) -> None:
        while (left := self._under_way) is not None:
            try:
                await outcome(left)
            except asyncio.CancelledError:
                if not left.done() or not isinstance(left.exception(), asyncio.CancelledError):
                    raise
            except Exception as error:  # noqa: BLE001 - it was for the call that was cancelled
                logger.warning("a call that had been cancelled failed: %s", error)
            if self._under_way is left:
                self._under_way = None

    def _perform(self, call: Callable[[], R], swallowed: bool) -> R:
        """In a thread of the pool."""
        steps = self._steps
        if swallowed:
            steps.take_back()
        if not steps.is_open:
            steps.join(self._topics)
        return call()

    async def _ask(
        self, call: Callable[[float | None], list[R]], timeout: float | None, *, near: bool = True
    ) -> list[R]:
        """Steps and sleeps until there are messages, the time is over, or somebody wakes this up.

        `near`: whether the call may be made in the loop's thread, for what was written just now.
        """
        steps, clock = self._steps, self._clock
        left, deadline = timeout, steps.deadline(timeout)
        if self._turn.until <= monotonic():
            await self._turn.give()
        while True:
            found = await self._look(call, left, near=near)
            if found or not steps.asleep:
                return found
            longest = steps.longest
            if deadline is not None:
                left = max(0.0, deadline - clock.monotonic())
                longest = left if longest is None else min(left, longest)
            await steps.place.sleep(steps.has_news, longest)
            if steps.closing:
                return []
            await Turn.of_awakened().give()
            left = None if deadline is None else max(0.0, deadline - clock.monotonic())

    async def _look(self, call: Callable[[float | None], list[R]], left: float | None, *, near: bool) -> list[R]:
        """One look for messages: in this thread where it only takes what was written just now, else as a step."""
        steps = self._steps
        steps.asleep = False
        if near and self._under_way is None and self._inside() is None and steps.is_near():
            steps.inline = True
            try:
                found = call(left)
            finally:
                steps.inline = False
            if found:
                return found

        def step() -> list[R]:
            steps.asleep = False  # whatever a step that was left behind has said
            return call(left)

        return await self._do(step, hands_out=True)

    async def _poll(self, kind: tuple[str, int | None], call: Callable[..., list[R]], timeout: float | None) -> list[R]:
        with self._using():
            found: list[R] = await self._left_over(kind)
            self._polled = kind
            return found or await self._ask(lambda left: call(left, kind[1]), timeout)

    async def _left_over(self, kind: tuple[str, int | None]) -> list[Any]:
        """What the step of a cancelled poll of the same kind found; nobody has seen it."""
        left = self._under_way
        if left is None or not self._swallowed or self._polled != kind or self._inside() is not None:
            return []
        with busy(self._clock):
            await self._settled()  # cancelled here, it is there for the next one
        self._swallowed = False  # it is handed out now, or there was nothing: a poll that fails hands out nothing
        return [] if left.cancelled() or left.exception() is not None else left.result()

    # -- subscription -------------------------------------------------------------------------------------------------

    async def subscribe(
        self,
        *topics: Any,
        on_assign: Callback | None = None,
        on_revoke: Callback | None = None,
        on_lost: Callback | None = None,
    ) -> None:
        """As `Consumer.subscribe`. The callbacks, functions or coroutine functions, get this consumer.

        They run in the loop, inside the call that finds the reason. A coroutine function may call the consumer.
        """
        given = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
        wrapped = {name: self._wrapped(callback) for name, callback in given.items()}
        with self._using():
            await self._do(partial(self._steps.subscribe, *topics, **wrapped))

    async def unsubscribe(self) -> None:
        """Read nothing; a member of a group commits what it processed and leaves."""
        with self._using():
            await self._do(self._steps.unsubscribe)

    async def assign(self, partitions: Any) -> None:
        """Read these `TopicPartition`s, without sharing them with a group's members; replaces what was read."""
        with self._using():
            await self._do(self._steps.assign, partitions)

    def assignment(self) -> set[TopicPartition]:
        """The partitions that this consumer reads now; none before the first await."""
        self._steps.check()
        return set(self._steps._fetcher.tracks)

    async def wait_assigned(self, timeout: float | None = None) -> set[TopicPartition]:
        """Wait until there are partitions to read, and return them; `TimeoutError`."""
        with self._using():
            found = await self._ask(self._steps.assigned, timeout, near=False)
        if not found:
            raise errors.TimeoutError(
                f"no partition was assigned within {timeout} s: other members of group {self.group!r} may hold them all"
            )
        return found[0]

    # -- callbacks ----------------------------------------------------------------------------------------------------

    def in_loop(self) -> bool:
        """Whether this is the loop's thread."""
        return threading.get_ident() == self._thread and self._loop is not None and self._loop.is_running()

    def _wrapped(self, callback: Callback | None) -> Callback | None:
        return callback and (lambda _, partitions: self._call_back(callback, partitions))

    def _call_back(self, callback: Callback, partitions: list[TopicPartition]) -> None:
        """In the thread of a step: run the callback in the loop, and wait for it."""
        loop, steps = self._loop, self._steps
        if loop is None or not loop.is_running() or steps.given_up or self.in_loop():
            self._call_alone(callback, partitions)
            return
        visit = Visit(self)
        before, steps.visit = steps.visit, visit
        try:
            loop.call_soon_threadsafe(self._enter, visit, callback, partitions)
            with self._pool.lent():
                visit.serve(loop)
        finally:
            steps.visit = before

    def _enter(self, visit: Visit, callback: Callback, partitions: list[TopicPartition]) -> None:
        async def run() -> None:
            _visit.set(visit)
            try:
                result = callback(self, partitions)
                if inspect.isawaitable(result):
                    await result
            except BaseException as error:  # noqa: BLE001 - the step raises it
                visit.end(error)
            else:
                visit.end(None)

        visit.task = asyncio.ensure_future(run())

    def _call_alone(self, callback: Callback, partitions: list[TopicPartition]) -> None:
        """The bus is being closed, in the loop's thread or after the loop's end: nothing can be awaited here."""
        result = callback(self, partitions)
        if not inspect.isawaitable(result):
            return
        if self.in_loop():
            task = asyncio.ensure_future(result)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if inspect.iscoroutine(result):
            result.close()
        logger.warning("no event loop runs %r for %s: close the consumer before the loop ends", callback, partitions)

    # -- messages -----------------------------------------------------------------------------------------------------

    async def poll(self, timeout: float | None = 0.0, max_messages: int | None = None) -> list[Message]:
        """The next messages, as `Consumer.poll`. Cancelled, it loses none: the next call hands them out."""
        return await self._poll(("messages", max_messages), self._steps.poll, timeout)

    async def poll_columns(self, timeout: float | None = 0.0, max_messages: int | None = None) -> list[Columns]:
        """As `poll`, but as columns of bytes: no messages are built, nothing decoded."""
        return await self._poll(("columns", max_messages), self._steps.poll_columns, timeout)

    def __aiter__(self) -> Messages:
        return self.messages()

    def messages(self, timeout: float | None = None) -> Messages:
        """Messages one by one from the first unprocessed one on; ends `timeout` seconds after the last, or never.

        A message is processed once the loop asks for the next: `break`, an exception and a cancellation while the loop
        has it leave it unprocessed. `wakeup` and `close` end it too.
        """
        self._steps.check()
        self._steps.deadline(timeout)
        return Messages(self, timeout)

    # -- offsets ------------------------------------------------------------------------------------------------------

    async def commit(self, message_or_offsets: Message | Mapping[TopicPartition, int] | None = None) -> None:
        """Commit, for the group: a message (its offset + 1), offsets, or `None`: all that was handed out.

        As `Consumer.commit`. Cancelled, it may have been done or not.
        """
        with self._using():
            await self._do(self._steps.commit, message_or_offsets)

    async def committed(self, tp: TopicPartition) -> int | None:
        """The group's committed offset of a partition, `None` where there is none."""
        with self._using():
            return await self._do(self._steps.committed, tp)

    async def position(self, tp: TopicPartition) -> int:
        """The offset of the next message that will be handed out."""
        with self._using():
            return await self._do(self._steps.position, tp)

    async def epoch(self, tp: TopicPartition) -> int:
        """What to keep beside a position in a store of one's own: `seek` takes it back."""
        with self._using():
            return await self._do(self._steps.epoch, tp)

    async def incarnation(self, tp: TopicPartition) -> int:
        """Which of the topics that had this name is read: a positive 63-bit int, never given to another topic."""
        with self._using():
            return await self._do(self._steps.incarnation, tp)

    async def seek(self, tp: TopicPartition, offset: int, epoch: int | None = None) -> None:
        """Hand out `offset` next; with the `epoch` it was noted in, capped where a machine's stop took the log back."""
        with self._using():
            await self._do(self._steps.seek, tp, offset, epoch)

    async def seek_to_beginning(self, *tps: TopicPartition) -> None:
        """Go back to the first offset of these partitions, or of all assigned ones."""
        with self._using():
            await self._do(self._steps.seek_to_beginning, *tps)

    async def seek_to_end(self, *tps: TopicPartition) -> None:
        """Skip everything that is in these partitions, or in all assigned ones, now."""
        with self._using():
            await self._do(self._steps.seek_to_end, *tps)

    async def offsets_for_times(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, int | None]:
        """For each partition the first offset with that timestamp (ms) or a later one; `None` when there is none."""
        with self._using():
            return await self._do(self._steps.offsets_for_times, times)

    async def lag(self) -> dict[TopicPartition, int]:
        """How many messages each assigned partition has from the position to its end."""
        with self._using():
            return await self._do(self._steps.lag)

    async def beginning_offsets(self, tps: Any) -> dict[TopicPartition, int]:
        """The first offset of each partition."""
        with self._using():
            return await self._do(self._steps.beginning_offsets, tps)

    async def end_offsets(self, tps: Any) -> dict[TopicPartition, int]:
        """The next offset of each partition."""
        with self._using():
            return await self._do(self._steps.end_offsets, tps)

    # -- pause, wake up, close ----------------------------------------------------------------------------------------

    async def pause(self, *tps: TopicPartition) -> None:
        """Hand out nothing of these partitions until `resume`; they stay assigned."""
        with self._using():
            await self._do(self._steps.pause, *tps)

    async def resume(self, *tps: TopicPartition) -> None:
        """Hand out messages of these partitions again."""
        with self._using():
            await self._do(self._steps.resume, *tps)

    def paused(self) -> set[TopicPartition]:
        """The partitions that are paused."""
        self._steps.check()
        return {track.tp for track in list(self._steps._fetcher) if track.paused}

    def wakeup(self) -> None:
        """From any thread: the current or next call that may wait returns empty, the loop ends."""
        self._steps.wakeup()

    async def close(self) -> None:
        """From any task: commit what is processed (with auto_commit), leave the group at once. Idempotent.

        Another task's call that waits returns empty. Cancelled, the closing goes on by itself.
        """
        steps = self._steps
        if self._ctx.forked or steps._closed:
            return
        if self._loop is None:
            self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        steps._closing = True
        steps.place.ring()
        visit = self._inside()
        if visit is not None:
            await outcome(visit.submit(steps.close))
            return
        with busy(self._clock):
            await self._settled()
            try:
                future = self._pool.submit(steps.close)
            except ClosedError:
                return  # closing the bus has closed it
            await outcome(future)


class Messages:
    """The messages of one `async for`. A cancelled `anext` may be asked again."""

    def __init__(self, consumer: AsyncConsumer, timeout: float | None) -> None:
        self._consumer = consumer
        self._steps = consumer._steps
        self._handout = self._steps._handout
        self._turn = consumer._turn
        self._timeout = timeout
        self._run: list[Message] = []
        self._next = 0
        self._anew = True
        self._ended = False

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Message:
        run, at = self._run, self._next
        # The short way, in memory: every other message of a run.
        if self._handout.run is run and at < len(run) and monotonic() < self._turn.until and not self._consumer._user:
            self._next = at + 1
            message = self._handout.current = run[at]
            return message
        if self._ended:
            raise StopAsyncIteration
        if self._steps.closing and not self._anew:
            self._ended = True
            raise StopAsyncIteration
        with self._consumer._using():
            return await self._long_way()

    async def _long_way(self) -> Message:
        steps, run, at = self._steps, self._run, self._next
        if at:
            steps.processed(run[at - 1])
        if self._turn.until <= monotonic():
            await self._turn.give()
        if steps.holds(run) and at < len(run) and steps.must_tend():
            await self._consumer._do(steps.tend)
        if not (steps.holds(run) and at < len(run)):
            run, at = await self._another(), 0
        self._next = at + 1
        return steps.hand(run[at])

    async def _another(self) -> list[Message]:
        steps, consumed = self._steps, self._run
        anew = self._anew
        through = not anew and steps.holds(consumed)
        run = await self._consumer._ask(lambda left: steps.next_run(left, anew=anew, through=through), self._timeout)
        self._anew = False
        if not run:
            self._ended = True
            raise StopAsyncIteration
        self._run = run
        return run
