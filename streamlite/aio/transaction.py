"""A transaction of an event loop's: the sync one, whose ends are steps.

Staging is memory, and done in the loop's thread; a column, a block's end and everything that a consumer is asked for
run in the bus's pool. The block belongs to its task: another task's sends and transactions of the same producer go on.

A task that is cancelled in the block aborts. One that is cancelled while the block is being left may find it committed
or not; its deliveries tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from streamlite.aio.consumer import AsyncConsumer
from streamlite.aio.loop import busy, outcome
from streamlite.delivery import Delivery
from streamlite.errors import ConfigError
from streamlite.transaction import Transaction

if TYPE_CHECKING:
    from streamlite.aio.producer import AsyncProducer, _Sender
    from streamlite.message import Columns

__all__ = ["AsyncTransaction"]


class AsyncTransaction:
    """`async with producer.transaction(consumer) as tx:`. Made by `AsyncProducer.transaction`."""

    def __init__(self, producer: AsyncProducer, sender: _Sender, consumer: Any) -> None:
        if consumer is not None and not isinstance(consumer, AsyncConsumer):
            raise ConfigError(f"a transaction takes an AsyncConsumer; found {type(consumer).__name__}")
        self._producer = producer
        self._transaction = Transaction(sender, None)
        self._consumer: AsyncConsumer | None = consumer

    def __repr__(self) -> str:
        return repr(self._transaction).replace("<Transaction", "<AsyncTransaction", 1)

    async def __aenter__(self) -> AsyncTransaction:
        if self._consumer is not None:
            await self._ask(self._consumer, partial(self._transaction.take, self._consumer._steps))
        self._transaction.__enter__()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        await self._end(partial(self._transaction.leave, error))

    async def abort(self) -> None:
        """Publish nothing, as `Transaction.abort`."""
        await self._end(self._transaction.abort)

    async def send(
        self,
        topic: Any,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: int | datetime | None = None,
        headers: Mapping[str, bytes | None] | Iterable[tuple[str, bytes | None]] | None = None,
        sequence: int | None = None,
    ) -> Delivery:
        """As `Transaction.send`."""
        if headers is not None and not isinstance(headers, Mapping):
            headers = list(headers)  # it may be asked for twice
        call = partial(
            self._transaction.send, topic, value, key=key, partition=partition, timestamp=timestamp, headers=headers,
            sequence=sequence,
        )  # fmt: skip
        sent: Delivery = await self._producer._again(call, topic, aside=sequence is not None)
        return sent

    async def send_many(
        self,
        topic: Any,
        values: Sequence[Any] | Columns,
        *,
        keys: Sequence[Any] | None = None,
        partition: int | None = None,
        timestamps: Sequence[int | datetime] | None = None,
        headers: Sequence[Any] | None = None,
    ) -> Delivery:
        """As `Transaction.send_many`."""
        call = partial(
            self._transaction.send_many, topic, values, keys=keys, partition=partition, timestamps=timestamps,
            headers=headers,
        )  # fmt: skip
        sent: Delivery = await self._producer._again(call, topic, aside=True)
        return sent

    async def commit_offsets(self, consumer: Any, offsets: Mapping[Any, int] | None = None) -> None:
        """As `Transaction.commit_offsets`."""
        if not isinstance(consumer, AsyncConsumer):
            raise ConfigError(f"a transaction takes an AsyncConsumer; found {type(consumer).__name__}")
        await self._ask(consumer, partial(self._transaction.commit_offsets, consumer._steps, offsets))

    async def _ask(self, consumer: AsyncConsumer, call: Callable[[], Any]) -> None:
        with consumer._using():
            await consumer._do(call)

    async def _end(self, call: Callable[[], Any]) -> None:
        """Leave the block, with the consumer where there is one: what it was handed out is looked at."""
        if self._consumer is not None and not self._consumer._steps._closed:
            await self._ask(self._consumer, call)
            return
        with busy(self._producer._clock):
            await outcome(self._producer._pool.submit(call))
