"""The contract of the files seam, over every side of it that keeps bytes: a local directory and memory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from streamlite.errors import StorageError, UnsupportedError
from streamlite.files import File, Files, MissingFile, after_fork_in_child, process_id
from streamlite.files.local import LocalFiles
from streamlite.files.memory import MemoryFiles
from tests.unit.batches import in_child

PAGE = 4096


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return LocalFiles(str(tmp_path / "bus")) if request.param == "local" else MemoryFiles()


def written(files: Files, path: str, data: bytes) -> File:
    file = files.open(path, create=True)
    file.write([data], 0)
    return file


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_new_file_is_empty(files: Files) -> None:
    file = files.open("a", create=True)
    assert (file.size(), file.read(10, 0), file.read(10, 99)) == (0, b"", b"")
    assert file.path == "a"


def test_buffers_are_written_one_after_the_other(files: Files) -> None:
    file = files.open("a", create=True)
    file.write([b"abc", b"", b"d"], 0)
    file.write((b"efg",), 4)
    assert file.read(100, 0) == b"abcdefg"
    assert file.read(2, 3) == b"de"
    assert file.size() == 7


@pytest.mark.parametrize("buffers", [[], [b""], [b"", b""]])
def test_nothing_can_be_written(files: Files, buffers: list[bytes]) -> None:
    file = written(files, "a", b"abc")
    file.write(buffers, 1)
    assert file.read(9, 0) == b"abc"


def test_a_write_replaces_what_is_there(files: Files) -> None:
    file = written(files, "a", b"abcdef")
    file.write([b"XY", b"Z"], 2)
    assert file.read(100, 0) == b"abXYZf"
    file.write([b"12345"], 4)
    assert file.read(100, 0) == b"abXY12345"


def test_a_write_beyond_the_end_leaves_zeros(files: Files) -> None:
    file = written(files, "a", b"ab")
    file.write([b"z"], 5)
    assert file.read(100, 0) == b"ab\0\0\0z"


@pytest.mark.parametrize("count", [1023, 1024, 1025, 5000])
def test_more_buffers_than_one_call_takes_are_written(files: Files, count: int) -> None:
    file = files.open("a", create=True)
    buffers = [bytes([at % 251]) * (at % 4) for at in range(count)]
    file.write(buffers, 3)
    assert file.read(1 << 20, 3) == b"".join(buffers)


def test_truncate_cuts_or_fills_with_zeros(files: Files) -> None:
    file = written(files, "a", b"abcdef")
    file.truncate(3)
    assert file.read(9, 0) == b"abc"
    file.truncate(5)
    assert file.read(9, 0) == b"abc\0\0"
    file.truncate(0)
    assert file.size() == 0


def test_sync_keeps_what_is_there(files: Files) -> None:
    file = written(files, "a", b"abc")
    file.sync()
    files.sync_dir("")
    assert file.read(9, 0) == b"abc"


def test_two_that_open_a_file_see_the_same(files: Files) -> None:
    first, second = files.open("a", create=True), files.open("a", create=True)
    first.write([b"abc"], 0)
    assert second.read(9, 0) == b"abc"
    second.truncate(1)
    assert first.size() == 1


@pytest.mark.parametrize("path", ["a", "d/a", "d/e/a"])
def test_a_file_that_is_not_there_is_missing(files: Files, path: str) -> None:
    for call in (files.open, files.read_file, files.list):
        with pytest.raises(MissingFile) as caught:
            call(path)
        assert caught.value.errno == errno.ENOENT
        assert caught.value.path


def test_a_directory_that_is_not_there_gets_no_files(files: Files) -> None:
    for call in (
        lambda: files.open("d/a", create=True),
        lambda: files.lock("d/a"),
        lambda: files.map("d/a", 0, PAGE),
        lambda: files.make_dir("d/e"),
        lambda: files.replace_file("d/a", b"x", sync=False),
        lambda: files.sync_dir("d"),
    ):
        with pytest.raises(MissingFile):
            call()
    assert files.list("") == []


def test_a_directory_is_no_file(files: Files) -> None:
    files.make_dir("d")
    for call in (
        lambda: files.open("d"),
        lambda: files.open("d", create=True),
        lambda: files.open(""),
        lambda: files.replace_file("d", b"x", sync=False),
        lambda: files.remove("d"),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert not isinstance(caught.value, MissingFile)
    assert files.list("d") == []


def test_a_file_is_no_directory(files: Files) -> None:
    written(files, "a", b"abc")
    for call in (
        lambda: files.list("a"),
        lambda: files.open("a/b", create=True),
        lambda: files.make_dir("a"),
        lambda: files.make_dir("a/b"),
        lambda: files.sync_dir("a"),
        lambda: files.remove_tree("a"),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert not isinstance(caught.value, MissingFile)
    assert files.read_file("a") == b"abc"


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_directory_lists_its_names(files: Files) -> None:
    assert files.list("") == []
    files.make_dir("d")
    files.make_dir("d")
    files.make_dir("")
    files.make_dir("d/e")
    written(files, "d/a", b"")
    files.lock("d/lock")
    assert sorted(files.list("")) == ["d"]
    assert sorted(files.list("d")) == ["a", "e", "lock"]
    assert files.list("d/e") == []


def test_a_removed_file_is_gone_for_who_comes(files: Files) -> None:
    file = written(files, "a", b"abc")
    files.remove("a")
    files.remove("a")
    files.remove("d/a")
    assert files.list("") == []
    assert file.read(9, 0) == b"abc", "and goes on for who has it open"
    assert files.open("a", create=True).size() == 0


def test_a_tree_is_removed_whole(files: Files) -> None:
    files.make_dir("d")
    files.make_dir("d/e")
    files.make_dir("dd")
    written(files, "d/a", b"abc")
    written(files, "d/e/a", b"abc")
    written(files, "dd/a", b"abc")
    files.remove_tree("d")
    files.remove_tree("d")
    assert files.list("") == ["dd"]
    assert files.list("dd") == ["a"]
    with pytest.raises(MissingFile):
        files.list("d/e")


def test_a_file_is_renamed(files: Files) -> None:
    files.make_dir("d")
    file = written(files, "a", b"abc")
    written(files, "d/b", b"old")
    files.rename("a", "d/b")
    assert (files.list(""), files.list("d")) == (["d"], ["b"])
    file.write([b"X"], 0)
    assert files.read_file("d/b") == b"Xbc"


def test_a_directory_is_renamed_with_all_in_it(files: Files) -> None:
    files.make_dir("d")
    files.make_dir("d/e")
    file = written(files, "d/e/a", b"abc")
    files.make_dir("there")
    files.rename("d", "there")  # an empty one makes way
    assert files.list("") == ["there"]
    assert files.list("there") == ["e"]
    assert files.read_file("there/e/a") == b"abc"
    file.write([b"X"], 0)
    assert files.read_file("there/e/a") == b"Xbc"


def test_a_rename_to_the_same_name_changes_nothing(files: Files) -> None:
    files.make_dir("d")
    written(files, "d/a", b"abc")
    files.rename("d/a", "d/a")
    files.rename("d", "d")
    assert files.list("d") == ["a"]
    assert files.read_file("d/a") == b"abc"


def test_a_rename_that_cannot_be_changes_nothing(files: Files) -> None:
    files.make_dir("d")
    files.make_dir("full")
    written(files, "full/a", b"abc")
    written(files, "a", b"abc")
    for path, to in (("d", "full"), ("d", "a"), ("a", "full"), ("full", "full/e"), ("none", "b"), ("a", "none/b")):
        with pytest.raises(StorageError):
            files.rename(path, to)
    assert sorted(files.list("")) == ["a", "d", "full"]
    assert files.list("full") == ["a"]


# -- small files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_in_one_step(files: Files, sync: bool) -> None:
    files.make_dir("d")
    files.replace_file("d/a", b"a long first version", sync=sync)
    before = files.open("d/a")
    files.replace_file("d/a", b"second", sync=sync)
    assert files.read_file("d/a") == b"second"
    assert before.read(99, 0) == b"a long first version", "who has the old one open reads the old one"
    assert files.list("d") == ["a"], "and no scratch file stays"


def test_an_empty_file_is_read(files: Files) -> None:
    files.replace_file("a", b"", sync=False)
    assert files.read_file("a") == b""


# -- locks -------------------------------------------------------------------------------------------------------------


def test_a_lock_keeps_others_out(files: Files) -> None:
    first, second = files.lock("l"), files.lock("l")
    assert first.path == "l"
    assert first.acquire()
    assert first.acquire(), "who holds it has it"
    assert not second.acquire()
    assert not second.acquire(shared=True)
    first.release()
    assert second.acquire()
    assert not first.acquire()


def test_a_lock_file_is_created_unless_told_otherwise(files: Files) -> None:
    with pytest.raises(MissingFile):
        files.lock("l", create=False)
    assert files.list("") == []
    lock = files.lock("l")
    assert lock.acquire()
    assert files.list("") == ["l"]
    assert not files.lock("l", create=False).acquire()


def test_locks_of_other_names_are_others(files: Files) -> None:
    first, second = files.lock("l"), files.lock("m")
    assert first.acquire()
    assert second.acquire()


def test_shared_holders_share(files: Files) -> None:
    first, second, third = files.lock("l"), files.lock("l"), files.lock("l")
    assert first.acquire(shared=True)
    assert second.acquire(shared=True)
    assert not third.acquire()
    first.release()
    assert not third.acquire()
    second.release()
    assert third.acquire()


def test_a_lone_holder_may_change_the_kind(files: Files) -> None:
    first, second = files.lock("l"), files.lock("l")
    assert first.acquire(shared=True)
    assert first.acquire()
    assert not second.acquire(shared=True)
    assert first.acquire(shared=True)
    assert second.acquire(shared=True)


def test_a_change_of_kind_that_fails_keeps_the_old_kind(files: Files) -> None:
    first, second, third = files.lock("l"), files.lock("l"), files.lock("l")
    assert first.acquire(shared=True)
    assert second.acquire(shared=True)
    assert not first.acquire()
    second.release()
    assert not third.acquire(), "the first one still has it"
    first.release()
    assert third.acquire()


def test_a_lock_that_was_not_taken_frees_nobodys(files: Files) -> None:
    first, second, third = files.lock("l"), files.lock("l"), files.lock("l")
    assert first.acquire()
    second.release()
    assert not third.acquire()
    first.release()
    first.release()
    assert third.acquire()


def test_a_lock_goes_with_its_object(files: Files) -> None:
    first, second = files.lock("l"), files.lock("l")
    assert first.acquire()
    del first
    assert second.acquire()


def test_a_lock_belongs_to_the_file_and_not_to_its_name(files: Files) -> None:
    old = files.lock("l")
    assert old.acquire()
    files.remove("l")
    new = files.lock("l")
    assert new.acquire()
    old.release()
    assert not files.lock("l").acquire()


def test_one_of_many_threads_gets_a_lock(files: Files) -> None:
    start = threading.Barrier(8, timeout=20)
    locks = [files.lock("l") for _ in range(8)]
    got: list[bool] = []

    def take(at: int) -> None:
        start.wait()
        got.append(locks[at].acquire())

    threads = [threading.Thread(target=take, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(got) == [False] * 7 + [True]


# -- mappings ----------------------------------------------------------------------------------------------------------


def test_a_mapping_begins_as_zeros_and_is_shared(files: Files) -> None:
    first, second = files.map("m", 0, PAGE), files.map("m", 0, PAGE)
    assert bytes(first) == bytes(PAGE)
    words = first.cast("Q")
    words[3] = 1 << 63
    assert second.cast("Q")[3] == 1 << 63
    assert second[24:32] == (1 << 63).to_bytes(8, sys.byteorder)


def test_a_mapping_may_begin_anywhere_on_a_page(files: Files) -> None:
    files.map("m", 0, PAGE)[0] = 1
    later = files.map("m", 4 * PAGE, 16 * PAGE)
    assert (len(later), later[0]) == (16 * PAGE, 0)
    later[0] = 2
    assert files.map("m", 0, PAGE)[0] == 1
    assert files.map("m", 4 * PAGE, 16 * PAGE)[0] == 2
    assert files.open("m").size() == 20 * PAGE


def test_a_mapping_outlives_its_file(files: Files) -> None:
    view = files.map("m", 0, PAGE)
    view[0] = 7
    files.remove("m")
    assert view[0] == 7
    assert files.map("m", 0, PAGE)[0] == 0


def test_bytes_that_are_there_are_mapped(files: Files) -> None:
    written(files, "m", b"abc" + bytes(2 * PAGE))
    assert bytes(files.map("m", 0, PAGE)[:4]) == b"abc\0"


def test_the_boot_is_a_number_of_64_bits_and_stays(files: Files) -> None:
    assert 0 < files.boot_id() < 1 << 64
    assert files.boot_id() == files.boot_id()


def test_nobody_rings_in_memory() -> None:
    with pytest.raises(UnsupportedError):
        MemoryFiles().fifo("bell", create=True)


def test_this_process_has_a_number() -> None:
    assert process_id() == os.getpid()


def test_a_child_hears_that_it_is_one() -> None:
    heard: list[str] = []
    after_fork_in_child(lambda: heard.append("child"))
    assert in_child(lambda: heard) == "['child']"
    assert heard == []


def test_a_seam_closes_more_than_once(files: Files) -> None:
    files.close()
    files.close()


def test_memory_needs_no_file_locks_of_the_system() -> None:
    script = """
        import sys
        sys.modules["fcntl"] = None  # as on a system that has no such module
        from streamlite.files.memory import MemoryFiles
        files = MemoryFiles()
        print(files.lock("l").acquire())
        try:
            import streamlite.files.local
        except ImportError:
            print("no directories")
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (ran.stdout.split("\n")[:2], ran.stderr) == (["True", "no directories"], "")
