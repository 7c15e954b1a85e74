"""A background thread that does one thing when it is due.

`step` does what is due and says in how many seconds it wants to be called again, or `None`: when woken. Whoever adds
work looks at `idle` and wakes the worker only then, so that a burst costs no notification a message. No wake-up is
lost: before a wait without a deadline the worker sets `idle` and calls `step` once more, so either that call sees the
work, or who added it sees `idle`. While it waits with a deadline it is not idle: what is added then is for that time.

`wake` may be called by finalizers and signal handlers, though their own thread may be inside; `stop` may not.
"""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Callable

from streamlite.clock import Clock
from streamlite.errors import StorageError

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
        # Guards all below. Taken itself and not through the condition, whose `with` a signal handler can cut in two.
        # Re-entrant, because a signal handler or finalizer that sends may run in a thread that is waking.
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._woken = False
        self._stopping = False
        self._running = False  # whether a thread is in `_run`
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        if self._stopping:
            return f"<Worker {self._name}: stopped>"
        return f"<Worker {self._name}: {'not started' if self._thread is None else 'idle' if self.idle else 'busy'}>"

    def wake(self) -> None:
        """Have `step` called soon; starts the thread when there is none yet. Nothing after `stop`.

        `StorageError` where the system has no thread to give; the next call tries again.
        """
        with self._lock:
            if self._stopping:
                return
            self._clock.worker_woken(self)
            if self._thread is None:
                self._start()  # its first step is still to come: no need to say that it is woken
            else:
                self._woken = True
                self._condition.notify_all()
            # Last: should a signal handler raise before, the next who adds work comes here again.
            self.idle = False

    def _start(self) -> None:
        # `Thread.start` waits on a condition, which a signal handler that raises would leave locked, and the new thread
        # would never begin. So it is called where no handler runs, in a thread made by one call of C, and waited for.
        # Should the wait be cut off and two be started, one of them ends at once (`_run`).
        failed: list[Exception] = []
        over = threading.Lock()
        over.acquire()

        def start() -> None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError as error:
                failed.append(error)
            finally:
                over.release()

        try:
            _thread.start_new_thread(start, ())
            over.acquire()
        except RuntimeError as error:
            failed.append(error)
        if failed:
            self._clock.worker_stopped(self)  # or a virtual clock would wait for it for ever
            raise StorageError(
                f"cannot start the thread {self._name}: {failed[0]}; nothing was lost: end other threads, and try again"
            ) from failed[0]

    def stop(self, timeout: float | None = None) -> None:
        """Ask the thread to end after the step it is in, and wait for that; not when called from itself."""
        with self._lock:
            thread = self._thread
            if thread is not None and not self._stopping:
                # Before `_stopping` is set: a clock that heard of it after the thread said goodbye would wait for ever.
                self._clock.worker_woken(self)
            self._stopping = True
            self._condition.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def _run(self) -> None:
        with self._lock:
            if self._running:
                return
            self._running = True
            self._thread = threading.current_thread()
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
        except BaseException:  # a callback's sys.exit() must not end what everybody waits for either
            logger.exception("%s failed; it goes on in %s s", self._name, _AFTER_ERROR_S)
            return _AFTER_ERROR_S

    def _wait(self, delay: float | None) -> None:
        with self._lock:
            deadline = None if delay is None else self._clock.monotonic() + delay
            self.idle = deadline is None and not self._woken
            while not self._woken and not self._stopping:
                left = None if deadline is None else deadline - self._clock.monotonic()
                if left is not None and left <= 0:
                    break
                self._clock.wait(self._condition, left)
            self._woken = False
            self.idle = False
