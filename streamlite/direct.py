"""The way of a message that goes at once: from `send` to the log, without a batch to wait in.

A message after a quiet moment, or of somebody who waits for each result, has no company to wait for. Where nothing else
of its producer is on the way, its partition's lock is free, and no sync is part of the append, the sending thread
writes it as a batch of one, and its `Delivery` is settled when `send` returns. Nothing is overtaken: whatever this
thread sent before has been written. If the lock is taken it is staged like any other (`None`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from streamlite.batch import encode_single
from streamlite.config import TopicSettings
from streamlite.delivery import Delivery, Outcome, Sender
from streamlite.errors import StreamliteError
from streamlite.message import RecordMetadata
from streamlite.outbox import Outbox
from streamlite.partition import Outgoing, Partition
from streamlite.registry import Registry
from streamlite.staging import NO_PART, NOTHING, Lane, Part, encode

__all__ = ["Direct", "Single"]

_SLOW_S: Final = 0.02
"""A write that takes longer shows a slow disk: for `_SLOW_FOR_S` the worker writes, and senders go on staging, but for
who waits for each result anyway."""
_SLOW_FOR_S: Final = 1.0


class Single(Outcome):
    """What became of one message that was not staged: settled from the beginning."""

    __slots__ = ()
    done = True
    count = 1
    _callbacks = None

    def __init__(
        self, sender: Sender, partition: Partition, stamp: int, base: int, error: StreamliteError | None
    ) -> None:
        self.sender = sender
        self.topic, self.partition = partition.tp
        self.stamps = (stamp,)
        self.base = base
        self.error = error
        self.seen = False

    def metadata(self, item: Any) -> RecordMetadata:
        return RecordMetadata(self.topic, self.partition, self.base, self.stamps[0])  # type: ignore[index]


class Direct:
    """This way of one producer. Until `slow_until`, on the machine's clock, senders leave writing to the worker."""

    def __init__(
        self, sender: Sender, registry: Registry, outbox: Outbox, now: Callable[[], float], quiet_s: float
    ) -> None:
        self._sender = sender
        self._registry = registry
        self._outbox = outbox
        self._now = now
        self._quiet_s = quiet_s
        self._last: Single | None = None
        self.slow_until = 0.0

    def plain(self, part: Part, value: bytes, key: bytes | str | None) -> Delivery | None:
        """As `send`, of a part that `Routes.raw` gave for the topic and this key: there is nothing to be checked.

        But whether the topic has changed since, and the size; `None` for these too.
        """
        if part.batch is not NOTHING or part is NO_PART:
            return None
        lane = part.lane
        if len(value) > lane.bytes_free or lane.state.seen != self._registry.changes or lane.stale:
            return None
        return self.send(lane, part.partition, (value, key.encode() if type(key) is str else key))

    def send(self, lane: Lane, partition: Partition, item: tuple[Any, ...]) -> Delivery | None:
        """Write an item, where it is one that need not wait; `None` where it is to be staged."""
        if lane.active or self._outbox.unsettled:
            return None
        now = self._now()
        if not lane.hurried and now - lane.last_at < self._quiet_s:
            return None
        before = self._last
        waits = before is not None and before.seen
        begun = time.monotonic()
        if begun < self.slow_until and not waits:
            return None
        single = self._append(partition, item, now)
        if single is None:
            return None
        self._last = single
        if lane.hurried and not waits:
            lane.hurried -= 1  # the last result was not asked for: perhaps nobody waits any more
        lane.last_at = now
        self.note_time(begun)
        if item[1] is None and len(lane.parts) > 1:
            with self._sender.mutex:
                lane.next_sticky()
        delivery = Delivery(single, 0)
        if single.error is not None:
            self._outbox.note_failed(single)
        return delivery

    def note_time(self, begun: float) -> None:
        """A sender's thread began to write then, and has written."""
        now = time.monotonic()
        if now - begun > _SLOW_S:
            self.slow_until = now + _SLOW_FOR_S

    def _append(self, partition: Partition, item: tuple[Any, ...], now: float) -> Single | None:
        """As a batch of one; `None` where the partition's lock was taken."""
        stamp, settings = int(now * 1000), partition.topic.settings
        try:
            if len(item) == 2 and settings.compression == "none":
                append = partial(partition.append_single, encode_single(item[1], item[0]), stamp)
            else:
                stamp, outgoing = _encoded(settings, item, stamp)
                append = partial(_append, partition, outgoing)
            offset = partition.guard.attempt(append)
        except StreamliteError as error:
            return Single(self._sender, partition, stamp, -1, error)
        if offset is None:
            return None
        # Who is woken needs the GIL too, but takes longer to come to it than what is left to do here.
        partition.announce()
        return Single(self._sender, partition, stamp, offset, None)


def _append(partition: Partition, outgoing: Outgoing) -> int:
    return partition.append_locked((outgoing,)).offsets[0]


def _encoded(settings: TopicSettings, item: tuple[Any, ...], stamp: int) -> tuple[int, Outgoing]:
    """The timestamp and the batch of any item."""
    headers = None
    if len(item) > 2:
        stamp = stamp if item[2] is None else item[2]
        headers = [item[3]]
    keys = None if item[1] is None else (item[1],)
    return stamp, encode(settings, (item[0],), keys, (stamp, stamp, None), headers)
