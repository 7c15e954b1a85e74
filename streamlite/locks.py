"""Waiting for a lock that threads and processes share.

A `flock` belongs to an open file: it keeps other processes (and other buses in this one) out, but not the threads that
share the descriptor. So a `Guard` is two locks, always taken in this order: a mutex between this bus's threads, then
the file lock. Nobody waits inside the kernel: the file lock is tried, with a back-off from 50 µs to 1 ms, until
`lock_timeout` has passed on the machine's own clock, and nobody ever takes it away from its holder: a holder that was
stopped delays others and harms no data.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from streamlite.errors import LockTimeoutError
from streamlite.files import FileLock

__all__ = ["Guard"]

_BACKOFF_FIRST_S: Final = 50e-6
_BACKOFF_MOST_S: Final = 1e-3


class Guard:
    """One lock between all threads and processes; not re-entrant. `what` names what it guards in messages."""

    __slots__ = ("_held", "_mutex", "_opener", "_owner", "what")

    def __init__(self, opener: Callable[[], FileLock], what: str) -> None:
        self._opener = opener  # asked at each turn: the descriptor may have left the bounded cache meanwhile
        self._mutex = threading.Lock()
        self._held: FileLock | None = None
        self._owner = 0
        self.what = what

    def try_acquire(self) -> bool:
        """Take it if it is free at once."""
        if not self._mutex.acquire(blocking=False):
            return False
        return self._try_file()

    def _try_file(self) -> bool:
        try:
            lock = self._opener()
            if lock.acquire():
                self._held = lock
                self._owner = threading.get_ident()
                return True
        except BaseException:
            self._mutex.release()
            raise
        self._mutex.release()
        return False

    def acquire(self, timeout: float) -> None:
        """Take it, waiting at most `timeout` seconds; `LockTimeoutError` when it stays taken."""
        if self.try_acquire():
            return
        if self._owner == threading.get_ident():
            raise LockTimeoutError(
                f"the lock of {self.what} is held by this very thread: a signal handler or finalizer may not write"
            )
        deadline = time.monotonic() + timeout
        pause = _BACKOFF_FIRST_S
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not self._mutex.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                break
            if self._try_file():
                return
            time.sleep(min(pause, left))
            pause = min(pause * 2, _BACKOFF_MOST_S)
        raise LockTimeoutError(
            f"the lock of {self.what} stayed taken for {timeout:g} s; nothing was done: its holder may be stopped or "
            "very slow; try again, or raise lock_timeout"
        )

    def release(self) -> None:
        """Give it back."""
        held, self._held, self._owner = self._held, None, 0
        try:
            if held is not None:
                held.release()
        finally:
            self._mutex.release()

    @property
    def mine(self) -> bool:
        """Whether the calling thread holds it."""
        return self._owner == threading.get_ident()
