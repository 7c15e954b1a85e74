"""API.md: keys and values "of the topic's type": the handle brings it, the log holds bytes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamlite import Bus, errors

from .helpers import PATIENCE, drain, put, take, values


class Order(msgspec.Struct, frozen=True):
    """What an application sends."""

    id: int
    item: str
    price: float | None = None


ORDERS = [Order(1, "apple"), Order(2, "żółty ser", 2.5), Order(3, "")]


def test_what_was_sent_comes_back_as_it_was(bus: Bus) -> None:
    topic = bus.topic("orders", partitions=2, value=Order, key=str)
    for order in ORDERS:
        put(bus, topic, order, key=order.item)
    by_id = sorted(topic.read(), key=lambda message: message.value.id)
    assert [message.value for message in by_id] == ORDERS
    assert [message.key for message in by_id] == [order.item for order in ORDERS]
    with bus.consumer(topic) as consumer:
        assert sorted(values(drain(consumer)), key=lambda order: order.id) == ORDERS
    with bus.consumer(topic) as consumer:
        assert sorted(values(consumer.messages(timeout=1)), key=lambda order: order.id) == ORDERS


def test_send_many_takes_the_type_too(bus: Bus) -> None:
    topic = bus.topic("orders", value=Order, key=str)
    with bus.producer() as producer:
        producer.send_many(topic, ORDERS, keys=["a", None, "ż"]).result(timeout=PATIENCE)
    assert [(message.key, message.value) for message in topic.read()] == list(
        zip(["a", None, "ż"], ORDERS, strict=True)
    )


def test_create_topic_takes_types(bus: Bus) -> None:
    topic = bus.create_topic("orders", value=Order, key=str)
    put(bus, topic, ORDERS[0], key="k")
    assert [(message.key, message.value) for message in topic.read()] == [("k", ORDERS[0])]


def test_a_tombstone_has_no_type(bus: Bus) -> None:
    topic = bus.topic("orders", value=Order, key=str)
    put(bus, topic, None, key="k")
    put(bus, topic, ORDERS[0])
    assert [(message.key, message.value) for message in topic.read()] == [("k", None), (None, ORDERS[0])]


def test_by_name_everything_is_bytes(bus: Bus) -> None:
    put(bus, bus.topic("orders", value=Order, key=str), ORDERS[0], key="kö")
    raw = bus.topic("orders")
    (message,) = raw.read()
    assert isinstance(message.value, bytes)
    assert message.key == "kö".encode()
    with bus.consumer("orders") as consumer:
        assert values(drain(consumer)) == [message.value]
    put(bus, "orders", message.value, key=message.key)
    assert [(m.key, m.value) for m in bus.topic("orders", value=Order, key=str).read()] == [("kö", ORDERS[0])] * 2


def test_columns_decode_nothing(bus: Bus) -> None:
    topic = bus.topic("orders", value=Order, key=str)
    put(bus, topic, ORDERS[0], key="k")
    (raw,) = bus.topic("orders").read()
    (columns,) = topic.read_columns()
    assert (list(columns.keys), list(columns.values)) == ([b"k"], [raw.value])
    with bus.consumer(topic) as consumer:
        (columns,) = consumer.poll_columns(timeout=PATIENCE)
        assert (list(columns.keys), list(columns.values)) == ([b"k"], [raw.value])


def test_one_consumer_reads_topics_of_several_types(bus: Bus) -> None:
    orders = bus.topic("orders", value=Order)
    names = bus.topic("names", value=str)
    raw = bus.topic("raw")
    put(bus, orders, ORDERS[0])
    put(bus, names, "ż")
    put(bus, raw, "ż")
    with bus.consumer(orders, names, "raw") as consumer:
        found = {message.topic: message.value for message in take(consumer, 3)}
    assert found == {"orders": ORDERS[0], "names": "ż", "raw": "ż".encode()}
    with bus.consumer() as consumer:
        consumer.subscribe(orders)
        assert values(drain(consumer)) == [ORDERS[0]]


def test_a_typed_key_is_placed_as_the_bytes_it_becomes(bus: Bus) -> None:
    typed = bus.topic("orders", partitions=50, value=Order, key=str)
    raw = bus.topic("orders")
    for key in ("", "a", "żółć"):
        assert typed.partition_for(key) == raw.partition_for(key.encode())
        assert put(bus, typed, ORDERS[0], key=key)[0].partition == typed.partition_for(key)


@pytest.mark.parametrize("value", [5, 1j, ["x"], {"id": "one"}], ids=repr)
def test_what_does_not_fit_is_refused_at_once(bus: Bus, value: Any) -> None:
    topic = bus.topic("orders", value=Order, key=str)
    with bus.producer() as producer:
        with pytest.raises(errors.SerdeError):
            producer.send(topic, value, key="k")
        with pytest.raises(errors.SerdeError):
            producer.send(topic, ORDERS[0], key=object())
        with pytest.raises(errors.SerdeError):
            producer.send_many(topic, [ORDERS[0], value], keys=["a", "b"])
    assert list(topic.read()) == []


@pytest.mark.parametrize("value", [b"", b"not an order", b"\xff\xfe", b'{"id": "x", "item": 5}'], ids=repr)
def test_what_does_not_decode_raises_when_it_is_read(bus: Bus, value: bytes) -> None:
    topic = bus.topic("orders", value=Order, key=str)
    put(bus, "orders", value)
    with pytest.raises(errors.SerdeError):
        list(topic.read())
    with bus.consumer(topic) as consumer, pytest.raises(errors.SerdeError):
        consumer.poll(timeout=PATIENCE)
    with bus.consumer(topic) as consumer, pytest.raises(errors.SerdeError):
        next(iter(consumer))
    assert values(bus.topic("orders").read()) == [value]


def test_a_key_that_does_not_decode_raises_too(bus: Bus) -> None:
    topic = bus.topic("orders", key=str)
    put(bus, "orders", b"x", key=b"\xff\xfe")
    with pytest.raises(errors.SerdeError):
        list(topic.read())


def test_what_does_not_decode_is_not_lost(bus: Bus) -> None:
    topic = bus.topic("orders", value=Order)
    put(bus, topic, ORDERS[0])
    put(bus, "orders", b"not an order")
    put(bus, topic, ORDERS[1])
    with bus.consumer(topic, group="g") as consumer, pytest.raises(errors.SerdeError):
        for _ in consumer.messages(timeout=1):
            pass
    with bus.consumer("orders", group="g") as consumer:
        assert b"not an order" in values(drain(consumer))


def test_messages_of_a_type_are_committed_like_others(bus: Bus) -> None:
    topic = bus.topic("orders", value=Order)
    put(bus, topic, *ORDERS)
    with bus.consumer(topic, group="g", auto_commit=False) as consumer:
        consumer.commit(take(consumer, 3)[1])
    with bus.consumer(topic, group="g") as consumer:
        assert values(drain(consumer)) == ORDERS[2:]
