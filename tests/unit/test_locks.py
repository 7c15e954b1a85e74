"""Locks between threads and processes: held while the work is done, given back whatever comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streamlite.files.local import LocalFiles
from streamlite.locks import Guard

Take = Callable[[Guard, Callable[[], object]], object]

TAKING: list[Take] = [lambda guard, call: guard.run(call, 1.0), lambda guard, call: guard.attempt(call)]


@pytest.mark.parametrize("take", TAKING, ids=["run", "attempt"])
def test_nobody_else_gets_it_while_the_call_is_made(tmp_path: Path, take: Take) -> None:
    files = LocalFiles(str(tmp_path))
    lock, of_another_process = files.lock("lock"), files.lock("lock")
    assert take(Guard(lambda: lock, "a lock"), of_another_process.acquire) is False
    assert of_another_process.acquire()


class Interrupted(BaseException):
    """What a signal handler raises."""


@pytest.mark.parametrize("take", TAKING, ids=["run", "attempt"])
def test_whatever_the_call_raises_gives_it_back(tmp_path: Path, take: Take) -> None:
    files = LocalFiles(str(tmp_path))
    lock, of_another_process = files.lock("lock"), files.lock("lock")
    guard = Guard(lambda: lock, "a lock")

    def interrupted() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        take(guard, interrupted)
    assert of_another_process.acquire()
    of_another_process.release()
    assert take(guard, lambda: "done") == "done"
