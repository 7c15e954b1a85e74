"""The columns of a `send_many`: checked as a whole before any of them is sent, then cut into batches.

Checks and cuts are calls that loop in C; only a column that needs converting is walked in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from operator import add
from typing import Any

from streamlite.delivery import Outcome
from streamlite.errors import ConfigError, MessageTooLargeError
from streamlite.outgoing import check_headers, check_partition, check_timestamp, headers_bytes
from streamlite.registry import TopicState
from streamlite.serde import Serde, encode_raw
from streamlite.staging import MESSAGE_OVERHEAD, STAGED_MAX, Lane, Same, Staged

__all__ = ["BulkColumns"]


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
        self.values = _column("values", values, value_serde)
        count = len(self.values)
        self.keys = None if keys is None else _of_length("keys", _column("keys", keys, key_serde), count)
        self.partition = None if partition is None else check_partition(state, partition)
        self.timestamps = None
        if timestamps is not None:
            self.timestamps = _of_length("timestamps", [check_timestamp(one) for one in timestamps], count)
        self.headers = None
        if headers is not None:
            self.headers = _of_length("headers", [check_headers(one) or None for one in headers], count)
        if state.settings.compacted and count and (self.keys is None or None in self.keys):
            raise ConfigError(f"topic {state.name!r} is compacted: it takes no message without a key")
        self._sizes = self._measure()

    def _measure(self) -> list[int]:
        sizes = _lengths(self.values)
        if self.keys is not None:
            sizes = list(map(add, sizes, _lengths(self.keys)))
        if self.headers is not None:
            sizes = list(map(add, sizes, [headers_bytes(pairs or ()) for pairs in self.headers]))
        limit = self.state.settings.max_message_bytes
        if sizes and max(sizes) > limit:
            index = next(at for at, size in enumerate(sizes) if size > limit)
            raise MessageTooLargeError(
                f"message {index} of the column has {sizes[index]:,} bytes, {self.state.name!r} takes {limit:,}: nothing "
                "of the column was sent; send less, or raise its max_message_bytes"
            )
        return sizes

    def pieces(
        self, lane: Lane, budget: int, new_outcome: Callable[[Lane], Outcome], time_ms: Callable[[], int]
    ) -> Iterator[tuple[Staged, int]]:
        """Batches of at most `budget` bytes (or one message), each with its size in the producer's buffer."""
        for start, stop, size in self._cuts(budget):
            outcome = new_outcome(lane)
            outcome.bulk = True
            outcome.count = stop - start
            times: Sequence[int] = Same(time_ms(), stop - start)
            if self.timestamps is not None:
                times = self.timestamps[start:stop]
            outcome.timestamps = times
            keys = None if self.keys is None else self.keys[start:stop]
            headers = None if self.headers is None else self.headers[start:stop]
            yield Staged(lane, outcome, self.values[start:stop], keys, times, headers, self.partition, {}), size

    def _cuts(self, budget: int) -> Iterator[tuple[int, int, int]]:
        """`(start, stop, bytes)` of each batch."""
        sizes, count = self._sizes, len(self._sizes)
        if not count:
            return
        step = min(STAGED_MAX, budget // (max(sizes) + MESSAGE_OVERHEAD))
        if step * MESSAGE_OVERHEAD * 4 >= min(budget, count * MESSAGE_OVERHEAD):
            for start in range(0, count, step):
                stop = min(start + step, count)
                yield start, stop, sum(sizes[start:stop]) + MESSAGE_OVERHEAD * (stop - start)
            return
        # Sizes differ widely: cut by their sums.
        sums = list(accumulate(size + MESSAGE_OVERHEAD for size in sizes))
        start = done = 0
        while start < count:
            stop = _bisect(sums, done + budget, start, STAGED_MAX)
            yield start, stop, sums[stop - 1] - done
            done, start = sums[stop - 1], stop


def _bisect(sums: Sequence[int], limit: int, start: int, most: int) -> int:
    from bisect import bisect_right

    return max(start + 1, bisect_right(sums, limit, start, min(len(sums), start + most)))


def _column(what: str, column: Any, serde: Serde | None) -> Sequence[bytes | None]:
    if isinstance(column, (str, bytes, bytearray)):
        raise ConfigError(f"{what} must be a sequence of messages; found one {type(column).__name__}")
    found = column if isinstance(column, (list, tuple)) else list(column)
    if serde is not None:
        return [serde.encode(one) for one in found]
    if set(map(type, found)) <= _RAW:
        # A copy: the caller may change his list while ours is on its way.
        return list(found)
    return [encode_raw(one, "value" if what == "values" else "key") for one in found]


_RAW = {bytes, type(None)}


def _lengths(column: Sequence[bytes | None]) -> list[int]:
    try:
        return list(map(len, column))  # type: ignore[arg-type]
    except TypeError:  # there is a None among them
        return [0 if one is None else len(one) for one in column]


def _of_length(what: str, column: Any, count: int) -> Any:
    if len(column) != count:
        raise ConfigError(f"{what} has {len(column)} elements, values has {count}: columns must be equally long")
    return column
