"""Exactly-once into the user's own tables: offsets in the database that holds them, written in its transactions.

What a message does to a table and "this message is done" are committed together or not at all; after a crash, reading
goes on from what the database says. That leaves the case of two writers: a member that hung is replaced, and goes on in
the middle of its work. The kernel's locks and the group's generations end at the bus, so the database decides:

* `restore` notes the row of offsets that it found, and `save` changes that row and no other:
  `UPDATE ... WHERE next_offset = <as found>`. Of two that found the same row one changes it; the other finds nothing to
  change, gets `FencedError`, and its transaction is rolled back, with all that its messages did. It makes no difference
  which of them the group takes for the owner: either message by message what one did is stored, or what the other did.
* A row is not locked when it is read. Rejected: `SELECT ... FOR UPDATE`, which SQLite does not have, and which a
  stopped process holds for as long as it is stopped.
* The same check catches a transaction that was rolled back and not told to the store: what it noted is not there.

Rules: no statement beyond what every DB-API database takes; no commit, no rollback; nothing that is not a parameter
reaches the SQL, but for the table's name, which has a strict pattern. Whoever does not use it does not load it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from string import Formatter
from typing import Any, Final, NamedTuple, Protocol

from streamlite.config import check_int, check_name
from streamlite.consumer import Consumer
from streamlite.errors import (
    ClosedError,
    ConfigError,
    FencedError,
    InvalidNameError,
    UnknownTopicError,
    UnsupportedError,
)
from streamlite.message import Message, TopicPartition

__all__ = ["OffsetStore"]

logger = logging.getLogger("streamlite")

_TABLE: Final = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)
"""An identifier that needs no quotes, with or without a schema; 63 is PostgreSQL's limit."""

_MARKS: Final[Mapping[str, Callable[[int, str], str]]] = {
    "qmark": lambda number, name: "?",
    "numeric": lambda number, name: f":{number}",
    "named": lambda number, name: f":{name}",
    "format": lambda number, name: "%s",
    "pyformat": lambda number, name: f"%({name})s",
}
"""How a parameter is written: the paramstyles of PEP 249."""

# No column is called group, offset or partition: SQL has these words for itself.
_COLUMNS: Final = ("topic", "partition_number", "next_offset", "epoch", "incarnation")
_CREATE: Final = """\
CREATE TABLE IF NOT EXISTS {table} (
    group_name VARCHAR(249) NOT NULL,
    topic VARCHAR(249) NOT NULL,
    partition_number INTEGER NOT NULL,
    next_offset BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    incarnation BIGINT NOT NULL,
    PRIMARY KEY (group_name, topic, partition_number)
)"""
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM {{table}} WHERE group_name = {{group}}"
_INSERT: Final = (
    "INSERT INTO {table} (group_name, topic, partition_number, next_offset, epoch, incarnation) "
    "VALUES ({group}, {topic}, {partition}, {offset}, {epoch}, {incarnation})"
)
_UPDATE: Final = (
    "UPDATE {table} SET next_offset = {offset}, epoch = {epoch}, incarnation = {incarnation} "
    "WHERE group_name = {group} AND topic = {topic} AND partition_number = {partition} "
    "AND next_offset = {was_offset} AND epoch = {was_epoch} AND incarnation = {was_incarnation}"
)


class DatabaseConnection(Protocol):
    """What is asked of a connection: PEP 249's `cursor`, whose cursors have `execute`, `fetchall` and `rowcount`."""

    def cursor(self) -> Any: ...


class _Row(NamedTuple):
    """What the table says of one partition."""

    offset: int
    epoch: int
    incarnation: int


class _Held(NamedTuple):
    """What is known of one partition that was restored."""

    stored: _Row | None
    """The row as it was found or last written: the next `save` changes this one or nothing."""
    position: int
    """The offset that follows the last saved message: nothing before it is to be done again."""
    start: int | None
    """Where the consumer began for want of a row."""
    epoch: int
    incarnation: int


class _Statement:
    """SQL with its parameters marked as the driver wants them."""

    def __init__(self, template: str, table: str, style: str) -> None:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field]
        self._names = [name for name in fields if name != "table"]
        marks = {name: _MARKS[style](number, name) for number, name in enumerate(self._names, start=1)}
        self._sql = template.format(table=table, **marks)
        self._by_name = style in ("named", "pyformat")

    def run(self, cursor: Any, values: Mapping[str, Any]) -> None:
        """Execute it; `values` may hold more than it needs."""
        given = [(name, values[name]) for name in self._names]
        cursor.execute(self._sql, dict(given) if self._by_name else tuple(value for _, value in given))


class OffsetStore:
    """The offsets of one group in a table of the user's database; for one consumer, used in that consumer's thread.

    `connection`: a DB-API connection, or a cursor of one; the attribute of that name may be set to another one between
    two transactions, as a pool demands. `group`: whose offsets these are, in the form of a group's name; the consumer
    may be of this group, of another, or of none. `table`: its name, an identifier or `schema.identifier`.
    `paramstyle`: the driver's, found by itself where the connection is of a class of the driver.

    Nothing here commits or rolls back. Raises `InvalidNameError` for a group or table, `ConfigError` for a paramstyle
    that is unknown or was not found.
    """

    def __init__(
        self,
        connection: DatabaseConnection,
        *,
        group: str,
        table: str = "streamlite_offsets",
        paramstyle: str | None = None,
    ) -> None:
        self.connection: Any = connection
        self.group = check_name(group, "group")
        if not isinstance(table, str) or not _TABLE.fullmatch(table):
            raise InvalidNameError(
                f"table {table!r:.80} is not valid: use a letter or _, then up to 62 of A-Z a-z 0-9 _, with or without "
                "such a name and a dot before it"
            )
        self.table = table
        style = _paramstyle_of(connection) if paramstyle is None else paramstyle
        if style not in _MARKS:
            raise ConfigError(f"paramstyle must be one of {', '.join(_MARKS)}; found {style!r:.60}")
        self._select, self._insert, self._update = (
            _Statement(template, table, style) for template in (_SELECT, _INSERT, _UPDATE)
        )
        self._held: dict[TopicPartition, _Held] = {}

    def __repr__(self) -> str:
        return f"<OffsetStore of group {self.group!r} in {self.table}: {len(self._held)} partitions>"

    # -- the table ----------------------------------------------------------------------------------------------------

    @property
    def schema(self) -> str:
        """The statement that creates the table, for a migration of one's own."""
        return _CREATE.format(table=self.table)

    def create(self) -> None:
        """Create the table where it is absent. Not committed; some databases do that by themselves."""
        with self._cursor() as cursor:
            cursor.execute(self.schema)

    def _rows(self) -> dict[TopicPartition, _Row]:
        with self._cursor() as cursor:
            self._select.run(cursor, {"group": self.group})
            found = cursor.fetchall()
        rows = {}
        for row in found:
            # Some make dicts of rows.
            topic, partition, *rest = [row[name] for name in _COLUMNS] if isinstance(row, Mapping) else row
            rows[TopicPartition(topic, int(partition))] = _Row(*map(int, rest))
        return rows

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        """A cursor for one statement or several; the user's own, where he gave one."""
        if not hasattr(self.connection, "cursor"):
            yield self.connection
            return
        cursor = self.connection.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    # -- reading on ---------------------------------------------------------------------------------------------------

    def restore(self, consumer: Consumer, partitions: Iterable[TopicPartition] | None = None) -> None:
        """Seek these partitions, or all assigned ones, to their stored offsets; fits `on_assign`.

        One without a stored offset stays where the consumer's `start` put it, and goes back there when `restore` is
        called again; so does one whose offset is of a deleted topic of the same name, with a warning. Where the row was
        deleted meanwhile, it is read from its beginning. Call it, too, after a transaction was rolled back: what the
        database says then counts.

        It reads from the connection, and leaves the end of a transaction that this began to the caller. Raises
        `ConfigError` for a consumer with `auto_commit` in a group, an `AsyncConsumer`, or a partition not assigned,
        and what the driver raises.
        """
        _check_consumer(consumer)
        wanted = consumer.assignment() if partitions is None else partitions
        rows = self._rows()
        for tp in sorted(wanted):
            incarnation, held, row = consumer.incarnation(tp), self._held.get(tp), rows.get(tp)
            if held is not None and held.incarnation != incarnation:
                held = None
            start = None if held is None else held.start
            if row is not None and row.incarnation == incarnation:
                consumer.seek(tp, row.offset, row.epoch)
            else:
                if row is not None:
                    logger.warning(
                        "group %r in table %s: offset %d of %s/%d is of a deleted topic of that name, and is not used",
                        self.group, self.table, row.offset, *tp,
                    )  # fmt: skip
                if start is not None:
                    consumer.seek(tp, start)
                elif held is not None:
                    consumer.seek_to_beginning(tp)
                start = consumer.position(tp)
            self._held[tp] = _Held(row, consumer.position(tp), start, consumer.epoch(tp), incarnation)

    def _rewind(self, consumer: Consumer) -> None:
        """Have what was handed out since the last `save` handed out again."""
        # Of a closed consumer, or a deleted topic, nothing will be handed out.
        with suppress(ClosedError, UnknownTopicError):
            for tp in consumer.assignment() & self._held.keys():
                if consumer.position(tp) != self._held[tp].position:
                    consumer.seek(tp, self._held[tp].position)

    # -- writing down -------------------------------------------------------------------------------------------------

    @contextmanager
    def saving(self, consumer: Consumer, messages: Message | Iterable[Message]) -> Iterator[None]:
        """A block that processes these messages; they are saved at its end, as by `save`.

        When the block or the saving raises, the consumer goes back to the first message that is not saved. Use it
        inside of the transaction, which is rolled back by the same exception: `with connection, store.saving(...):`.
        """
        done = [messages] if isinstance(messages, Message) else list(messages)
        try:
            yield
            self.save(done)
        except BaseException:
            self._rewind(consumer)
            raise

    def save(self, done: Message | Iterable[Message] | Mapping[TopicPartition, int]) -> None:
        """Write down, in the caller's open transaction, that these messages are done.

        Of each partition the offset after its last message is stored, with its epoch and incarnation. A dict of
        `TopicPartition` to offset is stored as it is: the next offset to read, also one that goes back. Only partitions
        that `restore` has seen. Messages that were handed out and whose work failed are skipped by a later `save`,
        unless `restore` was called before the next poll: `saving` goes back by itself.

        Raises `FencedError` where the stored offset is not what `restore` found or `save` wrote last, since another
        consumer saved, or a transaction of this one was rolled back; and for a message that was saved before, or comes
        twice or out of order. Then roll back, `restore`, and go on. `ConfigError` for a partition that was not
        restored, and where no transaction is open; `UnsupportedError` for a driver that does not count the rows it
        changed; and what the driver raises.
        """
        written: dict[TopicPartition, _Held] = {}
        with self._cursor() as cursor:
            # In order, so that two transactions with the same partitions cannot wait for each other.
            for tp, offset in sorted(self._reached(done).items()):
                held = self._held[tp]
                row = _Row(offset, held.epoch, held.incarnation)
                if row != held.stored:
                    self._write(cursor, tp, held.stored, row)
                    written[tp] = held._replace(stored=row, position=offset)
            owner = getattr(cursor, "connection", self.connection)
            if written and getattr(owner, "in_transaction", None) is False:  # sqlite3 has it, and some others
                raise ConfigError(
                    "the offsets were committed by themselves, since the connection commits every statement: open a "
                    "transaction that holds what the messages do and save()"
                )
        self._held.update(written)

    def _reached(self, done: Any) -> dict[TopicPartition, int]:
        """The next offset of each partition."""
        if isinstance(done, Mapping):
            for tp, offset in done.items():
                self._known(tp)
                check_int("an offset", offset, 0)
            return dict(done)
        reached: dict[TopicPartition, int] = {}
        for message in (done,) if isinstance(done, Message) else done:
            if not isinstance(message, Message):
                raise ConfigError(f"save takes a Message, several, or a dict of offsets; found {message!r:.60}")
            tp = TopicPartition(message.topic, message.partition)
            position = reached.get(tp)
            if position is None:
                position = self._known(tp).position
            if message.offset < position:
                raise FencedError(
                    f"offset {message.offset} of {tp.topic!r} partition {tp.partition} was saved before, or comes "
                    f"twice or out of order: everything below {position} is done. Roll back, then restore(consumer)"
                )
            reached[tp] = message.offset + 1
        return reached

    def _known(self, tp: Any) -> _Held:
        held = self._held.get(tp)
        if held is None:
            raise ConfigError(
                f"{tp!r:.80} was not restored: open the consumer with on_assign=store.restore, or call "
                "store.restore(consumer) after assign()"
            )
        return held

    def _write(self, cursor: Any, tp: TopicPartition, was: _Row | None, row: _Row) -> None:
        """Change the row from what it `was`, or add it; `FencedError` where it is another by now."""
        values = {"group": self.group, "topic": tp.topic, "partition": tp.partition} | row._asdict()
        refused = FencedError(
            f"offset {row.offset} of {tp.topic!r} partition {tp.partition} for group {self.group!r}: the stored offset "
            f"is no longer {'absent' if was is None else was.offset}, another consumer saved, or a transaction of this "
            "one was rolled back: roll back, then restore(consumer)"
        )
        if was is None:
            try:
                self._insert.run(cursor, values)
            except Exception as error:
                # PEP 249 fixes the name; the class is each driver's own.
                if any(kind.__name__ == "IntegrityError" for kind in type(error).__mro__):
                    raise refused from error
                raise
            return
        self._update.run(cursor, values | {f"was_{name}": value for name, value in was._asdict().items()})
        if cursor.rowcount == 0:
            raise refused
        if cursor.rowcount != 1:
            raise UnsupportedError(
                f"the driver says that {cursor.rowcount} rows were changed where it is 0 or 1: without that number, "
                "nothing tells whether another consumer saved meanwhile"
            )


def _check_consumer(consumer: Consumer) -> None:
    """`ConfigError` for one whose offsets cannot be kept elsewhere."""
    if not isinstance(consumer, Consumer):
        raise ConfigError(
            f"an OffsetStore works with a Consumer, since a DB-API call blocks; found {type(consumer).__name__}"
        )
    if consumer.group is not None and consumer._options.auto_commit:
        raise ConfigError(
            "what a consumer commits by itself may not be saved: open it with auto_commit=False, or without a group"
        )


def _paramstyle_of(connection: Any) -> str:
    """The `paramstyle` of the module, or a package around it, that a class of the connection is from."""
    for kind in type(connection).__mro__:
        name = kind.__module__
        while name:
            style = getattr(sys.modules.get(name), "paramstyle", None)
            if isinstance(style, str):
                return style
            name = name.rpartition(".")[0]
    raise ConfigError(
        f"the driver of {type(connection).__module__}.{type(connection).__qualname__} is not known: give paramstyle=, "
        "as its module has it"
    )
