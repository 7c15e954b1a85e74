"""Retention and compaction: which segments may go, and when somebody looks.

One bus at a time does it, whoever gets the maintenance lock; in the background every `INTERVAL_S` while there is a
topic that asks for it, and at once by `run(force=True)`. As in Kafka, retention takes whole segments from the old end:
by time, those whose newest message is older than `retention_ms` (the active one too: it is sealed first); by size, as
long as what stays is at least `retention_bytes`.
"""

from __future__ import annotations

import logging
from typing import Final

from streamlite.compaction import compact
from streamlite.context import Context
from streamlite.counters import ACTIVE, CHANGES, MAX_TIME, POSITION, from_word
from streamlite.errors import StreamliteError, UnknownTopicError
from streamlite.ledger import Ledger
from streamlite.log import last_timestamp
from streamlite.marks import MAINTENANCE_LOCK
from streamlite.partition import Partition
from streamlite.registry import Registry, TopicState
from streamlite.segment import Segment
from streamlite.worker import Worker

__all__ = ["Maintenance"]

logger = logging.getLogger("streamlite")

INTERVAL_S: Final = 60.0
"""Between two looks in the background; Kafka's log.retention.check.interval.ms is five times that."""
FIRST_S: Final = 5.0
"""Before the first: who has just opened a bus has better things to do than to rewrite it; Kafka's broker waits 30."""


class Maintenance:
    """What keeps the logs of one bus in bounds."""

    def __init__(self, ctx: Context, registry: Registry, ledger: Ledger) -> None:
        self._ctx = ctx
        self._registry = registry
        self._ledger = ledger
        self._guard = ctx.guard(MAINTENANCE_LOCK, f"the maintenance of {ctx.files.root}")
        self._begun = False
        self._waits = False
        """Whether the first look is still to be put off."""
        self.worker = Worker("maintenance", self._step, ctx.clock)

    def needed_for(self, state: TopicState) -> None:
        """A topic was opened, created or altered: begin to look, if it asks for it."""
        settings = state.settings
        wanted = settings.compacted or settings.retention_ms is not None or settings.retention_bytes is not None
        if wanted and not self._begun and not self._ctx.read_only:
            self._begun = self._waits = True
            self.worker.wake()

    def look_soon(self) -> None:
        """There is something to do."""
        if not self._ctx.read_only:
            self._begun, self._waits = True, False
            self.worker.wake()

    def _step(self) -> float | None:
        if self._waits:
            self._waits = False
            return FIRST_S
        if not self._ctx.closed and not self._ctx.forked:
            self._guard.attempt(lambda: self._every_topic(force=False))
        return INTERVAL_S

    def run(self) -> None:
        """Look at every topic now; raises what goes wrong."""
        self._guard.run(lambda: self._every_topic(force=True), self._ctx.lock_timeout)

    def _every_topic(self, *, force: bool) -> None:
        try:
            self._ledger.prune()
        except StreamliteError:
            if force:
                raise
            logger.exception("old commit records stay for now")
        for name in self._registry.all_names():
            state = self._registry.find(name)
            if state is None:
                continue
            for partition in list(state.partitions):
                try:
                    self._keep_in_bounds(partition, force=force and not name.startswith("__"))
                except UnknownTopicError:
                    break  # deleted meanwhile
                except StreamliteError:
                    if force:
                        raise
                    logger.exception("maintenance of %s failed, it is tried again", partition.directory)

    def _keep_in_bounds(self, partition: Partition, *, force: bool) -> None:
        settings = partition.topic.settings
        now = self._ctx.clock.time_ms()
        if settings.deleting and settings.retention_ms is not None:
            _retain_by_time(partition, now - settings.retention_ms)
        if settings.deleting and settings.retention_bytes is not None:
            _retain_by_size(partition, settings.retention_bytes)
        if settings.compacted:
            compact(partition, now, force=force)


def _segments(partition: Partition) -> list[Segment]:
    return list(partition.log.segments(partition.slot.get(CHANGES)).values())


def _retain_by_time(partition: Partition, oldest_ms: int) -> None:
    """Remove the leading segments all of whose messages are older than `oldest_ms`."""

    def retain() -> None:
        slot = partition.slot
        segments = _segments(partition)
        keep = 0
        while keep < len(segments) and _newest(partition, segments[keep]) < oldest_ms:
            keep += 1
        if keep == len(segments):
            partition.roll()
            partition.drop_before(slot.end)
        elif keep:
            partition.drop_before(segments[keep].base)

    partition.locked(retain)


def _newest(partition: Partition, segment: Segment) -> int:
    if segment.base == partition.slot.get(ACTIVE) and not segment.generation:
        return from_word(partition.slot.get(MAX_TIME)) if partition.slot.get(POSITION) else 1 << 62
    return last_timestamp(segment)


def _retain_by_size(partition: Partition, bytes_kept: int) -> None:
    """Remove leading segments as long as what stays is at least `bytes_kept`."""

    def retain() -> None:
        segments = _segments(partition)
        sizes = [segment.file().size() for segment in segments]
        total, gone = sum(sizes), 0
        while gone < len(segments) - 1 and total - sizes[gone] >= bytes_kept:
            total -= sizes[gone]
            gone += 1
        if gone:
            partition.drop_before(segments[gone].base)

    partition.locked(retain)
