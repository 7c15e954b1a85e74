"""The process that a test's producers run in when they are not to run in the test's: `split` is its other side.

One process serves many tests; a test's bus has a twin here, open on the same directory. It ends when the test run does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging.handlers import QueueHandler
from multiprocessing.connection import Client, Listener
from typing import Any

import streamlite
from streamlite import Delivery, RecordMetadata, errors
from streamlite.testing.clock import VirtualClock

from .line import Callback, Line, Steps, TopicRef

SETTLE_S = 0.2
"""For so long, by the machine's clock, a message on its way is waited for where the test's clock would not wait."""


class Twin:
    """A bus of this process, and what the test's bus had made on it."""

    def __init__(self, location: str, options: dict[str, Any]) -> None:
        self.clock = options["clock"]
        self.bus = streamlite.open(location, **options)
        self.producers: dict[int, Any] = {}
        self.deliveries: dict[int, Delivery] = {}
        self._numbers: dict[Delivery, int] = {}
        self._count = itertools.count()
        self._mutex = threading.Lock()

    def sync_clock(self, now: float | None) -> None:
        """Time is the test's: what has passed there has passed here."""
        if now is not None:
            with self._mutex:
                self.clock.advance(max(0.0, now - self.clock.monotonic()))

    def now(self) -> float | None:
        return self.clock.monotonic() if isinstance(self.clock, VirtualClock) else None

    def number_of(self, delivery: Delivery) -> int:
        with self._mutex:
            number = self._numbers.get(delivery)
            if number is None:
                number = self._numbers[delivery] = next(self._count)
                self.deliveries[number] = delivery
            return number

    def add(self, producer: Any) -> int:
        number = next(self._count)
        self.producers[number] = producer
        return number


class Sender:
    """What the test's process can ask for."""

    def __init__(self) -> None:
        self._twins: dict[int, Twin] = {}
        self._topics: dict[int, Any] = {}
        self._numbers = itertools.count()
        self._callbacks: Line | None = None
        self._callbacks_free = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._records: list[logging.LogRecord] = []
        logger = logging.getLogger("streamlite")
        logger.propagate = False
        logger.addHandler(_Kept(self._records))

    def handle(self, twin: int, now: float | None, what: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """One request: its result, or what it raised; what was logged; and the time it is here now."""
        found = self._twins.get(twin)
        if found is not None:
            found.sync_clock(now)
        try:
            done = True, self._do(twin, what, args, named)
        except Exception as error:  # noqa: BLE001 - it is the test's
            done = False, error
        records, self._records[:] = self._records[:], []
        return *done, records, None if found is None else found.now()

    def _do(self, twin: int, what: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        given = [self._value(twin, value) for value in args]
        return getattr(self, f"do_{what}")(
            twin, *given, **{name: self._value(twin, one) for name, one in named.items()}
        )

    def _value(self, twin: int, value: Any) -> Any:
        if isinstance(value, TopicRef):
            return self._topics[value.number]
        if isinstance(value, Callback):
            return self._calling(twin, value.number)
        return iter(value.items) if isinstance(value, Steps) else value

    # -- callbacks, logs ----------------------------------------------------------------------------------------------

    def _calling(self, twin: int, number: int) -> Callable[[Delivery], Any]:
        def call(delivery: Delivery) -> Any:
            found = self._twins[twin]
            request = number, found.number_of(delivery), found.now()
            line = Line.of_this_thread()
            if line is not None:
                return line.call(*request)
            with self._callbacks_free:
                assert self._callbacks is not None
                return self._callbacks.call(*request)

        return call

    def do_callbacks(self, twin: int, address: str) -> None:
        """Connect for the callbacks of threads that no test's thread waits for."""
        self._callbacks = Line(Client(address, "AF_UNIX"), self.handle)

    # -- the bus ------------------------------------------------------------------------------------------------------

    def do_open(self, twin: int, location: str, options: dict[str, Any], start_ms: int | None, now: float) -> None:
        if start_ms is not None:
            options["clock"] = VirtualClock(start_ms)
            options["clock"].advance(now)
        self._twins[twin] = Twin(location, options)

    def do_pid(self, twin: int) -> int:
        return os.getpid()

    def do_close(self, twin: int) -> None:
        self._twins[twin].bus.close()

    def do_forget(self, twin: int) -> None:
        found = self._twins.pop(twin, None)
        if found is not None:
            found.bus.close()

    def do_topic(self, twin: int, name: str, key: Any, value: Any) -> int:
        number = next(self._numbers)
        self._topics[number] = self._twins[twin].bus.topic(name, key=key, value=value)
        return number

    def do_create_topic(self, twin: int, name: str, partitions: int | None, settings: dict[str, Any]) -> None:
        self._twins[twin].bus.create_topic(name, partitions=partitions, **settings)

    def do_delete_topic(self, twin: int, name: str) -> None:
        self._twins[twin].bus.delete_topic(name)

    # -- producers ----------------------------------------------------------------------------------------------------

    def do_producer(self, twin: int, **options: Any) -> int:
        found = self._twins[twin]
        return found.add(found.bus.producer(**options))

    def do_async_producer(self, twin: int, **options: Any) -> int:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        found = self._twins[twin]
        return found.add(found.bus.async_producer(**options))

    def do_call(self, twin: int, producer: int, what: str, *args: Any, **named: Any) -> Any:
        """A method of a producer."""
        found = self._twins[twin]
        result = getattr(found.producers[producer], what)(*args, **named)
        if asyncio.iscoroutine(result):
            assert self._loop is not None
            result = asyncio.run_coroutine_threadsafe(result, self._loop).result()
        return found.number_of(result) if isinstance(result, Delivery) else result

    def do_nudge(self, twin: int, producer: int) -> None:
        """What a consumer of the test's bus asks for before it waits."""
        found = self._twins[twin]
        sender = found.producers[producer]
        sender = getattr(sender, "_sender", sender)
        sender.nudge()
        if found.now() is not None:
            with suppress(errors.TimeoutError):
                sender._flush(SETTLE_S)

    def do_push(self, twin: int, producer: int) -> None:
        sender = self._twins[twin].producers[producer]
        getattr(sender, "_sender", sender).push()

    def do_repr(self, twin: int, producer: int) -> str:
        return repr(self._twins[twin].producers[producer])

    def do_delivery(self, twin: int, delivery: int, what: str, *args: Any) -> Any:
        """A method of a delivery."""
        found = self._twins[twin].deliveries[delivery]
        result = getattr(found, what)(*args)
        if isinstance(result, Sequence) and not isinstance(result, (RecordMetadata, str)):
            return list(result)
        return result


class _Kept(QueueHandler):
    """Keeps what is logged for the test's process."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(records)  # type: ignore[arg-type]

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.append(record)  # type: ignore[attr-defined]


def main(address: str) -> None:
    sender = Sender()
    with Listener(address, "AF_UNIX") as listener:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        print("ready", flush=True)
        while True:
            line = Line(listener.accept(), sender.handle)
            threading.Thread(target=line.serve, daemon=True).start()


def _end_with_parent() -> None:
    sys.stdin.read()  # until the test's process closes its end, be it by its death
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
