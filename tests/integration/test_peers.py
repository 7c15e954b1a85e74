"""tests/bench/peers: the adapters that need nothing installed do what they say, servers end, and targets are judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.peers import pings
from tests.bench.peers.__main__ import main
from tests.bench.peers.embedded import RawSQLite, Streamlite
from tests.bench.peers.peer import BATCHES, NEVER, Peer
from tests.bench.peers.rounds import PEERS, Found, Setting
from tests.bench.peers.server import ServerError, running
from tests.bench.peers.table import TARGETS, lines, rows

COUNT = 2_000
LISTEN = """
import os, socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
    open("pid", "w").write(str(os.getpid()))
    while True:
        listening.accept()[0].close()
"""
RUN = """
import sys
from pathlib import Path
from tests.bench.peers.server import running
from tests.integration.test_peers import Listening
with running(Listening(Path(sys.argv[1]), "never")):
    print("ready", flush=True)
    sys.stdin.read()
"""
PATIENCE_S = 60


class Listening(RawSQLite):
    """A peer with a server that does nothing but take connections."""

    name = "listening"

    def command(self) -> list[str]:
        return [sys.executable, "-c", LISTEN, str(self.port)]


class Failing(Listening):
    """One whose server cannot run."""

    name = "failing"

    def command(self) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no licence')"]


@pytest.mark.parametrize("level", [NEVER, BATCHES])
@pytest.mark.parametrize("kind", [Streamlite, RawSQLite], ids=lambda kind: kind.name)
def test_a_peer_gives_back_what_it_took(kind: type[Peer], level: str, tmp_path: Path) -> None:
    peer = kind(tmp_path, level)
    steps = [peer.produce, peer.produce_many, *([peer.produce_plain] if kind.plain else [])]
    for number, produce in enumerate(steps):
        peer.open(f"log-{number}")
        try:
            produce(COUNT)
            peer.consume(COUNT)
            with pytest.raises(AssertionError):
                short_of_patience(peer, COUNT)
        finally:
            peer.close()


def short_of_patience(peer: Peer, count: int) -> None:
    """Ask for more than there is: nothing was counted twice."""
    if isinstance(peer, Streamlite):
        assert peer._consumer.poll(0)
    else:
        peer.consume(count)


@pytest.mark.parametrize("kind", [Streamlite, RawSQLite], ids=lambda kind: kind.name)
def test_pings_arrive_in_the_other_process(kind: type[Peer], tmp_path: Path) -> None:
    p50, p99 = pings.measure(kind(tmp_path, NEVER), "log", 5)
    assert 0 < p50 <= p99


def test_a_server_runs_for_as_long_as_the_block(tmp_path: Path) -> None:
    peer = Listening(tmp_path, NEVER)
    with running(peer):
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
    assert_gone(pid)


def test_a_server_ends_with_a_bench_that_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bench:
        assert bench.stdout is not None
        assert bench.stdout.readline() == b"ready\n"
        pid = int((tmp_path / "pid").read_text())
        bench.send_signal(signal.SIGKILL)
    assert_gone(pid)


def assert_gone(pid: int) -> None:
    """Wait until that process is no more, whoever reaps it."""
    for _ in range(PATIENCE_S * 100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        signal.sigtimedwait([], 0.01)
    raise AssertionError(f"the server {pid} goes on")


def test_a_server_that_cannot_run_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no licence"), running(Failing(tmp_path, NEVER)):
        pass


def test_peers_that_are_absent_are_left_out_with_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PEERS["queuelib"], "modules", ("no_such_module",))
    main(
        [
            "SQLite table",
            "queuelib",
            "--rounds",
            "1",
            "--messages",
            "1000",
            "--pings",
            "3",
            "--json",
            "--directory",
            str(tmp_path),
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["absent"] == {"queuelib": "no no_such_module"}
    assert {row["peer"] for row in found["rows"]} == {"SQLite table"}
    assert {row["measure"] for row in found["rows"]} == {"produce", "produce_many", "consume", "p50"}
    assert not list(tmp_path.iterdir())


def test_ratios_are_held_against_the_targets() -> None:
    found = Found()
    for name, rate in (("streamlite", 2_000_000.0), ("SQLite table", 1_000_000.0), ("queuelib", 500_000.0)):
        found.note(name, "consume", rate)
    found.note("streamlite", "p50", 50.0)
    found.note("SQLite table", "p50", 40.0)
    judged = {(row.peer, row.measure): (row.ratio, row.ok) for row in rows(found)}
    assert judged == {
        ("SQLite table", "consume"): (2.0, True),  # of its batched reads twice is enough
        ("queuelib", "consume"): (4.0, True),
        ("SQLite table", "p50"): (0.8, False),
    }
    assert any("MISS" in line for line in lines(found, NEVER))
    assert TARGETS["Kafka (noida-db)", "produce", "produce"] == 1.4


def test_slow_peers_get_fewer_messages(tmp_path: Path) -> None:
    setting = Setting(tmp_path, NEVER, messages=100_000)
    assert setting.count(Streamlite(tmp_path, NEVER)) == 100_000
    assert setting.count(PEERS["litequeue"](tmp_path, NEVER)) == 1_000
