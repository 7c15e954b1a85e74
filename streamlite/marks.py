"""What stands in a bus's directory beside the topics: its identity, its epoch, and the mark of a clean close.

* `bus.json` says that the directory is a bus, and of which format. It is written once.
* `epoch` counts the unclean stops of the machine; it is durable before anything is read after one.
* `clean` is there only while nobody has the bus open, and only if the last one to close it synced everything before:
  the words of every partition, with a checksum. The first opener takes them over and removes the mark, durably, before
  anything can change. A mark that is damaged counts as none: recovery then reads the logs.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from streamlite.counters import DELETED, SLOT_MAX, SlotState
from streamlite.errors import CorruptionError, FormatError
from streamlite.files import Files, MissingFile, random_number
from streamlite.format import EPOCH_MAX, FORMAT_VERSION, check_format, checksum

__all__ = [
    "BUS_LOCK",
    "OPEN_LOCK",
    "Identity",
    "read_clean",
    "read_epoch",
    "read_identity",
    "write_clean",
    "write_epoch",
]

BUS: Final = "bus.json"
BUS_LOCK: Final = "bus.lock"
"""Guards opening, closing, and the directory of topics."""
OPEN_LOCK: Final = "open.lock"
"""Held shared by every bus that is open; who gets it alone is the first or the last."""
MAINTENANCE_LOCK: Final = "maintenance.lock"
CLEAN: Final = "clean"
EPOCH_FILE: Final = "epoch"
OWN: Final = frozenset({BUS, f"{BUS}.new", BUS_LOCK, OPEN_LOCK})
"""What a bus's directory may hold before its bus.json is there: its creation was cut off."""


class Identity(msgspec.Struct, frozen=True):
    """`bus.json`."""

    format: int
    incarnation: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


def read_identity(files: Files) -> Identity | None:
    """What bus.json says; `None` for a directory that is empty so far; `FormatError` for one that is no bus."""
    try:
        data = files.read_file(BUS)
    except MissingFile:
        foreign = sorted(set(files.list("")) - OWN)
        if foreign:
            raise FormatError(
                f"refusing {files.root}: it is no bus, it holds {foreign[0]!r} and no {BUS}; name an empty directory, "
                "or one that is not there yet"
            ) from None
        return None
    try:
        version = msgspec.json.decode(data, type=dict[str, object]).get("format")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"refusing {files.root}: its {BUS} makes no sense ({error})") from error
    check_format(version)
    try:
        return msgspec.json.decode(data, type=Identity)
    except (msgspec.DecodeError, ValueError) as error:
        raise FormatError(f"refusing {files.root}: its {BUS} makes no sense ({error})") from error


def create_identity(files: Files) -> Identity:
    """Make an empty directory a bus."""
    identity = Identity(FORMAT_VERSION, random_number())
    files.replace_file(BUS, msgspec.json.encode(identity), sync=True)
    return identity


class _Clean(msgspec.Struct, array_like=True):
    incarnation: int
    boot: int
    states: dict[Annotated[int, msgspec.Meta(ge=0, le=SLOT_MAX)], SlotState]


def write_clean(files: Files, identity: Identity, states: dict[int, SlotState]) -> None:
    """Leave the mark; everything it speaks of is synced."""
    kept = {number: state for number, state in states.items() if state.incarnation and not state.flags & DELETED}
    body = msgspec.msgpack.encode(_Clean(identity.incarnation, files.boot_id(), kept))
    files.replace_file(CLEAN, checksum(body).to_bytes(8, "little") + body, sync=True)


def read_clean(files: Files, identity: Identity) -> dict[int, SlotState] | None:
    """The words the last to close left, or `None` where there is no mark to believe."""
    try:
        data = files.read_file(CLEAN)
        if checksum(data[8:]) != int.from_bytes(data[:8], "little"):
            return None
        mark = msgspec.msgpack.decode(data[8:], type=_Clean)
    except (MissingFile, msgspec.DecodeError, ValueError, RecursionError):
        return None
    return mark.states if mark.incarnation == identity.incarnation else None


def remove_clean(files: Files) -> None:
    """Take the mark away, durably."""
    files.remove(CLEAN)
    files.sync_dir("")


def read_epoch(files: Files) -> int:
    """The bus's epoch; 0 for one that never stopped uncleanly."""
    try:
        data = files.read_file(EPOCH_FILE)
    except MissingFile:
        return 0
    if len(data) != 16 or checksum(data[:8]) != int.from_bytes(data[8:], "little"):
        raise _no_epoch()
    epoch = int.from_bytes(data[:8], "little")
    if epoch > EPOCH_MAX:
        raise _no_epoch()
    return epoch


def _no_epoch() -> CorruptionError:
    return CorruptionError(
        f"{EPOCH_FILE} does not hold the bus's epoch: restore it from a copy", file=EPOCH_FILE, position=0
    )


def write_epoch(files: Files, epoch: int) -> None:
    """Raise the epoch, durably."""
    data = epoch.to_bytes(8, "little")
    files.replace_file(EPOCH_FILE, data + checksum(data).to_bytes(8, "little"), sync=True)
