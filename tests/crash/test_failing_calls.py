"""Fault 5 of the promises: a call of the files seam fails with EIO or ENOSPC, once or from then on, or writes a part.

What was asked fails with an error of the hierarchy, or succeeds. What was stored before is readable, nothing is there
that was not sent, and once the fault is gone everything works again without the bus being closed. Only a sync that
failed closes its partition: that is for the last tests here.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from streamlite import Bus, errors
from streamlite.batch import encode_payload
from streamlite.counters import FAILED, SYNCED
from streamlite.files.memory import MemoryFiles
from streamlite.partition import Outgoing, Partition
from streamlite.reader import Cursor
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import CHANGING, SYNCING, Call, FaultyFiles, Plan, Stopped, bury, open_over
from tests.crash.story import PATIENCE, Story
from tests.crash.test_stop_at_every_call import WORKLOADS, Workload

SAMPLES = int(os.environ.get("STREAMLITE_FAULTS", "8"))
"""Calls of a workload that go wrong, one a run; a large number for every single one."""

TAKES_ROOM = frozenset({"write", "create", "make_dir"})


def _disk_full(call: Call) -> bool:
    return call.name in TAKES_ROOM


def _any_but_syncs(call: Call) -> bool:
    return call.name not in SYNCING and call.name not in ("boot_id", "release")


def _changes(call: Call) -> bool:
    return call.name in CHANGING


FAULTS: dict[str, Plan] = {
    "EIO": Plan(1, errno.EIO, looks_at=_any_but_syncs),
    "EIO after half": Plan(1, errno.EIO, short=True, looks_at=_changes),
    "disk full": Plan(1, errno.ENOSPC, lasting=True, short=True, looks_at=_disk_full),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A background thread that meets a fault says so; here that is thousands of lines."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_a_failing_call_fails_what_was_asked_and_no_more(workload: Workload, fault: str) -> None:
    plan = FAULTS[fault]
    total = _count(workload, plan)
    assert total
    for at in range(1, total + 1, max(1, total // SAMPLES)):
        _run(workload, plan._replace(at=at))


def _count(workload: Workload, plan: Plan) -> int:
    files = FaultyFiles(MemoryFiles(), Plan(1 << 60, looks_at=plan.looks_at))
    story = Story(_open(files))
    workload(story)
    story.close()
    return files.count


def _open(files: FaultyFiles, **options: Any) -> Bus:
    return open_over(files, **{"sync": "never", "clock": VirtualClock(), "lock_timeout": 2.0, **options})


def _run(workload: Workload, plan: Plan) -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner, plan)
    story = Story()
    failure: errors.StreamliteError | None = None
    try:
        try:
            story.bus = _open(files)
        except errors.StreamliteError as error:
            failure = error.with_traceback(None)  # for what its frames hold see test_who_failed_to_open_...
            gc.collect()
        else:
            failure = _live(workload, story, files)
        files.heal()
        _, bus = FaultyFiles(inner), _open(FaultyFiles(inner))
        story.check(bus, story.moment())
        bus.close()
        assert "clean" in inner.list("")
    except BaseException:
        print(f"call {plan.at}, {files.hits[:1]}: {failure!r}; steps {story.steps}, {story.moment()}")
        raise


def _live(workload: Workload, story: Story, files: FaultyFiles) -> errors.StreamliteError | None:
    bus = story.bus
    assert bus is not None
    failure: errors.StreamliteError | None = None
    try:
        workload(story)
    except errors.StreamliteError as error:
        failure = error
    if files.plan.fault == errno.ENOSPC:
        story.check(bus, story.moment(), groups=False)
    files.heal()
    story.check(bus, story.moment())
    if failure is not None and story.steps[-1].startswith("send") and files.plan.lasting:
        _check_nothing_of_it(bus, story)
    story.add_to_every_partition(b"after the fault")
    story.check(bus, story.moment())
    bus.close()
    return failure


def _check_nothing_of_it(bus: Bus, story: Story) -> None:
    story.check(bus, story.moment()._replace(begun=story.done))


def test_a_reader_takes_nothing_from_a_write_that_fails_while_it_reads() -> None:
    """The bytes stand in the file when it reads what is before them, and others in their place when it comes there."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus, other = _open(files), _open(FaultyFiles(inner))
    bus.create_topic("t")
    _put(bus, b"a")
    reader = Cursor(_partition(other), 0)
    found = []

    def read_and_fail(path: str, data: bytes, position: int) -> None:
        inner.open(path).write([data], position)
        batch = reader.fetch()
        assert batch is not None
        found.extend(batch.values)
        reader.offset = batch.header.next_offset
        raise errors.StorageError("as planned", errno=errno.EIO, path=path)

    files.before_write = read_and_fail
    with pytest.raises(errors.StorageError):
        _partition(bus).append([_batch(b"x")])
    files.before_write = lambda path, data, position: None
    _partition(bus).append([_batch(b"b")])
    batch = reader.fetch()
    assert batch is not None
    assert [*found, *batch.values] == [b"a", b"b"]
    other.close()
    bus.close()


# -- syncs that fail ---------------------------------------------------------------------------------------------------


def _partition(bus: Bus, topic: str = "t", number: int = 0) -> Partition:
    state = bus._engine.registry.find(topic)
    assert state is not None
    return state.partitions[number]


def _put(bus: Bus, *values: bytes) -> None:
    with bus.producer() as producer:
        for value in values:
            producer.send("t", value).result(timeout=PATIENCE)


def _values(bus: Bus) -> list[Any]:
    return [message.value for message in bus.topic("t").read()]


def _sync_fails(at: int = 1) -> Plan:
    return Plan(at, errno.EIO, looks_at=lambda call: call.name == "sync" and call.path.startswith("topics/t/"))


def _batch(value: bytes) -> Outgoing:
    payload = encode_payload(None, [value])
    return Outgoing(payload, 1, 1, 1, len(payload))


def test_a_failed_sync_fails_the_delivery_and_closes_the_partition() -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync="always")
    bus.create_topic("t")
    _put(bus, b"a")
    files.plan = _sync_fails()
    producer = bus.producer()
    with pytest.raises(errors.StorageError, match="as planned"):
        producer.send("t", b"b").result(timeout=PATIENCE)
    files.heal()
    with pytest.raises(errors.StorageError, match="takes no writes"):
        producer.send("t", b"c").result(timeout=PATIENCE)
    assert _values(bus) == [b"a", b"b"]
    bus.close()
    assert "clean" not in files.inner.list("")


def test_every_other_process_refuses_too() -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus, other = _open(files, sync="always"), _open(FaultyFiles(inner), sync="never")
    bus.create_topic("t")
    files.plan = _sync_fails()
    with pytest.raises(errors.StorageError):
        _put(bus, b"a")
    files.heal()
    with pytest.raises(errors.StorageError, match="takes no writes"):
        _put(other, b"b")
    assert _values(other) == [b"a"]
    bus.close()
    other.close()


def test_a_sync_that_failed_is_not_tried_again() -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync="never")
    bus.create_topic("t")
    _put(bus, b"a")
    partition = _partition(bus)
    files.plan = _sync_fails()
    with pytest.raises(errors.StorageError):
        bus.sync()
    files.heal()
    with pytest.raises(errors.StorageError):
        bus.sync()
    with pytest.raises(errors.StorageError):
        partition.sync()
    assert partition.slot.get(SYNCED) == 0
    assert partition.slot.get(FAILED)
    bus.close()


def test_who_waits_for_the_same_sync_is_not_told_that_it_worked() -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync="always")
    bus.create_topic("t")
    partition = _partition(bus)
    published = []
    for value in (b"a", b"b"):  # both are published before either is synced
        partition.guard.acquire(1.0)
        published.append(partition.append_locked([_batch(value)]))
        partition.guard.release()
    files.plan = _sync_fails()
    outcomes = [partition.published(result) for result in published]
    assert [outcome.offsets for outcome in outcomes] == [[], []]
    assert all(isinstance(outcome.error, errors.StorageError) for outcome in outcomes)
    assert partition.slot.get(SYNCED) == 0
    bus.close()


def test_a_failed_sync_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.NOTSET)
    bus = _open(FaultyFiles(MemoryFiles(), _sync_fails()), sync="interval", sync_interval_ms=1)
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    bus.create_topic("t")
    _put(bus, b"a")
    for _ in range(5):
        bus._engine.syncer._step()
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    bus.close()


def test_a_sync_of_many_segments_holds_few_of_them_open() -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync="never")
    bus.create_topic("t", segment_bytes=150)
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    _put(bus, *[b"x" * 40] * 500)
    bus.sync()
    assert files.most_open <= 300  # the cache of handles, and some
    bus.close()


def test_a_file_that_cannot_be_opened_is_no_failed_sync() -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync="never")
    bus.create_topic("t")
    _put(bus, b"a")
    partition = _partition(bus)
    bus._engine.ctx.handles._open.clear()
    files.plan = Plan(1, errno.EMFILE, looks_at=lambda call: call.name == "open")
    with pytest.raises(errors.StorageError):
        partition.sync()
    assert not partition.slot.get(FAILED)
    _put(bus, b"b")
    bus.close()


def test_a_delivery_is_not_reported_because_a_file_went_away_under_its_sync() -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files, sync="always")
    bus.create_topic("t")
    partition = _partition(bus)
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    files.plan = Plan(1, errno.ENOENT, looks_at=lambda call: call.name == "sync")
    result = partition.append([_batch(b"a")])
    assert result.error is not None or partition.slot.get(SYNCED) == 1
    bus.close()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_recovery_writes_what_was_unsafe_to_new_files(at: int) -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync="never")
    bus.create_topic("t", segment_bytes=300)
    values = [b"%d" % number * 50 for number in range(12)]
    _put(bus, *values[:6])
    bus.sync()
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    _put(bus, *values[6:])
    files.plan = _sync_fails(at)
    with pytest.raises(errors.StorageError):
        bus.sync()
    files.heal()
    safe = _partition(bus).slot.get(SYNCED)
    assert _values(bus) == values
    bus.close()

    files = FaultyFiles(inner)
    bus = _open(files, sync="never")
    assert _values(bus) == values
    segments = [call.path for call in files.calls if call.name == "sync"]
    assert segments, f"nothing was written anew from {safe} on"
    assert all(path.endswith(".new") for path in segments)
    _put(bus, b"after")
    bus.close()
    assert "clean" in inner.list("")
    bus = _open(FaultyFiles(inner))
    assert _values(bus) == [*values, b"after"]
    bus.close()


def test_a_recovery_after_a_failed_sync_may_be_stopped_at_every_call() -> None:
    from tests.crash.faulty import States

    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync="never")
    bus.create_topic("t", segment_bytes=300)
    values = [b"%d" % number * 50 for number in range(9)]
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    _put(bus, *values)
    files.plan = _sync_fails(2)
    with pytest.raises(errors.StorageError):
        bus.sync()
    files.heal()
    bus.close()
    states = States(inner)
    bus = _open(states.files)
    assert _values(bus) == values
    bus.close()
    for state in states.found:
        again = FaultyFiles(state.files)
        bus = _open(again)
        assert _values(bus) == values, state.call
        _put(bus, b"after")
        bus.close()
        assert "clean" in state.files.list(""), state.call


# -- opening -----------------------------------------------------------------------------------------------------------


def test_who_failed_to_open_does_not_keep_others_out() -> None:
    """Even while the exception, and with it the frames of the failed call, is still there."""
    inner = MemoryFiles()
    bus = _open(FaultyFiles(inner))
    bus.create_topic("t")
    _put(bus, b"a")
    bus.close()
    files = FaultyFiles(inner, Plan(1, errno.EIO, looks_at=lambda call: call == Call("remove", "clean")))
    with pytest.raises(errors.StorageError) as caught:
        _open(files)
    # What waits for the lock in the other's hand would wait for ever: the 100th try ends it.
    again = FaultyFiles(inner, Plan(100, looks_at=lambda call: call == Call("acquire", "open.lock")))
    try:
        bus = _open(again)
    except Stopped:
        pytest.fail(f"open waits for a lock that {caught.value!r} left behind")
    assert _values(bus) == [b"a"]
    bus.close()


def test_a_topic_whose_deletion_failed_is_still_a_topic() -> None:
    files = FaultyFiles(MemoryFiles())
    bus = _open(files)
    bus.create_topic("t")
    _put(bus, b"a")
    files.plan = Plan(1, errno.EIO, looks_at=lambda call: call.name == "rename")
    with pytest.raises(errors.StorageError):
        bus.delete_topic("t")
    files.heal()
    assert bus.topics() == ["t"]
    assert _values(bus) == [b"a"]
    _put(bus, b"b")
    bus.close()


def test_a_deletion_that_waits_in_vain_for_a_lock_did_nothing() -> None:
    inner = MemoryFiles()
    bus = _open(FaultyFiles(inner), lock_timeout=0.01)
    bus.create_topic("t", partitions=3)
    _put(bus, b"a", b"b")
    held = FaultyFiles(inner).lock("topics/t/2/lock")
    assert held.acquire()
    with pytest.raises(errors.LockTimeoutError):
        bus.delete_topic("t")
    held.release()
    assert bus.topics() == ["t"]
    assert _values(bus) == [b"a", b"b"]
    bus.close()


def test_what_recovery_finds_can_be_read_on_a_full_disk() -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    bus.create_topic("t")
    _put(bus, b"a", b"b")
    files.stop()
    bury(bus)
    files = FaultyFiles(inner)
    bus = _open(files)
    files.plan = Plan(1, errno.ENOSPC, lasting=True, looks_at=_disk_full)
    assert _values(bus) == [b"a", b"b"]
    files.heal()
    bus.close()


def test_what_a_failed_write_left_does_not_come_back_after_a_stop() -> None:
    """Its first batch stands whole in the file, and the send was said to have failed."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync="never")
    bus.create_topic("t")
    files.plan = Plan(
        1, errno.EIO, short=True, looks_at=lambda call: call.name == "write" and call.path.endswith(".log")
    )
    with pytest.raises(errors.StorageError):
        _partition(bus).append([_batch(b"a"), _batch(b"b" * 1000)])
    files.stop()
    bury(bus)
    bus = _open(FaultyFiles(inner))
    assert _values(bus) == []
    bus.close()
