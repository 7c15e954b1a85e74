"""Takes the peers in turn, so that what else the machine does meets them all, and gathers what each round found."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

from tests.bench.case import DISTINCT
from tests.bench.peers import pings
from tests.bench.peers.brokers import JetStream, KafkaApache, KafkaNoida, RedisStreams
from tests.bench.peers.embedded import DiskcacheDeque, Litequeue, PersistQueue, Queuelib, RawSQLite, Streamlite
from tests.bench.peers.peer import Peer
from tests.bench.peers.server import ServerError, running

KINDS: tuple[type[Peer], ...] = (
    Streamlite,
    RawSQLite,
    Queuelib,
    DiskcacheDeque,
    PersistQueue,
    Litequeue,
    RedisStreams,
    JetStream,
    KafkaNoida,
    KafkaApache,
)
PEERS: dict[str, type[Peer]] = {kind.name: kind for kind in KINDS}


@dataclass
class Found:
    """What the rounds found: for each peer and measure a figure a round."""

    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """By peer and measure: `produce`, `produce_many`, `produce_plain`, `consume` in messages a second; `p50` and `p99`
    of pings in microseconds.
    """
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that did not take part, and why."""

    def note(self, peer: str, measure: str, figure: float) -> None:
        self.rates.setdefault((peer, measure), []).append(figure)


@dataclass(frozen=True)
class Setting:
    """What the command line asks for."""

    root: Path
    level: str
    rounds: int = 5
    messages: int = 1_000_000
    pings: int = 400

    def count(self, peer: Peer) -> int:
        """How many messages this one gets, in thousands."""
        return max(1, round(self.messages * peer.share / DISTINCT)) * DISTINCT


def measure(names: Iterable[str], setting: Setting, say: Callable[[str], None]) -> Found:
    """All rounds of those peers. Their servers run from the first to the last round."""
    found = Found()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamlite-peers-", dir=setting.root)))
        peers = []
        for name in names:
            kind = PEERS[name]
            why = kind.missing()
            if not why and setting.level not in kind.levels:
                why = "cannot sync each batch"
            if not why:
                peer = kind(place / f"{len(peers)}", setting.level)
                peer.place.mkdir(mode=0o700)
                try:
                    stack.enter_context(running(peer))
                    peers.append(peer)
                    continue
                except ServerError as error:
                    why = str(error)
            found.absent[name] = why
        # A first round that does not count: a JVM compiles, a file system and its caches settle.
        _rounds(peers, replace(setting, rounds=1, messages=max(DISTINCT, setting.messages // 10)), say, Found(), "warm")
        _rounds(peers, setting, say, found, "log")
    return found


def _rounds(peers: list[Peer], setting: Setting, say: Callable[[str], None], found: Found, log: str) -> None:
    for number in range(setting.rounds):
        # Another one begins each time: what the one before leaves to the disk does not always meet the same one.
        for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
            say(f"{log} {number + 1} of {setting.rounds}: {peer.name}")
            _round(peer, setting, f"{log}-{number}", found)


def _round(peer: Peer, setting: Setting, log: str, found: Found) -> None:
    count = setting.count(peer)
    peer.open(log)
    try:
        for name, step in (("produce", peer.produce), ("consume", peer.consume)):
            found.note(peer.name, name, count / _timed(step, count))
    finally:
        peer.close()
    more = {"produce_many": (peer.batched, peer.produce_many), "produce_plain": (peer.plain, peer.produce_plain)}
    for name, (has, step) in more.items():
        if has:
            peer.open(f"{log}-{name}")
            try:
                found.note(peer.name, name, count / _timed(step, count))
            finally:
                peer.close()
    if peer.shared:
        p50, p99 = pings.measure(peer, f"{log}-pings", setting.pings)
        found.note(peer.name, "p50", p50)
        found.note(peer.name, "p99", p99)


def _timed(step: Callable[[int], None], count: int) -> float:
    gc.collect()
    begun = perf_counter()
    step(count)
    return perf_counter() - begun
