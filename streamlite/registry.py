"""The topics of a bus: which there are, what they are set to, and the partitions behind them.

A topic is a directory `topics/<name>` with a `topic.json`, which says everything that does not change with every
message: incarnation, settings, and the number of the counter slot of each partition. Rules:

* The file is replaced as a whole, under the bus's lock. The TOPICS word of the counters is odd while that is under way
  and rises: everybody else looks at that word, reads the file again when it moved, and each time while it is odd
  (whoever was killed in a change leaves it so until the next one).
* A topic comes and goes by a rename of its directory, so that none is ever half there. What begins with `__` in
  `topics/` is half-made or half-removed, or internal, and never a user's topic.
* An incarnation is random and never comes again. Handles, descriptors, slots and commits carry it, so that nothing of a
  deleted topic is taken for a part of one that has its name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import msgspec

from streamlite.config import INTERNAL_PREFIX, TopicSettings, check_settings
from streamlite.context import Context
from streamlite.counters import DELETED, FLAGS, INCARNATION, SLOT_MAX, TOPICS, UNNAMED, SlotState
from streamlite.errors import CorruptionError, StreamliteError, TopicExistsError, UnknownTopicError
from streamlite.files import MissingFile, random_number
from streamlite.format import checksum
from streamlite.locks import Guard
from streamlite.partition import Partition, TopicInfo

__all__ = ["META", "OFFSETS", "TRANSACTIONS", "Registry", "TopicState"]

DIRECTORY: Final = "topics"
OFFSETS: Final = "__offsets"
META: Final = "__meta"
TRANSACTIONS: Final = "__transactions"
_NEW: Final = "__new-"
_DELETED: Final = "__deleted-"
_CHANGING: Final = -1
"""Seen at no count of changes: to be looked at again."""


class TopicFile(msgspec.Struct, frozen=True, kw_only=True):
    """`topic.json`. `asked`: the partitions it was created with, `None` where nobody said. `check`: of all the rest."""

    format: int = 1
    incarnation: Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)]
    asked: int | None
    settings: TopicSettings
    slots: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=SLOT_MAX)]], msgspec.Meta(min_length=1)]
    check: str = ""

    def encode(self) -> bytes:
        """The file's bytes, its checksum in them."""
        return msgspec.json.encode(msgspec.structs.replace(self, check=self.checksum()))

    def checksum(self) -> str:
        """xxh3_64 over the file as it is without one."""
        return f"{checksum(msgspec.json.encode(msgspec.structs.replace(self, check=''))):016x}"


_decode = msgspec.json.Decoder(TopicFile).decode


class TopicState(TopicInfo):
    """A topic as this bus knows it; `partitions` grows, `gone` is final."""

    __slots__ = ("asked", "gone", "partitions", "seen")

    def __init__(self, ctx: Context, name: str, file: TopicFile, seen: int) -> None:
        super().__init__(name, file.incarnation, file.settings)
        self.gone = False
        self.partitions: list[Partition] = []
        self.update(ctx, file, seen)

    def update(self, ctx: Context, file: TopicFile, seen: int) -> None:
        """Take up what the file says now."""
        self.settings = file.settings
        self.asked = file.asked
        for number in range(len(self.partitions), len(file.slots)):
            self.partitions.append(Partition(ctx, self, number, ctx.counters.slot(file.slots[number])))
        self.seen = seen

    def file(self, **changes: Any) -> TopicFile:
        """What the file says, with changes."""
        present = TopicFile(
            incarnation=self.incarnation,
            asked=self.asked,
            settings=self.settings,
            slots=[partition.slot.number for partition in self.partitions],
        )
        return msgspec.structs.replace(present, **changes)


class Registry:
    """The topics of one open bus. `lock` is the bus's: it guards the directory of topics and the slots."""

    def __init__(self, ctx: Context, lock: Guard) -> None:
        self._ctx = ctx
        self._lock = lock
        self._known: dict[str, TopicState] = {}
        self._mutex = threading.RLock()  # guards _known and the states' updates

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def changes(self) -> int:
        """How often any topic came, went or changed; a word of memory to look at."""
        if self._ctx.read_only:
            self._ctx.follow(None)
        return int(self._ctx.counters.header[TOPICS])

    def names(self, *, internal: bool = False) -> list[str]:
        """The topics there are, sorted."""
        try:
            found = self._ctx.files.list(DIRECTORY)
        except MissingFile:
            return []
        if internal:
            return sorted(found)
        return sorted(name for name in found if not name.startswith(INTERNAL_PREFIX) and self._is_there(name))

    def all_names(self) -> list[str]:
        """The internal ones too, but for what is half-made or half-removed."""
        return [name for name in self.names(internal=True) if not name.startswith((_NEW, _DELETED))]

    def _is_there(self, name: str) -> bool:
        try:
            return self.find(name) is not None
        except CorruptionError:
            return True  # whoever opens it is told

    def find(self, name: str) -> TopicState | None:
        """The topic of that name as it is now, or `None`."""
        seen = self.changes
        state = self._known.get(name)
        if state is not None and state.seen == seen and not state.partitions[0].slot.get(FLAGS) & DELETED:
            return state
        with self._mutex:
            # While a change is under way, or its maker was killed in it, nothing is remembered.
            return self._read(name, seen if not seen % 2 else _CHANGING)

    def get(self, name: str) -> TopicState:
        """The topic of that name as it is now; `UnknownTopicError` when there is none."""
        state = self.find(name)
        if state is None:
            raise UnknownTopicError(f"there is no topic {name!r} on {self._ctx.files.root}; {self._hint()}")
        return state

    def _hint(self) -> str:
        names = self.names()
        if not names:
            return "it has none: create it with bus.topic(name)"
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"it has {', '.join(map(repr, names[:5]))}{more}; create it with bus.topic(name)"

    def current(self, state: TopicState) -> TopicState:
        """`state`, brought up to date; `UnknownTopicError` when its topic was deleted, be there a new one or not."""
        if state.seen != self.changes or state.partitions[0].slot.get(FLAGS) & DELETED:
            self.find(state.name)
        if state.gone:
            raise UnknownTopicError(
                f"topic {state.name!r} was deleted (it may have been created anew): ask the bus for it again"
            )
        return state

    def _read(self, name: str, seen: int) -> TopicState | None:
        state = self._known.get(name)
        try:
            file = self._parse(name)
        except MissingFile:
            file = None
        if file is not None and self._is_flagged(file):
            file = None
        if state is not None and (file is None or file.incarnation != state.incarnation):
            self._forget(state)
            state = None
        if file is None:
            return None
        if state is None:
            state = self._known[name] = TopicState(self._ctx, name, file, seen)
        else:
            state.update(self._ctx, file, seen)
        return state

    def _parse(self, name: str) -> TopicFile:
        path = f"{DIRECTORY}/{name}/topic.json"
        data = self._ctx.files.read_file(path)
        try:
            file = _decode(data)
            check_settings(msgspec.structs.asdict(file.settings))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise CorruptionError(
                f"{path} makes no sense: {error}; restore it from a copy", file=path, position=0
            ) from error
        if file.check != file.checksum():
            raise CorruptionError(f"{path} is damaged: restore it from a copy", file=path, position=0)
        return file

    def _forget(self, state: TopicState) -> None:
        state.gone = True
        self._known.pop(state.name, None)
        self._ctx.handles.forget_all(state.incarnation)

    def every_partition(self) -> Iterator[Partition]:
        """All partitions of all topics, the internal ones too."""
        for name in self.all_names():
            state = self.find(name)
            if state is not None:
                yield from list(state.partitions)

    # -- changing -----------------------------------------------------------------------------------------------------

    def _change(self, change: Callable[[], None]) -> None:
        """Call it under the bus's lock; afterwards everybody looks again."""
        header, never = self._ctx.counters.header, self._ctx.sync == "never"

        def changed() -> None:
            header[TOPICS] = (header[TOPICS] | 1) + 2  # odd, and another than before
            try:
                change()
            finally:
                if never:
                    header[UNNAMED] = 1
                header[TOPICS] += 1

        self._lock.run(changed, self._ctx.lock_timeout)
        for sender in self._ctx.senders:
            sender.topics_changed()
        self._ctx.bell.ring()

    def create(self, name: str, asked: int | None, settings: TopicSettings) -> TopicState:
        """A new topic; `TopicExistsError` when the name is taken."""

        def create() -> None:
            self._finish_deletion(name)
            if self.find(name) is not None:
                raise TopicExistsError(f"topic {name!r} is there already: open it with bus.topic({name!r})")
            incarnation = random_number() | 1 << 62
            slots = self._take_slots(asked or 1, incarnation)
            self._make(name, TopicFile(incarnation=incarnation, asked=asked, settings=settings, slots=slots))

        self._change(create)
        return self.get(name)

    def find_or_create(self, name: str, settings: TopicSettings) -> TopicState:
        """An internal topic, created at its first use."""
        state = self.find(name)
        while state is None:
            try:
                state = self.create(name, 1, settings)
            except TopicExistsError:  # another process was quicker
                state = self.find(name)
        return state

    def _take_slots(self, count: int, incarnation: int) -> list[int]:
        slots = self._ctx.counters.free_slots(count)
        for number in slots:
            self._ctx.counters.slot(number).store(SlotState(incarnation=incarnation))
        return slots

    def _make(self, name: str, file: TopicFile) -> None:
        files, durable = self._ctx.files, self._ctx.sync != "never"
        files.make_dir(DIRECTORY)
        made = f"{DIRECTORY}/{_NEW}{file.incarnation}"
        files.make_dir(made)
        for number in range(len(file.slots)):
            files.make_dir(f"{made}/{number}")
        files.replace_file(f"{made}/topic.json", file.encode(), sync=durable)
        files.rename(made, f"{DIRECTORY}/{name}")
        if durable:
            files.sync_dir(DIRECTORY)
            files.sync_dir("")

    def sync_names(self) -> None:
        """Bring the names of topics and partitions to the device, where creating them did not."""
        if not self._ctx.counters.header[UNNAMED]:
            return
        for name in self.names(internal=True):
            self._ctx.files.open(f"{DIRECTORY}/{name}/topic.json").sync()
            self._ctx.files.sync_dir(f"{DIRECTORY}/{name}")
        self._ctx.files.sync_dir(DIRECTORY)
        self._ctx.files.sync_dir("")
        self._ctx.counters.header[UNNAMED] = 0

    def tidy(self) -> None:
        """Remove what is half-made or half-removed; under the bus's lock."""
        for name in self.names(internal=True):
            if name.startswith((_NEW, _DELETED)):
                self._ctx.files.remove_tree(f"{DIRECTORY}/{name}")
            else:
                self._finish_deletion(name)

    def _finish_deletion(self, name: str) -> None:
        """Do what is left to do where a deletion was cut off before the rename; under the bus's lock."""
        try:
            file = self._parse(name)
        except MissingFile:
            return
        if self._is_flagged(file):
            gone = f"{DIRECTORY}/{_DELETED}{file.incarnation}"
            self._ctx.files.rename(f"{DIRECTORY}/{name}", gone)
            self._ctx.files.remove_tree(gone)

    def _is_flagged(self, file: TopicFile) -> bool:
        """Whether the topic's deletion has begun: from then on it is gone."""
        slot = self._ctx.counters.slot(file.slots[0])
        return slot.get(INCARNATION) == file.incarnation and bool(slot.get(FLAGS) & DELETED)

    def delete(self, name: str) -> None:
        """Remove a topic and all its messages; `UnknownTopicError` when there is none."""

        def delete() -> None:
            state = self.get(name)
            gone = f"{DIRECTORY}/{_DELETED}{state.incarnation}"
            flagged: list[Partition] = []
            try:
                # Flagged first: no send may succeed once the files are on their way out.
                for partition in state.partitions:
                    self._flag(partition, deleted=True)
                    flagged.append(partition)
                self._ctx.files.rename(state.directory, gone)
            except StreamliteError:
                for partition in reversed(flagged):
                    self._flag(partition, deleted=False)
                raise
            if self._ctx.sync != "never":
                self._ctx.files.sync_dir(DIRECTORY)
            self._ctx.files.remove_tree(gone)
            with self._mutex:
                self._forget(state)

        self._change(delete)
        self._ctx.bell.ring()

    def _flag(self, partition: Partition, *, deleted: bool) -> None:
        slot = partition.slot
        call = slot.add_flag if deleted else slot.clear_flag
        partition.guard.run(lambda: call(DELETED), self._ctx.lock_timeout)

    def grow(self, state: TopicState, count: int) -> None:
        """Give the topic `count` partitions, at least as many as it has; under nobody's lock."""

        def grow() -> None:
            self._refresh(state)
            more = count - len(state.partitions)
            if more > 0:
                slots = state.file().slots + self._take_slots(more, state.incarnation)
                self._replace(state, state.file(slots=slots))

        self._change(grow)
        self.current(state)
        self._ctx.bell.ring()

    def ask(self, state: TopicState, count: int) -> None:
        """Settle the count of a topic that was created without one and is still empty, once."""

        def ask() -> None:
            self._refresh(state)
            if state.asked is None and not any(partition.end() for partition in state.partitions):
                more = self._take_slots(count - len(state.partitions), state.incarnation)
                self._replace(state, state.file(asked=count, slots=state.file().slots + more))

        self._change(ask)
        self.current(state)

    def alter(self, state: TopicState, changes: dict[str, Any]) -> None:
        """Replace settings."""

        def alter() -> None:
            self._refresh(state)
            self._replace(state, state.file(settings=msgspec.structs.replace(state.settings, **changes)))

        self._change(alter)
        self.current(state)

    def _refresh(self, state: TopicState) -> None:
        with self._mutex:
            self._read(state.name, _CHANGING)
        self.current(state)

    def _replace(self, state: TopicState, file: TopicFile) -> None:
        sync = self._ctx.sync != "never"
        for number in range(len(state.partitions), len(file.slots)):
            self._ctx.files.make_dir(f"{state.directory}/{number}")
        if sync and len(file.slots) > len(state.partitions):
            self._ctx.files.sync_dir(state.directory)  # a partition that the file names must be there
        self._ctx.files.replace_file(f"{state.directory}/topic.json", file.encode(), sync=sync)

    # -- opening ------------------------------------------------------------------------------------------------------

    def slots_on_disk(self) -> dict[int, int]:
        """Slot to incarnation of every partition that the files name; removes what is half-made or half-removed.

        For the first opener, under the bus's lock.
        """
        found: dict[int, int] = {}
        for name in self.names(internal=True):
            if name.startswith((_NEW, _DELETED)):
                self._ctx.files.remove_tree(f"{DIRECTORY}/{name}")
                continue
            file = self._parse(name)
            if not found.keys().isdisjoint(file.slots) or len(set(file.slots)) < len(file.slots):
                path = f"{DIRECTORY}/{name}/topic.json"
                raise CorruptionError(
                    f"{path} names a slot that another partition has, too; restore it from a copy",
                    file=path,
                    position=0,
                )
            found |= dict.fromkeys(file.slots, file.incarnation)
        return found
