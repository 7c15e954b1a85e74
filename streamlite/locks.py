"""Waiting for a lock that threads and processes share.

A `flock` belongs to an open file: it keeps other processes (and other buses in this one) out, but not the threads that
share the descriptor. So a `Guard` is two locks, always taken in this order: a mutex between this bus's threads, then
the file lock. Nobody waits inside the kernel: the file lock is tried, with a back-off from 50 µs to 1 ms, until
`lock_timeout` has passed on the machine's own clock, and nobody ever takes it away from its holder: a holder that was
stopped delays others and harms no data.

A signal handler may raise anywhere, so a guard is held in a `with` statement: taking it undoes itself whatever is
raised meanwhile, and the statement begins where taking it ends. Should the give-back be what is interrupted, the same
thread finds the guard in a block that it has left, and takes it over. One that is still in the block may not take it
again.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

from streamlite.errors import LockTimeoutError
from streamlite.files import FileLock

__all__ = ["Guard", "HoldAll", "block_frame"]

_BACKOFF_FIRST_S: Final = 50e-6
_BACKOFF_MOST_S: Final = 1e-3


def block_frame() -> FrameType:
    """In a generator that a `contextmanager` made: the frame of the `with` statement that it serves."""
    return sys._getframe(3)


class _Hold:
    """One `with` block. What it yields says whether the guard was got."""

    __slots__ = ("_frame", "_got", "_guard", "_timeout")

    def __init__(self, guard: Guard, timeout: float | None, frame: FrameType | None) -> None:
        self._guard = guard
        self._timeout = timeout
        self._frame = frame
        self._got = False

    def __enter__(self) -> bool:
        self._got = self._guard.take(self._timeout, self._frame or sys._getframe(1))
        return self._got

    def __exit__(self, *exc: object) -> None:
        if self._got:
            self._guard.release()


class Guard:
    """One lock between all threads and processes; not re-entrant. `what` names what it guards in messages."""

    __slots__ = ("_frame", "_lock", "_mutex", "_opener", "what")

    def __init__(self, opener: Callable[[], FileLock], what: str) -> None:
        self._opener = opener  # asked at each turn: the descriptor may have left the bounded cache meanwhile
        self._mutex: Any = threading.RLock()  # re-entrant only to know its owner
        self._lock: FileLock | None = None
        self._frame: FrameType | None = None  # of the block that holds it, where that is known
        self.what = what

    def hold(self, timeout: float, frame: FrameType | None = None) -> _Hold:
        """`with guard.hold(s)`: wait at most `s` seconds; `LockTimeoutError` when it stays taken.

        `frame`: of the block, where the statement stands in a generator that serves another `with`: see `block_frame`.
        """
        return _Hold(self, timeout, frame)

    def trying(self) -> _Hold:
        """`with guard.trying() as got`: take it if it is free at once."""
        return _Hold(self, None, None)

    def acquire(self, timeout: float) -> None:
        """As `hold`, for who gives it back by `release`: only where no handler may raise in between."""
        self.take(timeout, None)

    def take(self, timeout: float | None, frame: FrameType | None) -> bool:
        """Take it for the block of `frame`; `None` does not wait. Whatever is raised here, nothing is held."""
        mutex = self._mutex
        if mutex._is_owned() and not self._left_behind():
            if timeout is None:
                return False
            raise LockTimeoutError(
                f"the lock of {self.what} is held by this very thread: a signal handler or finalizer may not write"
            )
        try:
            if mutex.acquire(blocking=False):
                if self._try_file(frame):
                    return True
                mutex.release()
            return timeout is not None and self._wait(timeout, frame)
        except BaseException:
            self._undo()
            raise

    def _try_file(self, frame: FrameType | None) -> bool:
        lock = self._lock = self._opener()
        if not lock.acquire():
            return False
        self._frame = frame
        return True

    def _wait(self, timeout: float, frame: FrameType | None) -> bool:
        mutex = self._mutex
        deadline = time.monotonic() + timeout
        pause = _BACKOFF_FIRST_S
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not mutex.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                break
            if self._try_file(frame):
                return True
            mutex.release()
            time.sleep(min(pause, left))
            pause = min(pause * 2, _BACKOFF_MOST_S)
        raise LockTimeoutError(
            f"the lock of {self.what} stayed taken for {timeout:g} s; nothing was done: its holder may be stopped or "
            "very slow; try again, or raise lock_timeout"
        )

    @property
    def mine(self) -> bool:
        """Whether this thread holds it."""
        return bool(self._mutex._is_owned())

    def is_held_by(self, frame: FrameType) -> bool:
        """Whether it was taken for the block of `frame`."""
        return self._frame is frame and self.mine

    def release(self) -> None:
        """Give it back."""
        try:
            if self._lock is not None:
                self._lock.release()
        finally:
            self._frame = None
            self._mutex.release()

    def _undo(self) -> None:
        if self._mutex._is_owned():
            self.release()

    def _left_behind(self) -> bool:
        """Whether this thread holds it in a block that is over: its give-back was interrupted. It is free then."""
        holder, frame = self._frame, sys._getframe()
        above: FrameType | None = frame
        while above is not None:
            if holder is None or above is holder:
                return False
            above = above.f_back
        self.release()
        return True


class HoldAll:
    """`with HoldAll(guards, s, frame)`: take several, one after the other, within `s` seconds; all of them or none.

    The order is the caller's, and the same for everybody who takes more than one, or two would wait for each other:
    `streamlite.commit` has the rule. `frame`: of the block.
    """

    __slots__ = ("_frame", "_guards", "_timeout")

    def __init__(self, guards: Sequence[Guard], timeout: float, frame: FrameType) -> None:
        self._guards = guards
        self._timeout = timeout
        self._frame = frame

    def __enter__(self) -> None:
        deadline = time.monotonic() + self._timeout
        try:
            for guard in self._guards:
                guard.take(max(deadline - time.monotonic(), 0.0), self._frame)
        except BaseException:
            self._give_back()
            raise

    def __exit__(self, *exc: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for guard in reversed(self._guards):
            if guard.is_held_by(self._frame):
                guard.release()
