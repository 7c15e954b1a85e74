"""A planted bug is a unified diff with a header of comments; here such files are read and applied.

    # bug: one sentence, what is broken
    # promise: how the row of docs/guarantees.md begins that it breaks; or a page of docs/ and words that stand there
    # catchers: tests/crash/test_this.py::test_that
    #     tests/unit/test_other.py::test_another
    --- a/streamlite/files/local.py
    +++ b/streamlite/files/local.py
    @@ -420,3 +420,3 @@ def sync_dir(self, path: str) -> None:
    ...

The tree goes on changing, so a hunk is looked for by its text and not by its line number: it stands where its lines
stand. Where they stand at several places, the function named behind the second @@ decides; where they stand nowhere,
they are looked for without their context, in that function. A hunk that fits no place, or more than one, is an error:
then the bug is to be planted anew (`git diff -U1` makes such patches).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PATCHES = Path(__file__).parent
DOCS = ROOT / "docs"
PAGE = DOCS / "testing.md"
BEGIN, END = "<!-- planted: begin, by python -m tests.planted --table -->", "<!-- planted: end -->"

_DEFINITION = re.compile(r"\s*(async def|def|class) ")
_HUNK = re.compile(r"@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@ ?(.*)")


class BadPatch(ValueError):
    """A patch that cannot be read, or does not apply to the tree as it is."""


class Hunk(NamedTuple):
    """Lines to be found and what they become. `where`: how the definition around them begins, '' for any."""

    where: str
    lines: list[str]
    """Each with its mark: ' ', '-' or '+'."""

    def old(self, lines: list[str]) -> list[str]:
        return [line[1:] for line in lines if line[0] != "+"]

    def new(self, lines: list[str]) -> list[str]:
        return [line[1:] for line in lines if line[0] != "-"]

    def bare(self) -> list[str]:
        """The lines without the context before and after them."""
        marked = [at for at, line in enumerate(self.lines) if line[0] != " "] or [0]
        return self.lines[marked[0] : marked[-1] + 1]


class Bug(NamedTuple):
    """One planted bug; `files`: by path, the hunks in order."""

    name: str
    what: str
    promise: str
    catchers: list[str]
    files: dict[str, list[Hunk]]


def bugs(directory: Path = PATCHES) -> list[Bug]:
    """All of them, by name."""
    return [parse(path.stem, path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.patch"))]


def parse(name: str, text: str) -> Bug:
    """What a patch file says; `BadPatch`."""
    head, body = [], []
    for line in text.splitlines():
        (head if line.startswith("#") and not body else body).append(line)
    given = _header(name, head)
    files: dict[str, list[Hunk]] = {}
    hunks: list[Hunk] | None = None
    for line in body:
        found = _HUNK.match(line)
        if line.startswith("--- "):
            hunks = None
        elif line.startswith("+++ b/"):
            hunks = files.setdefault(line.removeprefix("+++ b/").strip(), [])
        elif found and hunks is not None:
            hunks.append(Hunk(found[1].strip(), []))
        elif hunks and line[:1] in (" ", "-", "+", ""):
            hunks[-1].lines.append(line or " ")
        elif hunks is None and line.startswith(("diff ", "index ")):
            continue
        elif line:
            raise BadPatch(f"{name}: {line!r} is no line of a unified diff")
    lines = [[line for one in hunks for line in one.lines if line[0] != " "] for hunks in files.values()]
    if not lines or not all(lines):
        raise BadPatch(f"{name}: changes nothing")
    return Bug(name, given["bug"], given["promise"], given["catchers"].split(), files)


def _header(name: str, lines: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    key = ""
    for line in lines:
        text = line.removeprefix("#").strip()
        word, colon, rest = text.partition(": ")
        if colon and word in ("bug", "promise", "catchers"):
            key, text = word, rest
        given[key] = f"{given.get(key, '')} {text}".strip()
    missing = [key for key in ("bug", "promise", "catchers") if not given.get(key)]
    if missing:
        raise BadPatch(f"{name}: its header lacks {', '.join(missing)}")
    return given


def planted(bug: Bug, read: Callable[[str], str]) -> dict[str, str]:
    """The files as they are with the bug in them; `BadPatch` where it does not apply or changes no code."""
    changed = {}
    for path, hunks in bug.files.items():
        try:
            before = read(path)
        except FileNotFoundError:
            raise BadPatch(f"{bug.name}: there is no {path}") from None
        after = before
        for number, hunk in enumerate(hunks, 1):
            after = _applied(after, hunk, f"{bug.name}: hunk {number} of {path}")
        try:
            same = _code(before) == _code(after)
        except SyntaxError as error:
            raise BadPatch(f"{bug.name}: {path} cannot be compiled: {error}") from error
        if same:
            raise BadPatch(f"{bug.name}: {path} does the same as before")
        changed[path] = after
    return changed


def from_tree(root: Path) -> Callable[[str], str]:
    """`read` for `planted`."""
    return lambda path: (root / path).read_text(encoding="utf-8")


def _applied(text: str, hunk: Hunk, what: str) -> str:
    lines = text.split("\n")
    for chosen in (hunk.lines, hunk.bare()):
        old = hunk.old(chosen)
        places = [at for at in range(len(lines) - len(old) + 1) if lines[at : at + len(old)] == old] if old else []
        if len(places) > 1 or chosen is not hunk.lines:
            places = [at for at in places if hunk.where and _is_in(lines, at, hunk.where)]
        if len(places) == 1:
            at = places[0]
            return "\n".join([*lines[:at], *hunk.new(chosen), *lines[at + len(old) :]])
        if places:
            raise BadPatch(f"{what} fits {len(places)} places")
    raise BadPatch(f"{what} fits nowhere: plant it anew")


def _is_in(lines: list[str], at: int, where: str) -> bool:
    """Whether the nearest definition above (of the kind that `where` is) is that one; git cuts long ones off."""
    kind = _DEFINITION.match(where)
    for line in reversed(lines[:at]):
        found = _DEFINITION.match(line)
        if found and (kind is None or found[1] == kind[1]):
            return line.strip().startswith(where)
    return False


@lru_cache
def _code(text: str) -> object:
    """What of a source is code: without comments, docstrings, `assert` and layout."""
    return _compared(compile(text, "", "exec", optimize=2, dont_inherit=True))


def _compared(code: CodeType) -> tuple[object, ...]:
    constants = [_compared(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_exceptiontable, code.co_flags


# -- what it is told in the docs ---------------------------------------------------------------------------------------


def promises(page: str) -> list[str]:
    """The first column of the table of promises, as a reader sees it."""
    rows = page.partition("## The promises")[2].partition("\n## ")[0].splitlines()
    return [_seen(row.split(" | ")[0].removeprefix("| ")) for row in rows if row.startswith("| ")][1:]


def is_promised(promise: str, docs: Path = DOCS) -> bool:
    """Whether the docs say so: a row of guarantees.md, or `page.md: words of it`."""
    page, colon, words = promise.partition(".md: ")
    if colon:
        return words in _seen((docs / f"{page}.md").read_text(encoding="utf-8"))
    rows = promises((docs / "guarantees.md").read_text(encoding="utf-8"))
    return sum(row.startswith(promise) for row in rows) == 1


def _seen(text: str) -> str:
    """Without the markup of links, and in one line."""
    return " ".join(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).split())


def table(found: list[Bug]) -> str:
    """The table of docs/testing.md."""
    rows = ["| bug | what it breaks | caught by |", "|---|---|---|"]
    rows += [f"| {bug.what} | {bug.promise} | {', '.join(_links(bug.catchers))} |" for bug in found]
    return "\n".join(rows)


def _links(catchers: list[str]) -> Iterator[str]:
    for catcher in catchers:
        path, _, name = catcher.partition("::")
        yield f"[{Path(path).parent.name}/{Path(path).name}](../{path}): `{name.partition('[')[0]}`"


def with_table(page: str, found: list[Bug]) -> str:
    """The page with the table as it should be."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no place for the table: {BEGIN}")
    return f"{before}{BEGIN}\n{table(found)}\n{END}{after}"
