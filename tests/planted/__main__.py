"""Plants each bug of tests/planted/*.patch in a copy of the tree, and sees whether the tests that it names catch it.

    python -m tests.planted                              # all of them, before a release
    python -m tests.planted --only torn_tail_kept        # one; may be given more than once
    python -m tests.planted --table                      # write the table of docs/testing.md anew
    python -m tests.planted --search torn_tail_kept      # which tests catch it? those below --in, file by file

First every catcher runs on the tree as it is, and must pass. Then each bug is planted in a copy of its own, and each of
its catchers runs there by itself: it counts as caught only if each of them fails, as a test fails (not because it
cannot be imported or found, and not because its time was over). Exit status 1 where anything is not as it should be.

A bug that is found nowhere any more, since the code around it changed, is "does not apply": it is planted anew, or its
patch is removed with the code that it broke. `tests/planted/patches.py` says what a patch file looks like.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .patches import PAGE, ROOT, BadPatch, Bug, bugs, from_tree, planted, with_table

PARTS = ("streamlite", "tests", "examples", "docs", "pyproject.toml", "README.md", "CHANGELOG.md")
"""Of the tree: what tests look at."""
LIMIT_S = 120.0
"""For one catcher: none takes a tenth of it."""
SEARCH_LIMIT_S = 300.0
"""For one file of tests, in a search."""
SEARCHED = ("tests/unit", "tests/contract", "tests/property", "tests/crash", "tests/integration")
PASSED, FAILED = 0, 1
"""Exit status of pytest."""

_running: set[subprocess.Popen[str]] = set()  # to be ended where this is ended


class Ran(NamedTuple):
    """What came of a run of pytest: its exit status (`None`: its time was over), seconds, what it printed."""

    status: int | None
    seconds: float
    output: str


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.planted", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="only this bug")
    parser.add_argument("--jobs", type=int, default=1, help="so many at the same time (%(default)s)")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for one catcher (%(default)g)")
    parser.add_argument("--no-control", action="store_true", help="do not run the catchers on the tree as it is")
    parser.add_argument("--table", action="store_true", help="write the table of docs/testing.md, and run nothing")
    parser.add_argument("--search", metavar="NAME", help="run all tests with this bug, and say which fail")
    parser.add_argument("--in", dest="places", action="append", metavar="PATH", help="where --search looks")
    given = parser.parse_args()
    found = bugs()
    if given.table:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
        return 0
    wanted = [given.search] if given.search else given.only or [bug.name for bug in found]
    chosen = [bug for bug in found if bug.name in wanted]
    if unknown := set(wanted) - {bug.name for bug in chosen}:
        parser.error(f"no bug is called {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        base = Path(directory) / "base"
        _copy_tree(base)
        with ThreadPoolExecutor(max(1, given.jobs)) as pool:
            try:
                if given.search:
                    return _search(pool, base, chosen[0], given.places or SEARCHED)
                return _prove(pool, base, chosen, given.limit, control=not given.no_control, jobs=given.jobs)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for running in list(_running):
                    _end(running)
                raise


def _prove(
    pool: ThreadPoolExecutor, base: Path, chosen: Sequence[Bug], limit: float, *, control: bool, jobs: int
) -> int:
    begun = time.monotonic()
    good = not control or _control(pool, base, {one for bug in chosen for one in bug.catchers}, limit, jobs)
    caught = 0
    for bug, (verdict, told) in zip(chosen, pool.map(lambda bug: _try(base, bug, limit), chosen), strict=True):
        caught += verdict == "caught"
        print(f"{verdict:<14} {bug.name}: {'; '.join(told)}", flush=True)
    print(f"{caught} of {len(chosen)} bugs caught in {time.monotonic() - begun:.0f} s, jobs {jobs}")
    return 0 if good and caught == len(chosen) else 1


def _control(pool: ThreadPoolExecutor, base: Path, catchers: set[str], limit: float, jobs: int) -> bool:
    """Whether all of them pass on the tree as it is; this also leaves the tests compiled for the copies."""
    by_file: dict[str, list[str]] = {}
    for catcher in sorted(catchers):
        by_file.setdefault(catcher.partition("::")[0], []).append(catcher)
    rows = [list[str]() for _ in range(max(1, jobs))]
    for names in sorted(by_file.values(), key=len, reverse=True):
        min(rows, key=len).extend(names)
    good = True
    for ran in pool.map(lambda row: _pytest(base, row, limit * len(row)), filter(None, rows)):
        good = good and ran.status == PASSED
        print(f"{'control passed' if ran.status == PASSED else 'CONTROL FAILED'}: {_last_line(ran)}", flush=True)
        if ran.status != PASSED:
            print(ran.output)
    return good


def _try(base: Path, bug: Bug, limit: float) -> tuple[str, list[str]]:
    """`(verdict, what each catcher said)`."""
    copy = base.parent / bug.name
    try:
        _plant(base, copy, bug)
    except BadPatch as error:
        return "DOES NOT APPLY", [str(error)]
    try:
        told, missed = [], False
        for catcher in bug.catchers:
            ran = _pytest(copy, ["-x", catcher], limit)
            missed = missed or ran.status != FAILED or not _failing(ran)
            told.append(f"{catcher.partition('::')[2]} {_said(ran)}, {ran.seconds:.1f} s")
        return "NOT CAUGHT" if missed else "caught", told
    finally:
        shutil.rmtree(copy)


def _failing(ran: Ran) -> list[str]:
    """The tests that failed, as pytest sums them up."""
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", ran.output, flags=re.MULTILINE)


def _said(ran: Ran) -> str:
    return {None: "was not through in time", PASSED: "passes", FAILED: "fails"}.get(ran.status, _last_line(ran))


def _search(pool: ThreadPoolExecutor, base: Path, bug: Bug, places: Iterable[str]) -> int:
    """Run file by file, and say what fails."""
    copy = base.parent / bug.name
    _plant(base, copy, bug)
    files = sorted({str(path.relative_to(copy)) for place in places for path in _test_files(copy / place)})
    failing = 0
    for file, ran in zip(files, pool.map(lambda file: _pytest(copy, [file], SEARCH_LIMIT_S), files), strict=True):
        failed = _failing(ran)
        failing += len(failed)
        if ran.status not in (PASSED, 5):  # 5: no tests
            print(f"{file}: {_said(ran)}, {ran.seconds:.1f} s", *failed, sep="\n    ", flush=True)
    print(f"{failing} tests fail of {len(files)} files")
    return 0 if failing else 1


def _test_files(place: Path) -> list[Path]:
    return [place] if place.is_file() else list(place.rglob("test_*.py"))


def _copy_tree(to: Path) -> None:
    to.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, to / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy2(ROOT / part, to / part)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "streamlite"], cwd=to, check=True)
    where = [sys.executable, "-c", "import streamlite; print(streamlite.__file__)"]
    said = subprocess.run(where, cwd=to, env=_environment(to), capture_output=True, text=True, check=True).stdout
    assert Path(said.strip()).is_relative_to(to), f"tests of a copy would import {said}"


def _plant(base: Path, copy: Path, bug: Bug) -> None:
    changed = planted(bug, from_tree(base))
    shutil.copytree(base, copy)
    for path, text in changed.items():
        (copy / path).write_text(text, encoding="utf-8")
        for compiled in (copy / path).parent.glob(f"__pycache__/{Path(path).stem}.*"):
            compiled.unlink()


def _environment(tree: Path) -> dict[str, str]:
    """`CI`: hypothesis draws the same examples every time, so that what is caught is caught again."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLITE_")}
    return kept | {"PYTHONPATH": str(tree), "CI": "1"}


def _pytest(tree: Path, arguments: Sequence[str], limit: float) -> Ran:
    """Run pytest in a tree; what it started ends with it."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=tree.parent) as scratch:
        # Quiet, without a cache; its temporary files where they go away.
        options = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "--basetemp", f"{scratch}/tmp"]
        running = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *arguments],
            cwd=tree,
            env=_environment(tree),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        status: int | None
        _running.add(running)
        try:
            output, _ = running.communicate(timeout=limit)
            status = running.returncode
        except subprocess.TimeoutExpired:
            status, output = None, ""
        finally:
            _running.discard(running)
            _end(running)
        if status is None:
            output, _ = running.communicate()
    return Ran(status, time.monotonic() - begun, output)


def _end(running: subprocess.Popen[str]) -> None:
    """It and all that it started in its session, stopped ones too."""
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)


def _last_line(ran: Ran) -> str:
    return ran.output.strip().rpartition("\n")[2]


if __name__ == "__main__":
    sys.exit(main())
