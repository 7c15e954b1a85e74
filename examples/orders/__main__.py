"""Starts the shop, has some of it crash, and checks what came of it: `python -m examples.orders`.

One of two stock workers and one of two shipping workers are killed (SIGKILL) at random moments and started again, and
a shipping worker is stopped (SIGSTOP) until the group has given its partitions away, and continued.
The exit status is 0 if every order was shipped exactly once, else 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import streamlite

from .model import PARTITIONS, Ledger, open_topics
from .shipping import MAX_POLL_INTERVAL_MS

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
TAKEOVER_S = 0.4
"""How long a killed worker stays away: the other one has its partitions long before."""


class Shop:
    """The running programs, by name."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._begun = time.monotonic()

    def say(self, what: str) -> None:
        """Print what the launcher did."""
        print(f"{time.monotonic() - self._begun:6.2f} s  {what}", flush=True)

    def start(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a program; `name` is that of its module, with a number where there are several of them."""
        command = [sys.executable, "-m", f"examples.orders.{name.split('-', maxsplit=1)[0]}", self._directory]
        path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
        started = subprocess.Popen([*command, *map(str, arguments)], env=os.environ | {"PYTHONPATH": path})
        self._running[name] = started
        self.say(f"started {name} (process {started.pid})")
        return started

    def kill(self, name: str) -> None:
        """Kill a program in the middle of whatever it is doing; wait, and start it again."""
        victim = self._running[name]
        victim.kill()
        victim.wait()
        self.say(f"KILLED {name} (process {victim.pid})")
        time.sleep(TAKEOVER_S)
        self.start(name)

    def freeze(self, name: str) -> None:
        """Stop a program in the middle of whatever it is doing, for longer than its group waits for it."""
        victim = self._running[name]
        victim.send_signal(signal.SIGSTOP)
        self.say(f"STOPPED {name} (process {victim.pid})")
        time.sleep(MAX_POLL_INTERVAL_MS / 1000 + TAKEOVER_S)
        victim.send_signal(signal.SIGCONT)
        self.say(f"continued {name} (process {victim.pid})")

    def end(self) -> None:
        """Ask the programs to end; kill those that do not."""
        for one in self._running.values():
            one.terminate()
        for name, one in self._running.items():
            try:
                one.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.say(f"{name} did not end")
                one.kill()
                one.wait()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again; `TimeoutError` when it takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:g} s in vain until {what}")
        time.sleep(0.05)


def run(directory: str, count: int, seed: int) -> bool:
    """Run the shop; whether everything is as it should be."""
    chance = random.Random(seed)
    with streamlite.open(directory) as bus:
        topics = open_topics(bus)
        shop = Shop(directory)
        try:
            dashboard = shop.start("dashboard", count)
            for name in ("stock-1", "stock-2", "shipping-1", "shipping-2"):
                shop.start(name)
            shop.start("order_service", count, seed)
            wait_until(lambda: shipped(topics.shipments) > count // 10, "a tenth of the orders was shipped")
            accidents = [
                (shop.kill, chance.choice(("stock-1", "stock-2"))),
                (shop.kill, chance.choice(("shipping-1", "shipping-2"))),
                (shop.freeze, chance.choice(("shipping-1", "shipping-2"))),
            ]
            chance.shuffle(accidents)
            for happen, name in accidents:
                time.sleep(chance.uniform(0, 0.5))
                happen(name)
            dashboard.wait(PATIENCE_S)
            wait_until(lambda: all_done(bus), "both groups had committed everything")
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            shop.say(f"gave up: {error}")
        finally:
            shop.end()
        return check(bus, count)


def shipped(topic: streamlite.Topic) -> int:
    """How many orders were shipped so far."""
    return sum(len(ledger.shipped) for ledger in read_ledgers(topic))


def all_done(bus: streamlite.Bus) -> bool:
    """Whether nothing is left to do for stock and shipping."""
    return not any(sum(bus.group(name).lag.values()) for name in ("stock", "shipping"))


def read_ledgers(topic: streamlite.Topic) -> list[Ledger]:
    """The ledger of every partition, from the beginning."""
    ledgers = [Ledger() for _ in range(PARTITIONS)]
    for message in topic.read():
        ledgers[message.partition].take(message.value)
    return ledgers


def check(bus: streamlite.Bus, count: int) -> bool:
    """Read all that is in the log, and print and return what it says."""
    topics = open_topics(bus)
    ordered = Counter(message.value.id for message in topics.orders.read())
    reserved = Counter(message.value.order.id for message in topics.reservations.read())
    ledgers = read_ledgers(topics.shipments)
    times = Counter(order for ledger in ledgers for order in (*ledger.shipped, *ledger.twice))
    again, late = sum(reserved.values()) - len(reserved), sum(ledger.late for ledger in ledgers)
    checks = [
        (len(ordered) == ordered.total() == count, f"{count} orders were made"),
        (reserved.keys() == ordered.keys(), f"every order was reserved (and {again} once more after a crash)"),
        (not ordered.keys() - times.keys(), f"every order was shipped: {len(times)} of {count}"),
        (not times.keys() - ordered.keys(), "nothing was shipped that nobody ordered"),
        (
            times.total() == len(times),
            f"none was shipped twice (and {late} times somebody tried who was not to any more)",
        ),
        (all_done(bus), "nothing is left to do"),
    ]
    print()
    for holds, what in checks:
        print(f"{'ok' if holds else 'FAILED':6}  {what}")
    exactly_once = all(holds for holds, _ in checks)
    print("\nEvery order was shipped exactly once." if exactly_once else "\nSomething is WRONG.")
    return exactly_once


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m examples.orders", description=__doc__)
    parser.add_argument("--orders", type=int, default=600, help="how many (600)")
    parser.add_argument("--seed", type=int, help="of what happens when (random)")
    parser.add_argument("--directory", help="a new or empty one for the bus (temporary)")
    asked = parser.parse_args()
    seed = random.randrange(1_000_000) if asked.seed is None else asked.seed
    print(f"{asked.orders} orders; --seed {seed} chooses the same victims again")
    directory = asked.directory or tempfile.mkdtemp(prefix="orders-")
    exactly_once = run(directory, asked.orders, seed)
    if not exactly_once:
        print(f"The bus is left in {directory}.")
    elif asked.directory is None:
        shutil.rmtree(directory)
    return 0 if exactly_once else 1


if __name__ == "__main__":
    sys.exit(main())
