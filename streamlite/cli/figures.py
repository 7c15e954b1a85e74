"""What the demo measures and counts, as plain values: no bus, no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from streamlite.cli.flights import Flight

__all__ = ["ALERT_MINUTES", "CarrierDelays", "Check", "Delays", "Figures", "is_alert"]

ALERT_MINUTES: Final = 120
"""A flight that leaves later than this after its scheduled time is an alert."""


def is_alert(flight: Flight) -> bool:
    """Whether the flight left more than two hours late."""
    return flight.dep_delay is not None and flight.dep_delay > ALERT_MINUTES


@dataclass(slots=True)
class CarrierDelays:
    """The departures of one carrier; `minutes` is the sum of its delays, early departures counted as negative."""

    carrier: str
    flights: int = 0
    departed: int = 0
    minutes: int = 0
    longest: int | None = None
    alerts: int = 0

    @property
    def cancelled(self) -> int:
        """Flights that never left."""
        return self.flights - self.departed

    @property
    def mean(self) -> float | None:
        """Mean delay in minutes of those that left; `None` when none did."""
        return self.minutes / self.departed if self.departed else None

    def add(self, flight: Flight) -> None:
        """Count one flight of this carrier."""
        self.flights += 1
        delay = flight.dep_delay
        if delay is None:
            return
        self.departed += 1
        self.minutes += delay
        self.longest = delay if self.longest is None else max(self.longest, delay)
        self.alerts += delay > ALERT_MINUTES


class Delays(dict[str, CarrierDelays]):
    """What the group `delays` builds up: a row for each carrier."""

    def add(self, flights: Iterable[Flight]) -> None:
        """Count flights of any carrier."""
        for flight in flights:
            row = self.get(flight.carrier)
            if row is None:
                row = self[flight.carrier] = CarrierDelays(flight.carrier)
            row.add(flight)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold: what it is, whether it does, and what was found."""

    what: str
    ok: bool
    found: str


@dataclass(frozen=True, slots=True)
class Figures:
    """All that the demo did. `alerts` stand in the order they were found, the first `alerts_before` before the stop."""

    flights: int
    keys: int
    keyless: int
    per_partition: tuple[int, ...]
    produce_seconds: float

    carriers: tuple[CarrierDelays, ...]
    delays_seconds: float

    read_before: int
    """Messages the group `alerts` read before it was stopped."""
    read_after: int
    """Messages it read after the bus was opened again."""
    alerts: tuple[Flight, ...]
    alerts_before: int
    alerts_seconds: float
    committed: Mapping[int, int]
    """Its committed offsets by partition, as the opened bus found them."""
    reopen_seconds: float

    day: str
    """The New York day with most alerts, which was replayed."""
    day_flights: int
    day_cancelled: int
    day_alerts: int
    replay_seconds: float

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)
