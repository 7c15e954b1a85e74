"""Named producers: sequences counted or given, repeats answered, and who opens a name last has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from streamlite import Bus, Delivery, Producer, Topic, TopicPartition, errors
from streamlite.testing.clock import VirtualClock

from .helpers import INVALID_NAMES, NO_NAMES, PATIENCE, VALID_NAMES, beside, numbers, values

SMALL = {"segment_bytes": 400}
"""A few messages a segment."""


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> int:
    """A window that a test can fill."""
    monkeypatch.setattr("streamlite.numbering.WINDOW", 10)
    monkeypatch.setattr("streamlite.named.WINDOW", 10)
    return 10


@pytest.fixture
def producer(bus: Bus) -> Iterator[Producer]:
    """One with a name, over a topic `t` of two partitions."""
    bus.topic("t", partitions=2)
    with bus.producer(name="n") as one:
        yield one


def give(
    producer: Producer, *sequences: int, topic: Topic | str = "t", partition: int = 0, **options: Any
) -> list[int]:
    """Send a message for each sequence, its value says which; the offsets it got."""
    deliveries = [
        producer.send(topic, b"%d" % sequence, partition=partition, sequence=sequence, **options)
        for sequence in sequences
    ]
    return [delivery.result(timeout=PATIENCE).offset for delivery in deliveries]


def stored(bus: Bus, partition: int = 0, topic: str = "t") -> list[int]:
    """The sequences in the log, as the values have them."""
    return [int(value) for value in values(bus.topic(topic).read(partition=partition))]


# -- names and bad calls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_a_bad_name_is_refused(bus: Bus, name: str) -> None:
    with pytest.raises(errors.InvalidNameError):
        bus.producer(name=name)


@pytest.mark.parametrize("name", [name for name in NO_NAMES if name is not None])
def test_what_is_no_text_is_no_name(bus: Bus, name: Any) -> None:
    with pytest.raises((errors.InvalidNameError, errors.ConfigError)):
        bus.producer(name=name)


@pytest.mark.parametrize("name", VALID_NAMES)
def test_any_good_name_will_do(bus: Bus, name: str) -> None:
    bus.topic("t")
    with bus.producer(name=name) as producer:
        assert give(producer, 0, 0) == [0, 0]


def test_a_sequence_needs_a_name(bus: Bus) -> None:
    bus.topic("t")
    with bus.producer() as producer:
        with pytest.raises(errors.ConfigError, match="named producer"):
            producer.send("t", b"a", key=b"k", sequence=1)
        with pytest.raises(errors.ConfigError, match="named producer"), producer.transaction() as tx:
            tx.send("t", b"a", key=b"k", sequence=1)
        with pytest.raises(errors.ConfigError, match="without a name"):
            producer.last_sequence("t", 0)
    assert stored(bus) == []


@pytest.mark.parametrize("sequence", [-1, 1 << 62, 1 << 70, True, 1.0, "1", b"1", [1]])
def test_what_is_no_sequence_is_refused(bus: Bus, producer: Producer, sequence: Any) -> None:
    with pytest.raises(errors.ConfigError, match="sequence"):
        producer.send("t", b"a", partition=0, sequence=sequence)
    assert give(producer, 0, (1 << 62) - 1) == [0, 1]
    assert producer.last_sequence("t", 0) == (1 << 62) - 1


@pytest.mark.parametrize("sequence", [None, 7])
def test_a_message_that_may_go_anywhere_is_refused(bus: Bus, producer: Producer, sequence: int | None) -> None:
    with pytest.raises(errors.ConfigError, match="key or a partition"):
        producer.send("t", b"a", sequence=sequence)
    with pytest.raises(errors.ConfigError, match="key or a partition"), producer.transaction() as tx:
        tx.send("t", b"a", sequence=sequence)
    producer.flush()
    assert stored(bus) == stored(bus, 1) == []


@pytest.mark.parametrize("keys", [None, [None, None]])
def test_a_column_that_may_go_anywhere_is_refused(bus: Bus, producer: Producer, keys: Any) -> None:
    with pytest.raises(errors.ConfigError, match="key or a partition"):
        producer.send_many("t", [b"1", b"2"], keys=keys)
    with pytest.raises(errors.ConfigError, match="key or a partition"), producer.transaction() as tx:
        tx.send_many("t", [b"1", b"2"], keys=keys)
    producer.flush()
    assert stored(bus) == stored(bus, 1) == []


def test_a_topic_or_partition_that_is_not_there(producer: Producer) -> None:
    with pytest.raises(errors.UnknownTopicError):
        producer.last_sequence("absent", 0)
    with pytest.raises(errors.UnknownTopicError):
        producer.last_sequence("t", 2)
    with pytest.raises(errors.UnknownTopicError):
        producer.send("t", b"a", partition=2, sequence=1)


def test_a_closed_one_answers_nothing(bus: Bus) -> None:
    bus.topic("t")
    producer = bus.producer(name="n")
    producer.close()
    with pytest.raises(errors.ClosedError):
        producer.last_sequence("t", 0)
    with pytest.raises(errors.ClosedError):
        producer.send("t", b"a", partition=0, sequence=1)


# -- counted -----------------------------------------------------------------------------------------------------------


def test_messages_are_counted_per_partition(producer: Producer) -> None:
    assert producer.last_sequence("t", 0) is None
    for number in range(3):
        producer.send("t", b"%d" % number, partition=0)
    producer.send("t", b"a", partition=1)
    assert producer.last_sequence("t", 0) == 2
    assert producer.last_sequence("t", 1) == 0


def test_a_column_is_counted_too(bus: Bus, producer: Producer) -> None:
    keys = [b"k%d" % (number % 7) for number in range(100)]
    producer.send_many("t", numbers(100), keys=keys).result(timeout=PATIENCE)
    counts = [len(stored(bus, partition)) for partition in range(2)]
    assert min(counts) > 0
    assert [producer.last_sequence("t", partition) for partition in range(2)] == [count - 1 for count in counts]
    producer.send_many("t", [], partition=0)
    assert producer.last_sequence("t", 0) == counts[0] - 1


def test_a_key_says_the_partition(bus: Bus, producer: Producer) -> None:
    place = bus.topic("t").partition_for("k")
    producer.send("t", b"a", key="k")
    assert producer.last_sequence("t", place) == 0
    assert producer.last_sequence("t", 1 - place) is None


@pytest.mark.needs("durable")
def test_counting_goes_on_when_the_name_is_opened_again(open_bus: Callable[..., Bus]) -> None:
    for life in range(3):
        with open_bus() as bus:
            topic = bus.topic("t")
            for round_ in range(2):
                with bus.producer(name="n") as producer:
                    assert producer.last_sequence(topic, 0) == (4 * life + 2 * round_ - 1 if life or round_ else None)
                    producer.send(topic, b"a", partition=0)
                    producer.send_many(topic, [b"b"], partition=0)
                    assert producer.last_sequence(topic, 0) == 4 * life + 2 * round_ + 1


def test_two_names_in_one_partition_count_for_themselves(bus: Bus) -> None:
    bus.topic("t")
    with bus.producer(name="a") as one, bus.producer(name="b") as other, bus.producer() as nobody:
        for number in range(5):
            one.send("t", b"a", partition=0)
            give(other, 10 * number)
            nobody.send("t", b"0", partition=0).result(timeout=PATIENCE)
        assert one.last_sequence("t", 0) == 4
        assert other.last_sequence("t", 0) == 40
        assert give(other, 20, 40) == give(other, 20, 40)
    with bus.producer(name="b") as other:
        assert other.last_sequence("t", 0) == 40
        with pytest.raises(errors.ConfigError, match="sequence 15"):
            give(other, 15)


# -- given -------------------------------------------------------------------------------------------------------------


def test_given_sequences_may_have_gaps(bus: Bus, producer: Producer) -> None:
    assert give(producer, 3, 4, 9, 10, 50) == [0, 1, 2, 3, 4]
    assert producer.last_sequence("t", 0) == 50
    assert give(producer, 50, 10, 4, 9, 3) == [4, 3, 1, 2, 0]
    assert stored(bus) == [3, 4, 9, 10, 50]
    assert producer.last_sequence("t", 1) is None


def test_a_repeat_is_answered_as_the_first_one_was(bus: Bus, producer: Producer) -> None:
    first = producer.send("t", b"5", partition=0, sequence=5, timestamp=123)
    again = producer.send("t", b"another value", partition=0, sequence=5, timestamp=456)
    assert first.result(timeout=PATIENCE) == again.result(timeout=PATIENCE)
    assert again.result().timestamp == 123
    assert producer.send("t", b"x", partition=0, sequence=5).result(timeout=PATIENCE) == first.result()
    assert producer.send("t", b"x", partition=1, sequence=5).result(timeout=PATIENCE).partition == 1
    assert stored(bus) == [5]


def test_a_repeat_of_what_waits_for_its_batch_is_one_message(bus: Bus) -> None:
    bus.topic("t")
    told: list[Delivery] = []
    with bus.producer(name="n", linger_ms=60_000, on_delivery=told.append) as producer:
        producer.send("t", b"0", partition=0, sequence=0).result(timeout=PATIENCE)
        pending = [producer.send("t", b"%d" % n, partition=0, sequence=n) for n in (1, 2, 3, 2, 1, 3)]
        producer.flush()
        assert [one.result().offset for one in pending] == [1, 2, 3, 2, 1, 3]
    assert stored(bus) == [0, 1, 2, 3]
    assert len(told) == 4


def test_what_was_never_sent_and_lies_below_the_last_is_refused(bus: Bus, producer: Producer) -> None:
    give(producer, 5, 9)
    for sequence in (0, 6, 8):
        with pytest.raises(errors.ConfigError, match=f"sequence {sequence} "):
            give(producer, sequence)
    assert give(producer, 10) == [2]
    assert stored(bus) == [5, 9, 10]


@pytest.mark.parametrize("column", [False, True])
def test_what_is_counted_takes_no_given_sequence_and_goes_on_counting(
    bus: Bus, producer: Producer, *, column: bool
) -> None:
    def count() -> None:
        if column:
            producer.send_many("t", [b"0"], partition=0).result(timeout=PATIENCE)
        else:
            producer.send("t", b"0", partition=0).result(timeout=PATIENCE)

    count()
    for sequence in (7, 0):
        with pytest.raises(errors.ConfigError, match="counted"):
            producer.send("t", b"7", partition=0, sequence=sequence)
    count()
    assert producer.last_sequence("t", 0) == 1
    assert give(producer, 7, partition=1) == [0]
    assert stored(bus) == [0, 0]


def test_where_sequences_are_given_nothing_is_counted(bus: Bus, producer: Producer) -> None:
    give(producer, 7)
    with pytest.raises(errors.ConfigError, match="given"):
        producer.send("t", b"8", partition=0)
    with pytest.raises(errors.ConfigError, match="given"):
        producer.send_many("t", [b"8"], partition=0)
    assert give(producer, 8) == [1]
    producer.send("t", b"0", partition=1)
    producer.flush()
    assert stored(bus) == [7, 8]
    assert stored(bus, 1) == [0]


def test_a_column_is_refused_whole_where_a_part_of_it_goes_where_sequences_are_given(bus: Bus) -> None:
    topic = bus.topic("t", partitions=2)
    keys = {topic.partition_for(b"k%d" % n): b"k%d" % n for n in range(20)}
    with bus.producer(name="n", batch_bytes=1000, buffer_bytes=2000) as producer:
        give(producer, 7, partition=1)
        with pytest.raises(errors.ConfigError, match="given"):
            producer.send_many(topic, [b"1" * 100] * 40, keys=[keys[0]] * 39 + [keys[1]])
        producer.flush()
        assert stored(bus, 0) == []
        assert stored(bus, 1) == [7]


@pytest.mark.needs("durable")
def test_repeats_are_recognised_after_the_bus_was_closed(open_bus: Callable[..., Bus]) -> None:
    with open_bus() as bus:
        bus.topic("t", compression="zstd")
        with bus.producer(name="n") as producer:
            first = give(producer, *range(0, 30, 3))
            first += give(producer, *range(30, 60))
    for _ in range(2):
        with open_bus() as bus, bus.producer(name="n") as producer:
            assert producer.last_sequence("t", 0) == 59
            assert give(producer, *range(0, 30, 3), *range(30, 60)) == first
            for sequence in (1, 2, 26, 29):
                with pytest.raises(errors.ConfigError):
                    give(producer, sequence)
    with open_bus() as bus, bus.producer(name="n") as producer:
        assert give(producer, 59, 60, 70) == [39, 40, 41]
        assert stored(bus) == [*range(0, 30, 3), *range(30, 61), 70]


def test_a_repeat_to_who_opened_the_name_again_has_the_first_ones_timestamp(bus: Bus) -> None:
    bus.topic("t")
    with bus.producer(name="n") as producer:
        first = producer.send("t", b"5", partition=0, sequence=5, timestamp=123).result(timeout=PATIENCE)
    with bus.producer(name="n") as producer:
        assert producer.send("t", b"5", partition=0, sequence=5).result(timeout=PATIENCE) == first


# -- the window --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("again", [False, True])
def test_the_window_holds_at_least_what_it_says(bus: Bus, window: int, *, step: int, again: bool) -> None:
    bus.topic("t")
    sequences = list(range(0, 50 * step, step))
    producer = bus.producer(name="n")
    for sequence in sequences:
        give(producer, sequence)
    if again:
        producer.close()
        producer = bus.producer(name="n")
    assert give(producer, *sequences[-window:]) == list(range(50))[-window:]
    for sequence in sequences[:-window]:
        with suppress(errors.ConfigError):  # it may hold more
            assert give(producer, sequence) == [sequence // step]
    if step == 2:
        with pytest.raises(errors.ConfigError, match="sequence 0 "):
            give(producer, 0)
    assert stored(bus) == sequences


def test_what_failed_may_be_sent_again_however_much_it_was(bus: Bus, window: int, producer: Producer) -> None:
    give(producer, 0, 5)
    rest = list(range(6, 6 + 4 * window))
    with producer.transaction() as tx:
        failed = [tx.send("t", b"%d" % n, partition=0, sequence=n) for n in rest]
        tx.abort()
    assert isinstance(failed[0].exception(timeout=PATIENCE), errors.TransactionError)
    assert producer.last_sequence("t", 0) == 5
    with pytest.raises(errors.ConfigError, match="sequence 3 "):
        producer.send("t", b"3", partition=0, sequence=3)
    assert give(producer, 0, 5, *rest) == list(range(2 + len(rest)))
    assert stored(bus) == [0, 5, *rest]


# -- sends that failed -------------------------------------------------------------------------------------------------


def test_what_failed_may_come_again_and_what_followed_it_too(bus: Bus, producer: Producer) -> None:
    give(producer, 1)
    with producer.transaction() as tx:
        failed = [tx.send("t", b"%d" % n, partition=0, sequence=n) for n in (2, 3, 5)]
        tx.abort()
    assert all(one.exception(timeout=PATIENCE) for one in failed)
    assert give(producer, 2, 3, 4) == [1, 2, 3]
    assert give(producer, 2, 3, 5) == [1, 2, 4]
    assert stored(bus) == [1, 2, 3, 4, 5]


def test_what_failed_and_was_overtaken_is_refused(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        tx.send("t", b"2", partition=0, sequence=2)
        tx.abort()
    assert give(producer, 3) == [0]
    with pytest.raises(errors.ConfigError, match="sequence 2 "):
        give(producer, 2)
    assert stored(bus) == [3]


# -- what goes between a message and its repeat ------------------------------------------------------------------------


def _shrink_by_time(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t").alter(retention_ms=1000)
    clock.advance(10)
    bus.maintain()
    assert bus.topic("t").beginning_offsets()[TopicPartition("t", 0)] == 20


def _shrink_by_size(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t").alter(retention_bytes=1)
    bus.maintain()
    assert bus.topic("t").beginning_offsets()[TopicPartition("t", 0)] > 5


def _truncate(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t").truncate_before(0, 20)


def _compact(bus: Bus, clock: VirtualClock) -> None:
    bus.topic("t").alter(cleanup="compact")
    bus.maintain()
    assert len(list(bus.topic("t").read(partition=0))) == 1


SHRINKING = [_shrink_by_time, _shrink_by_size, _truncate, _compact]


@pytest.mark.needs("maintenance")
@pytest.mark.parametrize("shrink", SHRINKING)
@pytest.mark.parametrize("how", ["as it is", "opened again", "killed", "transaction"])
def test_repeats_are_recognised_whatever_became_of_the_log(
    bus: Bus, clock: VirtualClock, shrink: Callable[[Bus, VirtualClock], None], how: str
) -> None:
    bus.topic("t", **SMALL)
    producer = bus.producer(name="n")
    if how == "transaction":
        for sequence in range(0, 20, 4):
            with producer.transaction() as tx:
                for one in range(sequence, sequence + 4):
                    tx.send("t", b"%d" % one, partition=0, sequence=2 * one, key=b"k")
    else:
        for sequence in range(20):
            producer.send("t", b"%d" % sequence, partition=0, sequence=2 * sequence, key=b"k").result(timeout=PATIENCE)
    if how == "opened again":
        producer.close()
    shrink(bus, clock)
    if how != "as it is":
        producer = bus.producer(name="n")  # what the one before knows is not asked for: it is fenced
    assert producer.last_sequence("t", 0) == 38
    assert give(producer, *range(0, 40, 2), key=b"k") == list(range(20))
    with pytest.raises(errors.ConfigError):
        give(producer, 37, key=b"k")
    assert give(producer, 39, key=b"k") == [20]


@pytest.mark.needs("maintenance")
@pytest.mark.parametrize("shrink", SHRINKING)
def test_a_transactions_sequences_survive_what_its_own_producer_saw_shrink(
    bus: Bus, clock: VirtualClock, shrink: Callable[[Bus, VirtualClock], None]
) -> None:
    bus.topic("t", **SMALL)
    with bus.producer(name="n") as producer:
        for sequence in range(0, 20, 4):
            with producer.transaction() as tx:
                for one in range(sequence, sequence + 4):
                    tx.send("t", b"%d" % one, partition=0, sequence=one, key=b"k")
        shrink(bus, clock)
        assert producer.last_sequence("t", 0) == 19
    with bus.producer(name="n") as producer:
        assert producer.last_sequence("t", 0) == 19
        assert give(producer, *range(20), key=b"k") == list(range(20))


@pytest.mark.needs("maintenance")
@pytest.mark.parametrize("shrink", SHRINKING)
def test_several_names_are_remembered_whatever_became_of_the_log(
    bus: Bus, clock: VirtualClock, shrink: Callable[[Bus, VirtualClock], None]
) -> None:
    bus.topic("t", **SMALL)
    with bus.producer(name="a") as one, bus.producer(name="b") as other:
        for sequence in range(10):
            give(one, sequence, key=b"k")
            other.send("t", b"0", key=b"k").result(timeout=PATIENCE)
        shrink(bus, clock)
    with bus.producer(name="a") as one, bus.producer(name="b") as other:
        assert one.last_sequence("t", 0) == other.last_sequence("t", 0) == 9
        assert give(one, *range(10), key=b"k") == list(range(0, 20, 2))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_topic_created_anew_knows_no_sequences(bus: Bus, *, by_name: bool) -> None:
    old = bus.topic("t")
    with bus.producer(name="n") as producer:
        give(producer, *range(5))
        bus.delete_topic("t")
        with pytest.raises(errors.UnknownTopicError):
            producer.last_sequence(old, 0)
        new = bus.create_topic("t")
        assert producer.last_sequence("t", 0) is None
        assert give(producer, 3, 4, 3, topic="t" if by_name else new) == [0, 1, 0]
        give(producer, 5)
    with bus.producer(name="n") as producer:
        assert producer.last_sequence("t", 0) == 5
        assert give(producer, 4) == [1]
    assert stored(bus) == [3, 4, 5]


def test_closing_after_a_topic_was_deleted_says_nothing(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    bus.topic("t")
    bus.topic("u")
    with bus.producer(name="n") as producer:
        give(producer, 1)
        give(producer, 1, topic="u")
        bus.delete_topic("t")
    assert not caplog.records


def test_more_partitions_have_their_own_sequences(bus: Bus, producer: Producer) -> None:
    give(producer, 5)
    producer.send("t", b"a", partition=1)
    bus.topic("t").increase_partitions(4)
    assert give(producer, 5, 6) == [0, 1]
    assert producer.last_sequence("t", 1) == 0
    assert producer.last_sequence("t", 3) is None
    assert give(producer, 2, 2, partition=3) == [0, 0]
    with pytest.raises(errors.ConfigError, match="counted"):
        give(producer, 5, partition=1)


# -- fencing -----------------------------------------------------------------------------------------------------------


FENCED_CALLS: dict[str, Callable[[Producer], object]] = {
    "send": lambda one: one.send("t", b"9", partition=0),
    "send with a sequence": lambda one: one.send("t", b"9", partition=1, sequence=9),
    "a repeat": lambda one: one.send("t", b"1", partition=1, sequence=1),
    "send_many": lambda one: one.send_many("t", [b"9"], partition=0),
    "last_sequence": lambda one: one.last_sequence("t", 0),
}


@pytest.mark.parametrize("call", FENCED_CALLS)
def test_who_opens_a_name_fences_who_had_it(bus: Bus, producer: Producer, call: str) -> None:
    producer.send("t", b"0", partition=0)
    give(producer, 1, partition=1)
    with bus.producer(name="n") as second:
        with pytest.raises(errors.FencedError, match="opened elsewhere"):
            FENCED_CALLS[call](producer)
        assert second.last_sequence("t", 0) == 0
        assert give(second, 1, 2, partition=1) == [0, 1]
        producer.flush()
    assert stored(bus) == [0]
    assert stored(bus, 1) == [1, 2]


def test_what_a_fenced_one_has_staged_is_not_stored(bus: Bus) -> None:
    bus.topic("t", partitions=2)
    first = bus.producer(name="n", linger_ms=60_000)
    give(first, 0)
    staged = [first.send("t", b"%d" % n, partition=0, sequence=n) for n in (1, 2)]
    staged.append(first.send("t", b"0", partition=1))
    second = bus.producer(name="n")
    assert second.last_sequence("t", 0) == 0
    with pytest.raises(errors.FencedError):
        first.flush()
    for delivery in staged:
        assert isinstance(delivery.exception(timeout=PATIENCE), errors.FencedError)
    assert give(second, 1) == [1]
    first.close()
    second.close()
    assert stored(bus) == [0, 1]
    assert stored(bus, 1) == []


def test_a_fenced_ones_close_tells_of_what_was_not_sent(bus: Bus) -> None:
    bus.topic("t")
    first = bus.producer(name="n", linger_ms=60_000)
    give(first, 0)
    first.send("t", b"1", partition=0, sequence=1)
    with bus.producer(name="n"):
        with pytest.raises(errors.FencedError):
            first.close()
        first.close()
    assert stored(bus) == [0]


def test_a_fenced_transaction_is_not_committed(bus: Bus) -> None:
    bus.topic("t", partitions=2)
    first = bus.producer(name="n")
    tx = first.transaction()
    tx.__enter__()
    sent = [tx.send("t", b"1", partition=0, sequence=1), tx.send("t", b"0", partition=1)]
    second = bus.producer(name="n")
    with pytest.raises(errors.FencedError):
        tx.__exit__(None, None, None)
    assert all(isinstance(one.exception(timeout=PATIENCE), errors.FencedError) for one in sent)
    with pytest.raises(errors.FencedError), first.transaction() as tx:
        tx.send("t", b"1", partition=0, sequence=1)
    assert second.last_sequence("t", 0) is None
    with second.transaction() as tx:
        tx.send("t", b"2", partition=0, sequence=2)
    first.close()
    second.close()
    assert stored(bus) == [2]
    assert stored(bus, 1) == []


def test_closing_a_fenced_one_forgets_nothing_of_the_other(bus: Bus) -> None:
    bus.topic("t")
    first = bus.producer(name="n")
    give(first, 1)
    with bus.producer(name="n") as second:
        give(second, 2, 3)
    first.close()
    with bus.producer(name="n") as third:
        assert third.last_sequence("t", 0) == 3
        assert give(third, 1, 2, 3, 4) == [0, 1, 2, 3]


def test_other_names_and_unnamed_ones_are_not_fenced(bus: Bus, producer: Producer) -> None:
    with bus.producer(name="m") as other, bus.producer() as nobody:
        give(other, 3)
        nobody.send("t", b"0", partition=0).result(timeout=PATIENCE)
        assert give(producer, 3) == [2]


@pytest.mark.needs("shared")
def test_another_bus_fences_too(open_bus: Callable[..., Bus]) -> None:
    bus, elsewhere = open_bus(), open_bus()
    bus.topic("t")
    first = bus.producer(name="n", linger_ms=60_000)
    give(first, 1)
    late = first.send("t", b"2", partition=0, sequence=2)
    with elsewhere.producer(name="n") as second:
        assert second.last_sequence("t", 0) == 1
        assert give(second, 1) == [0]
        assert isinstance(late.exception(timeout=PATIENCE), errors.FencedError)
        assert give(second, 2) == [1]
        with pytest.raises(errors.FencedError):
            give(first, 3)
    with bus.producer(name="n") as third:
        assert give(third, 1, 2, 3) == [0, 1, 2]
    first.close()


# -- transactions ------------------------------------------------------------------------------------------------------


def test_a_transactions_messages_are_counted_when_it_is_committed(bus: Bus, producer: Producer) -> None:
    producer.send("t", b"0", partition=0)
    with producer.transaction() as tx:
        tx.send("t", b"1", partition=0)
        tx.send_many("t", [b"2", b"3"], partition=0)
        tx.send("t", b"0", partition=1)
    assert producer.last_sequence("t", 0) == 3
    assert producer.last_sequence("t", 1) == 0
    with producer.transaction() as tx:
        tx.send("t", b"9", partition=0)
        tx.abort()
    assert producer.last_sequence("t", 0) == 3
    producer.send("t", b"4", partition=0)
    assert producer.last_sequence("t", 0) == 4
    assert stored(bus) == [0, 1, 2, 3, 4]


def test_repeats_in_and_after_a_transaction(bus: Bus, producer: Producer) -> None:
    give(producer, 1)
    with producer.transaction() as tx:
        before = tx.send("t", b"1", partition=0, sequence=1)
        assert before.result().offset == 0
        first, again = (tx.send("t", b"2", partition=0, sequence=2) for _ in range(2))
        tx.send("t", b"5", partition=0, sequence=5)
    assert first.result().offset == again.result().offset == 1
    assert give(producer, 1, 2, 5, 6) == [0, 1, 2, 3]
    with producer.transaction() as tx:
        assert tx.send("t", b"5", partition=0, sequence=5).result().offset == 2
        with pytest.raises(errors.ConfigError, match="sequence 3 "):
            tx.send("t", b"3", partition=0, sequence=3)
    with bus.producer(name="n") as second, second.transaction() as tx:
        assert tx.send("t", b"5", partition=0, sequence=5).result().offset == 2
        tx.send("t", b"7", partition=0, sequence=7)
    assert stored(bus) == [1, 2, 5, 6, 7]


@pytest.mark.parametrize("raising", [False, True])
def test_what_a_transaction_did_not_send_may_be_sent_again(bus: Bus, producer: Producer, *, raising: bool) -> None:
    give(producer, 1)
    with pytest.raises(ZeroDivisionError) if raising else bus.producer(), producer.transaction() as tx:
        for sequence in (2, 3, 4):
            tx.send("t", b"%d" % sequence, partition=0, sequence=sequence)
        if raising:
            raise ZeroDivisionError
        tx.abort()
    assert producer.last_sequence("t", 0) == 1
    with producer.transaction() as tx:
        for sequence in (2, 3, 4):
            tx.send("t", b"%d" % sequence, partition=0, sequence=sequence)
    assert producer.last_sequence("t", 0) == 4
    assert give(producer, 2, 3, 4) == [1, 2, 3]
    assert stored(bus) == [1, 2, 3, 4]


def test_a_transaction_that_was_overtaken_is_refused_whole(bus: Bus, producer: Producer) -> None:
    tx = producer.transaction()
    tx.__enter__()
    staged = [tx.send("t", b"1", partition=0, sequence=1), tx.send("t", b"1", partition=1, sequence=1)]
    beside(lambda: give(producer, 2)).result(timeout=PATIENCE)
    with pytest.raises(errors.ConfigError, match="sequence 1 "):
        tx.__exit__(None, None, None)
    assert all(isinstance(one.exception(), errors.ConfigError) for one in staged)
    assert stored(bus) == [2]
    assert stored(bus, 1) == []
    assert give(producer, 1, partition=1) == [0]
    assert give(producer, 3) == [1]


def test_a_repeat_of_what_an_open_transaction_holds_gets_its_result(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:
        tx.send("t", b"1", partition=0, sequence=1)
        again = beside(lambda: producer.send("t", b"1", partition=0, sequence=1)).result(timeout=PATIENCE)
        assert not again.done()
    assert again.result(timeout=PATIENCE).offset == 0
    assert stored(bus) == [1]


@pytest.mark.needs("durable")
def test_a_transactions_repeats_are_recognised_after_the_bus_was_closed(open_bus: Callable[..., Bus]) -> None:
    with open_bus() as bus:
        bus.topic("t", partitions=2)
        with bus.producer(name="n") as producer, producer.transaction() as tx:
            for sequence in (1, 2, 5):
                tx.send("t", b"%d" % sequence, partition=0, sequence=sequence)
    with open_bus() as bus, bus.producer(name="n") as producer:
        assert producer.last_sequence("t", 0) == 5
        assert give(producer, 1, 2, 5, 6) == [0, 1, 2, 3]
        assert stored(bus) == [1, 2, 5, 6]


# -- threads -----------------------------------------------------------------------------------------------------------


def test_threads_that_send_the_same_sequences_send_each_once(bus: Bus, producer: Producer) -> None:
    def run() -> dict[int, Delivery]:
        sent = {}
        for sequence in range(300):
            try:
                sent[sequence] = producer.send("t", b"%d" % sequence, partition=0, sequence=sequence)
            except errors.ConfigError:
                raise AssertionError(sequence) from None
        return sent

    runs = [beside(run) for _ in range(3)]
    for one in runs:
        for sequence, delivery in one.result(timeout=PATIENCE).items():
            assert delivery.result(timeout=PATIENCE).offset == sequence
    assert stored(bus) == list(range(300))


def test_threads_that_send_the_same_sequences_in_a_transaction_send_each_once(bus: Bus, producer: Producer) -> None:
    with producer.transaction() as tx:

        def run() -> list[Delivery]:
            return [tx.send("t", b"%d" % sequence, partition=0, sequence=sequence) for sequence in range(300)]

        runs = [beside(run) for _ in range(3)]
        sent = [one.result(timeout=PATIENCE) for one in runs]
    for deliveries in sent:
        assert [delivery.result(timeout=PATIENCE).offset for delivery in deliveries] == list(range(300))
    assert stored(bus) == list(range(300))


# -- asyncio -----------------------------------------------------------------------------------------------------------


def test_asyncio_counts_and_takes_given_sequences(bus: Bus) -> None:
    bus.topic("t", partitions=2)

    async def run() -> None:
        async with bus.async_producer(name="n") as producer:
            assert await producer.last_sequence("t", 0) is None
            first = await producer.send("t", b"3", partition=0, sequence=3)
            again = await producer.send("t", b"3", partition=0, sequence=3)
            assert await first == await again
            await (await producer.send("t", b"9", partition=0, sequence=9))
            assert (await (await producer.send("t", b"3", partition=0, sequence=3))).offset == 0
            for sequence in (0, 5):
                with pytest.raises(errors.ConfigError, match=f"sequence {sequence} "):
                    await producer.send("t", b"5", partition=0, sequence=sequence)
            await producer.send("t", b"0", partition=1)
            await producer.send_many("t", [b"1", b"2"], partition=1)
            assert await producer.last_sequence("t", 0) == 9
            assert await producer.last_sequence("t", 1) == 2

    asyncio.run(run())
    with bus.producer(name="n") as producer:
        assert producer.last_sequence("t", 1) == 2
        assert give(producer, 3, 9, 10) == [0, 1, 2]
    assert stored(bus) == [3, 9, 10]


def test_asyncio_refuses_what_the_sync_one_refuses(bus: Bus) -> None:
    bus.topic("t", partitions=2)

    async def run() -> None:
        async with bus.async_producer(name="n") as producer:
            with pytest.raises(errors.ConfigError, match="key or a partition"):
                await producer.send("t", b"a")
            with pytest.raises(errors.ConfigError, match="key or a partition"):
                await producer.send("t", b"a", sequence=1)
            with pytest.raises(errors.ConfigError, match="key or a partition"):
                await producer.send_many("t", [b"a", b"b"])
            with pytest.raises(errors.ConfigError, match="sequence"):
                await producer.send("t", b"a", partition=0, sequence=-1)
            await producer.send_many("t", [b"0", b"1"], partition=0)
            with pytest.raises(errors.ConfigError, match="counted"):
                await producer.send("t", b"a", partition=0, sequence=7)
            await producer.send("t", b"7", partition=1, sequence=7)
            with pytest.raises(errors.ConfigError, match="given"):
                await producer.send("t", b"a", partition=1)
            with pytest.raises(errors.ConfigError, match="given"):
                await producer.send_many("t", [b"a"], partition=1)
            with pytest.raises(errors.UnknownTopicError):
                await producer.last_sequence("t", 2)
        async with bus.async_producer() as producer:
            with pytest.raises(errors.ConfigError, match="named producer"):
                await producer.send("t", b"a", partition=0, sequence=7)
            with pytest.raises(errors.ConfigError, match="without a name"):
                await producer.last_sequence("t", 0)

    asyncio.run(run())
    assert stored(bus) == [0, 1]
    assert stored(bus, 1) == [7]


def test_asyncio_is_fenced_too(bus: Bus) -> None:
    bus.topic("t")

    async def run() -> None:
        first = bus.async_producer(name="n", linger_ms=60_000)
        await (await first.send("t", b"0", partition=0, sequence=0))
        late = await first.send("t", b"1", partition=0, sequence=1)
        async with bus.async_producer(name="n") as second:
            assert await second.last_sequence("t", 0) == 0
            assert isinstance(await asyncio.to_thread(late.exception, PATIENCE), errors.FencedError)
            with pytest.raises(errors.FencedError):
                await first.send("t", b"2", partition=0, sequence=2)
            with pytest.raises(errors.FencedError):
                await first.send_many("t", [b"2"], partition=0)
            with pytest.raises(errors.FencedError):
                await first.last_sequence("t", 0)
            assert (await (await second.send("t", b"1", partition=0, sequence=1))).offset == 1
        await first.close()

    asyncio.run(run())
    assert stored(bus) == [0, 1]


def test_asyncio_transactions_of_a_named_one(bus: Bus) -> None:
    bus.topic("t", partitions=2)

    async def run() -> None:
        async with bus.async_producer(name="n") as producer:
            async with producer.transaction() as tx:
                first = await tx.send("t", b"1", partition=0, sequence=1)
                assert await tx.send("t", b"1", partition=0, sequence=1) == first
                await tx.send_many("t", [b"0", b"1"], partition=1)
                with pytest.raises(errors.TransactionError):
                    await producer.send("t", b"2", partition=0, sequence=2)
                with pytest.raises(errors.TransactionError):
                    await producer.send("t", b"2", partition=1)
            async with producer.transaction() as tx:
                await tx.send("t", b"2", partition=0, sequence=2)
                await tx.abort()
            assert await producer.last_sequence("t", 0) == 1
            async with producer.transaction() as tx:
                await tx.send("t", b"2", partition=0, sequence=2)
            assert (await first).offset == 0
            assert await producer.last_sequence("t", 0) == 2
            assert await producer.last_sequence("t", 1) == 1

    asyncio.run(run())
    assert stored(bus) == [1, 2]
    assert stored(bus, 1) == [0, 1]


def test_what_is_noted_down_of_a_topic_goes_with_it(bus: Bus) -> None:
    """Or a program that makes topics and deletes them would fill the notes for ever."""
    for _ in range(3):
        bus.topic("t", partitions=2)
        bus.topic("kept")
        with bus.producer(name="n") as producer:
            for topic in ("t", "kept"):
                producer.send(topic, b"x", partition=0).result(timeout=PATIENCE)
        bus.delete_topic("t")
    notes = [key for key in bus._engine.meta.all_keys() if key[0] == "stored"]
    kept = bus._engine.registry.get("kept").incarnation
    assert [key[2] for key in notes] == [kept]
    with bus.producer(name="n") as producer:
        assert producer.last_sequence("kept", 0) == 2
