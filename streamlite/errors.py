"""Everything that streamlite raises: one hierarchy, split by what a caller can do about it.

Each message says what was asked, what was found, and what to do. Operating-system errors become `StorageError` at the
files seam; bytes that make no sense become `CorruptionError` or `FormatError`, never an exception of a parser.
All of them survive pickling with their attributes, so that they cross process boundaries whole.
"""

from __future__ import annotations

import builtins
from typing import Any

__all__ = [
    "BufferFullError",
    "ClosedError",
    "ConfigError",
    "CorruptionError",
    "FencedError",
    "ForkedError",
    "FormatError",
    "GroupActiveError",
    "InvalidNameError",
    "LockTimeoutError",
    "MessageTooLargeError",
    "OffsetOutOfRangeError",
    "SerdeError",
    "StorageError",
    "StreamliteError",
    "TimeoutError",
    "TopicExistsError",
    "TransactionError",
    "UnknownGroupError",
    "UnknownTopicError",
    "UnsupportedError",
]


class StreamliteError(Exception):
    """The root of everything streamlite raises."""


class ConfigError(StreamliteError, ValueError):
    """A call, an option or a setting that cannot mean anything here: change the call."""


class InvalidNameError(StreamliteError, ValueError):
    """A name that may not reach the disk; nothing was created."""


class UnknownTopicError(StreamliteError):
    """No such topic or partition, or one deleted (and perhaps created anew) under a handle."""


class TopicExistsError(StreamliteError):
    """`create_topic` found the name taken."""


class UnknownGroupError(StreamliteError):
    """No such consumer group."""


class GroupActiveError(StreamliteError):
    """The group has live members; close them first."""


class UnsupportedError(StreamliteError):
    """This backend, build or system cannot do that."""


class FormatError(StreamliteError):
    """`open` refuses the directory: not a bus, a newer format, unsafe owner or mode, a network file system."""


class SerdeError(StreamliteError, ValueError):
    """A key or value that does not fit its type, on the way in or out."""


class MessageTooLargeError(StreamliteError):
    """A message above the topic's `max_message_bytes`."""


class TimeoutError(StreamliteError, builtins.TimeoutError):
    """What was waited for did not come in time; nothing is lost, wait again."""


class BufferFullError(TimeoutError):
    """The producer's buffer stayed full for `max_block`; the message was not taken."""


class LockTimeoutError(TimeoutError):
    """Another holder kept a lock for all of `lock_timeout`; nothing of the call was done."""


class ClosedError(StreamliteError):
    """The handle, or the bus under it, is closed."""


class OffsetOutOfRangeError(StreamliteError):
    """The position is before the log's beginning or after its end."""


class FencedError(StreamliteError):
    """This member or named producer was replaced; what it tried was not done."""


class TransactionError(StreamliteError):
    """A call that a transaction does not allow, or one that ended without a commit."""


class ForkedError(StreamliteError):
    """The handle was opened before a fork; open the bus again in the child."""


class StorageError(StreamliteError):
    """The operating system said no. `errno` is its number where there is one, `path` the file."""

    def __init__(self, message: str, *, errno: int | None = None, path: str | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class CorruptionError(StreamliteError):
    """Bytes that were safely stored are not what was written: `file`, and the `position` in it."""

    def __init__(self, message: str, *, file: str, position: int) -> None:
        super().__init__(message)
        self.file = file
        self.position = position

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def not_picklable(what: str) -> UnsupportedError:
    """What pickling a handle raises, for instance in passing it to a process that is spawned."""
    return UnsupportedError(f"a {what} belongs to the process that opened it: open the bus again in the other process")


def _rebuild(kind: type[StreamliteError], args: tuple[Any, ...], attributes: dict[str, Any]) -> StreamliteError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error
