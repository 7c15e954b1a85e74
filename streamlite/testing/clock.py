"""A clock that tests move, and that moves itself when nothing else can happen.

`advance` moves it. Beyond that it jumps to the earliest deadline when all that streamlite runs is waiting: at least one
caller sits in a blocking call, and every background thread waits too. So `poll(timeout=60)` on an empty topic returns
at once, sixty seconds later by this clock, and a message that a background thread is still writing arrives first.

The rules that make it exact:

* A thread counts as busy from the moment somebody notifies it, not from when it gets to run: the clock stands in the
  `notify` of every condition that was waited on with it. Without that: a worker publishes, rings a consumer and goes to
  wait; the consumer has not run yet, all seem to wait, and the clock jumps to the end of the consumer's timeout.
* A worker that was woken for the first time counts as busy before its thread runs.
* A jump ends all waits that are due, and nobody jumps again before the threads have left them.

Waiting threads look every half millisecond of real time whether they may jump, so no thread ever takes another's lock.
A notification that comes just when such a look begins is remembered by the clock; the condition would forget it.
"""

from __future__ import annotations

import math
import threading
from typing import Final

from streamlite.clock import Clock
from streamlite.errors import ConfigError

__all__ = ["VirtualClock"]

_LOOK_S: Final = 0.0005
_FOREVER: Final = math.inf


class _Wait:
    """One call of `wait`, by one thread."""

    __slots__ = ("condition", "deadline", "notified", "thread")

    def __init__(self, condition: threading.Condition, deadline: float) -> None:
        self.condition = condition
        self.deadline = deadline
        self.thread = threading.get_ident()
        self.notified = False


class _Notify:
    """Stands in for a condition's `notify` and tells the clock; called with the condition held, as `notify` is."""

    def __init__(self, clock: VirtualClock, condition: threading.Condition) -> None:
        self.clock = clock
        self._condition = condition
        self._notify = condition.notify

    def __call__(self, n: int = 1) -> None:
        self._notify(n)
        self.clock._notified(self._condition)


class VirtualClock(Clock):
    """Time that stands still until `advance` is called, or until everything waits.

    `start_ms`: what `time_ms()` says at first, in ms since the epoch.
    """

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self._start_ms = start_ms
        self._now = 0.0
        # Guards all below; taken after a condition's lock, never before one. Re-entrant, because a signal handler may
        # notify in a thread that has it: so whoever goes through a set here goes through a copy.
        self._mutex = threading.RLock()
        self._workers: dict[object, int] = {}  # worker -> thread that runs it, 0 before that began
        self._waits: set[_Wait] = set()  # whose threads wait
        self._leaving: set[_Wait] = set()  # due or notified, but their threads have not left them yet

    def __repr__(self) -> str:
        return f"<VirtualClock {self._now:.3f} s after start, {len(self._waits)} waiting>"

    def time_ms(self) -> int:
        return self._start_ms + round(self._now * 1000)

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`; what is due by then happens at the next look of who waits for it."""
        if not 0 <= seconds < _FOREVER:
            raise ConfigError(f"time goes on by a number of seconds, at least 0; found advance({seconds!r})")
        with self._mutex:
            self._move(self._now + seconds)

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        if getattr(condition.notify, "clock", None) is not self:
            condition.notify = _Notify(self, condition)  # type: ignore[method-assign]
        wait = _Wait(condition, _FOREVER)
        try:
            with self._mutex:
                if timeout is not None:
                    wait.deadline = self._now + max(0.0, timeout)
                self._waits.add(wait)
            while not self._is_over(wait):
                condition.wait(_LOOK_S)
        finally:
            with self._mutex:
                self._waits.discard(wait)
                self._leaving.discard(wait)
        return wait.notified

    def worker_started(self, worker: object) -> None:
        with self._mutex:
            self._workers[worker] = threading.get_ident()

    def worker_stopped(self, worker: object) -> None:
        with self._mutex:
            self._workers.pop(worker, None)

    def worker_woken(self, worker: object) -> None:
        with self._mutex:
            # One that has not started yet is entered at once, or the clock could jump before its thread runs.
            self._workers.setdefault(worker, 0)

    def _notified(self, condition: threading.Condition) -> None:
        """Which of several threads `notify` chose is not known: all may return early, and do."""
        with self._mutex:
            for wait in self._waits | self._leaving:
                if wait.condition is condition:
                    wait.notified = True
                    self._end(wait)

    def _end(self, wait: _Wait) -> None:
        self._waits.discard(wait)
        self._leaving.add(wait)

    def _is_over(self, wait: _Wait) -> bool:
        """Whether `wait` has ended; ends what is due first if all wait."""
        with self._mutex:
            if self._now >= wait.deadline:
                self._end(wait)
            elif wait in self._waits and self._all_wait():
                earliest = min(one.deadline for one in self._waits.copy())
                if earliest < _FOREVER:
                    self._move(earliest)
            return wait not in self._waits

    def _all_wait(self) -> bool:
        """Whether every worker waits, at least one caller too, and nobody is on the way out of a wait."""
        threads = {wait.thread for wait in self._waits.copy()}
        workers = set(self._workers.values())
        return not self._leaving and workers <= threads and not threads <= workers

    def _move(self, now: float) -> None:
        self._now = now
        for wait in self._waits.copy():
            if wait.deadline <= now:
                self._end(wait)
