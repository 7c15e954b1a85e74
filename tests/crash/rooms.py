"""Real limits of a real system: a small file system that nobody else sees, another user, few descriptors.

A `Room` is a tmpfs in a mount namespace of its own, held by a small process and reached through `/proc/PID/root`: no
other process sees the mount, and it is gone with its holder, however this process ends. Where the system does not allow
that, `room` skips the test and says why; the rest works everywhere.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["NOBODY", "Room", "another_user", "descriptors_left", "limited", "room", "why_no_room"]

NOBODY = 65_534
PLENTY = 64 << 20
"""Of room, and far more than any test writes."""

_HOLDER = """
mount -t tmpfs -o mode=0755 none /mnt || exit
echo held
while read options; do mount -o remount,$options none /mnt; echo $?; done
"""
"""`read` ends with its standard input, so the holder ends with who started it."""


class Room:
    """A tmpfs; `path` is its root. It has plenty of room until `limit` says otherwise."""

    def __init__(self) -> None:
        unshare = shutil.which("unshare")
        if unshare is None:
            raise OSError(errno.ENOENT, "there is no unshare command")
        flags = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
        self._holder = subprocess.Popen(
            [unshare, *flags, "sh", "-c", _HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != b"held\n":
            said = self._holder.stderr.read().decode().strip()
            self.close()
            raise OSError(errno.EPERM, said or "the holder of the mount ended")
        self.path = Path(f"/proc/{self._holder.pid}/root/mnt")
        self.free()

    def limit(self, *, pages_left: int | None = None, inodes_left: int | None = None) -> None:
        """Leave room for so many pages of 4 KiB and so many files; `None` for plenty."""
        found = os.statvfs(self.path)
        used, files = found.f_blocks - found.f_bfree, found.f_files - found.f_ffree
        size = PLENTY if pages_left is None else max(1, used + pages_left) * found.f_bsize
        inodes = 1_000_000 if inodes_left is None else files + inodes_left
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(f"size={size},nr_inodes={inodes}\n".encode())
        self._holder.stdin.flush()
        assert self._holder.stdout.readline() == b"0\n", (size, inodes, found)

    def free(self) -> None:
        """Give plenty of room again."""
        self.limit()

    def close(self) -> None:
        """Let go of it."""
        for pipe in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            assert pipe is not None
            pipe.close()
        self._holder.wait()


def why_no_room() -> str:
    """Why this system gives no `Room`; '' where it does."""
    if not _why:
        try:
            made = Room()
            try:
                (made.path / "x").write_bytes(b"x")
            finally:
                made.close()
            _why.append("")
        except OSError as error:
            _why.append(f"no file system of one's own can be mounted here: {error}")
    return _why[0]


_why: list[str] = []


@contextmanager
def room() -> Iterator[Room]:
    """A `Room` for as long as the block lasts; skips the test where there is none to have."""
    if why_no_room():
        pytest.skip(why_no_room())
    made = Room()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """A soft limit of this process, as `resource` has them, for as long as the block lasts."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """So many files can be opened and no more: the limit is on their numbers, and there are gaps."""
    gc.collect()  # what earlier tests left would be found when none is left
    used = set(map(int, os.listdir("/dev/fd")))
    most = 0
    while most - len([one for one in used if one < most]) < count + 1:  # one that was just used to list them is free
        most += 1
    with limited(resource.RLIMIT_NOFILE, most - 1):
        yield


@contextmanager
def another_user() -> Iterator[None]:
    """Be one for whom the modes of files count: root becomes nobody meanwhile, and everybody else stays who he is."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
