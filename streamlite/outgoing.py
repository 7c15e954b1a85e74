"""What may be sent: the checks of partition, timestamp and headers that `send` and `send_many` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from streamlite.errors import ConfigError, MessageTooLargeError, UnknownTopicError
from streamlite.registry import TopicState
from streamlite.serde import Serde, encode_raw

__all__ = ["check_headers", "check_message", "check_partition", "check_timestamp", "headers_bytes"]


def check_message(
    state: TopicState,
    bytes_max: int,
    types: tuple[Serde | None, Serde | None],
    value: Any,
    key: Any,
    partition: int | None,
    timestamp: Any,
    headers: Any,
) -> tuple[int | None, tuple[Any, ...], int]:
    """One message for a topic, checked: partition where one was given, the item to stage, its payload in bytes.

    `types`: of key and value. `SerdeError`, `ConfigError`, `UnknownTopicError`, `MessageTooLargeError`.
    """
    key_type, value_type = types
    data = encode_raw(value, "value") if value_type is None else value_type.encode(value)
    key_data = encode_raw(key, "key") if key_type is None else key_type.encode(key)
    if partition is not None:
        partition = check_partition(state, partition)
    moment = None if timestamp is None else check_timestamp(timestamp)
    pairs = check_headers(headers)
    if key_data is None and state.settings.compacted:
        raise ConfigError(f"topic {state.name!r} is compacted: it takes no message without a key")
    size = len(data or b"") + len(key_data or b"") + headers_bytes(pairs)
    if size > bytes_max:
        raise MessageTooLargeError(
            f"a message of {size:,} bytes (key, value and headers) to {state.name!r}, which takes {bytes_max:,}: send "
            "less, or raise its max_message_bytes"
        )
    plain = moment is None and not pairs
    return partition, (data, key_data) if plain else (data, key_data, moment, pairs), size


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
