"""A handler fails, is mended, goes on where it stopped; a wrong result is replayed: `python -m examples.replay`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import msgspec

import streamlite


class Payment(msgspec.Struct, frozen=True):
    """Money for an account; `amount` as some old program wrote it."""

    account: str
    amount: str


def broken(payment: Payment) -> int:
    """The first version: falls over "1,000", and takes "-5" for 5."""
    return abs(int(payment.amount))


def mended(payment: Payment) -> int:
    """The second version."""
    return int(payment.amount.replace(",", ""))


def run(topic: streamlite.Topic, balances: dict[str, int], amount: Callable[[Payment], int]) -> None:
    """Handle what there is. An exception leaves its message unprocessed: the next run begins with it."""
    with topic.bus.consumer(topic, group="balances") as consumer:
        for message in consumer.messages(timeout=0.2):
            account = message.value.account
            balances[account] = balances.get(account, 0) + amount(message.value)


def main(directory: str) -> None:
    """Fail, mend, go on, then replay from the beginning."""
    with streamlite.open(directory) as bus, bus.producer() as producer:
        payments = bus.topic("payments", value=Payment)
        for amount in ("10", "-5", "1,000", "7"):
            producer.send(payments, Payment("alice", amount), key="alice")
        balances: dict[str, int] = {}
        try:
            run(payments, balances, broken)
        except ValueError as error:
            print(f"failed: {error}; processed so far: {sum(bus.group('balances').committed.values())}")
        run(payments, balances, mended)  # "1,000" comes again, and "-5", which counts as 5, does not
        print(f"mended, went on: {balances}")
        assert balances == {"alice": 10 + 5 + 1000 + 7}
        bus.reset_offsets("balances", payments, to="earliest")
        balances.clear()
        run(payments, balances, mended)
        print(f"replayed: {balances}")
        assert balances == {"alice": 10 - 5 + 1000 + 7}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch)
