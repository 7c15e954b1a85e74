"""The history checker: what processes did to a bus, as they wrote it down themselves, against what streamlite promises.

Every process writes its own file of JSON lines, each in one call, so that what it wrote before it was killed is
there. An event is an `invoke`, which `ok`, `fail` or nothing follows (a process was killed: it may have happened or
not), or an `info`, something that is so. Times are of the monotonic clock, which all processes of a machine share. A
note is made after what it says is true (a delivery, an ownership) and before anything follows from it (a commit of what
was processed), and times are compared only in the direction in which they prove something: nothing good is called bad.

| op | who | what |
|---|---|---|
| `send` | producer | invoke: `values`, `partitions` (`None`: not known); ok: `placed`, a pair or `None` (failed) each |
| `tx` | producer | as `send`, all or nothing; info `tx-commit` before it leaves the block; fail: aborted |
| `assign` | member | info: `partition`, `generation` of this ownership, `offset` to go on from |
| `end` | member | info: `partition` is no longer its own, as far as it knows |
| `deliver`, `process` | member | info: `partition`, `offset`, `values` from there on |
| `rewind` | member | info: it expects what it did not process again, in all its partitions |
| `commit` | member | invoke: `offsets`, `{partition: [offset, generation]}`; ok, fail |
| `look` | observer | invoke; ok: `offsets`, `{partition: [offset, 0]}` committed |
| `log` | reader | info, when all is over: `partition`, `offset`, `values` from there on |
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["CHECKS", "Event", "Report", "Violation", "check", "load"]

OK_AT_LEAST = 0.6
NOBODY_KNOWS = float("inf")


class Event(msgspec.Struct, omit_defaults=True):
    """One line of a history."""

    process: str
    kind: str
    op: str
    time: float
    id: int = 0
    """Links an invocation with its end; counted by the process."""
    partition: int = -1
    offset: int = -1
    generation: int = -1
    values: list[str] = []
    partitions: list[int | None] = []
    placed: list[tuple[int, int] | None] = []
    offsets: dict[int, tuple[int, int]] = {}
    error: str = ""


def load(directory: Path) -> list[list[Event]]:
    """The histories in a directory, one for each process. Only a killed process may have left half a line, its last."""
    decode = msgspec.json.Decoder(Event).decode
    return [
        [decode(line) for line in path.read_bytes().split(b"\n")[:-1]] for path in sorted(directory.glob("*.jsonl"))
    ]


@dataclass(frozen=True)
class Violation:
    """Something that must not be. `kind` is one of `CHECKS` or "vacuous"."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class Report:
    """What was found, and how many candidates each check saw."""

    violations: list[Violation] = field(default_factory=list)
    candidates: Counter[str] = field(default_factory=Counter)
    invoked: Counter[str] = field(default_factory=Counter)
    succeeded: Counter[str] = field(default_factory=Counter)

    def say(self, kind: str, what: str) -> None:
        """Note a violation down."""
        self.violations.append(Violation(kind, what))

    def __str__(self) -> str:
        counted = ", ".join(f"{kind} {self.candidates[kind]:,}" for kind in CHECKS if self.candidates[kind])
        share = ", ".join(f"{op} {self.succeeded[op]:,} of {count:,}" for op, count in sorted(self.invoked.items()))
        found = "\n".join(f"  {violation}" for violation in self.violations[:40])
        more = f"\n  and {len(self.violations) - 40} more" if len(self.violations) > 40 else ""
        return f"{len(self.violations)} violations; candidates: {counted}; ok: {share}\n{found}{more}".rstrip()


@dataclass
class Send:
    """One message that somebody sent; `placed` where it was acknowledged, `failed` where it was refused."""

    value: str
    process: str
    number: int
    partition: int | None
    placed: tuple[int, int] | None = None
    failed: bool = False
    tx: int = 0
    commits_at: float = NOBODY_KNOWS


@dataclass
class World:
    """All histories, sorted out."""

    histories: list[list[Event]]
    sends: dict[str, Send] = field(default_factory=dict)
    log: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    owners: dict[int, list[Event]] = field(default_factory=lambda: defaultdict(list))
    """Assignments of each partition, by generation."""
    ends: dict[tuple[str, int, str], Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for history in self.histories:
            for event in history:
                getattr(self, f"_{event.op.replace('-', '_')}_{event.kind}", lambda event: None)(event)
                if event.kind in ("ok", "fail"):
                    self.ends[event.process, event.id, event.op] = event
        for assigned in self.owners.values():
            assigned.sort(key=lambda event: (event.generation, event.time))

    def _send_invoke(self, event: Event) -> None:
        for at, value in enumerate(event.values):
            send = Send(value, event.process, len(self.sends), event.partitions[at])
            self.sends[value] = send
            send.tx = event.id if event.op == "tx" else 0

    def _send_ok(self, event: Event) -> None:
        for value, placed in zip(event.values, event.placed, strict=True):
            send = self.sends[value]
            send.placed, send.failed = placed, placed is None

    def _send_fail(self, event: Event) -> None:
        for value in event.values:
            self.sends[value].failed = True

    _tx_invoke, _tx_ok, _tx_fail = _send_invoke, _send_ok, _send_fail

    def _tx_commit_info(self, event: Event) -> None:
        for value in event.values:
            self.sends[value].commits_at = event.time

    def _log_info(self, event: Event) -> None:
        self.log[event.partition] |= enumerate(event.values, event.offset)

    def _assign_info(self, event: Event) -> None:
        self.owners[event.partition].append(event)

    def of(self, op: str, kind: str = "info") -> Iterator[Event]:
        """All events of an operation."""
        return (event for history in self.histories for event in history if event.op == op and event.kind == kind)

    def committed(self) -> Iterator[Event]:
        """Commits that succeeded: the invocations."""
        for event in self.of("commit", "invoke"):
            end = self.ends.get((event.process, event.id, "commit"))
            if end is not None and end.kind == "ok":
                yield event

    def by_producer(self) -> Iterator[list[Send]]:
        """What each producer sent, in order."""
        found: dict[str, list[Send]] = defaultdict(list)
        for send in self.sends.values():
            found[send.process].append(send)
        return iter(found.values())


# --- what is in the log -------------------------------------------------------------------------------------------


def check_lost(world: World, report: Report) -> None:
    """Acknowledged and not there; a hole in what a producer sent to a partition, or in the offsets; never processed."""
    places = {value: (partition, at) for partition, log in world.log.items() for at, value in log.items()}
    for send in world.sends.values():
        if send.placed is not None:
            report.candidates["lost"] += 1
            if world.log[send.placed[0]].get(send.placed[1]) != send.value:
                report.say("lost", f"{send.value} was acknowledged at {send.placed}, it is at {places.get(send.value)}")
    for sends in world.by_producer():
        later: set[int | None] = set()
        for send in reversed(sends):
            if send.value in places:
                later.add(places[send.value][0])
            elif send.partition in later and not send.failed and send.placed is None and send.partition is not None:
                report.say("lost", f"{send.value} is not in partition {send.partition}, later ones of its producer are")
    for partition, log in world.log.items():
        missing = [offset for offset in range(max(log, default=-1) + 1) if offset not in log]
        if missing:
            report.say("lost", f"partition {partition} has no offsets {missing[:5]}")


def check_unprocessed(world: World, report: Report) -> None:
    """When all is over, every message was processed by somebody."""
    done: dict[int, set[int]] = defaultdict(set)
    for event in world.of("process"):
        done[event.partition].update(range(event.offset, event.offset + len(event.values)))
    for partition, log in world.log.items():
        report.candidates["unprocessed"] += len(log)
        left = sorted(log.keys() - done[partition])
        if left:
            report.say("unprocessed", f"{len(left)} messages of partition {partition}: {[log[at] for at in left[:5]]}")


def check_duplicated(world: World, report: Report) -> None:
    """A message sent once stands in the log once."""
    counted = Counter(value for log in world.log.values() for value in log.values())
    report.candidates["duplicated"] += len(counted)
    for value, count in counted.items():
        if count > 1:
            report.say("duplicated", f"{value} is in the log {count} times")


def check_invented(world: World, report: Report) -> None:
    """What is in the log was sent, to there, and was not reported failed; what was delivered is in the log."""
    for partition, log in world.log.items():
        for offset, value in log.items():
            report.candidates["invented"] += 1
            send = world.sends.get(value)
            if send is None:
                report.say("invented", f"nobody sent {value}, partition {partition} offset {offset}")
            elif send.failed or send.partition not in (None, partition):
                what = "was reported failed" if send.failed else f"was sent to partition {send.partition}"
                report.say("invented", f"{value}, partition {partition} offset {offset}, {what}")
    for event in world.of("deliver"):
        for offset, value in enumerate(event.values, event.offset):
            if world.log[event.partition].get(offset) != value:
                found = world.log[event.partition].get(offset)
                report.say("invented", f"{event.process} got {value} at {event.partition}/{offset}; there is {found}")


def check_reordered(world: World, report: Report) -> None:
    """Each producer's messages stand in a partition in the order of sending."""
    last: dict[tuple[str, int], Send] = {}
    for partition, log in world.log.items():
        for _, value in sorted(log.items()):
            send = world.sends.get(value)
            if send is None:
                continue
            before = last.get((send.process, partition))
            report.candidates["reordered"] += before is not None
            if before is not None and before.number > send.number:
                report.say("reordered", f"{send.value} follows {before.value} in partition {partition}")
            last[send.process, partition] = send


# --- what was delivered -------------------------------------------------------------------------------------------


def check_delivery(world: World, report: Report) -> None:
    """A member gets what it owns, and each message of it once, in order, but for what it rewound."""
    for history in world.histories:
        following: dict[int, int] = {}
        again: set[int] = set()
        for event in history:
            partition = event.partition
            if event.op == "assign":
                following[partition] = event.offset
                again.discard(partition)
            elif event.op == "end":
                following.pop(partition, None)
            elif event.op == "rewind":
                again.update(following)
            elif event.op == "deliver":
                report.candidates["delivery"] += 1
                expected = following.get(partition)
                wrong = (
                    expected is None or event.offset > expected or (event.offset < expected and partition not in again)
                )
                if wrong:
                    report.say("delivery", f"{event.process} got {partition}/{event.offset} where {expected} was due")
                following[partition] = event.offset + len(event.values)
                again.discard(partition)


# --- what was committed -------------------------------------------------------------------------------------------


def check_ownership(world: World, report: Report) -> None:
    """No commit succeeds under an ownership that ended: the next one of the partition had begun and was noted down."""
    for event in world.committed():
        for partition, (_, generation) in event.offsets.items():
            owners = world.owners[partition]
            report.candidates["after ownership"] += len(owners) > 1
            if not any(one.process == event.process and one.generation == generation for one in owners):
                report.say("after ownership", f"{event.process} committed in {partition} as nobody ({generation})")
            for one in owners[bisect_left(owners, generation + 1, key=lambda event: event.generation) :]:
                if one.time < event.time:
                    what = f"{partition} is {one.process}'s since generation {one.generation}"
                    report.say("after ownership", f"{event.process} committed under {generation}; {what}")
                    break
    for partition, owners in world.owners.items():
        for one, following in pairwise(owners):
            # One member may be asked to give it up, do so, and be told to keep it: then its ownership never ended.
            if one.generation == following.generation and one.process != following.process:
                who = f"{one.process} and {following.process}"
                report.say("after ownership", f"{who} own {partition} under one generation, {one.generation}")


def check_backwards(world: World, report: Report) -> None:
    """What is committed never goes back: a commit of somebody whose time was over would take it there."""
    known: dict[int, list[tuple[int, float, int, str]]] = defaultdict(list)  # (generation, time, offset, who)
    for event in world.committed():
        for partition, (offset, generation) in event.offsets.items():
            known[partition].append((generation, event.time, offset, f"{event.process} committed"))
    for partition, owners in world.owners.items():
        for event in owners:
            known[partition].append((event.generation, event.time, event.offset, f"{event.process} began"))
    looks = list(world.of("look", "ok"))
    for partition, seen in known.items():
        _rising(report, partition, [(offset, who) for _, _, offset, who in sorted(seen)])
    for partition in {partition for event in looks for partition in event.offsets}:
        seen_at = [
            (event.offsets[partition][0], f"at {event.time:.3f}") for event in looks if partition in event.offsets
        ]
        _rising(report, partition, seen_at)


def _rising(report: Report, partition: int, seen: list[tuple[int, str]]) -> None:
    greatest, where = -1, ""
    for offset, who in seen:
        report.candidates["backwards"] += greatest >= 0
        if offset < greatest:
            report.say("backwards", f"partition {partition}: {who} at {offset}, and before it {where} at {greatest}")
        else:
            greatest, where = offset, who


def check_commits(world: World, report: Report) -> None:
    """When a committed offset is seen, what it passes over had been delivered, and processed, by somebody."""
    seen: dict[int, list[tuple[float, int, str]]] = defaultdict(list)  # partition -> (time, offset, who)
    for event in world.of("assign"):
        seen[event.partition].append((event.time, event.offset, f"{event.process} began at"))
    for event in [*world.committed(), *world.of("look", "ok")]:
        for partition, (offset, _) in event.offsets.items():
            seen[partition].append((event.time, offset, f"{event.process} committed, or saw,"))
    steps: dict[int, list[tuple[float, int, Event | None, str]]] = defaultdict(list)
    for op in ("deliver", "process"):
        for event in world.of(op):
            steps[event.partition].append((event.time, event.offset, event, op))
    for partition, found in seen.items():
        steps[partition] += [(time, offset, None, who) for time, offset, who in found]
        _sweep(report, partition, sorted(steps[partition], key=lambda step: step[0]))


def _sweep(report: Report, partition: int, steps: Iterable[tuple[float, int, Event | None, str]]) -> None:
    delivered = reached = 0
    processed: set[int] = set()
    for _, offset, event, what in steps:
        if event is None:
            report.candidates["past delivered"] += offset > 0
            report.candidates["gap"] += offset > 0
            if offset > delivered:
                report.say("past delivered", f"partition {partition}: {what} {offset}, {delivered} were delivered")
            elif offset > reached:
                report.say("gap", f"partition {partition}: {what} {offset}; nobody had processed {reached}")
        elif what == "deliver":
            delivered = max(delivered, offset + len(event.values))
        else:
            processed.update(range(max(offset, reached), offset + len(event.values)))
            while reached in processed:
                processed.discard(reached)
                reached += 1


# --- transactions -------------------------------------------------------------------------------------------------


def check_torn(world: World, report: Report) -> None:
    """Of a transaction everything is in the log, or nothing; nothing of one that was aborted."""
    present = {value for log in world.log.values() for value in log.values()}
    parts: dict[tuple[str, int], list[Send]] = defaultdict(list)
    for send in world.sends.values():
        if send.tx:
            parts[send.process, send.tx].append(send)
    for (process, number), sends in parts.items():
        report.candidates["torn"] += 1
        there = [send.value for send in sends if send.value in present]
        if there and (len(there) < len(sends) or sends[0].failed):
            what = "was aborted" if sends[0].failed else f"has {len(sends)} messages"
            report.say("torn", f"transaction {number} of {process} {what}; {len(there)} are there: {there[:3]}")


def check_early(world: World, report: Report) -> None:
    """Nobody gets a transaction's message before its commit began."""
    for event in world.of("deliver"):
        for value in event.values:
            send = world.sends.get(value)
            if send is not None and send.tx:
                report.candidates["read before commit"] += 1
                if event.time < send.commits_at:
                    report.say("read before commit", f"{event.process} got {value} before its transaction committed")


CHECKS = {
    "lost": check_lost,
    "unprocessed": check_unprocessed,
    "duplicated": check_duplicated,
    "invented": check_invented,
    "reordered": check_reordered,
    "delivery": check_delivery,
    "after ownership": check_ownership,
    "backwards": check_backwards,
    "past delivered": check_commits,
    "gap": check_commits,
    "torn": check_torn,
    "read before commit": check_early,
}
"""Every kind of violation, and what finds it."""

TRANSACTIONS = frozenset({"torn", "read before commit"})


def check(histories: list[list[Event]], expected: Iterable[str] = CHECKS.keys() - TRANSACTIONS) -> Report:
    """Check everything. Of the `expected` kinds each check must have seen a candidate, and most of what was asked for
    must have succeeded: else nothing was shown, and that is a violation too.
    """
    world, report = World(histories), Report()
    for run in dict.fromkeys(CHECKS.values()):
        run(world, report)
    for event in (event for history in histories for event in history if event.kind in ("invoke", "ok")):
        (report.invoked if event.kind == "invoke" else report.succeeded)[event.op] += 1
    for kind in sorted(expected):
        if not report.candidates[kind]:
            report.say("vacuous", f"no candidate for {kind!r}")
    for op, count in report.invoked.items():
        if report.succeeded[op] < OK_AT_LEAST * count:
            report.say("vacuous", f"only {report.succeeded[op]} of {count} invocations of {op!r} succeeded")
    return report


def problems(found: Any) -> list[str]:
    """The kinds of a report's violations, each once, sorted."""
    return sorted({violation.kind for violation in found.violations})
