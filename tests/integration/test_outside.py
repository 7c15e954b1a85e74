"""Exactly-once into SQLite: workers that are killed anywhere, and one that went on after it was replaced.

The workers are this file, run as a script. They say in lines how far they are, and the test kills them at lines that a
seed chooses (printed with a failure; `STREAMLITE_OUTSIDE_SEED` runs it again). A kill comes when the line was read, so
the worker is at that line or somewhere after it. The table takes a message any number of times: what was done twice
shows.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import streamlite
from streamlite import Bus, Consumer, Message, TopicPartition, errors
from streamlite.dbapi import OffsetStore

PATIENCE = 60.0
"""Seconds after which what should have come counts as missing."""

PARTITIONS = 3
KILLS = 20
AT_ONCE = 30
"""Messages of one partition that are sent before each kill, so that it meets a worker with work."""
EACH = KILLS * AT_ONCE
COUNT = PARTITIONS * EACH
MOST = 7
"""Messages of one transaction: small, so that a kill meets many different ones."""

TP = TopicPartition("t", 0)


def connect(database: str | Path) -> sqlite3.Connection:
    """SQLite, patient with the other worker's transaction; it syncs nothing, since no machine dies here."""
    connection = sqlite3.connect(database, timeout=PATIENCE)
    connection.execute("PRAGMA synchronous = OFF")
    return connection


# --- the workers' side --------------------------------------------------------------------------------------------


def tell(word: str) -> None:
    """A line for the test."""
    print(word, flush=True)


def insert(connection: sqlite3.Connection, message: Message) -> None:
    connection.execute("INSERT INTO done VALUES (?, ?, ?)", (message.partition, message.offset, message.value.decode()))


def with_store(connection: sqlite3.Connection, consumer: Consumer, store: OffsetStore) -> None:
    """One poll, one transaction."""
    messages = consumer.poll(timeout=0.05, max_messages=MOST)
    try:
        with connection, store.saving(consumer, messages):
            for message in messages:
                insert(connection, message)
                tell("row")
        if messages:
            tell("committed")
    except errors.FencedError:
        tell("fenced")
        store.restore(consumer)


def by_bus(connection: sqlite3.Connection, consumer: Consumer, store: OffsetStore) -> None:
    """What the store is compared with: the group's own commits, which are no part of the transaction."""
    messages = consumer.poll(timeout=0.05, max_messages=MOST)
    with connection:
        for message in messages:
            insert(connection, message)
            tell("row")
    if messages:
        tell("committed")
        sys.stdin.readline()  # the moment that counts: done, and not committed
    consumer.commit()


STEPS = {"with_store": with_store, "by_bus": by_bus}


def work(directory: str, database: str, group: str, step: str) -> None:
    """Process messages until as many rows are there as messages; `group`: "" for a consumer without one."""
    with streamlite.open(directory, sync="never") as bus, closing(connect(database)) as connection:
        store = OffsetStore(connection, group="g")
        options = {"group": group, "auto_commit": False} if group else {}
        if step == "with_store":
            options["on_assign"] = store.restore
        with bus.consumer("t", **options) as consumer:
            consumer.wait_assigned(PATIENCE)
            tell("ready")
            while connection.execute("SELECT count(*) FROM done").fetchone()[0] < COUNT:
                STEPS[step](connection, consumer, store)


def go_on_late(directory: str, database: str, rows: str) -> None:
    """Be given messages, hang until told, then process them as if nothing had been; and go on from there."""
    with streamlite.open(directory) as bus, closing(connect(database)) as connection:
        store = OffsetStore(connection, group="g")
        with bus.consumer(
            "t", group="g", auto_commit=False, max_poll_interval_ms=50, on_assign=store.restore
        ) as consumer:
            if rows == "rows":
                with connection:
                    store.save(dict.fromkeys(consumer.assignment(), 0))
            messages = consumer.poll(timeout=PATIENCE, max_messages=MOST)
            tell("hanging")
            sys.stdin.readline()
            try:
                with connection, store.saving(consumer, messages):
                    for message in messages:
                        insert(connection, message)
            except errors.FencedError:
                tell("fenced")
                store.restore(consumer)
            else:
                tell("committed")
            sys.stdin.readline()
            consumer.wait_assigned(PATIENCE)
            while consumer.lag().get(TP):
                with_store(connection, consumer, store)
    tell("done")


# --- the test's side ----------------------------------------------------------------------------------------------


class Worker:
    """A process that runs one of the functions above."""

    def __init__(self, action: Callable[..., None], *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, action.__name__, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(streamlite.__file__).parents[1])},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self.errors = ""
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def line(self) -> str:
        """Its next line; "" when it has ended."""
        try:
            return self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError("a worker says nothing") from None

    def forget(self) -> None:
        """Its lines up to now."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._lines.get_nowait()

    def line_at(self, count: int) -> None:
        """Wait until it has said so many lines more."""
        for _ in range(count):
            assert self.line(), f"a worker is gone ({self.process.wait()}): {self.errors}"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Wait until it has ended by itself."""
        while self.line():
            pass
        assert self.process.wait(PATIENCE) == 0, self.errors

    def kill(self) -> None:
        """SIGKILL; nothing where it has ended."""
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


Start = Callable[..., Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers, and ends them all in the end."""
    workers: list[Worker] = []

    def start_one(action: Callable[..., None], *words: object) -> Worker:
        workers.append(Worker(action, *words))
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.kill()


@pytest.fixture
def rng() -> random.Random:
    """Says its seed, which pytest shows with a failure."""
    seed = int(os.environ.get("STREAMLITE_OUTSIDE_SEED", random.randrange(1 << 32)))
    print(f"STREAMLITE_OUTSIDE_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A bus with an empty topic, and a database with the tables."""
    directory, database = tmp_path / "bus", tmp_path / "db"
    with streamlite.open(directory) as bus:
        bus.topic("t", partitions=PARTITIONS)
    with closing(connect(database)) as connection, connection:
        OffsetStore(connection, group="g").create()
        connection.execute("CREATE TABLE done (partition_number, message_offset, value)")
    return directory, database


def send(bus: Bus, start: int, stop: int) -> None:
    """Send these messages of each partition."""
    with bus.producer() as producer:
        for partition in range(PARTITIONS):
            values = [f"{partition}-{number}" for number in range(start, stop)]
            producer.send_many("t", values, partition=partition).result(PATIENCE)


def faults(database: Path) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The messages that are missing, and those that were done twice, as `(partition, offset)`."""
    with closing(connect(database)) as connection:
        found = connection.execute("SELECT partition_number, message_offset, value FROM done").fetchall()
    assert all(value == f"{partition}-{offset}" for partition, offset, value in found)
    times = dict.fromkeys(((p, o) for p in range(PARTITIONS) for o in range(EACH)), 0)
    for partition, offset, _ in found:
        times[partition, offset] += 1
    return [at for at, count in times.items() if not count], [at for at, count in times.items() if count > 1]


@pytest.mark.parametrize(("workers", "group"), [(1, ""), (2, "g")], ids=["alone", "a group of two"])
def test_killed_anywhere_each_message_is_done_once(
    places: tuple[Path, Path], start: Start, rng: random.Random, workers: int, group: str
) -> None:
    running = [start(work, *places, group, "with_store") for _ in range(workers)]
    for worker in running:
        worker.line_at(1)
    with streamlite.open(places[0]) as bus:
        for number in range(KILLS):
            at = rng.randrange(workers)
            running[at].forget()
            send(bus, number * AT_ONCE, (number + 1) * AT_ONCE)
            running[at].line_at(rng.randrange(1, AT_ONCE))  # it has a partition, and so that much to say
            running[at].kill()
            running[at] = start(work, *places, group, "with_store")
            if number < KILLS - 1:
                running[at].line_at(1)
        for worker in running:
            worker.end()
    assert faults(places[1]) == ([], [])
    with closing(connect(places[1])) as connection:
        stored = connection.execute("SELECT partition_number, next_offset FROM streamlite_offsets").fetchall()
    assert sorted(stored) == [(partition, EACH) for partition in range(PARTITIONS)]


def test_without_it_a_kill_has_messages_done_twice(places: tuple[Path, Path], start: Start) -> None:
    """The group's own commits are at-least-once; were nothing found here, the tests above could not fail."""
    with streamlite.open(places[0]) as bus:
        send(bus, 0, EACH)
    worker = start(work, *places, "g", "by_bus")
    while worker.line() != "committed":
        pass
    worker.kill()
    worker = start(work, *places, "g", "by_bus")
    while worker.line() != "committed":
        pass
    missing, twice = faults(places[1])
    assert missing
    assert len(twice) == MOST


@pytest.mark.parametrize("late", [True, False], ids=["after its successor", "before its successor"])
@pytest.mark.parametrize("rows", ["rows", "none"])
def test_one_that_was_replaced_does_nothing_twice(
    places: tuple[Path, Path], start: Start, rows: str, late: bool
) -> None:
    with streamlite.open(places[0]) as bus, closing(connect(places[1])) as connection:
        send(bus, 0, EACH)
        hung = start(go_on_late, *places, rows)
        assert hung.line() == "hanging"
        store = OffsetStore(connection, group="g")
        with bus.consumer("t", group="g", auto_commit=False, on_assign=store.restore) as consumer:
            assert len(consumer.wait_assigned(PATIENCE)) == PARTITIONS  # all that the other had
            messages = consumer.poll(max_messages=COUNT)
            refused = False
            if not late:
                hung.go()
                assert hung.line() == "committed"
            try:
                with connection, store.saving(consumer, messages):
                    for message in messages:
                        insert(connection, message)
            except errors.FencedError:
                refused = True
                store.restore(consumer)
            if late:
                hung.go()
                assert hung.line() == "fenced"
            assert refused is not late
            while any(consumer.lag().values()):
                with_store(connection, consumer, store)
        hung.go()
        hung.end()
    assert faults(places[1]) == ([], [])


if __name__ == "__main__":
    actions = {one.__name__: one for one in (work, go_on_late)}
    actions[sys.argv[1]](*sys.argv[2:])
