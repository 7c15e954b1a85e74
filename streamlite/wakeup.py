"""Waking those who wait for messages, in this process and in others.

Who waits arms himself first and looks again, then sleeps; who publishes stores the end first, then looks for the armed.
So either the waiter sees the new end, or the writer sees the waiter. Between processes the two orders are stores and
loads of different words, which x86 keeps apart only by what stands between them, and a writer may die between
publishing and waking: so every wait looks again by itself each `LOOK_AGAIN_S`.

Between processes, a page of words is shared. A waiter has one of its words, by a lock file for as long as it lives, and
a FIFO named by the word's place and a random number; armed, the word is that number. The first word of the page says
whether anybody is armed at all: a writer pays one load while nobody waits. A writer that wakes takes the mark away, so
that a burst wakes each waiter once. docs/architecture.md has the figures of the candidates; a FIFO in the same process
is no slower than a condition, so a bus on disk has only this one way.

In memory, or on a test's clock, a waiter is a condition that waits by that clock (`Waiter`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from streamlite.clock import Clock, SystemClock, wait_held
from streamlite.errors import StorageError, StreamliteError
from streamlite.files import Fifo, FileLock, Files, random_number

__all__ = ["LOOK_AGAIN_S", "Bell", "FifoWaiter", "Waiter"]

LOOK_AGAIN_S: Final = 0.5
DIRECTORY: Final = "wake"
_PAGE: Final = 4096
_WORDS: Final = _PAGE // 8
_ANYBODY: Final = 0
_FEW: Final = 16
_NOBODY: Final = bytes(8 * (_WORDS - _FEW))


class Waiter:
    """One place to wait: a consumer's. One thread waits, any thread rings."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._lock = threading.RLock()  # re-entrant: a signal handler may ring in the thread that waits
        self._condition = threading.Condition(self._lock)
        self._rung = False

    def ring(self) -> None:
        """Wake it; if it is not asleep, its next sleep ends at once."""
        with self._lock:
            self._rung = True
            self._condition.notify()

    def wait(self, ready: Callable[[], bool], timeout: float | None) -> None:
        """Sleep until rung or for `timeout` seconds, unless `ready()` holds once this waiter is armed."""
        self._bell.add(self)
        try:
            if ready():
                return
            with self._lock:
                if not self._rung:
                    wait_held(self._bell.clock, self._lock, self._condition, timeout)
        finally:
            self._bell.remove(self)
            self._rung = False

    def close(self) -> None:
        """Nobody waits here any more."""


class FifoWaiter(Waiter):
    """A place to wait that other processes can ring. It has a word of the page from its first wait on."""

    def __init__(self, bell: Bell, files: Files, words: memoryview) -> None:
        super().__init__(bell)
        self._files = files
        self._words = words
        self._fifo: Fifo | None = None
        self._word_lock: FileLock | None = None
        self._place = 0
        self._number = 0

    def ring(self) -> None:
        self._rung = True
        fifo = self._fifo
        if fifo is not None:
            fifo.ring()

    def arm(self) -> Fifo | None:
        """Say that somebody sleeps here; `None` where all words are taken and only looking again helps."""
        if self._fifo is None and not self._take_word():
            return None
        fifo = self._fifo
        assert fifo is not None
        fifo.take()  # a ring that comes after this is of a publication that is looked for once more before the sleep
        self._words[self._place] = self._number
        self._words[_ANYBODY] = 1
        return fifo

    def disarm(self) -> None:
        """He is awake."""
        if self._fifo is not None:
            self._words[self._place] = 0

    def wait(self, ready: Callable[[], bool], timeout: float | None) -> None:
        fifo = self.arm()
        try:
            if self._rung or ready():
                return
            if fifo is None:
                with self._lock:
                    pause = min(timeout or LOOK_AGAIN_S, LOOK_AGAIN_S) / 10
                    wait_held(self._bell.clock, self._lock, self._condition, pause)
            else:
                fifo.wait(timeout)
        finally:
            self.disarm()
            self._rung = False

    def _take_word(self) -> bool:
        for place in range(1, _WORDS):
            lock = self._files.lock(f"{DIRECTORY}/{place}.lock")
            if lock.acquire():
                break
        else:
            return False
        self._place, self._word_lock, self._number = place, lock, random_number() | 1
        self._fifo = self._files.fifo(_path(place, self._number), create=True)
        self._bell.know(place, self._number, self._fifo)
        return True

    def close(self) -> None:
        lock, self._word_lock, self._fifo = self._word_lock, None, None
        if lock is not None:
            self._words[self._place] = 0
            self._bell.know(self._place, 0, None)
            self._files.remove(_path(self._place, self._number))
            lock.release()


def _path(place: int, number: int) -> str:
    return f"{DIRECTORY}/{place}.{number:016x}"


class Bell:
    """All who wait for messages of one bus."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waiters: tuple[Waiter, ...] = ()
        """Those of this process that are no FIFOs; empty while none of them waits."""
        self.words: memoryview = memoryview(bytes(8)).cast("Q")
        """The shared page; its first word is not 0 while somebody may be armed: a writer's only look."""
        self._files: Files | None = None
        self._fifos: dict[int, tuple[int, Fifo]] = {}  # place -> number and FIFO of whom we rang last there
        self._mutex = threading.Lock()  # guards the replacement of `waiters`, and _fifos

    def share(self, files: Files, *, first: bool) -> None:
        """Ring other processes too. The first to open the bus removes what dead ones left."""
        files.make_dir(DIRECTORY)
        if first:
            for name in files.list(DIRECTORY):
                if not name.endswith(".lock") and name != "words":
                    files.remove(f"{DIRECTORY}/{name}")
        self.words = files.map(f"{DIRECTORY}/words", 0, _PAGE).cast("Q")
        self._files = files

    def waiter(self) -> Waiter:
        """A new place to wait."""
        if self._files is not None and isinstance(self.clock, SystemClock):
            return FifoWaiter(self, self._files, self.words)
        return Waiter(self)

    def know(self, place: int, number: int, fifo: Fifo | None) -> None:
        """Who waits at that place is of this process: ringing him takes no second descriptor."""
        with self._mutex:
            self._fifos.pop(place, None)
            if fifo is not None:
                self._fifos[place] = number, fifo

    def add(self, waiter: Waiter) -> None:
        """Register; the caller looks again afterwards, before it sleeps."""
        with self._mutex:
            self.waiters = (*self.waiters, waiter)

    def remove(self, waiter: Waiter) -> None:
        """Unregister."""
        with self._mutex:
            self.waiters = tuple(other for other in self.waiters if other is not waiter)

    def ring(self) -> None:
        """Wake everybody who waits; called after a publication."""
        for waiter in self.waiters:
            waiter.ring()
        if self.words[_ANYBODY]:
            self._ring_armed()

    def _ring_armed(self) -> None:
        words = self.words
        # Before the others are looked at: who arms himself later sets it again.
        words[_ANYBODY] = 0
        # The lowest places are taken first, and few buses have more waiters: the rest is compared in one go.
        numbers = words[:_FEW].tolist()
        if words[_FEW:].tobytes() != _NOBODY:
            numbers = words.tolist()
        numbers[_ANYBODY] = 0
        for number in filter(None, numbers):
            place = numbers.index(number)
            words[place] = 0
            self._ring_fifo(place, number)

    def _ring_fifo(self, place: int, number: int) -> None:
        with self._mutex:
            known = self._fifos.get(place)
        try:
            if known is None or known[0] != number:
                assert self._files is not None
                known = (number, self._files.fifo(_path(place, number)))
                with self._mutex:
                    self._fifos[place] = known
            known[1].ring()
        except StorageError:
            return  # he is gone, or has no descriptor left: he looks again by himself
        except StreamliteError:
            return  # this is the child of a fork
