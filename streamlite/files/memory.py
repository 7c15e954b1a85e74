"""Files that are kept in memory: what ":memory:" runs on, with the same engine above them.

A directory tree of dicts, files of bytearrays. Every operation is one step under the interpreter's lock or this
module's own, so that threads see what they would see of a kernel. Syncing does nothing: there is nothing to lose less.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

from streamlite.errors import StorageError
from streamlite.files import File, FileLock, Files, MissingFile

__all__ = ["MemoryFiles"]


class MemoryFile(File):
    """A growing bytearray."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = bytearray()

    def read(self, size: int, position: int) -> bytes:
        return bytes(self.data[position : position + size])

    def write(self, buffers: Sequence[bytes], position: int) -> None:
        data = self.data
        if position > len(data):
            data.extend(bytes(position - len(data)))
        for buffer in buffers:
            data[position : position + len(buffer)] = buffer
            position += len(buffer)

    def size(self) -> int:
        return len(self.data)

    def truncate(self, size: int) -> None:
        del self.data[size:]

    def sync(self) -> None:
        return


class MemoryLock(FileLock):
    """Exclusive against every other lock object of the same path; shared holders are counted."""

    def __init__(self, path: str, state: dict[MemoryLock, bool], mutex: threading.Lock) -> None:
        self.path = path
        self._state = state
        self._mutex = mutex

    def acquire(self, *, shared: bool = False) -> bool:
        with self._mutex:
            others = [kind for holder, kind in self._state.items() if holder is not self]
            if others and not (shared and all(others)):
                return False
            self._state[self] = shared
            return True

    def release(self) -> None:
        with self._mutex:
            self._state.pop(self, None)


class MemoryFiles(Files):
    """A tree in memory. Two buses may share one, as two processes share a directory."""

    def __init__(self) -> None:
        self.root = ":memory:"
        self._files: dict[str, MemoryFile] = {}
        self._directories: dict[str, set[str]] = {"": set()}
        self._maps: dict[tuple[str, int], memoryview] = {}
        self._locks: dict[str, dict[MemoryLock, bool]] = {}
        self._mutex = threading.RLock()
        self._lock_mutex = threading.Lock()

    def open(self, path: str, *, create: bool = False) -> File:
        with self._mutex:
            file = self._files.get(path)
            if file is None:
                if not create:
                    raise _missing(path)
                file = MemoryFile(path)
                self._add(path)
                self._files[path] = file
            return file

    def lock(self, path: str) -> FileLock:
        with self._mutex:
            return MemoryLock(path, self._locks.setdefault(path, {}), self._lock_mutex)

    def map(self, path: str, offset: int, size: int) -> memoryview:
        with self._mutex:
            view = self._maps.get((path, offset))
            if view is None:
                view = self._maps[path, offset] = memoryview(bytearray(size))
            return view

    def read_file(self, path: str) -> bytes:
        return bytes(self.open(path).read(1 << 62, 0))

    def replace_file(self, path: str, data: bytes, *, sync: bool) -> None:
        with self._mutex:
            file = MemoryFile(path)
            file.data[:] = data
            self._add(path)
            self._files[path] = file

    def list(self, path: str) -> list[str]:
        with self._mutex:
            if path not in self._directories:
                raise _missing(path)
            return list(self._directories[path])

    def make_dir(self, path: str) -> None:
        with self._mutex:
            if path not in self._directories:
                self._add(path)
                self._directories[path] = set()

    def rename(self, path: str, to: str) -> None:
        with self._mutex:
            if path in self._files:
                self._add(to)
                self._files[to] = self._files.pop(path)
            elif path not in self._directories:
                raise _missing(path)
            elif self._directories.get(to):
                raise StorageError(f"cannot rename {path} to {to}: not empty", errno=errno.ENOTEMPTY, path=to)
            else:
                self._add(to)
                self._files = {_moved(name, path, to): file for name, file in self._files.items()}
                self._directories = {_moved(name, path, to): names for name, names in self._directories.items()}
            self._drop(path)

    def remove(self, path: str) -> None:
        with self._mutex:
            if self._files.pop(path, None) is not None:
                self._drop(path)

    def remove_tree(self, path: str) -> None:
        with self._mutex:
            if path in self._directories:
                self._files = {name: file for name, file in self._files.items() if not _under(name, path)}
                self._directories = {n: names for n, names in self._directories.items() if not _under(n, path)}
                self._drop(path)

    def sync_dir(self, path: str) -> None:
        return

    def boot_id(self) -> int:
        return 1

    def close(self) -> None:
        return

    def _add(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        if parent not in self._directories:
            raise _missing(parent)
        self._directories[parent].add(name)

    def _drop(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        self._directories[parent].discard(name)


def _under(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def _moved(name: str, path: str, to: str) -> str:
    return to + name[len(path) :] if _under(name, path) else name


def _missing(path: str) -> MissingFile:
    return MissingFile(f"{path!r} is not in this memory bus", errno=errno.ENOENT, path=path)
