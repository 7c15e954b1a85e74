"""Settings for all tests.

hypothesis has no deadline for an example: the machines that run these tests are shared, and an example that waits for a
disk proves nothing by its time. On CI its own profile holds (the same examples every time, nothing kept between runs).

A closed bus keeps a few descriptors until the garbage collector comes by, which looks rarely in a process as large as a
run of all tests: they need more than the usual 1,024.

A signal handler that raises, as many tests have one, may do so in the middle of logging, which is not made for that.
The lock of a log handler stays taken then, and threads of a later test would wait for it for ever. So it is given back.
"""

from __future__ import annotations

import logging
import os
import resource

import pytest
from hypothesis import settings

_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(_soft, min(_hard, 8_192)) if _hard > 0 else 8_192, _hard))

settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Give back what the test's thread has of log handlers."""
    for reference in list(logging._handlerList):
        lock = getattr(reference(), "lock", None)
        while lock is not None and lock._is_owned():
            lock.release()
