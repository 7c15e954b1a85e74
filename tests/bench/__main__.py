"""Measure streamlite against the floors and print a table: `python -m tests.bench [S1 S3 ...]`."""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import pstats
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tests.bench.case import DISTINCT, Case, Result, Setting
from tests.bench.latency import SendAndWait, SendToReceive
from tests.bench.memory import ConsumerMemory, ProducerMemory, ProducerMemorySlowWrites
from tests.bench.processes import BetweenProcesses, BetweenProcessesLate, Idle, ManyIdle, Processes, Threads
from tests.bench.size import Open, Seek
from tests.bench.takeover import Join, Takeover
from tests.bench.throughput import CopyColumns, Iterate, Poll, PollColumns, Send, SendKeyless, SendMany
from tests.bench.transactions import Transactions

CASES: dict[str, type[Case]] = {
    case.name: case
    for case in (
        Send,
        SendKeyless,
        SendMany,
        Poll,
        Iterate,
        SendToReceive,
        BetweenProcesses,
        BetweenProcessesLate,
        SendAndWait,
        Threads,
        Processes,
        Idle,
        Open,
        ConsumerMemory,
        ProducerMemory,
        ProducerMemorySlowWrites,
        Seek,
        ManyIdle,
        PollColumns,
        CopyColumns,
        Transactions,
        Takeover,
        Join,
    )
}
ROW = "{:<7} {:>10} {:>10} {:>9} {:>9}  {:<5} {:<15} {}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; exit status 1 when a target is missed."""
    asked = _parser().parse_args(arguments)
    if asked.messages < DISTINCT or asked.messages % DISTINCT:
        raise SystemExit(f"--messages takes a multiple of {DISTINCT}; found {asked.messages}")
    setting = Setting(asked.directory, asked.rounds, asked.messages, asked.scale)
    if asked.profile:
        _profile(CASES[asked.profile](setting))
        return 0
    results = list(_measure(asked.cases or CASES, setting, quiet=asked.json))
    if asked.json:
        machine = {"python": platform.python_version(), "machine": platform.platform(), "rounds": setting.rounds}
        print(json.dumps(machine | {"results": [result.as_dict() for result in results]}, indent=1))
    return 0 if all(result.ok for result in results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", choices=[[], *CASES], metavar="CASE", help=f"which: {' '.join(CASES)} (all)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="alternations of floor and measurement (5)")
    parser.add_argument(
        "--messages", type=int, default=1_000_000, help="messages of S1 to S5, four times those of S9 (1,000,000)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of the logs of S11 to S13 (1 is full size)")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--profile", choices=list(CASES), metavar="CASE", help="profile one measurement of this case")
    return parser


def _measure(names: Iterable[str], setting: Setting, *, quiet: bool) -> Iterable[Result]:
    if not quiet:
        print(f"CPython {platform.python_version()}, {platform.platform()}; medians of {setting.rounds} rounds")
        print(ROW.format("", "floor", "measured", "value", "target", "", "rounds", ""))
    for name in names:
        result = CASES[name](setting).run()
        if not quiet:
            print(_row(result), flush=True)
        yield result


def _row(result: Result) -> str:
    decimals = 0 if result.unit == "ns" else 1
    return ROW.format(
        result.name,
        "" if result.floor is None else f"{result.floor:.{decimals}f} {result.unit}",
        f"{result.measured:.{decimals}f} {result.unit}",
        f"{result.value:.2f} {result.value_unit}",
        f"{result.target:g} {result.value_unit}",
        "ok" if result.ok else "MISS",
        f"{result.low:.2f} to {result.high:.2f}",
        result.what + (f" [{result.note}]" if result.note else ""),
    )


def _profile(case: Case) -> None:
    """One measurement under cProfile, streamlite's own threads included; the floor is not taken."""
    profiles = [cProfile.Profile()]

    def begin(frame: FrameType, event: str, argument: Any) -> None:
        profile = cProfile.Profile()
        profiles.append(profile)
        profile.enable()

    if sys.version_info < (3, 12):  # from then on a profiler sees all threads, and there can be only one
        threading.setprofile(begin)
    with case.prepare():
        # What prepare started and did is not of interest: only threads that start from here on, and this one.
        del profiles[1:]
        profiles[0].enable()
        figure = case.measure()
        profiles[0].disable()
    threading.setprofile(None)
    stats = pstats.Stats(profiles[0])
    for profile in profiles[1:]:
        stats.add(profile)
    stats.sort_stats("tottime").print_stats(40)
    print(f"{case.name}: {figure:.1f} {case.unit} under the profiler")


if __name__ == "__main__":
    raise SystemExit(main())
