"""streamlite: Kafka's model (topics, partitions, offsets, groups, replay) in a directory, without a broker.

`open` gives a `Bus`; a bus makes topics, producers and consumers. Everything public is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlite import errors
from streamlite.bus import Bus, open
from streamlite.consumer import Consumer
from streamlite.delivery import Delivery
from streamlite.errors import (
    BufferFullError,
    ClosedError,
    ConfigError,
    CorruptionError,
    FencedError,
    ForkedError,
    FormatError,
    GroupActiveError,
    InvalidNameError,
    LockTimeoutError,
    MessageTooLargeError,
    OffsetOutOfRangeError,
    SerdeError,
    StorageError,
    StreamliteError,
    TopicExistsError,
    TransactionError,
    UnknownGroupError,
    UnknownTopicError,
    UnsupportedError,
)
from streamlite.message import Columns, GroupDescription, GroupMember, Message, RecordMetadata, TopicPartition
from streamlite.producer import Producer
from streamlite.topic import Topic

if TYPE_CHECKING:
    from streamlite.aio import AsyncConsumer, AsyncProducer
    from streamlite.transaction import Transaction

__all__ = [
    "AsyncConsumer",
    "AsyncProducer",
    "BufferFullError",
    "Bus",
    "ClosedError",
    "Columns",
    "ConfigError",
    "Consumer",
    "CorruptionError",
    "Delivery",
    "FencedError",
    "ForkedError",
    "FormatError",
    "GroupActiveError",
    "GroupDescription",
    "GroupMember",
    "InvalidNameError",
    "LockTimeoutError",
    "Message",
    "MessageTooLargeError",
    "OffsetOutOfRangeError",
    "Producer",
    "RecordMetadata",
    "SerdeError",
    "StorageError",
    "StreamliteError",
    "Topic",
    "TopicExistsError",
    "TopicPartition",
    "Transaction",
    "TransactionError",
    "UnknownGroupError",
    "UnknownTopicError",
    "UnsupportedError",
    "errors",
    "open",
]


def __getattr__(name: str) -> object:
    """Load what few need when it is asked for."""
    if name == "Transaction":
        from streamlite.transaction import Transaction

        return Transaction
    if name in ("AsyncConsumer", "AsyncProducer"):
        from streamlite import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
