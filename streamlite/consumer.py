"""Receiving: which messages an application is handed, which of them it is done with, and what is committed of that.

Processed means: the loop asked for the next message, or `poll` was called again. Everything here follows from that rule.
`poll` first counts what the last `poll` handed out as processed; the loop's generator counts a message as processed when
it is resumed, and not when it is closed, so that `break`, `return` and exceptions leave the last message for next time.
Only processed positions are committed automatically: when `auto_commit_interval_ms` has passed, before a call blocks,
before a partition goes to another member, and on `close`.

One thread uses a consumer; `wakeup` and `close` may come from any. A call holds `_busy`, which `close` takes to do its
part, after it has rung whoever blocks.

The work is done elsewhere: `fetcher` reads, `group` knows the members and commits, `subscription` says which partitions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from streamlite.config import ConsumerOptions
from streamlite.engine import Engine
from streamlite.errors import (
    ClosedError,
    ConfigError,
    FencedError,
    OffsetOutOfRangeError,
    StreamliteError,
    TimeoutError,
    UnknownTopicError,
)
from streamlite.fetcher import Fetcher, Track
from streamlite.group import Membership
from streamlite.message import Columns, Message, TopicPartition
from streamlite.offsets import Position
from streamlite.reader import cap_offset, offset_for_time
from streamlite.registry import TopicState
from streamlite.subscription import Subscription
from streamlite.wakeup import LOOK_AGAIN_S, Waiter

if TYPE_CHECKING:
    from streamlite.partition import Partition

__all__ = ["Consumer"]

logger = logging.getLogger("streamlite")

_LOOK_FOR_MEMBERS_S: Final = 0.1
"""How often a member of a group looks whether another has died: a try of a lock, a microsecond a member."""


_TICK: Final[list[Message]] = []
"""What the ticker puts in the place of a run."""


class Consumer:
    """Reads topics, alone or as a member of a group. Made by `Bus.consumer`."""

    def __init__(self, engine: Engine, topics: tuple[Any, ...], group: str | None, options: ConsumerOptions) -> None:
        self._engine = engine
        self._ctx = engine.ctx
        self._clock = engine.ctx.clock
        self._options = options
        self.group = group
        self._fetcher = Fetcher(self._ctx)
        self._waiter = Waiter(self._ctx.bell)
        self._busy = threading.RLock()
        self._woken = False
        self._closing = False
        self._closed = False
        self._subscription: Subscription | None = None
        self._assigned_by_hand = False
        self._membership: Membership | None = None
        self._callbacks: dict[str, Callable[..., Any] | None] = {}
        self._polled: list[Track] = []  # tracks the last poll took from
        self._run: list[Message] | None = None  # what the loop is handing out
        self._run_track: Track | None = None
        self._current: Message | None = None  # handed out by the loop and not processed
        self._failure: StreamliteError | None = None  # met after messages were found: raised by the next call
        self._commit_at = 0.0
        self._look_at = 0.0
        self._topic_changes = -1
        if topics:
            self.subscribe(
                *topics, on_assign=options.on_assign, on_revoke=options.on_revoke, on_lost=options.on_lost
            )
        else:
            self._callbacks = {
                "on_assign": options.on_assign, "on_revoke": options.on_revoke, "on_lost": options.on_lost
            }  # fmt: skip

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
            self._check()
            if not topics:
                raise ConfigError("subscribe to at least one topic; unsubscribe() reads nothing")
            subscription = Subscription(self._engine, topics)
            names = subscription.names()
            self._leave_run()
            self._callbacks = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
            if self._assigned_by_hand:
                self._drop_all()
                self._assigned_by_hand = False
            self._subscription = subscription
            self._topic_changes = self._engine.registry.changes
            if self.group is None:
                self._take_all(subscription)
            else:
                if self._membership is None:
                    self._membership = Membership(self._engine, self.group, self._options)
                self._membership.join(names)
                self._rebalance()

    def unsubscribe(self) -> None:
        """Read nothing; a member of a group commits what it processed and leaves."""
        with self._busy:
            self._check()
            self._let_go()

    def _let_go(self) -> None:
        self._leave_run()
        membership, self._membership = self._membership, None
        try:
            if membership is not None:
                self._commit_processed(membership)
                self._call("on_revoke", list(self._fetcher.tracks))
        finally:
            if membership is not None:
                membership.leave()
            self._fetcher.clear()
            self._subscription = None
            self._assigned_by_hand = False

    def assign(self, partitions: Any) -> None:
        """Read these `TopicPartition`s, without sharing them with a group's members; replaces what was read."""
        with self._busy:
            self._check()
            wanted = [self._partition(tp) for tp in partitions]
            self._let_go()
            self._assigned_by_hand = True
            if self.group is not None:
                self._membership = Membership(self._engine, self.group, self._options, alone=True)
            for partition in wanted:
                self._add(partition, (None, None))

    def assignment(self) -> set[TopicPartition]:
        """The partitions that this consumer reads now."""
        with self._busy:
            self._check()
            return set(self._fetcher.tracks)

    def wait_assigned(self, timeout: float | None = None) -> set[TopicPartition]:
        """Wait until there are partitions to read, and return them; `TimeoutError`."""
        with self._busy:
            self._check()
            deadline = self._deadline(timeout)
            while not self._fetcher.tracks:
                self._tend()
                if self._fetcher.tracks:
                    break
                if self._stopped() or not self._sleep(deadline, lambda: self._membership_moved()):
                    raise TimeoutError(
                        f"no partition was assigned within {timeout} s: other members of group {self.group!r} may hold them "
                        "all"
                    )
            return set(self._fetcher.tracks)

    def _partition(self, tp: Any) -> Partition:
        """The partition that `tp` names; `UnknownTopicError`, `ConfigError`."""
        try:
            topic, number = tp
        except (TypeError, ValueError):
            raise ConfigError(f"a partition is named by a TopicPartition(topic, partition); found {tp!r:.80}") from None
        if not isinstance(topic, str) or isinstance(number, bool) or not isinstance(number, int):
            raise ConfigError(f"a partition is named by a TopicPartition(str, int); found {tp!r:.80}")
        partitions = self._engine.registry.get(topic).partitions
        if not 0 <= number < len(partitions):
            raise UnknownTopicError(
                f"topic {topic!r} has partitions 0 to {len(partitions) - 1}; there is no partition {number}"
            )
        return partitions[number]

    def _take_all(self, subscription: Subscription) -> None:
        """Without a group: read every partition of what is subscribed to."""
        wanted = {partition.tp: partition for partition in subscription.partitions()}
        gone = [tp for tp, track in self._fetcher.tracks.items() if wanted.get(tp) is not track.partition]
        for tp in gone:
            self._fetcher.drop(tp)
        new = [tp for tp in wanted if tp not in self._fetcher.tracks]
        for tp in new:
            self._add(wanted[tp], subscription.types(tp.topic))
        if gone:
            self._call("on_revoke", gone)
        if new:
            self._call("on_assign", new)

    def _add(self, partition: Partition, types: Any) -> Track:
        membership = self._membership
        if membership is None:
            track = Track(partition, self._start_offset(partition), types)
        else:
            found = membership.committed([partition])[0]
            track = Track(partition, 0, types)
            track.committed = found.offset if found is not None else None
            if found is not None:
                track.seek(cap_offset(partition, found.offset, found.epoch))
            else:
                track.seek(self._start_offset(partition))
            track.processed = track.noted = track.position
        self._fetcher.add(track)
        return track

    def _start_offset(self, partition: Partition) -> int:
        start = self._options.start
        if start == "earliest":
            return partition.start()
        if start == "latest":
            return partition.end()
        found = offset_for_time(partition, int(start.timestamp() * 1000))
        return partition.end() if found is None else found

    # -- the group ----------------------------------------------------------------------------------------------------

    def _membership_moved(self) -> bool:
        membership = self._membership
        return membership is not None and membership.changed()

    def _tend(self) -> None:
        """What every call that asks for messages does first: new topics, the group's news, commits that are due."""
        if self._topic_changes != self._engine.registry.changes:
            self._topics_changed()
        membership = self._membership
        if membership is None:
            return
        now = self._clock.monotonic()
        membership.stamp()
        if now >= self._look_at:
            self._look_at = now + _LOOK_FOR_MEMBERS_S
            membership.look_for_dead()
        if membership.changed():
            self._rebalance()
        if self._options.auto_commit and now >= self._commit_at:
            self._commit_at = now + self._options.auto_commit_interval_ms / 1000
            self._commit_processed(membership)

    def _topics_changed(self) -> None:
        self._topic_changes = self._engine.registry.changes
        subscription = self._subscription
        if subscription is None:
            for track in list(self._fetcher):
                self._engine.registry.current(_state(track))
            return
        try:
            names = subscription.names()
        except UnknownTopicError:
            self._topic_changes = -1  # found again by the next call, for as long as it is subscribed to
            raise
        if self.group is None:
            self._take_all(subscription)
        elif self._membership is not None:
            self._membership.join(names)

    def _rebalance(self) -> None:
        """Take up what the group's state says of this member."""
        membership = self._membership
        assert membership is not None
        for _ in range(100):
            news = membership.sync()
            if news.lost:
                self._lose(news.lost)
            if news.revoked:
                self._revoke(membership, news.revoked)
            if news.assigned:
                self._assign(membership, news.assigned)
            if not news.revoked:
                return

    def _lose(self, partitions: list[TopicPartition]) -> None:
        """Partitions that are another's already: nothing of them can be committed any more."""
        dropped = [tp for tp in partitions if self._fetcher.drop(tp) is not None]
        self._forget_run_of(dropped)
        if dropped:
            logger.warning("group %r: lost %s to another member", self.group, ", ".join(f"{t}/{p}" for t, p in dropped))
            self._call("on_lost", dropped)

    def _revoke(self, membership: Membership, partitions: list[TopicPartition]) -> None:
        """Partitions to give up: what is processed of them is committed first."""
        held = [tp for tp in partitions if tp in self._fetcher.tracks]
        try:
            if held:
                if self._options.auto_commit:
                    self._commit_processed(membership, held)
                self._call("on_revoke", held)
        finally:
            for tp in held:
                self._fetcher.drop(tp)
            self._forget_run_of(held)
            membership.released(partitions)

    def _assign(self, membership: Membership, assigned: Mapping[TopicPartition, int]) -> None:
        subscription = self._subscription
        assert subscription is not None
        known = {partition.tp: partition for partition in subscription.partitions()}
        new = [tp for tp in assigned if tp in known]
        first = []
        for tp in new:
            self._fetcher.drop(tp)
            track = self._add(known[tp], subscription.types(tp.topic))
            track.ownership = assigned[tp]
            if track.committed is None and self._options.start != "earliest":
                first.append(track)
        if first:
            # Where the group begins is settled once, so that nothing falls between two members.
            membership.commit({track.tp: self._noted(track, track.position) for track in first}, self._ownerships(first))
            for track in first:
                track.committed = track.position
                track.noted = track.position
        if new:
            self._call("on_assign", new)

    def _ownerships(self, tracks: Any) -> dict[TopicPartition, int]:
        return {track.tp: track.ownership for track in tracks}

    def _noted(self, track: Track, offset: int) -> Position:
        return Position(_state(track).incarnation, offset, self._ctx.epoch)

    def _call(self, name: str, partitions: list[TopicPartition]) -> None:
        callback = self._callbacks.get(name) or (self._callbacks.get("on_revoke") if name == "on_lost" else None)
        if callback is not None and partitions:
            callback(self, sorted(partitions))

    def _drop_all(self) -> None:
        self._fetcher.clear()
        self._leave_run()

    # -- messages -----------------------------------------------------------------------------------------------------

    def poll(self, timeout: float = 0.0, max_messages: int | None = None) -> list[Message]:
        """The next messages, at most `max_messages` (else `max_poll_messages`), in order per partition.

        Waits up to `timeout` seconds for the first of them; `[]` when none came, or after `wakeup`.
        """
        most = self._most(max_messages)
        found: list[Message] = []

        def take(track: Track, room: int) -> int:
            messages = track.messages(room)
            if messages:
                found.extend(messages)
                self._polled.append(track)
            return len(messages)

        self._poll(timeout, most, take, found)
        return found

    def poll_columns(self, timeout: float = 0.0, max_messages: int | None = None) -> list[Columns]:
        """As `poll`, but as columns of bytes, one `Columns` for each stretch: no messages are built, nothing decoded."""
        most = self._most(max_messages)
        found: list[Columns] = []

        def take(track: Track, room: int) -> int:
            taken = track.take(room)
            if taken is None:
                return 0
            batch, start, stop = taken
            found.append(batch.columns(track.tp.topic, track.tp.partition, start, stop))
            self._polled.append(track)
            return stop - start

        self._poll(timeout, most, take, found)
        return found

    def _most(self, asked: int | None) -> int:
        if asked is None:
            return self._options.max_poll_messages
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
            raise ConfigError(f"max_messages must be an int, at least 1; found {asked!r:.60}")
        return asked

    def _poll(self, timeout: float | None, most: int, take: Callable[[Track, int], int], found: list[Any]) -> None:
        with self._busy:
            self._check()
            self._leave_run()
            self._count_polled()
            self._collect(self._deadline(timeout), most, take, found)

    def _collect(
        self, deadline: float | None, most: int, take: Callable[[Track, int], int], found: list[Any]
    ) -> None:
        """Take messages, waiting for the first until `deadline`; `found` stays empty where none came."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        while not self._stopped():
            self._tend()
            if self._fetcher.look():
                try:
                    self._fetcher.serve(most, self._guarded(take))
                except StreamliteError as error:
                    if not found:
                        raise
                    self._failure = error
            if found:
                return
            if not self._sleep(deadline, self._has_news):
                return

    def _guarded(self, take: Callable[[Track, int], int]) -> Callable[[Track, int], int]:
        """`take`, with the out-of-range rule applied."""

        def guarded(track: Track, room: int) -> int:
            try:
                return take(track, room)
            except OffsetOutOfRangeError:
                rule = self._options.out_of_range
                if rule == "raise":
                    raise
                partition = track.partition
                track.seek(partition.start() if rule == "earliest" else partition.end())
                track.processed = track.noted = track.position
                return take(track, room)

        return guarded

    def _has_news(self) -> bool:
        return (
            self._fetcher.look()
            or self._woken
            or self._closing
            or self._membership_moved()
            or self._topic_changes != self._engine.registry.changes
        )

    def _sleep(self, deadline: float | None, ready: Callable[[], bool]) -> bool:
        """Wait for news until `deadline`; `False` when it has passed. What is processed is committed before."""
        membership = self._membership
        now = self._clock.monotonic()
        left = None if deadline is None else deadline - now
        if left is not None and left <= 0:
            self._ctx.hurry()
            return bool(self._fetcher.look())
        if membership is not None and self._options.auto_commit:
            self._commit_processed(membership)
        self._ctx.hurry()
        pause = self._pause()
        self._waiter.wait(ready, pause if left is None else left if pause is None else min(left, pause))
        return True

    def _pause(self) -> float | None:
        """How long to sleep at most before looking up: for what other processes do, and for members that hang."""
        if self._membership is not None:
            patience = self._options.max_poll_interval_ms / 10_000
            return _LOOK_FOR_MEMBERS_S if self._engine.shared else max(_LOOK_FOR_MEMBERS_S, patience)
        return LOOK_AGAIN_S if self._engine.shared else None

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

    def _count_polled(self) -> None:
        """What the last poll handed out is processed."""
        for track in self._polled:
            track.processed = track.position
        self._polled.clear()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Message]:
        return self.messages()

    def messages(self, timeout: float | None = None) -> Iterator[Message]:
        """Messages one by one from the first unprocessed one on; ends `timeout` seconds after the last, or never.

        `wakeup` and `close` end it too.
        """
        with self._busy:
            self._check()
            self._deadline(timeout)
            self._leave_run()
            polled, self._polled = self._polled, []
            for track in polled:
                track.rewind()
                self._fetcher.wake(track)
        return self._loop(timeout)

    def _loop(self, timeout: float | None) -> Iterator[Message]:
        try:
            while True:
                run = self._next_run(timeout)
                if not run:
                    return
                for message in run:
                    self._current = message
                    yield message
                    # Resumed: the message is processed.
                    if self._run is not run and not self._resumed(message, run):
                        break
                else:
                    self._end_run()
        finally:
            self._engine.ticker.forget(self)

    def _next_run(self, timeout: float | None) -> list[Message]:
        """The next messages of one partition for the loop; `[]` where it ends."""
        found: list[Message] = []

        def take(track: Track, room: int) -> int:
            messages = track.messages(room)
            if messages:
                found.extend(messages)
                self._run, self._run_track = found, track
                return room
            return 0

        with self._busy:
            if self._closed:
                return []
            self._leave_run()
            self._count_polled()
            self._collect(self._deadline(timeout), self._options.max_poll_messages, take, found)
            if self._membership is not None:
                self._engine.ticker.watch(self)
        return found

    def tick(self) -> None:
        """From the ticker's thread: have the loop look up from its run when it asks for the next message."""
        if self._run is not None:
            self._run = _TICK

    def _resumed(self, message: Message, run: list[Message]) -> bool:
        """The run was interrupted while `message`, now processed, was in the loop's hands; whether it goes on."""
        with self._busy:
            track, ticked = self._run_track, self._run is _TICK
            if track is not None and self._current is message:
                track.processed = message.offset + 1
                self._current = None
                if ticked and not (self._woken or self._closing):
                    self._run = run
                    self._tend()
                    if self._run is run:
                        return True
            self._leave_run()
            return False

    def _end_run(self) -> None:
        with self._busy:
            track = self._run_track
            if track is not None:
                track.processed = track.position
            self._run = self._run_track = self._current = None

    def _leave_run(self) -> None:
        """Take back what the loop was not handed or is not done with."""
        track, current = self._run_track, self._current
        self._run = self._run_track = self._current = None
        if track is not None:
            if current is not None:
                track.processed = current.offset
            track.rewind()
            self._fetcher.wake(track)

    def _forget_run_of(self, dropped: list[TopicPartition]) -> None:
        if self._run_track is not None and self._run_track.tp in dropped:
            self._run = self._run_track = self._current = None
        self._polled = [track for track in self._polled if track.tp not in dropped]

    # -- offsets ------------------------------------------------------------------------------------------------------

    def commit(self, message_or_offsets: Message | Mapping[TopicPartition, int] | None = None) -> None:
        """Commit, for the group: a message (its offset + 1), offsets, or `None`: all that was handed out.

        A committed offset is the next one to read. Raises `FencedError` where a partition is this member's no more, with
        nothing of the commit done; the next poll then joins again. `ConfigError` without a group.
        """
        with self._busy:
            self._check()
            membership = self._membership
            if self.group is None:
                raise ConfigError("a commit needs a group: open the consumer with group=...")
            if membership is None:
                raise ConfigError("a commit needs partitions: subscribe to topics first")
            if message_or_offsets is None:
                self._commit_handed_out(membership)
            else:
                self._commit_given(membership, message_or_offsets)

    def _commit_handed_out(self, membership: Membership) -> None:
        self._count_polled()
        current = self._current
        if current is not None and self._run_track is not None:
            self._run_track.processed = current.offset + 1
            self._current = None
        tracks = [track for track in self._fetcher if self._to_commit(track)]
        self._commit(membership, {track.tp: self._noted(track, track.processed) for track in tracks})

    def _commit_given(self, membership: Membership, given: Any) -> None:
        if isinstance(given, Message):
            offsets = {TopicPartition(given.topic, given.partition): given.offset + 1}
        elif isinstance(given, Mapping):
            offsets = dict(given)
        else:
            raise ConfigError(f"commit takes a Message, a dict of TopicPartition to offset, or None; found {given!r:.60}")
        noted = {}
        for tp, offset in offsets.items():
            partition = self._partition(tp)
            _check_offset(offset)
            if offset > partition.end():
                raise OffsetOutOfRangeError(
                    f"cannot commit offset {offset} of {tp[0]!r} partition {tp[1]}: its log ends at {partition.end()}"
                )
            noted[partition.tp] = Position(_incarnation(partition), offset, self._ctx.epoch)
        self._commit(membership, noted)

    def _commit(self, membership: Membership, noted: dict[TopicPartition, Position]) -> None:
        if not noted:
            return
        tracks = self._fetcher.tracks
        membership.commit(noted, {tp: tracks[tp].ownership for tp in noted if tp in tracks})
        for tp, position in noted.items():
            track = tracks.get(tp)
            if track is not None:
                track.committed = track.noted = position.offset

    def _to_commit(self, track: Track) -> bool:
        return track.processed != track.noted

    def _commit_processed(self, membership: Membership, only: list[TopicPartition] | None = None) -> None:
        """Commit automatically. Of partitions that turn out to be lost nothing is committed, and they are dropped."""
        if not self._options.auto_commit:
            return
        track, current = self._run_track, self._current
        if track is not None and current is not None:
            track.processed = current.offset
        wanted = [t for t in self._fetcher if self._to_commit(t) and (only is None or t.tp in only)]
        if not wanted:
            return
        try:
            self._commit(membership, {track.tp: self._noted(track, track.processed) for track in wanted})
        except FencedError as error:
            logger.warning("group %r: %s", self.group, error)
            lost = membership.lost_of(self._ownerships(wanted))
            self._lose(lost)
            left = [track for track in wanted if track.tp not in lost and track.tp in self._fetcher.tracks]
            self._commit(membership, {track.tp: self._noted(track, track.processed) for track in left})

    def committed(self, tp: TopicPartition) -> int | None:
        """The group's committed offset of a partition, `None` where there is none."""
        with self._busy:
            self._check()
            if self.group is None:
                raise ConfigError("committed offsets belong to a group: open the consumer with group=...")
            partition = self._partition(tp)
            found = self._engine.offsets.get(self.group, partition.tp, _incarnation(partition))
            return None if found is None else cap_offset(partition, found.offset, found.epoch)

    def _track(self, tp: Any) -> Track:
        track = self._fetcher.tracks.get(tp) if isinstance(tp, tuple) else None
        if track is None:
            self._partition(tp)
            raise ConfigError(f"{tp[0]!r} partition {tp[1]} is not assigned to this consumer; see assignment()")
        return track

    def position(self, tp: TopicPartition) -> int:
        """The offset of the next message that will be handed out."""
        with self._busy:
            self._check()
            return self._position(self._track(tp))

    def _position(self, track: Track) -> int:
        if track is self._run_track:
            return track.processed if self._current is None else self._current.offset + 1
        return track.position

    def epoch(self, tp: TopicPartition) -> int:
        """What to keep beside a position in a store of one's own: `seek` takes it back."""
        with self._busy:
            self._check()
            self._track(tp)
            return self._ctx.epoch

    def seek(self, tp: TopicPartition, offset: int, epoch: int | None = None) -> None:
        """Hand out `offset` next; with the `epoch` it was noted in, capped where a stop of the machine took the log back."""
        with self._busy:
            self._check()
            track = self._track(tp)
            _check_offset(offset)
            if epoch is not None:
                if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
                    raise ConfigError(f"epoch must be what epoch(tp) gave; found {epoch!r:.60}")
                offset = cap_offset(track.partition, offset, epoch)
            self._seek(track, offset)

    def _seek(self, track: Track, offset: int) -> None:
        if track is self._run_track:
            self._leave_run()
        track.seek(offset)
        track.processed = track.noted = offset
        self._polled = [other for other in self._polled if other is not track]
        self._fetcher.wake(track)

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
        self._check()
        return [self._track(tp) for tp in tps] if tps else list(self._fetcher)

    def offsets_for_times(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, int | None]:
        """For each partition the first offset with that timestamp (ms) or a later one; `None` when there is none."""
        with self._busy:
            self._check()
            found: dict[TopicPartition, int | None] = {}
            for tp, timestamp_ms in times.items():
                partition = self._partition(tp)
                if isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int):
                    raise ConfigError(f"a time is an int in ms since the epoch; found {timestamp_ms!r:.60}")
                found[partition.tp] = offset_for_time(partition, timestamp_ms)
            return found

    def lag(self) -> dict[TopicPartition, int]:
        """How many messages each assigned partition has from the position to its end."""
        with self._busy:
            self._check()
            self._ctx.hurry()
            return {track.tp: max(0, track.partition.end() - self._position(track)) for track in self._fetcher}

    def beginning_offsets(self, tps: Any) -> dict[TopicPartition, int]:
        """The first offset of each partition."""
        with self._busy:
            self._check()
            return {partition.tp: partition.start() for partition in map(self._partition, tps)}

    def end_offsets(self, tps: Any) -> dict[TopicPartition, int]:
        """The next offset of each partition."""
        with self._busy:
            self._check()
            self._ctx.hurry()
            return {partition.tp: partition.end() for partition in map(self._partition, tps)}

    # -- pause, wake up, close ----------------------------------------------------------------------------------------

    def pause(self, *tps: TopicPartition) -> None:
        """Hand out nothing of these partitions until `resume`; they stay assigned."""
        with self._busy:
            for track in self._tracks(tps) if tps else ():
                track.paused = True
                if track is self._run_track:
                    self._run = None  # the loop goes on elsewhere when it asks for the next message

    def resume(self, *tps: TopicPartition) -> None:
        """Hand out messages of these partitions again."""
        with self._busy:
            for track in self._tracks(tps) if tps else ():
                track.paused = False
                self._fetcher.wake(track)

    def paused(self) -> set[TopicPartition]:
        """The partitions that are paused."""
        with self._busy:
            self._check()
            return {track.tp for track in self._fetcher if track.paused}

    def wakeup(self) -> None:
        """From any thread: the current or next call that may block returns empty, the loop ends."""
        self._woken = True
        self._run = None
        self._waiter.ring()

    def close(self) -> None:
        """From any thread: commit what is processed (with auto_commit), leave the group at once. Idempotent."""
        if self._closed or self._ctx.forked:
            return
        self._closing = True
        self._waiter.ring()
        with self._busy:
            if self._closed:
                return
            self._closed = True
            self._polled.clear()
            try:
                self._let_go()
            finally:
                self._engine.forget(self)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check(self) -> None:
        self._ctx.check()
        if self._closed:
            raise ClosedError("the consumer is closed; open another with bus.consumer(...)")


def _state(track: Track) -> TopicState:
    state = track.partition.topic
    assert isinstance(state, TopicState)
    return state


def _incarnation(partition: Partition) -> int:
    return partition.topic.incarnation


def _check_offset(offset: Any) -> None:
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise ConfigError(f"an offset must be an int, at least 0; found {offset!r:.60}")
