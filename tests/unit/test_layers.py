"""The shape of the package: layers that import downwards only, one door to the operating system, short functions.

`LAYERS` is the table of docs/architecture.md. A unit is a module of `streamlite`, or one of its sub-packages as a
whole; every unit stands in the table once. A unit imports from its own layer or from lower ones, wherever in the module
the import stands: an import inside a function is an import. The exceptions are named in `SEAMS`, with the reason. What
stands under `if TYPE_CHECKING:` is no import at run time and may point anywhere.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "streamlite"
ROOT = Path(__file__).parents[2] / PACKAGE

LAYERS = {
    "L0 pure": "errors message config format batch compression serde partitioner assignor group_state",
    "L1 storage": "files beginning clock segment index log recovery counters handles locks marks",
    "L2 engine": """
        commit compaction context device engine group groups ledger maintenance meta numbering offsets outgoing
        partition reader readonly registry settle syncer ticker wakeup worker
    """,
    "L3 clients": """
        producer consumer aio assignment bulk delivery direct fetcher handout named outbox routes staging
        subscription transaction
    """,
    "L4 façade": "bus topic verify repair __init__",
    "L5 faces": "cli dbapi testing streams kafka gateway web",
}
"""Lowest first. `__init__` is the package itself: only a face may say `import streamlite`."""

PLANNED = frozenset({"gateway", "index", "kafka", "streams", "web"})
"""In the table and not there yet; whoever writes one takes it out here."""

SEAMS: Mapping[tuple[str, str], str] = {}
"""(importing unit, imported unit): why this one import may point upwards. For imports inside functions only."""

FACES = "L5 faces"
PURE = "L0 pure"

SYSTEM = frozenset(
    {"fcntl", "io", "mmap", "os", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile"}
)
"""What reaches the operating system: only `files` and the command may import it."""

HARMLESS = frozenset({"PathLike", "fspath", "strerror"})
"""What `os` has that asks the operating system nothing: with these alone, `import os` is allowed anywhere."""

DOORS = frozenset({"files", "cli"})

IMPURE = SYSTEM | {
    "asyncio",
    "concurrent",
    "multiprocessing",
    "pathlib",
    "queue",
    "random",
    "sched",
    "threading",
    "time",
}
"""No I/O, clock, chance or thread in the lowest layer."""

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
SHORT_LINES = 30
SHORT_SHARE = 0.9


class Import(NamedTuple):
    """One imported module, and whether the statement stands inside a function."""

    module: str
    line: int
    lazy: bool


class Module(NamedTuple):
    """One file of the package."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def unit(self) -> str:
        return unit_of(self.name)


def unit_of(module: str) -> str:
    """The unit that a dotted module of the package belongs to."""
    _, _, rest = module.partition(".")
    return rest.partition(".")[0] or "__init__"


class Imports(ast.NodeVisitor):
    """Collects the imports of a module that may run."""

    def __init__(self, module: str, is_package: bool) -> None:
        self.module = module
        self.base = module if is_package else module.rpartition(".")[0]
        self.depth = 0
        self.found: list[Import] = []

    def visit_If(self, node: ast.If) -> None:
        test = node.test
        name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
        for child in node.orelse if name == "TYPE_CHECKING" else [*node.body, *node.orelse]:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815
    visit_Lambda = visit_FunctionDef  # noqa: N815

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = node.module or ""
        if node.level:
            parts = self.base.split(".")
            source = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [source])])
        for alias in node.names:
            # `from package import module` is an import of the module, not of what the package holds.
            member = f"{source}.{alias.name}"
            self.add(member if member in module_paths() else source, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if (
            called in ("import_module", "__import__")
            and isinstance(first, ast.Constant)
            and isinstance(first.value, str)
        ):
            self.add(first.value, node.lineno)
        self.generic_visit(node)

    def add(self, module: str, line: int) -> None:
        self.found.append(Import(module, line, self.depth > 0))


@cache
def module_paths() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package, parsed."""
    found = []
    for name, path in module_paths().items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        collector = Imports(name, path.name == "__init__.py")
        collector.visit(tree)
        found.append(Module(name, path, tree, tuple(collector.found)))
    return tuple(found)


def ranks() -> dict[str, int]:
    """The layer of every unit, as a number."""
    return {unit: rank for rank, units in enumerate(LAYERS.values()) for unit in units.split()}


def layer(name: str) -> frozenset[str]:
    """The units of a layer."""
    return frozenset(LAYERS[name].split())


def own(module: Module) -> Iterator[Import]:
    """The imports from within the package."""
    return (found for found in module.imports if found.module.split(".")[0] == PACKAGE)


def outside(module: Module) -> Iterator[tuple[str, int]]:
    """The top-level names of the imports from elsewhere, with their lines."""
    for found in module.imports:
        top = found.module.split(".")[0]
        if top != PACKAGE:
            yield top, found.line


def functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Every function with its number of lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, (node.end_lineno or node.lineno) - node.lineno + 1


def complain(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_every_unit_stands_in_the_table_once() -> None:
    listed = [unit for units in LAYERS.values() for unit in units.split()]
    there = {module.unit for module in modules()}
    complain(
        [f"{unit!r} stands in two layers" for unit in sorted({unit for unit in listed if listed.count(unit) > 1})]
        + [f"{PACKAGE}.{unit} stands in no layer: add it to LAYERS" for unit in sorted(there - set(listed))]
        + [f"{unit!r} is in the table, not in PLANNED, and not there" for unit in sorted(set(listed) - there - PLANNED)]
        + [f"{unit!r} is PLANNED, but it is there" for unit in sorted(there & PLANNED)]
    )


def test_no_import_points_upwards() -> None:
    rank = ranks()
    problems = []
    for module in modules():
        for found in own(module):
            unit, target = module.unit, unit_of(found.module)
            known = unit in rank and target in rank  # another test tells those that are not
            if known and rank[target] > rank[unit] and not (found.lazy and (unit, target) in SEAMS):
                problems.append(f"{module.path}:{found.line}: {unit} imports {target}, which lies above it")
    complain(problems)


def test_every_seam_is_used() -> None:
    used = {(module.unit, unit_of(found.module)) for module in modules() for found in own(module) if found.lazy}
    complain([f"no import needs the seam {seam}" for seam in SEAMS if seam not in used])


def test_faces_do_not_import_each_other() -> None:
    faces = layer(FACES)
    problems = []
    for module in modules():
        for found in own(module):
            target = unit_of(found.module)
            if module.unit in faces and target in faces - {module.unit}:
                problems.append(f"{module.path}:{found.line}: {module.unit} imports {target}; faces stand alone")
    complain(problems)


def test_imports_have_no_cycle() -> None:
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for module in modules():
        seams = {target for unit, target in SEAMS if unit == module.unit}
        needed = {found.module for found in own(module) if not (found.lazy and unit_of(found.module) in seams)}
        sorter.add(module.name, *needed - {module.name})
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(f"an import cycle: {' <- '.join(error.args[1])}", pytrace=False)


def test_only_the_doors_reach_the_operating_system() -> None:
    problems = []
    for module in modules():
        if module.unit in DOORS:
            continue
        allowed = {"os"} if used(module.tree, "os") <= HARMLESS else set()
        problems += [
            f"{module.path}:{line}: imports {top}; only {' and '.join(sorted(DOORS))} reach the operating system"
            for top, line in outside(module)
            if top in SYSTEM - allowed
        ]
        problems += [f"{module.path}:{line}: opens a file by itself" for line in opened(module.tree)]
    complain(problems)


def used(tree: ast.Module, name: str) -> set[str]:
    """The attributes that a module uses of the module imported under `name`; `*` for any other import of it."""
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == name
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == name:
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.Import) and any(alias.name == name and alias.asname for alias in node.names):
            found.add("*")
    return found


def opened(tree: ast.Module) -> Iterator[int]:
    """The lines that call the builtin `open`, or a `Path` method that opens a file."""
    methods = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "mkdir", "touch"}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == "open" and "open" not in defined:
            yield node.lineno
        if isinstance(function, ast.Attribute) and function.attr in methods:
            called = function.value
            if isinstance(called, ast.Call) and getattr(called.func, "id", "") == "Path":
                yield node.lineno


def test_the_lowest_layer_is_pure() -> None:
    pure = layer(PURE)
    complain(
        [
            f"{module.path}:{line}: imports {top}; {PURE} has no I/O, clock, chance or thread"
            for module in modules()
            if module.unit in pure
            for top, line in outside(module)
            if top in IMPURE
        ]
    )


def test_no_module_needs_what_is_not_declared() -> None:
    """Outside the faces: the standard library, the three dependencies, and what `compression` loads on demand."""
    known = sys.stdlib_module_names | {"msgspec", "sortedcontainers", "xxhash"}
    allowed = {"cli": {"matplotlib", "rich", "typer"}, "testing": {"pytest"}, "compression": {"lz4", "zstandard"}}
    complain(
        [
            f"{module.path}:{line}: imports {top}, which is no dependency"
            for module in modules()
            for top, line in outside(module)
            if top not in known | allowed.get(module.unit, set())
        ]
    )


def test_functions_are_short() -> None:
    sizes = [(size, module, node) for module in modules() for node, size in functions(module.tree)]
    complain(
        [
            f"{module.path}:{node.lineno}: {node.name} has {size} lines, at most {FUNCTION_LINES_MAX} are allowed"
            for size, module, node in sizes
            if size > FUNCTION_LINES_MAX
        ]
    )
    short = sum(size <= SHORT_LINES for size, _, _ in sizes)
    assert short / len(sizes) >= SHORT_SHARE, f"{short} of {len(sizes)} functions have at most {SHORT_LINES} lines"


def test_modules_are_short() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in module_paths().values()}
    complain(
        [f"{path}: {size} lines, at most {MODULE_LINES_MAX}" for path, size in sizes.items() if size > MODULE_LINES_MAX]
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import streamlite.files.local", [("streamlite.files.local", False)]),
        ("from streamlite.files import local", [("streamlite.files.local", False)]),
        ("from streamlite.files import File", [("streamlite.files", False)]),
        ("from streamlite import errors, open", [("streamlite.errors", False), ("streamlite", False)]),
        ("from .errors import ConfigError", [("streamlite.errors", False)]),
        ("from . import errors", [("streamlite.errors", False)]),
        ("def f():\n    import streamlite.errors", [("streamlite.errors", True)]),
        (
            "import importlib\nimportlib.import_module('streamlite.log')",
            [("importlib", False), ("streamlite.log", False)],
        ),
        ("if TYPE_CHECKING:\n    import streamlite.bus", []),
        ("if typing.TYPE_CHECKING:\n    pass\nelse:\n    import io", [("io", False)]),
        ("try:\n    import fcntl\nexcept ImportError:\n    import msvcrt", [("fcntl", False), ("msvcrt", False)]),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, expected: list[tuple[str, bool]]) -> None:
    collector = Imports("streamlite.segment", is_package=False)
    collector.visit(ast.parse(source))
    assert [(found.module, found.lazy) for found in collector.found] == expected
