"""How the demo looks: rich, in plain words, as readable in a log file as in a terminal.

On a terminal the bar and the tables move; elsewhere rich writes the last state of each, once. All drawing happens in
the demo's own thread, which also counts what is drawn, at most ten times a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from streamlite.cli.demo import Told, Watcher
from streamlite.cli.figures import CarrierDelays, Check, Delays, Figures
from streamlite.cli.flights import Flight

__all__ = ["Screen", "show_figures"]

REDRAW_SECONDS: Final = 0.1
"""Ten pictures a second look alive and cost little beside the work they show."""


class Screen(Watcher):
    """Shows on `console` what the demo does while it does it."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def producing(self, total: int) -> Iterator[Told]:
        """A progress bar."""
        _step(self._console, "Produce", f"{total:,} flights into the topic, keyed by tail number")
        columns = (BarColumn(bar_width=50), MofNCompleteColumn(), TextColumn("sent"))
        with Progress(*columns, console=self._console, auto_refresh=False) as progress:
            task = progress.add_task("produce", total=total)
            with _seldom(lambda sent: progress.update(task, completed=sent, refresh=True)) as told:
                yield told

    @contextmanager
    def counting(self, delays: Delays) -> Iterator[Told]:
        """The table of delays per carrier."""
        _step(self._console, "Group delays", "departure delays per carrier, in minutes")
        with self._live(lambda read: _delays_table(list(delays.values()))) as told:
            yield told

    @contextmanager
    def alerting(self, alerts: Sequence[Flight]) -> Iterator[Told]:
        """The number of alerts so far and the last of them."""
        if not alerts:
            _step(self._console, "Group alerts", "flights that left more than two hours late")
        with self._live(lambda read: _alert_line(alerts, read)) as told:
            yield told

    def stopped(self, read: int) -> None:
        """Says that everything is closed."""
        _step(self._console, "Stop", f"group alerts after {read:,} messages; its consumer and the bus are closed")

    def reopened(self, committed: Mapping[int, int]) -> None:
        """Says where the group goes on."""
        places = _places(committed) or "none"
        _step(self._console, "Open again", f"group alerts goes on from its committed offsets: {places}")

    @contextmanager
    def _live(self, draw: Callable[[int], RenderableType]) -> Iterator[Told]:
        with (
            Live(draw(0), console=self._console, auto_refresh=False) as live,
            _seldom(lambda read: live.update(draw(read), refresh=True)) as told,
        ):
            yield told


def show_figures(console: Console, figures: Figures) -> None:
    """What was done, how fast, and whether it was right."""
    found = f"{figures.day_flights:,} flights, {figures.day_cancelled:,} cancelled, {figures.day_alerts:,} alerts"
    _step(console, "Replay by timestamp", f"{figures.day}, the day with most alerts: {found}")
    console.print()
    console.print(_speed_table(figures))
    console.print(Text("with every flight encoded and decoded as JSON, and the drawing of this", style="dim"))
    console.print()
    for check in figures.checks:
        console.print(_check_line(check), soft_wrap=True)


def _step(console: Console, name: str, text: str) -> None:
    console.print(Text.assemble("\n", (name, "bold"), ": ", text), soft_wrap=True)


@contextmanager
def _seldom(draw: Told) -> Iterator[Told]:
    """`draw`, but skipped when the last picture is younger than `REDRAW_SECONDS`; the last state is always drawn."""
    latest, due = 0, 0.0

    def told(count: int) -> None:
        nonlocal latest, due
        latest = count
        now = perf_counter()
        if now >= due:
            draw(count)
            due = now + REDRAW_SECONDS

    yield told
    draw(latest)


def _delays_table(rows: Sequence[CarrierDelays]) -> Table:
    """One row a carrier, the latest on average first; the last row is their sum."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("carrier")
    for name in ("flights", "cancelled", "mean delay", "longest", "over 2 h"):
        table.add_column(name, justify="right")
    for row in sorted(rows, key=lambda row: (-(row.mean or 0.0), row.carrier)):
        table.add_row(*_cells(row))
    table.add_section()
    table.add_row(*_cells(_sum(rows)), style="bold")
    return table


def _sum(rows: Sequence[CarrierDelays]) -> CarrierDelays:
    return CarrierDelays(
        "all",
        flights=sum(row.flights for row in rows),
        departed=sum(row.departed for row in rows),
        minutes=sum(row.minutes for row in rows),
        longest=max((row.longest for row in rows if row.longest is not None), default=None),
        alerts=sum(row.alerts for row in rows),
    )


def _cells(row: CarrierDelays) -> tuple[str, ...]:
    mean = "" if row.mean is None else f"{row.mean:.1f}"
    longest = "" if row.longest is None else f"{row.longest:,}"
    return row.carrier, f"{row.flights:,}", f"{row.cancelled:,}", mean, longest, f"{row.alerts:,}"


def _alert_line(alerts: Sequence[Flight], read: int) -> Text:
    text = f"  {read:,} messages read, {len(alerts):,} alerts in all"
    if alerts:
        last = alerts[-1]
        text += f"; last: {last.carrier} {last.flight} {last.origin}-{last.dest} {last.date}, {last.dep_delay} min late"
    return Text(text)


def _speed_table(figures: Figures) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("how fast")
    for name in ("messages", "seconds", "messages/s"):
        table.add_column(name, justify="right")
    for what, count, seconds in (
        ("produce", figures.flights, figures.produce_seconds),
        ("consume, group delays", figures.flights, figures.delays_seconds),
        ("consume, group alerts", figures.read_before + figures.read_after, figures.alerts_seconds),
        ("replay by timestamp", figures.day_flights, figures.replay_seconds),
    ):
        table.add_row(what, f"{count:,}", f"{seconds:.3f}", f"{count / seconds:,.0f}")
    table.add_row("open the directory again", "", f"{figures.reopen_seconds:.3f}", "")
    return table


def _check_line(check: Check) -> Text:
    verdict = ("ok    ", "green") if check.ok else ("FAILED", "bold red")
    return Text.assemble(verdict, f" {check.what} ", (f"({check.found})", "dim"))


def _places(committed: Mapping[int, int]) -> str:
    return ", ".join(f"{partition}:{offset:,}" for partition, offset in sorted(committed.items()))
