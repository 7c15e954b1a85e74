"""The bus: one open directory, or one memory, and everything that is made from it.

A façade: each method checks its arguments and passes them on. What a bus opened it closes, the last opened first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

from streamlite.clock import as_clock
from streamlite.config import (
    TopicSettings,
    check_bool,
    check_choice,
    check_int,
    check_name,
    check_partitions,
    check_seconds,
    check_settings,
    consumer_options,
    producer_options,
)
from streamlite.engine import Engine
from streamlite.errors import ConfigError, TopicExistsError, UnsupportedError, not_picklable
from streamlite.message import GroupDescription
from streamlite.registry import TopicState
from streamlite.serde import serde
from streamlite.topic import Topic

if TYPE_CHECKING:
    from streamlite.aio import AsyncConsumer, AsyncProducer
    from streamlite.consumer import Consumer
    from streamlite.groups import GroupAdmin
    from streamlite.producer import Producer

__all__ = ["Bus", "open"]


def open(
    location: str | os.PathLike[str],
    *,
    sync: str = "interval",
    sync_interval_ms: int = 100,
    read_only: bool = False,
    lock_timeout: float = 30.0,
    clock: object | None = None,
) -> Bus:
    """Open the bus at `location`: the path of a directory, which is created where absent, or ":memory:".

    `sync`: when what was sent is brought to the device: "always", before its delivery is reported; "interval", within
    `sync_interval_ms`; "never", when the system likes and on close. `read_only`: nothing is written or locked, and
    there are no groups. `lock_timeout`: seconds to wait for another holder of a lock. `clock`: a virtual one, for
    tests.

    Raises `FormatError` for what is no bus, not safe, or of a newer format; `StorageError` for what the system refuses.
    """
    place = _location(location)
    check_choice("sync", sync, ("always", "interval", "never"))
    check_int("sync_interval_ms", sync_interval_ms, 1)
    check_bool("read_only", read_only)
    timeout = check_seconds("lock_timeout", lock_timeout)
    assert timeout is not None
    return Bus(
        Engine.open(
            place,
            sync=sync,
            sync_interval_s=sync_interval_ms / 1000,
            read_only=read_only,
            lock_timeout=timeout,
            clock=as_clock(clock),
        )
    )


def _location(location: object) -> str:
    try:
        place = os.fspath(location)  # type: ignore[call-overload]
    except TypeError:
        raise ConfigError(f"location must be a path or ':memory:'; found {type(location).__name__}") from None
    if not isinstance(place, str) or not place or "\0" in place:
        raise ConfigError(f"location must be the path of a directory or ':memory:'; found {place!r:.60}")
    scheme, found, _ = place.partition("://")
    if found and scheme.isalnum():
        raise UnsupportedError(f"no backend for {scheme}:// is in this release; name a directory, or ':memory:'")
    return place


class Bus:
    """One open bus. Made by `streamlite.open`; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __repr__(self) -> str:
        ctx = self._engine.ctx
        state = "closed" if ctx.closed else "read only" if ctx.read_only else f"sync={ctx.sync!r}"
        return f"<Bus {ctx.files.root}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise not_picklable("bus")

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- topics -------------------------------------------------------------------------------------------------------

    def topic(
        self, name: str, *, partitions: int | None = None, value: Any = None, key: Any = None, **settings: Any
    ) -> Topic:
        """Open a topic, or create it with these settings (1 partition unless told) where it is absent.

        `value`, `key`: the types of values and keys; bytes and text when `None`. On an existing topic `partitions`
        must be its present count or the one it was created with, and every setting given the stored one: else
        `ConfigError`.
        """
        checked = self._check_topic(name, partitions, settings)
        serdes = serde(key), serde(value)
        state = self._engine.registry.find(name)
        if state is None:
            self._engine.ctx.check_writable_for(f"there is no topic {name!r}")
            try:
                state = self._create(name, partitions, checked)
            except TopicExistsError:  # another process was quicker
                state = self._engine.registry.get(name)
        else:
            self._check_same(state, partitions, checked)
        return Topic(self, self._engine, state, *serdes)

    def create_topic(
        self, name: str, *, partitions: int | None = None, value: Any = None, key: Any = None, **settings: Any
    ) -> Topic:
        """As `topic`, but `TopicExistsError` where it is there."""
        checked = self._check_topic(name, partitions, settings)
        serdes = serde(key), serde(value)
        self._engine.ctx.check_writable()
        return Topic(self, self._engine, self._create(name, partitions, checked), *serdes)

    def _check_topic(self, name: str, partitions: int | None, settings: dict[str, Any]) -> dict[str, Any]:
        self._engine.ctx.check()
        check_name(name, "topic")
        if partitions is not None:
            check_partitions(partitions)
        return check_settings(settings)

    def _create(self, name: str, partitions: int | None, checked: dict[str, Any]) -> TopicState:
        state = self._engine.registry.create(name, partitions, TopicSettings(**checked))
        self._engine.settings_changed(state)
        return state

    def _check_same(self, state: TopicState, partitions: int | None, checked: dict[str, Any]) -> None:
        for name, asked in checked.items():
            stored = getattr(state.settings, name)
            if stored != asked:
                raise ConfigError(
                    f"topic {state.name!r} has {name}={stored!r}, {asked!r} was asked for: leave it out, or use "
                    f"topic.alter({name}=...)"
                )
        present = len(state.partitions)
        if partitions is None or partitions in (present, state.asked):
            return
        if state.asked is None and partitions > present and not self._engine.ctx.read_only:
            self._engine.registry.ask(state, partitions)
            present = len(state.partitions)
        if partitions not in (present, state.asked):
            raise ConfigError(
                f"topic {state.name!r} has partitions={present}, {partitions} was asked for: leave it out, or use "
                "topic.increase_partitions(n)"
            )

    def delete_topic(self, name: str) -> None:
        """Remove a topic and everything in it, for everybody; `UnknownTopicError`."""
        self._engine.ctx.check_writable()
        self._engine.push()
        self._engine.delete_topic(check_name(name, "topic"))

    def topics(self) -> list[str]:
        """The names of the topics there are, sorted."""
        self._engine.ctx.check()
        return self._engine.registry.names()

    # -- producers and consumers --------------------------------------------------------------------------------------

    def producer(self, **options: Any) -> Producer:
        """A `Producer`; options in docs/configuration.md."""
        from streamlite.producer import Producer

        checked = producer_options(options)
        self._engine.ctx.check_writable()
        producer = Producer(self._engine, checked)
        self._engine.adopt(producer)
        return producer

    def consumer(self, *topics: Any, group: str | None = None, **options: Any) -> Consumer:
        """A `Consumer` of these topics (names, `Topic`s, compiled patterns), alone or in a group."""
        from streamlite.consumer import Consumer

        checked = consumer_options(options)
        self._engine.ctx.check()
        if group is not None:
            check_name(group, "group")
            self._engine.ctx.check_writable_for("a group commits offsets")
        consumer = Consumer(self._engine, group, checked)
        consumer._begin(topics)
        return consumer

    def async_producer(self, **options: Any) -> AsyncProducer:
        """An `AsyncProducer`, for asyncio; the options are those of `producer`."""
        from streamlite.aio import AsyncProducer

        checked = producer_options(options)
        self._engine.ctx.check_writable()
        return AsyncProducer(self._engine, checked)

    def async_consumer(self, *topics: Any, group: str | None = None, **options: Any) -> AsyncConsumer:
        """An `AsyncConsumer`, for asyncio, which joins at the first await; the options are those of `consumer`."""
        from streamlite.aio import AsyncConsumer

        checked = consumer_options(options)
        self._engine.ctx.check()
        if group is not None:
            check_name(group, "group")
            self._engine.ctx.check_writable_for("a group commits offsets")
        return AsyncConsumer(self._engine, topics, group, checked)

    # -- groups -------------------------------------------------------------------------------------------------------

    def groups(self) -> list[str]:
        """The names of the groups that have members or committed something, sorted."""
        return self._admin().names()

    def group(self, name: str) -> GroupDescription:
        """A group's members, generation, committed offsets and lag; `UnknownGroupError`."""
        return self._admin().describe(check_name(name, "group"))

    def delete_group(self, name: str) -> None:
        """Forget a group and what it committed; `UnknownGroupError`, `GroupActiveError`."""
        self._engine.ctx.check_writable()
        self._admin().delete(check_name(name, "group"))

    def reset_offsets(
        self,
        group: str,
        topic: Any,
        *,
        partition: int | None = None,
        to: str | None = None,
        offset: int | None = None,
        timestamp_ms: int | None = None,
        shift: int | None = None,
    ) -> None:
        """Commit other offsets for a group without live members (`GroupActiveError`).

        Exactly one of `to` ("earliest" or "latest"), `offset`, `timestamp_ms` and `shift` (messages forth or back).
        """
        self._engine.ctx.check_writable()
        name = topic.name if isinstance(topic, Topic) else check_name(topic, "topic")
        self._admin().reset(
            check_name(group, "group"), name, partition, to=to, offset=offset, timestamp_ms=timestamp_ms, shift=shift
        )

    def _admin(self) -> GroupAdmin:
        from streamlite.groups import GroupAdmin

        self._engine.ctx.check()
        return GroupAdmin(self._engine)

    # -- the whole ----------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Bring everything that was written so far to the device."""
        self._engine.ctx.check_writable()
        self._engine.sync_all()

    def maintain(self) -> None:
        """Apply retention and compaction now, to every topic."""
        self._engine.ctx.check_writable()
        self._engine.push()
        self._engine.maintain()

    def close(self) -> None:
        """Flush and close what the bus opened, then the bus; raises a failed delivery nobody looked at. Idempotent."""
        self._engine.close()
