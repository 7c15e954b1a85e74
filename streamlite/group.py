"""A consumer group in a directory: who its members are, who owns which partition, and committing under that.

`groups/<name>/` holds a lock, the state (`group_state`, in two files that are overwritten in turn), a mapped control
page whose first word is the generation, and for each member a locked file and a mapped page with the time it last asked
for messages. Rules:

* The group's lock guards the state, and every commit: check of ownership, append and publication of a commit are one
  step under it, and so is every rebalance. So a commit is refused if, and only if, that ownership has ended.
* A member is a file lock: while its process lives nobody gets it, and who gets it knows that the member is dead. Files
  of dead members are removed under the group's lock. A member that lives and does not ask for messages for
  `max_poll_interval_ms` is put out by whoever sees its page.
* Whoever holds the lock applies events to the state and stores what comes of it; members compare the generation word
  with the one they saw, a load from memory, whenever they are asked for messages, and look into the state when it
  moved.
* A state is numbered by the generation word that it is published under, and the number says in which of the two files
  it is: the other one keeps the state before it until the word is stored. So one that a killed process left
  half-written does not count, and one older than the word says is not taken for the newest. To replace a file by a
  rename would do as well, but where the name was taken ext4 writes the new file to the device first: milliseconds, at
  times two hundred.
* A new owner reads the committed offset under the lock. The state is no database: after a stop of the machine it may be
  gone, with all its members. What is committed is in the offsets log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec

from streamlite import group_state as states
from streamlite.config import ConsumerOptions
from streamlite.engine import Engine
from streamlite.errors import FencedError, GroupActiveError
from streamlite.files import FileLock, MissingFile, process_id, random_number
from streamlite.format import checksum
from streamlite.group_state import GroupState, may_commit, owned_by, to_release
from streamlite.locks import Guard
from streamlite.message import TopicPartition
from streamlite.offsets import Position
from streamlite.partition import Partition

__all__ = ["GroupFiles", "GroupOffsets", "Membership", "News"]

logger = logging.getLogger("streamlite")

DIRECTORY: Final = "groups"
_GENERATION: Final = 0
_GENERATION_MAX: Final = 1 << 62
_FREED: Final = 1
_BOOT: Final = 2
"""Of the machine, whose clock the times in the state and in the words are of."""
_ASKED: Final = 0
_PATIENCE: Final = 1
_WAITING: Final = 2
_PAGE: Final = 4096
_LOOKS_MOST: Final = 8
"""Members that another one looks at each time: of that many looks, hardly ever all miss the one that died."""
_DOUBT_MS: Final = 1000
"""How often this bus's own members are asked by their locks: fifty of them look at each other ten times a second."""

_T = TypeVar("_T")


class _Stored(msgspec.Struct, array_like=True):
    """A state file's content: the state, which incarnation of each topic it speaks of, and the state's number."""

    state: bytes
    incarnations: dict[str, int]
    number: states.Generation


def _packed(stored: _Stored) -> bytes:
    """A state as a file begins with it; what a longer one left behind it is not looked at."""
    body = msgspec.msgpack.encode(stored)
    content = len(body).to_bytes(8, "little") + body
    return checksum(content).to_bytes(8, "little") + content


def _unpacked(data: bytes) -> _Stored:
    """What a state file begins with; `ValueError` where that is not whole."""
    end = 16 + int.from_bytes(data[8:16], "little")
    if end > len(data) or checksum(data[8:end]) != int.from_bytes(data[:8], "little"):
        raise ValueError("its checksum does not hold")
    try:
        return msgspec.msgpack.decode(data[16:end], type=_Stored)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


class GroupFiles:
    """One group's directory as one open bus sees it; shared by all of the bus's members of that group."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._ctx = engine.ctx
        self.name = name
        self.directory = f"{DIRECTORY}/{name}"
        self._paths = f"{self.directory}/state.0", f"{self.directory}/state.1"
        self.guard = self._ctx.guard(f"{self.directory}/lock", f"group {name!r}")
        if not self._ctx.read_only:
            files = self._ctx.files
            for directory in (DIRECTORY, self.directory, f"{self.directory}/members"):
                files.make_dir(directory)
            self.control = files.map(f"{self.directory}/control", 0, _PAGE).cast("Q")
            self._boot = files.boot_id()
        self._state = GroupState()
        self._incarnations: dict[str, int] = {}
        self._loaded = -1  # the generation word that _state is of
        self._own: WeakValueDictionary[str, FileLock] = WeakValueDictionary()  # of this bus's members, while they live
        self._pages: dict[str, memoryview] = {}  # by member: mapping one takes longer than all else about it
        self._turn = 0  # which of many members are looked at next
        self._doubt_at = 0  # when this bus's own members are not taken for alive without a look

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
            if GroupFiles.of(engine, name).locked(lambda state: bool(state.members)):
                found.add(name)
        return found

    # -- the state ----------------------------------------------------------------------------------------------------

    def locked(self, call: Callable[[GroupState], _T]) -> _T:
        """Call it under the group's lock with the state, the dead taken out; of a bus that only reads, as it is."""
        if self._ctx.read_only:
            return call(self._read()[0])

        def settled() -> _T:
            try:
                return call(self.settled())
            finally:
                self.control[_FREED] = self.now_ms()

        return self.guard.run(settled, self._ctx.lock_timeout)

    def load(self) -> GroupState:
        """The state, under the lock; from memory while the generation did not move."""
        generation = self.control[_GENERATION]
        if generation != self._loaded:
            if generation > _GENERATION_MAX:
                generation = 0  # no word that anybody stored: what is in the files counts
            self._state, self._incarnations, number = self._read(generation)
            if number > generation or self.control[_GENERATION] > _GENERATION_MAX:
                # Who wrote it died before he could say so, or the machine stopped: it counts from now on.
                self.control[_GENERATION] = generation = number
            self._loaded = generation
            for member in list(self._pages):
                if member not in self._state.members and member not in self._own:
                    self._pages.pop(member, None)
        return self._state

    def _read(self, least: int = 0) -> tuple[GroupState, dict[str, int], int]:
        """The newest state of the two files and its number; none of a number below `least`."""
        found: _Stored | None = None
        wrong: object = None
        for path in self._paths:
            try:
                one = _unpacked(self._ctx.files.read_file(path))
            except MissingFile:
                continue
            except ValueError as error:
                # The first state of all, half-written, was never in force.
                wrong = error if least or path != self._paths[1] else wrong
                continue
            if found is None or one.number > found.number:
                found = one
        if found is not None and found.number < least:
            wrong = f"its number is {found.number} and should be {least}"
        elif found is not None:
            try:
                return states.decode(found.state), found.incarnations, found.number
            except ValueError as error:
                wrong = error
        if wrong is not None:
            logger.warning("the state of group %r makes no sense (%s): its members join anew", self.name, wrong)
        return GroupState(), {}, 0

    def apply(self, event: states.Event) -> GroupState:
        """Apply an event and store what comes of it, under the lock."""
        before = self.load()
        after = states.apply(before, event)
        if after is not before:
            self._store(after)
        return after

    def _store(self, state: GroupState) -> None:
        # Generations of the state begin anew when it was lost; the word only rises, so that everybody looks.
        number = self.control[_GENERATION] + 1
        data = _packed(_Stored(states.encode(state), self._incarnations, number))
        self._loaded = -1  # whoever is cut off here looks again, and takes the old state or the new one
        self._ctx.files.open(self._paths[number % 2], create=True).write([data], 0)
        self._state = state
        self._loaded = self.control[_GENERATION] = number
        self._ctx.bell.ring()

    def settled(self) -> GroupState:
        """Under the lock: take out who died, hangs, or was away too long."""
        state = self.load()
        now_ms = self.now_ms()
        if self.control[_BOOT] != self._boot:
            # A monotonic clock begins anew with the machine. By the old one's time who died before would be gone too
            # early, or keep its partitions for as long as the machine had been up.
            state = self.apply(states.ClockBegan(now_ms=now_ms))
            self.control[_FREED] = 0
            self.control[_BOOT] = self._boot
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
        self._doubt(others)
        if len(others) > _LOOKS_MOST:
            # Each of a hundred members looks ten times a second: at some of the others, and all at all of them.
            self._turn = at = (self._turn + _LOOKS_MOST) % len(others)
            others = (others + others)[at : at + _LOOKS_MOST]
        return any(self.is_dead(one) or self.hangs(one) for one in others)

    def is_dead(self, member: str) -> bool:
        """Whether nobody holds the member's lock."""
        return member not in self._own and self._is_free(member)

    def _doubt(self, members: Sequence[str]) -> None:
        """Now and then, ask the locks of this bus's members too: one may be cut off when it has just given its up."""
        now = self.now_ms()
        if now >= self._doubt_at:
            self._doubt_at = now + _DOUBT_MS
            for member in members:
                if member in self._own and self._is_free(member):
                    self._own.pop(member, None)

    def _is_free(self, member: str) -> bool:
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
        page = self._pages.get(member)
        if page is None:
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
        page = self._pages[member] = self._ctx.files.map(f"{self._member(member)}.asked", 0, _PAGE).cast("Q")
        return page

    def member_lock(self, member: str) -> FileLock:
        """The member's lock: for as long as it is held, the member lives."""
        lock = self._own[member] = self._ctx.files.lock(self._member(member))
        return lock

    def forget_member(self, member: str) -> None:
        """The member is about to live no more, whether or not its files could be removed."""
        self._own.pop(member, None)

    def remove_member(self, member: str) -> None:
        """Remove the files of a member that is gone, under the group's lock."""
        self._own.pop(member, None)
        self._pages.pop(member, None)
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

    generation: int
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
        self.unlock: Callable[[], object] = bool
        """Makes it dead to the others, in one call of C: see `FileLock.unlock`."""
        self._page: memoryview | None = None
        self._names: Sequence[str] = ()
        self._seen = -1

    def join(self, names: Sequence[str]) -> None:
        """Become a member that reads these topics, or read these from now on."""
        self._names = names
        files = self._files
        if self._lock is None:
            self._lock = files.member_lock(self.id)
            self.unlock = self._lock.unlock
        taken = self._lock.acquire()
        assert taken, self.id  # its name is random: nobody else knows it yet
        self._page = files.page(self.id)
        self._page[_PATIENCE] = self._options.max_poll_interval_ms
        self.stamp()
        self._locked(lambda state: self._join())

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
            self._locked(lambda state: None)

    def changed(self) -> bool:
        """Whether the group moved since `sync`: a load from memory."""
        return not self._alone and self._files.control[_GENERATION] != self._seen

    def sync(self, have: Mapping[TopicPartition, int]) -> News:
        """What the group's state says of this member, against what it has, by the generation since when.

        Whoever was put out joins again, with nothing. Nothing is remembered here: until `caught_up` is told that all of
        it was done, `changed` holds and it is said again, to a member that has what it has by then.
        """
        if self._alone:
            return News(self._seen, {}, [], [])
        state, generation = self._locked(self._look)
        owned, release = owned_by(state, self.id), to_release(state, self.id)
        lost = [tp for tp, since in have.items() if owned.get(tp) != since]
        kept = have.keys() - lost
        revoked = [tp for tp in release if tp in kept]
        never_had = release - kept
        if never_had:
            self.released(never_had)
        assigned = {tp: since for tp, since in owned.items() if tp not in kept and tp not in release}
        return News(generation, assigned, revoked, lost)

    def _look(self, state: GroupState) -> tuple[GroupState, int]:
        """Under the lock: the state with this member in it, and the generation word."""
        # A member that was put out comes here because it asks for messages, so it may come back at once.
        if self.id not in state.members:
            self._require_not_replaced(state)
            self._join()
        return self._files.load(), self._files.control[_GENERATION]

    def caught_up(self, generation: int) -> None:
        """All that `sync` said at this generation is done."""
        self._seen = generation

    def _require_not_replaced(self, state: GroupState) -> None:
        name = self._options.member
        if name is not None and any(found.name == name and not found.dead for found in state.members.values()):
            raise FencedError(
                f"member {name!r} of group {self.group!r} was replaced by another consumer of that name: close this one"
            )

    def released(self, partitions: Iterable[TopicPartition]) -> None:
        """These are worked on no longer, and what is to be committed of them is."""
        event = states.Released(member=self.id, partitions=list(partitions))
        self._locked(lambda state: self._files.apply(event))

    def committed(self, partitions: Sequence[Partition]) -> list[Position | None]:
        """What the group committed of these; nothing newer is on its way."""
        get = self._engine.offsets.get
        return self._locked(
            lambda state: [get(self.group, one.tp, one.topic.incarnation, surely=True) for one in partitions],
        )

    def begin(self, partitions: Sequence[Partition], start: Callable[[Partition], int]) -> None:
        """Commit where the group begins in topics, all of whose partitions these are, unless it knows them already."""
        offsets, ctx = self._engine.offsets, self._engine.ctx

        def begin(state: GroupState) -> None:
            known = offsets.of_group(self.group, surely=True)
            topics = {(topic, incarnation) for topic, incarnation, _ in known}
            new = [one for one in partitions if (one.topic.name, one.topic.incarnation) not in topics]
            if new:
                positions = {one.tp: Position(one.topic.incarnation, start(one), ctx.epoch) for one in new}
                offsets.commit(self.group, positions)

        self._locked(begin)

    def commit(self, positions: Mapping[TopicPartition, Position], ownerships: Mapping[TopicPartition, int]) -> None:
        """Commit all of it, or, where one ownership has ended, nothing: `FencedError`."""

        def commit() -> None:
            self.require_owned(positions, ownerships)
            self._engine.offsets.commit(self.group, positions)
            self.is_freeing()

        self._waiting(lambda: self._files.guard.run(commit, self._engine.ctx.lock_timeout))

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

    def _waiting(self, call: Callable[[], _T]) -> _T:
        self.begin_waiting()
        try:
            return call()
        finally:
            self.end_waiting()

    def _locked(self, call: Callable[[GroupState], _T]) -> _T:
        """Call it under the group's lock, with its state."""
        return self._waiting(lambda: self._files.locked(call))

    def _refused(
        self, partitions: Iterable[TopicPartition], ownerships: Mapping[TopicPartition, int]
    ) -> list[TopicPartition]:
        state = self._files.load()
        if self._alone:
            return [tp for tp in partitions if tp in state.owned]
        return [tp for tp in partitions if not may_commit(state, self.id, tp, ownerships.get(tp, -1))]

    def lost_of(self, ownerships: Mapping[TopicPartition, int]) -> list[TopicPartition]:
        """Those of these ownerships that have ended."""
        return self._locked(lambda state: self._refused(ownerships.keys(), ownerships))

    def leave(self) -> None:
        """Leave the group at once; others take over what this member had."""
        lock = self._lock
        if lock is None:
            return
        try:
            self._locked(lambda state: self._leave())
        finally:
            # Without its lock a member is dead to the others, should the rest have been cut off.
            self._files.forget_member(self.id)
            self.unlock()
            self._lock = None

    def _leave(self) -> None:
        """Under the lock."""
        self._files.apply(states.Leave(member=self.id))
        self._files.remove_member(self.id)
