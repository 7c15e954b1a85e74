"""A background thread that does one thing when it is due.

`step` does what is due and says in how many seconds it wants to be called again, or `None`: when woken. Whoever adds
work looks at `idle` and wakes the worker only then, so that a burst costs no notification a message. No wake-up is lost:
before a wait without a deadline the worker sets `idle` and calls `step` once more, so either that call sees the work, or
who added it sees `idle`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from streamlite.clock import Clock

__all__ = ["Worker"]

logger = logging.getLogger("streamlite")

_AFTER_ERROR_S = 1.0


class Worker:
    """One daemon thread, started when it is first woken."""

    def __init__(self, name: str, step: Callable[[], float | None], clock: Clock) -> None:
        self.idle = True
        self._name = f"streamlite-{name}"
        self._step = step
        self._clock = clock
        self._condition = threading.Condition(threading.Lock())
        self._woken = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have `step` called soon; starts the thread when there is none yet. Nothing after `stop`."""
        with self._condition:
            if self._stopping:
                return
            self._woken = True
            self.idle = False
            self._clock.worker_woken(self)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def stop(self, timeout: float | None = None) -> None:
        """Ask the thread to end after the step it is in, and wait for that; not when called from itself."""
        with self._condition:
            self._stopping = True
            self._clock.worker_woken(self)
            self._condition.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        self._clock.worker_started(self)
        try:
            while not self._stopping:
                delay = self._call()
                if delay is None:
                    self.idle = True
                    delay = self._call()
                self._wait(delay)
        finally:
            self._clock.worker_stopped(self)

    def _call(self) -> float | None:
        try:
            return self._step()
        except Exception:
            logger.exception("%s failed; it goes on in %s s", self._name, _AFTER_ERROR_S)
            return _AFTER_ERROR_S

    def _wait(self, delay: float | None) -> None:
        with self._condition:
            deadline = None if delay is None else self._clock.monotonic() + delay
            self.idle = deadline is None and not self._woken
            while not self._woken and not self._stopping:
                left = None if deadline is None else deadline - self._clock.monotonic()
                if left is not None and left <= 0:
                    break
                self._clock.wait(self._condition, left)
            self._woken = False
            self.idle = False
