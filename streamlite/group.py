"""A consumer group in a directory: who its members are, who owns which partition, and committing under that.

`groups/<name>/` holds a lock, the state (`group_state`, replaced as a whole), a mapped control page whose first word is
the generation, and for each member a locked file and a mapped page with the time it last asked for messages. Rules:

* The group's lock guards the state, and every commit: check of ownership, append and publication of a commit are one
  step under it, and so is every rebalance. So a commit is refused if, and only if, that ownership has ended.
* A member is a file lock: while its process lives nobody gets it, and who gets it knows that the member is dead. Files
  of dead members are removed under the group's lock. A member that lives and does not ask for messages for
  `max_poll_interval_ms` is put out by whoever sees its page.
* Whoever holds the lock applies events to the state and stores what comes of it; members compare the generation word
  with the one they saw, a load from memory, whenever they are asked for messages, and look into the state when it
  moved.
* A new owner reads the committed offset under the lock. The state is no database: after a stop of the machine it may be
  gone, with all its members. What is committed is in the offsets log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, NamedTuple

import msgspec

from streamlite import group_state as states
from streamlite.config import ConsumerOptions
from streamlite.engine import Engine
from streamlite.errors import FencedError, GroupActiveError
from streamlite.files import FileLock, MissingFile, process_id, random_number
from streamlite.format import checksum
from streamlite.group_state import GroupState, may_commit, owned_by, to_release
from streamlite.locks import Guard, block_frame
from streamlite.message import TopicPartition
from streamlite.offsets import Position
from streamlite.partition import Partition

__all__ = ["GroupFiles", "GroupOffsets", "Membership", "News"]

logger = logging.getLogger("streamlite")

DIRECTORY: Final = "groups"
_GENERATION: Final = 0
_FREED: Final = 1
_ASKED: Final = 0
_PATIENCE: Final = 1
_WAITING: Final = 2
_PAGE: Final = 4096


class _Stored(msgspec.Struct, array_like=True):
    """The state file's content: the state, and which incarnation of each topic it speaks of."""

    state: bytes
    incarnations: dict[str, int]


class GroupFiles:
    """One group's directory as one open bus sees it; shared by all of the bus's members of that group."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._ctx = engine.ctx
        self.name = name
        self.directory = f"{DIRECTORY}/{name}"
        self.guard = self._ctx.guard(f"{self.directory}/lock", f"group {name!r}")
        if not self._ctx.read_only:
            files = self._ctx.files
            for directory in (DIRECTORY, self.directory, f"{self.directory}/members"):
                files.make_dir(directory)
            self.control = files.map(f"{self.directory}/control", 0, _PAGE).cast("Q")
        self._state = GroupState()
        self._incarnations: dict[str, int] = {}
        self._loaded = -1  # the generation word that _state is of

    @staticmethod
    def of(engine: Engine, name: str) -> GroupFiles:
        """The group's files; one object for each bus, since its lock excludes threads through it."""
        with engine.groups_mutex:
            found = engine.groups.get(name)
            if found is None:
                found = engine.groups[name] = GroupFiles(engine, name)
            assert isinstance(found, GroupFiles)
            return found

    @staticmethod
    def with_members(engine: Engine) -> set[str]:
        """The groups that have members."""
        try:
            names = engine.ctx.files.list(DIRECTORY)
        except MissingFile:
            return set()
        found = set()
        for name in names:
            with GroupFiles.of(engine, name).locked() as state:
                if state.members:
                    found.add(name)
        return found

    # -- the state ----------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self, frame: FrameType | None = None) -> Iterator[GroupState]:
        """Under the group's lock, the state with the dead taken out; of a bus that only reads, as it was left."""
        if self._ctx.read_only:
            yield self._read()[0]
            return
        with self.guard.hold(self._ctx.lock_timeout, frame or block_frame()):
            try:
                yield self.settled()
            finally:
                self.control[_FREED] = self.now_ms()

    def load(self) -> GroupState:
        """The state, under the lock; from memory while the generation did not move."""
        generation = self.control[_GENERATION]
        if generation != self._loaded:
            self._state, self._incarnations = self._read()
            self._loaded = generation
        return self._state

    def _read(self) -> tuple[GroupState, dict[str, int]]:
        path = f"{self.directory}/state"
        try:
            data = self._ctx.files.read_file(path)
        except MissingFile:
            return GroupState(), {}
        try:
            if checksum(data[8:]) != int.from_bytes(data[:8], "little"):
                raise ValueError("its checksum does not hold")
            stored = msgspec.msgpack.decode(data[8:], type=_Stored)
            return states.decode(stored.state), stored.incarnations
        except (msgspec.DecodeError, ValueError) as error:
            logger.warning("the state of group %r makes no sense (%s): its members join anew", self.name, error)
            return GroupState(), {}

    def apply(self, event: states.Event) -> GroupState:
        """Apply an event and store what comes of it, under the lock."""
        before = self.load()
        after = states.apply(before, event)
        if after is not before:
            self._store(after)
        return after

    def _store(self, state: GroupState) -> None:
        body = msgspec.msgpack.encode(_Stored(states.encode(state), self._incarnations))
        data = checksum(body).to_bytes(8, "little") + body
        self._ctx.files.replace_file(f"{self.directory}/state", data, sync=False)
        self._state = state
        # Generations of the state begin anew when it was lost; the word only rises, so that everybody looks.
        self._loaded = self.control[_GENERATION] + 1
        self.control[_GENERATION] = self._loaded
        self._ctx.bell.ring()

    def settled(self) -> GroupState:
        """Under the lock: take out who died, hangs, or was away too long."""
        state = self.load()
        now_ms = self.now_ms()
        for member, found in list(state.members.items()):
            if not found.dead and self.is_dead(member):
                state = self.apply(states.Died(member=member, now_ms=now_ms))
                self.remove_member(member)
            elif not found.dead and self.hangs(member):
                logger.warning(
                    "group %r: put out %s (process %d), which asks for no messages",
                    self.name,
                    found.name or member,
                    found.pid,
                )
                state = self.apply(states.Expired(member=member))
        deadline = states.next_deadline_ms(state)
        if deadline is not None and deadline <= now_ms:
            state = self.apply(states.TimePassed(now_ms=now_ms))
        return state

    def needs_settling(self, me: str) -> bool:
        """Whether `settled` would find something, without the lock: to be asked often."""
        state = self._state
        deadline = states.next_deadline_ms(state)
        if deadline is not None and deadline <= self.now_ms():
            return True
        others = [one for one, found in state.members.items() if one != me and not found.dead]
        return any(self.is_dead(one) or self.hangs(one) for one in others)

    def is_dead(self, member: str) -> bool:
        """Whether nobody holds the member's lock."""
        try:
            lock = self._ctx.files.lock(self._member(member), create=False)
        except MissingFile:
            return True
        if not lock.acquire():
            return False
        lock.release()
        return True

    def hangs(self, member: str) -> bool:
        """Whether the member did not ask for messages for its `max_poll_interval_ms`."""
        try:
            self._ctx.files.open(f"{self._member(member)}.asked")
        except MissingFile:
            return False  # it has just left
        page = self.page(member)
        patience = page[_PATIENCE]
        since = max(page[_ASKED], self.control[_FREED]) if page[_WAITING] else page[_ASKED]
        return bool(patience) and self.now_ms() - since > patience

    def now_ms(self) -> int:
        """Now, on the monotonic clock that all processes of a machine share."""
        return int(self._ctx.clock.monotonic() * 1000) + 1

    def _member(self, member: str) -> str:
        return f"{self.directory}/members/{member}"

    def page(self, member: str) -> memoryview:
        """The member's mapped words."""
        return self._ctx.files.map(f"{self._member(member)}.asked", 0, _PAGE).cast("Q")

    def lock_member(self, member: str) -> FileLock:
        """The member's lock, taken: for as long as it is held, the member lives."""
        lock = self._ctx.files.lock(self._member(member))
        taken = lock.acquire()
        assert taken, member  # its name is random: nobody else knows it yet
        return lock

    def remove_member(self, member: str) -> None:
        """Remove the files of a member that is gone, under the group's lock."""
        self._ctx.files.remove(f"{self._member(member)}.asked")
        self._ctx.files.remove(self._member(member))

    def told(self, partitions: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """Under the lock: the counts of topics (count, incarnation); what is of a topic that was created anew goes."""
        state = self.load()
        anew = {topic for topic, (_, found) in partitions.items() if self._incarnations.get(topic, found) != found}
        if anew:
            kept = {topic: count for topic, count in state.partitions.items() if topic not in anew}
            self.apply(states.PartitionsChanged(partitions=kept))
        self._incarnations |= {topic: incarnation for topic, (_, incarnation) in partitions.items()}
        return {topic: count for topic, (count, _) in partitions.items()}

    # -- from outside -------------------------------------------------------------------------------------------------

    def require_idle(self, state: GroupState, what: str) -> None:
        """`GroupActiveError` while the group has live members."""
        live = [found.pid for found in state.members.values() if not found.dead]
        if live:
            raise GroupActiveError(
                f"cannot {what} group {self.name!r} while it has live members (in processes "
                f"{', '.join(map(str, live[:5]))}): close them first"
            )

    def forget(self, state: GroupState) -> None:
        """Forget the state, under the lock; the directory stays, for somebody may be about to lock it."""
        for member in state.members:
            self.remove_member(member)
        self._incarnations = {}
        self._store(GroupState())


class News(NamedTuple):
    """What changed for a member: partitions it got (and since which generation it owns them), is to release, lost."""

    assigned: dict[TopicPartition, int]
    revoked: list[TopicPartition]
    lost: list[TopicPartition]


class GroupOffsets(NamedTuple):
    """What a transaction commits for one member of a group: positions, and since when it owns the partitions."""

    membership: Membership
    positions: Mapping[TopicPartition, Position]
    ownerships: Mapping[TopicPartition, int]


class Membership:
    """One consumer's place in its group. `alone`: it reads what it likes and only commits in the group's name."""

    def __init__(self, engine: Engine, group: str, options: ConsumerOptions, *, alone: bool = False) -> None:
        self._engine = engine
        self._files = GroupFiles.of(engine, group)
        self.group = group
        self._options = options
        self._alone = alone
        self.id = f"{random_number():016x}{random_number():08x}"[:24]
        self._lock: FileLock | None = None
        self._page: memoryview | None = None
        self._names: Sequence[str] = ()
        self._have: dict[TopicPartition, int] = {}
        self._seen = -1

    def join(self, names: Sequence[str]) -> None:
        """Become a member that reads these topics, or read these from now on."""
        self._names = names
        files = self._files
        if self._lock is None:
            self._lock = files.lock_member(self.id)
            self._page = files.page(self.id)
            self._page[_PATIENCE] = self._options.max_poll_interval_ms
            self.stamp()
        with self._locked():
            self._join()

    def _join(self) -> None:
        """Under the lock."""
        files, options = self._files, self._options
        topics = {name: self._engine.registry.get(name) for name in self._names}
        counts = files.told({name: (len(found.partitions), found.incarnation) for name, found in topics.items()})
        if self.id in files.load().members:
            files.apply(states.Subscribe(member=self.id, topics=self._names, partitions=counts))
            return
        files.apply(
            states.Join(
                member=self.id,
                topics=self._names,
                pid=process_id(),
                assignor=options.assignor,
                name=options.member,
                member_timeout_ms=options.member_timeout_ms,
                partitions=counts,
            )
        )

    def stamp(self) -> None:
        """Say that messages were asked for just now."""
        if self._page is not None:
            self._page[_ASKED] = self._files.now_ms()

    def look_for_dead(self) -> None:
        """See whether another member is gone; if so, share out what it had."""
        if not self._alone and self._files.needs_settling(self.id):
            with self._locked():
                pass

    def changed(self) -> bool:
        """Whether the group moved since `sync`: a load from memory."""
        return not self._alone and self._files.control[_GENERATION] != self._seen

    def sync(self) -> News:
        """What the group's state says of this member now. Whoever was put out joins again, with nothing."""
        if self._alone:
            return News({}, [], [])
        with self._locked():
            state = self._files.load()
            # A member that was put out comes here because it asks for messages, so it may come back at once.
            out = self.id not in state.members
            if out:
                self._require_not_replaced(state)
                self._join()
                state = self._files.load()
            owned = owned_by(state, self.id)
            self._seen = self._files.control[_GENERATION]
        lost = [tp for tp, generation in self._have.items() if owned.get(tp) != generation]
        for tp in lost:
            del self._have[tp]
        release = to_release(state, self.id)
        revoked = [tp for tp in release if tp in self._have]
        never_had = release - self._have.keys()
        if never_had:
            self.released(never_had)
        assigned = {tp: generation for tp, generation in owned.items() if tp not in self._have and tp not in release}
        self._have |= assigned
        return News(assigned, revoked, lost)

    def _require_not_replaced(self, state: GroupState) -> None:
        name = self._options.member
        if name is not None and any(found.name == name and not found.dead for found in state.members.values()):
            raise FencedError(
                f"member {name!r} of group {self.group!r} was replaced by another consumer of that name: close this one"
            )

    def released(self, partitions: object) -> None:
        """These are worked on no longer, and what is to be committed of them is."""
        given = list(partitions)  # type: ignore[call-overload]
        for tp in given:
            self._have.pop(tp, None)
        with self._locked():
            self._files.apply(states.Released(member=self.id, partitions=given))

    def committed(self, partitions: Sequence[Partition]) -> list[Position | None]:
        """What the group committed of these; nothing newer is on its way."""
        offsets = self._engine.offsets
        with self._locked():
            return [offsets.get(self.group, one.tp, one.topic.incarnation, surely=True) for one in partitions]

    def begin(self, partitions: Sequence[Partition], start: Callable[[Partition], int]) -> None:
        """Commit where the group begins in topics, all of whose partitions these are, unless it knows them already."""
        offsets, ctx = self._engine.offsets, self._engine.ctx
        with self._locked():
            known = offsets.of_group(self.group, surely=True)
            topics = {(topic, incarnation) for topic, incarnation, _ in known}
            new = [one for one in partitions if (one.topic.name, one.topic.incarnation) not in topics]
            if new:
                positions = {one.tp: Position(one.topic.incarnation, start(one), ctx.epoch) for one in new}
                offsets.commit(self.group, positions)

    def commit(self, positions: Mapping[TopicPartition, Position], ownerships: Mapping[TopicPartition, int]) -> None:
        """Commit all of it, or, where one ownership has ended, nothing: `FencedError`."""
        with self._waiting(), self._files.guard.hold(self._engine.ctx.lock_timeout):
            self.require_owned(positions, ownerships)
            self._engine.offsets.commit(self.group, positions)
            self.is_freeing()

    @property
    def guard(self) -> Guard:
        """The group's lock, for a transaction that commits offsets with messages."""
        return self._files.guard

    def require_owned(
        self, positions: Mapping[TopicPartition, Position], ownerships: Mapping[TopicPartition, int]
    ) -> None:
        """Under the group's lock: `FencedError` where one of these ownerships has ended."""
        refused = self._refused(positions.keys(), ownerships)
        if refused:
            shown = ", ".join(f"{tp.topic!r} partition {tp.partition}" for tp in sorted(refused)[:5])
            raise FencedError(
                f"group {self.group!r}: nothing was committed, since {shown} is not this member's (any more): "
                "poll again to go on with what is"
            )

    def begin_waiting(self) -> None:
        """While it waits for the group's lock a member does not hang: it counts from when the lock was last free."""
        if self._page is not None:
            self._page[_WAITING] = 1

    def end_waiting(self) -> None:
        """It has what it waited for, or gave up."""
        if self._page is not None:
            self._page[_WAITING] = 0
            self.stamp()

    def is_freeing(self) -> None:
        """Under the group's lock, which is about to be free."""
        self._files.control[_FREED] = self._files.now_ms()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self.begin_waiting()
        try:
            yield
        finally:
            self.end_waiting()

    @contextmanager
    def _locked(self) -> Iterator[GroupState]:
        with self._waiting(), self._files.locked(block_frame()) as state:
            yield state

    def _refused(self, partitions: object, ownerships: Mapping[TopicPartition, int]) -> list[TopicPartition]:
        state = self._files.load()
        asked: list[TopicPartition] = list(partitions)  # type: ignore[call-overload]
        if self._alone:
            return [tp for tp in asked if tp in state.owned]
        return [tp for tp in asked if not may_commit(state, self.id, tp, ownerships.get(tp, -1))]

    def retry(self, partitions: Iterable[TopicPartition]) -> None:
        """What `sync` said of these could not be done: let it be said again."""
        for tp in partitions:
            self._have.pop(tp, None)
        self._seen = -1

    def lost_of(self, ownerships: Mapping[TopicPartition, int]) -> list[TopicPartition]:
        """Those of these ownerships that have ended."""
        with self._locked():
            lost = self._refused(ownerships.keys(), ownerships)
        for tp in lost:
            self._have.pop(tp, None)
        return lost

    def leave(self) -> None:
        """Leave the group at once; others take over what this member had."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            with self._locked():
                self._files.apply(states.Leave(member=self.id))
                self._files.remove_member(self.id)
        finally:
            lock.release()
