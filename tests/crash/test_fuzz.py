"""Fault 15 of the promises: bytes that no release of streamlite wrote, with checksums that hold.

Whatever is in the files of a bus, opening it, reading it in every way there is, joining its groups, writing to it,
looking it through and repairing it end within a time, and give what they should or an error of the hierarchy: never
another exception, in no thread, and never more memory than the limits of the format allow.

`case(seed)` changes whole directories, a few hundred times; `case_bytes(seed)` gives changed bytes to each of the
parsers alone, which takes a hundredth of the time for each.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Final, cast
from unittest import mock

import pytest

from streamlite import Bus, TopicPartition, errors
from streamlite.batch import decode
from streamlite.counters import Counters
from streamlite.files.memory import MemoryFiles
from streamlite.format import BadBatch, unpack_entries, unpack_header, verify
from streamlite.group import _unpacked
from streamlite.group_state import decode as decode_state
from streamlite.group_state import encode as encode_state
from streamlite.marks import Identity, read_clean, read_epoch, read_identity
from streamlite.repair import repair
from streamlite.testing.clock import VirtualClock
from streamlite.verify import verify as verify_bus
from tests.crash.faulty import FaultyFiles, clone, kill, open_over, walk_files
from tests.crash.mutating import CHANGES, blindly, change_index, change_segment, mutate
from tests.crash.watching import Logged, ends_within, watched

SEED = int(os.environ.get("STREAMLITE_SEED", "0"))
CASES: Final = int(os.environ.get("STREAMLITE_FUZZ", "8"))
CASES_OF_BYTES: Final = int(os.environ.get("STREAMLITE_FUZZ_BYTES", "5"))
INPUTS: Final = 200
"""Directories that one case changes."""
BYTES: Final = 4_000
"""Inputs that one case gives to the parsers."""
HANG_S: Final = 20.0
"""Of one input, which takes hundredths of that."""
MEMORY_MAX: Final = 64 << 20
"""What reading a directory of some kilobytes may take: a batch of 131,072 messages, decoded, is the most there is."""


# -- directories to be changed -----------------------------------------------------------------------------------------


def _opened(files: MemoryFiles, boot: int = 1) -> Bus:
    return open_over(FaultyFiles(files, boot=boot), sync="never", clock=VirtualClock(), lock_timeout=0.05)


def _plain(bus: Bus) -> None:
    topic = bus.create_topic("t", segment_bytes=700)
    with bus.producer() as producer:
        for number in range(6):
            values = [b"%d" % (10 * number + one) for one in range(5)]
            headers = [[("h", b"1"), ("n", None)]] + [None] * 4 if number % 2 else None
            times = [1000 * number + one // 2 for one in range(5)]
            keys = [b"k", None, b"l", b"k", b""]
            producer.send_many("t", values, keys=keys, headers=headers, timestamps=times).result(timeout=5)
    topic.truncate_before(0, 3)


def _compressed(bus: Bus) -> None:
    for name in ("lz4", "zstd"):
        bus.create_topic(name, compression=name)
        with bus.producer() as producer:
            for number in range(3):
                producer.send_many(name, [b"%d" % number * 300] * 5, keys=[b"a"] * 5).result(timeout=5)


def _compacted(bus: Bus) -> None:
    bus.create_topic("c", cleanup="compact", segment_bytes=500)
    with bus.producer() as producer:
        for number in range(12):
            value = None if number % 5 == 4 else b"v%d" % number
            producer.send("c", value, key=b"k%d" % (number % 4)).result(timeout=5)
    bus.maintain()


def _named(bus: Bus) -> None:
    bus.create_topic("t")
    producer = bus.producer(name="n")
    for sequence in (0, 1, 5, 9):
        producer.send("t", b"s", partition=0, sequence=sequence)
    producer.flush()
    producer.close()
    with bus.producer(name="counting") as other:
        other.send("t", b"s", partition=0)


def _grouped(bus: Bus) -> None:
    bus.create_topic("t", partitions=3)
    with bus.producer() as producer:
        for number in range(3):
            producer.send("t", b"v", partition=number).result(timeout=5)
    first = bus.consumer("t", group="g", auto_commit=False)
    bus.consumer("t", group="g", member="static", auto_commit=False)
    for message in first.poll(timeout=1.0):
        first.commit(message)


def _transacted(bus: Bus) -> None:
    _grouped(bus)
    with bus.producer(name="n") as producer, bus.consumer("t", group="h", auto_commit=False) as consumer:
        consumer.poll(timeout=1.0)
        with producer.transaction(consumer) as tx:
            tx.send("t", b"x", partition=0)
            tx.send("t", b"y", partition=1)


CONTENTS: Final = (_plain, _compressed, _compacted, _named, _grouped, _transacted)


@cache
def images() -> list[tuple[str, MemoryFiles, int]]:
    """Directories as a clean close, a killed process, and a stop of the machine leave them; the boot of who is next."""
    with ExitStack() as stack:
        for module in ("partition", "segment", "commit"):  # so that every batch has an entry in an index
            stack.enter_context(mock.patch(f"streamlite.{module}.INDEX_INTERVAL_BYTES", 1))
        return [_image(content, how) for content in CONTENTS for how in ("closed", "killed", "stopped")]


def _image(content: Callable[[Bus], object], how: str) -> tuple[str, MemoryFiles, int]:
    files = MemoryFiles()
    bus = _opened(files)
    content(bus)
    if how == "closed":
        bus.close()
    else:
        kill(bus)
    if how == "stopped":  # once, so that there is an epoch
        bus = _opened(files, boot=2)
        for name in bus.topics():
            list(bus.topic(name).read())
        kill(bus)
    return f"{content.__name__[1:]} {how}", files, 3 if how == "stopped" else 1


# -- what is done with one ---------------------------------------------------------------------------------------------


def exercise(files: MemoryFiles, boot: int) -> None:
    """Do with a bus what can be done; whatever is no error of the hierarchy comes out."""
    declared = suppress(errors.StreamliteError)
    with declared:
        bus = _opened(files, boot)
        try:
            for step in (_read_topics, _look_at_groups, _consume, _consume_in_group, _produce, _administer):
                with declared:
                    step(bus)
            bus.close()
        finally:
            if not bus._engine._closed:
                bus._engine.abandon()


def _names(bus: Bus) -> Iterator[str]:
    for name in bus.topics():
        with suppress(errors.StreamliteError):
            bus.topic(name)
            yield name


def _read_topics(bus: Bus) -> None:
    for name in _names(bus):
        topic = bus.topic(name)
        for read in (
            lambda topic=topic: [_check(message) for message in topic.read()],
            lambda topic=topic: list(topic.read(since_ms=1002, until_ms=4001)),
            lambda topic=topic: list(topic.read(partition=0, start=7)),
            lambda topic=topic: list(topic.read_columns()),
            topic.end_offsets,
            topic.beginning_offsets,
            lambda topic=topic: topic.settings,
        ):
            with suppress(errors.StreamliteError):
                read()


def _check(message: Any) -> None:
    """Whatever was made of the bytes, the types are what the API says."""
    assert isinstance(message.offset, int), message
    assert isinstance(message.timestamp, int), message
    assert message.key is None or isinstance(message.key, bytes), message
    assert message.value is None or isinstance(message.value, bytes), message
    assert all(isinstance(name, str) and (value is None or isinstance(value, bytes)) for name, value in message.headers)


def _look_at_groups(bus: Bus) -> None:
    for name in bus.groups():
        with suppress(errors.StreamliteError):
            repr(bus.group(name))


def _consume(bus: Bus) -> None:
    for name in _names(bus):
        with suppress(errors.StreamliteError), bus.consumer(name) as consumer:
            tps = sorted(consumer.assignment())
            for _ in range(3):
                with suppress(errors.StreamliteError):
                    for message in consumer.poll(timeout=0.1, max_messages=10):
                        _check(message)
                with suppress(errors.StreamliteError):
                    consumer.seek(tps[0], 4, epoch=0)
                    consumer.poll_columns(timeout=0.1, max_messages=10)
            consumer.lag()
            consumer.offsets_for_times(dict.fromkeys(tps, 2001))


def _consume_in_group(bus: Bus) -> None:
    for group in ("g", "h"):
        with suppress(errors.StreamliteError), bus.consumer(*_names(bus), group=group, auto_commit=False) as consumer:
            for _ in range(3):
                with suppress(errors.StreamliteError):
                    consumer.poll(timeout=0.3, max_messages=10)
            with suppress(errors.StreamliteError):
                consumer.commit()
            consumer.committed(TopicPartition("t", 0))
            consumer.lag()


def _produce(bus: Bus) -> None:
    for options in ({}, {"name": "n"}):
        with suppress(errors.StreamliteError):
            producer = bus.producer(**options)
            for name in _names(bus):
                with suppress(errors.StreamliteError):
                    producer.last_sequence(name, 0) if options else None
                with suppress(errors.StreamliteError):
                    producer.send(name, b"new", key=b"k").result(timeout=5)
                with suppress(errors.StreamliteError), producer.transaction() as tx:
                    tx.send(name, b"new", key=b"k")
            with suppress(errors.StreamliteError):
                producer.close()


def _administer(bus: Bus) -> None:
    names = list(_names(bus))
    steps: list[Callable[[], object]] = [bus.maintain, bus.sync]
    if "t" in names:
        steps += [
            lambda: bus.reset_offsets("g", "t", to="earliest"),
            lambda: bus.reset_offsets("g", "t", timestamp_ms=2001),
            lambda: bus.topic("t").truncate_before(0, 1),
            lambda: bus.topic("t").alter(segment_bytes=1000),
            lambda: bus.topic("t").increase_partitions(5),
        ]
    steps += [lambda: bus.delete_group("g"), lambda: bus.create_topic("u")]
    steps += [lambda name=name: bus.delete_topic(name) for name in names]
    for step in steps:
        with suppress(errors.StreamliteError):
            step()


def look_through(files: MemoryFiles) -> None:
    """`verify`, which changes nothing, then `repair`, after which nothing is damaged."""
    seam = FaultyFiles(files)
    changed: list[object] = []
    seam.before_write = lambda path, data, position: changed.append(path)
    with mock.patch("streamlite.engine._files", return_value=seam), suppress(errors.StreamliteError):
        verify_bus("a directory")
        assert not changed, changed
        with mock.patch("streamlite.repair.LocalFiles", return_value=seam):
            repair("a directory")


# -- the parsers, alone ------------------------------------------------------------------------------------------------


def _read_segment(data: bytes) -> None:
    """As a reader does it: batch after batch, every column and every message."""
    at = 0
    while at < len(data):
        try:
            header = unpack_header(data, at)
            batch = decode(header, verify(header, data, at))
        except BadBatch:
            return
        assert len(batch.offsets) == len(batch.timestamps) == len(batch.keys) == len(batch.values) == header.count
        assert list(batch.offsets) == sorted(set(batch.offsets))
        assert not header.count or header.base_offset <= batch.offsets[0] <= batch.offsets[-1] < header.next_offset
        for message in batch.messages("t", 0, 0, 5):
            _check(message)
        at += header.total_bytes


def _read_index(data: bytes) -> None:
    entries = unpack_entries(data)
    assert all(later.follows(earlier) for earlier, later in pairwise(entries))


def _read_state(data: bytes) -> None:
    with suppress(ValueError):
        state = decode_state(_unpacked(data).state)
        repr(state)
        decode_state(encode_state(state))


def _as_file(path: str, read: Callable[[MemoryFiles], object]) -> Callable[[bytes], None]:
    """`read` from a directory in which the bytes are the file at `path`."""

    def reads(data: bytes) -> None:
        files = MemoryFiles()
        files.replace_file(path, data, sync=False)
        with suppress(errors.CorruptionError, errors.FormatError):
            read(files)

    return reads


def _read_clean(files: MemoryFiles) -> None:
    for slot, state in (read_clean(files, cast("Identity", SimpleNamespace(incarnation=mock.ANY))) or {}).items():
        assert slot >= 0
        Counters(MemoryFiles()).slot(slot % 512).store(state)


READERS: Final[dict[str, Callable[[bytes], None]]] = {
    ".log": _read_segment,
    ".index": _read_index,
    "state.0": _read_state,
    "state.1": _read_state,
    "clean": _as_file("clean", _read_clean),
    "epoch": _as_file("epoch", read_epoch),
    "bus.json": _as_file("bus.json", read_identity),
}
"""What reads a file whose name ends so."""


@cache
def _parts() -> list[tuple[str, Callable[[random.Random, bytes], bytes], Callable[[bytes], None], bytes]]:
    """Each kind of file of each directory: its path, what changes it, what reads it, and its bytes."""
    return [
        (f"{name}: {path}", change, READERS[end], bytes(file.data))
        for name, files, _ in images()
        for path, file in walk_files(files._tree)
        for end, change in CHANGES
        if file is not None and file.data and path.endswith(end) and end in READERS
    ]


def case_bytes(seed: int) -> int:
    """Gives `BYTES` changed files to what reads them; how many there were."""
    chance = random.Random(f"bytes {seed}")
    logs = [part for part in _parts() if part[2] is _read_segment]
    with ends_within(HANG_S):
        for number in range(BYTES):
            path, change, read, data = chance.choice(logs if number % 4 else _parts())
            changed = change(chance, data) if chance.random() < 0.9 else blindly(chance, data)
            try:
                read(changed)
            except BaseException as error:
                raise AssertionError(f"seed {seed}, input {number} ({path}): {error!r}") from error
    return BYTES


# -- whole directories -------------------------------------------------------------------------------------------------


def one_input(seed: int, number: int, logged: Logged) -> None:
    """Change one directory, and do with it what can be done."""
    chance = random.Random(f"fuzz {seed} {number}")
    name, image, boot = chance.choice(images())
    files = clone(image)
    said = [mutate(chance, files) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
    logged.clear()
    try:
        with ends_within(HANG_S):
            if chance.random() < 0.2:
                look_through(clone(files))
            exercise(files, boot)
        assert not logged.undeclared, logged.undeclared
    except BaseException as error:
        raise AssertionError(f"seed {seed}, input {number} ({name}): {'; '.join(said)}: {error!r}") from error


def case(seed: int) -> int:
    """Changes `INPUTS` directories and does with each what can be done; how many there were."""
    with watched() as logged:
        for number in range(INPUTS):
            one_input(seed, number, logged)
    return INPUTS


@pytest.mark.parametrize("seed", range(SEED, SEED + CASES))
def test_whatever_the_files_say_there_is_an_answer_or_a_declared_error(seed: int) -> None:
    assert case(seed)


@pytest.mark.parametrize("seed", range(SEED, SEED + CASES_OF_BYTES))
def test_whatever_bytes_a_parser_is_given_it_says_what_they_are(seed: int) -> None:
    assert case_bytes(seed)


def test_an_index_may_say_anything_and_costs_no_message() -> None:
    """It is a cache: seeks by offset and by time find what they find without it."""
    chance = random.Random(f"index {SEED}")
    for number in range(150):
        _, image, boot = images()[number % 3]  # of the plain topic
        files = clone(image)
        for path, file in walk_files(files._tree):
            if file is not None and path.endswith(".index") and path.startswith("topics/t/"):
                file.data[:] = change_index(chance, bytes(file.data))
        bus = _opened(files, boot)
        topic = bus.topic("t")
        found = list(topic.read())
        assert [(one.offset, one.value) for one in found] == [
            (at, b"%d" % (at // 5 * 10 + at % 5)) for at in range(3, 30)
        ]
        for one in found:
            assert next(topic.read(partition=0, start=one.offset)) == one, number
            assert list(topic.read(since_ms=one.timestamp)) == [m for m in found if m.timestamp >= one.timestamp]
        bus.close()


def test_what_is_changed_makes_sense_often_enough() -> None:
    """Or nothing behind the checks would ever be reached."""
    chance, whole = random.Random(1), 0
    for _, image, _ in images() * 5:
        for path, file in walk_files(image._tree):
            if file is not None and path.endswith(".log") and file.data:
                data = change_segment(chance, bytes(file.data))
                with suppress(BadBatch):
                    header = unpack_header(data)
                    decode(header, verify(header, data))
                    whole += data != file.data
    assert whole > 30


# -- memory ------------------------------------------------------------------------------------------------------------


def test_no_bytes_make_anybody_allocate_beyond_the_limits() -> None:
    """A sample of the same changed files, each of some kilobytes, with every allocation of Python counted."""
    chance = random.Random(f"memory {SEED}")
    with watched():
        tracemalloc.start()
        try:
            for _ in range(60):
                name, image, boot = chance.choice(images())
                files = clone(image)
                said = mutate(chance, files)
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                exercise(files, boot)
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak < MEMORY_MAX, (name, said, peak)
        finally:
            tracemalloc.stop()


BOMBS: Final = r"""
import resource, sys
from streamlite.batch import decode
from streamlite.format import FLAG_COMPACTED, BadBatch, BatchHeader
import lz4.frame, msgspec, zstandard

pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (300 << 20), resource.RLIM_INFINITY))
zeros = bytes(1 << 20)
small = zstandard.ZstdCompressor().compress(zeros)
lying = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(bytes(300)))
lying[6:8] = b"\xff\xff"
bombs = [
    (2, small), (1, lz4.frame.compress(zeros)), (2, bytes(lying)),
    (1, lz4.frame.compress(zeros, store_size=False)), (1, lz4.frame.compress(zeros, store_size=True)[:30]),
    (0, b"\x91\xdd\xff\xff\xff\xff"), (0, b"\x92\xc0\xdd\x7f\xff\xff\xff" + b"\xc0" * 50),
    (0, b"\x91\xc6\xff\xff\xff\xff"), (0, b"\x93\xc0\xc0\xdf\xff\xff\xff\xff"), (0, b"\x91" * 100_000),
    (0, b"\x94\xc0\xc0\xc0\x91" + b"\x91" * 100_000), (0, b"\x97" + b"\xc0" * 6 + b"\xdd\xff\xff\xff\xff"),
]
refused = 0
for compression, payload in bombs:
    for size in (len(payload), 1 << 20, (1 << 31) - 1):
        for count in (1, 1 << 17):
            header = BatchHeader(78, compression, 0, len(payload), size, count, count - 1, 0, 0, 0, 0, 0, 0, 0, -1, 0)
            try:
                decode(header, payload)
            except BadBatch:
                refused += 1
print(refused)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS holds on Linux")
def test_bombs_are_refused_within_a_limit_of_memory() -> None:
    pytest.importorskip("lz4.frame")
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 12 * 3 * 2
