"""The three assignors on Kafka's own documented examples, on static members, and at ten thousand partitions."""

from __future__ import annotations

import sys

import pytest

from streamlite.assignor import ASSIGNORS, Assignment, MemberSubscription, assign
from streamlite.errors import ConfigError
from streamlite.message import TopicPartition

Plan = dict[str, str]


def shown(plan: Assignment) -> Plan:
    return {member: " ".join(f"{one.topic}p{one.partition}" for one in ones) for member, ones in plan.items()}


def subscribed(**topics: str) -> dict[str, MemberSubscription]:
    return {member: MemberSubscription(names.split()) for member, names in topics.items()}


FOUR_TOPICS = {"t0": 2, "t1": 2, "t2": 2, "t3": 2}
STAIRS = {"t0": 1, "t1": 2, "t2": 3}
ON_STAIRS = subscribed(C0="t0", C1="t0 t1", C2="t0 t1 t2")


# --- what Kafka documents


def test_range_as_in_its_javadoc() -> None:
    plan = assign("range", subscribed(C0="t0 t1", C1="t0 t1"), {"t0": 3, "t1": 3}, {})
    assert shown(plan) == {"C0": "t0p0 t0p1 t1p0 t1p1", "C1": "t0p2 t1p2"}


def test_roundrobin_as_in_its_javadoc() -> None:
    plan = assign("roundrobin", subscribed(C0="t0 t1", C1="t0 t1"), {"t0": 3, "t1": 3}, {})
    assert shown(plan) == {"C0": "t0p0 t0p2 t1p1", "C1": "t0p1 t1p0 t1p2"}


def test_roundrobin_with_different_subscriptions_as_in_its_javadoc() -> None:
    plan = assign("roundrobin", ON_STAIRS, STAIRS, {})
    assert shown(plan) == {"C0": "t0p0", "C1": "t1p0", "C2": "t1p1 t2p0 t2p1 t2p2"}


def test_sticky_as_in_the_first_example_of_its_javadoc() -> None:
    members = subscribed(C0="t0 t1 t2 t3", C1="t0 t1 t2 t3", C2="t0 t1 t2 t3")
    plans = {name: assign(name, members, FOUR_TOPICS, {}) for name in ("sticky", "roundrobin")}
    assert shown(plans["sticky"]) == {"C0": "t0p0 t1p1 t3p0", "C1": "t0p1 t2p0 t3p1", "C2": "t1p0 t2p1"}
    assert plans["roundrobin"] == plans["sticky"]
    del members["C1"]
    after = {name: assign(name, members, FOUR_TOPICS, plan) for name, plan in plans.items()}
    assert shown(after["roundrobin"]) == {"C0": "t0p0 t1p0 t2p0 t3p0", "C2": "t0p1 t1p1 t2p1 t3p1"}
    assert shown(after["sticky"]) == {"C0": "t0p0 t1p1 t3p0 t2p0", "C2": "t1p0 t2p1 t0p1 t3p1"}


def test_sticky_as_in_the_second_example_of_its_javadoc() -> None:
    plans = {name: assign(name, ON_STAIRS, STAIRS, {}) for name in ("sticky", "roundrobin")}
    assert shown(plans["sticky"]) == {"C0": "t0p0", "C1": "t1p0 t1p1", "C2": "t2p0 t2p1 t2p2"}
    left = {member: ON_STAIRS[member] for member in ("C1", "C2")}
    after = {name: assign(name, left, STAIRS, plan) for name, plan in plans.items()}
    assert shown(after["roundrobin"]) == {"C1": "t0p0 t1p1", "C2": "t1p0 t2p0 t2p1 t2p2"}
    assert shown(after["sticky"]) == {"C1": "t1p0 t1p1 t0p0", "C2": "t2p0 t2p1 t2p2"}


# --- what Kafka tests


@pytest.mark.parametrize("assignor", ASSIGNORS)
@pytest.mark.parametrize(
    ("members", "partitions", "expected"),
    [
        (subscribed(C=""), {}, {"C": ""}),
        (subscribed(C="t"), {}, {"C": ""}),
        (subscribed(C="t"), {"t": 0}, {"C": ""}),
        (subscribed(C="t"), {"t": 3}, {"C": "tp0 tp1 tp2"}),
        (subscribed(C="t"), {"t": 3, "other": 3}, {"C": "tp0 tp1 tp2"}),
        (subscribed(C="t u"), {"t": 1, "u": 2}, {"C": "tp0 up0 up1"}),
        (subscribed(C1="t", C2="t"), {"t": 1}, {"C1": "tp0", "C2": ""}),
        (subscribed(C1="t", C2="t"), {"t": 2}, {"C1": "tp0", "C2": "tp1"}),
        ({}, {"t": 2}, {}),
    ],
)
def test_the_plain_cases(
    assignor: str, members: dict[str, MemberSubscription], partitions: dict[str, int], expected: Plan
) -> None:
    assert shown(assign(assignor, members, partitions, {})) == expected


@pytest.mark.parametrize(
    ("assignor", "expected"),
    [
        ("range", {"C1": "t1p0", "C2": "t1p1 t2p0 t2p1", "C3": "t1p2"}),
        ("roundrobin", {"C1": "t1p0", "C2": "t1p1 t2p0 t2p1", "C3": "t1p2"}),
        ("sticky", {"C1": "t1p0 t1p2", "C2": "t2p0 t2p1", "C3": "t1p1"}),
    ],
)
def test_mixed_subscriptions(assignor: str, expected: Plan) -> None:
    members = subscribed(C1="t1", C2="t1 t2", C3="t1")
    assert shown(assign(assignor, members, {"t1": 3, "t2": 2}, {})) == expected


def test_a_static_name_stands_before_every_id() -> None:
    topics = ["t1", "t2"]
    partitions = {"t1": 3, "t2": 3}
    both = {"consumer-b": MemberSubscription(topics, "one"), "consumer-a": MemberSubscription(topics, "two")}
    mixed = {"consumer-b": MemberSubscription(topics, "one"), "consumer-a": MemberSubscription(topics)}
    for members in (both, mixed):
        assert shown(assign("range", members, partitions, {})) == {
            "consumer-b": "t1p0 t1p1 t2p0 t2p1",
            "consumer-a": "t1p2 t2p2",
        }
        assert shown(assign("roundrobin", members, partitions, {})) == {
            "consumer-b": "t1p0 t1p2 t2p1",
            "consumer-a": "t1p1 t2p0 t2p2",
        }


@pytest.mark.parametrize("assignor", ["range", "roundrobin"])
def test_static_members_keep_their_place_when_their_ids_change(assignor: str) -> None:
    topics = ["t1", "t2"]
    partitions = {"t1": 5, "t2": 4}

    def by_name(ids: list[str], dynamic: str) -> dict[str, str]:
        members = {id_: MemberSubscription(topics, f"instance{rank}") for rank, id_ in enumerate(ids)}
        members[dynamic] = MemberSubscription(topics)
        plan = shown(assign(assignor, members, partitions, {}))
        return {members[id_].name or "dynamic": ones for id_, ones in plan.items()}

    first = by_name(["c1", "c2", "c3"], "c4")
    assert by_name(["c9", "c3", "c1"], "c0") == first
    if assignor == "range":
        assert first == {
            "instance0": "t1p0 t1p1 t2p0",
            "instance1": "t1p2 t2p1",
            "instance2": "t1p3 t2p2",
            "dynamic": "t1p4 t2p3",
        }


# --- sticky, by situation


def test_who_joins_takes_from_the_most_loaded_and_from_every_topic() -> None:
    before = assign("sticky", subscribed(A="t u"), {"t": 4, "u": 4}, {})
    after = assign("sticky", subscribed(A="t u", B="t u"), {"t": 4, "u": 4}, before)
    assert shown(after) == {"A": "tp0 tp1 up0 up1", "B": "tp2 tp3 up2 up3"}


def test_a_free_partition_goes_to_who_has_least() -> None:
    current = {"A": [TopicPartition("t", 0), TopicPartition("t", 1)], "B": [TopicPartition("t", 2)]}
    after = assign("sticky", subscribed(A="t", B="t", C="t"), {"t": 5}, current)
    assert shown(after) == {"A": "tp0 tp1", "B": "tp2 tp4", "C": "tp3"}


def test_two_claims_on_one_partition_are_settled_by_order() -> None:
    both = [TopicPartition("t", 0), TopicPartition("t", 1)]
    after = assign("sticky", subscribed(A="t", B="t"), {"t": 2}, {"B": both, "A": both[:1]})
    assert shown(after) == {"A": "tp0", "B": "tp1"}


def test_what_is_not_subscribed_any_more_goes_elsewhere() -> None:
    before = assign("sticky", subscribed(A="t u", B="t u"), {"t": 2, "u": 2}, {})
    after = assign("sticky", subscribed(A="t", B="t u"), {"t": 2, "u": 2}, before)
    assert shown(after) == {"A": "tp0 tp1", "B": "up1 up0"}


def test_loads_even_out_along_a_chain() -> None:
    """A may read t, B t and u, C u: C is relieved by nobody directly, B takes from C and A from B."""
    t = [TopicPartition("t", number) for number in range(2)]
    u = [TopicPartition("u", number) for number in range(4)]
    members = subscribed(A="t", B="t u", C="u")
    after = assign("sticky", members, {"t": 2, "u": 4}, {"B": t, "C": u})
    assert sorted(map(len, after.values())) == [2, 2, 2]
    assert set(after["A"]) == set(t)
    assert set(after["C"]) <= set(u)


def test_a_chain_passes_on_what_was_just_given_rather_than_what_was_owned() -> None:
    current = {"A": [TopicPartition("t", 0)], "B": [TopicPartition("u", 0)]}
    after = assign("sticky", subscribed(A="t u", B="t u", C="u"), {"t": 2, "u": 1}, current)
    assert shown(after) == {"A": "tp0", "B": "tp1", "C": "up0"}


def test_kept_partitions_are_not_dealt() -> None:
    kept = {TopicPartition("t", 0), TopicPartition("t", 3)}
    for assignor in ASSIGNORS:
        plan = assign(assignor, subscribed(A="t", B="t"), {"t": 4}, {}, kept)
        assert shown(plan) == {"A": "tp1", "B": "tp2"}


def test_the_order_of_what_is_given_does_not_matter() -> None:
    names = [f"t{number}" for number in range(6)]
    partitions = dict.fromkeys(names, 3)
    ids = [f"m{number}" for number in range(5)]
    for equal in (True, False):
        members = {id_: MemberSubscription(names if equal else names[rank:]) for rank, id_ in enumerate(ids)}
        backwards = {id_: MemberSubscription(set(members[id_].topics)) for id_ in reversed(ids)}
        for assignor in ASSIGNORS:
            current = assign("range", members, partitions, {})
            plan = assign(assignor, members, partitions, current)
            again = assign(
                assignor, backwards, dict(reversed(partitions.items())), {k: set(v) for k, v in current.items()}
            )
            assert again == plan


def test_an_unknown_assignor_is_refused() -> None:
    with pytest.raises(ConfigError, match="assignor must be one of 'sticky', 'range', 'roundrobin'; found 'eager'"):
        assign("eager", {}, {}, {})


@pytest.mark.parametrize("topics", [1, 100, 1_000])
@pytest.mark.parametrize("assignor", ASSIGNORS)
def test_ten_thousand_partitions_and_a_hundred_members_take_few_steps(assignor: str, topics: int) -> None:
    """0.01 to 0.04 s where it was written; calls are counted, of which quadratic code makes a hundred million."""
    partitions = {f"t{number:04}": 10_000 // topics for number in range(topics)}
    members = {f"m{number:03}": MemberSubscription(list(partitions)) for number in range(100)}
    everything = [TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)]
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        plan = assign(assignor, members, partitions, {"m000": everything})
    finally:
        sys.setprofile(None)
    assert 0 < calls < 500_000
    assert sum(map(len, plan.values())) == 10_000
