"""tests/bench/growth: what counts as growing too fast, on points whose growth is known."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.growth.__main__ import _store
from tests.bench.growth.axes import AXES
from tests.bench.growth.fit import FLAT, LINEAR, Curve, slope

ROOT = Path(__file__).parents[2]
STEPS = [10.0**power for power in range(4, 9)]


def curve(growth: Callable[[float], float], noise: float = 0.0, limit: float | None = FLAT) -> Curve:
    draw = random.Random(1)
    points = [(n, growth(n) * (1 + draw.uniform(-noise, noise))) for n in STEPS]
    return Curve("messages", "something", "ns", limit, points)


@pytest.mark.parametrize(
    ("growth", "exponent"),
    [(lambda n: 7.0, 0.0), (lambda n: n / 3, 1.0), (math.sqrt, 0.5), (lambda n: n * n, 2.0)],
    ids=["constant", "linear", "root", "square"],
)
def test_the_exponent_of_a_power_is_found(growth: Callable[[float], float], exponent: float) -> None:
    assert curve(growth).exponent == pytest.approx(exponent)


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("growth", [lambda n: 300.0, lambda n: 50 + 20 * math.log(n), math.log])
def test_what_is_constant_or_a_logarithm_passes(growth: Callable[[float], float], noise: float) -> None:
    assert curve(growth, noise).ok


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("growth", [math.sqrt, lambda n: n, lambda n: n * math.log(n)])
def test_what_grows_faster_does_not(growth: Callable[[float], float], noise: float) -> None:
    assert not curve(growth, noise).ok


def test_a_linear_part_that_shows_only_at_the_end_does_not_pass() -> None:
    assert not curve(lambda n: 1_000 + n / 10_000).ok


def test_what_is_proportional_by_nature_has_a_limit_too() -> None:
    assert curve(lambda n: 500 + n, limit=LINEAR).ok
    assert not curve(lambda n: n * n, limit=LINEAR).ok


def test_nothing_is_asked_of_a_curve_without_a_limit() -> None:
    assert curve(lambda n: n**3, limit=None).ok


def test_one_point_has_no_slope() -> None:
    assert slope([(10.0, 5.0)]) == 0.0


def test_what_is_stored_of_one_axis_leaves_the_others(tmp_path: Path) -> None:
    for name in ("messages", "sizes", "messages"):
        _store(tmp_path, name, [curve(math.log)], "command")
    stored = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    assert list(stored) == ["messages", "sizes"]
    again = Curve.from_dict(stored["sizes"]["curves"][0])
    assert again.exponent == pytest.approx(curve(math.log).exponent, abs=0.01)


def test_every_axis_has_its_points_and_picture_in_the_docs() -> None:
    stored = json.loads((ROOT / "docs" / "growth.json").read_text(encoding="utf-8"))
    assert sorted(stored) == sorted(AXES)
    for name, axis in stored.items():
        assert axis["command"].startswith(f"python -m tests.bench.growth {name}")
        assert (ROOT / "docs" / "images" / f"growth-{name}.png").stat().st_size < 100_000
        for stored_curve in axis["curves"]:
            again = Curve.from_dict(stored_curve)
            assert (again.ok, round(again.exponent, 2)) == (
                stored_curve["ok"],
                pytest.approx(stored_curve["exponent"], abs=0.02),
            )
