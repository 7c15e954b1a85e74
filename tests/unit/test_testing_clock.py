"""The virtual clock: it jumps when all wait, never while anybody has something to do, and never loses a wake-up.

Real threads, no sleeps: a `Watched` condition counts the looks of who waits on it, so "nothing happened" is said after
a number of looks that would have jumped.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from streamlite.errors import ConfigError
from streamlite.testing import VirtualClock
from streamlite.worker import Worker

PATIENCE_S = 20.0
LOOKS = 5


class Watched(threading.Condition):
    """Counts the looks of who waits on it."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())
        self.looks = 0
        self.looked = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.looks += 1
        self.looked.release()
        return super().wait(timeout)

    def await_looks(self) -> None:
        """Until who waits has looked a few times more."""
        enough = self.looks + LOOKS
        while self.looks < enough:
            assert self.looked.acquire(timeout=PATIENCE_S), "nobody waits"


class Caller(threading.Thread):
    """Waits once, and keeps what came of it and when it was."""

    def __init__(self, clock: VirtualClock, timeout: float | None, condition: Any = None) -> None:
        super().__init__(daemon=True)
        self.clock = clock
        self.timeout = timeout
        self.condition = condition if condition is not None else Watched()
        self.result: Any = None
        self.start()

    def run(self) -> None:
        with self.condition:
            notified = self.clock.wait(self.condition, self.timeout)
            self.result = notified, self.clock.monotonic()

    def notify(self) -> None:
        with self.condition:
            self.condition.notify()

    def left(self) -> tuple[bool, float]:
        """Whether it was notified, and when it left."""
        self.join(PATIENCE_S)
        assert not self.is_alive(), "still waiting"
        return self.result  # type: ignore[no-any-return]


class Sitting(Caller):
    """A worker of streamlite's that waits once, then ends."""

    def run(self) -> None:
        self.clock.worker_started(self)
        super().run()
        self.clock.worker_stopped(self)


def wait(clock: VirtualClock, timeout: float | None) -> bool:
    condition = Watched()
    with condition:
        return clock.wait(condition, timeout)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


# -- time --------------------------------------------------------------------------------------------------------------


def test_time_stands_still(clock: VirtualClock) -> None:
    assert (clock.monotonic(), clock.time_ms()) == (0.0, 1_700_000_000_000)
    assert VirtualClock(5).time_ms() == 5


def test_advance_moves_both_times(clock: VirtualClock) -> None:
    clock.advance(1.5)
    clock.advance(0)
    assert (clock.monotonic(), clock.time_ms()) == (1.5, 1_700_000_001_500)


def test_milliseconds_are_rounded_not_cut() -> None:
    clock = VirtualClock(0)
    clock.advance(1.001)
    assert clock.monotonic() * 1000 < 1001
    assert clock.time_ms() == 1001


@pytest.mark.parametrize("seconds", [-1, -1e-9, math.nan, math.inf])
def test_time_moves_by_no_nonsense(clock: VirtualClock, seconds: float) -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        clock.advance(seconds)
    assert clock.monotonic() == 0.0


def test_repr_says_when_and_who_waits(clock: VirtualClock) -> None:
    clock.advance(2)
    assert repr(clock) == "<VirtualClock 2.000 s after start, 0 waiting>"
    caller = Caller(clock, None)
    caller.condition.await_looks()
    assert repr(clock) == "<VirtualClock 2.000 s after start, 1 waiting>"
    caller.notify()
    caller.left()


# -- jumps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0.001, 60, 86_400 * 365])
def test_a_lone_caller_is_at_its_deadline_at_once(clock: VirtualClock, timeout: float) -> None:
    assert not wait(clock, timeout)
    assert clock.monotonic() == timeout


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_wait_for_no_time_moves_nothing(clock: VirtualClock, timeout: float) -> None:
    assert not wait(clock, timeout)
    assert clock.monotonic() == 0.0


def test_one_deadline_after_another(clock: VirtualClock) -> None:
    for _ in range(100):
        assert not wait(clock, 0.1)
    assert clock.monotonic() == pytest.approx(10)


def test_many_callers_leave_at_their_deadlines(clock: VirtualClock) -> None:
    callers = [Caller(clock, seconds) for seconds in (5, 1, 3, 3, 2, 4, 1)]
    for caller in callers:
        notified, when = caller.left()
        assert not notified
        assert when >= caller.timeout  # type: ignore[operator]
    assert clock.monotonic() >= 5


def test_all_who_are_due_leave_before_the_next_jump(clock: VirtualClock) -> None:
    clock.worker_woken("busy")  # nobody jumps while both arrive
    first, last = Caller(clock, 10), Caller(clock, 20)
    for caller in (first, last):
        caller.condition.await_looks()
    with first.condition:  # it cannot leave
        clock.worker_stopped("busy")
        last.condition.await_looks()
        assert clock.monotonic() == 10.0
    first.left()
    assert last.left() == (False, 20.0)


def test_callers_without_a_deadline_wait_for_a_notification(clock: VirtualClock) -> None:
    caller = Caller(clock, None)
    caller.condition.await_looks()
    assert clock.monotonic() == 0.0
    caller.notify()
    assert caller.left() == (True, 0.0)


def test_a_workers_deadline_comes_before_a_callers(clock: VirtualClock) -> None:
    worker = Sitting(clock, 1)
    worker.condition.await_looks()
    caller = Caller(clock, 60)
    assert worker.left() == (False, 1.0)
    assert caller.left() == (False, 60.0)


def test_a_caller_without_a_deadline_lets_workers_have_theirs(clock: VirtualClock) -> None:
    worker = Sitting(clock, 1)
    caller = Caller(clock, None)
    assert worker.left() == (False, 1.0)
    caller.notify()
    assert caller.left() == (True, 1.0)


# -- what holds time back ----------------------------------------------------------------------------------------------


def test_workers_alone_move_nothing(clock: VirtualClock) -> None:
    worker = Sitting(clock, 5)
    worker.condition.await_looks()
    assert clock.monotonic() == 0.0
    worker.notify()
    assert worker.left() == (True, 0.0)


def test_a_busy_worker_holds_time_back(clock: VirtualClock) -> None:
    clock.worker_started("busy")  # this thread's, which does not wait
    caller = Caller(clock, 60)
    caller.condition.await_looks()
    assert clock.monotonic() == 0.0
    clock.worker_stopped("busy")
    assert caller.left() == (False, 60.0)


def test_a_worker_that_was_woken_and_has_not_started_holds_time_back(clock: VirtualClock) -> None:
    clock.worker_woken("new")
    caller = Caller(clock, 60)
    caller.condition.await_looks()
    assert clock.monotonic() == 0.0
    clock.worker_started("new")
    clock.worker_stopped("new")
    assert caller.left() == (False, 60.0)


@pytest.mark.parametrize("kind", [Caller, Sitting])
def test_who_was_notified_and_has_not_run_yet_holds_time_back(clock: VirtualClock, kind: type[Caller]) -> None:
    clock.worker_woken("busy")  # nobody jumps while they arrive
    notified = kind(clock, 60)
    waiting = Sitting(clock, 30)
    other = Caller(clock, None)
    for one in (notified, waiting, other):
        one.condition.await_looks()
    with notified.condition:  # its thread cannot run on before this block ends
        notified.condition.notify()
        clock.worker_stopped("busy")
        for one in (waiting, other):
            one.condition.await_looks()
        assert clock.monotonic() == 0.0
        clock.worker_woken("busy")
    assert notified.left() == (True, 0.0)
    clock.worker_stopped("busy")
    assert waiting.left() == (False, 30.0)
    other.notify()
    other.left()


def test_a_message_that_is_being_written_arrives_before_the_timeout(clock: VirtualClock) -> None:
    for _ in range(100):
        box: list[int] = []
        condition = threading.Condition(threading.Lock())

        def publish(box: list[int] = box, condition: threading.Condition = condition) -> None:
            with condition:
                box.append(1)
                condition.notify_all()

        worker = Worker("writer", publish, clock)
        before = clock.monotonic()
        with condition:
            worker.wake()
            while not box:
                clock.wait(condition, 60)
        assert clock.monotonic() == before
        worker.stop(PATIENCE_S)


# -- advance -----------------------------------------------------------------------------------------------------------


def test_advance_ends_what_is_due_by_then(clock: VirtualClock) -> None:
    clock.worker_woken("busy")  # nothing moves by itself
    early, late = Caller(clock, 10), Caller(clock, 20)
    for caller in (early, late):
        caller.condition.await_looks()
    clock.advance(9.5)
    for caller in (early, late):
        caller.condition.await_looks()
    assert early.result is late.result is None
    clock.advance(0.5)
    assert early.left() == (False, 10.0)
    late.condition.await_looks()
    assert late.result is None
    clock.advance(100)
    assert late.left() == (False, 110.0)


def test_advance_from_many_threads_adds_up(clock: VirtualClock) -> None:
    threads = [threading.Thread(target=lambda: [clock.advance(0.5) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert clock.monotonic() == 400.0


# -- notifications -----------------------------------------------------------------------------------------------------


def test_a_notification_just_as_a_look_ends_is_not_lost(clock: VirtualClock) -> None:
    class Late(threading.Condition):
        """Notified between the end of a wait and taking the lock again, a condition says "not notified"."""

        def wait(self, timeout: float | None = None) -> bool:
            self.notify()
            return False

    clock.worker_woken("busy")
    condition = Late(threading.Lock())
    with condition:
        assert clock.wait(condition, 60)
    assert clock.monotonic() == 0.0


@pytest.mark.parametrize("lock", [threading.Lock, threading.RLock])
@pytest.mark.parametrize("notify", [lambda one: one.notify(), lambda one: one.notify(2), lambda one: one.notify_all()])
def test_any_way_to_notify_is_heard(
    clock: VirtualClock, lock: Callable[[], Any], notify: Callable[[Any], None]
) -> None:
    condition = threading.Condition(lock())
    clock.worker_woken("busy")
    for _ in range(3):  # a condition serves more than once
        caller = Caller(clock, 60, condition)
        while not clock._waits:
            threading.Event().wait(0.0001)
        with condition:
            notify(condition)
        assert caller.left() == (True, 0.0)


@pytest.mark.parametrize("when", ["_all_wait", "_move", "_end", "_is_over"])
def test_a_signal_handler_may_notify_in_the_middle_of_anything(
    clock: VirtualClock, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = threading.Condition()
    real = getattr(VirtualClock, when)
    handled: list[str] = []

    def interrupted(self: VirtualClock, *given: Any) -> Any:
        if not handled:
            handled.append(when)
            with condition:
                condition.notify_all()
        return real(self, *given)

    monkeypatch.setattr(VirtualClock, when, interrupted)
    with condition:
        clock.wait(condition, 60)
    assert handled
    assert not wait(clock, 5)


def test_to_notify_without_the_lock_is_still_an_error(clock: VirtualClock) -> None:
    condition = threading.Condition(threading.Lock())
    with condition:
        clock.wait(condition, 1)
    with pytest.raises(RuntimeError):
        condition.notify()


def test_a_condition_may_serve_two_clocks(clock: VirtualClock) -> None:
    other = VirtualClock()
    condition = threading.Condition(threading.Lock())
    with condition:
        assert not other.wait(condition, 1)
    caller = Caller(clock, None, condition)
    while not clock._waits:
        threading.Event().wait(0.0001)
    caller.notify()
    assert caller.left() == (True, 0.0)


# -- leaving no trace --------------------------------------------------------------------------------------------------


def test_a_wait_that_is_broken_off_is_forgotten(clock: VirtualClock) -> None:
    class Interrupted(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    clock.worker_woken("busy")
    condition = Interrupted()
    with condition, pytest.raises(KeyboardInterrupt):
        clock.wait(condition, 5)
    clock.worker_stopped("busy")
    assert "0 waiting" in repr(clock)
    assert not wait(clock, 60)
    assert clock.monotonic() == 60.0


def test_a_signal_handler_may_wait_within_a_wait(clock: VirtualClock) -> None:
    class Interrupted(Watched):
        def wait(self, timeout: float | None = None) -> bool:
            if not self.looks:
                assert not wait(clock, 3)
            return super().wait(timeout)

    clock.worker_woken("busy")
    condition = Interrupted()
    caller = Caller(clock, 10, condition)
    while not clock._waits:
        threading.Event().wait(0.0001)
    clock.worker_stopped("busy")
    assert caller.left() == (False, 10.0)


def test_a_worker_that_comes_and_goes_holds_nothing_back(clock: VirtualClock) -> None:
    for _ in range(20):
        worker = Worker("short", lambda: None, clock)
        worker.wake()
        worker.stop(PATIENCE_S)
        worker.stop(PATIENCE_S)
        worker.wake()
        assert not wait(clock, 1)
    assert clock.monotonic() == 20.0


def test_a_worker_that_never_started_holds_nothing_back(clock: VirtualClock) -> None:
    Worker("never", lambda: None, clock).stop()
    assert not wait(clock, 1)
