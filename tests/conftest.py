"""Settings for all tests.

hypothesis has no deadline for an example: the machines that run these tests are shared, and an example that waits for a
disk proves nothing by its time. On CI its own profile holds (the same examples every time, nothing kept between runs).
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
