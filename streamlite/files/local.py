"""Files in a directory of a local disk.

The boundary is the user who owns the directory: it and all below it are 0700 and 0600 whatever the umask, and no
symbolic link is followed below it. `flock` is the only lock: a POSIX `lockf` lock vanishes when *any* descriptor of the
file is closed, and a `flock` belongs to the open file, so that two buses in one process exclude each other like two
processes. Mapped files are allocated before they are mapped, because a store into a hole on a full disk kills the
process (SIGBUS).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import stat
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from streamlite.errors import FormatError, StorageError
from streamlite.files import File, FileLock, Files, MissingFile

__all__ = ["LocalFiles"]

_NETWORK = ("nfs", "cifs", "smb", "afs", "9p", "ceph", "gluster", "lustre", "fuse.sshfs", "fuse.s3", "fuse.rclone")
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW

# A fork between opening a descriptor and keeping it would leave the child a copy that nobody closes, and with it the
# parent's locks: so descriptors are opened under this mutex, and fork takes it first.
_opening = threading.Lock()
os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release)


class LocalFile(File):
    """A descriptor; closed when nobody refers to it any more, so that a call under way never loses it."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def read(self, size: int, position: int) -> bytes:
        try:
            return os.pread(self._fd, size, position)
        except OSError as error:
            _fail("read", self.path, error)

    def write(self, buffers: Sequence[bytes], position: int) -> None:
        try:
            total = sum(map(len, buffers))
            written = os.pwritev(self._fd, buffers[:_IOV_MAX], position)
            if written != total:
                self._write_rest(buffers, position, written)
        except OSError as error:
            _fail("write", self.path, error)

    def _write_rest(self, buffers: Sequence[bytes], position: int, written: int) -> None:
        rest = memoryview(b"".join(buffers))[written:]
        position += written
        while rest:
            count = os.pwrite(self._fd, rest, position)
            if count == 0:
                raise OSError(errno.EIO, "a write of no bytes")
            rest = rest[count:]
            position += count

    def size(self) -> int:
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            _fail("stat", self.path, error)

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            _fail("truncate", self.path, error)

    def sync(self) -> None:
        try:
            _datasync(self._fd)
        except OSError as error:
            _fail("sync", self.path, error)

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            os.close(fd)


class LocalLock(FileLock):
    """A `flock`. Released when the descriptor is closed, be it by the end of its process."""

    __slots__ = ("_fd", "_pid", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._pid = os.getpid()

    def acquire(self, *, shared: bool = False) -> bool:
        try:
            fcntl.flock(self._fd, _SHARED if shared else _EXCLUSIVE)
        except BlockingIOError:
            return False
        except OSError as error:
            _fail("lock", self.path, error)
        return True

    def release(self) -> None:
        try:
            fcntl.flock(self._fd, _UNLOCK)
        except OSError as error:
            _fail("unlock", self.path, error)

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            os.close(fd)


_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
_SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
_UNLOCK = fcntl.LOCK_UN
_IOV_MAX = min(1024, os.sysconf("SC_IOV_MAX"))
_datasync = getattr(os, "fdatasync", os.fsync)


class LocalFiles(Files):
    """A directory, created (mode 0700) where absent unless `read_only`, refused where it is not safe or not local."""

    def __init__(self, root: str, *, read_only: bool = False) -> None:
        self.root = os.path.abspath(root)
        self._read_only = read_only
        if not read_only:
            self._create_root()
        self._check_root()

    def _create_root(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.root), mode=0o700, exist_ok=True)
            os.mkdir(self.root, 0o700)
            os.chmod(self.root, 0o700)
        except FileExistsError:
            return
        except OSError as error:
            _fail("create", self.root, error)

    def _check_root(self) -> None:
        try:
            found = os.stat(self.root)
        except OSError as error:
            _fail("open", self.root, error)
        if not stat.S_ISDIR(found.st_mode):
            raise FormatError(f"cannot open {self.root}: it is no directory; name a directory, or a path not yet taken")
        if found.st_uid != os.geteuid() and not self._read_only:
            raise FormatError(
                f"refusing {self.root}: it belongs to user {found.st_uid}, this process runs as {os.geteuid()}; "
                "open it as its owner, or read_only=True"
            )
        if found.st_mode & 0o022:
            raise FormatError(
                f"refusing {self.root}: others may write into it (mode {stat.S_IMODE(found.st_mode):04o}); "
                f"run chmod go-w {self.root}"
            )
        kind = _file_system(found.st_dev)
        if kind.startswith(_NETWORK):
            raise FormatError(f"refusing {self.root}: {kind} is a network file system, where locks cannot be trusted")
        if not self._read_only and not os.access(self.root, os.W_OK | os.X_OK):
            raise StorageError(
                f"cannot write into {self.root}: permission denied; open it with read_only=True to read only",
                errno=errno.EACCES,
                path=self.root,
            )

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def open(self, path: str, *, create: bool = False) -> File:
        flags = os.O_RDONLY if self._read_only else os.O_RDWR
        return LocalFile(path, self._descriptor(path, flags | (os.O_CREAT if create else 0)))

    def lock(self, path: str) -> FileLock:
        return LocalLock(path, self._descriptor(path, os.O_RDWR | os.O_CREAT))

    def _descriptor(self, path: str, flags: int) -> int:
        try:
            with _opening:
                fd = os.open(self._at(path), flags | _OPEN, 0o600)
        except OSError as error:
            _fail("open", self._at(path), error)
        return fd

    def map(self, path: str, offset: int, size: int) -> memoryview:
        fd = self._descriptor(path, os.O_RDONLY if self._read_only else os.O_RDWR | os.O_CREAT)
        try:
            if not self._read_only and os.fstat(fd).st_size < offset + size:
                _allocate(fd, offset, size)
            access = mmap.ACCESS_READ if self._read_only else mmap.ACCESS_WRITE
            return memoryview(mmap.mmap(fd, size, offset=offset, access=access))
        except (OSError, ValueError) as error:
            _fail("map", self._at(path), error)
        finally:
            os.close(fd)

    def read_file(self, path: str) -> bytes:
        file = self.open(path)
        return file.read(file.size(), 0)

    def replace_file(self, path: str, data: bytes, *, sync: bool) -> None:
        scratch = f"{path}.new"
        file = self.open(scratch, create=True)
        file.truncate(0)
        file.write([data], 0)
        if sync:
            file.sync()
        self.rename(scratch, path)
        if sync:
            self.sync_dir(path.rpartition("/")[0])

    def list(self, path: str) -> list[str]:
        try:
            return os.listdir(self._at(path))
        except OSError as error:
            _fail("list", self._at(path), error)

    def make_dir(self, path: str) -> None:
        at = self._at(path)
        try:
            os.mkdir(at, 0o700)
            os.chmod(at, 0o700)
        except FileExistsError:
            return
        except OSError as error:
            _fail("create", at, error)

    def rename(self, path: str, to: str) -> None:
        try:
            os.rename(self._at(path), self._at(to))
        except OSError as error:
            _fail("rename", self._at(path), error)

    def remove(self, path: str) -> None:
        try:
            os.unlink(self._at(path))
        except FileNotFoundError:
            return
        except OSError as error:
            _fail("remove", self._at(path), error)

    def remove_tree(self, path: str) -> None:
        try:
            shutil.rmtree(self._at(path))
        except FileNotFoundError:
            return
        except OSError as error:
            _fail("remove", self._at(path), error)

    def sync_dir(self, path: str) -> None:
        fd = self._descriptor(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        except OSError as error:
            _fail("sync", self._at(path), error)
        finally:
            os.close(fd)

    def boot_id(self) -> int:
        return _boot_id()

    def close(self) -> None:
        return


def _fail(what: str, path: str, error: Exception) -> NoReturn:
    """Raise the `StorageError` that stands for what the operating system said."""
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else str(error)
    kind = MissingFile if number == errno.ENOENT else StorageError
    hint = {errno.ENOSPC: "; make room and send again", errno.EMFILE: "; raise the limit of open files (ulimit -n)"}
    raise kind(f"cannot {what} {path}: {reason}{hint.get(number or 0, '')}", errno=number, path=path) from error


def _allocate(fd: int, offset: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, offset, size)
        return
    end = os.fstat(fd).st_size  # macOS: real zeros take the room as well
    os.pwrite(fd, bytes(offset + size - end), end)


def _file_system(device: int) -> str:
    """The type of the file system with that device number, '' where the system does not tell (it tells on Linux)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split(" ")[2] == wanted:
            return rest.split(" ")[0]
    return ""


def _boot_id() -> int:
    """Linux's random boot id folded to 64 bits; elsewhere the boot time, which `sysctl` keeps."""
    try:
        text: Any = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        import subprocess  # macOS only, once an open

        text = subprocess.run(["sysctl", "-n", "kern.boottime"], capture_output=True, check=False).stdout
    return (zlib.crc32(text) << 32 | zlib.crc32(text[::-1])) or 1
