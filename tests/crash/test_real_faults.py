"""Faults 5 and 6 of the promises on a real directory: a full disk, a limit of the system, files that are others.

The call that fails raises an error of the hierarchy; nothing half-written is seen, everything earlier can be read, and
once there is room (permission, a descriptor) the same bus goes on. A clean opening afterwards finds every message that
was acknowledged, none twice and none that was not sent. What background threads meet is logged, and ends nothing.

`case(seed)` is the full disk at random: a file system of a megabyte or, where none can be mounted, files that may not
grow.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

import streamlite
from streamlite import Bus, errors
from tests.crash.rooms import NOBODY, Room, another_user, descriptors_left, limited, room, why_no_room
from tests.crash.story import PATIENCE, Story
from tests.crash.watching import Logged, ends_within, watched

SEED = int(os.environ.get("STREAMLITE_SEED", "0"))
CASES: Final = int(os.environ.get("STREAMLITE_FULL_DISKS", "20"))
SYNCS: Final = ("never", "interval", "always")
HANG_S: Final = 60.0
PAGE: Final = 4096


@pytest.fixture(autouse=True)
def logged() -> Iterator[Logged]:
    with watched() as found, ends_within(HANG_S):
        yield found
        assert not found.undeclared, found.undeclared


def _open(path: Path, **options: Any) -> Bus:
    return streamlite.open(path, **{"sync": "never", "lock_timeout": 5.0, **options})


def _put(bus: Bus, *values: bytes, topic: str = "t", **options: Any) -> None:
    with bus.producer() as producer:
        for value in values:
            producer.send(topic, value, **options).result(timeout=PATIENCE)


def _values(bus: Bus, topic: str = "t") -> list[Any]:
    return [message.value for message in bus.topic(topic).read()]


# -- a full disk, at random --------------------------------------------------------------------------------------------


class FullDisk:
    """A file system of one's own that has no room now and then, for bytes or for files."""

    def __init__(self, chance: random.Random, stack: ExitStack) -> None:
        self._room = Room()
        stack.callback(self._room.close)
        self.path = self._room.path

    def fill(self, chance: random.Random) -> None:
        left = chance.choice([0, 0, 1, 2, 3, 5, 10, 40])
        self._room.limit(**{chance.choice(["pages_left", "pages_left", "inodes_left"]): left})

    def empty(self) -> None:
        self._room.free()


class ShortFiles:
    """Where nothing can be mounted: files that may not grow beyond some size (EFBIG)."""

    def __init__(self, chance: random.Random, stack: ExitStack) -> None:
        self.path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        stack.callback(self.empty)

    def fill(self, chance: random.Random) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (chance.choice([500, 5_000, 20_000, 80_000]), self._before[1]))

    def empty(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def case(seed: int) -> int:
    """Uses a bus on a disk that is full at times; how many calls were made, the failed ones among them."""
    chance = random.Random(f"full disk {seed}")
    story = Story()
    with ExitStack() as stack:
        disk = (ShortFiles if why_no_room() else FullDisk)(chance, stack)
        user = _User(chance, story, disk)
        try:
            user.run()
        except BaseException:
            print(f"seed {seed}: steps {story.steps}, {story.moment()}, failed {user.failed}")
            if story.bus is not None:
                story.bus._engine.abandon()
            raise
    return len(story.steps)


class _User:
    """Does this and that with a bus, and compares what is there with what must be."""

    def __init__(self, chance: random.Random, story: Story, disk: FullDisk | ShortFiles) -> None:
        self._chance = chance
        self._story = story
        self._disk = disk
        self._options = {"sync": chance.choice(SYNCS), "sync_interval_ms": 5}
        self._made = self._committed = 0
        self.failed: list[str] = []

    def run(self) -> None:
        story, chance = self._story, self._chance
        story.bus = _open(self._disk.path / "bus", **self._options)
        settings = {
            "segment_bytes": chance.choice([2_000, 20_000, 1 << 20]),
            "compression": chance.choice(["none", "lz4"]),
        }
        story.create("t", 2, **settings)
        story.create("c", 1, cleanup="compact", **settings)
        for _ in range(chance.randrange(3, 7)):
            if chance.random() < 0.8:
                self._disk.fill(chance)
            for _ in range(chance.randrange(1, 8)):
                self._try(chance.choice(self._steps()))
            self._disk.empty()
            story.check(story.bus, story.moment())
            story.add_to_every_partition(b"there is room again")
            if chance.random() < 0.3:
                self._reopen()
        self._reopen()
        story.bus.close()

    def _steps(self) -> list[Callable[[], object]]:
        story, chance = self._story, self._chance
        topics = story.worlds[-1].topics
        topic = chance.choice(list(topics))
        partition, keep = chance.randrange(len(topics[topic])), min(2, len(topics[topic][0].sent))
        values = [chance.randbytes(chance.choice([10, 1_000, 3_000, 30_000])) for _ in range(chance.choice([1, 2, 10]))]
        steps = [lambda: story.send(topic, *values, partition=partition, key=b"k")] * 6
        steps += [
            lambda: story.send_keyed("t", [(b"%d" % at, value) for at, value in enumerate(values)]),
            lambda: story.transact({(topic, partition): values}, abort=True),
            lambda: story.truncate(topic, 0, keep),
            lambda: story.compact("c"),
            story.sync,
            self._create,
            self._delete,
        ]
        # Above all that was ever committed, or it could not be told whether a transaction's is.
        offset = self._committed + 1
        if offset <= len(topics["t"][0].sent):
            self._committed = offset
            steps += [
                lambda: story.commit("t", "g", {0: offset}),
                lambda: story.transact({(topic, partition): values, ("c", 0): [b"x"]}, "t", "g", {0: offset}),
            ]
        return steps

    def _create(self) -> None:
        self._made += 1
        self._story.create(f"more{self._made}", self._chance.randrange(1, 4))

    def _delete(self) -> None:
        names = [name for name in self._story.worlds[-1].topics if name.startswith("more")]
        if names:
            self._story.delete(self._chance.choice(names))

    def _try(self, step: Callable[[], object]) -> None:
        """A step that does what it should, or fails because the disk is full; then what is there is looked at."""
        story = self._story
        assert story.bus is not None
        try:
            step()
        except errors.StorageError as error:
            if error.errno not in _FULL:
                raise
            self.failed.append(f"{story.steps[-1]}: {error}")
            what = story.steps[-1]
            moment = story.moment()
            if what.startswith("send ") and "by key" not in what:
                moment = moment._replace(begun=moment.done)  # of one batch nothing is there
            story.check(story.bus, moment, groups=False)
            self._disk.empty()
            story.check(story.bus, story.moment())
            story.add_to_every_partition(b"after a failure")
            self._disk.fill(self._chance)

    def _reopen(self) -> None:
        story = self._story
        assert story.bus is not None
        story.bus.close()
        story.bus = _open(self._disk.path / "bus", **self._options)
        story.check(story.bus, story.moment())


@pytest.mark.parametrize("seed", range(SEED, SEED + CASES))
def test_on_a_disk_that_is_full_at_times(seed: int) -> None:
    assert case(seed)


# -- a full disk, step by step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", SYNCS)
def test_a_send_that_a_full_disk_cuts_off_leaves_nothing(sync: str) -> None:
    with room() as disk:
        bus = _open(disk.path / "bus", sync=sync)
        bus.create_topic("t")
        stored = [b"%d" % number * 700 for number in range(3)]
        _put(bus, *stored)
        disk.limit(pages_left=1)
        with pytest.raises(errors.StorageError, match="make room") as caught:
            _put(bus, *[b"x" * 3_000] * 3)
        assert caught.value.errno == errno.ENOSPC
        kept = _values(bus)[len(stored) :]
        assert kept == [b"x" * 3_000] * len(kept)
        assert len(kept) < 3
        stored += kept
        assert _values(bus) == stored
        disk.free()
        _put(bus, b"after")
        bus.close()
        bus = _open(disk.path / "bus", sync=sync)
        assert _values(bus) == [*stored, b"after"]
        bus.close()


def test_where_no_more_files_can_be_made_those_that_are_there_go_on() -> None:
    with room() as disk:
        bus = _open(disk.path / "bus", sync="always")
        for name in ("t", "u"):
            bus.create_topic(name, segment_bytes=5_000)
            _put(bus, b"a" * 100, topic=name)
        disk.limit(inodes_left=1)
        for call in (lambda: bus.create_topic("v"), lambda: bus.consumer("t", group="g")):
            with pytest.raises(errors.StorageError) as caught:
                call()
            assert caught.value.errno == errno.ENOSPC
        disk.limit(inodes_left=0)
        _put(bus, b"b" * 100)
        with pytest.raises(errors.StorageError):
            _put(bus, b"c" * 6_000)  # it wants a segment of its own
        assert _values(bus) == [b"a" * 100, b"b" * 100]
        assert bus.topics() == ["t", "u"]
        bus.delete_topic("u")
        _put(bus, b"c" * 6_000)
        bus.close()
        bus = _open(disk.path / "bus")
        assert _values(bus) == [b"a" * 100, b"b" * 100, b"c" * 6_000]
        bus.close()


@pytest.mark.parametrize("sync", SYNCS)
def test_a_file_that_may_not_grow_fails_the_send_and_no_more(sync: str, tmp_path: Path) -> None:
    bus = _open(tmp_path / "bus", sync=sync)
    bus.create_topic("t")
    _put(bus, b"a" * 50_000)
    with limited(resource.RLIMIT_FSIZE, 100_000):
        with pytest.raises(errors.StorageError) as caught:
            _put(bus, *[b"b" * 20_000] * 5)
        assert caught.value.errno == errno.EFBIG
        kept = _values(bus)[1:]
        assert kept == [b"b" * 20_000] * 2
    _put(bus, b"after")
    bus.close()
    bus = _open(tmp_path / "bus")
    assert _values(bus) == [b"a" * 50_000, *kept, b"after"]
    bus.close()


# -- descriptors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", SYNCS)
def test_without_descriptors_calls_fail_and_the_bus_goes_on(sync: str, tmp_path: Path) -> None:
    """However many are left: opening, sending, rolling, joining a group, taking part in a transaction, and reading."""
    _warm_up()  # an import needs a descriptor, too
    path, stored, failures = tmp_path / "bus", [], 0
    with _open(path, sync=sync) as bus:
        bus.create_topic("t", segment_bytes=3_000)
    for left in range(0, 24, 2):
        value = b"%d" % left * 1_000
        with descriptors_left(left):
            try:
                bus = _open(path, sync=sync)
            except errors.StorageError as error:
                if error.errno != errno.EMFILE:
                    raise
                failures += 1
                continue
            done, failed = _use(bus, value)
            failures += failed
        stored += done
        _put(bus, b"again")
        stored.append(b"again")
        with bus.consumer("t", group="g") as consumer:
            assert consumer.wait_assigned(PATIENCE)
        assert _values(bus) == stored
        bus.close()
    assert failures > 5
    bus = _open(path)
    assert _values(bus) == stored
    bus.close()


def _use(bus: Bus, value: bytes) -> tuple[list[bytes], int]:
    """Use a bus in a few ways; what was stored, and how many of them failed for want of a descriptor."""
    stored: list[bytes] = []
    failed = 0

    def consume() -> None:
        with bus.consumer("t", group="g", auto_commit=False) as consumer:
            consumer.poll(timeout=0.01)
            consumer.commit()

    def transact() -> None:
        with bus.producer() as producer, producer.transaction() as tx:
            tx.send("t", value)
        stored.append(value)

    def send() -> None:
        _put(bus, value)
        stored.append(value)

    for step in (send, send, consume, transact, lambda: _values(bus), bus.sync, send):
        try:
            step()
        except errors.StorageError as error:
            if error.errno != errno.EMFILE:
                raise
            failed += 1
    return stored, failed


def test_a_syncer_without_descriptors_says_so_and_goes_on(tmp_path: Path, logged: Logged) -> None:
    bus = _open(tmp_path / "bus", sync="interval", sync_interval_ms=1)
    bus.create_topic("t")
    _put(bus, b"a")
    syncer = bus._engine.syncer
    assert syncer is not None
    syncer.worker.stop()
    bus._engine.ctx.handles._open.clear()
    _put(bus, b"b")
    bus._engine.ctx.handles._open.clear()
    with descriptors_left(0):
        syncer.worker._call()
    assert logged.said
    syncer.worker._call()
    _put(bus, b"c")
    syncer.worker._call()
    [partition] = bus._engine.registry.get("t").partitions
    assert not partition.unsynced
    assert _values(bus) == [b"a", b"b", b"c"]
    bus.close()


# -- directories -------------------------------------------------------------------------------------------------------


@contextmanager
def _in_reach() -> Iterator[Path]:
    """A directory that `another_user` can reach, and owns where there is one."""
    place = Path(tempfile.mkdtemp(prefix="streamlite-"))
    try:
        if os.geteuid() == 0:
            os.chown(place, NOBODY, NOBODY)
        yield place
    finally:
        for directory, _, _ in os.walk(place):
            os.chmod(directory, 0o700)
        shutil.rmtree(place)


def _warm_up() -> None:
    """Have everything imported that the calls below need: another user may not read where it lies."""
    for found in pkgutil.iter_modules(streamlite.__path__):
        if not found.ispkg:
            importlib.import_module(f"streamlite.{found.name}")
    with streamlite.open(":memory:") as bus:
        bus.create_topic("t")
        with bus.producer(name="n") as producer, producer.transaction() as tx:
            tx.send("t", b"x", key=b"k")
        with bus.consumer("t", group="g") as consumer:
            consumer.poll(timeout=0.01)
        bus.maintain()
    with suppress(errors.StreamliteError):
        streamlite.open("/dev/null")


@pytest.mark.parametrize("sync", SYNCS)
def test_a_directory_that_became_read_only_can_be_read_and_goes_on_later(sync: str) -> None:
    _warm_up()
    with _in_reach() as place, another_user():
        bus = _open(place / "bus", sync=sync)
        bus.create_topic("t", segment_bytes=3_000)
        _put(bus, b"a" * 100)
        directories = [Path(at) for at, _, _ in os.walk(place / "bus")]
        for directory in directories:
            directory.chmod(0o500)
        with pytest.raises(errors.StorageError) as caught:
            _put(bus, *[b"b" * 1_000] * 10)  # the active segment has room for some of them
        assert caught.value.errno == errno.EACCES
        stored = [b"a" * 100, b"b" * 1_000, b"b" * 1_000]
        calls: list[Callable[[], object]] = [
            lambda: bus.create_topic("u"),
            lambda: bus.delete_topic("t"),
            lambda: bus.consumer("t", group="g"),
            lambda: bus.producer(name="n"),
            lambda: bus.topic("t").truncate_before(0, 1),
            lambda: bus.topic("t").alter(segment_bytes=4_000),
        ]
        for call in calls:
            with pytest.raises(errors.StorageError):
                call()
        assert bus.topics() == ["t"]
        assert _values(bus) == stored
        for directory in directories:
            directory.chmod(0o700)
        _put(bus, b"after")
        bus.close()
        bus = _open(place / "bus", sync=sync)
        assert _values(bus) == [*stored, b"after"]
        bus.close()


@pytest.mark.parametrize("sync", SYNCS)
def test_a_directory_that_was_deleted_under_a_bus_gives_errors_and_no_end_without_end(
    sync: str, tmp_path: Path, logged: Logged
) -> None:
    bus = _open(tmp_path / "bus", sync=sync)
    bus.create_topic("t", segment_bytes=3_000)
    _put(bus, b"a")
    consumer = bus.consumer("t", group="g", auto_commit=False)
    shutil.rmtree(tmp_path / "bus")
    declared = suppress(errors.StreamliteError)
    with pytest.raises(errors.StorageError):
        _put(bus, *[b"b" * 1_000] * 10)  # the active segment is still open, the next one cannot be made
    calls: list[Callable[[], object]] = [
        lambda: _values(bus),
        lambda: consumer.poll(timeout=0.01),
        consumer.commit,
        lambda: bus.create_topic("u"),
        lambda: bus.delete_topic("t"),
        lambda: bus.group("g"),
        bus.topics,
        bus.sync,
        bus.maintain,
        consumer.close,
        bus.close,
    ]
    for call in calls:
        with declared:
            call()
    assert logged.said
    with _open(tmp_path / "bus") as bus:
        assert bus.topics() == []


# -- files that are something else -------------------------------------------------------------------------------------


def _to_link(path: Path, beside: Path) -> None:
    path.unlink()
    path.symlink_to(beside)


def _to_directory(path: Path, beside: Path) -> None:
    path.unlink()
    path.mkdir()


def _to_fifo(path: Path, beside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _to_unreadable(path: Path, beside: Path) -> None:
    path.chmod(0)


REPLACED: Final = (_to_link, _to_directory, _to_fifo, _to_unreadable)


def _make(path: Path, *, closed: bool) -> None:
    """A bus with one of each file; `closed`: cleanly, otherwise as a process leaves it that was killed."""
    bus = _open(path)
    bus.create_topic("t", segment_bytes=300)
    _put(bus, *[b"%d" % number * 100 for number in range(4)])
    with bus.producer(name="n") as producer:
        producer.send("t", b"of n", partition=0).result(timeout=PATIENCE)
    bus.topic("t").truncate_before(0, 1)
    with bus.consumer("t", group="g") as consumer:
        consumer.commit({streamlite.TopicPartition("t", 0): 2})
    if closed:
        bus.close()
    else:
        bus._engine.abandon()


def _look(bus: Bus) -> list[Any]:
    """What is in the topic; everything else is tried, and may be refused."""
    found: list[Any] = []
    calls: list[Callable[[], object]] = [
        lambda: found.extend(_values(bus)),
        lambda: _put(bus, b"new", partition=0),
        lambda: bus.group("g"),
        lambda: bus.consumer("t", group="g").close(),
        lambda: bus.producer(name="n").close(),
        lambda: bus.topic("t").truncate_before(0, 2),
        bus.maintain,
        bus.sync,
    ]
    for call in calls:
        with suppress(errors.StreamliteError):
            call()
    return found


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("replace", REPLACED, ids=lambda replace: replace.__name__[4:])
def test_a_file_that_is_something_else_is_refused_and_not_followed(
    replace: Callable[[Path, Path], None], closed: bool
) -> None:
    _warm_up()
    wanted = [b"%d" % number * 100 for number in range(1, 4)] + [b"of n"]
    with _in_reach() as place, another_user():
        _make(place / "made", closed=closed)
        names = sorted(path.relative_to(place / "made") for path in (place / "made").rglob("*") if path.is_file())
        assert len(names) > 20
        for number, name in enumerate(names):
            copy, beside = place / f"{number}", place / f"beside{number}"
            shutil.copytree(place / "made", copy)
            shutil.copy(copy / name, beside)
            before = beside.read_bytes()
            replace(copy / name, beside)
            with ends_within(HANG_S), suppress(errors.StreamliteError):
                bus = _open(copy)
                try:
                    found = _look(bus)
                    assert found == wanted[: len(found)], (name, found)
                    bus.close()
                finally:
                    bus._engine.abandon()
            assert beside.read_bytes() == before, name
            assert stat.S_ISREG(beside.lstat().st_mode), name


@pytest.mark.parametrize("replace", REPLACED, ids=lambda replace: replace.__name__[4:])
def test_a_file_that_became_something_else_under_a_bus_is_refused(replace: Callable[[Path, Path], None]) -> None:
    """Its descriptors left the cache meanwhile, as those of other partitions do when there are many."""
    _warm_up()
    with _in_reach() as place, another_user():
        for number, pattern in enumerate(["topics/t/0/*.log", "topics/t/0/lock", "topics/t/topic.json"]):
            bus, beside = _open(place / f"{number}"), place / f"beside{number}"
            bus.create_topic("t", segment_bytes=5_000)
            _put(bus, b"a" * 100)
            [path] = (place / f"{number}").glob(pattern)
            shutil.copy(path, beside)
            replace(path, beside)
            handles = bus._engine.ctx.handles
            handles.close()
            [partition] = bus._engine.registry.get("t").partitions
            partition._lock_kept = partition._file_kept = lambda: None
            before = beside.read_bytes()
            calls: list[Callable[[], object]] = [
                lambda bus=bus: _put(bus, b"b" * 100),
                lambda bus=bus: bus.topic("t").alter(segment_bytes=4_000),
                lambda bus=bus: bus.create_topic("u"),
            ]
            refused = 0
            for call in calls:
                try:
                    call()
                except errors.StorageError:
                    refused += 1
            # A topic's file is replaced by a rename whatever it is, but for a directory; a FIFO can be locked, too.
            assert refused or pattern.endswith("topic.json") or (replace is _to_fifo and pattern.endswith("lock"))
            with suppress(errors.StreamliteError):
                assert _values(bus)[:1] == [b"a" * 100]
            with suppress(errors.StreamliteError):
                bus.close()
            bus._engine.abandon()
            assert beside.read_bytes() == before, pattern


# -- in a process of their own -----------------------------------------------------------------------------------------


def _child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=HANG_S, check=False
    )


WITHOUT_MEMORY: Final = """
import resource, sys, streamlite
from streamlite import errors

path, sync, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
bus = streamlite.open(path, sync=sync, lock_timeout=5.0)
topic = bus.create_topic("t", segment_bytes=3 << 20, compression=sys.argv[4])
producer = bus.producer(linger_ms=0)
consumer = bus.consumer("t", group="g", auto_commit=False)
producer.send("t", b"first").result(10)
print("0 5 0", flush=True)
pages = int(open("/proc/self/statm").read().split()[0])
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + most, before[1]))
failed = 0
for number in range(8):
    size = 1000 + number % 8 * (most // 2)  # at the end several times what there is, however much is free inside
    for step in ("send", "many", "transact", "read", "poll"):
        try:
            if step == "send":
                sent = producer.send("t", bytes(size)).result(10)
                print(sent.offset, size, 0, flush=True)
            elif step == "many":
                for one in producer.send_many("t", [bytes(size // 10)] * 10).result(10):
                    print(one.offset, size // 10, 0, flush=True)
            elif step == "transact":
                with producer.transaction() as tx:
                    tx.send("t", bytes(size))
            elif step == "read":
                sum(len(message.value) for message in topic.read())
            else:
                consumer.poll(timeout=0.001)
                consumer.commit()
        except (MemoryError, errors.StreamliteError) as error:
            failed += 1
resource.setrlimit(resource.RLIMIT_AS, before)
sent = producer.send("t", b"after").result(10)
print(sent.offset, 5, failed, flush=True)
try:
    consumer.close()
    producer.close()
except (MemoryError, errors.StreamliteError):
    pass
bus.close()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS holds on Linux")
@pytest.mark.parametrize(("sync", "compression"), [("never", "none"), ("interval", "zstd"), ("always", "lz4")])
def test_without_memory_calls_fail_and_nothing_that_was_acknowledged_is_lost(
    sync: str, compression: str, tmp_path: Path
) -> None:
    done = _child(WITHOUT_MEMORY, tmp_path / "bus", sync, 8 << 20, compression)
    assert done.returncode == 0, done.stderr
    said = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert said[-1][2], "nothing failed: there was enough memory"
    with _open(tmp_path / "bus") as bus:
        found = {message.offset: len(message.value or b"") for message in bus.topic("t").read()}
    for offset, size, _ in said:
        assert found[offset] == size
    assert max(found) == said[-1][0]


SHRINKING: Final = """
import os, sys, streamlite
path, which = sys.argv[1:]
bus = streamlite.open(path, sync="never")
bus.create_topic("t")
consumer = bus.consumer("t", group="g", auto_commit=False)
consumer.poll(timeout=0.01)
producer = bus.producer()
for number in range(5):
    producer.send("t", b"%d" % number).result(10)
import pathlib
[victim] = pathlib.Path(path).glob(which)
os.truncate(victim, 0)
for number in range(5, 8):
    producer.send("t", b"%d" % number).result(10)
    print(number, flush=True)
    consumer.poll(timeout=0.01)
    consumer.commit()
"""


@pytest.mark.parametrize("which", ["counters", "groups/g/control", "groups/g/members/*.asked", "wake/words"])
def test_a_mapped_file_that_is_cut_under_a_bus_costs_a_process_and_no_message(which: str, tmp_path: Path) -> None:
    """The kernel ends who touches a page that is not there any more (SIGBUS); Python cannot handle that."""
    done = _child(SHRINKING, tmp_path / "bus", which)
    assert done.returncode in (0, -signal.SIGBUS), done.stderr
    acknowledged = 5 + len(done.stdout.split())
    with _open(tmp_path / "bus") as bus:
        found = _values(bus)
        assert found[:acknowledged] == [b"%d" % number for number in range(acknowledged)]
        assert len(found) <= acknowledged + 1
        _put(bus, b"after")
        with bus.consumer("t", group="g") as consumer:
            assert consumer.wait_assigned(PATIENCE)
