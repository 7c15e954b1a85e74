"""A bounded cache of open files and locks, so that 10,000 partitions work under the usual limit of descriptors.

A handle is known by its path *and* the incarnation of the topic it belongs to: after a topic was deleted and created
anew under its name, the old files' descriptors must never be taken for the new ones'. The cache only drops its own
reference; a descriptor closes when the last call that uses it has returned, so that no call reads from a number that
the system has given to another file.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from streamlite.files import File, FileLock, Files

__all__ = ["Handles"]

_H = TypeVar("_H")

HANDLES_MAX = 256
"""A quarter of the usual soft limit of 1,024, twice over (files and locks): the host application needs some too."""


class Handles:
    """The open files and locks of one bus."""

    def __init__(self, files: Files, limit: int = HANDLES_MAX) -> None:
        self._files = files
        self._limit = limit
        self._open: OrderedDict[tuple[int, str], File] = OrderedDict()
        self._locks: OrderedDict[tuple[int, str], FileLock] = OrderedDict()
        self._mutex = threading.Lock()  # guards the two dicts

    def file(self, incarnation: int, path: str, *, create: bool = False) -> File:
        """The open file at `path`; `MissingFile` when it is not there and not to be created."""
        return self._get(self._open, (incarnation, path), lambda: self._files.open(path, create=create))

    def lock(self, incarnation: int, path: str) -> FileLock:
        """The lock object of the lock file at `path`. Whoever holds the lock keeps the object referred to."""
        return self._get(self._locks, (incarnation, path), lambda: self._files.lock(path))

    def _get(self, cache: OrderedDict[tuple[int, str], _H], key: tuple[int, str], opener: Callable[[], _H]) -> _H:
        with self._mutex:
            found = cache.get(key)
            if found is not None:
                cache.move_to_end(key)
                return found
        opened = opener()
        with self._mutex:
            # Another thread may have opened it meanwhile: all must share one lock object, or they exclude each other.
            found = cache.setdefault(key, opened)
            while len(cache) > self._limit:
                cache.popitem(last=False)
            return found

    def forget(self, incarnation: int, path: str) -> None:
        """Drop the file at `path`, which was removed or is about to be."""
        with self._mutex:
            self._open.pop((incarnation, path), None)

    def forget_all(self, incarnation: int) -> None:
        """Drop everything of a topic that is gone."""
        with self._mutex:
            for cache in (self._open, self._locks):
                for key in [key for key in cache if key[0] == incarnation]:
                    del cache[key]

    def close(self) -> None:
        """Drop everything."""
        with self._mutex:
            self._open.clear()
            self._locks.clear()
