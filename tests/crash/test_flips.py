"""Fault 7 of the promises: bytes that changed, files that ended early.

What is read is right, or the error names the damage: `CorruptionError` or `FormatError`. Nothing that was synced is
missing without a word, and nothing is allocated because a damaged number says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock

import pytest

from streamlite import Bus, errors
from streamlite.files.memory import MemoryFiles
from tests.crash.faulty import FaultyFiles, Plan, Stopped, clone, file_at, kill, logs_of, open_over, walk_files
from tests.crash.story import PATIENCE
from tests.unit.batches import batch_of

SEED = int(os.environ.get("STREAMLITE_SEED", "0"))
VALUES = [b"%d" % number * 8 for number in range(4)]
DECLARED = (errors.CorruptionError, errors.FormatError)


def _put(bus: Bus, *values: bytes, **options: Any) -> None:
    with bus.producer() as producer:
        for value in values:
            producer.send("t", value, **options).result(timeout=PATIENCE)


def _values(bus: Bus) -> list[Any]:
    return [message.value for message in bus.topic("t").read()]


def _log_of_four(*, closed: bool, **settings: Any) -> MemoryFiles:
    """Four batches, synced."""
    inner = MemoryFiles()
    bus = open_over(FaultyFiles(inner), sync="always")
    bus.create_topic("t", **settings)
    _put(bus, *VALUES)
    if closed:
        bus.close()
    else:
        kill(bus)
    return inner


def _bits(size: int, step: int = 1) -> Iterator[tuple[int, int]]:
    for bit in range(0, size * 8, step):
        yield bit // 8, 1 << bit % 8


def _read(files: MemoryFiles, boot: int | None = None) -> list[Any]:
    bus = open_over(FaultyFiles(files, boot=boot), sync="never")
    try:
        return _values(bus)
    finally:
        kill(bus)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_a_flipped_bit_of_a_log_is_noticed(closed: bool) -> None:
    inner = _log_of_four(closed=closed)
    [path] = logs_of(inner)
    for at, bit in _bits(len(file_at(inner, path).data)):
        files = clone(inner)
        file_at(files, path).data[at] ^= bit
        with pytest.raises(errors.CorruptionError) as caught:
            _read(files)
        assert caught.value.file == path
        assert 0 <= caught.value.position <= at


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("gone", [1, 2])
def test_a_segment_that_is_missing_between_others_is_noticed(gone: int, closed: bool) -> None:
    inner = _log_of_four(closed=closed, segment_bytes=1)
    inner.remove(logs_of(inner)[gone])
    bus = open_over(FaultyFiles(inner))
    with pytest.raises(errors.CorruptionError):
        list(bus.topic("t").read())
    kill(bus)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_a_log_that_ends_early_is_noticed(closed: bool) -> None:
    inner = _log_of_four(closed=closed)
    [path] = logs_of(inner)
    for size in range(len(file_at(inner, path).data)):
        files = clone(inner)
        file_at(files, path).truncate(size)
        with pytest.raises(errors.CorruptionError):
            _read(files)


def test_after_a_stop_of_the_machine_only_the_last_batch_can_be_taken_for_torn() -> None:
    inner = _log_of_four(closed=False)
    [path] = logs_of(inner)
    size = len(file_at(inner, path).data)
    for at, bit in _bits(size, step=3):
        files = clone(inner)
        file_at(files, path).data[at] ^= bit
        if at < size // 4 * 3:
            with pytest.raises(errors.CorruptionError):
                _read(files, boot=2)
        else:
            assert _read(files, boot=2) == VALUES[:-1]


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_an_index_may_be_damaged(closed: bool) -> None:
    inner = _with_everything(closed=closed)
    [path] = [path for path in _paths(inner) if path.endswith(".index")]
    size = len(file_at(inner, path).data)
    for at, bit in _bits(size, step=1 if size < 100 else max(3, size // 100 | 1)):
        files = clone(inner)
        file_at(files, path).data[at] ^= bit
        _right_or_declared(files, f"byte {at} ^ {bit}")
    for cut in range(0, size, max(1, size // 100)):
        files = clone(inner)
        file_at(files, path).truncate(cut)
        _right_or_declared(files, f"cut at {cut}")


def _with_everything(*, closed: bool) -> MemoryFiles:
    """Two batches of a log that was truncated and has seen a stop of the machine; 64 KiB of it have an index."""
    inner = MemoryFiles()
    bus = open_over(FaultyFiles(inner), sync="always")
    bus.create_topic("t")
    _put(bus, b"gone", b"x" * 70_000)
    kill(bus)
    bus = open_over(FaultyFiles(inner, boot=2), sync="always")
    bus.topic("t").truncate_before(0, 1)
    _put(bus, b"y" * 70_000, b"last")
    assert len(_values(bus)) == 3
    if closed:
        bus.close()
    else:
        kill(bus)
    return inner


def _paths(files: MemoryFiles) -> list[str]:
    return [path for path, file in walk_files(files._tree) if file is not None]


def _right_or_declared(files: MemoryFiles, what: str) -> None:
    try:
        found = _read(files, boot=2)
    except DECLARED:
        return
    assert [len(value) for value in found] == [70_000, 70_000, 4], what
    assert found[-1] == b"last", what


# -- every bit of every file -------------------------------------------------------------------------------------------

PARTS = 8
"""Of all bits, cuts and words: `case(seed)` looks at one in so many, and so many seeds in a row at all."""
LOOKED_AT = int(os.environ.get("STREAMLITE_FLIPS", "4"))
TIMES = [1000, 2000, 3000, 4000]


@cache
def _small() -> list[tuple[str, MemoryFiles, int]]:
    """Four batches in two segments, each with an index entry, as a close, a kill, and a stop of the machine leave them.

    With all that a topic can have beside them: a beginning, an epoch; and the boot of who opens it next.
    """
    found = []
    every_batch = [mock.patch(f"streamlite.{module}.INDEX_INTERVAL_BYTES", 1) for module in ("partition", "segment")]
    for how in ("closed", "killed", "stopped"):
        inner = MemoryFiles()
        kill(_begun(inner))
        with every_batch[0], every_batch[1]:
            bus = open_over(FaultyFiles(inner, boot=2), sync="always")
            with bus.producer() as producer:
                for value, time in zip(VALUES, TIMES, strict=True):
                    producer.send("t", value, timestamp=time).result(timeout=PATIENCE)
            bus.topic("t").truncate_before(0, 1)
        if how == "closed":
            bus.close()
        else:
            kill(bus)
        assert len(logs_of(inner)) == 2
        found.append((how, inner, 3 if how == "stopped" else 2))
    return found


def _begun(inner: MemoryFiles) -> Bus:
    bus = open_over(FaultyFiles(inner), sync="always")
    bus.create_topic("t", segment_bytes=500)
    _put(bus, b"before", timestamp=0)
    return bus


def _damages(inner: MemoryFiles) -> Iterator[tuple[str, int, int]]:
    """`(path, place, what)`: a bit of a byte, or of a word of a mapped page, or, where `what` is 0, a cut."""
    for path, file in walk_files(inner._tree):
        if file is None or path.startswith("wake/"):
            continue
        if not file.maps:
            yield from ((path, at, bit) for at, bit in _bits(len(file.data)))
            yield from ((path, at, 0) for at in range(len(file.data)))
            continue
        for offset in sorted(file.maps):
            words = file.maps[offset].cast("Q")
            used = {at for at in range(len(words)) if words[at]} | (set(range(6)) if not offset else set())
            yield from ((f"{path}@{offset}", at, 1 << bit) for at in sorted(used) for bit in range(64))


def case(seed: int) -> int:
    """Damages a bus of four batches in one place after the other; how often."""
    count = 0
    for how, inner, boot in _small():
        for number, (path, at, what) in enumerate(_damages(inner)):
            if number % PARTS == seed % PARTS:
                files, name = clone(inner), path.partition("@")[0]
                if "@" in path:
                    file_at(files, name).maps[int(path.rpartition("@")[2])].cast("Q")[at] ^= what
                elif what:
                    file_at(files, name).data[at] ^= what
                else:
                    file_at(files, name).truncate(at)
                # What was not safe when a machine stopped is no more: the last message, whose header says that the
                # others are, and not that it is.
                last = how == "stopped" and name == logs_of(inner)[-1]
                _is_right_or_declared(files, boot, last, f"{how}, {path} at {at}: {what or 'cut'}")
                count += 1
    return count


def _is_right_or_declared(files: MemoryFiles, boot: int, last: bool, what: str) -> None:
    wanted = dict(enumerate(zip([b"before", *VALUES], [0, *TIMES], strict=True)))
    try:
        bus = open_over(FaultyFiles(files, boot=boot), sync="never")
    except DECLARED:
        return
    try:
        found = {message.offset: message for message in bus.topic("t").read()}
        for offset, message in found.items():
            assert message.value == wanted[offset][0], (what, message)
        if not last:
            assert found.keys() >= {1, 2, 3, 4}, (what, found)
        assert found.keys() >= {1, 2, 3}, (what, found)
        # The caches that were made of what is there say the same: by offset, by time, and after a clean close.
        for offset in found:
            assert next(bus.topic("t").read(partition=0, start=offset)).offset == offset, what
            if offset:
                since = [message.offset for message in bus.topic("t").read(since_ms=wanted[offset][1])]
                assert set(range(offset, max(found) + 1)) <= set(since), (what, offset, since)
        with bus.producer() as producer:
            assert producer.send("t", b"after").result(timeout=PATIENCE).offset == max(found) + 1, what
        bus.close()
        bus = open_over(FaultyFiles(files, boot=boot), sync="never")
        assert _values(bus) == [*(message.value for message in found.values()), b"after"], what
        bus.close()
    except DECLARED:
        return
    finally:
        bus._engine.abandon()


@pytest.mark.parametrize("seed", range(SEED, SEED + LOOKED_AT))
def test_every_bit_of_every_file_may_flip_and_every_file_end_anywhere(seed: int) -> None:
    assert case(seed)


# -- compacted segments ------------------------------------------------------------------------------------------------


def _compacted() -> tuple[MemoryFiles, str, list[Any]]:
    inner = MemoryFiles()
    bus = open_over(FaultyFiles(inner), sync="always")
    bus.create_topic("t", cleanup="compact", segment_bytes=1000)
    for number in range(10):
        _put(bus, b"%d" % number, key=b"k%d" % (number % 5))
    bus.maintain()
    found = _values(bus)
    assert found == VALUES_LAST
    bus.close()
    [path] = [path for path in logs_of(inner) if path.endswith(".1.log") and file_at(inner, path).data]
    return inner, path, found


VALUES_LAST = [b"5", b"6", b"7", b"8", b"9"]


def test_a_flipped_bit_of_a_compacted_log_is_noticed() -> None:
    inner, path, _ = _compacted()
    for at, bit in _bits(len(file_at(inner, path).data)):
        files = clone(inner)
        file_at(files, path).data[at] ^= bit
        with pytest.raises(errors.CorruptionError):
            _read(files)


def test_a_compacted_log_that_ends_early_is_noticed() -> None:
    inner, path, _ = _compacted()
    for size in range(len(file_at(inner, path).data)):
        files = clone(inner)
        file_at(files, path).truncate(size)
        with pytest.raises(errors.CorruptionError):
            _read(files)


# -- numbers that are not to be believed -------------------------------------------------------------------------------


def test_nothing_is_allocated_for_a_length_that_is_damaged() -> None:
    inner = _log_of_four(closed=True, segment_bytes=200)
    path = logs_of(inner)[0]
    data = file_at(inner, path).data
    data[11] ^= 0x40
    data[15] ^= 0x40
    files = FaultyFiles(inner)
    bus = open_over(files)
    with pytest.raises(errors.CorruptionError):
        _values(bus)
    assert max(size for _, size, _ in files.reads) <= 1 << 20
    kill(bus)


def test_a_message_that_looks_like_a_batch_does_not_keep_a_torn_tail_from_being_cut() -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = open_over(files, sync="never")
    bus.create_topic("t")
    _put(bus, b"a")
    files.plan = Plan(1, short=True, looks_at=lambda call: call.name == "write" and call.path.endswith(".log"))
    with pytest.raises(Stopped):
        _put(bus, batch_of([b"x"], synced_upto=1000) + b"y" * 1000)
    kill(bus)
    assert _read(inner) == [b"a"]
