"""Interrupting loops now and then, so that they look up from the messages in their hands.

A consumer's loop hands out thousands of messages a millisecond and must not ask the clock for each whether a commit is
due. So one thread a bus sets a mark in every consumer whose loop is running, twenty times a second, and the loop finds
it with the check it makes anyway. The work (committing, showing that it lives) is the loop's own, in its own thread: a
loop that hangs shows nothing.
"""

from __future__ import annotations

from typing import Final, Protocol

from streamlite.clock import Clock
from streamlite.worker import Worker

__all__ = ["Ticker"]

INTERVAL_S: Final = 0.05


class Ticked(Protocol):
    """A consumer."""

    def tick(self) -> None:
        """Look up."""


class Ticker:
    """Ticks those it watches; its thread sleeps while there are none."""

    def __init__(self, clock: Clock) -> None:
        self._watched: dict[Ticked, None] = {}
        self.worker = Worker("ticker", self._step, clock)

    def watch(self, one: Ticked) -> None:
        """Begin to tick it."""
        if one not in self._watched:
            self._watched[one] = None
            if self.worker.idle:
                self.worker.wake()

    def forget(self, one: Ticked) -> None:
        """Tick it no more."""
        self._watched.pop(one, None)

    def _step(self) -> float | None:
        watched = list(self._watched)
        for one in watched:
            one.tick()
        return INTERVAL_S if watched else None
