"""Where a command works that needs a bus of its own: a new directory, or a temporary one that is removed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamlite.errors import ConfigError

__all__ = ["workplace"]


@contextmanager
def workplace(what: str, directory: Path | None, *, keep: bool = False) -> Iterator[Path]:
    """The directory asked for, or a temporary one that is removed unless it is to be kept, whatever ends the block."""
    if directory is not None:
        if directory.is_dir() and any(directory.iterdir()):
            raise ConfigError(f"the {what} needs a new or an empty directory; {directory} has something in it")
        yield directory
        return
    place = Path(tempfile.mkdtemp(prefix=f"streamlite-{what}-"))
    try:
        yield place
    finally:
        if not keep:
            shutil.rmtree(place)
