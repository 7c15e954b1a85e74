"""TX: what a transaction costs more than the same sends without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import streamlite
from streamlite import Consumer, Producer, Topic
from tests.bench.case import Ratio

MESSAGES: Final = 100
PARTITIONS: Final = 4
TURNS: Final = 200
PATIENCE_S: Final = 60.0
VALUE: Final = b"v" * 100
KEYS: Final = [b"k%d" % number for number in range(MESSAGES)]


class Transactions(Ratio):
    """100 messages over 4 partitions, and the group's offsets; the floor sends, flushes and commits."""

    name = "TX"
    what = "a transaction of 100 messages over 4 partitions with offsets, against the same sends, flush and commit"
    target = 3.0

    def floor(self) -> float:
        def turn(topic: Topic, producer: Producer, consumer: Consumer) -> None:
            for key in KEYS:
                producer.send(topic, VALUE, key=key)
            producer.flush()
            consumer.commit()

        return self._time(turn)

    def measure(self) -> float:
        def turn(topic: Topic, producer: Producer, consumer: Consumer) -> None:
            with producer.transaction(consumer) as transaction:
                for key in KEYS:
                    transaction.send(topic, VALUE, key=key)

        return self._time(turn)

    def _time(self, turn: Callable[[Topic, Producer, Consumer], None]) -> float:
        """Nanoseconds a turn, the poll before it not counted."""
        with self._prepared() as (topic, producer, consumer):
            spent = 0
            for number in range(TURNS + 20):
                assert len(consumer.poll(timeout=PATIENCE_S, max_messages=MESSAGES)) == MESSAGES
                begun = time.perf_counter_ns()
                turn(topic, producer, consumer)
                spent += (time.perf_counter_ns() - begun) * (number >= 20)
            return spent / TURNS

    @contextmanager
    def _prepared(self) -> Iterator[tuple[Topic, Producer, Consumer]]:
        with (
            self.setting.scratch() as place,
            streamlite.open(place, sync="never") as bus,
            bus.producer() as producer,
        ):
            topic = bus.topic("out", partitions=PARTITIONS)
            producer.send_many(bus.topic("in"), [b"x"] * (TURNS + 20) * MESSAGES).result(PATIENCE_S)
            with bus.consumer("in", group="g", auto_commit=False) as consumer:
                yield topic, producer, consumer
