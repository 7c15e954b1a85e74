"""Between the event loop and what may block: which thread does what, turns, the pool."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlite
from streamlite import Bus, ClosedError, StorageError, TopicPartition
from streamlite.aio import loop as between
from streamlite.aio.loop import THREADS_MAX, Aside, Pool, Turn, outcome
from streamlite.aio.steps import Steps
from streamlite.partition import Partition
from streamlite.reader import Cursor

PATIENCE = 10.0
TP = TopicPartition("t", 0)


def run(main: Any) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(main, PATIENCE)

    return asyncio.run(bounded())


@pytest.fixture
def bus(tmp_path: Path) -> Any:
    with streamlite.open(tmp_path / "bus", sync="never") as bus:
        yield bus


def in_which_thread(monkeypatch: pytest.MonkeyPatch, one: type, name: str) -> list[bool]:
    """Note down for every call of a method whether it was the main thread's."""
    seen: list[bool] = []
    method = getattr(one, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        return method(*args, **kwargs)

    monkeypatch.setattr(one, name, call)
    return seen


# -- who does what ----------------------------------------------------------------------------------------------------


def test_asyncio_is_loaded_by_who_uses_it() -> None:
    code = (
        "import sys, streamlite\n"
        "assert 'asyncio' not in sys.modules\n"
        "assert {'AsyncProducer', 'AsyncConsumer'} <= set(dir(streamlite))\n"
        "assert not hasattr(streamlite, 'AsyncNothing')\n"
        "from streamlite import AsyncConsumer\n"
        "assert streamlite.AsyncConsumer is AsyncConsumer and 'asyncio' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20, cwd=Path(streamlite.__file__).parents[1])


def test_the_loop_writes_nothing_to_the_disk(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = bus.topic("t")
    writes = in_which_thread(monkeypatch, Partition, "try_append")

    async def main() -> None:
        async with bus.async_producer() as producer:
            for _ in range(20):
                await (await producer.send(topic, b"x"))
            await producer.send_many(topic, [b"x"] * 5000)
            await producer.flush()

    run(main())
    assert len(writes) > 20
    assert not any(writes)


def test_the_loop_reads_only_what_was_written_while_it_waited(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        producer.send_many(topic, [b"x"] * 5000).result(PATIENCE)
    reads = in_which_thread(monkeypatch, Cursor, "fetch")

    async def main() -> None:
        async with bus.async_consumer("t") as consumer:
            count = 0
            while count < 5000:
                count += len(await consumer.poll(1))
            assert reads
            assert not any(reads)
            for size, number in ((10, 1), (1 << 20, 1), (10, 101)):
                reads.clear()
                task = asyncio.ensure_future(consumer.poll(PATIENCE))
                await until(lambda: consumer._steps.asleep and consumer._under_way is None)
                with bus.producer() as producer:
                    producer.send_many(topic, [b"x" * size] * number).result(PATIENCE)
                assert [len(message.value) for message in await task] == [size] * number
                assert any(reads) == (size == 10 and number == 1)

    run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.0005)


def test_while_it_waits_no_thread_is_held(bus: Bus) -> None:
    bus.topic("t", partitions=3)

    async def main() -> None:
        consumers = [bus.async_consumer("t") for _ in range(10)]
        tasks = [asyncio.ensure_future(consumer.poll(None)) for consumer in consumers]
        pool = Pool.of(bus._engine)
        await until(lambda: all(c._steps.asleep and c._under_way is None for c in consumers))
        await until(lambda: pool._idle == len(pool._threads))  # a step's result comes before its thread goes to wait
        assert len(pool._threads) <= THREADS_MAX
        assert not pool._steps
        for consumer in consumers:
            consumer.wakeup()
        await asyncio.gather(*tasks)

    run(main())


def test_closing_the_bus_ends_the_threads_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        with streamlite.open(tmp_path / "bus") as bus:
            topic = bus.topic("t")
            producer, consumer = bus.async_producer(), bus.async_consumer("t", group="g")
            await (await producer.send(topic, b"x"))
            assert len(await consumer.poll(PATIENCE)) == 1
            task = asyncio.ensure_future(consumer.poll(PATIENCE))
            await until(lambda: consumer._steps.asleep and consumer._under_way is None)
            assert [name for name in (tmp_path / "bus" / "wake").iterdir() if name.is_fifo()]
            descriptor = consumer._steps.place._waiter.arm().fileno()
        assert await task == []
        assert not asyncio.get_running_loop().remove_reader(descriptor)

    run(main())
    assert set(threading.enumerate()) - before == set()
    assert not [name for name in (tmp_path / "bus" / "wake").iterdir() if name.is_fifo()]


# -- turns ------------------------------------------------------------------------------------------------------------


def test_a_turn_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(between, "monotonic", lambda: now[0])

    async def main() -> None:
        turn, others = Turn(), 0

        async def other() -> None:
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        await turn.give()
        await turn.give()
        assert others == 0  # within its time
        now[0] += between.HOLD_S
        await turn.give()
        assert others == 1
        await asyncio.sleep(0)  # the loop has run: the turn is fresh, however long it takes to ask
        now[0] += 5
        seen = others
        await turn.give()
        assert others == seen
        task.cancel()

    run(main())


def test_a_thread_stands_aside_when_it_has_gone_on_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], list[float]()
    monkeypatch.setattr(between, "monotonic", lambda: now[0])
    monkeypatch.setattr(between, "sleep", slept.append)
    aside = Aside()
    aside.stand()
    assert slept == []
    now[0] += 0.001
    aside.stand()
    aside.stand()
    assert len(slept) == 1
    now[0] += 0.001
    aside.begin()
    aside.stand()
    assert len(slept) == 1


# -- the pool ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Any:
    pool = Pool()
    yield pool
    pool.close()


def test_a_second_thread_works_when_the_first_is_held_up_and_no_more_than_a_few(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    async def main() -> None:
        monkeypatch.setattr(between, "_LATE_S", 60.0)
        await asyncio.gather(*(outcome(pool.submit(lambda: None)) for _ in range(100)))
        assert len(pool._threads) == 1
        monkeypatch.setattr(between, "_LATE_S", 0.001)
        futures = [pool.submit(lambda: gate.wait(PATIENCE)) for _ in range(20)]
        await until(lambda: len(pool._steps) == 20 - THREADS_MAX)
        for _ in range(3):  # whatever happens when a thread is late happens no more
            pool._taken_at = 0.0
            pool._relieve()
        gate.set()
        assert all(await asyncio.gather(*map(outcome, futures)))

    run(main())
    assert len(pool._threads) == THREADS_MAX


def test_an_idle_thread_is_used_again(pool: Pool) -> None:
    for number in range(10):
        assert pool.submit(lambda n=number: n).result(PATIENCE) == number
        while not pool._idle:  # the result comes before the thread has gone to wait
            threading.Event().wait(0.0001)
    assert len(pool._threads) == 1


def test_what_a_step_raises_is_its_outcome(pool: Pool) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await outcome(pool.submit(lambda: 1 // 0))
        with pytest.raises(SystemExit):
            await outcome(pool.submit(sys.exit))
        assert await outcome(pool.submit(lambda: 5)) == 5  # the thread has survived it

    run(main())


def test_a_cancelled_outcome_leaves_the_step_alone(pool: Pool) -> None:
    gate = threading.Event()

    async def main() -> None:
        future = pool.submit(lambda: gate.wait(PATIENCE))
        task = asyncio.ensure_future(outcome(future))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        assert await outcome(future) is True

    run(main())


def test_a_thread_that_waits_for_the_loop_makes_room_for_another(pool: Pool) -> None:
    done = threading.Event()

    def waits() -> bool:
        with pool.lent():
            return done.wait(PATIENCE)

    async def main() -> None:
        futures = [pool.submit(waits) for _ in range(3 * THREADS_MAX)]
        futures.append(pool.submit(lambda: done.set() or True))
        assert all(await asyncio.gather(*map(outcome, futures)))

    run(main())


def test_a_closed_pool_does_what_is_left_and_takes_nothing_more(pool: Pool) -> None:
    gate, seen = threading.Event(), list[int]()

    def step(number: int) -> None:
        assert gate.wait(PATIENCE)
        seen.append(number)

    async def main() -> None:
        futures = [pool.submit(lambda n=number: step(n)) for number in range(10)]
        closing = asyncio.ensure_future(asyncio.to_thread(pool.close))
        await until(lambda: pool._closed)
        with pytest.raises(ClosedError):
            pool.submit(lambda: None)
        gate.set()
        await closing
        await asyncio.gather(*map(outcome, futures))

    run(main())
    assert sorted(seen) == list(range(10))
    assert pool._threads == set()


def test_without_a_thread_to_be_had_a_step_is_refused(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(StorageError, match="cannot start a thread"):
            pool.submit(lambda: None)
        assert not pool._steps
    assert pool.submit(lambda: 5).result(PATIENCE) == 5


def test_the_pool_says_what_it_does(pool: Pool) -> None:
    assert repr(pool) == "<Pool: 0 threads, 0 idle, 0 steps to do>"


def test_the_clients_say_what_they_are(bus: Bus) -> None:
    bus.topic("t")
    consumer, producer = bus.async_consumer("t", group="g"), bus.async_producer()
    assert repr(consumer).endswith("in group 'g': 0 partitions>")
    assert repr(consumer).startswith("<AsyncConsumer of ")
    assert repr(producer).startswith("<AsyncProducer on ")
    bus.close()
    assert repr(consumer).endswith(": closed>")
    assert repr(producer).endswith(": closed>")


# -- what could be lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "disk"])
def test_what_is_published_before_the_place_is_armed_is_found(
    bus: Bus, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events: the step finds nothing; somebody publishes and sees nobody to ring; the task goes to sleep."""
    monkeypatch.setattr(Steps, "_pause", lambda _: None)  # looking again by itself would find it too, later

    async def main(bus: Bus) -> None:
        topic = bus.topic("t")
        async with bus.async_consumer("t") as consumer:
            place = consumer._steps.place
            sleep = place.sleep

            async def published_before(ready: Callable[[], bool], timeout: float | None) -> None:
                with bus.producer() as producer:
                    producer.send(topic, b"x").result(PATIENCE)
                await sleep(ready, timeout)

            monkeypatch.setattr(place, "sleep", published_before)
            assert len(await consumer.poll(PATIENCE * 2)) == 1

    if not memory:
        run(main(bus))
        return
    with streamlite.open(":memory:") as other:
        run(main(other))


def test_calls_that_are_given_up_do_not_pile_up_behind_a_step_that_hangs(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = bus.topic("t")
    with bus.producer() as producer:
        producer.send_many(topic, [b"x"] * 10).result(PATIENCE)
    gate, fetch = threading.Event(), Cursor.fetch

    def hangs(cursor: Cursor) -> Any:
        assert gate.wait(PATIENCE)
        return fetch(cursor)

    async def main() -> None:
        async with bus.async_consumer("t", group="g") as consumer:
            monkeypatch.setattr(Cursor, "fetch", hangs)
            for _ in range(5):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(consumer.poll(1), 0.01)
            pool = Pool.of(bus._engine)
            assert len(pool._threads) - pool._idle == 1
            assert not pool._steps
            gate.set()
            assert len(await consumer.poll(PATIENCE)) == 10

    run(main())
