"""The bounded cache of descriptors: shared, evicted without harm, and never mistaken for another topic's."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from streamlite.files import File, FileLock, MissingFile
from streamlite.files.local import LocalFiles
from streamlite.files.memory import MemoryFiles
from streamlite.handles import HANDLES_MAX, Handles


class Counting(MemoryFiles):
    """Counts what is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def open(self, path: str, *, create: bool = False) -> File:
        self.opened.append(path)
        return super().open(path, create=create)

    def lock(self, path: str, *, create: bool = True) -> FileLock:
        self.opened.append(path)
        return super().lock(path, create=create)


@pytest.fixture
def files() -> Counting:
    return Counting()


def test_a_file_is_opened_once(files: Counting) -> None:
    handles = Handles(files)
    assert handles.file(1, "a", create=True) is handles.file(1, "a") is handles.file(1, "a", create=True)
    assert handles.lock(1, "l") is handles.lock(1, "l")
    assert files.opened == ["a", "l"]


def test_a_missing_file_is_not_remembered(files: Counting) -> None:
    handles = Handles(files)
    for _ in range(2):
        with pytest.raises(MissingFile):
            handles.file(1, "a")
    handles.file(1, "a", create=True)
    handles.file(1, "a")
    assert files.opened == ["a", "a", "a"]


def test_a_topic_of_the_same_name_has_its_own_descriptors(files: Counting) -> None:
    handles = Handles(files)
    old = handles.file(1, "a", create=True)
    old.write([b"old"], 0)
    files.remove("a")
    new = handles.file(2, "a", create=True)
    assert new is not old
    assert new.size() == 0
    assert handles.file(1, "a") is old


def test_the_one_not_used_for_longest_goes_first(files: Counting) -> None:
    handles = Handles(files, limit=2)
    for path in ("a", "b"):
        handles.file(1, path, create=True)
    handles.file(1, "a")
    handles.file(1, "c", create=True)
    del files.opened[:]
    handles.file(1, "a")
    handles.file(1, "c")
    assert files.opened == []
    handles.file(1, "b")
    assert files.opened == ["b"]


def test_files_and_locks_have_a_limit_each(files: Counting) -> None:
    handles = Handles(files, limit=2)
    for path in ("a", "b"):
        handles.file(1, path, create=True)
        handles.lock(1, f"{path}.lock")
    del files.opened[:]
    for path in ("a", "b"):
        handles.file(1, path)
        handles.lock(1, f"{path}.lock")
    assert files.opened == []


def test_forget_drops_a_file_and_not_its_lock(files: Counting) -> None:
    handles = Handles(files)
    handles.file(1, "a", create=True)
    lock = handles.lock(1, "a")
    handles.forget(1, "a")
    handles.forget(1, "never opened")
    del files.opened[:]
    handles.file(1, "a")
    assert files.opened == ["a"]
    assert handles.lock(1, "a") is lock


def test_forget_all_drops_one_topic(files: Counting) -> None:
    handles = Handles(files)
    for incarnation in (1, 2):
        handles.file(incarnation, "a", create=True)
        handles.lock(incarnation, "l")
    handles.forget_all(1)
    del files.opened[:]
    handles.file(2, "a")
    handles.lock(2, "l")
    assert files.opened == []
    handles.file(1, "a")
    handles.lock(1, "l")
    assert files.opened == ["a", "l"]


def test_close_drops_everything(files: Counting) -> None:
    handles = Handles(files)
    handles.file(1, "a", create=True)
    handles.lock(1, "l")
    handles.close()
    handles.close()
    del files.opened[:]
    handles.file(1, "a")
    handles.lock(1, "l")
    assert files.opened == ["a", "l"]


def test_threads_that_open_at_once_share_one_lock_object() -> None:
    both = threading.Barrier(2, timeout=20)

    class Slow(MemoryFiles):
        def lock(self, path: str, *, create: bool = True) -> FileLock:
            opened = super().lock(path, create=create)
            both.wait()  # each has opened before one of them is remembered
            return opened

    handles = Handles(Slow())
    found: list[FileLock] = []
    threads = [threading.Thread(target=lambda: found.append(handles.lock(1, "l"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 2
    assert found[0] is found[1]


def test_an_evicted_file_works_for_who_has_it(tmp_path: Path) -> None:
    handles = Handles(LocalFiles(str(tmp_path / "bus")), limit=1)
    first = handles.file(1, "a", create=True)
    first.write([b"one"], 0)
    handles.file(1, "b", create=True)
    assert first.read(10, 0) == b"one"
    assert handles.file(1, "a").read(10, 0) == b"one"


def test_an_evicted_lock_still_keeps_others_out(tmp_path: Path) -> None:
    handles = Handles(LocalFiles(str(tmp_path / "bus")), limit=1)
    held = handles.lock(1, "l")
    assert held.acquire()
    handles.lock(1, "other")
    again = handles.lock(1, "l")
    assert again is not held
    assert not again.acquire()
    held.release()
    assert again.acquire()


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_thousand_files_need_a_bounded_number_of_descriptors(tmp_path: Path) -> None:
    handles = Handles(LocalFiles(str(tmp_path / "bus")), limit=10)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        handles.file(1, str(number), create=True)
        handles.lock(1, f"{number}.lock")
    assert len(os.listdir("/proc/self/fd")) == before + 20
    handles.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_limit_leaves_room_for_the_application() -> None:
    assert 2 * HANDLES_MAX <= 1024 // 2
