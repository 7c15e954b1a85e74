"""Making a partition's words true again: after a writer died, and after a stop that was not clean.

`recovery` decides what a log holds; here it is done, under the partition's lock: tails are cut, words stored, indexes
written anew. All of it can be cut off at any point and begun again: the flag that asked for it is cleared last.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from streamlite.beginning import stored_start
from streamlite.counters import (
    ACTIVE,
    BORN,
    CHANGES,
    FAILED,
    FLAGS,
    NUMBERED,
    RECOVER,
    START,
    SYNCED,
    TRANSACTION,
    WRITING,
)
from streamlite.errors import StorageError
from streamlite.recovery import Tail, recover, resolve
from streamlite.segment import NEVER_MS, Segment

if TYPE_CHECKING:
    from streamlite.partition import Partition

__all__ = ["recover_log", "resolve_tail"]

logger = logging.getLogger("streamlite")


def resolve_tail(partition: Partition) -> None:
    """After a writer died in an append or a roll: what lies beyond the published end is published or cut."""
    slot = partition.slot
    segments = partition.log.refreshed(slot.get(CHANGES))
    committed = partial(partition.ctx.ledger.committed, partition)
    if segments:
        segment = segments.peekitem(-1)[1]
        tail = resolve(segment, slot.end, committed) if not segment.generation else None
        if tail is None:
            segment = partition.new_segment(segment.next)
            tail = resolve(segment, slot.end, committed)
        _take_tail(partition, segment, tail, "a writer that died in an append")
        partition.log.refresh(partition.changed())
    slot.set(FLAGS, slot.get(FLAGS) & ~WRITING)
    partition.announce_later()


def _take_tail(partition: Partition, segment: Segment, tail: Tail, after: str) -> None:
    """Cut what does not count, and take up where the segment ends."""
    if tail.cut:
        logger.warning(
            "cut %d bytes at position %d of %s, left by %s", tail.cut, tail.position, segment.log_path, after
        )
        segment.cut_index(tail.position)
        segment.file().truncate(tail.position)
    slot = partition.slot
    born = max(tail.first_timestamp, 0) if slot.get(ACTIVE) != segment.base or not slot.get(BORN) else slot.get(BORN)
    partition.set_active(segment.base, tail.position, tail.max_timestamp, tail.indexed, born)
    slot.set(TRANSACTION, max(slot.get(TRANSACTION), tail.transaction))
    slot.set(NUMBERED, slot.get(NUMBERED) or int(tail.numbered))
    slot.end = tail.next_offset


def recover_log(partition: Partition) -> None:
    """After an unclean stop: everything is read from the files, the words are made of it."""
    slot = partition.slot
    segments = partition.log.refreshed(slot.get(CHANGES))
    for old in partition.log.superseded:
        partition.log.remove(old)
    partition.log.tidy()
    start = stored_start(partition.ctx.files, partition.directory)  # its word is no reason to remove anything
    found = recover(segments.values(), partial(partition.ctx.ledger.committed, partition), slot.get(SYNCED), start)
    for removed in found.removed:
        partition.log.remove(removed)
    for lost in found.lost:
        logger.warning("removed %s, which follows a gap left by a stop of the machine", lost.log_path)
        partition.log.remove(lost)
    if found.active is not None:
        assert found.tail is not None
        slot.set(NUMBERED, 1)  # what was not walked may have such batches
        start = max(start, found.first)
        _take_recovered(partition, found.active, found.tail)
        slot.set(SYNCED, found.synced)
    else:
        partition.set_active(start, 0, NEVER_MS, 0, 0)
        slot.end = start
    if slot.end < start:  # the truncation was durable and the tail it came after was not
        partition.set_active(start, 0, NEVER_MS, 0, 0)
        slot.end = start
        partition.new_segment(start)
    slot.set(START, start)
    partition.log.refresh(partition.changed())
    if slot.get(FAILED):
        _rewrite_unsynced(partition)
    slot.set(FLAGS, slot.get(FLAGS) & ~(RECOVER | WRITING))
    partition.announce_later()


def _take_recovered(partition: Partition, segment: Segment, tail: Tail) -> None:
    _take_tail(partition, segment, tail, "a stop that was not clean")
    if segment.generation:
        # Appends go to a segment of their own: a compacted one is never written to again.
        partition.set_active(segment.next, 0, NEVER_MS, 0, 0)
        partition.new_segment(segment.next)
    else:
        try:
            segment.replace_index(tail.entries)
        except StorageError as error:  # an index is a cache: without one, seeks are slower
            logger.warning("no index for %s: %s", segment.log_path, error)


def _rewrite_unsynced(partition: Partition) -> None:
    """After a failed sync: copy what was not synced to new files, which can be synced, and drop the old ones.

    The pages of the old file read as written until the machine stops, so what readers saw is what is copied.
    """
    slot = partition.slot
    partition.ctx.ledger.sync_upto(slot.get(TRANSACTION))  # nothing of a transaction is safer than its record
    segments = partition.log.segments(slot.get(CHANGES))
    first = max(segments.bisect_right(slot.get(SYNCED)) - 1, 0)
    old = segments.values()[first:]
    for segment, following in zip(old, [*old[1:], None]):  # noqa: B905 - of none there is no last one
        until = following.base if following is not None else slot.end
        if until > segment.base:
            _copy(partition, segment, until)
    partition.log.refresh(partition.changed())
    partition.set_active(slot.end, 0, NEVER_MS, 0, 0)
    if slot.end not in partition.log.segments(slot.get(CHANGES)):
        partition.new_segment(slot.end)
    slot.set(FAILED, 0)
    logger.warning("partition %s: wrote what a failed sync left unsafe to new files", partition.directory)


def _copy(partition: Partition, segment: Segment, until: int) -> None:
    copy = partition.log.compacted(segment.base, until, segment.generation + 1)
    file = segment.file()
    scratch = partition.ctx.files.open(f"{copy.path}.new", create=True)
    scratch.truncate(0)
    position, size = 0, file.size()
    while position < size:
        data = file.read(1 << 20, position)
        scratch.write([data], position)
        position += len(data)
    scratch.sync()
    partition.ctx.files.rename(f"{copy.path}.new", copy.log_path)
    partition.ctx.files.sync_dir(partition.directory)
    partition.log.remove(segment)
