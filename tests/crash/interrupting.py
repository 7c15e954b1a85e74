"""Raise an exception at the n-th moment at which CPython could run a signal handler, for any n.

The interpreter runs handlers between two instructions, but only after some: at the entry of a function, after a jump
backwards, and after a call of something written in C has returned, before its result is used
(`CHECK_EVAL_BREAKER` in `Python/ceval.c` of 3.11). Besides, a call that blocks in the kernel is cut off by the handler
itself. So a tracer that sees every instruction knows where a handler could have raised: after those instructions and
before the blocking calls, in streamlite's code and in the modules of the standard library that it calls into. Nothing
impossible is tried, as an interruption between the taking of a lock by `with` and the block's beginning.

Where an instruction and the next one lie in different `try` blocks, the tracer could raise only in the wrong one: such
a moment is left out. (It is `return call()` in a `try` or `with`; the moment after the block's end is the same but for
that.)
"""

from __future__ import annotations

import contextlib
import dis
import linecache
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import streamlite

SUPPORTED = sys.version_info[:2] == (3, 11)
REASON = "which instructions let a signal handler in is written down for CPython 3.11"

_ROOTS = (str(Path(streamlite.__file__).parent), threading.__file__, contextlib.__file__)
_ENTRY, _CALL, _CALL_EX, _BACKWARD = "RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD"
_BLOCKING = {
    "acquire", "sleep", "poll", "flock", "wait", "pwritev", "pread", "write", "read", "open", "ftruncate", "fsync",
    "_datasync", "rename", "join",
}  # fmt: skip


class Interrupted(BaseException):
    """What the handler raises."""


class Failed(Exception):
    """What it raises when it is one of those that use an ordinary exception."""


class Stuck(Exception):
    """A call did not come back in time."""


class _Code:
    """What is known of one function: its instructions, and in which `try` block each of them is."""

    def __init__(self, code: CodeType) -> None:
        self.names: dict[int, str] = {}
        self.regions: dict[int, int] = {}
        self.blocking: set[int] = set()
        entries = dis._parse_exception_table(code)  # type: ignore[attr-defined]
        for one in dis.get_instructions(code):
            name = one.opname
            if name == _ENTRY and one.arg is not None and one.arg >= 2:
                name = "RESUME_AWAIT"  # not looked at there
            self.names[one.offset] = name
            self.regions[one.offset] = next((e.target for e in entries if e.start <= one.offset < e.end), -1)
            if name == _CALL and _callee(code, one) in _BLOCKING:
                self.blocking.add(one.offset)


def _callee(code: CodeType, one: dis.Instruction) -> str:
    where = one.positions
    if where is None or where.lineno is None or where.col_offset is None:
        return ""
    text = linecache.getline(code.co_filename, where.lineno).encode()[where.col_offset :].decode()
    # The call's text begins with its callee: "self._lock.acquire(timeout=..." or "os.pread(".
    return text.partition("(")[0].rpartition(".")[2]


class _Frame:
    """A running function: the instruction before the present one, and what was called by it."""

    __slots__ = ("code", "entered", "last", "resumed")

    def __init__(self, code: _Code) -> None:
        self.code = code
        self.last = -1
        self.resumed = True
        self.entered = ""  # the Python function that the last instruction entered, as far as it did


class Interrupter:
    """Counts the moments of what runs in its block in this thread, and raises at those numbered in `at`."""

    def __init__(self, *at: int, error: type[BaseException] = Interrupted) -> None:
        self.at = set(at)
        self._error = error
        self.count = 0
        self.places: list[str] = []
        self._codes: dict[CodeType, _Code] = _codes
        self._frames: dict[FrameType, _Frame] = {}

    def __enter__(self) -> Interrupter:
        sys.settrace(self._called)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)
        sys.setprofile(None)
        self._frames.clear()

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        caller = self._frames.get(frame.f_back) if frame.f_back is not None else None
        if caller is not None:
            caller.entered = frame.f_code.co_name if not frame.f_code.co_flags & 0x20 else "generator"
        if not frame.f_code.co_filename.startswith(_ROOTS):
            return None
        known = self._frames.get(frame)
        if known is None:
            code = self._codes.get(frame.f_code)
            if code is None:
                code = self._codes[frame.f_code] = _Code(frame.f_code)
            known = self._frames[frame] = _Frame(code)
        known.resumed = True
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._traced

    def _traced(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "return":
            known = self._frames.get(frame)
            if known is not None and known.code.names.get(frame.f_lasti) != "YIELD_VALUE":
                del self._frames[frame]
        elif event == "opcode":
            self._at(frame, self._frames[frame])
        return self._traced

    def _at(self, frame: FrameType, known: _Frame) -> None:
        at, last, code = frame.f_lasti, known.last, known.code
        if code.names.get(at) == _ENTRY:
            return
        possible = known.resumed
        if not possible and last >= 0:
            name = code.names.get(last, "")
            possible = (
                (name == _CALL and known.entered in ("", "__init__", "__new__", "generator", "<lambda>"))
                or name == _CALL_EX
                or (_BACKWARD in name and "NO_INTERRUPT" not in name and at < last)
            )
            possible = possible and code.regions.get(last) == code.regions.get(at)
        known.last, known.resumed, known.entered = at, False, ""
        if possible:
            self._moment(frame, "")
        if at in code.blocking:
            self._moment(frame, " (blocking)")

    def _moment(self, frame: FrameType, what: str) -> None:
        self.count += 1
        if self.count in self.at:
            code = frame.f_code
            self.places.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}{what}")
            if max(self.at) > self.count:
                sys.setprofile(self._revive)
            raise self._error(self.places[-1])

    def _revive(self, frame: FrameType, event: str, arg: Any) -> None:
        """The interpreter traces no more once a tracer has raised: go on at the next call, in what cleans up."""
        sys.setprofile(None)
        if frame in self._frames:
            self._frames[frame].last = frame.f_lasti
            self._frames[frame].entered = "" if event == "c_call" else "?"
        sys.settrace(self._called)
        if event == "call":
            self._called(frame, event, arg)
        above: FrameType | None = frame
        while above is not None:
            if above in self._frames:
                above.f_trace = self._traced
            above = above.f_back


_codes: dict[CodeType, _Code] = {}


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """`Stuck` where the block takes longer: a real signal, which ends whatever call blocks."""

    def ring(number: int, frame: object) -> None:
        raise Stuck(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
