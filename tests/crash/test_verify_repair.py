"""`verify` sees every kind of damage, `repair` puts it in order: what is left is right, in its place, and may grow.

A bus with everything in it (segments, a compacted topic, a transaction, a named producer, a group, a truncation) is
damaged at random, seeds in the test's name. Whatever was done to it: what verify calls whole has lost nothing; after
the repair nothing is damaged, every message that is read is one that was written, at its offset, no offset is given out
twice, and writing goes on.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import streamlite
from streamlite.errors import CorruptionError, FormatError, LockTimeoutError
from streamlite.repair import Action, repair
from streamlite.testing import Faults
from streamlite.verify import Report, verify

CASES = 60
Content = dict[tuple[str, int, int], bytes | None]


def make(root: Path) -> None:
    with streamlite.open(root, sync="always") as bus:
        plain = bus.topic("plain", partitions=2, segment_bytes=3000)
        compacted = bus.topic("compacted", cleanup="compact", segment_bytes=2000)
        with bus.producer(name="writer") as producer:
            for number in range(60):
                producer.send(plain, b"%d" % number * 20, partition=number % 2).result(10)
                producer.send(compacted, b"v%d" % number * 10, key=b"k%d" % (number % 5)).result(10)
        consumer = bus.consumer("plain", group="readers", auto_commit=False)
        consumer.poll(timeout=10)
        with bus.producer() as producer, producer.transaction(consumer) as transaction:
            for number in range(10):
                transaction.send(plain, b"of a transaction %d" % number, partition=number % 2)
        consumer.close()
        bus.maintain()
        plain.truncate_before(0, 3)


def content(root: Path) -> tuple[Content, dict[streamlite.TopicPartition, int]]:
    with streamlite.open(root) as bus:
        topics = [bus.topic(name) for name in bus.topics()]
        found = {(m.topic, m.partition, m.offset): m.value for topic in topics for m in topic.read()}
        ends = {tp: end for topic in topics for tp, end in topic.end_offsets().items()}
    return found, ends


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound") / "bus"
    make(root)
    return root


@pytest.fixture(scope="module")
def written(
    sound: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Content, dict[streamlite.TopicPartition, int]]:
    copy = tmp_path_factory.mktemp("written") / "bus"
    shutil.copytree(sound, copy)
    return content(copy)


@pytest.fixture
def bus(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "bus"))


def damage(path: Path, chance: random.Random) -> str:
    """Do something to a file; what."""
    how = chance.choice(["flip", "flip", "cut", "remove", "zero", "append"])
    data = bytearray(path.read_bytes())
    if how == "remove" or not data:
        path.unlink()
        return "remove"
    at = chance.randrange(len(data))
    if how == "flip":
        data[at] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "zero":
        data[at : at + 50] = bytes(len(data[at : at + 50]))
    else:
        data += chance.randbytes(chance.randrange(1, 300))
    path.write_bytes(data)
    return how


@pytest.mark.parametrize("seed", range(CASES))
def test_whatever_was_damaged_what_is_left_is_right(
    seed: int, bus: Path, written: tuple[Content, dict[streamlite.TopicPartition, int]]
) -> None:
    chance = random.Random(seed)
    files = sorted(path for path in bus.rglob("*") if path.is_file())
    done = {path: damage(path, chance) for path in chance.sample(files, chance.choice([1, 1, 1, 2, 3]))}
    names = {path.relative_to(bus).as_posix() for path in done}
    before, ends = written
    try:
        report = verify(bus)
    except FormatError:
        assert "bus.json" in names  # without it, or of another format, it is no bus
        return
    result = repair(bus)
    assert result.after.ok, (done, result.after.findings)
    assert result.done is not report.ok
    found, ends_now = content(bus)
    if report.ok:
        assert not before.keys() - found.keys(), (done, report.findings)
    else:
        assert result.actions
    # Without its settings a topic is not compacted any more, without its beginning truncated messages are back.
    if not any(name.endswith(("topic.json", "start")) for name in names):
        invented = {place for place, value in found.items() if before.get(place, value) != value}
        assert not invented, done
        assert all(ends_now[tp] >= end for tp, end in ends.items()), done
    with streamlite.open(bus) as again, again.producer() as producer:
        assert (
            producer.send("plain", b"new", partition=0).result(10).offset
            >= ends_now[streamlite.TopicPartition("plain", 0)]
        )


def test_a_sound_bus_is_whole_and_left_alone(bus: Path) -> None:
    report = verify(bus)
    assert report.ok
    assert not report.findings
    assert {one.topic for one in report.partitions} == {"plain", "compacted", "__offsets", "__transactions", "__meta"}
    assert all(one.whole and one.messages and one.batches and one.bytes for one in report.partitions)
    files = {path: path.read_bytes() for path in bus.rglob("*") if path.is_file()}
    result = repair(bus)
    assert not result.done
    assert not result.actions
    assert {path: path.read_bytes() for path in bus.rglob("*") if path.is_file()} == files


def test_what_is_asked_and_refused_is_not_done(bus: Path) -> None:
    victim = next(iter(sorted(bus.glob("topics/plain/0/*.log"))))
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    asked: list[tuple[Report, list[Action]]] = []

    def refuse(report: Report, actions: list[Action]) -> bool:
        asked.append((report, actions))
        return False

    files = {path: path.read_bytes() for path in bus.rglob("*") if path.is_file()}
    result = repair(bus, refuse)
    assert not result.done
    [(report, actions)] = asked
    assert not report.ok
    assert any("lost" in action.what for action in actions)
    assert {path: path.read_bytes() for path in bus.rglob("*") if path.is_file()} == files


def test_what_is_replaced_is_kept_aside(bus: Path) -> None:
    victim = next(iter(sorted(bus.glob("topics/plain/0/*.log"))))
    data = b"x" + victim.read_bytes()[1:]
    victim.write_bytes(data)
    assert repair(bus).done
    assert [path.read_bytes() for path in bus.glob(f"quarantine/*/{victim.relative_to(bus)}")] == [data]


def test_a_bus_that_is_open_is_verified_and_not_repaired(bus: Path) -> None:
    with streamlite.open(bus) as held:
        with held.producer() as producer:
            producer.send("plain", b"more", partition=1).result(10)
        assert verify(bus).ok
        with pytest.raises(LockTimeoutError, match="open in some process"):
            repair(bus)


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for call in (verify, repair):
        with pytest.raises(FormatError):
            call(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_segment_that_was_removed_is_missed_by_its_reader(bus: Path) -> None:
    first = next(iter(sorted(bus.glob("topics/plain/0/*.log"))))
    first.unlink()
    with streamlite.open(bus) as opened, pytest.raises(CorruptionError, match="is gone"):
        list(opened.topic("plain").read(partition=0))


# -- what transactions wrote, and what tells of them -------------------------------------------------------------------


@pytest.fixture
def transacted(tmp_path: Path) -> Path:
    """Two topics written by transactions only, and a group's offsets."""
    root = tmp_path / "transacted"
    with streamlite.open(root) as bus:
        bus.topic("plain", partitions=2)
        bus.topic("audit")
        bus.topic("source", partitions=3)
        with bus.producer() as producer, bus.consumer("source", group="g", auto_commit=False) as consumer:
            for number in range(5):
                producer.send("source", b"x", partition=0).result(10)
                consumer.poll(timeout=10)
                with producer.transaction(consumer) as transaction:
                    transaction.send("plain", b"%d" % number, partition=number % 2)
                    transaction.send("audit", b"%d" % number)
    return root


@pytest.mark.parametrize("forgotten", [(), ("clean",), ("clean", "counters")])
@pytest.mark.parametrize("topic", ["plain", "audit", "__transactions", "__offsets"])
def test_a_topic_whose_settings_are_lost_keeps_what_it_holds(
    transacted: Path, topic: str, forgotten: tuple[str, ...]
) -> None:
    before, ends = content(transacted)
    for name in forgotten:
        (transacted / name).unlink()
    (transacted / "topics" / topic / "topic.json").unlink()
    result = repair(transacted)
    assert result.after.ok
    assert content(transacted) == (before, ends)
    with streamlite.open(transacted) as bus:
        assert bus.group("g").committed == {streamlite.TopicPartition("source", 0): 5}


def test_a_damaged_log_of_records_keeps_nobody_from_closing(tmp_path: Path) -> None:
    faults = Faults(tmp_path / "bus")
    bus = faults.open()
    bus.topic("plain")
    producer = bus.producer()
    for number in range(5):
        with producer.transaction() as transaction:
            transaction.send("plain", b"%d" % number)
    faults.crash()
    [log] = (tmp_path / "bus").glob("topics/__transactions/0/*.log")
    data = bytearray(log.read_bytes())
    data[200] ^= 1
    log.write_bytes(data)
    with streamlite.open(tmp_path / "bus") as again:
        assert list(again.topic("plain").read()) is not None
        with again.producer() as producer:
            producer.send("plain", b"new").result(10)
    assert verify(tmp_path / "bus").ok


def test_damage_in_the_records_of_names_is_told_as_such(tmp_path: Path) -> None:
    with streamlite.open(tmp_path / "bus", sync="always") as bus:
        bus.topic("plain")
        for name in ("a", "b"):
            with bus.producer(name=name) as producer:
                producer.send("plain", b"x", partition=0).result(10)
    [log] = (tmp_path / "bus").glob("topics/__meta/0/*.log")
    data = bytearray(log.read_bytes())
    data[60] ^= 1
    log.write_bytes(data)
    with streamlite.open(tmp_path / "bus") as bus, pytest.raises(CorruptionError, match="__meta"):
        bus.producer(name="a")


def test_what_stands_behind_damage_can_be_read(tmp_path: Path) -> None:
    with streamlite.open(tmp_path / "bus", sync="always") as bus:
        bus.topic("plain")
        with bus.producer() as producer:
            for number in range(20):
                producer.send("plain", b"%d" % number * 20).result(10)
    [log] = (tmp_path / "bus").glob("topics/plain/0/*.log")
    data = bytearray(log.read_bytes())
    data[data.index(b"5" * 20)] ^= 1
    log.write_bytes(data)
    with streamlite.open(tmp_path / "bus") as bus:
        topic = bus.topic("plain")
        with pytest.raises(CorruptionError, match="seeking past"):
            list(topic.read())
        assert [message.offset for message in topic.read(partition=0, start=6)] == list(range(6, 20))
