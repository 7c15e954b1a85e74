"""The background thread: started late, woken rarely, never missed, not stopped by what it calls."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from streamlite.clock import Clock, SystemClock
from streamlite.errors import StorageError
from streamlite.testing import VirtualClock
from streamlite.worker import Worker

PATIENCE_S = 20.0


class Steps:
    """A `step` that says when it was called, and answers as told."""

    def __init__(self, *answers: float | BaseException | None) -> None:
        self.answers = list(answers)
        self.calls: queue.Queue[float] = queue.Queue()
        self.clock: Clock = SystemClock()
        self.during: Callable[[int], Any] = lambda call: None
        self.count = 0

    def __call__(self) -> float | None:
        self.count += 1
        self.calls.put(self.clock.monotonic())
        self.during(self.count)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def next(self) -> float:
        """When the next call came."""
        return self.calls.get(timeout=PATIENCE_S)


def pass_time(clock: VirtualClock, seconds: float) -> None:
    """Sit in a blocking call, as an application does."""
    condition = threading.Condition()
    deadline = clock.monotonic() + seconds
    with condition:
        while clock.monotonic() < deadline:
            clock.wait(condition, deadline - clock.monotonic())


@pytest.fixture
def virtual() -> VirtualClock:
    return VirtualClock()


def test_no_thread_before_there_is_work() -> None:
    before = threading.active_count()
    worker = Worker("late", Steps(), SystemClock())
    assert worker.idle
    assert threading.active_count() == before
    assert repr(worker) == "<Worker streamlite-late: not started>"


def test_a_worker_that_is_woken_works_in_a_daemon_of_its_name() -> None:
    found: list[threading.Thread] = []
    steps = Steps()
    steps.during = lambda call: found.append(threading.current_thread())
    worker = Worker("sync", steps, SystemClock())
    worker.wake()
    steps.next()
    worker.stop(PATIENCE_S)
    assert found[0].name == "streamlite-sync"
    assert found[0].daemon
    assert not found[0].is_alive()
    assert repr(worker) == "<Worker streamlite-sync: stopped>"


def test_a_delay_is_waited_for(virtual: VirtualClock) -> None:
    steps = Steps(5.0, 0.25, None)
    steps.clock = virtual
    worker = Worker("delay", steps, virtual)
    worker.wake()
    pass_time(virtual, 60)
    worker.stop(PATIENCE_S)
    # The last one but one says that nothing is due; the last one is the look of a worker that is idle.
    assert [steps.next() for _ in range(steps.count)] == [0.0, 5.0, 5.25, 5.25]


def test_a_wake_cuts_a_delay_short(virtual: VirtualClock) -> None:
    steps = Steps(1000.0, 1000.0, None)
    steps.clock = virtual
    worker = Worker("delay", steps, virtual)
    worker.wake()
    for _ in range(2):
        assert steps.next() == 0.0
        worker.wake()
    assert steps.next() == 0.0
    worker.stop(PATIENCE_S)


def test_a_delay_of_no_time_calls_again_at_once(virtual: VirtualClock) -> None:
    steps = Steps(*[0.0] * 50, -1.0, None)
    worker = Worker("zero", steps, virtual)
    worker.wake()
    for _ in range(52):
        steps.next()
    worker.stop(PATIENCE_S)


def test_work_added_while_the_worker_is_not_idle_is_seen_before_it_waits() -> None:
    work: list[str] = []
    done = threading.Event()
    steps = Steps()
    worker = Worker("seen", steps, SystemClock())

    def during(call: int) -> None:
        if work:
            done.set()
        elif call == 1:
            assert not worker.idle  # who adds it now wakes nobody
            work.append("late")

    steps.during = during
    worker.wake()
    assert done.wait(PATIENCE_S)
    worker.stop(PATIENCE_S)


def test_work_added_after_the_last_look_wakes_the_worker() -> None:
    work: list[str] = []
    done = threading.Event()
    steps = Steps()
    worker = Worker("woken", steps, SystemClock())

    def during(call: int) -> None:
        if work:
            done.set()
        elif worker.idle:  # the look before the wait has found nothing; its result is on the way
            work.append("late")
            worker.wake()

    steps.during = during
    worker.wake()
    assert done.wait(PATIENCE_S)
    worker.stop(PATIENCE_S)


@pytest.mark.parametrize("clock", [SystemClock, VirtualClock])
def test_no_wake_up_is_lost_among_many(clock: Callable[[], Clock]) -> None:
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def step() -> None:
        while not todo.empty():
            done.put(todo.get())

    worker = Worker("many", step, clock())

    def add(first: int) -> None:
        for number in range(first, first + 300):
            todo.put(number)
            if worker.idle:
                worker.wake()
            assert done.get(timeout=PATIENCE_S) >= 0  # one by one, so that the worker goes idle each time

    adders = [threading.Thread(target=add, args=(first,)) for first in (0, 1000)]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join(2 * PATIENCE_S)
        assert not adder.is_alive()
    worker.stop(PATIENCE_S)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), StorageError("full")], ids=repr)
def test_a_step_that_fails_is_logged_and_called_again(
    virtual: VirtualClock, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps(error, None)
    steps.clock = virtual
    worker = Worker("failing", steps, virtual)
    with caplog.at_level(logging.ERROR, "streamlite"):
        worker.wake()
        steps.next()
        pass_time(virtual, 2)
        worker.stop(PATIENCE_S)
    assert steps.count >= 2
    assert "streamlite-failing failed; it goes on in 1.0 s" in caplog.text
    assert type(error).__name__ in caplog.text


def test_stop_waits_for_the_step_that_is_under_way() -> None:
    entered, go_on = threading.Event(), threading.Event()
    steps = Steps()
    steps.during = lambda call: (entered.set(), go_on.wait(PATIENCE_S))
    worker = Worker("slow", steps, SystemClock())
    worker.wake()
    assert entered.wait(PATIENCE_S)
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    assert stopper.is_alive()
    go_on.set()
    stopper.join(PATIENCE_S)
    assert not stopper.is_alive()
    assert steps.count <= 2  # the look before the wait may have been on its way


def test_a_worker_may_stop_itself() -> None:
    steps = Steps()
    worker = Worker("own", steps, SystemClock())
    stopped = threading.Event()
    steps.during = lambda call: (worker.stop(), stopped.set())
    worker.wake()
    assert stopped.wait(PATIENCE_S)
    worker.stop(PATIENCE_S)


@pytest.mark.parametrize("timeout", [None, 0.0, PATIENCE_S, math.inf, 1e300])
def test_a_stopped_worker_does_nothing_more(timeout: float | None) -> None:
    steps = Steps()
    worker = Worker("stopped", steps, SystemClock())
    worker.stop(timeout)
    worker.wake()
    worker.stop(timeout)
    assert steps.count == 0
    started = Worker("started", steps, SystemClock())
    started.wake()
    steps.next()
    started.stop(math.inf)
    before = steps.count
    started.wake()
    started.stop(timeout)
    assert steps.count == before


def test_stop_ends_a_wait_without_a_deadline(virtual: VirtualClock) -> None:
    for clock in (SystemClock(), virtual):
        steps = Steps()
        worker = Worker("waiting", steps, clock)
        worker.wake()
        steps.next()
        worker.stop(PATIENCE_S)
        assert "stopped" in repr(worker)


def test_a_system_without_threads_is_an_error_and_not_the_end(
    virtual: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    steps = Steps()
    worker = Worker("poor", steps, virtual)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(StorageError, match="cannot start the thread streamlite-poor: can't start new thread"):
            worker.wake()
    assert worker.idle
    pass_time(virtual, 1)  # nobody waits for a thread that is not there
    worker.stop(PATIENCE_S)
    worker = Worker("again", steps, virtual)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(StorageError):
            worker.wake()
    worker.wake()
    steps.next()
    worker.stop(PATIENCE_S)


def test_the_clock_hears_of_a_worker_once(virtual: VirtualClock) -> None:
    steps = Steps()
    worker = Worker("heard", steps, virtual)
    worker.wake()
    steps.next()
    pass_time(virtual, 5)
    worker.stop(PATIENCE_S)
    worker.stop(PATIENCE_S)
    worker.wake()
    pass_time(virtual, 5)
    assert virtual.monotonic() == 10.0
