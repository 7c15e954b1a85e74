"""Interim: a group with one member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from streamlite.config import ConsumerOptions
from streamlite.engine import Engine
from streamlite.message import TopicPartition
from streamlite.offsets import Position
from streamlite.partition import Partition
from streamlite.wakeup import Waiter


class News(NamedTuple):
    assigned: dict[TopicPartition, int]
    revoked: list[TopicPartition]
    lost: list[TopicPartition]


class Membership:
    def __init__(self, engine: Engine, group: str, options: ConsumerOptions, waiter: Waiter, *, alone: bool = False) -> None:
        self._engine = engine
        self._group = group
        self._names: list[str] = []
        self._have: dict[TopicPartition, int] = {}
        self._moved = False

    def join(self, names: list[str]) -> None:
        self._names = names
        self._moved = True

    def stamp(self, now: float) -> None:
        pass

    def look_for_dead(self) -> None:
        pass

    def changed(self) -> bool:
        return self._moved

    def sync(self) -> News:
        self._moved = False
        wanted = {p.tp: 1 for name in self._names for p in self._engine.registry.get(name).partitions}
        revoked = [tp for tp in self._have if tp not in wanted]
        assigned = {tp: 1 for tp in wanted if tp not in self._have}
        self._have = wanted
        return News(assigned, revoked, [])

    def released(self, partitions: Any) -> None:
        pass

    def committed(self, partitions: list[Partition]) -> list[Position | None]:
        return [self._engine.offsets.get(self._group, p.tp, p.topic.incarnation) for p in partitions]

    def commit(self, positions: Mapping[TopicPartition, Position], ownerships: Mapping[TopicPartition, int]) -> None:
        self._engine.offsets.commit(self._group, positions)

    def lost_of(self, ownerships: Any) -> list[TopicPartition]:
        return []

    def leave(self) -> None:
        pass


class GroupFiles:
    def __init__(self, engine: Engine, name: str) -> None:
        pass

    @staticmethod
    def with_members(engine: Engine) -> set[str]:
        return set()

    def locked(self) -> Any:
        import contextlib
        from types import SimpleNamespace
        return contextlib.nullcontext(SimpleNamespace(members={}, generation=0))

    def require_idle(self, state: Any, what: str) -> None:
        pass

    def remove(self, state: Any) -> None:
        pass
