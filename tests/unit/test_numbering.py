"""What a named producer has stored: runs, the window, notes, and appends of which nobody saw the end."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlite import Bus, Producer, errors, numbering
from streamlite.counters import Slot
from streamlite.files.memory import MemoryFile, MemoryFiles
from streamlite.format import INDEX_INTERVAL_BYTES
from streamlite.numbering import Stored, producer_number
from streamlite.partition import Partition
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import FaultyFiles, Plan, file_at, kill, logs_of, open_over

PATIENCE = 20.0


def _of(note: object, cap: int) -> Stored | None:
    """Read a note, with offsets from `cap` on taken back since."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbering, "cap_offset", lambda partition, offset, epoch: min(offset, cap))
        return Stored.of(note, None)  # type: ignore[arg-type]


# -- Stored ------------------------------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=60)


@given(steps, st.integers(1, 12))
def test_the_last_messages_are_found_and_no_other_offset_is_ever_given(
    batches: list[tuple[int, int, int]], window: int
) -> None:
    """Each batch: how far its sequence is from the last one, how many messages, how many of others came before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbering, "WINDOW", window)
        stored, truth, offset = Stored(), {}, 0
        for rise, length, others in batches:
            offset += others
            base = (stored.last if stored.last is not None else -1) + rise
            stored.add(base, length, offset)
            truth |= {base + at: offset + at for at in range(length)}
            offset += length
        assert stored.last == max(truth)
        for sequence in range(max(truth) + 3):
            assert stored.find(sequence) in (truth.get(sequence), None)
        for sequence in sorted(truth)[-window:]:
            assert stored.find(sequence) == truth[sequence]
        again = _of(stored.note(epoch=1), offset)
        assert again is not None
        assert again.note(1) == stored.note(1)
        assert [again.find(one) for one in range(max(truth) + 3)] == [stored.find(one) for one in range(max(truth) + 3)]
        again.add(max(truth) + 1, 2, offset)
        stored.add(max(truth) + 1, 2, offset)
        assert again.note(1) == stored.note(1)


def test_neighbours_are_one_run() -> None:
    stored = Stored()
    for at in range(1000):
        stored.add(at, 1, at + 5)
    assert stored.note(3) == [999, 0, 3, [[0, 1000, 5]]]
    stored.add(1000, 1, 1006)  # another's message came between
    stored.add(1002, 1, 1007)  # a gap in the sequences
    assert stored.note(3)[3] == [[0, 1000, 5], [1000, 1, 1006], [1002, 1, 1007]]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "WINDOW", 10)
    stored = Stored()
    for at in range(1000):
        stored.add(2 * at, 1, at)
    assert len(stored.note(1)[3]) == 10  # type: ignore[arg-type]
    assert stored.find(2 * 989) is None
    assert stored.find(2 * 990) == 990


def test_what_is_known_already_is_passed_over() -> None:
    stored = Stored(5, 9, [[9, 1, 4]])
    stored.add(8, 1, 7)
    stored.add(9, 1, 7)
    assert stored.note(1) == [9, 5, 1, [[9, 1, 4]]]


def test_sequences_one_by_one() -> None:
    stored = Stored()
    stored.add_batch(3, 4, 10, [3, 4, 9, 11])
    assert [stored.find(sequence) for sequence in (3, 4, 5, 9, 10, 11)] == [10, 11, None, 12, None, 13]
    stored.add_batch(12, 2, 14, None)
    assert stored.last == 13
    assert stored.find(13) == 15


def test_a_note_of_nothing_is_nothing() -> None:
    assert _of(None, 3) is None
    empty = _of(Stored(7).note(1), 7)
    assert empty is not None
    assert (empty.last, empty.upto) == (None, 7)


def test_of_a_note_what_a_stop_of_the_machine_took_back_does_not_count() -> None:
    note = Stored(20, 40, [[10, 5, 0], [30, 5, 8], [39, 2, 18]]).note(1)
    whole = _of(note, 20)
    assert whole is not None
    assert whole.note(2) == [40, 20, 2, [[10, 5, 0], [30, 5, 8], [39, 2, 18]]]
    cut = _of(note, 10)
    assert cut is not None
    assert cut.note(2) == [31, 10, 2, [[10, 5, 0], [30, 2, 8]]]
    assert _of(note, 0) is None


def test_a_name_has_a_number() -> None:
    assert producer_number("a") == producer_number("a") != producer_number("b")
    assert 0 < producer_number("a") < 1 << 64


# -- over a directory in memory ----------------------------------------------------------------------------------------


def _open(files: FaultyFiles, **options: Any) -> Bus:
    return open_over(files, **{"sync": "never", "clock": VirtualClock(), "lock_timeout": 2.0, **options})


def _unsynced(files: FaultyFiles) -> Bus:
    bus = _open(files, sync="interval")
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    return bus


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles(MemoryFiles())


@pytest.fixture
def bus(files: FaultyFiles) -> Iterator[Bus]:
    with _open(files) as one:
        one.create_topic("t")
        yield one


def _give(producer: Producer, *sequences: int, length: int = 1) -> list[int]:
    sent = [producer.send("t", b"%0*d" % (length, one), partition=0, sequence=one) for one in sequences]
    return [one.result(timeout=PATIENCE).offset for one in sent]


def _values(bus: Bus) -> list[int]:
    return [int(message.value) for message in bus.topic("t").read()]


def _numbers_in_the_log(bus: Bus) -> list[int]:
    """The sequences as the batches have them, of all named producers."""
    state = bus._engine.registry.find("t")
    assert state is not None
    wanted = {producer_number("n"): Stored()}
    numbering.read_on(state.partitions[0], wanted, state.partitions[0].end())
    (stored,) = wanted.values()
    return [run[0] + at for run in stored.note(1)[3] for at in range(run[1])]  # type: ignore[attr-defined]


# -- appends of which nobody saw the end -------------------------------------------------------------------------------


class Once:
    """Makes a function raise the first time, before or after it has done its work."""

    def __init__(self, real: Callable[..., Any], *, after: bool) -> None:
        self.real = real
        self.after = after
        self.raised = False

    def __get__(self, instance: Any, owner: Any = None) -> Callable[..., Any]:
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.raised:
            return self.real(*args, **kwargs)
        if self.after:
            self.real(*args, **kwargs)
        self.raised = True
        raise KeyboardInterrupt


PLACES = [
    (numbering.Name, "append_locked"),
    (numbering.Name, "stored"),
    (Partition, "append_locked"),
    (Partition, "_append_run"),
    (Slot, "publish"),
    (Partition, "published"),
    (Stored, "add_batch"),
]


def _send_three(producer: Producer, how: str) -> None:
    for number in range(2, 5) if how != "column" else ():
        producer.send("t", b"%d" % number, partition=0, sequence=number if how == "given" else None)
    if how == "column":
        producer.send_many("t", [b"2", b"3", b"4"], partition=0)
    producer.flush()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("owner", "name"), PLACES, ids=lambda one: one if isinstance(one, str) else one.__name__)
@pytest.mark.parametrize("how", ["counted", "given", "column"])
def test_an_append_that_was_interrupted_is_not_made_twice(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, how: str, *, after: bool
) -> None:
    producer = bus.producer(name="n", linger_ms=60_000)
    for number in range(2):
        producer.send("t", b"%d" % number, partition=0, sequence=number if how == "given" else None)
    producer.flush()
    once = Once(getattr(owner, name), after=after)
    monkeypatch.setattr(owner, name, once)
    with pytest.raises(KeyboardInterrupt):
        _send_three(producer, how)
    assert once.raised
    producer.flush()
    producer.send("t", b"5", partition=0, sequence=5 if how == "given" else None).result(timeout=PATIENCE)
    assert producer.last_sequence("t", 0) == 5
    assert _values(bus) == _numbers_in_the_log(bus) == [0, 1, 2, 3, 4, 5]


@pytest.fixture
def lying_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """From its n-th write of a log on, the disk says that it failed, having written all; and cuts nothing."""
    at = [0]
    write, truncate = MemoryFile.write, MemoryFile.truncate

    def lie(self: MemoryFile, buffers: Any, position: int) -> None:
        write(self, buffers, position)
        if at[0] and self.path.startswith("topics/t/") and self.path.endswith(".log"):
            at[0] -= 1
            if not at[0]:
                monkeypatch.setattr(MemoryFile, "truncate", refuse)
                raise errors.StorageError("cannot write", errno=errno.EIO)

    def refuse(self: MemoryFile, size: int) -> None:
        monkeypatch.setattr(MemoryFile, "truncate", truncate)
        raise errors.StorageError("cannot truncate", errno=errno.EIO)

    monkeypatch.setattr(MemoryFile, "write", lie)

    def begin(number: int) -> None:
        at[0] = number

    return begin


def test_what_failed_and_is_stored_yet_is_not_stored_twice_and_hides_nothing_new(
    bus: Bus, lying_disk: Callable[[int], None]
) -> None:
    with bus.producer(name="n", linger_ms=60_000) as producer:
        producer.send("t", b"0", partition=0, sequence=0)
        producer.flush()
        lying_disk(1)
        for one in (1, 2):
            producer.send("t", b"%d" % one, partition=0, sequence=one)
        with pytest.raises(errors.StorageError):
            producer.flush()
        again = [producer.send("t", b"%d" % one, partition=0, sequence=one) for one in (1, 2, 3, 4)]  # one batch
        assert not again[3].done()
        assert [one.result(timeout=PATIENCE).offset for one in again] == [1, 2, 3, 4]
        assert producer.last_sequence("t", 0) == 4
    assert _values(bus) == _numbers_in_the_log(bus) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("given_", [False, True])
def test_the_second_segment_of_an_append_fails_and_is_stored_yet(
    bus: Bus, lying_disk: Callable[[int], None], *, given_: bool
) -> None:
    bus.topic("t").alter(segment_bytes=1000)
    with bus.producer(name="n", linger_ms=60_000, batch_bytes=1500) as producer:
        producer.send("t", b"0", partition=0, sequence=0 if given_ else None).result(timeout=PATIENCE)
        lying_disk(2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(producer, "_drain_if_free", lambda: None)
            sent = [
                producer.send("t", b"%0500d" % one, partition=0, sequence=one if given_ else None)
                for one in range(1, 5)
            ]
        found = [one.exception(timeout=PATIENCE) for one in sent]
        failed = [at for at, error in enumerate(found, 1) if error is not None]
        assert failed not in ([], [1, 2, 3, 4])
        if given_:
            _give(producer, *failed)
        producer.send("t", b"5", partition=0, sequence=5 if given_ else None).result(timeout=PATIENCE)
        assert producer.last_sequence("t", 0) == 5
    assert _values(bus) == _numbers_in_the_log(bus) == [0, 1, 2, 3, 4, 5]


# -- what is read to know what is stored -------------------------------------------------------------------------------


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches each look at a log took."""
    counts: list[int] = []
    real = numbering.read_on

    def counting(*args: Any) -> int:
        counts.append(real(*args))
        return counts[-1]

    monkeypatch.setattr(numbering, "read_on", counting)
    return counts


def test_after_a_clean_close_nothing_is_read_again(files: FaultyFiles, bus: Bus, looked_at: list[int]) -> None:
    with bus.producer(name="n") as producer:
        for one in range(50):
            _give(producer, one, length=INDEX_INTERVAL_BYTES)
    assert sum(looked_at) == 0  # a new name needs no look
    with bus.producer() as other:
        other.send("t", b"0").result(timeout=PATIENCE)
    with bus.producer(name="n") as producer:
        assert producer.last_sequence("t", 0) == 49
    assert sum(looked_at) <= 3  # what others wrote since, and what the index leads to


def test_after_a_kill_what_came_since_the_note_is_read(
    files: FaultyFiles, looked_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbering, "_READ_MUCH", 20)
    bus = _open(files)
    bus.create_topic("t")
    producer = bus.producer(name="n")
    for one in range(30):
        _give(producer, one, length=INDEX_INTERVAL_BYTES)
    kill(bus)
    for least, most in ((30, 30), (0, 0)):  # so much was read that it was worth a note
        looked_at.clear()
        files = FaultyFiles(files.inner)
        bus = _open(files)
        assert bus.producer(name="n").last_sequence("t", 0) == 29
        assert least <= sum(looked_at) <= most
        kill(bus)


def test_a_new_name_on_an_old_log_reads_nothing(bus: Bus, looked_at: list[int]) -> None:
    with bus.producer(name="other") as producer:
        for one in range(20):
            _give(producer, one, length=INDEX_INTERVAL_BYTES)
    with bus.producer(name="n") as producer:
        assert producer.last_sequence("t", 0) is None
        assert _give(producer, 3) == [20]
    assert sum(looked_at) == 0


# -- closing -----------------------------------------------------------------------------------------------------------


def test_what_a_note_speaks_of_is_synced_before_it(files: FaultyFiles) -> None:
    with _unsynced(files) as bus:
        bus.create_topic("t")
        producer = bus.producer(name="n")
        _give(producer, 0, 1)
        files.calls.clear()
        producer.close()
        names = [f"{call.name} {call.path.rpartition('/')[0]}" for call in files.calls]
        assert names.index("sync topics/t/0") < names.index("write topics/__meta/0")


def test_who_loses_his_name_while_he_closes_leaves_no_note(files: FaultyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """His successor's messages were compacted meanwhile, and only the note that came before that tells of them."""
    with _unsynced(files) as bus:
        bus.create_topic("t", segment_bytes=300)
        first = bus.producer(name="n")
        _give(first, 0, 1)
        sync = Partition.sync

        def take_over(self: Partition, *args: Any, **options: Any) -> None:
            monkeypatch.setattr(Partition, "sync", sync)
            second = bus.producer(name="n")
            for one in range(2, 12):
                _give(second, one)
            bus.topic("t").truncate_before(0, 12)
            sync(self, *args, **options)

        monkeypatch.setattr(Partition, "sync", take_over)
        first.close()
        assert Partition.sync is sync
        with bus.producer(name="n") as third:
            assert third.last_sequence("t", 0) == 11
            assert _give(third, *range(12)) == list(range(12))


# -- preserve ----------------------------------------------------------------------------------------------------------


def test_nothing_is_noted_where_no_name_ever_wrote(bus: Bus) -> None:
    with bus.producer() as producer:
        producer.send("t", b"0").result(timeout=PATIENCE)
    bus.topic("t").alter(cleanup="compact")
    bus.maintain()
    assert bus._engine.registry.find("__meta") is None


def test_another_process_notes_down_what_goes_before_it_goes(files: FaultyFiles, bus: Bus) -> None:
    bus.topic("t").alter(segment_bytes=300)
    producer = bus.producer(name="n")
    for one in range(10):
        _give(producer, one)
    other = FaultyFiles(files.inner)
    with _open(other, sync="interval") as second:
        other.calls.clear()
        second.topic("t").truncate_before(0, 8)
        names = [f"{call.name} {call.path.rpartition('/')[0]}" for call in other.calls]
        noted = names.index("write topics/__meta/0")
        assert noted < names.index("sync topics/__meta/0", noted) < names.index("remove topics/t/0")
        assert second.topic("t").beginning_offsets() == {("t", 0): 8}
        with second.producer(name="n") as again:
            assert again.last_sequence("t", 0) == 9
            assert _give(again, *range(10)) == list(range(10))
    producer.close()


def test_what_cannot_be_noted_down_stays(files: FaultyFiles, bus: Bus) -> None:
    bus.topic("t").alter(segment_bytes=300)
    with bus.producer(name="n") as producer:
        for one in range(10):
            _give(producer, one)
        files.plan = Plan(
            1, errno.ENOSPC, lasting=True, looks_at=lambda c: c.name == "write" and c.path.startswith("topics/__meta")
        )
        with pytest.raises(errors.StorageError):
            bus.topic("t").truncate_before(0, 8)
        files.heal()
        assert len(logs_of(files.inner)) > 3  # type: ignore[arg-type]
    with bus.producer(name="n") as producer:
        assert _give(producer, *range(10)) == list(range(10))


# -- stops of the machine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_is_gone", [False, True])
def test_a_note_of_what_the_machine_lost_does_not_count(
    monkeypatch: pytest.MonkeyPatch, *, first_is_gone: bool
) -> None:
    monkeypatch.setattr(numbering, "_READ_MUCH", 0)
    inner = MemoryFiles()
    bus = _unsynced(FaultyFiles(inner))
    bus.create_topic("t", segment_bytes=300)
    producer = bus.producer(name="n")
    for one in range(4):
        _give(producer, one)
    bus.sync()
    if first_is_gone:
        bus.topic("t").truncate_before(0, 4)
    active = logs_of(inner)[-1]
    size = file_at(inner, active).size()
    names = set(logs_of(inner))
    for one in range(4, 8):
        _give(producer, one)
    producer = bus.producer(name="n")
    assert producer.last_sequence("t", 0) == 7  # which wrote a note
    bus._engine.meta.sync()
    kill(bus)
    file_at(inner, active).truncate(size)
    for lost in set(logs_of(inner)) - names:
        inner.remove(lost)
    for boot in (2, 3):
        bus = _open(FaultyFiles(inner, boot=boot))
        with bus.producer(name="n") as producer:
            assert producer.last_sequence("t", 0) == 3 if boot == 2 else 7
            assert _give(producer, *range(8)) == list(range(8))
        bus.close()


def test_names_are_known_after_a_clean_close_and_another_boot() -> None:
    inner = MemoryFiles()
    with _open(FaultyFiles(inner)) as bus:
        bus.create_topic("t")
        producer = bus.producer(name="n")
        _give(producer, 0, 5)
    for boot in (2, 3):
        with _open(FaultyFiles(inner, boot=boot)) as bus, bus.producer(name="n") as producer:
            assert producer.last_sequence("t", 0) == 5
            assert _give(producer, 0, 5) == [0, 1]


def test_a_log_that_cannot_be_read_is_no_log_without_sequences(bus: Bus) -> None:
    with bus.producer(name="n") as producer:
        for number in range(3):
            producer.send("t", b"%d" % number, partition=0).result(timeout=PATIENCE)
    files, meta = bus._engine.ctx.files, bus._engine.meta
    assert isinstance(files, FaultyFiles)
    assert isinstance(files.inner, MemoryFiles)
    [path] = logs_of(files.inner)
    file_at(files.inner, path).data[0] ^= 1
    meta.change(lambda log: meta.put(log, ("producer", "other"), 1))  # somebody had the name, and left no note
    with bus.producer(name="other") as other, pytest.raises(errors.CorruptionError, match="what sequences"):
        other.last_sequence("t", 0)
