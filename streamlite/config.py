"""Names, settings and options: what may be asked for, and what each means when nothing is asked.

Everything that a caller can configure is declared here once, as plain data: the settings stored with a topic, the
options of a producer and of a consumer. What is unknown or out of range is a `ConfigError` before anything is created.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from streamlite.errors import ConfigError, InvalidNameError

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
INTERNAL_PREFIX: Final = "__"
PARTITIONS_MAX: Final = 100_000
INT_MAX: Final = (1 << 63) - 1
"""Of any number without a bound of its own: what a counter, a file position or another language can hold."""
MESSAGE_BYTES_LIMIT: Final = 1 << 30
"""No topic may allow more: a batch's length is an unsigned 32-bit field, and headers add to a message."""


def _shown(value: object) -> str:
    """The beginning of `value`, for a message. Python writes out no int of 5,000 digits, and any `repr` may fail."""
    try:
        return f"{value!r:.60}"
    except Exception:  # noqa: BLE001 - whatever is wrong with it, the message is about something else
        return f"one of type {type(value).__name__} that cannot be shown"


def check_name(name: object, what: str) -> str:
    """`name` when it may name a topic, group, producer or member; else `InvalidNameError` saying what is wrong."""
    if not isinstance(name, str):
        raise InvalidNameError(f"a {what} name is a str; found {type(name).__name__} ({_shown(name)})")
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidNameError(
            f"{what} name {name[:60]!r} is not valid: use 1 to 249 of A-Z a-z 0-9 . _ - (and neither '.' nor '..')"
        )
    if name.startswith(INTERNAL_PREFIX):
        raise InvalidNameError(f"{what} name {name!r} is not valid: names that begin with '__' are streamlite's own")
    return name


def check_int(what: str, value: object, least: int, most: int = INT_MAX) -> int:
    """`value` when it is an int within bounds, else `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{what} must be an int; found {type(value).__name__} ({_shown(value)})")
    if not least <= value <= most:
        bounds = f"at least {least}" if most == INT_MAX and value < least else f"from {least} to {most}"
        raise ConfigError(f"{what} must be {bounds}; found {_shown(value)}")
    return value


def check_seconds(what: str, value: object, *, optional: bool = False) -> float | None:
    """`value` as a float when it is a number of seconds, zero or more; `None` only where `optional`."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ConfigError(f"{what} must be a number of seconds, at least 0; found {_shown(value)}")
    return float(min(value, INT_MAX)) if isinstance(value, int) else value


def check_choice(what: str, value: object, choices: Iterable[str]) -> str:
    """`value` when it is one of `choices`, else `ConfigError` naming them."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{what} must be one of {', '.join(map(repr, known))}; found {_shown(value)}")
    return value


def check_bool(what: str, value: object) -> bool:
    """`value` when it is a bool, else `ConfigError`."""
    if not isinstance(value, bool):
        raise ConfigError(f"{what} must be True or False; found {_shown(value)}")
    return value


class TopicSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings stored with a topic; API.md, "topic setting"."""

    partitioner: str = "xxh3"
    retention_ms: int | None = None
    retention_bytes: int | None = None
    cleanup: str = "delete"
    delete_retention_ms: int = 86_400_000
    segment_bytes: int = 128 << 20
    segment_ms: int = 7 * 86_400_000
    compression: str = "none"
    max_message_bytes: int = 16 << 20

    @property
    def compacted(self) -> bool:
        """Whether only the last value of each key is kept."""
        return self.cleanup != "delete"

    @property
    def deleting(self) -> bool:
        """Whether age and size limits delete old segments."""
        return self.cleanup != "compact"


CLEANUPS: Final = ("delete", "compact", "compact,delete")
COMPRESSIONS: Final = ("none", "lz4", "zstd")
PARTITIONERS: Final = ("xxh3", "murmur2")
UNALTERABLE: Final = ("partitioner",)
"""Changing it under a topic would send a key's next messages to another partition than its earlier ones."""

TOPIC_SETTINGS: Final[dict[str, Any]] = {"partitions": 1} | {
    name: getattr(TopicSettings(), name) for name in TopicSettings.__struct_fields__
}


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The given topic settings (without `partitions`), each checked; an unknown or unusable one is a `ConfigError`."""
    return {name: _check_setting(name, value) for name, value in settings.items()}


def _check_setting(name: str, value: Any) -> Any:
    if name == "partitioner":
        return check_choice(name, value, PARTITIONERS)
    if name == "cleanup":
        return check_choice(name, value, CLEANUPS)
    if name == "compression":
        return check_choice(name, value, COMPRESSIONS)
    if name in ("retention_ms", "retention_bytes"):
        return None if value is None else check_int(name, value, 0)
    if name == "delete_retention_ms":
        return check_int(name, value, 0)
    if name in ("segment_bytes", "segment_ms"):
        return check_int(name, value, 1)
    if name == "max_message_bytes":
        return check_int(name, value, 1, MESSAGE_BYTES_LIMIT)
    raise ConfigError(f"unknown topic setting {name!r}; known ones: {', '.join(TOPIC_SETTINGS)}")


def check_partitions(value: object) -> int:
    """`value` when it is a possible count of partitions."""
    return check_int("partitions", value, 1, PARTITIONS_MAX)


class ProducerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `Bus.producer`."""

    linger_ms: float = 1
    batch_bytes: int = 1 << 20
    buffer_bytes: int = 64 << 20
    max_block: float = 60.0
    on_delivery: Any = None
    name: str | None = None


class ConsumerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `Bus.consumer`, its topics and group apart."""

    auto_commit: bool = True
    auto_commit_interval_ms: int = 100
    start: Any = "earliest"
    out_of_range: str = "raise"
    isolation: str = "read_committed"
    assignor: str = "sticky"
    max_poll_interval_ms: int = 300_000
    member: str | None = None
    member_timeout_ms: int = 45_000
    max_poll_messages: int = 1_000
    on_assign: Any = None
    on_revoke: Any = None
    on_lost: Any = None


PRODUCER_OPTIONS: Final[dict[str, Any]] = {n: getattr(ProducerOptions(), n) for n in ProducerOptions.__struct_fields__}
CONSUMER_OPTIONS: Final[dict[str, Any]] = {n: getattr(ConsumerOptions(), n) for n in ConsumerOptions.__struct_fields__}


def producer_options(options: Mapping[str, Any]) -> ProducerOptions:
    """Checked producer options; `ConfigError` for an unknown or unusable one."""
    _refuse_unknown("producer", options, PRODUCER_OPTIONS)
    found = ProducerOptions(**options)
    linger: object = found.linger_ms
    if isinstance(linger, bool) or not isinstance(linger, (int, float)) or not 0 <= linger <= 60_000:
        raise ConfigError(f"linger_ms must be a number from 0 to 60000; found {_shown(linger)}")
    check_int("batch_bytes", found.batch_bytes, 1, 1 << 30)
    check_int("buffer_bytes", found.buffer_bytes, 1)
    check_seconds("max_block", found.max_block)
    _check_callback("on_delivery", found.on_delivery)
    if found.name is not None:
        check_name(found.name, "producer")
    return found


def consumer_options(options: Mapping[str, Any]) -> ConsumerOptions:
    """Checked consumer options; `ConfigError` for an unknown or unusable one."""
    _refuse_unknown("consumer", options, CONSUMER_OPTIONS)
    found = ConsumerOptions(**options)
    check_bool("auto_commit", found.auto_commit)
    check_int("auto_commit_interval_ms", found.auto_commit_interval_ms, 0)
    if not isinstance(found.start, datetime):
        check_choice("start", found.start, ("earliest", "latest"))
    elif found.start.utcoffset() is None:
        raise ConfigError("start must be 'earliest', 'latest' or an aware datetime; found one without a time zone")
    check_choice("out_of_range", found.out_of_range, ("raise", "earliest", "latest"))
    check_choice("isolation", found.isolation, ("read_committed",))
    check_choice("assignor", found.assignor, ("sticky", "range", "roundrobin"))
    check_int("max_poll_interval_ms", found.max_poll_interval_ms, 1)
    check_int("member_timeout_ms", found.member_timeout_ms, 0)
    check_int("max_poll_messages", found.max_poll_messages, 1)
    if found.member is not None:
        check_name(found.member, "member")
    for name in ("on_assign", "on_revoke", "on_lost"):
        _check_callback(name, getattr(found, name))
    return found


def _refuse_unknown(what: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown {what} option {name!r}; known ones: {', '.join(known)}")


def _check_callback(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise ConfigError(f"{name} must be callable; found {_shown(value)}")
