"""A named producer against a model: random sends, repeats, transactions, failures, openings and shrinking logs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import streamlite
from streamlite import Bus, Producer, errors
from streamlite.testing.clock import VirtualClock

PATIENCE = 20.0
WINDOW = 4

sequence = st.integers(0, 30)
step = st.one_of(
    st.tuples(st.just("send"), st.lists(sequence, min_size=1, max_size=5)),
    st.tuples(st.just("commit"), st.lists(sequence, min_size=1, max_size=5)),
    st.tuples(st.just("abort"), st.lists(sequence, min_size=1, max_size=8)),
    st.tuples(st.just("go on"), st.integers(1, 6)),
    st.tuples(st.sampled_from(["open", "reopen", "other", "truncate", "compact", "flush"]), st.none()),
)


class Model:
    """What is stored, by sequence. What an open transaction holds counts as that, and is in no log to be found in."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        self.end = 0

    def expect(self, number: int, staged: list[int]) -> str:
        known = sorted([*self.offsets, *staged])
        if number > (known[-1] if known else -1):
            return "new"
        if number in known[-WINDOW:]:
            return "repeat"
        return "perhaps a repeat" if number in known else "too low"


class Run:
    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.topic = bus.create_topic("t", segment_bytes=400, cleanup="compact,delete")
        self.model = Model()
        self.producer: Producer = bus.producer(name="n")

    def send(self, by: Any, numbers: list[int], *, commits: bool) -> None:
        model, staged, sent = self.model, [], []
        for number in numbers:
            expected = model.expect(number, staged)
            try:
                delivery = by.send("t", b"%d" % number, key=b"k%d" % (number % 3), sequence=number)
            except errors.ConfigError:
                assert expected in ("too low", "perhaps a repeat"), (number, expected)
                continue
            assert expected != "too low", number
            if expected == "new":
                staged.append(number)
            sent.append((number, delivery))
        self.sent = sent
        self.staged = staged if commits else []

    def settle(self) -> None:
        model = self.model
        for number in self.staged:
            model.offsets[number] = model.end
            model.end += 1
        for number, delivery in self.sent:
            assert delivery.result(timeout=PATIENCE).offset == model.offsets[number], number

    def do(self, what: str, numbers: Any) -> None:
        if what == "go on":
            last = max(self.model.offsets, default=-1)
            what, numbers = "send", list(range(last + 1, last + 1 + numbers))
        if what == "send":
            self.send(self.producer, numbers, commits=True)
            self.settle()
        elif what == "commit":
            with self.producer.transaction() as tx:
                self.send(tx, numbers, commits=True)
            self.settle()
        elif what == "abort":
            with self.producer.transaction() as tx:
                self.send(tx, numbers, commits=False)
                tx.abort()
        elif what == "reopen":
            self.producer.close()
            self.producer = self.bus.producer(name="n")
        elif what == "open":
            self.producer = self.bus.producer(name="n")
        elif what == "other":
            with self.bus.producer() as other:
                other.send("t", b"", key=b"other").result(timeout=PATIENCE)
            self.model.end += 1
        elif what == "truncate":
            self.topic.truncate_before(0, self.model.end)
        elif what == "compact":
            self.bus.maintain()
        else:
            self.producer.flush()
        last = self.producer.last_sequence("t", 0)
        assert last == max(self.model.offsets, default=None), (what, last)


@settings(max_examples=150)
@given(st.lists(step, max_size=25))
@example([("abort", [0, 1, 2, 3, 4, 0])])
def test_each_sequence_is_stored_once_and_repeats_are_answered(steps: list[tuple[str, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamlite.numbering.WINDOW", WINDOW)
        patch.setattr("streamlite.named.WINDOW", WINDOW)
        with streamlite.open(":memory:", clock=VirtualClock()) as bus:
            run = Run(bus)
            for what, numbers in steps:
                run.do(what, numbers)
