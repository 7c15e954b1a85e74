"""The clock seam: what time it is, how long ago, and waiting.

Everything in streamlite that expires, lingers or times out asks a `Clock`, so that a test can bring its own; only the
waits that guard the disk (the sync interval, waiting for a file lock) run on real time, since no test's clock makes a
disk faster. A user's clock needs `time_ms`, `monotonic` and `wait`; the three `worker_` methods tell a virtual clock
when streamlite's own background threads have nothing to do, and may be missing.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from streamlite.errors import ConfigError

__all__ = ["Clock", "SystemClock", "as_clock", "wait_held"]


class Clock:
    """The base of all clocks."""

    def time_ms(self) -> int:
        """Milliseconds since the epoch; may jump."""
        raise TypeError(f"{type(self).__name__} does not define time_ms()")

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        raise TypeError(f"{type(self).__name__} does not define monotonic()")

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        """Wait on `condition`, which the caller holds, until notified or for `timeout` seconds; may return early."""
        raise TypeError(f"{type(self).__name__} does not define wait()")

    def worker_started(self, worker: object) -> None:
        """A background thread of streamlite begins; called in that thread."""

    def worker_stopped(self, worker: object) -> None:
        """It ends; called in that thread."""

    def worker_woken(self, worker: object) -> None:
        """Somebody is about to notify it: it has work from now on."""


class SystemClock(Clock):
    """The machine's clocks."""

    # "may return early" is what lets an endless or absurd timeout be a long one: the system refuses to wait 300 years.

    def time_ms(self) -> int:
        return time.time_ns() // 1_000_000

    # The function itself: what asks for the time a million times a second pays one call for it.
    monotonic = staticmethod(time.monotonic)

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        return condition.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))


def wait_held(clock: Clock, lock: Any, condition: threading.Condition, timeout: float | None) -> None:
    """Wait on a condition of `lock`, an `RLock` that the caller holds once, in a `with` statement.

    A `Condition` gives its lock up while it waits. A signal handler that raises in the moment before it waits, or
    before it has the lock again, leaves it given up: then the statement would fail to give it back.
    """
    try:
        clock.wait(condition, timeout)
    finally:
        if not lock._is_owned():
            lock.acquire()


_NEEDED: Final = ("time_ms", "monotonic", "wait")
_OPTIONAL: Final = ("worker_started", "worker_stopped", "worker_woken")


class _Wrapped(Clock):
    """A user's clock: the three methods that the contract names, and the others where it has them."""

    def __init__(self, clock: object) -> None:
        for name in (*_NEEDED, *(name for name in _OPTIONAL if callable(getattr(clock, name, None)))):
            setattr(self, name, getattr(clock, name))


def as_clock(clock: object | None) -> Clock:
    """`clock` as a `Clock`; the system's when `None`; `ConfigError` when it lacks a method."""
    if clock is None:
        return SystemClock()
    if isinstance(clock, Clock):
        return clock
    missing = [name for name in _NEEDED if not callable(getattr(clock, name, None))]
    if missing:
        raise ConfigError(
            f"clock must have time_ms(), monotonic() and wait(); {clock!r:.60} lacks {', '.join(missing)}"
        )
    return _Wrapped(clock)
