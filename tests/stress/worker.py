"""One process of a stress run: a producer or a member of the group, which writes its history and ends on SIGTERM.

Run by the controller as `python -m tests.stress.worker DIRECTORY NAME OPTIONS`, the options in JSON. Whatever goes
wrong that may not is an exception, and an exit status that the controller sees.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import streamlite
from streamlite import Consumer, FencedError, LockTimeoutError, Message, TopicPartition

from .history import Event

TOPIC = "t"
GROUP = "g"


class Options(msgspec.Struct, kw_only=True):
    """What a round is made of; the controller draws it from its seed."""

    seed: int = 0
    sync: str = "interval"
    partitions: int = 4
    segment_bytes: int = 1 << 20
    compression: str = "none"
    assignor: str = "sticky"
    max_poll_interval_ms: int = 1_000
    member_timeout_ms: int = 1_000
    lock_timeout: float = 30.0
    sends_a_second: int = 400
    role: str = "member"
    auto_commit: bool = True
    loop: bool = False
    """Whether the member iterates, or polls."""
    member: str | None = None
    consumers: int = 1
    """Threads with a consumer each; of two, one has a bus of its own."""


class Recorder:
    """Writes a history: each event in one call, so that it is there when the process is killed after it."""

    def __init__(self, directory: Path, process: str) -> None:
        self.process = process
        self._file = os.open(directory / f"{process}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._encode = msgspec.json.Encoder().encode
        self._ids = itertools.count(1)

    def __call__(self, kind: str, op: str, **fields: Any) -> None:
        event = Event(self.process, kind, op, time.monotonic(), **fields)
        os.write(self._file, self._encode(event) + b"\n")

    def invoke(self, op: str, **fields: Any) -> int:
        """An invocation; its id."""
        number = next(self._ids)
        self("invoke", op, id=number, **fields)
        return number


stop = threading.Event()


def open_bus(directory: Path, options: Options) -> streamlite.Bus:
    """The bus; whoever was stopped with its lock is continued sooner or later."""
    while True:
        try:
            return streamlite.open(directory / "bus", sync=options.sync, lock_timeout=options.lock_timeout)
        except LockTimeoutError:
            stop.wait(0.01)


# --- a producer ---------------------------------------------------------------------------------------------------


def produce(directory: Path, name: str, options: Options) -> None:
    """Send bursts of unique values, to partitions, by key or neither, some in transactions, until told to stop."""
    rng, record = random.Random(options.seed), Recorder(directory / "history", name)
    # To close takes the bus's lock, and whoever has it may be stopped: nothing is lost by that.
    with suppress(LockTimeoutError), open_bus(directory, options) as bus:
        send_until_stopped(bus, rng, record, name, options)


def send_until_stopped(bus: streamlite.Bus, rng: random.Random, record: Recorder, name: str, options: Options) -> None:
    numbers = itertools.count()
    with bus.producer(linger_ms=rng.choice((0, 1, 5))) as producer:
        topic = bus.topic(TOPIC)
        while not stop.is_set():
            burst = rng.choice((1, 1, 2, 10, 100))
            values = [f"{name}-{next(numbers)}" for _ in range(burst)]
            places = [_place(rng, topic) for _ in values]
            if rng.random() < 0.4:
                transact(producer, rng, record, values, places)
                stop.wait(burst / options.sends_a_second)
                continue
            number = record.invoke("send", values=values, partitions=[partition for _, partition in places])
            deliveries = []
            for value, (key, partition) in zip(values, places, strict=True):
                deliveries.append(producer.send(topic, value, **_given(key, partition)))
            record("ok", "send", id=number, values=values, placed=[_placed(one) for one in deliveries])
            stop.wait(burst / options.sends_a_second)


class ChangedItsMind(Exception):
    """An abort."""


def transact(
    producer: streamlite.Producer,
    rng: random.Random,
    record: Recorder,
    values: list[str],
    places: list[tuple[str | None, int | None]],
) -> None:
    """One transaction; now and then it is aborted, and sometimes it takes a while."""
    number = record.invoke("tx", values=values, partitions=[partition for _, partition in places])
    try:
        with producer.transaction() as tx:
            deliveries = [tx.send(TOPIC, value, **_given(*place)) for value, place in zip(values, places, strict=True)]
            if rng.random() < 0.1:
                stop.wait(rng.uniform(0, 0.1))
            if rng.random() < 0.1:
                raise ChangedItsMind
            record("info", "tx-commit", id=number, values=values)
    except (ChangedItsMind, LockTimeoutError) as error:
        record("fail", "tx", id=number, values=values, error=f"{type(error).__name__}: {error}")
    else:
        record("ok", "tx", id=number, values=values, placed=[_placed(one) for one in deliveries])


def _given(key: str | None, partition: int | None) -> dict[str, Any]:
    return {"partition": partition} if key is None and partition is not None else {"key": key}


def _place(rng: random.Random, topic: streamlite.Topic) -> tuple[str | None, int | None]:
    """Key and partition of a message: a key, or a partition, or neither."""
    way = rng.random()
    if way < 0.6:
        key = f"k{rng.randrange(50)}"
        return key, topic.partition_for(key)
    return None, rng.randrange(topic.partitions) if way < 0.9 else None


def _placed(delivery: streamlite.Delivery) -> tuple[int, int] | None:
    try:
        found = delivery.result(timeout=120)
    except LockTimeoutError:
        return None
    return found.partition, found.offset


# --- a member of the group ----------------------------------------------------------------------------------------


class Member:
    """One consumer, and what it does until told to stop."""

    def __init__(self, directory: Path, name: str, options: Options, bus: streamlite.Bus) -> None:
        self.options = options
        self.bus = bus
        self.rng = random.Random(f"{options.seed} {name}")
        self.record = Recorder(directory / "history", name)
        self.owned: dict[int, int] = {}
        """Partition to generation, as far as this member knows."""
        self.producer: streamlite.Producer
        self.handed: dict[int, int] = {}
        """What a `commit()` would commit: partition to the offset after the last one handed out."""

    def run(self) -> None:
        while not stop.is_set():
            try:
                self.belong()
            except LockTimeoutError as error:  # in joining or leaving: somebody was stopped with the group's lock
                self.record("info", "timeout", error=str(error))
                for partition in list(self.owned):
                    self.end(partition)

    def belong(self) -> None:
        """Be a member until told to stop."""
        options = self.options
        with (
            self.bus.producer() as self.producer,
            self.bus.consumer(
                TOPIC,
                group=GROUP,
                auto_commit=options.auto_commit,
                assignor=options.assignor,
                max_poll_interval_ms=options.max_poll_interval_ms,
                member=options.member,
                member_timeout_ms=options.member_timeout_ms,
                on_assign=self.on_assign,
                on_revoke=self.on_end,
                on_lost=self.on_end,
            ) as consumer,
        ):
            while not stop.is_set():
                try:
                    (self.loop if options.loop else self.poll)(consumer)
                except LockTimeoutError as error:
                    self.record("info", "timeout", error=str(error))

    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for tp in partitions:
            # Ownership's generation is the one thing that the public API does not tell.
            generation = consumer._assignment.fetcher.tracks[tp].ownership
            offset = consumer.position(tp)
            self.owned[tp.partition] = generation
            self.handed.pop(tp.partition, None)
            self.record("info", "assign", partition=tp.partition, generation=generation, offset=offset)

    def on_end(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for tp in partitions:
            self.end(tp.partition)

    def end(self, partition: int) -> None:
        self.owned.pop(partition, None)
        self.handed.pop(partition, None)
        self.record("info", "end", partition=partition)

    def poll(self, consumer: Consumer) -> None:
        """Batches; with manual commits now and then a commit of all, of one message, or of offsets."""
        messages = consumer.poll(timeout=0.2, max_messages=self.rng.choice((1, 10, 100, None)))
        runs = list(_runs(messages))
        for run in runs:
            self.note("deliver", run)
        self.work(0.3)
        for run in runs:
            self.note("process", run)
            self.handed[run[0].partition] = run[-1].offset + 1
        if not self.options.auto_commit and messages and self.rng.random() < 0.5:
            self.commit(consumer, messages[-1])

    def loop(self, consumer: Consumer) -> None:
        """One by one; now and then it leaves the loop in the middle of a message, which then comes again."""
        for message in consumer.messages(timeout=0.2):
            self.note("deliver", [message])
            self.work(0.01)
            if self.rng.random() < 0.005 or stop.is_set():
                self.record("info", "rewind")
                break
            self.note("process", [message])
            self.handed[message.partition] = message.offset + 1
            if not self.options.auto_commit and self.rng.random() < 0.1:
                self.commit(consumer, message)

    def note(self, op: str, run: list[Message]) -> None:
        values = [message.value.decode() for message in run]
        self.record("info", op, partition=run[0].partition, offset=run[0].offset, values=values)

    def work(self, often: float) -> None:
        """Nothing, or, `often`, something that takes a while: time to be killed in. Rarely it takes too long."""
        chance = self.rng.random()
        if chance < 0.01 * often:
            stop.wait(self.options.max_poll_interval_ms / 1000 * self.rng.uniform(0.5, 1.5))
        elif chance < often:
            stop.wait(self.rng.uniform(0, 0.1))

    def commit(self, consumer: Consumer, message: Message) -> None:
        partition = message.partition
        way = self.rng.choice(("all", "message", "offsets", "transaction"))
        chosen = self.handed if way != "message" else {partition: message.offset + 1}
        offsets = {one: (offset, self.owned.get(one, -1)) for one, offset in chosen.items()}
        number = self.record.invoke("commit", offsets=offsets)
        try:
            if way == "all":
                consumer.commit()
            elif way == "message":
                consumer.commit(message)
            elif way == "transaction":
                with self.producer.transaction() as tx:
                    tx.commit_offsets(consumer)
            else:
                consumer.commit({TopicPartition(TOPIC, one): offset for one, (offset, _) in offsets.items()})
        except (FencedError, LockTimeoutError) as error:
            self.record("fail", "commit", id=number, error=f"{type(error).__name__}: {error}")
            if isinstance(error, FencedError):
                self.handed.clear()
                self.record("info", "rewind")
        else:
            self.record("ok", "commit", id=number)


def _runs(messages: list[Message]) -> Iterator[list[Message]]:
    """Neighbours of one partition."""
    run: list[Message] = []
    for message in messages:
        if run and (message.partition, message.offset) != (run[-1].partition, run[-1].offset + 1):
            yield run
            run = []
        run.append(message)
    if run:
        yield run


def consume(directory: Path, name: str, options: Options) -> None:
    """One or two members, of one bus or two; a static one that was replaced ends quietly."""
    failures: list[BaseException] = []

    def run(part: str, bus: streamlite.Bus) -> None:
        try:
            Member(directory, f"{name}{part}", options, bus).run()
        except FencedError:
            if options.member is None:
                raise
        except BaseException as error:  # noqa: BLE001 - told of below
            failures.append(error)
            stop.set()

    with suppress(LockTimeoutError), open_bus(directory, options) as bus, open_bus(directory, options) as other:
        others = [threading.Thread(target=run, args=("b", other))] if options.consumers > 1 else []
        for thread in others:
            thread.start()
        run("a", bus)
        for thread in others:
            thread.join()
    if failures:
        raise failures[0]


def end_with_the_controller() -> None:
    """Nobody else would end what it left behind."""
    os.read(0, 1)  # nothing comes but the end; `sys.stdin` would hold a lock that the interpreter wants when it ends
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with_the_controller, daemon=True).start()
    directory, name, options = Path(sys.argv[1]), sys.argv[2], msgspec.json.decode(sys.argv[3], type=Options)
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    (produce if options.role == "producer" else consume)(directory, name, options)


if __name__ == "__main__":
    main()
