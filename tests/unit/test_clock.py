"""The clock seam: the machine's own, and a user's with the three methods of the contract."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import pytest

from streamlite.clock import Clock, SystemClock, as_clock
from streamlite.errors import ConfigError
from streamlite.testing.clock import VirtualClock


class Mine:
    """A user's clock, with nothing but what the contract names."""

    def time_ms(self) -> int:
        return 5

    def monotonic(self) -> float:
        return 6.0

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        return timeout == 7


class Informed(Mine):
    """One that wants to know what streamlite's threads do."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []

    def worker_started(self, worker: object) -> None:
        self.heard.append(("started", worker))

    def worker_stopped(self, worker: object) -> None:
        self.heard.append(("stopped", worker))

    def worker_woken(self, worker: object) -> None:
        self.heard.append(("woken", worker))


class Recording(threading.Condition):
    """Notes how long it is waited on, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        return False


def test_the_system_clock_is_the_machines() -> None:
    clock = SystemClock()
    assert time.time_ns() // 1_000_000 - 60_000 < clock.time_ms() <= time.time_ns() // 1_000_000
    before = time.monotonic()
    assert before <= clock.monotonic() <= time.monotonic()


@pytest.mark.parametrize("timeout", [None, 0, -1, 0.25, math.inf, 1e300])
def test_a_wait_is_at_most_what_the_system_can_wait(timeout: float | None) -> None:
    condition = Recording()
    assert not SystemClock().wait(condition, timeout)
    assert condition.timeouts == [None if timeout is None else min(timeout, threading.TIMEOUT_MAX)]


@pytest.mark.parametrize("timeout", [None, math.inf, 1e300, 60])
def test_a_wait_without_an_end_ends_with_a_notification(timeout: float | None) -> None:
    condition = threading.Condition()

    def notify() -> None:
        with condition:
            condition.notify()

    with condition:
        notifier = threading.Thread(target=notify)  # cannot notify before the wait lets the condition go
        notifier.start()
        assert SystemClock().wait(condition, timeout)
    notifier.join()


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_wait_for_no_time_ends_at_once(timeout: float) -> None:
    condition = threading.Condition()
    with condition:
        assert not SystemClock().wait(condition, timeout)


def test_no_clock_is_the_machines() -> None:
    assert isinstance(as_clock(None), SystemClock)


@pytest.mark.parametrize("clock", [SystemClock(), VirtualClock()])
def test_a_clock_of_ours_is_taken_as_it_is(clock: Clock) -> None:
    assert as_clock(clock) is clock


def test_a_users_clock_is_asked() -> None:
    clock = as_clock(Mine())
    assert isinstance(clock, Clock)
    assert (clock.time_ms(), clock.monotonic()) == (5, 6.0)
    assert clock.wait(threading.Condition(), 7)
    assert not clock.wait(threading.Condition(), 8)
    clock.worker_started("w")
    clock.worker_woken("w")
    clock.worker_stopped("w")


def test_a_users_clock_that_wants_to_hears_of_workers() -> None:
    mine = Informed()
    clock = as_clock(mine)
    clock.worker_started("w")
    clock.worker_woken("w")
    clock.worker_stopped("w")
    assert mine.heard == [("started", "w"), ("woken", "w"), ("stopped", "w")]


@pytest.mark.parametrize("missing", ["time_ms", "monotonic", "wait"])
def test_a_clock_that_lacks_a_method_is_refused_by_its_name(missing: str) -> None:
    methods: dict[str, Any] = {name: lambda *_: 0 for name in ("time_ms", "monotonic", "wait") if name != missing}
    with pytest.raises(ConfigError, match=f"lacks {missing}"):
        as_clock(type("Broken", (), methods)())


@pytest.mark.parametrize("clock", [time, 1, "now", object()])
def test_what_is_no_clock_is_refused(clock: object) -> None:
    with pytest.raises(ConfigError, match="clock must have"):
        as_clock(clock)


def test_a_clock_without_its_methods_says_which() -> None:
    clock = Clock()
    for call in (clock.time_ms, clock.monotonic, lambda: clock.wait(threading.Condition(), 1)):
        with pytest.raises(TypeError, match="Clock does not define"):
            call()
