"""Receiving: a consumer hands out messages, one by one or in batches, and commits what the application is done with.

A façade over three rooms: `assignment` knows which partitions are read and commits for the group, `fetcher` reads them,
`handout` keeps what is in the application's hands. What "processed" means stands in `handout`; processed positions are
committed automatically when `auto_commit_interval_ms` has passed, before a call blocks, before a partition goes to
another member, and on `close`.

One thread uses a consumer; `wakeup` and `close` may come from any. A call holds `_busy`, which `close` takes to do its
part, after it has rung whoever blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

from streamlite.assignment import LOOK_FOR_MEMBERS_S, Assignment, check_offset
from streamlite.clock import SystemClock
from streamlite.config import ConsumerOptions
from streamlite.engine import Engine
from streamlite.errors import (
    ClosedError,
    ConfigError,
    OffsetOutOfRangeError,
    StreamliteError,
    TimeoutError,
    not_picklable,
)
from streamlite.fetcher import Track
from streamlite.handout import TICK
from streamlite.message import Columns, Message, TopicPartition
from streamlite.reader import cap_offset, offset_for_time
from streamlite.wakeup import LOOK_AGAIN_S

__all__ = ["Consumer"]

_FOLLOW_S: Final = 0.02
"""How often a consumer of a bus that is only read looks for messages: nobody knows that it waits."""


class Consumer:
    """Reads topics, alone or as a member of a group. Made by `Bus.consumer`."""

    def __init__(self, engine: Engine, group: str | None, options: ConsumerOptions) -> None:
        self._engine = engine
        self._ctx = engine.ctx
        self._clock = engine.ctx.clock
        self._options = options
        self.group = group
        self._waiter = self._ctx.bell.waiter()
        self._busy = threading.RLock()
        self._woken = False
        self._closing = False
        self._leaving = False
        self._closed = False
        self._settle_at = 0.0
        self._failure: StreamliteError | None = None  # met after messages were found: raised by the next call
        self._assignment = Assignment(engine, group, options, self)
        self._fetcher = self._assignment.fetcher
        self._handout = self._assignment.handout
        engine.adopt(self)

    def _begin(self, topics: tuple[Any, ...]) -> None:
        """Subscribe to what it was made for; whatever is raised here, it is no member of the group."""
        try:
            if topics:
                self.subscribe(*topics)
        except BaseException:
            # Nobody gets this consumer: it must not stay a member. Without its lock it is dead to the others, whatever
            # a signal handler raises in the rest; nothing runs before.
            if self._assignment.membership is not None:
                self._assignment.membership.unlock()
            self._closed = True
            self._assignment.abandon()
            self._engine.forget(self)
            raise

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._fetcher.tracks)} partitions"
        return f"<Consumer of {self._ctx.files.root}{f' in group {self.group!r}' if self.group else ''}: {state}>"

    # -- subscription -------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        *topics: Any,
        on_assign: Callable[..., Any] | None = None,
        on_revoke: Callable[..., Any] | None = None,
        on_lost: Callable[..., Any] | None = None,
    ) -> None:
        """Read these topics: names, `Topic`s (which bring their types) or compiled patterns; replaces what was read.

        The callbacks get `(consumer, partitions)`. Raises `UnknownTopicError` for a topic that is not there.
        """
        with self._busy:
            self._enter()
            if not topics:
                raise ConfigError("subscribe to at least one topic; unsubscribe() reads nothing")
            given = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
            options = self._options
            defaults = {"on_assign": options.on_assign, "on_revoke": options.on_revoke, "on_lost": options.on_lost}
            self._assignment.subscribe(topics, {name: given[name] or defaults[name] for name in given})

    def unsubscribe(self) -> None:
        """Read nothing; a member of a group commits what it processed and leaves."""
        with self._busy:
            self._enter()
            self._assignment.let_go()

    def assign(self, partitions: Any) -> None:
        """Read these `TopicPartition`s, without sharing them with a group's members; replaces what was read."""
        with self._busy:
            self._enter()
            self._assignment.assign([self._assignment.partition(tp) for tp in partitions])

    def assignment(self) -> set[TopicPartition]:
        """The partitions that this consumer reads now."""
        with self._busy:
            self._enter()
            return set(self._fetcher.tracks)

    def wait_assigned(self, timeout: float | None = None) -> set[TopicPartition]:
        """Wait until there are partitions to read, and return them; `TimeoutError`."""
        with self._busy:
            self._enter()
            deadline = self._deadline(timeout)
            self._assignment.tend()
            while not self._fetcher.tracks:
                if self._stopped() or not self._sleep(deadline, self._assignment.moved):
                    raise TimeoutError(
                        f"no partition was assigned within {timeout} s: other members of group {self.group!r} may hold "
                        "them all"
                    )
                self._assignment.tend()
            return set(self._fetcher.tracks)

    # -- messages -----------------------------------------------------------------------------------------------------

    def poll(self, timeout: float = 0.0, max_messages: int | None = None) -> list[Message]:
        """The next messages, at most `max_messages` (else `max_poll_messages`), in order per partition.

        Waits up to `timeout` seconds for the first of them; `[]` when none came, or after `wakeup`.
        """
        most = self._most(max_messages)
        found: list[Message] = []

        def take(track: Track, room: int) -> int:
            messages = self._handout.take(track, room)
            found.extend(messages)
            return len(messages)

        self._poll(timeout, most, take, found)
        self._handout.hand_out()
        return found

    def poll_columns(self, timeout: float = 0.0, max_messages: int | None = None) -> list[Columns]:
        """As `poll`, but as columns of bytes, one `Columns` a stretch: no messages are built, nothing decoded."""
        most = self._most(max_messages)
        found: list[Columns] = []

        def take(track: Track, room: int) -> int:
            self._handout.taking.append(track)
            taken = track.take(room)
            if taken is None:
                self._handout.taking.pop()
                return 0
            batch, start, stop = taken
            found.append(batch.columns(track.tp.topic, track.tp.partition, start, stop))
            return stop - start

        self._poll(timeout, most, take, found)
        self._handout.hand_out()
        return found

    def _most(self, asked: int | None) -> int:
        if asked is None:
            return self._options.max_poll_messages
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
            raise ConfigError(f"max_messages must be an int, at least 1; found {asked!r:.60}")
        return asked

    def _poll(self, timeout: float | None, most: int, take: Callable[[Track, int], int], found: list[Any]) -> None:
        with self._busy:
            self._enter()
            self._handout.take_back()
            self._handout.count_polled()
            self._collect(self._deadline(timeout), most, take, found)

    def _collect(self, deadline: float | None, most: int, take: Callable[[Track, int], int], found: list[Any]) -> None:
        """Take messages, waiting for the first until `deadline`; `found` stays empty where none came."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        guarded = self._guarded(take)
        awakened = False  # most likely by a message: everything else can wait until it is handed out
        while not self._stopped():
            if not awakened or self._assignment.moved():
                self._assignment.tend()
                self._settle_left()
                awakened = False
            if self._fetcher.look():
                try:
                    self._fetcher.serve(most, guarded)
                except StreamliteError as error:
                    if not found:
                        raise
                    self._failure = error
            if found:
                return
            if awakened:
                awakened = False
            elif self._sleep(deadline, self._has_news):
                awakened = True
            else:
                return

    def _guarded(self, take: Callable[[Track, int], int]) -> Callable[[Track, int], int]:
        """`take`, with the out-of-range rule applied."""

        def guarded(track: Track, room: int) -> int:
            rule, partition = self._options.out_of_range, track.partition
            while True:
                try:
                    return take(track, room)
                except OffsetOutOfRangeError:
                    if rule == "raise":
                        raise
                    # The beginning may move again before it is read: then this is said again.
                    track.seek(partition.start() if rule == "earliest" else partition.end())
                    track.processed = track.noted = track.position

        return guarded

    def _settle_left(self) -> None:
        """Now and then, have published what dead writers left: a transaction that was committed stays hidden else."""
        if self._engine.shared and not self._ctx.read_only:
            now = self._clock.monotonic()
            if now >= self._settle_at:
                self._settle_at = now + LOOK_AGAIN_S
                self._fetcher.settle_left()

    def _has_news(self) -> bool:
        return self._fetcher.look() or self._woken or self._closing or self._assignment.moved()

    def _sleep(self, deadline: float | None, ready: Callable[[], bool]) -> bool:
        """Wait for news until `deadline`; `False` when it has passed. What is processed is committed before."""
        left = None if deadline is None else deadline - self._clock.monotonic()
        if left is not None and left <= 0:
            self._ctx.hurry()
            return bool(self._fetcher.look())
        self._assignment.commit_processed()
        self._ctx.hurry()
        pause = self._pause()
        self._waiter.wait(ready, pause if left is None else left if pause is None else min(left, pause))
        return True

    def _pause(self) -> float | None:
        """How long to sleep at most before looking up: for what other processes do, and for members that hang."""
        if self._assignment.membership is not None:
            patience = self._options.max_poll_interval_ms / 10_000
            return LOOK_FOR_MEMBERS_S if self._engine.shared else max(LOOK_FOR_MEMBERS_S, patience)
        if self._ctx.read_only:
            return _FOLLOW_S
        # In memory nobody else publishes, but a signal handler may ring in the moment before the sleep.
        return LOOK_AGAIN_S if isinstance(self._clock, SystemClock) else None

    def _deadline(self, timeout: float | None) -> float | None:
        if timeout is None:
            return None
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise ConfigError(f"timeout must be a number of seconds, at least 0, or None; found {timeout!r:.60}")
        return self._clock.monotonic() + timeout

    def _stopped(self) -> bool:
        """Whether this call must end: `wakeup` was called, or `close` wants to do its part."""
        if self._woken:
            self._woken = False
            return True
        return self._closing or self._ctx.closed

    # -- the loop -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Message]:
        return self.messages()

    def messages(self, timeout: float | None = None) -> Iterator[Message]:
        """Messages one by one from the first unprocessed one on; ends `timeout` seconds after the last, or never.

        `wakeup` and `close` end it too.
        """
        with self._busy:
            self._enter()
            self._deadline(timeout)
            self._handout.take_back_all()
        return self._loop(timeout)

    def _loop(self, timeout: float | None) -> Iterator[Message]:
        handout = self._handout
        try:
            while True:
                run = self._next_run(timeout)
                if not run:
                    return
                for message in run:
                    handout.current = message
                    yield message
                    # Resumed: the message is processed.
                    if handout.run is not run and not self._look_up(message, run):
                        break
                else:
                    with self._busy:
                        handout.end_run()
        finally:
            self._engine.ticker.forget(self)

    def _next_run(self, timeout: float | None) -> list[Message]:
        """The next messages of one partition for the loop; `[]` where it ends."""
        found: list[Message] = []

        def take(track: Track, room: int) -> int:
            messages = self._handout.take(track, room)
            if not messages:
                return 0
            found.extend(messages)
            self._handout.begin_run(found, track)
            return room

        with self._busy:
            if self._closed:
                return []
            self._handout.give_up()
            self._handout.take_back()
            self._handout.count_polled()
            self._collect(self._deadline(timeout), self._options.max_poll_messages, take, found)
            if self._assignment.membership is not None:
                self._engine.ticker.watch(self)
        return found

    def tick(self) -> None:
        """From the ticker's thread: have the loop look up from its run when it asks for the next message."""
        if self._handout.run is not None:
            self._handout.run = TICK

    def _look_up(self, message: Message, run: list[Message]) -> bool:
        """The run was interrupted while `message`, now processed, was in the loop's hands; whether it goes on."""
        handout = self._handout
        with self._busy:
            ticked = handout.run is TICK and handout.live is run
            handout.resumed(message)
            if ticked and not (self._woken or self._closing):
                handout.run = run
                self._assignment.tend()
                if handout.run is run:
                    return True
            handout.take_back()
            return False

    # -- offsets ------------------------------------------------------------------------------------------------------

    def commit(self, message_or_offsets: Message | Mapping[TopicPartition, int] | None = None) -> None:
        """Commit, for the group: a message (its offset + 1), offsets, or `None`: all that was handed out.

        A committed offset is the next one to read; what is committed counts as processed. Raises `FencedError` where a
        partition is this member's no more, with nothing of the commit done; the next poll then joins again, and goes on
        from the committed offsets. `ConfigError` without a group.
        """
        with self._busy:
            self._enter()
            self._assignment.commit(message_or_offsets)

    def _for_transaction(self, engine: Engine) -> Assignment:
        """What a transaction of that bus asks for offsets; `ConfigError` where this consumer cannot be part of one."""
        with self._busy:
            self._check()
            if engine is not self._engine:
                raise ConfigError("a transaction and its consumer must be of one bus: open both from the same Bus")
            if self.group is None:
                raise ConfigError("a consumer without a group has no offsets to commit: open it with group=...")
            if self._options.auto_commit:
                raise ConfigError(
                    "a consumer that commits by itself cannot commit in a transaction: open it with auto_commit=False"
                )
            return self._assignment

    def committed(self, tp: TopicPartition) -> int | None:
        """The group's committed offset of a partition, `None` where there is none."""
        with self._busy:
            self._enter()
            if self.group is None:
                raise ConfigError("committed offsets belong to a group: open the consumer with group=...")
            partition = self._assignment.partition(tp)
            found = self._engine.offsets.get(self.group, partition.tp, partition.topic.incarnation)
            return None if found is None else cap_offset(partition, found.offset, found.epoch)

    def position(self, tp: TopicPartition) -> int:
        """The offset of the next message that will be handed out."""
        with self._busy:
            self._enter()
            return self._handout.position(self._assignment.track(tp))

    def epoch(self, tp: TopicPartition) -> int:
        """What to keep beside a position in a store of one's own: `seek` takes it back."""
        with self._busy:
            self._enter()
            self._assignment.track(tp)
            return self._ctx.epoch

    def incarnation(self, tp: TopicPartition) -> int:
        """Which of the topics that had this name is read: a positive 63-bit int, never given to another topic.

        Who keeps offsets in a store of his own keeps it too: an offset of an earlier incarnation means nothing here.
        """
        with self._busy:
            self._check()
            return self._assignment.track(tp).partition.topic.incarnation

    def seek(self, tp: TopicPartition, offset: int, epoch: int | None = None) -> None:
        """Hand out `offset` next; with the `epoch` it was noted in, capped where a stop of the machine cut the log."""
        with self._busy:
            self._enter()
            track = self._assignment.track(tp)
            check_offset(offset)
            if epoch is not None:
                if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
                    raise ConfigError(f"epoch must be what epoch(tp) gave; found {epoch!r:.60}")
                offset = cap_offset(track.partition, offset, epoch)
            self._seek(track, offset)

    def _seek(self, track: Track, offset: int) -> None:
        if track is self._handout.run_track:
            self._handout.take_back()
        self._handout.polled = [other for other in self._handout.polled if other is not track]
        self._fetcher.wake(track)
        track.seek(offset)
        track.processed = track.noted = track.began = offset

    def seek_to_beginning(self, *tps: TopicPartition) -> None:
        """Go back to the first offset of these partitions, or of all assigned ones."""
        with self._busy:
            for track in self._tracks(tps):
                self._seek(track, track.partition.start())

    def seek_to_end(self, *tps: TopicPartition) -> None:
        """Skip everything that is in these partitions, or in all assigned ones, now."""
        with self._busy:
            for track in self._tracks(tps):
                self._seek(track, track.partition.end())

    def _tracks(self, tps: tuple[TopicPartition, ...]) -> list[Track]:
        self._enter()
        return [self._assignment.track(tp) for tp in tps] if tps else list(self._fetcher)

    def offsets_for_times(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, int | None]:
        """For each partition the first offset with that timestamp (ms) or a later one; `None` when there is none."""
        with self._busy:
            self._enter()
            found: dict[TopicPartition, int | None] = {}
            for tp, timestamp_ms in times.items():
                partition = self._assignment.partition(tp)
                if isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int):
                    raise ConfigError(f"a time is an int in ms since the epoch; found {timestamp_ms!r:.60}")
                found[partition.tp] = offset_for_time(partition, timestamp_ms)
            return found

    def lag(self) -> dict[TopicPartition, int]:
        """How many messages each assigned partition has from the position to its end."""
        with self._busy:
            self._enter()
            self._ctx.hurry()
            return {track.tp: max(0, track.partition.end() - self._handout.position(track)) for track in self._fetcher}

    def beginning_offsets(self, tps: Any) -> dict[TopicPartition, int]:
        """The first offset of each partition."""
        with self._busy:
            self._enter()
            return {partition.tp: partition.start() for partition in map(self._assignment.partition, tps)}

    def end_offsets(self, tps: Any) -> dict[TopicPartition, int]:
        """The next offset of each partition."""
        with self._busy:
            self._enter()
            self._ctx.hurry()
            return {partition.tp: partition.end() for partition in map(self._assignment.partition, tps)}

    # -- pause, wake up, close ----------------------------------------------------------------------------------------

    def pause(self, *tps: TopicPartition) -> None:
        """Hand out nothing of these partitions until `resume`; they stay assigned."""
        with self._busy:
            for track in self._tracks(tps) if tps else ():
                track.paused = True
                if track is self._handout.run_track:
                    self._handout.interrupt()  # the loop goes on elsewhere when it asks for the next message

    def resume(self, *tps: TopicPartition) -> None:
        """Hand out messages of these partitions again."""
        with self._busy:
            for track in self._tracks(tps) if tps else ():
                self._fetcher.resume(track)

    def paused(self) -> set[TopicPartition]:
        """The partitions that are paused."""
        with self._busy:
            self._enter()
            return {track.tp for track in self._fetcher if track.paused}

    def wakeup(self) -> None:
        """From any thread: the current or next call that may block returns empty, the loop ends."""
        self._woken = True
        self._handout.interrupt()
        self._waiter.ring()

    def close(self) -> None:
        """From any thread: commit what is processed (with auto_commit), leave the group at once. Idempotent."""
        if self._closed or self._ctx.forked:
            return
        self._closing = True
        self._waiter.ring()
        with self._busy:
            if self._closed or self._leaving:
                return  # the second call may come from a callback of the first
            self._leaving = True
            try:
                self._assignment.let_go()
            finally:
                self._leaving = False
                # While it is a member (a signal handler ended this before it began), it can be closed again.
                if self._assignment.membership is None:
                    self._closed = True
                    self._waiter.close()
                    self._engine.forget(self)

    def __reduce__(self) -> NoReturn:
        raise not_picklable("consumer")

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _enter(self) -> None:
        """What every call does first, once it holds `_busy`."""
        self._check()
        self._handout.give_up()

    def _check(self) -> None:
        self._ctx.check()
        if self._closed:
            raise ClosedError("the consumer is closed; open another with bus.consumer(...)")
