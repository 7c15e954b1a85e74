"""A short stress run in the test suite; STREAMLITE_STRESS_SECONDS makes it longer (CI: 120, a release: 28800)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS = float(os.environ.get("STREAMLITE_STRESS_SECONDS", "12"))
SLACK_S = 300
"""For draining and checking each round, on a slow machine."""


def test_processes_that_are_killed_and_stopped_break_no_promise(tmp_path: Path) -> None:
    rounds = SECONDS // 30 + 1
    command = ["--seconds", str(SECONDS), "--directory", str(tmp_path)] + (["--processes", "6"] if rounds == 1 else [])
    ran = subprocess.run(
        [sys.executable, "-m", "tests.stress", *command],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS + SLACK_S * rounds,
        check=False,
    )
    print(ran.stdout)  # the seed, whatever came of it
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " 0 found something" in ran.stdout
