"""streamlite for asyncio: `AsyncProducer` and `AsyncConsumer`, the sync clients with a loop in the place of a thread.

A client here is the sync one, with what would block taken out. What remains runs in one of two places: in the loop's
thread, where it only touches memory; or in the bus's pool of threads, a step at a time, where it reads, writes, takes
locks or syncs. Between steps a client waits in the loop, with no thread, and a cancelled call leaves its step to finish
by itself: the next call waits for it, and what it fetched is handed out again.
"""

from __future__ import annotations

from streamlite.aio.consumer import AsyncConsumer
from streamlite.aio.producer import AsyncProducer

__all__ = ["AsyncConsumer", "AsyncProducer"]
