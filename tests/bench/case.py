"""What one benchmark is: a floor, a measurement, a target, and how the two are taken in turn.

Machines are shared and noisy, so an absolute figure means nothing from one run to the next. A ratio counts: the floor
and the measurement alternate in one process, and the medians of all rounds are divided.
"""

from __future__ import annotations

import gc
import math
import shutil
import statistics
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.bench import floors

KEYS = floors.KEYS
VALUES = floors.VALUES
PAIRS = floors.PAIRS
DISTINCT = len(VALUES)


@dataclass(frozen=True)
class Setting:
    """What the command line asks for."""

    root: Path
    """Where scratch directories are made: the disk to measure."""
    rounds: int = 5
    messages: int = 1_000_000
    """Of S1 to S5; a multiple of 1,000."""
    scale: float = 1.0
    """How much of the full size the logs of S11 to S13 have."""

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """A new directory, removed afterwards."""
        place = tempfile.mkdtemp(prefix="streamlite-bench-", dir=self.root)
        try:
            yield place
        finally:
            shutil.rmtree(place)

    def scaled(self, count: int) -> int:
        """`count` by the scale, in thousands."""
        return max(1, round(count * self.scale / DISTINCT)) * DISTINCT


@dataclass(frozen=True)
class Result:
    """One row of the table. `floor`, `measured` in `unit`; `value` is what is held against `target`."""

    name: str
    what: str
    floor: float | None
    measured: float
    unit: str
    value: float
    target: float
    value_unit: str
    low: float
    """The least and the greatest `value` of a single round."""
    high: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"ok": self.ok, **asdict(self)}


class Case(ABC):
    """One line of the targets. `prepare` surrounds all rounds and is not measured."""

    name: ClassVar[str]
    what: ClassVar[str]
    target: ClassVar[float]
    unit: ClassVar[str]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """What all rounds need; nothing unless overridden."""
        yield

    @abstractmethod
    def measure(self) -> float:
        """One measurement, in `unit`."""

    @abstractmethod
    def run(self) -> Result:
        """All rounds."""

    def note(self) -> str:
        """What else was found."""
        return ""


class Ratio(Case):
    """A measurement against a floor that is taken in turn with it."""

    unit = "ns"

    @abstractmethod
    def floor(self) -> float:
        """The floor, in `unit`."""

    def run(self) -> Result:
        floor, measured = [], []
        with self.prepare():
            for _ in range(self.setting.rounds):
                gc.collect()
                floor.append(self.floor())
                gc.collect()
                measured.append(self.measure())
            note = self.note()
        ratios = [mine / least for mine, least in zip(measured, floor, strict=True)]
        base, mine = statistics.median(floor), statistics.median(measured)
        return Result(
            self.name, self.what, base, mine, self.unit, mine / base, self.target, "x", min(ratios), max(ratios), note
        )


class Absolute(Case):
    """A measurement against a fixed figure."""

    def run(self) -> Result:
        measured = []
        with self.prepare():
            for _ in range(self.setting.rounds):
                gc.collect()
                measured.append(self.measure())
            note = self.note()
        mine = statistics.median(measured)
        return Result(
            self.name,
            self.what,
            None,
            mine,
            self.unit,
            mine,
            self.target,
            self.unit,
            min(measured),
            max(measured),
            note,
        )


def percentile(values: list[float], share: float) -> float:
    """The least value that `share` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
