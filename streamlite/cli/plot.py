"""The picture of `streamlite bench --plot`: throughput as bars, latencies as curves over their percentiles.

matplotlib comes with the extra `plot` and is imported here alone, before anything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from streamlite.cli.measure import Figure
from streamlite.errors import UnsupportedError

__all__ = ["ENDINGS", "draw", "load"]

ENDINGS: Final = (".png", ".svg", ".pdf")

NINES: Final = ((0, "50 %"), (1, "90 %"), (2, "99 %"), (3, "99.9 %"), (4, "99.99 %"))
"""Where the curves have a mark, in nines; the first stands where half a nine would."""


def load() -> Any:
    """matplotlib, without a window; `UnsupportedError` where it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f'--plot needs {error.name}, which is not installed: pip install "streamlite[plot]"'
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def draw(pyplot: Any, figures: Sequence[Figure], path: Path, title: str) -> None:
    """Write the picture; its kind is that of the path's ending."""
    whole, (rates, latencies) = pyplot.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    whole.suptitle(title, fontsize=9)
    fast = [one for one in figures if one.late_us is None and not one.workload.startswith("ping")]
    bars = rates.barh([one.workload for one in fast], [one.rate for one in fast])
    rates.bar_label(bars, labels=[f"{one.rate:,.0f}" for one in fast], padding=3, fontsize=8)
    rates.invert_yaxis()
    rates.margins(x=0.2)
    rates.set_xlabel("messages a second")
    for one in figures:
        count = len(one.samples)
        places = [_nines((number + 1) / (count + 1)) for number in range(count)]
        latencies.plot(places, one.samples, label=one.workload)
    latencies.set_yscale("log")
    latencies.set_xticks([place for place, _ in NINES], [name for _, name in NINES])
    latencies.set_xlim(left=0)
    latencies.set_xlabel("of all samples")
    latencies.set_ylabel("latency at most, µs")
    latencies.grid(visible=True, alpha=0.3)
    latencies.legend(fontsize=8)
    whole.savefig(path, dpi=120)
    pyplot.close(whole)


def _nines(share: float) -> float:
    """0.9 is 1, 0.99 is 2; 0.5 is 0, and below it is left of that."""
    from math import log10

    return log10(0.5 / (1 - share)) / log10(5) if share < 0.9 else -log10(1 - share)
