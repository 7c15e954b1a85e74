"""Where messages wait for their batch: a `Lane` for each topic, in it a `Part` for each partition.

A part's open `Batch` takes messages as tuples `(value, key)`, or `(value, key, timestamp, headers)` for the few that
bring more. Putting one in is a single `list.append` and takes no lock. What makes that safe:

* A batch is sealed under the producer's mutex: first the part gets another batch (`NOTHING`), then the number of its
  items is taken down. So a sender who finds, after its append, that the part still has the batch it appended to, knows
  that its item was counted. One who finds another asks under the mutex (`Batch.holds`), and stages the item again if
  it came too late.
* What senders count down without a lock (`Lane.left`) may lose an update to a race: it only says when a batch is about
  full, and the buffer is charged and credited with the same number.

Timestamps are kept as steps, since a burst has thousands of messages a millisecond: a batch notes from which place on
which time holds, and `tick` says until when the last step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from streamlite.batch import Timestamps, encode_payload, timestamp_steps
from streamlite.compression import codec
from streamlite.config import TopicSettings
from streamlite.delivery import Outcome, Sender
from streamlite.partition import Outgoing, Partition
from streamlite.partitioner import partitioner
from streamlite.registry import TopicState

__all__ = ["MESSAGE_OVERHEAD", "NOTHING", "STAGED_MAX", "Batch", "Lane", "Part", "encode", "place"]

MESSAGE_OVERHEAD: Final = 250
"""Bytes that a staged message takes in memory beside its payload: tuple, delivery, column entries (PERFORMANCE, S12)."""
STAGED_MAX: Final = 20_000
"""Messages in a batch at most: beyond this a batch saves nothing more, and a reader must decode it whole."""
KEYS_MAX: Final = 100_000
"""Keys whose part is remembered. When it is full all are forgotten, which costs a hash each."""
KEY_BYTES_MAX: Final = 256
"""Longer keys are hashed each time: remembering them would keep them in memory."""

_NEVER: Final = float("-inf")


class Batch(Outcome):
    """An open or sealed batch of one partition; what became of it is asked of its `Outcome` side."""

    __slots__ = ("items", "mixed", "part", "tick")

    def __init__(self, sender: Sender, part: Part) -> None:
        super().__init__(sender, part.partition.topic.name, part.partition.number)
        self.part = part
        self.items: list[tuple[Any, ...]] = []
        self.mixed = False
        self.tick = _NEVER

    def step(self, now: float) -> None:
        """From here on the time is `now` (seconds)."""
        moment = int(now * 1000)
        self.steps[len(self.items)] = moment
        self.tick = (moment + 1) / 1000

    def holds(self, items: list[tuple[Any, ...]], item: tuple[Any, ...]) -> bool:
        """Whether `item`, put in `items` while the batch was being sealed, came in time; under the mutex."""
        if items is _GONE:
            _GONE.clear()
            return False
        return any(one is item for one in items[: self.count])

    def encode(self) -> Outgoing:
        """The sealed batch as bytes; drops its items."""
        items, settings = self.items[: self.count], self.part.partition.topic.settings
        headers = None
        if self.mixed:
            items, self.stamps, headers = self._unmix(items)
        values, keys = zip(*items, strict=True)
        if self.stamps is None:
            base, greatest, steps = self._steps()
        else:
            base, greatest, steps = timestamp_steps(self.stamps)
        self.items = _GONE
        return encode(settings, values, keys, (base, greatest, steps), headers)

    def _steps(self) -> tuple[int, int, Timestamps]:
        """`(base, greatest, column)` of the steps; under a race one may lie beyond the last item."""
        steps = self.steps
        if len(steps) == 1:
            return steps[0], steps[0], None
        steps = {place: moment for place, moment in sorted(steps.items()) if place < self.count}
        base, greatest = min(steps.values()), max(steps.values())
        if base == greatest:
            return base, greatest, None
        return base, greatest, {place: moment - base for place, moment in steps.items()}

    def _unmix(self, items: list[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], list[int], list[Any] | None]:
        """Pairs, timestamps and headers of items of both shapes."""
        stamps, headers = [], []
        steps, now = self.steps, 0
        for index, item in enumerate(items):
            now = steps.get(index, now)
            stamps.append(now if len(item) == 2 or item[2] is None else item[2])
            headers.append(item[3] if len(item) == 4 and item[3] else None)
        return [item[:2] for item in items], stamps, headers if any(headers) else None


class _Nothing(Batch):
    """What a part has while no batch is open: its tick has always passed, so nobody puts anything in."""

    def __init__(self) -> None:
        self.tick = _NEVER
        self.items = _GONE
        self.count = 0


_GONE: Final[list[tuple[Any, ...]]] = []
"""What a batch has for items once they are encoded: what a sender puts in here came too late."""
NOTHING: Final = _Nothing()


class Part:
    """One partition of a lane."""

    __slots__ = ("batch", "lane", "partition")

    def __init__(self, lane: Lane, partition: Partition) -> None:
        self.lane = lane
        self.partition = partition
        self.batch: Batch = NOTHING


class _ByKey(dict[Any, Part | None]):
    """Key to part; `None` for what may not be sent without asking: no key, where one is needed."""

    __slots__ = ("_parts", "_place")

    def __init__(self, place: Callable[[bytes, int], int], parts: Sequence[Part]) -> None:
        super().__init__()
        self._place = place
        self._parts = parts

    def __missing__(self, key: Any) -> Part | None:
        if key is None:
            return None
        part = self._parts[self._place(key, len(self._parts))]
        if len(key) <= KEY_BYTES_MAX:
            if len(self) >= KEYS_MAX:
                keyless = self.get(None)
                self.clear()
                self[None] = keyless
            self[key] = part
        return part


class Lane:
    """The staged messages of one topic. `by_key` and `left` are used without a lock, the rest under the mutex."""

    __slots__ = (
        "_sticky", "active", "by_key", "due_at", "hurried", "last_at", "left", "message_bytes_max", "opened", "parts", "reserved",
        "state",
    )  # fmt: skip

    def __init__(self, state: TopicState, sticky: int) -> None:
        self.state = state
        self.active: list[Part] = []  # those with an open batch
        self.left = self.reserved = 0
        self.due_at = 0.0  # on the clock of timestamps, seconds
        self.opened = 0.0  # on the monotonic clock
        self.last_at = _NEVER  # when the lane was last sealed, on the clock of timestamps
        self.hurried = 0  # so many batches more go at once, since somebody waited for one
        self._sticky = sticky
        self.parts: list[Part] = []
        self.take_settings()

    def take_settings(self) -> None:
        """Take up what the topic's settings say now; nothing is staged."""
        state, settings = self.state, self.state.settings
        self.message_bytes_max = settings.max_message_bytes
        self.parts += [Part(self, partition) for partition in state.partitions[len(self.parts) :]]
        self.by_key = _ByKey(partitioner(settings.partitioner), self.parts)
        self.by_key[None] = None if settings.compacted else self.parts[self._sticky % len(self.parts)]

    def next_sticky(self) -> Part:
        """Messages without a key go to another part from now on; returns the one they went to."""
        part = self.parts[self._sticky % len(self.parts)]
        self._sticky += 1
        if not self.state.settings.compacted:
            self.by_key[None] = self.parts[self._sticky % len(self.parts)]
        return part

    def seal(self) -> list[Batch]:
        """Take out what is staged, under the mutex."""
        batches = []
        for part in self.active:
            batch, part.batch = part.batch, NOTHING
            batch.count = len(batch.items)
            if batch.count:
                batches.append(batch)
        self.active = []
        if len(self.parts) > 1:
            self.next_sticky()
        return batches


def place(items: list[tuple[Any, ...]], item: tuple[Any, ...]) -> int:
    """Where `item`, which was just put in, stands: nearly always last."""
    index = len(items) - 1
    while items[index] is not item:
        index -= 1
    return index


def encode(
    settings: TopicSettings,
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None,
    times: tuple[int, int, Timestamps],
    headers: Sequence[Any] | None,
) -> Outgoing:
    """One batch for one partition, compressed as the topic has it. `times`: as `timestamp_steps` gives them."""
    base, greatest, steps = times
    content = encode_payload(keys, values, steps, headers)
    if settings.compression == "none":
        return Outgoing(content, len(values), base, greatest, len(content))
    chosen = codec(settings.compression)
    return Outgoing(chosen.compress(content), len(values), base, greatest, len(content), chosen.id)
