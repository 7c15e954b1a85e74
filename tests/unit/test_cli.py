"""The `streamlite` command, called as its script calls it: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import streamlite
from streamlite.cli import main
from streamlite.cli.measure import WORKLOADS
from streamlite.cli.workers import crew
from streamlite.cli.workloads import Load

NOON_MS = 1_357_041_600_000  # 2013-01-01T12:00:00Z


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The printed table without its rule: no cell of these tests has two spaces in it."""
        lines = [line for line in self.out.splitlines() if line.strip(" ─-")]
        return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["streamlite", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        return Ran(left.value.code if isinstance(left.value.code, int) else 0, printed.out, printed.err)

    return run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A bus with the topics `orders` (2 partitions, 4 messages) and `plain` (empty), and two groups."""
    place = tmp_path / "bus"
    with streamlite.open(place) as bus:
        orders = bus.topic("orders", partitions=2, retention_ms=60_000_000_000_000, cleanup="compact,delete")
        bus.topic("plain")
        with bus.producer() as producer:
            for number in range(3):
                producer.send(orders, f"v{number}", key=f"k{number}", partition=0, timestamp=NOON_MS + number)
            producer.send(orders, None, key=b"\xff\x1b[2Jend", partition=1, timestamp=NOON_MS + 1000)
        with bus.consumer("orders", group="billing", auto_commit=False) as consumer:
            consumer.commit({streamlite.TopicPartition("orders", 0): 1})
        with bus.consumer("orders", group="mailing", auto_commit=False) as consumer:
            consumer.commit({streamlite.TopicPartition("orders", 0): 3, streamlite.TopicPartition("orders", 1): 1})
    return place


def listing(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def assert_one_line_error(ran: Ran, *words: str) -> None:
    assert ran.status == 1
    assert ran.out == ""
    assert ran.err.startswith("streamlite: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    for word in words:
        assert word in ran.err


# The command itself.


def test_help_names_every_command(run: Run) -> None:
    ran = run("--help")
    assert ran.status == 0
    for command in ("bench", "demo", "groups", "read", "topics"):
        assert f"\n  {command} " in ran.out


@pytest.mark.parametrize("command", ["bench", "demo", "groups", "read", "topics"])
def test_every_command_has_help(run: Run, command: str) -> None:
    ran = run(command, "--help")
    assert ran.status == 0
    assert "--help" in ran.out


def test_version_is_printed_alone(run: Run) -> None:
    ran = run("--version")
    assert ran.status == 0
    assert len(ran.out.splitlines()) == 1


def test_unknown_command_is_a_usage_error(run: Run) -> None:
    ran = run("brew")
    assert ran.status == 2
    assert "brew" in ran.err


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_one_line_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert_one_line_error(run("topics", "anywhere"), missing, 'pip install "streamlite[cli]"')


# topics


def test_topics_lists_partitions_messages_and_changed_settings(run: Run, place: Path) -> None:
    ran = run("topics", place)
    assert ran.status == 0
    assert ran.rows == [
        ["topic", "partitions", "messages", "settings"],
        ["orders", "2", "4", "cleanup=compact,delete retention_ms=60000000000000"],
        ["plain", "1", "0"],
    ]


def test_topics_of_an_empty_bus_is_an_empty_table(run: Run, tmp_path: Path) -> None:
    streamlite.open(tmp_path / "bus").close()
    ran = run("topics", tmp_path / "bus")
    assert ran.status == 0
    assert ran.rows == [["topic", "partitions", "messages", "settings"]]


def test_long_names_stay_on_one_line_outside_a_terminal(run: Run, tmp_path: Path) -> None:
    name = "n" * 249
    with streamlite.open(tmp_path / "bus") as bus:
        bus.topic(name, segment_bytes=12_345)
    assert run("topics", tmp_path / "bus").rows[1] == [name, "1", "0", "segment_bytes=12345"]


# groups


def test_groups_lists_committed_and_lag_of_each_partition(run: Run, place: Path) -> None:
    ran = run("groups", place)
    assert ran.status == 0
    assert ran.rows[0] == ["group", "members", "topic", "partition", "committed", "lag"]
    assert ["billing", "0", "orders", "0", "1", "2"] in ran.rows
    assert ["mailing", "0", "orders", "0", "3", "0"] in ran.rows
    assert ["mailing", "0", "orders", "1", "1", "0"] in ran.rows


def test_groups_of_one_name_leaves_out_the_others(run: Run, place: Path) -> None:
    ran = run("groups", place, "mailing")
    assert ran.status == 0
    assert {row[0] for row in ran.rows[1:]} == {"mailing"}


def test_groups_counts_the_live_members(run: Run, place: Path) -> None:
    with streamlite.open(place) as bus, bus.consumer("orders", group="billing"):
        ran = run("groups", place, "billing")
    assert {row[1] for row in ran.rows[1:]} == {"1"}


def test_unknown_group_is_one_line(run: Run, place: Path) -> None:
    assert_one_line_error(run("groups", place, "nobody"), "nobody")


# read


def test_read_prints_messages_separated_by_tabs(run: Run, place: Path) -> None:
    ran = run("read", place, "orders", "--partition", 0)
    assert ran.status == 0
    assert ran.out.splitlines() == [
        "0\t0\t2013-01-01T12:00:00.000+00:00\tk0\tv0",
        "0\t1\t2013-01-01T12:00:00.001+00:00\tk1\tv1",
        "0\t2\t2013-01-01T12:00:00.002+00:00\tk2\tv2",
    ]


def test_read_escapes_what_a_terminal_would_obey_and_names_what_is_absent(run: Run, place: Path) -> None:
    ran = run("read", place, "orders", "--partition", 1)
    assert ran.out == "1\t0\t2013-01-01T12:00:01.000+00:00\t\\xff\\x1b[2Jend\t(none)\n"


@pytest.mark.parametrize(
    ("options", "offsets"),
    [
        (["--start", 1], [1, 2]),
        (["--stop", 1], [0]),
        (["--start", 1, "--stop", 2], [1]),
        (["--limit", 2], [0, 1]),
        (["--limit", 0], []),
        (["--since", "2013-01-01T12:00:00.001"], [1, 2]),
        (["--since", "2013-01-01T12:00:00.000001"], [1, 2]),
        (["--since", "2013-01-01T13:00:00.002+01:00"], [2]),
        (["--until", "2013-01-01T12:00:00.001Z"], [0]),
        (["--since", "2013-01-02"], []),
    ],
)
def test_read_takes_a_range(run: Run, place: Path, options: list[object], offsets: list[int]) -> None:
    ran = run("read", place, "orders", "--partition", 0, *options)
    assert ran.status == 0
    assert [int(line.split("\t")[1]) for line in ran.out.splitlines()] == offsets


def test_read_without_a_partition_reads_all(run: Run, place: Path) -> None:
    assert len(run("read", place, "orders").out.splitlines()) == 4


def test_read_prints_times_beyond_the_calendar_as_numbers(run: Run, tmp_path: Path) -> None:
    timestamp = 253_402_300_800_000
    with streamlite.open(tmp_path / "bus") as bus, bus.producer() as producer:
        producer.send(bus.topic("t"), b"v", timestamp=timestamp)
    assert run("read", tmp_path / "bus", "t").out == f"0\t0\t{timestamp} ms\t(none)\tv\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nothing"], ["nothing"]),
        (["or/ders"], ["or/ders"]),
        (["orders", "--start", 1], ["partition"]),
        (["orders", "--partition", 7], ["7"]),
        (["orders", "--since", "yesterday"], ["--since", "yesterday"]),
        (["orders", "--until", "2013-13-01"], ["--until", "2013-13-01"]),
    ],
)
def test_read_refuses_what_it_cannot_read(run: Run, place: Path, options: list[object], words: list[str]) -> None:
    assert_one_line_error(run("read", place, *options), *words)


# What all three share.


@pytest.mark.parametrize("arguments", [("topics",), ("groups",), ("read", "orders")])
def test_looking_changes_nothing(run: Run, place: Path, arguments: tuple[str, ...]) -> None:
    before = listing(place)
    assert run(arguments[0], place, *arguments[1:]).status == 0
    assert listing(place) == before


@pytest.mark.parametrize("arguments", [("topics",), ("groups",), ("read", "orders")])
def test_absent_directory_is_one_line_and_stays_absent(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    absent = tmp_path / "absent"
    assert_one_line_error(run(arguments[0], absent, *arguments[1:]), str(absent))
    assert not absent.exists()


@pytest.mark.parametrize("arguments", [("topics",), ("groups",), ("read", "orders")])
def test_directory_of_something_else_is_one_line(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert_one_line_error(run(arguments[0], tmp_path, *arguments[1:]), str(tmp_path))
    assert listing(tmp_path) == {"letter.txt": b"dear"}


@pytest.mark.parametrize("arguments", [("topics",), ("groups",), ("read", "orders")])
def test_open_bus_can_be_looked_into(run: Run, place: Path, arguments: tuple[str, ...]) -> None:
    with streamlite.open(place) as bus, bus.producer() as producer:
        producer.send("orders", b"new", key="k", partition=0).result()
        assert run(arguments[0], place, *arguments[1:]).status == 0


# demo: tests/integration/test_demo.py runs it; here is what it refuses.


def test_demo_refuses_a_directory_with_something_in_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    ran = run("demo", "--directory", tmp_path)
    assert ran.status == 1
    assert ran.err.count("\n") == 1
    assert str(tmp_path) in ran.err
    assert listing(tmp_path) == {"letter.txt": b"dear"}


def test_demo_refuses_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    ran = run("demo", "--directory", tmp_path / "letter.txt")
    assert ran.status == 1
    assert ran.err.count("\n") == 1


def test_demo_refuses_no_partitions(run: Run) -> None:
    assert run("demo", "--partitions", 0).status == 2


# bench: how fast is not said here, but what was measured and that it is whole.

SMALL = ["--messages", 60, "--size", 20, "--partitions", 2, "--keys", 5, "--rate", 2000]
OF_ONE_PROCESS = [name for name in WORKLOADS if not name.endswith("-processes")]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made: empty."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def chosen(workloads: list[str]) -> list[object]:
    return [part for name in workloads for part in ("--workload", name)]


def test_bench_measures_every_workload_and_leaves_nothing_behind(run: Run, temporary: Path) -> None:
    ran = run("bench", "--json", *SMALL)
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found["python"]
    assert found["options"]["size"] == 20
    by_name: dict[str, dict[str, Any]] = {one["workload"]: one for one in found["results"]}
    assert list(by_name) == list(WORKLOADS)
    for name, one in by_name.items():
        assert one["messages"] == 60, name
        assert one["rate"] == pytest.approx(60 / one["seconds"])
        latencies = [one["latency_us"][share] for share in ("p50", "p99", "p99.9", "max")]
        assert latencies == sorted(latencies)
        assert latencies[0] > 0
        assert one["processes"] == 1 + name.endswith("-processes")
        assert ("late_us" in one) == name.startswith("end-to-end")
    for name in ("produce", "single", "end-to-end", "end-to-end-processes", "ping", "ping-processes"):
        assert by_name[name]["samples"] == 60, name
    assert list(temporary.iterdir()) == []


def test_bench_prints_a_table_and_leaves_a_directory_that_was_asked_for(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "here"
    ran = run("bench", "--directory", place, *SMALL, *chosen(["produce", "columns"]))
    assert (ran.status, ran.err) == (0, "")
    head, *rows = ran.rows[-3:]
    assert head[:8] == ["workload", "messages", "messages/s", "MB/s", "p50", "p99", "p99.9", "max"]
    assert [row[:2] for row in rows] == [["produce", "60"], ["columns", "60"]]
    with streamlite.open(place, read_only=True) as bus:
        messages = list(bus.topic("produce").read())
    assert len(messages) == 60
    assert {len(message.value) for message in messages} == {20}
    assert {message.key for message in messages} == {b"k%d" % number for number in range(5)}
    assert len({message.value for message in messages}) == 60


def test_bench_sends_as_it_is_told_to(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("lz4")
    place = tmp_path / "here"
    options = ["--keys", 0, "--sync", "never", "--compression", "lz4", "--partitions", 3, "--messages", 30]
    assert run("bench", "--directory", place, *options, *chosen(["bulk"])).status == 0
    with streamlite.open(place, read_only=True) as bus:
        topic = bus.topic("bulk")
        assert (topic.partitions, topic.settings["compression"]) == (3, "lz4")
        assert [message.key for message in topic.read()] == [None] * 30


def test_bench_shares_a_workload_between_processes(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "here"
    ran = run(
        "bench",
        "--json",
        "--directory",
        place,
        *SMALL,
        "--messages",
        61,
        "--processes",
        2,
        *chosen(["produce", "poll"]),
    )
    assert (ran.status, ran.err) == (0, "")
    assert [(one["messages"], one["processes"]) for one in json.loads(ran.out)["results"]] == [(61, 2)] * 2
    with streamlite.open(place, read_only=True) as bus:
        assert len({message.value for message in bus.topic("produce").read()}) == 61


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workload", "brew"], ["--workload", "'brew'", "end-to-end"]),
        (["--sync", "now"], ["--sync", "'now'"]),
        (["--compression", "zip"], ["--compression", "'zip'"]),
        (["--plot", "nowhere/out.png"], ["--plot", "nowhere"]),
        (["--plot", "out.xyz"], ["--plot", ".png", ".svg", ".pdf", ".xyz"]),
        (["--plot", "."], ["--plot", ".png"]),
    ],
)
def test_bench_refuses_what_it_cannot_measure(
    run: Run, temporary: Path, options: list[object], words: list[str]
) -> None:
    assert_one_line_error(run("bench", *options), *words)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("options", [["--size", 7], ["--messages", 0], ["--rate", 0], ["--processes", 0]])
def test_bench_refuses_numbers_that_measure_nothing(run: Run, options: list[object]) -> None:
    assert run("bench", *options).status == 2


@pytest.mark.parametrize(
    ("size", "messages", "count"), [(100, 200_000, 1_000), (100, 5, 5), (10_000_000, 200_000, 6), (1 << 27, 9, 1)]
)
def test_the_values_of_bench_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, size: int, messages: int, count: int
) -> None:
    monkeypatch.setattr("streamlite.cli.workloads.random.Random.randbytes", lambda _self, size: size)
    load = Load(directory="", topic="", messages=messages, size=size)
    assert load.values() == [size] * count


def test_bench_says_what_to_install_for_a_plot_before_it_measures(
    run: Run, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_one_line_error(
        run("bench", *SMALL, "--plot", temporary / "out.png"), "matplotlib", 'pip install "streamlite[plot]"'
    )


def test_bench_draws_a_plot(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run("bench", *SMALL, *chosen(OF_ONE_PROCESS), "--plot", tmp_path / "out.png").status == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("workload", ["single", "end-to-end-processes"])
def test_ctrl_c_ends_bench_cleanly(temporary: Path, workload: str) -> None:
    command = [sys.executable, "-m", "streamlite.cli", "bench", "--messages", "100000000", "--workload", workload]
    with subprocess.Popen(
        [*command, "--rate", "100", "--seconds", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(streamlite.__file__).parents[1])},
        start_new_session=True,
    ) as bench:
        try:
            wait_for(lambda: any(log.stat().st_size for log in temporary.glob("*/topics/*/*/*.log")))
            os.killpg(bench.pid, signal.SIGINT)
            out, err = bench.communicate(timeout=30)
        finally:
            bench.kill()
    assert bench.returncode not in (0, None)
    assert out == ""
    assert "Traceback" not in err
    assert list(temporary.iterdir()) == []


def test_a_worker_of_bench_hears_no_ctrl_c_and_ends_with_who_started_it(tmp_path: Path) -> None:
    with streamlite.open(tmp_path / "bus") as bus:
        bus.topic("t")
        with crew("single", [Load(directory=str(tmp_path / "bus"), topic="t", messages=10**9)]) as (worker,):
            process = worker._process
            assert os.getsid(process.pid) != os.getsid(0)
            worker.go()
            wait_for(lambda: any(bus.topic("t").end_offsets().values()))
            assert process.poll() is None
            assert process.stdin is not None
            process.stdin.close()  # what the system does when the other process is gone
            assert process.wait(30) == 1


def test_what_goes_wrong_in_a_worker_of_bench_is_said_by_bench(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    load = Load(directory=str(tmp_path), topic="t", messages=1)
    with pytest.raises(streamlite.StreamliteError, match=str(tmp_path)), crew("single", [load]):
        pass


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
