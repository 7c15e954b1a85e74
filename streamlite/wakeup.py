"""Waking those who wait for messages.

Who waits registers first and looks again, then sleeps; who publishes stores the end first, then looks for waiters. So
either the waiter sees the new end, or the writer sees the waiter: no order of the two loses a wake-up inside a process.
From other processes a waiter hears nothing yet: it looks again every `LOOK_AGAIN_S` by itself, and it would have to do
that in any case, since a writer may die between publishing and waking.

A writer pays one attribute load while nobody waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from streamlite.clock import Clock

__all__ = ["LOOK_AGAIN_S", "Bell", "Waiter"]

LOOK_AGAIN_S: Final = 0.5


class Waiter:
    """One place to wait: a consumer's. One thread waits, any thread rings."""

    __slots__ = ("_bell", "_condition", "_rung")

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._condition = threading.Condition(threading.Lock())
        self._rung = False

    def ring(self) -> None:
        """Wake it; if it is not asleep, its next sleep ends at once."""
        with self._condition:
            self._rung = True
            self._condition.notify()

    def wait(self, ready: Callable[[], bool], timeout: float | None) -> None:
        """Sleep until rung or for `timeout` seconds, unless `ready()` holds once this waiter is registered."""
        bell = self._bell
        bell.add(self)
        try:
            if ready():
                return
            with self._condition:
                if not self._rung:
                    bell.clock.wait(self._condition, timeout)
        finally:
            bell.remove(self)
            self._rung = False


class Bell:
    """All waiters of one bus."""

    __slots__ = ("_mutex", "clock", "waiters")

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waiters: tuple[Waiter, ...] = ()
        """Empty while nobody waits: a writer's only look."""
        self._mutex = threading.Lock()  # guards the replacement of `waiters`

    def add(self, waiter: Waiter) -> None:
        """Register; the caller looks again afterwards, before it sleeps."""
        with self._mutex:
            self.waiters = (*self.waiters, waiter)

    def remove(self, waiter: Waiter) -> None:
        """Unregister."""
        with self._mutex:
            self.waiters = tuple(other for other in self.waiters if other is not waiter)

    def ring(self) -> None:
        """Wake everybody who waits; called after a publication, with no lock held."""
        for waiter in self.waiters:
            waiter.ring()
