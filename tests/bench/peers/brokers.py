"""Peers that are clients of a server: Redis Streams, NATS JetStream, confluent-kafka with two brokers.

The servers run on this machine with the durability of the level; none is asked for replicas.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.case import PAIRS, VALUES
from tests.bench.peers.peer import BATCH, BATCHES, NEVER, PATIENCE_S, Peer

HOST = "127.0.0.1"


def program(name: str) -> str:
    """Where a program is: beside this interpreter, as pip puts it, or on the path; empty where it is not."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or ""


class RedisStreams(Peer):
    """XADD and XREAD."""

    name = "Redis Streams"
    modules = ("redis",)
    levels = (NEVER, BATCHES)
    share = 0.05
    settings = (
        "redis-py with hiredis where there; append-only file, appendfsync no (with fsync: always); XADD; XADD, 1,000 "
        "in a pipeline without MULTI; XREAD COUNT 1,000; key and value as two fields; pings: XADD, XREAD BLOCK"
    )

    @classmethod
    def missing(cls) -> str:
        return super().missing() or ("" if program("redis-server") else "no redis-server")

    def command(self) -> list[str]:
        fsync = "always" if self.level == BATCHES else "no"
        options = {"port": self.port, "bind": HOST, "dir": self.place, "save": "", "appendonly": "yes"}
        options |= {"appendfsync": fsync, "daemonize": "no"}
        return [
            program("redis-server"),
            *(word for name, value in options.items() for word in (f"--{name}", f"{value}")),
        ]

    def open(self, log: str) -> None:
        import redis

        self._redis = redis.Redis(HOST, self.port)
        self._redis.ping()
        self._log, self._read = log, b"0"

    def produce(self, count: int) -> None:
        xadd, log = self._redis.xadd, self._log
        for _ in range(count // len(PAIRS)):
            for key, value in PAIRS:
                xadd(log, {b"k": key, b"v": value})

    def produce_many(self, count: int) -> None:
        for _ in range(count // BATCH):
            pipeline = self._redis.pipeline(transaction=False)
            for key, value in PAIRS:
                pipeline.xadd(self._log, {b"k": key, b"v": value})
            pipeline.execute()

    def _next(self, block: int | None) -> list[Any]:
        found: Any = self._redis.xread({self._log: self._read}, count=BATCH, block=block)
        if not found:
            return []
        ((_, entries),) = found.items() if isinstance(found, dict) else found
        if isinstance(found, dict):
            (entries,) = entries  # the shape of RESP3
        self._read = entries[-1][0]
        return list(entries)

    def consume(self, count: int) -> None:
        seen = 0
        while seen < count:
            entries = self._next(None)
            assert entries, f"{seen} of {count} read"
            seen += len(entries)

    def ping(self, value: bytes) -> None:
        self._redis.xadd(self._log, {b"v": value})

    def arrivals(self) -> Iterator[list[bytes]]:
        while True:
            yield [fields[b"v"] for _, fields in self._next(1_000)]

    def close(self) -> None:
        self._redis.delete(self._log)  # it is all in the server's memory
        self._redis.close()


class JetStream(Peer):
    """A stream in files, one subject."""

    name = "NATS JetStream"
    modules = ("nats",)
    levels = (NEVER, BATCHES)
    share = 0.02
    settings = (
        "nats-py; a stream in files, sync_interval as it is (with fsync: always, which is each message); publish with "
        "its acknowledgement; publish_async, 1,000 under way; an ordered push consumer, which acknowledges nothing; no "
        "keys; pings: publish, and the same consumer"
    )

    @classmethod
    def missing(cls) -> str:
        return super().missing() or ("" if program("nats-server") else "no nats-server")

    def command(self) -> list[str]:
        config = self.place / "nats.conf"
        sync = "sync_interval: always" if self.level == BATCHES else ""
        config.write_text(f'jetstream {{ store_dir: "{self.place}"\n{sync} }}\n', encoding="utf-8")
        return [program("nats-server"), "-c", str(config), "-a", HOST, "-p", str(self.port)]

    def open(self, log: str) -> None:
        self._runner = asyncio.Runner()
        self._log = log
        self._runner.run(self._connect())

    async def _connect(self) -> None:
        import nats
        from nats.js.errors import BadRequestError

        self._nats = await nats.connect(f"nats://{HOST}:{self.port}")
        self._stream = self._nats.jetstream(publish_async_max_pending=BATCH)
        try:
            await self._stream.add_stream(name=self._log, subjects=[self._log])
        except BadRequestError:
            assert await self._stream.stream_info(self._log)  # the other process made it

    def produce(self, count: int) -> None:
        async def publish() -> None:
            for _ in range(count // len(VALUES)):
                for value in VALUES:
                    await self._stream.publish(self._log, value)

        self._runner.run(publish())

    def produce_many(self, count: int) -> None:
        async def publish() -> None:
            for _ in range(count // len(VALUES)):
                for value in VALUES:
                    await self._stream.publish_async(self._log, value)
            await self._stream.publish_async_completed()

        self._runner.run(publish())

    def consume(self, count: int) -> None:
        async def read() -> None:
            done, left = asyncio.Event(), count

            async def take(message: Any) -> None:
                nonlocal left
                left -= 1
                if not left:
                    done.set()

            await self._stream.subscribe(
                self._log, cb=take, ordered_consumer=True, pending_msgs_limit=2 * count, pending_bytes_limit=1 << 30
            )
            await asyncio.wait_for(done.wait(), PATIENCE_S)

        self._runner.run(read())

    def ping(self, value: bytes) -> None:
        self._runner.run(self._stream.publish(self._log, value))

    def arrivals(self) -> Iterator[list[bytes]]:
        subscription = self._runner.run(self._stream.subscribe(self._log, ordered_consumer=True))
        while True:
            yield [self._runner.run(subscription.next_msg(PATIENCE_S)).data]

    def close(self) -> None:
        self._runner.run(self._nats.close())
        self._runner.close()


class Kafka(Peer):
    """librdkafka's Python client; the brokers differ."""

    modules = ("confluent_kafka",)
    plain = True
    settings = (
        "6 partitions, acks=all, linger.ms=5, batch.size 1 MB (as its documentation has it for throughput); produce "
        "with a poll each 1,000, then flush; produce_batch of 1,000, then flush; consume(1,000), partitions assigned, "
        "no group; pings: linger.ms=0, and poll"
    )
    throughput: dict[str, Any] = {  # noqa: RUF012
        "linger.ms": 5,
        "batch.size": 1_000_000,
        "batch.num.messages": 100_000,
        "queue.buffering.max.messages": 10_000_000,
        "queue.buffering.max.kbytes": 2_000_000,
    }

    def _configure(self, **options: Any) -> dict[str, Any]:
        return {"bootstrap.servers": f"{HOST}:{self.port}", "broker.address.family": "v4", **options}

    def open(self, log: str, **options: Any) -> None:
        from confluent_kafka import Consumer, Producer, TopicPartition
        from confluent_kafka.admin import AdminClient, NewTopic

        self._log = log
        admin = AdminClient(self._configure())
        if log not in admin.list_topics(timeout=PATIENCE_S).topics:
            for future in admin.create_topics([NewTopic(log, 6, 1)]).values():
                future.result(PATIENCE_S)
        self._producer = Producer(self._configure(acks="all", **(options or self.throughput)))
        self._consumer = Consumer(
            self._configure(
                **{
                    "group.id": "none",
                    "enable.auto.commit": False,
                    "queued.min.messages": 1_000_000,
                    "queued.max.messages.kbytes": 1_000_000,
                }
            )
        )
        self._partitions = [TopicPartition(log, number, 0) for number in range(6)]
        for client in (self._producer, self._consumer):
            client.list_topics(log, timeout=PATIENCE_S)  # connect before the clock starts

    def open_for_pings(self, log: str) -> None:
        self.open(log, **{"linger.ms": 0})

    def answers(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:
            return bool(AdminClient(self._configure()).list_topics(timeout=PATIENCE_S).brokers)
        except KafkaException:
            return False

    def produce(self, count: int) -> None:
        produce, poll, log = self._producer.produce, self._producer.poll, self._log
        for _ in range(count // len(PAIRS)):
            for key, value in PAIRS:
                produce(log, value, key)
            poll(0)
        assert not self._producer.flush(PATIENCE_S)

    def produce_many(self, count: int) -> None:
        messages = [{"key": key, "value": value} for key, value in PAIRS]
        for _ in range(count // BATCH):
            assert self._producer.produce_batch(self._log, messages) == BATCH
            self._producer.poll(0)
        assert not self._producer.flush(PATIENCE_S)

    def consume(self, count: int) -> None:
        self._consumer.assign(self._partitions)
        consume, seen = self._consumer.consume, 0
        while seen < count:
            messages = consume(BATCH, PATIENCE_S)
            assert messages, f"{seen} of {count} read"
            seen += len(messages)

    def ping(self, value: bytes) -> None:
        self._producer.produce(self._log, value, partition=0)
        self._producer.poll(0)

    def arrivals(self) -> Iterator[list[bytes]]:
        self._consumer.assign(self._partitions)
        while True:
            message = self._consumer.poll(PATIENCE_S)
            if message is not None and not message.error():
                yield [message.value()]

    def produce_plain(self, count: int) -> None:
        produce, poll, log = self._producer.produce, self._producer.poll, self._log
        for _ in range(count // len(VALUES)):
            for value in VALUES:
                produce(log, value)
            poll(0)
        assert not self._producer.flush(PATIENCE_S)

    def close(self) -> None:
        self._producer.flush(PATIENCE_S)
        self._consumer.close()
        del self._producer, self._consumer  # the connections end here, and not when the broker does


class KafkaNoida(Kafka):
    """A native broker that speaks Kafka's protocol."""

    name = "Kafka (noida-db)"
    modules = ("confluent_kafka", "noida_db")
    share = 0.5
    settings = f"confluent-kafka to noida-db, a native broker of that protocol, its data in files; {Kafka.settings}"

    def command(self) -> list[str]:
        # The program itself: the wrapper that pip puts into bin/ is a Python process around it.
        import noida_db

        native = str(Path(noida_db.__file__).with_name("noida-db"))
        return [native, "start", "--data-dir", str(self.place), "--only", "kafka", "--kafka-port", str(self.port)]


class KafkaApache(Kafka):
    """Apache Kafka: one node that is broker and controller."""

    name = "Kafka (Apache)"
    levels = (NEVER, BATCHES)
    share = 0.5
    settings = (
        f"confluent-kafka to Apache Kafka (KRaft, one node, 1 GiB of heap), its own flushing (with fsync: "
        f"log.flush.interval.messages=1, which is each batch); {Kafka.settings}"
    )
    identity = "streamliteBenchPeersQQ"

    @classmethod
    def missing(cls) -> str:
        if not os.environ.get("KAFKA_LIBS"):
            return "no KAFKA_LIBS, the directory of Apache Kafka's jars"
        return super().missing() or ("" if shutil.which("java") else "no java")

    def command(self) -> list[str]:
        data = self.place / "data"
        controller = self.port + 1 if self.port < 65_535 else self.port - 1
        options = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{HOST}:{controller}",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": data,
            "offsets.topic.replication.factor": 1,
            "group.initial.rebalance.delay.ms": 0,
        }
        if self.level == BATCHES:
            options["log.flush.interval.messages"] = 1
        config = self.place / "server.properties"
        config.write_text("".join(f"{name}={value}\n" for name, value in options.items()), encoding="utf-8")
        data.mkdir(exist_ok=True)
        # What `kafka-storage format` would write, without a second JVM.
        (data / "meta.properties").write_text(
            f"version=1\ncluster.id={self.identity}\nnode.id=1\ndirectory.id={self.identity}\n", encoding="utf-8"
        )
        classes = os.path.join(os.environ["KAFKA_LIBS"], "*")
        return ["java", "-Xms1g", "-Xmx1g", "-cp", classes, "kafka.Kafka", str(config)]
