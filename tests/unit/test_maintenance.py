"""Retention and compaction, beside who creates and deletes topics."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import streamlite
from streamlite import Bus
from streamlite.files.memory import MemoryFiles
from streamlite.maintenance import FIRST_S, INTERVAL_S
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import Call, FaultyFiles, open_over


@pytest.mark.parametrize(
    "change", [lambda bus: bus.create_topic("u", cleanup="compact"), lambda bus: bus.delete_topic("t")]
)
def test_what_is_half_made_or_half_removed_is_left_alone(change: Callable[[Bus], object]) -> None:
    inner = MemoryFiles()
    files, beside = FaultyFiles(inner), FaultyFiles(inner)
    with open_over(files, clock=VirtualClock()) as bus, open_over(beside, clock=VirtualClock()) as other:
        bus.create_topic("t", cleanup="compact")
        other.maintain()
        asked = 0

        def before(call: Call) -> None:
            nonlocal asked
            if call.name in ("rename", "remove_tree", "sync_dir") and "/__" in call.path:
                asked += 1
                other.maintain()

        files.before = before
        change(bus)
        files.before = lambda call: None
        assert asked
        assert [call for call in beside.calls if "/__new" in call.path or "/__deleted" in call.path] == []


def test_the_background_looks_first_when_a_bus_has_been_open_for_a_while() -> None:
    """Not beside the first messages: and again every minute."""
    clock = VirtualClock()
    with streamlite.open(":memory:", clock=clock) as bus:
        maintenance = bus._engine.maintenance
        maintenance.worker.stop()  # its steps are made by hand
        topic = bus.topic("t", cleanup="compact", segment_bytes=1)
        assert maintenance._step() == FIRST_S
        with bus.producer() as producer:
            for number in range(4):
                producer.send(topic, b"%d" % number, key=b"k").result(10)
        assert len(list(topic.read())) == 4
        assert maintenance._step() == INTERVAL_S
        assert len(list(topic.read())) < 4
