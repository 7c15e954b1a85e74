"""That the contract is held over two processes, too: how much of it, and that they are two."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from streamlite import Bus

from . import split
from .helpers import PATIENCE, values

HERE = Path(__file__).parent


def test_nearly_all_that_runs_over_a_directory_runs_over_two_processes() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(HERE)],
        cwd=HERE.parents[1],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    tests = [line.partition("[") for line in found if "::" in line]
    disk, processes = (
        Counter(name for name, _, one in tests if one.startswith(kind)) for kind in ("disk", "processes")
    )
    left_out = {name.rpartition("/")[2] for name in disk.keys() - processes.keys()}
    whole = {name for name in left_out if name.partition("::")[0] in split.APART_WHOLE}
    assert {name.partition("::")[0] for name in whole} == split.APART_WHOLE.keys()
    left_out -= whole
    assert left_out == split.APART.keys()  # nothing else is, and each of them is there
    assert len(left_out) <= 12
    assert processes.total() >= 900
    assert all(processes[name] == count for name, count in disk.items() if name in processes)


@pytest.mark.needs("processes")
def test_what_is_sent_comes_from_another_process(open_bus: Callable[..., Bus]) -> None:
    bus = open_bus(clock=None)
    assert isinstance(bus, split.SplitBus)
    assert bus.call("pid") != os.getpid()
    bus.topic("t")
    with bus.consumer("t") as consumer, bus.producer() as producer:
        delivery = producer.send("t", b"x")
        assert delivery.result(PATIENCE).offset == 0
        assert values(consumer.poll(timeout=PATIENCE)) == [b"x"]
        assert not bus._engine.ctx.dirty  # nothing was appended here


@pytest.mark.needs("processes")
def test_what_is_raised_there_is_raised_here_and_what_is_logged_there_is_logged_here(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    bus.topic("t")
    with bus.producer(on_delivery=fail) as producer:
        producer.send("t", b"x").result(PATIENCE)
        with pytest.raises(TypeError):
            producer.send("t")
    assert "a delivery callback failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
