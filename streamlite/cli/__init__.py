"""The `streamlite` command: the only face that talks to a terminal.

typer and rich come with the extra `cli` and are imported here only when the command runs, so that a program that embeds
streamlite never pays for them. An error of streamlite or of the operating system is one line on stderr and exit status
1; a traceback means a defect.
"""

from __future__ import annotations

import io
import sys
from typing import NoReturn

from streamlite.errors import StreamliteError

__all__ = ["main"]


def main() -> None:
    """Run the command on `sys.argv`."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        _fail(f'the command needs {error.name}, which is not installed: pip install "streamlite[cli]"')
    from streamlite.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a key may hold what the terminal's encoding cannot say
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="streamlite")
    except (StreamliteError, OSError) as error:
        _fail(str(error) or type(error).__name__)


def _fail(reason: str) -> NoReturn:
    print(f"streamlite: {' '.join(reason.split())}", file=sys.stderr)
    raise SystemExit(1)
