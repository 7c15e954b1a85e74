"""What a topic argument means to a producer: a lane, and how keys and values become bytes.

Kept until some topic comes, goes or changes, and looked up anew then. `raw` is the fast way, which `send` takes without
asking anybody: topics without types, for keys that are bytes. While it is shut (a transaction is open, or the producer
has a name) nothing is put there, so every send comes by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from streamlite.config import check_name
from streamlite.engine import Engine
from streamlite.errors import ConfigError
from streamlite.serde import Serde
from streamlite.staging import ByTopic, Lane
from streamlite.subscription import topic_state

__all__ = ["Route", "Routes"]

_ROUTES_MAX: Final = 1024


class Route:
    """A lane, and the types of its keys and values (`None`: they are bytes or text)."""

    __slots__ = ("key", "lane", "value")

    def __init__(self, lane: Lane, key: Serde | None, value: Serde | None) -> None:
        self.lane = lane
        self.key = key
        self.value = value


class Routes:
    """The topics that one producer knows. `raw` is read without a lock, all is changed under the producer's mutex."""

    def __init__(self, engine: Engine, seal: Callable[[Lane], None], *, ticks: bool, shut: bool) -> None:
        self._engine = engine
        self._seal = seal
        self._ticks = ticks
        self._shut = shut
        self.raw = ByTopic()
        self._known: dict[Any, Route] = {}
        self.lanes: dict[int, Lane] = {}
        """By incarnation."""

    def fresh(self, topic: Any) -> Route | None:
        """What `topic` means, where that is known and still so."""
        try:
            route = self._known.get(topic)
        except TypeError:
            raise ConfigError(f"a topic is named, or is a Topic; found {type(topic).__name__}") from None
        if route is None or route.lane.state.seen != self._engine.registry.changes or route.lane.stale:
            return None
        return route

    def look_up(self, topic: Any) -> Route:
        """What it means now; `UnknownTopicError`, `InvalidNameError`."""
        key = value = None
        registry = self._engine.registry
        if isinstance(topic, str):
            state = registry.get(check_name(topic, "topic"))
        else:
            state, key, value = topic_state(topic, self._engine)
            registry.current(state)
        lane = self.lanes.get(state.incarnation)
        if lane is None:
            lane = self.lanes[state.incarnation] = Lane(state, len(self.lanes), ticks=self._ticks)
        elif lane.stale:
            self.refresh(lane)
        if len(self._known) >= _ROUTES_MAX:
            self.clear()
        route = self._known[topic] = Route(lane, key, value)
        if not self._shut:
            self._open(topic, route)
        return route

    def refresh(self, lane: Lane) -> None:
        """Take up a topic's new settings; what was known of its keys is forgotten."""
        self._seal(lane)
        lane.take_settings()
        self.clear()

    def clear(self) -> None:
        """Know nothing: each topic is looked up before the next message."""
        self.raw.clear()
        self._known.clear()

    def shut(self) -> None:
        """Every send must come by."""
        self._shut = True
        self.raw.clear()

    def open(self) -> None:
        """They need not any more."""
        self._shut = False
        for topic, route in self._known.items():
            self._open(topic, route)

    def _open(self, topic: Any, route: Route) -> None:
        if route.key is None and route.value is None:
            self.raw[topic] = route.lane.by_key
