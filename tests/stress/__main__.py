"""Many processes on one bus, killed (SIGKILL), stopped (SIGSTOP, until they are fenced) and started anew at random.

    python -m tests.stress                               # two minutes, as on every change
    python -m tests.stress --seconds 28800               # eight hours, before a release
    python -m tests.stress --seed 7 --processes 16       # one set of options again

A run is a row of rounds of --round seconds. Each round has a bus of its own and draws everything from its seed, which
is printed first: partitions, sync level, size of segments, assignor; for each member whether it commits automatically,
polls or iterates, is static. Every process writes down what it did; when the round is over tests/stress/history.py
compares all that with the log. Seeds rise by one from round to round. The same seed draws the same options and strikes;
when they hit what is up to the machine.

A round that found something keeps its directory (bus, histories, errors of each process), says where, and ends the run
with exit status 1.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from pathlib import Path

from .controller import run_round


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120, help="how long to go on (%(default)s)")
    parser.add_argument("--round", type=float, default=30, help="seconds of one round (%(default)s)")
    parser.add_argument("--processes", type=int, help="2 to 16; drawn for each round when not given")
    parser.add_argument("--seed", type=int, help="of the first round; random when not given")
    parser.add_argument("--directory", type=Path, help="where rounds have their directories; a temporary place else")
    parser.add_argument("--go-on", action="store_true", help="do not end with the first round that found something")
    given = parser.parse_args()
    if given.processes is not None and not 2 <= given.processes <= 16:
        parser.error("--processes is 2 to 16")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # processes that are stopped must not stay behind
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    until = time.monotonic() + given.seconds
    failed: list[int] = []
    rounds = 0
    while (left := until - time.monotonic()) > 0 or not rounds:
        rounds += 1
        processes = given.processes or random.Random(f"processes {seed}").randint(2, 16)
        if not run_round(min(given.round, max(left, 1)), processes, seed, given.directory, _say):
            failed.append(seed)
            if not given.go_on:
                break
        seed += 1
    _say(f"{rounds} rounds, {len(failed)} found something" + (f": seeds {failed}" if failed else ""))
    return 1 if failed else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
