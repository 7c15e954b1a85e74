"""Which member of a group reads which partition: three rules, each a pure function of what it is given.

* `"sticky"` (the default): as balanced as the subscriptions allow, and of all such plans one that moves little. With
  equal subscriptions loads differ by at most one and no plan moves less. With unequal ones loads are as even as
  they can be: no chain of moves takes a partition, in effect, from one member to another that has two fewer. That is
  stricter than Kafka's StickyAssignor, which looks at single moves only.
* `"range"`: topic by topic, consecutive partitions to consecutive members, so that topics with the same number of
  partitions are cut alike (Kafka's RangeAssignor).
* `"roundrobin"`: all partitions in turn to all members in turn, passing over who has not subscribed (Kafka's
  RoundRobinAssignor).

Members stand in one order everywhere, Kafka's: those with a static name first, by name, then the others by id. So the
same input gives the same plan in every process, whatever the order of its sets and dicts, and a static member that
comes back under its name with another id gets the same place.

What lives here is the plan only. Who owns what until a plan is carried out is the business of `group_state`.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from itertools import cycle
from typing import Final, NamedTuple, Protocol

from streamlite.config import check_choice
from streamlite.message import TopicPartition

__all__ = ["ASSIGNORS", "Assignment", "MemberSubscription", "assign"]

ASSIGNORS: Final = ("sticky", "range", "roundrobin")

Assignment = dict[str, list[TopicPartition]]
Current = Mapping[str, Collection[TopicPartition]]


class MemberSubscription(NamedTuple):
    """What a member asks for: topics by name, and the name of its own that makes it a static member."""

    topics: Collection[str]
    name: str | None = None


class _Deal(NamedTuple):
    """What is to be dealt: members in order, subscribers by topic, partitions by topic; topics sorted."""

    members: list[str]
    subscribers: dict[str, list[str]]
    partitions: dict[str, list[TopicPartition]]


class _Assignor(Protocol):
    def __call__(self, deal: _Deal, current: Current) -> Assignment: ...


def assign(
    assignor: str,
    members: Mapping[str, MemberSubscription],
    partitions: Mapping[str, int],
    current: Current,
    kept: Collection[TopicPartition] = frozenset(),
) -> Assignment:
    """The partitions of each member of `members`, by its id: every subscribed partition exactly once.

    `partitions` is the count of each topic that exists (a subscribed one that does not is passed over); `current` is
    what members own now, which only "sticky" looks at: it may name members that are gone, and where two claim the same
    partition the first in order has it. `kept` are partitions that are not to be dealt at all. A member's list begins
    with what it keeps. `ConfigError` for an unknown assignor.
    """
    rule = _BY_NAME[check_choice("assignor", assignor, ASSIGNORS)]
    order = sorted(members, key=lambda member: (members[member].name is None, members[member].name or "", member))
    subscribers: dict[str, list[str]] = {}
    for member in order:
        for topic in set(members[member].topics):
            subscribers.setdefault(topic, []).append(member)
    topics = sorted(topic for topic in subscribers if topic in partitions)
    dealt = {topic: [TopicPartition(topic, number) for number in range(partitions[topic])] for topic in topics}
    if kept:
        dealt = {topic: [one for one in ones if one not in kept] for topic, ones in dealt.items()}
    return rule(_Deal(order, {topic: subscribers[topic] for topic in topics}, dealt), current)


def _range(deal: _Deal, current: Current) -> Assignment:
    plan: Assignment = {member: [] for member in deal.members}
    for topic, partitions in deal.partitions.items():
        subscribers = deal.subscribers[topic]
        share, extra = divmod(len(partitions), len(subscribers))
        start = 0
        for rank, member in enumerate(subscribers):
            end = start + share + (rank < extra)
            plan[member] += partitions[start:end]
            start = end
    return plan


def _roundrobin(deal: _Deal, current: Current) -> Assignment:
    plan: Assignment = {member: [] for member in deal.members}
    turn = cycle(deal.members)
    for topic, partitions in deal.partitions.items():
        subscribed = set(deal.subscribers[topic])
        for partition in partitions:
            member = next(turn)
            while member not in subscribed:
                member = next(turn)
            plan[member].append(partition)
    return plan


def _sticky(deal: _Deal, current: Current) -> Assignment:
    owners, held = _still_valid(deal, current)
    classes = {tuple(subscribers) for subscribers in deal.subscribers.values()}
    plan = _deal_evenly(deal, owners, held) if len(classes) == 1 else _Balance(deal, owners, held).plan()
    for member, partitions in plan.items():
        partitions.sort(key=lambda one: (owners.get(one) != member, one))
    return plan


def _still_valid(deal: _Deal, current: Current) -> tuple[dict[TopicPartition, str], Assignment]:
    """Of `current`, what its member may still have: the owner of each partition, and the partitions of each member."""
    subscribed = {topic: set(subscribers) for topic, subscribers in deal.subscribers.items()}
    dealt = {partition for partitions in deal.partitions.values() for partition in partitions}
    owners: dict[TopicPartition, str] = {}
    held: Assignment = {member: [] for member in deal.members}
    for member in deal.members:
        for partition in sorted(current.get(member, ())):
            if partition in dealt and partition not in owners and member in subscribed[partition.topic]:
                owners[partition] = member
                held[member].append(partition)
    return owners, held


def _spread(partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Sorted partitions, topics in turn: whoever gives up the last of them gives up some of each topic."""
    ranks: dict[str, int] = {}
    ranked: list[tuple[int, TopicPartition]] = []
    for partition in partitions:
        rank = ranks.get(partition.topic, 0)
        ranks[partition.topic] = rank + 1
        ranked.append((rank, partition))
    return [partition for _, partition in sorted(ranked)]


def _deal_evenly(deal: _Deal, owners: dict[TopicPartition, str], held: Assignment) -> Assignment:
    """The plan when all topics have the same subscribers.

    With n partitions and m members, n mod m have one more than the others: the first of those who hold that many
    now. Then each gives up what is above its share and nothing else, so that no plan moves less.
    """
    subscribers = next(iter(deal.subscribers.values()))
    share, extra = divmod(sum(map(len, deal.partitions.values())), len(subscribers))
    rich = [member for member in subscribers if len(held[member]) > share]
    plan: Assignment = {member: [] for member in deal.members}
    for member in subscribers:
        plan[member] = _spread(held[member])[: share + (member in rich[:extra])]
    taken = {partition for partitions in plan.values() for partition in partitions}
    heap = [(len(plan[member]), rank, member) for rank, member in enumerate(subscribers)]
    heapq.heapify(heap)
    for partitions in deal.partitions.values():
        for partition in partitions:
            if partition not in taken:
                load, rank, member = heap[0]
                plan[member].append(partition)
                heapq.heapreplace(heap, (load + 1, rank, member))
    return plan


class _Balance:
    """The plan when subscriptions differ: give out what is free, then move along chains for as long as that evens out.

    Topics with the same subscribers are one class, whose partitions are interchangeable; a chain is members linked by
    classes: u holds a partition of a class that v may have, v one of a class that w may have. Moving one along each
    link takes one from u and gives one to w, and evens out when w has at least two fewer than u. Loads are as even as
    they can be when no such chain is left (Harvey, Ladner, Lovasz and Tamir, "Semi-matchings for bipartite graphs and
    load balancing", 2006). The shortest chain is taken each time, since each link moves a partition, and always from
    the greatest load to the least within reach, one partition at a time: anything bolder overshoots, and what
    overshoots moves twice.

    Members are numbers here, and sets of them are the bits of an int: a search costs microseconds.
    """

    def __init__(self, deal: _Deal, owners: dict[TopicPartition, str], held: Assignment) -> None:
        self.deal = deal
        ranks = {member: rank for rank, member in enumerate(deal.members)}
        masks = {topic: sum(1 << ranks[member] for member in found) for topic, found in deal.subscribers.items()}
        self.owned = owners.keys()
        self.class_of: dict[str, int] = masks  # a class is known by the mask of its subscribers
        self.loads = [0] * len(deal.members)
        self.stock: list[dict[int, list[TopicPartition]]] = [{} for _ in deal.members]
        for member, partitions in held.items():
            for partition in _spread(partitions):
                self._give(ranks[member], partition)

    def _give(self, member: int, partition: TopicPartition) -> None:
        self.stock[member].setdefault(self.class_of[partition.topic], []).append(partition)
        self.loads[member] += 1

    def plan(self) -> Assignment:
        self._give_out()
        self._even_out()
        return {
            member: [partition for partitions in self.stock[rank].values() for partition in partitions]
            for rank, member in enumerate(self.deal.members)
        }

    def _give_out(self) -> None:
        """Each free partition to its least loaded subscriber; first those that the fewest can have."""
        topics = sorted(self.deal.partitions, key=lambda topic: (len(self.deal.subscribers[topic]), topic))
        for topic in topics:
            subscribers = list(_bits(self.class_of[topic]))
            for partition in self.deal.partitions[topic]:
                if partition not in self.owned:
                    self._give(min(subscribers, key=self.loads.__getitem__), partition)

    def _even_out(self) -> None:
        """Apply chains, from the most loaded member down, until none is left. Each one lowers the sum of squares."""
        moved = True
        while moved:
            moved = False
            heap = [(-load, member) for member, load in enumerate(self.loads)]
            heapq.heapify(heap)
            while heap:
                load, member = heapq.heappop(heap)
                if -load != self.loads[member]:
                    continue  # an entry from before a move; the member's load of now has its own
                chain = self._chain(member)
                if chain:
                    moved = True
                    for giver, class_, taker in chain:
                        self._move(giver, class_, taker)
                    heapq.heappush(heap, (-self.loads[member], member))
                    last = chain[0][2]
                    heapq.heappush(heap, (-self.loads[last], last))

    def _chain(self, source: int) -> list[tuple[int, int, int]]:
        """The shortest chain from `source` to a member with two fewer, last link first; empty when there is none."""
        limit = self.loads[source] - 2
        links: dict[int, tuple[int, int]] = {}
        seen = 1 << source
        frontier = [source]
        while frontier:
            reached: list[int] = []
            for giver in frontier:
                for class_ in self.stock[giver]:
                    new = class_ & ~seen
                    seen |= new
                    for taker in _bits(new):
                        links[taker] = (giver, class_)
                        reached.append(taker)
            end = min(reached, key=lambda member: (self.loads[member], member), default=source)
            if self.loads[end] <= limit:
                chain: list[tuple[int, int, int]] = []
                while end != source:
                    giver, class_ = links[end]
                    chain.append((giver, class_, end))
                    end = giver
                return chain
            frontier = reached
        return []

    def _move(self, giver: int, class_: int, taker: int) -> None:
        """One partition of `class_`: the last, so one that `giver` was just given rather than one that it had."""
        stock = self.stock[giver][class_]
        partition = stock.pop()
        if not stock:
            del self.stock[giver][class_]
        self.loads[giver] -= 1
        self._give(taker, partition)


def _bits(mask: int) -> list[int]:
    """The numbers of the bits that are set, rising."""
    found: list[int] = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return found


_BY_NAME: Final[dict[str, _Assignor]] = {"sticky": _sticky, "range": _range, "roundrobin": _roundrobin}
assert tuple(_BY_NAME) == ASSIGNORS
