"""The backends that the contract suite runs over, and what each can do.

A test asks for `bus`, or for `open_bus` when it opens buses itself, and runs once for every backend. What it needs
beyond the common contract it says with `@pytest.mark.needs(...)`, naming capabilities; backends that lack one are left
out. A new backend is one more entry in `BACKENDS`.

Time is a `VirtualClock` unless a test has threads that wait for each other. A test that hangs is ended by a signal, so
that a bug costs seconds and not the run.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import streamlite
from streamlite import Bus
from streamlite.testing.clock import VirtualClock

from . import split

HANG_S = 20.0
"""No test takes a tenth of it; one that takes all of it waits for something that does not come."""

IN_MEMORY = Path("/dev/shm")
IN_MEMORY_BYTES = 48 << 20
"""Thrice the greatest message that a test sends; a container has 64 MiB there unless told otherwise."""

CAPABILITIES = {
    "durable": "its location can be opened again, with everything in it",
    "shared": "several buses may have one location open at once",
    "directory": "its location is a directory of this machine, to be looked at and tampered with",
    "gapless": "offsets of one partition's messages follow each other without gaps until compaction",
    "clock": "all time is that of the clock given to `open`",
    "maintenance": "`maintain()` applies retention and compaction before it returns",
    "processes": "producers run in another process than the test",
}


@dataclass(frozen=True)
class Backend:
    """One kind of bus: how to find a location in a test's own directory, and what it can do."""

    name: str
    location: Callable[[Path], Any]
    capabilities: frozenset[str]
    open: Callable[..., Bus] = streamlite.open
    apart: Mapping[str, str] = field(default_factory=dict)
    """Tests that cannot run over it, by file and name, or by file, and why."""


def _in(directory: Path) -> Path:
    return directory / "bus"


BACKENDS = [
    Backend("memory", lambda directory: ":memory:", frozenset({"gapless", "clock", "maintenance"})),
    Backend("disk", _in, frozenset(CAPABILITIES) - {"processes"}),
    Backend("processes", _in, frozenset(CAPABILITIES), split.open_split, split.APART | split.APART_WHOLE),
]


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", "needs(*capabilities): run only over backends that have all of these")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for every backend that has what it needs."""
    if "backend" in metafunc.fixturenames:
        needed = {name for mark in metafunc.definition.iter_markers("needs") for name in mark.args}
        assert needed <= CAPABILITIES.keys(), f"unknown capabilities: {needed - CAPABILITIES.keys()}"
        file = metafunc.definition.path.name
        names = {file, f"{file}::{metafunc.definition.originalname}"}
        fitting = [one for one in BACKENDS if needed <= one.capabilities and not names & one.apart.keys()]
        metafunc.parametrize("backend", fitting, ids=[backend.name for backend in fitting])


@pytest.fixture(scope="session", autouse=True)
def other_process() -> Iterator[None]:
    """Ends the process of the senders, where a test needed it."""
    yield
    split.end()


class Hanging(BaseException):
    """A test waits for something that does not come. No `Exception`, so that nobody takes it for one of theirs."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End a test that hangs, wherever its main thread waits."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def fail(number: int, frame: object) -> None:
        raise Hanging(f"nothing came for {HANG_S:g} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, HANG_S, HANG_S / 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A directory of the test's own, in memory where the system has such a place.

    These tests open and close a directory a thousand times. What an fsync is good for is not theirs to show, so they do
    not wait for one.
    """
    if not IN_MEMORY.is_dir() or shutil.disk_usage(IN_MEMORY).free < IN_MEMORY_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="streamlite-", dir=IN_MEMORY) as directory:
        yield Path(directory)


@pytest.fixture
def clock() -> VirtualClock:
    """The clock of this test's buses; it stands still until the test, or streamlite, waits."""
    return VirtualClock()


@pytest.fixture
def location(backend: Backend, tmp_path: Path) -> Any:
    """Where this test's bus is."""
    return backend.location(tmp_path)


@pytest.fixture
def open_bus(backend: Backend, location: Any, clock: VirtualClock) -> Iterator[Callable[..., Bus]]:
    """Opens the test's location: a durable one again and again, another one anew. Closes what it opened."""
    with ExitStack() as stack:

        def open_one(**options: Any) -> Bus:
            bus = backend.open(location, **{"clock": clock, **options})
            stack.callback(split.forget, bus)
            stack.callback(bus.close)
            return bus

        yield open_one


@pytest.fixture
def bus(open_bus: Callable[..., Bus]) -> Bus:
    """An open bus with nothing in it."""
    return open_bus()
