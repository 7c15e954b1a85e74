"""Between an event loop and what may block: a pool of threads for the steps, places to wait that hold none, turns.

* A `Pool` belongs to a bus. It runs steps, which end soon by themselves: nothing in it waits for messages or for room.
  A thread that waits for the loop (a step has called back) says so with `lent`, and another may take its place: or four
  consumers whose callbacks need a step each would wait for each other for ever.
* A place is where one consumer's task sleeps until it is rung. On disk that is the FIFO that other processes ring, read
  by the loop; in memory a call into the loop; on a test's clock, a thread that waits by that clock, since only who
  waits by it can be jumped over.
* A `Turn` is how long a task may go on without letting the loop's other tasks run. A `send` with room in the buffer
  waits for nothing, so a task that only sends would starve the others.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic, sleep
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from streamlite.clock import Clock, SystemClock
from streamlite.engine import Engine
from streamlite.errors import ClosedError, StorageError
from streamlite.wakeup import LOOK_AGAIN_S, Bell, FifoWaiter, Waiter

__all__ = ["Aside", "Place", "Pool", "Turn", "busy", "clocked", "outcome", "place", "tell", "until"]

THREADS_MAX: Final = 4
"""Of a bus: while one step waits for an fsync, or for another's lock, three others go on."""
HOLD_S: Final = 0.0005
"""A tenth of what the loop may be held: several clients and the application share the rest."""
_ASIDE_S: Final = 50e-6
"""Long enough for a thread that waits for the GIL to get it; a sleep of nothing would be too short."""
_LATE_S: Final = 0.003
"""A step that takes so long is taken to wait for something: a usual one takes 0.1 to 0.5 ms."""
_SLEEP_MAX_S: Final = 86_400.0
_ROUNDS: Final = 8
"""Before a test's clock may jump, the tasks that are ready get so many turns."""
_FRESH: Final = float("-inf")

R = TypeVar("R")


# -- what a task waits for --------------------------------------------------------------------------------------------


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """From any thread: what the future waits for has come. Nothing where the loop is closed."""
    try:
        loop.call_soon_threadsafe(_resolve, future)
    except RuntimeError:
        return  # closed: nobody waits there


async def until(future: asyncio.Future[None], timeout: float | None) -> None:
    """Wait for the future, or for `timeout` seconds; may return early."""
    if timeout is None:
        await future
        return
    timer = asyncio.get_running_loop().call_later(min(timeout, _SLEEP_MAX_S), _resolve, future)
    try:
        await future
    finally:
        timer.cancel()


async def outcome(future: Future[R]) -> R:
    """The result of a step. Cancelled, it leaves the step alone."""
    if not future.done():
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(lambda _: tell(loop, waiting))
        await waiting
    return future.result()


@contextmanager
def busy(clock: Clock) -> Iterator[None]:
    """Keep a test's clock from jumping meanwhile."""
    token = object()
    clock.worker_woken(token)
    try:
        yield
    finally:
        clock.worker_stopped(token)


async def clocked(clock: Clock, wait: Callable[[], object], wake: Callable[[], object]) -> None:
    """Run `wait`, which waits by a test's clock, in a thread of its own; `wake` ends it early.

    The thread counts as one that waits in a blocking call, and the clock stands still from when it ends until the task
    has been told, or another's deadline could come before this task's answer.
    """
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[None] = loop.create_future()
    token, gone = object(), threading.Event()

    def run() -> None:
        wait()
        clock.worker_woken(token)
        if gone.is_set():
            clock.worker_stopped(token)
        tell(loop, waiting)

    threading.Thread(target=run, name="streamlite-asyncio-clock", daemon=True).start()
    try:
        await waiting
    finally:
        gone.set()
        clock.worker_stopped(token)
        wake()


# -- turns ------------------------------------------------------------------------------------------------------------


class Aside:
    """Lets the loop's thread have the GIL, from a thread that has much to do.

    The interpreter takes it away only after 5 ms: so long would the loop be held, each time it wants to go on.
    """

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = monotonic()

    def begin(self) -> None:
        """The thread has waited: it begins anew."""
        self._since = monotonic()

    def stand(self) -> None:
        """Stand aside, if it is time."""
        if monotonic() - self._since > HOLD_S:
            sleep(_ASIDE_S)
            self._since = monotonic()


class Turn:
    """How long one client's calls may go on before the loop's other tasks get theirs."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = _FRESH
        """On the monotonic clock: before it, nothing needs to be asked."""

    async def give(self) -> None:
        """Past `until`: begin a turn where the loop has run meanwhile, else let it run first."""
        loop = asyncio.get_running_loop()
        while monotonic() >= self.until:
            if self.until == _FRESH:
                self.until = monotonic() + HOLD_S
                loop.call_soon(self._over)
                return
            await asyncio.sleep(0)

    def _over(self) -> None:
        self.until = _FRESH

    @staticmethod
    def of_awakened() -> Turn:
        """The turn that all clients of this thread's loop share when they wake up: one message may wake a hundred.

        Not for those who go on with what they do: the first of them would have each turn, the last one none.
        """
        turn: Turn | None = getattr(_awakened, "turn", None)
        if turn is None:
            turn = _awakened.turn = Turn()
        return turn


_awakened = threading.local()


# -- places -----------------------------------------------------------------------------------------------------------


class Place(Waiter):
    """Where a consumer's task sleeps; the sync consumer inside rings and closes it like its own waiter."""

    def prepare(self) -> None:
        """Once, in the pool: what takes the disk."""

    async def sleep(self, ready: Callable[[], bool], timeout: float | None) -> None:
        """Sleep until rung or for `timeout` seconds, unless `ready()` holds once this place is armed."""
        raise NotImplementedError


def place(bell: Bell) -> Place:
    """A place of the kind that the bus needs."""
    if not isinstance(bell.clock, SystemClock):
        return _ByClock(bell)
    waiter = bell.waiter()
    return _ByFifo(bell, waiter) if isinstance(waiter, FifoWaiter) else _ByCall(bell)


class _ByCall(Place):
    """Rung by a call into the loop."""

    _tell: Callable[[], None] | None = None

    def ring(self) -> None:
        call, self._tell = self._tell, None  # one of many rings is enough
        if call is not None:
            call()

    async def sleep(self, ready: Callable[[], bool], timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        self._tell = partial(tell, loop, waiting)
        self._bell.add(self)
        try:
            if not ready():
                await until(waiting, timeout)
        finally:
            self._bell.remove(self)
            self._tell = None


class _ByFifo(Place):
    """Rung through the FIFO of a sync waiter, which the loop watches."""

    def __init__(self, bell: Bell, waiter: FifoWaiter) -> None:
        super().__init__(bell)
        self._waiter = waiter
        self._closed = False

    def prepare(self) -> None:
        self._waiter.arm()
        self._waiter.disarm()

    def ring(self) -> None:
        self._waiter.ring()

    async def sleep(self, ready: Callable[[], bool], timeout: float | None) -> None:
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        fifo = self._waiter.arm()
        if fifo is None:  # no word was left: only looking again helps
            timeout = min(LOOK_AGAIN_S if timeout is None else timeout, LOOK_AGAIN_S / 10)
        else:
            loop.add_reader(fifo.fileno(), _resolve, waiting)
        try:
            if not ready():
                await until(waiting, timeout)
        finally:
            self._waiter.disarm()
            if fifo is not None:
                loop.remove_reader(fifo.fileno())
            if self._closed:
                self._waiter.close()

    def close(self) -> None:
        self._closed = True
        self._waiter.close()


class _ByClock(Place):
    """By a test's clock, in a thread."""

    _waiter: Waiter | None = None

    def ring(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            waiter.ring()

    async def sleep(self, ready: Callable[[], bool], timeout: float | None) -> None:
        waiter = self._waiter = Waiter(self._bell)  # another each time: a cancelled one may still be on its way out
        try:
            await clocked(self._bell.clock, lambda: waiter.wait(ready, timeout), waiter.ring)
        finally:
            self._waiter = None


# -- the pool ---------------------------------------------------------------------------------------------------------


class Pool:
    """A few threads that run the steps of a bus's clients. Started as they are needed, there until the bus closes.

    One works, and another only when that one is held up: threads that all want the GIL keep it from the loop for 5 ms
    each in turn, and there is nothing to be won by them but while one waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())  # guards all below
        self._steps: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0  # threads that wait for a step and have not been promised one
        self._lent = 0
        self._taken_at = 0.0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pool: {len(self._threads)} threads, {self._idle} idle, {len(self._steps)} steps to do>"

    @classmethod
    def of(cls, engine: Engine) -> Pool:
        """The pool of a bus."""
        with _pools_mutex:
            pool = _pools.get(engine)
            if pool is None:
                pool = _pools[engine] = cls()
                engine.adopt(pool)  # before its clients, so it closes after them
            return pool

    def submit(self, step: Callable[[], R]) -> Future[R]:
        """Have a step run soon; `ClosedError` after `close`, `StorageError` where the system gives no thread."""
        future: Future[R] = Future()
        with self._changed:
            if self._closed:
                raise ClosedError("the bus is closed; open it again")
            self._steps.append((future, step))
            if len(self._threads) - self._idle > self._lent:
                asyncio.get_running_loop().call_later(_LATE_S, self._relieve)
                return future
            try:
                self._staff()
            except RuntimeError as error:
                if len(self._threads) == self._lent:  # else the others do it
                    self._steps.pop()
                    raise StorageError(f"cannot start a thread: {error}; nothing was lost, try again") from error
        return future

    def _relieve(self) -> None:
        """In the loop: have another thread work where those that do are held up."""
        with self._changed:
            if not self._steps or self._closed:
                return
            if monotonic() - self._taken_at >= _LATE_S:
                self._taken_at = monotonic()  # one at a time, however many wait
                with suppress(RuntimeError):  # as many threads as there are must do
                    self._staff()
            asyncio.get_running_loop().call_later(_LATE_S, self._relieve)

    def _staff(self) -> None:
        """See that somebody takes a step; `RuntimeError` where the system gives no thread."""
        if self._idle:
            self._idle -= 1
            self._changed.notify()
        elif len(self._threads) - self._lent < THREADS_MAX:
            thread = threading.Thread(target=self._run, name="streamlite-asyncio", daemon=True)
            thread.start()
            self._threads.add(thread)

    def _run(self) -> None:
        aside = Aside()
        while (task := self._next(aside)) is not None:
            future, step = task
            try:
                result = step()
            except BaseException as error:  # noqa: BLE001 - whoever awaits the step gets it
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            del task, future, step  # an idle thread keeps nothing alive
            aside.stand()

    def _next(self, aside: Aside) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            while not self._steps:
                if self._closed or len(self._threads) - self._lent > THREADS_MAX:
                    self._threads.discard(threading.current_thread())
                    return None
                self._idle += 1
                self._changed.wait()
                aside.begin()
            self._taken_at = monotonic()
            return self._steps.popleft()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The calling thread waits for the loop: another one may work in its place."""
        with self._changed:
            self._lent += 1
            if self._steps:
                with suppress(RuntimeError):  # as many threads as there are must do
                    self._staff()
        try:
            yield
        finally:
            with self._changed:
                self._lent -= 1

    def close(self) -> None:
        """Let the threads do what is left, and end."""
        with self._changed:
            self._closed = True
            self._idle = 0
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()


_pools: WeakKeyDictionary[Engine, Pool] = WeakKeyDictionary()
_pools_mutex: Final = threading.Lock()  # guards the above
