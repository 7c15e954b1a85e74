"""A source ingested under a name by processes that are killed and started again, and processes that fight for a name.

The processes are this file, run as a script with an action's name; they talk to the test in lines.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import streamlite
from streamlite import Bus, Producer, TopicPartition, errors

MESSAGES = int(os.environ.get("STREAMLITE_INGEST", "3000"))
"""What the source has."""
KILLS = int(os.environ.get("STREAMLITE_KILLS", "4"))
"""So often the one who ingests is killed, if it does not come to an end before."""
SEED = int(os.environ.get("STREAMLITE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
PARTITIONS = 4
BLIND = 500
BLOCK = 200
"""Messages between two flushes, or in a transaction."""
PATIENCE = 60.0
NOTHING = "NoneType"

# --- the processes' side ------------------------------------------------------------------------------------------


def tell(*words: Any) -> None:
    print(json.dumps(words), flush=True)


def told() -> str:
    return sys.stdin.readline().strip()


def create(bus: Bus) -> None:
    """`t`; one that is compacted, where every message has a key of its own; one that forgets."""
    bus.topic("t", partitions=PARTITIONS)
    bus.topic("compacted", cleanup="compact", segment_bytes=5_000)
    bus.topic("forgetting", retention_bytes=10_000, segment_bytes=5_000)


def put(by: Any, number: int, passed: list[int]) -> None:
    """Message `number` of the source, to where it is not said to be stored."""
    value = b"%d" % number
    if number > passed[number % PARTITIONS]:
        by.send("t", value, partition=number % PARTITIONS, sequence=number)
    for at, topic in enumerate(("compacted", "forgetting"), PARTITIONS):
        if number > passed[at]:
            by.send(topic, value, key=value, sequence=number)


def ingest(directory: str, seed: str, count: str) -> None:
    """Go on with the source, from where the log says, or from well before without a look at what is there."""
    chance = random.Random(seed)
    with streamlite.open(directory) as bus, bus.producer(name="ingest") as producer:
        tell("ready")
        places = [*(("t", number) for number in range(PARTITIONS)), ("compacted", 0), ("forgetting", 0)]
        passed = [producer.last_sequence(*place) for place in places]
        passed = [-1 if last is None else last for last in passed]
        number = min(passed) + 1
        if chance.random() < 0.5:
            number = max(number - BLIND, 0)
            passed = [-1] * len(places)
        while number < int(count):
            block = range(number, min(number + BLOCK, int(count)))
            if chance.random() < 0.2:
                with producer.transaction() as tx:
                    for one in block:
                        put(tx, one, passed)
            else:
                for one in block:
                    put(producer, one, passed)
                producer.flush()
            number = block.stop
    tell("done")


def maintain(directory: str) -> None:
    """Retention and compaction, until killed."""
    with streamlite.open(directory) as bus:
        tell("ready")
        while True:
            bus.maintain()


def fight(directory: str, count: str) -> None:
    """Have the name, send by it, lose it, have it again, until the log is full."""
    with streamlite.open(directory) as bus:
        tell("ready")
        told()
        last, lives = -1, 0
        while last < int(count):
            producer = bus.producer(name="n", linger_ms=1)
            lives += 1
            epoch = producer._numbers.name.epoch  # type: ignore[union-attr]
            with suppress(errors.FencedError):
                for _ in range(5):
                    found = producer.last_sequence("t", 0)
                    last = -1 if found is None else found
                    for number in range(last + 1, last + 20):
                        producer.send("t", f"{epoch} {number}", partition=0, sequence=number)
            with suppress(errors.FencedError):
                producer.close()
        tell("done", lives)


def be_fenced(directory: str, how: str) -> None:
    """Have the name, and messages on their way, when it is taken."""
    from streamlite.files.local import LocalFile

    with streamlite.open(directory) as bus:
        producer = bus.producer(name="n", linger_ms=60_000)
        producer.send("t", "0", partition=0, sequence=0)
        producer.flush()
        whole = LocalFile.write

        def stop(self: Any, buffers: Any, position: int) -> None:
            if self.path.endswith(".log") and how != "staged":
                LocalFile.write = whole  # type: ignore[method-assign]
                if how == "after the write":
                    whole(self, buffers, position)
                tell("stopped")
                os.kill(os.getpid(), signal.SIGSTOP)
                if how == "after the write":
                    return
            whole(self, buffers, position)

        LocalFile.write = stop  # type: ignore[method-assign]
        late = [producer.send("t", f"{number}", partition=0, sequence=number) for number in (1, 2)]
        if how == "staged":
            tell("stopped")
            os.kill(os.getpid(), signal.SIGSTOP)
        found = [one.exception(timeout=PATIENCE) for one in late]
        late = []
        try:
            producer.send("t", "9", partition=0, sequence=9)
        except errors.FencedError as error:
            found.append(error)
        tell("found", [type(one).__name__ for one in found])
        with suppress(errors.FencedError):
            producer.close()


# --- the test's side ----------------------------------------------------------------------------------------------


class Child:
    """One of the processes."""

    def __init__(self, action: Callable[..., None], *words: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, action.__name__, *map(str, words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(streamlite.__file__).parents[1])},
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def line(self) -> list[Any]:
        found: list[Any] = json.loads(self.stdout.readline() or "null") or []
        return found

    def say(self) -> None:
        self.stdin.write("go\n")
        self.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children, and ends them all in the end."""
    children: list[Child] = []

    def start_one(action: Callable[..., None], *words: Any) -> Child:
        children.append(Child(action, *words))
        return children[-1]

    yield start_one
    for child in children:
        child.end()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "bus"


def values(bus: Bus, topic: str, partition: int = 0) -> list[int]:
    return [int(message.value) for message in bus.topic(topic).read(partition=partition)]


def test_a_source_is_ingested_once_however_often_the_process_is_killed(directory: Path, start: Start) -> None:
    print(f"STREAMLITE_SEED={SEED}")
    chance = random.Random(SEED)
    with streamlite.open(directory) as bus:
        create(bus)
        maintainer = start(maintain, directory)
        assert maintainer.line() == ["ready"]
        kills = 0
        while kills < KILLS:
            child = start(ingest, directory, chance.random(), MESSAGES)
            assert child.line() == ["ready"]
            try:
                child.process.wait(timeout=chance.uniform(0, 0.4) if kills else 0)
            except subprocess.TimeoutExpired:
                child.end()
                kills += 1
            else:
                break
        child = start(ingest, directory, chance.random(), MESSAGES)
        assert [child.line(), child.line()] == [["ready"], ["done"]]
        print(f"{kills} kills")
        assert kills
        for partition in range(PARTITIONS):
            assert values(bus, "t", partition) == list(range(partition, MESSAGES, PARTITIONS))
        assert maintainer.process.poll() is None
        maintainer.end()
        bus.maintain()
        assert values(bus, "compacted") == list(range(MESSAGES))
        kept = values(bus, "forgetting")
        assert kept == list(range(MESSAGES))[-len(kept) :]
        assert len(kept) < MESSAGES
        with bus.producer(name="ingest") as producer:
            assert producer.last_sequence("forgetting", 0) == MESSAGES - 1
            assert producer.last_sequence("compacted", 0) == MESSAGES - 1


def test_processes_that_fight_for_a_name_store_each_sequence_once(directory: Path, start: Start) -> None:
    count = 2000
    with streamlite.open(directory) as bus:
        bus.topic("t")
        fighters = [start(fight, directory, count) for _ in range(2)]
        assert [one.line() for one in fighters] == [["ready"]] * 2
        for one in fighters:
            one.say()
        found = [one.line() for one in fighters]
        assert [one[0] for one in found] == ["done"] * 2
        pairs = [tuple(map(int, message.value.split())) for message in bus.topic("t").read()]
    assert [number for _, number in pairs] == list(range(len(pairs)))
    assert len(pairs) > count
    epochs = [epoch for epoch, _ in pairs]
    assert epochs == sorted(epochs), "one that was fenced wrote after its successor"
    assert len(set(epochs)) > 2
    assert sum(lives for _, lives in found) >= len(set(epochs))


def _take_over(producer: Producer) -> None:
    offsets = [
        producer.send("t", f"{number}", partition=0, sequence=number).result(timeout=PATIENCE).offset
        for number in range(5)
    ]
    assert offsets == list(range(5))
    assert producer.last_sequence("t", 0) == 4


def test_what_a_stopped_one_had_staged_never_appears(directory: Path, start: Start) -> None:
    with streamlite.open(directory) as bus:
        bus.topic("t")
        child = start(be_fenced, directory, "staged")
        assert child.line() == ["stopped"]
        with bus.producer(name="n") as producer:
            assert producer.last_sequence("t", 0) == 0
            _take_over(producer)
            child.process.send_signal(signal.SIGCONT)
            assert child.line() == ["found", ["FencedError"] * 3]
            assert child.process.wait(timeout=PATIENCE) == 0
            assert producer.last_sequence("t", 0) == 4
        assert values(bus, "t") == [0, 1, 2, 3, 4]
        assert bus.topic("t").end_offsets() == {TopicPartition("t", 0): 5}


@pytest.mark.parametrize("how", ["before the write", "after the write"])
@pytest.mark.parametrize("killed", [False, True])
def test_one_that_is_stopped_in_its_append_is_waited_for(
    directory: Path, start: Start, how: str, *, killed: bool
) -> None:
    """It holds the partition's lock: who has the name now looks only after it is done, or dead."""
    with streamlite.open(directory) as bus:
        bus.topic("t")
        child = start(be_fenced, directory, how)
        assert child.line() == ["stopped"]
        with (
            streamlite.open(directory, lock_timeout=0.01) as hasty,
            hasty.producer(name="other") as other,
            pytest.raises(errors.LockTimeoutError),
        ):
            other.last_sequence("t", 0)
        with bus.producer(name="n") as producer:
            child.process.send_signal(signal.SIGKILL if killed else signal.SIGCONT)
            if not killed:
                found = child.line()
                assert found in (
                    ["found", [NOTHING, NOTHING, "FencedError"]],
                    ["found", [NOTHING, "FencedError", "FencedError"]],
                )
            _take_over(producer)
        assert values(bus, "t") == [0, 1, 2, 3, 4]


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
