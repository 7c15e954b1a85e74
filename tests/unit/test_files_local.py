"""The local side of the files seam: who may be there, what the system says, and what a fork leaves alone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamlite.errors import CorruptionError, ForkedError, FormatError, StorageError
from streamlite.files import MissingFile
from streamlite.files import local as module
from streamlite.files.local import LocalFiles
from tests.unit.batches import fork, in_child

PAGE = 4096
IS_ROOT = os.geteuid() == 0
LINUX = sys.platform == "linux"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "bus"


@pytest.fixture
def files(root: Path) -> LocalFiles:
    return LocalFiles(str(root))


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    assert tmp_path.is_dir()  # pytest makes it before the umask is changed
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_modes_are_the_owners_alone_whatever_the_umask(umask: int, root: Path) -> None:
    files = LocalFiles(str(root / "deep" / "down"))
    files.make_dir("topics")
    files.open("topics/0.log", create=True)
    files.lock("topics/lock")
    files.map("counters", 0, PAGE)
    files.replace_file("bus.json", b"{}", sync=False)
    found = root / "deep" / "down"
    assert [mode(one) for one in (root, root / "deep", found, found / "topics")] == [0o700] * 4
    assert [mode(found / one) for one in ("topics/0.log", "topics/lock", "counters", "bus.json")] == [0o600] * 4
    assert files.read_file("bus.json") == b"{}"


def test_a_mode_that_the_owner_chose_is_left_alone(files: LocalFiles, root: Path) -> None:
    files.open("a", create=True)
    (root / "a").chmod(0o640)
    files.open("a", create=True)
    assert mode(root / "a") == 0o640
    root.chmod(0o750)
    LocalFiles(str(root))
    assert mode(root) == 0o750


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("bits", [0o770, 0o707, 0o702, 0o720, 0o777, 0o1777])
def test_a_directory_that_others_can_write_is_refused(root: Path, bits: int, read_only: bool) -> None:
    root.mkdir()
    root.chmod(bits)
    with pytest.raises(FormatError, match=f"others may write into it .mode {bits:04o}.*chmod go-w"):
        LocalFiles(str(root), read_only=read_only)


def test_a_directory_of_another_user_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalFiles(str(root)).replace_file("a", b"abc", sync=False)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    before = sorted(os.listdir(root))
    with pytest.raises(FormatError, match=f"it belongs to user {owner}, this process runs as {owner + 1}"):
        LocalFiles(str(root))
    assert sorted(os.listdir(root)) == before
    assert LocalFiles(str(root), read_only=True).read_file("a") == b"abc"


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused_but_for_reading(root: Path) -> None:
    LocalFiles(str(root)).replace_file("a", b"abc", sync=False)
    os.chown(root, 12345, -1)
    with pytest.raises(FormatError, match="it belongs to user 12345, this process runs as 0"):
        LocalFiles(str(root))
    assert LocalFiles(str(root), read_only=True).read_file("a") == b"abc"


@pytest.mark.skipif(IS_ROOT, reason="root may write anywhere")
def test_a_directory_without_the_right_to_write_is_refused_but_for_reading(root: Path) -> None:
    LocalFiles(str(root)).replace_file("a", b"abc", sync=False)
    root.chmod(0o500)
    with pytest.raises(StorageError, match="read_only=True") as caught:
        LocalFiles(str(root))
    assert caught.value.errno == errno.EACCES
    assert LocalFiles(str(root), read_only=True).read_file("a") == b"abc"
    root.chmod(0o700)


def test_a_file_in_the_place_of_the_directory_is_refused(root: Path) -> None:
    root.write_bytes(b"abc")
    with pytest.raises(FormatError, match="it is no directory"):
        LocalFiles(str(root))
    with pytest.raises(StorageError):
        LocalFiles(str(root / "below"))
    assert root.read_bytes() == b"abc"


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_directory_can_have_is_a_declared_error(tmp_path: Path, name: str) -> None:
    for read_only in (False, True):
        with pytest.raises(StorageError, match="cannot open"):
            LocalFiles(f"{tmp_path}/{name}", read_only=read_only)


def test_a_directory_may_be_reached_through_a_link(root: Path, files: LocalFiles) -> None:
    files.replace_file("a", b"abc", sync=False)
    link = root.parent / "link"
    link.symlink_to(root)
    assert LocalFiles(str(link)).read_file("a") == b"abc"


def test_the_root_is_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    files = LocalFiles("bus")
    monkeypatch.chdir("/")
    files.open("a", create=True)
    assert files.root == str(root)
    assert (root / "a").exists()


# -- what kind of file system ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs", "lustre"]
)
def test_a_network_file_system_is_refused(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_file_system", lambda device: kind)
    for read_only in (False, True):
        with pytest.raises(FormatError, match=f"{kind} is a network file system"):
            LocalFiles(str(root), read_only=read_only)


@pytest.mark.parametrize("kind", ["", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "fuse.bindfs"])
def test_a_local_file_system_is_taken(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_file_system", lambda device: kind)
    LocalFiles(str(root))


@pytest.mark.skipif(not LINUX, reason="reads /proc/self/mountinfo")
def test_the_system_says_what_kind_it_is() -> None:
    assert module._file_system(os.stat("/proc").st_dev) == "proc"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("36 35 8:1 / /a rw,noatime shared:1 - ext4 /dev/sda1 rw", "ext4"),
        ("36 35 8:2 / / rw - xfs x rw\n37 35 8:1 / /a rw master:1 shared:7 - nfs4 host:/a rw\n", "nfs4"),
        ("36 35 8:1 / /with\x0bodd\x85name\u2028 rw - ext4 x rw", "ext4"),
        ("\n\nnonsense\n36 35\n - ext4", ""),
        ("36 35 8:11 / /a rw - ext4 x rw", ""),
        ("", ""),
    ],
)
def test_mountinfo_is_read_for_its_device(text: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Path, "read_text", lambda path, **_: text)
    assert module._file_system(os.makedev(8, 1)) == kind


def test_a_system_without_mountinfo_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Path, "read_text", raising(FileNotFoundError(errno.ENOENT, "no")))
    assert module._file_system(os.makedev(8, 1)) == ""


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


# -- links and other surprises -----------------------------------------------------------------------------------------


def test_no_link_is_followed_to_a_file(files: LocalFiles, root: Path) -> None:
    (root.parent / "secret").write_bytes(b"secret")
    for name in ("a", "a.new"):
        (root / name).symlink_to(root.parent / "secret")
    for call in (
        lambda: files.open("a"),
        lambda: files.open("a", create=True),
        lambda: files.lock("a"),
        lambda: files.map("a", 0, PAGE),
        lambda: files.read_file("a"),
        lambda: files.replace_file("a", b"x", sync=False),
    ):
        with pytest.raises(StorageError, match="symbolic link, and none is followed") as caught:
            call()
        assert caught.value.errno == errno.ELOOP
    files.remove("a")
    assert (root.parent / "secret").read_bytes() == b"secret"


def test_no_link_is_followed_to_a_directory(files: LocalFiles, root: Path) -> None:
    elsewhere = root.parent / "elsewhere"
    (elsewhere / "0").mkdir(parents=True)
    (elsewhere / "0" / "a").write_bytes(b"secret")
    (root / "topics").symlink_to(elsewhere)
    files.make_dir("real")
    for call in (
        lambda: files.open("topics/0/a"),
        lambda: files.open("topics/0/b", create=True),
        lambda: files.lock("topics/0/lock"),
        lambda: files.map("topics/0/a", 0, PAGE),
        lambda: files.read_file("topics/0/a"),
        lambda: files.replace_file("topics/0/a", b"x", sync=False),
        lambda: files.list("topics"),
        lambda: files.list("topics/0"),
        lambda: files.make_dir("topics/1"),
        lambda: files.rename("topics/0", "real/0"),
        lambda: files.rename("real", "topics/1"),
        lambda: files.remove("topics/0/a"),
        lambda: files.remove_tree("topics/0"),
        lambda: files.remove_tree("topics"),
        lambda: files.sync_dir("topics"),
        lambda: files.sync_dir("topics/0"),
    ):
        with pytest.raises(StorageError):
            call()
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["0", "a"]
    assert (elsewhere / "0" / "a").read_bytes() == b"secret"


def test_a_tree_is_removed_without_what_its_links_lead_to(files: LocalFiles, root: Path) -> None:
    (root.parent / "kept").mkdir()
    (root.parent / "kept" / "a").write_bytes(b"abc")
    files.make_dir("d")
    (root / "d" / "link").symlink_to(root.parent / "kept")
    files.remove_tree("d")
    assert (root.parent / "kept" / "a").read_bytes() == b"abc"


def test_a_fifo_in_the_place_of_a_file_blocks_nobody(files: LocalFiles, root: Path) -> None:
    os.mkfifo(root / "a")
    for seam in (files, LocalFiles(str(root), read_only=True)):
        with pytest.raises(StorageError):
            seam.open("a").read(1, 0)
    with pytest.raises(StorageError):
        files.open("a", create=True).write([b"x"], 0)


def test_a_socket_in_the_place_of_a_file_is_a_declared_error(
    files: LocalFiles, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a")
        with pytest.raises(StorageError):
            files.open("a")


def test_a_huge_small_file_is_not_read(files: LocalFiles, root: Path) -> None:
    with (root / "topic.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptionError) as caught:
        files.read_file("topic.json")
    assert (caught.value.file, caught.value.position) == ("topic.json", module.SMALL_FILE_BYTES_MAX)


# -- reading only ------------------------------------------------------------------------------------------------------


def test_reading_only_changes_nothing(files: LocalFiles, root: Path) -> None:
    files.make_dir("d")
    files.open("a", create=True).write([b"abc"], 0)
    files.map("m", 0, PAGE)[0] = 7
    before = sorted((path.name, path.stat().st_mtime_ns) for path in root.rglob("*"))
    reader = LocalFiles(str(root), read_only=True)
    for call in (
        lambda: reader.lock("lock"),
        lambda: reader.fifo("bell", create=True),
        lambda: reader.make_dir("e"),
        lambda: reader.rename("a", "b"),
        lambda: reader.remove("a"),
        lambda: reader.remove_tree("d"),
        lambda: reader.replace_file("a", b"x", sync=False),
    ):
        with pytest.raises(StorageError, match="opened with read_only=True") as caught:
            call()
        assert caught.value.errno == errno.EROFS
    with pytest.raises(MissingFile):
        reader.open("new", create=True)
    with pytest.raises(StorageError):
        reader.open("a").write([b"x"], 0)
    with pytest.raises(StorageError):
        reader.open("a").truncate(0)
    assert reader.read_file("a") == b"abc"
    assert sorted(reader.list("")) == ["a", "d", "m"]
    view = reader.map("m", 0, PAGE)
    assert view[0] == 7
    with pytest.raises(TypeError):
        view[0] = 8
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in root.rglob("*"))


def test_reading_only_creates_no_directory(root: Path) -> None:
    with pytest.raises(MissingFile):
        LocalFiles(str(root), read_only=True)
    assert not root.exists()


def test_reading_only_maps_no_more_than_there_is(files: LocalFiles, root: Path) -> None:
    files.map("m", 0, PAGE)
    reader = LocalFiles(str(root), read_only=True)
    with pytest.raises(MissingFile):
        reader.map("none", 0, PAGE)
    with pytest.raises(StorageError):
        reader.map("m", PAGE, PAGE)


# -- what the system says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("os.open", lambda files, file: files.open("a")),
        ("os.open", lambda files, file: files.lock("a")),
        ("os.open", lambda files, file: files.sync_dir("")),
        ("os.pread", lambda files, file: file.read(1, 0)),
        ("os.pwritev", lambda files, file: file.write([b"x"], 0)),
        ("os.fstat", lambda files, file: file.size()),
        ("os.ftruncate", lambda files, file: file.truncate(0)),
        ("_datasync", lambda files, file: file.sync()),
        ("os.fsync", lambda files, file: files.sync_dir("")),
        ("fcntl.flock", lambda files, file: files.lock("a").acquire()),
        ("fcntl.flock", lambda files, file: files.lock("a").release()),
        ("os.posix_fallocate", lambda files, file: files.map("m", 0, PAGE)),
        ("mmap.mmap", lambda files, file: files.map("m", 0, PAGE)),
        ("os.listdir", lambda files, file: files.list("")),
        ("os.mkdir", lambda files, file: files.make_dir("d")),
        ("os.chmod", lambda files, file: files.make_dir("d")),
        ("os.rename", lambda files, file: files.rename("a", "b")),
        ("os.unlink", lambda files, file: files.remove("a")),
        ("shutil.rmtree", lambda files, file: files.remove_tree("d")),
        ("os.pwritev", lambda files, file: files.replace_file("a", b"x", sync=False)),
        ("os.rename", lambda files, file: files.replace_file("a", b"x", sync=False)),
    ],
)
def test_what_the_system_refuses_keeps_its_number(
    files: LocalFiles, number: int, function: str, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files.open("a", create=True)
    monkeypatch.setattr(f"{module.__name__}.{function}", raising(OSError(number, "no")))
    with pytest.raises(StorageError) as caught:
        call(files, file)
    assert (type(caught.value), caught.value.errno) == (StorageError, number)
    assert os.strerror(number) in str(caught.value)
    assert caught.value.path
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EMFILE, "ulimit -n")]
)
def test_what_can_be_done_is_said(files: LocalFiles, number: int, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "open", raising(OSError(number, "no")))
    with pytest.raises(StorageError, match=hint):
        files.open("a", create=True)


def test_a_signal_in_a_call_is_not_swallowed(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    file = files.open("a", create=True)
    monkeypatch.setattr(module.os, "pwritev", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        file.write([b"x"], 0)


# -- short calls -------------------------------------------------------------------------------------------------------


def short(most: int) -> Callable[[int, Any, int], int]:
    """A `pwritev` that writes at most so many bytes."""

    def pwritev(fd: int, buffers: Any, position: int) -> int:
        return os.pwrite(fd, b"".join(buffers)[:most], position)

    return pwritev


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize(
    "buffers", [[b"abc", b"", b"defgh", b"i"], [b""] * 3, [b"abcdefgh"], [b"", b"a", b"", b"bc", b""]]
)
def test_a_short_write_is_completed(
    files: LocalFiles, most: int, buffers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files.open("a", create=True)
    monkeypatch.setattr(module.os, "pwritev", short(most))
    file.write(buffers, 2)
    assert file.read(100, 2) == b"".join(buffers)


@pytest.mark.parametrize("most", [1, 9, 4096, 1 << 20])
def test_more_buffers_than_a_call_takes_are_written_in_short_calls_too(
    files: LocalFiles, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files.open("a", create=True)
    buffers = [bytes([at % 251]) * (at % 3) for at in range(2500)]
    taken: list[int] = []

    def pwritev(fd: int, given: Any, position: int) -> int:
        taken.append(len(given))
        return short(most)(fd, given, position)

    monkeypatch.setattr(module.os, "pwritev", pwritev)
    file.write(buffers, 0)
    assert file.read(1 << 20, 0) == b"".join(buffers)
    assert max(taken) <= 1024


def test_a_write_that_gets_nowhere_ends(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    file = files.open("a", create=True)
    monkeypatch.setattr(module.os, "pwritev", short(0))
    with pytest.raises(StorageError) as caught:
        file.write([b"abc"], 0)
    assert caught.value.errno == errno.EIO


def test_an_error_after_a_short_write_is_the_writes(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    file = files.open("a", create=True)
    calls: list[int] = []

    def pwritev(fd: int, buffers: Any, position: int) -> int:
        calls.append(position)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        return short(2)(fd, buffers, position)

    monkeypatch.setattr(module.os, "pwritev", pwritev)
    with pytest.raises(StorageError) as caught:
        file.write([b"abc", b"def"], 0)
    assert caught.value.errno == errno.ENOSPC
    assert file.read(9, 0) == b"ab", "what it left is the caller's to cut"


def test_a_read_longer_than_the_system_gives_goes_on(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    file = files.open("a", create=True)
    file.write([b"0123456789abcdef"], 0)
    real = os.pread
    monkeypatch.setattr(module, "_READ_MAX", 5)
    monkeypatch.setattr(module.os, "pread", lambda fd, size, position: real(fd, min(size, 5), position))
    assert file.read(12, 1) == b"123456789abc"
    assert file.read(100, 0) == b"0123456789abcdef"
    assert file.read(5, 0) == b"01234"


def test_a_read_at_the_end_is_one_call(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    file = files.open("a", create=True)
    file.write([b"abc"], 0)
    calls: list[int] = []
    real = os.pread
    monkeypatch.setattr(module.os, "pread", lambda *given: calls.append(1) or real(*given))  # type: ignore[func-returns-value]
    assert file.read(1 << 20, 0) == b"abc"
    assert calls == [1]


# -- durability --------------------------------------------------------------------------------------------------------


def test_names_that_were_created_are_synced_in_their_directories(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}") if LINUX else "?")
        real(fd)

    monkeypatch.setattr(module.os, "fsync", fsync)
    LocalFiles(str(root / "deep" / "down"))
    assert sorted(synced) == [str(root.parent), str(root), str(root / "deep")] if LINUX else len(synced) == 3
    del synced[:]
    LocalFiles(str(root / "deep" / "down"))
    assert synced == [str(root / "deep")] if LINUX else len(synced) == 1  # its creator may have died before it did
    LocalFiles(str(root / "deep" / "down")).open("a", create=True)
    del synced[:]
    LocalFiles(str(root / "deep" / "down"))
    assert synced == []


def test_a_durable_replacement_syncs_the_file_then_renames_then_syncs_the_name(
    files: LocalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for owner, name in ((module, "_datasync"), (module.os, "rename"), (module.os, "fsync")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, real=real, name=name: calls.append(name) or real(*given))
    files.replace_file("a", b"abc", sync=True)
    assert calls == ["_datasync", "rename", "fsync"]
    del calls[:]
    files.replace_file("a", b"abc", sync=False)
    assert calls == ["rename"]


def test_a_replacement_that_fails_leaves_the_old_file(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.replace_file("a", b"old", sync=True)
    for name in ("_datasync", "os.pwritev", "os.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(f"{module.__name__}.{name}", raising(OSError(errno.EIO, "no")))
            with pytest.raises(StorageError):
                files.replace_file("a", b"new and longer", sync=True)
        assert files.read_file("a") == b"old"
    files.replace_file("a", b"new", sync=True)
    assert files.read_file("a") == b"new"
    assert files.list("") == ["a"]


def test_a_tree_that_somebody_else_removes_too_is_gone(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.make_dir("d")
    for name in ("a", "b", "c"):
        files.open(f"d/{name}", create=True)
    real, calls = module.shutil.rmtree, []

    def rmtree(path: str) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(errno.ENOENT, "somebody was quicker")
        real(path)

    monkeypatch.setattr(module.shutil, "rmtree", rmtree)
    files.remove_tree("d")
    assert len(calls) == 2
    assert files.list("") == []


# -- mappings ----------------------------------------------------------------------------------------------------------


def allocated(root: Path, name: str) -> int:
    return (root / name).stat().st_blocks * 512


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was asked to be allocated: offsets and sizes."""
    found: list[tuple[int, int]] = []
    real = module._allocate

    def allocate(fd: int, offset: int, size: int) -> None:
        found.append((offset, size))
        real(fd, offset, size)

    monkeypatch.setattr(module, "_allocate", allocate)
    return found


def test_what_is_mapped_is_allocated_first(files: LocalFiles, root: Path, allocations: list[tuple[int, int]]) -> None:
    files.map("m", 0, PAGE)
    files.map("m", PAGE, 16 * PAGE)
    assert allocations == [(0, PAGE), (PAGE, 16 * PAGE)]
    assert allocated(root, "m") >= 17 * PAGE
    del allocations[:]
    files.map("m", 0, PAGE)
    assert allocations == []


def test_a_sparse_copy_is_allocated_before_it_is_mapped(
    files: LocalFiles, root: Path, allocations: list[tuple[int, int]]
) -> None:
    with (root / "m").open("wb") as file:
        file.write(b"abc")
        file.truncate(64 * PAGE)
    if allocated(root, "m") >= 64 * PAGE:
        pytest.skip("this file system keeps no holes")
    view = files.map("m", PAGE, 63 * PAGE)
    assert allocations == [(PAGE, 63 * PAGE)]
    assert allocated(root, "m") >= 63 * PAGE
    assert bytes(files.map("m", 0, PAGE)[:4]) == b"abc\0"
    assert not any(view)


def test_a_full_disk_is_an_error_and_no_signal(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_allocate", raising(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StorageError, match="make room"):
        files.map("m", 0, PAGE)


def test_a_system_that_cannot_allocate_writes_zeros(
    files: LocalFiles, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module.os, "posix_fallocate")
    files.map("m", 0, PAGE)[0] = 7
    files.map("m", PAGE, 16 * PAGE)
    assert (root / "m").stat().st_size == 17 * PAGE
    assert allocated(root, "m") >= 17 * PAGE
    assert files.map("m", 0, PAGE)[0] == 7


@pytest.mark.parametrize(("offset", "size"), [(1, PAGE), (100, PAGE)])
def test_a_mapping_off_the_page_is_a_declared_error(files: LocalFiles, offset: int, size: int) -> None:
    with pytest.raises(StorageError):
        files.map("m", offset, size)


def test_two_processes_share_a_mapping(files: LocalFiles, root: Path) -> None:
    view = files.map("m", 0, PAGE).cast("Q")
    ran = run(
        """
        import sys
        from streamlite.files.local import LocalFiles
        LocalFiles(sys.argv[1]).map("m", 0, 4096).cast("Q")[5] = 99
        """,
        str(root),
    )
    assert ran.stderr == ""
    assert view[5] == 99


# -- locks -------------------------------------------------------------------------------------------------------------


def test_a_lock_keeps_other_processes_out(files: LocalFiles, root: Path) -> None:
    lock = files.lock("l")
    assert lock.acquire()
    script = """
        import sys
        from streamlite.files.local import LocalFiles
        lock = LocalFiles(sys.argv[1]).lock("l")
        print(lock.acquire(), lock.acquire(shared=True), flush=True)
        sys.stdin.read()
    """
    assert run(script, str(root)).stdout == "False False\n"
    lock.release()
    assert run(script, str(root)).stdout == "True True\n"
    assert lock.acquire(), "and went with its process"


def test_a_lock_goes_with_a_process_that_is_killed(files: LocalFiles, root: Path) -> None:
    script = "import sys; from streamlite.files.local import LocalFiles; l = LocalFiles(sys.argv[1]).lock('l'); "
    command = [sys.executable, "-c", script + "print(l.acquire(), flush=True); sys.stdin.read()", str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        lock = files.lock("l")
        assert not lock.acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert lock.acquire()


def test_a_lock_lost_in_a_change_of_kind_is_said(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = files.lock("l"), files.lock("l")
    assert first.acquire(shared=True)
    assert second.acquire(shared=True)
    real = module.fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if operation == module._SHARED:  # somebody else takes it alone in between
            raise BlockingIOError(errno.EWOULDBLOCK, "taken")
        real(fd, operation)

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with pytest.raises(StorageError, match="cannot take back the lock"):
        first.acquire()


# -- named pipes -------------------------------------------------------------------------------------------------------


def test_a_ring_is_kept_for_who_waits_next(files: LocalFiles) -> None:
    mine, theirs = files.fifo("bell", create=True), files.fifo("bell")
    theirs.ring()
    theirs.ring()
    mine.wait(None)  # ends at once
    mine.wait(None)  # and again: a ring stays until it is taken
    before = os.stat(mine.fileno())
    mine.take()  # every ring so far: nothing is left to read
    mine.take()
    assert stat.S_ISFIFO(before.st_mode)
    with pytest.raises(BlockingIOError):
        os.read(mine.fileno(), 1)


@pytest.mark.parametrize("timeout", [0, 0.001, -0.001, -5])
def test_a_wait_at_a_silent_pipe_ends(files: LocalFiles, timeout: float) -> None:
    files.fifo("bell", create=True).wait(timeout)


def test_a_wait_ends_with_a_ring_from_elsewhere(files: LocalFiles) -> None:
    fifo = files.fifo("bell", create=True)
    waiter = threading.Thread(target=fifo.wait, args=(None,))
    waiter.start()
    files.fifo("bell").ring()
    waiter.join(20)
    assert not waiter.is_alive()


def test_a_wait_without_an_end_may_be_absurdly_long(files: LocalFiles) -> None:
    fifo = files.fifo("bell", create=True)
    fifo.ring()
    fifo.wait(1e300)


def test_a_pipe_full_of_rings_takes_more(files: LocalFiles) -> None:
    fifo = files.fifo("bell", create=True)
    for _ in range(100_000):
        fifo.ring()
    fifo.wait(None)


def test_to_ring_where_nobody_waits_any_more_is_fine(files: LocalFiles) -> None:
    mine, theirs = files.fifo("bell", create=True), files.fifo("bell")
    del mine
    theirs.ring()
    files.remove("bell")
    theirs.ring()
    with pytest.raises(MissingFile):
        files.fifo("bell")


def test_a_pipe_is_the_owners_alone_whatever_the_umask(umask: int, root: Path) -> None:
    LocalFiles(str(root)).fifo("bell", create=True).ring()
    assert mode(root / "bell") == 0o600


def test_a_name_that_is_taken_gets_no_pipe(files: LocalFiles, root: Path) -> None:
    files.open("a", create=True)
    for create in (False, True):
        with pytest.raises(StorageError) as caught:
            files.fifo("a", create=create)
        assert not isinstance(caught.value, MissingFile)
    (root / "link").symlink_to(root / "a")
    with pytest.raises(StorageError):
        files.fifo("link")
    assert files.read_file("a") == b""


def test_a_child_rings_none_of_its_parents_pipes(files: LocalFiles) -> None:
    fifo = files.fifo("bell", create=True)
    fifo.wait(0)
    assert in_child(fifo.ring) == "ForkedError"
    assert in_child(fifo.take) == "ForkedError"
    assert in_child(lambda: files.fifo("bell").ring()) == "None"
    fifo.wait(None)


# -- descriptors -------------------------------------------------------------------------------------------------------


def inherited(fd: int) -> bool:
    return os.get_inheritable(fd)


def open_descriptors() -> set[str]:
    return set(os.listdir("/dev/fd"))


def is_open(wanted: os.stat_result) -> bool:
    """Whether this process has a descriptor of that file."""
    found = set()
    for number in map(int, open_descriptors()):
        with contextlib.suppress(OSError):  # the one that listed them
            found.add((os.fstat(number).st_dev, os.fstat(number).st_ino))
    return (wanted.st_dev, wanted.st_ino) in found


def test_no_descriptor_goes_to_a_program_that_is_started(files: LocalFiles) -> None:
    for opened in (files.open("a", create=True), files.lock("l")):
        assert not inherited(opened._fd)  # type: ignore[attr-defined]


def test_a_descriptor_closes_with_its_last_user(files: LocalFiles) -> None:
    before = open_descriptors()
    file, lock = files.open("a", create=True), files.lock("l")
    read = file.read
    del file
    assert read(1, 0) == b""
    del read, lock
    files.sync_dir("")
    files.read_file("a")
    files.replace_file("b", b"x", sync=True)
    with pytest.raises(StorageError):
        files.map("a", 1, PAGE)
    with pytest.raises(MissingFile):
        files.open("none")
    assert open_descriptors() == before


def test_a_descriptor_that_somebody_closed_is_a_declared_error(files: LocalFiles) -> None:
    file = files.open("a", create=True)
    os.close(file._fd)  # type: ignore[attr-defined]
    with pytest.raises(StorageError) as caught:
        file.read(1, 0)
    assert caught.value.errno == errno.EBADF
    del file, caught  # which must not raise either


def test_what_is_open_at_interpreter_exit_is_closed_in_silence(root: Path) -> None:
    ran = run(
        """
        import builtins, sys, threading
        from streamlite.files.local import LocalFiles

        class Cycle:
            pass

        files = LocalFiles(sys.argv[1])
        builtins.kept = [files.open("a", create=True), files.lock("l"), files.map("m", 0, 4096)]
        sys.kept = files.lock("k")
        cycle = Cycle()
        cycle.me, cycle.file = cycle, files.open("b", create=True)
        never = threading.Event()

        def sit(file):
            never.wait()

        threading.Thread(target=sit, args=(files.open("c", create=True),), daemon=True).start()
        print("done")
        """,
        str(root),
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


def test_a_descriptor_needs_no_module_to_close(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()
    file = files.open("a", create=True)
    monkeypatch.setattr(module, "os", None)  # as at interpreter exit
    del file
    monkeypatch.undo()
    assert open_descriptors() == before


# -- fork --------------------------------------------------------------------------------------------------------------


def test_a_child_uses_nothing_of_its_parents(files: LocalFiles) -> None:
    file, lock = files.open("a", create=True), files.lock("l")
    file.write([b"abc"], 0)
    for call in (
        lambda: file.read(1, 0),
        lambda: file.write([b"x"], 0),
        lambda: file.truncate(0),
        file.size,
        file.sync,
        lock.acquire,
        lambda: lock.acquire(shared=True),
    ):
        assert in_child(call) == "ForkedError"
    assert file.read(9, 0) == b"abc"
    assert lock.acquire()


def test_a_child_cannot_unlock_for_its_parent(files: LocalFiles) -> None:
    lock = files.lock("l")
    assert lock.acquire()
    assert in_child(lock.release) == "None"
    assert in_child(lambda: LocalFiles(files.root).lock("l").acquire()) == "False"
    assert not files.lock("l").acquire(), "the parent still has it"


def test_a_child_holds_none_of_its_parents_descriptors(files: LocalFiles) -> None:
    kept = [files.open("a", create=True), files.lock("l"), files.lock("m")]

    def still_open() -> int:
        return sum(is_open(os.stat(f"{files.root}/{one.path}")) for one in kept)

    assert in_child(still_open) == "0"
    assert still_open() == 3


def test_a_lock_does_not_live_on_in_a_child(files: LocalFiles) -> None:
    mine, childs = socket.socketpair()
    lock = files.lock("l")
    assert lock.acquire()
    pid = fork()
    if pid == 0:
        mine.close()
        childs.send(b"!")
        childs.recv(1)  # lives until the parent lets it go
        os._exit(0)
    assert mine.recv(1) == b"!"
    del lock  # as at the parent's death: nothing is unlocked, the descriptor is gone
    got = files.lock("l").acquire()
    childs.close()
    mine.close()
    os.waitpid(pid, 0)
    assert got


def test_a_child_may_open_the_same_directory(files: LocalFiles) -> None:
    files.open("a", create=True).write([b"abc"], 0)

    def use() -> object:
        own = LocalFiles(files.root)
        own.open("b", create=True).write([b"def"], 0)
        return own.read_file("a"), own.lock("l").acquire(), files.read_file("b")

    assert in_child(use) == "(b'abc', True, b'def')"
    assert files.read_file("b") == b"def"


def test_a_fork_waits_for_who_is_opening(files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, go_on = threading.Event(), threading.Event()
    real = os.open
    fds: list[int] = []

    def slow(*given: Any, **more: Any) -> int:
        fds.append(real(*given, **more))
        opened.set()
        assert go_on.wait(20)  # the descriptor is open, and nobody has noted it down
        return fds[0]

    monkeypatch.setattr(module.os, "open", slow)
    kept: list[Any] = []
    opener = threading.Thread(target=lambda: kept.append(files.lock("l")))
    opener.start()
    assert opened.wait(20)
    assert not module._opening.acquire(blocking=False), "which is what a fork takes first"
    threading.Timer(0.0, go_on.set).start()
    assert in_child(lambda: is_open(os.stat(f"{files.root}/l"))) == "False"
    opener.join(20)
    assert kept[0].acquire()


def test_a_fork_while_opening_in_the_same_thread_is_no_deadlock(
    files: LocalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said = os.open, []

    def interrupted(*given: Any, **more: Any) -> int:
        monkeypatch.setattr(module.os, "open", real)
        said.append(in_child(lambda: LocalFiles(files.root).list("")))  # as a signal handler may do
        return real(*given, **more)

    monkeypatch.setattr(module.os, "open", interrupted)
    files.open("a", create=True)
    assert said == ["[]"]


def test_the_error_in_a_child_says_what_to_do(files: LocalFiles) -> None:
    file = files.open("a", create=True)

    def use() -> str:
        try:
            file.size()
        except ForkedError as error:
            return str(error)
        return "no error"

    assert in_child(use) == "a was opened before a fork, it is the parent's: open the bus again in the child"


# -- the boot ----------------------------------------------------------------------------------------------------------


def test_another_boot_has_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for number in range(50):
        monkeypatch.setattr(module.Path, "read_bytes", lambda path, number=number: b"%032x\n" % number)
        found.add(module._boot_id())
    assert len(found) == 50
    assert all(0 < number < 1 << 64 for number in found)


def test_a_system_without_boot_ids_is_asked_for_its_boot_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Path, "read_bytes", raising(FileNotFoundError(errno.ENOENT, "no")))
    monkeypatch.setattr(module, "_boot_time", lambda: b"{ sec = 1, usec = 2 }")
    first = module._boot_id()
    monkeypatch.setattr(module, "_boot_time", lambda: b"{ sec = 2, usec = 2 }")
    assert module._boot_id() != first


def test_a_boot_that_cannot_be_told_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Path, "read_bytes", raising(FileNotFoundError(errno.ENOENT, "no")))
    monkeypatch.setattr(subprocess, "run", raising(FileNotFoundError(errno.ENOENT, "no sysctl")))
    with pytest.raises(StorageError, match="cannot tell when this machine was started"):
        module._boot_id()
