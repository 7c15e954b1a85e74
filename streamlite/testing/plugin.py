"""The pytest plugin: a bus a test, in memory or on disk, on a clock that the test moves.

pytest loads this module in every project that has streamlite installed, with whatever `import streamlite` loads and no
more: that is kept small for everybody. The fixtures close what they opened, so a delivery that failed and that nobody
looked at is an error of the test it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import streamlite
from streamlite import Bus
from streamlite.testing.clock import VirtualClock


@pytest.fixture
def streamlite_clock() -> VirtualClock:
    """The virtual clock of this test's buses; `streamlite_clock.advance(seconds)` moves it."""
    return VirtualClock()


@pytest.fixture
def streamlite_bus(streamlite_clock: VirtualClock) -> Iterator[Bus]:
    """An empty bus in memory; closing it after the test raises what a producer failed to deliver and nobody saw."""
    with streamlite.open(":memory:", clock=streamlite_clock) as bus:
        yield bus


@pytest.fixture
def streamlite_disk_bus(streamlite_clock: VirtualClock, tmp_path: Path) -> Iterator[Bus]:
    """An empty bus in `tmp_path / "bus"`, closed as `streamlite_bus` is."""
    with streamlite.open(tmp_path / "bus", clock=streamlite_clock) as bus:
        yield bus
