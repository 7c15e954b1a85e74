"""The other processes of `streamlite bench`: `python -m streamlite.cli.workers`, driven over its pipes.

A worker is told what to do in its first line of input, says when it is ready, begins when it gets the next line, and
says what it took. It ends when its input does: whoever started it is gone then, or has had enough. It is in a session
of its own, so that Ctrl-C reaches the one process that knows what to do about it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

import streamlite
from streamlite.cli.workloads import Load, Taken, receive, run
from streamlite.errors import StreamliteError

__all__ = ["RECEIVE", "Worker", "crew", "main"]

RECEIVE: Final = "receive"
"""What a worker does that is no workload of its own: be the other end of one."""


class _Order(msgspec.Struct):
    what: str
    load: Load


class _Word(msgspec.Struct):
    """What a worker says: `ready`, what it took, or why it could not."""

    ready: bool = False
    taken: Taken | None = None
    latencies: list[int] | None = None
    failure: str | None = None


class Worker:
    """One of them, as who started it sees it."""

    def __init__(self, what: str, load: Load) -> None:
        root = Path(streamlite.__file__).parents[1]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamlite.cli.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        self._tell(msgspec.json.encode(_Order(what, load)))

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise StreamliteError("another process of the benchmark ended; see what it said above") from None

    def _hear(self) -> _Word:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StreamliteError("another process of the benchmark ended; see what it said above")
        word = msgspec.json.decode(line, type=_Word)
        if word.failure is not None:
            raise StreamliteError(word.failure)
        return word

    def wait_ready(self) -> None:
        """Until it has prepared everything."""
        self._hear()

    def go(self) -> None:
        """Begin."""
        self._tell(b"")

    def taken(self) -> Taken:
        """What it took."""
        taken = self._hear().taken
        assert taken is not None
        return taken

    def hear(self) -> list[int]:
        """The latencies that a receiver saw."""
        return self._hear().latencies or []

    def end(self) -> None:
        """End it, whatever it does."""
        with self._process:  # closes the pipes and waits
            self._process.kill()


@contextmanager
def crew(what: str, loads: Sequence[Load]) -> Iterator[list[Worker]]:
    """A worker for each load, ready to begin, for as long as the block runs."""
    with ExitStack() as stack:
        workers = []
        for load in loads:
            worker = Worker(what, load)
            stack.callback(worker.end)
            workers.append(worker)
        for worker in workers:
            worker.wait_ready()
        yield workers


# -- the worker's side -------------------------------------------------------------------------------------------------


def _say(word: _Word) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Be a worker."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Order)
    told = threading.Event()

    def listen() -> None:
        while os.read(0, 1):  # not of a buffer, whose lock would be held when the process ends
            told.set()
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()

    def ready() -> None:
        _say(_Word(ready=True))
        told.wait()

    load = order.load
    try:
        with streamlite.open(load.directory, sync=load.sync) as bus:
            if order.what == RECEIVE:
                with bus.consumer(load.topic, start="latest") as consumer:
                    _say(_Word(ready=True))
                    _say(_Word(latencies=receive(consumer, load.messages)))
            else:
                _say(_Word(taken=run(order.what, bus, load, ready)))
    except (StreamliteError, OSError) as error:
        _say(_Word(failure=str(error)))


if __name__ == "__main__":
    main()
