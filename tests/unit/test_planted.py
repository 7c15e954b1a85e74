"""The planted bugs fit the tree and name tests that exist; whether these catch them: `python -m tests.planted`."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.planted.patches import (
    DOCS,
    PAGE,
    ROOT,
    BadPatch,
    Bug,
    bugs,
    from_tree,
    is_promised,
    parse,
    planted,
    promises,
    with_table,
)

BUGS = bugs()
BUGS_LEAST = 30
"""What the promises ask for; a bug whose code is gone goes with it, and another is planted."""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_applies_to_the_tree(bug: Bug) -> None:
    assert all(path.startswith("streamlite/") for path in planted(bug, from_tree(ROOT)))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_its_catchers_exist_and_what_it_breaks_is_promised(bug: Bug) -> None:
    assert len(bug.catchers) == len(set(bug.catchers))
    for catcher in bug.catchers:
        path, _, name = catcher.partition("::")
        assert name.partition("[")[0] in _tests(path), catcher
    assert is_promised(bug.promise), bug.promise


@cache
def _tests(path: str) -> set[str]:
    module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in module.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def test_every_promise_has_a_bug_that_breaks_it() -> None:
    rows = promises((DOCS / "guarantees.md").read_text(encoding="utf-8"))
    assert len(rows) > 20
    assert [row for row in rows if not any(row.startswith(bug.promise) for bug in BUGS)] == []
    assert len(BUGS) >= BUGS_LEAST


def test_the_table_of_the_docs_is_the_patches() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page, BUGS), "run: python -m tests.planted --table"


PATCH = """\
# bug: what
#     is wrong
# promise: A torn tail
# catchers: tests/a.py::test_a
#     tests/b.py::test_b[x]
--- a/streamlite/a.py
+++ b/streamlite/a.py
@@ -2,3 +2,2 @@ def second() -> int:
     one()
-    two()
     three()
"""
BODY = "    one()\n    two()\n    three()\n"
TREE = f"def first() -> int:\n{BODY}\n\ndef second() -> int:\n{BODY}"


def _planted(tree: str, patch: str = PATCH) -> str:
    return planted(parse("a_bug", patch), lambda path: tree)["streamlite/a.py"]


def test_a_patch_says_what_it_is() -> None:
    bug = parse("a_bug", PATCH)
    assert (bug.name, bug.what, bug.promise) == ("a_bug", "what is wrong", "A torn tail")
    assert bug.catchers == ["tests/a.py::test_a", "tests/b.py::test_b[x]"]


def test_a_hunk_is_found_by_its_text_in_the_function_that_it_names() -> None:
    first, second = TREE.split("\n\n\n")
    assert _planted(TREE) == f"{first}\n\n\n{second.replace('    two()' + chr(10), '')}"
    assert _planted("import os\n\n\n" + TREE) == "import os\n\n\n" + _planted(TREE)


def test_where_its_context_has_changed_the_lines_themselves_are_looked_for() -> None:
    changed = TREE.replace("one()", "anything()")
    assert _planted(changed) == _planted(TREE).replace("one()", "anything()")


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        (TREE.replace("two()", "four()"), "fits nowhere"),
        (TREE.replace("second", "third"), "fits nowhere"),
        (TREE + BODY, "fits 2 places"),
    ],
)
def test_a_hunk_that_fits_no_place_or_more_than_one_is_refused(tree: str, reason: str) -> None:
    with pytest.raises(BadPatch, match=reason):
        _planted(tree)


def test_a_patch_that_changes_no_code_is_refused() -> None:
    tree = TREE.replace("    two()\n", "    # a comment\n")
    with pytest.raises(BadPatch, match="does the same"):
        _planted(tree, PATCH.replace("    two()", "    # a comment"))


@pytest.mark.parametrize(
    "patch",
    [PATCH.replace("# promise", "# other"), PATCH.partition("---")[0], PATCH.replace("-    two()\n", ""), PATCH + "x"],
    ids=["no promise", "no diff", "no change", "no diff line"],
)
def test_what_is_no_patch_is_refused(patch: str) -> None:
    with pytest.raises(BadPatch):
        parse("a_bug", patch)
