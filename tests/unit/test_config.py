"""Names, settings and options: what is taken, and that all else is a declared error that says why."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from streamlite import config
from streamlite.config import (
    INT_MAX,
    TopicSettings,
    check_bool,
    check_choice,
    check_int,
    check_name,
    check_partitions,
    check_seconds,
    check_settings,
    consumer_options,
    producer_options,
)
from streamlite.errors import ConfigError, InvalidNameError

HUGE = 10**6000
"""Longer than Python agrees to write out in decimal."""
TOO_HUGE = pytest.param(HUGE, id="huge")
TOO_LOW = pytest.param(-HUGE, id="minus huge")


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Nowhere(tzinfo):
    """A time zone that does not know its offset: Python calls such a datetime naive."""

    def utcoffset(self, when: datetime | None) -> timedelta | None:
        return None


@pytest.mark.parametrize("name", ["a", "orders", "a.b-c_D9", "...", ".a", "_a", "a__", "x" * 249, "0"])
def test_a_valid_name_is_taken(name: str) -> None:
    assert check_name(name, "topic") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a b",
        "ä",
        "a\n",
        "\na",
        "a\0",
        "x" * 250,
        "../a",
        "a:b",
        "\U0001d7d8",
        "\ud800",
        "a\u2028b",
        "*",
    ],
)
def test_a_name_that_may_not_reach_the_disk_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError, match=r"topic name .* is not valid"):
        check_name(name, "topic")


@pytest.mark.parametrize("name", ["__a", "__", "__offsets"])
def test_internal_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidNameError, match="streamlite's own"):
        check_name(name, "topic")


@pytest.mark.parametrize("name", [None, 1, b"orders", ["orders"], TOO_HUGE, Unshowable()])
def test_a_name_is_text(name: object) -> None:
    with pytest.raises(InvalidNameError, match="a topic name is a str"):
        check_name(name, "topic")


def test_a_refusal_of_a_long_name_is_short() -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_name("x" * 100_000, "topic")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [0, 1, 7])
def test_an_int_within_bounds_is_taken(value: int) -> None:
    assert check_int("n", value, 0, 7) == value


@pytest.mark.parametrize("value", [-1, 8, TOO_HUGE, TOO_LOW, True, False, 1.0, "1", None, Unshowable()])
def test_what_is_no_int_within_bounds_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="n must be"):
        check_int("n", value, 0, 7)


def test_an_int_without_a_bound_fits_64_bits() -> None:
    assert check_int("n", INT_MAX, 0) == INT_MAX
    with pytest.raises(ConfigError, match="from 0 to 9223372036854775807"):
        check_int("n", INT_MAX + 1, 0)
    with pytest.raises(ConfigError, match="at least 1; found 0"):
        check_int("n", 0, 1)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0.0), (1, 1.0), (0.5, 0.5), (math.inf, math.inf), (10**400, 2.0**63)]
)
def test_seconds_are_floats(value: float, expected: float) -> None:
    found = check_seconds("max_block", value)
    assert found == expected
    assert isinstance(found, float)


@pytest.mark.parametrize("value", [-1, -0.1, math.nan, "1", True, None, timedelta(1), TOO_LOW])
def test_what_is_no_number_of_seconds_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="a number of seconds, at least 0"):
        check_seconds("max_block", value)


def test_optional_seconds_may_be_none() -> None:
    assert check_seconds("timeout", None, optional=True) is None


def test_a_choice_is_one_of_those_named() -> None:
    assert check_choice("cleanup", "compact", ("delete", "compact")) == "compact"
    for value in ("Compact", None, 1, ["compact"], Unshowable(), HUGE):
        with pytest.raises(ConfigError, match="one of 'delete', 'compact'; found"):
            check_choice("cleanup", value, ("delete", "compact"))


def test_a_bool_is_a_bool() -> None:
    assert check_bool("auto_commit", False) is False
    for value in (0, 1, None, "yes"):
        with pytest.raises(ConfigError, match="True or False"):
            check_bool("auto_commit", value)


def test_defaults_are_those_of_the_contract() -> None:
    assert config.TOPIC_SETTINGS == {
        "partitions": 1,
        "partitioner": "xxh3",
        "retention_ms": None,
        "retention_bytes": None,
        "cleanup": "delete",
        "delete_retention_ms": 86_400_000,
        "segment_bytes": 128 * 1024 * 1024,
        "segment_ms": 7 * 24 * 3600 * 1000,
        "compression": "none",
        "max_message_bytes": 16 * 1024 * 1024,
    }
    assert config.PRODUCER_OPTIONS == {
        "linger_ms": 1,
        "batch_bytes": 1024 * 1024,
        "buffer_bytes": 64 * 1024 * 1024,
        "max_block": 60.0,
        "on_delivery": None,
        "name": None,
    }
    assert config.CONSUMER_OPTIONS == {
        "auto_commit": True,
        "auto_commit_interval_ms": 100,
        "start": "earliest",
        "out_of_range": "raise",
        "isolation": "read_committed",
        "assignor": "sticky",
        "max_poll_interval_ms": 300_000,
        "member": None,
        "member_timeout_ms": 45_000,
        "max_poll_messages": 1_000,
        "on_assign": None,
        "on_revoke": None,
        "on_lost": None,
    }


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("partitioner", ["xxh3", "murmur2"], ["crc", None]),
        ("cleanup", ["delete", "compact", "compact,delete"], ["delete,compact", "", None]),
        ("compression", ["none", "lz4", "zstd"], ["gzip", None, 1]),
        ("retention_ms", [None, 0, 10], [-1, 1.5, True, INT_MAX + 1]),
        ("retention_bytes", [None, 0, 10], [-1, "1", INT_MAX + 1]),
        ("delete_retention_ms", [0, 10], [-1, None]),
        ("segment_bytes", [1, 1 << 40], [0, None, INT_MAX + 1]),
        ("segment_ms", [1], [0, None, HUGE]),
        ("max_message_bytes", [1, 1 << 30], [0, (1 << 30) + 1]),
    ],
)
def test_a_setting_is_checked(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert check_settings({name: value}) == {name: value}
        assert getattr(TopicSettings(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ConfigError, match=name):
            check_settings({name: value})


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown topic setting 'retention'; known ones: .*retention_ms"):
        check_settings({"retention": 1})


@pytest.mark.parametrize(
    ("cleanup", "compacted", "deleting"),
    [("delete", False, True), ("compact", True, False), ("compact,delete", True, True)],
)
def test_cleanup_says_what_is_done(cleanup: str, compacted: bool, deleting: bool) -> None:
    settings = TopicSettings(cleanup=cleanup)
    assert (settings.compacted, settings.deleting) == (compacted, deleting)


def test_a_topic_has_a_bounded_number_of_partitions() -> None:
    assert check_partitions(100_000) == 100_000
    for value in (0, 100_001, None, 2.0):
        with pytest.raises(ConfigError, match="partitions must be"):
            check_partitions(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("linger_ms", -1),
        ("linger_ms", 60_001),
        ("linger_ms", math.nan),
        ("linger_ms", True),
        ("linger_ms", "1"),
        ("batch_bytes", 0),
        ("batch_bytes", (1 << 30) + 1),
        ("buffer_bytes", 0),
        ("max_block", -1),
        ("max_block", None),
        ("on_delivery", "print"),
        ("name", 7),
        ("name", "a b"),
    ],
)
def test_a_bad_producer_option_is_refused(name: str, value: object) -> None:
    with pytest.raises((ConfigError, InvalidNameError), match=name if name != "name" else "producer name"):
        producer_options({name: value})


def test_good_producer_options_are_taken() -> None:
    found = producer_options({"linger_ms": 0.5, "on_delivery": print, "name": "p", "max_block": math.inf})
    assert (found.linger_ms, found.on_delivery, found.name, found.max_block) == (0.5, print, "p", math.inf)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auto_commit", 1),
        ("auto_commit_interval_ms", -1),
        ("start", "now"),
        ("start", None),
        ("start", datetime(2026, 1, 1)),  # noqa: DTZ001 - what is refused
        ("start", datetime(2026, 1, 1, tzinfo=Nowhere())),
        ("out_of_range", "skip"),
        ("isolation", "read_uncommitted"),
        ("assignor", "random"),
        ("max_poll_interval_ms", 0),
        ("member", "a/b"),
        ("member_timeout_ms", -1),
        ("max_poll_messages", 0),
        ("on_assign", 1),
        ("on_revoke", "f"),
        ("on_lost", []),
    ],
)
def test_a_bad_consumer_option_is_refused(name: str, value: object) -> None:
    with pytest.raises((ConfigError, InvalidNameError), match=name):
        consumer_options({name: value})


def test_good_consumer_options_are_taken() -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    found = consumer_options({"start": when, "member": "m-1", "on_lost": print, "auto_commit": False})
    assert (found.start, found.member, found.on_lost, found.auto_commit) == (when, "m-1", print, False)


@pytest.mark.parametrize("check", [producer_options, consumer_options])
def test_an_unknown_option_is_refused_with_the_known_ones(check: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown \w+ option 'lingerms'; known ones: "):
        check({"lingerms": 1})
