"""Bringing what was appended to the device, every `sync_interval_ms`, in one background thread a bus.

Each bus syncs what it appended itself. It also looks at the ends of all partitions, block by block: where an end moved
beyond the synced offset and is still there at the next pass, its writer died (or is stopped), and this bus syncs it.
At `sync="never"` only sealed segments are synced, so that recovery never has to read more than what is recent.

A sync that fails has closed its partition (see `Partition.sync`); here it is only logged, once.
"""

from __future__ import annotations

import logging

from streamlite.clock import SystemClock
from streamlite.context import Context
from streamlite.counters import FAILED, FLAGS, RECOVER, SYNCED
from streamlite.errors import StreamliteError, UnknownTopicError
from streamlite.partition import Partition
from streamlite.registry import Registry
from streamlite.worker import Worker

__all__ = ["Syncer"]

logger = logging.getLogger("streamlite")

_SEALED_S = 0.1
"""At level "never": how soon a sealed segment is synced. Nobody waits for it."""


class Syncer:
    """The thread and its passes."""

    def __init__(self, ctx: Context, registry: Registry, interval_s: float) -> None:
        self._ctx = ctx
        self._registry = registry
        self._interval = interval_s
        self._foreign: dict[int, int] = {}  # slot -> end, unsynced at the last pass and not of this bus
        self._pages: list[bytes] = []
        # Durability runs on real time: a test's virtual clock makes no disk faster.
        self.worker = Worker("sync", self._step, SystemClock())

    def woken(self) -> None:
        """A partition became dirty."""
        if self.worker.idle:
            self.worker.wake()

    def _step(self) -> float | None:
        ctx = self._ctx
        if ctx.closed or ctx.forked:
            return None
        if ctx.sync == "never":
            return self._sync_sealed()
        self.sync_dirty()
        self._sync_foreign()
        return self._interval

    def _sync_sealed(self) -> float | None:
        ctx = self._ctx
        ctx.dirty.clear()
        while ctx.sealed:
            self._sync(ctx.sealed.pop(), sealed_only=True)
        return None

    def sync_dirty(self) -> None:
        """Sync what this bus appended since it last did."""
        ctx = self._ctx
        ctx.sealed.clear()
        for partition in list(ctx.dirty):
            self._sync(partition)

    def _sync(self, partition: Partition, *, sealed_only: bool = False) -> None:
        try:
            partition.sync(sealed_only=sealed_only)
        except UnknownTopicError:
            return  # deleted: there is nothing left of it that could be lost
        except StreamliteError as error:
            logger.error("sync of %s failed, it takes no more writes: %s", partition.directory, error)

    def _sync_foreign(self) -> None:
        """Sync what others left unsynced for a whole interval."""
        found = self._unsynced()
        late = [slot for slot, end in found.items() if self._foreign.get(slot) is not None]
        self._foreign = found
        if late:
            by_slot = {partition.slot.number: partition for partition in self._registry.every_partition()}
            for slot in late:
                if slot in by_slot:
                    self._sync(by_slot[slot])

    def _unsynced(self) -> dict[int, int]:
        counters = self._ctx.counters
        found = {}
        for block in range(counters.blocks_on_file()):
            page = counters.ends_page(block).tobytes()
            if block == len(self._pages):
                self._pages.append(b"")
            if page != self._pages[block] or any(slot // counters.slots_a_block == block for slot in self._foreign):
                self._pages[block] = page
                for slot in counters.occupied(block):
                    behind = slot.end > slot.get(SYNCED) or slot.get(FLAGS) & RECOVER
                    if behind and not slot.get(FAILED):
                        found[slot.number] = slot.end
        return found
