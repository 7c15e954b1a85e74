"""A clock that tests move, and that moves itself when nothing else can happen.

`advance` moves it. Beyond that it jumps to the earliest deadline when all that streamlite runs is waiting: at least one
caller sits in a blocking call, and every background thread waits too. So `poll(timeout=60)` on an empty topic returns at
once, sixty seconds later by this clock, and a message that a background thread is still writing arrives first.

The rules that make it exact: a worker counts as busy from the moment somebody wakes it, not from when its thread runs;
a jump takes all waiters that are due out of the table, and nobody jumps again before they have left their wait. Waiting
threads look every half millisecond of real time whether they may jump, so no thread ever takes another's lock.
"""

from __future__ import annotations

import threading
from typing import Final

from streamlite.clock import Clock

__all__ = ["VirtualClock"]

_LOOK_S: Final = 0.0005
_FOREVER: Final = float("inf")


class VirtualClock(Clock):
    """Time that stands still until `advance` is called, or until everything waits.

    `start_ms`: what `time_ms()` says at first, in ms since the epoch.
    """

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self._start_ms = start_ms
        self._now = 0.0
        self._mutex = threading.Lock()  # guards all below
        self._workers: dict[object, int] = {}  # worker -> thread that runs it
        self._waiting: dict[int, float] = {}  # waiting thread -> its deadline
        self._due: set[int] = set()  # threads whose deadline a jump reached and that have not woken yet

    def __repr__(self) -> str:
        return f"<VirtualClock {self._now:.3f} s after start, {len(self._waiting)} waiting>"

    def time_ms(self) -> int:
        return self._start_ms + round(self._now * 1000)

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`; what is due by then happens at the next look of who waits for it."""
        if seconds < 0:
            raise ValueError(f"time does not go back; advance({seconds!r})")
        with self._mutex:
            self._move(self._now + seconds)

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        me = threading.get_ident()
        with self._mutex:
            deadline = _FOREVER if timeout is None else self._now + max(timeout, 0.0)
            self._waiting[me] = deadline
        notified = False
        try:
            while not notified and not self._is_due(me, deadline):
                notified = condition.wait(_LOOK_S)
        finally:
            with self._mutex:
                self._waiting.pop(me, None)
                self._due.discard(me)
        return notified

    def worker_started(self, worker: object) -> None:
        with self._mutex:
            self._workers[worker] = threading.get_ident()

    def worker_stopped(self, worker: object) -> None:
        with self._mutex:
            self._workers.pop(worker, None)

    def worker_woken(self, worker: object) -> None:
        with self._mutex:
            # One that has not started yet is entered at once, or the clock could jump before its thread runs.
            self._waiting.pop(self._workers.setdefault(worker, 0), None)

    def _is_due(self, me: int, deadline: float) -> bool:
        with self._mutex:
            if self._now >= deadline or me in self._due:
                return True
            if me not in self._waiting:  # a worker that somebody is waking
                return False
            workers = set(self._workers.values())
            callers = self._waiting.keys() - workers
            if callers and not self._due and workers <= self._waiting.keys():
                earliest = min(self._waiting.values())
                if earliest < _FOREVER:
                    self._move(earliest)
            return self._now >= deadline

    def _move(self, now: float) -> None:
        self._now = now
        due = {thread for thread, deadline in self._waiting.items() if deadline <= now}
        self._due |= due
        for thread in due:
            del self._waiting[thread]
