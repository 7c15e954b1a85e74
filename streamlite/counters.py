"""The mapped page that all processes of a bus share: where each partition ends, and what state it is in.

A cache of what the logs say, rebuilt by the first opener after any stop that was not clean. It exists so that a reader
learns of new messages by reading memory, and so that an append need not look at files it did not write.

Layout: one page of header words, then blocks of 512 slots, a slot a partition. A block is one page with the published
ends of its 512 partitions side by side, then 15 pages with the other words, 120 bytes a slot: so "has anything changed
among 10,000 partitions" is twenty comparisons of a page of memory. Blocks are mapped one by one and never move.

Rules:
* Every word is an aligned 8-byte unsigned integer, loaded and stored through `memoryview.cast("Q")` only: `struct`
  packs byte by byte and a reader sees half a number.
* Words of a slot are stored under its partition's lock, but for SYNCED, NAMED and FAILED, which belong to who syncs.
* A published end is stored after everything it covers is in the file: its store is the publication.
"""

from __future__ import annotations

import threading
from typing import Annotated, Final, NamedTuple

import msgspec

from streamlite.errors import CorruptionError
from streamlite.files import Files
from streamlite.format import EPOCH_MAX, OFFSET_MAX

PATH: Final = "counters"
PAGE: Final = 4096
SLOTS: Final = 512
BLOCK_BYTES: Final = 16 * PAGE
SLOT_MAX: Final = 1 << 24
"""So many partitions no directory has; a number above it is damage, and no room is made for it."""
DETAILS: Final = 15
_USED: Final = 14

# Words of the header page.
READY, BOOT, INSTANCE, EPOCH, TOPICS, UNNAMED = range(6)
READY_MARK: Final = 0x31306574696C7473  # "stlite01"

# Words of a slot, the published end apart.
POSITION, ACTIVE, START, SYNCED, INCARNATION, FLAGS, FAILED, INDEXED, MAX_TIME, BORN, CHANGES, NAMED = range(12)
TRANSACTION, NUMBERED = range(12, 14)

WRITING: Final = 1
"""An append or a roll is under way, or its writer died in it: whoever locks the partition next looks at the tail."""
RECOVER: Final = 2
"""The words are not known yet: the log must be read before they are believed."""
DELETED: Final = 4
"""The topic is gone; a handle that still refers to the slot finds out here."""

_SIGN: Final = 1 << 63


def to_word(number: int) -> int:
    """A signed number as an unsigned word, order kept."""
    return number + _SIGN


def from_word(word: int) -> int:
    """The signed number that `to_word` made `word` of."""
    return word - _SIGN


Counted = Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)]
"""An offset, a position, a time or a count: a word with more in it is no word that anybody stored."""
Word = Annotated[int, msgspec.Meta(ge=0)]


class SlotState(NamedTuple):
    """All words of a slot at one moment; consistent when read under the partition's lock.

    `position` is the size of the active segment, `active` its base offset, `start` the first offset of the log,
    `synced` the offset up to which all is on the device, `failed` whether a sync failed, `indexed` the position of the
    last index entry, `max_time` the greatest timestamp of the active segment (as `to_word` has it), `born` when its
    first batch came in ms, `changes` a count of changes to the list of segments, `named` the count that is synced,
    `transaction` the last transaction that is part of the log, `numbered` whether a named producer wrote to it.
    """

    end: Counted = 0
    position: Counted = 0
    active: Counted = 0
    start: Counted = 0
    synced: Counted = 0
    incarnation: Word = 0
    flags: Counted = 0
    failed: Counted = 0
    indexed: Counted = 0
    max_time: Word = 0
    born: Counted = 0
    changes: Counted = 0
    named: Counted = 0
    transaction: Counted = 0
    numbered: Counted = 0

    @property
    def plausible(self) -> bool:
        """Whether these can be a partition's words."""
        return max(self._replace(incarnation=0, max_time=0)) <= OFFSET_MAX


class Slot:
    """The words of one partition, as views into the mapping."""

    __slots__ = ("_at", "_details", "_ends", "_index", "number")

    def __init__(self, number: int, ends: memoryview, details: memoryview) -> None:
        self.number = number
        self._ends = ends
        self._index = number % SLOTS
        self._details = details
        self._at = self._index * DETAILS

    @property
    def end(self) -> int:
        """The published end: the next offset that a reader may not have yet."""
        return self._ends[self._index]

    @end.setter
    def end(self, offset: int) -> None:
        self._ends[self._index] = offset

    def get(self, word: int) -> int:
        """One of the words POSITION to NUMBERED."""
        return self._details[self._at + word]

    def words(self) -> list[int]:
        """The words POSITION to NUMBERED; one step where several are needed."""
        return self._details[self._at : self._at + _USED].tolist()

    def set(self, word: int, value: int) -> None:
        """Store one of the words POSITION to NUMBERED."""
        self._details[self._at + word] = value

    def publish(self, position: int, max_time: int, end: int, bases: list[int], into: list[int]) -> None:
        """End an append: its words, then the end, and its base offsets noted in `into`; WRITING is cleared.

        Nothing here calls anything, so that no signal handler runs between the publication and the note of it.
        """
        details, at = self._details, self._at
        details[at + POSITION] = position
        details[at + MAX_TIME] = max_time
        self._ends[self._index] = end
        into += bases
        details[at + FLAGS] = 0

    def add_flag(self, flag: int) -> None:
        """Set a bit of the flags; under the partition's lock."""
        self._details[self._at + FLAGS] |= flag

    def clear_flag(self, flag: int) -> None:
        """Clear a bit of the flags; under the partition's lock."""
        self._details[self._at + FLAGS] &= ~flag

    def load(self) -> SlotState:
        """All words."""
        return SlotState(self._ends[self._index], *self.words())

    def store(self, state: SlotState) -> None:
        """All words, the published end last."""
        for word, value in enumerate(state[1:]):
            self._details[self._at + word] = value
        self._ends[self._index] = state.end


class Counters:
    """The mapping, grown block by block; `lock`-free, its writers hold the locks that its words belong to."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.header = files.map(PATH, 0, PAGE).cast("Q")
        self._blocks: list[tuple[memoryview, memoryview, memoryview]] = []
        self._mutex = threading.Lock()  # guards the growth of _blocks

    def slot(self, number: int) -> Slot:
        """The slot of that number; its block is allocated and mapped where it was not."""
        self._map_to(number // SLOTS)
        _, ends, details = self._blocks[number // SLOTS]
        return Slot(number, ends, details)

    def _map_to(self, block: int) -> None:
        while len(self._blocks) <= block:
            with self._mutex:
                count = len(self._blocks)
                if count > block:
                    return
                view = self._files.map(PATH, PAGE + count * BLOCK_BYTES, BLOCK_BYTES)
                self._blocks.append((view[:PAGE], view[:PAGE].cast("Q"), view[PAGE:].cast("Q")))

    def ends_page(self, block: int) -> memoryview:
        """The published ends of a block as bytes, to be compared with what they were (a memcmp)."""
        self._map_to(block)
        return self._blocks[block][0]

    def writing(self, block: int) -> list[int]:
        """The places in a block of the partitions where an append is under way, or its writer died in it."""
        flags = self._blocks[block][2][FLAGS::DETAILS].tolist()
        return [place for place, found in enumerate(flags[:SLOTS]) if found & WRITING] if any(flags) else []

    slots_a_block: Final = SLOTS

    def blocks_on_file(self) -> int:
        """How many blocks there are, mapped by this bus or not."""
        return max(0, self._files.open(PATH).size() - PAGE) // BLOCK_BYTES

    def occupied(self, block: int) -> list[Slot]:
        """The slots of a block that belong to a partition."""
        self._map_to(block)
        details = self._blocks[block][2]
        incarnations = details[INCARNATION::DETAILS].tolist()
        return [self.slot(block * SLOTS + at) for at, found in enumerate(incarnations[:SLOTS]) if found]

    def free_slots(self, count: int) -> list[int]:
        """The lowest `count` slots that no partition has had since the bus was first opened; under the bus's lock."""
        found: list[int] = []
        number = 0
        while len(found) < count:
            self._map_to(number // SLOTS)
            details = self._blocks[number // SLOTS][2]
            if details[(number % SLOTS) * DETAILS + INCARNATION] == 0:
                found.append(number)
            number += 1
        return found

    def usable(self, boot: int) -> bool:
        """Whether the words may be believed: written whole, since the machine was started, and no nonsense."""
        header = self.header
        if header[READY] != READY_MARK or header[BOOT] != boot:
            return False
        return bool(header[EPOCH] <= EPOCH_MAX and header[TOPICS] <= OFFSET_MAX)

    def reset(self, slots: dict[int, SlotState], boot: int, instance: int, epoch: int) -> None:
        """Fill anew, by the only process that has the bus open. Not usable until it is whole."""
        header = self.header
        header[READY] = 0
        self._clear()
        for number, state in slots.items():
            self.slot(number).store(state)
        header[BOOT], header[INSTANCE], header[EPOCH] = boot, instance, epoch
        header[TOPICS] = (min(header[TOPICS], OFFSET_MAX) + 2) & ~1  # even: nobody is changing anything
        header[READY] = READY_MARK

    def revise(self, on_disk: dict[int, int]) -> None:
        """After a stop of all processes but not of the machine: every log is to be read before its words are believed.

        What only the words know (what is synced, and what failed to be) stays. In place, so that whoever is killed in
        the middle leaves something to be revised again. `on_disk`: slot to incarnation of the partitions there are.
        """
        for block in range(self.blocks_on_file()):
            for slot in self.occupied(block):
                if on_disk.get(slot.number) != slot.get(INCARNATION):
                    slot.store(SlotState())
        for number, incarnation in on_disk.items():
            slot = self.slot(number)
            if slot.get(INCARNATION) == incarnation and slot.load().plausible:
                slot.set(FLAGS, RECOVER)
            else:
                slot.store(SlotState(incarnation=incarnation, flags=RECOVER))
        self.header[TOPICS] = (self.header[TOPICS] + 2) & ~1

    def _clear(self) -> None:
        zeros = bytes(BLOCK_BYTES - PAGE)
        block = 0
        while block < len(self._blocks) or self._is_allocated(block):
            self._map_to(block)
            page, _, details = self._blocks[block]
            page[:] = bytes(PAGE)
            details.cast("B")[:] = zeros
            block += 1

    def _is_allocated(self, block: int) -> bool:
        return self._files.open(PATH, create=True).size() >= PAGE + (block + 1) * BLOCK_BYTES

    def require(self, boot: int) -> None:
        """Refuse to join others on a page that cannot be theirs."""
        if not self.usable(boot):
            raise CorruptionError(
                f"{PATH} is missing or damaged while other processes have the bus open: close them all, then open "
                "again",
                file=PATH,
                position=0,
            )
