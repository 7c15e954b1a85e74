"""Long random lives of groups with different subscriptions: what the exhaustive unit tests are too small to reach."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamlite.assignor import ASSIGNORS
from streamlite.group_state import (
    ClockBegan,
    Died,
    Event,
    Expired,
    GroupState,
    Join,
    Leave,
    PartitionsChanged,
    Phase,
    Released,
    Subscribe,
    TimePassed,
    apply,
    decode,
    encode,
    may_commit,
    to_release,
)
from streamlite.message import TopicPartition

IDS = [f"m{number}" for number in range(6)]
TOPICS = ["t", "u", "v"]

ids = st.sampled_from(IDS)
topics = st.lists(st.sampled_from(TOPICS), unique=True).map(tuple)
counts = st.dictionaries(st.sampled_from(TOPICS), st.integers(0, 7))
times = st.integers(0, 100)
partitions = st.lists(st.builds(TopicPartition, st.sampled_from(TOPICS), st.integers(0, 7)), max_size=5)
events = st.one_of(
    st.builds(
        Join,
        member=ids,
        topics=topics,
        pid=st.just(1),
        name=st.sampled_from([None, None, "one", "two"]),
        member_timeout_ms=st.sampled_from([0, 30]),
        partitions=counts,
    ),
    st.builds(Subscribe, member=ids, topics=topics, partitions=counts),
    st.builds(Leave, ids),
    st.builds(Expired, ids),
    st.builds(Died, ids, times),
    st.builds(TimePassed, times),
    st.builds(ClockBegan, times),
    st.builds(PartitionsChanged, counts),
    st.builds(Released, ids, partitions),
    st.builds(Released, ids, st.just([TopicPartition(topic, number) for topic in TOPICS for number in range(8)])),
)


def with_assignor(event: Event, assignor: str) -> Event:
    if not isinstance(event, Join):
        return event
    return Join(**{name: getattr(event, name) for name in event.__struct_fields__} | {"assignor": assignor})


def check_step(before: GroupState, event: Event, found: GroupState) -> None:
    if found is before:
        return
    assert found.generation == before.generation + 1
    for one, ownership in before.owned.items():
        now = found.owned.get(one)
        owner = ownership.member
        if now is not None and now.generation != ownership.generation:
            assert now.generation == found.generation
            assert not may_commit(found, owner, one, ownership.generation)
        if one.partition >= found.partitions.get(one.topic, 0):
            assert now is None
            continue
        acknowledged = isinstance(event, Released) and event.member == owner and one in event.partitions
        rejoined = isinstance(event, Join) and event.member == owner  # under another name: a new member
        alive = owner in found.members and not found.members[owner].dead and not before.members[owner].dead
        if alive and not acknowledged and not rejoined:
            assert may_commit(found, owner, one, ownership.generation)


def check_state(state: GroupState) -> None:
    assert decode(encode(state)) == state
    names = [member.name for member in state.members.values() if member.name is not None]
    assert len(names) == len(set(names))
    live = {one: member for one, member in state.members.items() if not member.dead}
    for one, ownership in state.owned.items():
        assert ownership.member in state.members
        assert ownership.target is None or ownership.member in live
        assert not ownership.target or one.topic in live[ownership.target].topics
    for member in live.values():
        for topic in member.topics:
            for number in range(state.partitions.get(topic, 0)):
                assert TopicPartition(topic, number) in state.owned


@given(sequence=st.lists(events, max_size=40), assignor=st.sampled_from(ASSIGNORS))
def test_no_life_of_a_group_breaks_a_rule(sequence: list[Event], assignor: str) -> None:
    state = GroupState()
    for event in sequence:
        found = apply(state, with_assignor(event, assignor))
        check_step(state, event, found)
        check_state(found)
        state = found
    for member in state.members:
        state = apply(state, Released(member, to_release(state, member)))
    assert state.phase is not Phase.REBALANCING
    check_state(state)
