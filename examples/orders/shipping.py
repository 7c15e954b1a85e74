"""Ships every reserved order once: `python -m examples.orders.shipping DIRECTORY`. Any number of them share the work.

Reservations come at least once, and this program may die between shipping and committing. So it keeps a ledger of what
was shipped, and the ledger is the topic it writes. All that is said of an order id stands in one partition, which one
member owns at a time; who becomes the owner

1. writes `TakenOver` to the partition of `shipments`, and waits until it is in the log;
2. reads that partition up to there: what it finds was shipped, and nothing can be added to it by anybody else, since
   shipments of former owners do not count from here on (`model.Ledger`);
3. ships what is not in the ledger.

Reading without writing first would not do. A former owner that was not killed but stopped (SIGSTOP, a suspended
machine) goes on in the middle of its batch, and writes shipments that the new owner has not seen. Commits are refused
to such a one (`FencedError`), sends are not.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence

import streamlite

from .model import Ledger, Reservation, Shipment, TakenOver, open_topics
from .worker import work

GROUP = "shipping"
WORK_S = 0.006
MAX_POLL_INTERVAL_MS = 1_000
"""A worker that is stopped for longer loses its partitions; short, because the launcher shows just that."""


class Shipping:
    """The partitions that this process owns, each with its ledger."""

    def __init__(self, shipments: streamlite.Topic, producer: streamlite.Producer) -> None:
        self._shipments = shipments
        self._producer = producer
        self._ledgers: dict[int, Ledger] = {}

    def take_over(self, consumer: streamlite.Consumer, partitions: Sequence[streamlite.TopicPartition]) -> None:
        """Called before the first message of these partitions."""
        for _, partition in partitions:
            # A name for this one ownership: also this process's own, should it lose the partition and get it again.
            mark = TakenOver(secrets.token_hex(4))
            where = self._producer.send(self._shipments, mark, partition=partition).result(timeout=30)
            ledger = self._ledgers[partition] = Ledger()
            for message in self._shipments.read(partition=partition, stop=where.offset + 1):
                ledger.take(message.value)

    def give_up(self, consumer: streamlite.Consumer, partitions: Sequence[streamlite.TopicPartition]) -> None:
        """Called when these partitions are, or are about to be, another's."""
        for _, partition in partitions:
            self._ledgers.pop(partition, None)

    def ship(self, message: streamlite.Message) -> None:
        """Ship a reservation's order, unless the ledger has it."""
        reservation: Reservation = message.value
        ledger = self._ledgers[message.partition]
        if reservation.order.id in ledger.shipped:
            return
        time.sleep(WORK_S)  # somebody packs a parcel
        assert ledger.owner is not None
        shipment = Shipment(reservation.order.id, reservation.order.customer, ledger.owner)
        ledger.take(shipment)
        self._producer.send(self._shipments, shipment, key=shipment.order_id, partition=message.partition)


def main(directory: str) -> None:
    """Ship until SIGTERM."""
    with streamlite.open(directory) as bus, bus.producer() as producer:
        topics = open_topics(bus)
        shipping = Shipping(topics.shipments, producer)
        with bus.consumer(
            topics.reservations,
            group=GROUP,
            auto_commit=False,
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            on_assign=shipping.take_over,
            on_revoke=shipping.give_up,
            on_lost=shipping.give_up,
        ) as consumer:
            work(consumer, producer, shipping.ship)


if __name__ == "__main__":
    main(sys.argv[1])
