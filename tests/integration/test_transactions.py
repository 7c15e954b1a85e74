"""Transactions by processes that are killed at random, and by threads that want each other's locks.

STREAMLITE_KILLS=200 makes it the full run: 20,000 messages; so does `python -m tests.integration.exactly_once`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import streamlite
from streamlite import LockTimeoutError, TopicPartition
from tests.integration.exactly_once import TREE, read_process_write, transfers

PATIENCE = 60.0
IN_MEMORY = Path("/dev/shm")
"""Where five hundred times an fsync costs nothing: what it is good for is not shown here."""
KILLS = int(os.environ.get("STREAMLITE_KILLS", "20"))
SEED = random.SystemRandom().randrange(1 << 32)


def test_each_input_is_once_in_each_output_though_workers_are_killed(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    print(read_process_write(tmp_path, 100 * KILLS, KILLS, SEED))


def test_no_transfer_is_ever_seen_in_part_though_processes_are_killed(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    print(transfers(tmp_path, KILLS * 2 // 3, SEED))


@pytest.mark.parametrize("buses", [1, 3])
def test_transactions_over_random_partitions_never_wait_for_each_other_for_ever(tmp_path: Path, buses: int) -> None:
    """Threads with producers and groups of their own, some of one bus, in whatever order they name their partitions."""
    topics = ["Zeta", "alpha", "_under", "9", "beta.1"]
    opened = [streamlite.open(tmp_path / "bus", sync="never", lock_timeout=PATIENCE) for _ in range(buses)]
    for topic in topics:
        opened[0].create_topic(topic, partitions=3)
    with opened[0].producer() as producer:
        for number in range(200):
            producer.send("alpha", b"read me", partition=number % 3)
    each, failures = 40, list[BaseException]()

    def transact(place: int) -> None:
        rng, bus = random.Random(f"{SEED} {place}"), opened[place % buses]
        groups = ["Z", "a", "_", "0"]
        consumers = [bus.consumer("alpha", group=f"{name}{place}", auto_commit=False) for name in groups]
        with bus.producer() as producer:
            for number in range(each):
                places = [(topic, partition) for topic in topics for partition in range(3)]
                given = rng.choice([None, *consumers])
                with producer.transaction(given) as tx:
                    for topic, partition in rng.sample(places, rng.randint(1, len(places))):
                        tx.send(topic, b"%d-%d" % (place, number), partition=partition)
                    for consumer in rng.sample(consumers, rng.randint(0, len(consumers))):
                        consumer.poll(max_messages=1)
                        if consumer is not given:
                            tx.commit_offsets(consumer)
                    if rng.random() < 0.1:
                        tx.abort()
                if rng.random() < 0.3:
                    rng.choice(consumers).commit()
        for consumer in consumers:
            consumer.close()

    def run(place: int) -> None:
        try:
            transact(place)
        except BaseException as error:  # noqa: BLE001 - told of below
            failures.append(error)

    over = threading.Event()

    def maintain() -> None:
        while not over.is_set():
            opened[-1].maintain()
            opened[-1].sync()

    running = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(6)]
    maintaining = threading.Thread(target=maintain, daemon=True)
    for thread in (*running, maintaining):
        thread.start()
    for thread in running:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive(), f"seed {SEED}: they wait for each other"
    over.set()
    maintaining.join(PATIENCE)
    assert failures == [], SEED
    for bus in opened:
        bus.close()


def test_a_lock_that_stays_taken_leaves_nothing_half_done_whoever_else_goes_on(tmp_path: Path) -> None:
    """Threads that give up soon, over the same partitions as others that do not: all whole, in every partition."""
    hasty = streamlite.open(tmp_path / "bus", sync="never", lock_timeout=0.0005)
    patient = streamlite.open(tmp_path / "bus", sync="never", lock_timeout=PATIENCE)
    patient.create_topic("t", partitions=4)
    with patient.producer() as producer, producer.transaction() as tx:
        for partition in range(4):
            tx.send("t", b"first", partition=partition)
    done: set[bytes] = {b"first"}
    refused: set[bytes] = set()
    failures: list[BaseException] = []

    def transact(bus: streamlite.Bus, place: int) -> None:
        with bus.producer() as producer:
            for number in range(150):
                value = b"%d-%d" % (place, number)
                try:
                    with producer.transaction() as tx:
                        for partition in (3, 1, 0, 2):
                            tx.send("t", value, partition=partition)
                except LockTimeoutError:
                    refused.add(value)
                else:
                    done.add(value)

    def run(place: int) -> None:
        try:
            transact(hasty if place % 2 else patient, place)
        except BaseException as error:  # noqa: BLE001 - told of below
            failures.append(error)

    running = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(PATIENCE)
    assert failures == []
    assert refused
    logs = [[message.value for message in patient.topic("t").read(partition=at)] for at in range(4)]
    assert logs[0] == logs[1] == logs[2] == logs[3]
    assert sorted(logs[0]) == sorted(done)
    hasty.close()
    patient.close()


MOST = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
import streamlite
from streamlite.errors import TransactionError
from streamlite.transaction import TRANSACTION_PARTITIONS_MAX as MOST
with streamlite.open(sys.argv[1]) as bus, bus.producer() as producer:
    bus.create_topic("t", partitions=MOST + 1)
    bus.create_topic("in")
    producer.send("in", b"1").result()
    with bus.consumer("in", group="g", auto_commit=False) as consumer, producer.transaction(consumer) as tx:
        consumer.poll(timeout=10)
        for partition in range(MOST):
            tx.send("t", b"v", partition=partition)
        try:
            tx.send("t", b"x", partition=MOST)
        except TransactionError:
            print("refused")
    print(sum(bus.topic("t").end_offsets().values()), bus.group("g").committed)
"""


def test_as_many_partitions_as_stated_fit_the_usual_limit_of_descriptors(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else tmp_path) as directory:
        ran = subprocess.run(
            [sys.executable, "-c", MOST, directory],
            cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    committed = {TopicPartition("in", 0): 1}
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["refused", f"500 {committed}"]


def test_a_child_of_a_fork_commits_nothing_and_the_parent_goes_on(tmp_path: Path) -> None:
    with streamlite.open(tmp_path / "bus") as bus, bus.producer() as producer:
        bus.create_topic("t")
        bus.create_topic("in")
        producer.send("in", b"1").result(timeout=PATIENCE)
        with bus.consumer("in", group="g", auto_commit=False) as consumer:
            with producer.transaction(consumer) as tx:
                assert consumer.poll(timeout=PATIENCE)
                tx.send("t", b"1")
                child = os.fork()
                if not child:
                    status = 1
                    try:
                        tx.__exit__(None, None, None)
                    except streamlite.ForkedError:
                        status = 0
                    finally:
                        os._exit(status)
                _, status = os.waitpid(child, 0)
                assert os.waitstatus_to_exitcode(status) == 0
                assert list(bus.topic("t").read()) == []
            assert [message.value for message in bus.topic("t").read()] == [b"1"]
            assert consumer.committed(TopicPartition("in", 0)) == 1
