"""Measure streamlite beside its peers and print a table: `python -m tests.bench.peers [--level batch] [PEER ...]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.bench.case import DISTINCT
from tests.bench.peers.peer import BATCHES, NEVER
from tests.bench.peers.rounds import PEERS, Setting, measure
from tests.bench.peers.table import OWN, lines, rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exit status 1 when a target is missed."""
    asked = _parser().parse_args(arguments)
    if asked.messages < DISTINCT:
        raise SystemExit(f"--messages takes at least {DISTINCT}; found {asked.messages}")
    signal.signal(signal.SIGTERM, _end)
    setting = Setting(asked.directory, asked.level, asked.rounds, asked.messages, asked.pings)
    names = [name for name in PEERS if not asked.peers or name in {OWN, *asked.peers}]
    load = os.getloadavg()[0]
    found = measure(names, setting, lambda what: print(what, file=sys.stderr, flush=True))
    judged = list(rows(found))
    machine = {"python": platform.python_version(), "machine": platform.platform(), "cores": os.cpu_count()}
    machine |= {"load_before": load, "rounds": setting.rounds, "messages": setting.messages, "level": setting.level}
    if asked.json:
        figures = [
            {"peer": peer, "measure": name, "rounds": all_of_it} for (peer, name), all_of_it in found.rates.items()
        ]
        settings = {name: PEERS[name].settings for name in names}
        result = machine | {"figures": figures, "rows": [row.as_dict() for row in judged]}
        print(json.dumps(result | {"absent": found.absent, "settings": settings}, indent=1))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        print(*lines(found, setting.level), sep="\n")
    return 1 if any(row.ok is False for row in judged) else 0


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that all that was started is ended on the way out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument(
        "peers", nargs="*", choices=[[], *PEERS], metavar="PEER", help=f"which, beside streamlite: {', '.join(PEERS)}"
    )
    parser.add_argument(
        "--level",
        choices=[NEVER, BATCHES],
        default=NEVER,
        help="never: nobody waits for the device; batch: each batch is synced",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often all are taken in turn (5)")
    parser.add_argument("--messages", type=int, default=1_000_000, help="for the fastest; others get a share of them")
    parser.add_argument("--pings", type=int, default=400, help="single messages between two processes (400)")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
