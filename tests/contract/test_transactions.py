# ruff: noqa: PT012 - what raises is the end of a block
"""Transactions: messages to any topics and offsets of groups, visible together or never."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest

import streamlite
from streamlite import Bus, Consumer, Delivery, Producer, TopicPartition, errors
from tests.contract.helpers import (
    PATIENCE,
    T0,
    beside,
    by_partition,
    committed,
    drain,
    numbers,
    pairs,
    put,
    take,
    tps,
    values,
    wait_until,
)

A, B = TopicPartition("a", 0), TopicPartition("b", 0)


class Stop(Exception):
    """What a block raises in these tests."""


@pytest.fixture
def producer(bus: Bus) -> Iterator[Producer]:
    """A producer, with topics `a` (1 partition), `b` (3) to send to and `in` (2) to read from."""
    bus.create_topic("a")
    bus.create_topic("b", partitions=3)
    bus.create_topic("in", partitions=2)
    with bus.producer() as made:
        yield made


def reader(bus: Bus, *topics: str, group: str = "g", **options: Any) -> Consumer:
    """A consumer that a transaction takes."""
    return bus.consumer(*(topics or ("in",)), group=group, auto_commit=False, **options)


def held(bus: Bus, topic: str) -> list[Any]:
    return values(bus.topic(topic).read())


def ends(bus: Bus, topic: str) -> int:
    return sum(bus.topic(topic).end_offsets().values())


# -- all together ------------------------------------------------------------------------------------------------------


def test_everything_is_visible_once_the_block_is_left_and_nothing_before(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        for number in range(3):
            tx.send("a", b"a%d" % number)
            tx.send("b", b"b%d" % number, partition=number)
        assert (held(bus, "a"), held(bus, "b"), ends(bus, "a"), ends(bus, "b")) == ([], [], 0, 0)
    assert held(bus, "a") == [b"a0", b"a1", b"a2"]
    assert held(bus, "b") == [b"b0", b"b1", b"b2"]


@pytest.mark.needs("shared")
def test_another_bus_sees_it_too_once_the_block_is_left(open_bus: Callable[..., Bus], producer: Producer) -> None:
    other = open_bus()
    with other.consumer("a", "b") as consumer:
        with producer.transaction() as tx:
            tx.send("a", b"1")
            tx.send("b", b"2", partition=2)
            assert consumer.poll(timeout=1) == []
            assert ends(other, "a") + ends(other, "b") == 0
        assert sorted(values(take(consumer, 2))) == [b"1", b"2"]


@pytest.mark.needs("durable")
def test_it_is_there_when_the_bus_is_opened_again(open_bus: Callable[..., Bus]) -> None:
    with open_bus() as bus:
        bus.create_topic("a")
        bus.create_topic("b")
        with bus.producer() as producer, producer.transaction() as tx:
            tx.send("a", b"1")
            tx.send("b", b"2")
    with open_bus() as bus:
        assert held(bus, "a") + held(bus, "b") == [b"1", b"2"]


def test_a_consumer_that_waits_gets_it(bus: Bus, producer: Producer) -> None:
    bus.create_topic("c")
    with bus.consumer("a") as consumer:
        with producer.transaction() as tx:
            tx.send("a", b"1")
            tx.send("c", b"1")
        assert values(consumer.poll(timeout=PATIENCE)) == [b"1"]


def test_deliveries_are_settled_when_the_block_is_left(bus: Bus, producer: Producer) -> None:
    put(bus, "a", b"before")
    with producer.transaction() as tx:
        first = tx.send("a", b"1", timestamp=T0 + 5)
        second = tx.send("a", b"2", timestamp=T0 + 6)
        many = tx.send_many("b", numbers(4), partition=1)
        assert not any(delivery.done() for delivery in (first, second, many))
    assert all(delivery.done() for delivery in (first, second, many))
    assert tuple(first.result()) == ("a", 0, 1, T0 + 5)
    assert tuple(second.result()) == ("a", 0, 2, T0 + 6)
    assert [(found.partition, found.offset) for found in many.result()] == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_messages_arrive_as_they_were_sent(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        tx.send("a", "täxt", key="k", timestamp=T0 + 1, headers={"h": b"1", "n": None})
        tx.send("a", None, key=b"k", timestamp=datetime(2030, 1, 1, tzinfo=UTC))
        tx.send("a", b"plain")
        tx.send_many("a", [b"x", "y"], keys=[None, "k2"], timestamps=[7, 8], headers=[{"i": b"2"}, None])
    first, second, third, fourth, fifth = bus.topic("a").read()
    assert (first.key, first.value, first.timestamp) == (b"k", "täxt".encode(), T0 + 1)
    assert pairs(first) == [("h", b"1"), ("n", None)]
    assert (second.key, second.value, second.timestamp) == (b"k", None, 1_893_456_000_000)
    assert (third.key, third.value, pairs(third)) == (None, b"plain", [])
    assert (fourth.key, fourth.value, fourth.timestamp, pairs(fourth)) == (None, b"x", 7, [("i", b"2")])
    assert (fifth.key, fifth.value, fifth.timestamp, pairs(fifth)) == (b"k2", b"y", 8, [])


def test_a_topics_types_are_applied(bus: Bus) -> None:
    typed = bus.topic("typed", value=dict, key=int)
    with bus.producer() as producer:
        with producer.transaction() as tx:
            tx.send(typed, {"id": 1}, key=5)
            tx.send_many(typed, [{"id": 2}], keys=[6])
            with pytest.raises(errors.SerdeError):
                tx.send(typed, object(), key=5)
        assert [(message.key, message.value) for message in typed.read()] == [(5, {"id": 1}), (6, {"id": 2})]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_topics_compression_is_applied(bus: Bus, compression: str) -> None:
    bus.create_topic("small", compression=compression)
    with bus.producer() as producer, producer.transaction() as tx:
        tx.send_many("small", [b"x" * 1000] * 50)
        tx.send("small", b"y" * 1000)
    assert held(bus, "small") == [b"x" * 1000] * 50 + [b"y" * 1000]


def test_keys_go_where_they_always_go(bus: Bus, producer: Producer) -> None:
    topic = bus.topic("b")
    with producer.transaction() as tx:
        sent = {key: tx.send("b", b"v", key=key) for key in ("alice", "bob", "carol", "dave")}
    for key, delivery in sent.items():
        assert delivery.result().partition == topic.partition_for(key)


def test_messages_without_a_key_stay_together_and_move_on(bus: Bus, producer: Producer) -> None:
    places = []
    for _ in range(6):
        with producer.transaction() as tx:
            sent = [tx.send("b", b"v") for _ in range(5)]
        found = {delivery.result().partition for delivery in sent}
        assert len(found) == 1
        places += found
    assert set(places) == {0, 1, 2}


def test_columns_and_single_messages_keep_their_order(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        tx.send("a", b"0", key="k")
        tx.send_many("a", [b"1", b"2"], keys=["k", "k"])
        tx.send("a", b"3", key="k")
        tx.send_many("a", [b"4"], keys=["k"])
        tx.send("a", b"5", key="k")
    assert held(bus, "a") == numbers(6)


def test_many_batches_of_one_transaction_keep_their_order(bus: Bus) -> None:
    bus.create_topic("a", segment_bytes=2_000)
    with bus.producer(batch_bytes=1_000) as producer:
        put(bus, "a", *numbers(20))
        with producer.transaction() as tx:
            for value in numbers(300, 20):
                tx.send("a", value, key="k")
        put(bus, "a", *numbers(20, 320))
    assert held(bus, "a") == numbers(340)
    assert values(bus.topic("a").read(partition=0, start=137, stop=139)) == numbers(2, 137)


def test_what_was_sent_before_the_block_comes_first(bus: Bus) -> None:
    bus.create_topic("a")
    with bus.producer(linger_ms=10_000) as producer:
        producer.send("a", b"wakes the lane up", key="k")
        sent = [producer.send("a", value, key="k") for value in numbers(3)]
        with producer.transaction() as tx:
            inside = tx.send("a", b"inside", key="k")
        after = producer.send("a", b"after", key="k")
        assert inside.result().offset > max(delivery.result(timeout=PATIENCE).offset for delivery in sent)
        assert after.result(timeout=PATIENCE).offset > inside.result().offset
    assert held(bus, "a") == [b"wakes the lane up", *numbers(3), b"inside", b"after"]


def test_a_failure_of_what_was_sent_before_is_told_by_its_own_delivery(bus: Bus) -> None:
    bus.create_topic("a")
    bus.create_topic("gone")
    with bus.producer(linger_ms=10_000) as producer:
        producer.send("gone", b"wakes the lane up").result(timeout=PATIENCE)
        lost = producer.send("gone", b"never")
        producer.send("gone", b"never")
        with producer.transaction() as tx:
            bus.delete_topic("gone")
            tx.send("a", b"1")
        assert lost.done()
        lost.exception()
        with pytest.raises(errors.UnknownTopicError):
            producer.send("gone", b"never")
        assert held(bus, "a") == [b"1"]


def test_an_empty_transaction_writes_nothing(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        empty = tx.send_many("a", [])
    assert list(empty.result()) == []
    assert ends(bus, "a") == 0


def test_a_topic_created_inside_can_be_sent_to(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        bus.create_topic("new")
        tx.send("new", b"1")
        tx.send("a", b"1")
    assert held(bus, "new") == held(bus, "a") == [b"1"]


def test_partitions_added_inside_can_be_sent_to(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        tx.send("a", b"0", partition=0)
        bus.topic("a").increase_partitions(2)
        tx.send("a", b"1", partition=1)
    assert by_partition(bus.topic("a").read()) == {0: [b"0"], 1: [b"1"]}


def test_one_transaction_follows_another(bus: Bus, producer: Producer) -> None:
    for at in range(20):
        with producer.transaction() as tx:
            tx.send("a", b"%d" % at)
            tx.send("b", b"%d" % at, partition=at % 3)
    assert held(bus, "a") == numbers(20)
    assert sorted(held(bus, "b"), key=int) == numbers(20)


def test_offsets_have_no_gap_after_an_abort(bus: Bus, producer: Producer) -> None:
    for at in range(4):
        try:
            with producer.transaction() as tx:
                sent = tx.send("a", b"%d" % at)
                if at % 2:
                    raise Stop
        except Stop:
            continue
        assert sent.result().offset == at // 2
    assert held(bus, "a") == [b"0", b"2"]


# -- nothing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [Stop("why"), KeyboardInterrupt(), GeneratorExit(), SystemExit(3)], ids=repr)
def test_what_the_block_raises_aborts_and_is_raised(bus: Bus, producer: Producer, raised: BaseException) -> None:
    with reader(bus) as consumer:
        put(bus, "in", b"1", partition=0)
        with pytest.raises(type(raised)) as caught, producer.transaction(consumer) as tx:
            assert len(take(consumer, 1)) == 1
            sent = tx.send("a", b"never")
            raise raised
        assert caught.value is raised
        assert consumer.committed(TopicPartition("in", 0)) is None
        assert values(take(consumer, 1)) == [b"1"]
    assert isinstance(sent.exception(), errors.TransactionError)
    assert (held(bus, "a"), ends(bus, "a")) == ([], 0)


def test_abort_publishes_nothing_and_the_block_goes_on(bus: Bus, producer: Producer) -> None:
    reached = False
    with producer.transaction() as tx:
        sent = tx.send("a", b"never")
        many = tx.send_many("b", numbers(3), partition=0)
        tx.abort()
        assert sent.done()
        assert many.done()
        reached = True
    assert reached
    for delivery in (sent, many):
        with pytest.raises(errors.TransactionError, match="abort"):
            delivery.result()
    assert ends(bus, "a") + ends(bus, "b") == 0
    with producer.transaction() as tx:
        tx.send("a", b"next")
    assert held(bus, "a") == [b"next"]


def test_after_abort_the_block_may_use_the_producer_itself(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        tx.send("a", b"never")
        tx.abort()
        producer.send("a", b"plain").result(timeout=PATIENCE)
    assert held(bus, "a") == [b"plain"]


def test_after_abort_the_transaction_takes_nothing_more(bus: Bus, producer: Producer) -> None:
    with reader(bus) as consumer, producer.transaction() as tx:
        tx.abort()
        _refuses_everything(tx, consumer)


def _refuses_everything(tx: Any, consumer: Consumer) -> None:
    for call in (
        lambda: tx.send("a", b"1"),
        lambda: tx.send_many("a", [b"1"]),
        lambda: tx.commit_offsets(consumer),
        tx.abort,
        tx.__enter__,
    ):
        with pytest.raises(errors.TransactionError, match=r"aborted|committed|not begun"):
            call()


def test_a_transaction_that_is_over_takes_nothing_more(bus: Bus, producer: Producer) -> None:
    with reader(bus) as consumer:
        with producer.transaction() as tx:
            tx.send("a", b"1")
        _refuses_everything(tx, consumer)
        with pytest.raises(Stop), producer.transaction() as tx:
            raise Stop
        _refuses_everything(tx, consumer)
    assert held(bus, "a") == [b"1"]


def test_a_transaction_that_was_not_entered_takes_nothing(producer: Producer) -> None:
    tx = producer.transaction()
    with pytest.raises(errors.TransactionError, match="not begun"):
        tx.send("a", b"1")
    with pytest.raises(errors.TransactionError):
        tx.abort()
    assert "not begun" in repr(tx)


def test_what_send_refuses_is_not_taken_and_the_transaction_goes_on(bus: Bus) -> None:
    bus.create_topic("a", max_message_bytes=1000)
    bus.create_topic("compacted", cleanup="compact")
    with bus.producer() as producer:
        with producer.transaction() as tx:
            tx.send("a", b"1")
            refused: list[tuple[type[Exception], Callable[[], object]]] = [
                (errors.MessageTooLargeError, lambda: tx.send("a", b"x" * 1001)),
                (errors.MessageTooLargeError, lambda: tx.send_many("a", [b"ok", b"x" * 1001])),
                (errors.UnknownTopicError, lambda: tx.send("nowhere", b"x")),
                (errors.UnknownTopicError, lambda: tx.send_many("nowhere", [b"x"])),
                (errors.UnknownTopicError, lambda: tx.send("a", b"x", partition=1)),
                (errors.InvalidNameError, lambda: tx.send("__offsets", b"x")),
                (errors.InvalidNameError, lambda: tx.send("a/b", b"x")),
                (errors.SerdeError, lambda: tx.send("a", 5)),
                (errors.ConfigError, lambda: tx.send("a", b"x", timestamp=1.5)),  # type: ignore[arg-type]
                (errors.ConfigError, lambda: tx.send("a", b"x", timestamp=datetime(2030, 1, 1))),  # noqa: DTZ001
                (errors.ConfigError, lambda: tx.send("a", b"x", sequence=1)),
                (errors.ConfigError, lambda: tx.send("compacted", b"x")),
                (errors.ConfigError, lambda: tx.send_many("compacted", [b"x"])),
                (errors.ConfigError, lambda: tx.send_many("a", [b"x"], keys=[b"k", b"l"])),
            ]
            for kind, call in refused:
                with pytest.raises(kind):
                    call()
            tx.send("a", b"2")
            tx.send("compacted", b"3", key="k")
        assert held(bus, "a") == [b"1", b"2"]
        assert held(bus, "compacted") == [b"3"]


def test_a_topic_deleted_inside_refuses_the_whole(bus: Bus, producer: Producer) -> None:
    with pytest.raises(errors.UnknownTopicError), producer.transaction() as tx:
        first, second = tx.send("a", b"1"), tx.send("b", b"1", partition=0)
        bus.delete_topic("b")
    for delivery in (first, second):
        with pytest.raises(errors.UnknownTopicError):
            delivery.result()
    assert held(bus, "a") == []
    bus.create_topic("b")
    with producer.transaction() as tx:
        tx.send("a", b"2")
        tx.send("b", b"2")
    assert held(bus, "a") == held(bus, "b") == [b"2"]


def test_a_topic_created_anew_inside_refuses_the_whole(bus: Bus, producer: Producer) -> None:
    with pytest.raises(errors.UnknownTopicError), producer.transaction() as tx:
        tx.send("a", b"1")
        tx.send("b", b"1", partition=0)
        bus.delete_topic("b")
        bus.create_topic("b", partitions=3)
    assert ends(bus, "a") + ends(bus, "b") == 0


# -- the rules of the block --------------------------------------------------------------------------------------------


def test_a_result_is_not_waited_for_inside(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        one, many = tx.send("a", b"1"), tx.send_many("a", [b"2"])
        for delivery in (one, many):
            with pytest.raises(errors.TransactionError):
                delivery.result()
            with pytest.raises(errors.TransactionError):
                delivery.exception(timeout=1)
    assert [one.result().offset, *(found.offset for found in many.result())] == [0, 1]


def test_another_thread_may_wait_for_the_result(bus: Bus, producer: Producer) -> None:
    sent: list[Delivery] = []
    with producer.transaction() as tx:
        sent.append(tx.send("a", b"1"))
        waiting = beside(lambda: sent[0].result(timeout=PATIENCE).offset)
    assert waiting.result(timeout=PATIENCE) == 0


def test_the_producers_own_send_inside_is_refused(bus: Bus, producer: Producer) -> None:
    producer.send("a", b"0").result(timeout=PATIENCE)  # the fast way of this topic is known
    with producer.transaction() as tx:
        tx.send("a", b"1")
        with pytest.raises(errors.TransactionError, match=r"tx\.send"):
            producer.send("a", b"never")
        with pytest.raises(errors.TransactionError):
            producer.send("a", b"never", key=b"k")
        with pytest.raises(errors.TransactionError):
            producer.send_many("a", [b"never"])
    producer.send("a", b"2").result(timeout=PATIENCE)
    assert held(bus, "a") == numbers(3)


def test_another_producers_send_inside_is_no_part_of_it(bus: Bus, producer: Producer) -> None:
    with pytest.raises(Stop), producer.transaction() as tx:
        tx.send("a", b"never")
        put(bus, "a", b"by another")
        raise Stop
    assert held(bus, "a") == [b"by another"]


def test_transactions_do_not_nest_in_one_thread(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        tx.send("a", b"1")
        inner = producer.transaction()
        with pytest.raises(errors.TransactionError, match="leave its block"):
            inner.__enter__()
        tx.send("a", b"2")
    with inner as tx:
        tx.send("a", b"3")
    assert held(bus, "a") == [b"1", b"2", b"3"]


def test_transactions_of_two_producers_nest(bus: Bus, producer: Producer) -> None:
    with bus.producer() as other, pytest.raises(Stop), producer.transaction() as outer:
        outer.send("a", b"never")
        with other.transaction() as inner:
            inner.send("a", b"1")
            inner.send("b", b"1", partition=0)
        raise Stop
    assert held(bus, "a") == held(bus, "b") == [b"1"]


def test_sends_and_transactions_of_other_threads_go_on(bus: Bus, producer: Producer) -> None:
    def transact() -> int:
        with producer.transaction() as tx:
            sent = tx.send("a", b"their transaction")
        return int(sent.result(timeout=PATIENCE).offset)

    with producer.transaction() as tx:
        tx.send("a", b"mine")
        assert beside(lambda: producer.send("a", b"theirs").result(timeout=PATIENCE).offset).result(PATIENCE) == 0
        assert beside(transact).result(PATIENCE) == 1
        many = beside(lambda: producer.send_many("a", [b"many"]).result(timeout=PATIENCE)[0].offset)
        assert many.result(PATIENCE) == 2
    assert held(bus, "a") == [b"theirs", b"their transaction", b"many", b"mine"]


def test_helpers_of_the_block_may_send_into_it(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        helpers = [beside(lambda at=at: [tx.send("b", b"%d" % at, partition=at) for _ in range(50)]) for at in range(3)]
        sent = [delivery for helper in helpers for delivery in helper.result(PATIENCE)]
    assert by_partition(bus.topic("b").read()) == {at: [b"%d" % at] * 50 for at in range(3)}
    assert all(delivery.result() for delivery in sent)


def test_a_helpers_send_is_taken_or_refused_and_never_lost(bus: Bus, producer: Producer) -> None:
    """One that comes while the block is being left: its delivery is settled, and what it says is so."""
    for _ in range(5):
        taken: list[Delivery] = []
        begun = threading.Event()

        def send_on(tx: Any, taken: list[Delivery] = taken, begun: threading.Event = begun) -> None:
            for _ in range(500):
                try:
                    taken.append(tx.send("a", b"v"))
                except errors.TransactionError:
                    return
                begun.set()

        before = ends(bus, "a")
        with producer.transaction() as tx:
            helper = beside(lambda tx=tx: send_on(tx))
            assert begun.wait(PATIENCE)
        helper.result(PATIENCE)
        assert all(delivery.done() for delivery in taken)
        offsets = [delivery.result().offset for delivery in taken if delivery.exception() is None]
        assert offsets == list(range(before, before + len(offsets)))
        assert ends(bus, "a") == before + len(offsets)
        assert len(offsets) == len(taken)


def test_a_closed_producer_commits_nothing(bus: Bus, producer: Producer) -> None:
    with pytest.raises(errors.ClosedError), producer.transaction() as tx:
        sent = tx.send("a", b"never")
        producer.close()
        with pytest.raises(errors.ClosedError):
            tx.send("a", b"never")
    assert sent.exception() is not None
    assert held(bus, "a") == []
    with pytest.raises(errors.ClosedError):
        producer.transaction()


@pytest.mark.needs("durable")
def test_a_closed_bus_commits_nothing(open_bus: Callable[..., Bus]) -> None:
    bus = open_bus()
    bus.create_topic("a")
    producer = bus.producer()
    consumer = reader(bus, "a")
    with pytest.raises(errors.ClosedError), producer.transaction(consumer) as tx:
        tx.send("a", b"never")
        bus.close()
    assert held(open_bus(), "a") == []


def test_a_transaction_is_not_pickled_and_says_what_it_is(producer: Producer) -> None:
    import pickle

    with producer.transaction() as tx:
        assert "open" in repr(tx)
        with pytest.raises(errors.UnsupportedError, match="a transaction belongs"):
            pickle.dumps(tx)
    assert "committed" in repr(tx)


def test_a_generator_that_is_closed_in_its_block_aborts(bus: Bus, producer: Producer) -> None:
    def process() -> Iterator[int]:
        with producer.transaction() as tx:
            tx.send("a", b"never")
            yield 1
            tx.send("a", b"never")

    running = process()
    assert next(running) == 1
    running.close()
    assert held(bus, "a") == []
    assert list(process()) == [1]
    assert held(bus, "a") == [b"never"] * 2


# -- callbacks ---------------------------------------------------------------------------------------------------------


def test_on_delivery_is_called_for_each_when_it_is_committed(bus: Bus) -> None:
    bus.create_topic("a")
    told: list[Any] = []
    with bus.producer(on_delivery=told.append) as producer:
        with producer.transaction() as tx:
            sent = [tx.send("a", value) for value in numbers(3)]
            many = tx.send_many("a", numbers(2))
            assert told == []
        assert len(told) == 4
        assert [one for one in told if one != many] == sent
        assert many in told
        assert [delivery.result().offset for delivery in told if delivery != many] == [0, 1, 2]


def test_on_delivery_is_called_for_each_when_it_is_aborted(bus: Bus) -> None:
    bus.create_topic("a")
    told: list[Any] = []
    with bus.producer(on_delivery=told.append) as producer:
        with pytest.raises(Stop), producer.transaction() as tx:
            sent = [tx.send("a", value) for value in numbers(3)]
            many = tx.send_many("a", numbers(2))
            raise Stop
        assert len(told) == 4
        assert all(isinstance(delivery.exception(), errors.TransactionError) for delivery in told)
        assert set(map(id, sent)) != set()
        assert many in told


def test_done_callbacks_run_after_the_end_and_may_begin_another(bus: Bus, producer: Producer) -> None:
    seen: list[list[Any]] = []

    def again(delivery: Delivery) -> None:
        seen.append(held(bus, "a"))
        with producer.transaction() as tx:
            tx.send("b", b"in the callback", partition=0)

    with producer.transaction() as tx:
        tx.send("a", b"1").add_done_callback(again)
        tx.send("a", b"2")
        assert seen == []
    assert seen == [[b"1", b"2"]]
    assert held(bus, "b") == [b"in the callback"]


def test_a_callback_that_raises_disturbs_nothing(bus: Bus) -> None:
    bus.create_topic("a")

    def fail(delivery: Delivery) -> None:
        raise Stop

    with bus.producer(on_delivery=fail) as producer:
        with producer.transaction() as tx:
            sent = [tx.send("a", value) for value in numbers(3)]
        assert [delivery.result().offset for delivery in sent] == [0, 1, 2]
    assert held(bus, "a") == numbers(3)


# -- a consumer's offsets ----------------------------------------------------------------------------------------------


def at(bus: Bus, group: str = "g") -> dict[int, int]:
    """What a group has committed of `in`."""
    try:
        found = bus.group(group).committed
    except errors.UnknownGroupError:
        return {}
    return {tp.partition: offset for tp, offset in found.items() if tp.topic == "in"}


def test_what_was_handed_out_is_committed_with_the_messages(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(6), partition=0)
    with reader(bus) as consumer:
        with producer.transaction(consumer) as tx:
            for message in take(consumer, 4):
                tx.send("a", message.value)
            assert consumer.committed(TopicPartition("in", 0)) is None
        assert consumer.committed(TopicPartition("in", 0)) == 4
        assert at(bus) == {0: 4}
        assert values(take(consumer, 2)) == numbers(2, 4)
    assert held(bus, "a") == numbers(4)
    with reader(bus) as consumer:
        assert values(drain(consumer)) == numbers(2, 4)


def test_after_an_exception_the_consumer_is_back_at_its_committed_offsets(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(9), partition=0)
    put(bus, "in", *numbers(9, 100), partition=1)
    with reader(bus) as consumer:
        first = values(take(consumer, 5))
        consumer.commit()
        before = {tp: consumer.position(tp) for tp in consumer.assignment()}
        for _ in range(2):
            with pytest.raises(Stop), producer.transaction(consumer) as tx:
                for message in take(consumer, 7):
                    tx.send("a", message.value)
                raise Stop
            assert {tp: consumer.position(tp) for tp in consumer.assignment()} == before
        rest = values(drain(consumer))
        assert sorted(first + rest, key=int) == numbers(9) + numbers(9, 100)
    assert held(bus, "a") == []


def test_without_committed_offsets_it_is_back_where_it_began(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    bus.topic("in").truncate_before(0, 1)
    tp = TopicPartition("in", 0)
    with reader(bus) as consumer:
        with producer.transaction(consumer) as tx:
            assert len(take(consumer, 3)) == 3
            tx.abort()
            assert consumer.position(tp) == 1
        assert consumer.committed(tp) is None
        consumer.seek(tp, 3)
        with producer.transaction(consumer) as tx:
            assert values(take(consumer, 1)) == [b"3"]
            tx.abort()
        assert consumer.position(tp) == 3


def test_a_consumer_that_began_at_the_end_is_back_there(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    with reader(bus, start="latest") as consumer:
        put(bus, "in", b"new", partition=0)
        for _ in range(2):
            with producer.transaction(consumer) as tx:
                assert values(take(consumer, 1)) == [b"new"]
                tx.abort()


def test_what_was_handed_out_before_the_block_is_committed_too(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(3), partition=0)
    with reader(bus) as consumer:
        found = take(consumer, 3)
        with producer.transaction(consumer) as tx:
            tx.send_many("a", values(found))
        assert at(bus) == {0: 3}


def test_offsets_alone_make_a_transaction(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(3), partition=1)
    with reader(bus) as consumer:
        with producer.transaction(consumer):
            take(consumer, 2)
        assert at(bus) == {1: 2}
        with producer.transaction() as tx:
            tx.commit_offsets(consumer, {TopicPartition("in", 1): 3})
        assert at(bus) == {1: 3}


def test_a_transaction_of_a_consumer_that_got_nothing_commits_nothing(bus: Bus, producer: Producer) -> None:
    with reader(bus) as consumer:
        with producer.transaction(consumer) as tx:
            assert consumer.poll() == []
            tx.send("a", b"1")
        assert at(bus) == {}
    assert held(bus, "a") == [b"1"]


def test_explicit_offsets_go_before_what_was_handed_out(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(5), partition=0)
    put(bus, "in", *numbers(5), partition=1)
    with reader(bus) as consumer:
        with producer.transaction(consumer) as tx:
            take(consumer, 10)
            tx.commit_offsets(consumer, {TopicPartition("in", 0): 1})
            tx.commit_offsets(consumer, {TopicPartition("in", 0): 2})
        assert at(bus) == {0: 2, 1: 5}
    with reader(bus) as consumer:
        assert values(drain(consumer)) == numbers(3, 2)


def test_offsets_so_far_are_those_of_the_call(bus: Bus, producer: Producer) -> None:
    """Of a consumer that was not given to the transaction, which is not rewound either."""
    put(bus, "in", *numbers(5), partition=0)
    with reader(bus) as consumer:
        with producer.transaction() as tx:
            take(consumer, 2)
            tx.commit_offsets(consumer)
            take(consumer, 2)
        assert at(bus) == {0: 2}
        assert values(take(consumer, 1)) == [b"4"]
        with pytest.raises(Stop), producer.transaction() as tx:
            tx.commit_offsets(consumer)
            raise Stop
        assert at(bus) == {0: 2}
        assert consumer.position(TopicPartition("in", 0)) == 5


def test_to_name_the_consumer_that_was_given_takes_nothing_away(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(5), partition=0)
    with reader(bus) as consumer:
        with producer.transaction(consumer) as tx:
            tx.send_many("a", values(take(consumer, 2)))
            tx.commit_offsets(consumer)
            tx.send_many("a", values(take(consumer, 3)))
        assert at(bus) == {0: 5}
    assert held(bus, "a") == numbers(5)


def test_offsets_of_several_consumers_are_committed_together(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    put(bus, "b", *numbers(4), partition=2)
    with reader(bus, group="g") as one, reader(bus, "b", group="h") as two:
        with pytest.raises(Stop), producer.transaction(one) as tx:
            take(one, 2)
            take(two, 3)
            tx.commit_offsets(two)
            raise Stop
        assert (bus.group("g").committed, bus.group("h").committed) == ({}, {})
        with producer.transaction(one) as tx:
            take(one, 2)
            tx.commit_offsets(two)
            tx.send("a", b"1")
        assert bus.group("g").committed == {TopicPartition("in", 0): 2}
        assert bus.group("h").committed == {TopicPartition("b", 2): 3}


def test_two_members_of_one_group_commit_in_one_transaction(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    put(bus, "in", *numbers(4), partition=1)
    with reader(bus) as one, reader(bus) as two:
        wait_until(lambda: one.poll(max_messages=1) is not None and len(one.assignment()) == 1)
        wait_until(lambda: two.poll(max_messages=1) is not None and len(two.assignment()) == 1)
        drain(one)
        drain(two)
        with producer.transaction(one) as tx:
            tx.commit_offsets(two)
            tx.send("a", b"1")
        assert at(bus) == {0: 4, 1: 4}


def test_a_consumer_by_assign_commits_in_its_groups_name(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(3), partition=1)
    with bus.consumer(group="g", auto_commit=False) as consumer:
        consumer.assign([TopicPartition("in", 1)])
        with producer.transaction(consumer) as tx:
            tx.send_many("a", values(take(consumer, 2)))
        with producer.transaction(consumer) as tx:
            take(consumer, 1)
            tx.abort()
        assert values(take(consumer, 1)) == [b"2"]
    assert at(bus) == {1: 2}
    assert held(bus, "a") == numbers(2)


def test_pausing_survives_an_abort(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(3), partition=0)
    put(bus, "in", *numbers(3, 10), partition=1)
    paused = TopicPartition("in", 1)
    with reader(bus) as consumer:
        with producer.transaction(consumer) as tx:
            take(consumer, 6)
            consumer.pause(paused)
            tx.abort()
        assert consumer.paused() == {paused}
        assert values(drain(consumer)) == numbers(3)
        consumer.resume(paused)
        assert values(drain(consumer)) == numbers(3, 10)


def test_lag_is_what_is_not_committed_after_an_abort(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(3), partition=0)
    with reader(bus) as consumer:
        with producer.transaction(consumer) as tx:
            take(consumer, 3)
            assert consumer.lag()[TopicPartition("in", 0)] == 0
            tx.abort()
        assert consumer.lag()[TopicPartition("in", 0)] == 3


def test_compacted_topics_take_part(bus: Bus) -> None:
    bus.create_topic("table", cleanup="compact", segment_bytes=300)
    with bus.producer() as producer:
        for at_ in range(30):
            with producer.transaction() as tx:
                tx.send("table", b"%d" % at_ * 10, key=f"k{at_ % 3}")
        bus.maintain()
        last = {message.key: message.value for message in bus.topic("table").read()}
    assert last == {b"k0": b"27" * 10, b"k1": b"28" * 10, b"k2": b"29" * 10}


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_a_block_around_the_loop_commits_what_it_went_through(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(5), partition=0)
    with reader(bus) as consumer:
        with producer.transaction(consumer) as tx:
            for message in consumer.messages(timeout=1):
                tx.send("a", message.value)
        assert at(bus) == {0: 5}
        assert values(drain(consumer)) == []
    assert held(bus, "a") == numbers(5)


def test_a_block_around_a_loop_that_is_left_commits_the_message_in_hand(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(5), partition=0)
    with reader(bus) as consumer:
        with producer.transaction(consumer) as tx:
            for message in consumer:
                tx.send("a", message.value)
                if message.offset == 2:
                    break
            consumer_position = consumer.position(TopicPartition("in", 0))
        assert at(bus) == {0: consumer_position}
        assert len(held(bus, "a")) >= consumer_position
        again = values(drain(consumer))
        assert again == numbers(5 - consumer_position, consumer_position)


def test_a_block_in_the_loop_commits_message_by_message(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(5), partition=0)
    seen = []
    with reader(bus) as consumer:
        for message in consumer.messages(timeout=1):
            with producer.transaction(consumer) as tx:
                tx.send("a", message.value)
            seen.append((message.offset, at(bus)[0]))
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert held(bus, "a") == numbers(5)


def test_an_abort_in_the_loop_has_it_hand_the_message_out_again(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(5), partition=0)
    tries: dict[int, int] = {}
    with reader(bus) as consumer:
        for message in consumer.messages(timeout=1):
            tries[message.offset] = tries.get(message.offset, 0) + 1
            try:
                with producer.transaction(consumer) as tx:
                    tx.send("a", message.value)
                    if message.offset % 2 and tries[message.offset] < 3:
                        raise Stop
            except Stop:
                continue
        assert at(bus) == {0: 5}
    assert tries == {0: 1, 1: 3, 2: 1, 3: 3, 4: 1}
    assert held(bus, "a") == numbers(5)


def test_a_loop_that_goes_on_after_an_abort_in_the_middle_of_a_poll_loses_nothing(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(20), partition=0)
    put(bus, "in", *numbers(20, 100), partition=1)
    failures = iter([True, False, True, True] + [False] * 1000)
    with reader(bus) as consumer:
        while True:
            try:
                with producer.transaction(consumer) as tx:
                    batch = consumer.poll(timeout=1, max_messages=7)
                    for message in batch:
                        tx.send("a", message.value)
                    if next(failures):
                        raise Stop
            except Stop:
                continue
            if not batch:
                break
    assert sorted(held(bus, "a"), key=int) == numbers(20) + numbers(20, 100)


# -- consumers that cannot take part -----------------------------------------------------------------------------------


def test_a_consumer_that_commits_by_itself_is_refused(bus: Bus, producer: Producer) -> None:
    with bus.consumer("in", group="g") as consumer:
        with pytest.raises(errors.ConfigError, match="auto_commit"):
            producer.transaction(consumer)
        with producer.transaction() as tx, pytest.raises(errors.ConfigError, match="auto_commit"):
            tx.commit_offsets(consumer)


def test_a_consumer_without_a_group_is_refused(bus: Bus, producer: Producer) -> None:
    with bus.consumer("in", auto_commit=False) as consumer:
        with pytest.raises(errors.ConfigError, match="group"):
            producer.transaction(consumer)
        with producer.transaction() as tx, pytest.raises(errors.ConfigError, match="group"):
            tx.commit_offsets(consumer, {TopicPartition("in", 0): 0})


def test_a_consumer_of_another_bus_is_refused(producer: Producer) -> None:
    with streamlite.open(":memory:") as other:
        other.create_topic("in")
        with reader(other) as consumer:
            with pytest.raises(errors.ConfigError, match="one bus"):
                producer.transaction(consumer)
            with producer.transaction() as tx, pytest.raises(errors.ConfigError, match="one bus"):
                tx.commit_offsets(consumer)


@pytest.mark.parametrize("given", ["in", 5, [None]], ids=repr)
def test_what_is_no_consumer_is_refused(producer: Producer, given: Any) -> None:
    with pytest.raises(errors.ConfigError, match="takes a Consumer"):
        producer.transaction(given)
    with producer.transaction() as tx, pytest.raises(errors.ConfigError, match="takes a Consumer"):
        tx.commit_offsets(given)


def test_a_closed_consumer_is_refused(bus: Bus, producer: Producer) -> None:
    consumer = reader(bus)
    consumer.close()
    with pytest.raises(errors.ClosedError):
        producer.transaction(consumer)


def test_a_consumer_that_is_closed_inside_refuses_the_whole(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(2), partition=0)
    consumer = reader(bus)
    with pytest.raises(errors.StreamliteError), producer.transaction(consumer) as tx:
        for message in take(consumer, 2):
            tx.send("a", message.value)
        consumer.close()
    assert held(bus, "a") == []
    assert committed(bus, "in", "g") is None


def test_a_consumer_that_unsubscribes_inside_refuses_the_whole(bus: Bus, producer: Producer) -> None:
    """What it was handed out cannot be committed any more."""
    put(bus, "in", *numbers(2), partition=0)
    with reader(bus) as consumer:
        with pytest.raises(errors.StreamliteError), producer.transaction(consumer) as tx:
            for message in take(consumer, 2):
                tx.send("a", message.value)
            consumer.unsubscribe()
            consumer.subscribe("in")
        assert held(bus, "a") == []
        assert values(drain(consumer)) == numbers(2)


@pytest.mark.parametrize("offset", [-1, 1.5, True, "1", None])
def test_offsets_that_are_none_are_refused(bus: Bus, producer: Producer, offset: Any) -> None:
    with reader(bus) as consumer, producer.transaction() as tx, pytest.raises(errors.ConfigError):
        tx.commit_offsets(consumer, {TopicPartition("in", 0): offset})


def test_offsets_beyond_the_end_and_of_unknown_partitions_are_refused(bus: Bus, producer: Producer) -> None:
    with reader(bus) as consumer, producer.transaction() as tx:
        with pytest.raises(errors.OffsetOutOfRangeError):
            tx.commit_offsets(consumer, {TopicPartition("in", 0): 1})
        with pytest.raises(errors.UnknownTopicError):
            tx.commit_offsets(consumer, {TopicPartition("nowhere", 0): 0})
        with pytest.raises(errors.ConfigError):
            tx.commit_offsets(consumer, 5)  # type: ignore[arg-type]
        tx.send("a", b"1")
    assert held(bus, "a") == [b"1"]


# -- fencing -----------------------------------------------------------------------------------------------------------


def test_a_partition_lost_without_noticing_refuses_everything(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    put(bus, "in", *numbers(4, 10), partition=1)
    with reader(bus, max_poll_interval_ms=1000) as slow:
        with pytest.raises(errors.FencedError), producer.transaction(slow) as tx:
            sent = [tx.send("a", message.value) for message in take(slow, 8)]
            with _put_out(bus, slow) as other:
                assert sorted(values(drain(other)), key=int) == numbers(4) + numbers(4, 10)
        assert all(isinstance(delivery.exception(), errors.FencedError) for delivery in sent)
    assert held(bus, "a") == []
    assert at(bus) == {}


def _put_out(bus: Bus, slow: Consumer) -> Consumer:
    """A second member that got all partitions, since the first asked for nothing for too long."""
    clock = bus._engine.ctx.clock
    other = reader(bus, max_poll_interval_ms=1000)
    clock.advance(1.5)  # type: ignore[attr-defined]
    assert other.wait_assigned(PATIENCE) == tps("in", 2)
    return other


def test_a_partition_lost_during_a_poll_inside_refuses_everything(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    put(bus, "in", *numbers(4, 10), partition=1)
    with reader(bus) as one:
        with pytest.raises(errors.FencedError, match="another member"), producer.transaction(one) as tx:
            sent = [tx.send("a", message.value) for message in take(one, 8)]
            with reader(bus) as two:
                one.poll()  # it gives up one of its partitions
                assert len(one.assignment()) == 1
                assert len(two.wait_assigned(PATIENCE)) == 1
                again = values(drain(two))
                assert again in (numbers(4), numbers(4, 10))
                tx.send("a", b"never")
        assert all(isinstance(delivery.exception(), errors.FencedError) for delivery in sent)
        assert held(bus, "a") == []
        assert at(bus) == {}
        assert sorted(values(drain(one)), key=int) == numbers(4) + numbers(4, 10)


def test_a_partition_lost_and_got_back_inside_refuses_everything(bus: Bus, producer: Producer) -> None:
    """Meanwhile its other owner may have committed, and sent, something of it."""
    put(bus, "in", *numbers(4), partition=0)
    put(bus, "in", *numbers(4, 10), partition=1)
    with reader(bus) as one:
        with pytest.raises(errors.FencedError), producer.transaction(one) as tx:
            for message in take(one, 8):
                tx.send("a", message.value)
            with reader(bus) as two:
                one.poll()
                assert len(drain(two)) == 4
                two.commit()
            one.poll()
            assert one.assignment() == tps("in", 2)
        assert held(bus, "a") == []
        assert len(drain(one)) == 4  # what the other did is not done again
        with producer.transaction(one) as tx:
            tx.send("a", b"next")
        assert at(bus) == {0: 4, 1: 4}


def test_explicit_offsets_of_a_partition_lost_and_got_back_are_refused(bus: Bus, producer: Producer) -> None:
    """They were decided on under an ownership that has ended: they would take the group back."""
    put(bus, "in", *numbers(6), partition=0)
    put(bus, "in", *numbers(6), partition=1)
    with reader(bus) as one:
        for _ in range(12):
            if len(take(one, 1)) and all(one.position(tp) >= 2 for tp in tps("in", 2)):
                break
        one.commit()
        with pytest.raises(errors.FencedError), producer.transaction() as tx:
            tx.commit_offsets(one, {TopicPartition("in", 0): 1, TopicPartition("in", 1): 1})
            tx.send("a", b"never")
            with reader(bus) as two:
                one.poll()
                drain(two)
                two.commit()
            one.poll()
            assert one.assignment() == tps("in", 2)
        assert max(at(bus).values()) == 6
    assert held(bus, "a") == []


def test_a_partition_of_which_nothing_was_handed_out_may_go(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    with reader(bus) as one:
        consumed = take(one, 4)
        with producer.transaction(one) as tx:
            tx.send_many("a", values(consumed))
        with producer.transaction(one) as tx:
            with reader(bus):
                one.poll()
                assert len(one.assignment()) == 1
            tx.send("a", b"goes on")
    assert held(bus, "a") == [*numbers(4), b"goes on"]


def test_after_fencing_the_next_poll_goes_on_from_what_is_committed(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    with reader(bus, max_poll_interval_ms=1000) as slow:
        with producer.transaction(slow) as tx:
            tx.send_many("a", values(take(slow, 1)))
        with pytest.raises(errors.FencedError), producer.transaction(slow) as tx:
            tx.send_many("a", values(take(slow, 3)))
            _put_out(bus, slow).close()
        assert values(drain(slow)) == numbers(3, 1)
        with producer.transaction(slow) as tx:
            tx.send("a", b"next")
    assert held(bus, "a") == [b"0", b"next"]
    assert at(bus) == {0: 4}


@pytest.mark.parametrize("way", ["transaction", "commit"])
def test_a_loop_goes_on_from_what_is_committed_with_the_next_message(bus: Bus, producer: Producer, way: str) -> None:
    """Not with the rest of what it had in hand: nothing of that could be committed."""
    put(bus, "in", *numbers(6), partition=0)
    seen, refused = [], 0
    with reader(bus, max_poll_interval_ms=1000) as slow:
        for message in slow.messages(timeout=1):
            seen.append(message.offset)
            if len(seen) == 3:
                _put_out(bus, slow).close()
            try:
                if way == "commit":
                    slow.commit()
                    continue
                with producer.transaction(slow) as tx:
                    tx.send("a", message.value)
            except errors.FencedError:
                refused += 1
    assert (seen, refused) == ([0, 1, 2, 2, 3, 4, 5], 1)
    assert at(bus) == {0: 6}


def test_what_was_aborted_is_not_committed_by_what_follows_without_a_poll(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    put(bus, "in", *numbers(4, 10), partition=1)
    with reader(bus) as one, ExitStack() as stack:
        with pytest.raises(errors.FencedError), producer.transaction(one) as tx:
            tx.send_many("a", values(take(one, 8)))
            stack.enter_context(reader(bus))
            one.poll()
            assert len(one.assignment()) == 1  # and of that one nothing more may be committed either
        with pytest.raises(errors.FencedError):
            one.commit()
        with pytest.raises(errors.FencedError), producer.transaction(one) as tx:
            tx.send("a", b"never")
        with producer.transaction() as tx, pytest.raises(errors.FencedError):
            tx.commit_offsets(one)
        assert at(bus) == {}
        assert len(drain(one)) == 4
        with producer.transaction(one) as tx:
            tx.send("a", b"next")
        assert list(at(bus).values()) == [4]
    assert held(bus, "a") == [b"next"]


def test_a_consumer_by_assign_that_was_refused_goes_on_from_what_is_committed(bus: Bus, producer: Producer) -> None:
    put(bus, "in", *numbers(4), partition=0)
    with bus.consumer(group="g", auto_commit=False) as alone:
        alone.assign([TopicPartition("in", 0)])
        with reader(bus) as member:
            before = bus.group("g")
            for _ in range(2):
                with pytest.raises(errors.FencedError), producer.transaction(alone) as tx:
                    tx.send_many("a", values(take(alone, 4)))
                assert member.assignment() == tps("in", 2)
            assert bus.group("g") == before  # it did not become a member
        assert alone.poll(max_messages=1)
        with producer.transaction(alone) as tx:
            tx.send_many("a", values(take(alone, 3)))
    assert at(bus) == {0: 4}
    assert held(bus, "a") == numbers(3, 1)


@pytest.mark.needs("shared")
def test_a_replaced_static_member_commits_nothing(open_bus: Callable[..., Bus], producer: Producer, bus: Bus) -> None:
    put(bus, "in", *numbers(4), partition=0)
    with reader(bus, member="m") as old, pytest.raises(errors.FencedError), producer.transaction(old) as tx:
        tx.send_many("a", values(take(old, 4)))
        with reader(open_bus(), member="m") as new:
            assert values(drain(new)) == numbers(4)
    assert held(bus, "a") == []


# -- locks -------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("directory")
def test_a_lock_that_stays_taken_leaves_nothing_half_done(open_bus: Callable[..., Bus], location: Any) -> None:
    bus = open_bus(lock_timeout=0.05)
    bus.create_topic("a")
    bus.create_topic("b")
    bus.create_topic("in")
    put(bus, "in", *numbers(2))
    with bus.producer() as producer, reader(bus) as consumer:
        with producer.transaction() as tx:
            tx.send("a", b"0")
            tx.send("b", b"0")
        for name in ("topics/b/0/lock", "topics/__transactions/0/lock", "groups/g/lock"):
            lock = Holding(location / name)
            with pytest.raises(errors.LockTimeoutError), lock, producer.transaction(consumer) as tx:
                sent = [tx.send("a", message.value) for message in take(consumer, 2)]
                tx.send("b", b"never")
            assert all(isinstance(delivery.exception(), errors.LockTimeoutError) for delivery in sent)
            assert held(bus, "a") == held(bus, "b") == [b"0"]
            assert at(bus) == {}
            put(bus, "a", b"plain")
            bus.topic("a").truncate_before(0, ends(bus, "a") - 1)
            bus.delete_topic("a")
            bus.create_topic("a")
            put(bus, "a", b"0")
        with producer.transaction(consumer) as tx:
            tx.send_many("a", values(take(consumer, 2)))
            tx.send("b", b"1")
        assert (held(bus, "a"), held(bus, "b"), at(bus)) == ([b"0", *numbers(2)], [b"0", b"1"], {0: 2})


class Holding:
    """Be another process that holds this lock."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __enter__(self) -> None:
        import fcntl

        self._file = open(self._path, "r+b")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def test_a_commit_of_the_consumer_given_is_refused_in_the_block(bus: Bus) -> None:
    """It would stay where the transaction is aborted, and what came of those messages would not."""
    bus.topic("in")
    bus.topic("out")
    with bus.producer() as producer:
        producer.send("in", b"x").result(PATIENCE)
        consumer = bus.consumer("in", group="g", auto_commit=False)
        assert consumer.poll(timeout=PATIENCE)
        with producer.transaction(consumer) as tx:
            tx.send("out", b"y")
            with pytest.raises(errors.TransactionError, match="committed by the transaction"):
                consumer.commit()
            tx.abort()
        assert len(consumer.poll(timeout=PATIENCE)) == 1
        consumer.commit()
