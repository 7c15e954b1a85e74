"""Transactions whose committer dies, fails or is interrupted: all or nothing, whoever looks, however.

That every call of the files seam may be the last one, or fail, is tested in `test_stop_at_every_call` and
`test_failing_calls`, transactions among their workloads. Here is what lies between two calls, what a retry finds, and
what those see who had the bus open all the time.
"""

# ruff: noqa: PT012 - what raises is the end of a block

from __future__ import annotations

import errno
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any
from unittest import mock

import pytest

from streamlite import Bus, Consumer, Delivery, Producer, TopicPartition, commit, errors, transaction
from streamlite.counters import FLAGS, WRITING
from streamlite.files.memory import MemoryFiles
from streamlite.partition import Partition
from streamlite.testing.clock import VirtualClock
from tests.crash.faulty import SYNCING, Call, FaultyFiles, Plan, Stopped, kill, open_over
from tests.crash.story import PATIENCE

IN = TopicPartition("in", 0)
T, U, V = TopicPartition("t", 0), TopicPartition("t", 1), TopicPartition("u", 0)
ALL = (T, U, V)


class Interrupted(BaseException):
    """What a signal handler raises."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def _open(files: FaultyFiles, **options: Any) -> Bus:
    return open_over(files, **{"sync": "never", "clock": VirtualClock(), "lock_timeout": 2.0, **options})


def _topics(bus: Bus) -> None:
    """What a transaction here writes to, and one that was committed before; `in` has messages to be read."""
    bus.create_topic("in")
    bus.create_topic("t", partitions=2)
    bus.create_topic("u")
    with bus.producer() as producer:
        producer.send_many("in", [b"%d" % at for at in range(9)]).result(timeout=PATIENCE)
        with _consumer(bus) as consumer, producer.transaction(consumer) as tx:
            _send(tx, consumer, 0)


def _consumer(bus: Bus) -> Consumer:
    return bus.consumer("in", group="g", auto_commit=False)


def _send(tx: Any, consumer: Consumer, number: int) -> list[Delivery]:
    """What each transaction does: one message read, one sent to each partition."""
    found = consumer.poll(timeout=PATIENCE, max_messages=1)
    assert [message.offset for message in found] == [number]
    return [tx.send(tp.topic, b"%d" % number, partition=tp.partition) for tp in ALL]


def _transact(producer: Producer, consumer: Consumer, number: int) -> list[Delivery]:
    with producer.transaction(consumer) as tx:
        return _send(tx, consumer, number)


def _seen(bus: Bus) -> dict[TopicPartition, int]:
    """How many messages each partition has; `in` stands for the group's offset. Content is what it must be."""
    found = {}
    for tp in ALL:
        values = [message.value for message in bus.topic(tp.topic).read(partition=tp.partition)]
        assert values == [b"%d" % at for at in range(len(values))], (tp, values)
        found[tp] = len(values)
    return found | {IN: bus.group("g").committed.get(IN, 0)}


def _transactions(bus: Bus) -> int:
    """How many are there, of none a part."""
    found = _seen(bus)
    assert len(set(found.values())) == 1, found
    return found[IN]


# -- a committer that dies between two calls ---------------------------------------------------------------------------


@contextmanager
def _dying_at_publication(files: FaultyFiles, at: int) -> Iterator[None]:
    """Its process ends before the `at`-th partition shows its part; the record is written."""
    publish, count = commit._Tail.publish, itertools.count(1)

    def dying(tail: commit._Tail) -> None:
        if next(count) == at:
            files.stop()
            raise Stopped("before a publication")
        publish(tail)

    with mock.patch.object(commit._Tail, "publish", dying):
        yield


def _dead_committer(inner: MemoryFiles, at: int, sync: str = "never") -> None:
    """A process that committed one transaction, and died in its second after the commit point."""
    files = FaultyFiles(inner)
    bus = _open(files, sync=sync)
    _topics(bus)
    _die(bus, files, at)


def _die(bus: Bus, files: FaultyFiles, at: int) -> None:
    with bus.producer() as producer, _dying_at_publication(files, at), pytest.raises(Stopped):
        consumer = _consumer(bus)
        _transact(producer, consumer, 1)
    kill(bus)


PUBLICATIONS = [1, 2, 3, 4]
"""Of three partitions and the group's offsets."""


@pytest.mark.parametrize("sync", ["never", "interval", "always"])
@pytest.mark.parametrize("at", PUBLICATIONS)
def test_what_was_committed_is_there_for_the_next_opener(at: int, sync: str) -> None:
    inner = MemoryFiles()
    _dead_committer(inner, at, sync)
    bus = _open(FaultyFiles(inner))
    assert _transactions(bus) == 2
    with bus.producer() as producer, _consumer(bus) as consumer:
        assert [delivery.result().offset for delivery in _transact(producer, consumer, 2)] == [2, 2, 2]
    assert _transactions(bus) == 3
    bus.close()
    bus = _open(FaultyFiles(inner))
    assert _transactions(bus) == 3
    bus.close()


LOOKS: dict[str, Callable[[Bus, TopicPartition], int]] = {
    "read": lambda bus, tp: len(list(bus.topic(tp.topic).read(partition=tp.partition))),
    "end_offsets": lambda bus, tp: bus.topic(tp.topic).end_offsets()[tp],
    "consumer.end_offsets": lambda bus, tp: _apart(bus, tp, lambda one: one.end_offsets([tp])[tp]),
    "consumer.lag": lambda bus, tp: _apart(bus, tp, lambda one: one.lag()[tp]),
    "poll": lambda bus, tp: _apart(bus, tp, lambda one: len(one.poll(timeout=1.0))),
    "columns": lambda bus, tp: sum(
        len(one.offsets) for one in bus.topic(tp.topic).read_columns(partition=tp.partition)
    ),
}


def _apart(bus: Bus, tp: TopicPartition, ask: Callable[[Consumer], int]) -> int:
    with bus.consumer() as consumer:
        consumer.assign([tp])
        return ask(consumer)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("at", PUBLICATIONS)
def test_who_had_the_bus_open_sees_it_by_just_looking(at: int, look: str) -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    witness = _open(FaultyFiles(inner))
    assert _transactions(witness) == 1
    _die(bus, files, at)
    assert {tp: LOOKS[look](witness, tp) for tp in ALL} == dict.fromkeys(ALL, 2)
    witness.close()


@pytest.mark.parametrize("look", ["committed", "group", "reset", "new member", "lag"])
@pytest.mark.parametrize("at", PUBLICATIONS)
def test_who_asks_for_the_offsets_sees_them_too(at: int, look: str) -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    witness = _open(FaultyFiles(inner))
    assert witness.group("g").committed == {IN: 1}
    _die(bus, files, at)
    if look == "committed":
        with witness.consumer("u", group="g") as consumer:
            assert consumer.committed(IN) == 2
    elif look == "group":
        assert witness.group("g").committed == {IN: 2}
    elif look == "lag":
        assert witness.group("g").lag[IN] == 7
    elif look == "reset":
        witness.reset_offsets("g", "in", shift=1)
        assert witness.group("g").committed == {IN: 3}
    else:
        with _consumer(witness) as consumer:
            assert consumer.poll(timeout=PATIENCE, max_messages=1)[0].offset == 2
    witness.close()


@pytest.mark.parametrize("at", PUBLICATIONS)
def test_a_consumer_that_waits_gets_it_though_nobody_writes(at: int) -> None:
    """It waits already when the committer dies, and nothing rings for it."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    witness = open_over(FaultyFiles(inner), sync="never", lock_timeout=2.0)
    found: dict[TopicPartition, list[Any]] = {}
    begun = threading.Event()

    def wait_for_all() -> None:
        with witness.consumer("t", "u") as consumer:
            while any(len(found.get(tp, ())) < 2 for tp in ALL):
                for message in consumer.poll(timeout=PATIENCE):
                    found.setdefault(TopicPartition(message.topic, message.partition), []).append(message.value)
                if all(tp in found for tp in ALL):
                    begun.set()

    waiting = threading.Thread(target=wait_for_all, daemon=True)
    waiting.start()
    assert begun.wait(PATIENCE)
    _die(bus, files, at)
    waiting.join(PATIENCE)
    assert found == {tp: [b"0", b"1"] for tp in ALL}
    witness.close()


@pytest.mark.parametrize("at", PUBLICATIONS)
def test_who_writes_next_writes_behind_it(at: int) -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    witness = _open(FaultyFiles(inner))
    _die(bus, files, at)
    with witness.producer() as producer:
        for tp in ALL:
            sent = producer.send(tp.topic, b"2", partition=tp.partition)
            assert sent.result(timeout=PATIENCE).offset == 2
    assert _seen(witness) == {**dict.fromkeys(ALL, 3), IN: 2}
    witness.close()


@pytest.mark.parametrize("recovered", [False, True])
def test_who_settles_it_calls_it_safe_only_with_its_record(recovered: bool) -> None:
    """The partition's data was synced, the record was not: a sync of the partition brings that to the device first."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync="interval", sync_interval_ms=100_000)
    _topics(bus)
    bus.sync()
    others = FaultyFiles(inner)
    witness = _open(others) if not recovered else bus
    _die(bus, files, 1)
    if recovered:
        witness = _open(others)
    assert _transactions(witness) == 2
    others.calls.clear()
    witness._engine.registry.get("t").partitions[0].sync()
    synced = [call.path.split("/")[1] for call in others.calls if call.name == "sync" and call.path.endswith(".log")]
    assert synced == ["__transactions", "t"]
    witness.close()


@pytest.mark.parametrize("at", PUBLICATIONS)
@pytest.mark.parametrize("dies_again", [1, 2, 3, 4])
def test_who_settles_it_in_his_own_commit_may_die_too(at: int, dies_again: int) -> None:
    inner = MemoryFiles()
    files, second = FaultyFiles(inner), FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    other, witness = _open(second), _open(FaultyFiles(inner))
    _die(bus, files, at)
    with other.producer() as producer, _dying_at_publication(second, dies_again), pytest.raises(Stopped):
        _transact(producer, _consumer(other), 2)
    kill(other)
    assert _transactions(witness) == 3
    witness.close()


def test_a_new_owner_goes_on_from_no_older_offset_because_somebody_was_stopped() -> None:
    """Between a commit that is not published and who asks for it stands one who holds the lock and does nothing."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    witness = _open(FaultyFiles(inner), lock_timeout=0.05)
    _die(bus, files, 1)
    stopped = FaultyFiles(inner).lock("topics/__offsets/0/lock")
    assert stopped.acquire()
    with pytest.raises(errors.LockTimeoutError), _consumer(witness) as consumer:
        while not consumer.poll(timeout=PATIENCE, max_messages=1):
            pass
    stopped.release()
    with _consumer(witness) as consumer:
        assert consumer.poll(timeout=PATIENCE, max_messages=1)[0].offset == 2
    witness.close()


def test_where_a_group_begins_is_not_settled_because_somebody_was_stopped() -> None:
    """Its first commit is not published yet: a member that starts at the end must not begin there."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    witness = _open(FaultyFiles(inner), lock_timeout=0.05)
    with bus.producer() as producer, _dying_at_publication(files, 1), pytest.raises(Stopped):
        consumer = bus.consumer("in", group="new", auto_commit=False)
        with producer.transaction(consumer):
            assert consumer.poll(timeout=PATIENCE, max_messages=3)
    kill(bus)
    stopped = FaultyFiles(inner).lock("topics/__offsets/0/lock")
    assert stopped.acquire()
    settled_end = Partition.settled_end

    def and_then_he_goes_on(partition: Partition) -> int:
        end = settled_end(partition)
        stopped.release()
        return end

    with mock.patch.object(Partition, "settled_end", and_then_he_goes_on), suppress(errors.LockTimeoutError):
        witness.consumer("in", group="new", auto_commit=False, start="latest").close()
    stopped.release()
    with witness.consumer("in", group="new", auto_commit=False, start="latest") as member:
        assert member.poll(timeout=PATIENCE, max_messages=1)[0].offset == 3
    witness.close()


# -- a committer that takes its time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["topics/t/1/", "topics/__transactions/"])
def test_nobody_waits_for_a_committer_that_is_stopped(at: str) -> None:
    """With all locks held, in the middle of what it writes: readers go on, and see nothing of it."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    witness = _open(FaultyFiles(inner), lock_timeout=0.05)  # so long it may look whether it was a dead one
    reached, go_on = threading.Event(), threading.Event()

    def before_write(path: str, data: bytes, position: int) -> None:
        if path.startswith(at) and path.endswith(".log"):
            reached.set()
            assert go_on.wait(PATIENCE)

    with bus.producer() as producer, _consumer(bus) as consumer, witness.consumer("t", "u") as reader:
        files.before_write = before_write
        committing = threading.Thread(target=lambda: _transact(producer, consumer, 1), daemon=True)
        committing.start()
        assert reached.wait(PATIENCE)
        found = []
        while batch := reader.poll():
            found += [message.value for message in batch]
        assert found == [b"0"] * 3
        for tp in ALL:
            assert [message.value for message in witness.topic(tp.topic).read(partition=tp.partition)] == [b"0"]
            assert witness.topic(tp.topic).end_offsets()[tp] == 1
        files.before_write = lambda path, data, position: None
        go_on.set()
        committing.join(PATIENCE)
        assert _transactions(witness) == 2
        assert [message.value for message in reader.poll(timeout=PATIENCE)] == [b"1"] * 3
    bus.close()
    witness.close()


def test_no_reader_sees_a_part_of_a_transaction_in_a_partition() -> None:
    """While transactions of several batches and segments are written, readers look as often as they can."""
    inner = MemoryFiles()
    bus, witness = _open(FaultyFiles(inner)), _open(FaultyFiles(inner))
    bus.create_topic("many", segment_bytes=3_000)
    size, total = 7, 60
    looked: list[int] = []

    def look() -> None:
        with witness.consumer("many") as consumer:
            seen = 0
            while seen < size * total:
                seen += len(consumer.poll(max_messages=100_000))
                looked.append(seen)
                looked.append(sum(witness.topic("many").end_offsets().values()))
                looked.append(len(list(witness.topic("many").read())))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    with bus.producer(batch_bytes=600) as producer:
        for number in range(total):
            with producer.transaction() as tx:
                for _ in range(size):
                    tx.send("many", b"%d" % number * 100)
    looking.join(PATIENCE)
    assert not looking.is_alive()
    assert [count for count in looked if count % size] == []
    assert len(set(looked)) > 3  # or nobody looked meanwhile
    bus.close()
    witness.close()


# -- a committer that dies before the commit point ---------------------------------------------------------------------


def _leave_tails(bus: Bus, files: FaultyFiles) -> None:
    """Die in a second transaction with everything written but its record."""
    plan = Plan(1, looks_at=lambda call: call.name == "write" and call.path.startswith("topics/__transactions/"))
    with bus.producer() as producer:
        consumer = _consumer(bus)
        files.plan = plan
        with pytest.raises(Stopped):
            _transact(producer, consumer, 1)
    kill(bus)


def test_its_number_is_used_again_and_it_does_not_come_back() -> None:
    """The next transaction takes the number that the dead one's batches bear, and writes to another partition."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    witness = _open(FaultyFiles(inner))
    witness.create_topic("other")
    _leave_tails(bus, files)
    slot = witness._engine.registry.get("t").partitions[0].slot
    assert slot.get(FLAGS) & WRITING
    with witness.producer() as producer:
        for number in range(3):
            with producer.transaction() as tx:
                tx.send("other", b"%d" % number)
    assert slot.get(FLAGS) & WRITING  # nobody has looked there
    assert _transactions(witness) == 1
    assert len(list(witness.topic("other").read())) == 3
    witness.close()


def test_its_number_is_used_again_for_the_same_partitions() -> None:
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files)
    _topics(bus)
    witness = _open(FaultyFiles(inner))
    _leave_tails(bus, files)
    with witness.producer() as producer:
        with producer.transaction() as tx:
            tx.send("t", b"1", partition=1)
        with _consumer(witness) as consumer, producer.transaction(consumer) as tx:
            found = consumer.poll(timeout=PATIENCE, max_messages=1)
            assert found[0].offset == 1
            for tp in (T, V):
                tx.send(tp.topic, b"1", partition=tp.partition)
    assert _transactions(witness) == 2
    witness.close()


def test_a_recovery_after_each_death_is_the_same_however_often_it_is_killed() -> None:
    """Both kinds of tails, looked at by openers that die at each of their calls."""
    for leave in (_leave_tails, lambda bus, files: _die(bus, files, 2)):
        inner = MemoryFiles()
        files = FaultyFiles(inner)
        bus = _open(files)
        _topics(bus)
        leave(bus, files)
        expected = 1 if leave is _leave_tails else 2
        for at in range(1, 1_000):
            opener = FaultyFiles(inner, Plan(at, short=True))
            try:
                bus = _open(opener)
                assert _transactions(bus) == expected
            except Stopped:
                opener.forget_stores()
                continue
            kill(bus)
            break
        assert at > 20


# -- calls that fail ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("sync", ["never", "interval", "always"])
def test_after_a_failed_commit_the_same_can_be_tried_again(sync: str, fault: int) -> None:
    """Each call but syncs fails once: an error, nothing there, the consumer back; then it goes through, once."""
    for at in range(1, 1_000):
        inner = MemoryFiles()
        files = FaultyFiles(inner)
        bus = _open(files, sync=sync, sync_interval_ms=100_000)
        _topics(bus)
        with bus.producer() as producer, _consumer(bus) as consumer:
            files.plan = Plan(at, fault, short=True, looks_at=lambda call: call.name not in {*SYNCING, "release"})
            sent: list[Delivery] = []
            try:
                sent = _transact(producer, consumer, 1)
            except errors.StreamliteError:
                assert _transactions(bus) == 1, files.hits
                files.heal()
                sent = _transact(producer, consumer, 1)
            files.heal()
            assert [delivery.result().offset for delivery in sent] == [1, 1, 1]
        assert _transactions(bus) == 2, files.hits
        bus.close()
        bus = _open(FaultyFiles(inner))
        assert _transactions(bus) == 2, files.hits
        bus.close()
        if not files.hits:
            break
    assert at > 5


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_a_commit_whose_sync_fails_did_nothing(sync: str) -> None:
    """Of each partition in turn. That one takes no more writes until it was recovered; the others do."""
    for at, tp in enumerate((TopicPartition("__offsets", 0), *ALL), 1):
        inner = MemoryFiles()
        files = FaultyFiles(inner)
        bus = _open(files, sync=sync, sync_interval_ms=100_000)
        assert bus._engine.syncer is not None
        bus._engine.syncer.worker.stop()  # its first pass may come late, and would meet the failure
        _topics(bus)
        with bus.producer() as producer, _consumer(bus) as consumer:
            path = f"topics/{tp.topic}/{tp.partition}/"
            files.plan = Plan(1, errno.EIO, looks_at=lambda call, path=path: call.name == "sync" and path in call.path)
            with pytest.raises(errors.StorageError, match="as planned"), producer.transaction(consumer) as tx:
                sent = _send(tx, consumer, 1)
            assert files.hits, (at, tp)
            files.heal()
            assert all(isinstance(delivery.exception(), errors.StorageError) for delivery in sent)
            assert _transactions(bus) == 1
            with pytest.raises(errors.StorageError, match="takes no writes"), producer.transaction(consumer) as tx:
                _send(tx, consumer, 1)
            for other in ALL:
                if other != tp:
                    with producer.transaction() as tx:
                        tx.send(other.topic, b"1", partition=other.partition)
        before = _seen(bus)
        bus.close()
        bus = _open(FaultyFiles(inner))
        assert _seen(bus) == before
        with bus.producer() as producer, producer.transaction() as tx:
            for other in ALL:
                tx.send(other.topic, b"%d" % before[other], partition=other.partition)
        assert _seen(bus) == {other: before[other] + 1 for other in ALL} | {IN: 1}
        bus.close()


def test_what_a_failed_sync_left_is_written_anew_after_its_records_are_safe() -> None:
    """An earlier transaction's record is not synced yet: in new files its data would be safe, and the record not."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync="interval", sync_interval_ms=100_000)
    _topics(bus)
    producer = bus.producer()
    files.plan = Plan(1, errno.EIO, looks_at=lambda call: call.name == "sync" and "topics/t/0/" in call.path)
    with pytest.raises(errors.StorageError), producer.transaction() as tx:
        tx.send("t", b"never", partition=0)
    kill(bus)
    files = FaultyFiles(inner)
    bus = _open(files, sync="interval", sync_interval_ms=100_000)
    assert _transactions(bus) == 1
    synced = [call.path for call in files.calls if call.name == "sync"]
    records = next(at for at, path in enumerate(synced) if path.startswith("topics/__transactions/0/"))
    assert records < next(at for at, path in enumerate(synced) if path.startswith("topics/t/0/"))
    bus.close()


def test_a_record_whose_sync_fails_is_told_and_visible() -> None:
    """At level "always": the commit stands, as a message does that was written and not synced."""
    inner = MemoryFiles()
    files = FaultyFiles(inner)
    bus = _open(files, sync="always")
    _topics(bus)
    with bus.producer() as producer, _consumer(bus) as consumer:
        files.plan = Plan(1, errno.EIO, looks_at=lambda call: call.name == "sync" and "/__transactions/" in call.path)
        sent: list[Delivery] = []
        with pytest.raises(errors.StorageError), producer.transaction(consumer) as tx:
            sent += _send(tx, consumer, 1)
        files.heal()
        assert all(isinstance(delivery.exception(), errors.StorageError) for delivery in sent)
        assert _transactions(bus) == 2
        with pytest.raises(errors.StorageError), producer.transaction() as tx:
            tx.send("t", b"no record can be written", partition=0)
        assert _transactions(bus) == 2
    bus.close()
    bus = _open(FaultyFiles(inner))
    assert _transactions(bus) == 2
    bus.close()


# -- signal handlers that raise ----------------------------------------------------------------------------------------


def test_what_is_raised_at_any_call_of_a_commit_tears_nothing() -> None:
    for at in range(1, 1_000):
        files = FaultyFiles(MemoryFiles())
        bus = _open(files)
        _topics(bus)
        count = itertools.count(1)

        def before(call: Call, count: Iterator[int] = count, at: int = at) -> None:
            if next(count) == at:
                raise Interrupted

        ended = _interrupted(bus, lambda files=files, before=before: setattr(files, "before", before), files)
        bus.close()
        if ended:
            break
    assert at > 10


def test_what_is_raised_at_any_line_of_a_commit_tears_nothing() -> None:
    watched = {commit.__file__, transaction.__file__}
    for at in range(1, 1_000):
        files = FaultyFiles(MemoryFiles())
        bus = _open(files)
        _topics(bus)
        count = itertools.count(1)

        def trace(
            frame: FrameType, event: str, arg: object, count: Iterator[int] = count, at: int = at
        ) -> Callable[..., Any] | None:
            if frame.f_code.co_filename not in watched:
                return None
            if event == "line" and next(count) == at:
                sys.settrace(None)
                raise Interrupted(f"line {frame.f_lineno} of {frame.f_code.co_name}")
            return trace

        ended = _interrupted(bus, lambda trace=trace: sys.settrace(trace), files)
        bus.close()
        if ended:
            break
    assert at > 100


def _interrupted(bus: Bus, begin: Callable[[], object], files: FaultyFiles) -> bool:
    """Leave a block after `begin`; whether that went through. Either way it happened or it did not, and all goes on."""
    why: BaseException | None = None
    tracer = sys.gettrace()
    with bus.producer() as producer, _consumer(bus) as consumer:
        tx = producer.transaction(consumer)
        tx.__enter__()
        sent = _send(tx, consumer, 1)
        begin()
        try:
            tx.__exit__(None, None, None)
        except Interrupted as error:
            why = error
        finally:
            sys.settrace(tracer)
            files.before = lambda call: None
        with suppress(errors.TransactionError):
            tx.abort()  # where not even the end was begun
        done = _transactions(bus)
        assert done in (1, 2), why
        for delivery in sent:
            assert delivery.done(), why
            assert (delivery.exception() is None) <= (done == 2), why
        with producer.transaction(consumer) as following:
            found = consumer.poll(timeout=PATIENCE, max_messages=1)
            assert [message.offset for message in found] == [done], why
            for tp in ALL:
                following.send(tp.topic, b"%d" % done, partition=tp.partition)
        assert _transactions(bus) == done + 1, why
    return why is None
