"""The demo's figures against the packaged data, read here with csv and lzma alone, and the command as users run it."""

from __future__ import annotations

import csv
import lzma
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from importlib import resources
from pathlib import Path

import pytest

import streamlite
from streamlite.cli import demo
from streamlite.cli.demo import Told, Watcher
from streamlite.cli.figures import Delays, Figures
from streamlite.cli.flights import Flight, read_flights

ALERT = 120
LIMIT_S = 20.0
NEW_YORK = timezone(timedelta(hours=-5))
Row = dict[str, str]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    packed = resources.files("streamlite.cli").joinpath("data", "flights-2013-01.csv.xz").read_bytes()
    return list(csv.DictReader(lzma.decompress(packed).decode("ascii").splitlines()))


@dataclass
class Ran:
    figures: Figures
    directory: Path
    told: list[tuple[str, object]]


class Recorder(Watcher):
    """Writes down all that the demo tells."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    @contextmanager
    def _around(self, name: str) -> Iterator[Told]:
        counts: list[int] = []
        yield counts.append
        self.told.append((name, counts))

    @contextmanager
    def producing(self, total: int) -> Iterator[Told]:
        with self._around(f"producing {total}") as told:
            yield told

    @contextmanager
    def counting(self, delays: Delays) -> Iterator[Told]:
        with self._around("counting") as told:
            yield told

    @contextmanager
    def alerting(self, alerts: Sequence[Flight]) -> Iterator[Told]:
        with self._around("alerting") as told:
            yield told

    def stopped(self, read: int) -> None:
        self.told.append(("stopped", read))

    def reopened(self, committed: Mapping[int, int]) -> None:
        self.told.append(("reopened", dict(committed)))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    directory = tmp_path_factory.mktemp("demo") / "bus"
    recorder = Recorder()
    return Ran(demo.run(directory, read_flights(), watcher=recorder), directory, recorder.told)


def late(row: Row) -> bool:
    return row["dep_delay"] != "NA" and int(row["dep_delay"]) > ALERT


def day(row: Row) -> str:
    return date(int(row["year"]), int(row["month"]), int(row["day"])).isoformat()


def scheduled_ms(row: Row) -> int:
    hour = datetime.fromisoformat(row["time_hour"])
    return int(hour.timestamp() * 1000) + int(row["sched_dep_time"]) % 100 * 60_000


def identity(row: Row) -> tuple[str, str, str, int]:
    return row["carrier"], row["flight"], row["origin"], scheduled_ms(row)


def flight_identity(flight: Flight) -> tuple[str, str, str, int]:
    return flight.carrier, str(flight.flight), flight.origin, flight.scheduled_ms


# The data.


def test_packaged_data_is_the_month_of_the_issue(rows: list[Row]) -> None:
    assert len(rows) == 27_004
    assert {(row["year"], row["month"]) for row in rows} == {("2013", "1")}
    assert len({identity(row) for row in rows}) == len(rows)


def test_flights_are_read_as_the_data_says(rows: list[Row]) -> None:
    flights = read_flights()
    assert len(flights) == len(rows)
    for row, flight in zip(rows, flights, strict=True):
        for column in ("flight", "distance", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"):
            value = getattr(flight, column)
            assert ("NA" if value is None else str(value)) == row[column]
        assert flight.tailnum == (None if row["tailnum"] == "NA" else row["tailnum"])
        assert (flight.carrier, flight.origin, flight.dest) == (row["carrier"], row["origin"], row["dest"])
        assert (flight.date, flight.scheduled_ms) == (day(row), scheduled_ms(row))


def test_scheduled_time_is_the_local_one_in_new_york(rows: list[Row]) -> None:
    """The two columns of the source agree: UTC less five hours, all January."""
    for row in rows:
        local = datetime.fromtimestamp(scheduled_ms(row) / 1000, tz=NEW_YORK)
        assert local.date().isoformat() == day(row)
        assert local.hour * 100 + local.minute == int(row["sched_dep_time"])


# The figures.


def test_every_check_of_its_own_holds(ran: Ran) -> None:
    assert ran.figures.ok
    assert [check.what for check in ran.figures.checks if not check.ok] == []
    assert len(ran.figures.checks) == 6


def test_flights_and_keys_are_counted(ran: Ran, rows: list[Row]) -> None:
    keys = [row["tailnum"] for row in rows]
    assert ran.figures.flights == len(rows)
    assert ran.figures.keys == len(set(keys) - {"NA"})
    assert ran.figures.keyless == keys.count("NA")
    assert len(ran.figures.per_partition) == 6
    assert sum(ran.figures.per_partition) == len(rows)


def test_delays_per_carrier_are_those_of_the_data(ran: Ran, rows: list[Row]) -> None:
    delays: dict[str, list[int]] = defaultdict(list)
    flights = Counter(row["carrier"] for row in rows)
    for row in rows:
        if row["dep_delay"] != "NA":
            delays[row["carrier"]].append(int(row["dep_delay"]))
    wanted = {
        carrier: (
            flights[carrier],
            flights[carrier] - len(delays[carrier]),
            sum(delays[carrier]) / len(delays[carrier]),
            max(delays[carrier]),
            sum(delay > ALERT for delay in delays[carrier]),
        )
        for carrier in flights
    }
    found = {
        row.carrier: (row.flights, row.cancelled, row.mean, row.longest, row.alerts) for row in ran.figures.carriers
    }
    assert found == wanted
    assert [row.carrier for row in ran.figures.carriers] == sorted(flights)


def test_alerts_are_the_flights_over_two_hours_late_each_once(ran: Ran, rows: list[Row]) -> None:
    wanted = Counter(identity(row) for row in rows if late(row))
    assert Counter(map(flight_identity, ran.figures.alerts)) == wanted
    assert 0 < ran.figures.alerts_before < len(ran.figures.alerts)


def test_alerts_group_stopped_half_way_and_read_the_rest(ran: Ran, rows: list[Row]) -> None:
    assert ran.figures.read_before == len(rows) // 2
    assert ran.figures.read_before + ran.figures.read_after == len(rows)
    assert sum(ran.figures.committed.values()) == ran.figures.read_before


def test_replayed_day_is_the_one_with_most_alerts(ran: Ran, rows: list[Row]) -> None:
    alerts = Counter(day(row) for row in rows if late(row))
    most = max(alerts.values())
    worst = min(date for date, count in alerts.items() if count == most)
    flights = [row for row in rows if day(row) == worst]
    assert ran.figures.day == worst
    assert ran.figures.day_flights == len(flights)
    assert ran.figures.day_cancelled == sum(row["dep_delay"] == "NA" for row in flights)
    assert ran.figures.day_alerts == most


def test_times_are_measured(ran: Ran) -> None:
    figures = ran.figures
    seconds = (figures.produce_seconds, figures.delays_seconds, figures.alerts_seconds, figures.replay_seconds)
    assert all(0 < each < LIMIT_S for each in (*seconds, figures.reopen_seconds))


def test_watcher_is_told_in_order_and_to_the_end(ran: Ran, rows: list[Row]) -> None:
    half = len(rows) // 2
    assert [name for name, _ in ran.told] == [
        f"producing {len(rows)}",
        "counting",
        "alerting",
        "stopped",
        "reopened",
        "alerting",
    ]
    produced, counted, first, stopped, committed, second = (what for _, what in ran.told)
    assert (stopped, committed) == (half, ran.figures.committed)
    for counts, end in ((produced, len(rows)), (counted, len(rows)), (first, half), (second, len(rows) - half)):
        assert isinstance(counts, list)
        assert counts == sorted(counts)
        assert counts[-1] == end


def test_directory_holds_what_the_figures_say(ran: Ran, rows: list[Row]) -> None:
    with streamlite.open(ran.directory, read_only=True) as bus:
        topic = bus.topic("flights")
        messages = list(topic.read())
        ends = topic.end_offsets()
    assert tuple(end for _, end in sorted(ends.items())) == ran.figures.per_partition
    wanted = Counter(None if row["tailnum"] == "NA" else row["tailnum"].encode() for row in rows)
    assert Counter(message.key for message in messages) == wanted


def test_figures_do_not_depend_on_the_number_of_partitions(tmp_path: Path, ran: Ran) -> None:
    one = demo.run(tmp_path / "bus", read_flights(), partitions=1)
    assert one.ok
    assert one.per_partition == (ran.figures.flights,)
    assert one.carriers == ran.figures.carriers
    assert set(one.alerts) == set(ran.figures.alerts)
    assert (one.day, one.day_flights) == (ran.figures.day, ran.figures.day_flights)


def test_lost_message_fails_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks see what is wrong: here one flight less was sent than was to be."""
    produce = demo._produce
    monkeypatch.setattr(demo, "_produce", lambda topic, flights, watcher: produce(topic, flights[:-1], watcher))
    monkeypatch.setattr(demo, "PATIENCE", 0.01)
    figures = demo.run(tmp_path / "bus", read_flights())
    assert not figures.ok
    assert any("1 lost" in check.found for check in figures.checks if not check.ok)


# The command.


def streamlite_demo(scratch: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`streamlite demo` in a process of its own, with `scratch` as the place for temporary files."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(streamlite.__file__).parents[1]),
        "TMPDIR": str(scratch),
        "PYTHONUTF8": "1",
        "COLUMNS": "120",
    }
    command = [sys.executable, "-m", "streamlite.cli", "demo", *options]
    return subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def assert_told_all(out: str, ran: Ran) -> None:
    figures = ran.figures
    assert "27,004 real flights" in out
    assert out.count("\nok ") == len(figures.checks)
    assert "FAILED" not in out
    for row in figures.carriers:
        mean = f"{row.mean:.1f}"
        cells = (row.carrier, f"{row.flights:,}", f"{row.cancelled:,}", mean, f"{row.longest:,}", f"{row.alerts:,}")
        assert re.search(r"^\s*" + r"\s+".join(map(re.escape, cells)) + r"\s*$", out, re.MULTILINE), cells
    assert f"{figures.read_before:,} messages" in out
    assert f"{figures.day}, the day with most alerts: {figures.day_flights:,} flights" in out
    assert "messages/s" in out


def test_demo_leaves_nothing_behind(tmp_path: Path, ran: Ran) -> None:
    done = streamlite_demo(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert_told_all(done.stdout, ran)
    assert list(tmp_path.iterdir()) == []


def test_demo_keeps_its_temporary_directory_if_asked(tmp_path: Path, ran: Ran) -> None:
    done = streamlite_demo(tmp_path, "--keep")
    assert (done.returncode, done.stderr) == (0, "")
    assert_told_all(done.stdout, ran)
    (left,) = tmp_path.iterdir()
    assert f"left behind: {left}" in done.stdout
    assert_bus_of_flights(left)


def test_demo_works_in_the_directory_it_is_given_and_leaves_it(tmp_path: Path, ran: Ran) -> None:
    done = streamlite_demo(tmp_path, "--directory", "here", "--partitions", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert_told_all(done.stdout, ran)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert_bus_of_flights(tmp_path / "here", partitions=3)
    again = streamlite_demo(tmp_path, "--directory", "here")
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1


def assert_bus_of_flights(place: Path, partitions: int = 6) -> None:
    with streamlite.open(place, read_only=True) as bus:
        assert bus.topics() == ["flights"]
        topic = bus.topic("flights")
        assert topic.partitions == partitions
        assert sum(topic.end_offsets().values()) == 27_004
