"""One picture an axis, a panel a measure, both scales logarithmic. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.growth.fit import Curve

COLUMNS: Final = 3
PANEL: Final = (3.4, 2.3)
"""Inches."""
DPI: Final = 80


def draw(curves: Sequence[Curve], label: str, path: Path) -> None:
    """Write a PNG of a few tens of kilobytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(curves) // COLUMNS)
    figure = Figure(figsize=(PANEL[0] * COLUMNS, PANEL[1] * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for place, curve in enumerate(curves, start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
        axes.plot(xs, ys, marker="o", markersize=3, linewidth=1, color="tab:blue" if curve.ok else "tab:red")
        axes.set_xscale("log")
        axes.set_yscale("log")
        # Room above and below, so that a flat curve looks flat.
        axes.set_ylim(min(ys) / 10, max(ys) * 10)
        axes.set_title(f"{curve.what} ({curve.unit})", fontsize=8)
        axes.text(0.03, 0.9, f"n^{curve.exponent:.2f}", transform=axes.transAxes, fontsize=7)
        axes.set_xlabel(label, fontsize=7)
        axes.tick_params(labelsize=7)
        axes.grid(visible=True, which="major", linewidth=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
