"""Processes for the tests that kill, stop and fork them: forked, not started, so that a thousand cost little.

`Forked` runs a function of the test in a child of this process, with a `Link` to talk in lines of JSON both ways. What
a child has written before it was killed can still be read: that is what the oracles of these tests are made of. A child
ends with its parent (a signal of the kernel), with an error it tells of, or after `LIFE_S` at the latest.

No bus of the test should be open while it forks: only the tests of forks want that.

`SharedClock` is a clock that all children forked after it share, and that the test moves on: so a process that is
stopped is late at once, and nobody has to wait for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import random
import select
import shutil
import signal
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamlite.clock import Clock

PATIENCE = 30.0
"""Seconds after which what should have come counts as missing; these machines are slow and shared."""
LIFE_S = 120
"""A child that lives longer than that hangs."""
_PR_SET_PDEATHSIG = 1
_PIPE_BYTES = 1 << 20
_MEMORY = Path("/dev/shm")

_parents_ends: weakref.WeakSet[Forked] = weakref.WeakSet()


class Link:
    """A child's side."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._mutex = threading.Lock()
        self._buffer = b""

    def tell(self, *words: Any) -> None:
        """A line for the test, in one piece, from any thread."""
        line = memoryview(msgspec.json.encode(words) + b"\n")
        with self._mutex:
            while line:
                line = line[os.write(self._outgoing, line) :]

    def again(self) -> Link:
        """The same for a child of the child: one of the threads that it does not have may have held the mutex."""
        return Link(self._incoming, self._outgoing)

    def told(self) -> list[Any]:
        """The next line from the test; empty when the test has ended."""
        while b"\n" not in self._buffer:
            data = os.read(self._incoming, 65536)
            if not data:
                return []
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: list[Any] = msgspec.json.decode(line)
        return found


class Forked:
    """A child of this process that runs `act`."""

    def __init__(self, act: Callable[[Link], object], name: str = "a child") -> None:
        self.name = name
        self.status: int | None = None
        self._buffer = b""
        self._lines: list[list[Any]] = []
        self._ended = False
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of threads: these children know
            self.pid = os.fork()
        if not self.pid:
            _run(act, Link(theirs_in, theirs_out), [self._in, self._out])
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(self._in, False)
        with contextlib.suppress(ImportError, OSError):
            from fcntl import F_SETPIPE_SZ, fcntl

            fcntl(self._in, F_SETPIPE_SZ, _PIPE_BYTES)
        self._pidfd = os.pidfd_open(self.pid)
        _parents_ends.add(self)

    def fileno(self) -> int:
        """What becomes readable when it says something, or ends."""
        return self._in

    def say(self, *words: Any) -> None:
        os.write(self._out, msgspec.json.encode(words) + b"\n")

    def lines(self) -> list[list[Any]]:
        """The whole lines that are there, without waiting; one that a kill cut off never is."""
        while not self._ended:
            try:
                data = os.read(self._in, _PIPE_BYTES)
            except BlockingIOError:
                break
            self._ended = not data
            *whole, self._buffer = (self._buffer + data).split(b"\n")
            self._lines += [msgspec.json.decode(line) for line in whole]
        found, self._lines = self._lines, []
        for line in found:
            assert line[0] != "error", f"{self.name} failed:\n{line[1]}"
        return found

    @property
    def ended(self) -> bool:
        """Whether its side of the pipe is closed, so that no line comes any more."""
        return self._ended

    def line(self, word: str) -> list[Any]:
        """What follows `word` in the next line, which must begin with it."""
        found = self.next()
        assert found[0] == word, f"{self.name} was to say {word!r} and said {found}"
        return found[1:]

    def next(self) -> list[Any]:
        """The next line, whatever it is."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = self.lines()
            if found:
                self._lines = found[1:]
                return found[0]
            assert not self._ended, f"{self.name} has ended (status {self.wait()}) and says no more"
            left = deadline - time.monotonic()
            assert left > 0, f"{self.name} says nothing"
            readable([self._in], left)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """SIGSTOP, until it has had its effect."""
        self.signal(signal.SIGSTOP)
        self.wait_stopped()

    def wait_stopped(self) -> None:
        """Until it is stopped, by itself or by another."""
        deadline = time.monotonic() + PATIENCE
        while (found := os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG)) is None:
            assert time.monotonic() < deadline, f"{self.name} does not stop, it says {self.lines()}"
            time.sleep(0.0002)
        assert found.si_code == os.CLD_STOPPED, f"{self.name} has ended: {self.lines()}"

    def wait(self) -> int:
        """Its exit status once it has ended; that of `signal` n is -n."""
        if self.status is None:
            assert readable([self._pidfd], PATIENCE), f"{self.name} does not end"
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self) -> None:
        """SIGKILL, until it is gone; its last words can still be read."""
        if self.status is None:
            self.signal(signal.SIGKILL)
            self.wait()

    def close(self) -> None:
        """End it, and forget what it said."""
        self.kill()
        for descriptor in (self._in, self._out, self._pidfd):
            os.close(descriptor)
        _parents_ends.discard(self)


def _run(act: Callable[[Link], object], link: Link, ours: list[int]) -> None:
    """The whole life of a child. It never returns into the test, and no handler of the test runs in it."""
    status = 1
    try:
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0)
        threading.Thread(target=_watch, daemon=True).start()
        for descriptor in ours:
            os.close(descriptor)
        for other in list(_parents_ends):
            for descriptor in (other._in, other._out, other._pidfd):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        act(link)
        status = 0
    except BaseException:  # noqa: BLE001 - told to the test, which fails by it
        with contextlib.suppress(OSError):
            link.tell("error", traceback.format_exc())
    finally:
        os._exit(status)


def _watch() -> None:
    """End a child that hangs, and say where. (faulthandler's own timer waits for ever in the child of a fork.)"""
    time.sleep(LIFE_S)
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)


@contextlib.contextmanager
def children() -> Iterator[Callable[..., Forked]]:
    """Forks children, and ends them all in the end."""
    started: list[Forked] = []

    def start(act: Callable[[Link], object], name: str = "a child") -> Forked:
        started.append(Forked(act, name))
        return started[-1]

    try:
        yield start
    finally:
        for child in started:
            with contextlib.suppress(AssertionError):
                child.close()


@contextlib.contextmanager
def scratch(seed: object, *, memory: bool = False) -> Iterator[Path]:
    """A directory for one case, on a tmpfs where there is one and it is wanted; it stays where something was found."""
    where = str(_MEMORY) if memory and _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="streamlite-", dir=where))
    try:
        yield directory
    except Exception as error:
        raise AssertionError(f"seed {seed}, what there was is in {directory}: {error!r}") from error
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory)


def readable(descriptors: Sequence[int], timeout: float) -> list[int]:
    """Those that can be read from, or have ended, within that time; by poll, which knows numbers above 1,023 too."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in waiting.poll(timeout * 1000)]


def spin(rng: random.Random, most: int = 20_000) -> None:
    """A moment of a length that is drawn: mostly a few, sometimes some hundred microseconds."""
    for _ in range(int(most ** rng.random())):
        pass


class SharedClock(Clock):
    """The machine's clocks and what the test added to them, for this process and all it forks from now on.

    `date_ms` is added to the time of day only, as by somebody who sets it.
    """

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")

    def time_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self._words[0] + self._words[1]

    def monotonic(self) -> float:
        return time.monotonic() + self._words[0] / 1000

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        return condition.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def advance(self, seconds: float) -> None:
        self._words[0] += round(seconds * 1000)

    def set_date(self, by_ms: int) -> None:
        self._words[1] += by_ms
