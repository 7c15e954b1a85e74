"""Waiting for a lock that threads and processes share.

A `flock` belongs to an open file: it keeps other processes (and other buses in this one) out, but not the threads that
share the descriptor. So a `Guard` is two locks, always taken in this order: a mutex between this bus's threads, then
the file lock. Nobody waits inside the kernel: the file lock is tried, with a back-off from 50 µs to 1 ms, until
`lock_timeout` has passed on the machine's own clock, and nobody ever takes it away from its holder: a holder that was
stopped delays others and harms no data.

A signal handler may raise anywhere between two lines of Python, in a context manager's `__exit__` as well, and then the
lock would stay taken for as long as anybody keeps the traceback. So what is done under a guard is a function that the
guard calls (`run`), and giving back is a call of C in a `finally` block, before which nothing runs: handlers run at the
entry of Python functions, at the end of a round of a loop, and after a call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from streamlite.errors import LockTimeoutError
from streamlite.files import FileLock

__all__ = ["Guard", "run_all"]

_T = TypeVar("_T")

_BACKOFF_FIRST_S: Final = 50e-6
_BACKOFF_MOST_S: Final = 1e-3


class Guard:
    """One lock between all threads and processes; not re-entrant. `what` names what it guards in messages."""

    __slots__ = ("_lock", "_mutex", "_opener", "what")

    def __init__(self, opener: Callable[[], FileLock], what: str) -> None:
        self._opener = opener  # asked at each turn: the descriptor may have left the bounded cache meanwhile
        self._mutex: Any = threading.RLock()  # re-entrant only to know its owner
        self._lock: FileLock | None = None  # where it is held by `acquire`
        self.what = what

    def run(self, call: Callable[[], _T], timeout: float) -> _T:
        """Call it with the lock held, waiting for it at most `timeout` seconds: `LockTimeoutError`."""
        mutex = self._mutex
        if mutex._is_owned():
            raise self._held_here()
        deadline = time.monotonic() + timeout
        pause, left = _BACKOFF_FIRST_S, timeout
        try:
            while mutex.acquire(timeout=min(max(left, 0), threading.TIMEOUT_MAX)):
                lock = self._opener()
                unlock = lock.unlock
                try:
                    if lock.acquire():
                        return call()
                finally:
                    try:  # noqa: SIM105 - `suppress` is Python, and may be interrupted before it begins
                        unlock()
                    except ValueError:
                        pass  # the child of a fork: it is the parent's
                mutex.release()
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                time.sleep(min(pause, left))
                pause = min(pause * 2, _BACKOFF_MOST_S)
        finally:
            # A handler may have raised when it was just taken, or not yet.
            try:  # noqa: SIM105 - as above
                mutex.release()
            except RuntimeError:
                pass  # not held
        raise self._stayed_taken(timeout)

    def attempt(self, call: Callable[[], _T]) -> _T | None:
        """Call it with the lock held, if it is free at once; `None` where it is not."""
        mutex = self._mutex
        if mutex._is_owned():
            return None
        try:
            if mutex.acquire(blocking=False):
                lock = self._opener()
                unlock = lock.unlock
                try:
                    if lock.acquire():
                        return call()
                finally:
                    try:  # noqa: SIM105 - `suppress` is Python, and may be interrupted before it begins
                        unlock()
                    except ValueError:
                        pass  # the child of a fork: it is the parent's
        finally:
            try:  # noqa: SIM105 - as above
                mutex.release()
            except RuntimeError:
                pass  # not held
        return None

    def acquire(self, timeout: float) -> None:
        """Take it, to be given back by `release`: only where no handler may raise in between."""
        if self._mutex._is_owned():
            raise self._held_here()
        deadline = time.monotonic() + timeout
        while self._mutex.acquire(timeout=min(max(deadline - time.monotonic(), 0), threading.TIMEOUT_MAX)):
            lock = self._opener()
            if lock.acquire():
                self._lock = lock
                return
            self._mutex.release()
            time.sleep(_BACKOFF_MOST_S)
        raise self._stayed_taken(timeout)

    def release(self) -> None:
        """Give back what `acquire` took."""
        lock, self._lock = self._lock, None
        assert lock is not None
        lock.release()
        self._mutex.release()

    def _held_here(self) -> LockTimeoutError:
        return LockTimeoutError(
            f"the lock of {self.what} is held by this very thread: a signal handler or finalizer may not write"
        )

    def _stayed_taken(self, timeout: float) -> LockTimeoutError:
        return LockTimeoutError(
            f"the lock of {self.what} stayed taken for {timeout:g} s; nothing was done: its holder may be stopped or "
            "very slow; try again, or raise lock_timeout"
        )

    @property
    def mine(self) -> bool:
        """Whether this thread holds it."""
        return bool(self._mutex._is_owned())


def run_all(guards: Sequence[Guard], call: Callable[[], _T], timeout: float) -> _T:
    """Call it with all of these held, taken one after the other; `LockTimeoutError` where one of them stays taken.

    The order is the caller's, and the same for everybody who takes more than one, or two would wait for each other:
    `streamlite.commit` has the rule. `timeout`: for each.
    """
    for guard in reversed(guards):
        call = partial(guard.run, call, timeout)
    return call()
