"""What the contract tests share: short ways to send, to read to the end, and to run something beside the test."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from streamlite import Bus, Consumer, Message, RecordMetadata, Topic, TopicPartition

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds, virtual or real, after which what should have come counts as missing."""

T0 = 1_700_000_000_000
"""A moment in ms since the epoch: what a `VirtualClock` shows at first."""

INVALID_NAMES = ["", ".", "..", "a/b", "../a", "a b", "a\n", "\na", "a\x00", "ä", "a:b", "a" * 250, "__a", "__offsets"]
NO_NAMES = [None, 5, b"a", ["a"]]
VALID_NAMES = ["a", "Z", "0", "A.b_c-9", "...", "-", "_", "_a", ".a", "a" * 249]


def numbers(count: int, start: int = 0) -> list[bytes]:
    """Distinct values that say where they belong."""
    return [b"%d" % number for number in range(start, start + count)]


def put(bus: Bus, topic: Topic | str, *values: Any, **options: Any) -> list[RecordMetadata]:
    """Send each value as a message of its own and wait until all are stored."""
    with bus.producer() as producer:
        deliveries = [producer.send(topic, value, **options) for value in values]
        return [delivery.result(timeout=PATIENCE) for delivery in deliveries]


def put_apart(bus: Bus, topic: Topic | str, *values: Any, **options: Any) -> list[RecordMetadata]:
    """As `put`, but each message is stored before the next is sent, so that no two share a batch."""
    with bus.producer() as producer:
        return [producer.send(topic, value, **options).result(timeout=PATIENCE) for value in values]


def drain(consumer: Consumer, **options: Any) -> list[Message]:
    """All that `poll` gives until it gives nothing."""
    found: list[Message] = []
    while batch := consumer.poll(timeout=1.0, **options):
        found += batch
    return found


def take(consumer: Consumer, count: int) -> list[Message]:
    """The next `count` messages, or what there is after patience; one call of `poll` may give none of them."""
    found: list[Message] = []
    for _ in range(50):
        if len(found) >= count:
            break
        found += consumer.poll(timeout=PATIENCE, max_messages=count - len(found))
    return found


def values(messages: Iterable[Message]) -> list[Any]:
    """Their values."""
    return [message.value for message in messages]


def offsets(messages: Iterable[Message]) -> list[int]:
    """Their offsets."""
    return [message.offset for message in messages]


def by_partition(messages: Iterable[Message]) -> dict[int, list[Any]]:
    """The values of each partition, in the order they came."""
    found: dict[int, list[Any]] = {}
    for message in messages:
        found.setdefault(message.partition, []).append(message.value)
    return found


def pairs(message: Message) -> list[tuple[str, bytes | None]]:
    """Its headers as a list of tuples."""
    return [(name, value) for name, value in message.headers]


def tps(topic: str, count: int) -> set[TopicPartition]:
    """The addresses of a topic's partitions."""
    return {TopicPartition(topic, partition) for partition in range(count)}


def setting(topic: Topic, name: str) -> Any:
    """One of a topic's settings, be they attributes or items."""
    settings: Any = topic.settings
    return settings[name] if isinstance(settings, dict) else getattr(settings, name)


def committed(bus: Bus, topic: str, group: str, partition: int = 0) -> int | None:
    """What a group without members has committed."""
    with bus.consumer(topic, group=group) as consumer:
        return consumer.committed(TopicPartition(topic, partition))


def beside(function: Callable[[], T]) -> Future[T]:
    """Run `function` in a thread of its own that keeps nobody from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to bring about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0)  # let the other thread have the interpreter


def files_below(directory: Path) -> list[Path]:
    """Every file in a directory and below."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def snapshot(directory: Path) -> dict[str, bytes | None]:
    """Every name below a directory, and every file's content."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


@contextmanager
def locks_held(directory: Path) -> Iterator[None]:
    """Be the process that holds every lock there is to hold: no writer gets any further until it lets go."""
    with ExitStack() as stack:
        for path in files_below(directory):
            descriptor = os.open(path, os.O_RDWR)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # held for as long as the bus is open
                continue
        yield
