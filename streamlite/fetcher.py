"""What a consumer reads ahead: a `Track` for each assigned partition, and which of them have something to read.

Ten thousand idle partitions must cost nothing: the fetcher compares the pages of published ends with what they were (a
page holds 512 of them) and looks only at partitions whose end moved; where it reads few of a page, it looks at these. A
partition stays ready until a fetch found its end; ready ones are served in turn.

A track knows three offsets: `position`, the next to hand out; `processed`, up to where the application is done; and
`committed`, what the group's log was told last. Commits are the consumer's; here they are only kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from streamlite.batch import Batch
from streamlite.context import Context
from streamlite.counters import SLOTS
from streamlite.message import Message, TopicPartition
from streamlite.partition import Partition
from streamlite.reader import Cursor
from streamlite.serde import Serde

__all__ = ["Fetcher", "Track"]

_WORD: Final = 8
_FEW: Final = 4
"""So many partitions of a page are looked at one by one, which takes less time than to copy and compare the page."""


class Track:
    """One assigned partition of one consumer."""

    __slots__ = (
        "at", "batch", "began", "committed", "cursor", "key", "noted", "ownership", "partition", "paused", "position",
        "processed", "seen_end", "told", "tp", "value",
    )  # fmt: skip

    def __init__(self, partition: Partition, offset: int, types: tuple[Serde | None, Serde | None]) -> None:
        self.partition = partition
        self.tp: TopicPartition = partition.tp
        self.key, self.value = types
        self.cursor = Cursor(partition, offset)
        self.position = offset
        self.processed = offset
        self.committed: int | None = None
        self.began = offset  # where this consumer began to read it, or was told to go on
        self.noted = offset  # what need not be committed: it is, or nothing was processed since
        self.ownership = 0
        self.paused = False
        self.told = False  # whether the application was told that it is assigned
        self.batch: Batch | None = None  # decoded and not all handed out; `at` is the next of it
        self.at = 0
        self.seen_end = -1  # the published end at the last look, where few partitions are read

    def seek(self, offset: int) -> None:
        """Hand out `offset` next."""
        self.batch = None
        self.cursor.seek(offset)
        self.position = offset

    def rewind(self) -> None:
        """Hand out what is not processed again."""
        if self.position != self.processed:
            self.seek(self.processed)

    def start_over(self) -> None:
        """As `rewind`, whatever was cut off in the middle: nothing but `processed` is believed."""
        self.cursor = Cursor(self.partition, self.processed)
        self.batch = None
        self.position = self.processed

    def load(self) -> Batch | None:
        """The batch that holds the next message, `at` standing at it; `None` at the published end."""
        batch = self.batch
        if batch is not None:
            return batch
        cursor = self.cursor
        batch = cursor.fetch()
        if batch is None:
            self._pass_gap(cursor.offset)
            return None
        offsets = batch.offsets
        at = 0 if offsets[0] >= cursor.offset else bisect_left(offsets, cursor.offset)
        following = batch.header.next_offset
        # Together, with no call in between: or a signal handler that raises there has this batch passed over.
        self.at, cursor.offset, self.batch = at, following, batch
        return batch

    def _pass_gap(self, offset: int) -> None:
        """Compaction left nothing up to `offset`: nothing there waits to be processed either."""
        if offset > self.position:
            if self.processed == self.position:
                self.processed = offset
                self.noted = offset if self.noted == self.position else self.noted
            self.position = offset

    def take(self, most: int) -> tuple[Batch, int, int] | None:
        """`(batch, start, stop)` of the next messages, at most `most`; they count as handed out."""
        batch = self.load()
        if batch is None:
            return None
        start, count = self.at, len(batch.offsets)
        stop = start + most
        if stop >= count:
            stop = count
            following = batch.header.next_offset
            self.batch = None
            self.position = following
        else:
            self.at = stop
            self.position = batch.offsets[stop]
        return batch, start, stop

    def is_through(self) -> bool:
        """Whether it was at the published end a moment ago; what comes later, the fetcher sees."""
        return self.batch is None and self.position >= self.partition.slot.end

    def messages(self, most: int) -> list[Message]:
        """The next messages, decoded as the topic's types have it."""
        before = self.position
        found = self.take(most)
        if found is None:
            return []
        batch, start, stop = found
        if self.key is None and self.value is None:
            return batch.messages(self.tp.topic, self.tp.partition, start, stop)
        try:
            return _decoded(batch, start, stop, self)
        except BaseException:
            # Nothing of it was handed out: the next call meets the same message first.
            self.seek(before)
            raise


def _decoded(batch: Batch, start: int, stop: int, track: Track) -> list[Message]:
    """Messages with decoded keys and values: those before the first that cannot be decoded, or its error."""
    messages = batch.messages(track.tp.topic, track.tp.partition, start, stop)
    found: list[Message] = []
    key, value = track.key, track.value
    for message in messages:
        try:
            decoded_key = message.key if key is None else key.decode(message.key)
            decoded_value = message.value if value is None else value.decode(message.value)
        except Exception:
            if not found:
                raise
            track.seek(message.offset)
            return found
        found.append(
            Message(
                message.topic, message.partition, message.offset, message.timestamp, decoded_key, decoded_value,
                message.headers,
            )
        )  # fmt: skip
    return found


class Fetcher:
    """The tracks of one consumer, and which are worth a look.

    A signal handler may raise between any two steps. So whether a track is read is said in one place, `tracks`: what
    else still has it is cleared away by who comes across it. And a page counts as seen once all that it says was done.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.tracks: dict[TopicPartition, Track] = {}
        self._ready: OrderedDict[Track, None] = OrderedDict()
        self._blocks: dict[int, dict[int, Track]] = {}  # block -> place in it -> track
        self._pages: dict[int, bytes] = {}  # the ends of a block as they were at the last look

    def __iter__(self) -> Iterator[Track]:
        return iter(self.tracks.values())

    def add(self, track: Track) -> None:
        """Begin to read a partition."""
        number = track.partition.slot.number
        self._blocks.setdefault(number // SLOTS, {})[number % SLOTS] = track
        self.wake(track)
        self.tracks[track.tp] = track

    def drop(self, tp: TopicPartition) -> Track | None:
        """Read it no more."""
        track = self.tracks.pop(tp, None)
        if track is not None:
            number = track.partition.slot.number
            block = self._blocks[number // SLOTS]
            block.pop(number % SLOTS, None)
            if not block:
                self._blocks.pop(number // SLOTS, None)
                self._pages.pop(number // SLOTS, None)
            self._ready.pop(track, None)
        return track

    def clear(self) -> None:
        """Read nothing more."""
        self.tracks.clear()
        self._ready.clear()
        self._blocks.clear()
        self._pages.clear()

    def wake(self, track: Track) -> None:
        """It may have something to read."""
        if not track.paused:
            self._ready[track] = None

    def resume(self, track: Track) -> None:
        """It is paused no more."""
        self._ready[track] = None
        track.paused = False

    def is_ready(self, track: Track) -> bool:
        """Whether it may have something to read."""
        return track in self._ready

    def look(self) -> bool:
        """Find out which partitions got something; whether any is ready."""
        if self._ctx.read_only:
            for track in self.tracks.values():
                self._ctx.follow(track.partition)
        counters, pages = self._ctx.counters, self._pages
        for block, tracks in self._blocks.items():
            if len(tracks) <= _FEW:
                for track in tracks.values():
                    end = track.partition.slot.end
                    if end != track.seen_end:
                        self.wake(track)
                        track.seen_end = end
                continue
            page = counters.ends_page(block).tobytes()
            before = pages.get(block)
            if page != before:
                for place in _changed(page, before, tracks):
                    found = tracks.get(place)
                    if found is not None:
                        self.wake(found)
                pages[block] = page
        return bool(self._ready)

    def settle_left(self) -> None:
        """Have published what writers left that died before they told: nobody else may come by and do it."""
        counters = self._ctx.counters
        for block, tracks in self._blocks.items():
            for place in counters.writing(block):
                track = tracks.get(place)
                if track is not None:
                    track.partition.settle_if_free()

    def serve(self, room: int, take: Callable[[Track, int], int]) -> None:
        """Let `take(track, most)` take from ready tracks in turn, until `room` messages are taken or none is left.

        `take` says how many it took; 0 means that the track is at its end.
        """
        ready = self._ready
        while room > 0 and ready:
            track = next(iter(ready))
            if track.paused or self.tracks.get(track.tp) is not track:
                ready.pop(track, None)
                continue
            taken = take(track, room)
            room -= taken
            if not taken or track.is_through():
                ready.pop(track, None)
            elif room <= 0 and track in ready:
                ready.move_to_end(track)  # another one's turn next time


def _changed(page: bytes, before: bytes | None, tracks: dict[int, Any]) -> Iterable[int]:
    """The places at which two pages of words differ."""
    if before is None:
        return list(tracks)
    difference = int.from_bytes(page, "little") ^ int.from_bytes(before, "little")
    found = []
    while difference:
        place = (difference.bit_length() - 1) // (8 * _WORD)
        found.append(place)
        difference &= (1 << (place * 8 * _WORD)) - 1
    return found
