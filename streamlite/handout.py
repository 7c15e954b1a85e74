"""What a consumer has handed out, and how far the application is done with it.

Processed means: the loop asked for the next message, or `poll` was called again. A `Handout` keeps what has been handed
out and is not yet processed: the tracks that the last `poll` took from, and the loop's run (messages of one partition
in the generator's hands, `current` being the one that the application has). Everything else follows:

* The next `poll` counts the last one's messages as processed (`count_polled`); the loop's generator says so when it is
  resumed (`resumed`, `end_run`), and not when it is closed.
* What a call took counts as handed out once the call is over (`hand_out`, `begin_run`). One that was cut off, by
  an error or a signal handler that raises anywhere, leaves it in `taking`, and the next call begins by taking it back
  (`give_up`).
* Whatever interrupts the loop takes its messages back (`take_back`): `current` and what follows are handed out again.

The loop looks at `run` after each message, and somewhere else it is replaced to stop it: by None (take the rest back),
or by `TICK` (look up, then go on).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from streamlite.fetcher import Fetcher, Track
from streamlite.message import Message, TopicPartition

__all__ = ["TICK", "Handout"]

TICK: Final[list[Message]] = []
"""What the ticker puts in the place of a run."""


class Handout:
    """What is in the application's hands. `run` may be replaced by other threads, everything else is the consumer's."""

    __slots__ = ("_fetcher", "current", "live", "polled", "run", "run_track", "taking")

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self.polled: list[Track] = []
        self.run: list[Message] | None = None
        self.live: list[Message] | None = None
        """The run, as long as nothing but the ticker interrupts it."""
        self.run_track: Track | None = None
        self.current: Message | None = None
        self.taking: list[Track] = []
        """The tracks that the call under way has taken from, or the last one had when a signal handler ended it."""

    def take(self, track: Track, most: int) -> list[Message]:
        """The next messages of a track. Until `hand_out` or `begin_run` says so, nobody has them."""
        taking = self.taking
        taking.append(track)
        messages = track.messages(most)
        if not messages:
            taking.pop()
        return messages

    def hand_out(self) -> None:
        """What was taken is in the application's hands. The last thing that a call does; it calls nothing."""
        self.polled = self.taking
        self.taking = []

    def give_up(self) -> None:
        """What a call took that was cut off reached nobody: it is handed out again. Every call does this first."""
        if self.taking:
            for track in self.taking:
                track.start_over()
                self._fetcher.wake(track)
            self.taking = []

    def count_polled(self) -> None:
        """What the last `poll` handed out is processed."""
        for track in self.polled:
            track.processed = track.position
        self.polled.clear()

    def begin_run(self, run: list[Message], track: Track) -> None:
        """The loop is about to hand these out, which were just taken from `track`."""
        self.run_track, self.current = track, None
        self.run = self.live = run
        self.taking = []

    def interrupt(self) -> None:
        """Have the loop take back the rest of the run when it asks for the next message."""
        self.live = self.run = None

    def end_run(self) -> None:
        """The loop asked for more than the run has: all of it is processed."""
        if self.run_track is not None:
            self.run_track.processed = self.run_track.position
        self.run = self.live = self.run_track = self.current = None

    def resumed(self, message: Message) -> None:
        """The loop is done with `message`, unless that was settled otherwise meanwhile."""
        if self.run_track is not None and self.current is message:
            self.run_track.processed = message.offset + 1
            self.current = None

    def note(self) -> None:
        """Bring the run's track up to date: everything before `current` is processed."""
        if self.run_track is not None and self.current is not None:
            self.run_track.processed = self.current.offset

    def mark(self, track: Track, offset: int) -> None:
        """Everything of a partition before `offset` is processed, as far as it was handed out."""
        self.note()
        offset = min(offset, self.position(track))
        if offset <= track.processed:
            return
        track.processed = offset
        if track is self.run_track and self.current is not None and self.current.offset < offset:
            self.current = None

    def take_back(self) -> None:
        """End the run: what the loop is not done with is handed out again."""
        self.note()
        if self.run_track is not None:
            self._again(self.run_track)
        self.run = self.live = self.run_track = self.current = None

    def take_back_all(self) -> None:
        """As `take_back`, and for the last `poll` too."""
        self.take_back()
        for track in self.polled:
            self._again(track)
        self.polled = []

    def _again(self, track: Track) -> None:
        self._fetcher.wake(track)
        track.rewind()

    def position(self, track: Track) -> int:
        """The offset of the next message of a partition that will be handed out."""
        if track is not self.run_track:
            return track.position
        return track.processed if self.current is None else self.current.offset + 1

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """These are read no more: nothing of them is in anybody's hands."""
        if self.run_track is not None and self.run_track.tp in partitions:
            self.run = self.live = self.run_track = self.current = None
        self.polled = [track for track in self.polled if track.tp not in partitions]
