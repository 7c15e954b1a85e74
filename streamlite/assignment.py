"""Which partitions a consumer reads, and committing for its group: subscription, rebalance, offsets.

Three ways to have partitions. Without a group: all of what is subscribed to. As a member: what the group's state says
(`group`), taken up whenever that moved. By `assign`: what the caller says, in a group's name or nobody's.

Committing automatically never raises `FencedError`: a partition that turns out to be another's is dropped, `on_lost` is
called, a warning logged, and the rest is committed. Everything here runs in the consumer's own thread, callbacks too,
and they are called with no lock of the bus held.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamlite.config import ConsumerOptions
from streamlite.engine import Engine
from streamlite.errors import (
    ConfigError,
    FencedError,
    OffsetOutOfRangeError,
    StreamliteError,
    TransactionError,
    UnknownTopicError,
)
from streamlite.fetcher import Fetcher, Track
from streamlite.group import GroupOffsets, Membership
from streamlite.handout import Handout
from streamlite.message import Message, TopicPartition
from streamlite.offsets import Position
from streamlite.partition import Partition
from streamlite.reader import cap_offset, offset_for_time
from streamlite.subscription import Subscription

if TYPE_CHECKING:
    from streamlite.consumer import Consumer

__all__ = ["LOOK_FOR_MEMBERS_S", "Assignment"]

logger = logging.getLogger("streamlite")

LOOK_FOR_MEMBERS_S: Final = 0.1
"""How often a member of a group looks whether another has died: a try of a lock, a microsecond a member."""

Callbacks = dict[str, Callable[..., Any] | None]


class Assignment:
    """The partitions of one consumer. `owner` is what callbacks get."""

    def __init__(self, engine: Engine, group: str | None, options: ConsumerOptions, owner: Consumer) -> None:
        self._engine = engine
        self._group = group
        self._options = options
        self._owner = owner
        self.fetcher = Fetcher(engine.ctx)
        self.handout = Handout(self.fetcher)
        self.membership: Membership | None = None
        self._subscription: Subscription | None = None
        self._callbacks: Callbacks = {}
        self._commit_at = 0.0
        self._look_at = 0.0
        self._topic_changes = -1
        self._rejoin = False
        self.transaction: object | None = None
        """The one that this consumer was given to, while its block is open."""
        self.breathe: Callable[[], object] = bool
        """Called between partitions that are taken over: there may be a thousand, and others may want to run."""
        self._broken: set[TopicPartition] = set()  # lost with something of them handed out and not committed
        self._rebalancing = False
        self._failed: list[Exception] = []  # what callbacks raised, until everything else is done

    # -- what to read -------------------------------------------------------------------------------------------------

    def subscribe(self, topics: tuple[Any, ...], callbacks: Callbacks) -> None:
        """Read these topics from now on."""
        subscription = Subscription(self._engine, topics)
        names = subscription.names()
        self.handout.take_back()
        if self._subscription is None:
            self.let_go()
        self._callbacks = callbacks
        self._subscription = subscription
        self._topic_changes = self._engine.registry.changes
        if self._group is None:
            self._take_all(subscription, later=False)
            return
        if self.membership is None:
            self.membership = Membership(self._engine, self._group, self._options)
        self.membership.join(names)
        self.rebalance()

    def assign(self, partitions: list[Partition]) -> None:
        """Read these partitions from now on."""
        self.let_go()
        if self._group is not None:
            self.membership = Membership(self._engine, self._group, self._options, alone=True)
        self._topic_changes = self._engine.registry.changes
        for partition, found in zip(partitions, self._committed(partitions), strict=True):
            self._add(partition, (None, None), found)

    def let_go(self) -> None:
        """Read nothing; a member commits what it processed and leaves."""
        membership = self.membership
        try:
            self.handout.give_up()
            self.handout.take_back()
            self.handout.polled.clear()
            if membership is not None:
                self._commit_processed(membership)
                self._call("on_revoke", list(self.fetcher.tracks))
        finally:
            try:
                if membership is not None:
                    membership.leave()
            finally:
                self.membership = None
                self._rejoin = False
                self._subscription = None
                self._break(self.fetcher.tracks)
                self.fetcher.clear()
        self._raise_failed()

    def abandon(self) -> None:
        """Leave the group, if it is a member's, without a word to the application."""
        membership, self.membership = self.membership, None
        self.fetcher.clear()
        if membership is not None:
            membership.leave()

    def partition(self, tp: Any) -> Partition:
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

    def track(self, tp: Any) -> Track:
        """The track of an assigned partition; `ConfigError` for one that is not assigned."""
        partition = self.partition(tp)
        track = self.fetcher.tracks.get(partition.tp)
        if track is None:
            raise ConfigError(f"{tp[0]!r} partition {tp[1]} is not assigned to this consumer; see assignment()")
        return track

    def _take_all(self, subscription: Subscription, *, later: bool) -> None:
        """Without a group: read every partition of what is subscribed to; `later`: what is new appeared meanwhile."""
        tracks = self.fetcher.tracks
        wanted = {partition.tp: partition for partition in subscription.partitions()}
        gone = [tp for tp, track in tracks.items() if wanted.get(tp) is not track.partition]
        self._drop(gone)
        for tp in [tp for tp in wanted if tp not in tracks]:
            self._add(wanted[tp], subscription.types(tp.topic), None, later=later)
        self._call("on_revoke", gone)
        self._tell_assigned()
        self._raise_failed()

    def _committed(self, partitions: Sequence[Partition]) -> Sequence[Position | None]:
        if self.membership is None:
            return [None] * len(partitions)
        return self.membership.committed(partitions)

    def _add(
        self, partition: Partition, types: Any, found: Position | None, *, later: bool = False, ownership: int = 0
    ) -> None:
        """Read a partition from where the group is, or where `start` says; one that came `later` from its beginning."""
        track = Track(partition, 0, types)
        track.ownership = ownership
        if found is not None:
            track.committed = found.offset
            offset = cap_offset(partition, found.offset, found.epoch)
        else:
            offset = partition.start() if later else self._start(partition)
        track.seek(offset)
        track.processed = track.noted = track.began = offset
        self.fetcher.add(track)

    def _start(self, partition: Partition) -> int:
        start = self._options.start
        if start == "earliest":
            return partition.start()
        if start == "latest":
            return partition.end()
        found = offset_for_time(partition, int(start.timestamp() * 1000))
        return partition.end() if found is None else found

    def _drop(self, partitions: Collection[TopicPartition]) -> list[TopicPartition]:
        self._break(partitions)
        dropped = [tp for tp in partitions if self.fetcher.drop(tp) is not None]
        self.handout.forget(dropped)
        return dropped

    def _break(self, partitions: Collection[TopicPartition]) -> None:
        """These go: note down those of which something was handed out and not committed."""
        for tp in partitions:
            track = self.fetcher.tracks.get(tp)
            if track is not None and self.handout.position(track) != track.noted:
                self._broken.add(tp)

    # -- news ---------------------------------------------------------------------------------------------------------

    def moved(self) -> bool:
        """Whether there is news of topics or of the group: two loads from memory."""
        membership = self.membership
        return self._topic_changes != self._engine.registry.changes or (membership is not None and membership.changed())

    def tend(self) -> None:
        """What every call that asks for messages does first: new topics, the group's news, commits that are due."""
        if self._topic_changes != self._engine.registry.changes:
            self._topics_changed()
        membership = self.membership
        if membership is None:
            return
        now = self._engine.ctx.clock.monotonic()
        membership.stamp()
        if self._rejoin:
            self._join_again()
        if now >= self._look_at:
            self._look_at = now + LOOK_FOR_MEMBERS_S
            membership.look_for_dead()
        if membership.changed():
            self.rebalance()
        if now >= self._commit_at:
            self._commit_at = now + self._options.auto_commit_interval_ms / 1000
            self._commit_processed(membership)

    def _topics_changed(self) -> None:
        changes = self._engine.registry.changes
        subscription = self._subscription
        if subscription is None:
            for track in self.fetcher:
                track.partition.end()  # says so where the topic is gone
        else:
            names = subscription.names()  # likewise; asked again by the next call, since nothing is noted down
            if self._group is None:
                self._take_all(subscription, later=True)
            elif self.membership is not None:
                self.membership.join(names)
        self._topic_changes = changes

    def rebalance(self) -> None:
        """Take up what the group's state says of this member.

        What a member has are its tracks, and nothing else is remembered of it: whatever is raised here, a lock that
        stayed taken or what a signal handler raises, the next call compares again and does what is left.
        """
        if self._rebalancing:
            return  # a callback asks for messages
        membership = self.membership
        assert membership is not None
        self._rebalancing = True
        try:
            while True:
                news = membership.sync({track.tp: track.ownership for track in self.fetcher})
                self._lose(news.lost)
                if news.revoked:
                    self._revoke(membership, news.revoked)
                if news.assigned:
                    self._take_over(membership, news.assigned)
                self._tell_assigned()
                if not news.revoked:
                    break
            membership.caught_up(news.generation)
        finally:
            self._rebalancing = False
        self._raise_failed()

    def _join_again(self) -> None:
        """After a refused commit: every partition goes on from its committed offset.

        Those that the rebalance brings have that already, or what `on_assign` sought.
        """
        held = list(self.fetcher)
        self.rebalance()
        self._broken.clear()
        self.handout.take_back()
        self.handout.polled.clear()
        tracks = [track for track in held if self.fetcher.tracks.get(track.tp) is track]
        for track, found in zip(tracks, self._committed([track.partition for track in tracks]), strict=True):
            self.fetcher.drop(track.tp)
            self._add(track.partition, (track.key, track.value), found, ownership=track.ownership)
            self.fetcher.tracks[track.tp].told = True
        self._rejoin = False

    def _lose(self, partitions: Collection[TopicPartition]) -> None:
        """Partitions that are another's already: nothing of them can be committed any more."""
        dropped = self._drop(partitions)
        if dropped:
            logger.warning("group %r: lost %s", self._group, ", ".join(f"{t}/{p}" for t, p in sorted(dropped)))
            self._call("on_lost", dropped)

    def _revoke(self, membership: Membership, partitions: list[TopicPartition]) -> None:
        """Partitions to give up: what is processed of them is committed first."""
        held = [tp for tp in partitions if tp in self.fetcher.tracks]
        try:
            self._commit_processed(membership, held)
            self._call("on_revoke", held)
        finally:
            self._drop(held)
            membership.released(partitions)

    def _take_over(self, membership: Membership, assigned: Mapping[TopicPartition, int]) -> None:
        subscription = self._subscription
        assert subscription is not None
        known = {partition.tp: partition for partition in subscription.partitions()}
        new = [tp for tp in assigned if tp in known]
        if self._options.start != "earliest":
            self._settle_start(membership, {known[tp].topic.name for tp in new}, list(known.values()))
        for tp, found in zip(new, self._committed([known[tp] for tp in new]), strict=True):
            self._drop([tp])
            self.breathe()
            # Where the group begins has been settled; what it knows nothing of came later.
            self._add(known[tp], subscription.types(tp.topic), found, later=True, ownership=assigned[tp])

    def _tell_assigned(self) -> None:
        """Tell the application of partitions that it has not been told of; again, where that was interrupted."""
        new = [track for track in self.fetcher if not track.told]
        self._call("on_assign", [track.tp for track in new])
        for track in new:
            track.told = True

    def _settle_start(self, membership: Membership, topics: set[str], partitions: list[Partition]) -> None:
        """Note down where the group begins in topics that it meets for the first time.

        All of their partitions at once, whoever owns them, so that nothing falls between two members.
        """
        for topic in topics:
            chosen = [partition for partition in partitions if partition.topic.name == topic]
            membership.begin(chosen, self._start)

    def _call(self, name: str, partitions: Collection[TopicPartition]) -> None:
        """Call the application; what it raises waits until partitions and group are in order again."""
        callback = self._callbacks.get(name)
        if callback is not None and partitions:
            try:
                callback(self._owner, sorted(partitions))
            except Exception as error:  # noqa: BLE001 - raised by _raise_failed
                self._failed.append(error)

    def _raise_failed(self) -> None:
        failed, self._failed = self._failed, []
        if failed:
            raise failed[0]

    # -- commits ------------------------------------------------------------------------------------------------------

    def commit(self, given: Any) -> None:
        """Commit a message, offsets, or, for `None`, all that was handed out."""
        if self.transaction is not None:
            raise TransactionError(
                "this consumer's offsets are committed by the transaction it was given to, when its block is left: use "
                "tx.commit_offsets for others, or commit after the block"
            )
        noted = self.to_commit(given)
        try:
            self._commit(self._member(), noted)
        except FencedError:
            self.join_again()
            raise

    def _member(self) -> Membership:
        if self._group is None:
            raise ConfigError("a commit needs a group: open the consumer with group=...")
        if self.membership is None:
            raise ConfigError("a commit needs partitions: subscribe to topics first")
        return self.membership

    def to_commit(self, given: Any) -> dict[TopicPartition, Position]:
        """What a commit of a message, of offsets, or, for `None`, of all that was handed out has to say."""
        self._member()
        if given is not None:
            return self._given(given)
        if self._rejoin:
            raise FencedError(
                f"group {self._group!r}: nothing was committed, since what was handed out before the last refusal is "
                "handed out again: poll first"
            )
        reached = [(track, self.handout.position(track)) for track in self.fetcher]
        return {track.tp: self._noted(track, offset) for track, offset in reached if offset != track.noted}

    def _given(self, given: Any) -> dict[TopicPartition, Position]:
        if isinstance(given, Message):
            offsets = {TopicPartition(given.topic, given.partition): given.offset + 1}
        elif isinstance(given, Mapping):
            offsets = dict(given)
        else:
            raise ConfigError(
                f"commit takes a Message, a dict of TopicPartition to offset, or None; found {given!r:.60}"
            )
        noted = {}
        for tp, offset in offsets.items():
            # The partition that it was read from, where it is one that is read: a topic of its name may be a new one.
            track = self.fetcher.tracks.get(tp) if isinstance(tp, tuple) else None
            partition = track.partition if track is not None else self.partition(tp)
            check_offset(offset)
            if offset > partition.end():
                raise OffsetOutOfRangeError(
                    f"cannot commit offset {offset} of {tp[0]!r} partition {tp[1]}: its log ends at {partition.end()}"
                )
            noted[partition.tp] = Position(partition.topic.incarnation, offset, self._engine.ctx.epoch)
        return noted

    def _noted(self, track: Track, offset: int) -> Position:
        return Position(track.partition.topic.incarnation, offset, self._engine.ctx.epoch)

    def _commit(self, membership: Membership, noted: dict[TopicPartition, Position]) -> None:
        if not noted:
            return
        membership.commit(noted, self._ownerships(noted))
        self.committed(noted)

    def _ownerships(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        tracks = self.fetcher.tracks
        return {tp: tracks[tp].ownership for tp in partitions if tp in tracks}

    def committed(self, noted: Mapping[TopicPartition, Position]) -> None:
        """The group knows this now: it counts as processed."""
        for tp, position in noted.items():
            track = self.fetcher.tracks.get(tp)
            if track is not None:
                self.handout.mark(track, position.offset)
                track.committed = position.offset
                track.noted = track.processed

    # -- transactions -------------------------------------------------------------------------------------------------

    def for_commit(self, noted: Mapping[TopicPartition, Position]) -> GroupOffsets:
        """The same as part of a transaction, which checks the ownerships when it is committed."""
        return GroupOffsets(self._member(), noted, self._ownerships(noted))

    def require_unbroken(self) -> None:
        """`FencedError` where a partition was lost of which something was handed out and not committed.

        What a transaction sends may come of that, and the new owner is handed it again.
        """
        if self._broken:
            shown = ", ".join(f"{tp.topic!r} partition {tp.partition}" for tp in sorted(self._broken)[:5])
            raise FencedError(
                f"group {self._group!r}: nothing was committed, since {shown} went to another member, or was given up, "
                "after messages of it had been handed out: poll again to go on with what is committed"
            )

    def join_again(self) -> None:
        """With the next poll, or message of a loop, every partition goes on from its committed offset."""
        self._rejoin = True
        self.handout.interrupt()

    def go_back(self) -> None:
        """Every partition goes on from its committed offset, or, where there is none, from where it began."""
        if self.membership is None or self._rejoin:
            return
        tracks = list(self.fetcher)
        self._rejoin = True  # until it is done: with the next poll, where it is not
        try:
            found = self._committed([track.partition for track in tracks])
        except StreamliteError as error:  # the transaction's own failure is what its user is told
            logger.warning("group %r goes back with the next poll: %s", self._group, error)
            return
        self.handout.take_back()
        self.handout.polled.clear()
        for track, position in zip(tracks, found, strict=True):
            offset = track.began
            if position is not None:
                offset = cap_offset(track.partition, position.offset, position.epoch)
            track.seek(offset)
            track.processed = track.noted = offset
            self.fetcher.wake(track)
        self._broken.clear()
        self._rejoin = False

    def commit_processed(self) -> None:
        """Commit automatically, where that is wanted."""
        if self.membership is not None:
            self._commit_processed(self.membership)

    def _commit_processed(self, membership: Membership, only: Collection[TopicPartition] | None = None) -> None:
        if not self._options.auto_commit or self._rejoin:
            return
        self.handout.note()
        wanted = [t for t in self.fetcher if t.processed != t.noted and (only is None or t.tp in only)]
        if not wanted:
            return
        try:
            self._commit(membership, {track.tp: self._noted(track, track.processed) for track in wanted})
        except FencedError as error:
            logger.warning("%s", error)
            lost = membership.lost_of({track.tp: track.ownership for track in wanted})
            self._lose(lost)
            kept = {track.tp: self._noted(track, track.processed) for track in wanted if track.tp not in lost}
            self._commit(membership, kept)


def check_offset(offset: Any) -> None:
    """`ConfigError` for what is no offset."""
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise ConfigError(f"an offset must be an int, at least 0; found {offset!r:.60}")
