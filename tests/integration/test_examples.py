"""The examples as a reader runs them, each in processes of its own; and that the shop's check sees what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import streamlite
from examples.orders.__main__ import check
from examples.orders.model import Ledger, Order, Reservation, Shipment, TakenOver, open_topics

ROOT = Path(__file__).parents[2]
LIMIT_S = 150.0
"""Far above the ten seconds it takes, since machines that run tests are busy; the launcher gives up before that."""
FEW = 200


def run(*arguments: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


# The shop.


@pytest.mark.parametrize("seed", range(3))
def test_every_order_is_shipped_once_whoever_is_killed_or_stopped(seed: int, tmp_path: Path) -> None:
    done = run("examples.orders", "--orders", str(FEW), "--seed", str(seed), scratch=tmp_path)
    told = f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert "Every order was shipped exactly once." in done.stdout, told
    assert done.returncode == 0, told
    assert f"every order was shipped: {FEW} of {FEW}" in done.stdout, told
    assert "Traceback" not in done.stderr, told
    accidents = re.findall(r"s  (KILLED|STOPPED) (stock|shipping)", done.stdout)
    assert sorted(accidents) == [("KILLED", "shipping"), ("KILLED", "stock"), ("STOPPED", "shipping")], told
    first = done.stdout.index(" KILLED " if accidents[0][0] == "KILLED" else " STOPPED ")
    shipped = [int(count) for count in re.findall(r"shipped +(\d+)", done.stdout[:first])]
    assert max(shipped) < FEW, f"the first accident came when all was done\n{told}"
    assert list(tmp_path.iterdir()) == [], "the temporary bus is removed"


def fill(bus: streamlite.Bus, shipments: Iterable[Shipment | TakenOver], orders: int = 3) -> None:
    """A shop's log in which everything else is as it should be."""
    topics = open_topics(bus)
    with bus.producer() as producer:
        for number in range(orders):
            order = Order(str(number), "alice", "tea", 1)
            producer.send(topics.orders, order, key=order.customer)
            producer.send(topics.reservations, Reservation(order, "tea-1"), key=order.id)
        for record in shipments:
            producer.send(topics.shipments, record, partition=0)
    for group, topic in (("stock", topics.orders), ("shipping", topics.reservations)):
        with bus.consumer(topic, group=group) as consumer:
            while any(consumer.lag().values()):
                consumer.poll(timeout=1)
            consumer.commit()


def shipment(number: int, owner: str) -> Shipment:
    return Shipment(str(number), "alice", owner)


A, B = TakenOver("a"), TakenOver("b")


@pytest.mark.parametrize(
    ("shipments", "holds"),
    [
        ([A, *(shipment(n, "a") for n in range(3))], True),
        ([A, shipment(0, "a"), B, shipment(0, "a"), shipment(1, "b"), shipment(2, "b")], True),  # "a" came too late
        ([A, shipment(0, "a"), shipment(1, "a")], False),  # 2 is missing
        ([A, shipment(0, "a"), B, shipment(1, "a"), shipment(2, "b")], False),  # 1 was shipped too late only
        ([A, *(shipment(n, "a") for n in (0, 1, 2, 1))], False),  # 1 twice
        ([A, shipment(0, "a"), B, *(shipment(n, "b") for n in (0, 1, 2))], False),  # 0 twice, by two owners
        ([A, *(shipment(n, "a") for n in range(4))], False),  # nobody ordered 3
    ],
)
def test_check_sees_what_is_wrong(
    shipments: list[Shipment | TakenOver], *, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with streamlite.open(":memory:") as bus:
        fill(bus, shipments)
        assert check(bus, 3) is holds
    assert ("FAILED" in capsys.readouterr().out) is not holds


def test_check_sees_that_an_order_is_missing() -> None:
    with streamlite.open(":memory:") as bus:
        fill(bus, [A, *(shipment(n, "a") for n in range(3))])
        assert not check(bus, 4)


def test_nobody_ships_before_taking_over() -> None:
    ledger = Ledger()
    ledger.take(shipment(0, "a"))
    assert (ledger.shipped, ledger.late) == (set(), 1)


# The smaller ones.


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("log_aggregation", "600 records of 3 processes, none lost, all in order"),
        ("sensor_flood", "200,000 measurements of 50 sensors, none lost"),
        ("replay", "replayed: {'alice': 1012}"),
    ],
)
def test_small_example(name: str, last: str, tmp_path: Path) -> None:
    done = run(f"examples.{name}", scratch=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == last
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_run_here_and_told_of() -> None:
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    for path in (ROOT / "examples").iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            assert f"python -m examples.{path.stem}`" in readme
            assert f'("{path.stem}", ' in tests


# The scripts of docs/processes.md that cannot run inside the test of the documentation.


def script(mark: str) -> str:
    text = (ROOT / "docs" / "processes.md").read_text(encoding="utf-8")
    (found,) = [block for block in re.findall(r"```python no-run\n(.*?)```", text, re.DOTALL) if mark in block]
    return found


def run_here(scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=scratch, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_multiprocessing_of_the_docs(method: str, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(script("multiprocessing"), encoding="utf-8")
    done = run_here(tmp_path, "work.py", method)
    assert (done.returncode, done.stdout) == (0, "400 messages\n"), done.stderr


def test_fork_of_the_docs(tmp_path: Path) -> None:
    done = run_here(tmp_path, "-c", script("ForkedError"))
    assert done.returncode == 0, done.stderr


def test_gunicorn_configuration_of_the_docs(tmp_path: Path) -> None:
    """What gunicorn does with it: hooks called in the forked worker, here with a bus open before the fork as well."""
    text = f"""
import os
{script("post_fork")}
class Worker: pass

with streamlite.open("data/bus") as bus:
    topic = bus.topic("hits")
    for _ in range(2):
        if os.fork() == 0:
            worker = Worker()
            post_fork(None, worker)
            worker.producer.send("hits", b"hit")
            worker_exit(None, worker)
            os._exit(0)
        os.wait()
    print(sum(topic.end_offsets().values()))
"""
    done = run_here(tmp_path, "-W", "ignore::DeprecationWarning", "-c", text)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_conftest_of_the_docs(workers: int, tmp_path: Path) -> None:
    if workers:
        pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text(script("PYTEST_XDIST_WORKER"), encoding="utf-8")
    (tmp_path / "test_it.py").write_text(
        """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_it(shared_bus, group, number):
    with shared_bus.consumer("events", group=group) as consumer:
        assert len(consumer.assignment()) == 2
""",
        encoding="utf-8",
    )
    options = ["-n", str(workers)] if workers else ["-p", "no:xdist"]
    done = run_here(
        tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}", *options
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
