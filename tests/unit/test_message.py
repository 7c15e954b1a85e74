"""Messages and addresses: immutable, ordered, and invisible to the garbage collector."""

from __future__ import annotations

import gc
from itertools import repeat

import pytest

from streamlite.message import Columns, GroupDescription, GroupMember, Message, RecordMetadata, TopicPartition


def test_a_message_cannot_be_changed() -> None:
    message = Message("orders", 0, 7, 1000, b"k", b"v")
    with pytest.raises(AttributeError):
        message.value = b"other"  # type: ignore[misc]


def test_messages_are_built_by_a_map_over_columns() -> None:
    first, second = map(Message, repeat("orders"), repeat(3), range(5, 7), [1, 2], [b"a", None], [None, b"b"])
    assert first == Message(topic="orders", partition=3, offset=5, timestamp=1, key=b"a", value=None)
    assert second == Message(topic="orders", partition=3, offset=6, timestamp=2, key=None, value=b"b")
    assert first.headers == ()


def test_messages_cost_the_garbage_collector_nothing() -> None:
    assert not gc.is_tracked(Message("orders", 0, 0, 0, b"k", b"v", (("a", b"b"),)))


def test_a_message_of_plain_bytes_is_hashable() -> None:
    message = Message("orders", 0, 7, 1000, b"k", b"v", (("trace", b"1"), ("empty", None)))
    assert message in {Message("orders", 0, 7, 1000, b"k", b"v", (("trace", b"1"), ("empty", None)))}


def test_addresses_are_ordered_by_topic_then_number() -> None:
    addresses = [TopicPartition("b", 0), TopicPartition("a", 10), TopicPartition("a", 9)]
    assert sorted(addresses) == [TopicPartition("a", 9), TopicPartition("a", 10), TopicPartition("b", 0)]
    assert {TopicPartition("a", 1): 1}["a", 1] == 1  # type: ignore[index]


def test_fields_stand_in_the_order_of_the_contract() -> None:
    assert RecordMetadata._fields == ("topic", "partition", "offset", "timestamp")
    assert Columns._fields == ("topic", "partition", "offsets", "timestamps", "keys", "values", "headers")
    assert GroupMember._fields == ("id", "pid", "partitions")
    assert GroupDescription._fields == ("name", "members", "generation", "committed", "lag")
