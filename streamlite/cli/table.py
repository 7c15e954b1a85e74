"""Tables as all commands print them: for eyes in a terminal, a line a row for `grep` and `cut` elsewhere."""

from __future__ import annotations

import sys
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["new_table", "print_table"]

UNFOLDED: Final = 10_000
"""Columns of a table that nobody looks at in a terminal: a line of it stays a line for `grep` and `cut`."""


def new_table(*columns: str) -> Table:
    """An empty table; a column whose name ends in `>` holds numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print it to standard output."""
    width = None if sys.stdout.isatty() else UNFOLDED
    Console(highlight=False, width=width).print(table)
