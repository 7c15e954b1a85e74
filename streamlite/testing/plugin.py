"""The pytest plugin: a bus a test, in memory or on disk, on a clock that the test moves.

pytest loads this module in every project that has streamlite installed, so it imports streamlite only when a fixture is
used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from streamlite.bus import Bus
    from streamlite.testing.clock import VirtualClock


@pytest.fixture
def streamlite_clock() -> VirtualClock:
    """The virtual clock of this test's buses; `streamlite_clock.advance(seconds)` moves it."""
    from streamlite.testing.clock import VirtualClock

    return VirtualClock()


@pytest.fixture
def streamlite_bus(streamlite_clock: VirtualClock) -> Iterator[Bus]:
    """An empty bus in memory; closing it after the test raises what a producer failed to deliver and nobody saw."""
    import streamlite

    with streamlite.open(":memory:", clock=streamlite_clock) as bus:
        yield bus


@pytest.fixture
def streamlite_disk_bus(streamlite_clock: VirtualClock, tmp_path: Path) -> Iterator[Bus]:
    """An empty bus in a directory of this test's own."""
    import streamlite

    with streamlite.open(tmp_path / "bus", clock=streamlite_clock) as bus:
        yield bus
