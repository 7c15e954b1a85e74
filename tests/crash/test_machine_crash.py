"""Fault 3 of the promises, the cases that were thought of: the machine stops, and what was not synced is gone."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from typing import Any, cast
from unittest import mock

import pytest

from streamlite import Bus, TopicPartition, errors
from streamlite.config import TopicSettings
from streamlite.counters import ACTIVE, START, SYNCED
from streamlite.files.memory import MemoryFiles
from streamlite.ledger import Part
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import (
    Call,
    FaultyFiles,
    Plan,
    Stopped,
    bury,
    clone,
    file_at,
    fingerprint,
    kill,
    logs_of,
    open_over,
    walk_files,
)
from tests.crash.story import PATIENCE, Moment, Story


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
        bus = None
        try:
            bus = open_over(opener, sync="never", clock=VirtualClock())
            assert [message.value for message in bus.topic("t").read()] == [b"a"]
        except Stopped:
            if bus is not None:
                bury(bus)
            else:
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


@pytest.mark.parametrize("level", ["interval", "always"])
def test_what_was_delivered_is_synced_after_an_interval(level: str) -> None:
    """By the bus itself, and where its process died by any other that has it open."""
    inner = MemoryFiles()
    bus = open_over(FaultyFiles(inner), sync=level, sync_interval_ms=1)
    bus.create_topic("t")
    _put(bus, "t", b"a")
    slot = bus._engine.registry.get("t").partitions[0].slot
    _wait_until(lambda: slot.get(SYNCED) == 1)
    other = open_over(FaultyFiles(inner), sync="never")
    _put(other, "t", b"b")
    kill(other)
    _wait_until(lambda: slot.get(SYNCED) == 2)
    bus.close()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0)  # let the other thread have the interpreter


def test_what_is_published_during_a_sync_is_not_synced_by_it() -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus, other = _open(files, sync="never"), _open(FaultyFiles(inner), sync="never")
    bus.create_topic("t")
    _put(bus, "t", b"a")
    late: list[Call] = []

    def before(call: Call) -> None:
        if call.name == "sync" and call.path.startswith("topics/t/") and not late:
            late.append(call)
            _put(other, "t", b"b")

    files.before = before
    bus.sync()
    slot = bus._engine.registry.get("t").partitions[0].slot
    assert late
    assert (slot.end, slot.get(SYNCED)) == (2, 1)
    bus.close()
    other.close()


@pytest.mark.parametrize("sync", ["never", "interval"])
def test_a_sealed_segment_is_synced_without_being_asked(sync: str) -> None:
    """At every level: recovery reads what is recent, and not the log."""
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync=sync)
    bus.create_topic("t", segment_bytes=200)
    for at in range(4):
        _put(bus, "t", b"%d" % at * 60)
    partition = bus._engine.registry.get("t").partitions[0]
    sealed = partition.slot.get(ACTIVE)
    assert sealed > 1
    assert bus._engine.syncer is not None
    bus._engine.syncer._step()
    assert partition.slot.get(SYNCED) >= sealed
    bus.close()


@pytest.mark.parametrize("sync", ["never", "interval"])
def test_the_mark_of_a_clean_close_comes_after_the_last_sync(sync: str) -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync=sync)
    bus.create_topic("t", partitions=2)
    for partition in range(2):
        _put(bus, "t", b"a", partition=partition)
    files.calls.clear()
    other = _open(FaultyFiles(files.inner), sync="never")
    bus.close()  # not the last one
    other.close()
    calls = files.calls + cast(FaultyFiles, other._engine.ctx.files).calls
    mark = calls.index(Call("create", "clean.new"))
    logs = {path for at in range(2) for path in logs_of(cast(MemoryFiles, files.inner), "t", at)}
    assert {call.path for call in calls[:mark] if call.name == "sync"} >= logs


def test_a_torn_tail_is_cut_once_and_logged_with_its_byte_count(caplog: pytest.LogCaptureFixture) -> None:
    inner = MemoryFiles()
    bus = _open(FaultyFiles(inner), sync="interval")
    bus.create_topic("t")
    _put(bus, "t", b"a", b"b")
    kill(bus)
    [path] = logs_of(inner)
    whole = len(file_at(inner, path).data)
    file_at(inner, path).truncate(whole - 1)
    for boot, cut in ((2, whole // 2 - 1), (3, 0)):
        caplog.clear()
        bus = _open(FaultyFiles(inner, boot=boot), sync="interval")
        assert [message.value for message in bus.topic("t").read()] == [b"a"]
        said = [record.getMessage() for record in caplog.records if path in record.getMessage()]
        assert [f"cut {cut} bytes at position {whole // 2}" in line for line in said] == ([True] if cut else [])
        assert len(file_at(inner, path).data) == whole // 2
        kill(bus)


def test_a_hole_in_what_was_not_synced_is_cut_with_what_follows_it() -> None:
    """The sectors of a later batch may come to the device before those of an earlier one: that is no damage."""
    inner = MemoryFiles()
    bus = _open(FaultyFiles(inner), sync="interval")
    bus.create_topic("t")
    _put(bus, "t", b"a", b"b", b"c", b"d")
    kill(bus)
    [path] = logs_of(inner)
    data = file_at(inner, path).data
    size = len(data) // 4
    data[size : 2 * size] = bytes(size)
    bus = _open(FaultyFiles(inner, boot=2))
    assert [message.value for message in bus.topic("t").read()] == [b"a"]
    bus.close()


def test_each_stop_of_the_machine_raises_the_epoch_durably_before_anything_is_read() -> None:
    inner = MemoryFiles()
    for boot in range(1, 4):
        files = FaultyFiles(inner, boot=boot)
        bus = _open(files, sync="always")
        if boot == 1:
            bus.create_topic("t")
            _put(bus, "t", b"a")
        assert bus._engine.ctx.epoch == boot - 1
        assert [message.value for message in bus.topic("t").read()] == [b"a"]
        if boot > 1:
            calls = files.calls
            raised = calls.index(Call("rename", "epoch.new"))
            assert Call("sync", "epoch.new") in calls[:raised]
            read = next(at for at, call in enumerate(calls) if call.name == "read" and call.path.endswith(".log"))
            assert Call("sync_dir", "") in calls[raised:read]
        kill(bus)


def test_a_beginning_is_on_the_device_before_anything_below_it_goes() -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync="never")
    bus.create_topic("t", segment_bytes=200)
    for at in range(4):
        _put(bus, "t", b"%d" % at * 60)
    files.calls.clear()
    bus.topic("t").truncate_before(0, 3)
    calls = files.calls
    removed = next(at for at, call in enumerate(calls) if call.name == "remove" and call.path.endswith(".log"))
    named = calls.index(Call("rename", "topics/t/0/start.new"))
    assert Call("sync", "topics/t/0/start.new") in calls[:named]
    assert Call("sync_dir", "topics/t/0") in calls[named:removed]
    bus.close()


def test_a_compacted_segment_is_on_the_device_before_it_takes_the_place_of_others() -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync="never")
    bus.create_topic("t", cleanup="compact", segment_bytes=200)
    for at in range(6):
        _put(bus, "t", b"%d" % at * 60, key=b"k%d" % (at % 2))
    files.calls.clear()
    bus.maintain()
    calls = files.calls
    renamed = [at for at, call in enumerate(calls) if call.name == "rename" and call.path.startswith("topics/t/")]
    assert renamed
    for at in renamed:
        assert Call("sync", calls[at].path) in calls[:at]
        assert calls[at + 1] == Call("sync_dir", "topics/t/0")
    bus.close()


# -- transactions ------------------------------------------------------------------------------------------------------


class Device:
    """What of each log is on the device for certain, and every state that a stop of the machine may leave."""

    def __init__(self, note: Callable[[], Moment]) -> None:
        self.inner = MemoryFiles()
        self.files = FaultyFiles(self.inner)
        self.found: list[tuple[Call, MemoryFiles, Moment]] = []
        self._note = note
        self._durable: dict[str, bytes] = {}
        self._last = Call("", "")
        self._seen: set[tuple[int, Moment]] = set()
        self.files.before = self._before

    def _before(self, call: Call) -> None:
        if self._last.name == "sync" and self._last.path.endswith(".log"):
            self._durable[self._last.path] = bytes(file_at(self.inner, self._last.path).data)
        self._last = call
        if call.name in ("write", "sync", "sync_dir", "acquire"):
            self.keep(call)

    def keep(self, call: Call) -> None:
        """Every choice of logs whose unsynced part is lost, and of one that is lost by half."""
        logs = {path: bytes(file.data) for path, file in walk_files(self.inner._tree) if path.endswith(".log") and file}
        behind = [path for path, data in logs.items() if self._durable.get(path) != data]
        moment = self._note()
        for lost in powerset(behind):
            for torn in (None, *lost):
                image = clone(self.inner)
                for path in lost:
                    kept = len(self._durable.get(path, b""))
                    kept += (len(logs[path]) - kept) // 2 if path == torn else 0
                    file_at(image, path).truncate(kept)
                known = (fingerprint(image), moment)
                if known not in self._seen:
                    self._seen.add(known)
                    self.found.append((call, image, moment))


def powerset(paths: list[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(paths, count) for count in range(len(paths) + 1))


def _transactions(story: Story) -> None:
    """Transactions over three partitions and offsets, with plain sends before, between and behind, and a sync."""
    story.create("in")
    story.send("in", *[b"%d" % at for at in range(9)])
    story.create("t", partitions=2)
    story.create("u")
    story.sync()
    for at in range(2):
        story.send("t", b"before %d" % at, partition=1)
        story.transact({("t", 0): [b"a%d" % at] * 2, ("t", 1): [b"b%d" % at], ("u", 0): [b"c%d" % at] * 3})
        story.transact({("u", 0): [b"d%d" % at], ("t", 1): [b"e%d" % at]}, "in", "g", {0: 3 * at + 1})
        story.send("u", b"behind %d" % at)
        story.send("t", b"behind %d" % at, partition=0)
    story.sync()
    story.transact({("t", 0): [b"f"], ("u", 0): [b"g"]}, "in", "g", {0: 9})
    story.send("u", b"last")
    story.sync()


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_a_machine_that_stops_tears_no_transaction(sync: str) -> None:
    """At any call, whatever of the unsynced parts of the logs was lost: the record may be kept, and data lost."""
    story = Story()
    device = Device(story.moment)
    story.bus = _open(device.files, sync=sync, sync_interval_ms=100_000)
    _transactions(story)
    assert len(device.found) > 100
    lost = 0
    for call, image, moment in device.found:
        safe = [at for at, step in enumerate(story.steps[: moment.done], 1) if step == "sync"]
        kept = moment.done if sync == "always" else max(safe, default=0)
        try:
            bus = _open(FaultyFiles(image, boot=2), sync=sync, sync_interval_ms=100_000)
            story.check(bus, moment, kept=kept)
            found = {name: bus.topic(name).end_offsets() for name in bus.topics()}
            lost += found != {name: _ends(story, moment.done, name) for name in found}
            _put(bus, bus.topic("in").name, b"and writing works")
            bus.close()
        except BaseException:
            print(f"before {call}, {moment}, steps {story.steps[: moment.begun]}")
            raise
    assert lost > 10  # or nothing was shown
    story.close()


def _ends(story: Story, number: int, name: str) -> dict[TopicPartition, int]:
    logs = story.worlds[number].topics.get(name, [])
    return {TopicPartition(name, at): len(log.sent) for at, log in enumerate(logs)}


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_data_is_on_the_device_before_its_record_is_written(sync: str) -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync=sync, sync_interval_ms=100_000)
    bus.create_topic("t", partitions=2)
    bus.create_topic("u")
    with bus.producer() as producer:
        for _ in range(2):
            files.calls.clear()
            with producer.transaction() as tx:
                for topic, partition in (("t", 0), ("t", 1), ("u", 0)):
                    tx.send(topic, b"v", partition=partition)
            calls = [(call.name, call.path.rpartition("/")[0]) for call in files.calls if call.path.endswith(".log")]
            record = calls.index(("write", "topics/__transactions/0"))
            for directory in ("topics/t/0", "topics/t/1", "topics/u/0"):
                assert calls.index(("write", directory)) < calls.index(("sync", directory)) < record
            assert (("sync", "topics/__transactions/0") in calls[record:]) == (sync == "always")
    bus.close()


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_names_are_on_the_device_before_the_record_is_written(sync: str) -> None:
    """Of the topic, the first time, and of every segment that the commit begins."""
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync=sync, sync_interval_ms=100_000)
    bus.create_topic("t", segment_bytes=200)
    bus.create_topic("u", segment_bytes=200)
    with bus.producer() as producer:
        for round_ in range(3):
            if round_:
                files.calls.clear()
            with producer.transaction() as tx:
                tx.send("t", b"v" * 100)
                tx.send("u", b"v" * 100)
            record = next(
                at for at, call in enumerate(files.calls) if call.path.startswith("topics/__transactions/0/0")
            )
            for name in ("t", "u"):
                directory = f"topics/{name}/0"
                created = [
                    at for at, (kind, path) in enumerate(files.calls[:record])
                    if kind == "create" and path.startswith(directory) and path.endswith(".log")
                ]  # fmt: skip
                assert created, round_
                wanted = {directory} if round_ else {directory, f"topics/{name}", "topics", ""}
                assert wanted <= {call.path for call in files.calls[created[-1] : record] if call.name == "sync_dir"}
    bus.close()


@pytest.mark.parametrize("upto", ["partition", "bus"])
def test_what_follows_a_transaction_is_not_called_safe_before_its_record_is(upto: str) -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync="interval", sync_interval_ms=100_000)
    bus.create_topic("t")
    bus.create_topic("u")
    with bus.producer() as producer, producer.transaction() as tx:
        tx.send("t", b"1")
        tx.send("u", b"1")
    _put(bus, "t", b"2")
    slot = bus._engine.registry.get("t").partitions[0].slot
    assert slot.get(SYNCED) == 0
    files.calls.clear()
    files.plan = Plan(1, errno.EIO, looks_at=lambda call: call.name == "sync" and "/__transactions/" in call.path)
    with pytest.raises(errors.StorageError):
        bus._engine.registry.get("t").partitions[0].sync() if upto == "partition" else bus.sync()
    assert slot.get(SYNCED) == 0
    kill(bus)
    for path in logs_of(inner, "__transactions"):
        file_at(inner, path).truncate(0)
    bus = _open(FaultyFiles(inner, boot=2))
    assert [[message.value for message in bus.topic(name).read()] for name in ("t", "u")] == [[], []]
    bus.close()


def test_a_number_that_a_lost_record_had_is_another_transactions_now() -> None:
    """Its data was synced, its record lost with the machine; the next epoch gives the number, and its offsets, anew."""
    inner = MemoryFiles()
    bus = _open(FaultyFiles(inner), sync="interval", sync_interval_ms=100_000)
    bus.create_topic("t")
    bus.create_topic("u")
    with bus.producer() as producer, producer.transaction() as tx:
        tx.send("t", b"lost")
        tx.send("u", b"lost")
    kill(bus)
    for path in logs_of(inner, "__transactions"):
        file_at(inner, path).truncate(0)
    bus = _open(FaultyFiles(inner, boot=2), sync="interval", sync_interval_ms=100_000)
    records = bus._engine.ledger.log()
    partition = bus._engine.registry.get("t").partitions[0]
    # A record of the same number that names the same place: only the epoch tells them apart.
    records.append([bus._engine.ledger.record([Part(partition.topic.incarnation, 0, 0, 1)])])
    assert records.slot.end == 1
    assert list(bus.topic("t").read()) == []
    with bus.producer() as producer, producer.transaction() as tx:
        tx.send("t", b"new")
        tx.send("u", b"new")
    assert [[message.value for message in bus.topic(name).read()] for name in ("t", "u")] == [[b"new"], [b"new"]]
    bus.close()


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_records_that_went_had_their_data_on_the_device(sync: str) -> None:
    """And the machine that stops right then keeps all of it."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    with mock.patch("streamlite.ledger.SETTINGS", TopicSettings(segment_bytes=600)):
        bus = _open(files, sync=sync, sync_interval_ms=100_000)
        bus._engine.maintenance.worker.stop()
        bus.create_topic("t")
        bus.create_topic("u")
        with bus.producer() as producer, mock.patch.object(bus._engine.maintenance, "look_soon"):
            for at in range(30):
                with producer.transaction() as tx:
                    tx.send("t", b"%d" % at)
                    tx.send("u", b"%d" % at)
        kept = bus._engine.registry.get("__transactions").partitions[0]
        files.calls.clear()
        bus.maintain()
        assert kept.slot.get(START) > 20
    calls = [call for call in files.calls if call.name in ("sync", "remove")]
    removal = next(at for at, call in enumerate(calls) if call.name == "remove" and "/__transactions/" in call.path)
    synced = {call.path.rpartition("/")[0] for call in calls[:removal] if call.name == "sync"}
    unsynced = {"topics/t/0", "topics/u/0"}
    assert unsynced <= synced
    kill(bus)
    bus = _open(FaultyFiles(inner, boot=2))
    for name in ("t", "u"):
        assert [message.value for message in bus.topic(name).read()] == [b"%d" % at for at in range(30)]
    bus.close()
