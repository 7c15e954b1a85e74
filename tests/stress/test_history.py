"""The history checker on hand-made histories: a good one, and for every kind of violation a bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from .history import CHECKS, Event, Report, check, load, problems

Histories = dict[str, list[Event]]


class Writer:
    """Writes histories by several processes, one event a second."""

    def __init__(self) -> None:
        self.histories: Histories = {}
        self.now = 0.0

    def __call__(self, process: str, kind: str, op: str, **fields: Any) -> Event:
        self.now += 1
        event = Event(process, kind, op, self.now, **fields)
        self.histories.setdefault(process, []).append(event)
        return event


def good() -> Histories:
    """Producer `p` sends five messages and a transaction; member `a` gets half, dies, and `b` takes over."""
    write = Writer()
    values, placed = [f"p-{n}" for n in range(5)], [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3)]
    write("p", "invoke", "send", id=1, values=values[:3], partitions=[0, None, 1])
    write("p", "ok", "send", id=1, values=values[:3], placed=placed[:3])
    write("a", "info", "assign", partition=0, generation=1, offset=0)
    write("a", "info", "assign", partition=1, generation=1, offset=0)
    write("a", "info", "deliver", partition=0, offset=0, values=["p-0", "p-1"])
    write("a", "info", "process", partition=0, offset=0, values=["p-0", "p-1"])
    write("a", "invoke", "commit", id=1, offsets={0: (2, 1)})
    write("a", "ok", "commit", id=1)
    write("p", "invoke", "send", id=2, values=values[3:], partitions=[0, 0])
    write("p", "ok", "send", id=2, values=values[3:], placed=placed[3:])
    write("p", "invoke", "tx", id=3, values=["p-t0", "p-t1"], partitions=[0, 1])
    write("p", "info", "tx-commit", id=3, values=["p-t0", "p-t1"])
    write("p", "ok", "tx", id=3, values=["p-t0", "p-t1"], placed=[(0, 4), (1, 1)])
    write("p", "invoke", "tx", id=4, values=["p-t4"], partitions=[1])
    write("p", "info", "tx-commit", id=4, values=["p-t4"])
    write("p", "ok", "tx", id=4, values=["p-t4"], placed=[(1, 2)])
    write("p", "invoke", "tx", id=5, values=["p-t2", "p-t3"], partitions=[0, 1])  # killed in it
    write("o", "invoke", "look", id=1)
    write("o", "ok", "look", id=1, offsets={0: (2, 0)})
    write("a", "info", "deliver", partition=0, offset=2, values=["p-3"])
    write("b", "info", "assign", partition=0, generation=3, offset=2)
    write("b", "info", "deliver", partition=0, offset=2, values=["p-3", "p-4", "p-t0"])
    write("b", "info", "process", partition=0, offset=2, values=["p-3"])
    write("b", "info", "rewind")
    write("b", "info", "deliver", partition=0, offset=3, values=["p-4", "p-t0"])
    write("b", "info", "process", partition=0, offset=3, values=["p-4", "p-t0"])
    write("b", "info", "assign", partition=1, generation=3, offset=0)
    write("b", "info", "deliver", partition=1, offset=0, values=["p-2", "p-t1", "p-t4"])
    write("b", "info", "process", partition=1, offset=0, values=["p-2", "p-t1", "p-t4"])
    write("b", "invoke", "commit", id=1, offsets={0: (5, 3), 1: (3, 3)})
    write("b", "ok", "commit", id=1)
    write("o", "invoke", "look", id=2)
    write("o", "ok", "look", id=2, offsets={0: (5, 0), 1: (3, 0)})
    write("r", "info", "log", partition=0, offset=0, values=["p-0", "p-1", "p-3", "p-4", "p-t0"])
    write("r", "info", "log", partition=1, offset=0, values=["p-2", "p-t1", "p-t4"])
    return write.histories


def checked(histories: Histories) -> Report:
    return check(list(histories.values()), CHECKS)


def find(histories: Histories, process: str, op: str, at: int = 0, kind: str = "") -> Event:
    """The `at`-th event of a process and an operation."""
    return [e for e in histories[process] if e.op == op and kind in ("", e.kind)][at]


def test_a_good_history_has_no_violation() -> None:
    report = checked(good())
    assert report.violations == []
    assert all(report.candidates[kind] for kind in CHECKS)


def test_a_report_says_what_was_found() -> None:
    histories = good()
    find(histories, "r", "log").values.pop()
    assert "p-t0" in str(checked(histories))
    assert "after ownership" in str(checked(histories))


def acknowledged_and_gone(histories: Histories) -> None:
    find(histories, "r", "log").values[3] = "p-t0"
    find(histories, "r", "log").values.pop()


def acknowledged_and_elsewhere(histories: Histories) -> None:
    find(histories, "p", "send", 1, "ok").placed[0] = (0, 3)


def a_hole_before_what_was_sent_later(histories: Histories) -> None:
    histories["p"] = [e for e in histories["p"] if not (e.op == "send" and e.kind == "ok" and e.id == 1)]
    find(histories, "r", "log").values[0] = "p-1"
    find(histories, "r", "log").values[1] = "p-3"


def offsets_with_a_hole(histories: Histories) -> None:
    find(histories, "r", "log", 1).offset = 1


def nobody_processed_it(histories: Histories) -> None:
    find(histories, "b", "process", 2).values.pop()


def twice_in_the_log(histories: Histories) -> None:
    find(histories, "r", "log", 1).values.append("p-1")


def nobody_sent_it(histories: Histories) -> None:
    find(histories, "r", "log", 1).values.append("q-0")


def sent_to_another_partition(histories: Histories) -> None:
    find(histories, "p", "send", 0, "invoke").partitions[0] = 1


def reported_failed_and_there(histories: Histories) -> None:
    find(histories, "p", "send", 1, "ok").placed[0] = None


def delivered_and_not_in_the_log(histories: Histories) -> None:
    find(histories, "b", "deliver", 1).values[0] = "p-x"


def in_another_order(histories: Histories) -> None:
    values = find(histories, "r", "log").values
    values[2], values[3] = values[3], values[2]


def delivered_twice(histories: Histories) -> None:
    histories["b"] = [e for e in histories["b"] if e.op != "rewind"]


def delivery_left_one_out(histories: Histories) -> None:
    event = find(histories, "b", "deliver")
    event.offset, event.values = 3, ["p-4", "p-t0"]


def delivered_to_who_gave_it_up(histories: Histories) -> None:
    at = histories["a"].index(find(histories, "a", "deliver", 1))
    histories["a"].insert(at, Event("a", "info", "end", 19.5, partition=0))


def committed_after_another_began(histories: Histories) -> None:
    histories["a"] += [
        Event("a", "invoke", "commit", 23.5, id=2, offsets={0: (2, 1)}),
        Event("a", "ok", "commit", 23.6, id=2),
    ]


def committed_as_nobody(histories: Histories) -> None:
    find(histories, "a", "commit", 0, "invoke").offsets[0] = (2, 2)


def two_owners_in_one_generation(histories: Histories) -> None:
    find(histories, "b", "assign").generation = 1
    find(histories, "b", "commit", 0, "invoke").offsets[0] = (5, 1)


def began_behind_what_was_committed(histories: Histories) -> None:
    find(histories, "b", "assign").offset = 1
    find(histories, "b", "deliver").offset = 1
    find(histories, "b", "deliver").values.insert(0, "p-1")


def seen_to_go_back(histories: Histories) -> None:
    find(histories, "o", "look", 1, "ok").offsets[0] = (1, 0)


def committed_past_the_delivered(histories: Histories) -> None:
    find(histories, "a", "commit", 0, "invoke").offsets[0] = (3, 1)
    find(histories, "b", "assign").offset = 3
    find(histories, "b", "deliver").offset = 3
    find(histories, "b", "deliver").values.pop(0)


def seen_past_the_delivered(histories: Histories) -> None:
    find(histories, "o", "look", 0, "ok").offsets[0] = (3, 0)


def committed_over_what_nobody_processed(histories: Histories) -> None:
    find(histories, "a", "process").values.pop()


def began_past_what_was_processed(histories: Histories) -> None:
    find(histories, "b", "assign").offset = 3
    event = find(histories, "b", "deliver")
    event.offset, event.values = 3, ["p-4", "p-t0"]


def half_a_transaction(histories: Histories) -> None:
    find(histories, "r", "log", 1).values.remove("p-t1")
    histories["p"] = [e for e in histories["p"] if not (e.op == "tx" and e.kind == "ok")]


def half_of_one_that_died(histories: Histories) -> None:
    find(histories, "r", "log").values.append("p-t2")


def an_aborted_transaction(histories: Histories) -> None:
    event = find(histories, "p", "tx", 0, "ok")
    event.kind, event.placed = "fail", []


def read_before_the_commit(histories: Histories) -> None:
    find(histories, "p", "tx-commit").time = 22.5


def most_commits_failed(histories: Histories) -> None:
    for number in range(10, 13):
        histories["a"].append(Event("a", "invoke", "commit", 40.0 + number, id=number, offsets={0: (2, 1)}))
        histories["a"].append(Event("a", "fail", "commit", 40.5 + number, id=number))


def nobody_committed(histories: Histories) -> None:
    for process in "ab":
        histories[process] = [event for event in histories[process] if event.op != "commit"]
    histories["o"].clear()
    find(histories, "b", "assign").offset = 0
    event = find(histories, "b", "deliver")
    event.offset, event.values = 0, ["p-0", "p-1", *event.values]


BAD: list[tuple[str, Callable[[Histories], None]]] = [
    ("lost", acknowledged_and_gone),
    ("lost", acknowledged_and_elsewhere),
    ("lost", a_hole_before_what_was_sent_later),
    ("lost", offsets_with_a_hole),
    ("unprocessed", nobody_processed_it),
    ("duplicated", twice_in_the_log),
    ("invented", nobody_sent_it),
    ("invented", sent_to_another_partition),
    ("invented", reported_failed_and_there),
    ("invented", delivered_and_not_in_the_log),
    ("reordered", in_another_order),
    ("delivery", delivered_twice),
    ("delivery", delivery_left_one_out),
    ("delivery", delivered_to_who_gave_it_up),
    ("after ownership", committed_after_another_began),
    ("after ownership", committed_as_nobody),
    ("after ownership", two_owners_in_one_generation),
    ("backwards", began_behind_what_was_committed),
    ("backwards", seen_to_go_back),
    ("past delivered", committed_past_the_delivered),
    ("past delivered", seen_past_the_delivered),
    ("gap", committed_over_what_nobody_processed),
    ("gap", began_past_what_was_processed),
    ("torn", half_a_transaction),
    ("torn", half_of_one_that_died),
    ("torn", an_aborted_transaction),
    ("read before commit", read_before_the_commit),
    ("vacuous", most_commits_failed),
    ("vacuous", nobody_committed),
]


@pytest.mark.parametrize(("kind", "spoil"), BAD, ids=[spoil.__name__ for _, spoil in BAD])
def test_a_bad_history_is_found(kind: str, spoil: Callable[[Histories], None]) -> None:
    histories = good()
    spoil(histories)
    assert kind in problems(checked(histories))


def test_every_kind_has_a_bad_history() -> None:
    assert {kind for kind, _ in BAD} == {*CHECKS, "vacuous"}


@pytest.mark.parametrize("kind", CHECKS)
def test_a_check_that_saw_nothing_fails(kind: str) -> None:
    report = check([], [kind])
    assert problems(report) == ["vacuous"]
    assert repr(kind) in str(report)


def test_a_line_that_was_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    histories = good()
    for process, events in histories.items():
        lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        (tmp_path / f"{process}.jsonl").write_bytes(lines + (b'{"process":"a","ki' if process == "a" else b""))
    assert sorted(load(tmp_path), key=lambda events: events[0].process) == [histories[one] for one in sorted(histories)]
