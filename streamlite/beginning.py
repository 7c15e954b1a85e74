"""Where a log begins: a small file beside its segments, from the first time that anything of it was removed.

It is durable before what stands below goes: whatever a stop of the machine leaves of the removals, nothing below is
taken for a part of the log again, nor what is missing for a hole. The words of the counters say the same, faster.
"""

from __future__ import annotations

from typing import Final

from streamlite.errors import CorruptionError
from streamlite.files import Files, MissingFile
from streamlite.format import OFFSET_MAX, checksum

__all__ = ["store_start", "stored_start"]

_FILE: Final = "start"
_BYTES: Final = 8


def store_start(files: Files, directory: str, offset: int) -> None:
    """Note down, durably, that the log in this directory begins at `offset`."""
    data = offset.to_bytes(_BYTES, "little")
    files.replace_file(f"{directory}/{_FILE}", data + checksum(data).to_bytes(8, "little"), sync=True)


def stored_start(files: Files, directory: str) -> int:
    """Where it begins, as was noted down; 0 where nothing of it was ever removed. `CorruptionError`."""
    path = f"{directory}/{_FILE}"
    try:
        data = files.read_file(path)
    except MissingFile:
        return 0
    start = int.from_bytes(data[:_BYTES], "little")
    whole = len(data) == _BYTES + 8 and checksum(data[:_BYTES]) == int.from_bytes(data[_BYTES:], "little")
    if not whole or start > OFFSET_MAX:
        raise CorruptionError(
            f"{path} does not hold the beginning of the log; restore it from a copy, or remove it to get back whatever "
            "segments are still there",
            file=path,
            position=0,
        )
    return start
