"""Fault 3 of the promises, the cases that were thought of: the machine stops, and what was not synced is gone."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from streamlite import Bus, TopicPartition, errors
from streamlite.files.memory import MemoryFiles
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import FaultyFiles, Plan, Stopped, file_at, kill, logs_of, open_over
from tests.crash.story import PATIENCE


def _put(bus: Bus, topic: str, *values: bytes, **options: Any) -> None:
    with bus.producer() as producer:
        for value in values:
            producer.send(topic, value, **options).result(timeout=PATIENCE)


def _open(files: FaultyFiles, **options: Any) -> Bus:
    """Nothing is synced but by who asks for it."""
    bus = open_over(files, **{"clock": VirtualClock(), **options})
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    return bus


def test_compaction_drops_no_synced_message_for_one_that_is_not() -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync="interval")
    bus.create_topic("t", cleanup="compact", segment_bytes=200)
    _put(bus, "t", b"v1" * 20, key=b"k")
    _put(bus, "t", b"w1" * 20, key=b"l")
    bus.sync()
    files.calls.clear()
    _put(bus, "t", b"v2" * 60, key=b"k")
    _put(bus, "t", b"x" * 120, key=b"m")
    bus.maintain()
    synced = {call.path.removesuffix(".new").removesuffix(".log") for call in files.calls if call.name == "sync"}
    kill(bus)
    for path in logs_of(inner):
        if int(path.rpartition("/")[2][:20]) >= 2 and path.removesuffix(".log") not in synced:
            file_at(inner, path).truncate(0)
    bus = _open(FaultyFiles(inner, boot=2))
    last = {message.key: message.value for message in bus.topic("t").read()}
    assert last[b"k"] in (b"v1" * 20, b"v2" * 60)
    bus.close()


def test_retention_of_everything_gives_no_offset_twice() -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync="always")
    bus.create_topic("t", retention_ms=1000)
    _put(bus, "t", b"a", b"b", b"c", timestamp=1)
    files.calls.clear()
    bus.maintain()
    names = [
        call
        for call in files.calls
        if call.path.startswith("topics/t/0") and call.name in ("create", "remove", "sync_dir")
    ]
    kill(bus)
    last = logs_of(inner)[-1]
    at = [call.name for call in names if call.path == last or call.name != "create"]
    if "sync_dir" not in at[: at.index("remove")]:
        inner.remove(last)  # the old names' removal got to the device, the new name did not
    bus = _open(FaultyFiles(inner, boot=2))
    assert bus.topic("t").end_offsets() == {TopicPartition("t", 0): 3}
    bus.close()


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_the_names_of_a_topic_that_another_level_created_are_synced_before_a_delivery_is(sync: str) -> None:
    inner = MemoryFiles()
    creator, files = FaultyFiles(inner), FaultyFiles(inner)
    other, bus = _open(creator, sync="never"), _open(files, sync=sync)
    other.create_topic("t")
    _put(bus, "t", b"a")
    bus.sync()
    synced = {call.path for call in creator.calls + files.calls if call.name == "sync_dir"}
    assert {"topics/t/0", "topics/t", "topics", ""} <= synced
    other.close()
    bus.close()


def test_the_last_to_close_syncs_the_names_that_another_level_created() -> None:
    inner = MemoryFiles()
    creator, files = FaultyFiles(inner), FaultyFiles(inner)
    other, bus = _open(creator, sync="never"), _open(files, sync="always")
    other.create_topic("t")
    _put(other, "t", b"a")
    other.close()
    bus.close()
    assert "clean" in inner.list("")
    synced = {call.path for call in creator.calls + files.calls if call.name == "sync_dir"}
    assert {"topics/t", "topics", ""} <= synced


def test_what_a_dead_process_left_is_synced_by_who_opens_next() -> None:
    inner = MemoryFiles()
    bus = _open(FaultyFiles(inner), sync="interval")
    bus.create_topic("t")
    _put(bus, "t", b"a")
    kill(bus)
    files = FaultyFiles(inner)
    bus = _open(files, sync="interval")
    bus.sync()
    assert [call.path for call in files.calls if call.name == "sync" and call.path.startswith("topics/t/")]
    bus.close()


def test_a_failed_sync_is_not_forgotten_by_an_opener_that_is_killed() -> None:
    """A second fsync of the same file would say nothing: what is unsafe must be written to a new one."""
    for at in range(1, 100):
        inner = MemoryFiles()
        files = FaultyFiles(inner)
        bus = _open(files, sync="never")
        bus.create_topic("t")
        _put(bus, "t", b"a")
        files.plan = Plan(1, errno.EIO, looks_at=lambda call: call.name == "sync")
        with pytest.raises(errors.StorageError):
            bus.sync()
        files.heal()
        bus.close()
        opener = FaultyFiles(inner, Plan(at))
        try:
            bus = open_over(opener, sync="never")
        except Stopped:
            opener.forget_stores()
        else:
            kill(bus)
        files = FaultyFiles(inner)
        bus = _open(files, sync="never")
        assert [message.value for message in bus.topic("t").read()] == [b"a"]
        bus.sync()
        synced = [call.path for call in files.calls if call.name == "sync" and call.path.startswith("topics/t/")]
        assert synced, opener.hits
        assert synced[0].endswith(".new"), opener.hits
        kill(bus)
        if not opener.hits:
            return
