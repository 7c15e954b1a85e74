"""A bus on a disk that fails when the test says so, in processes that die where the test says so.

```
faults = Faults()                        # a disk in memory; Faults(path) for a directory
with faults.open() as bus: ...           # the same options as streamlite.open
with faults.failing("write"): ...        # every write fails with EIO
with faults.full_disk(): ...             # every write that needs room fails with ENOSPC
with faults.crashing("commit"): ...      # the process ends where it would commit; what follows is another process
with faults.open() as bus: ...           # ... which finds what the first one left
```

It is the same engine on the same files seam as ever: what fails is the call to the operating system, so what the code
under test sees is what it would see. A crash is one of the process: what was written is there, as after SIGKILL; to
lose what was not synced takes a machine that stops, which `crashing` does not do.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Final, NamedTuple

from streamlite.bus import Bus
from streamlite.clock import as_clock
from streamlite.config import check_choice, check_int
from streamlite.engine import Engine
from streamlite.errors import ConfigError, StorageError, UnsupportedError
from streamlite.files import Fifo, File, FileLock, Files
from streamlite.files.memory import MemoryFiles

__all__ = ["Crash", "Faults"]

_CALLS: Final = ("write", "sync", "read", "commit", "any")
_COMMITS: Final = "topics/__offsets/*"


class Crash(SystemExit):
    """The process ended here. No `Exception`: a real one runs no handler, so the code under test must not catch it."""


class _Rule(NamedTuple):
    call: str
    path: str
    skip: int
    act: Callable[[str], object]


class Faults:
    """A disk, and what goes wrong with it. `location`: a directory, or `None` for memory.

    Buses opened with `open` share it as several processes would share a directory. One thing goes wrong at a time.
    """

    def __init__(self, location: str | os.PathLike[str] | None = None) -> None:
        if location is None:
            self._disk: Files | None = MemoryFiles()
            self._path = ""
        else:
            self._disk, self._path = None, os.fspath(location)
        self._rule: _Rule | None = None
        self._seen = 0
        self._mutex = threading.RLock()  # guards the rule and its count
        self._engines: weakref.WeakKeyDictionary[_Process, Engine] = weakref.WeakKeyDictionary()
        self._fifos: dict[str, Fifo] = {}

    def open(
        self,
        *,
        sync: str = "interval",
        sync_interval_ms: int = 100,
        lock_timeout: float = 30.0,
        clock: object | None = None,
    ) -> Bus:
        """A bus on this disk, as `streamlite.open` gives one; after a crash it is a new process that opens it."""
        check_choice("sync", sync, ("always", "interval", "never"))
        inner = self._disk
        if inner is None:
            from streamlite.files.local import LocalFiles

            inner = LocalFiles(self._path, read_only=False)
        process = _Process(self, inner)
        engine = Engine.open(
            process, sync=sync, sync_interval_s=check_int("sync_interval_ms", sync_interval_ms, 1) / 1000,
            read_only=False, lock_timeout=lock_timeout, clock=as_clock(clock),
        )  # fmt: skip
        self._engines[process] = engine
        return Bus(engine)

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    @contextmanager
    def failing(
        self, call: str = "write", *, topic: str = "*", error: int = errno.EIO, skip: int = 0
    ) -> Iterator[None]:
        """Inside the block the operating system refuses a kind of call with `error` (an `errno`): `StorageError`.

        `call`: "write", "sync", "read", "commit" (a write of committed offsets) or "any". `topic`: only in the logs of
        topics whose name matches (`*` and `?` as in file names). `skip`: let so many of them succeed first. A sync that
        failed closes its partition for writes until the bus was closed everywhere: that is promised.
        """

        def refuse(path: str) -> None:
            raise StorageError(
                f"cannot {call} {path}: {os.strerror(error)}, as the test wants it", errno=error, path=path
            )

        with self._ruled(call, topic, skip, refuse):
            yield

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Inside the block the disk is full: every write fails with `ENOSPC`, and reading goes on."""
        with self.failing("write", error=errno.ENOSPC):
            yield

    @contextmanager
    def crashing(self, call: str = "commit", *, topic: str = "*", skip: int = 0) -> Iterator[None]:
        """The process ends where it would make that call, and the block with it; `AssertionError` where it made none.

        Nothing that it does afterwards reaches the disk, its locks are free. The buses it had open are of no use: open
        another. `call`, `topic`, `skip` as for `failing`.
        """

        def end(path: str) -> None:
            self._end_all()
            raise Crash(f"the process ended before it could {call} {path}")

        try:
            with self._ruled(call, topic, skip, end):
                yield
        except Crash:
            self._bury()
            return
        if any(process.dead for process in self._engines):
            self._bury()  # a thread of its own met the end, and the block did not notice
            return
        raise AssertionError(f"no {call} was made that could have been the end of the process")

    def crash(self) -> None:
        """The process ends now."""
        self._end_all()
        self._bury()

    @contextmanager
    def _ruled(self, call: str, topic: str, skip: int, act: Callable[[str], object]) -> Iterator[None]:
        check_choice("call", call, _CALLS)
        check_int("skip", skip, 0)
        path = f"topics/{topic}/*" if topic != "*" else "*"
        with self._mutex:
            if self._rule is not None:
                raise ConfigError("one thing goes wrong at a time: leave the other block first")
            self._rule = _Rule("write", _COMMITS, skip, act) if call == "commit" else _Rule(call, path, skip, act)
            self._seen = 0
        try:
            yield
        finally:
            self._rule = None

    def look(self, call: str, path: str) -> None:
        """From a process that is about to make a call: let it go wrong."""
        with self._mutex:
            rule = self._rule
            if rule is None or rule.call not in (call, "any") or not fnmatch(path, rule.path):
                return
            self._seen += 1
            if self._seen <= rule.skip:
                return
        rule.act(path)

    def fifo(self, path: str) -> Fifo:
        """A pipe between buses on a disk in memory."""
        return self._fifos.setdefault(path, _Event(path))

    def _end_all(self) -> None:
        for process in list(self._engines):
            process.end()

    def _bury(self) -> None:
        """End the threads of what a process had open: a dead one has none."""
        for process, engine in list(self._engines.items()):
            if process.dead:
                engine.abandon()
                process.take_back()
                del self._engines[process]


class _File(File):
    def __init__(self, process: _Process, inner: File) -> None:
        self.path = inner.path
        self._process = process
        self._inner = inner

    def read(self, size: int, position: int) -> bytes:
        self._process.look("read", self.path)
        return self._inner.read(size, position)

    def write(self, buffers: Sequence[bytes], position: int) -> None:
        self._process.look("write", self.path)
        self._inner.write(buffers, position)

    def size(self) -> int:
        self._process.look("", self.path)
        return self._inner.size()

    def truncate(self, size: int) -> None:
        self._process.look("", self.path)
        self._inner.truncate(size)

    def sync(self) -> None:
        self._process.look("sync", self.path)
        self._inner.sync()


class _Lock(FileLock):
    def __init__(self, process: _Process, inner: FileLock) -> None:
        self.path = inner.path
        self._process = process
        self.inner = inner

    @property
    def unlock(self) -> Callable[[], object]:  # type: ignore[override]
        """As `release`."""
        return self.release

    def acquire(self, *, shared: bool = False) -> bool:
        self._process.look("", self.path)
        return self.inner.acquire(shared=shared)

    def release(self) -> None:
        if not self._process.dead:
            self.inner.release()


class _Event(Fifo):
    def __init__(self, path: str) -> None:
        self.path = path
        self._rung = threading.Event()

    def ring(self) -> None:
        self._rung.set()

    def wait(self, timeout: float | None) -> None:
        self._rung.wait(timeout)

    def take(self) -> None:
        self._rung.clear()

    def fileno(self) -> int:
        raise UnsupportedError("a disk in memory wakes no event loop: give Faults a directory")


class _Process(Files):
    """One process's way to the disk. A dead one reaches nothing; what it stores in mapped words goes to a copy."""

    def __init__(self, faults: Faults, inner: Files) -> None:
        self.root = inner.root
        self.dead = False
        self._faults = faults
        self._inner = inner
        self._locks: weakref.WeakSet[_Lock] = weakref.WeakSet()
        self._views: list[memoryview] = []
        self._mapped: list[bytes] = []

    def look(self, call: str, path: str) -> None:
        """About to make a call."""
        if self.dead:
            raise Crash(f"a process that has ended wants {path}")
        self._faults.look(call, path)

    def end(self) -> None:
        """It dies here: its locks are free, what its threads store from now on will be taken back."""
        if not self.dead:
            self.dead = True
            self._mapped = [bytes(view) for view in self._views]
            for lock in list(self._locks):
                lock.inner.release()

    def take_back(self) -> None:
        """Undo what its threads stored in mapped words after its end."""
        for view, before in zip(self._views, self._mapped, strict=True):
            if bytes(view) != before:
                view[:] = before

    def open(self, path: str, *, create: bool = False) -> File:
        self.look("", path)
        return _File(self, self._inner.open(path, create=create))

    def scratch(self) -> File:
        self.look("", "scratch")
        return _File(self, self._inner.scratch())

    def lock(self, path: str, *, create: bool = True) -> FileLock:
        self.look("", path)
        lock = _Lock(self, self._inner.lock(path, create=create))
        self._locks.add(lock)
        return lock

    def fifo(self, path: str, *, create: bool = False) -> Fifo:
        self.look("", path)
        if isinstance(self._inner, MemoryFiles):
            self._inner.open(path, create=create)
            return self._faults.fifo(path)
        return self._inner.fifo(path, create=create)

    def map(self, path: str, offset: int, size: int) -> memoryview:
        self.look("", path)
        view = self._inner.map(path, offset, size)
        self._views.append(view)
        return view

    def read_file(self, path: str) -> bytes:
        self.look("read", path)
        return self._inner.read_file(path)

    def replace_file(self, path: str, data: bytes, *, sync: bool) -> None:
        self.look("write", path)
        self._inner.replace_file(path, data, sync=sync)

    def list(self, path: str) -> list[str]:
        self.look("", path)
        return self._inner.list(path)

    def make_dir(self, path: str) -> None:
        self.look("", path)
        self._inner.make_dir(path)

    def rename(self, path: str, to: str) -> None:
        self.look("", path)
        self._inner.rename(path, to)

    def remove(self, path: str) -> None:
        self.look("", path)
        self._inner.remove(path)

    def remove_tree(self, path: str) -> None:
        self.look("", path)
        self._inner.remove_tree(path)

    def sync_dir(self, path: str) -> None:
        self.look("sync", path)
        self._inner.sync_dir(path)

    def boot_id(self) -> int:
        return self._inner.boot_id()

    def close(self) -> None:
        if not isinstance(self._inner, MemoryFiles):
            self._inner.close()
