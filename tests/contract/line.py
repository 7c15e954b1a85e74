"""Calls between the test's process and the one its producers run in, in both directions, one inside the other.

A thread of the test's process has a line of its own to a thread of the other, so that one that blocks there keeps no
other waiting. Who waits for an answer meanwhile serves calls that come the other way: a delivery's callback runs in the
test's process, in the thread that is waiting, and may send on from there.

What travels is pickled, by `multiprocessing.connection`: both processes are the test's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pickle import PicklingError
from typing import Any

Handler = Callable[..., Any]

_own = threading.local()


class Callback:
    """A function of the test's process."""

    def __init__(self, number: int) -> None:
        self.number = number


class TopicRef:
    """A `Topic` of a bus of the test's process, known to the other by its number."""

    def __init__(self, number: int) -> None:
        self.number = number


class Steps:
    """An iterator on its way."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items


class Line:
    """One end of a line. `handler` does what the other end asks for."""

    def __init__(self, connection: Connection[Any, Any], handler: Handler) -> None:
        self.broken = False
        self._connection = connection
        self._handler = handler

    @staticmethod
    def of_this_thread() -> Line | None:
        """The line that this thread calls on, or serves."""
        line: Line | None = getattr(_own, "line", None)
        return None if line is None or line.broken else line

    def take(self) -> None:
        """This thread's calls go over this line from now on."""
        _own.line = self

    def call(self, *request: Any) -> Any:
        """Have the other end do something; what it raises is raised here."""
        try:
            self._connection.send(("call", request))
            while True:
                kind, content = self._connection.recv()
                if kind == "call":
                    self._answer(content)
                    continue
                break
        except (TypeError, AttributeError, PicklingError):  # what cannot be pickled was not sent
            raise
        except BaseException:
            # Ended by a signal in the middle, or the other process is gone: the next answer would be the wrong one.
            self.broken = True
            self._connection.close()
            raise
        if kind == "raised":
            raise content
        return content

    def serve(self) -> None:
        """Do what the other end asks for until it hangs up."""
        self.take()
        while True:
            try:
                _, request = self._connection.recv()
            except (EOFError, OSError):
                return
            except Exception as error:  # noqa: BLE001 - what it sent means nothing here
                self._connection.send(("raised", error))
                continue
            self._answer(request)

    def _answer(self, request: tuple[Any, ...]) -> None:
        try:
            reply = "done", self._handler(*request)
        except Exception as error:  # noqa: BLE001 - it is the other end's
            reply = "raised", error
        try:
            self._connection.send(reply)
        except OSError:
            self.broken = True  # it hung up meanwhile
