"""How steep a curve is: its exponent, the slope between the logarithms of n and of what was measured.

0 is constant, 1 is linear. A logarithm over the ranges measured here comes to less than 0.15, so `FLAT` lets a
logarithm pass with room for a noisy machine, and neither a square root nor anything steeper. A linear part that only
begins to show is at the end of a curve: the last three points count by themselves too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

FLAT: Final = 0.3
"""The greatest exponent of what must not grow faster than a logarithm."""
LINEAR: Final = 1.1
"""Of what is proportional by nature, such as the time for a message to its size."""
TAIL: Final = 3


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent by least squares; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    xs = [math.log(x) for x, _ in points]
    ys = [math.log(max(y, 1e-9)) for _, y in points]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread


@dataclass
class Curve:
    """One measure along one axis."""

    axis: str
    what: str
    unit: str
    limit: float | None = FLAT
    """The greatest exponent allowed; None where the curve is shown and nothing is asked of it."""
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        """The greater one of the whole curve's and of its end's."""
        return max(slope(self.points), slope(self.points[-TAIL:]))

    @property
    def ok(self) -> bool:
        """Whether it grows no faster than it may."""
        return self.limit is None or self.exponent <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """For docs/growth.json."""
        points = [[x, round(y, 4)] for x, y in self.points]
        return {
            "axis": self.axis,
            "what": self.what,
            "unit": self.unit,
            "limit": self.limit,
            "exponent": round(self.exponent, 3),
            "ok": self.ok,
            "points": points,
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Curve:
        """What `as_dict` gave."""
        points = [(float(x), float(y)) for x, y in stored["points"]]
        return cls(stored["axis"], stored["what"], stored["unit"], stored["limit"], points)
