"""A stress round: processes on one bus, killed, stopped and started at random; then the checker.

A round draws everything from its seed: the options of topic, group and members, and which process is killed, stopped,
continued or started when. In the end producers stop, the group reads on until nothing is left (or the round has failed:
some partition is read by nobody), everybody stops, and the histories are checked against the log.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

import streamlite
from streamlite import TopicPartition

from .history import CHECKS, Report, Violation, check, load
from .worker import GROUP, TOPIC, Options, Recorder

DRAIN_S = 60.0
"""How long the group may take for what is left; the log holds some seconds' worth."""
END_S = 60.0
"""How long a process may take to end when it is told to."""
TREE = Path(__file__).parents[2]


def draw(rng: random.Random) -> Options:
    """What a round is made of."""
    return Options(
        sync=rng.choice(("never", "interval", "interval", "always")),
        partitions=rng.choice((1, 2, 5, 12)),
        segment_bytes=rng.choice((4_096, 65_536, 128 << 20)),
        assignor=rng.choice(("sticky", "sticky", "range", "roundrobin")),
        max_poll_interval_ms=rng.choice((700, 1_500)),
        member_timeout_ms=rng.choice((500, 2_000)),
        lock_timeout=rng.choice((0.5, 30.0, 30.0)),
    )


@dataclass
class Child:
    """A process that runs, or is stopped until `continues_at`."""

    name: str
    options: Options
    process: subprocess.Popen[bytes]
    continues_at: float | None = None
    killed: bool = False


class Round:
    """One round in a directory of its own. `say` gets lines for whoever looks on."""

    def __init__(self, directory: Path, processes: int, seed: int, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.rng = random.Random(seed)
        self.say = say
        self.options = draw(self.rng)
        self.processes = processes
        self.children: list[Child] = []
        self.started = 0
        self.failures: list[Violation] = []
        self.history = directory / "history"
        self.history.mkdir(parents=True)
        self.record = Recorder(self.history, "observer")
        # Who holds a lock may have been stopped here, and is continued here: so nobody is waited for long.
        self.bus = streamlite.open(directory / "bus", sync=self.options.sync, lock_timeout=1.0)
        self.bus.topic(TOPIC, partitions=self.options.partitions, segment_bytes=self.options.segment_bytes)
        say(f"seed {seed}: {processes} processes, {self.options}")

    # -- processes ----------------------------------------------------------------------------------------------------

    def start(self, role: str, place: int) -> None:
        """Start a producer or a member; every second place is a static member's in some rounds."""
        rng = self.rng
        self.started += 1
        name = f"{role[0]}{place}.{self.started}"
        options = msgspec.structs.replace(
            self.options,
            seed=rng.getrandbits(32),
            role=role,
            auto_commit=rng.random() < 0.5,
            loop=rng.random() < 0.5,
            member=f"static-{place}" if role == "member" and place % 3 == 2 else None,
            consumers=1 if place % 3 == 2 else rng.choice((1, 1, 2)),
        )
        with open(self.directory / f"{name}.err", "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.stress.worker", self.directory, name, msgspec.json.encode(options)],
                cwd=TREE,
                stdin=subprocess.PIPE,  # it ends with this process
                stderr=errors,
            )
        self.children.append(Child(name, options, process))

    def place(self, child: Child) -> tuple[str, int]:
        return child.options.role, int(child.name[1:].partition(".")[0])

    def kill(self, child: Child) -> None:
        child.killed = True
        child.process.kill()
        self.reap(child)

    def end(self, child: Child) -> None:
        """Have it end by itself, and wait for that."""
        self.proceed(child)
        child.process.send_signal(signal.SIGTERM)
        self.reap(child)

    def reap(self, child: Child) -> None:
        self.children.remove(child)
        assert child.process.stdin is not None
        try:
            status = child.process.wait(END_S)
        except subprocess.TimeoutExpired:
            child.process.send_signal(signal.SIGABRT)  # its stack is in its errors
            child.process.wait()
            self.failures.append(Violation("hangs", f"{child.name} did not end within {END_S:g} s"))
            return
        finally:
            child.process.stdin.close()
        if status and not child.killed and status != -signal.SIGTERM:  # that one came before Python was ready for it
            errors = (self.directory / f"{child.name}.err").read_text(errors="replace").strip()
            self.failures.append(Violation("failed", f"{child.name} ended with status {status}: {errors[-3000:]}"))

    def stop(self, child: Child) -> None:
        patience = self.options.max_poll_interval_ms / 1000
        child.continues_at = time.monotonic() + self.rng.choice((0.05, patience, 1.6 * patience))
        child.process.send_signal(signal.SIGSTOP)

    def proceed(self, child: Child) -> None:
        if child.continues_at is not None:
            child.continues_at = None
            child.process.send_signal(signal.SIGCONT)

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> Report:
        """All of it; what was found."""
        try:
            producers = max(1, self.processes // 3)
            for place in range(producers):
                self.start("producer", place)
            for place in range(self.processes - producers):
                self.start("member", place)
            self.disturb(time.monotonic() + seconds)
            self.wind_up()
        finally:
            for child in list(self.children):
                self.kill(child)
        self.read_log()
        self.bus.close()
        report = check(load(self.history), CHECKS)
        report.violations[:0] = self.failures
        return report

    def disturb(self, until: float) -> None:
        """Kill, stop, continue, replace, and look at what is committed, with pauses of no fixed length."""
        while time.monotonic() < until and not self.failures:
            time.sleep(self.rng.uniform(0, 0.5))
            now = time.monotonic()
            for child in list(self.children):
                if child.continues_at is not None and child.continues_at <= now:
                    self.proceed(child)
                elif child.process.poll() is not None:  # a static member that was replaced, or a failure
                    self.reap(child)
                    self.start(*self.place(child))
            self.look()
            child = self.rng.choice(self.children)
            if self.works(child):
                self.strike(child)

    def works(self, child: Child) -> bool:
        """Whether it has begun: it wrote something down. On a slow machine nobody else would ever get to that."""
        return any((self.history / f"{child.name}{part}.jsonl").exists() for part in ("", "a", "b"))

    def strike(self, child: Child) -> None:
        chance = self.rng.random()
        if chance < 0.25:
            self.kill(child)
            self.start(*self.place(child))
        elif chance < 0.5:
            if child.continues_at is None:
                self.stop(child)
        elif chance < 0.6:
            self.end(child)
            self.start(*self.place(child))
        elif chance < 0.63 and child.options.member is not None:
            self.start(*self.place(child))  # a second one of its name
        elif chance < 0.64:
            places = [self.place(one) for one in self.children]
            for one in list(self.children):
                self.kill(one)
            for place in places:
                self.start(*place)

    def look(self) -> None:
        number = self.record.invoke("look")
        try:
            committed = self.committed()
        except streamlite.LockTimeoutError as error:
            self.record("fail", "look", id=number, error=str(error))
            return
        self.record("ok", "look", id=number, offsets={tp.partition: (offset, 0) for tp, offset in committed.items()})

    def committed(self) -> dict[TopicPartition, int]:
        try:
            return dict(self.bus.group(GROUP).committed)
        except streamlite.UnknownGroupError:
            return {}

    def wind_up(self) -> None:
        """Producers stop, members read what is left and stop."""
        for child in list(self.children):
            self.proceed(child)
        for child in [one for one in self.children if one.options.role == "producer"]:
            self.end(child)
        ends = self.bus.topic(TOPIC).end_offsets()
        deadline = time.monotonic() + DRAIN_S
        while not self.failures and not self.drained(ends):
            if time.monotonic() > deadline:
                self.failures.append(Violation("stalled", f"after {DRAIN_S:g} s, of {ends}: {self.bus.group(GROUP)}"))
            time.sleep(0.05)
        for child in list(self.children):
            if child.process.poll() is None:
                self.end(child)
            else:
                self.reap(child)
        self.look()

    def drained(self, ends: dict[TopicPartition, int]) -> bool:
        """Whether everything was delivered: what is committed says so, or, with manual commits, the histories."""
        try:
            committed = self.committed()
        except streamlite.LockTimeoutError:
            return False
        if all(committed.get(tp, 0) >= end for tp, end in ends.items()):
            return True
        return self.all_processed({tp.partition: end for tp, end in ends.items()})

    def all_processed(self, ends: dict[int, int]) -> bool:
        done: dict[int, set[int]] = {partition: set() for partition in ends}
        for history in load(self.history):
            for event in history:
                if event.op == "process":
                    done[event.partition].update(range(event.offset, event.offset + len(event.values)))
        return all(len(done[partition]) >= end for partition, end in ends.items())

    def read_log(self) -> None:
        """Write down what is in the log."""
        for partition in range(self.options.partitions):
            values: list[str] = []
            first = 0
            for message in self.bus.topic(TOPIC).read(partition=partition):
                if message.offset != first + len(values):
                    self.record("info", "log", partition=partition, offset=first, values=values)
                    first, values = message.offset, []
                values.append(message.value.decode())
            self.record("info", "log", partition=partition, offset=first, values=values)


def run_round(seconds: float, processes: int, seed: int, keep: Path | None, say: Callable[[str], None] = print) -> bool:
    """One round; whether it found nothing. Its directory is kept where it did, in `keep` or a temporary place."""
    directory = Path(tempfile.mkdtemp(prefix=f"stress-{seed}-", dir=keep)).resolve()
    round_ = Round(directory, processes, seed, say)
    report = round_.run(seconds)
    say(f"seed {seed}: {round_.started} processes started; {report}")
    if report.violations:
        say(f"seed {seed}: FAILED; histories, bus and errors are kept in {directory}")
        return False
    shutil.rmtree(directory)
    return True
