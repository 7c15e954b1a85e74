"""Shows what goes on: `python -m examples.orders.dashboard DIRECTORY COUNT`; ends when `COUNT` orders were shipped."""

from __future__ import annotations

import sys
import time
from collections import defaultdict

import streamlite

from .model import Ledger, Order, Reservation, open_topics

EVERY_S = 0.5


class Dashboard:
    """The counts, from all three topics."""

    def __init__(self) -> None:
        self._orders = 0
        self._reserved: set[str] = set()
        self._again = 0
        self._ledgers: defaultdict[int, Ledger] = defaultdict(Ledger)

    @property
    def shipped(self) -> int:
        """How many orders were shipped."""
        return sum(len(ledger.shipped) for ledger in self._ledgers.values())

    def take(self, message: streamlite.Message) -> None:
        """Count a message, of whichever topic."""
        if isinstance(message.value, Order):
            self._orders += 1
        elif isinstance(message.value, Reservation):
            self._again += message.value.order.id in self._reserved
            self._reserved.add(message.value.order.id)
        else:
            self._ledgers[message.partition].take(message.value)

    def show(self, bus: streamlite.Bus) -> str:
        """One line."""
        again = f" (+{self._again} again)" if self._again else ""
        late = sum(ledger.late for ledger in self._ledgers.values())
        ignored = f" (+{late} too late)" if late else ""
        return (
            f"ordered {self._orders:4}   reserved {len(self._reserved):4}{again}   shipped {self.shipped:4}{ignored}   "
            f"[stock {members(bus, 'stock')}]  [shipping {members(bus, 'shipping')}]"
        )


def members(bus: streamlite.Bus, group: str) -> str:
    """The processes of a group, each with its partitions."""
    try:
        found = bus.group(group).members
    except streamlite.UnknownGroupError:
        return "-"
    return ", ".join(f"{one.pid}: {''.join(str(tp.partition) for tp in one.partitions) or '-'}" for one in found)


def main(directory: str, count: int) -> None:
    """Print a line now and then, until all is shipped."""
    with streamlite.open(directory) as bus, bus.consumer(*open_topics(bus)) as consumer:
        dashboard, at = Dashboard(), 0.0
        while dashboard.shipped < count:
            for message in consumer.poll(timeout=EVERY_S):
                dashboard.take(message)
            if time.monotonic() >= at:
                at = time.monotonic() + EVERY_S
                print(f"  {dashboard.show(bus)}", flush=True)
        print(f"  {dashboard.show(bus)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
