"""A bus whose producers run in another process: the contract's third backend.

`SplitBus` reads, commits and describes in the test's process. What sends, creates and deletes topics is a stand-in for
the real thing in the process of `sender`, on the same directory: so every message goes from one process to another, by
the log alone. What a bus promises of its own producers (who reads sees every earlier send) holds over both. A virtual
clock is kept the same on both sides by every call that goes across.

What cannot be so is left out with `APART`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any, NamedTuple

import streamlite
from streamlite import Bus, Delivery, StreamliteError, Topic
from streamlite.aio.loop import busy
from streamlite.config import producer_options
from streamlite.registry import TopicState
from streamlite.testing.clock import VirtualClock

from .line import Callback, Line, Steps, TopicRef

PACKAGE = __name__.rpartition(".")[0]

_IN_ITS_LOOP = "what an async producer does in, and to, the event loop of the process it runs in"
APART: dict[str, str] = {
    "test_aio.py::test_they_are_made_by_the_bus_and_take_its_options": "what is made here is a stand-in",
    "test_aio.py::test_on_delivery_is_called_in_the_loop": _IN_ITS_LOOP,
    "test_aio.py::test_a_task_that_only_sends_lets_the_others_run": _IN_ITS_LOOP,
    "test_aio.py::test_cancelled_anywhere_a_send_is_taken_whole_or_not_at_all": _IN_ITS_LOOP,
    "test_aio.py::test_a_full_buffer_is_awaited_and_the_loop_goes_on": _IN_ITS_LOOP,
    "test_aio.py::test_who_waits_too_long_for_room_is_told_and_nothing_was_taken": _IN_ITS_LOOP,
    "test_aio.py::test_a_send_that_waits_for_room_can_be_cancelled": _IN_ITS_LOOP,
    "test_aio.py::test_closing_ends_a_wait_for_room": _IN_ITS_LOOP,
    "test_aio.py::test_a_flush_in_vain_says_how_many_are_left": _IN_ITS_LOOP,
    "test_columns.py::test_a_transaction_takes_columns": "as test_transactions.py",
    "test_bus.py::test_the_clock_given_is_the_one_used": "a clock that a test wrote is of its process",
}
"""Tests that cannot run so, by file and name, and why."""
APART_WHOLE: dict[str, str] = {
    "test_transactions.py": "a transaction and its consumer are of one bus, so of one process",
    "test_aio_transactions.py": "as test_transactions.py",
    "test_named.py": "they look at, and patch, what the producer's process knows; tests/integration has the processes",
}
"""Files of which none can."""


class Process:
    """The process of the senders, started for the first test that needs it; one a test run, or a worker of it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="streamlite-")
        self._address = f"{self._directory.name}/sender"
        self._child = subprocess.Popen(
            [sys.executable, "-m", f"{PACKAGE}.sender", self._address],
            cwd=Path(__file__).parents[PACKAGE.count(".") + 1],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == b"ready\n"
        self.functions: dict[int, Callable[[Delivery], Any]] = {}
        self.buses: weakref.WeakValueDictionary[int, SplitBus] = weakref.WeakValueDictionary()
        self.numbers = itertools.count()
        self._listen_for_callbacks()

    def _listen_for_callbacks(self) -> None:
        with Listener(f"{self._directory.name}/test", "AF_UNIX") as listener:
            self.call(-1, None, "callbacks", f"{self._directory.name}/test")
            line = Line(listener.accept(), self._callback)
        threading.Thread(target=line.serve, daemon=True).start()

    def line(self) -> Line:
        """This thread's."""
        line = Line.of_this_thread()
        if line is None:
            line = Line(Client(self._address, "AF_UNIX"), self._callback)
            line.take()
        return line

    def call(self, bus: int, clock: VirtualClock | None, what: str, *args: Any, **named: Any) -> Any:
        """Have the other process do something; what it logs is logged here, the time it is there is the time here."""
        now = None if clock is None else clock.monotonic()
        done, result, records, now = self.line().call(bus, now, what, args, named)
        for record in records:
            logging.getLogger(record.name).handle(record)
        if clock is not None:
            _advance(clock, now)
        if not done:
            raise result
        return result

    def _callback(self, function: int, delivery: int, now: float | None) -> None:
        found, bus = self.functions[function]
        if bus.virtual is not None:
            _advance(bus.virtual, now)
        found(RemoteDelivery(bus, delivery))

    def end(self) -> None:
        """No test needs it any more."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(10)
        self._child.stdout.close()
        self._directory.cleanup()


_advancing = threading.Lock()


def _advance(clock: VirtualClock, now: float | None) -> None:
    with _advancing:
        if now is not None and now > clock.monotonic():
            clock.advance(now - clock.monotonic())


class SplitBus(Bus):
    """A bus whose producers are in another process, and which has topics created and deleted there."""

    def __init__(self, process: Process, local: Bus, location: str, options: dict[str, Any]) -> None:
        super().__init__(local._engine)
        self.process = process
        self.number = next(process.numbers)
        clock = options.pop("clock", None)
        self.virtual: VirtualClock | None = clock if isinstance(clock, VirtualClock) else None
        start_ms = None if self.virtual is None else self.virtual._start_ms
        self._refs: weakref.WeakKeyDictionary[Topic, TopicRef] = weakref.WeakKeyDictionary()
        now = 0.0 if self.virtual is None else self.virtual.monotonic()
        given = options | {"clock": None if self.virtual is not None else clock}
        self.call("open", location, given, start_ms, now)

    def call(self, what: str, *args: Any, **named: Any) -> Any:
        """Have this bus's twin do something."""
        return self.process.call(self.number, self.virtual, what, *args, **named)

    def topic(self, name: str, *, value: Any = None, key: Any = None, **settings: Any) -> Topic:
        return self._known(super().topic(name, value=value, key=key, **settings), key, value)

    def create_topic(self, name: str, *, value: Any = None, key: Any = None, **settings: Any) -> Topic:
        return self._known(super().create_topic(name, value=value, key=key, **settings), key, value)

    def _known(self, topic: Topic, key: Any, value: Any) -> Topic:
        self._refs[topic] = TopicRef(self.call("topic", topic.name, key, value))
        return topic

    def _create(self, name: str, partitions: int | None, checked: dict[str, Any]) -> TopicState:
        self.call("create_topic", name, partitions, checked)
        state = self._engine.registry.get(name)
        self._engine.settings_changed(state)
        return state

    def delete_topic(self, name: str) -> None:
        self._engine.ctx.check_writable()
        self._engine.push()
        self.call("delete_topic", name)

    def producer(self, **options: Any) -> Any:
        producer_options(options)
        self._engine.ctx.check_writable()
        return RemoteProducer(self, self.call("producer", **self.given(options)))

    def async_producer(self, **options: Any) -> Any:
        producer_options(options)
        self._engine.ctx.check_writable()
        return RemoteAsyncProducer(self, self.call("async_producer", **self.given(options)))

    def given(self, named: dict[str, Any]) -> dict[str, Any]:
        """Arguments in a form that crosses over."""
        return {name: self.one(value) for name, value in named.items()}

    def one(self, value: Any) -> Any:
        """One argument."""
        if isinstance(value, Topic):
            bus = value.bus
            return bus._refs[value] if isinstance(bus, SplitBus) else value
        if isinstance(value, Iterator):
            return Steps(list(value))
        return Callback(self._function(value)) if callable(value) and not isinstance(value, type) else value

    def _function(self, function: Callable[[Delivery], Any]) -> int:
        number = next(self.process.numbers)
        self.process.functions[number] = function, self
        return number

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.call("close")


class RemoteDelivery(Delivery, gc=False, eq=False):
    """A delivery of the other process: `_outcome` is the bus, `_item` its number there."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteDelivery) and (self._outcome, self._item) == (other._outcome, other._item)

    def __hash__(self) -> int:
        return hash(self._item)

    def _call(self, what: str, *args: Any) -> Any:
        return self._outcome.call("delivery", self._item, what, *args)

    def done(self) -> bool:
        return self._call("done")

    def result(self, timeout: float | None = None) -> Any:
        return self._call("result", timeout)

    def exception(self, timeout: float | None = None) -> StreamliteError | None:
        return self._call("exception", timeout)

    def add_done_callback(self, fn: Callable[[Delivery], Any]) -> None:
        self._call("add_done_callback", self._outcome.one(fn))

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.get_running_loop().run_in_executor(None, self.exception).__await__()
        return self.result()

    def __repr__(self) -> str:
        return self._call("__repr__")


class _Remote:
    """A producer of the other process. The bus's consumers and readers have it written out as one of their own."""

    def __init__(self, bus: SplitBus, number: int) -> None:
        self._bus = bus
        self._number = number
        ctx = bus._engine.ctx
        ctx.senders += (self,)
        bus._engine.adopt(self._handle())

    def _handle(self) -> Any:
        """What the bus closes."""
        return self

    def _call(self, what: str, *args: Any, **named: Any) -> Any:
        self._bus._engine.ctx.check_fork()
        given = [self._bus.one(value) for value in args]
        return self._bus.call("call", self._number, what, *given, **self._bus.given(named))

    def __repr__(self) -> str:
        return self._bus.call("repr", self._number)

    def nudge(self) -> None:
        self._bus.call("nudge", self._number)

    def push(self) -> None:
        self._bus.call("push", self._number)

    def topics_changed(self) -> None:
        """The other process looks for itself."""

    def _forget(self) -> None:
        ctx = self._bus._engine.ctx
        ctx.senders = tuple(one for one in ctx.senders if one is not self)
        self._bus._engine.forget(self._handle())


class RemoteProducer(_Remote):
    """`Producer`."""

    def send(self, topic: Any, value: Any, **options: Any) -> Delivery:
        return RemoteDelivery(self._bus, self._call("send", topic, value, **options))

    def send_many(self, topic: Any, values: Any, **options: Any) -> Delivery:
        return RemoteDelivery(self._bus, self._call("send_many", topic, values, **options))

    def flush(self, timeout: float | None = None) -> None:
        self._call("flush", timeout)

    def close(self, timeout: float | None = None) -> None:
        try:
            self._call("close", timeout)
        except streamlite.errors.TimeoutError:
            raise
        except BaseException:
            self._forget()
            raise
        self._forget()

    def transaction(self, consumer: Any = None) -> Any:
        return self._call("transaction")

    def last_sequence(self, topic: Any, partition: int) -> Any:
        return self._call("last_sequence", topic, partition)

    def __enter__(self) -> RemoteProducer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Closer(NamedTuple):
    """Closes an async producer where nobody can await it."""

    producer: RemoteAsyncProducer

    def close(self) -> None:
        self.producer._forget()
        self.producer._call("close")


class RemoteAsyncProducer(_Remote):
    """`AsyncProducer`."""

    def _handle(self) -> Any:
        return _Closer(self)

    async def _ask(self, what: str, *args: Any, **named: Any) -> Any:
        loop = asyncio.get_running_loop()
        with busy(self._bus._engine.ctx.clock):  # the test's clock stands still meanwhile
            return await loop.run_in_executor(None, lambda: self._call(what, *args, **named))

    async def send(self, topic: Any, value: Any, **options: Any) -> Delivery:
        return RemoteDelivery(self._bus, await self._ask("send", topic, value, **options))

    async def send_many(self, topic: Any, values: Any, **options: Any) -> Delivery:
        return RemoteDelivery(self._bus, await self._ask("send_many", topic, values, **options))

    async def flush(self, timeout: float | None = None) -> None:
        await self._ask("flush", timeout)

    async def close(self, timeout: float | None = None) -> None:
        await self._ask("close", timeout)
        self._forget()

    async def __aenter__(self) -> RemoteAsyncProducer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


_process: list[Process] = []


def open_split(location: Any, **options: Any) -> Bus:
    """Open a location of this process and the other; one that is only read has nobody who sends."""
    local = streamlite.open(location, **options)
    if options.get("read_only"):
        return local
    if not _process:
        _process.append(Process())
    try:
        return SplitBus(_process[0], local, os.fspath(location), dict(options))
    except BaseException:
        local.close()
        raise


def forget(bus: Bus) -> None:
    """A test is over: whatever it left open in the other process is closed."""
    if isinstance(bus, SplitBus):
        with suppress(StreamliteError):
            bus.call("forget")


def end() -> None:
    """End the other process."""
    while _process:
        _process.pop().end()
