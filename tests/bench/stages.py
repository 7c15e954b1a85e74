"""Where the time of a message goes, by stage: `python -m tests.bench.stages`.

Each stage has a stopwatch of the processor's time of its thread around it, so that a busy machine does not show
in it; what one stage calls of another counts for the other. All stages but the first are run once a batch, so the
stopwatch itself disappears: it would not in a profiler, which is called for each message.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import thread_time_ns
from typing import Any, Final
from unittest import mock

import streamlite
from streamlite import batch, direct, partition, reader, staging
from streamlite.files import local
from streamlite.outbox import Outbox
from tests.bench.case import PAIRS, VALUES, Setting
from tests.bench.throughput import PARTITIONS, PATIENCE_S

SENDING: Final = (
    ("drain: seal, queue, settle deliveries", Outbox, "drain"),
    ("columns out of staged tuples", staging.Batch, "encode"),
    ("encode the columns (msgspec)", staging, "encode_payload"),
    ("append: lock, header, checksum, publish", partition.Partition, "try_append"),
    ("a first message that goes at once", direct.Direct, "send"),
    ("write (pwritev)", local.LocalFile, "write"),
)
READING: Final = (
    ("find the next batch, move on", reader.Cursor, "fetch"),
    ("read (pread)", local.LocalFile, "read"),
    ("checksum", reader, "verify"),
    ("decode the columns (msgspec)", reader, "decode"),
    ("make the Messages", batch.Batch, "messages"),
)


class Stopwatch:
    """Time by stage, and how often each was entered."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, int] = defaultdict(int)
        self.entered: defaultdict[str, int] = defaultdict(int)
        self._inner = threading.local()

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed, without what other stages take inside of it."""

        def timed(*arguments: Any, **options: Any) -> Any:
            outer = getattr(self._inner, "spent", 0)
            self._inner.spent = 0
            begun = thread_time_ns()
            try:
                return function(*arguments, **options)
            finally:
                whole = thread_time_ns() - begun
                self.spent[stage] += whole - self._inner.spent
                self.entered[stage] += 1
                self._inner.spent = outer + whole

        return timed

    @contextmanager
    def on(self, stages: Sequence[tuple[str, Any, str]]) -> Iterator[None]:
        """All of them wrapped for as long as the block runs."""
        with ExitStack() as stack:
            for stage, owner, name in stages:
                stack.enter_context(mock.patch.object(owner, name, self.wrap(stage, getattr(owner, name))))
            yield


def send(setting: Setting, watch: Stopwatch, place: str) -> None:
    """As S1."""
    with streamlite.open(place, sync="never") as bus:
        topic = bus.topic("t", partitions=PARTITIONS)
        with bus.producer() as producer, watch.on(SENDING):
            call = producer.send

            def loop() -> None:
                for _ in range(setting.messages // len(VALUES)):
                    for key, value in PAIRS:
                        call(topic, value, key=key)
                producer.flush()

            watch.wrap("send itself: checks, partition, one list.append, a Delivery", loop)()


def poll(setting: Setting, watch: Stopwatch, place: str) -> None:
    """As S4."""
    with streamlite.open(place, sync="never") as bus, bus.consumer("t") as consumer, watch.on(READING):

        def loop() -> None:
            seen = 0
            while seen < setting.messages:
                seen += len(consumer.poll(PATIENCE_S))

        watch.wrap("poll itself: what is ready, lists", loop)()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.stages", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    asked = parser.parse_args(arguments)
    setting = Setting(asked.directory, messages=asked.messages)
    with setting.scratch() as place:
        for name, run in (("send", send), ("poll", poll)):
            watch = Stopwatch()
            run(setting, watch, place)
            total = sum(watch.spent.values())
            print(f"{name}: {total / setting.messages:.0f} ns of processor time a message")
            for stage, spent in sorted(watch.spent.items(), key=lambda item: -item[1]):
                entered = watch.entered[stage]
                each = "" if entered == 1 else f", {entered:,} times of {spent / entered / 1e3:.1f} us"
                print(f"  {spent / setting.messages:6.1f} ns {100 * spent / total:4.0f} %  {stage}{each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
