"""API.md, "async_producer", "async_consumer": the clients for asyncio do what the sync ones do, and no cancellation
loses anything.

`cut` cancels a call at each of its suspension points in turn, in both ways that a task meets: while it waits, and when
what it waited for has come already.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest

import streamlite
from streamlite import (
    AsyncConsumer,
    BufferFullError,
    Bus,
    ClosedError,
    ConfigError,
    Consumer,
    InvalidNameError,
    LockTimeoutError,
    Message,
    MessageTooLargeError,
    Producer,
    StreamliteError,
    TopicPartition,
    UnknownTopicError,
    errors,
)
from streamlite.aio.steps import Steps
from streamlite.testing.clock import VirtualClock

from .helpers import PATIENCE, T0, beside, committed, locks_held, numbers, offsets, put, tps, values

OpenBus = Callable[..., Bus]
R = TypeVar("R")

TP = TopicPartition("t", 0)

GROUPS = pytest.mark.parametrize("options", [{}, {"group": "g"}], ids=["no group", "group"])


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run it in a loop of its own, for no longer than patience."""

    async def bounded() -> R:
        return await asyncio.wait_for(main, PATIENCE)

    return asyncio.run(bounded())


def filled(bus: Bus, count: int = 10, partitions: int = 1, **settings: Any) -> None:
    """A topic `t` with numbers in each partition."""
    topic = bus.topic("t", partitions=partitions, **settings)
    for partition in range(partitions):
        put(bus, topic, *numbers(count, partition * 1000), partition=partition)


async def drain(consumer: AsyncConsumer, **options: Any) -> list[Message]:
    """All that `poll` gives until it gives nothing."""
    found: list[Message] = []
    while batch := await consumer.poll(**options):
        found += batch
    return found


async def first(consumer: AsyncConsumer, count: int) -> list[Any]:
    """The first values of a new loop, which is then given up: the last of them stays unprocessed."""
    found = []
    async for message in consumer:
        found.append(message.value)
        if len(found) == count:
            break
    return found


async def turns(count: int = 20) -> None:
    """Let the loop's other tasks go on."""
    for _ in range(count):
        await asyncio.sleep(0)


async def come_about(condition: Callable[[], bool]) -> None:
    """Wait for what a thread or another task is about to bring about."""
    while not condition():
        await asyncio.sleep(0.0005)


class cut:  # noqa: N801 - it reads as a verb
    """Await a call, cancelled at its suspension point `at`: before what it waits for comes, or, `late`, thereafter."""

    def __init__(self, call: Coroutine[Any, Any, Any], at: int, late: bool) -> None:
        self.call, self.at, self.late = call, at, late

    def __await__(self) -> Generator[Any, Any, bool]:
        """Whether the call was cancelled; `False` when it was through before."""
        try:
            waits_for = self.call.send(None)
            for _ in range(self.at):
                self._blocking(waits_for)
                yield waits_for
                waits_for = self.call.send(None)
            if self.late:
                self._blocking(waits_for)
                yield waits_for
            elif waits_for is not None:
                waits_for._asyncio_future_blocking = False
                waits_for.cancel()
            self.call.throw(asyncio.CancelledError())
        except StopIteration:
            return False
        except asyncio.CancelledError:
            return True
        raise AssertionError("the call went on after it was cancelled")

    def _blocking(self, waits_for: Any) -> None:
        """The loop's task insists on it; a coroutine in between hands it through."""
        if waits_for is not None:
            waits_for._asyncio_future_blocking = True


async def asleep(consumer: AsyncConsumer) -> None:
    """Wait until another task's call waits for messages in the loop."""
    await come_about(lambda: consumer._user is not None and consumer._under_way is None and consumer._steps.asleep)


async def every_cut(prepare: Callable[[bool, int], Awaitable[bool]]) -> int:
    """Cancel at point 0, 1, 2 ... in both ways, until a call is through before; how many cancellations there were."""
    count = 0
    for late in (False, True):
        at = 0
        while await prepare(late, at):
            at += 1
            count += 1
            assert at < 100
    return count


# -- the shape --------------------------------------------------------------------------------------------------------


def public(one: type) -> set[str]:
    return {name for name in dir(one) if not name.startswith("_") and callable(getattr(one, name))}


@pytest.mark.parametrize("name", ["Consumer", "Producer"])
def test_everything_that_the_sync_client_has_is_there(name: str) -> None:
    sync = {"Consumer": Consumer, "Producer": Producer}[name]
    internal = {"tick", "hurry", "nudge", "push", "topics_changed"}
    mirror = getattr(streamlite, f"Async{name}")
    assert public(sync) - internal <= public(mirror)
    for method in public(sync) - internal:
        theirs = inspect.signature(getattr(sync, method)).parameters
        assert list(inspect.signature(getattr(mirror, method)).parameters) == list(theirs), method


def test_they_are_made_by_the_bus_and_take_its_options(bus: Bus) -> None:
    bus.topic("t")
    assert isinstance(bus.async_producer(), streamlite.AsyncProducer)
    assert isinstance(bus.async_consumer("t", group="g"), streamlite.AsyncConsumer)
    with pytest.raises(ConfigError, match="unknown consumer option 'grop'"):
        bus.async_consumer("t", grop="g")
    with pytest.raises(ConfigError, match="unknown producer option 'linger'"):
        bus.async_producer(linger=1)
    with pytest.raises(InvalidNameError):
        bus.async_consumer("t", group="a/b")
    bus.close()
    with pytest.raises(ClosedError):
        bus.async_producer()
    with pytest.raises(ClosedError):
        bus.async_consumer("t")


# -- sending ----------------------------------------------------------------------------------------------------------


def test_a_send_gives_a_delivery_that_can_be_awaited(bus: Bus) -> None:
    bus.topic("t")

    async def main() -> None:
        async with bus.async_producer() as producer:
            delivery = await producer.send("t", "x", key="k", headers={"h": b"1"}, timestamp=T0 + 7)
            found = await delivery
            assert (found.topic, found.partition, found.offset, found.timestamp) == ("t", 0, 0, T0 + 7)
            assert (await (await producer.send("t", None, key="k", headers=iter([("a", b"b")])))).offset == 1

    run(main())
    [one, two] = bus.topic("t").read()
    assert (one.key, one.value, list(one.headers), two.value, list(two.headers)) == (
        b"k", b"x", [("h", b"1")], None, [("a", b"b")],
    )  # fmt: skip


def test_sends_of_one_task_keep_their_order(bus: Bus) -> None:
    topic = bus.topic("t")

    async def main() -> None:
        async with bus.async_producer(linger_ms=0) as producer:
            for value in numbers(3000):
                await producer.send(topic, value, key=b"k")

    run(main())
    assert values(topic.read()) == numbers(3000)


def test_a_topic_with_types_is_sent_to_and_read(bus: Bus) -> None:
    topic = bus.topic("t", value=dict[str, int])

    async def main() -> list[Any]:
        async with bus.async_producer() as producer, bus.async_consumer(topic) as consumer:
            await producer.send(topic, {"a": 1})
            await producer.send_many(topic, [{"b": n} for n in range(3)])
            return values(await drain(consumer, timeout=1))

    assert run(main()) == [{"a": 1}, {"b": 0}, {"b": 1}, {"b": 2}]


def test_what_can_be_known_is_raised_by_send(bus: Bus) -> None:
    bus.topic("t", max_message_bytes=10)

    async def main() -> None:
        async with bus.async_producer() as producer:
            with pytest.raises(UnknownTopicError):
                await producer.send("nothing", b"")
            with pytest.raises(InvalidNameError):
                await producer.send("a/b", b"")
            with pytest.raises(MessageTooLargeError):
                await producer.send("t", b"x" * 11)
            with pytest.raises(ConfigError):
                await producer.send(["t"], b"")
            with pytest.raises(UnknownTopicError):
                await producer.send_many("nothing", [b""])
        with pytest.raises(ClosedError):
            await producer.send("t", b"")
        with pytest.raises(ClosedError):
            await producer.send_many("t", [b""])

    run(main())
    assert list(bus.topic("t").read()) == []


def test_a_topic_that_was_created_later_is_found(bus: Bus) -> None:
    async def main() -> None:
        async with bus.async_producer() as producer:
            with pytest.raises(UnknownTopicError):
                await producer.send("t", b"")
            bus.topic("t")
            await producer.send("t", b"1")
            bus.topic("t").increase_partitions(3)
            await producer.send("t", b"2", partition=2)

    run(main())
    assert values(bus.topic("t").read(partition=2)) == [b"2"]


def test_send_many_gives_one_delivery_for_all(bus: Bus) -> None:
    bus.topic("t", partitions=3)
    columns = numbers(7000)

    async def main() -> None:
        async with bus.async_producer() as producer:
            found = await (await producer.send_many("t", columns, keys=[b"%d" % (n % 50) for n in range(7000)]))
            assert len(found) == 7000
            by_place = {(m.partition, m.offset): m.value for m in bus.topic("t").read()}
            assert [by_place[one.partition, one.offset] for one in found] == columns
            assert len(await (await producer.send_many("t", []))) == 0
            assert len(await (await producer.send_many("t", iter(columns[:10])))) == 10

    run(main())


def test_send_many_checks_all_before_it_sends_any(bus: Bus) -> None:
    bus.topic("t", max_message_bytes=10)

    async def main() -> None:
        async with bus.async_producer() as producer:
            with pytest.raises(MessageTooLargeError, match="message 5000 "):
                await producer.send_many("t", [b"x"] * 5000 + [b"x" * 11])
            with pytest.raises(ConfigError, match="equally long"):
                await producer.send_many("t", [b"x"] * 5000, keys=[b"k"] * 4999)
            with pytest.raises(ConfigError, match="sequence"):
                await producer.send_many("t", "text")

    run(main())
    assert list(bus.topic("t").read()) == []


def test_a_task_that_only_sends_lets_the_others_run(bus: Bus) -> None:
    bus.topic("t")

    async def main() -> int:
        count = 0

        async def other() -> None:
            nonlocal count
            while True:
                await asyncio.sleep(0)
                count += 1

        async with bus.async_producer() as producer:
            await producer.send("t", b"")
            task = asyncio.ensure_future(other())
            await turns(1)
            before = count
            for value in numbers(10_000):
                await producer.send("t", value)
            seen = count - before
            task.cancel()
        return seen

    assert run(main()) > 5


def test_on_delivery_is_called_in_the_loop(bus: Bus) -> None:
    bus.topic("t")
    told: list[Any] = []

    async def main() -> None:
        async def tell(delivery: Any) -> None:
            told.append((threading.get_ident(), delivery.result().offset))

        async with bus.async_producer(on_delivery=tell) as producer:
            for value in numbers(3):
                await producer.send("t", value)
            await producer.flush()
            await come_about(lambda: len(told) == 3)
        async with bus.async_producer(on_delivery=lambda one: told.append((threading.get_ident(), one))) as producer:
            delivery = await producer.send_many("t", numbers(2))
        assert told[3:] == [(threading.get_ident(), delivery)]

    run(main())
    assert told[:3] == [(threading.get_ident(), number) for number in range(3)]


@asynccontextmanager
async def stuck(open_bus: OpenBus, location: Any, **options: Any) -> AsyncIterator[tuple[Bus, Any, list[bytes]]]:
    """A producer with a full buffer, while another process holds its partition's lock; and what it has taken."""
    bus = open_bus(clock=None, lock_timeout=60)
    bus.topic("t")
    producer = bus.async_producer(buffer_bytes=2000, batch_bytes=500, **options)
    await (await producer.send("t", b"0"))  # it knows the topic now: nothing but room is waited for
    taken = [b"0"]
    with locks_held(location):
        while True:
            task = asyncio.ensure_future(producer.send("t", b"x" * 900))
            await turns(100)
            if not task.done():
                break
            task.result()
            taken.append(b"x" * 900)
        task.cancel()
        await asyncio.wait([task])
        yield bus, producer, taken


@pytest.mark.needs("directory")
def test_a_full_buffer_is_awaited_and_the_loop_goes_on(open_bus: OpenBus, location: Any) -> None:
    async def main() -> None:
        async with stuck(open_bus, location) as (bus, producer, taken):
            waiting = [asyncio.ensure_future(producer.send("t", b"%d" % n * 900)) for n in range(3)]
            threads = threading.active_count()
            await turns(200)
            assert not any(task.done() for task in waiting)
            assert threading.active_count() == threads  # nobody waits in one
        for task in waiting:
            await (await task)
        await producer.close()
        assert values(bus.topic("t").read()) == taken + [b"%d" % n * 900 for n in range(3)]

    run(main())


@pytest.mark.needs("directory")
def test_who_waits_too_long_for_room_is_told_and_nothing_was_taken(open_bus: OpenBus, location: Any) -> None:
    async def main() -> None:
        async with stuck(open_bus, location, max_block=0.05) as (bus, producer, taken):
            with pytest.raises(BufferFullError, match=r"stayed full for 0\.05 s"):
                await producer.send("t", b"y" * 900)
            with pytest.raises(BufferFullError):
                await producer.send_many("t", [b"y" * 900])
        await producer.close()
        assert values(bus.topic("t").read()) == taken

    run(main())


@pytest.mark.needs("directory")
@pytest.mark.parametrize("call", ["send", "send_many"])
def test_a_send_that_waits_for_room_can_be_cancelled(open_bus: OpenBus, location: Any, call: str) -> None:
    async def main() -> None:
        async with stuck(open_bus, location) as (bus, producer, taken):
            value = b"y" * 900
            task = asyncio.ensure_future(getattr(producer, call)("t", value if call == "send" else [value]))
            await turns()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await (await producer.send("t", b"after"))
        await producer.close()
        assert values(bus.topic("t").read()) == [*taken, b"after"]

    run(main())


@pytest.mark.needs("directory")
def test_closing_ends_a_wait_for_room(open_bus: OpenBus, location: Any) -> None:
    async def main() -> None:
        async with stuck(open_bus, location) as (_, producer, _):
            task = asyncio.ensure_future(producer.send("t", b"y" * 900))
            await turns()
            closing = asyncio.ensure_future(producer.close())
            with pytest.raises(ClosedError):
                await task
            assert not closing.done()
        await closing

    run(main())


@pytest.mark.needs("directory")
def test_a_flush_in_vain_says_how_many_are_left(open_bus: OpenBus, location: Any) -> None:
    async def main() -> None:
        async with stuck(open_bus, location) as (_, producer, taken):
            with pytest.raises(errors.TimeoutError, match=f"{len(taken) - 1} messages"):
                await producer.flush(timeout=0.01)
            with pytest.raises(errors.TimeoutError):
                await producer.close(timeout=0.01)
            with pytest.raises(ClosedError):
                await producer.send("t", b"")
        await producer.flush()
        await producer.close()

    run(main())


@pytest.mark.needs("directory")
def test_a_failure_nobody_looked_at_is_raised_by_flush_and_close(open_bus: OpenBus, location: Any) -> None:
    bus = open_bus(clock=None, lock_timeout=0.02)
    put(bus, bus.topic("t"), b"0")

    async def main() -> None:
        producer = bus.async_producer()
        with locks_held(location):
            await producer.send("t", b"1")
            with pytest.raises(LockTimeoutError):
                await producer.flush()
            await producer.flush()
            delivery = await producer.send("t", b"2")
            with pytest.raises(LockTimeoutError):
                await delivery
            await producer.send("t", b"3")
            with pytest.raises(LockTimeoutError):
                await producer.close()
        await producer.close()

    run(main())


@pytest.mark.needs("clock")
def test_room_is_waited_for_by_the_clock_of_the_bus(bus: Bus, clock: VirtualClock) -> None:
    topic = bus.topic("t")
    put(bus, topic, b"0")
    partition = topic._state.partitions[0]  # nobody else can hold a lock in memory

    async def main() -> None:
        async with bus.async_producer(buffer_bytes=2000, batch_bytes=500, max_block=30) as producer:
            partition.guard.acquire(1)
            try:
                with pytest.raises(BufferFullError):
                    await asyncio.gather(*(producer.send("t", b"x" * 500) for _ in range(10)))
                assert clock.monotonic() >= 30
            finally:
                partition.guard.release()

    run(main())


@pytest.mark.needs("clock")
def test_cancelled_anywhere_a_send_is_taken_whole_or_not_at_all(bus: Bus) -> None:
    for number in range(40):
        bus.topic(f"t{number}")
    names = iter(f"t{number}" for number in range(40))

    async def prepare(late: bool, at: int) -> bool:
        name = next(names)  # unknown to the producer, so that it has something to wait for
        async with bus.async_producer() as producer:
            was_cut = await cut(producer.send(name, b"0"), at, late)
            await producer.send(name, b"1")
            await producer.flush()
        found = values(bus.topic(name).read())
        assert found == [b"1"] if was_cut else found == [b"0", b"1"]
        return was_cut

    async def main() -> None:
        assert await every_cut(prepare) >= 2

    run(main())


@pytest.mark.needs("clock")
@pytest.mark.parametrize("call", ["flush", "close", "await"])
def test_cancelled_anywhere_a_flush_leaves_the_producer_whole(bus: Bus, call: str) -> None:
    topic = bus.topic("t")
    sent = 0

    async def prepare(late: bool, at: int) -> bool:
        nonlocal sent
        producer = bus.async_producer()
        delivery = await producer.send(topic, b"%d" % sent)
        sent += 1

        async def wait() -> None:
            await delivery

        was_cut = await cut(wait() if call == "await" else getattr(producer, call)(), at, late)
        await producer.close()
        assert (await delivery).offset == sent - 1
        return was_cut

    async def main() -> int:
        return await every_cut(prepare)

    run(main())
    assert values(topic.read()) == numbers(sent)


# -- receiving --------------------------------------------------------------------------------------------------------


@GROUPS
def test_poll_gives_everything_in_order(bus: Bus, options: dict[str, Any]) -> None:
    filled(bus, 50, partitions=3, segment_bytes=300)

    async def main() -> list[Message]:
        async with bus.async_consumer("t", **options) as consumer:
            return await drain(consumer, timeout=1, max_messages=7)

    found = run(main())
    for partition in range(3):
        assert values(m for m in found if m.partition == partition) == numbers(50, partition * 1000)


def test_poll_columns_gives_columns(bus: Bus) -> None:
    filled(bus)

    async def main() -> list[Any]:
        async with bus.async_consumer("t") as consumer:
            return await consumer.poll_columns(1, 4)

    found = run(main())
    assert [(one.topic, one.partition) for one in found] == [("t", 0)] * len(found)
    assert [value for one in found for value in one.values] == numbers(4)


@pytest.mark.needs("clock")
@GROUPS
def test_a_poll_waits_by_the_clock_of_the_bus(bus: Bus, clock: VirtualClock, options: dict[str, Any]) -> None:
    filled(bus, 0)

    async def main() -> None:
        async with bus.async_consumer("t", **options) as consumer:
            before = clock.monotonic()
            assert await consumer.poll(timeout=60) == []
            assert clock.monotonic() - before == pytest.approx(60)
            assert await consumer.poll() == []
            with pytest.raises(ConfigError):
                await consumer.poll(timeout=-1)
            with pytest.raises(ConfigError):
                await consumer.poll(max_messages=0)

    run(main())


@pytest.mark.parametrize("real", [True, False], ids=["real time", "its clock"])
@GROUPS
def test_a_poll_gets_what_another_task_sends(open_bus: OpenBus, options: dict[str, Any], real: bool) -> None:
    bus = open_bus(clock=None) if real else open_bus()
    bus.topic("t", partitions=2)

    async def main() -> list[Any]:
        found: list[Message] = []

        async def receive() -> None:
            while len(found) < 30:
                batch = await consumer.poll(timeout=60)
                assert batch
                found.extend(batch)

        async with bus.async_consumer("t", **options) as consumer, bus.async_producer() as producer:
            task = asyncio.ensure_future(receive())
            for number, value in enumerate(numbers(30)):
                delivery = await producer.send("t", value, key=b"k")
                if real and number % 3 == 0:
                    await delivery
            await task
        return values(found)

    assert run(main()) == numbers(30)


def test_a_poll_gets_what_a_thread_sends(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    topic = bus.topic("t")
    go = threading.Event()

    def send() -> None:
        with bus.producer() as producer:
            for value in numbers(20):
                assert go.wait(PATIENCE)
                go.clear()
                producer.send(topic, value).result(PATIENCE)

    async def main() -> list[Any]:
        found: list[Message] = []
        async with bus.async_consumer("t") as consumer:
            while len(found) < 20:
                go.set()
                found += await consumer.poll(timeout=PATIENCE)
        return values(found)

    sending = beside(send)
    assert run(main()) == numbers(20)
    sending.result(PATIENCE)


@pytest.mark.needs("shared")
def test_a_poll_gets_what_another_bus_sends(open_bus: OpenBus) -> None:
    mine, other = open_bus(clock=None), open_bus(clock=None)
    topic = other.topic("t")

    async def main() -> list[Any]:
        async with mine.async_consumer("t") as consumer, other.async_producer() as producer:
            found = []
            for value in numbers(20):
                task = asyncio.ensure_future(consumer.poll(timeout=PATIENCE))
                await turns(5)
                await producer.send(topic, value)
                found += await task
            return values(found)

    assert run(main()) == numbers(20)


@pytest.mark.needs("shared")
def test_a_bus_that_is_only_read_is_followed(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    filled(bus, 3)
    reader = open_bus(clock=None, read_only=True)

    async def main() -> list[Any]:
        async with reader.async_consumer("t") as consumer:
            found = values(await consumer.poll(timeout=PATIENCE))
            task = asyncio.ensure_future(consumer.poll(timeout=PATIENCE))
            await turns()
            put(bus, "t", b"3")
            return found + values(await task)

    assert run(main()) == numbers(4)


@GROUPS
def test_a_loop_gets_every_message_in_order(bus: Bus, options: dict[str, Any]) -> None:
    filled(bus, 500)

    async def main() -> list[Any]:
        async with bus.async_consumer("t", max_poll_messages=70, **options) as consumer:
            return [message.value async for message in consumer.messages(timeout=1)]

    assert run(main()) == numbers(500)


@pytest.mark.needs("clock")
def test_with_a_timeout_a_loop_ends_after_that_long(bus: Bus, clock: VirtualClock) -> None:
    filled(bus, 3)

    async def main() -> None:
        async with bus.async_consumer("t") as consumer:
            before = clock.monotonic()
            loop = consumer.messages(timeout=7)
            assert [message.value async for message in loop] == numbers(3)
            assert clock.monotonic() - before == pytest.approx(7)
            put(bus, "t", b"3")
            assert [message async for message in loop] == []  # it has ended
            assert [message.value async for message in consumer.messages(timeout=0)] == [b"3"]

    run(main())


@GROUPS
def test_a_loop_that_breaks_begins_again_with_its_last_message(bus: Bus, options: dict[str, Any]) -> None:
    filled(bus)

    async def main() -> None:
        async def fail() -> None:
            async for message in consumer:
                assert message.offset == 4
                raise ZeroDivisionError

        async with bus.async_consumer("t", **options) as consumer:
            assert await first(consumer, 4) == numbers(4)
            assert await first(consumer, 2) == numbers(2, 3)
            with pytest.raises(ZeroDivisionError):
                await fail()
            assert await first(consumer, 1) == numbers(1, 4)
            assert values(await consumer.poll(max_messages=2)) == numbers(2, 4)

    run(main())


@pytest.mark.parametrize("how", ["break", "raise", "cancel", "close the bus"])
def test_only_what_was_processed_is_committed(bus: Bus, open_bus: OpenBus, how: str) -> None:
    filled(bus)

    async def main() -> None:
        async def work() -> None:
            async for message in consumer:
                if message.offset == 4:
                    if how == "break":
                        return
                    if how == "raise":
                        raise ZeroDivisionError
                    here.set()
                    await asyncio.Event().wait()

        here = asyncio.Event()
        async with bus.async_consumer("t", group="g") as consumer:
            task = asyncio.ensure_future(work())
            if how in ("cancel", "close the bus"):
                await here.wait()
                task.cancel()
            await asyncio.wait([task])
            if how == "raise":
                assert isinstance(task.exception(), ZeroDivisionError)

    run(main())
    assert committed(bus, "t", "g") == 4


def test_poll_again_or_commit_says_that_the_last_poll_is_processed(bus: Bus) -> None:
    filled(bus)

    async def main() -> None:
        async with bus.async_consumer("t", group="g") as consumer:
            await consumer.poll(max_messages=3)
            await consumer.poll(max_messages=3)
        assert committed(bus, "t", "g") == 3
        async with bus.async_consumer("t", group="g", auto_commit=False) as consumer:
            [*_, message] = await consumer.poll(max_messages=4)
            await consumer.commit(message)
            assert await consumer.committed(TP) == 7
            await consumer.poll(max_messages=1)
            await consumer.commit()
            assert await consumer.committed(TP) == 8
            await consumer.commit({TP: 1})
        assert committed(bus, "t", "g") == 1

    run(main())


@pytest.mark.needs("clock")
def test_a_long_run_is_committed_as_it_goes(bus: Bus, clock: VirtualClock) -> None:
    filled(bus, 100)

    async def main() -> None:
        async with bus.async_consumer("t", group="g") as consumer:
            async for message in consumer:
                clock.advance(0.01)
                await asyncio.sleep(0)
                if message.offset == 60:
                    assert 40 < (bus.group("g").committed[TP]) <= 60
                    return

    run(main())


def test_a_member_of_a_group_sees_the_others(bus: Bus) -> None:
    filled(bus, 5, partitions=4)

    async def main() -> None:
        async with bus.async_consumer("t", group="g") as one:
            assert await one.wait_assigned() == tps("t", 4)
            async with bus.async_consumer("t", group="g") as two:
                for _ in range(20):
                    await one.poll()
                    await two.poll()
                assert (len(one.assignment()), len(two.assignment())) == (2, 2)
                assert len(bus.group("g").members) == 2
            assert len(bus.group("g").members) == 1

    run(main())


@pytest.mark.needs("clock")
def test_waiting_for_partitions_that_do_not_come(bus: Bus, clock: VirtualClock) -> None:
    filled(bus, 5)

    async def main() -> None:
        async with bus.async_consumer("t", group="g"), bus.async_consumer("t", group="g") as two:
            before = clock.monotonic()
            with pytest.raises(errors.TimeoutError, match="within 5 s"):
                await two.wait_assigned(5)
            assert clock.monotonic() - before == pytest.approx(5)

    run(main())


def test_partitions_that_another_member_leaves_are_waited_for(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    filled(bus, 5)

    async def main() -> None:
        one, two = bus.async_consumer("t", group="g"), bus.async_consumer("t", group="g")
        await one.wait_assigned()
        task = asyncio.ensure_future(two.wait_assigned(PATIENCE))
        await turns()
        await one.close()
        assert await task == {TP}
        await two.close()

    run(main())


def test_it_joins_at_the_first_await(bus: Bus) -> None:
    filled(bus)

    async def main() -> None:
        consumer = bus.async_consumer("t", group="g")
        assert consumer.assignment() == set()
        assert bus.groups() == []
        assert await consumer.position(TP) == 0
        assert consumer.assignment() == {TP}
        assert bus.groups() == ["g"]
        await consumer.close()
        await consumer.close()
        with pytest.raises(ClosedError):
            await consumer.poll()
        with pytest.raises(ClosedError):
            consumer.assignment()

    run(main())


def test_an_absent_topic_is_told_at_the_first_await_and_may_come_later(bus: Bus) -> None:
    async def main() -> list[Any]:
        with pytest.raises(UnknownTopicError):
            async with bus.async_consumer("t"):
                pass
        consumer = bus.async_consumer("t")
        with pytest.raises(UnknownTopicError):
            await consumer.poll()
        filled(bus, 2)
        found = values(await consumer.poll(1))
        await consumer.close()
        return found

    assert run(main()) == numbers(2)


def test_where_a_reader_starts(bus: Bus) -> None:
    filled(bus, 3)

    async def main() -> None:
        async with bus.async_consumer("t", start="latest") as consumer:
            assert await consumer.poll() == []
            put(bus, "t", b"3")
            assert values(await consumer.poll(1)) == [b"3"]
        later = datetime.fromtimestamp(T0 / 1000 + 1e9, UTC)
        async with bus.async_consumer("t", start=later) as consumer:
            assert await consumer.position(TP) == 4

    run(main())


def test_the_position_is_moved_and_looked_at(bus: Bus) -> None:
    filled(bus)

    async def main() -> None:
        async with bus.async_consumer("t", group="g") as consumer:
            await consumer.seek(TP, 7)
            assert offsets(await consumer.poll()) == [7, 8, 9]
            assert await consumer.lag() == {TP: 0}
            await consumer.seek_to_beginning()
            assert await consumer.position(TP) == 0
            await consumer.seek_to_end(TP)
            assert await consumer.position(TP) == 10
            await consumer.seek(TP, 3, epoch=await consumer.epoch(TP))
            assert await consumer.lag() == {TP: 7}
            assert await consumer.incarnation(TP) > 0
            assert await consumer.offsets_for_times({TP: 0}) == {TP: 0}
            assert await consumer.beginning_offsets([TP]) == {TP: 0}
            assert await consumer.end_offsets([TP]) == {TP: 10}
            assert await consumer.committed(TP) in (None, 10)
            with pytest.raises(ConfigError):
                await consumer.seek(TP, -1)

    run(main())


def test_paused_partitions_give_nothing(bus: Bus) -> None:
    filled(bus, 3, partitions=2)

    async def main() -> None:
        async with bus.async_consumer("t") as consumer:
            await consumer.pause(TP)
            assert consumer.paused() == {TP}
            assert {m.partition for m in await drain(consumer)} == {1}
            await consumer.resume(TP)
            assert consumer.paused() == set()
            assert {m.partition for m in await drain(consumer)} == {0}

    run(main())


def test_what_is_read_can_be_changed(bus: Bus) -> None:
    filled(bus, 2)
    put(bus, bus.topic("u"), b"u")

    async def main() -> None:
        async with bus.async_consumer() as consumer:
            assert await consumer.poll() == []
            await consumer.subscribe("u")
            assert values(await drain(consumer)) == [b"u"]
            await consumer.unsubscribe()
            assert consumer.assignment() == set()
            await consumer.assign([TP])
            assert values(await drain(consumer)) == numbers(2)
            with pytest.raises(UnknownTopicError):
                await consumer.subscribe("nothing")

    run(main())


# -- one task at a time -----------------------------------------------------------------------------------------------


def test_a_second_task_is_refused_and_the_first_goes_on(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    bus.topic("t")

    async def main() -> list[Any]:
        async with bus.async_consumer("t") as consumer:
            task = asyncio.ensure_future(consumer.poll(timeout=PATIENCE))
            await turns()
            with pytest.raises(ConfigError, match="another task"):
                await consumer.poll()
            with pytest.raises(ConfigError, match="another task"):
                await consumer.commit()
            with pytest.raises(ConfigError, match="another task"):
                await anext(consumer.messages())
            put(bus, "t", b"0")
            return values(await task)

    assert run(main()) == [b"0"]


@pytest.mark.parametrize("end", ["wakeup", "wakeup in a thread", "close", "close the bus", "close the bus in a thread"])
@pytest.mark.parametrize("wait", ["poll", "loop"])
def test_a_wait_is_ended_from_outside(open_bus: OpenBus, end: str, wait: str) -> None:
    bus = open_bus(clock=None)
    filled(bus, 1)

    async def main() -> list[Any]:
        ready = asyncio.Event()
        consumer = bus.async_consumer("t", group="g")
        found = values(await consumer.poll(max_messages=1))

        async def receive() -> list[Any]:
            assert await consumer.poll() == []
            ready.set()
            if wait == "poll":
                return values(await consumer.poll(timeout=PATIENCE))
            return [message.value async for message in consumer]

        task = asyncio.ensure_future(receive())
        await ready.wait()
        await asleep(consumer)
        if end == "wakeup":
            consumer.wakeup()
        elif end == "close":
            await consumer.close()
        elif end == "close the bus":
            bus.close()
        else:
            await asyncio.to_thread(consumer.wakeup if "wakeup" in end else bus.close)
        assert await task == []
        if "wakeup" in end:
            put(bus, "t", b"1")
            found += values(await consumer.poll(timeout=PATIENCE))
            await consumer.close()
        else:
            with pytest.raises(ClosedError):
                await consumer.poll()
            await consumer.close()
        return found

    assert run(main()) == (numbers(2) if "wakeup" in end else numbers(1))


def test_a_wakeup_before_the_call_ends_the_next_one(bus: Bus) -> None:
    filled(bus)

    async def main() -> None:
        async with bus.async_consumer("t") as consumer:
            consumer.wakeup()
            assert await consumer.poll(timeout=60) == []
            found = []
            async for message in consumer:
                found.append(message.value)
                if len(found) == 3:
                    consumer.wakeup()
            assert found == numbers(3)
            assert values(await consumer.poll()) == numbers(7, 3)

    run(main())


def test_closing_the_bus_closes_them(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    filled(bus, 5)

    async def main() -> None:
        producer, consumer = bus.async_producer(linger_ms=60_000), bus.async_consumer("t", group="g")
        await consumer.poll(max_messages=2)
        await consumer.poll(max_messages=2)
        delivery = await producer.send("t", b"5")
        bus.close()
        assert delivery.done()
        for call in (consumer.poll(), consumer.commit(), producer.send("t", b"")):
            with pytest.raises(ClosedError):
                await call
        await producer.close()
        await consumer.close()

    run(main())


def test_a_client_goes_on_in_another_loop(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    filled(bus, 4)
    producer, consumer = bus.async_producer(), bus.async_consumer("t", group="g")

    async def main() -> list[Any]:
        await producer.send("t", b"more")
        task = asyncio.ensure_future(consumer.poll(timeout=PATIENCE, max_messages=2))
        return values(await task)

    assert run(main()) + run(main()) == numbers(4)
    bus.close()


# -- callbacks --------------------------------------------------------------------------------------------------------


def test_callbacks_are_called_in_the_loop(bus: Bus) -> None:
    filled(bus, 2, partitions=2)
    seen: list[Any] = []

    async def main() -> None:
        async def assigned(consumer: AsyncConsumer, partitions: list[TopicPartition]) -> None:
            await asyncio.sleep(0)
            seen.append(("assigned", consumer is it, threading.get_ident(), len(partitions)))

        def revoked(consumer: AsyncConsumer, partitions: list[TopicPartition]) -> None:
            seen.append(("revoked", consumer is it, threading.get_ident(), len(partitions)))

        it = bus.async_consumer("t", group="g", on_assign=assigned, on_revoke=revoked)
        async with it:
            pass
        me = threading.get_ident()
        assert seen == [("assigned", True, me, 2), ("revoked", True, me, 2)]

    run(main())


def test_a_callback_may_call_the_consumer(bus: Bus) -> None:
    filled(bus)

    async def main() -> list[int]:
        async def assigned(consumer: AsyncConsumer, partitions: list[TopicPartition]) -> None:
            assert await consumer.position(TP) == 0
            await asyncio.gather(consumer.seek(TP, 6), consumer.lag())
            await consumer.commit({TP: 2})

        async with bus.async_consumer(group="g") as consumer:
            await consumer.subscribe("t", on_assign=assigned)
            assert await consumer.committed(TP) == 2
            return offsets(await consumer.poll())

    assert run(main()) == [6, 7, 8, 9]


def test_what_a_callback_raises_comes_out_of_the_call(bus: Bus) -> None:
    filled(bus)

    async def main() -> None:
        async def fails(consumer: AsyncConsumer, partitions: list[TopicPartition]) -> None:
            raise ZeroDivisionError

        consumer = bus.async_consumer("t", group="g", on_assign=fails)
        with pytest.raises(ZeroDivisionError):
            await consumer.poll()
        await consumer.close()

    run(main())
    assert bus.groups() == []


def test_many_callbacks_that_need_the_disk_do_not_wait_for_each_other(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    filled(bus, 1, partitions=12)
    producer = bus.async_producer()
    reader = [bus.async_consumer("t") for _ in range(12)]
    done = []

    async def main() -> None:
        here = 0

        def callback(number: int) -> Callable[..., Awaitable[None]]:
            async def assigned(consumer: AsyncConsumer, partitions: list[TopicPartition]) -> None:
                nonlocal here
                here += 1
                await come_about(lambda: here == 12)  # all are inside a callback
                bus.topic(f"u{number}")
                await (await producer.send(f"u{number}", b""))
                await reader[number].poll()
                await consumer.position(partitions[0])
                done.append(number)

            return assigned

        consumers = [bus.async_consumer("t", group=f"g{n}", on_assign=callback(n)) for n in range(12)]
        await asyncio.gather(*(consumer.poll() for consumer in consumers))
        for consumer in [*consumers, *reader]:
            await consumer.close()
        await producer.close()

    run(main())
    assert sorted(done) == list(range(12))


@pytest.mark.parametrize("where", ["in the loop", "in a thread"])
def test_the_bus_can_be_closed_in_the_middle_of_a_callback(open_bus: OpenBus, where: str) -> None:
    bus = open_bus(clock=None)
    filled(bus)

    async def main() -> None:
        here, go = asyncio.Event(), asyncio.Event()
        failed: list[BaseException] = []

        async def assigned(consumer: AsyncConsumer, partitions: list[TopicPartition]) -> None:
            here.set()
            await go.wait()
            try:
                await consumer.commit()
            except StreamliteError as error:
                failed.append(error)

        consumer = bus.async_consumer("t", group="g", on_assign=assigned)
        task = asyncio.ensure_future(consumer.poll())
        await here.wait()
        if where == "in the loop":
            bus.close()
            go.set()
        else:
            closing = asyncio.ensure_future(asyncio.to_thread(bus.close))
            await turns()
            go.set()
            await closing
        await asyncio.wait([task])
        if where == "in the loop":
            assert isinstance(task.exception(), ClosedError)
            await come_about(lambda: bool(failed))
            assert isinstance(failed[0], ClosedError)

    run(main())


def test_a_bus_closed_in_the_loop_still_calls_back(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    filled(bus)
    seen: list[str] = []

    async def main() -> None:
        async def revoked(consumer: AsyncConsumer, partitions: list[TopicPartition]) -> None:
            seen.append("coroutine")

        one = bus.async_consumer("t", group="g", on_revoke=revoked)
        two = bus.async_consumer("t", group="h", on_revoke=lambda *_: seen.append("function"))
        await one.poll()
        await two.poll()
        bus.close()
        assert seen == ["function"]  # nothing can be awaited in there
        await turns()
        assert seen == ["function", "coroutine"]

    run(main())


# -- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.needs("clock")
@pytest.mark.parametrize("polled", [0, 3])
@GROUPS
def test_cancelled_anywhere_a_poll_swallows_nothing(bus: Bus, options: dict[str, Any], polled: int) -> None:
    filled(bus)
    number = 0

    async def prepare(late: bool, at: int) -> bool:
        nonlocal number
        number += 1
        named = {"group": f"g{number}"} if options else {}
        async with bus.async_consumer("t", **named) as consumer:
            if polled:
                assert values(await consumer.poll(max_messages=polled)) == numbers(polled)
            was_cut = await cut(consumer.poll(timeout=1, max_messages=4), at, late)
            if named:
                assert (await consumer.committed(TP) or 0) <= polled
            if was_cut:
                assert await consumer.position(TP) in (0, polled)
                assert values(await drain(consumer)) == numbers(10 - polled, polled)
        return was_cut

    async def main() -> None:
        assert await every_cut(prepare) >= 2

    run(main())


@pytest.mark.needs("clock")
def test_polls_that_are_all_cancelled_before_their_step_ends_come_to_their_messages(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the machine is: what the step of one found is handed out by the next that waits long enough."""
    filled(bus, 3)
    begun, may_end = threading.Event(), threading.Event()

    def slow(self: Steps, timeout: float, most: int | None = None) -> list[Message]:
        found = Consumer.poll(self, timeout, most)
        begun.set()
        may_end.wait(PATIENCE)
        return found

    async def cancelled(consumer: AsyncConsumer) -> None:
        task = asyncio.ensure_future(consumer.poll(5))
        await turns()
        await come_about(begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main() -> None:
        async with bus.async_consumer("t", group="g", auto_commit=False) as consumer:
            with monkeypatch.context() as patch:
                patch.setattr(Steps, "poll", slow)
                await cancelled(consumer)
                await cancelled(consumer)
                patch.setattr(Steps, "poll", None)  # no other step is made
                may_end.set()
                assert [message.value for message in await consumer.poll(5)] == numbers(3)
            await consumer.commit()
            assert await consumer.committed(TP) == 3
            put(bus, "t", b"later", partition=0)
            assert values(await consumer.poll(5)) == [b"later"]

    run(main())


@pytest.mark.parametrize("then", ["commit", "columns", "fewer"])
def test_what_a_cancelled_poll_found_is_given_to_none_but_the_same_poll(bus: Bus, then: str) -> None:
    filled(bus, 3)

    async def main() -> None:
        async with bus.async_consumer("t", group="g", auto_commit=False) as consumer:
            at = 0
            while await cut(consumer.poll(5), at, late=False):
                at += 1
                if then == "commit":
                    await consumer.commit()
                    assert await consumer.committed(TP) is None
                elif then == "columns":
                    found = await consumer.poll_columns(5)
                    assert [value for columns in found for value in columns.values] == numbers(3)
                    await consumer.seek(TP, 0)
                else:
                    assert values(await consumer.poll(5, max_messages=1)) == numbers(1)
                    await consumer.seek(TP, 0)
            assert at > 0

    run(main())


def test_cancelled_anywhere_nothing_is_committed_that_nobody_got(bus: Bus) -> None:
    filled(bus)
    number = 0

    async def prepare(late: bool, at: int) -> bool:
        nonlocal number
        number += 1
        consumer = bus.async_consumer("t", group=f"g{number}")
        was_cut = await cut(consumer.poll(), at, late)
        if was_cut:
            await consumer.commit()
        await consumer.close()
        if was_cut:
            assert committed(bus, "t", f"g{number}") in (None, 0)
        return was_cut

    async def main() -> None:
        assert await every_cut(prepare) >= 2

    run(main())


@pytest.mark.needs("clock")
def test_cancelled_while_it_waits_a_poll_misses_nothing(bus: Bus) -> None:
    bus.topic("t")
    sent = 0

    async def prepare(late: bool, at: int) -> bool:
        nonlocal sent
        async with bus.async_consumer("t", start="latest") as consumer:
            was_cut = await cut(consumer.poll(timeout=1), at, late)
            put(bus, "t", b"%d" % sent)
            assert values(await consumer.poll(timeout=PATIENCE)) == [b"%d" % sent]
            sent += 1
        return was_cut

    async def main() -> None:
        assert await every_cut(prepare) >= 2

    run(main())


@pytest.mark.needs("clock")
@pytest.mark.parametrize("taken", [0, 2, 5])
@GROUPS
def test_cancelled_anywhere_a_loop_can_be_asked_again(bus: Bus, options: dict[str, Any], taken: int) -> None:
    filled(bus)
    number = 0

    async def prepare(late: bool, at: int) -> bool:
        nonlocal number
        number += 1
        named = {"group": f"g{number}"} if options else {}
        async with bus.async_consumer("t", max_poll_messages=5, **named) as consumer:
            loop = consumer.messages(timeout=1)
            found = [(await anext(loop)).value for _ in range(taken)]
            was_cut = await cut(loop.__anext__(), at, late)
            if not was_cut:
                return False
            anew = at % 2
            found += [message.value async for message in (consumer.messages(timeout=1) if anew else loop)]
            assert found == numbers(10)
        return True

    async def main() -> None:
        await every_cut(prepare)

    run(main())


@pytest.mark.needs("clock")
@pytest.mark.parametrize("call", ["commit", "committed", "seek_to_end", "lag", "wait_assigned", "unsubscribe", "close"])
def test_cancelled_anywhere_a_call_leaves_the_consumer_whole(bus: Bus, call: str) -> None:
    filled(bus)
    number = 0

    async def prepare(late: bool, at: int) -> bool:
        nonlocal number
        number += 1
        name = f"g{number}"
        consumer = bus.async_consumer("t", group=name)
        await consumer.poll(max_messages=4)
        await consumer.commit()
        arguments = (TP,) if call == "committed" else ()
        was_cut = await cut(getattr(consumer, call)(*arguments), at, late)
        if call not in ("close", "unsubscribe"):
            await consumer.seek(TP, 4)
            assert values(await consumer.poll(timeout=1)) == numbers(6, 4)
            await consumer.commit({TP: 5})
            assert await consumer.committed(TP) == 5
        elif call == "unsubscribe":
            await consumer.subscribe("t")
            assert consumer.assignment() == {TP}
        await consumer.close()
        assert not bus.group(name).members  # it has committed, so the group is there
        return was_cut

    async def main() -> None:
        assert await every_cut(prepare) >= 2

    run(main())


def test_wait_for_may_give_up_a_poll_again_and_again(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    topic = bus.topic("t")

    async def main() -> list[Any]:
        found: list[Message] = []
        async with bus.async_consumer("t", group="g") as consumer, bus.async_producer() as producer:

            async def send() -> None:
                for value in numbers(200):
                    await producer.send(topic, value)
                    await asyncio.sleep(0.0002)

            task = asyncio.ensure_future(send())
            patience_s = 0.001
            while len(found) < 200:
                try:
                    found += await asyncio.wait_for(consumer.poll(timeout=PATIENCE), patience_s)
                except TimeoutError:
                    patience_s *= 1.1  # on a machine so busy that no poll is through before it is given up
                else:
                    patience_s = 0.001
            await task
        return values(found)

    assert run(main()) == numbers(200)


# -- threads, and another loop ----------------------------------------------------------------------------------------


def test_no_thread_for_each_consumer(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    bus.topic("t", partitions=4)

    async def main() -> int:
        consumers = [bus.async_consumer("t", group=f"g{n % 7}") for n in range(30)]
        consumers += [bus.async_consumer("t") for _ in range(30)]
        before = threading.active_count()
        tasks = [asyncio.ensure_future(consumer.poll(timeout=None)) for consumer in consumers]
        await asyncio.gather(*map(asleep, consumers))
        count = threading.active_count() - before
        for consumer in consumers:
            consumer.wakeup()
        await asyncio.gather(*tasks)
        for consumer in consumers:
            await consumer.close()
        return count

    assert run(main()) <= 4  # the bus's pool


def test_under_uvloop(open_bus: OpenBus) -> None:
    uvloop = pytest.importorskip("uvloop")
    bus = open_bus(clock=None)
    topic = bus.topic("t", partitions=2)

    async def main() -> list[Any]:
        found: list[Message] = []
        async with bus.async_consumer("t", group="g") as consumer, bus.async_producer() as producer:

            async def send() -> None:
                for value in numbers(50):
                    await (await producer.send(topic, value, key=b"k"))
                await producer.send_many(topic, numbers(3000, 50), keys=[b"k"] * 3000)

            task = asyncio.ensure_future(send())
            async for message in consumer.messages(timeout=PATIENCE):
                found.append(message)
                if len(found) == 3050:
                    break
            await task
            await consumer.commit()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(consumer.poll(timeout=PATIENCE), 0.01)
        return values(found)

    assert uvloop.run(asyncio.wait_for(main(), PATIENCE)) == numbers(3050)
