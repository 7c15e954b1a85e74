"""The scale of a release: the sixteen tests of faults, driven for as long as there is time.

    python -m tests.crash --release --jobs 2                  # everything, until it is done
    python -m tests.crash --release --seconds 3600            # an hour of it; the same command again goes on
    python -m tests.crash --release --only 1,3,histories      # by number or by name
    python -m tests.crash --only kills --seed 1234 --count 1  # one case again
    python -m tests.crash --list

A campaign is a function that makes one case of its seed and returns how many states, kills or inputs that was; or
some test files, of which every test is a case. Cases run in worker processes; the next is always of the campaign that
had least time so far, so all have an equal share of it. A case that fails, hangs or takes its worker with it is noted
down, with its traceback in a file, and the run goes on.

What is done stands in the state file, replaced after each case: a run that was ended, by --seconds, Ctrl-C or a power
cut, goes on with the seeds that are not done when it is started again. A campaign whose module or function is not there
says so in the table and fails the run.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import os
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

TREE: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 1800.0
"""A case that takes longer hangs."""
GRACE_S: Final = 20.0
"""What is under way when the time is over may go on for so long; then it is for the next run."""
TOLD_MOST: Final = 5
"""Failures of one campaign that are told at once."""
CASES_OF_A_WORKER: Final = 500
"""Then a new one takes its place: no leak of a test grows for days."""
ALL: Final = 0
"""As a count: every test of the files."""
MANY: Final = "1000000"


class Campaign(NamedTuple):
    """One of the tests: `function`, or each test of `files` with `variables` set; or `function` for each of those."""

    number: int
    name: str
    function: str
    on_change: int
    release: int
    unit: str
    processes: bool = False
    """Whether it starts, stops and kills processes of its own."""
    files: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


CAMPAIGNS: Final = (
    Campaign(1, "kills", "tests.crash.test_kills:case", 200, 20_000, "kills", True),
    Campaign(1, "exactly-once", "tests.crash.release:exactly_once", 40, 20_000, "kills", True),
    Campaign(
        2, "calls", "", ALL, ALL, "tests", False,
        ("tests/crash/test_stop_at_every_call.py", "tests/crash/test_transactions.py", "tests/crash/test_named.py"),
        (("STREAMLITE_STOPS", MANY),),
    ),
    Campaign(3, "replay", "tests.crash.test_replay:case", 20_000, 1_000_000, "states"),
    Campaign(3, "replay-names", "tests.crash.test_replay:named_case", 2_000, 100_000, "states"),
    Campaign(4, "recovery", "tests.crash.test_replay_recovery:case", 1_000, 50_000, "recoveries"),
    Campaign(4, "both", "tests.crash.test_replay_recovery:both_case", 1_000, 50_000, "states"),
    Campaign(5, "errors", "", ALL, ALL, "tests", False, ("tests/crash/test_failing_calls.py",),
             (("STREAMLITE_FAULTS", MANY),)),
    Campaign(6, "full-disk", "tests.crash.test_real_faults:case", 20, 500, "calls", True),
    Campaign(7, "flips", "", ALL, ALL, "tests", False,
             ("tests/crash/test_flips.py", "tests/crash/test_verify_repair.py", "tests/crash/test_group_files.py"),
             # The names of the tests that flip every bit say which part of them: the same as when they were collected.
             (("STREAMLITE_SEED", "0"), ("STREAMLITE_FLIPS", "8"))),
    Campaign(8, "stops", "tests.crash.test_stops:case", 50, 2_000, "stops", True),
    Campaign(9, "lock-holders", "tests.crash.test_stops:case_of_lock_holder", 20, 200, "stops", True),
    Campaign(10, "interrupts", "tests.crash.test_interrupts:case", 1_000, 50_000, "interrupts"),
    Campaign(10, "signals", "tests.crash.test_signals:case", 1_000, 50_000, "signals", True),
    Campaign(11, "forks", "tests.crash.test_forks:case", 50, 1_000, "forks", True),
    Campaign(12, "clocks", "tests.crash.test_clocks:case", 200, 5_000, "jumps"),
    Campaign(13, "stress", "tests.crash.release:stress", 120, 28_800, "seconds", True),
    Campaign(14, "histories", "tests.crash.test_histories:case", 10_000, 1_000_000, "schedules"),
    Campaign(14, "wakeups", "", ALL, ALL, "tests", False, ("tests/crash/test_wakeups.py",),
             (("STREAMLITE_SCHEDULES", "10000"),)),
    Campaign(15, "fuzz", "tests.crash.test_fuzz:case", 20_000, 1_000_000, "directories"),
    Campaign(15, "fuzz-bytes", "tests.crash.test_fuzz:case_bytes", 20_000, 19_000_000, "inputs"),
    Campaign(16, "planted", "tests.crash.release:planted", ALL, ALL, "bugs", True, ("tests/planted",)),
)  # fmt: skip


# -- cases that are commands -------------------------------------------------------------------------------------------


def exactly_once(seed: int) -> int:
    """Read-process-write and transfers by processes that are killed; see tests/integration/exactly_once.py."""
    kills = 20
    sync = random.Random(seed).choice(("never", "interval", "always"))
    _command("-m", "tests.integration.exactly_once", "--messages=2000", f"--kills={kills}", f"--seed={seed}",
             f"--sync={sync}")  # fmt: skip
    return 2 * kills


def stress(seed: int) -> int:
    """One round of tests/stress."""
    seconds = 30
    _command("-m", "tests.stress", f"--seconds={seconds}", f"--round={seconds}", f"--seed={seed}")
    return seconds


def every_test(seed: int, test: str, variables: dict[str, str]) -> int:
    """One test of pytest, which draws from the run's seed where it draws at all."""
    _command(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", test, variables={"STREAMLITE_SEED": str(seed), **variables}
    )
    return 1


def planted(seed: int, bug: str, variables: dict[str, str]) -> int:
    """One planted bug, which the tests that it names must catch."""
    _command("-m", "tests.planted", "--only", bug)
    return 1


def _command(*words: str, variables: dict[str, str] | None = None) -> None:
    made = subprocess.run(
        [sys.executable, *words],
        cwd=TREE, env={**os.environ, **(variables or {})}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, f"{' '.join(words)} ended with status {made.returncode}:\n{made.stdout}"


def tests_of(campaign: Campaign) -> list[str]:
    """The tests in a campaign's files, one by one; of planted bugs, their names."""
    missing = [name for name in campaign.files if not (TREE / name).exists()]
    if missing:
        raise LookupError(", ".join(missing))
    if campaign.function:
        return sorted(path.stem for name in campaign.files for path in (TREE / name).glob("*.patch"))
    made = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *campaign.files],
        cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env=os.environ | dict(campaign.variables),
    )  # fmt: skip
    found = [line for line in made.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", "FAILED"))]
    if made.returncode or not found:
        raise LookupError(made.stdout.strip().rpartition("\n")[2])
    return found


# -- a worker ----------------------------------------------------------------------------------------------------------


class Order(msgspec.Struct):
    """What a worker is to do next."""

    function: str
    seed: int
    words: list[Any] = []


class Answer(msgspec.Struct):
    """What came of it."""

    looked_at: int = 0
    failure: str = ""
    missing: str = ""
    """The function is not there, and why."""


def work() -> None:
    """Carry out orders from the standard input, one a line, until it ends. What tests print goes to the log."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        answer = _carry_out(msgspec.json.decode(line, type=Order))
        sys.stdout.flush()
        os.write(answers, msgspec.json.encode(answer) + b"\n")


def _carry_out(order: Order) -> Answer:
    module, _, name = order.function.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        return Answer(missing=str(error))
    try:
        return Answer(looked_at=function(order.seed, *order.words))
    except Exception:  # noqa: BLE001 - whatever it is, it is what the run looks for
        return Answer(failure=traceback.format_exc())


class Worker:
    """A worker process, as the driver has it."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash", "--worker"],
                cwd=TREE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True,  # Ctrl-C is for the driver; and what it leaves is ended with it
            )  # fmt: skip
        self.left = CASES_OF_A_WORKER
        self.progress: Progress | None = None
        self.at = 0
        self.seed = 0
        self.since = 0.0

    def begin(self, progress: Progress, at: int) -> None:
        assert self.process.stdin is not None
        self.progress, self.at, self.since = progress, at, time.monotonic()
        self.seed, order = progress.order(at)
        self.left -= 1
        with contextlib.suppress(BrokenPipeError):  # then it has no answer, which is looked at
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")
            self.process.stdin.flush()

    def answer(self) -> Answer:
        """Its answer, once there is something to read; that of one that died says so."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return msgspec.json.decode(line, type=Answer)
        status = self.process.wait()
        return Answer(failure=f"the worker ended with status {status}; its last words are in {self.log}")

    def end(self) -> None:
        """End it, and whatever its case has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


# -- what is done ------------------------------------------------------------------------------------------------------


class Done(msgspec.Struct):
    """Of one campaign, as it stands in the state file."""

    next: int = 0
    """Cases before this one were begun."""
    open: list[int] = []
    """Of those, the ones that did not come to an end."""
    cases: int = 0
    looked_at: int = 0
    seconds: float = 0.0
    failures: list[int] = []
    """Their seeds; for tests of files, their numbers."""


class State(msgspec.Struct):
    """The state file."""

    seed: int
    campaigns: dict[str, Done] = {}


class Progress:
    """A campaign in this run."""

    def __init__(self, campaign: Campaign, done: Done, seed: int, count: int | None, *, release: bool) -> None:
        self.campaign, self.done, self.seed = campaign, done, seed
        self.count = count
        """So many cases, instead of the target."""
        self.target = campaign.release if release else campaign.on_change
        self.release = release
        self.missing = ""
        self.tests: list[str] = []
        self.spent = 0.0
        """In this run: what is fair is of this run."""
        self.again = list(done.open)
        if campaign.files:
            try:
                self.tests = tests_of(campaign)
            except LookupError as error:
                self.missing = str(error)
            self.target = len(self.tests)

    def next(self) -> int | None:
        """The next case, now begun; `None` where there is none."""
        if self.missing:
            return None
        if self.again:
            return self.again.pop(0)
        if self.count is not None:
            if self.done.next >= self.count:
                return None
        elif self.tests:
            if self.done.next >= len(self.tests):
                return None
        elif self.done.looked_at >= self.target:
            return None
        self.done.next += 1
        self.done.open.append(self.done.next - 1)
        return self.done.next - 1

    def order(self, at: int) -> tuple[int, Order]:
        if not self.tests:
            return self.seed + at, Order(self.campaign.function, self.seed + at)
        variables = dict(self.campaign.variables) if self.release else {}
        at = (at + (self.seed if self.count is not None else 0)) % len(self.tests)
        return at, Order(
            self.campaign.function or "tests.crash.release:every_test", self.seed, [self.tests[at], variables]
        )

    def ended(self, at: int, seed: int, seconds: float, answer: Answer) -> None:
        self.done.open.remove(at)
        self.done.seconds += seconds
        self.spent += seconds
        if answer.missing:
            self.missing = answer.missing
            self.done.next = min(self.done.next, at)  # whatever was begun of it is to be done once it is there
            return
        self.done.cases += 1
        self.done.looked_at += answer.looked_at
        if answer.failure:
            self.done.failures.append(seed)

    @property
    def result(self) -> str:
        if self.missing:
            return "NOT THERE"
        over = self.done.cases >= self.count if self.count is not None else self.done.looked_at >= self.target
        if self.tests and self.count is None:
            over = self.done.cases >= len(self.tests)
        if self.done.failures:
            return f"{len(self.done.failures)} FAILED"
        return "done" if over else "not done"


class StateFile:
    """Where what is done is kept, or nowhere."""

    def __init__(self, path: Path | None, state: State) -> None:
        self._path = path
        self.state = state

    @classmethod
    def open(cls, path: Path | None, seed: int | None, *, fresh: bool) -> StateFile:
        if path is not None and path.exists() and not fresh:
            state = msgspec.json.decode(path.read_bytes(), type=State)
            if seed is not None and seed != state.seed:
                raise SystemExit(f"{path} is of seed {state.seed}: leave --seed out to go on with it, or add --fresh")
            return cls(path, state)
        return cls(path, State(random.SystemRandom().randrange(1 << 32) if seed is None else seed))

    def save(self) -> None:
        """At once and as a whole, so that whatever ends the run loses no more than what is under way."""
        if self._path is not None:
            new = self._path.with_name(self._path.name + ".new")
            new.write_bytes(msgspec.json.format(msgspec.json.encode(self.state)))
            new.replace(self._path)


# -- the driver --------------------------------------------------------------------------------------------------------


class Run:
    """Workers, and what they work on."""

    def __init__(self, progresses: list[Progress], file: StateFile, notes: Path, jobs: int, until: float) -> None:
        self.progresses, self.file, self.notes, self.until = progresses, file, notes, until
        self.jobs = jobs
        self.workers: list[Worker] = []
        self.idle: list[Worker] = []
        self.selector = selectors.DefaultSelector()

    def go(self) -> None:
        """Until all is done, or the time is over."""
        try:
            while self._begin_more() or self._busy():
                now = time.monotonic()
                if now > self.until + GRACE_S:
                    break
                for key, _ in self.selector.select(timeout=1.0):
                    self._ended(key.data, key.data.answer())
                for worker in self._busy():
                    if time.monotonic() - worker.since > PATIENCE_S:
                        self._hangs(worker)
        finally:
            for worker in self.workers:
                worker.end()
            self.file.save()

    def _busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.progress is not None]

    def _begin_more(self) -> bool:
        """Give those without work the next case, of who had least time so far; whether there was any."""
        begun = False
        while len(self._busy()) < self.jobs and time.monotonic() < self.until:
            for progress in sorted(self.progresses, key=self._spent):
                at = progress.next()
                if at is not None:
                    break
            else:
                break
            self._worker().begin(progress, at)
            begun = True
        return begun

    def _spent(self, progress: Progress) -> float:
        now = time.monotonic()
        return progress.spent + sum(now - worker.since + 0.01 for worker in self._busy() if worker.progress is progress)

    def _worker(self) -> Worker:
        if self.idle:
            return self.idle.pop()
        worker = Worker(self.notes / "workers.log")
        self.workers.append(worker)
        assert worker.process.stdout is not None
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _ended(self, worker: Worker, answer: Answer) -> None:
        progress, seconds = worker.progress, time.monotonic() - worker.since
        if progress is None:  # it died with nothing to do
            self._dismiss(worker)
            return
        progress.ended(worker.at, worker.seed, seconds, answer)
        if answer.failure:
            self._tell(worker, progress, answer.failure)
        worker.progress = None
        if worker.left and worker.process.poll() is None:
            self.idle.append(worker)
        else:
            self._dismiss(worker)
        self.file.save()

    def _hangs(self, worker: Worker) -> None:
        with contextlib.suppress(ProcessLookupError):
            worker.process.send_signal(signal.SIGUSR1)  # says where it is, in its log
        time.sleep(0.5)
        worker.end()
        self._ended(worker, Answer(failure=f"no end after {PATIENCE_S} s; where it was is in {worker.log}"))

    def _dismiss(self, worker: Worker) -> None:
        worker.progress = None
        self.selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        if worker in self.idle:
            self.idle.remove(worker)
        self.workers.remove(worker)
        worker.end()

    def _tell(self, worker: Worker, progress: Progress, failure: str) -> None:
        campaign, seed = progress.campaign, worker.seed
        note = self.notes / f"{campaign.name}-{seed}.txt"
        again = f"python -m tests.crash --only {campaign.name} --seed {seed} --count 1"
        if progress.tests:
            again += " --release" * progress.release + f"   # {progress.tests[seed]}"
        note.write_text(f"{again}\n\n{failure}")
        if len(progress.done.failures) <= TOLD_MOST:
            print(
                f"FAILED: {campaign.number} {campaign.name}, seed {seed}\n  again: {again}\n  more:  {note}", flush=True
            )
        elif len(progress.done.failures) == TOLD_MOST + 1:
            print(f"FAILED: {campaign.name}, more than {TOLD_MOST} times: the rest is in {self.notes}", flush=True)


def table(progresses: list[Progress]) -> Iterator[str]:
    """What was done, a line for each campaign."""
    form = "{:>4}  {:<13} {:>9} {:>12} {:<10} {:>12} {:>9} {:>9}  {}"
    yield form.format("test", "name", "cases", "looked at", "", "target", "failures", "time", "")
    for one in progresses:
        done, campaign = one.done, one.campaign
        target = f"{one.count} cases" if one.count is not None else f"{one.target:,}"
        seconds = round(done.seconds)
        spent = f"{seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
        yield form.format(
            campaign.number, campaign.name, f"{done.cases:,}", f"{done.looked_at:,}", campaign.unit, target,
            len(done.failures), spent, one.result + (f": {one.missing}" if one.missing else ""),
        )  # fmt: skip


def chosen(only: str | None, *, processes: bool) -> list[Campaign]:
    """The campaigns that `--only` names, by number or name."""
    words = [] if only is None else [word.strip() for word in only.split(",")]
    unknown = [word for word in words if not any(word in (str(one.number), one.name) for one in CAMPAIGNS)]
    if unknown:
        raise SystemExit(f"no campaign {', '.join(unknown)}: there are {', '.join(one.name for one in CAMPAIGNS)}")
    return [
        one
        for one in CAMPAIGNS
        if (only is None or str(one.number) in words or one.name in words) and (processes or not one.processes)
    ]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--release", action="store_true", help="the scale of a release, instead of that of every change")
    add("--only", help="numbers or names of campaigns, with commas between them")
    add("--no-processes", action="store_true", help="leave out what starts, stops and kills processes")
    add("--seconds", type=float, help="how long, in all; until everything is done when not given")
    add("--jobs", type=int, default=1, help="cases that run beside each other (%(default)s)")
    add("--seed", type=int, help="of the first case; random when not given")
    add("--count", type=int, help="so many cases of each campaign, and no state is kept")
    add("--state", type=Path, help="where what is done is kept; a file in the temporary directory when not given")
    add("--fresh", action="store_true", help="begin anew, whatever the state file says")
    add("--list", action="store_true", help="only say what there is")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.worker:
        work()
        return 0
    campaigns = chosen(given.only, processes=not given.no_processes)
    if given.list:
        for one in campaigns:
            scale = "every test" if one.files else f"{one.on_change:,} / {one.release:,} {one.unit}"
            where = " ".join(one.files) or one.function
            print(f"{one.number:>2}  {one.name:<13} {scale:<32} {'processes' * one.processes:<10} {where}")
        return 0
    return drive(given, campaigns)


def drive(given: argparse.Namespace, campaigns: list[Campaign]) -> int:
    scale = "release" if given.release else "change"
    path: Path | None = given.state or Path(tempfile.gettempdir()) / f"streamlite-{scale}-{os.getuid()}.json"
    assert path is not None
    notes = path.with_suffix(".failures")
    notes.mkdir(parents=True, exist_ok=True)
    file = StateFile.open(None if given.count is not None else path, given.seed, fresh=given.fresh)
    state = file.state
    begun = sum(done.cases for done in state.campaigns.values())
    print(f"seed {state.seed}" + (f", {begun:,} cases are done: {path}" if begun else ""), flush=True)
    progresses = [
        Progress(one, state.campaigns.setdefault(one.name, Done()), state.seed, given.count, release=given.release)
        for one in campaigns
    ]
    until = time.monotonic() + (given.seconds if given.seconds is not None else 1e9)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    try:
        Run(progresses, file, notes, max(given.jobs, 1), until).go()
    except KeyboardInterrupt:
        print("\nended from outside; the same command goes on" if given.count is None else "\nended", flush=True)
        status = 130
    for line in table(progresses):
        print(line, flush=True)
    bad = [one for one in progresses if one.missing or one.done.failures]
    if any(one.done.failures for one in progresses):
        print(f"what failed is in {notes}", flush=True)
    return 1 if bad else status
