"""How long a message takes from one process to another: `python -m tests.bench.peers.pings` is the other process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.bench.case import percentile
from tests.bench.peers.peer import Peer

ROOT: Final = Path(__file__).parents[3]
PAUSE_S: Final = 0.001
WARMING: Final = 20
"""First messages that do not count."""


def measure(peer: Peer, log: str, count: int) -> tuple[float, float]:
    """The median and the 99th percentile in microseconds. The value of a message is the time it was sent."""
    peer.open_for_pings(log)
    command = [sys.executable, "-m", "tests.bench.peers.pings", peer.name, str(peer.place), peer.level, str(peer.port)]
    other = subprocess.Popen([*command, log, str(count)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n", "the other process ended"
        # One at a time, the next when the other process has the one before: a time on the way, and no queue.
        for _ in range(WARMING + count):
            time.sleep(PAUSE_S)
            peer.ping(b"%d" % time.perf_counter_ns())
            assert other.stdout.readline() == b"here\n", "the other process ended"
        p50, p99 = json.loads(other.stdout.readline())
        return p50, p99
    finally:
        other.kill()
        with other:
            pass
        peer.close()


def receive(name: str, place: str, level: str, port: str, log: str, count: str) -> None:
    """Wait for the messages and say how long they took."""
    from tests.bench.peers.rounds import PEERS

    peer = PEERS[name](Path(place), level, int(port))
    peer.open_for_pings(log)
    print("ready", flush=True)
    taken: list[float] = []
    for values in peer.arrivals():
        now = time.perf_counter_ns()
        for value in values:
            taken.append((now - int(value)) / 1e3)
            print("here", flush=True)
        if len(taken) >= WARMING + int(count):
            break
    counted = taken[WARMING:]
    print(json.dumps([percentile(counted, 0.5), percentile(counted, 0.99)]), flush=True)
    sys.stdin.read()  # until it is killed: some clients take long to close, or remove what both have open


if __name__ == "__main__":
    receive(*sys.argv[1:])
