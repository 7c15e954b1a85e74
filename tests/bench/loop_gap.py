"""How long streamlite keeps an event loop from its other tasks: `python -m tests.bench.loop_gap [--directory D]`.

A task beside the load takes every turn that the loop gives it and notes how long the next one was in coming, and how
much of that the loop's thread worked (CPU time): the rest is waiting, for the interpreter, the disk or a processor. The
line "nothing beside it" is the machine's own share: whatever else runs there, and the kernel's turns. Python's garbage
collector is off: a full collection of this program's heap takes 7 to 20 ms by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import streamlite
from streamlite import Bus
from tests.bench.case import percentile

VALUE = b"x" * 100
MESSAGES = 200_000
Load = Callable[[Bus], Awaitable[int]]


async def nothing(bus: Bus) -> int:
    await asyncio.sleep(2)
    return 0


async def send(bus: Bus) -> int:
    async with bus.async_producer() as producer:
        for number in range(MESSAGES):
            await producer.send("t", VALUE, key=b"%d" % (number % 100))
    return MESSAGES


async def send_many(bus: Bus) -> int:
    async with bus.async_producer() as producer:
        await (await producer.send_many("t", [VALUE] * MESSAGES))
    return MESSAGES


async def send_and_wait(bus: Bus) -> int:
    async with bus.async_producer() as producer:
        for _ in range(5_000):
            await (await producer.send("t", VALUE))
    return 5_000


async def poll(bus: Bus) -> int:
    count = 0
    async with bus.async_consumer("t") as consumer:
        while messages := await consumer.poll(timeout=0.5):
            count += len(messages)
    return count


async def iterate(bus: Bus, **options: Any) -> int:
    count = 0
    async with bus.async_consumer("t", **options) as consumer:
        async for _ in consumer.messages(timeout=0.5):
            count += 1
    return count


async def iterate_in_a_group(bus: Bus) -> int:
    return await iterate(bus, group=f"g{time.monotonic_ns()}")


async def many_consumers(bus: Bus) -> int:
    """A hundred consumers in ten groups wait; one producer sends to all of them now and then."""
    async with asyncio.TaskGroup() as tasks, bus.async_producer() as producer:
        consumers = [bus.async_consumer("u", group=f"m{number % 10}", start="latest") for number in range(100)]

        async def receive(consumer: streamlite.AsyncConsumer) -> None:
            async with consumer:
                async for _ in consumer:
                    pass

        for consumer in consumers:
            tasks.create_task(receive(consumer))
        for _ in range(300):
            await producer.send("u", VALUE)
            await asyncio.sleep(0.01)
        print(f"   threads: {threading.active_count()}")
        for consumer in consumers:
            consumer.wakeup()
    return 300


async def join_together(bus: Bus) -> int:
    """A hundred consumers join one group at the same time, and leave it."""
    group = f"j{time.monotonic_ns()}"
    consumers = [bus.async_consumer("u", group=group) for _ in range(100)]
    await asyncio.gather(*(consumer.__aenter__() for consumer in consumers))
    await asyncio.gather(*(consumer.close() for consumer in consumers))
    return 100


async def latency(bus: Bus) -> int:
    """Send to receive in one loop, not a gap: printed beside."""
    seen: list[float] = []
    async with bus.async_producer() as producer, bus.async_consumer("t", start="latest") as consumer:

        async def receive() -> None:
            while len(seen) < 1_000:
                messages = await consumer.poll(timeout=5)
                now = time.perf_counter_ns()
                seen.extend((now - int(message.value)) / 1000 for message in messages)

        task = asyncio.ensure_future(receive())
        while not task.done():
            await asyncio.sleep(0.002)
            await producer.send("t", b"%d" % time.perf_counter_ns())
        await task
    print(f"   send to receive: p50 {percentile(seen, 0.5):.0f} us, p99 {percentile(seen, 0.99):.0f} us")
    return len(seen)


LOADS: list[tuple[str, Load]] = [
    ("nothing beside it", nothing),
    ("send", send),
    ("send_many", send_many),
    ("send and await each", send_and_wait),
    ("poll a backlog", poll),
    ("async for, a backlog", iterate),
    ("async for in a group", iterate_in_a_group),
    ("100 consumers wait", many_consumers),
    ("100 join one group", join_together),
]


async def measure(bus: Bus, load: Load) -> tuple[int, float, list[float], list[float]]:
    """The load's count, its seconds, the gaps beside it in ms, and what the thread worked in each."""
    gaps: list[float] = []
    work: list[float] = []

    async def beside() -> None:
        last, worked = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0)
            now, works = time.perf_counter(), time.thread_time()
            gaps.append((now - last) * 1000)
            work.append((works - worked) * 1000)
            last, worked = now, works

    gc.collect()
    gc.disable()
    task = asyncio.ensure_future(beside())
    began = time.perf_counter()
    count = await load(bus)
    seconds = time.perf_counter() - began
    task.cancel()
    gc.enable()
    return count, seconds, gaps, work


async def main(bus: Bus) -> None:
    for name, load in LOADS:
        count, seconds, gaps, work = await measure(bus, load)
        rate = f"{count / seconds:>10,.0f}/s" if count else " " * 12
        print(
            f"{name:<22} {rate}  gap p50 {percentile(gaps, 0.5):6.3f} ms  p99 {percentile(gaps, 0.99):6.3f} ms  "
            f"p99.9 {percentile(gaps, 0.999):6.3f} ms  max {max(gaps):6.2f} ms  "
            f"work p99.9 {percentile(work, 0.999):6.3f} ms  max {max(work):5.2f} ms"
        )
    await latency(bus)


def run(runner: Callable[[Any], Any], place: str) -> None:
    with streamlite.open(place) as bus:
        bus.topic("t", partitions=4)
        bus.topic("u", partitions=10)
        runner(main(bus))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--uvloop", action="store_true")
    asked = parser.parse_args()
    runner: Callable[[Any], Any] = asyncio.run
    if asked.uvloop:
        import uvloop

        runner = uvloop.run
    print(sys.version.split()[0], "uvloop" if asked.uvloop else "asyncio")
    with tempfile.TemporaryDirectory(dir=asked.directory) as directory:
        for place in (f"{directory}/bus", ":memory:"):
            print(place if place == ":memory:" else "disk")
            run(runner, place)
