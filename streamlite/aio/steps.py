"""The sync consumer, made of steps: its calls return where they would sleep, and its callbacks run elsewhere.

Everything else, what "processed" means, commits, rebalances, is the sync one's: `Steps` overrides where it sleeps, and
adds what a loop in another thread must ask.

A callback runs in the event loop, while the step that met its reason waits in its thread. What the callback asks of the
consumer is done by that waiting thread (`Visit`): it holds the consumer, so any other would wait for it for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from streamlite.aio.loop import Aside, place
from streamlite.config import ConsumerOptions
from streamlite.consumer import Consumer
from streamlite.counters import POSITION
from streamlite.engine import Engine
from streamlite.errors import ClosedError
from streamlite.fetcher import Track
from streamlite.message import Message, TopicPartition

__all__ = ["Owner", "Steps", "Visit"]

_NEAR_BYTES: Final = 128 << 10
"""What is read in the loop's thread at most: in one batch that is 0.3 ms of reading, checking and decoding."""
_NEAR_MESSAGES: Final = 100
"""Likewise: each in a batch of its own, they take 0.8 ms."""
_NEAR_TRACKS: Final = 64
"""Whose positions are noted before a sleep: beyond this, noting them costs more than it saves."""
_LOST_LOOP_S: Final = 0.2
"""How often a thread that waits for a callback looks whether the loop still runs."""

R = TypeVar("R")


class Owner(Protocol):
    """The async consumer around it."""

    def in_loop(self) -> bool:
        """Whether this is the loop's thread."""


class Visit:
    """A callback under way in the loop: its thread waits, and does what the callback asks of the consumer."""

    def __init__(self, consumer: Owner) -> None:
        self.consumer = consumer
        self.over = False
        self.task: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._steps: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, step: Callable[[], R]) -> Future[R]:
        """Have the waiting thread do it."""
        future: Future[R] = Future()

        def run() -> None:
            try:
                future.set_result(step())
            except BaseException as error:  # noqa: BLE001 - whoever awaits the step gets it
                future.set_exception(error)

        self._steps.put(run)
        return future

    def end(self, error: BaseException | None) -> None:
        """The callback is through."""
        self._error = error
        self.over = True
        self._steps.put(None)

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: wait for the end, and raise what the callback raised."""
        while True:
            try:
                step = self._steps.get(timeout=_LOST_LOOP_S)
            except Empty:
                if not loop.is_running():
                    self.over = True
                    raise ClosedError("the event loop stopped in the middle of a callback") from None
                continue
            if step is None:
                break
            step()
        if self._error is not None:
            raise self._error


class Steps(Consumer):
    """The sync consumer, whose calls return where they would sleep."""

    def __init__(self, engine: Engine, group: str | None, options: ConsumerOptions, owner: Owner) -> None:
        super().__init__(engine, group, options)
        self.owner = owner
        self.place = self._waiter = place(self._ctx.bell)
        self.is_open = False
        self.asleep = False
        """Whether the last call would have slept on; and then the longest that it may."""
        self.longest: float | None = None
        self.inline = False
        """Whether this call runs in the loop's thread, and must do nothing that takes the disk."""
        self.given_up = False
        """Whether the loop's thread closes this: no callback can run there meanwhile."""
        self.visit: Visit | None = None
        self._positions: dict[Track, int] = {}
        self._assignment.breathe = Aside().stand

    @property
    def closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing or self._closed or self._ctx.closed

    def check(self) -> None:
        """`ClosedError`, `ForkedError`."""
        self._check()

    def deadline(self, timeout: float | None) -> float | None:
        """When `timeout` will be over; `ConfigError` for what is none."""
        return self._deadline(timeout)

    def join(self, topics: tuple[Any, ...]) -> None:
        """Once: what the sync one does when it is made."""
        with self._busy:
            self._check()
            self.place.prepare()
            if topics:
                self.subscribe(*topics)
            self.is_open = True

    def take_back(self) -> None:
        """What the last poll handed out reached nobody."""
        with self._busy:
            self._handout.take_back_all()

    def _sleep(self, deadline: float | None, ready: Callable[[], bool]) -> bool:
        left = None if deadline is None else deadline - self._clock.monotonic()
        if self.inline:
            self.asleep = True
            return False
        if left is not None and left <= 0:
            return super()._sleep(deadline, ready)
        self._assignment.commit_processed()
        self._ctx.hurry()
        self._note_positions()
        if ready():
            return True
        pause = self._pause()
        self.longest = pause if left is None else left if pause is None else min(left, pause)
        self.asleep = True
        return False

    def _guarded(self, take: Callable[[Track, int], int]) -> Callable[[Track, int], int]:
        guarded, aside = super()._guarded(take), Aside()

        def polite(track: Track, room: int) -> int:
            if not self.inline:
                aside.stand()  # a thousand batches of one message each take 15 ms
            return guarded(track, room)

        return polite

    def _settle_left(self) -> None:
        if not self.inline:
            super()._settle_left()

    def has_news(self) -> bool:
        """Whether a step has something to do; from memory, and without waiting."""
        if self._woken or self.closing or not self._busy.acquire(blocking=False):
            return True
        try:
            # Of a bus that is only read, news is on the disk: its steps look for it.
            return not self._ctx.read_only and self._has_news()
        finally:
            self._busy.release()

    # -- reading in the loop's thread ---------------------------------------------------------------------------------

    def _note_positions(self) -> None:
        tracks = self._fetcher.tracks
        few = len(tracks) <= _NEAR_TRACKS and not self._ctx.read_only
        self._positions = {track: track.partition.slot.get(POSITION) for track in tracks.values()} if few else {}

    def is_near(self) -> bool:
        """Whether all there is to read was published since the last sleep, and is small; nothing else is to be done."""
        positions, assignment = self._positions, self._assignment
        if not positions or self.closing or self._failure is not None or assignment.moved():
            return False
        if self.must_tend() or not self._busy.acquire(blocking=False):
            return False
        try:
            self._fetcher.look()
        finally:
            self._busy.release()
        size = count = 0
        for track in self._fetcher:
            if self._fetcher.is_ready(track):
                grown = track.partition.slot.get(POSITION) - positions.get(track, 1 << 62)
                if grown < 0:  # it rolled, or was not ours
                    return False
                size += grown
                count += track.partition.slot.end - track.position
        self._positions = {}
        return 0 < size <= _NEAR_BYTES and count <= _NEAR_MESSAGES

    # -- the loop -----------------------------------------------------------------------------------------------------

    def next_run(self, timeout: float | None, *, anew: bool, through: bool) -> list[Message]:
        """The next messages of one partition; `anew` for a new loop, `through` when the last ones are processed."""
        found: list[Message] = []

        def take(track: Track, room: int) -> int:
            messages = self._handout.take(track, room)
            if not messages:
                return 0
            found.extend(messages)
            self._handout.begin_run(found, track)
            return room

        with self._busy:
            if self._closed:
                return []
            self._handout.give_up()
            if through:
                self._handout.end_run()
            if anew:
                self._handout.take_back_all()
            self._handout.take_back()
            self._handout.count_polled()
            self._collect(self._deadline(timeout), self._options.max_poll_messages, take, found)
        return found

    def holds(self, run: list[Message]) -> bool:
        """Whether the run is still to be handed out."""
        return self._handout.run is run

    def hand(self, message: Message) -> Message:
        """The loop gets this message of its run."""
        self._handout.current = message
        return message

    def processed(self, message: Message) -> None:
        """The loop asked for the next one."""
        self._handout.resumed(message)

    def must_tend(self) -> bool:
        """Whether a member has something to do that may take the group's lock or the disk."""
        own = self._assignment
        if own.membership is None:
            return False
        return own._rejoin or self._clock.monotonic() >= min(own._look_at, own._commit_at)

    def tend(self) -> None:
        """Look up from a run: news of the group, commits that are due."""
        with self._busy:
            if not self.closing:
                self._assignment.tend()

    def assigned(self, timeout: float | None) -> list[set[TopicPartition]]:
        """What `wait_assigned` waits for, where it is there."""
        with self._busy:
            self._check()
            deadline = self._deadline(timeout)
            self._assignment.tend()
            while not self._fetcher.tracks:
                if self._stopped() or not self._sleep(deadline, self._assignment.moved):
                    return []
                self._assignment.tend()
            return [set(self._fetcher.tracks)]

    # -- close --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """From any thread. In the loop's own, a callback that is under way is left to itself: it can never end."""
        if self.owner.in_loop():
            self.given_up = True
            if self.visit is not None:
                self.visit.end(ClosedError("the bus was closed in the middle of a callback"))
        super().close()
