"""Bringing a partition's files to the device, and the names that lead to them.

`Partition.sync` says when and how far; here is what has to be synced for it. What is published below an end stands in
files that a list of segments names that was loaded after that end. A sync that fails sets FAILED, for all processes; a
file that cannot be opened is no failed sync: retention or compaction was quicker, and the list is looked at again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from streamlite.counters import CHANGES, DELETED, FAILED, FLAGS, NAMED, SYNCED
from streamlite.errors import StorageError
from streamlite.files import MissingFile

if TYPE_CHECKING:
    from streamlite.partition import Partition

__all__ = ["sync_below", "sync_files"]

_TRIES: Final = 10
_NOT_OPENED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR})
"""What open(2) says and fsync(2) never does: a directory is opened to be synced, the device asked for nothing."""


def sync_below(partition: Partition, end: int) -> None:
    """Everything that is published below `end`, and note down that it is safe."""
    slot = partition.slot
    for _ in range(_TRIES):
        changes = slot.get(CHANGES)
        try:
            sync_files(partition, end, changes)
        except MissingFile:
            if slot.get(FLAGS) & DELETED:
                raise partition.deleted() from None
            partition.log.refresh(slot.get(CHANGES))
            continue
        slot.set(SYNCED, max(slot.get(SYNCED), end))
        return
    raise StorageError(
        f"cannot sync {partition.directory}: its files went away {_TRIES} times", path=partition.directory
    )


def sync_files(partition: Partition, end: int, changes: int) -> None:
    """The segments that begin below `end`, one by one, for there may be many; `changes`: the list they are of."""
    slot = partition.slot
    segments = partition.log.segments(changes)
    first = max(segments.bisect_right(slot.get(SYNCED)) - 1, 0)
    chosen = [segment for segment in segments.values()[first:] if segment.base < end]
    for segment in chosen:
        _guarded(partition, segment.file().sync)
    if slot.get(NAMED) != changes:
        _sync_names(partition)  # also where all data is safe: a new segment is empty, and what comes to it is not
    if slot.get(FAILED):
        raise partition.failed()  # another process's sync of the same files, before this one
    slot.set(NAMED, changes)


def _sync_names(partition: Partition) -> None:
    files, topic = partition.ctx.files, partition.topic.directory
    _guarded(partition, partial(files.sync_dir, partition.directory))
    if not partition.slot.get(NAMED):
        # The first time, also the names on the way to them, whoever made them and at whatever level.
        _guarded(partition, files.open(f"{topic}/topic.json").sync)
        for directory in (topic, "topics", ""):
            _guarded(partition, partial(files.sync_dir, directory))


def _guarded(partition: Partition, sync: Callable[[], None]) -> None:
    try:
        sync()
    except MissingFile:
        raise
    except StorageError as error:
        if error.errno not in _NOT_OPENED:
            partition.slot.set(FAILED, 1)
        raise
