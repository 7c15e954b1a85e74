"""Puts orders on shelves: `python -m examples.orders.stock DIRECTORY`. As many of them as you like share the work."""

from __future__ import annotations

import sys
import time

import streamlite

from .model import Order, Reservation, open_topics
from .worker import work

GROUP = "stock"
WORK_S = 0.008


def main(directory: str) -> None:
    """Reserve what is ordered, until SIGTERM.

    This worker keeps no state and does not ask whether an order was reserved before: it is reserved once more after
    a crash, under the same order id, and it is shipping that has to count.
    """
    with streamlite.open(directory) as bus, bus.producer() as producer:
        topics = open_topics(bus)

        def reserve(message: streamlite.Message) -> None:
            order: Order = message.value
            time.sleep(WORK_S)  # somebody walks to the shelf
            reservation = Reservation(order, f"{order.item}-{order.quantity}")
            producer.send(topics.reservations, reservation, key=order.id)

        with bus.consumer(topics.orders, group=GROUP, auto_commit=False) as consumer:
            work(consumer, producer, reserve)


if __name__ == "__main__":
    main(sys.argv[1])
