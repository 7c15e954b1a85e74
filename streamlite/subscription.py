"""What a consumer subscribed to: names, `Topic`s and patterns, and what they mean now.

A name or `Topic` that is not there is an `UnknownTopicError`; a pattern takes whatever topics match it whole, those
created later too, and is content with none. A `Topic` brings the types of its keys and values.
"""

from __future__ import annotations

import re
from typing import Any

from streamlite.config import check_name
from streamlite.engine import Engine
from streamlite.errors import ConfigError
from streamlite.partition import Partition
from streamlite.registry import TopicState
from streamlite.serde import Serde

__all__ = ["Subscription", "topic_state"]

Types = tuple[Serde | None, Serde | None]


class Subscription:
    """The topics of one `subscribe`."""

    def __init__(self, engine: Engine, topics: tuple[Any, ...]) -> None:
        self._registry = engine.registry
        self._states: dict[str, TopicState] = {}
        self._patterns: list[re.Pattern[str]] = []
        self._types: dict[str, Types] = {}
        for topic in topics:
            if isinstance(topic, re.Pattern):
                self._add_pattern(topic)
            elif isinstance(topic, str):
                name = check_name(topic, "topic")
                self._states[name] = self._registry.get(name)
            else:
                state, key, value = topic_state(topic, engine)
                self._states[state.name] = self._registry.current(state)
                self._types[state.name] = (key, value)

    def _add_pattern(self, pattern: re.Pattern[Any]) -> None:
        if not isinstance(pattern.pattern, str):
            raise ConfigError(f"a topic pattern must be of text; found {pattern!r:.60}")
        self._patterns.append(pattern)

    def names(self) -> list[str]:
        """The topics it means now; `UnknownTopicError` when a named one is gone."""
        found = {state.name for state in map(self._registry.current, self._states.values())}
        if self._patterns:
            found |= {n for n in self._registry.names() if any(pattern.fullmatch(n) for pattern in self._patterns)}
        return sorted(found)

    def partitions(self) -> list[Partition]:
        """All partitions of these topics."""
        return [partition for name in self.names() for partition in self._registry.get(name).partitions]

    def types(self, topic: str) -> Types:
        """How keys and values of that topic are decoded."""
        return self._types.get(topic, (None, None))


def topic_state(topic: Any, engine: Engine) -> tuple[TopicState, Serde | None, Serde | None]:
    """What a `Topic` brings along: its state, and the serdes of keys and values. `ConfigError` for anything else."""
    state = getattr(topic, "_state", None)
    if not isinstance(state, TopicState):
        raise ConfigError(f"a topic is named, or is a Topic; found {type(topic).__name__} ({topic!r:.60})")
    if topic._engine is not engine:
        raise ConfigError(f"topic {state.name!r} belongs to another bus; take it from the one this handle is of")
    return state, topic._key, topic._value
