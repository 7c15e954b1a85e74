"""A deterministic scheduler: fault 14 of the promises.

Actors are threads of which one runs at a time. At every call of the files seam, and at every load and store of a mapped
word (`ScheduledFiles`), the running one may be preempted; where it would sleep it gives way. A schedule is the list of
choices that were made, so each can be made again, and `explore` makes all of them that there are, up to a number of
preemptions; `sample` draws some at random, by a seed that is printed where one fails.

Between two points an actor is alone. So whatever order of loads and stores two processes can come to on a machine that
keeps each one's own order is one of the schedules. What a processor may do beyond that (a load that overtakes an
earlier store) is not: `streamlite.wakeup` says how it is met.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from streamlite.errors import UnsupportedError
from streamlite.files import Fifo, File, FileLock, Files
from streamlite.files.memory import MemoryFiles
from tests.crash.faulty import Call

Choose = Callable[[Sequence[str]], int]

STEPS_MOST = 20_000
"""A run of more than so many points does not end."""


class Abandoned(BaseException):
    """Nobody can move on: the actor ends where it sleeps. No `Exception`, so that nobody handles it."""


class Actor:
    """One thread, and where it stands."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name = name
        self.call = call
        self.turn = threading.Lock()
        self.turn.acquire()
        self.ready: Callable[[], bool] | None = None
        """Where it sleeps: whether it may wake."""
        self.done = False
        self.error: BaseException | None = None

    def can_run(self) -> bool:
        return not self.done and (self.ready is None or self.ready())


class Run(NamedTuple):
    """What came of one schedule. `choices`: taken and out of how many, wherever there was more than one."""

    choices: list[tuple[int, int]]
    stuck: list[str]
    """Actors that slept when nobody could move on any more."""
    trace: list[str]


class Scheduler:
    """Runs actors, one at a time. `looks_at`: which calls are points; all, unless told."""

    def __init__(self, looks_at: Callable[[Call], bool] = lambda call: True) -> None:
        self.looks_at = looks_at
        self.words = 4
        """So many words of a list of words are in use."""
        self._actors: dict[int, Actor] = {}
        self._order: list[Actor] = []
        self._over = threading.Lock()
        self._ending = False
        self._choose: Choose = lambda options: 0
        self._left: int | None = None
        self._choices: list[tuple[int, int]] = []
        self._trace: list[str] = []

    def run(self, actors: Mapping[str, Callable[[], object]], choose: Choose, preemptions: int | None) -> Run:
        """Let the actors run to their ends. `choose` picks one of several, the running one first where it could go on.

        Raises what an actor raised, and says which schedule it was.
        """
        self._choose, self._left, self._choices, self._trace, self._ending = choose, preemptions, [], [], False
        self._order = [Actor(name, call) for name, call in actors.items()]
        self._actors = {}
        self._over.acquire()
        threads = [threading.Thread(target=self._act, args=(actor,), daemon=True) for actor in self._order]
        for thread, actor in zip(threads, self._order, strict=True):
            thread.start()
            assert thread.ident is not None
            self._actors[thread.ident] = actor
        self._go_on(None)
        with self._over:
            pass
        stuck = [actor for actor in self._order if not actor.done]
        self._ending = True
        for actor in stuck:
            actor.turn.release()
        for thread in threads:
            thread.join()
        self._over.acquire(blocking=False)
        self._over.release()
        for actor in self._order:
            if actor.error is not None:
                raise AssertionError(f"{actor.name} failed, choices {self._choices}") from actor.error
        return Run(self._choices, [actor.name for actor in stuck], self._trace)

    def _act(self, actor: Actor) -> None:
        actor.turn.acquire()
        try:
            actor.call()
        except Abandoned:
            return
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            actor.error = error
        if not self._ending:
            actor.done = True
            self._go_on(None)

    def point(self, call: Call) -> None:
        """Another actor may run from here on; nothing in a thread that is no actor."""
        actor = self._actors.get(threading.get_ident())
        if actor is None or self._ending or not self.looks_at(call):
            return
        self._trace.append(f"{actor.name}: {call.name} {call.path}")
        assert len(self._trace) < STEPS_MOST, "it does not end"
        self._go_on(actor)

    def sleep(self, ready: Callable[[], bool]) -> None:
        """Run on once `ready()` holds. Not for ever: nobody else could move on then, and the run is over."""
        actor = self._actors.get(threading.get_ident())
        assert actor is not None, "only actors sleep"
        if self._ending:
            raise Abandoned
        actor.ready = ready
        self._go_on(actor)
        actor.ready = None

    def give_way(self) -> None:
        """Somebody else runs before this one goes on, if anybody can: for loops that try again and again."""
        seen = len(self._trace)
        others = [actor for actor in self._order if actor is not self._actors.get(threading.get_ident())]
        if any(actor.can_run() for actor in others):
            self.sleep(lambda: len(self._trace) > seen or not any(actor.can_run() for actor in others))

    def _go_on(self, running: Actor | None) -> None:
        """Choose who runs now, and let it. In the thread of `running`, which may be the one."""
        options = [actor for actor in self._order if actor is not running and actor.can_run()]
        if running is not None and running.can_run():
            options.insert(0, running)
            if self._left == 0 and running.ready is None:
                del options[1:]
        if not options:
            self._over.release()
            self._wait(running)
            return
        chosen = options[self._pick(options)]
        if chosen is running:
            return
        if running is not None and running.ready is None and self._left is not None:
            self._left -= 1
        chosen.turn.release()
        self._wait(running)

    def _pick(self, options: list[Actor]) -> int:
        if len(options) == 1:
            return 0
        picked = self._choose([actor.name for actor in options])
        self._choices.append((picked, len(options)))
        return picked

    def _wait(self, running: Actor | None) -> None:
        if running is not None:
            running.turn.acquire()
            if self._ending:
                raise Abandoned


def replay(choices: Iterable[int]) -> Choose:
    """Make these choices; from then on, nobody is preempted."""
    left = iter(choices)
    return lambda options: next(left, 0)


def explore(run: Callable[[Choose], Run]) -> Iterator[Run]:
    """Every schedule there is. `run` runs the same actors on the same state each time, with the choices it is given."""
    prefix: list[tuple[int, int]] = []
    while True:
        found = run(replay(taken for taken, _ in prefix))
        yield found
        choices = found.choices
        assert choices[: len(prefix)] == prefix, "the same choices did not come to the same"
        while choices and choices[-1][0] + 1 == choices[-1][1]:
            choices = choices[:-1]
        if not choices:
            return
        taken, options = choices[-1]
        prefix = [*choices[:-1], (taken + 1, options)]


def sample(run: Callable[[Choose], Run], seeds: Iterable[int], share: float = 0.1) -> Iterator[Run]:
    """A schedule a seed: at each point, somebody else runs in `share` of the cases."""
    for seed in seeds:
        draw = random.Random(seed)

        def choose(options: Sequence[str], draw: random.Random = draw) -> int:
            return draw.randrange(1, len(options)) if draw.random() < share else 0

        try:
            yield run(choose)
        except BaseException:
            print(f"seed {seed}")
            raise


# -- the seams --------------------------------------------------------------------------------------------------------


def _passed_on(name: str) -> Any:
    def method(self: Any, *args: Any, **named: Any) -> Any:
        self.scheduler.point(Call(name, self.path))
        return getattr(self.inner, name)(*args, **named)

    return method


class _Inner:
    def __init__(self, scheduler: Scheduler, inner: Any) -> None:
        self.scheduler = scheduler
        self.inner = inner
        self.path: str = inner.path


class ScheduledFile(_Inner, File):
    """A file: each call is a point."""

    read = _passed_on("read")
    write = _passed_on("write")
    size = _passed_on("size")
    truncate = _passed_on("truncate")
    sync = _passed_on("sync")


class ScheduledLock(_Inner, FileLock):
    """A lock: each call is a point."""

    acquire = _passed_on("acquire")
    release = _passed_on("release")

    @property
    def unlock(self) -> Callable[[], object]:  # type: ignore[override]
        return self.release


class ScheduledFifo(Fifo):
    """A named pipe between actors. No time passes: who waits at it sleeps until it is rung."""

    def __init__(self, scheduler: Scheduler, path: str) -> None:
        self.scheduler = scheduler
        self.path = path
        self.rung = False

    def ring(self) -> None:
        self.scheduler.point(Call("ring", self.path))
        self.rung = True

    def wait(self, timeout: float | None) -> None:
        self.scheduler.point(Call("wait", self.path))
        self.scheduler.sleep(lambda: self.rung)

    def take(self) -> None:
        self.scheduler.point(Call("take", self.path))
        self.rung = False

    def fileno(self) -> int:
        raise UnsupportedError("it has no descriptor")


class ScheduledWords:
    """A mapping: each load and each store is a point."""

    def __init__(self, scheduler: Scheduler, path: str, view: memoryview) -> None:
        self._scheduler = scheduler
        self._path = path
        self._view = view

    def cast(self, kind: Any) -> ScheduledWords:
        return ScheduledWords(self._scheduler, self._path, self._view.cast(kind))

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            path = f"{self._path}[{at.start or ''}:{at.stop or ''}]"
            return ScheduledWords(self._scheduler, path, self._view[at])
        self._scheduler.point(Call("load", f"{self._path} {at}"))
        return self._view[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self._scheduler.point(Call("store", f"{self._path} {at}"))
        self._view[at] = value

    def tolist(self) -> list[int]:
        """Word by word, from the second on; of words that nobody uses none is a point."""
        found = self._view[:1].tolist()
        for at in range(1, min(len(self._view), self._scheduler.words)):
            self._scheduler.point(Call("load", f"{self._path} {at}"))
            found.append(self._view[at])
        return [*found, *self._view[len(found) :].tolist()]

    def tobytes(self) -> bytes:
        self._scheduler.point(Call("load", self._path))
        return self._view.tobytes()

    def __bytes__(self) -> bytes:
        return self.tobytes()


class ScheduledRLock:
    """A re-entrant lock between actors of one process; taking it is a point."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._owner = 0
        self._count = 0

    def _is_owned(self) -> bool:
        return self._owner == threading.get_ident()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._scheduler.point(Call("acquire", "a mutex"))
        if self._count and not self._is_owned():
            if not blocking:
                return False
            self._scheduler.sleep(lambda: not self._count)
        self._owner = threading.get_ident()
        self._count += 1
        return True

    def release(self) -> None:
        if not self._count or not self._is_owned():
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._owner = 0


class ScheduledFiles(Files):
    """The seam of one actor's process, over files in memory that all share: each call is a point."""

    def __init__(self, scheduler: Scheduler, inner: MemoryFiles, fifos: dict[str, ScheduledFifo]) -> None:
        self.root = inner.root
        self.path = ""
        self.scheduler = scheduler
        self.inner = inner
        self._fifos = fifos

    def _point(self, name: str, path: str) -> None:
        self.scheduler.point(Call(name, path))

    def open(self, path: str, *, create: bool = False) -> File:
        self._point("create" if create else "open", path)
        return ScheduledFile(self.scheduler, self.inner.open(path, create=create))

    def scratch(self) -> File:
        self._point("create", "")
        return ScheduledFile(self.scheduler, self.inner.scratch())

    def lock(self, path: str, *, create: bool = True) -> FileLock:
        self._point("lock", path)
        return ScheduledLock(self.scheduler, self.inner.lock(path, create=create))

    def fifo(self, path: str, *, create: bool = False) -> Fifo:
        self._point("create" if create else "open", path)
        self.inner.open(path, create=create)
        return self._fifos.setdefault(path, ScheduledFifo(self.scheduler, path))

    def map(self, path: str, offset: int, size: int) -> memoryview:
        self._point("map", path)
        words: Any = ScheduledWords(self.scheduler, f"{path}@{offset}", self.inner.map(path, offset, size))
        return words  # type: ignore[no-any-return]

    def read_file(self, path: str) -> bytes:
        self._point("read_file", path)
        return self.inner.read_file(path)

    def replace_file(self, path: str, data: bytes, *, sync: bool) -> None:
        self._point("replace_file", path)
        self.inner.replace_file(path, data, sync=sync)

    def list(self, path: str) -> list[str]:
        self._point("list", path)
        return self.inner.list(path)

    def make_dir(self, path: str) -> None:
        self._point("make_dir", path)
        self.inner.make_dir(path)

    def rename(self, path: str, to: str) -> None:
        self._point("rename", path)
        self.inner.rename(path, to)

    def remove(self, path: str) -> None:
        self._point("remove", path)
        self.inner.remove(path)

    def remove_tree(self, path: str) -> None:
        self._point("remove_tree", path)
        self.inner.remove_tree(path)

    def sync_dir(self, path: str) -> None:
        self._point("sync_dir", path)

    def boot_id(self) -> int:
        return self.inner.boot_id()

    def close(self) -> None:
        return
