"""A named producer whose process is killed, or whose disk fails, at any call: each sequence is stored once.

A workload sends sequences 0, 1, 2 ... to each partition; the value says which. Whoever has the name afterwards either
goes on after `last_sequence`, or sends everything again: both must come to the same log.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from streamlite import Bus, Producer, TopicPartition, errors
from streamlite.files.memory import MemoryFiles
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import (
    CHANGING,
    STOP,
    SYNCING,
    Call,
    FaultyFiles,
    Plan,
    State,
    States,
    Stopped,
    clone,
    file_at,
    kill,
    open_over,
)
from tests.crash.story import PATIENCE

SAMPLES = int(os.environ.get("STREAMLITE_STOPS", "12"))
"""Of a workload's calls so many are looked at, or some times as many; a large number for every single one."""
PARTITIONS = 2
SMALL = {"segment_bytes": 400}
AFTER = 4
"""Sequences that whoever comes after sends to each partition, beyond those of the workload."""


class Ingest:
    """Sends under a name, and knows how far it is."""

    def __init__(self, bus: Bus, *, given: bool) -> None:
        self.bus = bus
        self.given = given
        self.producer: Producer | None = None
        self.next = [0] * PARTITIONS
        """The first sequence not sent yet."""
        self.acked = [-1] * PARTITIONS

    def noted(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(self.acked), tuple(self.next)

    def open(self) -> None:
        self.producer = self.bus.producer(name="n")

    def send(self, *counts: int) -> None:
        """So many to each partition: one each, then the others in one batch. No more is sent after a failure."""
        assert self.producer is not None
        self._send(self.producer, tuple(min(count, 1) for count in counts))
        self.producer.flush()
        self._acknowledged()
        self._send(self.producer, tuple(max(count - 1, 0) for count in counts))
        self.producer.flush()
        self._acknowledged()

    def transact(self, *counts: int) -> None:
        assert self.producer is not None
        with self.producer.transaction() as tx:
            self._send(tx, counts)
        self._acknowledged()

    def _send(self, by: Any, counts: tuple[int, ...]) -> None:
        for partition, count in enumerate(counts):
            for _ in range(count):
                number = self.next[partition]
                self.next[partition] = number + 1
                put(by, partition, number, given=self.given)

    def _acknowledged(self) -> None:
        self.acked = [number - 1 for number in self.next]


def put(by: Any, partition: int, number: int, *, given: bool) -> Any:
    """Each has a key of its own, so that compaction keeps it."""
    sequence = number if given else None
    return by.send("t", b"%d" % number, key=b"%d" % number, partition=partition, sequence=sequence)


Workload = Callable[[Ingest], None]


def sends(ingest: Ingest) -> None:
    ingest.bus.create_topic("t", partitions=PARTITIONS, **SMALL)
    ingest.open()
    for _ in range(3):
        ingest.send(3, 1)
    ingest.send(9, 0)


def openings(ingest: Ingest) -> None:
    ingest.bus.create_topic("t", partitions=PARTITIONS, **SMALL)
    for _ in range(3):
        ingest.open()
        ingest.send(2, 1)
        assert ingest.producer is not None
        ingest.producer.close()
        ingest.open()  # and the one before is fenced
        ingest.send(1, 1)


def transactions(ingest: Ingest) -> None:
    ingest.bus.create_topic("t", partitions=PARTITIONS, **SMALL)
    ingest.open()
    ingest.send(1, 1)
    ingest.transact(3, 2)
    ingest.transact(0, 2)
    ingest.send(2, 0)


def compacting(ingest: Ingest) -> None:
    topic = ingest.bus.create_topic("t", partitions=PARTITIONS, cleanup="compact", **SMALL)
    ingest.open()
    ingest.send(4, 3)
    ingest.send(4, 0)
    topic.alter(segment_bytes=4000)  # several segments become one, which says of no batch whose it was
    ingest.bus.maintain()
    ingest.send(2, 0)
    ingest.transact(2, 2)
    ingest.bus.maintain()


def truncating(ingest: Ingest) -> None:
    topic = ingest.bus.create_topic("t", partitions=PARTITIONS, **SMALL)
    ingest.open()
    for _ in range(4):
        ingest.send(3, 1)
    topic.truncate_before(0, 7)
    ingest.send(1, 1)
    topic.truncate_before(0, 13)
    assert ingest.producer is not None
    ingest.producer.close()


WORKLOADS: list[Workload] = [sends, openings, transactions, compacting, truncating]
SHRINKING = (truncating,)


class Ways(NamedTuple):
    """How the next one goes on: whether the sequences are given, and whether all are sent again."""

    given: bool
    again: bool


WAYS = [Ways(given=False, again=False), Ways(given=True, again=False), Ways(given=True, again=True)]


def go_on(bus: Bus, ways: Ways, upto: list[int], acked: tuple[int, ...]) -> None:
    """Under the same name, until each partition has its sequences below `upto`."""
    with bus.producer(name="n") as producer:
        _complete(producer, ways, upto, acked)


def _complete(producer: Producer, ways: Ways, upto: list[int], acked: tuple[int, ...]) -> None:
    for partition, end in enumerate(upto):
        last = producer.last_sequence("t", partition)
        last = -1 if last is None else last
        assert acked[partition] <= last < end, (partition, acked, last)
        sent = [
            put(producer, partition, number, given=ways.given) for number in range(0 if ways.again else last + 1, end)
        ]
        offsets = [one.result(timeout=PATIENCE).offset for one in sent]
        assert offsets == list(range(end - len(offsets), end))
        assert producer.last_sequence("t", partition) == end - 1


def check(bus: Bus, upto: list[int], *, shrinks: bool) -> None:
    for partition, end in enumerate(upto):
        found = [int(message.value) for message in bus.topic("t").read(partition=partition)]
        start = bus.topic("t").beginning_offsets()[TopicPartition("t", partition)] if shrinks else 0
        assert found == list(range(start, end)), (partition, found)


def have_topic(bus: Bus, workload: Workload) -> None:
    bus.topic("t", partitions=PARTITIONS)


def _states(workload: Workload, sync: str, *, given: bool) -> tuple[Ingest, list[State]]:
    ingests: list[Ingest] = []
    states = States(MemoryFiles(), lambda: ingests[0].noted() if ingests else ((-1,) * PARTITIONS, (0,) * PARTITIONS))
    bus = open_over(states.files, sync=sync, sync_interval_ms=10, clock=VirtualClock())
    ingests.append(Ingest(bus, given=given))
    workload(ingests[0])
    bus.close()
    return ingests[0], states.found


@pytest.mark.parametrize("sync", ["never", "interval", "always"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_whoever_comes_after_a_killed_one_stores_each_sequence_once(workload: Workload, sync: str) -> None:
    for given in (False, True):
        ingest, states = _states(workload, sync, given=given)
        upto = [number + AFTER for number in ingest.next]
        assert len(states) > 20
        for number, state in _some(states, 2 * SAMPLES):
            acked, _ = state.note
            ways = WAYS[1 + number % 2] if given else WAYS[0]
            try:
                _check_state(state, workload, ways, upto, acked)
            except BaseException:
                print(f"state {number} of {len(states)}, before {state.call}; {ways}, {state.note}")
                raise


def _some(states: list[State], count: int) -> list[tuple[int, State]]:
    return list(enumerate(states))[:: max(1, len(states) // count) | 1]  # odd, so that all ways get their turn


def _check_state(state: State, workload: Workload, ways: Ways, upto: list[int], acked: tuple[int, ...]) -> None:
    files = clone(state.files)
    for _ in range(2):
        with open_over(FaultyFiles(files), sync="never", clock=VirtualClock()) as bus:
            have_topic(bus, workload)
            go_on(bus, ways, upto, acked)
            check(bus, upto, shrinks=workload in SHRINKING)
        acked = tuple(number - 1 for number in upto)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_another_process_takes_the_name_over(workload: Workload) -> None:
    """It has the bus open all the time."""
    calls = _calls(workload)
    for at in range(1, calls + 1, max(1, calls // SAMPLES)):
        ways = WAYS[at % 3]
        inner = MemoryFiles()
        witness = open_over(FaultyFiles(inner), sync="never", lock_timeout=5.0)
        files = FaultyFiles(inner)
        ingest = Ingest(open_over(files, sync="never", clock=VirtualClock()), given=ways.given)
        files.plan = Plan(at, short=True)
        with suppress(Stopped):
            workload(ingest)
        kill(ingest.bus)
        upto = [number + AFTER for number in ingest.next]
        try:
            have_topic(witness, workload)
            go_on(witness, ways, upto, tuple(ingest.acked))
            check(witness, upto, shrinks=workload in SHRINKING)
            witness.close()
        except BaseException:
            print(f"stopped in call {at} of {calls}, {files.hits[:1]}; {ways}, {ingest.noted()}")
            raise


def _calls(workload: Workload) -> int:
    files = FaultyFiles(MemoryFiles())
    with open_over(files, sync="never", clock=VirtualClock()) as bus:
        before = len(files.calls)
        workload(Ingest(bus, given=True))
        return len(files.calls) - before


# -- the machine stops -------------------------------------------------------------------------------------------------


def _machine_states(workload: Workload, sync: str, *, given: bool) -> tuple[Ingest, list[State]]:
    """As `_states`; noted with each is also how much of every log was synced."""
    ingests: list[Ingest] = []
    synced: dict[str, int] = {}
    states = States(MemoryFiles(), lambda: (ingests[0].noted(), tuple(synced.items())) if ingests else None)
    keep = states.files.before

    def before(call: Call) -> None:
        if ingests:
            keep(call)
        if call.name == "sync" and call.path.endswith((".log", ".new")):
            path = call.path.removesuffix(".new").removesuffix(".log") + ".log"
            with suppress(errors.StorageError):  # in memory a file keeps the name that it was made with
                synced[path] = file_at(states.inner, call.path).size()

    states.files.before = before
    bus = open_over(states.files, sync=sync, sync_interval_ms=10, clock=VirtualClock())
    assert bus._engine.syncer is not None
    bus._engine.syncer.worker.stop()
    ingests.append(Ingest(bus, given=given))
    workload(ingests[0])
    kill(bus)
    return ingests[0], [state for state in states.found if state.note is not None]


@pytest.mark.parametrize("sync", ["interval", "always"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_a_stop_of_the_machine_repeats_nothing(workload: Workload, sync: str) -> None:
    """What was not synced of any log is gone; at `always` nothing that was acknowledged is."""
    for given in (False, True):
        ingest, states = _machine_states(workload, sync, given=given)
        upto = [number + AFTER for number in ingest.next]
        lost = 0
        for number, state in _some(states, 2 * SAMPLES):
            (acked, _), sizes = state.note
            ways = WAYS[1 + number % 2] if given else WAYS[0]
            if sync == "interval":
                acked = (-1,) * PARTITIONS
            try:
                lost += _check_machine(state, workload, ways, upto, acked, sizes)
            except BaseException:
                print(f"state {number} of {len(states)}, before {state.call}; {ways}, {state.note}")
                raise
        assert lost or sync == "always"


def _check_machine(
    state: State, workload: Workload, ways: Ways, upto: list[int], acked: tuple[int, ...], sizes: tuple[Any, ...]
) -> int:
    """How many bytes of messages were lost."""
    files, kept, lost = clone(state.files), dict(sizes), 0
    for topic in ("t", "__meta", "__transactions"):
        for partition in range(PARTITIONS):
            with suppress(errors.StorageError):
                directory = f"topics/{topic}/{partition}"
                for name in [name for name in files.list(directory) if name.endswith(".log")]:
                    path = f"{directory}/{name}"
                    size = file_at(files, path).size()
                    file_at(files, path).truncate(min(kept.get(path, 0), size))
                    lost += size - file_at(files, path).size() if topic == "t" else 0
    with open_over(FaultyFiles(files, boot=2), sync="never", clock=VirtualClock()) as bus:
        have_topic(bus, workload)
        go_on(bus, ways, upto, acked)
        check(bus, upto, shrinks=workload in SHRINKING)
    return lost


# -- calls that fail ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A background thread that meets a fault says so; here that is thousands of lines."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def _any_but_syncs(call: Call) -> bool:
    return call.name not in SYNCING and call.name not in ("boot_id", "release")


FAULTS: dict[str, Plan] = {
    "EIO": Plan(1, errno.EIO, looks_at=_any_but_syncs),
    "EIO after half": Plan(1, errno.EIO, short=True, looks_at=lambda call: call.name in CHANGING),
    "no write, no cut": Plan(
        1, errno.EIO, lasting=True, short=True, looks_at=lambda call: call.name in ("write", "truncate")
    ),
    "disk full": Plan(
        1, errno.ENOSPC, lasting=True, short=True, looks_at=lambda c: c.name in ("write", "create", "make_dir")
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_after_a_failing_call_the_same_producer_goes_on(workload: Workload, fault: str) -> None:
    plan = FAULTS[fault]
    files = FaultyFiles(MemoryFiles(), plan._replace(at=1 << 60, fault=STOP))
    with open_over(files, sync="never", clock=VirtualClock()) as bus:
        files.count = 0
        workload(Ingest(bus, given=True))
        total = files.count
    for at in range(1, total + 1, max(1, total * 3 // SAMPLES)):
        _fail(workload, plan._replace(at=at), WAYS[at % 3])


def _fail(workload: Workload, plan: Plan, ways: Ways) -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = open_over(files, sync="never", clock=VirtualClock(), lock_timeout=2.0)
    ingest = Ingest(bus, given=ways.given)
    failure: BaseException | None = None
    files.count = 0
    files.plan = plan
    try:
        try:
            workload(ingest)
        except errors.StreamliteError as error:
            failure = error.with_traceback(None)
            gc.collect()
        files.heal()
        have_topic(bus, workload)
        if ingest.producer is None or ingest.producer._closed:
            ingest.open()
        assert ingest.producer is not None
        with suppress(errors.StreamliteError):
            ingest.producer.flush()  # what is still on its way
        upto = [number + AFTER for number in ingest.next]
        _complete(ingest.producer, ways, upto, tuple(ingest.acked))
        check(bus, upto, shrinks=workload in SHRINKING)
        ingest.producer.close()
        go_on(bus, ways, [number + 1 for number in upto], tuple(number - 1 for number in upto))
        bus.close()
        with open_over(FaultyFiles(inner), sync="never", clock=VirtualClock()) as bus:
            go_on(bus, ways, [number + 2 for number in upto], tuple(upto))
            check(bus, [number + 2 for number in upto], shrinks=workload in SHRINKING)
    except BaseException:
        print(f"call {plan.at}, {files.hits[:1]}: {failure!r}; {ways}, {ingest.noted()}")
        raise


@pytest.mark.parametrize("ways", WAYS[1:])
def test_what_a_failed_sync_left_is_not_stored_again(ways: Ways) -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = open_over(files, sync="always", clock=VirtualClock(), lock_timeout=2.0)
    ingest = Ingest(bus, given=True)
    bus.create_topic("t", partitions=PARTITIONS, **SMALL)
    ingest.open()
    ingest.send(2, 2)
    files.plan = Plan(1, errno.EIO, looks_at=lambda call: call.name == "sync" and call.path.startswith("topics/t/0"))
    with pytest.raises(errors.StorageError):
        ingest.send(2, 0)
    files.heal()
    assert ingest.producer is not None
    with pytest.raises(errors.StorageError, match="takes no writes"):
        ingest.producer.send("t", b"2", key=b"2", partition=0, sequence=2).result(timeout=PATIENCE)
    bus.close()
    with open_over(FaultyFiles(inner), sync="always", clock=VirtualClock()) as bus:
        go_on(bus, ways, [8, 8], (1, 1))
        check(bus, [8, 8], shrinks=False)
