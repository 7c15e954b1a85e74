"""What all parts of one open bus share: the seams, the locks' opener, the level of durability, and whether it is open.

It holds no behaviour of its own beyond "may this be used now". Everything in the engine gets a `Context` instead of the
engine, so that no part depends on the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from streamlite.clock import Clock
from streamlite.counters import EPOCH, Counters
from streamlite.errors import ClosedError, ForkedError, UnsupportedError
from streamlite.files import Files
from streamlite.handles import Handles
from streamlite.locks import Guard
from streamlite.wakeup import Bell

if TYPE_CHECKING:
    from streamlite.format import BatchHeader
    from streamlite.partition import Partition

__all__ = ["Context"]


class Sender(Protocol):
    """What the engine knows of a producer."""

    def nudge(self) -> None:
        """Write what is held back, where that costs no wait."""

    def push(self) -> None:
        """Write what is held back, and wait for it."""

    def topics_changed(self) -> None:
        """Look at the topics, and whether the bus is still this process's, before the next message."""


class Ledger(Protocol):
    """What partitions know of transactions: see `streamlite.ledger`."""

    def committed(self, partition: Partition, header: BatchHeader) -> bool:
        """Whether the transaction of that batch of the partition was committed."""

    def covers(self, transaction: int) -> bool:
        """Whether the commit records up to that transaction are on the device."""

    def sync_upto(self, transaction: int) -> None:
        """Bring the commit records up to that transaction to the device."""


def _nothing() -> None:
    return


def _keep_nothing(partition: Partition, upto: int) -> None:
    return


class Context:
    """One open bus, as seen by its parts. `sync`: "always", "interval" or "never"."""

    def __init__(
        self, files: Files, counters: Counters, clock: Clock, *, sync: str, lock_timeout: float, read_only: bool
    ) -> None:
        self.files = files
        self.handles = Handles(files)
        self.counters = counters
        self.clock = clock
        self.bell = Bell(clock)
        self.sync = sync
        self.always = sync == "always"
        self.lock_timeout = lock_timeout
        self.read_only = read_only
        self.closed = False
        self.forked = False
        self.dirty: set[Partition] = set()
        """Partitions that this bus appended to since it last synced them; `add` is atomic."""
        self.sealed: set[Partition] = set()
        """Partitions in which this bus rolled a segment; what is sealed is synced at every level, see `recovery`."""
        self.senders: tuple[Sender, ...] = ()
        """This bus's producers."""
        self.ledger: Ledger
        """Set by the engine before any partition is used."""
        self.preserve: Callable[[Partition, int], object] = _keep_nothing
        """Called under a partition's lock before what lies below an offset goes: see `streamlite.numbering`."""
        self.follow: Callable[[Any], Any] = lambda partition: None
        """Of a bus that only reads: bring a partition's words up to date."""
        self.on_dirty: Callable[[], Any] = _nothing
        """Called after a partition became dirty; wakes the syncer where it has to do with that."""
        self.on_sealed: Callable[[], Any] = _nothing
        """Called after a segment was sealed."""

    @property
    def epoch(self) -> int:
        """How often the machine stopped without a clean close of this bus."""
        return int(self.counters.header[EPOCH])

    def check(self) -> None:
        """Raise unless the bus may be used: `ClosedError`, `ForkedError`."""
        if self.forked:
            raise ForkedError(
                f"this bus ({self.files.root}) was opened before a fork and is the parent's: open it again in the child"
            )
        if self.closed:
            raise ClosedError(f"the bus {self.files.root} is closed; open it again")

    def check_fork(self) -> None:
        """Raise `ForkedError` in the child of a fork."""
        if self.forked:
            self.check()

    def check_writable(self) -> None:
        """As `check`, and refuse a bus that was opened to read only."""
        self.check()
        if self.read_only:
            raise UnsupportedError(f"the bus {self.files.root} was opened with read_only=True: nothing can be changed")

    def check_writable_for(self, what: str) -> None:
        """As `check_writable`, saying what it was for."""
        if self.read_only:
            raise UnsupportedError(f"{what}, and the bus {self.files.root} was opened with read_only=True")
        self.check()

    def hurry(self) -> None:
        """Have what this bus's producers hold back written, where that costs no wait."""
        for sender in self.senders:
            sender.nudge()

    def guard(self, path: str, what: str, incarnation: int = 0) -> Guard:
        """A lock on the lock file at `path`."""
        return Guard(lambda: self.handles.lock(incarnation, path), what)
