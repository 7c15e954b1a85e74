"""Files in a directory of a local disk.

The boundary is the user who owns the directory: it and all below it are created 0700 and 0600 whatever the umask, and
no symbolic link is followed below it. `flock` is the only lock: a POSIX `lockf` lock vanishes when *any* descriptor of
the file is closed, and a `flock` belongs to the open file, so that two buses in one process exclude each other like two
processes. Mapped files are allocated before they are mapped, because a store into a hole on a full disk kills the
process (SIGBUS).

A fork copies descriptors, and with them the parent's locks: a lock would outlive its holder in a child that knows
nothing of it. So every descriptor is opened and noted down under one mutex that a fork takes first, and the child
closes its copies before anything else of it runs. Whoever uses one there gets `ForkedError`.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import shutil
import stat
import threading
import weakref
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from streamlite.errors import CorruptionError, ForkedError, FormatError, StorageError
from streamlite.files import Fifo, File, FileLock, Files, MissingFile, random_number

__all__ = ["LocalFiles"]

_NETWORK: Final = (
    "nfs", "cifs", "smb", "afs", "9p", "ceph", "gluster", "lustre", "gpfs", "beegfs", "orangefs", "gfs2", "ocfs2",
    "fuse.sshfs", "fuse.s3", "fuse.rclone", "fuse.gluster", "fuse.ceph", "fuse.gcsfuse", "fuse.juicefs",
)  # fmt: skip
# Opening a FIFO that somebody left there must not block: it would, with the mutex below held. Plain files do not mind.
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_EXCLUSIVE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_SHARED: Final = fcntl.LOCK_SH | fcntl.LOCK_NB
_UNLOCK: Final = fcntl.LOCK_UN
_IOV_MAX: Final = min(1024, os.sysconf("SC_IOV_MAX"))
_READ_MAX: Final = 0x7FFFF000
"""What Linux reads in one call at most; read(2), "Notes"."""
SMALL_FILE_BYTES_MAX: Final = 64 << 20
"""Of a file that is read whole: the list of a topic with 100,000 partitions is under 1 MiB."""

SCRATCH: Final = "scratch-"
"""How files begin that lose their name at once; one that has it belonged to a process that was killed in between."""
_NAMELESS: Final = getattr(os, "O_TMPFILE", 0)

_datasync = getattr(os, "fdatasync", os.fsync)


class _Descriptor:
    """An open descriptor; closed when nobody refers to it any more, so that a call under way never loses it.

    The finalizer is a call of C (a slot holds it): one in Python might be where a signal handler raises, and then
    nothing would be closed and the handler's exception be swallowed. `closerange` does not mind what is closed already.
    """

    __slots__ = ("__del__", "_fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self.__del__: Callable[[], object] = partial(os.closerange, fd, fd + 1)

    def forget(self) -> None:
        """In the child of a fork: close it, where the number may soon be that of another file."""
        self.__del__()
        self.__del__ = partial(int)
        self._fd = -1

    def _fail(self, what: str, error: Exception) -> NoReturn:
        # In the child of a fork the number is -1: some calls say EBADF to that, others raise a ValueError.
        if self._fd < 0:
            raise ForkedError(
                f"{self.path} was opened before a fork, it is the parent's: open the bus again in the child"
            )
        _fail(what, self.path, error)


_D = TypeVar("_D", bound=_Descriptor)

# Re-entrant, because a signal handler that forks may run in a thread that is opening something.
_opening = threading.RLock()  # guards the set below, and descriptors from their opening until they are in it
_descriptors: weakref.WeakSet[_Descriptor] = weakref.WeakSet()


def _close_in_child() -> None:
    for descriptor in list(_descriptors):
        descriptor.forget()
    _descriptors.clear()
    _opening.release()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_close_in_child)


class LocalFile(_Descriptor, File):
    """A file's descriptor."""

    def read(self, size: int, position: int) -> bytes:
        try:
            data = os.pread(self._fd, size, position)
            if _READ_MAX <= len(data) < size:
                data += self.read(size - len(data), position + len(data))
        except OSError as error:
            self._fail("read", error)
        return data

    def write(self, buffers: Sequence[bytes], position: int) -> None:
        try:
            written = os.pwritev(self._fd, buffers[:_IOV_MAX], position)
            if written != sum(map(len, buffers)):
                self._write_rest(buffers, position, written)
        except OSError as error:
            self._fail("write", error)

    def _write_rest(self, buffers: Sequence[bytes], position: int, written: int) -> None:
        """Go on after a call that wrote the first `written` bytes: there were too many buffers, or too little room."""
        rest = [memoryview(buffer) for buffer in buffers]
        at = 0
        while True:
            position += written
            while at < len(rest) and written >= len(rest[at]):
                written -= len(rest[at])
                at += 1
            if at == len(rest):
                return
            rest[at] = rest[at][written:]
            written = os.pwritev(self._fd, rest[at : at + _IOV_MAX], position)
            if written == 0:
                raise OSError(errno.EIO, "a write of no bytes")

    def size(self) -> int:
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            self._fail("stat", error)

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._fail("truncate", error)

    def cutting(self, size: int) -> Callable[[], object]:
        return partial(os.ftruncate, self._fd, size)

    def sync(self) -> None:
        try:
            _datasync(self._fd)
        except (OSError, ValueError) as error:
            self._fail("sync", error)

    def map(self, offset: int, size: int, *, writable: bool) -> memoryview:
        """See `Files.map`; a hole anywhere in the file (it was copied) counts as one in these bytes."""
        try:
            found = os.fstat(self._fd)
            if writable and (found.st_size < offset + size or found.st_blocks * 512 < found.st_size):
                _allocate(self._fd, offset, size)
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            return memoryview(mmap.mmap(self._fd, size, offset=offset, access=access))
        except (OSError, ValueError) as error:
            self._fail("map", error)

    def sync_names(self) -> None:
        """Bring a directory's entries to the device."""
        try:
            os.fsync(self._fd)
        except (OSError, ValueError) as error:
            self._fail("sync", error)


class LocalFifo(_Descriptor, Fifo):
    """A FIFO's descriptor."""

    _poll: select.poll | None = None

    def ring(self) -> None:
        try:
            os.write(self._fd, b"\0")
        except BlockingIOError:
            return  # full of rings that nobody took yet: as good as another one
        except OSError as error:
            self._fail("ring", error)

    def wait(self, timeout: float | None) -> None:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLIN)
        try:
            # A negative number would be "for ever" to poll(2).
            self._poll.poll(None if timeout is None else max(0.0, min(timeout, 1e6)) * 1000)
        except OSError as error:
            self._fail("wait at", error)

    def take(self) -> None:
        try:
            os.read(self._fd, 4096)
        except BlockingIOError:
            return  # none is there
        except OSError as error:
            self._fail("wait at", error)

    def fileno(self) -> int:
        return self._fd


class _Number:
    """The number of a descriptor as something that `fcntl.flock` can ask for it without running a line of Python."""

    def __init__(self, fd: int) -> None:
        self.fileno: Callable[[], int] = partial(abs, fd)


class LocalLock(_Descriptor, FileLock):
    """A `flock`. Released when the descriptor is closed, be it by the end of its process."""

    _shares = False
    """Whether it is held, and shared: what a change of kind that fails goes back to."""

    def __init__(self, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self._number = _Number(fd)
        self.unlock = partial(fcntl.flock, self._number, _UNLOCK)

    def forget(self) -> None:
        super().forget()
        self._number.fileno = partial(int, -1)

    def acquire(self, *, shared: bool = False) -> bool:
        try:
            fcntl.flock(self._fd, _SHARED if shared else _EXCLUSIVE)
        except BlockingIOError:
            self._keep()
            return False
        except (OSError, ValueError) as error:
            self._fail("lock", error)
        self._shares = shared
        return True

    def _keep(self) -> None:
        """Take back what a change of kind that failed has let go; flock(2): it "is not guaranteed to be atomic"."""
        if self._shares:
            try:
                fcntl.flock(self._fd, _SHARED)
            except OSError as error:
                self._shares = False
                self._fail("take back the lock", error)

    def release(self) -> None:
        self._shares = False
        if self._fd < 0:
            return  # in the child of a fork: to unlock would be to free the parent's lock
        try:
            fcntl.flock(self._fd, _UNLOCK)
        except OSError as error:
            self._fail("unlock", error)


class LocalFiles(Files):
    """A directory, created (mode 0700) where absent unless `read_only`, refused where it is not safe or not local.

    With `read_only` nothing is created or changed: what would be is a `StorageError` (EROFS).
    """

    def __init__(self, root: str, *, read_only: bool = False) -> None:
        self.root = os.path.abspath(root)
        self._read_only = read_only
        try:
            created = [] if read_only else self._create_root()
            self._check_root(os.stat(self.root))
            if not read_only and (created or not os.listdir(self.root)):
                # Their names must be on the device; an empty one's too: who created it may have died before this.
                for at in created or [self.root]:
                    _sync_directory(os.path.dirname(at))
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            _fail("open", self.root, error)

    def _create_root(self) -> list[str]:
        """Create it, and the directories above it as far as they are missing; which these were."""
        missing: list[str] = []
        at = self.root
        while not os.path.lexists(at):
            missing.append(at)
            at = os.path.dirname(at)
        for at in reversed(missing):
            try:
                os.mkdir(at, 0o700)
                os.chmod(at, 0o700)
            except FileExistsError:
                pass  # another process was quicker
        return missing

    def _check_root(self, found: os.stat_result) -> None:
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
            raise FormatError(
                f"refusing {self.root}: {kind} is a network file system, where locks cannot be trusted; name a "
                "directory on a local disk"
            )
        if not self._read_only and not os.access(self.root, os.W_OK | os.X_OK):
            raise StorageError(
                f"cannot write into {self.root}: permission denied; open it with read_only=True to read only",
                errno=errno.EACCES,
                path=self.root,
            )

    def _at(self, what: str, path: str, *, itself: bool = False) -> str:
        """The full path; refused where a symbolic link is on the way (or, with `itself`, at its end).

        Nobody but the owner can put one there while the bus is open: what is looked for is one that came with a copy.
        """
        names = path.split("/") if path else []
        at = self.root
        for name in names if itself else names[:-1]:
            at = f"{at}/{name}"
            try:
                is_link = stat.S_ISLNK(os.lstat(at).st_mode)
            except OSError:
                break  # the call that follows says what is wrong
            if is_link:
                _fail(what, at, OSError(errno.ELOOP, ""))
        return f"{self.root}/{path}" if path else self.root

    def _change(self, what: str, path: str) -> str:
        """As `_at`, for what changes something."""
        if self._read_only:
            raise StorageError(
                f"cannot {what} {self.root}/{path}: it was opened with read_only=True", errno=errno.EROFS, path=path
            )
        return self._at(what, path)

    def scratch(self) -> File:
        self._change("create", SCRATCH)
        if _NAMELESS:
            try:
                return self._opened(LocalFile, "", os.O_RDWR | _NAMELESS)
            except StorageError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise  # this file system can make one; the others make one with a name, and take that away
        path = f"{SCRATCH}{random_number()}"
        file = self._opened(LocalFile, path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.remove(path)
        return file

    def _opened(self, kind: type[_D], path: str, flags: int) -> _D:
        at = self._at("open", path)
        try:
            with _opening:
                opened = kind(path or self.root, os.open(at, flags | (_OPEN if path else os.O_CLOEXEC), 0o600))
                _descriptors.add(opened)
            if flags & os.O_CREAT and os.fstat(opened._fd).st_mode & 0o600 != 0o600:
                os.fchmod(opened._fd, 0o600)  # just created, under a umask that takes rights from its owner
        except OSError as error:
            _fail("open", at, error)
        return opened

    def open(self, path: str, *, create: bool = False) -> File:
        if self._read_only:
            return self._opened(LocalFile, path, os.O_RDONLY)
        return self._opened(LocalFile, path, os.O_RDWR | (os.O_CREAT if create else 0))

    def lock(self, path: str, *, create: bool = True) -> FileLock:
        self._change("lock", path)
        return self._opened(LocalLock, path, os.O_RDWR | (os.O_CREAT if create else 0))

    def fifo(self, path: str, *, create: bool = False) -> Fifo:
        at = self._change("create", path)
        if create:
            try:
                os.mkfifo(at, 0o600)
                os.chmod(at, 0o600)
            except OSError as error:
                _fail("create", at, error)
        # Read and write: so opening waits for nobody, and a write when the reader is gone raises no SIGPIPE.
        fifo = self._opened(LocalFifo, path, os.O_RDWR | os.O_NONBLOCK)
        if not stat.S_ISFIFO(os.fstat(fifo.fileno()).st_mode):
            # Of a file, which a copy may have made of it, every wait would end at once.
            raise StorageError(f"cannot open {at}: it is no named pipe; remove it", errno=errno.EINVAL, path=at)
        return fifo

    def map(self, path: str, offset: int, size: int) -> memoryview:
        flags = os.O_RDONLY if self._read_only else os.O_RDWR | os.O_CREAT
        return self._opened(LocalFile, path, flags).map(offset, size, writable=not self._read_only)

    def read_file(self, path: str) -> bytes:
        file = self.open(path)
        size = file.size()
        if size > SMALL_FILE_BYTES_MAX:
            raise CorruptionError(
                f"{path} has {size:,} bytes, and none of its kind has more than {SMALL_FILE_BYTES_MAX:,}; restore it "
                "from a copy",
                file=path,
                position=SMALL_FILE_BYTES_MAX,
            )
        return file.read(size, 0)

    def replace_file(self, path: str, data: bytes, *, sync: bool) -> None:
        self._change("replace", path)
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
        at = self._at("list", path, itself=True)
        try:
            return os.listdir(at)
        except OSError as error:
            _fail("list", at, error)

    def make_dir(self, path: str) -> None:
        at = self._change("create", path)
        try:
            os.mkdir(at, 0o700)
            os.chmod(at, 0o700)
        except OSError as error:
            if not isinstance(error, FileExistsError) or not os.path.isdir(at):
                _fail("create", at, error)

    def rename(self, path: str, to: str) -> None:
        at, to = self._change("rename", path), self._change("rename", to)
        try:
            os.rename(at, to)
        except OSError as error:
            _fail("rename", at, error)

    def remove(self, path: str) -> None:
        at = self._change("remove", path)
        try:
            os.unlink(at)
        except FileNotFoundError:
            return
        except OSError as error:
            _fail("remove", at, error)

    def remove_tree(self, path: str) -> None:
        at = self._change("remove", path)
        while True:
            try:
                shutil.rmtree(at)
            except FileNotFoundError:
                # Perhaps somebody else removes it too and was quicker with one of its names: `rmtree` left the rest.
                if os.path.lexists(at):
                    continue
            except OSError as error:
                _fail("remove", at, error)
            return

    def sync_dir(self, path: str) -> None:
        self._opened(LocalFile, path, os.O_RDONLY | os.O_DIRECTORY).sync_names()

    def boot_id(self) -> int:
        return _boot_id()

    def close(self) -> None:
        return


_HINTS: Final = {
    errno.ENOSPC: "; make room and send again",
    errno.EDQUOT: "; make room and send again",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
    errno.ELOOP: "; it is a symbolic link, and none is followed inside the directory of a bus",
}


def _fail(what: str, path: str, error: Exception) -> NoReturn:
    """Raise the `StorageError` that stands for what the operating system said."""
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else str(error)
    kind = MissingFile if number == errno.ENOENT else StorageError
    raise kind(f"cannot {what} {path}: {reason}{_HINTS.get(number or 0, '')}", errno=number, path=path) from error


def _allocate(fd: int, offset: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, offset, size)
        return
    end = os.fstat(fd).st_size  # macOS: real zeros take the room as well
    os.pwrite(fd, bytes(max(0, offset + size - end)), end)


def _sync_directory(path: str) -> None:
    """Sync the entries of a directory above the root, where this user may read it at all."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _file_system(device: int) -> str:
    """The type of the file system with that device number, '' where the system does not tell (it tells on Linux)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.split("\n"):  # not `splitlines`: a path may hold what that takes for the end of a line
        fields, _, rest = line.partition(" - ")
        if fields.split(" ")[2:3] == [wanted]:
            return rest.split(" ")[0]
    return ""


def _boot_id() -> int:
    """Linux's random boot id folded to 64 bits; elsewhere the boot time, which `sysctl` keeps.

    Where neither can be had nothing stands in for it: counters of a boot before the present one must not be believed.
    """
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        text = _boot_time()
    if not text:
        raise StorageError("cannot tell when this machine was started: mount /proc, or make the sysctl command work")
    return (zlib.crc32(text) << 32 | zlib.crc32(text[::-1])) or 1


def _boot_time() -> bytes:
    import subprocess  # macOS only, once an open

    try:
        return subprocess.run(["sysctl", "-n", "kern.boottime"], capture_output=True, check=False).stdout.strip()
    except OSError:
        return b""
