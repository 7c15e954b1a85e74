"""The state of a consumer group, and what each event makes of it: one table, one pure function.

Whoever holds the group's lock reads the state, calls `apply(state, event)`, and stores what comes back. Nothing here
looks at a file, a lock or a clock: that a member died is an event, and the time comes with it. Rules:

* A partition has one owner, and its ownership has a generation. Only the owner may commit, and only under that
  generation (`may_commit`): so a commit is refused when this ownership ended, not when somebody joined.
* An ownership changes hands for a reason, and then its generation is the group's new one, hence above all earlier
  ones, also those of a topic that was deleted and created anew. Whoever keeps a partition keeps its generation.
* Nobody loses a partition while it may be working on it. One that the plan takes from a live member stays with it,
  marked with its next owner (`to_release`), until that member says `Released`; then it changes hands. All assignors
  are cooperative in this way: what does not move is read on without a pause.
* Whoever is gone (left, died, was expired, was replaced) has nothing to acknowledge: its partitions move at once. A
  dead static member is not gone until its timeout has passed: it keeps its partitions, but for those it was to
  release, and is given no others. Whoever joins under its name takes over at once, fencing it if it lives after all.
* An acknowledgement of what is not asked for (any more) changes nothing: after each one a member looks again at what
  it owns. So does every event of a member that is not in the group: it comes late.
* The group's generation rises by one with each event that changes anything. An event that changes nothing returns the
  very state it was given: there is nothing to store and nobody to wake.

The plan is `assignor.assign`, made anew whenever members, subscriptions or partitions change, from who owns what at
that moment. An acknowledgement carries out the plan there is. Targets are live members, always: when one goes, so does
the plan.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec

from streamlite.assignor import MemberSubscription, assign
from streamlite.config import PARTITIONS_MAX, check_name
from streamlite.errors import ConfigError
from streamlite.message import TopicPartition

__all__ = [
    "NOBODY",
    "BadGroupState",
    "Died",
    "Event",
    "Expired",
    "GroupState",
    "Join",
    "Leave",
    "Member",
    "Ownership",
    "PartitionsChanged",
    "Phase",
    "Released",
    "Subscribe",
    "TimePassed",
    "apply",
    "decode",
    "encode",
    "may_commit",
    "next_deadline_ms",
    "owned_by",
    "to_release",
]

NOBODY: Final = ""
"""The target of a partition that its owner is to release, and that no member wants any more."""


class BadGroupState(ValueError):
    """Bytes that are not a group's state; the caller knows where they were and says what it means there."""


class Phase(enum.Enum):
    """Where a group stands in its life; what `TABLE` is written in terms of."""

    EMPTY = "empty"
    """No members."""
    STABLE = "stable"
    """Everybody has what the plan gives them."""
    REBALANCING = "rebalancing"
    """Some member has yet to release a partition."""


class Member(msgspec.Struct, frozen=True):
    """A member: its topics, its process, and what makes it a static one."""

    topics: tuple[str, ...]
    pid: int
    name: str | None = None
    member_timeout_ms: int = 0
    """How long a dead static member keeps its partitions."""
    deadline_ms: int | None = None
    """Set when it died: until then it keeps them. On the clock of whoever sends `Died` and `TimePassed`."""

    @property
    def dead(self) -> bool:
        """Whether it is a static member that died and may come back."""
        return self.deadline_ms is not None


class Ownership(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who owns a partition, since which generation, and who is to have it once it is released (`None`: it stays)."""

    member: str
    generation: int
    target: str | None = None


Count = Annotated[int, msgspec.Meta(ge=0, le=PARTITIONS_MAX)]  # so that no bytes make anybody build more than that
Generation = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]  # it rises and is stored in 64 bits


class GroupState(msgspec.Struct, frozen=True):
    """A group at one generation. Values never change: `apply` makes a new one, which shares what is the same."""

    generation: Generation = 0
    assignor: str = "sticky"
    members: dict[str, Member] = {}
    """By member id."""
    partitions: dict[str, Count] = {}
    """How many each topic has, as far as the group was told."""
    owned: dict[TopicPartition, Ownership] = {}
    """Of the partitions that have an owner."""

    @property
    def phase(self) -> Phase:
        """Follows from the rest, so that the two cannot disagree."""
        if not self.members:
            return Phase.EMPTY
        if any(ownership.target is not None for ownership in self.owned.values()):
            return Phase.REBALANCING
        return Phase.STABLE

    def __repr__(self) -> str:
        pending = sum(ownership.target is not None for ownership in self.owned.values())
        return (
            f"<GroupState {self.phase.value}, generation {self.generation}, {self.assignor}: "
            f"{len(self.members)} members own {len(self.owned)} partitions, {pending} to release>"
        )


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """A process wants to be `member`, an id that no other ever had.

    With a `name` it is a static member and replaces the one of that name. `partitions` are the counts of topics that
    the group may not know yet. Joining twice under the same id is subscribing anew.
    """

    member: str
    topics: Iterable[str]
    pid: int
    assignor: str = "sticky"
    name: str | None = None
    member_timeout_ms: int = 45_000
    partitions: Mapping[str, int] = {}


class Subscribe(msgspec.Struct, frozen=True, kw_only=True):
    """A live member's topics are these from now on; `partitions` as for `Join`."""

    member: str
    topics: Iterable[str]
    partitions: Mapping[str, int] = {}


class Leave(msgspec.Struct, frozen=True):
    """A member closed, or unsubscribed from everything: it is gone, static or not."""

    member: str


class Died(msgspec.Struct, frozen=True):
    """A member's process is proved dead. `now_ms` is on any clock, the same for all events of a group."""

    member: str
    now_ms: int


class Expired(msgspec.Struct, frozen=True):
    """A member did not ask for messages for `max_poll_interval_ms`: it is gone, static or not."""

    member: str


class TimePassed(msgspec.Struct, frozen=True):
    """It is `now_ms`: dead static members whose time is over are gone. See `next_deadline_ms`."""

    now_ms: int


class ClockBegan(msgspec.Struct, frozen=True):
    """The machine was started anew, and its clock with it: it is `now_ms`. Who is dead has its whole time again."""

    now_ms: int


class PartitionsChanged(msgspec.Struct, frozen=True):
    """These topics exist, with these counts. A topic created anew takes two events: one without it, one with it."""

    partitions: Mapping[str, int]


class Released(msgspec.Struct, frozen=True):
    """A live member works on these partitions no longer, and has committed what it will."""

    member: str
    partitions: Iterable[TopicPartition]


Event = Join | Subscribe | Leave | Died | Expired | TimePassed | ClockBegan | PartitionsChanged | Released


def apply(state: GroupState, event: Event) -> GroupState:
    """The state after `event`; `state` itself when nothing changes. `ConfigError` for a join with another assignor."""
    return TABLE[state.phase][type(event)](state, event)


def may_commit(state: GroupState, member: str, partition: TopicPartition, generation: int) -> bool:
    """Whether `member` owns `partition`, and has since `generation` without a break. Also while it is to release it."""
    ownership = state.owned.get(partition)
    return ownership is not None and ownership.member == member and ownership.generation == generation


def owned_by(state: GroupState, member: str) -> dict[TopicPartition, int]:
    """What `member` owns, and since which generation; includes what it is to release."""
    return {one: found.generation for one, found in state.owned.items() if found.member == member}


def to_release(state: GroupState, member: str) -> set[TopicPartition]:
    """What `member` owns and is to stop working on, commit and acknowledge with `Released`."""
    return {one for one, found in state.owned.items() if found.member == member and found.target is not None}


def next_deadline_ms(state: GroupState) -> int | None:
    """When the next `TimePassed` will change something; `None`: no member is missing."""
    return min(
        (member.deadline_ms for member in state.members.values() if member.deadline_ms is not None), default=None
    )


def encode(state: GroupState) -> bytes:
    """The state as bytes, for the log."""
    return _encoder.encode(state)


def decode(data: bytes) -> GroupState:
    """The state that `encode` made `data` of; `BadGroupState` for anything else."""
    try:
        state = _decoder.decode(data)
        for member in state.members:
            check_name(member, "member")  # it becomes a file's
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadGroupState(f"not the state of a group: {error}") from error
    for one, ownership in state.owned.items():
        if one.partition < 0 or {ownership.member, ownership.target} - state.members.keys() - {NOBODY, None}:
            raise BadGroupState(f"not the state of a group: {one} is owned by {ownership}")
    return state


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(GroupState)


# --- the events, one function each


def _join(state: GroupState, event: Join) -> GroupState:
    if state.members and event.assignor != state.assignor:
        raise ConfigError(
            f"the group's members use assignor {state.assignor!r}; found {event.assignor!r}: ask for the same one, or "
            "close the other members first"
        )
    replaced = _replaced(state, event)
    members = {one: member for one, member in state.members.items() if one not in replaced}
    members[event.member] = Member(_topics(event.topics), event.pid, event.name, event.member_timeout_ms)
    heirs = dict.fromkeys(replaced, event.member)
    partitions = {**state.partitions, **event.partitions}
    return _planned(state, members, partitions, event.assignor, heirs)


def _replaced(state: GroupState, event: Join) -> set[str]:
    """The members whose place a join takes: the one of its name, alive or dead, and a dead one of its very id."""
    before = state.members.get(event.member)
    if before is not None and before.name == event.name and not before.dead:
        return set()
    same = {one for one, member in state.members.items() if event.name is not None and member.name == event.name}
    return same if before is None else same | {event.member}


def _subscribe(state: GroupState, event: Subscribe) -> GroupState:
    member = state.members.get(event.member)
    if member is None or member.dead:
        return state
    members = {**state.members, event.member: msgspec.structs.replace(member, topics=_topics(event.topics))}
    return _planned(state, members, {**state.partitions, **event.partitions})


def _gone(state: GroupState, event: Leave | Expired | Died) -> GroupState:
    return _without(state, {event.member})


def _died(state: GroupState, event: Died) -> GroupState:
    member = state.members.get(event.member)
    if member is None:
        return state
    if member.name is None or member.member_timeout_ms <= 0:
        return _gone(state, event)
    deadline = event.now_ms + member.member_timeout_ms
    if member.deadline_ms is not None:  # reported again: later by the same clock, sooner by one that began anew
        deadline = min(deadline, member.deadline_ms)
    members = {**state.members, event.member: msgspec.structs.replace(member, deadline_ms=deadline)}
    if any(ownership.target == event.member for ownership in state.owned.values()):
        return _planned(state, members, state.partitions)  # it can be nobody's target any more
    return _changed(state, members=members, owned=_handed_over(state, event.member, to_release(state, event.member)))


def _time_passed(state: GroupState, event: TimePassed) -> GroupState:
    over = {
        one
        for one, member in state.members.items()
        if member.deadline_ms is not None and member.deadline_ms <= event.now_ms
    }
    return _without(state, over)


def _clock_began(state: GroupState, event: ClockBegan) -> GroupState:
    members = {
        one: msgspec.structs.replace(member, deadline_ms=event.now_ms + member.member_timeout_ms)
        if member.deadline_ms is not None
        else member
        for one, member in state.members.items()
    }
    return state if members == state.members else _changed(state, members=members)


def _partitions_changed(state: GroupState, event: PartitionsChanged) -> GroupState:
    return _planned(state, state.members, dict(event.partitions))


def _released(state: GroupState, event: Released) -> GroupState:
    released = to_release(state, event.member).intersection(event.partitions)
    return _changed(state, owned=_handed_over(state, event.member, released)) if released else state


def _nothing(state: GroupState, event: Event) -> GroupState:
    return state


_Handler = Callable[[GroupState, Any], GroupState]

_ALWAYS: Final[dict[type, _Handler]] = {Join: _join, PartitionsChanged: _partitions_changed}
_WITH_MEMBERS: Final[dict[type, _Handler]] = _ALWAYS | {
    Subscribe: _subscribe,
    Leave: _gone,
    Died: _died,
    Expired: _gone,
    TimePassed: _time_passed,
    ClockBegan: _clock_began,
}
_LATE: Final[dict[type, _Handler]] = dict.fromkeys(
    (Subscribe, Leave, Died, Expired, TimePassed, ClockBegan, Released), _nothing
)

TABLE: Final[dict[Phase, dict[type, _Handler]]] = {
    Phase.EMPTY: _LATE | _ALWAYS,
    Phase.STABLE: _LATE | _WITH_MEMBERS,
    Phase.REBALANCING: _WITH_MEMBERS | {Released: _released},
}
"""What each event does in each phase. Only `Released` needs one that is rebalancing; an empty group only has topics."""


# --- what they have in common


def _topics(topics: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(topics)))


def _without(state: GroupState, gone: set[str]) -> GroupState:
    members = {one: member for one, member in state.members.items() if one not in gone}
    return state if len(members) == len(state.members) else _planned(state, members, state.partitions)


def _handed_over(state: GroupState, member: str, partitions: set[TopicPartition]) -> dict[TopicPartition, Ownership]:
    """Ownership when `member` no longer works on `partitions`, each of which has a target."""
    owned = dict(state.owned)
    for partition in partitions:
        target = owned.pop(partition).target
        assert target is not None, (member, partition)
        if target != NOBODY:
            owned[partition] = Ownership(target, state.generation + 1)
    return owned


def _planned(
    state: GroupState,
    members: dict[str, Member],
    partitions: dict[str, int],
    assignor: str | None = None,
    heirs: Mapping[str, str] = {},
) -> GroupState:
    """The state with these members and partitions, and a new plan. `heirs`: who stands in for each one replaced.

    The same members and partitions get the plan there is, as far as it was carried out: a new one could send what is
    still to be released to somebody else, for nothing.
    """
    assignor = assignor or state.assignor
    if not heirs and (members, partitions, assignor) == (state.members, state.partitions, state.assignor):
        return state
    live = {one: MemberSubscription(member.topics, member.name) for one, member in members.items() if not member.dead}
    existing = {
        one: ownership for one, ownership in state.owned.items() if one.partition < partitions.get(one.topic, 0)
    }
    owned: dict[TopicPartition, Ownership] = {}
    current: dict[str, list[TopicPartition]] = {}
    for one, ownership in existing.items():
        if ownership.member in members and ownership.member not in live and ownership.target is None:
            owned[one] = ownership  # a dead static member keeps it
        else:
            current.setdefault(heirs.get(ownership.member, ownership.member), []).append(one)
    plan = assign(assignor, live, partitions, current, owned.keys())
    working = live.keys() - heirs.keys()
    for member, ones in plan.items():
        for one in ones:
            owned[one] = _next_ownership(existing.get(one), member, working, state.generation + 1)
    for one, ownership in existing.items():
        if one not in owned and ownership.member in working:  # nobody wants it, and its owner may be at it still
            owned[one] = Ownership(ownership.member, ownership.generation, NOBODY)
    return _changed(state, members=members, partitions=partitions, assignor=assignor, owned=owned)


def _next_ownership(before: Ownership | None, member: str, working: Iterable[str], generation: int) -> Ownership:
    """The ownership of a partition that the plan gives to `member`; `working`: who may be at work on what it owns."""
    if before is None or before.member not in working:
        return Ownership(member, generation)
    if before.member == member:
        return Ownership(member, before.generation)
    return Ownership(before.member, before.generation, member)


def _changed(state: GroupState, **changes: Any) -> GroupState:
    """`state` with `changes`, one generation later; `state` itself when they are none."""
    if all(getattr(state, name) == value for name, value in changes.items()):
        return state
    return msgspec.structs.replace(state, generation=state.generation + 1, **changes)
