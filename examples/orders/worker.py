"""The loop of a worker that hands on what it reads: nothing is lost, whenever it dies, and some of it is done again."""

from __future__ import annotations

import signal
from collections.abc import Callable

import streamlite

BATCH = 20
"""Orders between two commits: as many are done again, at most, when a worker is killed."""


def work(
    consumer: streamlite.Consumer, producer: streamlite.Producer, handle: Callable[[streamlite.Message], None]
) -> None:
    """Handle messages until SIGTERM.

    Flush, then commit: a commit says that the results are in the log, and results that still wait in this process's
    memory would die with it. So commits are ours (`auto_commit=False`). A live member gives a partition up when it asks
    for messages, and nothing is on its way then.
    """
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        consumer.wakeup()

    signal.signal(signal.SIGTERM, stop)
    while not stopped:
        for message in consumer.poll(timeout=5, max_messages=BATCH):
            handle(message)
        producer.flush()
        try:
            consumer.commit()
        except streamlite.FencedError as error:
            # This process was away for so long that others took its partitions. The next poll joins again.
            print(f"  fenced    {error}", flush=True)
