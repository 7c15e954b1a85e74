"""Offsets in the user's own database: the SQL that reaches a driver, what is refused, and where reading goes on.

The driver is SQLite's, dressed as one of every paramstyle: it insists on its own marks and hands the rest through.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import streamlite
from streamlite import Bus, Consumer, Message, TopicPartition, errors
from streamlite.dbapi import OffsetStore

TP, TP1 = TopicPartition("t", 0), TopicPartition("t", 1)
COLUMNS = ("topic", "partition_number", "next_offset", "epoch", "incarnation")
MARKS = {
    "qmark": r"\?",
    "numeric": r":(\d+)",
    "named": r":([a-z_]+)",
    "format": r"%s",
    "pyformat": r"%\(([a-z_]+)\)s",
}


@pytest.fixture
def bus() -> Iterator[Bus]:
    with streamlite.open(":memory:") as bus:
        fill(bus, partitions=2)
        yield bus


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        OffsetStore(connection, group="g").create()
        connection.execute("CREATE TABLE done (partition_number, value)")
        yield connection


def fill(bus: Bus, partitions: int = 1, count: int = 10, topic: str = "t") -> None:
    made = bus.topic(topic, partitions=partitions)
    with bus.producer() as producer:
        for partition in range(partitions):
            producer.send_many(made, [b"%d" % number for number in range(count)], partition=partition).result(10)


def rows(connection: sqlite3.Connection) -> dict[tuple[str, int], int]:
    """The stored offsets, whoever's they are."""
    found = connection.execute("SELECT topic, partition_number, next_offset FROM streamlite_offsets")
    return {(topic, partition): offset for topic, partition, offset in found}


def done(connection: sqlite3.Connection, partition: int = 0) -> list[int]:
    """What the messages of a partition did to the user's table, in the order of doing."""
    found = connection.execute("SELECT value FROM done WHERE partition_number = ? ORDER BY rowid", (partition,))
    return [int(value) for (value,) in found]


def process(connection: sqlite3.Connection, messages: list[Message]) -> None:
    for message in messages:
        connection.execute("INSERT INTO done VALUES (?, ?)", (message.partition, message.value))


def step(store: OffsetStore, consumer: Consumer, most: int) -> list[Message]:
    """One poll, one transaction."""
    messages = consumer.poll(max_messages=most)
    with store.connection, store.saving(consumer, messages):
        process(store.connection, messages)
    return messages


def reader(bus: Bus, store: OffsetStore, *partitions: TopicPartition) -> Consumer:
    """A consumer without a group, which stands where the store says."""
    consumer = bus.consumer()
    consumer.assign(partitions or [TP])
    store.restore(consumer)
    return consumer


# -- drivers -----------------------------------------------------------------------------------------------------------


class Cursor:
    """SQLite's, for statements in one paramstyle and no other."""

    def __init__(self, cursor: Any, style: str) -> None:
        self._cursor = cursor
        self._style = style
        self.closed = False

    def execute(self, sql: str, parameters: Any = ()) -> None:
        assert not self.closed
        names = [found[1] if found.re.groups else "" for found in re.finditer(MARKS[self._style], sql)]
        if self._style in ("named", "pyformat"):
            assert not parameters or parameters.keys() == set(names)
            parameters = [parameters[name] for name in names]
        elif self._style == "numeric":
            assert names == [str(number) for number in range(1, len(names) + 1)]
        assert len(names) == len(parameters)
        sql = re.sub(MARKS[self._style], "?", sql)
        assert not re.search(r"[%:]", sql), f"a mark of another style: {sql}"
        self._cursor.execute(sql, parameters)

    def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    def close(self) -> None:
        self.closed = True
        self._cursor.close()


class Driver:
    """A DB-API module, loaded under a name of its own, whose connection is of a class in a module below."""

    def __init__(self, style: str) -> None:
        class Connection:
            def __init__(self, connection: sqlite3.Connection) -> None:
                self.inner = connection
                self.cursors: list[Cursor] = []

            def cursor(self) -> Cursor:
                self.cursors.append(Cursor(self.inner.cursor(), style))
                return self.cursors[-1]

        Connection.__module__ = f"driver_{style}.of.connections"
        self.connect = Connection
        self.module: Any = ModuleType(f"driver_{style}")
        self.module.paramstyle = style


@pytest.mark.parametrize("style", MARKS)
def test_each_paramstyle_is_found_and_used(
    bus: Bus, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    driver = Driver(style)
    monkeypatch.setitem(sys.modules, f"driver_{style}", driver.module)
    dressed = driver.connect(connection)
    store = OffsetStore(dressed, group="g")
    store.create()
    with reader(bus, store, TP, TP1) as consumer:
        consumer.pause(TP1)
        store.save(consumer.poll(max_messages=3))
        store.save(consumer.poll(max_messages=3))
        store.save({TP1: 7})
    assert rows(connection) == {TP: 6, TP1: 7}
    with reader(bus, OffsetStore(dressed, group="g"), TP, TP1) as consumer:
        assert (consumer.position(TP), consumer.position(TP1)) == (6, 7)
    assert all(cursor.closed for cursor in dressed.cursors)


@pytest.mark.parametrize("style", MARKS)
def test_a_paramstyle_that_is_given_counts(connection: sqlite3.Connection, style: str) -> None:
    dressed = Driver(style).connect(connection)
    with pytest.raises(errors.ConfigError, match="paramstyle="):
        OffsetStore(dressed, group="g")
    assert OffsetStore(dressed, group="g", paramstyle=style)._rows() == {}


@pytest.mark.parametrize("style", ["", "QMARK", "dollar", 5], ids=repr)
def test_an_unknown_paramstyle_is_refused(connection: sqlite3.Connection, style: Any) -> None:
    with pytest.raises(errors.ConfigError, match="qmark"):
        OffsetStore(connection, group="g", paramstyle=style)


def test_a_class_of_ones_own_over_the_drivers_is_known() -> None:
    class Mine(sqlite3.Connection):
        pass

    with closing(sqlite3.connect(":memory:", factory=Mine)) as connection:
        OffsetStore(connection, group="g").create()
        assert OffsetStore(connection, group="g")._rows() == {}


def test_a_cursor_does_as_well(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection.cursor(), group="g")
    with reader(bus, store) as consumer, connection:
        store.save(consumer.poll(max_messages=4))
    assert rows(connection) == {TP: 4}


@pytest.mark.parametrize("factory", [sqlite3.Row, lambda cursor, row: dict(zip(COLUMNS, row, strict=True))])
def test_rows_may_be_dicts(bus: Bus, connection: sqlite3.Connection, factory: Any) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        step(store, consumer, 4)
    connection.row_factory = factory
    with reader(bus, OffsetStore(connection, group="g")) as consumer:
        assert consumer.position(TP) == 4


@pytest.mark.parametrize("count", [-1, 2])
def test_a_driver_that_does_not_count_rows_is_refused(
    bus: Bus, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    dressed = Driver("qmark").connect(connection)
    store = OffsetStore(dressed, group="g", paramstyle="qmark")
    with reader(bus, store) as consumer:
        store.save(consumer.poll(max_messages=1))
        monkeypatch.setattr(Cursor, "rowcount", count)
        with pytest.raises(errors.UnsupportedError, match=str(count)):
            store.save(consumer.poll(max_messages=1))


def test_an_error_of_the_driver_is_passed_on(bus: Bus) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        store = OffsetStore(connection, group="g")
        with pytest.raises(sqlite3.OperationalError, match="streamlite_offsets"):
            reader(bus, store)
        store.create()
        with reader(bus, store) as consumer:
            messages = consumer.poll()
            connection.execute("DROP TABLE streamlite_offsets")
            with pytest.raises(sqlite3.OperationalError, match="streamlite_offsets"), store.saving(consumer, messages):
                pass
            assert consumer.position(TP) == 0


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["offsets", "_o1", "main.offsets", "A" * 63])
def test_a_tables_name_may_have_a_schema(bus: Bus, connection: sqlite3.Connection, table: str) -> None:
    store = OffsetStore(connection, group="g", table=table)
    store.create()
    store.create()
    with reader(bus, store) as consumer, connection:
        store.save(consumer.poll(max_messages=2))
    assert connection.execute(f"SELECT next_offset FROM {table}").fetchall() == [(2,)]
    assert store.schema.startswith(f"CREATE TABLE IF NOT EXISTS {table} (")


@pytest.mark.parametrize(
    "table",
    ["", "1a", "a b", "a;b", "a.b.c", ".a", "a.", "a\n", 'a"', "a'--", "ä", "a(b)", "{group}", "a" * 64, None, b"a", 5],
    ids=repr,
)
def test_any_other_name_of_a_table_is_refused(connection: sqlite3.Connection, table: Any) -> None:
    with pytest.raises(errors.InvalidNameError):
        OffsetStore(connection, group="g", table=table)


@pytest.mark.parametrize("group", ["", "a b", "__g", "a'b", None], ids=repr)
def test_a_group_has_the_form_of_a_groups_name(connection: sqlite3.Connection, group: Any) -> None:
    with pytest.raises(errors.InvalidNameError):
        OffsetStore(connection, group=group)


def test_repr_says_whose_and_where(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="billing")
    with reader(bus, store):
        assert repr(store) == "<OffsetStore of group 'billing' in streamlite_offsets: 1 partitions>"


# -- where reading goes on ---------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_was_done(bus: Bus, connection: sqlite3.Connection) -> None:
    for expected in (4, 8, 10):
        store = OffsetStore(connection, group="g")
        with reader(bus, store) as consumer:
            step(store, consumer, 4)
            consumer.poll(max_messages=1)  # handed out, and not done
        assert rows(connection) == {TP: expected}
    assert done(connection) == list(range(10))


def test_message_by_message(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with bus.consumer("t", on_assign=store.restore) as consumer:
        for message in consumer.messages(timeout=0):
            with connection, store.saving(consumer, message):
                process(connection, [message])
            assert rows(connection)[TopicPartition("t", message.partition)] == message.offset + 1
    assert done(connection) == done(connection, 1) == list(range(10))


def test_groups_and_topics_do_not_meet(bus: Bus, connection: sqlite3.Connection) -> None:
    fill(bus, topic="u")
    one, other = OffsetStore(connection, group="one"), OffsetStore(connection, group="other")
    with reader(bus, one, TP) as first, reader(bus, one, TopicPartition("u", 0)) as second, reader(bus, other) as third:
        step(one, first, 3)
        step(one, second, 4)
        assert third.position(TP) == 0
        step(other, third, 5)
    with reader(bus, OffsetStore(connection, group="one"), TP, TopicPartition("u", 0)) as consumer:
        assert (consumer.position(TP), consumer.position(TopicPartition("u", 0))) == (3, 4)


def test_nothing_is_written_where_nothing_was_done(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        store.save([])
        step(store, consumer, 3)
        changes = connection.total_changes
        store.save([])
        store.save({TP: 3})
        assert connection.total_changes == changes


def test_the_first_offset_may_be_any(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    consumer = bus.consumer("t", start="latest", on_assign=store.restore)
    fill(bus, partitions=2)
    with pytest.raises(ZeroDivisionError):
        fail(store, consumer)
    store.restore(consumer)
    assert consumer.position(TP) == 10, "it goes back to where it began, and no further"
    while step(store, consumer, 5):
        pass
    consumer.close()
    assert rows(connection) == {TP: 20, TP1: 20}
    assert len(done(connection)) == 10


def fail(store: OffsetStore, consumer: Consumer) -> None:
    messages = consumer.poll()
    with store.connection, store.saving(consumer, messages):
        process(store.connection, messages)
        raise ZeroDivisionError


def test_what_failed_is_handed_out_again(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store, TP, TP1) as consumer:
        for _ in range(8):
            step(store, consumer, 3)
            with pytest.raises(ZeroDivisionError):
                fail(store, consumer)
        assert not consumer.poll()
    assert done(connection) == done(connection, 1) == list(range(10))


def test_what_failed_in_a_loop_is_handed_out_again(bus: Bus, connection: sqlite3.Connection) -> None:
    store, failures = OffsetStore(connection, group="g"), iter([True, False] * 20)
    with reader(bus, store) as consumer:
        for message in consumer.messages(timeout=0):
            try:
                with connection, store.saving(consumer, message):
                    process(connection, [message])
                    if next(failures):
                        raise ZeroDivisionError
            except ZeroDivisionError:
                continue
    assert done(connection) == list(range(10))


def test_a_failure_after_closing_is_the_one_that_is_raised(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    consumer = reader(bus, store)
    with pytest.raises(ZeroDivisionError), store.saving(consumer, consumer.poll()), consumer:
        raise ZeroDivisionError


@pytest.mark.parametrize("saved", [0, 4])
def test_a_transaction_that_was_rolled_back_and_not_told_is_noticed(
    bus: Bus, connection: sqlite3.Connection, saved: int
) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        if saved:
            step(store, consumer, saved)
        store.save(consumer.poll(max_messages=3))
        connection.rollback()
        with pytest.raises(errors.FencedError, match="rolled back"):
            step(store, consumer, 3)
        store.restore(consumer)
        assert consumer.position(TP) == saved
        while step(store, consumer, 3):
            pass
    assert done(connection) == list(range(10))


def test_going_back_by_hand_does_nothing_twice(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        step(store, consumer, 6)
        consumer.seek(TP, 5)
        with pytest.raises(errors.FencedError, match="saved before"):
            step(store, consumer, 3)
        assert consumer.position(TP) == 6
        step(store, consumer, 10)
    assert done(connection) == list(range(10))


def test_a_message_counts_once(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        messages = consumer.poll()
        for wrong in ([messages[0], messages[0]], [messages[1], messages[0]]):
            with pytest.raises(errors.FencedError, match="twice"):
                store.save(wrong)
        store.save(messages)
    assert rows(connection) == {TP: 10}


def test_a_dict_of_offsets_may_go_back(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        step(store, consumer, 6)
        with connection:
            connection.execute("DELETE FROM done")
            store.save({TP: 0})
        store.restore(consumer)
        step(store, consumer, 20)
    assert done(connection) == list(range(10))


def test_an_offset_that_the_operator_changed_counts(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        step(store, consumer, 6)
        with connection:
            connection.execute("UPDATE streamlite_offsets SET next_offset = 8")
        with pytest.raises(errors.FencedError):
            step(store, consumer, 1)
        store.restore(consumer)
        step(store, consumer, 20)
        assert done(connection) == [0, 1, 2, 3, 4, 5, 8, 9]


def test_an_offset_that_the_operator_deleted_is_forgotten(bus: Bus, connection: sqlite3.Connection) -> None:
    with reader(bus, first := OffsetStore(connection, group="g")) as consumer:
        step(first, consumer, 6)
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        step(store, consumer, 1)
        with connection:
            connection.execute("DELETE FROM streamlite_offsets")
        with pytest.raises(errors.FencedError):
            step(store, consumer, 1)
        store.restore(consumer)
        assert consumer.position(TP) == 0
        step(store, consumer, 2)
    assert rows(connection) == {TP: 2}


# -- epochs and incarnations -------------------------------------------------------------------------------------------


def test_an_offset_that_a_stop_of_the_machine_took_back_skips_nothing(
    tmp_path: Path, connection: sqlite3.Connection
) -> None:
    store = OffsetStore(connection, group="g")
    with streamlite.open(tmp_path / "bus") as bus:
        fill(bus)
        with reader(bus, store) as consumer, connection:
            epoch = consumer.epoch(TP)
            store.save({TP: 13})  # as after three messages more, which the stop took
    for name in ("clean", "counters"):
        (tmp_path / "bus" / name).unlink()
    with streamlite.open(tmp_path / "bus") as bus:
        fill(bus)  # offsets 10 to 19, of a later epoch
        with reader(bus, again := OffsetStore(connection, group="g")) as consumer:
            assert consumer.epoch(TP) > epoch
            assert consumer.position(TP) == 10
            step(again, consumer, 4)
            later = consumer.epoch(TP)
        with reader(bus, OffsetStore(connection, group="g")) as consumer:
            assert consumer.position(TP) == 14
    assert connection.execute("SELECT next_offset, epoch FROM streamlite_offsets").fetchall() == [(14, later)]


@pytest.mark.parametrize("again", [False, True], ids=["a new store", "the same store"])
def test_an_offset_of_a_deleted_topic_is_not_used(
    bus: Bus, connection: sqlite3.Connection, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        step(store, consumer, 6)
    bus.delete_topic("t")
    fill(bus)
    store = store if again else OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        assert "deleted topic" in caplog.text
        assert consumer.position(TP) == 0
        consumer.poll(max_messages=5)
        store.restore(consumer)
        assert consumer.position(TP) == 0
        step(store, consumer, 4)
    assert rows(connection) == {TP: 4}
    with reader(bus, OffsetStore(connection, group="g")) as consumer:
        assert consumer.position(TP) == 4


# -- who may save ------------------------------------------------------------------------------------------------------


def test_of_two_that_found_the_same_offset_one_saves(bus: Bus, connection: sqlite3.Connection) -> None:
    for offset in (0, 3, 6):
        stores = [OffsetStore(connection, group="g") for _ in range(2)]
        late, soon = (reader(bus, store) for store in stores)
        assert late.position(TP) == soon.position(TP) == offset
        step(stores[1], soon, 3)
        with pytest.raises(errors.FencedError, match="another consumer"):
            step(stores[0], late, 2)
        stores[0].restore(late)
        assert late.position(TP) == offset + 3
        late.close()
        soon.close()
    assert done(connection) == list(range(9))


def test_a_transaction_with_one_refused_partition_is_refused_whole(bus: Bus, connection: sqlite3.Connection) -> None:
    store, other = OffsetStore(connection, group="g"), OffsetStore(connection, group="g")
    with reader(bus, store, TP, TP1) as consumer, reader(bus, other, TP1) as second:
        step(other, second, 1)
        messages = [*consumer.poll(), *consumer.poll()]
        assert {message.partition for message in messages} == {0, 1}
        with pytest.raises(errors.FencedError), connection, store.saving(consumer, messages):
            process(connection, messages)
        assert rows(connection) == {TP1: 1}
        assert (done(connection), done(connection, 1)) == ([], [0])
        store.restore(consumer)
        while step(store, consumer, 20):
            pass
    assert done(connection) == done(connection, 1) == list(range(10))


def test_a_partition_that_was_not_restored_is_refused(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with bus.consumer("t") as consumer:
        for what in (consumer.poll(), {TP: 3}, {"t": 3}):
            with pytest.raises(errors.ConfigError, match="on_assign"):
                store.save(what)
        with pytest.raises(errors.ConfigError, match="not assigned"):
            store.restore(bus.consumer(), [TP])
    assert rows(connection) == {}


@pytest.mark.parametrize("wrong", [[b"x"], {TP: -1}, {TP: "3"}, {TP: True}], ids=repr)
def test_what_is_no_message_and_no_offset_is_refused(bus: Bus, connection: sqlite3.Connection, wrong: Any) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store), pytest.raises(errors.ConfigError):
        store.save(wrong)


def test_offsets_that_the_consumer_commits_by_itself_are_refused(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with pytest.raises(errors.ConfigError, match="auto_commit=False"):
        bus.consumer("t", group="g", on_assign=store.restore)
    assert bus.groups() == []
    with bus.consumer("t", group="g", auto_commit=False, on_assign=store.restore) as consumer:
        step(store, consumer, 3)


def test_an_async_consumer_is_refused(bus: Bus, connection: sqlite3.Connection) -> None:
    with pytest.raises(errors.ConfigError, match="AsyncConsumer"):
        OffsetStore(connection, group="g").restore(bus.async_consumer("t"))  # type: ignore[arg-type]


@pytest.mark.parametrize("of", [lambda connection: connection, lambda connection: connection.cursor()])
def test_a_connection_that_commits_every_statement_is_told(bus: Bus, of: Callable[[Any], Any]) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        store = OffsetStore(of(connection), group="g")
        store.create()
        with reader(bus, store) as consumer:
            with pytest.raises(errors.ConfigError, match="transaction"):
                store.save(consumer.poll(max_messages=1))
            store.restore(consumer)
            connection.execute("BEGIN")
            store.save(consumer.poll(max_messages=1))
            connection.execute("COMMIT")
        assert rows(connection) == {TP: 2}


def test_nothing_is_committed_or_rolled_back(bus: Bus, connection: sqlite3.Connection) -> None:
    store = OffsetStore(connection, group="g")
    with reader(bus, store) as consumer:
        store.save(consumer.poll(max_messages=1))
        assert connection.in_transaction
        store.restore(consumer)
        assert connection.in_transaction
        connection.rollback()
    assert rows(connection) == {}


def test_the_connection_may_be_another_in_the_next_transaction(bus: Bus, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db")) as one, closing(sqlite3.connect(tmp_path / "db")) as two:
        store = OffsetStore(one, group="g")
        store.create()
        with reader(bus, store) as consumer:
            for connection in (one, two, one):
                store.connection = connection
                with connection:
                    store.save(consumer.poll(max_messages=2))
        assert rows(two) == {TP: 6}
