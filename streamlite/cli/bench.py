"""`streamlite bench`: how fast this machine is with streamlite, in figures to compare releases, settings and disks by.

What is measured is in `workloads`, how it comes to figures in `measure`. The bar moves between workloads and never
within one: to draw would be part of what is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from streamlite.cli import plot as picture
from streamlite.cli.measure import WORKLOADS, Figure, Options, about, measure
from streamlite.cli.place import workplace
from streamlite.cli.table import new_table, print_table
from streamlite.cli.workloads import STAMP_BYTES
from streamlite.config import COMPRESSIONS, check_choice
from streamlite.errors import ConfigError

__all__ = ["bench"]


def bench(
    directory: Annotated[
        Path | None,
        typer.Option(help="Measure in this new or empty directory and leave it behind.", show_default=False),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this one, may be repeated: {', '.join(WORKLOADS)}.", show_default=False),
    ] = None,
    messages: Annotated[int, typer.Option(help="Messages of each workload.", min=1)] = 200_000,
    size: Annotated[int, typer.Option(help="Bytes of each value.", min=STAMP_BYTES)] = 100,
    partitions: Annotated[int, typer.Option(help="Partitions of each topic.", min=1, max=1000)] = 6,
    keys: Annotated[int, typer.Option(help="Distinct keys; 0 for none.", min=0)] = 1000,
    sync: Annotated[str, typer.Option(help="always, interval or never.")] = "interval",
    compression: Annotated[str, typer.Option(help="none, lz4 or zstd.")] = "none",
    processes: Annotated[int, typer.Option(help="Processes that send, or read, at the same time.", min=1, max=64)] = 1,
    rate: Annotated[int, typer.Option(help="Messages a second, end to end.", min=1)] = 10_000,
    seconds: Annotated[int, typer.Option(help="Seconds of each end to end workload, at most.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the figures into this file (.png, .svg, .pdf).", show_default=False)
    ] = None,
) -> None:
    """Measure throughput and latency here: sending, reading, end to end, in one process and between processes."""
    options = Options(
        messages=messages,
        size=size,
        partitions=partitions,
        keys=keys,
        sync=check_choice("--sync", sync, ("always", "interval", "never")),
        compression=check_choice("--compression", compression, COMPRESSIONS),
        processes=processes,
        rate=rate,
        seconds=seconds,
    )
    names = [check_choice("--workload", name, WORKLOADS) for name in workload or WORKLOADS]
    pyplot = None
    if plot is not None:
        if not plot.parent.is_dir():
            raise ConfigError(f"--plot: there is no directory {plot.parent}")
        check_choice("--plot: the ending", plot.suffix.lower(), picture.ENDINGS)
        pyplot = picture.load()
    with workplace("bench", directory) as place, _progress(names) as told:
        figures = list(measure(place, options, names, told))
    if as_json:
        chosen = msgspec.structs.asdict(options)
        print(json.dumps(about() | {"options": chosen, "results": [one.as_dict() for one in figures]}, indent=1))
    else:
        _show(figures, options)
    if pyplot is not None and plot is not None:
        picture.draw(pyplot, figures, plot, _said(options))


@contextmanager
def _progress(names: Sequence[str]) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, on standard error; told the name of each workload when it begins."""
    console = Console(stderr=True)
    columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=len(names))

        def told(name: str) -> None:
            bar.update(task, description=name, completed=names.index(name), refresh=True)

        yield told


def _said(options: Options) -> str:
    machine = about()
    keys = f"{options.keys:,} keys" if options.keys else "no keys"
    return (
        f"{options.size:,} B values, {keys}, {options.partitions} partitions, sync={options.sync}, "
        f"compression={options.compression}; CPython {machine['python']}, {machine['platform']}"
    )


def _show(figures: Sequence[Figure], options: Options) -> None:
    print(_said(options))
    print(f"end to end at {options.rate:,} messages a second; latencies in microseconds")
    table = new_table("workload", "messages>", "messages/s>", "MB/s>", "p50>", "p99>", "p99.9>", "max>", "what")
    for one in figures:
        latencies = (f"{value:,.1f}" for value in one.latency_us.values())
        what = one.what if one.late_us is None else f"{one.what}; sender late by p50 {one.late_us['p50']:,.0f}"
        table.add_row(
            one.workload, f"{one.messages:,}", f"{one.rate:,.0f}", f"{one.mb_per_second:,.1f}", *latencies, what
        )
    print_table(table)
