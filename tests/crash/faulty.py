"""Twins of the files seam for tests of faults.

* `FaultyFiles` passes every call on to another seam and counts it. At the n-th call that its plan looks at it stops the
  process, fails with an errno (once, or from then on), or writes only a part. A process that was stopped makes no call
  any more, whatever its `finally` blocks try, and its locks are free, as a killed one's are.
* `States` collects what a directory in memory holds before every call: what a process that was killed there leaves.
  One run of a workload gives all of its crash states; states that are the same come once.

A mapped word is no call: what a thread stores between two calls is in the next state. A stopped process stores
nothing more either: `bury` puts back what the mappings held at the moment of the stop.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import xxhash

import streamlite
from streamlite import Bus
from streamlite.errors import StorageError, UnsupportedError
from streamlite.files import Fifo, File, FileLock, Files, MissingFile
from streamlite.files.memory import MemoryFile, MemoryFiles, _Directory

STOP = -1
"""A plan's `fault` that is no errno: the process ends there."""

CHANGING = frozenset({"write", "truncate", "replace_file", "make_dir", "rename", "remove", "remove_tree", "create"})
"""Calls that change what a directory holds."""
SYNCING = frozenset({"sync", "sync_dir"})
READING = frozenset({"open", "read", "read_file", "size", "list", "map", "lock", "acquire", "release", "boot_id"})


class Stopped(BaseException):
    """The process was killed here. No `Exception`, so that nobody handles it."""


class Call(NamedTuple):
    """One call of the seam, or of a file or lock that came from it."""

    name: str
    path: str


class Plan(NamedTuple):
    """What goes wrong: at the `at`-th call (from 1) that `looks_at`, and with `lasting` at every later one as well."""

    at: int
    fault: int = STOP
    lasting: bool = False
    short: bool = False
    """A write or truncation that fails, or is the last call of a process, does half of its work first."""
    looks_at: Callable[[Call], bool] = lambda call: True


NOTHING = Plan(0)


class FaultyFile(File):
    """A file whose calls are counted."""

    def __init__(self, files: FaultyFiles, inner: File) -> None:
        self.path = inner.path
        self._files = files
        self._inner = inner
        files.opened.add(self)
        files.most_open = max(files.most_open, len(files.opened))

    def read(self, size: int, position: int) -> bytes:
        self._files.reads.append((self.path, size, position))
        return self._files.run(Call("read", self.path), lambda: self._inner.read(size, position))

    def write(self, buffers: Sequence[bytes], position: int) -> None:
        data = b"".join(buffers)
        half = data[: len(data) // 2]
        self._files.before_write(self.path, data, position)
        self._files.run(
            Call("write", self.path),
            lambda: self._inner.write(buffers, position),
            lambda: self._inner.write([half], position),
        )

    def size(self) -> int:
        return self._files.run(Call("size", self.path), self._inner.size)

    def truncate(self, size: int) -> None:
        self._files.run(Call("truncate", self.path), lambda: self._inner.truncate(size))

    def sync(self) -> None:
        self._files.run(Call("sync", self.path), self._inner.sync)


class FaultyLock(FileLock):
    """A lock whose calls are counted; free once its process is stopped."""

    def __init__(self, files: FaultyFiles, inner: FileLock) -> None:
        self.path = inner.path
        self._files = files
        self.inner = inner

    @property
    def unlock(self) -> Callable[[], object]:  # type: ignore[override]
        return self.release

    def acquire(self, *, shared: bool = False) -> bool:
        return self._files.run(Call("acquire", self.path), lambda: self.inner.acquire(shared=shared))

    def release(self) -> None:
        self._files.run(Call("release", self.path), self.inner.release)


_fifos: dict[tuple[int, str], EventFifo] = {}


class EventFifo(Fifo):
    """A pipe between buses of one process, for a seam in memory that has none."""

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
        raise UnsupportedError("an event has no descriptor")


class FaultyFiles(Files):
    """A seam that goes wrong as planned. `before`: called before every call that is made."""

    def __init__(self, inner: Files, plan: Plan = NOTHING, *, boot: int | None = None) -> None:
        self.root = inner.root
        self.inner = inner
        self.plan = plan
        self.boot = boot
        self.before: Callable[[Call], object] = lambda call: None
        self.before_write: Callable[[str, bytes, int], object] = lambda path, data, position: None
        self.calls: list[Call] = []
        self.reads: list[tuple[str, int, int]] = []
        """Path, size and position of every read."""
        self.opened: weakref.WeakSet[FaultyFile] = weakref.WeakSet()
        self.most_open = 0
        """Files that were open at the same time, at most."""
        self.count = 0
        self.hits: list[Call] = []
        """The calls that went wrong."""
        self.dead = False
        self._locks: weakref.WeakSet[FaultyLock] = weakref.WeakSet()
        self._views: list[memoryview] = []
        self._stored: list[bytes] = []
        self._mutex = threading.RLock()  # one call at a time: their number is what a test repeats

    def run(self, call: Call, do: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Make a call, or let it go wrong."""
        with self._mutex:
            if self.dead:
                raise Stopped(f"{call} by a process that was killed")
            self.before(call)
            self.calls.append(call)
            plan = self.plan
            if plan.at and plan.looks_at(call):
                self.count += 1
                if self.count == plan.at or (plan.lasting and self.count > plan.at):
                    self._go_wrong(call, half)
            return do()

    def _go_wrong(self, call: Call, half: Callable[[], Any] | None) -> None:
        self.hits.append(call)
        if self.plan.short and half is not None:
            half()
        if self.plan.fault == STOP:
            self.stop()
            raise Stopped(str(call))
        kind = MissingFile if self.plan.fault == errno.ENOENT else StorageError
        reason = os.strerror(self.plan.fault)
        raise kind(f"cannot {call.name} {call.path}: {reason}, as planned", errno=self.plan.fault, path=call.path)

    def stop(self) -> None:
        """Kill the process: no call of it is made any more, its locks are free."""
        with self._mutex:
            if self.dead:
                return
            self.dead = True
            for lock in list(self._locks):
                lock.inner.release()
            self._stored = [bytes(view) for view in self._views]

    def forget_stores(self) -> None:
        """Put back what the mappings held when the process was stopped."""
        for view, stored in zip(self._views, self._stored, strict=False):
            view[:] = stored

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self.plan = NOTHING

    def open(self, path: str, *, create: bool = False) -> File:
        name = "create" if create else "open"
        return FaultyFile(self, self.run(Call(name, path), lambda: self.inner.open(path, create=create)))

    def scratch(self) -> File:
        return FaultyFile(self, self.run(Call("scratch", ""), self.inner.scratch))

    def lock(self, path: str, *, create: bool = True) -> FileLock:
        lock = FaultyLock(self, self.run(Call("lock", path), lambda: self.inner.lock(path, create=create)))
        self._locks.add(lock)
        return lock

    def fifo(self, path: str, *, create: bool = False) -> Fifo:
        if not isinstance(self.inner, MemoryFiles):
            return self.run(Call("fifo", path), lambda: self.inner.fifo(path, create=create))
        self.run(Call("create" if create else "open", path), lambda: self.inner.open(path, create=create))
        return _fifos.setdefault((id(self.inner), path), EventFifo(path))

    def map(self, path: str, offset: int, size: int) -> memoryview:
        view: memoryview = self.run(Call("map", path), lambda: self.inner.map(path, offset, size))
        self._views.append(view)
        return view

    def read_file(self, path: str) -> bytes:
        return self.run(Call("read_file", path), lambda: self.inner.read_file(path))

    def replace_file(self, path: str, data: bytes, *, sync: bool) -> None:
        """In the steps that `LocalFiles` takes."""
        scratch = f"{path}.new"
        file = self.open(scratch, create=True)
        file.truncate(0)
        file.write([data], 0)
        if sync:
            file.sync()
        self.rename(scratch, path)
        if sync:
            self.sync_dir(path.rpartition("/")[0])

    def list(self, path: str) -> list[str]:
        return self.run(Call("list", path), lambda: self.inner.list(path))

    def make_dir(self, path: str) -> None:
        self.run(Call("make_dir", path), lambda: self.inner.make_dir(path))

    def rename(self, path: str, to: str) -> None:
        self.run(Call("rename", path), lambda: self.inner.rename(path, to))

    def remove(self, path: str) -> None:
        self.run(Call("remove", path), lambda: self.inner.remove(path))

    def remove_tree(self, path: str) -> None:
        """Name by name, as the system does it."""
        try:
            names = self.inner.list(path)
        except MissingFile:
            names = []
        for name in sorted(names, reverse=True):
            inner = f"{path}/{name}"
            try:
                self.inner.list(inner)
            except StorageError:
                self.remove(inner)
            else:
                self.remove_tree(inner)
        self.run(Call("remove_tree", path), lambda: self.inner.remove_tree(path))

    def sync_dir(self, path: str) -> None:
        self.run(Call("sync_dir", path), lambda: self.inner.sync_dir(path))

    def boot_id(self) -> int:
        return self.inner.boot_id() if self.boot is None else self.boot

    def close(self) -> None:
        self.inner.close()


# -- directories in memory ---------------------------------------------------------------------------------------------


def clone(files: MemoryFiles) -> MemoryFiles:
    """A copy of what is there now, which nobody has open."""
    copy = MemoryFiles()
    with files._mutex:
        copy._tree = _clone_directory(files._tree)
    return copy


def _clone_directory(directory: _Directory) -> _Directory:
    copy = _Directory()
    for name, found in directory.items():
        copy[name] = _clone_directory(found) if isinstance(found, _Directory) else _clone_file(found)
    return copy


def _clone_file(file: MemoryFile) -> MemoryFile:
    copy = MemoryFile(file.path)
    copy.data = bytearray(file.data)
    copy.maps = {offset: memoryview(bytearray(view)) for offset, view in file.maps.items()}
    return copy


def walk_files(directory: _Directory, at: str = "") -> Iterator[tuple[str, MemoryFile | None]]:
    """Every path in a tree, with its file; `None` for a directory."""
    for name in sorted(directory):
        found = directory[name]
        path = f"{at}/{name}" if at else name
        if isinstance(found, _Directory):
            yield path, None
            yield from walk_files(found, path)
        else:
            yield path, found


def fingerprint(files: MemoryFiles) -> int:
    """A number that is the same where all names, bytes and words are."""
    digest = xxhash.xxh3_64()
    for path, file in walk_files(files._tree):
        digest.update(f"{path}\0".encode())
        if file is not None:
            digest.update(file.data)
            for offset in sorted(file.maps):
                digest.update(file.maps[offset])
    return digest.intdigest()


class State(NamedTuple):
    """What a killed process left: the call it did not come to make, the directory, and what a test noted with it."""

    call: Call
    files: MemoryFiles
    note: Any


class States:
    """The states of a directory in memory before every call. `note()` is kept with each."""

    def __init__(self, files: MemoryFiles, note: Callable[[], Any] = lambda: None) -> None:
        self.inner = files
        self.files = FaultyFiles(files)
        self.found: list[State] = []
        self._seen: set[tuple[int, Any]] = set()
        self._note = note
        self.files.before = self._before
        self.files.before_write = self._before_write

    def _before(self, call: Call) -> None:
        self.keep(call, clone(self.inner))

    def _before_write(self, path: str, data: bytes, position: int) -> None:
        """In the middle of the write, and when it is done and no word says so yet."""
        for size in {len(data) // 2, len(data) - 1, len(data)}:
            torn = clone(self.inner)
            torn.open(path).write([data[:size]], position)
            self.keep(Call(f"the first {size} bytes of a write", path), torn)

    def keep(self, call: Call, files: MemoryFiles) -> None:
        """Note down a state, unless it was there already."""
        note = self._note()
        known = (fingerprint(files), note)
        if known not in self._seen:
            self._seen.add(known)
            self.found.append(State(call, files, note))


# -- a bus over any seam -----------------------------------------------------------------------------------------------


def open_over(files: Files, **options: Any) -> Bus:
    """Open a bus on `files`, as if they were a directory. Maintenance runs when it is called, never by itself."""
    with mock.patch("streamlite.engine._files", return_value=files):
        bus = streamlite.open("a directory", **options)
    bus._engine.maintenance._begun = True
    return bus


def bury(bus: Bus) -> None:
    """End the threads of a bus whose process was stopped, and forget it."""
    engine = bus._engine
    engine.ctx.closed = True
    engine._closing = True
    workers = [engine.maintenance.worker, engine.ticker.worker]
    if engine.syncer is not None:
        workers.append(engine.syncer.worker)
    workers += [handle._worker for handle in engine.opened if hasattr(handle, "_worker")]
    for worker in workers:
        worker.stop()
    for handle in list(engine.opened):
        engine.forget(handle)
    files = engine.ctx.files
    if isinstance(files, FaultyFiles):
        files.forget_stores()


def file_at(files: MemoryFiles, path: str) -> MemoryFile:
    """The file itself, to be damaged."""
    return files._file(path, create=False)


def logs_of(files: MemoryFiles, topic: str = "t", partition: int = 0) -> list[str]:
    """The paths of the log files of a partition, in order."""
    directory = f"topics/{topic}/{partition}"
    return [f"{directory}/{name}" for name in sorted(files.list(directory)) if name.endswith(".log")]


def kill(bus: Bus) -> None:
    """Let the process of a bus end here, as if by SIGKILL."""
    files = bus._engine.ctx.files
    assert isinstance(files, FaultyFiles)
    files.stop()
    bury(bus)


@contextmanager
def stopping(files: FaultyFiles, plan: Plan) -> Iterator[None]:
    """Run what is inside until the plan stops it; fails where it did not."""
    files.count = 0
    files.plan = plan
    try:
        yield
    except Stopped:
        return
    raise AssertionError("nothing was stopped")
