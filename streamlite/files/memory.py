"""Files that are kept in memory: what ":memory:" runs on, with the same engine above them.

A tree of dicts with files of bytearrays as its leaves. A name leads to a file as in a kernel: locks and mappings belong
to the file, not to its name, and a file that was removed or renamed goes on for whoever has it open. Every operation is
one step under the interpreter's lock or this module's own, so that threads see what they would see of a kernel. Syncing
does nothing: there is nothing to lose less.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial

from streamlite.errors import StorageError, UnsupportedError
from streamlite.files import Fifo, File, FileLock, Files, MissingFile

__all__ = ["MemoryFiles"]


class MemoryFile(File):
    """A growing bytearray."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = bytearray()
        self.maps: dict[int, memoryview] = {}
        """By offset. They have bytes of their own: a bytearray that is mapped could not grow."""
        self.holders: dict[int, bool] = {}
        """Of a lock file: who holds the lock, and whether shared."""

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
        self.data.extend(bytes(size - len(self.data)))

    def cutting(self, size: int) -> Callable[[], object]:
        return partial(self.data.__delitem__, slice(size, None))

    def sync(self) -> None:
        return


class MemoryLock(FileLock):
    """Exclusive against every other lock object of the same file; gone with the object that held it.

    The finalizer is a call of C, as in `LocalFiles`. It takes no mutex: it may run in the thread that has it, and one
    `pop` is one step.
    """

    __slots__ = ("__del__", "_file", "_mutex", "path", "unlock")

    def __init__(self, path: str, file: MemoryFile, mutex: threading.Lock) -> None:
        self.path = path
        self._file = file
        self._mutex = mutex
        self.unlock = self.__del__ = partial(file.holders.pop, id(self), None)

    def acquire(self, *, shared: bool = False) -> bool:
        holders = self._file.holders
        with self._mutex:
            # A copy, which is made in one step: a finalizer may take a dead holder out at any moment.
            others = [kind for holder, kind in holders.copy().items() if holder != id(self)]
            if others and not (shared and all(others)):
                return False
            holders[id(self)] = shared
            return True

    def release(self) -> None:
        with self._mutex:
            self._file.holders.pop(id(self), None)


class _Directory(dict[str, "MemoryFile | _Directory"]):
    """Names, and what they lead to."""


class MemoryFiles(Files):
    """A tree in memory. Two buses may share one, as two processes share a directory."""

    def __init__(self) -> None:
        self.root = ":memory:"
        self._tree = _Directory()
        self._mutex = threading.RLock()  # guards the tree and the files' maps
        self._lock_mutex = threading.Lock()  # guards taking locks

    def open(self, path: str, *, create: bool = False) -> File:
        return self._file(path, create=create)

    def scratch(self) -> File:
        return MemoryFile("scratch")

    def _file(self, path: str, *, create: bool) -> MemoryFile:
        with self._mutex:
            parent, name = self._parent(path)
            found = parent.get(name)
            if isinstance(found, _Directory) or not name:
                raise _refused("open", path, errno.EISDIR)
            if found is None:
                if not create:
                    raise _missing("open", path)
                found = parent[name] = MemoryFile(path)
            return found

    def lock(self, path: str, *, create: bool = True) -> FileLock:
        return MemoryLock(path, self._file(path, create=create), self._lock_mutex)

    def fifo(self, path: str, *, create: bool = False) -> Fifo:
        raise UnsupportedError("nobody outside this process can ring anything in memory")

    def map(self, path: str, offset: int, size: int) -> memoryview:
        with self._mutex:
            file = self._file(path, create=True)
            view = file.maps.get(offset)
            if view is None:
                file.truncate(max(file.size(), offset + size))
                view = file.maps[offset] = memoryview(file.data[offset : offset + size])
            if len(view) < size:
                raise _refused("map", path, errno.EINVAL)
            return view[:size]

    def read_file(self, path: str) -> bytes:
        file = self._file(path, create=False)
        return file.read(file.size(), 0)

    def replace_file(self, path: str, data: bytes, *, sync: bool) -> None:
        file = MemoryFile(path)
        file.write([data], 0)
        with self._mutex:
            parent, name = self._parent(path)
            if isinstance(parent.get(name), _Directory):
                raise _refused("replace", path, errno.EISDIR)
            parent[name] = file

    def list(self, path: str) -> list[str]:
        with self._mutex:
            return list(self._directory("list", path))

    def make_dir(self, path: str) -> None:
        with self._mutex:
            parent, name = self._parent(path)
            if isinstance(parent.get(name), MemoryFile):
                raise _refused("create", path, errno.EEXIST)
            if name:
                parent.setdefault(name, _Directory())

    def rename(self, path: str, to: str) -> None:
        with self._mutex:
            (parent, name), (to_parent, to_name) = self._parent(path), self._parent(to)
            moved, there = parent.get(name), to_parent.get(to_name)
            if moved is None:
                raise _missing("rename", path)
            if there is moved:
                return
            if there is not None and isinstance(there, _Directory) != isinstance(moved, _Directory):
                raise _refused("rename", path, errno.EISDIR if isinstance(there, _Directory) else errno.ENOTDIR)
            if isinstance(there, _Directory) and there:
                raise _refused("rename", path, errno.ENOTEMPTY)
            if to.startswith(f"{path}/"):
                raise _refused("rename", path, errno.EINVAL)
            to_parent[to_name] = moved
            del parent[name]

    def remove(self, path: str) -> None:
        with self._mutex:
            found = self._find(path)
            if isinstance(found, _Directory):
                raise _refused("remove", path, errno.EISDIR)
            if found is not None:
                parent, name = self._parent(path)
                del parent[name]

    def remove_tree(self, path: str) -> None:
        with self._mutex:
            found = self._find(path)
            if isinstance(found, MemoryFile):
                raise _refused("remove", path, errno.ENOTDIR)
            if found is not None:
                parent, name = self._parent(path)
                parent.pop(name, None)

    def sync_dir(self, path: str) -> None:
        with self._mutex:
            self._directory("sync", path)

    def boot_id(self) -> int:
        return 1

    def close(self) -> None:
        return

    def _find(self, path: str) -> MemoryFile | _Directory | None:
        """What is at `path`, or `None`; under the mutex, like all below."""
        found: MemoryFile | _Directory | None = self._tree
        for name in path.split("/") if path else ():
            if not isinstance(found, _Directory):
                return None
            found = found.get(name)
        return found

    def _directory(self, what: str, path: str) -> _Directory:
        found = self._find(path)
        if found is None:
            raise _missing(what, path)
        if not isinstance(found, _Directory):
            raise _refused(what, path, errno.ENOTDIR)
        return found

    def _parent(self, path: str) -> tuple[_Directory, str]:
        """The directory that holds `path`, and its name there."""
        parent, _, name = path.rpartition("/")
        return self._directory("open", parent), name


def _refused(what: str, path: str, number: int) -> StorageError:
    return StorageError(f"cannot {what} {path} in memory: {os.strerror(number)}", errno=number, path=path)


def _missing(what: str, path: str) -> MissingFile:
    return MissingFile(f"cannot {what} {path} in memory: it is not there", errno=errno.ENOENT, path=path)
