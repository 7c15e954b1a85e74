"""A segment: its walk stops before what is no batch, and its index is believed only where the log agrees."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from streamlite.files import File, Files, MissingFile
from streamlite.files.local import LocalFiles
from streamlite.files.memory import MemoryFiles
from streamlite.format import (
    HEADER_BYTES,
    INDEX_ENTRY_BYTES,
    INDEX_INTERVAL_BYTES,
    IndexEntry,
    pack_entry,
    unpack_header,
)
from streamlite.handles import Handles
from streamlite.segment import NEVER_MS, Found, IndexBuilder, Segment, _Index, walk, walk_verified
from tests.unit.batches import BASE_MS, batch_of, log_of

DIRECTORY = "0"
WALKS: list[Any] = [walk, walk_verified]
START = IndexEntry(0, 0, NEVER_MS)


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    made: Files = LocalFiles(str(tmp_path / "bus")) if request.param == "local" else MemoryFiles()
    made.make_dir(DIRECTORY)
    return made


def segment_of(files: Files, base: int = 0) -> Segment:
    """A segment as another process would see it: with descriptors and memory of its own."""
    return Segment(Handles(files), 1, DIRECTORY, base)


class Reads(File):
    """A file of bytes that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.path = "0.log"
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def read(self, size: int, position: int) -> bytes:
        self.reads.append((size, position))
        return self.data[position : position + size]

    def write(self, buffers: object, position: int) -> None:
        raise NotImplementedError

    def size(self) -> int:
        return len(self.data)

    def truncate(self, size: int) -> None:
        raise NotImplementedError

    def sync(self) -> None:
        raise NotImplementedError


def bases(found: Iterable[Found]) -> list[int]:
    return [one.header.base_offset for one in found]


# -- walks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("walked", WALKS)
@pytest.mark.parametrize("size", [10, 3_000, 40_000, 200_000, 700_000])
def test_a_walk_meets_every_batch(walked: Any, size: int) -> None:
    batches = log_of(12, size)
    file = Reads(b"".join(batches))
    found = list(walked(file, 0, file.size()))
    assert bases(found) == list(range(0, 24, 2))
    assert [one.position for one in found] == [sum(map(len, batches[:at])) for at in range(12)]
    assert all(unpack_header(file.data, one.position) == one.header for one in found)


@pytest.mark.parametrize("walked", WALKS)
def test_a_walk_begins_where_it_is_told(walked: Any) -> None:
    batches = log_of(6)
    file = Reads(b"".join(batches))
    assert bases(walked(file, len(batches[0]) * 4, file.size())) == [8, 10]
    assert bases(walked(file, file.size(), file.size())) == []
    assert bases(walked(file, 7, file.size())) == []


@pytest.mark.parametrize("walked", WALKS)
def test_a_walk_ends_before_a_batch_that_the_limit_cuts(walked: Any) -> None:
    batches = log_of(4)
    file = Reads(b"".join(batches))
    one = len(batches[0])
    for limit in range(file.size() + 1):
        assert len(list(walked(file, 0, limit))) == limit // one


@pytest.mark.parametrize("walked", WALKS)
def test_a_walk_ends_where_the_file_does_whatever_the_limit(walked: Any) -> None:
    batches = log_of(3)
    whole = b"".join(batches)
    for size in range(0, len(whole), 7):
        file = Reads(whole[:size])
        found = list(walked(file, 0, 1 << 40))
        headers = size // len(batches[0]) + (size % len(batches[0]) >= HEADER_BYTES)
        assert len(found) == (headers if walked is walk else size // len(batches[0]))


@pytest.mark.parametrize("walked", WALKS)
def test_a_walk_ends_before_what_is_no_header(walked: Any) -> None:
    batches = log_of(4)
    file = Reads(batches[0] + batches[1] + bytes(len(batches[2])) + batches[3])
    assert bases(walked(file, 0, file.size())) == [0, 2]


def test_only_the_verified_walk_sees_a_damaged_payload() -> None:
    batches = log_of(4)
    data = bytearray(b"".join(batches))
    data[2 * len(batches[0]) + HEADER_BYTES + 5] ^= 1
    file = Reads(bytes(data))
    assert bases(walk(file, 0, file.size())) == [0, 2, 4, 6]
    assert bases(walk_verified(file, 0, file.size())) == [0, 2]


def test_a_walk_over_small_batches_reads_in_large_pieces() -> None:
    file = Reads(b"".join(log_of(2000, 20)))
    assert len(list(walk(file, 0, file.size()))) == 2000
    assert len(file.reads) <= file.size() // (64 << 10) + 1
    del file.reads[:]
    assert len(list(walk_verified(file, 0, file.size()))) == 2000
    assert len(file.reads) <= file.size() // (1 << 20) + 1


def test_a_walk_over_large_batches_reads_little_of_them() -> None:
    file = Reads(b"".join(log_of(5, 3 << 20)))
    assert len(list(walk(file, 0, file.size()))) == 5
    assert sum(size for size, _ in file.reads) <= 5 * (64 << 10)


def test_a_forged_length_is_not_read() -> None:
    forged = bytearray(batch_of([b"a"]))
    forged[8:16] = (0x7FFFFFFF).to_bytes(4, "little") * 2
    file = Reads(bytes(forged))
    assert list(walk_verified(file, 0, file.size())) == []
    assert list(walk_verified(file, 0, 1 << 40)) == []
    assert sum(min(size, file.size()) for size, _ in file.reads) < 1 << 20


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_segment_is_known_by_its_name() -> None:
    handles = Handles(MemoryFiles())
    plain = Segment.parse(handles, 1, "topics/orders/0", "00000000000000000042.log")
    assert plain is not None
    assert (plain.base, plain.next, plain.generation) == (42, 0, 0)
    assert plain.log_path == "topics/orders/0/00000000000000000042.log"
    assert plain.index_path == "topics/orders/0/00000000000000000042.index"
    made = Segment.parse(handles, 1, "d", "00000000000000000042-00000000000000000100.3.log")
    assert made is not None
    assert (made.base, made.next, made.generation) == (42, 100, 3)
    assert made.log_path == "d/00000000000000000042-00000000000000000100.3.log"


@pytest.mark.parametrize(
    "name",
    [
        "lock",
        "start",
        "00000000000000000042",
        "00000000000000000042.index",
        "00000000000000000042.log.new",
        "00000000000000000042.new",
        "42.log",
        ".log",
        "99999999999999999999.log",
        "00000000000000000042-00000000000000000042.3.log",
    ],
)
def test_other_files_are_no_segments(name: str) -> None:
    assert Segment.parse(Handles(MemoryFiles()), 1, "d", name) is None


# -- the index ---------------------------------------------------------------------------------------------------------


class Log:
    """A segment of ten batches, with an index entry for every batch but the first."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.batches = log_of(10)
        self.size = len(self.batches[0])
        self.segment = segment_of(files)
        self.segment.file(create=True).write(self.batches, 0)
        self.entries = [IndexEntry(2 * at, self.size * at, BASE_MS + at - 1) for at in range(1, 10)]
        for entry in self.entries:
            self.segment.add_entry(entry)

    def index(self) -> File:
        return self.files.open(self.segment.index_path)

    def damage(self, position: int) -> None:
        """Flip a bit of the index."""
        index = self.index()
        index.write([bytes([index.read(1, position)[0] ^ 1])], position)


@pytest.fixture
def log(files: Files) -> Log:
    return Log(files)


def test_a_seek_finds_the_last_entry_at_or_before_an_offset(log: Log) -> None:
    seen = segment_of(log.files)
    for segment in (log.segment, seen):
        assert segment.floor(0) == segment.floor(1) == START
        for offset in range(2, 20):
            assert segment.floor(offset) == log.entries[offset // 2 - 1]
        assert segment.floor(1 << 40) == log.entries[-1]
        assert segment.last_entry() == log.entries[-1]


def test_a_seek_by_time_leaves_nothing_behind(log: Log) -> None:
    segment = log.segment
    assert segment.floor_time(NEVER_MS) == segment.floor_time(BASE_MS) == START
    for more in range(1, 9):
        entry = segment.floor_time(BASE_MS + more)
        assert entry == log.entries[more - 1]
        assert entry.max_timestamp < BASE_MS + more
    assert segment.floor_time(1 << 62) == log.entries[-1]


def test_a_segment_without_an_index_is_read_from_its_beginning(files: Files) -> None:
    segment = segment_of(files, 40)
    segment.file(create=True).write([batch_of([b"a"], base_offset=40)], 0)
    assert segment.floor(45) == segment.floor_time(1 << 60) == IndexEntry(40, 0, NEVER_MS)
    assert segment.last_entry() is None
    segment.cut_index(0)
    assert segment.last_entry() is None


def test_a_segment_that_was_removed_is_missing(log: Log) -> None:
    log.files.remove(log.segment.log_path)
    log.segment.forget()
    with pytest.raises(MissingFile):
        log.segment.floor(10)
    with pytest.raises(MissingFile):
        log.segment.file()


def test_entries_of_another_writer_are_taken_up(log: Log) -> None:
    reader = segment_of(log.files)
    assert reader.last_entry() == log.entries[-1]
    more = log_of(12)[10:]
    log.segment.file().write(more, 10 * log.size)
    log.segment.add_entry(IndexEntry(20, 10 * log.size, BASE_MS + 9))
    assert reader.floor(99) == IndexEntry(20, 10 * log.size, BASE_MS + 9)
    log.segment.add_entry(IndexEntry(22, 11 * log.size, BASE_MS + 10))
    assert reader.floor(99).offset == 22
    assert reader.floor(21).offset == 20


@pytest.mark.parametrize("torn", range(1, INDEX_ENTRY_BYTES))
def test_a_torn_entry_is_written_over(log: Log, torn: int) -> None:
    index = log.index()
    index.truncate(5 * INDEX_ENTRY_BYTES + torn)
    segment = segment_of(log.files)
    assert segment.last_entry() == log.entries[4]
    segment.add_entry(log.entries[5])
    assert segment.last_entry() == log.entries[5]
    assert index.size() == 6 * INDEX_ENTRY_BYTES


@pytest.mark.parametrize("at", [0, 3, 8])
def test_what_follows_a_damaged_entry_is_not_used(log: Log, at: int) -> None:
    log.damage(at * INDEX_ENTRY_BYTES + 9)
    segment = segment_of(log.files)
    expected = log.entries[at - 1] if at else None
    for _ in range(2):
        assert segment.last_entry() == expected
        assert segment.floor(99) == (expected or START)


def test_an_entry_that_the_log_does_not_confirm_is_passed_over(log: Log) -> None:
    log.segment.cut_index(5 * log.size)
    for wrong in (IndexEntry(11, 5 * log.size, BASE_MS + 8), IndexEntry(15, 6 * log.size + 1, BASE_MS + 8)):
        log.segment.add_entry(wrong)
    segment = segment_of(log.files)
    for _ in range(2):
        assert segment.floor(14) == segment.floor(99) == segment.floor_time(1 << 60) == log.entries[3]
    assert segment.floor(6) == log.entries[2]


def test_an_index_of_other_bytes_costs_time_and_no_truth(log: Log) -> None:
    seen = log.segment
    assert seen.floor(18) == log.entries[-1]
    other = batch_of([b"x" * 37] * 4)
    seen.file().truncate(0)
    seen.file().write([other, *log_of(10)[2:]], 0)
    assert seen.floor(18) == START
    assert seen.floor_time(1 << 60) == START


@pytest.mark.parametrize("size", [100, 37])
def test_what_is_known_of_a_log_that_was_written_anew_is_forgotten(log: Log, size: int) -> None:
    reader = segment_of(log.files)
    assert reader.last_entry() == log.entries[-1]
    batches = [batch_of([b"x" * size], base_offset=at) for at in range(20)]  # positions or offsets are others now
    file = log.segment.file()
    file.truncate(0)
    file.write(batches, 0)
    entries = [IndexEntry(at, len(batches[0]) * at, BASE_MS) for at in range(1, 20)]
    log.segment.replace_index(entries)  # not shorter: its size does not tell that it is another one
    reader.floor(99)
    assert reader.last_entry() == reader.floor(99) == entries[-1]


@pytest.mark.parametrize(
    "stale",
    [IndexEntry(4, 1 << 20, BASE_MS + 50), IndexEntry(50, 5, BASE_MS + 50), IndexEntry(50, 1 << 20, BASE_MS + 1)],
)
def test_an_entry_that_does_not_continue_what_is_known_is_not_taken(log: Log, stale: IndexEntry) -> None:
    assert log.segment.last_entry() == log.entries[-1]
    log.segment.add_entry(stale)
    for segment in (log.segment, segment_of(log.files)):
        assert segment.last_entry() == log.entries[-1]


def test_the_entry_for_the_end_of_a_sealed_segment_is_no_place_to_read(log: Log) -> None:
    end = IndexEntry(20, 10 * log.size, BASE_MS + 9)
    log.segment.add_entry(end)
    segment = segment_of(log.files)
    assert segment.last_entry() == end
    assert segment.floor(99) == segment.floor(20) == log.entries[-1]
    assert segment.floor_time(1 << 60) == log.entries[-1]


@pytest.mark.parametrize("position", [0, 1, 4])
def test_a_cut_takes_the_entries_from_there_on(log: Log, position: int) -> None:
    cut = position * log.size
    reader = segment_of(log.files)
    assert reader.last_entry() == log.entries[-1]
    log.segment.cut_index(cut)
    kept = [entry for entry in log.entries if entry.position < cut]
    assert log.index().size() == len(kept) * INDEX_ENTRY_BYTES
    for segment in (log.segment, reader, segment_of(log.files)):
        assert segment.last_entry() == (kept[-1] if kept else None)


def test_a_cut_takes_damaged_entries_too(log: Log) -> None:
    log.damage(4 * INDEX_ENTRY_BYTES)
    segment = segment_of(log.files)
    segment.cut_index(9 * log.size)
    assert log.index().size() == 4 * INDEX_ENTRY_BYTES
    segment.add_entry(log.entries[4])
    assert segment.last_entry() == log.entries[4]


def test_entries_after_a_cut_by_another_process_are_taken_up(log: Log) -> None:
    reader = segment_of(log.files)
    assert reader.last_entry() == log.entries[-1]
    log.segment.cut_index(3 * log.size)
    assert reader.last_entry() == log.entries[1]
    fresh = IndexEntry(6, 3 * log.size, BASE_MS + 40)
    log.segment.add_entry(fresh)
    assert reader.last_entry() == fresh
    assert reader.floor_time(BASE_MS + 30) == log.entries[1]


def test_an_index_is_replaced_whole(log: Log) -> None:
    reader = segment_of(log.files)
    assert reader.last_entry() == log.entries[-1]
    log.segment.replace_index(log.entries[:3])
    for segment in (log.segment, reader, segment_of(log.files)):
        assert segment.last_entry() == log.entries[2]
    log.segment.replace_index([])
    assert reader.last_entry() is None
    assert log.index().size() == 0


def test_a_long_index_is_written_and_read_whole(files: Files) -> None:
    segment = segment_of(files)
    segment.file(create=True)
    entries = [IndexEntry(at, at * 100, at // 7) for at in range(1, 33_000)]
    segment.replace_index(entries)
    reader = segment_of(files)
    assert reader.last_entry() == entries[-1]
    index = reader._load()
    assert len(index) == len(entries)
    for at in (0, 32_767, 32_768, 32_769, 32_998):
        assert index[at] == entries[at]


def test_an_index_as_large_as_a_disk_is_not_read_whole(files: Files) -> None:
    segment = segment_of(files)
    segment.file(create=True)
    index = segment.index_file(create=True)
    index.write([pack_entry(IndexEntry(1, 100, 5))], 0)
    if isinstance(files, LocalFiles):
        index.truncate(1 << 40)  # a hole
    else:
        index.truncate(1 << 24)
    assert segment.last_entry() == IndexEntry(1, 100, 5)


def test_entries_that_a_signal_cut_off_do_not_shift_the_rest(log: Log) -> None:
    index = log.segment._load()
    index.max_times.append(7)  # as if a handler had raised between the columns of one entry
    index.positions.append(7)
    more = IndexEntry(20, 10 * log.size, BASE_MS + 9)
    log.segment.file().write(log_of(11)[10:], 10 * log.size)
    log.segment.add_entry(more)
    assert log.segment.last_entry() == more
    assert log.segment.floor_time(BASE_MS + 9) == log.entries[-1]
    assert log.segment.floor(99) == more


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_an_index_grows_for_one_thread_at_a_time(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = segment_of(log.files)
    grown: list[bool] = []
    real = _Index.take

    def take(index: _Index, entries: list[IndexEntry]) -> bool:
        grown.append(segment._mutex.locked())
        return real(index, entries)

    monkeypatch.setattr(_Index, "take", take)
    for look in (segment.last_entry, lambda: segment.floor(9), lambda: segment.floor_time(BASE_MS)):
        segment._forget(segment._index)
        look()
    segment.cut_index(5 * log.size)
    segment.replace_index(log.entries)
    assert grown
    assert all(grown)


def test_threads_that_seek_while_entries_come_and_go_find_true_ones(files: Files, hasty: None) -> None:
    segment = segment_of(files)
    batches = log_of(400, 10)
    size = len(batches[0])
    segment.file(create=True).write(batches, 0)
    wrong: list[object] = []
    done = threading.Event()

    def seek() -> None:
        try:
            while not done.is_set():
                for offset in (5, 100, 399, 799):
                    entry = segment.floor(offset)
                    if entry.offset > offset or entry.position != entry.offset // 2 * size:
                        wrong.append(entry)
                    entry = segment.floor_time(BASE_MS + offset // 2)
                    if entry != START and entry.max_timestamp != BASE_MS + entry.offset // 2 - 1:
                        wrong.append(entry)
        except BaseException as error:  # noqa: BLE001 - the test is about there being none
            wrong.append(error)

    threads = [threading.Thread(target=seek) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(3):
            for at in range(1, 120):
                segment.add_entry(IndexEntry(2 * at, size * at, BASE_MS + at - 1))
                if at % 50 == 0:
                    segment.cut_index(size * (at - 10))
                    for again in range(at - 10, at + 1):
                        segment.add_entry(IndexEntry(2 * again, size * again, BASE_MS + again - 1))
            segment.replace_index([])
    finally:
        done.set()
        for thread in threads:
            thread.join(20)
    assert wrong == []


# -- the builder -------------------------------------------------------------------------------------------------------


def test_a_builder_makes_an_entry_about_every_interval() -> None:
    file = Reads(b"".join(log_of(200, 1000)))
    builder = IndexBuilder()
    found = list(walk(file, 0, file.size()))
    for one in found:
        builder.add(one)
    assert [entry.position for entry in builder.entries] == sorted({entry.position for entry in builder.entries})
    starts = [0, *(entry.position for entry in builder.entries)]
    step = len(file.data) // 200
    assert all(INDEX_INTERVAL_BYTES <= b - a < INDEX_INTERVAL_BYTES + step for a, b in pairwise(starts))
    by_position = {one.position: one for one in found}
    for entry in builder.entries:
        assert by_position[entry.position].header.base_offset == entry.offset
        assert entry.max_timestamp == BASE_MS + entry.offset // 2 - 1
    builder.seal(400, file.size())
    assert builder.entries[-1] == IndexEntry(400, file.size(), BASE_MS + 199)


def test_a_builder_keeps_the_greatest_time_even_where_times_fall() -> None:
    builder = IndexBuilder()
    for at, when in enumerate((50, 90, 10)):
        header = unpack_header(batch_of([b"a"], base_offset=at, base_timestamp=when, max_timestamp=when))
        builder.add(Found(header, at * 2 * INDEX_INTERVAL_BYTES))
    assert builder.entries == [
        IndexEntry(1, 2 * INDEX_INTERVAL_BYTES, 50),
        IndexEntry(2, 4 * INDEX_INTERVAL_BYTES, 90),
    ]
    assert IndexBuilder().max_timestamp == NEVER_MS
