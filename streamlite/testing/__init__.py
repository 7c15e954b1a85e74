"""For tests of code that uses streamlite: a virtual clock, a disk that fails, and a pytest plugin."""

from typing import TYPE_CHECKING

from streamlite.testing.clock import VirtualClock

if TYPE_CHECKING:
    from streamlite.testing.faults import Crash, Faults

__all__ = ["Crash", "Faults", "VirtualClock"]


def __getattr__(name: str) -> object:
    """`Crash` and `Faults` load when they are asked for: every pytest run loads this module."""
    if name in ("Crash", "Faults"):
        from streamlite.testing import faults

        return getattr(faults, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
