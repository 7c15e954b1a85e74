"""Where messages wait for their batch: a `Lane` for each topic, in it a `Part` for each partition.

A part's open `Batch` takes messages as tuples `(value, key)`, or `(value, key, timestamp, headers)` for the few that
bring more. Putting one in is a single `list.append` and takes no lock. What makes that safe: a batch is sealed under
the producer's mutex, and first the part gets another batch (`NOTHING`), then the number of its items is taken down. So
a sender who finds, after its append, that the part still has the batch it appended to, knows that its item was counted.
One who finds another asks under the mutex (`Batch.holds`), and stages the item again if it came too late.

A batch says itself what may be put in without asking: values up to `small` bytes, until `tick` on the clock. Everything
else goes through the mutex, where time and room are accounted for. Timestamps are kept as steps, since a burst has
thousands of messages a millisecond: from which place on which time holds. Room is charged by what messages of the lane
took lately, and exactly once the batch is encoded; in between lies a millisecond of small messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from streamlite.batch import Timestamps, encode_payload, timestamp_steps
from streamlite.compression import codec
from streamlite.config import TopicSettings
from streamlite.delivery import Outcome, Sender
from streamlite.errors import StreamliteError
from streamlite.partition import Outgoing, Partition
from streamlite.partitioner import partitioner
from streamlite.registry import TopicState

__all__ = ["MESSAGE_OVERHEAD", "NOTHING", "NO_PART", "STAGED_MAX", "Batch", "ByTopic", "Lane", "Part", "anew", "encode"]

MESSAGE_OVERHEAD: Final = 250
"""Bytes that a staged message takes in memory beside its payload: tuple, delivery, column entries."""
STAGED_MAX: Final = 20_000
"""Messages in a batch at most: beyond this a batch saves nothing more, and a reader must decode it whole."""
KEYS_MAX: Final = 100_000
"""Keys whose part is remembered. When it is full all are forgotten, which costs a hash each."""
SMALL_BYTES: Final = 512
"""Values up to this are put in without accounting: a millisecond of them is a few MiB at most."""
KEY_BYTES_MAX: Final = 256
"""Longer keys are hashed each time: remembering them would keep them in memory."""

_NEVER: Final = float("-inf")


class Batch(Outcome):
    """An open or sealed batch of one partition; what became of it is asked of its `Outcome` side."""

    __slots__ = ("_outgoing", "charged", "items", "kept", "mixed", "part", "sent", "sequences", "small", "tick")

    def __init__(self, sender: Sender, part: Part) -> None:
        super().__init__(sender, part.partition.topic.name, part.partition.number)
        self.part = part
        self.items: list[tuple[Any, ...]] = []
        self._outgoing: Outgoing | None = None
        self.kept: list[tuple[Any, ...]] = []
        """The items, where each is to be told of when it is settled."""
        self.mixed = False
        self.sequences: list[int] = []
        """Of each item, where a named producer was given them."""
        self.charged = 0
        self.sent = False  # whether it is, or was, the outbox's
        self.small = part.lane.small
        self.tick = _NEVER

    def step(self, now: float) -> None:
        """From here on the time is `now` (seconds), and until the next millisecond nobody needs to ask."""
        moment = int(now * 1000)
        self.steps[len(self.items)] = moment
        if self.part.lane.ticks:
            self.tick = (moment + 1) / 1000

    def holds(self, items: list[tuple[Any, ...]], item: tuple[Any, ...]) -> bool:
        """Whether `item`, put in `items` while the batch was being sealed, came in time; under the mutex."""
        if items is _GONE:
            _GONE.clear()
            return False
        return any(one is item for one in items[: self.count])

    def encoded(self, *, keep: bool) -> Outgoing:
        """The sealed batch as bytes, made once."""
        if self._outgoing is None:
            self._outgoing = self.encode(keep=keep)
        self.drop_items()
        return self._outgoing

    def drop_items(self) -> None:
        """They are encoded."""
        self.items = _GONE

    def settle(self, base: int, error: StreamliteError | None) -> None:
        self._outgoing = None
        super().settle(base, error)

    def encode(self, *, keep: bool = False) -> Outgoing:
        """Make it; with `keep`, the items are put aside. Can be done again if it was interrupted."""
        if keep:
            self.kept = self.items[: self.count]
        items, settings = self.items[: self.count], self.part.partition.topic.settings
        headers = None
        if self.mixed:
            items, self.stamps, headers = self._unmix(items)
        values: Sequence[bytes | None]
        keys: Sequence[Any]
        values, keys = zip(*items, strict=True)
        if self.part.lane.has_text:
            keys = [key.encode() if type(key) is str else key for key in keys]
        if self.stamps is None:
            base, greatest, steps = self._steps()
        else:
            base, greatest, steps = timestamp_steps(self.stamps)
        self.ids = list(map(id, self.items[: self.count]))
        return encode(settings, values, keys, (base, greatest, steps), headers, self.sequences[: self.count])

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
        self.small = -1
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


class _NoPart(Part):
    """Where a message seems to go of which more must be known: nothing can be put in there."""

    def __init__(self) -> None:
        self.batch = NOTHING


NO_PART: Final = _NoPart()


class ByTopic(dict[Any, "ByKey"]):
    """What `send` was given as topic, to the parts of its keys; nothing for what is not known."""

    def __missing__(self, topic: Any) -> ByKey:
        return _UNKNOWN


class ByKey(dict[Any, Part]):
    """Key to part, for keys that are bytes or text, and for no key where none is needed. Any other has `NO_PART`.

    Text is staged as it is, and becomes bytes with its batch; the lane notes that there is some.
    """

    __slots__ = ("_lane", "_parts", "_place")

    def __init__(self, place: Callable[[bytes, int], int], parts: Sequence[Part], lane: Lane | None) -> None:
        super().__init__()
        self._place = place
        self._parts = parts
        self._lane = lane

    def __missing__(self, key: Any) -> Part:
        data = key
        if type(key) is str:
            try:
                data = key.encode()
            except UnicodeEncodeError:
                return NO_PART
        elif type(key) is not bytes:
            return NO_PART
        if len(data) > KEY_BYTES_MAX or self._lane is None:
            return NO_PART
        if data is not key:
            self._lane.has_text = True
        if len(self) >= KEYS_MAX:
            keyless = self.get(None)
            self.clear()
            if keyless is not None:
                self[None] = keyless
        part = self[key] = self.part(data)
        return part

    def part(self, key: bytes) -> Part:
        """The part of a key, however long."""
        return self._parts[self._place(key, len(self._parts))]


class _Unknown(ByKey):
    def __init__(self) -> None:
        super().__init__(partitioner("xxh3"), (), None)


_UNKNOWN: Final = _Unknown()


class Lane:
    """The staged messages of one topic. `by_key` and `left` are used without a lock, the rest under the mutex."""

    __slots__ = (
        "_sticky", "active", "by_key", "bytes_free", "due_at", "has_text", "hurried", "last_at", "left",
        "message_bytes", "message_bytes_max", "opened", "parts", "reserved", "settings", "small", "state", "ticks",
    )  # fmt: skip

    def __init__(self, state: TopicState, sticky: int, *, ticks: bool) -> None:
        self.state = state
        self.ticks = ticks  # whether the clock goes by itself; else every message asks it
        self.message_bytes = MESSAGE_OVERHEAD + SMALL_BYTES  # what one takes of the buffer, as of late
        self.active: deque[Batch] = deque()  # open batches, and those that are just being sealed
        self.left = self.reserved = 0
        self.due_at = 0.0  # on the clock of timestamps, seconds
        self.opened = 0.0  # on the monotonic clock
        self.last_at = _NEVER  # when the lane was last sealed, on the clock of timestamps
        self.hurried = 0  # so many batches more go at once, since somebody waited for one
        self._sticky = sticky
        self.has_text = False  # whether keys of staged items may be text
        self.parts: list[Part] = []
        self.take_settings()

    def take_settings(self) -> None:
        """Take up what the topic's settings say now; nothing is staged."""
        state = self.state
        settings = self.settings = state.settings
        self.message_bytes_max = settings.max_message_bytes
        # Keys that `by_key` knows are short: a value up to this makes no message too large.
        self.bytes_free = settings.max_message_bytes - KEY_BYTES_MAX
        self.small = min(SMALL_BYTES, self.bytes_free)
        self.parts += [Part(self, partition) for partition in state.partitions[len(self.parts) :]]
        self.by_key = ByKey(partitioner(settings.partitioner), self.parts, self)
        if not settings.compacted:
            self.by_key[None] = self.parts[self._sticky % len(self.parts)]

    def next_sticky(self) -> Part:
        """Messages without a key go to another part from now on; returns the one they went to."""
        part = self.parts[self._sticky % len(self.parts)]
        self._sticky += 1
        if not self.state.settings.compacted:
            self.by_key[None] = self.parts[self._sticky % len(self.parts)]
        return part

    @property
    def stale(self) -> bool:
        """Whether the topic has other settings or more partitions than the lane was made for."""
        return self.settings is not self.state.settings or len(self.parts) != len(self.state.partitions)

    def charge(self, batch: Batch) -> None:
        """Under the mutex: take what came to the batch without asking off the room."""
        count = len(batch.items)
        self.left -= (count - batch.charged) * self.message_bytes
        batch.charged = count

    def seal(self, put: Callable[[Batch], None]) -> None:
        """Hand what is staged to `put`, under the mutex. Goes on where a signal handler interrupted it.

        A batch that was interrupted here stays first among the active ones, and its part may have another one by then.
        """
        active = self.active
        while active:
            batch = active[0]
            if batch.part.batch is batch:
                batch.part.batch = NOTHING
            if not batch.count:
                count = len(batch.items)
                batch.count, batch.bytes = count, count * self.message_bytes
            if batch.count:
                put(batch)
            # A signal handler or finalizer that sends may have sealed in between, and another batch be the first. No
            # handler runs between the look and the call.
            if active and active[0] is batch:
                active.popleft()
        if len(self.parts) > 1:
            self.next_sticky()


def anew(item: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
    """A pair that came too late for its batch as it is staged with a check, and what it takes of the buffer."""
    value, key = item
    key = key.encode() if type(key) is str else key
    return (value, key), len(value) + len(key or b"") + MESSAGE_OVERHEAD


def encode(
    settings: TopicSettings,
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None,
    times: tuple[int, int, Timestamps],
    headers: Sequence[Any] | None,
    sequences: Sequence[int] = (),
) -> Outgoing:
    """One batch for one partition, compressed as the topic has it. `times`: as `timestamp_steps` gives them.

    `sequences`: of each message, where a named producer was given them.
    """
    base, greatest, steps = times
    column = None
    if sequences and sequences[-1] - sequences[0] >= len(values):
        column = [sequence - sequences[0] for sequence in sequences]  # some were left out
    content = encode_payload(keys, values, steps, headers, sequences=column)
    if settings.compression == "none":
        outgoing = Outgoing(content, len(values), base, greatest, len(content))
    else:
        chosen = codec(settings.compression)
        outgoing = Outgoing(chosen.compress(content), len(values), base, greatest, len(content), chosen.id)
    if not sequences:
        return outgoing
    return outgoing._replace(base_sequence=sequences[0], sequences=None if column is None else tuple(sequences))
