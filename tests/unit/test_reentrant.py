"""`send` from a signal handler or a finalizer, in a thread that is in the middle of another call of the producer."""

from __future__ import annotations

import threading
from typing import Any

import streamlite
from streamlite.clock import SystemClock
from streamlite.worker import Worker


def test_sealed_in_the_middle_of_sealing_no_message_is_lost() -> None:
    with streamlite.open(":memory:") as bus, bus.producer(linger_ms=60_000) as producer:
        topic = bus.topic("t")
        inner: list[streamlite.Delivery] = []
        entered: list[int] = []
        put: Any = producer._put

        def interrupted(batch: Any) -> None:
            put(batch)
            if not entered:
                entered.append(1)
                inner.append(producer.send(topic, b"inner"))
                producer._seal_all()
                inner.append(producer.send(topic, b"later"))

        producer._put = interrupted  # type: ignore[method-assign]
        producer._goes_directly = False
        outer = [producer.send(topic, b"%d" % number) for number in range(5)]
        producer.flush()
        producer.flush()
        assert all(delivery.result(timeout=10) for delivery in outer + inner)
        assert {m.value for m in topic.read()} == {b"0", b"1", b"2", b"3", b"4", b"inner", b"later"}


def test_a_batch_is_told_of_once_where_a_send_comes_in_the_middle_of_telling() -> None:
    told: list[int] = []
    with streamlite.open(":memory:") as bus:
        producer = bus.producer(linger_ms=60_000, on_delivery=lambda delivery: told.append(delivery.result().offset))
        topic, outbox, entered = bus.topic("t"), producer._outbox, []

        class Unsettled(dict[Any, Any]):
            def __contains__(self, batch: object) -> bool:
                found = super().__contains__(batch)
                if not entered:
                    entered.append(outbox.drain(0))
                return found

        outbox.unsettled = Unsettled(outbox.unsettled)
        deliveries = [producer.send(topic, b"%d" % number) for number in range(5)]
        producer.flush()
        assert entered
        assert all(delivery.result(timeout=10) for delivery in deliveries)
        producer.close()
    assert sorted(told) == list(range(5))


def test_a_worker_may_be_woken_by_who_is_waking_it() -> None:
    stepped = threading.Event()

    class Clock(SystemClock):
        def worker_woken(self, worker: object) -> None:
            if not again:
                again.append(1)
                woken.wake()

    def step() -> None:
        stepped.set()

    again: list[int] = []
    woken = Worker("test", step, Clock())
    thread = threading.Thread(target=woken.wake, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert stepped.wait(10)
    woken.stop(10)
