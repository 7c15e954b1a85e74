"""The columns of a `send_many`: checked as a whole before any of them is sent, then cut into batches.

Checks and cuts are calls that loop in C; only a column that needs converting is walked in Python.

The `Columns` that a consumer hands out bring all of their own, as bytes that no type encodes again. A whole batch of
which no column was asked for, bound for one partition, goes on as the payload that was read, and whose checksum was
verified then (`PassedColumns`): nothing of it is decoded, compressed or encoded, and it gets a header of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import add, itemgetter
from typing import Any

from streamlite.batch import Peeled, timestamp_steps
from streamlite.compression import codec
from streamlite.delivery import Piece, Sender
from streamlite.errors import ConfigError, MessageTooLargeError
from streamlite.message import Columns
from streamlite.outgoing import check_headers, check_partition, check_timestamp, headers_bytes
from streamlite.partition import Outgoing
from streamlite.registry import TopicState
from streamlite.routes import Route
from streamlite.serde import Serde, encode_raw
from streamlite.staging import KEY_BYTES_MAX, MESSAGE_OVERHEAD, STAGED_MAX, Batch, Lane, Part, encode

__all__ = ["BulkColumns", "bulk_columns"]


class BulkColumns:
    """What a `send_many` was given, as bytes."""

    def __init__(
        self,
        state: TopicState,
        values: Sequence[Any],
        keys: Sequence[Any] | None,
        partition: Any,
        timestamps: Sequence[Any] | None,
        headers: Sequence[Any] | None,
        key_serde: Serde | None,
        value_serde: Serde | None,
    ) -> None:
        self.state = state
        self.values, self._values_whole = _column("values", values, value_serde)
        count = len(self.values)
        self.keys: Sequence[bytes | None] | None
        self.keys, self._keys_whole = (None, False) if keys is None else _column("keys", keys, key_serde)
        if self.keys is not None:
            _of_length("keys", self.keys, count)
        self.partition = None if partition is None else check_partition(state, partition)
        self.timestamps = None if timestamps is None else _of_length("timestamps", _moments(timestamps), count)
        self.headers = None if headers is None else _of_length("headers", _pairs(headers), count)
        if self.headers is not None and not any(self.headers):
            self.headers = None
        if state.settings.compacted and count and (self.keys is None or None in self.keys):
            raise ConfigError(f"topic {state.name!r} is compacted: it takes no message without a key")
        self._greatest = self._measure()

    @property
    def total_bytes(self) -> int:
        """What all of them take of a buffer."""
        return sum(self._sizes(0, len(self.values))) + MESSAGE_OVERHEAD * len(self.values)

    def _sizes(self, start: int, stop: int) -> Iterable[int]:
        """The bytes of each message of a stretch."""
        sizes = _lengths(self.values[start:stop], whole=self._values_whole)
        if self.keys is not None:
            sizes = map(add, sizes, _lengths(self.keys[start:stop], whole=self._keys_whole))
        if self.headers is not None:
            sizes = map(add, sizes, [headers_bytes(pairs or ()) for pairs in self.headers[start:stop]])
        return sizes

    def _measure(self) -> int:
        """The bytes of the largest message; `MessageTooLargeError`."""
        greatest = max(self._sizes(0, len(self.values)), default=0)
        limit = self.state.settings.max_message_bytes
        if greatest > limit:
            index, size = next(one for one in enumerate(self._sizes(0, len(self.values))) if one[1] > limit)
            raise MessageTooLargeError(
                f"message {index} of the column has {size:,} bytes, {self.state.name!r} takes {limit:,}: "
                "nothing of the column was sent; send less, or raise its max_message_bytes"
            )
        return greatest

    def piece(
        self, sender: Sender, lane: Lane, start: int, stop: int, now_ms: int, *, told: bool
    ) -> tuple[Piece, list[Batch]]:
        """Messages `start` to `stop` as batches, one a partition, and where each message went."""
        values = self.values[start:stop]
        keys = None if self.keys is None else self.keys[start:stop]
        times = None if self.timestamps is None else self.timestamps[start:stop]
        headers = None if self.headers is None else self.headers[start:stop]
        only = self._only_part(lane, keys)
        if only is not None:
            batch = BulkBatch(sender, only, values, keys, times, headers, now_ms, told=told)
            return Piece({batch.partition: batch}, batch.partition, stop - start), [batch]
        assert keys is not None
        parts = self._parts(lane, keys)
        batches: list[Batch] = []
        for part, places in _buckets(parts).items():
            pick = _picker(places)
            times_here = None if times is None else pick(times)
            headers_here = None if headers is None else pick(headers)
            columns = (pick(values), pick(keys), times_here, headers_here)
            batches.append(BulkBatch(sender, part, *columns, now_ms, told=told))
        placed = [part.partition.number for part in parts]
        return Piece({batch.partition: batch for batch in batches}, placed, stop - start), batches

    def _only_part(self, lane: Lane, keys: Sequence[bytes | None] | None) -> Part | None:
        if self.partition is not None:
            return lane.parts[self.partition]
        if len(lane.parts) == 1:
            return lane.parts[0]
        if keys is None or keys.count(None) == len(keys):
            return lane.next_sticky()
        return None

    def _parts(self, lane: Lane, keys: Sequence[bytes | None]) -> list[Part]:
        keyless = lane.next_sticky()
        if None not in keys and max(map(len, keys)) <= KEY_BYTES_MAX:  # type: ignore[arg-type]
            return list(map(lane.by_key.__getitem__, keys))
        return [keyless if key is None else lane.by_key.part(key) for key in keys]

    def cuts(self, budget: int) -> Iterator[tuple[int, int, int]]:
        """`(start, stop, bytes)` of each batch."""
        count = len(self.values)
        if not count:
            return
        step = min(STAGED_MAX, budget // (self._greatest + MESSAGE_OVERHEAD))
        if step * MESSAGE_OVERHEAD * 4 >= min(budget, count * MESSAGE_OVERHEAD):
            for start in range(0, count, step):
                stop = min(start + step, count)
                yield start, stop, sum(self._sizes(start, stop)) + MESSAGE_OVERHEAD * (stop - start)
            return
        # Sizes differ widely: cut by their sums.
        sums = list(accumulate(size + MESSAGE_OVERHEAD for size in self._sizes(0, count)))
        start = done = 0
        while start < count:
            stop = _bisect(sums, done + budget, start, STAGED_MAX)
            yield start, stop, sums[stop - 1] - done
            done, start = sums[stop - 1], stop


class PassedColumns:
    """A batch as a consumer got it: one payload for one partition. Stands in for `BulkColumns`."""

    def __init__(self, batch: Peeled, partition: int | None, otherwise: Callable[[], BulkColumns]) -> None:
        self._batch = batch
        self._partition = partition
        self._otherwise = otherwise
        self._cut: BulkColumns | None = None
        self.total_bytes = batch.header.content_bytes + MESSAGE_OVERHEAD * batch.header.count

    def cuts(self, budget: int) -> Iterator[tuple[int, int, int]]:
        """`(start, stop, bytes)`: one, or as `BulkColumns` has them where it is more than a batch takes here."""
        if self.total_bytes > budget:
            self._cut = self._otherwise()
            return self._cut.cuts(budget)
        return iter([(0, self._batch.header.count, self.total_bytes)])

    def piece(
        self, sender: Sender, lane: Lane, start: int, stop: int, now_ms: int, *, told: bool
    ) -> tuple[Piece, list[Batch]]:
        """As of `BulkColumns`."""
        if self._cut is not None:
            return self._cut.piece(sender, lane, start, stop, now_ms, told=told)
        part = lane.next_sticky() if self._partition is None else lane.parts[self._partition]
        batch = PassedBatch(sender, part, self._batch, told=told)
        return Piece({batch.partition: batch}, batch.partition, batch.count), [batch]


def bulk_columns(
    route: Route, values: Any, keys: Any, partition: Any, timestamps: Any, headers: Any, *, passes: bool
) -> BulkColumns | PassedColumns:
    """What `send_many` was given, checked. `passes`: whether a batch may go on as it is."""
    state = route.lane.state
    if not isinstance(values, Columns):
        return BulkColumns(state, values, keys, partition, timestamps, headers, route.key, route.value)
    given = values

    def unpacked() -> BulkColumns:
        return BulkColumns(
            state,
            given.values,
            given.keys if keys is None else keys,
            partition,
            given.timestamps if timestamps is None else timestamps,
            given.headers if headers is None else headers,
            None if keys is None else route.key,
            None,
        )

    if passes and keys is None and timestamps is None and headers is None:
        number = 0 if len(state.partitions) == 1 else None
        if partition is not None:
            number = check_partition(state, partition)
        batch = given.untouched
        if isinstance(batch, Peeled) and _goes_on(state, batch, one=number is not None):
            return PassedColumns(batch, number, unpacked)
    return unpacked()


def _goes_on(state: TopicState, batch: Peeled, *, one: bool) -> bool:
    """Whether a batch may stand in that topic as it is; `one`: all of it goes to one partition."""
    settings, header = state.settings, batch.header
    return (
        batch.plain
        and (one or batch.keyless)
        and not settings.compacted  # or each message must be seen to have a key
        and header.compression == (0 if settings.compression == "none" else codec(settings.compression).id)
        and header.content_bytes <= settings.max_message_bytes  # so no message is larger
    )


class PassedBatch(Batch):
    """A batch whose payload is there already."""

    __slots__ = ("_batch",)

    def __init__(self, sender: Sender, part: Part, batch: Peeled, *, told: bool) -> None:
        super().__init__(sender, part)
        self.count = batch.header.count
        self.stamps = batch.timestamps
        self.seen = told
        self._batch: Peeled | None = batch

    def encode(self, *, keep: bool = False) -> Outgoing:
        assert self._batch is not None
        header = self._batch.header
        # A copy: the payload is a view of all that one read brought, which no buffer counts.
        payload = bytes(self._batch.payload)
        return Outgoing(
            payload, header.count, header.base_timestamp, header.max_timestamp, header.content_bytes, header.compression
        )

    def drop_items(self) -> None:
        self._batch = None


class BulkBatch(Batch):
    """A batch whose columns are there already."""

    __slots__ = ("_columns", "_now_ms")

    def __init__(
        self,
        sender: Sender,
        part: Part,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        stamps: Sequence[int] | None,
        headers: Sequence[Any] | None,
        now_ms: int,
        *,
        told: bool,
    ) -> None:
        super().__init__(sender, part)
        self.count = len(values)
        self.stamps = stamps
        self.steps = {0: now_ms}
        self._now_ms = now_ms
        self.seen = told
        self._columns: tuple[Any, Any, Any] | None = (values, keys, headers)

    def encode(self, *, keep: bool = False) -> Outgoing:
        assert self._columns is not None
        values, keys, headers = self._columns
        times = (self._now_ms, self._now_ms, None) if self.stamps is None else timestamp_steps(self.stamps)
        return encode(self.part.partition.topic.settings, values, keys, times, headers)

    def drop_items(self) -> None:
        self._columns = None


def _buckets(parts: Sequence[Part]) -> dict[Part, list[int]]:
    """The places of each part's messages.

    Not their rows: a tuple for each takes half as much again, and up to five times where the garbage collector goes
    through them.
    """
    places: dict[Part, list[int]] = {part: [] for part in dict.fromkeys(parts)}
    pushes = {part: bucket.append for part, bucket in places.items()}
    for push, place in zip(map(pushes.__getitem__, parts), range(len(parts)), strict=True):
        push(place)
    return places


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What takes the elements at `places` from a column; `itemgetter` of one place would give the bare element."""
    if len(places) == 1:
        (place,) = places
        return lambda column: (column[place],)
    return itemgetter(*places)


def _bisect(sums: Sequence[int], limit: int, start: int, most: int) -> int:
    from bisect import bisect_right

    return max(start + 1, bisect_right(sums, limit, start, min(len(sums), start + most)))


def _column(what: str, column: Any, serde: Serde | None) -> tuple[Sequence[bytes | None], bool]:
    """A column as bytes, and whether there is no `None` in it."""
    if isinstance(column, (str, bytes, bytearray)):
        raise ConfigError(f"{what} must be a sequence of messages; found one {type(column).__name__}")
    found = column if isinstance(column, (list, tuple)) else list(column)
    if serde is None:
        types = set(map(type, found))
        if types <= _RAW:
            # A copy: the caller may change his list while ours is on its way.
            return list(found), type(None) not in types
        encoded = [encode_raw(one, "value" if what == "values" else "key") for one in found]
    else:
        encoded = [serde.encode(one) for one in found]
    return encoded, type(None) not in set(map(type, encoded))


_RAW = {bytes, type(None)}
_TIME_MAX = 1 << 62


def _moments(column: Any) -> list[int]:
    """Timestamps in ms."""
    found = list(column)
    if set(map(type, found)) == {int} and min(found) > -_TIME_MAX and max(found) < _TIME_MAX:
        return found
    return [check_timestamp(one) for one in found]


def _pairs(column: Any) -> list[Any]:
    """The headers of each message; `None` where it has none."""
    found = list(column)
    return [check_headers(one) or None for one in found] if any(found) else [None] * len(found)


def _lengths(column: Sequence[Any], *, whole: bool) -> Iterable[int]:
    """`whole`: there is no `None` among them."""
    return map(len, column) if whole else [0 if one is None else len(one) for one in column]


def _of_length(what: str, column: Any, count: int) -> Any:
    if len(column) != count:
        raise ConfigError(f"{what} has {len(column)} elements, values has {count}: columns must be equally long")
    return column
