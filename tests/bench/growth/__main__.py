"""Measure how time and memory grow, judge, and draw: `python -m tests.bench.growth [AXIS ...] [--out docs]`.

Without --out the figures are printed only. With it, the points go to growth.json there and a picture of each axis to
images/growth-AXIS.png; axes that were not measured this time keep what the file has of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.case import Setting
from tests.bench.growth.axes import AXES
from tests.bench.growth.fit import Curve


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a curve is steeper than it may be."""
    asked = _parser().parse_args(arguments)
    steep = False
    for name in [] if asked.draw else asked.axes or AXES:
        axis = AXES[name](Setting(asked.directory, asked.rounds), asked.most)
        print(f"{name}: {', '.join(f'{step:,}' for step in axis.steps)}", flush=True)
        curves = axis.run()
        for curve in curves:
            print(_line(curve), flush=True)
            steep = steep or not curve.ok
        if asked.out:
            _store(asked.out, name, curves, _command(asked, name))
    if asked.out:
        _draw(asked.out)
    return 1 if steep else 0


def _line(curve: Curve) -> str:
    figures = "  ".join(f"{y:,.3g}" for _, y in curve.points)
    judged = "" if curve.limit is None else f" of {curve.limit:g} {'ok' if curve.ok else 'STEEP'}"
    return f"  {curve.what:<40} n^{curve.exponent:.2f}{judged}  {figures} {curve.unit}"


def _command(asked: argparse.Namespace, name: str) -> str:
    most = "" if asked.most is None else f" --most {asked.most}"
    return f"python -m tests.bench.growth {name}{most} --out docs"


def _store(out: Path, name: str, curves: Sequence[Curve], command: str) -> None:
    path = out / "growth.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machine = f"CPython {platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores"
    load = round(os.getloadavg()[1], 1)
    axis = {"command": command, "machine": machine, "load": load, "curves": [curve.as_dict() for curve in curves]}
    path.write_text(_text(stored | {name: axis}), encoding="utf-8")


def _text(stored: dict[str, Any]) -> str:
    """A line for each curve, so that a change of one is seen as such."""
    axes = []
    for name, axis in stored.items():
        rest = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in axis.items() if key != "curves"]
        curves = ",\n".join(f"   {json.dumps(curve)}" for curve in axis["curves"])
        axes.append("\n".join([f" {json.dumps(name)}: {{", *rest, '  "curves": [', curves, "  ]", " }"]))
    return "{\n" + ",\n".join(axes) + "\n}\n"


def _draw(out: Path) -> None:
    from tests.bench.growth.plot import draw

    for name, axis in json.loads((out / "growth.json").read_text(encoding="utf-8")).items():
        curves = [Curve.from_dict(curve) for curve in axis["curves"]]
        draw(curves, AXES[name].label, out / "images" / f"growth-{name}.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("axes", nargs="*", choices=[[], *AXES], metavar="AXIS", help=f"which: {' '.join(AXES)} (all)")
    parser.add_argument("--most", type=int, help="leave out steps beyond this; 100,000,000 messages take 12 GB of disk")
    parser.add_argument("--rounds", type=int, default=5, help="how often all steps are taken in turn (5)")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--out", type=Path, help="where growth.json and images/ are")
    parser.add_argument("--draw", action="store_true", help="measure nothing: draw what growth.json has")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
