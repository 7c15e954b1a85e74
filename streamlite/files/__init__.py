"""The only door to the operating system: files, directories, locks and mappings, as a seam with several sides.

Everything that streamlite keeps passes through a `Files`: `LocalFiles` over a directory, `MemoryFiles` over nothing
(what ":memory:" runs on), and in tests a faulty one. Rules:

* Paths are relative to the bus's root and use "/".
* Whatever the operating system refuses is a `StorageError` with its `errno`; a file that is not there is the
  `MissingFile` among them, because callers act on it.
* `write` writes all of it or raises; what a failed write left behind is the caller's to cut.
* Nothing here knows what a segment or a topic is.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

from streamlite.errors import StorageError

__all__ = ["Fifo", "File", "FileLock", "Files", "MissingFile", "after_fork_in_child", "process_id", "random_number"]


def process_id() -> int:
    """The number the system knows this process by."""
    return os.getpid()


def random_number() -> int:
    """62 random bits, from the operating system: an identity that never comes again."""
    return int.from_bytes(os.urandom(8), "little") >> 2


def after_fork_in_child(call: Callable[[], object]) -> None:
    """Have `call` run in every child of a fork, where the system forks at all."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


class MissingFile(StorageError):
    """The file or directory is not there."""


class File(ABC):
    """One open file. Positions and sizes in bytes; safe for use by several threads."""

    path: str

    @abstractmethod
    def read(self, size: int, position: int) -> bytes:
        """Up to `size` bytes from `position`; fewer only where the file ends."""

    @abstractmethod
    def write(self, buffers: Sequence[bytes], position: int) -> None:
        """Write all buffers one after the other from `position`, or raise `StorageError`."""

    @abstractmethod
    def size(self) -> int:
        """Its present size."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Cut it to `size`; a smaller file grows to it, with zeros."""

    def cutting(self, size: int) -> Callable[[], object]:
        """What cuts it to `size`, at least as large, in one call of C where that can be: see `FileLock.unlock`.

        What the operating system refuses may be an `OSError` here.
        """
        return partial(self.truncate, size)

    @abstractmethod
    def sync(self) -> None:
        """Bring its data and size to the device (fdatasync)."""


class FileLock(ABC):
    """An advisory lock on a file of its own, held by this descriptor; gone with the process that held it."""

    path: str

    @abstractmethod
    def acquire(self, *, shared: bool = False) -> bool:
        """Take it if it is free, at once: whether it was. Holding it already, this changes its kind.

        Where the change fails the old kind is kept. It is not done in one step, so whoever changes a kind does so under
        another lock that all its users take: `StorageError` where somebody took it in between and nothing is held.
        """

    @abstractmethod
    def release(self) -> None:
        """Give it back; nothing where it is not held, and in the child of a fork, where it is the parent's."""

    unlock: Callable[[], object]
    """As `release`, for a lock that is only taken exclusively, and written in C: no signal handler runs before it has
    been given back. A `ValueError` in the child of a fork."""


class Fifo(ABC):
    """A named pipe that carries nothing but the news that there is news."""

    path: str

    @abstractmethod
    def ring(self) -> None:
        """Wake who waits at it, now or when it next waits; nobody there is fine."""

    @abstractmethod
    def wait(self, timeout: float | None) -> None:
        """Wait until rung or for `timeout` seconds; may return early. A ring stays until it is taken."""

    @abstractmethod
    def take(self) -> None:
        """Take the rings so far (a few thousand at most): the next wait ends by a later one."""

    @abstractmethod
    def fileno(self) -> int:
        """The descriptor, readable once rung: for an event loop."""


class Files(ABC):
    """A directory and what can be done in it."""

    root: str

    @abstractmethod
    def open(self, path: str, *, create: bool = False) -> File:
        """Open a file for reading and, unless the seam is read-only, writing; `MissingFile` unless `create`."""

    @abstractmethod
    def scratch(self) -> File:
        """A file of one's own without a name: nobody else can open it, and it is gone with its last reference."""

    @abstractmethod
    def lock(self, path: str, *, create: bool = True) -> FileLock:
        """A lock on the file at `path`, not yet acquired; the file is created where absent, or `MissingFile`."""

    @abstractmethod
    def fifo(self, path: str, *, create: bool = False) -> Fifo:
        """The named pipe at `path`; `MissingFile` unless `create`. `UnsupportedError` where nobody could ring it."""

    @abstractmethod
    def map(self, path: str, offset: int, size: int) -> memoryview:
        """A shared mapping of bytes `offset` to `offset + size`, allocated first; it lives as long as its views.

        `offset` is a multiple of the page size. Bytes are mapped or read and written, never both.
        """

    @abstractmethod
    def read_file(self, path: str) -> bytes:
        """The whole of a small file; `CorruptionError` for one that cannot be meant."""

    @abstractmethod
    def replace_file(self, path: str, data: bytes, *, sync: bool) -> None:
        """Put `data` at `path` in one step: readers see the old file or the new. `sync`: durable before it returns."""

    @abstractmethod
    def list(self, path: str) -> list[str]:
        """The names in a directory, in no order; `MissingFile` when it is not there."""

    @abstractmethod
    def make_dir(self, path: str) -> None:
        """Create a directory, mode 0700; one that is there is fine, a file is not. Its parent must exist."""

    @abstractmethod
    def rename(self, path: str, to: str) -> None:
        """Move a file or directory in one step."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""

    @abstractmethod
    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; one that is not there is fine."""

    @abstractmethod
    def sync_dir(self, path: str) -> None:
        """Bring a directory's entries to the device (fsync)."""

    @abstractmethod
    def boot_id(self) -> int:
        """64 bits that differ after every start of the machine."""

    @abstractmethod
    def close(self) -> None:
        """Give up what the seam itself holds."""
