"""API.md, "Delivery": waiting for it, being called, awaiting it."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamlite import Bus, Delivery, RecordMetadata, errors
from streamlite.testing.clock import VirtualClock

from .helpers import PATIENCE, beside, locks_held, numbers, put, values

OpenBus = Callable[..., Bus]


def test_a_delivery_is_a_delivery_with_record_metadata(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        delivery = producer.send(topic, b"x")
        assert isinstance(delivery, Delivery)
        assert isinstance(delivery.result(timeout=PATIENCE), RecordMetadata)
        assert isinstance(producer.send_many(topic, [b"x"]), Delivery)


def test_what_is_done_stays_done(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        delivery = producer.send(topic, b"x")
        result = delivery.result()
        assert delivery.done()
        assert delivery.exception() is None
        assert delivery.result() == delivery.result(timeout=0) == result
        assert delivery.exception(timeout=0) is None
    assert delivery.result(timeout=0) == result


def test_a_result_is_in_the_log(bus: Bus) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        for number, value in enumerate(numbers(20)):
            assert producer.send(topic, value).result(timeout=PATIENCE).offset == number
            assert values(topic.read()) == numbers(number + 1)


@pytest.mark.parametrize("many", [False, True], ids=["send", "send_many"])
def test_a_callback_is_called_exactly_once(bus: Bus, many: bool) -> None:
    topic = bus.topic("t")
    seen: queue.Queue[Any] = queue.Queue()
    with bus.producer(linger_ms=60_000) as producer:
        producer.send(topic, b"first")
        delivery = producer.send_many(topic, numbers(3)) if many else producer.send(topic, b"x")
        delivery.add_done_callback(lambda done: seen.put(("early", done)))
        delivery.result(timeout=PATIENCE)
        delivery.add_done_callback(lambda done: seen.put(("late", done)))
        found = [seen.get(timeout=PATIENCE) for _ in range(2)]
    assert sorted(name for name, _ in found) == ["early", "late"]
    assert all(done == delivery for _, done in found)
    delivery.result()
    delivery.exception()
    assert seen.empty()


def test_a_callback_on_what_is_done_is_called_at_once(bus: Bus) -> None:
    topic = bus.topic("t")
    seen: list[Delivery] = []
    with bus.producer() as producer:
        delivery = producer.send(topic, b"x")
        delivery.result(timeout=PATIENCE)
        delivery.add_done_callback(seen.append)
        assert seen == [delivery]


def test_every_callback_is_called_and_finds_it_done(bus: Bus) -> None:
    topic = bus.topic("t")
    seen: queue.Queue[tuple[int, bool]] = queue.Queue()
    with bus.producer(linger_ms=60_000) as producer:
        producer.send(topic, b"first")
        delivery = producer.send(topic, b"x")
        for number in range(5):
            delivery.add_done_callback(lambda done, number=number: seen.put((number, done.done())))
        producer.flush(timeout=PATIENCE)
    assert sorted(seen.get(timeout=PATIENCE) for _ in range(5)) == [(number, True) for number in range(5)]
    assert seen.empty()


def test_a_callback_holds_no_lock(bus: Bus) -> None:
    topic, echo = bus.topic("t"), bus.topic("echo")
    seen: queue.Queue[Any] = queue.Queue()

    def callback(delivery: Delivery) -> None:
        try:
            # Everything that another thread may do, too, at this moment.
            offset = delivery.result(timeout=0).offset
            others = beside(lambda: (producer.send(topic, b"other"), list(topic.read()), delivery.result()))
            others.result(timeout=PATIENCE)
            producer.send(echo, b"%d" % offset)
            seen.put(values(topic.read())[:2])
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            seen.put(error)

    with bus.producer(linger_ms=60_000) as producer:
        producer.send(topic, b"first")
        producer.send(topic, b"x").add_done_callback(callback)
        producer.flush(timeout=PATIENCE)
        assert seen.get(timeout=PATIENCE) == [b"first", b"x"]
    assert values(echo.read()) == [b"1"]


def test_a_callback_that_raises_costs_no_message(bus: Bus) -> None:
    topic = bus.topic("t")

    def oops(delivery: Delivery) -> None:
        raise RuntimeError("oops")

    with bus.producer(linger_ms=60_000, on_delivery=oops) as producer:
        deliveries = [producer.send(topic, value) for value in numbers(5)]
        deliveries[2].add_done_callback(oops)
        producer.flush(timeout=PATIENCE)
        assert [delivery.result(timeout=PATIENCE).offset for delivery in deliveries] == list(range(5))
        deliveries.append(producer.send(topic, b"5"))
    assert values(topic.read()) == numbers(6)


# --- await --------------------------------------------------------------------------------------------------------


def test_awaiting_gives_the_result(bus: Bus) -> None:
    topic = bus.topic("t")

    async def main() -> list[RecordMetadata]:
        with bus.producer() as producer:
            delivery = producer.send(topic, b"0")
            first = await delivery
            again = await delivery
            assert first == again == delivery.result()
            return [first, await producer.send(topic, b"1")]

    assert [place.offset for place in asyncio.run(main())] == [0, 1]
    assert values(topic.read()) == numbers(2)


@pytest.mark.needs("clock")
def test_awaiting_cuts_the_linger_short(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t")
    before = clock.monotonic()

    async def main() -> Any:
        with bus.producer(linger_ms=60_000) as producer:
            deliveries = [producer.send(topic, value) for value in numbers(10)]
            many = producer.send_many(topic, numbers(10))
            return await asyncio.wait_for(asyncio.gather(*map(wait_for, [*deliveries, many])), PATIENCE)

    async def wait_for(delivery: Delivery) -> Any:
        return await delivery

    *places, many = asyncio.run(main())
    assert [place.offset for place in places] == list(range(10))
    assert [place.offset for place in many] == list(range(10, 20))
    assert clock.monotonic() - before < 60


def test_many_tasks_may_await_one_delivery(bus: Bus) -> None:
    topic = bus.topic("t")

    async def main() -> list[int]:
        with bus.producer(linger_ms=60_000) as producer:
            producer.send(topic, b"first")
            delivery = producer.send(topic, b"x")

            async def wait() -> int:
                return (await delivery).offset

            return await asyncio.wait_for(asyncio.gather(*(wait() for _ in range(5))), PATIENCE)

    assert asyncio.run(main()) == [1] * 5


def test_who_stops_awaiting_stops_no_delivery(bus: Bus) -> None:
    topic = bus.topic("t")

    async def main() -> None:
        with bus.producer(linger_ms=60_000) as producer:
            producer.send(topic, b"0")
            delivery = producer.send(topic, b"1")

            async def wait() -> Any:
                return await delivery

            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await asyncio.wait_for(wait(), PATIENCE)).offset == 1

    asyncio.run(main())
    assert values(topic.read()) == numbers(2)


@pytest.mark.needs("directory")
def test_awaiting_a_failure_raises_it(open_bus: OpenBus, location: Path) -> None:
    bus = open_bus(clock=None, sync="never", lock_timeout=0.02)
    topic = bus.topic("t")
    put(bus, topic, b"first")

    async def main() -> None:
        producer = bus.producer()
        with locks_held(location):
            delivery = producer.send(topic, b"x")

            async def wait() -> Any:
                return await delivery

            with pytest.raises(errors.LockTimeoutError):
                await asyncio.wait_for(wait(), PATIENCE)
        producer.close()  # somebody has looked at it

    asyncio.run(main())
    assert values(topic.read()) == [b"first"]
