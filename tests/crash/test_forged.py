"""What the fuzzer (test_fuzz.py) and the real faults found, each by itself: mostly wrong bytes whose checksums hold."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any
from unittest import mock

import msgspec
import pytest

from streamlite import Bus, errors
from streamlite.batch import encode_payload
from streamlite.counters import EPOCH, START, TOPICS, TRANSACTION
from streamlite.files.memory import MemoryFiles
from streamlite.format import FLAG_COMPACTED, FLAG_TRANSACTION, OFFSET_MAX, checksum, segment_name
from streamlite.group import _packed, _unpacked
from streamlite.repair import repair
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import FaultyFiles, Plan, file_at, kill, logs_of, open_over, walk_files
from tests.crash.mutating import Batch, batches, packed
from tests.crash.story import PATIENCE
from tests.crash.watching import ends_within
from tests.unit.batches import header_of


def _opened(files: MemoryFiles, **options: Any) -> Bus:
    return open_over(FaultyFiles(files), **{"sync": "never", "clock": VirtualClock(), "lock_timeout": 1.0, **options})


def _put(bus: Bus, *values: bytes, topic: str = "t", **options: Any) -> None:
    with bus.producer() as producer:
        for value in values:
            producer.send(topic, value, **options).result(timeout=PATIENCE)


def _values(bus: Bus, topic: str = "t") -> list[Any]:
    return [message.value for message in bus.topic(topic).read()]


def _change(files: MemoryFiles, path: str, change: Callable[[Batch], Batch]) -> None:
    """Change the first batch of a segment."""
    data = file_at(files, path).data
    first, *others = batches(bytes(data))
    data[:] = b"".join(map(packed, [change(first), *others]))


def _with_content(batch: Batch, content: bytes) -> Batch:
    return Batch(batch.header._replace(length=len(content), content_bytes=len(content)), content)


# -- logs of the user --------------------------------------------------------------------------------------------------


def test_compaction_passes_over_more_offsets_than_one_batch_stands_for() -> None:
    inner = MemoryFiles()
    bus = _opened(inner)
    bus.create_topic("t", cleanup="compact", segment_bytes=10_000)
    _put(bus, b"first", key=b"a")
    kill(bus)
    nothing = encode_payload(None, None, None, None, [])
    far = 5 << 32
    found = batches(bytes(file_at(inner, logs_of(inner)[0]).data))
    for base in range(1, far, 1 << 32):
        span = min(1 << 32, far - base)
        found.append(Batch(header_of(nothing, 0, flags=FLAG_COMPACTED, base_offset=base, last_delta=span - 1), nothing))
    last = encode_payload([b"b"], [b"last"])
    found.append(Batch(header_of(last, base_offset=far), last))
    file_at(inner, logs_of(inner)[0]).data[:] = b"".join(map(packed, found))
    bus = _opened(inner)
    for _ in range(3):
        bus.maintain()
        assert [(message.offset, message.value) for message in bus.topic("t").read()] == [(0, b"first"), (far, b"last")]
        _put(bus, b"last", key=b"b")
        far += 1
    assert any(path.endswith(".log") and "-" in path for path in logs_of(inner))
    bus.close()


def test_a_batch_that_makes_no_sense_ends_maintenance_with_a_declared_error() -> None:
    inner = MemoryFiles()
    bus = _opened(inner)
    bus.create_topic("t", cleanup="compact", segment_bytes=200)
    _put(bus, b"a", b"b", b"c", key=b"k")
    kill(bus)
    _change(inner, logs_of(inner)[0], lambda batch: _with_content(batch, b"\x93\x01"))
    bus = _opened(inner)
    with pytest.raises(errors.CorruptionError):
        bus.maintain()
    bus.close()


def test_a_segment_that_is_named_as_if_it_came_later_than_any_is_not_filled_up_to() -> None:
    inner = MemoryFiles()
    bus = _opened(inner)
    bus.create_topic("t")
    _put(bus, b"a")
    bus.close()
    [path] = logs_of(inner)
    inner.replace_file(f"topics/t/0/{segment_name(OFFSET_MAX)}.log", bytes(file_at(inner, path).data), sync=False)
    seam = FaultyFiles(inner)
    with (
        mock.patch("streamlite.engine._files", return_value=seam),
        mock.patch("streamlite.repair.LocalFiles", return_value=seam),
        ends_within(10),
        pytest.raises(errors.CorruptionError, match="cannot be"),
    ):
        repair("a directory")


@pytest.mark.parametrize("settings", [{"compression": "zip"}, {"segment_bytes": 0}, {"partitioner": "mine"}])
def test_settings_that_no_release_wrote_are_damage(settings: dict[str, Any]) -> None:
    inner = MemoryFiles()
    bus = _opened(inner)
    state = bus.create_topic("t")._current()
    wrong = state.file(settings=msgspec.structs.replace(state.settings, **settings))
    kill(bus)
    inner.replace_file("topics/t/topic.json", wrong.encode(), sync=False)
    with pytest.raises(errors.CorruptionError):
        _opened(inner)


def test_two_topics_with_one_slot_are_damage() -> None:
    inner = MemoryFiles()
    bus = _opened(inner)
    [one, other] = [bus.create_topic(name)._current() for name in "tu"]
    wrong = other.file(slots=one.file().slots)
    kill(bus)
    inner.replace_file("topics/u/topic.json", wrong.encode(), sync=False)
    with pytest.raises(errors.CorruptionError, match="another partition"):
        _opened(inner)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epoch", "topics/t/0/start"])
def test_a_number_that_leaves_no_room_above_it_is_damage(name: str) -> None:
    inner = MemoryFiles()
    bus = _opened(inner)
    bus.create_topic("t")
    _put(bus, b"a")
    kill(bus)
    body = ((1 << 64) - 1).to_bytes(8, "little")
    inner.replace_file(name, body + checksum(body).to_bytes(8, "little"), sync=False)
    with pytest.raises(errors.CorruptionError) as caught:
        _values(_opened(inner))
    assert caught.value.file == name


@pytest.mark.parametrize("word", [TOPICS, EPOCH])
def test_counters_that_say_what_cannot_be_count_as_none(word: int) -> None:
    inner = MemoryFiles()
    bus = _opened(inner)
    bus.create_topic("t")
    _put(bus, b"a")
    kill(bus)
    inner.map("counters", 0, 4096).cast("Q")[word] = (1 << 64) - 1
    bus = _opened(inner)
    assert _values(bus) == [b"a"]
    assert bus._engine.ctx.epoch == 1  # nobody knows what was lost
    _put(bus, b"b")
    bus.create_topic("u")
    bus.close()


def test_counters_that_say_a_log_begins_later_remove_nothing_of_it() -> None:
    """After a kill their words are still there; where the log begins is what its own file says."""
    inner = MemoryFiles()
    bus = _opened(inner)
    bus.create_topic("t", segment_bytes=1)
    _put(bus, b"a", b"b", b"c")
    bus._engine.registry.get("t").partitions[0].slot.set(START, 2)
    kill(bus)
    bus = _opened(inner)
    assert _values(bus) == [b"a", b"b", b"c"]
    bus.close()


def test_a_page_of_a_producer_that_leaves_no_epoch_above_it_is_damage() -> None:
    inner = MemoryFiles()
    bus = _opened(inner)
    bus.create_topic("t")
    bus.producer(name="n").close()
    bus.close()
    inner.map("producers/n", 0, 4096).cast("Q")[0] = 1 << 40
    bus = _opened(inner)
    with pytest.raises(errors.CorruptionError, match="producers/n"):
        bus.producer(name="n")
    bus.close()


# -- what streamlite notes down for itself -----------------------------------------------------------------------------


def _transacted() -> MemoryFiles:
    inner = MemoryFiles()
    bus = _opened(inner)
    bus.create_topic("t")
    with bus.producer(name="n") as producer:
        producer.send("t", b"s", key=b"k").result(timeout=PATIENCE)
        with bus.consumer("t", group="g", auto_commit=False) as consumer:
            consumer.poll(timeout=1.0)
            with producer.transaction(consumer) as tx:
                tx.send("t", b"a", key=b"k")
    bus.close()
    return inner


@pytest.mark.parametrize("record", [b"", b"\x90", b"\x91\x91\x01", b"\x91" * 3000, b"\x92\xa1x\xc1"])
@pytest.mark.parametrize("topic", ["__offsets", "__meta", "__transactions"])
def test_a_record_that_nobody_wrote_is_damage_for_who_needs_it(topic: str, record: bytes) -> None:
    inner = _transacted()
    content = encode_payload([record], [record])
    path = logs_of(inner, topic)[0]
    _change(inner, path, lambda batch: _with_content(batch, content))
    inner.remove("clean")
    inner.map("counters", 0, 4096)[:] = bytes(4096)  # so that the transaction is looked up
    bus = _opened(inner)
    found = []
    for call in (
        lambda: _values(bus),
        lambda: bus.group("g"),
        lambda: bus.producer(name="n").last_sequence("t", 0),
        lambda: bus.delete_topic("t"),
    ):
        try:
            call()
        except errors.CorruptionError as error:
            found.append(error.file)
        except errors.UnknownGroupError:
            assert topic != "__meta"  # its commit is damaged, or was of a transaction whose record is
    assert found or topic == "__transactions"
    assert all(file.startswith(f"topics/{topic}/0") for file in found), found
    bus._engine.abandon()


def test_a_record_that_says_it_is_of_a_transaction_does_not_ask_for_itself() -> None:
    inner = _transacted()
    [path] = logs_of(inner, "__transactions")
    _change(
        inner,
        path,
        lambda batch: batch._replace(header=batch.header._replace(flags=FLAG_TRANSACTION, transaction_id=1)),
    )
    inner.remove("clean")
    bus = _opened(inner)
    with pytest.raises(errors.CorruptionError) as caught:
        _values(bus)  # the commit record, which was safe, does not count
    assert caught.value.file == path
    bus._engine.abandon()


def test_records_that_wait_for_themselves_wait_for_nobody() -> None:
    inner = _transacted()
    bus = _opened(inner)
    log = bus._engine.ledger.log()
    log.slot.set(TRANSACTION, 5)
    with bus.producer() as producer, producer.transaction() as tx:
        tx.send("t", b"b")
    bus.sync()
    bus.close()


def test_the_name_of_a_member_is_no_path() -> None:
    inner = MemoryFiles()
    bus = _opened(inner)
    bus.create_topic("t")
    bus.consumer("t", group="g")
    kill(bus)
    paths = [path for path, file in walk_files(inner._tree) if file is not None and "/state." in path]
    for path in paths:
        stored = _unpacked(bytes(file_at(inner, path).data))
        state = msgspec.msgpack.decode(stored.state)
        if state["members"]:
            [member] = state["members"].values()
            state["members"] = {"../../../topics/t/topic.json": member}
            state["owned"] = {}
            file_at(inner, path).data[:] = _packed(msgspec.structs.replace(stored, state=msgspec.msgpack.encode(state)))
    bus = _opened(inner)
    with bus.consumer("t", group="g") as consumer:
        assert len(consumer.assignment()) == 1
    assert bus.topics() == ["t"]
    bus.close()


# -- a device that says no ---------------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_opened_is_no_failed_sync() -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = open_over(files, sync="always", clock=VirtualClock())
    bus.create_topic("t")
    files.plan = Plan(1, errno.EMFILE, looks_at=lambda call: call.name == "sync_dir")
    with pytest.raises(errors.StorageError):
        _put(bus, b"a")
    files.heal()
    _put(bus, b"b")
    assert _values(bus) == [b"a", b"b"]
    bus.close()
    assert "clean" in inner.list("")


def test_compaction_removes_what_it_replaced_though_there_is_no_room_for_an_index() -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = open_over(files, sync="never", clock=VirtualClock())
    bus.create_topic("t", cleanup="compact", segment_bytes=200)
    for number in range(6):
        _put(bus, b"%d" % number, key=b"k")
    files.plan = Plan(
        1, errno.ENOSPC, lasting=True, looks_at=lambda call: call.name == "create" and call.path.endswith(".1.index")
    )
    bus.maintain()
    assert files.hits
    files.heal()
    assert _values(bus) == [b"5"]
    names = [path.rpartition("/")[2] for path in logs_of(inner)]
    replaced = [name.partition("-")[0] for name in names if "-" in name]
    assert replaced
    assert not [name for name in replaced if f"{name}.log" in names], names
    bus.close()
