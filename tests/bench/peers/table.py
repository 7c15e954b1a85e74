"""The targets, and what was found held against them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from tests.bench.peers.brokers import KafkaApache, KafkaNoida
from tests.bench.peers.embedded import RawSQLite, Streamlite
from tests.bench.peers.rounds import PEERS, Found

OWN: Final = Streamlite.name
BEATEN: Final = 3.0
"""What holds for every peer and measure that is not named below."""
BROKERS: Final = (KafkaNoida.name, KafkaApache.name)
TARGETS: Final[dict[tuple[str, str, str], float | None]] = {
    (RawSQLite.name, "consume", "consume"): 2.0,
    **{(name, "produce", "produce"): 1.4 for name in BROKERS},
    **{(name, "consume", "consume"): 2.5 for name in BROKERS},
    **{(name, "produce_many", "produce"): 8.0 for name in BROKERS},
    **{(name, "produce_plain", "produce_plain"): 8.0 for name in BROKERS},
    # No target was set for the client's newer produce_batch; it is shown all the same.
    **{(name, "produce_many", "produce_many"): None for name in BROKERS},
}
"""By peer, streamlite's measure and the peer's: how many times as fast streamlite is to be."""
CALLS: Final = {
    "produce": "send",
    "produce_many": "send_many",
    "produce_plain": "send_many, no keys",
    "consume": "poll",
    "p50": "ping p50",
    "p99": "ping p99",
}
PIECES: Final = {"produce_many", "produce_plain"}
SINGLE: Final = {"produce", "produce_plain"}
"""What is one call a message with a broker's client, where streamlite's is send_many."""
HEADS: Final = ("", "one by one", "batched", "no keys", "consumed", "ping p50", "ping p99")
PAIRS: Final = tuple((name, name) for name in CALLS if name not in {"p99", "produce_plain"})
ROW: Final = "{:<18} {:<36} {:>12} {:>12} {:>8} {:>7}  {}"


@dataclass(frozen=True)
class Row:
    """One line: how many times as good streamlite was."""

    peer: str
    own_measure: str
    measure: str
    own: float
    """Medians: thousands of messages a second, or microseconds."""
    theirs: float
    ratio: float
    target: float | None

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return None if self.target is None else self.ratio >= self.target

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "ok": self.ok}


def rows(found: Found) -> Iterator[Row]:
    """A line for each peer and measure that was taken."""
    for peer in PEERS:
        if peer == OWN:
            continue
        extra = (("produce_many", "produce"), ("produce_plain", "produce_plain")) if peer in BROKERS else ()
        for own, measure in (*PAIRS, *extra):
            if (peer, measure) in found.rates and (OWN, own) in found.rates:
                yield _row(found, peer, own, measure)


def _row(found: Found, peer: str, own: str, measure: str) -> Row:
    mine = statistics.median(found.rates[OWN, own])
    theirs = statistics.median(found.rates[peer, measure])
    if measure == "p50":
        # Of times less is better, and the lowest of all is what is asked for.
        return Row(peer, own, measure, mine, theirs, theirs / mine, 1.0)
    target = TARGETS.get((peer, own, measure), BEATEN)
    return Row(peer, own, measure, mine / 1e3, theirs / 1e3, mine / theirs, target)


def lines(found: Found, level: str) -> Iterator[str]:
    """The tables as text."""
    yield "thousands of messages a second, more is better; pings in microseconds, less is better"
    yield ""
    yield from _figures(found)
    yield ""
    yield ROW.format("streamlite against", "measure", "streamlite", "the peer", "ratio", "target", "")
    for row in rows(found):
        what = CALLS[row.own_measure] + (
            " against produce" if row.own_measure in PIECES and row.measure in SINGLE else ""
        )
        judged = {True: "ok", False: "MISS", None: "(no target)"}[row.ok]
        target = "" if row.target is None else f"{row.target:g}"
        yield ROW.format(row.peer, what, f"{row.own:,.0f}", f"{row.theirs:,.1f}", f"{row.ratio:.1f}", target, judged)
    yield ""
    for peer, why in found.absent.items():
        yield f"{peer}: left out, {why}"
    yield f"level: {level}"
    for name in dict.fromkeys(peer for peer, _ in found.rates):
        yield f"{name}: {PEERS[name].settings}"


def _figures(found: Found) -> Iterator[str]:
    head = "{:<18}" + " {:>12}" * len(CALLS)
    yield head.format(*HEADS)
    for name in dict.fromkeys(peer for peer, _ in found.rates):
        cells = []
        for measure in CALLS:
            figures = found.rates.get((name, measure))
            if figures is None:
                cells.append("-")
            elif measure in {"p50", "p99"}:
                cells.append(f"{statistics.median(figures):,.0f}")
            else:
                cells.append(f"{statistics.median(figures) / 1e3:,.1f}")
        yield head.format(name, *cells)
