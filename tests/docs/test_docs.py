"""The documentation cannot drift: its code runs, its tables are the code's, its links lead somewhere.

* Every ```python block of README.md and docs/*.md runs, the blocks of one page in order, in one namespace, in a
  directory of their own; a test that a block defines runs with its fixtures. Only a block that says `no-run` after the
  language is left out.
* Every option and every command stands in docs/ with the default that it has in the code, and nothing else does.
* Every relative link resolves, its anchor too.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE_LINES_MAX = 11
"""The README's first example: ten lines, and the import."""

KINDS = {"behaviour", "performance"}


class Block(NamedTuple):
    """A fenced block of a page: what stands behind the fence, its first line's number, and its text."""

    info: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    info, begun, lines = "", 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif not begun:
            info, begun, lines = line[3:].strip(), number + 1, []
        else:
            found.append(Block(info, begun, "\n".join(lines)))
            begun = 0
    assert not begun, f"{page.name}: the block that begins in line {begun} has no end"
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[Block]:
    """The blocks of Python that are to run."""
    return [block for block in blocks(page) if re.split(r"[ ,{]+", block.info) == ["python"]]


def ids(page: Path) -> str:
    return page.name


def rows(section: str) -> Iterator[list[str]]:
    """The cells of every row of the tables in a piece of Markdown, but for the heads."""
    for line in section.splitlines():
        if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if cells[0].startswith("`"):
                yield cells


def sections(page: Path, level: int = 2) -> dict[str, str]:
    """Heading to text of the sections of a page."""
    parts = re.split(rf"^{'#' * level} (.+)$", prose(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code(cell: str) -> str:
    """What stands in the first backticks of a cell."""
    found = re.match(r"`([^`]+)`", cell)
    assert found, f"a cell without code: {cell!r}"
    return found[1]


# -- code --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=ids)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in python_blocks(page):
        # Padded, so that a traceback names the page and its line.
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)  # noqa: S102
        for name in [name for name in namespace if name.startswith("test_")]:
            run_test(namespace.pop(name), request)


def run_test(function: Callable[..., None], request: pytest.FixtureRequest) -> None:
    """Run a test that a page defines, with the fixtures it asks for."""
    function(**{name: request.getfixturevalue(name) for name in inspect.signature(function).parameters})


def test_blocks_say_what_they_are() -> None:
    known = re.compile(r"(|sh|text|mermaid|json|toml|python( no-run)?)")
    strange = [
        f"{page.name}:{block.line}: {block.info!r}"
        for page in PAGES
        for block in blocks(page)
        if not known.fullmatch(block.info)
    ]
    assert not strange


def test_readme_begins_with_a_short_example() -> None:
    first = next(block for block in blocks(PAGES[0]) if block.info.startswith("python"))
    assert first.info == "python", "the example of the README runs"
    assert len([line for line in first.text.splitlines() if line.strip()]) <= EXAMPLE_LINES_MAX


@pytest.mark.parametrize("word", ["pytest", "streamlite demo"])
def test_readme_has_each_command_once(word: str) -> None:
    lines = [
        line for block in blocks(PAGES[0]) if block.info == "sh" for line in block.text.splitlines() if word in line
    ]
    assert len(lines) == 1, f"CI takes the command with {word!r} from README.md; found {lines}"


# -- options -----------------------------------------------------------------------------------------------------------


def opening_options() -> dict[str, Any]:
    import streamlite

    return {name: parameter.default for name, parameter in inspect.signature(streamlite.open).parameters.items()}


def topic_settings() -> Mapping[str, Any]:
    from streamlite.config import TOPIC_SETTINGS

    return TOPIC_SETTINGS


def producer_options() -> Mapping[str, Any]:
    from streamlite.config import PRODUCER_OPTIONS

    return PRODUCER_OPTIONS


def consumer_options() -> Mapping[str, Any]:
    from streamlite.config import CONSUMER_OPTIONS

    return CONSUMER_OPTIONS


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("Opening a bus", opening_options),
        ("Topic settings", topic_settings),
        ("Producer options", producer_options),
        ("Consumer options", consumer_options),
    ],
)
def test_every_option_is_documented_with_its_default(section: str, options: Callable[[], Mapping[str, Any]]) -> None:
    documented = {code(row[0]): row for row in rows(sections(ROOT / "docs" / "configuration.md")[section])}
    present = options()
    assert sorted(documented) == sorted(present)
    for name, default in present.items():
        _, stated, kind, meaning, when = documented[name]
        if default is inspect.Parameter.empty:
            assert stated == "required", name
        else:
            assert ast.literal_eval(code(stated)) == default, f"{name} is {default!r} in the code, {stated} in the docs"
        assert kind in KINDS, name
        assert meaning, f"{name}: what does it do?"
        assert when, f"{name}: when is it to be changed?"


# -- the command -------------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """The commands of the command line, the whole itself as ''."""
    typer = pytest.importorskip("typer")
    from streamlite.cli.app import app

    whole = typer.main.get_command(app)
    return {"": whole, **whole.commands}


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("-")}


def test_every_command_and_option_is_documented() -> None:
    text = sections(ROOT / "docs" / "cli.md")
    by_command = {name.split()[1]: section for name, section in text.items() if name.startswith("streamlite ")}
    by_command[""] = prose(ROOT / "docs" / "cli.md").partition("\n## ")[0]
    present = commands()
    assert sorted(by_command) == sorted(present)
    for name, command in present.items():
        documented = {code(row[0]) for row in rows(by_command[name])}
        assert documented - {"--help"} == options_of(command) - {"--help"}, f"options of {name or 'streamlite'}"


def test_documented_defaults_of_options_are_the_commands() -> None:
    text = sections(ROOT / "docs" / "cli.md")
    for name, command in commands().items():
        if not name:
            continue
        [section] = [section for heading, section in text.items() if heading.split()[1:2] == [name]]
        documented = {code(row[0]): row[1] for row in rows(section)}
        for parameter in command.params:
            numbers = isinstance(parameter.default, int) and not isinstance(parameter.default, bool)
            if numbers and parameter.opts[0] in documented:
                assert documented[parameter.opts[0]] == str(parameter.default), (name, parameter.opts)


# -- links -------------------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor of a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)}


def links(page: Path) -> Iterator[str]:
    return (target for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in target)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=ids)
def test_links_resolve(page: Path) -> None:
    dead = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dead.append(link)
    assert not dead


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(PAGES[0])}
    assert not set(PAGES[1:]) - linked


def test_guarantees_name_tests_that_exist() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\((\.\./tests/[\w/]+\.py)\): ((?:`test_\w+`(?:, )?)+)", text)
    assert len(re.findall(r"`test_\w+`", text)) == sum(names.count("`test_") for _, names in named)
    missing = []
    for path, names in named:
        source = (ROOT / "docs" / path).resolve().read_text(encoding="utf-8")
        missing += [f"{path}: {name}" for name in re.findall(r"`(\w+)`", names) if f"def {name}(" not in source]
    assert named
    assert not missing
