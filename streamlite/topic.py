"""A topic as an application holds it: its settings, and what is in its log now, read without a group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from streamlite.batch import Batch
from streamlite.config import UNALTERABLE, check_int, check_partitions, check_settings
from streamlite.engine import Engine
from streamlite.errors import ConfigError, OffsetOutOfRangeError, SerdeError, not_picklable
from streamlite.message import Columns, Message, TopicPartition
from streamlite.outgoing import check_partition
from streamlite.partition import Partition
from streamlite.reader import batches_left
from streamlite.registry import TopicState
from streamlite.serde import Serde, encode_raw

if TYPE_CHECKING:
    from streamlite.bus import Bus

__all__ = ["Topic"]


class Topic:
    """A topic of a bus; made by `Bus.topic`. Stays valid until the topic is deleted."""

    def __init__(self, bus: Bus, engine: Engine, state: TopicState, key: Serde | None, value: Serde | None) -> None:
        self._bus = bus
        self._engine = engine
        self._state = state
        self._key = key
        self._value = value

    def __repr__(self) -> str:
        gone = ", deleted" if self._state.gone else ""
        return f"<Topic {self._state.name!r}: {len(self._state.partitions)} partitions{gone}>"

    def __reduce__(self) -> NoReturn:
        raise not_picklable("topic")

    @property
    def name(self) -> str:
        """Its name."""
        return self._state.name

    @property
    def bus(self) -> Bus:
        """The bus it is on."""
        return self._bus

    @property
    def partitions(self) -> int:
        """How many partitions it has; may grow."""
        return len(self._current().partitions)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings stored with it, partitions included."""
        state = self._current()
        return {"partitions": len(state.partitions)} | msgspec.structs.asdict(state.settings)

    def _current(self) -> TopicState:
        self._engine.ctx.check()
        return self._engine.registry.current(self._state)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(
        self,
        *,
        partition: int | None = None,
        start: int | None = None,
        stop: int | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Iterator[Message]:
        """What is in the log now, in offset order per partition, then it ends. Nothing is committed.

        `start`, `stop`: offsets, the latter not included; they need `partition`. `since_ms`, `until_ms`: exactly the
        messages with `since_ms <= timestamp < until_ms`. It sees every earlier send of this bus.
        """
        return self._messages(self._stretches(partition, start, stop, since_ms, until_ms), since_ms, until_ms)

    def read_columns(
        self,
        *,
        partition: int | None = None,
        start: int | None = None,
        stop: int | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
    ) -> Iterator[Columns]:
        """As `read`, as columns of bytes: nothing is decoded."""
        return self._columns(self._stretches(partition, start, stop, since_ms, until_ms), since_ms, until_ms)

    def _stretches(
        self, partition: Any, start: Any, stop: Any, since_ms: Any, until_ms: Any
    ) -> list[tuple[Partition, int, int]]:
        """`(partition, first offset, offset after the last)` of everything to read, fixed when `read` is called."""
        state = self._current()
        if (start is not None or stop is not None) and partition is None:
            raise ConfigError("start and stop are offsets of one partition: give partition= as well")
        for name, given in (("start", start), ("stop", stop)):
            if given is not None:
                check_int(name, given, 0)
        for name, given in (("since_ms", since_ms), ("until_ms", until_ms)):
            if given is not None:
                check_int(name, given, -(1 << 62), 1 << 62)
        chosen = state.partitions if partition is None else [state.partitions[check_partition(state, partition)]]
        self._engine.push()
        found = []
        for one in chosen:
            end = one.settled_end()
            first = one.start()
            if start is not None and not first <= start <= end:
                raise OffsetOutOfRangeError(
                    f"offset {start} of {state.name!r} partition {one.number} is not in the log, which holds {first} "
                    f"to {end}"
                )
            found.append((one, first if start is None else start, end if stop is None else min(stop, end)))
        return found

    def _batches(
        self, partition: Partition, start: int, stop: int, since_ms: int | None, until_ms: int | None
    ) -> Iterator[tuple[Batch, int, int]]:
        """`(batch, first place, place after the last)` within the offsets; batches of other times are left out."""
        for batch in batches_left(partition, start, stop):
            header, passed = batch.header, start
            # A batch that compaction has made meanwhile of several may begin before what was handed out.
            start = max(start, header.next_offset)
            if since_ms is not None and header.max_timestamp < since_ms:
                continue
            if until_ms is not None and header.base_timestamp >= until_ms:
                continue
            offsets = batch.offsets
            low = 0
            high = len(offsets)
            if offsets[0] < passed:
                low = sum(offset < passed for offset in offsets)
            if offsets[-1] >= stop:
                high = sum(offset < stop for offset in offsets)
            if low < high:
                yield batch, low, high

    def _messages(
        self, stretches: list[tuple[Partition, int, int]], since_ms: int | None, until_ms: int | None
    ) -> Iterator[Message]:
        typed = self._key is not None or self._value is not None
        for partition, start, stop in stretches:
            for batch, low, high in self._batches(partition, start, stop, since_ms, until_ms):
                for message in batch.messages(partition.tp.topic, partition.number, low, high):
                    if _within(message.timestamp, since_ms, until_ms):
                        yield self._decoded(message) if typed else message

    def _decoded(self, message: Message) -> Message:
        try:
            return Message(
                message.topic,
                message.partition,
                message.offset,
                message.timestamp,
                message.key if self._key is None else self._key.decode(message.key),
                message.value if self._value is None else self._value.decode(message.value),
                message.headers,
            )
        except SerdeError as error:
            raise SerdeError(
                f"{message.topic!r} partition {message.partition} offset {message.offset}: {error}"
            ) from error

    def _columns(
        self, stretches: list[tuple[Partition, int, int]], since_ms: int | None, until_ms: int | None
    ) -> Iterator[Columns]:
        for partition, start, stop in stretches:
            for batch, low, high in self._batches(partition, start, stop, since_ms, until_ms):
                columns = batch.columns(partition.tp.topic, partition.number, low, high)
                if since_ms is not None or until_ms is not None:
                    columns = _only(columns, since_ms, until_ms)
                if len(columns.offsets):
                    yield columns

    def end_offsets(self) -> dict[TopicPartition, int]:
        """The next offset of each partition; counts every earlier send of this bus."""
        state = self._current()
        self._engine.push()
        return {partition.tp: partition.settled_end() for partition in state.partitions}

    def beginning_offsets(self) -> dict[TopicPartition, int]:
        """The first offset of each partition."""
        return {partition.tp: partition.start() for partition in self._current().partitions}

    def partition_for(self, key: Any) -> int:
        """Where messages of that key go."""
        from streamlite.partitioner import partitioner

        state = self._current()
        data = encode_raw(key, "key") if self._key is None else self._key.encode(key)
        if data is None:
            raise ConfigError("a message without a key goes to any partition; partition_for needs a key")
        return partitioner(state.settings.partitioner)(data, len(state.partitions))

    # -- changing -----------------------------------------------------------------------------------------------------

    def alter(self, **settings: Any) -> None:
        """Change settings, for everybody; `increase_partitions` is for the count."""
        state = self._writable()
        if "partitions" in settings:
            raise ConfigError("alter does not change the count of partitions: use increase_partitions(n)")
        checked = check_settings(settings)
        for name in UNALTERABLE:
            if name in checked and checked[name] != getattr(state.settings, name):
                raise ConfigError(
                    f"{name} of topic {state.name!r} is {getattr(state.settings, name)!r} and stays so: another would "
                    "send a key's next messages elsewhere than its earlier ones"
                )
        self._engine.registry.alter(state, checked)
        self._engine.settings_changed(state)

    def increase_partitions(self, n: int) -> None:
        """Give the topic `n` partitions, more than it has. Keys may go to other partitions from then on."""
        state = self._writable()
        present = len(state.partitions)
        if check_partitions(n) <= present:
            raise ConfigError(
                f"topic {state.name!r} has {present} partitions; it can only get more, {n} were asked for"
            )
        self._engine.registry.grow(state, n)

    def truncate_before(self, partition: int, offset: int) -> None:
        """Forget, durably, what comes before `offset` in a partition."""
        state = self._writable()
        check_int("offset", offset, 0)
        chosen = state.partitions[check_partition(state, partition)]
        self._engine.push()
        chosen.truncate_before(offset)

    def _writable(self) -> TopicState:
        self._engine.ctx.check_writable()
        return self._current()


def _within(timestamp: int, since_ms: int | None, until_ms: int | None) -> bool:
    return (since_ms is None or timestamp >= since_ms) and (until_ms is None or timestamp < until_ms)


def _only(columns: Columns, since_ms: int | None, until_ms: int | None) -> Columns:
    """The columns of the messages of those times."""
    places = [place for place, time in enumerate(columns.timestamps) if _within(time, since_ms, until_ms)]
    if len(places) == len(columns.timestamps):
        return columns
    topic, partition, *lists = columns
    return Columns(topic, partition, *([column[place] for place in places] for column in lists))
