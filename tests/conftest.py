"""Settings for all tests.

hypothesis has no deadline for an example: the machines that run these tests are shared, and an example that waits for a
disk proves nothing by its time. On CI its own profile holds (the same examples every time, nothing kept between runs).

What makes up a bus refers to each other. Thousands of closed ones would wait for the garbage collector, which looks
rarely in a process as large as a run of all tests, and keep descriptors and memory: so it is called now and then.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

_COLLECT_EVERY = 50
_run = 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """After each of so many tests, collect what they left."""
    global _run  # noqa: PLW0603
    _run += 1
    if _run % _COLLECT_EVERY == 0:
        gc.collect()
