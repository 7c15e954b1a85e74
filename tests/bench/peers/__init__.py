"""streamlite beside its peers, the same messages through each: `python -m tests.bench.peers`.

A peer is an adapter of a few dozen lines (`peer.py` says what it must do), in the way its own documentation recommends
for speed. All are optional: one whose library or server is absent is left out with a word. `server.py` starts the
servers, on free ports of the loopback interface, and ends them however the bench ends; `rounds.py` takes the peers in
turn; `table.py` has the targets and judges.
"""
