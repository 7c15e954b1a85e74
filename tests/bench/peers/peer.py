"""What every peer does here, and nothing about any of them.

A peer opens a fresh log, takes messages one by one, takes them in batches where it can, gives them all back, and passes
single messages to another process. The caller holds the clock: what `open` does is not measured, `produce` returns when
everything was accepted at the level asked for, `consume` when every message is a Python object in the reader's hands.

Messages are those of `floors.py`: 100 random bytes, 1,000 distinct ones, each with a key of its own where a peer has
keys.
"""

from __future__ import annotations

import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

BATCH: Final = 1_000
"""Messages in a transaction, a pipeline or a call, for those that are told."""
LOOK_S: Final = 0.0001
"""A reader that nobody wakes looks that often, which costs it a tenth of a core or more: rather kind than usual."""
PATIENCE_S: Final = 30.0

NEVER: Final = "never"
"""What is accepted is with the operating system, which decides when it goes to the device."""
BATCHES: Final = "batch"
"""Each batch is on the device (fsync) before it counts as accepted."""


class Peer(ABC):
    """One library, and the server it needs."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    """What must be there to import."""
    levels: ClassVar[tuple[str, ...]] = (NEVER,)
    share: ClassVar[float] = 1.0
    """Of the messages asked for: a slow one gets fewer, so that each measurement takes about a second."""
    batched: ClassVar[bool] = True
    """Whether it has a way to take many at once."""
    plain: ClassVar[bool] = False
    """Whether messages without keys are measured too."""
    shared: ClassVar[bool] = True
    """Whether two processes can use it at once."""
    settings: ClassVar[str]
    """How it is used here, for the notes under the table."""

    def __init__(self, place: Path, level: str, port: int = 0) -> None:
        self.place = place
        self.level = level
        self.port = port

    @classmethod
    def missing(cls) -> str:
        """Why it cannot run here; empty where it can."""
        absent = [name for name in cls.modules if importlib.util.find_spec(name) is None]
        return f"no {', '.join(absent)}" if absent else ""

    def command(self) -> list[str]:
        """What starts its server, which keeps its data in `place` and listens on `port`; empty if it needs none."""
        return []

    def answers(self) -> bool:
        """Whether the server, which takes connections by now, does its work too."""
        return True

    @abstractmethod
    def open(self, log: str) -> None:
        """Be ready to write to a log and to read it from its beginning, many messages at a time."""

    def open_for_pings(self, log: str) -> None:
        """The same, for single messages that must not wait."""
        self.open(log)

    @abstractmethod
    def produce(self, count: int) -> None:
        """Hand them over one by one, a call each."""

    def produce_many(self, count: int) -> None:
        """Hand them over many at a time."""
        raise NotImplementedError

    def produce_plain(self, count: int) -> None:
        """Hand them over without keys, for peers where `plain`: what the target of send_many is about."""
        raise NotImplementedError

    @abstractmethod
    def consume(self, count: int) -> None:
        """Read that many."""

    def ping(self, value: bytes) -> None:
        """Send one now."""
        raise NotImplementedError

    def arrivals(self) -> Iterator[list[bytes]]:
        """The values of the messages as they come, waiting for them, without end; in the other process."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Give up what `open` took, and what is on the disk for it where that is easy."""


def looking(take: Any) -> Iterator[list[bytes]]:
    """Arrivals at one who must look by himself: `take()` gives a list of values, often empty."""
    while True:
        values = take()
        if values:
            yield values
        else:
            time.sleep(LOOK_S)
