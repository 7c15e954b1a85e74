"""Transactions by processes that are killed at random: read-process-write, and transfers between accounts.

    python -m tests.integration.exactly_once                          # both, 20,000 messages and 200 kills each
    python -m tests.integration.exactly_once --messages 2000 --kills 20 --seed 7

Read-process-write: two processes of one group read `in` and send what they read to two topics, in one transaction with
their offsets. When all is over each input is in each output once, and the messages of a key stand in their order.

Transfers: four processes move money between eight accounts, a partition each, in transactions over two to five of them.
Whoever reads all accounts twice finds every transfer of the first reading whole in the second: the sum never changes.

A process is killed by SIGKILL: by itself, at the n-th write, sync or publication, or from outside, at any time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

import streamlite
from streamlite import FencedError, LockTimeoutError

TREE = Path(__file__).parents[2]
OUTPUTS = ("out-a", "out-b")
KEYS = 50
ACCOUNTS = 8
DEPOSIT = 1_000
PATIENCE = 60.0


class Task(msgspec.Struct, kw_only=True):
    """What a process does."""

    name: str
    location: str
    does: str
    seed: int
    sync: str
    dies_at: int = 0
    """At which of its calls it kills itself; 0 for never."""


# -- the processes -----------------------------------------------------------------------------------------------------


class Changed(Exception):
    """Now and then a process changes its mind: its transaction is aborted."""


def die_at(number: int, rng: random.Random) -> None:
    """Kill this process at its n-th write, sync or publication from now, before or after it is done."""
    from streamlite import commit
    from streamlite.files.local import LocalFile
    from streamlite.partition import Partition

    calls = itertools.count(1)  # one call of C, as threads take part: one of them gets the n-th

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            now = next(calls) == number
            if now and rng.random() < 0.5:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run

    for owner, name in ((LocalFile, "write"), (LocalFile, "sync"), (Partition, "publish"), (commit._Tail, "publish")):
        setattr(owner, name, deadly(getattr(owner, name)))


def _end_with_the_controller() -> None:
    """Nobody else would end what it left behind."""
    os.read(0, 1)
    os._exit(1)


def _work(task: Task) -> None:
    threading.Thread(target=_end_with_the_controller, daemon=True).start()
    rng = random.Random(task.seed)
    if task.dies_at:
        die_at(task.dies_at, rng)
    with streamlite.open(task.location, sync=task.sync, sync_interval_ms=20) as bus:
        os.write(1, b"begun\n")
        (_process if task.does == "process" else _transfer)(bus, task, rng)


def _process(bus: streamlite.Bus, task: Task, rng: random.Random) -> None:
    with bus.producer() as producer, bus.consumer("in", group="g", auto_commit=False) as consumer:
        while True:
            try:
                with producer.transaction(consumer) as tx:
                    for _ in range(rng.choice((1, 1, 3))):
                        found = consumer.poll(timeout=0.1, max_messages=rng.randint(1, 30))
                        for message in found:
                            for topic in OUTPUTS:
                                tx.send(topic, message.value, key=message.key)
                    if rng.random() < 0.05:
                        raise Changed
            except (Changed, FencedError, LockTimeoutError):
                continue


def _transfer(bus: streamlite.Bus, task: Task, rng: random.Random) -> None:
    with bus.producer() as producer:
        number = 0
        while True:
            number += 1
            accounts = rng.sample(range(ACCOUNTS), rng.randint(2, 5))
            amounts = [rng.randint(1, 50) for _ in accounts[1:]]
            amounts.append(-sum(amounts))
            try:
                with producer.transaction() as tx:
                    for account, amount in zip(accounts, amounts, strict=True):
                        value = [f"{task.name}-{number}", amount, sorted(accounts)]
                        tx.send("accounts", msgspec.json.encode(value), partition=account)
                    if rng.random() < 0.1:
                        raise Changed
            except (Changed, LockTimeoutError):
                continue


# -- the controller ----------------------------------------------------------------------------------------------------


class Crew:
    """Processes that do the same, each replaced by another when it was killed."""

    def __init__(self, location: Path, does: str, sync: str, rng: random.Random) -> None:
        self._location = location
        self._does = does
        self._sync = sync
        self._rng = rng
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._started = 0
        self.kills = 0

    def start(self, *, mortal: bool = True) -> None:
        self._started += 1
        rng = self._rng
        task = Task(
            name=f"p{self._started}",
            location=str(self._location),
            does=self._does,
            seed=rng.getrandbits(32),
            sync=self._sync,
            dies_at=rng.randint(1, 80) if mortal and rng.random() < 0.7 else 0,
        )
        self._running[task.name] = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.exactly_once", "--task", msgspec.json.encode(task)],
            cwd=TREE,
            stdin=subprocess.PIPE,  # its end is theirs
            stdout=subprocess.PIPE,
        )

    def kill_one(self) -> None:
        """Let a process that has begun be killed by itself, or soon from outside; another takes its place."""
        name = self._rng.choice(sorted(self._running))
        process = self._running[name]
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(self._rng.uniform(0.0, 0.25))
        except subprocess.TimeoutExpired:
            process.kill()
        self._reap(name)
        self.kills += 1
        self.start()

    def relieve(self) -> None:
        """Nobody is killed any more: other processes finish what there is."""
        count = len(self._running)
        self.kill_all()
        for _ in range(count):
            self.start(mortal=False)

    def kill_all(self) -> None:
        for process in self._running.values():
            process.kill()
        for name in list(self._running):
            self._reap(name)

    def _reap(self, name: str) -> None:
        process = self._running.pop(name)
        status = process.wait(PATIENCE)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        assert status == -signal.SIGKILL, f"{name} ended with status {status}"


@contextmanager
def _crew(count: int, location: Path, does: str, sync: str, rng: random.Random) -> Iterator[Crew]:
    crew = Crew(location, does, sync, rng)
    try:
        for _ in range(count):
            crew.start()
        yield crew
    finally:
        crew.kill_all()


def read_process_write(directory: Path, messages: int, kills: int, seed: int, sync: str = "interval") -> str:
    """Run it; what was found, or an `AssertionError`."""
    rng = random.Random(seed)
    location = directory / "bus"
    with streamlite.open(location, sync=sync, lock_timeout=PATIENCE) as bus:
        bus.create_topic("in", partitions=5)
        for topic, partitions in zip(OUTPUTS, (4, 3), strict=True):
            bus.create_topic(topic, partitions=partitions, segment_bytes=20_000)
        sent = 0
        with bus.producer() as producer, _crew(2, location, "process", sync, rng) as crew:
            while sent < messages or crew.kills < kills:
                more = min(messages - sent, -(-messages // max(kills, 1)))
                for number in range(sent, sent + more):
                    producer.send("in", b"%d" % number, key=b"k%d" % (number % KEYS))
                producer.flush()
                sent += more
                if crew.kills < kills:
                    crew.kill_one()
            crew.relieve()
            _wait_until(lambda: sum(bus.group("g").committed.values()) >= messages)
        _check_outputs(bus, messages)
    with streamlite.open(location) as bus:  # nobody had it open any more
        _check_outputs(bus, messages)
    return f"{messages:,} messages, {crew.kills} kills: each input once in each output, in order"


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def _check_outputs(bus: streamlite.Bus, messages: int) -> None:
    assert sum(bus.group("g").committed.values()) == messages
    for topic in OUTPUTS:
        counted: Counter[bytes] = Counter()
        last: dict[bytes, int] = defaultdict(lambda: -1)
        for message in bus.topic(topic).read():
            counted[message.value] += 1
            assert last[message.key] < int(message.value), f"{message.value!r} follows {last[message.key]} in {topic}"
            last[message.key] = int(message.value)
        twice = [value for value, count in counted.items() if count > 1]
        missing = [number for number in range(messages) if not counted[b"%d" % number]]
        assert not twice, f"{len(twice)} inputs are in {topic} more than once: {twice[:5]}"
        assert not missing, f"{len(missing)} inputs are not in {topic}: {missing[:5]}"
        assert len(counted) == messages


def transfers(directory: Path, kills: int, seed: int, sync: str = "interval") -> str:
    """Run it; what was found, or an `AssertionError`."""
    rng = random.Random(seed)
    location = directory / "bus"
    with streamlite.open(location, sync=sync, lock_timeout=PATIENCE) as bus:
        accounts = bus.create_topic("accounts", partitions=ACCOUNTS, segment_bytes=50_000)
        with bus.producer() as producer, producer.transaction() as tx:
            for account in range(ACCOUNTS):
                value = ["deposit", DEPOSIT, list(range(ACCOUNTS))]
                tx.send(accounts, msgspec.json.encode(value), partition=account)
        readings = 0
        books = _Books()
        with _crew(4, location, "transfer", sync, rng) as crew:
            while crew.kills < kills:
                crew.kill_one()
                books.check(bus)
                readings += 1
        books.check(bus)
        assert not books.open, f"all are dead, and of these a part is there: {books.open}"
    with streamlite.open(location) as bus:
        again = _Books()
        again.check(bus)
        assert (again.whole, again.open) == (books.whole, {})
    count = books.whole - 1
    assert count > kills, "there were fewer transfers than kills"
    return f"{count:,} transfers, {crew.kills} kills, {readings} readings: the sum is always {ACCOUNTS * DEPOSIT:,}"


class _Books:
    """All accounts as they are read one after the other, each from where the last reading ended."""

    def __init__(self) -> None:
        self._next = [0] * ACCOUNTS
        self._total = 0
        self.whole = 0
        self.open: dict[str, dict[int, int]] = defaultdict(dict)
        """Of transfers of which a part was read: the amounts by account."""

    def check(self, bus: streamlite.Bus) -> None:
        """Whatever one reading saw a part of is whole in the next, and nobody has lost or won anything."""
        self._read(bus)
        begun = set(self.open)
        self._read(bus)
        left = {transfer: self.open[transfer] for transfer in begun & self.open.keys()}
        assert not left, f"only a part is there: {left}"
        assert self._total == ACCOUNTS * DEPOSIT

    def _read(self, bus: streamlite.Bus) -> None:
        for account in range(ACCOUNTS):
            for message in bus.topic("accounts").read(partition=account, start=self._next[account]):
                assert message.offset == self._next[account]
                self._next[account] += 1
                transfer, amount, accounts = msgspec.json.decode(message.value)
                amounts = self.open[transfer]
                assert account not in amounts, f"{transfer} is in account {account} twice"
                amounts[account] = amount
                if len(amounts) == len(accounts):
                    assert sorted(amounts) == accounts
                    self._total += sum(amounts.values())
                    self.whole += 1
                    del self.open[transfer]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--sync", choices=("never", "interval", "always"), default="interval")
    parser.add_argument("--only", choices=("process", "transfer"))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        _work(msgspec.json.decode(given.task, type=Task))
        return 0
    print(f"seed {given.seed}, sync {given.sync}", flush=True)
    with tempfile.TemporaryDirectory() as found:
        directory = Path(found)
        if given.only != "transfer":
            (directory / "a").mkdir()
            print(read_process_write(directory / "a", given.messages, given.kills, given.seed, given.sync), flush=True)
        if given.only != "process":
            (directory / "b").mkdir()
            print(transfers(directory / "b", given.kills, given.seed, given.sync), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
