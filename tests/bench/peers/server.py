"""Starting what a peer is a client of, and ending it whatever happens to the bench, its being killed included.

Between the two stands a guard, a small process that reads its standard input: when the bench ends, however it ends,
that input ends too, and the guard ends the server.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench.peers.peer import PATIENCE_S, Peer

GRACE_S: Final = 5.0

GUARD: Final = f"""
import os, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def guard():
    while os.read(0, 1):
        pass
    server.terminate()
    try:
        server.wait({GRACE_S})
    except subprocess.TimeoutExpired:
        server.kill()
threading.Thread(target=guard, daemon=True).start()
os._exit(server.wait() & 255)  # whatever the other thread waits for
"""


class ServerError(Exception):
    """A server that did not begin to work; the peer is left out."""


def free_port() -> int:
    """One that nothing listens on now. Another may take it before the server does, which then says so and ends."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(peer: Peer) -> Iterator[None]:
    """The server of a peer, for as long as the block runs. Nothing for one that needs none."""
    peer.port = free_port()
    command = peer.command()
    if not command:
        yield
        return
    said = peer.place / "server.out"
    with said.open("wb") as out:
        # A session of its own, so that Ctrl-C reaches the bench alone, which then ends this one in order.
        guard = subprocess.Popen(
            [sys.executable, "-c", GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=peer.place,
            start_new_session=True,
        )
    try:
        _wait(peer, guard, said)
        yield
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        try:
            guard.wait(2 * GRACE_S)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()


def _wait(peer: Peer, guard: subprocess.Popen[bytes], said: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if guard.poll() is not None:
            last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise ServerError(f"its server ended with status {guard.returncode}: {' '.join(last)}")
        try:
            with socket.create_connection(("127.0.0.1", peer.port), timeout=1):
                pass
        except OSError:
            time.sleep(0.02)
            continue
        if peer.answers():
            return
    raise ServerError(f"its server did not answer within {PATIENCE_S:.0f} s")
