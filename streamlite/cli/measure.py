"""`streamlite bench` without its terminal: runs the workloads asked for, and makes figures of what they took."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import Any, Final

import msgspec

import streamlite
from streamlite import Bus
from streamlite.cli.workers import RECEIVE, crew
from streamlite.cli.workloads import Listener, Load, Taken, end_to_end, ping, run
from streamlite.errors import ConfigError

__all__ = ["WORKLOADS", "Figure", "Options", "about", "measure"]

WORKLOADS: Final = {
    "produce": "send",
    "bulk": "send_many, 1,000 a call",
    "single": "send().result(), one by one",
    "poll": "poll",
    "columns": "poll_columns, values asked for",
    "end-to-end": "from send to receive, at a rate, two threads",
    "end-to-end-processes": "from send to receive, at a rate, two processes",
    "ping": "from send to receive, idle bus, two threads",
    "ping-processes": "from send to receive, idle bus, two processes",
}
"""Each workload, and what it measures."""
PINGS: Final = 1_000
SHARES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
"""What is said of a latency."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks for."""

    messages: int
    size: int
    partitions: int
    keys: int
    sync: str
    compression: str
    processes: int
    rate: float
    seconds: float


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What one workload came to."""

    workload: str
    what: str
    messages: int
    processes: int
    seconds: float
    rate: float
    """Messages a second; at a stated rate, what was sent of it."""
    mb_per_second: float
    """Of values, in 10^6 bytes."""
    latency_us: dict[str, float]
    late_us: dict[str, float] | None
    """End to end: by how much the sender itself missed the intended times; it is in the latency too."""
    samples: tuple[float, ...]
    """All latencies in µs, least first."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: without the samples."""
        found = msgspec.structs.asdict(self) | {"samples": len(self.samples)}
        return {name: value for name, value in found.items() if value is not None}


def about() -> dict[str, str]:
    """Where the figures come from."""
    return {"python": platform.python_version(), "platform": platform.platform()}


def measure(
    directory: Path, options: Options, workloads: Sequence[str], told: Callable[[str], object] = lambda name: None
) -> Iterator[Figure]:
    """The figures of each workload, in turn; `told` hears its name when it begins."""
    for name in workloads:
        if name not in WORKLOADS:
            raise ConfigError(f"no workload is called {name!r}; there are {', '.join(WORKLOADS)}")
    with streamlite.open(directory, sync=options.sync) as bus:
        bench = _Bench(bus, directory, options)
        for name in workloads:
            told(name)
            yield bench.measure(name)


class _Bench:
    def __init__(self, bus: Bus, directory: Path, options: Options) -> None:
        self._bus = bus
        self._directory = directory
        self._options = options
        self._filled = ""  # the topic that the readers read

    def measure(self, name: str) -> Figure:
        if name.startswith("end-to-end"):
            count = max(1, min(self._options.messages, int(self._options.rate * self._options.seconds)))
            return self._figure(name, [self._through(name, self._load(name, count))])
        if name.startswith("ping"):
            return self._figure(name, [self._through(name, self._load(name, min(self._options.messages, PINGS)))])
        if name in ("poll", "columns"):
            self._fill()
            return self._figure(name, self._each(name, self._load(self._filled)))
        taken = self._each(name, self._load(name))
        self._filled = self._filled or (name if name == "produce" else "")
        return self._figure(name, taken)

    def _load(self, topic: str, messages: int | None = None) -> Load:
        """What to send to a topic, which is there from now on."""
        options = self._options
        self._bus.topic(topic, partitions=options.partitions, compression=options.compression)
        return Load(
            directory=str(self._directory),
            topic=topic,
            messages=options.messages if messages is None else messages,
            size=options.size,
            keys=options.keys,
            sync=options.sync,
        )

    def _fill(self) -> None:
        """Have something to read: what was produced, or the same now."""
        if not self._filled:
            run("produce", self._bus, self._load("produce"))
            self._filled = "produce"

    def _each(self, name: str, load: Load) -> list[Taken]:
        """Run it in this process, or in as many as were asked for."""
        count = self._options.processes
        if name in ("poll", "columns"):
            count = min(count, self._options.partitions)
        if count == 1:
            return [run(name, self._bus, load)]
        with crew(name, [msgspec.structs.replace(load, share=(number, count)) for number in range(count)]) as workers:
            for worker in workers:
                worker.go()
            return [worker.taken() for worker in workers]

    def _through(self, name: str, load: Load) -> Taken:
        """Send to a receiver, which is there already."""
        topic = self._bus.topic(load.topic)
        with ExitStack() as stack:
            if name.endswith("-processes"):
                hear = stack.enter_context(crew(RECEIVE, [load]))[0].hear
            else:
                hear = stack.enter_context(Listener(self._bus, load)).hear
            if name.startswith("ping"):
                return ping(topic, load, hear)
            return end_to_end(topic, load, self._options.rate, hear)

    def _figure(self, name: str, taken: Sequence[Taken]) -> Figure:
        seconds = (max(one.ended for one in taken) - min(one.begun for one in taken)) / 1e9
        count = sum(one.count for one in taken)
        late = [time for one in taken for time in one.late]
        samples = sorted(time / 1e3 for one in taken for time in one.latencies)
        return Figure(
            workload=name,
            what=WORKLOADS[name],
            messages=count,
            processes=len(taken) + name.endswith("-processes"),
            seconds=seconds,
            rate=count / seconds,
            mb_per_second=count * self._options.size / seconds / 1e6,
            latency_us=_shares(samples),
            late_us=_shares(sorted(time / 1e3 for time in late)) if late else None,
            samples=tuple(samples),
        )


def _shares(values: Sequence[float]) -> dict[str, float]:
    """The least value that each share of all does not exceed, of values in order."""
    return {name: round(values[max(0, ceil(share * len(values)) - 1)], 1) for name, share in SHARES.items()}
