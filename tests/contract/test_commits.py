"""API.md, "Consumer": what is committed, when, and where a group of one member resumes.

`break`, `return`, an exception or `close` leave the last message (or last poll) unprocessed. So: at-least-once by
default, and nothing is committed that was not processed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest

from streamlite import Bus, Consumer, Topic, TopicPartition, errors
from streamlite.testing.clock import VirtualClock

from .helpers import PATIENCE, T0, beside, by_partition, committed, drain, numbers, put, take, tps, values, wait_until

OpenBus = Callable[..., Bus]

TP = TopicPartition("t", 0)


class Oops(Exception):
    """What goes wrong in a loop."""


def filled(bus: Bus, count: int = 10, partitions: int = 1) -> Topic:
    """A topic `t` with numbers in each partition."""
    topic = bus.topic("t", partitions=partitions)
    for partition in range(partitions):
        put(bus, topic, *numbers(count, partition * 1000), partition=partition)
    return topic


def breaking(consumer: Consumer) -> None:
    """Leave the loop at offset 4."""
    for message in consumer:
        if message.offset == 4:
            break


def returning(consumer: Consumer) -> None:
    """Leave the function at offset 4."""
    for message in consumer:
        if message.offset == 4:
            return


def fail_at_4(consumer: Consumer) -> None:
    """A loop that goes wrong at offset 4."""
    for message in consumer:
        if message.offset == 4:
            raise Oops


def raising(consumer: Consumer) -> None:
    """Leave the loop by an exception at offset 4."""
    with pytest.raises(Oops):
        fail_at_4(consumer)


def closing(consumer: Consumer) -> None:
    """Close at offset 4."""
    for message in consumer:
        if message.offset == 4:
            consumer.close()


def slicing(consumer: Consumer) -> None:
    """Ask for five messages and no more."""
    assert len(list(islice(consumer, 5))) == 5


@pytest.mark.parametrize("leave", [breaking, returning, raising, closing, slicing])
def test_leaving_a_loop_leaves_the_last_message_unprocessed(bus: Bus, leave: Callable[[Consumer], None]) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        leave(consumer)
    assert committed(bus, "t", "g") == 4
    with bus.consumer("t", group="g") as consumer:
        assert values(drain(consumer)) == numbers(6, 4)


def test_an_exception_that_leaves_the_block_leaves_the_last_message_unprocessed(bus: Bus) -> None:
    filled(bus)
    with pytest.raises(Oops), bus.consumer("t", group="g") as consumer:
        fail_at_4(consumer)
    assert committed(bus, "t", "g") == 4


def test_the_first_message_of_all_may_be_unprocessed(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        next(iter(consumer))
    assert committed(bus, "t", "g") is None


def test_closing_leaves_the_last_poll_unprocessed(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        assert len(take(consumer, 10)) == 10
    # `take` may have needed several calls, of which the last gave at least one message.
    assert (committed(bus, "t", "g") or 0) < 10
    with bus.consumer("t", group="g") as consumer:
        assert values(consumer.poll(timeout=1, max_messages=4)) == numbers(4)
    assert committed(bus, "t", "g") is None
    with bus.consumer("t", group="g") as consumer:
        assert values(consumer.poll(timeout=1, max_messages=4)) == numbers(4)
        assert values(consumer.poll(timeout=1, max_messages=3)) == numbers(3, 4)
    assert committed(bus, "t", "g") == 4


def test_polling_again_processes_what_the_last_poll_gave(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        take(consumer, 10)
        assert consumer.poll() == []
    assert committed(bus, "t", "g") == 10


def test_polling_columns_again_does_too(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        assert sum(len(columns.offsets) for columns in consumer.poll_columns(timeout=1, max_messages=4)) == 4
        assert sum(len(columns.offsets) for columns in consumer.poll_columns(timeout=1, max_messages=3)) == 3
    assert committed(bus, "t", "g") == 4


def test_an_exhausted_loop_processed_everything(bus: Bus) -> None:
    filled(bus, partitions=2)
    with bus.consumer("t", group="g") as consumer:
        assert len(list(consumer.messages(timeout=1))) == 20
    assert [committed(bus, "t", "g", partition) for partition in (0, 1)] == [10, 10]


def test_each_partition_is_committed_as_far_as_it_was_processed(bus: Bus) -> None:
    filled(bus, partitions=3)
    handled = []
    with bus.consumer("t", group="g") as consumer:
        for message in consumer:
            if len(handled) == 17:
                break
            handled.append(message)
    done = {TopicPartition("t", message.partition): message.offset + 1 for message in handled}
    assert bus.group("g").committed == done
    with bus.consumer("t", group="g") as consumer:
        assert by_partition([*handled, *drain(consumer)]) == {n: numbers(10, n * 1000) for n in range(3)}


@pytest.mark.needs("clock")
def test_nothing_is_committed_that_was_not_processed(bus: Bus, clock: VirtualClock) -> None:
    filled(bus, count=50)
    with bus.consumer("t", group="g") as consumer:
        for message in islice(consumer.messages(timeout=1), 40):
            clock.advance(1)
            assert (consumer.committed(TP) or 0) <= message.offset
    assert committed(bus, "t", "g") == 39


def test_who_processed_nothing_commits_nothing(bus: Bus) -> None:
    filled(bus, partitions=2).truncate_before(1, 3)
    with bus.consumer("t", group="g"):
        pass
    assert [committed(bus, "t", "g", partition) for partition in (0, 1)] == [None, None]
    with bus.consumer("t", group="g") as consumer:
        consumer.seek(TP, 7)
        assert consumer.poll(timeout=1, max_messages=1)
    assert [committed(bus, "t", "g", partition) for partition in (0, 1)] == [None, None]


# --- when ---------------------------------------------------------------------------------------------------------


def test_processed_messages_are_committed_before_the_loop_blocks(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g", auto_commit_interval_ms=10**9) as consumer:
        take(consumer, 10)
        assert consumer.poll(timeout=1) == []
        assert bus.group("g").committed == {TP: 10}
        put(bus, "t", b"10")
        assert values(consumer.messages(timeout=1)) == [b"10"]
        assert bus.group("g").committed == {TP: 11}


def test_a_loop_that_blocks_has_committed(open_bus: OpenBus) -> None:
    bus = open_bus(clock=None)
    filled(bus)
    consumer = bus.consumer("t", group="g", auto_commit_interval_ms=10**9)
    reading = beside(lambda: values(consumer))
    wait_until(lambda: bus.group("g").committed == {TP: 10})
    assert not reading.done()
    consumer.wakeup()
    assert reading.result(timeout=PATIENCE) == numbers(10)
    consumer.close()


@pytest.mark.needs("clock")
def test_processed_messages_are_committed_at_every_interval(bus: Bus, clock: VirtualClock) -> None:
    filled(bus, count=100)
    with bus.consumer("t", group="g", auto_commit_interval_ms=100) as consumer:
        seen = []
        for number in range(50):
            take(consumer, 1)
            clock.advance(0.2)
            found = consumer.committed(TP) or 0
            assert found <= number
            seen.append(found)
    assert seen[-1] >= 40
    assert seen == sorted(seen)


@pytest.mark.needs("clock")
def test_but_not_before_its_interval_has_passed(bus: Bus, clock: VirtualClock) -> None:
    filled(bus, count=100)
    with bus.consumer("t", group="g", auto_commit_interval_ms=60_000) as consumer:
        for _ in range(20):
            assert len(consumer.poll(max_messages=1)) == 1
        assert consumer.committed(TP) is None
    assert committed(bus, "t", "g") == 19


@pytest.mark.parametrize("leave", ["unsubscribe", "subscribe", "assign"])
def test_processed_messages_are_committed_on_revoke(bus: Bus, leave: str) -> None:
    filled(bus)
    bus.topic("u")
    with bus.consumer("t", group="g", auto_commit_interval_ms=10**9) as consumer:
        take(consumer, 4)
        assert consumer.poll(max_messages=3)
        if leave == "unsubscribe":
            consumer.unsubscribe()
        elif leave == "subscribe":
            consumer.subscribe("u")
        else:
            consumer.unsubscribe()
            consumer.assign([TopicPartition("u", 0)])
        assert bus.group("g").committed == {TP: 4}


# --- auto_commit=False --------------------------------------------------------------------------------------------


@pytest.mark.needs("clock")
def test_without_auto_commit_nothing_is_committed_unasked(bus: Bus, clock: VirtualClock) -> None:
    filled(bus)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        for _ in range(3):
            take(consumer, 3)
            clock.advance(10)
        drain(consumer)
        assert consumer.committed(TP) is None
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        assert values(consumer.messages(timeout=1)) == numbers(10)
    assert committed(bus, "t", "g") is None


def test_without_auto_commit_what_is_asked_is_committed(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        take(consumer, 4)
        consumer.commit()
        take(consumer, 3)
    assert committed(bus, "t", "g") == 4
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        assert values(drain(consumer)) == numbers(6, 4)


# --- commit and committed -----------------------------------------------------------------------------------------


def test_a_commit_of_nothing_said_takes_all_that_was_handed_out(bus: Bus) -> None:
    filled(bus, partitions=2)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.commit()
        assert [consumer.committed(tp) for tp in sorted(tps("t", 2))] in ([None, None], [0, 0])
        messages = take(consumer, 13)
        consumer.commit()
        handed = {tp: consumer.position(tp) for tp in tps("t", 2)}
        assert sum(handed.values()) == len(messages) == 13
        assert {tp: consumer.committed(tp) or 0 for tp in tps("t", 2)} == handed


def test_a_commit_inside_a_loop_takes_the_message_in_hand(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        for message in consumer:
            consumer.commit()
            assert consumer.committed(TP) == message.offset + 1
            if message.offset == 3:
                break
    assert committed(bus, "t", "g") == 4


def test_a_commit_of_a_message_is_its_offset_and_one(bus: Bus) -> None:
    filled(bus, partitions=2)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        messages = drain(consumer)
        chosen = next(message for message in messages if message.value == b"1006")
        consumer.commit(chosen)
        assert consumer.committed(TopicPartition("t", 1)) == 7
        assert consumer.committed(TP) is None
    with bus.consumer("t", group="g") as consumer:
        assert by_partition(drain(consumer)) == {0: numbers(10), 1: numbers(3, 1007)}


def test_a_commit_of_offsets_is_the_next_to_read(bus: Bus) -> None:
    filled(bus, partitions=2)
    first, second = sorted(tps("t", 2))
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.commit({first: 3, second: 10})
        assert (consumer.committed(first), consumer.committed(second)) == (3, 10)
        consumer.commit({first: 0})
        assert (consumer.committed(first), consumer.committed(second)) == (0, 10)
        assert consumer.position(first) == 0
    with bus.consumer("t", group="g") as consumer:
        assert consumer.position(second) == 10
        assert by_partition(drain(consumer)) == {0: numbers(10)}


def test_closing_does_not_take_a_commit_back(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        for message in consumer:
            if message.offset == 3:
                consumer.commit(message)
                break
    assert committed(bus, "t", "g") == 4
    with bus.consumer("t", group="g") as consumer:
        take(consumer, 2)
        consumer.commit({TP: 9})
    assert committed(bus, "t", "g") == 9
    with bus.consumer("t", group="g") as consumer:
        consumer.commit({TP: 1})
    assert committed(bus, "t", "g") == 1


def test_a_message_committed_is_processed(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g") as consumer:
        for message in consumer:
            if message.offset == 3:
                consumer.commit(message)
                break
        assert values(islice(consumer, 1)) == [b"4"]


@pytest.mark.parametrize("auto_commit", [True, False])
def test_a_commit_does_not_move_the_position(bus: Bus, auto_commit: bool) -> None:
    filled(bus)
    with bus.consumer("t", group="g", auto_commit=auto_commit) as consumer:
        messages = take(consumer, 6)
        consumer.commit(messages[2])
        assert consumer.position(TP) == 6
        assert values(take(consumer, 2)) == numbers(2, 6)


def test_committed_is_none_before_the_first_commit(bus: Bus) -> None:
    filled(bus, partitions=2)
    with bus.consumer("t", group="g") as consumer:
        assert [consumer.committed(tp) for tp in tps("t", 2)] == [None, None]
        consumer.commit({TP: 5})
        assert consumer.committed(TopicPartition("t", 1)) is None


def test_a_commit_without_a_group_is_a_config_error(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t") as consumer:
        (message,) = take(consumer, 1)
        for what in (None, message, {TP: 1}, {}):
            with pytest.raises(errors.ConfigError, match="group"):
                consumer.commit(what)
    assert bus.groups() == []


@pytest.mark.parametrize(
    "what", [5, "t", [TP], {TP: -1}, {TP: "1"}, {TP: 1.5}, {TP: None}, {"t": 1}, ("t", 0, 1)], ids=repr
)
def test_what_is_no_offset_cannot_be_committed(bus: Bus, what: Any) -> None:
    filled(bus)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        with pytest.raises(errors.ConfigError):
            consumer.commit(what)
        assert consumer.committed(TP) is None


# --- resuming -----------------------------------------------------------------------------------------------------


def test_a_group_resumes_where_it_committed(bus: Bus) -> None:
    filled(bus, count=20)
    found = []
    for _ in range(5):
        with bus.consumer("t", group="g") as consumer:
            assert consumer.position(TP) == len(found)
            found += take(consumer, 4)
            consumer.commit()
    assert values(found) == numbers(20)
    with bus.consumer("t", group="g") as consumer:
        assert drain(consumer) == []
        put(bus, "t", b"20")
        assert values(drain(consumer)) == [b"20"]


def test_groups_do_not_share_commits(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.commit({TP: 7})
    with bus.consumer("t", group="h") as consumer:
        assert values(drain(consumer)) == numbers(10)
    assert committed(bus, "t", "g") == 7


def test_topics_do_not_share_commits(bus: Bus) -> None:
    filled(bus)
    put(bus, bus.topic("u"), *numbers(5))
    with bus.consumer("t", "u", group="g", auto_commit=False) as consumer:
        consumer.commit({TP: 7, TopicPartition("u", 0): 2})
    with bus.consumer("t", "u", group="g") as consumer:
        found: dict[str, list[Any]] = {}
        for message in drain(consumer):
            found.setdefault(message.topic, []).append(message.value)
    assert found == {"t": numbers(3, 7), "u": numbers(3, 2)}


@pytest.mark.needs("durable")
def test_a_group_resumes_after_reopening(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        filled(bus, count=30, partitions=2)
    found = []
    for _ in range(6):
        with open_bus() as bus, bus.consumer("t", group="g") as consumer:
            found += take(consumer, 10)
            consumer.commit()
    assert by_partition(found) == {0: numbers(30), 1: numbers(30, 1000)}
    with open_bus() as bus:
        assert bus.group("g").committed == {TopicPartition("t", n): 30 for n in (0, 1)}


@pytest.mark.needs("durable")
def test_after_a_failure_nothing_is_lost_and_only_the_failed_message_comes_twice(open_bus: OpenBus) -> None:
    with open_bus() as bus:
        filled(bus, count=20)
    handled = []
    for failing in (3, 8, 15, None):
        try:
            with open_bus() as bus, bus.consumer("t", group="g") as consumer:
                for message in consumer.messages(timeout=1):
                    handled.append(message.offset)
                    if message.offset == failing:
                        raise Oops
        except Oops:
            continue
    assert handled == [*range(4), *range(3, 9), *range(8, 16), *range(15, 20)]


def test_a_partition_assigned_by_hand_resumes_too(bus: Bus) -> None:
    filled(bus, partitions=2)
    with bus.consumer(group="g") as consumer:
        consumer.assign([TP])
        take(consumer, 6)
        consumer.commit()
    with bus.consumer(group="g") as consumer:
        consumer.assign([TP])
        assert values(drain(consumer)) == numbers(4, 6)


# --- start, where a group has no offset ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "expected"),
    [("latest", 10), (datetime.fromtimestamp(T0 / 1000, UTC) + timedelta(seconds=6), 6)],
    ids=["latest", "moment"],
)
def test_another_start_is_resolved_and_committed_when_first_owned(bus: Bus, start: Any, expected: int) -> None:
    topic = bus.topic("t", partitions=2)
    with bus.producer() as producer:
        for partition in (0, 1):
            times = [T0 + 1000 * number for number in range(10)]
            producer.send_many(topic, numbers(10), partition=partition, timestamps=times)
    with bus.consumer("t", group="g", start=start) as consumer:
        assert [consumer.committed(tp) for tp in sorted(tps("t", 2))] == [expected, expected]
    put(bus, topic, b"between", partition=1)
    with bus.consumer("t", group="g", start=start) as consumer:
        left = numbers(10 - expected, expected)
        assert by_partition(drain(consumer)) == {n: m for n, m in {0: left, 1: [*left, b"between"]}.items() if m}


def test_earliest_is_not_committed_before_something_is_processed(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g", start="earliest") as consumer:
        assert consumer.committed(TP) is None


def test_start_means_nothing_where_the_group_has_an_offset(bus: Bus) -> None:
    filled(bus)
    with bus.consumer("t", group="g", auto_commit=False) as consumer:
        consumer.commit({TP: 4})
    for start in ("latest", "earliest", datetime.fromtimestamp(0, UTC)):
        with bus.consumer("t", group="g", start=start, auto_commit=False) as consumer:
            assert values(drain(consumer)) == numbers(6, 4)


def test_partitions_that_appear_later_start_at_earliest(bus: Bus) -> None:
    topic = filled(bus)
    with bus.consumer("t", group="g", start="latest"):
        pass
    topic.increase_partitions(2)
    put(bus, topic, *numbers(3, 1000), partition=1)
    with bus.consumer("t", group="g", start="latest") as consumer:
        assert by_partition(drain(consumer)) == {1: numbers(3, 1000)}
