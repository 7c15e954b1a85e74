"""Peers that are libraries: streamlite itself, a raw SQLite table, queuelib, diskcache, persist-queue, litequeue.

Each import of a peer's library is inside its adapter, so that the others run without it.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from typing import Any, Final

import streamlite
from tests.bench.case import PAIRS, VALUES
from tests.bench.peers.peer import BATCH, BATCHES, NEVER, PATIENCE_S, Peer, looking

KEYS: Final = [key for key, _ in PAIRS]
COLUMN: Final = 10_000
"""Messages in a call of send_many."""


class Streamlite(Peer):
    """Six partitions, keys, as the confluent-kafka peers have."""

    name = "streamlite"
    levels = (NEVER, BATCHES)
    plain = True
    settings = (
        'sync="never" (with fsync: sync="always"); one topic of 6 partitions; send, then flush; send_many with keys in '
        "calls of 10,000 (with fsync: 1,000, and the result awaited), then flush; without keys likewise; poll with its "
        "defaults; pings: send, and a consumer that blocks in poll"
    )

    def open(self, log: str) -> None:
        self._bus = streamlite.open(self.place, sync="always" if self.level == BATCHES else "never")
        self._topic = self._bus.topic(log, partitions=6)
        self._producer = self._bus.producer()
        self._consumer = self._bus.consumer(log)

    def produce(self, count: int) -> None:
        send, topic = self._producer.send, self._topic
        for _ in range(count // len(PAIRS)):
            for key, value in PAIRS:
                send(topic, value, key=key)
        self._producer.flush()

    def produce_many(self, count: int) -> None:
        self._send_many(count, keyed=True)

    def produce_plain(self, count: int) -> None:
        self._send_many(count, keyed=False)

    def _send_many(self, count: int, *, keyed: bool) -> None:
        piece = BATCH if self.level == BATCHES else COLUMN
        values, keys = VALUES * (piece // BATCH), KEYS * (piece // BATCH)
        while count:
            here = min(piece, count)
            delivery = self._producer.send_many(self._topic, values[:here], keys=keys[:here] if keyed else None)
            if self.level == BATCHES:
                delivery.result(PATIENCE_S)
            count -= here
        self._producer.flush()

    def consume(self, count: int) -> None:
        poll, seen = self._consumer.poll, 0
        while seen < count:
            messages = poll(PATIENCE_S)
            assert messages, f"{seen} of {count} read"
            seen += len(messages)

    def ping(self, value: bytes) -> None:
        self._producer.send(self._topic, value)

    def arrivals(self) -> Iterator[list[bytes]]:
        while True:
            yield [bytes(message.value) for message in self._consumer.poll(PATIENCE_S)]

    def close(self) -> None:
        self._bus.close()


class RawSQLite(Peer):
    """What one writes oneself: a table with a rising key."""

    name = "SQLite table"
    levels = (NEVER, BATCHES)
    share = 0.4
    settings = (
        "standard library; WAL, synchronous=NORMAL (with fsync: FULL); INSERTs one by one, a commit each 1,000; "
        "executemany of 1,000 and a commit; SELECT of the next 1,000 by rowid; pings: INSERT and commit, looked for "
        "each 0.1 ms"
    )

    def open(self, log: str) -> None:
        self._path = self.place / f"{log}.db"
        self._db = sqlite3.connect(self._path, isolation_level=None, timeout=PATIENCE_S)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={'FULL' if self.level == BATCHES else 'NORMAL'}")
        self._db.execute("CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, key BLOB, value BLOB)")
        self._read = 0

    def produce(self, count: int) -> None:
        execute = self._db.execute
        for _ in range(count // BATCH):
            execute("BEGIN")
            for pair in PAIRS:
                execute("INSERT INTO log (key, value) VALUES (?, ?)", pair)
            execute("COMMIT")

    def produce_many(self, count: int) -> None:
        for _ in range(count // BATCH):
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO log (key, value) VALUES (?, ?)", PAIRS)
            self._db.execute("COMMIT")

    def _next(self) -> list[tuple[int, bytes, bytes]]:
        select = "SELECT id, key, value FROM log WHERE id > ? ORDER BY id LIMIT ?"
        rows = self._db.execute(select, (self._read, BATCH)).fetchall()
        if rows:
            self._read = rows[-1][0]
        return rows

    def consume(self, count: int) -> None:
        seen = 0
        while seen < count:
            rows = self._next()
            assert rows, f"{seen} of {count} read"
            seen += len(rows)

    def ping(self, value: bytes) -> None:
        self._db.execute("INSERT INTO log (value) VALUES (?)", (value,))

    def arrivals(self) -> Iterator[list[bytes]]:
        return looking(lambda: [value for _, _, value in self._next()])

    def close(self) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)


class Queuelib(Peer):
    """Scrapy's queue: one process, no keys, a message is gone when read."""

    name = "queuelib"
    modules = ("queuelib",)
    share = 0.4
    batched = shared = False
    settings = "FifoDiskQueue, push and pop; it has no batches, no keys, no fsync, and is for one process"

    def open(self, log: str) -> None:
        from queuelib import FifoDiskQueue

        self._queue = FifoDiskQueue(str(self.place / log))

    def produce(self, count: int) -> None:
        push = self._queue.push
        for _ in range(count // len(VALUES)):
            for value in VALUES:
                push(value)

    def consume(self, count: int) -> None:
        pop = self._queue.pop
        for _ in range(count):
            assert pop() is not None

    def close(self) -> None:
        self._queue.close()


class DiskcacheDeque(Peer):
    """A deque in SQLite."""

    name = "diskcache"
    modules = ("diskcache",)
    levels = (NEVER, BATCHES)
    share = 0.02
    settings = (
        "Deque, its default synchronous=NORMAL (with fsync: FULL); append; extend of 1,000 in a transact(); popleft, "
        "1,000 in a transact(), as its documentation has it for speed; no keys; pings: append, looked for each 0.1 ms"
    )

    def open(self, log: str) -> None:
        from diskcache import Cache, Deque

        directory = str(self.place / log)
        cache = Cache(directory, eviction_policy="none", sqlite_synchronous=2 if self.level == BATCHES else 1)
        self._deque = Deque.fromcache(cache)

    def produce(self, count: int) -> None:
        append = self._deque.append
        for _ in range(count // len(VALUES)):
            for value in VALUES:
                append(value)

    def produce_many(self, count: int) -> None:
        for _ in range(count // BATCH):
            with self._deque.transact():
                self._deque.extend(VALUES)

    def consume(self, count: int) -> None:
        popleft = self._deque.popleft
        for _ in range(count // BATCH):
            with self._deque.transact():
                for _ in range(BATCH):
                    popleft()

    def ping(self, value: bytes) -> None:
        self._deque.append(value)

    def _take(self) -> list[Any]:
        try:
            return [self._deque.popleft()]
        except IndexError:
            return []

    def arrivals(self) -> Iterator[list[bytes]]:
        return looking(self._take)

    def close(self) -> None:
        self._deque.cache.close()
        shutil.rmtree(self._deque.directory, ignore_errors=True)


class PersistQueue(Peer):
    """A queue in SQLite, the faster one of its kinds once that does not sync for each message."""

    name = "persist-queue"
    modules = ("persistqueue",)
    levels = (NEVER, BATCHES)
    share = 0.01
    batched = False
    settings = (
        "SQLiteQueue, auto_commit=False as its documentation has it for speed, and synchronous=NORMAL, for which it "
        "has no option and which makes it faster than its files (with fsync: FULL as it comes, for each message); put; "
        "get, and a task_done each 1,000; no keys, no batches; pings: put, looked for each 0.1 ms"
    )

    def open(self, log: str) -> None:
        from persistqueue import SQLiteQueue

        self._queue = SQLiteQueue(str(self.place / log), auto_commit=False, timeout=PATIENCE_S)
        if self.level == NEVER:
            self._queue._putter.execute("PRAGMA synchronous=NORMAL")  # the one connection, of gets as well

    def produce(self, count: int) -> None:
        put = self._queue.put
        for _ in range(count // len(VALUES)):
            for value in VALUES:
                put(value)

    def consume(self, count: int) -> None:
        get = self._queue.get
        for _ in range(count // BATCH):
            for _ in range(BATCH):
                get()
            self._queue.task_done()

    def ping(self, value: bytes) -> None:
        self._queue.put(value)

    def _take(self) -> list[Any]:
        from persistqueue import Empty

        try:
            return [self._queue.get(block=False)]
        except Empty:
            return []

    def arrivals(self) -> Iterator[list[bytes]]:
        return looking(self._take)

    def close(self) -> None:
        self._queue.close()
        shutil.rmtree(self._queue.path, ignore_errors=True)


class Litequeue(Peer):
    """A queue in SQLite with a state for each message."""

    name = "litequeue"
    modules = ("litequeue",)
    levels = (NEVER, BATCHES)
    share = 0.005
    settings = (
        "LiteQueue, its own synchronous=NORMAL (with fsync: FULL); put; put, 1,000 in a transaction(); pop and done; "
        "no keys; pings: put, looked for each 0.1 ms"
    )

    def open(self, log: str) -> None:
        from litequeue import LiteQueue

        self._path = self.place / f"{log}.lite"
        self._queue = LiteQueue(str(self._path), timeout=PATIENCE_S)
        if self.level == BATCHES:
            self._queue.conn.execute("PRAGMA synchronous=FULL")

    def produce(self, count: int) -> None:
        put: Any = self._queue.put
        for _ in range(count // len(VALUES)):
            for value in VALUES:
                put(value)

    def produce_many(self, count: int) -> None:
        for _ in range(count // BATCH):
            with self._queue.transaction():
                self.produce(BATCH)

    def consume(self, count: int) -> None:
        for _ in range(count):
            message = self._queue.pop()
            self._queue.done(message.message_id)

    def ping(self, value: bytes) -> None:
        self._queue.put(value)  # type: ignore[arg-type]

    def _take(self) -> list[Any]:
        message = self._queue.pop()
        if message is None:
            return []
        self._queue.done(message.message_id)
        return [message.data]

    def arrivals(self) -> Iterator[list[bytes]]:
        return looking(self._take)

    def close(self) -> None:
        self._queue.close()
        self._path.unlink(missing_ok=True)
