"""Transactions of an event loop: they are the sync ones, and belong to their task."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from streamlite import Bus, TopicPartition, errors

from .helpers import PATIENCE, committed, values

R = TypeVar("R")
TP = TopicPartition("in", 0)


def run(main: Coroutine[Any, Any, R]) -> R:
    async def bounded() -> R:
        return await asyncio.wait_for(main, PATIENCE)

    return asyncio.run(bounded())


@pytest.fixture
def full(bus: Bus) -> Bus:
    """Three messages in `in`, nothing in `out`."""
    bus.topic("in")
    bus.topic("out", partitions=2)
    with bus.producer() as producer:
        for number in range(3):
            producer.send("in", b"%d" % number).result(PATIENCE)
    return bus


def written(bus: Bus) -> list[bytes]:
    return sorted(values(bus.topic("out").read()))


def test_messages_and_offsets_are_there_when_the_block_is_left(full: Bus) -> None:
    async def main() -> None:
        options = {"group": "g", "auto_commit": False}
        async with full.async_producer() as producer, full.async_consumer("in", **options) as consumer:
            async with producer.transaction(consumer) as tx:
                messages = await consumer.poll(timeout=PATIENCE)
                sent = [await tx.send("out", m.value, key=m.value) for m in messages]
                column = await tx.send_many("out", [b"a", b"b"], partition=1)
                assert not written(full)
                with pytest.raises(errors.TransactionError, match="inside its own transaction"):
                    await sent[0]
            assert {(await one).topic for one in sent} == {"out"}
            assert len(await column) == 2
            assert await consumer.committed(TP) == 3

    run(main())
    assert written(full) == [b"0", b"1", b"2", b"a", b"b"]
    assert committed(full, "in", "g") == 3


@pytest.mark.parametrize("how", ["raised", "aborted", "cancelled"])
def test_what_is_aborted_is_nowhere_and_comes_again(full: Bus, how: str) -> None:
    async def block(producer: Any, consumer: Any, begun: asyncio.Event) -> None:
        async with producer.transaction(consumer) as tx:
            assert len(await consumer.poll(timeout=PATIENCE)) == 3
            await tx.send("out", b"no", partition=0)
            begun.set()
            if how == "raised":
                raise ZeroDivisionError
            if how == "aborted":
                await tx.abort()
                with pytest.raises(errors.TransactionError):
                    await tx.send("out", b"late", partition=0)
                return
            await asyncio.Event().wait()

    async def main() -> None:
        options = {"group": "g", "auto_commit": False}
        async with full.async_producer() as producer, full.async_consumer("in", **options) as consumer:
            begun = asyncio.Event()
            task = asyncio.create_task(block(producer, consumer, begun))
            await begun.wait()
            if how == "cancelled":
                task.cancel()
            [outcome] = await asyncio.gather(task, return_exceptions=True)
            expected = {"raised": ZeroDivisionError, "aborted": type(None), "cancelled": asyncio.CancelledError}
            assert isinstance(outcome, expected[how])
            assert len(await consumer.poll(timeout=PATIENCE)) == 3
            assert await consumer.committed(TP) is None

    run(main())
    assert written(full) == []


def test_the_block_belongs_to_its_task(full: Bus) -> None:
    async def main() -> None:
        async with full.async_producer() as producer:
            async with producer.transaction() as tx:
                await tx.send("out", b"inside", partition=0)
                with pytest.raises(errors.TransactionError):
                    await producer.send("out", b"own", partition=0)
                with pytest.raises(errors.TransactionError):
                    async with producer.transaction():
                        pytest.fail("it was entered")

                async def other() -> None:
                    await (await producer.send("out", b"other", partition=0))
                    async with producer.transaction() as another:
                        await another.send("out", b"another", partition=1)

                await asyncio.create_task(other())
                assert written(full) == [b"another", b"other"]
            await (await producer.send("out", b"after", partition=0))

    run(main())
    assert written(full) == [b"after", b"another", b"inside", b"other"]


def test_offsets_of_another_consumer_are_committed_with_it(full: Bus) -> None:
    async def main() -> None:
        options = {"group": "g", "auto_commit": False}
        async with full.async_producer() as producer, full.async_consumer("in", **options) as consumer:
            await consumer.poll(timeout=PATIENCE)
            async with producer.transaction() as tx:
                await tx.commit_offsets(consumer, {TP: 2})
            assert await consumer.committed(TP) == 2

    run(main())


def test_what_is_no_consumer_of_a_loop_is_refused(full: Bus) -> None:
    async def main() -> None:
        async with full.async_producer() as producer:
            with full.consumer("in", group="g", auto_commit=False) as consumer:
                with pytest.raises(errors.ConfigError, match="AsyncConsumer"):
                    producer.transaction(consumer)
                async with producer.transaction() as tx:
                    with pytest.raises(errors.ConfigError, match="AsyncConsumer"):
                        await tx.commit_offsets(consumer)
            async with full.async_consumer("in", group="g") as consumer_that_commits:
                with pytest.raises(errors.ConfigError, match="auto_commit=False"):
                    async with producer.transaction(consumer_that_commits):
                        pytest.fail("it was entered")

    run(main())
