"""What the four programs share: the messages, the topics, and the rule by which `shipments` is read.

An order goes from `orders` (keyed by customer, so that a customer's orders stay in order) through `reservations` to
`shipments` (both keyed by order id, with as many partitions: partition 3 of one feeds partition 3 of the other).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

import streamlite

PARTITIONS = 4


class Order(msgspec.Struct, frozen=True):
    """What a customer wants."""

    id: str
    customer: str
    item: str
    quantity: int


class Reservation(msgspec.Struct, frozen=True):
    """An order that was put on a shelf. May be there twice: a worker that died is followed by one who does it again."""

    order: Order
    shelf: str


class Shipment(msgspec.Struct, frozen=True, tag=True):
    """An order that leaves the house, if `owner` is who owned the partition at this place in the log."""

    order_id: str
    customer: str
    owner: str


class TakenOver(msgspec.Struct, frozen=True, tag=True):
    """From here on shipments of this partition are `owner`'s, and those of everybody else do not count."""

    owner: str


class Topics(NamedTuple):
    """The topics of the shop."""

    orders: streamlite.Topic
    reservations: streamlite.Topic
    shipments: streamlite.Topic


def open_topics(bus: streamlite.Bus) -> Topics:
    """Open the topics, or create them: whoever comes first, so that no program has to be started before another."""
    return Topics(
        bus.topic("orders", partitions=PARTITIONS, key=str, value=Order),
        bus.topic("reservations", partitions=PARTITIONS, key=str, value=Reservation),
        bus.topic("shipments", partitions=PARTITIONS, key=str, value=Shipment | TakenOver),
    )


class Ledger:
    """What one partition of `shipments` says when it is read from its beginning; everybody who reads it uses this.

    The order in the log decides: a `TakenOver` shuts out whoever shipped before, also one who was stopped in the middle
    and does not know yet that it lost the partition. What such a one still writes is in the log and does not count.
    """

    def __init__(self) -> None:
        self.owner: str | None = None
        self.shipped: set[str] = set()
        self.late = 0
        """Shipments of who was not the owner any more."""
        self.twice: list[str] = []
        """Orders that were shipped again by an owner: there must be none."""

    def take(self, record: Shipment | TakenOver) -> None:
        """Account for the next record."""
        if isinstance(record, TakenOver):
            self.owner = record.owner
        elif record.owner != self.owner:
            self.late += 1
        elif record.order_id in self.shipped:
            self.twice.append(record.order_id)
        else:
            self.shipped.add(record.order_id)
