"""Many processes on one directory: writers, takeover, stopped lock holders, forks, Ctrl-C and the end of a process.

The processes are this file, run as a script with an action's name; they talk to the test in lines. Nothing here waits
for time to pass: the tests wait for lines and for conditions, with a deadline.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import streamlite
from streamlite import Bus, Message, TopicPartition, errors

PATIENCE = 30.0
"""Seconds after which what should have come counts as missing; these machines are slow and shared."""

TP = TopicPartition("t", 0)
TP1 = TopicPartition("t", 1)

# --- the processes' side ------------------------------------------------------------------------------------------


def tell(*words: Any) -> None:
    """A line for the test."""
    print(json.dumps(words), flush=True)


def told() -> str:
    """A line from the test; "" when it wants this process to end."""
    return sys.stdin.readline().strip()


def write(directory: str, name: str, count: str, threads: str) -> None:
    """Send `count` values in each of `threads` threads, each thread by a producer of its own."""
    with streamlite.open(directory) as bus:
        topic = bus.topic("t")

        def run(thread: int) -> None:
            with bus.producer() as producer:
                for number in range(int(count)):
                    producer.send(topic, f"{name}.{thread}-{number}", partition=number % 2)

        running = [threading.Thread(target=run, args=(thread,)) for thread in range(int(threads))]
        tell("ready")
        told()
        for one in running:
            one.start()
        for one in running:
            one.join()


def die_in_a_write(directory: str, how: str, name: str) -> None:
    """Append one batch of three, and be killed (or stopped) in the call that writes it."""
    from streamlite.files.local import LocalFile

    whole = LocalFile.write

    def cut(self: Any, buffers: Any, position: int) -> None:
        if not self.path.endswith(".log"):
            whole(self, buffers, position)
            return
        if how != "before":
            data = b"".join(buffers)
            whole(self, [data[: len(data) // 2] if how == "half" else data], position)
        if how == "stopped":
            tell("stopped")
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        os.kill(os.getpid(), signal.SIGKILL)

    with streamlite.open(directory) as bus, bus.producer() as producer:
        producer.send_many("t", [f"{name}-{number}" for number in range(2)], partition=0).result()
        LocalFile.write = cut  # type: ignore[method-assign]
        producer.send_many("t", [f"{name}-{number}" for number in range(2, 5)], partition=0).result()
        tell("delivered")


def hold(path: str) -> None:
    """Hold a lock file's lock until told to let go."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    tell("held")
    told()


def change_topics(directory: str) -> None:
    """Do to topics what the test says."""
    with streamlite.open(directory) as bus:
        tell("ready")
        while line := told():
            what, name, *count = line.split()
            if what == "create":
                bus.create_topic(name, partitions=int(count[0]))
            elif what == "grow":
                bus.topic(name).increase_partitions(int(count[0]))
            elif what == "delete":
                bus.delete_topic(name)
            tell("done")


def die_changing_topics(directory: str, what: str) -> None:
    """Be killed in the middle of growing or deleting `t`: when the change is on disk and nobody was told of it."""
    from streamlite.files.local import LocalFiles

    def die(self: Any, path: str, *rest: Any) -> None:
        if path.startswith("topics"):
            os.kill(os.getpid(), signal.SIGKILL)

    with streamlite.open(directory) as bus:
        topic = bus.topic("t")
        if what == "grow":
            LocalFiles.sync_dir = die  # type: ignore[method-assign]
            topic.increase_partitions(8)
        else:
            LocalFiles.remove_tree = die  # type: ignore[method-assign]
            bus.delete_topic("t")


def member(directory: str, options: str) -> None:
    """A member of `g`: does what the test says, and tells what its callbacks were told."""
    given = json.loads(options)

    def note(what: str) -> Callable[..., None]:
        return lambda consumer, partitions: tell(what, [tp.partition for tp in partitions])

    callbacks = {f"on_{what}": note(what) for what in ("assign", "revoke", "lost")}
    with streamlite.open(directory) as bus, bus.consumer("t", group="g", **given, **callbacks) as consumer:
        tell("ready", sorted(tp.partition for tp in consumer.assignment()))
        while line := told():
            what, *words = line.split()
            try:
                if what == "poll":
                    tell("polled", [[m.partition, m.offset] for m in consumer.poll(float(words[0]))])
                elif what == "commit":
                    consumer.commit()
                    tell("committed")
                elif what == "loop":
                    for message in consumer:
                        tell("got", message.partition, message.offset)
            except errors.FencedError as error:
                tell("fenced", str(error))


def produce(directory: str, count: str) -> None:
    with streamlite.open(directory) as bus, bus.producer() as producer:
        for number in range(int(count)):
            producer.send("t", b"%d" % number, key=b"%d" % (number % 10))


def leave_without_closing(directory: str, how: str) -> None:
    """Send, hold it all back, and end."""
    bus = streamlite.open(directory)
    producer = bus.producer(linger_ms=60_000)
    for number in range(1000):
        producer.send("t", b"%d" % number)
    if how == "exit":
        sys.exit()
    if how == "error":
        raise ZeroDivisionError
    if how == "thread":
        threading.Thread(target=producer.send, args=("t", b"1000")).start()
    if how == "interrupt":
        tell("ready")
        told()
        signal.pause()


def poll_until_interrupted(directory: str) -> None:
    """Ctrl-C in a poll that blocks; then go on as if nothing had been."""
    with streamlite.open(directory) as bus, bus.consumer("t", group="g") as consumer:
        for blocks in (lambda: consumer.poll(None), lambda: next(iter(consumer)), consumer.wait_assigned):
            if blocks == consumer.wait_assigned:
                consumer.unsubscribe()
            tell("blocking")
            try:
                blocks()
            except KeyboardInterrupt:
                tell("interrupted")
        consumer.subscribe("t")
        tell("values", [message.value.decode() for message in consumer.poll(PATIENCE)])


class Alarm:
    """Raises `KeyboardInterrupt` at a random moment, again and again, but not where it would hit the test itself."""

    def __init__(self, seed: int = 0) -> None:
        self.armed = False
        self.count = 0
        signal.signal(signal.SIGALRM, self._ring)
        self._rng = random.Random(seed)

    def _ring(self, number: int, frame: object) -> None:
        if self.armed:
            self.armed = False
            self.count += 1
            raise KeyboardInterrupt

    def __call__(self, call: Callable[[], Any], within: float) -> Any:
        """What `call` returns, or `None` where it was interrupted."""
        try:
            self.armed = True
            signal.setitimer(signal.ITIMER_REAL, self._rng.uniform(1e-6, within))
            return call()
        except KeyboardInterrupt:
            return None
        finally:
            self.armed = False


def send_interrupted(directory: str, rounds: str) -> None:
    """Interrupted sends; at the end everything acknowledged is there, and nothing hangs."""
    alarm = Alarm()
    acknowledged = []
    with streamlite.open(directory, lock_timeout=5.0) as bus:
        producer = bus.producer()
        for number in range(int(rounds)):
            value = b"%d" % number

            def send(value: bytes = value) -> Any:
                return producer.send("t", value, partition=0).result(timeout=10)

            found = alarm(send, 0.0004)
            if found is not None:
                acknowledged.append([number, found.offset])
        producer.flush(timeout=10)
        tell("interrupted", alarm.count)
        tell("acknowledged", acknowledged)
        producer.close()


def poll_interrupted(directory: str, how: str) -> None:
    """Interrupted polls, or loops: every message reaches this process, whatever was interrupted."""
    alarm = Alarm()
    got = set()
    with streamlite.open(directory) as bus:
        with bus.consumer("t", group="g", auto_commit_interval_ms=1) as consumer:
            end = sum(consumer.end_offsets(consumer.assignment()).values())
            idle = 0
            while len(got) < end and idle < 200:
                if how == "poll":
                    found = alarm(lambda: consumer.poll(0.001, max_messages=3), 0.0004)
                    values = [message.value for message in found or []]
                    if found is None:
                        # What a poll returned to a call that was interrupted is not in our hands: begin where we were.
                        consumer.messages(timeout=0.0)
                else:
                    values = []

                    def loop() -> bool:
                        for message in consumer.messages(timeout=0.001):
                            values.append(message.value)  # noqa: B023 - called at once
                        return True

                    found = alarm(loop, 0.002)
                idle = idle + 1 if found is not None and not values else 0
                got.update(values)
        tell("interrupted", alarm.count)
        tell("missing", end - len(got))


def fork(directory: str) -> None:
    """Use every handle in forked children, while threads of the parent are at work; then go on in the parent."""
    bus = streamlite.open(directory)
    topic = bus.topic("t")
    producer, consumer, alone = bus.producer(), bus.consumer("t", group="g"), bus.consumer("t")
    stop = threading.Event()

    def work() -> None:
        with bus.producer() as mine:
            while not stop.is_set():
                mine.send(topic, b"work").result()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    delivery = producer.send(topic, b"before")
    uses: dict[str, Callable[[], Any]] = {
        "send": lambda: producer.send(topic, b"x"),
        "send_many": lambda: producer.send_many(topic, [b"x"]),
        "flush": producer.flush,
        "poll": consumer.poll,
        "loop": lambda: next(iter(consumer)),
        "commit": consumer.commit,
        "position": lambda: alone.position(TP),
        "read": lambda: list(topic.read()),
        "end_offsets": topic.end_offsets,
        "topic": lambda: bus.topic("t"),
        "create": lambda: bus.topic("u"),
        "group": lambda: bus.group("g"),
        "sync": bus.sync,
    }
    closes: list[Callable[[], Any]] = [producer.close, consumer.close, alone.close, bus.close]
    outcomes: dict[str, int] = {}
    for at in range(20):
        child = os.fork()
        if not child:
            signal.alarm(int(PATIENCE / 2))  # who hangs dies of it
            if at % 2:
                for close in closes:
                    close()
                sys.exit(0)
            wrong = [name for name, use in uses.items() if _outcome(use) != "ForkedError"]
            os.write(2, f"{wrong}\n".encode() if wrong else b"")
            os._exit(bool(wrong))
        _, status = os.waitpid(child, 0)
        kind = ("close" if at % 2 else "use") + f" {os.waitstatus_to_exitcode(status)}"
        outcomes[kind] = outcomes.get(kind, 0) + 1
    stop.set()
    for thread in threads:
        thread.join()
    delivery.result()
    producer.send(topic, b"after").result()
    members = [one.pid == os.getpid() for one in bus.group("g").members]
    consumer.poll()
    consumer.commit()
    bus.close()
    tell("outcomes", outcomes, members)


def _outcome(use: Callable[[], Any]) -> str:
    try:
        use()
    except Exception as error:  # noqa: BLE001 - its name is what is asked for
        return type(error).__name__
    return "nothing"


def multi(directory: str, method: str) -> None:
    """A bus is opened in the children, however they came about, and goes on in the parent."""
    with streamlite.open(directory) as bus, bus.producer() as producer:
        producer.send("t", b"parent").result()
        context: Any = multiprocessing.get_context(method)
        children = [context.Process(target=send_from_child, args=(directory, str(number))) for number in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(PATIENCE)
        producer.send("t", b"parent").result()
        tell("ended", [child.exitcode for child in children])


def send_from_child(directory: str, name: str) -> None:
    with streamlite.open(directory) as bus, bus.producer() as producer:
        producer.send("t", name).result()


# --- the test's side ----------------------------------------------------------------------------------------------


class Child:
    """A process that runs one of the actions above."""

    def __init__(self, action: Callable[..., None], *words: Any) -> None:
        self.name = action.__name__
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.name, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(streamlite.__file__).parents[1])},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self.errors = ""
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def line(self, word: str | None = None) -> list[Any]:
        """Its next line, or the next that begins with that word."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"{self.name} says nothing") from None
            if not line:
                self._readers[1].join(PATIENCE)
                raise AssertionError(f"{self.name} is gone ({self.process.wait()}): {self.errors}")
            found: list[Any] = json.loads(line)
            if word is None or found[0] == word:
                return found[1:] if word else found

    def lines_until(self, word: str) -> list[list[Any]]:
        """Its lines up to and with the next that begins with that word."""
        found = [self.line()]
        while found[-1][0] != word:
            found.append(self.line())
        return found

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_stopped(self) -> None:
        """Until SIGSTOP has had its effect."""
        wait_until(lambda: Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def end(self) -> int:
        """Let it end by itself; its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)
            self._readers[1].join(PATIENCE)
            raise AssertionError(f"{self.name} does not end: {self.errors}") from None
        self._readers[1].join(PATIENCE)
        return status

    def kill(self) -> None:
        """End it at once, whatever it does; nothing where it has ended."""
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


Start = Callable[..., Child]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "bus"


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children, and ends them all in the end."""
    children: list[Child] = []

    def start_one(action: Callable[..., None], *words: Any) -> Child:
        children.append(Child(action, *words))
        return children[-1]

    yield start_one
    for child in children:
        child.kill()


@pytest.fixture
def bus(directory: Path) -> Iterator[Bus]:
    with streamlite.open(directory) as bus:
        yield bus


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another process is about to bring about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)


def texts(messages: Any) -> list[str]:
    return [message.value.decode() for message in messages]


def whole(bus: Bus, partition: int = 0) -> list[Message]:
    """All of a partition; its offsets have no gap."""
    found = list(bus.topic("t").read(partition=partition))
    assert [message.offset for message in found] == list(range(len(found)))
    assert len(found) == bus.topic("t").end_offsets()[TopicPartition("t", partition)]
    return found


def put(bus: Bus, *values: Any, **options: Any) -> None:
    with bus.producer() as producer:
        for value in values:
            producer.send("t", value, **options).result(timeout=PATIENCE)


# --- writers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["interval", "never"])
def test_writers_of_many_processes_and_threads(directory: Path, start: Start, sync: str) -> None:
    count = 300
    with streamlite.open(directory, sync=sync) as bus:
        bus.topic("t", partitions=2, segment_bytes=8192)
        writers = [start(write, directory, f"w{number}", count, 2) for number in range(4)]
        for one in writers:
            one.line("ready")
        for one in writers:
            one.say("go")
        put(bus, *(f"here-{number}" for number in range(50)), partition=0)
        assert [one.end() for one in writers] == [0] * 4
        found = [texts(whole(bus, partition)) for partition in (0, 1)]
    for partition in (0, 1):
        by_sender: dict[str, list[int]] = {}
        for value in found[partition]:
            sender, _, number = value.partition("-")
            by_sender.setdefault(sender, []).append(int(number))
        here = by_sender.pop("here", [])
        assert here == (list(range(50)) if partition == 0 else [])
        assert len(by_sender) == 8
        assert all(numbers == list(range(partition, count, 2)) for numbers in by_sender.values())


def test_several_buses_of_one_process_write_like_several_processes(directory: Path) -> None:
    buses = [streamlite.open(directory) for _ in range(3)]
    buses[0].topic("t", segment_bytes=4096)

    def run(bus: Bus, name: int) -> None:
        with bus.producer() as producer:
            for number in range(500):
                producer.send("t", f"{name}-{number}")

    threads = [threading.Thread(target=run, args=(bus, name)) for name, bus in enumerate(buses)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [texts(whole(bus)) for bus in buses]
    assert found[0] == found[1] == found[2]
    for name in range(3):
        assert [value for value in found[0] if value.startswith(f"{name}-")] == [f"{name}-{n}" for n in range(500)]
    for bus in buses:
        bus.close()


@pytest.mark.parametrize("how", ["before", "half", "after"])
@pytest.mark.parametrize("asked", ["append", "read", "end", "poll"])
def test_a_writer_killed_inside_an_append_harms_nobody(
    bus: Bus, directory: Path, start: Start, how: str, asked: str
) -> None:
    bus.topic("t")
    put(bus, "first")
    consumer = bus.consumer("t")
    assert texts(consumer.poll()) == ["first"]
    child = start(die_in_a_write, directory, how, "w")
    assert child.end() == -signal.SIGKILL
    expected = ["first", "w-0", "w-1"] + (["w-2", "w-3", "w-4"] if how == "after" else [])
    if asked == "append":
        put(bus, "next")
        assert texts(whole(bus)) == [*expected, "next"]
    elif asked == "read":
        assert texts(bus.topic("t").read()) == expected
    elif asked == "end":
        assert bus.topic("t").end_offsets() == {TP: len(expected)}
    else:
        got: list[str] = []
        wait_until(lambda: bool(got.extend(texts(consumer.poll(0.01))) or len(got) >= len(expected) - 1))
        assert got == expected[1:]
    put(bus, "last")
    assert texts(whole(bus)) == [*expected, *(["next"] if asked == "append" else []), "last"]


def test_writers_killed_one_after_the_other(bus: Bus, directory: Path, start: Start) -> None:
    bus.topic("t", segment_bytes=512)
    children = [start(die_in_a_write, directory, how, how) for how in ("half", "after", "before", "half", "after")]
    for child in children:
        assert child.end() == -signal.SIGKILL
    put(bus, "last")
    found = texts(whole(bus))
    assert found[-1] == "last"
    assert sorted(value for value in found if value.startswith("half")) == ["half-0", "half-0", "half-1", "half-1"]
    assert len([value for value in found if value.startswith("after")]) == 10


# --- stopped lock holders -----------------------------------------------------------------------------------------


def test_a_stopped_holder_of_a_partition_makes_others_fail(directory: Path, start: Start) -> None:
    with streamlite.open(directory, lock_timeout=0.3) as bus:
        bus.topic("t", partitions=2)
        put(bus, "first", partition=0)
        holder = start(hold, directory / "topics/t/0/lock")
        holder.line("held")
        holder.signal(signal.SIGSTOP)
        holder.wait_stopped()
        producer = bus.producer()
        for _ in range(2):
            deliveries = [producer.send("t", b"%d" % partition, partition=partition) for partition in (0, 1)]
            deliveries[1].result(timeout=PATIENCE)  # the others go on
            with pytest.raises(errors.LockTimeoutError, match="partition 0"):
                deliveries[0].result(timeout=PATIENCE)
        assert texts(bus.topic("t").read(partition=0)) == ["first"]  # and reading takes no lock
        with bus.consumer("t") as consumer:
            assert len(consumer.poll(PATIENCE)) >= 1
        with pytest.raises(errors.LockTimeoutError):
            bus.topic("t").truncate_before(0, 1)
        holder.signal(signal.SIGCONT)
        assert holder.end() == 0
        producer.send("t", b"again", partition=0).result(timeout=PATIENCE)
        producer.close()
        assert texts(whole(bus)) == ["first", "again"]


def test_a_writer_stopped_inside_its_append_finishes_it(directory: Path, start: Start) -> None:
    with streamlite.open(directory, lock_timeout=0.3) as bus:
        bus.topic("t")
        child = start(die_in_a_write, directory, "stopped", "w")
        child.line("stopped")
        child.wait_stopped()
        with pytest.raises(errors.LockTimeoutError):
            put(bus, "here")
        assert texts(bus.topic("t").read()) == ["w-0", "w-1"]
        child.signal(signal.SIGCONT)
        child.line("delivered")
        put(bus, "here")
        assert texts(whole(bus)) == [*(f"w-{number}" for number in range(5)), "here"]


def test_a_stopped_holder_of_the_bus(directory: Path, start: Start) -> None:
    with streamlite.open(directory, lock_timeout=0.3) as bus:
        bus.topic("t")
        holder = start(hold, directory / "bus.lock")
        holder.line("held")
        holder.signal(signal.SIGSTOP)
        holder.wait_stopped()
        for change in (
            lambda: bus.create_topic("u"),
            lambda: bus.delete_topic("t"),
            lambda: bus.topic("t").increase_partitions(2),
            lambda: streamlite.open(directory, lock_timeout=0.3),
        ):
            with pytest.raises(errors.LockTimeoutError):
                change()
        put(bus, "goes on")
        holder.signal(signal.SIGCONT)
        assert holder.end() == 0
        assert bus.topics() == ["t"]
        bus.create_topic("u")


def test_a_stopped_holder_of_a_group(directory: Path, start: Start) -> None:
    with streamlite.open(directory, lock_timeout=0.3) as bus:
        bus.topic("t")
        put(bus, "a", "b")
        consumer = bus.consumer("t", group="g", auto_commit=False)
        holder = start(hold, directory / "groups/g/lock")
        holder.line("held")
        holder.signal(signal.SIGSTOP)
        holder.wait_stopped()
        assert texts(consumer.poll(PATIENCE)) == ["a", "b"]
        for _ in range(2):
            with pytest.raises(errors.LockTimeoutError, match="g"):
                consumer.commit()
        with pytest.raises(errors.LockTimeoutError):
            bus.consumer("t", group="g")
        holder.signal(signal.SIGCONT)
        assert holder.end() == 0
        assert bus.group("g").committed == {}
        consumer.commit()
        assert bus.group("g").committed == {TP: 2}


def test_waiting_for_a_lock_does_not_count_against_a_member(directory: Path, start: Start) -> None:
    """max_poll_interval_ms is for who does not ask for messages; these ask, and the group's lock is not to be had."""
    interval_s = 0.5
    lost: list[TopicPartition] = []
    stop = threading.Event()

    def run(bus: Bus) -> None:
        options: dict[str, Any] = {"group": "g", "max_poll_interval_ms": int(interval_s * 1000)}
        with bus.consumer("t", **options, on_lost=lambda consumer, partitions: lost.extend(partitions)) as consumer:
            while not stop.is_set():
                consumer.poll(0.01)

    with contextlib.ExitStack() as stack:
        buses = [stack.enter_context(streamlite.open(directory)) for _ in range(4)]
        buses[0].topic("t", partitions=4)
        pool = stack.enter_context(ThreadPoolExecutor())
        stack.callback(stop.set)
        running = [pool.submit(run, bus) for bus in buses]
        wait_until(lambda: "g" in buses[0].groups())
        wait_until(lambda: [len(one.partitions) for one in buses[0].group("g").members] == [1] * 4)
        lost.clear()
        for _ in range(2):
            holder = start(hold, directory / "groups/g/lock")
            holder.line("held")
            for partition in range(4):
                put(buses[0], "x", partition=partition)  # something to commit, so that they wait for the lock
            until = time.monotonic() + 2 * interval_s
            wait_until(lambda until=until: time.monotonic() > until)  # type: ignore[misc]  # it is time that matters
            assert holder.end() == 0
            wait_until(lambda: set(buses[0].group("g").lag.values()) == {0})
        stop.set()
        for one in running:
            one.result(timeout=PATIENCE)
    assert lost == []


# --- topics -------------------------------------------------------------------------------------------------------


def test_topics_changed_elsewhere_are_seen(bus: Bus, directory: Path, start: Start) -> None:
    other = start(change_topics, directory)
    other.line("ready")

    def there(line: str) -> None:
        other.say(line)
        other.line("done")

    there("create t 1")
    assert bus.topics() == ["t"]
    topic = bus.topic("t")
    consumer, producer = bus.consumer("t"), bus.producer()
    member = bus.consumer("t", group="g")
    producer.send("t", b"a", key=b"0").result()
    there("grow t 6")
    wait_until(lambda: consumer.poll() is not None and len(consumer.assignment()) == 6)
    assert topic.partitions == 6
    placed = {producer.send("t", b"%d" % number, key=b"%d" % number).result().partition for number in range(60)}
    assert placed == set(range(6))
    wait_until(lambda: member.poll() is not None and len(member.assignment()) == 6)
    there("delete t 0")
    assert bus.topics() == []
    for use in (
        lambda: producer.send("t", b"b").result(timeout=PATIENCE),
        lambda: producer.send(topic, b"b").result(timeout=PATIENCE),
        lambda: list(topic.read()),
        topic.end_offsets,
        lambda: consumer.poll(PATIENCE),
        lambda: member.poll(PATIENCE),
        lambda: bus.consumer("t"),
    ):
        with pytest.raises(errors.UnknownTopicError):
            use()
    there("create t 2")
    with pytest.raises(errors.UnknownTopicError):
        topic.end_offsets()
    assert bus.topic("t").end_offsets() == {TP: 0, TP1: 0}
    producer.send("t", b"new", partition=1).result(timeout=PATIENCE)
    assert texts(bus.topic("t").read()) == ["new"]
    assert other.end() == 0


def test_a_process_killed_while_it_grows_a_topic(bus: Bus, directory: Path, start: Start) -> None:
    """All must agree on how many partitions there are, or a key goes two ways, and a member gets what it cannot see."""
    topic = bus.topic("t", partitions=2)
    members = [bus.consumer("t", group="g")]
    assert start(die_changing_topics, directory, "grow").end() == -signal.SIGKILL
    with streamlite.open(directory) as another:
        members.append(another.consumer("t", group="g"))
        assert another.topic("t").partitions == topic.partitions
        wait_until(lambda: all(one.poll() == [] for one in members) and all(one.assignment() for one in members))
        assert sum(len(one.assignment()) for one in members) == topic.partitions
        members.pop().close()


def test_a_process_killed_while_it_deletes_a_topic(bus: Bus, directory: Path, start: Start) -> None:
    topic = bus.topic("t")
    put(bus, "old")
    assert start(die_changing_topics, directory, "delete").end() == -signal.SIGKILL
    with pytest.raises(errors.UnknownTopicError):
        topic.end_offsets()
    put_into = bus.topic("t")  # it is gone, so this is a new one
    put(bus, "new")
    assert texts(put_into.read()) == ["new"]


# --- groups -------------------------------------------------------------------------------------------------------


def test_a_producer_and_a_consumer_in_different_processes(bus: Bus, directory: Path, start: Start) -> None:
    bus.topic("t", partitions=3)
    producer = start(produce, directory, 2000)
    got: dict[int, list[int]] = {}
    with bus.consumer("t", group="g") as consumer:
        for message in itertools.islice(consumer.messages(timeout=PATIENCE), 2000):
            got.setdefault(int(message.value) % 10, []).append(int(message.value))
    assert producer.end() == 0
    assert all(numbers == list(range(key, 2000, 10)) for key, numbers in got.items())
    assert len(got) == 10


def options(**given: Any) -> str:
    return json.dumps(given)


def test_what_a_killed_member_had_is_taken_over(bus: Bus, directory: Path, start: Start) -> None:
    bus.topic("t", partitions=4)
    for partition in range(4):
        put(bus, "a", partition=partition)
    child = start(member, directory, options())
    assert child.line("ready") == [[0, 1, 2, 3]]
    child.say("loop")
    child.line("got")
    consumer = bus.consumer("t", group="g")
    wait_until(lambda: consumer.poll() is not None and len(consumer.assignment()) == 2)
    child.kill()
    wait_until(lambda: consumer.poll() is not None and len(consumer.assignment()) == 4)
    put(bus, *"abcd", partition=0)
    put(bus, *"abcd", partition=3)
    wait_until(lambda: consumer.poll() is not None and consumer.position(TP) == 5)
    assert len(bus.group("g").members) == 1


def test_a_blocked_member_takes_over_too(bus: Bus, directory: Path, start: Start) -> None:
    bus.topic("t")
    killed = start(member, directory, options())
    killed.line("ready")
    blocked = start(member, directory, options())
    blocked.line("ready")
    blocked.say("loop")
    wait_until(lambda: len(bus.group("g").members) == 2)
    killed.kill()
    assert blocked.line("assign") == [[0]]
    put(bus, "x")
    assert blocked.line("got") == [0, 0]


def test_a_killed_static_member_keeps_its_partitions_until_it_is_back(bus: Bus, directory: Path, start: Start) -> None:
    bus.topic("t", partitions=2)
    child = start(member, directory, options(member="a", member_timeout_ms=3_600_000))
    child.line("ready")
    consumer = bus.consumer("t", group="g", member="b")
    wait_until(
        lambda: (
            child.say("poll 0") or (child.line("polled") and consumer.poll() == [] and len(consumer.assignment()) == 1)
        )
    )
    (mine,) = consumer.assignment()
    child.kill()
    wait_until(lambda: consumer.poll() == [] and len(bus.group("g").members) == 2)
    again = start(member, directory, options(member="a"))
    assert again.line("assign") == [[1 - mine.partition]]
    assert consumer.poll() == []
    assert consumer.assignment() == {mine}


@pytest.mark.parametrize("auto_commit", [True, False])
def test_a_member_that_was_stopped_too_long_is_fenced(
    bus: Bus, directory: Path, start: Start, auto_commit: bool
) -> None:
    bus.topic("t")
    put(bus, *"abcdef")
    child = start(member, directory, options(max_poll_interval_ms=1000, auto_commit=auto_commit))
    child.line("ready")
    child.say(f"poll {PATIENCE}")
    assert len(child.line("polled")[0]) == 6
    child.signal(signal.SIGSTOP)
    child.wait_stopped()
    consumer = bus.consumer("t", group="g", auto_commit=False)
    assert texts(consumer.poll(PATIENCE, max_messages=2)) == ["a", "b"]  # once it has been put out
    consumer.commit()
    child.say("commit" if not auto_commit else "poll 0")
    child.signal(signal.SIGCONT)
    if not auto_commit:
        assert child.line()[0] == "fenced"
        child.say("poll 0")
    found = child.lines_until("polled")
    assert ["lost", [0]] in found
    assert bus.group("g").committed == {TP: 2}
    assert len(bus.group("g").members) == 2
    consumer.close()
    child.say(f"poll {PATIENCE}")
    found = child.lines_until("polled")
    assert ["assign", [0]] in found
    assert found[-1] == ["polled", [[0, offset] for offset in range(2, 6)]]
    assert child.end() == 0


# --- forks --------------------------------------------------------------------------------------------------------


def test_a_fork_harms_nobody(bus: Bus, directory: Path, start: Start) -> None:
    bus.topic("t")
    child = start(fork, directory)
    outcomes, members = child.line("outcomes")
    assert child.end() == 0, child.errors
    assert outcomes == {"use 0": 10, "close 0": 10}, child.errors
    assert members == [True]
    found = texts(whole(bus))
    assert found.count("before") == found.count("after") == 1
    assert set(found) == {"before", "work", "after"}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_opens_in_the_child(bus: Bus, directory: Path, start: Start, method: str) -> None:
    bus.topic("t")
    child = start(multi, directory, method)
    assert child.line("ended") == [[0, 0]]
    assert child.end() == 0, child.errors
    assert sorted(texts(whole(bus))) == ["0", "1", "parent", "parent"]


# --- Ctrl-C and the end of a process ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "exit", "error", "thread", "interrupt"])
def test_what_was_sent_is_delivered_when_a_process_ends(bus: Bus, directory: Path, start: Start, how: str) -> None:
    bus.topic("t")
    child = start(leave_without_closing, directory, how)
    if how == "interrupt":
        child.line("ready")
        child.signal(signal.SIGINT)
    status = child.end()
    assert status == {"error": 1, "interrupt": -signal.SIGINT}.get(how, 0)
    assert texts(whole(bus)) == [str(number) for number in range(1001 if how == "thread" else 1000)]


def test_an_interrupt_ends_a_call_that_blocks(bus: Bus, directory: Path, start: Start) -> None:
    bus.topic("t")
    child = start(poll_until_interrupted, directory)
    for _ in range(3):
        child.line("blocking")
        pid = child.process.pid
        wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")  # noqa: B023
        child.signal(signal.SIGINT)
        child.line("interrupted")
    put(bus, "after")
    assert child.line("values") == [["after"]]
    assert child.end() == 0, child.errors


def test_interrupted_sends(bus: Bus, directory: Path, start: Start) -> None:
    bus.topic("t")
    child = start(send_interrupted, directory, 2000)
    (count,) = child.line("interrupted")
    (acknowledged,) = child.line("acknowledged")
    assert child.end() == 0, child.errors
    assert count > 100
    found = [int(value) for value in texts(whole(bus))]
    assert all(found[offset] == number for number, offset in acknowledged)
    assert all(one < other for one, other in itertools.pairwise(found))  # in order, and none twice


@pytest.mark.parametrize("how", ["poll", "loop"])
def test_interrupted_polls(bus: Bus, directory: Path, start: Start, how: str) -> None:
    bus.topic("t", partitions=2)
    with bus.producer() as producer:
        for partition in (0, 1):
            for _ in range(60):
                values = [b"%d" % number for number in range(50)]
                producer.send_many("t", [b"%d-%d-%s" % (partition, _, value) for value in values], partition=partition)
                producer.flush()
    child = start(poll_interrupted, directory, how)
    (count,) = child.line("interrupted")
    assert child.line("missing") == [0]
    assert child.end() == 0, child.errors
    assert count > 3


if __name__ == "__main__":
    {action.__name__: action for action in (
        write, die_in_a_write, hold, change_topics, die_changing_topics, member, produce, leave_without_closing,
        poll_until_interrupted, send_interrupted, poll_interrupted, fork, multi,
    )}[sys.argv[1]](*sys.argv[2:])  # fmt: skip
