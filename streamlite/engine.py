"""Opening and closing a bus: who comes first recovers, who goes last leaves it clean.

Opening, under the bus's lock:

1. The directory is a bus of a format this release knows, or empty and made one.
2. Whoever gets the open lock alone is the first. A mark of a clean close gives it the words of all partitions, and is
   removed durably before anything is appended. Without a mark, every partition is flagged RECOVER, and whoever touches
   it first reads its newest segment; synced offsets and failed syncs are taken from the counters if these are of this
   boot. If they are of another boot, or not whole, the machine stopped: the epoch is raised, durably, before anything
   is read.
3. Everybody else joins: the counters are of this boot and whole, or it refuses.

Closing: the last to go (it gets the open lock alone again) syncs everything, at every level, and writes the mark.

The engine also owns the background: the syncer here, maintenance and producers above.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from contextlib import suppress
from typing import Any, Final

from streamlite.clock import Clock, SystemClock
from streamlite.context import Context
from streamlite.counters import FAILED, FLAGS, NUMBERED, RECOVER, Counters, SlotState
from streamlite.errors import FormatError, LockTimeoutError, StreamliteError, UnknownTopicError, UnsupportedError
from streamlite.files import Files, after_fork_in_child, random_number
from streamlite.files.memory import MemoryFiles
from streamlite.ledger import Ledger
from streamlite.locks import Guard
from streamlite.maintenance import Maintenance
from streamlite.marks import (
    BUS_LOCK,
    OPEN_LOCK,
    Identity,
    create_identity,
    read_clean,
    read_epoch,
    read_identity,
    remove_clean,
    write_clean,
    write_epoch,
)
from streamlite.meta import Meta
from streamlite.offsets import Offsets
from streamlite.partition import Partition
from streamlite.registry import Registry, TopicState
from streamlite.syncer import Syncer
from streamlite.ticker import Ticker

__all__ = ["Engine"]

logger = logging.getLogger("streamlite")

MEMORY: Final = ":memory:"

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """One open bus below its façade."""

    def __init__(self, ctx: Context, identity: Identity, lock: Guard, open_lock: Any) -> None:
        self.ctx = ctx
        self.identity = identity
        self.registry = Registry(ctx, lock)
        self._lock = lock
        self._open_lock = open_lock
        self.offsets = Offsets(ctx, self.registry)
        self.ledger = ctx.ledger = Ledger(ctx, self.registry)
        self.meta = Meta(ctx, self.registry)
        ctx.preserve = self._preserve
        self.maintenance = Maintenance(ctx, self.registry, self.ledger)
        self.ticker = Ticker(ctx.clock)
        self.groups: dict[str, object] = {}
        """The groups' files, by name: see `streamlite.group`."""
        self.groups_mutex = threading.Lock()
        self.syncer: Syncer | None = None
        self.opened: dict[Any, None] = {}
        """Producers, consumers and workers that close before the log does, the last opened first."""
        self._closing = False
        self._closed = False
        self._failures: list[Exception] = []  # of the handles that were closed, to be raised in the end
        _engines.add(self)

    @classmethod
    def open(
        cls,
        location: str | Files,
        *,
        sync: str,
        sync_interval_s: float,
        read_only: bool,
        lock_timeout: float,
        clock: Clock,
    ) -> Engine:
        """Open the bus at `location`: a directory, ":memory:", or a seam that behaves like a directory."""
        files = _files(location, read_only) if isinstance(location, str) else location
        if read_only:
            return cls._open_read_only(files, clock, lock_timeout)
        read_identity(files)  # before a lock file is created in a directory that is no bus
        lock = Guard(lambda: bus_lock, f"the bus {files.root}")
        bus_lock = files.lock(BUS_LOCK)

        def join() -> Engine:
            identity = read_identity(files) or create_identity(files)
            open_lock = files.lock(OPEN_LOCK)
            first = open_lock.acquire()
            ctx = Context(files, Counters(files), clock, sync=sync, lock_timeout=lock_timeout, read_only=False)
            engine = cls(ctx, identity, lock, open_lock)
            try:
                engine._join(first, share=location != MEMORY)
            except BaseException:
                open_lock.unlock()
                _engines.discard(engine)
                raise
            return engine

        engine = lock.run(join, lock_timeout)
        ctx = engine.ctx
        if location != MEMORY:
            engine.syncer = Syncer(ctx, engine.registry, sync_interval_s)
            ctx.on_sealed = engine.syncer.woken
            if sync != "never":
                ctx.on_dirty = engine.syncer.woken
                engine.syncer.worker.wake()
        return engine

    @classmethod
    def _open_read_only(cls, files: Files, clock: Clock, lock_timeout: float) -> Engine:
        from streamlite.readonly import Follower, PrivateCounters  # only who reads only needs it

        identity = read_identity(files)
        if identity is None:
            raise FormatError(f"there is no bus in {files.root}, and read_only=True creates none")
        ctx = Context(files, PrivateCounters(), clock, sync="never", lock_timeout=lock_timeout, read_only=True)
        engine = cls(ctx, identity, ctx.guard(BUS_LOCK, "a bus that is only read"), None)
        ctx.follow = Follower(ctx, identity).follow
        ctx.follow(None)
        return engine

    def _join(self, first: bool, *, share: bool) -> None:
        """Become one of those who have the bus open."""
        ctx = self.ctx
        if first:
            self._begin()
        else:
            ctx.counters.require(ctx.files.boot_id())
        if share:
            ctx.bell.share(ctx.files, first=first)
        if not self._open_lock.acquire(shared=True):
            # Only an opener or a closer holds it alone, and only under the lock that we hold.
            raise LockTimeoutError(f"{ctx.files.root}/{OPEN_LOCK} is held by something that is no bus; open again")

    # -- the first ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make the counters true, as the only one who has the bus open."""
        ctx, files = self.ctx, self.ctx.files
        boot = files.boot_id()
        files.make_dir("topics")
        clean, epoch = read_clean(files, self.identity), read_epoch(files)
        if clean is None and ctx.counters.usable(boot) and ctx.epoch == epoch:
            ctx.counters.revise(self.registry.slots_on_disk())
        else:
            if clean is None:
                on_disk = self.registry.slots_on_disk()
                clean = {slot: SlotState(incarnation=one, flags=RECOVER) for slot, one in on_disk.items()}
                if on_disk:
                    epoch += 1
                    write_epoch(files, epoch)
            ctx.counters.reset(clean, boot, random_number(), epoch)
        remove_clean(files)

    # -- the last -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close what was opened on top, then the log; the last one to close leaves the mark. Idempotent."""
        if self._closing or self._closed:
            return
        self._closing = True
        try:
            self._close()
        finally:
            self._closing = False
        if self._failures:
            failure = self._failures[0]
            self._failures = []
            raise failure

    def _close(self) -> None:
        """Every part of it can be done again, where a signal handler ended the first call."""
        for handle in reversed(list(self.opened)):
            try:
                handle.close()
            except StreamliteError as error:
                self._failures += [error]
        try:
            self._stop()
        except StreamliteError:
            self._end()
            raise
        self._end()

    def _end(self) -> None:
        self.ctx.closed = True
        self.ctx.bell.ring()
        self.ctx.handles.close()
        self.ctx.files.close()
        self._closed = True

    @property
    def shared(self) -> bool:
        """Whether other processes may use the bus, so that waiting must look up now and then; not on a test's clock."""
        return (self.syncer is not None or self.ctx.read_only) and isinstance(self.ctx.clock, SystemClock)

    def push(self) -> None:
        """Have everything that this bus's producers were given written: who reads next sees it."""
        for sender in self.ctx.senders:
            sender.push()

    def sync_all(self) -> None:
        """Bring everything published to the device, whoever wrote it."""
        for partition in self.registry.every_partition():
            if partition.unsynced:
                with suppress(UnknownTopicError):  # deleted meanwhile
                    partition.sync()

    def maintain(self) -> None:
        """Retention and compaction now."""
        self.maintenance.run()

    def settings_changed(self, state: TopicState) -> None:
        """A topic was opened, created or altered here."""
        self.maintenance.needed_for(state)

    def delete_topic(self, name: str) -> None:
        """Remove a topic, and what is noted down of named producers that wrote to it."""
        incarnation = self.registry.get(name).incarnation
        self.registry.delete(name)
        gone = [key for key in self.meta.all_keys() if key[0] == "stored" and incarnation in key[2:3]]
        if gone:
            self.meta.change(lambda log: self.meta.forget(log, gone))

    def _preserve(self, partition: Partition, upto: int) -> None:
        if partition.slot.get(NUMBERED):
            from streamlite.numbering import preserve  # loaded where a producer has a name

            preserve(self.meta, partition, upto)

    def adopt(self, handle: Any) -> None:
        """Have `handle.close()` called before the log is closed."""
        self.opened[handle] = None

    def forget(self, handle: Any) -> None:
        """It is closed."""
        self.opened.pop(handle, None)

    def abandon(self) -> None:
        """Let go of it without a word to the disk: for tests in which a process dies. Its threads have ended then."""
        self._closing = self.ctx.closed = True
        _engines.discard(self)
        workers = [self.maintenance.worker, self.ticker.worker]
        workers += [handle._worker for handle in self.opened if hasattr(handle, "_worker")]
        if self.syncer is not None:
            workers.append(self.syncer.worker)
        for worker in workers:
            worker.stop()
        self.opened.clear()

    def _stop(self) -> None:
        self.maintenance.worker.stop()
        self.ticker.worker.stop()
        if self.syncer is not None:
            self.syncer.worker.stop()
            if not self.ctx.forked and self.ctx.sync != "never":
                self.syncer.sync_dirty()
        if self.ctx.read_only or self.ctx.forked:
            return

        def leave() -> None:
            try:
                if self._open_lock.acquire():
                    self._leave_clean()
            finally:
                self._open_lock.unlock()  # before any signal handler may raise: nobody could open the bus any more
                self._open_lock.release()

        self._lock.run(leave, self.ctx.lock_timeout)

    def _leave_clean(self) -> None:
        """As the last one: sync all, then say so. Where that fails, there is no mark, and the next opener recovers."""
        if self.syncer is None:
            return
        try:
            states = {}
            for partition in self.registry.every_partition():
                if partition.slot.get(FAILED):
                    return
                if partition.slot.get(FLAGS):
                    partition.settle_now()
                if partition.unsynced:
                    partition.sync()
                states[partition.slot.number] = partition.state()
            self.registry.tidy()
            self.registry.sync_names()
            write_clean(self.ctx.files, self.identity, states)
        except StreamliteError as error:
            logger.warning("%s was not closed cleanly: %s", self.ctx.files.root, error)

    # -- fork ---------------------------------------------------------------------------------------------------------

    def forked(self) -> None:
        """In the child: this bus is the parent's. Nothing is unlocked or written, every handle refuses."""
        self.ctx.forked = True
        for sender in self.ctx.senders:
            sender.topics_changed()


def _files(location: str, read_only: bool) -> Files:
    if location == MEMORY:
        if read_only:
            raise UnsupportedError("a bus in memory begins empty: read_only=True has nothing to read")
        return MemoryFiles()
    try:
        from streamlite.files.local import LocalFiles
    except ImportError as error:
        raise UnsupportedError(
            f"a directory needs POSIX file locks, which this system does not have ({error}); ':memory:' works"
        ) from error
    return LocalFiles(location, read_only=read_only)


def _close_all() -> None:
    """At interpreter exit: what was sent is written, what was opened is closed."""
    for engine in list(_engines):
        try:
            engine.close()
        except StreamliteError as error:
            logger.error("closing %s at exit: %s", engine.ctx.files.root, error)


def _after_fork() -> None:
    for engine in list(_engines):
        engine.forked()


atexit.register(_close_all)
after_fork_in_child(_after_fork)
