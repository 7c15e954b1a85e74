"""What holds for every assignment: complete, to subscribers only, as even as can be, and moving as little as can be."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from streamlite.assignor import ASSIGNORS, Assignment, MemberSubscription, assign
from streamlite.message import TopicPartition

Members = dict[str, MemberSubscription]
Current = dict[str, set[TopicPartition]]
Case = tuple[Members, dict[str, int], Current]


@st.composite
def cases(draw: st.DrawFn, *, equal: bool = False, partitions_max: int = 30, members_max: int = 6) -> Case:
    """A group: its members, the topics, and any current ownership, also by members that are gone."""
    count = draw(st.integers(1, 4))
    partitions = {f"t{number}": draw(st.integers(0, max(1, partitions_max // count))) for number in range(count)}
    ids = [f"m{number}" for number in range(draw(st.integers(1, members_max)))]
    members: Members = {}
    for id_ in ids:
        topics = sorted(partitions) if equal else draw(st.lists(st.sampled_from([*partitions, "absent"]), unique=True))
        members[id_] = MemberSubscription(topics, draw(st.sampled_from([None, None, f"name-{id_}"])))
    owners = st.sampled_from([*ids, "gone", None])
    current: Current = {}
    for topic, number in partitions.items():
        for partition in range(number + 1):  # one beyond the end too: a topic created anew may be smaller
            owner = draw(owners)
            if owner is not None:
                current.setdefault(owner, set()).add(TopicPartition(topic, partition))
    return members, partitions, current


def subscribed(members: Members, partitions: dict[str, int]) -> dict[TopicPartition, list[str]]:
    """The subscribers of every partition that has any."""
    found: dict[TopicPartition, list[str]] = {}
    for topic, count in partitions.items():
        takers = [id_ for id_, member in members.items() if topic in member.topics]
        if takers:
            found |= {TopicPartition(topic, number): takers for number in range(count)}
    return found


def kept(plan: Assignment, current: Current) -> int:
    return sum(len(current.get(id_, set()).intersection(ones)) for id_, ones in plan.items())


@given(case=cases(), assignor=st.sampled_from(ASSIGNORS))
def test_every_subscribed_partition_goes_to_one_subscriber(case: Case, assignor: str) -> None:
    members, partitions, current = case
    plan = assign(assignor, members, partitions, current)
    takers = subscribed(members, partitions)
    assert set(plan) == set(members)
    assert Counter(one for ones in plan.values() for one in ones) == Counter(dict.fromkeys(takers, 1))
    assert all(id_ in takers[one] for id_, ones in plan.items() for one in ones)


@given(case=cases(equal=True), assignor=st.sampled_from(["sticky", "roundrobin"]))
def test_loads_differ_by_one_at_most_when_subscriptions_are_equal(case: Case, assignor: str) -> None:
    loads = [len(ones) for ones in assign(assignor, *case).values()]
    assert max(loads) - min(loads) <= 1


@given(case=cases(equal=True))
def test_range_cuts_each_topic_evenly(case: Case) -> None:
    members, partitions, current = case
    plan = assign("range", members, partitions, current)
    for topic in partitions:
        loads = [sum(one.topic == topic for one in ones) for ones in plan.values()]
        assert max(loads) - min(loads) <= 1
    for ones in plan.values():
        for topic in partitions:
            numbers = [one.partition for one in ones if one.topic == topic]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True


@given(case=cases(equal=True))
def test_no_even_plan_keeps_more_than_the_sticky_one(case: Case) -> None:
    """How much can be kept: each member up to the greater share, but only so many members the greater one."""
    members, partitions, current = case
    plan = assign("sticky", members, partitions, current)
    share, extra = divmod(sum(partitions.values()), len(members))
    valid = subscribed(members, partitions)
    holdings = [len(current.get(id_, set()).intersection(valid)) for id_ in members]
    richer = sum(holding > share for holding in holdings)
    assert kept(plan, current) == sum(min(holding, share) for holding in holdings) + min(richer, extra)


@given(case=cases(equal=True), seed=st.integers(0, 5))
def test_who_joins_takes_its_share_and_nothing_else_moves(case: Case, seed: int) -> None:
    members, partitions, _ = case
    before = assign("sticky", members, partitions, {})
    joined = members | {f"n{seed}": MemberSubscription(sorted(partitions))}
    after = assign("sticky", joined, partitions, before)
    for id_ in members:
        assert set(after[id_]) <= set(before[id_])


@given(case=cases(equal=True))
def test_who_leaves_leaves_the_others_what_they_have(case: Case) -> None:
    members, partitions, _ = case
    before = assign("sticky", members, partitions, {})
    gone, *stay = members
    after = assign("sticky", {id_: members[id_] for id_ in stay}, partitions, before)
    for id_ in stay:
        assert set(before[id_]) <= set(after[id_])
        assert after[id_][: len(before[id_])] == sorted(before[id_])
    assert gone not in after


@given(case=cases())
def test_a_sticky_plan_stays_as_it_is(case: Case) -> None:
    members, partitions, current = case
    plan = assign("sticky", members, partitions, current)
    again = assign("sticky", members, partitions, plan)
    assert {id_: set(ones) for id_, ones in again.items()} == {id_: set(ones) for id_, ones in plan.items()}


@given(case=cases(partitions_max=6, members_max=3))
def test_no_plan_of_all_is_more_even_than_the_sticky_one(case: Case) -> None:
    members, partitions, current = case
    plan = assign("sticky", members, partitions, current)
    takers = subscribed(members, partitions)
    least = min(sum(load * load for load in Counter(choice).values()) for choice in itertools.product(*takers.values()))
    assert sum(len(ones) ** 2 for ones in plan.values()) == least


@given(case=cases(), assignor=st.sampled_from(ASSIGNORS), data=st.data())
def test_kept_partitions_are_left_out(case: Case, assignor: str, data: st.DataObject) -> None:
    members, partitions, current = case
    takers = subscribed(members, partitions)
    left_out = data.draw(st.sets(st.sampled_from(sorted(takers)))) if takers else set()
    plan = assign(assignor, members, partitions, current, left_out)
    assert {one for ones in plan.values() for one in ones} == set(takers) - left_out
