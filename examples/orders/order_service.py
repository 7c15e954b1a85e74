"""Customers order: `python -m examples.orders.order_service DIRECTORY COUNT SEED`."""

from __future__ import annotations

import random
import sys
import time

import streamlite

from .model import Order, open_topics

CUSTOMERS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
ITEMS = ("coffee", "tea", "sugar", "milk", "honey")
PAUSE_S = 0.005


def main(directory: str, count: int, seed: int) -> None:
    """Send `count` orders, one by one."""
    chance = random.Random(seed)
    with streamlite.open(directory) as bus, bus.producer() as producer:
        orders = open_topics(bus).orders
        for number in range(count):
            order = Order(f"{number:06}", chance.choice(CUSTOMERS), chance.choice(ITEMS), chance.randint(1, 5))
            producer.send(orders, order, key=order.customer)
            time.sleep(chance.uniform(0, 2 * PAUSE_S))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
