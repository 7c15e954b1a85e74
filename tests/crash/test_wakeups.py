"""No wake-up is lost: whatever way the steps of who waits and who publishes interleave.

The real consumer and the real partition run as actors of a scheduler, each with a bus of its own over one directory in
memory, as processes have; or all with one, as threads have. No time passes: who sleeps is woken or sleeps for ever, so
that looking again by oneself saves nobody. Two mistakes are planted as well, and must be found.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from streamlite import Bus, Consumer
from streamlite.batch import encode_payload
from streamlite.clock import Clock
from streamlite.files.memory import MemoryFiles
from streamlite.partition import Appended, Outgoing, Partition
from streamlite.wakeup import Bell, FifoWaiter, Waiter
from tests.crash.faulty import Call, open_over
from tests.crash.scheduler import (
    Choose,
    Run,
    ScheduledFifo,
    ScheduledFiles,
    ScheduledRLock,
    Scheduler,
    explore,
    replay,
    sample,
)

SEEDS = range(int(os.environ.get("STREAMLITE_SCHEDULES", "300")))
"""Of each world of three actors; a large number before a release."""
ENDS = "counters@4096[:4096]"
PAYLOAD = encode_payload([None], [b"x"])


def protocol(call: Call) -> bool:
    """What waiting and waking is made of: the words and the pipes, storing an end, and looking at the ends."""
    if call.path.startswith("wake/") or call.path == "a mutex":
        # No word is used beyond the first few: that these are looked at too is no point.
        return call.name not in ("lock", "create") and not call.path.endswith((".lock", "[16:]"))
    return call == ("load", ENDS) or (call.name == "store" and call.path.startswith(ENDS))


def protocol_of_few(call: Call) -> bool:
    """The same for a consumer of few partitions, which looks at their ends one by one."""
    return protocol(call) or (call.name == "load" and call.path.startswith(ENDS))


def any_call(call: Call) -> bool:
    return True


Looks = Callable[[Call], bool]


class World(ABC):
    """Actors that read one partition, and actors that append to it."""

    def __init__(self, waiters: int, writers: int, looks_at: Callable[[Call], bool]) -> None:
        self.scheduler = Scheduler(looks_at)
        self.scheduler.words = 1 + waiters
        self.files = MemoryFiles()
        self.stack = ExitStack()
        self.readers = [self.open() for _ in range(waiters)]
        self.writers = [self.open() for _ in range(writers)]
        for bus in self.readers + self.writers:
            bus.topic("t")
            _publish(bus)  # what only the first append does is done

    @abstractmethod
    def open(self) -> Bus:
        """A bus of this world."""

    def run(self, choose: Choose, preemptions: int | None = None, *, stale: bool = False) -> Run:
        """Who waits sleeps until it has everything, or for ever. `stale`: somebody was armed before, and is not now."""
        wanted = len(self.writers)
        words = self.files.map("wake/words", 0, 4096) if "wake" in self.files.list("") else memoryview(bytearray(8))
        words[:] = bytes(len(words))
        words[0] = stale
        with ExitStack() as stack:
            actors: dict[str, Callable[[], object]] = {}
            for number, bus in enumerate(self.readers):
                consumer = stack.enter_context(bus.consumer("t", start="latest"))
                actors[f"waiter {number}"] = partial(_wait, consumer, wanted)
            for number, bus in enumerate(self.writers):
                actors[f"writer {number}"] = partial(_publish, bus)
            return self.scheduler.run(actors, choose, preemptions)


def _wait(consumer: Consumer, wanted: int) -> None:
    seen = 0
    while seen < wanted:
        seen += len(consumer.poll(timeout=None))


def _publish(bus: Bus) -> None:
    partition = bus._engine.registry.get("t").partitions[0]
    partition.append([Outgoing(PAYLOAD, 1, 1, 1, len(PAYLOAD))])


class Processes(World):
    """Each with a bus of its own: woken by pipes."""

    fifos: dict[str, ScheduledFifo]

    def open(self) -> Bus:
        self.fifos = self.__dict__.setdefault("fifos", {})
        bus = open_over(ScheduledFiles(self.scheduler, self.files, self.fifos), sync="never")
        self.stack.callback(bus.close)
        return bus


class Threads(World):
    """All with one bus in memory: woken by conditions."""

    bus: Bus | None = None

    def open(self) -> Bus:
        if self.bus is None:
            bell = partial(ScheduledBell, self.scheduler)
            with mock.patch("streamlite.context.Bell", bell), mock.patch("streamlite.engine.MEMORY", "a directory"):
                files = ScheduledFiles(self.scheduler, self.files, {})
                self.bus = open_over(files, clock=ScheduledClock(self.scheduler))
            self.stack.callback(self.bus.close)
            self.bus.topic("t")
            self.bus._engine.registry.get("t").partitions[0].guard._mutex = ScheduledRLock(self.scheduler)
        return self.bus


class ScheduledClock(Clock):
    """On which no time passes."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def time_ms(self) -> int:
        return 1

    def monotonic(self) -> float:
        return 0.0

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        notified: list[int] = []

        def notify(n: int = 1) -> None:
            notified.append(n)

        condition.notify = notify  # type: ignore[method-assign]
        lock: Any = condition
        held = lock._release_save()
        try:
            self._scheduler.sleep(lambda: bool(notified))
        finally:
            lock._acquire_restore(held)
        return True


class ScheduledBell(Bell):
    """A bell, looking at whose waiters is a point; registering is one step, as it is under its mutex."""

    def __init__(self, scheduler: Scheduler, clock: Clock) -> None:
        self._scheduler = scheduler
        self._registering = False
        super().__init__(clock)

    @property
    def waiters(self) -> tuple[Waiter, ...]:  # type: ignore[override]
        if not self._registering:
            self._scheduler.point(Call("load", "wake/waiters"))
        return self._waiters

    @waiters.setter
    def waiters(self, waiters: tuple[Waiter, ...]) -> None:
        self._waiters = waiters

    def add(self, waiter: Waiter) -> None:
        with self._one_step():
            super().add(waiter)

    def remove(self, waiter: Waiter) -> None:
        with self._one_step():
            super().remove(waiter)

    @contextmanager
    def _one_step(self) -> Iterator[None]:
        self._scheduler.point(Call("store", "wake/waiters"))
        self._registering = True
        try:
            yield
        finally:
            self._registering = False


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> list[Scheduler]:
    """Who waits for a lock gives way until its holder is through."""
    schedulers: list[Scheduler] = []

    def sleep(seconds: float) -> None:
        schedulers[-1].give_way()

    monkeypatch.setattr("streamlite.locks.time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    return schedulers


@pytest.fixture
def make(patient: list[Scheduler]) -> Iterator[Callable[..., World]]:
    with ExitStack() as stack:

        def one(kind: type[World], waiters: int, writers: int, looks_at: Looks = protocol) -> World:
            world = kind(waiters, writers, looks_at)
            stack.callback(world.stack.close)
            patient.append(world.scheduler)
            return world

        yield one


Make = Callable[..., World]


def check(found: Iterator[Run]) -> int:
    """How many runs there were; fails at the first that leaves somebody asleep."""
    count = 0
    for run in found:
        count += 1
        assert not run.stuck, "\n".join([f"{run.stuck} asleep, choices {run.choices}", *run.trace])
    return count


@pytest.fixture
def looks_at_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers compare pages of ends, as those of many partitions do: one load a look, and so fewer orders."""
    monkeypatch.setattr("streamlite.fetcher._FEW", 0)


@pytest.mark.usefixtures("looks_at_pages")
@pytest.mark.parametrize("kind", [Processes, Threads])
def test_one_who_waits_and_one_who_publishes_in_every_order_there_is(make: Make, kind: type[World]) -> None:
    world = make(kind, 1, 1)
    assert check(explore(world.run)) > 100
    if kind is Processes:
        assert check(explore(partial(world.run, stale=True))) > 100


@pytest.mark.parametrize("kind", [Processes, Threads])
def test_the_same_of_few_partitions_with_four_preemptions(make: Make, kind: type[World]) -> None:
    world = make(kind, 1, 1, protocol_of_few)
    assert check(explore(partial(world.run, preemptions=4))) > 100


@pytest.mark.usefixtures("looks_at_pages")
@pytest.mark.parametrize(("waiters", "writers"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("kind", [Processes, Threads])
def test_three_of_them_with_two_preemptions(make: Make, kind: type[World], waiters: int, writers: int) -> None:
    world = make(kind, waiters, writers)
    assert check(explore(partial(world.run, preemptions=2))) > 500


@pytest.mark.parametrize(("waiters", "writers"), [(2, 1), (1, 2), (1, 1)])
def test_at_any_call_and_any_word(make: Make, waiters: int, writers: int) -> None:
    """Preempted at any call and word of the whole way of a message, thrice; drawn, since there are too many to make."""
    world = make(Processes, waiters, writers, any_call)
    assert check(sample(partial(world.run, preemptions=3), SEEDS)) == len(SEEDS)


# -- planted mistakes: what is above would find them -------------------------------------------------------------------


def _look_first(self: FifoWaiter, ready: Callable[[], bool], timeout: float | None) -> None:
    """Looks before it arms itself, and not again."""
    news = ready()
    fifo = self.arm()
    try:
        if not news:
            assert fifo is not None
            fifo.wait(timeout)
    finally:
        self.disarm()


def _look_first_in_memory(self: Waiter, ready: Callable[[], bool], timeout: float | None) -> None:
    news = ready()
    self._bell.add(self)
    try:
        with self._lock:
            if not news and not self._rung:
                self._bell.clock.wait(self._condition, timeout)
    finally:
        self._bell.remove(self)
        self._rung = False


def _ask_first(self: Partition, batches: Sequence[Outgoing], timeout: float | None = None) -> Appended:
    """Looks who waits before it publishes."""
    armed = self.ctx.bell.words[0] or self.ctx.bell.waiters
    found = self.guard.run(lambda: self.append_locked(batches), 10.0)
    if armed:
        self.ctx.bell.ring()
    return found


@pytest.mark.parametrize(
    ("kind", "where", "mistake"),
    [
        (Processes, (FifoWaiter, "wait"), _look_first),
        (Processes, (Partition, "append"), _ask_first),
        (Threads, (Waiter, "wait"), _look_first_in_memory),
        (Threads, (Partition, "append"), _ask_first),
    ],
)
def test_a_planted_mistake_leaves_somebody_asleep(
    make: Make, kind: type[World], where: tuple[type, str], mistake: Callable[..., Any]
) -> None:
    with mock.patch.object(*where, mistake):
        world = make(kind, 1, 1)
        lost = next(run for run in explore(world.run) if run.stuck)
        assert lost.stuck == ["waiter 0"]
        again = world.run(replay([taken for taken, _ in lost.choices]))
    assert again.stuck == lost.stuck  # a schedule can be made again
    assert [step.rpartition(".")[0] for step in again.trace] == [step.rpartition(".")[0] for step in lost.trace]
