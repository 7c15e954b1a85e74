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
from streamlite.staging import Lane, encode

__all__ = ["Direct", "Single"]

_SLOW_S: Final = 0.02
"""A write that takes longer shows a slow disk: for `_SLOW_FOR_S` the worker writes, and senders go on staging."""
_SLOW_FOR_S: Final = 1.0


class Single(Outcome):
    """What became of one message that was not staged: settled from the beginning."""

    __slots__ = ()

    def __init__(
        self, sender: Sender, partition: Partition, stamp: int, base: int, error: StreamliteError | None
    ) -> None:
        self.sender = sender
        self.topic, self.partition = partition.tp
        self.count = 1
        self.stamps = (stamp,)
        self.base = base
        self.error = error
        self.seen = False
        self._callbacks = None
        self.done = True

    def metadata(self, item: Any) -> RecordMetadata:
        return RecordMetadata(self.topic, self.partition, self.base, self.stamps[0])  # type: ignore[index]


class Direct:
    """This way of one producer. Until `slow_until`, on the machine's clock, senders leave writing to the worker."""

    def __init__(self, sender: Sender, outbox: Outbox, now: Callable[[], float], quiet_s: float) -> None:
        self._sender = sender
        self._outbox = outbox
        self._now = now
        self._quiet_s = quiet_s
        self._last: Single | None = None
        self.slow_until = 0.0

    def send(self, lane: Lane, partition: Partition, item: tuple[Any, ...]) -> Delivery | None:
        """Write an item, where it is one that need not wait; `None` where it is to be staged."""
        if lane.active or self._outbox.unsettled:
            return None
        now = self._now()
        if not lane.hurried and now - lane.last_at < self._quiet_s:
            return None
        begun = time.monotonic()
        if begun < self.slow_until:
            return None
        single = self._append(partition, item, now)
        if single is None:
            return None
        before, self._last = self._last, single
        if lane.hurried and not (before is not None and before.seen):
            lane.hurried -= 1  # the last result was not asked for: perhaps nobody waits any more
        lane.last_at = self._now()
        self.note_time(begun)
        if item[1] is None and len(lane.parts) > 1:
            with self._sender.mutex:
                lane.next_sticky()
        delivery = Delivery(single, 0)
        if single.error is not None:
            self._outbox.note_failed(single)
        else:
            # The last thing: who is woken needs the GIL, and gets it when this thread is through.
            partition.announce()
        return delivery

    def note_time(self, begun: float) -> None:
        """A sender's thread began to write then, and has written."""
        now = time.monotonic()
        if now - begun > _SLOW_S:
            self.slow_until = now + _SLOW_FOR_S

    def _append(self, partition: Partition, item: tuple[Any, ...], now: float) -> Single | None:
        """As a batch of one, not announced yet; `None` where the partition's lock was taken."""
        stamp, settings = int(now * 1000), partition.topic.settings
        try:
            if len(item) == 2 and settings.compression == "none":
                payload = encode_single(item[1], item[0])
                outgoing = Outgoing(payload, 1, stamp, stamp, len(payload))
            else:
                stamp, outgoing = _encoded(settings, item, stamp)
            result = partition.guard.attempt(partial(partition.append_locked, (outgoing,)))
        except StreamliteError as error:
            return Single(self._sender, partition, stamp, -1, error)
        if result is None:
            return None
        return Single(self._sender, partition, stamp, result.offsets[0] if result.offsets else -1, result.error)


def _encoded(settings: TopicSettings, item: tuple[Any, ...], stamp: int) -> tuple[int, Outgoing]:
    """The timestamp and the batch of any item."""
    headers = None
    if len(item) > 2:
        stamp = stamp if item[2] is None else item[2]
        headers = [item[3]]
    keys = None if item[1] is None else (item[1],)
    return stamp, encode(settings, (item[0],), keys, (stamp, stamp, None), headers)
