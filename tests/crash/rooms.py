"""Real limits of a real system: a small file system that nobody else sees, another user, fewer descriptors, no memory.

A `Room` is a tmpfs in a mount namespace of its own, held by a small process and reached through `/proc/PID/root`: no other
process sees the mount, and it is gone with its holder, however this process ends. Where the system does not allow that
`room` skips the test and says why; `limited` works everywhere.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Room", "another_user", "limited", "room", "why_no_room"]

NOBODY = 65_534


class Room:
    """A tmpfs of `size` bytes and, where told, so many inodes; `path` is its root."""

    def __init__(self, size: int, inodes: int | None = None) -> None:
        options = f"size={size},mode=0755" + (f",nr_inodes={inodes}" if inodes else "")
        unshare = shutil.which("unshare")
        if unshare is None:
            raise OSError(errno.ENOENT, "there is no unshare command")
        at = "/mnt"
        # `read` ends with its standard input, so the holder ends with this process.
        script = f"mount -t tmpfs -o {options} none {at} && echo held && read end"
        flags = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
        self._holder = subprocess.Popen(
            [unshare, *flags, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != b"held\n":
            said = self._holder.stderr.read().decode().strip()
            self.close()
            raise OSError(errno.EPERM, said or "the holder of the mount ended")
        self.path = Path(f"/proc/{self._holder.pid}/root{at}")
        self._ballast = self.path / "ballast"

    def fill(self, pages_left: int = 0) -> None:
        """Leave room for so many pages of 4 KiB, and no more."""
        self.empty()
        found = os.statvfs(self.path)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail - pages_left) * found.f_bsize)

    def empty(self) -> None:
        """Give the room back that `fill` took."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of it."""
        for pipe in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            assert pipe is not None
            pipe.close()
        self._holder.wait()


def why_no_room() -> str:
    """Why this system gives no `Room`; '' where it does."""
    try:
        made = Room(1 << 20)
        try:
            (made.path / "x").write_bytes(b"x")
        finally:
            made.close()
    except OSError as error:
        return f"no file system of one's own can be mounted here: {error}"
    return ""


_why: list[str] = []


@contextmanager
def room(size: int = 1 << 20, inodes: int | None = None) -> Iterator[Room]:
    """A `Room` for as long as the block lasts; skips the test where there is none to have."""
    if not _why:
        _why.append(why_no_room())
    if _why[0]:
        pytest.skip(_why[0])
    made = Room(size, inodes)
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


def descriptors_in_use() -> int:
    """One more than the greatest descriptor that is open."""
    return max(map(int, os.listdir("/dev/fd"))) + 1


@contextmanager
def another_user() -> Iterator[None]:
    """Be one for whom the modes of files count: root becomes nobody meanwhile, whoever is no user of that kind stays."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
