"""What may be sent: the checks of partition, timestamp and headers that `send` and `send_many` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from streamlite.errors import ConfigError, UnknownTopicError
from streamlite.registry import TopicState

__all__ = ["check_headers", "check_partition", "check_timestamp", "headers_bytes"]


def check_partition(state: TopicState, partition: Any) -> int:
    """`partition` when the topic has it: else `UnknownTopicError`, or `ConfigError` for what is no number."""
    if isinstance(partition, bool) or not isinstance(partition, int):
        raise ConfigError(f"partition must be an int; found {type(partition).__name__} ({partition!r:.60})")
    if not 0 <= partition < len(state.partitions):
        raise UnknownTopicError(
            f"topic {state.name!r} has partitions 0 to {len(state.partitions) - 1}; there is no partition {partition}"
        )
    return partition


def check_timestamp(timestamp: Any) -> int:
    """A given timestamp in ms since the epoch; `ConfigError` for what is neither an int nor an aware datetime."""
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise ConfigError("timestamp must be an int in ms or an aware datetime; found one without a time zone")
        return int(timestamp.timestamp() * 1000)
    if isinstance(timestamp, bool) or not isinstance(timestamp, int):
        raise ConfigError(f"timestamp must be an int in ms or an aware datetime; found {timestamp!r:.60}")
    if not -(1 << 62) < timestamp < 1 << 62:
        raise ConfigError(f"timestamp must be ms since the epoch; found {timestamp}")
    return timestamp


def check_headers(headers: Any) -> tuple[tuple[str, bytes | None], ...]:
    """Headers as pairs; `ConfigError` for anything but text to bytes or `None`."""
    if not headers:
        return ()
    try:
        pairs = (
            tuple(headers.items()) if isinstance(headers, Mapping) else tuple((name, value) for name, value in headers)
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"headers must be a dict or pairs of str to bytes or None; found {headers!r:.60}") from error
    for name, value in pairs:
        if not isinstance(name, str) or not (value is None or isinstance(value, bytes)):
            raise ConfigError(f"a header is a str to bytes or None; found {name!r:.60}: {value!r:.60}")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"a header's name must be text that UTF-8 can hold; found {name!r:.60}") from None
    return pairs


def headers_bytes(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """What headers count for in a message's size."""
    size = 0
    for name, data in headers:
        size += len(name.encode()) + len(data or b"")
    return size
