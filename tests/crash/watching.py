"""What a test must not overlook: an undeclared error in a background thread, and a call that never ends."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from streamlite.errors import StreamliteError

__all__ = ["Logged", "ends_within", "watched"]


class Logged(logging.Handler):
    """Keeps what streamlite logged, and of that the errors that are none of its hierarchy."""

    def __init__(self) -> None:
        super().__init__()
        self.undeclared: list[BaseException] = []
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, StreamliteError):
            self.undeclared.append(error)
        if record.levelno >= logging.WARNING:
            self.said.append(record.getMessage())

    def clear(self) -> None:
        """Forget what was said so far."""
        self.undeclared.clear()
        self.said.clear()


@contextmanager
def watched() -> Iterator[Logged]:
    """What streamlite logs is kept instead of printed."""
    handler, logger = Logged(), logging.getLogger("streamlite")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """An `AssertionError` in the middle of what takes longer; only in the main thread, where signals are handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
